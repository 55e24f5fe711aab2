"""``in_rounds`` of single clients goes by their ids, wherever their rows stand in a round."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fedjax_robust.attacks import in_rounds, scaling
from fedjax_robust.types import AttackerView

# Who of the clients 0 .. 3 strikes in rounds 0, 1, 2.
SCHEDULE = np.array([[0, 1, 0, 1], [1, 0, 0, 0], [0, 0, 1, 1]], bool)


@pytest.mark.parametrize("ids", [[1, 3, 6, 7], [0, 2, 3, 9], [2, 3, 4, 5], [4, 5, 6, 7]])
def test_clients_strike_by_their_ids(ids):
    attack = in_rounds(scaling(3.0), jnp.asarray(SCHEDULE))
    updates = np.arange(1.0, 13).reshape(4, 3).astype(np.float32)
    malicious = np.array(ids) < 4
    everybody = jnp.ones(4, bool)
    view = AttackerView(
        updates=jnp.asarray(updates),
        visible=everybody,
        reference=jnp.asarray(~malicious),
        malicious=jnp.asarray(malicious),
        num_malicious=4,
        params=jnp.zeros(3),
        key=jax.random.key(0),
        aggregate=None,
        ids=jnp.array(ids, jnp.int32),
    )
    state = attack.init(view.params)
    for strikes in [*SCHEDULE, np.zeros(4, bool)]:
        rows, state = attack.craft(view, state)
        factors = [3 if i < 4 and strikes[i] else 1 for i in ids]
        np.testing.assert_array_equal(rows, updates * np.array(factors)[:, None])
