"""Figures 2 to 5 of Fang et al. (2020): testing error rates as one parameter of Table 2 is varied.

  python experiments/fang2020/figures.py --figure 2a-c     share of compromised workers ("2" for short)
  python experiments/fang2020/figures.py --figure 5b       epsilon of the attacks on Krum
  python experiments/fang2020/figures.py --figure directions --seeds 1

The setting is that of Table 2a (logistic regression on MNIST) or, for 2d-f and 3d-f, of Table 2b (DNN).
The paper prints its swept values and errors in the figures only, so the values are ours (``--points``
takes others). The text has one pair of numbers: the attacker estimates 72 % of the changing directions
correctly with 50 workers and 76 % with 100, which ``--figure directions`` measures.

Runs that differ in numbers alone (seeds, p, epsilon, the poisoned rounds) share a compiled program, a few
at a time; where shapes differ (workers, local steps, ...) each point has its own.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, NamedTuple

import fang_setting
import jax
import numpy as np
from fang_setting import CLIENTS, MALICIOUS_SHARE, NON_IID, RULES, SETTINGS, Data

from fedjax_robust import aggregators, attacks, metrics, report, study

RUNS_TOGETHER = 5
"""Runs in one program, and finished runs lost if it is killed; fewer would compile more often."""
VARIES = ("p", "epsilon", "poisoned")
"""What a figure may vary without another program."""
Point = dict[str, Any]


class Figure(NamedTuple):
    """One figure, or the parts of it for one model."""

    parameter: str
    """The rows' key of the swept parameter."""
    xlabel: str
    values: tuple[float, ...]
    smoke: tuple[float, ...]
    """The values for 20 workers and 4 rounds."""
    at: Callable[[Point, float], Point]
    """The usual point and a value -> what changes."""
    rules: tuple[str, ...]
    attacks: tuple[str, ...]
    says: str
    """What the paper's text says about it."""
    table: str = "2a"
    log_x: bool = False
    directions: bool = False
    """Whether to observe ``metrics.direction_agreement`` of the trimmed mean."""


def usual_point(clients: int) -> Point:
    """What a point of a figure may change in Table 2: workers, degree of non-IID, local steps per round,
    workers drawn in each round (None = all), the rule's f (None = the malicious ones), the attack's
    epsilon, the share of the rounds that are poisoned, drawn at random (None = all, without drawing)."""
    return {
        "clients": clients,
        "malicious": fang_setting.malicious_of(clients),
        "p": NON_IID,
        "steps": 1,
        "selected": None,
        "f": None,
        "epsilon": 0.01,
        "poisoned": None,
    }


def whole(value: float) -> int:
    if value != int(value) or value < 1:
        raise ValueError(f"the values of this figure are whole numbers >= 1, got {value:g}")
    return int(value)


def with_clients(point: Point, value: float) -> Point:
    return {"clients": whole(value), "malicious": round(MALICIOUS_SHARE * whole(value))}


FIVE = ("NoAttack", "Gaussian", "LabelFlip", "Partial", "Full")
TWO = ("NoAttack", "Partial")
COMPROMISED = Figure(
    "malicious_share", "share of compromised workers",
    (0.05, 0.10, 0.15, 0.20, 0.25, 0.30), (0.10, 0.30),
    lambda point, x: {"malicious": round(x * point["clients"])},
    RULES, FIVE,
    "the error under Fang's attacks rises with the share, from 0.10 to 0.15 on; label flipping raises "
    "it slightly, Gaussian noise not at all.",
)  # fmt: skip
NON_IIDNESS = Figure(
    "p", "degree of non-IID p",
    (0.1, 0.3, 0.5, 0.7, 0.9), (0.1, 0.9),
    lambda point, x: {"p": x},
    RULES, FIVE,
    "all errors rise with p, also without attack, but Krum's under Fang's attacks go up and down.",
)  # fmt: skip
FIGURES = {
    "2a-c": COMPROMISED,
    "2d-f": COMPROMISED._replace(table="2b"),
    "3a-c": NON_IIDNESS,
    "3d-f": NON_IIDNESS._replace(table="2b"),
    "4a": Figure(
        "steps", "local steps per round",
        (1, 2, 5, 10), (1, 2),
        lambda point, x: {"steps": whole(x)},
        ("Median",), TWO,
        "errors fall with more steps, with and without attack; with 10 the attack still raises the "
        "error by more than 30 %.",
    ),
    "4b": Figure(
        "clients", "workers (20 % compromised)",
        (20, 50, 100, 200), (20, 30),
        with_clients,
        ("Median",), TWO,
        "the attack is the more effective the more workers there are.",
        directions=True,
    ),
    "4c": Figure(
        "selected", "workers selected per round",
        (20, 40, 60, 80, 100), (10, 20),
        lambda point, x: {"selected": whole(x)},
        ("Median",), TWO,
        "with few selected, the number of compromised ones among them varies more.",
    ),
    "5a": Figure(
        "f", "values trimmed on each side, beta",
        (20, 25, 30, 35, 40, 45), (4, 6),
        lambda point, x: {"f": whole(x)},
        ("Trimmed mean",), TWO,
        "the error under attack falls with beta, the one without attack rises slightly.",
    ),
    "5b": Figure(
        "epsilon", "epsilon",
        (0.001, 0.01, 0.1, 1, 10), (0.001, 10),
        lambda point, x: {"epsilon": x},
        ("Krum",), ("Partial", "Full"),
        "the attacks work for a wide range of epsilon, and better the smaller it is.",
        log_x=True,
    ),
    "5c": Figure(
        "poisoned", "share of poisoned rounds",
        (0, 0.2, 0.4, 0.6, 0.8, 1), (0, 1),
        lambda point, x: {"poisoned": x},
        ("Median",), ("Partial", "Full"),
        "the more rounds are poisoned, the larger the error.",
    ),
    "directions": Figure(
        "clients", "workers (20 % compromised)",
        (50, 100), (20,),
        with_clients,
        ("Trimmed mean",), ("Partial",),
        "72 % of the directions are estimated correctly with 50 workers, 76 % with 100, on average.",
        table="2b",
        directions=True,
    ),
}  # fmt: skip
SHORT = {"2": "2a-c", "3": "3a-c"}
PAPER_DIRECTIONS = {("50", "all"): 0.72, ("100", "all"): 0.76}


