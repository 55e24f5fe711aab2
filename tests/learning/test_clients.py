"""Local training: which examples each step uses, momentum, and where poisons and objectives go in.

``RECORDER`` is a task whose parameters remember the training. Parameter 0 counts the steps: its
gradient is -1 and the learning rate 1. Parameter 1 + e grows by 4^t when example e is used once in
step t, so its digits to base 4 tell when the example was used and how often.
"""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import reference

import fedjax_robust as fr
from fedjax_robust import attacks, models, tasks
from fedjax_robust.clients.batches import sample_without_replacement
from fedjax_robust.clients.local import local_sgd
from fedjax_robust.types import ClientData, Task

POOL = 12
MOST_STEPS = 11  # 4^11 is the largest power whose sums stay exact in float32


def record(params, batch):
    power = 4.0 ** jax.lax.stop_gradient(params[0])
    return -params[0] - power * jnp.sum(batch["mask"] * params[1 + batch["x"]])


RECORDER = Task(
    init=lambda key: jnp.zeros(1 + POOL),
    loss=record,
    logits=lambda params, x: params,
    unravel=lambda params: params,
)


def client_data(count, capacity, pool=None):
    """Rows 11, 10, .. of the pool, ``count`` of them; padding points to row 0."""
    index = jnp.where(jnp.arange(capacity) < count, POOL - 1 - jnp.arange(capacity), 0)
    pool = {"x": jnp.arange(POOL)} if pool is None else pool
    return ClientData(pool, index, jnp.int32(count))


