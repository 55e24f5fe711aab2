"""Flax layers of the papers' models that Flax does not have, or not as fast under ``jax.vmap``.

A model of one's own may as well be written with Flax's layers: ``tasks.classification`` makes its
convolutions and poolings fast (``convolution``). ``experiments/bench/kernels.py`` measures them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax

from fedjax_robust import checks
from fedjax_robust.convolution import Convolution, convolve
from fedjax_robust.types import Array


class Conv(nn.Module):
    """Two-dimensional convolution, (b, H, W, C) -> (b, H', W', features), as ``flax.linen.Conv``.

    Arguments, parameters, ``kernel`` (h, w, C, features) and ``bias`` (features,), and values are
    Flax's. ``tasks.classification`` makes Flax's own layer as fast, but for adding the bias.

    Attributes:
      features: output channels, >= 1.
      kernel_size: (h, w), each >= 1.
      strides: steps down and to the right, or one number for both, >= 1.
      padding: "SAME" (H' = ceil(H / stride), an odd pixel of padding at the end), "VALID" (none), the
        pixels on each side, or ((top, bottom), (left, right)), >= 0. With an even H and a stride
        of 2, a 3x3 kernel starts at pixel -1 with padding=1, as MXNet and PyTorch have it, and at
        pixel 0 with "SAME".
      kernel_dilation: distance of the pixels under the kernel, down and to the right, or one number for
        both, >= 1; 1 = neighbours.
      use_bias: whether to add a bias.
      kernel_init: initializer of the kernel.
      bias_init: initializer of the bias.

    Raises:
      ValueError: an attribute is out of range, the input is not (b, H, W, C), or it is
        smaller than the kernel without padding.
      TypeError: an attribute is of another type.
    """

    features: int
    kernel_size: int | Sequence[int]
    strides: int | Sequence[int] | None = 1
    padding: str | int | Sequence[int | tuple[int, int]] = "SAME"
    kernel_dilation: int | Sequence[int] | None = 1
    use_bias: bool = True
    kernel_init: nn.initializers.Initializer = nn.initializers.lecun_normal()
    bias_init: nn.initializers.Initializer = nn.initializers.zeros

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """x (b, H, W, C) -> (b, H', W', features)."""
        checks.static_count("Conv", 1, features=self.features)
        checks.boolean("Conv", use_bias=self.use_bias)
        if isinstance(self.kernel_size, int):
            raise TypeError(
                f"Conv needs kernel_size (h, w), got {self.kernel_size}; write "
                f"({self.kernel_size}, {self.kernel_size})"
            )
        size = _pair("kernel_size", self.kernel_size)
        strides, dilation = _pair("strides", self.strides), _pair("dilation", self.kernel_dilation)
        if x.ndim != 4:
            raise ValueError(f"Conv needs an input (b, H, W, C), got shape {x.shape}: reshape it")
        reach = [(k - 1) * d + 1 for k, d in zip(size, dilation, strict=True)]
        padding = _padding(self.padding, x.shape[1:3], reach, strides)
        padded = [pixels + sum(pads) for pixels, pads in zip(x.shape[1:3], padding, strict=True)]
        if padded[0] < reach[0] or padded[1] < reach[1]:
            raise ValueError(
                f"Conv needs an input of at least {reach[0]}x{reach[1]} pixels with its padding, got "
                f"{padded[0]}x{padded[1]}: use padding='SAME' or a smaller kernel"
            )
        weights = [self.param("kernel", self.kernel_init, (*size, x.shape[3], self.features))]
        if self.use_bias:
            weights.append(self.param("bias", self.bias_init, (self.features,)))
        x, *weights = nn.dtypes.promote_dtype(x, *weights)
        # What it is now: the gradient may be traced elsewhere.
        precision = jax.config.jax_default_matmul_precision  # type: ignore[attr-defined]
        return convolve(Convolution(strides, padding, dilation, precision), x, *weights)


def _pair(name: str, value: int | Sequence[int] | None) -> tuple[int, int]:
    values = (1, 1) if value is None else value
    values = (values, values) if isinstance(values, int) else tuple(values)
    if len(values) != 2:
        raise ValueError(f"Conv needs two {name}, one for each direction, got {value!r}")
    for number in values:
        checks.static_count("Conv", 1, remedy="", **{name: number})
    return values


def _padding(
    padding: Any, pixels: Sequence[int], reach: Sequence[int], strides: Sequence[int]
) -> tuple[tuple[int, int], ...]:
    if padding in ("SAME", "VALID"):
        return tuple(lax.padtype_to_pads(pixels, reach, strides, padding))
    sides = padding
    if isinstance(sides, int):
        sides = (sides, sides)
    if isinstance(sides, Sequence) and not isinstance(sides, str) and len(sides) == 2:
        sides = tuple((side, side) if isinstance(side, int) else tuple(side) for side in sides)
        numbers = [number for side in sides for number in side]
        if len(numbers) == 4 and all(isinstance(n, int) and n >= 0 for n in numbers):
            return sides
    raise ValueError(
        "Conv needs padding 'SAME', 'VALID', pixels >= 0 or ((top, bottom), (left, right)), got "
        f"padding={padding!r}"
    )


@jax.custom_jvp
def max_pool2x2(x: Array) -> Array:
    """Maximum over 2x2 windows with stride 2, (b, H, W, C) -> (b, H // 2, W // 2, C).

    An odd last row or column is dropped, as ``flax.linen.max_pool(x, (2, 2), (2, 2))`` does. The
    derivative is shared by equal maxima on a CPU; elsewhere it is that of the first one, as Flax's.
    Behind a ReLU this makes no difference: where maxima of 0 are equal, its own derivative is 0.

    Raises:
      ValueError: x is not (b, H, W, C) with H, W >= 2.
    """
    if x.ndim != 4 or min(x.shape[1:3]) < 2:
        raise ValueError(
            "max_pool2x2 needs an input (b, H, W, C) with H, W >= 2, got shape "
            f"{x.shape}: reshape it or leave the pooling out"
        )
    return nn.max_pool(x, (2, 2), (2, 2))


@max_pool2x2.defjvp
def _max_pool2x2_jvp(primals: tuple[Array], tangents: tuple[Array]) -> tuple[Array, Array]:
    (x,), (t,) = primals, tangents
    y = max_pool2x2(x)

    def shared(x: Array, y: Array, t: Array) -> Array:
        # One mask over the windows: differentiating the slices would give four padded arrays to add.
        is_max = _windows(x) == y[:, :, None, :, None]
        # Counted by slices: a sum over the windows of a mask is a scalar loop on a CPU.
        count = sum((corner == y).astype(x.dtype) for corner in _corners(x))
        return jnp.where(is_max, _windows(t), 0).sum((2, 4)) / count

    def of_the_first(x: Array, y: Array, t: Array) -> Array:
        return jax.jvp(lambda x: nn.max_pool(x, (2, 2), (2, 2)), (x,), (t,))[1]

    return y, lax.platform_dependent(x, y, t, cpu=shared, default=of_the_first)


def _corners(x: Array) -> tuple[Array, Array, Array, Array]:
    """(b, H, W, C) -> the four pixels of each window, (b, H // 2, W // 2, C) each."""
    height, width = x.shape[1] // 2 * 2, x.shape[2] // 2 * 2
    x = x[:, :height, :width]
    return x[:, ::2, ::2], x[:, ::2, 1::2], x[:, 1::2, ::2], x[:, 1::2, 1::2]


def _windows(x: Array) -> Array:
    """(b, H, W, C) -> (b, H // 2, 2, W // 2, 2, C)."""
    b, height, width, channels = x.shape
    x = x[:, : height // 2 * 2, : width // 2 * 2]
    return x.reshape(b, height // 2, 2, width // 2, 2, channels)


class BatchNorm(nn.Module):
    """Batch normalisation by the statistics of the batch at hand, in training and in evaluation.

    Each channel of (b, H, W, C) is normalised by its mean and variance (divisor b H W) over the batch,
    then scaled and shifted: Ioffe and Szegedy, "Batch Normalization", ICML 2015, algorithm 1. The
    parameters are ``scale`` and ``bias``, (C,) each, initially 1 and 0. Epsilon is MXNet's default.

    Usual layers keep running averages of the statistics for the evaluation. They are no parameters:
    nothing in a flat vector (d,) of a model would say what a client sends of them, or a rule makes of
    them. The demos of FLTrust's and Fang et al.'s authors leave them out of the updates, too: all
    clients compute their gradients on one network object, whose averages move with every client's
    forward pass, the attackers' included, whatever the rule does with the attackers' updates. Training
    does not see them there, and is the same here. The evaluation differs: here it takes the statistics
    of the test examples that are evaluated together, 1,000 by default (``metrics.predict``). Hence

    - a prediction depends on what else is in its chunk: evaluate large chunks of shuffled examples. One
      example alone has no meaningful statistics. Triggered examples are evaluated among themselves;
    - statistics are over all rows of a batch, masked ones, too. Where a client has fewer examples than
      the batch size, the filled-up rows repeat its own first example (and the chunk of a test set that
      the chunks do not divide has a few zero images in the end).

    ``GroupNorm`` has neither problem.

    Attributes:
      epsilon: added to the variance, > 0.
    """

    epsilon: float = 1e-5

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """x (b, ..., C) -> the same shape."""
        return _affine(self, _standardised(x, range(x.ndim - 1), self.epsilon))


class GroupNorm(nn.Module):
    """Group normalisation: each example by itself, over its pixels and a group of channels.

    Wu and He, "Group Normalization", ECCV 2018. Parameters as in ``BatchNorm``. A prediction depends
    on one example and the parameters alone.

    Attributes:
      groups: they divide the channels evenly; 8 makes groups of 2, 4 and 8 channels of ``ResNet20``'s
        16, 32 and 64.
      epsilon: added to the variance, > 0.

    Raises:
      ValueError: the groups do not divide the channels.
    """

    groups: int = 8
    epsilon: float = 1e-5

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """x (b, ..., C) -> the same shape."""
        channels = x.shape[-1]
        if self.groups < 1 or channels % self.groups:
            raise ValueError(
                f"GroupNorm needs groups >= 1 that divide the channels, got groups={self.groups}, "
                f"channels={channels}"
            )
        grouped = x.reshape(*x.shape[:-1], self.groups, channels // self.groups)
        axes = (*range(1, x.ndim - 1), x.ndim)
        return _affine(self, _standardised(grouped, axes, self.epsilon).reshape(x.shape))


def _standardised(x: Array, axes: Sequence[int], epsilon: float) -> Array:
    axes = tuple(axes)
    centred = x - jnp.mean(x, axes, keepdims=True)
    return centred * lax.rsqrt(jnp.mean(jnp.square(centred), axes, keepdims=True) + epsilon)


def _affine(module: nn.Module, x: Array) -> Array:
    scale = module.param("scale", nn.initializers.ones, x.shape[-1:])
    return x * scale + module.param("bias", nn.initializers.zeros, x.shape[-1:])


class LSTM(nn.Module):
    """A layer of long short-term memory, (b, T, F) -> (b, T, features), from a zero state.

    As PyTorch's ``nn.LSTM``, with gates in its order (input, forget, cell, output)::

        i, f, g, o = x_t W_x + b_x + h_{t-1} W_h + b_h
        c_t = sigmoid(f) c_{t-1} + sigmoid(i) tanh(g)
        h_t = sigmoid(o) tanh(c_t)

    ``input_kernel`` W_x (F, 4 features), ``hidden_kernel`` W_h (features, 4 features), ``input_bias``
    and ``hidden_bias`` (4 features,), all uniform in +-1 / sqrt(features). One bias would do for the
    function, and Flax's cells have one; two of them count twice in the number of parameters and in an
    update's norm, and move twice as far in a step of gradient descent.

    The inputs' part is one matrix product before the loop over time.

    Attributes:
      features: units, >= 1.
    """

    features: int

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """x (b, T, F) -> (b, T, features), the hidden states h_1 .. h_T."""
        if x.ndim != 3 or self.features < 1:
            raise ValueError(
                "LSTM needs features >= 1 and an input (b, T, F), got "
                f"features={self.features} and shape {x.shape}"
            )
        h, gates = self.features, 4 * self.features
        bound = h**-0.5

        def parameter(name: str, *shape: int) -> Array:
            value: Array = self.param(
                name, lambda key: jax.random.uniform(key, shape, minval=-bound, maxval=bound)
            )
            return value

        input_kernel = parameter("input_kernel", x.shape[2], gates)
        hidden_kernel = parameter("hidden_kernel", h, gates)
        bias = parameter("input_bias", gates) + parameter("hidden_bias", gates)

        def step(state: tuple[Array, Array], inputs: Array) -> tuple[tuple[Array, Array], Array]:
            hidden, cell = state
            i, f, g, o = jnp.split(inputs + hidden @ hidden_kernel, 4, axis=-1)
            cell = nn.sigmoid(f) * cell + nn.sigmoid(i) * jnp.tanh(g)
            hidden = nn.sigmoid(o) * jnp.tanh(cell)
            return (hidden, cell), hidden

        zero = jnp.zeros((x.shape[0], h), x.dtype)
        inputs = jnp.swapaxes(x, 0, 1) @ input_kernel + bias
        return jnp.swapaxes(lax.scan(step, (zero, zero), inputs)[1], 0, 1)
