"""Aksel: the rows nearest to the coordinate-wise median.

Boussetta, El Mhamdi, Guerraoui, Maurer, Rouault, "AKSEL: Fast Byzantine SGD", OPODIS 2020
(https://doi.org/10.4230/LIPIcs.OPODIS.2020.8).
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from fedjax_robust import checks
from fedjax_robust.aggregators.base import MEAN, selecting
from fedjax_robust.aggregators.krum import plain_integer
from fedjax_robust.kernels.norms import safe_norm
from fedjax_robust.kernels.ranks import coordinate_median
from fedjax_robust.memo import same_for_equal_arguments
from fedjax_robust.types import Aggregator, Array, Info, Received


@same_for_equal_arguments
def aksel(f: int | Array | None = None, *, base: Aggregator = MEAN) -> Aggregator:
    """Rows are ranked by their distance to the coordinate-wise median, and the nearest are averaged.

    Without f those are floor((n + 1) / 2), with f they are n - f. n is the number of present rows; of
    equally near rows the first one comes first. The median of an even number of rows is the mean of the
    middle two (the authors' code takes the lower).

    Reports ``selected`` (n,) bool.

    Args:
      f: number of malicious rows assumed, 0 <= f < n / 2; None keeps half. It may be traced, and is not
        checked then.
      base: the rule for the rows that stay.

    Raises:
      ValueError: if f < 0, or n <= 2f when called.
      TypeError: if f is no number, or base no rule.

    >>> aksel()(jnp.array([[1.0], [2.0], [3.0], [100.0]])).tolist()
    [2.5]
    """
    if f is not None:
        checks.count("aksel", f=f)
        f = plain_integer(f)
    checks.part("aksel", Aggregator, base=base)

    def select(received: Received) -> tuple[Array, Info]:
        updates, present = jax.lax.stop_gradient(received.updates), received.weights > 0
        n = updates.shape[0]
        if f is not None and checks.is_known(f) and n <= 2 * f:
            raise ValueError(f"aksel needs n > 2f, got n={n}, f={f}; None keeps half of the rows")
        number = jnp.sum(present)
        number = (number + 1) // 2 if f is None else number - f
        distance = safe_norm(updates - coordinate_median(updates, present))
        # Two rows are equally far from their mean, whatever that is rounded to: the first comes first.
        distance = jnp.where(jnp.sum(present) == 2, 0, distance)
        return nearest(distance, present, number), {}

    return selecting(select, base)


def nearest(distance: Array, present: Array, number: Array) -> Array:
    """The present rows of smallest distance, at least one; of equal ones the first: (n,) -> (n,) bool."""
    order = jnp.argsort(jnp.where(present, distance, jnp.inf), stable=True)
    place = jnp.argsort(order)
    return present & (place < jnp.maximum(number, 1))
