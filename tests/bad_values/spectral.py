"""The lines of rules that look at subsets and spectra."""

from __future__ import annotations

from bad_values.kinds import (
    MATRIX,
    TASK,
    Line,
    boolean,
    count,
    fraction,
    not_negative,
    part,
    positive,
)

BASED = {"base": part(optional=True)}
assert MATRIX.shape[1] == 15  # the parameters of TASK

# fmt: off
TABLE: dict[str, Line | list[Line]] = {
    "aggregators.caf": Line(
        {"f": 1, "steps": 3, "over_removed": False},
        {"f": count(), "steps": count(1), "over_removed": boolean()},
    ),
    "aggregators.dnc": Line(
        {"f": 1, "iterations": 2, "coordinates": 3, "c": 1.5},
        {
            "f": count(), "iterations": count(1), "coordinates": count(1), "c": positive(), **BASED,
        },
    ),
    "aggregators.flame": Line(
        {"noise": 0.1, "models": False}, {"noise": not_negative(), "models": boolean(), **BASED}
    ),
    "aggregators.lasa": Line(
        {"task": TASK, "sparsity": 0.2, "lambda_n": 1.0, "lambda_s": 2.0},
        {"task": part(), "sparsity": fraction(1.0), "lambda_n": positive(), "lambda_s": positive()},
    ),
    "aggregators.mda": Line({"f": 1}, {"f": count(), **BASED}),
    "aggregators.mean_of_medians": Line(
        {"f": 1, "sigma": 2.0, "batch_size": 3, "delta": 0.5},
        {
            "f": count(), "sigma": positive(), "batch_size": positive(), "delta": fraction(0.0, 1.0),
            **BASED,
        },
    ),
    "aggregators.smea": Line({"f": 1}, {"f": count(), **BASED}),
}
# fmt: on
