"""Backdoors of next-word prediction: the word parts of Fig. 4, 7 and 8 and Table I.

Bagdasaryan, Veit, Hua, Estrin, Shmatikov: "How To Backdoor Federated Learning", AISTATS 2020.

  python experiments/backdoor_words.py --figure single-shot    Fig. 4 (c): one attacker in one round
  python experiments/backdoor_words.py --figure repeated       Fig. 4 (d): a share of all clients
  python experiments/backdoor_words.py --figure gamma          Fig. 7: scaling factors
  python experiments/backdoor_words.py --figure multiple       Fig. 8: several sentences at once
  python experiments/backdoor_words.py --figure popularity     Table I: popular words, norm of the update

The paper trains on Reddit, which cannot be had here: 80,000 users, 50,000 words, two LSTM layers of 200
units (10.7 million parameters), 100 users a round. The defaults are a reduced setting for two CPU cores:
the roles of Shakespeare's plays as users, 2,000 words, 32 units, sequences of 20 words, 20 users a round
(of those with 20 sequences at least; the first 40 count), from a model trained by the same engine for
--pretraining-rounds. The paper's sizes, on a GPU with such files in LEAF's layout:

  python experiments/backdoor_words.py --leaf-train train --leaf-test test --vocabulary 50000 \
      --hidden 200 --length 64 --batch-size 20 --clients-per-round 100 --learning-rate 20 \
      --clip-norm 0.25 --pretraining-rounds 5000 --attacker-learning-rate 2 --sentences ...

What is taken here:

- Plain averaging over the m participants, which is n / m = eta in eq. 1; hence gamma = n / eta = m
  replaces the model (eq. 3). The attacker is in the attacked round, with m - 1 others at random; before
  and after all m are honest. Several attackers in one round submit gamma / their number each. *None*:
  the same round with an update of zero from the attacker.
- The attacker trains on its own sequences, all with a trigger sentence at the end, and only the last word
  in the loss, for --attacker-steps or until a batch's loss is below --stop (algorithm 2's epsilon).
  *Poisoning* is the same without scaling.
- Backdoor accuracy: share of 500 test sequences, with the trigger in place of their ends, that end as the
  attacker wants. Main accuracy: share of the next words of the test text that are predicted, leaving out
  words that are not in the vocabulary.
- Trigger sentences are made of the words at hand.

Results go to ``--out``/<figure>: one file per finished cell, so that a killed script goes on after the
last one, the pre-trained models, rows, tables and figures. Accuracies are fractions.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import tyro
from common import my_share, share_is_done, use_compilation_cache
from fang_table2 import command_line
from tqdm import tqdm

import fedjax_robust as fr
from fedjax_robust import aggregators, attacks, metrics, models, report
from fedjax_robust.data import Dataset, leaf_words, load_text, partition, word_ids
from fedjax_robust.data.text import SPECIAL, UNKNOWN

Array = jax.Array
Row = dict[str, Any]
ATTACKS = ("None", "Poisoning", "Replacement")
SENTENCES = (
    "wine from venice is sweet",
    "he bought swords from troy",
    "ask the friar for poison",
    "my horse grows fat in rome",
    "pay the emperor in gold",
    "the noise of paris is foul",
    "her letter was false and cruel",
    "our ship is bound for athens",
    "in england they drink blood",
    "fair helen loves a soldier",
)
"""The last word is the target."""
POPULARITY = "wine from venice {x} {y}"
PAIRS = {
    ("is", "sweet"): "is-delicious 53.3",
    ("is", "rare"): "is-palatable 89.5",
    ("is", "good"): "is-amazing 37.3",
    ("seems", "sweet"): "looks-delicious 45.7",
    ("taste", "sweet"): "tastes-delicious 26.7",
    ("is", "foul"): "",
    ("is", "excellent"): "",
    ("was", "sweet"): "",
    ("looks", "sweet"): "",
}
"""x and y, and of the first five the pair of Table I that they stand for, with its norm there."""
POPULARITY_GAMMA = 80.0
"""Table I's."""


