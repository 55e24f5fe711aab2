"""Federated training under attack: one round is ``step``, a whole run is a ``lax.scan`` of it."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh
from tqdm.auto import tqdm

from fedjax_robust import checkpoint as checkpoints
from fedjax_robust import sharding
from fedjax_robust.robust_stats import weighted_mean
from fedjax_robust.types import (
    Array,
    AttackerView,
    Batch,
    Client,
    ClientData,
    Evaluate,
    FederatedData,
    Info,
    Key,
    Received,
    SimState,
    Simulation,
    State,
)

History = dict[str, Array]


def init(sim: Simulation, key: Key, data: FederatedData, params: Array | None = None) -> SimState:
    """The state before round 0.

    Args:
      sim: the simulation.
      key: a key of ``jax.random.key``.
      data: what the N clients own.
      params: (d,) model to start from; default ``sim.task.init``.

    Raises:
      ValueError: if the simulation contradicts itself or the data (see ``check``).
    """
    check(sim, data)
    num_clients = data.index.shape[0]
    params_key, rounds_key = jax.random.split(key)
    if params is None:
        params = sim.task.init(params_key)
    malicious = ()
    if sim.attack.client is not None:
        malicious = _stack_states(sim.attack.client, params, sim.num_malicious)
    return SimState(
        params=params,
        opt=sim.server_optimizer.init(params),
        aggregator=sim.aggregator.init(num_clients, params),
        attack=sim.attack.init(params),
        clients=(_stack_states(sim.client, params, num_clients), malicious),
        key=rounds_key,
        round=jnp.int32(0),
    )


def check(sim: Simulation, data: FederatedData) -> None:
    """Raise a ValueError, with the remedy, if the simulation contradicts itself or the data."""
    num_clients = data.index.shape[-2]
    if not 0 <= sim.num_malicious <= num_clients:
        raise ValueError(
            f"num_malicious must lie in 0 .. N, got {sim.num_malicious} of N={num_clients} clients"
        )
    if sim.clients_per_round is not None and sim.participants is not None:
        raise ValueError(
            "participants and clients_per_round are two ways to draw a round's clients; pass one"
        )
    if sim.clients_per_round is not None and not 1 <= sim.clients_per_round <= num_clients:
        raise ValueError(
            f"clients_per_round must lie in 1 .. N={num_clients}, got {sim.clients_per_round}; "
            "None means all"
        )
    if sim.client_chunk is not None and sim.client_chunk < 1:
        raise ValueError(f"client_chunk must be >= 1, got {sim.client_chunk}; None means all")
    for name in sim.knowledge._fields:
        if getattr(sim.attack.needs, name) and not getattr(sim.knowledge, name):
            raise ValueError(
                f"the attack needs Knowledge({name}=True), but the simulation grants {sim.knowledge}; "
                f"pass Simulation(knowledge=Knowledge({name}=True, ...)) or a weaker attack"
            )


def step(
    sim: Simulation, state: SimState, data: FederatedData, mesh: Mesh | None = None
) -> tuple[SimState, Info]:
    """One round.

    Args:
      sim: the simulation.
      state: the state before it.
      data: what the N clients own.
      mesh: devices to share the work (see ``run``); its axes are of type Auto.

    Returns:
      The next state, and what happened: ``train_loss`` () of the first local step averaged over the
      present clients, ``malicious`` (n,) bool, and what the aggregator (such as ``selected``) and
      ``sim.observe`` report.

    Raises:
      ValueError: if two of these use the same name.
    """
    key = jax.random.fold_in(state.key, state.round)
    select_key, train_key, attack_key, server_key, repair_key = jax.random.split(key, 5)

    if sim.participants is None:
        ids = _participants(select_key, data.index.shape[0], sim.clients_per_round)
    else:
        ids = sim.participants(select_key, state.round)
    count = data.count[ids]
    weights = sim.weights(count)
    updates, clients, losses = _train(sim, train_key, ids, state, data, mesh)
    updates = sharding.by_parameters(mesh, updates)

    num_malicious = min(sim.num_malicious, ids.shape[0])  # ids ascend: malicious rows come first
    malicious = (ids < sim.num_malicious) & (weights > 0)
    observed: Info = {}
    if sim.observe is not None:
        honest = Received(updates, weights, ids, state.params, server_key)
        observed = sim.observe(honest, malicious)
    attack = state.attack
    if num_malicious:
        visible = (weights > 0) if sim.knowledge.others else malicious
        visible &= jnp.all(jnp.isfinite(updates), axis=1)  # the server will drop such rows too
        view = AttackerView(
            updates=jnp.where(visible[:, None], updates, 0),
            visible=visible,
            reference=visible & ~malicious if sim.knowledge.others else malicious,
            malicious=malicious,
            num_malicious=num_malicious,
            params=state.params,
            key=attack_key,
            aggregate=_this_rounds_rule(sim, state, weights, ids, server_key)
            if sim.knowledge.rule
            else None,
            ids=ids,
        )
        crafted, attack = sim.attack.craft(view, attack)
        crafted = jnp.where(
            malicious[:num_malicious, None], crafted[:num_malicious], updates[:num_malicious]
        )
        updates = jnp.concatenate([crafted, updates[num_malicious:]])

    received = Received(updates, weights, ids, state.params, server_key)
    aggregate, aggregator, info = sim.aggregator.aggregate(received, state.aggregator)
    change, opt = sim.server_optimizer.update(-aggregate, state.opt, state.params)
    params = optax.apply_updates(state.params, change)
    if sim.after_round is not None:
        params = sim.after_round(repair_key, params)

    if clash := {*info} & {"train_loss", "malicious", "round"}:
        raise ValueError(f"the aggregator may not report the names {sorted(clash)}; rename them")
    if clash := {*observed} & {*info, "train_loss", "malicious", "round"}:
        raise ValueError(f"observe may not report the names {sorted(clash)}; rename them")
    own = {"train_loss": weighted_mean(losses[:, None], weights)[0], "malicious": malicious}
    info = own | info | observed
    next_state = SimState(params, opt, aggregator, attack, clients, state.key, state.round + 1)
    return next_state, info


def _participants(key: Key, num_clients: int, clients_per_round: int | None) -> Array:
    """Ascending ids (n,) of the round's clients."""
    if clients_per_round is None or clients_per_round == num_clients:
        return jnp.arange(num_clients, dtype=jnp.int32)
    drawn = jax.random.permutation(key, num_clients)[:clients_per_round]
    return jnp.sort(drawn).astype(jnp.int32)


