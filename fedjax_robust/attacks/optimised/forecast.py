"""What the model will be some rounds ahead, as the attacker expects it: differentiable in what it does.

A forecast tells one round: key, params (d,) -> the server's update (d,). ``as_one`` has all that the
attacker knows of the clients' data train as one client, which is what a mean of many small batches comes
to; ``by_rule`` trains clients one by one and aggregates them by a rule. ``loss_after`` goes through
several rounds, holding one model for each and one round's activations (``jax.checkpoint``), so that its
gradient costs time and memory in proportion to the rounds.

Our own formulation; the idea of looking ahead through training is that of back-gradient optimization
(Muñoz-González et al., AISec 2017, https://arxiv.org/abs/1708.08689).
"""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp

from fedjax_robust import checks
from fedjax_robust.aggregators.base import MEAN
from fedjax_robust.types import (
    Aggregator,
    Array,
    Client,
    ClientData,
    FederatedData,
    Key,
    Received,
    Score,
)

Forecast = Callable[[Key, Array], Array]
"""key, params (d,) -> the server's update of one round (d,)."""


def as_one(client: Client, own: ClientData) -> Forecast:
    """A round in which everybody trains as one client would on these data.

    Args:
      client: how it trains, such as ``local_sgd(task, 0.1, 512)``: as many examples as all clients'
        batches together would be best, and fewer are cheaper. Its state starts anew in every round.
      own: the examples that the attacker knows: with full knowledge the honest clients', else its own.

    Raises:
      TypeError: for parts of another kind.
    """
    checks.part("as_one", Client, client=client)
    checks.part("as_one", ClientData, own=own)

    def round_of(key: Key, params: Array) -> Array:
        update = client.update(key, params, client.init(params), own)[0]
        checks.returned("the client of as_one", update, params.shape)
        return update

    return round_of


def by_rule(client: Client, data: FederatedData, *, base: Aggregator = MEAN) -> Forecast:
    """A round in which these clients train, and a rule with fresh state aggregates them.

    A smooth rule in the forecast, the mean, serves better than a median or trimmed mean, whose
    gradients are mostly zeros.

    Args:
      client: how they train; states start anew in every round.
      data: the clients that the attacker takes for all: with full knowledge the honest ones, else
        its own.
      base: the rule.

    Raises:
      TypeError: for parts of another kind.
    """
    checks.part("by_rule", Client, client=client)
    checks.part("by_rule", FederatedData, data=data)
    checks.part("by_rule", Aggregator, base=base)
    n = data.index.shape[0]

    def round_of(key: Key, params: Array) -> Array:
        def one(i: Array, index: Array, count: Array) -> Array:
            own = ClientData(data.examples, index, count, i)
            return client.update(jax.random.fold_in(key, i), params, client.init(params), own)[0]

        ids = jnp.arange(n, dtype=jnp.int32)
        updates = jax.vmap(one)(ids, data.index, data.count)
        weights = (data.count > 0).astype(updates.dtype)
        received = Received(updates, weights, ids, params, jax.random.fold_in(key, n))
        result = base.aggregate(received, base.init(n, params))[0]
        checks.returned("the rule of by_rule", result, params.shape)
        return result

    return round_of


def loss_after(forecast: Forecast, loss: Score, rounds: int) -> Callable[[Key, Array], Array]:
    """The loss of the model after some rounds: key, params (d,) -> ().

    Args:
      forecast: one round.
      loss: params (d,) -> (), what the attacker wants to be large, such as
        ``lambda params: task.loss(params, examples)``.
      rounds: how many, >= 0.

    Raises:
      ValueError: if rounds < 0; when called, if a part returns another shape.
      TypeError: for parts of another kind.
    """
    checks.function("loss_after", forecast=forecast, loss=loss)
    checks.static_count("loss_after", rounds=rounds)

    @jax.checkpoint
    def one(params: Array, key: Key) -> Array:
        update = forecast(key, params)
        checks.returned("the forecast of loss_after", update, params.shape)
        return params + update.astype(params.dtype)

    def ahead(key: Key, params: Array) -> Array:
        keys = jax.random.split(key, rounds) if rounds else jax.random.split(key, 1)[:0]
        end, _ = jax.lax.scan(lambda p, k: (one(p, k), None), params, keys)
        value = loss(end)
        checks.returned("the loss of loss_after", value, ())
        return value

    return ahead
