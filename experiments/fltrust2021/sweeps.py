"""FLTrust's sweeps: size and bias of the root data, share of malicious clients, number of clients.

Everything else is as in ``table.py``; the settings stand at the head of ``fltrust_setting.py``.

  python experiments/fltrust2021/sweeps.py --sweep root-size       50 to 500 examples
  python experiments/fltrust2021/sweeps.py --sweep root-bias       share of class 1 among 100 examples
  python experiments/fltrust2021/sweeps.py --sweep malicious       0 to 95 % malicious clients
  python experiments/fltrust2021/sweeps.py --sweep clients         50 to 400, 20 % of them malicious

The values are the paper's; its numbers are in tables and figures that we do not have. The server's step
is the same for all sizes of root data, that of 100 examples: in the authors' code, which sums gradients,
it would grow with the size, and so would every rescaled update.

Results go to ``--out``/<setting>-<sweep>, attack success rates of Scaling to
<setting>-<sweep>-attack-success.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, NamedTuple

import fltrust_setting
from fltrust_setting import RULES, SETTINGS, Attack, Cell, Inputs, Name, Rule, malicious_of

from fedjax_robust import checks, report, study


class Sweep(NamedTuple):
    """One parameter and its values."""

    parameter: str
    """The rows' key."""
    xlabel: str
    values: tuple[float, ...]
    smoke: tuple[float, ...]
    at: Callable[[Cell, float], Cell]
    """The usual cell and a value -> what changes."""
    rules: tuple[Rule, ...]


def with_size(cell: Cell, value: float) -> Cell:
    return {"root_size": whole(value)}


def with_bias(cell: Cell, value: float) -> Cell:
    checks.between("--sweep root-bias", 0, 1, points=value)
    return {"root_p": value}


def with_share(cell: Cell, value: float) -> Cell:
    checks.between("--sweep malicious", 0, 1, open_high=True, points=value)
    return {"malicious": malicious_of(cell["clients"], value)}


def with_clients(cell: Cell, value: float) -> Cell:
    return {"clients": whole(value), "malicious": malicious_of(whole(value))}


def whole(value: float) -> int:
    if value != int(value) or value < 1:
        raise ValueError(f"the values of this sweep are whole numbers >= 1, got {value:g}")
    return int(value)


SWEEPS = {
    "root-size": Sweep(
        "root_size", "root examples",
        (50, 100, 200, 300, 400, 500), (20, 50), with_size, ("FLTrust",),
    ),
    "root-bias": Sweep(
        "root_p", "share of class 1 in the root data",
        (0.1, 0.2, 0.4, 0.6, 0.8, 1.0), (0.1, 1.0), with_bias, ("FLTrust",),
    ),
    "malicious": Sweep(
        "malicious", "malicious clients",
        (0, 0.1, 0.2, 0.4, 0.6, 0.8, 0.9, 0.95), (0, 0.5), with_share, ("FedAvg", "FLTrust"),
    ),
    "clients": Sweep(
        "clients", "clients", (50, 100, 200, 300, 400), (20, 30), with_clients, RULES,
    ),
}  # fmt: skip


@dataclasses.dataclass
class Args(study.Args):
    """FLTrust's sweeps. Errors and attack success rates are fractions."""

    sweep: Literal["root-size", "root-bias", "malicious", "clients"] = "malicious"
    """What is varied."""
    setting: Name = "mnist-0.5-lr"
    """Data set, model and their hyper-parameters; -lr: logistic regression instead of the CNN."""
    seeds: int = 3
    """Trials with other roots, partitions, models and batches."""
    points: tuple[float, ...] = ()
    """Values of the parameter, instead of the sweep's."""
    learning_rate: float | None = None
    """Clients' step on mean gradients, instead of the setting's."""
    rules: tuple[Rule, ...] = ()
    """Rules to run; default FLTrust, for malicious also FedAvg, for clients the five of the table."""
    attacks: tuple[Attack, ...] = ("NoAttack", "LF", "Trim", "Scaling", "Adaptive")
    """Attacks to run."""
    client_chunk: int | None = None
    """Train so many clients at a time; default all, of networks 1 on a CPU and 10 elsewhere."""
    out: Path = Path("results/fltrust2021")
    """Where results go."""


def main(args: Args) -> None:
    """Run what is missing of one sweep, then print and draw it."""
    fltrust_setting.check_choices(args.rules, args.attacks)
    sweep, setting = SWEEPS[args.sweep], SETTINGS[args.setting]
    if args.rounds or args.smoke:
        setting = setting._replace(rounds=args.rounds or 3)
    if args.learning_rate is not None:
        checks.positive("the command line", learning_rate=args.learning_rate)
        setting = setting._replace(learning_rate=args.learning_rate)
    inputs = Inputs(setting, args.data_dir)
    if inputs.users and args.sweep == "clients":
        raise ValueError(
            f"the clients of {args.setting} are its {inputs.users} users; sweep clients of a setting "
            "that is partitioned, such as mnist-0.5-lr"
        )
    usual = fltrust_setting.cell_settings(args.setting, setting, inputs.users or setting.clients)
    values = args.points or (sweep.smoke if args.smoke else sweep.values)
    cells = [
        {**usual, "rule": rule, "attack": attack, **sweep.at(usual, value)}
        for rule in args.rules or sweep.rules
        for attack in args.attacks
        for value in sorted(set(values))
    ]
    folder = args.out / "-".join([args.setting, args.sweep] + (["smoke"] if args.smoke else []))
    chunk = study.client_chunk(args.client_chunk, small=setting.small)
    rows = study.run(
        study.Study(
            folder,
            cells,
            ("rule", "attack", sweep.parameter),
            fltrust_setting.program_of(inputs, chunk),
            range(1 if args.smoke else args.seeds),
            varies=fltrust_setting.VARIES,
            jobs=study.threads(small=setting.small),
            values=("error", "attack_success"),
        ),
        args.cell,
    )
    if rows is None:
        return
    title = f"FLTrust (Cao et al., 2021), {args.sweep.replace('-', ' ')}, {args.setting}"
    about: dict[str, Any] = {
        "x": sweep.parameter,
        "xlabel": sweep.xlabel,
        "command": study.command(__file__, args),
        "settings": study.settings(args, rows),
    }
    notes = f"{fltrust_setting.notes(usual, inputs)}; but for what is swept"
    text = report.write_sweep(folder, rows, title=title, notes=notes, **about)
    print(f"\n{text}")
    if backdoored := [row for row in rows if row["attack"] == "Scaling"]:
        about["settings"] = study.settings(args, backdoored)
        text = report.write_sweep(
            folder.with_name(f"{folder.name}-attack-success"),
            backdoored,
            title=f"{title}: attack success",
            notes=f"{notes}; {fltrust_setting.LEFT_OUT}",
            value="attack_success",
            metric="attack success rate",
            **about,
        )
        print(text)
    print(f"rows, table and figure are in {folder}")


if __name__ == "__main__":
    study.main(Args, main)
