"""What Tables 6 and 7b of Fang et al. (2020) depend on: readings that the paper leaves open.

  python experiments/fang_tables_variants.py --table 6    defences under the attack on Krum
  python experiments/fang_tables_variants.py --table 7b   Bulyan under the attacks on Krum

What came out (7b: 3 seeds; 6: one seed, whose spread is about 0.03):

  ====================================  =======  ====
  Table 7b, Bulyan                      partial  full
  ====================================  =======  ====
  printed                               0.36     0.38
  as in Table 7b, the paper's words     0.281    0.190
  epsilon 0                             0.340    0.243
  epsilon, threshold in gradient units  0.331    0.223
  s of the mean of all updates          -        **0.379**
  s of Bulyan's own aggregate           -        0.324
  lambda, s found against Bulyan        -        0.143
  ====================================  =======  ====

  ===================================  =====  =====  =====  =========  =========
  Table 6, attack on Krum, rule Krum   ERR    LFR    Union  Trim, LFR  Med., LFR
  ===================================  =====  =====  =====  =========  =========
  printed                              0.62   0.58   0.48   0.18       0.20
  as in Table 6, the paper's words     0.662  0.635  0.623  0.135      0.145
  f = beta = 0 after the removal       0.490  0.472  0.430  0.116      0.145
  f = 16 after the removal             0.581  0.608  0.650  -          -
  ties: first rows removed first       0.138  0.153  0.137  -          -
  ties: last rows removed first        0.682  0.797  0.651  -          -
  validation redrawn each round        0.577  0.604  0.656  0.133      0.146
  epsilon 0                            0.654  0.616  0.642  0.133      0.141
  ===================================  =====  =====  =====  =========  =========

The reading that matches 7b's full-knowledge cell is that of Table 2a. None matches Table 6's columns.

Each line changes one thing against ``fang_tables.py``, whose numbers are the line "as in Table ...".
The setting is that of Table 2a. Finished lines are kept, and a killed run goes on after them.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, NamedTuple

import fang_table2
import fang_tables
import jax
import jax.numpy as jnp
import numpy as np
import tyro
from common import use_compilation_cache
from fang_tables import FULL, KRUM_FULL, KRUM_PARTIAL, NOTHING, AttackAndKnowledge, MakeRule
from tqdm import tqdm

import fedjax_robust as fr
from fedjax_robust import aggregators, attacks, report

Cells = dict[str, tuple[MakeRule, AttackAndKnowledge, float]]
"""column -> rule, attack, the printed error"""


class Variant(NamedTuple):
    """One line."""

    cells: Cells
    validation_examples: int = fang_tables.VALIDATION_EXAMPLES


def first_rows_first(key: jax.Array, n: int) -> jax.Array:
    """A stable sort by falling impact: of equal rows the first, the compromised ones, are removed."""
    return jnp.arange(n)


def last_rows_first(key: jax.Array, n: int) -> jax.Array:
    """The last c of a stable sort by rising impact: of equal rows the last, honest, are removed."""
    return -jnp.arange(n)


def with_f_afterwards(f: int) -> Callable[[MakeRule], dict[str, MakeRule]]:
    """The defences, whose rule has another f or beta after the removal."""

    def defences(base: MakeRule) -> dict[str, MakeRule]:
        def make(defence: Any) -> MakeRule:
            def rule(malicious: int, task: fr.Task, validation: dict) -> fr.Aggregator:
                inner = base(malicious, task, validation)
                rest = base(f, task, validation)
                return defence(inner, task, validation, malicious, rest=rest)

            return rule

        return {name: make(defence) for name, defence in fang_tables.DEFENCES.items()}

    return defences


def redrawn(base: MakeRule) -> dict[str, MakeRule]:
    """The defences, with other 100 examples of ``validation`` in each round."""

    def make(defence: Any) -> MakeRule:
        def rule(malicious: int, task: fr.Task, validation: dict) -> fr.Aggregator:
            inner = base(malicious, task, validation)
            pool = {name: jnp.asarray(values) for name, values in validation.items()}

            def aggregate(received: fr.Received, state: Any) -> Any:
                key = jax.random.fold_in(received.key, 1)
                few, all_of_them = fang_tables.VALIDATION_EXAMPLES, len(pool["y"])
                rows = jax.random.choice(key, all_of_them, (few,), replace=False)
                batch = {name: values[rows] for name, values in pool.items()}
                return defence(inner, task, batch, malicious).aggregate(received, state)

            return fr.Aggregator(inner.init, aggregate)

        return rule

    return {name: make(defence) for name, defence in fang_tables.DEFENCES.items()}


def defended_columns(
    krum: dict[str, MakeRule],
    others: dict[str, dict[str, MakeRule]] | None = None,
    attack: AttackAndKnowledge = KRUM_PARTIAL,
) -> Cells:
    """Table 6's column of the Krum attack: all defences of Krum, and LFR of the other rules."""
    printed = fang_tables.TABLES["6"].paper
    cells: Cells = {}
    for name, rule in krum.items():
        line = f"Krum + {name}" if name else "Krum"
        cells[line] = rule, attack, printed[line, "Krum attack"]
    for base, rules in (others or {}).items():
        line = f"{base} + LFR"
        cells[line] = rules["LFR"], attack, printed[line, "Krum attack"]
    return cells


