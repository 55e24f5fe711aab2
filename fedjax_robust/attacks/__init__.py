"""Attacks: what malicious clients send, each made by a lower-case factory.

``poisons`` change the batches that clients train on, ``backdoors`` are triggers and data with them,
``objectives`` replace the loss, ``divisions`` share out one model among attackers, ``repair_aware`` are
attacks on ``fedjax_robust.repairs``, and ``optimised`` has those that climb an objective step by step.
"""

from fedjax_robust.attacks import backdoors, divisions, objectives, optimised, poisons, repair_aware
from fedjax_robust.attacks.crafted import data_poisoning, gaussian, no_attack
from fedjax_robust.attacks.fang_krum import fang_krum_full, fang_krum_partial
from fedjax_robust.attacks.fang_trim import fang_trim_deviation, fang_trim_full, fang_trim_partial
from fedjax_robust.attacks.optimised.first_order import first_order
from fedjax_robust.attacks.optimised.fltrust import fltrust_adaptive
from fedjax_robust.attacks.replacement import model_replacement, scaling, train_and_scale
from fedjax_robust.attacks.schedule import in_rounds

__all__ = [
    "backdoors",
    "data_poisoning",
    "divisions",
    "fang_krum_full",
    "fang_krum_partial",
    "fang_trim_deviation",
    "fang_trim_full",
    "fang_trim_partial",
    "first_order",
    "fltrust_adaptive",
    "gaussian",
    "in_rounds",
    "model_replacement",
    "no_attack",
    "objectives",
    "optimised",
    "poisons",
    "repair_aware",
    "scaling",
    "train_and_scale",
]
