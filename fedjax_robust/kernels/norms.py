"""Means, norms and directions that neither overflow nor underflow."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from fedjax_robust import checks
from fedjax_robust.types import Array


def weighted_mean(updates: Array, weights: Array) -> Array:
    """Weighted mean of the updates (n, d) with weights (n,) >= 0: (d,); zero if every weight is 0.

    Weights are divided by the largest one and then by their sum, so that neither weights nor rows up to
    the largest float overflow. float16 and bfloat16 are summed in float32.

    Raises:
      ValueError: for other shapes.
    """
    updates, weights = checks.matrix("weighted_mean", updates, weights)
    exact = accumulator(updates.dtype)
    weights = weights.astype(jnp.promote_types(weights.dtype, exact))
    largest, inverse = power_of_two(jnp.max(weights))
    weights = jnp.where(largest > 0, weights * inverse, 0)
    total = jnp.sum(weights)
    shares = weights / jnp.where(total > 0, total, 1)
    result = jnp.dot(shares.astype(exact), updates.astype(exact), precision="highest")
    return result.astype(updates.dtype)


def accumulator(dtype: jnp.dtype) -> jnp.dtype:
    """What to sum in: float32, or float64 for float64."""
    return jnp.promote_types(dtype, jnp.float32)


def power_of_two(x: Array) -> tuple[Array, Array]:
    """The largest power of two <= x and its reciprocal; 1 for 0, Inf, NaN and negative numbers.

    Multiplying by either is exact, unless the result leaves the range of floats. Neither has a gradient.

    Args:
      x: float32 or float64 of any shape.

    Returns:
      Both of the shape of x, within [tiny, 1 / tiny] of its type.
    """
    info = jnp.finfo(x.dtype)
    x = jax.lax.stop_gradient(x)
    x = jnp.where((x >= info.tiny) & jnp.isfinite(x), jnp.clip(x, info.tiny, 1 / info.tiny), 1)
    integers = jnp.int64 if info.bits == 64 else jnp.int32
    exponent = jax.lax.bitcast_convert_type(x, integers) >> info.nmant
    floats = (exponent << info.nmant, (2 * (info.maxexp - 1) - exponent) << info.nmant)
    power, inverse = (jax.lax.bitcast_convert_type(bits, x.dtype) for bits in floats)
    return power, inverse


def safe_norm(x: Array, axis: int = -1) -> Array:
    """Euclidean norm of x along an axis, with gradient 0 instead of NaN at 0: (..., d) -> (...).

    Squares neither over- nor underflow; see ``direction_and_length``.
    """
    return direction_and_length(jnp.moveaxis(jnp.asarray(x), axis, -1))[1]


def direction_and_length(x: Array) -> tuple[Array, Array]:
    """Unit vectors (..., d) and Euclidean lengths (...) of x (..., d); zero, with gradient 0, for zero.

    Rows are divided by their largest entry first, so that squares neither overflow nor underflow. The
    divisor cancels in the results, so that it has no gradient. float16 and bfloat16 are computed in
    float32.
    """
    given, x = x.dtype, x.astype(accumulator(x.dtype))
    divisor = jnp.max(jnp.abs(jax.lax.stop_gradient(x)), axis=-1, keepdims=True)
    zero = divisor < smallest_divisor(x.dtype)
    divisor = jnp.minimum(divisor, 1 / jnp.finfo(x.dtype).tiny)  # its reciprocal must not vanish
    divisor = jnp.where(zero, 1, divisor)
    scaled = jnp.where(zero, 0, x / divisor)
    length = jnp.sqrt(jnp.where(zero, 1, jnp.sum(jnp.square(scaled), axis=-1, keepdims=True)))
    unit, length = scaled / length, jnp.where(zero, 0, divisor * length)[..., 0]
    return unit.astype(given), length.astype(given)


def smallest_divisor(dtype: jnp.dtype) -> float:
    """What counts as zero in a divisor of this dtype.

    1e-31 in float32, whose reciprocal leaves room for 1e7.
    """
    return float(jnp.finfo(dtype).tiny / jnp.finfo(dtype).eps)


def changing_direction(update: Array) -> Array:
    """s_j = 1 where the update (d,) increases the parameter, else -1: (d,).

    Fang et al., USENIX Security 2020 (https://arxiv.org/abs/1911.11815), section 3.1.
    """
    return jnp.where(update > 0, 1.0, -1.0).astype(update.dtype)
