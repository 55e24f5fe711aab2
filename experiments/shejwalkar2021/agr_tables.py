"""Shejwalkar, Houmansadr: "Manipulating the Byzantine", NDSS 2021: which attack is strongest against
which rule, on CIFAR-10, reduced.

  python experiments/shejwalkar2021/agr_tables.py               all honest updates known
  python experiments/shejwalkar2021/agr_tables.py --partial     only the attackers' own

In the paper and in its authors' notebooks: AlexNet, 50 clients of 1,000 images (IID), 10 malicious, one
gradient of 250 images per round, step .5, halved at round 1,000, 1,200 rounds. Here: a network of two
convolutions, 32 images, step .1, 200 rounds; so numbers differ, and what is compared is the order of the
attacks on a rule. Reported is the *best* accuracy during training, as the authors do, and the last.
Printed beside ours are the notebooks' outputs (one run each). The attacks:

- *Fang*: Fang et al.'s Krum attack on Multi-Krum and Bulyan, their trim attack on the other two.
- *LIE*: z = .72575, which the notebooks take for Phi^-1 (they computed Phi).
- *AGR*: tailored to the rule. *Min-Max*, *Min-Sum*: agnostic. All along p = the standard deviation.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import fedjax_robust as fr
from fedjax_robust import aggregators, attacks, metrics, models, report, study
from fedjax_robust.data import load, partition

RULES: dict[str, Callable[[int], fr.Aggregator]] = {
    "Multi-Krum": aggregators.multi_krum,
    "Bulyan": aggregators.bulyan,
    "trimmed mean": aggregators.trimmed_mean,
    "median": lambda f: aggregators.median(),
}
ATTACKS = ("none", "Fang", "LIE", "AGR", "Min-Max", "Min-Sum")
LIE_Z = 0.72575
# The notebooks' best accuracy in per cent, by rule: Fang, LIE, AGR, Min-Max, Min-Sum.
FULL = {
    "Multi-Krum": (57.4, 59.9, 29.2, 29.1, 44.6),
    "Bulyan": (25.2, 9.6, 23.6, 31.7, 22.1),
    "trimmed mean": (50.9, 64.7, 23.8, 37.7, 43.1),
    "median": (51.2, 63.6, 29.8, 28.2, 28.7),
}
PARTIAL = {
    "Multi-Krum": (54.8, 45.1, 31.2, 33.1, 34.4),
    "Bulyan": (26.0, 36.4, 23.5, 29.5, 25.5),
    "trimmed mean": (53.4, 54.0, 27.5, 26.5, 42.7),
    "median": (54.3, 54.6, 26.9, 28.4, 34.2),
}
SETTINGS: dict[str, Any] = {
    "data": "cifar10",
    "model": "ConvNet((8,), (16,); 64)",
    "clients": 50,
    "malicious": 10,
    "rounds": 200,
    "batch_size": 32,
    "learning_rate": 0.1,
}
PARTITION = 1  # what a seed's key is for; its rounds have ``jax.random.key(seed)`` itself


@dataclasses.dataclass
class Args(study.Args):
    """Which attack is strongest against which rule. Accuracies are fractions."""

    partial: bool = False
    """The attackers know their own updates only."""
    rules: tuple[str, ...] = ()
    """Rules to run; default all."""
    attacks: tuple[str, ...] = ()
    """Attacks to run; default all."""
    seeds: int = 1
    """Trials with other partitions, models and batches."""
    out: Path = Path("results/shejwalkar2021")
    """Where results go."""


def deviations(mean: jax.Array, std: jax.Array) -> jax.Array:
    """The authors' mean - gamma std on gradients is a plus on updates."""
    return std


def attack_of(name: str, rule: str, f: int, partial: bool) -> fr.Attack:
    selects = rule in ("Multi-Krum", "Bulyan")

    def fang() -> fr.Attack:
        if partial:
            return attacks.fang_krum_partial() if selects else attacks.fang_trim_partial()
        if selects:
            return attacks.fang_krum_full(f)
        return attacks.fang_trim_full(before=aggregators.mean(), on_updates=True)

    def tailored() -> fr.Attack:
        if selects:
            return attacks.tailored_selection(RULES[rule](f), deviations, partial=partial)
        return attacks.tailored_displacement(deviations, partial=partial)

    made: dict[str, Callable[[], fr.Attack]] = {
        "none": attacks.no_attack,
        "Fang": fang,
        "LIE": lambda: attacks.alie(LIE_Z, ddof=1, partial=partial),
        "AGR": tailored,
        "Min-Max": lambda: attacks.min_max(deviations, partial=partial),
        "Min-Sum": lambda: attacks.min_sum(deviations, partial=partial),
    }
    return made[name]()


