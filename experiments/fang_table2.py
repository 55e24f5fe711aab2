"""Table 2 of Fang et al. (2020): testing error rates under five attacks.

Fang, Cao, Jia, Gong: "Local Model Poisoning Attacks to Byzantine-Robust Federated Learning", USENIX
Security 2020, section 4. Three rules (Krum, trimmed mean, median) x five attacks (none, Gaussian,
label flipping, and the paper's own with partial and full knowledge), 100 workers of which 20 are
compromised, non-IID degree 0.5, one SGD step per worker and round.

  python experiments/fang_table2.py --table 2e              Breast Cancer, data bundled
  python experiments/fang_table2.py --table 2a --seeds 5    logistic regression on MNIST
  python experiments/fang_table2.py --table 2b --clients 20 --rounds 200 --learning-rate 0.1

Table 2b's runs also give Table 3, their best iterates.

What the paper does not print, and what is taken here:

- Learning rates: 0.1 on mean gradients for logistic regression and the DNN of 2e, 0.01 for the DNNs.
- The direction s of the full-knowledge attack on trimmed mean and median: that of the mean of all
  before-attack updates, as in the authors' code. Row ``FullOwnRule`` has the rule's own, which is what
  section 3.1 says and which is much weaker.
- 2e: Table 7a's convolutions do not fit 30 features, so its dense part is used: 200 ReLU units.

Results go to ``--out``/<table>: one file per finished cell and seed (a killed run goes on after the
last one), ``rows.csv`` and ``rows.json``, ``table.md``, ``curves.png``, ``comparison.png``, and
``table.json``, from which ``make_report.py`` knows what they are.
"""

from __future__ import annotations

import dataclasses
import os
import shlex
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Literal, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import tyro
from common import my_share, share_is_done, use_compilation_cache
from tqdm import tqdm

import fedjax_robust as fr
from fedjax_robust import aggregators, attacks, metrics, models, report
from fedjax_robust.data import Dataset, load, partition

PARTICIPANTS = 100
MALICIOUS_SHARE = 0.2
NON_IID = 0.5
RULES = ("Krum", "Trimmed mean", "Median")
ATTACKS = ("NoAttack", "Gaussian", "LabelFlip", "Partial", "Full", "FullOwnRule")


class Table(NamedTuple):
    """One sub-table: its setting and the printed errors, rule -> the first five of ATTACKS."""

    data: str
    model: Callable[[int], nn.Module]
    rounds: int
    batch_size: int
    learning_rate: float
    seeds: int
    seeds_together: bool
    """All seeds in one program (small models), or one after the other with checkpoints."""
    paper: dict[str, tuple[float, ...]]
    evaluations: int = 50
    """How often a run is evaluated."""


def logistic_regression(num_classes: int) -> nn.Module:
    return models.SoftmaxRegression(num_classes)


def dnn(num_classes: int) -> nn.Module:
    return models.FangDNN(num_classes)


def dense_dnn(num_classes: int) -> nn.Module:
    return models.MLP(num_classes, hidden=(200,))


TABLES = {
    "2a": Table("mnist", logistic_regression, 500, 32, 0.1, 5, True, {
        "Krum": (0.14, 0.13, 0.13, 0.72, 0.80),
        "Trimmed mean": (0.12, 0.11, 0.13, 0.23, 0.52),
        "Median": (0.13, 0.13, 0.15, 0.19, 0.29),
    }),
    "2b": Table("mnist", dnn, 2000, 32, 0.01, 3, False, {
        "Krum": (0.11, 0.10, 0.10, 0.75, 0.77),
        "Trimmed mean": (0.06, 0.07, 0.07, 0.14, 0.23),
        "Median": (0.06, 0.06, 0.16, 0.28, 0.32),
    }, 10),  # 10,000 test images take several rounds' time
    "2c": Table("fashion_mnist", dnn, 2000, 64, 0.01, 3, False, {
        "Krum": (0.16, 0.16, 0.16, 0.90, 0.91),
        "Trimmed mean": (0.10, 0.10, 0.12, 0.26, 0.28),
        "Median": (0.09, 0.12, 0.12, 0.21, 0.29),
    }, 10),  # 10,000 test images take several rounds' time
    "2e": Table("breast_cancer", dense_dnn, 2000, 32, 0.1, 10, True, {
        "Krum": (0.03, 0.04, 0.14, 0.17, 0.17),
        "Trimmed mean": (0.02, 0.03, 0.05, 0.14, 0.15),
        "Median": (0.03, 0.03, 0.04, 0.17, 0.18),
    }),
}  # fmt: skip
PAPER_3 = {  # the runs of 2b, each with its best iterate
    "Krum": (0.10, 0.10, 0.09, 0.69, 0.70),
    "Trimmed mean": (0.06, 0.06, 0.07, 0.12, 0.18),
    "Median": (0.06, 0.06, 0.06, 0.11, 0.32),
}
PAPER_2D = {  # ResNet20 on CH-MNIST: waiting for the data, whose loader is there
    "Krum": (0.29, 0.30, 0.43, 0.73, 0.81),
    "Trimmed mean": (0.17, 0.25, 0.37, 0.69, 0.69),
    "Median": (0.17, 0.20, 0.17, 0.57, 0.63),
}


