"""What every experiment script does first."""

from __future__ import annotations

import os
from pathlib import Path

import jax


def use_compilation_cache() -> None:
    """Keep compiled programs on disk, so that a second run of a script starts at once.

    The folder is JAX_COMPILATION_CACHE_DIR if that is set, else one beside the data cache.
    """
    if not os.environ.get("JAX_COMPILATION_CACHE_DIR"):
        cache = os.environ.get("FEDJAX_ROBUST_CACHE") or "~/.cache/fedjax_robust"
        folder = Path(cache).expanduser() / "compiled"
        jax.config.update("jax_compilation_cache_dir", str(folder))
