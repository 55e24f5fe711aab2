"""Sorting over the clients: by a network of comparators on CPU, by XLA's sort of integers elsewhere.

XLA sorts the leading axis of a matrix slowly on CPU. A sorting network applies a fixed list of
comparators (i, j), each of which puts the smaller value in row i and the larger in row j, to all
columns at once. This one is Batcher's merge exchange (Knuth, The Art of Computer Programming, volume
3, 5.2.2, algorithm M), which serves every n. ``experiments/bench/kernels.py`` measures it.

XLA's sort of floats knows NaN and signed zeros, and a stable one carries the rows' numbers along: on a
TPU both together take six times as long as an unstable sort of integers that are ordered as the floats
are. Derivatives are moved along by sorting, too: the transpose of a gather is a scatter, which a TPU does
by sorting all n d entries in one go.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.custom_batching import sequential_vmap
from jax.experimental.custom_partitioning import custom_partitioning
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir
from jax.sharding import NamedSharding, PartitionSpec

from fedjax_robust.types import Array


def _compiled_by_itself(*static: int) -> Callable[[Callable[..., Array]], Callable[..., Array]]:
    """Outside of a program ``jax.jit``, or every call would compile its loops. Inside it is part of the
    program: a function that is called twice gets its arguments whole on every TPU of a mesh, if d is no
    multiple of their number."""
    return partial(jax.jit, static_argnums=static, inline=True)


def sort_clients(x: Array, low: int = 0, high: int | None = None) -> Array:
    """Ranks low .. high - 1 of every column: ``jnp.sort(x, axis=0)[low:high]``, faster on CPU.

    It can be differentiated any number of times, in forward and reverse mode: a value's derivative
    belongs to the row that it came from (among equal values, lower rows rank first).

    Args:
      x: (n, d) floats without NaN, n >= 1; +-inf sort as numbers.
      low: the first rank, 0 <= low < high.
      high: one after the last rank, <= n; None = n.

    Returns:
      (high - low, d), ascending along the first axis.

    Raises:
      ValueError: x is not a matrix of floats, or not 0 <= low < high <= n.
    """
    x = jnp.asarray(x)
    if x.ndim != 2 or not jnp.issubdtype(x.dtype, jnp.floating):
        raise ValueError(
            f"sort_clients needs a matrix (n, d) of floats, got shape {x.shape} of {x.dtype}: "
            "reshape it or convert it to float"
        )
    high = x.shape[0] if high is None else high
    if not 0 <= low < high <= x.shape[0]:
        raise ValueError(
            f"sort_clients needs 0 <= low < high <= n, got low={low}, high={high}, "
            f"n={x.shape[0]}: ask for at least one rank that exists"
        )
    return _sort(x, low, high)


def combine_ranks(x: Array, coefficients: Array, low: int, instead: Array) -> Array:
    """A linear combination of each column's ranks: sum_r coefficients[r] * (rank low + r).

    As ``coefficients @ sort_clients(x, ...)``, but the sorted matrix never exists: on CPU XLA takes
    longer to sum its columns than the network takes to sort them.

    It can be differentiated any number of times with respect to x; the other arguments count as
    constants.

    Args:
      x: (n, d) floats, n >= 1, without NaN in rows that count.
      coefficients: (k,) of ranks low .. low + k - 1; a rank with coefficient 0 may be infinite.
      low: the first rank, 0 <= low < low + k <= n.
      instead: (n,) values that take the place of whole rows (+-inf), 0 = the row counts as it is.

    Returns:
      (d,).

    Raises:
      ValueError: for other shapes, or ranks that do not exist.
    """
    x, coefficients, instead = (jnp.asarray(a) for a in (x, coefficients, instead))
    if x.ndim != 2 or not jnp.issubdtype(x.dtype, jnp.floating):
        raise ValueError(
            f"combine_ranks needs a matrix (n, d) of floats, got shape {x.shape} of {x.dtype}: "
            "reshape it or convert it to float"
        )
    n = x.shape[0]
    if coefficients.ndim != 1 or instead.shape != (n,):
        raise ValueError(
            f"combine_ranks needs coefficients (k,) and instead (n,) = ({n},), got shapes "
            f"{coefficients.shape} and {instead.shape}"
        )
    if not 0 <= low < low + len(coefficients) <= n:
        raise ValueError(
            f"combine_ranks needs 0 <= low < low + k <= n, got low={low}, k={len(coefficients)}, n={n}"
        )
    fixed = (lax.stop_gradient(a.astype(x.dtype)) for a in (coefficients, instead))
    return _combine(x, *fixed, low)


def _fill(x: Array, instead: Array) -> Array:
    return jnp.where(instead[:, None] == 0, x, instead[:, None])


def _combination(coefficients: Array, values: Array) -> Array:
    weighted = jnp.where(coefficients[:, None] == 0, 0, coefficients[:, None] * values)
    return jnp.sum(weighted, axis=0)


@partial(jax.custom_jvp, nondiff_argnums=(3,))
@_compiled_by_itself(3)
def _combine(x: Array, coefficients: Array, instead: Array, low: int) -> Array:
    high = low + coefficients.shape[0]

    def by_network(x: Array, coefficients: Array, instead: Array) -> Array:
        if x.shape[1] == 0:
            return x[0]
        tables = map(jnp.asarray, _tables(x.shape[0], low, high))
        return _combine_own_columns(low, high, *tables, coefficients, instead, x)

    return lax.platform_dependent(
        x,
        coefficients,
        instead,
        cpu=sequential_vmap(by_network),
        default=lambda x, coefficients, instead: _combination(
            coefficients, sorted_elsewhere(_fill(x, instead))[low:high]
        ),
    )


@_combine.defjvp
def _combine_jvp(
    low: int, primals: tuple[Array, Array, Array], tangents: tuple[Array, Array, Array]
) -> tuple[Array, Array]:
    # Away from ties the combination is linear: each entry counts with the coefficient of its rank. A
    # product and no gather, as the transpose of a gather would bring all columns to each device.
    x, coefficients, instead = primals
    filled, moved = _fill(x, instead), jnp.where(instead[:, None] == 0, tangents[0], 0)
    of_rank = jnp.pad(coefficients, (low, x.shape[0] - low - coefficients.shape[0]))
    shares = _shares(lax.stop_gradient(filled), of_rank)
    return _weighed(shares, filled), _weighed(shares, moved)


def _weighed(shares: Array, values: Array) -> Array:
    return jnp.sum(jnp.where(shares == 0, 0, shares * values), axis=0)


@_compiled_by_itself()
def _shares(x: Array, of_rank: Array) -> Array:
    """x (n, d), of_rank (n,) -> (n, d), for each entry of_rank at its rank in its column."""
    n = x.shape[0]

    def by_network(x: Array, of_rank: Array) -> Array:
        if x.shape[1] == 0:
            return x
        return _share_own_columns(0, n, *map(jnp.asarray, _tables(n, 0, n)), of_rank, x)

    return lax.platform_dependent(
        x, of_rank, cpu=sequential_vmap(by_network), default=shares_elsewhere
    )


@partial(jax.custom_jvp, nondiff_argnums=(1, 2))
def _sort(x: Array, low: int, high: int) -> Array:
    return _ranks(x, low, high)


@_compiled_by_itself(1, 2)
def _ranks(x: Array, low: int, high: int) -> Array:
    return lax.platform_dependent(
        x,
        # One matrix after the other under vmap: their tiles together would not fit the cache.
        cpu=sequential_vmap(lambda x: _sort_by_network((x,), low, high)[0]),
        default=lambda x: sorted_elsewhere(x)[low:high],
    )


@_sort.defjvp
def _sort_jvp(
    low: int, high: int, primals: tuple[Array], tangents: tuple[Array]
) -> tuple[Array, Array]:
    (x,), (t,) = primals, tangents
    order = _order(lax.stop_gradient(x), low, high)
    return _moved(order, x, low, high, own=True), _moved(order, t, low, high)


@_compiled_by_itself(1, 2)
def _order(x: Array, low: int, high: int) -> Array:
    """``jnp.argsort(x, axis=0, stable=True)``; rows but low .. high - 1 are undefined."""

    def by_network(x: Array) -> Array:
        order = _sort_by_network((x, _row_numbers(x)), low, high)[1]
        return jnp.pad(order, ((low, x.shape[0] - high), (0, 0)))

    return lax.platform_dependent(x, cpu=sequential_vmap(by_network), default=order_elsewhere)


def _row_numbers(x: Array) -> Array:
    return jnp.broadcast_to(jnp.arange(x.shape[0], dtype=jnp.int32)[:, None], x.shape)


# --- Elsewhere than on a CPU ------------------------------------------------------------------------


def sorted_elsewhere(x: Array) -> Array:
    """``jnp.sort(x, axis=0)`` for (n, d) floats without NaN; -0 before +0."""
    return _floats(lax.sort(_integers(x), dimension=0, is_stable=False), x.dtype)


def order_elsewhere(x: Array) -> Array:
    """``jnp.argsort(x, axis=0, stable=True)`` for (n, d) floats without NaN, int32."""
    key = _integers(jnp.where(x == 0, 0, x))  # two zeros are equal
    rows = _row_numbers(x)
    return lax.sort((key, rows), dimension=0, is_stable=False, num_keys=2)[1]


def by_key_elsewhere(key: Array, x: Array) -> Array:
    """Each column of x sorted by that of ``key``, both (n, d), whose keys differ."""
    return lax.sort((key, x), dimension=0, is_stable=False, num_keys=1)[1]


def shares_elsewhere(x: Array, of_rank: Array) -> Array:
    """``_shares``: the coefficients travel back to their rows."""
    return by_key_elsewhere(order_elsewhere(x), jnp.broadcast_to(of_rank[:, None], x.shape))


def _integers(x: Array) -> Array:
    """int32 in the order of the floats, but floats for float64, which a TPU cannot read as integers."""
    if x.dtype.itemsize > 4:
        return x
    bits = lax.bitcast_convert_type(x.astype(jnp.float32), jnp.int32)
    return _flipped(bits)


def _floats(x: Array, dtype: Any) -> Array:
    if not jnp.issubdtype(x.dtype, jnp.integer):
        return x
    return lax.bitcast_convert_type(_flipped(x), jnp.float32).astype(dtype)


def _flipped(bits: Array) -> Array:
    """Its own inverse: of negative numbers, the larger bits mean the smaller number."""
    return bits ^ ((bits >> 31) & 0x7FFFFFFF)


# --- Moving derivatives along -----------------------------------------------------------------------

# Which rows' entries (..., n, d) come to ranks low .. high - 1 by an order (..., n, d), and back: each is
# the other's transpose. To JAX's differentiation it is one operation, which every platform does in its
# way: a gather and a scatter on CPU, by sorting elsewhere.
_moved_p = Primitive("moved_to_ranks")


def _moved(
    order: Array, x: Array, low: int, high: int, own: bool = False, back: bool = False
) -> Array:
    """``own``: the order is that of x, which then need not be known to sort it."""
    moved: Array = _moved_p.bind(order, x, low=low, high=high, own=own, back=back)
    return moved


def _move(order: Array, x: Array, *, low: int, high: int, own: bool, back: bool) -> Array:
    if order.ndim > 2:
        how = partial(_move, low=low, high=high, own=own, back=back)
        return jax.vmap(how)(order, x)
    n = order.shape[0]

    def gather(order: Array, x: Array) -> Array:
        return jnp.take_along_axis(x, order[low:high], axis=0)

    def scatter(order: Array, x: Array) -> Array:
        rows = jax.ShapeDtypeStruct(order.shape, x.dtype)
        return jax.linear_transpose(partial(gather, order), rows)(x)[0]

    def to_ranks(order: Array, x: Array) -> Array:
        if own:
            return sorted_elsewhere(x)[low:high]
        place = by_key_elsewhere(order, _row_numbers(order))  # the rank of each row
        return by_key_elsewhere(place, x)[low:high]

    def to_rows(order: Array, x: Array) -> Array:
        return by_key_elsewhere(order, jnp.pad(x, ((low, n - high), (0, 0))))

    here, elsewhere = (scatter, to_rows) if back else (gather, to_ranks)
    return lax.platform_dependent(order, x, cpu=here, default=elsewhere)


def _moved_shape(order: Any, x: Any, *, low: int, high: int, own: bool, back: bool) -> Any:
    rows = order.shape[-2] if back else high - low
    return x.update(shape=(*x.shape[:-2], rows, x.shape[-1]))


def _moved_jvp(
    primals: Any, tangents: Any, *, low: int, high: int, own: bool, back: bool
) -> tuple[Array, Any]:
    (order, x), (_, t) = primals, tangents
    result = _moved(order, x, low, high, own, back)
    if isinstance(t, ad.Zero):
        return result, ad.Zero(jax.typeof(result))
    return result, _moved(order, t, low, high, False, back)


def _moved_transpose(
    cotangent: Any, order: Array, x: Any, *, low: int, high: int, own: bool, back: bool
) -> tuple[None, Any]:
    if isinstance(cotangent, ad.Zero):
        return None, ad.Zero(x.aval)
    return None, _moved(order, cotangent, low, high, False, not back)


def _moved_batched(arrays: Sequence[Array], axes: Sequence[Any], **how: Any) -> tuple[Array, int]:
    size = next(a.shape[axis] for a, axis in zip(arrays, axes, strict=True) if axis is not None)
    order, x = (
        jnp.broadcast_to(a, (size, *a.shape)) if axis is None else jnp.moveaxis(a, axis, 0)
        for a, axis in zip(arrays, axes, strict=True)
    )
    return _moved(order, x, **how), 0


_moved_p.def_impl(jax.jit(_move, static_argnames=("low", "high", "own", "back")))
_moved_p.def_abstract_eval(_moved_shape)
ad.primitive_jvps[_moved_p] = _moved_jvp
ad.primitive_transposes[_moved_p] = _moved_transpose
batching.primitive_batchers[_moved_p] = _moved_batched
mlir.register_lowering(_moved_p, mlir.lower_fun(_move, multiple_results=False))


Columns = tuple[Array, ...]
"""One or two (n, d): values to sort by, and what travels with them and decides between equal values."""


def _sort_by_network(x: Columns, low: int, high: int) -> Columns:
    n, d = x[0].shape
    if d == 0:
        return tuple(a[low:high] for a in x)
    partner, lower = map(jnp.asarray, _tables(n, low, high))
    return _sort_own_columns(low, high, partner, lower, *x)


@partial(custom_partitioning, static_argnums=(0, 1))
def _sort_own_columns(low: int, high: int, partner: Array, lower: Array, *x: Array) -> Columns:
    """The network over the columns that this device has: XLA would gather them for the tiles' loop."""

    def sort_tile(*columns: Array) -> Columns:
        return tuple(a[low:high] for a in _apply_network(columns, partner, lower))

    return _by_tiles(sort_tile, x, tuple(jnp.zeros_like(a[low:high]) for a in x), len(x))


