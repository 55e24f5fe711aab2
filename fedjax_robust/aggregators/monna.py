"""MoNNA's rule at a server: the rows nearest to a trusted client's.

Farhadkhani, Guerraoui, Gupta, Hoang, Pinot, Stephan, "Robust Collaborative Learning with Linear Gradient
Overhead", ICML 2023 (https://arxiv.org/abs/2209.10931). There every node averages the rows nearest to its
own; a server needs a client that it trusts. Worker momentum is the client's: ``local_sgd(momentum=,
keep_momentum=True)``.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from fedjax_robust import checks
from fedjax_robust.aggregators.aksel import nearest
from fedjax_robust.aggregators.base import MEAN, selecting
from fedjax_robust.aggregators.krum import plain_integer
from fedjax_robust.kernels.norms import safe_norm
from fedjax_robust.memo import same_for_equal_arguments
from fedjax_robust.types import Aggregator, Array, Info, Received


@same_for_equal_arguments
def monna(f: int | Array, trusted: int | Array, *, base: Aggregator = MEAN) -> Aggregator:
    """The n - f rows nearest to the trusted client's, itself among them, are averaged.

    In a round without that client nobody is selected, and the model stays (our reading). n is the number
    of present rows; of equally near rows the first one comes first.

    Reports ``selected`` (n,) bool.

    Args:
      f: number of malicious rows assumed, 0 <= f < n / 2. It may be traced, and is not checked then.
      trusted: the client's id, >= 0. It may be traced.
      base: the rule for the rows that stay.

    Raises:
      ValueError: if f or trusted < 0, or n <= 2f when called.
      TypeError: if they are no whole numbers, or base no rule.

    >>> monna(f=1, trusted=0)(jnp.array([[1.0], [2.0], [100.0]])).tolist()
    [1.5]
    """
    checks.count("monna", f=f, trusted=trusted)
    checks.part("monna", Aggregator, base=base)
    f = plain_integer(f)

    def select(received: Received) -> tuple[Array, Info]:
        updates, present = jax.lax.stop_gradient(received.updates), received.weights > 0
        n = updates.shape[0]
        if checks.is_known(f) and n <= 2 * f:
            raise ValueError(f"monna needs n > 2f, got n={n}, f={f}")
        own = present & (received.ids == trusted)
        pivot = jnp.sum(jnp.where(own[:, None], updates, 0), axis=0)
        distance = jnp.where(own, -1, safe_norm(updates - pivot))  # itself first, whoever is equal
        return nearest(distance, present, jnp.sum(present) - f) & jnp.any(own), {}

    return selecting(select, base)
