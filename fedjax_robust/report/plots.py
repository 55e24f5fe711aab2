"""Figures. Matplotlib is imported only when something is drawn."""

from __future__ import annotations

import io
import math
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import ArrayLike

from fedjax_robust.report.results import Row, write_bytes
from fedjax_robust.report.tables import Cell, summarize

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Okabe and Ito's palette, told apart with every common form of colour blindness.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
_LINES = ("-", "--", "-.", ":", (0, (5, 1)), (0, (3, 1, 1, 1)), (0, (1, 1)))
_LETTERS_PER_INCH = 11  # of a heading


def plot_curves(
    path: str | Path,
    rounds: ArrayLike,
    curves: Mapping[str, Mapping[str, ArrayLike]],
    *,
    title: str | None = None,
    metric: str = "testing error rate",
    band: Literal["range", "std"] = "range",
) -> None:
    """Draw a metric over the rounds: one panel per rule, one line per attack.

    A line is the mean over the seeds, its band their smallest and largest value ("range") or the
    mean ± the sample standard deviation ("std"). A line stops where a seed is not finite.

    Args:
      path: .png, .svg or .pdf, written atomically.
      rounds: (k,) rounds after which the metric was evaluated.
      curves: {panel: {line: (seeds, k) fractions}}; (k,) is one seed. A line has the same colour in
        every panel.
      title: a heading over all panels.
      metric: what the y axis shows; "(fraction)" is added.
      band: "range" or "std".

    Raises:
      ValueError: if there is nothing to draw, a shape does not fit or ``band`` is neither.
    """
    figure, panels = _lines_with_bands(
        np.asarray(rounds), curves, title=title, metric=metric, band=band, points="rounds"
    )
    for axes in panels:
        axes.set_xlabel("round")
    _save(figure, path)


def plot_sweep(
    path: str | Path,
    x: ArrayLike,
    curves: Mapping[str, Mapping[str, ArrayLike]],
    *,
    xlabel: str,
    title: str | None = None,
    metric: str = "testing error rate",
    log_x: bool = False,
    band: Literal["range", "std"] = "range",
) -> None:
    """Draw a metric against a swept parameter: one panel per rule, one line per attack.

    Lines, bands, colours and errors are those of ``plot_curves``; each value of the parameter is
    marked. Where a seed is missing (NaN), a line has a gap.

    Args:
      path: .png, .svg or .pdf, written atomically.
      x: (k,) values of the parameter, ascending; > 0 if ``log_x``.
      curves: {panel: {line: (seeds, k) fractions}}; (k,) is one seed.
      xlabel: the parameter in words, with its unit.
      title: a heading over all panels.
      metric: what the y axis shows; "(fraction)" is added.
      log_x: whether the x axis is logarithmic.
      band: "range" or "std".

    Raises:
      ValueError: if there is nothing to draw, a shape does not fit, ``band`` is neither, x does not
        ascend, or is not positive with ``log_x``.
    """
    values = np.asarray(x, float)
    if values.ndim != 1 or np.any(np.diff(values) <= 0):
        raise ValueError(
            f"plot_sweep needs ascending values of the parameter, got {values}; sort them"
        )
    if log_x and np.any(values <= 0):
        raise ValueError(f"a logarithmic axis needs values > 0, got {values}; leave out log_x")
    figure, panels = _lines_with_bands(
        values, curves, title=title, metric=metric, band=band, points="values", marker="o"
    )
    for axes in panels:
        axes.set_xlabel(xlabel)
    if log_x:
        panels[0].set_xscale("log")  # shared by all
    elif len(values) <= 12:  # more would overlap
        panels[0].set_xticks(values, [f"{value:g}" for value in values])
    _save(figure, path)


def _lines_with_bands(
    x: np.ndarray,
    curves: Mapping[str, Mapping[str, ArrayLike]],
    *,
    title: str | None,
    metric: str,
    band: str,
    points: str,
    marker: str = "",
) -> tuple[Figure, list[Axes]]:
    """One panel per key of ``curves``: a line of means over seeds and a band for each key in it.

    ``points`` says what x (k,) holds, for errors.
    """
    if band not in ("range", "std"):
        raise ValueError(f'band must be "range" or "std", got {band!r}')
    lines = list(dict.fromkeys(line for panel in curves.values() for line in panel))
    if not lines:
        raise ValueError("there are no curves to draw")
    figure, panels = _panels(list(curves), width=3.6, height=3.0, title=title)
    most_seeds = 1
    for axes, panel in zip(panels, curves, strict=True):
        for line, values in curves[panel].items():
            y = np.atleast_2d(np.asarray(values, float))
            if y.ndim != 2 or y.shape[1:] != x.shape:
                raise ValueError(
                    f"curves[{panel!r}][{line!r}] must be (seeds, {x.size}) or ({x.size},), "
                    f"as there are {x.size} {points}; got {np.shape(values)}"
                )
            most_seeds = max(most_seeds, len(y))
            i = lines.index(line)
            colour, mean = COLOURS[i % len(COLOURS)], y.mean(0)
            style = _LINES[i % len(_LINES)]
            axes.plot(
                x, mean, color=colour, linestyle=style, lw=1.6, marker=marker, ms=4, label=line
            )
            if len(y) > 1:
                std = y.std(0, ddof=1)
                low, high = (y.min(0), y.max(0)) if band == "range" else (mean - std, mean + std)
                axes.fill_between(x, low, high, color=colour, alpha=0.18, lw=0)
        axes.margins(x=0.02)
    for axes in panels:  # after all have lines: it ends the scaling of the y axis that they share
        axes.set_ylim(bottom=0)
    shown = {"range": "smallest to largest", "std": "± sample standard deviation"}[band]
    note = f"mean of {most_seeds} seeds; band: {shown}" if most_seeds > 1 else None
    _legend(figure, panels, lines, note)
    figure.supylabel(f"{metric} (fraction)", fontsize="medium")
    return figure, panels


