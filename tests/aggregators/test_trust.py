"""FLTrust and its variants. ``test_rules.py`` holds what they share with all rules."""

from __future__ import annotations

import functools
import re
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference as ref

from fedjax_robust import classification, data, engine, local_sgd, metrics, models
from fedjax_robust.aggregators import (
    fltrust,
    fltrust_no_norm,
    fltrust_no_relu,
    fltrust_par_norm,
    fltrust_server,
    fltrust_with_server,
    mean,
    server_update,
    trusted_mean,
)
from fedjax_robust.tasks import masked_mean
from fedjax_robust.types import Aggregator, Attack, Client, Received, Simulation, Task

N, D = 12, 5
RULES = {
    "fltrust": (fltrust, ref.fltrust),
    "server": (fltrust_server, ref.fltrust_server),
    "with_server": (fltrust_with_server, ref.fltrust_with_server),
    "no_relu": (fltrust_no_relu, ref.fltrust_no_relu),
    "no_norm": (fltrust_no_norm, ref.fltrust_no_norm),
    "par_norm": (fltrust_par_norm, ref.fltrust_par_norm),
}
every_rule = pytest.mark.parametrize("name", RULES)
ROOT = {"x": np.zeros((3, 2), np.float32), "y": np.zeros(3, np.int32)}
SOME_ABSENT = np.array([1, 0, 2, 0.5, 1, 1, 1, 3, 1, 1, 0.25, 1], np.float32)

SERVER = np.array([3, 4], np.float32)  # of length 5
ROWS = np.array([[6, 8], [2.5, 0], [0, 10], [-3, 0]], np.float32)  # cosines 1, 0.6, 0.8, -0.6


def sends(vector: jax.Array) -> Client:
    """Its update is ``vector``, its state the number of its rounds."""
    return Client(
        lambda params: jnp.int32(0),
        lambda key, params, state, data: (jnp.asarray(vector, params.dtype), state + 1, {}),
    )


@functools.cache
def compiled(name: str) -> Callable:
    """updates, weights, g_0 -> aggregate, state, info."""

    def call(updates: jax.Array, weights: jax.Array, g_0: jax.Array) -> tuple:
        rule = RULES[name][0](sends(g_0), ROOT)
        n, d = updates.shape
        params = jnp.zeros(d, updates.dtype)
        received = Received(updates, weights, jnp.arange(n), params, jax.random.key(0))
        return rule.aggregate(received, rule.init(n, params))

    return jax.jit(call)


@functools.cache
def gradient(name: str) -> Callable:
    call = compiled(name)
    return jax.jit(jax.grad(lambda x, w, g_0, along: jnp.vdot(call(x, w, g_0)[0], along)))


def apply(name: str, x: np.ndarray, g_0: np.ndarray, weights: np.ndarray | None = None):
    weights = np.ones(len(x), np.float32) if weights is None else weights
    return np.asarray(compiled(name)(x, weights, g_0)[0])


def slopes(name: str, x: np.ndarray, g_0: np.ndarray, weights: np.ndarray | None = None):
    weights = np.ones(len(x), np.float32) if weights is None else weights
    along = np.arange(1, x.shape[1] + 1, dtype=x.dtype)
    return np.asarray(gradient(name)(x, weights, g_0, along))


def assert_close(actual: np.ndarray, expected: np.ndarray, tolerance: float, what: str) -> None:
    """Relative to the largest entry."""
    scale = np.max(np.abs(expected), initial=0.0)
    np.testing.assert_allclose(
        np.asarray(actual, np.float64), expected, rtol=0, atol=tolerance * scale, err_msg=what
    )


# --- Values ----------------------------------------------------------------------------------------

# Rescaled rows: (3, 4), (5, 0), (0, 5), (-5, 0); scores sum to 2.4, and to 1.8 without ReLU.
BY_HAND = {
    "fltrust": [2.5, 10 / 3],  # (3 + 3, 4 + 4) / 2.4
    "server": [3, 4],
    "with_server": [45 / 17, 60 / 17],  # (6 + 3, 8 + 4) / 3.4
    "no_relu": [5, 40 / 9],  # (6 + 3, 8) / 1.8
    "no_norm": [3.125, 20 / 3],  # (6 + 1.5, 8 + 8) / 2.4
    "par_norm": [1.875, 10 / 3],  # (3 + 1.5, 4 + 4) / 2.4: (2.5, 0) is not lengthened
}


