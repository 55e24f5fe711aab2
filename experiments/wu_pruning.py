"""Cleaning a backdoored model: the tables and figures of Wu et al.

Wu, Yang, Zhu, Mitra: "Mitigating Backdoor Attacks in Federated Learning", arXiv 2011.01767, 2020.

  python experiments/wu_pruning.py --part patterns     Table I      triggers of 1 to 9 pixels
  python experiments/wu_pruning.py --part pairs        Tables II, IV, Figures 4 and 5: 18 pairs of labels
  python experiments/wu_pruning.py --part concise      Table III    the network with 8 and 16 filters
  python experiments/wu_pruning.py --part fashion      Table V      Fashion-MNIST, 9 pairs
  python experiments/wu_pruning.py --part cifar10      Table VI     CIFAR-10, distributed triggers
  python experiments/wu_pruning.py --part labels       Figure 3     3, 5, 7 labels per client
  python experiments/wu_pruning.py --part selected     Figure 7     5 to 25 of 50 clients per round
  python experiments/wu_pruning.py --part l2           Figure 8     penalty on the last convolution
  python experiments/wu_pruning.py --part adaptive     section VI-C attackers who know the defence

In all of them a model is trained under attack and then repaired, in the order of the paper: *pruning* by
ranking vote (and, from the same model, by majority vote), *AW*, adjusting extreme weights, and *FT*,
rounds of fine-tuning of the pruned model with the attacker taking part, and AW after that. All label
pairs share one compiled program.

The paper does not print learning rates, batch sizes, rounds, filters other than MNIST's, initial weights,
triggers or alpha (but 3 in Figure 8, as here). Taken here (``SETTINGS``): PyTorch's initial weights,
images normalized by the training set's mean and deviation, 20 local steps of 0.1 on 32 images per round,
of the attackers, too, alpha = 6 (CIFAR-10: 1), a trigger of 5 pixels near the corner (one for
Fashion-MNIST). Client 0, the attacker, is one that owns the victim label; it trains on these images
twice, as they are and with the trigger and the target label (CIFAR-10: as in DBA, any 5 images of a
batch). The server's validation data are 2,000 training images that no client has; test accuracy is of
the test set, attack success of its images of the victim label.

Results go to ``--out``/<part>: one file per finished run, so that a killed script goes on after the last
one, then ``rows``, ``table.md`` or ``sweep.png`` in folders of their own.
"""

from __future__ import annotations

import dataclasses
import functools
import time
from collections.abc import Callable, Sequence
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
from fedjax_robust import aggregators, attacks, metrics, models, repairs, report
from fedjax_robust import data as datasets
from fedjax_robust.types import AttackerView, FederatedData, State

Batch = dict[str, Any]


class Setting(NamedTuple):
    """Data, model and training of one table."""

    data: str
    model: Callable[[int], nn.Module]
    layer: str
    """the last convolution"""
    rounds: int
    learning_rate: float = 0.1
    steps: int = 20
    attackers_steps: int = 20
    batch_size: int = 32
    momentum: float = 0.0
    alpha: float = 6.0
    """by which the attackers multiply their updates"""
    malicious: int = 1
    pixels: int = 5
    """size of the trigger"""
    distributed: bool = False
    """DBA: each attacker has a part of the trigger, and puts it on any 5 images of a batch"""


MNIST = Setting("mnist", models.MnistNet, "Conv_1", 100)
SETTINGS = {
    "mnist": MNIST,
    "concise": MNIST._replace(model=functools.partial(models.MnistNet, features=(8, 16))),
    "l2": MNIST._replace(alpha=3.0),  # printed, for Figure 8 alone
    "fashion": Setting(
        "fashion_mnist",
        functools.partial(models.ConvNet, blocks=((16,), (32, 64)), hidden=(128,)),
        "Conv_2",
        150,
        pixels=1,
    ),
    "cifar10": Setting(
        "cifar10", models.ConvNet, "Conv_3", 1000, malicious=4, alpha=1.0, distributed=True
    ),
}
VALIDATION = 2000
FINE_TUNING = 10
"""Rounds, "usually about ten"."""
MAJORITY_RATE = 0.5
"""p of the majority vote; 30 to 70 % work in the paper."""
DELTAS = (10.0, 9.0, 8.0, 7.0, 6.0, 5.0, 4.5, 4.0, 3.5, 3.0, 2.5, 2.0, 1.5, 1.0)
TO_NINE = tuple((v, 9) for v in range(9))
FROM_NINE = tuple((9, t) for t in range(9))

