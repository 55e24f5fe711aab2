"""Result folders that describe themselves: tables beside a paper's, and sweeps of a parameter.

Next to its rows a folder has ``about.json``, which says what the rows are, with which settings and by
which command they were made, and what the paper prints, so that a report can be made of any number of
folders without their scripts.
"""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from fedjax_robust import checks
from fedjax_robust.report.plots import plot_comparison, plot_sweep
from fedjax_robust.report.results import Row, plain, read_json, restore, write_bytes, write_rows
from fedjax_robust.report.tables import (
    Cell,
    Summary,
    comparison_table,
    count_seeds,
    markdown_table,
    safe,
    show_summary,
    summarize,
)

ABOUT = ("about.json", "table.json", "sweep.json")
"""What describes a folder; the other two are those of older results."""


class Table(NamedTuple):
    """A table beside a paper's: what ``about.json`` holds of it."""

    title: str
    """Paper, table and data set, in one line."""
    command: str
    """What was run."""
    line: str = "attack"
    """The rows' key that names the table's lines."""
    columns: str = "rule"
    """The rows' key that names its columns."""
    value: str = "error"
    """The rows' key of the metric, a fraction in [0, 1]."""
    metric: str = "testing error rate"
    """The metric in words."""
    tolerance: float = 0.03
    """Largest accepted |mean - paper|, as a fraction."""
    notes: str = ""
    """The settings, and what differs from the paper's."""
    settings: Mapping[str, Any] = {}
    """All settings that the rows have in common, with the command's defaults; ``study.settings``."""
    doubts: Sequence[str] = ()
    """What cannot be traced of the rows, in words; nothing for what ``make publish`` accepted."""
    paper: Mapping[Cell, float] = {}
    """{(line, column): printed number}, in the paper's order."""


class Sweep(NamedTuple):
    """A metric against a parameter: what ``about.json`` holds of it. Fields as in ``Table``, and:"""

    title: str
    command: str
    x: str
    """The rows' key of the swept parameter, a number."""
    xlabel: str = ""
    """The parameter in words; default ``x``."""
    panels: str = "rule"
    """The rows' key that names the figure's panels."""
    lines: str = "attack"
    """The rows' key that names a panel's lines."""
    value: str = "error"
    metric: str = "testing error rate"
    log_x: bool = False
    """Whether the x axis is logarithmic."""
    notes: str = ""
    settings: Mapping[str, Any] = {}
    doubts: Sequence[str] = ()


def write_table(
    folder: str | Path, rows: Sequence[Row], paper: Mapping[Cell, float], **about: Any
) -> str:
    """Write a table's rows, its comparison with the paper and what is needed to do it again.

    ``rows.json``, ``rows.csv``, ``table.md``, ``comparison.png`` and ``about.json`` (see ``Table``).

    Args:
      folder: made if missing.
      rows: one per run, without large arrays.
      paper: {(line, column): printed number}, a finite fraction.
      **about: the other fields of ``Table``; ``title`` and ``command`` are needed.

    Returns:
      The text of ``table.md``: title, notes and table.

    Raises:
      ValueError: for a field that is not of its kind; see also ``comparison_table``.
      TypeError: if a field is missing or there is no such field.
    """
    folder = Path(folder)
    table = _checked("write_table", Table(**about, paper=dict(paper)))
    text = _paragraphs(safe(table.title), safe(table.notes), table_text(table, rows))
    write_rows(folder / "rows", rows)
    plot_comparison(
        folder / "comparison.png",
        rows,
        paper,
        title=table.title,
        tolerance=table.tolerance,
        line=table.line,
        columns=table.columns,
        value=table.value,
        metric=table.metric,
    )
    write_bytes(folder / "table.md", text.encode())
    write_about(folder, table)
    return text


def table_text(about: Table, rows: Sequence[Row]) -> str:
    """The comparison of ``table.md`` and of a README, and below it what cannot be traced of its rows.

    Args:
      about: what the rows are, and what the paper prints.
      rows: one per run.

    Raises:
      ValueError: see ``comparison_table``.
    """
    table = comparison_table(
        rows,
        about.paper,
        line=about.line,
        columns=about.columns,
        value=about.value,
        metric=about.metric,
        tolerance=about.tolerance,
    )
    return table + _doubts(about)


