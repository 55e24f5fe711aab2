"""One simulation over many devices, by JAX's own distribution.

A mesh has two layouts. Clients train where their row lives, ``(n, d)`` split by clients; attacks and
rules see the same matrix split by parameters, so that what works on each coordinate alone needs no
communication, and Gram matrices and norms are sums over devices that XLA inserts. Between the two lies
one all-to-all. The model, the data pool and what a round reports are on every device. All axes of the
mesh count as one. With ``mesh=None`` every function here does nothing.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from fedjax_robust.types import Array, SimState


def automatic(mesh: Mesh | None) -> Mesh | None:
    """The same devices with axes of type Auto, whatever they were made as."""
    return None if mesh is None else Mesh(mesh.devices, mesh.axis_names)


def map_clients(
    mesh: Mesh | None, train: Callable[[Any, Any], Any], shared: Any, clients: Any
) -> Any:
    """``train(shared, clients)`` on every device for its own clients.

    Args:
      mesh: the devices.
      train: must treat each client alone.
      shared: what all devices get whole.
      clients: a tree of (n, ...); filled up to a multiple of the number of devices by the last client.

    Returns:
      What ``train`` returns, (n, ...), split by clients.
    """
    if mesh is None:
        return train(shared, clients)
    n = jax.tree.leaves(clients)[0].shape[0]
    rows = np.minimum(np.arange(-(-n // mesh.size) * mesh.size), n - 1)
    split = PartitionSpec(mesh.axis_names)
    results = jax.shard_map(
        train,
        mesh=mesh,
        in_specs=(PartitionSpec(), split),
        out_specs=split,
        check_vma=False,  # local training is the user's: its loops need not say what varies
    )(shared, jax.tree.map(lambda leaf: leaf[rows], clients))
    return jax.tree.map(lambda leaf: leaf[:n], results)


def by_parameters(mesh: Mesh | None, updates: Array) -> Array:
    """(n, d) split by parameters."""
    return _constrained(mesh, updates, PartitionSpec(None, mesh.axis_names) if mesh else None)


def everywhere(mesh: Mesh | None, tree: Any) -> Any:
    """The whole tree on every device, inside of a program."""
    return jax.tree.map(lambda leaf: _constrained(mesh, leaf, PartitionSpec()), tree)


def settle(mesh: Mesh | None, state: SimState) -> SimState:
    """A state between rounds: clients' own states split by clients, all else on every device.

    States of N clients that the devices do not divide are on every device, too: an array cannot be
    split unevenly, and more clients than there are would show in the result and in checkpoints.
    """
    if mesh is None:
        return state

    def split(leaf: Array) -> Array:
        divides = leaf.ndim > 0 and leaf.shape[0] % mesh.size == 0
        return _constrained(mesh, leaf, PartitionSpec(mesh.axis_names if divides else None))

    others = everywhere(mesh, state._replace(clients=()))
    return others._replace(clients=jax.tree.map(split, state.clients))


def _constrained(mesh: Mesh | None, leaf: Array, spec: PartitionSpec | None) -> Array:
    if mesh is None or spec is None:
        return leaf
    return jax.lax.with_sharding_constraint(leaf, NamedSharding(mesh, spec))


def to_devices(mesh: Mesh | None, tree: Any) -> Any:
    """A tree of arrays that all processes have equally -> the same on every device of the mesh."""
    if mesh is None:
        return tree
    sharding = NamedSharding(mesh, PartitionSpec())
    return jax.tree.map(lambda leaf: _place(leaf, sharding), tree)


def like(mesh: Mesh | None, old: SimState, new: SimState) -> SimState:
    """``new``, which all processes have equally, laid out over the devices as ``old`` is."""
    if mesh is None:
        return new
    return jax.tree.map(lambda old, new: _place(new, old.sharding), old, new)


def _place(leaf: Any, sharding: Any) -> Array:
    if isinstance(leaf, jax.Array) and jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        data = _place(jax.random.key_data(leaf), NamedSharding(sharding.mesh, PartitionSpec()))
        return jax.random.wrap_key_data(data, impl=jax.random.key_impl(leaf))
    values = np.asarray(leaf)
    return jax.make_array_from_callback(values.shape, sharding, lambda index: values[index])


def to_hosts(tree: Any) -> Any:
    """Arrays that are spread over processes -> whole ones in each. All processes must call it."""

    def gather(leaf: Array) -> Array:
        if leaf.is_fully_addressable or leaf.is_fully_replicated:
            return leaf
        return jnp.asarray(multihost_utils.process_allgather(leaf, tiled=True))

    return jax.tree.map(gather, tree)


def agreed(mesh: Mesh | None, fact: bool, about: str) -> bool:
    """``fact``, if all processes say the same.

    Raises:
      ValueError: if they do not.
    """
    if _several(mesh):
        votes = multihost_utils.process_allgather(np.array(fact))
        if votes.any() != votes.all():
            raise ValueError(
                f"{about} exists for some processes only ({votes.sum()} of {votes.size}); all need the "
                "same file, on a file system that they share"
            )
    return fact


def same(mesh: Mesh | None, **facts: Any) -> None:
    """All processes say the same about everything; otherwise they would wait for each other forever.

    Args:
      mesh: the devices.
      facts: name -> what has a ``repr`` that is equal in all processes if it is.

    Raises:
      ValueError: in all processes, if they do not; it names what differs.
    """
    if not _several(mesh):
        return
    digests = [hashlib.sha256(repr(fact).encode()).digest() for fact in facts.values()]
    mine = np.frombuffer(b"".join(digests), np.uint8).reshape(len(facts), -1)
    all_digests = multihost_utils.process_allgather(mine)
    differs = np.any(all_digests != all_digests[:1], axis=(0, 2))
    if differs.any():
        names = [name for name, other in zip(facts, differs, strict=True) if other]
        raise ValueError(
            f"all processes must call run with equal arguments and read the same files, but they "
            f"differ in {', '.join(names)}; in this process: "
            + ", ".join(f"{name}={facts[name]!r}" for name in names)
        )


@contextmanager
def together(mesh: Mesh | None, what: str) -> Iterator[None]:
    """A block that fails in all processes if it does in one. All of them must come to its end.

    Raises:
      ValueError: where the block did not fail itself.
    """
    error = None
    try:
        yield
    except Exception as caught:
        error = caught
    if _several(mesh):
        failed = multihost_utils.process_allgather(np.array(error is not None))
        if error is None and failed.any():
            raise ValueError(
                f"{what}: process {int(np.argmax(failed))} failed, and its own error says why"
            )
    if error is not None:
        raise error


def _several(mesh: Mesh | None) -> bool:
    return mesh is not None and jax.process_count() > 1
