"""Mean, median, trimmed mean and the Gaussian attack: integers, any scale, a traced f, bad numbers."""

from fractions import Fraction

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import fedjax_robust as fr
from fedjax_robust import attacks
from fedjax_robust.aggregators import fedavg_eta, mean, median, trimmed_mean
from fedjax_robust.attacks.crafted import moments

LARGEST = float(np.finfo(np.float32).max)


def exactly(kept) -> float:
    """The mean of floats in exact arithmetic."""
    return float(sum(Fraction(float(value)) for value in kept) / len(kept))


def trimmed(x, f) -> np.ndarray:
    ordered = np.sort(np.asarray(x, np.float64), axis=0)
    return np.array([exactly(column[f : len(x) - f]) for column in ordered.T])


@pytest.mark.parametrize("dtype", [np.int8, np.int32, np.uint8, bool])
def test_integer_updates(dtype):
    x = np.array([[1, 2], [0, 0], [1, 1], [1, 7]]).astype(dtype)
    exact = x.astype(float)
    np.testing.assert_allclose(mean()(x), exact.mean(axis=0))
    np.testing.assert_allclose(
        mean()(x, np.array([1, 3, 2, 1])), np.average(exact, 0, [1, 3, 2, 1])
    )
    np.testing.assert_allclose(median()(x), np.median(exact, axis=0))
    np.testing.assert_allclose(trimmed_mean(1)(x), trimmed(exact, 1))
    np.testing.assert_allclose(fedavg_eta(0.5, 10)(x), 0.05 * exact.sum(axis=0), rtol=1e-6)
    for rule in (mean(), median(), trimmed_mean(1), fedavg_eta(0.5, 10)):
        assert jnp.issubdtype(rule(x).dtype, jnp.floating)


@pytest.mark.parametrize("scale", [1e-30, 1e-20, 1e20, 1e30, 3e38])
def test_rules_at_any_scale(scale):
    """Sums of 11 values of 3e38 are beyond the largest float, their means are not."""
    rng = np.random.default_rng(0)
    x = (scale * rng.uniform(-1, 1, (11, 40))).astype(np.float32)
    x[:, :10] = np.float32(scale) * rng.uniform(0.9, 1, (11, 10)).astype(np.float32)
    received = fr.Received(
        jnp.asarray(x), jnp.ones(11), jnp.arange(11), jnp.zeros(40), jax.random.key(0)
    )
    for rule, f in [(mean(), 0), (trimmed_mean(0), 0), (trimmed_mean(3), 3), (median(), 5)]:
        np.testing.assert_allclose(rule(x), trimmed(x, f), rtol=1e-5, atol=1e-6 * scale)
        left_out = rule.leave_one_out(received, ())
        for i in range(11):
            others = np.delete(x, i, axis=0)
            expected = trimmed(others, 4 if f == 5 else f)
            np.testing.assert_allclose(left_out[i], expected, rtol=1e-5, atol=1e-6 * scale)


@pytest.mark.parametrize("weight", [1e-30, 1e30, 3e38])
def test_weights_at_any_scale(weight):
    x = np.array([[1, 2], [3, 5], [8, 0]], np.float32)
    weights = np.array([1, 1, 0.5]) * weight
    expected = np.average(x, axis=0, weights=[1, 1, 0.5])
    np.testing.assert_allclose(mean()(x, weights.astype(np.float32)), expected, rtol=1e-6)
    received = fr.Received(
        jnp.asarray(x), jnp.asarray(weights, jnp.float32), jnp.arange(3), jnp.zeros(2),
        jax.random.key(0),
    )  # fmt: skip
    left_out = mean().leave_one_out(received, ())
    np.testing.assert_allclose(left_out[2], [2, 3.5], rtol=1e-6)
    np.testing.assert_allclose(left_out[0], np.average(x[1:], 0, [1, 0.5]), rtol=1e-6)


