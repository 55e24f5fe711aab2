"""What Tables 2a, 2e, 6 and 7b of Fang et al. (2020) depend on: readings that the paper leaves open.

  python experiments/fang2020/variants.py --table 2a    Krum and trimmed-mean attacks, LR on MNIST
  python experiments/fang2020/variants.py --table 2e    models, steps and scalings, Breast Cancer
  python experiments/fang2020/variants.py --table 6     defences under the attack on Krum
  python experiments/fang2020/variants.py --table 7b    Bulyan under the attacks on Krum

Each line changes one thing against ``table2.py`` or ``tables.py``, whose numbers are the line "as
printed". What came out is in the README.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, NamedTuple

import fang_setting
import jax
import jax.numpy as jnp
import numpy as np
import table2
import tables
from fang_setting import FULL, NOTHING, AttackAndKnowledge, Data, Setting
from tables import KRUM_FULL, KRUM_PARTIAL, MakeRule

import fedjax_robust as fr
from fedjax_robust import aggregators, attacks, report, study
from fedjax_robust.data import Dataset, partition

USUAL = "as printed"
GRADIENT_UNITS = {"epsilon": 0.01 * 0.1, "threshold": 1e-5 * 0.1}  # times the learning rate
MEAN_DIRECTION = (attacks.fang_krum_full(before=aggregators.mean()), FULL)


class Variant(NamedTuple):
    """One line: the cells that are run, column -> rule and attack, and what else changes."""

    cells: dict[str, tuple[MakeRule, AttackAndKnowledge]]
    change: Callable[[Setting], Setting] = lambda at: at
    change_data: Callable[[Dataset], Dataset] = lambda dataset: dataset
    change_partition: Callable[[fr.FederatedData], fr.FederatedData] = lambda data: data
    validation_examples: int = tables.VALIDATION_EXAMPLES


# --- Table 2 -------------------------------------------------------------------------------------


def first_groups_first(data: fr.FederatedData) -> fr.FederatedData:
    """Workers not permuted: the compromised ones are all workers of the first two labels' groups."""
    labels = jnp.argmax(partition.label_histogram(data, 10), axis=1)
    order = jnp.argsort(labels, stable=True)
    pool, rows, sizes = data
    return fr.FederatedData(pool, rows[order], sizes[order])


