"""Results on disk, the paper's numbers beside ours as Markdown tables, and plots.

Results are *rows*: one mapping per run (one seed of one cell of a table), with the metric and every
setting as columns. Errors and rates are fractions between 0 and 1 everywhere, and each table and
axis says so. Matplotlib is imported only when something is drawn.

Files are written atomically: whoever reads one, also after a crash, sees the old content or the
new, never a part. Non-finite numbers are stored as the strings "NaN", "Infinity" and "-Infinity"
(standard JSON has no other way to tell them from a missing value) and come back as floats.
"""

from __future__ import annotations

import csv
import importlib.metadata
import io
import json
import math
import platform
import re
import subprocess
import warnings
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import jax
import numpy as np
from numpy.typing import ArrayLike

from fedjax_robust.files import written_atomically

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Row = Mapping[str, Any]
Cell = tuple[str, str]
"""A cell of a table: (value of the row's index, value of its column), say (attack, rule)."""

# Okabe and Ito's palette, told apart with every common form of colour blindness.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
_LINES = ("-", "--", "-.", ":", (0, (5, 1)), (0, (3, 1, 1, 1)), (0, (1, 1)))
_NON_FINITE = {"NaN": math.nan, "Infinity": math.inf, "-Infinity": -math.inf}


# --- Where a number comes from --------------------------------------------------------------------


