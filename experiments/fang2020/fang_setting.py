"""The setting of Fang, Cao, Jia, Gong: "Local Model Poisoning Attacks to Byzantine-Robust Federated
Learning", USENIX Security 2020, section 4: 100 workers of which 20 are compromised, non-IID degree 0.5,
one SGD step per worker and round, errors of the last model. What all scripts of this folder share.

What the paper does not print, and what is taken here:

- Learning rates: 0.1 on mean gradients for logistic regression and the DNN of 2e, 0.01 for the DNNs.
- The direction s of the full-knowledge attack on trimmed mean and median: that of the mean of all
  before-attack updates, as in the authors' code. Attack ``FullOwnRule`` has the rule's own, which is what
  section 3.1 says and which is much weaker.
- 2e: Table 7a's convolutions do not fit 30 features, so its dense part is used: 200 ReLU units.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

import fedjax_robust as fr
from fedjax_robust import aggregators, attacks, metrics, models, study
from fedjax_robust.data import Dataset, load, partition

CLIENTS = 100
SMOKE_CLIENTS = 20
MALICIOUS_SHARE = 0.2
NON_IID = 0.5
RULES = ("Krum", "Trimmed mean", "Median")
ATTACKS = ("NoAttack", "Gaussian", "LabelFlip", "Partial", "Full", "FullOwnRule")
FULL = fr.Knowledge(others=True, rule=True)
NOTHING = fr.Knowledge()
# What a seed's keys are for; its rounds have ``jax.random.key(seed)`` itself.
SPLIT, PARTITION, POISONED_ROUNDS = 1, 2, 3

AttackAndKnowledge = tuple[fr.Attack, fr.Knowledge]


class Setting(NamedTuple):
    """Data, model and training of one table."""

    data: str
    model: str
    rounds: int
    batch_size: int
    learning_rate: float
    seeds: int
    small: bool = False
    """All seeds in one program, and several programs at a time; else one run after the other, with
    checkpoints."""
    evaluations: int = 50
    """How often a run is evaluated; 10,000 test images take a DNN several rounds' time."""

    @property
    def every(self) -> int:
        """Rounds between evaluations."""
        return max(self.rounds // self.evaluations, 1)


MODELS: dict[str, Callable[[int], nn.Module]] = {
    "logistic_regression": models.SoftmaxRegression,
    "dnn": models.FangDNN,
    "dense_dnn": lambda num_classes: models.MLP(num_classes, hidden=(200,)),
    "16 ReLU units": lambda num_classes: models.MLP(num_classes, hidden=(16,)),
    "ResNet20": models.ResNet20,
}
SETTINGS = {
    "2a": Setting("mnist", "logistic_regression", 500, 32, 0.1, 5, True),
    "2b": Setting("mnist", "dnn", 2000, 32, 0.01, 3, False, 10),
    "2c": Setting("fashion_mnist", "dnn", 2000, 64, 0.01, 3, False, 10),
    "2d": Setting("ch_mnist", "ResNet20", 2000, 32, 0.01, 3, False, 10),
    "2e": Setting("breast_cancer", "dense_dnn", 2000, 32, 0.1, 10, True),
}


def malicious_of(clients: int) -> int:
    return round(MALICIOUS_SHARE * clients)


def cell_settings(name: str, at: Setting, clients: int, p: float = NON_IID) -> dict[str, Any]:
    """What all cells of a table have in common."""
    return {
        "table": name,
        **training_settings(at),
        "clients": clients,
        "malicious": malicious_of(clients),
        "p": p,
    }


def training_settings(at: Setting) -> dict[str, Any]:
    return {
        "data": at.data,
        "model": at.model,
        "rounds": at.rounds,
        "batch_size": at.batch_size,
        "learning_rate": at.learning_rate,
    }


def notes(at: Setting, data: Data, clients: int) -> str:
    return (
        f"{at.model} on {at.data} ({data.note}), {clients} clients, {malicious_of(clients)} malicious, "
        f"{at.rounds} rounds, step {at.learning_rate:g}, batch {at.batch_size}"
    )


class Data:
    """A table's model, and each seed's data set and partition; variants may change either."""

    def __init__(
        self,
        at: Setting,
        data_dir: Path | None,
        change_data: Callable[[Dataset], Dataset] = lambda dataset: dataset,
        change_partition: Callable[[fr.FederatedData], fr.FederatedData] = lambda data: data,
    ):
        self.name, self.data_dir = at.data, data_dir
        self.change_data, self.change_partition = change_data, change_partition
        self.fixed = at.data not in ("breast_cancer", "ch_mnist")  # split by its publishers
        self.first = change_data(load(at.data, data_dir, jax.random.key(0)))
        self.note = self.first.note or "its published split"
        self.num_classes = self.first.num_classes
        module = MODELS[at.model](self.num_classes)
        self.task = fr.classification(module, jnp.asarray(self.first.train["x"][:1]))
        # One array on the device for all seeds of a data set with a published split.
        self.pool = {k: jnp.asarray(v) for k, v in self.first.train.items()} if self.fixed else {}

    def dataset(self, seed: int) -> Dataset:
        if self.fixed:
            return self.first
        return self.change_data(load(self.name, self.data_dir, study.key(SPLIT, seed)))

    def inputs(self, run: study.Settings) -> dict[str, Any]:
        """A run's partition and test set."""
        dataset = self.dataset(run["seed"])
        examples = self.pool if self.fixed else dataset.train
        key = study.key(PARTITION, run["seed"])
        dealt = partition.by_group(key, examples, run["clients"], run["p"], self.num_classes)
        return {"data": self.change_partition(dealt), "test": dataset.test}


def plan(
    at: Setting, data: Any, client_chunk: int | None = None
) -> Callable[[study.Settings, dict[str, Any]], study.Plan]:
    """Runs of cells that name a ``rule`` and an ``attack`` of the paper."""

    def of(cell: study.Settings, given: dict[str, Any]) -> study.Plan:
        sim = simulation(data.task, data.num_classes, cell)._replace(client_chunk=client_chunk)
        evaluate = metrics.test_error(data.task, given["test"])
        return study.Plan(sim, given["data"], cell["rounds"], evaluate, at.every)

    return of


def simulation(task: fr.Task, num_classes: int, cell: study.Settings) -> fr.Simulation:
    """The paper's setting. By default the server knows the number of malicious clients.

    Cells may also have ``f``, the rule's, ``steps``, local ones per round, and ``epsilon`` of the attacks
    on Krum.
    """
    step, batch, malicious = cell["learning_rate"], cell["batch_size"], cell["malicious"]
    f = malicious if cell.get("f") is None else cell["f"]
    steps, epsilon = cell.get("steps", 1), cell.get("epsilon", 0.01)
    rule = {
        "Mean": aggregators.mean(),
        "Krum": aggregators.krum(f),
        "Trimmed mean": aggregators.trimmed_mean(f),
        "Median": aggregators.median(),
    }[cell["rule"]]
    flip = attacks.poisons.label_flip(num_classes)
    flipping = fr.local_sgd(task, step, batch, steps=steps, poison=flip)
    krum = cell["rule"] == "Krum"
    attack, knowledge = {
        "NoAttack": (attacks.no_attack(), NOTHING),
        "Gaussian": (attacks.gaussian(), fr.Knowledge(others=True)),
        "LabelFlip": (attacks.data_poisoning(flipping), NOTHING),
        "Partial": (
            attacks.fang_krum_partial(epsilon=epsilon) if krum else attacks.fang_trim_partial(),
            fr.Knowledge(rule=True),
        ),
        "Full": (
            attacks.fang_krum_full(epsilon=epsilon)
            if krum
            else attacks.fang_trim_full(before=aggregators.mean()),
            FULL,
        ),
        "FullOwnRule": (attacks.fang_trim_full(), FULL),
        "FullOnUpdates": (
            attacks.fang_trim_full(before=aggregators.mean(), on_updates=True),
            FULL,
        ),
    }[cell["attack"]]
    return fr.Simulation(
        task=task,
        client=fr.local_sgd(task, step, batch, steps=steps),
        aggregator=rule,
        attack=attack,
        knowledge=knowledge,
        num_malicious=malicious,
    )


def measure(history: study.History) -> dict[str, Any]:
    return study.errors(history) | study.malicious_selected(history)
