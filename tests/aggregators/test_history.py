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
from fedjax_robust.aggregators import afa, contra, fldetector, foolsgold
from fedjax_robust.aggregators.fldetector import hessian_times, upper_cluster
from fedjax_robust.types import Aggregator, Received

GOLD_64 = np.array([[1.0, 0], [1, 0.1], [0, 1], [-1, 1]])
GOLD = GOLD_64.astype(np.float32)
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
    """In the reference, against which the rule is tested."""
    v, pardoned, a = history.FoolsGold(2).before_the_logit(list(GOLD_64))
    np.testing.assert_allclose(v, [0.9950471902] * 2 + [0.7071167812] * 2, rtol=1e-9)
    np.testing.assert_allclose(pardoned[2, 1], 0.0707109675, rtol=1e-8)
    np.testing.assert_allclose(pardoned[3, 0], -0.5024958374, rtol=1e-9)
    np.testing.assert_allclose(a, [0.0169440925] * 2 + [0.99] * 2, rtol=1e-8)


@pytest.mark.parametrize("summed", [True, False])
def test_foolsgold_compares_chosen_coordinates_and_sums_all(summed: bool) -> None:
    """Two clients alike in the features only, and two alike in all else; a memory of (N, m)."""
    x = np.array([[1.0, 0, 5, -3], [1, 0.1, -4, 2], [0, 1, 7, 7], [-1, 1, 7, 7.1]], np.float32)
    rule = foolsgold(summed=summed, features=lambda row: row[:2])
    state = rule.init(4, jnp.zeros(4))
    assert state.shape == (4, 2)
    result, state, info = rule.aggregate(received(x, [3, 2, 1, 0]), state)
    np.testing.assert_allclose(info["trust"], [0, 0, 1, 1])  # as of GOLD
    np.testing.assert_allclose(
        result, np.array([-1, 2, 14, 14.1]) / (1 if summed else 2), rtol=1e-6
    )
    np.testing.assert_array_equal(state, x[::-1, :2])


@pytest.mark.parametrize("features", [lambda row: row[0], lambda row: (row, row)])
def test_features_are_a_vector(features) -> None:
    with pytest.raises(ValueError, match=r"foolsgold needs features that return a vector \(m,\)"):
        foolsgold(features=features)(GOLD)


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


def test_contra_by_hand() -> None:
    """The sheet's values are the port's, which counts a client's own 0 among the k; so the last differs:
    (.7071067812 - .6332377903) / 2 of the others."""
    cs = np.array([[history.cosine(a, b) for b in GOLD_64] for a in GOLD_64])
    tau = history.Contra(2, 2)._tau(cs)
    np.testing.assert_allclose(tau[:3], [0.4975185951, 0.5472704546, 0.4033052501], rtol=1e-9)
    np.testing.assert_allclose(tau[3], (0.7071067812 - 0.6332377903) / 2, rtol=1e-8)
    np.fill_diagonal(cs, 0)
    port = np.mean(np.sort(cs, axis=1)[:, -2:], axis=1)
    np.testing.assert_allclose(
        port, [0.4975185951, 0.5472704546, 0.4033052501, 0.3535533906], rtol=1e-9
    )


def test_contra_lowers_the_reputation_of_the_aligned() -> None:
    """tau = .4975, .5473, .4033, .0369 for k = 2: at .45 the first two are aligned. The port raises
    their reputation."""
    rule = contra(2, threshold=0.45, delta=0.25)
    state, now = rule.init(4, jnp.zeros(2)), received(GOLD, [0, 1, 2, 3])
    for reputations in ([0.75, 0.75, 1, 1], [0.5, 0.5, 1, 1]):
        _, state, info = rule.aggregate(now, state)
        np.testing.assert_allclose(info["reputation"], reputations)
    _, _, info = contra(1).aggregate(now, contra(1).init(4, jnp.zeros(2)))
    # tau = .995 twice, .7071 twice, and cosines of the last two to the first are scaled, but not to
    # each other: a = .00498, .00498, .2929, .2929, divided by the largest .01698, .99.
    np.testing.assert_allclose(info["trust"], [0, 0, 1, 1])


