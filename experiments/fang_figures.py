"""Figures 2 to 5 of Fang et al. (2020): testing error rates as one parameter of Table 2 is varied.

Fang, Cao, Jia, Gong: "Local Model Poisoning Attacks to Byzantine-Robust Federated Learning", USENIX
Security 2020, section 4.2. The setting is that of Table 2a (logistic regression on MNIST) or, for 2d-f
and 3d-f, of Table 2b (DNN); see ``fang_table2.py``, also for what the paper leaves open.

  python experiments/fang_figures.py --figure 2a-c     share of compromised workers ("2" for short)
  python experiments/fang_figures.py --figure 5b       epsilon of the attacks on Krum
  python experiments/fang_figures.py --figure directions --seeds 1

The paper prints its swept values and errors in the figures only, so the values are ours (``--points``
takes others). The text has one pair of numbers: the attacker estimates 72 % of the changing directions
correctly with 50 workers and 76 % with 100, which ``--figure directions`` measures.

Runs that differ in numbers alone (seeds, p, epsilon, the poisoned rounds) share a compiled program,
a few at a time; where shapes differ (workers, local steps, ...) each point has its own. Results go to
``--out``/<figure>: one file per finished run (a killed script goes on after the last one), the rows,
``table.md``, ``sweep.png`` and ``sweep.json`` (``directions``: ``comparison.png``, ``table.json``).
"""

from __future__ import annotations

import dataclasses
import os
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import tyro
from common import my_share, share_is_done, use_compilation_cache
from fang_table2 import (
    MALICIOUS_SHARE,
    NON_IID,
    PARTICIPANTS,
    RULES,
    TABLES,
    Inputs,
    Table,
    command_line,
    dnn,
    each,
    evaluation_interval,
    selection,
    simulation,
)
from tqdm import tqdm

import fedjax_robust as fr
from fedjax_robust import aggregators, attacks, metrics, report
from fedjax_robust.data import partition

RUNS_TOGETHER = 5
"""Runs in one program, and finished runs lost if it is killed; fewer would compile more often."""


class Setting(NamedTuple):
    """What a point of a figure may change in Table 2."""

    clients: int
    malicious: int
    p: float = NON_IID
    steps: int = 1
    """Local steps per round."""
    selected: int | None = None
    """Workers drawn in each round; None = all."""
    f: int | None = None
    """The rule's; None = the number of malicious workers."""
    epsilon: float = 0.01
    poisoned: float | None = None
    """Share of the rounds that are poisoned, drawn at random; None = all, without drawing."""


class Figure(NamedTuple):
    """One figure, or the parts of it for one model."""

    parameter: str
    """The rows' key of the swept parameter."""
    xlabel: str
    values: tuple[float, ...]
    smoke: tuple[float, ...]
    """The values for 20 workers and 4 rounds."""
    at: Callable[[Setting, float], Setting]
    rules: tuple[str, ...]
    attacks: tuple[str, ...]
    says: str
    """What the paper's text says about it."""
    table: str = "2a"
    log_x: bool = False
    directions: bool = False
    """Whether to observe ``metrics.direction_agreement`` of the trimmed mean."""


def whole(value: float) -> int:
    if value != int(value) or value < 1:
        raise ValueError(f"the values of this figure are whole numbers >= 1, got {value:g}")
    return int(value)


def with_clients(setting: Setting, value: float) -> Setting:
    malicious = round(MALICIOUS_SHARE * whole(value))
    return setting._replace(clients=whole(value), malicious=malicious)


