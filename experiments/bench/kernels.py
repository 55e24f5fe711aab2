"""Measure the package's kernels against what they replace.

- ``sort_clients`` against ``jnp.sort`` and ``np.sort`` along the clients.
- Whole rules: median and trimmed mean against the same of ``jnp.sort`` and ``np.sort``; Krum, Bulyan and
  pairwise distances against the one matrix product x x^T.
- One round of FLTrust's adaptive attack, by its law, against the same with explicit directions, one
  Gaussian vector per query; and the first-order attack.
- The clients' gradients of the DNN of Fang et al. (2020), with the same weights for all clients (one
  local step) and with weights per client (all later steps), for several client chunks, against the
  same network of Flax's own convolution and pooling (few clients: it takes seconds).

  python experiments/bench/kernels.py --out results/bench/kernels.json
  python experiments/bench/kernels.py --kernels sort --parameters 1000000

Timed as ``bench_timing.py`` says, with the median processor time of all threads, which other programs on
the machine disturb least. "slower" is a ratio of medians.
"""

from __future__ import annotations

import dataclasses
import resource
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import bench_timing
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import tyro
from bench_timing import Row, compiled

import fedjax_robust as fr
from fedjax_robust import aggregators, attacks, report
from fedjax_robust.kernels.distances import pairwise_squared_distances
from fedjax_robust.kernels.sorting import sort_clients
from fedjax_robust.models.small import FangDNN
from fedjax_robust.models.starts import xavier
from fedjax_robust.tasks import classification


@dataclasses.dataclass(frozen=True)
class Settings:
    kernels: tuple[Literal["sort", "rules", "adaptive", "conv"], ...] = (
        "sort",
        "rules",
        "adaptive",
        "conv",
    )
    clients: int = 100
    """n, the rows of the matrix and the clients whose gradients are computed."""
    parameters: tuple[int, ...] = (139_960, 1_000_000)
    """d, the columns of the matrices to sort."""
    model_sizes: tuple[int, ...] = (7_850, 139_960)
    """d, the parameters for the adaptive attack: logistic regression and FLTrust's CNN."""
    chunks: tuple[int, ...] = (1, 5, 10, 20, 50, 100)
    """Clients whose gradients are computed at a time."""
    baseline_clients: int = 4
    """Clients for Flax's own layers; their time is multiplied up to ``clients``."""
    batch_size: int = 32
    repeats: int = 7
    out: Path | None = None
    """JSON file for the rows and for what they were measured with."""
    smoke: bool = False
    """Few clients and parameters and one repeat, to see that everything works."""


class FlaxDNN(nn.Module):
    """The network of ``FangDNN`` made of Flax's layers."""

    num_classes: int

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        for features in (30, 50):
            x = nn.Conv(features, (3, 3), padding="VALID", kernel_init=xavier(2.24))(x)
            x = nn.max_pool(nn.relu(x), (2, 2), (2, 2))
        x = nn.relu(nn.Dense(200)(x.reshape(x.shape[0], -1)))
        return nn.Dense(self.num_classes)(x)


def measure(runs: dict[str, Callable[[], Any]], repeats: int) -> dict[str, Row]:
    """Run everything in turn, once to warm up and then ``repeats`` times."""
    used: dict[str, list[float]] = {name: [] for name in runs}

    def timed(name: str) -> bench_timing.Way:
        once = bench_timing.seconds(runs[name])

        def way() -> float:
            before = processor_time()
            elapsed = once()
            used[name].append(1e3 * (processor_time() - before))
            return elapsed

        return way

    times = bench_timing.in_turn({name: timed(name) for name in runs}, repeats)
    return {
        name: bench_timing.summary(own) | {"cpu_ms": statistics.median(used[name][1:])}
        for name, own in times.items()
    }


def processor_time() -> float:
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


