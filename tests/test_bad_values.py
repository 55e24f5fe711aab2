"""Every argument of every public function, with bad values one by one.

A line of the table gives a function's valid arguments and what kind each of them is; a kind knows the
values that must be refused. All names come from the package, so that a new function or argument without
a line fails. Refused means: a ValueError or TypeError raised by the package itself, whose text names the
argument or the function; not an AssertionError, KeyError or ZeroDivisionError, nor a text of JAX or Flax.
"""

from __future__ import annotations

import functools
import inspect
import math
import re
import traceback
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import flax.linen as linen
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import fedjax_robust as fr
from fedjax_robust import aggregators, attacks, data, metrics, models, nn, privacy, repairs, tasks
from fedjax_robust.types import AttackerView, ClientData

MODULES = {
    "": fr,
    "aggregators": aggregators,
    "attacks": attacks,
    "attacks.backdoors": attacks.backdoors,
    "attacks.divisions": attacks.divisions,
    "attacks.objectives": attacks.objectives,
    "attacks.optimised": attacks.optimised,
    "attacks.poisons": attacks.poisons,
    "attacks.repair_aware": attacks.repair_aware,
    "data": data,
    "metrics": metrics,
    "privacy": privacy,
    "repairs": repairs,
    "tasks": tasks,
}

WITHOUT_A_LINE = dict.fromkeys(
    [
        "Aggregator",
        "Attack",
        "AttackerView",
        "Client",
        "ClientData",
        "FederatedData",
        "Knowledge",
        "Received",
        "SimState",
        "State",
        "Simulation",
        "Task",
        "attacks.backdoors.SemanticBackdoor",
        "data.Dataset",
        "repairs.ConvolutionLayer",
    ],
    "a container of parts or arrays: what receives it checks them",
)
"""Public names without a line, and why."""

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


def triggered_images(trigger):
    return {"x": IMAGES, "y": Y, "trigger": trigger}


def anomaly(params, received):
    return jnp.sum(jnp.square(params - received))


def training_loss(w, x):
    return jnp.sum(jnp.square(x @ w))


def objective(w):
    return jnp.sum(w)


# fmt: off
BY_ROWS = {
    "examples": examples(names=("y",)),
    "num_clients": count(1),
    "key": key(),
    "capacity": count(1, optional=True),
}
SPLIT = {"key": KEY, "examples": POOL, "num_clients": 2}
CLASSES = {"num_classes": count(3, optional=True)}
REJECTING = {
    "base": part(), "task": part(), "validation": examples(3), "f": count(), "rest": part(optional=True),
    "chunk": count(1, optional=True), "ties": function(),
}
TRUSTING = Line({"client": CLIENT, "root": POOL}, {"client": part(), "root": examples()})
MEASURED = {"task": part(), "test": examples(3), "chunk": count(1)}
BASED = {"base": part(optional=True)}
BOOLS = np.array([True, False, True])
SENTENCES = [[1, 2, 3], [2, 4]]
TEXT = "the cat sat on the mat . the dog ran to the cat . a cat is a cat ."

