"""Norms and distances at the upper end of float32, whose largest number is 3.4e38."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fedjax_robust.kernels import direction_and_length, pairwise_distances, safe_norm


@pytest.mark.parametrize("size", [8e37, 1.2e38, 1.8e38, 3e38, 3.4e38])
def test_norms_and_their_slopes(size):
    x = np.zeros((2, 3), np.float32)
    x[0, 1], x[1, 2] = -size, 1.0
    unit, length = direction_and_length(jnp.asarray(x))
    np.testing.assert_allclose(unit, [[0, -1, 0], [0, 0, 1]], rtol=1e-6)
    np.testing.assert_allclose(length, [size, 1], rtol=1e-6)
    np.testing.assert_allclose(safe_norm(x), [size, 1], rtol=1e-6)
    slopes = jax.jit(jax.grad(lambda x: jnp.sum(safe_norm(x))))(x)
    np.testing.assert_allclose(slopes, [[0, -1, 0], [0, 0, 1]], rtol=1e-6)


@pytest.mark.parametrize("size", [9e37, 1.6e38, 3e38])
def test_rows_beyond_a_quarter_of_the_largest_float_are_far_from_everything(size):
    """Also from each other, and where no difference overflows."""
    x = np.array([[1.0, 2.0], [1.0, 5.0], [size, 0.0], [size, 1.0], [0.0, 8e37]], np.float32)
    distances = np.asarray(pairwise_distances(x, jnp.ones(5, bool)))
    expected = np.full((5, 5), np.inf)
    np.fill_diagonal(expected, 0)
    expected[0, 1] = expected[1, 0] = 3
    expected[4, :2] = expected[:2, 4] = 8e37
    np.testing.assert_allclose(distances, expected, rtol=1e-5)
