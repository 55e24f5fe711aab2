"""The mean, and how a function of one round becomes a rule: four lifts, which do what every rule must.

Each takes a function of ``Received`` whose absent rows (weight 0, NaN or Inf) are zero and have weight 0,
so that ``received.weights > 0`` says who is present, and which returns a value and what to report::

    def signs() -> Aggregator:
        return stateless(lambda r: (weighted_mean(jnp.sign(r.updates), r.weights), {}))

    def longest_dropped(*, base: Aggregator = mean()) -> Aggregator:
        def select(r: Received) -> tuple[Array, Info]:
            lengths = safe_norm(r.updates)
            return lengths < jnp.max(lengths), {"lengths": lengths}

        return selecting(select, base)

A rule with a memory is an ``Aggregator(init, aggregate)`` of its own that begins with ``cleaned`` and
keeps its memory by ``received.ids``, never by row.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax.numpy as jnp

from fedjax_robust import checks
from fedjax_robust.kernels.norms import power_of_two, weighted_mean
from fedjax_robust.kernels.presence import drop_non_finite
from fedjax_robust.memo import same_for_equal_arguments
from fedjax_robust.types import Aggregator, Array, Info, Received, State


def no_state(num_clients: int, params: Array) -> State:
    """The ``init`` of a rule without a memory: num_clients, params (d,) -> ()."""
    return ()


@same_for_equal_arguments
def mean() -> Aggregator:
    """The mean of the updates, weighted by ``weights`` (FedAvg); zero if no row is present. Not robust.

    McMahan, Moore, Ramage, Hampson, Aguera y Arcas, "Communication-Efficient Learning of Deep Networks
    from Decentralized Data", AISTATS 2017 (https://arxiv.org/abs/1602.05629), Algorithm 1.

    Rows with a NaN or Inf, and weights that are not positive and finite, are left out, as in every rule.

    >>> mean()(jnp.array([[1.0, 2.0], [3.0, 6.0]])).tolist()
    [2.0, 4.0]
    """

    def aggregate(received: Received, state: State) -> tuple[Array, State, Info]:
        updates, weights = drop_non_finite(received.updates, received.weights)
        return weighted_mean(updates, weights), state, {}

    def leave_one_out(received: Received, state: State) -> Array:
        updates, weights = drop_non_finite(received.updates, received.weights)
        # A product instead of total - row: beside a huge row the difference would lose the others.
        weights = weights.astype(jnp.promote_types(weights.dtype, jnp.float32))
        others = weights * (1 - jnp.eye(weights.shape[0], dtype=weights.dtype))
        # In units of each sum's own largest weight, so that no sum over- or underflows.
        others *= power_of_two(jnp.max(others, axis=1, keepdims=True))[1]
        totals = jnp.sum(others, axis=1, keepdims=True)
        shares = others / jnp.where(totals > 0, totals, 1)
        exact = updates.astype(jnp.promote_types(updates.dtype, shares.dtype))
        return jnp.dot(shares, exact, precision="highest").astype(updates.dtype)

    return Aggregator(no_state, aggregate, leave_one_out)


MEAN = mean()
"""The default inner rule of every wrapper."""


def cleaned(received: Received) -> Received:
    """``received`` with absent rows, also those with a NaN or Inf, of zeros and of weight 0."""
    updates, weights = drop_non_finite(received.updates, received.weights)
    return received._replace(updates=updates, weights=weights)


def _value_and_report(what: str, returned: Any) -> tuple[Any, Info]:
    """What a lifted function must return: two things, the second of which is a dict."""
    if not (isinstance(returned, tuple) and len(returned) == 2 and isinstance(returned[1], dict)):
        raise TypeError(
            f"{what} must return a value and a dict of what to report, such as (value, {{}}), got "
            f"{type(returned).__name__}"
        )
    return returned


def stateless(rule: Callable[[Received], tuple[Array, Info]]) -> Aggregator:
    """A rule without a memory.

    Args:
      rule: received -> the aggregate (d,) and what to report.

    Raises:
      TypeError: if rule is no function or, when called, returns something else.
      ValueError: when called, if the aggregate has another shape.

    >>> largest = stateless(lambda received: (jnp.max(received.updates, axis=0), {}))
    >>> largest(jnp.array([[1.0, 5.0], [3.0, 2.0]])).tolist()
    [3.0, 5.0]
    """
    checks.function("stateless", rule=rule)

    def aggregate(received: Received, state: State) -> tuple[Array, State, Info]:
        result, info = _value_and_report("a stateless rule", rule(cleaned(received)))
        checks.returned("a stateless rule", result, received.params.shape)
        return result, state, info

    return Aggregator(no_state, aggregate)


def selecting(
    select: Callable[[Received], tuple[Array, Info]], base: Aggregator = MEAN
) -> Aggregator:
    """A rule on the rows that a function keeps; it reports ``selected`` (n,) bool.

    Args:
      select: received -> rows to keep (n,) bool, and what to report.
      base: the rule for the rows that stay.

    Raises:
      TypeError: if select is no function, base no rule or, when called, select returns something else.
      ValueError: when called, if the rows to keep have another shape.

    >>> positive = selecting(lambda received: (received.updates[:, 0] > 0, {}))
    >>> positive(jnp.array([[-1.0], [2.0], [4.0]])).tolist()
    [3.0]
    """
    checks.function("selecting", select=select)
    checks.part("selecting", Aggregator, base=base)

    def aggregate(received: Received, state: State) -> tuple[Array, State, Info]:
        received = cleaned(received)
        keep, report = _value_and_report("select", select(received))
        checks.returned("select", keep, received.weights.shape, floating=False)
        selected = keep.astype(bool) & (received.weights > 0)
        rest = received._replace(weights=jnp.where(selected, received.weights, 0))
        result, state, info = base.aggregate(rest, state)
        return result, state, info | report | {"selected": selected}

    return Aggregator(base.init, aggregate)


def weighing(weigh: Callable[[Received], tuple[Array, Info]]) -> Aggregator:
    """The mean of the rows weighted by what a function trusts them; it reports ``trust`` (n,) and
    ``selected`` (n,) bool, the rows of positive trust. If nobody has any, the aggregate is zero.

    Args:
      weigh: received -> trust (n,) >= 0, absent rows counting as 0, and what to report.

    Raises:
      TypeError: if weigh is no function or, when called, returns something else.
      ValueError: when called, if the trust has another shape.

    >>> first_counts_thrice = weighing(lambda received: (jnp.array([3.0, 1.0]), {}))
    >>> first_counts_thrice(jnp.array([[0.0], [4.0]])).tolist()
    [1.0]
    """
    checks.function("weighing", weigh=weigh)

    def aggregate(received: Received, state: State) -> tuple[Array, State, Info]:
        received = cleaned(received)
        trust, report = _value_and_report("weigh", weigh(received))
        checks.returned("weigh", trust, received.weights.shape)
        trust = jnp.where(received.weights > 0, trust, 0)
        result = weighted_mean(received.updates, trust)
        return result, state, report | {"trust": trust, "selected": trust > 0}

    return Aggregator(no_state, aggregate)


def wrapping(
    change: Callable[[Received], tuple[Received, Info]], base: Aggregator = MEAN
) -> Aggregator:
    """Another rule on changed rows: clipped, mixed, or fewer of them.

    Args:
      change: received -> what the inner rule receives, and what to report.
      base: the inner rule. Its own report wins where names clash.

    Raises:
      TypeError: if change is no function, base no rule or, when called, change returns something else.

    >>> def doubled(received):
    ...     return received._replace(updates=2 * received.updates), {}
    >>> wrapping(doubled)(jnp.array([[1.0], [3.0]])).tolist()
    [4.0]
    """
    checks.function("wrapping", change=change)
    checks.part("wrapping", Aggregator, base=base)

    def aggregate(received: Received, state: State) -> tuple[Array, State, Info]:
        changed, report = _value_and_report("change", change(cleaned(received)))
        checks.part("what change returns", Received, received=changed)
        result, state, info = base.aggregate(changed, state)
        return result, state, report | info

    return Aggregator(base.init, aggregate)
