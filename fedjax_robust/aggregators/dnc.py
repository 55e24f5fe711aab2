"""DnC, divide and conquer: drops the rows that stand out along the direction of largest spread.

Shejwalkar, Houmansadr, "Manipulating the Byzantine: Optimizing Model Poisoning Attacks and Defenses for
Federated Learning", NDSS 2021 (https://doi.org/10.14722/ndss.2021.24498). Its authors never published
code of it; the constants below are from memory of the paper.
"""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp

from fedjax_robust import checks
from fedjax_robust.aggregators.base import MEAN, selecting
from fedjax_robust.aggregators.krum import plain_integer
from fedjax_robust.kernels.spectra import along_top, in_one_unit, products_from_median
from fedjax_robust.memo import same_for_equal_arguments
from fedjax_robust.types import Aggregator, Array, Info, Received


@same_for_equal_arguments
def dnc(
    f: int | Array,
    *,
    iterations: int = 1,
    coordinates: int | None = None,
    c: float | Array = 1.0,
    base: Aggregator = MEAN,
) -> Aggregator:
    """DnC: in each iteration the c f rows that lie furthest from the mean along the top singular vector
    of the centred rows are bad; who is never bad stays.

    1. So many times: draw coordinates, centre the rows on them; with v the first right singular vector
       the score of a row is ((u_i - mean) . v)^2; good are all but the floor(c f) rows of largest score.
    2. Rows that are good every time are selected. Nobody may be: then the aggregate is zero (our
       reading; others skip the round, or take the union).

    n, from which floor(c f) rows are taken, is the number of present rows; at least one row is good in
    each iteration. Scores are compared as exactly as the rows allow: one row far away makes the others'
    scores equal but for the last digits.

    The paper draws 1,000 to 10,000 coordinates 1 to 5 times, with c about 1, because it computes singular
    vectors of width b. Here they come from the n x n products, so that by default all coordinates are
    taken, once.

    Reports ``selected`` (n,) bool.

    Args:
      f: number of malicious rows assumed, 0 <= f < n / 2. It may be traced, and is not checked then.
      iterations: at least 1; more than 1 needs ``coordinates``, as all of them would be the same.
      coordinates: b, how many are drawn in each iteration, without replacement, 1 <= b <= d; None = all.
      c: > 0, how many rows are bad, in units of f.
      base: the rule for the rows that stay.

    Raises:
      ValueError: if f < 0, c is not positive, or iterations or coordinates are out of range; when
        called, if n <= 2f, floor(c f) >= n, or b > d.
      TypeError: if one of them is of the wrong kind, or base no rule.

    Along the direction of largest spread, about (-1, 1), the last row lies furthest from the mean:

    >>> dnc(f=1)(jnp.array([[1.0, 0.0], [2.0, 1.0], [0.0, 2.0], [-30.0, 40.0]])).tolist()
    [1.0, 1.0]
    """
    checks.count("dnc", f=f)
    checks.static_count("dnc", 1, iterations=iterations)
    if coordinates is not None:
        checks.static_count("dnc", 1, coordinates=coordinates)
    elif iterations > 1:
        raise ValueError(
            f"dnc needs coordinates, the number to draw, for more than one iteration, got "
            f"iterations={iterations} of all coordinates, which would all be the same"
        )
    checks.positive("dnc", c=c)
    checks.part("dnc", Aggregator, base=base)
    f = plain_integer(f)
    known = checks.is_known(f) and checks.is_known(c)
    bad = math.floor(float(c) * f + 1e-6) if known else jnp.floor(c * f + 1e-4).astype(jnp.int32)

    def select(received: Received) -> tuple[Array, Info]:
        updates, present = jax.lax.stop_gradient(received.updates), received.weights > 0
        n, d = updates.shape
        if checks.is_known(f) and n <= 2 * f:
            raise ValueError(f"dnc needs n > 2f, got n={n}, f={f}")
        if known and bad >= n:
            raise ValueError(f"dnc needs c f < n, got c={c}, f={f}, n={n}")
        if coordinates is not None and coordinates > d:
            raise ValueError(
                f"dnc needs coordinates <= d, got coordinates={coordinates}, d={d}; None takes all"
            )
        number = jnp.maximum(jnp.sum(present) - bad, 1)
        if coordinates is None:
            return _rank(updates, present) < number, {}

        def again(i: Array, good: Array) -> Array:
            drawn = jax.random.choice(
                jax.random.fold_in(received.key, i), d, (int(coordinates),), replace=False
            )
            return good & (_rank(updates[:, drawn], present) < number)

        return jax.lax.fori_loop(0, int(iterations), again, present), {}

    return selecting(select, base)


@jax.jit
def _rank(rows: Array, present: Array) -> Array:
    """Place of each row in the order of scores, the lowest first and absent rows last: (n, b) -> (n,)."""
    products, size = products_from_median(rows, present)
    shares = present / jnp.maximum(jnp.sum(present), 1).astype(products.dtype)
    products = in_one_unit(products, size, jnp.max(size))
    _, place = along_top(products, shares)
    mean = jnp.dot(shares, place, precision="highest")
    # Far from the mean, differences to it round to the same number: then the places themselves decide.
    distance = jnp.where(present, jnp.abs(place - mean), jnp.inf)
    outwards = jnp.where(place < mean, -place, place)
    # Two rows are equally far from their mean, whatever that is rounded to: the first one comes first.
    both = jnp.sum(present) == 2
    distance = jnp.where(both & present, 0, distance)
    outwards = jnp.where(both, 0, outwards)
    order = jnp.lexsort((outwards, distance))
    return jnp.argsort(order)
