"""Wu et al. (2020): data, models, training, and what a run is given; what the paper leaves open.

The paper does not print learning rates, batch sizes, rounds, filters other than MNIST's, initial weights,
triggers or alpha, but alpha = 3 for Figure 8 with the labels distributed as everywhere. Taken here
(``SETTINGS``): that alpha (CIFAR-10: 1), PyTorch's initial weights, images normalized by the training
set's mean and deviation, 20 local steps of 0.1 on 32 images per round, of the attackers 200 (about
one epoch, ten times as many as the others', which is DBA's ratio on MNIST; with 20 a trigger of one
pixel was not learned; CIFAR-10: 20), a trigger of 5 pixels near the corner (one for Fashion-MNIST).
Client 0, the attacker, is one that owns the victim label; it trains on these images twice, as they are
and with the trigger and the target label (CIFAR-10: as in DBA, any 5 images of a batch). The server's
validation data are 2,000 training images that no client has; test accuracy is of the test set, attack
success of its images of the victim label.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

import fedjax_robust as fr
from fedjax_robust import attacks, models, repairs, study
from fedjax_robust import data as datasets

Batch = dict[str, Any]
Trigger = Callable[[jax.Array], jax.Array]
Settings = Mapping[str, Any]
"""Of a cell (see ``cell``); those of a run have a ``seed``, too."""


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
    alpha: float = 3.0
    """by which the attackers multiply their updates"""
    malicious: int = 1
    pixels: int = 5
    """size of the trigger"""
    normalization: tuple[float, float] | None = None
    """(a, b): images are (pixels in [0, 1] - a) / b; None: the training set's mean and deviation"""
    distributed: bool = False
    """DBA: each attacker has a part of the trigger, and puts it on any 5 images of a batch"""


