"""Everything to measure on an accelerator, in one call of less than ten minutes.

  python experiments/bench/device.py --out results/bench/device.json
  python experiments/bench/device.py --smoke          small sizes, on anything

First the rules' results on this device are compared with float64; nothing is timed if they are wrong.
Then:

- ``kernels``: median, trimmed mean, distances and cosines of (100, 10^7) against the time to copy the
  matrix and to read it once (a sum of squares per row).
- ``round``: a round of 100 clients x 32 MNIST-sized images through Fang et al.'s network (266,060
  parameters), all clients in one batch, with the share of this device's measured matrix-multiply rate.
- ``table``: the same with each rule of Table 2b under its attack, as time for 15 cells x 2000 rounds.
- ``scale``: 1,000 clients of that network; 100 clients of a network of 10 million parameters.

A line per target says whether it is met. Times are milliseconds: median, minimum, maximum of the
repeats. Examples are noise: nothing here depends on what the images show.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import bench_timing
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import tyro
from bench_timing import Row, milliseconds

import fedjax_robust as fr
from fedjax_robust import aggregators, attacks, models, report, study
from fedjax_robust.kernels.distances import pairwise_squared_distances
from fedjax_robust.kernels.norms import direction_and_length

FULL = fr.Knowledge(others=True, rule=True)
GFLOP_OF_A_ROUND = 40.0
"""100 clients x 32 images, forward and twice that backward: 12.4 MFLOP an image."""


@dataclasses.dataclass(frozen=True)
class Settings:
    parameters: int = 10_000_000
    """d of the kernels' matrix."""
    clients: int = 100
    repeats: int = 7
    out: Path | None = None
    """JSON file for the rows and for what they were measured with."""
    smoke: bool = False
    """Small sizes and models and two repeats, to see that everything works."""


def time_of(function: Callable[..., Any], *args: Any, repeats: int) -> Row:
    """The compiled function."""
    run, facts = bench_timing.compiled(function, *args)
    return milliseconds(run, repeats) | {"MiB": facts.get("memory_mib")}


def squares(x: jax.Array) -> jax.Array:
    return jnp.sum(jnp.square(x), axis=1)


def check(n: int, f: int) -> None:
    """Compare with float64 on this device; raise if a rule is wrong."""
    rng = np.random.default_rng(0)
    x = (rng.normal(size=(n, 10_007)) + 3.0).astype(np.float32)  # a large common offset
    x[0], x[1] = 1e4, -1e4
    ascending = np.sort(x.astype(np.float64), axis=0)
    middle = x[2:].astype(np.float64)
    gram = middle @ middle.T
    squared = np.diagonal(gram)
    distances = squared[:, None] + squared[None, :] - 2 * gram
    np.fill_diagonal(distances, 0)
    unit = middle / np.linalg.norm(middle, axis=1, keepdims=True)
    present = jnp.ones(n - 2, bool)
    pairs = {
        "median": (aggregators.median()(x), np.median(ascending, axis=0)),
        "trimmed mean": (aggregators.trimmed_mean(f)(x), ascending[f : n - f].mean(axis=0)),
        "distances": (jax.jit(pairwise_squared_distances)(x[2:], present), distances),
        "cosines": (jax.jit(lambda x: direction_and_length(x)[0])(x[2:]), unit),
    }
    for name, (got, expected) in pairs.items():
        error = np.max(np.abs(got - expected)) / np.max(np.abs(expected))
        print(f"{name}: largest error {error:.1e} of the largest value")
        if not error < 1e-5:
            raise ValueError(f"{name} is wrong on this device: relative error {error:.1e}")


def kernels(n: int, f: int, d: int, repeats: int) -> tuple[list[Row], dict[str, float]]:
    x = jax.jit(lambda key: jax.random.normal(key, (n, d)))(jax.random.key(0))
    present = jnp.ones(n, bool)
    ways: dict[str, Callable[[jax.Array], jax.Array]] = {
        "copy": lambda x: x + 1,
        "read once": squares,
        "mean": lambda x: aggregators.mean()(x),
        "median": lambda x: aggregators.median()(x),
        "trimmed mean": lambda x: aggregators.trimmed_mean(f)(x),
        "distances": lambda x: pairwise_squared_distances(x, present),
        "cosines to a vector": lambda x: direction_and_length(x)[0] @ x[0],
    }
    rows = [
        {"what": f"{n} x {d:,}", "how": name, **time_of(way, x, repeats=repeats)}
        for name, way in ways.items()
    ]
    ms = {row["how"]: row["ms"] for row in rows}
    for row in rows:
        row["of a copy"] = row["ms"] / ms["copy"]
    return rows, {
        "median / copy": ms["median"] / ms["copy"],
        "trimmed mean / copy": ms["trimmed mean"] / ms["copy"],
        "distances / one pass": ms["distances"] / ms["read once"],
        "cosines / one pass": ms["cosines to a vector"] / ms["read once"],
    }


