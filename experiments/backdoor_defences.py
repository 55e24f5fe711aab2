"""What detects or weakens a backdoor: Figures 9 and 12 of Bagdasaryan et al., and DBA.

Bagdasaryan, Veit, Hua, Estrin, Shmatikov: "How To Backdoor Federated Learning", AISTATS 2020; Xie, Huang,
Chen, Li: "DBA: Distributed Backdoor Attacks against Federated Learning", ICLR 2020.

  python experiments/backdoor_defences.py --figure detection   9    checks of updates, share of attackers
  python experiments/backdoor_defences.py --figure clipping    12   clipping, with a little noise
  python experiments/backdoor_defences.py --figure noise       12   noise, with a generous clipping bound
  python experiments/backdoor_defences.py --figure dba              distributed and centralised triggers

All but ``dba`` are on the reduced setting of ``backdoor_images.py`` (MNIST, a dense network,
leaning ones as backdoor), with all 100 clients in each round and plain averaging, so that gamma = 100.

*detection*: one round of attack. *Replacement* divides the scaled update among the attackers (equal
parts), *orthogonal* into parts without common parameters, *train-and-scale* sends as much as an honest
update's norm allows, S, the median of the honest ones. Each check sees the same updates; shown are
backdoor and main accuracy of the model that it lets through, how many attackers it caught, and how many
honest clients it threw out.

*clipping* and *noise*: training from scratch with ``participant_dp``, and in the last round
train-and-scale by 20 % of the clients, who know S (5 %, the paper's, do nothing here; see *detection*).
Privacy spent is for delta = 1e-5. The paper has 1,000 participants, sigma = 0.01 and S = 15; here it is
an average of 100.

*dba*: the settings of DBA's code on MNIST: 100 clients, 10 in a round, Dirichlet 0.5, MnistNet, four
attackers with a bar of 4 pixels each in rounds 12, 14, 16 and 18 (the first is 1), scale 100, server step
0.1. In the *centralised* attack one attacker has all bars, in round 18. Before and after these rounds the
attackers are clients like all others, in between they are absent. Attack success is that of the whole
trigger on test images of other labels than the target.

Results go to ``--out``/<figure>: one file per finished run, so that a killed script goes on after the
last one; ``rows``, ``table.md``, ``sweep.png``.
"""

from __future__ import annotations

import dataclasses
import functools
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import backdoor_images
import jax
import jax.numpy as jnp
import numpy as np
import optax
import tyro
from backdoor_images import MNIST, Case, attackers_client, honest_client
from common import my_share, origin, share_is_done, use_compilation_cache
from fang_table2 import command_line
from tqdm import tqdm

import fedjax_robust as fr
from fedjax_robust import aggregators, attacks, metrics, models, report, simulate
from fedjax_robust import data as datasets
from fedjax_robust.robust_stats import direction_and_length
from fedjax_robust.types import Received

CLIENTS = 100
BACKDOOR = MNIST.backdoors[0]
SHARES = (0.01, 0.02, 0.05, 0.1, 0.2)
BOUNDS = (0.2, 0.5, 1.0, 2.0, 5.0)
NOISES = (0.0, 0.01, 0.03, 0.1)
USUAL_BOUND, USUAL_NOISE = 5.0, 0.003
DP_SHARE, DELTA = 0.2, 1e-5
AUDITING_DROP, SIMILAR, DEVIATIONS = 0.1, 0.9, 3.0
DBA_ROUNDS = (12, 14, 16, 18)
DBA_TARGET = 2
Row = dict[str, Any]
Run = tuple[str, float, int]
"""method, value of x, seed"""


@dataclasses.dataclass
class Args:
    """Checks that attackers evade, noise that they do not. Accuracies are fractions."""

    figure: Literal["detection", "clipping", "noise", "dba"] = "detection"
    """What is measured."""
    seeds: int = 3
    """Trials with other splits, models, held-out images and batches."""
    points: tuple[float, ...] | None = None
    """Shares of attackers (detection) instead of 1 to 20 %."""
    rounds: int | None = None
    """Rounds of training before the attack (detection: 300), with DP (30), or in all (dba: 40)."""
    auror_threshold: float = 0.05
    """Distance of the two means from which on a coordinate is indicative."""
    data_dir: Path | None = None
    """Folder of the data sets; default FEDJAX_ROBUST_DATA, else where TFDS keeps its own."""
    out: Path = Path("results/backdoor_defences")
    """Where results go."""
    cell: str | None = None
    """Compute only the i-th of N shares of the runs, i/N; then the same command without it gathers."""
    smoke: bool = False
    """A few rounds, points and images and one seed, to see that everything works."""


