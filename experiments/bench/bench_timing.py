"""What the benchmarks share: timing in turn, a program's memory, and files of rows.

Everything that is compared runs in turn, several times, so that a change of the machine's speed meets all
alike; a first turn, which compiles, does not count. Times are milliseconds: the median of the repeats,
their minimum and maximum.
"""

from __future__ import annotations

import dataclasses
import json
import os
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import fedjax_robust as fr
from fedjax_robust import report
from fedjax_robust.report.results import plain, write_bytes

Row = dict[str, Any]
Way = Callable[[], float]
"""Runs once; the seconds that took."""


def seconds(run: Callable[[], Any]) -> Way:
    """``run`` until its arrays are there."""

    def way() -> float:
        start = time.perf_counter()
        jax.block_until_ready(run())
        return time.perf_counter() - start

    return way


def in_turn(ways: Mapping[str, Way], repeats: int) -> dict[str, list[float]]:
    """Milliseconds of each repeat of each way."""
    times: dict[str, list[float]] = {name: [] for name in ways}
    for repeat in range(repeats + 1):
        for name, way in ways.items():
            elapsed = way()
            if repeat:
                times[name].append(1e3 * elapsed)
    return times


def summary(times: Sequence[float]) -> Row:
    return {"ms": statistics.median(times), "min": min(times), "max": max(times)}


def milliseconds(run: Callable[[], Any], repeats: int) -> Row:
    """One thing by itself."""
    return summary(in_turn({"it": seconds(run)}, repeats)["it"])


def compiled(function: Callable[..., Any], *args: Any) -> tuple[Callable[[], Any], Row]:
    """The compiled function of these arguments; the seconds that took, MiB beside the arguments."""
    start = time.perf_counter()
    program = jax.jit(function).lower(*args).compile()
    facts: Row = {"compile_s": time.perf_counter() - start}
    used = program.memory_analysis()
    if used is not None:
        facts["memory_mib"] = (used.temp_size_in_bytes + used.output_size_in_bytes) / 2**20
    return lambda: program(*args), facts


def memory_of_a_round(sim: fr.Simulation, data: fr.FederatedData) -> Row:
    """What a compiled round allocates besides its arguments and results, also in n x d floats."""
    params = jnp.zeros(jax.eval_shape(sim.task.init, jax.random.key(0)).shape)
    one = jax.jit(lambda key, data, params: fr.run(sim, key, data, 1, params=params)[0].params)
    used = one.lower(jax.random.key(0), data, params).compile().memory_analysis()
    matrix = 4 * data[1].shape[0] * params.size
    temporary = used.temp_size_in_bytes
    return {"MiB": temporary / 2**20, "times n x d": temporary / matrix}


def noise(clients: int, examples: int = 64, pool: int = 6400) -> fr.FederatedData:
    """Images of MNIST's size that show nothing, as in no benchmark it matters what they show."""
    rng = np.random.default_rng(0)
    images = {
        "x": jnp.asarray(rng.random((pool, 28, 28, 1), np.float32)),
        "y": jnp.asarray(rng.integers(0, 10, pool), jnp.int32),
    }
    rows = jnp.asarray(rng.integers(0, pool, (clients, examples)), jnp.int32)
    return fr.FederatedData(images, rows, jnp.full(clients, examples, jnp.int32))


def facts(**more: Any) -> Row:
    """What was measured with."""
    return {**report.provenance(), "cpus": os.cpu_count(), **more}


def write(path: Path | None, settings: Any, rows: Sequence[Row], **more: Any) -> None:
    """Settings (without the paths of this machine), rows, and what they were measured with, as JSON."""
    if path is None:
        return
    chosen = {
        field.name: value
        for field in dataclasses.fields(settings)
        if not isinstance(value := getattr(settings, field.name), Path)
    }
    content = {"settings": chosen, "measured_with": facts(), "rows": list(rows), **more}
    text = json.dumps(plain(content, path.name), indent=1, allow_nan=False)
    write_bytes(path, f"{text}\n".encode())