@partial(custom_partitioning, static_argnums=(0, 1))
def _combine_own_columns(
    low: int,
    high: int,
    partner: Array,
    lower: Array,
    coefficients: Array,
    instead: Array,
    x: Array,
) -> Array:
    def combine_tile(columns: Array) -> Columns:
        (ranks,) = _apply_network((_fill(columns, instead),), partner, lower)
        return (_combination(coefficients, ranks[low:high])[None],)

    return _by_tiles(combine_tile, (x,), (jnp.zeros_like(x[:1]),))[0][0]


@partial(custom_partitioning, static_argnums=(0, 1))
def _share_own_columns(
    low: int, high: int, partner: Array, lower: Array, of_rank: Array, x: Array
) -> Array:
    n = x.shape[0]
    rank = jnp.arange(n, dtype=jnp.int32)[:, None]
    bits = max(n - 1, 1).bit_length()
    if 2 * bits > 31:
        raise ValueError(f"the derivative of sorted rows needs at most 32768 rows, got {n}")

    def share_tile(columns: Array) -> Columns:
        rows = jnp.broadcast_to(rank, columns.shape)
        _, order = _apply_network((columns, rows), partner, lower)
        # The network once more, back to the order of the rows: XLA's scatter takes longer.
        (back,) = _apply_network((order << bits | rank,), partner, lower)
        return (jnp.take(of_rank, back & (1 << bits) - 1, mode="clip"),)

    return _by_tiles(share_tile, (x,), (jnp.zeros_like(x),), arrays=2)[0]


