"""Wu et al.'s printed numbers, and their tables and figures from the runs of ``wu_pruning.py``."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from common import origin

from fedjax_robust import report

Result = dict[str, Any]
"""What one run gives; its victim, target, seed and the like, too."""

# In percent, as printed: victim, target -> accuracy and attack success, and numbers pruned.
TABLE_1 = {  # pixels: trained, pruned, number, + AW with Delta = 3, number
    1: (98.5, 99.9, 97.3, 98.7, 22, 97.2, 0.4, 131),
    3: (98.5, 100, 96.6, 100, 30, 97, 34.8, 139),
    5: (98.4, 100, 97, 100, 34, 95.2, 1.4, 138),
    7: (98.5, 100, 96.2, 96.9, 30, 96.8, 32.9, 138),
    9: (98.4, 99.8, 97.6, 2.3, 30, 96.2, 0.5, 133),
}
TABLE_2 = {  # trained; ranking vote, number; majority vote, number
    (9, 0): (98.5, 100, 96.2, 100, 35, 95.7, 99.9, 40),
    (9, 1): (98.2, 100, 96.2, 0.4, 37, 93.8, 0.6, 39),
    (9, 2): (98.6, 100, 96.5, 0.1, 36, 95.8, 0.2, 37),
    (9, 3): (98.6, 99.6, 96.2, 6.7, 32, 96.1, 2.3, 34),
    (9, 4): (98.7, 100, 94.7, 100, 34, 95.2, 0.5, 35),
    (9, 5): (98.4, 99.9, 95.7, 99.9, 39, 95.7, 99.9, 39),
    (9, 6): (98.1, 99.8, 95.6, 100, 33, 96.6, 99.9, 32),
    (9, 7): (98.8, 99.9, 96.7, 98, 37, 96.1, 99.2, 37),
    (9, 8): (98.2, 99.7, 96.2, 99.5, 36, 95.5, 99.7, 36),
    (0, 9): (98.4, 100, 95.3, 4.1, 40, 96, 3.4, 39),
    (1, 9): (98.7, 99.7, 95.9, 99.9, 38, 96.4, 0.3, 38),
    (2, 9): (98.4, 99.8, 97.5, 100, 32, 97.2, 100, 30),
    (3, 9): (97.2, 99.8, 90.6, 100, 30, 95.8, 99.3, 32),
    (4, 9): (97.9, 100, 94.1, 100, 37, 93.6, 100, 38),
    (5, 9): (98.6, 100, 96.6, 0.8, 34, 96.7, 0.7, 34),
    (6, 9): (98.6, 99.9, 97, 99, 36, 96.8, 100, 33),
    (7, 9): (98.8, 99.7, 96.9, 97.6, 36, 97.2, 98.4, 35),
    (8, 9): (98.3, 100, 96.3, 97.8, 34, 95, 99.5, 37),
}
TABLE_3 = {  # AW alone, number
    (9, 0): (98.2, 0.4, 30), (9, 1): (98.2, 2.8, 34), (9, 2): (97.5, 0.1, 37),
    (9, 3): (98.2, 0.3, 24), (9, 4): (97.1, 2.8, 28), (9, 5): (98.6, 8, 36),
    (9, 6): (98.4, 0.1, 29), (9, 7): (98.5, 1.9, 38), (9, 8): (98.3, 0, 29),
    (0, 9): (98.6, 0.3, 30), (1, 9): (97.3, 19.3, 28), (2, 9): (98.4, 0, 31),
    (3, 9): (98.6, 0, 31), (4, 9): (98.3, 10.1, 31), (5, 9): (97.8, 1.5, 18),
    (6, 9): (98.5, 0.2, 38), (7, 9): (98.2, 1.2, 33), (8, 9): (98.5, 7.9, 25),
}  # fmt: skip
TABLE_4 = {  # trained; pruned + AW; pruned, fine-tuned + AW
    (9, 0): (98.2, 99.7, 94.7, 0.3, 96.6, 0.8),
    (9, 1): (98.6, 100, 95.1, 0.4, 96.9, 0.1),
    (9, 2): (98.2, 99.9, 95.7, 4.1, 97.2, 2.5),
    (9, 3): (98.3, 99.6, 95.6, 36.9, 97.2, 8.8),
    (9, 4): (98.5, 100, 97.2, 5, 98.1, 3.5),
    (9, 5): (98.5, 99.9, 86.6, 14, 94.6, 2.8),
    (9, 6): (98.6, 99.7, 96.4, 0.1, 97.5, 0.1),
    (9, 7): (98.9, 99.8, 94.1, 0.8, 98.2, 0.5),
    (9, 8): (98.5, 99.9, 93.9, 4.5, 96.6, 3.1),
    (0, 9): (97.8, 99.8, 95.4, 0, 96.9, 0.9),
    (1, 9): (98.2, 99.5, 94.5, 0.1, 97.2, 0.5),
    (2, 9): (98.3, 100, 94.9, 1.2, 97.5, 0.5),
    (3, 9): (98.5, 99.5, 95, 34.9, 96, 26.3),
    (4, 9): (98.5, 99.9, 93.4, 27.1, 96.4, 14.7),
    (5, 9): (98.5, 99.8, 95.2, 1.3, 97.5, 1.6),
    (6, 9): (98.3, 99.3, 94.8, 1.5, 97.3, 0.3),
    (7, 9): (97.9, 99.1, 93.8, 18.5, 96.9, 16.4),
    (8, 9): (97.5, 99.4, 93.3, 1.2, 96.3, 0.5),
}
TABLE_5 = {  # trained; pruned; + AW; pruned, fine-tuned + AW
    (9, 0): (88.8, 99.8, 83.2, 2.8, 82.9, 2.1, 86.3, 9.0),
    (9, 1): (88.7, 99.4, 82.6, 6.5, 82.1, 0, 87.0, 0),
    (9, 2): (87.8, 99.8, 82.2, 2.7, 82.1, 3.1, 85.6, 12.6),
    (9, 3): (87.5, 99.6, 84.4, 0.3, 84.4, 0, 86.2, 0.4),
    (9, 4): (87.8, 99.7, 81.0, 2.9, 80.6, 0, 85.8, 2.3),
    (9, 5): (88.6, 99.7, 81.2, 11.9, 80.6, 3.6, 86.1, 10.4),
    (9, 6): (86.3, 99.8, 82.8, 93.6, 82.0, 0.2, 86.0, 3.1),
    (9, 7): (88.5, 99.7, 82.9, 4.3, 83.1, 4.6, 87.0, 17.1),
    (9, 8): (88.8, 99.9, 84.7, 87.7, 85.0, 3.2, 87.2, 2.9),
}
TABLE_6 = {
    (9, 0): (73.0, 88.5, 72.7, 59.9, 71.6, 21.2, 71.8, 39.6),
    (9, 1): (71.6, 87.0, 71.0, 87.6, 70.9, 18.1, 71.1, 19.2),
    (9, 2): (72.9, 84.0, 71.7, 73.3, 70.4, 26.6, 71.6, 29.6),
    (9, 3): (72.7, 87.7, 71.4, 12.0, 71.3, 13.1, 71.0, 45.8),
    (9, 4): (72.9, 85.3, 71.9, 3.3, 70.5, 4.1, 71.5, 49.1),
    (9, 5): (72.8, 85.5, 72.4, 4.4, 71.8, 4.8, 71.5, 46.9),
    (9, 6): (71.0, 91.3, 71.7, 82.6, 70.5, 7.9, 72.2, 5.8),
    (9, 7): (72.1, 91.2, 72.2, 85.7, 71.3, 8.5, 71.5, 8.8),
    (9, 8): (72.6, 88.2, 72.4, 10.8, 71.2, 12.8, 71.5, 49.9),
}


STAGES = {  # keys of results -> the tables' words
    "trained": "trained",
    "RV": "ranking vote",
    "MV": "majority vote",
    "AW": "AW alone",
    "AW, Delta 3": "AW alone, Delta = 3",
    "RV + AW": "pruned + AW",
    "RV + AW, Delta 3": "pruned + AW, Delta = 3",
    "FT + AW": "fine-tuned + AW",
}


def fractions(
    printed: dict[Any, tuple[float, ...]], stages: Sequence[str], numbers: Sequence[int] = ()
) -> dict[tuple[str, str], float]:
    """{(line, column): number} of a printed table, its averages included; ``numbers`` are positions of
    counts, which are left out."""
    columns = [f"{STAGES[stage]}, {what}" for stage in stages for what in ("test", "attack")]
    paper: dict[tuple[str, str], float] = {}
    values = []
    for line, row in printed.items():
        kept = [value / 100 for i, value in enumerate(row) if i not in numbers]
        values.append(kept)
        name = "-".join(map(str, line)) if isinstance(line, tuple) else str(line)
        paper |= {(name, column): value for column, value in zip(columns, kept, strict=True)}
    means = np.mean(values, axis=0)
    paper |= {("average", column): float(v) for column, v in zip(columns, means, strict=True)}
    return paper


def table_rows(
    results: list[Result], stages: Sequence[str], line: Callable[[Result], str]
) -> list[dict[str, Any]]:
    """One row per run, stage and measure, and each seed's averages."""
    rows = []
    sums: dict[tuple[int, str], list[float]] = {}
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
        for (seed, column), values in sums.items()
    ]
    return rows


