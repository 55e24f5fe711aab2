"""Attacks with a memory or by training."""

from __future__ import annotations

import numpy as np

from bad_values.kinds import (
    CLIENT,
    POOL,
    TASK,
    Line,
    array,
    boolean,
    count,
    examples,
    fraction,
    not_negative,
    number,
    part,
    positive,
)

BOOSTED = {"task": TASK, "examples": POOL, "learning_rate": 0.1, "boost": 10.0, "steps": 2}
BOOSTED_KINDS = {
    "task": part(),
    "examples": examples(),
    "learning_rate": positive(),
    "boost": positive(),
    "steps": count(1),
}
STEALTHY = {
    "batch_size": 2,
    "rho": 1e-4,
    "reference": CLIENT,
    "share": 0.1,
    "only": np.ones(15, bool),
}
STEALTHY_KINDS = {
    "batch_size": count(1, optional=True),
    "rho": not_negative(),
    "reference": part(optional=True),
    "share": fraction(optional=True),
    "only": array("b", optional=True),
}

# fmt: off
TABLE = {
    "attacks.alternating_minimisation": Line(
        BOOSTED | {"benign_steps": 2} | STEALTHY,
        BOOSTED_KINDS | {"benign_steps": count(1)} | STEALTHY_KINDS,
    ),
    "attacks.explicit_boosting": Line(BOOSTED, BOOSTED_KINDS),
    "attacks.free_rider": Line({}, {}),
    "attacks.free_rider_advanced": Line(
        {"cosine": 0.5, "noisy": 0.7, "n": 10, "first": 1e-3},
        {
            "cosine": positive(),
            "noisy": fraction(0.0),
            "n": count(1, optional=True),
            "first": not_negative(),
        },
    ),
    "attacks.free_rider_delta": Line(
        {"std": 1e-3, "first": 1e-3}, {"std": not_negative(), "first": not_negative()}
    ),
    "attacks.free_rider_disguised": Line(
        {"gamma": 1.0, "k": 1.0, "first": 1e-3},
        {"gamma": not_negative(), "k": positive(), "first": positive()},
    ),
    "attacks.free_rider_random": Line({"bound": 0.1}, {"bound": positive()}),
    "attacks.mimic": Line(
        {"warmup": 2, "smallest": False, "start": np.ones(15, np.float32)},
        {"warmup": count(1), "smallest": boolean(), "start": array(optional=True)},
    ),
    "attacks.mimic_one": Line({"client": 2}, {"client": count()}),
    "attacks.poisoned_fl": Line(
        {
            "scale": 8.0, "period": 50, "shrink": 0.7, "smallest": 0.5, "quantile": 0.9,
            "signs": np.ones(15, np.float32),
        },
        {
            "scale": positive(),
            "period": count(1),
            "shrink": fraction(0.0),
            "smallest": not_negative(),
            "quantile": fraction(0.0, 1.0),
            "signs": array(optional=True),
        },
    ),
    "attacks.rop": [
        Line(
            {"length": 0.5, "angle": 270.0, "location": 1.0, "reference": 0.9, "partial": False},
            {
                "length": positive(optional=True),
                "angle": number(),
                "location": fraction(),
                "reference": fraction(),
                "partial": boolean(),
            },
        ),
        Line({"relative": 0.5}, {"relative": positive(optional=True)}),
    ],
    "attacks.stealthy_boosting": Line(BOOSTED | STEALTHY, BOOSTED_KINDS | STEALTHY_KINDS),
}
