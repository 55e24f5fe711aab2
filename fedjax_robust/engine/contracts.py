"""What a simulation, its data and its parts must be, and what the parts must return.

The engine calls every part through here, so that a part that breaks its promise stops the run when it is
traced, in words, instead of being broadcast. Values are looked at once per run, where they are known;
shapes and dtypes always.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from fedjax_robust import checks
from fedjax_robust.types import (
    Aggregator,
    Array,
    Attack,
    AttackerView,
    Batch,
    Client,
    ClientData,
    FederatedData,
    Info,
    Key,
    Knowledge,
    Received,
    SimState,
    Simulation,
    State,
    Task,
)

# --- The simulation --------------------------------------------------------------------------------


def simulation(sim: Any) -> Simulation:
    """Its parts are what they must be; whole numbers that are known come back as Python's.

    Raises:
      TypeError: for a part of another kind, such as a factory that was not called.
      ValueError: for numbers out of range, or parts that contradict each other.
    """
    what = "Simulation"
    checks.part("run", Simulation, sim=sim)
    checks.part(what, Task, task=sim.task)
    checks.part(what, Client, client=sim.client)
    checks.part(what, Aggregator, aggregator=sim.aggregator)
    checks.part(what, Attack, attack=sim.attack)
    checks.part(what, Knowledge, knowledge=sim.knowledge)
    checks.part(what, optax.GradientTransformation, server_optimizer=sim.server_optimizer)
    checks.part("Attack", Client, optional=True, client=sim.attack.client)
    checks.part("Attack", Knowledge, needs=sim.attack.needs)
    for name in ("client", "aggregator", "attack"):
        _functions(name, getattr(sim, name))
    _functions("task", sim.task, required=("init",))
    for name, knowledge in (("knowledge", sim.knowledge), ("attack.needs", sim.attack.needs)):
        checks.boolean(name, **knowledge._asdict())
    checks.function(what, weights=sim.weights)
    checks.function(
        what,
        optional=True,
        participants=sim.participants,
        after_round=sim.after_round,
        observe=sim.observe,
    )
    checks.count(what, num_malicious=sim.num_malicious)
    for name in ("max_malicious", "clients_per_round", "client_chunk"):
        if getattr(sim, name) is not None:
            checks.static_count(what, **{name: getattr(sim, name)})
    if sim.max_malicious is None and not checks.is_known(sim.num_malicious):
        raise TypeError(
            "Simulation needs max_malicious=..., a bound that is known when the program is compiled, if "
            "num_malicious is traced"
        )
    if sim.clients_per_round is not None and sim.participants is not None:
        raise ValueError(
            "participants and clients_per_round are two ways to draw a round's clients; pass one"
        )
    if sim.knowledge.coins and not sim.knowledge.rule:
        raise ValueError(
            "Knowledge(coins=True) needs rule=True: the random numbers are those of the rule that the "
            "attack evaluates"
        )
    for name in sim.knowledge._fields:
        if getattr(sim.attack.needs, name) and not getattr(sim.knowledge, name):
            raise ValueError(
                f"the attack needs Knowledge({name}=True), but the simulation grants {sim.knowledge}; "
                f"pass Simulation(knowledge=Knowledge({name}=True, ...)) or a weaker attack"
            )
    numbers = ("num_malicious", "max_malicious", "clients_per_round", "client_chunk")
    sim = sim._replace(**{name: _whole(getattr(sim, name)) for name in numbers})
    for name, part in sim._asdict().items():
        try:
            hash(None if name == "num_malicious" else part)
        except TypeError as error:
            raise TypeError(
                f"Simulation needs {name} that can be hashed, as it is a part of the compiled program, "
                f"got {part!r} ({error}); arrays belong inside of its functions"
            ) from error
    return sim


def _functions(what: str, part: Any, required: tuple[str, ...] | None = None) -> None:
    optional = {"leave_one_out", "client", "needs"}
    for name, value in part._asdict().items():
        needed = name not in optional if required is None else name in required
        if name not in ("client", "needs"):
            checks.function(what, optional=not needed, **{name: value})


def _whole(value: Any) -> Any:
    return value if value is None or not checks.is_known(value) else int(value)


def fits(sim: Simulation, num_clients: int) -> None:
    """The simulation's numbers fit N clients.

    Raises:
      ValueError: if they do not.
    """
    if sim.max_malicious is not None:
        _at_most_all("max_malicious", sim.max_malicious, num_clients)
    if checks.is_known(sim.num_malicious):
        _at_most_all("num_malicious", sim.num_malicious, num_clients)
        if sim.max_malicious is not None and sim.num_malicious > sim.max_malicious:
            raise ValueError(
                "num_malicious must be <= max_malicious, got "
                f"{sim.num_malicious} and {sim.max_malicious}"
            )
    if sim.clients_per_round is not None and not 1 <= sim.clients_per_round <= num_clients:
        raise ValueError(
            f"clients_per_round must lie in 1 .. N={num_clients}, got {sim.clients_per_round}; "
            "None means all"
        )
    if sim.client_chunk is not None and sim.client_chunk < 1:
        raise ValueError(f"client_chunk must be >= 1, got {sim.client_chunk}; None means all")


def _at_most_all(name: str, value: Any, num_clients: int) -> None:
    if not 0 <= value <= num_clients:
        raise ValueError(f"{name} must lie in 0 .. N, got {value} of N={num_clients} clients")


def most_malicious(sim: Simulation) -> int:
    """The static bound of the number of malicious clients."""
    bound = sim.num_malicious if sim.max_malicious is None else sim.max_malicious
    assert isinstance(bound, int)
    return bound


def split(sim: Simulation) -> tuple[Simulation, Array | None]:
    """A simulation for a compiled program, and the number of malicious clients if it is an argument."""
    if sim.max_malicious is None:
        return sim, None
    return sim._replace(num_malicious=sim.max_malicious), jnp.asarray(sim.num_malicious, jnp.int32)


def joined(sim: Simulation, number: Array | None) -> Simulation:
    """The inverse of ``split``, inside of the program."""
    return sim if number is None else sim._replace(num_malicious=number)


# --- The data --------------------------------------------------------------------------------------


def federated_data(what: str, data: Any) -> FederatedData:
    """The data as JAX arrays.

    Raises:
      TypeError: if it is no ``FederatedData``, or not of numbers.
      ValueError: for shapes that do not fit, counts or rows out of range, or if nobody owns anything.
    """
    data = arrays(what, data)
    examples, index, count = data
    if examples:
        checks.partition(what, examples, index, count, ())
    elif index.ndim < 2 or index.shape[:-1] != count.shape or index.shape[-2] < 1:
        raise ValueError(
            f"{what} needs data.index (N, m) and data.count (N,) of N >= 1 clients, got shapes "
            f"{index.shape} and {count.shape}"
        )
    if checks.is_known(count):
        owned = np.asarray(count).reshape(-1, count.shape[-1]).max(axis=1)
        if not owned.all():
            raise ValueError(
                f"{what} needs data of which somebody owns an example, got data.count of zeros"
                + (f" in partition {int(np.argmin(owned))}" if count.ndim > 1 else "")
            )
    return data


def arrays(what: str, data: Any) -> FederatedData:
    """The data as JAX arrays, whatever they hold."""
    checks.part(what, FederatedData, data=data)
    index, count = (
        checks.array(what, name, value)
        for name, value in (("data.index", data.index), ("data.count", data.count))
    )
    examples = data.examples
    if not isinstance(examples, Mapping) or not all(map(_numeric, examples.values())):
        checks.examples(what, examples, ())  # raises, in words
    return FederatedData({n: jnp.asarray(v) for n, v in examples.items()}, index, count)


def _numeric(values: Any) -> bool:
    return isinstance(values, jax.Array) or getattr(values, "dtype", np.dtype("O")).kind in "biuf"


class Fit(NamedTuple):
    """How a task and a pool go together."""

    size: int  # d
    dtype: Any
    problem: str  # what its loss said to a batch of the pool, "" if it took it
    logits: tuple[int, ...] | None  # of one example


def task(what: str, sim: Simulation, examples: Batch) -> None:
    """The task fits the pool: flat parameters, a scalar loss, labels that are among the classes.

    A loss that does not take the pool at all is no error here: a client may have its own.

    Raises:
      ValueError: if something does not fit.
    """
    fit, y = _fit(sim.task, _shapes(examples)), examples.get("y")
    if y is None or fit.problem or fit.logits is None or not jnp.issubdtype(y.dtype, jnp.integer):
        return
    # One class is a regression's output; a y of another rank than the classes' is the task's affair.
    classes = len(fit.logits) >= 2 and fit.logits[-1] >= 2 and y.shape[1:] == fit.logits[1:-1]
    if classes and checks.is_known(y) and y.size:
        _labels(what, y, fit.logits[-1])


def _shapes(examples: Batch) -> tuple[tuple[str, tuple[int, ...], Any], ...]:
    return tuple((name, v.shape[1:], jnp.dtype(v.dtype)) for name, v in sorted(examples.items()))


def _labels(what: str, y: Array, classes: int) -> None:
    values = np.asarray(y)
    least, most = int(values.min()), int(values.max())
    if least < 0 or most >= classes:
        raise ValueError(
            f"{what} needs data.examples' labels y in 0 .. {classes - 1}, as the task's logits "
            f"tell {classes} classes apart, got labels from {least} to {most}; number the classes from 0"
        )


@functools.lru_cache(64)
def _fit(task: Task, shapes: tuple[tuple[str, tuple[int, ...], Any], ...]) -> Fit:
    params = jax.eval_shape(task.init, jax.random.key(0))
    if not hasattr(params, "shape") or len(params.shape) != 1:
        raise ValueError(
            "task.init must return a flat vector of parameters (d,), got "
            f"{getattr(params, 'shape', type(params).__name__)}; "
            "jax.flatten_util.ravel_pytree makes one of a pytree"
        )
    checks.returned("task.init", params, params.shape)
    batch = {name: jax.ShapeDtypeStruct((1, *shape), dtype) for name, shape, dtype in shapes}
    masked = batch | {"mask": jax.ShapeDtypeStruct((1,), jnp.float32)}
    problem, loss, logits = "", None, None
    if task.loss is not None:
        try:
            loss = jax.eval_shape(task.loss, params, masked)
        except Exception as error:  # whatever a user's function, or flax in it, may raise
            problem = _problem(task, params, batch, error)
    if loss is not None:
        checks.returned("task.loss", loss, ())
    if task.logits is not None and "x" in batch:
        try:
            logits = tuple(jax.eval_shape(task.logits, params, batch["x"]).shape)
        except Exception:
            logits = None
    return Fit(params.shape[0], params.dtype, problem, logits)


def _problem(task: Task, params: Any, batch: dict[str, Any], error: Exception) -> str:
    """Why a loss does not take a batch, in words."""
    what = "the task's loss, on data.examples,"
    if isinstance(error, KeyError):
        return (
            f"the task's loss needs examples with {error}, got data.examples with {sorted(batch)}; "
            "rename the arrays"
        )
    shapes = {name: (value.shape[1:], str(value.dtype)) for name, value in batch.items()}
    if "x" in batch and task.logits is not None:
        try:
            jax.eval_shape(task.logits, params, batch["x"])
        except Exception as inner:
            return (
                "the task's model does not take data.examples' inputs x of shape "
                f"{batch['x'].shape[1:]} and dtype {batch['x'].dtype}; make the task with a "
                f"sample of these data, or reshape them: {_first_line(inner)}"
            )
        if "y" in batch:
            y, x = (np.zeros(batch[name].shape, batch[name].dtype) for name in ("y", "x"))
            try:  # shape and dtype; the values are not looked at
                checks.labels(what, y, x=x)
            except (ValueError, TypeError) as inner:
                return str(inner)
    return f"{what} does not take examples of {shapes}: {_first_line(error)}"


def _first_line(error: Exception) -> str:
    return f"{type(error).__name__}: {str(error).strip().splitlines()[0] if str(error) else ''}"


def start(what: str, sim: Simulation, data: FederatedData, params: Any) -> Array | None:
    """The model to start from, or None.

    Raises:
      ValueError, TypeError: if it is no (d,) floats.
    """
    if params is None:
        return None
    size = _fit(sim.task, _shapes(data.examples)).size
    meaning = "(d,), the task's number of parameters,"
    return checks.shaped(what, "params", params, (size,), "float", meaning)


def state(what: str, value: Any, data: FederatedData) -> None:
    """It is a ``SimState`` with a flat model and one key, and the data are one partition."""
    checks.part(what, SimState, state=value)
    checks.shaped(what, "state.params", value.params, (None,), "float", "(d,)")
    checks.key(what, value.key)
    if data.index.ndim != 2:
        raise ValueError(
            f"{what} needs data.index (N, m) of one partition, got shape {data.index.shape}"
        )


# --- What the parts return -------------------------------------------------------------------------


def participants(sim: Simulation, ids: Any) -> Array:
    """What ``Simulation.participants`` returned, (n,) int32."""
    what = "Simulation.participants"
    shape = getattr(ids, "shape", None)
    if shape is None or len(shape) != 1 or shape[0] < 1:
        raise ValueError(f"{what} must return ids (n,) of n >= 1 clients, got {_of(ids)}")
    if not jnp.issubdtype(ids.dtype, jnp.integer):
        raise TypeError(f"{what} must return ids that are integers, got {ids.dtype}")
    return jnp.asarray(ids, jnp.int32)


def weights(sim: Simulation, count: Array) -> Array:
    """The rows' weights (n,), floats."""
    result = sim.weights(count)
    checks.returned("Simulation.weights", result, count.shape, floating=False)
    checks.array("Simulation.weights", "its result", result)
    result = jnp.asarray(result)
    return result if jnp.issubdtype(result.dtype, jnp.floating) else result.astype(jnp.float32)