def pair_name(result: Result) -> str:
    return f"{result['victim']}-{result['target']}"


class Page(NamedTuple):
    """What the tables and figures of a part share."""

    folder: Path
    command: str
    notes: str

    def table(
        self,
        name: str,
        title: str,
        results: list[Result],
        stages: Sequence[str],
        paper: dict[tuple[str, str], float],
        line: Callable[[Result], str] = pair_name,
        label: str = "pair",
    ) -> str:
        """Write one table; ``line`` names a run's line, ``label`` what the lines are."""
        rows = table_rows(results, stages, line)
        missing = {name for name, _ in paper} - {"average"} - {row["line"] for row in rows}
        if missing or not paper:  # an average of other runs than the paper's would not compare
            rows = [row for row in rows if row["line"] != "average"]
        for row in rows:
            row[label] = row.pop("line")
        return report.write_table(
            self.folder / name,
            rows,
            paper,
            title=f"Wu et al. (2020), {title}",
            command=self.command,
            index=label,
            columns="column",
            value="value",
            metric="accuracy",
            notes=" ".join([self.notes, *counts(results, stages)]),
        )

    def stopping(self, results: list[Result], deltas: Sequence[float]) -> str:
        """Write the averages by what stops AW."""
        return report.write_table(
            self.folder / "stopping",
            stopping_rows(results, deltas),
            {},
            title="Wu et al. (2020), what stops the adjusting of extreme weights",
            command=self.command,
            index="AW stops",
            columns="column",
            value="value",
            metric="accuracy",
            notes=f"{self.notes} Averages of {', '.join(sorted({pair_name(r) for r in results}))}.",
        )

    def figure(
        self,
        name: str,
        title: str,
        lines: list[tuple[str, Result, Sequence[float], dict[str, Sequence[float]]]],
        x: str,
        xlabel: str,
    ) -> str:
        """Draw one figure; ``lines`` are (name, run, x values, {panel: values})."""
        rows = [
            {"line": line, "seed": run["seed"], x: float(at), "measure": measure}
            | {"value": float(value)}
            | origin(run)
            for line, run, values, panels in lines
            for measure, series in panels.items()
            for at, value in zip(values, series, strict=True)
        ]
        return report.write_sweep(
            self.folder / name,
            rows,
            x=x,
            xlabel=xlabel,
            panels="measure",
            lines="line",
            value="value",
            metric="accuracy",
            title=f"Wu et al. (2020), {title}",
            command=self.command,
            notes=self.notes,
        )


