"""Cleaning a backdoored model: the tables and figures of Wu et al.

Wu, Yang, Zhu, Mitra: "Mitigating Backdoor Attacks in Federated Learning", arXiv 2011.01767, 2020.

  python experiments/wu2020/pruning.py --part patterns     Table I      triggers of 1 to 9 pixels
  python experiments/wu2020/pruning.py --part pairs        Tables II, IV, Figures 4, 5: 18 pairs of labels
  python experiments/wu2020/pruning.py --part concise      Table III    the network with 8 and 16 filters
  python experiments/wu2020/pruning.py --part fashion      Table V      Fashion-MNIST, 9 pairs
  python experiments/wu2020/pruning.py --part cifar10      Table VI     CIFAR-10, distributed triggers
  python experiments/wu2020/pruning.py --part labels       Figure 3     3, 5, 7 labels per client
  python experiments/wu2020/pruning.py --part selected     Figure 7     5 to 25 of 50 clients per round
  python experiments/wu2020/pruning.py --part l2           Figure 8     penalty on the last convolution
  python experiments/wu2020/pruning.py --part adaptive     section VI-C attackers who know the defence

In all of them a model is trained under attack and then repaired (``wu_repair.py``; what the paper leaves
open: ``wu_setting.py``). All label pairs share one compiled program.

Results go to ``--out``/<part>[-<what differs>]: one file per finished run, so that a killed script goes
on after the last one, then tables and figures in folders of their own, the first with all ``runs``.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
import wu_repair
import wu_setting
import wu_tables
from wu_setting import FROM_NINE, SETTINGS, TO_NINE, Inputs, Settings

from fedjax_robust import checks, report, study

Part = Literal[
    "patterns", "pairs", "concise", "fashion", "cifar10", "labels", "selected", "l2", "adaptive"
]
VARIED = ("victim", "target", "l2")
"""Settings that need no program of their own: ``wu_setting.Numbers``."""


@dataclasses.dataclass
class Args(study.Args):
    """Federated pruning of backdoored models. Accuracies are fractions."""

    part: Part = "pairs"
    """Which tables and figures."""
    pairs: tuple[str, ...] = ()
    """Victim and target labels such as 9-0; default the part's."""
    pixels: int | None = None
    """Size of the trigger where it is not what varies: 1, 3, 5, 7 or 9; default 5, Fashion-MNIST 1."""
    alpha: float | None = None
    """The attackers' amplification, instead of the setting's."""
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
    normalization: tuple[float, float] | None = None
    """A B: images are (pixels in [0, 1] - A) / B, instead of by the training set's mean and deviation."""
    drop: float = 0.01
    """Loss of validation accuracy between two points that stops pruning and AW."""
    before_relu: bool = False
    """Rank neurons by their outputs before the ReLU."""
    width: tuple[int, int] | None = None
    """Filters of the two blocks of CIFAR-10's network, instead of 32 and 64."""
    keep_models: bool = False
    """Keep each run's trained, pruned and fine-tuned parameters, (d,) each, in models/*.npz; runs without
    such a file are computed again."""
    together: int | None = None
    """Runs in one call of the program; default 1 on a CPU, else all pairs of a seed."""
    out: Path = Path("results/wu2020")
    """Where results go."""


def main(args: Args) -> None:
    """Run what is missing of one part, then print and draw its tables and figures."""
    check(args)
    inputs = load(args)
    folder, keys = folder_of(args), keys_of(args.part)
    pairs = wu_setting.chosen_pairs(args.pairs, usual_pairs(args))
    cells = [cell for v, t in pairs for cell in cells_of(args, inputs, v, t)]
    seeds = range(args.seeds or 1)
    if args.keep_models:
        for one in ({**cell, "seed": seed} for cell in cells for seed in seeds):
            if not wu_setting.model_file(folder, one, keys).exists():
                (folder / "cells" / f"{study.run_name(one, keys)}.json").unlink(missing_ok=True)
    on_cpu = jax.default_backend() == "cpu"
    runs = study.Study(
        folder,
        cells,
        keys,
        program(inputs, folder, keys, args.keep_models),
        seeds,
        varies=VARIED,
        at_once=args.together or (1 if on_cpu else None),
        values=(),
    )
    rows = study.run(runs, args.cell)
    if rows is None:
        return
    page = wu_tables.Page(
        folder,
        study.command(__file__, args),
        describe(inputs, rows[0]),
        study.settings(args, wu_tables.run_rows(rows)),
    )
    texts = wu_tables.write(args.part, rows, page)
    print("\n" + "\n".join(texts) + f"\nrows, tables and figures are in {folder}")