def plain(base: MakeRule, **options: Any) -> dict[str, MakeRule]:
    return {
        name: fang_tables.defended(defence, base, **options)
        for name, defence in fang_tables.DEFENCES.items()
    }


def with_others(readings: Any, attack: AttackAndKnowledge = KRUM_PARTIAL) -> Cells:
    """``readings``: rule -> its defences."""
    others = {name: readings(fang_tables.RULES[name]) for name in ("Trimmed mean", "Median")}
    return defended_columns(readings(fang_tables.krum), others, attack)


def as_printed(base: MakeRule) -> dict[str, MakeRule]:
    return {"": base} | plain(base)


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
            ones = jnp.ones(len(updates))
            ids = jnp.arange(len(updates))
            received = fr.Received(updates, ones, ids, view.params, view.key)
            return jnp.any(rule.aggregate(received, ())[2]["selected"][:c])

        lam = jax.lax.while_loop(
            lambda lam: (lam >= threshold) & ~chosen(lam), lambda lam: lam / 2, jnp.float32(1)
        )
        noise = jax.random.normal(view.key, (c, len(s)))
        noise *= epsilon / jnp.linalg.norm(noise, axis=1, keepdims=True)
        return rows(lam) + noise.at[0].set(0), state

    return fr.Attack(craft=craft, needs=fr.Knowledge(others=True, rule=True))


def on_bulyan(partial: AttackAndKnowledge | None, full: AttackAndKnowledge | None) -> Cells:
    cells: Cells = {}
    if partial is not None:
        cells["Partial knowledge"] = fang_tables.bulyan, partial, 0.36
    if full is not None:
        cells["Full knowledge"] = fang_tables.bulyan, full, 0.38
    return cells


def krum_attacks(**options: Any) -> tuple[AttackAndKnowledge, AttackAndKnowledge]:
    return (
        (attacks.fang_krum_partial(**options), NOTHING),
        (attacks.fang_krum_full(**options), FULL),
    )


