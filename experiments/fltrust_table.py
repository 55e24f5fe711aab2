"""The main table of FLTrust: six settings, attacks and rules; and its table of variants.

Cao, Fang, Liu, Gong: "FLTrust: Byzantine-robust Federated Learning via Trust Bootstrapping", NDSS 2021.

  python experiments/fltrust_table.py --setting mnist-0.5-lr       logistic regression: minutes on a CPU
  python experiments/fltrust_table.py --setting har
  python experiments/fltrust_table.py --setting mnist-0.5-lr --table variants
  python experiments/fltrust_table.py --setting mnist-0.5          the paper's CNN; wants a GPU
  python experiments/fltrust_table.py --setting mnist-0.5 --clients 20 --rounds 200 \
      --learning-rate 0.1 --seeds 1                                the CNN, reduced

In each round all clients make one SGD step. The root data are 100 training examples, as many of each
class, and no client owns them. Krum's f and the trim parameter are the number of malicious clients, and
averages weigh clients equally. What the paper leaves open, and what is taken here:

- Learning rates: those of the authors' code on mean gradients; the server's step on its whole root set
  is 100 / b times as long, as there (``--server-learning-rate`` takes another).
- *Trim* takes s by the mean of all updates and crafts updates, not models, as the authors' code;
  ``TrimModels`` crafts models. *Krum* is full knowledge, too, and the same in both.
- *Scaling*: malicious clients own their data twice, the copies with trigger and target label, and send
  their update times n. *Adaptive* is Algorithm 3, started by Trim; ``FirstOrder`` climbs the same
  objective by gradients through the server's own rule (FedAvg and FLTrust only), from the clients' own
  updates. Both know all.
- Batch norm (CIFAR-10, CH-MNIST) uses the statistics of each batch; no augmentation, no decay.

Numbers beside ours: for mnist-0.1 those in the paper's text; for mnist-0.5 a third party's run of the
authors' code (one run per cell). There are none for the other settings and for logistic regression.

Results go to ``--out``/<setting>: one file per finished run, so that a killed script goes on after the
last one; ``rows``, ``table.md``, ``comparison.png``; and attack success rates beside it in
<setting>-attack-success. They leave out test examples whose true label is the target.
"""

from __future__ import annotations

import dataclasses
import functools
import os
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import tyro
from common import my_share, share_is_done, use_compilation_cache
from fang_table2 import command_line
from flax import linen as nn
from tqdm import tqdm

import fedjax_robust as fr
from fedjax_robust import aggregators, attacks, metrics, models, report
from fedjax_robust.attacks.backdoor import Trigger
from fedjax_robust.data import Dataset, load, partition

Batch = dict[str, Any]
Paper = dict[report.Cell, float]


class Setting(NamedTuple):
    """One data set and model."""

    data: str
    model: Callable[[int], nn.Module]
    q: float | None
    """Degree of non-IID; None = users are clients."""
    clients: int
    rounds: int
    batch_size: int
    learning_rate: float
    """On mean gradients."""
    trigger: Trigger
    target: int = 0
    paper: Paper | None = None
    source: str = ""


