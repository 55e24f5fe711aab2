"""What all sources share: the result, where files are, how they are read."""

from __future__ import annotations

import os
import warnings
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

Arrays = dict[str, np.ndarray]


class Dataset(NamedTuple):
    """A data set in memory, as NumPy arrays."""

    train: Arrays
    """``x`` (E, ...) float32, ``y`` (E,) int32 in [0, num_classes); images are (E, H, W, C) in
    [0, 1]. Where examples come from users, ``user`` (E,) int32 from 0 on, for ``by_user``. Text is
    different: see ``data.text.text_dataset``."""
    test: Arrays
    """Like ``train``."""
    num_classes: int
    name: str
    note: str
    """What a table made from it must say; empty for the published split in full."""
    class_names: tuple[str, ...] = ()


def beginning(value: Any) -> str:
    """The beginning of a value, for messages."""
    try:
        text = repr(value)
    except RecursionError:  # lists in lists in lists
        text = f"a {type(value).__name__}"
    return text if len(text) <= 60 else f"{text[:57]}..."


def text_table(path: Path, dtype: type, **options: Any) -> np.ndarray:
    """Numbers in a text file, (rows, columns); a ValueError that names the file for anything else."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # numpy's of an empty file
            return np.loadtxt(path, dtype, comments=None, encoding="utf-8", ndmin=2, **options)
    except (ValueError, OverflowError, IndexError) as error:
        raise ValueError(f"{path} is damaged ({error}); fetch or unpack it again") from error


# Folders and the cache


def data_folder(data_dir: str | os.PathLike[str] | None) -> Path:
    """The folder given; else FEDJAX_ROBUST_DATA, TFDS_DATA_DIR or ~/tensorflow_datasets, as set.

    ValueError or TypeError, in words, for what no path can be.
    """
    if data_dir is None:
        default = os.environ.get("TFDS_DATA_DIR") or "~/tensorflow_datasets"
        data_dir = os.environ.get("FEDJAX_ROBUST_DATA") or default
    return checked_path("data_dir", data_dir)


def checked_path(what: str, path: str | os.PathLike[str]) -> Path:
    """An absolute path, "~" expanded; a ValueError in words for what no path can be.

    Raises:
      ValueError: an empty path, one with a NUL, with a name beyond 255 bytes, or of an unknown user.
      TypeError: no path.
    """
    if not isinstance(path, str | os.PathLike) or isinstance(os.fspath(path), bytes):
        raise TypeError(f"{what} needs a path, str or pathlib.Path, got {beginning(path)}")
    text = os.fspath(path)
    if not text or "\0" in text:
        raise ValueError(f"{what} needs the path of a folder or file, got {beginning(text)}")
    if any(len(os.fsencode(part)) > 255 for part in Path(text).parts):
        raise ValueError(
            f"{what} needs a path with names of at most 255 bytes, got {beginning(text)}"
        )
    try:
        return Path(text).expanduser().absolute()
    except RuntimeError as error:
        raise ValueError(f"{what}: {error}, in {beginning(text)}") from error


def unit_range(x: np.ndarray) -> np.ndarray:
    """Bytes 0 .. 255 as float32 in [0, 1]."""
    return x.astype(np.float32) / np.float32(255)
