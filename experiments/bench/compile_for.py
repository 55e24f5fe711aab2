"""What the compilers of TPUs and GPUs make of rules and rounds, on a machine without either.

  pip install "libtpu==0.0.42.*"                                       # as jax[tpu] wants it
  pip install --no-deps jax-cuda12-plugin==<jax> jax-cuda12-pjrt==<jax>  # no driver is needed
  python experiments/bench/compile_for.py --target v5e --out results/bench/compile_v5e.json

Nothing runs. Each program is compiled for the target, and read: memory beside the arguments, the
compiler's own cycles and its schedule of sorts (TPU), kernels (GPU), what chips send each other. Exit
code 1 if a program does not compile or leaves the limits that stand beside it. A TPU's numbers are the
compiler's estimates; loops whose number of turns is unknown count once.
"""

# ruff: noqa: E402
from __future__ import annotations

import os
import tempfile

SCHEDULES = os.path.join(tempfile.gettempdir(), f"schedules-{os.getpid()}")
if __name__ == "__main__":
    os.environ |= {  # read when JAX is imported
        "JAX_PLATFORMS": "cpu",
        "TPU_SKIP_MDS_QUERY": "1",
        "TPU_WORKER_HOSTNAMES": "localhost",
        "TPU_ACCELERATOR_TYPE": "v5litepod-4",
        "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
        "LIBTPU_INIT_ARGS": f"--xla_jf_dump_to={SCHEDULES} --xla_jf_dump_llo_text=true",
        "TF_CPP_MIN_LOG_LEVEL": "3",
    }

import dataclasses
import functools
import importlib.metadata
import math
import re
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal, NamedTuple

import bench_timing
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import tyro
from bench_timing import Row
from jax.experimental import topologies
from jax.sharding import Mesh, NamedSharding, PartitionSpec

import fedjax_robust as fr
from fedjax_robust import aggregators, attacks, models
from fedjax_robust.engine import driver
from fedjax_robust.kernels.distances import pairwise_distances

# --- Targets ---------------------------------------------------------------------------------------


class Target(NamedTuple):
    gib: float
    """a chip's memory"""
    hertz: float
    """of a TPU's cycles"""
    topology: Callable[[int], Any]
    """chips, 1 or 4 -> what is compiled for"""


def tpu(name: str, gib: float, hertz: float) -> Target:
    def topology(chips: int) -> Any:
        where: dict[str, Any] = {"topology_name": f"{name}:2x2"}
        if chips == 1:
            where = {"topology_name": f"{name}:1x1", "chips_per_host_bounds": [1, 1, 1]}
        return topologies.get_topology_desc(platform="tpu", **where)

    return Target(gib, hertz, topology)


def gpu(name: str, gib: float, capability: tuple[int, int], **numbers: int | float) -> Target:
    """``numbers``: what XLA wants to know of a card."""
    limits = {
        "threads_per_block_limit": 1024,
        "threads_per_warp": 32,
        "shared_memory_per_block": 49152,
        "block_dim_limit_x": 2147483647,
        "block_dim_limit_y": 65535,
        "block_dim_limit_z": 65535,
        "registers_per_core_limit": 65536,
        "registers_per_block_limit": 65536,
        "device_memory_size": int(gib * 2**30),
    }
    major, minor = capability
    lines = [f"{key}: {value}" for key, value in (limits | numbers).items()]
    lines.append(f"cuda_compute_capability {{ major: {major} minor: {minor} }}")
    text = (
        f"gpu_device_info {{ {' '.join(lines)} }} "
        'platform_name: "CUDA" dnn_version_info { major: 9 minor: 7 } '
        f'runtime_version {{ major: 12 minor: 8 patch: 0 }} device_description_str: "{name}"'
    )

    def topology(chips: int) -> Any:
        return topologies.get_topology_desc(
            platform="cuda", topology_name="", topology=f"1x1x{chips}", target_config=text
        )

    return Target(gib, 0, topology)


