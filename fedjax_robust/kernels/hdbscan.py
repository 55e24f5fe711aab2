"""HDBSCAN* of few rows, by their distances, in a fixed number of operations.

Campello, Moulavi, Sander, "Density-Based Clustering Based on Hierarchical Density Estimates", PAKDD 2013
(https://doi.org/10.1007/978-3-642-37456-2_14): clusters that last longest while the density threshold
rises. What libraries do is the same where no two distances are equal. Where some are, which is common (a
core distance is the mutual reachability of several pairs), they merge components of equal distance one
after the other, in an order that depends on the rows' order and the sorting routine: a small component
may join one of two large ones by chance. Here all of one level merge at once, as in the paper.

Single linkage needs no tree of pointers: Prim's algorithm visits the rows in an order in which the
components at any level are runs of neighbours, separated by the steps that are longer. So a node of the
hierarchy is an interval of that order.
"""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp

from fedjax_robust.types import Array

_EQUAL = 1e-5  # of a stability: what exceeds it by less is a tie


@partial(jax.jit, static_argnames=("min_samples", "min_cluster_size", "allow_single_cluster"))
def hdbscan(
    distances: Array,
    present: Array,
    *,
    min_samples: int = 3,
    min_cluster_size: int = 5,
    allow_single_cluster: bool = False,
) -> Array:
    """Clusters of greatest excess of mass.

    Args:
      distances: (n, n) symmetric, >= 0, not NaN between present rows.
      present: (n,) bool.
      min_samples: a row's core distance is that to its ``min_samples``-th nearest other one, to the last
        one if there are fewer. That is how the package hdbscan counts; scikit-learn counts the row
        itself, so that its min_samples is one more.
      min_cluster_size: >= 2; smaller components are what falls out of a cluster.
      allow_single_cluster: whether all rows may be one cluster. Then those that fall out of it before its
        last level are noise, as in both libraries.

    Returns:
      (n,) int32, the number of each row's cluster, its first row; -1 for noise and absent rows.
    """
    n = distances.shape[0]
    if n == 1:  # without a hierarchy
        return jnp.where(present & allow_single_cluster, 0, -1).astype(jnp.int32)
    distances = jax.lax.stop_gradient(distances)
    exact = distances.dtype
    number = jnp.sum(present)
    far = jnp.finfo(exact).max
    both = present[:, None] & present[None, :]
    reach = jnp.where(both, jnp.minimum(distances, far / 4), far)
    ascending = jnp.sort(reach.at[jnp.diag_indices(n)].set(0), axis=1)
    core = jnp.take(ascending, jnp.clip(number - 1, 0, min(min_samples, n - 1)), axis=1)
    reach = jnp.where(both, jnp.maximum(reach, jnp.maximum(core[:, None], core[None, :])), far)

    order, step = _prim(reach, jnp.argmax(present))
    position = jnp.arange(n)
    # Step j lies between positions j and j + 1; beyond the present rows steps are infinite.
    step = jnp.where(position[:-1] < number - 1, step, jnp.inf)
    edge = jnp.arange(n - 1)
    longer = step[None, :] > step[:, None]
    left = jnp.max(jnp.where(longer & (edge[None, :] < edge[:, None]), edge[None, :], -1), axis=1)
    right = jnp.min(
        jnp.where(longer & (edge[None, :] > edge[:, None]), edge[None, :], n - 1), axis=1
    )
    # Node i: the positions left_i + 1 .. right_i. Of steps of one node the first stands for it.
    size = right - left
    valid = jnp.isfinite(step)
    same = (left[:, None] == left[None, :]) & (right[:, None] == right[None, :])
    node = valid & (jnp.argmax(same, axis=1) == edge)
    root = node & (size == number)
    density = 1 / step  # infinite for equal rows, 0 for no node
    big = node & ((size >= min_cluster_size) | root)
    inside = (left[None, :] <= left[:, None]) & (right[:, None] <= right[None, :])  # i in j

    def smallest(containing: Array) -> Array:
        return jnp.argmin(jnp.where(containing, size[None, :], n + 1), axis=1)

    parent = smallest(inside & ~same & node[None, :])
    children = jnp.zeros(n - 1, int).at[jnp.where(big & ~root, parent, n)].add(1, mode="drop")
    begins = big & (root | (children[parent] >= 2))  # a cluster; the others continue one
    birth = jnp.where(root, 0, density[parent])
    cluster = smallest(inside & begins[None, :])  # of each big node
    above = jnp.where(root, -1, cluster[parent])  # of each cluster: the one it splits off

    within = (left[None, :] < position[:, None]) & (position[:, None] <= right[None, :])
    last = smallest(within & big[None, :])  # the node that a position falls out of
    leaves, falls = cluster[last], density[last]
    here = (leaves[:, None] == edge[None, :]) & (position < number)[:, None]
    own = jnp.sum(jnp.where(here, falls[:, None] - birth[None, :], 0), axis=0)
    split = begins[:, None] & (above[:, None] == edge[None, :])
    gone = jnp.where(split, (birth[:, None] - birth[None, :]) * size[:, None], 0)
    stability = own + jnp.sum(gone, axis=0)

    def from_below(i: Array, carry: tuple[Array, Array]) -> tuple[Array, Array]:
        best, chosen = carry
        k = by_size[i]
        below = jnp.sum(jnp.where(split[:, k], best, 0))
        stays = begins[k] & ~(below > stability[k] * (1 + _EQUAL))
        stays &= allow_single_cluster | ~root[k]
        return best.at[k].set(jnp.where(stays, stability[k], below)), chosen.at[k].set(stays)

    by_size = jnp.argsort(size)
    _, chosen = jax.lax.fori_loop(
        0, n - 1, from_below, (jnp.zeros(n - 1, exact), jnp.zeros(n - 1, bool))
    )
    chosen &= ~jnp.any(inside & ~same & chosen[None, :], axis=1)
    member = within & chosen[None, :] & (position < number)[:, None]
    # Of a single cluster of all, what is not there at its last level is noise.
    of_root = root[None, :] & here
    deepest = jnp.max(jnp.where(of_root, falls[:, None], 0))
    deepest = jnp.maximum(deepest, jnp.max(jnp.where(split & root[None, :], birth[:, None], 0)))
    alone = jnp.any(root & chosen)
    member &= ~alone | (falls >= deepest)[:, None]
    first = jnp.min(jnp.where(member, order[:, None], n), axis=0)
    label = jnp.min(jnp.where(member, first[None, :], n), axis=1)
    label = jnp.where(label < n, label, -1)
    if allow_single_cluster:
        label = jnp.where((number == 1) & (position == 0), order[0], label)
    return jnp.full(n, -1, jnp.int32).at[order].set(label.astype(jnp.int32))


def _prim(reach: Array, start: Array) -> tuple[Array, Array]:
    """Rows in the order in which a spanning tree takes them (n,), and how far each step was (n - 1,)."""
    n = reach.shape[0]

    def take(
        carry: tuple[Array, Array, Array], _: None
    ) -> tuple[tuple[Array, Array, Array], tuple[Array, Array]]:
        row, nearest, taken = carry
        taken = taken.at[row].set(True)
        nearest = jnp.minimum(nearest, reach[row])
        following = jnp.argmin(jnp.where(taken, jnp.inf, nearest))
        return (following, nearest, taken), (row, nearest[following])

    begin = (start, jnp.full(n, jnp.finfo(reach.dtype).max), jnp.zeros(n, bool))
    _, (order, step) = jax.lax.scan(take, begin, None, n)
    return order, step[:-1]
