"""Writing files so that a reader, also after a crash, sees the old content or the new, never a part."""

from __future__ import annotations

import os
import secrets
import stat
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

if sys.platform != "win32":
    import fcntl


def named(what: str, name: str, path: Any) -> Path:
    """The path of a file that can be written or read.

    Raises:
      TypeError: if it is no path.
      ValueError: if it is empty or a folder.
    """
    if not isinstance(path, str | os.PathLike) or isinstance(os.fspath(path), bytes):
        raise TypeError(f"{what} needs {name} to be a path, got {path!r}")
    if not os.fspath(path):
        raise ValueError(f"{what} needs {name} to be the name of a file, got {path!r}")
    if os.path.isdir(path):
        raise ValueError(
            f"{what} needs {name} to be a file, got the folder {os.fspath(path)}; name a file in it"
        )
    return Path(path)


@contextmanager
def written_atomically(path: str | os.PathLike[str]) -> Iterator[IO[bytes]]:
    """A binary file to write, which takes the place of ``path`` when the block ends without error.

    It is synced to disk first. Missing folders are made; after an error nothing has changed. Who may
    read it is as for any new file (the umask), or as it was for the old one.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.parent / f".{path.name[:60]}-{secrets.token_hex(8)}.tmp"
    handle = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
    try:
        with os.fdopen(handle, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        if path.exists():
            os.chmod(temporary, stat.S_IMODE(path.stat().st_mode))
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def locked(path: str | os.PathLike[str]) -> Iterator[None]:
    """Only one process at a time is inside for the same path; a killed one is outside.

    The lock is a file beside it, which is removed at the end. Where the system or the folder allows no
    locks, nothing is locked.

    Raises:
      ValueError: if another process is inside.
    """
    path = Path(path)
    lock = path.parent / f".{path.name[:60]}.lock"
    handle = _lock(path, lock)
    try:
        yield
    finally:
        if handle is not None:
            lock.unlink(missing_ok=True)
            os.close(handle)


def _lock(path: Path, lock: Path) -> int | None:
    if sys.platform == "win32":
        return None
    while True:
        try:
            lock.parent.mkdir(parents=True, exist_ok=True)
            handle = os.open(lock, os.O_RDWR | os.O_CREAT, 0o666)
        except OSError:  # such as a folder that is read only
            return None
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            os.close(handle)
            raise ValueError(
                f"{path} is being written by another run; wait for it, or use another file"
            ) from error
        except OSError:  # such as a file system without locks
            os.close(handle)
            return None
        try:
            if os.stat(lock).st_ino == os.fstat(handle).st_ino:
                return handle
        except FileNotFoundError:
            pass
        os.close(handle)  # the run before us has just removed it
