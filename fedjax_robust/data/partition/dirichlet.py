"""Partitions by Dirichlet distributions."""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from fedjax_robust import checks
from fedjax_robust.data.partition.pool import ArrayLike, labelled, owned, pool_size, rank_in_class
from fedjax_robust.types import Array, FederatedData, Key

_LEFT_OVER = 0.1
"""``dirichlet_truncated`` warns if nobody owns more than this share of the examples."""


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
    pool, y, num_clients, num_classes = labelled(what, examples, num_clients, num_classes)
    _concentration(what, alpha)
    owner = _over_clients_owner(key, y, alpha, num_clients, num_classes)
    return owned(what, pool, owner, num_clients, capacity)


@partial(jax.jit, static_argnames=("num_clients", "num_classes"))
def _over_clients_owner(
    key: Key, y: Array, alpha: float | Array, num_clients: int, num_classes: int
) -> Array:
    key_share, key_example = jax.random.split(key)
    shares = jax.random.dirichlet(key_share, jnp.full(num_clients, alpha), (num_classes,))
    rank, class_count = rank_in_class(key_example, y, num_classes)
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
      examples: the pool, without the backdoor's images, the ``rest`` of
        ``attacks.backdoors.semantic_backdoor``.
      num_clients: N, at least 1.
      alpha: concentration > 0; small is uneven, large is even.
      num_classes: L; default the largest label plus one.
      capacity: see ``from_owner``.

    Raises:
      ValueError: alpha out of range, labels out of range, no example of label 0, or as ``from_owner``.
    """
    what = "dirichlet_truncated"
    key = checks.key(what, key)
    pool, y, num_clients, num_classes = labelled(what, examples, num_clients, num_classes)
    _concentration(what, alpha)
    size = pool_size(pool)
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
    data = owned(what, pool, owner, num_clients, capacity)
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
    rank, class_count = rank_in_class(key_example, y, num_classes)
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
    pool, y, num_clients, num_classes = labelled(what, examples, num_clients, num_classes)
    _concentration(what, alpha)
    if prior is None:
        prior = np.ones(num_classes, np.float32)
    else:
        _check_prior(what, prior, num_classes)
        if checks.is_known(alpha) and checks.is_known(prior):
            _concentration(what, float(alpha) * float(np.min(np.asarray(prior))), "alpha * prior")
    owner = _over_classes_owner(key, y, alpha * jnp.asarray(prior), num_clients, num_classes)
    capacity = math.ceil(pool_size(pool) / num_clients) if capacity is None else capacity
    return owned(what, pool, owner, num_clients, capacity)


@partial(jax.jit, static_argnames=("num_clients", "num_classes"))
def _over_classes_owner(
    key: Key, y: Array, alpha: Array, num_clients: int, num_classes: int
) -> Array:
    size = len(y)
    key_mixture, key_draw, key_example, key_order = jax.random.split(key, 4)
    # Logarithms of gamma variables are those of q up to a constant, and do not underflow.
    log_q = jax.random.loggamma(key_mixture, alpha, (num_clients, num_classes))
    noise = jax.random.gumbel(key_draw, (size, num_classes))
    rank, class_count = rank_in_class(key_example, y, num_classes)

    def take(taken: Array, turn: tuple[Array, Array]) -> tuple[Array, tuple[Array, Array]]:
        client, noise = turn
        left = taken < class_count
        label = jnp.argmax(jnp.where(left, log_q[client] + noise, -jnp.inf))
        return taken.at[label].add(1), (label, taken[label])

    client = jax.random.permutation(key_order, num_clients)[jnp.arange(size) % num_clients]
    _, (label, nth) = jax.lax.scan(take, jnp.zeros_like(class_count), (client, noise))
    first = jnp.cumsum(class_count) - class_count
    return jnp.zeros(size, jnp.int32).at[first[label] + nth].set(client)[first[y] + rank]


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
