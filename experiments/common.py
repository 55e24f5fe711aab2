"""What experiment scripts share: cells over many machines, and the compilation cache."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeVar

import jax

Cell = TypeVar("Cell")


def my_share(cells: Sequence[Cell], part: str | None) -> list[Cell]:
    """The cells that ``--cell i/N`` computes: i, i + N, i + 2N, ..., counted from 1; all for None.

    Raises:
      ValueError: if ``part`` is not "i/N" with 1 <= i <= N.
    """
    if part is None:
        return list(cells)
    match = re.fullmatch(r"(\d+)/(\d+)", part)
    if not match or not 1 <= int(match[1]) <= int(match[2]):
        raise ValueError(f"--cell needs i/N with 1 <= i <= N, such as 3/16, got {part!r}")
    return list(cells[int(match[1]) - 1 :: int(match[2])])


def share_is_done(part: str | None, folder: Path) -> bool:
    """Say what to do next, if only a share of the cells was computed; the table needs all."""
    if part is not None:
        print(f"share {part} is in {folder}/cells; the same command without --cell gathers all")
    return part is not None


def origin(result: dict[str, Any]) -> dict[str, Any]:
    """What ``make_report.py`` shows of a result's provenance: commit, versions, hardware, date."""
    shown = ("fedjax_robust_version", "jax_version", "git_commit", "device_kind", "utc_time")
    return {name: result[name] for name in shown if name in result}


def use_compilation_cache() -> None:
    """Keep compiled programs on disk, so that a second run of a script starts at once.

    The folder is JAX_COMPILATION_CACHE_DIR if that is set, else one beside the data cache.
    """
    if not os.environ.get("JAX_COMPILATION_CACHE_DIR"):
        cache = os.environ.get("FEDJAX_ROBUST_CACHE") or "~/.cache/fedjax_robust"
        folder = Path(cache).expanduser() / "compiled"
        jax.config.update("jax_compilation_cache_dir", str(folder))
