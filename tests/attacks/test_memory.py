"""Attacks with a memory over several rounds: hand values, and against the definition."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from reference import memory
from scipy.stats import binom

import fedjax_robust as fr
from fedjax_robust.aggregators import centered_clipping
from fedjax_robust.attacks import (
    alternating_minimisation,
    explicit_boosting,
    free_rider,
    free_rider_advanced,
    free_rider_delta,
    free_rider_disguised,
    in_rounds,
    mimic,
    mimic_one,
    poisoned_fl,
    rop,
    stealthy_boosting,
)
from fedjax_robust.attacks.poisoned_fl import binomial_quantile
from fedjax_robust.types import Attack, AttackerView, Client, ClientData, Knowledge, Task

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


# --- What the model changed by -----------------------------------------------------------------------


def play(attack, models, updates=None, c=2, there=None, seed=0):
    """Rows (rounds, c, d) that the attack sends for one received model after the other."""
    n, d = 5, len(models[0])
    updates = np.zeros((len(models), n, d), np.float32) if updates is None else np.float32(updates)
    there = np.ones(len(models), bool) if there is None else there

    @jax.jit
    def craft(params, updates, here, key, state):
        bad = (jnp.arange(n) < c) & here
        view = AttackerView(
            updates, jnp.ones(n, bool), jnp.arange(n) >= c, bad, c, params, key, None, jnp.arange(n)
        )
        return attack.craft(view, state)

    state, sent = attack.init(jnp.float32(models[0])), []
    for r, params in enumerate(models):
        key = jax.random.fold_in(jax.random.key(seed), r)
        rows, state = craft(jnp.float32(params), updates[r], there[r], key, state)
        sent.append(rows)
    return np.stack(sent), state


def walk(rounds, d, scale=1.0, seed=0):
    return scale * np.cumsum(np.random.default_rng(seed).normal(size=(rounds, d)), axis=0)


def test_delta_weights_by_hand():
    rows, _ = play(free_rider_delta(), [[0.0, 0.0], [0.5, -0.2], [0.25, 0.0]])
    assert 0 < np.max(np.abs(rows[0])) < 0.01 and np.any(rows[0][0] != rows[0][1])
    np.testing.assert_allclose(rows[1], [[0.5, -0.2]] * 2, rtol=1e-6)
    np.testing.assert_allclose(rows[2], [[-0.25, 0.2]] * 2, rtol=1e-6)
    rows, _ = play(free_rider_delta(1e-3, first=0.0), [np.zeros(4000), np.full(4000, 0.5)])
    assert not np.any(rows[0])
    np.testing.assert_allclose(np.std(rows[1] - 0.5, axis=1), 1e-3, rtol=0.1)


def test_a_round_without_free_riders_teaches_them_nothing():
    """Nor does it count: the first round is the first one with them."""
    models = [[9.0, 9.0], [0.0, 0.0], [7.0, 7.0], [0.5, -0.2]]
    there = np.array([False, True, False, True])
    rows, _ = play(free_rider_delta(), models, there=there)
    assert np.max(np.abs(rows[1])) < 0.01
    np.testing.assert_allclose(rows[3], [[0.5, -0.2]] * 2, rtol=1e-6)


def test_the_disguise_is_the_mean_absolute_change():
    """.3 for the sheet's (.5, -.2, .2), whose standard deviation is .2867; many coordinates tell it."""
    change = np.tile([0.5, -0.2, 0.2], 4000)
    models = [0 * change, change, 5 * change, 6 * change]
    rows, state = play(free_rider_disguised(2.0, 3.0), models)
    np.testing.assert_allclose(state[1], 0.3, rtol=1e-6)
    slow = memory.DisguisedFreeRider(2.0, 3.0)
    for row, params in zip(rows, models, strict=True):
        np.testing.assert_allclose(np.std(row, axis=1), slow.std(params), rtol=0.03)
    np.testing.assert_allclose(np.std(rows[3], axis=1), 3 * 0.3 / 9, rtol=0.03)