def counts(results: list[Result], stages: Sequence[str]) -> Iterator[str]:
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


FLOORS = (0.01, 0.02, 0.03, 0.04, 0.05)
"""How far below the trained model's accuracy."""


def stopping_rows(results: list[Result], deltas: Sequence[float]) -> list[dict[str, Any]]:
    """Averages over the runs of each seed, by what stops AW; read off the stored curves.

    That a step costs more than a point, as in the other tables, nothing (a fixed Delta), or an accuracy
    too far below the trained model's. Where even the first Delta breaks the rule, it is taken here.
    """
    sums: dict[tuple[int, str, str], list[float]] = {}
    for result in results:
        trained = result["RV prefixes"]["validation"][0]
        for stage in ("AW", "RV + AW", "FT + AW"):
            curve, taken = result[f"{stage} deltas"], result[stage]["delta"]
            accuracies = np.array(curve["validation"])
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
        for (seed, rule, column), values in sums.items()
    ]


def prefix_lines(results: list[Result]) -> list[Any]:
    """By the number of neurons pruned."""
    return [
        (
            f"{vote}, {pair_name(r)}",
            r,
            range(len(r["RV prefixes"]["attack"])),
            r[f"{vote} prefixes"],
        )
        for r in results
        for vote in ("RV", "MV")
    ]


