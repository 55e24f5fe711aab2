"""Clipped clustering: rows clipped at the median of all lengths so far, the larger of two clusters.

Li, Ngai, Voigt, "An Experimental Study of Byzantine-Robust Aggregation Schemes in Federated Learning",
IEEE Transactions on Big Data 2023 (https://arxiv.org/abs/2302.07173), as in the code of Blades.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from fedjax_robust import checks
from fedjax_robust.aggregators.base import MEAN, cleaned
from fedjax_robust.aggregators.clipping import clip_rows
from fedjax_robust.kernels.distances import pairwise_squared_distances
from fedjax_robust.kernels.linkage import larger_by_average_linkage
from fedjax_robust.kernels.norms import accumulator, direction_and_length
from fedjax_robust.memo import same_for_equal_arguments
from fedjax_robust.types import Aggregator, Array, Info, Received, State


@same_for_equal_arguments
def clipped_clustering(memory: int, *, base: Aggregator = MEAN) -> Aggregator:
    """Rows are clipped at the median of the lengths received so far, this round's included; then the
    larger of two clusters by average linkage of cosine distances goes to another rule.

    A row of zeros has cosine 0 with all others. Of clusters of equal size the one with the first row
    stays (our choice). Which rows stay has no gradient; the median has. Its state is that of base, and
    the last ``memory`` lengths. Joining takes n passes over the (n, n) distances.

    Reports ``selected`` and ``clipped`` (n,) bool, besides what the rule reports.

    Args:
      memory: the lengths that are kept, >= n; the paper keeps all, rounds times n.
      base: the rule for the clipped rows that stay; the paper takes the mean.

    Raises:
      ValueError: if memory < 1, or memory < n when called.
      TypeError: if it is no whole number, or base no rule.

    >>> rows = jnp.array([[2.0, 0.0], [4.0, 0.0], [-3.0, 0.0]])
    >>> clipped_clustering(100)(rows).tolist()
    [2.5, 0.0]
    """
    checks.static_count("clipped_clustering", 1, memory=memory)
    checks.part("clipped_clustering", Aggregator, base=base)
    memory = int(memory)

    def init(num_clients: int, params: Array) -> State:
        lengths = jnp.zeros(memory, accumulator(params.dtype))
        return base.init(num_clients, params), (lengths, jnp.int32(0), jnp.int32(0))

    def aggregate(received: Received, state: State) -> tuple[Array, State, Info]:
        inner, (lengths, place, number) = state
        received = cleaned(received)
        updates, present = received.updates, received.weights > 0
        if updates.shape[0] > memory:
            raise ValueError(
                f"clipped_clustering needs memory >= n, got memory={memory}, n={updates.shape[0]}"
            )
        units, own = direction_and_length(updates.astype(accumulator(updates.dtype)))
        own = jnp.minimum(own, jnp.finfo(own.dtype).max)
        # The oldest ones are overwritten.
        rank = jnp.cumsum(present) - 1
        places = jnp.where(present, (place + rank) % memory, memory)
        kept = lengths.astype(own.dtype).at[places].set(own, mode="drop")
        arrived = jnp.sum(present, dtype=jnp.int32)
        place, number = (place + arrived) % memory, jnp.minimum(number + arrived, memory)
        clipped, longer = clip_rows(updates, _median_of_first(kept, number))
        selected = _larger_cluster(jax.lax.stop_gradient(units), present)
        rest = received._replace(updates=clipped, weights=jnp.where(selected, received.weights, 0))
        result, inner, info = base.aggregate(rest, inner)
        report = {"selected": selected, "clipped": longer & present}
        kept = kept.astype(lengths.dtype)
        return result, (inner, (kept, place, number)), report | info

    return Aggregator(init, aggregate)


def _median_of_first(values: Array, number: Array) -> Array:
    """The median of the first so many values, at least one."""
    known = jnp.arange(values.shape[0]) < number
    ascending = jnp.sort(jnp.where(known, values, jnp.inf))
    last = jnp.maximum(number, 1) - 1
    low, high = ascending[last // 2], ascending[(last + 1) // 2]
    return jnp.where(number > 0, 0.5 * low + 0.5 * high, 0)


def _larger_cluster(units: Array, present: Array) -> Array:
    # 1 - cos = |u - v|^2 / 2 of unit vectors, which keeps the digits of small angles.
    distances = 0.5 * pairwise_squared_distances(units, present)
    zero = jnp.all(units == 0, axis=1)
    distances = jnp.where(zero[:, None] | zero[None, :], 1, distances)
    return larger_by_average_linkage(distances, present)