@pytest.mark.parametrize("scale", [1e-18, 1.0, 1e18])
def test_advanced_free_riders(scale):
    """The mean of many rows is the definition's row, and their distances to it the noise's length."""
    models = walk(4, 400) * (np.arange(4)[:, None] + 1.0)
    rows, _ = play(free_rider_advanced(first=1e-3 * scale), scale * models)
    slow = memory.AdvancedFreeRider(5)
    for r, params in enumerate(models):
        row, length = slow.row(params)
        noise = rows[r] / scale - row
        np.testing.assert_allclose(np.linalg.norm(noise, axis=1), length, rtol=0.15)
        still = np.mean(np.all(np.abs(noise) < 1e-4 * np.max(np.abs(row)), axis=0))
        if r >= 2:  # 30 % of the coordinates have none
            each = np.mean(np.abs(noise) < 1e-5 * np.max(np.abs(row)), axis=1)
            np.testing.assert_allclose(each, 0.3, atol=0.08)
            assert 0.04 < still < 0.15  # not the same coordinates in all rows


def test_advanced_free_riders_where_the_model_stands_still():
    rows, _ = play(free_rider_advanced(first=0.0), [np.ones(3)] * 3 + [np.zeros(3)] * 2)
    assert np.all(np.isfinite(rows)) and not np.any(rows[:3])


# --- PoisonedFL --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("d", "constant"),
    [(139_960, 70_415), (1_204_682, 603_618), (717_924, 359_948), (145_212, 73_049)],
)
def test_the_authors_constants_are_binomial_quantiles(d, constant):
    assert binomial_quantile(d, 0.99) == constant


def test_binomial_quantiles():
    for d in [*range(1, 60), 997, 10_000]:
        for p in (0.01, 0.3, 0.9, 0.99, 0.999):
            assert binomial_quantile(d, p) == binom.ppf(p, d, 0.5), (d, p)


def test_poisoned_fl_by_hand():
    attack = poisoned_fl(8.0, signs=np.array([1, -1, 1]))
    s, _, before, asked, c, t = attack.init(jnp.zeros(3))
    state = (s, jnp.array([3.0, 4.0, 0.0]), before, asked, c, t + 1)
    view = view_of(np.zeros((3, 3), np.float32))._replace(params=jnp.array([0.3, -0.4, 0.0]))
    rows, state = attack.craft(view, state)
    np.testing.assert_allclose(rows, [[0, -4, 0]], atol=1e-6)
    np.testing.assert_allclose(state[1], [0, -4, 0], atol=1e-6)


@pytest.mark.parametrize("scale", [1e-30, 1.0, 1e30])
def test_poisoned_fl_over_rounds(scale):
    """Models drift with s for a while, and then do not: c shrinks, down to its floor."""
    d, signs = 12, np.resize([1, -1, -1], 12)
    least = int(binom.ppf(0.9, d, 0.5))
    models = walk(16, d, 0.3) + 0.4 * signs * np.minimum(np.arange(16), 6)[:, None]
    models[9] = models[8]  # and stand still once
    attack = poisoned_fl(2.0, period=3, smallest=0.9, quantile=0.9, signs=signs)
    rows, state = play(attack, scale * models)
    slow = memory.PoisonedFL(signs, 2.0, 3, smallest=0.9, least=least)
    scales = []
    for r, params in enumerate(models):
        expected = slow.row(params)
        scales.append(slow.c)
        atol = 1e-5 * np.max(np.abs(expected))
        np.testing.assert_allclose(rows[r] / scale, [expected] * 2, rtol=1e-4, atol=atol)
    np.testing.assert_allclose(state[4], slow.c, rtol=1e-6)
    assert scales[6] == 2.0 and scales[-1] == pytest.approx(2.0 * 0.7**2)


def test_poisoned_fl_draws_its_direction_once():
    models = np.concatenate([np.zeros((1, 400)), walk(3, 400)])
    signs = []
    for seed in (0, 1):
        rows, state = play(poisoned_fl(), models, seed=seed)
        assert not np.any(rows[0])
        for row in rows[1:]:
            np.testing.assert_array_equal(np.sign(row), np.sign(row) * np.sign(row) * state[0])
        signs.append(np.asarray(state[0]))
    assert abs(np.mean(signs[0])) < 0.2 and abs(np.mean(signs[0] * signs[1])) < 0.2


