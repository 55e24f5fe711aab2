"""Attacks on updates by formula."""

from __future__ import annotations

import numpy as np

from bad_values.kinds import (
    INF,
    MATRIX,
    NAN,
    Line,
    array,
    boolean,
    count,
    fraction,
    function,
    not_negative,
    number,
    of_numbers,
    other,
    part,
    positive,
)
from fedjax_robust import aggregators, attacks

PAIR = {"mean": array(rank=True), "std": array(fixed=(0,))}
DIRECTION = attacks.directions.unit
GRID = {
    "low": positive(),
    "high": positive(),
    "points": count(2),
    "steps": count(),
    "at_once": count(1),
}
EXPANDING = {
    "evals": count(1),
    "start": not_negative(),
    "delta": positive(),
    "ratio": fraction(0.5, 1.0),
}


def loss(params, batch):
    return params.sum()


TABLE: dict[str, Line | list[Line]] = {
    "attacks.alie": [
        Line(
            {"z": 1.0, "sign": -1.0, "ddof": 1, "partial": False},
            {
                "z": number(optional=True),
                "sign": of_numbers((NAN, INF, -INF, 0.0, 0.5, 2.0), False, False),
                "ddof": count(),
                "partial": boolean(),
            },
        ),
        Line({"n": 50, "c": 24}, {"n": count(48), "c": count(1, 25)}),
    ],
    "attacks.anti_cge": Line(
        {"f": 2, "partial": False}, {"f": count(optional=True), "partial": boolean()}
    ),
    "attacks.byz_mean": Line(
        {"attack": attacks.alie(), "partial": False},
        {"attack": part(optional=True), "partial": boolean()},
    ),
    "attacks.constant": Line({"value": 1.0}, {"value": of_numbers((), False, False)}),
    **{
        f"attacks.directions.{name}": Line({"mean": MATRIX[0], "std": MATRIX[1]}, PAIR)
        for name in ("unit", "signs", "deviations")
    },
    "attacks.ipm": Line(
        {"epsilon": 0.5, "partial": False}, {"epsilon": not_negative(), "partial": boolean()}
    ),
    "attacks.line_search": Line(
        {"attack": attacks.ipm, "search": None, "gain": lambda a, m: a[0]},
        {
            "attack": other(
                ("3", 3), ("None", None), ("an attack", attacks.ipm(1.0)), ("a number", lambda x: x)
            ),
            "search": function(optional=True),
            "gain": function(),
        },
    ),
    "attacks.linear_combination": Line(
        {"target": lambda m, p: -m, "weights": np.ones(9, np.float32), "partial": False},
        {
            "target": function(),
            "weights": array(finite=True, optional=True),
            "partial": boolean(),
        },
    ),
    "attacks.min_max": Line(
        {"direction": DIRECTION, "search": None, "partial": False},
        {"direction": function(), "search": function(optional=True), "partial": boolean()},
    ),
    "attacks.min_sum": Line(
        {"direction": DIRECTION, "smallest": False, "search": None, "partial": False},
        {
            "direction": function(),
            "smallest": boolean(),
            "search": function(optional=True),
            "partial": boolean(),
        },
    ),
    "attacks.noise": Line({"std": 2.0}, {"std": positive()}),
    "attacks.objectives.ascent": Line(
        {"loss": loss, "received": MATRIX[0]}, {"loss": function(), "received": other()}
    ),
    "attacks.searches.bisection": Line(
        {"low": 0.1, "high": 10.0, "points": 4, "steps": 2, "at_once": 2}, GRID
    ),
    "attacks.searches.byzantine_momentum": Line(
        {"evals": 4, "start": 0.0, "delta": 1.0, "ratio": 0.8}, EXPANDING
    ),
    "attacks.searches.byzfl": Line(
        {"evals": 4, "start": 0.0, "delta": 1.0, "ratio": 0.8}, EXPANDING
    ),
    "attacks.searches.golden_section": Line(
        {"low": 0.1, "high": 10.0, "points": 4, "steps": 2, "at_once": 2}, GRID
    ),
    "attacks.searches.halving": Line(
        {"start": 10.0, "tolerance": 1e-5}, {"start": positive(), "tolerance": positive()}
    ),
    "attacks.sign_flip": Line({"scale": 1.0}, {"scale": positive()}),
    "attacks.sign_flip_first": Line({"scale": 1.0}, {"scale": positive()}),
    "attacks.sign_flip_mean": Line({"partial": False}, {"partial": boolean()}),
    "attacks.tailored_displacement": Line(
        {"direction": DIRECTION, "search": None, "partial": False},
        {"direction": function(), "search": function(optional=True), "partial": boolean()},
    ),
    "attacks.tailored_selection": Line(
        {"rule": aggregators.krum(1), "direction": DIRECTION, "search": None, "partial": False},
        {
            "rule": part(),
            "direction": function(),
            "search": function(optional=True),
            "partial": boolean(),
        },
    ),
}
