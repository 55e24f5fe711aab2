"""Attacks that strike in some rounds only.

Fang, Cao, Jia, Gong: "Local Model Poisoning Attacks to Byzantine-Robust Federated Learning", USENIX
Security 2020 (https://arxiv.org/abs/1911.11815), section 4.2, and the single-shot attacks of Bagdasaryan,
Veit, Hua, Estrin, Shmatikov, "How To Backdoor Federated Learning", AISTATS 2020
(https://arxiv.org/abs/1807.00459).
"""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp

from fedjax_robust import checks
from fedjax_robust.memo import same_for_equal_arguments
from fedjax_robust.types import (
    Array,
    Attack,
    AttackerView,
    Client,
    ClientData,
    Info,
    Key,
    State,
)


@same_for_equal_arguments
def in_rounds(attack: Attack, poisoned: Array, client: Client | None = None) -> Attack:
    """An attack that strikes in some rounds only; in the others its clients train and send as honest
    ones, and its own state stands still (Fang et al. 2020, section 4.2, "number of poisoned
    iterations"; single-shot attacks).

    Args:
      attack: what happens in poisoned rounds.
      poisoned: (R,) bool, whether to strike in round 0, 1, ..., R - 1; or (R, c), whether client i does.
        It may be traced, so that ``vmap`` over it works. From round R on, and beyond the c-th, its
        clients are honest.
      client: how honest clients train, if and only if ``attack`` trains its own in another way.

    Raises:
      ValueError: if client is missing or of no use, or if ``poisoned`` is not an array of bool of that
        shape with R >= 1; when called, if ``poisoned`` is (R, c) and the view has no ids.
      TypeError: for parts of another kind, or if ``poisoned`` is no array.
    """
    checks.part("in_rounds", Attack, attack=attack)
    checks.part("in_rounds", Client, client=client, optional=True)
    if (attack.client is None) != (client is None):
        raise ValueError(
            "in_rounds needs client, the honest ones', if and only if the attack trains its clients in "
            f"its own way; got client={client}, attack.client={attack.client}"
        )
    poisoned = checks.array("in_rounds", "poisoned", poisoned)
    if poisoned.ndim not in (1, 2) or poisoned.size == 0 or poisoned.dtype != bool:
        raise ValueError(
            "in_rounds needs poisoned (R,) or (R, c) of bool, R >= 1, got shape "
            f"{poisoned.shape} of {poisoned.dtype}"
        )

    def now(rounds: Array | int, ids: Array | int) -> Array:
        """Whether clients strike; one answer for all of them if there is one for all."""
        answer = jnp.take(poisoned, rounds, axis=0, mode="fill", fill_value=False)
        if poisoned.ndim == 2:
            answer = jnp.take(answer, ids, mode="fill", fill_value=False)
        return answer

    def init(params: Array) -> State:
        return jnp.int32(0), attack.init(params)

    def craft(view: AttackerView, state: State) -> tuple[Array, State]:
        rounds, own = state
        before = view.updates[: view.num_malicious]
        seen, strikes = view, now(rounds, 0)
        if poisoned.ndim == 2:
            if view.ids is None:
                raise ValueError("in_rounds of single clients needs a view with ids, got None")
            each = view.malicious & now(rounds, view.ids)
            # Rows that do not strike are not the attack's to use.
            seen, strikes = view._replace(malicious=each), each[: view.num_malicious]

        def strike(own: State) -> tuple[Array, State]:
            crafted, own = attack.craft(seen, own)
            crafted = crafted[: view.num_malicious].astype(before.dtype)
            return jnp.where(strikes[..., None], crafted, before), own

        crafted, own = jax.lax.cond(jnp.any(strikes), strike, lambda own: (before, own), own)
        return crafted, (rounds + 1, own)

    own_client = None
    if attack.client is not None and client is not None:
        own_client = _switched(attack.client, client, now)
    return Attack(init=init, craft=craft, client=own_client, needs=attack.needs)


def _switched(striking: Client, honest: Client, now: Callable[..., Array]) -> Client:
    """A client that trains as ``striking`` in the rounds of ``now(round, id)``, else as ``honest``."""

    def init(params: Array) -> State:
        return striking.init(params), honest.init(params)

    def update(
        key: Key, params: Array, state: State, data: ClientData
    ) -> tuple[Array, State, Info]:
        def train(client: Client, i: int) -> tuple[Array, State, Info]:
            update, own, info = client.update(key, params, state[i], data)
            info = {"train_loss": info.get("train_loss", jnp.float32(jnp.nan))}
            return update, (own, state[1]) if i == 0 else (state[0], own), info

        return jax.lax.cond(
            now(data.round, data.id), lambda: train(striking, 0), lambda: train(honest, 1)
        )

    return Client(init, update)
