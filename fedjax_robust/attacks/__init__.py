"""Attacks. Each is made by a lower-case factory; poisons change batches, attacks craft updates."""

from fedjax_robust.attacks.adaptive import fltrust_adaptive
from fedjax_robust.attacks.back_gradient import (
    back_gradient_points,
    other_label,
    reversed_gradient,
    unrolled_gradient,
)
from fedjax_robust.attacks.backdoor import (
    CIFAR_GREEN_CARS,
    CIFAR_RACING_STRIPES,
    CIFAR_STRIPED_WALLS,
    DBA_CIFAR_PIXELS,
    DBA_MNIST_PIXELS,
    FLTRUST_CIFAR_PIXELS,
    FLTRUST_MNIST_PIXELS,
    NINE_PIXELS,
    SemanticBackdoor,
    add_backdoored_copies,
    feature_trigger,
    mask_trigger,
    pixel_trigger,
    semantic_backdoor,
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
from fedjax_robust.attacks.objectives import constrain, converged, cosine_distance, p_distance
from fedjax_robust.attacks.poison import (
    distributed,
    in_turn,
    label_flip,
    replace_by,
    replace_by_triggered,
)
from fedjax_robust.attacks.replacement import (
    copies,
    equal_parts,
    model_replacement,
    norm_bounded,
    orthogonal_parts,
    scaling,
    train_and_scale,
)
from fedjax_robust.attacks.words import word_backdoor

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
    "back_gradient_points",
    "constrain",
    "converged",
    "copies",
    "cosine_distance",
    "data_poisoning",
    "distributed",
    "equal_parts",
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
    "in_turn",
    "label_flip",
    "mask_trigger",
    "model_replacement",
    "no_attack",
    "norm_bounded",
    "orthogonal_parts",
    "other_label",
    "p_distance",
    "pixel_trigger",
    "replace_by",
    "replace_by_triggered",
    "reversed_gradient",
    "scaling",
    "semantic_backdoor",
    "train_and_scale",
    "triggered",
    "unrolled_gradient",
    "word_backdoor",
]