def test_half_precision_is_summed_in_single():
    x = np.full((3000, 2), 60000, np.float16)
    received = fr.Received(
        jnp.asarray(x), jnp.ones(3000), jnp.arange(3000), jnp.zeros(2), jax.random.key(0)
    )
    for rule in (mean(), trimmed_mean(0)):
        assert rule(x).dtype == jnp.float16
        np.testing.assert_array_equal(rule(x), [60000, 60000])
    left_out = trimmed_mean(0).leave_one_out(received, ())
    assert left_out.dtype == jnp.float16
    np.testing.assert_array_equal(left_out[:2], x[:2])


@pytest.mark.parametrize("gone", [(), (2,), (0, 3, 7)])
def test_a_traced_f_equals_known_ones(gone):
    x = np.random.default_rng(1).normal(size=(9, 30)).astype(np.float32)
    weights = np.ones(9, np.float32)
    weights[list(gone)] = 0

    def rule(f):
        return trimmed_mean(f)(jnp.asarray(x), jnp.asarray(weights))

    def left_out(f):
        received = fr.Received(
            jnp.asarray(x), jnp.asarray(weights), jnp.arange(9), jnp.zeros(30), jax.random.key(0)
        )
        return trimmed_mean(f).leave_one_out(received, ())

    there = weights > 0
    for function in (rule, left_out):
        many = jax.vmap(function)(jnp.arange(5))
        compiled = jax.jit(jax.vmap(function))(jnp.arange(5))
        for f in range(5):
            rows = slice(None) if function is rule else there
            np.testing.assert_allclose(many[f][rows], function(f)[rows], rtol=1e-5, atol=1e-6)
            np.testing.assert_allclose(compiled[f][rows], function(f)[rows], rtol=1e-5, atol=1e-6)
    for f in range(3):
        np.testing.assert_allclose(rule(f), trimmed(x[there], f), rtol=1e-4, atol=1e-6)
    slopes = jax.vmap(lambda f: jax.grad(lambda x: jnp.sum(trimmed_mean(f)(x)))(jnp.asarray(x)))(
        jnp.arange(5)
    )
    for f in range(5):
        known = jax.grad(lambda x, f=f: jnp.sum(trimmed_mean(f)(x)))(jnp.asarray(x))
        np.testing.assert_allclose(slopes[f], known, rtol=1e-6)
    # float hyper-parameters of wrappers over f, too
    known = [trimmed_mean(f)(x) for f in (0, 2)]
    np.testing.assert_allclose(jax.lax.map(lambda f: trimmed_mean(f)(x), jnp.array([0, 2])), known,
                               rtol=1e-5, atol=1e-6)  # fmt: skip


def test_more_is_removed_than_there_is():
    """f beyond n / 2 is refused if it is known. Traced, as much is removed as leaves one or two."""
    x = np.random.default_rng(2).normal(size=(6, 4)).astype(np.float32)
    with pytest.raises(ValueError, match="trimmed_mean needs n > 2f, got n=6, f=3"):
        trimmed_mean(3)(x)
    for f in (3, 100):
        np.testing.assert_allclose(
            jax.jit(lambda f: trimmed_mean(f)(x))(f), np.median(x, axis=0), rtol=1e-5
        )


@pytest.mark.parametrize("bad", [np.nan, 1.5, 2.0, -1, np.array(-1), jnp.array(-2), jnp.array(1.0)])
def test_f_is_a_whole_number(bad):
    with pytest.raises(ValueError, match="trimmed_mean needs f"):
        trimmed_mean(bad)


@pytest.mark.parametrize("bad", [np.nan, np.inf, 0, -1, np.array(0.0), jnp.array(np.nan)])
def test_numbers_of_fedavg(bad):
    with pytest.raises(ValueError, match="fedavg_eta needs eta > 0"):
        fedavg_eta(bad, 5)
    with pytest.raises((ValueError, TypeError), match="fedavg_eta needs num_clients"):
        fedavg_eta(1.0, bad)


