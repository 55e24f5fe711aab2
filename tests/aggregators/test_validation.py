"""ERR, LFR and Union, and the leave-one-out aggregates they rest on."""

from __future__ import annotations

import functools
import re
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference as ref

from fedjax_robust import classification, models
from fedjax_robust.aggregators import (
    bulyan,
    err,
    krum,
    lfr,
    mean,
    median,
    multi_krum,
    trimmed_mean,
    union,
)
from fedjax_robust.types import Aggregator, Received

N, F = 12, 2
BASES = {
    "mean": (mean(), lambda x, w: ref.mean(x, w)),
    "median": (median(), lambda x, w: ref.median(x, w)),
    "trimmed_mean": (trimmed_mean(F), lambda x, w: ref.trimmed_mean(x, F, w)),
    "trimmed_mean_0": (trimmed_mean(0), lambda x, w: ref.trimmed_mean(x, 0, w)),
    "trimmed_mean_5": (trimmed_mean(5), lambda x, w: ref.trimmed_mean(x, 5, w)),
    "krum": (krum(F), lambda x, w: ref.krum(x, F, w)),
    "multi_krum": (multi_krum(F), lambda x, w: ref.multi_krum(x, F, None, w)),
    "multi_krum_3": (multi_krum(F, m=3), lambda x, w: ref.multi_krum(x, F, 3, w)),
    "bulyan": (bulyan(F), lambda x, w: ref.bulyan(x, F, w)),  # has no leave_one_out of its own
}
FAST = [name for name, (rule, _) in BASES.items() if rule.leave_one_out is not None]
# Where float32 and float64 choose another of equally good rows; as in test_rules.py.
KRUM_EXCLUDED = {"tiny", "ties", "duplicates", "mixed_scales"}

LABELS, FEATURES, VALIDATION = 3, 4, 25
TASK = classification(models.SoftmaxRegression(LABELS), np.zeros((1, FEATURES), np.float32))
D = LABELS * (FEATURES + 1)


def received(x: np.ndarray, weights: np.ndarray, key: int = 0, params=None) -> Received:
    params = jnp.zeros(x.shape[1], x.dtype) if params is None else jnp.asarray(params)
    return Received(
        jnp.asarray(x), jnp.asarray(weights), jnp.arange(len(x)), params, jax.random.key(key)
    )


def absent(rng: np.random.Generator, number: int, n: int = N) -> np.ndarray:
    weights = rng.uniform(0.5, 2, n).astype(np.float32)
    weights[rng.permutation(n)[:number]] = 0
    return weights


# --- Leave-one-out ---------------------------------------------------------------------------------


@pytest.mark.parametrize("name", FAST)
@pytest.mark.parametrize("n", [N, N + 1])
def test_leave_one_out_equals_deleting_each_row(name: str, n: int) -> None:
    """On random and nasty matrices, with any number of rows present."""
    rule, reference = BASES[name]
    all_left_out = jax.jit(lambda x, w: rule.leave_one_out(received(x, w), ()))
    rng = np.random.default_rng(n)
    matrices = {"random": rng.normal(size=(n, 5)).astype(np.float32)}
    matrices |= ref.nasty_matrices(n, 5, rng)
    for what, x in matrices.items():
        if "krum" in name and what in KRUM_EXCLUDED:
            continue
        counts = range(0, n + 1, 2 if n > N else 1) if what == "random" else (n % 2,)
        for gone in counts:
            weights = absent(rng, gone, n)
            results = np.asarray(all_left_out(x, weights))
            assert results.shape == x.shape
            assert np.all(np.isfinite(results)), what
            for i in ref.present(x, weights)[2]:
                others = weights.copy()
                others[i] = 0
                expected = reference(x, others)
                scale = np.max(np.abs(expected), initial=0.0)
                np.testing.assert_allclose(
                    results[i], expected, rtol=0, atol=2e-5 * scale, err_msg=f"{what} {gone} {i}"
                )