TARGETS = {
    "v5e": tpu("v5e", 16, 1.5e9),
    "v6e": tpu("v6e", 32, 1.75e9),
    "h100": gpu(
        "NVIDIA H100 80GB HBM3",
        79,
        (9, 0),
        core_count=132,
        fpus_per_core=128,
        threads_per_core_limit=2048,
        shared_memory_per_core=233472,
        shared_memory_per_block_optin=232448,
        memory_bandwidth=3352320000000,
        l2_cache_size=52428800,
        clock_rate_ghz=1.98,
    ),
    "t4": gpu(
        "Tesla T4",
        14.5,
        (7, 5),
        core_count=40,
        fpus_per_core=64,
        threads_per_core_limit=1024,
        shared_memory_per_core=65536,
        shared_memory_per_block_optin=65536,
        memory_bandwidth=320064000000,
        l2_cache_size=4194304,
        clock_rate_ghz=1.59,
    ),
}


# --- Programs --------------------------------------------------------------------------------------


class Program(NamedTuple):
    function: Callable[..., Any]
    args: Any
    matrix: int
    """n d"""
    limits: tuple[float, float]
    """of temporaries on a TPU and on a GPU, in n d floats"""
    rounds: int = 1
    chips: int = 1
    columns: int = 0
    """d, where chips share the work"""
    sorts: int | None = None
    """operands of a sort of the matrix; None = whatever"""


def rules(n: int, d: int) -> Iterator[tuple[str, Program]]:
    f = n // 5
    x, along = (jax.ShapeDtypeStruct(shape, jnp.float32) for shape in ((n, d), (d,)))
    server = fr.Client(lambda p: (), lambda key, p, state, data: (jnp.ones_like(p), state, {}))
    root = {"x": np.zeros((1, 1), np.float32), "y": np.zeros(1, np.int32)}
    everyone = jnp.ones(n, bool)
    for name, limits, sorts, rule in (
        ("copy", (0.1, 0.1), None, lambda x: x + 1),
        ("mean", (0.1, 0.1), None, aggregators.mean()),
        ("median", (1.1, 1.1), 1, aggregators.median()),
        ("trimmed mean", (1.1, 1.1), 1, aggregators.trimmed_mean(f)),
        ("Krum", (1.1, 2.1), None, aggregators.krum(f)),
        ("Bulyan", (2.6, 3.1), 1, aggregators.bulyan(f)),
        ("FLTrust", (0.1, 0.1), None, aggregators.fltrust(server, root)),
        ("distances", (1.1, 2.1), None, lambda x: pairwise_distances(x, everyone)),
        ("norm clipping", (0.1, 0.1), None, aggregators.norm_clipping(1.0)),
    ):
        yield name, Program(functools.partial(_applied, rule), (x,), n * d, limits, sorts=sorts)
    for name, limits, rule in (
        ("trimmed mean", (2.2, 2.2), aggregators.trimmed_mean(f)),
        ("Bulyan", (2.6, 3.1), aggregators.bulyan(f)),
    ):
        slope = jax.grad(lambda x, t, rule=rule: jnp.sum(t * _applied(rule, x)))
        yield f"gradient through {name}", Program(slope, (x, along), n * d, limits, sorts=2)


def _applied(rule: Any, x: jax.Array) -> jax.Array:
    return rule(x)


