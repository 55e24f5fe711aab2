"""Partitions by a list of owners, by user, at random; several partitions at once."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from fedjax_robust import checks
from fedjax_robust.data.partition.pool import (
    ArrayLike,
    checked_clients,
    checked_names,
    checked_pool,
    owned,
    pool_size,
)
from fedjax_robust.types import Array, FederatedData, Key


def from_owner(
    examples: Mapping[str, ArrayLike],
    owner: ArrayLike,
    num_clients: int,
    capacity: int | None = None,
) -> FederatedData:
    """The partition in which example e belongs to client ``owner[e]``.

    Args:
      examples: the pool, E examples.
      owner: (E,) integers in [0, num_clients); -1 or num_clients means that no client owns the
        example, which holds it out.
      num_clients: N, at least 1. A client may own nothing.
      capacity: m, the width of ``index``; default the largest number of examples that a client
        owns.

    Returns:
      FederatedData; a client's rows are in increasing order, padding entries of ``index`` are 0.

    Raises:
      ValueError: unequal numbers of examples, owners that are not (E,) integers or out of range, nobody
        who owns anything, a client with more than ``capacity`` examples, or no capacity under tracing.
      TypeError: something that is no array of numbers, or a number of another type.
    """
    what = "from_owner"
    pool, _ = checked_pool(what, examples)
    return owned(what, pool, owner, checked_clients(what, num_clients), capacity)


def iid(
    key: Key, examples: Mapping[str, ArrayLike], num_clients: int, capacity: int | None = None
) -> FederatedData:
    """The pool shuffled and dealt out: clients' sizes differ by one at most.

    Args:
      key: JAX key.
      examples: the pool.
      num_clients: N, at least 1. Beyond the number of examples, clients own nothing.
      capacity: see ``from_owner``; default E / N rounded up, also under tracing.

    Raises:
      ValueError: as ``from_owner``.
    """
    what = "iid"
    key = checks.key(what, key)
    pool, _ = checked_pool(what, examples)
    num_clients, size = checked_clients(what, num_clients), pool_size(pool)
    capacity = math.ceil(size / num_clients) if capacity is None else capacity
    return owned(what, pool, _dealt_owner(key, size, num_clients), num_clients, capacity)


@partial(jax.jit, static_argnames=("size", "num_clients"))
def _dealt_owner(key: Key, size: int, num_clients: int) -> Array:
    key_example, key_order = jax.random.split(key)
    client = jax.random.permutation(key_order, num_clients)
    return jax.random.permutation(key_example, client[jnp.arange(size) % num_clients])


def by_user(
    users: ArrayLike,
    examples: Mapping[str, ArrayLike],
    key: Key | None = None,
    capacity: int | None = None,
) -> FederatedData:
    """The natural split: one client per distinct user.

    Args:
      users: (E,) who each example comes from: integers or strings, not traced.
      examples: the pool.
      key: JAX key that shuffles the clients; None keeps them in the sorted order of ``users``.
      capacity: see ``from_owner``.

    Raises:
      ValueError: ``users`` is not (E,), has fractions, or as ``from_owner``.
      TypeError: users that are traced, or neither integers nor strings.
    """
    what = "by_user"
    pool, _ = checked_pool(what, examples)
    names = checked_names(what, users, pool_size(pool))
    distinct, owner = np.unique(names, return_inverse=True)
    if key is not None:
        owner = np.asarray(jax.random.permutation(checks.key(what, key), len(distinct)))[owner]
    return owned(what, pool, owner, len(distinct), capacity)


def stack(parts: Sequence[FederatedData]) -> FederatedData:
    """Partitions of one pool (several seeds, several p) as one, for ``vmap``.

    Map over it with ``in_axes`` (or ``out_axes``) ``FederatedData(None, 0, 0)``: the pool is not
    copied.

    Args:
      parts: S partitions of the same pool among the same number of clients.

    Returns:
      FederatedData with the pool as it is, ``index`` (S, N, m) padded to the largest width and
      ``count`` (S, N).

    Raises:
      ValueError: no parts, different pools or different numbers of clients, or parts that are stacked.
      TypeError: parts that are no partitions, or traced.
    """
    what = "stack"
    if isinstance(parts, FederatedData) or not isinstance(parts, Sequence):
        raise TypeError(f"{what} needs a list of partitions, got {type(parts).__name__}")
    if not parts:
        raise ValueError(f"{what} needs at least one partition, got none")
    for part in parts:
        checks.part(what, FederatedData, partition=part)
        if not (checks.is_known(part.index) and checks.is_known(part.count)):
            raise TypeError(
                f"{what} needs partitions that are known, got traced ones; use jax.vmap"
            )
        checks.partition(what, part.examples, part.index, part.count, ())
        if np.ndim(part.count) != 1:
            raise ValueError(
                f"{what} needs partitions with index (N, m) and count (N,), got one that is stacked "
                f"already, with count of shape {np.shape(part.count)}"
            )
    pool = parts[0].examples
    for other in (part.examples for part in parts[1:]):
        same = other.keys() == pool.keys() and all(
            other[name] is pool[name] or bool(jnp.array_equal(other[name], pool[name]))
            for name in pool
        )
        if not same:
            raise ValueError("stack needs partitions of one pool, got pools that differ")
    clients = sorted({len(part.count) for part in parts})
    if len(clients) > 1:
        raise ValueError(f"stack needs equal numbers of clients, got {clients}")
    width = max(part.index.shape[1] for part in parts)
    index = np.zeros((len(parts), clients[0], width), np.int32)
    for row, part in zip(index, parts, strict=True):
        row[:, : part.index.shape[1]] = part.index
    count = np.stack([part.count for part in parts])
    return FederatedData(pool, jnp.asarray(index), jnp.asarray(count))


def label_histogram(data: FederatedData, num_classes: int) -> Array:
    """How many examples of each label each client owns.

    Args:
      data: a partition (not stacked) of a pool with labels ``y`` (E,) in [0, num_classes).
      num_classes: L.

    Returns:
      (N, L) int32; its rows sum to ``data.count``.

    Raises:
      ValueError: labels out of range, or fields that are no partition.
    """
    what = "label_histogram"
    checks.part(what, FederatedData, data=data)
    checks.static_count(what, 1, num_classes=num_classes)
    num_classes = int(num_classes)
    checks.partition(what, data.examples, data.index, data.count, ("y",))
    if data.index.ndim != 2:
        raise ValueError(
            f"{what} needs one partition, index (N, m), got index of shape {data.index.shape}; for "
            "stacked ones use jax.vmap"
        )
    checks.labels(what, data.examples["y"], num_classes=num_classes)
    clients, width = data.index.shape
    valid = jnp.arange(width) < data.count[:, None]
    label = jnp.where(valid, jnp.asarray(data.examples["y"])[data.index], num_classes)
    histogram = jnp.zeros((clients, num_classes), jnp.int32)
    return histogram.at[jnp.arange(clients)[:, None], label].add(1, mode="drop")