MNIST = Setting("mnist", models.MnistNet, "Conv_1", 100, attackers_steps=200)
SETTINGS = {
    "mnist": MNIST,
    "concise": MNIST._replace(model=functools.partial(models.MnistNet, features=(8, 16))),
    "fashion": Setting(
        "fashion_mnist",
        # (16,), (32, 64) would not see the last two rows and columns, where the trigger's pixel is.
        functools.partial(models.ConvNet, blocks=((16, 32), (64,)), hidden=(128,)),
        "Conv_2",
        100,
        attackers_steps=200,
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
TO_NINE = tuple((v, 9) for v in range(9))
FROM_NINE = tuple((9, t) for t in range(9))

PARTITION, ROUNDS = 1, 2
"""What keys are for: ``study.key(PARTITION, seed)``."""


class Inputs(NamedTuple):
    """Images, normalized, and the model."""

    setting: Setting
    pool: Batch
    """the clients' images"""
    validation: Batch
    """the server's"""
    test: Batch
    module: nn.Module
    task: fr.Task
    layer: repairs.ConvolutionLayer
    num_classes: int
    normalization: tuple[float, float]
    note: str
    """which split"""


def load(
    setting: Setting,
    data_dir: Path | None = None,
    width: Sequence[int] | None = None,
    smoke: bool = False,
) -> Inputs:
    """``width``: filters of the two blocks of CIFAR-10's network; ``smoke``: few images."""
    dataset = datasets.load(setting.data, data_dir)
    train, test = dataset.train, dataset.test
    order = np.random.default_rng(0).permutation(len(train["y"]))
    few = order[:200], order[VALIDATION : VALIDATION + 1000]
    validation, own = few if smoke else (order[:VALIDATION], order[VALIDATION:])
    usual = float(train["x"].mean()), float(train["x"].std())
    shift, scale = setting.normalization or usual

    def normalized(part: Any, rows: Any) -> Batch:
        x = jnp.asarray((part["x"][rows] - shift) / scale, jnp.float32)
        return {"x": x, "y": jnp.asarray(part["y"][rows])}

    pool = normalized(train, own)
    blocks = {} if width is None else {"blocks": tuple((w, w) for w in width)}
    module = setting.model(dataset.num_classes, **blocks)
    return Inputs(
        setting,
        pool,
        normalized(train, validation),
        normalized(test, slice(200 if smoke else None)),
        module,
        fr.classification(module, pool["x"][:1]),
        repairs.convolution(module, pool["x"][:1], setting.layer),
        dataset.num_classes,
        (shift, scale),
        dataset.note or "its published split",
    )


def cell(inputs: Inputs, **changes: Any) -> dict[str, Any]:
    """All settings of a run but its seed; ``changes`` to the paper's usual ones."""
    usual = {
        **inputs.setting._asdict(),
        "model": type(inputs.module).__name__,
        "parameters": int(jax.eval_shape(inputs.task.init, jax.random.key(0)).size),
        "clients": 10,
        "selected": None,
        "repaired": True,
        "labels": 3,
        "l2": 0.0,
        "against": "nothing",
        "drop": 0.01,
        "before_relu": False,
        "fine_tuning": FINE_TUNING,
        "deltas": repairs.DELTAS,
        "validation_images": len(inputs.validation["y"]),
    }
    if unknown := set(changes) - set(usual) - {"victim", "target"}:
        raise ValueError(f"a run has no settings {sorted(unknown)}")
    return usual | changes


class Numbers(NamedTuple):
    """Arguments of the program, one per run: what may differ between runs of one program."""

    key: jax.Array
    rows: jax.Array
    sizes: jax.Array
    """the partition: rows of the pool, (N, m) and (N,)"""
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


def numbers(inputs: Inputs, run: Settings, keep: np.ndarray | None = None) -> Numbers:
    """``keep``: the final mask, for attackers who know it."""
    labels_of = np.asarray(inputs.pool["y"])
    # Room for the largest client of any partition, so that all share a program.
    largest = np.sort(np.bincount(labels_of))[-run["labels"] :]
    owners = run["clients"] * run["labels"] // inputs.num_classes
    _, index, count = datasets.k_labels(
        study.key(PARTITION, run["seed"]),
        inputs.pool,
        run["clients"],
        run["labels"],
        inputs.num_classes,
        capacity=int(np.sum(-(-largest // owners))),
    )
    # Owners of the victim label come first: malicious clients are the first ones.
    owns = np.any(
        (labels_of[index] == run["victim"])
        & (np.arange(index.shape[1]) < np.asarray(count)[:, None]),
        axis=1,
    )
    order = np.argsort(~owns, kind="stable")
    test_labels = np.asarray(inputs.test["y"])
    rows = np.flatnonzero(test_labels == run["victim"])
    most = int(np.bincount(test_labels).max())
    knows_mask = run["against"] == "pruning" and keep is not None
    return Numbers(
        study.key(ROUNDS, run["seed"]),
        index[order],
        count[order],
        jnp.int32(run["victim"]),
        jnp.int32(run["target"]),
        inputs.test["x"][np.resize(rows, most)],
        jnp.arange(most) < len(rows),
        jnp.float32(run["l2"]),
        jnp.bool_(run["against"] == "ranks"),
        jnp.asarray(keep if knows_mask else np.ones(inputs.layer.channels, bool)),
        jnp.float32(3.0 if run["against"] == "AW" else np.inf),
    )


def triggers(inputs: Inputs, cell: Settings) -> tuple[Trigger, list[Trigger]]:
    """The trigger that is tested, and DBA's parts of it (none if the attack is not distributed)."""
    shift, scale = inputs.normalization
    white = (1 - shift) / scale
    if not cell["distributed"]:
        return attacks.backdoors.pixel_trigger(
            attacks.backdoors.NINE_PIXELS[: cell["pixels"]], white
        ), []
    whole = attacks.backdoors.pixel_trigger(sum(attacks.backdoors.DBA_CIFAR_PIXELS, ()), white)
    return whole, [
        attacks.backdoors.pixel_trigger(part, white) for part in attacks.backdoors.DBA_CIFAR_PIXELS
    ]


def chosen_pairs(given: Sequence[str], usual: Sequence[tuple[int, int]]) -> list[tuple[int, int]]:
    """(victim, target) of texts such as 9-0; ``usual`` if there are none."""
    pairs = []
    for text in given:
        victim, dash, target = text.partition("-")
        labels = tuple("0123456789")
        if not dash or victim not in labels or target not in labels or victim == target:
            raise ValueError(
                f"--pairs needs victim-target such as 9-0, two different labels, got {text!r}"
            )
        pairs.append((int(victim), int(target)))
    return pairs or list(usual)


def model_file(folder: Path, run: Settings, keys: Sequence[str]) -> Path:
    """Where the parameters of a run are kept."""
    return folder / "models" / f"{study.run_name(run, keys)}.npz"
