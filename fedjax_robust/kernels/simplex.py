"""Projection onto the simplex."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from fedjax_robust.types import Array


def project_onto_simplex(x: Array, present: Array) -> Array:
    """The closest point with entries >= 0 that sum to 1 and are 0 where ``present`` is not.

    The exact algorithm by sorting: entries are max(x_i - t, 0), and t follows from the number of those
    above it (Held, Wolfe, Crowder, "Validation of subgradient optimization", Mathematical Programming
    1974; Duchi, Shalev-Shwartz, Singer, Chandra, ICML 2008, figure 1). NaN counts as very small.

    Args:
      x: (n,) floats.
      present: (n,) bool.

    Returns:
      (n,); zero if nobody is present.
    """
    largest = jnp.finfo(x.dtype).max
    x = jnp.where(jnp.isnan(x), -largest, jnp.clip(x, -largest, largest))
    top = jnp.max(jnp.where(present, jax.lax.stop_gradient(x), -largest))
    # A common shift changes nothing, and what lies 1 below the largest gets nothing.
    below = jnp.where(present, jnp.maximum(x - top, -1), -1)
    descending = -jnp.sort(-below)
    number = jnp.arange(1, x.shape[0] + 1)
    thresholds = (jnp.cumsum(descending) - 1) / number
    support = jnp.maximum(jnp.sum(descending > thresholds), 1)
    return jnp.where(present, jax.nn.relu(below - thresholds[support - 1]), 0)