def provenance(checkout: str | Path | None = None) -> dict[str, Any]:
    """Versions, source commit, device and time of the running process, to be stored with results.

    Args:
      checkout: top folder of the git checkout to report; by default the one that holds this
        package. ``git_commit`` (12 digits) and ``git_dirty`` (bool: uncommitted or untracked files)
        are None if that folder is not the top of a checkout or git is not there.

    Returns:
      A flat dictionary of strings, numbers and None. A package's version is None if it is not
      installed. Asking for the devices initializes JAX's backend.
    """
    top = Path(__file__).resolve().parents[1] if checkout is None else Path(checkout).resolve()
    inside = _git(top, "rev-parse", "--show-toplevel")
    here = inside is not None and Path(inside).resolve() == top
    commit = _git(top, "rev-parse", "--short=12", "HEAD") if here else None
    changes = None if commit is None else _git(top, "status", "--porcelain")
    devices = jax.devices()
    return {
        **{
            f"{name}_version": _version(name)
            for name in ("fedjax_robust", "jax", "jaxlib", "flax", "optax", "numpy")
        },
        "python_version": platform.python_version(),
        "git_commit": commit,
        "git_dirty": None if changes is None else bool(changes),
        "platform": platform.platform(),
        "backend": jax.default_backend(),
        "device_kind": devices[0].device_kind,
        "device_count": len(devices),
        "utc_time": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def _git(folder: Path, *arguments: str) -> str | None:
    """The stripped output of a git command in the folder; None if it fails."""
    try:
        done = subprocess.run(
            ["git", "-C", str(folder), *arguments], capture_output=True, text=True, timeout=30
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None


# --- Files ----------------------------------------------------------------------------------------


def write_rows(path: str | Path, rows: Sequence[Row]) -> None:
    """Write rows as ``path``.json (read back by ``read_rows``) and ``path``.csv (for other tools).

    The columns of the CSV are the keys of all rows in order of first appearance; None and absent
    values are empty there, nested values are JSON text.

    Args:
      path: file name without suffix; missing folders are made.
      rows: values are None, bool, int, float, str, paths, arrays, or lists and mappings of them.

    Raises:
      ValueError: for a value of any other type.
    """
    plain = [_plain(dict(row), f"row {i}") for i, row in enumerate(rows)]
    lines = ",\n".join(json.dumps(row, allow_nan=False) for row in plain)
    _write(_suffixed(path, ".json"), f"[\n{lines}\n]\n".encode())

    table = io.StringIO()
    writer = csv.DictWriter(table, list(dict.fromkeys(key for row in plain for key in row)))
    writer.writeheader()
    for row in plain:
        nested = {k: json.dumps(v) for k, v in row.items() if isinstance(v, list | dict)}
        writer.writerow({**row, **nested})
    _write(_suffixed(path, ".csv"), table.getvalue().encode())


def read_rows(path: str | Path) -> list[dict[str, Any]]:
    """Read the rows that ``write_rows(path, ...)`` wrote. Arrays and tuples come back as lists.

    Raises:
      FileNotFoundError: if there is no ``path``.json.
      ValueError: if the file is not a JSON list of objects.
    """
    file = _suffixed(path, ".json")
    try:
        rows = json.loads(file.read_text("utf-8"))
        if not (isinstance(rows, list) and all(isinstance(row, dict) for row in rows)):
            raise ValueError("it must be a list of objects")
    except ValueError as error:
        raise ValueError(f"{file} does not hold rows ({error}); write it again") from error
    return [_restore(row) for row in rows]


def save_cell(folder: str | Path, name: str, settings: Row, result: Row) -> None:
    """Store one finished cell of an experiment, so that an interrupted one goes on after it.

    Args:
      folder: the experiment's result folder; the file is ``folder``/cells/``name``.json.
      name: letters, digits, ``.``, ``_`` and ``-``, not beginning with a dot.
      settings: all that determines the result; ``load_cell`` compares it.
      result: what was computed; values as in ``write_rows``.

    Raises:
      ValueError: for any other name, or a value that cannot be written.
    """
    path = _cell_path(folder, name)
    content = {
        "settings": _plain(dict(settings), "settings"),
        "result": _plain(dict(result), "result"),
    }
    lines = ",\n".join(f'"{key}": {json.dumps(v, allow_nan=False)}' for key, v in content.items())
    _write(path, f"{{\n{lines}\n}}\n".encode())


def load_cell(folder: str | Path, name: str, settings: Row) -> dict[str, Any] | None:
    """Load what ``save_cell`` stored.

    Returns:
      The result, arrays and tuples as lists; or None if the cell must be computed: there is no such
      file, or it is damaged, of which a RuntimeWarning tells.

    Raises:
      ValueError: if the cell was computed with other settings.
    """
    path = _cell_path(folder, name)
    try:
        content = json.loads(path.read_text("utf-8"))
        stored, result = dict(content["settings"]), dict(content["result"])
    except FileNotFoundError:
        return None
    except (ValueError, KeyError, TypeError) as error:
        message = f"{path} is damaged ({error!r}) and is computed again"
        warnings.warn(message, RuntimeWarning, stacklevel=2)
        return None
    now = _plain(dict(settings), "settings")
    absent = "absent"
    different = [
        f"{key}: {stored.get(key, absent)!r} in the file, {now.get(key, absent)!r} now"
        for key in sorted({*stored, *now})
        if stored.get(key, absent) != now.get(key, absent)
    ]
    if different:
        raise ValueError(
            f"{path} was computed with other settings ({'; '.join(different)}). "
            "Choose another result folder, or delete that file to compute the cell again."
        )
    restored: dict[str, Any] = _restore(result)
    return restored


def _cell_path(folder: str | Path, name: str) -> Path:
    if not re.fullmatch(r"\w[\w.-]*", name, re.ASCII):
        raise ValueError(
            f"a cell's name is made of letters, digits, '.', '_' and '-', got {name!r}"
        )
    return Path(folder) / "cells" / f"{name}.json"


def _suffixed(path: str | Path, suffix: str) -> Path:
    path = Path(path)
    if path.suffix in (".csv", ".json"):
        raise ValueError(f"give the path of rows without suffix, as both are written; got {path}")
    return path.with_name(path.name + suffix)


def _write(path: Path, content: bytes) -> None:
    with written_atomically(path) as file:
        file.write(content)


def _plain(value: Any, where: str) -> Any:
    """The value in terms of JSON's types, non-finite numbers as strings."""
    if isinstance(value, np.ndarray | np.generic | jax.Array):
        try:
            value = np.asarray(value).tolist()
        except TypeError as error:
            raise ValueError(f"{where} cannot be written: {error}") from error
    if isinstance(value, str) and value in _NON_FINITE:
        raise ValueError(
            f"{where} is the text {value!r}, which stands for a number in result files"
        )
    if value is None or isinstance(value, bool | int | str):
        return value
    if isinstance(value, float):
        if math.isfinite(value):
            return value
        return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, Mapping):
        bad = [key for key in value if not isinstance(key, str)]
        if bad:
            raise ValueError(f"{where} has keys that are not text: {bad}; convert them")
        return {key: _plain(item, f"{where}[{key!r}]") for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item, f"{where}[{i}]") for i, item in enumerate(value)]
    raise ValueError(
        f"{where} is a {type(value).__name__}, which cannot be written; "
        "convert it to numbers, text, lists or mappings"
    )