class Everything:
    """Data of backdoor_images.py's reduced setting."""

    def __init__(self, args: Args, folder: Path):
        images = backdoor_images.Args(data_dir=args.data_dir, smoke=args.smoke)
        self.args = args
        self.inputs = backdoor_images.Inputs(MNIST, images, folder / "before")
        self.rounds_before = args.rounds or (3 if args.smoke else MNIST.rounds_before)

    def evaluation(self, held_out: jax.Array, test: Any) -> fr.types.Evaluate:
        task = self.inputs.task
        return metrics.together(
            metrics.test_error(task, test),
            metrics.backdoor_accuracy(task, held_out, MNIST.target),
        )

    def client(self, backdoor: Any) -> fr.Client:
        """How attackers train X."""
        return attackers_client(MNIST, self.inputs.task, Case(), [backdoor], jnp.float32(1))


# --- Figure 9 ----------------------------------------------------------------------------------------

ATTACKS = ("replacement", "orthogonal", "train-and-scale")
PANELS = ("backdoor", "main", "caught", "honest rejected")


def checks(args: Args, everything: Everything) -> dict[str, fr.Aggregator]:
    """Each is followed by the mean."""
    cut = slice(300 if args.smoke else 2000)
    inputs = everything.inputs
    # The server's own examples: those of the test set that accuracy is not measured on.
    own = {name: jnp.asarray(inputs.dataset.test[name][-2000:][cut]) for name in ("x", "y")}

    def accuracy(params: jax.Array) -> jax.Array:
        return jnp.mean(metrics.predict(inputs.task, params, own["x"]) == own["y"])

    return {
        "no check": aggregators.mean(),
        "Auror": aggregators.auror(args.auror_threshold),
        "accuracy auditing": aggregators.accuracy_auditing(accuracy, AUDITING_DROP),
        "pairwise cosine": aggregators.sybil_check(SIMILAR),
        "cosine to model": aggregators.cosine_to_model(DEVIATIONS),
    }


def every_check(rules: dict[str, fr.Aggregator]) -> fr.Aggregator:
    """The mean; reports what each rule would have made of the same updates, and their norms."""

    def aggregate(received: Received, state: Any) -> tuple[jax.Array, Any, dict[str, Any]]:
        report_: dict[str, Any] = {"norms": direction_and_length(received.updates)[1]}
        for name, rule in rules.items():
            result, _, info = rule.aggregate(received, ())
            report_[f"{name}: model"] = received.params + result
            report_[f"{name}: selected"] = info.get(
                "selected", jnp.ones(len(received.updates), bool)
            )
        return rules["no check"].aggregate(received, state)[0], state, report_

    return fr.Aggregator(rules["no check"].init, aggregate)


@functools.cache
def detection_program(attack: str, attackers: int, everything: Everything) -> Callable[..., Any]:
    rules = checks(everything.args, everything)
    inputs, task = everything.inputs, everything.inputs.task

    def one(
        key: Any,
        data: Any,
        own: Any,
        backdoor: Any,
        held_out: Any,
        test: Any,
        params: Any,
        bound: Any,
    ) -> dict[str, Any]:
        divide = {
            "replacement": attacks.equal_parts(float(CLIENTS)),
            "orthogonal": attacks.orthogonal_parts(float(CLIENTS)),
            "train-and-scale": attacks.norm_bounded(bound),
        }[attack]
        sim = fr.Simulation(
            task,
            honest_client(MNIST, task),
            every_check(rules),
            attacks.model_replacement(everything.client(backdoor), own, divide),
            num_malicious=attackers,
            client_chunk=inputs.client_chunk,
        )
        state = simulate.init(sim, key, data, params)
        _, info = fr.step(sim, state, data)
        evaluate = everything.evaluation(held_out, test)
        found: dict[str, Any] = {"norms": info["norms"]}
        for name in rules:
            selected, malicious = info[f"{name}: selected"], info["malicious"]
            after = evaluate(info[f"{name}: model"])
            found[name] = {
                "backdoor": after["backdoor_accuracy"],
                "main": 1 - after["test_error"],
                "caught": metrics.detection(selected, malicious)["recall"],
                "honest rejected": jnp.sum(~selected & ~malicious) / jnp.sum(~malicious),
            }
        return found

    return jax.jit(one)


