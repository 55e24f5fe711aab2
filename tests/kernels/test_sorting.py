"""The sorting network against NumPy's sort."""

import contextlib
import itertools

import jax
import jax.numpy as jnp
import jax.test_util
import numpy as np
import pytest

from fedjax_robust.aggregators import (
    bulyan,
    mean_around_median,
    median,
    norm_clipping,
    phocas,
    trimmed_mean,
)
from fedjax_robust.kernels import sorting
from fedjax_robust.kernels.sorting import _comparators, combine_ranks, sort_clients
from fedjax_robust.types import Received


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


# --- What accelerators run ---------------------------------------------------------------------------


@contextlib.contextmanager
def elsewhere():
    """``lax.platform_dependent`` as on an accelerator."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sorting.lax, "platform_dependent", lambda *a, default, **k: default(*a))
        yield


EXTREMES = [-np.inf, -1e30, -2, -1, -1e-30, -0.0, 0.0, 1e-30, 1, 2, 1e30, np.inf]


@pytest.mark.parametrize("dtype", [np.float32, np.float64, jnp.bfloat16, np.float16])
def test_sorting_elsewhere_equals_numpy(dtype):
    rng = np.random.default_rng(0)
    with jax.enable_x64(True):
        for n in (1, 2, 37):
            for x in (rng.choice(EXTREMES, size=(n, 60)), rng.normal(size=(n, 60))):
                x = jnp.asarray(x).astype(dtype)
                exact = np.asarray(x.astype(jnp.float64))
                got = jax.jit(sorting.sorted_elsewhere)(x)
                assert got.dtype == x.dtype
                np.testing.assert_array_equal(got.astype(jnp.float64), np.sort(exact, axis=0))
                order = np.argsort(exact, axis=0, kind="stable")
                np.testing.assert_array_equal(jax.jit(sorting.order_elsewhere)(x), order)
                of_rank = jnp.asarray(rng.normal(size=n)).astype(dtype)
                shares = jax.jit(sorting.shares_elsewhere)(x, of_rank)
                np.testing.assert_array_equal(shares, of_rank[np.argsort(order, axis=0)])
                np.testing.assert_array_equal(shares, sorting._shares(x, of_rank))


def test_moving_elsewhere_equals_that_here():
    """Both ways, and the values themselves, on one order of which ranks 2 .. 6 matter."""
    rng = np.random.default_rng(1)
    x, y = (rng.normal(size=(k, 30)).astype(np.float32) for k in (9, 5))
    order = np.argsort(x, axis=0).astype(np.int32)
    for own, back, operand in [
        (False, False, x[::-1].copy()),
        (True, False, x),
        (False, True, y),
    ]:
        how = {"low": 2, "high": 7, "own": own, "back": back}
        here = jax.jit(lambda order, x, how=how: sorting._move(order, x, **how))(order, operand)
        with elsewhere():
            there = jax.jit(lambda order, x, how=how: sorting._move(order, x, **how))(
                order, operand
            )
        np.testing.assert_array_equal(here, there)


def test_derivatives_elsewhere_equal_those_here():
    """Of both functions, forwards and backwards and twice."""

    def value(x):
        ranks = sort_clients(jnp.sin(x), 2, 7) ** 3
        mixed = combine_ranks(jnp.cos(x), jnp.asarray([1.0, 0.5]), 3, jnp.zeros(9))
        return jnp.sum(ranks * jnp.arange(5.0)[:, None]) + jnp.sum(mixed**3)

    x = jnp.asarray(random_matrix(9, 2, seed=3))
    kinds = (value, jax.grad(value), jax.jacfwd(value), jax.hessian(value))
    here = [jax.jit(kind)(x) for kind in kinds]
    jax.clear_caches()
    with elsewhere():
        there = [jax.jit(kind)(x) for kind in kinds]
    jax.clear_caches()
    for a, b in zip(here, there, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5)


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


def combined(x, coefficients, low, absent=()):
    """In float64; absent rows are deleted and the ranks that lie outside with them."""
    x, n = np.asarray(x, np.float64), len(x)
    values = np.sort(np.delete(x, list(absent), axis=0), axis=0)
    start = (n - len(values)) // 2
    ranks = [r for r in range(len(coefficients)) if coefficients[r] != 0]
    return sum(coefficients[r] * values[low + r - start] for r in ranks)


@pytest.mark.parametrize("n", [1, 2, 3, 100, 257])
@pytest.mark.parametrize("d", [1, 701])
def test_combine_ranks(n, d):
    x = random_matrix(n, d, seed=n)
    low, high = n // 4, n - n // 4
    coefficients = np.random.default_rng(n).normal(size=high - low).astype(np.float32)
    coefficients[::3] = 0
    got = combine_ranks(jnp.asarray(x), jnp.asarray(coefficients), low, jnp.zeros(n))
    scale = np.abs(coefficients).sum() * np.abs(x).max() + 1e-30
    np.testing.assert_allclose(got, combined(x, coefficients, low) * np.ones(d), atol=1e-6 * scale)
    assert combine_ranks(jnp.ones((n, 0)), jnp.ones(1), 0, jnp.zeros(n)).shape == (0,)


def test_combine_ranks_without_absent_rows_whatever_they_hold():
    x = random_matrix(7, 300)
    x[1], x[4] = np.nan, np.inf
    instead = jnp.zeros(7).at[1].set(jnp.inf).at[4].set(-jnp.inf)  # 5 rows take ranks 1 .. 5
    coefficients = np.array([0, 0.5, 0, 2, 1, 0, 0], np.float32)
    got = jax.jit(combine_ranks, static_argnums=2)(x, jnp.asarray(coefficients), 0, instead)
    np.testing.assert_allclose(got, combined(x, coefficients, 0, (1, 4)), rtol=1e-5, atol=1e-5)


def test_combine_ranks_in_float64_bfloat16_and_under_vmap():
    coefficients = np.array([0.5, 0.25, 0, 0.25])
    with jax.enable_x64(True):
        x = random_matrix(9, 20, dtype=np.float64)
        got = combine_ranks(jnp.asarray(x), jnp.asarray(coefficients), 3, jnp.zeros(9))
        np.testing.assert_allclose(got, combined(x, coefficients, 3), rtol=1e-14)
    half = jnp.asarray(random_matrix(9, 20), jnp.bfloat16)
    assert combine_ranks(half, jnp.asarray(coefficients), 3, jnp.zeros(9)).dtype == jnp.bfloat16
    stack = np.random.default_rng(0).normal(size=(3, 9, 20)).astype(np.float32)
    got = jax.vmap(lambda x, c: combine_ranks(x, c, 3, jnp.zeros(9)))(
        stack, jnp.asarray(np.tile(coefficients, (3, 1)))
    )
    for x, one in zip(stack, got, strict=True):
        np.testing.assert_allclose(one, combined(x, coefficients, 3), rtol=1e-5, atol=1e-6)


def test_combine_ranks_gradient():
    """A row's derivative is the coefficient of its rank; none for absent rows, also if they are NaN."""
    x = jnp.asarray(random_matrix(6, 40)).at[2].set(jnp.nan)
    instead = jnp.zeros(6).at[2].set(jnp.inf)
    coefficients = jnp.asarray([0.0, 3.0, 5.0, 0.0], jnp.float32)  # of ranks 1 .. 4

    def value(x):
        return jnp.sum(combine_ranks(x, coefficients, 1, instead))

    ranks = np.argsort(np.argsort(np.where(np.isnan(x), np.inf, x), axis=0), axis=0)
    expected = np.where(np.isnan(x), 0, np.array([0, 0, 3, 5, 0, 0])[ranks])
    np.testing.assert_array_equal(jax.grad(value)(x), expected)
    tangent = jnp.asarray(random_matrix(6, 40, seed=9))
    _, slope = jax.jvp(value, (x,), (tangent,))
    np.testing.assert_allclose(slope, np.sum(expected * tangent), rtol=1e-4)


