"""Attacks without regard to the rule: none at all, training on other data, and Gaussian noise.

The last one is from Fang, Cao, Jia, Gong: "Local Model Poisoning Attacks to Byzantine-Robust Federated
Learning", USENIX Security 2020 (https://arxiv.org/abs/1911.11815), section 4.1.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from fedjax_robust import checks
from fedjax_robust.kernels.norms import power_of_two
from fedjax_robust.memo import same_for_equal_arguments
from fedjax_robust.types import (
    Array,
    Attack,
    AttackerView,
    Client,
    Knowledge,
    State,
)


@same_for_equal_arguments
def no_attack() -> Attack:
    """Malicious clients behave as honest ones."""
    return Attack()


@same_for_equal_arguments
def data_poisoning(client: Client) -> Attack:
    """Malicious clients train in another way, and send what comes out.

    Args:
      client: how they train, e.g. ``local_sgd(..., poison=label_flip(10))``.

    Raises:
      TypeError: if it is no client.
    """
    checks.part("data_poisoning", Client, client=client)
    return Attack(client=client)


@same_for_equal_arguments
def gaussian() -> Attack:
    """Gaussian attack (Fang et al. 2020, section 4.1): each coordinate of each malicious update is drawn
    from the normal distribution with mean and standard deviation (divisor n) of the before-attack
    updates of *all* clients. Needs ``Knowledge(others=True)``.

    What would be beyond the largest float is the largest float: the server would drop the row.
    """

    def craft(view: AttackerView, state: State) -> tuple[Array, State]:
        mean, std = moments(view.updates, view.visible)
        shape = (view.num_malicious, view.updates.shape[1])
        drawn = mean + std * jax.random.normal(view.key, shape, view.updates.dtype)
        largest = jnp.finfo(drawn.dtype).max
        return jnp.clip(drawn, -largest, largest), state

    return Attack(craft=craft, needs=Knowledge(others=True))


def moments(updates: Array, rows: Array) -> tuple[Array, Array]:
    """Column means and standard deviations (divisor: number of rows) of some rows.

    Args:
      updates: (n, d).
      rows: (n,) bool.

    Returns:
      (d,) and (d,); zero if no row is meant. float16 and bfloat16 are computed in float32.

    Raises:
      ValueError: for other shapes.
    """
    updates, _ = checks.matrix("moments", updates, rows)
    exact = updates.astype(jnp.promote_types(updates.dtype, jnp.float32))
    counted = jnp.where(jnp.asarray(rows)[:, None] > 0, exact, 0)
    # In units of each column's largest entry, so that no sum and no square leaves the range of floats.
    unit, inverse = power_of_two(jnp.max(jnp.abs(counted), axis=0))
    counted = counted * inverse
    number = jnp.maximum(jnp.sum(jnp.asarray(rows) > 0), 1)
    mean = jnp.sum(counted, axis=0) / number
    squares = jnp.where(jnp.asarray(rows)[:, None] > 0, jnp.square(counted - mean), 0)
    std = jnp.sqrt(jnp.sum(squares, axis=0) / number)
    return (mean * unit).astype(updates.dtype), (std * unit).astype(updates.dtype)