def read_table(folder: str | Path) -> tuple[Table, list[dict[str, str]]]:
    """What ``write_table`` wrote, and its rows as they are in ``rows.csv``: all values are text.

    Args:
      folder: where it wrote.

    Raises:
      FileNotFoundError: if ``about.json`` or ``rows.csv`` is not there.
      ValueError: if one of them is not what ``write_table`` writes; it names the file.
    """
    about = read_about(folder)
    if not isinstance(about, Table):
        raise ValueError(f"{Path(folder)} holds a sweep, not a table; use read_sweep")
    needed = (about.line, about.columns, about.value)
    return about, _read_csv(folder, needed, numbers=(about.value,))


def write_sweep(folder: str | Path, rows: Sequence[Row], **about: Any) -> str:
    """Write a sweep's rows, its figure, its table and what is needed to do it again.

    ``rows.json``, ``rows.csv``, ``table.md``, ``sweep.png`` and ``about.json`` (see ``Sweep``).

    Args:
      folder: made if missing.
      rows: one per run, without large arrays; at least one.
      **about: the fields of ``Sweep``; ``title``, ``command`` and ``x`` are needed.

    Returns:
      The text of ``table.md``: title, notes and table.

    Raises:
      ValueError: if there are no rows, or a field is not of its kind; see also ``sweep_table`` and
        ``plot_sweep``.
      TypeError: if a field is missing or there is no such field.
    """
    folder = Path(folder)
    sweep = Sweep(**about)
    sweep = _checked("write_sweep", sweep._replace(xlabel=sweep.xlabel or sweep.x))
    text = _paragraphs(safe(sweep.title), safe(sweep.notes), sweep_table(sweep, rows))
    write_rows(folder / "rows", rows)
    values, curves = _curves(sweep, rows)
    plot_sweep(
        folder / "sweep.png",
        values,
        curves,
        title=sweep.title,
        xlabel=sweep.xlabel,
        metric=sweep.metric,
        log_x=sweep.log_x,
    )
    write_bytes(folder / "table.md", text.encode())
    write_about(folder, sweep)
    return text


def read_sweep(folder: str | Path) -> tuple[Sweep, list[dict[str, str]]]:
    """What ``write_sweep`` wrote, and its rows as they are in ``rows.csv``: all values are text.

    Args:
      folder: where it wrote.

    Raises:
      FileNotFoundError: if ``about.json`` or ``rows.csv`` is not there.
      ValueError: if one of them is not what ``write_sweep`` writes; it names the file.
    """
    about = read_about(folder)
    if not isinstance(about, Sweep):
        raise ValueError(f"{Path(folder)} holds a table, not a sweep; use read_table")
    needed = (about.panels, about.lines, about.x, about.value)
    return about, _read_csv(folder, needed, numbers=(about.x, about.value))


