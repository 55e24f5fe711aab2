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