def test_equal_arguments_give_equal_rules():
    assert mean() is mean() and median() is median()
    assert trimmed_mean(2) is trimmed_mean(2) and trimmed_mean(2) is not trimmed_mean(3)
    assert fedavg_eta(1.0, 5) is fedavg_eta(1.0, 5)
    assert attacks.first_order(3) is attacks.first_order(3)
    assert attacks.gaussian() is attacks.gaussian()


# --- Moments ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("scale", [1e-33, 1e-30, 1e-20, 1.0, 1e19, 1e30, 3e38])
def test_moments_at_any_scale(scale):
    """Each column has its own scale, besides."""
    rng = np.random.default_rng(0)
    x = rng.uniform(-1, 1, (13, 6)) * scale
    x[:, 1] *= 1e-3
    x[:, 2] = scale * (0.5 + 1e-3 * rng.normal(size=13))
    x = x.astype(np.float32)
    rows = np.arange(13) % 4 != 2
    x[2] = np.nan
    centre, deviation = moments(jnp.asarray(x), jnp.asarray(rows))
    exact = x[rows].astype(np.longdouble)
    np.testing.assert_allclose(
        centre, exact.mean(axis=0).astype(float), rtol=2e-5, atol=1e-6 * scale
    )
    np.testing.assert_allclose(deviation, exact.std(axis=0).astype(float), rtol=1e-3, atol=1e-44)
    nothing = moments(jnp.asarray(x), jnp.zeros(13, bool))
    np.testing.assert_array_equal(nothing, np.zeros((2, 6)))


def test_moments_of_integers():
    centre, deviation = moments(
        np.array([[1, 4], [2, 4], [3, 4], [9, 9]]), np.array([1, 1, 1, 0], bool)
    )
    np.testing.assert_allclose(centre, [2, 4], rtol=1e-6)
    np.testing.assert_allclose(deviation, [np.sqrt(2 / 3), 0], rtol=1e-6)


@pytest.mark.parametrize("scale", [1e-30, 1e30, 2e38])
def test_the_gaussian_attack_sends_what_the_server_keeps(scale):
    rng = np.random.default_rng(0)
    x = (scale * rng.uniform(0.2, 1.7, (10, 5000))).astype(np.float32)
    view = fr.AttackerView(
        updates=jnp.asarray(x),
        visible=jnp.ones(10, bool),
        reference=jnp.arange(10) >= 4,
        malicious=jnp.arange(10) < 4,
        num_malicious=4,
        params=jnp.zeros(5000),
        key=jax.random.key(1),
        aggregate=None,
    )
    rows = np.asarray(attacks.gaussian().craft(view, ())[0], np.float64)
    assert rows.shape == (4, 5000) and np.all(np.isfinite(rows))
    exact = x.astype(np.float64)
    standard = (rows - exact.mean(axis=0)) / exact.std(axis=0)
    inside = np.abs(rows) < LARGEST
    assert inside.mean() > 0.9
    if scale < 1e38:
        assert inside.all()
        assert abs(standard.mean()) < 5 / np.sqrt(20_000)
        assert standard.std() == pytest.approx(1, rel=0.03)


# --- Attacks in some rounds ------------------------------------------------------------------------


def test_parts_of_in_rounds_and_data_poisoning():
    with pytest.raises(TypeError, match=r"in_rounds needs attack to be an Attack.*call it"):
        attacks.in_rounds(attacks.gaussian, np.array([True]))
    with pytest.raises(TypeError, match=r"data_poisoning needs client to be a Client.*call it"):
        attacks.data_poisoning(fr.local_sgd)
    for bad in ("yes", None):
        with pytest.raises((TypeError, ValueError), match="in_rounds needs poisoned"):
            attacks.in_rounds(attacks.gaussian(), bad)