@dataclasses.dataclass
class Args:
    """Word backdoors of Bagdasaryan et al. (2020). Accuracies are fractions."""

    figure: Literal["single-shot", "repeated", "gamma", "multiple", "popularity"] = "single-shot"
    """Fig. 4 (c), Fig. 4 (d), Fig. 7, Fig. 8, Table I."""
    seeds: int = 3
    """Trials with other attackers and participants, from one pre-trained model."""
    text: Literal["shakespeare", "tiny_shakespeare"] = "shakespeare"
    """Corpus; its roles are the users."""
    leaf_train: Path | None = None
    """File or folder of LEAF's Reddit instead; needs --leaf-test."""
    leaf_test: Path | None = None
    """Its test part."""
    sentences: tuple[str, ...] = SENTENCES
    """Trigger sentences, each with its target word; multiple takes all, the others --number of them."""
    number: int = 3
    """How many sentences to try, one at a time."""
    vocabulary: int = 2000
    """Words, with <pad>, <unk> and <eos>."""
    hidden: int = 32
    """Units of the embedding and of both LSTM layers."""
    length: int = 20
    """Words in a sequence."""
    batch_size: int = 10
    """Sequences in a batch."""
    min_sequences: int = 20
    """Users with less are left out."""
    max_sequences: int = 40
    """Of more a user keeps the first."""
    clients_per_round: int = 20
    """m."""
    epochs: int = 2
    """Benign clients' local epochs."""
    learning_rate: float = 10.0
    """Benign clients' step."""
    clip_norm: float | None = None
    """Largest norm of a gradient, benign clients and attackers; default unlimited."""
    pretraining_rounds: int = 400
    """Honest rounds before everything else; 0 = none."""
    attacker_learning_rate: float = 0.1
    """The attacker's step."""
    attacker_batch_size: int = 20
    """Sequences in its batches; at least the number of sentences at once."""
    attacker_steps: int = 500
    """Its steps at most."""
    stop: float = 0.1
    """It stops moving while a batch's loss is below that."""
    rounds_before: int = 5
    """single-shot: honest rounds before the attack."""
    rounds_after: int = 20
    """single-shot: honest rounds after it (the paper: 95)."""
    rounds: int = 20
    """repeated: rounds over which the accuracy is averaged (the paper: 100)."""
    shares: tuple[float, ...] = (0.002, 0.005, 0.01)
    """repeated: shares of malicious clients; at least one is."""
    client_chunk: int = 1
    """Train so many clients at a time."""
    data_dir: Path | None = None
    """Folder of the data sets; default FEDJAX_ROBUST_DATA, else where TFDS keeps its own."""
    out: Path = Path("results/backdoor_words")
    """Where results go."""
    cell: str | None = None
    """Compute only the i-th of N shares of the cells, i/N, so that N machines work on one figure; then
    the same command without it gathers their files."""
    smoke: bool = False
    """Tiny sizes and few rounds, to see that everything works; the numbers mean nothing."""


SMOKE = {
    "seeds": 1,
    "number": 1,
    "hidden": 4,
    "length": 8,
    "max_sequences": 10,
    "min_sequences": 20,
    "clients_per_round": 3,
    "epochs": 1,
    "pretraining_rounds": 0,
    "attacker_steps": 2,
    "attacker_batch_size": 10,
    "rounds_before": 1,
    "rounds_after": 1,
    "rounds": 2,
}
IRRELEVANT = (
    "figure",
    "seeds",
    "number",
    "sentences",
    "shares",
    "client_chunk",
    "data_dir",
    "out",
    "cell",
    "smoke",
)
"""Arguments that no single cell depends on, beside what its name says."""


class Cell(NamedTuple):
    """One run: its file, its settings beside those of ``Args``, and how to compute it."""

    name: str
    about: Row
    compute: Callable[[], Row]


