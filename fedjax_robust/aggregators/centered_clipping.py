"""Centred clipping: the last aggregate, moved by the mean of the clipped differences to it.

Karimireddy, He, Jaggi, "Learning from History for Byzantine Robust Optimization", ICML 2021
(https://arxiv.org/abs/2012.10333), Algorithm 2 and section 4: clients send their momentum,
``local_sgd(momentum=0.9, keep_momentum=True)``.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from fedjax_robust import checks
from fedjax_robust.aggregators.base import cleaned
from fedjax_robust.aggregators.clipping import clip_rows
from fedjax_robust.kernels.norms import weighted_mean
from fedjax_robust.memo import same_for_equal_arguments
from fedjax_robust.types import Aggregator, Array, Info, Received, State


@same_for_equal_arguments
def centered_clipping(bound: float | Array, steps: int = 1) -> Aggregator:
    """Centred clipping: v <- v + mean of (u_i - v) min(1, tau / |u_i - v|), L times.

    It starts at the last round's result, zero at first, and its result is the aggregate. Weights only
    say who is present; if nobody is, the aggregate is zero and the memory stays. Its state is v (d,), in
    the units of the rows: a learning rate that changes makes the old v too long or too short.

    Reports ``clipped`` (n,) bool, the rows that the last of the L steps shortened.

    Args:
      bound: tau > 0, finite, in units of the rows; it may be traced. The authors' code takes 10 and 100
        for gradients of learning rate 0.1 and 0.01, which are multiplied by the rate here, and by
        1 / (1 - beta) for the momentum v <- beta v + g, which ``local_sgd`` has.
      steps: L >= 1. The code takes 1 and 3.

    Raises:
      ValueError: if tau is not positive and finite, or L < 1.
      TypeError: if one is no number.

    >>> centered_clipping(5.0)(jnp.array([[3.0, 4.0], [-30.0, 40.0]])).tolist()
    [0.0, 4.0]
    """
    checks.positive("centered_clipping", bound=bound)
    checks.static_count("centered_clipping", 1, steps=steps)

    def aggregate(received: Received, state: State) -> tuple[Array, State, Info]:
        received = cleaned(received)
        present = received.weights > 0

        def step(v: Array, _: None) -> tuple[Array, Array]:
            moved, longer = towards(v, received.updates, present, bound)
            return moved, longer & present

        start = state.astype(received.updates.dtype)
        result, clipped = jax.lax.scan(step, start, None, length=int(steps))
        anybody = jnp.any(present)
        memory = jnp.where(anybody, result, start).astype(state.dtype)
        return jnp.where(anybody, result, 0), memory, {"clipped": clipped[-1]}

    return Aggregator(lambda num_clients, params: jnp.zeros_like(params), aggregate)


def towards(v: Array, rows: Array, present: Array, bound: Any) -> tuple[Array, Array]:
    """v plus the mean of the present rows' differences to it, clipped: (d,), (n, d) -> (d,); and which
    were longer than the bound, (n,) bool."""
    # A quarter of everything, so that no difference leaves the range of floats.
    clipped, longer = clip_rows(0.25 * rows - 0.25 * v, 0.25 * bound)
    return v + 4 * weighted_mean(clipped, present), longer