def trained(
    sim: Simulation, client: Client, key: Key, params: Array, own: State, data: ClientData
) -> tuple[Array, State, Array]:
    """One client's update (d,), its state, and its loss () or NaN."""
    try:
        result = client.update(key, params, own, data)
    except Exception as error:
        problem = _fit(sim.task, _shapes(data.examples)).problem
        if not problem:
            raise
        raise ValueError(problem) from error
    update, new, info = _several("the client's update", result, ("update", "state", "info"))
    checks.returned("the client's update", update, params.shape)
    _same("the client's update", own, new)
    loss = named("the client's update", info).get("train_loss", jnp.float32(jnp.nan))
    checks.returned("the client's update, as train_loss,", loss, (), floating=False)
    return update, new, loss


def crafted(attack: Attack, view: AttackerView, own: State) -> tuple[Array, State]:
    """The rows (num_malicious, d) that the attack sends, in the updates' dtype, and its state."""
    result = _several("the attack's craft", attack.craft(view, own), ("rows", "state"))
    rows, new = result
    n, d = view.updates.shape
    if getattr(rows, "shape", None) not in {(view.num_malicious, d), (n, d)}:
        raise ValueError(
            f"the attack's craft must return rows (view.num_malicious, d) = ({view.num_malicious}, {d}) "
            f"or (n, d) = ({n}, {d}), got {_of(rows)}"
        )
    checks.returned("the attack's craft", rows, rows.shape)
    _same("the attack's craft", own, new)
    return rows[: view.num_malicious].astype(view.updates.dtype), new


