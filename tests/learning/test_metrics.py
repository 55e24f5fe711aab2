"""Metrics against ``reference`` and by hand."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference as ref

from fedjax_robust import aggregators, metrics
from fedjax_robust.types import FederatedData, Received, Task

CLASSES, FEATURES, EXAMPLES = 4, 3, 23


def _linear(params: jax.Array, x: jax.Array) -> jax.Array:
    return x.reshape(x.shape[0], -1) @ params.reshape(FEATURES, CLASSES)


def _never(*args: object) -> jax.Array:
    raise AssertionError("metrics only need the logits")


TASK = Task(init=_never, loss=_never, logits=_linear, unravel=_never)
ORACLE = Task(init=_never, loss=_never, logits=lambda params, x: x, unravel=_never)
"""The examples are their own logits."""


def problem(seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """params (d,), x (E, features), y (E,), logits (E, classes)."""
    rng = np.random.default_rng(seed)
    params = rng.normal(size=FEATURES * CLASSES).astype(np.float32)
    x = rng.normal(size=(EXAMPLES, FEATURES)).astype(np.float32)
    y = rng.integers(0, CLASSES, size=EXAMPLES)
    return params, x, y, x @ params.reshape(FEATURES, CLASSES)


# Divisors of the number of examples and others, one chunk, and more room than examples.
CHUNKS = [1, 2, 5, 22, 23, 24, 1000]


@pytest.mark.parametrize("chunk", CHUNKS)
def test_all_rates_for_any_chunk(chunk: int) -> None:
    params, x, y, logits = problem()
    test, target = {"x": x, "y": y}, 2
    evaluate = jax.jit(
        metrics.together(
            metrics.test_error(TASK, test, chunk=chunk),
            metrics.per_class_error(TASK, test, CLASSES, chunk=chunk),
            metrics.attack_success(TASK, test, target, chunk=chunk),
        )
    )
    rates = evaluate(params)
    assert set(rates) == {"test_error", "per_class_error", "attack_success"}
    predictions = np.argmax(logits, axis=1)
    np.testing.assert_allclose(rates["test_error"], ref.test_error(logits, y), rtol=1e-6)
    assert 0 < rates["test_error"] < 1
    np.testing.assert_allclose(rates["per_class_error"], ref.per_class_error(logits, y), rtol=1e-6)
    expected = np.mean(predictions[y != target] == target)
    assert expected != np.mean(predictions == target)
    np.testing.assert_allclose(rates["attack_success"], expected, rtol=1e-6)
    np.testing.assert_array_equal(metrics.predict(TASK, params, x, chunk=chunk), predictions)


def test_chunks_bound_the_batch() -> None:
    sizes: list[int] = []

    def logits(params: jax.Array, x: jax.Array) -> jax.Array:
        sizes.append(x.shape[0])
        return _linear(params, x)

    params, x, _, _ = problem()
    task = Task(init=_never, loss=_never, logits=logits, unravel=_never)
    for chunk in CHUNKS:
        sizes.clear()
        metrics.predict(task, params, x, chunk=chunk)
        assert sizes and max(sizes) <= min(chunk, EXAMPLES)


def test_images() -> None:
    """Examples may have any number of axes."""
    params, x, y, logits = problem(1)
    images = x.reshape(EXAMPLES, 1, FEATURES, 1)
    rates = metrics.test_error(TASK, {"x": images, "y": y}, chunk=7)(params)
    np.testing.assert_allclose(rates["test_error"], ref.test_error(logits, y), rtol=1e-6)


def test_test_error_by_hand() -> None:
    logits = np.array([[2, 1, 0], [0, 1, 0], [3, 3, 0], [0, 5, 1]], np.float32)
    y = np.array([0, 1, 1, 0])  # predictions 0, 1, 0 (the first of equal ones), 1
    assert metrics.test_error(ORACLE, {"x": logits, "y": y})(jnp.zeros(1))["test_error"] == 0.5


def test_per_class_error_by_hand() -> None:
    logits = np.eye(4, dtype=np.float32)[[0, 0, 1, 3, 3, 3]]
    y = np.array([0, 1, 1, 3, 3, 0])
    # 0: right, wrong; 1: wrong, right; 2: no example; 3: all right.
    rates = metrics.per_class_error(ORACLE, {"x": logits, "y": y}, 4)(jnp.zeros(1))
    np.testing.assert_array_equal(rates["per_class_error"], [0.5, 0.5, math.nan, 0])


def test_attack_success_leaves_out_the_target() -> None:
    predictions = [2, 2, 2, 0, 1]
    y = np.array([2, 2, 0, 0, 1])
    test = {"x": np.eye(3, dtype=np.float32)[predictions], "y": y}
    # Of the three whose label is not 2, one is taken for 2; counting all it would be 3 / 5.
    rates = metrics.attack_success(ORACLE, test, target=2)(jnp.zeros(1))
    np.testing.assert_allclose(rates["attack_success"], 1 / 3, rtol=1e-6)
    rates = metrics.attack_success(ORACLE, {"x": test["x"][:2], "y": y[:2]}, target=2)(jnp.zeros(1))
    assert math.isnan(rates["attack_success"])


def test_together_refuses_equal_names() -> None:
    params, x, y, _ = problem()
    test = {"x": x, "y": y}
    twice = metrics.together(
        metrics.test_error(TASK, test), metrics.test_error(TASK, test, chunk=5)
    )
    with pytest.raises(
        ValueError, match=r"two evaluations are called \['test_error'\]; rename one"
    ):
        twice(params)


def test_together_takes_plain_functions() -> None:
    params, x, y, _ = problem()
    both = metrics.together(
        metrics.test_error(TASK, {"x": x, "y": y}),
        lambda p: {"length": jnp.linalg.norm(p), "largest": jnp.max(p)},
    )
    rates = jax.jit(both)(params)
    assert set(rates) == {"test_error", "length", "largest"}
    np.testing.assert_allclose(rates["largest"], np.max(params))


def test_another_test_set_does_not_recompile() -> None:
    """The data are arguments of the compiled program."""
    traces = 0

    @jax.jit
    def call(evaluate, params):
        nonlocal traces
        traces += 1
        return evaluate(params)

    errors = []
    for seed in range(2):
        params, x, y, logits = problem(seed)
        rates = call(metrics.test_error(TASK, {"x": x, "y": y}), params)
        np.testing.assert_allclose(rates["test_error"], ref.test_error(logits, y), rtol=1e-6)
        errors.append(float(rates["test_error"]))
    assert traces == 1 and errors[0] != errors[1]


def test_accuracy_and_cross_entropy() -> None:
    params, x, y, logits = problem(2)
    test = {"x": x, "y": y}
    rates = metrics.together(
        metrics.accuracy(TASK, test, chunk=5), metrics.cross_entropy(TASK, test, chunk=5)
    )(params)
    losses = [
        -np.log(ref.softmax(row.astype(np.float64))[k]) for row, k in zip(logits, y, strict=True)
    ]
    np.testing.assert_allclose(rates["accuracy"], np.mean(np.argmax(logits, 1) == y), rtol=1e-6)
    np.testing.assert_allclose(rates["cross_entropy"], np.mean(losses), rtol=1e-5)
    score = metrics.score(metrics.cross_entropy(TASK, test))
    np.testing.assert_allclose(jax.jit(score)(params), np.mean(losses), rtol=1e-5)
    both = metrics.together(metrics.accuracy(TASK, test), metrics.cross_entropy(TASK, test))
    assert metrics.score(both, "accuracy")(params) == rates["accuracy"]
    for bad in (metrics.score(both), metrics.score(both, "error")):
        with pytest.raises(ValueError, match="name of one scalar"):
            bad(params)


def test_client_accuracy() -> None:
    """23 clients of 0 to 4 examples, against a loop."""
    params, x, y, logits = problem(3)
    rng = np.random.default_rng(4)
    count = rng.integers(0, 5, 23)
    count[:2] = 0, 1
    index = rng.integers(0, EXAMPLES, (23, 4))
    data = FederatedData({"x": jnp.asarray(x), "y": jnp.asarray(y)}, index, count)
    rates = jax.jit(metrics.client_accuracy(TASK, data, chunk=7))(params)
    right = np.argmax(logits, 1) == y
    each = np.array(
        [np.mean(right[i[:c]]) if c else np.nan for i, c in zip(index, count, strict=True)]
    )
    np.testing.assert_allclose(rates["client_accuracy"], each, rtol=1e-6)
    present = np.sort(each[count > 0])
    worst = math.ceil(len(present) / 10)
    assert worst == 2
    np.testing.assert_allclose(rates["client_accuracy_mean"], present.mean(), rtol=1e-6)
    np.testing.assert_allclose(rates["client_accuracy_worst"], present[0], rtol=1e-6)
    np.testing.assert_allclose(
        rates["client_accuracy_worst_tenth"], present[:worst].mean(), rtol=1e-6
    )


@pytest.mark.parametrize(
    "metric",
    [
        metrics.test_error,
        metrics.accuracy,
        metrics.cross_entropy,
        lambda task, test: metrics.per_class_error(task, test, 4),
        lambda task, test: metrics.attack_success(task, test, 1),
    ],
)
@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda x, y: (x, y[:, None]), "squeeze"),
        (lambda x, y: (x[:1], y), "common number of examples"),
        (lambda x, y: (x, y[:1]), "common number of examples"),
        (lambda x, y: (x, y.astype(float)), "integers"),
        (lambda x, y: (x, y + 1), r"0 \.\. 3"),
        (lambda x, y: (x, y - 1), ">= 0, got labels from -1"),
    ],
)
def test_labels_that_do_not_fit(metric, change, message) -> None:
    task = TASK._replace(init=lambda key: jnp.zeros(FEATURES * CLASSES))
    _, x, _, _ = problem()
    y = np.arange(EXAMPLES) % CLASSES
    metric(task, {"x": x, "y": y})
    x, y = change(x, y)
    with pytest.raises(ValueError, match=message):
        metric(task, {"x": x, "y": y})


@pytest.mark.parametrize("target", [4, 99, -1])
def test_targets_that_no_class_has(target: int) -> None:
    params, x, y, _ = problem()
    known = TASK._replace(init=lambda key: jnp.zeros(FEATURES * CLASSES))
    for task in (known, TASK):  # without initial parameters it is seen on use
        with pytest.raises(ValueError, match="target"):
            metrics.attack_success(task, {"x": x, "y": y}, target)(params)
        with pytest.raises(ValueError, match="target"):
            metrics.backdoor_accuracy(task, x, target)(params)


def test_equal_evaluations_are_equal() -> None:
    """Nothing is kept in a cache, and another, equal evaluation does not compile again."""
    _, x, y, _ = problem()
    first, second = (metrics.attack_success(TASK, {"x": x, "y": y}, 2) for _ in range(2))
    assert jax.tree.structure(first) == jax.tree.structure(second)
    other = metrics.attack_success(TASK, {"x": x, "y": y}, 1)
    assert jax.tree.structure(first) != jax.tree.structure(other)


def test_detection_of_numbers_and_shapes() -> None:
    selected, malicious = np.array([0, 0, 1, 1, 0]), np.array([1, 0, 1, 0, 0])
    rates = metrics.detection(selected, malicious)
    np.testing.assert_allclose(rates["precision"], 1 / 3, rtol=1e-6)
    np.testing.assert_allclose(rates["recall"], 1 / 2, rtol=1e-6)
    with pytest.raises(ValueError, match="other numbers"):
        metrics.detection(2 * selected, malicious)
    with pytest.raises(TypeError, match=r"astype\(bool\)"):
        jax.jit(metrics.detection)(selected, malicious)
    for shape in ((5, 1), (1, 5), (4,)):
        with pytest.raises(ValueError, match="one shape"):
            metrics.detection(selected == 1, np.zeros(shape, bool))


def test_detection() -> None:
    rng = np.random.default_rng(3)
    selected, malicious = rng.random((2, 5, 9)) < 0.5
    malicious[3] = False
    selected[4] = True
    rates = jax.jit(metrics.detection)(selected, malicious)
    assert rates["precision"].shape == rates["recall"].shape == (5,)
    for k in range(5):
        expected = ref.precision_recall(~selected[k], malicious[k])
        np.testing.assert_allclose(
            (rates["precision"][k], rates["recall"][k]), expected, rtol=1e-6, err_msg=str(k)
        )
    assert math.isnan(rates["recall"][3]) and math.isnan(rates["precision"][4])


def test_detection_by_hand() -> None:
    # Removed: rows 0, 1, 4, of which row 0 is malicious; of the malicious rows 0 and 2, one is gone.
    rates = metrics.detection(
        np.array([False, False, True, True, False]), np.array([True, False, True, False, False])
    )
    np.testing.assert_allclose(rates["precision"], 1 / 3, rtol=1e-6)
    np.testing.assert_allclose(rates["recall"], 1 / 2, rtol=1e-6)


def test_nothing_to_evaluate_is_an_error():
    task = Task(
        init=lambda key: jnp.zeros(3),
        loss=lambda params, batch: jnp.float32(0),
        logits=lambda params, x: x,
        unravel=lambda params: params,
    )
    empty = {"x": np.zeros((0, 3), np.float32), "y": np.zeros(0, np.int32)}
    some = {"x": np.zeros((2, 3), np.float32), "y": np.zeros(2, np.int32)}
    with pytest.raises(ValueError, match="number of examples, at least 1"):
        metrics.test_error(task, empty)(jnp.zeros(3))
    with pytest.raises(ValueError, match="chunk >= 1, got chunk=0"):
        metrics.test_error(task, some, chunk=0)(jnp.zeros(3))


def received(updates: np.ndarray, weights: np.ndarray | None = None) -> Received:
    n, d = updates.shape
    weights = np.ones(n) if weights is None else weights
    return Received(
        jnp.asarray(updates, jnp.float32),
        jnp.asarray(weights, jnp.float32),
        jnp.arange(n),
        jnp.zeros(d),
        jax.random.key(0),
    )


@pytest.mark.parametrize("absent", [(), (0, 5)])
def test_direction_agreement(absent: tuple[int, ...]) -> None:
    n, d, c, f = 12, 40, 4, 3
    updates = np.random.default_rng(0).normal(0.2, 1, size=(n, d)).astype(np.float32)
    updates[:, ::5] = 0  # parameters that nothing moves
    updates[:3, 1] = 1.0  # moved by attackers alone, which the rule trims
    updates[3:, 1] = 0.0
    present = ~np.isin(np.arange(n), absent)
    malicious = (np.arange(n) < c) & present
    observe = jax.jit(metrics.direction_agreement(aggregators.trimmed_mean(f)))
    rates = observe(received(updates, present), malicious)
    aggregate = ref.trimmed_mean(updates[present], f)
    everything, moving = ref.direction_agreement(aggregate, updates[malicious])
    assert 0.5 < moving < everything < 1
    np.testing.assert_allclose(rates["direction_agreement"], everything, rtol=1e-6)
    np.testing.assert_allclose(rates["direction_agreement_moving"], moving, rtol=1e-6)


def test_direction_agreement_by_hand() -> None:
    # The sums of the columns are 2, -2, 0, 3; the attacker's row has the signs +, +, 0, -.
    updates = np.array([[1.0, 1.0, 0.0, -1.0], [1.0, -3.0, 0.0, 4.0]])
    observe = metrics.direction_agreement(aggregators.mean())
    rates = observe(received(updates), np.array([True, False]))
    assert rates["direction_agreement"] == 1 / 2
    np.testing.assert_allclose(rates["direction_agreement_moving"], 1 / 3, rtol=1e-6)


def test_direction_agreement_without_attackers_or_movement() -> None:
    observe = metrics.direction_agreement(aggregators.median())
    nobody = observe(received(np.ones((3, 2))), np.zeros(3, bool))
    assert all(math.isnan(rate) for rate in nobody.values())
    still = observe(received(np.zeros((3, 2))), np.arange(3) < 1)
    assert still["direction_agreement"] == 1 and math.isnan(still["direction_agreement_moving"])
    gone = np.ones((3, 2))
    gone[0, 1] = np.nan  # the only attacker's row, which the server drops
    assert math.isnan(observe(received(gone), np.arange(3) < 1)["direction_agreement"])