@every_rule
def test_by_hand(name: str) -> None:
    np.testing.assert_allclose(RULES[name][1](ROWS, SERVER), BY_HAND[name], rtol=1e-12)
    result, state, info = compiled(name)(ROWS, np.ones(4, np.float32), SERVER)
    np.testing.assert_allclose(result, BY_HAND[name], rtol=1e-6)
    assert state == 1
    trust = {"server": [0, 0, 0, 0], "no_relu": [1, 0.6, 0.8, -0.6]}.get(name, [1, 0.6, 0.8, 0])
    np.testing.assert_allclose(info["trust"], trust, rtol=1e-6)
    np.testing.assert_array_equal(info["selected"], np.array(trust) != 0)
    assert info["selected"].dtype == bool


def test_kernel_by_hand() -> None:
    present = np.array([True, True, False, True])
    rows = ROWS.copy()
    rows[2] = np.nan
    result, trust = trusted_mean(jnp.asarray(rows), jnp.asarray(present), jnp.asarray(SERVER))
    np.testing.assert_allclose(trust, [1, 0.6, 0, 0], rtol=1e-6)
    np.testing.assert_allclose(result, [3.75, 2.5], rtol=1e-6)  # (3 + 3, 4) / 1.6


@every_rule
def test_equals_the_reference_on_nasty_matrices(name: str) -> None:
    reference = RULES[name][1]
    for dtype, tolerance in ((np.float32, 1e-5), (np.float64, 1e-12)):
        with jax.enable_x64(dtype == np.float64):
            for seed in range(3):
                rng = np.random.default_rng(seed)
                g_0 = (0.5 + rng.normal(size=D)).astype(dtype)
                for what, x in ref.nasty_matrices(N, D, rng).items():
                    for w in (np.ones(N, np.float32), SOME_ABSENT):
                        result = apply(name, x.astype(dtype), g_0, w)
                        assert result.dtype == dtype and np.all(np.isfinite(result)), what
                        scores = ref.fltrust_cosines(x, g_0, w)
                        if name == "no_relu":  # a sum that cancels is as exact as its terms
                            ratio = np.sum(np.abs(scores)) / max(abs(np.sum(scores)), 1e-12)
                            if ratio > 30:
                                continue
                        assert_close(result, reference(x, g_0, w), tolerance, what)


@every_rule
def test_only_trust_weighs_rows_and_absent_rows_do_not_matter(name: str) -> None:
    weights = np.array([1, 7, 0.1, 1], np.float32)
    np.testing.assert_array_equal(apply(name, ROWS, SERVER, weights), apply(name, ROWS, SERVER))
    for bad in (np.nan, np.inf, -np.inf):
        rows = np.insert(ROWS, 1, [1, bad], axis=0)
        result, _, info = compiled(name)(rows, np.ones(5, np.float32), SERVER)
        np.testing.assert_allclose(result, BY_HAND[name], rtol=1e-6)
        assert info["trust"][1] == 0 and not info["selected"][1]
    for weight in (0, -1, np.nan):
        rows = np.insert(ROWS, 1, [1e3, 1e3], axis=0)
        weights = np.array([1, weight, 1, 1, 1], np.float32)
        np.testing.assert_allclose(apply(name, rows, SERVER, weights), BY_HAND[name], rtol=1e-6)
        assert np.all(slopes(name, rows, SERVER, weights)[1] == 0)
    nobody = SERVER if name in {"server", "with_server"} else [0, 0]
    np.testing.assert_array_equal(apply(name, ROWS, SERVER, np.zeros(4, np.float32)), nobody)


def test_rows_that_nobody_trusts_do_not_move_the_model() -> None:
    """A plain mean would."""
    against = np.array([[-3, -4], [-1, 0], [0, -7], [4, -3]], np.float32)  # the last: cosine 0
    for name in ("fltrust", "no_norm", "par_norm"):
        np.testing.assert_array_equal(apply(name, against, SERVER), [0, 0])
        assert np.all(np.isfinite(slopes(name, against, SERVER)))
    np.testing.assert_allclose(apply("with_server", against, SERVER), SERVER, rtol=1e-6)
    # Without ReLU and with the plain formula, -1 * (-3, -4) / -1: the model follows them.
    np.testing.assert_allclose(apply("no_relu", against[:1], SERVER), [-3, -4], rtol=1e-6)
    # Scores that sum to 0.
    cancel = np.array([[6, 8], [-3, -4]], np.float32)
    np.testing.assert_array_equal(apply("no_relu", cancel, SERVER), [0, 0])
    assert np.all(np.isfinite(slopes("no_relu", cancel, SERVER)))


