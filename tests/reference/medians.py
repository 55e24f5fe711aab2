"""Geometric median, RFA, means around a centre, Aksel, CGE, MoNNA, sign majority, median of means, VRMOM,
Cao and Lai's rule. Each is its paper's; see the head of its file in ``aggregators``.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from fractions import Fraction
from statistics import NormalDist

import numpy as np

from reference.rows import Array, as_float64, length_of, present
from reference.rules import mean, median, trimmed_mean


def weiszfeld(rows: Array, masses: Array, start: Array, nu: float, steps: int) -> Array:
    """The smoothed Weiszfeld algorithm; at nu = 0 a step that hits a row stays there."""
    shares, z = masses / np.sum(masses), as_float64(start)
    for _ in range(steps):
        distances = [max(nu, length_of(row - z)) for row in rows]
        if min(distances) == 0:
            return z
        b = [share / distance for share, distance in zip(shares, distances, strict=True)]
        # The same as sum b u / sum b, but for rounding beside huge rows.
        pull = sum(weight * (row - z) for weight, row in zip(b, rows, strict=True))
        z = z + pull / sum(b)
    return z


def rfa(
    updates: Array,
    steps: int,
    nu: float,
    weights: Array | None = None,
    from_zero: bool = False,
) -> Array:
    rows, masses, _ = present(updates, weights)
    if not len(rows):
        return np.zeros(rows.shape[1])
    start = np.zeros(rows.shape[1]) if from_zero else mean(rows, masses)
    return weiszfeld(rows, masses, start, nu, steps)


def geometric_median(
    updates: Array, weights: Array | None = None, steps: int = 100, smoothing: float = 1e-6
) -> Array:
    """Weiszfeld from the coordinate-wise median, nu in units of the median distance to it."""
    rows, masses, _ = present(updates, weights)
    if not len(rows):
        return np.zeros(rows.shape[1])
    start = median(rows)
    scale = float(np.median([length_of(row - start) for row in rows]))
    return weiszfeld(rows, masses, start, smoothing * scale, steps)


def sum_of_distances(updates: Array, z: Array) -> float:
    return float(np.mean([length_of(row - z) for row in as_float64(updates)]))


def _around(column: Array, centre: Fraction, kept: int) -> float:
    """The mean of the values nearest to a centre; of two equally near ones the lower."""
    nearest = sorted(map(float, column), key=lambda v: (abs(Fraction(v) - centre), v))[:kept]
    return float(sum(map(Fraction, nearest)) / kept)


def mean_around_median(updates: Array, f: int, weights: Array | None = None) -> Array:
    """Generalized Byzantine-tolerant SGD: the n - f values nearest to the median."""
    rows, _, _ = present(updates, weights)
    result = np.zeros(rows.shape[1])
    for j in range(rows.shape[1]) if len(rows) else ():
        ordered = sorted(Fraction(float(v)) for v in rows[:, j])
        middle = (ordered[(len(ordered) - 1) // 2] + ordered[len(ordered) // 2]) / 2
        result[j] = _around(rows[:, j], middle, max(len(rows) - f, 1))
    return result


def phocas(updates: Array, f: int, weights: Array | None = None) -> Array:
    """Phocas: the n - f values nearest to the trimmed mean."""
    rows, _, _ = present(updates, weights)
    result = np.zeros(rows.shape[1])
    if len(rows):
        centre = trimmed_mean(rows, f)
        for j in range(rows.shape[1]):
            result[j] = _around(rows[:, j], Fraction(centre[j]), max(len(rows) - f, 1))
    return result


def _nearest(distances: Sequence[float], index: Array, kept: int) -> list[int]:
    order = sorted(range(len(distances)), key=lambda i: (distances[i], i))
    return sorted(int(index[i]) for i in order[: max(kept, 1)])


def aksel_selection(updates: Array, f: int | None, weights: Array | None = None) -> list[int]:
    rows, _, index = present(updates, weights)
    centre = median(rows)
    kept = (len(rows) + 1) // 2 if f is None else len(rows) - f
    return _nearest([length_of(row - centre) for row in rows], index, kept) if len(rows) else []


def cge_selection(updates: Array, f: int, weights: Array | None = None) -> list[int]:
    rows, _, index = present(updates, weights)
    lengths = [length_of(row) for row in rows]
    return _nearest(lengths, index, len(rows) - f) if len(rows) else []


def monna_selection(
    updates: Array, f: int, trusted: int, weights: Array | None = None
) -> list[int]:
    rows, _, index = present(updates, weights)
    if trusted not in index:
        return []
    own = list(index).index(trusted)
    distances = [length_of(row - rows[own]) for row in rows]
    distances[own] = -1.0
    return _nearest(distances, index, len(rows) - f)


def sign_majority(
    updates: Array, step: float, weights: Array | None = None, weighted: bool = False
) -> Array:
    rows, masses, _ = present(updates, weights)
    votes = masses if weighted else np.ones(len(rows))
    total = np.zeros(rows.shape[1])
    for row, vote in zip(rows, votes, strict=True):
        total = total + vote * np.sign(row)
    return step * np.sign(total)


def median_of_means(
    updates: Array,
    groups: Sequence[int],
    weights: Array | None = None,
    base: Callable[[Array], Array] = median,
) -> Array:
    rows, masses, index = present(updates, weights)
    own = np.array([groups[i] for i in index], int)
    means = [mean(rows[own == g], masses[own == g]) for g in sorted(set(own.tolist()))]
    return base(np.array(means)) if means else np.zeros(rows.shape[1])


def vrmom(updates: Array, levels: int, weights: Array | None = None) -> Array:
    rows, _, _ = present(updates, weights)
    result = np.zeros(rows.shape[1])
    normal = NormalDist()
    for j in range(rows.shape[1]) if len(rows) else ():
        x = rows[:, j]
        middle = float(np.median(x))
        sd = 1.4826 * float(np.median(np.abs(x - middle)))
        surplus = sum(
            np.sum(x <= middle + sd * normal.inv_cdf(k / (levels + 1))) - len(x) * k / (levels + 1)
            for k in range(1, levels + 1)
        )
        density = sum(normal.pdf(normal.inv_cdf(k / (levels + 1))) for k in range(1, levels + 1))
        result[j] = middle - sd / (len(x) * density) * surplus
    return result


def cao_lai_selection(
    updates: Array, g_0: Array, xi: float, weights: Array | None = None
) -> list[int]:
    rows, _, index = present(updates, weights)
    g_0 = as_float64(g_0)
    close = [length_of(row - g_0) <= xi * length_of(g_0) for row in rows]
    return [int(i) for i, is_close in zip(index, close, strict=True) if is_close]


def cao_lai(
    updates: Array, g_0: Array, xi: float, weights: Array | None = None, server_weight: float = 1.0
) -> Array:
    chosen = cao_lai_selection(updates, g_0, xi, weights)
    masses = np.ones(len(updates)) if weights is None else as_float64(weights)
    rows = [as_float64(updates)[i] for i in chosen] + [as_float64(g_0)]
    masses = np.array([masses[i] for i in chosen] + [server_weight])
    return mean(np.array(rows), masses)
