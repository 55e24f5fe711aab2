"""Backdoors of next-word prediction: the word parts of Fig. 4, 7 and 8 and Table I.

Bagdasaryan, Veit, Hua, Estrin, Shmatikov: "How To Backdoor Federated Learning", AISTATS 2020.

  python experiments/bagdasaryan2020/words.py --figure single-shot  Fig. 4 (c): one attacker in one round
  python experiments/bagdasaryan2020/words.py --figure repeated     Fig. 4 (d): a share of all clients
  python experiments/bagdasaryan2020/words.py --figure gamma        Fig. 7: scaling factors
  python experiments/bagdasaryan2020/words.py --figure multiple     Fig. 8: several sentences at once
  python experiments/bagdasaryan2020/words.py --figure popularity   Table I: popular words, norms

The setting, which is a reduced one by default, and what the paper leaves open stand at the head of
word_setting.py.

Results go to ``--out``/<figure>, the main accuracy's table to ``--out``/<figure>-main, the pre-trained
models to ``--out``/pretrained. Accuracies are fractions.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from word_setting import (
    SMOKE,
    Args,
    Inputs,
    Row,
    attacked_round,
    attacker,
    divided,
    evaluation,
    gamma_of,
    honest_rounds,
    keys_of,
    pretrained,
    simulation,
    trained_attacker,
)

import fedjax_robust as fr
from fedjax_robust import attacks, report, study

ATTACKS = ("None", "Poisoning", "Replacement")
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


# --- The figures: what is run, one run, what is written --------------------------------------------


def single_shots(inputs: Inputs) -> list[Row]:
    return study.grid(sentence=inputs.args.sentences[: inputs.args.number], attack=ATTACKS)


def single_shot(inputs: Inputs, run: study.Settings) -> Row:
    args, seed = inputs.args, run["seed"]
    sentences = (inputs.ids(run["sentence"]),)
    data, params = inputs.data(seed), pretrained(inputs)
    evaluate = evaluation(inputs, sentences)
    first, key, last = keys_of(seed)
    params, before = honest_rounds(inputs, args.rounds_before)(first, data, evaluate, params)
    gamma = jnp.float32(gamma_of(inputs, run["attack"]))
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


def write_single_shot(inputs: Inputs, folder: Path, rows: list[Row], about: Row) -> None:
    """Tables and curves, and how long the backdoor lasts: ``later``, rounds since the attack."""
    args = inputs.args
    after = np.arange(1 - args.rounds_before, args.rounds_after + 2)
    title = "Bagdasaryan et al. (2020), Fig. 4 (c), single-shot attack on words"
    plain = study.without(rows, "backdoor_curve", "main_curve")
    for where, value, words in places(folder):
        metric = f"{words} accuracy"
        text = report.write_table(
            where, plain, {}, title=title, notes=inputs.notes("one attacked round"),
            line="sentence", columns="attack", value=value,
            metric=f"{metric} in the attacked round", **about,
        )  # fmt: skip
        print(f"\n{text}")
        curves: dict[str, dict[str, Any]] = {attack: {} for attack in ATTACKS}
        for row in rows:
            own = curves[row["attack"]].setdefault(row["sentence"], [])
            own.append(row[f"{words}_curve"])
        report.plot_curves(where / "curves.png", after, curves, title=title, metric=metric)
    later = [since for since in (0, 1, 2, 5, 10, 20, 45, 95) if since <= args.rounds_after]
    lines = [
        {name: row[name] for name in ("sentence", "attack", "seed")}
        | {f"+{since}": row["backdoor_curve"][args.rounds_before + since] for since in later}
        for row in rows
    ]
    report.write_rows(folder / "later", lines)
    print(report.markdown_table(lines))


def several(inputs: Inputs) -> list[Row]:
    args, clients = inputs.args, inputs.data(0).index.shape[0]
    numbers = [max(round(share * clients), 1) for share in args.shares]
    cells = study.grid(sentence=args.sentences[:1], malicious=numbers, attack=ATTACKS[1:])
    return [{**cell, "share": cell["malicious"] / clients} for cell in cells]


def repeated(inputs: Inputs, run: study.Settings) -> Row:
    sentences, attack = (inputs.ids(run["sentence"]),), run["attack"]
    own = attacks.scaling(1.0) if attack == "Poisoning" else divided(gamma_of(inputs, attack))
    sim = simulation(
        inputs, own._replace(client=attacker(inputs, sentences)), malicious=run["malicious"]
    )
    _, history = fr.run(
        sim,
        keys_of(run["seed"])[0],
        inputs.data(run["seed"]),
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


def gammas(inputs: Inputs) -> list[Row]:
    args, m = inputs.args, inputs.args.clients_per_round
    factors = (0.5, 1.0) if args.smoke else (0.1, 0.2, 0.4, 0.6, 0.8, 1.0, 2.0)
    sentences = args.sentences[: args.number]
    return study.grid(
        {"attack": "Replacement"}, sentence=sentences, gamma=[factor * m for factor in factors]
    )


def numbers(inputs: Inputs) -> list[Row]:
    return [
        {"number": number, "attack": "Replacement", "rule": "FedAvg"}
        | {"sentences": inputs.args.sentences[:number]}
        for number in ((2,) if inputs.args.smoke else (1, 2, 4, 7, 10))
    ]


def one_shot(inputs: Inputs, run: study.Settings) -> Row:
    """The pre-trained model, and one attacked round."""
    ids = tuple(inputs.ids(sentence) for sentence in run.get("sentences") or [run["sentence"]])
    data, params, evaluate = inputs.data(run["seed"]), pretrained(inputs), evaluation(inputs, ids)
    key, play = keys_of(run["seed"])[1], attacked_round(inputs)
    gamma = run.get("gamma", float(inputs.args.clients_per_round))
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


def pairs(inputs: Inputs) -> list[Row]:
    return [
        {"x": x, "y": y, "pair": f"{x}-{y}", "gamma": POPULARITY_GAMMA}
        | {"count(x)": inputs.count(x), "count(y)": inputs.count(y)}
        for x, y in PAIRS
    ]


def popularity(inputs: Inputs, run: study.Settings) -> Row:
    """Table I: train until the loss is below --stop, scale by 80."""
    ids = (inputs.ids(POPULARITY.format(x=run["x"], y=run["y"])),)
    norm, rates = trained_attacker(inputs)(
        keys_of(run["seed"])[1],
        pretrained(inputs),
        inputs.data(run["seed"]),
        ids,
        evaluation(inputs, ids),
    )
    return {
        "norm": run["gamma"] * norm,
        "backdoor_accuracy": rates["backdoor_accuracy_0"],
        "main_accuracy": rates["main_accuracy"],
    }


def write_popularity(inputs: Inputs, folder: Path, rows: list[Row], about: Row) -> None:
    words = dict.fromkeys(word for pair in PAIRS for word in pair)
    counts = ", ".join(f"{word} {inputs.count(word)}" for word in words)
    printed = ", ".join(paper for paper in PAIRS.values() if paper)
    lowest = min(row["backdoor_accuracy"] for row in rows)
    text = report.write_table(
        folder, rows, {},
        title="Bagdasaryan et al. (2020), Table I: norm of the submitted update, train-and-scale",
        notes=inputs.notes(f"sentence: {POPULARITY}")
        + f". Words of the training text: {counts}. Lowest backdoor accuracy {lowest:.3f}. The paper's "
        f"norms, of another sentence: {printed}.",
        line="y", columns="x", value="norm",
        metric=f"norm of the update (gamma = {POPULARITY_GAMMA:g})", **about,
    )  # fmt: skip
    print(f"\n{text}")


def write_sweep(
    what: str,
    title: str,
    sweep: Row,
    inputs: Inputs,
    folder: Path,
    rows: list[Row],
    about: Row,
) -> None:
    """The sweep of the backdoor accuracy, and that of the main accuracy beside it."""
    notes = inputs.notes(what.format(args=inputs.args))
    if "norm" in rows[0]:
        said = []
        for value in dict.fromkeys(row[sweep["x"]] for row in rows):
            norms = [row["norm"] for row in rows if row[sweep["x"]] == value]
            said.append(f"{np.mean(norms):.3g} at {value:g}")
        lowest = min(row["main_accuracy_without"] for row in rows)
        notes += f". Norms of the submitted updates: {', '.join(said)}; main accuracy without the "
        notes += f"attacker's update: {lowest:.3f} or more."
    for where, value, words in places(folder):
        text = report.write_sweep(
            where, study.without(rows, "backdoor_curve"), value=value,
            title=f"Bagdasaryan et al. (2020), {title}", metric=f"{words} accuracy",
            notes=notes, **sweep, **about,
        )  # fmt: skip
        print(f"\n{text}")


def places(folder: Path) -> Iterator[tuple[Path, str, str]]:
    """Folder, column and word for both accuracies."""
    yield folder, "backdoor_accuracy", "backdoor"
    name = folder.name
    smoke = "-smoke" if name.endswith("-smoke") else ""
    yield folder.with_name(f"{name.removesuffix('-smoke')}-main{smoke}"), "main_accuracy", "main"


class Figure(NamedTuple):
    """How a figure's runs are made and written."""

    cells: Callable[[Inputs], list[Row]]
    run: Callable[[Inputs, study.Settings], Row]
    write: Callable[[Inputs, Path, list[Row], Row], None]
    keys: tuple[str, ...]


