"""Attacks on updates by formula: linear combination (Blanchard et al. 2017), sign flip, IPM (Xie et al.
2019), ALIE (Baruch et al. 2019), Min-Max, Min-Sum and the AGR-tailored attacks (Shejwalkar, Houmansadr
2021), the two published line searches, anti-CGE and ByzMean (SignGuard).

``honest`` (h, d) are the rows from which the attacker estimates. Min-Max and Min-Sum are found by
bisection on their definition, not by a closed form.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

from reference.rows import Array, as_float64, length_of

Direction = Callable[[Array], Array]


def linear_combination(honest: Array, target: Array, c: int, weights: Array | None = None) -> Array:
    """The malicious row with which the weighted mean of all rows is the target; the weights (h + c,),
    malicious ones last."""
    honest = as_float64(honest)
    weights = np.ones(len(honest) + c) if weights is None else as_float64(weights)
    total = np.sum(weights) * as_float64(target)
    for row, weight in zip(honest, weights, strict=False):
        total = total - weight * row
    return total / np.sum(weights[len(honest) :])


def standard_deviations(honest: Array, ddof: int = 0) -> Array:
    honest = as_float64(honest)
    centre = np.sum(honest, axis=0) / len(honest)
    divisor = max(len(honest) - ddof, 1)
    return np.sqrt(np.sum((honest - centre) ** 2, axis=0) / divisor)


def alie_z(n: int, c: int) -> float:
    s = math.floor(n / 2 + 1) - c
    share, low, high = (n - c - s) / (n - c), -40.0, 40.0
    for _ in range(200):  # the normal distribution's quantile, from the integral
        middle = (low + high) / 2
        below = 0.5 * (1 + math.erf(middle / math.sqrt(2))) < share
        low, high = (middle, high) if below else (low, middle)
    return middle


def alie(honest: Array, z: float, sign: float = 1.0, ddof: int = 0) -> Array:
    return np.mean(as_float64(honest), axis=0) + sign * z * standard_deviations(honest, ddof)


def towards_unit(honest: Array) -> Array:
    centre = np.mean(as_float64(honest), axis=0)
    return -centre / length_of(centre)


def towards_signs(honest: Array) -> Array:
    return -np.sign(np.mean(as_float64(honest), axis=0))


def towards_deviations(honest: Array) -> Array:
    return -standard_deviations(honest)


def largest_distance(row: Array, honest: Array) -> float:
    return max(length_of(row - h) for h in as_float64(honest))


def sum_of_squares(row: Array, honest: Array) -> float:
    return sum(length_of(row - h) ** 2 for h in as_float64(honest))


def min_max_gamma(honest: Array, p: Array) -> float:
    """The largest gamma with max_i |mean + gamma p - h_i| <= max_ij |h_i - h_j|."""
    honest = as_float64(honest)
    bound = max(largest_distance(h, honest) for h in honest)
    return _last(lambda row: largest_distance(row, honest) <= bound, honest, p)


def min_sum_gamma(honest: Array, p: Array, smallest: bool = False) -> float:
    """The largest gamma with sum_i |mean + gamma p - h_i|^2 <= the largest (smallest) sum of an h_k."""
    honest = as_float64(honest)
    bound = (min if smallest else max)(sum_of_squares(h, honest) for h in honest)
    return _last(lambda row: sum_of_squares(row, honest) <= bound, honest, p)


def _last(holds: Callable[[Array], bool], honest: Array, p: Array) -> float:
    """Both sets of gamma are intervals that hold 0, or nothing but rounding around it."""
    centre, p = np.mean(honest, axis=0), as_float64(p)
    good, bad = 0.0, 1.0
    while holds(centre + bad * p):
        good, bad = bad, 2 * bad
    for _ in range(200):
        middle = (good + bad) / 2
        good, bad = (middle, bad) if holds(centre + middle * p) else (good, middle)
    return good


def halving_search(holds: Callable[[float], bool], start: float, tolerance: float = 1e-5) -> float:
    """Shejwalkar and Houmansadr's search, from their notebooks."""
    x, step, found = start, start / 2, 0.0
    while abs(found - x) > tolerance:
        if holds(x):
            found, x = x, x + step
        else:
            x = x - step
        step /= 2
    return found