@dataclasses.dataclass
class Args(study.Args):
    """Figures 2 to 5 of Fang et al. (2020). Errors are fractions of the test set."""

    figure: Literal[
        "2", "2a-c", "2d-f", "3", "3a-c", "3d-f", "4a", "4b", "4c", "5a", "5b", "5c", "directions"
    ] = "2"
    """Which figure; 2 and 3 mean 2a-c and 3a-c, the LR parts."""
    seeds: int = 3
    """Trials with other partitions, models, batches and poisoned rounds."""
    points: tuple[float, ...] = ()
    """Values of the swept parameter; default the script's."""
    clients: int = CLIENTS
    """Workers where they are not swept; 20 % of them are compromised."""
    rules: tuple[Literal["Krum", "Trimmed mean", "Median"], ...] = ()
    """Rules to run; default the figure's."""
    attacks: tuple[Literal["NoAttack", "Gaussian", "LabelFlip", "Partial", "Full"], ...] = ()
    """Attacks to run; default the figure's."""
    client_chunk: int | None = None
    """Train so many workers at a time; default all, of the DNN 1 on a CPU and 10 elsewhere."""
    out: Path = Path("results/fang2020/figures")
    """Where results go."""


def main(args: Args) -> None:
    """Run what is missing of one figure, then print and draw it."""
    name = SHORT.get(args.figure, args.figure)
    figure = with_overrides(FIGURES[name], args)
    usual_rounds = 30 if name == "directions" else SETTINGS[figure.table].rounds
    rounds = args.rounds or (4 if args.smoke else usual_rounds)
    at = SETTINGS[figure.table]._replace(rounds=rounds)
    clients = fang_setting.SMOKE_CLIENTS if args.smoke else args.clients
    data = Data(at, args.data_dir)
    folder = args.out / (name + ("-smoke" if args.smoke else ""))
    cells = cells_of(name, figure, fang_setting.training_settings(at), clients)
    keys = ("rule", "attack", figure.parameter)
    inputs = inputs_of(data)
    plan = plan_of(figure, at, data, study.client_chunk(args.client_chunk, small=at.small))
    program = (
        study.together(plan, inputs, measure, numbers=("epsilon",))
        if at.small
        else study.one_by_one(plan, inputs, measure, folder, keys)
    )
    mine = study.Study(
        folder,
        cells,
        keys,
        program,
        range(1 if args.smoke else args.seeds),
        varies=VARIES,
        at_once=RUNS_TOGETHER if at.small else 1,
        jobs=study.threads(small=at.small),
    )
    rows = study.run(mine, args.cell)
    if rows is None:
        return
    about: dict[str, Any] = {
        "command": study.command(__file__, args),
        "notes": describe(figure, at, data, usual_point(clients), rows),
        "settings": study.settings(args, rows, **at._asdict()),
    }
    if name == "directions":
        text = write_directions(folder, rows, about)
    else:
        model = "DNN" if at.model == "dnn" else "LR"
        text = report.write_sweep(
            folder,
            rows,
            x=figure.parameter,
            xlabel=figure.xlabel,
            title=f"Fang et al. (2020), Figure {name}: {model} on MNIST",
            log_x=figure.log_x,
            **about,
        )
    print(f"\n{text}\nrows, table and figure are in {folder}")


