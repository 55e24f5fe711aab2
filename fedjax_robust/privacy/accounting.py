"""What the noise of ``participant_dp`` is worth in (epsilon, delta), by Google's ``dp-accounting``.

Wang, Balle, Kasiviswanathan, "Subsampled Renyi Differential Privacy and Analytical Moments Accountant",
AISTATS 2019 (https://arxiv.org/abs/1808.00087).
"""

from __future__ import annotations

from typing import Any

from fedjax_robust import checks


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
    ``Simulation(participants=each_with_probability(N, q))``, and the sum of the clipped
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

    Returns:
      epsilon > 0; infinity if the orders that the accountant tries prove nothing.

    Raises:
      ValueError: if an argument is out of range.
      TypeError: if one is no number.
      ImportError: without dp-accounting: ``pip install "fedjax_robust[dp]"``.
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
