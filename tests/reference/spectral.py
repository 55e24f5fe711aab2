"""Rules that look at subsets and spectra: MDA, SMEA, DnC, CAF, mean of medians, FLAME, LASA.

Each is its paper's; see the head of the file in ``aggregators`` for which, and for what is a reading.
Selections are lists of rows of ``updates``; ``f`` and counts are of the rows present.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from fractions import Fraction

import numpy as np

from reference.rows import Array, length_of, present, unit_vector
from reference.rules import mean, pairwise_squared_distances


def mean_of_selected(select: Callable[..., list[int]]) -> Callable[..., Array]:
    """updates, ..., weights -> the weighted mean of the rows selected."""

    def rule(updates: Array, *arguments: object, weights: Array | None = None) -> Array:
        weights = np.ones(len(updates)) if weights is None else np.array(weights, np.float64)
        rows = select(updates, *arguments, weights)
        return mean(updates, np.where(np.isin(np.arange(len(updates)), rows), weights, 0))

    return rule


# --- Subsets -------------------------------------------------------------------------------------


def _best_subset(
    cost: Callable[[Array], float], updates: Array, f: int, weights: Array | None
) -> list[int]:
    """The first subset of n - f rows of lowest cost; nobody if there are no more than f rows."""
    rows, _, index = present(updates, weights)
    if len(rows) <= f:
        return []
    subsets = list(itertools.combinations(range(len(rows)), len(rows) - f))
    costs = [cost(rows[list(subset)]) for subset in subsets]
    return [int(index[i]) for i in subsets[costs.index(min(costs))]]


def diameter(rows: Array) -> float:
    return max(length_of(a - b) for a in rows for b in rows)


def mda_selection(updates: Array, f: int, weights: Array | None = None) -> list[int]:
    return _best_subset(diameter, updates, f, weights)


def top_eigenvalue(rows: Array) -> float:
    """Of the covariance with divisor n."""
    centred = rows - rows.mean(axis=0)
    return float(np.linalg.svd(centred, compute_uv=False)[0] ** 2 / len(rows))


def smea_selection(updates: Array, f: int, weights: Array | None = None) -> list[int]:
    return _best_subset(top_eigenvalue, updates, f, weights)


# --- Spectra -------------------------------------------------------------------------------------


def dnc_scores(rows: Array) -> list[Fraction]:
    """((u_i - mean) . v)^2, the last step in fractions: beside a huge row they differ in late digits."""
    _, _, v = np.linalg.svd(rows - rows.mean(axis=0))
    places = [Fraction(float(np.dot(row, v[0]))) for row in rows]
    middle = sum(places, Fraction(0)) / len(places)
    return [(place - middle) ** 2 for place in places]


def dnc_selection(
    updates: Array,
    f: int,
    weights: Array | None = None,
    c: float = 1.0,
    drawn: Sequence[Array] | None = None,
) -> list[int]:
    """``drawn``: the coordinates of each iteration; None = all of them, once."""
    rows, _, index = present(updates, weights)
    good = set(range(len(rows)))
    drawn = [np.arange(rows.shape[1])] if drawn is None else drawn
    for coordinates in drawn if len(rows) else ():
        scores = dnc_scores(rows[:, coordinates])
        number = max(len(rows) - math.floor(c * f + 1e-9), 1)
        good &= set(sorted(range(len(rows)), key=lambda i: (scores[i], i))[:number])
    return [int(index[i]) for i in sorted(good)]


def caf_weights(
    updates: Array,
    f: int,
    weights: Array | None = None,
    steps: int = 10**6,
    over_removed: bool = True,
) -> tuple[Array, list[float]]:
    """The weights (n,) of the mean that is returned, and the top eigenvalue of each step."""
    rows, _, index = present(updates, weights)
    result = np.zeros(len(updates))
    c = np.ones(len(rows))
    best, values = c, []
    while c.sum() > max(len(rows) - 2 * f, 0) and len(values) < steps:
        centred = rows - c @ rows / c.sum()
        _, singular, v = np.linalg.svd(np.sqrt(c)[:, None] * centred)
        values.append(singular[0] ** 2 / c.sum())
        if values[-1] == min(values) and values.count(values[-1]) == 1:
            best = c
        t = (centred @ v[0]) ** 2
        furthest = max(t if over_removed else t[c > 0])
        if values[-1] == 0 or furthest == 0:
            break
        c = c * np.where(t >= furthest, 0, 1 - t / furthest)
    result[index] = best
    return result, values


def caf(
    updates: Array,
    f: int,
    weights: Array | None = None,
    steps: int = 10**6,
    over_removed: bool = True,
) -> Array:
    c, _ = caf_weights(updates, f, weights, steps, over_removed)
    return mean(updates, c)


# --- Mean of medians -----------------------------------------------------------------------------


def mean_of_medians_selection(
    updates: Array,
    f: int,
    sigma: float,
    batch_size: float,
    delta: float,
    weights: Array | None = None,
) -> list[int]:
    rows, _, index = present(updates, weights)
    n = len(rows)
    if n == 0:
        return []
    distances = np.sqrt(pairwise_squared_distances(rows))
    kept: list[int] = []
    for radius in (
        2 * sigma * math.sqrt(2 * math.log(2 * n / delta) / batch_size),
        2 * sigma,
    ):
        crowded = [i for i in range(n) if sum(distances[i] <= radius) > n / 2]
        kept = []
        if crowded:
            centre = rows[crowded].mean(axis=0)
            closest = min(crowded, key=lambda i: (length_of(rows[i] - centre), i))
            kept = [i for i in range(n) if distances[closest, i] <= radius]
        if kept and len(kept) >= n - f:
            break
    return [int(index[i]) for i in kept]


# --- FLAME ---------------------------------------------------------------------------------------


def flame_selection(rows: Array) -> list[int]:
    """Single linkage by cosine distance until a component has floor(n / 2) + 1 rows; all are present."""
    n = len(rows)
    units = [unit_vector(row) for row in rows]
    distances = {
        (i, j): length_of(units[i] - units[j]) ** 2 / 2
        if length_of(rows[i]) and length_of(rows[j])
        else 1.0
        for i, j in itertools.combinations(range(n), 2)
    }
    component = list(range(n))
    for level in [0.0, *sorted(set(distances.values()))]:
        for (i, j), distance in distances.items():
            if distance <= level:
                component = [component[i] if k == component[j] else k for k in component]
        for k in component:
            if component.count(k) >= n // 2 + 1:
                return [i for i in range(n) if component[i] == k]
    return []


def flame(
    updates: Array,
    weights: Array | None = None,
    params: Array | None = None,
    noise: Array | float = 0.0,
) -> tuple[Array, list[int], list[int], float]:
    """The result, rows selected, those of them clipped, and S. ``noise``: lambda times normal draws."""
    rows, weights, index = present(updates, weights)
    zero = np.zeros(rows.shape[1])
    if len(rows) == 0:
        return zero, [], [], 0.0
    kept = flame_selection(rows + (zero if params is None else params))
    lengths = [length_of(row) for row in rows]
    s = float(np.median(lengths))
    clipped = [row * min(1.0, s / length_of(row)) if length_of(row) else row for row in rows]
    result = mean(np.array(clipped)[kept], weights[kept]) + s * np.asarray(noise)
    longer = [int(index[i]) for i in kept if lengths[i] > s]
    return result, [int(index[i]) for i in kept], longer, s


# --- LASA ----------------------------------------------------------------------------------------


def mz_scores(values: Sequence[float]) -> Array:
    """|x - median| / standard deviation (divisor n); NaN where that is 0."""
    values = np.asarray(values, np.float64)
    if np.all(values == values[0]):
        return np.full(len(values), np.nan)
    return np.abs(values - np.median(values)) / np.std(values)


def lasa_scores(
    leaves: Sequence[Array], sparsity: float
) -> list[tuple[Array, Array, list[float], list[float]]]:
    """For each leaf, (n, ...) of all clients: the scores of lengths and of signs, then both values."""
    copies = [np.array(leaf, np.float64) for leaf in leaves]
    matrices = [copy for copy in copies if copy.ndim in (3, 5)]
    if sparsity > 0 and matrices:
        for i in range(len(copies[0])):
            sizes = sorted((abs(x) for m in matrices for x in m[i].ravel()), reverse=True)
            limit = sizes[max(int(len(sizes) * (1 - sparsity)), 1) - 1]
            for m in matrices:
                m[i] = np.where(np.abs(m[i]) > limit, m[i], 0)
    result = []
    for copy in copies:
        lengths = [length_of(row.ravel()) for row in copy]
        balance = [
            0.5 * (1 + (1 - sparsity) * np.sum(np.sign(row)) / max(np.sum(np.abs(np.sign(row))), 1))
            for row in copy
        ]
        result.append((mz_scores(lengths), mz_scores(balance), lengths, balance))
    return result


def lasa(
    updates: Array,
    unravel: Callable[[Array], list[Array]],
    weights: Array | None = None,
    sparsity: float = 0.3,
    lambda_n: float = 1.0,
    lambda_s: float = 1.0,
) -> tuple[list[Array], Array]:
    """The leaves of the result, and in how many leaves each row counts. ``unravel``: a row's leaves."""
    rows, _, index = present(updates, weights)
    counts = np.zeros(len(updates), int)
    if len(rows) == 0:
        return unravel(np.zeros(rows.shape[1])), counts
    middle = float(np.median([length_of(row) for row in rows]))
    clipped = [row * min(1.0, middle / length_of(row)) if length_of(row) else row for row in rows]
    leaves = [np.array(leaf) for leaf in zip(*map(unravel, clipped), strict=True)]
    result = []
    for leaf, (lengths, signs, _, _) in zip(leaves, lasa_scores(leaves, sparsity), strict=True):
        benign = (lengths < lambda_n) & (signs < lambda_s)  # False where NaN
        if not benign.any():
            benign[:] = True
        result.append(leaf[benign].mean(axis=0))
        counts[index] += benign
    return result, counts
