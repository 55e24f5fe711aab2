"""Compare the rows of two result folders, bit for bit: did a refactoring change a draw?

  python experiments/compare_rows.py OLD NEW                      all rows.json below OLD, by their paths
  python experiments/compare_rows.py OLD/2e-smoke NEW/table2/2e   two folders of one table
  options: --gone COLUMN ...   columns that NEW may lack;  --renamed old=new ...   columns or folders with
  another name;  --any-order   rows in another order

Seconds, dates and provenance are not compared; columns that only NEW has are listed. Exit code 1 if
anything differs.
"""

from __future__ import annotations

import argparse
import csv
import json
import sys
from pathlib import Path

WHERE_AND_WHEN = {
    *(f"{name}_version" for name in ("fedjax_robust", "jax", "jaxlib", "flax", "optax")),
    *("numpy_version", "python_version", "git_commit", "git_dirty", "platform", "backend"),
    *("device_kind", "device_count", "device", "utc_time", "seconds", "versions", "crafting"),
}


def read(path: Path) -> list[dict]:
    if path.suffix == ".json":
        return json.loads(path.read_text())
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


def kept(row: dict, names: dict[str, str], gone: set[str]) -> dict[str, str]:
    """Column -> its exact JSON text, under its new name."""
    return {
        names.get(key, key): json.dumps(value, sort_keys=True)
        for key, value in row.items()
        if key not in WHERE_AND_WHEN | gone
    }


def compare(old: Path, new: Path, names: dict[str, str], gone: set[str], any_order: bool) -> str:
    """What differs; nothing if the rows are the same."""
    before, after = read(old), read(new)
    if len(before) != len(after):
        return f"{len(before)} rows before, {len(after)} now"
    first = [kept(row, names, gone) for row in before]
    columns = list(dict.fromkeys(key for row in first for key in row))
    second = [{k: v for k, v in kept(row, {}, set()).items() if k in columns} for row in after]
    more = {k for row in after for k in row} - {*columns} - WHERE_AND_WHEN
    if any_order:
        first, second = (
            sorted(x, key=lambda r: json.dumps(r, sort_keys=True)) for x in (first, second)
        )
    for i, (a, b) in enumerate(zip(first, second, strict=True)):
        # A column that is absent and one that is null are one in the table.
        different = [k for k in columns if a.get(k, "null") != b.get(k, "null")]
        if different:
            k = different[0]
            return f"row {i} differs in {different}: {k} was {a.get(k)}, is {b.get(k)}"
    if more:
        print(f"  (new columns: {', '.join(sorted(more))})")
    return ""


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("old", type=Path)
    parser.add_argument("new", type=Path)
    parser.add_argument("--gone", nargs="*", default=())
    parser.add_argument("--renamed", nargs="*", default=())
    parser.add_argument("--any-order", action="store_true")
    args = parser.parse_args()
    names = dict(pair.split("=", 1) for pair in args.renamed)
    files = [
        path
        for path in sorted(args.old.rglob("*.json"))
        if path.with_suffix(".csv").exists() and path.parent.name not in ("cells", "points")
    ]
    wrong = 0
    for path in files:
        inner = path.relative_to(args.old)
        there = args.new / Path(*(names.get(part, part) for part in inner.parts))
        if not there.exists():
            wrong += 1
            print(f"MISSING {inner}: {there} is not there")
            continue
        text = compare(path, there, names, {*args.gone}, args.any_order)
        wrong += bool(text)
        print(f"{'DIFFERENT' if text else 'same'} {inner} {text}")
    print(f"{len(files)} files of rows, {wrong} differ or are missing")
    return 1 if wrong or not files else 0


if __name__ == "__main__":
    sys.exit(main())
