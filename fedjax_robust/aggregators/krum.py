"""Krum and Multi-Krum: the rows with the smallest sums of squared distances to their neighbours.

Blanchard, El Mhamdi, Guerraoui, Stainer, "Machine Learning with Adversaries: Byzantine Tolerant Gradient
Descent", NeurIPS 2017 (https://arxiv.org/abs/1703.02757), section 4, as restated in Fang et al., USENIX
Security 2020 (https://arxiv.org/abs/1911.11815), section 2.2.

Weights only say who is present; n below is the number of present rows. Both report ``selected``,
(n,) bool.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from fedjax_robust import checks
from fedjax_robust.aggregators.base import no_state
from fedjax_robust.kernels.distances import pairwise_distances
from fedjax_robust.kernels.norms import power_of_two, weighted_mean
from fedjax_robust.kernels.presence import is_present
from fedjax_robust.kernels.sorting import sort_clients
from fedjax_robust.memo import same_for_equal_arguments
from fedjax_robust.types import Aggregator, Array, Info, Received, State


def root_krum_scores(distances: Array, present: Array, f: int | Array) -> Array:
    """The square root of Krum's score: of the sum of squared distances to the n - f - 2 closest others.

    It orders rows as the score does, and leaves the range of floats only where distances do: the
    squares of distances of 1e-25, or 1e25, are beyond it.

    Args:
      distances: (n, n) of ``pairwise_distances``: not squared, symmetric, +inf to absent rows.
      present: (n,) bool.
      f: number of malicious rows assumed; at least one neighbour is always counted.

    Returns:
      (n,), +inf for absent rows only.

    Raises:
      ValueError: for other shapes, or f < 0.
    """
    distances, present = checked_distances("root_krum_scores", distances, present, f)
    n = distances.shape[0]
    neighbours = jnp.maximum(jnp.sum(present) - f - 2, 1)
    others = jnp.where(jnp.eye(n, dtype=bool), jnp.inf, distances)
    return jnp.where(present, root_sums(sort_clients(others).T, neighbours), jnp.inf)


def checked_distances(
    what: str, distances: Array, present: Array, f: int | Array
) -> tuple[Array, Array]:
    """What Krum's scores are made of: distances (n, n) without a gradient, and who is present, (n,) bool.

    ValueError for other shapes, or f < 0.
    """
    distances, _ = checks.matrix(what, distances, present)
    checks.count(what, f=f)
    if distances.shape[0] != distances.shape[1]:
        raise ValueError(f"{what} needs distances (n, n), got shape {distances.shape}")
    return jax.lax.stop_gradient(distances), jnp.asarray(present) > 0


def root_sums(ascending: Array, number: Array) -> Array:
    """Roots of the sums of the squares of each row's first numbers: (r, n) ascending, () -> (r,).

    In units of the last one, a power of two, so that squares are rounded as they would be without.
    """
    counted = jnp.arange(ascending.shape[1]) < number
    last = jnp.take(ascending, number - 1, axis=1, mode="clip")
    unit, inverse = power_of_two(last)
    squares = jnp.square(jnp.where(counted, ascending, 0) * inverse[:, None])
    return jnp.minimum(unit * jnp.sqrt(jnp.sum(squares, axis=1)), jnp.finfo(ascending.dtype).max)


@same_for_equal_arguments
def krum(f: int | Array) -> Aggregator:
    """Krum: the row with the lowest score; the first of several equal ones.

    Distances are those of ``kernels.distances.pairwise_distances``: the score of the chosen row is at
    most 1.004 times the lowest one, whatever rows the attackers send.

    Args:
      f: number of malicious rows assumed, 0 <= f < (n - 2) / 2. It may be traced; a traced f is not
        checked.

    Raises:
      ValueError: if f < 0, or n <= 2f + 2 when called.

    With two neighbours each, the scores are 7.25, 3.25, 4.5, 11.25 and 18722.25:

    >>> krum(f=1)(jnp.array([[0.0], [1.0], [2.5], [4.0], [100.0]])).tolist()
    [1.0]
    """
    return _multi_krum("krum", f, 1)


@same_for_equal_arguments
def multi_krum(f: int | Array, m: int | Array | None = None) -> Aggregator:
    """Multi-Krum: the mean of the m rows with the lowest scores (Blanchard et al., section 4).

    Args:
      f: number of malicious rows assumed, 0 <= f < (n - 2) / 2.
      m: rows selected, 1 <= m <= n - f; default n - f. Both may be traced, and are not checked then.

    Raises:
      ValueError: if f < 0 or m < 1, or when called n <= 2f + 2 or m > n - f.

    With two neighbours each, the scores are 7.25, 3.25, 4.5, 11.25 and 18722.25:

    >>> multi_krum(f=1, m=2)(jnp.array([[0.0], [1.0], [2.5], [4.0], [100.0]])).tolist()
    [1.75]
    """
    return _multi_krum("multi_krum", f, m)


def _multi_krum(name: str, f: int | Array, m: int | Array | None) -> Aggregator:
    checks.count(name, f=f)
    if m is not None:
        checks.count(name, 1, m=m)
    f = plain_integer(f)
    m = plain_integer(m)
    one = checks.is_known(m) and m == 1

    def prepare(received: Received) -> tuple[Array, Array, Array]:
        # Not the cleaned rows, which would be a copy of the matrix while distances are computed.
        updates, present = received.updates, is_present(received.updates, received.weights)
        n = updates.shape[0]
        if checks.is_known(f) and n <= 2 * f + 2:
            raise ValueError(f"{name} needs n > 2f + 2, got n={n}, f={f}")
        if m is not None and checks.is_known(f) and checks.is_known(m) and m > n - f:
            raise ValueError(f"{name} needs m <= n - f, got m={m}, n={n}, f={f}")
        return updates, present, pairwise_distances(jax.lax.stop_gradient(updates), present)

    def aggregate(received: Received, state: State) -> tuple[Array, State, Info]:
        updates, present, distances = prepare(received)
        scores = root_krum_scores(distances, present, f)
        if one:
            best = jnp.argmin(scores)
            selected = (jnp.arange(len(present)) == best) & present
            return jnp.where(present[best], updates[best], 0), state, {"selected": selected}
        number = jnp.maximum(jnp.sum(present) - f, 1) if m is None else m
        rank = jnp.argsort(jnp.argsort(scores))
        selected = (rank < number) & present
        rows = jnp.where(selected[:, None], updates, 0)
        return weighted_mean(rows, selected), state, {"selected": selected}

    def leave_one_out(received: Received, state: State) -> Array:
        updates, present, distances = prepare(received)
        updates = jnp.where(present[:, None], updates, 0)
        scores = root_krum_scores_without_each(distances, present, f)
        if one:
            return updates[jnp.argmin(scores, axis=1)]
        others = jnp.sum(present) - present
        number = jnp.maximum(others - f, 1) if m is None else jnp.full_like(others, m)
        rank = jnp.argsort(jnp.argsort(scores, axis=1), axis=1)
        selected = (rank < number[:, None]) & jnp.isfinite(scores)
        return jax.vmap(weighted_mean, in_axes=(None, 0))(updates, selected)

    return Aggregator(no_state, aggregate, leave_one_out)


def plain_integer(number: Any) -> Any:
    """A Python integer, of what is a number and known."""
    return int(number) if number is not None and checks.is_known(number) else number


def root_krum_scores_without_each(distances: Array, present: Array, f: int | Array) -> Array:
    """``root_krum_scores`` after each row in turn has been deleted, from one sort.

    Args:
      distances: (n, n) of ``pairwise_distances``: not squared, symmetric, +inf to absent rows.
      present: (n,) bool.
      f: number of malicious rows assumed; at least one neighbour is always counted.

    Returns:
      (n, n): entry (i, j) is row j's score without row i, +inf for absent rows and j = i.

    Raises:
      ValueError: for other shapes, or f < 0.
    """
    distances, present = checked_distances("root_krum_scores_without_each", distances, present, f)
    n = distances.shape[0]
    neighbours = jnp.maximum(jnp.sum(present) - 1 - f - 2, 1)
    others = jnp.where(jnp.eye(n, dtype=bool), jnp.inf, distances)
    order = jnp.argsort(others, axis=1)
    rank = jnp.argsort(order, axis=1)  # (j, i): how many rows are closer to j than i is
    ascending = jnp.take_along_axis(others, order, axis=1)
    # Without one of its neighbours, row j counts the next one, too. What comes before i and after i is
    # summed apart: a total minus i's distance would lose the others beside a huge one.
    unit, inverse = power_of_two(jnp.take(ascending, neighbours, axis=1, mode="clip"))
    counted = jnp.where(jnp.arange(n) <= neighbours, ascending, 0)
    squares = jnp.square(counted * inverse[:, None])
    nearer = jnp.pad(jnp.cumsum(squares, axis=1), ((0, 0), (1, 0)))
    farther = jnp.pad(jnp.cumsum(squares[:, :0:-1], axis=1)[:, ::-1], ((0, 0), (0, 1)))
    left_out = jnp.minimum(rank, neighbours)
    sums = jnp.take_along_axis(nearer, left_out, axis=1)
    sums += jnp.take_along_axis(farther, left_out, axis=1)
    without_one = unit[:, None] * jnp.sqrt(sums)
    # Without a row that is no neighbour, its score is what it was.
    unchanged = root_sums(ascending, neighbours)[:, None]
    scores = jnp.where(rank < neighbours, without_one, unchanged).T
    largest = jnp.finfo(distances.dtype).max
    valid = present[None, :] & ~jnp.eye(n, dtype=bool)
    return jnp.where(valid, jnp.minimum(scores, largest), jnp.inf)
