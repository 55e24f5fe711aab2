"""The attackers' training and what they make of it draw independently."""

import jax
import jax.numpy as jnp
import numpy as np

from fedjax_robust import attacks
from fedjax_robust.types import AttackerView, Client, ClientData


def test_training_and_division_have_keys_of_their_own():
    seen = []

    def update(key, params, state, data):
        seen.append(key)
        return jnp.ones_like(params), state, {}

    def divide(key, difference, attackers):
        seen.append(key)
        return jnp.where(attackers[:, None], difference, 0)

    attack = attacks.model_replacement(
        Client(lambda params: (), update),
        ClientData({}, jnp.zeros(0, jnp.int32), jnp.int32(0)),
        divide,
    )
    everybody = jnp.ones(2, bool)
    key = jax.random.key(3)
    view = AttackerView(
        jnp.zeros((2, 4)), everybody, everybody, everybody, 2, jnp.zeros(4), key, None, None
    )
    with jax.disable_jit():
        rows, _ = attack.craft(view, ())
    np.testing.assert_array_equal(rows, np.ones((2, 4)))
    keys = {tuple(jax.random.key_data(k).tolist()) for k in [*seen, key]}
    assert len(seen) == 2 and len(keys) == 3
