"""The direction in which rows spread most, from their products: n x n numbers, whatever d is."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from fedjax_robust.kernels.norms import accumulator, power_of_two
from fedjax_robust.kernels.ranks import coordinate_median
from fedjax_robust.types import Array

# Products are taken from the coordinate-wise median, which f < n / 2 rows cannot move out of the range
# of the others: rows that attackers send far away do not take the digits of the rest, nor does an
# offset that all have in common. Each row comes divided by its own size, so that nothing overflows.

_FAR = 1e9  # rows that count for nothing are taken to be at most so many units away


@jax.jit
def products_from_median(x: Array, present: Array) -> tuple[Array, Array]:
    """Products of rows, each divided by its size, seen from the coordinate-wise median.

    With y = x - median, (n, n) of y_i . y_j / (size_i size_j), and (n,) the sizes: powers of two, about
    half the largest entries of y, and 0 for a row at the median or an absent one.

    The median has no gradient: what is made of the products must not depend on the centre, as in
    ``along_top``.

    Args:
      x: (n, d), finite.
      present: (n,) bool.
    """
    x = x.astype(accumulator(x.dtype))
    centre = jax.lax.stop_gradient(coordinate_median(x, present))
    half = jnp.where(present[:, None], 0.5 * x - 0.5 * centre, 0)  # whole, it could overflow
    largest = jnp.max(jnp.abs(jax.lax.stop_gradient(half)), axis=1, initial=0)
    size, inverse = power_of_two(largest)
    units = half * (2 * inverse[:, None])
    products = jnp.dot(units, units.T, precision="highest")
    return 0.5 * (products + products.T), jnp.where(largest > 0, size, 0)


def in_one_unit(products: Array, size: Array, unit: Array) -> Array:
    """``products_from_median`` in units of ``unit``, a size: (n, n). Rows of more than 1e9 units are
    taken to be that long."""
    _, inverse = power_of_two(unit)
    share = jnp.minimum(size * inverse, _FAR)
    return share[:, None] * share[None, :] * products


def covariance(products: Array, shares: Array) -> Array:
    """Products of the rows, centred and weighted: sqrt(p_i p_j) (x_i - m) . (x_j - m), m = sum_i p_i x_i.

    Its eigenvalues are those of sum_i p_i (x_i - m)(x_i - m)^T, and zeros.

    Args:
      products: (n, n) of the rows, from any centre.
      shares: p (n,) >= 0 of sum 1.
    """
    root = _root(shares)
    return root[:, None] * _centred(products, shares) * root[None, :]


def _root(x: Array) -> Array:
    return jnp.where(x > 0, jnp.sqrt(jnp.where(x > 0, x, 1)), 0)


def _centred(products: Array, shares: Array) -> Array:
    to_mean = jnp.dot(products, shares, precision="highest")
    of_mean = jnp.dot(shares, to_mean, precision="highest")
    return products - to_mean[:, None] - to_mean[None, :] + of_mean


def along_top(products: Array, shares: Array) -> tuple[Array, Array]:
    """The largest eigenvalue of the weighted covariance, and where rows lie along its eigenvector.

    With equal largest eigenvalues the eigenvector is any of theirs; its sign is arbitrary.

    Args:
      products: (n, n) of the rows, from any centre.
      shares: (n,) >= 0 of sum 1; rows without a share are placed, too.

    Returns:
      () >= 0, and (n,) positions from the weighted mean of the centre that products are from; zeros if
      the eigenvalue is 0. Can be differentiated once, with derivative 0 of what is not determined.
    """
    value, vector = top_eigenpair(covariance(products, shares))
    # The eigenvector in d dimensions is sum_j b_j x_j; as sum_j b_j = 0, from any centre.
    b = _root(shares) * vector
    usable = value > 0
    length = jnp.sqrt(jnp.where(usable, value, 1))
    placed = jnp.dot(_centred_once(products, shares), b, precision="highest") / length
    return jnp.maximum(value, 0), jnp.where(usable, placed, 0)


def _centred_once(products: Array, shares: Array) -> Array:
    """x_i . (x_j - m): what does not depend on how the digits of sum_j b_j = 0 are rounded."""
    return products - jnp.dot(products, shares, precision="highest")[:, None]


@jax.custom_jvp
def top_eigenpair(matrix: Array) -> tuple[Array, Array]:
    """The largest eigenvalue of a symmetric matrix (n, n) and its eigenvector of length 1: (), (n,)."""
    values, vectors = jnp.linalg.eigh(matrix)
    return values[-1], vectors[:, -1]


@top_eigenpair.defjvp
def _top_eigenpair_jvp(
    primals: tuple[Array], tangents: tuple[Array]
) -> tuple[tuple[Array, Array], tuple[Array, Array]]:
    values, vectors = jnp.linalg.eigh(primals[0])
    value, vector = values[-1], vectors[:, -1]
    moved = jnp.dot(
        vectors.T, jnp.dot(tangents[0], vector, precision="highest"), precision="highest"
    )
    # Equal eigenvalues leave the vector undetermined: there its derivative is 0 instead of infinite.
    gap = value - values
    apart = gap > 8 * jnp.finfo(gap.dtype).eps * jnp.abs(value)
    turned = jnp.where(apart, moved / jnp.where(apart, gap, 1), 0)
    return (value, vector), (moved[-1], jnp.dot(vectors, turned, precision="highest"))
