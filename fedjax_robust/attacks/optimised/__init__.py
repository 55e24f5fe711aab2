"""Attacks that climb an objective step by step.

``first_order`` by gradients through the server's rule, ``fltrust`` by differences along random
directions, ``back_gradient`` by gradients through training, which ``through_training`` has.
"""

from fedjax_robust.attacks.optimised.back_gradient import back_gradient_points
from fedjax_robust.attacks.optimised.first_order import first_order
from fedjax_robust.attacks.optimised.fltrust import fltrust_adaptive
from fedjax_robust.attacks.optimised.through_training import reversed_gradient, unrolled_gradient

__all__ = [
    "back_gradient_points",
    "first_order",
    "fltrust_adaptive",
    "reversed_gradient",
    "unrolled_gradient",
]
