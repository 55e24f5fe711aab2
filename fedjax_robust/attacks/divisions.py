"""How attackers share out one model: functions of X - G for ``model_replacement``.

Bagdasaryan, Veit, Hua, Estrin, Shmatikov, "How To Backdoor Federated Learning", AISTATS 2020
(https://arxiv.org/abs/1807.00459), sections III, V-D and VI.
"""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp

from fedjax_robust import checks
from fedjax_robust.kernels.norms import direction_and_length
from fedjax_robust.memo import same_for_equal_arguments
from fedjax_robust.types import Array, Key

Division = Callable[[Key, Array, Array], Array]
"""key, X - G (d,), the attackers that are there (c,) bool -> what each submits (c, d); the rows of
others do not matter."""


@same_for_equal_arguments
def equal_parts(gamma: float | Array) -> Division:
    """Each of z attackers submits gamma / z (X - G), in total gamma (X - G): eq. 3.

    Args:
      gamma: scaling factor > 0; n / eta replaces the global model by X.

    Raises:
      ValueError: if gamma is not positive and finite.
      TypeError: if it is no number.
    """
    checks.positive("equal_parts", gamma=gamma)

    def divide(key: Key, difference: Array, attackers: Array) -> Array:
        share = gamma / jnp.maximum(jnp.sum(attackers), 1)
        return jnp.where(attackers[:, None], share * difference, 0)

    return divide


@same_for_equal_arguments
def norm_bounded(bound: float | Array) -> Division:
    """Train-and-scale: each attacker submits S (X - G) / ||X - G||_2, up to the bound (eq. 5).

    z attackers have z S (X - G) / ||X - G||_2 in total. Eq. 6 prints X in place of X - G, which would
    not have the norm that the sentence before it promises.

    Args:
      bound: S > 0, the largest norm of an update that looks normal.

    Raises:
      ValueError: if S is not positive and finite.
      TypeError: if it is no number.
    """
    checks.positive("norm_bounded", bound=bound)

    def divide(key: Key, difference: Array, attackers: Array) -> Array:
        return jnp.where(attackers[:, None], bound * direction_and_length(difference)[0], 0)

    return divide


@same_for_equal_arguments
def orthogonal_parts(gamma: float | Array) -> Division:
    """The attackers' updates add up to gamma (X - G) and are orthogonal to each other (section VI-A).

    They share out the parameters at random, so that both hold exactly: each of z attackers sends those
    of about d / z parameters and zeros. It evades rules that look for similar updates.

    Args:
      gamma: scaling factor > 0.

    Raises:
      ValueError: if gamma is not positive and finite.
      TypeError: if it is no number.
    """
    checks.positive("orthogonal_parts", gamma=gamma)

    def divide(key: Key, difference: Array, attackers: Array) -> Array:
        number = jnp.maximum(jnp.sum(attackers), 1)
        owner = jax.random.randint(key, difference.shape, 0, number)
        place = jnp.cumsum(attackers) - 1  # 0, 1, ... on attackers
        own = attackers[:, None] & (owner == place[:, None])
        return jnp.where(own, gamma * difference, 0)

    return divide


@same_for_equal_arguments
def copies(gamma: float | Array = 1.0) -> Division:
    """Every attacker submits gamma (X - G).

    Unscaled, this is the attack on Krum (section VI-B): a backdoored model close to the global one,
    "for every participant it controls"; they are each other's nearest neighbours.

    Args:
      gamma: scaling factor > 0.

    Raises:
      ValueError: if gamma is not positive and finite.
      TypeError: if it is no number.
    """
    checks.positive("copies", gamma=gamma)

    def divide(key: Key, difference: Array, attackers: Array) -> Array:
        return jnp.where(attackers[:, None], gamma * difference, 0)

    return divide
