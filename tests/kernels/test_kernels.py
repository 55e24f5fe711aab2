"""The kernels that rules, attacks and clients share: presence, norms, ranks, distances."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference as ref

from fedjax_robust.kernels.distances import pairwise_distances, pairwise_squared_distances
from fedjax_robust.kernels.norms import changing_direction, safe_norm, weighted_mean
from fedjax_robust.kernels.presence import drop_non_finite, is_present
from fedjax_robust.kernels.ranks import (
    coordinate_median,
    middle_of_sorted,
    sort_present,
    trimmed_mean_of_present,
)
from fedjax_robust.kernels.sorting import sort_clients

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
    # An infinite weight has no mean to give, either.
    _, kept = drop_non_finite(jnp.ones((2, 2)), jnp.array([np.inf, 1]))
    np.testing.assert_array_equal(kept, [0, 1])


def test_integers_become_floats() -> None:
    """The average of integers is none."""
    x, weights = np.array([[1, 2], [4, 4]]), np.array([1, 1])
    updates, kept = drop_non_finite(x, weights)
    assert updates.dtype == kept.dtype == jnp.float32
    np.testing.assert_array_equal(is_present(x, np.array([1, 0])), [True, False])
    present = np.ones(2, bool)
    np.testing.assert_array_equal(weighted_mean(x, weights), [2.5, 3])
    np.testing.assert_array_equal(coordinate_median(x, present), [2.5, 3])
    np.testing.assert_array_equal(trimmed_mean_of_present(x, present, 0), [2.5, 3])
    assert sort_present(x, present)[0].dtype == jnp.float32
    assert pairwise_squared_distances(x, present)[0, 1] == 13


@pytest.mark.parametrize(
    "kernel",
    [
        is_present,
        drop_non_finite,
        weighted_mean,
        sort_present,
        coordinate_median,
        lambda x, w: trimmed_mean_of_present(x, w, 1),
        pairwise_distances,
        pairwise_squared_distances,
    ],
)
def test_kernels_refuse_other_shapes(kernel: Callable) -> None:
    for x, weights, message in [
        (jnp.ones(3), jnp.ones(3), r"needs updates \(n, d\).* got shape \(3,\)"),
        (jnp.ones((3, 2, 2)), jnp.ones(3), r"got shape \(3, 2, 2\)"),
        (jnp.ones((0, 2)), jnp.ones(0), r"n >= 1 clients, got shape \(0, 2\)"),
        (jnp.ones((3, 2)), jnp.ones(4), r"one weight for each row, shape \(3,\), got .*\(4,\)"),
        (jnp.ones((3, 2)), jnp.ones((3, 1)), r"got weights of shape \(3, 1\)"),
    ]:
        with pytest.raises(ValueError, match=message):
            kernel(x, weights)


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
        np.testing.assert_array_equal(np.diagonal(distances)[present], 0)
        # Squares beyond the largest float are infinite, those below the smallest are 0.
        assert np.all(np.isinf(distances[both & (expected > 4e38)])), what
        inside = both & (expected < 3e38)
        np.testing.assert_allclose(
            distances[inside], expected[inside], rtol=1e-5, atol=1e-37, err_msg=what
        )


def test_distances_beside_an_offset_and_a_huge_row() -> None:
    x = (1e4 + 0.1 * np.random.default_rng(6).normal(size=(8, 20))).astype(np.float32)
    expected = ref.pairwise_squared_distances(x)
    np.testing.assert_allclose(distances_of(x, np.ones(8, bool)), expected, rtol=1e-3, atol=1e-4)
    for size in (1e7, 1e30):
        with_huge = np.vstack([x, np.full(20, size, np.float32)])
        distances = distances_of(with_huge, np.ones(9, bool))
        np.testing.assert_allclose(distances[:8, :8], expected, rtol=1e-3, atol=1e-4)
        assert np.all(distances[8, :8] > 1e13)


def sum_of_squares(x: jax.Array, present: np.ndarray, to: np.ndarray) -> jax.Array:
    distances = pairwise_squared_distances(x, present)
    return jnp.sum(jnp.where(jnp.isfinite(distances), distances, 0) * to)


def sum_of_lengths(x: jax.Array, present: np.ndarray, to: np.ndarray) -> jax.Array:
    distances = pairwise_distances(x, present)
    return jnp.sum(jnp.where(jnp.isfinite(distances), distances, 0) * to)


@pytest.mark.parametrize("total", [sum_of_squares, sum_of_lengths])
def test_distances_can_be_differentiated(total: Callable) -> None:
    """Once, in both modes, also where further passes are needed, which are loops of unknown length."""
    with jax.enable_x64(True):
        x = np.random.default_rng(7).normal(size=(5, 3))
        x[4] = x[3] + 1e-2 * x[4]
        x[[0, 1]] = -9 * x[3], -9 * x[3] + 0.01
        present = np.array([True, True, False, True, True])
        to = np.random.default_rng(8).normal(size=(5, 5)) * (present[:, None] & present)
        steps = 1e-6 * np.eye(15).reshape(15, 5, 3)
        many = jax.jit(jax.vmap(lambda x: total(x, present, to)))
        differences = np.reshape((many(x + steps) - many(x - steps)) / 2e-6, (5, 3))
        slopes = jax.grad(total)(x, present, to)
        np.testing.assert_allclose(slopes, differences, atol=1e-7)
        np.testing.assert_array_equal(slopes[2], np.zeros(3))
        moved = jax.jvp(lambda x: total(x, present, to), (x,), (steps[4] * 1e6,))[1]
        np.testing.assert_allclose(moved, differences.ravel()[4], atol=1e-7)


def test_second_derivatives_of_squared_distances() -> None:
    """Of a quadratic form: constant, also where two rows are equal."""
    with jax.enable_x64(True):
        x = np.random.default_rng(9).normal(size=(4, 2))
        x[3] = x[2]
        present = np.ones(4, bool)
        to = np.random.default_rng(10).normal(size=(4, 4))
        both = to + to.T
        # sum_ij to_ij |x_i - x_j|^2 = x^T L x, L = diag(row sums) - both
        laplacian = np.diag(both.sum(axis=1)) - both
        laplacian[np.diag_indices(4)] = both.sum(axis=1) - np.diagonal(both)
        expected = 2 * np.einsum("ij,kl->ikjl", laplacian, np.eye(2))
        for second in (jax.hessian, lambda f: jax.jacrev(jax.jacrev(f))):
            got = second(lambda x: sum_of_squares(x, present, to))(x)
            np.testing.assert_allclose(got, expected, atol=1e-12)


def test_derivatives_of_distances_beside_huge_rows_are_finite() -> None:
    slope = jax.jit(jax.grad(lambda x: distances_of(x, np.ones(5, bool))[0, 1]))
    for row in (1e30, 3e38, 0.0):
        x = matrix(9, 5, 3)
        x[2] = row
        expected = 2 * (x[0] - x[1])
        np.testing.assert_allclose(slope(x)[0], expected, rtol=1e-4)
        np.testing.assert_allclose(slope(x)[1], -expected, rtol=1e-4)
        np.testing.assert_array_equal(slope(x)[2:], np.zeros((3, 3)))
    # Where the distance is 0, its derivative is 0, too.
    x[1] = x[0]
    root = jax.grad(lambda x: pairwise_distances(x, np.ones(5, bool))[0, 1])
    np.testing.assert_array_equal(root(x), np.zeros((5, 3)))


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
