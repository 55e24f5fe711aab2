"""One page of all results: every folder that describes itself by ``table.json`` or ``sweep.json``.

  python experiments/make_report.py                    writes results/REPORT.md
  python experiments/make_report.py --places results --out REPORT.md

A folder under the first place hides the one of the same relative path under the next, so that fresh
results take the place of the ones that come with the project. Folders of smoke runs are left out.
"""

from __future__ import annotations

import dataclasses
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import tyro

from fedjax_robust import report
from fedjax_robust.files import written_atomically
from fedjax_robust.report.tables import count_seeds, is_within, show_summary

ABOUT = ("table.json", "sweep.json")


@dataclasses.dataclass
class Args:
    """Write one report of all results."""

    places: tuple[Path, ...] = (Path("results"), Path("experiments/results"))
    """Where to look; the first place that has a folder wins."""
    out: Path = Path("results/REPORT.md")
    """The file to write."""


def main(args: Args) -> int:
    """Returns the exit code: 1 if there are no results."""
    folders = find(args.places)
    if not folders:
        places = " or ".join(map(str, args.places))
        print(f"there are no results in {places}; run an experiment first, such as: make demo")
        return 1
    here = args.out.parent
    tables = [(name, f) for name, f in folders.items() if (f / "table.json").exists()]
    sweeps = [(name, f) for name, f in folders.items() if (f / "sweep.json").exists()]
    lines = [summary_line(name, folder) for name, folder in tables]
    parts = [
        "# Results",
        f"{len(tables)} tables and {len(sweeps)} sweeps. Errors and rates are fractions (0 to 1).",
        *([report.markdown_table(lines)] if lines else []),
        *(text for name, folder in tables for text in table_section(name, folder, here)),
        *(text for name, folder in sweeps for text in sweep_section(name, folder, here)),
    ]
    with written_atomically(args.out) as file:
        file.write(("\n\n".join(parts) + "\n").encode())
    print(f"{args.out}: {len(tables)} tables, {len(sweeps)} sweeps")
    return 0


def find(places: Sequence[Path]) -> dict[str, Path]:
    """{relative path: folder} of all results, ascending; the first place wins."""
    found: dict[str, Path] = {}
    for place in places:
        for file in sorted(path for name in ABOUT for path in place.rglob(name)):
            relative = file.parent.relative_to(place)
            if not any(part.endswith("-smoke") for part in relative.parts):
                found.setdefault(relative.as_posix(), file.parent)
    return dict(sorted(found.items()))


def compare(folder: Path) -> tuple[report.Table, list[dict[str, str]], dict[report.Cell, float]]:
    """What the table is, its rows, and our mean minus the paper's number for each cell."""
    about, rows = report.read_table(folder)
    names = {"index": about.index, "columns": about.columns, "value": about.value}
    return about, rows, report.differences(rows, about.paper, **names)


def summary_line(name: str, folder: Path) -> dict[str, Any]:
    about, rows, differences = compare(folder)
    close = sum(is_within(d, about.tolerance) for d in differences.values())
    number = len(differences)
    ours = report.summarize(rows, about.index, about.columns, about.value)
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
    ours = report.summarize(rows, about.index, about.columns, about.value)
    yield from head(name, about, rows)
    yield f"{about.metric[0].upper()}{about.metric[1:]}, over {count_seeds(ours)}:"
    cells = list(dict.fromkeys([*about.paper, *ours]))
    yield report.markdown_table(
        [
            {
                about.index: cell[0],
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
    yield f"## {about.title}"
    yield f"Folder `{name}`; `{about.command}`"
    if about.notes:
        yield about.notes
    if where := origin(rows):
        yield where


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
            yield f"![{Path(name).stem} of {folder.name}]({path})"


if __name__ == "__main__":
    sys.exit(main(tyro.cli(Args)))
