"""What detects or weakens a backdoor: Figures 9 and 12 of Bagdasaryan et al. (2020).

  python experiments/bagdasaryan2020/defences.py --figure detection   9    checks, share of attackers
  python experiments/bagdasaryan2020/defences.py --figure clipping    12   clipping, with a little noise
  python experiments/bagdasaryan2020/defences.py --figure noise       12   noise, with a generous bound

On the reduced setting of backdoor_setting.py (MNIST, a dense network, leaning ones as backdoor), with all
100 clients in each round and plain averaging, so that gamma = 100.

*detection*: one round of attack. *Replacement* divides the scaled update among the attackers (equal
parts), *orthogonal* into parts without common parameters, *train-and-scale* sends as much as an honest
update's norm allows, S, the median of the honest ones. Each check sees the same updates; shown are
backdoor and main accuracy of the model that it lets through, how many attackers it caught, and how many
honest clients it threw out.

*clipping* and *noise*: training from scratch with ``participant_dp``, and in the last round
train-and-scale by 20 % of the clients, who know S (5 %, the paper's, do nothing here; see *detection*).
The privacy that is spent is ``privacy.privacy_spent``'s: neighbours differ in one client's data, all
100 clients are in each round (no amplification by sampling), delta = 1e-5. The paper has 1,000
participants, sigma = 0.01 and S = 15; here it is an average of 100.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from backdoor_setting import GAMMA, MNIST, Inputs, attackers_client, honest_client, smaller

import fedjax_robust as fr
from fedjax_robust import aggregators, attacks, metrics, privacy, report, study
from fedjax_robust.kernels.norms import direction_and_length
from fedjax_robust.types import Received

BACKDOOR = MNIST.backdoors[0]
SHARES = (0.01, 0.02, 0.05, 0.1, 0.2)
BOUNDS = (0.2, 0.5, 1.0, 2.0, 5.0)
NOISES = (0.0, 0.01, 0.03, 0.1)
USUAL_BOUND, USUAL_NOISE = 5.0, 0.003
DP_SHARE, DELTA = 0.2, 1e-5
AUDITING_DROP, SIMILAR, DEVIATIONS = 0.1, 0.9, 3.0
SERVERS_IMAGES = 2000
"""The last test images, on which the server audits and accuracy is not measured."""
ATTACKS = ("replacement", "orthogonal", "train-and-scale")
PANELS = ("backdoor", "main", "caught", "honest rejected")
Row = dict[str, Any]


@dataclasses.dataclass
class Args(study.Args):
    """Checks that attackers evade, noise that they do not. Accuracies are fractions."""

    figure: Literal["detection", "clipping", "noise"] = "detection"
    """What is measured."""
    seeds: int = 3
    """Trials with other splits, models, held-out images and batches."""
    points: tuple[float, ...] = ()
    """Shares of attackers (detection) instead of 1 to 20 %."""
    rounds: int | None = None
    """Rounds of training before the attack (detection: 300), or with DP (30)."""
    auror_threshold: float = 0.05
    """Distance of the two means from which on a coordinate is indicative."""
    out: Path = Path("results/bagdasaryan2020/defences")
    """Where results go."""


def evaluation(inputs: Inputs, held_out: jax.Array, test: Any) -> fr.Evaluate:
    return metrics.together(
        metrics.test_error(inputs.task, test),
        metrics.backdoor_accuracy(inputs.task, held_out, MNIST.target),
    )


def given(inputs: Inputs, seed: int) -> tuple[Any, ...]:
    """What every program takes first: key, clients' data, the attacker's, backdoor, held-out images."""
    return (
        jax.random.key(seed),
        inputs.federated(seed),
        inputs.own(inputs.setting.benign_images, seed),
        *inputs.backdoor(BACKDOOR, seed),
    )


# --- Figure 9 ------------------------------------------------------------------------------------


def checks(threshold: float, inputs: Inputs, smoke: bool) -> dict[str, fr.Aggregator]:
    """Each is followed by the mean."""
    own = {
        name: jnp.asarray(inputs.dataset.test[name][-SERVERS_IMAGES:][: 300 if smoke else None])
        for name in ("x", "y")
    }

    def accuracy(params: jax.Array) -> jax.Array:
        return jnp.mean(metrics.predict(inputs.task, params, own["x"]) == own["y"])

    return {
        "no check": aggregators.mean(),
        "Auror": aggregators.auror(threshold),
        "accuracy auditing": aggregators.accuracy_auditing(accuracy, AUDITING_DROP),
        "pairwise cosine": aggregators.sybil_check(SIMILAR),
        "cosine to model": aggregators.cosine_to_model(DEVIATIONS),
    }


def every_check(rules: dict[str, fr.Aggregator]) -> fr.Aggregator:
    """The mean; reports what each rule would have made of the same updates, and their norms."""

    def aggregate(received: Received, state: Any) -> tuple[jax.Array, Any, dict[str, Any]]:
        found: dict[str, Any] = {"norms": direction_and_length(received.updates)[1]}
        for name, rule in rules.items():
            result, _, info = rule.aggregate(received, ())
            found[f"{name}: model"] = received.params + result
            everyone = jnp.ones(len(received.updates), bool)
            found[f"{name}: selected"] = info.get("selected", everyone)
        return rules["no check"].aggregate(received, state)[0], state, found

    return fr.Aggregator(rules["no check"].init, aggregate)


def detection_of(inputs: Inputs, smoke: bool) -> Callable[[study.Settings], study.Compute]:
    task = inputs.task

    def program(cell: study.Settings) -> study.Compute:
        rules = checks(cell["auror_threshold"], inputs, smoke)

        @jax.jit
        def attacked(
            key: Any, data: Any, own: Any, backdoor: Any, held_out: Any, test: Any, params: Any,
            bound: Any,
        ) -> dict[str, Any]:  # fmt: skip
            divide = {
                "replacement": attacks.divisions.equal_parts(GAMMA),
                "orthogonal": attacks.divisions.orthogonal_parts(GAMMA),
                "train-and-scale": attacks.divisions.norm_bounded(bound),
            }[cell["method"]]
            client = attackers_client(MNIST, task, [backdoor])
            sim = fr.Simulation(
                task,
                honest_client(MNIST, task),
                every_check(rules),
                attacks.model_replacement(client, own, divide),
                num_malicious=cell["attackers"],
                client_chunk=inputs.client_chunk,
            )
            _, info = fr.step(sim, fr.init(sim, key, data, params), data)
            evaluate, malicious = evaluation(inputs, held_out, test), info["malicious"]
            found: dict[str, Any] = {"norms": info["norms"], "checks": {}}
            for name in rules:
                selected = info[f"{name}: selected"]
                after = evaluate(info[f"{name}: model"])
                found["checks"][name] = {
                    "backdoor": after["backdoor_accuracy"],
                    "main": 1 - after["test_error"],
                    "caught": metrics.detection(selected, malicious)["recall"],
                    "honest rejected": jnp.sum(~selected & ~malicious) / jnp.sum(~malicious),
                }
            return found

        def compute(runs: Sequence[study.Settings]) -> Iterable[study.Result]:
            test = inputs.test
            if len(test["y"]) > SERVERS_IMAGES:
                test = {name: values[:-SERVERS_IMAGES] for name, values in test.items()}
            for run in runs:
                before = inputs.before(run["rounds_before"], run["seed"])
                numbers = (*given(inputs, run["seed"]), test, before)
                # The honest clients' norms do not depend on the bound: a first call finds them.
                honest = attacked(*numbers, jnp.float32(1))["norms"][cell["attackers"] :]
                bound = float(np.median(np.asarray(honest)))
                found = jax.device_get(attacked(*numbers, jnp.float32(bound)))
                yield {"checks": found["checks"], "bound": bound}

        return compute

    return program


def detection_rows(runs: list[Row]) -> list[Row]:
    """A row of panels per measure, a column per attack."""
    rows = [
        {"line": check, **rest, "measure": f"{panel}, {rest['method']}", "value": values[panel]}
        for run, rest in zip(runs, study.without(runs, "checks"), strict=True)
        for check, values in sorted(run["checks"].items())
        for panel in PANELS
    ]
    return sorted(rows, key=lambda row: PANELS.index(row["measure"].partition(",")[0]))


# --- Figure 12 -----------------------------------------------------------------------------------


def private_of(inputs: Inputs) -> Callable[[study.Settings], study.Compute]:
    task = inputs.task

    def program(cell: study.Settings) -> study.Compute:
        @jax.jit
        def attacked(
            key: Any, data: Any, own: Any, backdoor: Any, held_out: Any, test: Any, bound: Any,
            noise: Any,
        ) -> dict[str, Any]:  # fmt: skip
            client = attackers_client(MNIST, task, [backdoor])
            peace = fr.Simulation(
                task,
                honest_client(MNIST, task),
                privacy.participant_dp(bound, noise),
                client_chunk=inputs.client_chunk,
            )
            attack = attacks.model_replacement(client, own, attacks.divisions.norm_bounded(bound))
            war = peace._replace(attack=attack, num_malicious=cell["attackers"])
            evaluate = evaluation(inputs, held_out, test)
            state, _ = fr.run(peace, key, data, cell["rounds"] - 1)
            before = evaluate(state.params)
            start = fr.init(war, jax.random.fold_in(key, 1), data, state.params)
            after = evaluate(fr.step(war, start, data)[0].params)
            return {
                "backdoor": after["backdoor_accuracy"],
                "main": 1 - after["test_error"],
                "main before": 1 - before["test_error"],
                "backdoor before": before["backdoor_accuracy"],
            }

        def compute(runs: Sequence[study.Settings]) -> Iterable[study.Result]:
            for run in runs:
                numbers = (jnp.float32(run["clipping"]), jnp.float32(run["noise"]))
                yield jax.device_get(attacked(*given(inputs, run["seed"]), inputs.test, *numbers))

        return compute

    return program


def private_rows(runs: list[Row], figure: str) -> list[Row]:
    measures = ("backdoor", "main", "main before")
    shared = study.without(runs, *measures, "backdoor before")
    return [
        {"line": measure, **rest, "measure": figure, "value": run[measure]}
        for run, rest in zip(runs, shared, strict=True)
        for measure in measures
    ]


# --- All -----------------------------------------------------------------------------------------


def cells_of(args: Args, inputs: Inputs) -> list[dict[str, Any]]:
    """clipping: the bound S; noise: sigma."""
    clients, some = MNIST.clients, slice(0, None, 4 if args.smoke else 1)
    common: dict[str, Any] = {"figure": args.figure, **inputs.settings, "participants": clients}
    if args.figure == "detection":
        common |= {
            "backdoor": BACKDOOR,
            "rounds_before": args.rounds or inputs.setting.rounds_before,
            "gamma": GAMMA,
            "auror_threshold": args.auror_threshold,
            "auditing_drop": AUDITING_DROP,
            "similar": SIMILAR,
            "deviations": DEVIATIONS,
            "servers_images": SERVERS_IMAGES,
        }
        return [
            {**common, "method": m, "share": x, "attackers": max(round(x * clients), 1)}
            for m in ATTACKS
            for x in args.points or SHARES[some]
        ]
    common |= {"backdoor": BACKDOOR, "rounds": args.rounds or (2 if args.smoke else 30)}
    common |= {"share": DP_SHARE, "attackers": round(DP_SHARE * clients)}
    if args.figure == "clipping":
        return [{**common, "clipping": x, "noise": USUAL_NOISE} for x in BOUNDS[some]]
    return [{**common, "clipping": USUAL_BOUND, "noise": x} for x in NOISES[some]]


def main(args: Args) -> None:
    """Run what is missing of one figure, then print and draw it."""
    detection = args.figure == "detection"
    if args.points and not detection:
        raise ValueError("--points are the shares of attackers of --figure detection")
    if any(not 0 < share < 1 for share in args.points):
        raise ValueError(f"--points are shares in (0, 1) of the clients, got {args.points}")
    if not detection and args.auror_threshold != Args.auror_threshold:
        raise ValueError("--auror-threshold is of a check in --figure detection")
    if not detection and args.rounds == 1:
        raise ValueError("--rounds needs one before the attack: at least 2, got 1")
    end = "-smoke" if args.smoke else ""
    folder = args.out / f"{args.figure}{end}"
    at = smaller(MNIST) if args.smoke else MNIST
    inputs = Inputs(at, args.out / "before" / f"mnist{end}", args.data_dir)
    runs = study.run(
        study.Study(
            folder,
            cells_of(args, inputs),
            ("method", "share") if detection else (args.figure,),
            detection_of(inputs, args.smoke) if detection else private_of(inputs),
            range(1 if args.smoke else args.seeds),
            varies=("share",) if detection else ("clipping", "noise"),
            values=("bound",) if detection else ("backdoor", "main", "main before"),
        ),
        args.cell,
    )
    if runs is None:
        return
    rows = detection_rows(runs) if detection else private_rows(runs, args.figure)
    x, xlabel, title = {
        "detection": ("share", "share of attackers", "figure 9 with more checks"),
        "clipping": ("clipping", "clipping bound S", "figure 12, clipping"),
        "noise": ("noise", "noise sigma", "figure 12, noise"),
    }[args.figure]
    text = report.write_sweep(
        folder,
        rows,
        x=x,
        xlabel=xlabel,
        panels="measure",
        lines="line",
        value="value",
        metric="accuracy or share" if detection else "accuracy",
        log_x=detection,
        title=f"Bagdasaryan et al. (2020), {title}, on MNIST",
        command=study.command(__file__, args),
        notes=describe_detection(runs) if detection else describe_privacy(runs),
        settings=study.settings(args, rows),
    )
    print(f"\n{text}\nrows, table and figure are in {folder}")


def describe_detection(runs: list[Row]) -> str:
    first, bounds = runs[0], [run["bound"] for run in runs]
    return (
        f"One round after {first['rounds_before']} without attack, {MNIST.clients} clients, all of "
        f"them in the round; S is the honest updates' median norm, {min(bounds):.3g} to "
        f"{max(bounds):.3g}. Auror: indicative from {first['auror_threshold']:g} on; auditing: accuracy "
        f"{AUDITING_DROP:g} below the median's; pairwise cosine above {SIMILAR:g}; cosine to the "
        f"model {DEVIATIONS:g} deviations from the median's."
    )


def describe_privacy(runs: list[Row]) -> str:
    rounds, m = runs[0]["rounds"], MNIST.clients
    spent = []
    for bound, noise in dict.fromkeys((run["clipping"], run["noise"]) for run in runs):
        epsilon = privacy.privacy_spent(bound, noise, m, m, rounds, DELTA)
        spent.append(f"{epsilon:.4g} at S = {bound:g}, sigma = {noise:g}")
    return (
        f"{rounds} rounds of training with participant-level DP, {m} clients, all of them in each "
        f"round; {DP_SHARE:.0%} of them attack in the last one with updates of norm S; before: "
        f"without that round. epsilon for delta = {DELTA:g}, neighbours that differ in one client's "
        f"data, no sampling: {'; '.join(spent)}."
    )


if __name__ == "__main__":
    study.main(Args, main)
