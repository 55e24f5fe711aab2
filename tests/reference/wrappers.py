"""What stands before or after another rule: bucketing, mixing, clipping, flips, noise.

Karimireddy, He, Jaggi, ICLR 2022 (bucketing); the other papers are named where they begin. A base is a
function (rows (m, d), weights (m,)) -> (d,) of present rows.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from reference.rows import Array, present

Base = Callable[[Array, Array], Array]


def buckets(
    updates: Array, size: int, numbers: Array, weights: Array | None = None
) -> tuple[Array, Array]:
    """Algorithm 1: the present rows by ascending number, ``size`` at a time: means and sums of weights.

    ``numbers`` (n,), one for each row, are the draw.
    """
    rows, weights, index = present(updates, weights)
    order = sorted(range(len(rows)), key=lambda i: (numbers[index[i]], i))
    means, masses = np.zeros((0, np.shape(updates)[1])), np.zeros(0)
    for start in range(0, len(rows), size):
        members = order[start : start + size]
        total = sum(weights[i] for i in members)
        mean = sum(weights[i] / total * rows[i] for i in members)
        means, masses = np.vstack([means, mean[None]]), np.append(masses, total)
    return means, masses


def bucketing(
    updates: Array, size: int, numbers: Array, base: Base, weights: Array | None = None
) -> Array:
    """A rule on the buckets' means."""
    return base(*buckets(updates, size, numbers, weights))


# --- Karimireddy, He, Jaggi, ICML 2021 -------------------------------------------------------------


def clipped_to(x: Array, bound: float) -> Array:
    """One vector at length ``bound``, if it is longer."""
    longest = np.max(np.abs(x), initial=0.0)
    length = longest * np.sqrt(np.sum((x / longest) ** 2)) if longest > 0 else 0.0
    return x * (bound / length) if length > bound else x


def centered_clipping(
    updates: Array, bound: float, steps: int, v: Array, weights: Array | None = None
) -> tuple[Array, Array]:
    """Algorithm 2, ``steps`` times from v (d,): the aggregate and the next v."""
    rows, _, _ = present(updates, weights)
    if not len(rows):
        return np.zeros(len(v)), v
    for _ in range(steps):
        v = v + sum(clipped_to(row - v, bound) for row in rows) / len(rows)
    return v, v
