"""Checks of arguments, shared by the whole package.

Each raises a ValueError (a TypeError where the type is wrong) that states the rule, the values and, where
there is one, the remedy. What is traced passes, because its value is not known yet; its shape and dtype
are, and are checked. 0-d arrays of NumPy and JAX are checked as numbers are.

    checks.count("krum", f=f)                          # whole numbers >= 0
    checks.positive("local_sgd", learning_rate=rate)   # finite numbers > 0
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

Array = jax.Array


def is_known(value: Any) -> bool:
    """Whether a value can be looked at now: it is not traced by ``jit``, ``vmap`` or ``grad``."""
    return not isinstance(value, jax.core.Tracer)


# --- Numbers ---------------------------------------------------------------------------------------


def positive(what: str, *, infinite: bool = False, remedy: str = "", **numbers: Any) -> None:
    """Numbers > 0, and finite unless ``infinite``."""
    for name, value in numbers.items():
        _real(what, name, value, lambda x: x > 0, "> 0", infinite, remedy)


def not_negative(what: str, *, infinite: bool = False, remedy: str = "", **numbers: Any) -> None:
    """Numbers >= 0, and finite unless ``infinite``."""
    for name, value in numbers.items():
        _real(what, name, value, lambda x: x >= 0, ">= 0", infinite, remedy)


def between(
    what: str,
    low: float,
    high: float,
    *,
    open_low: bool = False,
    open_high: bool = False,
    remedy: str = "",
    **numbers: Any,
) -> None:
    """Numbers in [low, high]; ``open_low`` and ``open_high`` leave out the ends."""

    def holds(x: float) -> bool:
        return (low < x if open_low else low <= x) and (x < high if open_high else x <= high)

    rule = f"in {'(' if open_low else '['}{low:g}, {high:g}{')' if open_high else ']'}"
    for name, value in numbers.items():
        _real(what, name, value, holds, rule, True, remedy)


def finite(what: str, *, infinite: bool = False, remedy: str = "", **numbers: Any) -> None:
    """Numbers of any sign, not NaN, and finite unless ``infinite``."""
    for name, value in numbers.items():
        _real(what, name, value, lambda x: True, "a number", infinite, remedy)


def count(what: str, least: int = 0, *, remedy: str = "", **numbers: Any) -> None:
    """Whole numbers >= ``least``. Integers that are traced pass."""
    for name, value in numbers.items():
        _scalar(what, name, value)
        kind = _dtype(value).kind
        if kind not in "iu":
            shown = f"got {name}={_shown(value)}"
            raise (ValueError if kind == "f" else TypeError)(
                _text(f"{what} needs {name} to be a whole number >= {least}, {shown}", remedy)
            )
        if is_known(value) and int(value) < least:
            raise ValueError(
                _text(f"{what} needs {name} >= {least}, got {name}={_shown(value)}", remedy)
            )


def static_count(what: str, least: int = 0, *, remedy: str = "", **numbers: Any) -> None:
    """Whole numbers >= ``least`` that are known when the program is compiled, as shapes must be."""
    for name, value in numbers.items():
        if not is_known(value):
            raise TypeError(
                f"{what} needs {name} to be known when the program is compiled, because it sets "
                "shapes; pass an integer, not a traced value"
            )
        count(what, least, remedy=remedy, **{name: value})


def _real(
    what: str,
    name: str,
    value: Any,
    holds: Callable[[float], bool],
    rule: str,
    infinite: bool,
    remedy: str,
) -> None:
    _scalar(what, name, value)
    if _dtype(value).kind not in "iuf" and not _is_low_precision(value):
        raise TypeError(_text(f"{what} needs {name} {rule}, got {name}={_shown(value)}", remedy))
    if not is_known(value):
        return
    x = float(value)
    if math.isnan(x) or (math.isinf(x) and not infinite) or not holds(x):
        rule = rule if infinite or math.isfinite(x) or rule == "a number" else f"{rule} and finite"
        rule = "a finite number" if rule == "a number" and not infinite else rule
        raise ValueError(_text(f"{what} needs {name} {rule}, got {name}={_shown(value)}", remedy))


def _scalar(what: str, name: str, value: Any) -> None:
    numeric = isinstance(value, int | float | np.number | np.ndarray | jax.Array)
    is_key = isinstance(value, jax.Array) and jnp.issubdtype(value.dtype, jax.dtypes.prng_key)
    if not numeric or is_key or isinstance(value, bool):
        raise TypeError(f"{what} needs {name} to be a number, got {name}={_shown(value)}")
    if np.ndim(value) != 0:
        raise ValueError(
            f"{what} needs {name} to be one number, got an array of shape {np.shape(value)}; "
            "for several at once use jax.vmap"
        )


def _dtype(value: Any) -> np.dtype:
    return np.dtype(value.dtype) if hasattr(value, "dtype") else np.asarray(value).dtype


def _is_low_precision(value: Any) -> bool:
    return bool(jnp.issubdtype(_dtype(value), jnp.floating))  # bfloat16 has another kind


# --- Arrays ----------------------------------------------------------------------------------------


def matrix(what: str, updates: Any, weights: Any = None) -> tuple[Array, Array]:
    """Updates and their weights as a rule needs them.

    Args:
      what: who asks.
      updates: (n, d) numbers, n >= 1. Integers become float32: averages of integers are not integers.
      weights: (n,) numbers; None = ones.

    Returns:
      Floats (n, d) and (n,).

    Raises:
      ValueError: for other shapes.
      TypeError: if they are not numbers.
    """
    updates = array(what, "updates", updates)
    if updates.ndim != 2 or updates.shape[0] < 1:
        raise ValueError(
            f"{what} needs updates (n, d), one row for each of n >= 1 clients, got shape "
            f"{updates.shape}"
        )
    if not jnp.issubdtype(updates.dtype, jnp.floating):
        updates = updates.astype(jnp.float32)
    if weights is None:
        return updates, jnp.ones(updates.shape[0], updates.dtype)
    weights = array(what, "weights", weights)
    if weights.shape != updates.shape[:1]:
        raise ValueError(
            f"{what} needs one weight for each row, shape {updates.shape[:1]}, got weights of shape "
            f"{weights.shape} for updates of shape {updates.shape}"
        )
    if not jnp.issubdtype(weights.dtype, jnp.floating):
        weights = weights.astype(updates.dtype)
    return updates, weights


def array(what: str, name: str, value: Any) -> Array:
    """An array of real numbers or booleans; TypeError, in words, for anything else."""
    try:
        with jax.ensure_compile_time_eval():  # what is known stays so while a program is traced
            result = jnp.asarray(value)
    except (TypeError, ValueError) as error:
        raise TypeError(
            f"{what} needs {name} to be an array of numbers, got {_shown(value)}"
        ) from error
    if jnp.issubdtype(result.dtype, jnp.complexfloating) or jnp.issubdtype(
        result.dtype, jax.dtypes.prng_key
    ):
        raise TypeError(f"{what} needs {name} to be real numbers, got dtype {result.dtype}")
    return result


def shaped(
    what: str,
    name: str,
    value: Any,
    shape: tuple[int | None, ...],
    kind: str = "number",
    meaning: str = "",
) -> Array:
    """An array of a given shape and kind.

    Args:
      what: who asks.
      name: of the argument.
      value: the array.
      shape: what it must be; None for an axis of any length >= 1.
      kind: "number" (floats or integers), "float", "integer" or "bool".
      meaning: the shape in words, such as "(N, C)".

    Raises:
      ValueError: for another shape.
      TypeError: for another kind.
    """
    result = array(what, name, value)
    rank = len(shape) == result.ndim
    if not rank or any(
        got < 1 if want is None else got != want
        for want, got in zip(shape, result.shape, strict=True)
    ):
        wanted = meaning or "(" + ", ".join("any" if s is None else str(s) for s in shape) + ")"
        known = "" if not meaning or None in shape else f" = {shape}"
        raise ValueError(f"{what} needs {name} of shape {wanted}{known}, got shape {result.shape}")
    kinds = {
        "number": (jnp.floating, jnp.integer),
        "float": (jnp.floating,),
        "integer": (jnp.integer,),
        "bool": (jnp.bool_,),
    }[kind]
    if not any(jnp.issubdtype(result.dtype, allowed) for allowed in kinds):
        plural = "bool" if kind == "bool" else f"{kind}s"
        raise TypeError(f"{what} needs {name} of {plural}, got {result.dtype}")
    return result


def partition(
    what: str, examples_by_name: Any, index: Any, count: Any, names: Sequence[str] = ("x", "y")
) -> None:
    """The fields of a ``FederatedData``: a pool, index (..., N, m) and count (..., N) of its rows.

    Raises:
      ValueError: for other shapes; where they are not traced, for counts beyond m, or valid entries
        that are no rows of the pool.
      TypeError: if they are not integers.
    """
    pool = examples(what, examples_by_name, names)
    index, count = array(what, "data.index", index), array(what, "data.count", count)
    if index.ndim < 2 or index.shape[:-1] != count.shape or index.shape[-2] < 1:
        raise ValueError(
            f"{what} needs data.index (N, m) and data.count (N,) of N >= 1 clients, got shapes "
            f"{index.shape} and {count.shape}"
        )
    for name, values in (("data.index", index), ("data.count", count)):
        if not jnp.issubdtype(values.dtype, jnp.integer):
            raise TypeError(f"{what} needs {name} of integers, got {values.dtype}")
    if not (is_known(index) and is_known(count)):
        return
    rows, counts = np.asarray(index), np.asarray(count)
    if counts.min() < 0 or counts.max() > rows.shape[-1]:
        raise ValueError(
            f"{what} needs data.count in [0, {rows.shape[-1]}], the width of data.index, got counts "
            f"from {counts.min()} to {counts.max()}"
        )
    size = next(iter(pool.values())).shape[0]
    if rows.size and rows.min() >= 0 and rows.max() < size:  # padding, too: nothing to tell apart
        return
    own = rows[np.arange(rows.shape[-1]) < counts[..., None]]
    if own.size and (own.min() < 0 or own.max() >= size):
        raise ValueError(
            f"{what} needs data.index of rows in [0, {size}), the size of the pool, got rows from "
            f"{own.min()} to {own.max()}"
        )


def examples(what: str, batch: Any, names: Sequence[str] = ("x", "y")) -> dict[str, Array]:
    """A batch or pool: arrays by name, of one length E >= 1.

    Args:
      what: who asks.
      batch: at least ``names``, each with the examples along its first axis.
      names: what must be there; ``y`` must be integers, one (or a sequence of them) for each example.

    Returns:
      All of its arrays, as JAX arrays.

    Raises:
      ValueError: if a name is missing, lengths differ, or labels are not integers of the right shape.
      TypeError: if it is no dict of numeric arrays.
    """
    if not isinstance(batch, Mapping):
        raise TypeError(
            f"{what} needs examples by name, {{{', '.join(f'{n!r}: ...' for n in names)}}}, got "
            f"{type(batch).__name__}"
        )
    if missing := [name for name in names if name not in batch]:
        raise ValueError(
            f"{what} needs examples with {_words(names)}, got {_words(sorted(map(str, batch)))}; "
            f"rename what is {_words(missing)}"
        )
    arrays = {name: _column(what, name, values) for name, values in batch.items()}
    shapes = {name: values.shape for name, values in arrays.items()}
    sizes = {shape[:1] for shape in shapes.values()}
    if len(sizes) != 1 or sizes & {(), (0,)}:
        raise ValueError(
            f"{what} needs arrays with one common number of examples, at least 1, got shapes {shapes}"
        )
    if "y" in names:
        labels(what, arrays["y"], x=arrays.get("x"))
    return arrays


def _column(what: str, name: str, values: Any) -> Array:
    kind = getattr(getattr(values, "dtype", None), "kind", "")
    if kind in "OUSM" and kind:
        raise TypeError(
            f"{what} needs numbers, got a column {name!r} of {values.dtype}; encode it as integers, or "
            "leave it out"
        )
    return array(what, name, values)


def labels(what: str, y: Any, *, num_classes: int | None = None, x: Any = None) -> Array:
    """Class labels: integers (E,), or word ids (E, T) where ``x`` is (E, T) integers, too.

    Args:
      what: who asks.
      y: the labels.
      num_classes: L; labels that are not traced must lie in [0, L). None = only >= 0.
      x: the inputs, if their number is to be compared.

    Raises:
      ValueError: for other shapes, one-hot or Boolean labels, fractions, and labels out of range.
    """
    y = _column(what, "y", y)
    sequences = x is not None and y.ndim == 2 and np.shape(x) == y.shape
    if y.ndim != 1 and not sequences:
        hint = "; squeeze the last axis" if y.ndim == 2 and y.shape[1] == 1 else ""
        hint = "; take argmax over the classes" if y.ndim == 2 and y.shape[1] > 1 else hint
        raise ValueError(
            f"{what} needs labels y (E,), one integer for each example, got shape {y.shape}{hint}"
        )
    if not jnp.issubdtype(y.dtype, jnp.integer):
        raise ValueError(
            f"{what} needs labels y that are integers 0, 1, 2, ..., got {y.dtype}; "
            "convert them with .astype(numpy.int32)"
        )
    if x is not None and np.shape(x)[:1] != y.shape[:1]:
        raise ValueError(
            f"{what} needs one label for each example, got x of shape {np.shape(x)} and y of shape "
            f"{y.shape}"
        )
    if is_known(y) and y.size:
        least, most = int(np.asarray(y).min()), int(np.asarray(y).max())
        if least < 0 or (num_classes is not None and most >= num_classes):
            allowed = ">= 0" if num_classes is None else f"in 0 .. {num_classes - 1}"
            raise ValueError(
                f"{what} needs labels {allowed}, got labels from {least} to {most}; number the "
                "classes from 0"
            )
    return y


def key(what: str, value: Any, *, several: bool = False) -> Array:
    """A random key of ``jax.random.key`` (or the older ``PRNGKey``); with ``several``, or a vector.

    Returns:
      A typed key, () or (S,).

    Raises:
      TypeError: for anything else, such as an integer seed.
    """
    typed = isinstance(value, jax.Array) and jnp.issubdtype(value.dtype, jax.dtypes.prng_key)
    if not typed and isinstance(value, jax.Array | np.ndarray) and np.ndim(value):
        width = np.shape(jax.random.key_data(jax.random.key(0)))[-1]
        if np.dtype(value.dtype) == np.uint32 and np.shape(value)[-1] == width:
            value, typed = jax.random.wrap_key_data(jnp.asarray(value)), True
    if not typed:
        hint = f"; write jax.random.key({value})" if isinstance(value, int) else ""
        raise TypeError(f"{what} needs a key of jax.random.key(seed), got {_shown(value)}{hint}")
    if value.ndim > several:
        allowed = "one key or a vector of keys" if several else "one key"
        raise ValueError(f"{what} needs {allowed}, got keys of shape {value.shape}")
    return value


# --- Parts -----------------------------------------------------------------------------------------


def part(what: str, kind: type, *, optional: bool = False, **values: Any) -> None:
    """Parts of a simulation: ``aggregator=median`` without ``()`` is a function, not a rule."""
    for name, value in values.items():
        if (value is None and optional) or isinstance(value, kind):
            continue
        called = getattr(value, "__name__", None) if callable(value) else None
        hint = f"; call it: {name}={called}(...)" if called else ""
        article = "an" if kind.__name__[0] in "AEIOU" else "a"
        raise TypeError(
            f"{what} needs {name} to be {article} {kind.__name__}, got {_shown(value)}{hint}"
        )


def function(what: str, *, optional: bool = False, **values: Any) -> None:
    """Functions, or other things that can be called."""
    for name, value in values.items():
        if not (callable(value) or (value is None and optional)):
            raise TypeError(f"{what} needs {name} to be a function, got {_shown(value)}")


def classes(what: str, task: Any, x: Any) -> int:
    """The number of classes that a ``Task`` tells apart, from the shapes of inputs x (b, ...).

    Raises:
      ValueError: if its model does not take such inputs.
      TypeError: if it has no logits.
    """
    function(what, **{"task.init": task.init, "task.logits": task.logits})
    params = jax.eval_shape(task.init, jax.random.key(0))
    sample = jax.ShapeDtypeStruct((1, *x.shape[1:]), x.dtype)
    try:
        return int(jax.eval_shape(task.logits, params, sample).shape[-1])
    except Exception as error:
        raise ValueError(
            f"{what} needs inputs that the task's model takes, got x of shape {x.shape} and dtype "
            f"{x.dtype}: {error}"
        ) from error


def boolean(what: str, **values: Any) -> None:
    """True or False; NumPy's are, too."""
    for name, value in values.items():
        if not isinstance(value, bool | np.bool_):
            raise TypeError(f"{what} needs {name} to be True or False, got {_shown(value)}")


