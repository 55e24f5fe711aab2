"""Nearest neighbour mixing: every row becomes the mean of its nearest rows, then another rule.

Allouah, Farhadkhani, Guerraoui, Gupta, Pinot, Stephan, "Fixing by Mixing: A Recipe for Optimal Byzantine
ML under Heterogeneity", AISTATS 2023 (https://arxiv.org/abs/2302.01772), Algorithm 2.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from fedjax_robust import checks
from fedjax_robust.aggregators.base import MEAN, cleaned
from fedjax_robust.aggregators.bucketing import without_rows
from fedjax_robust.aggregators.krum import plain_integer
from fedjax_robust.kernels.distances import pairwise_distances
from fedjax_robust.kernels.norms import weighted_mean
from fedjax_robust.memo import same_for_equal_arguments
from fedjax_robust.types import Aggregator, Array, Info, Received, State


@same_for_equal_arguments
def nnm(f: int | Array, *, base: Aggregator = MEAN) -> Aggregator:
    """Each row becomes the mean of the n - f rows nearest to it, itself included; then another rule.

    Neighbours count alike; a mixed row keeps its client's weight and id. Mixed rows are no clients:
    what the rule inside reports of each of them, such as ``selected``, is not passed on, and a rule
    that remembers clients remembers mixtures. Which rows are mixed has no gradient. It takes a second
    matrix of the rows' size.

    Args:
      f: number of malicious rows assumed, 0 <= f < n / 2. It may be traced; a traced f is not checked.
      base: the rule for the mixed rows. The paper takes Krum, median, trimmed mean, geometric median.

    Raises:
      ValueError: if f < 0, or n <= 2f when called.
      TypeError: if f is no number, or base no rule.

    >>> from fedjax_robust.aggregators import median
    >>> nnm(f=1, base=median())(jnp.array([[0.0], [1.0], [2.0], [90.0]])).tolist()
    [1.0]
    """
    checks.count("nnm", f=f)
    checks.part("nnm", Aggregator, base=base)
    f = plain_integer(f)

    def aggregate(received: Received, state: State) -> tuple[Array, State, Info]:
        n = received.updates.shape[0]
        if checks.is_known(f) and n <= 2 * f:
            raise ValueError(f"nnm needs n > 2f, got n={n}, f={f}")
        received = cleaned(received)
        updates, present = received.updates, received.weights > 0
        near = neighbours(jax.lax.stop_gradient(updates), present, jnp.sum(present) - f)
        mixed = jax.vmap(weighted_mean, (None, 0))(updates, near)
        result, state, info = base.aggregate(received._replace(updates=mixed), state)
        return result, state, without_rows(info, n)

    return Aggregator(base.init, aggregate)


def neighbours(updates: Array, present: Array, number: Array) -> Array:
    """The rows nearest to each present row, at least itself: (n, d), (n,), () -> (n, n) bool.

    Of equally near ones the first, but a row itself before all others.
    """
    distances = pairwise_distances(updates, present)
    n = distances.shape[0]
    itself = jnp.eye(n, dtype=bool)
    # Also a row infinitely far away, because it is too long, is nearer than an absent one.
    distances = jnp.minimum(distances, jnp.finfo(distances.dtype).max)
    distances = jnp.where(itself, -1, jnp.where(present[None, :], distances, jnp.inf))
    rank = jnp.argsort(jnp.argsort(distances, axis=1), axis=1)
    return (rank < jnp.maximum(number, 1)) & present[:, None] & present[None, :]
