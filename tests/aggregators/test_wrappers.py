"""What stands before or after other rules: by hand, several rounds, and behind one another."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference as ref
from rules_wrappers import by_id

import fedjax_robust as fr
from fedjax_robust import data, models
from fedjax_robust.aggregators import (
    arc,
    bucketing,
    centered_clipping,
    clipped_clustering,
    crfl,
    crfl_radius,
    crfl_shares,
    crfl_votes,
    krum,
    mean,
    median,
    multi_krum,
    nnm,
    norm_clipping,
    rlr,
    sequential_clipping,
    trimmed_mean,
)
from fedjax_robust.aggregators.bucketing import shuffled
from fedjax_robust.aggregators.centered_clipping import through_buckets
from fedjax_robust.clients import local_sgd
from fedjax_robust.kernels.linkage import larger_by_average_linkage
from fedjax_robust.types import Aggregator, ClientData, Received, Task

# The rows of the hand values; the first one is malicious.
U = np.array([[10, -8], [1, 0], [0, 2], [1, 1], [3, 1]], np.float32)


def received(x, weights=None, ids=None, params=None, key=0):
    n, d = x.shape
    return Received(
        jnp.asarray(x),
        jnp.asarray(np.ones(n, x.dtype) if weights is None else weights),
        jnp.asarray(np.arange(n) if ids is None else ids, jnp.int32),
        jnp.zeros(d, x.dtype) if params is None else jnp.asarray(params, x.dtype),
        jax.random.key(key) if isinstance(key, int) else key,
    )


def call(rule, x, weights=None, state=(), **options):
    """Compiled as a whole, which is faster than operation by operation."""
    return jax.jit(rule.aggregate)(received(x, weights, **options), state)


def seen(base: Aggregator) -> Aggregator:
    """A base without a memory, whose state is what it received."""

    def aggregate(r, state):
        result, _, info = base.aggregate(r, ())
        return result, (r.updates, r.weights, r.ids), info

    return Aggregator(base.init, aggregate)


def rounds(seed, d, num_clients, number, dtype=np.float64):
    """Rows, ids and weights of several rounds in which five of the clients take part, one is absent."""
    rng = np.random.default_rng(seed)
    for _ in range(number):
        x = (0.5 + rng.normal(size=(5, d))).astype(dtype)
        weights = rng.uniform(0.5, 2, 5)
        weights[rng.integers(5)] = 0
        yield x, np.sort(rng.permutation(num_clients)[:5]), weights


# --- Bucketing -------------------------------------------------------------------------------------


def test_bucketing_by_hand() -> None:
    rule = bucketing(2, order=by_id, base=seen(median()))
    weights = np.array([1, 3, 2, 0, 0.5], np.float32)
    # Without weights; then with: (0, 1), (2, 4), and the third bucket is absent.
    result, inner, _ = call(rule, U)
    np.testing.assert_allclose(inner[0], [[5.5, -4], [0.5, 1.5], [3, 1]], rtol=1e-6)
    np.testing.assert_allclose(result, [3, 1], rtol=1e-6)
    _, (rows, masses, ids), _ = call(rule, U, weights)
    np.testing.assert_allclose(rows, [[3.25, -2], [0.6, 1.8], [0, 0]], rtol=1e-6)
    np.testing.assert_allclose(masses, [4, 2.5, 0])
    np.testing.assert_array_equal(ids, [0, 1, 2])
    # The mean of the means is the mean, whatever the order.
    for key in range(3):
        for w in (None, weights):
            result = bucketing(2)(U, w, key=jax.random.key(key))
            np.testing.assert_allclose(result, mean()(U, w), rtol=1e-5)


def test_bucketing_draws_by_client_and_round() -> None:
    """Rows in another order, and rows fewer, change no other client's number."""
    rng = np.random.default_rng(0)
    x, weights = rng.normal(size=(9, 3)).astype(np.float32), np.ones(9, np.float32)
    weights[[2, 5]] = 0
    rule, kept = bucketing(2, base=median()), weights > 0
    ids, order = np.arange(9) + 4, rng.permutation(9)
    call = jax.jit(lambda r: rule.aggregate(r, ())[0])
    results = []
    for key in range(3):
        result = call(received(x, weights, ids, key=key))
        np.testing.assert_allclose(
            call(received(x[order], weights[order], ids[order], key=key)), result, rtol=1e-6
        )
        np.testing.assert_array_equal(
            call(received(x[kept], weights[kept], ids[kept], key=key)), result
        )
        draw = jax.random.split(jax.random.key(key))[0]
        numbers = np.asarray(shuffled(draw, jnp.asarray(ids)))
        expected = ref.bucketing(x, 2, numbers, ref.median, weights)
        np.testing.assert_allclose(result, expected, rtol=1e-5, atol=1e-6)
        results.append(np.asarray(result))
    assert len({r.tobytes() for r in results}) == 3


