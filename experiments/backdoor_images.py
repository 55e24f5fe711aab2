"""Backdoors in image classification: Figures 4 to 7, 10 and 11 of Bagdasaryan et al.

Bagdasaryan, Veit, Hua, Estrin, Shmatikov: "How To Backdoor Federated Learning", AISTATS 2020.

  python experiments/backdoor_images.py --figure single-shot   4a  one attacker in one round
  python experiments/backdoor_images.py --figure repeated      4b  share of compromised participants
  python experiments/backdoor_images.py --figure pixel         5   a pattern of pixels instead
  python experiments/backdoor_images.py --figure injection     6   attacks in earlier and later rounds
  python experiments/backdoor_images.py --figure gamma         7   scaling factor
  python experiments/backdoor_images.py --figure multiple      8   several backdoors at once
  python experiments/backdoor_images.py --figure cosine        10  anomaly of the model that is submitted
  python experiments/backdoor_images.py --figure krum          11  the rule that takes one model

``--setting cifar10`` is the paper's (a GPU's work for hours): ResNet18, semantic backdoors on cars,
10,000 rounds before the attack, checkpointed. ``--setting mnist``, the default, is a reduced one for two
CPU cores: a small network, and digits that lean unusually far to the left as backdoors, the 30 of their
class with the smallest slant (``slant``; ones by default), which become twos. In both there are 100
clients, 10 in a round, the split of the authors' code, and the server of eq. 1 with eta = 1, so that
gamma = n / eta = 100 replaces the model. The attacker has its own data: 640 images drawn at random, and
all backdoor images but 3, of which backdoor accuracy is measured on 1,000 random rotations and crops.
Figures 6, 7, 8, 10 and 11 of the paper are on word prediction; here they are on images.

What the paper leaves open, and what is taken here: held-out images are rotated by up to 10 degrees and
cropped after a padding of 4 (MNIST: 5 degrees, 1 pixel, as a dense network does not see through shifts);
honest training has momentum 0.9 and, for CIFAR-10, weight decay 5e-4, crops and flips, as in the authors'
code. On MNIST the attacker's first step is 0.1 without momentum, in place of 0.05.
*Replacement* trains one model and divides it among the attackers who are there; *Poisoning* is the same
training by each of them on its own data, without scaling.

Results go to ``--out``/<setting>-<figure>: one file per finished run, so that a killed script goes on
after the last one; ``rows``, ``table.md``, ``sweep.png`` and for 4a, 5 and 6 ``curves.png``. The models
before the attack are kept in ``--out``/<setting>-before.
"""

from __future__ import annotations

import dataclasses
import functools
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import tyro
from common import use_compilation_cache
from fang_table2 import command_line
from flax import linen as nn
from tqdm import tqdm

import fedjax_robust as fr
from fedjax_robust import aggregators, attacks, metrics, models, report
from fedjax_robust import data as datasets
from fedjax_robust.attacks.objectives import Anomaly
from fedjax_robust.clients import Loss
from fedjax_robust.files import written_atomically
from fedjax_robust.robust_stats import direction_and_length
from fedjax_robust.types import ClientData, Received

Batch = dict[str, Any]


class Setting(NamedTuple):
    """Data, model and training; names are the paper's."""

    data: str
    model: Callable[[int], nn.Module]
    backdoors: tuple[str, ...]
    """of which the first is used where one is enough"""
    pixels: tuple[tuple[int, int], ...]
    pixel_images: int
    """the attacker's benign images for the pixel pattern"""
    rounds_before: int
    """rounds of training before the attack"""
    injections: tuple[int, ...]
    """the same, for Figure 6"""
    batch_size: int = 64
    momentum: float = 0.0
    decay: float = 0.0
    attackers_rate: float = 0.05
    """at first; a tenth after every 2 of 6 epochs"""
    attackers_momentum: float = 0.0
    augmented: bool = False
    rotation: float = 10.0
    """of held-out images, by up to so many degrees"""
    crop: int = 4
    """and by so many pixels"""
    clients: int = 100
    participants: int = 10
    alpha: float = 0.9
    """of the Dirichlet split"""
    benign_images: int = 640
    held_out: int = 3
    target: int = 2


