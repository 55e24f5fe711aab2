"""Krum and its relatives: rules that select rows by their distances to each other.

Krum, Multi-Krum: Blanchard et al., "Machine Learning with Adversaries: Byzantine Tolerant Gradient
Descent", NeurIPS 2017. Bulyan: El Mhamdi et al., "The Hidden Vulnerability of Distributed Learning in
Byzantium", ICML 2018. Both as restated in Fang et al., USENIX Security 2020, section 2.2.

Weights only say who is present; n below is the number of present rows. All report ``selected``,
(n,) bool.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from fedjax_robust.aggregators.basic import stateless
from fedjax_robust.robust_stats import (
    drop_non_finite,
    middle_of_sorted,
    pairwise_squared_distances,
    sort_present,
    weighted_mean,
)
from fedjax_robust.sorting import sort_clients
from fedjax_robust.types import Aggregator, Array, Info, Received, State


def krum_scores(distances: Array, present: Array, f: int | Array) -> Array:
    """Krum's score: the sum of squared distances to the n - f - 2 closest other rows.

    Args:
      distances: (n, n) squared distances, symmetric, +inf to absent rows.
      present: (n,) bool.
      f: number of malicious rows assumed; at least one neighbour is always counted.

    Returns:
      (n,), +inf for absent rows only.
    """
    n = distances.shape[0]
    neighbours = jnp.maximum(jnp.sum(present) - f - 2, 1)
    others = jnp.where(jnp.eye(n, dtype=bool), jnp.inf, distances)
    closest = jnp.where(jnp.arange(n)[:, None] < neighbours, sort_clients(others), 0)
    largest = jnp.finfo(distances.dtype).max
    return jnp.where(present, jnp.minimum(jnp.sum(closest, axis=0), largest), jnp.inf)


def krum(f: int) -> Aggregator:
    """Krum: the row with the lowest score; the first of several equal ones.

    Args:
      f: number of malicious rows assumed, 0 <= f < (n - 2) / 2.

    Raises:
      ValueError: if f < 0, or n <= 2f + 2 when called.
    """
    return multi_krum(f, m=1, name="krum")


def multi_krum(f: int, m: int | None = None, *, name: str = "multi_krum") -> Aggregator:
    """Multi-Krum: the mean of the m rows with the lowest scores (Blanchard et al., section 4).

    Args:
      f: number of malicious rows assumed, 0 <= f < (n - 2) / 2.
      m: rows selected, 1 <= m <= n - f; default n - f.
      name: what errors call the rule.

    Raises:
      ValueError: if f < 0 or m < 1, or when called n <= 2f + 2 or m > n - f.
    """
    if f < 0:
        raise ValueError(f"{name} needs f >= 0, got f={f}")
    if m is not None and m < 1:
        raise ValueError(f"{name} needs m >= 1, got m={m}")

    def aggregate(received: Received, state: State) -> tuple[Array, State, Info]:
        updates, weights = drop_non_finite(received.updates, received.weights)
        n = updates.shape[0]
        if n <= 2 * f + 2:
            raise ValueError(f"{name} needs n > 2f + 2, got n={n}, f={f}")
        if m is not None and m > n - f:
            raise ValueError(f"{name} needs m <= n - f, got m={m}, n={n}, f={f}")
        present = weights > 0
        scores = krum_scores(pairwise_squared_distances(updates, present), present, f)
        if m == 1:
            best = jnp.argmin(scores)
            return updates[best], state, {"selected": (jnp.arange(n) == best) & present}
        number = jnp.maximum(jnp.sum(present) - f, 1) if m is None else m
        rank = jnp.argsort(jnp.argsort(scores))
        selected = (rank < number) & present
        return weighted_mean(updates, selected.astype(updates.dtype)), state, {"selected": selected}

    def leave_one_out(received: Received, state: State) -> Array:
        updates, weights = drop_non_finite(received.updates, received.weights)
        present = weights > 0
        distances = pairwise_squared_distances(updates, present)
        scores = krum_scores_without_each(distances, present, f)
        if m == 1:
            return updates[jnp.argmin(scores, axis=1)]
        others = jnp.sum(present) - present
        number = jnp.maximum(others - f, 1) if m is None else jnp.full_like(others, m)
        rank = jnp.argsort(jnp.argsort(scores, axis=1), axis=1)
        selected = (rank < number[:, None]) & jnp.isfinite(scores)
        shares = selected / jnp.maximum(jnp.sum(selected, axis=1, keepdims=True), 1)
        return jnp.dot(shares.astype(updates.dtype), updates, precision="highest")

    return Aggregator(stateless, aggregate, leave_one_out)


def krum_scores_without_each(distances: Array, present: Array, f: int | Array) -> Array:
    """Krum's scores after each row in turn has been deleted, from one sort.

    Args:
      distances, present, f: as in ``krum_scores``.

    Returns:
      (n, n): entry (i, j) is row j's score without row i, +inf for absent rows and j = i.
    """
    n = distances.shape[0]
    neighbours = jnp.maximum(jnp.sum(present) - 1 - f - 2, 1)
    others = jnp.where(jnp.eye(n, dtype=bool), jnp.inf, distances)
    order = jnp.argsort(others, axis=1)
    rank = jnp.argsort(order, axis=1)  # (j, i): how many rows are closer to j than i is
    # Without i, row j keeps all but one of its neighbours + 1 closest rows: all but i, or the last of
    # them. What comes before i and after i is summed apart: a total minus i's distance would lose the
    # others beside a huge one.
    closest = jnp.take_along_axis(others, order, axis=1)
    closest = jnp.where(jnp.arange(n) <= neighbours, closest, 0)
    nearer = jnp.pad(jnp.cumsum(closest, axis=1), ((0, 0), (1, 0)))
    farther = jnp.pad(jnp.cumsum(closest[:, :0:-1], axis=1)[:, ::-1], ((0, 0), (0, 1)))
    left_out = jnp.minimum(rank, neighbours)
    scores = jnp.take_along_axis(nearer, left_out, axis=1)
    scores += jnp.take_along_axis(farther, left_out, axis=1)
    largest = jnp.finfo(distances.dtype).max
    valid = present[None, :] & ~jnp.eye(n, dtype=bool)
    return jnp.where(valid, jnp.minimum(scores.T, largest), jnp.inf)


def bulyan_selection(distances: Array, present: Array, f: int, theta: int) -> tuple[Array, Array]:
    """Bulyan's first step: theta times, Krum's choice among the remaining rows is moved to the selection.

    Among r remaining rows Krum counts r - f - 2 neighbours, at least 1.

    Args:
      distances: (n, n) squared distances, +inf to absent rows.
      present: (n,) bool.
      f: number of malicious rows assumed.
      theta: rows to select (static).

    Returns:
      (theta,) int32 rows in the order of selection, and (theta,) bool: False where none was left.
    """
    n = distances.shape[0]
    distances = jnp.where(jnp.eye(n, dtype=bool), jnp.inf, jax.lax.stop_gradient(distances))
    order = jnp.argsort(distances, axis=1)  # each row's neighbours, closest first: sorted only once
    ascending = jnp.take_along_axis(distances, order, axis=1)
    place = jnp.argsort(order, axis=1)  # (j, i): where i stands in the list of j
    # Absent rows stand last, at infinite distance, and are never counted while enough rows remain.
    largest = jnp.finfo(distances.dtype).max
    slots = jnp.arange(n)
    Carry = tuple[Array, Array, Array, Array, Array]

    def select(i: Array, carry: Carry) -> Carry:
        remaining, ascending, place, chosen, valid = carry
        neighbours = jnp.maximum(jnp.sum(remaining) - f - 2, 1)
        scores = jnp.sum(jnp.where(slots < neighbours, ascending, 0), axis=1)
        best = jnp.argmin(jnp.where(remaining, jnp.minimum(scores, largest), jnp.inf))
        chosen, valid = chosen.at[i].set(best.astype(jnp.int32)), valid.at[i].set(remaining[best])
        # Strike the chosen row from every list: what stands behind it moves up.
        gap = place[:, best][:, None]
        moved = jnp.pad(ascending[:, 1:], ((0, 0), (0, 1)), constant_values=jnp.inf)
        ascending = jnp.where(slots < gap, ascending, moved)
        place = place - (place > gap)
        return remaining.at[best].set(False), ascending, place, chosen, valid

    start = (present, ascending, place, jnp.zeros(theta, jnp.int32), jnp.zeros(theta, bool))
    *_, chosen, valid = jax.lax.fori_loop(0, theta, select, start)
    return chosen, valid


def bulyan(f: int) -> Aggregator:
    """Bulyan: theta = n - 2f rows picked one by one by Krum, then per coordinate the mean of the
    theta - 2f values closest to their median (of two equally close ones the lower).

    Args:
      f: number of malicious rows assumed, 0 <= f <= (n - 3) / 4.

    Raises:
      ValueError: if f < 0, or n < 4f + 3 when called.
    """
    if f < 0:
        raise ValueError(f"bulyan needs f >= 0, got f={f}")

    def aggregate(received: Received, state: State) -> tuple[Array, State, Info]:
        updates, weights = drop_non_finite(received.updates, received.weights)
        n = updates.shape[0]
        if n < 4 * f + 3:
            raise ValueError(f"bulyan needs n >= 4f + 3, got n={n}, f={f}")
        present = weights > 0
        distances = pairwise_squared_distances(updates, present)
        theta = n - 2 * f
        chosen, valid = bulyan_selection(distances, present, f, theta)
        # With absent rows n - 2f is smaller than the static theta; the last ones chosen do not count.
        valid &= jnp.arange(theta) < jnp.maximum(jnp.sum(present) - 2 * f, 1)
        rows = updates[chosen]
        result = mean_around_median(rows, valid, 2 * f)
        selected = jnp.zeros(n, bool).at[chosen].max(valid)
        return result, state, {"selected": selected}

    return Aggregator(stateless, aggregate)


def mean_around_median(x: Array, present: Array, dropped: int) -> Array:
    """Per coordinate, the mean of all but ``dropped`` values: those closest to the median are kept.

    In sorted order they are neighbours, so it is enough to find where their window starts.

    Args:
      x: (n, d).
      present: (n,) bool.
      dropped: values left out, 0 <= dropped < n; at least one value is kept.

    Returns:
      (d,); zero if no row is present.
    """
    n = x.shape[0]
    values, start, count = sort_present(x, present)
    middle = middle_of_sorted(values, start, count)
    kept = jnp.maximum(count - dropped, 1)
    shifts = jnp.arange(dropped)
    left = jnp.take(values, start + shifts, axis=0, mode="clip")
    right = jnp.take(values, start + shifts + kept, axis=0, mode="clip")
    # Moving the window up by one trades `left` for `right`; it pays if `right` is closer. Their mean is
    # rounded as the median is, so that the two middle ones of an even number are equally close.
    better = (0.5 * left + 0.5 * right < middle) & (shifts < count - kept)[:, None]
    begin = start + jnp.sum(better, axis=0)
    rank = jnp.arange(n)[:, None]
    window = (rank >= begin) & (rank < begin + jnp.minimum(kept, count))
    return jnp.sum(jnp.where(window, values, 0), axis=0) / kept