@pytest.mark.parametrize("name", FAST)
def test_leave_one_out_equals_the_rule_itself(name: str) -> None:
    """Also where rows tie, in float64: what the rule itself gives when the row's weight is 0."""
    rule = BASES[name][0]
    with jax.enable_x64(True):
        left_out = jax.jit(lambda x, w: rule.leave_one_out(received(x, w), ()))
        itself = jax.jit(rule.__call__)
        for what, x in ref.nasty_matrices(N, 5, np.random.default_rng(3)).items():
            if "krum" in name and what in {"ties", "duplicates"}:
                continue
            x = np.asarray(x, np.float64)
            weights = np.ones(N)
            results = left_out(x, weights)
            for i in ref.present(x, weights)[2]:
                others = np.where(np.arange(N) == i, 0.0, weights)
                expected = np.asarray(itself(x, others))
                scale = np.max(np.abs(expected), initial=0.0)
                np.testing.assert_allclose(results[i], expected, rtol=0, atol=1e-11 * scale)


def test_leaving_out_the_outlier_leaves_nothing_of_it() -> None:
    """A total minus the row would be 0 here: 1e30 drowns the others."""
    x = np.array([[1], [2], [3], [1e30]], np.float32)
    for rule in (mean(), trimmed_mean(0)):
        np.testing.assert_allclose(rule.leave_one_out(received(x, np.ones(4)), ())[3], [2.0])
    x = np.array([[1], [2], [3], [1e30], [2e30]], np.float32)
    left_out = trimmed_mean(1).leave_one_out(received(x, np.ones(5)), ())
    np.testing.assert_allclose(left_out[3], [2.5])  # of 1, 2, 3, 2e30
    np.testing.assert_allclose(left_out[4], [2.5])


# --- ERR, LFR, Union -------------------------------------------------------------------------------


