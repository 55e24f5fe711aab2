"""What stands before or after another rule: bucketing, mixing, clipping, flips, noise.

Karimireddy, He, Jaggi, ICLR 2022 (bucketing); the other papers are named where they begin. A base is a
function (rows (m, d), weights (m,)) -> (d,) of present rows.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from reference.rows import Array, length_of, present

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
    length = length_of(x)
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


# --- Ozfatura et al., IEEE TIFS 2024 ---------------------------------------------------------------


def stratified(v: Array, rows: Array, numbers: Array, size: int) -> list[list[int]]:
    """Buckets of present rows: one of each of ``size`` strata by cosine to v, ``numbers`` being the draw.

    Where v is zero all cosines are; the numbers also decide between equal cosines.
    """
    lengths = [length_of(row) * length_of(v) for row in rows]
    cosines = [
        row @ v / length if length else 0.0 for row, length in zip(rows, lengths, strict=True)
    ]
    order = sorted(range(len(rows)), key=lambda i: (cosines[i], numbers[i], i))
    buckets: list[list[int]] = [[] for _ in range(-(-len(rows) // size))]
    for stratum in np.array_split(np.array(order, int), size):
        for bucket, i in zip(buckets, sorted(stratum, key=lambda i: (numbers[i], i)), strict=False):
            bucket.append(int(i))
    return buckets


def sequential_clipping(
    updates: Array,
    bound: float,
    size: int,
    numbers: Array,
    v: Array,
    means: bool,
    weights: Array | None = None,
) -> tuple[Array, Array]:
    """From v (d,), bucket by bucket: the aggregate and the next v."""
    rows, _, index = present(updates, weights)
    if not len(rows):
        return np.zeros(len(v)), v
    for bucket in stratified(v, rows, np.asarray(numbers)[index], size):
        members = rows[bucket]
        if means:
            members = np.mean(members, axis=0, keepdims=True)
        v = v + sum(clipped_to(row - v, bound) for row in members) / len(members)
    return v, v


# --- Allouah et al., AISTATS 2023 and ICLR 2025 ----------------------------------------------------


def mixed_rows(rows: Array, f: int) -> Array:
    """Nearest neighbour mixing of present rows: each becomes the mean of the n - f nearest to it."""
    mixed = np.zeros(np.shape(rows))
    for i, row in enumerate(rows):
        distances = [length_of(other - row) for other in rows]
        distances[i] = -1.0
        order = sorted(range(len(rows)), key=lambda j: (distances[j], j))
        near = order[: max(len(rows) - f, 1)]
        mixed[i] = sum(rows[j] for j in near) / len(near)
    return mixed


def nnm(updates: Array, f: int, base: Base, weights: Array | None = None) -> Array:
    """A rule on the mixed rows, which keep their weights."""
    rows, weights, _ = present(updates, weights)
    return base(mixed_rows(rows, f), weights)


def arc_rows(rows: Array, f: int) -> Array:
    """Present rows of which the floor(2 f / n (n - f)) longest are clipped at the next length."""
    if len(rows) <= f:
        return rows
    lengths = sorted((length_of(row) for row in rows), reverse=True)
    bound = lengths[2 * f * (len(rows) - f) // len(rows)]
    return np.array([clipped_to(row, bound) for row in rows])


def arc(updates: Array, f: int, base: Base, weights: Array | None = None) -> Array:
    """A rule on the clipped rows."""
    rows, weights, _ = present(updates, weights)
    return base(arc_rows(rows, f), weights)


# --- Ozdayi, Kantarcioglu, Gel, AAAI 2021 ----------------------------------------------------------


def rlr(updates: Array, threshold: float, base: Base, weights: Array | None = None) -> Array:
    """Eq. 3: a rule's result, with the other sign where the rows' signs sum to less than theta."""
    rows, weights, _ = present(updates, weights)
    votes = abs(np.sum(np.sign(rows), axis=0))
    return np.where(votes >= threshold, 1, -1) * base(rows, weights)


# --- Xie, Chen, Chen, Li, ICML 2021 ----------------------------------------------------------------


def crfl(updates: Array, params: Array, bound: float, base: Base, w: Array | None = None) -> Array:
    """Algorithm 1 without its noise: from the received model to the next one, clipped."""
    rows, weights, _ = present(updates, w)
    return clipped_to(params + base(rows, weights), bound) - params


# --- Li, Ngai, Voigt, 2023 -------------------------------------------------------------------------


def cosine_distances(rows: Array) -> Array:
    """1 - cos of every two rows; 1 where one of them is zero."""
    units = [row / length_of(row) if length_of(row) else row for row in rows]
    return np.array([[1 - float(u @ v) for v in units] for u in units])


def larger_by_average_linkage(distances: Array) -> list[int]:
    """Clusters with the least mean distance are joined until two are left: the larger, or first, one."""
    clusters = [[i] for i in range(len(distances))]
    while len(clusters) > 2:
        pairs = [(a, b) for a in range(len(clusters)) for b in range(a + 1, len(clusters))]
        means = [np.mean(distances[np.ix_(clusters[a], clusters[b])]) for a, b in pairs]
        a, b = pairs[int(np.argmin(means))]
        clusters[a] += clusters.pop(b)
    return sorted(max(clusters, key=len)) if clusters else []


def clipped_clustering(
    updates: Array, lengths: list[float], base: Base, weights: Array | None = None
) -> tuple[Array, list[int], list[float]]:
    """The aggregate, the rows that stay, and the lengths so far, which come in, too."""
    rows, weights, index = present(updates, weights)
    lengths = lengths + [length_of(row) for row in rows]
    if not len(rows):
        return np.zeros(np.shape(updates)[1]), [], lengths
    stay = larger_by_average_linkage(cosine_distances(rows))
    clipped = np.array([clipped_to(row, float(np.median(lengths))) for row in rows])
    return base(clipped[stay], weights[stay]), [int(i) for i in index[stay]], lengths