def test_every_pair_shares_a_bucket_equally_often() -> None:
    """In 6,000 rounds of 5 rows: two of the ten pairs in each."""
    keys = jax.random.split(jax.random.key(1), 6000)
    x = np.eye(5, dtype=np.float32)
    rule = bucketing(2, base=seen(mean()))
    rows = jax.jit(jax.vmap(lambda key: rule.aggregate(received(x, key=key), ())[1][0]))(keys)
    members = (np.asarray(rows) > 0).astype(int)
    together = np.einsum("kbi,kbj->ij", members, members)
    others = together[~np.eye(5, dtype=bool)]
    assert np.all(np.abs(others - 1200) < 5 * np.sqrt(6000 * 0.2 * 0.8))


def test_what_the_rule_behind_bucketing_is_told() -> None:
    krum_behind = bucketing(2, base=krum(1))
    with pytest.raises(
        ValueError,
        match=r"bucketing\(size=2\) gives its base ceil\(n / size\) = 4 of n=8 rows, which it "
        r"refuses: krum needs n > 2f \+ 2, got n=4, f=1",
    ):
        jax.eval_shape(lambda x: krum_behind(x), np.ones((8, 3), np.float32))
    # A bucket is a client: a memory by client is one by bucket.
    sizes = bucketing(4, base=Aggregator(lambda n, params: jnp.zeros(n), mean().aggregate))
    assert sizes.init(10, jnp.zeros(3)).shape == (3,)


def test_bucketing_of_large_weights() -> None:
    x = np.array([[1.0], [3.0], [8.0]], np.float32)
    weights = np.array([3e38, 3e38, 3e38], np.float32)
    np.testing.assert_allclose(bucketing(2, order=by_id, base=median())(x, weights), [5], rtol=1e-6)


# --- Centred clipping ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("bound", "steps", "expected"),
    [
        (1.0, 1, [0.6873317777, 0.2797278999]),
        (1.0, 3, [1.2694376708, 0.5656307465]),
        (2.0, 1, [1.091820843, 0.4766130874]),
        (100.0, 1, [3, -0.8]),
    ],
)
def test_centered_clipping_by_hand(bound: float, steps: int, expected: list[float]) -> None:
    np.testing.assert_allclose(centered_clipping(bound, steps)(U), expected, rtol=1e-6)
    if steps == 1:  # from zero it is the mean of the clipped rows
        np.testing.assert_allclose(norm_clipping(bound)(U), expected, rtol=1e-6)


def test_centered_clipping_goes_on_from_the_last_aggregate() -> None:
    rule = centered_clipping(1.0)
    state = rule.init(5, jnp.zeros(2))
    _, state, info = rule.aggregate(received(U), state)
    np.testing.assert_array_equal(info["clipped"], [1, 0, 1, 1, 1])
    result, state, _ = rule.aggregate(received(U), state)
    np.testing.assert_allclose(result, [1.0786139592, 0.4801437573], rtol=1e-6)
    # Nobody comes: the model stays, and so does the memory.
    nobody, after, info = rule.aggregate(received(U, np.zeros(5)), state)
    assert not np.any(nobody) and not np.any(info["clipped"])
    np.testing.assert_array_equal(after, state)


def test_centered_clipping_over_rounds() -> None:
    rule = centered_clipping(0.7, 2)
    with jax.enable_x64(True):
        aggregate, state = jax.jit(rule.aggregate), rule.init(9, jnp.zeros(4, jnp.float64))
        v = np.zeros(4)
        for x, ids, weights in rounds(1, 4, 9, 5):
            result, state, _ = aggregate(received(x, weights, ids), state)
            expected, v = ref.centered_clipping(x, 0.7, 2, v, weights)
            np.testing.assert_allclose(result, expected, rtol=1e-9)
            np.testing.assert_allclose(state, v, rtol=1e-9)


