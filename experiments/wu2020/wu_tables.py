"""Wu et al.'s tables and figures, from the rows of ``pruning.py``'s runs."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import wu_printed
from wu_printed import STAGES, fractions

from fedjax_robust import report

Result = Mapping[str, Any]
"""A run's row: its settings, and the stages' measures."""
Line = Callable[[Result], str]
"""The name of a run's line."""
Series = tuple[str, Result, Sequence[float], Mapping[str, Sequence[float]]]
"""A figure's line: its name, run, x values, {panel: values}."""


class Page(NamedTuple):
    """What the tables and figures of a part share."""

    folder: Path
    command: str
    notes: str
    settings: Mapping[str, Any]


def pair_name(result: Result) -> str:
    return f"{result['victim']}-{result['target']}"


def origin(*results: Result) -> dict[str, Any]:
    """The provenance of a row that was made of these runs, as far as it is one; the latest time."""
    of = {name: {r[name] for r in results if name in r} for name in provenance_columns()}
    return {
        name: max(values)
        for name, values in of.items()
        if len(values) == 1 or (values and name == "utc_time")
    }


@functools.cache
def provenance_columns() -> tuple[str, ...]:
    return tuple(report.provenance())


# --- Rows ----------------------------------------------------------------------------------------


def run_rows(results: Sequence[Result]) -> list[dict[str, Any]]:
    """One row per run: its settings, and a column for each number of a stage and each curve of Delta."""
    rows = []
    for result in results:
        row = {name: v for name, v in result.items() if not isinstance(v, Mapping)}
        for stage, measured in result.items():
            if isinstance(measured, Mapping) and not stage.endswith(("prefixes", "training")):
                row |= {f"{stage}, {what}": value for what, value in measured.items()}
        rows.append({name: value for name, value in row.items() if name != "keep"})
    return rows


def origins_of_seeds(results: Sequence[Result]) -> dict[int, dict[str, Any]]:
    seeds = dict.fromkeys(result["seed"] for result in results)
    return {seed: origin(*(r for r in results if r["seed"] == seed)) for seed in seeds}


def table_rows(
    results: Sequence[Result], stages: Sequence[str], line: Line
) -> list[dict[str, Any]]:
    """One row per run, stage and measure, and each seed's averages."""
    rows = []
    sums: dict[tuple[int, str], list[float]] = {}
    origins = origins_of_seeds(results)
    for result in results:
        for stage in stages:
            for what in ("test", "attack"):
                column = f"{STAGES[stage]}, {what}"
                value = float(result[stage][what])
                sums.setdefault((result["seed"], column), []).append(value)
                row = {"line": line(result), "column": column, "value": value}
                row["number"] = result[stage].get("number", 0)
                rows.append(row | {"seed": result["seed"]} | origin(result))
    rows += [
        {"line": "average", "column": column, "value": float(np.mean(values)), "seed": seed}
        | origins[seed]
        for (seed, column), values in sums.items()
    ]
    return rows


FLOORS = (0.01, 0.02, 0.03, 0.04, 0.05)
"""How far below the trained model's accuracy."""


def stopping_rows(results: Sequence[Result]) -> list[dict[str, Any]]:
    """Averages over the runs of each seed, by what stops AW; read off the stored curves.

    That a step costs more than a point, as in the other tables, nothing (a fixed Delta), or an accuracy
    too far below the trained model's. Where even the first Delta breaks the rule, it is taken here.
    """
    sums: dict[tuple[int, str, str], list[float]] = {}
    origins = origins_of_seeds(results)
    for result in results:
        trained = result["RV prefixes"]["validation"][0]
        for stage in ("AW", "RV + AW", "FT + AW"):
            curve, taken = result[f"{stage} deltas"], result[stage]["delta"]
            accuracies, deltas = np.array(curve["validation"]), list(result["deltas"])
            at = {"a step costs > 0.01": deltas.index(taken) if taken in deltas else 0}
            at |= {f"Delta = {delta:g}": deltas.index(delta) for delta in (3, 2.5)}
            for less in FLOORS:
                below = np.append(accuracies < trained - less, True)
                at[f"accuracy < trained - {less:g}"] = max(int(np.argmax(below)) - 1, 0)
            for rule, i in at.items():
                for what in ("validation", "attack"):
                    key = result["seed"], rule, f"{STAGES[stage]}, {what}"
                    sums.setdefault(key, []).append(float(curve[what][i]))
    return [
        {"AW stops": rule, "column": column, "value": float(np.mean(values)), "seed": seed}
        | origins[seed]
        for (seed, rule, column), values in sums.items()
    ]


