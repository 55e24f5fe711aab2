"""Rieger, Nguyen, Miettinen, Sadeghi, "DeepSight", NDSS 2022, and the clustering it uses (Campello,
Moulavi, Sander, PAKDD 2013), by its definition: components of a graph at every level."""

from __future__ import annotations

import math

import numpy as np

from reference.rows import Array, as_float64, length_of, present, unit_vector
from reference.rules import mean


def _components(rows: list[int], joined: Array) -> list[list[int]]:
    found, left = [], set(rows)
    while left:
        group = {min(left)}
        while True:
            more = {j for j in left if any(joined[i][j] for i in group)} - group
            if not more:
                break
            group |= more
        left -= group
        found.append(sorted(group))
    return found


def hdbscan(
    distances: Array, min_samples: int, min_cluster_size: int, allow_single_cluster: bool
) -> Array:
    """The first row of each row's cluster, -1 for noise: (n, n) -> (n,).

    All components of one level part at once. A stability exceeds another one by more than 1e-5 of it, or
    it is equal."""
    n = len(distances)
    if n < 2:
        return np.full(n, 0 if allow_single_cluster else -1)
    others = [sorted(np.delete(as_float64(distances[i]), i)) for i in range(n)]
    core = [row[min(min_samples, n - 1) - 1] for row in others]
    reach = np.array([[max(distances[i][j], core[i], core[j]) for j in range(n)] for i in range(n)])
    levels = sorted({float(reach[i][j]) for i in range(n) for j in range(n) if i != j})[::-1]

    def grow(rows: list[int], birth: float, depth: int) -> dict:
        """A cluster, from the level at which it appears on."""
        fell, whole, children = {}, list(rows), []
        for k in range(depth, len(levels)):
            density = math.inf if levels[k] == 0 else 1 / levels[k]
            parts = _components(rows, reach < levels[k])
            if len(parts) == 1:
                continue
            large = [part for part in parts if len(part) >= min_cluster_size]
            kept = [i for part in large for i in part]
            fell |= {i: density for i in rows if i not in kept}
            if len(large) == 1:
                rows = large[0]
                continue
            children = [grow(part, density, k + 1) for part in large]
            break
        stability = sum(density - birth for density in fell.values())
        stability += sum((c["birth"] - birth) * len(c["rows"]) for c in children)
        return {"rows": whole, "birth": birth, "fell": fell, "children": children, "own": stability}

    def select(cluster: dict, may_stay: bool) -> tuple[float, list[dict]]:
        below = [select(child, True) for child in cluster["children"]]
        total = sum(value for value, _ in below)
        if may_stay and not total > cluster["own"] * (1 + 1e-5):
            return cluster["own"], [cluster]
        return total, [c for _, chosen in below for c in chosen]

    root = grow(list(range(n)), 0.0, 0)
    labels = np.full(n, -1)
    for cluster in select(root, allow_single_cluster)[1]:
        members = cluster["rows"]
        if cluster is root:
            deepest = max([*root["fell"].values(), *(c["birth"] for c in root["children"])])
            members = [i for i in members if root["fell"].get(i, math.inf) >= deepest]
        labels[members] = min(members)
    return labels


def update_energies(kernel: Array, bias: Array) -> tuple[Array, int]:
    """Normalised energies of the output neurons, and how many exceed the threshold.

    kernel (h, P), bias (P,) of one update -> (P,), number."""
    energy = np.abs(as_float64(bias)) + np.sum(np.abs(as_float64(kernel)), axis=0)
    squares = (energy / max(np.max(energy), 1e-300)) ** 2
    normalised = squares / max(np.sum(squares), 1e-300)
    limit = max(0.01, 1 / len(energy)) * np.max(normalised)
    return normalised, int(np.sum(normalised > limit))


def _apart(labels: Array) -> Array:
    return (labels[:, None] != labels[None, :]).astype(float)


def _between(points: Array) -> Array:
    return np.array([[length_of(a - b) for b in points] for a in points])


def deepsight_clusters(energies: Array, biases: Array, differences: list[Array]) -> Array:
    """Labels from the energies (n, P), the biases' updates (n, P) and division differences (n, P)."""
    units = np.array([unit_vector(as_float64(b)) for b in biases])
    cosine = np.array([[1 - float(a @ b) for b in units] for a in units])
    np.fill_diagonal(cosine, 0)
    by_difference = [_apart(hdbscan(_between(d), 3, 5, False)) for d in differences]
    apart = (
        np.mean(by_difference, axis=0)
        + _apart(hdbscan(_between(energies), 3, 5, False))
        + _apart(hdbscan(cosine, 3, 5, False))
    ) / 3
    return hdbscan(np.round(apart, 9), 3, 5, True)


def deepsight_accepted(labels: Array, exceedings: Array) -> list[int]:
    """Members of clusters of which less than a third is suspicious."""
    suspicious = exceedings <= np.median(exceedings) / 2
    accepted = []
    for label in sorted(set(labels) - {-1}):
        members = np.flatnonzero(labels == label)
        if 3 * np.sum(suspicious[members]) < len(members):
            accepted += members.tolist()
    return sorted(accepted)


def clipped_at_median(updates: Array, chosen: list[int], weights: Array | None = None) -> Array:
    """The mean of the chosen rows, shortened to the median length of all present."""
    rows, weights, index = present(updates, weights)
    lengths = np.array([length_of(row) for row in rows])
    typical = np.median(lengths)
    kept = [k for k, i in enumerate(index) if i in chosen]
    short = [rows[k] * min(1, typical / lengths[k]) if lengths[k] else rows[k] for k in kept]
    return mean(np.array(short).reshape(len(kept), -1), weights[kept])
