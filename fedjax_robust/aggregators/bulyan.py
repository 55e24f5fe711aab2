"""Bulyan: Krum chooses rows one by one, and of these each coordinate's middle values are averaged.

El Mhamdi, Guerraoui, Rouault, "The Hidden Vulnerability of Distributed Learning in Byzantium", ICML 2018
(https://arxiv.org/abs/1802.07927), section 4, as restated in Fang et al., USENIX Security 2020
(https://arxiv.org/abs/1911.11815), section 2.2.

Weights only say who is present; n below is the number of present rows.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from fedjax_robust import checks
from fedjax_robust.aggregators.base import no_state
from fedjax_robust.aggregators.krum import checked_distances, plain_integer, root_sums
from fedjax_robust.kernels.distances import pairwise_distances
from fedjax_robust.kernels.presence import drop_non_finite
from fedjax_robust.kernels.ranks import mean_around_median
from fedjax_robust.memo import same_for_equal_arguments
from fedjax_robust.types import Aggregator, Array, Info, Received, State


def bulyan_selection(
    distances: Array, present: Array, f: int | Array, theta: int
) -> tuple[Array, Array]:
    """Bulyan's first step: theta times, Krum's choice among the remaining rows is moved to the selection.

    Among r remaining rows Krum counts r - f - 2 neighbours, at least 1.

    Args:
      distances: (n, n) of ``pairwise_distances``: not squared, +inf to absent rows.
      present: (n,) bool.
      f: number of malicious rows assumed.
      theta: rows to select (static), 1 <= theta <= n.

    Returns:
      (theta,) int32 rows in the order of selection, and (theta,) bool: False where none was left.

    Raises:
      ValueError: for other shapes, or numbers that are out of range.
    """
    distances, present = checked_distances("bulyan_selection", distances, present, f)
    n = distances.shape[0]
    checks.static_count("bulyan_selection", 1, theta=theta)
    if theta > n:
        raise ValueError(f"bulyan_selection needs theta <= n, got theta={theta}, n={n}")
    distances = jnp.where(jnp.eye(n, dtype=bool), jnp.inf, distances)
    order = jnp.argsort(distances, axis=1)  # each row's neighbours, closest first: sorted only once
    ascending = jnp.take_along_axis(distances, order, axis=1)
    place = jnp.argsort(order, axis=1)  # (j, i): where i stands in the list of j
    # Absent rows stand last, at infinite distance, and are never counted while enough rows remain.
    slots = jnp.arange(n)
    Carry = tuple[Array, Array, Array, Array, Array]

    def select(i: Array, carry: Carry) -> Carry:
        remaining, ascending, place, chosen, valid = carry
        neighbours = jnp.maximum(jnp.sum(remaining) - f - 2, 1)
        scores = root_sums(ascending, neighbours)
        best = jnp.argmin(jnp.where(remaining, scores, jnp.inf))
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


@same_for_equal_arguments
def bulyan(f: int | Array) -> Aggregator:
    """Bulyan: theta = n - 2f rows picked one by one by Krum, then per coordinate the mean of the
    theta - 2f values closest to their median (of two equally close ones the lower).

    Args:
      f: number of malicious rows assumed, 0 <= f <= (n - 3) / 4. It may be traced, and is not checked
        then.

    Raises:
      ValueError: if f < 0, or n < 4f + 3 when called.

    Krum chooses 3, 4, 2, 6, 1; their median is 3, and the three nearest to it are 2, 3, 4:

    >>> bulyan(f=1)(jnp.array([[1.0], [2.0], [3.0], [4.0], [6.0], [9.0], [100.0]])).tolist()
    [3.0]
    """
    checks.count("bulyan", f=f)
    f = plain_integer(f)

    def aggregate(received: Received, state: State) -> tuple[Array, State, Info]:
        updates, weights = drop_non_finite(received.updates, received.weights)
        n = updates.shape[0]
        if checks.is_known(f) and n < 4 * f + 3:
            raise ValueError(f"bulyan needs n >= 4f + 3, got n={n}, f={f}")
        present = weights > 0
        distances = pairwise_distances(jax.lax.stop_gradient(updates), present)
        theta = n - 2 * int(f) if checks.is_known(f) else n
        chosen, valid = bulyan_selection(distances, present, f, theta)
        # theta is an upper bound if f is traced or rows are absent; the last ones do not count then.
        valid &= jnp.arange(theta) < jnp.maximum(jnp.sum(present) - 2 * f, 1)
        rows = updates[chosen]
        result = mean_around_median(rows, valid, 2 * f)
        selected = jnp.zeros(n, bool).at[chosen].max(valid)
        return result, state, {"selected": selected}

    return Aggregator(no_state, aggregate)