def bench_sort(n: int, d: int, repeats: int) -> list[Row]:
    """All ranks, those of a trimmed mean (a fifth cut off at both ends), and the middle."""
    x = np.random.default_rng(0).normal(size=(n, d)).astype(np.float32)
    on_device = jnp.asarray(x)
    rows = []
    for what, low, high in [
        ("sort", 0, n),
        ("trimmed mean's ranks", n // 5, n - n // 5),
        ("median's ranks", (n - 1) // 2, n // 2 + 1),
    ]:

        def by_network(x: jax.Array, low: int = low, high: int = high) -> jax.Array:
            return sort_clients(x, low, high)

        def by_xla(x: jax.Array, low: int = low, high: int = high) -> jax.Array:
            return jnp.sort(x, axis=0)[low:high]

        network, facts = compiled(by_network, on_device)
        xla, xla_facts = compiled(by_xla, on_device)
        np.testing.assert_array_equal(network(), np.sort(x, axis=0)[low:high])
        times = measure(
            {"sort_clients": network, "jnp.sort": xla, "np.sort": lambda: np.sort(x, axis=0)},
            repeats,
        )
        for name, extra in [("sort_clients", facts), ("jnp.sort", xla_facts), ("np.sort", {})]:
            ratio = times[name]["ms"] / times["sort_clients"]["ms"]
            shape = f"{n} x {d}"
            rows.append(
                {"what": f"{what}, {shape}", "how": name, **times[name], **extra, "slower": ratio}
            )

    def slope(sort: Callable[[jax.Array], jax.Array]) -> tuple[Callable, Row]:
        return compiled(jax.grad(lambda x: jnp.sum(jnp.sin(sort(x)))), on_device)

    low, high = n // 5, n - n // 5
    network, facts = slope(lambda x: sort_clients(x, low, high))
    xla, xla_facts = slope(lambda x: jnp.sort(x, axis=0)[low:high])
    times = measure({"sort_clients": network, "jnp.sort": xla}, min(repeats, 3))
    for name, extra in [("sort_clients", facts), ("jnp.sort", xla_facts)]:
        ratio = times[name]["ms"] / times["sort_clients"]["ms"]
        what = f"gradient by the trimmed mean's ranks, {n} x {d}"
        rows.append({"what": what, "how": name, **times[name], **extra, "slower": ratio})
    return rows


def bench_rules(n: int, d: int, repeats: int) -> list[Row]:
    """f = n / 5 (Bulyan: (n - 3) / 4, its largest)."""
    x = np.random.default_rng(0).normal(size=(n, d)).astype(np.float32)
    on_device = jnp.asarray(x)
    f = n // 5
    present = jnp.ones(n, bool)
    groups: dict[str, dict[str, Callable[..., jax.Array]]] = {
        "median": {
            "median": lambda x: aggregators.median()(x),
            "jnp.median": lambda x: jnp.median(x, axis=0),
            "np.median": lambda: np.median(x, axis=0),
        },
        "trimmed mean": {
            "trimmed_mean": lambda x: aggregators.trimmed_mean(f)(x),
            "mean of jnp.sort": lambda x: jnp.mean(jnp.sort(x, axis=0)[f : n - f], axis=0),
            "mean of np.sort": lambda: np.mean(np.sort(x, axis=0)[f : n - f], axis=0),
        },
        "distances": {
            "matrix product": lambda x: jnp.dot(x, x.T, precision="highest"),
            "pairwise distances": lambda x: pairwise_squared_distances(x, present),
            "krum": lambda x: aggregators.krum(f)(x),
            "bulyan": lambda x: aggregators.bulyan((n - 3) // 4)(x),
        },
    }
    rows = []
    for what, ways in groups.items():
        runs, facts = {}, {}
        for name, way in ways.items():
            if name.startswith("np.") or "np.sort" in name.split():
                runs[name], facts[name] = way, {}
            else:
                runs[name], facts[name] = compiled(way, on_device)
        times = measure(runs, repeats)
        first = next(iter(times.values()))["ms"]
        rows += [
            {"what": f"{what}, {n} x {d}", "how": name, **row, **facts[name]}
            | {"slower": row["ms"] / first}
            for name, row in times.items()
        ]
    return rows


def explicit_directions(
    updates: jax.Array, e_0: jax.Array, start: jax.Array, key: jax.Array
) -> jax.Array:
    """Algorithm 3 as it is printed, O(V Q c d): unit updates (n, d), start (c, d) -> (c, d)."""
    c, d = start.shape
    trust = jax.nn.relu(updates @ e_0)
    s = jnp.sign(trust @ updates)
    pull, total = trust[c:] @ (updates[c:] @ s), jnp.sum(trust[c:])

    def h(t: jax.Array, a: jax.Array) -> jax.Array:
        scores = jax.nn.relu(t)
        return -(pull + jnp.sum(scores * a)) / (total + jnp.sum(scores))

    def query(carry: tuple, at: tuple[jax.Array, jax.Array]) -> tuple[tuple, None]:
        rows, t, a = carry
        key, i = at
        u = jnp.sqrt(0.5) * jax.random.normal(key, (d,))
        moved = h(t.at[i].add(0.005 * u @ e_0), a.at[i].add(0.005 * u @ s))
        row = rows[i] + 0.01 * (moved - h(t, a)) / 0.005 * u
        row /= jnp.linalg.norm(row)
        return (rows.at[i].set(row), t.at[i].set(row @ e_0), a.at[i].set(row @ s)), None

    which = jnp.tile(jnp.repeat(jnp.arange(c), 10), 10)
    carry = (start, start @ e_0, start @ s)
    return jax.lax.scan(query, carry, (jax.random.split(key, len(which)), which))[0][0]


def bench_adaptive(n: int, d: int, repeats: int) -> list[Row]:
    """One round with a fifth malicious, V = Q = 10."""
    c = n // 5
    rng = np.random.default_rng(0)
    g_0 = jnp.asarray(rng.normal(size=d), jnp.float32)
    updates = jnp.asarray(0.3 * g_0 + rng.normal(size=(n, d)), jnp.float32)
    server = fr.Client(lambda p: (), lambda key, params, state, data: (g_0, state, {}))
    root = {"x": np.zeros((1, 1)), "y": np.zeros(1, int)}
    rule = aggregators.fltrust(server, root)
    malicious = jnp.arange(n) < c

    def craft(attack: fr.Attack) -> Callable[..., jax.Array]:
        def one(updates: jax.Array) -> jax.Array:
            present = jnp.ones(n, bool)
            view = fr.AttackerView(
                updates, present, ~malicious, malicious, c, g_0, jax.random.key(0), rule
            )
            return attack.craft(view, ())[0]

        return one

    def unit(x: jax.Array) -> jax.Array:
        return x / jnp.linalg.norm(x, axis=-1, keepdims=True)

    def explicit(updates: jax.Array) -> jax.Array:
        rows = unit(updates)
        return explicit_directions(rows, unit(g_0), rows[:c], jax.random.key(0))

    start = attacks.no_attack()
    ways = {
        "fltrust_adaptive": craft(attacks.fltrust_adaptive(server, root, start=start)),
        "explicit directions": explicit,
        "first_order, 30 steps": craft(attacks.first_order()),
    }
    runs, facts = {}, {}
    for name, function in ways.items():
        runs[name], facts[name] = compiled(function, updates)
    times = measure(runs, min(repeats, 3) if d > 50_000 else repeats)
    fastest = times["fltrust_adaptive"]["ms"]
    return [
        {"what": f"adaptive attack, {n} x {d}", "how": name, **row, **facts[name]}
        | {"slower": row["ms"] / fastest}
        for name, row in times.items()
    ]


def bench_conv(settings: Settings) -> list[Row]:
    """Gradients of ``clients`` clients, in chunks and by Flax's layers."""
    n, b = settings.clients, settings.batch_size
    keys = jax.random.split(jax.random.key(0), 3)
    x = jax.random.uniform(keys[0], (n, b, 28, 28, 1))
    y = jax.random.randint(keys[1], (n, b), 0, 10)
    rows = []
    for what in ("the same weights", "weights per client"):
        shared = what == "the same weights"

        def gradients(
            module: nn.Module, chunk: int, count: int, shared: bool = shared
        ) -> tuple[Callable, Row]:
            task = classification(module, x[0])
            start = task.init(keys[2])
            params = start if shared else jnp.tile(start, (count, 1))

            def one(params: jax.Array, x: jax.Array, y: jax.Array) -> jax.Array:
                return jax.grad(task.loss)(params, {"x": x, "y": y})

            def all_clients(params: jax.Array, x: jax.Array, y: jax.Array) -> jax.Array:
                if shared:
                    return jax.lax.map(lambda xy: one(params, *xy), (x, y), batch_size=chunk)
                return jax.lax.map(lambda a: one(*a), (params, x, y), batch_size=chunk)

            return compiled(all_clients, params, x[:count], y[:count])

        runs, facts = {}, {}
        for chunk in settings.chunks:
            name = f"chunks of {chunk}"
            runs[name], facts[name] = gradients(FangDNN(10), min(chunk, n), n)
        name = f"flax layers, {settings.baseline_clients} clients, scaled"
        few = settings.baseline_clients
        runs[name], facts[name] = gradients(FlaxDNN(10), few, few)
        times = measure(runs, settings.repeats)
        times[name] = {key: value * n / few for key, value in times[name].items()}
        best = min(row["ms"] for row in times.values())
        rows += [
            {"what": f"DNN gradients, {what}", "how": name, **row, **facts[name]}
            | {"slower": row["ms"] / best}
            for name, row in times.items()
        ]
    return rows


def main(settings: Settings) -> list[Row]:
    if settings.smoke:
        settings = dataclasses.replace(
            settings,
            clients=10,
            parameters=(500,),
            model_sizes=(70,),
            chunks=(1, 10),
            batch_size=2,
            repeats=1,
        )
    rows: list[Row] = []
    if "sort" in settings.kernels:
        for d in settings.parameters:
            rows += bench_sort(settings.clients, d, settings.repeats)
    if "rules" in settings.kernels:
        for d in settings.parameters:
            rows += bench_rules(settings.clients, d, settings.repeats)
    if "adaptive" in settings.kernels:
        for d in settings.model_sizes:
            rows += bench_adaptive(settings.clients, d, settings.repeats)
    if "conv" in settings.kernels:
        rows += bench_conv(settings)
    print(report.markdown_table(rows))
    print(
        "\nslower: times the median of the first way (of the best chunk for gradients). "
        "Memory beside arguments."
    )
    bench_timing.write(settings.out, settings, rows)
    return rows


if __name__ == "__main__":
    main(tyro.cli(Settings, description=__doc__))
