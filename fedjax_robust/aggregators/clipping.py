"""Bounding what one client can do: norm clipping, and participant-level differential privacy.

McMahan, Ramage, Talwar, Zhang, "Learning Differentially Private Recurrent Language Models", ICLR 2018,
as Bagdasaryan, Veit, Hua, Estrin, Shmatikov, "How To Backdoor Federated Learning", AISTATS 2020, use it
as a defence (section VI-C): each update is multiplied by min(1, S / |L_i - G|_2), and Gaussian noise is
added to the weighted average.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from fedjax_robust.aggregators.basic import mean
from fedjax_robust.robust_stats import direction_and_length, drop_non_finite, is_present
from fedjax_robust.types import Aggregator, Array, Info, Received, State, is_number


def norm_clipping(bound: float | Array, base: Aggregator | None = None) -> Aggregator:
    """Every update is shortened to length S, if it is longer; then another rule.

    Reports ``clipped`` (n,) bool, the present rows that were longer, besides what the rule reports.

    Args:
      bound: S > 0.
      base: the rule for the clipped updates; default the mean.

    Raises:
      ValueError: if S is not positive.
    """
    if is_number(bound) and not bound > 0:
        raise ValueError(f"norm_clipping needs bound > 0, got {bound}")
    rule = mean() if base is None else base

    def aggregate(received: Received, state: State) -> tuple[Array, State, Info]:
        updates, weights = drop_non_finite(received.updates, received.weights)
        clipped, longer = clip_rows(updates, bound)
        shortened = received._replace(updates=clipped, weights=weights)
        result, state, info = rule.aggregate(shortened, state)
        return result, state, {"clipped": longer & (weights > 0)} | info

    return Aggregator(rule.init, aggregate)


def clip_rows(updates: Array, bound: float | Array) -> tuple[Array, Array]:
    """Rows times min(1, S / length): (n, d) finite -> (n, d), and which were longer, (n,) bool."""
    unit, length = direction_and_length(updates)
    longer = length > bound
    return jnp.where(longer[:, None], bound * unit, updates), longer


def participant_dp(bound: float | Array, noise: float | Array) -> Aggregator:
    """The weighted average of clipped updates, plus N(0, sigma^2) in every coordinate.

    ``privacy_spent`` says what (epsilon, delta) that is worth. Without a present row the model stays.

    Args:
      bound: S > 0, the clipping bound, which all clients know.
      noise: sigma >= 0, the noise's standard deviation on the *average*.

    Raises:
      ValueError: if S is not positive or sigma negative.
    """
    if is_number(noise) and not noise >= 0:
        raise ValueError(f"participant_dp needs noise >= 0, got {noise}")
    clipping = norm_clipping(bound)

    def aggregate(received: Received, state: State) -> tuple[Array, State, Info]:
        average, state, info = clipping.aggregate(received, state)
        drawn = noise * jax.random.normal(received.key, average.shape, average.dtype)
        anybody = jnp.any(is_present(received.updates, received.weights))
        return average + jnp.where(anybody, drawn, 0), state, info

    return Aggregator(clipping.init, aggregate)


def privacy_spent(
    bound: float,
    noise: float,
    clients_per_round: int,
    num_clients: int,
    rounds: int,
    delta: float,
) -> float:
    """epsilon of (epsilon, delta)-differential privacy for one client after all rounds.

    By the RDP accountant of Google's ``dp-accounting``, for Poisson sampling at the rate
    clients_per_round / num_clients, as usual for a fixed number of participants. With equal weights one
    client moves the average by at most S / m, so that the noise multiplier is sigma m / S.

    Args:
      bound: S > 0 of ``participant_dp``.
      noise: its sigma; 0 gives infinity.
      clients_per_round: m, 1 <= m <= N.
      num_clients: N.
      rounds: >= 1.
      delta: in (0, 1), usually below 1 / N.

    Raises:
      ValueError: if an argument is out of range.
      ImportError: without dp-accounting: ``pip install "fedjax_robust[dp]"``.
    """
    if not (bound > 0 and noise >= 0 and 1 <= clients_per_round <= num_clients):
        raise ValueError(
            "privacy_spent needs bound > 0, noise >= 0 and 1 <= clients_per_round <= num_clients, got "
            f"{bound}, {noise}, {clients_per_round} and {num_clients}"
        )
    if rounds < 1 or not 0 < delta < 1:
        raise ValueError(
            f"privacy_spent needs rounds >= 1 and delta in (0, 1), got {rounds} and {delta}"
        )
    if noise == 0:
        return float("inf")
    import dp_accounting
    from dp_accounting.rdp import RdpAccountant

    one_round = dp_accounting.PoissonSampledDpEvent(
        clients_per_round / num_clients,
        dp_accounting.GaussianDpEvent(noise * clients_per_round / bound),
    )
    accountant = RdpAccountant()
    accountant.compose(one_round, rounds)
    return float(accountant.get_epsilon(delta))
