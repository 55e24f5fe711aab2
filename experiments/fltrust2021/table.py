"""The main table of FLTrust: six settings, attacks and rules; and its table of variants.

  python experiments/fltrust2021/table.py --setting mnist-0.5-lr     logistic regression: minutes on a CPU
  python experiments/fltrust2021/table.py --setting har
  python experiments/fltrust2021/table.py --setting mnist-0.5-lr --table variants
  python experiments/fltrust2021/table.py --setting mnist-0.5        the paper's CNN; wants a GPU
  python experiments/fltrust2021/table.py --setting mnist-0.5 --clients 20 --rounds 200 \\
      --learning-rate 0.1 --seeds 1                                  the CNN, reduced

The settings, and what the paper leaves open, stand at the head of ``fltrust_setting.py``. Numbers beside
ours: for mnist-0.1 those in the paper's text; for mnist-0.5 a third party's run of the authors' code (one
run per cell). There are none for the other settings and for logistic regression.

Results go to ``--out``/<setting>, attack success rates of Scaling to <setting>-attack-success.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any, Literal

import fltrust_setting
from fltrust_setting import (
    ATTACKS,
    MALICIOUS_SHARE,
    RULES,
    SETTINGS,
    VARIANTS,
    Attack,
    Inputs,
    Name,
    Rule,
    Setting,
)

from fedjax_robust import checks, report, study

Paper = dict[report.Cell, float]
IN_THE_TEXT: Paper = {
    ("NoAttack", "FedAvg"): 0.04,
    ("NoAttack", "Krum"): 0.10,
    ("Krum", "Krum"): 0.90,
    **{(attack, "FLTrust"): 0.04 for attack in ATTACKS},
}
THIRD_PARTY: Paper = {
    (attack, rule): round(1 - accuracy, 4)
    for attack, accuracies in {
        "NoAttack": (0.9550, 0.8966, 0.9400, 0.9385, 0.9522),
        "LF": (0.9377, 0.9007, 0.8915, 0.9412, 0.9492),
        "Krum": (0.8921, 0.0983, 0.7979, 0.1083, 0.9391),
        "Trim": (0.7489, 0.8986, 0.7043, 0.6780, 0.9199),
    }.items()
    for rule, accuracy in zip(RULES, accuracies, strict=True)
}
PAPER: dict[str, tuple[Paper, str]] = {
    "mnist-0.1": (IN_THE_TEXT, "paper: its text"),
    "mnist-0.5": (THIRD_PARTY, "\"paper\": a third party's run of the authors' code"),
}
WITHOUT_GRADIENTS = ("Krum", "Trim-mean", "Median")
"""Rules without FirstOrder, unless asked for: gradients through them are slow, and none for Krum."""


@dataclasses.dataclass
class Args(study.Args):
    """Reproduce FLTrust's tables. Errors and attack success rates are fractions."""

    setting: Name = "mnist-0.5-lr"
    """Data set, model and their hyper-parameters; -lr: logistic regression instead of the CNN."""
    table: Literal["main", "variants"] = "main"
    """The main table, or the one of FLTrust's variants."""
    seeds: int = 3
    """Trials with other roots, partitions, models and batches."""
    clients: int | None = None
    """Clients instead of the setting's."""
    malicious_share: float = MALICIOUS_SHARE
    """Share of malicious clients."""
    learning_rate: float | None = None
    """Clients' step on mean gradients, instead of the setting's."""
    server_learning_rate: float | None = None
    """The server's step on the mean gradient of the root data; default the clients' times 100 / b."""
    rules: tuple[Rule, ...] = ()
    """Rules to run; default all of the table."""
    attacks: tuple[Attack, ...] = ()
    """Attacks to run; default the paper's six, and FirstOrder on rules with gradients."""
    client_chunk: int | None = None
    """Train so many clients at a time, which bounds memory; default all, of networks 1 on a CPU and 10
    elsewhere. With ResNet20 a client takes about 0.4 GB per batch of 64."""
    out: Path = Path("results/fltrust2021")
    """Where results go."""