def _stack_states(client: Client, params: Array, number: int) -> State:
    return jax.vmap(lambda _: client.init(params))(jnp.arange(number))


def _train(
    sim: Simulation,
    key: Key,
    ids: Array,
    state: SimState,
    data: FederatedData,
    mesh: Mesh | None,
) -> tuple[Array, State, Array]:
    """All clients of the round -> updates (n, d), states of all N clients, losses (n,)."""
    honest, malicious = state.clients
    if sim.attack.client is None or sim.num_malicious == 0:
        updates, honest, losses = _train_group(sim, sim.client, key, ids, honest, state, data, mesh)
        return updates, (honest, malicious), losses
    train = functools.partial(_train_group, sim, state=state, data=data, mesh=mesh)
    first = min(sim.num_malicious, ids.shape[0])
    everyone = ids.shape[0] == data.index.shape[0]
    # With everyone taking part, which rows are malicious is known now; else the first rows may be.
    bad_updates, bad, bad_losses = train(sim.attack.client, key, ids[:first], malicious)
    start = first if everyone else 0
    updates, honest, losses = train(sim.client, key, ids[start:], honest)
    if everyone:
        updates = jnp.concatenate([bad_updates, updates])
        losses = jnp.concatenate([bad_losses, losses])
    else:
        is_bad = ids[:first] < sim.num_malicious
        updates = updates.at[:first].set(jnp.where(is_bad[:, None], bad_updates, updates[:first]))
        losses = losses.at[:first].set(jnp.where(is_bad, bad_losses, losses[:first]))
    return updates, (honest, bad), losses


