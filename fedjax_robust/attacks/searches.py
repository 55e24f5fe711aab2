"""Searches for the one number of an attack: of ``line_search``, ``tailored_*``, ``min_max``, ``min_sum``.

Two kinds. A *maximising* search gets an objective, x () -> (), and returns the x >= 0 where it is
largest: ``golden_section``, and as published ``byzfl`` and ``byzantine_momentum``. A *feasible* search
gets a predicate, x () -> () bool, and returns the largest x that it finds to hold, else 0: ``bisection``,
and as published ``halving``. Both also get a scale (), the x at which something is to be expected;
published searches disregard it. All make a fixed number of evaluations.

The published ones are from the code of El Mhamdi, Guerraoui, Rouault, "Distributed Momentum for
Byzantine-resilient Stochastic Gradient Descent", ICLR 2021 (https://openreview.net/forum?id=H8UHdhWG6A3),
of ByzFL (https://github.com/LPD-EPFL/byzfl), and of Shejwalkar, Houmansadr, "Manipulating the Byzantine",
NDSS 2021 (https://doi.org/10.14722/ndss.2021.24498).
"""

from __future__ import annotations

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp

from fedjax_robust import checks
from fedjax_robust.memo import same_for_equal_arguments
from fedjax_robust.types import Array

Search = Callable[[Callable[[Array], Array], Array], Array]
"""objective, scale () -> x ()"""
FeasibleSearch = Callable[[Callable[[Array], Array], Array], Array]
"""predicate, scale () -> x ()"""

_SMALLER_PART = (3 - math.sqrt(5)) / 2  # of an interval in golden section


@same_for_equal_arguments
def golden_section(
    low: float | Array = 0.01,
    high: float | Array = 100.0,
    points: int = 31,
    steps: int = 12,
    at_once: int = 8,
) -> Search:
    """A geometric grid, and golden sections around its best point: ours, the default.

    0 and ``points`` numbers from low to high are tried, then the interval between the neighbours of
    the best is narrowed. The best x seen is returned, the smallest of equally good ones of the grid.

    Args:
      low: the smallest x tried besides 0, > 0, in units of the scale.
      high: the largest, > low.
      points: >= 2.
      steps: golden sections, >= 0; each narrows the interval by .62 to .76.
      at_once: points of the grid evaluated together by ``vmap``, >= 1. As many copies of the rows are in
        memory; it divides points + 1 best.

    Raises:
      ValueError: for numbers out of range.
      TypeError: for numbers of another kind, or counts not known when the program is compiled.
    """
    _check_grid("golden_section", low, high, points, steps, at_once)
    points, steps, at_once = int(points), int(steps), int(at_once)

    def search(objective: Callable[[Array], Array], scale: Array) -> Array:
        value_at = _never_nan(objective)
        grid = _grid(low, high, points, scale)
        grid = jnp.concatenate([jnp.zeros_like(grid[:1]), grid])
        values = jax.lax.map(value_at, grid, batch_size=min(at_once, points + 1))
        best = jnp.argmax(values)
        left, right = grid[jnp.maximum(best - 1, 0)], grid[jnp.minimum(best + 1, points)]

        def section(_: Array, carry: tuple[Array, Array, Array, Array]) -> tuple:
            left, x, right, value = carry
            upwards = right - x > x - left
            tried = x + _SMALLER_PART * jnp.where(upwards, right - x, left - x)
            new = value_at(tried)
            better = new > value
            # What was tried becomes the middle, or an end.
            left, right = (
                jnp.where(upwards, jnp.where(better, x, left), jnp.where(better, left, tried)),
                jnp.where(upwards, jnp.where(better, right, tried), jnp.where(better, x, right)),
            )
            return left, jnp.where(better, tried, x), right, jnp.where(better, new, value)

        start = (left, grid[best], right, values[best])
        return jax.lax.fori_loop(0, steps, section, start)[1]

    return search