def problem(seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Validation x and y, received params, updates: half of them lower the loss, half raise it."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(VALIDATION, FEATURES)).astype(np.float32)
    y = rng.integers(LABELS, size=VALIDATION).astype(np.int32)
    params = rng.normal(size=D).astype(np.float32)
    descent = -jax.grad(TASK.loss)(jnp.asarray(params), {"x": x, "y": y})
    signs = np.where(np.arange(N) % 2, 1.0, -1.0)[:, None]
    updates = signs * np.asarray(descent) * rng.uniform(0.5, 2, (N, 1))
    updates = updates + 0.3 * rng.normal(size=(N, D))
    return x, y, params, updates.astype(np.float32)


Make = Callable[[dict], Aggregator]


@functools.cache  # one compilation for all batches
def compiled(make: Make) -> Callable:
    def aggregate(batch, updates, weights, params, key):
        rule = make(batch)
        one = Received(updates, weights, jnp.arange(len(updates)), params, key)
        return rule.aggregate(one, rule.init(len(updates), params))

    return jax.jit(aggregate)


def run(make: Make, batch: dict, updates: np.ndarray, weights: np.ndarray, params, key: int = 0):
    """``make``: validation batch -> rule."""
    result, state, info = compiled(make)(batch, updates, weights, params, jax.random.key(key))
    assert state == ()
    return np.asarray(result), {k: np.asarray(v) for k, v in info.items()}


@functools.cache
def rejecting(kind, name: str, c: int = 3, **options) -> Make:
    return lambda batch: kind(TASK, batch, c, base=BASES[name][0], **options)


@pytest.mark.parametrize("name", BASES)
def test_lfr_removes_the_largest_loss_impacts(name: str) -> None:
    reference = BASES[name][1]
    distinct = 0
    for seed in range(4):
        x, y, params, updates = problem(seed)
        weights = absent(np.random.default_rng(seed), seed % 2)
        result, info = run(rejecting(lfr, name), {"x": x, "y": y}, updates, weights, params)

        def loss(w: np.ndarray, x=x, y=y) -> float:
            return ref.softmax_regression_metrics(w, x, y)[1]

        values = ref.impacts(reference, loss, updates, weights, params.astype(np.float64))
        removed = set(np.flatnonzero(info["removed"]))
        assert len(removed) == 3
        expected = ref.largest_impacts(values, 3)
        worst = sorted(values)[::-1]
        if (
            worst[2] - worst[3] > 1e-6
        ):  # else several rows tie: Krum chooses one row for most of them
            assert removed == expected
            distinct += 1
        assert min(values[list(removed)]) >= worst[2] - 1e-6
        kept = weights.copy()
        kept[list(removed)] = 0
        np.testing.assert_allclose(result, reference(updates, kept), rtol=1e-4, atol=1e-5)
    assert distinct or name == "krum"


@pytest.mark.parametrize("name", ["mean", "median", "trimmed_mean", "multi_krum", "bulyan"])
def test_err_and_union(name: str) -> None:
    reference = BASES[name][1]
    for seed in range(4):
        x, y, params, updates = problem(seed)
        batch = {"x": x, "y": y}
        weights = absent(np.random.default_rng(seed), 1)
        start = params.astype(np.float64)
        both = {
            k: ref.impacts(
                reference,
                lambda w, k=k, x=x, y=y: ref.softmax_regression_metrics(w, x, y)[k],
                updates,
                weights,
                start,
            )
            for k in (0, 1)
        }
        _, info = run(rejecting(err, name), batch, updates, weights, params)
        by_error = set(np.flatnonzero(info["removed"]))
        assert len(by_error) == 3
        third = sorted(both[0])[-3]
        assert all(both[0][i] >= third - 1e-9 for i in by_error)  # many rows have the same impact
        assert by_error >= {i for i in range(N) if both[0][i] > third + 1e-9}

        result, info = run(rejecting(union, name), batch, updates, weights, params)
        removed = set(np.flatnonzero(info["removed"]))
        third_loss = sorted(both[1])[-3]
        assert removed >= {i for i in range(N) if both[1][i] > third_loss + 1e-6}
        assert 3 <= len(removed) <= 6
        assert all(both[0][i] >= third - 1e-9 or both[1][i] >= third_loss - 1e-6 for i in removed)
        kept = np.where(info["removed"], 0, weights)
        np.testing.assert_allclose(result, reference(updates, kept), rtol=1e-4, atol=1e-5)


def test_by_hand() -> None:
    """One feature, two labels, two examples: the row that pushes towards the wrong label goes."""
    task = classification(models.SoftmaxRegression(2), np.zeros((1, 1), np.float32))
    validation = {"x": np.array([[1.0], [-1.0]], np.float32), "y": np.array([1, 0], np.int32)}
    # Parameters: two biases, then the weights of the labels. Right is w_1 > w_0.
    good, bad = [0, 0, -1, 1], [0, 0, 5, -5]
    updates = np.array([good, bad, good, good], np.float32)
    for rule in (err, lfr, union):
        result, info = run(
            lambda batch, rule=rule: rule(task, batch, 1),
            validation,
            updates,
            np.ones(4, np.float32),
            np.zeros(4, np.float32),
        )
        # ERR: A = mean of all is wrong, B is right only without the bad row. Union agrees with it.
        np.testing.assert_array_equal(np.flatnonzero(info["removed"]), [1])
        np.testing.assert_allclose(result, good)


def test_ties_are_broken_at_random_by_the_key() -> None:
    """Equal rows have equal impacts: each is removed equally often, over rounds' keys."""
    x, y, params, _ = problem(0)
    updates = np.zeros((N, D), np.float32)
    rule = err(TASK, {"x": x, "y": y}, 3, base=median())
    draws = 400

    def removed(key: jax.Array) -> jax.Array:
        one = received(updates, np.ones(N, np.float32), 0, params)._replace(key=key)
        return rule.aggregate(one, ())[2]["removed"]

    counts = np.sum(jax.vmap(removed)(jax.random.split(jax.random.key(1), draws)), axis=0)
    assert np.sum(counts) == 3 * draws
    spread = np.sqrt(draws * 0.25 * 0.75)
    assert np.all(np.abs(counts - draws / 4) < 5 * spread)
    again = removed(jax.random.key(9)), removed(jax.random.key(9))
    np.testing.assert_array_equal(*again)
    # The other reading: the first rows go first.
    first = rejecting(err, "median", ties=lambda key, places: places)
    _, info = run(first, {"x": x, "y": y}, updates, np.ones(N, np.float32), params)
    np.testing.assert_array_equal(np.flatnonzero(info["removed"]), [0, 1, 2])


def test_bad_and_absent_rows() -> None:
    """NaN rows are absent: neither tried nor removed. What they hold does not matter."""
    x, y, params, updates = problem(1)
    rule, batch = rejecting(lfr, "trimmed_mean"), {"x": x, "y": y}
    weights = np.ones(N, np.float32)
    updates[4] = np.nan
    result, info = run(rule, batch, updates, weights, params)
    assert not info["removed"][4] and not info["selected"][4]
    assert np.all(np.isfinite(result))
    deleted = np.delete(np.arange(N), 4)
    alone, info_alone = run(rule, batch, updates[deleted], weights[deleted], params)
    np.testing.assert_allclose(result, alone, rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(info["removed"][deleted], info_alone["removed"])
    assert np.array_equal(info["selected"], ~info["removed"] & (np.arange(N) != 4))
    # A row that makes the model's loss infinite or NaN is removed first.
    updates[4] = 3e38 * np.resize([1, -1, 0.5], D)
    _, info = run(rejecting(lfr, "mean", c=1), batch, updates, weights, params)
    np.testing.assert_array_equal(np.flatnonzero(info["removed"]), [4])
    # No more rows than are removed: the model stays.
    few = np.zeros(N, np.float32)
    few[:3] = 1
    result, info = run(rule, batch, updates, few, params)
    np.testing.assert_array_equal(result, np.zeros(D))
    np.testing.assert_array_equal(np.flatnonzero(info["removed"]), [0, 1, 2])


def test_chunks_and_the_rest_rule() -> None:
    x, y, params, updates = problem(2)
    batch, weights = {"x": x, "y": y}, np.ones(N, np.float32)
    for name in ("trimmed_mean", "bulyan"):
        expected, info = run(rejecting(lfr, name), batch, updates, weights, params)
        for chunk in (1, 5):
            result, same = run(rejecting(lfr, name, chunk=chunk), batch, updates, weights, params)
            np.testing.assert_array_equal(same["removed"], info["removed"])
            np.testing.assert_allclose(result, expected, rtol=1e-5, atol=1e-7)
    mean_of_rest = rejecting(lfr, "trimmed_mean", rest=mean())
    result, info = run(mean_of_rest, batch, updates, weights, params)
    np.testing.assert_allclose(result, updates[~info["removed"]].mean(0), rtol=1e-5, atol=1e-6)


def test_selected_is_the_rules_own() -> None:
    x, y, params, updates = problem(3)
    weights = np.ones(N, np.float32)
    _, info = run(rejecting(lfr, "krum"), {"x": x, "y": y}, updates, weights, params)
    assert np.sum(info["selected"]) == 1
    assert not np.any(info["selected"] & info["removed"])


def test_vmap_over_seeds() -> None:
    x, y, params, updates = problem(0)
    rule = union(TASK, {"x": x, "y": y}, 2, base=median())
    many = np.stack([updates, 2 * updates, updates[::-1]])
    alone = jax.jit(lambda u: rule(u, params=params))
    for one, result in zip(many, jax.jit(jax.vmap(alone))(many), strict=True):
        np.testing.assert_allclose(result, alone(one), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda *a: err(*a, -1), "err needs f >= 0, got f=-1"),
        (lambda *a: lfr(*a, 2, chunk=0), "lfr needs chunk >= 1, got chunk=0; None is the default"),
        (lambda *a: err(*a, N), "err needs n > f, or nothing may be left: got n=12, f=12"),
        (lambda *a: lfr(*a, N), "lfr needs n > f, or nothing may be left: got n=12, f=12"),
        (lambda *a: union(*a, 6), "union needs n > 2f, or nothing may be left: got n=12, f=6"),
    ],
)
def test_preconditions(make, message: str) -> None:
    x, y, _, updates = problem(0)
    with pytest.raises(ValueError, match="(?m)^" + re.escape(message) + "$"):
        make(TASK, {"x": x, "y": y})(updates)


