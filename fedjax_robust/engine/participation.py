"""Who takes part in a round: functions for ``Simulation.participants``.

Each is key, rounds done () -> ids (n,) int32, ascending and different. n is static; where fewer clients
than n take part, the last ids are N, which is nobody.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from fedjax_robust import checks
from fedjax_robust.memo import same_for_equal_arguments
from fedjax_robust.types import Array, Key

Participants = Callable[[Key, Array], Array]


@same_for_equal_arguments
def each_with_probability(
    num_clients: int, probability: float, at_most: int | None = None
) -> Participants:
    """Each client takes part with the same probability, independently of all others and of other rounds:
    Poisson sampling, which accountants of differential privacy assume.

    Args:
      num_clients: N.
      probability: q in (0, 1].
      at_most: places n in a round, which set its cost; if more clients are drawn, n of them at random
        take part, and the sampling is Poisson no more. None is a number that a round exceeds with a
        probability below 1e-12 (Chernoff's bound).

    Raises:
      ValueError: for numbers out of range.
    """
    what = "each_with_probability"
    checks.static_count(what, 1, num_clients=num_clients)
    checks.between(what, 0, 1, open_low=True, probability=probability)
    if at_most is None:
        if not checks.is_known(probability):
            raise TypeError(f"{what} needs at_most if probability is traced")
        at_most = _hardly_exceeded(int(num_clients), float(probability))
    checks.static_count(what, 1, at_most=at_most)
    if at_most > num_clients:
        raise ValueError(f"{what} needs at_most <= N, got at_most={at_most}, N={num_clients}")

    def participants(key: Key, rounds_done: Array) -> Array:
        draw_key, order_key = jax.random.split(key)
        drawn = jax.random.bernoulli(draw_key, probability, (num_clients,))
        return _first(order_key, drawn, jnp.sum(drawn), at_most)

    return participants


def _hardly_exceeded(num_clients: int, q: float) -> int:
    """The smallest k > N q with exp(-N KL(k / N || q)) <= 1e-12, which bounds P(more than k)."""
    if q == 1:
        return num_clients
    k = np.arange(1, num_clients)
    share = k / num_clients
    exponent = num_clients * (
        share * np.log(share / q) + (1 - share) * np.log((1 - share) / (1 - q))
    )
    enough = k[(share > q) & (exponent >= -math.log(1e-12))]
    return int(enough[0]) if enough.size else num_clients


@same_for_equal_arguments
def varying_number(num_clients: int, at_most: int, numbers: Array) -> Participants:
    """A number of clients that changes from round to round, drawn without replacement.

    Args:
      num_clients: N.
      at_most: places n <= N in a round, which set its cost.
      numbers: (R,) whole numbers in [0, n], how many take part in round 0, 1, ..., R - 1; then they
        start again. They may be traced.

    Raises:
      ValueError: for shapes or numbers out of range.
      TypeError: if they are not integers.
    """
    what = "varying_number"
    checks.static_count(what, 1, num_clients=num_clients, at_most=at_most)
    if at_most > num_clients:
        raise ValueError(f"{what} needs at_most <= N, got at_most={at_most}, N={num_clients}")
    numbers = checks.shaped(what, "numbers", numbers, (None,), "integer", "(R,)")
    if checks.is_known(numbers):
        least, most = int(np.min(numbers)), int(np.max(numbers))
        if least < 0 or most > at_most:
            raise ValueError(
                f"{what} needs numbers in 0 .. at_most={at_most}, got numbers from {least} to {most}"
            )

    def participants(key: Key, rounds_done: Array) -> Array:
        number = numbers[rounds_done % len(numbers)]
        return _first(key, jnp.ones(num_clients, bool), number, at_most)

    return participants


def _first(key: Key, allowed: Array, number: Array, places: int) -> Array:
    """``number`` of the allowed clients at random, at most as many as there are places; then nobody."""
    num_clients = allowed.shape[0]
    order = jnp.where(allowed, jax.random.uniform(key, (num_clients,)), 2)
    chosen = jnp.argsort(order)[:places]
    chosen = jnp.where(jnp.arange(places) < number, chosen, num_clients)
    return jnp.sort(chosen).astype(jnp.int32)


def attackers_selected(num_clients: int, clients_per_round: int, rounds: Array) -> Participants:
    """Clients 0 .. c - 1 take part in the rounds that are named and in no others, as in the single-shot
    attacks of Bagdasaryan et al. (2020) and of DBA. The other places go to the other clients at random.

    Args:
      num_clients: N.
      clients_per_round: n <= N.
      rounds: (R, c) bool, whether client i takes part in round r; at most n of a row. (R,) is one
        attacker. From round R on the attackers are absent.

    Raises:
      ValueError: for shapes or numbers out of range, or a round with more than n attackers.
      TypeError: if the numbers are none.
    """
    what = "attackers_selected"
    checks.static_count(what, num_clients=num_clients, clients_per_round=clients_per_round)
    rounds = checks.array(what, "rounds", rounds)
    if rounds.ndim == 1:
        rounds = rounds[:, None]
    c = rounds.shape[-1] if rounds.ndim else 0
    if rounds.ndim != 2 or rounds.size == 0 or rounds.dtype != bool:
        raise ValueError(
            "attackers_selected needs rounds (R, c) or (R,) of bool, got shape "
            f"{rounds.shape} of {rounds.dtype}"
        )
    if not 1 <= clients_per_round <= num_clients - c:
        raise ValueError(
            "attackers_selected needs 1 <= clients_per_round <= N - c, as the attackers may all be "
            f"absent; got clients_per_round={clients_per_round}, N={num_clients}, c={c}"
        )
    if checks.is_known(rounds) and int(most := np.sum(rounds, axis=1).max()) > clients_per_round:
        raise ValueError(
            f"attackers_selected needs at most clients_per_round={clients_per_round} attackers in a "
            f"round, got {most} in round {int(np.sum(rounds, axis=1).argmax())}"
        )

    def participants(key: Key, rounds_done: Array) -> Array:
        now = jnp.take(rounds, rounds_done, axis=0, mode="fill", fill_value=False)
        order = jax.random.uniform(key, (num_clients,))
        order = order.at[:c].set(jnp.where(now, -1, 2))
        return jnp.sort(jnp.argsort(order)[:clients_per_round]).astype(jnp.int32)

    return participants