def test_poisoned_fl_needs_signs_of_the_models_size():
    with pytest.raises(ValueError, match="poisoned_fl needs signs"):
        poisoned_fl(signs=np.ones(3)).init(jnp.zeros(2))


# --- ROP ---------------------------------------------------------------------------------------------


def test_rop_by_hand():
    honest = np.broadcast_to(np.float32([1, 2, 2]), (2, 5, 3))
    rows, _ = play(rop(0.2533471031), [[1.0, 1.0, 1.0], [3.0, 1.0, 1.0]], honest)
    np.testing.assert_allclose(
        rows[0], [[-0.2388579395, 0.0597144849, 0.0597144849]] * 2, rtol=1e-6
    )
    np.testing.assert_allclose(
        rows[1], [[2.037303343, -0.1771908791, -0.1771908791]] * 2, rtol=1e-6
    )
    # 10 of 50 rows: the z of the sheet, from who is there.
    updates = np.broadcast_to(np.float32([1, 2, 2]), (50, 3))
    attack = rop()
    rows, _ = attack.craft(view_of(updates, 10), attack.init(jnp.zeros(3)))
    np.testing.assert_allclose(rows[0], [-0.2388579395, 0.0597144849, 0.0597144849], rtol=1e-6)


@pytest.mark.parametrize("scale", [1e-25, 1.0, 1e25])
def test_rop_over_rounds(scale):
    """z in units of |m|, at an angle and a place of its own."""
    models, honest = walk(4, 6), np.random.default_rng(1).normal(size=(4, 5, 6))
    attack = rop(relative=0.5, angle=200.0, location=0.7, reference=0.6)
    rows, _ = play(attack, scale * models, scale * honest)
    for r in range(4):
        mean = np.mean(honest[r, 2:], axis=0)
        m = models[r] - models[r - 1] if r else np.zeros(6)
        z = 0.5 * np.linalg.norm(m if r else mean)
        expected = memory.rop(m, mean, z, r == 0, 200.0, 0.7, 0.6)
        np.testing.assert_allclose(rows[r] / scale, [expected] * 2, rtol=1e-4, atol=1e-5)


def test_rop_where_nothing_is_orthogonal():
    for models in ([[0.0], [2.0]], [[0.0] * 3, [2.0] * 3]):
        rows, _ = play(rop(1.0, reference=1.0), models)
        np.testing.assert_allclose(rows[1], [models[1]] * 2)
    rows, _ = play(rop(1.0), np.zeros((2, 4)))  # nobody moves: against the all-ones vector
    np.testing.assert_allclose(rows, np.full((2, 2, 4), -0.5))


def test_rop_takes_one_length():
    with pytest.raises(ValueError, match="rop needs length or relative, not both"):
        rop(0.5, relative=0.5)


# --- Boosted training --------------------------------------------------------------------------------


def squares(params, batch):
    """The mean of |w - x|^2 / 2: L_train of the sheet, around the mean of the examples."""
    mask = batch.get("mask", jnp.ones(len(batch["x"])))
    loss = 0.5 * jnp.sum(jnp.square(params - batch["x"]), axis=1)
    return jnp.sum(mask * loss) / jnp.maximum(jnp.sum(mask), 1)


SQUARES = Task(lambda key: jnp.zeros(2), squares, lambda params, x: x, lambda params: params)
WANTED = {"x": jnp.array([[-1.0, 0.0]]), "y": jnp.zeros(1, jnp.int32)}
OWN = {"x": jnp.array([[1.0, 1.0], [3.0, 0.0], [0.0, 2.0]]), "y": jnp.zeros(3, jnp.int32)}


def own_data(number, rounds=0):
    return ClientData(OWN, jnp.arange(3), jnp.int32(number), 0, rounds)


def towards(target):
    return lambda w: w - target


