"""Result folders that describe themselves: tables beside a paper's, and sweeps of a parameter.

Next to its rows a folder has ``table.json`` or ``sweep.json``, which say what the rows are and where
the paper's numbers are, so that a report can be made of any number of folders without their scripts.
"""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from fedjax_robust.report.plots import plot_comparison, plot_sweep
from fedjax_robust.report.results import Row, plain, write_bytes, write_rows
from fedjax_robust.report.tables import (
    Cell,
    Summary,
    comparison_table,
    count_seeds,
    markdown_table,
    show_summary,
    summarize,
)


class Table(NamedTuple):
    """What ``table.json`` holds; arguments of ``write_table``."""

    title: str
    command: str
    index: str  # type: ignore[assignment]
    columns: str
    value: str
    metric: str
    tolerance: float
    notes: str
    paper: dict[Cell, float]


class Sweep(NamedTuple):
    """What ``sweep.json`` holds; arguments of ``write_sweep``."""

    title: str
    command: str
    x: str
    xlabel: str
    panels: str
    lines: str
    value: str
    metric: str
    log_x: bool
    notes: str


def write_table(
    folder: str | Path,
    rows: Sequence[Row],
    paper: Mapping[Cell, float],
    *,
    title: str,
    command: str,
    index: str = "attack",
    columns: str = "rule",
    value: str = "error",
    metric: str = "testing error rate",
    tolerance: float = 0.03,
    notes: str = "",
) -> str:
    """Write a table's rows, its comparison with the paper and what is needed to do it again.

    ``rows.json``, ``rows.csv``, ``table.md``, ``comparison.png`` and ``table.json`` (see ``Table``).

    Args:
      folder: made if missing.
      rows: one per run, without large arrays.
      paper: {(index value, column value): number}.
      title: paper, table and data set, in one line.
      command: what was run.
      index: as in ``comparison_table``.
      columns: as in ``comparison_table``.
      value: as in ``comparison_table``.
      metric: as in ``comparison_table``.
      tolerance: as in ``comparison_table``.
      notes: the settings, and what differs from the paper's.

    Returns:
      The text of ``table.md``: title, notes and table.

    Raises:
      ValueError: see ``comparison_table``.
    """
    folder = Path(folder)
    about = Table(title, command, index, columns, value, metric, tolerance, notes, dict(paper))
    names: dict[str, Any] = {"index": index, "columns": columns, "value": value, "metric": metric}
    table = comparison_table(rows, paper, tolerance=tolerance, **names)
    text = _paragraphs(title, notes, table)
    write_rows(folder / "rows", rows)
    plot_comparison(
        folder / "comparison.png", rows, paper, title=title, tolerance=tolerance, **names
    )
    write_bytes(folder / "table.md", text.encode())
    cells = [[line, column, number] for (line, column), number in paper.items()]
    _write_about(folder / "table.json", about._asdict() | {"paper": cells})
    return text


def read_table(folder: str | Path) -> tuple[Table, list[dict[str, str]]]:
    """What ``write_table`` wrote, and its rows as they are in ``rows.csv``: all values are text.

    Raises:
      FileNotFoundError: if ``table.json`` or ``rows.csv`` is not there.
      ValueError: if ``table.json`` is not what ``write_table`` writes.
    """
    about = _read_about(Path(folder) / "table.json", Table)
    paper = {(str(line), str(column)): float(number) for line, column, number in about["paper"]}
    return Table(**about | {"paper": paper}), _read_csv(folder)


def write_sweep(
    folder: str | Path,
    rows: Sequence[Row],
    *,
    x: str,
    title: str,
    command: str,
    xlabel: str | None = None,
    panels: str = "rule",
    lines: str = "attack",
    value: str = "error",
    metric: str = "testing error rate",
    log_x: bool = False,
    notes: str = "",
) -> str:
    """Write a sweep's rows, its figure, its table and what is needed to do it again.

    ``rows.json``, ``rows.csv``, ``table.md``, ``sweep.png`` and ``sweep.json`` (see ``Sweep``).

    Args:
      folder: made if missing.
      rows: one per run, without large arrays; at least one.
      x: the rows' key of the swept parameter, a number.
      title: paper, figure and data set, in one line.
      command: what was run.
      xlabel: the parameter in words, default ``x``.
      panels: the rows' key that names the figure's panels.
      lines: the rows' key that names a panel's lines.
      value: the rows' key of the metric, a fraction in [0, 1].
      metric: the metric in words.
      log_x: whether the x axis is logarithmic.
      notes: the settings, and what differs from the paper's.

    Returns:
      The text of ``table.md``: title, notes and table.

    Raises:
      ValueError: if there are no rows; see also ``sweep_table`` and ``plot_sweep``.
    """
    folder = Path(folder)
    about = Sweep(title, command, x, xlabel or x, panels, lines, value, metric, log_x, notes)
    text = _paragraphs(title, notes, sweep_table(about, rows))
    write_rows(folder / "rows", rows)
    values, curves = _curves(about, rows)
    plot_sweep(
        folder / "sweep.png",
        values,
        curves,
        title=title,
        xlabel=about.xlabel,
        metric=metric,
        log_x=log_x,
    )
    write_bytes(folder / "table.md", text.encode())
    _write_about(folder / "sweep.json", about._asdict())
    return text


