"""Attacks that climb an objective step by step: ``ascent`` is the loop.

``first_order`` climbs by gradients through the server's rule, ``adjoint`` aims by one gradient through
many rounds of a ``forecast``, ``fltrust`` climbs by differences along random directions,
``back_gradient`` by gradients through training, which ``through_training`` has.
"""

from fedjax_robust.attacks.optimised.adjoint import adjoint, aimed, steepest
from fedjax_robust.attacks.optimised.ascent import Found, best_of, maximise
from fedjax_robust.attacks.optimised.back_gradient import back_gradient_points
from fedjax_robust.attacks.optimised.first_order import first_order
from fedjax_robust.attacks.optimised.fltrust import fltrust_adaptive
from fedjax_robust.attacks.optimised.forecast import as_one, by_rule, loss_after
from fedjax_robust.attacks.optimised.through_training import reversed_gradient, unrolled_gradient

__all__ = [
    "Found",
    "adjoint",
    "aimed",
    "as_one",
    "back_gradient_points",
    "best_of",
    "by_rule",
    "first_order",
    "fltrust_adaptive",
    "loss_after",
    "maximise",
    "reversed_gradient",
    "steepest",
    "unrolled_gradient",
]
