"""The kernels that rules, attacks and clients share: statistics, sorting, sampling."""

from __future__ import annotations

import itertools
import math
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference as ref
from scipy.stats import chi2

from fedjax_robust.clients import sample_without_replacement
from fedjax_robust.robust_stats import (
    changing_direction,
    coordinate_median,
    drop_non_finite,
    middle_of_sorted,
    pairwise_squared_distances,
    safe_norm,
    sort_present,
    weighted_mean,
)
from fedjax_robust.sorting import sort_clients

distances_of = jax.jit(pairwise_squared_distances)


def matrix(seed: int, n: int, d: int) -> np.ndarray:
    return (0.5 + np.random.default_rng(seed).normal(size=(n, d))).astype(np.float32)


# --- Absent rows and means -----------------------------------------------------------------------


def test_drop_non_finite() -> None:
    x = np.array([[1, 2], [3, np.nan], [5, 6], [np.inf, 0], [7, 8], [0, -np.inf], [1, 1], [2, 2]])
    weights = np.array([1, 1, 0, 1, 2.5, 1, -1, np.nan])
    updates, kept = drop_non_finite(jnp.asarray(x, jnp.float32), jnp.asarray(weights, jnp.float32))
    np.testing.assert_array_equal(kept, [1, 0, 0, 0, 2.5, 0, 0, 0])
    np.testing.assert_array_equal(updates[np.array([0, 4])], [[1, 2], [7, 8]])
    np.testing.assert_array_equal(updates[kept == 0], np.zeros((6, 2)))
    with pytest.raises(AssertionError, match="rank"):
        drop_non_finite(jnp.ones(3), jnp.ones(3))
    with pytest.raises(AssertionError, match="shape"):
        drop_non_finite(jnp.ones((3, 2)), jnp.ones(4))


def test_weighted_mean() -> None:
    x, weights = matrix(0, 6, 4), np.array([1, 0, 2.5, 3, 0.5, 1], np.float32)
    np.testing.assert_allclose(weighted_mean(x, weights), ref.mean(x, weights), rtol=1e-5)
    np.testing.assert_array_equal(weighted_mean(x, 0 * weights), np.zeros(4))
    # The sum of the rows, or of weighted rows, would be infinite.
    huge = np.full((5, 2), 3e38, np.float32)
    np.testing.assert_allclose(weighted_mean(huge, np.full(5, 100, np.float32)), huge[0], rtol=1e-6)


def test_weighted_mean_in_float64_of_float32_weights() -> None:
    with jax.enable_x64(True):
        x = np.random.default_rng(1).normal(size=(3, 4))
        for weights in (np.ones(3, np.float32), np.array([1, 5, 1])):
            result = weighted_mean(jnp.asarray(x), jnp.asarray(weights))
            assert result.dtype == np.float64
            np.testing.assert_allclose(result, ref.mean(x, weights), rtol=1e-14)


# --- Sorting -------------------------------------------------------------------------------------


