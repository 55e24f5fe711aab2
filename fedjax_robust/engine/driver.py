"""A whole run: blocks of rounds under ``lax.scan``, seeds, progress, checkpoints, a mesh."""

from __future__ import annotations

import contextlib
import functools
import os
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from tqdm.auto import tqdm

from fedjax_robust import checks, files
from fedjax_robust.engine import checkpoint as checkpoints
from fedjax_robust.engine import contracts, sharding
from fedjax_robust.engine.round import checked, init, step
from fedjax_robust.types import (
    Array,
    Evaluate,
    FederatedData,
    Info,
    Key,
    SimState,
    Simulation,
)

History = dict[str, Array]


def run(
    sim: Simulation,
    key: Key,
    data: FederatedData,
    rounds: int,
    *,
    evaluate: Evaluate | None = None,
    evaluate_every: int | None = None,
    params: Array | None = None,
    progress: bool = False,
    checkpoint: str | os.PathLike[str] | None = None,
    checkpoint_every: int | None = None,
    mesh: Mesh | None = None,
) -> tuple[SimState, History]:
    """Train for ``rounds`` rounds.

    The run is compiled in blocks, so that the host can show progress and write checkpoints between
    them. Under ``jax.vmap`` or ``jax.jit`` (over keys, data, or float hyper-parameters inside ``sim``)
    it works too, without progress and checkpoints. To have several seeds *and* those, pass a vector of
    keys.

    Args:
      sim: the simulation.
      key: one key, or a vector of S keys for S independent runs in one program; then every result has
        a leading axis S (except ``state.round``), and ``data.index`` and ``data.count`` may have one
        too, for a partition per seed (``data.partition.stack``).
      data: what the N clients own.
      rounds: >= 1.
      evaluate: params -> named scalars; see ``metrics``.
      evaluate_every: rounds between evaluations, default ``rounds``; the last round always counts.
      params: (d,) model to start from; default ``sim.task.init``.
      progress: show a progress bar, with the latest of evaluate's scalars (at most five) and the loss.
      checkpoint: file to resume from if it exists, and to write. An interrupted run that is started
        again with the same arguments, on the same kind of machine with as many devices and the same
        versions of jax and jaxlib, ends bit-identical to an uninterrupted one; with other versions it is
        refused, on another machine there is a warning. Only one process at a time may use the file. Host
        functions in the program (``jax.pure_callback``) are told apart by their code and what they hold,
        not by what they read elsewhere.
      checkpoint_every: rounds between checkpoints, >= 1, rounded up to whole evaluations; default about
        a twentieth of the run.
      mesh: devices to share the work, such as ``jax.make_mesh((8,), ("clients",))``: clients are split
        over them for training, parameters for attacks and rules (see ``engine.sharding``). Results equal
        those of one device up to the order of float32 sums. With several processes (``jax.distributed``)
        all call ``run`` with equal arguments; the first one shows progress and writes the checkpoint,
        which all must be able to read, and which other numbers of devices can resume, too. Clients' own
        states in the result then stay split over the processes. They are split if the number of
        devices divides N, else every device holds all of them.

    Returns:
      The final state, and the history: ``round`` (E,), the number of rounds done at each evaluation,
      each of evaluate's results (E, ...), and for every round (rounds, ...): ``train_loss``,
      ``malicious``, and what the aggregator and ``sim.observe`` report.

    Raises:
      ValueError: if arguments are out of range, contradict each other, or do not fit the checkpoint; if
        the data cannot be, or a part returns another shape than it must; if another process writes the
        same checkpoint.
      TypeError: for arguments and parts of another kind.
    """
    key = checks.key("run", key, several=True)
    checks.static_count("run", 1, rounds=rounds)
    if evaluate_every is not None:
        checks.static_count("run", 1, evaluate_every=evaluate_every)
    if checkpoint_every is not None:
        checks.static_count("run", 1, checkpoint_every=checkpoint_every)
    rounds, every = int(rounds), int(rounds if evaluate_every is None else evaluate_every)
    checks.function("run", optional=True, evaluate=evaluate)
    checks.boolean("run", progress=progress)
    checks.part("run", Mesh, optional=True, mesh=mesh)
    sim, data = checked("run", sim, data)
    axes = _seed_axes(key, data)
    params = contracts.start("run", sim, data, params)
    sim, number = contracts.split(sim)
    traced = not all(map(checks.is_known, jax.tree.leaves((key, data, params, evaluate, number))))
    if traced and (checkpoint is not None or progress or mesh is not None):
        raise ValueError(
            "run cannot show progress, write checkpoints, or use a mesh inside vmap or jit; "
            "for several seeds pass a vector of keys instead"
        )
    if checkpoint is None and checkpoint_every is not None:
        raise ValueError("checkpoint_every needs checkpoint=..., the file to write")
    path = None if checkpoint is None else files.named("run", "checkpoint", checkpoint)
    mesh = sharding.automatic(mesh)
    evaluate = _evaluate_nothing if evaluate is None else evaluate
    if not isinstance(evaluate, jax.tree_util.Partial):
        evaluate = jax.tree_util.Partial(evaluate)

    arguments = key, data, params, evaluate, number
    written: checkpoints.Written | None = None
    if path is not None:  # the program of one device: any number of them can resume it
        jaxpr, shapes = jax.make_jaxpr(
            lambda key, data, params, evaluate, number: _block(
                sim,
                axes,
                None,
                1,
                2,
                evaluate,
                _init(sim, axes, None, key, data, params, number),
                data,
                number,
            ),
            return_shape=True,
        )(*arguments)
        written = checkpoints.Written(
            path, checkpoints.fingerprint(jaxpr, arguments), every, shapes[1], axes is not None
        )
    sharding.same(
        mesh,
        rounds=rounds,
        evaluate_every=every,
        progress=bool(progress),
        checkpoint=path is not None,
        checkpoint_every=checkpoint_every,
        program=written and written.program,
    )
    key, data, params, evaluate, number = sharding.to_devices(mesh, arguments)
    state = _init(sim, axes, mesh, key, data, params, number)
    block_rounds = rounds if not (progress or path) else checkpoint_every or -(-rounds // 20)
    blocks = _blocks(rounds, every, block_rounds)
    scalars = _scalars(evaluate, state, axes) if progress else []
    parts: list[History] = []
    done = 0
    first_process = jax.process_index() == 0 or mesh is None
    with contextlib.ExitStack() as stack:
        if written is not None:
            with sharding.together(mesh, f"the checkpoint {path}"):
                if first_process:
                    stack.enter_context(files.locked(written.path))
            state, parts, done = _resumed(written, mesh, state)
            if done not in {0, *(end for *_, end in blocks)}:
                raise ValueError(
                    f"the checkpoint {path} was written after {done} rounds, which "
                    f"this run (rounds={rounds}, evaluate_every={every}, checkpoint_every="
                    f"{checkpoint_every}) does not stop at; use its own arguments or another file"
                )
        bar = stack.enter_context(
            tqdm(total=rounds, initial=done, disable=not (progress and first_process), unit="round")
        )
        for times, length, end in blocks:
            if end <= done:
                continue
            state, new = _block_jit(sim, axes, mesh, times, length, evaluate, state, data, number)
            new["round"] = np.arange(end - (times - 1) * length, end + 1, length, dtype=np.int32)
            parts.append(new)
            if written is not None:
                parts = [_joined(np, parts, axes)]  # jnp would compile for each new length
                whole = sharding.to_hosts(state)
                with sharding.together(mesh, f"the checkpoint {path}"):
                    if first_process:
                        checkpoints.save(written.path, whole, parts[0], end, written.program, every)
            if progress:
                bar.set_postfix({name: _latest(new[name]) for name in scalars})
                bar.update(times * length)
    return state, _joined(jnp, parts, axes)


def _resumed(
    written: checkpoints.Written, mesh: Mesh | None, state: SimState
) -> tuple[SimState, list[History], int]:
    """The state, the history so far and the rounds done, of the checkpoint if there is one."""
    path = written.path
    if not sharding.agreed(mesh, os.path.exists(path), f"the checkpoint {path}"):
        return state, [], 0
    with sharding.together(mesh, f"the checkpoint {path}"):
        saved, history, done = checkpoints.restore(
            path, state, written.program, written.every, written.history
        )
    sharding.same(mesh, **{f"the content of {path}": checkpoints.content((saved, history, done))})
    return sharding.like(mesh, state, saved), [history], done


_STATE_AXES: Any = SimState(0, 0, 0, 0, 0, key=0, round=None)  # type: ignore[arg-type]


def _seed_axes(key: Key, data: FederatedData) -> FederatedData | None:
    """How ``vmap`` over seeds goes through the data; None for a single key."""
    seeds = key.ndim == 1
    same = data.index.ndim == data.count.ndim + 1
    if key.ndim > 1 or not same or not 2 <= data.index.ndim <= 2 + seeds:
        raise ValueError(
            "run takes one key with data.index (N, m) and data.count (N,), or S keys with "
            "(N, m) and (N,) or (S, N, m) and (S, N); got keys of shape "
            f"{key.shape}, index {data.index.shape}, count {data.count.shape}"
        )
    if not seeds:
        return None
    own = data.index.ndim == 3
    if own and data.index.shape[0] != key.shape[0]:
        raise ValueError(
            f"got {key.shape[0]} keys and {data.index.shape[0]} partitions; give one for each key"
        )
    axis = 0 if own else None
    return FederatedData(examples=None, index=axis, count=axis)  # type: ignore[arg-type]


def _blocks(rounds: int, every: int, block_rounds: int) -> list[tuple[int, int, int]]:
    """(evaluations, rounds between them, rounds done at the end) of each compiled block."""
    blocks = []
    done = 0
    while rounds - done >= every:
        times = min(max(-(-block_rounds // every), 1), (rounds - done) // every)
        done += times * every
        blocks.append((times, every, done))
    if done < rounds:
        blocks.append((1, rounds - done, rounds))
    return blocks


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def _init(
    sim: Simulation,
    axes: FederatedData | None,
    mesh: Mesh | None,
    key: Key,
    data: FederatedData,
    params: Array | None,
    number: Array | None = None,
) -> SimState:
    sim = contracts.joined(sim, number)

    def one(key: Key, data: FederatedData) -> SimState:
        return sharding.settle(mesh, init(sim, key, data, params))

    if axes is None:
        return one(key, data)
    return jax.vmap(one, in_axes=(0, axes), out_axes=_STATE_AXES)(key, data)


def _block(
    sim: Simulation,
    axes: FederatedData | None,
    mesh: Mesh | None,
    times: int,
    length: int,
    evaluate: Evaluate,
    state: SimState,
    data: FederatedData,
    number: Array | None = None,
) -> tuple[SimState, History]:
    """``times`` evaluations, each after ``length`` rounds."""
    sim = contracts.joined(sim, number)

    def one(state: SimState, data: FederatedData) -> tuple[SimState, History]:
        def segment(state: SimState, _: None) -> tuple[SimState, tuple[Info, Info]]:
            state, infos = jax.lax.scan(
                lambda state, _: step(sim, state, data, mesh), state, None, length=length
            )
            return state, (contracts.evaluated(evaluate, state.params), infos)

        state, (values, infos) = jax.lax.scan(segment, state, None, length=times)
        if clash := {*values} & {*infos, "round"}:
            raise ValueError(f"evaluate may not use the names {sorted(clash)}; rename its results")
        infos = jax.tree.map(lambda x: x.reshape((times * length, *x.shape[2:])), infos)
        return sharding.settle(mesh, state), sharding.everywhere(mesh, values | infos)

    if axes is None:
        return one(state, data)
    return jax.vmap(one, in_axes=(_STATE_AXES, axes), out_axes=(_STATE_AXES, 0))(state, data)


_block_jit = jax.jit(_block, static_argnums=(0, 1, 2, 3, 4), donate_argnums=6)


def _evaluate_nothing(params: Array) -> Info:
    return {}


def _joined(xp: Any, parts: list[History], axes: FederatedData | None) -> History:
    """The history from those of its parts, by NumPy or ``jax.numpy``."""
    return {
        name: xp.concatenate(
            [part[name] for part in parts], axis=0 if axes is None or name == "round" else 1
        )
        for name in parts[0]
    }


def _scalars(evaluate: Evaluate, state: SimState, axes: FederatedData | None) -> list[str]:
    """What the progress bar shows: evaluate's scalars in its own order, and the loss."""
    one = jax.eval_shape(lambda params: params if axes is None else params[0], state.params)
    order: list[str] = []

    def shapes(params: Array) -> Info:
        values = contracts.evaluated(evaluate, params)
        order.extend(name for name, value in values.items() if jnp.ndim(value) == 0)
        return values

    jax.eval_shape(shapes, one)
    return [*order[:5], "train_loss"]


def _latest(values: Any) -> str:
    """The latest value, averaged over seeds."""
    return f"{float(np.mean(np.asarray(values)[..., -1])):.4g}"