def _by_tiles(
    function: Callable[..., Columns], x: Columns, out: Columns, arrays: int = 1
) -> Columns:
    """``function`` of some columns of x (n, d) at a time, written to the columns of out (k, d);
    ``arrays`` of them go through the network together."""
    n, d = x[0].shape
    # Two copies of a tile of columns stay in the second-level cache. A whole number of vectors: an odd
    # width (327 for n = 100) took 2.5 times as long.
    tile = min(d, max(64, 2**15 // n // arrays // 64 * 64))

    def one(k: Array, out: Columns) -> Columns:
        # If the tile does not divide d, the last one overlaps its neighbour.
        start = jnp.minimum(k * tile, d - tile)
        columns = (lax.dynamic_slice_in_dim(a, start, tile, axis=1) for a in x)
        return tuple(
            lax.dynamic_update_slice_in_dim(o, r, start, axis=1)
            for o, r in zip(out, function(*columns), strict=True)
        )

    return lax.fori_loop(0, -(-d // tile), one, out)


def _split_parameters(
    low: int, high: int, mesh: Any, arguments: Any, results: Any, own_columns: Any
) -> Any:
    """How ``custom_partitioning`` shares the work: matrices split by columns, all else everywhere."""
    columns = arguments[-1].sharding.spec[1:]

    def layout(array: Any) -> NamedSharding:
        spec = [None] * (len(array.shape) - 1) + list(columns)
        return NamedSharding(mesh, PartitionSpec(*spec))

    whole = NamedSharding(mesh, PartitionSpec())
    tables = {_combine_own_columns: 4, _share_own_columns: 3}.get(own_columns, 2)
    inputs = (whole,) * tables + tuple(layout(array) for array in arguments[tables:])
    outputs = jax.tree.map(layout, results)
    return mesh, partial(own_columns.fun, low, high), outputs, inputs


def _sort_rule(low: int, high: int, mesh: Any, arguments: Any, results: Any) -> str:
    matrices = len(results)
    inputs = ["pairs two n", "pairs two n"] + ["n d"] * matrices
    return ", ".join(inputs) + " -> " + ", ".join(["ranks d"] * matrices)


_sort_own_columns.def_partition(
    partial(_split_parameters, own_columns=_sort_own_columns), sharding_rule=_sort_rule
)
_combine_own_columns.def_partition(
    partial(_split_parameters, own_columns=_combine_own_columns),
    sharding_rule="pairs two n, pairs two n, ranks, n, n d -> d",
)
_share_own_columns.def_partition(
    partial(_split_parameters, own_columns=_share_own_columns),
    sharding_rule="pairs two n, pairs two n, n, n d -> n d",
)


def _apply_network(x: Columns, partner: Array, lower: Array) -> Columns:
    """x (n, tile) through the comparators that partner and lower, both (pairs, 2, n), describe."""
    n = x[0].shape[0]

    def layer(x: Columns, y: Columns, partner: Array, lower: Array) -> Columns:
        own, other = [a[:n] for a in x], [a[partner] for a in x]
        less = own[0] < other[0]
        if len(x) == 2:
            less |= (own[0] == other[0]) & (own[1] < other[1])
        keep = less == lower[:, None]  # a row without a comparator is its own partner
        return tuple(
            lax.dynamic_update_slice_in_dim(c, jnp.where(keep, a, b), 0, axis=0)
            for a, b, c in zip(own, other, y, strict=True)
        )

    def two_layers(
        buffers: tuple[Columns, Columns], tables: tuple[Array, Array]
    ) -> tuple[tuple[Columns, Columns], None]:
        (x, y), (partner, lower) = buffers, tables
        y = layer(x, y, partner[0], lower[0])
        x = layer(y, x, partner[1], lower[1])
        return (x, y), None

    # Two buffers that overwrite each other in turn need no copies. The spare row makes the update
    # partial: XLA would see through a full one and fuse the two layers, doing the first one twice.
    x = tuple(jnp.pad(a, ((0, 1), (0, 0))) for a in x)
    start = (x, tuple(map(jnp.zeros_like, x)))
    (x, _), _ = lax.scan(two_layers, start, (partner, lower), unroll=2)
    return tuple(a[:n] for a in x)


def _tables(n: int, low: int, high: int) -> tuple[np.ndarray, np.ndarray]:
    """Each row's partner, and whether it takes the smaller value, in each layer of the network.

    Both are (pairs of layers, 2, n), the last pair filled up with a layer that does nothing.
    """
    layers = _comparators(n, low, high)
    pairs = (len(layers) + 1) // 2
    partner = np.tile(np.arange(n, dtype=np.int32), (2 * pairs, 1))
    lower = np.zeros((2 * pairs, n), bool)
    for k, layer in enumerate(layers):
        for i, j in layer:
            partner[k, i], partner[k, j], lower[k, i] = j, i, True
    return partner.reshape(pairs, 2, n), lower.reshape(pairs, 2, n)


def depth(n: int, low: int, high: int) -> int:
    """Layers of the network that ranks low .. high - 1 of n rows need."""
    return len(_comparators(n, low, high))


def _comparators(n: int, low: int, high: int) -> list[list[tuple[int, int]]]:
    """Layers of comparators (i, j), i < j: those that ranks low .. high - 1 of n rows depend on."""
    layers = []
    top = 1 << (n - 1).bit_length() >> 1  # the largest power of two below n
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
