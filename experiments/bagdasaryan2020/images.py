"""Backdoors in image classification: Figures 4 to 8, 10 and 11 of Bagdasaryan et al. (2020).

  python experiments/bagdasaryan2020/images.py --figure ...

  single-shot   4a  one attacker in one round
  repeated      4b  share of compromised participants
  pixel         5   a pattern of pixels instead
  injection     6   attacks in earlier and later rounds
  gamma         7   scaling factor
  multiple      8   several backdoors at once
  cosine        10  anomaly of the model that is submitted
  krum          11  the rule that takes one model

The settings, ``--setting mnist`` and ``cifar10``, are described in backdoor_setting.py. Figures 6, 7, 8,
10 and 11 of the paper are on word prediction; here they are on images. *Replacement* trains one model
and divides it among the attackers who are there; *Poisoning* is the same training by each of them on
its own data, without scaling. The models before the attack are kept in ``--out``/before.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
from backdoor_setting import GAMMA, SETTINGS, Inputs, smaller
from image_program import BEFORE, attack_round, program_of

from fedjax_robust import report, study

ROUNDS = 100
SHOWN = (-1, 0, 1, 2, 5, 10, 20, 40, 60, 80, 94)
"""Rounds since the attack, in tables."""
METHODS = ("Replacement", "Poisoning")
USUAL = {
    "attack": "Replacement",
    "backdoors": 1,  # how many at once
    "pixel": False,
    "attackers": 1,
    "single_shot": True,
    "constraint": "none",  # L_ano of constrain-and-scale
    "krum": False,  # all clients take part, and the attackers' model is not scaled
    "gamma": GAMMA,
    "alpha": 1.0,
}
VARIES = ("method", "backdoor", "rounds_before", "share", "number", "gamma", "alpha")
"""What needs no program of its own: traced numbers, data and names."""
Cell = dict[str, Any]


@dataclasses.dataclass
class Args(study.Args):
    """Backdoors on images. Accuracies are fractions."""

    figure: Literal[
        "single-shot", "repeated", "pixel", "injection", "gamma", "multiple", "cosine", "krum"
    ] = "single-shot"
    """What is measured."""
    setting: Literal["mnist", "cifar10"] = "mnist"
    """Data set, model and their hyper-parameters."""
    backdoor: str | None = None
    """One of the setting's backdoors, several that commas separate, or "all"; default its first."""
    seeds: int = 3
    """Trials with other splits, models, held-out images and batches."""
    rounds: int | None = None
    """Rounds of single-shot, repeated, pixel and injection, in the sixth of which the single shot is,
    instead of 100."""
    points: tuple[float, ...] = ()
    """Values of the swept parameter, instead of the figure's."""
    rounds_before: int | None = None
    """Rounds of training before the attack, instead of the setting's."""
    width: int | None = None
    """Channels of ResNet18's first stage, instead of 32 (cifar10)."""
    client_chunk: int | None = None
    """Train so many clients at a time, which bounds memory; default all, of ResNet18 1 on a CPU and 10
    elsewhere."""
    out: Path = Path("results/bagdasaryan2020/images")
    """Where results go."""


# --- Figures -------------------------------------------------------------------------------------


class Figure(NamedTuple):
    """How a figure's points are made and shown."""

    number: str
    points: Callable[[tuple[float, ...]], list[Cell]]
    """The swept values -> what changes in ``USUAL``, with the ``method`` that names a line."""
    values: tuple[float, ...] = ()
    """The swept values; none: the setting's rounds of injection, or nothing is swept."""
    x: str = "round"
    """``round``: rows are those of ``SHOWN``."""
    xlabel: str = "rounds since the attack"
    measures: tuple[str, ...] = ("backdoor", "main")
    rounds: int = ROUNDS
    average: bool = False
    """of all rounds, instead of the round of the attack"""
    log_x: bool = False


def shots(values: tuple[float, ...], pixel: bool = False) -> list[Cell]:
    return [{"method": method, "attack": method, "pixel": pixel} for method in METHODS]


def shares(values: tuple[float, ...]) -> list[Cell]:
    return [
        {"method": method, "attack": method, "share": share, "single_shot": False}
        for method in METHODS
        for share in values
    ]


def injections(values: tuple[float, ...]) -> list[Cell]:
    return [{"method": f"after {r:g} rounds", "rounds_before": round(r)} for r in values]


def gammas(values: tuple[float, ...]) -> list[Cell]:
    return [{"method": "Replacement", "gamma": gamma} for gamma in values]


def numbers(values: tuple[float, ...]) -> list[Cell]:
    return [{"method": "Replacement", "number": k, "backdoors": round(k)} for k in values]