def detect(run: Run, everything: Everything) -> Row:
    method, share, seed = run
    inputs = everything.inputs
    backdoor, held_out = inputs.backdoor(BACKDOOR, seed)
    test = jax.tree.map(lambda leaf: leaf[:-2000] if len(leaf) > 2000 else leaf, inputs.test)
    numbers = (
        jax.random.key(seed),
        inputs.federated(seed),
        inputs.own(256 if everything.args.smoke else MNIST.benign_images, seed),
        backdoor,
        held_out,
        test,
        inputs.before(everything.rounds_before, seed),
    )
    attackers = max(round(share * CLIENTS), 1)
    # The honest clients' norms do not depend on the bound: a first call finds them.
    program = detection_program(method, attackers, everything)
    honest = np.asarray(program(*numbers, jnp.float32(1))["norms"])[attackers:]
    bound = float(np.median(honest))
    return jax.device_get(program(*numbers, jnp.float32(bound))) | {"bound": bound}


def detection_rows(run: Run, result: Row) -> list[Row]:
    method, share, seed = run
    return [
        {"line": check, "share": share, "measure": f"{panel}, {method}", "value": values[panel]}
        | {"seed": seed, "bound": result["bound"]}
        for check, values in result.items()
        if isinstance(values, dict)
        for panel in PANELS
    ]


# --- Figure 12 ---------------------------------------------------------------------------------------


@functools.cache
def dp_program(everything: Everything, rounds: int) -> Callable[..., Any]:
    inputs, task = everything.inputs, everything.inputs.task
    attackers = round(DP_SHARE * CLIENTS)

    def one(
        key: Any,
        data: Any,
        own: Any,
        backdoor: Any,
        held_out: Any,
        test: Any,
        bound: Any,
        noise: Any,
    ) -> dict[str, Any]:
        attack = attacks.model_replacement(
            everything.client(backdoor), own, attacks.norm_bounded(bound)
        )
        peace = fr.Simulation(
            task,
            honest_client(MNIST, task),
            aggregators.participant_dp(bound, noise),
            client_chunk=inputs.client_chunk,
        )
        war = peace._replace(attack=attack, num_malicious=attackers)
        evaluate = everything.evaluation(held_out, test)
        state, _ = fr.run(peace, key, data, rounds - 1)
        before = evaluate(state.params)
        start = simulate.init(war, jax.random.fold_in(key, 1), data, state.params)
        after = evaluate(fr.step(war, start, data)[0].params)
        return {
            "backdoor": after["backdoor_accuracy"],
            "main": 1 - after["test_error"],
            "main before": 1 - before["test_error"],
            "backdoor before": before["backdoor_accuracy"],
        }

    return jax.jit(one)


def dp_values(method: str, x: float) -> tuple[float, float]:
    """S and sigma."""
    return (x, USUAL_NOISE) if method == "clipping" else (USUAL_BOUND, x)


def dp_rounds(args: Args) -> int:
    return args.rounds or (2 if args.smoke else 30)


def privately(run: Run, everything: Everything) -> Row:
    method, x, seed = run
    bound, noise = dp_values(method, x)
    inputs = everything.inputs
    backdoor, held_out = inputs.backdoor(BACKDOOR, seed)
    return jax.device_get(
        dp_program(everything, dp_rounds(everything.args))(
            jax.random.key(seed),
            inputs.federated(seed),
            inputs.own(256 if everything.args.smoke else MNIST.benign_images, seed),
            backdoor,
            held_out,
            inputs.test,
            jnp.float32(bound),
            jnp.float32(noise),
        )
    )


def dp_rows(run: Run, result: Row) -> list[Row]:
    method, x, seed = run
    return [
        {"line": measure, method: x, "measure": method, "value": result[measure], "seed": seed}
        for measure in ("backdoor", "main", "main before")
    ]


# --- DBA ---------------------------------------------------------------------------------------------


class DBA:
    """MNIST, split as in DBA's code."""

    def __init__(self, args: Args):
        self.args = args
        dataset = datasets.load("mnist", args.data_dir)
        few = slice(6000 if args.smoke else None)
        self.pool = {name: jnp.asarray(dataset.train[name][few]) for name in ("x", "y")}
        self.test = {name: jnp.asarray(dataset.test[name][few]) for name in ("x", "y")}
        if args.smoke:
            self.test = {name: values[:200] for name, values in self.test.items()}
        self.task = fr.classification(models.MnistNet(10), self.pool["x"][:1])
        self.rounds = args.rounds or (3 if args.smoke else 40)

    def measure(self, run: Run) -> Row:
        method, _, seed = run
        key = jax.random.fold_in(jax.random.key(1), seed)
        data = datasets.dirichlet_truncated(key, {"y": self.pool["y"]}, CLIENTS, 0.5)
        missing = -data.index.shape[1] % 256  # seeds with the same width share a program
        data = data._replace(examples=self.pool, index=jnp.pad(data.index, ((0, 0), (0, missing))))
        history = jax.device_get(dba_program(method, self)(jax.random.key(seed), data, self.test))
        return {
            "round": history["round"].tolist(),
            "main": (1 - history["test_error"]).tolist(),
            "attack success": history["attack_success"].tolist(),
        }