def check(args: Args) -> None:
    what = f"--part {args.part}"
    study.check_args(args)
    for name in ("together", "steps", "attackers_steps", "batch_size"):
        if getattr(args, name) is not None:
            checks.static_count(what, 1, **{name: getattr(args, name)})
    for name in ("alpha", "learning_rate", "momentum"):
        if getattr(args, name) is not None:
            checks.finite(what, **{name: getattr(args, name)})
    if args.pixels not in (None, 1, 3, 5, 7, 9):
        raise ValueError(f"--pixels must be 1, 3, 5, 7 or 9, got {args.pixels}")
    if args.pixels is not None and args.part in ("patterns", "cifar10"):
        raise ValueError(f"{what} has triggers of its own: leave --pixels out, got {args.pixels}")
    if args.normalization is not None:
        shift, scale = args.normalization
        if not (np.isfinite(shift) and np.isfinite(scale) and scale > 0):
            raise ValueError(
                f"--normalization needs two finite numbers, the second > 0, got {shift} and {scale}"
            )
    if args.width is not None and args.part != "cifar10":
        raise ValueError("--width is of CIFAR-10's network, --part cifar10")


# --- What is run ---------------------------------------------------------------------------------

TRAINING = (
    "pixels", "alpha", "rounds", "learning_rate", "momentum", "steps", "batch_size",
    "attackers_steps", "normalization",
)  # fmt: skip


def load(args: Args) -> Inputs:
    """Images, model and training of a part, with what the options change."""
    smoke = {"steps": 1, "attackers_steps": 1, "rounds": 2} if args.smoke else {}
    given = {name: getattr(args, name) for name in TRAINING if getattr(args, name) is not None}
    setting = SETTINGS[setting_name(args.part)]._replace(**smoke | given)
    return wu_setting.load(setting, args.data_dir, args.width, args.smoke)


def setting_name(part: str) -> str:
    return part if part in SETTINGS else "mnist"


def usual_pairs(args: Args) -> Sequence[tuple[int, int]]:
    pairs: Sequence[tuple[int, int]] = {
        "patterns": ((9, 1),),
        "pairs": FROM_NINE + TO_NINE,
        "concise": FROM_NINE + TO_NINE,
        "fashion": FROM_NINE,
        "cifar10": FROM_NINE,
        "adaptive": ((9, 0), (9, 2)),
    }.get(args.part, ((9, 0),))
    return pairs[:1] if args.smoke else pairs


SWEPT = {
    "patterns": ("pixels", (1, 3, 5, 7, 9)),
    "labels": ("labels", (3, 5, 7)),
    "selected": ("selected", (5, 10, 15, 20, 25)),
    "l2": ("l2", (0.0, 0.01, 0.03, 0.1, 0.3)),
    "adaptive": ("against", ("nothing", "ranks", "pruning", "AW")),
}
"""What varies in a part besides the pair."""


def keys_of(part: str) -> tuple[str, ...]:
    return ("victim", "target", *((SWEPT[part][0],) if part in SWEPT else ()))


def cells_of(args: Args, inputs: Inputs, victim: int, target: int) -> list[dict[str, Any]]:
    fixed = {"victim": victim, "target": target, "drop": args.drop}
    fixed |= {"before_relu": args.before_relu}
    fixed |= {"labels": {"repaired": False}, "l2": {"repaired": False}}.get(args.part, {})
    fixed |= {"clients": 50, "malicious": 5} if args.part == "selected" else {}
    fixed |= {"fine_tuning": 1} if args.smoke else {}
    name, values = SWEPT.get(args.part, ("victim", (victim,)))
    some = values[:2] if args.smoke and args.part != "adaptive" else values
    return [wu_setting.cell(inputs, **fixed | {name: value}) for value in some]