def returned(what: str, value: Any, shape: tuple[int, ...], *, floating: bool = True) -> None:
    """What a user's function returned; call it once, at trace time.

    Args:
      what: which function, such as "the rule's aggregate".
      value: what it returned.
      shape: what is wanted.
      floating: floats are wanted.

    Raises:
      ValueError: for another shape.
      TypeError: for something that is no array, or not of floats.
    """
    if not hasattr(value, "shape") or not hasattr(value, "dtype"):
        raise TypeError(f"{what} must return an array of shape {shape}, got {_shown(value)}")
    if tuple(value.shape) != shape:
        raise ValueError(f"{what} must return shape {shape}, got {tuple(value.shape)}")
    if floating and not jnp.issubdtype(value.dtype, jnp.floating):
        raise TypeError(f"{what} must return floats, got {value.dtype}")


# --- Texts -----------------------------------------------------------------------------------------


def _text(sentence: str, remedy: str) -> str:
    return f"{sentence}; {remedy}" if remedy else sentence


def _shown(value: Any) -> str:
    if isinstance(value, np.ndarray | jax.Array):
        if not is_known(value):
            return f"a traced {value.dtype} of shape {value.shape}"
        if value.ndim:
            return f"an array of shape {value.shape} and dtype {value.dtype}"
        return str(value)
    if callable(value) and hasattr(value, "__name__"):
        return f"the function {value.__name__}"
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."


def _words(names: Sequence[str]) -> str:
    return ", ".join(map(repr, names)) or "nothing"
