"""The arena: every rule against every attack, in one setting.

  python experiments/arena/arena.py                       logistic regression, 20 of 100 malicious
  python experiments/arena/arena.py --malicious 30        (or 10)
  python experiments/arena/arena.py --setting fashion-cnn --rules "trimmed mean" Krum FLTrust
  python experiments/arena/arena.py --costs               what a call of each rule costs here

A killed run goes on at the first missing cell; ``--cell i/N`` shares the cells among N machines. To see
where a rule or an attack of your own stands, add it by one line to a script of your own and run that:

    import arena

    arena.RULES["mine"] = lambda at: my_rule(at.f)
    arena.ATTACKS["mine"] = lambda at: my_attack()
    arena.study.main(arena.Args, arena.main)      # then: python mine.py --rules mine

What everybody gets: each rule knows the number of malicious clients, f. Rules with server data have 100
examples, ten of each class, that no client owns, and the server's step on all of them is 100 / b times a
client's. Attacks know what their type says (``Attack.needs``): nothing but their own clients
("partial"), the honest clients' updates ("full"), or those and the rule ("full, rule"). Where a paper
gives a rule's or an attack's parameters, they stand in ``RULES`` and ``ATTACKS``; where it does not, the
function's defaults do. A rule that diverges counts with the error of its last model, NaN as 1.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, NamedTuple

import arena_report
import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

import fedjax_robust as fr
from fedjax_robust import aggregators, attacks, metrics, models, report, study
from fedjax_robust.data import load, partition

Batch = dict[str, Any]


class Setting(NamedTuple):
    """One data set, model and federation."""

    data: str
    model: str
    q: float
    """Degree of non-IID: a class's examples go to its own group of clients with this probability."""
    clients: int
    rounds: int
    batch_size: int
    learning_rate: float


SETTINGS = {
    "mnist-lr": Setting("mnist", "SoftmaxRegression", 0.5, 100, 500, 32, 0.1),
    "fashion-cnn": Setting("fashion_mnist", "ConvNet", 0.5, 30, 300, 32, 0.1),
}
MODELS: dict[str, Callable[[], nn.Module]] = {
    "SoftmaxRegression": lambda: models.SoftmaxRegression(10),
    "ConvNet": lambda: models.ConvNet(10, blocks=((8,), (16,)), hidden=(64,)),
}
ROOT_SIZE, PARTITION = 100, 1


class At(NamedTuple):
    """What a rule or an attack of the arena may be made of."""

    n: int
    """Clients, all of which take part in every round."""
    f: int
    """Malicious ones."""
    step: float
    """The clients' learning rate on the mean gradient."""
    task: fr.Task
    root: Batch
    """The server's examples."""
    server: fr.Client
    """The server's training on them: one step on all."""
    classes: int
    client: fr.Client
    """How honest clients train."""
    batch_size: int


RULES: dict[str, Callable[[At], fr.Aggregator]] = {
    "mean": lambda at: aggregators.mean(),
    "median": lambda at: aggregators.median(),
    "trimmed mean": lambda at: aggregators.trimmed_mean(at.f),
    "Krum": lambda at: aggregators.krum(at.f),
    "Multi-Krum": lambda at: aggregators.multi_krum(at.f),
    "Bulyan": lambda at: aggregators.bulyan(at.f),
    "ERR": lambda at: aggregators.err(at.task, at.root, at.f),
    "LFR": lambda at: aggregators.lfr(at.task, at.root, at.f),
    "Union": lambda at: aggregators.union(at.task, at.root, at.f),
    "FLTrust": lambda at: aggregators.fltrust(at.server, at.root),
}
ATTACKS: dict[str, Callable[[At], fr.Attack]] = {
    "none": lambda at: attacks.no_attack(),
    "label flip": lambda at: attacks.data_poisoning(
        fr.local_sgd(at.task, at.step, at.batch_size, poison=attacks.poisons.label_flip(at.classes))
    ),
    "gaussian": lambda at: attacks.gaussian(),
    "Fang Krum, partial": lambda at: attacks.fang_krum_partial(),
    "Fang Krum": lambda at: attacks.fang_krum_full(),
    "Fang trim, partial": lambda at: attacks.fang_trim_partial(),
    "Fang trim": lambda at: attacks.fang_trim_full(before=aggregators.mean()),
    "first order": lambda at: attacks.first_order(),
}


