"""Put the published benchmarks into README.md, between ``<!-- bench: rounds -->`` and ``<!-- end -->``.

python experiments/bench/fill_readme.py             after new rows in results/
python experiments/bench/fill_readme.py --check     writes nothing; exit code 1 if a table differs
"""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Any

from fedjax_robust import report
from fedjax_robust.files import written_atomically

HERE = Path(__file__).resolve().parent
BLOCK = re.compile(r"(<!-- bench: (\w+) -->\n).*?(<!-- end -->)", re.DOTALL)


def rounds(row: dict[str, Any]) -> dict[str, Any]:
    if "ms" in row:
        return {**times(row), "faster": f"{row['faster']:.2f}"}
    if "ratio" in row:
        return {"what": row["what"], "how": row["how"], "ms, median": f"ratio {row['ratio']:.2f}"}
    of_matrix = f"{row['times n x d']:.2f} n x d floats"
    return {"what": row["what"], "how": row["how"], "ms, median": of_matrix}


def kernels(row: dict[str, Any]) -> dict[str, Any]:
    n, _, d = row["what"].rpartition(", ")[2].partition(" x ")
    share = row["memory_mib"] * 2**20 / (4 * int(n) * int(d)) if "memory_mib" in row else None
    shown = {"slower": f"{row['slower']:.2f}", "memory / input": share and f"{share:.2f}"}
    return times(row) | shown


def networks(row: dict[str, Any]) -> dict[str, Any]:
    difference = f"{row['difference']:.0e}" if "difference" in row else None
    shown = {"faster": f"{row['faster']:.1f}", "largest difference of an update": difference}
    return times(row) | shown


def times(row: dict[str, Any]) -> dict[str, Any]:
    span = f"{number(row['min'])} to {number(row['max'])}"
    return {
        "what": row["what"],
        "how": row["how"],
        "ms, median": number(row["ms"]),
        "range": span,
    }


def compiled(row: dict[str, Any]) -> dict[str, Any]:
    shown: dict[str, Any] = {"what": row["what"]}
    if "temp MB" in row:
        shown |= {"MB": f"{row['temp MB']:,.0f}", "/ n d": f"{row['temp / n d']:.1f}"}
        if row["ms"] is not None:
            shown["ms"] = f"{row['ms']:.3g}" + (" +" if row["loops of unknown length"] else "")
        if row["kernels"] is not None:
            shown["kernels"] = f"{row['kernels']:.0f}"
        operands = row["their operands"]
        shown["sorts"] = f"{row['sorts of the matrix']} of {operands}" if operands else None
    return shown | {"complaints": "; ".join(row["complaints"]) or None}


def number(ms: float) -> str:
    return f"{ms:,.0f}" if ms >= 100 else f"{ms:.3g}"


def filled(text: str) -> str:
    """The README with its tables made anew."""

    def block(match: re.Match[str]) -> str:
        before, name, after = match.groups()
        rows = json.loads((HERE / "results" / f"{name}.json").read_text())["rows"]
        lines = {"rounds": rounds, "kernels": kernels, "networks": networks}
        line = compiled if name.startswith("compile_") else lines[name]
        return f"{before}{report.markdown_table([line(row) for row in rows]).strip()}\n{after}"

    return BLOCK.sub(block, text)


def main(check: bool) -> int:
    path = HERE / "README.md"
    old = path.read_text("utf-8")
    new = filled(old)
    if not check and new != old:
        with written_atomically(path) as file:
            file.write(new.encode())
    return int(check and new != old)


if __name__ == "__main__":
    sys.exit(main("--check" in sys.argv[1:]))
