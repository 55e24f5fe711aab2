"""Table 5 of Fang et al. (2020): their attacks against poisoned data made by back-gradient optimization.

Section 4.4. Logistic regression on 6,000 uniformly drawn training examples of MNIST, dealt out IID to
100 workers, 20 of them compromised; one SGD step per worker and round. Columns SingleWorker and Uniform
poison data only: 240 examples crafted on the 6,000 by back-gradient optimization (Muñoz-González et al.,
AISec 2017) join the data of one compromised worker, or of all of them at random; every worker trains
honestly on what it has. Partial and Full are the paper's own.

  python experiments/fang2020/table5.py --seeds 3
  python experiments/fang2020/table5.py --smoke

What the paper does not print, and what is taken here:

- Rounds, batch and step of this table: those of Table 2a, 500, 32 and 0.1.
- "Trimmed mean attack" against the mean: with models (``Full``), as section 3.3 defines the attack, and
  with updates (``FullOnUpdates``), as the authors' code; the two are the same for the other rules.
- Centralised learning: full-batch gradient descent with as many steps and the same step size.
- How the points were crafted: by looking as far ahead as the training that is attacked, which matters
  most, with large steps, which do that cheaply. The original has 100 of 0.1 and point steps of 1.
  Objective: the training loss, as the paper says.
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

import fedjax_robust as fr
from fedjax_robust import attacks, report, study
from fedjax_robust.data import Dataset, load, partition
from fedjax_robust.files import written_atomically

EXAMPLES, POINTS = 6000, 240
ATTACKS = ("NoAttack", "SingleWorker", "Uniform", "Partial", "Full", "FullOnUpdates")
BY_DATA = ("SingleWorker", "Uniform")
DRAWN, CRAFTED = 3, 4
"""What other keys of a seed are for: its examples and its points."""
PAPER = {  # rule -> the first five of ATTACKS
    "Mean": (0.10, 0.11, 0.15, 0.54, 0.69),
    "Krum": (0.23, 0.24, 0.25, 0.85, 0.89),
    "Trimmed mean": (0.12, 0.12, 0.13, 0.27, 0.32),
    "Median": (0.13, 0.13, 0.14, 0.19, 0.21),
}
PAPER_CENTRAL = {"clean": 0.10, "poisoned": 0.16}
Batch = dict[str, Any]


@dataclasses.dataclass
class Args(study.Args):
    """Reproduce Table 5 of Fang et al. (2020). Errors are fractions of the test set."""

    seeds: int | None = None
    """Trials with other examples, partitions, points, models and batches; default 3."""
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
    rules: tuple[Literal["Mean", "Krum", "Trimmed mean", "Median"], ...] = ()
    """Rules to run; default all, in smoke mode the mean alone."""
    attacks: tuple[
        Literal["NoAttack", "SingleWorker", "Uniform", "Partial", "Full", "FullOnUpdates"], ...
    ] = ATTACKS
    """Attacks to run; FullOnUpdates on the mean alone."""
    out: Path = Path("results/fang2020")
    """Where results go."""


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

    at = fang_setting.SETTINGS["2a"]._replace(
        rounds=default(args.rounds, 500, 4), seeds=default(args.seeds, 3, 1)
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
    clients = fang_setting.SMOKE_CLIENTS if args.smoke else fang_setting.CLIENTS
    rules = args.rules or (("Mean",) if args.smoke else tuple(PAPER))
    folder = args.out / ("table5" + ("-smoke" if args.smoke else ""))
    inputs = crafted_inputs(folder, at, crafting, clients, args.data_dir)
    central = central_rows(folder, at, inputs)
    draw_points(folder / "points.png", inputs.crafted[0])

    common = {
        "rounds": at.rounds,
        "batch_size": at.batch_size,
        "learning_rate": at.learning_rate,
        "clients": clients,
        "malicious": inputs.malicious,
        "examples": crafting.examples,
    }
    cells = [
        cell | ({"crafting": crafting._asdict()} if cell["attack"] in BY_DATA else {})
        for cell in study.grid(common, rule=rules, attack=args.attacks)
        if cell["attack"] != "FullOnUpdates" or cell["rule"] == "Mean"
    ]
    program = study.together(plan(at, inputs), inputs.of, measure)
    rows = study.run(
        study.Study(folder, cells, ("rule", "attack"), program, range(at.seeds)), args.cell
    )
    if rows is None:
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
        command=study.command(__file__, args),
        notes=(
            f"Logistic regression on {crafting.examples} examples of MNIST, {clients} clients (IID), "
            f"{inputs.malicious} malicious, {at.rounds} rounds, step {at.learning_rate:g}, "
            f"batch {at.batch_size}. {crafting.points} points: {crafting.iterations} steps of "
            f"length {crafting.point_step:g} against {crafting.training_steps} training steps of "
            f"{crafting.learning_rate:g}, to raise the {crafting.objective} loss."
        ),
        settings=study.settings(args, rows, crafting=crafting._asdict()),
    )
    print(f"\n{text}")
    print(write_central(folder / "central", central, study.command(__file__, args)))
    print(f"rows, tables and figures are in {folder}")


# --- Data and points -----------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Inputs:
    """Each seed's examples, points and partition."""

    dataset: Dataset
    pool: Batch
    """Each seed's examples and then its points, seed after seed: one array for all cells."""
    crafted: list[Batch]
    task: fr.Task
    crafting: Crafting
    clients: int

    @property
    def malicious(self) -> int:
        return fang_setting.malicious_of(self.clients)

    def of(self, run: study.Settings) -> dict[str, Any]:
        return {
            "data": self.federated(run["seed"], run["attack"]),
            "test": self.dataset.test,
        }

    def federated(self, seed: int, placement: str) -> fr.FederatedData:
        """``placement``: who owns the points, SingleWorker, Uniform (the compromised ones at random), or
        nobody."""
        key, points_key = jax.random.split(study.key(fang_setting.PARTITION, seed))
        points = self.crafting.points
        dealt = partition.iid(key, self.clean(seed), self.clients)
        owner = np.full(len(self.pool["y"]), -1)
        own = owner[self.block(seed)]  # a view
        _, rows, sizes = dealt
        for client, (mine, size) in enumerate(zip(rows, sizes, strict=True)):
            own[np.asarray(mine[:size])] = client
        if placement == "SingleWorker":
            own[-points:] = 0  # the partition deals to clients in random order
        elif placement == "Uniform":
            own[-points:] = jax.random.randint(points_key, (points,), 0, self.malicious)
        # The same width with and without points: the same program.
        capacity = rows.shape[1] + points
        return partition.from_owner(self.pool, owner, self.clients, capacity)

    def block(self, seed: int) -> slice:
        """The pool's rows of this seed."""
        size = self.crafting.examples + self.crafting.points
        return slice(seed * size, (seed + 1) * size)

    def clean(self, seed: int) -> Batch:
        block = self.block(seed)
        rows = slice(block.start, block.stop - self.crafting.points)
        return {name: values[rows] for name, values in self.pool.items()}