TABLE: dict[str, Line | list[Line]] = {
    # fedjax_robust
    "attackers_selected": Line(
        {"num_clients": 6, "clients_per_round": 3, "rounds": np.array([[True, False]])},
        {"num_clients": count(1), "clients_per_round": count(1, 6), "rounds": array("b", rank=False)},
    ),
    "each_with_probability": Line(
        {"num_clients": 6, "probability": 0.5, "at_most": 3},
        {"num_clients": count(1), "probability": fraction(0.0), "at_most": count(1, 6, optional=True)},
    ),
    "varying_number": Line(
        {"num_clients": 6, "at_most": 3, "numbers": np.array([0, 2, 3])},
        {"num_clients": count(1), "at_most": count(1, 6), "numbers": array("i", rank=False)},
    ),
    "classification": Line(
        {"module": models.SoftmaxRegression(3), "sample": X[:1]},
        {"module": module(), "sample": array(rank=False)},
    ),
    "next_word": Line(
        {"module": models.WordLSTM(5, 2), "sample": WORDS["x"][:1]},
        {"module": module(), "sample": array("i")},
    ),
    "equal_weights": Line({"count": COUNT}, {"count": array(rank=False)}),
    "example_weights": Line({"count": COUNT}, {"count": array(rank=False)}),
    "local_sgd": [
        Line(
            {"task": TASK, "learning_rate": 0.1, "batch_size": 2, "steps": 2, "momentum": 0.5,
             "keep_momentum": False, "clip_norm": 1.0, "poison": None, "objective": None},
            {"task": part(), "learning_rate": rate_or_schedule(), "batch_size": count(1, optional=True),
             "steps": count(1), "momentum": fraction(1.0), "keep_momentum": boolean(),
             "clip_norm": positive(optional=True), "poison": function(optional=True),
             "objective": function(optional=True)},
        ),
        Line(
            {"task": TASK, "learning_rate": 0.1, "batch_size": 2, "epochs": 2},
            {"epochs": count(1, optional=True), "stop": function(optional=True),
             "round_schedule": function(optional=True)},
        ),
    ],
    "run": Line(
        {"sim": SIM, "key": KEY, "data": OWNED, "rounds": 2, "evaluate": None, "evaluate_every": None,
         "params": None, "progress": False, "checkpoint": None, "checkpoint_every": None, "mesh": None},
        {"sim": part(), "key": key(), "data": partition(3), "rounds": count(1),
         "evaluate": function(optional=True), "evaluate_every": count(1, optional=True),
         "params": array(optional=True), "progress": boolean(), "checkpoint": path(optional=True),
         "checkpoint_every": count(1, optional=True), "mesh": part(optional=True)},
        run_good=False,
    ),
    "init": Line(
        {"sim": SIM, "key": KEY, "data": OWNED, "params": None},
        {"sim": part(), "key": key(), "data": partition(None, (), labelled=False),
         "params": array(optional=True)},
        run_good=False,
    ),
    "step": Line(
        lambda: {"sim": SIM, "state": state(), "data": OWNED, "mesh": None},
        {"sim": part(), "state": part(), "data": partition(3), "mesh": part(optional=True)},
    ),
    # aggregators
    "aggregators.accuracy_auditing": Line(
        {"accuracy": jnp.sum, "drop": 0.1},
        {"accuracy": function(), "drop": not_negative(), **BASED},
    ),
    "aggregators.auror": Line({"threshold": 0.1}, {"threshold": positive(), **BASED}),
    "aggregators.bulyan": Line({"f": 1}, {"f": count()}),
    "aggregators.cosine_to_model": Line({"deviations": 3.0}, {"deviations": positive(), **BASED}),
    **{
        f"aggregators.{name}": Line(
            {"base": aggregators.mean(), "task": TASK, "validation": POOL, "f": 1, "chunk": 2},
            REJECTING,
        )
        for name in ("err", "lfr", "union")
    },
    "aggregators.fedavg_eta": Line(
        {"eta": 1.0, "num_clients": 9}, {"eta": positive(), "num_clients": count(1)}
    ),
    **{
        f"aggregators.{name}": TRUSTING
        for name in [
            "fltrust", "fltrust_no_norm", "fltrust_no_relu", "fltrust_par_norm", "fltrust_server",
            "fltrust_with_server", "server_update",
        ]
    },
    "aggregators.krum": Line({"f": 1}, {"f": count()}),
    "aggregators.mean": Line({}, {}),
    "aggregators.median": Line({}, {}),
    "aggregators.multi_krum": Line(
        {"f": 1, "m": 2},
        {"f": count(), "m": count(1, optional=True)},
    ),
    "aggregators.norm_clipping": Line({"bound": 1.0}, {"bound": positive(), **BASED}),
    "privacy.participant_dp": Line(
        {"bound": 1.0, "noise": 0.1, "clients_per_round": 9},
        {"bound": positive(), "noise": not_negative(), "clients_per_round": positive(optional=True)},
    ),
    "aggregators.sybil_check": Line(
        {"largest": 0.5}, {"largest": of_numbers((NAN, INF, -1.5), False, False), **BASED}
    ),
    "aggregators.trimmed_mean": Line({"f": 1}, {"f": count()}),
    "aggregators.trusted_mean": Line(
        {"updates": MATRIX, "present": np.ones(9, bool), "g_0": MATRIX[0]},
        {"updates": array(fixed=(0, 1)), "present": array("b", fixed=(0,)), "g_0": array(fixed=(0,))},
    ),
    # attacks
    "attacks.backdoors.add_backdoored_copies": Line(
        {"data": OWNED, "num_malicious": 1, "trigger": same, "target": 1},
        {"data": partition(), "num_malicious": count(0, 4), "trigger": function(),
         "target": count(0, 2)},
    ),
    "attacks.poisons.add_triggered_victims": Line(
        {"trigger": same, "victim": 1, "target": 2},
        {"trigger": function(), "victim": count(), "target": count()},
    ),
    "attacks.optimised.back_gradient_points": Line(
        {"key": KEY, "task": TASK, "train": POOL, "validation": POOL, "points": 2, "iterations": 1,
         "step": 0.5, "learning_rate": 0.1, "training_steps": 1, "flip": None, "start": PARAMS,
         "bounds": (0.0, 1.0), "smallest_rise": 0.1, "progress": False,
         "gradient": attacks.optimised.unrolled_gradient},
        {"key": key(), "task": part(), "train": examples(3), "validation": examples(3),
         "points": count(1, 12), "iterations": count(1), "step": positive(),
         "learning_rate": positive(), "training_steps": count(1), "flip": function(optional=True),
         "start": array("F", fixed=(0,), optional=True),
         "bounds": other(("one number", 1.0), ("three", (0, 1, 2)), ("in reverse", (1.0, 0.0)),
                         ("equal", (1, 1)), ("NaN", (0.0, NAN)), ("Inf", (0.0, INF)),
                         ("texts", ("0", "1")), ("None", None), ("0-d NaN", (jnp.array(NAN), 1))),
         "smallest_rise": number(optional=True), "progress": boolean(), "gradient": function()},
        run_good=False,
    ),
    "attacks.objectives.constrain": Line(
        {"alpha": 0.5, "anomaly": anomaly}, {"alpha": fraction(), "anomaly": function()}
    ),
    "attacks.objectives.converged": Line(
        {"task": TASK, "backdoor": POOL, "epsilon": 0.1},
        {"task": part(), "backdoor": examples(), "epsilon": positive()},
    ),
    "attacks.objectives.cosine_distance": Line(
        {"params": MATRIX[0], "received": MATRIX[1]},
        {"params": array(fixed=(0,)), "received": array(fixed=(0,))},
    ),
    "attacks.data_poisoning": Line({"client": CLIENT}, {"client": part()}),
    "attacks.poisons.distributed": Line(
        {"triggers": [same, same], "target": 1, "c": 2, "skip": 0},
        {"triggers": other(("none", []), ("one", same), ("numbers", [1]), ("text", "x"), ("None", None)),
         "target": count(), "c": count(1), "skip": count()},
    ),
    **{
        f"attacks.divisions.{name}": Line({argument: 2.0}, {argument: positive()})
        for name, argument in (
            ("copies", "gamma"), ("equal_parts", "gamma"), ("orthogonal_parts", "gamma"),
            ("norm_bounded", "bound"),
        )
    },
    "attacks.fang_krum_full": Line(
        {"f": 1, "epsilon": 0.01, "threshold": 1e-5, "direction": np.sign, "before": None},
        {"f": count(optional=True), "epsilon": not_negative(), "threshold": not_negative(),
         "direction": function(), "before": part(optional=True)},
    ),
    "attacks.fang_krum_partial": Line(
        {"epsilon": 0.01, "threshold": 1e-5, "simulated_f": same, "direction": np.sign},
        {"epsilon": not_negative(), "threshold": not_negative(), "simulated_f": function(),
         "direction": function()},
    ),
    "attacks.fang_trim_deviation": Line(
        {"b": 2.0, "on_updates": False},
        {"b": of_numbers((NAN, INF, -INF, 1.0, 0.5, -1.0), False, False), "on_updates": boolean()},
    ),
    "attacks.fang_trim_full": Line(
        {"b": 2.0, "before": None, "on_updates": False},
        {"b": of_numbers((NAN, INF, -INF, 1.0, 0.5, -1.0), False, False),
         "before": part(optional=True), "on_updates": boolean()},
    ),
    "attacks.fang_trim_partial": Line(
        {"low": 3.0, "high": 4.0}, {"low": number(), "high": number()}
    ),
    "attacks.backdoors.feature_trigger": Line(
        {"every": 2, "value": 0.5}, {"every": count(1), "value": number()}
    ),
    "attacks.first_order": Line(
        {"steps": 3, "step_size": 0.2, "start": None},
        {"steps": count(1), "step_size": positive(), "start": part(optional=True)},
    ),
    "attacks.fltrust_adaptive": Line(
        {"client": CLIENT, "root": POOL, "sweeps": 2, "queries": 2, "variance": 0.5, "gamma": 0.005,
         "eta": 0.01, "start": None},
        {"client": part(), "root": examples(), "sweeps": count(1), "queries": count(1),
         "variance": positive(), "gamma": positive(), "eta": positive(), "start": part(optional=True)},
    ),
    "attacks.gaussian": Line({}, {}),
    "attacks.in_rounds": Line(
        {"attack": attacks.data_poisoning(CLIENT), "poisoned": BOOLS, "client": CLIENT},
        {"attack": part(), "poisoned": array("b", rank=False), "client": part(optional=True)},
    ),
    "attacks.poisons.in_turn": Line(
        {"poisons": [attacks.poisons.label_flip(3)]},
        {"poisons": other(("a number", [3]), ("text", ["x"]), ("None", [None]))},
        several="poisons",
    ),
    "attacks.poisons.label_flip": Line({"num_classes": 3}, {"num_classes": count(2)}),
    "attacks.backdoors.mask_trigger": Line(
        {"mask": np.eye(5, dtype=bool)[..., None], "pattern": 0.5},
        {"mask": other(("None", None), ("text", "x"), ("floats", np.ones(3)), ("integers", [1, 0]),
                       ("empty", np.zeros(3, bool)), ("ragged", [[True], [True, False]])),
         "pattern": array(rank=False, finite=True)},
    ),
    "attacks.model_replacement": Line(
        {"client": CLIENT, "data": ClientData(OWNED.examples, INDEX[0], COUNT[0]),
         "divide": attacks.divisions.copies()},
        {"client": part(), "divide": function(),
         "data": other(("None", None), ("a dict", POOL), ("a partition", OWNED),
                       ("rows beyond", ClientData(OWNED.examples, INDEX[0] + 99, COUNT[0])),
                       ("count beyond", ClientData(OWNED.examples, INDEX[0], COUNT[0] + 9)),
                       ("all rows", ClientData(OWNED.examples, INDEX, COUNT)))},
    ),
    "attacks.no_attack": Line({}, {}),
    "attacks.poisons.other_label": Line({"num_classes": 3}, {"num_classes": count(2)}),
    "attacks.objectives.p_distance": Line(
        {"p": 2.0}, {"p": of_numbers((NAN, -INF, 0.5, 0.0, -1.0), False, False)}
    ),
    "attacks.backdoors.pixel_trigger": Line(
        {"pixels": [(0, 1), (2, 2)], "value": 0.5},
        {"pixels": other(("none", []), ("negative", [(0, -1)]), ("fractions", [(0.5, 1)]),
                         ("triples", [(1, 2, 3)]), ("one pixel", (1, 2)), ("text", "x"),
                         ("None", None), ("ragged", [(1, 2), (3,)]), ("NaN", [(NAN, 1)]),
                         ("bool", [(True, False)]), ("a number", 3)),
         "value": number()},
    ),
    "attacks.poisons.replace_by": Line(
        {"backdoor": POOL, "c": 2, "noise": 0.1, "skip": 1},
        {"backdoor": examples(), "c": count(1), "noise": not_negative(), "skip": count()},
    ),
    "attacks.poisons.replace_by_triggered": Line(
        {"trigger": same, "target": 1, "c": 2, "skip": 0},
        {"trigger": function(), "target": count(), "c": count(1), "skip": count()},
    ),
    "attacks.optimised.reversed_gradient": Line(
        {"training_loss": training_loss, "objective": objective, "start": np.ones(4, np.float32),
         "x": X[:2], "learning_rate": 0.1, "steps": 1, "inversions": 1},
        {"training_loss": function(), "objective": function(), "start": array("F"),
         "x": array("F", rank=False), "learning_rate": positive(), "steps": count(1),
         "inversions": count(1)},
        run_good=False,
    ),
    "attacks.scaling": Line(
        {"scale": 2.0, "client": CLIENT}, {"scale": positive(), "client": part(optional=True)}
    ),
    "attacks.backdoors.semantic_backdoor": Line(
        {"examples": POOL, "rows": [1, 2], "held_out": 1, "target": 1},
        {"examples": examples(), "held_out": count(0, 1), "target": count(0, 2),
         "rows": other(("none", []), ("twice", [1, 1]), ("beyond", [1, 12]), ("negative", [-1]),
                       ("fractions", [0.5]), ("bool", [True, False]), ("text", "x"), ("None", None),
                       ("a number", 1), ("two axes", [[1, 2]]), ("NaN", [NAN]))},
    ),
    "attacks.train_and_scale": Line(
        {"bound": 2.0, "client": CLIENT}, {"bound": positive(), "client": part(optional=True)}
    ),
    "attacks.backdoors.triggered": Line(
        {"test": POOL, "trigger": same}, {"test": examples(), "trigger": function()}
    ),
    "attacks.optimised.unrolled_gradient": Line(
        {"training_loss": training_loss, "objective": objective, "start": np.ones(4, np.float32),
         "x": X[:2], "learning_rate": 0.1, "steps": 1},
        {"training_loss": function(), "objective": function(), "start": array("F"),
         "x": array("F", rank=False), "learning_rate": positive(), "steps": count(1)},
        run_good=False,
    ),
    "attacks.poisons.word_backdoor": Line(
        {"sentences": SENTENCES, "replaced": 2, "weight": 1.0, "num_words": 5},
        {"sentences": other(("none", []), ("one", [1, 2, 3]), ("text", "to be"),
                            ("words", [["to", "be"]]),
                            ("short", [[1]]), ("fractions", [[1.5, 2.5]]), ("bool", [[True, False]]),
                            ("negative", [[1, -1]]), ("beyond the words", [[1, 5]]), ("None", None),
                            ("a number", 3), ("NaN", [[NAN, 1.0]])),
         "replaced": count(1, optional=True), "weight": positive(), "num_words": count(1, optional=True)},
    ),
    # data
    "data.by_group": Line(
        SPLIT | {"num_clients": 6, "p": 0.5}, {**BY_ROWS, "p": fraction(), **CLASSES}
    ),
    "data.by_user": Line(
        {"users": np.arange(12) % 2, "examples": POOL, "key": KEY},
        {"users": other(("None", None), ("3", 3), ("too few", np.arange(5)),
                        ("two axes", np.ones((12, 1))),
                        ("a dict", {1: 2}), ("NaN", np.full(12, NAN))),
         "examples": examples(labelled=False, names=()), "key": key(optional=True),
         "capacity": count(1, optional=True)},
    ),
    "data.changed": Line(
        {"changes": [data.random_flip()]},
        {"changes": other(("a number", [3]), ("None", [None]), ("text", ["x"]))},
        several="changes",
    ),
    "data.cifar10_rows": Line(
        {"numbers": [1, 2], "data_dir": None},
        {"numbers": other(("negative", [-1]), ("beyond", [50_000]), ("fractions", [0.5]), ("NaN", [NAN]),
                          ("text", "x"), ("None", None), ("bool", [True])),
         "data_dir": path(optional=True)},
        run_valid=False,
    ),
    **{
        f"data.{name}": Line(
            SPLIT | {"alpha": 5.0}, {**BY_ROWS, "alpha": positive(), **CLASSES}
        )
        for name in ("dirichlet_over_clients", "dirichlet_truncated")
    },
    "data.dirichlet_over_classes": Line(
        SPLIT | {"alpha": 5.0, "prior": np.full(3, 1 / 3)},
        {**BY_ROWS, "alpha": positive(), **CLASSES,
         "prior": array(fixed=(0,), finite=True, optional=True)},
    ),
    "data.from_owner": Line(
        {"examples": POOL, "owner": np.arange(12) % 3, "num_clients": 3},
        {"examples": examples(labelled=False, names=()), "num_clients": count(1),
         "owner": array("i", fixed=(0,), high=3), "capacity": count(1, optional=True)},
    ),
    "data.iid": Line(
        SPLIT,
        {"examples": examples(labelled=False, names=()), "num_clients": count(1), "key": key(),
         "capacity": count(1, optional=True)},
    ),
    "data.k_labels": Line(
        SPLIT | {"num_clients": 3, "k": 1}, {**BY_ROWS, "k": count(1, 3), **CLASSES}
    ),
    "data.label_histogram": Line(
        {"data": OWNED, "num_classes": 3}, {"data": partition(3, names=("y",)), "num_classes": count(1)}
    ),
    **{
        f"data.{name}": Line(
            {"train": "nowhere", "test": "nowhere"},
            {"train": path(), "test": path()}
            | ({"length": count(1), "vocabulary_size": count(2)} if name == "leaf_words" else {}),
            run_valid=False,
        )
        for name in ("leaf_characters", "leaf_words")
    },
    "data.load": Line(
        {"name": "digits", "data_dir": None, "key": None},
        {"name": text("mnist2", ""), "data_dir": path(optional=True), "key": key(optional=True)},
    ),
    "data.load_text": Line(
        {"name": "shakespeare", "length": 8, "vocabulary_size": 50, "data_dir": None},
        {"name": text("bible"), "length": count(1), "vocabulary_size": count(2),
         "data_dir": path(optional=True)},
        run_valid=False,
    ),
    "data.prepare": Line(
        {"name": "mnist", "data_dir": None},
        {"name": text("mnist2"), "data_dir": path(optional=True)},
        run_valid=False,
    ),
    "data.random_crop": Line({"padding": 1}, {"padding": count()}),
    "data.random_flip": Line({}, {}),
    "data.random_rotation": Line({"degrees": 10.0}, {"degrees": not_negative()}),
    "data.root_set": Line(
        {"key": KEY, "examples": POOL, "size": 3, "p": 0.5, "biased_class": 1},
        {"key": key(), "examples": examples(names=("y",)), "size": count(1, 12),
         "p": fraction(optional=True),
         "biased_class": count(0, 2), **CLASSES},
    ),
    "data.rotate": Line(
        {"x": IMAGES[:2], "degrees": np.ones(2, np.float32)},
        {"x": array(fixed=(0,)), "degrees": array(fixed=(0,))},
    ),
    "data.shift": Line(
        {"x": IMAGES[:2], "offsets": np.ones((2, 2), np.int32)},
        {"x": array(fixed=(0,)), "offsets": array("i", fixed=(0, 1))},
    ),
    "data.stack": Line(
        {"parts": [OWNED, OWNED]},
        {"parts": other(("none", []), ("numbers", [3]), ("one", OWNED), ("None", None), ("dicts", [POOL]),
                        ("other pools", [OWNED, owned(PICTURES)]))},
    ),
    "data.synthetic": Line(
        {"key": KEY, "num_classes": 2, "num_features": 3, "num_train": 4, "num_test": 4,
         "separation": 1.0},
        {"key": key(), "num_classes": count(2), "num_features": count(1), "num_train": count(1),
         "num_test": count(1), "separation": not_negative()},
    ),
    "data.tokenize": Line({"text": TEXT}, {"text": text()}),
    "data.variations": Line(
        {"key": KEY, "x": IMAGES[:2], "number": 3, "changes": [data.random_flip()]},
        {"key": key(), "x": array(), "number": count(1),
         "changes": other(("a number", [3]), ("None", [None]))},
        several="changes",
    ),
    "data.word_ids": Line(
        {"text": "a cat", "words": ["<unknown>", "a", "cat"]},
        {"text": other(("None", None), ("3", 3), ("numbers", [1, 2]), ("bytes", b"a cat")),
         "words": other(("None", None), ("3", 3), ("numbers", [1, 2]), ("none", []), ("text", "a cat"))},
    ),
    # metrics
    "metrics.predict": Line(
        {"task": TASK, "params": PARAMS, "x": X, "chunk": 5},
        # How many parameters, and what the model takes as x, is the task's to say.
        {"task": part(), "params": array(), "x": array(rank=False), "chunk": count(1)},
        run_good=False,
    ),
    "metrics.test_error": Line({"task": TASK, "test": POOL, "chunk": 5}, MEASURED),
    "metrics.per_class_error": Line(
        {"task": TASK, "test": POOL, "num_classes": 3, "chunk": 5},
        MEASURED | {"num_classes": count(1)},
    ),
    "metrics.attack_success": Line(
        {"task": TASK, "triggered": POOL, "target": 1, "chunk": 5},
        {"task": part(), "triggered": examples(3), "target": count(0, 2), "chunk": count(1)},
    ),
    "metrics.backdoor_accuracy": Line(
        {"task": TASK, "x": X, "target": 1, "chunk": 5},
        {"task": part(), "x": array(fixed=(1,), rank=False), "target": count(0, 2), "chunk": count(1)},
    ),
    "metrics.word_accuracy": Line(
        {"task": READING, "test": WORDS, "name": "main_accuracy", "chunk": 5},
        {"task": part(), "test": examples(5), "name": text(), "chunk": count(1)},
    ),
    "metrics.together": Line(
        {"evaluations": [metrics.test_error(TASK, POOL)]},
        {"evaluations": other(("a number", [3]), ("None", [None]), ("text", ["x"]))},
        several="evaluations",
    ),
    "metrics.detection": Line(
        {"selected": BOOLS, "malicious": ~BOOLS},
        {"selected": array("b", rank=False, fixed=(0,)), "malicious": array("b", rank=False, fixed=(0,))},
    ),
    "metrics.direction_agreement": Line({"rule": aggregators.mean()}, {"rule": part()}),
    # repairs
    "repairs.convolution": Line(
        {"module": Small(), "sample": IMAGES[:1], "name": "Conv_0"},
        {"module": module(), "sample": array(rank=False), "name": text("Conv_1", "Dense_0", "")},
    ),
    "repairs.activations": Line(
        lambda: {"layer": layer(), "params": seeing_params(), "x": IMAGES, "relu": True},
        {"layer": part(), "params": array("F", fixed=(0,)), "x": array(fixed=(3,)), "relu": boolean()},
    ),
    "repairs.client_activations": Line(
        lambda: {"layer": layer(), "params": seeing_params(), "data": SEEN, "relu": True, "chunk": 2},
        {"layer": part(), "params": array("F", fixed=(0,)), "chunk": count(1), "relu": boolean(),
         "data": partition(names=("x",), labelled=False)},
        run_good=False,
    ),
    "repairs.ranks": Line(
        {"activations": MATRIX}, {"activations": array(finite=True)}
    ),
    "repairs.ranking_vote": Line(
        {"ranks": [[1, 2, 3], [3, 1, 2]]}, {"ranks": array(low=1, high=3, fixed=(1,), finite=True)}
    ),
    "repairs.votes": Line(
        {"activations": MATRIX, "rate": 0.5},
        {"activations": array(finite=True), "rate": fraction(0.0, 1.0)},
    ),
    "repairs.majority_vote": Line(
        {"votes": [[1, 0, 1], [0, 1, 1]]}, {"votes": array(low=0, high=1, finite=True)}
    ),
    "repairs.accuracy": Line(
        {"task": TASK, "examples": POOL, "chunk": 5},
        {"task": part(), "examples": examples(3), "chunk": count(1)},
    ),
    "repairs.clients_accuracy": Line(
        {"task": TASK, "data": OWNED, "report": same, "chunk": 5},
        {"task": part(), "data": partition(3), "report": function(), "chunk": count(1)},
    ),
    "repairs.with_neurons": Line(
        lambda: {"layer": layer(), "params": seeing_params(), "keep": BOOLS},
        {"layer": part(), "params": array("F", fixed=(0,)), "keep": array("b", fixed=(0,))},
    ),
    "repairs.masked": Line(
        lambda: {"layer": layer(), "keep": BOOLS},
        {"layer": part(), "keep": array("b", fixed=(0,))},
    ),
    "repairs.prune": Line(
        lambda: {"layer": layer(), "params": seeing_params(), "order": [2, 0, 1], "validation": jnp.sum,
                 "drop": 0.1, "floor": 0.0, "chunk": 1},
        {"layer": part(), "params": array("F", fixed=(0,)),
         "order": array("i", fixed=(0,), low=0, high=2),
         "validation": function(), "drop": positive(infinite=True), "floor": number(infinite=True),
         "chunk": count(1)},
        run_good=False,
    ),
    "repairs.without_extreme_weights": Line(
        lambda: {"layer": layer(), "params": seeing_params(), "delta": 2.0, "keep": BOOLS},
        {"layer": part(), "params": array("F", fixed=(0,)), "delta": positive(infinite=True),
         "keep": array("b", fixed=(0,), optional=True)},
    ),
    "repairs.adjust_extreme_weights": Line(
        lambda: {"layer": layer(), "params": seeing_params(), "validation": jnp.sum, "deltas": (2.0, 1.0),
                 "drop": 0.1, "floor": 0.0, "keep": BOOLS, "chunk": 1},
        {"layer": part(), "params": array("F", fixed=(0,)), "validation": function(),
         "deltas": other(("none", ()), ("rising", (1, 2)), ("equal", (2, 2)), ("negative", (1, -1)),
                         ("zero", (1, 0)), ("NaN", (3, NAN)), ("Inf", (INF, 1)), ("a number", 2.0),
                         ("text", "x"), ("None", None), ("two axes", [[2.0, 1.0]])),
         "drop": positive(infinite=True), "floor": number(infinite=True),
         "keep": array("b", fixed=(0,), optional=True), "chunk": count(1)},
        run_good=False,
    ),
    "attacks.repair_aware.l2_penalty": Line(
        lambda: {"layer": layer(), "strength": 0.1}, {"layer": part(), "strength": positive()}
    ),
    "attacks.repair_aware.pruning_aware": Line(
        lambda: {"layer": layer(), "keep": BOOLS},
        {"layer": part(), "keep": array("b", fixed=(0,))},
    ),
    "attacks.repair_aware.self_clipping": Line(
        lambda: {"layer": layer(), "delta": 2.0}, {"layer": part(), "delta": positive()}
    ),
    "attacks.repair_aware.reversed_ranks": Line(
        {"ranks": [[1, 2, 3], [3, 1, 2]], "malicious": [True, False]},
        {"ranks": array(low=1, high=3, fixed=(1,), finite=True), "malicious": array("b", fixed=(0,))},
    ),
}

