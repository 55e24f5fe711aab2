"""All subsets of n - f rows, one chunk after the other: the one of lowest cost."""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from fedjax_robust.types import Array

MOST_SUBSETS = 200_000
_NUMBERS_AT_A_TIME = 2**18  # of the (n, n) matrices of a chunk of subsets


def check_number_of_subsets(what: str, n: int, f: int) -> None:
    """ValueError unless n > 2f and C(n, f) is at most ``MOST_SUBSETS``."""
    if n <= 2 * f:
        raise ValueError(f"{what} needs n > 2f, got n={n}, f={f}")
    number = math.comb(n, f)
    if number > MOST_SUBSETS:
        raise ValueError(
            f"{what} needs at most {MOST_SUBSETS} subsets of n - f rows, got C({n}, {f}) = {number}; "
            "use a rule that does not try them all, such as multi_krum or dnc"
        )


def lowest_subset(cost: Callable[[Array], Array], present: Array, f: int) -> Array:
    """The rows of the subset of lowest cost among those without f of the present rows.

    Subsets come in lexicographic order of the rows they keep; of equal costs the first one wins. With f
    present rows or fewer there is no subset, and no row is kept.

    Args:
      cost: which rows a subset keeps, (n,) bool and absent rows False -> its cost, ().
      present: (n,) bool.
      f: static, 0 <= f < n.

    Returns:
      (n,) bool.
    """
    n = present.shape[0]
    left_out = _left_out(n, f)
    chunk = min(len(left_out), max(1, _NUMBERS_AT_A_TIME // n**2))
    padding = -len(left_out) % chunk
    # The last one again and again: it is never better than itself.
    left_out = np.concatenate([left_out, np.repeat(left_out[-1:], padding, axis=0)])

    def costs(rows: Array) -> Array:
        valid = jnp.all(present[rows], axis=1) & (jnp.sum(present) > f)
        return jnp.where(valid, jax.vmap(lambda r: cost(_kept(r, present)))(rows), jnp.inf)

    Best = tuple[Array, Array]

    def better(best: Best, rows: Array) -> tuple[Best, None]:
        rows = rows.astype(jnp.int32)
        values = costs(rows)
        first = jnp.argmin(values)
        wins = values[first] < best[0]
        return (
            jnp.where(wins, values[first], best[0]),
            jnp.where(wins, _kept(rows[first], present), best[1]),
        ), None

    kind = jax.eval_shape(cost, present).dtype
    start = (jnp.asarray(jnp.inf, kind), jnp.zeros(n, bool))
    chunks = jnp.asarray(left_out.reshape(len(left_out) // chunk, chunk, f))
    return jax.lax.scan(better, start, chunks)[0][1]


def _kept(left_out: Array, present: Array) -> Array:
    """(f,) rows -> (n,) bool, the other present ones."""
    return present & jnp.all(jnp.arange(present.shape[0])[:, None] != left_out[None, :], axis=1)


@functools.lru_cache(8)
def _left_out(n: int, f: int) -> np.ndarray:
    """(C, f): the complements, the first of which belongs to the first subset of n - f rows."""
    small = np.uint8 if n <= 2**8 else np.uint16 if n <= 2**16 else np.int32
    subsets = itertools.combinations(range(n), f)
    number = math.comb(n, f)
    flat = np.fromiter(itertools.chain.from_iterable(subsets), small, number * f)
    return flat.reshape(number, f)[::-1].copy()
