"""The random numbers of an attacker who does not know the server's: of the forecast, and its own."""

import jax
import jax.numpy as jnp
import pytest
from telling import simulation, telling_data

from fedjax_robust import engine
from fedjax_robust.types import Aggregator, Attack, Knowledge


@pytest.mark.parametrize("coins", [False, True])
def test_a_forecast_draws_neither_with_the_attackers_key_nor_without_leave_with_the_servers(coins):
    seen = {"attack": [], "rule": []}

    def craft(view, state):
        seen["attack"].append(view.key)
        return jnp.broadcast_to(view.aggregate(view.updates), (2, 3)), state

    def aggregate(received, state):
        seen["rule"].append(received.key)
        return jnp.mean(received.updates, axis=0), state, {}

    sim = simulation(
        aggregator=Aggregator(lambda n, params: (), aggregate),
        attack=Attack(craft=craft, needs=Knowledge(others=True, rule=True)),
        knowledge=Knowledge(others=True, rule=True, coins=coins),
        num_malicious=2,
    )
    data = telling_data(4)
    state = engine.init(sim, jax.random.key(0), data)
    engine.step(sim, state, data)
    own, forecast, server = (
        tuple(jax.random.key_data(key).tolist()) for key in (*seen["attack"], *seen["rule"])
    )
    assert own not in (forecast, server)
    assert (forecast == server) == coins