def aggregated(
    rule: Aggregator, received: Received, own: State
) -> tuple[Array, State, dict[str, Array]]:
    """What ``Aggregator.aggregate`` gives."""
    what = "the rule's aggregate"
    result = _several(what, rule.aggregate(received, own), ("update", "state", "info"))
    aggregate, new, info = result
    checks.returned(what, aggregate, received.params.shape)
    _same(what, own, new)
    return aggregate, new, named(what, info)


def changed(
    optimizer: optax.GradientTransformation, aggregate: Array, own: Any, params: Array
) -> tuple[Array, Any]:
    """The model (d,) after the server's step, and the optimizer's state."""
    what = "the server optimizer's update"
    result = optimizer.update(-aggregate, own, params)
    change, new = _several(what, result, ("change", "state"))
    checks.returned(what, change, params.shape)
    _same(what, own, new)
    return jnp.asarray(optax.apply_updates(params, change)), new


def model(what: str, params: Any, before: Array) -> Array:
    """Parameters (d,) of the same dtype as before."""
    checks.returned(what, params, before.shape)
    if params.dtype != before.dtype:
        raise TypeError(f"{what} must return {before.dtype}, as it got, not {params.dtype}")
    return jnp.asarray(params)


def named(what: str, info: Any) -> Info:
    """Arrays by name."""
    if not isinstance(info, Mapping) or not all(isinstance(name, str) for name in info):
        raise TypeError(f"{what} must report arrays by name, such as {{}}, got {_of(info)}")
    for name, value in info.items():
        numeric = bool | int | float | np.number | np.bool_ | np.ndarray | jax.Array
        if not isinstance(value, numeric) or getattr(value, "dtype", np.dtype(bool)).kind in "OUSM":
            raise TypeError(
                f"{what} must report arrays or numbers by name, got {name}={_of(value)}"
            )
    return {name: jnp.asarray(value) for name, value in info.items()}


