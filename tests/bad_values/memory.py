"""Attacks with a memory or by training."""

from __future__ import annotations

import numpy as np

from bad_values.kinds import (
    CLIENT,
    KEY,
    NAN,
    POOL,
    TASK,
    Line,
    X,
    array,
    boolean,
    count,
    examples,
    fraction,
    function,
    key,
    not_negative,
    number,
    other,
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
RESPONSES = X[:, 0]
CLEAN = {"x": X, "y": RESPONSES}
CLEAN_KINDS = {"x": array(), "y": array(fixed=(0,))}
BOUNDS = other(
    ("None", None), ("a number", 1.0), ("three", (0, 1, 2)), ("reversed", (1.0, 0.0)),
    ("NaN", (NAN, 1.0)), ("texts", ("0", "1")),
)  # fmt: skip
START = other(
    ("x alone", X[:2]), ("3", 3), ("one more", (X[:3], RESPONSES[:3])),
    ("narrower", (X[:2, 1:], RESPONSES[:2])), ("texts", ("x", "y")),
)  # fmt: skip
KKT = CLEAN | {"poison_x": X[:3], "poison_y": RESPONSES[:3], "ridge": 0.1}
KKT_KINDS = CLEAN_KINDS | {
    "poison_x": array(fixed=(0, 1)), "poison_y": array(fixed=(0,)), "ridge": not_negative()
}  # fmt: skip
POINTS = CLEAN | {
    "key": KEY, "points": 2, "objective": None, "ridge": 0.1, "sweeps": 2, "step": 0.1,
    "bounds": (0.0, 1.0), "move_responses": True, "project": None,
    "start": (X[:2], RESPONSES[:2]),
}  # fmt: skip
POINTS_KINDS = CLEAN_KINDS | {
    "key": key(), "points": count(1), "objective": function(optional=True),
    "ridge": not_negative(), "sweeps": count(1), "step": positive(), "bounds": BOUNDS,
    "move_responses": boolean(), "project": function(optional=True), "start": START,
}  # fmt: skip
NODES = {"x": X.reshape(3, 4, 4), "y": RESPONSES.reshape(3, 4), "mask": np.ones((3, 4), np.float32)}
COUPLED = NODES | {"coupling": np.eye(3, dtype=np.float32), "strength": 1.0, "ridge": 0.1}
COUPLED_KINDS = {
    "x": array(), "y": array(fixed=(0, 1)), "mask": array(fixed=(0, 1), optional=True),
    "coupling": array(fixed=(0, 1), optional=True), "strength": not_negative(), "ridge": positive(),
}  # fmt: skip
NODE_IDS = other(
    ("None", None), ("text", "a"), ("one node", 1), ("no nodes", []), ("fractions", [0.5]),
    ("twice", [0, 0]), ("beyond", [3]), ("negative", [-1]), ("bool", [True]),
)  # fmt: skip


def first(model):
    return model[0]


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
    "attacks.optimised.at2fl_points": Line(
        COUPLED | {
            "key": KEY, "points": 2, "sources": [0, 1], "targets": [2], "iterations": 1, "step": 1.0,
            "bounds": (0.0, 1.0), "start": (X[:4].reshape(2, 2, 4), RESPONSES[:4].reshape(2, 2)),
        },
        COUPLED_KINDS | {
            "key": key(),
            "points": count(1),
            "sources": NODE_IDS,
            "targets": NODE_IDS,
            "iterations": count(1),
            "step": positive(),
            "bounds": BOUNDS,
            "start": START,
        },
        run_good=False,
    ),
    "attacks.optimised.coupled_ridge": Line(COUPLED, COUPLED_KINDS),
    "attacks.optimised.inverse_flip_points": Line(
        CLEAN | {"key": KEY, "points": 2}, CLEAN_KINDS | {"key": key(), "points": count(1)}
    ),
    "attacks.optimised.kkt_gradient": Line(
        {"objective": first} | KKT, {"objective": function()} | KKT_KINDS
    ),
    "attacks.optimised.mean_squared_error": Line(CLEAN, CLEAN_KINDS),
    "attacks.optimised.official_kkt_gradient": Line(
        {"objective": first} | KKT, {"objective": function()} | KKT_KINDS
    ),
    "attacks.optimised.official_regression_points": Line(
        POINTS | {"shrink": 0.5, "tries": 2},
        POINTS_KINDS | {"shrink": fraction(0.0), "tries": count(1)},
        run_good=False,
    ),
    "attacks.optimised.regression_points": Line(POINTS, POINTS_KINDS, run_good=False),
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
    "data.trim_regression": Line(
        CLEAN | {"count": 8, "ridge": 0.1, "steps": 2, "start": np.ones(12, bool)},
        CLEAN_KINDS | {
            "count": count(1, 12),
            "ridge": not_negative(),
            "steps": count(1),
            "start": array("b", fixed=(0,), optional=True),
        },
        run_good=False,
    ),
}
