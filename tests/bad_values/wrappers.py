"""The lines of what stands before or after other rules."""

from __future__ import annotations

import numpy as np

from bad_values.kinds import (
    KEY,
    NAN,
    PARAMS,
    TASK,
    Kind,
    Line,
    X,
    array,
    boolean,
    count,
    fraction,
    function,
    key,
    not_negative,
    part,
    positive,
)


def or_function(kind: Kind) -> Kind:
    return Kind(lambda valid: (p for p in kind.bad(valid) if p[0] != "a function"), kind.good)


def within(low: float, high: float) -> Kind:
    """Arrays of any shape; numbers outside of the interval, or NaN, are refused."""
    arrays = array(rank=False)

    def values(valid):
        yield from arrays.bad(valid)
        for value in (low - 0.5, high + 0.5, NAN):
            yield str(value), np.full(np.shape(valid), value)

    return Kind(values, arrays.good)


BASED = {"base": part(optional=True)}

# fmt: off
TABLE: dict[str, Line | list[Line]] = {
    "aggregators.arc": Line({"f": 1}, {"f": count(), **BASED}),
    "aggregators.bucketing": Line(
        {"size": 2, "order": lambda key, ids: ids},
        {"size": count(1), "order": function(), **BASED},
    ),
    "aggregators.centered_clipping": Line(
        {"bound": 0.5, "steps": 2}, {"bound": positive(), "steps": count(1)}
    ),
    "aggregators.clipped_clustering": Line({"memory": 20}, {"memory": count(1), **BASED}),
    "aggregators.crfl": Line(
        {"bound": 0.5, "noise": 0.1, "rounds": 3},
        {
            "bound": or_function(positive()), "noise": not_negative(),
            "rounds": count(1, optional=True), **BASED,
        },
    ),
    "aggregators.crfl_radius": Line(
        {
            "p_a": np.array([0.8, 0.7]), "p_b": np.array([0.1, 0.2]), "noise": 0.1, "smoothing": 0.1,
            "bounds": np.array([1.0, 2.0]), "lipschitz": 1.5, "attackers": np.array([0.1]),
        },
        {
            "p_a": within(0, 1), "p_b": within(0, 1), "noise": positive(), "smoothing": positive(),
            "bounds": array(finite=True), "lipschitz": positive(), "attackers": array(finite=True),
        },
    ),
    "aggregators.crfl_shares": Line(
        {"votes": np.array([[3, 2, 1]]), "alpha": 0.01},
        {"votes": array(rank=False), "alpha": fraction(0.0, 1.0)},
    ),
    "aggregators.crfl_votes": Line(
        {"task": TASK, "params": PARAMS, "x": X, "key": KEY, "noise": 0.1, "copies": 2},
        {
            "task": part(), "params": array("F"), "x": array(rank=False), "key": key(),
            "noise": not_negative(), "copies": count(1),
        },
    ),
    "aggregators.nnm": Line({"f": 1}, {"f": count(), **BASED}),
    "aggregators.rlr": Line({"threshold": 2.0}, {"threshold": not_negative(), **BASED}),
    "aggregators.sequential_clipping": Line(
        {"bound": 0.5, "size": 3, "means": True, "order": lambda key, ids: ids},
        {"bound": positive(), "size": count(1), "means": boolean(), "order": function()},
    ),
}
# fmt: on
