"""Who owns which training example: functions from a pool of examples to ``FederatedData``.

Each function is pure in its key. Clients come in random order, because the simulation takes clients
0 .. num_malicious - 1 as the malicious ones. Every example is owned by exactly one client; examples
that the server keeps for itself are set apart before, by ``root_set``.

``examples`` is a dict of arrays with the examples along the leading axis, as in ``Dataset.train``;
the functions that look at labels need ``y`` (E,), integers in [0, num_classes). The pool becomes
JAX arrays once: pass JAX arrays to share one copy between several partitions. A partition in which
nobody owns anything is refused.

All but ``by_user`` can be traced (``jit``, or ``vmap`` over the key, ``p`` or ``alpha``). The width
of ``index`` must then be known: pass ``capacity``, an upper bound on the examples that one client
owns, and keep the pool out of the batch::

    part = lambda p: by_group(key, pool, 100, p, num_classes=10, capacity=2000)
    data = jax.vmap(part, out_axes=FederatedData(None, 0, 0))(jnp.array([0.1, 0.5, 0.9]))

Outside of tracing a capacity that is too small is a ValueError; inside it cannot be, and a client
keeps only ``capacity`` of its examples: check ``count.max() < capacity`` on the result.
"""

from __future__ import annotations

import math
import warnings
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

_LEFT_OVER = 0.1
"""``dirichlet_truncated`` warns if nobody owns more than this share of the examples."""


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
    pool, _ = _pool(what, examples)
    return _owned(what, pool, owner, _clients(what, num_clients), capacity)


def _owned(
    what: str, pool: Batch, owner: ArrayLike, num_clients: int, capacity: int | None
) -> FederatedData:
    """``from_owner`` for a pool and a number of clients that are checked."""
    size = _size(pool)
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
    pool, y, num_clients, num_classes = _labelled(what, examples, num_clients, num_classes)
    checks.count(what, 2, remedy="use iid", num_classes=num_classes)
    if num_clients < num_classes:
        raise ValueError(
            "by_group needs at least one client per label, num_clients >= num_classes, got "
            f"num_clients={num_clients}, num_classes={num_classes}"
        )
    checks.between(what, 0, 1, remedy="1/num_classes is IID", p=p)
    owner = _group_owner(key, y, p, num_clients, num_classes)
    return _owned(what, pool, owner, num_clients, capacity)


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
    pool, _ = _pool(what, examples)
    num_clients, size = _clients(what, num_clients), _size(pool)
    capacity = math.ceil(size / num_clients) if capacity is None else capacity
    return _owned(what, pool, _dealt_owner(key, size, num_clients), num_clients, capacity)


@partial(jax.jit, static_argnames=("size", "num_clients"))
def _dealt_owner(key: Key, size: int, num_clients: int) -> Array:
    key_example, key_order = jax.random.split(key)
    client = jax.random.permutation(key_order, num_clients)
    return jax.random.permutation(key_example, client[jnp.arange(size) % num_clients])


def dirichlet_over_clients(
    key: Key,
    examples: Mapping[str, ArrayLike],
    num_clients: int,
    alpha: float | Array,
    num_classes: int | None = None,
    capacity: int | None = None,
) -> FederatedData:
    """Each label's examples are shared among the clients by a draw from a Dirichlet distribution.

    For each label, shares over clients are drawn, s ~ Dir(alpha, ..., alpha) in N dimensions, and
    the label's shuffled examples are cut in these proportions (a client gets its share of them to
    within one example). Sizes of clients vary widely for a small alpha and some own nothing. This
    is the convention of Yurochkin et al., Bayesian Nonparametric Federated Learning of Neural
    Networks, ICML 2019, section 4, without a lower limit on a client's size.

    It is another distribution than ``dirichlet_over_classes`` with the same alpha: here a share has
    mean 1/N and variance (N - 1) / (N^2 (N alpha + 1)), so its spread depends on the number of
    clients; there clients' sizes are equal and only their mixtures vary.

    Args:
      key: JAX key.
      examples: the pool.
      num_clients: N, at least 1.
      alpha: concentration > 0; small is uneven, large is even.
      num_classes: L; default the largest label plus one.
      capacity: see ``from_owner``.

    Raises:
      ValueError: alpha out of range, labels out of range, or as ``from_owner``.
    """
    what = "dirichlet_over_clients"
    key = checks.key(what, key)
    pool, y, num_clients, num_classes = _labelled(what, examples, num_clients, num_classes)
    _concentration(what, alpha)
    owner = _over_clients_owner(key, y, alpha, num_clients, num_classes)
    return _owned(what, pool, owner, num_clients, capacity)