def evaluated(evaluate: Callable[[Array], Any], params: Array) -> Info:
    """What ``evaluate`` gives."""
    return named("evaluate", evaluate(params))


def _several(what: str, result: Any, names: tuple[str, ...]) -> tuple[Any, ...]:
    if not isinstance(result, tuple) or len(result) != len(names):
        got = f"{len(result)} values" if isinstance(result, tuple | list) else _of(result)
        raise TypeError(f"{what} must return a tuple ({', '.join(names)}), got {got}")
    return result


def _same(what: str, old: State, new: State) -> None:
    """A state keeps its structure, shapes and dtypes."""
    was: Any = jax.tree.structure(old)
    now: Any = jax.tree.structure(new)
    if was != now:
        raise ValueError(
            f"{what} must return a state of the structure that it got and init makes, {was}, got {now}"
        )
    for (path, a), b in zip(
        jax.tree_util.tree_leaves_with_path(old), jax.tree.leaves(new), strict=True
    ):
        a, b = _kind(a), _kind(b)
        if a != b:
            raise ValueError(
                f"{what} must return a state of the shapes and dtypes that it got and init makes; "
                f"state{jax.tree_util.keystr(path)} was {a[1]}{a[0]}, is {b[1]}{b[0]}"
            )


def _kind(leaf: Any) -> tuple[tuple[int, ...], Any]:
    return np.shape(leaf), (leaf if isinstance(leaf, jax.Array) else jnp.asarray(leaf)).dtype


def _of(value: Any) -> str:
    if hasattr(value, "shape") and hasattr(value, "dtype"):
        return f"shape {tuple(value.shape)} of {value.dtype}"
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."
