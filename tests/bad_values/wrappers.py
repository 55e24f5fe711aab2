"""The lines of what stands before or after other rules."""

from __future__ import annotations

from bad_values.kinds import Line, count, function, part, positive

BASED = {"base": part(optional=True)}

# fmt: off
TABLE: dict[str, Line | list[Line]] = {
    "aggregators.bucketing": Line(
        {"size": 2, "order": lambda key, ids: ids},
        {"size": count(1), "order": function(), **BASED},
    ),
    "aggregators.centered_clipping": Line(
        {"bound": 0.5, "steps": 2}, {"bound": positive(), "steps": count(1)}
    ),
}
# fmt: on
