"""The corpora that ``load_text`` knows."""

from __future__ import annotations

import os
from itertools import pairwise
from pathlib import Path

import numpy as np

from fedjax_robust import npz
from fedjax_robust.data.sources.files import (
    Arrays,
    Dataset,
    data_folder,
)
from fedjax_robust.data.sources.load import known_name
from fedjax_robust.data.sources.tfds import readable, tfds_builder, tfds_folder
from fedjax_robust.data.text.words import Text, check_sizes, text_dataset, tokenize

TEXTS = ("shakespeare", "tiny_shakespeare")
"""The names that ``load_text`` knows."""

_ROLES = "shakespeare_roles.npz"


def load_text(
    name: str,
    *,
    length: int = 64,
    vocabulary_size: int = 10_000,
    data_dir: str | os.PathLike[str] | None = None,
) -> Dataset:
    """Load one of ``TEXTS``.

    ``shakespeare`` has a client for each role of each play, as LEAF's Shakespeare in kind, not its split:
    of a role with n speeches the last floor(n / 5) are for testing. A sentence is a speech.
    ``tiny_shakespeare`` has a client for each name in front of a speech, and its published training and
    test parts (the validation part is left out).

    Args:
      name: see the table on top of this module.
      length: T >= 1, words in a sequence.
      vocabulary_size: V >= 4, see ``vocabulary``.
      data_dir: the folder of the data sets; default FEDJAX_ROBUST_DATA, else where TFDS keeps its own.

    Returns:
      See ``text_dataset``.

    Raises:
      ValueError: unknown name, an argument out of range, or a file that is damaged or not in its layout.
      TypeError: an argument of another type.
      FileNotFoundError: the data are not there; the message says where it looked.
    """
    known_name("load_text", name, TEXTS, "text")
    check_sizes("load_text", length, vocabulary_size)
    root = data_folder(data_dir)
    match name:
        case "shakespeare":
            train, test, note = _roles(root)
        case "tiny_shakespeare":
            train, test, note = _tiny_shakespeare(root)
        case _:
            raise AssertionError(name)
    return text_dataset(train, test, length, vocabulary_size, name, note)


def _roles(root: Path) -> tuple[Text, Text, str]:
    path = next((p for d in (root, root / "shakespeare") if (p := d / _ROLES).is_file()), None)
    if path is None:
        raise FileNotFoundError(
            f"load_text('shakespeare'): {_ROLES} is not in {root}. Point data_dir or "
            "FEDJAX_ROBUST_DATA at the folder that holds it; or make it of any text by role, with the "
            "arrays text (bytes of all speeches, UTF-8), offsets (speeches + 1,), speech_role "
            "(speeches,) and role_names; or take tiny_shakespeare, which TFDS has"
        )
    try:
        arrays = npz.read(path, ("text", "offsets", "speech_role", "role_names"), compressed=True)
        said = _said(arrays)
    except ValueError as error:
        raise ValueError(f"{path} is damaged ({error}); fetch or make it again") from error
    train = {role: own[: len(own) - len(own) // 5] for role, own in said.items()}
    test = {role: own[len(own) - len(own) // 5 :] for role, own in said.items()}
    note = f"{len(said):,} roles, the last fifth of each one's speeches for testing"
    return train, test, note


def _said(arrays: Arrays) -> dict[str, list[list[str]]]:
    """Role -> speeches as lists of words; a ValueError if the arrays do not fit."""
    text, offsets, roles = arrays["text"], arrays["offsets"], arrays["speech_role"]
    names = arrays["role_names"]
    if text.dtype != np.uint8 or text.ndim != 1:
        raise ValueError(f"text is {text.dtype} of shape {text.shape}, not bytes")
    if offsets.dtype.kind not in "iu" or roles.dtype.kind not in "iu" or names.dtype.kind != "U":
        raise ValueError(
            "offsets and speech_role must be integers and role_names text, they are "
            f"{offsets.dtype}, {roles.dtype} and {names.dtype}"
        )
    if names.ndim != 1 or roles.ndim != 1 or offsets.shape != (len(roles) + 1,):
        raise ValueError(
            "offsets must be (speeches + 1,), speech_role (speeches,) and role_names one-dimensional, "
            f"they are {offsets.shape}, {roles.shape} and {names.shape}"
        )
    if offsets[0] != 0 or offsets[-1] != len(text) or np.any(offsets[1:] < offsets[:-1]):
        raise ValueError(
            f"offsets must rise from 0 to the {len(text)} bytes of text, they begin with {offsets[0]}, "
            f"end with {offsets[-1]}, or fall"
        )
    if len(roles) and not 0 <= roles.min() <= roles.max() < len(names):
        raise ValueError(
            f"speech_role must lie in [0, {len(names)}), it is {roles.min()} to {roles.max()}"
        )
    said: dict[str, list[list[str]]] = {str(name): [] for name in names}
    if len(said) != len(names):
        raise ValueError("role_names holds a name twice")
    content = text.tobytes()
    for role, (start, end) in zip(roles, pairwise(offsets.tolist()), strict=True):
        said[str(names[role])].append(tokenize(content[start:end].decode()))
    return said


def _tiny_shakespeare(root: Path) -> tuple[Text, Text, str]:
    folder = tfds_folder("tiny_shakespeare", root)
    if folder is None:
        raise FileNotFoundError(
            f"load_text('tiny_shakespeare'): found no prepared data in {root / 'tfds'} or {root}. "
            "Point data_dir or FEDJAX_ROBUST_DATA at the folder that holds them, or fetch them:\n"
            '  pip install "fedjax_robust[tfds-prepare]"\n'
            "  python -c \"from fedjax_robust.data import prepare; prepare('tiny_shakespeare', "
            f"'{root}')\""
        )
    builder = tfds_builder(folder)
    parts = []
    for part in ("train", "test"):
        with readable(folder, f"*-{part}.array_record*"):
            parts.append(by_speaker(builder.as_data_source(split=part)[0]["text"].decode()))
    train, test = parts
    return train, test, f"{len({*train, *test})} speakers, published split"


def by_speaker(play: str) -> dict[str, list[list[str]]]:
    """Speaker -> speeches as lists of words, of a play in paragraphs "NAME:" newline, lines.

    A paragraph that does not start so, as where a text was cut, belongs to nobody and is left out.
    """
    said: dict[str, list[list[str]]] = {}
    for paragraph in play.split("\n\n"):
        speaker, _, lines = paragraph.strip().partition("\n")
        if speaker.endswith(":") and lines:
            said.setdefault(speaker[:-1], []).append(tokenize(lines))
    return said
