"""What a round costs: time and memory against clients n, parameters d, local steps and devices.

  python experiments/bench/cost_model.py --out results/bench

Each rule is timed on matrices of several sizes, and one constant per rule is fitted (the median of time /
work), where the work is the number of matrix entries that the rule touches:

- mean: n d
- median, trimmed mean: n d L(n), L = layers of the sorting network on n rows (28 for n = 100)
- Krum: n d (n / 100 + 1), the Gram matrix and the passes around it

Training is timed for Fang et al.'s network against n and local steps: work n x steps. Memory is what XLA
says that a program allocates beside its arguments, over the size of the matrix. From the constants
follows what one could not measure here: see the table of limits, and mind that a fit on one machine says
nothing about another; run it on yours.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path

import bench_timing
import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import tyro
from bench_timing import Row, milliseconds

import fedjax_robust as fr
from fedjax_robust import aggregators, models, report, study
from fedjax_robust.kernels.sorting import depth


@dataclasses.dataclass(frozen=True)
class Settings:
    clients: tuple[int, ...] = (10, 30, 100, 300)
    parameters: tuple[int, ...] = (10_000, 100_000, 1_000_000)
    largest: float = 1e8
    """Leave out matrices with more entries."""
    steps: tuple[int, ...] = (1, 2, 5)
    """Local steps, with 20 clients."""
    training_clients: tuple[int, ...] = (10, 20, 50)
    repeats: int = 5
    out: Path = Path("results/bench")
    """Where table, figure and rows go."""
    smoke: bool = False
    """Two small matrices, no training; the constants mean nothing."""


def layers(n: int) -> int:
    """Layers of the sorting network that a median of n rows needs."""
    return max(depth(n, max((n - 2) // 2, 0), n // 2 + 1), 1)


RULES: dict[str, tuple[Callable[[int], fr.Aggregator], Callable[[int, float], float]]] = {
    "mean": (lambda n: aggregators.mean(), lambda n, d: n * d),
    "median": (lambda n: aggregators.median(), lambda n, d: n * d * layers(n)),
    "trimmed mean": (
        lambda n: aggregators.trimmed_mean(n // 5),
        lambda n, d: n * d * layers(n),
    ),
    "krum": (lambda n: aggregators.krum(n // 5), lambda n, d: n * d * (n / 100 + 1)),
}


def rule_rows(settings: Settings) -> list[Row]:
    rows = []
    sizes = [(n, d) for n in settings.clients for d in settings.parameters]
    for n, d in [(n, d) for n, d in sizes if n * d <= settings.largest]:
        x = jnp.asarray(np.random.default_rng(0).normal(size=(n, d)), jnp.float32)
        for name, (make, work) in RULES.items():
            program = jax.jit(make(n).__call__).lower(x).compile()
            used = program.memory_analysis().temp_size_in_bytes
            ms = milliseconds(lambda program=program, x=x: program(x), settings.repeats)["ms"]
            rows.append(
                {"what": name, "n": n, "d": d, "ms": ms, "work": work(n, d)}
                | {"memory / matrix": used / (4 * n * d)}
            )
    return rows


def training_rows(settings: Settings) -> list[Row]:
    rows = []
    sizes = [(n, 1) for n in settings.training_clients] + [(20, s) for s in settings.steps[1:]]
    for n, steps in sizes:
        data = bench_timing.noise(n)
        task = fr.classification(models.FangDNN(10), data.examples["x"][:1])
        client = fr.local_sgd(task, 0.01, 32, steps=steps)
        chunk = study.client_chunk(None)
        sim = fr.Simulation(task, client, aggregators.mean(), client_chunk=chunk)
        ms = milliseconds(
            lambda sim=sim, data=data: fr.run(sim, jax.random.key(0), data, 2)[0].params,
            settings.repeats,
        )["ms"]
        row = {"what": "training the DNN", "n": n, "d": 266_060, "steps": steps}
        rows.append(row | {"ms": ms / 2, "work": n * steps})
    return rows


def fitted(rows: list[Row]) -> dict[str, float]:
    """Nanoseconds per unit of work (milliseconds per client and step of the DNN): the median."""
    names = dict.fromkeys(row["what"] for row in rows)
    scale = {name: 1.0 if name.startswith("training") else 1e6 for name in names}
    return {
        name: float(
            np.median([scale[name] * r["ms"] / r["work"] for r in rows if r["what"] == name])
        )
        for name in names
    }


def limits(constants: dict[str, float], memory: dict[str, float]) -> list[Row]:
    """What the constants say of runs that were not made: one aggregation on devices like this one."""
    cases = [
        ("100 clients, 266,060 parameters", 100, 266_060, 1),
        ("a million clients, 1,000 take part, a million parameters", 1000, 1e6, 1),
        ("the same over 8 devices", 1000, 1e6, 8),
        ("100 clients, a billion parameters, 64 devices", 100, 1e9, 64),
    ]
    return [
        {
            "case": case,
            "rule": name,
            "GiB per device": 4 * n * d * (1 + memory[name]) / devices / 2**30,
            "seconds": constants[name] * work(n, d) / devices / 1e9,
        }
        for case, n, d, devices in cases
        for name, (_, work) in RULES.items()
    ]


def draw(path: Path, rows: list[Row], constants: dict[str, float]) -> None:
    names = list(constants)
    figure, axes = plt.subplots(1, len(names), figsize=(3.2 * len(names), 3.2), squeeze=False)
    for ax, name in zip(axes[0], names, strict=True):
        own = sorted((r["work"], r["ms"]) for r in rows if r["what"] == name)
        work, ms = np.array(own).T
        scale = 1.0 if name.startswith("training") else 1e-6
        ax.loglog(work, constants[name] * scale * work, color="0.6", label="fit")
        ax.loglog(work, ms, "o", markersize=4, label="measured")
        unit = "clients x steps" if name.startswith("training") else "entries touched"
        ax.set(title=name, xlabel=f"work ({unit})", ylabel="ms")
        ax.grid(alpha=0.3)
    axes[0][0].legend()
    figure.tight_layout()
    figure.savefig(path, dpi=120)
    plt.close(figure)


def main(settings: Settings) -> dict[str, float]:
    if settings.smoke:
        settings = dataclasses.replace(settings, clients=(8,), parameters=(500, 1000), repeats=2)
    rows = rule_rows(settings)
    if not settings.smoke:
        rows += training_rows(settings)
    constants = fitted(rows)
    largest = max(rows, key=lambda row: row["n"] * row["d"])  # where tiles are small beside it
    memory = {
        row["what"]: row["memory / matrix"]
        for row in rows
        if (row["n"], row["d"]) == (largest["n"], largest["d"]) and "memory / matrix" in row
    }
    predicted = limits(constants, memory)
    facts = [
        {"what": name, "constant": value, "memory / matrix": memory.get(name)}
        for name, value in constants.items()
    ]
    text = (
        f"# Cost of a round on {report.provenance().get('device', jax.default_backend())}\n\n"
        "Constants: nanoseconds per entry touched; milliseconds per client and step for training. "
        "Memory beside the arguments, on the largest matrix.\n\n"
        f"{report.markdown_table(facts)}\n\n## Measured\n\n{report.markdown_table(rows)}\n\n"
        "## What follows (predicted, not measured)\n\nOne aggregation; GiB include the matrix.\n\n"
        f"{report.markdown_table(predicted)}\n"
    )
    settings.out.mkdir(parents=True, exist_ok=True)
    (settings.out / "cost_model.md").write_text(text)
    more = {"constants": constants, "predicted": predicted}
    bench_timing.write(settings.out / "cost_model.json", settings, rows, **more)
    draw(settings.out / "cost_model.png", rows, constants)
    print(text)
    return constants


if __name__ == "__main__":
    study.use_compilation_cache()
    main(tyro.cli(Settings, description=__doc__))