def main(args: Args) -> None:
    """Run what is missing of one table, then print and draw it."""
    fltrust_setting.check_choices(args.rules, args.attacks)
    setting = with_overrides(SETTINGS[args.setting], args)
    inputs = Inputs(setting, args.data_dir)
    if inputs.users and args.clients:
        raise ValueError(
            f"the clients of {args.setting} are its {inputs.users} users; leave --clients out"
        )
    cells = cells_of(args, setting, inputs.users or setting.clients)
    folder = args.out / "-".join(
        [args.setting]
        + (["variants"] if args.table == "variants" else [])
        + ([f"{args.clients}-clients"] if args.clients else [])
        + ([f"{args.rounds}-rounds"] if args.rounds else [])
        + (["smoke"] if args.smoke else [])
    )
    chunk = study.client_chunk(args.client_chunk, small=setting.small)
    rows = study.run(
        study.Study(
            folder,
            cells,
            ("rule", "attack"),
            fltrust_setting.program_of(inputs, chunk),
            range(1 if args.smoke else args.seeds),
            jobs=study.threads(small=setting.small),
            values=("error", "attack_success"),
        ),
        args.cell,
    )
    if rows is None:
        return
    printed, source = PAPER.get(args.setting, ({}, ""))
    chosen = {(cell["attack"], cell["rule"]) for cell in cells}
    about: dict[str, Any] = {
        "command": study.command(__file__, args),
        "settings": study.settings(args, rows),
    }
    title = f"FLTrust (Cao et al., 2021), {args.table} table, {args.setting}"
    notes = fltrust_setting.notes(cells[0], inputs) + (f"; {source}" if source else "")
    paper = {cell: number for cell, number in printed.items() if cell in chosen}
    text = report.write_table(
        folder, rows, paper, title=title, notes=notes, tolerance=0.02, **about
    )
    print(f"\n{text}")
    if backdoored := [row for row in rows if row["attack"] == "Scaling"]:
        about["settings"] = study.settings(args, backdoored)
        text = report.write_table(
            folder.with_name(f"{folder.name}-attack-success"),
            backdoored,
            {},
            title=f"{title}: attack success",
            value="attack_success",
            metric="attack success rate",
            notes=f"{notes}; {fltrust_setting.LEFT_OUT}",
            **about,
        )
        print(text)
    print(f"rows, table and figures are in {folder}")


def with_overrides(setting: Setting, args: Args) -> Setting:
    """The setting with what the command line has instead."""
    names = ("clients", "rounds", "learning_rate")
    given = {name: getattr(args, name) for name in names if getattr(args, name) is not None}
    return setting._replace(**({"rounds": 3} if args.smoke else {}) | given)


def cells_of(args: Args, setting: Setting, clients: int) -> list[dict[str, Any]]:
    for name in ("learning_rate", "server_learning_rate"):
        if (step := getattr(args, name)) is not None:
            checks.positive(f"--{name.replace('_', '-')}", step=step)
    checks.between("the command line", 0, 1, open_high=True, malicious_share=args.malicious_share)
    fixed = fltrust_setting.cell_settings(args.setting, setting, clients)
    fixed["malicious"] = fltrust_setting.malicious_of(clients, args.malicious_share)
    if args.server_learning_rate is not None:
        fixed["server_learning_rate"] = args.server_learning_rate
    return [
        cell
        for cell in study.grid(
            fixed,
            rule=args.rules or (RULES if args.table == "main" else VARIANTS),
            attack=args.attacks or (*ATTACKS, "FirstOrder"),
        )
        # By default only; who asks for it gets it.
        if args.attacks or cell["attack"] != "FirstOrder" or cell["rule"] not in WITHOUT_GRADIENTS
    ]


if __name__ == "__main__":
    study.main(Args, main)
