"""CAF, the covariance-bound agnostic filter: rows lose weight by how far they lie along one direction.

Allouah, Guerraoui, Stephan, "Towards Trustworthy Federated Learning with Untrusted Participants", ICML
2025 (https://arxiv.org/abs/2505.01874), as the documentation and code of ByzFL, by its authors, have it.
"""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp

from fedjax_robust import checks
from fedjax_robust.aggregators.base import weighing
from fedjax_robust.aggregators.krum import plain_integer
from fedjax_robust.kernels.spectra import along_top, in_one_unit, products_from_median
from fedjax_robust.memo import same_for_equal_arguments
from fedjax_robust.types import Aggregator, Array, Info, Received


@same_for_equal_arguments
def caf(f: int | Array, *, steps: int = 100, over_removed: bool = True) -> Aggregator:
    """CAF: weights c_i = 1 shrink along the top eigenvector until they sum to n - 2f; the result is the
    weighted mean on the way whose top eigenvalue is smallest.

    While sum c > n - 2f: mu and Sigma are the mean and covariance with weights c, (lambda, v) the top
    eigenpair of Sigma, t_i = ((u_i - mu) . v)^2, and c_i becomes c_i (1 - t_i / max t). Where lambda is
    0, all rows that still count are equal, and it ends, too.

    In the published code the maximum is over all rows, also those whose weight is 0 since long: one far
    away then slows the filter down, and two attackers, one much further away than the other, stop it
    before the second is removed. ``over_removed=False`` is the textbook filter, whose maximum is over
    rows of positive weight: each step removes one, so that it ends after at most 2f.

    The published code finds v by one step of the power method from a random start; here it is exact.
    With f = 0 all weights stay 1. n is the number of present rows.

    Reports ``trust`` (n,), the weights c, ``selected`` (n,) bool where they are positive, and ``ended``
    () bool, whether the sum of the weights reached n - 2f within the steps.

    Costs a median, a Gram matrix and an eigendecomposition of an (n, n) matrix in each step.

    Args:
      f: number of malicious rows assumed, 0 <= f < n / 2. It may be traced, and is not checked then.
      steps: most steps, at least 1.
      over_removed: whether max t is over rows of weight 0, too.

    Raises:
      ValueError: if f < 0 or steps < 1; when called, if n <= 2f.
      TypeError: if they are no integers, or over_removed no boolean.

    >>> rows = jnp.array([[1.0], [1.0], [1.0], [9.0]])
    >>> caf(f=1)(rows).tolist()
    [1.0]
    """
    checks.count("caf", f=f)
    checks.static_count("caf", 1, steps=steps)
    checks.boolean("caf", over_removed=over_removed)
    f = plain_integer(f)

    def weigh(received: Received) -> tuple[Array, Info]:
        present = received.weights > 0
        n = len(present)
        if checks.is_known(f) and n <= 2 * f:
            raise ValueError(f"caf needs n > 2f, got n={n}, f={f}")
        products, size = products_from_median(received.updates, present)
        weights, ended = _weights(products, size, present, f, int(steps), bool(over_removed))
        return weights, {"ended": ended}

    return weighing(weigh)


@partial(jax.jit, static_argnums=(4, 5))  # or every call outside of jit would compile its loop
def _weights(
    products: Array, size: Array, present: Array, f: int | Array, steps: int, over_removed: bool
) -> tuple[Array, Array]:
    """(n,) the weights c of the mean that is returned, and () whether their sum fell far enough."""
    enough = jnp.maximum(jnp.sum(present) - 2 * f, 0).astype(products.dtype)

    Carry = tuple[Array, Array, Array, Array]

    def filtered(carry: Carry) -> Carry:
        c, best, least, _ = carry
        unit = jnp.max(jnp.where(c > 0, size, 0))
        shares = c / jnp.sum(c)
        variance, place = along_top(in_one_unit(products, size, unit), shares)
        place = place - jnp.dot(shares, place, precision="highest")
        t = jnp.square(place)
        counted = present if over_removed else c > 0
        furthest = jnp.max(jnp.where(counted, t, 0))
        spread = jax.lax.stop_gradient(unit * jnp.sqrt(variance))  # the variance may overflow
        best, least = jnp.where(spread < least, c, best), jnp.minimum(spread, least)
        # The furthest row's weight is 0, whatever a quotient is rounded to.
        left = jnp.where(t < furthest, 1 - t / jnp.where(furthest > 0, furthest, 1), 0)
        c = jnp.where(furthest > 0, c * jnp.maximum(left, 0), c)
        return c, best, least, (furthest > 0) & (jnp.sum(c) > enough)

    def step(carry: Carry, _: None) -> tuple[Carry, None]:
        return jax.lax.cond(carry[3], filtered, lambda same: same, carry), None

    c = present.astype(products.dtype)
    start = (c, c, jnp.asarray(jnp.inf, c.dtype), jnp.sum(c) > enough)
    (_, best, _, going), _ = jax.lax.scan(step, start, length=steps)
    return best, ~going
