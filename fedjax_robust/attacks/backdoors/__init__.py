"""Backdoors: ``triggers``, the papers' ``patterns``, and ``data`` with them.

How clients put them into their batches: ``attacks.poisons``. How what they train survives the server:
``attacks.scaling`` and ``attacks.model_replacement``.
"""

from fedjax_robust.attacks.backdoors.data import (
    SemanticBackdoor,
    add_backdoored_copies,
    semantic_backdoor,
    triggered,
)
from fedjax_robust.attacks.backdoors.patterns import (
    CIFAR_GREEN_CARS,
    CIFAR_RACING_STRIPES,
    CIFAR_STRIPED_WALLS,
    DBA_CIFAR_PIXELS,
    DBA_MNIST_PIXELS,
    FLTRUST_CIFAR_PIXELS,
    FLTRUST_MNIST_PIXELS,
    NINE_PIXELS,
)
from fedjax_robust.attacks.backdoors.triggers import feature_trigger, mask_trigger, pixel_trigger

__all__ = [
    "CIFAR_GREEN_CARS",
    "CIFAR_RACING_STRIPES",
    "CIFAR_STRIPED_WALLS",
    "DBA_CIFAR_PIXELS",
    "DBA_MNIST_PIXELS",
    "FLTRUST_CIFAR_PIXELS",
    "FLTRUST_MNIST_PIXELS",
    "NINE_PIXELS",
    "SemanticBackdoor",
    "add_backdoored_copies",
    "feature_trigger",
    "mask_trigger",
    "pixel_trigger",
    "semantic_backdoor",
    "triggered",
]
