"""Rules that remember clients."""

from __future__ import annotations

from bad_values.kinds import Line, boolean, fraction, not_negative, positive

# fmt: off
TABLE = {
    "aggregators.foolsgold": Line(
        {"summed": True, "kappa": 1.0}, {"summed": boolean(), "kappa": positive()}
    ),
    "aggregators.afa": Line(
        {"xi": 2.0, "more": 0.5, "block": 0.95, "prior": 3.0, "on_models": False},
        {"xi": positive(), "more": not_negative(), "block": fraction(0.0), "prior": positive(),
         "on_models": boolean()},
    ),
}