FUNCTIONS = Line(
    {"init": lambda key: {"w": jnp.zeros((4, 3))}, "apply": lambda p, x: x @ p["w"], "sample": X[:1],
     "train": None},
    {"init": function(), "apply": function(), "sample": array(rank=False),
     "train": function(optional=True)},
)
TABLE |= {
    "from_functions": FUNCTIONS,
    "tasks.from_functions": FUNCTIONS,
    "metrics.accuracy": Line({"task": TASK, "test": POOL, "chunk": 5}, MEASURED),
    "metrics.cross_entropy": Line({"task": TASK, "test": POOL, "chunk": 5}, MEASURED),
    "metrics.client_accuracy": Line(
        {"task": TASK, "data": OWNED, "chunk": 5},
        {"task": part(), "data": partition(3), "chunk": count(1)},
    ),
    "metrics.score": Line(
        {"evaluate": metrics.test_error(TASK, POOL), "name": None},
        {"evaluate": function(), "name": text(optional=True)},
    ),
    "data.leaf_sentiment": Line(
        {"train": "nowhere", "test": "nowhere"},
        {"train": path(), "test": path(), "length": count(1), "vocabulary_size": count(2)},
        run_valid=False,
    ),
    "data.leaf_numbers": Line(
        {"train": "nowhere", "test": "nowhere"},
        {"train": path(), "test": path(), "num_classes": count(1, optional=True),
         "shape": other(("text", "x"), ("a fraction", (1.5,)), ("negative", (-1, 2)), ("NaN", (NAN,)))},
        run_valid=False,
    ),
    "privacy.privacy_spent": Line(
        {"bound": 1.0, "noise": 1.0, "clients_per_round": 2, "num_clients": 9, "rounds": 3,
         "delta": 1e-5},
        {"bound": positive(), "noise": not_negative(), "clients_per_round": count(1, 9),
         "num_clients": count(2), "rounds": count(1), "delta": fraction(0.0, 1.0)},
        run_good=False,
    ),
    "privacy.privacy_spent_poisson": Line(
        {"bound": 1.0, "noise": 1.0, "expected_clients": 2.5, "num_clients": 9, "rounds": 3,
         "delta": 1e-5},
        {"bound": positive(), "noise": not_negative(), "expected_clients": positive(),
         "num_clients": count(3), "rounds": count(1), "delta": fraction(0.0, 1.0)},
        run_good=False,
    ),
    "data.text_dataset": Line(
        {"train": {"a": [TEXT.split()]}, "test": {"a": [TEXT.split()]}, "length": 4,
         "vocabulary_size": 9, "name": "cats", "note": ""},
        {"train": other(("None", None), ("3", 3)), "test": other(("None", None), ("3", 3)),
         "length": count(1), "vocabulary_size": count(2), "name": text(), "note": text()},
    ),
    "tasks.masked_mean": Line(
        {"values": X[0], "mask": np.ones(4)},
        {"values": array(rank=False), "mask": array(fixed=(0,), rank=False, optional=True)},
    ),
    "tasks.classification": Line(
        {"module": models.SoftmaxRegression(3), "sample": X[:1]},
        {"module": module(), "sample": array(rank=False)},
    ),
    "tasks.next_word": Line(
        {"module": models.WordLSTM(5, 2), "sample": WORDS["x"][:1]},
        {"module": module(), "sample": array("i")},
    ),
}