MALICIOUS_SHARE = 0.2
RULES = ("FedAvg", "Krum", "Trim-mean", "Median", "FLTrust")
VARIANTS = (
    "FLTrust-Server",
    "FLTrust-withServer",
    "FLTrust-NoReLU",
    "FLTrust-NoNorm",
    "FLTrust-ParNorm",
    "FLTrust",
)
ATTACKS = ("None", "LF", "Krum", "Trim", "Scaling", "Adaptive")
MORE_ATTACKS = ("TrimModels", "FirstOrder")
ORDER_STATISTICS = ("Krum", "Trim-mean", "Median")
"""Fang et al.'s attacks are made for these; gradients through them are slow, and none for Krum."""
IN_THE_TEXT: Paper = {
    ("None", "FedAvg"): 0.04,
    ("None", "Krum"): 0.10,
    ("Krum", "Krum"): 0.90,
    **{(attack, "FLTrust"): 0.04 for attack in ATTACKS},
}
THIRD_PARTY: Paper = {
    (attack, rule): round(1 - accuracy, 4)
    for attack, accuracies in {
        "None": (0.9550, 0.8966, 0.9400, 0.9385, 0.9522),
        "LF": (0.9377, 0.9007, 0.8915, 0.9412, 0.9492),
        "Krum": (0.8921, 0.0983, 0.7979, 0.1083, 0.9391),
        "Trim": (0.7489, 0.8986, 0.7043, 0.6780, 0.9199),
    }.items()
    for rule, accuracy in zip(RULES, accuracies, strict=True)
}
MNIST_TRIGGER = attacks.pixel_trigger(attacks.FLTRUST_MNIST_PIXELS)
CIFAR_TRIGGER = attacks.pixel_trigger(attacks.FLTRUST_CIFAR_PIXELS)
CNN = Setting("mnist", models.FLTrustCNN, 0.5, 100, 2000, 32, 0.0096, MNIST_TRIGGER)
LR = CNN._replace(model=models.SoftmaxRegression, rounds=500, learning_rate=0.1)
SETTINGS = {
    "mnist-0.1": CNN._replace(q=0.1, paper=IN_THE_TEXT, source="paper: its text"),
    "mnist-0.5": CNN._replace(
        paper=THIRD_PARTY, source="\"paper\": a third party's run of the authors' code"
    ),
    "fashion_mnist": CNN._replace(data="fashion_mnist", rounds=2500, learning_rate=0.192),
    "cifar10": Setting("cifar10", models.ResNet20, 0.5, 100, 1500, 64, 0.0128, CIFAR_TRIGGER),
    "har": Setting(
        "har", models.SoftmaxRegression, None, 30, 1000, 32, 0.096, attacks.feature_trigger(20), 1
    ),
    # No trigger is known for CH-MNIST; MNIST's lies inside its 64x64 images, too.
    "ch_mnist": Setting("ch_mnist", models.ResNet20, 0.5, 40, 2000, 32, 0.0096, MNIST_TRIGGER),
    "mnist-0.1-lr": LR._replace(q=0.1),
    "mnist-0.5-lr": LR,
}


@dataclasses.dataclass
class Args:
    """Reproduce FLTrust's tables. Errors and attack success rates are fractions."""

    setting: Literal[
        "mnist-0.1",
        "mnist-0.5",
        "fashion_mnist",
        "cifar10",
        "har",
        "ch_mnist",
        "mnist-0.1-lr",
        "mnist-0.5-lr",
    ] = "mnist-0.5-lr"
    """Data set, model and their hyper-parameters; -lr: logistic regression instead of the CNN."""
    table: Literal["main", "variants"] = "main"
    """The main table, or the one of FLTrust's variants."""
    seeds: int = 3
    """Trials with other roots, partitions, models and batches."""
    rounds: int | None = None
    """Rounds instead of the setting's."""
    clients: int | None = None
    """Clients instead of the setting's."""
    malicious_share: float = MALICIOUS_SHARE
    """Share of malicious clients."""
    learning_rate: float | None = None
    """Clients' step on mean gradients, instead of the setting's."""
    server_learning_rate: float | None = None
    """The server's step on the mean gradient of the root data; default the clients' times 100 / b."""
    rules: tuple[str, ...] | None = None
    """Rules to run; default all of the table."""
    attacks: tuple[str, ...] | None = None
    """Attacks to run; default the paper's six, and FirstOrder on FedAvg and FLTrust. There is also
    TrimModels."""
    client_chunk: int | None = None
    """Train so many clients at a time, which bounds memory; default all, on a CPU 1 for networks. With
    ResNet20 a client takes about 0.4 GB per batch of 64."""
    data_dir: Path | None = None
    """Folder of the data sets; default FEDJAX_ROBUST_DATA, else where TFDS keeps its own."""
    out: Path = Path("results/fltrust")
    """Where results go."""
    cell: str | None = None
    """Compute only the i-th of N shares of the cells, i/N, so that N machines work on one table; then
    the same command without it gathers their files."""
    smoke: bool = False
    """Three rounds and one seed, to see that everything works; the numbers mean nothing."""


class Case(NamedTuple):
    """One cell of a table or point of a curve: all that a program is compiled for."""

    setting: Setting
    rule: str
    attack: str
    clients: int
    malicious: int
    server_learning_rate: float
    root_size: int = 100
    root_p: float | None = None
    """Share of class 1 in the root data; None = as that of the others."""
    client_chunk: int | None = None
    """Clients trained at a time; no result depends on it."""


