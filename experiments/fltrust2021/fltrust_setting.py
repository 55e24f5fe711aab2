"""The settings of Cao, Fang, Liu, Gong: "FLTrust: Byzantine-robust Federated Learning via Trust
Bootstrapping", NDSS 2021, and one run. What both scripts of this folder share.

In each round all clients make one SGD step. The root data are 100 training examples, as many of each
class, and no client owns them. Krum's f and the trim parameter are the number of malicious clients, and
averages weigh clients equally. What the paper leaves open, and what is taken here:

- Learning rates: those of the authors' code on mean gradients; the server's step on its whole root set
  is 100 / b times as long, as there, whatever the size of the root set.
- *Trim* takes s by the mean of all updates and crafts updates, not models, as the authors' code;
  ``TrimModels`` crafts models. *Krum* is full knowledge, too, and the same in both.
- *Scaling*: malicious clients own their data twice, the copies with trigger and target label, and send
  their update times n. *Adaptive* is Algorithm 3, started by Trim; ``FirstOrder`` climbs the same
  objective by gradients through the server's own rule, from the clients' own updates. Both know all.
- Batch norm (CIFAR-10, CH-MNIST) uses the statistics of each batch; no augmentation, no decay.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

import fedjax_robust as fr
from fedjax_robust import aggregators, attacks, metrics, models, study
from fedjax_robust.attacks.poisons.batches import Trigger
from fedjax_robust.data import Dataset, load, partition

Batch = dict[str, Any]
Cell = dict[str, Any]

Name = Literal[
    "mnist-0.1",
    "mnist-0.5",
    "fashion_mnist",
    "cifar10",
    "har",
    "ch_mnist",
    "mnist-0.1-lr",
    "mnist-0.5-lr",
]
Rule = Literal[
    "FedAvg",
    "Krum",
    "Trim-mean",
    "Median",
    "FLTrust",
    "FLTrust-Server",
    "FLTrust-withServer",
    "FLTrust-NoReLU",
    "FLTrust-NoNorm",
    "FLTrust-ParNorm",
]
Attack = Literal[
    "NoAttack", "LF", "Krum", "Trim", "Scaling", "Adaptive", "FirstOrder", "TrimModels"
]
RULES: tuple[Rule, ...] = get_args(Rule)[:5]
VARIANTS: tuple[Rule, ...] = (*get_args(Rule)[5:], "FLTrust")
ATTACKS: tuple[Attack, ...] = get_args(Attack)[:6]
"""The paper's six."""
MALICIOUS_SHARE = 0.2
ROOT_SIZE = 100
# What a seed's keys are for; its rounds have ``jax.random.key(seed)`` itself.
SPLIT, PARTITION = 1, 2


class Setting(NamedTuple):
    """One data set and model."""

    data: str
    model: str
    q: float | None
    """Degree of non-IID; None = users are clients."""
    clients: int
    rounds: int
    batch_size: int
    learning_rate: float
    """On mean gradients."""
    trigger: str
    target: int = 0

    @property
    def small(self) -> bool:
        """Logistic regression, which leaves cores idle."""
        return self.model == "SoftmaxRegression"


MODELS: dict[str, Callable[[int], nn.Module]] = {
    "FLTrustCNN": models.FLTrustCNN,
    "ResNet20": models.ResNet20,
    "SoftmaxRegression": models.SoftmaxRegression,
}
TRIGGERS: dict[str, Trigger] = {
    "FLTRUST_MNIST_PIXELS": attacks.backdoors.pixel_trigger(attacks.backdoors.FLTRUST_MNIST_PIXELS),
    "FLTRUST_CIFAR_PIXELS": attacks.backdoors.pixel_trigger(attacks.backdoors.FLTRUST_CIFAR_PIXELS),
    "every 20th feature": attacks.backdoors.feature_trigger(20),
}
CNN = Setting("mnist", "FLTrustCNN", 0.5, 100, 2000, 32, 0.0096, "FLTRUST_MNIST_PIXELS")
LR = CNN._replace(model="SoftmaxRegression", rounds=500, learning_rate=0.1)
SETTINGS: dict[Name, Setting] = {
    "mnist-0.1": CNN._replace(q=0.1),
    "mnist-0.5": CNN,
    "fashion_mnist": CNN._replace(data="fashion_mnist", rounds=2500, learning_rate=0.192),
    "cifar10": Setting("cifar10", "ResNet20", 0.5, 100, 1500, 64, 0.0128, "FLTRUST_CIFAR_PIXELS"),
    "har": Setting(
        "har", "SoftmaxRegression", None, 30, 1000, 32, 0.096, "every 20th feature", target=1
    ),
    # No trigger is known for CH-MNIST; MNIST's lies inside its 64x64 images, too.
    "ch_mnist": Setting("ch_mnist", "ResNet20", 0.5, 40, 2000, 32, 0.0096, "FLTRUST_MNIST_PIXELS"),
    "mnist-0.1-lr": LR._replace(q=0.1),
    "mnist-0.5-lr": LR,
}