# fmt: on

# --- The tests ---------------------------------------------------------------------------------------


def public(module) -> list[str]:
    """Names of what a module offers to call."""
    names = getattr(module, "__all__", None) or [
        name
        for name, value in vars(module).items()
        if not name.startswith("_") and getattr(value, "__module__", "") == module.__name__
    ]
    made = (getattr(module, name) for name in names)
    return [
        name
        for name, value in zip(names, made, strict=True)
        if inspect.isfunction(value) or inspect.isclass(value)
    ]


NAMES = {
    f"{prefix}.{name}".lstrip("."): getattr(module, name)
    for prefix, module in MODULES.items()
    for name in public(module)
    if not (prefix == "attacks.optimised" and hasattr(attacks, name))  # once is enough
}


def lines(name: str) -> list[Line]:
    found = TABLE[name]
    return found if isinstance(found, list) else [found]


def arguments(line: Line) -> dict[str, Any]:
    return dict(line.valid() if callable(line.valid) else line.valid)


def call(name: str, line: Line, given: dict[str, Any]) -> Any:
    if line.several is None:
        return NAMES[name](**given)
    given = dict(given)
    rest = given.pop(line.several)
    return NAMES[name](*given.values(), *rest)


def test_every_public_function_has_a_line():
    names = set(NAMES)
    assert set(TABLE) | set(WITHOUT_A_LINE) == names, (
        names - set(TABLE) - set(WITHOUT_A_LINE),
        (set(TABLE) | set(WITHOUT_A_LINE)) - names,
    )
    assert not set(TABLE) & set(WITHOUT_A_LINE)


