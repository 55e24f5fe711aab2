"""The papers' small models: ``model.apply({"params": ...}, x)`` gives logits (b, num_classes).

Inputs are (b, H, W, C) or, for the models without convolutions, (b, ...) of any shape; the models
flatten them themselves. Weights start as MXNet's ``Xavier(magnitude=...)`` draws them, biases at 0, or
both as PyTorch's layers start; each model says which. ``WordLSTM`` maps word ids (b, T) to logits
(b, T, num_words).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, TypedDict

import flax.linen as nn
import jax
import jax.numpy as jnp

from fedjax_robust.nn import LSTM, BatchNorm, Conv, max_pool2x2

Array = jax.Array


def xavier(magnitude: float) -> nn.initializers.Initializer:
    """MXNet's ``Xavier(magnitude)``: uniform in +-sqrt(magnitude / ((fan_in + fan_out) / 2)).

    The fans of a convolution are channels * height * width. Magnitude 3 is Glorot's uniform
    initialization.
    """
    return nn.initializers.variance_scaling(magnitude / 3, "fan_avg", "uniform")


class _Start(TypedDict):
    kernel_init: nn.initializers.Initializer
    bias_init: nn.initializers.Initializer


def _pytorch(fan_in: int) -> _Start:
    """PyTorch's ``Linear`` and ``Conv2d``: weights and biases uniform in +-1 / sqrt(fan_in)."""

    def start(key: Array, shape: tuple[int, ...], dtype: Any = jnp.float32) -> Array:
        return jax.random.uniform(key, shape, dtype, -(fan_in**-0.5), fan_in**-0.5)

    return {"kernel_init": start, "bias_init": start}


def _mxnet(fan_in: int) -> _Start:
    """``xavier(2.24)``, biases 0."""
    return {"kernel_init": xavier(2.24), "bias_init": nn.initializers.zeros}


def _dense(x: Array, sizes: tuple[int, ...], start: Callable[[int], _Start]) -> Array:
    """Flattened x (b, ...) through dense layers, with ReLU in between; fan_in -> how each starts."""
    x = x.reshape(x.shape[0], -1)
    for i, size in enumerate(sizes):
        x = nn.Dense(size, **start(x.shape[1]))(nn.relu(x) if i else x)
    return x


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
        return _dense(x, (*self.hidden, self.num_classes), _mxnet)


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
            x = Conv(features, (5, 5), padding="VALID", **_pytorch(25 * x.shape[3]))(x)
            x = nn.relu(max_pool2x2(x))
        return _dense(x, (self.hidden, self.num_classes), _pytorch)


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
                x = Conv(features, (3, 3), padding="VALID", **_pytorch(9 * x.shape[3]))(x)
                if i == len(block) - 1:
                    x = max_pool2x2(x)
                x = nn.relu(x)
        return _dense(x, (*self.hidden, self.num_classes), _pytorch)


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
        norm: as in ``ResNet20``, called 20 times.
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


class WordLSTM(nn.Module):
    """Next-word prediction: embedding, layers of LSTM, and the embedding again for the logits.

    The word model of Bagdasaryan et al., "How To Backdoor Federated Learning", AISTATS 2020, section
    V-B, which is that of PyTorch's word language model with tied weights: logits = h E^T + bias with the
    embedding E (num_words, hidden). E starts uniform in +-0.1, the bias at 0, ``LSTM`` as it says. With
    50,000 words and 200 units there are 10,693,200 parameters, 10,000,000 of them (94 %) in E. The
    paper's code drops out 20 % of the units; a loss has no randomness here, and so no dropout. The
    state starts at zero in every sequence.

    What it costs: one client's gradient at that size, on 20 sequences of 64 words, takes 2.9 s on one
    core of a CPU (x86-64) and 565 MB. Of these the logits and their softmax take 1.7 to 2.2 s and 2 x
    256 MB, which is what T x b x V floats are; both LSTM layers 0.17 s; looking words up and adding their
    gradients into E 0.02 s, and no memory of its own: with tied weights the gradient of E is dense,
    anyway. The rest is moving 43 MB of parameters. So memory bounds the number of clients that train at
    a time (``Simulation(client_chunk=...)``).

    Attributes:
        num_words: V, the size of the vocabulary.
        hidden: units of each layer, and the size of the embedding.
        layers: LSTM layers, >= 1.
    """

    num_words: int
    hidden: int = 200
    layers: int = 2

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """Word ids x (b, T) in [0, num_words) -> logits (b, T, num_words) of the next words."""
        if x.ndim != 2 or min(self.num_words, self.hidden, self.layers) < 1:
            raise ValueError(
                "WordLSTM needs word ids (b, T) and num_words, hidden, layers >= 1, got shape "
                f"{x.shape}, num_words={self.num_words}, hidden={self.hidden}, layers={self.layers}"
            )
        embedding = self.param(
            "embedding",
            lambda key: jax.random.uniform(
                key, (self.num_words, self.hidden), minval=-0.1, maxval=0.1
            ),
        )
        bias = self.param("bias", nn.initializers.zeros, (self.num_words,))
        h = jnp.take(embedding, x, axis=0, mode="clip")
        for _ in range(self.layers):
            h = LSTM(self.hidden)(h)
        logits: Array = h @ embedding.T + bias
        return logits
