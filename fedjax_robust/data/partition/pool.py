"""What every partition does first and last: checking the pool, sorting by owner."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from fedjax_robust import checks
from fedjax_robust.types import Array, Batch, FederatedData, Key

ArrayLike = Array | np.ndarray | Sequence[Any]
"""JAX and NumPy arrays, lists of numbers, and whatever else ``numpy.asarray`` takes, such as columns of
pandas."""


def owned(
    what: str, pool: Batch, owner: ArrayLike, num_clients: int, capacity: int | None
) -> FederatedData:
    """``from_owner`` for a pool and a number of clients that are checked."""
    size = pool_size(pool)
    owner = _integers(what, "owner", owner, size)
    if checks.is_known(owner):
        low, high = int(np.min(np.asarray(owner))), int(np.max(np.asarray(owner)))
        if low < -1 or high > num_clients:
            raise ValueError(
                f"{what} needs owner in [0, {num_clients}), or -1 or {num_clients} for no client; "
                f"got values from {low} to {high}"
            )
    if capacity is not None:
        checks.static_count(what, 1, capacity=capacity)
        capacity = int(capacity)
    order, count = _sort_by_owner(jnp.asarray(owner, jnp.int32), num_clients)
    largest = int(np.max(np.asarray(count))) if checks.is_known(count) else None
    if largest == 0:
        raise ValueError(
            f"{what}: nobody owns anything, all {size} examples are left out; a simulation of it would "
            "return the initial model"
        )
    if capacity is None:
        if largest is None:
            raise ValueError(
                f"{what}: the largest number of examples of a client is not known under tracing; pass "
                "capacity, an upper bound on it"
            )
        capacity = largest
    if largest is not None and capacity < largest:
        raise ValueError(
            f"{what} needs a capacity of at least the largest number of examples of a client, got "
            f"capacity={capacity}, largest={largest}; pass a larger one, or none outside of tracing"
        )
    index, count = _pad(order, count, capacity)
    return FederatedData(examples=pool, index=index, count=count)


@partial(jax.jit, static_argnames="num_clients")
def _sort_by_owner(owner: Array, num_clients: int) -> tuple[Array, Array]:
    owner = jnp.where(owner < 0, num_clients, owner)
    count = jnp.bincount(owner, length=num_clients + 1)[:-1].astype(jnp.int32)
    return jnp.argsort(owner, stable=True).astype(jnp.int32), count


@partial(jax.jit, static_argnames="capacity")
def _pad(order: Array, count: Array, capacity: int) -> tuple[Array, Array]:
    start = jnp.cumsum(count) - count
    slot = jnp.arange(capacity, dtype=jnp.int32)
    count = jnp.minimum(count, capacity)
    row = jnp.minimum(start[:, None] + slot, len(order) - 1)
    return jnp.where(slot < count[:, None], order[row], 0), count


def checked_names(what: str, users: ArrayLike, size: int) -> np.ndarray:
    """Users (E,) as integers or strings."""
    if not checks.is_known(users):
        raise TypeError(
            f"{what} needs users that are known, because they set shapes, got a traced array"
        )
    if isinstance(users, Mapping | str | bytes):
        raise TypeError(
            f"{what} needs users, one entry per example, and then the examples, got users of type "
            f"{type(users).__name__}"
        )
    names = np.asarray(users)
    if names.dtype.kind in "OT" and all(isinstance(name, str) for name in names.reshape(-1)):
        names = names.astype(str)
    elif names.dtype.kind == "O" and all(
        isinstance(name, int | np.integer) and not isinstance(name, bool)
        for name in names.reshape(-1)
    ):
        names = names.astype(np.int64)
    if names.shape != (size,):
        raise ValueError(
            f"{what} needs users, one entry per example, ({size},), got shape {names.shape}"
        )
    if names.dtype.kind not in "iuSU":
        raise (ValueError if names.dtype.kind == "f" else TypeError)(
            f"{what} needs users that are integers or strings, got {names.dtype}; rows without a user "
            "must be left out first"
        )
    return names


def checked_pool(
    what: str, examples: Mapping[str, ArrayLike], names: Sequence[str] = ()
) -> tuple[Batch, dict[str, ArrayLike]]:
    """The pool as JAX arrays, and as it came in: NumPy arrays are known under tracing, too."""
    if not isinstance(examples, Mapping):
        raise TypeError(
            f"{what} needs examples by name, {{'x': ..., 'y': ...}}, got {type(examples).__name__}"
        )
    given: dict[str, ArrayLike] = {
        name: column if isinstance(column, jax.Array) else _column(what, name, column)
        for name, column in examples.items()
    }
    return checks.examples(what, given, names), given


def _column(what: str, name: str, column: Any) -> np.ndarray:
    try:
        values = np.asarray(column)
    except (TypeError, ValueError) as error:
        raise TypeError(
            f"{what} needs {name!r} to be an array of numbers, of one length a row"
        ) from error
    kept = jax.dtypes.canonicalize_dtype(values.dtype) if values.dtype.kind in "iu" else None
    if kept is not None and kept.itemsize < values.dtype.itemsize and values.size:
        low, high, limits = int(values.min()), int(values.max()), np.iinfo(kept)
        if low < limits.min or high > limits.max:
            raise ValueError(
                f"{what}: {name!r} has integers from {low} to {high}, beyond the {kept} of JAX; number "
                "them from 0, or enable jax_enable_x64"
            )
    return values


def labelled(
    what: str, examples: Mapping[str, ArrayLike], num_clients: int, num_classes: int | None
) -> tuple[Batch, Array, int, int]:
    """What every split by label begins with: pool, labels (E,), N and L, all checked."""
    num_clients = checked_clients(what, num_clients)
    if num_classes is not None:
        checks.static_count(what, 1, num_classes=num_classes)
        num_classes = int(num_classes)
    pool, given = checked_pool(what, examples, ("y",))
    if (
        "x" in pool
        and pool["y"].ndim == 2
        and pool["x"].shape == pool["y"].shape != (pool_size(pool), 1)
    ):
        raise ValueError(
            f"{what} needs one label for each example, got sequences of shape {pool['y'].shape}; text is "
            "split by_user, or with iid"
        )
    known = given["y"]
    checks.labels(what, known, num_classes=num_classes)
    if num_classes is None:
        if not checks.is_known(known):
            raise ValueError(
                f"{what}: the largest label is not known under tracing; pass num_classes"
            )
        num_classes = int(np.max(np.asarray(known))) + 1
        if num_classes > max(pool_size(pool), 1000):
            raise ValueError(
                f"{what}: labels up to {num_classes - 1} of {pool_size(pool)} examples; number the "
                "classes from 0, or pass num_classes"
            )
    return pool, pool["y"].astype(jnp.int32), num_clients, num_classes


def checked_clients(what: str, num_clients: int) -> int:
    """N as Python's integer; ValueError if N < 1, TypeError if it is no known whole number."""
    checks.static_count(what, 1, num_clients=num_clients)
    return int(num_clients)