@pytest.mark.parametrize("name", sorted(TABLE))
def test_every_argument_has_a_kind(name):
    wanted = set(inspect.signature(NAMES[name]).parameters)
    assert wanted == set().union(*(line.kinds for line in lines(name)))


def refusal(error: BaseException, name: str, argument: str) -> str | None:
    """What is wrong with how a bad value was refused."""
    short = f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"[:140]
    if type(error) not in (ValueError, TypeError):
        return f"raised {short}"
    frames = traceback.extract_tb(error.__traceback__)
    if "fedjax_robust" not in frames[-1].filename:
        return f"raised, outside of the package, {short}"
    if argument in ("data", "examples", "validation", "root", "train", "test", "triggered"):
        argument += "|y|x|examples|index|count"  # what it holds
    if not re.search(rf"\b({argument}|{name.rpartition('.')[2]})\b", str(error)):
        return f"raised without naming it {short}"
    return None


def attempt(what: Callable[[], Any], name: str, argument: str) -> str | None:
    try:
        what()
    except Exception as error:
        return refusal(error, name, argument)
    return "accepted"


CASES = sorted({(name, a) for name in TABLE for line in lines(name) for a in line.kinds})


@pytest.mark.parametrize(("name", "argument"), CASES, ids=map("-".join, CASES))
def test_bad_values_are_refused(name, argument):
    wrong = []
    for line in lines(name):
        if argument not in line.kinds:
            continue
        valid = arguments(line)
        for label, value in line.kinds[argument].bad(valid.get(argument)):
            given = valid | {argument: value}
            fault = attempt(functools.partial(call, name, line, given), name, argument)
            if fault is not None:
                wrong.append(f"{label}: {fault}")
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize("name", sorted(TABLE))
def test_good_values_pass(name):
    """The valid arguments, and the same numbers as NumPy and JAX have them."""
    for line in lines(name):
        valid = arguments(line)
        if line.run_valid:
            call(name, line, valid)
        if not (line.run_valid and line.run_good):
            continue
        for argument, kind in line.kinds.items():
            for _, value in kind.good(valid.get(argument)):
                call(name, line, valid | {argument: value})


