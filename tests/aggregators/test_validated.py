"""DeepSight, FAIR, the learned credits, Romoa, SignGuard, Zeno: by hand, over rounds, simulated."""

from __future__ import annotations

import functools
import re
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference as ref
from sklearn.cluster import HDBSCAN

import fedjax_robust as fr
from fedjax_robust import data, metrics, models
from fedjax_robust.aggregators import (
    deepsight,
    fair,
    fair_by_quality,
    krum,
    learned_credits,
    learned_credits_reinforce,
    mean,
    norm_clipping,
    romoa,
    signguard,
    signguard_dist,
    signguard_sim,
    zeno,
)
from fedjax_robust.aggregators.deepsight import _division_differences, _energies
from fedjax_robust.aggregators.signguard import _by_length, _shares_of_signs
from fedjax_robust.kernels.hdbscan import hdbscan
from fedjax_robust.kernels.simplex import project_onto_simplex
from fedjax_robust.kernels.two_means import larger_cluster, two_means
from fedjax_robust.types import Aggregator, Received, Task

# Of byzantine.md: n = 5, d = 2, the first row malicious.
TOY = np.array([[10, -8], [1, 0], [0, 2], [1, 1], [3, 1]], np.float32)
PULLED = np.array([[1, 0], [0, 1], [-2, 0]], np.float32)
ZERO = np.zeros(2, np.float32)


def bowl(params):
    """|w - (1, 1, ...)|^2 / 2."""
    return 0.5 * jnp.sum(jnp.square(params - 1))


def numpy_bowl(params: np.ndarray) -> float:
    return 0.5 * float(np.sum((params - 1) ** 2))


