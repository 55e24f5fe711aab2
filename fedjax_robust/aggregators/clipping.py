"""Norm clipping: each update is multiplied by min(1, S / |L_i - G|_2), then another rule.

McMahan, Ramage, Talwar, Zhang, "Learning Differentially Private Recurrent Language Models", ICLR 2018
(https://arxiv.org/abs/1710.06963), as Bagdasaryan, Veit, Hua, Estrin, Shmatikov, "How To Backdoor
Federated Learning", AISTATS 2020 (https://arxiv.org/abs/1807.00459), section VI-C, use it as a defence.
"""

from __future__ import annotations

import jax.numpy as jnp

from fedjax_robust import checks
from fedjax_robust.aggregators.base import MEAN, wrapping
from fedjax_robust.kernels.norms import direction_and_length
from fedjax_robust.memo import same_for_equal_arguments
from fedjax_robust.types import Aggregator, Array, Info, Received


@same_for_equal_arguments
def norm_clipping(bound: float | Array, *, base: Aggregator = MEAN) -> Aggregator:
    """Every update is shortened to length S, if it is longer; then another rule.

    Reports ``clipped`` (n,) bool, the present rows that were longer, besides what the rule reports.

    Args:
      bound: S > 0, finite. It may be traced.
      base: the rule for the clipped updates.

    Raises:
      ValueError: if S is not positive and finite.
      TypeError: if it is no number, or base no rule.

    >>> norm_clipping(5.0)(jnp.array([[3.0, 4.0], [-30.0, 40.0]])).tolist()
    [0.0, 4.0]
    """
    checks.positive("norm_clipping", bound=bound)
    checks.part("norm_clipping", Aggregator, base=base)

    def change(received: Received) -> tuple[Received, Info]:
        clipped, longer = clip_rows(received.updates, bound)
        info = {"clipped": longer & (received.weights > 0)}
        return received._replace(updates=clipped), info

    return wrapping(change, base)


def clip_rows(updates: Array, bound: float | Array) -> tuple[Array, Array]:
    """Rows times min(1, S / length): (n, d) finite, S > 0 -> (n, d), and which were longer, (n,) bool.

    Rows whose largest entry is below 1e-31 count as zero, which no bound shortens.
    """
    unit, length = direction_and_length(updates)
    longer = length > bound
    shortened = (bound * unit).astype(updates.dtype)
    return jnp.where(longer[:, None], shortened, updates), longer
