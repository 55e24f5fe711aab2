"""Table 5 of Fang et al. (2020): their attacks against poisoned data made by back-gradient optimization.

Fang, Cao, Jia, Gong: "Local Model Poisoning Attacks to Byzantine-Robust Federated Learning", USENIX
Security 2020, section 4.4. Logistic regression on 6,000 uniformly drawn training examples of MNIST,
dealt out IID to 100 workers, 20 of them compromised; one SGD step per worker and round. Columns
SingleWorker and Uniform poison data only: 240 examples crafted on the 6,000 by back-gradient
optimization (Muñoz-González et al., AISec 2017) join the data of one compromised worker, or of all of
them at random; every worker trains honestly on what it has. Partial and Full are the paper's own.

  python experiments/fang_table5.py --seeds 3
  python experiments/fang_table5.py --smoke

What the paper does not print, and what is taken here:

- Rounds, batch and step of this table: those of Table 2a, 500, 32 and 0.1.
- "Trimmed mean attack" against the mean: with models (``Full``), as section 3.3 defines the attack, and
  with updates (``FullOnUpdates``), as the authors' code; the two are the same for the other rules.
- Centralised learning: full-batch gradient descent with as many steps and the same step size.
- How the points were crafted. The settings below were compared by what an attacker can see: the loss
  that central training (500 steps of 0.1) ends with on the clean 6,000 examples, of one draw that is
  none of the seeds'. Without points it is 0.379, with flipped labels alone 0.417:

  ================  ====================  ===========  ==========  =============
  simulated steps   labels                point step   iterations  loss at 500
  ================  ====================  ===========  ==========  =============
  100 of 0.1        another, uniformly    1            40          0.598
  100 of 0.1        L - 1 - l             1            40          0.577
  100 of 0.1        the least likely      1            40          0.592
  100 of 0.1        another, uniformly    2            40          0.590
  300 of 0.1        another, uniformly    1            20          0.609
  300 of 0.1        another, uniformly    2            20          0.635
  167 of 0.3        another, uniformly    2            24          0.650
  167 of 0.3        another, uniformly    4            24          **0.662**
  ================  ====================  ===========  ==========  =============

  Looking as far ahead as the training that is attacked matters most, and large steps of training do
  that cheaply. The original has 100 of 0.1 and point steps of 1. Objective: the training loss, as the
  paper says; that of 6,000 other examples rises with it (from 0.412 to 0.660 in the last line).

Results go to ``--out``: every seed's crafted points (``points``) and every finished cell (``cells``), so
that a killed run goes on after the last one; ``rows`` and ``central`` as .json and .csv, ``table.md``,
``comparison.png`` and ``points.png``.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import time
from pathlib import Path
from typing import Any, Literal, NamedTuple

import fang_table2
import jax
import jax.numpy as jnp
import numpy as np
import tyro
from common import my_share, share_is_done, use_compilation_cache
from tqdm import tqdm

import fedjax_robust as fr
from fedjax_robust import aggregators, attacks, report
from fedjax_robust.data import Dataset, load, partition
from fedjax_robust.files import written_atomically

EXAMPLES = 6000
POINTS = 240
CLIENTS = 100
ATTACKS = ("NoAttack", "SingleWorker", "Uniform", "Partial", "Full", "FullOnUpdates")
BY_DATA = ("SingleWorker", "Uniform")
PAPER = {  # rule -> the first five of ATTACKS
    "Mean": (0.10, 0.11, 0.15, 0.54, 0.69),
    "Krum": (0.23, 0.24, 0.25, 0.85, 0.89),
    "Trimmed mean": (0.12, 0.12, 0.13, 0.27, 0.32),
    "Median": (0.13, 0.13, 0.14, 0.19, 0.21),
}
PAPER_CENTRAL = {"clean": 0.10, "poisoned": 0.16}
Batch = dict[str, Any]


@dataclasses.dataclass
class Args:
    """Reproduce Table 5 of Fang et al. (2020). Errors are fractions of the test set."""

    seeds: int | None = None
    """Trials with other examples, partitions, points, models and batches; default 3."""
    rounds: int | None = None
    """Rounds, and steps of centralised training; default 500."""
    points: int | None = None
    """Poisoning examples; default 240."""
    iterations: int | None = None
    """Steps of the points; default 40."""
    point_step: float = 4.0
    """Euclidean length of a point's step; pixels are in [0, 1]."""
    training_steps: int | None = None
    """T, full-batch steps of the training that is differentiated through; default 167."""
    training_rate: float = 0.3
    """Their step size; 167 steps of 0.3 go as far as the 500 of 0.1 of the training that is attacked."""
    objective: Literal["training", "held-out"] = "training"
    """Which loss the points raise: that of the 6,000 clean examples, or of as many other ones."""
    rules: tuple[Literal["Mean", "Krum", "Trimmed mean", "Median"], ...] | None = None
    """Rules to run; default all, in smoke mode the mean alone."""
    attacks: tuple[
        Literal["NoAttack", "SingleWorker", "Uniform", "Partial", "Full", "FullOnUpdates"], ...
    ] = ATTACKS
    """Attacks to run; FullOnUpdates on the mean alone."""
    data_dir: Path | None = None
    """Folder of the data sets; default FEDJAX_ROBUST_DATA, else where TFDS keeps its own."""
    out: Path = Path("results/fang_table5")
    """Where results go."""
    cell: str | None = None
    """Compute only the i-th of N shares of the cells, i/N, so that N machines work on one table; then
    the same command without it gathers their files."""
    smoke: bool = False
    """Few of everything and one seed, to see that it works; the numbers mean nothing."""


