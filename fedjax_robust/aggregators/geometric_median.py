"""The geometric median, and RFA: the point with the smallest sum of distances to the rows.

Chen, Su, Xu, "Distributed Statistical Machine Learning in Adversarial Settings: Byzantine Gradient
Descent", POMACS 2017 (https://arxiv.org/abs/1705.05491); Pillutla, Kakade, Harchaoui, "Robust Aggregation
for Federated Learning", IEEE TSP 2022 (https://arxiv.org/abs/1912.13445), whose smoothed Weiszfeld
algorithm is the iteration here, with a_i = w_i / sum w::

    b_i = a_i / max(nu, |u_i - z|),   z <- sum_i b_i u_i / sum_i b_i

Rows weigh by their ``weights``: half of the total mass decides. Peers run a few steps from zero and call
that a geometric median; it is another point, so the steps and the start are named here.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from fedjax_robust import checks
from fedjax_robust.aggregators.base import stateless
from fedjax_robust.kernels.norms import (
    accumulator,
    direction_and_length,
    power_of_two,
    weighted_mean,
)
from fedjax_robust.kernels.ranks import coordinate_median
from fedjax_robust.memo import same_for_equal_arguments
from fedjax_robust.types import Aggregator, Array, Info, Received


@same_for_equal_arguments
def geometric_median(*, steps: int = 100, smoothing: float | Array = 1e-6) -> Aggregator:
    """The geometric median, to convergence: Weiszfeld's steps from the coordinate-wise median.

    Robust as long as malicious rows have less than half of the mass. A step reads the matrix about three
    times; the gradient is that of the steps, computed again on the way back, so that memory does not grow
    with them. Where the median lies on a row, or nearly so, convergence is slow.

    Args:
      steps: >= 1. 100 leave an error of about 1e-6 of the rows' spread where no row is very close.
      smoothing: nu, in units of the median distance of the rows to the start, >= 0.

    Raises:
      ValueError: if steps < 1, or smoothing is negative or not finite.
      TypeError: if they are no numbers.

    >>> geometric_median()(jnp.array([[0.0, 0.0], [0.0, 0.0], [9.0, 9.0]])).round(3).tolist()
    [0.0, 0.0]
    """
    checks.static_count("geometric_median", 1, steps=steps)
    checks.not_negative("geometric_median", smoothing=smoothing)

    def rule(received: Received) -> tuple[Array, Info]:
        updates, weights = received.updates, received.weights
        start = coordinate_median(updates, weights > 0)
        scale = typical_length(updates, weights > 0, start)
        return weiszfeld(updates, weights, start, smoothing * scale, int(steps)), {}

    return stateless(rule)


@same_for_equal_arguments
def rfa(*, steps: int = 4, smoothing: float | Array = 1e-5, from_zero: bool = False) -> Aggregator:
    """RFA as published: a few steps of the smoothed Weiszfeld algorithm from the weighted mean.

    The authors' code makes at most 4 steps with nu = 1e-5 from the mean; others make 3 (or 8) from zero
    with nu = .1. One huge row moves the mean, and then few steps do not come back: see
    ``geometric_median``.

    Args:
      steps: >= 1.
      smoothing: nu, in the units of the rows, > 0. A nu for gradients times the learning rate is one for
        updates.
      from_zero: start at zero instead of the mean.

    Raises:
      ValueError: if steps < 1, or smoothing is not positive and finite.
      TypeError: if they are of another kind.

    >>> rfa(steps=1, smoothing=0.1, from_zero=True)(jnp.array([[1.0, 0.0], [0.0, 3.0]])).tolist()
    [0.75, 0.75]
    """
    checks.static_count("rfa", 1, steps=steps)
    checks.positive("rfa", smoothing=smoothing)
    checks.boolean("rfa", from_zero=from_zero)

    def rule(received: Received) -> tuple[Array, Info]:
        updates, weights = received.updates, received.weights
        start = weighted_mean(updates, weights)
        start = jnp.zeros_like(start) if from_zero else start
        return weiszfeld(updates, weights, start, smoothing, int(steps)), {}

    return stateless(rule)


def weiszfeld(
    updates: Array, weights: Array, start: Array, smoothing: float | Array, steps: int
) -> Array:
    """Steps of the smoothed Weiszfeld algorithm.

    Args:
      updates: (n, d), finite.
      weights: (n,) >= 0, the rows' masses.
      start: (d,).
      smoothing: nu >= 0, (). At 0 a step that hits a row stays there.
      steps: how many.

    Returns:
      (d,); zero if no row has a mass.
    """
    exact = accumulator(updates.dtype)
    rows, masses = updates.astype(exact), weights.astype(exact)
    masses = masses * power_of_two(jnp.max(masses))[1]
    some = jnp.any(masses > 0)
    start = jnp.where(some, start.astype(exact), 0)
    # Lengths in a unit of the rows' own, so that no reciprocal, nor its derivative, leaves the range of
    # floats. A far row's pull is its direction: beyond some length it is all the same.
    length = jax.lax.stop_gradient(direction_and_length(rows - start)[1])
    positive = jnp.min(jnp.where((masses > 0) & (length > 0), length, jnp.inf))
    scale = typical_length(rows, masses > 0, start)
    unit, inverse = power_of_two(jnp.where(scale > 0, scale, positive))
    nu = jnp.maximum(jnp.asarray(smoothing, exact) * inverse, _LEAST)

    @jax.checkpoint
    def step(z: Array, rows: Array) -> Array:
        towards, length = direction_and_length(rows - z)
        length = jnp.minimum(length, unit * _MOST) * inverse
        reach = jnp.maximum(nu, length)
        pull = jnp.dot(masses * length / reach, towards, precision="highest")
        total = jnp.sum(masses / reach)
        return z + unit * (pull / jnp.where(total > 0, total, 1))

    z, _ = jax.lax.scan(lambda z, _: (step(z, rows), None), start, None, length=steps)
    return z.astype(updates.dtype)


_LEAST, _MOST = 1e-12, 1e15


def typical_length(updates: Array, present: Array, centre: Array) -> Array:
    """The median distance of the present rows (n, d) to a centre (d,): (), without a gradient."""
    rows = jax.lax.stop_gradient(updates.astype(accumulator(updates.dtype)) - centre)
    return coordinate_median(direction_and_length(rows)[1][:, None], present)[0]