def test_the_hessian_and_not_its_inverse() -> None:
    """By hand; against the BFGS recursion; in any units."""
    nothing = jnp.zeros((10, 2))
    s, y = nothing.at[-1].set(jnp.array([1.0, 0])), nothing.at[-1].set(jnp.array([2.0, 1]))
    product, finite = hessian_times(s, y, jnp.int32(1), jnp.ones(2))
    assert finite
    np.testing.assert_allclose(product, [3, 3.5], rtol=1e-6)  # the inverse gives .4, .2
    rng = np.random.default_rng(0)
    hessian = np.cov(rng.normal(size=(4, 9)))
    steps = rng.normal(size=(3, 4))
    changes, v = steps @ hessian, rng.normal(size=4)
    expected = history.bfgs(list(steps), list(changes)) @ v
    window = np.zeros((10, 4))
    for a, b, c in ((1, 1, 1), (1e-15, -1e-18, 1e-20), (1e10, 1e12, 1e5)):
        s, y = window.copy(), window.copy()
        s[-3:], y[-3:] = a * steps, b * changes
        result, _ = hessian_times(
            *(jnp.asarray(x, jnp.float32) for x in (s, y)),
            jnp.int32(3),
            jnp.asarray(c * v, jnp.float32),
        )
        np.testing.assert_allclose(np.float64(result) * a / (b * c), expected, rtol=1e-4)


def test_singular_pairs_are_no_disaster() -> None:
    """Equal steps, as of a linear objective; no pair at all; and a product beyond the largest float."""
    same = jnp.ones((10, 3))
    product, finite = hessian_times(same, 2 * same, jnp.int32(10), jnp.ones(3))
    np.testing.assert_allclose(product, 2 * np.ones(3), rtol=1e-4)
    assert finite
    product, finite = hessian_times(same, same, jnp.int32(0), jnp.ones(3))
    np.testing.assert_array_equal(product, 0)
    assert finite
    product, finite = hessian_times(1e-20 * same, 1e20 * same, jnp.int32(10), jnp.ones(3))
    np.testing.assert_array_equal(product, 0)
    assert not finite


def test_fldetector_reports_a_product_that_is_not_finite() -> None:
    rule = fldetector(window=1)
    memory = rule.init(3, jnp.zeros(2))._replace(
        steps=jnp.full((1, 2), 1e-20),
        changes=jnp.full((1, 2), 1e20),
        pairs=jnp.int32(1),
        rows=jnp.array([[1.0, 1], [0, 2], [1, 0]]),
        seen=jnp.ones(3, bool),
        round=jnp.int32(1),
    )
    now = received(np.array([[1, 1], [0, 2], [1, 3]], np.float32), [0, 1, 2])
    _, _, info = rule.aggregate(now._replace(params=jnp.ones(2)), memory)
    assert not info["finite"]
    np.testing.assert_allclose(info["score"], [0, 0, 1])  # predicted from the last rows alone
    _, _, info = rule.aggregate(now, memory)  # the model has not moved
    assert info["finite"]


def test_distances_to_predictions_by_hand() -> None:
    """Rows (1.5, .5), (.5, 1.4), (-1, 1) with last rows (1, 1), (0, 2), (1, 0) and h = (.5, -.5)."""
    rule = fldetector(window=1)
    memory = rule.init(3, jnp.zeros(2))
    # One pair with B = -1 and the model moved by (-.5, .5): h = (.5, -.5).
    memory = memory._replace(
        steps=jnp.array([[1.0, 1.0]]),
        changes=jnp.array([[-1.0, -1.0]]),
        pairs=jnp.int32(1),
        rows=jnp.array([[1.0, 1], [0, 2], [1, 0]]),
        seen=jnp.ones(3, bool),
        round=jnp.int32(1),
    )
    x = np.array([[1.5, 0.5], [0.5, 1.4], [-1, 1]], np.float32)
    now = received(x, [0, 1, 2])._replace(params=jnp.array([-0.5, 0.5]))
    _, _, info = rule.aggregate(now, memory)
    np.testing.assert_allclose(info["score"], [0, 0.0331622609, 0.9668377391], atol=1e-5)