class Crafting(NamedTuple):
    """All that the crafted points of a seed depend on."""

    examples: int
    points: int
    iterations: int
    point_step: float
    training_steps: int
    learning_rate: float
    objective: str


def main(args: Args) -> None:
    """Craft the points that are missing, run the cells that are missing, print and draw."""

    def default(value: Any, normal: Any, smoke: Any) -> Any:
        return (smoke if args.smoke else normal) if value is None else value

    rules = default(args.rules, tuple(PAPER), ("Mean",))
    table = fang_table2.Table(
        data="mnist",
        model=fang_table2.logistic_regression,
        rounds=default(args.rounds, 500, 4),
        batch_size=32,
        learning_rate=0.1,
        seeds=default(args.seeds, 3, 1),
        seeds_together=True,
        paper=PAPER,
    )
    crafting = Crafting(
        examples=300 if args.smoke else EXAMPLES,
        points=default(args.points, POINTS, 12),
        iterations=default(args.iterations, 40, 3),
        point_step=args.point_step,
        training_steps=default(args.training_steps, 167, 5),
        learning_rate=args.training_rate,
        objective=args.objective,
    )
    clients = 20 if args.smoke else CLIENTS
    folder = args.out.with_name(args.out.name + ("-smoke" if args.smoke else ""))
    inputs = make_inputs(folder, table, crafting, clients, args.data_dir)
    provenance = report.provenance()

    central = [central_cell(folder, table, inputs, seed, provenance) for seed in inputs.seeds]
    report.write_rows(folder / "central", central)
    draw_points(folder / "points.png", inputs.crafted[0])

    cells = [
        (rule, attack)
        for rule in rules
        for attack in args.attacks
        if attack != "FullOnUpdates" or rule == "Mean"
    ]
    # Poisoned data do not change the program, so that the same object spares compiling it again.
    simulation_of = functools.cache(functools.partial(simulation, table, inputs))
    rows: list[dict[str, Any]] = []
    done = tqdm(my_share(cells, args.cell), unit="cell")
    for rule, attack in done:
        sim = simulation_of(rule, "NoAttack" if attack in BY_DATA else attack)
        results = run_cell(folder, table, inputs, sim, rule, attack, provenance)
        rows += results
        errors = [row["error"] for row in results]
        spread = f" +- {np.std(errors, ddof=1):.3f}" if len(errors) > 1 else ""
        done.write(f"{rule:13s} {attack:13s} error {np.mean(errors):.3f}{spread}")
    if share_is_done(args.cell, folder):
        return
    paper = {
        (attack, rule): value
        for rule in rules
        for attack, value in zip(ATTACKS, PAPER[rule], strict=False)
        if attack in args.attacks
    }
    text = report.write_table(
        folder,
        rows,
        paper,
        title="Fang et al. (2020), Table 5: 6,000 examples of MNIST, IID",
        command=fang_table2.command_line("fang_table5.py", args),
        notes=(
            f"Logistic regression on {crafting.examples} examples of MNIST, {clients} clients (IID), "
            f"{inputs.malicious} malicious, {table.rounds} rounds, step {table.learning_rate:g}, "
            f"batch {table.batch_size}. {crafting.points} points: {crafting.iterations} steps of "
            f"length {crafting.point_step:g} against {crafting.training_steps} training steps of "
            f"{crafting.learning_rate:g}, to raise the {crafting.objective} loss."
        ),
    )
    text += f"\n{central_table(central)}"
    print(f"\n{text}")
    (folder / "table.md").write_text(text)
    print(f"rows, table and figures are in {folder}")


