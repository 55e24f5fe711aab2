"""Rows and finished cells on disk.

Files are written atomically: whoever reads one, also after a crash, sees the old content or the
new, never a part. Non-finite numbers are stored as the strings "NaN", "Infinity" and "-Infinity"
(standard JSON has no other way to tell them from a missing value) and come back as floats.
"""

from __future__ import annotations

import csv
import io
import json
import math
import re
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from fedjax_robust.files import written_atomically

Row = Mapping[str, Any]

_NON_FINITE = {"NaN": math.nan, "Infinity": math.inf, "-Infinity": -math.inf}


def write_rows(path: str | Path, rows: Sequence[Row]) -> None:
    """Write rows as ``path``.json (read back by ``read_rows``) and ``path``.csv (for other tools).

    The columns of the CSV are the keys of all rows in order of first appearance; None and absent
    values are empty there, nested values are JSON text.

    Args:
      path: file name without suffix; missing folders are made.
      rows: values are None, bool, int, float, str, paths, arrays, or lists and mappings of them.

    Raises:
      ValueError: for a value of any other type.
    """
    ready = [plain(dict(row), f"row {i}") for i, row in enumerate(rows)]
    lines = ",\n".join(json.dumps(row, allow_nan=False) for row in ready)
    write_bytes(_suffixed(path, ".json"), f"[\n{lines}\n]\n".encode())

    table = io.StringIO()
    writer = csv.DictWriter(table, list(dict.fromkeys(key for row in ready for key in row)))
    writer.writeheader()
    for row in ready:
        nested = {k: json.dumps(v) for k, v in row.items() if isinstance(v, list | dict)}
        writer.writerow({**row, **nested})
    write_bytes(_suffixed(path, ".csv"), table.getvalue().encode())


def read_rows(path: str | Path) -> list[dict[str, Any]]:
    """Read the rows that ``write_rows(path, ...)`` wrote. Arrays and tuples come back as lists.

    Raises:
      FileNotFoundError: if there is no ``path``.json.
      ValueError: if the file is not a JSON list of objects.
    """
    file = _suffixed(path, ".json")
    try:
        rows = json.loads(file.read_text("utf-8"))
        if not (isinstance(rows, list) and all(isinstance(row, dict) for row in rows)):
            raise ValueError("it must be a list of objects")
    except ValueError as error:
        raise ValueError(f"{file} does not hold rows ({error}); write it again") from error
    return [restore(row) for row in rows]


def save_cell(folder: str | Path, name: str, settings: Row, result: Row) -> None:
    """Store one finished cell of an experiment, so that an interrupted one goes on after it.

    Args:
      folder: the experiment's result folder; the file is ``folder``/cells/``name``.json.
      name: letters, digits, ``.``, ``_`` and ``-``, not beginning with a dot.
      settings: all that determines the result; ``load_cell`` compares it.
      result: what was computed; values as in ``write_rows``.

    Raises:
      ValueError: for any other name, or a value that cannot be written.
    """
    path = _cell_path(folder, name)
    content = {
        "settings": plain(dict(settings), "settings"),
        "result": plain(dict(result), "result"),
    }
    lines = ",\n".join(f'"{key}": {json.dumps(v, allow_nan=False)}' for key, v in content.items())
    write_bytes(path, f"{{\n{lines}\n}}\n".encode())


def load_cell(folder: str | Path, name: str, settings: Row) -> dict[str, Any] | None:
    """Load what ``save_cell`` stored.

    Returns:
      The result, arrays and tuples as lists; or None if the cell must be computed: there is no such
      file, or it is damaged, of which a RuntimeWarning tells.

    Raises:
      ValueError: if the cell was computed with other settings.
    """
    path = _cell_path(folder, name)
    try:
        content = json.loads(path.read_text("utf-8"))
        stored, result = dict(content["settings"]), dict(content["result"])
    except FileNotFoundError:
        return None
    except (ValueError, KeyError, TypeError) as error:
        message = f"{path} is damaged ({error!r}) and is computed again"
        warnings.warn(message, RuntimeWarning, stacklevel=2)
        return None
    now = plain(dict(settings), "settings")
    absent = "absent"
    different = [
        f"{key}: {stored.get(key, absent)!r} in the file, {now.get(key, absent)!r} now"
        for key in sorted({*stored, *now})
        if stored.get(key, absent) != now.get(key, absent)
    ]
    if different:
        raise ValueError(
            f"{path} was computed with other settings ({'; '.join(different)}). "
            "Choose another result folder, or delete that file to compute the cell again."
        )
    restored: dict[str, Any] = restore(result)
    return restored


def _cell_path(folder: str | Path, name: str) -> Path:
    if not re.fullmatch(r"\w[\w.-]*", name, re.ASCII):
        raise ValueError(
            f"a cell's name is made of letters, digits, '.', '_' and '-', got {name!r}"
        )
    return Path(folder) / "cells" / f"{name}.json"


def _suffixed(path: str | Path, suffix: str) -> Path:
    path = Path(path)
    if path.suffix in (".csv", ".json"):
        raise ValueError(f"give the path of rows without suffix, as both are written; got {path}")
    return path.with_name(path.name + suffix)


def write_bytes(path: Path, content: bytes) -> None:
    """Write a file atomically; missing folders are made."""
    with written_atomically(path) as file:
        file.write(content)


def plain(value: Any, where: str) -> Any:
    """The value in terms of JSON's types, non-finite numbers as strings."""
    if isinstance(value, np.ndarray | np.generic | jax.Array):
        try:
            value = np.asarray(value).tolist()
        except TypeError as error:
            raise ValueError(f"{where} cannot be written: {error}") from error
    if isinstance(value, str) and value in _NON_FINITE:
        raise ValueError(
            f"{where} is the text {value!r}, which stands for a number in result files"
        )
    if value is None or isinstance(value, bool | int | str):
        return value
    if isinstance(value, float):
        if math.isfinite(value):
            return value
        return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, Mapping):
        bad = [key for key in value if not isinstance(key, str)]
        if bad:
            raise ValueError(f"{where} has keys that are not text: {bad}; convert them")
        return {key: plain(item, f"{where}[{key!r}]") for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item, f"{where}[{i}]") for i, item in enumerate(value)]
    raise ValueError(
        f"{where} is a {type(value).__name__}, which cannot be written; "
        "convert it to numbers, text, lists or mappings"
    )


def restore(value: Any) -> Any:
    """The inverse of ``plain``, but for what JSON cannot tell apart."""
    if isinstance(value, dict):
        return {key: restore(item) for key, item in value.items()}
    if isinstance(value, list):
        return [restore(item) for item in value]
    return _NON_FINITE.get(value, value) if isinstance(value, str) else value