def pool_size(pool: Batch) -> int:
    """E, the number of examples."""
    return int(next(iter(pool.values())).shape[0])


def _integers(what: str, name: str, values: ArrayLike, size: int) -> Array | np.ndarray:
    """One integer for each example, (E,)."""
    if isinstance(values, Mapping | str | bytes):
        raise TypeError(
            f"{what} needs {name} to be an array with an integer for each example, ({size},), got "
            f"{type(values).__name__}"
        )
    result = values if isinstance(values, jax.Array) else _column(what, name, values)
    if result.shape != (size,):
        raise ValueError(
            f"{what} needs {name} with one entry per example, ({size},), got shape {result.shape}"
        )
    if not jnp.issubdtype(result.dtype, jnp.integer):
        raise (ValueError if jnp.issubdtype(result.dtype, jnp.floating) else TypeError)(
            f"{what} needs {name} of integers, got dtype {result.dtype}"
        )
    return result


def rank_in_class(key: Key, y: Array, num_classes: int) -> tuple[Array, Array]:
    """Each example's place in a random order of its label (E,), and the labels' sizes (L,)."""
    shuffled = jax.random.permutation(key, y.shape[0])
    order = shuffled[jnp.argsort(y[shuffled], stable=True)]
    class_count = jnp.bincount(y, length=num_classes).astype(jnp.int32)
    first = jnp.cumsum(class_count) - class_count
    place = jnp.arange(y.shape[0], dtype=jnp.int32) - first[y[order]]
    return jnp.zeros_like(place).at[order].set(place), class_count
