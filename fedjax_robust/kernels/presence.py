"""Which rows count: one mechanism, ``weight 0 = absent``, for everything that must not.

Rows with NaN or Inf, blocked or empty clients, padding. Replacing such a row by zeros would be wrong:
zeros look honest to Krum.
"""

from __future__ import annotations

import jax.numpy as jnp

from fedjax_robust import checks
from fedjax_robust.types import Array


def is_present(updates: Array, weights: Array) -> Array:
    """Rows that count: 0 < weight < inf, and neither NaN nor Inf in the row.

    Args:
      updates: (n, d).
      weights: (n,).

    Returns:
      (n,) bool.

    Raises:
      ValueError: for other shapes.
    """
    updates, weights = checks.matrix("is_present", updates, weights)
    return (weights > 0) & jnp.isfinite(weights) & jnp.all(jnp.isfinite(updates), axis=1)


def drop_non_finite(updates: Array, weights: Array) -> tuple[Array, Array]:
    """Make rows that hold a NaN or Inf absent, and clear absent rows.

    Args:
      updates: (n, d); integers become float32.
      weights: (n,) >= 0 and finite; any other weight counts as 0.

    Returns:
      (n, d) with absent rows zero, and (n,) weights with 0 for absent rows.

    Raises:
      ValueError: for other shapes.
    """
    updates, weights = checks.matrix("a rule", updates, weights)
    present = is_present(updates, weights)
    return jnp.where(present[:, None], updates, 0), jnp.where(present, weights, 0)