def plot_comparison(
    path: str | Path,
    rows: Sequence[Row],
    paper: Mapping[Cell, float],
    *,
    line: str = "attack",
    columns: str = "rule",
    value: str = "error",
    title: str | None = None,
    metric: str = "testing error rate",
    tolerance: float = 0.03,
) -> None:
    """Draw the paper's numbers and ours side by side: one panel per column of the table.

    Ours is the mean over the seeds with a bar of ± the sample standard deviation; the grey band is
    the paper's number ± ``tolerance``. The other arguments are those of ``comparison_table``.

    Args:
      path: .png, .svg or .pdf, written atomically.
      rows: one row per run.
      paper: {(line, column): number}.
      line: the rows' key that names a panel's lines.
      columns: the rows' key that names the panels.
      value: the rows' key of the metric, a fraction in [0, 1].
      title: a heading over all panels.
      metric: what the x axis shows; "(fraction)" is added, but to one that ends with a bracket.
      tolerance: half the width of the grey band, as a fraction.

    Raises:
      ValueError: if there is nothing to draw; see also ``summarize``.
    """
    ours = summarize(rows, line, columns, value)
    cells = list(dict.fromkeys([*paper, *ours]))
    if not cells:
        raise ValueError("there are neither rows nor the paper's numbers to draw")
    lines, heads = (list(dict.fromkeys(cell[axis] for cell in cells)) for axis in (0, 1))
    figure, panels = _panels(heads, width=3.2, height=0.9 + 0.36 * len(lines), title=title)
    for axes, head in zip(panels, heads, strict=True):
        for y, name in enumerate(lines):
            if (name, head) in paper:
                x = paper[name, head]
                axes.barh(y, 2 * tolerance, left=x - tolerance, height=0.6, color="0.88")
                axes.plot(x, y, "D", color="0.25", mfc="white", ms=7, label="paper")
            if (name, head) in ours:
                mean, std, seeds = ours[name, head]
                bar = std if seeds > 1 else None
                axes.errorbar(
                    mean, y, xerr=bar, fmt="o", color=COLOURS[0], ms=5, capsize=3, label="ours"
                )
        axes.set_yticks(range(len(lines)), lines)
        axes.set_ylim(len(lines) - 0.5, -0.5)
        axes.set_xlabel(metric if metric.endswith(")") else f"{metric} (fraction)")
        axes.margins(x=0.08)
    # Shared by all; earlier it would stop the automatic scaling. Far from 0 the margin is too small.
    panels[0].set_xlim(0, 1.04 * panels[0].get_xlim()[1])
    band = f"grey: paper ± {tolerance:g}; " if paper else ""
    note = f"{band}bar: ± sample standard deviation over seeds"
    _legend(figure, panels, ["paper", "ours"], note)
    _save(figure, path)


