"""Centred clipping: the last aggregate, moved by the mean of the clipped differences to it.

Karimireddy, He, Jaggi, "Learning from History for Byzantine Robust Optimization", ICML 2021
(https://arxiv.org/abs/2012.10333), Algorithm 2 and section 4: clients send their momentum,
``local_sgd(momentum=0.9, keep_momentum=True)``.

Sequential: Ozfatura, Ozfatura, Kupcu, Gunduz, "Byzantines Can Also Learn From History: Fall of Centered
Clipping", IEEE TIFS 2024 (https://arxiv.org/abs/2208.09894), as in the authors' code.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from fedjax_robust import checks
from fedjax_robust.aggregators.base import cleaned
from fedjax_robust.aggregators.bucketing import shuffled
from fedjax_robust.aggregators.clipping import clip_rows
from fedjax_robust.kernels.norms import direction_and_length, weighted_mean
from fedjax_robust.memo import same_for_equal_arguments
from fedjax_robust.types import Aggregator, Array, Info, Key, Received, State


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


@same_for_equal_arguments
def sequential_clipping(
    bound: float | Array,
    size: int,
    *,
    means: bool = False,
    order: Callable[[Key, Array], Array] = shuffled,
) -> Aggregator:
    """Centred clipping, bucket by bucket: each moves v, from which the next one's differences are taken.

    The present rows are sorted by their cosine to v and cut into s strata of equal size, the first ones
    larger by one row if need be. A bucket has one row of each, at random, so that attackers who agree on
    a direction are spread over all buckets. In the first round, where v is zero, buckets are random.

    Its state is v (d,), as that of ``centered_clipping``; weights only say who is present; if nobody is,
    the aggregate is zero and the memory stays. Strata and buckets have no gradient.

    Args:
      bound: tau > 0, finite, in units of the rows; it may be traced. One round can move v by tau for
        each of the ceil(n / s) buckets.
      size: s >= 1, the rows in a bucket; the authors' code takes 3.
      means: v <- v + clip(mean of the bucket - v) instead of v + mean of clip(u_i - v).
      order: the round's key, ids (n,) -> numbers (n,) that order the rows of a stratum, and those of
        equal cosine; default random ones by client.

    Raises:
      ValueError: if tau is not positive and finite, or s < 1.
      TypeError: if one is no number, means not True or False, or order no function.

    >>> rows = jnp.array([[3.0, 4.0], [0.0, 1.0], [-30.0, 40.0]])
    >>> sequential_clipping(5.0, 3)(rows).round(4).tolist()
    [0.0, 3.0]
    """
    what = "sequential_clipping"
    checks.positive(what, bound=bound)
    checks.static_count(what, 1, size=size)
    checks.boolean(what, means=means)
    checks.function(what, order=order)
    size = int(size)

    def aggregate(received: Received, state: State) -> tuple[Array, State, Info]:
        received = cleaned(received)
        updates, present = received.updates, received.weights > 0
        start = state.astype(updates.dtype)
        numbers = order(received.key, received.ids)
        checks.returned("order", numbers, present.shape, floating=False)
        places = stratified(*jax.lax.stop_gradient((start, updates)), present, numbers, size)
        rows = updates.at[places].get(mode="fill", fill_value=0)
        there = present.at[places].get(mode="fill", fill_value=False)
        result = through_buckets(start, rows, there, bound, means)
        anybody = jnp.any(present)
        memory = jnp.where(anybody, result, start).astype(state.dtype)
        return jnp.where(anybody, result, 0), memory, {}

    return Aggregator(lambda num_clients, params: jnp.zeros_like(params), aggregate)


def stratified(v: Array, rows: Array, present: Array, numbers: Array, size: int) -> Array:
    """Buckets with one row of each stratum by cosine to v: rows' places (ceil(n / s), s), n for none."""
    n = rows.shape[0]
    cosines = jnp.dot(
        direction_and_length(rows)[0], direction_and_length(v)[0], precision="highest"
    )
    rank = jnp.argsort(jnp.lexsort((numbers, cosines, ~present)))  # absent rows last
    each, longer = jnp.divmod(jnp.sum(present), size)
    first = longer * (each + 1)  # rows in the strata that have one more
    in_long = rank < first
    stratum = jnp.where(
        in_long, rank // (each + 1), longer + (rank - first) // jnp.maximum(each, 1)
    )
    stratum = jnp.where(present, stratum, size)
    begin = jnp.where(stratum <= longer, stratum * (each + 1), first + (stratum - longer) * each)
    bucket = jnp.argsort(jnp.lexsort((numbers, stratum))) - begin
    places = jnp.full((-(-n // size), size), n)
    return places.at[bucket, stratum].set(jnp.arange(n), mode="drop")


def through_buckets(v: Array, rows: Array, there: Array, bound: Any, means: bool) -> Array:
    """v (d,) moved by one bucket after the other: rows (b, s, d), who is there (b, s) -> (d,)."""

    def step(v: Array, bucket: tuple[Array, Array]) -> tuple[Array, None]:
        rows, there = bucket
        if means:
            rows, there = weighted_mean(rows, there)[None], jnp.any(there)[None]
        return towards(v, rows, there, bound)[0], None

    return jax.lax.scan(step, v, (rows, there))[0]


def towards(v: Array, rows: Array, present: Array, bound: Any) -> tuple[Array, Array]:
    """v plus the mean of the present rows' differences to it, clipped: (d,), (n, d) -> (d,); and which
    were longer than the bound, (n,) bool."""
    # A quarter of everything, so that no difference leaves the range of floats.
    clipped, longer = clip_rows(0.25 * rows - 0.25 * v, 0.25 * bound)
    return v + 4 * weighted_mean(clipped, present), longer
