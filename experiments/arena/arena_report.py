"""What the arena's rows are made into: heat map, table of worst cases, files for ``make report``."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fedjax_robust import report
from fedjax_robust.report.results import write_bytes

PARTIAL = ("partial", "partial, rule")
NONE = "none"


def write(folder: Path, rows: Sequence[dict[str, Any]], **about: Any) -> str:
    """Write ``rows``, ``about.json``, ``table.md``, ``worst.md`` and ``heat_map.png``.

    Returns:
      The table of worst cases.
    """
    means = {cell: s.mean for cell, s in report.summarize(rows, "rule", "attack").items()}
    knows = {row["attack"]: row["knowledge"] for row in rows}
    cost = costs(folder)
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
    report.plot_heat_map(
        folder / "heat_map.png",
        rows,
        lines,
        [[NONE] if NONE in knows else [], partial, full],
        beside={"": "cost", **{name: f"{ratio:.1f}" for name, ratio in cost.items()}}
        if cost
        else None,
        title=about["title"] + " – left: partial knowledge, right: full",
        range_of=(0.0, 0.9),
    )
    text = report.markdown_table([line_of(name, means, knows, cost) for name in lines])
    text = f"{HEAD}\n\n{text}"
    write_bytes(folder / "worst.md", text.encode())
    return text


NOTES = (
    "Rules in the order of their worst case, best first. Testing error of the last model; 1 for one that "
    "is not finite."
)
HEAD = (
    "Testing error, mean over the seeds: without attack, and the worst attack that knows only its own "
    "clients, or more; then its name. *cost*: time of a call relative to the mean's."
)


def worst_first(means: dict[report.Cell, float]) -> list[str]:
    """The rules, the one with the smallest worst case first."""
    rules = dict.fromkeys(rule for rule, _ in means)
    worst = {name: max(v for (rule, _), v in means.items() if rule == name) for name in rules}
    return sorted(rules, key=lambda name: (worst[name], name))


def line_of(
    name: str, means: dict[report.Cell, float], knows: dict[str, str], cost: dict[str, float]
) -> dict[str, Any]:
    """A rule's line of the table of worst cases."""

    def worst(partial: bool) -> str:
        own = {
            attack: error
            for (rule, attack), error in means.items()
            if rule == name and attack != NONE and (knows[attack] in PARTIAL) == partial
        }
        if not own:
            return "–"
        attack = max(own, key=lambda a: own[a])
        return f"{own[attack]:.3f} ({attack})"

    nothing = means.get((name, NONE))
    return {
        "rule": name,
        "no attack": "–" if nothing is None else f"{nothing:.3f}",
        "worst, partial knowledge": worst(True),
        "worst, full knowledge": worst(False),
        "cost": f"{cost[name]:.1f}" if name in cost else "–",
    }


def costs(folder: Path) -> dict[str, float]:
    """Time of a call of each rule relative to the mean's, if it was measured."""
    if not (folder / "costs.json").exists():
        return {}
    ms = {row["rule"]: float(row["ms"]) for row in report.read_rows(folder / "costs")}
    return {name: value / ms["mean"] for name, value in ms.items()} if "mean" in ms else {}