# In percent, as printed: victim, target -> accuracy and attack success, and numbers pruned.
TABLE_1 = {  # pixels: trained, pruned, number, + AW with Delta = 3, number
    1: (98.5, 99.9, 97.3, 98.7, 22, 97.2, 0.4, 131),
    3: (98.5, 100, 96.6, 100, 30, 97, 34.8, 139),
    5: (98.4, 100, 97, 100, 34, 95.2, 1.4, 138),
    7: (98.5, 100, 96.2, 96.9, 30, 96.8, 32.9, 138),
    9: (98.4, 99.8, 97.6, 2.3, 30, 96.2, 0.5, 133),
}
TABLE_2 = {  # trained; ranking vote, number; majority vote, number
    (9, 0): (98.5, 100, 96.2, 100, 35, 95.7, 99.9, 40),
    (9, 1): (98.2, 100, 96.2, 0.4, 37, 93.8, 0.6, 39),
    (9, 2): (98.6, 100, 96.5, 0.1, 36, 95.8, 0.2, 37),
    (9, 3): (98.6, 99.6, 96.2, 6.7, 32, 96.1, 2.3, 34),
    (9, 4): (98.7, 100, 94.7, 100, 34, 95.2, 0.5, 35),
    (9, 5): (98.4, 99.9, 95.7, 99.9, 39, 95.7, 99.9, 39),
    (9, 6): (98.1, 99.8, 95.6, 100, 33, 96.6, 99.9, 32),
    (9, 7): (98.8, 99.9, 96.7, 98, 37, 96.1, 99.2, 37),
    (9, 8): (98.2, 99.7, 96.2, 99.5, 36, 95.5, 99.7, 36),
    (0, 9): (98.4, 100, 95.3, 4.1, 40, 96, 3.4, 39),
    (1, 9): (98.7, 99.7, 95.9, 99.9, 38, 96.4, 0.3, 38),
    (2, 9): (98.4, 99.8, 97.5, 100, 32, 97.2, 100, 30),
    (3, 9): (97.2, 99.8, 90.6, 100, 30, 95.8, 99.3, 32),
    (4, 9): (97.9, 100, 94.1, 100, 37, 93.6, 100, 38),
    (5, 9): (98.6, 100, 96.6, 0.8, 34, 96.7, 0.7, 34),
    (6, 9): (98.6, 99.9, 97, 99, 36, 96.8, 100, 33),
    (7, 9): (98.8, 99.7, 96.9, 97.6, 36, 97.2, 98.4, 35),
    (8, 9): (98.3, 100, 96.3, 97.8, 34, 95, 99.5, 37),
}
TABLE_3 = {  # AW alone, number
    (9, 0): (98.2, 0.4, 30), (9, 1): (98.2, 2.8, 34), (9, 2): (97.5, 0.1, 37),
    (9, 3): (98.2, 0.3, 24), (9, 4): (97.1, 2.8, 28), (9, 5): (98.6, 8, 36),
    (9, 6): (98.4, 0.1, 29), (9, 7): (98.5, 1.9, 38), (9, 8): (98.3, 0, 29),
    (0, 9): (98.6, 0.3, 30), (1, 9): (97.3, 19.3, 28), (2, 9): (98.4, 0, 31),
    (3, 9): (98.6, 0, 31), (4, 9): (98.3, 10.1, 31), (5, 9): (97.8, 1.5, 18),
    (6, 9): (98.5, 0.2, 38), (7, 9): (98.2, 1.2, 33), (8, 9): (98.5, 7.9, 25),
}  # fmt: skip
TABLE_4 = {  # trained; pruned + AW; pruned, fine-tuned + AW
    (9, 0): (98.2, 99.7, 94.7, 0.3, 96.6, 0.8),
    (9, 1): (98.6, 100, 95.1, 0.4, 96.9, 0.1),
    (9, 2): (98.2, 99.9, 95.7, 4.1, 97.2, 2.5),
    (9, 3): (98.3, 99.6, 95.6, 36.9, 97.2, 8.8),
    (9, 4): (98.5, 100, 97.2, 5, 98.1, 3.5),
    (9, 5): (98.5, 99.9, 86.6, 14, 94.6, 2.8),
    (9, 6): (98.6, 99.7, 96.4, 0.1, 97.5, 0.1),
    (9, 7): (98.9, 99.8, 94.1, 0.8, 98.2, 0.5),
    (9, 8): (98.5, 99.9, 93.9, 4.5, 96.6, 3.1),
    (0, 9): (97.8, 99.8, 95.4, 0, 96.9, 0.9),
    (1, 9): (98.2, 99.5, 94.5, 0.1, 97.2, 0.5),
    (2, 9): (98.3, 100, 94.9, 1.2, 97.5, 0.5),
    (3, 9): (98.5, 99.5, 95, 34.9, 96, 26.3),
    (4, 9): (98.5, 99.9, 93.4, 27.1, 96.4, 14.7),
    (5, 9): (98.5, 99.8, 95.2, 1.3, 97.5, 1.6),
    (6, 9): (98.3, 99.3, 94.8, 1.5, 97.3, 0.3),
    (7, 9): (97.9, 99.1, 93.8, 18.5, 96.9, 16.4),
    (8, 9): (97.5, 99.4, 93.3, 1.2, 96.3, 0.5),
}
TABLE_5 = {  # trained; pruned; + AW; pruned, fine-tuned + AW
    (9, 0): (88.8, 99.8, 83.2, 2.8, 82.9, 2.1, 86.3, 9.0),
    (9, 1): (88.7, 99.4, 82.6, 6.5, 82.1, 0, 87.0, 0),
    (9, 2): (87.8, 99.8, 82.2, 2.7, 82.1, 3.1, 85.6, 12.6),
    (9, 3): (87.5, 99.6, 84.4, 0.3, 84.4, 0, 86.2, 0.4),
    (9, 4): (87.8, 99.7, 81.0, 2.9, 80.6, 0, 85.8, 2.3),
    (9, 5): (88.6, 99.7, 81.2, 11.9, 80.6, 3.6, 86.1, 10.4),
    (9, 6): (86.3, 99.8, 82.8, 93.6, 82.0, 0.2, 86.0, 3.1),
    (9, 7): (88.5, 99.7, 82.9, 4.3, 83.1, 4.6, 87.0, 17.1),
    (9, 8): (88.8, 99.9, 84.7, 87.7, 85.0, 3.2, 87.2, 2.9),
}
TABLE_6 = {
    (9, 0): (73.0, 88.5, 72.7, 59.9, 71.6, 21.2, 71.8, 39.6),
    (9, 1): (71.6, 87.0, 71.0, 87.6, 70.9, 18.1, 71.1, 19.2),
    (9, 2): (72.9, 84.0, 71.7, 73.3, 70.4, 26.6, 71.6, 29.6),
    (9, 3): (72.7, 87.7, 71.4, 12.0, 71.3, 13.1, 71.0, 45.8),
    (9, 4): (72.9, 85.3, 71.9, 3.3, 70.5, 4.1, 71.5, 49.1),
    (9, 5): (72.8, 85.5, 72.4, 4.4, 71.8, 4.8, 71.5, 46.9),
    (9, 6): (71.0, 91.3, 71.7, 82.6, 70.5, 7.9, 72.2, 5.8),
    (9, 7): (72.1, 91.2, 72.2, 85.7, 71.3, 8.5, 71.5, 8.8),
    (9, 8): (72.6, 88.2, 72.4, 10.8, 71.2, 12.8, 71.5, 49.9),
}
Against = Literal["nothing", "ranks", "pruning", "AW"]
Part = Literal[
    "patterns", "pairs", "concise", "fashion", "cifar10", "labels", "selected", "l2", "adaptive"
]