@same_for_equal_arguments
def byzfl(
    evals: int = 20,
    start: float | Array = 0.0,
    delta: float | Array = 10.0,
    ratio: float | Array = 0.8,
) -> Search:
    """ByzFL's search (``Optimal_InnerProductManipulation``, ``Optimal_ALittleIsEnough``).

    Expansion: x + delta while that is better, delta doubled. After the first failure delta shrinks by
    the ratio before each further trial of best + delta: it never goes back, so that a maximum it has
    stepped over is lost (5.12 for -(x - 3)^2).

    Args:
      evals: evaluations, >= 1.
      start: the first x, >= 0.
      delta: the first step, > 0.
      ratio: in (1/2, 1).

    Raises:
      ValueError: for numbers out of range.
      TypeError: for numbers of another kind, or evals not known when the program is compiled.
    """
    return _expand_and_contract(
        "byzfl", evals, start, delta, ratio, lambda best, last, step: best + step
    )


@same_for_equal_arguments
def byzantine_momentum(
    evals: int = 16,
    start: float | Array = 0.0,
    delta: float | Array = 1.0,
    ratio: float | Array = 0.8,
) -> Search:
    """The search of El Mhamdi, Guerraoui, Rouault (ICLR 2021), ``line_maximize`` in their code.

    Expansion as in ``byzfl``. Then it goes back and forth: from the last trial by delta to the right if
    that lies left of the best, else to the left (halfway back as often as it would be negative). Its
    rows are mean + x a: with a = -mean, x is 1 + the epsilon of ``ipm``.

    Args:
      evals: evaluations, >= 1.
      start: the first x, >= 0.
      delta: the first step, > 0.
      ratio: in (1/2, 1).

    Raises:
      ValueError: for numbers out of range.
      TypeError: for numbers of another kind, or evals not known when the program is compiled.
    """

    def back_and_forth(best: Array, last: Array, step: Array) -> Array:
        def halfway(_: Array, x: Array) -> Array:
            return jnp.where(x < 0, (x + last) / 2, x)

        # Beyond 64 halvings what is left of the step is nothing.
        left = jnp.maximum(jax.lax.fori_loop(0, 64, halfway, last - step), 0)
        return jnp.where(last < best, last + step, left)

    return _expand_and_contract("byzantine_momentum", evals, start, delta, ratio, back_and_forth)


def _expand_and_contract(
    what: str,
    evals: int,
    start: float | Array,
    delta: float | Array,
    ratio: float | Array,
    propose: Callable[[Array, Array, Array], Array],
) -> Search:
    """``propose``: best x, last x tried, step -> the next x in the second phase."""
    checks.static_count(what, 1, evals=evals)
    checks.not_negative(what, start=start)
    checks.positive(what, delta=delta)
    checks.between(what, 0.5, 1, open_low=True, open_high=True, ratio=ratio)
    evals = int(evals)

    def search(objective: Callable[[Array], Array], scale: Array) -> Array:
        value_at = _never_nan(objective)
        first, step = (jnp.asarray(a, scale.dtype) for a in (start, delta))

        def evaluate(carry: tuple, i: Array) -> tuple[tuple, None]:
            best, value, last, step, expanding = carry
            tried = jnp.where(expanding, best + step, propose(best, last, step))
            tried = jnp.where(i == 0, first, tried)
            new = value_at(tried)
            better = new > value
            kept = jnp.where(i == 0, step, jnp.where(expanding & better, 2 * step, ratio * step))
            value, best = jnp.where(better, new, value), jnp.where(better, tried, best)
            return (
                best,
                value,
                tried,
                kept.astype(step.dtype),
                expanding & (better | (i == 0)),
            ), None

        carry = (first, jnp.full((), -jnp.inf, scale.dtype), first, step, jnp.bool_(True))
        return jax.lax.scan(evaluate, carry, jnp.arange(evals))[0][0]

    return search