@dataclasses.dataclass
class Args:
    """Reproduce Table 2 of Fang et al. (2020). Errors are fractions of the test set."""

    table: Literal["2a", "2b", "2c", "2d", "2e", "3"] = "2e"
    """Which table: LR MNIST, DNN MNIST, DNN Fashion-MNIST, CH-MNIST, DNN Breast Cancer; 3, the best
    iterates of 2b, comes with 2b."""
    seeds: int | None = None
    """Trials with other splits, partitions, models and batches; default 10 (2e), 5 (2a), 3 (2b, 2c)."""
    rounds: int | None = None
    """Rounds instead of the paper's 500 (2a) or 2,000."""
    clients: int = PARTICIPANTS
    """Clients; 20 % of them are malicious."""
    learning_rate: float | None = None
    """Step on the mean gradient, instead of the table's."""
    evaluations: int | None = None
    """Evaluations per run, evenly spread; default 50 (2a, 2e) or 10. Table 3 takes the best of them; the
    paper's has all rounds."""
    client_chunk: int | None = None
    """Train so many clients at a time; default all."""
    rules: tuple[Literal["Krum", "Trimmed mean", "Median"], ...] = RULES
    """Rules to run."""
    attacks: tuple[
        Literal["NoAttack", "Gaussian", "LabelFlip", "Partial", "Full", "FullOwnRule"], ...
    ] = ATTACKS
    """Attacks to run."""
    data_dir: Path | None = None
    """Folder of the data sets; default FEDJAX_ROBUST_DATA, else where TFDS keeps its own."""
    out: Path = Path("results/fang_table2")
    """Where results go."""
    cell: str | None = None
    """Compute only the i-th of N shares of the cells, i/N, so that N machines work on one table; then
    the same command without it gathers their files."""
    smoke: bool = False
    """Few clients, rounds and one seed, to see that everything works; the numbers mean nothing."""


