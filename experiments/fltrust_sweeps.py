"""FLTrust's sweeps: size and bias of the root data, share of malicious clients, number of clients.

Cao, Fang, Liu, Gong: "FLTrust: Byzantine-robust Federated Learning via Trust Bootstrapping", NDSS 2021.
Everything else is as in ``fltrust_table.py``, whose settings these are.

  python experiments/fltrust_sweeps.py --sweep root-size       50 to 500 examples
  python experiments/fltrust_sweeps.py --sweep root-bias       share of class 1 among 100 examples
  python experiments/fltrust_sweeps.py --sweep malicious       0 to 95 % malicious clients
  python experiments/fltrust_sweeps.py --sweep clients         50 to 400, 20 % of them malicious

The values are the paper's; its numbers are in tables and figures that we do not have. The server's step
is the same for all sizes of root data, that of 100 examples: in the authors' code, which sums gradients,
it would grow with the size, and so would every rescaled update.

Results go to ``--out``/<setting>-<sweep>, and attack success rates of the Scaling attack beside it in
<setting>-<sweep>-attack-success.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Literal, NamedTuple

import tyro
from common import my_share, share_is_done, use_compilation_cache
from fang_figures import whole
from fang_table2 import command_line
from fltrust_table import (
    ATTACKS,
    MALICIOUS_SHARE,
    MORE_ATTACKS,
    RULES,
    SETTINGS,
    VARIANTS,
    Case,
    Inputs,
    known,
    run_cases,
    server_step,
    with_overrides,
)

from fedjax_robust import report


class Sweep(NamedTuple):
    """One parameter and its values."""

    parameter: str
    """the rows' key"""
    xlabel: str
    values: tuple[float, ...]
    smoke: tuple[float, ...]
    at: Callable[[Case, float], Case]
    rules: tuple[str, ...]


def with_share(case: Case, value: float) -> Case:
    return case._replace(malicious=round(value * case.clients))


def with_clients(case: Case, value: float) -> Case:
    return case._replace(clients=whole(value), malicious=round(MALICIOUS_SHARE * value))


SWEEPS = {
    "root-size": Sweep(
        "root_size",
        "root examples",
        (50, 100, 200, 300, 400, 500),
        (20, 50),
        lambda case, x: case._replace(root_size=whole(x)),
        ("FLTrust",),
    ),
    "root-bias": Sweep(
        "root_p",
        "share of class 1 in the root data",
        (0.1, 0.2, 0.4, 0.6, 0.8, 1.0),
        (0.1, 1.0),
        lambda case, x: case._replace(root_p=x),
        ("FLTrust",),
    ),
    "malicious": Sweep(
        "malicious",
        "malicious clients",
        (0, 0.1, 0.2, 0.4, 0.6, 0.8, 0.9, 0.95),
        (0, 0.5),
        with_share,
        ("FedAvg", "FLTrust"),
    ),
    "clients": Sweep("clients", "clients", (50, 100, 200, 300, 400), (20, 30), with_clients, RULES),
}


@dataclasses.dataclass
class Args:
    """FLTrust's sweeps. Errors and attack success rates are fractions."""

    sweep: Literal["root-size", "root-bias", "malicious", "clients"] = "malicious"
    """What is varied."""
    setting: Literal[
        "mnist-0.1", "mnist-0.5", "fashion_mnist", "cifar10", "har", "mnist-0.1-lr", "mnist-0.5-lr"
    ] = "mnist-0.5-lr"
    """Data set, model and their hyper-parameters; -lr: logistic regression instead of the CNN."""
    seeds: int = 3
    """Trials with other roots, partitions, models and batches."""
    points: tuple[float, ...] | None = None
    """Values of the parameter, instead of the sweep's."""
    rounds: int | None = None
    """Rounds instead of the setting's."""
    learning_rate: float | None = None
    """Clients' step on mean gradients, instead of the setting's."""
    rules: tuple[str, ...] | None = None
    """Rules to run; default FLTrust, for malicious also FedAvg, for clients all five."""
    attacks: tuple[str, ...] = ("None", "LF", "Trim", "Scaling", "Adaptive")
    """Attacks to run."""
    client_chunk: int | None = None
    """Train so many clients at a time; default all, on a CPU 1 for networks."""
    data_dir: Path | None = None
    """Folder of the data sets; default FEDJAX_ROBUST_DATA, else where TFDS keeps its own."""
    out: Path = Path("results/fltrust")
    """Where results go."""
    cell: str | None = None
    """Compute only the i-th of N shares of the cells, i/N, so that N machines work on one table; then
    the same command without it gathers their files."""
    smoke: bool = False
    """Three rounds, two points and one seed; the numbers mean nothing."""


def main(args: Args) -> None:
    """Run what is missing of one sweep, then print and draw it."""
    sweep = SWEEPS[args.sweep]
    setting = with_overrides(SETTINGS[args.setting], args)
    inputs = Inputs(setting, args.data_dir)
    if inputs.users and args.sweep == "clients":
        raise ValueError(
            f"the clients of {args.setting} are its {inputs.users} users; sweep clients of a setting "
            "that is partitioned, such as mnist-0.5-lr"
        )
    clients = inputs.users or setting.clients
    server = server_step(setting, None)
    usual = Case(setting, "", "", clients, round(MALICIOUS_SHARE * clients), server)
    usual = usual._replace(client_chunk=args.client_chunk)
    values = args.points or (sweep.smoke if args.smoke else sweep.values)
    cases = [
        sweep.at(usual._replace(rule=rule, attack=attack), value)
        for rule in known("rule", args.rules or sweep.rules, (*RULES, *VARIANTS))
        for attack in known("attack", args.attacks, (*ATTACKS, *MORE_ATTACKS))
        for value in sorted(set(values))
    ]
    folder = args.out / "-".join([args.setting, args.sweep] + (["smoke"] if args.smoke else []))
    cases = my_share(cases, args.cell)
    rows = run_cases(cases, inputs, range(1 if args.smoke else args.seeds), folder)
    if share_is_done(args.cell, folder):
        return
    title = f"FLTrust (Cao et al., 2021), {args.sweep.replace('-', ' ')}, {args.setting}"
    about = {
        "x": sweep.parameter,
        "xlabel": sweep.xlabel,
        "command": command_line("fltrust_sweeps.py", args),
    }
    notes = (
        f"{setting.model.__name__} on {setting.data} ({inputs.note}), {clients} clients, "
        f"{usual.malicious} malicious, {setting.rounds} rounds, step {setting.learning_rate:g}, batch "
        f"{setting.batch_size}; server: {server:g} on 100 root examples; but for what is swept"
    )
    text = report.write_sweep(folder, rows, title=title, notes=notes, **about)
    print(f"\n{text}")
    if backdoored := [row for row in rows if row["attack"] == "Scaling"]:
        text = report.write_sweep(
            folder.with_name(f"{folder.name}-attack-success"),
            backdoored,
            title=f"{title}: attack success",
            notes=f"{notes}; test examples of the target class are left out",
            value="attack_success",
            metric="attack success rate",
            **about,
        )
        print(text)
    print(f"rows, table and figure are in {folder}")


if __name__ == "__main__":
    use_compilation_cache()
    main(tyro.cli(Args))
