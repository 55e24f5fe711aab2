"""Gradients through training, against finite differences and a NumPy definition; crafted points."""

from __future__ import annotations

from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import reference as ref

import fedjax_robust as fr
from fedjax_robust import models
from fedjax_robust.attacks.optimised import (
    back_gradient_points,
    reversed_gradient,
    unrolled_gradient,
)
from fedjax_robust.attacks.poisons import label_flip, other_label

FEATURES, CLASSES, HIDDEN = 5, 3, 4
RATE, STEPS = 0.3, 12


def softmax_logits(w, x):
    weights, bias = w[CLASSES:].reshape(FEATURES, CLASSES), w[:CLASSES]
    return x @ weights + bias


def mlp_logits(w, x):
    first, second = jnp.split(w, [FEATURES * HIDDEN])
    return jnp.tanh(x @ first.reshape(FEATURES, HIDDEN)) @ second.reshape(HIDDEN, CLASSES)


MODELS = {
    "softmax": (softmax_logits, CLASSES * (FEATURES + 1)),
    "mlp": (mlp_logits, HIDDEN * (FEATURES + CLASSES)),
}


def problem(rng):
    """20 clean examples, 3 points, 10 examples of the objective, with labels that mean something."""
    centres = rng.normal(size=(CLASSES, FEATURES))
    y = rng.integers(CLASSES, size=33)
    x = 0.5 + 0.3 * centres[y] + 0.2 * rng.normal(size=(33, FEATURES))
    known = ref.BackGradient(
        x[:20], y[:20], (y[20:23] + 1) % CLASSES, x[23:], y[23:], RATE, STEPS
    )  # fmt: skip
    return known, x[20:23]


def losses(logits, known):
    def mean_loss(w, x, y):
        return optax.softmax_cross_entropy_with_integer_labels(logits(w, x), y).mean()

    def training_loss(w, x):
        everything = jnp.concatenate([known.clean_x, x])
        return mean_loss(w, everything, np.concatenate([known.clean_y, known.point_y]))

    return training_loss, lambda w: mean_loss(w, known.target_x, known.target_y)


@cache
def in_float64(gradient, model, seed=0, steps=STEPS):
    """The problem, and the gradient of it; compiling is what takes time here."""
    rng = np.random.default_rng(seed)
    known, x = problem(rng)
    logits, d = MODELS[model]
    start = 0.5 * rng.normal(size=d)
    with jax.enable_x64(True):
        run = jax.jit(partial(gradient, *losses(logits, known), learning_rate=RATE, steps=steps))
        value, dx = run(jnp.asarray(start), jnp.asarray(x))
        assert dx.dtype == jnp.float64
        return known._replace(steps=steps), start, x, float(value), np.asarray(dx)


@pytest.mark.parametrize("model", MODELS)
def test_unrolled_gradient_is_the_slope_of_training(model):
    known, start, x, value, dx = in_float64(unrolled_gradient, model)
    with jax.enable_x64(True):
        training_loss, objective = losses(MODELS[model][0], known)

        @jax.jit
        def trained(x):  # no scan, no checkpoint
            w = jnp.asarray(start)
            for _ in range(STEPS):
                w = w - RATE * jax.grad(training_loss)(w, x)
            return objective(w)

        step = 1e-5
        slope = np.zeros_like(x)
        for i in np.ndindex(x.shape):
            shift = np.zeros_like(x)
            shift[i] = step
            slope[i] = (trained(x + shift) - trained(x - shift)) / (2 * step)
        assert value == pytest.approx(float(trained(x)), rel=1e-12)
    np.testing.assert_allclose(dx, slope, rtol=1e-5, atol=1e-9)
    assert np.abs(dx).max() > 1e-3