def malicious(w):
    gap = w - WANTED["x"][0]
    return 0.5 * gap @ gap, gap


def test_alternating_minimisation_by_hand():
    attack = alternating_minimisation(SQUARES, WANTED, 0.1, 10.0, steps=1, benign_steps=1, rho=0.0)
    client = attack.client
    assert client is not None
    sent, _, info = client.update(
        jax.random.key(0), jnp.zeros(2), client.init(jnp.zeros(2)), own_data(1)
    )
    np.testing.assert_allclose(sent, [-1, 0], atol=1e-6)
    assert info["train_loss"] == 1.0


def test_explicit_boosting_by_hand():
    """Two steps of .5 from (1, 0) to (-1, 0): half of the way, and a half of the rest, times 3."""
    client = explicit_boosting(SQUARES, WANTED, 0.5, 3.0, steps=2).client
    assert client is not None
    sent, _, _ = client.update(jax.random.key(0), jnp.array([1.0, 0.0]), (), own_data(3))
    np.testing.assert_allclose(sent, [-4.5, 0], atol=1e-6)


@pytest.mark.parametrize("stealthy", [False, True], ids=["alternating", "stealthy"])
def test_stealth_over_rounds(stealthy):
    """delta_ref is what others sent since the client took part last, in rounds 0, 1 and 4."""
    make = functools.partial(
        stealthy_boosting if stealthy else alternating_minimisation, SQUARES, WANTED
    )
    client = make(0.1, 4.0, steps=3, rho=0.7, share=0.2).client
    assert client is not None
    update, key = jax.jit(client.update), jax.random.key(0)
    models = np.array([[0.5, -1.0], [0.2, 0.3], [1.0, 2.0]])
    state, last = client.init(jnp.zeros(2)), None
    target = np.mean(OWN["x"], axis=0)
    for params, r in zip(models, (0, 1, 4), strict=True):
        sent, state, _ = update(key, jnp.float32(params), state, own_data(3, jnp.int32(r)))
        delta, rho = np.zeros(2), 0.0
        if last is not None:
            before, own, s = last
            delta, rho = (params - before - 0.2 * own) / (r - s), 0.7
        here = (towards(target), malicious, params, 0.1, 4.0, 3)
        if stealthy:
            expected = memory.stealthy(*here, rho, delta)
        else:
            expected = memory.alternating(*here, 10, rho, delta)
        np.testing.assert_allclose(sent, expected, rtol=1e-5, atol=1e-6)
        last = params, expected, r


@pytest.mark.parametrize("stealthy", [False, True], ids=["alternating", "stealthy"])
def test_stealth_beside_honest_training(stealthy):
    """delta_ref from a client of one's own, and only the first parameter is boosted and held."""
    make = stealthy_boosting if stealthy else alternating_minimisation
    honest = Client(
        lambda params: jnp.int32(0),
        lambda key, params, state, data: (jnp.array([0.3, -0.6]) * (state + 1), state + 1, {}),
    )
    only = np.array([True, False])
    client = make(SQUARES, WANTED, 0.1, 4.0, steps=2, rho=0.7, reference=honest, only=only).client
    assert client is not None
    state, params = client.init(jnp.zeros(2)), np.array([0.5, -1.0])
    boost, target = np.array([4.0, 1.0]), np.mean(OWN["x"], axis=0)
    for r in range(2):
        sent, state, _ = client.update(jax.random.key(r), jnp.float32(params), state, own_data(3))
        delta = np.array([0.3, -0.6]) * (r + 1)
        if stealthy:
            held = lambda w, delta=delta: (w - target) + 0.7 * only * (w - params - delta)  # noqa: E731
            expected = memory.stealthy(held, malicious, params, 0.1, boost, 2)
        else:
            here = (towards(target), malicious, params, 0.1, boost, 2, 10, 0.7, delta, only)
            expected = memory.alternating(*here)
        np.testing.assert_allclose(sent, expected, rtol=1e-5, atol=1e-6)
    with pytest.raises(ValueError, match="needs only of shape"):
        make(SQUARES, WANTED, 0.1, 4.0, only=np.ones(3, bool)).client.init(jnp.zeros(2))


