"""Choices that Wu et al. leave open, tried on trained models: no training, a few minutes per model.

  python experiments/wu_pruning.py --part pairs --keep-models
  python experiments/wu_choices.py --part pairs

The paper leaves open whether activations are taken before or after the ReLU, which p the majority vote
has (30 to 70 % "perform well"), and, for the extreme weights of a pruned layer, whose mean and deviation
count: those of the neurons that are left (as in the library), of the whole layer with its zeros, or of
the layer before it was pruned, as where pruning is a mask over weights that are still there. A server
without validation data asks the clients for their accuracies instead (sections IV, IV-A): here it takes
their mean, each of 500 of a client's images. An attacker may lie: 1 until its own accuracy falls, then 0.

Results go to ``--out``/choices-<part>: ``pruning``, ``extreme-weights`` and ``validation``, averages over
the pairs, and ``runs.csv``, every model by itself.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
import tyro
import wu_pruning
from common import use_compilation_cache
from fang_table2 import command_line
from tqdm import tqdm

from fedjax_robust import attacks, repairs, report
from fedjax_robust.types import FederatedData

DELTA = 3.0
"""As in Table I, which prints 131 to 139 weights zeroed."""
RATES = (0.3, 0.5, 0.7)
OWN = 500
"""Images on which a client measures the accuracy."""


@dataclasses.dataclass
class Args:
    """Choices the paper leaves open, on models that wu_pruning.py --keep-models kept."""

    part: Literal["pairs", "concise"] = "pairs"
    """The network: 20 and 50 filters, or 8 and 16."""
    seeds: int = 1
    """Models of seeds 0, 1, ... of each pair."""
    pairs: tuple[str, ...] | None = None
    """Victim and target labels such as 9-0; default all 18."""
    alpha: float | None = None
    """The attackers' amplification in the models' training, if not the setting's."""
    attackers_steps: int | None = None
    """The attackers' local steps in the models' training, if not the setting's."""
    data_dir: Path | None = None
    """Folder of the data sets; default FEDJAX_ROBUST_DATA, else where TFDS keeps its own."""
    out: Path = Path("results/wu_pruning")
    """Where wu_pruning.py put its results, and where these go."""
    smoke: bool = False
    """For models of a smoke run."""


def rows_of(names: Iterable[str], stacked: dict[str, jax.Array]) -> dict[str, dict[str, jax.Array]]:
    """{name: result} of results stacked in the names' order."""
    return {
        name: {key: values[i] for key, values in stacked.items()} for i, name in enumerate(names)
    }


def program(
    inputs: wu_pruning.Inputs,
) -> Callable[..., dict[str, dict[str, dict[str, jax.Array]]]]:
    """(params, numbers, pool, validation, test) -> {table: {choice: test, attack, number}}."""
    task, layer = inputs.task, inputs.layer
    trigger = attacks.pixel_trigger(attacks.NINE_PIXELS[: inputs.setting.pixels], inputs.white)

    def tried(
        params: jax.Array, now: wu_pruning.Numbers, pool: Any, validation_set: Any, test: Any
    ) -> dict[str, dict[str, dict[str, jax.Array]]]:
        data = FederatedData(pool, now.index, now.count)
        validation = repairs.accuracy(task, validation_set, chunk=wu_pruning.chunk_size())
        triggered = trigger(now.victims)

        def measured(params: jax.Array, number: jax.Array) -> dict[str, jax.Array]:
            return wu_pruning.measure(task, params, test, triggered, now) | {"number": number}

        def pruned_by(order: jax.Array) -> tuple[jax.Array, jax.Array, dict[str, jax.Array]]:
            left, keep, info = repairs.prune(layer, params, order, validation)
            return left, keep, measured(left, info["pruned"])

        # Maps, not loops: what they call is compiled once.
        orders = {}
        for relu, when in ((True, "after"), (False, "before")):
            active = repairs.client_activations(layer, params, data, relu=relu)
            ranks = repairs.ranks(active)
            orders[f"ranking vote, {when} the ReLU"] = repairs.ranking_vote(ranks)
            for rate in RATES:
                votes = repairs.votes(active, rate)
                orders[f"majority vote, {rate:.0%}, {when} the ReLU"] = repairs.majority_vote(votes)
        left, keep, by_order = jax.lax.map(pruned_by, jnp.stack([*orders.values()]))
        first, pruned, kept = orders["ranking vote, after the ReLU"], left[0], keep[0]

        neurons, of_neurons = repairs.without_extreme_weights(layer, pruned, DELTA, kept)
        zeros, of_zeros = repairs.without_extreme_weights(layer, pruned, DELTA)
        whole, _ = repairs.without_extreme_weights(layer, params, DELTA)
        before = repairs.with_neurons(layer, whole, kept)
        whose = ("neurons left", "layer with its zeros", "layer before pruning")
        by_deviation = jax.lax.map(
            lambda one: measured(*one),
            (
                jnp.stack([neurons, zeros, before]),
                jnp.stack([of_neurons, of_zeros, jnp.sum(before != pruned)]),
            ),
        )

        few = FederatedData(pool, now.index[:, :OWN], jnp.minimum(now.count, OWN))
        attacker = FederatedData(pool, few.index[:1], few.count[:1])
        chunk = wu_pruning.chunk_size()
        at_first = repairs.clients_accuracy(task, attacker, chunk=chunk)(params)

        def stopped_by_clients(one_lies: jax.Array) -> list[dict[str, jax.Array]]:
            def said(shares: jax.Array) -> jax.Array:
                lie = jnp.where(shares[0] < at_first, 0.0, 1.0)
                return shares.at[0].set(jnp.where(one_lies, lie, shares[0]))

            of = repairs.clients_accuracy(task, few, said, chunk=chunk)
            left, keep, info = repairs.prune(layer, params, first, of)
            adjusted, more = repairs.adjust_extreme_weights(layer, left, of, keep=keep)
            return [measured(left, info["pruned"]), measured(adjusted, more["zeroed"])]

        adjusted, info = repairs.adjust_extreme_weights(layer, pruned, validation, keep=kept)
        of_clients = jax.lax.map(stopped_by_clients, jnp.array([False, True]))
        pruning = rows_of(orders, by_order)
        stops = {
            "the server's, pruned": pruning["ranking vote, after the ReLU"],
            "the server's, pruned + AW": measured(adjusted, info["zeroed"]),
        }
        for stage, results in zip(("pruned", "pruned + AW"), of_clients, strict=True):
            names = f"the clients', {stage}", f"the clients', one lies, {stage}"
            stops |= rows_of(names, results)
        return {
            "pruning": pruning,
            "extreme-weights": rows_of([f"of the {which}" for which in whose], by_deviation),
            "validation": stops,
        }

    return jax.jit(tried)


