"""2-means of few rows, by a rule of ties that rounding cannot change."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from fedjax_robust.types import Array

_EQUAL = 1e-4  # of the largest square: what lies closer is a tie


def two_means(x: Array, present: Array, steps: int = 10) -> Array:
    """``two_means_by_squares`` of rows with few features, whose differences are taken directly.

    Args:
      x: (n, k) floats of moderate size, k small: (n, n, k) differences are in memory.
      present: (n,) bool.
      steps: after which it stops.

    Returns:
      (n,) bool, who is in the second cluster; nobody if all rows are equal.
    """
    x = jax.lax.stop_gradient(x)
    squares = jnp.sum(jnp.square(x[:, None, :] - x[None, :, :]), axis=-1)
    return two_means_by_squares(squares, present, steps)


def two_means_by_squares(squares: Array, present: Array, steps: int = 10) -> Array:
    """Lloyd's iteration from the two rows that are furthest apart.

    Features such as signs, and shares of few coordinates, tie often, and rounding must not decide.
    Squares that differ by less than 1e-4 of the largest one between two rows are equal: of equally
    distant pairs the first one starts, and a row as close to both means joins the first.

    Args:
      squares: (n, n) squared distances, finite between present rows.
      present: (n,) bool.
      steps: after which it stops.

    Returns:
      (n,) bool, who is in the second cluster; nobody if all rows are equal.
    """
    squares = jax.lax.stop_gradient(squares)
    squares = jnp.where(present[:, None] & present[None, :], squares, 0)
    largest = jnp.max(squares)
    near = _EQUAL * largest
    pair = jnp.argmax((squares >= largest - near).ravel())
    first, second = jnp.unravel_index(pair, squares.shape)

    def nearer_second(to_first: Array, to_second: Array) -> Array:
        return present & (to_second < to_first - near)

    def to_mean(members: Array) -> Array:
        # |x_i - mean|^2 = mean_j D_ij - mean_jk D_jk / 2
        share = members.astype(squares.dtype) / jnp.maximum(jnp.sum(members), 1)
        mean_square = jnp.dot(squares, share, precision="highest")
        own = 0.5 * jnp.dot(share, mean_square, precision="highest")
        return jnp.where(jnp.any(members), mean_square - own, jnp.inf)

    def again(_: int, in_second: Array) -> Array:
        return nearer_second(to_mean(present & ~in_second), to_mean(in_second))

    start = nearer_second(squares[first], squares[second])
    return jax.lax.fori_loop(0, steps, again, start)


def larger_cluster(second: Array, present: Array) -> Array:
    """The rows of the larger of two clusters, all present ones if they are equal: (n,) bool."""
    sizes = jnp.sum(present & ~second), jnp.sum(present & second)
    return present & ((sizes[0] == sizes[1]) | (second == (sizes[1] > sizes[0])))