def main(args: Args) -> None:
    """Run what is missing of one table, then print and draw it."""
    if args.table == "2d":
        wait_for_ch_mnist(args.data_dir)
        return
    if args.table == "3":
        args = dataclasses.replace(args, table="2b")
    table = with_overrides(TABLES[args.table], args)
    clients = 20 if args.smoke else args.clients
    folder = args.out / (args.table + ("-smoke" if args.smoke else ""))
    settings = {
        "table": args.table,
        "data": table.data,
        "model": table.model.__name__,
        "rounds": table.rounds,
        "batch_size": table.batch_size,
        "learning_rate": table.learning_rate,
        "clients": clients,
        "malicious": round(MALICIOUS_SHARE * clients),
        "p": NON_IID,
        "evaluations": table.evaluations,
    }
    seeds = range(table.seeds)
    inputs = Inputs(table, clients, args.data_dir)
    rows: list[dict[str, Any]] = []
    curves: dict[str, dict[str, Any]] = {}
    provenance = report.provenance()
    cells = [
        settings | {"rule": rule, "attack": attack}
        for rule in args.rules
        for attack in args.attacks
        if not (rule == "Krum" and attack == "FullOwnRule")  # Krum's attack goes by Krum anyway
    ]
    cells = my_share(cells, args.cell)
    # Small models leave cores idle, so their cells run beside each other.
    jobs = (os.cpu_count() or 1) if table.seeds_together and jax.default_backend() == "cpu" else 1

    def results_of(cell: dict[str, Any]) -> list[dict[str, Any]]:
        return run_cell(folder, cell, table, inputs, seeds, args.client_chunk, provenance)

    with ThreadPoolExecutor(jobs) as pool:
        done = tqdm(
            zip(cells, pool.map(results_of, cells), strict=True), total=len(cells), unit="cell"
        )
        for cell, results in done:
            rule, attack = cell["rule"], cell["attack"]
            rows += [cell | {"seed": s} | r for s, r in zip(seeds, results, strict=True)]
            curves.setdefault(rule, {})[attack] = [r["curve"] for r in results]
            errors = [r["error"] for r in results]
            spread = f" +- {np.std(errors, ddof=1):.3f}" if len(errors) > 1 else ""
            done.write(f"{args.table} {rule:13s} {attack:12s} error {np.mean(errors):.3f}{spread}")
    if share_is_done(args.cell, folder):
        return
    title = f"Fang et al. (2020), Table {args.table}: {table.data}, {clients} clients"
    rows = [{k: v for k, v in row.items() if k != "curve"} for row in rows]
    notes = (
        f"{table.model.__name__} on {table.data} ({inputs.note}), {clients} clients, "
        f"{settings['malicious']} malicious, {table.rounds} rounds, step "
        f"{table.learning_rate:g}, batch {table.batch_size}"
    )
    command = command_line("fang_table2.py", args)
    paper = paper_numbers(table.paper, args.rules, args.attacks)
    text = report.write_table(folder, rows, paper, title=title, command=command, notes=notes)
    print(f"\n{text}")
    if args.table == "2b":
        text = report.write_table(
            args.out / folder.name.replace("2b", "3"),
            rows,
            paper_numbers(PAPER_3, args.rules, args.attacks),
            title=f"Fang et al. (2020), Table 3: best iterate, {table.data}, {clients} clients",
            command=command,
            value="best_error",
            metric="lowest testing error rate of a run",
            notes=f"{notes}; the lowest of {len(evaluated(table))} evaluations per run",
        )
        print(text)
    report.plot_curves(folder / "curves.png", evaluated(table), curves, title=title)
    print(f"rows, table and figures are in {folder}")


def paper_numbers(
    paper: dict[str, tuple[float, ...]],
    rules: tuple[str, ...] = RULES,
    attacks: tuple[str, ...] = ATTACKS,
) -> dict[report.Cell, float]:
    """{(attack, rule): printed error} of some of a table's cells."""
    return {
        (attack, rule): value
        for rule in rules
        for attack, value in zip(ATTACKS, paper[rule], strict=False)
        if attack in attacks
    }


def command_line(script: str, args: Any) -> str:
    """The command that runs an experiment with these arguments, as far as they are not its defaults;
    without the folders of this machine."""
    words = ["python", f"experiments/{script}"]
    for field in dataclasses.fields(args):
        value = getattr(args, field.name)
        if value != field.default and not isinstance(value, Path):
            words.append("--" + field.name.replace("_", "-"))
            if value is not True:
                words += map(str, value if isinstance(value, tuple) else (value,))
    return shlex.join(words)


def with_overrides(table: Table, args: Args) -> Table:
    changes: dict[str, Any] = {
        name: getattr(args, name)
        for name in ("seeds", "rounds", "learning_rate", "evaluations")
        if getattr(args, name) is not None
    }
    if args.smoke:
        changes = {"rounds": 4, "seeds": 1} | changes
    return table._replace(**changes)


