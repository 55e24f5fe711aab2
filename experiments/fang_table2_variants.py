"""What the deviations from Table 2 of Fang et al. (2020) depend on: readings that the paper leaves open.

  python experiments/fang_table2_variants.py --table 2a    Krum and trimmed-mean attacks, LR on MNIST
  python experiments/fang_table2_variants.py --table 2e    models, steps and scalings, Breast Cancer

Each line changes one thing against ``fang_table2.py``, whose numbers are the line "as in Table 2x".
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, NamedTuple

import fang_table2
import flax.linen as nn
import jax.numpy as jnp
import numpy as np
import tyro
from common import use_compilation_cache
from tqdm import tqdm

import fedjax_robust as fr
from fedjax_robust import attacks, models, report
from fedjax_robust.data import Dataset, partition

FULL = fr.Knowledge(others=True, rule=True)
PARTIAL = fr.Knowledge()


class Variant(NamedTuple):
    """What is run, and what changes; None and identity leave it as in Table 2."""

    name: str
    attacks: dict[tuple[str, str], tuple[fr.Attack, fr.Knowledge]]
    """(rule, attack) -> attack; only these cells are run."""
    model: Callable[[int], nn.Module] | None = None
    learning_rate: float | None = None
    change_data: Callable[[Dataset], Dataset] = lambda dataset: dataset
    change_partition: Callable[[fr.FederatedData], fr.FederatedData] = lambda data: data


def first_groups_first(data: fr.FederatedData) -> fr.FederatedData:
    """Workers not permuted: the compromised ones are all workers of the first two labels' groups."""
    labels = jnp.argmax(partition.label_histogram(data, 10), axis=1)
    order = jnp.argsort(labels, stable=True)
    return data._replace(index=data.index[order], count=data.count[order])


def min_max_scaled(dataset: Dataset) -> Dataset:
    """Features in [0, 1] over the training part, instead of mean 0 and variance 1."""
    low, high = dataset.train["x"].min(0), dataset.train["x"].max(0)

    def scale(batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        return {**batch, "x": (batch["x"] - low) / (high - low)}

    return dataset._replace(train=scale(dataset.train), test=scale(dataset.test))


def krum(partial: dict[str, Any], full: dict[str, Any]) -> dict[Any, Any]:
    return {
        ("Krum", "Partial"): (attacks.fang_krum_partial(**partial), PARTIAL),
        ("Krum", "Full"): (attacks.fang_krum_full(**full), FULL),
    }


TRIM = {
    (rule, name): attack
    for rule in ("Trimmed mean", "Median")
    for name, attack in {
        "Partial": (attacks.fang_trim_partial(), PARTIAL),
        "Full": (attacks.fang_trim_full(before=fr.aggregators.mean()), FULL),
    }.items()
}
AS_PRINTED = krum({}, {}) | TRIM
GRADIENT_UNITS = {"epsilon": 0.01 * 0.1, "threshold": 1e-5 * 0.1}  # times the learning rate
VARIANTS = {
    "2a": [
        Variant("as in Table 2a", AS_PRINTED),
        Variant("epsilon 0", krum({"epsilon": 0.0}, {"epsilon": 0.0})),
        Variant("epsilon, threshold in gradient units", krum(GRADIENT_UNITS, GRADIENT_UNITS)),
        Variant("threshold 1e-4", krum({"threshold": 1e-4}, {"threshold": 1e-4})),
        Variant(
            "s of the mean of all updates",
            {("Krum", "Full"): (attacks.fang_krum_full(before=fr.aggregators.mean()), FULL)},
        ),
        Variant("compromised: groups 0 and 1", AS_PRINTED, change_partition=first_groups_first),
    ],
    "2e": [
        Variant("as in Table 2e", AS_PRINTED),
        Variant("LR", AS_PRINTED, fang_table2.logistic_regression),
        Variant("LR, step 1", AS_PRINTED, fang_table2.logistic_regression, 1.0),
        Variant("LR, step 0.01", AS_PRINTED, fang_table2.logistic_regression, 0.01),
        Variant("LR, [0, 1]", AS_PRINTED, fang_table2.logistic_regression, 0.1, min_max_scaled),
        Variant("16 ReLU units", AS_PRINTED, lambda k: models.MLP(k, hidden=(16,))),
        Variant("epsilon 0", krum({"epsilon": 0.0}, {"epsilon": 0.0})),
    ],
}


@dataclasses.dataclass
class Args:
    """Vary what Table 2 of Fang et al. (2020) leaves open. Errors are fractions of the test set."""

    table: Literal["2a", "2e"] = "2a"
    """Which sub-table."""
    seeds: int = 3
    """Trials."""
    rounds: int | None = None
    """Rounds instead of the paper's."""
    only: tuple[str, ...] = ()
    """Names of the variants to run; default all."""
    data_dir: Path | None = None
    """Folder of the data sets."""
    out: Path = Path("results/fang_table2_variants")
    """Where results go."""
    smoke: bool = False
    """Few clients and rounds and one seed; the numbers mean nothing."""


def main(args: Args) -> None:
    """Run the variants and print one line for each."""
    seeds = list(range(1 if args.smoke else args.seeds))
    clients = 20 if args.smoke else fang_table2.PARTICIPANTS
    printed = fang_table2.TABLES[args.table]
    lines = [{"variant": "printed"} | printed_errors(printed)]
    variants = [v for v in VARIANTS[args.table] if not args.only or v.name in args.only]
    if not variants:
        names = [v.name for v in VARIANTS[args.table]]
        raise ValueError(f"there is no variant {args.only} of {args.table}; there are {names}")
    for variant in tqdm(variants, unit="variant"):
        table = printed._replace(
            model=variant.model or printed.model,
            learning_rate=variant.learning_rate or printed.learning_rate,
            rounds=args.rounds or (4 if args.smoke else printed.rounds),
        )
        inputs = fang_table2.Inputs(
            table, clients, args.data_dir, variant.change_data, variant.change_partition
        )
        line = {"variant": variant.name}
        for (rule, name), (attack, knowledge) in variant.attacks.items():
            malicious = round(fang_table2.MALICIOUS_SHARE * clients)
            sim = fang_table2.simulation(table, inputs, rule, name, malicious)
            sim = sim._replace(attack=attack, knowledge=knowledge)
            history = fang_table2.run_together(sim, table, inputs, seeds)
            errors = np.asarray(history["test_error"])[:, -1]
            line[f"{rule} {name}"] = f"{errors.mean():.3f} ({errors.min():.3f}-{errors.max():.3f})"
        lines.append(line)
        report.write_rows(args.out / args.table, lines)
    text = (
        f"Testing error rate, fraction: mean (smallest-largest) of {len(seeds)} seeds, "
        f"{clients} clients.\n\n{report.markdown_table(lines)}\n"
    )
    print(text)
    (args.out / f"{args.table}.md").write_text(text)


def printed_errors(table: fang_table2.Table) -> dict[str, str]:
    return {
        f"{rule} {name}": f"{table.paper[rule][fang_table2.ATTACKS.index(name)]:.2f}"
        for rule, name in AS_PRINTED
    }


if __name__ == "__main__":
    use_compilation_cache()
    main(tyro.cli(Args))