def server_step(setting: Setting) -> float:
    """The usual step on the mean gradient of the root data."""
    return setting.learning_rate * 100 / setting.batch_size


def malicious_of(clients: int, share: float = MALICIOUS_SHARE) -> int:
    return round(share * clients)


def check_choices(rules: Sequence[str], attacks: Sequence[str]) -> None:
    """What the command line refuses by itself, for those who call ``main``."""
    for what, names, choice in (("rule", rules, Rule), ("attack", attacks, Attack)):
        if unknown := [name for name in names if name not in get_args(choice)]:
            raise ValueError(f"there is no {what} {unknown}; there are {[*get_args(choice)]}")


def cell_settings(name: str, setting: Setting, clients: int) -> Cell:
    """What all cells of a table have in common, but for what a sweep changes."""
    return {
        "setting": name,
        **setting._asdict(),
        "clients": clients,
        "malicious": malicious_of(clients),
        "server_learning_rate": server_step(setting),
        "root_size": ROOT_SIZE,
        "root_p": None,  # share of class 1 in the root data; None = as that of the others
    }


def notes(cell: study.Settings, inputs: Inputs) -> str:
    """The settings of a table in words."""
    return (
        f"{cell['model']} on {cell['data']} ({inputs.note}), {cell['clients']} clients, "
        f"{cell['malicious']} malicious, {cell['rounds']} rounds, step {cell['learning_rate']:g}, "
        f"batch {cell['batch_size']}; server: {cell['server_learning_rate']:g} on "
        f"{cell['root_size']} root examples"
    )


LEFT_OUT = "test examples of the target class are left out"


class Inputs:
    """The model, and each seed's root data, partition and test set."""

    def __init__(self, setting: Setting, data_dir: Path | None):
        self.name, self.data_dir = setting.data, data_dir
        self.fixed = setting.data not in ("har", "ch_mnist")  # split by its publishers
        self.first = load(setting.data, data_dir, jax.random.key(0))
        self.note = self.first.note or "its published split"
        self.num_classes = self.first.num_classes
        users = self.first.train.get("user")
        self.users = None if users is None else len(np.unique(users))
        self.pool = on_device(self.first.train)
        module = MODELS[setting.model](self.num_classes)
        self.task = fr.classification(module, jnp.asarray(self.first.train["x"][:1]))

    def dataset(self, seed: int) -> Dataset:
        if self.fixed:
            return self.first
        return load(self.name, self.data_dir, study.key(SPLIT, seed))

    def of(self, run: study.Settings) -> tuple[Batch, fr.FederatedData, Batch, Batch]:
        """Root data, the clients' data, test set, triggered test set."""
        dataset = self.dataset(run["seed"])
        pool = self.pool if self.fixed else on_device(dataset.train)
        root_key, key = jax.random.split(study.key(PARTITION, run["seed"]))
        y = pool["y"]
        rows = {"y": y, "row": jnp.arange(len(y))}
        root, rest = partition.root_set(
            root_key, rows, run["root_size"], run["root_p"], num_classes=self.num_classes
        )
        if "user" in dataset.train:
            data = partition.by_user(dataset.train["user"][np.asarray(rest["row"])], rest, key)
        else:
            data = partition.by_group(key, rest, run["clients"], run["q"], self.num_classes)
        # One pool on the device for all seeds: no client owns the root rows.
        data = data._replace(examples=pool, index=rest["row"][data.index])
        trigger = TRIGGERS[run["trigger"]]
        if run["attack"] == "Scaling":
            data = attacks.backdoors.add_backdoored_copies(
                data, run["malicious"], trigger, run["target"]
            )
        test = on_device(dataset.test)
        root = {name: values[root["row"]] for name, values in pool.items()}
        return root, rounded_up(data), test, attacks.backdoors.triggered(test, trigger)


