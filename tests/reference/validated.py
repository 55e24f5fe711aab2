"""Rules with a server's examples or a memory of its own, in the forms that the package documents:

Zeno (Xie, Koyejo, Gupta, ICML 2019), FAIR (Deng et al., INFOCOM 2021, TPDS 2022), GAAvernor (Pan et al.,
USENIX Security 2020), Romoa (Mao et al., ESORICS 2021), SignGuard (Xu et al., ICDCS 2022). A loss is a
function of the parameters, a gradient one of them, too; what is random is an argument."""

from __future__ import annotations

import math
from collections.abc import Callable
from decimal import Decimal

import numpy as np

from reference.rows import Array, as_float64, length_of, present, unit_vector
from reference.rules import mean, median

Loss = Callable[[Array], float]


# --- Zeno ------------------------------------------------------------------------------------------


def zeno_scores(updates: Array, loss: Loss, rho: float, params: Array) -> Array:
    """f(w) - f(w + u) - rho |u|^2 of each row."""
    params = as_float64(params)
    return np.array(
        [loss(params) - loss(params + u) - rho * np.sum(u**2) for u in as_float64(updates)]
    )


def zeno_selection(
    updates: Array, loss: Loss, f: int, rho: float, params: Array, weights: Array | None = None
) -> list[int]:
    """All but the f rows of the lowest scores; of equal ones the first stays."""
    rows, _, index = present(updates, weights)
    scores = zeno_scores(rows, loss, rho, params)
    best = sorted(range(len(rows)), key=lambda i: (-scores[i], i))
    return [int(i) for i in sorted(index[best[: max(len(rows) - f, 0)]])]


# --- FAIR ------------------------------------------------------------------------------------------


def onto_simplex(x: Array) -> Array:
    """The closest point of the simplex: the number t of max(x - t, 0) is found by halving.

    A common shift changes nothing, and what lies 1 below the largest number gets nothing."""
    x = np.maximum(x - np.max(x), -1)
    low, high = -1.0, 0.0
    for _ in range(200):
        t = 0.5 * (low + high)
        low, high = (t, high) if np.sum(np.maximum(x - t, 0)) > 1 else (low, t)
    shares = np.maximum(x - high, 0)
    return shares / np.sum(shares)


def fair_weights(
    updates: Array,
    gradient: Callable[[Array], Array],
    step: float,
    steps: int,
    params: Array,
    weights: Array | None = None,
) -> Array:
    """Projected gradient descent on the simplex of the rows present, from equal weights: (n,)."""
    rows, _, index = present(updates, weights)
    result = np.zeros(len(updates))
    if not len(rows):
        return result
    a = np.full(len(rows), 1 / len(rows))
    for _ in range(steps):
        slope = gradient(as_float64(params) + a @ rows)
        a = onto_simplex(a - step * rows @ slope)
    result[index] = a
    return result


def fair_quality_estimates(histories: list[list[tuple[int, float]]], forget: float) -> Array:
    """Of each client's (age in rounds, quality): the mean weighted by exp(-forget age)."""
    return np.array(
        [
            sum(math.exp(-forget * age) * q for age, q in history)
            / sum(math.exp(-forget * age) for age, _ in history)
            if history
            else 0.0
            for history in histories
        ]
    )


def fair_by_quality(updates: Array, estimates: Array, weights: Array | None = None) -> Array:
    """The mean of the rows of positive estimates, weighted by estimate times weight."""
    rows, weights, index = present(updates, weights)
    trust = np.maximum(as_float64(estimates)[index], 0) * weights
    return mean(rows, trust)


# --- GAAvernor -------------------------------------------------------------------------------------


def credits_of(theta: Array) -> Array:
    parts = np.exp(theta - np.max(theta))
    return parts / np.sum(parts)


def credit_reward(theta: Array, rows: Array, loss: Loss, params: Array) -> float:
    """The relative fall of the loss by the rows weighted by softmax(theta)."""
    before = loss(params)
    return (before - loss(params + credits_of(theta) @ rows)) / abs(before)


