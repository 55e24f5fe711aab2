"""The checks that throw updates out, against slow definitions."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference as ref

from fedjax_robust import aggregators, metrics
from fedjax_robust.types import Received

WEIGHTS = [None, np.array([1, 0, 1, 1, 2, 1, 1, 0, 1, 1, 1], np.float32)]


def updates(seed=0, n=11, d=7, shift=0.0):
    """The first three rows are shifted in two coordinates."""
    x = np.random.default_rng(seed).normal(size=(n, d))
    x[:3, [1, 4]] += shift
    return x.astype(np.float32)


@functools.cache
def compiled(make):
    """One program for all thresholds of a rule."""

    def call(value, received):
        n, d = received.updates.shape
        rule = make(value)
        result, _, info = rule.aggregate(received, rule.init(n, jnp.zeros(d)))
        return result, info

    return jax.jit(call)


def aggregate(make, value, x, weights=None, params=None, key=0):
    n, d = x.shape
    weights = jnp.ones(n) if weights is None else jnp.asarray(weights)
    params = jnp.zeros(d) if params is None else jnp.asarray(params, jnp.float32)
    received = Received(jnp.asarray(x), weights, jnp.arange(n), params, jax.random.key(key))
    result, info = compiled(make)(value, received)
    return np.asarray(result), {name: np.asarray(values) for name, values in info.items()}


def by_first_parameter(drop):
    return aggregators.accuracy_auditing(lambda params: jax.nn.sigmoid(params[0]), drop)


@pytest.mark.parametrize("weights", WEIGHTS)
@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("shift", [0.0, 6.0, -40.0])
def test_auror(weights, seed, shift):
    x = updates(seed, shift=shift)
    for threshold in (2.0, 4.5, 1e3):
        rows, indicative = ref.auror_selection(x, threshold, weights)
        result, info = aggregate(aggregators.auror, threshold, x, weights)
        assert info["indicative"] == indicative
        assert list(np.flatnonzero(info["selected"])) == rows
        kept = np.zeros(len(x)) + np.isin(range(len(x)), rows) * (1 if weights is None else weights)
        np.testing.assert_allclose(result, ref.mean(x, kept), atol=1e-5)


def test_auror_finds_a_shifted_group_and_only_it():
    x = updates(5, shift=20.0)
    _, info = aggregate(aggregators.auror, 10.0, x)
    figures = metrics.detection(jnp.asarray(info["selected"]), jnp.arange(11) < 3)
    assert info["indicative"] == 2
    assert (figures["precision"], figures["recall"]) == (1, 1)
    two = np.array([[0.0], [9.0]], np.float32)  # clusters of equal size: all stay
    assert aggregate(aggregators.auror, 1.0, two)[1]["selected"].all()
    assert aggregate(aggregators.auror, 1.0, two[:1])[1]["selected"].all()


def test_auror_iterates_until_the_clusters_stand():
    """One dimension, by hand. The rows furthest apart are 0 and 10. Around them: {0, 4, 4, 4, 4.9} and
    {5.1, 10}; around their means 3.38 and 7.55: {0, 4, 4, 4, 4.9, 5.1} and {10}, and so it stays. A
    single step would drop 5.1, too."""
    x = np.array([[0], [4], [4], [4], [4.9], [5.1], [10]], np.float32)
    _, info = aggregate(aggregators.auror, 3.0, x)
    np.testing.assert_array_equal(info["selected"], [True] * 6 + [False])


def lloyd(x, steps):
    """Clusters of k-means from the two points furthest apart, after so many steps; in float64."""
    squares = ref.pairwise_squared_distances(x)
    i, j = np.unravel_index(np.argmax(squares), squares.shape)
    centres = [x[i], x[j]]
    for _ in range(steps + 1):
        second = np.array(
            [np.sum((r - centres[1]) ** 2) < np.sum((r - centres[0]) ** 2) for r in x]
        )
        centres = [x[~second].mean(0), x[second].mean(0)]
    return second


def test_auror_takes_ten_steps():
    """Rows, found by search, with which the iteration is still under way then."""
    rng = np.random.default_rng(413)
    x = np.exp(rng.uniform(0.5, 3) * rng.normal(size=50)).astype(np.float32)[:, None]
    ten = lloyd(x.astype(float), 10)
    assert np.any(ten != lloyd(x.astype(float), 9)) and np.any(ten != lloyd(x.astype(float), 11))
    _, info = aggregate(aggregators.auror, 1e-6, x)
    smaller = ten if 2 * ten.sum() < len(x) else ~ten
    np.testing.assert_array_equal(info["selected"], ~smaller)


@pytest.mark.parametrize("scale", [1e-30, 1e-20, 1e19, 1e30, 1e37])
def test_auror_at_any_scale(scale):
    x = updates(5, shift=6.0).astype(np.float64)
    rows, indicative = ref.auror_selection(x, 4.5)
    assert indicative and len(rows) < len(x)
    _, info = aggregate(aggregators.auror, 4.5 * scale, (scale * x).astype(np.float32))
    assert info["indicative"] == indicative
    assert list(np.flatnonzero(info["selected"])) == rows


def test_auror_beside_huge_rows():
    """One attacker far away is the smaller cluster, and does not hide in an overflow."""
    for size in (1e10, 1e25, 3e38):
        x = updates(7)
        x[3] = -size
        _, info = aggregate(aggregators.auror, 1.0, x)
        np.testing.assert_array_equal(info["selected"], np.arange(11) != 3)


@pytest.mark.parametrize("weights", WEIGHTS)
def test_sybil_check(weights):
    x = updates(1)
    x[7] = 3 * x[2] + 0.01  # a copy, scaled
    x[5] = 0
    for largest in (0.2, 0.6, 0.99, 1.0):
        _, info = aggregate(aggregators.sybil_check, largest, x, weights)
        got = list(np.flatnonzero(info["selected"]))
        assert got == ref.sybil_selection(x, largest, weights)
    _, info = aggregate(aggregators.sybil_check, 0.99, x)
    assert not info["selected"][[2, 7]].any()
    assert aggregate(aggregators.sybil_check, -1.0, x[:1])[1]["selected"].all()


def test_orthogonal_parts_of_an_update_evade_the_sybil_check():
    """Section VI-B: colluders decompose the update into orthogonal vectors."""
    whole = updates(3)[0]
    copies = np.vstack([updates(4)[4:], np.tile(whole / 2, (2, 1))])
    halves = np.vstack(
        [updates(4)[4:], np.where(np.arange(7) < 3, whole, 0), np.where(np.arange(7) < 3, 0, whole)]
    )
    _, caught = aggregate(aggregators.sybil_check, 0.95, copies)
    _, missed = aggregate(aggregators.sybil_check, 0.95, halves)
    assert not caught["selected"][-2:].any()
    assert missed["selected"][-2:].all()


@pytest.mark.parametrize("weights", WEIGHTS)
def test_accuracy_auditing(weights):
    x = updates(2)
    x[1] = np.nan

    params = np.full(7, 0.5)
    scores = 1 / (1 + np.exp(-(0.5 + x[:, 0].astype(np.float64))))
    there = [i for i in range(11) if i != 1 and (weights is None or weights[i])]
    typical = np.median(scores[there])
    for drop in (0.0, 0.1, 0.5):
        result, info = aggregate(by_first_parameter, drop, x, weights, params)
        expected = [i for i in there if scores[i] >= typical - drop - 1e-7]
        assert list(np.flatnonzero(info["selected"])) == expected
        np.testing.assert_allclose(info["accuracies"][there], scores[there], rtol=1e-5)
    assert np.isfinite(result).all()


def test_accuracies_that_are_not_numbers():
    """They are rejected, and do not disturb the median of the others."""
    x = updates(2)
    rule = aggregators.accuracy_auditing(
        lambda params: jnp.where(params[0] > 2, jnp.nan, jax.nn.sigmoid(params[0])), 0.1
    )
    x[[3, 8], 0] = 5
    received = Received(
        jnp.asarray(x), jnp.ones(11), jnp.arange(11), jnp.zeros(7), jax.random.key(0)
    )
    _, _, info = jax.jit(rule.aggregate)(received, ())
    scores = 1 / (1 + np.exp(-x[:, 0].astype(float)))
    there = x[:, 0] < 2
    np.testing.assert_array_equal(
        info["selected"], there & (scores >= np.median(scores[there]) - 0.1)
    )


def test_what_detectors_are_made_of():
    for make in (aggregators.auror, aggregators.sybil_check, aggregators.cosine_to_model):
        with pytest.raises(
            TypeError, match=r"needs base to be an Aggregator.*call it: base=median"
        ):
            make(0.5, base=aggregators.median)
        with pytest.raises(TypeError, match="to be a number"):
            make("0.5")
        assert make(0.5) is make(0.5)
    with pytest.raises(TypeError, match="needs accuracy to be a function"):
        aggregators.accuracy_auditing(0.9, 0.1)
    with pytest.raises(ValueError, match=r"accuracy must return shape \(\), got \(7,\)"):
        aggregators.accuracy_auditing(lambda params: params, 0.1)(updates())


@pytest.mark.parametrize("weights", WEIGHTS)
def test_cosine_to_model(weights):
    rng = np.random.default_rng(0)
    params = rng.normal(size=50)
    x = (1e-3 * rng.normal(size=(11, 50))).astype(np.float32)
    x[4] *= 10  # scaled: seen from the old model, its direction differs
    there = [i for i in range(11) if weights is None or weights[i]]
    sent = np.float32(params).astype(np.float64) + x
    cosines = sent @ params / np.linalg.norm(sent, axis=1) / np.linalg.norm(params)
    deviation = np.abs(cosines - np.median(cosines[there]))
    # On both sides of two rows' own limits, with and without the factor 1.4826 as well: a wrong factor,
    # or a mean or standard deviation in place of a median, lets other rows pass.
    spread = 1.4826 * np.median(deviation[there])
    bounds = np.sort(deviation[there]) / spread
    near = [(1 + part) * bounds[i] for i in (-4, -2) for part in (-0.01, 0.01)]
    seen = set()
    for limit in (1.0, 3.0, 8.0, *near):
        _, info = aggregate(aggregators.cosine_to_model, limit, x, weights, params)
        expected = [i for i in there if deviation[i] <= limit * spread]
        other = [i for i in there if deviation[i] <= limit * spread / 1.4826]
        seen.add(expected == other)
        assert list(np.flatnonzero(info["selected"])) == expected
        assert not info["selected"][4]
        np.testing.assert_allclose(1 - info["cosines"][there], 1 - cosines[there], atol=1e-7)
    assert False in seen  # the factor matters


@pytest.mark.parametrize(
    ("size", "scale"),
    [
        (1e-25, 1.0),
        (1e-25, 1e15),
        (1e-12, 1e-15),
        (1e-6, 1.0),
        (1e-3, 1e15),
        (1.0, 1.0),
        (1e3, 1e-15),
        (1e20, 1e-15),
        (1e20, 1.0),
    ],
)
def test_cosine_to_model_of_updates_of_any_length(size, scale):
    """Which are lost in params + update, and whose squares are lost altogether."""
    rng = np.random.default_rng(1)
    params = (scale * rng.normal(size=50)).astype(np.float32)
    x = (size * scale * rng.normal(size=(11, 50))).astype(np.float32)
    x[4] *= 3
    x[2] = 0.05 * x[2] + size * params
    wide, along = x.astype(np.longdouble), params.astype(np.longdouble)
    length = np.sqrt(np.sum(along**2))
    part = np.sum(wide * along, axis=1) / length
    across = np.sum((wide - np.outer(part, along / length)) ** 2, axis=1)
    whole = np.sqrt((length + part) ** 2 + across)
    # 1 - a / h without the difference where it is small
    distance = np.where(
        length + part > 0, across / (whole * (whole + length + part)), 1 - (length + part) / whole
    )
    deviation = np.abs(distance - np.median(distance))
    for limit in (0.5, 1.2, 3.0):
        ratio = deviation / (limit * np.longdouble(1.4826) * np.median(deviation))
        assert np.min(np.abs(ratio - 1)) > 1e-3  # nothing hangs on rounding
        _, info = aggregate(aggregators.cosine_to_model, limit, x, None, params)
        np.testing.assert_array_equal(info["selected"], ratio <= 1)


def test_cosine_to_a_model_that_is_zero():
    _, info = aggregate(aggregators.cosine_to_model, 3.0, updates(6))
    assert info["selected"].all()
    np.testing.assert_array_equal(info["cosines"], np.zeros(11))


@pytest.mark.parametrize(
    ("make", "text"),
    [
        (lambda: aggregators.auror(0), "auror needs threshold > 0, got threshold=0"),
        (lambda: aggregators.auror(np.nan), "threshold > 0"),
        (lambda: aggregators.auror(np.inf), "threshold > 0 and finite"),
        (lambda: aggregators.auror(np.array(-1.0)), "threshold > 0"),
        (lambda: aggregators.accuracy_auditing(lambda p: p[0], 1), r"drop in \[0, 1\), got drop=1"),
        (lambda: aggregators.accuracy_auditing(lambda p: p[0], np.nan), "drop in"),
        (lambda: aggregators.accuracy_auditing(lambda p: p[0], jnp.float32(-0.1)), "drop in"),
        (lambda: aggregators.sybil_check(1.5), r"largest in \[-1, 1\], got largest=1.5"),
        (lambda: aggregators.sybil_check(np.nan), "largest in"),
        (lambda: aggregators.cosine_to_model(0), "deviations > 0, got deviations=0"),
        (lambda: aggregators.cosine_to_model(jnp.array(np.nan)), "deviations > 0"),
    ],
)
def test_bad_arguments(make, text):
    with pytest.raises(ValueError, match=text):
        make()