@dataclasses.dataclass
class Args(study.Args):
    """Every rule against every attack. Errors are fractions."""

    setting: Literal["mnist-lr", "fashion-cnn"] = "mnist-lr"
    """Data set and model."""
    malicious: int | None = None
    """Malicious clients; default a fifth of all."""
    rules: tuple[str, ...] = ()
    """Rules to run; default all."""
    attacks: tuple[str, ...] = ()
    """Attacks to run; default all."""
    seeds: int = 3
    """Trials with other server data, partitions, models and batches."""
    costs: bool = False
    """Measure what a call of each rule costs instead, on an idle machine."""
    out: Path = Path("results/arena")
    """Where results go."""


KEYS = ("rule", "attack")


class Inputs:
    """The model, and each seed's server data, partition and test set."""

    def __init__(self, setting: Setting, data_dir: Path | None, train_images: int | None):
        dataset = load(setting.data, data_dir, jax.random.key(0))
        self.pool, self.test = (
            {name: jnp.asarray(examples[name][:train_images]) for name in ("x", "y")}
            for examples in (dataset.train, dataset.test)
        )
        self.classes = dataset.num_classes
        self.task = fr.classification(MODELS[setting.model](), self.pool["x"][:1])

    def of(self, run: study.Settings) -> tuple[Batch, fr.FederatedData, Batch]:
        """Server data, the clients' data, test set."""
        root_key, key = jax.random.split(study.key(PARTITION, run["seed"]))
        y = self.pool["y"]
        rows = {"y": y, "row": jnp.arange(len(y))}
        root, rest = partition.root_set(root_key, rows, ROOT_SIZE, num_classes=self.classes)
        data = partition.by_group(key, rest, run["clients"], run["q"], self.classes)
        # One pool on the device for all seeds: no client owns the root rows.
        missing = -data.index.shape[1] % 512  # seeds with the same width share a program
        index = jnp.pad(rest["row"][data.index], ((0, 0), (0, missing)))
        data = data._replace(examples=self.pool, index=index)
        return {name: values[root["row"]] for name, values in self.pool.items()}, data, self.test


def at_of(cell: study.Settings, task: fr.Task, classes: int, root: Batch) -> At:
    step, size = cell["learning_rate"], cell["batch_size"]
    server = fr.local_sgd(task, step * ROOT_SIZE / size, batch_size=None)
    client = fr.local_sgd(task, step, size)
    return At(cell["clients"], cell["malicious"], step, task, root, server, classes, client, size)


