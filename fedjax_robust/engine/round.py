"""One round of federated training under attack, readable from top to bottom: ``step``."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from fedjax_robust import checks
from fedjax_robust.engine import contracts, sharding
from fedjax_robust.kernels.norms import weighted_mean
from fedjax_robust.types import (
    Array,
    AttackerView,
    Batch,
    Client,
    ClientData,
    FederatedData,
    Info,
    Key,
    Received,
    SimState,
    Simulation,
    State,
)

_OWN_COINS = 0x5EEDC015  # folded into the attack's key: numbers that the server does not draw


def init(sim: Simulation, key: Key, data: FederatedData, params: Array | None = None) -> SimState:
    """The state before round 0.

    Args:
      sim: the simulation.
      key: a key of ``jax.random.key``.
      data: what the N clients own.
      params: (d,) model to start from; default ``sim.task.init``.

    Raises:
      ValueError: if the simulation contradicts itself or the data (see ``check``).
      TypeError: for a part of another kind, or a key that is none.
    """
    sim, data = checked("init", sim, data)
    key = checks.key("init", key)
    if data.index.ndim != 2:
        raise ValueError(
            f"init needs data.index (N, m) of one partition, got shape {data.index.shape}; run takes "
            "a stack of them with a vector of keys"
        )
    num_clients = data.index.shape[0]
    params_key, rounds_key = jax.random.split(key)
    params = contracts.start("init", sim, data, params)
    if params is None:
        params = sim.task.init(params_key)
    malicious = ()
    if sim.attack.client is not None:
        malicious = _stack_states(sim.attack.client, params, contracts.most_malicious(sim))
    return SimState(
        params=params,
        opt=sim.server_optimizer.init(params),
        aggregator=sim.aggregator.init(num_clients, params),
        attack=sim.attack.init(params),
        clients=(_stack_states(sim.client, params, num_clients), malicious),
        key=rounds_key,
        round=jnp.int32(0),
    )


def check(sim: Simulation, data: FederatedData) -> tuple[Simulation, FederatedData]:
    """The simulation and the data as the engine needs them: whole numbers as Python's, JAX arrays.

    Args:
      sim: the simulation.
      data: what the N clients own.

    Raises:
      ValueError: with the remedy, if the simulation contradicts itself or the data: numbers out of
        range, an attack that needs more knowledge than it is granted, rows or counts that cannot be,
        labels that are none of the task's classes.
      TypeError: for a part of another kind, such as a factory that was not called.
    """
    return checked("the simulation", sim, data)


def checked(what: str, sim: Simulation, data: FederatedData) -> tuple[Simulation, FederatedData]:
    """``check`` for the function ``what``, which errors name; several seeds' data (S, N, m) pass, too."""
    sim = contracts.simulation(sim)
    data = contracts.federated_data(what, data)
    contracts.fits(sim, data.index.shape[-2])
    contracts.task(what, sim, data.examples)
    return sim, data


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
      ValueError: if two of these use the same name, or a part returns another shape than it must.
      TypeError: for a part of another kind, or that returns something else than arrays.
    """
    sim, data = checked("step", sim, data)
    contracts.state("step", state, data)
    checks.part("step", Mesh, optional=True, mesh=mesh)
    key = jax.random.fold_in(state.key, state.round)
    select_key, train_key, attack_key, server_key, repair_key = jax.random.split(key, 5)

    ids, weights = _present(sim, select_key, state, data)
    updates, clients, losses = _train(sim, train_key, ids, state, data, mesh)
    updates = sharding.by_parameters(mesh, updates)

    # ids ascend: malicious rows come first
    num_malicious = min(contracts.most_malicious(sim), ids.shape[0])
    malicious = (ids < sim.num_malicious) & (weights > 0)
    observed: Info = {}
    if sim.observe is not None:
        honest = Received(updates, weights, ids, state.params, server_key)
        observed = contracts.named("observe", sim.observe(honest, malicious))
    attack = state.attack
    if num_malicious:
        visible = (weights > 0) if sim.knowledge.others else malicious
        visible &= jnp.all(jnp.isfinite(updates), axis=1)  # the server will drop such rows too
        coins = server_key if sim.knowledge.coins else jax.random.fold_in(attack_key, _OWN_COINS)
        view = AttackerView(
            updates=jnp.where(visible[:, None], updates, 0),
            visible=visible,
            reference=visible & ~malicious if sim.knowledge.others else malicious,
            malicious=malicious,
            num_malicious=num_malicious,
            params=state.params,
            key=attack_key,
            aggregate=_this_rounds_rule(sim, state, weights, ids, coins)
            if sim.knowledge.rule
            else None,
            ids=ids,
        )
        crafted, attack = contracts.crafted(sim.attack, view, attack)
        crafted = jnp.where(malicious[:num_malicious, None], crafted, updates[:num_malicious])
        updates = jnp.concatenate([crafted, updates[num_malicious:]])

    received = Received(updates, weights, ids, state.params, server_key)
    aggregate, aggregator, info = contracts.aggregated(sim.aggregator, received, state.aggregator)
    params, opt = contracts.changed(sim.server_optimizer, aggregate, state.opt, state.params)
    if sim.after_round is not None:
        params = contracts.model("after_round", sim.after_round(repair_key, params), params)

    if clash := {*info} & {"train_loss", "malicious", "round"}:
        raise ValueError(f"the aggregator may not report the names {sorted(clash)}; rename them")
    if clash := {*observed} & {*info, "train_loss", "malicious", "round"}:
        raise ValueError(f"observe may not report the names {sorted(clash)}; rename them")
    own = {"train_loss": weighted_mean(losses[:, None], weights)[0], "malicious": malicious}
    info = own | info | observed
    next_state = SimState(params, opt, aggregator, attack, clients, state.key, state.round + 1)
    return next_state, info


def _present(
    sim: Simulation, key: Key, state: SimState, data: FederatedData
) -> tuple[Array, Array]:
    """The round's clients, ascending ids (n,), and the weights (n,) of their rows."""
    num_clients = data.index.shape[0]
    if sim.participants is None:
        ids = _participants(key, num_clients, sim.clients_per_round)
        return ids, contracts.weights(sim, data.count[ids])
    ids = contracts.participants(sim, sim.participants(key, state.round))
    somebody = ids < num_clients
    count = jnp.where(somebody, data.count.at[ids].get(mode="clip"), 0)
    return ids, jnp.where(somebody, contracts.weights(sim, count), 0)


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
    bound = contracts.most_malicious(sim)
    if sim.attack.client is None or bound == 0:
        updates, honest, losses = _train_group(sim, sim.client, key, ids, honest, state, data, mesh)
        return updates, (honest, malicious), losses
    train = functools.partial(_train_group, sim, state=state, data=data, mesh=mesh)
    first = min(bound, ids.shape[0])
    everyone = sim.participants is None and ids.shape[0] == data.index.shape[0]
    known = everyone and sim.max_malicious is None
    # Which rows are malicious is known now; else the first rows may be.
    bad_updates, bad, bad_losses = train(sim.attack.client, key, ids[:first], malicious)
    start = first if known else 0
    updates, honest, losses = train(sim.client, key, ids[start:], honest)
    if known:
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
    client in a malicious group, or nobody) train, and their state is dropped."""

    def train(shared: tuple[Key, Array, Array, Batch], clients: Any) -> tuple[Array, State, Array]:
        key, params, rounds, examples = shared

        def one(args: tuple[Array, State, Array, Array]) -> tuple[Array, State, Array]:
            client_id, own, index, count = args
            client_data = ClientData(examples, index, count, client_id, rounds)
            own_key = jax.random.fold_in(key, client_id)
            return contracts.trained(sim, client, own_key, params, own, client_data)

        if sim.client_chunk is None or sim.client_chunk >= clients[0].shape[0]:
            return jax.vmap(one)(clients)
        return jax.lax.map(one, clients, batch_size=sim.client_chunk)

    own = jax.tree.map(lambda s: s.at[ids].get(mode="clip"), states)
    updates, own, losses = sharding.map_clients(
        mesh,
        train,
        (key, state.params, state.round, data.examples),
        (ids, own, *_rows_of(data, ids)),
    )
    states = jax.tree.map(lambda s, new: s.at[ids].set(new, mode="drop"), states, own)
    return updates, states, losses


def _rows_of(data: FederatedData, ids: Array) -> tuple[Array, Array]:
    """What clients own; nobody owns nothing."""
    count = data.count.at[ids].get(mode="fill", fill_value=0)
    return data.index.at[ids].get(mode="clip"), count


def _this_rounds_rule(
    sim: Simulation, state: SimState, weights: Array, ids: Array, key: Key
) -> Callable[[Array], Array]:
    def aggregate(updates: Array) -> Array:
        received = Received(updates, weights, ids, state.params, key)
        return contracts.aggregated(sim.aggregator, received, state.aggregator)[0]

    return aggregate