FIVE = ("NoAttack", "Gaussian", "LabelFlip", "Partial", "Full")
COMPROMISED = Figure(
    "malicious_share",
    "share of compromised workers",
    (0.05, 0.10, 0.15, 0.20, 0.25, 0.30),
    (0.10, 0.30),
    lambda setting, x: setting._replace(malicious=round(x * setting.clients)),
    RULES,
    FIVE,
    "the error under Fang's attacks rises with the share, from 0.10 to 0.15 on; label flipping raises "
    "it slightly, Gaussian noise not at all.",
)
NON_IIDNESS = Figure(
    "p",
    "degree of non-IID p",
    (0.1, 0.3, 0.5, 0.7, 0.9),
    (0.1, 0.9),
    lambda setting, x: setting._replace(p=x),
    RULES,
    FIVE,
    "all errors rise with p, also without attack, but Krum's under Fang's attacks go up and down.",
)
FIGURES = {
    "2a-c": COMPROMISED,
    "2d-f": COMPROMISED._replace(table="2b"),
    "3a-c": NON_IIDNESS,
    "3d-f": NON_IIDNESS._replace(table="2b"),
    "4a": Figure(
        "steps",
        "local steps per round",
        (1, 2, 5, 10),
        (1, 2),
        lambda setting, x: setting._replace(steps=whole(x)),
        ("Median",),
        ("NoAttack", "Partial"),
        "errors fall with more steps, with and without attack; with 10 the attack still raises the "
        "error by more than 30 %.",
    ),
    "4b": Figure(
        "clients",
        "workers (20 % compromised)",
        (20, 50, 100, 200),
        (20, 30),
        with_clients,
        ("Median",),
        ("NoAttack", "Partial"),
        "the attack is the more effective the more workers there are.",
        directions=True,
    ),
    "4c": Figure(
        "selected",
        "workers selected per round",
        (20, 40, 60, 80, 100),
        (10, 20),
        lambda setting, x: setting._replace(selected=whole(x)),
        ("Median",),
        ("NoAttack", "Partial"),
        "with few selected, the number of compromised ones among them varies more.",
    ),
    "5a": Figure(
        "f",
        "values trimmed on each side, beta",
        (20, 25, 30, 35, 40, 45),
        (4, 6),
        lambda setting, x: setting._replace(f=whole(x)),
        ("Trimmed mean",),
        ("NoAttack", "Partial"),
        "the error under attack falls with beta, the one without attack rises slightly.",
    ),
    "5b": Figure(
        "epsilon",
        "epsilon",
        (0.001, 0.01, 0.1, 1, 10),
        (0.001, 10),
        lambda setting, x: setting._replace(epsilon=x),
        ("Krum",),
        ("Partial", "Full"),
        "the attacks work for a wide range of epsilon, and better the smaller it is.",
        log_x=True,
    ),
    "5c": Figure(
        "poisoned",
        "share of poisoned rounds",
        (0, 0.2, 0.4, 0.6, 0.8, 1),
        (0, 1),
        lambda setting, x: setting._replace(poisoned=x),
        ("Median",),
        ("Partial", "Full"),
        "the more rounds are poisoned, the larger the error.",
    ),
    "directions": Figure(
        "clients",
        "workers (20 % compromised)",
        (50, 100),
        (20,),
        with_clients,
        ("Trimmed mean",),
        ("Partial",),
        "72 % of the directions are estimated correctly with 50 workers, 76 % with 100, on average.",
        table="2b",
        directions=True,
    ),
}
SHORT = {"2": "2a-c", "3": "3a-c"}
PAPER_DIRECTIONS = {("50", "all"): 0.72, ("100", "all"): 0.76}


