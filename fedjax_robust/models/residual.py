"""Residual networks: He, Zhang, Ren, Sun, "Deep Residual Learning for Image Recognition", CVPR 2016.

https://arxiv.org/abs/1512.03385; in the forms of FLTrust, of Bagdasaryan et al. and of DBA.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import flax.linen as nn

from fedjax_robust.models.starts import xavier
from fedjax_robust.nn import BatchNorm, Conv
from fedjax_robust.types import Array


class ResidualBlock(nn.Module):
    """Two 3x3 convolutions beside a shortcut: ReLU(norm(conv(ReLU(norm(conv(x))))) + shortcut(x)).

    The first convolution and the shortcut, if it is a 1x1 convolution with its own normalisation, have
    the stride. He, Zhang, Ren, Sun, "Deep Residual Learning for Image Recognition", CVPR 2016, fig. 2
    and option B.
    """

    features: int
    stride: int
    project: bool
    norm: Callable[[], nn.Module]

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """x (b, H, W, C) -> (b, ceil(H / stride), ceil(W / stride), features)."""
        y = self.norm()(_conv(self.features, 3, self.stride)(x))
        y = self.norm()(_conv(self.features, 3)(nn.relu(y)))
        if self.project:
            x = self.norm()(_conv(self.features, 1, self.stride)(x))
        return nn.relu(y + x)


class ResNet20(nn.Module):
    """The ResNet20 of FLTrust (NDSS 2021) for CIFAR-10 and CH-MNIST; Xavier magnitude 3.1415926.

    A 3x3 convolution with 16 channels, three stages of three ``ResidualBlock`` with 16, 32 and 64
    channels, of which the second and third halve the image, the mean over all pixels, and a dense layer.
    Convolutions have no bias and a padding of 1.

    As in gluon's ``ResNetV1(BasicBlockV1, [3, 3, 3], [16, 16, 32, 64], thumbnail=True)``, which code of
    FLTrust's authors uses, the first convolution has no normalisation (nor ReLU). Then there are 272,442
    parameters for 32x32x3 inputs and 10 classes, 272,024 for 64x64x1 and 8 classes. GluonCV's
    ``cifar_resnet20_v1`` normalises it: ``stem_norm=BatchNorm``, 272,474.

    Attributes:
      num_classes: L.
      norm: () -> a normalisation layer; called for each of the 20 that there are. ``BatchNorm`` is
        the papers'; read there how its statistics differ from theirs. ``GroupNorm``, or
        ``functools.partial(GroupNorm, groups=4)``, has no statistics of other examples.
      stem_norm: the same after the first convolution; None = none.
    """

    num_classes: int
    norm: Callable[[], nn.Module] = BatchNorm
    stem_norm: Callable[[], nn.Module] | None = None

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """x (b, H, W, C) -> logits (b, num_classes)."""
        x = _conv(16, 3)(x)
        if self.stem_norm is not None:
            x = self.stem_norm()(x)
        for features, stride in ((16, 1), (32, 2), (64, 2)):
            for i in range(3):
                first = i == 0
                x = ResidualBlock(
                    features, stride if first else 1, first and stride > 1, self.norm
                )(x)
        return nn.Dense(self.num_classes, kernel_init=xavier(math.pi))(x.mean((1, 2)))


class ResNet18(nn.Module):
    """The lightweight ResNet18 of Bagdasaryan et al. (AISTATS 2020) and DBA (ICLR 2020) for CIFAR-10.

    A 3x3 convolution with ``width`` channels, normalisation and ReLU, four stages of two
    ``ResidualBlock`` with 1, 2, 4 and 8 times the width, of which all but the first halve the image, the
    mean over all pixels, and a dense layer. Convolutions have no bias and a padding of 1. 2,797,610
    parameters for 32x32x3 inputs and 10 classes, as in the authors' code.

    What differs there: running averages of batch norm's statistics, which the server averages, and the
    attacker scales, like parameters (here see ``BatchNorm``); PyTorch's initial weights, where these are
    Xavier's with magnitude 3.1415926 as in ``ResNet20``.

    Attributes:
      num_classes: L.
      width: channels of the first stage; the papers' is 32.
      norm: () -> a normalisation layer, called 20 times; see ``ResNet20``.
    """

    num_classes: int
    width: int = 32
    norm: Callable[[], nn.Module] = BatchNorm

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """x (b, H, W, C) -> logits (b, num_classes)."""
        x = nn.relu(self.norm()(_conv(self.width, 3)(x)))
        for stage in range(4):
            for i in range(2):
                first = stage > 0 and i == 0
                x = ResidualBlock(self.width * 2**stage, 2 if first else 1, first, self.norm)(x)
        return nn.Dense(self.num_classes, kernel_init=xavier(math.pi))(x.mean((1, 2)))


def _conv(features: int, size: int, stride: int = 1) -> Conv:
    return Conv(
        features,
        (size, size),
        strides=stride,
        padding=size // 2,
        use_bias=False,
        kernel_init=xavier(math.pi),
    )
