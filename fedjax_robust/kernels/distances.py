"""Distances between rows that attackers cannot drown."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp

from fedjax_robust import checks
from fedjax_robust.kernels.norms import accumulator, power_of_two, weighted_mean
from fedjax_robust.types import Array

# |x_i - x_j|^2 = |y_i|^2 + |y_j|^2 - 2 y_i . y_j, where y is x minus any centre, takes one product of
# matrices; but its rounding error is a part of |y_i|^2 + |y_j|^2, so that rows far from the centre lose
# their distances to each other. Attackers choose where the centre lies. So a distance from a product is
# believed only if its square is no small part of that sum. Where it is not, the two rows are close to
# each other, seen from the centre: they get one of their own group as another centre.

_BELIEVED = 1 / 64  # of the sum of squares; on ordinary rows distances are about all of it
_NEAR = 3.0  # rows larger than this many median sizes do not take part in the first centre
_PRODUCTS = 4  # further products of matrices; what is left then is computed row by row


def pairwise_distances(x: Array, present: Array) -> Array:
    """Euclidean distances between rows, right also where an attacker chooses some of the rows.

    Each has a relative error below 1e-3 (typically 1e-6) whatever the others are: beside rows many
    orders of magnitude longer, in clusters far from each other, at scales from 1e-30 to 1e30 and in
    any mixture of them. Differences of entries below the smallest normal float, 1e-38, may count as 0.

    On ordinary rows it takes one product of the matrix with its transpose, under attack usually one
    or two more. At worst it takes five, and then n - 1 passes over the matrix.

    It can be differentiated any number of times, except where a distance is 0; there the derivative
    is 0.

    Args:
      x: (n, d), finite in present rows. float16 and bfloat16 are computed in float32.
      present: (n,) bool.

    Returns:
      (n, n) float32 (or float64 for float64), >= 0 and symmetric, 0 on the diagonal; +inf where a row
      is absent, where one has an entry beyond a quarter of the largest float, 8e37, and where the
      distance is beyond the largest float.

    Raises:
      ValueError: for other shapes.
    """
    return _distances(*_rows("pairwise_distances", x, present))


def pairwise_squared_distances(x: Array, present: Array) -> Array:
    """Squares of ``pairwise_distances``, which can be differentiated any number of times everywhere.

    Squares leave the range of floats where distances do not: rules compare distances instead.

    Args:
      x: (n, d), finite in present rows. float16 and bfloat16 are computed in float32.
      present: (n,) bool.

    Returns:
      (n, n), >= 0 and symmetric; +inf where a row is absent or the square overflows.

    Raises:
      ValueError: for other shapes.
    """
    return _squared_distances(*_rows("pairwise_squared_distances", x, present))


def _rows(what: str, x: Array, present: Array) -> tuple[Array, Array]:
    x, _ = checks.matrix(what, x, present)
    return x.astype(accumulator(x.dtype)), jnp.asarray(present) > 0


@jax.custom_jvp
def _squared_distances(x: Array, present: Array) -> Array:
    return jnp.square(_distances(x, present))


@_squared_distances.defjvp
def _squared_distances_jvp(
    primals: tuple[Array, Array], tangents: tuple[Array, Array]
) -> tuple[Array, Array]:
    squares = _squared_distances(*primals)
    moved = 2 * _products_of_differences(primals[0], tangents[0], primals[1])
    return squares, jnp.where(jnp.isfinite(squares), moved, 0)


@jax.custom_jvp
def _distances(x: Array, present: Array) -> Array:
    return _accurate_distances(x, present)


@_distances.defjvp
def _distances_jvp(
    primals: tuple[Array, Array], tangents: tuple[Array, Array]
) -> tuple[Array, Array]:
    distances = _distances(*primals)
    moved = _products_of_differences(primals[0], tangents[0], primals[1])
    usable = (distances > 0) & jnp.isfinite(distances)
    return distances, jnp.where(usable, moved / jnp.where(usable, distances, 1), 0)


def _products_of_differences(x: Array, t: Array, present: Array) -> Array:
    """(x_i - x_j) . (t_i - t_j) for all pairs: (n, d), (n, d) -> (n, n). Independent of the centre."""
    size = _sizes(x, present)
    near = _taken(size, present)[:, None]
    x = jnp.where(near, x - _first_centre(x, present, size), 0)
    t = jnp.where(near, t, 0)
    products = jnp.dot(x, t.T, precision="highest")
    own = jnp.diagonal(products)
    return own[:, None] + own[None, :] - products - products.T


def _sizes(x: Array, rows: Array) -> Array:
    """Largest entries of some rows: (n, d), (n,) -> (n,); 0 for the others. Without a gradient."""
    x = jax.lax.stop_gradient(x)
    # Without a copy of |x|, which the CPU would make.
    largest = jnp.maximum(jnp.max(x, axis=1, initial=0), -jnp.min(x, axis=1, initial=0))
    return jnp.where(rows, largest, 0)


def _taken(size: Array, present: Array) -> Array:
    """Rows whose differences cannot overflow; the others are infinitely far from everything."""
    return present & (size <= jnp.finfo(size.dtype).max / 4)


def _first_centre(x: Array, present: Array, size: Array) -> Array:
    """Mean of the present rows that are not much larger than most: (d,), without a gradient."""
    near = _taken(size, present) & (size <= _NEAR * _typical(size, present))
    x = jnp.where(near[:, None], jax.lax.stop_gradient(x), 0)
    return weighted_mean(x, near.astype(x.dtype))


def _typical(size: Array, present: Array) -> Array:
    """The median of the present rows' sizes."""
    ascending = jnp.sort(jnp.where(present, size, jnp.inf))
    return ascending[jnp.maximum(jnp.sum(present) - 1, 0) // 2]


@functools.partial(jax.jit, inline=True)  # as ``sorting`` says of its own
def _accurate_distances(x: Array, present: Array) -> Array:
    n = x.shape[0]
    smallest = jnp.finfo(x.dtype).tiny
    size = _sizes(x, present)
    taken = _taken(size, present)
    itself = jnp.eye(n, dtype=bool)
    pairs = taken[:, None] & taken[None, :] & ~itself

    Carry = tuple[Array, Array, Array]

    def doubtful(part: Array) -> Array:
        return pairs & (part < _BELIEVED)

    def units_around_leaders(leader: Array) -> tuple[Array, Array]:
        # Row by row: x[leader], and the differences before they are divided, would be matrices, too.
        def place(i: Array, rows: tuple[Array, Array]) -> tuple[Array, Array]:
            y = jnp.where(taken[i], x[i] - x[leader[i]], 0)
            unit, inverse = power_of_two(jnp.maximum(jnp.max(jnp.abs(y), initial=0), smallest))
            # A slice, as a scatter might be in another place and double the memory.
            units = jax.lax.dynamic_update_index_in_dim(rows[0], y * inverse, i, axis=0)
            return units, rows[1].at[i].set(unit)

        return jax.lax.fori_loop(0, n, place, (jnp.zeros_like(x), jnp.ones(n, x.dtype)))

    def another_centre(carry: Carry) -> Carry:
        step, distances, part = carry
        doubts = doubtful(part)
        # A row's centre is the row with most doubtful pairs among those with which its own pair is
        # doubtful; so the row with most of all is settled with each of its partners.
        number = jnp.sum(doubts, axis=1)
        leader = jnp.argmax(jnp.where(doubts | itself, number[None, :], -1), axis=1)
        new, new_part = _by_product(*units_around_leaders(leader))
        better = (leader[:, None] == leader[None, :]) & (new_part > part)
        return step + 1, jnp.where(better, new, distances), jnp.where(better, new_part, part)

    def by_differences(carry: Carry) -> Carry:
        step, distances, part = carry
        i = jnp.argmax(jnp.sum(doubtful(part), axis=1))
        y = jnp.where(taken[:, None], x - x[i], 0)
        unit, inverse = power_of_two(_sizes(y, taken))
        exact = unit * jnp.sqrt(jnp.sum(jnp.square(y * inverse[:, None]), axis=1))
        here = jnp.arange(n) == i
        distances = jnp.where(here[:, None], exact[None, :], distances)
        distances = jnp.where(here[None, :], exact[:, None], distances)
        return step + 1, distances, jnp.where(here[:, None] | here[None, :], jnp.inf, part)

    centre = _first_centre(x, present, size)
    # Sizes before the centre is subtracted save a pass over the matrix. They may be much too large for
    # what is left: then parts of the squares underflow, and are not believed.
    bound = jnp.maximum(jnp.maximum(size, jnp.max(jnp.abs(centre), initial=0)), smallest)
    unit, inverse = power_of_two(bound)
    units = jnp.where(taken[:, None], x - centre, 0) * inverse[:, None]
    distances, part = _by_product(units, unit, 1e-20)
    carry = (jnp.int32(0), distances, part)
    carry = jax.lax.while_loop(
        lambda carry: (carry[0] < _PRODUCTS) & jnp.any(doubtful(carry[2])), another_centre, carry
    )
    _, distances, _ = jax.lax.while_loop(
        lambda carry: jnp.any(doubtful(carry[2])), by_differences, carry
    )
    return jnp.where(itself & present[:, None], 0, jnp.where(pairs, distances, jnp.inf))


def _by_product(units: Array, size: Array, least: float = 0.0) -> tuple[Array, Array]:
    """Distances between rows from their products.

    Each row comes divided by its size, and each pair is computed in units of the larger of its two rows:
    nothing that matters over- or underflows.

    Args:
      units: (n, d) rows divided by their sizes.
      size: (n,) powers of two, about the rows' largest entries.
      least: sums of a pair's two squares up to this, in units of the larger size, are not believed.

    Returns:
      (n, n), and (n, n) the part that a distance's square is of the sum of the two rows' squares.
    """
    products = jnp.dot(units, units.T, precision="highest")
    products = 0.5 * (products + products.T)  # exactly symmetric, whatever the product does
    squares = jnp.diagonal(products)
    larger = jnp.maximum(size[:, None], size[None, :])
    share = size[:, None] / larger
    total = jnp.square(share) * squares[:, None] + jnp.square(share.T) * squares[None, :]
    rest = jnp.maximum(total - 2 * share * share.T * products, 0)
    part = jnp.where(total > least, rest / jnp.where(total > least, total, 1), 0)
    # Two rows at the very centre have distance 0, and no rounding.
    return larger * jnp.sqrt(rest), jnp.where((total == 0) & (least == 0), jnp.inf, part)
