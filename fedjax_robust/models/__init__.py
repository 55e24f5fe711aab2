"""The papers' models: ``model.apply({"params": ...}, x)`` gives logits (b, num_classes).

Inputs are (b, H, W, C) or, for the models without convolutions, (b, ...) of any shape; the models
flatten them themselves. Weights start as MXNet's ``Xavier(magnitude=...)`` draws them, biases at 0, or
both as PyTorch's layers start (``starts``); each model says which. ``WordLSTM`` maps word ids (b, T) to
logits (b, T, num_words).
"""

from fedjax_robust.models.recurrent import WordLSTM
from fedjax_robust.models.residual import ResidualBlock, ResNet18, ResNet20
from fedjax_robust.models.small import (
    MLP,
    ConvNet,
    FangDNN,
    FLTrustCNN,
    MnistNet,
    SoftmaxRegression,
)
from fedjax_robust.models.starts import xavier

__all__ = [
    "MLP",
    "ConvNet",
    "FLTrustCNN",
    "FangDNN",
    "MnistNet",
    "ResNet18",
    "ResNet20",
    "ResidualBlock",
    "SoftmaxRegression",
    "WordLSTM",
    "xavier",
]
