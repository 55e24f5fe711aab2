"""Karimireddy, He, Jaggi: "Byzantine-Robust Learning on Heterogeneous Datasets via Bucketing", ICLR 2022.

  python experiments/karimireddy2022/bucketing.py --table exp2            mimic, ten non-IID cells
  python experiments/karimireddy2022/bucketing.py --table exp3 --momentum 0.9
  python experiments/karimireddy2022/bucketing.py --table exp1            no attack, a long tail
  python experiments/karimireddy2022/bucketing.py --table exp4            53 clients, centred clipping
  python experiments/karimireddy2022/bucketing.py --table exp7            Krum, larger buckets

MNIST, a CNN of 1,199,882 parameters with dropout, one step of 32 images per client and round, step .01 on
the aggregated gradient, 600 rounds; a cell takes 10 to 20 minutes of a CPU core. Reported is the mean of
the last five of twenty evaluations on the test set. Printed beside ours are the means in the authors' own
logs, from which their scripts write the paper's tables. Non-IID: the examples sorted by label in equal
slices over the *honest* clients. What is as in the authors' code:

- Malicious clients hold IID data. Under BF and LF they send plain gradients, without momentum, the
  others' momentum v <- beta v + g has no factor (1 - beta). ALIE, IPM and mimic are made of all honest
  clients' updates.
- RFA: 8 steps of Weiszfeld's algorithm from zero, smoothing .1 on gradients. Centred clipping: tau = 10
  on gradients, 3 steps. Both are in units of the update here: times the step.
- Buckets of s, in a new order each round; the rule's f stays.

Not as there: Krum compares squared distances, not their squares.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

import fedjax_robust as fr
from fedjax_robust import aggregators, attacks, metrics, report, study
from fedjax_robust import data as datasets
from fedjax_robust.models.starts import pytorch

Name = Literal["exp1", "exp2", "exp3", "exp4", "exp7"]
RULES = ("Avg", "Krum", "median", "RFA", "CClip")
ATTACKS = ("ALIE", "BF", "IPM", "LF", "mimic")
STEP, TAU, NU, EPSILON, TAIL = 0.01, 10.0, 0.1, 0.1, 0.5
PARTITION = 1  # what a seed's key is for; its rounds have ``jax.random.key(seed)`` itself

# The authors' logs, accuracy in per cent: rule x (without buckets, with s = 2).
EXP1 = {
    "non-IID": ((98.75, 98.74), (89.90, 93.27), (80.36, 95.59), (82.60, 97.34), (98.78, 98.75)),
    "IID": ((98.79, None), (97.95, None), (97.72, None), (98.62, None), (98.78, None)),
}
EXP2 = {
    "non-IID": ((92.73, 92.67), (37.33, 53.15), (64.27, 78.60), (78.93, 91.17), (91.53, 92.56)),
    "IID": ((93.20, 93.17), (90.36, 91.64), (90.80, 91.91), (92.92, 93.00), (93.16, 93.17)),
}
# Krum, median, RFA, CClip, by attack and momentum.
EXP3 = {
    ("ALIE", 0.0): ((78.88, 72.54), (78.92, 86.87), (79.66, 91.18), (91.11, 91.26)),
    ("ALIE", 0.9): ((11.37, 10.13), (9.94, 46.34), (11.37, 91.66), (98.04, 98.03)),
    ("BF", 0.0): ((27.85, 45.11), (37.15, 46.92), (68.75, 87.63), (75.19, 91.66)),
    ("BF", 0.9): ((9.92, 25.50), (42.89, 63.81), (82.77, 96.78), (97.65, 97.68)),
    ("IPM", 0.0): ((36.93, 54.09), (50.27, 67.52), (14.61, 90.60), (91.82, 92.63)),
    ("IPM", 0.9): ((9.99, 46.82), (36.23, 59.28), (13.49, 95.90), (97.63, 97.66)),
    ("LF", 0.0): ((1.03, 20.19), (35.57, 52.68), (90.34, 91.60), (90.93, 91.83)),
    ("LF", 0.9): ((1.02, 43.29), (50.61, 70.55), (95.77, 97.40), (97.64, 97.69)),
    ("mimic", 0.0): ((37.33, 53.15), (64.27, 78.60), (78.93, 91.17), (91.53, 92.56)),
    ("mimic", 0.9): ((29.01, 64.84), (57.17, 76.46), (85.92, 97.14), (97.78, 97.82)),
}
# n = 53, IPM: f, s, momentum 0, momentum .9.
EXP4 = (
    (5, 0, 92.58, 97.84),
    (5, 2, 93.12, 97.86),
    (5, 5, 93.18, 97.89),
    (1, 2, 93.38, 97.94),
    (6, 2, 93.06, 97.86),
    (12, 2, 92.61, 97.65),
)
EXP7 = {0: 0.64, 2: 72.47, 3: 84.87}


class CNN(nn.Module):
    """The authors' network for MNIST; starts as in PyTorch."""

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        """x (b, 28, 28, 1) -> logits (b, 10)."""
        x = nn.relu(nn.Conv(32, (3, 3), padding="VALID", **pytorch(9))(x))
        x = nn.relu(nn.Conv(64, (3, 3), padding="VALID", **pytorch(9 * 32))(x))
        x = nn.max_pool(x, (2, 2), (2, 2))
        # PyTorch's Dropout2d: whole channels.
        x = nn.Dropout(0.25, broadcast_dims=(1, 2), deterministic=not train)(x)
        x = x.reshape(x.shape[0], -1)
        x = nn.relu(nn.Dense(128, **pytorch(x.shape[1]))(x))
        x = nn.Dropout(0.5, broadcast_dims=(), deterministic=not train)(x)
        return nn.Dense(10, **pytorch(128))(x)


