"""Robust learning rate: coordinates on whose sign too few clients agree move the other way.

Ozdayi, Kantarcioglu, Gel, "Defending against Backdoors in Federated Learning with Robust Learning Rate",
AAAI 2021 (https://arxiv.org/abs/2007.03767), eq. 3 and Algorithm 1.
"""

from __future__ import annotations

import jax.numpy as jnp

from fedjax_robust import checks
from fedjax_robust.aggregators.base import MEAN, cleaned
from fedjax_robust.memo import same_for_equal_arguments
from fedjax_robust.types import Aggregator, Array, Info, Received, State


@same_for_equal_arguments
def rlr(threshold: float | Array, *, base: Aggregator = MEAN) -> Aggregator:
    """Another rule's aggregate, negated where |sum_i sign(u_i)| < theta.

    Each present row has one vote on each coordinate, whatever its weight; a zero abstains. It is a
    defence against backdoors: coordinates that only the attackers push go backwards. Votes have no
    gradient. Behind a rule that adds noise, the noise is added before the flip, as in the paper.

    Reports ``flipped`` (), the share of coordinates, besides what the rule reports.

    Args:
      threshold: theta >= 0, in votes. It should exceed f, or the attackers alone reach it where honest
        votes cancel, and be at most n - 2f, or they prevent a coordinate on which all others agree. The
        authors' code takes 4 of 10 with 1 malicious client, 8 of 40 with 4. It may be traced.
      base: the rule.

    Raises:
      ValueError: if theta is negative or not finite.
      TypeError: if it is no number, or base no rule.

    >>> rlr(2)(jnp.array([[1.0, 1.0], [3.0, -5.0]])).tolist()
    [2.0, 2.0]
    """
    checks.not_negative("rlr", threshold=threshold)
    checks.part("rlr", Aggregator, base=base)

    def aggregate(received: Received, state: State) -> tuple[Array, State, Info]:
        received = cleaned(received)  # absent rows are zero: they do not vote
        votes = jnp.sum(jnp.sign(received.updates).astype(jnp.int32), axis=0)
        agreed = jnp.abs(votes) >= threshold
        result, state, info = base.aggregate(received, state)
        flipped = {"flipped": jnp.mean(~agreed, dtype=jnp.float32)}
        return jnp.where(agreed, result, -result), state, flipped | info

    return Aggregator(base.init, aggregate)