# --- Rules on bad matrices ---------------------------------------------------------------------------

RULES = {
    name: functools.partial(call, name, line, arguments(line))
    for name in TABLE
    if name.startswith("aggregators.")
    for line in lines(name)
    if "Aggregator" in str(inspect.signature(NAMES[name]).return_annotation)
    and "Callable" not in str(inspect.signature(NAMES[name]).return_annotation)
}
ONES = np.ones(9, np.float32)
BAD_CALLS: dict[str, tuple[tuple, dict]] = {
    "one row": ((MATRIX[0],), {}),
    "three axes": ((MATRIX[None],), {}),
    "no rows": ((MATRIX[:0],), {}),
    "None": ((None,), {}),
    "text": (("updates",), {}),
    "texts": ((np.full((9, 15), "a"),), {}),
    "complex": ((MATRIX.astype(complex),), {}),
    "ragged": (([[1.0, 2.0], [3.0]],), {}),
    "too few weights": ((MATRIX, ONES[1:]), {}),
    "weights with two axes": ((MATRIX, ONES[:, None]), {}),
    "one weight": ((MATRIX, 1.0), {}),
    "weights of text": ((MATRIX, np.full(9, "a")), {}),
    "too few params": ((MATRIX,), {"params": PARAMS[1:]}),
    "params with two axes": ((MATRIX,), {"params": PARAMS[None]}),
    "an integer as key": ((MATRIX,), {"key": 0}),
}