def crafted_inputs(
    folder: Path, at: fang_setting.Setting, crafting: Crafting, clients: int, data_dir: Path | None
) -> Inputs:
    dataset = load(at.data, data_dir)
    module = fang_setting.MODELS[at.model](dataset.num_classes)
    task = fr.classification(module, jnp.asarray(dataset.train["x"][:1]))

    def drawn(seed: int) -> list[Batch]:
        """The seed's examples, and as many others."""
        order = jax.random.permutation(study.key(DRAWN, seed), len(dataset.train["y"]))
        return [
            {name: jnp.asarray(values[rows]) for name, values in dataset.train.items()}
            for rows in np.split(np.asarray(order)[: 2 * crafting.examples], 2)
        ]

    def craft(run: study.Settings) -> dict[str, Any]:
        train, held_out = drawn(run["seed"])

        def points(iterations: int, progress: bool) -> tuple[Batch, np.ndarray]:
            return attacks.optimised.back_gradient_points(
                study.key(CRAFTED, run["seed"]),
                task,
                train,
                train if crafting.objective == "training" else held_out,
                crafting.points,
                iterations=iterations,
                step=crafting.point_step,
                learning_rate=crafting.learning_rate,
                training_steps=crafting.training_steps,
                progress=progress,
            )

        made, history = points(crafting.iterations, True)
        start = points(1, False)[0]["x"]
        return {"x": made["x"], "y": made["y"], "start": start, "history": history}

    rows = study.run(
        study.Study(
            folder / "points",
            [crafting._asdict()],
            (),
            lambda cell: lambda runs: map(craft, runs),
            range(at.seeds),
            values=(),
        )
    )
    crafted = [
        {
            "x": np.asarray(row["x"], np.float32),
            "y": np.asarray(row["y"], np.int32),
            "start": np.asarray(row["start"], np.float32),
            "history": np.asarray(row["history"]),
            "seconds": row["seconds"],
        }
        for row in rows or ()
    ]
    blocks = [part for seed, own in enumerate(crafted) for part in (drawn(seed)[0], own)]
    pool = {name: jnp.concatenate([block[name] for block in blocks]) for name in dataset.train}
    return Inputs(dataset, pool, crafted, task, crafting, clients)