def uses(update):
    """The recorder's update -> times used (steps, POOL), without steps that did not happen."""
    steps = int(update[0])
    assert steps <= MOST_STEPS
    codes = np.asarray(update[1:]).astype(np.int64)
    return np.array([codes // 4**t % 4 for t in range(steps)]).reshape(steps, POOL)


def train(client, data, seed=0, params=None):
    params = jnp.zeros(1 + POOL) if params is None else params
    return jax.jit(client.update)(jax.random.key(seed), params, client.init(params), data)


def owned(count):
    return set(range(POOL - count, POOL))


# --- Which examples ------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def epochs_of_three():
    return jax.jit(local_sgd(RECORDER, 1.0, 3, epochs=2).update)


@pytest.mark.parametrize("count", [8, 7, 3, 2, 1, 0])
def test_each_epoch_uses_each_example_once(epochs_of_three, count):
    update, _, _ = epochs_of_three(
        jax.random.key(1), jnp.zeros(1 + POOL), (), client_data(count, 8)
    )
    used = uses(update)
    per_epoch = -(-count // 3)
    assert len(used) == 2 * per_epoch  # ceil(count / b), whatever the padding
    for epoch in np.split(used, 2):
        expected = [1 if e in owned(count) else 0 for e in range(POOL)]
        np.testing.assert_array_equal(epoch.sum(axis=0), expected)
        sizes = [3] * (count // 3) + [count % 3] * (count % 3 > 0)
        np.testing.assert_array_equal(epoch.sum(axis=1), sizes)
    if count == 8:
        assert not np.array_equal(*np.split(used, 2)), "the epochs have the same order"
        again = uses(
            epochs_of_three(jax.random.key(2), jnp.zeros(1 + POOL), (), client_data(8, 8))[0]
        )
        assert not np.array_equal(used, again), "the key does not matter"


@pytest.mark.parametrize("batch_size", [None, 8, 20])
def test_an_epoch_of_one_batch(batch_size):
    used = uses(train(local_sgd(RECORDER, 1.0, batch_size, epochs=3), client_data(5, 8))[0])
    assert used.shape == (3, POOL)
    assert all(set(np.flatnonzero(step)) == owned(5) and step.max() == 1 for step in used)


@pytest.mark.parametrize(
    ("batch_size", "count", "drawn"),
    [(3, 7, 3), (3, 2, 2), (3, 3, 3), (1, 7, 1), (8, 7, 7), (20, 5, 5), (None, 6, 6), (3, 0, 0)],
)
def test_batches_are_drawn_without_replacement(batch_size, count, drawn):
    used = uses(train(local_sgd(RECORDER, 1.0, batch_size, steps=6), client_data(count, 8))[0])
    assert used.shape == (6, POOL)
    assert used.max(initial=0) <= 1
    assert set(np.flatnonzero(used.sum(axis=0))) <= owned(count)
    np.testing.assert_array_equal(used.sum(axis=1), drawn)


def test_each_step_and_each_round_draws_anew():
    client = local_sgd(RECORDER, 1.0, 3, steps=6)
    first, second = (uses(train(client, client_data(8, 8), seed)[0]) for seed in (0, 1))
    assert len({step.tobytes() for step in first}) > 3  # of 56 possible batches
    assert not np.array_equal(first, second)
    np.testing.assert_array_equal(first, uses(train(client, client_data(8, 8), 0)[0]))


@pytest.mark.parametrize(("count", "size"), [(4, 2), (5, 3), (6, 1)])
def test_every_subset_is_equally_likely(count, size):
    draws = 6000
    keys = jax.random.split(jax.random.key(5), draws)
    chosen, mask = jax.jit(jax.vmap(lambda key: sample_without_replacement(key, count, size)))(keys)
    np.testing.assert_array_equal(mask, 1)
    seen = [tuple(sorted(row)) for row in np.asarray(chosen).tolist()]
    subsets = list(itertools.combinations(range(count), size))
    assert set(seen) == set(subsets)
    expected = draws / len(subsets)
    frequency = np.array([seen.count(subset) for subset in subsets])
    # Each is binomial with a standard deviation below sqrt(expected).
    assert np.all(np.abs(frequency - expected) < 5 * np.sqrt(expected))


@pytest.mark.parametrize("count", [0, 1, 3, 4, 5])
def test_a_sample_of_at_most_everything(count):
    chosen, mask = sample_without_replacement(jax.random.key(0), jnp.int32(count), 4)
    number = min(count, 4)
    np.testing.assert_array_equal(mask, [1] * number + [0] * (4 - number))
    assert len(set(chosen[:number].tolist())) == number
    assert np.all(chosen >= 0) and np.all(chosen < max(count, 1))


# --- Steps and momentum, against NumPy -----------------------------------------------------------

RNG = np.random.default_rng(3)
FEATURES = RNG.normal(size=(POOL, 4)).astype(np.float32)
LABELS = RNG.integers(0, 3, POOL).astype(np.int32)
EXAMPLES = {"x": jnp.asarray(FEATURES), "y": jnp.asarray(LABELS)}


@pytest.fixture(scope="module")
def softmax():
    return tasks.classification(models.SoftmaxRegression(3), jnp.zeros((1, 4)))


@pytest.fixture(scope="module")
def start(softmax):
    return softmax.init(jax.random.key(9))


def expected_update(task, params, labels, steps, learning_rate, momentum=0.0, count=7):
    """Full-batch softmax regression in float64 on the rows that ``client_data`` gives."""
    dense = task.unravel(params)["Dense_0"]
    rows = sorted(owned(count))
    w, b = reference.softmax_regression_sgd(
        dense["kernel"],
        dense["bias"],
        [(FEATURES[rows], labels[rows])] * steps,
        learning_rate,
        momentum,
    )
    return {"kernel": w, "bias": b}


def assert_update(task, update, expected):
    actual = task.unravel(update)["Dense_0"]
    for name in expected:
        np.testing.assert_allclose(actual[name], expected[name], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("momentum", [0.0, 0.8])
@pytest.mark.parametrize("how", [{"steps": 4}, {"epochs": 4}])
def test_full_batch_steps_with_momentum(softmax, start, momentum, how):
    client = local_sgd(softmax, 0.3, None, momentum=momentum, **how)
    update, state, info = train(client, client_data(7, 9, EXAMPLES), params=start)
    assert_update(softmax, update, expected_update(softmax, start, LABELS, 4, 0.3, momentum))
    assert state == ()
    rows = sorted(owned(7))
    first = softmax.loss(start, {"x": FEATURES[rows], "y": LABELS[rows]})
    np.testing.assert_allclose(info["train_loss"], first, rtol=1e-5)


def squares(params, batch):
    """Half the mean squared distance to the examples: the gradient is params - mean."""
    losses = 0.5 * jnp.sum(jnp.square(params - batch["x"]), axis=1)
    return tasks.masked_mean(losses, batch["mask"])


SQUARES = Task(lambda key: jnp.zeros(2), squares, lambda p, x: x, lambda p: p)
SAME = {
    "x": jnp.tile(jnp.array([2.0, -1.0]), (POOL, 1))
}  # equal examples: their order is no matter


@pytest.mark.parametrize(
    ("count", "steps", "how"),
    [
        (3, 4, {"epochs": 2}),  # ceil(3 / 2) steps per epoch; the other clients make four
        (7, 8, {"epochs": 2}),
        (7, 3, {"steps": 3}),
        (1, 3, {"steps": 3}),
        (0, 0, {"epochs": 2}),
        (0, 0, {"steps": 3}),
    ],
)
@pytest.mark.parametrize("keep", [False, True])
def test_momentum_over_steps_and_rounds(count, steps, how, keep):
    client = local_sgd(SQUARES, 0.2, 2, momentum=0.7, keep_momentum=keep, **how)
    params, velocity = np.array([1.0, 1.0]), np.zeros(2)
    state = client.init(jnp.zeros(2))
    update = jax.jit(client.update)
    for round_number in range(3):
        before = params
        velocity = velocity if keep else np.zeros(2)
        for _ in range(steps):
            velocity = 0.7 * velocity + (params - np.array([2.0, -1.0]))
            params = params - 0.2 * velocity
        change, state, _ = update(
            jax.random.key(round_number), jnp.asarray(before), state, client_data(count, 8, SAME)
        )
        np.testing.assert_allclose(change, params - before, rtol=1e-5, atol=1e-6)
        if keep:
            np.testing.assert_allclose(state, velocity, rtol=1e-5, atol=1e-6)
        else:
            assert state == ()


@pytest.mark.parametrize("momentum", [0.0, 0.5])
def test_an_empty_client_does_not_move(softmax, start, momentum):
    for how in ({"steps": 2}, {"epochs": 2}):
        client = local_sgd(softmax, 0.3, 2, momentum=momentum, **how)
        update, _, info = train(client, client_data(0, 5, EXAMPLES), params=start)
        np.testing.assert_array_equal(update, 0)
        assert float(info["train_loss"]) == 0


# --- Poisons and objectives ----------------------------------------------------------------------


@pytest.mark.parametrize("how", [{"steps": 3}, {"epochs": 3}])
def test_poison_changes_every_batch(softmax, start, how):
    client = local_sgd(softmax, 0.3, None, poison=attacks.poisons.label_flip(3), **how)
    update, _, _ = train(client, client_data(7, 9, EXAMPLES), params=start)
    flipped = reference.label_flip(LABELS, 3).astype(np.int32)
    assert not np.array_equal(flipped, LABELS)
    assert_update(softmax, update, expected_update(softmax, start, flipped, 3, 0.3))


@pytest.mark.parametrize("how", [{"steps": 4}, {"epochs": 2}])
def test_poison_gets_a_new_key_in_each_step(how):
    seen = Task(
        init=lambda key: jnp.zeros(5),
        loss=lambda p, b: -p[0] - b["noise"] * p[1 + jax.lax.stop_gradient(p[0]).astype(int)],
        logits=lambda p, x: x,
        unravel=lambda p: p,
    )
    client = local_sgd(
        seen, 1.0, 4, poison=lambda key, batch: batch | {"noise": jax.random.normal(key)}, **how
    )
    noise = np.concatenate(
        [train(client, client_data(7, 8), s, jnp.zeros(5))[0][1:] for s in (0, 1)]
    )
    assert len(set(noise.tolist())) == 8


@pytest.mark.parametrize(
    ("clip", "expected"), [(10.0, [3.0, 4.0]), (5.0, [3.0, 4.0]), (1.0, [0.6, 0.8])]
)
def test_clipped_gradient_by_hand(clip, expected):
    """The gradient is always (-3, -4); the second velocity is 1.5 times the first."""
    slope = Task(
        init=lambda key: jnp.zeros(2),
        loss=lambda p, b: -jnp.array([3.0, 4.0]) @ p,
        logits=lambda p, x: p,
        unravel=lambda p: p,
    )
    client = local_sgd(slope, 0.1, 3, steps=2, momentum=0.5, clip_norm=clip)
    update, _, _ = train(client, client_data(7, 8), params=jnp.zeros(2))
    np.testing.assert_allclose(update, 0.1 * 2.5 * np.array(expected), rtol=1e-6)


def test_clipping_leaves_no_nan_at_a_zero_gradient():
    flat = RECORDER._replace(loss=lambda p, b: 0.0 * jnp.sum(p))
    update, _, _ = train(local_sgd(flat, 1.0, 3, clip_norm=0.5), client_data(7, 8))
    np.testing.assert_array_equal(update, 0)


def test_label_flip_needs_two_classes():
    with pytest.raises(ValueError, match="num_classes >= 2, got num_classes=1"):
        attacks.poisons.label_flip(1)


def test_objective_replaces_the_loss_and_knows_the_received_model():
    received = jnp.array([1.0, 3.0])

    def proximal(loss, start):
        np.testing.assert_array_equal(start, received)
        return lambda p, batch: loss(p, batch) + 2.0 * jnp.sum(jnp.square(p - start))

    client = local_sgd(SQUARES, 0.1, None, steps=3, objective=proximal)
    update, _, info = client.update(jax.random.key(0), received, (), client_data(5, 6, SAME))
    params = start = np.array([1.0, 3.0])
    for _ in range(3):
        params = params - 0.1 * (params - np.array([2.0, -1.0]) + 4 * (params - start))
    np.testing.assert_allclose(update, params - start, rtol=1e-5)
    np.testing.assert_allclose(info["train_loss"], 0.5 * (1 + 16), rtol=1e-6)


# --- Rounds, weights of examples, random losses, ids ---------------------------------------------


def test_a_schedule_starts_anew_in_each_round_and_a_round_schedule_does_not():
    """The gradient is 1 throughout: an update is minus the sum of the rates."""
    slope = Task(lambda key: jnp.zeros(1), lambda p, b: p[0], lambda p, x: p, lambda p: p)
    client = local_sgd(
        slope,
        lambda step: 0.1 / (1 + step),
        2,
        steps=2,
        round_schedule=lambda rounds: 0.5**rounds,
    )
    for rounds in range(3):
        data = client_data(7, 8)._replace(round=jnp.int32(rounds))
        update, _, _ = train(client, data, params=jnp.zeros(1))
        np.testing.assert_allclose(update, -(0.1 + 0.05) * 0.5**rounds, rtol=1e-6)


@pytest.mark.parametrize("how", [{"steps": 2}, {"epochs": 2}])
@pytest.mark.parametrize("batch_size", [3, None])
def test_a_mask_in_the_pool_weighs_the_examples(how, batch_size):
    weights = np.linspace(0.0, 1.5, POOL).astype(np.float32)
    pool = {"x": jnp.arange(POOL), "mask": jnp.asarray(weights)}
    data = client_data(7, 8, pool)
    unweighted = train(local_sgd(RECORDER, 1.0, batch_size, **how), client_data(7, 8))[0]
    update = train(local_sgd(RECORDER, 1.0, batch_size, **how), data)[0]
    used = uses(unweighted)
    expected = 4.0 ** np.arange(len(used)) @ used * weights
    np.testing.assert_allclose(update[1:], expected, rtol=1e-5)


@pytest.mark.parametrize("how", [{"steps": 3}, {"epochs": 3}])
@pytest.mark.parametrize("objective", [None, lambda loss, start: lambda p, b: 2 * loss(p, b)])
def test_a_random_loss_gets_a_new_key_in_each_step(how, objective):
    """Other draws, of batches and of poisons, stay what they are without it."""
    keys = []

    def poison(key, batch):
        return batch | {"noise": jax.random.normal(key)}

    def random(params, batch, key):
        step = jax.lax.stop_gradient(params[0]).astype(int)
        factor = 1.0 if objective is None else 0.5
        drawn = jax.random.normal(key) * params[1 + step] + batch["noise"] * params[4 + step]
        return -factor * (params[0] + drawn)

    task = Task(lambda key: jnp.zeros(7), None, None, lambda p: p)
    task = task._replace(
        loss=lambda p, b: random(p, b, jax.random.key(0)), training_loss=random, logits=record
    )
    for seed in (0, 1):
        client = local_sgd(task, 1.0, None, poison=poison, objective=objective, **how)
        noisy = train(client, client_data(5, 6), seed, jnp.zeros(7))[0]
        client = local_sgd(
            task._replace(training_loss=None), 1.0, None, poison=poison, objective=objective, **how
        )
        still = train(client, client_data(5, 6), seed, jnp.zeros(7))[0]
        assert noisy[0] == still[0] == 3
        np.testing.assert_allclose(noisy[4:], still[4:], rtol=1e-6)
        keys += [*np.asarray(noisy[1:4]).tolist(), *np.asarray(noisy[4:]).tolist()]
    assert len(set(keys)) == 12


@pytest.mark.parametrize("per_round", [None, 3])
def test_a_poison_knows_whose_batch_it_is(per_round):
    """In a run, in every round: each client's rows are its own, so the recorder tells who it was."""
    clients, own = 6, 2
    index = jnp.arange(POOL).reshape(clients, own)
    seen = []

    def poison(key, batch):
        jax.debug.callback(
            lambda x, c: seen.append((x.tolist(), int(c))), batch["x"], batch["client"]
        )
        return batch

    sim = fr.Simulation(
        task=RECORDER,
        client=local_sgd(RECORDER, 1.0, None, poison=poison),
        aggregator=fr.aggregators.mean(),
        clients_per_round=per_round,
    )
    data = fr.FederatedData({"x": jnp.arange(POOL)}, index, jnp.full(clients, own))
    state, _ = fr.run(sim, jax.random.key(0), data, 3)
    jax.block_until_ready(state)
    jax.effects_barrier()
    assert len(seen) == 3 * (per_round or clients)
    assert all(rows == [own * client, own * client + 1] for rows, client in seen)
    assert len({client for _, client in seen}) > 3


# --- Arguments -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("poison", "error", "message"),
    [
        (lambda key, batch: batch["x"], TypeError, "must return a batch"),
        (lambda key, batch: {"x": batch["x"]}, ValueError, r"\['mask'\] are missing"),
        (lambda key, batch: batch | {"x": batch["x"][:, None]}, ValueError, "shapes that it got"),
        (lambda key, batch: batch | {"x": batch["x"][:1]}, ValueError, "one common number"),
        (lambda key, batch: batch | {"mask": jnp.float32(1)}, ValueError, "shapes that it got"),
    ],
)
def test_what_a_poison_may_return(poison, error, message):
    with pytest.raises(error, match=message):
        train(local_sgd(RECORDER, 1.0, 3, poison=poison), client_data(5, 6))


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"learning_rate": lambda i: jnp.ones(2)}, ValueError, "the learning_rate .*shape"),
        ({"round_schedule": lambda i: jnp.ones(2)}, ValueError, "the round_schedule .*shape"),
        ({"epochs": 1, "stop": lambda p: p > 0}, ValueError, "the stop .*shape"),
        ({"objective": lambda loss, p: None}, TypeError, "what objective returns"),
    ],
)
def test_what_functions_may_return(arguments, error, message):
    client = local_sgd(RECORDER, **({"learning_rate": 0.1, "batch_size": 2} | arguments))
    with pytest.raises(error, match=message):
        train(client, client_data(5, 6))


