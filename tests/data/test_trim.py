"""TRIM against its definition."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from reference import regression

from fedjax_robust.data import trim_regression


def poisoned(seed, clean=30, bad=8, k=3):
    rng = np.random.default_rng(seed)
    x = rng.random((clean + bad, k))
    y = x @ np.arange(1, k + 1) / k + 0.05 * rng.normal(size=clean + bad)
    y[clean:] = rng.random(bad) < 0.5
    order = rng.permutation(clean + bad)
    return np.float32(x[order]), np.float32(y[order])


trimmed = jax.jit(trim_regression, static_argnames="steps")


def test_by_hand():
    """From all: slope 1 and intercept 1.5, squared residuals 2.25 four times and 36."""
    x, y = np.float32([[0], [1], [2], [3], [1.5]]), np.float32([0, 1, 2, 3, 9])
    _, _, first = trimmed(x, y, 5, steps=1)
    assert first["losses"][0] == pytest.approx((4 * 2.25 + 36) / 5)
    keep, model, report = trimmed(x, y, 4)
    np.testing.assert_array_equal(keep, [True, True, True, True, False])
    np.testing.assert_allclose(model, [1, 0], atol=1e-6)
    assert bool(report["settled"]) and report["losses"].shape == (51,)
    assert report["losses"][-1] < 1e-12


@pytest.mark.parametrize("ridge", [0.0, 0.05])
def test_equals_the_definition(ridge):
    found = 0
    for seed in range(12):
        x, y = poisoned(seed)
        slow = regression.trim(x, y, 30, ridge)
        keep, model, report = trimmed(x, y, 30, ridge=ridge)
        assert set(np.flatnonzero(keep)) == slow.keep
        np.testing.assert_allclose(model, slow.theta, rtol=1e-3, atol=1e-4)
        rounds = len(slow.losses)
        np.testing.assert_allclose(report["losses"][:rounds], slow.losses, rtol=1e-4)
        assert bool(report["settled"])
        found += rounds > 3
    assert found > 2


def test_the_loss_never_rises():
    for seed in range(12):
        losses = np.asarray(trimmed(*poisoned(seed, bad=20), 30, ridge=0.02)[2]["losses"])
        assert np.all(np.diff(losses[1:]) <= 1e-6 * losses[1])


def test_it_says_that_it_has_not_settled():
    x, y = poisoned(1)
    assert not bool(trimmed(x, y, 30, steps=1)[2]["settled"])


def test_examples_that_are_no_numbers_are_left_out():
    x, y = poisoned(3)
    bad_x = np.concatenate([[[np.nan, 0, 0]], x, [[1, np.inf, 0]], [[0, 0, 0]]]).astype(np.float32)
    bad_y = np.concatenate([[0], y, [1], [np.nan]]).astype(np.float32)
    keep, model, _ = trimmed(bad_x, bad_y, 30)
    expected, same, _ = trimmed(x, y, 30)
    np.testing.assert_array_equal(keep, [False, *expected, False, False])
    np.testing.assert_allclose(model, same, rtol=1e-4, atol=1e-5)
    keep, model, _ = trimmed(bad_x, bad_y, 41)  # more than there are
    assert np.sum(keep) == 38 and np.all(np.isfinite(model))


def test_columns_that_depend_on_each_other():
    """The shortest of all models that fit; and one example alone."""
    x, y = poisoned(4)
    keep, model, _ = trimmed(np.concatenate([x, x[:, :1]], axis=1), y, 30)
    np.testing.assert_array_equal(keep, trimmed(x, y, 30)[0])
    np.testing.assert_allclose(model[0], model[3], rtol=1e-3)
    _, model, _ = trimmed(x[:1], y[:1], 1)
    np.testing.assert_allclose(model, [0, 0, 0, y[0]], atol=1e-6)


def test_under_vmap_with_a_start_and_a_traced_count():
    x, y = poisoned(5)
    counts = jnp.array([20, 25, 30])
    many, _, _ = jax.jit(jax.vmap(lambda c: trim_regression(x, y, c)))(counts)
    for c, kept in zip((20, 25, 30), many, strict=True):
        assert set(np.flatnonzero(kept)) == regression.trim(x, y, c).keep
    start = np.asarray(many[0])
    keep, _, report = trimmed(x, y, 20, start=start)
    np.testing.assert_array_equal(keep, start)  # a fixed point
    np.testing.assert_allclose(report["losses"], report["losses"][0], rtol=1e-5)


@pytest.mark.parametrize("scale", [1e-25, 1.0, 1e10, 1e25])
def test_the_scale_of_the_data_does_not_matter(scale):
    """Squares of the largest and smallest are no float32."""
    x, y = poisoned(6)
    slow = regression.trim(x, y, 30)
    keep, model, report = trimmed(np.float32(scale * x), np.float32(scale * y), 30)
    assert set(np.flatnonzero(keep)) == slow.keep
    np.testing.assert_allclose(model[:-1], slow.theta[:-1], rtol=1e-3)
    np.testing.assert_allclose(model[-1] / scale, slow.theta[-1], rtol=1e-3, atol=1e-4)
    assert not np.any(np.isnan(report["losses"]))


@pytest.mark.parametrize("place", [0, 38])
def test_a_response_beyond_all_others_is_left_out(place):
    """Wherever it stands."""
    x, y = poisoned(6)
    x, y = np.insert(x, place, 0.5, axis=0), np.insert(y, place, 1e30)
    keep, _, report = trimmed(x, y, 30)
    assert not keep[place] and np.sum(keep) == 30
    assert not np.any(np.isnan(report["losses"]))


def test_more_than_all():
    with pytest.raises(
        ValueError, match="trim_regression needs count <= 38, the number of examples"
    ):
        trim_regression(*poisoned(0), 39)
