"""Valid arguments of every public function, and what kind each of them is, by family."""

from bad_values import (
    ahead,
    first_papers,
    formulas,
    history,
    medians,
    memory,
    spectral,
    validated,
    wrappers,
)
from bad_values.kinds import Line

FAMILIES = (ahead, first_papers, formulas, medians, spectral, validated, wrappers, memory, history)
TABLE: dict[str, Line | list[Line]] = {
    name: line for family in FAMILIES for name, line in family.TABLE.items()
}
assert len(TABLE) == sum(len(family.TABLE) for family in FAMILIES)
