"""Xie, Huang, Chen, Li: "DBA: Distributed Backdoor Attacks against Federated Learning", ICLR 2020.

  python experiments/dba2020/dba.py

The settings of DBA's code on MNIST: 100 clients, 10 in a round, Dirichlet 0.5, MnistNet, four
attackers with a bar of 4 pixels each in rounds 12, 14, 16 and 18 (the first is 1), scale 100,
server step 0.1; from the first round on instead of from a trained model. In the *centralised*
attack one attacker has all bars, in round 18. Before and after these rounds the attackers are
clients like all others, in between they are absent. Attack success is that of the whole trigger on
test images of other labels than the target.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import optax

import fedjax_robust as fr
from fedjax_robust import aggregators, attacks, metrics, models, report, study
from fedjax_robust import data as datasets

ATTACKED_ROUNDS = (12, 14, 16, 18)
BARS = attacks.backdoors.DBA_MNIST_PIXELS
SETTINGS = {
    "data": "mnist",
    "model": "MnistNet",
    "clients": 100,
    "participants": 10,
    "dirichlet": 0.5,
    "step": 0.1,
    "epochs": 1,
    "batch_size": 64,
    "momentum": 0.9,
    "decay": 5e-4,
    "server_step": 0.1,
    "attackers_step": 0.05,
    "attackers_epochs": 10,
    "poisoned": 20,  # images of an attacker's batch
    "scale": 100.0,
    "target": 2,
}
METHODS = ("DBA", "centralised")


@dataclasses.dataclass
class Args(study.Args):
    """The distributed backdoor attack and the centralised one. Accuracies are fractions."""

    seeds: int = 3
    """Trials with other splits, models and batches."""
    rounds: int = 40
    """Rounds in all, more than the 18 until the last attack."""
    out: Path = Path("results/dba2020")
    """Where results go."""


def cells_of(args: Args) -> list[dict[str, Any]]:
    cells = []
    for method in METHODS[: 1 if args.smoke else None]:
        own = ATTACKED_ROUNDS if method == "DBA" else ATTACKED_ROUNDS[-1:]
        cell = {**SETTINGS, "rounds": args.rounds, "attacked_rounds": own, "method": method}
        if args.smoke:
            few = {"epochs": 1, "attackers_epochs": 1, "attacked_rounds": (2,) * len(own)}
            cell |= {"rounds": 3, "train_images": 6000, "test_images": 200, **few}
        cells.append(cell)
    return cells


def simulations(cell: study.Settings, task: fr.Task) -> tuple[fr.Simulation, fr.Simulation]:
    """Without attack, and that of the rounds from the first to the last attack."""
    attacked, clients = cell["attacked_rounds"], cell["clients"]
    triggers = BARS if len(attacked) > 1 else (sum(BARS, ()),)

    def decayed(loss: Any, received: jax.Array) -> Any:
        return lambda params, batch: (
            loss(params, batch) + cell["decay"] / 2 * jnp.sum(jnp.square(params))
        )

    def local(rate: float, epochs: int, poison: Any = None) -> fr.Client:
        return fr.local_sgd(
            task,
            rate,
            cell["batch_size"],
            epochs=epochs,
            momentum=cell["momentum"],
            poison=poison,
            objective=decayed,
        )

    parts = [attacks.backdoors.pixel_trigger(bar) for bar in triggers]
    poison = attacks.poisons.distributed(parts, cell["target"], cell["poisoned"])
    client = local(cell["attackers_step"], cell["attackers_epochs"], poison)
    honest = fr.Simulation(
        task,
        local(cell["step"], cell["epochs"]),
        aggregators.mean(),
        clients_per_round=cell["participants"],
        server_optimizer=optax.sgd(cell["server_step"]),
        client_chunk=study.client_chunk(None),
    )
    now = [[r == at for at in attacked] for r in range(attacked[0], attacked[-1] + 1)]
    return honest, honest._replace(
        attack=attacks.scaling(cell["scale"], client),
        num_malicious=len(attacked),
        clients_per_round=None,
        participants=fr.attackers_selected(clients, cell["participants"], jnp.array(now)),
    )


def program_of(args: Args) -> Callable[[study.Settings], study.Compute]:
    dataset = datasets.load("mnist", args.data_dir)
    whole = attacks.backdoors.pixel_trigger(sum(BARS, ()))

    def program(cell: study.Settings) -> study.Compute:
        train, test = (
            {name: jnp.asarray(images[name][: cell.get(f"{part}_images")]) for name in ("x", "y")}
            for part, images in (("train", dataset.train), ("test", dataset.test))
        )
        task = fr.classification(models.MnistNet(10), train["x"][:1])
        honest, attacked = simulations(cell, task)
        first, last = cell["attacked_rounds"][0], cell["attacked_rounds"][-1]

        @jax.jit
        def history_of(key: Any, data: Any, test: Any) -> Any:
            evaluate = metrics.together(
                metrics.test_error(task, test),
                metrics.attack_success(
                    task, attacks.backdoors.triggered(test, whole), cell["target"]
                ),
            )
            # In three runs, as attackers who are absent train in vain. Nothing but the model goes on.
            params, histories, done = None, [], 0
            for sim, until in ((honest, first - 1), (attacked, last), (honest, cell["rounds"])):
                state, history = fr.run(
                    sim,
                    jax.random.fold_in(key, done),
                    data,
                    until - done,
                    params=params,
                    evaluate=evaluate,
                    evaluate_every=1,
                )
                histories.append({**history, "round": history["round"] + done})
                params, done = state.params, until
            names = ("round", "test_error", "attack_success")
            return {name: jnp.concatenate([h[name] for h in histories]) for name in names}

        def compute(runs: Sequence[study.Settings]) -> Iterable[study.Result]:
            for run in runs:
                key = study.key(1, run["seed"])
                split = {"y": train["y"]}
                data = datasets.dirichlet_truncated(key, split, run["clients"], run["dirichlet"])
                missing = -data.index.shape[1] % 256  # seeds with the same width share a program
                index = jnp.pad(data.index, ((0, 0), (0, missing)))
                data = data._replace(examples=train, index=index)
                history = jax.device_get(history_of(jax.random.key(run["seed"]), data, test))
                yield {
                    "round": history["round"].tolist(),
                    "main": (1 - history["test_error"]).tolist(),
                    "attack success": history["attack_success"].tolist(),
                }

        return compute

    return program


def rows_of(runs: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """One row per measure, run and round shown."""
    measures, last = ("attack success", "main"), ATTACKED_ROUNDS[-1]
    return [
        {"line": run["method"], **rest, "round": at, "measure": measure, "value": value}
        for run, rest in zip(runs, study.without(runs, *measures, "round"), strict=True)
        for measure in measures
        for at, value in zip(run["round"], run[measure], strict=True)
        if at in (5, 10, *ATTACKED_ROUNDS) or (at > last and at % 5 == 0) or at == run["round"][-1]
    ]


def main(args: Args) -> None:
    """Run what is missing, then print and draw it."""
    if args.rounds <= ATTACKED_ROUNDS[-1]:
        raise ValueError(
            f"the attack goes on until round {ATTACKED_ROUNDS[-1]}: --rounds must be larger, "
            f"got {args.rounds}"
        )
    folder = args.out / f"mnist{'-smoke' if args.smoke else ''}"
    runs = study.run(
        study.Study(
            folder,
            cells_of(args),
            ("method",),
            program_of(args),
            range(1 if args.smoke else args.seeds),
            values=(),
        ),
        args.cell,
    )
    if runs is None:
        return
    rows = rows_of(runs)
    text = report.write_sweep(
        folder,
        rows,
        x="round",
        xlabel="round",
        panels="measure",
        lines="line",
        value="value",
        metric="accuracy",
        title="Xie et al. (2020), the distributed backdoor attack, on MNIST",
        command=study.command(__file__, args),
        notes="MnistNet, 100 clients, 10 in a round, Dirichlet 0.5, attackers in rounds 12, 14, 16, 18 "
        "(DBA) or 18 (centralised); scale 100, server step 0.1.",
        settings=study.settings(args, rows),
    )
    print(f"\n{text}\nrows, table and figure are in {folder}")


if __name__ == "__main__":
    study.main(Args, main)