def last_on_grid(
    holds: Callable[[float], bool],
    scale: float,
    low: float = 0.01,
    high: float = 1000.0,
    points: int = 32,
    steps: int = 10,
) -> float:
    """Our own: the last good point of a geometric grid, and bisections up to the next one."""
    grid = [scale * low * (high / low) ** (k / (points - 1)) for k in range(points)]
    good_ones = [k for k in range(points) if holds(grid[k])]
    last = max(good_ones, default=-1)
    if last == points - 1:
        return grid[-1]
    good, bad = (grid[last] if last >= 0 else 0.0), grid[last + 1]
    for _ in range(steps):
        middle = math.sqrt(good * bad) if good > 0 else bad / 2
        good, bad = (middle, bad) if holds(middle) else (good, middle)
    return good


def farthest_from_mean(honest: Array) -> float:
    """The largest distance of an honest row from their mean."""
    return largest_distance(np.mean(as_float64(honest), axis=0), honest)


def received_rows(
    updates: Array, present: Array, malicious: Array, row: Array, partial: bool = False
) -> tuple[Array, Array]:
    """The matrix that an attacker evaluates a rule on, and which of its rows are malicious.

    With partial knowledge its own before-attack rows play those of all others, in turn."""
    updates = as_float64(updates)
    rows, bad, turn = [], [], 0
    own = updates[malicious]
    for i in range(len(updates)):
        if malicious[i]:
            rows.append(as_float64(row))
            bad.append(True)
        elif partial:
            rows.append(own[turn % len(own)])
            bad.append(False)
            turn += 1
        elif present[i]:
            rows.append(updates[i])
            bad.append(False)
    return np.array(rows), np.array(bad)


def malicious_selected(selected: list[int], bad: Array) -> bool:
    """All malicious rows, or nothing but malicious rows, are selected."""
    number = sum(bool(bad[i]) for i in selected)
    return number >= min(int(np.sum(bad)), len(selected)) > 0


def byzfl_search(
    value: Callable[[float], float],
    evals: int = 20,
    start: float = 0.0,
    delta: float = 10.0,
    ratio: float = 0.8,
) -> float:
    best, best_value, left = start, value(start), evals - 1
    expanding = True
    while left > 0:
        left -= 1
        new = value(best + delta)
        better = new > best_value
        if better:
            best, best_value = best + delta, new
        expanding = expanding and better
        delta *= 2 if expanding else ratio
    return best


def byzantine_momentum_search(
    value: Callable[[float], float],
    evals: int = 16,
    start: float = 0.0,
    delta: float = 1.0,
    ratio: float = 0.8,
) -> float:
    best, best_value, left = start, value(start), evals - 1
    last, expanding = start, True
    while left > 0:
        left -= 1
        if expanding or last < best:
            x = (best if expanding else last) + delta
        else:
            x = last - delta
            while x < 0:
                x = (x + last) / 2
        new = value(x)
        better = new > best_value
        if better:
            best, best_value = x, new
        expanding = expanding and better
        delta *= 2 if expanding else ratio
        last = x
    return best


def anti_cge(honest: Array, f: int) -> Array:
    """Against the sum of the h - f shortest rows, as long as the next one."""
    rows = sorted(as_float64(honest), key=length_of)
    kept = max(len(rows) - f, 0)
    total = np.sum(rows[:kept], axis=0) if kept else np.zeros(np.shape(honest)[1])
    longest = length_of(rows[min(kept, len(rows) - 1)])
    return -longest * total / length_of(total) if length_of(total) > 0 else total


def byz_mean(honest: Array, r: Array, c: int) -> Array:
    """(c, d): floor(c / 2) rows r, and others that make r the mean of all rows."""
    honest, r = as_float64(honest), as_float64(r)
    first = c // 2
    n = len(honest) + c
    rest = (n * r - first * r - np.sum(honest, axis=0)) / (c - first)
    return np.array([r] * first + [rest] * (c - first))
