"""Clients that do not train but send a vector of their own, so that every row that the attacker or the
server sees can be told apart; rules that report all they were given."""

import jax
import jax.numpy as jnp
import numpy as np

from fedjax_robust import aggregators, engine, tasks
from fedjax_robust.types import Aggregator, Client, FederatedData, Simulation, Task

KEY = jax.random.key(2)


def squares(params, batch):
    """Half the mean squared distance to the examples: the gradient is params - mean."""
    losses = 0.5 * jnp.sum(jnp.square(params - batch["x"]), axis=1)
    return tasks.masked_mean(losses, batch["mask"])


SQUARES = Task(lambda key: jax.random.normal(key, (3,)), squares, lambda p, x: x, lambda p: p)


def to_data(examples, counts):
    """Clients own consecutive rows of the pool."""
    width = max(counts)
    first = np.cumsum([0, *counts[:-1]])
    index = np.where(np.arange(width) < np.array(counts)[:, None], first[:, None] + range(width), 0)
    return FederatedData(
        {name: jnp.asarray(values) for name, values in examples.items()},
        jnp.asarray(index, jnp.int32),
        jnp.asarray(counts, jnp.int32),
    )


def telling(sign=1.0):
    """Client i sends ``sign`` times its row of the pool, reports loss i / 10, counts its rounds."""

    def update(key, params, state, data):
        row = data.index[0]
        info = {"train_loss": data.examples["loss"][row]}
        return sign * data.examples["x"][row], state + 1, info

    return Client(lambda params: jnp.int32(0), update)


def showing(rule=None):
    """The mean, or another rule, that also reports all it was given."""
    rule = rule or aggregators.mean()

    def aggregate(received, state):
        result, state, _ = rule.aggregate(received, state)
        shown = {"updates": received.updates, "weights": received.weights, "ids": received.ids}
        return result, state, shown | {"params": received.params}

    return Aggregator(rule.init, aggregate)


def telling_data(n, counts=None, seed=0):
    x = np.random.default_rng(seed).normal(size=(n, 3)).astype(np.float32)
    loss = np.arange(n, dtype=np.float32) / 10
    counts = np.ones(n, np.int32) if counts is None else np.asarray(counts, np.int32)
    return FederatedData(
        {"x": jnp.asarray(x), "loss": jnp.asarray(loss)},
        jnp.asarray(np.tile(np.arange(n, dtype=np.int32)[:, None], (1, counts.max()))),
        jnp.asarray(counts),
    )


def simulation(**changes):
    return Simulation(**({"task": SQUARES, "client": telling(), "aggregator": showing()} | changes))


def play(sim, data, rounds=1, key=KEY, params=None):
    """``rounds`` of ``step`` without compiling them: what ``run`` gives (see ``test_round_by_round``)."""
    state = engine.init(sim, key, data, params)
    infos = []
    for _ in range(rounds):
        state, info = engine.step(sim, state, data)
        infos.append(info)
    return state, jax.tree.map(lambda *values: np.stack(values), *infos)