@partial(jax.jit, static_argnames=("num_clients", "num_classes"))
def _over_clients_owner(
    key: Key, y: Array, alpha: float | Array, num_clients: int, num_classes: int
) -> Array:
    key_share, key_example = jax.random.split(key)
    shares = jax.random.dirichlet(key_share, jnp.full(num_clients, alpha), (num_classes,))
    rank, class_count = _rank_in_class(key_example, y, num_classes)
    place = (rank + 0.5) / class_count[y]
    # One sorted table for all labels: label l's cumulative shares lie in [l, l + 1].
    table = jnp.arange(num_classes)[:, None] + jnp.minimum(jnp.cumsum(shares, axis=1), 1.0)
    position = jnp.searchsorted(table.reshape(-1), y + place, side="right") - y * num_clients
    return jnp.clip(position, 0, num_clients - 1)


def dirichlet_truncated(
    key: Key,
    examples: Mapping[str, ArrayLike],
    num_clients: int,
    alpha: float | Array,
    num_classes: int | None = None,
    capacity: int | None = None,
) -> FederatedData:
    """The split of Bagdasaryan et al., "How To Backdoor Federated Learning", AISTATS 2020 (alpha = 0.9,
    N = 100), and of DBA (ICLR 2020, alpha = 0.5), as their code makes it.

    As ``dirichlet_over_clients``, but client u gets round(E_0 s_u) examples of each label, where E_0 is
    the number of examples of label 0, for all labels. Labels with fewer examples are truncated: the
    clients that come last get less or nothing. What is left over of a label, nobody owns; if that is
    more than a tenth of all examples, because label 0 has fewer than the others, a warning says so (not
    under tracing).

    Args:
      key: JAX key.
      examples: the pool, without the backdoor's images (``attacks.semantic_backdoor(...).rest``).
      num_clients: N, at least 1.
      alpha: concentration > 0; small is uneven, large is even.
      num_classes: L; default the largest label plus one.
      capacity: see ``from_owner``.

    Raises:
      ValueError: alpha out of range, labels out of range, no example of label 0, or as ``from_owner``.
    """
    what = "dirichlet_truncated"
    key = checks.key(what, key)
    pool, y, num_clients, num_classes = _labelled(what, examples, num_clients, num_classes)
    _concentration(what, alpha)
    size = _size(pool)
    if num_classes * (size + 1) >= 2**31 or size * num_clients >= 2**31:
        raise ValueError(
            f"{what} counts in 32 bits and needs num_classes * E and num_clients * E below 2^31, got "
            f"num_classes={num_classes}, num_clients={num_clients}, E={size}; take fewer examples"
        )
    advice = (
        "number the labels so that label 0 has as many examples as the others, or use "
        "dirichlet_over_clients, which leaves no example over"
    )
    if checks.is_known(y) and not np.any(np.asarray(y) == 0):
        raise ValueError(
            f"{what} gives of each label as many examples as label 0 has, and there are none of label "
            f"0, so that nobody would own anything; {advice}"
        )
    owner = _truncated_owner(key, y, alpha, num_clients, num_classes)
    data = _owned(what, pool, owner, num_clients, capacity)
    if checks.is_known(data.count):
        left = size - int(np.sum(np.asarray(data.count)))
        if left > _LEFT_OVER * size:
            warnings.warn(
                f"{what} leaves {left:,} of {size:,} examples ({left / size:.0%}) to nobody, because of "
                f"each label it gives as many as label 0 has; {advice}",
                stacklevel=2,
            )
    return data


