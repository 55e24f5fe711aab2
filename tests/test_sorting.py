"""The sorting network against NumPy's sort."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fedjax_robust.sorting import _comparators, sort_clients


def random_matrix(n, d, seed=0, dtype=np.float32):
    return np.random.default_rng(seed).normal(size=(n, d)).astype(dtype)


@pytest.mark.parametrize("n", range(1, 131))
def test_network_selects_ranks(n):
    """Every n, random ranges of ranks: the list of comparators applied in NumPy."""
    rng = np.random.default_rng(n)
    x = rng.integers(0, 50, size=(n, 40))  # with ties
    expected = np.sort(x, axis=0)
    ranges = [(0, n), (n // 2, n // 2 + 1), (0, 1), (n - 1, n)]
    ranges += [tuple(sorted(rng.choice(n + 1, 2, replace=False))) for _ in range(3)]
    for low, high in ranges:
        y = x.copy()
        for layer in _comparators(n, low, high):
            assert len({row for pair in layer for row in pair}) == 2 * len(layer)
            for i, j in layer:
                assert 0 <= i < j < n
                y[i], y[j] = np.minimum(y[i], y[j]), np.maximum(y[i], y[j])
        np.testing.assert_array_equal(y[low:high], expected[low:high])


@pytest.mark.parametrize("n", range(2, 11))
def test_zero_one_principle(n):
    """A network that sorts all 2^n columns of zeros and ones sorts everything."""
    x = np.array(list(itertools.product([0, 1], repeat=n))).T
    for layer in _comparators(n, 0, n):
        for i, j in layer:
            x[i], x[j] = np.minimum(x[i], x[j]), np.maximum(x[i], x[j])
    assert (np.diff(x, axis=0) >= 0).all()


def test_pruning_drops_comparators():
    full, median = (sum(map(len, _comparators(100, *r))) for r in ((0, 100), (49, 51)))
    assert median < full


@pytest.mark.parametrize("n", [1, 2, 3, 8, 31, 100, 257])
@pytest.mark.parametrize("d", [0, 1, 700])
def test_matches_numpy(n, d):
    x = random_matrix(n, d, seed=n)
    low, high = n // 4, n - n // 4
    np.testing.assert_array_equal(sort_clients(x), np.sort(x, axis=0))
    np.testing.assert_array_equal(sort_clients(x, low, high), np.sort(x, axis=0)[low:high])


def test_many_tiles():
    x = random_matrix(9, 20_011)
    np.testing.assert_array_equal(sort_clients(x, 2), np.sort(x, axis=0)[2:])


def test_ties_infinities_and_signed_zeros():
    rng = np.random.default_rng(0)
    values = np.array([-np.inf, -1e30, -1, -0.0, 0.0, 1, 1e-30, 1e30, np.inf], np.float32)
    x = rng.choice(values, size=(33, 500))
    np.testing.assert_array_equal(sort_clients(x), np.sort(x, axis=0))


def test_float64_and_bfloat16():
    with jax.enable_x64(True):
        x = random_matrix(12, 50, dtype=np.float64)
        out = sort_clients(jnp.asarray(x), 3, 9)
        assert out.dtype == jnp.float64
        np.testing.assert_array_equal(out, np.sort(x, axis=0)[3:9])
    x = jnp.asarray(random_matrix(12, 50), jnp.bfloat16)
    assert sort_clients(x).dtype == jnp.bfloat16
    np.testing.assert_array_equal(sort_clients(x), jnp.sort(x, axis=0))


def test_vmap_and_jit():
    x = np.random.default_rng(0).normal(size=(4, 21, 300)).astype(np.float32)
    out = jax.jit(jax.vmap(lambda x: sort_clients(x, 5, 16)))(x)
    np.testing.assert_array_equal(out, np.sort(x, axis=1)[:, 5:16])


@pytest.mark.parametrize("ties", [False, True])
def test_gradient_is_that_of_jnp_sort(ties):
    rng = np.random.default_rng(0)
    x = rng.integers(0, 6, size=(3, 17, 40)) if ties else rng.normal(size=(3, 17, 40))
    x, weights = jnp.asarray(x, jnp.float32), rng.normal(size=(9, 40)).astype(np.float32)

    def value(x, sort):
        return jnp.sum(weights * sort(x) ** 2)

    def by_jnp(x):
        return jnp.sort(x, axis=0)[4:13]

    def by_network(x):
        return sort_clients(x, 4, 13)

    expected = jax.vmap(jax.grad(lambda x: value(x, by_jnp)))(x)
    gradient = jax.vmap(jax.grad(lambda x: value(x, by_network)))(x)
    np.testing.assert_allclose(gradient, expected, rtol=1e-6)
    np.testing.assert_allclose(jax.jacfwd(by_network)(x[0]), jax.jacrev(by_network)(x[0]))


def test_gradient_against_finite_differences():
    with jax.enable_x64(True):
        x = jnp.asarray(random_matrix(11, 5, dtype=np.float64))
        jax.test_util.check_grads(lambda x: sort_clients(x, 2, 8) ** 2, (x,), order=1)


def test_bad_input():
    x = jnp.ones((5, 2))
    for low, high in [(-1, 3), (3, 3), (4, 2), (0, 6), (5, None)]:
        with pytest.raises(ValueError, match="0 <= low < high <= n, got"):
            sort_clients(x, low, high)
    with pytest.raises(ValueError, match="matrix"):
        sort_clients(jnp.ones(5))
    with pytest.raises(ValueError, match="floats"):
        sort_clients(jnp.ones((5, 2), jnp.int32))