class BigMLP(nn.Module):
    """784-2800-2800-10: 10,066,010 parameters."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        x = x.reshape(x.shape[0], -1)
        for width in (2800, 2800):
            x = nn.relu(nn.Dense(width)(x))
        return nn.Dense(10)(x)


class Linear(nn.Module):
    """Softmax regression of any number of parameters."""

    parameters: int

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        free = self.param("free", nn.initializers.zeros, (self.parameters - 7850,))
        return nn.Dense(10)(x.reshape(x.shape[0], -1)) + jnp.sum(free)


FULL = fr.Knowledge(others=True, rule=True)
Sizes = dict[str, int]


def blocks(rounds: int = 10) -> Iterator[tuple[str, Callable[[], Program]]]:
    linear, dnn = models.SoftmaxRegression(10), models.FangDNN(10)
    trimmed, trim = aggregators.trimmed_mean(20), attacks.fang_trim_full()
    honest = attacks.no_attack()
    block = functools.partial(_block, rounds)
    yield "LR, trimmed mean", lambda: block(linear, trimmed, trim, 8)
    yield "LR, trimmed mean, 10 seeds", lambda: block(linear, trimmed, trim, 12, seeds=10)
    yield "LR, Krum", lambda: block(linear, aggregators.krum(20), attacks.fang_krum_full(), 8)
    yield "LR, Bulyan", lambda: block(linear, aggregators.bulyan(20), trim, 8)
    yield "LR, gradients of the rule", lambda: block(linear, trimmed, attacks.first_order(3), 8)
    for d in (7852, 7853, 7854):  # 0, 1, 2 modulo the number of chips
        yield f"LR of {d} on 4 chips", lambda d=d: block(Linear(d), trimmed, trim, 8, chips=4)
    yield "DNN, trimmed mean", lambda: block(dnn, trimmed, trim, 36)
    yield "DNN, Krum", lambda: block(dnn, aggregators.krum(20), attacks.fang_krum_full(), 36)
    yield "DNN, mean, 5 steps", lambda: block(dnn, aggregators.mean(), honest, 55, steps=5)
    yield (
        "DNN, mean, 5 steps, 10 at a time",
        lambda: block(dnn, aggregators.mean(), honest, 12, steps=5, chunk=10),
    )
    yield (
        "DNN, highest precision",
        lambda: block(dnn, trimmed, trim, 50, precision="highest"),
    )
    yield (
        "DNN, trimmed mean, 1,000 clients, 100 at a time",
        lambda: block(dnn, aggregators.trimmed_mean(200), honest, 8, clients=1000, chunk=100),
    )
    yield (
        "ResNet20, mean, 100 clients, 10 at a time",
        lambda: block(models.ResNet20(10), aggregators.mean(), honest, 350, chunk=10),
    )
    yield (
        "MLP of 10 million, trimmed mean, 10 at a time",
        lambda: block(BigMLP(), trimmed, honest, 5, chunk=10),
    )


def _block(
    rounds: int,
    module: nn.Module,
    rule: fr.Aggregator,
    attack: fr.Attack,
    limit: float,
    *,
    clients: int = 100,
    steps: int = 1,
    chunk: int | None = None,
    seeds: int | None = None,
    chips: int = 1,
    precision: str | None = None,
) -> Program:
    data = bench_timing.noise(clients)
    task = fr.classification(module, data.examples["x"][:1], precision=precision)
    sim = fr.Simulation(
        task=task,
        client=fr.local_sgd(task, 0.01, 32, steps=steps),
        aggregator=rule,
        attack=attack,
        knowledge=FULL,
        num_malicious=clients // 5,
        client_chunk=chunk,
    )
    key = jax.random.key(0) if seeds is None else jax.random.split(jax.random.key(0), seeds)
    axes = driver._seed_axes(key, data)

    def block(mesh: Mesh | None, state: Any, data: fr.FederatedData) -> Any:
        nothing = driver._evaluate_nothing
        return driver._block(sim, axes, mesh, 1, rounds, nothing, state, data)

    state = jax.eval_shape(lambda key: driver._init(sim, axes, None, key, data, None), key)
    d = state.params.shape[-1]
    matrix = clients * d * (seeds or 1)
    return Program(block, (state, data), matrix, (limit, limit), rounds, chips, d)


# --- What a compiled program says -------------------------------------------------------------------

SIZES = {"pred": 1, "s8": 1, "u8": 1, "bf16": 2, "f16": 2, "s16": 2, "u16": 2, "f64": 8, "s64": 8}
FREE = {"parameter", "constant", "tuple", "get-tuple-element", "bitcast", "after-all", "iota"}
CALLS = {"while", "conditional", "call"}
CALLED = r"(?:body|to_apply|branch_computations)=\{?([^},]*(?:, %[^},]*)*)"


class Line(NamedTuple):
    result: str
    """its shape"""
    op: str
    text: str


def computations(text: str) -> tuple[dict[str, list[Line]], str]:
    """Those of a program's text, and the name of the entry."""
    found: dict[str, list[Line]] = {}
    entry, current = "", []
    for raw in text.splitlines():
        if head := re.match(r"(ENTRY )?%?([\w.\-]+) \(.*\{$", raw):
            current = found.setdefault(head[2], [])
            entry = head[2] if head[1] else entry
        elif line := re.match(r"\s+(?:ROOT )?%?[\w.\-]+ = (\(.*?\)|\S+) ([\w\-]+)\(", raw):
            current.append(Line(line[1], line[2], raw))
    return found, entry