# --- Absent rows and ties --------------------------------------------------------------------------


def clustered(seed: int) -> tuple[dict, np.ndarray, np.ndarray]:
    """A problem in which many rows have equal impacts: few examples, two models far apart, copies."""
    rng = np.random.default_rng(seed)
    x, y, params, updates = problem(seed)
    rows = np.concatenate(
        [np.tile(updates[:1], (5, 1)), np.tile(updates[1:2], (4, 1)), updates[2:5]]
    )
    return {"x": x[:6], "y": y[:6]}, params, rows[rng.permutation(N)]


@pytest.mark.parametrize("how", ["NaN", "weight 0", "one of each"])
@pytest.mark.parametrize(
    ("kind", "name"),
    [
        (err, "trimmed_mean"),
        (lfr, "krum"),
        (union, "median"),
        (union, "mean"),
    ],
)
def test_an_absent_row_is_a_deleted_one_also_where_rows_tie(kind, name: str, how: str) -> None:
    """Ids may stay with their rows or be numbered anew. Some key must remove others, or nothing ties."""
    n, gone = N + 2, [3, 9] if how == "one of each" else [5]
    make = rejecting(kind, name, c=2)
    outcomes = set()
    for key in range(6):
        batch, params, updates = clustered(1)
        rng = np.random.default_rng(key)
        updates = np.concatenate([updates, updates[:2]])
        weights = rng.uniform(0.5, 2, n).astype(np.float32) if name == "mean" else np.ones(n, "f")
        kept = np.delete(np.arange(n), gone)
        expected, alone = run(make, batch, updates[kept], weights[kept], params, key)
        bad, light = updates.copy(), weights.copy()
        if how != "weight 0":
            bad[gone[0]] = np.nan
        if how != "NaN":
            light[gone[-1]] = 0
        result, info = run(make, batch, bad, light, params, key)
        np.testing.assert_array_equal(info["removed"][kept], alone["removed"])
        np.testing.assert_allclose(result, expected, rtol=1e-5, atol=1e-6)
        assert not np.any(info["removed"][gone]) and not np.any(info["selected"][gone])
        outcomes.add(tuple(np.flatnonzero(alone["removed"])))
    assert len(outcomes) > 1


