"""Sorting over the clients by a network of minimum and maximum.

XLA sorts the leading axis of a matrix slowly on CPU. A sorting network applies a fixed list of
comparators (i, j), each of which puts the smaller value in row i and the larger in row j, to all columns
at once. This one is Batcher's merge exchange (Knuth, The Art of Computer Programming, volume 3, 5.2.2,
algorithm M), which serves every n. ``experiments/bench_kernels.py`` measures it.
"""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

Array = jax.Array

_TILE = 512
"""Columns sorted at a time on CPU: a tile of 100 rows stays in the second-level cache."""


def sort_clients(x: Array, low: int = 0, high: int | None = None) -> Array:
    """Ranks low .. high - 1 of every column: ``jnp.sort(x, axis=0)[low:high]``, but fast.

    Differentiable once, forward and reverse: the derivative goes to the row that holds the value (the
    first one among ties is ranked first).

    Args:
        x: (n, d) floats without NaN, n >= 1; +-inf sort as numbers.
        low: first rank, 0 <= low < high.
        high: the rank after the last one, <= n; None = n.

    Returns:
        (high - low, d), ascending along the first axis.

    Raises:
        ValueError: x is not a matrix of floats, or not 0 <= low < high <= n.
    """
    x = jnp.asarray(x)
    if x.ndim != 2 or not jnp.issubdtype(x.dtype, jnp.floating):
        raise ValueError(
            f"sort_clients needs a matrix (n, d) of floats, got shape {x.shape} of {x.dtype}: reshape it "
            "or convert it to float"
        )
    n = x.shape[0]
    high = n if high is None else high
    if not 0 <= low < high <= n:
        raise ValueError(
            f"sort_clients needs 0 <= low < high <= n, got low={low}, high={high}, n={n}: ask for at "
            "least one rank that exists"
        )
    return _sort(x, low, high)


@partial(jax.custom_jvp, nondiff_argnums=(1, 2))
def _sort(x: Array, low: int, high: int) -> Array:
    layers = [np.array(part) for part in zip(*_partners(x.shape[0], low, high), strict=True)]
    if not layers or x.shape[1] == 0:
        return x[low:high]
    tile = min(_TILE, x.shape[1])

    def sort_tile(k: Array, out: Array) -> Array:
        # The last tile overlaps its neighbour if the tile does not divide d.
        start = jnp.minimum(k * tile, x.shape[1] - tile)
        columns = lax.dynamic_slice_in_dim(x, start, tile, axis=1)
        return lax.dynamic_update_slice_in_dim(
            out, _network(columns, *layers)[low:high], start, axis=1
        )

    return lax.fori_loop(0, -(-x.shape[1] // tile), sort_tile, jnp.zeros_like(x[low:high]))


@_sort.defjvp
def _sort_jvp(
    low: int, high: int, primals: tuple[Array], tangents: tuple[Array]
) -> tuple[Array, Array]:
    (x,), (t,) = primals, tangents
    order = jnp.argsort(x, axis=0)[low:high]
    return jnp.take_along_axis(x, order, axis=0), jnp.take_along_axis(t, order, axis=0)


def _network(x: Array, partner: np.ndarray, lower: np.ndarray) -> Array:
    """x (n, tile) through the layers partner, lower (layers, n)."""

    def layer(x: Array, row: tuple[Array, Array]) -> tuple[Array, None]:
        partner, lower = row
        other = x[partner]
        # A row without a comparator is its own partner.
        return jnp.where((x < other) == lower[:, None], x, other), None

    return lax.scan(layer, x, (jnp.asarray(partner), jnp.asarray(lower)))[0]


def _partners(n: int, low: int, high: int) -> list[tuple[np.ndarray, np.ndarray]]:
    """Of every layer: each row's partner (n,), and whether it receives the smaller value (n,)."""
    layers = []
    for layer in _comparators(n, low, high):
        partner, lower = np.arange(n), np.zeros(n, bool)
        for i, j in layer:
            partner[i], partner[j], lower[i] = j, i, True
        layers.append((partner, lower))
    return layers


def _comparators(n: int, low: int, high: int) -> list[list[tuple[int, int]]]:
    """The layers of comparators (i, j), i < j, that ranks low .. high - 1 of n rows depend on."""
    layers = []
    top = 1 << max(n - 1, 0).bit_length() >> 1  # the largest power of two below n
    p = top
    while p > 0:
        q, r, distance = top, 0, p
        while True:
            layers.append([(i, i + distance) for i in range(n - distance) if i & p == r])
            if q == p:
                break
            distance, q, r = q - p, q >> 1, p
        p >>= 1

    needed, pruned = set(range(low, high)), []
    for layer in reversed(layers):
        kept = [(i, j) for i, j in layer if i in needed or j in needed]
        needed.update(*kept)
        if kept:
            pruned.append(kept)
    return pruned[::-1]
