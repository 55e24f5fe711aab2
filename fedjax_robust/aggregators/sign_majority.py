"""signSGD with majority vote: every coordinate moves by one step to the side that most clients want.

Bernstein, Zhao, Azizzadenesheli, Anandkumar, "signSGD with Majority Vote is Communication Efficient and
Fault Tolerant", ICLR 2019 (https://arxiv.org/abs/1810.05291), Algorithm 1.
"""

from __future__ import annotations

import jax.numpy as jnp

from fedjax_robust import checks
from fedjax_robust.aggregators.base import stateless
from fedjax_robust.memo import same_for_equal_arguments
from fedjax_robust.types import Aggregator, Array, Info, Received


@same_for_equal_arguments
def sign_majority(step: float | Array, *, weighted: bool = False) -> Aggregator:
    """step * sign(sum of the rows' signs). A zero has no vote, and a draw leaves the coordinate.

    Its gradient is zero everywhere.

    Args:
      step: how far a coordinate moves, > 0, in the units of the rows: part of the rule, as signs have
        no length.
      weighted: a vote counts by the row's weight.

    Raises:
      ValueError: if step is not positive and finite.
      TypeError: if it is no number, or weighted no boolean.

    >>> sign_majority(0.5)(jnp.array([[9.0, -1.0], [1.0, 2.0], [-3.0, 0.0]])).tolist()
    [0.5, 0.0]
    """
    checks.positive("sign_majority", step=step)
    checks.boolean("sign_majority", weighted=weighted)

    def rule(received: Received) -> tuple[Array, Info]:
        updates, weights = received.updates, received.weights
        votes = weights / jnp.maximum(jnp.max(weights), jnp.finfo(weights.dtype).tiny)
        votes = votes if weighted else (weights > 0).astype(weights.dtype)
        signs = jnp.sign(updates).astype(votes.dtype)
        result = step * jnp.sign(jnp.dot(votes, signs, precision="highest"))
        return result.astype(updates.dtype), {}

    return stateless(rule)