def _restore(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _restore(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_restore(item) for item in value]
    return _NON_FINITE.get(value, value) if isinstance(value, str) else value


# --- Tables ---------------------------------------------------------------------------------------


class Summary(NamedTuple):
    """One metric over the seeds of a cell."""

    mean: float
    std: float
    """Sample standard deviation (divided by seeds - 1); NaN for one seed."""
    seeds: int


def summarize(
    rows: Sequence[Row], index: str = "attack", columns: str = "rule", value: str = "error"
) -> dict[Cell, Summary]:
    """Mean and spread of the column ``value`` for each pair (row[index], row[columns]).

    Raises:
      ValueError: if a row lacks one of these columns, or if two rows of a cell have the same
        ``seed`` (rows of several tables or settings were mixed).
    """
    values: dict[Cell, list[float]] = {}
    seen = set()
    for row in rows:
        if missing := [key for key in (index, columns, value) if key not in row]:
            raise ValueError(f"a row lacks the columns {missing}, it has {sorted(row)}")
        cell = (str(row[index]), str(row[columns]))
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
    index: str = "attack",
    columns: str = "rule",
    value: str = "error",
    metric: str = "testing error rate",
    tolerance: float = 0.03,
) -> str:
    """The paper's table with ours beside each number, as Markdown.

    Args:
      rows: one row per run; a cell's runs differ in their seed.
      paper: {(index value, column value): number}, in the paper's order. Cells that only ``rows``
        have come after it.
      index: the rows' key that names the table's lines.
      columns: the rows' key that names the table's columns.
      value: the rows' key of the metric, a fraction in [0, 1].
      metric: the metric in words, for the heading.
      tolerance: largest accepted |mean - paper|, as a fraction.

    Returns:
      A heading that names metric, unit and number of seeds; the table, with "–" for what there is
      not and bold where a mean is out of tolerance; the share of cells within it.

    Raises:
      ValueError: see ``summarize``.
    """
    ours = summarize(rows, index, columns, value)
    cells = list(dict.fromkeys([*paper, *ours]))
    lines, heads = (list(dict.fromkeys(cell[axis] for cell in cells)) for axis in (0, 1))

    def is_close(cell: Cell) -> bool:
        return abs(ours[cell].mean - paper[cell]) <= tolerance + 1e-9  # 0.13 - 0.1 exceeds 0.03

    def show(cell: Cell) -> list[str]:
        theirs = f"{paper[cell]:.2f}" if cell in paper else "–"
        if cell not in ours:
            return [theirs, "–"]
        mean, std, seeds = ours[cell]
        text = f"{mean:.3f} ± {std:.3f}" if seeds > 1 else f"{mean:.3f}"
        return [theirs, f"**{text}**" if cell in paper and not is_close(cell) else text]

    counts = sorted({summary.seeds for summary in ours.values()})
    over = " to ".join(
        str(count) for count in dict.fromkeys([counts[0], counts[-1]] if counts else [0])
    )
    heading = (
        f"{metric[0].upper()}{metric[1:]}, fraction (0 to 1): paper | ours, "
        f"mean ± sample standard deviation over {over} seed{'' if over == '1' else 's'}."
    )
    table = _markdown(
        [index, *(text for head in heads for text in (f"{head}: paper", "ours"))],
        [[line, *(text for head in heads for text in show((line, head)))] for line in lines],
    )
    compared = [cell for cell in paper if cell in ours]
    close = sum(is_close(cell) for cell in compared)
    footer = f"{close} of {len(compared)} cells are within {tolerance:g} of the paper"
    if compared:
        footer += f" ({close / len(compared):.0%})"
    if close < len(compared):
        footer += "; **bold** ones are not"
    if waiting := len(paper) - len(compared):
        footer += f"; {waiting} not run yet"
    return f"{heading}\n\n{table}\n\n{footer}.\n"