def main(args: Args) -> None:
    """Try all choices on every model, then write the averages."""
    if args.seeds < 1:
        raise ValueError(f"--seeds must be at least 1, got {args.seeds}")
    of_runs = wu_pruning.Args(
        part=args.part,
        pairs=args.pairs,
        alpha=args.alpha,
        attackers_steps=args.attackers_steps,
        data_dir=args.data_dir,
        out=args.out,
        smoke=args.smoke,
    )
    setting_name = "mnist" if args.part == "pairs" else args.part
    setting = wu_pruning.SETTINGS[setting_name]
    inputs = wu_pruning.Inputs(setting, of_runs)
    shape = wu_pruning.Shape(setting_name, 2 if args.smoke else setting.rounds, setting.pixels)
    folder = args.out / (args.part + ("-smoke" if args.smoke else ""))
    pairs = wu_pruning.chosen_pairs(of_runs, wu_pruning.FROM_NINE + wu_pruning.TO_NINE)
    runs = [(wu_pruning.Case(shape, v, t), seed) for v, t in pairs for seed in range(args.seeds)]
    for case, seed in runs:
        cell = wu_pruning.name_of(case, seed), wu_pruning.settings_of(case, seed, inputs)
        file = wu_pruning.model_file(folder, case, seed)
        if report.load_cell(folder, *cell) is None or not file.exists():
            raise ValueError(
                f"no model of pair {case.victim}-{case.target}, seed {seed}, trained with the present "
                f"settings is in {folder}: run wu_pruning.py --part {args.part} --keep-models first, "
                "with the same --pairs, --seeds and --out"
            )

    tried, rows = program(inputs), []
    for case, seed in tqdm(runs, unit="model"):
        with np.load(wu_pruning.model_file(folder, case, seed)) as file:
            trained = jnp.asarray(file["trained"])
        now = inputs.numbers(case, seed, None)
        results = jax.device_get(tried(trained, now, inputs.pool, inputs.validation, inputs.test))
        pair = f"{case.victim}-{case.target}"
        rows += [
            {"pair": pair, "seed": seed, "table": table, "choice": choice}
            | {name: float(value) for name, value in result.items()}
            for table, choices in results.items()
            for choice, result in choices.items()
        ]

    folder = args.out / f"choices-{folder.name}"
    report.write_rows(folder / "runs", [row | report.provenance() for row in rows])
    command = command_line("wu_choices.py", args)
    for name, index, what in (
        ("pruning", "order", "what decides the order of pruning"),
        ("extreme-weights", "mean and deviation", "Delta = 3 after ranking vote"),
        ("validation", "accuracy", "whose accuracy stops ranking vote and AW"),
    ):
        mine = [row for row in rows if row["table"] == name]
        text = report.write_table(
            folder / name,
            averages(mine, index),
            {},
            title=f"Wu et al. (2020), choices left open: {what}",
            command=command,
            index=index,
            columns="column",
            value="value",
            metric="accuracy",
            notes=f"Averages of {', '.join(f'{v}-{t}' for v, t in pairs)}. {removed(mine)}",
        )
        print("\n" + text)
    print(f"\nrows, tables and figures are in {folder}")


def averages(rows: list[dict[str, Any]], index: str) -> list[dict[str, Any]]:
    """Of test accuracy and attack success, over the pairs of each seed."""
    values: dict[tuple[str, int, str], list[float]] = {}
    for row in rows:
        for column in ("test", "attack"):
            values.setdefault((row["choice"], row["seed"], column), []).append(row[column])
    return [
        {index: choice, "column": column, "seed": seed, "value": float(np.mean(own))}
        for (choice, seed, column), own in values.items()
    ]


def removed(rows: list[dict[str, Any]]) -> str:
    """How many neurons or weights went, and in how many runs the backdoor with them."""
    texts = []
    for choice in dict.fromkeys(row["choice"] for row in rows):
        mine = [row for row in rows if row["choice"] == choice]
        numbers = [row["number"] for row in mine]
        low = sum(row["attack"] < 0.1 for row in mine)
        span = f"{np.mean(numbers):.1f} ({min(numbers):g} to {max(numbers):g})"
        texts.append(f"{choice}: {span}, {low} of {len(mine)}")
    return f"Removed, and attack success below 10 %: {'; '.join(texts)}."


if __name__ == "__main__":
    use_compilation_cache()
    main(tyro.cli(Args))
