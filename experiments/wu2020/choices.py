"""Choices that Wu et al. leave open, tried on trained models: no training, a few minutes per model.

  python experiments/wu2020/pruning.py --part pairs --keep-models
  python experiments/wu2020/choices.py --part pairs

The paper leaves open whether activations are taken before or after the ReLU, which p the majority vote
has (30 to 70 % "perform well"), and, for the extreme weights of a pruned layer, whose mean and deviation
count: those of the neurons that are left (as in the library), of the whole layer with its zeros, or of
the layer before it was pruned, as where pruning is a mask over weights that are still there. A server
without validation data asks the clients for their accuracies instead (sections IV, IV-A): here it takes
their mean, each of 500 of a client's images. An attacker may lie: 1 until its own accuracy falls, then 0.

Results go to ``--out``/choices-<part>: ``pruning``, ``extreme-weights`` and ``validation``, averages over
the pairs; beside the rows of the first ``runs``, every model by itself.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
import pruning
import wu_setting
from tqdm import tqdm
from wu_repair import Array, Images, Judge, Measures, chunk_size, judge
from wu_setting import Inputs, Numbers, Settings

from fedjax_robust import repairs, report, study
from fedjax_robust.types import FederatedData

DELTA = 3.0
"""As in Table I, which prints 131 to 139 weights zeroed."""
RATES = (0.3, 0.5, 0.7)
OWN = 500
"""Images on which a client measures the accuracy."""
Choices = dict[str, Measures]
"""Name of a choice -> test, attack, number"""


@dataclasses.dataclass
class Args(study.Args):
    """Choices the paper leaves open, on models that pruning.py --keep-models kept."""

    part: Literal["pairs", "concise"] = "pairs"
    """The network: 20 and 50 filters, or 8 and 16."""
    pairs: tuple[str, ...] = ()
    """Victim and target labels such as 9-0; default all 18."""
    alpha: float | None = None
    """The attackers' amplification in the models' training, if not the setting's."""
    attackers_steps: int | None = None
    """The attackers' local steps in the models' training, if not the setting's."""
    out: Path = Path("results/wu2020")
    """Where pruning.py put its results, and where these go."""


def named(names: Iterable[str], stacked: Mapping[str, Array]) -> Choices:
    """{name: result} of results stacked in the names' order."""
    return {
        name: {key: values[i] for key, values in stacked.items()} for i, name in enumerate(names)
    }


# --- One model. Maps, not loops: what they call is compiled once. --------------------------------


def orders(inputs: Inputs, params: Array, data: FederatedData) -> dict[str, Array]:
    """Votes of activations after and before the ReLU, majority votes of several rates."""
    orders = {}
    for relu, when in ((True, "after"), (False, "before")):
        active = repairs.client_activations(inputs.layer, params, data, relu=relu)
        orders[f"ranking vote, {when} the ReLU"] = repairs.ranking_vote(repairs.ranks(active))
        for rate in RATES:
            votes = repairs.votes(active, rate)
            orders[f"majority vote, {rate:.0%}, {when} the ReLU"] = repairs.majority_vote(votes)
    return orders


def counted(by: Judge, params: Array, number: Array) -> Measures:
    return by.measured(params) | {"number": number}


def whose_deviation(
    layer: repairs.ConvolutionLayer, params: Array, pruned: Array, keep: Array, by: Judge
) -> Choices:
    """Weights beyond Delta = 3 deviations, of which weights?"""
    neurons, of_neurons = repairs.without_extreme_weights(layer, pruned, DELTA, keep)
    zeros, of_zeros = repairs.without_extreme_weights(layer, pruned, DELTA)
    whole, _ = repairs.without_extreme_weights(layer, params, DELTA)
    before = repairs.with_neurons(layer, whole, keep)
    whose = ("neurons left", "layer with its zeros", "layer before pruning")
    results = jax.lax.map(
        lambda one: counted(by, *one),
        (
            jnp.stack([neurons, zeros, before]),
            jnp.stack([of_neurons, of_zeros, jnp.sum(before != pruned)]),
        ),
    )
    return named([f"of the {which}" for which in whose], results)


def stopped_by_clients(
    inputs: Inputs, params: Array, order: Array, data: FederatedData, by: Judge
) -> Choices:
    """Ranking vote, then AW, while the mean of the clients' accuracies does not fall."""
    task, layer, chunk = inputs.task, inputs.layer, chunk_size()
    pool, rows, sizes = data
    few = FederatedData(pool, rows[:, :OWN], jnp.minimum(sizes, OWN))
    attacker = FederatedData(pool, rows[:1, :OWN], jnp.minimum(sizes[:1], OWN))
    at_first = repairs.clients_accuracy(task, attacker, chunk=chunk)(params)

    def stopped(one_lies: Array) -> list[Measures]:
        def said(shares: Array) -> Array:
            lie = jnp.where(shares[0] < at_first, 0.0, 1.0)
            return shares.at[0].set(jnp.where(one_lies, lie, shares[0]))

        of = repairs.clients_accuracy(task, few, said, chunk=chunk)
        left, keep, info = repairs.prune(layer, params, order, of)
        adjusted, more = repairs.adjust_extreme_weights(layer, left, of, keep=keep)
        return [counted(by, left, info["pruned"]), counted(by, adjusted, more["zeroed"])]

    results = jax.lax.map(stopped, jnp.array([False, True]))
    stops: Choices = {}
    for stage, stacked in zip(("pruned", "pruned + AW"), results, strict=True):
        stops |= named((f"the clients', {stage}", f"the clients', one lies, {stage}"), stacked)
    return stops