@pytest.mark.parametrize("seed", range(6))
def test_the_gap_statistic(seed: int) -> None:
    rng = np.random.default_rng(seed)
    scores = rng.random(9).astype(np.float32)
    if seed % 2:
        scores[[1, 4]] += 20
    known = np.ones(9, bool) if seed < 4 else rng.random(9) > 0.3
    found = upper_cluster(jax.random.key(seed), jnp.asarray(scores), jnp.asarray(known), 10)
    place = np.cumsum(known) - 1
    samples = [
        [float(jax.random.uniform(jax.random.fold_in(key, i), ())) for i in place[known]]
        for key in (jax.random.fold_in(jax.random.key(seed), b) for b in range(10))
    ]
    expected = history.upper_cluster(scores[known], np.array(samples))
    assert list(np.asarray(found)[known]) == expected
    assert not np.any(np.asarray(found)[~known])
    if seed in (1, 3):
        assert list(np.flatnonzero(found)) == [1, 4]


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


@pytest.mark.parametrize(("seed", "columns"), [(0, None), (1, None), (2, [0, 2, 3])])
def test_foolsgold_over_rounds(seed: int, columns: list[int] | None) -> None:
    features = None if columns is None else lambda row: row[np.array(columns)]
    rule, slow = foolsgold(features=features), history.FoolsGold(4, columns)
    step, state = jax.jit(rule.aggregate), rule.init(9, jnp.zeros(4))
    for x, ids, weights in rounds(seed):
        result, state, info = step(received(x, ids, weights), state)
        expected, trust = slow.aggregate(x, ids, weights)
        np.testing.assert_allclose(info["trust"], trust, atol=2e-4)
        np.testing.assert_allclose(result, expected, atol=1e-3)
    for i in range(9):
        own = slow.history.get(i, np.zeros(state.shape[1]))
        np.testing.assert_allclose(state[i], own, atol=1e-5)


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


@pytest.mark.parametrize("seed", range(2))
def test_contra_over_rounds(seed: int) -> None:
    rule, slow = contra(2), history.Contra(4, 2)
    step, state = jax.jit(rule.aggregate), rule.init(9, jnp.zeros(4))
    for x, ids, weights in rounds(seed):
        result, state, info = step(received(x, ids, weights), state)
        expected, trust = slow.aggregate(x, ids, weights)
        np.testing.assert_allclose(info["trust"], trust, atol=2e-4)
        np.testing.assert_allclose(result, expected, atol=1e-3)
    for i in range(9):
        assert state[1][i] == pytest.approx(slow.reputation.get(i, 1.0), abs=1e-5)


def quadratic_rounds(bad: bool, number: int = 14) -> list[tuple[np.ndarray, list[int], np.ndarray]]:
    """Clients whose gradients share one Hessian, and one (8) that sends noise if ``bad``."""
    rng = np.random.default_rng(5)
    hessian = np.cov(rng.normal(size=(4, 12)))
    centres, params, result = rng.normal(size=(9, 4)), np.zeros(4), []
    for _ in range(number):
        ids = np.sort(rng.choice(9, 7, replace=False))
        if 8 not in ids:
            ids[-1] = 8
        x = -0.3 * (params - centres[ids]) @ hessian
        if bad:
            x[ids == 8] = 3 * rng.normal(size=4)
        result.append((x.astype(np.float32), [int(i) for i in ids], params.astype(np.float32)))
        params = params + x.mean(axis=0)
    return result


def test_fldetectors_scores_over_rounds() -> None:
    rule, slow = fldetector(window=3, start=1000), history.FLDetector(3)
    step, state = jax.jit(rule.aggregate), rule.init(9, jnp.zeros(4))
    for x, ids, params in quadratic_rounds(bad=True):
        now = received(x, ids)._replace(params=jnp.asarray(params))
        _, state, info = step(now, state)
        np.testing.assert_allclose(
            info["score"], slow.scores(x, ids, np.float64(params)), atol=5e-3
        )


def test_fldetector_removes_who_is_inconsistent_for_good() -> None:
    """Client 8 is found in the first round that may, and never comes back. All scores begin anew: the
    next round has no others in it, and nobody else is found before ``start`` rounds have passed."""
    rule = fldetector(window=3, start=5)
    step, state = jax.jit(rule.aggregate), rule.init(9, jnp.zeros(4))
    for i, (x, ids, params) in enumerate(quadratic_rounds(bad=True, number=10)):
        now = received(x, ids)._replace(params=jnp.asarray(params))
        result, state, info = step(now, state)
        assert np.flatnonzero(state.removed).tolist() == ([8] if i >= 5 else [])
        assert state.quiet == (i - 5 if i >= 5 else i + 1)
        if i == 5:
            np.testing.assert_array_equal(state.scored, 0)
            np.testing.assert_array_equal(state.scores, 0)
        if i == 6:  # one distance each, shares of a sum over the others
            assert np.sum(info["score"]) == pytest.approx(1, abs=1e-5)
        kept = np.asarray(info["selected"])
        assert list(kept) == [not (i >= 5 and client == 8) for client in ids]
        np.testing.assert_allclose(result, x[kept].mean(axis=0), atol=1e-5)