def test_names_and_masks_in_the_pool():
    pool = {"x": jnp.arange(POOL)}
    with pytest.raises(ValueError, match=r"'client'.*rename"):
        train(local_sgd(RECORDER, 1.0, 3), client_data(5, 6, pool | {"client": jnp.arange(POOL)}))
    with pytest.raises(ValueError, match=r"one weight for each example.*\(12, 1\)"):
        train(local_sgd(RECORDER, 1.0, 3), client_data(5, 6, pool | {"mask": jnp.ones((POOL, 1))}))


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"learning_rate": optax.sgd(0.1)}, TypeError, "optimizer of optax"),
        ({"learning_rate": "0.1"}, TypeError, "learning_rate to be a number"),
        ({"learning_rate": np.array(-1.0)}, ValueError, "learning_rate > 0"),
        ({"learning_rate": jnp.ones(2)}, ValueError, "one number"),
        ({"momentum": np.array(1.5)}, ValueError, "momentum in"),
        ({"momentum": jnp.float32(float("nan"))}, ValueError, "momentum in"),
        ({"clip_norm": jnp.array(-1.0)}, ValueError, "clip_norm > 0"),
        ({"batch_size": 2.5}, ValueError, "batch_size to be a whole number"),
        ({"steps": 1.5}, ValueError, "steps to be a whole number"),
        ({"epochs": True}, TypeError, "epochs"),
        ({"keep_momentum": 1, "momentum": 0.5}, TypeError, "keep_momentum to be True or False"),
        ({"keep_momentum": True, "momentum": np.array(0.0)}, ValueError, "set momentum > 0"),
        ({"poison": 3}, TypeError, "poison to be a function"),
        ({"objective": 3}, TypeError, "objective to be a function"),
        ({"stop": 3, "epochs": 2}, TypeError, "stop to be a function"),
        ({"round_schedule": 0.5}, TypeError, "round_schedule to be a function"),
        ({"stop": lambda p: False}, ValueError, "give epochs"),
        ({"task": record}, TypeError, "task to be a Task"),
    ],
)
def test_more_bad_arguments(arguments, error, message):
    good = {"task": RECORDER, "learning_rate": 0.1, "batch_size": 2}
    with pytest.raises(error, match=message):
        local_sgd(**(good | arguments))


