"""Partitions by label: Fang et al.'s groups, a number of labels per client; the server's root set."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from fedjax_robust import checks
from fedjax_robust.data.partition.pool import ArrayLike, labelled, owned, pool_size, rank_in_class
from fedjax_robust.types import Array, Batch, FederatedData, Key


def by_group(
    key: Key,
    examples: Mapping[str, ArrayLike],
    num_clients: int,
    p: float | Array,
    num_classes: int | None = None,
    capacity: int | None = None,
) -> FederatedData:
    """Groups of clients that each prefer one label: the split of Fang et al. and of FLTrust.

    Clients form L = num_classes groups of equal size. An example with label l goes to group l with
    probability p, else to one of the other L - 1 groups, each with probability (1 - p) / (L - 1);
    inside the group it goes to a uniformly drawn client. Clients' sizes are therefore random. If L
    does not divide N, the groups of the first N mod L labels have one client more.

    Fang, Cao, Jia and Gong, Local Model Poisoning Attacks to Byzantine-Robust Federated Learning,
    USENIX Security 2020, section 4.1 (what happens with the rest, 1 - p, is not printed there and
    follows the authors' code); Cao, Fang, Liu and Gong, FLTrust, NDSS 2021.

    Args:
      key: JAX key.
      examples: the pool.
      num_clients: N, at least L.
      p: degree of non-IID in [0, 1]; 1/L is IID, 1 gives every group its own label only.
      num_classes: L, at least 2; default the largest label plus one.
      capacity: see ``from_owner``.

    Raises:
      ValueError: N < L, p out of range, labels out of range, or as ``from_owner``.
    """
    what = "by_group"
    key = checks.key(what, key)
    pool, y, num_clients, num_classes = labelled(what, examples, num_clients, num_classes)
    checks.count(what, 2, remedy="use iid", num_classes=num_classes)
    if num_clients < num_classes:
        raise ValueError(
            "by_group needs at least one client per label, num_clients >= num_classes, got "
            f"num_clients={num_clients}, num_classes={num_classes}"
        )
    checks.between(what, 0, 1, remedy="1/num_classes is IID", p=p)
    owner = _group_owner(key, y, p, num_clients, num_classes)
    return owned(what, pool, owner, num_clients, capacity)


@partial(jax.jit, static_argnames=("num_clients", "num_classes"))
def _group_owner(key: Key, y: Array, p: float | Array, num_clients: int, num_classes: int) -> Array:
    key_own, key_other, key_client, key_order = jax.random.split(key, 4)
    own = jax.random.uniform(key_own, y.shape) < p
    shift = jax.random.randint(key_other, y.shape, 1, num_classes)
    group = jnp.where(own, y, (y + shift) % num_classes)
    label = jnp.arange(num_classes)
    group_size = num_clients // num_classes + (label < num_clients % num_classes)
    group_start = jnp.cumsum(group_size) - group_size
    member = jax.random.randint(key_client, y.shape, 0, group_size[group])
    return jax.random.permutation(key_order, num_clients)[group_start[group] + member]


def k_labels(
    key: Key,
    examples: Mapping[str, ArrayLike],
    num_clients: int,
    k: int,
    num_classes: int | None = None,
    capacity: int | None = None,
) -> FederatedData:
    """Every client owns exactly k labels; a label's examples are shared equally by its owners.

    Clients choose one after another the k labels that have the fewest owners so far, ties at
    random. Every label thus has an owner, and numbers of owners differ by one at most (a purely
    random choice could leave a label without one). A label's shares differ by one example at most.

    Wu et al., Mitigating Backdoor Attacks in Federated Learning, arXiv 2011.01767, 2020, state that
    each client draws K labels and leave the sharing open.

    Args:
      key: JAX key.
      examples: the pool.
      num_clients: N, with N * k >= L.
      k: labels per client, 1 <= k <= L.
      num_classes: L; default the largest label plus one.
      capacity: see ``from_owner``.

    Raises:
      ValueError: k or N out of range, a label with fewer examples than owners, labels out of range,
        or as ``from_owner``.
    """
    what = "k_labels"
    key = checks.key(what, key)
    pool, y, num_clients, num_classes = labelled(what, examples, num_clients, num_classes)
    checks.static_count(what, 1, k=k)
    k = int(k)
    if k > num_classes:
        raise ValueError(
            f"k_labels needs 1 <= k <= num_classes, got k={k}, num_classes={num_classes}"
        )
    if num_clients * k < num_classes:
        raise ValueError(
            "k_labels needs num_clients * k >= num_classes so that every label has an owner, got "
            f"num_clients={num_clients}, k={k}, num_classes={num_classes}"
        )
    owner, owners, class_count = _k_labels_owner(key, y, num_clients, k, num_classes)
    if checks.is_known(owners) and np.any(np.asarray(class_count) < np.asarray(owners)):
        raise ValueError(
            "k_labels needs at least as many examples of a label as it has owners (about "
            "num_clients * k / num_classes), got "
            f"{np.asarray(class_count)} examples for {np.asarray(owners)} owners; take fewer "
            "clients or a smaller k"
        )
    return owned(what, pool, owner, num_clients, capacity)


@partial(jax.jit, static_argnames=("num_clients", "k", "num_classes"))
def _k_labels_owner(
    key: Key, y: Array, num_clients: int, k: int, num_classes: int
) -> tuple[Array, Array, Array]:
    key_label, key_example, key_order = jax.random.split(key, 3)

    def choose(owners: Array, tie: Array) -> tuple[Array, Array]:
        chosen = jnp.lexsort((tie, owners))[:k]
        owns = jnp.zeros(num_classes, bool).at[chosen].set(True)
        return owners + owns, owns

    ties = jax.random.uniform(key_label, (num_clients, num_classes))
    owners, owns = jax.lax.scan(choose, jnp.zeros(num_classes, jnp.int32), ties)
    owners_first = jnp.argsort(~owns.T, axis=1, stable=True)
    rank, class_count = rank_in_class(key_example, y, num_classes)
    client = jax.random.permutation(key_order, num_clients)
    return client[owners_first[y, rank % owners[y]]], owners, class_count


def root_set(
    key: Key,
    examples: Mapping[str, ArrayLike],
    size: int = 100,
    p: float | None = None,
    biased_class: int = 1,
    num_classes: int | None = None,
) -> tuple[Batch, Batch]:
    """Examples for the server, drawn from the pool by fixed numbers per label, and the other examples.

    ``biased_class`` gets floor(size * p) examples, and the other labels share the rest equally: in the
    order of the labels, each takes the whole part of its share and of the fractions carried from those
    before it. With p = 1/L the root set mirrors a balanced pool; any other p is a bias. Which examples
    are drawn is random.

    Cao, Fang, Liu and Gong, FLTrust, NDSS 2021, its root data set; the numbers, and that no client owns
    a root example, follow the authors' code. For root examples that clients own too, partition the
    pool instead of the rest.

    Args:
      key: JAX key.
      examples: the pool, E examples.
      size: examples drawn, 1 <= size < E.
      p: share of ``biased_class`` in [0, 1]; default 1/L.
      biased_class: a label.
      num_classes: L, at least 2; default the largest label plus one.

    Returns:
      The root set (``size`` examples) and the rest (E - size), both in the order of the pool.

    Raises:
      ValueError: an argument out of range, a label with fewer examples than it must give (not noticed
        under tracing: other labels fill in), or labels out of range.
    """
    what = "root_set"
    key = checks.key(what, key)
    pool, y, _, num_classes = labelled(what, examples, 1, num_classes)
    checks.static_count(what, size=size, biased_class=biased_class)
    size, biased_class = int(size), int(biased_class)
    if not 1 <= size < pool_size(pool):
        raise ValueError(
            f"root_set needs 1 <= size < E, so that clients have something left, got size={size}, "
            f"E={pool_size(pool)}"
        )
    if num_classes < 2 or biased_class >= num_classes:
        raise ValueError(
            "root_set needs num_classes >= 2 and biased_class in [0, num_classes), got "
            f"num_classes={num_classes}, biased_class={biased_class}"
        )
    own = size // num_classes if p is None else _whole_part(what, size, p)
    others = np.diff((size - own) * np.arange(num_classes) // (num_classes - 1))
    quota = np.insert(others, biased_class, own)
    root, rest, class_count = _root_rows(key, y, jnp.asarray(quota, jnp.int32), size, num_classes)
    if checks.is_known(class_count) and np.any(np.asarray(class_count) < quota):
        raise ValueError(
            f"root_set needs {quota} examples of the labels, got {np.asarray(class_count)}; take a "
            "smaller size or another p"
        )
    return (
        {name: values[root] for name, values in pool.items()},
        {name: values[rest] for name, values in pool.items()},
    )


def _whole_part(what: str, size: int, p: float) -> int:
    """floor(size * p), where p stands for a decimal that its type may have rounded."""
    if not checks.is_known(p):
        raise TypeError(f"{what} needs p to be known, because it sets shapes, got a traced value")
    checks.between(what, 0, 1, remedy="None is 1/num_classes", p=p)
    kind = getattr(p, "dtype", np.int32)
    rounding = float(jnp.finfo(kind).eps) if jnp.issubdtype(kind, jnp.floating) else 0.0
    return int(size * float(p) * (1 + rounding) + 1e-9)  # 100 * 0.29 < 29 in floats


@partial(jax.jit, static_argnames=("size", "num_classes"))
def _root_rows(
    key: Key, y: Array, quota: Array, size: int, num_classes: int
) -> tuple[Array, Array, Array]:
    rank, class_count = rank_in_class(key, y, num_classes)
    order = jnp.argsort(rank >= quota[y], stable=True)
    return order[:size], order[size:], class_count