def tried(
    inputs: Inputs, cell: Settings, params: Array, now: Numbers, images: Images
) -> dict[str, Choices]:
    """{table: {choice: test, attack, number}} of one trained model (d,)."""
    layer = inputs.layer
    data = FederatedData(images.pool, now.rows, now.sizes)
    by = judge(inputs, cell, images, now)

    def pruned_by(order: Array) -> tuple[Array, Array, Measures]:
        left, keep, info = repairs.prune(layer, params, order, by.validation)
        return left, keep, counted(by, left, info["pruned"])

    voted = orders(inputs, params, data)
    left, keep, results = jax.lax.map(pruned_by, jnp.stack([*voted.values()]))
    pruning = named(voted, results)
    usual = "ranking vote, after the ReLU"
    deviations = whose_deviation(layer, params, left[0], keep[0], by)
    adjusted, info = repairs.adjust_extreme_weights(layer, left[0], by.validation, keep=keep[0])
    stops = {
        "the server's, pruned": pruning[usual],
        "the server's, pruned + AW": counted(by, adjusted, info["zeroed"]),
    }
    stops |= stopped_by_clients(inputs, params, voted[usual], data, by)
    return {"pruning": pruning, "extreme-weights": deviations, "validation": stops}


# --- All models ----------------------------------------------------------------------------------


def main(args: Args) -> None:
    """Try all choices on every model, then write the averages."""
    study.check_args(args)
    of_models = pruning.Args(
        part=args.part,
        pairs=args.pairs,
        alpha=args.alpha,
        rounds=args.rounds,
        attackers_steps=args.attackers_steps,
        data_dir=args.data_dir,
        out=args.out,
        smoke=args.smoke,
    )
    inputs, keys = pruning.load(of_models), pruning.keys_of(args.part)
    models = pruning.folder_of(of_models)
    pairs = wu_setting.chosen_pairs(args.pairs, wu_setting.FROM_NINE + wu_setting.TO_NINE)
    cells = [cell for v, t in pairs for cell in pruning.cells_of(of_models, inputs, v, t)]
    runs = [{**cell, "seed": seed} for cell in cells for seed in range(args.seeds or 1)]
    for run in runs:
        trained_now = report.load_cell(models, study.run_name(run, keys), run)
        if trained_now is None or not wu_setting.model_file(models, run, keys).exists():
            raise ValueError(
                f"no model of pair {run['victim']}-{run['target']}, seed {run['seed']}, trained with "
                f"the present settings is in {models}: run pruning.py --part {args.part} "
                "--keep-models first, with the same --pairs, --seeds and --out"
            )

    images = Images(inputs.pool, inputs.validation, inputs.test)
    shape = {k: v for k, v in runs[0].items() if k not in ("victim", "target", "seed")}
    compiled = jax.jit(lambda params, now, images: tried(inputs, shape, params, now, images))
    rows: list[dict[str, Any]] = []
    for run in tqdm(runs, unit="model"):
        with np.load(wu_setting.model_file(models, run, keys)) as file:
            trained = jnp.asarray(file["trained"])
        now = wu_setting.numbers(inputs, run)
        results = jax.device_get(compiled(trained, now, images))
        rows += [
            {"pair": f"{run['victim']}-{run['target']}", "seed": run["seed"], "table": table}
            | {"choice": choice}
            | {name: float(value) for name, value in result.items()}
            for table, choices in results.items()
            for choice, result in choices.items()
        ]
    write(args, args.out / f"choices-{models.name}", rows, shape)


def write(args: Args, folder: Path, rows: list[dict[str, Any]], shape: Settings) -> None:
    origin = report.provenance()
    report.write_rows(folder / "pruning" / "runs", [row | origin for row in rows])
    pairs = ", ".join(dict.fromkeys(row["pair"] for row in rows))
    for name, line, what in (
        ("pruning", "order", "what decides the order of pruning"),
        ("extreme-weights", "mean and deviation", "Delta = 3 after ranking vote"),
        ("validation", "accuracy", "whose accuracy stops ranking vote and AW"),
    ):
        mine = [row for row in rows if row["table"] == name]
        text = report.write_table(
            folder / name,
            [row | origin for row in averages(mine, line)],
            {},
            title=f"Wu et al. (2020), choices left open: {what}",
            command=study.command(__file__, args),
            line=line,
            columns="column",
            value="value",
            metric="accuracy",
            notes=f"Averages of {pairs}. {removed(mine)}",
            settings=study.settings(args, [shape]),
        )
        print("\n" + text)
    print(f"\nrows, tables and figures are in {folder}")


def averages(rows: Sequence[Settings], line: str) -> list[dict[str, Any]]:
    """Of test accuracy and attack success, over the pairs of each seed."""
    values: dict[tuple[str, int, str], list[float]] = {}
    for row in rows:
        for column in ("test", "attack"):
            values.setdefault((row["choice"], row["seed"], column), []).append(row[column])
    return [
        {line: choice, "column": column, "seed": seed, "value": float(np.mean(own))}
        for (choice, seed, column), own in values.items()
    ]


def removed(rows: Sequence[Settings]) -> str:
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
    study.main(Args, main)