# --- Derivatives -----------------------------------------------------------------------------------


def middle(x, coefficients=(0.5, 2.0, 1.0)):
    """Ranks 2 .. 4 of 7, squared after a function that mixes the columns: it has second derivatives."""
    ranks = combine_ranks(jnp.sin(x) @ MIX, jnp.asarray(coefficients, x.dtype), 2, jnp.zeros(7))
    return jnp.sum(ranks**3)


def middle_by_jnp(x, coefficients=(0.5, 2.0, 1.0)):
    ranks = jnp.asarray(coefficients, x.dtype) @ jnp.sort(jnp.sin(x) @ MIX, axis=0)[2:5]
    return jnp.sum(ranks**3)


MIX = np.random.default_rng(5).normal(size=(4, 4))


def test_derivatives_of_any_order():
    """Against those of XLA's sort and against finite differences, forward over reverse and the rest."""
    with jax.enable_x64(True):
        x = jnp.asarray(random_matrix(7, 4, dtype=np.float64))
        jax.test_util.check_grads(middle, (x,), order=3, eps=1e-5)
        for twice in (jax.jacfwd, jax.jacrev):
            for once in (jax.jacfwd, jax.jacrev):
                np.testing.assert_allclose(
                    twice(once(middle))(x), twice(once(middle_by_jnp))(x), rtol=1e-9, atol=1e-9
                )

        def cubes(x):
            return jnp.sum(sort_clients(jnp.sin(x) @ MIX, 1, 5) ** 3 * jnp.arange(1.0, 5)[:, None])

        def cubes_by_jnp(x):
            return jnp.sum(
                jnp.sort(jnp.sin(x) @ MIX, axis=0)[1:5] ** 3 * jnp.arange(1.0, 5)[:, None]
            )

        np.testing.assert_allclose(
            jax.hessian(cubes)(x), jax.hessian(cubes_by_jnp)(x), rtol=1e-9, atol=1e-9
        )
        jax.test_util.check_grads(cubes, (x,), order=3, eps=1e-5)