def read_sweep(folder: str | Path) -> tuple[Sweep, list[dict[str, str]]]:
    """What ``write_sweep`` wrote; rows and errors as in ``read_table``."""
    return Sweep(**_read_about(Path(folder) / "sweep.json", Sweep)), _read_csv(folder)


def sweep_table(about: Sweep, rows: Sequence[Row]) -> str:
    """A sweep's numbers as Markdown: a line for each panel and line, a column for each value of x.

    Raises:
      ValueError: if a row lacks a column, or two rows of one point have the same seed.
    """
    points = _points(about, rows)
    cells = {key: show_summary(summary) for key, summary in points.items()}
    values = sorted({x for _, _, x in points})
    heading = (
        f"{about.metric[0].upper()}{about.metric[1:]}, fraction (0 to 1), against {about.xlabel}; "
        f"mean ± sample standard deviation over {count_seeds(points)}."
    )
    named = list(dict.fromkeys((panel, line) for panel, line, _ in points))
    table = markdown_table(
        [
            {about.panels: panel, about.lines: line}
            | {f"{x:g}": cells.get((panel, line, x)) for x in values}
            for panel, line in named
        ]
    )
    return f"{heading}\n\n{table}\n"


Point = tuple[str, str, float]
"""(panel, line, value of the swept parameter)"""


def _points(about: Sweep, rows: Sequence[Row]) -> dict[Point, Summary]:
    """The metric over the seeds at each point, in order of first appearance."""
    points: dict[Point, Summary] = {}
    for (panel, line), own in _grouped(about, rows).items():
        for (x, _), summary in summarize(own, about.x, about.panels, about.value).items():
            points[panel, line, float(x)] = summary
    return points


def _curves(
    about: Sweep, rows: Sequence[Row]
) -> tuple[list[float], dict[str, dict[str, np.ndarray]]]:
    """The values of x (k,), and {panel: {line: (seeds, k)}}; NaN where a run is missing."""
    values = sorted({float(row[about.x]) for row in rows})
    curves: dict[str, dict[str, np.ndarray]] = {}
    for (panel, line), own in _grouped(about, rows).items():
        at: dict[float, list[float]] = {x: [] for x in values}
        for row in own:
            at[float(row[about.x])].append(float(row[about.value]))
        seeds = max(len(runs) for runs in at.values())
        padded = [runs + [math.nan] * (seeds - len(runs)) for runs in at.values()]
        curves.setdefault(panel, {})[line] = np.array(padded).T
    return values, curves


def _grouped(about: Sweep, rows: Sequence[Row]) -> dict[Cell, list[Row]]:
    """{(panel, line): rows}"""
    if not rows:
        raise ValueError("a sweep needs rows, got none; run something first")
    needed = (about.panels, about.lines, about.x, about.value)
    groups: dict[Cell, list[Row]] = {}
    for row in rows:
        if missing := [key for key in needed if key not in row]:
            raise ValueError(f"a row lacks the columns {missing}, it has {sorted(row)}")
        groups.setdefault((str(row[about.panels]), str(row[about.lines])), []).append(row)
    return groups


def _paragraphs(*texts: str) -> str:
    return "\n\n".join(text for text in texts if text)


def _write_about(path: Path, about: Mapping[str, Any]) -> None:
    content = plain(dict(about), path.name)
    lines = ",\n".join(
        f"  {json.dumps(key)}: {json.dumps(value, ensure_ascii=False, allow_nan=False)}"
        for key, value in content.items()
    )
    write_bytes(path, f"{{\n{lines}\n}}\n".encode())


def _read_about(path: Path, kind: type[Table] | type[Sweep]) -> dict[str, Any]:
    try:
        about = json.loads(path.read_text("utf-8"))
        if not (isinstance(about, dict) and {*about} == {*kind._fields}):
            raise ValueError(f"it must be an object with the keys {', '.join(kind._fields)}")
    except ValueError as error:
        raise ValueError(
            f"{path} does not describe its folder ({error}); run its experiment again"
        ) from error
    return about


def _read_csv(folder: str | Path) -> list[dict[str, str]]:
    with open(Path(folder) / "rows.csv", newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))
