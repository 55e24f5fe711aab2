"""Attacks with a memory over several rounds: hand values, and against the definition."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from reference import memory

from fedjax_robust.attacks import mimic, mimic_one
from fedjax_robust.types import AttackerView

H = np.array([[1.0, 0], [0, 2], [1, 1], [3, 1]], np.float32)
"""The four honest rows of the sheet's toy data."""


def view_of(updates, malicious=1, ids=None, present=None):
    n, d = updates.shape
    present = np.ones(n, bool) if present is None else present
    bad = (np.arange(n) < malicious) & present
    ids = np.arange(n) if ids is None else ids
    shown = jnp.where(jnp.asarray(present)[:, None], jnp.asarray(updates), 0)
    return AttackerView(
        shown, jnp.asarray(present), jnp.asarray(present & ~bad), jnp.asarray(bad), malicious,
        jnp.zeros(d, updates.dtype), jax.random.key(0), None, jnp.asarray(ids),
    )  # fmt: skip


def with_one_malicious(honest):
    return np.concatenate([np.zeros((1, honest.shape[1]), honest.dtype), honest])


def test_mimic_by_hand():
    attack = mimic(warmup=2, start=np.array([1.0, 0.0]))
    state = attack.init(jnp.zeros(2))
    rows, state = attack.craft(view_of(with_one_malicious(H)), state)
    np.testing.assert_allclose(state[1], [0.978549785, -0.206010481], rtol=1e-6)
    np.testing.assert_array_equal(rows, H[3:])
    later = H.copy()
    later[1] += [0, 1]
    rows, state = attack.craft(view_of(with_one_malicious(later)), state)
    np.testing.assert_allclose(state[0], [1.25, 1.125], rtol=1e-6)
    np.testing.assert_allclose(state[1], [0.9275721552, -0.3736440777], rtol=1e-6)
    np.testing.assert_array_equal(rows, later[3:])


@pytest.mark.parametrize("scale", [1e-30, 1.0, 1e30])
@pytest.mark.parametrize("warmup", [1, 3])
def test_mimic_over_rounds_in_which_clients_are_absent(warmup, scale):
    """The target is a client, not a row; while it is away another one is copied, and then it again."""
    rng = np.random.default_rng(0)
    spread = rng.normal(size=(9, 4))
    start = rng.normal(size=4)
    attack = mimic(warmup=warmup, start=start.astype(np.float32))
    slow = memory.Mimic(np.float32(start), warmup)
    craft = jax.jit(lambda updates, present, ids, s: attack.craft(seen(updates, present, ids), s))
    state = attack.init(jnp.zeros(4))
    for r in range(8):
        ids = np.sort(rng.choice(9, 7, replace=False)) if r else np.arange(7)
        present = rng.random(7) > 0.2
        updates = (scale * (spread[ids] + 0.1 * rng.normal(size=(7, 4)))).astype(np.float32)
        updates = np.where(present[:, None], updates, 0)
        rows, state = craft(updates, present, ids, state)
        honest = [i for i in range(7) if present[i] and ids[i] >= 2]
        expected = slow.craft(updates[honest] / scale, [int(ids[i]) for i in honest])
        np.testing.assert_allclose(rows[0] / scale, expected, rtol=1e-6)
        assert int(state[3]) == slow.target


def seen(updates, present, ids):
    bad = (ids < 2) & present
    return AttackerView(
        updates, present, present & ~bad, bad, 2, jnp.zeros(4), jax.random.key(0), None, ids
    )


def test_mimic_without_honest_clients_sends_its_own():
    updates = np.ones((3, 2), np.float32) * np.arange(1, 4)[:, None].astype(np.float32)
    view = view_of(updates, 2, present=np.array([True, True, False]))
    for attack in (mimic(), mimic_one(2)):
        state = attack.init(jnp.zeros(2))
        rows, after = attack.craft(view, state)
        np.testing.assert_array_equal(rows, updates[:2])
        for old, new in zip(jax.tree.leaves(state), jax.tree.leaves(after), strict=True):
            np.testing.assert_array_equal(old, new)  # nothing was learned


def test_mimic_needs_a_start_of_the_models_size():
    with pytest.raises(ValueError, match="mimic needs start"):
        mimic(start=np.ones(3)).init(jnp.zeros(2))
