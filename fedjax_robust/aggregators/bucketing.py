"""Bucketing: any rule on the means of small random groups, new ones in every round.

Karimireddy, He, Jaggi, "Byzantine-Robust Learning on Heterogeneous Datasets via Bucketing", ICLR 2022
(https://arxiv.org/abs/2006.09365), Algorithm 1.
"""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp

from fedjax_robust import checks
from fedjax_robust.aggregators.base import MEAN, cleaned
from fedjax_robust.kernels.norms import weighted_mean
from fedjax_robust.memo import same_for_equal_arguments
from fedjax_robust.types import Aggregator, Array, Info, Key, Received, State


def shuffled(key: Key, ids: Array) -> Array:
    """A random number for each client, (n,) ids -> (n,) uint32, that depends on no other client."""
    return jax.vmap(lambda i: jax.random.bits(jax.random.fold_in(key, i)))(ids)


def without_rows(info: Info, n: int) -> Info:
    """What a rule behind a mixture of the rows reports, less what it reports of each of n mixed rows:
    a mixed row is no client."""
    return {name: value for name, value in info.items() if jnp.shape(value)[:1] != (n,)}


@same_for_equal_arguments
def bucketing(
    size: int,
    *,
    order: Callable[[Key, Array], Array] = shuffled,
    base: Aggregator = MEAN,
) -> Aggregator:
    """The present rows in random order, in buckets of s; another rule on the buckets' means.

    A malicious row spoils its bucket, so the rule inside needs its condition with the same f and
    ceil(n / s) rows: Krum n = 25, s = 2, f = 5 has 13 > 2f + 2. The last bucket may be smaller, and is
    averaged by its own size. Means are weighted by ``weights``; a bucket weighs what its members weigh
    together, and is absent if it has none.

    To the rule inside, buckets are clients 0, 1, ...: a rule that remembers clients makes no sense
    behind bucketing. What it reports of each bucket, such as ``selected``, is not passed on.

    Args:
      size: s >= 1, the rows in a bucket. The paper takes 2.
      order: the round's key, ids (n,) -> numbers (n,), by which the present rows are sorted; default
        random ones by client. ``lambda key, ids: ids`` keeps the same order in all rounds.
      base: the rule for the buckets' means.

    Raises:
      ValueError: if s < 1, or the rule inside refuses ceil(n / s) rows, when called.
      TypeError: if s is no whole number, order no function, or base no rule.

    >>> rows = jnp.array([[1.0], [3.0], [4.0], [8.0], [90.0]])
    >>> from fedjax_robust.aggregators import median
    >>> bucketing(2, order=lambda key, ids: ids, base=median())(rows).tolist()
    [6.0]
    """
    checks.static_count("bucketing", 1, size=size)
    checks.function("bucketing", order=order)
    checks.part("bucketing", Aggregator, base=base)
    size = int(size)

    def init(num_clients: int, params: Array) -> State:
        return base.init(-(-num_clients // size), params)

    def aggregate(received: Received, state: State) -> tuple[Array, State, Info]:
        received = cleaned(received)
        updates, weights = received.updates, received.weights
        n = updates.shape[0]
        number = -(-n // size)
        draw, rest = jax.random.split(received.key)
        numbers = order(draw, received.ids)
        checks.returned("order", numbers, (n,), floating=False)
        places = jnp.lexsort((numbers, weights <= 0))  # absent rows last
        # Places beyond n are absent, too.
        places = jnp.pad(places, (0, number * size - n), constant_values=n).reshape(number, size)
        rows = updates.at[places].get(mode="fill", fill_value=0)
        masses = weights.at[places].get(mode="fill", fill_value=0)
        inner = received._replace(
            updates=jax.vmap(weighted_mean)(rows, masses),
            weights=jnp.minimum(jnp.sum(masses, axis=1), jnp.finfo(masses.dtype).max),
            ids=jnp.arange(number, dtype=jnp.int32),
            key=rest,
        )
        try:
            result, state, info = base.aggregate(inner, state)
        except ValueError as error:
            raise ValueError(
                f"bucketing(size={size}) gives its base ceil(n / size) = {number} of n={n} rows, "
                f"which it refuses: {error}"
            ) from error
        return result, state, without_rows(info, number)

    return Aggregator(init, aggregate)
