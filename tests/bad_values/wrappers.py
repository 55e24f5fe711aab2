"""The lines of what stands before or after other rules."""

from __future__ import annotations

from bad_values.kinds import Line, count, function, not_negative, part, positive

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
    "aggregators.nnm": Line({"f": 1}, {"f": count(), **BASED}),
    "aggregators.rlr": Line({"threshold": 2.0}, {"threshold": not_negative(), **BASED}),
}
# fmt: on