@every_rule
@pytest.mark.parametrize(
    "g_0", [[0, 0], [np.nan, 1], [np.inf, 1], [3e38, 3e38]], ids=["0", "nan", "inf", "too long"]
)
def test_a_server_update_of_no_use(name: str, g_0: list[float]) -> None:
    """It counts as zero, and the model stays."""
    g_0 = np.array(g_0, np.float32)
    np.testing.assert_array_equal(apply(name, ROWS, g_0), [0, 0])
    assert np.all(np.isfinite(slopes(name, ROWS, g_0)))


@every_rule
def test_zero_rows_count_for_nothing(name: str) -> None:
    rows = np.insert(ROWS, 2, 0, axis=0)
    np.testing.assert_allclose(apply(name, rows, SERVER), BY_HAND[name], rtol=1e-6)
    found = slopes(name, rows, SERVER)
    assert np.all(np.isfinite(found)) and np.all((found[2] == 0) | (name == "no_norm"))


@pytest.mark.parametrize("name", ["fltrust", "with_server", "no_relu"])
@pytest.mark.parametrize("row", range(4))
def test_rows_lengths_do_not_matter(name: str, row: int) -> None:
    """Nor do they overflow or underflow; the slope along a row of k times the length is 1 / k of it."""
    expected = slopes(name, ROWS, SERVER)
    for scale in (1e-30, 1e-3, 1e30, 1e35):
        rows = ROWS.copy()
        rows[row] *= np.float32(scale)
        np.testing.assert_allclose(apply(name, rows, SERVER), BY_HAND[name], rtol=1e-5)
        found = slopes(name, rows, SERVER)
        found = np.where(np.arange(4)[:, None] == row, scale, 1.0) * found
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("name", ["no_norm", "par_norm"])
def test_variants_whose_rows_keep_their_lengths(name: str) -> None:
    for row in range(4):
        for scale in (1e-30, 1e30, 3e37):
            rows = ROWS.copy()
            rows[row] *= np.float32(scale)
            expected = RULES[name][1](rows, SERVER)
            assert_close(apply(name, rows, SERVER), expected, 1e-5, f"{row} {scale}")
    short = ROWS * np.float32(1e-20)
    assert_close(apply(name, short, SERVER), np.array([3.125e-20, 2e-19 / 3]), 1e-5, "all short")


@every_rule
def test_extreme_rows_have_finite_slopes(name: str) -> None:
    for value in (0, 1e-30, 1e-36, 1e-42, 1e30, 3e38):
        rows = ROWS.copy()
        rows[1] = [value, value / 3]
        assert np.all(np.isfinite(apply(name, rows, SERVER))), value
        if name != "no_norm" or value < 1e38:  # there the others' slopes are beyond float32
            assert np.all(np.isfinite(slopes(name, rows, SERVER))), value


def test_the_server_may_send_little_or_much() -> None:
    for scale in (1e-25, 1e25):
        result = apply("fltrust", ROWS, np.float32(scale) * SERVER)
        np.testing.assert_allclose(result, scale * np.array(BY_HAND["fltrust"]), rtol=1e-5)


# --- Gradients -------------------------------------------------------------------------------------


@pytest.mark.parametrize("what", ["updates", "g_0"])
def test_the_kernels_gradients_equal_finite_differences(what: str) -> None:
    with jax.enable_x64(True):
        rng = np.random.default_rng(3)
        x, g_0, along = 0.3 + rng.normal(size=(N, D)), 0.5 + rng.normal(size=D), rng.normal(size=D)
        assert 2 < np.sum(ref.fltrust_scores(x, g_0) == 0) < N - 2  # both sides of the ReLU
        assert np.min(np.abs(ref.fltrust_cosines(x, g_0))) > 1e-3  # and nothing on it

        def reference(x: np.ndarray, g_0: np.ndarray) -> float:
            return float(ref.fltrust(x, g_0, SOME_ABSENT) @ along)

        argument = 0 if what == "updates" else 1
        found = np.asarray(
            jax.grad(
                lambda *a: jnp.vdot(
                    trusted_mean(a[0], jnp.asarray(SOME_ABSENT > 0), a[1])[0], along
                ),
                argument,
            )(jnp.asarray(x), jnp.asarray(g_0))
        )
        expected = np.zeros_like(found)
        for j in np.ndindex(found.shape):
            step = np.zeros_like(found)
            step[j] = 1e-6
            ends = [(x + s * step, g_0) if argument == 0 else (x, g_0 + s * step) for s in (1, -1)]
            expected[j] = (reference(*ends[0]) - reference(*ends[1])) / 2e-6
        np.testing.assert_allclose(found, expected, rtol=0, atol=1e-8)
        assert np.max(np.abs(found)) > 0.01


