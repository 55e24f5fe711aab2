"""Array kernels that rules and attacks share.

One mechanism for everything that must not count, ``weight 0 = absent``: rows with NaN or Inf, blocked
or empty clients, padding. Replacing such a row by zeros would be wrong: zeros look honest to Krum.
"""

from __future__ import annotations

import chex
import jax
import jax.numpy as jnp

from fedjax_robust.sorting import combine_ranks, sort_clients
from fedjax_robust.types import Array

_FAR = 10.0  # rows longer than this many median norms do not take part in the centre


def is_present(updates: Array, weights: Array) -> Array:
    """Rows that count: (n, d), (n,) -> (n,) bool, weight > 0 and neither NaN nor Inf."""
    chex.assert_rank([updates, weights], [2, 1])
    chex.assert_equal_shape_prefix([updates, weights], 1)
    return (weights > 0) & jnp.all(jnp.isfinite(updates), axis=1)


def drop_non_finite(updates: Array, weights: Array) -> tuple[Array, Array]:
    """Make rows that hold a NaN or Inf absent, and clear absent rows.

    Args:
      updates: (n, d).
      weights: (n,) >= 0; a negative or NaN weight counts as 0.

    Returns:
      (n, d) with absent rows zero, and (n,) weights with 0 for absent rows.
    """
    present = is_present(updates, weights)
    return jnp.where(present[:, None], updates, 0), jnp.where(present, weights, 0)


def weighted_mean(updates: Array, weights: Array) -> Array:
    """Weighted mean of the rows: (n, d), (n,) >= 0 -> (d,); zero if every weight is 0.

    Weights are normalised first, so that rows up to the largest float do not overflow the sum.
    """
    weights = weights.astype(jnp.promote_types(weights.dtype, updates.dtype))
    total = jnp.sum(weights)
    shares = weights / jnp.where(total > 0, total, 1)
    return jnp.dot(shares.astype(updates.dtype), updates, precision="highest")


def sort_present(
    updates: Array, present: Array, low: int = 0, high: int | None = None
) -> tuple[Array, Array, Array]:
    """Sort every column, absent rows pushed outwards in turn to +inf and -inf.

    The present values then occupy the middle, so that a network pruned to the middle ranks serves any
    number of absent rows.

    Args:
      updates: (n, d), finite in present rows.
      present: (n,) bool.
      low, high: the ranks wanted, 0 <= low < high <= n.

    Returns:
      values (high - low, d) of ranks low .. high - 1; the rank of the smallest present value, ();
      the number of present rows, ().
    """
    filled = jnp.where(present[:, None], updates, _outwards(present)[:, None].astype(updates.dtype))
    start, count = _ranks_of_present(present)
    return sort_clients(filled, low, high), start, count


def _outwards(present: Array) -> Array:
    """(n,) bool -> (n,): +inf, -inf, +inf, ... on absent rows, 0 on present ones."""
    absent_order = jnp.cumsum(~present)  # 1, 2, 3, ... on absent rows
    return jnp.where(present, 0, jnp.where(absent_order % 2 == 1, jnp.inf, -jnp.inf))


def _ranks_of_present(present: Array) -> tuple[Array, Array]:
    """The rank of the smallest present value once absent rows are outside, and their number."""
    count = jnp.sum(present)
    return (present.shape[0] - count) // 2, count


