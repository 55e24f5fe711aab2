"""Mean, median, trimmed mean, Krum, Multi-Krum and Bulyan.

Sections are those of Fang, Cao, Jia, Gong, "Local Model Poisoning Attacks to Byzantine-Robust
Federated Learning", USENIX Security 2020, which describes them all. Its m workers are our ``n`` clients,
and the assumed number of compromised ones is ``f``.

Rows are *updates*, local model - received global model, so w_Re is the zero vector. Every rule here
commutes with translations, hence updates and models give the same result.
"""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction

import numpy as np

from reference.rows import Array, as_float64, present


def mean(updates: Array, weights: Array | None = None) -> Array:
    """Section 2.2, mean: the weighted average of the rows (FedAvg)."""
    rows, weights, _ = present(updates, weights)
    total = np.zeros(rows.shape[1])
    for row, weight in zip(rows, weights, strict=True):
        total = total + weight * row
    return total / np.sum(weights) if len(rows) else total


def median(updates: Array, weights: Array | None = None) -> Array:
    """Section 2.2, median: per coordinate; of an even number, the mean of the two middle values.

    Weights only decide which rows are present.
    """
    rows, _, _ = present(updates, weights)
    result = np.zeros(rows.shape[1])
    for j in range(rows.shape[1]) if len(rows) else ():
        result[j] = _middle(rows[:, j])
    return result


def _middle(values: Sequence[float | Fraction] | Array) -> float | Fraction:
    ordered = sorted(values)
    half = len(ordered) // 2
    if len(ordered) % 2:
        return ordered[half]
    return (ordered[half - 1] + ordered[half]) / 2


def trimmed_mean(updates: Array, f: int, weights: Array | None = None) -> Array:
    """Section 2.2, trimmed mean with beta = f: drop the f lowest and the f highest per coordinate.

    Weights only decide which rows are present. With r < 2f + 1 rows, f becomes (r - 1) // 2: the
    largest that leaves something, which makes it the median.
    """
    rows, _, _ = present(updates, weights)
    result = np.zeros(rows.shape[1])
    if len(rows) == 0:
        return result
    f = min(f, (len(rows) - 1) // 2)
    for j in range(rows.shape[1]):
        ordered = sorted(rows[:, j])
        kept = ordered[f : len(ordered) - f]
        result[j] = sum(kept) / len(kept)
    return result


def pairwise_squared_distances(x: Array) -> Array:
    """(n, d) -> (n, n), the squared Euclidean distance of every two rows, by subtraction."""
    x = as_float64(x)
    distances = np.zeros((len(x), len(x)))
    for i in range(len(x)):
        for j in range(len(x)):
            distances[i, j] = np.sum((x[i] - x[j]) ** 2)
    return distances


def krum_scores(updates: Array, f: int, neighbours: int | None = None) -> Array:
    """Section 2.2, Krum: each row's sum of squared distances to its n - f - 2 closest others.

    A row is not its own neighbour. ``neighbours`` replaces n - f - 2; at least 1, at most n - 1.
    All rows must be present.
    """
    n = len(updates)
    count = max(n - f - 2 if neighbours is None else neighbours, 1)
    distances = pairwise_squared_distances(updates)
    scores = np.zeros(n)
    for i in range(n):
        others = sorted(distances[i, j] for j in range(n) if j != i)
        scores[i] = sum(others[:count])
    return scores


def krum_index(
    updates: Array, f: int, weights: Array | None = None, neighbours: int | None = None
) -> int:
    """Section 2.2: the row of ``updates`` that Krum selects; -1 if none is present."""
    rows, _, index = present(updates, weights)
    if len(rows) == 0:
        return -1
    return int(index[_lowest(krum_scores(rows, f, neighbours))])


def _lowest(scores: Array) -> int:
    best = 0
    for i in range(1, len(scores)):
        if scores[i] < scores[best]:
            best = i
    return best


def krum(
    updates: Array, f: int, weights: Array | None = None, neighbours: int | None = None
) -> Array:
    """Section 2.2, Krum: the row with the lowest score."""
    i = krum_index(updates, f, weights, neighbours)
    return np.zeros(np.shape(updates)[1]) if i < 0 else as_float64(updates[i])


def multi_krum_selection(
    updates: Array, f: int, m: int | None = None, weights: Array | None = None
) -> list[int]:
    """The m rows of lowest Krum score, computed once, best first (Blanchard et al. 2017).

    m is n - f by default, n counting the rows present; at least 1, at most all of them.
    """
    rows, _, index = present(updates, weights)
    if len(rows) == 0:
        return []
    scores = krum_scores(rows, f)
    order = sorted(range(len(rows)), key=lambda i: (scores[i], i))
    count = max(len(rows) - f if m is None else m, 1)
    return [int(index[i]) for i in order[:count]]


def multi_krum(updates: Array, f: int, m: int | None = None, weights: Array | None = None) -> Array:
    """The unweighted mean of the rows that ``multi_krum_selection`` lists."""
    selected = multi_krum_selection(updates, f, m, weights)
    return mean(as_float64(updates)[selected])


def bulyan_selection(
    updates: Array, f: int, weights: Array | None = None, one_shot: bool = False
) -> list[int]:
    """Section 2.2 and Appendix A: the theta = n - 2f rows that Bulyan selects, in that order.

    Krum is run on the rows that remain and its choice is moved to the selected ones, theta times;
    with r rows remaining it counts r - f - 2 neighbours (at least 1). ``one_shot`` is a variant in
    use elsewhere: the theta rows of lowest score among all.
    """
    rows, _, index = present(updates, weights)
    if len(rows) == 0:
        return []
    theta = max(len(rows) - 2 * f, 1)
    if one_shot:
        return multi_krum_selection(updates, f, theta, weights)
    remaining = list(range(len(rows)))
    selected: list[int] = []
    while len(selected) < theta:
        best = _lowest(krum_scores(rows[remaining], f))
        selected.append(remaining.pop(best))
    return [int(index[i]) for i in selected]


def bulyan(updates: Array, f: int, weights: Array | None = None, one_shot: bool = False) -> Array:
    """Section 2.2 and Appendix A: Krum's theta rows, then the mean of the values near the median.

    Per coordinate, the mean of the gamma = theta - 2f (at least 1) selected values that are closest
    to the median of the selected values; of two equally close ones, the lower value comes first.
    """
    selected = as_float64(updates)[bulyan_selection(updates, f, weights, one_shot)]
    return mean_near_median(selected, len(selected) - 2 * f)


def mean_near_median(rows: Array, gamma: int) -> Array:
    """Bulyan's second step; at least one value is kept, and no rows give zeros.

    In fractions: the two middle ones of an even number are equally close to their median.
    """
    rows = as_float64(rows)
    result = np.zeros(rows.shape[1])
    if len(rows) == 0:
        return result
    gamma = max(gamma, 1)
    for j in range(rows.shape[1]):
        values = [Fraction(value) for value in rows[:, j]]
        middle = _middle(values)
        closest = sorted(values, key=lambda value: (abs(value - middle), value))
        result[j] = sum(closest[:gamma]) / gamma
    return result