@dataclasses.dataclass
class Args:
    """Federated pruning of backdoored models. Accuracies are fractions."""

    part: Part = "pairs"
    """Which tables and figures."""
    seeds: int = 1
    """Trials with other partitions, models and batches."""
    pairs: tuple[str, ...] | None = None
    """Victim and target labels such as 9-0, instead of the part's."""
    pixels: int | None = None
    """Size of the trigger where it is not what varies: 1, 3, 5, 7 or 9; default 5, Fashion-MNIST 1."""
    alpha: float | None = None
    """The attackers' amplification, instead of the setting's."""
    rounds: int | None = None
    """Rounds of training, instead of the setting's."""
    learning_rate: float | None = None
    """Clients' step, instead of the setting's."""
    momentum: float | None = None
    """Clients' momentum, instead of the setting's."""
    steps: int | None = None
    """Clients' local steps per round, instead of the setting's."""
    batch_size: int | None = None
    """Images of a local step, instead of the setting's."""
    attackers_steps: int | None = None
    """The attackers' local steps per round, instead of the setting's."""
    drop: float = 0.01
    """Loss of validation accuracy between two points that stops pruning and AW."""
    before_relu: bool = False
    """Rank neurons by their outputs before the ReLU."""
    width: tuple[int, int] | None = None
    """Filters of the two blocks of CIFAR-10's network, instead of 32 and 64."""
    together: int | None = None
    """Runs in one call of the program; default 1 on a CPU, else all pairs of a seed."""
    data_dir: Path | None = None
    """Folder of the data sets; default FEDJAX_ROBUST_DATA, else where TFDS keeps its own."""
    out: Path = Path("results/wu_pruning")
    """Where results go."""
    cell: str | None = None
    """Compute only the i-th of N shares of the runs, i/N, so that N machines work on one part; then the
    same command without it gathers their files."""
    smoke: bool = False
    """A few rounds, images and runs, to see that everything works; the numbers mean nothing."""


class Shape(NamedTuple):
    """What a program is compiled for."""

    setting: str
    rounds: int
    pixels: int = 1
    clients: int = 10
    malicious: int = 1
    selected: int | None = None
    repaired: bool = True
    """whether the trained model is repaired, too"""


class Case(NamedTuple):
    """A run, but for its seed."""

    shape: Shape
    victim: int
    target: int
    labels: int = 3
    """K, labels per client"""
    l2: float = 0.0
    against: Against = "nothing"


class Numbers(NamedTuple):
    """Arguments of the program, one per run."""

    key: jax.Array
    index: jax.Array
    count: jax.Array
    victim: jax.Array
    target: jax.Array
    victims: jax.Array
    """(V, H, W, C) test images of the victim label, without the trigger, padded"""
    are_victims: jax.Array
    """(V,) bool"""
    l2: jax.Array
    lie: jax.Array
    """() bool: malicious clients report reversed rankings and votes"""
    attackers_keep: jax.Array
    """(C,) bool: neurons that attackers train with; those of the final mask, if they know it"""
    attackers_delta: jax.Array
    """() Delta to which attackers clip their own weights, inf = none"""


# --- Data --------------------------------------------------------------------------------------------