class Facts(NamedTuple):
    cycles: float = 0
    kernels: float = 0
    unknown: int = 0
    """loops of unknown length"""

    def plus(self, other: Facts, times: float = 1) -> Facts:
        return Facts(
            self.cycles + times * other.cycles,
            self.kernels + times * other.kernels,
            self.unknown + other.unknown,
        )


def facts_of(found: dict[str, list[Line]], name: str, bundles: dict[str, float]) -> Facts:
    total = Facts()
    for line in found[name]:
        if line.op in CALLS:
            names = re.findall(
                r"(?:body|to_apply|branch_computations)=\{?([^},]*(?:, %[^},]*)*)", line.text
            )
            inner = [n.strip().lstrip("%") for group in names for n in group.split(",")]
            parts = [facts_of(found, n, bundles) for n in inner if n in found]
            part = max(parts, default=Facts())
            turns = turns_of(found, line.text) if line.op == "while" else 1
            total = total.plus(part, turns or 1).plus(Facts(unknown=int(turns is None)))
        elif line.op not in FREE:
            cycles = re.search(r'"estimated_cycles":"(\d+)"', line.text)
            own = float(cycles[1]) if cycles else 0.0
            if line.op == "sort":
                own = bundles.get(line.result, 0.0)
            total = total.plus(Facts(own, 1))
    return total


def turns_of(found: dict[str, list[Line]], loop: str) -> int | None:
    """How often a loop turns, if it says so or counts from 0 to a constant."""
    if known := re.search(r'known_trip_count"?:\{"n":"(\d+)"', loop):
        return int(known[1])
    condition = re.search(r"condition=%?([\w.\-]+)", loop)
    lines = found.get(condition[1], []) if condition else []
    bounds = [m for line in lines if (m := re.search(r"= s32\[\]\S* constant\((\d+)\)", line.text))]
    return int(bounds[0][1]) if len(bounds) == 1 and len(lines) <= 4 else None


def bundles_of_sorts(found: dict[str, list[Line]]) -> dict[str, float]:
    """shape -> VLIW bundles of its sort times the turns of its loop, from the schedules that libtpu
    wrote, one for all equal operations."""
    shapes = {
        re.search(r"%([\w.\-]+) =", line.text)[1]: line.result
        for lines in found.values()
        for line in lines
        if line.op == "sort"
    }
    bundles_of = {}
    for path in Path(SCHEDULES).glob("*-schedule-analysis_final_bundles.txt"):
        name = re.fullmatch(r"\d+-(sort[\w.]*)-\d+-schedule.*", path.name)
        if not name:
            continue
        bundles = re.search(r"non empty scheduled bundles:\s*(\d+)", path.read_text())
        (final,) = Path(SCHEDULES).glob(f"{path.name.split('-')[0]}-{name[1]}-*-final_bundles.txt")
        bounds = re.findall(r"(\d+) /\* loop exit test \*/", final.read_text())
        if name[1] in shapes:
            turns = max([int(b) - 1 for b in bounds], default=1)
            bundles_of[shapes[name[1]]] = float(bundles[1]) * turns
    return bundles_of


def size(shape: str) -> list[int]:
    """Entries of each array in a shape."""
    dims = re.findall(r"\w+\[([\d,]*)\]", shape)
    return [math.prod(int(n) for n in d.split(",") if n) for d in dims]