def test_fldetector_does_not_part_honest_clients_by_their_rounds() -> None:
    """Three clients were away while a malicious one had most of the sum. Their shares since it was found
    are six times those that the others had before; means over both would tell them apart."""
    rng = np.random.default_rng(0)
    rule = fldetector(window=4, start=4)
    step, state = jax.jit(rule.aggregate), rule.init(9, jnp.zeros(4))
    params, centres = np.zeros(4), rng.normal(size=(9, 4))
    for t in range(8):
        away = {5, 6, 7} if 0 < t <= 4 else set()
        ids = [i for i in range(9) if i not in away]
        x = -0.1 * (params - centres)
        x += 0.01 * np.tile(
            rng.normal(size=4) * [1, -1, 1, -1], (9, 1)
        )  # the same for all: no cluster
        x[8] = 3 * rng.normal(size=4)
        weights = np.array([i in ids for i in range(9)], np.float32)
        now = received(x.astype(np.float32), [*range(9)], weights)
        result, state, _ = step(now._replace(params=jnp.asarray(params, jnp.float32)), state)
        assert np.flatnonzero(state.removed).tolist() == ([8] if t >= 4 else [])
        params = params + np.asarray(result)


# --- One client near the largest float ---------------------------------------------------------------

HUGE = 3e38


@pytest.mark.parametrize("rule", [foolsgold(), contra(2)], ids=["foolsgold", "contra"])
def test_an_overflowing_history_does_not_silence_the_others(rule: Aggregator) -> None:
    """Infinite, it would have no direction, and look like everybody's sybil."""
    x = np.float32([[HUGE, HUGE, HUGE], [1, 0, 0], [0, 1, 0], [0, 0, -1]])
    state, now = rule.init(4, jnp.zeros(3)), received(x, [0, 1, 2, 3])
    _, state, first = rule.aggregate(now, state)
    for _ in range(2):
        _, state, info = rule.aggregate(now, state)
        assert np.all(np.isfinite(jax.tree.leaves(state)[0]))
        np.testing.assert_allclose(info["trust"], first["trust"], rtol=1e-5)
    assert np.any(info["trust"][1:] > 0)


@pytest.mark.parametrize("huge", [HUGE, 1e30])
def test_afa_sees_the_others_behind_a_huge_row(huge: float) -> None:
    """The hand-made rows times 1e-9 lose client 0 also if a huge row falls first."""
    x = np.concatenate([1e-9 * ADAPTIVE, [[-huge, -huge]]]).astype(np.float32)
    rule = afa()
    result, _, info = rule.aggregate(received(x, [*range(8)]), rule.init(8, jnp.zeros(2)))
    assert (
        list(np.flatnonzero(info["selected"]))
        == history.AFA().aggregate(np.float64(x), [*range(8)])[1]
    )
    np.testing.assert_allclose(result, [1e-9, 0.0916666667e-9], rtol=1e-5)


def test_fldetector_finds_who_jumps_between_the_largest_floats() -> None:
    """Differences of finite rows overflow, and one NaN would be all scores'."""
    rule = fldetector(window=3, start=2)
    step, state = jax.jit(rule.aggregate), rule.init(9, jnp.zeros(4))
    for t, (x, ids, params) in enumerate(quadratic_rounds(bad=True, number=3)):
        x[np.array(ids) == 8] = (-1) ** t * HUGE
        _, state, info = step(received(x, ids)._replace(params=jnp.asarray(params)), state)
        assert np.all(np.isfinite(info["score"]))
    assert np.flatnonzero(state.removed).tolist() == [8]  # in the first round with scores


# --- Checkpoints -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "rule",
    [foolsgold(summed=False), afa(), contra(2), fldetector(start=2)],
    ids=["foolsgold", "afa", "contra", "fldetector"],
)
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