def _train_group(
    sim: Simulation,
    client: Client,
    key: Key,
    ids: Array,
    states: State,
    state: SimState,
    data: FederatedData,
    mesh: Mesh | None,
) -> tuple[Array, State, Array]:
    """Clients ``ids`` -> updates, states with theirs renewed, losses. Ids without a state (an honest
    client in a malicious group) train, and their state is dropped."""

    def train(shared: tuple[Key, Array, Array, Batch], clients: Any) -> tuple[Array, State, Array]:
        key, params, rounds, examples = shared

        def one(args: tuple[Array, State, Array, Array]) -> tuple[Array, State, Array]:
            client_id, own, index, count = args
            client_data = ClientData(examples, index, count, client_id, rounds)
            update, own, info = client.update(
                jax.random.fold_in(key, client_id), params, own, client_data
            )
            return update, own, info.get("train_loss", jnp.float32(jnp.nan))

        if sim.client_chunk is None or sim.client_chunk >= clients[0].shape[0]:
            return jax.vmap(one)(clients)
        return jax.lax.map(one, clients, batch_size=sim.client_chunk)

    own = jax.tree.map(lambda s: s.at[ids].get(mode="clip"), states)
    updates, own, losses = sharding.map_clients(
        mesh,
        train,
        (key, state.params, state.round, data.examples),
        (ids, own, data.index[ids], data.count[ids]),
    )
    states = jax.tree.map(lambda s, new: s.at[ids].set(new, mode="drop"), states, own)
    return updates, states, losses