def on_device(examples: Batch) -> Batch:
    return {name: jnp.asarray(examples[name]) for name in ("x", "y")}


def rounded_up(data: fr.FederatedData) -> fr.FederatedData:
    """Padded to sizes that seeds are likely to share, so that they share a compiled program."""

    def pad(x: Any, axis: int, multiple: int) -> jax.Array:
        missing = -x.shape[axis] % multiple
        return jnp.pad(x, [(0, missing if i == axis else 0) for i in range(x.ndim)])

    examples = {name: pad(jnp.asarray(x), 0, 4096) for name, x in data.examples.items()}
    return data._replace(examples=examples, index=pad(jnp.asarray(data.index), 1, 512))


VARIES = ("root_p",)
"""Another bias of the root data needs no other program."""


def program_of(
    inputs: Inputs, client_chunk: int | None
) -> Callable[[study.Settings], study.Compute]:
    """``Study.program``: the seeds of a cell one after the other, in one program."""

    def program(cell: study.Settings) -> study.Compute:
        @jax.jit
        def one(
            key: jax.Array, root: Batch, data: fr.FederatedData, test: Batch, triggered: Batch
        ) -> dict[str, jax.Array]:
            evaluate = metrics.test_error(inputs.task, test)
            if cell["attack"] == "Scaling":
                success = metrics.attack_success(inputs.task, triggered, cell["target"])
                evaluate = metrics.together(evaluate, success)
            sim = simulation(cell, inputs, root)._replace(client_chunk=client_chunk)
            rounds = cell["rounds"]
            every = max(rounds // 10, 1)
            return fr.run(sim, key, data, rounds, evaluate=evaluate, evaluate_every=every)[1]

        def compute(runs: Sequence[study.Settings]) -> Iterable[study.Result]:
            for run in runs:
                key = jax.random.key(run["seed"])
                yield measure(jax.device_get(one(key, *inputs.of(run))))

        return compute

    return program


def simulation(cell: study.Settings, inputs: Inputs, root: Batch) -> fr.Simulation:
    task, step, batch, m = inputs.task, cell["learning_rate"], cell["batch_size"], cell["malicious"]
    server = fr.local_sgd(task, cell["server_learning_rate"], batch_size=None)
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
    flipping = fr.local_sgd(
        task, step, batch, poison=attacks.poisons.label_flip(inputs.num_classes)
    )
    trim = attacks.fang_trim_full(before=aggregators.mean(), on_updates=True)
    attack = {
        "NoAttack": attacks.no_attack(),
        "LF": attacks.data_poisoning(flipping),
        "Krum": attacks.fang_krum_full(m),
        "Trim": trim,
        "TrimModels": attacks.fang_trim_full(before=aggregators.mean()),
        "Scaling": attacks.scaling(cell["clients"]),
        "Adaptive": attacks.fltrust_adaptive(server, root, start=trim),
        "FirstOrder": attacks.first_order(),
    }[cell["attack"]]
    return fr.Simulation(
        task=task,
        client=fr.local_sgd(task, step, batch),
        aggregator=make_rule[cell["rule"]](),
        attack=attack,
        knowledge=attack.needs,
        num_malicious=m,
    )


def measure(history: study.History) -> dict[str, float]:
    """Errors, attack success under Scaling, and whom FLTrust trusted or Krum selected."""
    trusts = "trust" in history
    result = study.errors(history)
    result |= malicious_trust(history) if trusts else study.malicious_selected(history)
    if "attack_success" in history:
        result["attack_success"] = float(history["attack_success"][-1])
    return result


def malicious_trust(history: study.History) -> dict[str, float]:
    """The malicious clients' share of all trust, on average over the rounds."""
    trust = np.maximum(history["trust"], 0)
    theirs = np.sum(trust * history["malicious"], axis=-1)
    total = np.sum(trust, axis=-1)
    return {"malicious_trust": float(np.mean(theirs / np.where(total > 0, total, 1)))}
