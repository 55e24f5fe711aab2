"""Clipping, differential privacy and the checks that throw updates out, against slow definitions."""

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


def clipped_median(bound):
    return aggregators.norm_clipping(bound, aggregators.median())


def noisy_mean(noise):
    return aggregators.participant_dp(5.0, noise)


def by_first_parameter(drop):
    return aggregators.accuracy_auditing(lambda params: jax.nn.sigmoid(params[0]), drop)


def test_clipping_by_hand_and_around_another_rule():
    x = np.array([[3.0, 4.0], [0.3, 0.4], [0, 0], [0, -20]], np.float32)
    result, info = aggregate(aggregators.norm_clipping, 1.0, x)
    np.testing.assert_allclose(result, [(0.6 + 0.3) / 4, (0.8 + 0.4 - 1) / 4], rtol=1e-5)
    np.testing.assert_array_equal(info["clipped"], [True, False, False, True])
    result, _ = aggregate(clipped_median, 1.0, x)
    np.testing.assert_allclose(result, [0.15, 0.2], rtol=1e-5)
    rule = aggregators.norm_clipping(1.0)
    assert np.all(np.isfinite(jax.grad(lambda x: jnp.sum(rule(x)))(jnp.asarray(x))))


def test_the_noise_of_differential_privacy():
    x = np.tile(updates()[:, :1], (1, 20_000))
    quiet, _ = aggregate(noisy_mean, 0.0, x)
    np.testing.assert_allclose(quiet, ref.norm_clipping(x, 5.0), atol=1e-6)
    noisy, info = aggregate(noisy_mean, 0.3, x)
    assert np.std(noisy - quiet) == pytest.approx(0.3, rel=0.03)
    assert abs(np.mean(noisy - quiet)) < 0.01
    assert set(info) == {"clipped"}
    other, _ = aggregate(noisy_mean, 0.3, x, key=1)
    assert np.abs(other - noisy).mean() > 0.1
    nobody, _ = aggregate(noisy_mean, 0.3, x, np.zeros(11))
    assert np.all(nobody == 0)


def test_privacy_spent():
    """One release of the Gaussian mechanism to everyone: RDP is alpha / (2 z^2) at every order, so
    epsilon is at most min over alpha of alpha / (2 z^2) + log(1 / delta) / (alpha - 1)."""
    z, delta = 4.0, 1e-5
    spent = aggregators.privacy_spent(2.0, z * 2.0 / 50, 50, 50, 1, delta)
    classic = 1 / (2 * z**2) + np.sqrt(2 * np.log(1 / delta)) / z
    assert 0.7 * classic < spent < classic * 1.001  # the accountant's conversion is a bit tighter
    many = [aggregators.privacy_spent(15.0, 0.1, 100, 1000, r, delta) for r in (1, 10, 100)]
    assert many == sorted(many)
    less = aggregators.privacy_spent(15.0, 0.2, 100, 1000, 10, delta)
    assert less < many[1]
    assert aggregators.privacy_spent(15.0, 0.0, 100, 1000, 10, delta) == np.inf
    with pytest.raises(ValueError, match="1 <= clients_per_round <= num_clients"):
        aggregators.privacy_spent(1.0, 1.0, 11, 10, 1, delta)
    with pytest.raises(ValueError, match="delta in"):
        aggregators.privacy_spent(1.0, 1.0, 1, 10, 1, 1.0)


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
    for limit in (1.0, 3.0, 8.0):
        _, info = aggregate(aggregators.cosine_to_model, limit, x, weights, params)
        spread = 1.4826 * np.median(deviation[there])
        expected = [i for i in there if deviation[i] <= limit * spread]
        assert list(np.flatnonzero(info["selected"])) == expected
        assert not info["selected"][4]


@pytest.mark.parametrize(
    ("make", "text"),
    [
        (lambda: aggregators.norm_clipping(0), "bound > 0, got 0"),
        (lambda: aggregators.participant_dp(1, -1), "noise >= 0, got -1"),
        (lambda: aggregators.auror(0), "threshold > 0, got 0"),
        (lambda: aggregators.accuracy_auditing(lambda p: p[0], 1), "0 <= drop < 1, got 1"),
        (lambda: aggregators.sybil_check(1.5), "largest <= 1, got 1.5"),
        (lambda: aggregators.cosine_to_model(0), "deviations > 0, got 0"),
    ],
)
def test_bad_arguments(make, text):
    with pytest.raises(ValueError, match=text):
        make()
