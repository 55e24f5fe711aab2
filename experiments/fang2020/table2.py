"""Tables 2 and 3 of Fang et al. (2020): testing error rates under five attacks on three rules.

  python experiments/fang2020/table2.py --table 2e              Breast Cancer, data bundled
  python experiments/fang2020/table2.py --table 2a --seeds 5    logistic regression on MNIST
  python experiments/fang2020/table2.py --table 2b --clients 20 --rounds 200 --learning-rate 0.1

Table 2b's runs also give Table 3, their best iterates. The setting, and what the paper leaves open:
``fang_setting.py``. Results go to ``--out``/table2/<table>: one file per finished run (a killed script
goes on after the last one), rows, ``table.md``, figures and ``about.json``.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any, Literal

import fang_setting
from fang_setting import ATTACKS, RULES, SETTINGS, Data, Setting

from fedjax_robust import report, study

Printed = dict[str, tuple[float, ...]]
"""rule -> the first five of ATTACKS"""
PAPER: dict[str, Printed] = {
    "2a": {
        "Krum": (0.14, 0.13, 0.13, 0.72, 0.80),
        "Trimmed mean": (0.12, 0.11, 0.13, 0.23, 0.52),
        "Median": (0.13, 0.13, 0.15, 0.19, 0.29),
    },
    "2b": {
        "Krum": (0.11, 0.10, 0.10, 0.75, 0.77),
        "Trimmed mean": (0.06, 0.07, 0.07, 0.14, 0.23),
        "Median": (0.06, 0.06, 0.16, 0.28, 0.32),
    },
    "2c": {
        "Krum": (0.16, 0.16, 0.16, 0.90, 0.91),
        "Trimmed mean": (0.10, 0.10, 0.12, 0.26, 0.28),
        "Median": (0.09, 0.12, 0.12, 0.21, 0.29),
    },
    "2d": {
        "Krum": (0.29, 0.30, 0.43, 0.73, 0.81),
        "Trimmed mean": (0.17, 0.25, 0.37, 0.69, 0.69),
        "Median": (0.17, 0.20, 0.17, 0.57, 0.63),
    },
    "2e": {
        "Krum": (0.03, 0.04, 0.14, 0.17, 0.17),
        "Trimmed mean": (0.02, 0.03, 0.05, 0.14, 0.15),
        "Median": (0.03, 0.03, 0.04, 0.17, 0.18),
    },
    "3": {  # the runs of 2b, each with its best iterate
        "Krum": (0.10, 0.10, 0.09, 0.69, 0.70),
        "Trimmed mean": (0.06, 0.06, 0.07, 0.12, 0.18),
        "Median": (0.06, 0.06, 0.06, 0.11, 0.32),
    },
}


@dataclasses.dataclass
class Args(study.Args):
    """Reproduce Table 2 of Fang et al. (2020). Errors are fractions of the test set."""

    table: Literal["2a", "2b", "2c", "2d", "2e", "3"] = "2e"
    """Which table: LR MNIST, DNN MNIST, DNN Fashion-MNIST, ResNet20 CH-MNIST, DNN Breast Cancer; 3, the
    best iterates of 2b, comes with 2b."""
    clients: int = fang_setting.CLIENTS
    """Clients; 20 % of them are malicious."""
    learning_rate: float | None = None
    """Step on the mean gradient, instead of the table's."""
    evaluations: int | None = None
    """Evaluations per run, evenly spread; default 50 (2a, 2e) or 10. Table 3 takes the best of them; the
    paper's has all rounds."""
    client_chunk: int | None = None
    """Train so many clients at a time; default all, of networks 1 on a CPU and 10 elsewhere."""
    rules: tuple[Literal["Krum", "Trimmed mean", "Median"], ...] = RULES
    """Rules to run."""
    attacks: tuple[
        Literal["NoAttack", "Gaussian", "LabelFlip", "Partial", "Full", "FullOwnRule"], ...
    ] = ATTACKS
    """Attacks to run."""
    out: Path = Path("results/fang2020")
    """Where results go."""