# --- Data and points -----------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Inputs:
    """Each seed's examples, points and partition; what ``fang_table2.run_together`` asks for."""

    data: Dataset
    pool: Batch
    """Each seed's examples and then its points, seed after seed: one array for all cells."""
    crafted: list[dict[str, np.ndarray]]
    task: fr.Task
    crafting: Crafting
    clients: int
    placement: str = "NoAttack"
    """Who owns the points: no client, one compromised client, or all of them at random."""
    fixed: bool = True

    @property
    def seeds(self) -> range:
        return range(len(self.crafted))

    @property
    def num_classes(self) -> int:
        return self.data.num_classes

    @property
    def malicious(self) -> int:
        return round(fang_table2.MALICIOUS_SHARE * self.clients)

    def dataset(self, seed: int) -> Dataset:
        return self.data

    def federated(self, seed: int) -> fr.FederatedData:
        key, points_key = jax.random.split(jax.random.fold_in(jax.random.key(2), seed))
        points = self.crafting.points
        dealt = partition.iid(key, self.clean(seed), self.clients)
        owner = np.full(len(self.pool["y"]), -1)
        own = owner[self.block(seed)]  # a view
        for client, (index, count) in enumerate(zip(dealt.index, dealt.count, strict=True)):
            own[np.asarray(index[:count])] = client
        if self.placement == "SingleWorker":
            own[-points:] = 0  # the partition deals to clients in random order
        elif self.placement == "Uniform":
            own[-points:] = jax.random.randint(points_key, (points,), 0, self.malicious)
        # The same width with and without points: the same program.
        capacity = dealt.index.shape[1] + points
        return partition.from_owner(self.pool, owner, self.clients, capacity)

    def block(self, seed: int) -> slice:
        """The pool's rows of this seed."""
        size = self.crafting.examples + self.crafting.points
        return slice(seed * size, (seed + 1) * size)

    def clean(self, seed: int) -> Batch:
        block = self.block(seed)
        rows = slice(block.start, block.stop - self.crafting.points)
        return {name: values[rows] for name, values in self.pool.items()}


def make_inputs(
    folder: Path, table: fang_table2.Table, crafting: Crafting, clients: int, data_dir: Path | None
) -> Inputs:
    data = load(table.data, data_dir)
    task = fr.classification(table.model(data.num_classes), jnp.asarray(data.train["x"][:1]))
    crafted: list[dict[str, np.ndarray]] = []
    blocks: list[Batch] = []
    for seed in range(table.seeds):
        key = jax.random.fold_in(jax.random.key(3), seed)
        order = np.asarray(jax.random.permutation(key, len(data.train["y"])))
        train, held_out = (
            {name: jnp.asarray(values[rows]) for name, values in data.train.items()}
            for rows in np.split(order[: 2 * crafting.examples], 2)
        )
        target = train if crafting.objective == "training" else held_out
        crafted.append(points_of(folder, task, train, target, crafting, seed))
        blocks += [train, crafted[-1]]
    pool = {name: jnp.concatenate([block[name] for block in blocks]) for name in data.train}
    return Inputs(data, pool, crafted, task, crafting, clients)