def folder_of(args: Args) -> Path:
    """``--out``/<part>, and in its name what differs from the part's setting."""
    if args.smoke:
        return args.out / f"{args.part}-smoke"
    usual = {**SETTINGS[setting_name(args.part)]._asdict(), "width": (32, 64)}
    usual |= {"drop": Args.drop, "before_relu": False}
    words: list[str] = [args.part]
    for name, standard in usual.items():
        value = getattr(args, name, None)
        if value is not None and value != standard:
            values = value if isinstance(value, tuple) else (value,)
            words += [name.replace("_", "-"), *(f"{v:g}" for v in values if v is not True)]
    return args.out / "-".join(words)


# --- How -----------------------------------------------------------------------------------------


def program(
    inputs: Inputs, folder: Path, keys: Sequence[str], keep_models: bool
) -> Callable[[Settings], study.Compute]:
    """``Study.program``: runs of one shape in one call; parameters go to files of their own."""
    images = wu_repair.Images(inputs.pool, inputs.validation, inputs.test)

    @functools.cache
    def compiled(fixed: tuple[tuple[str, Any], ...]) -> Callable[..., wu_repair.Results]:
        one = functools.partial(wu_repair.attacked_and_repaired, inputs, dict(fixed))
        return jax.jit(jax.vmap(one, in_axes=(None, 0)))

    def of(cell: Settings) -> study.Compute:
        # Attackers against other steps of the defence differ in numbers alone.
        run_all = compiled(tuple(sorted((k, v) for k, v in cell.items() if k != "against")))

        def compute(runs: Sequence[Settings]) -> Iterable[study.Result]:
            masks = [final_mask(folder, run, keys) for run in runs]
            numbers = [wu_setting.numbers(inputs, *one) for one in zip(runs, masks, strict=True)]
            stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *numbers)
            results = jax.device_get(run_all(images, stacked))
            kept = results.pop("models")
            for i, run in enumerate(runs):
                file = wu_setting.model_file(folder, run, keys)
                file.unlink(missing_ok=True)  # of other settings
                if keep_models:
                    file.parent.mkdir(parents=True, exist_ok=True)
                    np.savez(file, **{name: values[i] for name, values in kept.items()})
                yield jax.tree.map(lambda leaf, i=i: np.asarray(leaf[i]).tolist(), results)

        return compute

    return of


def final_mask(folder: Path, run: Settings, keys: Sequence[str]) -> np.ndarray | None:
    """Which neurons pruning leaves without a counter-attack, for attackers who know it."""
    if run["against"] != "pruning":
        return None
    before = {**run, "against": "nothing"}
    found = report.load_cell(folder, study.run_name(before, keys), before)
    if found is None:
        raise ValueError(
            "pruning-aware attackers need the mask of the run without a counter-attack, which another "
            f"--cell computes (pair {run['victim']}-{run['target']}, seed {run['seed']}); run this "
            "share after it"
        )
    return np.array(found["keep"])


def describe(inputs: Inputs, first: Settings) -> str:
    shift, scale = inputs.normalization
    taking_part = "all" if first["selected"] is None else "some"
    return (
        f"{first['model']} ({first['parameters']:,} parameters) on {first['data']} "
        f"({inputs.note}); {first['clients']} clients, {taking_part} of them in each round, "
        f"{first['malicious']} malicious, alpha {first['alpha']:g}; {first['rounds']} rounds of "
        f"{first['steps']} steps ({first['attackers_steps']} of attackers) of "
        f"{first['learning_rate']:g} on {first['batch_size']} images, (pixels - {shift:.4g}) / "
        f"{scale:.4g}, with momentum {first['momentum']:g}; the accuracy of "
        f"{first['validation_images']:,} validation images decides, falls of more than "
        f"{first['drop']:g} stop; fine-tuning for {first['fine_tuning']} rounds."
    )


if __name__ == "__main__":
    study.main(Args, main)