def test_a_model_whose_metric_is_nan_counts_as_the_worst() -> None:
    """Without row 0 the loss is NaN: to keep it lowers nothing, so that it is removed last."""
    task = TASK._replace(loss=lambda params, batch: jnp.where(params[0] < 0.5, jnp.nan, params[1]))
    updates = np.zeros((4, D), np.float32)
    updates[0, 0], updates[:, 1] = 4, [5, 1, 3, 2]  # means without row i: NaN, 10/3, 8/3, 3
    validation = {"x": np.zeros((2, FEATURES), np.float32), "y": np.zeros(2, np.int32)}
    for c, expected in [(1, [2]), (2, [2, 3]), (3, [1, 2, 3])]:
        rule = lfr(task, validation, c)
        info = rule.aggregate(received(updates, np.ones(4, np.float32)), ())[2]
        np.testing.assert_array_equal(np.flatnonzero(info["removed"]), expected)


@pytest.mark.parametrize("kind", [err, lfr, union])
def test_the_number_removed_may_be_traced(kind) -> None:
    x, y, params, updates = problem(1)
    batch = {"x": x, "y": y}

    def removed(f) -> tuple:
        rule = kind(TASK, batch, f, base=median())
        result, _, info = rule.aggregate(received(updates, np.ones(N, "f"), 0, params), ())
        return result, info["removed"]

    results, rows = jax.jit(jax.vmap(removed))(jnp.arange(4))
    for f in range(4):
        result, alone = removed(f)
        np.testing.assert_array_equal(rows[f], alone)
        np.testing.assert_allclose(results[f], result, rtol=1e-5, atol=1e-6)
    assert np.sum(rows[3]) >= 3


