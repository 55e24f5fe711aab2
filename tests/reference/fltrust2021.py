"""Xiaoyu Cao, Minghong Fang, Jia Liu, Neil Zhenqiang Gong, "FLTrust: Byzantine-robust Federated
Learning via Trust Bootstrapping", NDSS 2021: the rule and its variants, given the server's update g_0,
the adaptive attack and the Scaling attack."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np

from reference.rows import Array, as_float64, length_of, present, unit_vector


def fltrust_cosines(updates: Array, g_0: Array, weights: Array | None = None) -> Array:
    """The cosine of each row's angle with g_0; 0 for absent and for zero rows, or if g_0 is zero.

    Weights only decide which rows are present. Below, scores that sum to 0 give the zero vector.
    """
    rows, _, index = present(updates, weights)
    result = np.zeros(len(updates))
    for i, row in zip(index, rows, strict=True):
        if length_of(row) > 0 and length_of(g_0) > 0:
            inner = sum(float(a) * float(b) for a, b in zip(row, as_float64(g_0), strict=True))
            result[i] = inner / (length_of(row) * length_of(g_0))
    return result


def fltrust_scores(updates: Array, g_0: Array, weights: Array | None = None) -> Array:
    """TS_i = ReLU(c_i)."""
    return np.array([max(c, 0.0) for c in fltrust_cosines(updates, g_0, weights)])


def _rescaled(row: Array, g_0: Array) -> Array:
    """gbar_i = |g_0| / |g_i| * g_i."""
    return length_of(g_0) / length_of(row) * as_float64(row)


def _score_average(scores: Sequence[float], rows: Sequence[Array], d: int) -> Array:
    total = np.zeros(d)
    for score, row in zip(scores, rows, strict=True):
        if score != 0:  # a row without a score may hold anything
            total = total + score * row
    return total / sum(scores) if sum(scores) != 0 else np.zeros(d)


def fltrust(updates: Array, g_0: Array, weights: Array | None = None) -> Array:
    """g = sum of TS_i gbar_i / sum of TS_i."""
    scores = fltrust_scores(updates, g_0, weights)
    rows = [_rescaled(x, g_0) if s != 0 else x for x, s in zip(updates, scores, strict=True)]
    return _score_average(scores, rows, len(g_0))


def fltrust_server(updates: Array, g_0: Array, weights: Array | None = None) -> Array:
    """FLTrust-Server: g_0."""
    return as_float64(g_0)


def fltrust_with_server(updates: Array, g_0: Array, weights: Array | None = None) -> Array:
    """FLTrust-withServer: g_0 is one more update; its cosine with itself is 1."""
    scores = [*fltrust_scores(updates, g_0, weights), 1.0]
    rows = [_rescaled(x, g_0) if s != 0 else x for x, s in zip(updates, scores[:-1], strict=True)]
    return _score_average(scores, [*rows, as_float64(g_0)], len(g_0))


def fltrust_no_relu(updates: Array, g_0: Array, weights: Array | None = None) -> Array:
    """FLTrust-NoReLU: the cosines are the scores; the formula is otherwise as it stands."""
    scores = fltrust_cosines(updates, g_0, weights)
    rows = [_rescaled(x, g_0) if s != 0 else x for x, s in zip(updates, scores, strict=True)]
    return _score_average(scores, rows, len(g_0))


def fltrust_no_norm(updates: Array, g_0: Array, weights: Array | None = None) -> Array:
    """FLTrust-NoNorm: g_i in the place of gbar_i."""
    scores = fltrust_scores(updates, g_0, weights)
    return _score_average(scores, list(as_float64(updates)), len(g_0))


def fltrust_par_norm(updates: Array, g_0: Array, weights: Array | None = None) -> Array:
    """FLTrust-ParNorm: gbar_i only for the rows that are longer than g_0."""
    scores = fltrust_scores(updates, g_0, weights)
    rows = []
    for row, score in zip(as_float64(updates), scores, strict=True):
        longer = score != 0 and length_of(row) > length_of(g_0)
        rows.append(_rescaled(row, g_0) if longer else row)
    return _score_average(scores, rows, len(g_0))


def fltrust_adaptive(
    units: Array,
    e_0: Array,
    length: float,
    malicious: Array,
    start: Array,
    directions: Array,
    gamma: float,
    eta: float,
) -> tuple[Array, list[Array]]:
    """FLTrust's Algorithm 3, step by step.

    ``units`` (n, d) are the before-attack updates and ``e_0`` (d,) the server's, all of length 1;
    ``length`` is |g_0|; ``start`` (c, d) the unit vectors e'_i to start from; ``directions``
    (V, c, Q, d) the u. Returns the final e'_i (c, d), and each row's value before each of its steps,
    in order.
    """
    c = len(start)
    crafted = as_float64(start).copy()

    def aggregate(rows: Array) -> Array:
        scores = [max(float(np.dot(row, e_0)), 0.0) for row in rows]
        return length * _score_average(scores, list(rows), len(e_0))

    g = aggregate(units)
    s = np.array([1.0 if value > 0 else -1.0 for value in g])

    def h(rows: Array) -> float:
        return float(np.dot(s, g - aggregate(np.concatenate([rows, units[~malicious]]))))

    seen = []
    for sweep in directions:
        for i in range(c):
            for u in sweep[i]:
                seen.append(crafted[i].copy())
                moved = crafted.copy()
                moved[i] = crafted[i] + gamma * u
                slope = (h(moved) - h(crafted)) / gamma
                crafted[i] = unit_vector(crafted[i] + eta * slope * u)
    return crafted, seen


def fltrust_best_response(
    units: Array, e_0: Array, length: float, malicious: Array
) -> tuple[float, float]:
    """The largest h of Algorithm 3 that equal malicious rows reach, and their trust there.

    Of all unit rows with trust t the one with the lowest s . e' serves best: t e_0 - sqrt(1 - t^2) r,
    r the direction of s's part across e_0. What is left is a search over t in (0, 1].
    """
    c = int(np.sum(malicious))
    scores = [max(float(np.dot(row, e_0)), 0.0) for row in units]
    g = length * _score_average(scores, list(units), len(e_0))
    s = np.array([1.0 if value > 0 else -1.0 for value in g])
    r = unit_vector(s - np.dot(s, e_0) * e_0)
    honest = [
        (score, row) for score, row, bad in zip(scores, units, malicious, strict=True) if not bad
    ]
    best = (-np.inf, 0.0)
    for t in np.linspace(1e-4, 1, 10_001):
        row = t * e_0 - math.sqrt(1 - t * t) * r
        total = sum(score * np.dot(s, x) for score, x in honest) + c * t * np.dot(s, row)
        after = length * total / (sum(score for score, _ in honest) + c * t)
        best = max(best, (float(np.dot(s, g) - after), float(t)))
    return best


def scaling(updates: Array, malicious: Array, scale: float) -> Array:
    """What the server receives: malicious rows of (n, d) times ``scale`` (there: n)."""
    received = as_float64(updates)
    for i in range(len(received)):
        if malicious[i]:
            received[i] = scale * received[i]
    return received


def pixel_trigger(x: Array, pixels: Sequence[tuple[int, int]], value: float) -> Array:
    """Images (b, H, W, C); every (row, column) is set in all channels."""
    x = np.array(x)
    for image in x:
        for row, column in pixels:
            for channel in range(x.shape[3]):
                image[row, column, channel] = value
    return x


def feature_trigger(x: Array, every: int, value: float) -> Array:
    """Inputs (b, F); the features whose number, counted from 1, is a multiple of ``every``."""
    x = np.array(x)
    for example in x:
        for number in range(1, x.shape[1] + 1):
            if number % every == 0:
                example[number - 1] = value
    return x


def backdoored_copies(
    x: Array, y: Array, trigger: Callable[[Array], Array], target: int
) -> tuple[Array, Array]:
    """A malicious client's data: its examples, then each once more, triggered, labelled ``target``."""
    return np.concatenate([x, trigger(x)]), np.concatenate([y, [target] * len(y)])