def main(args: Args) -> None:
    """Run what is missing of one table, then print and draw it."""
    setting = with_overrides(SETTINGS[args.setting], args)
    inputs = Inputs(setting, args.data_dir)
    clients = inputs.users or args.clients or setting.clients
    malicious = round(args.malicious_share * clients)
    if inputs.users and args.clients:
        raise ValueError(
            f"the clients of {args.setting} are its {inputs.users} users; leave --clients out"
        )
    chosen_attacks = args.attacks or (*ATTACKS, "FirstOrder")
    rules = args.rules or (RULES if args.table == "main" else VARIANTS)
    server = server_step(setting, args.server_learning_rate)
    folder = args.out / "-".join(
        [args.setting]
        + (["variants"] if args.table == "variants" else [])
        + ([f"{clients}-clients"] if args.clients else [])
        + ([f"{setting.rounds}-rounds"] if args.rounds else [])
        + (["smoke"] if args.smoke else [])
    )
    cases = [
        Case(setting, rule, attack, clients, malicious, server, client_chunk=args.client_chunk)
        for rule in known("rule", rules, (*RULES, *VARIANTS))
        for attack in known("attack", chosen_attacks, (*ATTACKS, *MORE_ATTACKS))
        # By default only; who asks for it gets it.
        if not (args.attacks is None and attack == "FirstOrder" and rule in ORDER_STATISTICS)
    ]
    cases = my_share(cases, args.cell)
    rows = run_cases(cases, inputs, range(1 if args.smoke else args.seeds), folder)
    if share_is_done(args.cell, folder):
        return
    notes = (
        f"{setting.model.__name__} on {setting.data} ({inputs.note}), {clients} clients, {malicious} "
        f"malicious, {setting.rounds} rounds, step {setting.learning_rate:g}, batch "
        f"{setting.batch_size}; server: {server:g} on 100 root examples"
    )
    if setting.source:
        notes += f"; {setting.source}"
    command = command_line("fltrust_table.py", args)
    title = f"FLTrust (Cao et al., 2021), {args.table} table, {args.setting}"
    chosen = {(case.attack, case.rule) for case in cases}
    paper = {cell: number for cell, number in (setting.paper or {}).items() if cell in chosen}
    text = report.write_table(
        folder, rows, paper, title=title, command=command, notes=notes, tolerance=0.02
    )
    print(f"\n{text}")
    if backdoored := [row for row in rows if row["attack"] == "Scaling"]:
        text = report.write_table(
            folder.with_name(f"{folder.name}-attack-success"),
            backdoored,
            {},
            title=f"{title}: attack success",
            command=command,
            value="attack_success",
            metric="attack success rate",
            notes=f"{notes}; test examples of the target class are left out",
        )
        print(text)
    print(f"rows, table and figures are in {folder}")


def known(what: str, names: tuple[str, ...], choice: tuple[str, ...]) -> tuple[str, ...]:
    if unknown := [name for name in names if name not in choice]:
        raise ValueError(f"there is no {what} {unknown}; there are {sorted(set(choice))}")
    return names


def with_overrides(setting: Setting, args: Any) -> Setting:
    rounds = args.rounds or (3 if args.smoke else setting.rounds)
    learning_rate = args.learning_rate or setting.learning_rate
    return setting._replace(rounds=rounds, learning_rate=learning_rate)


def server_step(setting: Setting, given: float | None) -> float:
    return given or setting.learning_rate * 100 / setting.batch_size


