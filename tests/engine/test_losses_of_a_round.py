"""``train_loss`` of a round: the mean over its clients, of which malicious ones may train otherwise."""

import jax.numpy as jnp
import numpy as np
import pytest
from telling import play, showing, simulation, telling, telling_data

from fedjax_robust.types import Attack, Client


def telling_worse():
    """Reports a loss that is larger by 5."""
    honest = telling(-1.0)

    def update(key, params, state, data):
        sent, state, info = honest.update(key, params, state, data)
        return sent, state, {"train_loss": info["train_loss"] + 5}

    return Client(honest.init, update)


@pytest.mark.parametrize(
    "changes", [{}, {"clients_per_round": 3}, {"max_malicious": 4, "num_malicious": jnp.int32(2)}]
)
@pytest.mark.parametrize("chunk", [None, 1])
def test_losses_of_malicious_clients_are_their_own(changes, chunk):
    sim = simulation(
        attack=Attack(client=telling_worse()),
        aggregator=showing(),
        client_chunk=chunk,
        **{"num_malicious": 2, **changes},
    )
    _, history = play(sim, telling_data(6), 8)
    ids, malicious = np.asarray(history["ids"]), np.asarray(history["malicious"])
    np.testing.assert_array_equal(malicious, ids < 2)
    expected = (ids / 10 + 5 * (ids < 2)).mean(axis=1)
    np.testing.assert_allclose(history["train_loss"], expected, rtol=1e-6)
    if "clients_per_round" in changes:
        assert 1 < len(set(malicious.sum(axis=1).tolist())) <= 3