@pytest.mark.parametrize("model", MODELS)
def test_reversing_exactly_gives_the_unrolled_gradient(model):
    _, _, _, value, dx = in_float64(unrolled_gradient, model)
    exact = partial(reversed_gradient, inversions=60)
    _, _, _, same_value, same = in_float64(exact, model)
    assert same_value == pytest.approx(value, rel=1e-12)
    np.testing.assert_allclose(same, dx, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("model", MODELS)
def test_one_inversion_is_an_approximation_that_more_improve(model):
    _, _, _, _, dx = in_float64(unrolled_gradient, model)

    def error(inversions):
        gradient = partial(reversed_gradient, inversions=inversions)
        return np.linalg.norm(in_float64(gradient, model)[-1] - dx) / np.linalg.norm(dx)

    original, better = error(1), error(8)
    assert 1e-4 < original < 0.5  # close enough to climb, and not the same
    assert better < 1e-2 * original


@pytest.mark.parametrize(("inversions", "steps"), [(None, 1), (None, 7), (1, 7), (3, 7)])
def test_softmax_regression_as_defined(inversions, steps):
    gradient = unrolled_gradient
    if inversions is not None:
        gradient = partial(reversed_gradient, inversions=inversions)
    known, start, x, value, dx = in_float64(gradient, "softmax", seed=1, steps=steps)
    weights, bias = start[CLASSES:].reshape(FEATURES, CLASSES), start[:CLASSES]
    expected_value, expected = ref.back_gradient(known, weights, bias, x, inversions)
    assert value == pytest.approx(expected_value, rel=1e-12)
    np.testing.assert_allclose(dx, expected, rtol=1e-9, atol=1e-14)


# --- Points --------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def blobs():
    """Two sets of 60 images (3, 3, 1) of 3 classes in [0, 1]."""
    rng = np.random.default_rng(0)
    centres = rng.uniform(0.2, 0.8, (CLASSES, 3, 3, 1))
    y = rng.integers(CLASSES, size=120).astype(np.int32)
    x = np.clip(centres[y] + 0.1 * rng.normal(size=(120, 3, 3, 1)), 0, 1).astype(np.float32)
    return {"x": x[:60], "y": y[:60]}, {"x": x[60:], "y": y[60:]}


@pytest.fixture(scope="module")
def task(blobs):
    return fr.classification(models.SoftmaxRegression(CLASSES), blobs[0]["x"][:1])


def craft(task, blobs, key=0, **options):
    settings = {"iterations": 8, "step": 0.3, "training_steps": 20, "learning_rate": 0.5}
    train, validation = blobs
    return back_gradient_points(
        jax.random.key(key), task, train, validation, 6, **(settings | options)
    )


@pytest.fixture(scope="module")
def crafted(task, blobs):
    return craft(task, blobs)


def test_points_start_as_validation_examples_with_wrong_labels(task, blobs):
    points, history = craft(task, blobs, iterations=1)
    assert history.shape == (1,)
    _, validation = blobs
    rows = []
    for x, y in zip(np.asarray(points["x"]), np.asarray(points["y"]), strict=True):
        (row,) = np.flatnonzero((validation["x"] == x).all((1, 2, 3)))
        assert 0 <= y < CLASSES
        assert y != validation["y"][row]
        rows.append(row)
    assert len(set(rows)) == 6


def test_points_stay_in_bounds_and_reach_them(task, blobs):
    points, _ = craft(task, blobs, iterations=30, bounds=(0.1, 0.7))
    x = np.asarray(points["x"])
    assert x.shape == (6, 3, 3, 1)
    assert x.dtype == np.float32
    low, high = np.float32(0.1), np.float32(0.7)
    assert x.min() == low
    assert x.max() == high


def test_steps_have_the_stated_length(task, blobs):
    free = {"bounds": (-9.0, 9.0), "step": 0.01}
    (first, _), (second, history) = (craft(task, blobs, iterations=i, **free) for i in (1, 2))
    assert history[1] > history[0]
    moved = np.asarray(second["x"] - first["x"]).reshape(6, -1)
    np.testing.assert_allclose(np.linalg.norm(moved, axis=1), 0.01, rtol=1e-3)


def test_the_objective_rises_and_is_that_of_the_points(task, blobs, crafted):
    points, history = crafted
    assert history.shape == (8,)
    assert history.max() > history[0] * 1.05
    assert not np.array_equal(points["x"], craft(task, blobs, iterations=1)[0]["x"])
    # Train on what came back: the start of training is the key's first split.
    train, validation = blobs
    both = {k: jnp.concatenate([train[k], points[k]]) for k in train}
    w = task.init(jax.random.split(jax.random.key(0), 3)[0])
    slope = jax.jit(jax.grad(task.loss))
    for _ in range(20):
        w = w - 0.5 * slope(w, both)
    assert float(task.loss(w, validation)) == pytest.approx(history.max(), rel=1e-5)


def test_the_original_gradient_also_raises_it(task, blobs, crafted):
    _, history = craft(task, blobs, gradient=reversed_gradient)
    assert history[0] == pytest.approx(crafted[1][0], rel=1e-5)
    assert history.max() > history[0] * 1.05


def test_the_key_decides(task, blobs, crafted):
    again, history = craft(task, blobs)
    np.testing.assert_array_equal(again["x"], crafted[0]["x"])
    np.testing.assert_array_equal(history, crafted[1])
    other, _ = craft(task, blobs, key=1)
    assert not np.array_equal(other["x"], crafted[0]["x"])


def test_start_and_flip_are_the_callers(task, blobs):
    zero = jnp.zeros_like(task.init(jax.random.key(0)))
    options = {"start": zero, "flip": label_flip(CLASSES), "iterations": 1}
    points, history = craft(task, blobs, **options)
    assert history != craft(task, blobs, iterations=1)[1]
    _, validation = blobs
    rows = [np.flatnonzero((validation["x"] == x).all((1, 2, 3)))[0] for x in points["x"]]
    np.testing.assert_array_equal(points["y"], CLASSES - 1 - validation["y"][rows])


def test_it_stops_when_the_rise_is_small(task, blobs, crafted):
    _, history = craft(task, blobs, smallest_rise=10.0)
    assert len(history) == 2
    np.testing.assert_array_equal(history, crafted[1][:2])


def rising(values):
    """A gradient whose objective rises as told, one value for each iteration."""
    left = iter(values)

    def gradient(training_loss, objective, start, x, learning_rate, steps):
        shape = jax.ShapeDtypeStruct((), jnp.float32)
        value = jax.experimental.io_callback(lambda: np.float32(next(left)), shape, ordered=True)
        return value, jnp.ones_like(x)

    return gradient


@pytest.mark.parametrize(
    ("values", "smallest_rise", "computed"),
    [
        # Rises 4, 2, 1, 0.5: it stops after the first that is below the limit, and not at it.
        ([1, 5, 7, 8, 8.5], 3.0, 3),
        ([1, 5, 7, 8, 8.5], 1.0, 5),
        ([1, 5, 7, 8, 8.5], 0.75, 5),
        ([1, 5, 7, 8, 8.5], None, 5),
        ([1, 5, 4, 8, 8.5], 0.0, 3),  # a fall is below 0
        ([1, 5, 4, 8, 8.5], -2.0, 5),
        ([1, 1, 1, 8, 8.5], 0.5, 2),
    ],
)
def test_it_stops_after_the_first_small_rise(task, blobs, values, smallest_rise, computed):
    _, history = craft(
        task, blobs, iterations=5, gradient=rising(values), smallest_rise=smallest_rise
    )
    np.testing.assert_array_equal(history, values[:computed])


def test_points_start_at_different_examples(task, blobs):
    """As many points as examples: each example once, whatever the key."""
    train, validation = blobs
    for key in range(3):
        points, _ = back_gradient_points(
            jax.random.key(key), task, train, validation, 60, iterations=1, training_steps=1
        )
        ours, theirs = (np.asarray(x).reshape(60, -1) for x in (points["x"], validation["x"]))
        np.testing.assert_array_equal(np.unique(ours, axis=0), np.unique(theirs, axis=0))


def test_a_point_without_gradient_stays(task, blobs):
    def flat(training_loss, objective, start, x, learning_rate, steps):
        return objective(start), jnp.zeros_like(x)

    points, _ = craft(task, blobs, gradient=flat, iterations=3)
    assert np.isfinite(points["x"]).all()


def test_other_label_takes_every_other_class():
    y = jnp.repeat(jnp.arange(4, dtype=jnp.int32), 200)
    flipped = other_label(4)(jax.random.key(0), {"x": jnp.zeros(800), "y": y})["y"]
    assert flipped.dtype == jnp.int32
    for label in range(4):
        got = np.bincount(flipped[y == label], minlength=4)
        assert got[label] == 0
        assert (np.delete(got, label) > 40).all()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"iterations": 0}, "iterations >= 1, got iterations=0"),
        ({"step": 0.0}, r"step > 0, got step=0"),
        ({"learning_rate": -1.0}, "learning_rate > 0, got learning_rate=-1"),
        ({"training_steps": 0}, "training_steps >= 1, got training_steps=0"),
        ({"bounds": (1.0, 0.0)}, r"low < high, got \(1.0, 0.0\)"),
    ],
)
def test_bad_arguments_are_refused(task, blobs, options, message):
    with pytest.raises(ValueError, match=message):
        craft(task, blobs, **options)


def test_bad_numbers_of_points_inversions_and_classes_are_refused(task, blobs):
    for points, text in ((0, "points=0"), (61, "points=61, validation examples=60")):
        with pytest.raises(ValueError, match=text):
            back_gradient_points(jax.random.key(0), task, *blobs, points)
    with pytest.raises(ValueError, match="inversions >= 1, got inversions=0"):
        reversed_gradient(None, None, None, None, 0.1, 1, inversions=0)
    with pytest.raises(ValueError, match="num_classes >= 2, got num_classes=1"):
        other_label(1)


def test_an_objective_that_is_not_finite_is_refused(task, blobs):
    nowhere = jnp.full_like(task.init(jax.random.key(0)), jnp.nan)
    with pytest.raises(ValueError, match=r"objective at the starting points is nan.*learning_rate"):
        craft(task, blobs, start=nowhere)
