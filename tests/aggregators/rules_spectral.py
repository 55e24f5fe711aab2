"""The lines of rules that look at subsets and spectra."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import reference as ref
from rule import TIES, Rule, server_vector

from fedjax_robust.aggregators import caf, dnc, flame, lasa, mda, mean_of_medians, smea
from fedjax_robust.types import Task

STEPS = 30


def selecting(make: Callable[[int], Any], select: Callable[..., list[int]], **options: Any) -> Rule:
    """A choice of rows, then the mean. ``select``: updates, f, weights -> rows that stay."""

    def reference(x: np.ndarray, f: int, w: np.ndarray | None) -> np.ndarray:
        return ref.mean_of_selected(select)(x, f, weights=w)

    options = {"robust": False} | options
    return Rule(make, reference, lambda f: 2 * f + 1, select, weighted=True, **options)


def leaves_of(row: Any) -> list[Any]:
    """A matrix, if there is enough, and a vector."""
    k = len(row) // 4
    return [row[: 4 * k].reshape(2, 2 * k), row[4 * k :]] if k and len(row) % 4 else [row]


def flattened(leaves: list[np.ndarray]) -> np.ndarray:
    return np.concatenate([leaf.ravel() for leaf in leaves])


def unordered(leaves: list[Any]) -> dict[str, Any]:
    """Names that sort the other way round than the parameters."""
    return {f"leaf {9 - i}": leaf for i, leaf in enumerate(leaves)}


TASK = Task(None, None, None, lambda params: unordered(leaves_of(params)))


RULES = {
    "mda": selecting(mda, ref.mda_selection, excluded=TIES, ordered=True),
    "smea": selecting(smea, ref.smea_selection, excluded=TIES),
    "dnc": selecting(dnc, ref.dnc_selection, excluded=TIES),
    "caf": Rule(
        lambda f: caf(f, steps=STEPS),
        lambda x, f, w: ref.caf(x, f, w, STEPS),
        lambda f: 2 * f + 1,
        robust=False,
    ),
    "mean_of_medians": selecting(
        lambda f: mean_of_medians(f, 1.3, 4, delta=0.5),
        lambda x, f, w: ref.mean_of_medians_selection(x, f, 1.3, 4, 0.5, w),
        excluded=TIES,
        equivariant=False,
    ),
    "flame": Rule(
        lambda f: flame(noise=0.0),
        lambda x, f, w: ref.flame(x, w, server_vector(x.shape[1]))[0],
        lambda f: 1,
        lambda x, f, w: ref.flame(x, w, server_vector(x.shape[1]))[1],
        {"tiny"},  # the reference adds 1e-20 to the model
        {"tiny"},
        robust=False,
        weighted=True,
        equivariant=False,
        params=server_vector,
    ),
    "lasa": Rule(
        lambda f: lasa(TASK),
        lambda x, f, w: flattened(ref.lasa(x, leaves_of, w)[0]),
        lambda f: 1,
        robust=False,
        equivariant=False,
    ),
}