def constrained(values: tuple[float, ...], alphas: Sequence[float] = (0.9, 0.5, 0.1)) -> list[Cell]:
    kinds: list[Cell] = [{"method": "train-and-scale"}]
    kinds += [
        {"method": f"constrain-and-scale, alpha {a:g}", "constraint": "cosine", "alpha": a}
        for a in alphas
    ]
    return [{**kind, "gamma": gamma} for kind in kinds for gamma in values]


def krums(values: tuple[float, ...], alphas: Sequence[float] = (1.0, 0.9, 0.5)) -> list[Cell]:
    return [
        {
            "method": "unconstrained" if a == 1 else f"alpha {a:g}",
            "constraint": "none" if a == 1 else "distance",
            "share": share,
            "krum": True,
            "gamma": 1.0,
            "alpha": a,
        }
        for a in alphas
        for share in values
    ]


GAMMAS = Figure(
    "7", gammas, (1.0, 10.0, 20.0, 40.0, 60.0, 80.0, 100.0, 150.0, 200.0),
    "gamma", "scaling factor gamma", rounds=BEFORE + 1,
)  # fmt: skip
SHARES = Figure(
    "4b", shares, (0.01, 0.02, 0.05, 0.1, 0.2, 0.3),
    "share", "compromised participants", average=True, log_x=True,
)  # fmt: skip
FIGURES = {
    "single-shot": Figure("4a", shots),
    "repeated": SHARES,
    "pixel": Figure("5", functools.partial(shots, pixel=True)),
    "injection": Figure("6", injections),
    "gamma": GAMMAS,
    "multiple": Figure(
        "8", numbers, (), "number", "backdoors at once", ("backdoor", "least", "main"), BEFORE + 1
    ),
    "cosine": GAMMAS._replace(
        number="10", points=constrained, values=(5.0, 10.0, 20.0, 40.0, 60.0, 80.0, 100.0),
        measures=("backdoor", "main", "anomaly"),
    ),
    "krum": SHARES._replace(
        number="11", points=krums, values=(0.01, 0.02, 0.05, 0.1, 0.2),
        measures=("selected", "backdoor", "main"), rounds=1, average=False,
    ),
}  # fmt: skip


def cells_of(name: str, args: Args, inputs: Inputs, backdoors: Sequence[str]) -> list[Cell]:
    """Every point of a figure, with all its settings."""
    figure, at = FIGURES[name], inputs.setting
    values: tuple[float, ...] = figure.values
    points: Callable[..., list[Cell]] = figure.points
    if name == "multiple":
        values = tuple(float(k) for k in range(1, len(at.backdoors) + 1))
    if name == "injection":
        values = (2.0, 3.0) if args.smoke else tuple(map(float, at.injections))
    rounds = args.rounds or figure.rounds
    if args.smoke:
        values = values[:1] + values[-1:]
        rounds = min(rounds, BEFORE + 3)
        if name in ("cosine", "krum"):
            points = functools.partial(points, alphas=(0.5,))
    cells = []
    for backdoor in backdoors:
        for point in points(args.points or values):
            cell = {
                "figure": name,
                **inputs.settings,
                "backdoor": backdoor,
                "rounds_before": args.rounds_before or at.rounds_before,
                "rounds": rounds,
                **USUAL,
                **point,
            }
            if "share" in point:
                cell["attackers"] = round(point["share"] * at.clients)
            if len(backdoors) > 1:
                cell["method"] += f", {backdoor}"
            cells.append(cell)
    return cells


