"""Attacks. Each is made by a lower-case factory; poisons change batches, attacks craft updates."""

from fedjax_robust.attacks.adaptive import fltrust_adaptive
from fedjax_robust.attacks.back_gradient import (
    back_gradient_points,
    other_label,
    reversed_gradient,
    unrolled_gradient,
)
from fedjax_robust.attacks.backdoor import (
    FLTRUST_CIFAR_PIXELS,
    FLTRUST_MNIST_PIXELS,
    add_backdoored_copies,
    feature_trigger,
    pixel_trigger,
    scaling,
    triggered,
)
from fedjax_robust.attacks.crafted import data_poisoning, gaussian, in_rounds, no_attack
from fedjax_robust.attacks.fang import (
    fang_krum_full,
    fang_krum_partial,
    fang_trim_deviation,
    fang_trim_full,
    fang_trim_partial,
)
from fedjax_robust.attacks.first_order import first_order
from fedjax_robust.attacks.poison import label_flip
from fedjax_robust.attacks.words import word_backdoor

__all__ = [
    "FLTRUST_CIFAR_PIXELS",
    "FLTRUST_MNIST_PIXELS",
    "add_backdoored_copies",
    "back_gradient_points",
    "data_poisoning",
    "fang_krum_full",
    "fang_krum_partial",
    "fang_trim_deviation",
    "fang_trim_full",
    "fang_trim_partial",
    "feature_trigger",
    "first_order",
    "fltrust_adaptive",
    "gaussian",
    "in_rounds",
    "label_flip",
    "no_attack",
    "other_label",
    "pixel_trigger",
    "reversed_gradient",
    "scaling",
    "triggered",
    "unrolled_gradient",
    "word_backdoor",
]
