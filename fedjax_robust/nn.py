"""Flax layers that stay fast under ``jax.vmap`` over their weights.

``vmap`` turns a convolution with per-client weights into a grouped convolution, which XLA runs slowly
on CPU, and the gradient of ``reduce_window`` is a slow scatter. Written with slices and matrix
products, both batch well. ``experiments/bench_kernels.py`` measures them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax

Array = jax.Array


class Conv(nn.Module):
    """Two-dimensional convolution, (b, H, W, C) -> (b, H', W', features).

    The parameters are ``flax.linen.Conv``'s: ``kernel`` (h, w, C, features), ``bias`` (features,).

    Attributes:
        features: output channels, >= 1.
        kernel_size: (h, w), each >= 1.
        stride: step in both directions, >= 1.
        padding: "VALID" (none), "SAME" (H' = ceil(H / stride), an odd pixel of padding at the end) or
            the pixels on each side, >= 0, as MXNet and PyTorch have it: with an even H and a stride of
            2, a 3x3 kernel starts at pixel -1 with padding=1 and at pixel 0 with "SAME".
        use_bias: whether to add a bias.
        kernel_init: initializer of the kernel.
        bias_init: initializer of the bias.

    Raises:
        ValueError: an attribute is out of range, the input is not (b, H, W, C), or it is
            smaller than the kernel without padding.
    """

    features: int
    kernel_size: tuple[int, int] = (3, 3)
    stride: int = 1
    padding: Literal["VALID", "SAME"] | int = "VALID"
    use_bias: bool = True
    kernel_init: nn.initializers.Initializer = nn.initializers.lecun_normal()
    bias_init: nn.initializers.Initializer = nn.initializers.zeros

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """x (b, H, W, C) -> (b, H', W', features)."""
        h, w = self.kernel_size
        known = (
            self.padding >= 0
            if isinstance(self.padding, int)
            else self.padding in ("VALID", "SAME")
        )
        if min(self.features, h, w, self.stride) < 1 or not known:
            raise ValueError(
                "Conv needs features, kernel_size and stride >= 1 and padding 'VALID', 'SAME' or >= 0, "
                f"got features={self.features}, kernel_size={self.kernel_size}, "
                f"stride={self.stride}, padding={self.padding!r}"
            )
        if x.ndim != 4:
            raise ValueError(f"Conv needs an input (b, H, W, C), got shape {x.shape}: reshape it")
        if self.padding == "SAME":
            pads = lax.padtype_to_pads(x.shape[1:3], (h, w), (self.stride,) * 2, "SAME")
            x = jnp.pad(x, ((0, 0), *pads, (0, 0)))
        elif isinstance(self.padding, int):
            x = jnp.pad(x, ((0, 0), *[(self.padding,) * 2] * 2, (0, 0)))
        if x.shape[1] < h or x.shape[2] < w:
            raise ValueError(
                f"Conv needs an input of at least {h}x{w} pixels with its padding, got "
                f"{x.shape[1]}x{x.shape[2]}: use padding='SAME' or a smaller kernel"
            )
        kernel = self.param("kernel", self.kernel_init, (h, w, x.shape[3], self.features))
        matrix, patches = kernel.reshape(-1, self.features), _patches(x, h, w, self.stride)
        if self.use_bias:
            # As the weight of a constant input, the bias stays out of what XLA fuses with the output,
            # where reading a client's own bias would slow down every loop over it.
            bias = self.param("bias", self.bias_init, (self.features,))
            matrix = jnp.concatenate([matrix, bias[None]])
            patches = jnp.concatenate([patches, jnp.ones_like(patches[..., :1])], axis=-1)
        return patches @ matrix


def _patches(x: Array, h: int, w: int, stride: int) -> Array:
    """(b, H, W, C) -> (b, H', W', h * w * C): the pixels under the kernel at every position."""
    height, width = x.shape[1] - h + 1, x.shape[2] - w + 1
    return jnp.concatenate(
        [x[:, i : i + height : stride, j : j + width : stride] for i in range(h) for j in range(w)],
        axis=-1,
    )


@jax.custom_jvp
def max_pool2x2(x: Array) -> Array:
    """Maximum over 2x2 windows with stride 2, (b, H, W, C) -> (b, H // 2, W // 2, C).

    An odd last row or column is dropped, as ``flax.linen.max_pool(x, (2, 2), (2, 2))`` does. The
    derivative is shared by equal maxima.

    Raises:
        ValueError: x is not (b, H, W, C) with H, W >= 2.
    """
    if x.ndim != 4 or min(x.shape[1:3]) < 2:
        raise ValueError(
            "max_pool2x2 needs an input (b, H, W, C) with H, W >= 2, got shape "
            f"{x.shape}: reshape it or leave the pooling out"
        )
    a, b, c, d = _corners(x)
    return jnp.maximum(jnp.maximum(a, b), jnp.maximum(c, d))


@max_pool2x2.defjvp
def _max_pool2x2_jvp(primals: tuple[Array], tangents: tuple[Array]) -> tuple[Array, Array]:
    # One mask over the windows: differentiating the slices would give four padded arrays to add.
    (x,), (t,) = primals, tangents
    y = max_pool2x2(x)
    is_max = _windows(x) == y[:, :, None, :, None]
    # Counted by slices: a sum over the windows of a mask is a scalar loop on a CPU.
    count = sum((corner == y).astype(x.dtype) for corner in _corners(x))
    return y, jnp.where(is_max, _windows(t), 0).sum((2, 4)) / count


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