@dataclasses.dataclass
class Args(study.Args):
    """Reproduce the tables of the bucketing paper. Accuracies are fractions."""

    table: Name = "exp2"
    """The experiment, by the names of the authors' scripts."""
    momentum: float = 0.0
    """The honest clients' (exp3 and exp4: 0 or 0.9)."""
    iid: bool = False
    """IID data instead (exp1, exp2)."""
    seeds: int = 1
    """Trials with other partitions, models and batches."""
    rules: tuple[str, ...] = ()
    """Rules to run; default all of the table."""
    attacks: tuple[str, ...] = ()
    """Attacks to run; default all of the table (exp3)."""
    out: Path = Path("results/karimireddy2022")
    """Where results go."""


def cells_of(args: Args) -> tuple[list[dict[str, Any]], dict[report.Cell, float]]:
    """The cells of a table, and the authors' numbers as fractions."""
    fixed: dict[str, Any] = {
        "data": "mnist",
        "clients": 25,
        "malicious": 5,
        "attack": "mimic",
        "momentum": args.momentum,
        "iid": args.iid,
        "batch_size": 32,
        "rounds": args.rounds or (1200 if args.table == "exp7" else 600),
        "long_tail": False,
    }
    every, printed = max(fixed["rounds"] // 20, 1), {}
    cells: list[dict[str, Any]] = []

    def add(column: str, rule: str, s: int, accuracy: float | None, **changes: Any) -> None:
        name = rule if s == 0 else f"{rule}, s = {s}"
        cell = {**fixed, "every": every, "rule": rule, "bucket": s, **changes}
        cells.append({**cell, "line": name, "column": column})
        if accuracy is not None:
            printed[(name, column)] = accuracy / 100

    column = "IID" if args.iid else "non-IID"
    if args.table in ("exp1", "exp2"):
        changes = (
            {"clients": 24, "malicious": 0, "attack": "none", "long_tail": True}
            if args.table == "exp1"
            else {}
        )
        numbers = (EXP1 if args.table == "exp1" else EXP2)[column]
        for rule, pair in zip(RULES, numbers, strict=True):
            for s, number in zip((0, 2), pair, strict=True):
                add(column, rule, s, number, **changes)
    elif args.table == "exp3":
        for attack in args.attacks or ATTACKS:
            for rule, pair in zip(RULES[1:], EXP3[attack, args.momentum], strict=True):
                for s, number in zip((0, 2), pair, strict=True):
                    add(attack, rule, s, number, attack=attack)
    elif args.table == "exp4":
        for f, s, *both in EXP4:
            changes = {"clients": 53, "malicious": f, "attack": "IPM"}
            add(f"f = {f}", "CClip", s, both[args.momentum > 0], **changes)
    else:
        for s, number in EXP7.items():
            add("LF", "Krum", s, number, clients=20, malicious=3, attack="LF")
    if args.rules:
        cells = [cell for cell in cells if cell["rule"] in args.rules]
    if args.smoke:
        cells = cells[:3]
        for cell in cells:
            cell |= {"clients": 7, "malicious": min(cell["malicious"], 1), "batch_size": 2}
            cell |= {"rounds": 2, "every": 1, "images": 300, "smoke": True}
    shown = {(cell["line"], cell["column"]) for cell in cells}
    return cells, {cell: number for cell, number in printed.items() if cell in shown}


def check(args: Args) -> None:
    """What the command line would silently not do."""
    if args.momentum not in (0.0, 0.9):
        raise ValueError(f"--momentum must be 0 or 0.9, as printed, got {args.momentum}")
    if args.momentum and args.table not in ("exp3", "exp4"):
        raise ValueError(f"--momentum is for exp3 and exp4, got --table {args.table}")
    if args.iid and args.table not in ("exp1", "exp2"):
        raise ValueError(f"--iid is for exp1 and exp2, got --table {args.table}")
    if args.attacks and args.table != "exp3":
        raise ValueError(f"--attacks is for exp3, got --table {args.table}")
    for what, given, known in (("rule", args.rules, RULES), ("attack", args.attacks, ATTACKS)):
        if unknown := [name for name in given if name not in known]:
            raise ValueError(f"there is no {what} {unknown}; there are {list(known)}")


# --- One run -------------------------------------------------------------------------------------


def rule_of(cell: study.Settings) -> fr.Aggregator:
    """The cell's rule, its thresholds in units of the update."""
    f = cell["malicious"]
    make: dict[str, Callable[[], fr.Aggregator]] = {
        "Avg": aggregators.mean,
        "Krum": lambda: aggregators.krum(f),
        "median": aggregators.median,
        "RFA": lambda: aggregators.rfa(steps=8, smoothing=NU * STEP, from_zero=True),
        "CClip": lambda: aggregators.centered_clipping(TAU * STEP, steps=3),
    }
    rule = make[cell["rule"]]()
    return aggregators.bucketing(cell["bucket"], base=rule) if cell["bucket"] else rule


def simulation(cell: study.Settings, task: fr.Task) -> fr.Simulation:
    beta, b = cell["momentum"], cell["batch_size"]
    client = fr.local_sgd(task, STEP, b, momentum=beta, keep_momentum=beta > 0)
    plain = fr.local_sgd(task, STEP, b)
    flipping = fr.local_sgd(task, STEP, b, poison=attacks.poisons.label_flip(10))
    attack = {
        "none": attacks.no_attack,
        "ALIE": attacks.alie,
        "BF": lambda: attacks.sign_flip()._replace(client=plain),
        "IPM": lambda: attacks.ipm(EPSILON),
        "LF": lambda: attacks.data_poisoning(flipping),
        "mimic": attacks.mimic,
    }[cell["attack"]]()
    return fr.Simulation(
        task=task,
        client=client,
        aggregator=rule_of(cell),
        attack=attack,
        knowledge=attack.needs,
        num_malicious=cell["malicious"],
        client_chunk=study.client_chunk(None),
    )


def partition(cell: study.Settings, y: np.ndarray, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Rows of the pool (clients, m) and how many are each client's own (clients,), malicious first."""
    rng = np.random.default_rng([PARTITION, seed])
    honest = cell["clients"] - cell["malicious"]
    rows = rng.permutation(len(y))
    if cell["long_tail"]:  # class k keeps a share .5^k of its examples
        share = TAIL ** np.arange(10)
        own = [rows[y[rows] == k] for k in range(10)]
        rows = rng.permutation(
            np.concatenate([r[: round(len(r) * share[k])] for k, r in enumerate(own)])
        )
    if not cell["iid"]:
        rows = rows[np.argsort(y[rows], kind="stable")]
    m = len(rows) // honest
    slices = rows[: m * honest].reshape(honest, m)
    malicious = [rng.choice(len(y), m, replace=False) for _ in range(cell["malicious"])]
    index = np.concatenate([np.reshape(malicious, (-1, m)), slices]).astype(np.int32)
    return index, np.full(len(index), m, np.int32)


def program_of(args: Args, folder: Path) -> Callable[[study.Settings], study.Compute]:
    dataset = datasets.load("mnist", args.data_dir)

    def examples(part: dict[str, Any], number: int | None) -> dict[str, jax.Array]:
        x = (jnp.asarray(part["x"][:number]) - 0.1307) / 0.3081
        return {"x": x, "y": jnp.asarray(part["y"][:number])}

    def plan(run: study.Settings, inputs: Any) -> study.Plan:
        pool, test, index, count = inputs
        task = fr.classification(CNN(), pool["x"][:1])
        data = fr.FederatedData(pool, jnp.asarray(index), jnp.asarray(count))
        evaluate = metrics.test_error(task, test)
        return study.Plan(simulation(run, task), data, run["rounds"], evaluate, run["every"])

    def inputs(run: study.Settings) -> Any:
        pool = examples(dataset.train, run.get("images"))
        test = examples(dataset.test, run.get("images"))
        return pool, test, *partition(run, np.asarray(pool["y"]), run["seed"])

    return study.one_by_one(plan, inputs, measure, folder, KEYS)


KEYS = ("line", "column")


def measure(history: study.History) -> dict[str, float]:
    """The mean of the last five evaluations, and the best one."""
    accuracy = 1 - np.asarray(history["test_error"], float)
    return {"accuracy": float(np.mean(accuracy[-5:])), "best_accuracy": float(accuracy.max())}


def main(args: Args) -> None:
    """Run what is missing of one table, then print and draw it."""
    check(args)
    cells, printed = cells_of(args)
    words = [args.table] + (["IID"] if args.iid else [])
    words += [f"momentum-{args.momentum:g}"] if args.table in ("exp3", "exp4") else []
    words += [f"{args.rounds}-rounds"] if args.rounds else []
    folder = args.out / "-".join(words + (["smoke"] if args.smoke else []))
    rows = study.run(
        study.Study(
            folder,
            cells,
            KEYS,
            program_of(args, folder),
            range(1 if args.smoke else args.seeds),
            values=("accuracy",),
        ),
        args.cell,
    )
    if rows is None:
        return
    text = report.write_table(
        folder,
        rows,
        printed,
        line="line",
        columns="column",
        value="accuracy",
        metric="test accuracy",
        title=f"Karimireddy et al. (2022), bucketing, {args.table}",
        notes=notes(cells[0]),
        tolerance=0.02,
        command=study.command(__file__, args),
        settings=study.settings(args, rows),
    )
    print(f"\n{text}\nrows, table and figure are in {folder}")


def notes(cell: study.Settings) -> str:
    """The settings in words."""
    return (
        f"MNIST, CNN of 1.2 million parameters, {cell['clients']} clients, {cell['rounds']} rounds of "
        f"one step of {cell['batch_size']} images, momentum {cell['momentum']:g}, "
        f'{"IID" if cell["iid"] else "sorted by label"}; mean of the last five evaluations; "paper": the '
        "authors' logs"
    )


if __name__ == "__main__":
    study.main(Args, main)