def test_equal_arguments_give_the_same_client():
    assert local_sgd(RECORDER, 0.1, 2, steps=3) is local_sgd(RECORDER, 0.1, 2, steps=3)
    assert local_sgd(RECORDER, 0.1, 2, steps=3) is not local_sgd(RECORDER, 0.1, 2, steps=2)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"learning_rate": 0.0}, "learning_rate > 0, got learning_rate=0.0"),
        ({"learning_rate": -1}, "learning_rate > 0, got learning_rate=-1"),
        ({"learning_rate": float("nan")}, "learning_rate > 0 and finite, got learning_rate=nan"),
        ({"momentum": 1.0}, r"momentum in \[0, 1\), got momentum=1.0"),
        ({"momentum": -0.1}, r"momentum in \[0, 1\), got momentum=-0.1"),
        ({"batch_size": 0}, "batch_size >= 1, got batch_size=0; None means"),
        ({"steps": 0}, "steps=0"),
        ({"epochs": 0}, "epochs=0"),
        ({"steps": 2, "epochs": 3}, "steps or epochs, got steps=2 and epochs=3"),
        ({"keep_momentum": True}, "set momentum > 0"),
        ({"clip_norm": 0.0}, "clip_norm > 0, got clip_norm=0.0; None means"),
    ],
)
def test_bad_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        local_sgd(RECORDER, **({"learning_rate": 0.1, "batch_size": 2} | arguments))
