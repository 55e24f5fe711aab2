"""Rules that remember clients."""

from __future__ import annotations

from bad_values.kinds import (
    Line,
    boolean,
    count,
    fraction,
    function,
    not_negative,
    number,
    part,
    positive,
)

# fmt: off
TABLE = {
    "aggregators.contra": Line(
        {"k": 2, "threshold": 0.5, "delta": 0.1, "summed": True},
        {"k": count(1), "threshold": number(), "delta": fraction(), "summed": boolean()},
    ),
    "aggregators.fldetector": Line(
        {"window": 3, "start": 5, "references": 4},
        {"window": count(1), "start": count(), "references": count(2), "base": part(optional=True)},
    ),
    "aggregators.foolsgold": Line(
        {"summed": True, "kappa": 1.0},
        {"summed": boolean(), "kappa": positive(), "features": function(optional=True)},
    ),
    "aggregators.afa": Line(
        {"xi": 2.0, "more": 0.5, "block": 0.95, "prior": 3.0, "on_models": False},
        {"xi": positive(), "more": not_negative(), "block": fraction(0.0), "prior": positive(),
         "on_models": boolean()},
    ),
}