def counts(results: Sequence[Result], stages: Sequence[str]) -> Iterator[str]:
    """How many neurons and weights went, and how often the backdoor with them."""
    for stage in stages:
        if "number" in results[0][stage]:
            numbers = [float(result[stage]["number"]) for result in results]
            what = "Neurons pruned" if stage in ("RV", "MV") else "Weights zeroed"
            yield (
                f"{what}, {STAGES[stage]}: {np.mean(numbers):.1f} on average "
                f"({min(numbers):g} to {max(numbers):g})."
            )
        if stage != "trained":
            low = sum(result[stage]["attack"] < 0.1 for result in results)
            yield f"Attack success below 10 % after {STAGES[stage]}: {low} of {len(results)}."


# --- One table, one figure -----------------------------------------------------------------------


def table(
    page: Page,
    name: str,
    title: str,
    results: Sequence[Result],
    stages: Sequence[str],
    paper: Mapping[report.Cell, float],
    line: Line = pair_name,
    label: str = "pair",
) -> str:
    """Write one table; ``line`` names a run's line, ``label`` what the lines are."""
    rows = table_rows(results, stages, line)
    missing = {name for name, _ in paper} - {"average"} - {row["line"] for row in rows}
    if missing or not paper:  # an average of other runs than the paper's would not compare
        rows = [row for row in rows if row["line"] != "average"]
    for row in rows:
        row[label] = row.pop("line")
    notes = " ".join([page.notes, *counts(results, stages)])
    return _written(page, name, title, rows, paper, label, notes)


def stopping(page: Page, results: Sequence[Result]) -> str:
    """Write the averages by what stops AW."""
    title = "what stops the adjusting of extreme weights"
    notes = f"{page.notes} Averages of {', '.join(sorted({pair_name(r) for r in results}))}."
    return _written(page, "stopping", title, stopping_rows(results), {}, "AW stops", notes)


def _written(
    page: Page,
    name: str,
    title: str,
    rows: Sequence[Result],
    paper: Mapping[report.Cell, float],
    line: str,
    notes: str,
) -> str:
    return report.write_table(
        page.folder / name,
        rows,
        paper,
        title=f"Wu et al. (2020), {title}",
        command=page.command,
        line=line,
        columns="column",
        value="value",
        metric="accuracy",
        notes=notes,
        settings=page.settings,
    )


def figure(page: Page, name: str, title: str, lines: Sequence[Series], x: str, xlabel: str) -> str:
    """Draw one figure."""
    rows = [
        {"line": line, "seed": run["seed"], x: float(at), "measure": measure}
        | {"value": float(value)}
        | origin(run)
        for line, run, values, panels in lines
        for measure, series in panels.items()
        for at, value in zip(values, series, strict=True)
    ]
    return report.write_sweep(
        page.folder / name,
        rows,
        x=x,
        xlabel=xlabel,
        panels="measure",
        lines="line",
        value="value",
        metric="accuracy",
        title=f"Wu et al. (2020), {title}",
        command=page.command,
        notes=page.notes,
        settings=page.settings,
    )


def prefix_lines(results: Sequence[Result]) -> list[Series]:
    """By the number of neurons pruned."""
    return [
        (f"{vote}, {pair_name(r)}", r, range(len(r[curve]["attack"])), r[curve])
        for r in results
        for vote, curve in (("RV", "RV prefixes"), ("MV", "MV prefixes"))
    ]


def delta_lines(results: Sequence[Result], name: Line) -> list[Series]:
    """By Delta, after pruning."""
    return [(name(r), r, r["deltas"], r["RV + AW deltas"]) for r in results]


def training_lines(results: Sequence[Result], name: Line) -> list[Series]:
    """By the round of training."""
    panels = ("validation", "attack")
    return [
        (name(r), r, r["training"]["round"], {what: r["training"][what] for what in panels})
        for r in results
    ]


# --- The parts -----------------------------------------------------------------------------------

WHOLE = ("trained", "RV", "RV + AW", "FT + AW")
ALONE = ("AW", "AW, Delta 3")


def patterns(page: Page, results: Sequence[Result]) -> list[str]:
    stages = ("trained", "RV", "RV + AW, Delta 3")
    title, paper = (
        "Table I, triggers of 1 to 9 pixels, 9-1",
        fractions(wu_printed.TABLE_1, stages, (4, 7)),
    )

    def line(run: Result) -> str:
        return str(run["pixels"])

    return [table(page, "table1", title, results, stages, paper, line, "pixels")]