def main(args: Args) -> None:
    """Run what is missing of one table, then print and draw it."""
    name = "2b" if args.table == "3" else args.table
    at = with_overrides(SETTINGS[name], args)
    clients = fang_setting.SMOKE_CLIENTS if args.smoke else args.clients
    try:
        data = Data(at, args.data_dir)
    except FileNotFoundError as error:
        if name != "2d":
            raise
        print(f"Table {name} as printed (testing error rate, fraction):\n\n{printed_table(name)}")
        print(f"\nOurs is waiting for the data. {error}")
        return
    folder = args.out / "table2" / (name + suffix(args))
    keys = ("rule", "attack")
    cells = [
        cell
        for cell in study.grid(
            fang_setting.cell_settings(name, at, clients) | {"evaluations": at.evaluations},
            rule=args.rules,
            attack=args.attacks,
        )
        # Krum's attack goes by Krum anyway.
        if not (cell["rule"] == "Krum" and cell["attack"] == "FullOwnRule")
    ]
    # A DNN's clients one at a time take half the time on a CPU; dense networks do not.
    plan = fang_setting.plan(at, data, study.client_chunk(args.client_chunk, small=at.small))
    program = (
        study.together(plan, data.inputs, measure)
        if at.small
        else study.one_by_one(plan, data.inputs, measure, folder, keys)
    )
    jobs = study.threads(small=at.small)
    table = study.Study(folder, cells, keys, program, range(at.seeds), jobs=jobs)
    found = study.run(table, args.cell)
    if found is None:
        return
    rows = study.without(found, "curve")
    title = f"Fang et al. (2020), Table {name}: {at.data}, {clients} clients"
    about: dict[str, Any] = {
        "command": study.command(__file__, args),
        "notes": fang_setting.notes(at, data, clients),
        "settings": study.settings(args, rows, **at._asdict()),
    }
    print(report.write_table(folder, rows, printed(name, args), title=title, **about))
    if name == "2b":
        about["notes"] += f"; the lowest of {len(rounds(at))} evaluations per run"
        best = report.write_table(
            folder.with_name(folder.name.replace("2b", "3", 1)),
            rows,
            printed("3", args),
            title=f"Fang et al. (2020), Table 3: best iterate, {at.data}, {clients} clients",
            value="best_error",
            metric="lowest testing error rate of a run",
            **about,
        )
        print(best)
    curves: dict[str, dict[str, list[Any]]] = {}
    for row in found:
        curves.setdefault(row["rule"], {}).setdefault(row["attack"], []).append(row["curve"])
    report.plot_curves(folder / "curves.png", rounds(at), curves, title=title)
    print(f"rows, table and figures are in {folder}")


def with_overrides(at: Setting, args: Args) -> Setting:
    names = ("seeds", "rounds", "learning_rate", "evaluations")
    given = {name: getattr(args, name) for name in names if getattr(args, name) is not None}
    return at._replace(**({"rounds": 4, "seeds": 1} if args.smoke else {}) | given)


def suffix(args: Args) -> str:
    """What differs from the paper's setting."""
    words = [f"{args.clients}-clients"] if args.clients != fang_setting.CLIENTS else []
    words += [f"{args.rounds}-rounds"] if args.rounds else []
    return "".join(f"-{word}" for word in (["smoke"] if args.smoke else words))


def rounds(at: Setting) -> Any:
    return study.evaluated(at.rounds, at.every)


def measure(history: study.History) -> dict[str, Any]:
    return fang_setting.measure(history) | {"curve": history["test_error"]}


def printed(name: str, args: Args) -> dict[report.Cell, float]:
    """{(attack, rule): printed error} of the cells that are run."""
    return {
        (attack, rule): value
        for rule in args.rules
        for attack, value in zip(ATTACKS, PAPER[name][rule], strict=False)
        if attack in args.attacks
    }


def printed_table(name: str) -> str:
    lines = [
        {"rule": rule} | dict(zip(ATTACKS, v, strict=False)) for rule, v in PAPER[name].items()
    ]
    return report.markdown_table(lines)


if __name__ == "__main__":
    study.main(Args, main)
