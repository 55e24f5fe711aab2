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


def loss_of(at: At) -> fr.types.Score:
    """The server's loss on its examples."""
    return lambda params: at.task.loss(params, at.root)


def dead(f: int, rule: Callable[[int], fr.Aggregator]) -> fr.Aggregator:
    """A rule behind nearest neighbour mixing."""
    return aggregators.nnm(f, base=rule(f))


# Of clipping rules: about the length of an honest update here.
BOUND = 0.1

RULES: dict[str, Callable[[At], fr.Aggregator]] = {
    "mean": lambda at: aggregators.mean(),
    # Coordinate by coordinate
    "median": lambda at: aggregators.median(),
    "trimmed mean": lambda at: aggregators.trimmed_mean(at.f),
    "MeaMed": lambda at: aggregators.mean_around_median(at.f),
    "Phocas": lambda at: aggregators.phocas(at.f),
    "VRMOM": lambda at: aggregators.vrmom(),
    "sign majority": lambda at: aggregators.sign_majority(0.001),
    "RLR": lambda at: aggregators.rlr(at.f + 1),
    # By distances
    "geometric median": lambda at: aggregators.geometric_median(steps=30),
    "RFA": lambda at: aggregators.rfa(),
    "median of means": lambda at: aggregators.median_of_means(np.arange(at.n) % (2 * at.f + 1)),
    "Krum": lambda at: aggregators.krum(at.f),
    "Multi-Krum": lambda at: aggregators.multi_krum(at.f),
    "Bulyan": lambda at: aggregators.bulyan(at.f),
    "Aksel": lambda at: aggregators.aksel(at.f),
    "CGE": lambda at: aggregators.cge(at.f),
    "DnC": lambda at: aggregators.dnc(at.f),
    "CAF": lambda at: aggregators.caf(at.f, steps=3 * at.f + 10),
    "centred clipping": lambda at: aggregators.centered_clipping(BOUND),
    "clipping": lambda at: aggregators.norm_clipping(BOUND),
    "sequential clipping": lambda at: aggregators.sequential_clipping(BOUND, 3),
    # Before another rule
    "NNM + median": lambda at: dead(at.f, lambda f: aggregators.median()),
    "NNM + trimmed mean": lambda at: dead(at.f, aggregators.trimmed_mean),
    "NNM + Krum": lambda at: dead(at.f, aggregators.krum),
    "ARC + NNM + trimmed mean": lambda at: aggregators.arc(
        at.f, base=dead(at.f, aggregators.trimmed_mean)
    ),
    "buckets of 2 + median": lambda at: aggregators.bucketing(2, base=aggregators.median()),
    "buckets of 2 + trimmed mean": lambda at: aggregators.bucketing(
        2, base=aggregators.trimmed_mean(at.f)
    ),
    # By clusters
    "FLAME": lambda at: aggregators.flame(),
    "SignGuard": lambda at: aggregators.signguard(),
    "SignGuard-Sim": lambda at: aggregators.signguard_sim(),
    "clipped clustering": lambda at: aggregators.clipped_clustering(10 * at.n),
    "Auror": lambda at: aggregators.auror(0.01),
    # By history
    "AFA": lambda at: aggregators.afa(),
    "FoolsGold": lambda at: aggregators.foolsgold(summed=False),
    "CONTRA": lambda at: aggregators.contra(at.n - at.f - 1, summed=False),
    "FLDetector": lambda at: aggregators.fldetector(),
    "LASA": lambda at: aggregators.lasa(at.task),
    "Romoa": lambda at: aggregators.romoa(at.task),
    # With the server's examples
    "ERR": lambda at: aggregators.err(at.task, at.root, at.f),
    "LFR": lambda at: aggregators.lfr(at.task, at.root, at.f),
    "Union": lambda at: aggregators.union(at.task, at.root, at.f),
    "FLTrust": lambda at: aggregators.fltrust(at.server, at.root),
    "Cao-Lai": lambda at: aggregators.cao_lai(at.server, at.root),
    "Zeno": lambda at: aggregators.zeno(at.task, at.root, at.f, 0.01, batch_size=None),
    "FAIR": lambda at: aggregators.fair(loss_of(at), 0.1),
    "FAIR by quality": lambda at: aggregators.fair_by_quality(loss_of(at)),
    "learned credits": lambda at: aggregators.learned_credits(loss_of(at), 10.0),
}