def pairs(page: Page, results: Sequence[Result]) -> list[str]:
    votes, without = ("trained", "RV", "MV"), ("trained", "RV + AW", "FT + AW")
    two, four = (
        fractions(wu_printed.TABLE_2, votes, (4, 7)),
        fractions(wu_printed.TABLE_4, without),
    )
    shown = [r for r in results if pair_name(r) in ("9-0", "9-2")] or results[:1]
    prefixes, deltas = prefix_lines(shown), delta_lines(shown, pair_name)
    titles = {
        2: "Table II, pruning, MNIST",
        4: "Table IV, the whole defence without and with fine-tuning, MNIST",
        5: "section V-E2, adjusting extreme weights alone in the network with 20 and 50 filters",
    }
    return [
        table(page, "table2", titles[2], results, votes, two),
        table(page, "table4", titles[4], results, without, four),
        table(page, "aw-alone", titles[5], results, ALONE, {}),
        stopping(page, results),
        figure(page, "figure4", "Figure 4, neurons pruned", prefixes, "pruned", "neurons pruned"),
        figure(
            page, "figure5", "Figure 5, extreme weights after pruning", deltas, "delta", "Delta"
        ),
    ]


def concise(page: Page, results: Sequence[Result]) -> list[str]:
    title = "Table III, adjusting extreme weights alone, 8 and 16 filters, MNIST"
    paper = fractions(wu_printed.TABLE_3, ("AW",), (2,))
    return [table(page, "table3", title, results, ALONE, paper), stopping(page, results)]


def fashion(page: Page, results: Sequence[Result]) -> list[str]:
    paper = fractions(wu_printed.TABLE_5, WHOLE)
    return [table(page, "table5", "Table V, Fashion-MNIST", results, WHOLE, paper)]


def cifar10(page: Page, results: Sequence[Result]) -> list[str]:
    paper = fractions(wu_printed.TABLE_6, WHOLE)
    return [table(page, "table6", "Table VI, CIFAR-10", results, WHOLE, paper)]


def labels(page: Page, results: Sequence[Result]) -> list[str]:
    title = "Figure 3, training with 3, 5 and 7 labels per client"
    lines = training_lines(results, lambda r: f"{r['labels']} labels")
    return [figure(page, "figure3", title, lines, "round", "round")]


def selected(page: Page, results: Sequence[Result]) -> list[str]:
    def line(run: Result) -> str:
        return f"{run['selected']} of 50"

    title = "Figure 7, extreme weights after pruning, clients per round"
    stages = ("trained", "RV", "AW", "RV + AW", "FT + AW")
    return [
        figure(page, "figure7", title, delta_lines(results, line), "delta", "Delta"),
        table(page, "stages", "Figure 7's runs", results, stages, {}, line, "clients per round"),
    ]


def l2(page: Page, results: Sequence[Result]) -> list[str]:
    title = "Figure 8, L2 penalty on the last convolution"
    lines = training_lines(results, lambda r: f"lambda {r['l2']:g}")
    return [figure(page, "figure8", title, lines, "round", "round")]


def adaptive(page: Page, results: Sequence[Result]) -> list[str]:
    words = {
        "nothing": "no counter-attack",
        "ranks": "reversed rankings",
        "pruning": "pruning-aware",
        "AW": "self-clipping",
    }

    def line(run: Result) -> str:
        return f"{words[run['against']]}, {pair_name(run)}"

    title = "section VI-C, attackers who know the defence"
    return [table(page, "adaptive", title, results, WHOLE, {}, line, "attackers")]


PARTS: dict[str, tuple[str, Callable[[Page, Sequence[Result]], list[str]]]] = {
    "patterns": ("table1", patterns),
    "pairs": ("table2", pairs),
    "concise": ("table3", concise),
    "fashion": ("table5", fashion),
    "cifar10": ("table6", cifar10),
    "labels": ("figure3", labels),
    "selected": ("figure7", selected),
    "l2": ("figure8", l2),
    "adaptive": ("adaptive", adaptive),
}
"""The folder of a part's first table or figure, and what makes them all."""


def write(part: str, results: Sequence[Result], page: Page) -> list[str]:
    """The tables and figures of one part, as files and as text. ``runs``, beside the rows of the first,
    has everything that was measured, a row per run, with all settings."""
    first, make = PARTS[part]
    report.write_rows(page.folder / first / "runs", run_rows(results))
    return make(page, results)