def sweep(what: str, title: str, **of: Any) -> Callable[[Inputs, Path, list[Row], Row], None]:
    return functools.partial(write_sweep, what, title, of)


FIGURES = {
    "single-shot": Figure(single_shots, single_shot, write_single_shot, ("sentence", "attack")),
    "repeated": Figure(
        several,
        repeated,
        sweep(
            "means over {args.rounds} rounds", "Fig. 4 (d), repeated attack on words",
            x="share", xlabel="share of malicious clients", panels="sentence", log_x=True,
        ),
        ("sentence", "attack", "malicious"),
    ),
    "gamma": Figure(
        gammas,
        one_shot,
        sweep(
            "gamma = {args.clients_per_round} replaces the model", "Fig. 7, scaling factors",
            x="gamma", xlabel="scaling factor", panels="attack", lines="sentence",
        ),
        ("sentence", "gamma"),
    ),
    "multiple": Figure(
        numbers,
        one_shot,
        sweep(
            "mean over the sentences", "Fig. 8, several backdoors in one shot",
            x="number", xlabel="sentences", panels="rule",
        ),
        ("number",),
    ),
    "popularity": Figure(pairs, popularity, write_popularity, ("pair",)),
}  # fmt: skip


def main(args: Args) -> None:
    """Run what is missing of one figure, then print and draw it."""
    given = args
    if args.smoke:
        args = dataclasses.replace(args, **SMOKE)
    figure, inputs = FIGURES[args.figure], Inputs(args)
    cells = [inputs.settings | cell for cell in figure.cells(inputs)]
    folder = args.out / (args.figure + ("-smoke" if args.smoke else ""))

    def program(cell: study.Settings) -> study.Compute:
        return lambda runs: (jax.device_get(figure.run(inputs, run)) for run in runs)

    values = ("backdoor_accuracy", "main_accuracy", "norm")
    seeds = range(args.seeds)
    mine = study.Study(folder, cells, figure.keys, program, seeds, tuple(cells[0]), values=values)
    rows = study.run(mine, args.cell)
    if rows is None:
        return
    plain = study.without(rows, "backdoor_curve", "main_curve")
    about = {"command": study.command(__file__, given), "settings": study.settings(args, plain)}
    figure.write(inputs, folder, rows, about)
    print(f"rows, tables and figures are in {folder}")


if __name__ == "__main__":
    study.main(Args, main)
