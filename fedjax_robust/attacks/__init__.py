"""Attacks: what malicious clients send, each made by a lower-case factory.

``poisons`` change the batches that clients train on, ``backdoors`` are triggers and data with them,
``objectives`` replace the loss, ``divisions`` share out one model among attackers, ``repair_aware`` are
attacks on ``fedjax_robust.repairs``, and ``optimised`` has those that climb an objective step by step.
``directions`` and ``searches`` are for attacks that move one row along a line.
"""

from fedjax_robust.attacks import (
    backdoors,
    directions,
    divisions,
    objectives,
    optimised,
    poisons,
    repair_aware,
    searches,
)
from fedjax_robust.attacks.alie import alie
from fedjax_robust.attacks.alternating import (
    alternating_minimisation,
    explicit_boosting,
    stealthy_boosting,
)
from fedjax_robust.attacks.anti_cge import anti_cge
from fedjax_robust.attacks.byz_mean import byz_mean
from fedjax_robust.attacks.crafted import data_poisoning, gaussian, no_attack
from fedjax_robust.attacks.fang_krum import fang_krum_full, fang_krum_partial
from fedjax_robust.attacks.fang_trim import fang_trim_deviation, fang_trim_full, fang_trim_partial
from fedjax_robust.attacks.free_riders import (
    free_rider,
    free_rider_advanced,
    free_rider_delta,
    free_rider_disguised,
    free_rider_random,
)
from fedjax_robust.attacks.ipm import ipm
from fedjax_robust.attacks.line_search import line_search
from fedjax_robust.attacks.linear_combination import linear_combination
from fedjax_robust.attacks.mimic import mimic, mimic_one
from fedjax_robust.attacks.min_max import min_max, min_sum
from fedjax_robust.attacks.optimised.adjoint import adjoint, aimed
from fedjax_robust.attacks.optimised.first_order import first_order
from fedjax_robust.attacks.optimised.fltrust import fltrust_adaptive
from fedjax_robust.attacks.poisoned_fl import poisoned_fl
from fedjax_robust.attacks.replacement import model_replacement, scaling, train_and_scale
from fedjax_robust.attacks.rop import rop
from fedjax_robust.attacks.schedule import in_rounds
from fedjax_robust.attacks.sign_flip import sign_flip, sign_flip_first, sign_flip_mean
from fedjax_robust.attacks.simple import constant, noise
from fedjax_robust.attacks.tailored import tailored_displacement, tailored_selection

__all__ = [
    "adjoint",
    "aimed",
    "alie",
    "alternating_minimisation",
    "anti_cge",
    "backdoors",
    "byz_mean",
    "constant",
    "data_poisoning",
    "directions",
    "divisions",
    "explicit_boosting",
    "fang_krum_full",
    "fang_krum_partial",
    "fang_trim_deviation",
    "fang_trim_full",
    "fang_trim_partial",
    "first_order",
    "fltrust_adaptive",
    "free_rider",
    "free_rider_advanced",
    "free_rider_delta",
    "free_rider_disguised",
    "free_rider_random",
    "gaussian",
    "in_rounds",
    "ipm",
    "line_search",
    "linear_combination",
    "mimic",
    "mimic_one",
    "min_max",
    "min_sum",
    "model_replacement",
    "no_attack",
    "noise",
    "objectives",
    "optimised",
    "poisoned_fl",
    "poisons",
    "repair_aware",
    "rop",
    "scaling",
    "searches",
    "sign_flip",
    "sign_flip_first",
    "sign_flip_mean",
    "stealthy_boosting",
    "tailored_displacement",
    "tailored_selection",
    "train_and_scale",
]
