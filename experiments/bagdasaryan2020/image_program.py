"""One run of images.py: who attacks in which rounds, what the server sees, what is measured."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from backdoor_setting import Batch, Inputs, attackers_client, honest_client

import fedjax_robust as fr
from fedjax_robust import aggregators, attacks, metrics, study
from fedjax_robust.kernels.norms import direction_and_length
from fedjax_robust.types import ClientData, Received

BEFORE = 5
"""Rounds before the single shot."""


def attack_round(run: study.Settings) -> int:
    """The round of the attack, from 0: the sixth, or the last."""
    return min(BEFORE, run["rounds"] - 1)


def measured(rule: fr.Aggregator) -> fr.Aggregator:
    """The rule, which also reports the length of each update received and how far its direction as a
    model, G + update, is from G's: 1 - cos."""

    def aggregate(received: Received, state: Any) -> tuple[Any, Any, dict[str, Any]]:
        result, state, info = rule.aggregate(received, state)
        submitted = direction_and_length(received.params + received.updates)[0]
        model = direction_and_length(received.params)[0]
        info |= {
            "norm": direction_and_length(received.updates)[1],
            # 1 - cos loses all digits near 1.
            "anomaly": jnp.sum(jnp.square(submitted - model), axis=1) / 2,
        }
        return result, state, info

    return fr.Aggregator(rule.init, aggregate)


def evaluation(cell: study.Settings, inputs: Inputs, held_out: list[jax.Array], test: Batch) -> Any:
    """test_error, and backdoor_i of every backdoor."""
    at, task = inputs.setting, inputs.task
    parts = [metrics.test_error(task, test)]
    if cell["pixel"]:
        triggered = attacks.backdoors.triggered(test, attacks.backdoors.pixel_trigger(at.pixels))
        success = metrics.attack_success(task, triggered, at.target)
        parts.append(renamed(success, "attack_success", 0))
    else:
        parts += [
            renamed(metrics.backdoor_accuracy(task, x, at.target), "backdoor_accuracy", i)
            for i, x in enumerate(held_out)
        ]
    return metrics.together(*parts)


def renamed(evaluate: fr.Evaluate, name: str, i: int) -> fr.Evaluate:
    return jax.tree_util.Partial(
        lambda evaluate, params: {f"backdoor_{i}": evaluate(params)[name]}, evaluate
    )


def simulation(
    cell: study.Settings,
    inputs: Inputs,
    own: ClientData,
    sets: list[Batch],
    gamma: jax.Array,
    alpha: jax.Array,
) -> fr.Simulation:
    at, task, rounds = inputs.setting, inputs.task, cell["rounds"]
    client = attackers_client(
        at, task, sets, pixel=cell["pixel"], constraint=cell["constraint"], alpha=alpha
    )
    attack = attacks.data_poisoning(client)
    if cell["attack"] == "Replacement":
        divide = (
            attacks.divisions.copies(gamma)
            if cell["krum"]
            else attacks.divisions.equal_parts(gamma)
        )
        attack = attacks.model_replacement(client, own, divide)
    participants, number = None, None if cell["krum"] else at.participants
    if cell["single_shot"] and not cell["krum"]:
        now = (jnp.arange(rounds) == attack_round(cell))[:, None]
        now = jnp.broadcast_to(now, (rounds, cell["attackers"]))
        participants = fr.attackers_selected(at.clients, at.participants, now)
        number = None
    rule = aggregators.fedavg_eta(1.0, at.clients)
    if cell["krum"]:
        rule = aggregators.krum(cell["attackers"])
    return fr.Simulation(
        task,
        honest_client(at, task),
        measured(rule),
        attack,
        num_malicious=cell["attackers"],
        clients_per_round=number,
        participants=participants,
        client_chunk=inputs.client_chunk,
    )


def program_of(inputs: Inputs) -> Callable[[study.Settings], study.Compute]:
    """Runs that differ in data and numbers share a program."""
    at = inputs.setting

    def program(cell: study.Settings) -> study.Compute:
        @jax.jit
        def history_of(
            key: Any, data: Any, own: Any, sets: Any, held_out: Any, test: Any, params: Any,
            gamma: Any, alpha: Any,
        ) -> Any:  # fmt: skip
            return fr.run(
                simulation(cell, inputs, own, sets, gamma, alpha),
                key,
                data,
                cell["rounds"],
                params=params,
                evaluate=evaluation(cell, inputs, held_out, test),
                evaluate_every=1,
            )[1]

        def compute(runs: Sequence[study.Settings]) -> Iterable[study.Result]:
            for run in runs:
                seed, first = run["seed"], run["backdoor"]
                names = [first, *(name for name in at.backdoors if name != first)]
                pairs = [inputs.backdoor(name, seed) for name in names[: cell["backdoors"]]]
                images = at.pixel_images if cell["pixel"] else at.benign_images
                history = history_of(
                    jax.random.key(seed),
                    inputs.federated(seed),
                    inputs.own(images, seed),
                    [one for one, _ in pairs],
                    [x for _, x in pairs],
                    inputs.test,
                    inputs.before(run["rounds_before"], seed),
                    jnp.float32(run["gamma"]),
                    jnp.float32(run["alpha"]),
                )
                yield measure(jax.device_get(history))

        return compute

    return program


def measure(history: study.History) -> dict[str, Any]:
    """Curves over the rounds, and what the attackers submitted, on average over attackers and rounds."""
    backdoors = [values for name, values in history.items() if name.startswith("backdoor_")]
    malicious = history["malicious"]
    curves = {
        "main": (1 - history["test_error"]).tolist(),
        "backdoor": np.mean(backdoors, axis=0).tolist(),
        "least": np.min(backdoors, axis=0).tolist(),
    }
    if "selected" in history:
        chosen = np.any(history["selected"] & malicious, axis=1)
        curves["selected"] = chosen.astype(float).tolist()
    result: dict[str, Any] = {"curves": curves}
    for name in ("norm", "anomaly"):
        values = history[name].astype(np.float64)
        result[name] = float(values[malicious].mean()) if malicious.any() else float("nan")
        result[f"honest_{name}"] = float(values[~malicious].mean())
    return result
