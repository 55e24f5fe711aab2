"""``load(name)``: one data set of those that the package ``sources`` lists."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

import jax

from fedjax_robust import checks
from fedjax_robust.data.sources.bundled import breast_cancer, digits, synthetic
from fedjax_robust.data.sources.ch_mnist import ch_mnist_dataset
from fedjax_robust.data.sources.files import Dataset, beginning, data_folder
from fedjax_robust.data.sources.har import har_dataset
from fedjax_robust.data.sources.tfds import tfds_dataset
from fedjax_robust.types import Key

NAMES = (
    "breast_cancer",
    "digits",
    "synthetic",
    "mnist",
    "fashion_mnist",
    "cifar10",
    "ch_mnist",
    "har",
)
"""The names that ``load`` knows."""


def load(
    name: str, data_dir: str | os.PathLike[str] | None = None, key: Key | None = None
) -> Dataset:
    """Load one of ``NAMES``.

    Args:
      name: see the table on top of this module.
      data_dir: folder to look in; default ``FEDJAX_ROBUST_DATA``, else TFDS's own folder.
      key: JAX key, default ``jax.random.key(0)``. It draws the split of the data sets that have no
        published one (``breast_cancer``, ``digits``, ``ch_mnist``: 80 % train, rounded down; each
        user of ``har``: 75 % train, rounded up) and the whole of ``synthetic``; the others do not
        depend on it.

    Features of ``breast_cancer`` are standardised with the mean and the standard deviation of its
    training part, those of ``har`` are as published, in [-1, 1]; images are divided by their largest
    value (255, ``digits`` 16) and not normalised.

    Raises:
      ValueError: unknown name, a file that is damaged or not in the published layout, or a cache folder
        that other users own or can write.
      TypeError: an argument of another type.
      FileNotFoundError: the data are not there; the message says where it looked and how to get
        them.
    """
    known_name("load", name, NAMES, "data set")
    key = jax.random.key(0) if key is None else checks.key("load", key)
    data_folder(data_dir)
    match name:
        case "breast_cancer":
            return breast_cancer(key)
        case "digits":
            return digits(key)
        case "synthetic":
            return synthetic(key)
        case "mnist" | "fashion_mnist" | "cifar10":
            return tfds_dataset(name, data_dir)
        case "ch_mnist":
            return ch_mnist_dataset(key, data_dir)
        case "har":
            return har_dataset(key, data_dir)
    raise AssertionError(name)


def known_name(what: str, name: Any, known: Sequence[str], kind: str) -> None:
    """ValueError if the name is not among those known, TypeError if it is no string."""
    if not isinstance(name, str):
        raise TypeError(f"{what} needs name to be one of {', '.join(known)}, got {beginning(name)}")
    if name not in known:
        raise ValueError(
            f"{what}: there is no {kind} {beginning(name)}; known names are {', '.join(known)}"
        )
