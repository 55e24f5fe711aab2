"""One page of all results, and the tables of the READMEs: from every folder with an ``about.json``.

  python experiments/make_report.py              writes results/REPORT.md and fills the READMEs
  python experiments/make_report.py --check      writes nothing; says which README is not as its rows

A folder under the first place hides the one of the same name under the next, so that fresh results take
the place of the ones that come with the project. Folders of smoke runs are left out. A folder that cannot
be read is named at the head of the page, and the others are written all the same.

READMEs of experiments show published tables between ``<!-- rows: fang2020/table2/2a -->`` and
``<!-- end -->``: what is in experiments/fang2020/results/table2/2a, never fresh results.
"""

from __future__ import annotations

import dataclasses
import difflib
import os
import re
import sys
import urllib.parse
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import tyro
from overview import GENERATED

from fedjax_robust import report
from fedjax_robust.files import written_atomically
from fedjax_robust.report.tables import count_seeds, is_within, safe, show_summary

EXPERIMENTS = Path(__file__).resolve().parent
BLOCK = re.compile(r"^(<!-- rows: (\S+) -->\n)(.*?)^(<!-- end -->)$", re.DOTALL | re.MULTILINE)


@dataclasses.dataclass
class Args:
    """Write one report of all results, and the tables of the READMEs."""

    places: tuple[Path, ...] = (Path("results"), EXPERIMENTS)
    """Where to look; the first place that has a folder wins."""
    out: Path = Path("results/REPORT.md")
    """The file to write."""
    readmes: tuple[Path, ...] = ()
    """READMEs to fill with published tables; default the project's and those of the papers."""
    published: Path = EXPERIMENTS
    """Where the READMEs' tables come from."""
    check: bool = False
    """Only compare the READMEs' tables with their rows."""


def main(args: Args) -> int:
    """Returns the exit code: 1 if there are no results, or a README cannot be filled (or, with
    ``check``, is not as its rows)."""
    own = [EXPERIMENTS.parent / "README.md", *sorted(EXPERIMENTS.rglob("README.md"))]
    readmes = args.readmes or [path for path in own if path.exists()]
    troubles = fill(readmes, find((args.published,)), write=not args.check)
    for trouble in troubles:
        print(trouble, file=sys.stderr)
    if args.check:
        return bool(troubles)
    folders = find(args.places)
    if not folders:
        places = " or ".join(map(str, args.places))
        print(f"there are no results in {places}; run an experiment first, such as: make demo")
        return 1
    text, bad = page(folders, args.out.parent)
    with written_atomically(args.out) as file:
        file.write(text.encode())
    for name, error in bad.items():
        print(f"left out {name}: {error}", file=sys.stderr)
    print(f"{args.out}: {len(folders) - len(bad)} of {len(folders)} folders")
    return bool(troubles)


def find(places: Sequence[Path]) -> dict[str, Path]:
    """{name: folder} of all results, ascending; the first place wins. A name is the path without the
    folder ``results`` that each paper has."""
    found: dict[str, Path] = {}
    for place in places:
        for file in sorted(path for name in report.ABOUT for path in place.rglob(name)):
            parts = [part for part in file.parent.relative_to(place).parts if part != "results"]
            if not any(part.endswith("-smoke") for part in parts):
                found.setdefault("/".join(parts) or ".", file.parent)
    return dict(sorted(found.items()))


# --- READMEs -------------------------------------------------------------------------------------


def fill(readmes: Sequence[Path], folders: Mapping[str, Path], *, write: bool) -> list[str]:
    """Put the tables of folders into READMEs, or only compare them.

    Returns:
      What is wrong, each with its file: a block that cannot be filled or, without ``write``, differs.
    """
    troubles = []
    for path in readmes:
        text = path.read_text("utf-8")
        if len(re.findall("^<!-- rows:", text, re.MULTILINE)) != len(BLOCK.findall(text)):
            troubles.append(
                f"{path}: a block does not end; write <!-- rows: name --> ... <!-- end -->"
            )
            continue

        def table(match: re.Match[str], path: Path = path) -> str:
            before, name, old, after = match.groups()
            try:
                if name not in folders and name not in GENERATED:
                    near = difflib.get_close_matches(name, folders, n=3, cutoff=0)
                    raise ValueError(f"there are no published rows of this name; near it: {near}")
                made = GENERATED[name](folders) if name in GENERATED else table_of(folders[name])
                new = f"{made.strip()}\n"
            except (ValueError, OSError) as error:
                troubles.append(f"{path}, {name}: {error}")
                return match[0]
            if new != old and not write:
                troubles.append(f"{path}, {name}: the table is not as its rows; run: make report")
            return before + new + after

        new = BLOCK.sub(table, text)
        if write and new != text:
            with written_atomically(path) as file:
                file.write(new.encode())
    return troubles


def table_of(folder: Path) -> str:
    """A folder's table as it stands in ``table.md`` below title and notes."""
    if isinstance(report.read_about(folder), report.Table):
        return report.table_text(*report.read_table(folder))
    return report.sweep_table(*report.read_sweep(folder))


# --- The page of all results ---------------------------------------------------------------------


