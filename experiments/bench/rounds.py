"""Rounds per second of whole runs, against ByzFL and against loops over clients in PyTorch.

  python -m venv other && other/bin/pip install byzfl==0.0.11           an environment for them
  python experiments/bench/rounds.py --other-python other/bin/python --out results/bench/rounds.json

Everything that is compared trains on the same examples (MNIST, or noise of its shape where MNIST is
not there), with 100 clients of 600 examples and batches of 32. Times are milliseconds per round; see
``bench_timing.py``.

- ``lr``: logistic regression, one step, trimmed mean with f = 20. Ours on one device, and with the
  clients over all processor cores (``mesh``: one CPU device per core).
- ``dnn``: Fang et al.'s network (266,060 parameters), one step, trimmed mean.
- ``steps``: the same network, FedAvg with 5 local steps. Weights differ between clients after the first
  one; "per step" compares with one step.
- ``seeds``: ``lr`` with 10 seeds in one program against 10 runs one after the other.
- ``memory``: what XLA allocates for a round beside data and model, in units of the n x d matrix.
"""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, NamedTuple

import bench_timing
import jax
import jax.numpy as jnp
import numpy as np
import tyro
from bench_timing import Row

import fedjax_robust as fr
from fedjax_robust import aggregators, models, report, study
from fedjax_robust.data import load

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
        script = Path(__file__).with_name("rounds_torch.py")
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


Rounds = tuple[Callable[[int], float], int]
"""Seconds for so many rounds, and how many to run at a time."""


def ours(
    sim: fr.Simulation, data: fr.FederatedData, keys: jax.Array | None = None, mesh: Any = None
) -> Callable[[int], float]:
    """Seconds for so many rounds; the model stays on the device between calls."""
    keys = jax.random.key(0) if keys is None else keys
    return lambda number: bench_timing.seconds(
        lambda: fr.run(sim, keys, data, number, mesh=mesh)[0].params
    )()


def compare(what: str, ways: dict[str, Rounds], repeats: int) -> list[Row]:
    """A row for each way; "faster": the first way's median over this one's."""
    timed = {name: (lambda run=run, n=n: run(n) / n) for name, (run, n) in ways.items()}
    rows = [
        {"what": what, "how": name, **bench_timing.summary(times)}
        for name, times in bench_timing.in_turn(timed, repeats).items()
    ]
    first = rows[0]["ms"]
    return [row | {"rounds/s": 1e3 / row["ms"], "faster": first / row["ms"]} for row in rows]


class Problem(NamedTuple):
    """What is timed."""

    data: fr.FederatedData
    lr: fr.Simulation
    dnn: fr.Simulation
    others: dict[int, Others]
    """by their threads"""
    repeats: int
    rounds: int
    """of logistic regression at a time"""

    @property
    def few(self) -> int:
        return max(self.rounds // 10, 1)

    def theirs(self, workload: str, label: str, number: int) -> dict[str, Rounds]:
        return {
            f"{label}, {threads} threads": (lambda n, o=o: o(workload, n), number)
            for threads, o in self.others.items()
        }

    def ours(self, sim: fr.Simulation, number: int) -> dict[str, Rounds]:
        ways = {"ours": (ours(sim, self.data), number)}
        devices = len(jax.devices())
        if devices > 1:
            mesh = jax.make_mesh((devices,), ("clients",))
            ways[f"ours, {devices} devices"] = (ours(sim, self.data, mesh=mesh), number)
        return ways


def lr(of: Problem) -> list[Row]:
    ways = of.theirs("byzfl", "ByzFL", of.few) | of.theirs("lr", "PyTorch loop", of.few)
    return compare("lr, trimmed mean", ways | of.ours(of.lr, of.rounds), of.repeats)


def dnn(of: Problem) -> list[Row]:
    ways = of.theirs("dnn", "PyTorch loop", max(of.few // 5, 1))
    return compare("dnn, trimmed mean", ways | of.ours(of.dnn, of.few), min(of.repeats, 5))


def steps(of: Problem) -> list[Row]:
    one = of.dnn._replace(aggregator=aggregators.mean())
    five = one._replace(client=fr.local_sgd(one.task, 0.01, 32, steps=5))
    ways = of.theirs("dnn-5-steps", "PyTorch loop", 1)
    ways |= of.ours(five, max(of.few // 5, 1))
    ways |= {"ours, one step": (ours(one, of.data), of.few)}
    rows = compare("dnn, mean, 5 steps", ways, min(of.repeats, 5))
    ms = {row["how"]: row["ms"] for row in rows}
    ratio = ms["ours"] / 5 / ms["ours, one step"]
    return [*rows, {"what": "dnn, mean", "how": "5 steps, per step / one step", "ratio": ratio}]


def seeds(of: Problem) -> list[Row]:
    keys = jax.random.split(jax.random.key(0), 10)
    one = ours(of.lr, of.data)
    ways: dict[str, Rounds] = {
        "10 runs": (lambda n: sum(one(n) for _ in range(10)), of.rounds),
        "10 seeds in one program": (ours(of.lr, of.data, keys=keys), of.rounds),
    }
    return compare("lr, 10 seeds", ways, min(of.repeats, 5))


def memory(of: Problem) -> list[Row]:
    return [
        {"what": f"{name}, memory", "how": "ours", **bench_timing.memory_of_a_round(sim, of.data)}
        for name, sim in (("lr", of.lr), ("dnn", of.dnn))
    ]


WORKLOADS = {"lr": lr, "dnn": dnn, "steps": steps, "seeds": seeds, "memory": memory}


def main(settings: Settings) -> list[Row]:
    clients = 10 if settings.smoke else CLIENTS
    f = F if clients > 2 * F else 2
    pool, source = examples(settings)
    order = np.random.default_rng(0).permutation(len(pool["y"]))
    index = order[: clients * EXAMPLES].reshape(clients, EXAMPLES).astype(np.int32)
    images = jax.tree.map(jnp.asarray, pool)
    data = fr.FederatedData(images, jnp.asarray(index), jnp.full(clients, EXAMPLES, jnp.int32))

    def simulation(module: Any, step: float, chunk: int | None) -> fr.Simulation:
        task = fr.classification(module, images["x"][:1])
        client = fr.local_sgd(task, step, 32)
        return fr.Simulation(task, client, aggregators.trimmed_mean(f), client_chunk=chunk)

    versions: Row = {}
    others: dict[int, Others] = {}
    with tempfile.TemporaryDirectory() as folder:
        if settings.other_python is not None:
            file = f"{folder}/examples.npz"
            np.savez(file, **pool, index=index)
            for threads in settings.other_threads:
                others[threads] = Others(settings.other_python, file, f, threads)
                versions |= others[threads].versions
        of = Problem(
            data,
            simulation(models.SoftmaxRegression(10), 0.1, None),
            simulation(models.FangDNN(10), 0.01, study.client_chunk(None)),
            others,
            1 if settings.smoke else settings.repeats,
            2 if settings.smoke else settings.rounds,
        )
        rows = [row for name in settings.workloads for row in WORKLOADS[name](of)]
    for process in others.values():
        process.process.kill()
    print(report.markdown_table(rows))
    versions.pop("threads", None)
    bench_timing.write(settings.out, settings, rows, data=source, other_versions=versions)
    return rows


if __name__ == "__main__":
    # One CPU device per core, which is how JAX shares a round between cores; set before JAX starts.
    if jax.config.jax_num_cpu_devices < 1:
        jax.config.update("jax_num_cpu_devices", os.cpu_count() or 1)
    main(tyro.cli(Settings, description=__doc__))
