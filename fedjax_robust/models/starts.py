"""How weights start in the papers' frameworks."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypedDict

import flax.linen as nn
import jax
import jax.numpy as jnp

from fedjax_robust.types import Array


def xavier(magnitude: float) -> nn.initializers.Initializer:
    """MXNet's ``Xavier(magnitude)``: uniform in +-sqrt(magnitude / ((fan_in + fan_out) / 2)).

    The fans of a convolution are channels * height * width. Magnitude 3 is Glorot's uniform
    initialization.
    """
    return nn.initializers.variance_scaling(magnitude / 3, "fan_avg", "uniform")


class _Start(TypedDict):
    kernel_init: nn.initializers.Initializer
    bias_init: nn.initializers.Initializer


def pytorch(fan_in: int) -> _Start:
    """PyTorch's ``Linear`` and ``Conv2d``: weights and biases uniform in +-1 / sqrt(fan_in)."""

    def start(key: Array, shape: tuple[int, ...], dtype: Any = jnp.float32) -> Array:
        return jax.random.uniform(key, shape, dtype, -(fan_in**-0.5), fan_in**-0.5)

    return {"kernel_init": start, "bias_init": start}


def mxnet(fan_in: int) -> _Start:
    """``xavier(2.24)``, biases 0, whatever ``fan_in`` is."""
    return {"kernel_init": xavier(2.24), "bias_init": nn.initializers.zeros}


def dense(x: Array, sizes: tuple[int, ...], start: Callable[[int], _Start]) -> Array:
    """Flattened x (b, ...) through dense layers, with ReLU in between; fan_in -> how each starts."""
    x = x.reshape(x.shape[0], -1)
    for i, size in enumerate(sizes):
        x = nn.Dense(size, **start(x.shape[1]))(nn.relu(x) if i else x)
    return x
