"""Where a number comes from."""

from __future__ import annotations

import functools
import importlib.metadata
import platform
import re
import subprocess
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import jax

from fedjax_robust.report.results import Row


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
    top = Path(__file__).resolve().parents[2] if checkout is None else Path(checkout).resolve()
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


NEEDED = ("jax_version", "numpy_version", "device_kind", "utc_time")
"""What every published row says of its origin; its commit is this package's version."""


def untraceable(rows: Sequence[Row], checkout: str | Path | None = None) -> list[str]:
    """What keeps rows from being made again from a commit of a checkout's history.

    Args:
      rows: with the columns of ``provenance``, as values or as the text of a CSV file.
      checkout: top folder of the git checkout; by default the one that holds this package.

    Returns:
      Sentences with numbers of rows, such as "45 of 150 rows name no commit"; none if every row names a
      commit of the history, a clean tree, and versions.
    """
    top = Path(__file__).resolve().parents[2] if checkout is None else Path(checkout).resolve()
    faults: dict[str, int] = {}

    def count(fault: str) -> None:
        faults[fault] = faults.get(fault, 0) + 1

    @functools.cache
    def in_history(commit: str) -> bool:
        # A name that begins with a dash would be an option.
        known = re.fullmatch(r"[0-9a-f]{7,40}", commit) is not None
        return known and _git(top, "merge-base", "--is-ancestor", commit, "HEAD") is not None

    for row in rows:
        commit, dirty = row.get("git_commit") or None, row.get("git_dirty")
        if commit is None:
            count("rows name no commit")
        elif not in_history(str(commit)):
            count(f"rows name commit {commit}, which is not in the history")
        elif dirty in (None, ""):
            count("rows do not say whether the tree was changed")
        elif str(dirty) != "False":
            count("rows come from a changed tree")
        for name in NEEDED:
            if not row.get(name):
                count(f"rows have no {name}")
    return [f"{number} of {len(rows)} {fault}" for fault, number in faults.items()]


def _version(name: str) -> str | None:
    if name == "fedjax_robust":  # of this source, installed or not
        from fedjax_robust import __version__  # when called: the package imports this module

        return __version__
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