@partial(jax.jit, static_argnames=("num_clients", "num_classes"))
def _truncated_owner(
    key: Key, y: Array, alpha: float | Array, num_clients: int, num_classes: int
) -> Array:
    key_share, key_example, key_order = jax.random.split(key, 3)
    shares = jax.random.dirichlet(key_share, jnp.full(num_clients, alpha), (num_classes,))
    rank, class_count = _rank_in_class(key_example, y, num_classes)
    ends = jnp.cumsum(jnp.round(class_count[0] * shares).astype(jnp.int32), axis=1)
    # Within label l, client u owns the ranks from ends[l, u - 1] to ends[l, u] - 1. One sorted table for
    # all labels: label l's ends lie in [l w, (l + 1) w).
    w = len(y) + 1
    table = jnp.arange(num_classes)[:, None] * w + jnp.minimum(ends, len(y))
    place = jnp.searchsorted(table.reshape(-1), y * w + rank, side="right")
    taker = place - y * num_clients
    # Truncation favours the clients that come first, and client 0 may be the attacker.
    order = jax.random.permutation(key_order, num_clients)
    return jnp.where(taker < num_clients, order[jnp.minimum(taker, num_clients - 1)], -1)


def dirichlet_over_classes(
    key: Key,
    examples: Mapping[str, ArrayLike],
    num_clients: int,
    alpha: float | Array,
    num_classes: int | None = None,
    prior: ArrayLike | None = None,
    capacity: int | None = None,
) -> FederatedData:
    """Each client's mixture of labels is a draw from a Dirichlet distribution; sizes are equal.

    Each client draws q ~ Dir(alpha, ..., alpha) in L dimensions. Clients then take turns: each
    draws a label from its q and takes a random example of that label that is left, until the pool
    is empty, so that sizes differ by one at most. When a label has run out, q is renormalised over
    the labels that are left (evenly over those, if q has no mass there). Mixtures as realised are
    therefore closer to each other than the q, the more so the smaller alpha is and the fewer
    clients there are.

    Hsu, Qi and Brown, Measuring the Effects of Non-Identical Data Distribution for Federated Visual
    Classification, arXiv 1909.06335, 2019, draw q ~ Dir(alpha p) with a prior p over labels that
    sums to one: pass it as ``prior``. With p uniform this is the default with alpha / L in the
    place of alpha.

    It is another distribution than ``dirichlet_over_clients`` with the same alpha: here q has mean
    1/L and variance (L - 1) / (L^2 (L alpha + 1)) in each entry, for any number of clients.

    Args:
      key: JAX key.
      examples: the pool.
      num_clients: N, at least 1.
      alpha: concentration > 0; small is one label per client, large is the same mixture for all.
      num_classes: L; default the largest label plus one.
      prior: (L,) > 0 that sums to one, for Dir(alpha * prior); default ones, for Dir(alpha, ...,
        alpha).
      capacity: see ``from_owner``; default E / N rounded up, also under tracing.

    Raises:
      ValueError: alpha out of range, a prior of another shape, not > 0 or with another sum, labels out
        of range, or as ``from_owner``.
    """
    what = "dirichlet_over_classes"
    key = checks.key(what, key)
    pool, y, num_clients, num_classes = _labelled(what, examples, num_clients, num_classes)
    _concentration(what, alpha)
    if prior is None:
        prior = np.ones(num_classes, np.float32)
    else:
        _check_prior(what, prior, num_classes)
        if checks.is_known(alpha) and checks.is_known(prior):
            _concentration(what, float(alpha) * float(np.min(np.asarray(prior))), "alpha * prior")
    owner = _over_classes_owner(key, y, alpha * jnp.asarray(prior), num_clients, num_classes)
    capacity = math.ceil(_size(pool) / num_clients) if capacity is None else capacity
    return _owned(what, pool, owner, num_clients, capacity)


@partial(jax.jit, static_argnames=("num_clients", "num_classes"))
def _over_classes_owner(
    key: Key, y: Array, alpha: Array, num_clients: int, num_classes: int
) -> Array:
    size = len(y)
    key_mixture, key_draw, key_example, key_order = jax.random.split(key, 4)
    # Logarithms of gamma variables are those of q up to a constant, and do not underflow.
    log_q = jax.random.loggamma(key_mixture, alpha, (num_clients, num_classes))
    noise = jax.random.gumbel(key_draw, (size, num_classes))
    rank, class_count = _rank_in_class(key_example, y, num_classes)

    def take(taken: Array, turn: tuple[Array, Array]) -> tuple[Array, tuple[Array, Array]]:
        client, noise = turn
        left = taken < class_count
        label = jnp.argmax(jnp.where(left, log_q[client] + noise, -jnp.inf))
        return taken.at[label].add(1), (label, taken[label])

    client = jax.random.permutation(key_order, num_clients)[jnp.arange(size) % num_clients]
    _, (label, nth) = jax.lax.scan(take, jnp.zeros_like(class_count), (client, noise))
    first = jnp.cumsum(class_count) - class_count
    return jnp.zeros(size, jnp.int32).at[first[label] + nth].set(client)[first[y] + rank]


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
    pool, y, num_clients, num_classes = _labelled(what, examples, num_clients, num_classes)
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
    return _owned(what, pool, owner, num_clients, capacity)


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
    rank, class_count = _rank_in_class(key_example, y, num_classes)
    client = jax.random.permutation(key_order, num_clients)
    return client[owners_first[y, rank % owners[y]]], owners, class_count


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
    pool, _ = _pool(what, examples)
    names = _names(what, users, _size(pool))
    distinct, owner = np.unique(names, return_inverse=True)
    if key is not None:
        owner = np.asarray(jax.random.permutation(checks.key(what, key), len(distinct)))[owner]
    return _owned(what, pool, owner, len(distinct), capacity)


