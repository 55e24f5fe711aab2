"""Tables 4, 6, 7b and 8 of Fang et al. (2020): logistic regression on MNIST, the setting of Table 2a.

  python experiments/fang2020/tables.py --table 4     transfer: attacks made for one rule on another
  python experiments/fang2020/tables.py --table 6     the defences ERR, LFR, Union (section 5)
  python experiments/fang2020/tables.py --table 7b    Bulyan under the attacks on Krum (appendix A)
  python experiments/fang2020/tables.py --table 8     the deviation goal (appendix B)

What the paper leaves open, and what is taken here; ``variants.py`` measures the other readings:

- Table 6: rows of equal impact are removed in random order, f and beta stay 20 after the removal, and
  the 100 validation examples are drawn from the test set once per run.
- Table 7b: both Krum attacks search lambda against Krum; s is the direction of Krum's own choice (full)
  or of the mean of the compromised workers' updates (partial).
- Table 8: the directed goal on trimmed mean and median goes by the direction of the mean of all
  before-attack updates, as in Table 2a; the deviation goal needs no direction.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, NamedTuple

import fang_setting
import jax
import jax.numpy as jnp
import numpy as np
from fang_setting import FULL, NOTHING, AttackAndKnowledge, Data, Setting

import fedjax_robust as fr
from fedjax_robust import aggregators, attacks, metrics, report, study

VALIDATION_EXAMPLES = 100
Batch = dict[str, jax.Array]
MakeRule = Callable[[int, fr.Task, Batch], fr.Aggregator]
"""number of malicious workers, task, validation examples -> rule"""
How = tuple[MakeRule, AttackAndKnowledge]


class Table(NamedTuple):
    """One table: what its lines and columns are, what each cell runs, and what is printed there."""

    title: str
    line: str
    columns: str
    cells: dict[report.Cell, How]
    paper: dict[report.Cell, float]


def krum(malicious: int, task: fr.Task, validation: Batch) -> fr.Aggregator:
    return aggregators.krum(malicious)


def trimmed_mean(malicious: int, task: fr.Task, validation: Batch) -> fr.Aggregator:
    return aggregators.trimmed_mean(malicious)


def median(malicious: int, task: fr.Task, validation: Batch) -> fr.Aggregator:
    return aggregators.median()


def bulyan(malicious: int, task: fr.Task, validation: Batch) -> fr.Aggregator:
    return aggregators.bulyan(malicious)


def defended(defence: Callable[..., fr.Aggregator], base: MakeRule, **options: Any) -> MakeRule:
    """``defence``: one of ``aggregators.err``, ``lfr``, ``union``."""

    def make(malicious: int, task: fr.Task, validation: Batch) -> fr.Aggregator:
        rule = base(malicious, task, validation)
        return defence(task, validation, malicious, base=rule, **options)

    return make


RULES: dict[str, MakeRule] = {"Krum": krum, "Trimmed mean": trimmed_mean, "Median": median}
DEFENCES = {"ERR": aggregators.err, "LFR": aggregators.lfr, "Union": aggregators.union}
NO_ATTACK = (attacks.no_attack(), NOTHING)
KRUM_PARTIAL = (attacks.fang_krum_partial(), NOTHING)
TRIM_PARTIAL = (attacks.fang_trim_partial(), NOTHING)
KRUM_FULL = (attacks.fang_krum_full(), FULL)
TRIM_FULL = (attacks.fang_trim_full(before=aggregators.mean()), FULL)
BY_RULE = {
    "No attack": NO_ATTACK,
    "Krum attack": KRUM_PARTIAL,
    "Trimmed mean attack": TRIM_PARTIAL,
}


def filled(lines: Any, columns: Any, numbers: str) -> dict[report.Cell, float]:
    """{(line, column): number} of numbers written as in the paper, line by line."""
    cells = [(line, column) for line in lines for column in columns]
    return dict(zip(cells, map(float, numbers.split()), strict=True))


def table_4() -> Table:
    paper = filled(BY_RULE, RULES, "0.14 0.12 0.13  0.70 0.15 0.18  0.14 0.25 0.20")
    cells = {(a, r): (RULES[r], BY_RULE[a]) for a, r in paper}
    return Table("transfer between rules, partial knowledge", "attack", "rule", cells, paper)


def table_6() -> Table:
    rules = {}
    for name, base in RULES.items():
        rules[name] = base
        for defence, make in DEFENCES.items():
            rules[f"{name} + {defence}"] = defended(make, base)
    paper = filled(
        rules,
        BY_RULE,
        "0.14 0.72 0.13  0.14 0.62 0.13  0.14 0.58 0.14  0.14 0.48 0.14 "
        "0.12 0.15 0.23  0.12 0.17 0.21  0.12 0.18 0.12  0.12 0.18 0.12 "
        "0.13 0.17 0.19  0.13 0.21 0.25  0.13 0.20 0.13  0.13 0.19 0.14",
    )
    cells = {(r, a): (rules[r], BY_RULE[a]) for r, a in paper}
    return Table("defences, partial knowledge", "rule", "attack", cells, paper)


def table_7b() -> Table:
    lines = {
        "No attack": NO_ATTACK,
        "Partial knowledge": KRUM_PARTIAL,
        "Full knowledge": KRUM_FULL,
    }
    paper = filled(lines, ["Bulyan"], "0.14 0.36 0.38")
    cells = {(a, r): (bulyan, lines[a]) for a, r in paper}
    return Table("Bulyan under the attacks on Krum", "attack", "rule", cells, paper)


def table_8() -> Table:
    deviation = (attacks.fang_krum_full(direction=jnp.ones_like), FULL)
    trim_deviation = (attacks.fang_trim_deviation(), FULL)
    lines = {
        "Deviation goal": (deviation, trim_deviation, trim_deviation),
        "Directed deviation goal": (KRUM_FULL, TRIM_FULL, TRIM_FULL),
    }
    paper = filled(lines, RULES, "0.87 0.10 0.12  0.80 0.52 0.29")
    cells = {
        (goal, rule): (make, attack)
        for goal, made in lines.items()
        for (rule, make), attack in zip(RULES.items(), made, strict=True)
    }
    title = "deviation goal and directed deviation goal, full knowledge"
    return Table(title, "attack", "rule", cells, paper)


TABLES = {"4": table_4(), "6": table_6(), "7b": table_7b(), "8": table_8()}


@dataclasses.dataclass
class Args(study.Args):
    """Reproduce Tables 4, 6, 7b and 8 of Fang et al. (2020). Errors are fractions of the test set."""

    table: Literal["4", "6", "7b", "8"] = "4"
    """Which table."""
    seeds: int = 5
    """Trials with other partitions, models, batches and validation examples."""
    only: tuple[str, ...] = ()
    """Names of the lines to run, such as "Krum + LFR"; default all."""
    out: Path = Path("results/fang2020")
    """Where results go."""


def main(args: Args) -> None:
    """Run what is missing of one table, then print and draw it."""
    table = TABLES[args.table]
    at = fang_setting.SETTINGS["2a"]._replace(rounds=args.rounds or (4 if args.smoke else 500))
    clients = fang_setting.SMOKE_CLIENTS if args.smoke else fang_setting.CLIENTS
    names = list(dict.fromkeys(line for line, _ in table.cells))
    if unknown := [name for name in args.only if name not in names]:
        raise ValueError(f"Table {args.table} has no line {unknown}; its lines are {names}")
    folder = args.out / f"table{args.table}{'-smoke' if args.smoke else ''}"
    usual = fang_setting.cell_settings(args.table, at, clients)
    keys = (table.line, table.columns)
    chosen = [cell for cell in table.cells if not args.only or cell[0] in args.only]
    cells = [usual | dict(zip(keys, cell, strict=True)) for cell in chosen]
    data = Data(at, args.data_dir)

    def how(cell: study.Settings) -> How:
        return table.cells[cell[table.line], cell[table.columns]]

    mine = study.Study(
        folder,
        cells,
        keys,
        program(how, at, data),
        range(1 if args.smoke else args.seeds),
        jobs=study.threads(),
    )
    rows = study.run(mine, args.cell)
    if rows is None:
        return
    text = report.write_table(
        folder,
        rows,
        {cell: number for cell, number in table.paper.items() if cell in chosen},
        title=f"Fang et al. (2020), Table {args.table}: {table.title}",
        command=study.command(__file__, args),
        line=table.line,
        columns=table.columns,
        notes=(
            f"Logistic regression on MNIST, {clients} workers, {usual['malicious']} compromised, "
            f"{at.rounds} rounds, step {at.learning_rate:g}, batch {at.batch_size}"
        ),
        settings=study.settings(args, rows, validation_examples=VALIDATION_EXAMPLES),
    )
    print(f"\n{text}\nrows, table and figure are in {folder}")


def program(
    how: Callable[[study.Settings], How], at: Setting, data: Data
) -> Callable[[study.Settings], study.Compute]:
    """``how``: a cell -> its rule and attack. Cells may have ``validation_examples``."""

    def inputs(run: study.Settings) -> dict[str, Any]:
        given = data.inputs(run)
        draw = jax.random.fold_in(jax.random.key(run["seed"]), 1_000_000)  # no round's key
        number = run.get("validation_examples", VALIDATION_EXAMPLES)
        rows = jax.random.choice(draw, len(given["test"]["y"]), (number,), replace=False)
        return given | {"validation": {k: jnp.asarray(v)[rows] for k, v in given["test"].items()}}

    def plan(cell: study.Settings, given: dict[str, Any]) -> study.Plan:
        make_rule, (attack, knowledge) = how(cell)
        sim = fr.Simulation(
            task=data.task,
            client=fr.local_sgd(data.task, cell["learning_rate"], cell["batch_size"]),
            aggregator=make_rule(cell["malicious"], data.task, given["validation"]),
            attack=attack,
            knowledge=knowledge,
            num_malicious=cell["malicious"],
        )
        evaluate = metrics.test_error(data.task, given["test"])
        return study.Plan(sim, given["data"], cell["rounds"], evaluate, at.every)

    return study.together(plan, inputs, measure)


def measure(history: study.History) -> dict[str, Any]:
    """Errors, the share of rounds in which a malicious row was selected, and what a defence caught."""
    found = fang_setting.measure(history)
    if "removed" in history:
        caught = metrics.detection(~history["removed"], history["malicious"])
        found |= {name: float(np.mean(caught[name])) for name in ("recall", "precision")}
    return found


if __name__ == "__main__":
    study.main(Args, main)