SORTING = {
    "median": median(),
    "trimmed mean": trimmed_mean(2),
    "clipped median": norm_clipping(1.0, base=median()),
    "bulyan": bulyan(1),
    "mean around the median": mean_around_median(2),
    "phocas": phocas(2),
}


def left_out(rule):
    """All leave-one-out results, weighted so that their slopes do not cancel."""

    def results(x, weights):
        n, d = x.shape
        received = Received(x, weights, jnp.arange(n), jnp.zeros(d), jax.random.key(0))
        return jnp.arange(1.0, n + 1)[:, None] * rule.leave_one_out(received, ())

    return results


SORTING |= {f"{name}, one left out": left_out(SORTING[name]) for name in ("median", "trimmed mean")}


@pytest.mark.parametrize("name", SORTING)
def test_second_derivatives_through_rules(name):
    """Against differences of the gradient, without and with absent rows, over a vector of problems."""

    def value(x, weights):
        return jnp.sum(SORTING[name](jnp.tanh(x), weights) ** 3)

    with jax.enable_x64(True):
        slope = jax.jit(jax.vmap(jax.grad(value), (0, None)))
        curvature = jax.jit(jax.vmap(jax.hessian(value), (0, None)))
        x = random_matrix(9, 3, dtype=np.float64)
        steps = 1e-5 * np.eye(27).reshape(27, 9, 3)
        for weights in (np.ones(9), np.where(np.arange(9) == 4, 0.0, 1.0)):
            got = np.asarray(curvature(np.stack([x, x - 1]), weights))
            for point, one in zip((x, x - 1), got, strict=True):
                expected = (slope(point + steps, weights) - slope(point - steps, weights)) / 2e-5
                np.testing.assert_allclose(one.reshape(27, 9, 3), expected, rtol=1e-5, atol=1e-8)
            assert np.max(np.abs(got)) > 1e-3


def test_the_slope_of_ties_goes_to_the_lower_rows():
    x = jnp.asarray([[2.0], [1.0], [2.0], [2.0], [5.0]])
    coefficients = jnp.asarray([3.0, 7.0])  # of ranks 1 and 2: rows 0 and 2
    slope = jax.grad(lambda x: combine_ranks(x, coefficients, 1, jnp.zeros(5))[0])(x)
    np.testing.assert_array_equal(slope[:, 0], [3, 0, 7, 0, 0])
    slope = jax.grad(lambda x: sort_clients(x, 2, 3)[0, 0])(x)
    np.testing.assert_array_equal(slope[:, 0], [0, 0, 1, 0, 0])


@pytest.mark.parametrize("n", [2, 3, 4, 5, 8, 16, 17, 33, 130])
def test_slopes_of_many_columns(n):
    """Several tiles, every rank its own coefficient."""
    x = random_matrix(n, 3001, seed=n)
    coefficients = np.arange(1, n + 1, dtype=np.float32)
    slope = jax.grad(
        lambda x: jnp.sum(combine_ranks(x, jnp.asarray(coefficients), 0, jnp.zeros(n)))
    )(jnp.asarray(x))
    np.testing.assert_array_equal(
        slope, 1 + np.argsort(np.argsort(x, axis=0, kind="stable"), axis=0)
    )


def test_coefficients_and_filling_count_as_constants():
    x = jnp.asarray(random_matrix(5, 3))
    slopes = jax.grad(lambda c, i: jnp.sum(combine_ranks(x, c, 1, i)), argnums=(0, 1))(
        jnp.ones(2), jnp.zeros(5)
    )
    assert all(np.all(np.asarray(s) == 0) for s in slopes)


def test_combine_ranks_refuses():
    x, c, zeros = jnp.ones((5, 2)), jnp.ones(2), jnp.zeros(5)
    for arguments, message in [
        ((x[0], c, 0, zeros), "matrix"),
        ((x.astype(jnp.int32), c, 0, zeros), "floats"),
        ((x, c[:, None], 0, zeros), "coefficients"),
        ((x, c, 0, zeros[:4]), "instead"),
        ((x, c, 4, zeros), "low=4, k=2, n=5"),
        ((x, c, -1, zeros), "low=-1"),
        ((x, c[:0], 0, zeros), "k=0"),
    ]:
        with pytest.raises(ValueError, match=f"combine_ranks needs .*{message}"):
            combine_ranks(*arguments)


def test_bad_input():
    x = jnp.ones((5, 2))
    for low, high in [(-1, 3), (3, 3), (4, 2), (0, 6), (5, None)]:
        with pytest.raises(ValueError, match="0 <= low < high <= n, got"):
            sort_clients(x, low, high)
    with pytest.raises(ValueError, match="matrix"):
        sort_clients(jnp.ones(5))
    with pytest.raises(ValueError, match="floats"):
        sort_clients(jnp.ones((5, 2), jnp.int32))