@pytest.mark.parametrize("name", RULES)
def test_every_rules_gradient_equals_finite_differences(name: str) -> None:
    with jax.enable_x64(True):
        along = np.array([1.0, 2.0])
        x, g_0 = ROWS.astype(np.float64) + 0.125, SERVER.astype(np.float64)
        expected = np.zeros_like(x)
        for j in np.ndindex(x.shape):
            step = np.zeros_like(x)
            step[j] = 1e-6
            change = RULES[name][1](x + step, g_0) - RULES[name][1](x - step, g_0)
            expected[j] = change @ along / 2e-6
        np.testing.assert_allclose(slopes(name, x, g_0), expected, rtol=0, atol=1e-7)


# --- The server's training -------------------------------------------------------------------------


def squares(params: jax.Array, batch: dict) -> jax.Array:
    """Half the mean squared distance to the examples: the gradient is params - mean."""
    losses = 0.5 * jnp.sum(jnp.square(params - batch["x"]), axis=1)
    return masked_mean(losses, batch["mask"])


SQUARES = Task(lambda key: jnp.zeros(2), squares, lambda p, x: x, lambda p: p)
EXAMPLES = {  # mean (3, 4)
    "x": np.array([[1, 2], [3, 2], [5, 8]], np.float32),
    "y": np.zeros(3, np.int32),
}


def test_the_server_trains_on_the_whole_root_from_the_model_sent_out() -> None:
    train = server_update(local_sgd(SQUARES, 0.5, None), EXAMPLES)
    g_0, state = train(jax.random.key(0), jnp.array([1.0, -2.0]), ())
    np.testing.assert_allclose(g_0, [1, 3], rtol=1e-6)  # half of (3, 4) - (1, -2)
    assert state == ()
    rule = fltrust_server(local_sgd(SQUARES, 0.5, None), EXAMPLES)
    np.testing.assert_allclose(rule(ROWS, params=jnp.array([1.0, -2.0])), [1, 3], rtol=1e-6)
    # g_0 = 0.5 * (3, 4): half of everything in BY_HAND.
    rule = fltrust(local_sgd(SQUARES, 0.5, None), EXAMPLES)
    np.testing.assert_allclose(rule(ROWS), np.array(BY_HAND["fltrust"]) / 2, rtol=1e-6)


def test_the_rounds_key_draws_the_servers_batch() -> None:
    rule = fltrust_server(local_sgd(SQUARES, 1.0, batch_size=1), EXAMPLES)
    keys = jax.random.split(jax.random.key(0), 30)
    drawn = np.asarray(jax.jit(jax.vmap(lambda key: rule(ROWS, key=key)))(keys))
    assert {tuple(row) for row in drawn} == {(1, 2), (3, 2), (5, 8)}
    np.testing.assert_array_equal(rule(ROWS, key=keys[0]), drawn[0])


def test_the_clients_state_is_the_rules_state() -> None:
    """Momentum 0.5, kept: at (0, 0) the gradient is -(3, 4), so v = -(3, 4), then -1.5 (3, 4)."""
    rule = fltrust_server(local_sgd(SQUARES, 0.5, None, momentum=0.5, keep_momentum=True), EXAMPLES)
    params = jnp.zeros(2)
    received = Received(jnp.asarray(ROWS), jnp.ones(4), jnp.arange(4), params, jax.random.key(0))
    state = rule.init(4, params)
    np.testing.assert_array_equal(state, [0, 0])
    result, state, _ = rule.aggregate(received, state)
    np.testing.assert_allclose(result, [1.5, 2])
    np.testing.assert_allclose(state, [-3, -4])
    result, state, _ = rule.aggregate(received, state)
    np.testing.assert_allclose(result, [2.25, 3])
    np.testing.assert_allclose(state, [-4.5, -6])