def cells_of(args: Args) -> list[dict[str, Any]]:
    for what, given, known in (("rule", args.rules, RULES), ("attack", args.attacks, ATTACKS)):
        if unknown := [name for name in given if name not in known]:
            raise ValueError(f"there is no {what} {unknown}; there are {list(known)}")
    fixed = {**SETTINGS, "partial": args.partial}
    if args.rounds:
        fixed["rounds"] = args.rounds
    if args.smoke:
        fixed |= {"rounds": 2, "clients": 15, "malicious": 3, "batch_size": 2, "images": 300}
    return study.grid(fixed, rule=args.rules or [*RULES], attack=args.attacks or ATTACKS)


def program_of(args: Args) -> Callable[[study.Settings], study.Compute]:
    dataset = load("cifar10", args.data_dir)

    def examples(part: dict[str, Any], number: int | None) -> dict[str, jax.Array]:
        return {name: jnp.asarray(part[name][:number]) for name in ("x", "y")}

    cached: dict[int | None, Any] = {}

    def inputs(run: study.Settings) -> Any:
        number = run.get("images")
        if number not in cached:
            cached[number] = examples(dataset.train, number), examples(dataset.test, number)
        pool, test = cached[number]
        key = study.key(PARTITION, run["seed"])
        return partition.iid(key, pool, run["clients"]), test

    def plan(cell: study.Settings, given: Any) -> study.Plan:
        data, test = given
        module = models.ConvNet(10, blocks=((8,), (16,)), hidden=(64,))
        task = fr.classification(module, data.examples["x"][:1])
        f = cell["malicious"]
        attack = attack_of(cell["attack"], cell["rule"], f, cell["partial"])
        sim = fr.Simulation(
            task=task,
            client=fr.local_sgd(task, cell["learning_rate"], cell["batch_size"]),
            aggregator=RULES[cell["rule"]](f),
            attack=attack,
            knowledge=attack.needs,
            num_malicious=f,
            client_chunk=study.client_chunk(None),
        )
        every = max(cell["rounds"] // 20, 1)
        return study.Plan(sim, data, cell["rounds"], metrics.test_error(task, test), every)

    return study.together(plan, inputs, measure)


def measure(history: study.History) -> dict[str, float]:
    """Best and last accuracy, and how often a malicious row was selected."""
    accuracy = 1 - np.nan_to_num(np.asarray(history["test_error"], float), nan=1.0)
    result = {"best_accuracy": float(accuracy.max()), "accuracy": float(accuracy[-1])}
    return result | study.malicious_selected(history)


def main(args: Args) -> None:
    """Run what is missing, then print and draw it."""
    cells = cells_of(args)
    name = "partial" if args.partial else "full"
    folder = args.out / (name + ("-smoke" if args.smoke else ""))
    rows = study.run(
        study.Study(
            folder,
            cells,
            ("rule", "attack"),
            program_of(args),
            range(1 if args.smoke else args.seeds),
            values=("best_accuracy", "accuracy"),
        ),
        args.cell,
    )
    if rows is None:
        return
    numbers = PARTIAL if args.partial else FULL
    chosen = {(cell["attack"], cell["rule"]) for cell in cells}
    printed = {
        (attack, rule): round(value / 100, 3)
        for rule, values in numbers.items()
        for attack, value in zip(ATTACKS[1:], values, strict=True)
        if (attack, rule) in chosen
    }
    cell = cells[0]
    text = report.write_table(
        folder,
        rows,
        printed,
        value="best_accuracy",
        metric="best test accuracy",
        title=f"Shejwalkar and Houmansadr (NDSS 2021), CIFAR-10, reduced, {name} knowledge",
        notes=f"{cell['model']}, {cell['clients']} clients, {cell['malicious']} malicious, "
        f'{cell["rounds"]} rounds, step {cell["learning_rate"]:g}, {cell["batch_size"]} images; "paper": '
        "the authors' notebooks with AlexNet, 1,200 rounds; the order within a column is what compares",
        command=study.command(__file__, args),
        settings=study.settings(args, rows),
    )
    print(f"\n{text}\nrows, table and figure are in {folder}")


if __name__ == "__main__":
    study.main(Args, main)