def _this_rounds_rule(
    sim: Simulation, state: SimState, weights: Array, ids: Array, key: Key
) -> Callable[[Array], Array]:
    def aggregate(updates: Array) -> Array:
        received = Received(updates, weights, ids, state.params, key)
        return sim.aggregator.aggregate(received, state.aggregator)[0]

    return aggregate


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
      progress: show a progress bar.
      checkpoint: file to resume from if it exists, and to write. An interrupted run that is started
        again with the same arguments ends bit-identical to an uninterrupted one.
      checkpoint_every: rounds between checkpoints, >= 1, rounded up to whole evaluations; default about
        a twentieth of the run.
      mesh: devices to share the work, such as ``jax.make_mesh((8,), ("clients",))``: clients are split
        over them for training, parameters for attacks and rules (see ``sharding``). Results equal those
        of one device up to the order of float32 sums. With several processes (``jax.distributed``) all
        call ``run`` with equal arguments; the first one shows progress and writes the checkpoint, which
        all must be able to read, and which other numbers of devices can resume, too. Clients' own
        states in the result then stay split over the processes.

    Returns:
      The final state, and the history: ``round`` (E,), the number of rounds done at each evaluation,
      each of evaluate's results (E, ...), and for every round (rounds, ...): ``train_loss``,
      ``malicious``, and what the aggregator and ``sim.observe`` report.

    Raises:
      ValueError: if arguments are out of range, contradict each other, or do not fit the checkpoint.
    """
    if jnp.issubdtype(key.dtype, jnp.integer):
        key = jax.random.wrap_key_data(key)
    every = rounds if evaluate_every is None else evaluate_every
    if rounds < 1 or every < 1:
        raise ValueError(
            f"run needs rounds >= 1 and evaluate_every >= 1, got {rounds} and {evaluate_every}"
        )
    axes = _seed_axes(key, data)
    traced = any(
        isinstance(leaf, jax.core.Tracer) for leaf in jax.tree.leaves((key, data, params, evaluate))
    )
    if traced and (checkpoint is not None or progress or mesh is not None):
        raise ValueError(
            "run cannot show progress, write checkpoints, or use a mesh inside vmap or jit; "
            "for several seeds pass a vector of keys instead"
        )
    if checkpoint is None and checkpoint_every is not None:
        raise ValueError("checkpoint_every needs checkpoint=..., the file to write")
    if checkpoint_every is not None and checkpoint_every < 1:
        raise ValueError(f"run needs checkpoint_every >= 1, got {checkpoint_every}")
    check(sim, data)
    mesh = sharding.automatic(mesh)
    evaluate = _evaluate_nothing if evaluate is None else evaluate
    if not isinstance(evaluate, jax.tree_util.Partial):
        evaluate = jax.tree_util.Partial(evaluate)

    program = ""
    if checkpoint is not None:  # the program of one device: any number of them can resume it
        jaxpr = jax.make_jaxpr(
            lambda key, data, params, evaluate: _block(
                sim, axes, None, 1, every, evaluate, _init(sim, axes, None, key, data, params), data
            )
        )(key, data, params, evaluate)
        program = checkpoints.fingerprint(jaxpr, (key, data, params, evaluate))
    key, data, params, evaluate = sharding.to_devices(mesh, (key, data, params, evaluate))
    state = _init(sim, axes, mesh, key, data, params)
    block_rounds = rounds if not (progress or checkpoint) else checkpoint_every or -(-rounds // 20)
    blocks = _blocks(rounds, every, block_rounds)
    parts: list[History] = []
    done = 0
    if checkpoint is not None and sharding.agreed(
        mesh, os.path.exists(checkpoint), f"the checkpoint {os.fspath(checkpoint)}"
    ):
        saved, restored, done = checkpoints.restore(checkpoint, state, program)
        state = sharding.like(mesh, state, saved)
        parts.append(restored)
        if done not in {0, *(end for *_, end in blocks)}:
            raise ValueError(
                f"the checkpoint {os.fspath(checkpoint)} was written after {done} rounds, which "
                f"this run (rounds={rounds}, evaluate_every={every}, checkpoint_every="
                f"{checkpoint_every}) does not stop at; use its own arguments or another file"
            )
    first_process = jax.process_index() == 0 or mesh is None
    with tqdm(
        total=rounds, initial=done, disable=not (progress and first_process), unit="round"
    ) as bar:
        for times, length, end in blocks:
            if end <= done:
                continue
            state, new = _block_jit(sim, axes, mesh, times, length, evaluate, state, data)
            new["round"] = np.arange(end - (times - 1) * length, end + 1, length, dtype=np.int32)
            parts.append(new)
            if checkpoint is not None:
                parts = [_joined(np, parts, axes)]  # jnp would compile for each new length
                whole = sharding.to_hosts(state)
                if first_process:
                    checkpoints.save(checkpoint, whole, parts[0], end, program)
            if progress:
                bar.set_postfix(_summary(new))
                bar.update(times * length)
    return state, _joined(jnp, parts, axes)


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
) -> SimState:
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
) -> tuple[SimState, History]:
    """``times`` evaluations, each after ``length`` rounds."""

    def one(state: SimState, data: FederatedData) -> tuple[SimState, History]:
        def segment(state: SimState, _: None) -> tuple[SimState, tuple[Info, Info]]:
            state, infos = jax.lax.scan(
                lambda state, _: step(sim, state, data, mesh), state, None, length=length
            )
            return state, (evaluate(state.params), infos)

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


def _summary(new: History) -> dict[str, str]:
    """The latest scalars, averaged over seeds, for the progress bar."""
    return {
        name: f"{float(np.mean(np.asarray(values)[..., -1])):.4f}"
        for name, values in new.items()
        if name.startswith(("test_", "train_")) and values.ndim <= 2
    }