def plot_heat_map(
    path: str | Path,
    rows: Sequence[Row],
    lines: Sequence[str],
    columns: Sequence[Sequence[str]],
    *,
    line: str = "rule",
    column: str = "attack",
    value: str = "error",
    beside: Mapping[str, str] | None = None,
    title: str | None = None,
    metric: str = "testing error rate",
    range_of: tuple[float, float] = (0.0, 1.0),
) -> None:
    """Draw a metric as one coloured square per (line, column), its mean over the seeds written inside.

    Args:
      path: .png, .svg or .pdf, written atomically.
      rows: one row per run.
      lines: names of the lines, from the top.
      columns: names of the columns, in groups with a gap between them.
      line: the rows' key that names the lines.
      column: the rows' key that names the columns.
      value: the rows' key of the metric, a fraction; two digits are shown.
      beside: {line: text} at its right end, such as what it costs; "" heads it.
      title: a heading.
      metric: what the colours show; "(fraction)" is added.
      range_of: the values of the lightest and the darkest colour.

    Raises:
      ValueError: if there is nothing to draw; see also ``summarize``.
    """
    from matplotlib.figure import Figure

    ours = summarize(rows, line, column, value)
    heads = [name for group in columns for name in group]
    if not any((name, head) in ours for name in lines for head in heads):
        raise ValueError("there is nothing to draw: no row is in these lines and columns")
    places, x = {}, 0.0
    for group in columns:
        for name in group:
            places[name] = x
            x += 1
        x += 0.35
    width = 2.6 + 0.42 * x + (1.0 if beside else 0)
    figure = Figure(figsize=(width, 2.2 + 0.24 * len(lines)), layout="constrained")
    axes = figure.subplots()
    low, high = range_of
    image = None
    for y, name in enumerate(lines):
        for head, at in places.items():
            if (name, head) not in ours:
                continue
            mean = ours[name, head].mean
            image = axes.imshow(
                [[mean]],
                cmap="YlOrRd",
                vmin=low,
                vmax=high,
                extent=(at - 0.5, at + 0.5, y + 0.5, y - 0.5),
                aspect="auto",
            )
            dark = (mean - low) / (high - low) > 0.6
            text = f"{mean:.2f}".removeprefix("0") if mean < 0.995 else "1"
            colour = "white" if dark else "black"
            axes.text(at, y, text, ha="center", va="center", fontsize=7, color=colour)
        if beside and name in beside:
            axes.text(x - 0.2, y, beside[name], va="center", fontsize=8)
    if beside and "" in beside:
        axes.text(x - 0.2, -1, beside[""], va="center", fontsize=8)
    assert image is not None
    axes.set_xlim(-0.6, x - 0.75)
    axes.set_ylim(len(lines) - 0.5, -0.5)
    axes.set_yticks(range(len(lines)), lines, fontsize=8)
    axes.set_xticks(
        [*places.values()], [*places], rotation=60, ha="left", rotation_mode="anchor", fontsize=8
    )
    axes.tick_params(length=0, labeltop=True, labelbottom=False, top=False, bottom=False)
    axes.spines[:].set_visible(False)
    figure.colorbar(image, location="bottom", shrink=0.5, label=f"{metric} (fraction)", aspect=40)
    if title:
        figure.suptitle(textwrap.fill(title, int(_LETTERS_PER_INCH * width)))
    _save(figure, path)


def _panels(
    names: Sequence[str], width: float, height: float, title: str | None
) -> tuple[Figure, list[Axes]]:
    """A figure of titled panels, at most three beside each other; sizes in inches."""
    from matplotlib.figure import Figure  # not pyplot: no global state, no window, any thread

    across = min(3, len(names))
    down = -(-len(names) // across)
    size = (max(4.2, 0.6 + width * across), 0.9 + height * down)
    figure = Figure(figsize=size, layout="constrained")
    grid = figure.subplots(down, across, sharex=True, sharey=True, squeeze=False).ravel()
    for axes in grid[len(names) :]:
        axes.remove()
    for axes, name in zip(grid, names, strict=False):
        axes.set_title(name, fontsize="medium")
        axes.tick_params(labelbottom=True)
        axes.grid(color="0.9", lw=0.7)
        axes.set_axisbelow(True)
        axes.spines[["top", "right"]].set_visible(False)
    if title:
        figure.suptitle(textwrap.fill(title, int(_LETTERS_PER_INCH * size[0])))
    return figure, list(grid[: len(names)])


def _legend(
    figure: Figure, panels: Sequence[Axes], order: Sequence[str], title: str | None
) -> None:
    """One legend below all panels, of the labels that were drawn."""
    drawn: dict[str, Any] = {}
    for axes in panels:
        handles, labels = axes.get_legend_handles_labels()
        drawn.update(zip(labels, handles, strict=True))
    shown = [label for label in order if label in drawn]
    # As many beside each other as fit, next to their line samples, in even rows.
    letters = _LETTERS_PER_INCH * figure.get_figwidth() / (max(map(len, shown), default=1) + 6)
    beside = max(min(int(letters), 2 * min(3, len(panels))), 1)
    figure.legend(
        [drawn[label] for label in shown],
        shown,
        loc="outside lower center",
        ncols=max(math.ceil(len(shown) / math.ceil(max(len(shown), 1) / beside)), 1),
        title=title,
        title_fontsize="small",
        frameon=False,
    )


def _save(figure: Figure, path: str | Path) -> None:
    import matplotlib as mpl

    path = Path(path)
    if path.suffix not in (".png", ".svg", ".pdf"):
        raise ValueError(f"a plot is saved as .png, .svg or .pdf, got {path}")
    drawing = io.BytesIO()
    with mpl.rc_context({"svg.fonttype": "none"}):  # text stays text
        figure.savefig(drawing, format=path.suffix[1:], dpi=150)
    write_bytes(path, drawing.getvalue())
