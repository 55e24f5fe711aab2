"""Who takes part in a round: functions for ``Simulation.participants``."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp

from fedjax_robust.types import Array, Key


def attackers_selected(
    num_clients: int, clients_per_round: int, rounds: Array
) -> Callable[[Key, Array], Array]:
    """Clients 0 .. c - 1 take part in the rounds that are named and in no others, as in the single-shot
    attacks of Bagdasaryan et al. (2020) and of DBA. The other places go to the other clients at random.

    Args:
      num_clients: N.
      clients_per_round: n <= N.
      rounds: (R, c) bool, whether client i takes part in round r; at most n of a row. (R,) is one
        attacker. From round R on the attackers are absent.

    Raises:
      ValueError: for shapes or numbers out of range.
    """
    rounds = jnp.asarray(rounds)
    if rounds.ndim == 1:
        rounds = rounds[:, None]
    c = rounds.shape[-1]
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

    def participants(key: Key, rounds_done: Array) -> Array:
        now = jnp.take(rounds, rounds_done, axis=0, mode="fill", fill_value=False)
        order = jax.random.uniform(key, (num_clients,))
        order = order.at[:c].set(jnp.where(now, -1, 2))
        return jnp.sort(jnp.argsort(order)[:clients_per_round]).astype(jnp.int32)

    return participants