def min_max_scaled(dataset: Dataset) -> Dataset:
    """Features in [0, 1] over the training part, instead of mean 0 and variance 1."""
    low, high = dataset.train["x"].min(0), dataset.train["x"].max(0)

    def scale(batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        return {**batch, "x": (batch["x"] - low) / (high - low)}

    return dataset._replace(train=scale(dataset.train), test=scale(dataset.test))


def krum_pair(**options: float) -> tuple[AttackAndKnowledge, AttackAndKnowledge]:
    partial, full = attacks.fang_krum_partial(**options), attacks.fang_krum_full(**options)
    return (partial, NOTHING), (full, FULL)


def on_krum(**options: float) -> dict[str, Any]:
    partial, full = krum_pair(**options)
    return {"Krum Partial": (tables.krum, partial), "Krum Full": (tables.krum, full)}


ON_ALL = on_krum() | {
    f"{rule} {name}": (make, attack)
    for rule, make in (("Trimmed mean", tables.trimmed_mean), ("Median", tables.median))
    for name, attack in (("Partial", tables.TRIM_PARTIAL), ("Full", tables.TRIM_FULL))
}


def trained(model: str, learning_rate: float = 0.1) -> Callable[[Setting], Setting]:
    return lambda at: at._replace(model=model, learning_rate=learning_rate)


# --- Tables 6 and 7b -----------------------------------------------------------------------------


def first_rows_first(key: jax.Array, places: jax.Array) -> jax.Array:
    """A stable sort by falling impact: of equal rows the first, the compromised ones, are removed."""
    return places


def last_rows_first(key: jax.Array, places: jax.Array) -> jax.Array:
    """The last c of a stable sort by rising impact: of equal rows the last, honest, are removed."""
    return -places


Reading = Callable[[MakeRule], dict[str, MakeRule]]
"""a rule -> its defences under one reading"""


def plain(**options: Any) -> Reading:
    return lambda base: {
        name: tables.defended(defence, base, **options) for name, defence in tables.DEFENCES.items()
    }


def with_itself(base: MakeRule) -> dict[str, MakeRule]:
    return {"": base} | plain()(base)


def with_f_afterwards(f: int) -> Reading:
    """The defences, whose rule has another f or beta after the removal."""

    def defences(base: MakeRule) -> dict[str, MakeRule]:
        def make(defence: Any) -> MakeRule:
            def rule(malicious: int, task: fr.Task, validation: dict) -> fr.Aggregator:
                inner, rest = base(malicious, task, validation), base(f, task, validation)
                return defence(task, validation, malicious, base=inner, rest=rest)

            return rule

        return {name: make(defence) for name, defence in tables.DEFENCES.items()}

    return defences


def redrawn(base: MakeRule) -> dict[str, MakeRule]:
    """The defences, with other 100 examples of ``validation`` in each round."""

    def make(defence: Any) -> MakeRule:
        def rule(malicious: int, task: fr.Task, validation: dict) -> fr.Aggregator:
            inner = base(malicious, task, validation)
            pool = {name: jnp.asarray(values) for name, values in validation.items()}

            def aggregate(received: fr.Received, state: Any) -> Any:
                key = jax.random.fold_in(received.key, 1)
                few, all_of_them = tables.VALIDATION_EXAMPLES, len(pool["y"])
                rows = jax.random.choice(key, all_of_them, (few,), replace=False)
                batch = {name: values[rows] for name, values in pool.items()}
                return defence(task, batch, malicious, base=inner).aggregate(received, state)

            return fr.Aggregator(inner.init, aggregate)

        return rule

    return {name: make(defence) for name, defence in tables.DEFENCES.items()}


def on_defences(reading: Reading, others: bool, attack: AttackAndKnowledge = KRUM_PARTIAL) -> Any:
    """Table 6's column of the Krum attack: all defences of Krum, and LFR of the other rules."""
    cells = {
        f"Krum + {name}" if name else "Krum": (rule, attack)
        for name, rule in reading(tables.krum).items()
    }
    for base in ("Trimmed mean", "Median") if others else ():
        cells[f"{base} + LFR"] = reading(tables.RULES[base])["LFR"], attack
    return cells


def against_bulyan(epsilon: float = 0.01, threshold: float = 1e-5) -> fr.Attack:
    """Full knowledge, lambda halved from 1 until Bulyan's selection holds a crafted model.

    s is the direction of Bulyan's own aggregate. All rows are simulated, so it knows the rule.
    """

    def craft(view: fr.AttackerView, state: Any) -> Any:
        c = view.num_malicious
        rule = aggregators.bulyan(c)
        s = jnp.where(rule(view.updates) > 0, 1.0, -1.0)

        def rows(lam: jax.Array) -> jax.Array:
            return jnp.broadcast_to(-lam * s, (c, len(s)))

        def chosen(lam: jax.Array) -> jax.Array:
            updates = jnp.concatenate([rows(lam), view.updates[c:]])
            n = len(updates)
            received = fr.Received(updates, jnp.ones(n), jnp.arange(n), view.params, view.key)
            return jnp.any(rule.aggregate(received, ())[2]["selected"][:c])

        lam = jax.lax.while_loop(
            lambda lam: (lam >= threshold) & ~chosen(lam), lambda lam: lam / 2, jnp.float32(1)
        )
        noise = jax.random.normal(view.key, (c, len(s)))
        noise *= epsilon / jnp.linalg.norm(noise, axis=1, keepdims=True)
        return rows(lam) + noise.at[0].set(0), state

    return fr.Attack(craft=craft, needs=fr.Knowledge(others=True, rule=True))


def on_bulyan(full: AttackAndKnowledge, partial: AttackAndKnowledge | None = None) -> Any:
    cells = {"Partial knowledge": (tables.bulyan, partial)} if partial else {}
    return cells | {"Full knowledge": (tables.bulyan, full)}


VARIANTS: dict[str, dict[str, Variant]] = {
    "2a": {
        USUAL: Variant(ON_ALL),
        "epsilon 0": Variant(on_krum(epsilon=0.0)),
        "epsilon, threshold in gradient units": Variant(on_krum(**GRADIENT_UNITS)),
        "threshold 1e-4": Variant(on_krum(threshold=1e-4)),
        "s of the mean of all updates": Variant({"Krum Full": (tables.krum, MEAN_DIRECTION)}),
        "compromised: groups 0 and 1": Variant(ON_ALL, change_partition=first_groups_first),
    },
    "2e": {
        USUAL: Variant(ON_ALL),
        "LR": Variant(ON_ALL, trained("logistic_regression")),
        "LR, step 1": Variant(ON_ALL, trained("logistic_regression", 1.0)),
        "LR, step 0.01": Variant(ON_ALL, trained("logistic_regression", 0.01)),
        "LR, [0, 1]": Variant(ON_ALL, trained("logistic_regression"), min_max_scaled),
        "16 ReLU units": Variant(ON_ALL, trained("16 ReLU units")),
        "epsilon 0": Variant(on_krum(epsilon=0.0)),
    },
    "6": {
        USUAL: Variant(on_defences(with_itself, True)),
        "f = beta = 0 after the removal": Variant(on_defences(with_f_afterwards(0), True)),
        "f = 16 after the removal": Variant(on_defences(with_f_afterwards(16), False)),
        "ties: first rows removed first": Variant(on_defences(plain(ties=first_rows_first), False)),
        "ties: last rows removed first": Variant(on_defences(plain(ties=last_rows_first), False)),
        "validation redrawn each round": Variant(
            on_defences(redrawn, True), validation_examples=10_000
        ),
        "epsilon 0": Variant(on_defences(with_itself, True, krum_pair(epsilon=0.0)[0])),
    },
    "7b": {
        USUAL: Variant(on_bulyan(KRUM_FULL, KRUM_PARTIAL)),
        "epsilon 0": Variant(on_bulyan(*reversed(krum_pair(epsilon=0.0)))),
        "epsilon, threshold in gradient units": Variant(
            on_bulyan(*reversed(krum_pair(**GRADIENT_UNITS)))
        ),
        "s of the mean of all updates": Variant(on_bulyan(MEAN_DIRECTION)),
        "s of Bulyan's own aggregate": Variant(
            on_bulyan((attacks.fang_krum_full(before=aggregators.bulyan(20)), FULL))
        ),
        "lambda, s found against Bulyan": Variant(on_bulyan((against_bulyan(), FULL))),
    },
}


def printed(table: str) -> dict[str, float]:
    """column -> the printed error."""
    if table in tables.TABLES:
        paper = tables.TABLES[table].paper
        return {
            "6": {rule: x for (rule, attack), x in paper.items() if attack == "Krum attack"},
            "7b": {attack: x for (attack, _), x in paper.items()},
        }[table]
    names = fang_setting.ATTACKS
    return {
        f"{rule} {attack}": number
        for rule, numbers in table2.PAPER[table].items()
        for attack, number in zip(names, numbers, strict=False)
    }


@dataclasses.dataclass
class Args(study.Args):
    """Vary what tables of Fang et al. (2020) leave open. Errors are fractions of the test set."""

    table: Literal["2a", "2e", "6", "7b"] = "2a"
    """Which table."""
    seeds: int = 3
    """Trials."""
    only: tuple[str, ...] = ()
    """Names of the variants to run; default all."""
    out: Path = Path("results/fang2020/variants")
    """Where results go."""


def main(args: Args) -> None:
    """Run the variants, then print a line for each; every column's printed number stands beside it."""
    variants = VARIANTS[args.table]
    if unknown := [name for name in args.only if name not in variants]:
        raise ValueError(f"there is no variant {unknown} of {args.table}; there are {[*variants]}")
    usual = fang_setting.SETTINGS[args.table if args.table == "2e" else "2a"]
    of_table_2 = args.table in ("2a", "2e")
    usual = usual._replace(
        rounds=args.rounds or ((4 if of_table_2 else 2) if args.smoke else usual.rounds)
    )
    # Tables 6 and 7b have all workers also in smoke mode: f = 16 and Bulyan's 20 are of 100 workers.
    clients = fang_setting.SMOKE_CLIENTS if args.smoke and of_table_2 else fang_setting.CLIENTS
    folder = args.out / (args.table + ("-smoke" if args.smoke else ""))
    chosen = {name: v for name, v in variants.items() if not args.only or name in args.only}
    cells, programs = [], {}
    data_of = functools.cache(Data)  # most variants have the same
    for name, variant in chosen.items():
        at = variant.change(usual)
        data = data_of(at, args.data_dir, variant.change_data, variant.change_partition)
        programs[name] = tables.program(
            lambda cell, cells=variant.cells: cells[cell["column"]], at, data
        )
        common = fang_setting.cell_settings(args.table, at, clients)
        common |= {"variant": name, "validation_examples": variant.validation_examples}
        cells += study.grid(common, column=variant.cells)
    mine = study.Study(
        folder,
        cells,
        ("variant", "column"),
        lambda cell: programs[cell["variant"]](cell),
        range(1 if args.smoke else args.seeds),
        jobs=study.threads(),
    )
    rows = study.run(mine, args.cell)
    if rows is None:
        return
    columns = dict.fromkeys(row["column"] for row in rows)
    numbers = printed(args.table)
    text = report.write_table(
        folder,
        rows,
        {(name, column): numbers[column] for name in chosen for column in columns
         if column in chosen[name].cells},
        title=f"Fang et al. (2020), Table {args.table}: readings",
        command=study.command(__file__, args),
        line="variant",
        columns="column",
        notes=(
            f"{clients} workers, {fang_setting.malicious_of(clients)} compromised, {usual.rounds} rounds"
        ),
        settings=study.settings(args, rows),
    )  # fmt: skip
    print(f"\n{text}\nrows, table and figure are in {folder}")


if __name__ == "__main__":
    study.main(Args, main)