def page(folders: Mapping[str, Path], here: Path) -> tuple[str, dict[str, str]]:
    """The page, and what is wrong with the folders that are not in it."""
    lines: list[dict[str, Any]] = []
    parts: dict[str, list[str]] = {"table": [], "sweep": []}
    bad: dict[str, str] = {}
    for name, folder in folders.items():
        try:
            if isinstance(report.read_about(folder), report.Table):
                line, section = summary_line(name, folder), [*table_section(name, folder, here)]
                lines.append(line)
                parts["table"] += section
            else:
                parts["sweep"] += sweep_section(name, folder, here)
        except (ValueError, TypeError, OSError) as error:
            text = str(error)
            bad[name] = text if str(folder) in text else f"{folder}: {text}"
    numbers = {kind: sum(p.startswith("## ") for p in own) for kind, own in parts.items()}
    head = [
        "# Results",
        f"{numbers['table']} tables and {numbers['sweep']} sweeps. "
        "Errors and rates are fractions (0 to 1).",
        *([report.markdown_table(lines)] if lines else []),
        *(f"**Left out**, folder {code(name)}: {safe(error)}" for name, error in bad.items()),
    ]
    return "\n\n".join([*head, *parts["table"], *parts["sweep"]]) + "\n", bad


def compare(folder: Path) -> tuple[report.Table, list[dict[str, str]], dict[report.Cell, float]]:
    """What the table is, its rows, and our mean minus the paper's number for each cell."""
    about, rows = report.read_table(folder)
    names = {"line": about.line, "columns": about.columns, "value": about.value}
    return about, rows, report.differences(rows, about.paper, **names)


def summary_line(name: str, folder: Path) -> dict[str, Any]:
    about, rows, differences = compare(folder)
    close = sum(is_within(d, about.tolerance) for d in differences.values())
    number = len(differences)
    ours = report.summarize(rows, about.line, about.columns, about.value)
    return {
        "table": name,
        "cells compared": number,
        "within tolerance": f"{close} (± {about.tolerance:g})",
        "share": f"{close / number:.0%}" if number else None,
        "seeds": count_seeds(ours).split(" seed")[0],
        "mean absolute difference": (
            sum(map(abs, differences.values())) / number if number else None
        ),
    }


def table_section(name: str, folder: Path, here: Path) -> Iterator[str]:
    about, rows, differences = compare(folder)
    ours = report.summarize(rows, about.line, about.columns, about.value)
    yield from head(name, about, rows)
    yield f"{safe(about.metric[0].upper() + about.metric[1:])}, over {count_seeds(ours)}:"
    cells = list(dict.fromkeys([*about.paper, *ours]))
    yield report.markdown_table(
        [
            {
                about.line: cell[0],
                about.columns: cell[1],
                "paper": f"{about.paper[cell]:.2f}" if cell in about.paper else None,
                "ours": show_summary(ours[cell]) if cell in ours else None,
                "difference": signed(differences, cell, about.tolerance),
            }
            for cell in cells
        ]
    )
    close = sum(is_within(d, about.tolerance) for d in differences.values())
    yield (
        f"{close} of {len(differences)} cells are within {about.tolerance:g} of the paper"
        f"{f' ({close / len(differences):.0%})' if differences else ''}."
    )
    yield from images(folder, here, ("comparison.png", "curves.png"))


def signed(differences: Mapping[report.Cell, float], cell: report.Cell, tol: float) -> str | None:
    """A difference with its sign, bold if it is out of tolerance."""
    if cell not in differences:
        return None
    text = f"{differences[cell]:+.3f}"
    return text if is_within(differences[cell], tol) else f"**{text}**"


def sweep_section(name: str, folder: Path, here: Path) -> Iterator[str]:
    about, rows = report.read_sweep(folder)
    yield from head(name, about, rows)
    yield from images(folder, here, ("sweep.png",))
    yield report.sweep_table(about, rows).strip()


def head(
    name: str, about: report.Table | report.Sweep, rows: Sequence[Mapping[str, str]]
) -> Iterator[str]:
    yield f"## {safe(about.title)}"
    yield f"Folder {code(name)}; {code(about.command)}"
    if about.notes:
        yield safe(about.notes)
    if where := origin(rows):
        yield safe(where)
    if about.doubts and isinstance(about, report.Table):  # a sweep's table says it itself
        yield f"Not traceable: {safe('; '.join(about.doubts))}."


def code(text: str) -> str:
    """A code span, of text that may hold backticks."""
    text = " ".join(text.split("\n"))
    ticks = "`" * (1 + max(map(len, re.findall("`+", text)), default=0))
    space = " " if text[:1] == "`" or text[-1:] == "`" else ""
    return f"{ticks}{space}{text}{space}{ticks}"


def origin(rows: Sequence[Mapping[str, str]]) -> str:
    """Hardware, versions and dates of the runs, from their provenance; empty if there is none."""

    def values(key: str, short: slice = slice(None)) -> str:
        return ", ".join(sorted({row[key][short] for row in rows if row.get(key)}))

    facts = {
        "Hardware": values("device_kind") or values("backend"),
        "JAX": values("jax_version"),
        "fedjax_robust": values("fedjax_robust_version"),
        "commit": values("git_commit"),
        "finished": values("utc_time", slice(10)),
    }
    text = "; ".join(f"{name} {value}" for name, value in facts.items() if value)
    return f"{text}." if text else ""


def images(folder: Path, here: Path, names: Sequence[str]) -> Iterator[str]:
    for name in names:
        if (folder / name).exists():
            path = Path(os.path.relpath(folder / name, here)).as_posix()
            yield f"![{Path(name).stem} of {safe(folder.name)}]({urllib.parse.quote(path)})"


if __name__ == "__main__":
    sys.exit(main(tyro.cli(Args)))
