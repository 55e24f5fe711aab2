"""Copy finished results into the papers' folders, where READMEs show them.

  python experiments/publish.py results/fang2020/table2/2a     (or: make publish FROM=results/...)

goes to experiments/fang2020/results/table2/2a: ``rows.csv`` and other rows, ``about.json``,
``table.md``, and those figures that a README shows. Refused are smoke runs, folders that cannot be read,
and rows that do not name a commit of this history, a clean tree, and versions. Nothing is copied if one
of several is refused.
"""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path

import make_report
import tyro

from fedjax_robust import report
from fedjax_robust.files import written_atomically

EXPERIMENTS = make_report.EXPERIMENTS


@dataclasses.dataclass
class Args:
    """Copy result folders into the papers' folders."""

    folders: tyro.conf.Positional[tuple[Path, ...]]
    """results/<paper>/<table>, as an experiment wrote it."""
    to: Path = EXPERIMENTS
    """The folder of the papers' folders."""


def main(args: Args) -> int:
    """Returns the exit code: 1 if a folder is refused."""
    refused = False
    for folder in args.folders:
        for fault in faults(folder):
            print(f"{folder} is not published: {fault}", file=sys.stderr)
            refused = True
    if refused:
        return 1
    for folder in args.folders:
        print(f"{folder} -> {publish(folder, args.to)}")
    return 0


def faults(folder: Path, checkout: Path | None = None) -> list[str]:
    """Why a folder is not published; nothing if it is."""
    if len(place(folder)) < 2:
        return ["it must lie in results/<paper>/<table>"]
    if any(part.endswith("-smoke") for part in place(folder)):
        return ["the numbers of a smoke run mean nothing; run it without --smoke"]
    try:
        about = report.read_about(folder)
        kind = report.read_table if isinstance(about, report.Table) else report.read_sweep
        rows = kind(folder)[1]
        make_report.table_of(folder)
    except (ValueError, OSError) as error:
        return [str(error)]
    if not rows:
        return ["it has no rows; run its experiment"]
    if not (folder / "about.json").exists():
        return ["it has no about.json; run its experiment again"]
    remedy = "commit everything and run its experiment again, in another folder"
    found = [f"{fault}; {remedy}" for fault in report.untraceable(rows, checkout)]
    return found or [f"{doubt}; {remedy}" for doubt in about.doubts]


def place(folder: Path) -> tuple[str, ...]:
    """(paper, table, ...): what follows the last ``results`` of a path."""
    parts = folder.resolve().parts
    if "results" not in parts:
        return ()
    return parts[len(parts) - parts[::-1].index("results") :]


def publish(folder: Path, to: Path) -> Path:
    """Copy a folder without faults; ``table.md`` is made from its rows."""
    paper, *table = place(folder)
    target = to.joinpath(paper, "results", *table)
    about = report.read_about(folder)
    head = [report.safe(text) for text in (about.title, about.notes) if text]
    files = {
        "rows.csv": (folder / "rows.csv").read_bytes(),
        "table.md": "\n\n".join([*head, make_report.table_of(folder)]).encode(),
        "about.json": (folder / "about.json").read_bytes(),
    }
    # Other rows that belong to the table, such as wu2020's runs.csv.
    more = sorted(set(folder.glob("*.csv")) - {folder / "rows.csv"})
    files |= {path.name: path.read_bytes() for path in more}
    readmes = [p.read_text("utf-8") for p in (to / paper / "README.md", to.parent / "README.md")
               if p.exists()]  # fmt: skip
    for figure in sorted(folder.glob("*.png")):
        shown = "/".join(["results", *table, figure.name])
        if any(shown in text for text in readmes):
            files[figure.name] = figure.read_bytes()
    for name, content in files.items():
        with written_atomically(target / name) as file:
            file.write(content)
    for old in target.glob("*.png"):
        if old.name not in files:
            old.unlink()
    return target


if __name__ == "__main__":
    sys.exit(main(tyro.cli(Args)))
