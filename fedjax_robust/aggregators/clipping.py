"""Bounding what one client can do: norm clipping, and participant-level differential privacy.

McMahan, Ramage, Talwar, Zhang, "Learning Differentially Private Recurrent Language Models", ICLR 2018,
as Bagdasaryan, Veit, Hua, Estrin, Shmatikov, "How To Backdoor Federated Learning", AISTATS 2020, use it
as a defence (section VI-C): each update is multiplied by min(1, S / |L_i - G|_2), and Gaussian noise is
added to the average.

What the noise is worth depends on what a neighbouring set of clients is, on how a round's clients are
drawn, and on what their sum is divided by. Two readings have functions:

- ``privacy_spent``, what a simulation does: m of N clients, all different, in every round; neighbours
  have one client *replaced*, which moves the average by up to 2 S / m.
- ``privacy_spent_poisson``: every client takes part by itself with probability m / N, as
  ``participation.each_with_probability`` draws them; neighbours have
  one client *more or fewer*, which moves the sum by up to S, and the average by S / m only if the sum
  is divided by m whoever is there.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from fedjax_robust import checks
from fedjax_robust.aggregators.base import MEAN, cleaned, no_state, wrapping
from fedjax_robust.memo import same_for_equal_arguments
from fedjax_robust.robust_stats import direction_and_length, weighted_mean
from fedjax_robust.types import Aggregator, Array, Info, Received, State


@same_for_equal_arguments
def norm_clipping(bound: float | Array, *, base: Aggregator = MEAN) -> Aggregator:
    """Every update is shortened to length S, if it is longer; then another rule.

    Reports ``clipped`` (n,) bool, the present rows that were longer, besides what the rule reports.

    Args:
      bound: S > 0, finite. It may be traced.
      base: the rule for the clipped updates.

    Raises:
      ValueError: if S is not positive and finite.
      TypeError: if it is no number, or base no rule.
    """
    checks.positive("norm_clipping", bound=bound)
    checks.part("norm_clipping", Aggregator, base=base)

    def change(received: Received) -> tuple[Received, Info]:
        clipped, longer = clip_rows(received.updates, bound)
        info = {"clipped": longer & (received.weights > 0)}
        return received._replace(updates=clipped), info

    return wrapping(change, base)


def clip_rows(updates: Array, bound: float | Array) -> tuple[Array, Array]:
    """Rows times min(1, S / length): (n, d) finite, S > 0 -> (n, d), and which were longer, (n,) bool.

    Rows whose largest entry is below 1e-31 count as zero, which no bound shortens.
    """
    unit, length = direction_and_length(updates)
    longer = length > bound
    shortened = (bound * unit).astype(updates.dtype)
    return jnp.where(longer[:, None], shortened, updates), longer


@same_for_equal_arguments
def participant_dp(
    bound: float | Array, noise: float | Array, *, clients_per_round: float | Array | None = None
) -> Aggregator:
    """The average of clipped updates, plus N(0, sigma^2) in every coordinate.

    Weights only say who is present: with unequal ones a client would move the average by more than it
    is charged for.

    ``privacy_spent`` says what (epsilon, delta) that is worth. Without ``clients_per_round`` the sum is
    divided by the number k of present rows, and the model stays if there is none; the claim is that of
    rounds in which all m rows are present. Where clients may be absent (without data, with a NaN, drawn
    by chance), one client moves an average over k < m rows by more: then pass m. The sum is divided by
    m in every round, the noise never left out, and the claims hold whoever is there.

    Reports ``clipped``, as ``norm_clipping`` does.

    Args:
      bound: S > 0, the clipping bound, which all clients know.
      noise: sigma >= 0, the noise's standard deviation on the *average*, finite.
      clients_per_round: m > 0, the (expected) number of clients, by which the sum is divided; None =
        the number present.

    Raises:
      ValueError: if S or m is not positive, sigma negative, or one of them not finite.
      TypeError: if they are no numbers.
    """
    checks.positive("participant_dp", bound=bound)
    checks.not_negative("participant_dp", noise=noise)
    if clients_per_round is not None:
        checks.positive("participant_dp", clients_per_round=clients_per_round)

    def aggregate(received: Received, state: State) -> tuple[Array, State, Info]:
        received = cleaned(received)
        present = received.weights > 0
        clipped, longer = clip_rows(received.updates, bound)
        average = weighted_mean(clipped, present)
        random = noise * jax.random.normal(received.key, average.shape, average.dtype)
        if clients_per_round is None:
            drawn = jnp.where(jnp.any(present), random, 0)
        else:
            average, drawn = average * (jnp.sum(present) / clients_per_round), random
        result = (average + drawn).astype(received.updates.dtype)
        return result, state, {"clipped": longer & present}

    return Aggregator(no_state, aggregate)


def privacy_spent(
    bound: float,
    noise: float,
    clients_per_round: int,
    num_clients: int,
    rounds: int,
    delta: float,
) -> float:
    """epsilon of (epsilon, delta)-differential privacy for one client after all rounds of a simulation.

    What a simulation with ``participant_dp`` gives: m different clients in every round, drawn from N
    without replacement, all of them present. Neighbours: one client's data *replaced* by any other's, N
    being public. That moves the average by up to 2 S / m, so that the noise multiplier is
    sigma m / (2 S). By the RDP accountant of Google's ``dp-accounting`` (Wang, Balle, Kasiviswanathan,
    "Subsampled Renyi Differential Privacy and Analytical Moments Accountant", AISTATS 2019, theorem 27).

    Args:
      bound: S > 0 of ``participant_dp``.
      noise: its sigma >= 0; 0 gives infinity.
      clients_per_round: m, 1 <= m <= N.
      num_clients: N.
      rounds: >= 1.
      delta: in (0, 1), usually below 1 / N.

    Returns:
      epsilon > 0; infinity if the orders that the accountant tries prove nothing.

    Raises:
      ValueError: if an argument is out of range.
      TypeError: if one is no number.
      ImportError: without dp-accounting: ``pip install "fedjax_robust[dp]"``.
    """
    what = "privacy_spent"
    _check(what, bound, noise, clients_per_round, num_clients, rounds, delta)
    checks.static_count(what, 1, clients_per_round=clients_per_round)
    if float(noise) == 0:
        return float("inf")
    import dp_accounting

    relation = dp_accounting.NeighboringRelation.REPLACE_ONE
    m, total = int(clients_per_round), int(num_clients)
    gaussian = dp_accounting.GaussianDpEvent(float(noise) * m / (2 * float(bound)))
    one_round = dp_accounting.SampledWithoutReplacementDpEvent(total, m, gaussian)
    return _epsilon(relation, one_round, rounds, delta)


def privacy_spent_poisson(
    bound: float,
    noise: float,
    expected_clients: float,
    num_clients: int,
    rounds: int,
    delta: float,
) -> float:
    """epsilon of (epsilon, delta)-differential privacy for one client under Poisson sampling.

    Every client takes part in a round by itself with probability q = m / N,
    ``Simulation(participants=participation.each_with_probability(N, q))``, and the sum of the clipped
    updates is divided by m, ``participant_dp(..., clients_per_round=m)``; McMahan et al.'s first
    estimator. Neighbours: one client *more or fewer*. That moves the average by up to S / m, so that the
    noise multiplier is sigma m / S. A simulation that draws a fixed number of clients, or divides by who
    is present, does not have this guarantee: see ``privacy_spent``.

    Args:
      bound: S > 0 of ``participant_dp``.
      noise: its sigma >= 0; 0 gives infinity.
      expected_clients: m, 0 < m <= N.
      num_clients: N.
      rounds: >= 1.
      delta: in (0, 1), usually below 1 / N.

    Returns, Raises: as ``privacy_spent``.
    """
    what = "privacy_spent_poisson"
    _check(what, bound, noise, expected_clients, num_clients, rounds, delta, "expected_clients")
    if float(noise) == 0:
        return float("inf")
    import dp_accounting

    relation = dp_accounting.NeighboringRelation.ADD_OR_REMOVE_ONE
    m = float(expected_clients)
    gaussian = dp_accounting.GaussianDpEvent(float(noise) * m / float(bound))
    one_round = dp_accounting.PoissonSampledDpEvent(m / int(num_clients), gaussian)
    return _epsilon(relation, one_round, rounds, delta)


def _check(
    what: str,
    bound: float,
    noise: float,
    m: float,
    num_clients: int,
    rounds: int,
    delta: float,
    name: str = "clients_per_round",
) -> None:
    checks.positive(what, bound=bound)
    checks.not_negative(what, noise=noise)
    numbers: dict[str, Any] = {name: m}
    checks.positive(what, **numbers)
    checks.static_count(what, 1, num_clients=num_clients, rounds=rounds)
    checks.between(what, 0, 1, open_low=True, open_high=True, delta=delta)
    if m > num_clients:
        raise ValueError(f"{what} needs {name} <= num_clients, got {m} of {num_clients} clients")


def _epsilon(relation: Any, one_round: Any, rounds: int, delta: float) -> float:
    from dp_accounting.rdp import RdpAccountant

    accountant = RdpAccountant(neighboring_relation=relation)
    accountant.compose(one_round, int(rounds))
    return float(accountant.get_epsilon(float(delta)))
