"""Adaptive robust clipping: the longest rows are shortened to the length of the next one.

Allouah, Guerraoui, Gupta, Jellouli, Rizk, Stephan, "Adaptive Gradient Clipping for Robust Federated
Learning", ICLR 2025 (https://arxiv.org/abs/2405.14432), Algorithm 2.
"""

from __future__ import annotations

import jax.numpy as jnp

from fedjax_robust import checks
from fedjax_robust.aggregators.base import MEAN, wrapping
from fedjax_robust.aggregators.clipping import clip_rows
from fedjax_robust.aggregators.krum import plain_integer
from fedjax_robust.kernels.norms import accumulator, safe_norm
from fedjax_robust.memo import same_for_equal_arguments
from fedjax_robust.types import Aggregator, Array, Info, Received


@same_for_equal_arguments
def arc(f: int | Array, *, base: Aggregator = MEAN) -> Aggregator:
    """The k = floor(2 f (n - f) / n) longest rows are shortened to the next length; then another rule.

    Unlike a fixed bound, the bound follows the rows' lengths, and robust rules stay robust behind it.
    With f = 0 it changes nothing. The bound has a gradient: that of the row it is the length of.
    Reports ``clipped`` (n,) bool, besides what the rule reports.

    Args:
      f: number of malicious rows assumed, 0 <= f < n / 2. It may be traced; a traced f is not checked.
      base: the rule for the clipped rows. The paper takes NNM and then the trimmed mean:
        ``arc(f, base=nnm(f, base=trimmed_mean(f)))``.

    Raises:
      ValueError: if f < 0, or n <= 2f when called.
      TypeError: if f is no number, or base no rule.

    >>> arc(f=1)(jnp.array([[3.0, 4.0], [-30.0, 40.0], [0.0, 1.0]])).tolist()
    [0.0, 3.0]
    """
    checks.count("arc", f=f)
    checks.part("arc", Aggregator, base=base)
    f = plain_integer(f)

    def change(received: Received) -> tuple[Received, Info]:
        n = received.updates.shape[0]
        if checks.is_known(f) and n <= 2 * f:
            raise ValueError(f"arc needs n > 2f, got n={n}, f={f}")
        updates, present = received.updates, received.weights > 0
        number = jnp.sum(present)
        longest = 2 * f * jnp.maximum(number - f, 0) // jnp.maximum(number, 1)
        exact = updates.astype(accumulator(updates.dtype))
        lengths = jnp.where(present, safe_norm(exact), -1)
        bound = jnp.take(jnp.sort(lengths)[::-1], longest, mode="clip")
        bound = jnp.minimum(bound, jnp.finfo(bound.dtype).max)
        clipped, longer = clip_rows(exact, bound)
        clipped = clipped.astype(updates.dtype)
        return received._replace(updates=clipped), {"clipped": longer & present}

    return wrapping(change, base)