# --- Centralised learning ------------------------------------------------------------------------


def central_rows(folder: Path, at: fang_setting.Setting, inputs: Inputs) -> list[dict[str, Any]]:
    """Testing error of logistic regression trained in one place, without and with the points."""

    def trained(run: study.Settings) -> dict[str, Any]:
        points, clean = inputs.crafted[run["seed"]], inputs.clean(run["seed"])
        start = inputs.task.init(jax.random.key(run["seed"]))
        flipped = {"x": points["start"], "y": points["y"]}
        crafted = {"x": points["x"], "y": points["y"]}
        found = {
            f"{kind}_{figure}": value
            for kind, extra in (("clean", []), ("flipped", [flipped]), ("poisoned", [crafted]))
            for figure, value in central_training(at, inputs, start, clean, extra).items()
        }
        return found | {
            "objective_start": points["history"][0],
            "objective_best": points["history"].max(),
            "crafting_seconds": points["seconds"],
        }

    cells = [inputs.crafting._asdict() | {"rounds": at.rounds}]
    rows = study.run(
        study.Study(
            folder / "central",
            cells,
            (),
            lambda cell: lambda runs: map(trained, runs),
            range(at.seeds),
            values=("clean_error", "poisoned_error"),
        )
    )
    return rows or []


def central_training(
    at: fang_setting.Setting, inputs: Inputs, start: jax.Array, clean: Batch, extra: list[Batch]
) -> dict[str, float]:
    """Full-batch gradient descent on the clean examples and extra ones."""
    task, test = inputs.task, inputs.dataset.test
    train = {k: jnp.concatenate([clean[k], *(batch[k] for batch in extra)]) for k in clean}

    def step(_: jax.Array, w: jax.Array) -> jax.Array:
        return w - at.learning_rate * jax.grad(task.loss)(w, train)

    w = jax.lax.fori_loop(0, at.rounds, step, start)
    wrong = jnp.argmax(task.logits(w, jnp.asarray(test["x"])), axis=-1) != test["y"]
    return {"error": float(wrong.mean()), "clean_loss": float(task.loss(w, clean))}


def write_central(folder: Path, central: list[dict[str, Any]], command: str) -> str:
    """Centralised training on the clean examples, with the points before crafting, and as crafted."""
    kinds = {"clean": "clean", "with the points before crafting": "flipped", "poisoned": "poisoned"}
    shared = ("seed", "objective_start", "objective_best", "crafting_seconds")
    provenance = report.provenance()
    rows = [
        {"training": "centralised", "examples": name, "error": row[f"{kind}_error"]}
        | {key: row[key] for key in (*shared, *provenance)}
        | {"clean_loss": row[f"{kind}_clean_loss"]}
        for row in central
        for name, kind in kinds.items()
    ]
    return report.write_table(
        folder,
        rows,
        {("centralised", name): value for name, value in PAPER_CENTRAL.items()},
        title="Fang et al. (2020), section 4.4: centralised training with poisoned data",
        command=command,
        line="training",
        columns="examples",
        notes="The paper crafted for 10 days on a GTX 1080Ti.",
        settings={name: central[0][name] for name in (*Crafting._fields, "rounds")},
    )


# --- Federated learning --------------------------------------------------------------------------


def plan(
    at: fang_setting.Setting, inputs: Inputs
) -> Callable[[study.Settings, dict[str, Any]], study.Plan]:
    """Table 2's runs; whose data are poisoned trains honestly, the mean meets the trimmed-mean attack."""

    class Names(NamedTuple):
        task: fr.Task
        num_classes: int

    usual = fang_setting.plan(at, Names(inputs.task, inputs.dataset.num_classes))

    def of(cell: study.Settings, given: dict[str, Any]) -> study.Plan:
        attack = "NoAttack" if cell["attack"] in BY_DATA else cell["attack"]
        return usual({**cell, "attack": attack}, given)

    return of


def measure(history: study.History) -> dict[str, Any]:
    return study.without([fang_setting.measure(history)], "best_error")[0]


def draw_points(path: Path, crafted: Batch, columns: int = 12) -> None:
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
    study.main(Args, main)
