"""Small problems, kinds of arguments with the values that must be refused, and a line of the table."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import flax.linen as linen
import jax
import jax.numpy as jnp
import numpy as np

import fedjax_robust as fr
from fedjax_robust import aggregators, models, nn, repairs

# --- Problems ----------------------------------------------------------------------------------------

RNG = np.random.default_rng(0)
X = RNG.random((12, 4)).astype(np.float32)
Y = np.arange(12, dtype=np.int32) % 3
POOL = {"x": X, "y": Y}
IMAGES = RNG.random((12, 5, 5, 1)).astype(np.float32)
PICTURES = {"x": IMAGES, "y": Y}
WORDS = {"x": np.arange(12).reshape(3, 4) % 5, "y": (np.arange(12).reshape(3, 4) + 1) % 5}
INDEX = jnp.arange(12, dtype=jnp.int32).reshape(4, 3)
COUNT = jnp.full(4, 3, jnp.int32)
MATRIX = RNG.normal(size=(9, 15)).astype(np.float32)
KEY = jax.random.key(0)


class Small(linen.Module):
    @linen.compact
    def __call__(self, x):
        return linen.Dense(3)(linen.relu(nn.Conv(3, (2, 2))(x)).mean((1, 2)))


def owned(examples):
    return fr.FederatedData({k: jnp.asarray(v) for k, v in examples.items()}, INDEX, COUNT)


TASK = fr.classification(models.SoftmaxRegression(3), X[:1])
PARAMS = jnp.zeros(15)
CLIENT = fr.local_sgd(TASK, 0.1, 2)
SIM = fr.Simulation(TASK, CLIENT, aggregators.mean(), num_malicious=1)
OWNED = owned(POOL)
SEEING = fr.classification(Small(), IMAGES[:1])
SEEN = owned(PICTURES)
READING = fr.next_word(models.WordLSTM(5, 2), WORDS["x"][:1])


@functools.cache
def layer():
    return repairs.convolution(Small(), IMAGES[:1], "Conv_0")


@functools.cache
def seeing_params():
    return SEEING.init(KEY) + 0.1


@functools.cache
def reading_params():
    return READING.init(KEY)


@functools.cache
def state():
    return fr.init(SIM, KEY, OWNED)


def same(x):
    return x


# --- Kinds -------------------------------------------------------------------------------------------

Bad = Iterator[tuple[str, Any]]


class Kind(NamedTuple):
    bad: Callable[[Any], Bad]
    """the valid value -> labelled bad ones"""
    good: Callable[[Any], Bad] = lambda valid: iter(())
    """the valid value -> other good ones"""


def zero_dimensional(values) -> Bad:
    for value in values:
        yield f"numpy {value}", np.asarray(value)
        yield f"jax {value}", jnp.asarray(value)


NO_NUMBERS = (("text", "3"), ("a list", [1]), ("a boolean", True), ("a function", same))


def unless(optional) -> Bad:
    if not optional:
        yield "None", None


def of_numbers(bad: tuple[float, ...], optional: bool, whole: bool) -> Kind:
    def values(valid) -> Bad:
        for value in bad:
            yield str(value), value
        yield from zero_dimensional(bad)
        yield from NO_NUMBERS
        yield from unless(optional)
        yield "numpy bool", np.bool_(True)
        yield "numpy vector", np.full(2, 1 if whole else 0.5)
        yield "jax vector", jnp.full(2, 1 if whole else 0.5)
        yield "complex", 1j
        yield "key", KEY

    def others(valid) -> Bad:
        if valid is None or callable(valid):
            return
        yield "numpy scalar", (np.int64 if whole else np.float64)(valid)
        yield "numpy 0-d", np.asarray(valid)
        yield "jax 0-d", jnp.asarray(valid)

    return Kind(values, others)


NAN, INF = math.nan, math.inf


def count(least: int = 0, most: int | None = None, optional: bool = False) -> Kind:
    """Whole numbers; ``most`` if a larger one is refused, too."""
    too_many = () if most is None else (most + 1,)
    bad = (NAN, INF, -INF, least - 1, -7, least + 0.5, *too_many)
    return of_numbers(bad, optional, whole=True)


def positive(optional: bool = False, infinite: bool = False) -> Kind:
    return of_numbers((NAN, -INF, 0.0, -1.0, *(() if infinite else (INF,))), optional, whole=False)


def not_negative(optional: bool = False) -> Kind:
    return of_numbers((NAN, INF, -INF, -1.0), optional, whole=False)


def fraction(*bad: float, optional: bool = False) -> Kind:
    """Numbers of an interval; ``bad`` are at or beyond its ends."""
    return of_numbers((NAN, INF, -INF, -0.5, 1.5, *bad), optional, whole=False)


def number(optional: bool = False, infinite: bool = False) -> Kind:
    return of_numbers((NAN, *(() if infinite else (INF, -INF))), optional, whole=False)


def boolean() -> Kind:
    def values(valid) -> Bad:
        yield from (("1", 1), ("text", "yes"), ("None", None), ("nan", NAN), ("a list", [True]))

    return Kind(values)


def function(optional: bool = False) -> Kind:
    def values(valid) -> Bad:
        yield from (("3", 3), ("text", "f"), ("nan", NAN), ("an array", np.ones(2)))
        yield from unless(optional)

    return Kind(values)


def rate_or_schedule() -> Kind:
    numbers = positive()

    def values(valid) -> Bad:
        yield from (pair for pair in numbers.bad(valid) if pair[0] != "a function")
        import optax

        yield "an optimizer", optax.sgd(0.1)

    return Kind(values, numbers.good)


def part(optional: bool = False) -> Kind:
    def values(valid) -> Bad:
        yield from (("3", 3), ("text", "mean"), ("a dict", {}), ("a tuple", (same, same)))
        yield "not called", lambda *arguments, **options: valid
        yield from unless(optional)

    return Kind(values)


def module() -> Kind:
    def values(valid) -> Bad:
        yield from (("3", 3), ("None", None), ("a class", type(valid)), ("a function", same))

    return Kind(values)


def text(*unknown: str, optional: bool = False) -> Kind:
    def values(valid) -> Bad:
        yield from (("3", 3), ("nan", NAN), ("bytes", b"x"), ("True", True), ("a list", [3]))
        yield from ((repr(name), name) for name in unknown)
        yield from unless(optional)

    return Kind(values)


def path(optional: bool = False) -> Kind:
    def values(valid) -> Bad:
        yield from (("3", 3), ("1.5", 1.5), ("True", True), ("a list", ["x"]))
        yield from unless(optional)

    return Kind(values)


def key(optional: bool = False) -> Kind:
    def values(valid) -> Bad:
        yield from (("an integer", 0), ("text", "key"), ("1.5", 1.5), ("a 0-d array", jnp.int32(3)))
        yield "a float array", jnp.ones(2)
        yield "a matrix of keys", jax.random.split(KEY, (2, 2))
        yield from unless(optional)

    return Kind(values)


def array(
    dtype: str = "f",
    *,
    rank: bool = True,
    fixed: tuple[int, ...] = (),
    finite: bool = False,
    optional: bool = False,
    low: int | None = None,
    high: int | None = None,
) -> Kind:
    """Arrays.

    Args:
      dtype: "f" floats (integers will do), "F" floats only, "i" integers, "b" bool.
      rank: another rank is refused.
      fixed: axes whose length is given by other arguments.
      finite: NaN and Inf are refused.
      low, high: integers below, above are refused.
    """

    def values(valid) -> Bad:
        yield from (("text", "x"), ("a dict", {"x": 1}), ("a function", same))
        yield from unless(optional)
        if valid is None:
            return
        valid = np.asarray(valid)
        yield "texts", np.full(valid.shape, "a")
        yield "complex", valid.astype(complex)
        yield "ragged", [[1.0, 2.0], [3.0]]
        if rank:
            yield "one axis more", valid[..., None]
            yield "one axis less", valid[0]
        for axis in fixed:
            yield f"axis {axis} too short", np.delete(valid, 0, axis)
        if finite:
            for name, value in (("NaN", NAN), ("Inf", INF)):
                changed = valid.astype(np.float32)
                changed.flat[0] = value
                yield f"a {name}", changed
        if dtype in "ib":
            yield "fractions", valid.astype(np.float32) + 0.5
        if dtype == "i":
            yield "bool", valid > 0
        if dtype == "F":
            yield "integers", valid.astype(np.int32)
        for name, limit in (("below", low), ("above", high)):
            if limit is not None:
                changed = valid.copy()
                changed.flat[0] = limit + (1 if name == "above" else -1)
                yield f"{name} {limit}", changed

    def others(valid) -> Bad:
        if valid is not None:
            yield "jax", jnp.asarray(valid)

    return Kind(values, others)


def examples(classes: int | None = None, labelled: bool = True, names=("x", "y")) -> Kind:
    """A batch or pool; ``classes`` if labels are compared with them."""

    def values(valid) -> Bad:
        yield from (("None", None), ("3", 3), ("a list", [1, 2]), ("an array", np.ones(3)))
        valid = {name: np.asarray(v) for name, v in valid.items()}
        x, y = valid["x"], valid["y"]
        if names:
            yield "other names", {"image": x, "label": y}
        for name in names:
            yield f"without {name}", {k: v for k, v in valid.items() if k != name}
            yield f"{name} too short", valid | {name: valid[name][1:]}
        yield "empty", {name: v[:0] for name, v in valid.items()}
        yield "a column of text", valid | {"user": np.full(len(x), "a")}
        if not labelled:
            return
        yield "one-hot labels", valid | {"y": np.eye(9, dtype=np.int32)[y]}
        yield "labels (E, 1)", valid | {"y": y[..., None]}
        yield "labels of floats", valid | {"y": y.astype(np.float32)}
        yield "labels of bool", valid | {"y": y > 0}
        yield "labels of text", valid | {"y": y.astype(str)}
        yield "negative labels", valid | {"y": y - 1}
        yield "NaN labels", valid | {"y": np.full(y.shape, NAN)}
        if classes is not None:
            yield "labels from 1", valid | {"y": np.where(y == y.max(), classes, y)}

    return Kind(values)


def partition(classes: int | None = None, names=("x", "y"), labelled: bool = True) -> Kind:
    pool = examples(classes, labelled, names)

    def values(valid) -> Bad:
        yield from (("None", None), ("3", 3), ("a dict", valid.examples), ("a tuple", tuple(valid)))
        for name, bad in pool.bad(valid.examples):
            yield name, valid._replace(examples=bad)
        index, counts = valid.index, valid.count
        yield "rows beyond the pool", valid._replace(index=index.at[0, 0].set(99))
        yield "negative rows", valid._replace(index=index.at[0, 0].set(-1))
        yield "rows of floats", valid._replace(index=index.astype(float))
        yield "one client's rows", valid._replace(index=index[0])
        yield "counts beyond the width", valid._replace(count=counts.at[0].set(99))
        yield "negative counts", valid._replace(count=counts.at[0].set(-1))
        yield "counts of floats", valid._replace(count=counts.astype(float))
        yield "a count too few", valid._replace(count=counts[1:])
        yield "no clients", valid._replace(index=index[:0], count=counts[:0])

    return Kind(values)


def other(*bad: tuple[str, Any], good: tuple[tuple[str, Any], ...] = ()) -> Kind:
    """Values written out."""
    return Kind(lambda valid: iter(bad), lambda valid: iter(good))


OPEN = other()  # anything goes

# --- The table ---------------------------------------------------------------------------------------


class Line(NamedTuple):
    valid: dict[str, Any] | Callable[[], dict[str, Any]]
    """arguments that pass"""
    kinds: dict[str, Kind]
    """what to try, by argument"""
    several: str | None = None
    """the argument that holds what the function takes as *arguments"""
    run_valid: bool = True
    """whether the valid arguments are cheap enough, and harmless, to pass"""
    run_good: bool = True
    """whether the other good values are"""