def program_of(inputs: Inputs, small: bool) -> Callable[[study.Settings], study.Compute]:
    """``Study.program``: the seeds of a cell in one program."""

    def plan(cell: study.Settings, given: Any) -> study.Plan:
        root, data, test = given
        at = at_of(cell, inputs.task, inputs.classes, root)
        attack = ATTACKS[cell["attack"]](at)
        sim = fr.Simulation(
            task=inputs.task,
            client=at.client,
            aggregator=RULES[cell["rule"]](at),
            attack=attack,
            knowledge=attack.needs,
            num_malicious=at.f,
            client_chunk=study.client_chunk(None, small=small),
        )
        evaluate = metrics.test_error(inputs.task, test)
        return study.Plan(sim, data, cell["rounds"], evaluate, max(cell["rounds"] // 10, 1))

    return study.together(plan, inputs.of, measure)


def measure(history: study.History) -> dict[str, float]:
    """Errors, and for rules that select whether a malicious row was among them."""
    error = np.nan_to_num(np.asarray(history["test_error"], float), nan=1.0)
    return study.errors({"test_error": error}) | study.malicious_selected(history)


def cells_of(args: Args) -> list[dict[str, Any]]:
    setting = SETTINGS[args.setting]
    fixed: dict[str, Any] = {"setting": args.setting, **setting._asdict(), "root_size": ROOT_SIZE}
    if args.rounds:
        fixed["rounds"] = args.rounds
    if args.smoke:
        fixed |= {"rounds": 3, "clients": 30, "images": 3000}
    fixed["malicious"] = fixed["clients"] // 5 if args.malicious is None else args.malicious
    if not 0 <= fixed["malicious"] < fixed["clients"] / 2:
        raise ValueError(
            f"--malicious must lie in 0 .. {(fixed['clients'] - 1) // 2}, less than half of the "
            f"{fixed['clients']} clients, got {fixed['malicious']}"
        )
    for what, given, known in (("rule", args.rules, RULES), ("attack", args.attacks, ATTACKS)):
        if unknown := [name for name in given if name not in known]:
            raise ValueError(f"there is no {what} {unknown}; there are {list(known)}")
    cells = study.grid(fixed, rule=args.rules or [*RULES], attack=args.attacks or [*ATTACKS])
    return [cell for cell in cells if is_possible(cell)]


def is_possible(cell: study.Settings) -> bool:
    """Bulyan needs n >= 4f + 3."""
    return "Bulyan" not in cell["rule"] or cell["clients"] >= 4 * cell["malicious"] + 3


def main(args: Args) -> None:
    """Run what is missing, then print and draw it."""
    cells = cells_of(args)
    setting = SETTINGS[args.setting]
    small = setting.model == "SoftmaxRegression"
    inputs = Inputs(setting, args.data_dir, cells[0].get("images"))
    words = [args.setting, str(cells[0]["malicious"])]
    words += [f"{args.rounds}-rounds"] if args.rounds else []
    folder = args.out / "-".join(words + (["smoke"] if args.smoke else []))
    if args.costs:
        print(costs(folder, cells[0], inputs, args))
        return
    rows = study.run(
        study.Study(
            folder,
            cells,
            KEYS,
            program_of(inputs, small),
            range(1 if args.smoke else args.seeds),
            at_once=1,  # so that more seeds later find the program in the cache
            jobs=study.threads(small=small),
        ),
        args.cell,
    )
    if rows is None:
        return
    knows = {name: knowledge(cells[0], inputs, name) for name in {c["attack"] for c in cells}}
    rows = [{**row, "knowledge": knows[row["attack"]]} for row in rows]
    text = arena_report.write(
        folder,
        rows,
        title=f"The arena: {args.setting}, {cells[0]['malicious']} of {cells[0]['clients']} malicious",
        command=study.command(__file__, args),
        settings=study.settings(args, rows),
    )
    print(f"\n{text}\nrows, tables and figures are in {folder}")


def knowledge(cell: study.Settings, inputs: Inputs, attack: str) -> str:
    """What an attack knows, in words."""
    root = {name: values[:ROOT_SIZE] for name, values in inputs.pool.items()}
    needs = ATTACKS[attack](at_of(cell, inputs.task, inputs.classes, root)).needs
    if needs.rule:
        return "full, rule" if needs.others else "partial, rule"
    return "full" if needs.others else "partial"


def costs(folder: Path, cell: study.Settings, inputs: Inputs, args: Args) -> str:
    """Seconds of one call of each rule on this machine, relative to the mean, in turn."""
    root = {name: values[:ROOT_SIZE] for name, values in inputs.pool.items()}
    at = at_of(cell, inputs.task, inputs.classes, root)
    params = inputs.task.init(jax.random.key(0))
    updates = jax.random.normal(jax.random.key(1), (at.n, len(params))) * 1e-3
    received = fr.Received(updates, jnp.ones(at.n), jnp.arange(at.n), params, jax.random.key(2))
    calls: dict[str, Callable[[], Any]] = {}
    for name in args.rules or [*RULES]:
        rule = RULES[name](at)
        state = rule.init(at.n, params)
        call = jax.jit(lambda received, state, rule=rule: rule.aggregate(received, state)[0])
        jax.block_until_ready(call(received, state))
        calls[name] = lambda call=call, state=state: jax.block_until_ready(call(received, state))
    times: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(2 if args.smoke else 20):  # in turn: what slows the machine slows all
        for name, call in calls.items():
            before = time.perf_counter()
            call()
            times[name].append(time.perf_counter() - before)
    provenance = report.provenance()
    rows = [
        {
            "rule": name,
            "ms": 1000 * float(np.median(own)),
            "n": at.n,
            "d": len(params),
            **provenance,
        }
        for name, own in times.items()
    ]
    report.write_rows(folder / "costs", rows)
    return report.markdown_table([{"rule": r["rule"], "ms": f"{r['ms']:.2f}"} for r in rows])


if __name__ == "__main__":
    study.main(Args, main)
