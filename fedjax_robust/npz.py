"""Reading npz files that may be damaged, or made to do harm.

``numpy.load`` decompresses whatever a member expands to, a thousand times its size, and makes room for
whatever an array's header asks for. Here both are looked at first, and nothing is unpickled.
"""

from __future__ import annotations

import math
import os
import zipfile
from collections.abc import Sequence

import numpy as np

_EXPANSION = 100
"""How many times its own size a compressed file may expand to; text and images stay below 20."""
_FREE = 2**26
"""A file may expand to 64 MiB all the same: constant arrays compress a thousandfold."""
_HEADERS = {
    (1, 0): np.lib.format.read_array_header_1_0,
    (2, 0): np.lib.format.read_array_header_2_0,
}


def read(
    path: str | os.PathLike[str], names: Sequence[str] | None = None, *, compressed: bool = False
) -> dict[str, np.ndarray]:
    """Arrays of an npz file, by name.

    Args:
      path: the file.
      names: which arrays; others are not looked at. None = all there are.
      compressed: whether its members may be compressed; ``numpy.savez`` does not.

    Returns:
      The arrays. Their checksums have been verified.

    Raises:
      OSError: the file is not there, or cannot be opened.
      ValueError: it is no npz file, lacks a name, is damaged, holds objects, or is compressed against
        ``compressed`` or beyond a hundred times its size.
    """
    with open(path, "rb") as file:
        size = os.fstat(file.fileno()).st_size
        try:
            with zipfile.ZipFile(file) as archive:
                members = _members(archive, names, compressed, size)
                return {name: _array(archive, info) for name, info in members.items()}
        except Exception as error:  # zipfile, zlib and numpy raise nearly anything
            raise ValueError(f"{error}" or type(error).__name__) from error


def _members(
    archive: zipfile.ZipFile, names: Sequence[str] | None, compressed: bool, size: int
) -> dict[str, zipfile.ZipInfo]:
    members: dict[str, zipfile.ZipInfo] = {}
    for info in archive.infolist():
        name = info.filename.removesuffix(".npy")
        if names is not None and name not in names:
            continue
        if name == info.filename or name in members:
            raise ValueError(f"its member {info.filename!r} is no array, or there twice")
        members[name] = info
    if missing := [name for name in names or () if name not in members]:
        raise ValueError(f"it lacks {', '.join(missing)}")
    allowed = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED) if compressed else (zipfile.ZIP_STORED,)
    if wrong := [name for name, info in members.items() if info.compress_type not in allowed]:
        raise ValueError(f"{', '.join(wrong)} compressed in a way that it should not be")
    total = sum(info.file_size for info in members.values())
    bound = max(_FREE, _EXPANSION * size) if compressed else size
    if total > bound:
        raise ValueError(f"its {size:,} bytes would expand to {total:,}, more than {bound:,}")
    return members


def _array(archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> np.ndarray:
    with archive.open(info) as member:
        version = np.lib.format.read_magic(member)
        if version not in _HEADERS:
            raise ValueError(f"{info.filename} has the npy version {version}")
        shape, _, dtype = _HEADERS[version](member)
        there = info.file_size - member.tell()
    wanted = math.prod(shape) * dtype.itemsize
    if dtype.hasobject or min(shape, default=0) < 0 or wanted != there:
        raise ValueError(
            f"{info.filename} is said to have dtype {dtype} and shape {shape}, but has {there:,} bytes"
        )
    with archive.open(info) as member:
        return np.lib.format.read_array(member, allow_pickle=False)