def sweep_table(about: Sweep, rows: Sequence[Row]) -> str:
    """A sweep's numbers as Markdown: a line for each panel and line, a column for each value of x.

    Args:
      about: what the rows are.
      rows: one per run.

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
    return f"{heading}\n\n{table}\n{_doubts(about)}"


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


def _doubts(about: Table | Sweep) -> str:
    return f"\nNot traceable: {safe('; '.join(about.doubts))}.\n" if about.doubts else ""


def write_about(folder: str | Path, about: Table | Sweep) -> None:
    """Write ``about.json`` into the folder, one field per line."""
    fields: dict[str, Any] = {"kind": type(about).__name__.lower(), **about._asdict()}
    if isinstance(about, Table):
        fields["paper"] = [[line, column, number] for (line, column), number in about.paper.items()]
    content = plain(fields, "about.json")
    lines = ",\n".join(
        f"  {json.dumps(key)}: {json.dumps(value, ensure_ascii=False, allow_nan=False)}"
        for key, value in content.items()
    )
    write_bytes(Path(folder) / "about.json", f"{{\n{lines}\n}}\n".encode())


def read_about(folder: str | Path) -> Table | Sweep:
    """What a folder's ``about.json`` says; also of older folders with ``table.json`` or ``sweep.json``.

    Raises:
      FileNotFoundError: if there is none of them.
      ValueError: if it does not describe a folder; it names the file.
    """
    folder = Path(folder)
    path = next((folder / name for name in ABOUT if (folder / name).exists()), folder / ABOUT[0])
    try:
        fields = read_json(path)
        if not isinstance(fields, dict):
            raise ValueError("it must be an object")
        kind = {"table.json": "table", "sweep.json": "sweep"}.get(path.name) or fields.pop(
            "kind", None
        )
        made: Table | Sweep
        if kind == "table":
            if "index" in fields:  # its name in older folders
                fields["line"] = fields.pop("index")
            made = _made(Table, {**fields, "paper": _paper(fields.get("paper"))})
        elif kind == "sweep":
            made = _made(Sweep, fields)
        else:
            raise ValueError(f'its kind must be "table" or "sweep", got {kind!r}')
        return _checked(path.name, made)
    except (ValueError, TypeError) as error:
        raise ValueError(
            f"{path} does not describe its folder ({error}); run its experiment again"
        ) from error


def _made(kind: Any, fields: dict[str, Any]) -> Any:
    newer = {"settings", "doubts"}
    missing, more = {*kind._fields} - {*fields} - newer, {*fields} - {*kind._fields}
    if missing or more:
        raise ValueError(f"it must be an object with the keys {', '.join(kind._fields)}")
    return kind(**{k: restore(v) if k == "settings" else v for k, v in fields.items()})


def _paper(cells: Any) -> dict[Cell, float]:
    if not isinstance(cells, list) or not all(isinstance(c, list) and len(c) == 3 for c in cells):
        raise ValueError("paper must be a list of [line, column, number]")
    return {(str(line), str(column)): number for line, column, number in cells}


def _checked(what: str, about: Any) -> Any:
    """The same, if every field is of its kind."""
    texts = [
        name
        for name in about._fields
        if name not in ("tolerance", "log_x", "settings", "doubts", "paper")
    ]
    for name in texts:
        value = getattr(about, name)
        if not isinstance(value, str):
            raise TypeError(f"{what} needs {name} to be text, got {value!r}")
        if not value.strip() and name != "notes":
            raise ValueError(f"{what} needs {name}, got an empty text")
    if not isinstance(about.settings, Mapping):
        raise TypeError(f"{what} needs settings by name, got {about.settings!r}")
    if isinstance(about.doubts, str) or not all(isinstance(d, str) for d in about.doubts):
        raise TypeError(f"{what} needs doubts to be a list of texts, got {about.doubts!r}")
    if isinstance(about, Sweep):
        if not isinstance(about.log_x, bool):
            raise TypeError(f"{what} needs log_x to be true or false, got {about.log_x!r}")
        return about
    checks.not_negative(what, tolerance=about.tolerance)
    for cell, number in about.paper.items():
        if len(cell) != 2:
            raise ValueError(f"{what} needs paper as {{(line, column): number}}, got {cell!r}")
        checks.finite(what, **{f"paper[{cell[0]}, {cell[1]}]": number})
    return about


def _read_csv(
    folder: str | Path, needed: Sequence[str], numbers: Sequence[str]
) -> list[dict[str, str]]:
    """The rows of a folder, all as wide as their heading, with the needed columns and numbers."""
    path = Path(folder) / "rows.csv"
    again = "run its experiment again"
    with open(path, newline="", encoding="utf-8") as file:
        try:
            lines = list(csv.reader(file))
        except (csv.Error, ValueError) as error:
            raise ValueError(f"{path} cannot be read ({error}); {again}") from error
    head, *lines = lines or [[]]
    if len(set(head)) < len(head):
        raise ValueError(f"{path} has a column twice among {head}; {again}")
    if lines and (missing := [name for name in needed if name not in head]):
        raise ValueError(f"{path} lacks the columns {missing}, it has {sorted(head)}; {again}")
    rows = []
    for number, line in enumerate(lines, 2):
        if len(line) != len(head):
            raise ValueError(
                f"{path}, row {number}, has {len(line)} values for {len(head)} columns; {again}"
            )
        row = dict(zip(head, line, strict=True))
        for name in numbers:
            try:
                float(row[name])
            except ValueError as error:
                raise ValueError(
                    f"{path}, row {number}: {name} must be a number, got {row[name]!r}; {again}"
                ) from error
        rows.append(row)
    return rows
