"""Rules that remember clients: hand values, and many rounds in which clients come and go."""

from __future__ import annotations

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from reference import history
from scipy import special

import fedjax_robust as fr
from fedjax_robust import models
from fedjax_robust.aggregators import afa, foolsgold
from fedjax_robust.types import Aggregator, Received

GOLD = np.array([[1.0, 0], [1, 0.1], [0, 1], [-1, 1]], np.float32)
ADAPTIVE = np.array(
    [[-1.0, 0], [1, 0], [1, 0.2], [1, -0.1], [1, 0.1], [1, 0.3], [1, 0.05]], np.float32
)


def received(x: np.ndarray, ids: list[int], weights: np.ndarray | None = None) -> Received:
    weights = np.ones(len(x), np.float32) if weights is None else weights
    params = jnp.zeros(x.shape[1], x.dtype)
    return Received(
        jnp.asarray(x), jnp.asarray(weights), jnp.asarray(ids), params, jax.random.key(0)
    )


# --- Hand values -------------------------------------------------------------------------------------


def test_foolsgold_by_hand() -> None:
    rule = foolsgold()
    result, _, info = rule.aggregate(received(GOLD, [0, 1, 2, 3]), rule.init(4, jnp.zeros(2)))
    np.testing.assert_allclose(info["trust"], [0, 0, 1, 1])
    np.testing.assert_allclose(result, [-1, 2], rtol=1e-6)
    np.testing.assert_allclose(foolsgold(summed=False)(GOLD), [-0.5, 1], rtol=1e-6)


def test_foolsgolds_steps_by_hand() -> None:
    """The reference itself: cosines, pardon, and the weights before the logit."""
    unit = GOLD / np.linalg.norm(GOLD, axis=1)[:, None]
    cs = np.float64(unit) @ unit.T
    np.fill_diagonal(cs, -1)
    v = cs.max(axis=1) + 1e-5
    np.testing.assert_allclose(v, [0.9950471902] * 2 + [0.7071167812] * 2, rtol=1e-6)
    np.testing.assert_allclose(cs[2, 1] * v[2] / v[1], 0.0707109675, rtol=1e-5)
    np.testing.assert_allclose(cs[3, 0] * v[3] / v[0], -0.5024958374, rtol=1e-5)


def test_afa_by_hand() -> None:
    rule = afa()
    state = rule.init(7, jnp.zeros(2))
    result, (alpha, beta, blocked), info = rule.aggregate(received(ADAPTIVE, [*range(7)]), state)
    np.testing.assert_allclose(result, [1, 0.0916666667], rtol=1e-6)
    assert list(np.flatnonzero(~np.asarray(info["selected"]))) == [0]
    np.testing.assert_array_equal(alpha, [3] + [4] * 6)
    np.testing.assert_array_equal(beta, [4] + [3] * 6)
    assert not np.any(blocked)


def test_afa_blocks_at_the_sixth_verdict() -> None:
    """P(p < .5) is .9453 after five and .9673 after six; then the client is gone for good."""
    np.testing.assert_allclose(special.betainc(3, 8, 0.5), 0.9453, atol=1e-4)
    np.testing.assert_allclose(special.betainc(3, 9, 0.5), 0.9673, atol=1e-4)
    rule = afa()
    state = rule.init(7, jnp.zeros(2))
    for verdict in range(1, 8):
        _, state, info = rule.aggregate(received(ADAPTIVE, [*range(7)]), state)
        assert bool(info["blocked"][0]) == (verdict >= 6)
    assert state[1][0] == 9  # who is blocked is not judged again
    honest = ADAPTIVE.copy()
    honest[0] = [1, 0.05]
    _, state, info = rule.aggregate(received(honest, [*range(7)]), state)
    assert not info["selected"][0] and info["blocked"][0]


# --- Rounds with partial participation ---------------------------------------------------------------


def rounds(seed: int, number: int = 12) -> list[tuple[np.ndarray, list[int], np.ndarray]]:
    """Some of nine clients in each, some absent, two of them pointing the same wrong way."""
    rng = np.random.default_rng(seed)
    result = []
    for _ in range(number):
        ids = np.sort(rng.choice(9, 6, replace=False))
        x = rng.normal(size=(6, 4)) + 1.5
        x[ids < 2] = np.array([-3.0, -2, -3, -2.5]) + 0.01 * rng.normal(size=(np.sum(ids < 2), 4))
        weights = np.where(rng.random(6) > 0.2, rng.integers(1, 4, 6), 0).astype(np.float32)
        result.append((x.astype(np.float32), [int(i) for i in ids], weights))
    return result


@pytest.mark.parametrize("seed", range(3))
def test_foolsgold_over_rounds(seed: int) -> None:
    rule, slow = foolsgold(), history.FoolsGold(4)
    step, state = jax.jit(rule.aggregate), rule.init(9, jnp.zeros(4))
    for x, ids, weights in rounds(seed):
        result, state, info = step(received(x, ids, weights), state)
        expected, trust = slow.aggregate(x, ids, weights)
        np.testing.assert_allclose(info["trust"], trust, atol=2e-4)
        np.testing.assert_allclose(result, expected, atol=1e-3)
    for i in range(9):
        np.testing.assert_allclose(state[i], slow.history.get(i, np.zeros(4)), atol=1e-5)


@pytest.mark.parametrize("seed", range(3))
def test_afa_over_rounds(seed: int) -> None:
    rule, slow = afa(block=0.6), history.AFA(block=0.6)
    step, state = jax.jit(rule.aggregate), rule.init(9, jnp.zeros(4))
    for x, ids, weights in rounds(seed, 20):
        result, state, info = step(received(x, ids, weights), state)
        expected, good = slow.aggregate(x, ids, weights)
        assert list(np.flatnonzero(info["selected"])) == good
        np.testing.assert_allclose(result, expected, rtol=1e-4, atol=1e-5)
    assert set(np.flatnonzero(state[2]).tolist()) == slow.blocked
    assert slow.blocked, "somebody is blocked in these rounds"


@pytest.mark.parametrize("rule", [foolsgold(summed=False), afa()], ids=["foolsgold", "afa"])
def test_killed_runs_end_bit_identical(rule: Aggregator, tmp_path: Path) -> None:
    """The memory goes through a checkpoint, by client."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(40, 4)).astype(np.float32)
    pool = {"x": jnp.asarray(x), "y": jnp.arange(40, dtype=jnp.int32) % 3}
    data = fr.FederatedData(
        pool, jnp.arange(40, dtype=jnp.int32).reshape(8, 5), jnp.full(8, 5, jnp.int32)
    )
    task = fr.classification(models.SoftmaxRegression(3), x[:1])
    sim = fr.Simulation(task, fr.local_sgd(task, 0.1, 2), rule, clients_per_round=5)
    whole, _ = fr.run(sim, jax.random.key(1), data, 4)
    path = tmp_path / "state.npz"
    fr.run(sim, jax.random.key(1), data, 2, checkpoint=path, evaluate_every=1)
    resumed, _ = fr.run(sim, jax.random.key(1), data, 4, checkpoint=path, evaluate_every=1)
    for a, b in zip(
        jax.tree.leaves(whole.aggregator), jax.tree.leaves(resumed.aggregator), strict=True
    ):
        np.testing.assert_array_equal(a, b)
    np.testing.assert_array_equal(whole.params, resumed.params)
