"""Rules that work on each coordinate alone.

Mean: McMahan et al., "Communication-Efficient Learning of Deep Networks from Decentralized Data",
AISTATS 2017. Coordinate-wise median and trimmed mean: Yin et al., "Byzantine-Robust Distributed
Learning: Towards Optimal Statistical Rates", ICML 2018; as restated in Fang et al., "Local Model
Poisoning Attacks to Byzantine-Robust Federated Learning", USENIX Security 2020, section 2.2.
"""

from __future__ import annotations

import jax.numpy as jnp

from fedjax_robust.robust_stats import (
    coordinate_median,
    drop_non_finite,
    sort_present,
    weighted_mean,
)
from fedjax_robust.types import Aggregator, Array, Info, Received, State


def stateless(num_clients: int, params: Array) -> State:
    """``init`` of a rule without state."""
    return ()


def mean() -> Aggregator:
    """The mean of the updates, weighted by ``weights`` (FedAvg). Not robust.

    Rows with a NaN or Inf are left out, as in every rule.
    """

    def aggregate(received: Received, state: State) -> tuple[Array, State, Info]:
        updates, weights = drop_non_finite(received.updates, received.weights)
        return weighted_mean(updates, weights), state, {}

    return Aggregator(stateless, aggregate)


def median() -> Aggregator:
    """Coordinate-wise median; with an even number of rows the mean of the two middle values.

    Weights only say who is present.
    """

    def aggregate(received: Received, state: State) -> tuple[Array, State, Info]:
        updates, weights = drop_non_finite(received.updates, received.weights)
        return coordinate_median(updates, weights > 0), state, {}

    return Aggregator(stateless, aggregate)


def trimmed_mean(f: int) -> Aggregator:
    """Coordinate-wise trimmed mean: the f largest and f smallest values of each coordinate are removed.

    Weights only say who is present. Should fewer than 2f + 1 rows be present, only as many are removed
    as leave one or two.

    Args:
      f: number removed at each end, 0 <= f < n / 2; the paper's beta, at least the number of
        malicious clients.

    Raises:
      ValueError: if f < 0, or n <= 2f when called.
    """
    if f < 0:
        raise ValueError(f"trimmed_mean needs f >= 0, got f={f}")

    def aggregate(received: Received, state: State) -> tuple[Array, State, Info]:
        updates, weights = drop_non_finite(received.updates, received.weights)
        n = updates.shape[0]
        if n <= 2 * f:
            raise ValueError(f"trimmed_mean needs n > 2f, got n={n}, f={f}")
        low, high = min(f, max((n - 2) // 2, 0)), max(n - f, n // 2 + 1)
        values, start, count = sort_present(updates, weights > 0, low, high)
        removed = jnp.minimum(f, jnp.maximum(count - 1, 0) // 2)
        rank = jnp.arange(low, high)
        kept = (rank >= start + removed) & (rank < start + count - removed)
        total = jnp.sum(jnp.where(kept[:, None], values, 0), axis=0)
        return total / jnp.maximum(jnp.sum(kept), 1), state, {}

    return Aggregator(stateless, aggregate)
