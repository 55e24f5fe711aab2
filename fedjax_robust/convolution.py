"""Any model's convolutions and poolings, written so that they stay fast under ``vmap`` on a CPU.

``vmap`` over clients with weights of their own turns a convolution into a grouped one, and the gradient
of a maximum over windows into a scatter. XLA runs both many times slower on a CPU than slices and matrix
products. ``fast_on_cpu`` traces a function and writes such operations anew, whatever library they come
from: the function's parameters, and its values up to the rounding of float32, stay what they are.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.extend.core import ClosedJaxpr, JaxprEqn, Literal

from fedjax_robust.types import Array

Sizes = tuple[int, ...]
Padding = tuple[tuple[int, int], ...]
Function = TypeVar("Function", bound=Callable[..., Any])


def fast_on_cpu(function: Function) -> Function:
    """The same function of arrays, with convolutions and maximum poolings that suit ``vmap`` on a CPU.

    Rewritten are two-dimensional convolutions of one group and undilated input with any strides, padding
    and dilation of the kernel, and maxima and sums over windows that are not dilated. Everything else is
    left to XLA. So is everything in a program for another platform, whichever it is traced on: a TPU or
    GPU has fast convolutions of many kernels.
    """

    @functools.wraps(function)
    def fast(*args: Any) -> Any:
        program, shapes = jax.make_jaxpr(function, return_shape=True)(*args)
        if not _to_rewrite(program.jaxpr):
            return function(*args)
        results = _run(program.jaxpr, program.consts, *jax.tree.leaves(args))
        return jax.tree.unflatten(jax.tree.structure(shapes), results)

    return fast  # type: ignore[return-value]


# --- The program, equation by equation -------------------------------------------------------------


def _run(jaxpr: Any, consts: Sequence[Any], *args: Any) -> list[Any]:
    """What the program gives, by the operations of this module where they apply."""
    values = dict(zip(jaxpr.constvars, consts, strict=True))
    values |= dict(zip(jaxpr.invars, args, strict=True))

    def read(atom: Any) -> Any:
        return atom.val if isinstance(atom, Literal) else values[atom]

    for equation in jaxpr.eqns:
        inputs = [read(atom) for atom in equation.invars]
        with equation.ctx.manager:
            results = _results(equation, inputs)
        values |= dict(zip(equation.outvars, results, strict=True))
    return [read(atom) for atom in jaxpr.outvars]


def _results(equation: JaxprEqn, inputs: list[Any]) -> list[Any]:
    primitive, params = equation.primitive, equation.params
    if _is_convolution(equation):
        return [_convolution(*inputs, **params)]
    if _is_pooling(equation):
        pool: Any = max_pool if primitive.name == "reduce_window_max" else sum_pool
        window, strides = params["window_dimensions"], params["window_strides"]
        return [pool(*inputs, window[1:3], strides[1:3], params["padding"])]
    inner = _inner(equation)
    if inner is not None and _to_rewrite(inner):
        consts = getattr(params["jaxpr"], "consts", ())
        function = functools.partial(_run, inner, consts)
        if primitive.name in _CALLS:
            return function(*inputs)
        if primitive.name in _CHECKPOINTS:
            kept = {"policy": params["policy"], "prevent_cse": params["prevent_cse"]}
            return jax.checkpoint(function, **kept)(*inputs)
        return _scan(function, inputs, params)
    bound = primitive.get_bind_params(params)  # older versions of JAX: functions, parameters
    functions, others = bound if isinstance(bound, tuple) else ((), bound)
    results = primitive.bind(*functions, *inputs, **others)
    return list(results) if primitive.multiple_results else [results]


_CALLS = {"jit", "pjit", "closed_call", "core_call"}
_CHECKPOINTS = {"checkpoint", "remat", "remat2"}


def _inner(equation: JaxprEqn) -> Any:
    """The program inside an equation, if it is of a kind that is looked into, else None."""
    if equation.primitive.name not in _CALLS | _CHECKPOINTS | {"scan"}:
        return None
    inner = equation.params.get("jaxpr")
    return inner.jaxpr if isinstance(inner, ClosedJaxpr) else inner


def _to_rewrite(jaxpr: Any) -> bool:
    for equation in jaxpr.eqns:
        if _is_convolution(equation) or _is_pooling(equation):
            return True
        inner = _inner(equation)
        if inner is not None and _to_rewrite(inner):
            return True
    return False


def _shapes(equation: JaxprEqn) -> list[Any]:
    return [atom.aval for atom in equation.invars]


def _shape_out(equation: JaxprEqn) -> tuple[int, ...]:
    result: Any = equation.outvars[0].aval
    return tuple(result.shape)


def _scan(
    function: Callable[..., list[Any]], inputs: list[Any], params: dict[str, Any]
) -> list[Any]:
    start, end = params["num_consts"], params["num_consts"] + params["num_carry"]

    def body(carry: list[Any], x: list[Any]) -> tuple[list[Any], list[Any]]:
        results = function(*inputs[:start], *carry, *x)
        return results[: end - start], results[end - start :]

    options = {name: params[name] for name in ("length", "reverse", "unroll")}
    carry, ys = lax.scan(body, inputs[start:end], inputs[end:], **options)
    return [*carry, *ys]


# --- Convolutions ----------------------------------------------------------------------------------


def _is_convolution(equation: JaxprEqn) -> bool:
    """Whether it is a convolution that ``convolve`` can do."""
    if equation.primitive.name != "conv_general_dilated":
        return False
    params = equation.params
    x, kernel = _shapes(equation)
    return (
        x.ndim == 4
        and x.dtype == kernel.dtype
        and jnp.issubdtype(x.dtype, jnp.floating)
        and params["feature_group_count"] == params["batch_group_count"] == 1
        and set(params["lhs_dilation"]) == {1}
        and min(itertools.chain(*params["padding"])) >= 0
        and 0 not in (*x.shape, *kernel.shape, *_shape_out(equation))
    )


def _convolution(
    x: Array,
    kernel: Array,
    *,
    window_strides: Sequence[int],
    padding: Sequence[tuple[int, int]],
    rhs_dilation: Sequence[int],
    dimension_numbers: lax.ConvDimensionNumbers,
    precision: Any,
    preferred_element_type: Any,
    **_: Any,
) -> Array:
    """``lax.conv_general_dilated`` by ``convolve``."""
    (batch, channel, *space), (out, into, *place) = dimension_numbers[:2]
    how = Convolution(
        tuple(window_strides),
        tuple((before, after) for before, after in padding),
        tuple(rhs_dilation),
        precision,
        preferred_element_type,
    )
    y = convolve(how, x.transpose(batch, *space, channel), kernel.transpose(*place, into, out))
    batch, channel, *space = dimension_numbers[2]
    order = (batch, *space, channel)  # where the axes (b, H', W', features) go
    return y.transpose(*(order.index(axis) for axis in range(4)))


class Convolution(NamedTuple):
    """How to convolve, as in ``lax.conv_general_dilated``."""

    strides: Sizes
    padding: Padding
    dilation: Sizes = (1, 1)
    precision: Any = None
    result: Any = None
    """dtype, None = that of the inputs"""

    def native(self, x: Array, kernel: Array, *bias: Array) -> Array:
        y = lax.conv_general_dilated(
            x,
            kernel,
            self.strides,
            self.padding,
            rhs_dilation=self.dilation,
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
            precision=self.precision,
            preferred_element_type=self.result,
        )
        return y + bias[0] if bias else y

    def patches(self, x: Array, kernel: Array, *bias: Array) -> Array:
        """The pixels under the kernel (b, H', W', h * w * C) times a matrix."""
        h, w, _, features = kernel.shape
        x = jnp.pad(x, ((0, 0), *self.padding, (0, 0)))
        pixels = windows(x, (h, w), self.strides, self.dilation)
        matrix = kernel.reshape(-1, features)
        if bias:
            # As the weight of a constant input, the bias stays out of what XLA fuses with the output,
            # where reading a client's own bias would slow down every loop over it.
            matrix = jnp.concatenate([matrix, bias[0][None]])
            pixels = [*pixels, jnp.ones_like(pixels[0][..., :1])]
        return lax.dot_general(
            jnp.concatenate(pixels, axis=-1),
            matrix,
            (((3,), (0,)), ((), ())),
            precision=self.precision,
            preferred_element_type=self.result,
        )


@functools.partial(jax.custom_jvp, nondiff_argnums=(0,))
def convolve(how: Convolution, x: Array, kernel: Array, *bias: Array) -> Array:
    """x (b, H, W, C), kernel (h, w, C, features), perhaps bias (features,) -> (b, H', W', features).

    Where neither gradients nor weights of several clients are asked for, as in an evaluation, XLA's
    convolution is the faster one, and needs no memory for patches.
    """

    @jax.custom_batching.custom_vmap
    def one(x: Array, *weights: Array) -> Array:
        return how.native(x, *weights)

    @one.def_vmap
    def several(size: int, batched: list[bool], x: Array, *weights: Array) -> tuple[Array, bool]:
        if any(batched[1:]):
            axes = tuple(0 if b else None for b in batched)
            return jax.vmap(how.patches, axes)(x, *weights), True
        y = one(x.reshape(-1, *x.shape[2:]), *weights)
        return y.reshape(size, -1, *y.shape[1:]), True

    return lax.platform_dependent(x, kernel, *bias, cpu=one, default=how.native)


@convolve.defjvp
def _convolve_jvp(
    how: Convolution, primals: tuple[Array, ...], tangents: tuple[Array, ...]
) -> tuple[Array, Array]:
    def convolved(*args: Array) -> Array:
        return lax.platform_dependent(*args, cpu=how.patches, default=how.native)

    return jax.jvp(convolved, primals, tangents)


def windows(
    x: Array,
    size: Sequence[int],
    strides: Sequence[int],
    dilation: Sequence[int] = (1, 1),
) -> list[Array]:
    """(b, H, W, C) -> for each place of a window, row by row, its pixels (b, H', W', C)."""
    (h, w), (down, right), (dh, dw) = size, strides, dilation
    height, width = x.shape[1] - (h - 1) * dh, x.shape[2] - (w - 1) * dw
    return [
        x[:, i : i + height : down, j : j + width : right]
        for i in range(0, h * dh, dh)
        for j in range(0, w * dw, dw)
    ]


# --- Pooling ---------------------------------------------------------------------------------------


def _is_pooling(equation: JaxprEqn) -> bool:
    """Whether it is a maximum or a sum over windows of pixels (b, H, W, C)."""
    if equation.primitive.name not in {"reduce_window_max", "reduce_window_sum"}:
        return False
    params = equation.params
    (x,) = _shapes(equation)
    sizes = ("window_dimensions", "window_strides")
    return (
        x.ndim == 4
        and jnp.issubdtype(x.dtype, jnp.floating)
        and all(params[name][0] == params[name][3] == 1 for name in sizes)
        and tuple(params["padding"][0]) == tuple(params["padding"][3]) == (0, 0)
        and min(itertools.chain(*params["padding"])) >= 0
        and set(params["base_dilation"]) == set(params["window_dilation"]) == {1}
        and 0 not in _shape_out(equation)
    )


def _native(kind: Any, x: Array, window: Sizes, strides: Sizes, padding: Padding) -> Array:
    start = -jnp.inf if kind is lax.max else 0.0
    sizes = (1, *window, 1), (1, *strides, 1)
    # A constant, or it would not be known as a maximum or sum, which have derivatives.
    result: Array = lax.reduce_window(x, np.asarray(start, x.dtype), kind, *sizes, padding)
    return result


@functools.partial(jax.custom_jvp, nondiff_argnums=(1, 2, 3))
def sum_pool(x: Array, window: Sizes, strides: Sizes, padding: Padding) -> Array:
    """Sums over windows, (b, H, W, C) -> (b, H', W', C), padded with zeros."""
    return _native(lax.add, x, window, strides, padding)


@sum_pool.defjvp
def _sum_pool_jvp(
    window: Sizes, strides: Sizes, padding: Padding, primals: tuple[Array], tangents: tuple[Array]
) -> tuple[Array, Array]:
    def by_slices(t: Array) -> Array:
        t = jnp.pad(t, padding)
        if tuple(window) == tuple(strides):
            return _tiles(t, window).sum((2, 4))
        return functools.reduce(jnp.add, windows(t, window, strides))

    def native(t: Array) -> Array:
        return _native(lax.add, t, window, strides, padding)

    moved = lax.platform_dependent(tangents[0], cpu=by_slices, default=native)
    return sum_pool(primals[0], window, strides, padding), moved


@functools.partial(jax.custom_jvp, nondiff_argnums=(1, 2, 3))
def max_pool(x: Array, window: Sizes, strides: Sizes, padding: Padding) -> Array:
    """Maxima over windows, (b, H, W, C) -> (b, H', W', C), padded with -inf.

    As that of ``lax.reduce_window``, the derivative is that of the first of equal maxima, row by row.
    """
    return _native(lax.max, x, window, strides, padding)


@max_pool.defjvp
def _max_pool_jvp(
    window: Sizes, strides: Sizes, padding: Padding, primals: tuple[Array], tangents: tuple[Array]
) -> tuple[Array, Array]:
    (x,), (t,) = primals, tangents

    def native(x: Array) -> Array:
        return _native(lax.max, x, window, strides, padding)

    def by_slices(x: Array) -> tuple[Array, Array]:
        """Maxima, and where the first one is."""
        x = jnp.pad(x, padding, constant_values=-jnp.inf)
        y, *others = windows(x, window, strides)
        first = jnp.zeros(y.shape, jnp.int32)
        for i, pixel in enumerate(others, 1):
            first = jnp.where(pixel > y, i, first)
            y = jnp.maximum(y, pixel)
        return y, first

    def nothing(x: Array) -> tuple[Array, Array]:
        y = native(x)
        return y, jnp.zeros(y.shape, jnp.int32)

    def moved_by_slices(x: Array, first: Array, t: Array) -> Array:
        t = jnp.pad(t, padding)
        if tuple(window) == tuple(strides):
            h, w = window
            place = jnp.arange(h)[:, None, None] * w + jnp.arange(w)[:, None]
            here = place[:, None] == first[:, :, None, :, None]  # (b, H', h, W', w, C)
            return jnp.where(here, _tiles(t, window), 0).sum((2, 4))
        moved = [jnp.where(first == i, s, 0) for i, s in enumerate(windows(t, window, strides))]
        return functools.reduce(jnp.add, moved)

    def moved_natively(x: Array, first: Array, t: Array) -> Array:
        return jax.jvp(native, (x,), (t,))[1]

    y, first = lax.platform_dependent(x, cpu=by_slices, default=nothing)
    return y, lax.platform_dependent(x, first, t, cpu=moved_by_slices, default=moved_natively)


def _tiles(x: Array, window: Sizes) -> Array:
    """(b, H, W, C) -> (b, H // h, h, W // w, w, C).

    Where windows do not overlap, one array of them is better than h * w slices, which the gradient
    would have to pad and add.
    """
    (h, w), (b, height, width, channels) = window, x.shape
    x = x[:, : height // h * h, : width // w * w]
    return x.reshape(b, height // h, h, width // w, w, channels)