def test_centered_clipping_at_the_ends_of_the_range() -> None:
    """Differences of 6e38 are clipped, not infinite; rows of 1e-30 stay what they are."""
    x = np.array([[3e38, 0], [3e38, 0], [1, 2]], np.float32)
    rule = centered_clipping(1e38)
    result, _, _ = rule.aggregate(received(x), jnp.array([-3e38, 0]))
    np.testing.assert_allclose(result, [-2e38, 0], rtol=1e-6, atol=1)
    tiny = np.float32(1e-30) * U
    for bound, expected in [(1e-30, [0.6873317777e-30, 0.2797278999e-30]), (1.0, [3e-30, -8e-31])]:
        np.testing.assert_allclose(centered_clipping(bound)(tiny), expected, rtol=1e-5)


def test_sequential_clipping_by_hand() -> None:
    rows = jnp.stack([U[:2], U[2:4], np.stack([U[4], 0 * U[4]])])
    there = jnp.array([[True, True], [True, True], [True, False]])
    zero = jnp.zeros(2)
    result = through_buckets(zero, rows, there, 1.0, True)
    np.testing.assert_allclose(result, [1.6311837647, 0.6492788966], rtol=1e-6)
    result = through_buckets(zero, rows, there, 1.0, False)
    np.testing.assert_allclose(result, [1.7406159973, 0.8053021018], rtol=1e-6)
    # A bucket without a row moves nothing, as it would if zero were its mean.
    empty = through_buckets(jnp.ones(2), rows, jnp.zeros((3, 2), bool), 1.0, True)
    np.testing.assert_array_equal(empty, [1, 1])