def compiled(program: Program, target: Target) -> Row:
    shutil.rmtree(SCHEDULES, ignore_errors=True)
    os.makedirs(SCHEDULES)
    devices = target.topology(program.chips).devices[: program.chips]
    mesh = Mesh(np.array(devices), ("clients",))
    everywhere = NamedSharding(mesh, PartitionSpec())
    args = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(jnp.shape(leaf), leaf.dtype, sharding=everywhere),
        program.args,
    )
    function = program.function
    if program.rounds > 1:
        function = functools.partial(function, mesh if program.chips > 1 else None)
    start = time.perf_counter()
    program_of = jax.jit(function, donate_argnums=(0,) if program.rounds > 1 else ())
    done = program_of.lower(*args).compile()
    seconds = time.perf_counter() - start
    used, text = done.memory_analysis(), done.as_text()
    found, entry = computations(text)
    facts = facts_of(found, entry, bundles_of_sorts(found))
    lines = [line for part in found.values() for line in part]
    sorts = [(size(line.result), line.text) for line in lines if line.op == "sort"]
    # Bulyan's are of n - 2f rows.
    large = [sizes for sizes, _ in sorts if sizes[0] >= program.matrix / program.chips / 2]
    sent = {
        kind: sorted(
            (max(size(line.result)) for line in lines if line.op.removesuffix("-start") == kind),
            reverse=True,
        )
        for kind in ("all-gather", "all-to-all", "all-reduce", "collective-permute")
    }
    complaints = []
    times = used.temp_size_in_bytes / (4 * program.matrix)
    limit = program.limits[0 if target.hertz else 1]
    if program.chips == 1 and times > limit:
        complaints.append(f"temporaries of {times:.1f} n d floats, at most {limit}")
    gib = (used.temp_size_in_bytes + used.argument_size_in_bytes) / 2**30
    if gib > target.gib:
        complaints.append(f"{gib:.1f} GiB, and a chip has {target.gib}")
    if any(sizes[0] > program.matrix for sizes, _ in sorts):
        complaints.append("a sort of more than the matrix has entries")
    if program.sorts and any(len(sizes) > program.sorts for sizes in large):
        complaints.append(f"a sort of {max(map(len, large))} operands")
    if program.chips > 1:
        if max(sent["all-gather"], default=0) > 1.1 * program.columns:
            complaints.append(f"a chip gathers {sent['all-gather'][0]:,} numbers")
        whole = [s for s in sent["all-to-all"] if s >= program.matrix / program.chips]
        if len(whole) > 1:
            complaints.append(f"{len(whole)} all-to-all of the matrix in a round")
    milliseconds = 1e3 * facts.cycles / target.hertz / program.rounds if target.hertz else None
    return {
        "temp MB": used.temp_size_in_bytes / 1e6,
        "temp / n d": times,
        "ms": milliseconds,
        "kernels": None if target.hertz else facts.kernels / program.rounds,
        "loops of unknown length": facts.unknown,
        "sorts of the matrix": len(large),
        "their operands": max(map(len, large), default=None),
        "compile_s": seconds,
        "sent": {kind: sizes[:4] for kind, sizes in sent.items() if sizes},
        "complaints": complaints,
    }


# --- The command line ------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Settings:
    target: Literal["v5e", "v6e", "h100", "t4"]
    programs: str = ""
    """A regular expression: those whose names contain it; all by default."""
    clients: int = 100
    parameters: int = 1_000_000
    """Of the rules' matrix."""
    rounds: int = 10
    """In a block."""
    out: Path | None = None
    """JSON file for the rows."""


def main(settings: Settings) -> list[Row]:
    target = TARGETS[settings.target]
    compiler = "libtpu" if target.hertz else "jax-cuda12-pjrt"
    versions = {compiler: importlib.metadata.version(compiler), "target": settings.target}
    named: dict[str, Callable[[], Program]] = {
        f"{settings.clients} x {settings.parameters:,}: {name}": lambda program=program: program
        for name, program in rules(settings.clients, settings.parameters)
    }
    named |= blocks(settings.rounds)
    rows = []
    for name, make in named.items():
        if not re.search(settings.programs, name):
            continue
        row: Row = {"what": name}
        try:
            row |= compiled(make(), target)
        except Exception as error:  # a compiler's, of any kind
            row["complaints"] = [f"does not compile: {str(error).splitlines()[0][:200]}"]
        rows.append(row)
        print(
            " | ".join(f"{k} {_shown(v)}" for k, v in row.items() if v not in (None, [], {})),
            flush=True,
        )
    compiler = "libtpu" if target.hertz else "jax-cuda12-pjrt"
    versions = {compiler: importlib.metadata.version(compiler), "target": settings.target}
    bench_timing.write(settings.out, settings, rows, compiled_for=versions)
    return rows


def _shown(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)


if __name__ == "__main__":
    made = main(tyro.cli(Settings, description=__doc__))
    shutil.rmtree(SCHEDULES, ignore_errors=True)
    sys.exit(1 if any(row["complaints"] for row in made) else 0)