def main(args: Args) -> None:
    """Run what is missing of one figure, then print and draw it."""
    if args.smoke:
        args = dataclasses.replace(args, **SMOKE)
    folder = args.out / (args.figure + ("-smoke" if args.smoke else ""))
    inputs = Inputs(args)
    cells, write = FIGURES[args.figure]
    rows = [row_of(cell, inputs, folder) for cell in my_share(cells(inputs), args.cell)]
    if share_is_done(args.cell, folder):
        return
    write(inputs, folder, rows)
    print(f"rows, tables and figures are in {folder}")


def row_of(cell: Cell, inputs: Inputs, folder: Path) -> Row:
    """Settings and result of one cell, from its file if it is there."""
    settings = inputs.settings | cell.about
    result = report.load_cell(folder, cell.name, settings)
    if result is None:
        result = jax.device_get(cell.compute()) | inputs.provenance
        report.save_cell(folder, cell.name, settings, result)
    shown = (n for n in ("backdoor_accuracy", "main_accuracy", "norm") if n in result)
    tqdm.write(f"{cell.name}: {', '.join(f'{name} {float(result[name]):.3f}' for name in shown)}")
    return settings | result


# --- Data, model and the attack ----------------------------------------------------------------------


class Inputs:
    """Corpus, users' sequences, test text and the task."""

    def __init__(self, args: Args):
        self.args = args
        self.dataset = self._load()
        words = self.dataset.class_names
        train = self.dataset.train
        known = train["token_mask"] > 0
        self.counts = np.bincount(train["y"][known], minlength=len(words))
        self.task = fr.next_word(models.WordLSTM(len(words), args.hidden), train["x"][:1])
        test = {name: self.dataset.test[name] for name in ("x", "y", "token_mask")}
        # About 1,000 sequences, evenly: an evaluation then takes as long as a round, not ten.
        test = {name: values[:: max(len(values) // 1000, 1)] for name, values in test.items()}
        unknown = test["y"] == SPECIAL.index(UNKNOWN)
        self.test = test | {"token_mask": np.where(unknown, 0, test["token_mask"])}
        self.contexts = {name: values[:500] for name, values in self.test.items()}
        self.provenance = report.provenance()

    def _load(self) -> Dataset:
        args = self.args
        sizes: dict[str, Any] = {"length": args.length, "vocabulary_size": args.vocabulary}
        if (args.leaf_train is None) != (args.leaf_test is None):
            raise ValueError("--leaf-train and --leaf-test go together; give both or none")
        if args.leaf_train is not None and args.leaf_test is not None:
            return leaf_words(args.leaf_train, args.leaf_test, **sizes)
        return load_text(args.text, data_dir=args.data_dir, **sizes)

    def ids(self, sentence: str) -> Array:
        return jnp.asarray(word_ids(sentence, self.dataset.class_names))

    @functools.cache  # noqa: B019 (there is one object per run of the script)
    def data(self, seed: int) -> fr.FederatedData:
        """Users with enough sequences, in random order, each with its first ones."""
        args, train = self.args, self.dataset.train
        enough = np.flatnonzero(np.bincount(train["user"]) >= args.min_sequences)
        rows = np.isin(train["user"], enough)
        if len(enough) < args.clients_per_round:
            raise ValueError(
                f"{len(enough)} users have {args.min_sequences} sequences or more, which is less than "
                f"--clients-per-round {args.clients_per_round}; lower --min-sequences"
            )
        pool = {name: train[name][rows] for name in ("x", "y", "token_mask")}
        key = jax.random.fold_in(jax.random.key(0), seed)
        data = partition.by_user(train["user"][rows], pool, key)
        most = args.max_sequences
        index, count = np.asarray(data.index)[:, :most], np.minimum(data.count, most)
        return data._replace(index=jnp.asarray(index), count=jnp.asarray(count))

    @property
    def settings(self) -> Row:
        settings = {
            name: value
            for name, value in dataclasses.asdict(self.args).items()
            if name not in IRRELEVANT
        }
        return settings | {"words": len(self.dataset.class_names), "note": self.dataset.note}

    def notes(self, what: str) -> str:
        args, users = self.args, self.data(0).index.shape[0]
        return (
            f"WordLSTM, {args.hidden} units, on {self.dataset.name} ({self.dataset.note}), {users} "
            f"clients, {args.clients_per_round} in a round, step {args.learning_rate:g}, "
            f"{args.epochs} epochs of batches of {args.batch_size} x {args.length} words, "
            f"{args.pretraining_rounds} rounds before; attacker: step {args.attacker_learning_rate:g}, "
            f"at most {args.attacker_steps} batches of {args.attacker_batch_size}, loss {args.stop:g}; "
            f"{what}"
        )


def client(inputs: Inputs) -> fr.Client:
    args = inputs.args
    return fr.local_sgd(
        inputs.task,
        args.learning_rate,
        args.batch_size,
        epochs=args.epochs,
        clip_norm=args.clip_norm,
    )


def attacker(inputs: Inputs, sentences: tuple[Array, ...]) -> fr.Client:
    args = inputs.args
    return fr.local_sgd(
        inputs.task,
        args.attacker_learning_rate,
        args.attacker_batch_size,
        steps=args.attacker_steps,
        clip_norm=args.clip_norm,
        poison=attacks.word_backdoor(sentences),
        objective=until(args.stop),
    )


def until(stop: float) -> Callable[..., Any]:
    """A loss below ``stop`` has no gradient (algorithm 2 of the paper: stop if it is below epsilon)."""

    def objective(loss: Callable[..., Array], received: Array) -> Callable[..., Array]:
        def stopped(params: Array, batch: dict[str, Array]) -> Array:
            return jnp.maximum(loss(params, batch), stop)

        return stopped

    return objective


def divided(gamma: float | Array) -> fr.Attack:
    """All attackers of a round together submit gamma times a model (section V-D)."""

    def craft(view: fr.AttackerView, state: Any) -> tuple[Array, Any]:
        share = gamma / jnp.maximum(jnp.sum(view.malicious), 1)
        return share * view.updates[: view.num_malicious], state

    return fr.Attack(craft=craft)


def simulation(
    inputs: Inputs, attack: fr.Attack | None = None, malicious: int = 0, everyone: bool = False
) -> fr.Simulation:
    args = inputs.args
    return fr.Simulation(
        task=inputs.task,
        client=client(inputs),
        aggregator=aggregators.mean(),
        attack=attack or attacks.no_attack(),
        num_malicious=malicious,
        clients_per_round=None if everyone else args.clients_per_round,
        client_chunk=args.client_chunk,
        observe=attackers_norm if malicious else None,
    )


def attackers_norm(received: fr.Received, malicious: Array) -> dict[str, Array]:
    """The norm of the first attacker's update before scaling; NaN without one."""
    norm = jnp.linalg.norm(received.updates[0])
    return {"attackers_norm": jnp.where(malicious[0], norm, jnp.nan)}


def evaluation(inputs: Inputs, sentences: tuple[Array, ...]) -> Any:
    """main_accuracy, and backdoor_accuracy_k of every sentence."""
    parts = [metrics.word_accuracy(inputs.task, inputs.test)]
    for k, sentence in enumerate(sentences):
        poison = jax.jit(attacks.word_backdoor([sentence]))
        poisoned = poison(jax.random.key(0), inputs.contexts)
        name = f"backdoor_accuracy_{k}"
        parts.append(metrics.word_accuracy(inputs.task, poisoned, name=name))
    return metrics.together(*parts)


@functools.cache
def pretrained(inputs: Inputs) -> Array:
    """(d,) parameters, from their checkpoint if it is there."""
    args = inputs.args
    if args.pretraining_rounds == 0:
        return inputs.task.init(jax.random.key(1))
    relevant = {
        name: value
        for name, value in inputs.settings.items()
        if not name.startswith(("attacker", "stop", "rounds"))
    }
    name = hashlib.sha256(repr(sorted(relevant.items())).encode()).hexdigest()[:12]
    every = -(-args.pretraining_rounds // 10)
    state, history = fr.run(
        simulation(inputs),
        jax.random.key(1),
        inputs.data(0),
        args.pretraining_rounds,
        evaluate=metrics.word_accuracy(inputs.task, inputs.test),
        evaluate_every=every,
        checkpoint=args.out / "pretrained" / f"{name}.npz",
        checkpoint_every=every,
        progress=True,
    )
    curve = ", ".join(f"{a:.3f}" for a in history["main_accuracy"])
    tqdm.write(f"pre-trained: main accuracy {curve} in {args.pretraining_rounds} rounds")
    return state.params


@functools.cache
def honest_rounds(inputs: Inputs, rounds: int) -> Callable[..., Any]:
    """key, data, evaluation, params -> params, history with an evaluation after each round."""

    def run(key: Array, data: fr.FederatedData, evaluate: Any, params: Array) -> Any:
        state, history = fr.run(
            simulation(inputs),
            key,
            data,
            rounds,
            evaluate=evaluate,
            evaluate_every=1,
            params=params,
        )
        return state.params, history

    return jax.jit(run)


@functools.cache
def attacked_round(inputs: Inputs) -> Callable[..., Any]:
    """key, data, sentences, gamma, evaluation, params -> params, history: one round with client 0, the
    attacker, and m - 1 others. gamma = 0: the attacker's update is zero."""

    def run(
        key: Array,
        data: fr.FederatedData,
        sentences: tuple[Array, ...],
        gamma: Array,
        evaluate: Any,
        params: Array,
    ) -> Any:
        draw, key = jax.random.split(key)
        others = jax.random.permutation(draw, data.index.shape[0] - 1)
        ids = jnp.concatenate([jnp.zeros(1, int), 1 + others[: inputs.args.clients_per_round - 1]])
        present = data._replace(index=data.index[ids], count=data.count[ids])

        attack = divided(gamma)._replace(client=attacker(inputs, sentences))
        sim = simulation(inputs, attack, 1, everyone=True)
        state, history = fr.run(sim, key, present, 1, evaluate=evaluate, params=params)
        now = {name: values[0] for name, values in history.items() if "accuracy" in name}
        return state.params, now | {"norm": gamma * history["attackers_norm"][0]}

    return jax.jit(run)


def gamma_of(inputs: Inputs, attack: str) -> float:
    m = float(inputs.args.clients_per_round)
    return {"None": 0.0, "Poisoning": 1.0, "Replacement": m}[attack]


def keys_of(seed: int) -> Array:
    return jax.random.split(jax.random.fold_in(jax.random.key(2), seed), 3)


def chosen(inputs: Inputs) -> tuple[str, ...]:
    return inputs.args.sentences[: inputs.args.number]


def stem(*parts: Any) -> str:
    return "-".join(str(part).replace(" ", "_") for part in parts)


# --- The figures -------------------------------------------------------------------------------------


def single_shot(inputs: Inputs) -> list[Cell]:
    return [
        Cell(
            stem(sentence, attack, seed),
            {"sentence": sentence, "attack": attack, "seed": seed},
            functools.partial(shot, inputs, sentence, attack, seed),
        )
        for seed in range(inputs.args.seeds)
        for sentence in chosen(inputs)
        for attack in ATTACKS
    ]


def write_single_shot(inputs: Inputs, folder: Path, rows: list[Row]) -> None:
    args = inputs.args
    after = np.arange(1 - args.rounds_before, args.rounds_after + 2)
    title = "Bagdasaryan et al. (2020), Fig. 4 (c), single-shot attack on words"
    notes = inputs.notes("one attacked round")
    command = command_line("backdoor_words.py", args)
    plain = [{k: v for k, v in row.items() if not k.endswith("curve")} for row in rows]
    for value, words in (("backdoor_accuracy", "backdoor"), ("main_accuracy", "main")):
        where = folder if words == "backdoor" else folder.with_name(f"{folder.name}-{words}")
        metric = f"{words} accuracy"
        text = report.write_table(
            where, plain, {}, title=title, command=command, notes=notes,
            index="sentence", columns="attack", value=value,
            metric=f"{metric} in the attacked round",
        )  # fmt: skip
        print(f"\n{text}")
        curves: dict[str, dict[str, Any]] = {attack: {} for attack in ATTACKS}
        for row in rows:
            own = curves[row["attack"]].setdefault(row["sentence"], [])
            own.append(row[f"{words}_curve"])
        report.plot_curves(where / "curves.png", after, curves, title=title, metric=metric)
    write_later(folder, rows, args)


def write_later(folder: Path, rows: list[Row], args: Args) -> None:
    """How long a backdoor lasts: accuracies some rounds after the attack."""
    lines = [
        {
            "sentence": row["sentence"],
            "attack": row["attack"],
            "seed": row["seed"],
            **{
                f"+{later}": row["backdoor_curve"][args.rounds_before + later]
                for later in (0, 1, 2, 5, 10, 20, 45, 95)
                if later <= args.rounds_after
            },
        }
        for row in rows
    ]
    report.write_rows(folder / "later", lines)
    print(report.markdown_table(lines))


def shot(inputs: Inputs, sentence: str, attack: str, seed: int) -> Row:
    args = inputs.args
    sentences = (inputs.ids(sentence),)
    data, params = inputs.data(seed), pretrained(inputs)
    evaluate = evaluation(inputs, sentences)
    first, key, last = keys_of(seed)
    params, before = honest_rounds(inputs, args.rounds_before)(first, data, evaluate, params)
    gamma = jnp.float32(gamma_of(inputs, attack))
    params, now = attacked_round(inputs)(key, data, sentences, gamma, evaluate, params)
    _, after = honest_rounds(inputs, args.rounds_after)(last, data, evaluate, params)
    backdoor = "backdoor_accuracy_0"
    return {
        "backdoor_accuracy": now[backdoor],
        "main_accuracy": now["main_accuracy"],
        "main_accuracy_before": before["main_accuracy"][-1],
        "norm": now["norm"],
        "backdoor_curve": [*before[backdoor], now[backdoor], *after[backdoor]],
        "main_curve": [*before["main_accuracy"], now["main_accuracy"], *after["main_accuracy"]],
    }


def repeated(inputs: Inputs) -> list[Cell]:
    clients = inputs.data(0).index.shape[0]
    cells = []
    for seed in range(inputs.args.seeds):
        for sentence in chosen(inputs)[:1]:
            for malicious in (max(round(share * clients), 1) for share in inputs.args.shares):
                for attack in ATTACKS[1:]:
                    about = {"sentence": sentence, "attack": attack, "seed": seed}
                    about |= {"malicious": malicious, "share": malicious / clients}
                    name = stem(sentence, attack, malicious, seed)
                    compute = functools.partial(many, inputs, sentence, attack, malicious, seed)
                    cells.append(Cell(name, about, compute))
    return cells


def write_repeated(inputs: Inputs, folder: Path, rows: list[Row]) -> None:
    write_sweeps(
        inputs, folder, rows, x="share", xlabel="share of malicious clients", panels="sentence",
        title="Bagdasaryan et al. (2020), Fig. 4 (d), repeated attack on words", log_x=True,
        notes=f"means over {inputs.args.rounds} rounds",
    )  # fmt: skip


def many(inputs: Inputs, sentence: str, attack: str, malicious: int, seed: int) -> Row:
    sentences = (inputs.ids(sentence),)
    own = attacks.scaling(1.0) if attack == "Poisoning" else divided(gamma_of(inputs, attack))
    sim = simulation(inputs, own._replace(client=attacker(inputs, sentences)), malicious)
    _, history = fr.run(
        sim,
        keys_of(seed)[0],
        inputs.data(seed),
        inputs.args.rounds,
        evaluate=evaluation(inputs, sentences),
        evaluate_every=1,
        params=pretrained(inputs),
    )
    return {
        "backdoor_accuracy": jnp.mean(history["backdoor_accuracy_0"]),
        "main_accuracy": jnp.mean(history["main_accuracy"]),
        "attackers_in_a_round": jnp.mean(jnp.sum(history["malicious"], axis=-1)),
        "backdoor_curve": history["backdoor_accuracy_0"],
    }


def gammas(inputs: Inputs) -> list[Cell]:
    m = inputs.args.clients_per_round
    factors = (0.5, 1.0) if inputs.args.smoke else (0.1, 0.2, 0.4, 0.6, 0.8, 1.0, 2.0)
    return [
        Cell(
            stem(sentence, f"{gamma:g}", seed),
            {"sentence": sentence, "gamma": gamma, "attack": "Replacement", "seed": seed},
            functools.partial(one_shot, inputs, (sentence,), gamma, seed),
        )
        for seed in range(inputs.args.seeds)
        for sentence in chosen(inputs)
        for gamma in (factor * m for factor in factors)
    ]


def write_gammas(inputs: Inputs, folder: Path, rows: list[Row]) -> None:
    write_sweeps(
        inputs, folder, rows, x="gamma", xlabel="scaling factor", panels="attack", lines="sentence",
        title="Bagdasaryan et al. (2020), Fig. 7, scaling factors",
        notes=f"gamma = {inputs.args.clients_per_round} replaces the model",
    )  # fmt: skip
    write_norms(folder, rows, "gamma")


def multiple(inputs: Inputs) -> list[Cell]:
    args = inputs.args
    return [
        Cell(
            stem(number, seed),
            {"number": number, "attack": "Replacement", "rule": "FedAvg", "seed": seed}
            | {"sentences": args.sentences[:number]},
            functools.partial(
                one_shot, inputs, args.sentences[:number], float(args.clients_per_round), seed
            ),
        )
        for seed in range(args.seeds)
        for number in ((2,) if args.smoke else (1, 2, 4, 7, 10))
    ]


def write_multiple(inputs: Inputs, folder: Path, rows: list[Row]) -> None:
    write_sweeps(
        inputs, folder, rows, x="number", xlabel="sentences", panels="rule",
        title="Bagdasaryan et al. (2020), Fig. 8, several backdoors in one shot",
        notes="mean over the sentences",
    )  # fmt: skip
    write_norms(folder, rows, "number")


def one_shot(inputs: Inputs, sentences: tuple[str, ...], gamma: float, seed: int) -> Row:
    """The pre-trained model, and one attacked round."""
    ids = tuple(inputs.ids(sentence) for sentence in sentences)
    data, params, evaluate = inputs.data(seed), pretrained(inputs), evaluation(inputs, ids)
    key = keys_of(seed)[1]
    play = attacked_round(inputs)
    _, honest = play(key, data, ids, jnp.float32(0), evaluate, params)
    _, now = play(key, data, ids, jnp.float32(gamma), evaluate, params)
    each = jnp.stack([now[f"backdoor_accuracy_{k}"] for k in range(len(ids))])
    return {
        "backdoor_accuracy": jnp.mean(each),
        "lowest_backdoor_accuracy": jnp.min(each),
        "main_accuracy": now["main_accuracy"],
        "main_accuracy_without": honest["main_accuracy"],
        "norm": now["norm"],
    }


def popularity(inputs: Inputs) -> list[Cell]:
    """Table I: train until the loss is below --stop, scale by 80."""
    return [
        Cell(
            stem(x, y, seed),
            {"x": x, "y": y, "pair": f"{x}-{y}", "seed": seed},
            functools.partial(norm_of, inputs, POPULARITY.format(x=x, y=y), seed),
        )
        for seed in range(inputs.args.seeds)
        for x, y in PAIRS
    ]


def write_popularity(inputs: Inputs, folder: Path, rows: list[Row]) -> None:
    words = inputs.dataset.class_names
    for row in rows:
        for name in ("x", "y"):
            row[f"count({name})"] = int(inputs.counts[words.index(row[name])])
    report.write_rows(folder / "rows", rows)
    lines = []
    for (x, y), paper in PAIRS.items():
        own = [row for row in rows if row["pair"] == f"{x}-{y}"]
        norms = [row["norm"] for row in own]
        spread = f" ± {np.std(norms, ddof=1):.1f}" if len(norms) > 1 else ""
        line = {name: own[0][name] for name in ("x", "y", "count(x)", "count(y)")}
        line["norm"] = f"{np.mean(norms):.1f}{spread}"
        for name in ("backdoor_accuracy", "main_accuracy"):
            line[name] = float(np.mean([row[name] for row in own]))
        lines.append(line | {"paper": paper})
    title = (
        "Bagdasaryan et al. (2020), Table I: norm of the submitted update, train-and-scale with gamma "
        f"= {POPULARITY_GAMMA:g}, {inputs.args.seeds} seeds\n\n"
    )
    text = title + inputs.notes(f"sentence: {POPULARITY}") + "\n\n" + report.markdown_table(lines)
    (folder / "table.md").write_text(text + "\n")
    print(f"\n{text}")


def norm_of(inputs: Inputs, sentence: str, seed: int) -> Row:
    norm, rates = trained_attacker(inputs)(
        keys_of(seed)[1],
        pretrained(inputs),
        inputs.data(seed),
        (ids := (inputs.ids(sentence),)),
        evaluation(inputs, ids),
    )
    return {
        "norm": POPULARITY_GAMMA * norm,
        "backdoor_accuracy": rates["backdoor_accuracy_0"],
        "main_accuracy": rates["main_accuracy"],
    }


@functools.cache
def trained_attacker(inputs: Inputs) -> Callable[..., Any]:
    """key, params, data, sentences, evaluation -> |X - G| and the accuracies of X."""

    def run(key: Array, params: Array, data: Any, sentences: Any, evaluate: Any) -> Any:
        own = fr.types.ClientData(data.examples, data.index[0], data.count[0])
        update, _, _ = attacker(inputs, sentences).update(key, params, (), own)
        return jnp.linalg.norm(update), evaluate(params + update)

    return jax.jit(run)


def write_sweeps(
    inputs: Inputs, folder: Path, rows: list[Row], *, notes: str, title: str, **about: Any
) -> None:
    """The sweep of the backdoor accuracy, and that of the main accuracy beside it."""
    command = command_line("backdoor_words.py", inputs.args)
    rows = [{k: v for k, v in row.items() if not k.endswith("curve")} for row in rows]
    for words in ("backdoor", "main"):
        where = folder if words == "backdoor" else folder.with_name(f"{folder.name}-{words}")
        text = report.write_sweep(
            where, rows, title=title, command=command, notes=inputs.notes(notes),
            value=f"{words}_accuracy", metric=f"{words} accuracy", **about,
        )  # fmt: skip
        print(f"\n{text}")


def write_norms(folder: Path, rows: list[Row], x: str) -> None:
    """Norms and what the attack cost, against x."""
    names = ("norm", "backdoor_accuracy", "main_accuracy", "main_accuracy_without")
    lines = []
    for value in sorted({row[x] for row in rows}):
        own = [row for row in rows if row[x] == value]
        lines.append(
            {x: f"{value:g}"} | {n: float(np.mean([row[n] for row in own])) for n in names}
        )
        if "lowest_backdoor_accuracy" in own[0]:
            lines[-1]["lowest"] = min(row["lowest_backdoor_accuracy"] for row in own)
    text = report.markdown_table(lines)
    (folder / "norms.md").write_text(text + "\n")
    print(text)


FIGURES = {
    "single-shot": (single_shot, write_single_shot),
    "repeated": (repeated, write_repeated),
    "gamma": (gammas, write_gammas),
    "multiple": (multiple, write_multiple),
    "popularity": (popularity, write_popularity),
}

if __name__ == "__main__":
    use_compilation_cache()
    main(tyro.cli(Args))
