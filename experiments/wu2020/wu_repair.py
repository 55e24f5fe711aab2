"""One run of Wu et al.: training under attack, then the repairs, in the order of the paper.

*Pruning* by ranking vote (and, from the same model, by majority vote), *AW*, adjusting extreme weights,
alone and after pruning, and *FT*, rounds of fine-tuning of the pruned model with the attacker taking
part, and AW after that. Every stage is a function of parameters (d,) and of a ``Judge`` of them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from wu_setting import MAJORITY_RATE, Batch, Inputs, Numbers, Settings, triggers

import fedjax_robust as fr
from fedjax_robust import aggregators, attacks, metrics, repairs, study
from fedjax_robust.types import AttackerView, FederatedData, State

Array = jax.Array
Measures = dict[str, Array]
Results = dict[str, Any]
"""Names of stages -> what is measured after them."""


class Images(NamedTuple):
    """Arguments of the program rather than constants in it."""

    pool: Batch
    validation: Batch
    test: Batch


class Judge(NamedTuple):
    """Functions of parameters (d,)."""

    validation: repairs.Validation
    """accuracy () that decides"""
    success: Callable[[Array], Array]
    """share () of the victim's test images with the trigger that are taken for the target"""
    measured: Callable[[Array], Measures]
    """test accuracy and attack success"""


def chunk_size() -> int:
    """Images evaluated at once: convolutions that fit a CPU's caches."""
    return 100 if jax.default_backend() == "cpu" else 1000


def judge(inputs: Inputs, cell: Settings, images: Images, now: Numbers) -> Judge:
    task, chunk = inputs.task, chunk_size()
    triggered = triggers(inputs, cell)[0](now.victims)

    def success(params: Array) -> Array:
        hit = metrics.predict(task, params, triggered, chunk=chunk) == now.target
        return jnp.sum(hit & now.are_victims) / jnp.sum(now.are_victims)

    def measured(params: Array) -> Measures:
        right = metrics.predict(task, params, images.test["x"], chunk=chunk) == images.test["y"]
        return {"test": jnp.mean(right), "attack": success(params)}

    return Judge(repairs.accuracy(task, images.validation, chunk=chunk), success, measured)


# --- Training ------------------------------------------------------------------------------------


def client(
    task: fr.Task,
    cell: Settings,
    steps: int,
    poison: Any,
    objectives: Sequence[fr.clients.Objective],
) -> fr.Client:
    def objective(loss: Any, received: Array) -> Any:
        for change in objectives:
            loss = change(loss, received)
        return loss

    return fr.local_sgd(
        task,
        cell["learning_rate"],
        cell["batch_size"],
        steps=steps,
        momentum=cell["momentum"],
        poison=poison,
        objective=objective,
    )


def attack(inputs: Inputs, cell: Settings, now: Numbers) -> fr.Attack:
    """Malicious clients train on triggered images, and send alpha times what they learned."""
    layer = inputs.layer
    trigger, parts = triggers(inputs, cell)
    if parts:
        poison = attacks.poisons.distributed(parts, now.target, 5)
    else:
        poison = attacks.poisons.add_triggered_victims(trigger, now.victim, now.target)
    clip = attacks.repair_aware.self_clipping(layer, now.attackers_delta)

    def craft(view: AttackerView, state: State) -> tuple[Array, State]:
        trained = view.params + view.updates[: view.num_malicious]
        return cell["alpha"] * (jax.vmap(clip)(trained) - view.params), state

    penalty = attacks.repair_aware.l2_penalty(layer, now.l2)
    aware = attacks.repair_aware.pruning_aware(layer, now.attackers_keep)
    steps = cell["attackers_steps"]
    return fr.Attack(craft=craft, client=client(inputs.task, cell, steps, poison, (aware, penalty)))


def simulation(inputs: Inputs, cell: Settings, now: Numbers) -> fr.Simulation:
    return fr.Simulation(
        inputs.task,
        client(
            inputs.task,
            cell,
            cell["steps"],
            None,
            (attacks.repair_aware.l2_penalty(inputs.layer, now.l2),),
        ),
        aggregators.mean(),
        attack(inputs, cell, now),
        num_malicious=cell["malicious"],
        clients_per_round=cell["selected"],
        # Matrix products of a client's own weights, one client at a time, use a CPU's caches better.
        client_chunk=study.client_chunk(None),
    )