def trimmed_mean_of_present(updates: Array, present: Array, f: int) -> Array:
    """Mean of each column over present rows without its f largest and f smallest values.

    Where fewer than 2f + 1 rows are present, as many are removed as leave one or two.

    Args:
      updates: (n, d); absent rows may hold anything.
      present: (n,) bool.
      f: >= 0; (n - 1) // 2 gives the median.

    Returns:
      (d,); zero if no row is present.
    """
    n = updates.shape[0]
    # Few present rows lie in the middle, whatever f is.
    low, high = min(f, max((n - 2) // 2, 0)), max(n - f, n // 2 + 1)
    start, count = _ranks_of_present(present)
    removed = jnp.minimum(f, jnp.maximum(count - 1, 0) // 2)
    rank = jnp.arange(low, high)
    kept = (rank >= start + removed) & (rank < start + count - removed)
    return combine_ranks(updates, kept / jnp.maximum(jnp.sum(kept), 1), low, _outwards(present))


def coordinate_median(updates: Array, present: Array) -> Array:
    """Median of each column over present rows, the mean of the two middle values if their number is
    even: (n, d), (n,) bool -> (d,); zero if no row is present."""
    return trimmed_mean_of_present(updates, present, (updates.shape[0] - 1) // 2)


def middle_of_sorted(values: Array, start: Array, count: Array) -> Array:
    """Median of ``count`` ascending values (k, d) that begin at row ``start`` -> (d,); zero if none."""
    below = jnp.take(values, start + (count - 1) // 2, axis=0, mode="clip")
    above = jnp.take(values, start + count // 2, axis=0, mode="clip")
    return jnp.where(count > 0, 0.5 * below + 0.5 * above, 0)


def pairwise_squared_distances(x: Array, present: Array) -> Array:
    """Squared Euclidean distances between rows by one Gram matrix.

    Float32 Gram distances lose everything when rows share a large offset, so rows are centred first:
    on the mean of the present rows, without rows longer than 10 median norms (a single row of 1e30
    would otherwise drown the others). The distance does not depend on the centre, so it has no
    gradient.

    Args:
      x: (n, d), finite in present rows.
      present: (n,) bool.

    Returns:
      (n, n), >= 0 and symmetric; +inf where a row is absent or the square overflows.
    """
    chex.assert_rank([x, present], [2, 1])
    norms = jnp.sqrt(jnp.sum(jnp.square(jax.lax.stop_gradient(x)), axis=1))
    typical = jnp.nanmedian(jnp.where(present, norms, jnp.nan))
    near = present & (norms <= _FAR * typical)
    centre = jax.lax.stop_gradient(
        weighted_mean(jnp.where(near[:, None], x, 0), near.astype(x.dtype))
    )
    x = jnp.where(present[:, None], x - centre, 0)
    gram = jnp.dot(x, x.T, precision="highest")
    squares = jnp.diagonal(gram)
    distances = jnp.maximum(squares[:, None] + squares[None, :] - 2 * gram, 0)
    distances = jnp.minimum(distances, distances.T)  # exactly symmetric, whatever the product does
    valid = present[:, None] & present[None, :] & ~jnp.isnan(distances)
    return jnp.where(valid, distances, jnp.inf)


def safe_norm(x: Array, axis: int = -1) -> Array:
    """Euclidean norm with gradient 0 instead of NaN at 0: (..., d) -> (...)."""
    squares = jnp.sum(jnp.square(x), axis=axis)
    positive = squares > 0
    return jnp.where(positive, jnp.sqrt(jnp.where(positive, squares, 1)), 0)


def direction_and_length(x: Array) -> tuple[Array, Array]:
    """Unit vectors and Euclidean lengths: (..., d) -> (..., d), (...). Zero, with gradient 0, for zero.

    Rows are divided by their largest entry first, so that squares neither overflow nor underflow. The
    divisor cancels in the results, so that it has no gradient.
    """
    divisor = jnp.max(jnp.abs(jax.lax.stop_gradient(x)), axis=-1, keepdims=True)
    zero = divisor < smallest_divisor(x.dtype)
    divisor = jnp.minimum(divisor, 1 / jnp.finfo(x.dtype).tiny)  # its reciprocal must not vanish
    divisor = jnp.where(zero, 1, divisor)
    scaled = jnp.where(zero, 0, x / divisor)
    length = jnp.sqrt(jnp.where(zero, 1, jnp.sum(jnp.square(scaled), axis=-1, keepdims=True)))
    return scaled / length, jnp.where(zero, 0, divisor * length)[..., 0]


def smallest_divisor(dtype: jnp.dtype) -> float:
    """What counts as zero in a divisor: 1e-31 in float32, whose reciprocal leaves room for 1e7."""
    return float(jnp.finfo(dtype).tiny / jnp.finfo(dtype).eps)


def changing_direction(update: Array) -> Array:
    """Fang et al. 2020, section 3.1: s_j = 1 where the parameter increases, else -1. (d,) -> (d,)."""
    return jnp.where(update > 0, 1.0, -1.0).astype(update.dtype)