def test_no_boosted_step_where_nothing_is_left_to_win():
    """At the wanted example itself L_mal is 0: honest steps alone, one of them here."""
    client = alternating_minimisation(SQUARES, WANTED, 0.5, 10.0, steps=1, benign_steps=1).client
    assert client is not None
    data = ClientData(WANTED, jnp.arange(1), jnp.int32(1))
    start = jnp.array([-1.0, 0.0])
    sent, _, _ = client.update(jax.random.key(0), start, client.init(start), data)
    np.testing.assert_array_equal(sent, [0, 0])
    sent, _, _ = client.update(jax.random.key(0), start, client.init(start), own_data(0))
    np.testing.assert_array_equal(sent, [0, 0])  # without data of its own, too


# --- Runs --------------------------------------------------------------------------------------------


def test_plain_free_riders_slow_the_mean_down():
    """c of n rows that are zero scale its progress by (n - c) / n."""
    honest = np.random.default_rng(0).normal(size=(5, 3)).astype(np.float32)
    rows, _ = play(free_rider(), np.zeros((1, 3)), honest[None])
    received = np.concatenate([rows[0], honest[2:]])
    np.testing.assert_allclose(received.mean(axis=0), 0.6 * honest[2:].mean(axis=0), rtol=1e-5)


def side_by_side(client, *attacks):
    """One attack with the memories of all, which sends the mean of what they send."""

    def craft(view, state):
        results = [attack.craft(view, own) for attack, own in zip(attacks, state, strict=True)]
        rows = jnp.mean(jnp.stack([rows[: view.num_malicious] for rows, _ in results]), axis=0)
        return rows, tuple(state for _, state in results)

    init = lambda params: tuple(attack.init(params) for attack in attacks)  # noqa: E731
    return Attack(init, craft, client, Knowledge(others=True))


def test_runs_and_checkpoints_hold_all_of_their_memory(tmp_path):
    dataset = fr.data.synthetic(jax.random.key(1), num_classes=3, num_features=4, num_train=80)
    task = fr.classification(fr.models.SoftmaxRegression(3), dataset.train["x"][:1])
    parts = fr.data.iid(jax.random.key(3), dataset.train, 8)
    wanted = {key: values[:2] for key, values in parts.examples.items()}
    boosted = alternating_minimisation(task, wanted, 0.1, 4.0, steps=2, benign_steps=2)
    attack = side_by_side(
        boosted.client, free_rider_disguised(), free_rider_delta(), free_rider_advanced(), mimic(3),
        poisoned_fl(2.0, period=1), rop(relative=0.5),
    )  # fmt: skip
    attack = in_rounds(attack, np.array([False, True, True, True]), fr.local_sgd(task, 0.1, 4))
    sim = fr.Simulation(
        task, fr.local_sgd(task, 0.1, 4), centered_clipping(0.5), attack, Knowledge(others=True),
        num_malicious=3, clients_per_round=5,
    )  # fmt: skip
    key = jax.random.key(5)
    whole, _ = fr.run(sim, key, parts, 4, evaluate_every=2)
    arguments = {"evaluate_every": 2, "checkpoint": tmp_path / "run.npz", "checkpoint_every": 2}
    half, _ = fr.run(sim, key, parts, 2, **arguments)
    resumed, _ = fr.run(sim, key, parts, 4, **arguments)
    for a, b in zip(*map(jax.tree.leaves, (whole, resumed)), strict=True):
        if jnp.issubdtype(a.dtype, jax.dtypes.prng_key):
            a, b = map(jax.random.key_data, (a, b))
        np.testing.assert_array_equal(a, b)
    memories = [(*state.attack[1], state.clients[1]) for state in (whole, half)]
    for late, early in zip(*memories, strict=True):  # every memory went on
        leaves = zip(*map(jax.tree.leaves, (late, early)), strict=True)
        assert any(np.any(a != b) for a, b in leaves)
    assert np.all(np.isfinite(whole.params))
