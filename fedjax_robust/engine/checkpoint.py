"""Checkpoints of a run: one npz file without pickle, replaced atomically.

A file is judged before it is read: only the members that the run expects, stored without compression,
of the expected shapes. What is in it is compared with a digest; that finds damage and mistakes, not a
forger, who can write another digest.
"""

from __future__ import annotations

import functools
import hashlib
import json
import math
import os
import platform
import re
import types
import warnings
import zipfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jaxlib
import numpy as np
from jax.extend.core import ClosedJaxpr, Jaxpr

from fedjax_robust.files import written_atomically
from fedjax_robust.types import Array, SimState

_FORMAT = 2
_META = ("format", "rounds", "every", "program", "versions", "digest")
_META_BYTES = 1 << 16  # more than any of them needs
_HEADER_BYTES = 1 << 16
_REMEDY = "delete it to start anew, or use another file"

Expected = dict[str, tuple[tuple[int, ...], Any]]
"""Name -> shape and dtype."""


class Written(NamedTuple):
    """Where a run writes, and what it will find there."""

    path: Path
    program: str
    """The digest of ``fingerprint``."""
    every: int
    """Rounds between evaluations."""
    shapes: Mapping[str, Any]
    """The history of one evaluation after two rounds."""
    seeds: bool
    """Whether there is a leading axis of seeds."""

    def history(self, rounds: int) -> Expected:
        """The history after so many rounds."""
        evaluations = -(-rounds // self.every)
        expected: Expected = {"round": ((evaluations,), np.dtype(np.int32))}
        for name, value in self.shapes.items():
            shape = list(value.shape)
            shape[self.seeds] = evaluations if shape[self.seeds] == 1 else rounds
            expected[name] = tuple(shape), value.dtype
        return expected


# --- Which program it was --------------------------------------------------------------------------


def fingerprint(jaxpr: Any, arrays: Any) -> str:
    """A digest of a traced program and of its inputs: two runs with equal digests do the same.

    The program's text holds its structure and its scalar constants (learning rates, f, ...); the arrays,
    also those that functions within the program close over, are hashed by content; host functions
    (``jax.pure_callback``) by their code and what they hold. Not seen is what a host function reads
    elsewhere: files, other modules' variables.

    Raises:
      ValueError: for a host function that holds something that cannot be compared.
    """
    text = re.sub(r"0x[0-9a-f]+", "", str(jaxpr))
    digest = hashlib.sha256(text.encode())
    for callback in _callbacks(jaxpr):
        digest.update(_identity(callback, (), str(getattr(callback, "__module__", ""))).encode())
    for leaf in jax.tree.leaves((arrays, list(_constants(jaxpr)))):
        values = np.asarray(_plain(leaf))
        digest.update(f"{values.shape}{values.dtype}".encode())
        digest.update(np.ascontiguousarray(values).data)
    return digest.hexdigest()


def _constants(program: Any) -> Iterator[Any]:
    """The arrays that a jaxpr and those inside it (``jit``, ``scan``, ...) hold, which its text omits."""
    if isinstance(program, ClosedJaxpr):
        yield from program.consts
    for part in _inner(program):
        yield from _constants(part)


def _callbacks(program: Any) -> Iterator[Callable[..., Any]]:
    """The host functions whose results a program uses; those for debugging change nothing."""
    for equation in getattr(program, "jaxpr", program).eqns:
        if "callback" in equation.primitive.name and "debug" not in equation.primitive.name:
            callback = equation.params.get("callback")
            yield getattr(callback, "callback_func", callback)
    for part in _inner(program):
        yield from _callbacks(part)


def _inner(program: Any) -> Iterator[Any]:
    for equation in getattr(program, "jaxpr", program).eqns:
        for part in jax.tree.leaves(equation.params):
            if isinstance(part, ClosedJaxpr | Jaxpr):
                yield part


def _identity(value: Any, seen: tuple[Any, ...], module: str) -> str:
    """A text that is equal, in every process, for what does the same."""
    if any(value is other for other in seen):
        return "itself"
    deeper = functools.partial(_identity, seen=(*seen, value))
    if value is None or isinstance(value, bool | int | float | complex | str | bytes | np.generic):
        return f"{type(value).__name__} {value!r}"
    if isinstance(value, types.CodeType):
        constants = ", ".join(_identity(c, seen, module) for c in value.co_consts)
        names = value.co_names + value.co_freevars
        return f"{value.co_name} {value.co_code.hex()} {names} ({constants})"
    if isinstance(value, types.FunctionType):
        if value.__module__ != module and (value.__module__ or "").partition(".")[0] in _KNOWN:
            return f"{value.__module__}.{value.__qualname__}"
        module = value.__module__
        cells = [cell.cell_contents for cell in value.__closure__ or ()]
        used = {
            name: value.__globals__[name]
            for name in _names(value.__code__)
            if name in value.__globals__
        }
        held = (cells, value.__defaults__, value.__kwdefaults__, used)
        code = _identity(value.__code__, (), module)
        return f"{module}.{value.__qualname__} {code} {deeper(held, module=module)}"
    if isinstance(value, types.MethodType):
        return deeper((value.__func__, value.__self__), module=module)
    if isinstance(value, functools.partial):
        return deeper((value.func, value.args, value.keywords), module=module)
    if isinstance(value, types.ModuleType):
        return value.__name__
    if isinstance(value, type | types.BuiltinFunctionType | np.ufunc):
        return f"{getattr(value, '__module__', '')}.{getattr(value, '__qualname__', value)}"
    if isinstance(value, np.ndarray | jax.Array) and value.dtype.kind != "O":
        values = np.asarray(_plain(value))
        content = hashlib.sha256(np.ascontiguousarray(values).data).hexdigest()
        return f"{values.shape}{values.dtype}{content}"
    if isinstance(value, tuple | list):
        return f"[{', '.join(deeper(part, module=module) for part in value)}]"
    if isinstance(value, set | frozenset):
        return f"{{{', '.join(sorted(deeper(part, module=module) for part in value))}}}"
    if isinstance(value, dict):
        items = (f"{key!r}: {deeper(part, module=module)}" for key, part in value.items())
        return f"{{{', '.join(items)}}}"
    if wrapped := getattr(value, "__wrapped__", None):  # such as jax.jit(function)
        return deeper(wrapped, module=module)
    if callable(value) and getattr(value, "__module__", "").partition(".")[0] in _KNOWN:
        return f"{value.__module__}.{getattr(value, '__qualname__', type(value).__qualname__)}"
    raise ValueError(
        f"a run with a checkpoint needs host functions (jax.pure_callback) that can be compared with "
        f"those of the run that wrote it; one holds {value!r}, of which that cannot be said. Let it "
        "hold numbers, texts, arrays and functions only, or run without checkpoint"
    )


_KNOWN = {
    "jax",
    "jaxlib",
    "numpy",
    "scipy",
    "math",
    "builtins",
    "functools",
    "operator",
    "itertools",
}


def _names(code: types.CodeType) -> list[str]:
    """The global names that a function and those inside of it use."""
    inner = (c for c in code.co_consts if isinstance(c, types.CodeType))
    return sorted({*code.co_names, *(name for c in inner for name in _names(c))})


# --- Files -----------------------------------------------------------------------------------------


def versions() -> dict[str, Any]:
    """What decides, besides the program, whether two runs are bit-identical."""
    from fedjax_robust import __version__

    device = jax.devices()[0]
    flags = [
        flag
        for flag in os.environ.get("XLA_FLAGS", "").split()
        if "host_platform_device_count" not in flag
    ]
    return {
        "jax": jax.__version__,
        "jaxlib": jaxlib.__version__,
        "fedjax_robust": __version__,
        "platform": device.platform,
        "device": device.device_kind,
        "machine": platform.machine(),
        "XLA_FLAGS": " ".join(sorted(flags)),
    }


_SAME = ("jax", "jaxlib")  # with others the run is refused
_BETTER_THE_SAME = ("platform", "device", "machine", "XLA_FLAGS")  # with others there is a warning


def save(
    path: str | os.PathLike[str],
    state: SimState,
    history: dict[str, Array],
    rounds: int,
    program: str,
    every: int = 0,
) -> None:
    """Write a checkpoint. A crash at any moment leaves either the old file or the new one.

    Args:
      path: the file; its folder is made if missing.
      state: the state after ``rounds`` rounds.
      history: name -> array.
      rounds: rounds done.
      program: digest of ``fingerprint``.
      every: rounds between evaluations.
    """
    arrays: dict[str, Any] = {
        f"history/{name}": _stored(values) for name, values in history.items()
    }
    arrays |= {f"state/{name}": _stored(leaf) for name, leaf in _named_leaves(state).items()}
    arrays |= {
        "format": np.array(_FORMAT, np.int64),
        "rounds": np.array(rounds, np.int64),
        "every": np.array(every, np.int64),
        "program": np.array(program),
        "versions": np.array(json.dumps(versions())),
    }
    arrays["digest"] = np.array(_digest(arrays))
    with written_atomically(path) as file:
        np.savez(file, **arrays)


def restore(
    path: str | os.PathLike[str],
    like: SimState,
    program: str,
    every: int | None = None,
    history: Callable[[int], Expected] | None = None,
) -> tuple[SimState, dict[str, Array], int]:
    """Read a checkpoint back.

    Args:
      path: the file.
      like: a state of the run that resumes; the checkpoint must have its structure.
      program: digest of ``fingerprint`` of the run that resumes.
      every: its rounds between evaluations; None is not compared.
      history: rounds done -> the arrays that the history then has; None: any.

    Returns:
      state, history, rounds done.

    Raises:
      ValueError: if the file is damaged or belongs to another run; it says what to do. Nothing is read
        that is larger than what such a run needs.
    """
    path = Path(path)
    leaves = _named_leaves(like)
    try:
        with zipfile.ZipFile(path) as archive:
            members = _members(archive, path)
            meta = {name: _read(archive, members[name], None, _META_BYTES) for name in _META}
            number = int(meta["format"])
            if number == _FORMAT:
                rounds = int(meta["rounds"])
                _refuse_other_runs(path, meta, program, every)
                expected = {
                    f"state/{n}": (tuple(_plain(leaf).shape), _plain(leaf).dtype)
                    for n, leaf in leaves.items()
                }
                if history is not None:
                    expected |= {f"history/{n}": shape for n, shape in history(rounds).items()}
                _refuse_other_names(path, members, expected, history is None)
                arrays = {
                    name: _read(archive, member, expected.get(name))
                    for name, member in members.items()
                    if name not in _META
                }
    except _Refused:
        raise
    # Whatever zipfile and numpy raise on files that are not as they were written: BadZipFile, zlib.error,
    # KeyError, struct.error, RuntimeError for bits that say "encrypted", MemoryError, ...
    except Exception as error:
        shown = str(error) or type(error).__name__
        raise ValueError(f"the checkpoint {path} is damaged ({shown}); {_REMEDY}") from error
    if number != _FORMAT:
        raise ValueError(f"the checkpoint {path} has format {number}, not {_FORMAT}; {_REMEDY}")
    if str(meta.pop("digest")) != _digest(meta | arrays):
        raise ValueError(
            f"the checkpoint {path} is damaged (its content does not fit its digest); {_REMEDY}"
        )
    restored = {name: _loaded(arrays[f"state/{name}"], leaf) for name, leaf in leaves.items()}
    state = jax.tree.unflatten(jax.tree.structure(like), restored.values())
    if int(state.round) != rounds:
        raise ValueError(
            f"the checkpoint {path} is damaged (it says {rounds} rounds, and its state is that after "
            f"{int(state.round)}); {_REMEDY}"
        )
    values = {
        name.removeprefix("history/"): array
        for name, array in arrays.items()
        if name.startswith("history/")
    }
    if history is not None:
        assert every is not None
        evaluated = np.minimum(np.arange(1, len(values["round"]) + 1) * every, rounds)
        if not np.array_equal(values["round"], evaluated):
            raise ValueError(
                f"the checkpoint {path} is damaged (evaluated after {values['round'].tolist()[:5]} ... "
                f"rounds instead of {evaluated.tolist()[:5]} ...); {_REMEDY}"
            )
        dtypes = {name: dtype for name, (_, dtype) in history(rounds).items()}
        values = {name: array.view(dtypes[name]) for name, array in values.items()}
    # copies: what is read may be donated later
    return state, {name: jax.numpy.array(array) for name, array in values.items()}, rounds


def content(tree: Any) -> str:
    """A digest of arrays, to compare what several processes have read."""
    return _digest(
        {str(i): np.asarray(_plain(leaf)) for i, leaf in enumerate(jax.tree.leaves(tree))}
    )


class _Refused(ValueError):
    """A file that is whole, but of another run."""


def _refuse_other_runs(path: Path, meta: dict[str, Any], program: str, every: int | None) -> None:
    theirs, ours = json.loads(str(meta["versions"])), versions()
    for name in _SAME:
        if theirs[name] != ours[name]:
            raise _Refused(
                f"the checkpoint {path} was written with {name} {theirs[name]}, this is {ours[name]}: "
                f"results would not be bit-identical; install that version, or {_REMEDY}"
            )
    if str(meta["program"]) != program:
        other = ""
        if theirs["fedjax_robust"] != ours["fedjax_robust"]:
            other = (
                f" (or it was written with fedjax_robust {theirs['fedjax_robust']}, this is "
                f"{ours['fedjax_robust']})"
            )
        raise _Refused(
            f"the checkpoint {path} belongs to a run with other settings, data, or seeds{other}; "
            f"call run with the arguments it was written with, or {_REMEDY}"
        )
    was = int(meta["every"])
    if every is not None and was != every:
        raise _Refused(
            f"the checkpoint {path} belongs to a run with other settings, data, or seeds: only "
            f"evaluate_every differs, which was {was} and is {every} (its default is rounds); call run "
            f"with evaluate_every={was}, or {_REMEDY}"
        )
    others = [name for name in _BETTER_THE_SAME if theirs.get(name) != ours[name]]
    if others:
        was_is = ", ".join(f"{name} was {theirs.get(name)!r}, is {ours[name]!r}" for name in others)
        warnings.warn(
            f"the checkpoint {path} was written elsewhere ({was_is}): the run goes on, but need not be "
            "bit-identical to an uninterrupted one",
            stacklevel=2,
        )


def _refuse_other_names(
    path: Path, members: Mapping[str, Any], expected: Expected, any_history: bool
) -> None:
    found = {
        name
        for name in members
        if name not in _META and not (any_history and name.startswith("history/"))
    }
    for name in sorted(expected.keys() - found):
        shape, dtype = expected[name]
        short = name.removeprefix("state/").removeprefix("history/")
        raise _Refused(
            f"the checkpoint {path} holds nothing where the run has {short} of {dtype}{shape}; {_REMEDY}"
        )
    if more := sorted(found - expected.keys()):
        raise _Refused(
            f"the checkpoint {path} is damaged, or belongs to another run: it holds {more[:3]}, which "
            f"this run does not have; {_REMEDY}"
        )


def _members(archive: zipfile.ZipFile, path: Path) -> dict[str, zipfile.ZipInfo]:
    """The archive's files by name, if they can be no larger than the archive."""
    infos = archive.infolist()
    members = {info.filename.removesuffix(".npy"): info for info in infos}
    size = os.path.getsize(path)
    if len(members) != len(infos) or sum(info.file_size for info in infos) > size:
        raise ValueError("its parts overlap")
    for info in infos:
        stored = info.compress_type == zipfile.ZIP_STORED and info.file_size == info.compress_size
        if not stored or not info.filename.endswith(".npy"):
            raise ValueError(f"{info.filename!r} is compressed, or no array")
    return members


def _read(
    archive: zipfile.ZipFile,
    member: zipfile.ZipInfo,
    expected: tuple[tuple[int, ...], Any] | None,
    most: int | None = None,
) -> np.ndarray:
    """One array, after a look at its header; reading to the end verifies the CRC."""
    name = member.filename.removesuffix(".npy")
    if most is not None and member.file_size > most:
        raise ValueError(f"{name} is too long")
    with archive.open(member) as file:
        version = np.lib.format.read_magic(file)
        if version == (1, 0):
            header = np.lib.format.read_array_header_1_0(file, _HEADER_BYTES)
        else:
            header = np.lib.format.read_array_header_2_0(file, _HEADER_BYTES)
        shape, fortran, dtype = header
        if expected is not None and (shape, dtype) != (expected[0], _kept(expected[1])):
            raise _Refused(
                f"the checkpoint {archive.filename} holds {dtype}{shape} where the run has "
                f"{name.removeprefix('state/').removeprefix('history/')} of {expected[1]}{expected[0]}; "
                f"{_REMEDY}"
            )
        size = member.file_size - file.tell()
        if (
            dtype.hasobject
            or min(shape, default=1) < 0
            or math.prod(shape) * dtype.itemsize != size
        ):
            raise ValueError(f"{name} is not as long as its header says")
        data = file.read()
        values = np.frombuffer(data, dtype) if size else np.zeros(0, dtype)
        return values.reshape(shape, order="F" if fortran else "C")


def _digest(arrays: Mapping[str, Any]) -> str:
    digest = hashlib.sha256()
    for name in sorted(arrays):
        values = np.ascontiguousarray(arrays[name])
        digest.update(f"{name} {np.shape(arrays[name])} {values.dtype.str}\n".encode())
        digest.update(values.view(np.uint8).data if values.size else b"")
    return digest.hexdigest()


def _kept(dtype: Any) -> np.dtype:
    """The dtype that a file holds: NumPy has no name for bfloat16 and its like."""
    dtype = np.dtype(dtype)
    return np.dtype(f"u{dtype.itemsize}") if dtype.kind == "V" else dtype


def _stored(leaf: Any) -> np.ndarray:
    values = np.asarray(_plain(leaf))
    return values.view(_kept(values.dtype))


def _loaded(values: np.ndarray, leaf: Any) -> Array:
    plain = _plain(leaf)
    value = jax.numpy.array(values.view(np.dtype(plain.dtype)))
    if jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        value = jax.random.wrap_key_data(value, impl=jax.random.key_impl(leaf))
    return value


def _named_leaves(state: SimState) -> dict[str, Array]:
    return {
        jax.tree_util.keystr(path): leaf
        for path, leaf in jax.tree_util.tree_leaves_with_path(state)
    }


def _plain(leaf: Any) -> Any:
    if isinstance(leaf, jax.Array) and jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        return jax.random.key_data(leaf)
    return leaf if isinstance(leaf, jax.Array) else np.asarray(leaf)