TARGET_DIGIT = {"leaning ones": 1, "leaning sevens": 7, "leaning fours": 4, "leaning nines": 9}
CARS = {
    "striped walls": attacks.CIFAR_STRIPED_WALLS,
    "green cars": attacks.CIFAR_GREEN_CARS,
    "racing stripes": attacks.CIFAR_RACING_STRIPES,
}
LEANING = 30
MNIST = Setting(
    "mnist",
    functools.partial(models.MLP, hidden=(32,)),
    tuple(TARGET_DIGIT),
    attacks.NINE_PIXELS[:5],
    6_000,
    300,
    (10, 30, 100, 300, 1000),
    momentum=0.9,
    attackers_rate=0.1,
    rotation=5.0,
    crop=1,
)
CIFAR = Setting(
    "cifar10",
    models.ResNet18,
    tuple(CARS),
    attacks.FLTRUST_CIFAR_PIXELS,
    20_000,
    10_000,
    (100, 1_000, 5_000, 10_000),
    momentum=0.9,
    attackers_momentum=0.9,
    decay=5e-4,
    augmented=True,
)
SETTINGS = {"mnist": MNIST, "cifar10": CIFAR}
GAMMA = 100.0
BEFORE, ROUNDS = 5, 100
"""Rounds before the single shot, and all."""
SHOWN = (-1, 0, 1, 2, 5, 10, 20, 40, 60, 80, 94)
"""Rounds since the attack, in tables"""
SHARES = (0.01, 0.02, 0.05, 0.1, 0.2, 0.3)
SCALES = (1.0, 10.0, 20.0, 40.0, 60.0, 80.0, 100.0, 150.0, 200.0)
Method = Literal["None", "Replacement", "Poisoning"]


@dataclasses.dataclass
class Args:
    """Backdoors on images. Accuracies are fractions."""

    figure: Literal[
        "single-shot", "repeated", "pixel", "injection", "gamma", "multiple", "cosine", "krum"
    ] = "single-shot"
    """What is measured."""
    setting: Literal["mnist", "cifar10"] = "mnist"
    """Data set, model and their hyper-parameters."""
    backdoor: str | None = None
    """One of the setting's backdoors; default its first. single-shot and repeated run each of a list of
    names that commas separate, or "all"."""
    seeds: int = 3
    """Trials with other splits, models, held-out images and batches."""
    points: tuple[float, ...] | None = None
    """Values of the swept parameter, instead of the figure's."""
    rounds_before: int | None = None
    """Rounds of training before the attack, instead of the setting's."""
    width: int | None = None
    """Channels of ResNet18's first stage, instead of 32 (cifar10)."""
    client_chunk: int | None = None
    """Train so many clients at a time, which bounds memory; default all, on a CPU 1 for ResNet18."""
    data_dir: Path | None = None
    """Folder of the data sets; default FEDJAX_ROBUST_DATA, else where TFDS keeps its own."""
    out: Path = Path("results/backdoor_images")
    """Where results go."""
    smoke: bool = False
    """A few rounds, points and images and one seed, to see that everything works."""


class Case(NamedTuple):
    """All that a program is compiled for; numbers that may vary within it are in ``Point``."""

    method: Method = "Replacement"
    backdoors: int = 1
    """how many at once"""
    pixel: bool = False
    attackers: int = 1
    single_shot: bool = True
    anomaly: str = "none"
    """L_ano of constrain-and-scale: none, distance, cosine"""
    krum: bool = False
    """all clients take part, the server takes one model, and the attackers' are not scaled"""
    rounds: int = ROUNDS


class Point(NamedTuple):
    """A run, but for its seed."""

    case: Case
    labels: dict[str, Any]
    """what its rows are called"""
    backdoor: str
    rounds_before: int
    gamma: float = GAMMA
    alpha: float = 1.0


# --- Data --------------------------------------------------------------------------------------------