def credit_slope(theta: Array, rows: Array, loss: Loss, params: Array) -> Array:
    """d reward / d theta, by central differences."""
    steps = 1e-6 * np.eye(len(theta))
    return np.array(
        [
            (
                credit_reward(theta + s, rows, loss, params)
                - credit_reward(theta - s, rows, loss, params)
            )
            / 2e-6
            for s in steps
        ]
    )


# --- Two clusters ----------------------------------------------------------------------------------


def larger_of_two(features: Array) -> list[int]:
    """Lloyd's iteration (10 steps) from the two rows furthest apart; the members of the larger cluster.

    Squares that differ by less than 1e-4 of the largest are equal: then the first pair starts, and a row
    joins the first cluster. Of clusters of equal size both are returned."""
    n = len(features)
    square = [[float(np.sum((a - b) ** 2)) for b in features] for a in features]
    largest = max((max(row) for row in square), default=0.0)
    near = 1e-4 * largest
    pairs = [(i, j) for i in range(n) for j in range(n) if square[i][j] >= largest - near]
    if not pairs:
        return []
    i, j = pairs[0]
    second = [square[k][j] < square[k][i] - near for k in range(n)]
    for _ in range(10):
        members = [[k for k in range(n) if second[k] == c] for c in (False, True)]
        zero = np.zeros(features.shape[1])
        means = [np.mean(features[m], axis=0) if m else zero for m in members]
        if not members[1]:
            break
        second = [
            np.sum((features[k] - means[1]) ** 2) < np.sum((features[k] - means[0]) ** 2) - near
            for k in range(n)
        ]
    sizes = second.count(False), second.count(True)
    if sizes[0] == sizes[1]:
        return list(range(n))
    return [k for k in range(n) if second[k] == (sizes[1] > sizes[0])]


# --- SignGuard -------------------------------------------------------------------------------------


def signguard_selection(
    updates: Array,
    taken: Array | None = None,
    fourth: Callable[[Array], Array] | None = None,
    weights: Array | None = None,
) -> list[int]:
    """Rows of usual length in the larger cluster.

    Args:
      updates: (n, d).
      taken: the coordinates whose signs count; None = all.
      fourth: rows -> another feature of each.
      weights: (n,).
    """
    rows, _, index = present(updates, weights)
    if not len(rows):
        return []
    lengths = np.array([length_of(row) for row in rows])
    typical = np.median(lengths)
    usual = [i for i in range(len(rows)) if 0.1 * typical <= lengths[i] <= 3 * typical]
    some = rows if taken is None else rows[:, taken]
    shares = np.array([[np.mean(r > 0), np.mean(r == 0), np.mean(r < 0)] for r in some])
    features = shares / (np.max(shares, axis=0) + 1e-8)
    if fourth is not None:
        features = np.column_stack([features, fourth(rows)])
    cluster = larger_of_two(features)
    return [int(index[i]) for i in usual if i in cluster]


def signguard(updates: Array, selection: list[int], weights: Array | None = None) -> Array:
    """The mean of the selected rows, shortened to the median length of all."""
    rows, weights, index = present(updates, weights)
    if not len(rows):
        return np.zeros(rows.shape[1])
    lengths = [length_of(row) for row in rows]
    typical = float(np.median(lengths))
    short = [
        row * min(1, typical / length) if length else row
        for row, length in zip(rows, lengths, strict=True)
    ]
    kept = [k for k, i in enumerate(index) if i in selection]
    return (
        mean(np.array(short)[kept].reshape(len(kept), -1), weights[kept]) if kept else 0 * rows[0]
    )


def signguard_similarity(rows: Array, last: Array | None) -> Array:
    """SignGuard-Sim's feature."""
    units = np.array([unit_vector(row) for row in rows])
    if last is None or not np.any(last):
        similarity = np.median(units @ units.T, axis=1)
    else:
        similarity = units @ unit_vector(as_float64(last))
    typical = np.median(similarity)
    if typical <= 0:
        return np.zeros(len(rows))
    return np.clip(similarity, 0, typical) / (5 * typical + 1e-8)