def points_of(
    folder: Path, task: fr.Task, train: Batch, target: Batch, crafting: Crafting, seed: int
) -> dict[str, np.ndarray]:
    """A seed's points, read from disk or crafted: ``x``, ``y``, ``start``, ``objective``, ``seconds``.

    Raises:
      ValueError: if those on disk were crafted in another way.
    """
    path = folder / "points" / f"{seed}.npz"
    settings = json.dumps(crafting._asdict() | {"seed": seed}, sort_keys=True)
    if path.exists():
        with np.load(path) as file:
            stored = dict(file)
        if str(stored["settings"]) != settings:
            raise ValueError(
                f"{path} was crafted with other settings ({stored['settings']}; now {settings}). "
                "Choose another result folder, or delete that file to craft the points again."
            )
        return stored

    def craft(iterations: int, progress: bool) -> tuple[Batch, np.ndarray]:
        return attacks.back_gradient_points(
            jax.random.fold_in(jax.random.key(4), seed),
            task,
            train,
            target,
            crafting.points,
            iterations=iterations,
            step=crafting.point_step,
            learning_rate=crafting.learning_rate,
            training_steps=crafting.training_steps,
            progress=progress,
        )

    started = time.perf_counter()
    points, history = craft(crafting.iterations, True)
    seconds = time.perf_counter() - started
    result = {
        "x": np.asarray(points["x"]),
        "y": np.asarray(points["y"]),
        "start": np.asarray(craft(1, False)[0]["x"]),
        "objective": history,
        "seconds": np.asarray(seconds),
        "settings": np.asarray(settings),
    }
    with written_atomically(path) as file:
        np.savez_compressed(file, **result)
    return result


# --- Centralised learning ------------------------------------------------------------------------


def central_cell(
    folder: Path, table: fang_table2.Table, inputs: Inputs, seed: int, provenance: Batch
) -> dict[str, Any]:
    """Testing error of logistic regression trained in one place, without and with the points."""
    settings = inputs.crafting._asdict() | {"rounds": table.rounds, "seed": seed}
    name = f"central-{seed}"
    result = report.load_cell(folder, name, settings)
    if result is None:
        points = inputs.crafted[seed]
        clean = inputs.clean(seed)
        flipped = {"x": points["start"], "y": points["y"]}
        crafted = {"x": points["x"], "y": points["y"]}
        start = inputs.task.init(jax.random.key(seed))
        result = {
            f"{kind}_{figure}": value
            for kind, extra in (("clean", []), ("flipped", [flipped]), ("poisoned", [crafted]))
            for figure, value in central_training(table, inputs, start, clean, extra).items()
        }
        result |= {
            "objective_start": points["objective"][0],
            "objective_best": points["objective"].max(),
            "crafting_seconds": points["seconds"],
            **provenance,
        }
        report.save_cell(folder, name, settings, result)
    return settings | result


def central_training(
    table: fang_table2.Table, inputs: Inputs, start: jax.Array, clean: Batch, extra: list[Batch]
) -> dict[str, float]:
    """Full-batch gradient descent on the clean examples and extra ones."""
    task, test = inputs.task, inputs.data.test
    train = {k: jnp.concatenate([clean[k], *(batch[k] for batch in extra)]) for k in clean}

    def step(_: jax.Array, w: jax.Array) -> jax.Array:
        return w - table.learning_rate * jax.grad(task.loss)(w, train)

    w = jax.lax.fori_loop(0, table.rounds, step, start)
    wrong = jnp.argmax(task.logits(w, jnp.asarray(test["x"])), axis=-1) != test["y"]
    return {"error": float(wrong.mean()), "clean_loss": float(task.loss(w, clean))}