def train(
    sim: fr.Simulation, key: Array, data: FederatedData, rounds: int, judge: Judge
) -> tuple[Array, dict[str, Array]]:
    """The attacked model (d,), and its curve."""

    def point(params: Array) -> Measures:
        return {"validation": judge.validation(params), "attack": judge.success(params)}

    state, history = fr.run(
        sim,
        key,
        data,
        rounds,
        evaluate=jax.tree_util.Partial(point),
        evaluate_every=max(rounds // 20, 1),
    )
    return state.params, {name: history[name] for name in ("round", "validation", "attack")}


# --- Repair --------------------------------------------------------------------------------------


def orders(
    inputs: Inputs, cell: Settings, params: Array, data: FederatedData, now: Numbers
) -> dict[str, Array]:
    """In which order neurons are pruned: by ranking vote (RV) and majority vote (MV)."""
    active = repairs.client_activations(inputs.layer, params, data, relu=not cell["before_relu"])
    ranks, votes = repairs.ranks(active), repairs.votes(active, MAJORITY_RATE)
    lying = (jnp.arange(cell["clients"]) < cell["malicious"]) & now.lie
    ranks = attacks.repair_aware.reversed_ranks(ranks, lying)
    votes = jnp.where(lying[:, None], 1 - votes, votes)
    return {"RV": repairs.ranking_vote(ranks), "MV": repairs.majority_vote(votes)}


def prune(
    layer: repairs.ConvolutionLayer,
    name: str,
    trained: Array,
    order: Array,
    judge: Judge,
    drop: float,
) -> tuple[Array, Array, Results]:
    """The model without the first neurons, which are left (C,) bool, and all prefixes' measures."""
    params, keep, info = repairs.prune(layer, trained, order, judge.validation, drop=drop)
    when = jnp.argsort(order)
    prefixes = jax.lax.map(
        lambda i: judge.success(repairs.with_neurons(layer, trained, when >= i)),
        jnp.arange(layer.channels),
    )
    result = {
        name: judge.measured(params) | {"number": info["pruned"]},
        f"{name} prefixes": {"validation": info["accuracies"], "attack": prefixes},
    }
    return params, keep, result


def adjust(
    layer: repairs.ConvolutionLayer,
    name: str,
    params: Array,
    keep: Array | None,
    judge: Judge,
    drop: float,
) -> Results:
    """Extreme weights: where the rule stops, at Delta = 3, and at every Delta."""
    best, info = repairs.adjust_extreme_weights(
        layer, params, judge.validation, drop=drop, keep=keep
    )
    by_rule = judge.measured(best) | {"number": info["zeroed"], "delta": info["delta"]}
    at_three, number = repairs.without_extreme_weights(layer, params, 3.0, keep)
    return {
        name: by_rule,
        f"{name}, Delta 3": judge.measured(at_three) | {"number": number},
        f"{name} deltas": {
            "validation": info["accuracies"],
            "attack": jax.lax.map(
                lambda delta: judge.success(
                    repairs.without_extreme_weights(layer, params, delta, keep)[0]
                ),
                jnp.asarray(repairs.DELTAS),
            ),
        },
    }


def attacked_and_repaired(inputs: Inputs, cell: Settings, images: Images, now: Numbers) -> Results:
    """One run: stages, curves, the final mask ``keep`` and the parameters ``models``."""
    layer, drop = inputs.layer, cell["drop"]
    data = FederatedData(images.pool, now.rows, now.sizes)
    by = judge(inputs, cell, images, now)
    sim = simulation(inputs, cell, now)
    trained, curve = train(sim, now.key, data, cell["rounds"], by)
    result: Results = {"training": curve, "trained": by.measured(trained)}
    if not cell["repaired"]:
        return result | {"models": {"trained": trained}}

    votes = orders(inputs, cell, trained, data, now)
    pruned, keep, by_ranks = prune(layer, "RV", trained, votes["RV"], by, drop)
    by_majority = prune(layer, "MV", trained, votes["MV"], by, drop)[2]
    result |= by_ranks | by_majority | {"keep": keep}
    result |= adjust(layer, "AW", trained, None, by, drop)
    result |= adjust(layer, "RV + AW", pruned, keep, by, drop)
    state, _ = fr.run(
        sim._replace(after_round=repairs.masked(layer, keep)),
        jax.random.fold_in(now.key, 1),
        data,
        cell["fine_tuning"],
        params=pruned,
    )
    result["FT"] = by.measured(state.params)
    result |= adjust(layer, "FT + AW", state.params, keep, by, drop)
    return result | {"models": {"trained": trained, "pruned": pruned, "fine_tuned": state.params}}