def task_of(loss: Callable[..., jax.Array], d: int = 2) -> Task:
    return Task(
        lambda key: jnp.zeros(d),
        loss,
        lambda params, x: jnp.zeros((len(x), 2)) + params[0],
        lambda params: {"bias": params[: d // 3], "weight": params[d // 3 :].reshape(2, -1)},
    )


BOWL = task_of(lambda params, batch: bowl(params))
EXAMPLES = {"x": np.zeros((6, 1), np.float32), "y": np.zeros(6, np.int32)}


def received(x: np.ndarray, weights=None, key: int = 0, ids=None, params=None) -> Received:
    n, d = x.shape
    return Received(
        jnp.asarray(x),
        jnp.ones(n, np.float32) if weights is None else jnp.asarray(weights, np.float32),
        jnp.arange(n, dtype=jnp.int32) if ids is None else jnp.asarray(ids, jnp.int32),
        jnp.zeros(d, x.dtype) if params is None else jnp.asarray(params, x.dtype),
        jax.random.key(key),
    )


def call(rule: Aggregator, one: Received) -> tuple:
    """One program instead of many small ones."""
    return jax.jit(rule.aggregate)(one, rule.init(len(one.updates), one.params))


def rounds(seed: int, n: int, d: int, of: int, number: int, dtype=np.float64):
    """Updates, ids, weights of some rounds: n of all clients each, with an absent row in most."""
    rng = np.random.default_rng(seed)
    for t in range(number):
        weights = rng.uniform(0.5, 2, n)
        ids = np.sort(rng.permutation(of)[:n])
        if t % 3:
            weights[rng.integers(n)] = 0
        yield rng.normal(0.3, 1, (n, d)).astype(dtype), ids, weights.astype(np.float32)


# --- Zeno ------------------------------------------------------------------------------------------


def test_zeno_by_hand() -> None:
    for f, rows, expected in [(2, [1, 2, 3], [2 / 3, 1]), (1, [1, 2, 3, 4], [1.25, 1])]:
        rule = zeno(BOWL, EXAMPLES, f, 0.1)
        result, _, info = call(rule, received(TOY))
        np.testing.assert_allclose(info["scores"], [-96.4, 0.4, -0.4, 0.8, -2], rtol=1e-6)
        np.testing.assert_array_equal(np.flatnonzero(info["selected"]), rows)
        np.testing.assert_allclose(result, expected, rtol=1e-6)
    # The authors' code: rho times the mean of the squares, d = 2.
    info = call(zeno(BOWL, EXAMPLES, 2, 0.1 / 2), received(TOY))[2]
    np.testing.assert_allclose(info["scores"], [-88.2, 0.45, -0.2, 0.9, -1.5], rtol=1e-6)
    # A large rho leaves out the longest; without one the loss alone decides, and 0 rows are left out.
    info = call(zeno(BOWL, EXAMPLES, 2, 1e6), received(TOY))[2]
    np.testing.assert_array_equal(np.flatnonzero(info["selected"]), [1, 2, 3])
    info = call(zeno(BOWL, EXAMPLES, 0, 0.0), received(TOY, [1, 1, 0, 1, 1]))[2]
    np.testing.assert_array_equal(info["selected"], [True, True, False, True, True])
    assert info["scores"][2] == -np.inf


def test_zeno_draws_a_fresh_batch_without_replacement() -> None:
    """Example k weighs 2^k, so that the score of the row (-1, 0) tells which were drawn."""
    task = task_of(lambda params, batch: jnp.sum(batch["x"]) * params[0])
    examples = EXAMPLES | {"x": 2.0 ** np.arange(6, dtype=np.float32)[:, None]}
    x = np.array([[-1, 0], [0, 0]], np.float32)

    def drawn(batch_size: int | None) -> np.ndarray:
        rule = zeno(task, examples, 1, 0.0, batch_size=batch_size)
        keys = jax.random.split(jax.random.key(0), 300)
        every = jax.jit(
            jax.vmap(lambda key: rule.aggregate(received(x)._replace(key=key), ())[2]["scores"])
        )
        bits = np.asarray(every(keys))[:, 0].astype(int)
        return bits[:, None] >> np.arange(6) & 1

    some = drawn(2)
    assert np.all(some.sum(axis=1) == 2)
    assert len(np.unique(some, axis=0)) == 15  # all pairs
    assert np.all(np.abs(some.sum(axis=0) - 100) < 5 * np.sqrt(300 * 2 / 9))
    assert np.all(drawn(None) == 1)


def test_zeno_without_a_score() -> None:
    """A model whose loss is NaN comes last, squares beyond all floats before it; longer ones go first."""
    task = task_of(lambda params, batch: jnp.where(params[0] < 0, jnp.nan, params[1]))
    x = np.array([[-1, 0], [1e30, 0], [1e25, 0], [1, 1], [-2, -9]], np.float32)
    selected = jax.jit(lambda f: call(zeno(task, EXAMPLES, f, 0.5), received(x))[2]["selected"])
    for f, left in [(1, {0, 1, 2, 3}), (2, {1, 2, 3}), (3, {2, 3}), (4, {3})]:
        assert set(np.flatnonzero(selected(f))) == left
    # No more than f rows: nobody stays.
    result, _, info = call(zeno(task, EXAMPLES, 2, 0.5), received(x, [1, 0, 0, 1, 0]))
    assert not np.any(result) and not np.any(info["selected"])


def test_zeno_chunks_traced_f_and_the_base_rule() -> None:
    x = np.random.default_rng(0).normal(size=(9, 2)).astype(np.float32)
    expected, _, info = call(zeno(BOWL, EXAMPLES, 2, 0.1), received(x))
    traced = jax.jit(lambda f: zeno(BOWL, EXAMPLES, f, 0.1, chunk=4)(x))
    np.testing.assert_allclose(traced(2), expected, rtol=1e-6)
    inner = call(zeno(BOWL, EXAMPLES, 2, 0.1, base=krum(0)), received(x))[2]
    assert np.sum(inner["selected"]) == 1 and np.all(info["selected"][inner["selected"]])
    with pytest.raises(ValueError, match=re.escape("zeno needs n > f, or nothing may be left")):
        zeno(BOWL, EXAMPLES, 9, 0.1)(x)
    with pytest.raises(ValueError, match=r"zeno needs batch_size <= 6.*got batch_size=7"):
        zeno(BOWL, EXAMPLES, 2, 0.1, batch_size=7)


# --- FAIR ------------------------------------------------------------------------------------------


def test_onto_the_simplex() -> None:
    rng = np.random.default_rng(1)
    project = jax.jit(project_onto_simplex)
    for _ in range(40):
        x = (rng.normal(size=9) * 10.0 ** rng.integers(-3, 4)).astype(np.float32)
        present = rng.random(9) < 0.7
        expected = np.zeros(9)
        if np.any(present):
            expected[present] = ref.onto_simplex(x[present].astype(np.float64))
        np.testing.assert_allclose(project(x, present), expected, atol=2e-6)
    for x, expected in [
        ([np.inf, np.nan, 0], [1, 0, 0]),
        ([-np.inf, 3e38, 3e38], [0, 0.5, 0.5]),
        ([np.nan] * 3, [1 / 3] * 3),
    ]:
        np.testing.assert_allclose(project(jnp.array(x), jnp.ones(3, bool)), expected, rtol=1e-6)
    np.testing.assert_array_equal(project(jnp.ones(3), jnp.zeros(3, bool)), 0)


def test_fair_by_hand() -> None:
    result, _, info = call(fair(bowl, 0.1, steps=1), received(PULLED))
    np.testing.assert_allclose(info["trust"], [0.4888888889, 0.4222222222, 0.0888888889], rtol=1e-6)
    result, _, info = call(fair(bowl, 0.1, steps=300), received(PULLED))
    np.testing.assert_allclose(info["trust"], [0.5, 0.5, 0], atol=1e-6)
    np.testing.assert_allclose(result, [0.5, 0.5], atol=1e-6)
    np.testing.assert_array_equal(info["selected"], [True, True, False])


def test_fair_equals_its_definition_and_leaves_out_what_has_no_loss() -> None:
    rng = np.random.default_rng(2)
    rule = fair(lambda w: bowl(w) + 0 * jnp.log(4 - w[0]), 0.05, steps=15)  # NaN beyond 4
    aggregate = jax.jit(rule.aggregate)
    for seed in range(4):
        x, weights = rng.normal(size=(7, 3)).astype(np.float32), np.ones(7, np.float32)
        x[seed, 0], weights[6 - seed] = 5, 0
        params = np.array([0.1, -0.2, 0.3])
        kept = weights.copy()
        kept[seed] = 0
        result, _, info = aggregate(received(x, weights, params=params), ())
        expected = ref.fair_weights(x, lambda w: w - 1, 0.05, 15, params, kept)
        np.testing.assert_allclose(info["trust"], expected, atol=2e-6)
        np.testing.assert_allclose(result, expected @ x, atol=5e-6)


def test_fair_behind_clipping_drops_a_long_row() -> None:
    """Beside it the step is too long; at the others' length it is not."""
    x = np.vstack([PULLED, [[-1e6, 1e6]]]).astype(np.float32)
    result = norm_clipping(1.0, base=fair(bowl, 0.1, steps=300))(x)
    np.testing.assert_allclose(result, [0.5, 0.5], atol=1e-4)


def test_fair_by_quality_by_hand() -> None:
    result, state, info = call(fair_by_quality(bowl), received(PULLED))
    np.testing.assert_allclose(info["quality"], [0.5, 0.5, -4], rtol=1e-6)
    np.testing.assert_allclose(state.mean, [0.5, 0.5, -4], rtol=1e-6)
    np.testing.assert_allclose(result, [0.5, 0.5], rtol=1e-6)
    x = np.array([[1, 0], [0.5, 0], [0.1, 0]], np.float32)  # qualities .5, .375, .095
    result = fair_by_quality(bowl, threshold=0.1)(x, [1, 2, 1])
    np.testing.assert_allclose(result, [(0.5 + 0.375) / (0.5 + 0.75), 0], rtol=1e-6)
    assert not np.any(fair_by_quality(bowl, threshold=0.5)(x))


@pytest.mark.parametrize("forget", [0.0, 0.7, np.inf])
def test_fair_by_quality_remembers_by_client(forget: float) -> None:
    rule = fair_by_quality(bowl, forget)
    aggregate = jax.jit(rule.aggregate)
    state = rule.init(7, jnp.zeros(3))
    histories: list[list[tuple[int, float]]] = [[] for _ in range(7)]
    chosen = set()
    for x, ids, weights in rounds(3, 4, 3, 7, 8, np.float32):
        result, state, info = aggregate(received(x, weights, ids=ids), state)
        histories = [[(age + 1, q) for age, q in history] for history in histories]
        for row, client, weight in zip(x, ids, weights, strict=True):
            if weight > 0:
                histories[client].append((0, numpy_bowl(np.zeros(3)) - numpy_bowl(row)))
        if np.isinf(forget):
            newest = [[(0, q) for age, q in h if age == min(h)[0]] for h in histories]
            estimates = ref.fair_quality_estimates(newest, 0.0)
        else:
            estimates = ref.fair_quality_estimates(histories, forget)
        np.testing.assert_allclose(state.mean, estimates, rtol=1e-4, atol=1e-6)
        expected = ref.fair_by_quality(x, estimates[ids], weights)
        np.testing.assert_allclose(result, expected, rtol=1e-4, atol=1e-5)
        chosen.add(tuple(np.asarray(info["selected"])))
    assert len(chosen) > 2


def test_fair_by_quality_of_a_loss_without_a_value() -> None:
    def loss(params):
        return jnp.where(params[0] > 5, jnp.nan, jnp.where(params[0] < -5, jnp.inf, bowl(params)))

    rule = fair_by_quality(loss)
    x = np.array([[9, 0], [-9, 0], [1, 0]], np.float32)
    result, state, _ = rule.aggregate(received(x), rule.init(3, ZERO))
    assert np.all(np.isfinite(state.mean)) and np.all(state.mean[:2] < -1e37)
    np.testing.assert_allclose(result, [1, 0])


# --- Learned credits -------------------------------------------------------------------------------


def test_credits_by_hand() -> None:
    """Row 2 leads away: its credit falls in every round."""
    rule = learned_credits(bowl, 1.0)
    aggregate, state = jax.jit(rule.aggregate), rule.init(3, ZERO)
    result, state, info = aggregate(received(PULLED), state)
    np.testing.assert_allclose(result, [-1 / 3, 1 / 3], rtol=1e-6)
    # Gradients (-4/3, -2/3, 8/3) along the rows, 2/9 on average; L(0) = 1, L(result) = 10/9.
    np.testing.assert_allclose(state, [14 / 27, 8 / 27, -22 / 27], rtol=1e-6)
    np.testing.assert_allclose(info["reward"], -1 / 9, rtol=1e-5)
    trust = [info["trust"]]
    for _ in range(10):
        result, state, info = aggregate(received(PULLED), state)
        trust.append(info["trust"])
    assert np.all(np.diff(np.array(trust)[:, 2]) < 0) and trust[-1][2] < 0.05
    np.testing.assert_allclose(np.sum(trust, axis=1), 1, rtol=1e-5)


def test_credits_are_learned_by_client() -> None:
    rule = learned_credits(bowl, 0.5)
    with jax.enable_x64(True):
        aggregate = jax.jit(rule.aggregate)
        state, theta = rule.init(7, jnp.zeros(3, jnp.float64)), np.zeros(7)
        params = np.array([0.2, 0.5, -0.3])
        for x, ids, weights in rounds(4, 4, 3, 7, 6):
            result, state, info = aggregate(received(x, weights, ids=ids, params=params), state)
            here = ids[weights > 0]
            rows = x[weights > 0]
            np.testing.assert_allclose(result, ref.credits_of(theta[here]) @ rows, rtol=1e-9)
            reward = ref.credit_reward(theta[here], rows, numpy_bowl, params)
            np.testing.assert_allclose(info["reward"], reward, rtol=1e-9)
            theta[here] += 0.5 * ref.credit_slope(theta[here], rows, numpy_bowl, params)
            np.testing.assert_allclose(state, theta, atol=1e-7)
            theta = np.array(state)
    assert np.all(theta != 0)


def test_reinforce_equals_its_definition() -> None:
    """The draws are the round's key's, by client: they do not depend on who else is there."""
    rule = learned_credits_reinforce(bowl, 0.1, 0.3, memory=0.5)
    aggregate = jax.jit(rule.aggregate)
    drawn = jax.jit(
        jax.vmap(lambda key, i: jax.random.normal(jax.random.fold_in(key, i), ()), (None, 0))
    )
    state, theta, baseline = rule.init(7, jnp.zeros(3)), np.zeros(7), 0.0
    for t, (x, ids, weights) in enumerate(
        rounds(5, 4, 3, 7, 6, np.float32)
    ):  # some rows are absent
        e = np.asarray(drawn(jax.random.key(t), np.arange(7)))
        result, state, info = aggregate(received(x, weights, t, ids), state)
        here = ids[weights > 0]
        rows = x[weights > 0].astype(np.float64)
        credit = ref.credits_of(theta[here] + 0.3 * e[here])
        np.testing.assert_allclose(result, credit @ rows, rtol=1e-4, atol=1e-5)
        reward = ref.credit_reward(theta[here] + 0.3 * e[here], rows, numpy_bowl, np.zeros(3))
        np.testing.assert_allclose(info["reward"], reward, rtol=1e-4, atol=1e-5)
        advantage = max(reward, -1) - baseline
        theta[here] += 0.1 * advantage * e[here] / 0.3
        baseline += 0.5 * advantage
        np.testing.assert_allclose(state.theta, theta, rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(state.baseline, baseline, rtol=1e-4, atol=1e-5)


def test_reinforce_learns() -> None:
    rule = learned_credits_reinforce(bowl, 0.02, 0.3)

    def one(state, key):
        _, state, info = rule.aggregate(received(PULLED)._replace(key=key), state)
        return state, info["trust"]

    keys = jax.random.split(jax.random.key(1), 400)
    _, trust = jax.jit(lambda keys: jax.lax.scan(one, rule.init(3, ZERO), keys))(keys)
    assert np.mean(trust[-50:, 2]) < 0.15  # of 1/3


@pytest.mark.parametrize(
    "make", [learned_credits, lambda *a: learned_credits_reinforce(*a, 0.3)], ids=["exact", "drawn"]
)
def test_credits_of_rows_and_losses_without_a_value(make) -> None:
    """They change no credit: a row whose model has none, a loss of 0, nobody present."""
    rule = make(lambda w: bowl(w) + 0 * jnp.log(4 - w[0]), 1.0)
    state = rule.init(3, ZERO)
    x = np.array([[1, 0], [3e38, 3e38], [0, 0.5]], np.float32)
    result, moved, info = rule.aggregate(received(x), state)
    assert np.all(np.isfinite(result)) and info["trust"][1] == 0
    thetas = jax.tree.leaves(moved)[0]
    assert thetas[1] == 0 and thetas[0] != 0 and np.all(np.isfinite(thetas))
    for other in (received(x, np.zeros(3)), received(x, params=np.ones(2))):
        result, moved, info = rule.aggregate(other, state)
        assert np.all(np.isfinite(result))
        for a, b in zip(jax.tree.leaves(moved), jax.tree.leaves(state), strict=True):
            np.testing.assert_array_equal(a, b)


# --- SignGuard -------------------------------------------------------------------------------------

GUARDED = np.array(
    [[5, 5, 5, 5], [1, 1, -1, 0], [1, 0.5, -1, 0.1], [0.01, 0, 0, -0.01], [1, 1, -0.5, -0.2]],
    np.float32,
)


def test_signguard_by_hand() -> None:
    present = jnp.ones(5, bool)
    usual, short, clipped = _by_length(jnp.asarray(GUARDED), present, 0.1, 3.0)
    np.testing.assert_array_equal(np.flatnonzero(usual), [1, 2, 4])
    np.testing.assert_array_equal(np.flatnonzero(clipped), [0, 1])
    np.testing.assert_allclose(
        np.mean(short[usual], axis=0),
        [0.9578964983, 0.7912298316, -0.7912298316, -0.0333333333],
        rtol=1e-6,
    )
    np.testing.assert_allclose(np.linalg.norm(short[0]), 1.5132745950, rtol=1e-6)
    shares = [[1, 0, 0], [0.5, 0.25, 0.25], [0.75, 0, 0.25], [0.25, 0.5, 0.25], [0.5, 0, 0.5]]
    features = _shares_of_signs(jax.random.key(0), jnp.asarray(GUARDED), present, 1.0)
    np.testing.assert_allclose(features, np.array(shares) / [1, 0.5, 0.5], rtol=1e-6)
    # Rows 0 and 3 are furthest apart. The first clusters {0, 2, 4} and {1, 3} are the last ones; of the
    # first one row 0 is too long, and neither 2 nor 4 is longer than the median.
    result, _, info = call(signguard(share=1.0), received(GUARDED))
    np.testing.assert_array_equal(np.flatnonzero(info["selected"]), [2, 4])
    np.testing.assert_allclose(result, [1, 0.75, -0.75, -0.05], rtol=1e-6, atol=1e-7)


def test_signguard_at_the_edges() -> None:
    # Three rows of one sign, all too long or too short, and two of the other: nobody is left.
    x = np.array([[100.0], [100], [0.001], [-1], [-1]], np.float32)
    result, _, info = call(signguard(share=1.0), received(x))
    assert not np.any(result) and not np.any(info["selected"])
    # A row of exactly three medians stays, shortened; a little longer it does not.
    for last, expected in [(3.0, [1.0]), (3.01, [1.0])]:
        x = np.array([[1.0], [1], [1], [last]], np.float32)
        result, _, info = call(signguard(share=1.0), received(x))
        assert info["selected"][3] == (last == 3) and info["clipped"][3]
        np.testing.assert_allclose(result, expected)
    # Clusters of equal size: all stay.
    x = np.array([[1.0, 1], [1, 1], [-1, -1], [-1, -1]], np.float32)
    assert np.all(call(signguard(share=1.0), received(x))[2]["selected"])


def test_signguard_draws_coordinates() -> None:
    """Of 40 a tenth: the row that differs in one of them stands out in a tenth of the rounds."""
    x = np.ones((5, 40), np.float32)
    x[4, 7] = -1
    rule = signguard()
    keys = jax.random.split(jax.random.key(2), 1000)
    selected = jax.jit(
        jax.vmap(lambda key: rule.aggregate(received(x)._replace(key=key), ())[2]["selected"])
    )(keys)
    assert np.all(selected[:, :4])
    assert abs(np.sum(~selected[:, 4]) - 100) < 5 * np.sqrt(1000 * 0.1 * 0.9)
    assert jax.jit(signguard(share=0.01).__call__)(x).shape == (40,)  # at least one


@pytest.mark.parametrize(
    ("make", "feature"),
    [(signguard_sim, ref.signguard_similarity), (signguard_dist, ref.signguard_distance)],
    ids=["sim", "dist"],
)
def test_signguard_over_rounds(make, feature) -> None:
    """The last aggregate counts from the second round on, and after a zero aggregate the rows again."""
    rule = make(share=1.0)
    aggregate, state = jax.jit(rule.aggregate), rule.init(9, jnp.zeros(4))
    plain, differs = signguard(share=1.0), 0
    last = np.zeros(4)
    for t, (x, ids, weights) in enumerate(rounds(6, 9, 4, 9, 12, np.float32)):
        x = x + np.float32(0.4)
        weights = 0 * weights if t == 5 else weights
        fourth = functools.partial(feature, last=last)
        result, state, info = aggregate(received(x, weights, t, ids), state)
        rows = ref.signguard_selection(x, None, fourth, weights)
        assert list(np.flatnonzero(info["selected"])) == rows
        expected = ref.signguard(x, rows, weights)
        np.testing.assert_allclose(result, expected, rtol=1e-4, atol=1e-6)
        np.testing.assert_array_equal(state[1], result)
        last = expected
        differs += rows != ref.signguard_selection(x, None, None, weights)
    assert differs or make is signguard_dist
    assert plain.init(9, ZERO) == ()


def test_two_means() -> None:
    """Also where pairs of rows are equally far apart, in another order of operations."""
    rng = np.random.default_rng(7)
    larger = jax.jit(lambda x, present: larger_cluster(two_means(x, present), present))
    for seed in range(60):
        x = rng.integers(0, 4, (9, 3)) / 5 if seed % 2 else rng.normal(size=(9, 3))
        present = rng.random(9) < 0.8
        rows = np.flatnonzero(present)
        expected = rows[ref.larger_of_two(x[present])]
        np.testing.assert_array_equal(np.flatnonzero(larger(jnp.float32(x), present)), expected)
    assert np.all(larger(jnp.ones((9, 3)), jnp.ones(9, bool)))


# --- Romoa -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("leaves", ["one leaf", "two leaves"])
def test_romoa_over_rounds(leaves: str) -> None:
    d = 9
    task = None if leaves == "one leaf" else task_of(lambda p, b: bowl(p), d)
    parts = [list(range(d))] if task is None else [[0, 1, 2], [3, 4, 5, 6, 7, 8]]
    rule = romoa(task, beta=0.6)
    with jax.enable_x64(True):
        aggregate, state = jax.jit(rule.aggregate), rule.init(6, jnp.zeros(d, jnp.float64))
        factors, last = np.full((6, d), 1 / 6), np.zeros(d)
        for x, ids, weights in rounds(8, 4, d, 6, 6):
            result, state, info = aggregate(received(x, weights, ids=ids), state)
            expected, own = ref.romoa(x, factors[ids], last, parts, beta=0.6, weights=weights)
            factors[ids], last = own, expected
            np.testing.assert_allclose(result, expected, rtol=1e-9, atol=1e-9)
            np.testing.assert_allclose(state.factor, factors, rtol=1e-9, atol=1e-9)
            np.testing.assert_allclose(np.sum(info["trust"]), 1, rtol=1e-9)
        # A round without anybody changes nothing.
        _, after, _ = aggregate(received(x, np.zeros(4), ids=ids), state)
        for a, b in zip(after, state, strict=True):
            np.testing.assert_array_equal(a, b)


def test_romoa_with_many_rows_and_high_scores() -> None:
    """e^(n |s|) is beyond all floats from 89 on: the best row takes all, and nothing is NaN."""
    x = np.random.default_rng(9).normal(1, 0.01, (96, 6)).astype(np.float32)
    state = romoa(beta=0.0).init(96, jnp.zeros(6))
    result, state, _ = jax.jit(romoa(beta=0.0).aggregate)(received(x), state)
    assert np.all(np.isfinite(result)) and np.all(np.abs(result - 1) < 0.05)
    np.testing.assert_allclose(np.sum(state.factor, axis=0), 1, rtol=1e-5)


def test_romoa_of_another_size() -> None:
    with pytest.raises(ValueError, match="romoa needs updates of the size of the task's model"):
        jax.eval_shape(
            romoa(task_of(lambda p, b: bowl(p), 9)).__call__, np.ones((3, 8), np.float32)
        )


# --- DeepSight -------------------------------------------------------------------------------------


def clustering(n: int, **how) -> Callable:
    return jax.jit(functools.partial(hdbscan, **how))


SETTINGS = [
    {"min_samples": a, "min_cluster_size": b, "allow_single_cluster": c}
    for a, b, c in [(1, 2, False), (3, 3, True), (3, 5, False)]
]


def test_hdbscan_equals_its_definition() -> None:
    """On points, and where most distances are equal, as those of a grid and of averaged clusterings."""
    rng = np.random.default_rng(11)
    n, clusterings = 14, [clustering(14, **how) for how in SETTINGS]
    several = 0
    for seed in range(90):
        points = rng.integers(0, 4, (n, 2)) if seed % 3 else rng.normal(size=(n, 2))
        distances = np.linalg.norm(points[:, None] - points, axis=2)
        if seed % 3 == 2:
            labels = rng.integers(-1, 2, (3, n))
            distances = np.sum(labels[:, :, None] != labels[:, None, :], axis=0).astype(float)
        rows = np.flatnonzero(rng.random(n) < 0.85)
        how = SETTINGS[seed % len(SETTINGS) if seed % 2 else -1]
        labels = ref.hdbscan(distances[np.ix_(rows, rows)], *how.values())
        expected = np.full(n, -1)
        expected[rows] = np.where(labels < 0, -1, rows[labels])
        present = np.isin(np.arange(n), rows)
        got = clusterings[SETTINGS.index(how)](distances.astype(np.float32), present)
        np.testing.assert_array_equal(got, expected)
        several += len(set(expected) - {-1}) > 1
    assert several > 10
    for k in range(3):  # nobody, one, two: too few for a cluster, unless all may be one
        for how, cluster in zip(SETTINGS[1:], clusterings[1:], strict=True):
            got = cluster(distances.astype(np.float32), np.arange(n) < k)
            alone = 0 if how["allow_single_cluster"] and k else -1
            np.testing.assert_array_equal(got, np.where(np.arange(n) < k, alone, -1))
            assert hdbscan(jnp.zeros((1, 1)), jnp.ones(1, bool), **how)[0] == (
                0 if how["allow_single_cluster"] else -1
            )


def scikit_learn(distances: np.ndarray, min_samples: int, **how) -> np.ndarray:
    """Its minimum of samples counts the row itself."""
    method = HDBSCAN(min_samples=min_samples + 1, metric="precomputed", copy=True, **how)
    labels = method.fit_predict(distances)
    return np.array([np.argmax(labels == k) if k >= 0 else -1 for k in labels])


def test_hdbscan_equals_scikit_learn() -> None:
    """Always if no two distances are equal. A core distance is the mutual reachability of several pairs:
    where such a level matters, scikit-learn's own result depends on the order of the rows."""
    rng, n, same = np.random.default_rng(12), 40, 0
    with jax.enable_x64(True):
        clusterings = [clustering(n, **how) for how in SETTINGS]
        distinct = [clustering(n, **how | {"min_samples": 1}) for how in SETTINGS]
        for seed in range(120):
            how = SETTINGS[seed % 3]
            centres = rng.normal(size=(4, 3)) * rng.uniform(0, 6)
            points = centres[rng.integers(4, size=n)] + rng.normal(size=(n, 3))
            distances = np.linalg.norm(points[:, None] - points, axis=2)
            got = clusterings[seed % 3](distances, np.ones(n, bool))
            equal = np.array_equal(got, scikit_learn(distances, **how))
            assert equal or how["min_samples"] > 1
            same += equal
            core = np.sort(distances, axis=1)[:, how["min_samples"]]
            reach = np.maximum(distances, np.maximum(core[:, None], core))
            moved = np.triu(reach + rng.uniform(0, 1e-9, reach.shape), 1)
            moved, how = moved + moved.T, how | {"min_samples": 1}
            got = distinct[seed % 3](moved, np.ones(n, bool))
            np.testing.assert_array_equal(got, scikit_learn(moved, **how))
    assert same > 100


def test_deepsight_energies_by_hand() -> None:
    kernel = np.array([[[0.1, 0.3, 0], [-0.2, 0.1, 0.05]]], np.float32)
    bias = np.array([[0.1, -0.1, 0]], np.float32)
    for scale in (1, np.float32(1e-30), np.float32(1e30)):
        energies, exceedings = _energies(jnp.asarray(kernel * scale), jnp.asarray(bias * scale))
        expected = [0.3878787879, 0.6060606061, 0.0060606061]
        np.testing.assert_allclose(energies[0], expected, rtol=1e-6)
        assert exceedings[0] == 2
    energies, exceedings = _energies(jnp.zeros((1, 2, 3)), jnp.zeros((1, 3)))
    assert not np.any(energies) and exceedings[0] == 0


def test_deepsight_divides_probabilities_of_uniform_inputs() -> None:
    """Logits (a x, 0): the mean of 2 / (1 + e^(-a x)) over x in (0, 1), for a received model of a = 0."""
    task = Task(
        lambda key: jnp.zeros(2),
        lambda params, batch: jnp.sum(params),
        lambda params, x: jnp.stack([params[0] * x[:, 0], 0 * x[:, 0]], axis=1),
        lambda params: params,
    )
    x = np.array([[0, 0], [3, 0], [-5, 0]], np.float32)
    differences = jax.jit(
        lambda key: _division_differences(task, key, jnp.zeros((1, 1)), 2500, received(x), 2)
    )
    first, second = differences(jax.random.key(0)), differences(jax.random.key(1))
    grid = (np.arange(10000) + 0.5) / 10000
    expected = [np.mean(1 / (1 + np.exp(-a * grid))) / (0.5 + 1e-6) for a in x[:, 0]]
    np.testing.assert_allclose(first[:, 0], expected, atol=0.03)  # 2,500 of deviation 0.3
    assert np.all(first[1:] != second[1:])
    fewer = _division_differences(task, jax.random.key(0), jnp.zeros((1, 1)), 7, received(x), None)
    np.testing.assert_allclose(fewer[0], 1, rtol=1e-4)  # a sum over 7 by 7, not by 1,000


def test_deepsight_drops_a_homogeneous_cluster() -> None:
    """Ten clients move all labels' outputs, six only the first one's and the same way."""
    rng = np.random.default_rng(13)
    task = fr.classification(models.SoftmaxRegression(6), np.zeros((1, 3), np.float32))
    honest = rng.normal(size=(10, 24))
    same = np.array(
        task.ravel(
            {
                "Dense_0": {
                    "bias": jnp.array([3.0, 0, 0, 0, 0, 0]),
                    "kernel": jnp.zeros((3, 6)).at[:, 0].set(2.0),
                }
            }
        )
    )
    x = np.concatenate([same + 0.01 * rng.normal(size=(6, 24)), honest]).astype(np.float32)

    def output(tree):
        return tree["Dense_0"]["kernel"], tree["Dense_0"]["bias"]

    # A model without outputs is as if it had been deleted.
    broken = task._replace(logits=lambda p, x: task.logits(p, x) + jnp.where(p[0] > 40, jnp.nan, 0))
    rule = deepsight(broken, np.zeros((1, 3), np.float32), output, inputs=50, draws=2)
    aggregate = jax.jit(rule.aggregate)
    x[12] = 50
    result, _, info = aggregate(received(x), ())
    np.testing.assert_array_equal(info["exceedings"][:6], 1)
    np.testing.assert_array_equal(info["suspicious"], np.arange(16) < 6)
    assert not np.any(info["selected"][:6]) and np.sum(info["selected"]) >= 5
    assert len(set(np.asarray(info["cluster"][:6]))) == 1
    assert info["cluster"][12] == -1
    x[12] = np.inf
    again, _, same = aggregate(received(x), ())
    np.testing.assert_array_equal(again, result)
    np.testing.assert_array_equal(same["cluster"], info["cluster"])
    chosen = list(np.flatnonzero(info["selected"]))
    np.testing.assert_allclose(result, ref.clipped_at_median(x, chosen), rtol=1e-4, atol=1e-6)
    no_kernel = deepsight(task, np.zeros((1, 3)), lambda tree: (tree["Dense_0"]["bias"],) * 2)
    with pytest.raises(ValueError, match=r"output must return a kernel \(h, 6\).*got shapes"):
        jax.eval_shape(no_kernel.__call__, x)


# --- In a simulation -------------------------------------------------------------------------------

DATASET = data.synthetic(jax.random.key(1), num_classes=3, num_features=4, num_train=120)
TASK = fr.classification(models.SoftmaxRegression(3), DATASET.train["x"][:1])
PARTS = data.iid(jax.random.key(3), DATASET.train, 8)
HELD = {name: values[:9] for name, values in DATASET.test.items()}


def held_loss(params):
    return TASK.loss(params, HELD)


def all_in_turn(*rules: Aggregator) -> Aggregator:
    """The mean of several rules' aggregates, so that one program runs them all."""

    def init(num_clients, params):
        return tuple(rule.init(num_clients, params) for rule in rules)

    def aggregate(received, state):
        results = [rule.aggregate(received, s) for rule, s in zip(rules, state, strict=True)]
        combined = jnp.mean(jnp.stack([result for result, _, _ in results]), axis=0)
        return combined, tuple(state for _, state, _ in results), {}

    return Aggregator(init, aggregate)


def test_checkpoints_hold_all_of_their_memory(tmp_path) -> None:
    rule = all_in_turn(
        fair_by_quality(metrics.score(metrics.cross_entropy(TASK, HELD)), 0.1),
        learned_credits(held_loss, 1.0),
        learned_credits_reinforce(held_loss, 0.1, 0.1),
        signguard_sim(0.5),  # its memory is signguard_dist's, too
        romoa(TASK),
    )
    client = fr.local_sgd(TASK, 0.1, batch_size=4)
    sim = fr.Simulation(TASK, client, rule, num_malicious=2, clients_per_round=5)
    key = jax.random.key(5)
    whole, _ = fr.run(sim, key, PARTS, 4, evaluate_every=2)
    path = tmp_path / "run.npz"
    arguments = {"evaluate_every": 2, "checkpoint": path, "checkpoint_every": 2}
    half, _ = fr.run(sim, key, PARTS, 2, **arguments)
    resumed, _ = fr.run(sim, key, PARTS, 4, **arguments)
    for a, b, c in zip(*map(jax.tree.leaves, (whole, resumed, half)), strict=True):
        if jnp.issubdtype(a.dtype, jax.dtypes.prng_key):
            a, b, c = map(jax.random.key_data, (a, b, c))
        np.testing.assert_array_equal(a, b)
    for a, c in zip(*map(jax.tree.leaves, (whole.aggregator, half.aggregator)), strict=True):
        assert np.any(a != c)  # every part of the memory went on
    assert np.all(np.isfinite(whole.params))


def test_rules_with_server_data_hold_off_reversed_updates() -> None:
    """5 of 8 clients send -5 times their update: a majority, as Zeno and GAAvernor promise."""

    def craft(view, state):
        return -5 * view.updates, state

    client = fr.local_sgd(TASK, 0.2, batch_size=8)
    error = metrics.test_error(TASK, DATASET.test)

    def final(rule: Aggregator) -> float:
        sim = fr.Simulation(TASK, client, rule, fr.Attack(craft=craft), num_malicious=5)
        _, history = fr.run(sim, jax.random.key(6), PARTS, 25, evaluate=error, evaluate_every=25)
        return float(history["test_error"][-1])

    plain = final(mean())
    for rule in (zeno(TASK, DATASET.test, 5, 0.001, batch_size=9), fair(held_loss, 0.5)):
        assert final(rule) < 0.5 * plain


def test_zeno_of_sequences() -> None:
    """Any task will do: here next words."""
    words = {"x": np.arange(12).reshape(3, 4) % 5, "y": (np.arange(12).reshape(3, 4) + 1) % 5}
    task = fr.next_word(models.WordLSTM(5, 2), words["x"][:1])
    params = task.init(jax.random.key(0))
    x = 0.1 * np.random.default_rng(0).normal(size=(4, len(params))).astype(np.float32)
    rule = zeno(task, words, 1, 0.01, batch_size=None, chunk=2)
    aggregate = jax.jit(lambda x, params: rule.aggregate(received(x, params=params), ())[2])
    scores, loss = aggregate(x, params)["scores"], jax.jit(lambda w: task.loss(w, words))
    expected = [loss(params) - loss(params + u) - 0.01 * np.sum(u**2) for u in x]
    np.testing.assert_allclose(scores, expected, rtol=1e-4, atol=1e-5)
