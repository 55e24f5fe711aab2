"""Attacks whose updates are drawn or computed without regard to the rule."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from fedjax_robust.types import Array, Attack, AttackerView, Client, Knowledge, State


def no_attack() -> Attack:
    """Malicious clients behave as honest ones."""
    return Attack()


def data_poisoning(client: Client) -> Attack:
    """Malicious clients train with ``client``, e.g. ``local_sgd(..., poison=label_flip(10))``, and send
    what comes out."""
    return Attack(client=client)


def gaussian() -> Attack:
    """Gaussian attack (Fang et al. 2020, section 4.1): each coordinate of each malicious update is drawn
    from the normal distribution with mean and standard deviation (divisor n) of the before-attack
    updates of *all* clients. Needs ``Knowledge(others=True)``."""

    def craft(view: AttackerView, state: State) -> tuple[Array, State]:
        mean, std = moments(view.updates, view.visible)
        shape = (view.num_malicious, view.updates.shape[1])
        return mean + std * jax.random.normal(view.key, shape, view.updates.dtype), state

    return Attack(craft=craft, needs=Knowledge(others=True))


def in_rounds(attack: Attack, poisoned: Array) -> Attack:
    """An attack that strikes in some rounds only; in the others its clients send their before-attack
    updates, and its own state stands still (Fang et al. 2020, section 4.2, "number of poisoned
    iterations").

    Args:
      attack: what happens in poisoned rounds.
      poisoned: (R,) bool, whether to strike in round 0, 1, ..., R - 1. It may be traced, so that
        ``vmap`` over it works. From round R on its clients are honest.

    Raises:
      ValueError: if ``attack`` trains its clients in its own way, as what they send without attack is
        then unknown; or if ``poisoned`` is not a (R,) array of bool, R >= 1.
    """
    if attack.client is not None:
        raise ValueError(
            "in_rounds needs an attack whose clients train honestly, but this one has a client of its "
            "own; switch such an attack inside its client instead"
        )
    poisoned = jnp.asarray(poisoned)
    if poisoned.ndim != 1 or poisoned.size == 0 or poisoned.dtype != bool:
        raise ValueError(
            "in_rounds needs poisoned (R,) of bool, R >= 1, one entry for each round, got shape "
            f"{poisoned.shape} of {poisoned.dtype}"
        )

    def init(params: Array) -> State:
        return jnp.int32(0), attack.init(params)

    def craft(view: AttackerView, state: State) -> tuple[Array, State]:
        rounds, own = state
        before = view.updates[: view.num_malicious]

        def strike(own: State) -> tuple[Array, State]:
            crafted, own = attack.craft(view, own)
            return crafted[: view.num_malicious].astype(before.dtype), own

        now = jnp.take(poisoned, rounds, mode="fill", fill_value=False)
        crafted, own = jax.lax.cond(now, strike, lambda own: (before, own), own)
        return crafted, (rounds + 1, own)

    return Attack(init=init, craft=craft, needs=attack.needs)


def moments(updates: Array, rows: Array) -> tuple[Array, Array]:
    """Column means and standard deviations (divisor: number of rows) of some rows.

    Args:
      updates: (n, d).
      rows: (n,) bool.

    Returns:
      (d,) and (d,); zero if no row is meant.
    """
    number = jnp.maximum(jnp.sum(rows), 1)
    mean = jnp.sum(jnp.where(rows[:, None], updates, 0), axis=0) / number
    squares = jnp.where(rows[:, None], jnp.square(updates - mean), 0)
    return mean, jnp.sqrt(jnp.sum(squares, axis=0) / number)