class Inputs:
    """Each seed's root data, partition and test set."""

    def __init__(self, setting: Setting, data_dir: Path | None):
        self.setting, self.data_dir = setting, data_dir
        self.fixed = setting.data not in ("har", "ch_mnist")  # split by its publishers
        self.first = load(setting.data, data_dir, jax.random.key(0))
        self.note = self.first.note or "its published split"
        self.num_classes = self.first.num_classes
        users = self.first.train.get("user")
        self.users = None if users is None else len(np.unique(users))
        self.pool = on_device(self.first.train)
        self.task = fr.classification(
            setting.model(self.num_classes), jnp.asarray(self.first.train["x"][:1])
        )

    def dataset(self, seed: int) -> Dataset:
        if self.fixed:
            return self.first
        key = jax.random.fold_in(jax.random.key(1), seed)
        return load(self.setting.data, self.data_dir, key)

    def of(self, case: Case, seed: int) -> tuple[Batch, fr.FederatedData, Batch, Batch]:
        """Root data, the clients' data, test set, triggered test set."""
        dataset = self.dataset(seed)
        pool = self.pool if self.fixed else on_device(dataset.train)
        root_key, key = jax.random.split(jax.random.fold_in(jax.random.key(2), seed))
        y = pool["y"]
        rows = {"y": y, "row": jnp.arange(len(y))}
        root, rest = partition.root_set(
            root_key, rows, case.root_size, case.root_p, num_classes=self.num_classes
        )
        if "user" in dataset.train:
            data = partition.by_user(dataset.train["user"][np.asarray(rest["row"])], rest, key)
        else:
            assert case.setting.q is not None
            data = partition.by_group(key, rest, case.clients, case.setting.q, self.num_classes)
        # One pool on the device for all seeds: no client owns the root rows.
        data = data._replace(examples=pool, index=rest["row"][data.index])
        trigger, target = case.setting.trigger, case.setting.target
        if case.attack == "Scaling":
            data = attacks.add_backdoored_copies(data, case.malicious, trigger, target)
        test = on_device(dataset.test)
        root = {name: values[root["row"]] for name, values in pool.items()}
        return root, rounded_up(data), test, attacks.triggered(test, trigger)


def on_device(examples: Batch) -> Batch:
    return {name: jnp.asarray(examples[name]) for name in ("x", "y")}


def rounded_up(data: fr.FederatedData) -> fr.FederatedData:
    """Padded to sizes that seeds are likely to share, so that they share a compiled program."""

    def pad(x: Any, axis: int, multiple: int) -> jax.Array:
        missing = -x.shape[axis] % multiple
        return jnp.pad(x, [(0, missing if i == axis else 0) for i in range(x.ndim)])

    examples = {name: pad(jnp.asarray(x), 0, 4096) for name, x in data.examples.items()}
    return data._replace(examples=examples, index=pad(jnp.asarray(data.index), 1, 512))


def run_cases(
    cases: list[Case], inputs: Inputs, seeds: range, folder: Path
) -> list[dict[str, Any]]:
    """The rows of all cases and seeds: those on disk are read, the missing ones are computed."""
    provenance = report.provenance()
    # A small model leaves cores idle, so cases run beside each other.
    small = jax.default_backend() == "cpu" and inputs.setting.model is models.SoftmaxRegression
    rows: list[dict[str, Any]] = []
    with ThreadPoolExecutor((os.cpu_count() or 1) if small else 1) as pool:
        results = pool.map(lambda case: run_case(case, inputs, seeds, folder, provenance), cases)
        done = tqdm(zip(cases, results, strict=True), total=len(cases), unit="cell")
        for case, new in done:
            rows += new
            line = f"{case.rule:18s} {case.attack:10s} {case.malicious} of {case.clients} malicious"
            for name in ("error", "attack_success"):
                if name in new[0]:
                    values = [row[name] for row in new]
                    spread = f" +- {np.std(values, ddof=1):.3f}" if len(values) > 1 else ""
                    line += f" {name} {np.mean(values):.3f}{spread}"
            done.write(line)
    return rows


def run_case(
    case: Case, inputs: Inputs, seeds: range, folder: Path, provenance: dict[str, Any]
) -> list[dict[str, Any]]:
    settings = {
        **case.setting._asdict(),
        **case._asdict(),
        "model": case.setting.model.__name__,
    }
    for name in ("setting", "paper", "source", "trigger", "client_chunk"):
        settings.pop(name, None)
    stem = (
        f"{case.rule}-{case.attack}-{case.clients}-{case.malicious}-{case.root_size}-"
        f"{'even' if case.root_p is None else case.root_p}"
    )
    results: dict[int, Any] = {}
    program: Callable[..., Any] | None = None
    for seed in seeds:
        results[seed] = report.load_cell(folder, f"{stem}-{seed}", settings | {"seed": seed})
        if results[seed] is not None:
            continue
        # Another bias of the root data needs no other program.
        shared = case._replace(root_p=None, setting=case.setting._replace(paper=None))
        program = program or compiled(shared, inputs)
        started = time.perf_counter()
        root, data, test, triggered = inputs.of(case, seed)
        history = jax.device_get(program(jax.random.key(seed), root, data, test, triggered))
        result = {
            "error": float(history["test_error"][-1]),
            "best_error": float(history["test_error"].min()),
            "seconds": time.perf_counter() - started,
            **what_was_trusted(history),
            **provenance,
        }
        if "attack_success" in history:
            result["attack_success"] = float(history["attack_success"][-1])
        report.save_cell(folder, f"{stem}-{seed}", settings | {"seed": seed}, result)
        results[seed] = result
    return [settings | {"seed": seed} | results[seed] for seed in seeds]