GRADIENT_UNITS = {"epsilon": 0.01 * 0.1, "threshold": 1e-5 * 0.1}  # times the learning rate
IDENTICAL = (attacks.fang_krum_partial(epsilon=0.0), NOTHING)
BULYAN_DIRECTION = (attacks.fang_krum_full(before=aggregators.bulyan(20)), FULL)
MEAN_DIRECTION = (attacks.fang_krum_full(before=aggregators.mean()), FULL)
FIRST_TIES = plain(fang_tables.krum, ties=first_rows_first)
LAST_TIES = plain(fang_tables.krum, ties=last_rows_first)
VARIANTS: dict[str, dict[str, Variant]] = {
    "6": {
        "as in Table 6": Variant(with_others(as_printed)),
        "f = beta = 0 after the removal": Variant(with_others(with_f_afterwards(0))),
        "f = 16 after the removal": Variant(
            defended_columns(with_f_afterwards(16)(fang_tables.krum))
        ),
        "ties: first rows removed first": Variant(defended_columns(FIRST_TIES)),
        "ties: last rows removed first": Variant(defended_columns(LAST_TIES)),
        "validation redrawn each round": Variant(with_others(redrawn), 10_000),
        "epsilon 0": Variant(with_others(as_printed, IDENTICAL)),
    },
    "7b": {
        "as in Table 7b": Variant(on_bulyan(KRUM_PARTIAL, KRUM_FULL)),
        "epsilon 0": Variant(on_bulyan(*krum_attacks(epsilon=0.0))),
        "epsilon, threshold in gradient units": Variant(on_bulyan(*krum_attacks(**GRADIENT_UNITS))),
        "s of the mean of all updates": Variant(on_bulyan(None, MEAN_DIRECTION)),
        "s of Bulyan's own aggregate": Variant(on_bulyan(None, BULYAN_DIRECTION)),
        "lambda, s found against Bulyan": Variant(on_bulyan(None, (against_bulyan(), FULL))),
    },
}


@dataclasses.dataclass
class Args:
    """Vary what Tables 6 and 7b of Fang et al. (2020) leave open. Errors are fractions."""

    table: Literal["6", "7b"] = "7b"
    """Which table."""
    seeds: int = 3
    """Trials."""
    rounds: int | None = None
    """Rounds instead of the paper's 500."""
    only: tuple[str, ...] = ()
    """Names of the variants to run; default all."""
    data_dir: Path | None = None
    """Folder of the data sets."""
    out: Path = Path("results/fang_tables_variants")
    """Where results go."""
    smoke: bool = False
    """Few rounds and one seed; the numbers mean nothing."""


def main(args: Args) -> None:
    """Run the variants and print one line for each."""
    variants = VARIANTS[args.table]
    if unknown := [name for name in args.only if name not in variants]:
        raise ValueError(f"there is no variant {unknown} of {args.table}; there are {[*variants]}")
    clients, malicious = fang_table2.PARTICIPANTS, 20
    seeds = list(range(1 if args.smoke else args.seeds))
    setting = fang_table2.TABLES["2a"]._replace(rounds=args.rounds or (2 if args.smoke else 500))
    inputs = fang_table2.Inputs(setting, clients, args.data_dir)
    folder = args.out / (args.table + ("-smoke" if args.smoke else ""))
    printed = {
        column: f"{number:.2f}"
        for variant in variants.values()
        for column, (*_, number) in variant.cells.items()
    }
    lines: list[dict[str, Any]] = [{"variant": "printed"} | printed]
    for number, (name, variant) in enumerate(tqdm(variants.items(), unit="variant")):
        if args.only and name not in args.only:
            continue
        settings = {"variant": name, "rounds": setting.rounds, "clients": clients, "seeds": seeds}
        errors = report.load_cell(folder, f"variant-{number}", settings)
        if errors is None:
            errors = {}
            for column, (make_rule, attack, _) in variant.cells.items():
                history = fang_tables.run_seeds(
                    make_rule,
                    attack,
                    malicious,
                    setting,
                    inputs,
                    seeds,
                    validation_examples=variant.validation_examples,
                )
                errors[column] = np.asarray(history["test_error"])[:, -1]
            report.save_cell(folder, f"variant-{number}", settings, errors)
        line = {"variant": name}
        for column, values in errors.items():
            v = np.asarray(values)
            line[column] = f"{v.mean():.3f} ({v.min():.3f}-{v.max():.3f})"
        lines.append(line)
    columns = ["variant", *printed]
    text = (
        f"Testing error rate, fraction: mean (smallest-largest) of {len(seeds)} seeds, {clients} "
        f"workers, {malicious} compromised, {setting.rounds} rounds.\n\n"
        f"{report.markdown_table(lines, columns)}\n"
    )
    print(text)
    report.write_rows(folder / "rows", lines)
    (folder / "table.md").write_text(text)


if __name__ == "__main__":
    use_compilation_cache()
    main(tyro.cli(Args))