def rows_of(figure: Figure, runs: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """One row per measure and run, or per measure, run and round shown."""
    rows = []
    for run, rest in zip(runs, study.without(runs, "curves"), strict=True):
        for measure in figure.measures:
            own, curve = rest | {"measure": measure}, run["curves"].get(measure)
            if curve is None:
                rows.append(own | {"value": rest[measure]})
            elif figure.average:
                rows.append(own | {"value": float(np.mean(curve))})
            else:
                attack = attack_round(run)
                shown = SHOWN if figure.x == "round" else (0,)
                rows += [
                    own | ({"round": since} if figure.x == "round" else {})
                    | {"value": curve[attack + since]}
                    for since in shown
                    if 0 <= attack + since < len(curve)
                ]  # fmt: skip
    return rows


def main(args: Args) -> None:
    """Run what is missing of one figure, then print and draw it."""
    figure, at = FIGURES[args.figure], SETTINGS[args.setting]
    if args.width is not None and args.setting != "cifar10":
        raise ValueError("--width is of ResNet18, the network of --setting cifar10")
    if args.rounds is not None and figure.rounds != ROUNDS:
        raise ValueError(f"--figure {args.figure} ends with the attack; leave out --rounds")
    if args.points and args.figure in ("single-shot", "pixel"):
        raise ValueError(f"--figure {args.figure} sweeps nothing; leave out --points")
    if args.rounds_before is not None and args.rounds_before < 1:
        raise ValueError(f"--rounds-before needs at least 1 round, got {args.rounds_before}")
    if figure.x == "share" and not all(0.5 <= p * at.clients < at.clients for p in args.points):
        raise ValueError(f"--points are shares of {at.clients} clients, got {args.points}")
    chosen = args.backdoor or at.backdoors[0]
    names = at.backdoors if chosen == "all" else tuple(chosen.split(","))
    if unknown := [name for name in names if name not in at.backdoors]:
        raise ValueError(f"there is no backdoor {unknown}; there are {list(at.backdoors)}")
    setup = args.setting + (f"-width-{args.width}" if args.width else "")
    end = "-smoke" if args.smoke else ""
    inputs = Inputs(
        smaller(at) if args.smoke else at,
        args.out / "before" / f"{setup}{end}",
        args.data_dir,
        args.width,
        args.client_chunk,
    )
    folder = args.out / f"{setup}-{args.figure}{end}"
    runs = study.run(
        study.Study(
            folder,
            cells_of(args.figure, args, inputs, names),
            ("backdoor", "method") + ((figure.x,) if figure.x != "round" else ()),
            program_of(inputs),
            range(1 if args.smoke else args.seeds),
            varies=VARIES,
            values=("norm", "anomaly"),
        ),
        args.cell,
    )
    if runs is None:
        return
    rows = rows_of(figure, runs)
    text = report.write_sweep(
        folder,
        rows,
        x=figure.x,
        xlabel=figure.xlabel,
        panels="measure",
        lines="method",
        value="value",
        metric="accuracy",
        log_x=figure.log_x,
        title=f"Bagdasaryan et al. (2020), figure {figure.number}, {args.figure}, on {args.setting}",
        command=study.command(__file__, args),
        notes=describe(args.figure, inputs, names, runs),
        settings=study.settings(args, rows),
    )
    if figure.x == "round":
        lines: dict[str, dict[str, list[Any]]] = {}
        for run in runs:
            for measure in figure.measures:
                own = lines.setdefault(measure, {}).setdefault(run["method"], [])
                own.append(run["curves"][measure])
        since = np.arange(runs[0]["rounds"]) - attack_round(runs[0])
        report.plot_curves(folder / "curves.png", since, lines, metric="accuracy")
    print(f"\n{text}\nrows, table and figures are in {folder}")


def describe(
    name: str, inputs: Inputs, backdoors: tuple[str, ...], runs: list[dict[str, Any]]
) -> str:
    """The settings, and what else was measured."""
    figure, at = FIGURES[name], inputs.setting
    participants = at.clients if name == "krum" else at.participants
    notes = f"{inputs.describe(backdoors)}, {participants} per round"
    if name != "injection":
        notes += f", {runs[0]['rounds_before']} rounds before"
    notes += {
        "repeated": "; backdoor and main accuracy are means over all rounds",
        "cosine": "; anomaly is 1 - cos(submitted model, global model)",
        "krum": "; selected: how often Krum took an attacker's model",
    }.get(name, "")
    notes += "."
    if name in ("gamma", "multiple", "krum", "cosine"):
        norms = [
            f"{run['method']} at {figure.x} {run[figure.x]:g}: {run['norm']:.3g}"
            for run in runs
            if run["seed"] == 0
        ]
        honest = np.mean([run["honest_norm"] for run in runs])
        notes += f" Norms of submitted updates (seed 0; honest ones {honest:.3g} on average): "
        notes += "; ".join(norms) + "."
    return notes + (equally_anomalous(runs) if name == "cosine" else "")


def equally_anomalous(runs: list[dict[str, Any]]) -> str:
    """What train-and-scale reaches at the anomaly of each constrained method's largest gamma; means over
    seeds, in between by linear interpolation."""
    found: dict[str, dict[float, list[tuple[float, float]]]] = {}
    for run in runs:
        points = found.setdefault(run["method"], {}).setdefault(run["gamma"], [])
        points.append((run["anomaly"], run["curves"]["backdoor"][attack_round(run)]))
    means = {
        name: np.sort(np.array([np.mean(points, axis=0) for points in by_gamma.values()]), axis=0)
        for name, by_gamma in found.items()
    }
    free = means.pop("train-and-scale", None)
    if free is None:  # several backdoors have lines of their own
        return ""
    said = [
        f"{name}: {backdoor:.3f}, train-and-scale {np.interp(anomaly, *free.T):.3f}"
        for name, points in means.items()
        for anomaly, backdoor in points[-1:]
    ]
    return f" Backdoor accuracy at equal anomaly: {'; '.join(said)}."


if __name__ == "__main__":
    study.main(Args, main)
