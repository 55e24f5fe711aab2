"""Where a number comes from."""

from __future__ import annotations

import importlib.metadata
import platform
import subprocess
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import jax


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
