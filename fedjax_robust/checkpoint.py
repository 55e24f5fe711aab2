"""Checkpoints of a run: one npz file without pickle, replaced atomically."""

from __future__ import annotations

import hashlib
import os
import re
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.extend.core import ClosedJaxpr, Jaxpr

from fedjax_robust.files import written_atomically
from fedjax_robust.types import Array, SimState

_FORMAT = 1
# What numpy and zipfile raise on files that are not as they were written. RuntimeError: flipped bits that
# say "encrypted" or "unknown compression"; TypeError: an npy file.
_DAMAGE = (
    OSError,
    EOFError,
    ValueError,
    KeyError,
    RuntimeError,
    TypeError,
    zipfile.BadZipFile,
    zlib.error,
)


def fingerprint(jaxpr: Any, arrays: Any) -> str:
    """A digest of a traced program and of its inputs: two runs with equal digests do the same.

    The program's text holds its structure and its scalar constants (learning rates, f, ...); the arrays,
    also those that functions within the program close over, are hashed by content.
    """
    text = re.sub(r"0x[0-9a-f]+", "", str(jaxpr))
    digest = hashlib.sha256(text.encode())
    for leaf in jax.tree.leaves((arrays, list(_constants(jaxpr)))):
        values = np.asarray(_plain(leaf))
        digest.update(f"{values.shape}{values.dtype}".encode())
        digest.update(np.ascontiguousarray(values).data)
    return digest.hexdigest()


def _constants(program: Any) -> Iterator[Any]:
    """The arrays that a jaxpr and those inside it (``jit``, ``scan``, ...) hold, which its text omits."""
    if isinstance(program, ClosedJaxpr):
        yield from program.consts
        program = program.jaxpr
    for equation in program.eqns:
        for part in jax.tree.leaves(equation.params):
            if isinstance(part, ClosedJaxpr | Jaxpr):
                yield from _constants(part)


def save(
    path: str | os.PathLike[str],
    state: SimState,
    history: dict[str, Array],
    rounds: int,
    program: str,
) -> None:
    """Write a checkpoint. A crash at any moment leaves either the old file or the new one.

    Args:
      path: the file; its folder is made if missing.
      state: the state after ``rounds`` rounds.
      history: name -> array.
      rounds: rounds done.
      program: digest of ``fingerprint``.
    """
    arrays: dict[str, Any] = {
        f"history/{name}": np.asarray(values) for name, values in history.items()
    }
    for name, leaf in _named_leaves(state).items():
        arrays[f"state/{name}"] = np.asarray(_plain(leaf))
    meta: dict[str, Any] = {
        "format": np.int64(_FORMAT),
        "rounds": np.int64(rounds),
        "program": np.array(program),
        "jax": np.array(jax.__version__),
    }
    with written_atomically(path) as file:
        np.savez(file, allow_pickle=False, **meta, **arrays)


def restore(
    path: str | os.PathLike[str], like: SimState, program: str
) -> tuple[SimState, dict[str, Array], int]:
    """Read a checkpoint back.

    Args:
      path: the file.
      like: a state of the run that resumes; the checkpoint must have its structure.
      program: digest of ``fingerprint`` of the run that resumes.

    Returns:
      state, history, rounds done.

    Raises:
      ValueError: if the file is damaged or belongs to another run; it says what to do.
    """
    path = Path(path)
    remedy = "delete it to start anew, or use another file"
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}  # reading verifies each CRC
        version = int(arrays["format"])
        rounds = int(arrays["rounds"])
        written_by, jax_version = str(arrays["program"]), str(arrays["jax"])
    except _DAMAGE as error:
        raise ValueError(f"the checkpoint {path} is damaged ({error}); {remedy}") from error
    if version != _FORMAT:
        raise ValueError(f"the checkpoint {path} has format {version}, not {_FORMAT}; {remedy}")
    if jax_version != jax.__version__:
        raise ValueError(
            f"the checkpoint {path} was written with jax {jax_version}, this is {jax.__version__}: "
            f"results would not be bit-identical; install that version, or {remedy}"
        )
    if written_by != program:
        raise ValueError(
            f"the checkpoint {path} belongs to a run with other settings, data, or seeds; "
            f"call run with the arguments it was written with, or {remedy}"
        )
    leaves = {}
    for name, leaf in _named_leaves(like).items():
        stored = arrays.get(f"state/{name}")
        expected = _plain(leaf)
        if stored is None or stored.shape != expected.shape or stored.dtype != expected.dtype:
            found = "nothing" if stored is None else f"{stored.dtype}{stored.shape}"
            raise ValueError(
                f"the checkpoint {path} holds {found} where the run has {name} of "
                f"{expected.dtype}{expected.shape}; {remedy}"
            )
        value = jax.numpy.asarray(stored)
        if jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            value = jax.random.wrap_key_data(value, impl=jax.random.key_impl(leaf))
        leaves[name] = value
    state = jax.tree.unflatten(jax.tree.structure(like), leaves.values())
    history = {
        name.removeprefix("history/"): jax.numpy.asarray(values)
        for name, values in arrays.items()
        if name.startswith("history/")
    }
    return state, history, rounds


def _named_leaves(state: SimState) -> dict[str, Array]:
    return {
        jax.tree_util.keystr(path): leaf
        for path, leaf in jax.tree_util.tree_leaves_with_path(state)
    }


def _plain(leaf: Any) -> Any:
    if isinstance(leaf, jax.Array) and jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        return jax.random.key_data(leaf)
    return leaf if isinstance(leaf, jax.Array) else np.asarray(leaf)