def test_the_keys_of_ties_and_of_the_rule_differ() -> None:
    x, y, _, updates = problem(0)
    seen = []

    def ties(key: jax.Array, places: jax.Array) -> jax.Array:
        seen.append(key)
        return places

    inner = Aggregator(
        lambda n, params: (), lambda r, s: (seen.append(r.key) or r.updates[0], s, {})
    )
    rule = union(TASK, {"x": x, "y": y}, 1, ties=ties, base=median(), rest=inner)
    one = received(updates, np.ones(N, np.float32), 7)
    rule.aggregate(one, ())
    keys = [tuple(np.asarray(jax.random.key_data(key))) for key in [*seen, one.key]]
    assert len(keys) == len(set(keys)) == 4


def test_validation_data_are_checked() -> None:
    x, y, _, _ = problem(0)
    for kind in (err, lfr, union):
        name = kind.__name__
        for batch, message in [
            ({"x": x, "y": y[:, None]}, "one integer for each example, got shape (25, 1); squeeze"),
            ({"x": x, "y": np.eye(3, dtype=int)[y]}, "got shape (25, 3); take argmax"),
            ({"x": x, "y": y + 1}, "labels in 0 .. 2, got labels from 1 to 3"),
            ({"x": x, "y": y - 1}, "labels >= 0, got labels from -1 to 1"),
            ({"x": x, "y": y.astype(np.float32)}, "labels y that are integers"),
            ({"x": x[:1], "y": y}, "one common number of examples"),
            ({"x": x[:, :3], "y": y}, "got x of shape (25, 3)"),
            ({"image": x, "label": y}, "needs examples with 'x', 'y', got 'image', 'label'"),
        ]:
            with pytest.raises(ValueError, match=re.escape(message)) as caught:
                kind(TASK, batch, 1)
            assert f"{name}'s validation" in str(caught.value)
        with pytest.raises(TypeError, match=f"{name} needs base to be an Aggregator.*call it"):
            kind(TASK, {"x": x, "y": y}, 1, base=median)
        with pytest.raises(TypeError, match=f"{name} needs rest to be an Aggregator.*call it"):
            kind(TASK, {"x": x, "y": y}, 1, rest=median)
        for bad in (np.nan, 1.5, np.array(-1), jnp.array(-1), np.float32(2)):
            with pytest.raises(ValueError, match=f"{name} needs f"):
                kind(TASK, {"x": x, "y": y}, bad)
    masked = {"x": x, "y": y, "mask": np.arange(25) < 5}
    for kind in (err, union):
        with pytest.raises(ValueError, match="may not have a mask"):
            kind(TASK, masked, 1)


def test_the_loss_may_use_a_mask() -> None:
    x, y, params, updates = problem(0)
    mask = (np.arange(25) < 5).astype(np.float32)
    weights = np.ones(N, np.float32)
    make = rejecting(lfr, "median")
    _, masked = run(make, {"x": x, "y": y, "mask": mask}, updates, weights, params)
    _, few = run(make, {"x": x[:5], "y": y[:5]}, updates, weights, params)
    _, all_ = run(make, {"x": x, "y": y}, updates, weights, params)
    np.testing.assert_array_equal(masked["removed"], few["removed"])
    assert np.any(masked["removed"] != all_["removed"])
