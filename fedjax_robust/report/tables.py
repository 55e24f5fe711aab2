"""The paper's numbers beside ours as Markdown tables."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from fedjax_robust.report.results import Row

Cell = tuple[str, str]
"""A cell of a table: (value of the row's line, value of its column), say (attack, rule)."""


class Summary(NamedTuple):
    """One metric over the seeds of a cell."""

    mean: float
    std: float
    """Sample standard deviation (divided by seeds - 1); NaN for one seed."""
    seeds: int


def summarize(
    rows: Sequence[Row], line: str = "attack", columns: str = "rule", value: str = "error"
) -> dict[Cell, Summary]:
    """Mean and spread of the column ``value`` for each pair (row[line], row[columns]).

    Raises:
      ValueError: if a row lacks one of these columns, or if two rows of a cell have the same
        ``seed`` (rows of several tables or settings were mixed).
    """
    values: dict[Cell, list[float]] = {}
    seen = set()
    for row in rows:
        if missing := [key for key in (line, columns, value) if key not in row]:
            raise ValueError(f"a row lacks the columns {missing}, it has {sorted(row)}")
        cell = (str(row[line]), str(row[columns]))
        if "seed" in row:
            if (cell, row["seed"]) in seen:
                raise ValueError(
                    f"two rows of the cell {cell} have the seed {row['seed']}; "
                    "select the rows of one table and one setting first"
                )
            seen.add((cell, row["seed"]))
        values.setdefault(cell, []).append(float(row[value]))
    return {
        cell: Summary(
            float(np.mean(v)), float(np.std(v, ddof=1)) if len(v) > 1 else math.nan, len(v)
        )
        for cell, v in values.items()
    }


def differences(
    rows: Sequence[Row],
    paper: Mapping[Cell, float],
    *,
    line: str = "attack",
    columns: str = "rule",
    value: str = "error",
) -> dict[Cell, float]:
    """Our mean minus the paper's number, for each cell that both have, in the paper's order.

    Args:
      rows: one row per run; a cell's runs differ in their seed.
      paper: {(line, column): number}, in the paper's order.
      line: the rows' key that names the table's lines.
      columns: the rows' key that names the table's columns.
      value: the rows' key of the metric, a fraction in [0, 1].

    Raises:
      ValueError: see ``summarize``.
    """
    return _differences(summarize(rows, line, columns, value), paper)


def _differences(ours: Mapping[Cell, Summary], paper: Mapping[Cell, float]) -> dict[Cell, float]:
    return {cell: ours[cell].mean - number for cell, number in paper.items() if cell in ours}


def is_within(difference: float, tolerance: float) -> bool:
    """Whether a difference is at most the tolerance, up to rounding: 0.13 - 0.1 exceeds 0.03."""
    return abs(difference) <= tolerance + 1e-9


def show_summary(summary: Summary) -> str:
    """Mean ± standard deviation, or the mean alone for one seed."""
    mean, std, seeds = summary
    return f"{mean:.3f} ± {std:.3f}" if seeds > 1 else f"{mean:.3f}"


def count_seeds(summaries: Mapping[Any, Summary]) -> str:
    """How many seeds the cells have, in words: "1 seed", "3 seeds", "1 to 3 seeds"."""
    counts = sorted({summary.seeds for summary in summaries.values()}) or [0]
    over = " to ".join(str(count) for count in dict.fromkeys([counts[0], counts[-1]]))
    return f"{over} seed{'' if over == '1' else 's'}"


def markdown_table(rows: Sequence[Row], columns: Sequence[str] | None = None) -> str:
    """Rows as a Markdown table, padded so that it also reads well in a terminal.

    Args:
      rows: floats are shown with three decimals, None and absent values as "–".
      columns: which keys to show, by default all in order of first appearance.
    """
    keys = list(dict.fromkeys(k for row in rows for k in row)) if columns is None else list(columns)
    return _markdown(keys, [[_show(row.get(key)) for key in keys] for row in rows])


def comparison_table(
    rows: Sequence[Row],
    paper: Mapping[Cell, float],
    *,
    line: str = "attack",
    columns: str = "rule",
    value: str = "error",
    metric: str = "testing error rate",
    tolerance: float = 0.03,
) -> str:
    """The paper's table with ours beside each number, as Markdown.

    Args:
      rows: one row per run; a cell's runs differ in their seed.
      paper: {(line, column): number}, in the paper's order. Cells that only ``rows``
        have come after it.
      line: the rows' key that names the table's lines.
      columns: the rows' key that names the table's columns.
      value: the rows' key of the metric, a fraction in [0, 1].
      metric: the metric in words, for the heading; one that ends with a bracket says its unit itself.
      tolerance: largest accepted |mean - paper|, as a fraction.

    Returns:
      A heading that names metric, unit and number of seeds; the table, with "–" for what there is
      not and bold where a mean is out of tolerance; the share of cells within it. Columns without a
      number of the paper have ours alone.

    Raises:
      ValueError: see ``summarize``.
    """
    ours = summarize(rows, line, columns, value)
    cells = list(dict.fromkeys([*paper, *ours]))
    lines, heads = (list(dict.fromkeys(cell[axis] for cell in cells)) for axis in (0, 1))

    distance = _differences(ours, paper)

    def is_close(cell: Cell) -> bool:
        return is_within(distance[cell], tolerance)

    printed = {column for _, column in paper}  # a column without a printed number has ours alone

    def show(cell: Cell) -> list[str]:
        text = show_summary(ours[cell]) if cell in ours else "–"
        if cell in distance and not is_close(cell):
            text = f"**{text}**"
        if cell[1] not in printed:
            return [text]
        return [_printed(paper[cell]) if cell in paper else "–", text]

    unit = "" if metric.endswith(")") else ", fraction (0 to 1)"
    heading = (
        f"{metric[0].upper()}{metric[1:]}{unit}: {'paper | ours, ' if paper else ''}"
        f"mean ± sample standard deviation over {count_seeds(ours)}."
    )
    names = [[f"{head}: paper", "ours"] if head in printed else [head] for head in heads]
    table = _markdown(
        [line, *(text for pair in names for text in pair)],
        [[name, *(text for head in heads for text in show((name, head)))] for name in lines],
    )
    if not paper:
        return f"{heading}\n\n{table}\n"
    close = sum(map(is_close, distance))
    footer = f"{close} of {len(distance)} cells are within {tolerance:g} of the paper"
    if distance:
        footer += f" ({close / len(distance):.0%})"
    if close < len(distance):
        footer += "; **bold** ones are not"
    if waiting := len(paper) - len(distance):
        footer += f"; {waiting} not run yet"
    return f"{heading}\n\n{table}\n\n{footer}.\n"


def _printed(number: float) -> str:
    """Two decimals, or three where the paper has them."""
    text = f"{number:.3f}"
    return text.removesuffix("0")


def _show(value: Any) -> str:
    if value is None:
        return "–"
    return f"{value:.3f}" if isinstance(value, float | np.floating) else str(value)


def safe(text: str) -> str:
    """The text so that it makes neither HTML nor a link of a Markdown page, in one line."""
    text = re.sub(r"&(?=#?\w+;)", "&amp;", text).replace("<", "&lt;")
    return " ".join(re.sub(r"\](?=[(\[:])", r"\\]", text).split("\n"))


def _markdown(head: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    texts = [[safe(text).replace("|", "\\|") for text in line] for line in [head, *lines]]
    widths = [max(3, *(len(text) for text in column)) for column in zip(*texts, strict=True)]
    rule = ["-" * width for width in widths]
    return "\n".join(
        "| "
        + " | ".join(text.ljust(width) for text, width in zip(line, widths, strict=True))
        + " |"
        for line in [texts[0], rule, *texts[1:]]
    )