def central_table(central: list[dict[str, Any]]) -> str:
    lines = [
        {"centralised": "paper"} | {kind: f"{value:.2f}" for kind, value in PAPER_CENTRAL.items()}
    ]
    for row in central:
        lines.append(
            {
                "centralised": f"seed {row['seed']}",
                "clean": f"{row['clean_error']:.3f}",
                "with the points before crafting": f"{row['flipped_error']:.3f}",
                "poisoned": f"{row['poisoned_error']:.3f}",
                "objective": f"{row['objective_start']:.3f} to {row['objective_best']:.3f}",
                "crafting": f"{float(row['crafting_seconds']):.0f} s",
            }
        )
    columns = list(dict.fromkeys(["centralised", "clean", *lines[-1]]))
    return (
        "Testing error rate of centralised training, fraction; the paper crafted for 10 days on a GTX "
        f"1080Ti.\n\n{report.markdown_table(lines, columns)}\n"
    )


# --- Federated learning --------------------------------------------------------------------------


def run_cell(
    folder: Path,
    table: fang_table2.Table,
    inputs: Inputs,
    sim: fr.Simulation,
    rule: str,
    attack: str,
    provenance: Batch,
) -> list[dict[str, Any]]:
    """A cell's row for every seed: those on disk are read, the missing ones are computed."""
    settings = {
        "rule": rule,
        "attack": attack,
        "rounds": table.rounds,
        "batch_size": table.batch_size,
        "learning_rate": table.learning_rate,
        "clients": inputs.clients,
        "malicious": inputs.malicious,
        "examples": inputs.crafting.examples,
    }
    if attack in BY_DATA:
        settings["crafting"] = inputs.crafting._asdict()

    def name(seed: int) -> str:
        return f"{rule}-{attack}-{seed}".replace(" ", "_")

    rows = {s: report.load_cell(folder, name(s), settings | {"seed": s}) for s in inputs.seeds}
    missing = [s for s in inputs.seeds if rows[s] is None]
    if missing:
        started = time.perf_counter()
        placed = dataclasses.replace(inputs, placement=attack)
        history = jax.device_get(fang_table2.run_together(sim, table, placed, missing))
        seconds = (time.perf_counter() - started) / len(missing)
        for i, seed in enumerate(missing):
            one = {name: values[i] for name, values in history.items()}
            rows[seed] = {
                "error": one["test_error"][-1],
                "seconds": seconds,
                **fang_table2.selection(one),
                **provenance,
            }
            report.save_cell(folder, name(seed), settings | {"seed": seed}, rows[seed])
    return [settings | {"seed": s} | rows[s] for s in inputs.seeds]


def simulation(table: fang_table2.Table, inputs: Inputs, rule: str, attack: str) -> fr.Simulation:
    """Table 2's; the mean meets the trimmed-mean attack."""
    known = "Trimmed mean" if rule == "Mean" else rule
    sim = fang_table2.simulation(
        table, inputs, known, attack.removesuffix("OnUpdates"), inputs.malicious
    )
    if rule == "Mean":
        sim = sim._replace(aggregator=aggregators.mean())
    if attack == "FullOnUpdates":
        full = attacks.fang_trim_full(before=aggregators.mean(), on_updates=True)
        sim = sim._replace(attack=full)
    return sim


def draw_points(path: Path, crafted: dict[str, np.ndarray], columns: int = 12) -> None:
    """Some points where they started, above, and as they were crafted, below, with their labels."""
    from matplotlib.figure import Figure

    columns = min(columns, len(crafted["y"]))
    figure = Figure(figsize=(0.8 * columns, 2.2), layout="constrained")
    axes = figure.subplots(2, columns, squeeze=False)
    for row, name in zip(axes, ("start", "x"), strict=True):
        for image, panel in zip(crafted[name], row, strict=False):
            panel.imshow(image[..., 0], cmap="gray", vmin=0, vmax=1)
            panel.set_xticks([])
            panel.set_yticks([])
    for label, panel in zip(crafted["y"], axes[0], strict=False):
        panel.set_title(f"as {label}", fontsize="small")
    axes[0, 0].set_ylabel("start", fontsize="small")
    axes[1, 0].set_ylabel("crafted", fontsize="small")
    with written_atomically(path) as file:
        figure.savefig(file, format="png", dpi=150)


if __name__ == "__main__":
    use_compilation_cache()
    main(tyro.cli(Args))
