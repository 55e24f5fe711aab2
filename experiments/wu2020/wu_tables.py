"""Wu et al.'s tables and figures, from the rows of ``pruning.py``'s runs."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
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
    results: Sequence[Result],
    name: str,
    title: str,
    stages: Sequence[str],
    printed: Mapping[Any, tuple[float, ...]] | None = None,
    numbers: Sequence[int] = (),
    line: Line = pair_name,
    label: str = "pair",
) -> str:
    """Write one table.

    ``printed`` and ``numbers`` are those of ``wu_printed.fractions``, of the first stages; ``line`` names
    a run's line, ``label`` what the lines are.
    """
    paper = {}
    if printed:
        columns = len(next(iter(printed.values()))) - len(numbers)
        paper = fractions(printed, stages[: columns // 2], numbers)
    rows = table_rows(results, stages, line)
    missing = {name for name, _ in paper} - {"average"} - {row["line"] for row in rows}
    if missing or not paper:  # an average of other runs than the paper's would not compare
        rows = [row for row in rows if row["line"] != "average"]
    for row in rows:
        row[label] = row.pop("line")
    notes = " ".join([page.notes, *counts(results, stages)])
    return written(page, name, title, rows, paper, label, notes)


def stopping(page: Page, results: Sequence[Result], name: str) -> str:
    """Write the averages by what stops AW."""
    title = "what stops the adjusting of extreme weights"
    notes = f"{page.notes} Averages of {', '.join(sorted({pair_name(r) for r in results}))}."
    return written(page, name, title, stopping_rows(results), {}, "AW stops", notes)


def written(
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


def figure(
    page: Page,
    results: Sequence[Result],
    name: str,
    title: str,
    lines: Callable[[Sequence[Result]], list[Series]],
    x: str,
    xlabel: str,
) -> str:
    """Draw one figure."""
    rows = [
        {"line": line, "seed": run["seed"], x: float(at), "measure": measure}
        | {"value": float(value)}
        | origin(run)
        for line, run, values, panels in lines(results)
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


def in_the_papers_figures(results: Sequence[Result]) -> Sequence[Result]:
    return [r for r in results if pair_name(r) in ("9-0", "9-2")] or results[:1]


def prefix_lines(results: Sequence[Result]) -> list[Series]:
    """By the number of neurons pruned."""
    return [
        (f"{vote}, {pair_name(r)}", r, range(len(r[curve]["attack"])), r[curve])
        for r in in_the_papers_figures(results)
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
AGAINST = {
    "nothing": "no counter-attack",
    "ranks": "reversed rankings",
    "pruning": "pruning-aware",
    "AW": "self-clipping",
}


def of_50(run: Result) -> str:
    return f"{run['selected']} of 50"


PARTS: dict[str, tuple[functools.partial[str], ...]] = {
    "patterns": (
        partial(
            table,
            name="table1",
            title="Table I, triggers of 1 to 9 pixels, 9-1",
            stages=("trained", "RV", "RV + AW, Delta 3"),
            printed=wu_printed.TABLE_1,
            numbers=(4, 7),
            line=lambda run: str(run["pixels"]),
            label="pixels",
        ),
    ),
    "pairs": (
        partial(
            table,
            name="table2",
            title="Table II, pruning, MNIST",
            stages=("trained", "RV", "MV"),
            printed=wu_printed.TABLE_2,
            numbers=(4, 7),
        ),
        partial(
            table,
            name="table4",
            title="Table IV, the whole defence without and with fine-tuning, MNIST",
            stages=("trained", "RV + AW", "FT + AW"),
            printed=wu_printed.TABLE_4,
        ),
        partial(
            table,
            name="aw-alone",
            title="section V-E2, adjusting extreme weights alone in the network with 20 and 50 filters",
            stages=ALONE,
        ),
        partial(stopping, name="stopping"),
        partial(
            figure,
            name="figure4",
            title="Figure 4, neurons pruned",
            lines=prefix_lines,
            x="pruned",
            xlabel="neurons pruned",
        ),
        partial(
            figure,
            name="figure5",
            title="Figure 5, extreme weights after pruning",
            lines=lambda runs: delta_lines(in_the_papers_figures(runs), pair_name),
            x="delta",
            xlabel="Delta",
        ),
    ),
    "concise": (
        partial(
            table,
            name="table3",
            title="Table III, adjusting extreme weights alone, 8 and 16 filters, MNIST",
            stages=ALONE,
            printed=wu_printed.TABLE_3,
            numbers=(2,),
        ),
        partial(stopping, name="stopping"),
    ),
    "fashion": (
        partial(
            table,
            name="table5",
            title="Table V, Fashion-MNIST",
            stages=WHOLE,
            printed=wu_printed.TABLE_5,
        ),
    ),
    "cifar10": (
        partial(
            table,
            name="table6",
            title="Table VI, CIFAR-10",
            stages=WHOLE,
            printed=wu_printed.TABLE_6,
        ),
    ),
    "labels": (
        partial(
            figure,
            name="figure3",
            title="Figure 3, training with 3, 5 and 7 labels per client",
            lines=lambda runs: training_lines(runs, lambda r: f"{r['labels']} labels"),
            x="round",
            xlabel="round",
        ),
    ),
    "selected": (
        partial(
            figure,
            name="figure7",
            title="Figure 7, extreme weights after pruning, clients per round",
            lines=lambda runs: delta_lines(runs, of_50),
            x="delta",
            xlabel="Delta",
        ),
        partial(
            table,
            name="stages",
            title="Figure 7's runs",
            stages=("trained", "RV", "AW", "RV + AW", "FT + AW"),
            line=of_50,
            label="clients per round",
        ),
    ),
    "l2": (
        partial(
            figure,
            name="figure8",
            title="Figure 8, L2 penalty on the last convolution",
            lines=lambda runs: training_lines(runs, lambda r: f"lambda {r['l2']:g}"),
            x="round",
            xlabel="round",
        ),
    ),
    "adaptive": (
        partial(
            table,
            name="adaptive",
            title="section VI-C, attackers who know the defence",
            stages=WHOLE,
            line=lambda run: f"{AGAINST[run['against']]}, {pair_name(run)}",
            label="attackers",
        ),
    ),
}
"""What makes a part's tables and figures of ``page`` and ``results``."""


def write(part: str, results: Sequence[Result], page: Page) -> list[str]:
    """The tables and figures of one part, as files and as text. ``runs``, beside the rows of the first,
    has everything that was measured, a row per run, with all settings."""
    first = PARTS[part][0].keywords["name"]
    report.write_rows(page.folder / first / "runs", run_rows(results))
    return [make(page, results) for make in PARTS[part]]
