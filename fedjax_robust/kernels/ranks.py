"""Medians, trimmed means and sorted columns of the rows that are present."""

from __future__ import annotations

import jax.numpy as jnp
from jax import lax

from fedjax_robust import checks
from fedjax_robust.kernels.norms import accumulator
from fedjax_robust.kernels.sorting import combine_ranks, sort_clients
from fedjax_robust.types import Array


def sort_present(
    updates: Array, present: Array, low: int = 0, high: int | None = None
) -> tuple[Array, Array, Array]:
    """Sort every column, absent rows pushed outwards in turn to +inf and -inf.

    The present values then occupy the middle, so that a network pruned to the middle ranks serves any
    number of absent rows.

    Args:
      updates: (n, d), finite in present rows.
      present: (n,) bool.
      low: the first rank wanted, 0 <= low < high.
      high: one after the last, <= n.

    Returns:
      values (high - low, d) of ranks low .. high - 1; the rank of the smallest present value, ();
      the number of present rows, ().
    """
    updates, _ = checks.matrix("sort_present", updates, present)
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


def trimmed_mean_of_present(updates: Array, present: Array, f: int | Array) -> Array:
    """Mean of each column over present rows without its f largest and f smallest values.

    Where fewer than 2f + 1 rows are present, as many are removed as leave one or two.

    Args:
      updates: (n, d); absent rows may hold anything.
      present: (n,) bool.
      f: >= 0; (n - 1) // 2 gives the median. It may be traced; then all ranks are sorted.

    Returns:
      (d,); zero if no row is present.
    """
    updates, _ = checks.matrix("trimmed_mean_of_present", updates, present)
    n = updates.shape[0]
    # Few present rows lie in the middle, whatever f is.
    low, high = 0, n  # a traced f may be anything
    if checks.is_known(f):
        low, high = min(int(f), max((n - 2) // 2, 0)), max(n - int(f), n // 2 + 1)
    start, count = _ranks_of_present(present)
    removed = jnp.minimum(f, jnp.maximum(count - 1, 0) // 2)
    rank = jnp.arange(low, high)
    kept = (rank >= start + removed) & (rank < start + count - removed)
    coefficients = kept / jnp.maximum(jnp.sum(kept), 1)
    exact = updates.astype(accumulator(updates.dtype))
    return combine_ranks(exact, coefficients, low, _outwards(present)).astype(updates.dtype)


def coordinate_median(updates: Array, present: Array) -> Array:
    """Median of each column over the rows that are present; of an even number the mean of the middle two.

    Args:
      updates: (n, d); absent rows may hold anything.
      present: (n,) bool.

    Returns:
      (d,); zero if no row is present.
    """
    return trimmed_mean_of_present(updates, present, (updates.shape[0] - 1) // 2)


def row(values: Array, i: Array) -> Array:
    """One row (d,) of (k, d), the nearest if there is no i-th: by a slice, whose gradient is one, too
    (that of ``jnp.take`` is a scatter)."""
    i = jnp.clip(i, 0, values.shape[0] - 1)
    return lax.dynamic_index_in_dim(values, i, keepdims=False)


def middle_of_sorted(values: Array, start: Array, count: Array) -> Array:
    """Median of ``count`` ascending values (k, d) that begin at row ``start`` -> (d,); zero if none."""
    below = row(values, start + (count - 1) // 2)
    above = row(values, start + count // 2)
    return jnp.where(count > 0, 0.5 * below + 0.5 * above, 0)


def mean_around_median(x: Array, present: Array, dropped: int | Array) -> Array:
    """Per coordinate, the mean of all but ``dropped`` values: those closest to the median are kept.

    In sorted order they are neighbours, so it is enough to find where their window starts.

    Args:
      x: (n, d).
      present: (n,) bool.
      dropped: values left out, 0 <= dropped < n; at least one value is kept.

    Returns:
      (d,); zero if no row is present.

    Raises:
      ValueError: for other shapes, or a number that is out of range.
    """
    x, _ = checks.matrix("mean_around_median", x, present)
    n = x.shape[0]
    checks.count("mean_around_median", dropped=dropped)
    if checks.is_known(dropped) and dropped >= n:
        raise ValueError(f"mean_around_median needs dropped < n, got dropped={dropped}, n={n}")
    values, start, count = sort_present(x, present)
    return _window(values, start, count, middle_of_sorted(values, start, count), dropped)


def mean_around(x: Array, present: Array, centre: Array, dropped: int | Array) -> Array:
    """``mean_around_median`` with another centre (d,), which need not be a value of the column."""
    values, start, count = sort_present(x, present)
    return _window(values, start, count, centre, dropped)


def _window(
    values: Array, start: Array, count: Array, middle: Array, dropped: int | Array
) -> Array:
    n = values.shape[0]
    kept = jnp.maximum(count - dropped, 1)
    shifts = jnp.arange(int(dropped) if checks.is_known(dropped) else n - 1)
    left = jnp.take(values, start + shifts, axis=0, mode="clip")
    right = jnp.take(values, start + shifts + kept, axis=0, mode="clip")
    # Moving the window up by one trades `left` for `right`; it pays if `right` is closer. Their mean is
    # rounded as the median is, so that the two middle ones of an even number are equally close.
    better = (0.5 * left + 0.5 * right < middle) & (shifts < count - kept)[:, None]
    begin = start + jnp.sum(better, axis=0)
    rank = jnp.arange(n)[:, None]
    window = (rank >= begin) & (rank < begin + jnp.minimum(kept, count))
    # Divided before the sum, which could overflow; float16 is summed in float32.
    shares = jnp.where(window, values / kept.astype(values.dtype), 0)
    exact = jnp.promote_types(values.dtype, jnp.float32)
    return jnp.sum(shares, axis=0, dtype=exact).astype(values.dtype)
