"""What an accelerator would be given, read without having one.

Every rule with its gradient, every attack and whole blocks of rounds are lowered for TPUs and GPUs, which
JAX does anywhere, and the program is searched for what those would be slow or wrong with. What their
compilers make of it, and how much memory, ``experiments/bench/compile_for.py`` tells.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Collection, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.interpreters import mlir

import fedjax_robust as fr
from fedjax_robust import models
from fedjax_robust.aggregators import bulyan, krum, mean, median, trimmed_mean
from fedjax_robust.attacks import fang_krum_full, fang_trim_full, first_order, sign_flip
from fedjax_robust.engine import driver
from fedjax_robust.types import Aggregator, Received

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE / "aggregators"), str(HERE / "attacks")]
from case import Round, view  # noqa: E402
from contract import RULES, F  # noqa: E402
from test_attacks import ATTACKS  # noqa: E402

N, D = 15, 10_007  # d is larger than all else, and not to be confused with it

FUNCTIONS = {
    # notes for the compiler
    "Sharding",
    "SPMDFullToShardShape",
    "SPMDShardToFullShape",
    "shape_assertion",
    # the platforms' own decompositions of small symmetric matrices
    "Eigh",
    "cusolver_syevd_ffi",
}
"""Custom calls that may be. Callbacks cannot be: JAX lowers none for two platforms."""
SLOW = {
    "romoa": {
        "a stable sort of the matrix": "each row's coordinates in the order of their size",
        "a large scatter": "the same",
    },
}
"""rule -> complaint -> why it is left so."""


class Operation(NamedTuple):
    """One operation of a StableHLO program, as far as the checks need it."""

    name: str
    shapes: list[tuple[int, ...]]
    """of the operands"""
    types: str
    """of operands and results"""
    how: dict[str, str]
    """attributes of the operations that are looked at"""

    def size(self, i: int) -> int:
        return math.prod(self.shapes[i])


def operations(function: Callable[..., Any], *args: Any) -> list[Operation]:
    """Of the program for both platforms, in which ``lax.platform_dependent`` has no CPU to choose."""
    lowered = jax.jit(function).trace(*args).lower(lowering_platforms=("cuda", "tpu"))
    module = lowered.compiler_ir("stablehlo")
    found: list[Operation] = []

    def visit(op: Any) -> Any:
        kinds = [value.type for value in [*op.operands, *op.results]]
        shapes = [tuple(getattr(kind, "shape", ())) for kind in kinds[: len(op.operands)]]
        name = op.name.removeprefix("stablehlo.")
        looked_at = LOOKED_AT.get(name, ())
        how = {kind: str(op.attributes[kind]) for kind in looked_at}
        found.append(Operation(name, shapes, " ".join(map(str, kinds)), how))
        return mlir.ir.WalkResult.ADVANCE

    module.operation.walk(visit)
    return found


KERNELS = ("@_combine", "@_shares", "@_ranks", "@_order", "@_accurate_distances")
LOOKED_AT = {
    "func.call": ("callee",),
    "custom_call": ("call_target_name",),
    "sort": ("is_stable",),
    "dot_general": ("precision_config",),
    "convolution": ("precision_config",),
}


def complaints(program: list[Operation], n: int, d: int) -> Iterator[str]:
    """What is wrong with it on a TPU or GPU."""
    for op in program:
        what = ""
        if "f64" in op.types:
            what = "float64"
        elif op.name == "custom_call":
            target = op.how["call_target_name"].strip('"')
            what = "" if target in FUNCTIONS else f"calls {target}"
        elif op.name == "sort" and op.size(0) >= n * d and "true" in op.how["is_stable"]:
            what = "a stable sort of the matrix"
        elif op.name == "scatter" and math.prod(op.shapes[len(op.shapes) // 2][:-1]) >= d:
            what = "a large scatter"  # to many places, which a TPU sorts; whole rows are few
        elif op.name == "dot_general" and any(d in shape for shape in op.shapes):
            exact = op.how["precision_config"].count("HIGHEST") == 2
            what = "" if exact else "a product with the matrix, of few digits"
        elif op.name == "func.call" and op.how["callee"].startswith(KERNELS):
            what = "a kernel that is no part of the program, to which a mesh brings whole matrices"
        if what:
            yield f"{what}: {op.name} {op.types}"


def check(program: list[Operation], n: int, d: int, allowed: Collection[str] = ()) -> None:
    found = set(complaints(program, n, d))
    assert not [what for what in found if what.split(":")[0] not in allowed]
    assert {what.split(":")[0] for what in found} >= set(allowed), "no longer needed"


def of(*shape: int) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(shape, jnp.float32)


WRONG: dict[str, Callable[[jax.Array], Any]] = {
    "float64": lambda x: x.astype(jnp.float64),
    "calls": lambda x: jnp.linalg.qr(x[:, :N]),
    "a stable sort of the matrix": lambda x: jnp.sort(x, axis=0),
    "a large scatter": jax.grad(
        lambda x: jnp.sum(jnp.take_along_axis(x, jnp.argsort(x, axis=0)[:1], axis=0))
    ),
    "a product with the matrix, of few digits": lambda x: x @ x.T,
}


@pytest.mark.parametrize("what", WRONG)
def test_what_is_wrong_is_found(what: str) -> None:
    with jax.enable_x64(True):
        found = list(complaints(operations(WRONG[what], of(N, D)), N, D))
    assert any(complaint.startswith(what) for complaint in found)


# --- Rules -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", RULES)
def test_rules_and_their_gradients(name: str) -> None:
    rule, params = RULES[name].make(F), RULES[name].params(D).astype(np.float32)

    def result(updates: jax.Array, weights: jax.Array) -> jax.Array:
        received = Received(updates, weights, jnp.arange(N), jnp.asarray(params), jax.random.key(0))
        return rule.aggregate(received, rule.init(N, received.params))[0]

    def both(updates: jax.Array, weights: jax.Array, along: jax.Array) -> tuple:
        slope = jax.grad(lambda x: jnp.sum(along * result(x, weights)))
        return result(updates, weights), slope(updates)

    check(operations(both, of(N, D), of(N), of(D)), N, D, SLOW.get(name, ()))


@pytest.mark.parametrize("rule", [median(), trimmed_mean(F)], ids=["median", "trimmed mean"])
def test_leave_one_out_and_its_gradient(rule: Aggregator) -> None:
    def results(updates: jax.Array) -> jax.Array:
        received = Received(updates, jnp.ones(N), jnp.arange(N), jnp.zeros(D), jax.random.key(0))
        return rule.leave_one_out(received, ())

    def both(updates: jax.Array, along: jax.Array) -> tuple:
        return results(updates), jax.grad(lambda x: jnp.sum(along * results(x)))(updates)

    check(operations(both, of(N, D), of(N, D)), N, D)


@pytest.mark.parametrize("rule", [median(), bulyan(F)], ids=["median", "bulyan"])
def test_second_derivatives(rule: Aggregator) -> None:
    def curved(updates: jax.Array, t: jax.Array) -> jax.Array:
        return jax.jvp(jax.grad(lambda x: jnp.sum(rule(x) ** 3)), (updates,), (t,))[1]

    check(operations(curved, of(N, D), of(N, D)), N, D)


# --- Attacks ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ATTACKS)
def test_attacks(name: str) -> None:
    attack = ATTACKS[name].attack

    def crafted(updates: jax.Array, params: jax.Array) -> jax.Array:
        rows = np.arange(N)
        r = Round(updates, rows < 6, rows != 3, 6, params)
        return attack.craft(view(r, 0, attack.needs), attack.init(params))[0]

    check(operations(crafted, of(N, D), of(D)), N, D)


# --- Blocks of rounds ------------------------------------------------------------------------------


class TwoLayers(nn.Module):
    """A network of one's own, in plain Flax."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        x = nn.max_pool(nn.relu(nn.Conv(8, (3, 3))(x)), (2, 2), (2, 2))
        return nn.Dense(10)(x.reshape(x.shape[0], -1))


