"""Rounds per second of whole runs, against ByzFL and against loops over clients in PyTorch.

  python -m venv other && other/bin/pip install byzfl==0.0.11           an environment for them
  python experiments/bench_rounds.py --other-python other/bin/python --out results/bench_rounds.json

Everything that is compared trains on the same examples (MNIST, or noise of its shape where MNIST is
not there), with 100 clients of 600 examples and batches of 32, and runs in turn, ``--repeats`` times,
so that a change of the machine's speed meets all alike; the first turn, which compiles, does not count.
Times are milliseconds per round: the median of the repeats, their minimum and maximum.

- ``lr``: logistic regression, one step, trimmed mean with f = 20. Ours on one device, and with the
  clients over all processor cores (``mesh``: one CPU device per core).
- ``dnn``: Fang et al.'s network (266,060 parameters), one step, trimmed mean.
- ``steps``: the same network, FedAvg with 5 local steps. Weights differ between clients after the first
  one; "per step" compares with one step.
- ``seeds``: ``lr`` with 10 seeds in one program against 10 runs one after the other.
- ``memory``: what XLA allocates for a round beside data and model, in units of the n x d matrix.

"faster": the first way's median over this one's.
"""

from __future__ import annotations

import dataclasses
import json
import os
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
import tyro

import fedjax_robust as fr
from fedjax_robust import aggregators, models, report, simulate
from fedjax_robust.data import load

Row = dict[str, Any]
CLIENTS, EXAMPLES, F = 100, 600, 20


@dataclasses.dataclass(frozen=True)
class Settings:
    workloads: tuple[Literal["lr", "dnn", "steps", "seeds", "memory"], ...] = (
        "lr",
        "dnn",
        "steps",
        "seeds",
        "memory",
    )
    other_python: Path | None = None
    """Python interpreter that has torch and byzfl; without it only ours are measured."""
    other_threads: tuple[int, ...] = (1, 2)
    """Threads for PyTorch; each number is a row of its own."""
    repeats: int = 7
    rounds: int = 50
    """Rounds of logistic regression per repeat; the network gets a tenth."""
    data_dir: Path | None = None
    """Folder of the data sets; default FEDJAX_ROBUST_DATA, else where TFDS keeps its own."""
    out: Path | None = None
    """JSON file for the rows and for what they were measured with."""
    smoke: bool = False
    """One repeat of two rounds with 10 clients, to see that everything works."""


def examples(settings: Settings) -> tuple[dict[str, np.ndarray], str]:
    try:
        train = load("mnist", data_dir=settings.data_dir).train
        return {"x": np.asarray(train["x"]), "y": np.asarray(train["y"])}, "MNIST"
    except FileNotFoundError as error:
        print(f"noise instead of MNIST: {str(error).splitlines()[0]}")
        rng = np.random.default_rng(0)
        x = rng.random((CLIENTS * EXAMPLES, 28, 28, 1), np.float32)
        return {"x": x, "y": rng.integers(0, 10, len(x)).astype(np.int32)}, "noise"