def slant(x: np.ndarray) -> np.ndarray:
    """How far digits (b, 28, 28, 1) lean to the right: columns per row upwards, by regression of the
    ink's columns on its rows."""
    row, column = (a.ravel().astype(np.float64) for a in np.mgrid[: x.shape[1], : x.shape[2]])
    image = x.reshape(len(x), -1).astype(np.float64)
    ink = image.sum(axis=1)
    mean_row, mean_column = image @ row / ink, image @ column / ink
    together = image @ (row * column) / ink - mean_row * mean_column
    return -together / (image @ row**2 / ink - mean_row**2)


class Inputs:
    """Each seed's split and backdoors, and the models before the attack."""

    def __init__(self, setting: Setting, args: Args, folder: Path):
        self.setting, self.folder, self.smoke = setting, folder, args.smoke
        self.dataset = datasets.load(setting.data, args.data_dir)
        train = self.dataset.train
        if setting.data == "cifar10":
            rows = {
                name: datasets.cifar10_rows(numbers, args.data_dir)
                for name, numbers in CARS.items()
            }
        else:
            order = np.argsort(slant(train["x"]), kind="stable")
            rows = {
                name: order[train["y"][order] == digit][:LEANING]
                for name, digit in TARGET_DIGIT.items()
            }
        self.rows = rows
        # Nobody but the attacker has images with a backdoor's feature.
        kept = np.ones(len(train["y"]), bool)
        kept[np.concatenate(list(rows.values()))] = False
        self.pool = on_device({name: train[name][kept] for name in ("x", "y")})
        cut = slice(500 if args.smoke else None)
        self.test = on_device({name: self.dataset.test[name][cut] for name in ("x", "y")})
        width = {} if args.width is None else {"width": args.width}
        self.task = fr.classification(
            setting.model(self.dataset.num_classes, **width), self.pool["x"][:1]
        )
        big = jax.default_backend() == "cpu" and setting.data == "cifar10"
        self.client_chunk = args.client_chunk or (1 if big else None)
        self.parts: dict[int, fr.FederatedData] = {}

    def federated(self, seed: int) -> fr.FederatedData:
        if seed not in self.parts:
            self.parts[seed] = self._federated(seed)
        return self.parts[seed]

    def _federated(self, seed: int) -> fr.FederatedData:
        at, key = self.setting, jax.random.fold_in(jax.random.key(1), seed)
        data = datasets.dirichlet_truncated(key, {"y": self.pool["y"]}, at.clients, at.alpha)
        missing = -data.index.shape[1] % 256  # seeds with the same width share a program
        index = jnp.pad(data.index, ((0, 0), (0, missing)))
        return data._replace(examples=self.pool, index=index)

    def backdoor(self, name: str, seed: int) -> tuple[Batch, jax.Array]:
        """D_backdoor, and variations of the images that are held out."""
        order_key, key = jax.random.split(jax.random.fold_in(jax.random.key(2), seed))
        order = np.asarray(jax.random.permutation(order_key, len(self.rows[name])))
        train, at = self.dataset.train, self.setting
        split = attacks.semantic_backdoor(train, self.rows[name][order], at.held_out, at.target)
        changes = (datasets.random_rotation(at.rotation), datasets.random_crop(at.crop))
        number = 60 if self.smoke else 1000
        return split.train, datasets.variations(key, split.held_out["x"], number, *changes)

    def own(self, number: int, seed: int) -> ClientData:
        """The attacker's benign images."""
        key = jax.random.fold_in(jax.random.key(3), seed)
        rows = jax.random.permutation(key, len(self.pool["y"]))[:number]
        return ClientData(self.pool, rows.astype(jnp.int32), jnp.int32(number))

    def before(self, rounds: int, seed: int) -> jax.Array:
        """The model after ``rounds`` rounds without attack; trained on from the latest that is kept."""
        path = self.folder / f"{seed}-{rounds}.npz"
        if not path.exists():
            earlier = [int(p.stem.split("-")[1]) for p in self.folder.glob(f"{seed}-*.npz")]
            start = max((r for r in earlier if r < rounds), default=0)
            key = jax.random.fold_in(jax.random.fold_in(jax.random.key(4), seed), start)
            state, history = fr.run(
                fr.Simulation(
                    self.task,
                    honest_client(self.setting, self.task),
                    aggregators.fedavg_eta(1.0, self.setting.clients),
                    clients_per_round=self.setting.participants,
                    client_chunk=self.client_chunk,
                ),
                key,
                self.federated(seed),
                rounds - start,
                params=self.before(start, seed) if start else None,
                evaluate=metrics.test_error(self.task, self.test),
                evaluate_every=max((rounds - start) // 10, 1),
                progress=True,
                checkpoint=path.with_suffix(".checkpoint"),
            )
            with written_atomically(path) as file:
                np.savez(file, params=state.params, test_error=history["test_error"])
            path.with_suffix(".checkpoint").unlink(missing_ok=True)
        with np.load(path) as file:
            return jnp.asarray(file["params"])


def on_device(examples: Batch) -> Batch:
    return {name: jnp.asarray(examples[name]) for name in ("x", "y")}


# --- Training and attacks ----------------------------------------------------------------------------


def decayed(setting: Setting, loss: Loss) -> Loss:
    if not setting.decay:
        return loss
    return lambda params, batch: (
        loss(params, batch) + setting.decay / 2 * jnp.sum(jnp.square(params))
    )


def augmentation(setting: Setting) -> tuple[Callable, ...]:
    if not setting.augmented:
        return ()
    return (datasets.changed(datasets.random_crop(4), datasets.random_flip()),)


def honest_client(setting: Setting, task: fr.Task) -> fr.Client:
    return fr.local_sgd(
        task,
        0.1,
        setting.batch_size,
        epochs=2,
        momentum=setting.momentum,
        poison=attacks.in_turn(*augmentation(setting)),
        objective=lambda loss, received: decayed(setting, loss),
    )


def attackers_client(
    setting: Setting, task: fr.Task, case: Case, sets: list[Batch], alpha: jax.Array
) -> fr.Client:
    """Algorithm 2, but for the scaling."""
    if case.pixel:
        trigger = attacks.pixel_trigger(setting.pixels)
        poisons = [attacks.replace_by_triggered(trigger, setting.target, 5)]
    else:
        c = 20 // len(sets)
        poisons = [attacks.replace_by(one, c, 0.05, skip=i * c) for i, one in enumerate(sets)]
    anomaly: dict[str, Anomaly] = {
        "distance": attacks.p_distance(),
        "cosine": attacks.cosine_distance,
    }

    def objective(loss: Loss, received: jax.Array) -> Loss:
        loss = decayed(setting, loss)
        if case.anomaly == "none":
            return loss
        return attacks.constrain(alpha, anomaly[case.anomaly])(loss, received)

    return fr.local_sgd(
        task,
        optax.exponential_decay(setting.attackers_rate, 2, 0.1, staircase=True),
        setting.batch_size,
        epochs=6,
        momentum=setting.attackers_momentum,
        poison=attacks.in_turn(*augmentation(setting), *poisons),
        objective=objective,
    )


def measured(rule: fr.Aggregator) -> fr.Aggregator:
    """The rule, which also reports the length of each update received and how far its direction as a
    model, G + update, is from G's: 1 - cos."""

    def aggregate(received: Received, state: Any) -> tuple[Any, Any, dict[str, Any]]:
        result, state, info = rule.aggregate(received, state)
        submitted = direction_and_length(received.params + received.updates)[0]
        model = direction_and_length(received.params)[0]
        info |= {
            "norm": direction_and_length(received.updates)[1],
            # 1 - cos loses all digits near 1.
            "anomaly": jnp.sum(jnp.square(submitted - model), axis=1) / 2,
        }
        return result, state, info

    return fr.Aggregator(rule.init, aggregate)


@functools.cache
def compiled(case: Case, inputs: Inputs) -> Callable[..., dict[str, Any]]:
    """One run; data and numbers are arguments."""
    at, task = inputs.setting, inputs.task

    def one(
        key: jax.Array,
        data: fr.FederatedData,
        own: ClientData,
        sets: list[Batch],
        held_out: list[jax.Array],
        test: Batch,
        params: jax.Array,
        gamma: jax.Array,
        alpha: jax.Array,
    ) -> dict[str, Any]:
        evaluations = [metrics.test_error(task, test)]
        if case.pixel:
            triggered = attacks.triggered(test, attacks.pixel_trigger(at.pixels))
            evaluations.append(
                renamed(metrics.attack_success(task, triggered, at.target), "attack_success", 0)
            )
        else:
            evaluations += [
                renamed(metrics.backdoor_accuracy(task, x, at.target), "backdoor_accuracy", i)
                for i, x in enumerate(held_out)
            ]
        client = attackers_client(at, task, case, sets, alpha)
        attack = {
            "None": attacks.no_attack,
            "Replacement": lambda: attacks.model_replacement(
                client, own, attacks.copies(gamma) if case.krum else attacks.equal_parts(gamma)
            ),
            "Poisoning": lambda: attacks.data_poisoning(client),
        }[case.method]()
        participants, number = None, None if case.krum else at.participants
        if case.single_shot and not case.krum:
            now = (jnp.arange(ROUNDS) == min(BEFORE, case.rounds - 1))[:, None]
            now = jnp.broadcast_to(now, (ROUNDS, case.attackers))
            participants = fr.attackers_selected(at.clients, at.participants, now)
            number = None
        rule = aggregators.fedavg_eta(1.0, at.clients)
        if case.krum:
            rule = aggregators.krum(case.attackers)
        sim = fr.Simulation(
            task,
            honest_client(at, task),
            measured(rule),
            attack,
            num_malicious=case.attackers,
            clients_per_round=number,
            participants=participants,
            client_chunk=inputs.client_chunk,
        )
        return fr.run(
            sim,
            key,
            data,
            case.rounds,
            params=params,
            evaluate=metrics.together(*evaluations),
            evaluate_every=1,
        )[1]

    return jax.jit(one)


def renamed(evaluate: fr.types.Evaluate, name: str, i: int) -> fr.types.Evaluate:
    return jax.tree_util.Partial(
        lambda evaluate, params: {f"backdoor_{i}": evaluate(params)[name]}, evaluate
    )


def run_point(
    point: Point, inputs: Inputs, seeds: range, folder: Path, provenance: dict[str, Any]
) -> list[dict[str, Any]]:
    """Its curves for all seeds: what is on disk is read, the rest is computed."""
    at, case = inputs.setting, point.case
    settings = {
        **at._asdict(),
        **point._asdict(),
        **case._asdict(),
        "model": at.model(1).__class__.__name__,
    }
    for name in ("case", "labels", "injections"):
        settings.pop(name, None)
    settings["parameters"] = int(jax.eval_shape(inputs.task.init, jax.random.key(0)).size)
    stem = "-".join(
        str(value).replace(" ", "_")
        for value in (
            *case,
            point.backdoor,
            point.rounds_before,
            f"{point.gamma:g}",
            f"{point.alpha:g}",
        )
    )
    rows = []
    for seed in seeds:
        result = report.load_cell(folder, f"{stem}-{seed}", settings | {"seed": seed})
        if result is None:
            started = time.perf_counter()
            history = simulate(point, inputs, seed)
            result = curves(history, case) | {"seconds": time.perf_counter() - started} | provenance
            report.save_cell(folder, f"{stem}-{seed}", settings | {"seed": seed}, result)
        rows.append(point.labels | {"backdoor": point.backdoor, "seed": seed} | result)
    return rows


def simulate(point: Point, inputs: Inputs, seed: int) -> dict[str, np.ndarray]:
    at, case = inputs.setting, point.case
    names = [point.backdoor, *(name for name in at.backdoors if name != point.backdoor)]
    pairs = [inputs.backdoor(name, seed) for name in names[: case.backdoors]]
    images = at.pixel_images if case.pixel else at.benign_images
    return jax.device_get(
        compiled(case, inputs)(
            jax.random.key(seed),
            inputs.federated(seed),
            inputs.own(min(images, 256) if inputs.smoke else images, seed),
            [one for one, _ in pairs],
            [x for _, x in pairs],
            inputs.test,
            inputs.before(point.rounds_before, seed),
            jnp.float32(point.gamma),
            jnp.float32(point.alpha),
        )
    )


def curves(history: dict[str, np.ndarray], case: Case) -> dict[str, Any]:
    """Lists over rounds, and what the attackers submitted, on average over attackers and rounds."""
    backdoors = [history[f"backdoor_{i}"] for i in range(case.backdoors)]
    malicious = history["malicious"]
    result: dict[str, Any] = {
        "main": (1 - history["test_error"]).tolist(),
        "backdoor": np.mean(backdoors, axis=0).tolist(),
        "least": np.min(backdoors, axis=0).tolist(),
    }
    for name in ("norm", "anomaly"):
        values = history[name].astype(np.float64)
        result[name] = float(values[malicious].mean()) if malicious.any() else float("nan")
        result[f"honest_{name}"] = float(values[~malicious].mean())
    if case.krum:
        chosen = np.any(history["selected"] & malicious, axis=1)
        result["selected"] = chosen.astype(float).tolist()
    return result


# --- Figures -----------------------------------------------------------------------------------------


class Figure(NamedTuple):
    """How a figure's points are made and shown."""

    number: str
    points: Callable[[Setting, str, Args], list[Point]]
    x: str
    xlabel: str
    over_rounds: bool = False
    """x is the round: rows are those of ``SHOWN``"""
    measures: tuple[str, ...] = ("backdoor", "main")
    average: bool = False
    """of all rounds, instead of the round of the attack"""
    log_x: bool = False


def usual(setting: Setting, args: Args) -> int:
    return args.rounds_before or (3 if args.smoke else setting.rounds_before)


def of(args: Args, values: tuple[float, ...]) -> tuple[float, ...]:
    return args.points or (values[:1] + values[-1:] if args.smoke else values)


def rounds(args: Args, number: int = ROUNDS) -> int:
    return min(number, BEFORE + 3) if args.smoke else number


def single_shot(setting: Setting, backdoor: str, args: Args, pixel: bool = False) -> list[Point]:
    methods: tuple[Method, ...] = ("Replacement", "Poisoning")
    return [
        Point(
            Case(method, pixel=pixel, rounds=rounds(args)),
            {"method": method},
            backdoor,
            usual(setting, args),
        )
        for method in methods
    ]


def repeated(setting: Setting, backdoor: str, args: Args) -> list[Point]:
    methods: tuple[Method, ...] = ("Replacement", "Poisoning")
    return [
        Point(
            Case(
                method,
                attackers=round(share * setting.clients),
                single_shot=False,
                rounds=rounds(args),
            ),
            {"method": method, "share": share},
            backdoor,
            usual(setting, args),
        )
        for method in methods
        for share in of(args, SHARES)
    ]


def injection(setting: Setting, backdoor: str, args: Args) -> list[Point]:
    starts = of(args, setting.injections)
    if args.smoke and args.points is None:
        starts = (2, 3)
    return [
        Point(Case(rounds=rounds(args)), {"method": f"after {r:g} rounds"}, backdoor, round(r))
        for r in starts
    ]


def one_round(args: Args) -> int:
    """Up to the attack."""
    return min(BEFORE + 1, rounds(args))


def gamma(setting: Setting, backdoor: str, args: Args) -> list[Point]:
    return [
        Point(
            Case(rounds=one_round(args)),
            {"method": "Replacement", "gamma": value},
            backdoor,
            usual(setting, args),
            value,
        )
        for value in of(args, SCALES)
    ]


def multiple(setting: Setting, backdoor: str, args: Args) -> list[Point]:
    numbers = of(args, tuple(float(k) for k in range(1, len(setting.backdoors) + 1)))
    return [
        Point(
            Case(backdoors=round(k), rounds=one_round(args)),
            {"method": "Replacement", "number": k},
            backdoor,
            usual(setting, args),
        )
        for k in numbers
    ]


def cosine(setting: Setting, backdoor: str, args: Args) -> list[Point]:
    alphas = (0.9, 0.5, 0.1) if not args.smoke else (0.5,)
    scales = of(args, (5.0, 10.0, 20.0, 40.0, 60.0, 80.0, 100.0))
    free = Case(rounds=one_round(args))
    constrained = free._replace(anomaly="cosine")
    kinds = [("train-and-scale", free, 1.0)]
    kinds += [(f"constrain-and-scale, alpha {a:g}", constrained, a) for a in alphas]
    return [
        Point(case, {"method": name, "gamma": value}, backdoor, usual(setting, args), value, a)
        for name, case, a in kinds
        for value in scales
    ]


def krum(setting: Setting, backdoor: str, args: Args) -> list[Point]:
    shares = of(args, (0.01, 0.02, 0.05, 0.1, 0.2))
    alphas = (1.0, 0.9, 0.5) if not args.smoke else (0.5,)
    return [
        Point(
            Case(
                anomaly="none" if a == 1 else "distance",
                attackers=round(share * setting.clients),
                krum=True,
                rounds=1,
            ),
            {"method": "unconstrained" if a == 1 else f"alpha {a:g}", "share": share},
            backdoor,
            usual(setting, args),
            1.0,
            a,
        )
        for a in alphas
        for share in shares
    ]


ROUND = ("round", "rounds since the attack", True)
FIGURES = {
    "single-shot": Figure("4a", single_shot, *ROUND),
    "repeated": Figure(
        "4b", repeated, "share", "compromised participants", average=True, log_x=True
    ),
    "pixel": Figure("5", functools.partial(single_shot, pixel=True), *ROUND),
    "injection": Figure("6", injection, *ROUND),
    "gamma": Figure("7", gamma, "gamma", "scaling factor gamma"),
    "multiple": Figure(
        "8", multiple, "number", "backdoors at once", measures=("backdoor", "least", "main")
    ),
    "cosine": Figure(
        "10", cosine, "gamma", "scaling factor gamma", measures=("backdoor", "main", "anomaly")
    ),
    "krum": Figure(
        "11",
        krum,
        "share",
        "compromised participants",
        measures=("selected", "backdoor", "main"),
        log_x=True,
    ),
}


def rows_of(figure: Figure, results: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """One row per measure and run, or per measure, run and round shown."""
    rows = []
    for result in results:
        lists = {name: result[name] for name in result if isinstance(result[name], list)}
        rest = {name: value for name, value in result.items() if name not in lists}
        attack = min(BEFORE, len(lists["main"]) - 1)
        for measure in figure.measures:
            own = rest | {"measure": measure}
            if measure not in lists:
                rows.append(own | {"value": rest[measure]})
            elif figure.over_rounds:
                rows += [
                    own | {"round": since, "value": lists[measure][attack + since]}
                    for since in SHOWN
                    if 0 <= attack + since < len(lists[measure])
                ]
            elif figure.average:
                rows.append(own | {"value": float(np.mean(lists[measure]))})
            else:
                rows.append(own | {"value": lists[measure][attack]})
    return rows


def main(args: Args) -> None:
    """Run what is missing of one figure, then print and draw it."""
    figure, setting = FIGURES[args.figure], SETTINGS[args.setting]
    if args.width is not None and args.setting != "cifar10":
        raise ValueError("--width is of ResNet18, the network of --setting cifar10")
    chosen = args.backdoor or setting.backdoors[0]
    names = setting.backdoors if chosen == "all" else tuple(chosen.split(","))
    if unknown := [name for name in names if name not in setting.backdoors]:
        raise ValueError(f"there is no backdoor {unknown}; there are {list(setting.backdoors)}")
    setup = "-".join(
        [args.setting]
        + ([f"width-{args.width}"] if args.width else [])
        + (["smoke"] if args.smoke else [])
    )
    inputs = Inputs(setting, args, args.out / f"{setup}-before")
    folder = args.out / f"{setup}-{args.figure}"
    points = [point for name in names for point in figure.points(setting, name, args)]
    if len(names) > 1:
        points = [
            point._replace(
                labels=point.labels | {"method": f"{point.labels['method']}, {point.backdoor}"}
            )
            for point in points
        ]
    provenance = report.provenance()
    results = []
    for point in tqdm(points, unit="point"):
        results += run_point(
            point, inputs, range(1 if args.smoke else args.seeds), folder, provenance
        )
    text = report.write_sweep(
        folder,
        rows_of(figure, results),
        x=figure.x,
        xlabel=figure.xlabel,
        panels="measure",
        lines="method",
        value="value",
        metric="accuracy",
        log_x=figure.log_x,
        title=f"Bagdasaryan et al. (2020), figure {figure.number}, {args.figure}, on {args.setting}",
        command=command_line("backdoor_images.py", args),
        notes=describe(figure, setting, inputs, names, args, results),
    )
    if figure.over_rounds:
        attack = min(BEFORE, len(results[0]["main"]) - 1)
        lines = {
            measure: {
                method: [r[measure] for r in results if r["method"] == method]
                for method in dict.fromkeys(r["method"] for r in results)
            }
            for measure in figure.measures
        }
        since = np.arange(len(results[0]["main"])) - attack
        report.plot_curves(folder / "curves.png", since, lines, metric="accuracy")
    print(f"\n{text}\nrows, table and figures are in {folder}")


def describe(
    figure: Figure,
    setting: Setting,
    inputs: Inputs,
    names: tuple[str, ...],
    args: Args,
    results: list[dict[str, Any]],
) -> str:
    """The settings, and what else was measured."""
    size = jax.eval_shape(inputs.task.init, jax.random.key(0)).size
    model = setting.model(1).__class__.__name__
    target: Any = setting.target
    if inputs.dataset.class_names:
        target = inputs.dataset.class_names[target]
    participants = setting.clients if args.figure == "krum" else setting.participants
    notes = (
        f"{model} ({size:,} parameters) on {setting.data} "
        f"({inputs.dataset.note or 'its published split'}), backdoor: {', '.join(names)}, target "
        f"{target}; {setting.clients} clients, {participants} per round"
    )
    if args.figure != "injection":
        notes += f", {usual(setting, args)} rounds before"
    notes += {
        "repeated": "; backdoor and main accuracy are means over all rounds",
        "cosine": "; anomaly is 1 - cos(submitted model, global model)",
        "krum": "; selected: how often Krum took an attacker's model",
    }.get(args.figure, "")
    notes += "."
    if args.figure in ("gamma", "multiple", "krum", "cosine"):
        norms = [
            f"{result['method']} at {figure.x} {result[figure.x]:g}: {result['norm']:.3g}"
            for result in results
            if result["seed"] == 0
        ]
        honest = np.mean([result["honest_norm"] for result in results])
        notes += f" Norms of submitted updates (seed 0; honest ones {honest:.3g} on average): "
        notes += "; ".join(norms) + "."
    if args.figure == "cosine":
        notes += equally_anomalous(results)
    return notes


def equally_anomalous(results: list[dict[str, Any]]) -> str:
    """What train-and-scale reaches at the anomaly of each constrained method's largest gamma; means over
    seeds, in between by linear interpolation."""
    attack = min(BEFORE, len(results[0]["main"]) - 1)
    curves: dict[str, dict[float, list[tuple[float, float]]]] = {}
    for result in results:
        points = curves.setdefault(result["method"], {}).setdefault(result["gamma"], [])
        points.append((result["anomaly"], result["backdoor"][attack]))
    means = {
        name: np.sort(np.array([np.mean(points, axis=0) for points in by_gamma.values()]), axis=0)
        for name, by_gamma in curves.items()
    }
    free = means.pop("train-and-scale")
    said = [
        f"{name}: {backdoor:.3f}, train-and-scale {np.interp(anomaly, *free.T):.3f}"
        for name, points in means.items()
        for anomaly, backdoor in points[-1:]
    ]
    return f" Backdoor accuracy at equal anomaly: {'; '.join(said)}."


if __name__ == "__main__":
    use_compilation_cache()
    main(tyro.cli(Args))
