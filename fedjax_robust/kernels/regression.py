"""Ridge regression in closed form."""

from __future__ import annotations

import jax.numpy as jnp

from fedjax_robust.types import Array


def ridge_model(x: Array, y: Array, weights: Array, ridge: float | Array) -> Array:
    """theta = (w, b) that minimises the weighted mean of (w.x + b - y)^2, plus ridge |w|^2.

    x (E, k), y (E,), weights (E,) >= 0 -> (k + 1,). Where columns depend on each other and there is no
    ridge, the shortest w; zero without examples.
    """
    x, y = (jnp.where(_column(weights, v) > 0, v, 0) for v in (x, y))
    shares = weights / jnp.where(jnp.sum(weights) > 0, jnp.sum(weights), 1)
    x_mean, y_mean = (jnp.tensordot(shares, v, 1, precision="highest") for v in (x, y))
    gaps = jnp.where(weights[:, None] > 0, x - x_mean, 0)
    weighed = gaps * shares[:, None]
    square = jnp.dot(weighed.T, gaps, precision="highest") + ridge * jnp.eye(
        x.shape[1], dtype=x.dtype
    )
    w = solve_symmetric(square, jnp.dot(y - y_mean, weighed, precision="highest"))
    return jnp.append(w, y_mean - jnp.dot(x_mean, w, precision="highest"))


def predictions(model: Array, x: Array) -> Array:
    """theta (k + 1,), x (E, k) -> w.x + b (E,)."""
    return jnp.dot(x, model[:-1], precision="highest") + model[-1]


def solve_symmetric(square: Array, right: Array) -> Array:
    """The shortest solution of a symmetric system, positive semi-definite: (k, k), (k,) -> (k,)."""
    values, vectors = jnp.linalg.eigh(square)
    least = square.shape[0] * jnp.finfo(square.dtype).eps * jnp.max(jnp.abs(values))
    inverse = jnp.where(values > least, 1 / jnp.where(values > least, values, 1), 0)
    along = jnp.dot(right, vectors, precision="highest") * inverse
    return jnp.dot(vectors, along, precision="highest")


def _column(weights: Array, v: Array) -> Array:
    return weights.reshape(-1, *[1] * (v.ndim - 1))