@pytest.mark.parametrize("name", sorted(RULES))
def test_rules_refuse_bad_matrices(name):
    rule, wrong = RULES[name](), []
    for label, (positional, named) in BAD_CALLS.items():
        what = functools.partial(rule, *positional, **named)
        if fault := attempt(what, name, "updates|weights|params|key"):
            wrong.append(f"{label}: {fault}")
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize("name", sorted(RULES))
def test_rules_that_remove_rows_say_how_many_they_need(name):
    """Two rows, of which f = 1 are malicious, are too few for some; the others give a finite result."""
    rule = RULES[name]()
    results: list[Any] = []
    fault = attempt(lambda: results.append(rule(MATRIX[:2])), name, "updates|n")
    assert fault is None or (results and np.all(np.isfinite(results[0]))), fault


# --- Attacks on bad views ----------------------------------------------------------------------------

ATTACKS = {
    name: functools.partial(call, name, line, arguments(line))
    for name in TABLE
    if name.startswith("attacks.")
    for line in lines(name)
    if str(inspect.signature(NAMES[name]).return_annotation) == "Attack"
}


@pytest.mark.parametrize("name", sorted(ATTACKS))
def test_attacks_that_need_the_rule_say_so(name):
    """A view in which it is not known."""
    attack = ATTACKS[name]()
    if not attack.needs.rule:
        pytest.skip("it does not need the rule")
    malicious = jnp.arange(9) < 2
    view = AttackerView(
        updates=jnp.asarray(MATRIX),
        visible=jnp.ones(9, bool),
        reference=jnp.ones(9, bool),
        malicious=malicious,
        num_malicious=2,
        params=PARAMS,
        key=KEY,
        aggregate=None,
        ids=jnp.arange(9),
    )
    fault = attempt(lambda: attack.craft(view, attack.init(PARAMS)), name, "rule")
    assert fault is None


# --- Poisons and triggers on bad batches -------------------------------------------------------------

POISONS = {
    "label_flip": attacks.poisons.label_flip(3),
    "other_label": attacks.poisons.other_label(3),
    "replace_by": attacks.poisons.replace_by(POOL, 2),
    "replace_by_triggered": attacks.poisons.replace_by_triggered(same, 1, 2),
    "distributed": attacks.poisons.distributed([same, same], 1, 2),
    "add_triggered_victims": attacks.poisons.add_triggered_victims(same, 1, 2),
}


