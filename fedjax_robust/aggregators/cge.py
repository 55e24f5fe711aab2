"""CGE, comparative gradient elimination: the longest rows are left out.

Gupta, Liu, Vaidya, "Byzantine Fault-Tolerant Distributed Machine Learning with Norm-Based Comparative
Gradient Elimination", DSN-W 2021 (https://arxiv.org/abs/2008.04699).
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from fedjax_robust import checks
from fedjax_robust.aggregators.aksel import nearest
from fedjax_robust.aggregators.base import MEAN, selecting
from fedjax_robust.aggregators.krum import plain_integer
from fedjax_robust.kernels.norms import safe_norm
from fedjax_robust.memo import same_for_equal_arguments
from fedjax_robust.types import Aggregator, Array, Info, Received


@same_for_equal_arguments
def cge(f: int | Array, *, base: Aggregator = MEAN) -> Aggregator:
    """The n - f shortest rows are averaged. Anything short passes.

    The paper, as we remember it, *sums* them: that is a server's step n - f times as long. n is the
    number of present rows; of equally long rows the first one is kept first.

    Reports ``selected`` (n,) bool.

    Args:
      f: number of malicious rows assumed, 0 <= f < n / 2. It may be traced, and is not checked then.
      base: the rule for the rows that stay.

    Raises:
      ValueError: if f < 0, or n <= 2f when called.
      TypeError: if f is no number, or base no rule.

    >>> cge(f=1)(jnp.array([[1.0], [-2.0], [4.0]])).tolist()
    [-0.5]
    """
    checks.count("cge", f=f)
    checks.part("cge", Aggregator, base=base)
    f = plain_integer(f)

    def select(received: Received) -> tuple[Array, Info]:
        updates, present = jax.lax.stop_gradient(received.updates), received.weights > 0
        n = updates.shape[0]
        if checks.is_known(f) and n <= 2 * f:
            raise ValueError(f"cge needs n > 2f, got n={n}, f={f}")
        return nearest(safe_norm(updates), present, jnp.sum(present) - f), {}

    return selecting(select, base)