def signguard_distance(rows: Array, last: Array | None) -> Array:
    """SignGuard-Dist's feature."""
    if last is None or not np.any(last):
        distances = [sorted(length_of(a - b) for b in rows) for a in rows]
        distance = np.array([sum(row[: len(rows) // 2]) for row in distances])
    else:
        distance = np.array([length_of(row - last) for row in rows])
    return np.where(distance >= 1.1 * np.median(distance), 0.2, 0.0)


# --- Romoa -----------------------------------------------------------------------------------------


def cosine(a: Array, b: Array) -> float:
    lengths = length_of(a) * length_of(b)
    return float(np.sum(unit_vector(a) * unit_vector(b))) if lengths else 0.0


def _large(rows: Array, number: int) -> list[int]:
    found = set()
    for row in rows:
        found |= set(sorted(range(len(row)), key=lambda j: (-abs(row[j]), j))[: max(number, 1)])
    return sorted(found)


def _pearson(a: Array, b: Array) -> float:
    deviations = [x - np.mean(x) for x in (a, b)]
    for x, deviation in zip((a, b), deviations, strict=True):
        if np.max(np.abs(deviation)) <= 1e-5 * np.max(np.abs(x)):
            return -1.0
    return cosine(*deviations)


def _romoa_scores(features: Array) -> Array:
    centre = np.mean(features[larger_of_two(features)], axis=0)
    return 1 - np.abs((features - centre) / (centre + 1e-5))


def _romoa_shares(scores: Array) -> Array:
    """Softmax of sign(s) exp(|s|), which leave the range of floats."""
    powers = [int(np.sign(s)) * Decimal(abs(float(s))).exp() for s in scores]
    parts = [math.exp(max(power - max(powers), Decimal(-800))) for power in powers]
    return np.array(parts) / sum(parts)


def romoa(
    updates: Array,
    factors: Array,
    last: Array,
    leaves: list[list[int]],
    *,
    beta: float = 0.5,
    sharpness: float | None = None,
    weights: Array | None = None,
) -> tuple[Array, Array]:
    """The aggregate (d,), and the factors of all rows, (n, d), those of absent ones unchanged.

    Args:
      updates: (n, d).
      factors: (n, d), the rows' clients' factors so far.
      last: the last aggregate (d,).
      leaves: the coordinates of each.
      beta: the memory's share.
      sharpness: None = the number of rows present.
      weights: (n,).
    """
    rows, _, index = present(updates, weights)
    n, d = rows.shape
    factors = as_float64(factors).copy()
    if not n:
        return np.zeros(d), factors
    middle = median(rows)
    large = _large(rows, d // n)
    by_coordinate = [
        [
            -cosine(np.array([last[e], middle[e]]), np.array([last[e], row[e]]))
            if e in large
            else 0
            for e in range(d)
        ]
        for row in rows
    ]
    counted = [[leaf[j] for j in _large(rows[:, leaf], len(leaf) // n)] for leaf in leaves]
    cosines = [[-cosine(middle[c], row[c]) for c in counted] for row in rows]
    correlations = [[_pearson(middle[c], row[c]) for c in counted] for row in rows]
    scores = np.zeros((3, n, d))
    scores[0][:, large] = _romoa_scores(np.array(by_coordinate))[:, large]
    for k, features in ((1, cosines), (2, correlations)):
        of_leaf = _romoa_scores(np.array(features))
        for leaf, where in enumerate(leaves):
            scores[k][:, where] = of_leaf[:, [leaf]]
    sharp = n if sharpness is None else sharpness
    least = np.min(scores, axis=0)
    new = np.apply_along_axis(lambda column: _romoa_shares(sharp * column), 0, least)
    old = factors[index]
    factors[index] = (1 - beta) * new + beta * old / np.sum(old, axis=0)
    low, high = np.median(np.min(rows, axis=0)), np.median(np.max(rows, axis=0))
    return np.sum(factors[index] * np.clip(rows, low, high), axis=0), factors
