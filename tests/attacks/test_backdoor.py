"""Triggers, backdoored copies of malicious clients' data, and the Scaling attack as a whole."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference as ref

from fedjax_robust import metrics
from fedjax_robust.aggregators import mean
from fedjax_robust.attacks import scaling
from fedjax_robust.attacks.backdoors import (
    FLTRUST_CIFAR_PIXELS,
    FLTRUST_MNIST_PIXELS,
    add_backdoored_copies,
    feature_trigger,
    pixel_trigger,
    triggered,
)
from fedjax_robust.clients.local import local_sgd
from fedjax_robust.data import from_owner, stack
from fedjax_robust.engine.round import init, step
from fedjax_robust.models.small import SoftmaxRegression
from fedjax_robust.tasks import classification
from fedjax_robust.types import FederatedData, Simulation

# --- Triggers ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("pixels", "shape", "picture"),
    [
        # Drawn by hand: the last five rows and columns of MNIST; rows 0-6, columns 26-31 of CIFAR-10.
        (
            FLTRUST_MNIST_PIXELS,
            (28, 28, 1),
            {(23, 23): [".....", "...#.", "..#..", ".#.#.", "....."]},
        ),
        (
            FLTRUST_CIFAR_PIXELS,
            (32, 32, 3),
            {
                (0, 26): [
                    "......",
                    "..###.",
                    "...#..",
                    "..#...",
                    "...#..",
                    "..###.",
                    "......",
                ]
            },
        ),
    ],
    ids=["mnist", "cifar"],
)
def test_pixels_of_fltrust(pixels, shape, picture):
    x = np.full((2, *shape), 0.25, np.float32)
    ((top, left),) = picture
    expected = x.copy()
    for i, line in enumerate(picture[top, left]):
        for j, mark in enumerate(line):
            if mark == "#":
                expected[:, top + i, left + j] = 1
    for trigger in (pixel_trigger(pixels), jax.jit(pixel_trigger(pixels))):
        np.testing.assert_array_equal(trigger(jnp.asarray(x)), expected)
    np.testing.assert_array_equal(ref.pixel_trigger(x, pixels, 1.0), expected)
    assert np.all(x == 0.25)


def test_pixel_trigger_by_hand():
    x = jnp.arange(12.0).reshape(1, 2, 3, 2)
    y = pixel_trigger([(1, 2), (0, 0)], value=-1)(x)
    np.testing.assert_array_equal(y.ravel(), [-1, -1, 2, 3, 4, 5, 6, 7, 8, 9, -1, -1])


def test_feature_trigger():
    np.testing.assert_array_equal(
        feature_trigger(every=3, value=-1.0)(jnp.arange(8.0)[None]), [[0, 1, -1, 3, 4, -1, 6, 7]]
    )
    x = np.ones((2, 561), np.float32)
    y = np.asarray(feature_trigger()(x))
    assert np.all(x == 1)
    np.testing.assert_array_equal(np.flatnonzero(y[1] == 0), np.arange(19, 561, 20))
    assert np.sum(y[0] == 0) == 28
    np.testing.assert_array_equal(y, ref.feature_trigger(x, 20, 0.0))


def test_triggers_refuse():
    for pixels in ([], [(1, -1)], [(1, 2, 3)]):
        with pytest.raises(ValueError, match=r"\(row, column\) pairs >= 0"):
            pixel_trigger(pixels)
    trigger = pixel_trigger(FLTRUST_MNIST_PIXELS)
    with pytest.raises(ValueError, match=r"got shape \(28, 28, 1\)"):
        trigger(jnp.zeros((28, 28, 1)))
    for shape in ((1, 26, 28, 1), (1, 28, 26, 1)):
        with pytest.raises(ValueError, match=r"up to \(26, 26\) do not lie in"):
            trigger(jnp.zeros(shape))
    trigger(jnp.zeros((1, 27, 27, 1)))
    with pytest.raises(ValueError, match="every >= 1, got every=0"):
        feature_trigger(0)
    for shape in ((1, 19), (561,)):
        with pytest.raises(ValueError, match="F >= 20"):
            feature_trigger()(jnp.zeros(shape))


def test_triggered_keeps_the_true_labels():
    test = {"x": jnp.ones((2, 4)), "y": jnp.array([3, 0]), "user": jnp.array([7, 8])}
    changed = triggered(test, feature_trigger(every=2))
    np.testing.assert_array_equal(changed["x"], [[1, 0, 1, 0]] * 2)
    assert changed["y"] is test["y"] and changed["user"] is test["user"]
    assert np.all(test["x"] == 1)


# --- Copies ------------------------------------------------------------------------------------------

POOL = {
    "x": np.arange(12, dtype=np.float32).reshape(6, 2),
    "y": np.array([0, 1, 2, 0, 1, 2], np.int32),
    "user": np.array([5, 5, 6, 6, 7, 7], np.int32),
}


def second_to_minus_one(x):
    return x.at[:, 1].set(-1)


def test_copies_by_hand():
    # Client 0 owns rows 1 and 4, client 1 row 3, client 2 rows 0, 2 and 5.
    data = from_owner(POOL, np.array([2, 0, 2, 1, 0, 2]), 3)
    new = add_backdoored_copies(data, 2, second_to_minus_one, 2)
    np.testing.assert_array_equal(new.count, [4, 2, 3])
    # Copies of rows 1, 3, 4 are rows 6, 7, 8.
    assert new.index.shape == (3, 4)
    np.testing.assert_array_equal(new.index[0], [1, 4, 6, 8])
    np.testing.assert_array_equal(new.index[1, :2], [3, 7])
    np.testing.assert_array_equal(new.index[2, :3], [0, 2, 5])
    x = [[0, 1], [2, 3], [4, 5], [6, 7], [8, 9], [10, 11], [2, -1], [6, -1], [8, -1]]
    np.testing.assert_array_equal(new.examples["x"], x)
    np.testing.assert_array_equal(new.examples["y"], [0, 1, 2, 0, 1, 2, 2, 2, 2])
    np.testing.assert_array_equal(new.examples["user"], [5, 5, 6, 6, 7, 7, 5, 6, 7])
    for old, fresh in zip(jax.tree.leaves(data), jax.tree.leaves(new), strict=True):
        assert old.dtype == fresh.dtype and isinstance(fresh, jax.Array)
    np.testing.assert_array_equal(data.count, [2, 1, 3])  # the argument is as it was


def test_width_is_not_more_than_needed():
    data = from_owner(POOL, np.array([0, 1, 1, 1, 1, 1]), 2)
    new = add_backdoored_copies(data, 1, second_to_minus_one, 0)
    np.testing.assert_array_equal(new.count, [2, 5])
    np.testing.assert_array_equal(new.index, [[0, 6, 0, 0, 0], [1, 2, 3, 4, 5]])


def owned(data, client):
    rows = data.index[client][: int(data.count[client])]
    return {name: np.asarray(values[rows]) for name, values in data.examples.items()}


def rule(x):
    return ref.feature_trigger(x, 2, -1.0)


def check_against_reference(data, new, malicious, target):
    for client in np.ndindex(data.count.shape):
        before, after = owned(data, client), owned(new, client)
        x, y = before["x"], before["y"]
        if client[-1] < malicious:
            x, y = ref.backdoored_copies(x, y, rule, target)
        np.testing.assert_array_equal(after["x"], x)
        np.testing.assert_array_equal(after["y"], y)


@pytest.mark.parametrize("malicious", [0, 1, 3, 5])
def test_clients_own_what_the_reference_says(malicious):
    """Also a client without examples, and padding that is not 0."""
    rng = np.random.default_rng(0)
    size = 40
    pool = {"x": rng.normal(size=(size, 4)).astype(np.float32), "y": rng.integers(0, 3, size)}
    parts = [from_owner(pool, rng.choice([0, 1, 3, 4], size), 5, capacity=30) for _ in range(3)]
    parts = [part._replace(examples=parts[0].examples) for part in parts]
    padding = np.arange(30) >= parts[0].count[:, None]
    parts[0] = parts[0]._replace(index=jnp.where(padding, 39, parts[0].index))
    trigger = feature_trigger(every=2, value=-1.0)
    for part in parts:
        new = add_backdoored_copies(part, malicious, trigger, 1)
        check_against_reference(part, new, malicious, 1)
        copies = int(part.count[:malicious].sum())
        assert len(new.examples["y"]) == size + copies

    stacked = stack(parts)
    new = add_backdoored_copies(stacked, malicious, trigger, 1)
    assert new.index.shape[:2] == new.count.shape == (3, 5)
    check_against_reference(stacked, new, malicious, 1)
    owners = [np.asarray(p.index[c][: int(p.count[c])]) for p in parts for c in range(malicious)]
    union = np.unique(np.concatenate(owners)) if owners else []
    assert len(new.examples["y"]) == size + len(union)


def test_copies_refuse():
    data = from_owner(POOL, np.array([2, 0, 2, 1, 0, 2]), 3)
    for c in (-1, 4):
        with pytest.raises(ValueError, match=f"num_malicious={c}"):
            add_backdoored_copies(data, c, second_to_minus_one, 0)
    for target in (-1, 3):
        with pytest.raises(ValueError, match=rf"target (in \[0, 2\]|>= 0).*got .*{target}"):
            add_backdoored_copies(data, 1, second_to_minus_one, target)
    with pytest.raises(ValueError, match=r"must return shape \(2, 2\), got \(2, 1\)"):
        add_backdoored_copies(data, 1, lambda x: x[:, :1], 0)


# --- The attack --------------------------------------------------------------------------------------


@pytest.mark.parametrize("scale", [0, -1.0, float("nan")])
def test_scaling_refuses(scale):
    with pytest.raises(ValueError, match="scale > 0"):
        scaling(scale)


def test_one_round_of_the_scaling_attack():
    """Three clients with full batches of softmax regression, averaged, against NumPy."""
    rng = np.random.default_rng(1)
    pool = {
        "x": rng.normal(size=(9, 4)).astype(np.float32),
        "y": rng.integers(0, 3, 9).astype(np.int32),
    }
    pool["y"][:3] = [0, 1, 2]
    clean = from_owner(pool, np.arange(9) % 3, 3)
    data = add_backdoored_copies(clean, 1, feature_trigger(every=2, value=-1.0), 2)
    task = classification(SoftmaxRegression(3), jnp.zeros((1, 4)))
    sim = Simulation(
        task=task,
        client=local_sgd(task, 0.5, None),
        aggregator=mean(),
        attack=scaling(3.0),
        num_malicious=1,
    )
    state = init(sim, jax.random.key(0), data)
    after, _ = step(sim, state, data)

    dense = {name: np.asarray(v) for name, v in task.unravel(state.params)["Dense_0"].items()}
    updates = []
    for client in range(3):
        part = owned(clean, client)
        x, y = part["x"], part["y"]
        if client == 0:
            x, y = ref.backdoored_copies(x, y, rule, 2)
        residual = np.stack([ref.softmax(r) for r in x @ dense["kernel"] + dense["bias"]])
        residual[np.arange(len(y)), y] -= 1
        gradient = {"bias": residual.mean(axis=0), "kernel": x.T @ residual / len(y)}
        updates.append(np.concatenate([gradient["bias"], gradient["kernel"].ravel()]) * -0.5)
    received = ref.scaling(np.array(updates), np.arange(3) < 1, 3.0)
    change = task.unravel(after.params - state.params)["Dense_0"]
    flat = np.concatenate([change["bias"], np.ravel(change["kernel"])])
    np.testing.assert_allclose(flat, received.mean(axis=0), rtol=1e-4, atol=1e-6)


def test_the_backdoor_is_learned():
    """Under plain averaging; without scaling and copies the same model has no backdoor."""
    rng = np.random.default_rng(2)
    y = rng.integers(0, 3, 600).astype(np.int32)
    x = (2 * np.eye(3, 6)[y] + 0.3 * rng.normal(size=(600, 6))).astype(np.float32)
    pool, test = {"x": x[:400], "y": y[:400]}, {"x": x[400:], "y": y[400:]}
    clean = from_owner(pool, np.arange(400) % 10, 10)
    trigger = feature_trigger(every=6, value=3.0)
    task = classification(SoftmaxRegression(3), jnp.zeros((1, 6)))
    evaluate = metrics.attack_success(task, triggered(test, trigger), 0)

    def success(data: FederatedData, **attack):
        sim = Simulation(task, local_sgd(task, 0.1, 16), mean(), **attack)
        state = init(sim, jax.random.key(0), data)
        advance = jax.jit(lambda state: step(sim, state, data)[0])
        for _ in range(40):
            state = advance(state)
        return float(evaluate(state.params)["attack_success"])

    assert success(clean) < 0.1
    attacked = add_backdoored_copies(clean, 1, trigger, 0)
    assert success(attacked, attack=scaling(10.0), num_malicious=1) > 0.9