@functools.cache
def dba_program(method: str, dba: DBA) -> Callable[..., Any]:
    task, smoke = dba.task, dba.args.smoke
    bars = attacks.DBA_MNIST_PIXELS
    whole = attacks.pixel_trigger(sum(bars, ()))
    distributed = method == "DBA"
    parts = [attacks.pixel_trigger(bar) for bar in bars] if distributed else [whole]
    attacked = DBA_ROUNDS if distributed else DBA_ROUNDS[-1:]
    if smoke:
        attacked = (2,) * len(parts)
    first, last = attacked[0], attacked[-1]

    def local(rate: float, epochs: int, poison: Any = None) -> fr.Client:
        def decayed(loss: Any, received: jax.Array) -> Any:
            return lambda params, batch: (
                loss(params, batch) + 5e-4 / 2 * jnp.sum(jnp.square(params))
            )

        return fr.local_sgd(
            task, rate, 64, epochs=1 if smoke else epochs, momentum=0.9, poison=poison,
            objective=decayed,
        )  # fmt: skip

    client = local(0.05, 10, attacks.distributed(parts, DBA_TARGET, 20))
    honest = fr.Simulation(
        task,
        local(0.1, 1),
        aggregators.mean(),
        clients_per_round=10,
        server_optimizer=optax.sgd(0.1),
        client_chunk=1 if jax.default_backend() == "cpu" else None,
    )
    now = jnp.array([[r == at for at in attacked] for r in range(first, last + 1)])  # from 1
    attacked_sim = honest._replace(
        attack=attacks.scaling(100.0, client),
        num_malicious=len(attacked),
        clients_per_round=None,
        participants=fr.attackers_selected(CLIENTS, 10, now),
    )

    def one(key: Any, data: Any, test: Any) -> Any:
        evaluate = metrics.together(
            metrics.test_error(task, test),
            metrics.attack_success(task, attacks.triggered(test, whole), DBA_TARGET),
        )
        # In three runs, as attackers who are absent train in vain. Nothing but the model goes on.
        params, histories, done = None, [], 0
        for sim, until in ((honest, first - 1), (attacked_sim, last), (honest, dba.rounds)):
            state, history = fr.run(
                sim,
                jax.random.fold_in(key, done),
                data,
                until - done,
                params=params,
                evaluate=evaluate,
                evaluate_every=1,
            )
            histories.append({**history, "round": history["round"] + done})
            params, done = state.params, until
        names = ("round", "test_error", "attack_success")
        return {name: jnp.concatenate([h[name] for h in histories]) for name in names}

    return jax.jit(one)


def dba_rows(run: Run, result: Row) -> list[Row]:
    method, _, seed = run
    return [
        {"line": method, "round": at, "measure": measure, "value": value, "seed": seed}
        for measure in ("attack success", "main")
        for at, value in zip(result["round"], result[measure], strict=True)
        if at in (5, 10, *DBA_ROUNDS)
        or (at > DBA_ROUNDS[-1] and at % 5 == 0)
        or at == result["round"][-1]
    ]


# --- All ---------------------------------------------------------------------------------------------