def forecast(at: At, rounds: int) -> Callable[[Any], Any]:
    """The slope of the loss so many rounds ahead; what the attacker knows of the data are the server's
    examples, which any client might hold."""
    size = len(at.root["y"])
    own = fr.ClientData(at.root, jnp.arange(size, dtype=jnp.int32), jnp.int32(size))
    round_of = attacks.optimised.as_one(fr.local_sgd(at.task, at.step, None), own)
    return attacks.optimised.steepest(round_of, loss_of(at), rounds)


def spread(mean: jax.Array, std: jax.Array) -> jax.Array:
    """Min-Max's "standard deviation", which on updates is a plus."""
    return std


ATTACKS: dict[str, Callable[[At], fr.Attack]] = {
    "none": lambda at: attacks.no_attack(),
    # From their own clients alone
    "label flip": lambda at: attacks.data_poisoning(
        fr.local_sgd(at.task, at.step, at.batch_size, poison=attacks.poisons.label_flip(at.classes))
    ),
    "sign flip": lambda at: attacks.sign_flip(),
    "noise": lambda at: attacks.noise(0.01),
    "scaled sign flip": lambda at: attacks.sign_flip(10.0),
    "Fang Krum, partial": lambda at: attacks.fang_krum_partial(),
    "Fang trim, partial": lambda at: attacks.fang_trim_partial(),
    "ALIE, partial": lambda at: attacks.alie(1.0, partial=True),
    "IPM .5, partial": lambda at: attacks.ipm(0.5, partial=True),
    "Min-Max, partial": lambda at: attacks.min_max(partial=True),
    # With the honest updates
    "gaussian": lambda at: attacks.gaussian(),
    "mean is minus": lambda at: attacks.linear_combination(),
    "IPM .1": lambda at: attacks.ipm(0.1),
    "IPM 2": lambda at: attacks.ipm(2.0),
    "ALIE": lambda at: attacks.alie(),
    "ALIE 1.5": lambda at: attacks.alie(1.5),
    "Min-Max": lambda at: attacks.min_max(),
    "Min-Max, spread": lambda at: attacks.min_max(spread),
    "Min-Sum": lambda at: attacks.min_sum(),
    "mimic": lambda at: attacks.mimic(),
    "ByzMean": lambda at: attacks.byz_mean(),
    "anti-CGE": lambda at: attacks.anti_cge(at.f),
    "Fang Krum": lambda at: attacks.fang_krum_full(),
    "Fang trim": lambda at: attacks.fang_trim_full(before=aggregators.mean()),
    "adjoint 20": lambda at: attacks.adjoint(forecast(at, 20)),
    # With the rule, too
    "line search": lambda at: attacks.line_search(lambda z: attacks.alie(z)),
    "first order": lambda at: attacks.first_order(10),
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
    rules = args.rules or [name for name in RULES if name not in SLOW]
    cells = study.grid(fixed, rule=rules, attack=args.attacks or [*ATTACKS])
    asked = [*args.rules, *args.attacks]
    return [cell for cell in cells if is_possible(cell) and (asked or is_cheap(cell))]


SLOW = ("LASA", "Romoa")
"""Rules of 40 and 160 ms a call, left out unless asked for."""
ASKING = ("line search", "first order")
"""Attacks that ask the rule some ten times a round: by default only rules that answer quickly."""
QUICK = ("mean", "median", "trimmed mean", "clipping", "FLTrust", "Krum")


def is_cheap(cell: study.Settings) -> bool:
    return cell["attack"] not in ASKING or cell["rule"] in QUICK


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
