"""The papers' small models of images: dense layers, and convolutions without shortcuts.

Inputs are (b, H, W, C) or, for the models without convolutions, (b, ...) of any shape; logits are
(b, num_classes).
"""

from __future__ import annotations

import flax.linen as nn

from fedjax_robust.models.starts import dense, mxnet, pytorch, xavier
from fedjax_robust.nn import Conv, max_pool2x2
from fedjax_robust.types import Array


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
        return dense(x, (*self.hidden, self.num_classes), mxnet)


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
            x = Conv(features, (3, 3), padding="VALID", kernel_init=xavier(2.24))(x)
            # ReLU after pooling gives what the paper's order gives, from a quarter of the values.
            x = nn.relu(max_pool2x2(x))
        return MLP(self.num_classes, (self.hidden,))(x)


class FLTrustCNN(FangDNN):
    """The CNN of Cao et al., "FLTrust: Byzantine-robust Federated Learning via Trust Bootstrapping".

    NDSS 2021. ``FangDNN`` with a dense layer of 100: 139,960 parameters for 28x28x1 and 10 classes.
    """

    hidden: int = 100


class MnistNet(nn.Module):
    """The MNIST network of DBA's code (Xie et al., ICLR 2020); starts as in PyTorch.

    Convolution 5x5x20, ReLU, max-pool 2x2, convolution 5x5x50, ReLU, max-pool 2x2, dense 500, ReLU, dense
    ``num_classes``; no padding. 431,080 parameters for 28x28x1 and 10 classes.

    Attributes:
      num_classes: L.
      features: output channels of the two convolutions.
      hidden: size of the dense layer.
    """

    num_classes: int
    features: tuple[int, int] = (20, 50)
    hidden: int = 500

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """x (b, H, W, C), at least 16x16 pixels -> logits (b, num_classes)."""
        for features in self.features:
            x = Conv(features, (5, 5), padding="VALID", **pytorch(25 * x.shape[3]))(x)
            x = nn.relu(max_pool2x2(x))
        return dense(x, (self.hidden, self.num_classes), pytorch)


class ConvNet(nn.Module):
    """Blocks of 3x3 convolutions, then dense layers, each with ReLU; starts as in PyTorch.

    The networks of Wu et al., "Mitigating Backdoor Attacks in Federated Learning", arXiv 2011.01767,
    2020, as far as the paper says: three convolutions and two dense layers for Fashion-MNIST, four and
    three for CIFAR-10. Neither their sizes, those of ``blocks`` and ``hidden``, nor their initial weights
    are printed. No padding; each block ends with a max-pool 2x2, before the last ReLU, which is the same.

    Attributes:
      num_classes: L.
      blocks: output channels of the convolutions of each block.
      hidden: sizes of the dense layers but the last one, which is L.
    """

    num_classes: int
    blocks: tuple[tuple[int, ...], ...] = ((32, 32), (64, 64))
    hidden: tuple[int, ...] = (256, 128)

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """x (b, H, W, C) -> logits (b, num_classes)."""
        for block in self.blocks:
            for i, features in enumerate(block):
                x = Conv(features, (3, 3), padding="VALID", **pytorch(9 * x.shape[3]))(x)
                if i == len(block) - 1:
                    x = max_pool2x2(x)
                x = nn.relu(x)
        return dense(x, (*self.hidden, self.num_classes), pytorch)