def test_sort_clients_sorts_every_column() -> None:
    for n in [1, 2, 3, 4, 5, 7, 8, 11, 16, 19]:
        x = np.random.default_rng(n).integers(-4, 5, size=(n, 6)).astype(np.float32)
        x[0, 0], x[n // 2, 1] = np.inf, -np.inf
        expected = np.sort(x, axis=0)
        np.testing.assert_array_equal(sort_clients(x), expected)
        low = n // 3
        np.testing.assert_array_equal(sort_clients(x, low, low + 1), expected[low : low + 1])
        if n > 3:
            np.testing.assert_array_equal(sort_clients(x, 1, n - 1), expected[1 : n - 1])


def test_sort_clients_is_a_sorting_network() -> None:
    """It sorts all matrices if it sorts those of 0 and 1 (Knuth's zero-one principle), all of which are
    the columns here: more than one tile, the last one overlapping."""
    n = 10
    x = np.array(list(itertools.product([0, 1], repeat=n)), np.float32).T[:, : 2**n - 30]
    for low, high in [(0, n), (4, 6), (0, 1), (7, 9)]:
        np.testing.assert_array_equal(sort_clients(x, low, high), np.sort(x, axis=0)[low:high])


def test_sort_clients_moves_derivatives_along() -> None:
    x, tangent = matrix(2, 7, 5), matrix(3, 7, 5)
    order = np.argsort(x, axis=0)[2:5]
    values, moved = jax.jvp(lambda x: sort_clients(x, 2, 5), (x,), (tangent,))
    np.testing.assert_array_equal(values, np.take_along_axis(x, order, 0))
    np.testing.assert_array_equal(moved, np.take_along_axis(tangent, order, 0))
    slopes = jax.grad(lambda x: jnp.vdot(sort_clients(x, 2, 5), tangent[:3]))(x)
    expected = np.zeros((7, 5), np.float32)
    np.put_along_axis(expected, order, tangent[:3], axis=0)
    np.testing.assert_array_equal(slopes, expected)


def test_sort_clients_refuses() -> None:
    for bad in [np.ones(3, np.float32), np.ones((3, 2), np.int32)]:
        with pytest.raises(ValueError, match="needs a matrix"):
            sort_clients(bad)
    for low, high in [(-1, 2), (2, 2), (0, 4), (3, None)]:
        with pytest.raises(ValueError, match="low < high <= n"):
            sort_clients(np.ones((3, 2), np.float32), low, high)


def test_sort_present_keeps_the_middle() -> None:
    """Whatever the number of absent rows, the present values are consecutive from the reported rank."""
    n = 9
    x = matrix(4, n, 4)
    sort = jax.jit(sort_present)
    for count in range(n + 1):
        present = np.random.default_rng(count).permutation(n) < count
        values, start, number = sort(x, present)
        assert number == count and start == (n - count) // 2
        np.testing.assert_array_equal(values[start : start + count], np.sort(x[present], axis=0))
        assert np.all(np.isinf(values[:start])) and np.all(np.isinf(values[start + count :]))
    # Only some ranks: the same rows of it.
    values, start, _ = sort_present(x, np.arange(n) != 3, 3, 6)
    np.testing.assert_array_equal(
        values, np.sort(np.delete(x, 3, 0), axis=0)[3 - start : 6 - start]
    )


def test_coordinate_median() -> None:
    for n in (1, 2, 5, 8):
        x, median = matrix(n, n, 3), jax.jit(coordinate_median)
        for count in range(n + 1):
            present = np.random.default_rng(count).permutation(n) < count
            expected = ref.median(x, present.astype(float))
            np.testing.assert_allclose(median(x, present), expected, rtol=1e-6)
    # The mean of two huge values is not infinite.
    huge = np.full((2, 1), 3e38, np.float32)
    np.testing.assert_allclose(coordinate_median(huge, np.ones(2, bool)), [3e38], rtol=1e-6)


def test_middle_of_sorted() -> None:
    values = np.array([[-np.inf], [1], [2], [4], [8], [np.inf]], np.float32)
    assert middle_of_sorted(values, jnp.array(1), jnp.array(4)) == 3
    assert middle_of_sorted(values, jnp.array(1), jnp.array(3)) == 2
    assert middle_of_sorted(values, jnp.array(2), jnp.array(1)) == 2
    assert middle_of_sorted(values, jnp.array(3), jnp.array(0)) == 0


# --- Distances, norms, directions ----------------------------------------------------------------


def test_distances_equal_the_reference() -> None:
    for what, x in ref.nasty_matrices(10, 6, np.random.default_rng(5)).items():
        present = np.all(np.isfinite(x), axis=1)
        present[3] = False
        distances = np.asarray(distances_of(np.where(present[:, None], x, 0), present))
        assert np.all(distances >= 0) and not np.any(np.isnan(distances))
        np.testing.assert_array_equal(distances, distances.T)
        both = present[:, None] & present[None, :]
        assert np.all(np.isinf(distances[~both])), what
        expected = ref.pairwise_squared_distances(np.where(present[:, None], x, 0))
        # A Gram matrix is exact to rounding of the squared lengths, from the centre of the ordinary
        # rows; overflowing squares are infinite.
        lengths = np.linalg.norm(np.where(present[:, None], x, 0).astype(np.float64), axis=1)
        near = present & (lengths <= 10 * np.median(lengths[present]))
        squares = np.sum(
            (x.astype(np.float64) - x[near].mean(axis=0, dtype=np.float64)) ** 2, axis=1
        )
        error = 1e-5 * (squares[:, None] + squares[None, :]) + 1e-38
        overflow = squares[:, None] + squares[None, :] > 1e38
        assert np.all(np.isinf(distances[both & overflow])), what
        inside = both & ~overflow
        assert np.all(np.abs(distances[inside] - expected[inside]) <= error[inside]), what


def test_distances_beside_an_offset_and_a_huge_row() -> None:
    x = (1e4 + 0.1 * np.random.default_rng(6).normal(size=(8, 20))).astype(np.float32)
    expected = ref.pairwise_squared_distances(x)
    np.testing.assert_allclose(distances_of(x, np.ones(8, bool)), expected, rtol=1e-3, atol=1e-4)
    for size in (1e7, 1e30):
        with_huge = np.vstack([x, np.full(20, size, np.float32)])
        distances = distances_of(with_huge, np.ones(9, bool))
        np.testing.assert_allclose(distances[:8, :8], expected, rtol=1e-3, atol=1e-4)
        assert np.all(distances[8, :8] > 1e13)


def test_distances_can_be_differentiated() -> None:
    with jax.enable_x64(True):
        x = np.random.default_rng(7).normal(size=(4, 3))
        present = np.array([True, True, False, True])
        to = np.random.default_rng(8).normal(size=(4, 4)) * (present[:, None] & present)

        def total(x: jax.Array) -> jax.Array:
            distances = distances_of(x, present)
            return jnp.sum(jnp.where(jnp.isfinite(distances), distances, 0) * to)

        slopes = jax.grad(total)(x)
        differences = [
            (total(x + step) - total(x - step)) / 2e-6
            for step in 1e-6 * np.eye(12).reshape(12, 4, 3)
        ]
        np.testing.assert_allclose(slopes, np.reshape(differences, (4, 3)), atol=1e-7)
        np.testing.assert_array_equal(slopes[2], np.zeros(3))
    for row in (1e30, 3e38, 0.0):
        x = matrix(9, 5, 3)
        x[2] = row
        assert np.all(np.isfinite(jax.grad(lambda x: distances_of(x, np.ones(5, bool))[0, 1])(x)))


def test_safe_norm() -> None:
    x = np.array([[3, 4], [0, 0], [-5, 12]], np.float32)
    np.testing.assert_allclose(safe_norm(x), [5, 0, 13])
    np.testing.assert_allclose(safe_norm(x, axis=0), np.linalg.norm(x, axis=0), rtol=1e-6)
    slopes = jax.grad(lambda x: jnp.sum(safe_norm(x)))(x)
    np.testing.assert_allclose(slopes, [[0.6, 0.8], [0, 0], [-5 / 13, 12 / 13]], rtol=1e-6)


def test_changing_direction() -> None:
    x = np.array([0.5, 0, -2, 1e-30], np.float32)
    result = changing_direction(jnp.asarray(x))
    np.testing.assert_array_equal(result, ref.changing_direction(x))
    assert result.dtype == jnp.float32


# --- Sampling without replacement ----------------------------------------------------------------


@partial(jax.jit, static_argnames=("size", "draws"))
def subsets(count: jax.Array, size: int, draws: int) -> tuple[jax.Array, jax.Array]:
    """(draws, size) positions and mask."""
    keys = jax.random.split(jax.random.key(0), draws)
    return jax.vmap(lambda key: sample_without_replacement(key, count, size))(keys)


def test_samples_are_distinct_and_in_range() -> None:
    for count in [0, 1, 4, 5, 6, 40, 1_000_000]:
        positions, mask = map(np.asarray, subsets(count, 5, 200))
        used = min(count, 5)
        assert positions.shape == mask.shape == (200, 5) and mask.dtype == np.float32
        np.testing.assert_array_equal(mask, np.tile(np.arange(5) < used, (200, 1)))
        assert np.all((positions >= 0) & (positions < max(count, 1)))
        assert all(len(set(row[:used])) == used for row in positions.tolist())
        if count in (4, 5):  # all there is
            np.testing.assert_array_equal(np.sort(positions[:, :used]), [range(used)] * 200)
        np.testing.assert_array_equal(positions[:, used:], 0)


@pytest.mark.parametrize(("count", "size"), [(6, 3), (5, 1), (7, 6)])
def test_every_subset_is_equally_likely(count: int, size: int) -> None:
    """Chi-square at 1e-4 for a fixed key."""
    draws = 4000
    positions = np.asarray(subsets(count, size, draws)[0])
    kinds = [frozenset(kind) for kind in itertools.combinations(range(count), size)]
    seen = [frozenset(row) for row in positions.tolist()]
    expected = draws / math.comb(count, size)
    statistic = sum((seen.count(kind) - expected) ** 2 / expected for kind in kinds)
    assert statistic < chi2.ppf(1 - 1e-4, len(kinds) - 1)
    assert statistic > chi2.ppf(1e-4, len(kinds) - 1)  # nor suspiciously even