def _names(what: str, users: ArrayLike, size: int) -> np.ndarray:
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
    pool, y, _, num_classes = _labelled(what, examples, 1, num_classes)
    checks.static_count(what, size=size, biased_class=biased_class)
    size, biased_class = int(size), int(biased_class)
    if not 1 <= size < _size(pool):
        raise ValueError(
            f"root_set needs 1 <= size < E, so that clients have something left, got size={size}, "
            f"E={_size(pool)}"
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
    rank, class_count = _rank_in_class(key, y, num_classes)
    order = jnp.argsort(rank >= quota[y], stable=True)
    return order[:size], order[size:], class_count


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


def _pool(
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


def _labelled(
    what: str, examples: Mapping[str, ArrayLike], num_clients: int, num_classes: int | None
) -> tuple[Batch, Array, int, int]:
    """What every split by label begins with: pool, labels (E,), N and L, all checked."""
    num_clients = _clients(what, num_clients)
    if num_classes is not None:
        checks.static_count(what, 1, num_classes=num_classes)
        num_classes = int(num_classes)
    pool, given = _pool(what, examples, ("y",))
    if (
        "x" in pool
        and pool["y"].ndim == 2
        and pool["x"].shape == pool["y"].shape != (_size(pool), 1)
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
        if num_classes > max(_size(pool), 1000):
            raise ValueError(
                f"{what}: labels up to {num_classes - 1} of {_size(pool)} examples; number the classes "
                "from 0, or pass num_classes"
            )
    return pool, pool["y"].astype(jnp.int32), num_clients, num_classes


def _clients(what: str, num_clients: int) -> int:
    checks.static_count(what, 1, num_clients=num_clients)
    return int(num_clients)


def _size(pool: Batch) -> int:
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


def _concentration(what: str, alpha: Any, name: str = "alpha") -> None:
    """A parameter of a Dirichlet distribution, which float32 must be able to hold."""
    checks.positive(what, **{name: alpha})
    limits = np.finfo(np.float32)
    if checks.is_known(alpha) and not limits.tiny <= float(alpha) <= limits.max:
        raise ValueError(
            f"{what} needs {name} > 0 in the range of float32, {limits.tiny:.3g} to {limits.max:.3g}, "
            f"got {name}={alpha}"
        )


def _check_prior(what: str, prior: ArrayLike, num_classes: int) -> None:
    checks.shaped(what, "prior", prior, (num_classes,))
    if not checks.is_known(prior):
        return
    values = np.asarray(prior, np.float64)
    if not (values > 0).all() or abs(values.sum() - 1) > 1e-4:  # nor NaN, nor infinite
        raise ValueError(
            f"{what} needs a prior > 0 of shape ({num_classes},) that sums to one, got {prior}; "
            "divide it by its sum"
        )


def _rank_in_class(key: Key, y: Array, num_classes: int) -> tuple[Array, Array]:
    """Each example's place in a random order of its label (E,), and the labels' sizes (L,)."""
    shuffled = jax.random.permutation(key, y.shape[0])
    order = shuffled[jnp.argsort(y[shuffled], stable=True)]
    class_count = jnp.bincount(y, length=num_classes).astype(jnp.int32)
    first = jnp.cumsum(class_count) - class_count
    place = jnp.arange(y.shape[0], dtype=jnp.int32) - first[y[order]]
    return jnp.zeros_like(place).at[order].set(place), class_count
