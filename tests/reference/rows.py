"""What the definitions share: which rows take part, and matrices on which rules tend to go wrong."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

Array = np.ndarray
Aggregate = Callable[[Array], Array]
Trigger = Callable[[Array], Array]
"""One input -> the input with the trigger."""


def as_float64(x: Array) -> Array:
    return np.array(x, dtype=np.float64)


def present(updates: Array, weights: Array | None = None) -> tuple[Array, Array, Array]:
    """The rows that take part, their weights and their indices in ``updates`` (n, d).

    A row takes part if its weight (default 1) is > 0 and all its entries are finite.
    """
    updates = as_float64(updates)
    weights = np.ones(len(updates)) if weights is None else as_float64(weights)
    kept = [i for i in range(len(updates)) if weights[i] > 0 and np.all(np.isfinite(updates[i]))]
    index = np.array(kept, dtype=np.int64)
    return updates[index], weights[index], index


def length_of(x: Array) -> float:
    return math.sqrt(sum(float(value) ** 2 for value in as_float64(x)))


def unit_vector(x: Array) -> Array:
    return x / length_of(x) if length_of(x) > 0 else x


def nasty_matrices(n: int, d: int, rng: np.random.Generator) -> dict[str, Array]:
    """Float32 matrices (n, d), by name, on which rules tend to go wrong. n >= 4, d >= 2."""

    def honest() -> Array:
        return (0.5 + rng.normal(size=(n, d))).astype(np.float32)

    def with_row(value: float) -> Array:
        x = honest()
        x[n // 2] = value
        return x

    few_nans, one_infinity = honest(), honest()
    few_nans[n // 3, :: max(d // 2, 1)] = np.nan
    one_infinity[n // 3, d // 2] = np.inf
    zero_rows, duplicates = honest(), honest()
    zero_rows[::3] = 0.0
    duplicates[n - n // 2 :] = duplicates[: n // 2]
    huge = honest()
    huge[n // 2] *= np.float32(1e30)
    scales = np.logspace(-6, 6, n)[rng.permutation(n), None]
    return {
        "honest": honest(),
        "common_offset": (1e3 + 1e-2 * rng.normal(size=(n, d))).astype(np.float32),
        "identical_rows": np.repeat(honest()[:1], n, axis=0),
        "ties": rng.integers(-1, 2, size=(n, d)).astype(np.float32),
        "huge_row": huge,
        "constant_huge_row": with_row(1e30),
        "nan_row": with_row(np.nan),
        "inf_row": with_row(np.inf),
        "minus_inf_row": with_row(-np.inf),
        "few_nans": few_nans,
        "one_infinity": one_infinity,
        "tiny": (1e-20 * honest()).astype(np.float32),
        "zero_rows": zero_rows,
        "all_zero": np.zeros((n, d), np.float32),
        "mixed_scales": (scales * honest()).astype(np.float32),
        "duplicates": duplicates,
    }