KNOWS_ALL = fr.Knowledge(others=True, rule=True)
BLOCKS = {
    "LR, trimmed mean": (models.SoftmaxRegression(10), trimmed_mean(3), fang_trim_full(), {}),
    "LR, Krum": (models.SoftmaxRegression(10), krum(3), fang_krum_full(), {}),
    "LR, Bulyan": (models.SoftmaxRegression(10), bulyan(3), fang_trim_full(), {}),
    "LR, gradients": (models.SoftmaxRegression(10), trimmed_mean(3), first_order(3), {}),
    "LR, epochs": (models.SoftmaxRegression(10), median(), sign_flip(), {"epochs": 2}),
    "DNN": (models.FangDNN(10), trimmed_mean(3), fang_trim_full(), {}),
    "DNN, steps": (models.FangDNN(10), mean(), sign_flip(), {"steps": 2, "momentum": 0.9}),
    "own network": (TwoLayers(), median(), sign_flip(), {"steps": 2}),
    "ResNet20": (models.ResNet20(10), mean(), sign_flip(), {}),
}


def block(
    module: nn.Module, rule: Aggregator, attack: fr.Attack, precision: str | None, **how: Any
):
    """Two rounds of 15 clients, as operations, and d."""
    x = np.zeros((4 * N, 28, 28, 1), np.float32)
    task = fr.classification(module, x[:1], precision=precision)
    index = np.arange(4 * N, dtype=np.int32).reshape(N, 4)
    data = fr.FederatedData(
        {"x": x, "y": np.zeros(4 * N, np.int32)}, index, np.full(N, 4, np.int32)
    )
    sim = fr.Simulation(
        task=task,
        client=fr.local_sgd(task, 0.1, 2, **how),
        aggregator=rule,
        attack=attack,
        knowledge=KNOWS_ALL,
        num_malicious=3,
    )

    def rounds(key: jax.Array, data: fr.FederatedData) -> tuple:
        state = driver._init(sim, None, None, key, data, None)
        return driver._block(sim, None, None, 1, 2, driver._evaluate_nothing, state, data)

    d = jax.eval_shape(task.init, jax.random.key(0)).shape[0]
    return operations(rounds, jax.random.key(0), data), d


@pytest.mark.parametrize("name", BLOCKS)
def test_blocks_of_rounds(name: str) -> None:
    module, rule, attack, training = BLOCKS[name]
    program, d = block(module, rule, attack, None, **training)
    check(program, N, d)


@pytest.mark.parametrize("module", [models.FangDNN(10), TwoLayers()], ids=["own", "Flax"])
def test_the_precision_reaches_the_whole_training(module: nn.Module) -> None:
    counts = []
    for precision in ("highest", None):
        program, _ = block(module, median(), sign_flip(), precision, steps=2)
        how = [op.how["precision_config"] for op in program if "precision_config" in op.how]
        exact = sum(text.count("HIGHEST") == 2 for text in how)
        counts.append((exact, len(how)))
    (exact, number), (few, _) = counts
    assert exact == number >= 8  # forwards and backwards, in both local steps
    assert few < number / 2