class Inputs:
    """Images, and each seed's partition."""

    def __init__(self, setting: Setting, args: Args):
        changes = {
            name: getattr(args, name)
            for name in (
                "alpha",
                "learning_rate",
                "momentum",
                "steps",
                "attackers_steps",
                "batch_size",
            )
            if getattr(args, name) is not None
        }
        setting = setting._replace(**changes)
        self.setting, self.args = setting, args
        self.dataset = datasets.load(setting.data, args.data_dir)
        train, test = self.dataset.train, self.dataset.test
        order = np.random.default_rng(0).permutation(len(train["y"]))
        few = order[:200], order[VALIDATION : VALIDATION + 1000]
        validation, own = few if args.smoke else (order[:VALIDATION], order[VALIDATION:])
        mean, deviation = float(train["x"].mean()), float(train["x"].std())
        self.white = (1 - mean) / deviation

        def normalized(part: Any, rows: Any) -> Batch:
            x = jnp.asarray((part["x"][rows] - mean) / deviation, jnp.float32)
            return {"x": x, "y": jnp.asarray(part["y"][rows])}

        self.pool = normalized(train, own)
        self.validation = normalized(train, validation)
        self.test = normalized(test, slice(200 if args.smoke else None))
        width = {}
        if args.width is not None:
            a, b = args.width
            width = {"blocks": ((a, a), (b, b))}
        self.module = setting.model(self.dataset.num_classes, **width)
        self.task = fr.classification(self.module, self.pool["x"][:1])
        self.layer = repairs.convolution(self.module, self.pool["x"][:1], setting.layer)
        self.most_victims = int(np.bincount(self.test["y"]).max())

    def capacity(self, case: Case) -> int:
        """Room for the largest client of any partition, so that all share a program."""
        largest = np.sort(np.bincount(np.asarray(self.pool["y"])))[-case.labels :]
        owners = case.shape.clients * case.labels // self.dataset.num_classes
        return int(np.sum(-(-largest // owners)))

    def numbers(self, case: Case, seed: int, keep: np.ndarray | None) -> Numbers:
        data = datasets.k_labels(
            jax.random.fold_in(jax.random.key(1), seed),
            self.pool,
            case.shape.clients,
            case.labels,
            self.dataset.num_classes,
            capacity=self.capacity(case),
        )
        # Owners of the victim label come first: malicious clients are the first ones.
        owns = np.any(
            (np.asarray(self.pool["y"])[data.index] == case.victim)
            & (np.arange(data.index.shape[1]) < np.asarray(data.count)[:, None]),
            axis=1,
        )
        order = np.argsort(~owns, kind="stable")
        rows = np.flatnonzero(np.asarray(self.test["y"]) == case.victim)
        padded = np.resize(rows, self.most_victims)
        channels = self.layer.channels
        knows_mask = case.against == "pruning" and keep is not None
        return Numbers(
            jax.random.fold_in(jax.random.key(2), seed),
            data.index[order],
            data.count[order],
            jnp.int32(case.victim),
            jnp.int32(case.target),
            self.test["x"][padded],
            jnp.arange(self.most_victims) < len(rows),
            jnp.float32(case.l2),
            jnp.bool_(case.against == "ranks"),
            jnp.asarray(keep if knows_mask else np.ones(channels, bool)),
            jnp.float32(3.0 if case.against == "AW" else np.inf),
        )


# --- Training and repair ---------------------------------------------------------------------------


@functools.cache
def compiled(shape: Shape, inputs: Inputs) -> Callable[..., dict[str, Any]]:
    """Runs of one shape, all at once: (pool, validation, test, stacked numbers) -> what came out."""
    at, task, layer, args = inputs.setting, inputs.task, inputs.layer, inputs.args
    malicious = jnp.arange(shape.clients) < shape.malicious
    chunk = 100 if jax.default_backend() == "cpu" else 1000  # convolutions that fit a CPU's caches
    if at.distributed:
        parts = [attacks.pixel_trigger(pixels, inputs.white) for pixels in attacks.DBA_CIFAR_PIXELS]
        trigger = attacks.pixel_trigger(sum(attacks.DBA_CIFAR_PIXELS, ()), inputs.white)
    else:
        trigger = attacks.pixel_trigger(attacks.NINE_PIXELS[: shape.pixels], inputs.white)

    def client(steps: int, poison: Any, objectives: Sequence[fr.clients.Objective]) -> fr.Client:
        def objective(loss: Any, received: jax.Array) -> Any:
            for change in objectives:
                loss = change(loss, received)
            return loss

        return fr.local_sgd(
            task,
            at.learning_rate,
            at.batch_size,
            steps=1 if args.smoke else steps,
            momentum=at.momentum,
            poison=poison,
            objective=objective,
        )

    def attack(now: Numbers) -> fr.Attack:
        if at.distributed:
            poison = attacks.distributed(parts, now.target, 5)
        else:
            poison = attacks.add_triggered_victims(trigger, now.victim, now.target)
        clip = repairs.self_clipping(layer, now.attackers_delta)

        def craft(view: AttackerView, state: State) -> tuple[jax.Array, State]:
            trained = view.params + view.updates[: view.num_malicious]
            return at.alpha * (jax.vmap(clip)(trained) - view.params), state

        penalty = repairs.l2_penalty(layer, now.l2)
        aware = repairs.pruning_aware(layer, now.attackers_keep)
        return fr.Attack(craft=craft, client=client(at.attackers_steps, poison, (aware, penalty)))

    def one(pool: Batch, validation_set: Batch, test: Batch, now: Numbers) -> dict[str, Any]:
        data = FederatedData(pool, now.index, now.count)
        validation = repairs.accuracy(task, validation_set, chunk=chunk)
        triggered = trigger(now.victims)

        def attack_success(params: jax.Array) -> jax.Array:
            hit = metrics.predict(task, params, triggered, chunk=chunk) == now.target
            return jnp.sum(hit & now.are_victims) / jnp.sum(now.are_victims)

        def measured(params: jax.Array) -> dict[str, jax.Array]:
            right = metrics.predict(task, params, test["x"], chunk=chunk) == test["y"]
            return {"test": jnp.mean(right), "attack": attack_success(params)}

        def point(params: jax.Array) -> dict[str, jax.Array]:
            return {"validation": validation(params), "attack": attack_success(params)}

        sim = fr.Simulation(
            task,
            client(at.steps, None, (repairs.l2_penalty(layer, now.l2),)),
            aggregators.mean(),
            attack(now),
            num_malicious=shape.malicious,
            clients_per_round=shape.selected,
            # Matrix products of a client's own weights, one client at a time, use a CPU's caches better.
            client_chunk=1 if jax.default_backend() == "cpu" else None,
        )
        state, history = fr.run(
            sim,
            now.key,
            data,
            shape.rounds,
            evaluate=jax.tree_util.Partial(point),
            evaluate_every=max(shape.rounds // 20, 1),
        )
        trained = state.params
        curve = {name: history[name] for name in ("round", "validation", "attack")}
        result: dict[str, Any] = {"training": curve, "trained": measured(trained)}
        if not shape.repaired:
            return result

        # Pruning
        active = repairs.client_activations(layer, trained, data, relu=not args.before_relu)
        ranks, votes = repairs.ranks(active), repairs.votes(active, MAJORITY_RATE)
        lying = malicious & now.lie
        ranks = repairs.reversed_ranks(ranks, lying)
        votes = jnp.where(lying[:, None], 1 - votes, votes)
        orders = {"RV": repairs.ranking_vote(ranks), "MV": repairs.majority_vote(votes)}
        for name, order in orders.items():
            params, keep, info = repairs.prune(layer, trained, order, validation, drop=args.drop)
            when = jnp.argsort(order)
            prefixes = jax.lax.map(
                lambda i, when=when: attack_success(
                    repairs.with_neurons(layer, trained, when >= i)
                ),
                jnp.arange(layer.channels),
            )
            result[name] = measured(params) | {"number": info["pruned"]}
            result[f"{name} prefixes"] = {
                "validation": info["accuracies"],
                "attack": prefixes,
            }
            if name == "RV":
                pruned, kept = params, keep
        result["keep"] = kept

        # Extreme weights: alone, after pruning, after fine-tuning
        def adjusted(name: str, params: jax.Array, keep: jax.Array | None) -> None:
            best, info = repairs.adjust_extreme_weights(
                layer, params, validation, deltas=DELTAS, drop=args.drop, keep=keep
            )
            result[name] = measured(best) | {"number": info["zeroed"], "delta": info["delta"]}
            at_three, number = repairs.without_extreme_weights(layer, params, 3.0, keep)
            result[f"{name}, Delta 3"] = measured(at_three) | {"number": number}
            result[f"{name} deltas"] = {
                "validation": info["accuracies"],
                "attack": jax.lax.map(
                    lambda delta: attack_success(
                        repairs.without_extreme_weights(layer, params, delta, keep)[0]
                    ),
                    jnp.asarray(DELTAS),
                ),
            }

        adjusted("AW", trained, None)
        adjusted("RV + AW", pruned, kept)
        state, _ = fr.run(
            sim._replace(after_round=repairs.masked(layer, kept)),
            jax.random.fold_in(now.key, 1),
            data,
            1 if args.smoke else FINE_TUNING,
            params=pruned,
        )
        result["FT"] = measured(state.params)
        adjusted("FT + AW", state.params, kept)
        return result

    return jax.jit(jax.vmap(one, in_axes=(None, None, None, 0)))


def run_cases(cases: list[Case], inputs: Inputs, args: Args, folder: Path) -> list[dict[str, Any]]:
    """Results of all cases and seeds, in their order: what is on disk is read, the rest is computed."""
    provenance = report.provenance()
    everything = [(case, seed) for case in cases for seed in range(args.seeds)]
    mine = set(my_share(everything, args.cell))
    found: dict[tuple[Case, int], dict[str, Any]] = {}
    missing: list[tuple[Case, int]] = []
    for case, seed in everything:
        result = report.load_cell(folder, name_of(case, seed), settings_of(case, seed, inputs))
        if result is not None:
            found[case, seed] = result
        elif (case, seed) in mine:
            missing.append((case, seed))

    number = args.together or (1 if jax.default_backend() == "cpu" else len(missing) or 1)
    # Who knows the final mask must wait for the run that makes it.
    missing.sort(key=lambda run: run[0].against == "pruning")
    with tqdm(total=len(missing), unit="run") as bar:
        while missing:
            first = missing[0][0]
            group = [
                run
                for run in missing
                if run[0].shape == first.shape and run[0].against == first.against
            ][:number]
            missing = [run for run in missing if run not in group]
            started = time.perf_counter()
            numbers = [
                inputs.numbers(case, seed, final_mask(found, case, seed)) for case, seed in group
            ]
            stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *numbers)
            program = compiled(first.shape, inputs)
            results = jax.device_get(program(inputs.pool, inputs.validation, inputs.test, stacked))
            seconds = (time.perf_counter() - started) / len(group)
            for i, (case, seed) in enumerate(group):
                result = jax.tree.map(lambda leaf, i=i: np.asarray(leaf[i]).tolist(), results)
                result |= {"seconds": seconds} | provenance
                report.save_cell(
                    folder, name_of(case, seed), settings_of(case, seed, inputs), result
                )
                found[case, seed] = result
            bar.update(len(group))
    return [
        {**case._asdict(), **case.shape._asdict(), "seed": seed, **found[case, seed]}
        for case, seed in everything
        if (case, seed) in found
    ]


def final_mask(
    found: dict[tuple[Case, int], dict[str, Any]], case: Case, seed: int
) -> np.ndarray | None:
    if case.against != "pruning":
        return None
    before = case._replace(against="nothing"), seed
    if before not in found:
        raise ValueError(
            "pruning-aware attackers need the mask of the run without a counter-attack, which another "
            f"--cell computes (pair {case.victim}-{case.target}, seed {seed}); run this share after it"
        )
    return np.array(found[before]["keep"])


def name_of(case: Case, seed: int) -> str:
    values = [*case.shape, *case[1:], seed]
    return "-".join(f"{v:g}" if isinstance(v, float) else str(v) for v in values)


def settings_of(case: Case, seed: int, inputs: Inputs) -> dict[str, Any]:
    args = inputs.args
    size = jax.eval_shape(inputs.task.init, jax.random.key(0)).size
    return {
        **inputs.setting._asdict(),
        "model": type(inputs.module).__name__,
        "parameters": int(size),
        **case.shape._asdict(),
        **{name: value for name, value in case._asdict().items() if name != "shape"},
        "seed": seed,
        "drop": args.drop,
        "deltas": DELTAS,
        "before_relu": args.before_relu,
        "smoke": args.smoke,
    }


# --- Tables and figures ------------------------------------------------------------------------------


STAGES = {  # keys of results -> the tables' words
    "trained": "trained",
    "RV": "ranking vote",
    "MV": "majority vote",
    "AW": "AW alone",
    "RV + AW": "pruned + AW",
    "RV + AW, Delta 3": "pruned + AW, Delta = 3",
    "FT + AW": "fine-tuned + AW",
}


def fractions(
    printed: dict[Any, tuple[float, ...]], stages: Sequence[str], numbers: Sequence[int] = ()
) -> dict[tuple[str, str], float]:
    """{(line, column): number} of a printed table, its averages included; ``numbers`` are positions of
    counts, which are left out."""
    columns = [f"{STAGES[stage]}, {what}" for stage in stages for what in ("test", "attack")]
    paper: dict[tuple[str, str], float] = {}
    values = []
    for line, row in printed.items():
        kept = [value / 100 for i, value in enumerate(row) if i not in numbers]
        values.append(kept)
        name = "-".join(map(str, line)) if isinstance(line, tuple) else str(line)
        paper |= {(name, column): value for column, value in zip(columns, kept, strict=True)}
    means = np.mean(values, axis=0)
    paper |= {("average", column): float(v) for column, v in zip(columns, means, strict=True)}
    return paper


def table_rows(
    results: list[dict[str, Any]], stages: Sequence[str], line: Callable[[dict[str, Any]], str]
) -> list[dict[str, Any]]:
    """One row per run, stage and measure, and each seed's averages."""
    rows = []
    sums: dict[tuple[int, str], list[float]] = {}
    for result in results:
        for stage in stages:
            for what in ("test", "attack"):
                column = f"{STAGES[stage]}, {what}"
                value = float(result[stage][what])
                sums.setdefault((result["seed"], column), []).append(value)
                row = {"line": line(result), "column": column, "value": value}
                row["number"] = result[stage].get("number", 0)
                rows.append(row | {"seed": result["seed"], "commit": result.get("commit")})
    rows += [
        {"line": "average", "column": column, "value": float(np.mean(values)), "seed": seed}
        for (seed, column), values in sums.items()
    ]
    return rows


def write_table(
    folder: Path,
    results: list[dict[str, Any]],
    stages: Sequence[str],
    paper: dict[tuple[str, str], float],
    inputs: Inputs,
    title: str,
    line: Callable[[dict[str, Any]], str] = lambda r: f"{r['victim']}-{r['target']}",
    label: str = "pair",
) -> str:
    rows = table_rows(results, stages, line)
    missing = {name for name, _ in paper} - {"average"} - {row["line"] for row in rows}
    if missing or not paper:  # an average of other runs than the paper's would not compare
        rows = [row for row in rows if row["line"] != "average"]
    for row in rows:
        row[label] = row.pop("line")
    notes = describe(inputs, results)
    for stage in stages:
        if "number" in results[0][stage]:
            numbers = [float(result[stage]["number"]) for result in results]
            what = "neurons pruned" if stage in ("RV", "MV") else "weights zeroed"
            notes += (
                f" {what.capitalize()}, {STAGES[stage]}: {np.mean(numbers):.1f} on average "
                f"({min(numbers):g} to {max(numbers):g})."
            )
        if stage != "trained":
            low = sum(result[stage]["attack"] < 0.1 for result in results)
            notes += f" Attack success below 10 % after {STAGES[stage]}: {low} of {len(results)}."
    return report.write_table(
        folder,
        rows,
        paper,
        title=f"Wu et al. (2020), {title}",
        command=command_line("wu_pruning.py", inputs.args),
        index=label,
        columns="column",
        value="value",
        metric="accuracy",
        notes=notes,
    )


def write_figure(
    folder: Path,
    lines: list[tuple[str, int, Sequence[float], dict[str, Sequence[float]]]],
    inputs: Inputs,
    results: list[dict[str, Any]],
    title: str,
    x: str,
    xlabel: str,
) -> str:
    """lines: (name, seed, x values, {panel: values})."""
    rows = [
        {"line": name, "seed": seed, x: float(at), "measure": measure, "value": float(value)}
        for name, seed, values, panels in lines
        for measure, series in panels.items()
        for at, value in zip(values, series, strict=True)
    ]
    return report.write_sweep(
        folder,
        rows,
        x=x,
        xlabel=xlabel,
        panels="measure",
        lines="line",
        value="value",
        metric="accuracy",
        title=f"Wu et al. (2020), {title}",
        command=command_line("wu_pruning.py", inputs.args),
        notes=describe(inputs, results),
    )


def describe(inputs: Inputs, results: list[dict[str, Any]]) -> str:
    at, args, first = inputs.setting, inputs.args, results[0]
    size = jax.eval_shape(inputs.task.init, jax.random.key(0)).size
    taking_part = "all" if first["selected"] is None else "some"
    return (
        f"{type(inputs.module).__name__} ({size:,} parameters) on {at.data} "
        f"({inputs.dataset.note or 'its published split'}); {first['clients']} clients, {taking_part} "
        f"of them in each round, {first['malicious']} malicious, alpha {at.alpha:g}; "
        f"{first['rounds']} rounds of {at.steps} steps ({at.attackers_steps} of attackers) of "
        f"{at.learning_rate:g} on {at.batch_size} images with momentum {at.momentum:g}; the accuracy of "
        f"2,000 validation images decides, falls of more than {args.drop:g} stop; fine-tuning for "
        f"{FINE_TUNING} rounds."
    )


def prefix_lines(results: list[dict[str, Any]]) -> list[Any]:
    return [
        (
            f"{vote}, {r['victim']}-{r['target']}",
            r["seed"],
            range(len(r["RV prefixes"]["attack"])),
            r[f"{vote} prefixes"],
        )
        for r in results
        for vote in ("RV", "MV")
    ]


def delta_lines(
    results: list[dict[str, Any]], name: Callable[[dict[str, Any]], str], stage: str = "RV + AW"
) -> list[Any]:
    return [(name(r), r["seed"], DELTAS, r[f"{stage} deltas"]) for r in results]


def training_lines(
    results: list[dict[str, Any]], name: Callable[[dict[str, Any]], str]
) -> list[Any]:
    return [
        (
            name(r),
            r["seed"],
            r["training"]["round"],
            {what: r["training"][what] for what in ("validation", "attack")},
        )
        for r in results
    ]


def pair_name(result: dict[str, Any]) -> str:
    return f"{result['victim']}-{result['target']}"


def chosen_pairs(args: Args, usual: Sequence[tuple[int, int]]) -> list[tuple[int, int]]:
    if args.pairs is None:
        return list(usual[:1] if args.smoke else usual)
    pairs = []
    for text in args.pairs:
        victim, dash, target = text.partition("-")
        labels = tuple("0123456789")
        if not dash or victim not in labels or target not in labels or victim == target:
            raise ValueError(
                f"--pairs needs victim-target such as 9-0, two different labels, got {text!r}"
            )
        pairs.append((int(victim), int(target)))
    return pairs


def main(args: Args) -> None:
    """Run what is missing of one part, then print and draw its tables and figures."""
    if args.pixels not in (None, 1, 3, 5, 7, 9):
        raise ValueError(f"--pixels must be 1, 3, 5, 7 or 9, got {args.pixels}")
    if args.pixels is not None and args.part in ("patterns", "cifar10"):
        raise ValueError(
            f"--part {args.part} has triggers of its own: leave --pixels out, got {args.pixels}"
        )
    if args.width is not None and args.part != "cifar10":
        raise ValueError("--width is of CIFAR-10's network, --part cifar10")
    setting_name = args.part if args.part in SETTINGS else "mnist"
    setting = SETTINGS[setting_name]
    inputs = Inputs(setting, args)
    rounds = args.rounds or (2 if args.smoke else setting.rounds)
    shape = Shape(setting_name, rounds, args.pixels or setting.pixels, malicious=setting.malicious)
    folder = args.out / (args.part + ("-smoke" if args.smoke else ""))

    usual: Sequence[tuple[int, int]] = {
        "patterns": ((9, 1),),
        "pairs": FROM_NINE + TO_NINE,
        "concise": FROM_NINE + TO_NINE,
        "fashion": FROM_NINE,
        "cifar10": FROM_NINE,
    }.get(args.part, ((9, 0), (9, 2)) if args.part == "adaptive" else ((9, 0),))
    pairs = chosen_pairs(args, usual)
    some = slice(2 if args.smoke else None)
    cases = {
        "patterns": lambda v, t: [
            Case(shape._replace(pixels=p), v, t) for p in (1, 3, 5, 7, 9)[some]
        ],
        "labels": lambda v, t: [
            Case(shape._replace(repaired=False), v, t, labels=k) for k in (3, 5, 7)[some]
        ],
        "selected": lambda v, t: [
            Case(shape._replace(clients=50, malicious=5, selected=m), v, t)
            for m in (5, 10, 15, 20, 25)[some]
        ],
        "l2": lambda v, t: [
            Case(shape._replace(repaired=False), v, t, l2=l2)
            for l2 in (0.0, 0.001, 0.003, 0.01, 0.03)[some]
        ],
        "adaptive": lambda v, t: [
            Case(shape, v, t, against=kind) for kind in ("nothing", "ranks", "pruning", "AW")
        ],
    }.get(args.part, lambda v, t: [Case(shape, v, t)])
    results = run_cases([case for v, t in pairs for case in cases(v, t)], inputs, args, folder)
    if share_is_done(args.cell, folder):
        return

    texts = []
    if args.part == "patterns":
        stages = ("trained", "RV", "RV + AW, Delta 3")
        texts.append(
            write_table(
                folder / "table1", results, stages, fractions(TABLE_1, stages, (4, 7)), inputs,
                "Table I, triggers of 1 to 9 pixels, 9-1", lambda r: str(r["pixels"]), "pixels",
            )
        )  # fmt: skip
    elif args.part == "pairs":
        stages = ("trained", "RV", "MV")
        texts.append(
            write_table(
                folder / "table2", results, stages, fractions(TABLE_2, stages, (4, 7)), inputs,
                "Table II, pruning, MNIST",
            )
        )  # fmt: skip
        stages = ("trained", "RV + AW", "FT + AW")
        texts.append(
            write_table(
                folder / "table4", results, stages, fractions(TABLE_4, stages), inputs,
                "Table IV, the whole defence without and with fine-tuning, MNIST",
            )
        )  # fmt: skip
        stages = ("AW",)
        texts.append(
            write_table(
                folder / "aw-alone", results, stages, {}, inputs,
                "section V-E2, adjusting extreme weights alone in the network with 20 and 50 filters",
            )
        )  # fmt: skip
        shown = [r for r in results if pair_name(r) in ("9-0", "9-2")] or results[:1]
        texts.append(
            write_figure(
                folder / "figure4", prefix_lines(shown), inputs, shown,
                "Figure 4, neurons pruned", "pruned", "neurons pruned",
            )
        )  # fmt: skip
        texts.append(
            write_figure(
                folder / "figure5", delta_lines(shown, pair_name), inputs, shown,
                "Figure 5, extreme weights after pruning", "delta", "Delta",
            )
        )  # fmt: skip
    elif args.part == "concise":
        texts.append(
            write_table(
                folder / "table3", results, ("AW",), fractions(TABLE_3, ("AW",), (2,)), inputs,
                "Table III, adjusting extreme weights alone, 8 and 16 filters, MNIST",
            )
        )  # fmt: skip
    elif args.part in ("fashion", "cifar10"):
        stages = ("trained", "RV", "RV + AW", "FT + AW")
        number, printed = ("V", TABLE_5) if args.part == "fashion" else ("VI", TABLE_6)
        texts.append(
            write_table(
                folder / f"table{5 if number == 'V' else 6}", results, stages,
                fractions(printed, stages), inputs, f"Table {number}, {setting.data}",
            )
        )  # fmt: skip
    elif args.part == "labels":
        lines = training_lines(results, lambda r: f"{r['labels']} labels")
        texts.append(
            write_figure(
                folder / "figure3", lines, inputs, results,
                "Figure 3, training with 3, 5 and 7 labels per client", "round", "round",
            )
        )  # fmt: skip
    elif args.part == "selected":
        lines = delta_lines(results, lambda r: f"{r['selected']} of 50")
        texts.append(
            write_figure(
                folder / "figure7", lines, inputs, results,
                "Figure 7, extreme weights after pruning, clients per round", "delta", "Delta",
            )
        )  # fmt: skip
    elif args.part == "l2":
        lines = training_lines(results, lambda r: f"lambda {r['l2']:g}")
        texts.append(
            write_figure(
                folder / "figure8", lines, inputs, results,
                "Figure 8, L2 penalty on the last convolution", "round", "round",
            )
        )  # fmt: skip
    else:
        stages = ("trained", "RV", "RV + AW", "FT + AW")
        words = {
            "nothing": "no counter-attack",
            "ranks": "reversed rankings",
            "pruning": "pruning-aware",
            "AW": "self-clipping",
        }
        texts.append(
            write_table(
                folder / "adaptive", results, stages, {}, inputs,
                "section VI-C, attackers who know the defence",
                lambda r: f"{words[r['against']]}, {pair_name(r)}", "attackers",
            )
        )  # fmt: skip
    print("\n" + "\n".join(texts) + f"\nrows, tables and figures are in {folder}")


if __name__ == "__main__":
    use_compilation_cache()
    main(tyro.cli(Args))
