"""Two clusters by average linkage."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from fedjax_robust.types import Array


def larger_by_average_linkage(distances: Array, present: Array) -> Array:
    """The larger of the two clusters that average linkage leaves.

    The two clusters with the smallest mean distance between their rows are joined until two are left;
    of equal means the first pair. Of clusters of equal size it is the one with the first row. n - 2
    passes over the distances.

    Args:
      distances: (n, n), symmetric; those of absent rows do not matter.
      present: (n,) bool.

    Returns:
      (n,) bool.
    """
    n = distances.shape[0]
    upper = jnp.triu(jnp.ones((n, n), bool), 1)

    def join(_: int, carry: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
        between, size, cluster = carry
        alive = size > 0
        allowed = upper & alive[:, None] & alive[None, :]
        pair = jnp.argmin(jnp.where(allowed, between, jnp.inf))
        i, j = pair // n, pair % n
        more = jnp.sum(alive) > 2
        both = (size[i] * between[i] + size[j] * between[j]) / jnp.maximum(size[i] + size[j], 1)
        joined = between.at[i].set(both).at[:, i].set(both)
        sizes = size.at[i].add(size[j]).at[j].set(0)
        clusters = jnp.where(cluster == j, i, cluster)
        return (
            jnp.where(more, joined, between),
            jnp.where(more, sizes, size),
            jnp.where(more, clusters, cluster),
        )

    start = (
        jnp.where(upper | upper.T, distances, 0),
        present.astype(distances.dtype),
        jnp.arange(n),
    )
    _, size, cluster = jax.lax.fori_loop(0, max(n - 2, 0), join, start)
    return present & (cluster == jnp.argmax(size))  # a cluster's number is that of its first row
