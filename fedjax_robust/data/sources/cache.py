"""Decoded data, kept on disk."""

from __future__ import annotations

import hashlib
import json
import os
import re
import stat
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from fedjax_robust import npz
from fedjax_robust.data.sources.files import Arrays, beginning, checked_path
from fedjax_robust.files import written_atomically


def cache_dir() -> Path:
    """Where decoded data are kept: ``FEDJAX_ROBUST_CACHE``, else ``~/.cache/fedjax_robust``.

    What is read from it is believed, so that whoever can write there decides what an experiment gets.
    It need not exist; ``cached`` makes it for the user alone.

    Raises:
      ValueError: another user owns the folder or can write in it.
    """
    folder = checked_path(
        "FEDJAX_ROBUST_CACHE", os.environ.get("FEDJAX_ROBUST_CACHE") or "~/.cache/fedjax_robust"
    )
    try:
        status = folder.stat()
    except OSError:  # not there; or it cannot be reached, of which writing will complain
        return folder
    owned = not hasattr(os, "getuid") or status.st_uid == os.getuid()
    written_by_others = stat.S_IMODE(status.st_mode) & 0o022 if hasattr(os, "getuid") else 0
    if not owned or written_by_others:
        why = "belongs to another user"
        remedy = "set FEDJAX_ROBUST_CACHE to a folder of your own"
        if owned:
            why = "can be written by other users"
            remedy = f"run chmod go-w '{folder}' and empty it, or {remedy}"
        raise ValueError(
            f"the cache folder {folder} {why}, who could change what is read from it; {remedy}"
        )
    return folder


def cached(name: str, files: list[Path], decode: Callable[[], Arrays]) -> Arrays:
    """``decode()``, or what it returned before for the same files.

    The cache file is ``<cache>/<name>-<hash of the files' folder>.npz``, written to a temporary
    file and renamed, so that readers and other writers never see a part of it. It holds a SHA-256
    of its content and the files' paths, sizes and modification times; it is made again when either
    does not fit. If the folder cannot be written, a warning is given and the arrays are returned
    all the same.

    Args:
      name: first part of the file name: at most 100 letters, digits, "_", "-" and ".".
      files: what the arrays depend on; at least one.
      decode: () -> arrays by name, of any dtype but object.

    Raises:
      ValueError: another name, no files, or a cache folder that others own or can write.
    """
    if not isinstance(name, str) or not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,99}", name):
        raise ValueError(
            "cached needs a name of at most 100 letters, digits, '_', '-' and '.', got "
            f"{beginning(name)}"
        )
    if not files:
        raise ValueError("cached needs at least one file that the arrays depend on, got none")
    stats = [(str(f), f.stat().st_size, f.stat().st_mtime_ns) for f in files]
    source = json.dumps(["fedjax_robust cache 1", stats])
    folder_hash = hashlib.sha256(str(files[0].parent).encode()).hexdigest()[:12]
    path = cache_dir() / f"{name}-{folder_hash}.npz"
    arrays = _read_cache(path, source)
    if arrays is None:
        arrays = decode()
        _write_cache(path, source, arrays)
    return arrays


def _checksum(source: str, arrays: Arrays) -> str:
    digest = hashlib.sha256(source.encode())
    for name, array in sorted(arrays.items()):
        digest.update(f"{name} {array.dtype.str} {array.shape}".encode())
        digest.update(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)
    return digest.hexdigest()


def _read_cache(path: Path, source: str) -> Arrays | None:
    """The cached arrays; None if there are none, if they are of another source or damaged."""
    try:
        if hasattr(os, "getuid") and path.stat().st_uid != os.getuid():
            raise ValueError("it belongs to another user")
        arrays = npz.read(path)
        same_source = str(arrays.pop("_source")) == source
        checksum = str(arrays.pop("_sha256"))
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, ValueError, KeyError) as error:
        warnings.warn(f"the cache file {path} is damaged ({error}); making it again", stacklevel=2)
        return None
    if not same_source:
        return None
    if _checksum(source, arrays) != checksum:
        warnings.warn(f"the cache file {path} fails its checksum; making it again", stacklevel=2)
        return None
    return arrays


def _write_cache(path: Path, source: str, arrays: Arrays) -> None:
    content: dict[str, Any] = {
        **arrays,
        "_source": np.asarray(source),
        "_sha256": np.asarray(_checksum(source, arrays)),
    }
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)  # whatever the umask
        with written_atomically(path) as file:
            np.savez(file, **content)
    except OSError as error:
        warnings.warn(
            f"cannot write the cache file {path} ({error}), so decoding is repeated next time; "
            "set FEDJAX_ROBUST_CACHE to a folder that can be written",
            stacklevel=2,
        )
