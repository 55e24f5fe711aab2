"""Norm clipping at any scale, integers, traced bounds, bad numbers."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference as ref

import fedjax_robust as fr
from fedjax_robust.aggregators import mean, median, norm_clipping


@pytest.mark.parametrize("bound", [1e-28, 1e-20, 1e-3, 1.0, 1e20, 1e30])
def test_norms_neither_overflow_nor_underflow(bound):
    """Rows from 1e-30 to 1e37 in one matrix, against float64."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(40, 6)) * 10.0 ** rng.integers(-29, 37, (40, 1))
    x = x.astype(np.float32)
    received = fr.Received(
        jnp.asarray(x), jnp.ones(40), jnp.arange(40), jnp.zeros(6), jax.random.key(0)
    )
    each = fr.Aggregator(lambda n, p: (), lambda r, s: (r.updates[0], s, {"rows": r.updates}))
    _, _, info = norm_clipping(bound, base=each).aggregate(received, ())
    lengths = np.linalg.norm(x.astype(np.float64), axis=1)
    np.testing.assert_array_equal(info["clipped"], lengths > bound)
    factors = np.minimum(1, bound / lengths)
    np.testing.assert_allclose(info["rows"], factors[:, None] * x.astype(np.float64), rtol=1e-5)
    slope = jax.grad(lambda x: jnp.sum(norm_clipping(bound)(x)))(jnp.asarray(x))
    assert np.all(np.isfinite(slope))


def test_clipping_takes_integers_and_traced_bounds_and_any_base():
    x = np.array([[3, 4], [0, 1], [1, 0], [30, 40]])
    for bound in (1.0, 5.0, 20.0):
        expected = ref.norm_clipping(x, bound)
        np.testing.assert_allclose(norm_clipping(bound)(x), expected, rtol=1e-6)
    many = jax.vmap(lambda bound: norm_clipping(bound)(jnp.asarray(x)))(jnp.array([1.0, 5.0, 20.0]))
    np.testing.assert_allclose(many, [ref.norm_clipping(x, b) for b in (1, 5, 20)], rtol=1e-6)
    result = norm_clipping(1.0, base=median())(x)
    np.testing.assert_allclose(result, [0.6, 0.8], rtol=1e-6)  # of .6 0 1 .6 and .8 1 0 .8
    assert norm_clipping(1.0) is norm_clipping(1.0)
    with pytest.raises(TypeError, match=r"norm_clipping needs base to be an Aggregator.*call it"):
        norm_clipping(1.0, base=mean)


def test_clipping_by_hand_and_around_another_rule():
    x = np.array([[3.0, 4.0], [0.3, 0.4], [0, 0], [0, -20]], np.float32)
    received = fr.Received(
        jnp.asarray(x), jnp.ones(4), jnp.arange(4), jnp.zeros(2), jax.random.key(0)
    )
    rule = norm_clipping(1.0)
    result, _, info = rule.aggregate(received, ())
    np.testing.assert_allclose(result, [(0.6 + 0.3) / 4, (0.8 + 0.4 - 1) / 4], rtol=1e-5)
    np.testing.assert_array_equal(info["clipped"], [True, False, False, True])
    np.testing.assert_allclose(norm_clipping(1.0, base=median())(x), [0.15, 0.2], rtol=1e-5)
    assert np.all(np.isfinite(jax.grad(lambda x: jnp.sum(rule(x)))(jnp.asarray(x))))


@pytest.mark.parametrize("bad", [np.nan, np.inf, 0, -1, np.array(-1.0), jnp.array(np.nan)])
def test_bad_numbers(bad):
    with pytest.raises(ValueError, match=r"norm_clipping needs bound > 0.*, got bound="):
        norm_clipping(bad)