class Others:
    """A process that runs the other libraries' rounds when asked to."""

    def __init__(self, python: Path, file: str, f: int, threads: int) -> None:
        script = Path(__file__).with_name("bench_rounds_torch.py")
        device = "cuda" if jax.default_backend() == "gpu" else "cpu"
        self.process = subprocess.Popen(
            [str(python), str(script), file, device, "32", str(f), str(threads)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self.versions = json.loads(self.answer())

    def answer(self) -> str:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            raise RuntimeError("the process with the other libraries has died; see its error above")
        return line

    def __call__(self, workload: str, rounds: int) -> float:
        assert self.process.stdin is not None
        self.process.stdin.write(f"{workload} {rounds}\n")
        self.process.stdin.flush()
        return float(self.answer())


def ours(sim: fr.Simulation, data: fr.FederatedData, **kwargs: Any) -> Callable[[int], float]:
    """Seconds for so many rounds; the model stays on the device between calls."""
    keys = kwargs.pop("keys", jax.random.key(0))

    def seconds(rounds: int) -> float:
        start = time.perf_counter()
        state, _ = fr.run(sim, keys, data, rounds, **kwargs)
        jax.block_until_ready(state.params)
        return time.perf_counter() - start

    return seconds


def compare(ways: dict[str, tuple[Callable[[int], float], int]], repeats: int) -> dict[str, Row]:
    """ways: name -> (seconds for so many rounds, rounds per repeat). Milliseconds per round."""
    times: dict[str, list[float]] = {name: [] for name in ways}
    for repeat in range(repeats + 1):
        for name, (seconds, rounds) in ways.items():
            elapsed = seconds(rounds)
            if repeat > 0:
                times[name].append(1e3 * elapsed / rounds)
    return {
        name: {"ms": statistics.median(t), "min": min(t), "max": max(t)}
        for name, t in times.items()
    }


def rows_of(what: str, times: dict[str, Row]) -> list[Row]:
    first = next(iter(times.values()))["ms"]
    return [
        {"what": what, "how": name, **row, "rounds/s": 1e3 / row["ms"], "faster": first / row["ms"]}
        for name, row in times.items()
    ]


def main(settings: Settings) -> list[Row]:
    num_clients = 10 if settings.smoke else CLIENTS
    f = F if num_clients > 2 * F else 2
    repeats = 1 if settings.smoke else settings.repeats
    rounds = 2 if settings.smoke else settings.rounds
    few = max(rounds // 10, 1)
    pool, source = examples(settings)
    order = np.random.default_rng(0).permutation(len(pool["y"]))
    index = order[: num_clients * EXAMPLES].reshape(num_clients, EXAMPLES).astype(np.int32)
    data = fr.FederatedData(
        jax.tree.map(jnp.asarray, pool),
        jnp.asarray(index),
        jnp.full(num_clients, EXAMPLES, jnp.int32),
    )
    lr_task = fr.classification(models.SoftmaxRegression(10), data.examples["x"][:1])
    dnn_task = fr.classification(models.FangDNN(10), data.examples["x"][:1])
    lr = fr.Simulation(lr_task, fr.local_sgd(lr_task, 0.1, 32), aggregators.trimmed_mean(f))
    chunk = 1 if jax.default_backend() == "cpu" else None
    dnn = fr.Simulation(
        dnn_task,
        fr.local_sgd(dnn_task, 0.01, 32),
        aggregators.trimmed_mean(f),
        client_chunk=chunk,
    )
    one_step = dnn._replace(aggregator=aggregators.mean())
    five_steps = one_step._replace(client=fr.local_sgd(dnn_task, 0.01, 32, steps=5))

    mesh = jax.make_mesh((len(jax.devices()),), ("clients",)) if len(jax.devices()) > 1 else None
    on_all = f"ours, {len(jax.devices())} devices"
    others: dict[int, Others] = {}
    facts: Row = {**report.provenance(), "cpus": os.cpu_count(), "data": source}
    rows: list[Row] = []
    with tempfile.TemporaryDirectory() as folder:
        if settings.other_python is not None:
            file = f"{folder}/examples.npz"
            np.savez(file, **pool, index=index)
            for threads in settings.other_threads:
                others[threads] = Others(settings.other_python, file, f, threads)
                facts["torch"] = others[threads].versions["torch"]

        def theirs(
            workload: str, label: str, number: int
        ) -> dict[str, tuple[Callable[[int], float], int]]:
            return {
                f"{label}, {threads} threads": (lambda n, o=o: o(workload, n), number)
                for threads, o in others.items()
            }

        def with_mesh(sim: fr.Simulation, number: int) -> dict:
            return {on_all: (ours(sim, data, mesh=mesh), number)} if mesh else {}

        if "lr" in settings.workloads:
            ways = theirs("byzfl", "ByzFL", few)
            ways |= theirs("lr", "PyTorch loop", few)
            ways |= {"ours": (ours(lr, data), rounds)} | with_mesh(lr, rounds)
            rows += rows_of("lr, trimmed mean", compare(ways, repeats))
        if "dnn" in settings.workloads:
            ways = theirs("dnn", "PyTorch loop", max(few // 5, 1))
            ways |= {"ours": (ours(dnn, data), few)} | with_mesh(dnn, few)
            rows += rows_of("dnn, trimmed mean", compare(ways, min(repeats, 5)))
        if "steps" in settings.workloads:
            ways = theirs("dnn-5-steps", "PyTorch loop", 1)
            ways |= {"ours": (ours(five_steps, data), max(few // 5, 1))}
            ways |= {"ours, one step": (ours(one_step, data), few)}
            times = compare(ways, min(repeats, 5))
            rows += rows_of("dnn, mean, 5 steps", times)
            ratio = times["ours"]["ms"] / 5 / times["ours, one step"]["ms"]
            rows.append(
                {"what": "dnn, mean", "how": "5 steps, per step / one step", "ratio": ratio}
            )
        if "seeds" in settings.workloads:
            keys = jax.random.split(jax.random.key(0), 10)
            one = ours(lr, data)
            ways = {
                "10 runs": (lambda n: sum(one(n) for _ in range(10)), rounds),
                "10 seeds in one program": (ours(lr, data, keys=keys), rounds),
            }
            rows += rows_of("lr, 10 seeds", compare(ways, min(repeats, 5)))
        if "memory" in settings.workloads:
            for name, sim in [("lr", lr), ("dnn", dnn)]:
                rows.append({"what": f"{name}, memory", "how": "ours", **memory(sim, data)})
    for process in others.values():
        process.process.kill()
    print(report.markdown_table(rows))
    if settings.out is not None:
        settings.out.parent.mkdir(parents=True, exist_ok=True)
        content = {"settings": dataclasses.asdict(settings), "measured_with": facts, "rows": rows}
        settings.out.write_text(json.dumps(content, indent=1, default=str) + "\n")
    return rows


def memory(sim: fr.Simulation, data: fr.FederatedData) -> Row:
    """What a compiled round allocates besides its arguments and results."""
    state = simulate._init(sim, None, None, jax.random.key(0), data, None)
    nothing = jax.tree_util.Partial(simulate._evaluate_nothing)
    program = simulate._block_jit.lower(sim, None, None, 1, 1, nothing, state, data).compile()
    used = program.memory_analysis().temp_size_in_bytes
    matrix = 4 * data.index.shape[0] * state.params.shape[0]
    return {"MiB": used / 2**20, "times n x d": used / matrix}


if __name__ == "__main__":
    # One CPU device per core, which is how JAX shares a round between cores; set before JAX starts.
    if jax.config.jax_num_cpu_devices < 1:
        jax.config.update("jax_num_cpu_devices", os.cpu_count() or 1)
    main(tyro.cli(Settings, description=__doc__))