class BigMLP(nn.Module):
    """784-2800-2800-10: 10,066,010 parameters."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        x = x.reshape(x.shape[0], -1)
        for width in (2800, 2800):
            x = nn.relu(nn.Dense(width)(x))
        return nn.Dense(10)(x)


def rounds(
    what: str,
    module: Any,
    clients: int,
    rule: fr.Aggregator,
    settings: Settings,
    attack: fr.Attack | None = None,
    number: int = 20,
) -> Row:
    """Milliseconds per round over blocks of so many rounds."""
    data = bench_timing.noise(clients)
    task = fr.classification(module, data.examples["x"][:1])
    sim = fr.Simulation(
        task=task,
        client=fr.local_sgd(task, 0.01, 32),
        aggregator=rule,
        attack=attack or attacks.no_attack(),
        knowledge=FULL,
        num_malicious=clients // 5,
        client_chunk=study.client_chunk(None),
    )
    number = 2 if settings.smoke else number
    repeats = 2 if settings.smoke else settings.repeats
    many = milliseconds(lambda: fr.run(sim, jax.random.key(0), data, number)[0].params, repeats)
    row = {"what": what, "how": f"{clients} clients", **bench_timing.memory_of_a_round(sim, data)}
    return row | {name: value / number for name, value in many.items()}


def matmul_rate(size: int, precision: str) -> float:
    """TFLOP/s of a square float32 product."""
    x = jnp.ones((size, size))
    row = time_of(lambda x: jnp.dot(x, x, precision=precision), x, repeats=5)
    return 2 * size**3 / row["ms"] / 1e9


def main(settings: Settings) -> list[Row]:
    n = 20 if settings.smoke else settings.clients
    d = 10_000 if settings.smoke else settings.parameters
    f = n // 5
    repeats = 2 if settings.smoke else settings.repeats
    check(n, f)
    rows, figures = kernels(n, f, d, repeats)
    dnn = models.SoftmaxRegression(10) if settings.smoke else models.FangDNN(10)
    rates = {p: matmul_rate(512 if settings.smoke else 8192, p) for p in ("highest", "default")}
    rows += [{"what": "matrix product", "how": p, "TFLOP/s": rate} for p, rate in rates.items()]
    trimmed = rounds("dnn, trimmed mean", dnn, n, aggregators.trimmed_mean(f), settings)
    trimmed["TFLOP/s"] = GFLOP_OF_A_ROUND * n / 100 / trimmed["ms"]
    rows.append(trimmed)
    cells = {
        "krum": (aggregators.krum(f), attacks.fang_krum_full(before=aggregators.mean())),
        "trimmed mean": (
            aggregators.trimmed_mean(f),
            attacks.fang_trim_full(before=aggregators.mean()),
        ),
        "median": (aggregators.median(), attacks.fang_trim_full(before=aggregators.mean())),
    }
    if settings.smoke:
        del cells["krum"], cells["trimmed mean"]
    attacked = [
        rounds(f"dnn, {name} under its attack", dnn, n, rule, settings, attack)
        for name, (rule, attack) in cells.items()
    ]
    rows += attacked
    if not settings.smoke:
        rule = aggregators.trimmed_mean(200)
        rows.append(rounds("dnn, trimmed mean", dnn, 1000, rule, settings, number=5))
        rule = aggregators.trimmed_mean(f)
        rows.append(rounds("10 M parameters", BigMLP(), n, rule, settings, number=5))
    table_minutes = sum(row["ms"] for row in attacked) * 5 * 2000 / 60e3

    print(report.markdown_table(rows))
    targets = [
        (f"median of ({n}, {d:,}) / copy", figures["median / copy"], 3),
        (f"trimmed mean of ({n}, {d:,}) / copy", figures["trimmed mean / copy"], 3),
        ("distances / one pass", figures["distances / one pass"], 1.5),
        ("cosines / one pass", figures["cosines / one pass"], 1.5),
        ("Table 2b, minutes for 15 cells x 2000 rounds", table_minutes, 5),
    ]
    for name, value, limit in targets:
        verdict = "met" if value <= limit else f"missed by {value / limit:.1f} times"
        print(f"{name}: {value:.2f}, at most {limit}: {verdict}")
    print(
        f"a DNN round: {trimmed['TFLOP/s']:.2f} TFLOP/s, {trimmed['TFLOP/s'] / rates['highest']:.0%} of "
        f"this device's float32 and {trimmed['TFLOP/s'] / rates['default']:.0%} of its default rate"
    )
    judged = [{"what": name, "measured": value, "at most": limit} for name, value, limit in targets]
    bench_timing.write(settings.out, settings, rows, targets=judged)
    return rows


if __name__ == "__main__":
    study.use_compilation_cache()
    main(tyro.cli(Settings, description=__doc__))