def _show(value: Any) -> str:
    if value is None:
        return "–"
    return f"{value:.3f}" if isinstance(value, float | np.floating) else str(value)


def _markdown(head: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    texts = [
        [text.replace("|", "\\|").replace("\n", " ") for text in line] for line in [head, *lines]
    ]
    widths = [max(3, *(len(text) for text in column)) for column in zip(*texts, strict=True)]
    rule = ["-" * width for width in widths]
    return "\n".join(
        "| "
        + " | ".join(text.ljust(width) for text, width in zip(line, widths, strict=True))
        + " |"
        for line in [texts[0], rule, *texts[1:]]
    )


# --- Plots ----------------------------------------------------------------------------------------


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
    x = np.asarray(rounds)
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
                    f"as there are {x.size} rounds; got {np.shape(values)}"
                )
            most_seeds = max(most_seeds, len(y))
            i = lines.index(line)
            colour, mean = COLOURS[i % len(COLOURS)], y.mean(0)
            axes.plot(x, mean, color=colour, linestyle=_LINES[i % len(_LINES)], lw=1.6, label=line)
            if len(y) > 1:
                std = y.std(0, ddof=1)
                low, high = (y.min(0), y.max(0)) if band == "range" else (mean - std, mean + std)
                axes.fill_between(x, low, high, color=colour, alpha=0.18, lw=0)
        axes.set_xlabel("round")
        axes.set_ylim(bottom=0)
        axes.margins(x=0.02)
    shown = {"range": "smallest to largest", "std": "± sample standard deviation"}[band]
    note = f"mean of {most_seeds} seeds; band: {shown}" if most_seeds > 1 else None
    _legend(figure, panels, lines, note)
    figure.supylabel(f"{metric} (fraction)", fontsize="medium")
    _save(figure, path)


def plot_comparison(
    path: str | Path,
    rows: Sequence[Row],
    paper: Mapping[Cell, float],
    *,
    index: str = "attack",
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
      paper: {(index value, column value): number}.
      index: the rows' key that names a panel's lines.
      columns: the rows' key that names the panels.
      value: the rows' key of the metric, a fraction in [0, 1].
      title: a heading over all panels.
      metric: what the x axis shows; "(fraction)" is added.
      tolerance: half the width of the grey band, as a fraction.

    Raises:
      ValueError: if there is nothing to draw; see also ``summarize``.
    """
    ours = summarize(rows, index, columns, value)
    cells = list(dict.fromkeys([*paper, *ours]))
    if not cells:
        raise ValueError("there are neither rows nor the paper's numbers to draw")
    lines, heads = (list(dict.fromkeys(cell[axis] for cell in cells)) for axis in (0, 1))
    figure, panels = _panels(heads, width=3.2, height=0.9 + 0.36 * len(lines), title=title)
    for axes, head in zip(panels, heads, strict=True):
        for y, line in enumerate(lines):
            if (line, head) in paper:
                x = paper[line, head]
                axes.barh(y, 2 * tolerance, left=x - tolerance, height=0.6, color="0.88")
                axes.plot(x, y, "D", color="0.25", mfc="white", ms=7, label="paper")
            if (line, head) in ours:
                mean, std, seeds = ours[line, head]
                bar = std if seeds > 1 else None
                axes.errorbar(
                    mean, y, xerr=bar, fmt="o", color=COLOURS[0], ms=5, capsize=3, label="ours"
                )
        axes.set_yticks(range(len(lines)), lines)
        axes.set_ylim(len(lines) - 0.5, -0.5)
        axes.set_xlabel(f"{metric} (fraction)")
        axes.margins(x=0.08)
    panels[0].set_xlim(left=0)  # shared by all; earlier it would stop the automatic scaling
    note = f"grey: paper ± {tolerance:g}; bar: ± sample standard deviation over seeds"
    _legend(figure, panels, ["paper", "ours"], note)
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
        figure.suptitle(title)
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
    figure.legend(
        [drawn[label] for label in shown],
        shown,
        loc="outside lower center",
        ncols=math.ceil(len(shown) / math.ceil(len(shown) / (2 * len(panels)))),  # even rows
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
    _write(path, drawing.getvalue())
