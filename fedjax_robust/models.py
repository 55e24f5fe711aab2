"""The papers' small models: ``model.apply({"params": ...}, x)`` gives logits (b, num_classes).

Inputs are (b, H, W, C) or, for the models without convolutions, (b, ...) of any shape; the models
flatten them themselves. Weights start as MXNet's ``Xavier(magnitude=...)`` draws them, biases at 0.
"""

from __future__ import annotations

import flax.linen as nn
import jax

from fedjax_robust.nn import Conv, max_pool2x2

Array = jax.Array


def xavier(magnitude: float) -> nn.initializers.Initializer:
    """MXNet's ``Xavier(magnitude)``: uniform in +-sqrt(magnitude / ((fan_in + fan_out) / 2)).

    The fans of a convolution are channels * height * width. Magnitude 3 is Glorot's uniform
    initialization.
    """
    return nn.initializers.variance_scaling(magnitude / 3, "fan_avg", "uniform")


class SoftmaxRegression(nn.Module):
    """Multi-class logistic regression: one dense layer, Xavier magnitude 1.0.

    The "LR" of Fang et al., "Local Model Poisoning Attacks to Byzantine-Robust Federated Learning",
    USENIX Security 2020. 7,850 parameters for 28x28x1 inputs and 10 classes.
    """

    num_classes: int

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """x (b, ...) -> logits (b, num_classes)."""
        return nn.Dense(self.num_classes, kernel_init=xavier(1.0))(x.reshape(x.shape[0], -1))


class MLP(nn.Module):
    """Dense ``hidden`` layers, each with ReLU, then one for the classes; Xavier magnitude 2.24."""

    num_classes: int
    hidden: tuple[int, ...] = (128,)

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """x (b, ...) -> logits (b, num_classes)."""
        x = x.reshape(x.shape[0], -1)
        for size in self.hidden:
            x = nn.relu(nn.Dense(size, kernel_init=xavier(2.24))(x))
        return nn.Dense(self.num_classes, kernel_init=xavier(2.24))(x)


class FangDNN(nn.Module):
    """The "DNN" of Fang et al., USENIX Security 2020, Table 7a; Xavier magnitude 2.24.

    Convolution 3x3x30, ReLU, max-pool 2x2, convolution 3x3x50, ReLU, max-pool 2x2, dense ``hidden``
    (200), ReLU, dense ``num_classes``; no padding. 266,060 parameters for 28x28x1 and 10 classes.
    """

    num_classes: int
    hidden: int = 200

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """x (b, H, W, C), at least 10x10 pixels -> logits (b, num_classes)."""
        for features in (30, 50):
            x = Conv(features, (3, 3), kernel_init=xavier(2.24))(x)
            # ReLU after pooling gives what the paper's order gives, from a quarter of the values.
            x = nn.relu(max_pool2x2(x))
        return MLP(self.num_classes, (self.hidden,))(x)


class FLTrustCNN(FangDNN):
    """The CNN of Cao et al., "FLTrust: Byzantine-robust Federated Learning via Trust Bootstrapping".

    NDSS 2021. ``FangDNN`` with a dense layer of 100: 139,960 parameters for 28x28x1 and 10 classes.
    """

    hidden: int = 100
