"""Flax layers that stay fast under ``jax.vmap`` over their weights.

``vmap`` turns a convolution with per-client weights into a grouped convolution, which XLA runs slowly
on CPU, and the gradient of ``reduce_window`` is a slow scatter. Written with slices and matrix
products, both batch well. ``experiments/bench_kernels.py`` measures them.
"""

from __future__ import annotations

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
        padding: "VALID" (none) or "SAME" (H' = ceil(H / stride)).
        use_bias: whether to add a bias.
        kernel_init: initializer of the kernel.

    Raises:
        ValueError: an attribute is out of range, the input is not (b, H, W, C), or it is
            smaller than the kernel without padding.
    """

    features: int
    kernel_size: tuple[int, int] = (3, 3)
    stride: int = 1
    padding: Literal["VALID", "SAME"] = "VALID"
    use_bias: bool = True
    kernel_init: nn.initializers.Initializer = nn.initializers.lecun_normal()

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """x (b, H, W, C) -> (b, H', W', features)."""
        h, w = self.kernel_size
        if min(self.features, h, w, self.stride) < 1 or self.padding not in ("VALID", "SAME"):
            raise ValueError(
                "Conv needs features, kernel_size and stride >= 1 and padding 'VALID' or 'SAME', "
                f"got features={self.features}, kernel_size={self.kernel_size}, "
                f"stride={self.stride}, padding={self.padding!r}"
            )
        if x.ndim != 4:
            raise ValueError(f"Conv needs an input (b, H, W, C), got shape {x.shape}: reshape it")
        if self.padding == "SAME":
            pads = lax.padtype_to_pads(x.shape[1:3], (h, w), (self.stride,) * 2, "SAME")
            x = jnp.pad(x, ((0, 0), *pads, (0, 0)))
        if x.shape[1] < h or x.shape[2] < w:
            raise ValueError(
                f"Conv without padding needs an input of at least {h}x{w} pixels, got "
                f"{x.shape[1]}x{x.shape[2]}: use padding='SAME' or a smaller kernel"
            )
        kernel = self.param("kernel", self.kernel_init, (h, w, x.shape[3], self.features))
        matrix, patches = kernel.reshape(-1, self.features), _patches(x, h, w, self.stride)
        if self.use_bias:
            # As the weight of a constant input, the bias stays out of what XLA fuses with the output,
            # where reading a client's own bias would slow down every loop over it.
            bias = self.param("bias", nn.initializers.zeros, (self.features,))
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
    height, width = x.shape[1] // 2 * 2, x.shape[2] // 2 * 2
    x = x[:, :height, :width]
    top = jnp.maximum(x[:, ::2, ::2], x[:, ::2, 1::2])
    bottom = jnp.maximum(x[:, 1::2, ::2], x[:, 1::2, 1::2])
    return jnp.maximum(top, bottom)


@max_pool2x2.defjvp
def _max_pool2x2_jvp(primals: tuple[Array], tangents: tuple[Array]) -> tuple[Array, Array]:
    # One mask over the windows: differentiating the slices would give four padded arrays to add.
    (x,), (t,) = primals, tangents
    y = max_pool2x2(x)
    is_max = _windows(x) == y[:, :, None, :, None]
    count = is_max.sum((2, 4), dtype=x.dtype)
    return y, jnp.where(is_max, _windows(t), 0).sum((2, 4)) / count


def _windows(x: Array) -> Array:
    """(b, H, W, C) -> (b, H // 2, 2, W // 2, 2, C)."""
    b, height, width, channels = x.shape
    x = x[:, : height // 2 * 2, : width // 2 * 2]
    return x.reshape(b, height // 2, 2, width // 2, 2, channels)