def delta_lines(
    results: list[Result], deltas: Sequence[float], name: Callable[[Result], str]
) -> list[Any]:
    """By Delta, after pruning."""
    return [(name(r), r, deltas, r["RV + AW deltas"]) for r in results]


def training_lines(results: list[Result], name: Callable[[Result], str]) -> list[Any]:
    """By the round of training."""
    return [
        (
            name(r),
            r,
            r["training"]["round"],
            {what: r["training"][what] for what in ("validation", "attack")},
        )
        for r in results
    ]


def write(part: str, results: list[Result], page: Page, deltas: Sequence[float]) -> list[str]:
    """The tables and figures of one part: as files, and as text."""
    whole = ("trained", "RV", "RV + AW", "FT + AW")
    if part == "patterns":
        stages = ("trained", "RV", "RV + AW, Delta 3")
        title, paper = "Table I, triggers of 1 to 9 pixels, 9-1", fractions(TABLE_1, stages, (4, 7))
        return [
            page.table(
                "table1", title, results, stages, paper, lambda r: str(r["pixels"]), "pixels"
            )
        ]
    if part == "pairs":
        votes, without = ("trained", "RV", "MV"), ("trained", "RV + AW", "FT + AW")
        shown = [r for r in results if pair_name(r) in ("9-0", "9-2")] or results[:1]
        return [
            page.table(
                "table2",
                "Table II, pruning, MNIST",
                results,
                votes,
                fractions(TABLE_2, votes, (4, 7)),
            ),
            page.table(
                "table4",
                "Table IV, the whole defence without and with fine-tuning, MNIST",
                results,
                without,
                fractions(TABLE_4, without),
            ),
            page.table(
                "aw-alone",
                "section V-E2, adjusting extreme weights alone in the network with 20 and 50 filters",
                results,
                ("AW", "AW, Delta 3"),
                {},
            ),
            page.stopping(results, deltas),
            page.figure(
                "figure4",
                "Figure 4, neurons pruned",
                prefix_lines(shown),
                "pruned",
                "neurons pruned",
            ),
            page.figure(
                "figure5",
                "Figure 5, extreme weights after pruning",
                delta_lines(shown, deltas, pair_name),
                "delta",
                "Delta",
            ),
        ]
    if part == "concise":
        title = "Table III, adjusting extreme weights alone, 8 and 16 filters, MNIST"
        paper = fractions(TABLE_3, ("AW",), (2,))
        return [
            page.table("table3", title, results, ("AW", "AW, Delta 3"), paper),
            page.stopping(results, deltas),
        ]
    if part == "fashion":
        title = "Table V, Fashion-MNIST"
        return [page.table("table5", title, results, whole, fractions(TABLE_5, whole))]
    if part == "cifar10":
        title = "Table VI, CIFAR-10"
        return [page.table("table6", title, results, whole, fractions(TABLE_6, whole))]
    if part == "labels":
        title = "Figure 3, training with 3, 5 and 7 labels per client"
        lines = training_lines(results, lambda r: f"{r['labels']} labels")
        return [page.figure("figure3", title, lines, "round", "round")]
    if part == "selected":
        title = "Figure 7, extreme weights after pruning, clients per round"
        lines = delta_lines(results, deltas, lambda r: f"{r['selected']} of 50")
        return [page.figure("figure7", title, lines, "delta", "Delta")]
    if part == "l2":
        title = "Figure 8, L2 penalty on the last convolution"
        lines = training_lines(results, lambda r: f"lambda {r['l2']:g}")
        return [page.figure("figure8", title, lines, "round", "round")]
    words = {
        "nothing": "no counter-attack",
        "ranks": "reversed rankings",
        "pruning": "pruning-aware",
        "AW": "self-clipping",
    }
    return [
        page.table(
            "adaptive",
            "section VI-C, attackers who know the defence",
            results,
            whole,
            {},
            lambda r: f"{words[r['against']]}, {pair_name(r)}",
            "attackers",
        )
    ]