@pytest.mark.parametrize("means", [True, False])
def test_sequential_clipping_over_rounds(means: bool) -> None:
    """Also with rows in another order, fewer of them, and nobody in one round."""
    rule, order = sequential_clipping(0.5, 2, means=means), np.array([3, 0, 4, 2, 1])
    aggregate, state = jax.jit(rule.aggregate), rule.init(9, jnp.zeros(4))
    v = np.zeros(4)
    for t, (x, ids, weights) in enumerate(rounds(3, 4, 9, 6, np.float32)):
        weights = 0 * weights if t == 3 else weights
        numbers = shuffled(jax.random.key(t), jnp.asarray(ids))
        result, after, info = aggregate(received(x, weights, ids, key=t), state)
        moved = aggregate(received(x[order], weights[order], ids[order], key=t), state)[0]
        np.testing.assert_allclose(moved, result, rtol=1e-6)
        kept = weights > 0
        if t == 1:
            fewer = aggregate(received(x[kept], weights[kept], ids[kept], key=t), state)[0]
            np.testing.assert_allclose(fewer, result, rtol=1e-6)
        expected, v = ref.sequential_clipping(x, 0.5, 2, numbers, v, means, weights)
        np.testing.assert_allclose(result, expected, rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(after, v, rtol=1e-5, atol=1e-6)
        assert info == {}
        state = after


def test_strata_spread_rows_of_one_direction() -> None:
    """Three equal rows against v, of six: each bucket of two has one of them, in every draw."""
    x = np.array([[-1, 0]] * 3 + [[1, 0], [1, 1], [1, -1]], np.float32)
    v = jnp.array([2.0, 0.0])
    rule = sequential_clipping(0.1, 2, means=True)
    keys = jax.random.split(jax.random.key(0), 20)
    results = jax.jit(jax.vmap(lambda key: rule.aggregate(received(x, key=key), v)[0]))(keys)
    # Each bucket's mean is 2 to 2.5 away from v, near the first axis: v moves 0.1 back in each.
    np.testing.assert_allclose(results[:, 0], 1.7, atol=0.02)


def test_worker_momentum_by_hand() -> None:
    """Gradients 1, 2, 3 with beta = 0.9: v is 1, 2.9 and 5.61, not (1 - beta) times that."""
    task = Task(
        init=lambda key: jnp.zeros(1),
        loss=lambda params, batch: params[0] * batch["x"][0, 0],
        logits=lambda params, x: params * x,
        unravel=lambda params: params,
    )
    client = local_sgd(task, 1.0, None, momentum=0.9, keep_momentum=True)
    params, sent = jnp.zeros(1), []
    state = client.init(params)
    for g in (1.0, 2.0, 3.0):
        pool = {"x": jnp.full((1, 1), g), "y": jnp.zeros(1, jnp.int32)}
        own = ClientData(pool, jnp.zeros(1, jnp.int32), jnp.int32(1))
        update, state, _ = client.update(jax.random.key(0), params, state, own)
        sent.append(float(update[0]))
    np.testing.assert_allclose(sent, [-1, -2.9, -5.61], rtol=1e-6)


# --- NNM, ARC, RLR ---------------------------------------------------------------------------------


def rows_of(rule_of_base, x: np.ndarray) -> np.ndarray:
    """What a wrapper makes of the rows."""
    return np.asarray(call(rule_of_base(seen(median())), x)[1][0])


def test_nnm_by_hand() -> None:
    mixed = rows_of(lambda base: nnm(1, base=base), U)
    np.testing.assert_allclose(mixed, [[3.75, -1.5]] + 4 * [[1.25, 1]], rtol=1e-6)
    np.testing.assert_allclose(call(nnm(1, base=median()), U)[0], [1.25, 1], rtol=1e-6)
    np.testing.assert_allclose(call(nnm(1), U)[0], [1.75, 0.5], rtol=1e-6)
    # As ByzFL documents it.
    x = np.arange(1.0, 10).reshape(3, 3).astype(np.float32)
    mixed = rows_of(lambda base: nnm(1, base=base), x)
    np.testing.assert_allclose(mixed, [[2.5, 3.5, 4.5], [2.5, 3.5, 4.5], [5.5, 6.5, 7.5]])


def test_nnm_of_rows_infinitely_far_away() -> None:
    """A row beyond a quarter of the largest float has itself and the first present rows."""
    x = np.array([[7, 7], [1, 0], [0, 1], [3e38, 3e38], [1, 1]], np.float32)
    weights = np.array([0, 1, 1, 1, 1], np.float32)
    rule = nnm(1, base=seen(median()))
    _, (mixed, masses, ids), _ = call(rule, x, weights)
    np.testing.assert_allclose(mixed[1:3], [[2 / 3, 2 / 3]] * 2, rtol=1e-6)
    np.testing.assert_allclose(mixed[3], [1e38, 1e38], rtol=1e-6)
    assert not np.any(mixed[0])
    np.testing.assert_array_equal(masses, weights)
    np.testing.assert_array_equal(ids, np.arange(5))


def reports(rule: Aggregator) -> set[str]:
    x = np.zeros((9, 4), np.float32)
    return set(jax.eval_shape(lambda: rule.aggregate(received(x), ())[2]))


def test_mixed_rows_are_not_reported_as_clients() -> None:
    assert reports(multi_krum(1)) == {"selected"}
    assert reports(nnm(1, base=multi_krum(1))) == set()
    assert reports(bucketing(2, base=multi_krum(1))) == set()
    stack = arc(1, base=nnm(1, base=rlr(2, base=multi_krum(1))))
    assert reports(stack) == {"clipped", "flipped"}
    assert reports(arc(1, base=multi_krum(1))) == {"clipped", "selected"}


def test_arc_by_hand() -> None:
    short = rows_of(lambda base: arc(1, base=base), U)
    np.testing.assert_allclose(short[0], [2.4693239916, -1.9754591933], rtol=1e-6)
    np.testing.assert_array_equal(short[1:], U[1:])
    np.testing.assert_allclose(arc(1)(U), [1.4938647983, 0.4049081613], rtol=1e-6)
    info = call(arc(1), U)[2]
    np.testing.assert_array_equal(info["clipped"], [1, 0, 0, 0, 0])
    # As ByzFL documents it.
    x = np.arange(1.0, 10).reshape(3, 3).astype(np.float32)
    short = rows_of(lambda base: arc(1, base=base), x)
    np.testing.assert_allclose(short[2], [4.41004009, 5.04004582, 5.67005155], rtol=1e-6)
    np.testing.assert_array_equal(short[:2], x[:2])
    np.testing.assert_array_equal(rows_of(lambda base: arc(0, base=base), U), U)


def test_arc_counts_present_rows() -> None:
    """f = 2: of 9 rows 3 are clipped, of 5 rows 2, of 3 rows 1, of 2 rows none."""
    x = np.diag(np.arange(1, 10)).astype(np.float32)
    for n, clipped in [(9, 3), (5, 2), (3, 1), (2, 0), (0, 0)]:
        weights = (np.arange(9) < n).astype(np.float32)
        info = call(arc(2), x, weights)[2]
        np.testing.assert_array_equal(
            np.flatnonzero(info["clipped"]), np.arange(n - clipped, n), err_msg=str(n)
        )


def test_rlr_by_hand() -> None:
    """The signs sum to (4, 2), the mean is (3, -0.8)."""
    for threshold, expected in [(0, [3, -0.8]), (2, [3, -0.8]), (3, [3, 0.8]), (4, [3, 0.8])]:
        np.testing.assert_allclose(rlr(threshold)(U), expected, rtol=1e-6)
    np.testing.assert_allclose(rlr(5)(U), [-3, 0.8], rtol=1e-6)
    assert call(rlr(3), U)[2]["flipped"] == 0.5
    # Votes are not weighted, and absent rows have none.
    weights = np.array([100, 1, 1, 0, 1], np.float32)
    for threshold, expected in [(1, [1, -1]), (3, [1, 1]), (4, [-1, 1])]:
        result = rlr(threshold)(U, weights)
        np.testing.assert_array_equal(np.sign(result), expected)


@pytest.mark.parametrize("make", [nnm, arc], ids=["nnm", "arc"])
def test_f_may_be_traced(make) -> None:
    """Of several f at once, as of each alone; and of too many malicious rows."""
    results = jax.jit(jax.vmap(lambda f: make(f, base=median())(U)))(jnp.arange(3))
    for f in range(3):
        np.testing.assert_allclose(results[f], call(make(f, base=median()), U)[0], rtol=1e-6)
    with pytest.raises(ValueError, match=rf"{make.__name__} needs n > 2f, got n=5, f=3"):
        make(3)(U)


# --- CRFL ------------------------------------------------------------------------------------------


def test_crfl_over_rounds() -> None:
    """The bound grows with the round, the last one adds no noise, the base keeps its memory."""
    bounds = [1.1, 1.2, 1.3, 1.4]
    rule = crfl(lambda t: 1 + 0.1 * t, 0.05, rounds=4, base=centered_clipping(0.7))
    aggregate, v = jax.jit(rule.aggregate), np.zeros(3)
    state, params = rule.init(9, jnp.zeros(3)), np.zeros(3)
    for t, (x, ids, weights) in enumerate(rounds(2, 3, 9, 4, np.float32)):
        weights = 0 * weights if t == 1 else weights
        key = jax.random.key(t)
        result, state, info = aggregate(received(x, weights, ids, params, key), state)
        expected, v = ref.centered_clipping(x, 0.7, 1, v, weights)
        length = np.linalg.norm(params + expected)
        np.testing.assert_allclose(info["model_length"], length, rtol=1e-5)
        clipped = ref.crfl(x, params, bounds[t], lambda rows, w, e=expected: e, weights)
        drawn = 0.05 * np.asarray(jax.random.normal(jax.random.split(key)[0], (3,)))
        expected = clipped + (drawn if t < 3 else 0)
        np.testing.assert_allclose(result, expected, rtol=1e-5, atol=1e-6)
        params = params + np.asarray(result, np.float64)
    np.testing.assert_allclose(np.linalg.norm(params), 1.4, rtol=1e-5)
    assert state[1] == 4


def test_crfl_by_hand() -> None:
    result = crfl(2.1, 0.0)(np.zeros((2, 2), np.float32), params=np.array([3.0, 4.0]))
    np.testing.assert_allclose(np.array([3, 4]) + result, [1.26, 1.68], rtol=1e-6)
    # A model below the bound is left as it is, to the digit; that of 1e30, too, is clipped.
    x = np.array([[1e-9, 2e-9]], np.float32)
    np.testing.assert_array_equal(crfl(10.0, 0.0)(x, params=np.array([3.0, 4.0])), x[0])
    far = crfl(2.0, 0.0)(np.full((1, 2), 3e38, np.float32), params=np.array([1.0, 1.0]))
    np.testing.assert_allclose(far, [np.sqrt(2) - 1] * 2, rtol=1e-6)


def test_radius_by_hand() -> None:
    """The second: MNIST as the authors' code has it, 20 clients, attack in round 10, T = 75."""
    first = {"noise": 1.0, "smoothing": 1.0, "bounds": np.ones(3), "lipschitz": 1.0}
    strength = 1 / 20 * 10 * 1 * 0.1 * 5 / 100
    # (1 / 20 clients) times scale 100, 30 local steps, learning rate .001, 5 of 100 poisoned
    second = {"noise": 0.01, "smoothing": 0.01, "bounds": 2 + 0.1 * np.arange(11, 76)}
    second |= {"lipschitz": np.sqrt(2 + 2 * 3 + 3**2)}
    strong = 1 / 20 * 100 * 30 * 0.001 * 5 / 100
    radius = crfl_radius(0.9, 0.05, **first, attackers=[strength])
    np.testing.assert_allclose(radius, 433.0888089, rtol=2e-6)
    radius = crfl_radius(0.9, 0.05, **second, attackers=[strong])
    np.testing.assert_allclose(radius, 0.1974995333, rtol=2e-6)
    # Four attackers, each of a quarter of the strength: R S is as before.
    radius = crfl_radius(0.9, 0.05, **first, attackers=[strength / 4] * 4)
    np.testing.assert_allclose(radius, 433.0888089, rtol=2e-6)
    # The last round smooths with its own noise.
    factor = 2 * 0.6914624612740131 - 1  # 2 Phi(1/2) - 1 for 2 Phi(1) - 1
    radius = crfl_radius(0.9, 0.05, **first | {"smoothing": 2.0}, attackers=[strength])
    expected = 433.0888089 * np.sqrt((2 * 0.8413447460685429 - 1) / factor)
    np.testing.assert_allclose(radius, expected, rtol=2e-6)


def test_no_radius_without_a_majority() -> None:
    """The square of the difference of roots is positive there, too."""
    numbers = {"noise": 1.0, "smoothing": 1.0, "bounds": [1.0], "lipschitz": 1.0}
    p_a, p_b = np.array([0.05, 0.4, 0.41, 1.0]), np.array([0.9, 0.4, 0.4, 0.0])
    radius = np.asarray(crfl_radius(p_a, p_b, **numbers, attackers=[0.1]))
    np.testing.assert_array_equal(radius > 0, [0, 0, 1, 1])
    assert np.isinf(radius[3])  # no noise changes it, by assumption
    for name, bad in [("bounds", [0.0]), ("bounds", []), ("attackers", [-1.0])]:
        with pytest.raises(ValueError, match=f"crfl_radius needs {name}"):
            crfl_radius(p_a, p_b, **{**numbers, "attackers": [0.1], name: bad})
    with pytest.raises(ValueError, match="crfl_radius needs p_a and p_b of one shape"):
        crfl_radius(p_a, p_b[:2], **numbers, attackers=[0.1])


def test_votes_and_shares() -> None:
    """Noise N(0, 1) on the logits (w, 0, -9) of w = 0.5 votes for class 0 with probability
    Phi(0.5 / sqrt 2) = 0.638."""
    task = Task(None, None, lambda params, x: x[:, :1] * 0 + params, None)
    task = task._replace(init=lambda key: jnp.zeros(3))
    params, x = jnp.array([0.5, 0.0, -9.0]), np.zeros((2, 4), np.float32)
    votes = crfl_votes(task, params, x, jax.random.key(0), 1.0, copies=4000)
    assert votes.shape == (2, 3) and np.all(np.sum(votes, axis=1) == 4000)
    np.testing.assert_array_equal(votes[0], votes[1])
    deviation = np.sqrt(4000 * 0.638163 * 0.361837)
    assert abs(votes[0, 0] - 4000 * 0.638163) < 4 * deviation and votes[0, 2] == 0
    np.testing.assert_array_equal(
        crfl_votes(task, params, x, jax.random.key(0), 0.0, copies=3), [[3, 0, 0]] * 2
    )
    # sqrt(ln 1000 / 2000) = .0587697
    winner, p_a, p_b = crfl_shares(np.array([[300, 300, 400], [500, 500, 0], [1000, 0, 0]]))
    np.testing.assert_array_equal(winner, [2, 0, 0])
    np.testing.assert_allclose(p_a, [0.4 - 0.0587697, 0.5 - 0.0587697, 1 - 0.0587697], rtol=1e-6)
    np.testing.assert_allclose(p_b, [0.3 + 0.0587697, 0.5 + 0.0587697, 0.0587697], rtol=1e-6)
    _, p_a, p_b = crfl_shares(np.array([[2, 1, 1]]))
    assert p_a == 0 and p_b == 1


# --- Clipped clustering ----------------------------------------------------------------------------


def test_clipped_clustering_by_hand() -> None:
    """Angles 0, 10, 95 and 100 degrees and lengths 1, 2, 3, 10: two pairs, of which the first stays,
    clipped at 2.5; with one more row at 90 the other cluster is the larger one."""
    angles, lengths = np.deg2rad([0, 10, 95, 100, 90]), np.array([1, 2, 3, 10, 4])
    x = (lengths[:, None] * np.stack([np.cos(angles), np.sin(angles)], axis=1)).astype(np.float32)
    rule = clipped_clustering(9)
    aggregate = jax.jit(rule.aggregate)
    start = rule.init(5, jnp.zeros(2))
    result, state, info = aggregate(received(x, np.array([1, 1, 1, 1, 0])), start)
    np.testing.assert_array_equal(info["selected"], [1, 1, 0, 0, 0])
    np.testing.assert_array_equal(info["clipped"], [0, 0, 1, 1, 0])
    np.testing.assert_allclose(result, (x[0] + x[1]) / 2, rtol=1e-6)
    # The median of 1, 2, 3, 10 and 1, 2, 3, 10, 4 is 3.
    result, state, info = aggregate(received(x), state)
    np.testing.assert_array_equal(info["selected"], [0, 0, 1, 1, 1])
    np.testing.assert_array_equal(info["clipped"], [0, 0, 0, 1, 1])
    units = x[2:] / lengths[2:, None]
    np.testing.assert_allclose(result, np.mean(3 * units, axis=0), rtol=1e-6, atol=1e-7)
    # All nine places are taken: 4 more lengths replace the first 4, 5 more all but the 4.
    _, (_, (kept, _, _)), _ = aggregate(received(8 * x, np.array([1, 1, 1, 1, 0])), state)
    np.testing.assert_allclose(np.sort(kept), [1, 2, 3, 4, 8, 10, 16, 24, 80], rtol=1e-6)
    with pytest.raises(ValueError, match="clipped_clustering needs memory >= n, got memory=3, n=5"):
        clipped_clustering(3)(x)


def test_clipped_clustering_over_rounds() -> None:
    rule = clipped_clustering(40, base=median())
    aggregate, state, lengths = jax.jit(rule.aggregate), rule.init(9, jnp.zeros(4)), []
    for t, (x, ids, weights) in enumerate(rounds(4, 4, 9, 6, np.float32)):
        weights = 0 * weights if t == 3 else weights
        x *= t + 1
        result, state, info = aggregate(received(x, weights, ids), state)
        expected, stay, lengths = ref.clipped_clustering(x, lengths, ref.median, weights)
        np.testing.assert_allclose(result, expected, rtol=1e-5, atol=1e-6)
        np.testing.assert_array_equal(np.flatnonzero(info["selected"]), stay)


def test_average_linkage() -> None:
    """Of random numbers, which are no distances, as of the definition."""
    larger = jax.jit(larger_by_average_linkage)
    rng = np.random.default_rng(5)
    for _ in range(50):
        numbers = np.triu(rng.random((9, 9)).astype(np.float32), 1)
        numbers += numbers.T
        present = rng.random(9) < 0.7
        expected = ref.larger_by_average_linkage(numbers[np.ix_(present, present)])
        rows = np.flatnonzero(larger(numbers, present))
        np.testing.assert_array_equal(rows, np.flatnonzero(present)[expected])


# --- Behind one another ----------------------------------------------------------------------------

BASES = {
    "mean": (mean(), ref.mean),
    "median": (median(), ref.median),
    "trimmed_mean": (trimmed_mean(1), lambda x, w: ref.trimmed_mean(x, 1, w)),
    "krum": (krum(1), lambda x, w: ref.krum(x, 1, w)),
    "multi_krum": (multi_krum(1), lambda x, w: ref.multi_krum(x, 1, None, w)),
}
WRAPPERS = {
    "nnm": (lambda b: nnm(1, base=b), lambda b: lambda x, w: ref.nnm(x, 1, b, w)),
    "bucketing": (
        lambda b: bucketing(2, order=by_id, base=b),
        lambda b: lambda x, w: ref.bucketing(x, 2, np.arange(len(x)), b, w),
    ),
    "arc": (lambda b: arc(1, base=b), lambda b: lambda x, w: ref.arc(x, 1, b, w)),
    "norm_clipping": (
        lambda b: norm_clipping(1.5, base=b),
        lambda b: lambda x, w: b(np.array([ref.clipped_to(row, 1.5) for row in x]), w),
    ),
    "rlr": (lambda b: rlr(3, base=b), lambda b: lambda x, w: ref.rlr(x, 3, b, w)),
}


def stacks() -> list[tuple[str, ...]]:
    """One for each base, which comes last: four wrappers in random order."""
    rng = np.random.default_rng(8)
    return [(*rng.permutation(list(WRAPPERS))[:4].tolist(), base) for base in BASES]


@pytest.mark.parametrize("stack", stacks(), ids=" > ".join)
def test_behind_one_another(stack: tuple[str, ...]) -> None:
    """As the definitions applied one after the other to the rows that are present."""
    rule, reference = BASES[stack[-1]]
    for name in reversed(stack[:-1]):
        rule, reference = WRAPPERS[name][0](rule), WRAPPERS[name][1](reference)
    rng = np.random.default_rng(9)
    with jax.enable_x64(True):
        aggregate = jax.jit(rule.aggregate)
        for absent in (0, 2, 3):
            x = 0.5 + rng.normal(size=(12, 4))
            x[:1] *= 30
            weights = rng.uniform(0.5, 2, 12)
            weights[rng.permutation(12)[:absent]] = 0
            x[weights == 0] = np.nan
            result, _, info = aggregate(received(x, weights), rule.init(12, jnp.zeros(4)))
            present = weights > 0
            expected = reference(x[present], weights[present])
            np.testing.assert_allclose(result, expected, rtol=1e-9, atol=1e-12)
            if {"nnm", "bucketing"} & set(stack):
                assert "selected" not in info


def test_the_order_of_wrappers_matters() -> None:
    """NNM, then clipping at 2, and the other way round."""
    one = call(nnm(1, base=norm_clipping(2.0)), U)[0]
    other = call(norm_clipping(2.0, base=nnm(1)), U)[0]
    mixed = np.array([[3.75, -1.5]] + 4 * [[1.25, 1]])
    expected = (np.array([3.75, -1.5]) * 2 / np.hypot(3.75, 1.5) + 4 * mixed[1]) / 5
    np.testing.assert_allclose(one, expected, rtol=1e-6)
    assert np.max(np.abs(one - other)) > 0.1


# --- In a simulation -------------------------------------------------------------------------------


def side_by_side(*rules: Aggregator) -> Aggregator:
    """The mean of several rules' aggregates, so that one program runs them all."""

    def init(num_clients, params):
        return tuple(rule.init(num_clients, params) for rule in rules)

    def aggregate(received, state):
        results = [rule.aggregate(received, s) for rule, s in zip(rules, state, strict=True)]
        combined = jnp.mean(jnp.stack([result for result, _, _ in results]), axis=0)
        return combined, tuple(state for _, state, _ in results), {}

    return Aggregator(init, aggregate)


def test_checkpoints_hold_all_of_their_memory(tmp_path) -> None:
    dataset = data.synthetic(jax.random.key(1), num_classes=3, num_features=4, num_train=120)
    task = fr.classification(models.SoftmaxRegression(3), dataset.train["x"][:1])
    parts = data.iid(jax.random.key(3), dataset.train, 8)
    rule = side_by_side(
        bucketing(2, base=centered_clipping(0.1)),
        sequential_clipping(0.1, 2),
        clipped_clustering(15),
        crfl(lambda t: 0.1 * t, 0.01, base=rlr(2, base=arc(1, base=centered_clipping(0.2)))),
    )
    client = fr.local_sgd(task, 0.1, batch_size=4)
    sim = fr.Simulation(task, client, rule, num_malicious=2, clients_per_round=5)
    key = jax.random.key(5)
    whole, _ = fr.run(sim, key, parts, 4, evaluate_every=2)
    arguments = {"evaluate_every": 2, "checkpoint": tmp_path / "run.npz", "checkpoint_every": 2}
    half, _ = fr.run(sim, key, parts, 2, **arguments)
    resumed, _ = fr.run(sim, key, parts, 4, **arguments)
    for a, b in zip(*map(jax.tree.leaves, (whole, resumed)), strict=True):
        if jnp.issubdtype(a.dtype, jax.dtypes.prng_key):
            a, b = map(jax.random.key_data, (a, b))
        np.testing.assert_array_equal(a, b)
    for a, c in zip(*map(jax.tree.leaves, (whole.aggregator, half.aggregator)), strict=True):
        assert np.any(a != c)  # every part of the memory went on
    assert np.all(np.isfinite(whole.params))
