"""Poisons that change labels.

``label_flip`` is that of Fang, Cao, Jia, Gong: "Local Model Poisoning Attacks to Byzantine-Robust
Federated Learning", USENIX Security 2020 (https://arxiv.org/abs/1911.11815), section 4.1.
"""

from __future__ import annotations

from collections.abc import Mapping

import jax
import jax.numpy as jnp

from fedjax_robust import checks
from fedjax_robust.clients.local import Poison
from fedjax_robust.memo import same_for_equal_arguments
from fedjax_robust.types import Array, Batch, Key


@same_for_equal_arguments
def other_label(num_classes: int) -> Poison:
    """Every label becomes another one, drawn uniformly.

    Args:
      num_classes: L >= 2, all classes of the task.

    Raises:
      ValueError: if L < 2; on use, for labels that are not 0, ..., L - 1, or of a type that cannot hold
        L - 1. Where labels are traced, as in a run, one beyond them becomes a label that no task has, so
        that the client's loss is NaN.
      TypeError: if L is no number.
    """
    checks.static_count("other_label", 2, num_classes=num_classes)
    num_classes = int(num_classes)

    def poison(key: Key, batch: Batch) -> Batch:
        y = labels_of("other_label", batch, num_classes)
        if num_classes - 1 > jnp.iinfo(y.dtype).max:
            raise ValueError(
                f"other_label needs labels of a type that holds {num_classes - 1}, got {y.dtype}; "
                "convert them with .astype(numpy.int32)"
            )
        shift = jax.random.randint(key, y.shape, 1, num_classes, y.dtype)
        # In 8 bits the sum would overflow.
        new = (y.astype(jnp.int32) + shift.astype(jnp.int32)) % num_classes
        return {**batch, "y": as_label(new, y, num_classes)}

    return poison


@same_for_equal_arguments
def label_flip(num_classes: int) -> Poison:
    """Label flipping, l -> L - 1 - l (Fang et al. 2020, section 4.1).

    Args:
      num_classes: L >= 2, all classes of the task.

    Raises:
      ValueError: if L < 2; on use, for labels that are not 0, ..., L - 1. Where labels are traced, as in
        a run, such a one becomes a label that no task has, so that the client's loss is NaN.
      TypeError: if L is no number.
    """
    checks.count("label_flip", 2, num_classes=num_classes)

    def poison(key: Key, batch: Batch) -> Batch:
        y = labels_of("label_flip", batch, num_classes)
        return {**batch, "y": as_label(num_classes - 1 - y.astype(jnp.int32), y, num_classes)}

    return poison


def labels_of(what: str, batch: Batch, num_classes: int | Array) -> Array:
    """y (b,) or (b, T), in [0, L) where they are known."""
    if not isinstance(batch, Mapping) or "y" not in batch:
        given = sorted(map(str, batch)) if isinstance(batch, Mapping) else type(batch).__name__
        raise ValueError(f"{what} needs a batch with labels 'y', got {given}")
    known = int(num_classes) if checks.is_known(num_classes) else None
    return checks.labels(what, batch["y"], num_classes=known, x=batch.get("x"))


def as_label(new: Array, y: Array, num_classes: int | Array) -> Array:
    """New labels (b,) int32 in the dtype of y; impossible where y is no label of the L classes."""
    limits = jnp.iinfo(y.dtype)
    impossible = limits.min if limits.min < 0 else limits.max
    return jnp.where((y >= 0) & (y < num_classes), new, impossible).astype(y.dtype)


def one_label(what: str, y: Array) -> None:
    """ValueError if y is not (b,): a poison of images, given sequences of words."""
    if y.ndim != 1:
        raise ValueError(
            f"{what} needs one label for each example, y (b,), got shape {y.shape}; of sequences of "
            "words take word_backdoor"
        )
