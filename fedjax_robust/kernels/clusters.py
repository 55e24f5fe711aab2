"""Splitting numbers, or rows, in two."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from fedjax_robust.kernels.distances import pairwise_distances
from fedjax_robust.kernels.norms import power_of_two
from fedjax_robust.kernels.ranks import coordinate_median
from fedjax_robust.kernels.sorting import sort_clients
from fedjax_robust.types import Array


def distance_of_centres(updates: Array, present: Array) -> Array:
    """Exact one-dimensional 2-means of each column: the distance of its two means, (n, d) -> (d,).

    Of all splits of the sorted values, k-means' sum of squares is least where the variance between the
    two parts, i (r - i) (difference of means)^2 / r, is largest; so is its square root, which does not
    leave the range of floats.
    """
    n = updates.shape[0]
    updates = updates.astype(jnp.promote_types(updates.dtype, jnp.float32))
    # All is relative to the median, for the sake of the sums, and divided so that they do not overflow.
    divisor, inverse = power_of_two(jnp.asarray(4.0 * n, updates.dtype))
    centred = updates * inverse - coordinate_median(updates, present) * inverse
    ascending = sort_clients(jnp.where(present[:, None], centred, jnp.inf))  # absent rows last
    number = jnp.sum(present)
    rank = jnp.arange(1, n + 1)[:, None]
    values = jnp.where(rank <= number, ascending, 0)
    lower = jnp.cumsum(values, axis=0)
    # From the other end: the total minus the lower sum would lose what is small beside it.
    upper = jnp.cumsum(values[::-1], axis=0)[::-1] - values
    rest = jnp.maximum(number - rank, 1)
    difference = upper / rest - lower / rank
    between = jnp.where(rank < number, jnp.sqrt(rank * rest) * difference, -1)
    best = jnp.argmax(between, axis=0)
    chosen = jnp.take_along_axis(difference, best[None], axis=0)[0]
    return jnp.where(number > 1, chosen * divisor, 0)


def two_clusters(x: Array, present: Array) -> Array:
    """2-means of the rows by their distances alone: (n, d) -> (n,) bool, who is in the second one."""
    distances = pairwise_distances(x, present)
    both = present[:, None] & present[None, :]
    # In units of the largest distance, so that squares do not overflow.
    largest = jnp.max(jnp.where(jnp.isfinite(distances), distances, 0))
    _, inverse = power_of_two(largest)
    scaled = jnp.minimum(distances * inverse, 1e9)  # beyond the largest float: far
    squares = jnp.where(both, jnp.square(scaled), 0)
    first, second = jnp.unravel_index(jnp.argmax(squares), squares.shape)

    def from_centre(members: Array) -> Array:
        share = members / jnp.maximum(jnp.sum(members), 1)
        # |x_i - mean|^2 = mean_j D_ij - mean_jk D_jk / 2
        mean_distance = jnp.dot(squares, share, precision="highest")
        return mean_distance - 0.5 * jnp.dot(share, mean_distance, precision="highest")

    def again(_: int, in_second: Array) -> Array:
        one = from_centre((present & ~in_second).astype(squares.dtype))
        two = from_centre((present & in_second).astype(squares.dtype))
        return present & (two < one)

    start = present & (squares[second] < squares[first])
    return jax.lax.fori_loop(0, 10, again, start)