def main(args: Args) -> None:
    """Run what is missing of one figure, then print and draw it."""
    if args.points is not None and args.figure != "detection":
        raise ValueError("--points are the shares of attackers of --figure detection")
    if args.figure == "dba" and args.rounds is not None and args.rounds <= DBA_ROUNDS[-1]:
        raise ValueError(
            f"--figure dba attacks until round {DBA_ROUNDS[-1]}: --rounds must be larger, "
            f"got {args.rounds}"
        )
    if any(not 0 < share < 1 for share in args.points or ()):
        raise ValueError(f"--points are shares in (0, 1) of the clients, got {args.points}")
    if args.figure != "detection" and args.auror_threshold != Args.auror_threshold:
        raise ValueError("--auror-threshold is of a check in --figure detection")
    if args.figure in ("clipping", "noise") and dp_rounds(args) < 2:
        raise ValueError(f"--rounds needs one before the attack: at least 2, got {args.rounds}")
    folder = args.out / (args.figure + ("-smoke" if args.smoke else ""))
    some = slice(0, None, 4 if args.smoke else 1)
    if args.figure == "detection":
        points = [(m, x) for m in ATTACKS for x in args.points or SHARES[some]]
    elif args.figure in ("clipping", "noise"):
        values = BOUNDS if args.figure == "clipping" else NOISES
        points = [(args.figure, x) for x in values[some]]
    else:
        points = [("DBA", 0.0), ("centralised", 0.0)][: 1 if args.smoke else 2]
    runs: list[Run] = [
        (*point, seed) for point in points for seed in range(1 if args.smoke else args.seeds)
    ]
    dba = args.figure == "dba"
    inputs: Any = DBA(args) if dba else Everything(args, args.out)
    settings = {
        "rounds": inputs.rounds if dba else (inputs.rounds_before, dp_rounds(args)),
        "auror": args.auror_threshold,
        "smoke": args.smoke,
        "constants": str(
            (AUDITING_DROP, SIMILAR, DEVIATIONS, USUAL_BOUND, USUAL_NOISE, DP_SHARE, MNIST)
        ),
    }
    provenance = report.provenance()
    mine = set(my_share(runs, args.cell))
    rows: list[Row] = []
    for run in tqdm(runs, unit="run"):
        method, x, seed = run
        name, of_run = f"{method}-{x:g}-{seed}", settings | {"run": list(run)}
        result = report.load_cell(folder, name, of_run)
        if result is None and run in mine:
            started = time.perf_counter()
            if dba:
                result = inputs.measure(run)
            else:
                measure = detect if args.figure == "detection" else privately
                result = jax.tree.map(lambda leaf: np.asarray(leaf).tolist(), measure(run, inputs))
            result |= {"seconds": time.perf_counter() - started} | provenance
            report.save_cell(folder, name, of_run, result)
        if result is not None:
            make = {"detection": detection_rows, "dba": dba_rows}.get(args.figure, dp_rows)
            rows += [row | origin(result) for row in make(run, result)]
    if share_is_done(args.cell, folder):
        return
    if args.figure == "detection":  # a row of panels per measure, a column per attack
        rows.sort(key=lambda row: PANELS.index(row["measure"].partition(",")[0]))

    about = {
        "detection": (
            "share",
            "share of attackers",
            "Bagdasaryan et al. (2020), figure 9 with more checks",
        ),
        "clipping": (
            "clipping",
            "clipping bound S",
            "Bagdasaryan et al. (2020), figure 12, clipping",
        ),
        "noise": ("noise", "noise sigma", "Bagdasaryan et al. (2020), figure 12, noise"),
        "dba": ("round", "round", "Xie et al. (2020), the distributed backdoor attack"),
    }[args.figure]
    text = report.write_sweep(
        folder,
        rows,
        x=about[0],
        xlabel=about[1],
        panels="measure",
        lines="line",
        value="value",
        metric="accuracy or share" if args.figure == "detection" else "accuracy",
        log_x=args.figure == "detection",
        title=f"{about[2]}, on MNIST",
        command=command_line("backdoor_defences.py", args),
        notes=describe(args, rows),
    )
    print(f"\n{text}\nrows, table and figure are in {folder}")


def describe(args: Args, rows: list[Row]) -> str:
    if args.figure == "detection":
        bounds = [row["bound"] for row in rows]
        return (
            f"One round after {args.rounds or MNIST.rounds_before} without attack, 100 clients, all of "
            f"them in the round; S is the honest updates' median norm, {min(bounds):.3g} to "
            f"{max(bounds):.3g}. Auror: indicative from {args.auror_threshold:g} on; auditing: accuracy "
            f"{AUDITING_DROP:g} below the median's; pairwise cosine above {SIMILAR:g}; cosine to the "
            f"model {DEVIATIONS:g} deviations from the median's."
        )
    if args.figure in ("clipping", "noise"):
        rounds = dp_rounds(args)
        spent = []
        for x in BOUNDS if args.figure == "clipping" else NOISES:
            bound, noise = dp_values(args.figure, x)
            epsilon = aggregators.privacy_spent(bound, noise, CLIENTS, CLIENTS, rounds, DELTA)
            spent.append(f"{epsilon:.3g} at S = {bound:g}, sigma = {noise:g}")
        return (
            f"{rounds} rounds of training with participant-level DP, 100 clients, all of them in each "
            f"round; {DP_SHARE:.0%} of them attack in the last one with updates of norm S; before: "
            f"without that round. epsilon for delta = {DELTA:g}: {'; '.join(spent)}."
        )
    return (
        "MnistNet, 100 clients, 10 in a round, Dirichlet 0.5, attackers in rounds 12, 14, 16, 18 (DBA) "
        "or 18 (centralised); scale 100, server step 0.1."
    )


if __name__ == "__main__":
    use_compilation_cache()
    main(tyro.cli(Args))
