"""What the arena's rows are made into: a heat map, and a table of worst cases."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fedjax_robust import report
from fedjax_robust.report.results import write_bytes

PARTIAL = ("partial", "partial, rule")
NONE = "none"
CASES = ("no attack", "worst, partial knowledge", "worst, full knowledge")
NOTES = (
    "Rules in the order of their worst case, best first. Testing error of the last model; 1 for one that "
    "is not finite."
)
WORST = (
    "Without attack, and under the attack with the largest mean error: of those that know only their own "
    "clients, and of those that know more."
)


def write(folder: Path, rows: Sequence[dict[str, Any]], **about: Any) -> str:
    """Write the matrix and its heat map to ``folder``, and worst cases to ``folder``-worst.

    Args:
      folder: of the study.
      rows: of its runs, with ``knowledge``.
      **about: ``title``, ``command`` and ``settings`` of ``report.Table``.

    Returns:
      The table of worst cases.
    """
    means = {cell: s.mean for cell, s in report.summarize(rows, "rule", "attack").items()}
    knows = {row["attack"]: row["knowledge"] for row in rows}
    lines = worst_first(means)
    rows = sorted(rows, key=lambda row: lines.index(row["rule"]))
    report.write_rows(folder / "rows", rows)
    table = report.Table(line="rule", columns="attack", notes=NOTES, **about)
    report.write_about(folder, table)
    write_bytes(folder / "table.md", report.table_text(table, rows).encode())
    partial, full = (
        sorted(a for a in knows if a != NONE and (knows[a] in PARTIAL) == is_partial)
        for is_partial in (True, False)
    )
    cost = costs(folder)
    report.plot_heat_map(
        folder / "heat_map.png",
        rows,
        lines,
        [[NONE] if NONE in knows else [], partial, full],
        beside={"": "cost", **{name: f"{x:.1f}" for name, x in cost.items()}} if cost else None,
        title=about["title"] + " – left: partial knowledge, right: full",
        range_of=(0.0, 0.9),
    )
    return report.write_table(
        folder.with_name(f"{folder.name}-worst"),
        worst_rows(rows, means, knows),
        {},
        **{**about, "title": f"{about['title']}: worst cases", "line": "rule", "columns": "case"},
        notes=WORST,
    )


def worst_first(means: dict[report.Cell, float]) -> list[str]:
    """The rules, the one with the smallest worst case first."""
    rules = dict.fromkeys(rule for rule, _ in means)
    worst = {name: max(v for (rule, _), v in means.items() if rule == name) for name in rules}
    return sorted(rules, key=lambda name: (worst[name], name))


def worst_attack(
    rule: str, case: str, means: dict[report.Cell, float], knows: dict[str, str]
) -> str | None:
    """The attack that is meant by one of ``CASES``, None if there is none of its kind."""
    if case == CASES[0]:
        return NONE if (rule, NONE) in means else None
    own = {
        attack: error
        for (name, attack), error in means.items()
        if name == rule and attack != NONE and (knows[attack] in PARTIAL) == (case == CASES[1])
    }
    return max(own, key=lambda a: own[a]) if own else None


def worst_rows(
    rows: Sequence[dict[str, Any]], means: dict[report.Cell, float], knows: dict[str, str]
) -> list[dict[str, Any]]:
    """The runs of each rule's worst cases, with ``case``."""
    chosen = {
        (rule, worst_attack(rule, case, means, knows)): case
        for case in CASES
        for rule in dict.fromkeys(rule for rule, _ in means)
    }
    return [
        {**row, "case": chosen[row["rule"], row["attack"]]}
        for row in rows
        if (row["rule"], row["attack"]) in chosen
    ]


def costs(folder: Path) -> dict[str, float]:
    """Time of a call of each rule relative to the mean's, if it was measured."""
    if not (folder / "costs.json").exists():
        return {}
    ms = {row["rule"]: float(row["ms"]) for row in report.read_rows(folder / "costs")}
    return {name: value / ms["mean"] for name, value in ms.items()} if "mean" in ms else {}
