"""A user's own networks in plain Flax: local training as the package runs it, against plain ``vmap``.

  python experiments/bench/networks.py --out results/bench/networks.json

On a CPU ``fr.classification`` rewrites the convolutions and poolings of any model (``convolution.py``).
Compared is one round's local training (``local_sgd``, all clients under one ``vmap``) with the loss as it
comes from Flax. The parameters that both end in are compared, too.
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

import fedjax_robust as fr


class CNN(nn.Module):
    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        for features in (32, 64):
            x = nn.max_pool(nn.relu(nn.Conv(features, (3, 3))(x)), (2, 2), (2, 2))
        return nn.Dense(10)(x.reshape(x.shape[0], -1))


class ResNetGroupNorm(nn.Module):
    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        x = nn.Conv(16, (3, 3), use_bias=False)(x)
        for features, stride in ((16, 1), (32, 2), (64, 2)):
            y = nn.Conv(features, (3, 3), stride, use_bias=False)(x)
            y = nn.Conv(features, (3, 3), use_bias=False)(nn.relu(nn.GroupNorm(4)(y)))
            if stride > 1:
                x = nn.GroupNorm(4)(nn.Conv(features, (1, 1), stride, use_bias=False)(x))
            x = nn.relu(x + nn.GroupNorm(4)(y))
        return nn.Dense(10)(x.mean((1, 2)))


class StridesAndDilation(nn.Module):
    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        x = nn.relu(nn.Conv(16, (3, 3), (2, 1), ((2, 0), (1, 3)))(x))
        x = nn.max_pool(nn.relu(nn.Conv(32, (3, 3), kernel_dilation=(2, 2))(x)), (2, 2), (2, 2))
        return nn.Dense(10)(x.reshape(x.shape[0], -1))


@dataclasses.dataclass
class Settings:
    """Own networks against plain ``vmap``."""

    clients: int = 10
    steps: int = 4
    batch_size: int = 32
    pixels: int = 32
    repeats: int = 3
    out: Path | None = None
    """Write the rows to this JSON file."""
    smoke: bool = False
    """One small step of one network; the numbers mean nothing."""


def training(settings: Settings, module: nn.Module, plain: bool) -> Callable[[], jax.Array]:
    """One round's updates (clients, d) of all clients."""
    shape = (settings.pixels, settings.pixels, 3)
    task = fr.classification(module, np.zeros((1, *shape), np.float32))

    def loss(params: jax.Array, batch: fr.Batch) -> jax.Array:
        logits = module.apply({"params": task.unravel(params)}, batch["x"])
        losses = -jax.nn.log_softmax(logits)[jnp.arange(len(logits)), batch["y"]]
        return jnp.sum(batch["mask"] * losses) / jnp.sum(batch["mask"])

    own = 2 * settings.batch_size
    rng = np.random.default_rng(0)
    pool = {
        "x": jnp.asarray(rng.random((settings.clients * own, *shape), np.float32)),
        "y": jnp.asarray(rng.integers(0, 10, settings.clients * own), jnp.int32),
    }
    rows = jnp.arange(settings.clients * own, dtype=jnp.int32).reshape(settings.clients, own)
    client = fr.local_sgd(
        task._replace(loss=loss) if plain else task, 0.1, settings.batch_size, steps=settings.steps
    )

    def one(params: jax.Array, i: jax.Array, rows: jax.Array) -> jax.Array:
        data = fr.ClientData(pool, rows, jnp.int32(own), i)
        return client.update(jax.random.fold_in(jax.random.key(1), i), params, (), data)[0]

    train = jax.jit(jax.vmap(one, (None, 0, 0)))
    params = task.init(jax.random.key(0))
    return lambda: train(params, jnp.arange(settings.clients, dtype=jnp.int32), rows)


def main(settings: Settings) -> None:
    if settings.smoke:
        settings = dataclasses.replace(
            settings, clients=2, steps=1, batch_size=2, pixels=8, repeats=1
        )
    rows: list[dict[str, Any]] = []
    modules = (
        (StridesAndDilation(),)
        if settings.smoke
        else (CNN(), ResNetGroupNorm(), StridesAndDilation())
    )
    for module in modules:
        plain, ours = (training(settings, module, plain) for plain in (True, False))
        ways = {"plain vmap": plain, "ours": ours}
        times = bench_timing.in_turn(
            {name: bench_timing.seconds(run) for name, run in ways.items()}, settings.repeats
        )
        ends = [np.asarray(run()) for run in (plain, ours)]
        difference = float(np.max(np.abs(ends[0] - ends[1])) / np.max(np.abs(ends[0])))
        faster = np.median(np.divide(times["plain vmap"], times["ours"]))
        for name in ways:
            row = {"what": type(module).__name__, "how": name} | bench_timing.summary(times[name])
            rows.append(row | {"faster": float(faster) if name == "ours" else 1.0})
        rows[-1]["difference"] = difference
        print(f"{type(module).__name__}: {faster:.1f} times, largest difference {difference:.1e}")
    bench_timing.write(settings.out, settings, rows)


if __name__ == "__main__":
    main(tyro.cli(Settings))