def evaluation_interval(table: Table) -> int:
    return max(table.rounds // table.evaluations, 1)


def evaluated(table: Table) -> np.ndarray:
    """Rounds after which ``run`` evaluates."""
    every = evaluation_interval(table)
    done = np.arange(every, table.rounds + 1, every)
    return done if done[-1] == table.rounds else np.append(done, table.rounds)


class Inputs:
    """Each seed's data set and partition, loaded when first needed.

    Variants may change the data set, or the partition, by a function of it.
    """

    def __init__(
        self,
        table: Table,
        clients: int,
        data_dir: Path | None,
        change_data: Callable[[Dataset], Dataset] = lambda dataset: dataset,
        change_partition: Callable[[fr.FederatedData], fr.FederatedData] = lambda data: data,
    ):
        self.table, self.clients, self.data_dir = table, clients, data_dir
        self.change_data, self.change_partition = change_data, change_partition
        self.fixed = table.data != "breast_cancer"  # split by its publishers
        self.shared = change_data(load(table.data, data_dir, jax.random.key(0)))
        self.note = self.shared.note or "its published split"
        self.num_classes = self.shared.num_classes
        self.task = fr.classification(
            table.model(self.num_classes), jnp.asarray(self.shared.train["x"][:1])
        )
        # One array on the device for all seeds of a data set with a published split.
        self.pool = {k: jnp.asarray(v) for k, v in self.shared.train.items()} if self.fixed else {}

    def dataset(self, seed: int) -> Dataset:
        if self.fixed:
            return self.shared
        key = jax.random.fold_in(jax.random.key(1), seed)
        return self.change_data(load(self.table.data, self.data_dir, key))

    def federated(
        self, seed: int, p: float = NON_IID, clients: int | None = None
    ) -> fr.FederatedData:
        key = jax.random.fold_in(jax.random.key(2), seed)
        examples = self.pool if self.fixed else self.dataset(seed).train
        number = self.clients if clients is None else clients
        data = partition.by_group(key, examples, number, p, self.num_classes)
        return self.change_partition(data)


def run_cell(
    folder: Path,
    cell: dict[str, Any],
    table: Table,
    inputs: Inputs,
    seeds: range,
    client_chunk: int | None,
    provenance: dict[str, Any],
) -> list[dict[str, Any]]:
    """The results of every seed: those on disk are read, the missing ones are computed."""

    def name(seed: int) -> str:
        return f"{cell['rule']}-{cell['attack']}-{seed}".replace(" ", "_")

    if client_chunk is None and table.model is dnn and jax.default_backend() == "cpu":
        client_chunk = 1  # half the time of all at once, as its patches stay in the cache
    results = {s: report.load_cell(folder, name(s), cell | {"seed": s}) for s in seeds}
    missing = [s for s in seeds if results[s] is None]
    sim = simulation(table, inputs, cell["rule"], cell["attack"], cell["malicious"])
    sim = sim._replace(client_chunk=client_chunk)

    def keep(seed: int, history: dict[str, np.ndarray], seconds: float) -> None:
        errors = np.asarray(history["test_error"], float)
        result = {
            "error": errors[-1],
            "best_error": errors.min(),
            "seconds": seconds,
            **selection(history),
            **provenance,
            "curve": errors,
        }
        report.save_cell(folder, name(seed), cell | {"seed": seed}, result)
        results[seed] = result

    if missing and table.seeds_together:
        started = time.perf_counter()
        histories = run_together(sim, table, inputs, missing)
        seconds = (time.perf_counter() - started) / len(missing)
        for i, seed in enumerate(missing):
            keep(seed, {k: np.asarray(v)[i] for k, v in histories.items()}, seconds)
    elif missing:
        for seed in missing:
            started = time.perf_counter()
            checkpoint = folder / "checkpoints" / f"{name(seed)}.npz"
            _, history = fr.run(
                sim,
                jax.random.key(seed),
                inputs.federated(seed),
                table.rounds,
                evaluate=metrics.test_error(inputs.task, inputs.dataset(seed).test),
                evaluate_every=evaluation_interval(table),
                progress=True,
                checkpoint=checkpoint,
            )
            keep(seed, jax.device_get(history), time.perf_counter() - started)
            checkpoint.unlink(missing_ok=True)
    return [results[s] for s in seeds]  # type: ignore[misc]


def run_together(
    sim: fr.Simulation, table: Table, inputs: Inputs, seeds: list[int]
) -> dict[str, jax.Array]:
    """One program for all seeds: history arrays with a leading seed axis."""
    data = [inputs.federated(s) for s in seeds]
    tests = [inputs.dataset(s).test for s in seeds]
    if inputs.fixed:
        stacked, test = partition.stack(data), tests[0]
        axis = None
    else:  # every seed has its own split, so also its own pool
        width = max(d.index.shape[1] for d in data)
        padded = [
            d._replace(index=jnp.pad(d.index, ((0, 0), (0, width - d.index.shape[1]))))
            for d in data
        ]
        stacked = jax.tree.map(lambda *x: jnp.stack(x), *padded)
        test = jax.tree.map(lambda *x: np.stack(x), *tests)
        axis = 0

    def one(key: jax.Array, data: fr.FederatedData, test: dict) -> dict[str, jax.Array]:
        evaluate = metrics.test_error(inputs.task, test)
        every = evaluation_interval(table)
        return fr.run(sim, key, data, table.rounds, evaluate=evaluate, evaluate_every=every)[1]

    keys = jnp.stack([jax.random.key(s) for s in seeds])
    if axis is None:
        return each(
            lambda key, index, count: one(key, stacked._replace(index=index, count=count), test),
            (keys, stacked.index, stacked.count),
        )
    return each(one, (keys, stacked, test))


def each(one: Callable[..., Any], arguments: tuple[Any, ...]) -> Any:
    """``one(*arguments)`` for each entry along the arguments' leading axes, in one program.

    All at once on an accelerator. On a CPU one after the other: its cache holds the batches of one run
    but not those of several, which took three times as long together.
    """
    number = len(arguments[0])
    at_once = 1 if jax.default_backend() == "cpu" else number
    if at_once == 1:
        return jax.lax.map(lambda own: one(*own), arguments)
    return jax.vmap(one)(*arguments)


def selection(history: dict[str, np.ndarray]) -> dict[str, float]:
    """For rules that select rows: the share of rounds in which a malicious row was selected."""
    if "selected" not in history:
        return {}
    bad = np.any(history["selected"] & history["malicious"], axis=-1)
    return {"malicious_selected": float(bad.mean())}


def simulation(
    table: Table,
    inputs: Inputs,
    rule: str,
    attack: str,
    malicious: int,
    *,
    f: int | None = None,
    steps: int = 1,
    epsilon: float | jax.Array = 0.01,
) -> fr.Simulation:
    """The paper's setting. By default the server knows the number of malicious clients.

    ``f`` is the rule's, ``steps`` the local ones per round, ``epsilon`` the Krum attacks'.
    """
    task, step, batch = inputs.task, table.learning_rate, table.batch_size
    f = malicious if f is None else f
    aggregator = {
        "Krum": aggregators.krum(f),
        "Trimmed mean": aggregators.trimmed_mean(f),
        "Median": aggregators.median(),
    }[rule]
    flip = attacks.label_flip(inputs.num_classes)
    flipping = fr.local_sgd(task, step, batch, steps=steps, poison=flip)
    krum = rule == "Krum"
    crafted, knowledge = {
        "NoAttack": (attacks.no_attack(), fr.Knowledge()),
        "Gaussian": (attacks.gaussian(), fr.Knowledge(others=True)),
        "LabelFlip": (attacks.data_poisoning(flipping), fr.Knowledge()),
        "Partial": (
            attacks.fang_krum_partial(epsilon=epsilon) if krum else attacks.fang_trim_partial(),
            fr.Knowledge(rule=True),
        ),
        "Full": (
            attacks.fang_krum_full(epsilon=epsilon)
            if krum
            else attacks.fang_trim_full(before=aggregators.mean()),
            fr.Knowledge(others=True, rule=True),
        ),
        "FullOwnRule": (attacks.fang_trim_full(), fr.Knowledge(others=True, rule=True)),
    }[attack]
    return fr.Simulation(
        task=task,
        client=fr.local_sgd(task, step, batch, steps=steps),
        aggregator=aggregator,
        attack=crafted,
        knowledge=knowledge,
        num_malicious=malicious,
    )


def wait_for_ch_mnist(data_dir: Path | None) -> None:
    """Table 2d cannot be run yet: say what is missing and what the paper prints."""
    lines = [{"rule": rule} | dict(zip(ATTACKS, v, strict=False)) for rule, v in PAPER_2D.items()]
    print("Table 2d, ResNet20 on CH-MNIST, as printed (testing error rate, fraction):\n")
    print(report.markdown_table(lines))
    try:
        data = load("ch_mnist", data_dir)
        print(f"\nThe data are there ({data.note}), but ResNet20 is not part of the package yet.")
    except FileNotFoundError as error:
        print(f"\nOurs is waiting for the data. {error}")


if __name__ == "__main__":
    use_compilation_cache()
    main(tyro.cli(Args))
