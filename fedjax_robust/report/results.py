"""Rows and finished cells on disk.

Files are written atomically: whoever reads one, also after a crash, sees the old content or the
new, never a part. Non-finite numbers are stored as the strings "NaN", "Infinity" and "-Infinity"
(standard JSON has no other way to tell them from a missing value) and come back as floats.
"""

from __future__ import annotations

import csv
import hashlib
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
      FileNotFoundError: if there is no ``path``.json. Published folders have the CSV alone: see
        ``read_table``.
      ValueError: if the file is not a JSON list of objects.
    """
    file = _suffixed(path, ".json")
    try:
        rows = read_json(file)
        if not (isinstance(rows, list) and all(isinstance(row, dict) for row in rows)):
            raise ValueError("it must be a list of objects")
    except ValueError as error:
        raise ValueError(f"{file} does not hold rows ({error}); write it again") from error
    return [restore(row) for row in rows]


def save_cell(folder: str | Path, name: str, settings: Row, result: Row) -> dict[str, Any]:
    """Store one finished cell of an experiment, so that an interrupted one goes on after it.

    Args:
      folder: the experiment's result folder; the file is ``folder``/cells/``name``.json.
      name: letters, digits and ``. _ - + = ,``, beginning with a letter, a digit or ``_``; at most 250.
      settings: all that determines the result; ``load_cell`` compares it.
      result: what was computed: None, bool, int, float, str, paths, arrays, or lists and mappings of
        them.

    Returns:
      The result as ``load_cell`` will give it.

    Raises:
      ValueError: for any other name, or a value that cannot be written.
    """
    path = _cell_path(folder, name)
    content = {
        "settings": plain(dict(settings), "settings"),
        "result": plain(dict(result), "result"),
    }
    lines = ",\n".join(
        f'"{key}": {json.dumps(v, allow_nan=False)}'
        for key, v in {**content, "sha256": _digest(content)}.items()
    )
    write_bytes(path, f"{{\n{lines}\n}}\n".encode())
    restored: dict[str, Any] = restore(content["result"])
    return restored


def load_cell(folder: str | Path, name: str, settings: Row) -> dict[str, Any] | None:
    """Load what ``save_cell`` stored.

    Args:
      folder: the experiment's result folder.
      name: the cell's.
      settings: all that determines the result; they must be those that were stored.

    Returns:
      The result, arrays and tuples as lists; or None if the cell must be computed: there is no such
      file, or it is damaged or was changed (its content has another checksum), of which a RuntimeWarning
      tells.

    Raises:
      ValueError: if the cell was computed with other settings, also if they differ in type alone, as 2
        and 2.0 do; or if there is a folder in the file's place.
    """
    path = _cell_path(folder, name)
    if path.is_dir():
        raise ValueError(f"{path} is a folder, but a cell is a file; move it away")
    try:
        content = read_json(path)
        if not (isinstance(content, dict) and {*content} == {"settings", "result", "sha256"}):
            raise ValueError("it needs the keys settings, result, sha256")
        digest = content.pop("sha256")
        stored, result = content["settings"], content["result"]
        if not (isinstance(stored, dict) and isinstance(result, dict)):
            raise ValueError("settings and result must be objects")
        if digest != _digest(content):
            raise ValueError("its content is not what was saved")
    except FileNotFoundError:
        return None
    except ValueError as error:
        message = f"{path} is damaged ({error}) and is computed again"
        warnings.warn(message, RuntimeWarning, stacklevel=2)
        return None
    now = plain(dict(settings), "settings")
    absent = "absent"
    different = [
        f"{key}: {stored.get(key, absent)!r} in the file, {now.get(key, absent)!r} now"
        for key in sorted({*stored, *now})
        if _text(stored.get(key, absent)) != _text(now.get(key, absent))
    ]
    if different:
        raise ValueError(
            f"{path} was computed with other settings ({'; '.join(different)}). "
            "Choose another result folder, or delete that file to compute the cell again."
        )
    restored: dict[str, Any] = restore(result)
    return restored


def read_json(path: Path) -> Any:
    """A JSON file; ValueError for anything that strict JSON does not have, or for keys given twice."""

    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        keys = [key for key, _ in pairs]
        if len(set(keys)) < len(keys):
            raise ValueError(f"a key is given twice among {keys}")
        return dict(pairs)

    def refuse(constant: str) -> None:
        raise ValueError(f"{constant} is not JSON")

    def number(text: str) -> float:
        if not math.isfinite(value := float(text)):
            raise ValueError(f"{text} is too large for a number")
        return value

    try:
        return json.loads(
            path.read_text("utf-8"),
            object_pairs_hook=once,
            parse_constant=refuse,
            parse_float=number,
        )
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error


def _text(value: Any) -> str:
    """JSON text, which tells 2 from 2.0 and 0 from false."""
    return json.dumps(value, sort_keys=True)


def _digest(content: Mapping[str, Any]) -> str:
    return hashlib.sha256(_text(content).encode()).hexdigest()


def _cell_path(folder: str | Path, name: str) -> Path:
    if not re.fullmatch(r"\w[\w.,=+-]*", name, re.ASCII) or len(name) > 250:
        raise ValueError(
            "a cell's name is made of at most 250 letters, digits and '.', '_', '-', '+', '=', ',', "
            f"got {name!r}"
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