@dataclasses.dataclass
class Args:
    """Figures 2 to 5 of Fang et al. (2020). Errors are fractions of the test set."""

    figure: Literal[
        "2", "2a-c", "2d-f", "3", "3a-c", "3d-f", "4a", "4b", "4c", "5a", "5b", "5c", "directions"
    ] = "2"
    """Which figure; 2 and 3 mean 2a-c and 3a-c, the LR parts."""
    seeds: int = 3
    """Trials with other partitions, models, batches and poisoned rounds."""
    points: tuple[float, ...] | None = None
    """Values of the swept parameter, instead of the script's."""
    rounds: int | None = None
    """Rounds instead of the paper's 500 (LR) or 2,000 (DNN); directions: default 30."""
    clients: int = PARTICIPANTS
    """Workers where they are not swept; 20 % of them are compromised."""
    rules: tuple[Literal["Krum", "Trimmed mean", "Median"], ...] | None = None
    """Rules to run, instead of the figure's."""
    attacks: tuple[Literal["NoAttack", "Gaussian", "LabelFlip", "Partial", "Full"], ...] | None = (
        None
    )
    """Attacks to run, instead of the figure's."""
    client_chunk: int | None = None
    """Train so many workers at a time; default all, for the DNN on a CPU 1."""
    data_dir: Path | None = None
    """Folder of the data sets; default FEDJAX_ROBUST_DATA, else where TFDS keeps its own."""
    out: Path = Path("results/fang_figures")
    """Where results go."""
    cell: str | None = None
    """Compute only the i-th of N shares of the cells, i/N, so that N machines work on one table; then
    the same command without it gathers their files."""
    smoke: bool = False
    """20 workers, 4 rounds, two points, one seed, one rule and one attack; the numbers mean nothing."""


class Run(NamedTuple):
    """One point of one curve with one seed."""

    rule: str
    attack: str
    value: float
    setting: Setting
    seed: int