def with_overrides(figure: Figure, args: Args) -> Figure:
    if args.smoke:
        figure = figure._replace(
            values=figure.smoke, rules=figure.rules[:1], attacks=figure.attacks[-1:]
        )
    return figure._replace(
        values=tuple(sorted(set(args.points or figure.values))),
        rules=args.rules or figure.rules,
        attacks=args.attacks or figure.attacks,
    )


def cells_of(
    name: str, figure: Figure, training: dict[str, Any], clients: int
) -> list[dict[str, Any]]:
    usual = usual_point(clients)
    return [
        {
            "figure": name,
            **training,
            figure.parameter: value,
            **usual,
            **figure.at(usual, value),
            "rule": rule,
            "attack": attack,
        }
        for rule in figure.rules
        for attack in figure.attacks
        for value in figure.values
    ]


def inputs_of(data: Data) -> Callable[[study.Settings], dict[str, Any]]:
    """Partition, test set, and (rounds,) bool: which rounds are poisoned; None if all are."""
    return lambda run: data.inputs(run) | {"poisoned": poisoned_rounds(run)}


def poisoned_rounds(run: study.Settings) -> jax.Array | None:
    if run["poisoned"] is None:
        return None
    key = study.key(fang_setting.POISONED_ROUNDS, run["seed"])
    number = round(run["poisoned"] * run["rounds"])
    return jax.random.permutation(key, run["rounds"]) < number


def plan_of(figure: Figure, at: fang_setting.Setting, data: Any, chunk: int | None) -> Any:
    """A run of Table 2 with what the figure changes."""
    usual = fang_setting.plan(at, data, chunk)

    def plan(cell: study.Settings, given: dict[str, Any]) -> study.Plan:
        of = usual(cell, given)
        sim = of.sim._replace(clients_per_round=cell["selected"])
        if given["poisoned"] is not None:
            sim = sim._replace(attack=attacks.in_rounds(sim.attack, given["poisoned"]))
        if figure.directions:
            rule = aggregators.trimmed_mean(cell["malicious"])
            sim = sim._replace(observe=metrics.direction_agreement(rule))
        return of._replace(sim=sim)

    return plan


def measure(history: study.History) -> dict[str, Any]:
    """Errors, selection, and means over the rounds with malicious workers of the directions' shares."""
    shares = {
        key: float(np.nanmean(history[key]))
        for key in ("direction_agreement", "direction_agreement_moving")
        if key in history
    }
    return fang_setting.measure(history) | shares


def describe(
    figure: Figure, at: fang_setting.Setting, data: Data, usual: Point, rows: list[dict[str, Any]]
) -> str:
    """Settings, where the swept values come from, and what else was measured."""
    clients, malicious = usual["clients"], usual["malicious"]
    workers = {
        "clients": "20 % of the workers compromised",
        "malicious_share": f"{clients} workers",
    }.get(figure.parameter, f"{malicious} of {clients} workers compromised")
    notes = [
        f"{at.model} on {at.data} ({data.note}), {workers}, {at.rounds} rounds, "
        f"step {at.learning_rate:g}, batch {at.batch_size}.",
        "The swept values are ours; the paper has its own, and its errors, in the figure only.",
        f"Its text: {figure.says}",
    ]
    if figure.parameter != "clients":
        return " ".join(notes)
    if figure.table == "2b":
        notes[1] = (
            f"The averages are over {at.rounds} rounds from the initial model; the paper's run "
            f"has {SETTINGS[figure.table].rounds}."
        )
        return " ".join(notes)
    attacked = [row for row in rows if row["attack"] != "NoAttack"]
    found = report.summarize(attacked, "clients", "attack", "direction_agreement")
    shares = ", ".join(
        f"{summary.mean:.2f} with {float(number):g} workers"
        for (number, _), summary in found.items()
    )
    if shares:
        notes.append(f"Share of changing directions estimated correctly (trimmed mean): {shares}.")
    return " ".join(notes)


def write_directions(folder: Path, rows: list[dict[str, Any]], about: dict[str, Any]) -> str:
    """The paper's two shares beside ours, over all parameters and over those that the rule moves."""
    keys = {"all": "direction_agreement", "moving": "direction_agreement_moving"}
    long = [
        row | {"workers": f"{row['clients']:g}", "parameters": parameters, "share": row[key]}
        for parameters, key in keys.items()
        for row in rows
    ]
    run = {row["workers"] for row in long}
    return report.write_table(
        folder,
        long,
        {cell: number for cell, number in PAPER_DIRECTIONS.items() if cell[0] in run},
        title="Fang et al. (2020), section 4.2: directions that the partial attack estimates correctly",
        line="workers",
        columns="parameters",
        value="share",
        metric="share of changing directions estimated correctly",
        **about,
    )


if __name__ == "__main__":
    study.main(Args, main)