@functools.cache
def compiled(case: Case, inputs: Inputs) -> Callable[..., Any]:
    """key, root, data, test, triggered test -> history."""
    rounds, task = case.setting.rounds, inputs.task

    def one(
        key: jax.Array, root: Batch, data: fr.FederatedData, test: Batch, triggered: Batch
    ) -> dict[str, jax.Array]:
        evaluate = metrics.test_error(task, test)
        if case.attack == "Scaling":
            success = metrics.attack_success(task, triggered, case.setting.target)
            evaluate = metrics.together(evaluate, success)
        sim = simulation(case, task, root, inputs.num_classes)
        every = max(rounds // 10, 1)
        return fr.run(sim, key, data, rounds, evaluate=evaluate, evaluate_every=every)[1]

    return jax.jit(one)


def simulation(case: Case, task: fr.Task, root: Batch, num_classes: int) -> fr.Simulation:
    step, batch, m = case.setting.learning_rate, case.setting.batch_size, case.malicious
    server = fr.local_sgd(task, case.server_learning_rate, batch_size=None)
    make_rule: dict[str, Callable[[], fr.Aggregator]] = {
        "FedAvg": aggregators.mean,
        "Krum": lambda: aggregators.krum(m),
        "Trim-mean": lambda: aggregators.trimmed_mean(m),
        "Median": aggregators.median,
        "FLTrust": lambda: aggregators.fltrust(server, root),
        "FLTrust-Server": lambda: aggregators.fltrust_server(server, root),
        "FLTrust-withServer": lambda: aggregators.fltrust_with_server(server, root),
        "FLTrust-NoReLU": lambda: aggregators.fltrust_no_relu(server, root),
        "FLTrust-NoNorm": lambda: aggregators.fltrust_no_norm(server, root),
        "FLTrust-ParNorm": lambda: aggregators.fltrust_par_norm(server, root),
    }
    flipping = fr.local_sgd(task, step, batch, poison=attacks.label_flip(num_classes))
    trim = attacks.fang_trim_full(before=aggregators.mean(), on_updates=True)
    attack = {
        "None": attacks.no_attack(),
        "LF": attacks.data_poisoning(flipping),
        "Krum": attacks.fang_krum_full(m),
        "Trim": trim,
        "TrimModels": attacks.fang_trim_full(before=aggregators.mean()),
        "Scaling": attacks.scaling(case.clients),
        "Adaptive": attacks.fltrust_adaptive(server, root, start=trim),
        "FirstOrder": attacks.first_order(),
    }[case.attack]
    # A network's patches stay in the cache if clients train one at a time.
    small = case.setting.model is models.SoftmaxRegression
    usual = 1 if jax.default_backend() == "cpu" and not small else None
    return fr.Simulation(
        task=task,
        client=fr.local_sgd(task, step, batch),
        aggregator=make_rule[case.rule](),
        attack=attack,
        knowledge=attack.needs,
        num_malicious=m,
        client_chunk=case.client_chunk or usual,
    )


def what_was_trusted(history: dict[str, np.ndarray]) -> dict[str, float]:
    """The malicious clients' share of all trust (FLTrust), or in how many rounds one was selected (Krum);
    means over rounds."""
    if "trust" in history:
        trust = np.maximum(history["trust"], 0)
        theirs = np.sum(trust * history["malicious"], axis=-1)
        total = np.sum(trust, axis=-1)
        return {"malicious_trust": float(np.mean(theirs / np.where(total > 0, total, 1)))}
    if "selected" in history:
        chosen = np.any(history["selected"] & history["malicious"], axis=-1)
        return {"malicious_selected": float(np.mean(chosen))}
    return {}


if __name__ == "__main__":
    use_compilation_cache()
    main(tyro.cli(Args))
