"""Attacks. Each is made by a lower-case factory; poisons change batches, attacks craft updates."""

from fedjax_robust.attacks.back_gradient import (
    back_gradient_points,
    other_label,
    reversed_gradient,
    unrolled_gradient,
)
from fedjax_robust.attacks.crafted import data_poisoning, gaussian, in_rounds, no_attack
from fedjax_robust.attacks.fang import (
    fang_krum_full,
    fang_krum_partial,
    fang_trim_deviation,
    fang_trim_full,
    fang_trim_partial,
)
from fedjax_robust.attacks.poison import label_flip

__all__ = [
    "back_gradient_points",
    "data_poisoning",
    "fang_krum_full",
    "fang_krum_partial",
    "fang_trim_deviation",
    "fang_trim_full",
    "fang_trim_partial",
    "gaussian",
    "in_rounds",
    "label_flip",
    "no_attack",
    "other_label",
    "reversed_gradient",
    "unrolled_gradient",
]