def main(args: Args) -> None:
    """Run what is missing of one figure, then print and draw it."""
    name = SHORT.get(args.figure, args.figure)
    figure = with_overrides(FIGURES[name], args)
    table = with_rounds(TABLES[figure.table], name, args)
    clients = 20 if args.smoke else args.clients
    usual = Setting(clients, round(MALICIOUS_SHARE * clients))
    seeds = range(1 if args.smoke else args.seeds)
    inputs = Inputs(table, clients, args.data_dir)
    folder = args.out / (name + ("-smoke" if args.smoke else ""))
    provenance = report.provenance()
    curves = [
        [
            Run(rule, attack, value, figure.at(usual, value), seed)
            for value in figure.values
            for seed in seeds
        ]
        for rule in figure.rules
        for attack in figure.attacks
    ]
    curves = my_share(curves, args.cell)
    on_cpu = jax.default_backend() == "cpu"
    chunk = 1 if args.client_chunk is None and on_cpu and table.model is dnn else args.client_chunk
    # Small models leave cores idle, so their curves run beside each other.
    jobs = (os.cpu_count() or 1) if table.seeds_together and on_cpu else 1
    with (
        tqdm(total=sum(map(len, curves)), unit="run") as bar,
        ThreadPoolExecutor(jobs) as pool,
    ):

        def rows_of(curve: list[Run]) -> list[dict[str, Any]]:
            return run_curve(folder, name, figure, table, inputs, curve, chunk, provenance, bar)

        rows = [row for rows in pool.map(rows_of, curves) for row in rows]
    if share_is_done(args.cell, folder):
        return
    notes = describe(figure, table, inputs, usual, rows)
    model = "DNN" if table.model is dnn else "LR"
    title = f"Fang et al. (2020), Figure {name}: {model} on MNIST"
    command = command_line("fang_figures.py", args)
    if name == "directions":
        text = write_directions(folder, rows, command, notes)
    else:
        text = report.write_sweep(
            folder,
            rows,
            x=figure.parameter,
            xlabel=figure.xlabel,
            title=title,
            command=command,
            log_x=figure.log_x,
            notes=notes,
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


def with_rounds(table: Table, name: str, args: Args) -> Table:
    usual = 30 if name == "directions" else table.rounds
    return table._replace(rounds=args.rounds or (4 if args.smoke else usual))


def run_curve(
    folder: Path,
    name: str,
    figure: Figure,
    table: Table,
    inputs: Inputs,
    curve: list[Run],
    client_chunk: int | None,
    provenance: dict[str, Any],
    bar: tqdm,
) -> list[dict[str, Any]]:
    """One row for each run of a curve: those on disk are read, the missing ones are computed."""

    def settings(run: Run) -> dict[str, Any]:
        return {
            "figure": name,
            "data": table.data,
            "model": table.model.__name__,
            "rounds": table.rounds,
            "batch_size": table.batch_size,
            "learning_rate": table.learning_rate,
            **run.setting._asdict(),
            "rule": run.rule,
            "attack": run.attack,
            figure.parameter: run.value,
            "seed": run.seed,
        }

    def cell(run: Run) -> str:
        words = (run.rule, run.attack, figure.parameter, f"{run.value:g}", str(run.seed))
        return "-".join(words).replace(" ", "_")

    results = {run: report.load_cell(folder, cell(run), settings(run)) for run in curve}
    missing = [run for run in curve if results[run] is None]
    bar.update(len(curve) - len(missing))

    def keep(run: Run, history: dict[str, np.ndarray], seconds: float) -> None:
        errors = np.asarray(history["test_error"], float)
        shares = {  # means over the rounds with malicious workers
            key: float(np.nanmean(history[key]))
            for key in ("direction_agreement", "direction_agreement_moving")
            if key in history
        }
        result = {
            "error": errors[-1],
            "best_error": errors.min(),
            "seconds": seconds,
            **selection(history),
            **shares,
            **provenance,
        }
        report.save_cell(folder, cell(run), settings(run), result)
        results[run] = result
        bar.update()

    if table.seeds_together:
        for group in groups(missing):
            for run, history, seconds in run_group(figure, table, inputs, group, client_chunk):
                keep(run, history, seconds)
    else:
        for run in missing:
            started = time.perf_counter()
            checkpoint = folder / "checkpoints" / f"{cell(run)}.npz"
            _, history = fr.run(
                simulation_of(
                    figure, table, inputs, run, client_chunk, run.setting.epsilon, mask(run, table)
                ),
                jax.random.key(run.seed),
                inputs.federated(run.seed, run.setting.p, run.setting.clients),
                table.rounds,
                evaluate=metrics.test_error(inputs.task, inputs.shared.test),
                evaluate_every=evaluation_interval(table),
                progress=True,
                checkpoint=checkpoint,
            )
            keep(run, jax.device_get(history), time.perf_counter() - started)
            checkpoint.unlink(missing_ok=True)
    return [settings(run) | results[run] for run in curve]  # type: ignore[operator]


def groups(runs: Iterable[Run]) -> list[list[Run]]:
    """Runs of one curve that differ in numbers alone, not in shapes."""
    together: dict[Setting, list[Run]] = {}
    for run in runs:
        poisoned = None if run.setting.poisoned is None else 1.0
        shapes = run.setting._replace(p=0.0, epsilon=0.0, poisoned=poisoned)
        together.setdefault(shapes, []).append(run)
    return list(together.values())


def run_group(
    figure: Figure, table: Table, inputs: Inputs, group: list[Run], client_chunk: int | None
) -> Iterator[tuple[Run, dict[str, np.ndarray], float]]:
    """Runs that differ in numbers alone, a few at a time in one program: run, history, seconds."""

    def one(
        key: jax.Array,
        data: fr.FederatedData,
        epsilon: jax.Array,
        poisoned: jax.Array | None,
        evaluate: Any,
    ) -> dict[str, jax.Array]:
        sim = simulation_of(figure, table, inputs, group[0], client_chunk, epsilon, poisoned)
        every = evaluation_interval(table)
        return fr.run(sim, key, data, table.rounds, evaluate=evaluate, evaluate_every=every)[1]

    @jax.jit
    def program(
        keys: jax.Array,
        data: fr.FederatedData,
        epsilon: jax.Array,
        poisoned: jax.Array | None,
        evaluate: Any,
    ) -> dict[str, jax.Array]:
        def own(key: jax.Array, index: jax.Array, count: jax.Array, *numbers: Any) -> Any:
            return one(key, data._replace(index=index, count=count), *numbers, evaluate)

        return each(own, (keys, data.index, data.count, epsilon, poisoned))

    evaluate = metrics.test_error(inputs.task, inputs.shared.test)
    keys = jnp.stack([jax.random.key(run.seed) for run in group])
    data = partition.stack(
        [inputs.federated(run.seed, run.setting.p, run.setting.clients) for run in group]
    )
    epsilon = jnp.array([run.setting.epsilon for run in group])
    masks = [mask(run, table) for run in group]
    poisoned = None if masks[0] is None else jnp.stack(masks)  # type: ignore[arg-type]
    size = min(RUNS_TOGETHER, len(group))
    for first in range(0, len(group), size):
        # Every call has the same shapes, so that it compiles once; repeats at the end are dropped.
        rows = np.minimum(np.arange(first, first + size), len(group) - 1)
        started = time.perf_counter()
        history = jax.device_get(
            program(
                keys[rows],
                data._replace(index=data.index[rows], count=data.count[rows]),
                epsilon[rows],
                None if poisoned is None else poisoned[rows],
                evaluate,
            )
        )
        runs = group[first : first + size]
        seconds = (time.perf_counter() - started) / len(runs)
        for i, run in enumerate(runs):
            yield run, {name: values[i] for name, values in history.items()}, seconds


def mask(run: Run, table: Table) -> jax.Array | None:
    """(rounds,) bool: which rounds are poisoned; None if all are. Drawn from the seed."""
    if run.setting.poisoned is None:
        return None
    key = jax.random.fold_in(jax.random.key(3), run.seed)
    number = round(run.setting.poisoned * table.rounds)
    return jax.random.permutation(key, table.rounds) < number


def simulation_of(
    figure: Figure,
    table: Table,
    inputs: Inputs,
    run: Run,
    client_chunk: int | None,
    epsilon: float | jax.Array,
    poisoned: jax.Array | None,
) -> fr.Simulation:
    """A run's simulation; what may be traced is given, the rest is the run's."""
    at = run.setting
    sim = simulation(
        table,
        inputs,
        run.rule,
        run.attack,
        at.malicious,
        f=at.f,
        steps=at.steps,
        epsilon=epsilon,
    )
    if poisoned is not None:
        sim = sim._replace(attack=attacks.in_rounds(sim.attack, poisoned))
    if figure.directions:
        rule = aggregators.trimmed_mean(at.malicious)
        sim = sim._replace(observe=metrics.direction_agreement(rule))
    return sim._replace(clients_per_round=at.selected, client_chunk=client_chunk)


def describe(
    figure: Figure, table: Table, inputs: Inputs, usual: Setting, rows: list[dict[str, Any]]
) -> str:
    """Settings, where the swept values come from, and what else was measured."""
    workers = (
        "20 % of the workers"
        if figure.parameter == "clients"
        else f"{usual.clients} workers"
        if figure.parameter == "malicious_share"
        else f"{usual.malicious} of {usual.clients} workers"
    )
    notes = [
        f"{table.model.__name__} on {table.data} ({inputs.note}), {workers}"
        f"{'' if figure.parameter == 'malicious_share' else ' compromised'}, {table.rounds} rounds, "
        f"step {table.learning_rate:g}, batch {table.batch_size}.",
        "The swept values are ours; the paper has its own, and its errors, in the figure only.",
        f"Its text: {figure.says}",
    ]
    if figure.parameter != "clients":
        return " ".join(notes)
    if figure.table == "2b":
        notes[1] = (
            f"The averages are over {table.rounds} rounds from the initial model; the paper's run "
            f"has {TABLES[figure.table].rounds}."
        )
        return " ".join(notes)
    found = report.summarize(
        [row for row in rows if row["attack"] != "NoAttack"],
        "clients",
        "attack",
        "direction_agreement",
    )
    shares = ", ".join(
        f"{summary.mean:.2f} with {float(workers):g} workers"
        for (workers, _), summary in found.items()
    )
    if shares:
        notes.append(f"Share of changing directions estimated correctly (trimmed mean): {shares}.")
    return " ".join(notes)


def write_directions(folder: Path, rows: list[dict[str, Any]], command: str, notes: str) -> str:
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
        command=command,
        index="workers",
        columns="parameters",
        value="share",
        metric="share of changing directions estimated correctly",
        notes=notes,
    )


if __name__ == "__main__":
    use_compilation_cache()
    main(tyro.cli(Args))
