"""Ridge regression in closed form."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from fedjax_robust.kernels.norms import power_of_two
from fedjax_robust.types import Array


def ridge_model(x: Array, y: Array, weights: Array, ridge: float | Array) -> Array:
    """theta = (w, b) that minimises the weighted mean of (w.x + b - y)^2, plus ridge |w|^2.

    x (E, k), y (E,), weights (E,) >= 0 -> (k + 1,). Where columns depend on each other and there is no
    ridge, the shortest w; zero without examples.
    """
    x, y = (jnp.where(_column(weights, v) > 0, v, 0) for v in (x, y))
    shares = weights / jnp.where(jnp.sum(weights) > 0, jnp.sum(weights), 1)
    x_mean, y_mean = (jnp.tensordot(shares, v, 1, precision="highest") for v in (x, y))
    gaps, rest = (
        jnp.where(_column(shares, v) > 0, v - m, 0) for v, m in ((x, x_mean), (y, y_mean))
    )
    unit, inverse = _unit(rest)
    right = jnp.dot(shares * (rest * inverse), gaps, precision="highest")
    w = unit * solve_centred(gaps, shares, ridge, right)
    return jnp.append(w, y_mean - jnp.dot(x_mean, w, precision="highest"))


def predictions(model: Array, x: Array) -> Array:
    """theta (k + 1,), x (E, k) -> w.x + b (E,)."""
    return jnp.dot(x, model[:-1], precision="highest") + model[-1]


def solve_centred(gaps: Array, shares: Array, ridge: float | Array, right: Array) -> Array:
    """The shortest a with (sum_i shares_i gaps_i gaps_i^T + ridge I) a = right; gaps (E, k), right (k,).

    In units of the largest gap, so that no square leaves the range of floats.
    """
    root = jnp.sqrt(jax.lax.stop_gradient(jnp.asarray(ridge, gaps.dtype)))
    inverse = _unit(jnp.append(gaps, root))[1]
    small = gaps * inverse
    square = jnp.dot((small * shares[:, None]).T, small, precision="highest")
    square += (ridge * inverse) * inverse * jnp.eye(gaps.shape[1], dtype=gaps.dtype)
    return solve_symmetric(square, right * inverse) * inverse


def solve_symmetric(square: Array, right: Array) -> Array:
    """The shortest solution of a symmetric system, positive semi-definite: (k, k), (k,) -> (k,).

    Its derivatives are those of a linear system; those of eigenvectors do not exist where eigenvalues
    are equal.
    """
    values, vectors = jnp.linalg.eigh(jax.lax.stop_gradient(square))
    least = square.shape[0] * jnp.finfo(square.dtype).eps * jnp.max(jnp.abs(values))
    inverse = jnp.where(values > least, 1 / jnp.where(values > least, values, 1), 0)

    def solve(_: object, b: Array) -> Array:
        along = jnp.dot(b, vectors, precision="highest") * inverse
        return jnp.dot(vectors, along, precision="highest")

    def times(a: Array) -> Array:
        return jnp.dot(square, a, precision="highest")

    return jax.lax.custom_linear_solve(times, right, solve, symmetric=True)


def _unit(values: Array) -> tuple[Array, Array]:
    """A power of two near the largest of them, and its inverse."""
    return power_of_two(jnp.max(jnp.abs(values), initial=0))


def _column(weights: Array, v: Array) -> Array:
    return weights.reshape(-1, *[1] * (v.ndim - 1))