@pytest.mark.parametrize(
    ("root", "message"),
    [
        (
            {"x": np.zeros((0, 2)), "y": np.zeros(0, int)},
            "at least 1, got shapes {'x': (0, 2), 'y': (0,)}; data.root_set draws",
        ),
        (
            {"x": np.zeros((3, 2)), "y": np.zeros(2, int)},
            "one common number of examples, at least 1, got shapes {'x': (3, 2), 'y': (2,)}",
        ),
        ({}, "needs examples with 'x', 'y', got nothing"),
        ({"x": np.zeros((3, 2))}, "needs examples with 'x', 'y', got 'x'"),
        (ROOT | {"y": np.zeros((3, 1), int)}, "one integer for each example, got shape (3, 1)"),
        (ROOT | {"y": np.zeros(3)}, "labels y that are integers 0, 1, 2, ..."),
        (ROOT | {"y": np.array([0, 1, -1])}, "needs labels >= 0, got labels from -1 to 1"),
        (ROOT | {"mask": np.ones(3)}, "may not have a mask"),
        (ROOT | {"token_mask": np.ones(3)}, "may not have a token_mask"),
    ],
)
@every_rule
def test_the_root_is_checked(name: str, root: dict, message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        RULES[name][0](sends(SERVER), root)


@every_rule
def test_a_root_that_the_servers_client_cannot_train_on(name: str) -> None:
    """Its labels are compared with the model's classes, its inputs with the model's."""
    rows, params = jnp.zeros((3, 36)), jnp.zeros(36)  # 4 classes of 8 features
    x = np.zeros((3, 8), np.float32)
    for batch_size in (None, 2):
        client = local_sgd(TASK, 0.1, batch_size)
        for root, message in [
            ({"x": x, "y": np.array([0, 3, 4])}, "labels in 0 .. 3, got labels from 0 to 4"),
            ({"x": x[:, :7], "y": np.zeros(3, int)}, "got x of shape (3, 7)"),
        ]:
            rule = RULES[name][0](client, root)
            with pytest.raises(ValueError, match=re.escape(message)) as caught:
                jax.jit(lambda x, rule=rule: rule(x, params=params))(rows)
            assert RULES[name][0].__name__ + " needs root data" in str(caught.value)
        good = RULES[name][0](client, {"x": x, "y": np.array([0, 3, 1])})
        assert np.all(np.isfinite(good(rows, params=params)))


def test_the_server_is_checked() -> None:
    with pytest.raises(TypeError, match="fltrust needs client to be a Client, got the function"):
        fltrust(local_sgd, ROOT)
    with pytest.raises(TypeError, match="fltrust needs examples by name"):
        fltrust(sends(SERVER), np.zeros((3, 2)))
    rule = fltrust(sends(jnp.ones(3)), ROOT)
    with pytest.raises(ValueError, match=r"client of fltrust must return shape \(2,\), got \(3,\)"):
        rule(ROWS)


@pytest.mark.parametrize("scale", [1e-30, 1e-20, 1e20, 1e30, 8e37])
def test_the_kernel_at_any_scale(scale: float) -> None:
    """|g_0| may be beyond the largest float, 3.4e38, where the aggregate is not."""
    rng = np.random.default_rng(1)
    for seed in range(5):
        x = (0.5 + rng.normal(size=(N, D))) * 10.0 ** rng.integers(-28, 30, (N, 1))
        x = x.astype(np.float32)
        g_0 = (scale * np.array([1, 3, 4, 2, 3.5])).astype(np.float32)  # 8e37: length 5.1e38
        present = rng.random(N) < 0.8
        result, trust = trusted_mean(jnp.asarray(x), jnp.asarray(present), jnp.asarray(g_0))
        weights = present.astype(float)
        expected = ref.fltrust(x, g_0, weights)
        assert np.max(np.abs(expected)) < 3.4e38
        assert_close(result, expected, 1e-5, f"{seed}")
        np.testing.assert_allclose(trust, ref.fltrust_scores(x, g_0, weights), atol=1e-6)
        slope = jax.grad(lambda x, g=g_0, p=present: jnp.sum(trusted_mean(x, p, g)[0]) / scale)
        assert np.all(np.isfinite(slope(jnp.asarray(x))[np.abs(x).max(axis=1) > 1e-8]))


def test_the_kernel_refuses_other_shapes() -> None:
    for arguments, message in [
        ((ROWS, np.ones(3, bool), SERVER), r"present of shape \(n,\) = \(4,\), got shape \(3,\)"),
        ((ROWS, np.ones(4, bool), SERVER[:1]), r"g_0 of shape \(d,\) = \(2,\), got shape \(1,\)"),
        ((ROWS[0], np.ones(4, bool), SERVER), "updates"),
    ]:
        with pytest.raises(ValueError, match=message):
            trusted_mean(*arguments)
    with pytest.raises(TypeError, match="present of bool"):
        trusted_mean(ROWS, np.ones(4), SERVER)


# --- In a simulation -------------------------------------------------------------------------------

DATASET = data.synthetic(jax.random.key(1), num_classes=4, num_features=8, num_train=640)
TASK = classification(models.SoftmaxRegression(4), DATASET.train["x"][:1])
ROOT_SET, REST = data.root_set(jax.random.key(2), DATASET.train, size=40)
PARTS = data.iid(jax.random.key(3), REST, 10)
CLIENT = local_sgd(TASK, 0.1, batch_size=16)
TRAINER = local_sgd(TASK, 0.1 * 40 / 16, batch_size=None)


def run(rule: Aggregator, boost: jax.Array, noise: jax.Array, key: jax.Array):
    """60 rounds; 4 of 10 clients send boost * what they should + noise."""

    def craft(view, state):
        random = jax.random.normal(view.key, view.updates.shape)
        return boost * view.updates + noise * random, state

    test_error, train = metrics.test_error(TASK, DATASET.test), server_update(TRAINER, ROOT_SET)

    def evaluate(params: jax.Array) -> dict[str, jax.Array]:
        g_0, _ = train(jax.random.key(0), params, ())  # a full batch: no key matters
        return test_error(params) | {"params": params, "g_0": g_0}

    sim = Simulation(TASK, CLIENT, rule, Attack(craft=craft), num_malicious=4)
    return engine.run(sim, key, PARTS, 60, evaluate=evaluate, evaluate_every=1)


def test_attackers_cannot_move_the_model_beyond_the_servers_update() -> None:
    boost, noise = jnp.array([-1e6, 1e6, 0]), jnp.array([0, 0, 1e6])
    keys = jax.random.split(jax.random.key(4), 3)

    def all_attacks(rule: Aggregator) -> dict[str, np.ndarray]:
        histories = jax.vmap(lambda *args: run(rule, *args)[1])(boost, noise, keys)
        return {name: np.asarray(values) for name, values in histories.items()}

    history = all_attacks(fltrust(TRAINER, ROOT_SET))
    moved = np.linalg.norm(np.diff(history["params"], axis=1), axis=2)
    assert moved.shape == (3, 59)
    # The model stays in a round in which nobody is trusted, and only then.
    np.testing.assert_array_equal(moved > 0, np.any(history["selected"][:, 1:], axis=2))
    assert np.mean(moved > 0) > 0.9
    assert np.all(moved <= np.linalg.norm(history["g_0"][:, :-1], axis=2) * (1 + 1e-4))
    assert np.all(history["test_error"][:, -1] < 0.15)  # blind guesses err at 0.75
    assert history["trust"].shape == (3, 60, 10)
    assert not np.any(history["selected"][0, :5, :4])  # whoever goes backwards
    assert np.all(history["selected"][:, :5, 4:])
    assert np.all(all_attacks(mean())["test_error"][[0, 2], -1] > 0.3)


def test_the_servers_state_advances_and_seeds_vmap() -> None:
    counting = Client(
        lambda params: jnp.int32(0),
        lambda key, params, state, data: (TRAINER.update(key, params, (), data)[0], state + 1, {}),
    )
    sim = Simulation(TASK, CLIENT, fltrust(counting, ROOT_SET))
    keys = jax.random.split(jax.random.key(5), 3)
    state, history = engine.run(sim, keys, PARTS, 7)
    np.testing.assert_array_equal(state.aggregator, [7, 7, 7])
    assert history["trust"].shape == (3, 7, 10)
    alone, _ = engine.run(sim, keys[1], PARTS, 7)
    assert alone.aggregator == 7
    np.testing.assert_allclose(state.params[1], alone.params, rtol=1e-4, atol=1e-5)


def test_vmap_over_the_servers_learning_rate() -> None:
    """Twice the rate, twice the aggregate: |g_0| is the length of every row."""
    updates = np.random.default_rng(0).normal(size=(6, TASK.init(jax.random.key(0)).size))
    updates = jnp.asarray(updates, jnp.float32)

    def aggregate(rate: jax.Array) -> jax.Array:
        return fltrust(local_sgd(TASK, rate, None), ROOT_SET)(updates)

    results = jax.jit(jax.vmap(aggregate))(jnp.array([0.1, 0.2]))
    assert np.max(np.abs(results[0])) > 0
    np.testing.assert_allclose(results[1], 2 * results[0], rtol=1e-4, atol=1e-7)
