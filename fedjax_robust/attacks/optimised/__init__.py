"""Attacks that climb an objective step by step: ``ascent`` is the loop.

``first_order`` climbs by gradients through the server's rule, ``adjoint`` aims by one gradient through
many rounds of a ``forecast``, ``fltrust`` climbs by differences along random directions,
``back_gradient`` by gradients through training, which ``through_training`` has, ``regression_poisoning``
and ``at2fl`` by those through a linear regression.
"""

from fedjax_robust.attacks.optimised.adjoint import adjoint, aimed, steepest
from fedjax_robust.attacks.optimised.ascent import Found, best_of, maximise
from fedjax_robust.attacks.optimised.at2fl import at2fl_points, coupled_ridge
from fedjax_robust.attacks.optimised.back_gradient import back_gradient_points
from fedjax_robust.attacks.optimised.first_order import first_order
from fedjax_robust.attacks.optimised.fltrust import fltrust_adaptive
from fedjax_robust.attacks.optimised.forecast import as_one, by_rule, loss_after
from fedjax_robust.attacks.optimised.regression_poisoning import (
    inverse_flip_points,
    kkt_gradient,
    mean_squared_error,
    official_kkt_gradient,
    official_regression_points,
    regression_points,
)
from fedjax_robust.attacks.optimised.through_training import reversed_gradient, unrolled_gradient

__all__ = [
    "Found",
    "adjoint",
    "aimed",
    "as_one",
    "at2fl_points",
    "back_gradient_points",
    "best_of",
    "by_rule",
    "coupled_ridge",
    "first_order",
    "fltrust_adaptive",
    "inverse_flip_points",
    "kkt_gradient",
    "loss_after",
    "maximise",
    "mean_squared_error",
    "official_kkt_gradient",
    "official_regression_points",
    "regression_points",
    "reversed_gradient",
    "steepest",
    "unrolled_gradient",
]