@pytest.mark.parametrize("name", POISONS)
def test_poisons_refuse_bad_batches(name):
    poison, wrong = POISONS[name], []
    poison(KEY, POOL | {"client": jnp.int32(0)})
    classes = 3 if name in ("label_flip", "other_label") else None
    for label, batch in examples(classes, names=("y",)).bad(POOL):
        if label in ("a column of text", "empty"):
            continue  # no batch of a run has or is one
        if isinstance(batch, dict):
            batch = batch | {"client": jnp.int32(0)}
        if fault := attempt(functools.partial(poison, KEY, batch), f"attacks.{name}", "y|x"):
            wrong.append(f"{label}: {fault}")
    assert not wrong, "\n".join(wrong)


def narrower(x):
    return x[:, :-1]


def as_integers(x):
    return x.astype(jnp.int32)


def nothing(x):
    return None


@pytest.mark.parametrize("trigger", [narrower, as_integers, nothing, lambda x: x[0]])
@pytest.mark.parametrize(
    "use",
    [
        lambda t: attacks.poisons.replace_by_triggered(t, 1, 2)(KEY, POOL),
        lambda t: attacks.poisons.distributed([same, t], 1, 2)(KEY, POOL | {"client": 0}),
        lambda t: attacks.poisons.add_triggered_victims(t, 1, 2)(KEY, POOL),
        lambda t: attacks.backdoors.triggered(POOL, t),
        lambda t: attacks.backdoors.add_backdoored_copies(OWNED, 1, t, 1),
    ],
)
def test_what_triggers_return_is_checked(trigger, use):
    with pytest.raises((ValueError, TypeError), match="the trigger of"):
        use(trigger)


@pytest.mark.parametrize(
    ("trigger", "x"),
    [
        (attacks.backdoors.pixel_trigger([(4, 4)]), IMAGES[:, :4]),
        (attacks.backdoors.pixel_trigger([(4, 4)]), IMAGES[:, :, :4]),
        (attacks.backdoors.pixel_trigger([(4, 4)]), IMAGES[0]),
        (attacks.backdoors.pixel_trigger([(4, 4)], 0.5), (IMAGES * 255).astype(np.uint8)),
        (attacks.backdoors.pixel_trigger([(4, 4)], 300), (IMAGES * 255).astype(np.uint8)),
        (attacks.backdoors.feature_trigger(5), X),
        (attacks.backdoors.feature_trigger(2), IMAGES),
        (attacks.backdoors.feature_trigger(2, 0.5), X.astype(np.int32)),
        (attacks.backdoors.mask_trigger(np.ones(3, bool)), X),
        (attacks.backdoors.mask_trigger(np.ones(4, bool), np.ones(3)), X),
        (attacks.backdoors.mask_trigger(np.ones(4, bool), np.ones((12, 4))), X),
        (attacks.backdoors.mask_trigger(np.ones(4, bool), 0.5), X.astype(np.int32)),
    ],
)
def test_triggers_that_do_not_fit(trigger, x):
    with pytest.raises(ValueError, match="_trigger"):
        trigger(x)
    with pytest.raises(ValueError, match="_trigger"):
        jax.eval_shape(trigger, x)


@pytest.mark.parametrize(
    ("batch", "text"),
    [
        (POOL | {"x": IMAGES}, "batch's shape"),
        (POOL | {"x": X[:, :1]}, "batch's shape"),
        (POOL | {"x": X.astype(np.int32)}, "fractions would be cut off"),
        (WORDS, "word_backdoor"),
    ],
)
def test_backdoor_examples_that_do_not_fit_the_batch(batch, text):
    """A feature of width 1 would be broadcast, fractions cut off."""
    with pytest.raises((ValueError, TypeError), match=text):
        attacks.poisons.replace_by(POOL, 2)(KEY, batch)


@pytest.mark.parametrize(
    ("make", "text"),
    [
        (
            lambda: attacks.objectives.constrain(0.5, lambda x, g: x - g)(TASK.loss, PARAMS)(
                PARAMS, POOL
            ),
            "anomaly",
        ),
        (
            lambda: attacks.objectives.converged(TASK._replace(loss=lambda p, b: p), POOL, 0.1)(
                PARAMS
            ),
            "loss",
        ),
        (lambda: repairs.clients_accuracy(TASK, OWNED, jnp.sum)(PARAMS), "report"),
        (lambda: repairs.prune(layer(), seeing_params(), [0, 1, 2], same), "validation"),
        (lambda: repairs.adjust_extreme_weights(layer(), seeing_params(), same), "validation"),
        (
            lambda: attacks.optimised.unrolled_gradient(
                training_loss, same, np.ones(4, np.float32), X[:2], 0.1, 1
            ),
            "objective",
        ),
        (
            lambda: attacks.optimised.reversed_gradient(
                lambda w, x: x @ w, objective, np.ones(4, np.float32), X[:2], 0.1, 1
            ),
            "training_loss",
        ),
    ],
)
def test_what_functions_return_is_checked(make, text):
    with pytest.raises((ValueError, TypeError), match=f"{text}.* must return"):
        make()


def test_divisions_and_clients_that_return_other_shapes():
    def send(client, divide):
        own = ClientData(OWNED.examples, INDEX[0], COUNT[0])
        attack = attacks.model_replacement(client, own, divide)
        rounds = fr.Simulation(TASK, CLIENT, aggregators.mean(), attack, num_malicious=2)
        fr.step(rounds, fr.init(rounds, KEY, OWNED), OWNED)

    with pytest.raises(ValueError, match="divide of model_replacement must return shape"):
        send(CLIENT, lambda key, difference, attackers: difference)
    with pytest.raises(ValueError, match="client of model_replacement must return shape"):
        send(CLIENT._replace(update=lambda *_: (jnp.ones(3), (), {})), attacks.divisions.copies())