@same_for_equal_arguments
def bisection(
    low: float | Array = 0.01,
    high: float | Array = 1000.0,
    points: int = 32,
    steps: int = 10,
    at_once: int = 8,
) -> FeasibleSearch:
    """The last feasible point of a geometric grid, and bisections between it and the next: ours.

    What Krum-like rules accept is not always an interval, so that a grid is safer than bisections
    alone. If no point is feasible, bisections go on below low.

    Args:
      low: the smallest x tried, > 0, in units of the scale.
      high: the largest, > low; it is the answer if it is feasible.
      points: >= 2.
      steps: bisections, >= 0, each by the geometric mean.
      at_once: points of the grid evaluated together by ``vmap``, >= 1. As many copies of the rows are in
        memory; it divides points best.

    Raises:
      ValueError: for numbers out of range.
      TypeError: for numbers of another kind, or counts not known when the program is compiled.
    """
    _check_grid("bisection", low, high, points, steps, at_once)
    points, steps, at_once = int(points), int(steps), int(at_once)

    def search(feasible: Callable[[Array], Array], scale: Array) -> Array:
        grid = _grid(low, high, points, scale)
        holds = jax.lax.map(feasible, grid, batch_size=min(at_once, points))
        last = jnp.max(jnp.where(holds, jnp.arange(points), -1))
        good = jnp.where(last >= 0, grid[jnp.maximum(last, 0)], 0)
        bad = grid[jnp.minimum(last + 1, points - 1)]

        def halve(_: Array, carry: tuple[Array, Array]) -> tuple[Array, Array]:
            good, bad = carry
            middle = jnp.where(good > 0, jnp.sqrt(good) * jnp.sqrt(bad), bad / 2)
            holds = feasible(middle)
            return jnp.where(holds, middle, good), jnp.where(holds, bad, middle)

        good, _ = jax.lax.fori_loop(0, steps, halve, (good, bad))
        return jnp.where(last == points - 1, grid[-1], good)

    return search


@same_for_equal_arguments
def halving(start: float = 10.0, tolerance: float = 1e-5) -> FeasibleSearch:
    """The search of Shejwalkar and Houmansadr (NDSS 2021).

    x = start, and a step of half of it: to the right of a feasible x, else to the left, the step halved
    each time, until it is at most the tolerance. The last feasible x is the answer: below 2 start.

    Args:
      start: > 0; 10 for CIFAR-10, 20 to 50 for FEMNIST, in the updates' unit over that of p.
      tolerance: > 0, < start, absolute.

    Raises:
      ValueError: for numbers out of range.
      TypeError: for numbers of another kind, or not known when the program is compiled.
    """
    checks.positive("halving", start=start, tolerance=tolerance)
    for name, value in (("start", start), ("tolerance", tolerance)):
        if not checks.is_known(value):
            raise TypeError(
                f"halving needs {name} to be known when the program is compiled, because the two set the "
                "number of steps"
            )
    if not tolerance < start:
        raise ValueError(
            f"halving needs tolerance < start, got start={start}, tolerance={tolerance}"
        )
    # After k steps the last feasible x and the next one to try are start / 2^k apart.
    steps = max(math.ceil(math.log2(float(start) / float(tolerance))), 1)

    def search(feasible: Callable[[Array], Array], scale: Array) -> Array:
        def halve(i: Array, carry: tuple[Array, Array]) -> tuple[Array, Array]:
            x, found = carry
            holds = feasible(x)
            step = jnp.asarray(start, x.dtype) * jnp.exp2(-(i + 1).astype(x.dtype))
            return jnp.where(holds, x + step, x - step), jnp.where(holds, x, found)

        first = jnp.asarray(start, scale.dtype)
        return jax.lax.fori_loop(0, steps, halve, (first, jnp.zeros_like(first)))[1]

    return search


def _check_grid(
    what: str, low: float | Array, high: float | Array, points: int, steps: int, at_once: int
) -> None:
    checks.positive(what, low=low, high=high)
    checks.static_count(what, 2, points=points)
    checks.static_count(what, steps=steps)
    checks.static_count(what, 1, at_once=at_once)
    if checks.is_known(low) and checks.is_known(high) and not low < high:
        raise ValueError(f"{what} needs low < high, got low={low}, high={high}")


def _grid(low: float | Array, high: float | Array, points: int, scale: Array) -> Array:
    """(points,), geometric from low to high, times the scale."""
    low, high = (jnp.log(jnp.asarray(a, scale.dtype)) for a in (low, high))
    part = jnp.arange(points, dtype=scale.dtype) / (points - 1)
    return scale * jnp.exp(low + (high - low) * part)


def _never_nan(objective: Callable[[Array], Array]) -> Callable[[Array], Array]:
    def value_at(x: Array) -> Array:
        value = objective(x)
        return jnp.where(jnp.isnan(value), -jnp.inf, value).astype(x.dtype)

    return value_at
