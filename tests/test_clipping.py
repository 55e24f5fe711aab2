"""Norm clipping at any scale, and what the noise of differential privacy is worth."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference as ref

import fedjax_robust as fr
from fedjax_robust import privacy
from fedjax_robust.aggregators import mean, median, norm_clipping
from fedjax_robust.privacy import participant_dp, privacy_spent, privacy_spent_poisson


@pytest.mark.parametrize("bound", [1e-28, 1e-20, 1e-3, 1.0, 1e20, 1e30])
def test_norms_neither_overflow_nor_underflow(bound):
    """Rows from 1e-30 to 1e37 in one matrix, against float64."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(40, 6)) * 10.0 ** rng.integers(-29, 37, (40, 1))
    x = x.astype(np.float32)
    received = fr.Received(
        jnp.asarray(x), jnp.ones(40), jnp.arange(40), jnp.zeros(6), jax.random.key(0)
    )
    each = fr.Aggregator(lambda n, p: (), lambda r, s: (r.updates[0], s, {"rows": r.updates}))
    _, _, info = norm_clipping(bound, base=each).aggregate(received, ())
    lengths = np.linalg.norm(x.astype(np.float64), axis=1)
    np.testing.assert_array_equal(info["clipped"], lengths > bound)
    factors = np.minimum(1, bound / lengths)
    np.testing.assert_allclose(info["rows"], factors[:, None] * x.astype(np.float64), rtol=1e-5)
    slope = jax.grad(lambda x: jnp.sum(norm_clipping(bound)(x)))(jnp.asarray(x))
    assert np.all(np.isfinite(slope))


def test_clipping_takes_integers_and_traced_bounds_and_any_base():
    x = np.array([[3, 4], [0, 1], [1, 0], [30, 40]])
    for bound in (1.0, 5.0, 20.0):
        expected = ref.norm_clipping(x, bound)
        np.testing.assert_allclose(norm_clipping(bound)(x), expected, rtol=1e-6)
    many = jax.vmap(lambda bound: norm_clipping(bound)(jnp.asarray(x)))(jnp.array([1.0, 5.0, 20.0]))
    np.testing.assert_allclose(many, [ref.norm_clipping(x, b) for b in (1, 5, 20)], rtol=1e-6)
    result = norm_clipping(1.0, base=median())(x)
    np.testing.assert_allclose(result, [0.6, 0.8], rtol=1e-6)  # of .6 0 1 .6 and .8 1 0 .8
    assert norm_clipping(1.0) is norm_clipping(1.0)
    with pytest.raises(TypeError, match=r"norm_clipping needs base to be an Aggregator.*call it"):
        norm_clipping(1.0, base=mean)


@pytest.mark.parametrize("bad", [np.nan, np.inf, 0, -1, np.array(-1.0), jnp.array(np.nan)])
def test_bad_numbers(bad):
    with pytest.raises(ValueError, match="norm_clipping needs bound > 0"):
        norm_clipping(bad)
    with pytest.raises(ValueError, match="participant_dp needs bound > 0"):
        participant_dp(bad, 0.1)
    with pytest.raises(ValueError, match="participant_dp needs clients_per_round > 0"):
        participant_dp(1.0, 0.1, clients_per_round=bad)
    if bad != 0:
        with pytest.raises(ValueError, match="participant_dp needs noise >= 0"):
            participant_dp(1.0, bad)


def test_weights_only_say_who_is_present():
    x = np.array([[1.0, 0], [0, 2], [7, 7], [0, -1]], np.float32)
    weights = np.array([5, 0.1, 0, 1], np.float32)
    np.testing.assert_allclose(
        participant_dp(1.0, 0.0)(x, weights), [1 / 3, 0], rtol=1e-6, atol=1e-7
    )
    np.testing.assert_allclose(
        participant_dp(1.0, 0.0, clients_per_round=5)(x, weights), [1 / 5, 0], rtol=1e-6, atol=1e-7
    )


@pytest.mark.parametrize("m", [None, 10])
def test_how_far_one_client_moves_the_result(m):
    """Replaced: 2 S / m. Left out: S / m if the sum is divided by m, and up to 2 S / m if not."""
    bound, n, d = 0.7, 10, 4
    away = np.zeros((n, d), np.float32)
    away[:, 0] = 5
    rule = participant_dp(bound, 0.0, clients_per_round=m)
    other = away.copy()
    other[3] *= -1
    everyone = np.asarray(rule(away))
    replaced = np.linalg.norm(rule(other) - everyone)
    assert replaced == pytest.approx(2 * bound / n, rel=1e-5)
    left_out = np.linalg.norm(rule(np.delete(other, 3, axis=0)) - rule(other))
    # The mean of 9 is S, that of 9 and one against them .8 S.
    assert left_out == pytest.approx(bound / n if m else 2 * bound / n, rel=1e-5)


def test_noise_of_a_fixed_divisor_is_there_without_clients():
    """Whether anybody took part is a secret, too."""
    nobody = np.zeros(3, np.float32)
    x = np.ones((3, 40_000), np.float32)
    assert np.all(participant_dp(1.0, 0.3)(x, nobody) == 0)
    noise = np.asarray(participant_dp(1.0, 0.3, clients_per_round=7)(x, nobody))
    assert np.std(noise) == pytest.approx(0.3, rel=0.03)
    present = np.asarray(participant_dp(1.0, 0.3, clients_per_round=7)(x))
    np.testing.assert_allclose(present - noise, 3 / 7 / np.sqrt(40_000), atol=1e-6)
    deleted = np.asarray(participant_dp(1.0, 0.3, clients_per_round=7)(x[:2]))
    absent = participant_dp(1.0, 0.3, clients_per_round=7)(x, np.array([1, 1, 0]))
    np.testing.assert_allclose(absent, deleted, rtol=1e-6)


# --- Accounting ------------------------------------------------------------------------------------


def rdp_to_epsilon(rdp, delta):
    """Canonne, Kamath, Steinke 2020, proposition 12, over integer orders."""
    return min(
        value + math.log1p(-1 / a) - (math.log(delta) + math.log(a)) / (a - 1)
        for a, value in rdp.items()
    )


def gaussian_rdp(z, rounds):
    return {a: rounds * a / (2 * z**2) for a in range(2, 400)}


def poisson_rdp(q, z, rounds):
    """Mironov, Talwar, Zhang 2019, section 3.3: integer orders."""
    rdp = {}
    for a in range(2, 130):
        logs = [
            math.lgamma(a + 1) - math.lgamma(k + 1) - math.lgamma(a - k + 1)
            + k * math.log(q) + (a - k) * math.log1p(-q) + k * (k - 1) / (2 * z**2)
            for k in range(a + 1)
        ]  # fmt: skip
        top = max(logs)
        total = top + math.log(sum(math.exp(x - top) for x in logs))
        rdp[a] = rounds * total / (a - 1)
    return rdp


def without_replacement_rdp(q, z, rounds):
    """Wang, Balle, Kasiviswanathan 2019, theorem 9 for the Gaussian mechanism: integer orders, with
    eps(j) = j / (2 z^2) and eps(inf) = inf. An upper bound; theorem 27, which the accountant uses, is
    tighter."""
    rdp = {}
    for a in range(2, 130):
        two = 1 / z**2
        terms = q**2 * math.comb(a, 2) * min(4 * math.expm1(two), 2 * math.exp(two))
        for j in range(3, a + 1):
            exponent = math.log(math.comb(a, j)) + j * math.log(q) + (j - 1) * j / (2 * z**2)
            terms += 2 * math.exp(min(exponent, 700))
        rdp[a] = rounds * math.log1p(terms) / (a - 1)
    return rdp


def test_published_values():
    """q = .1, noise multiplier 1, 100 rounds, delta 1e-5, from dp-accounting itself."""
    assert privacy_spent_poisson(1.0, 0.1, 10, 100, 100, 1e-5) == pytest.approx(7.904, abs=5e-3)
    assert privacy_spent(1.0, 0.2, 10, 100, 100, 1e-5) == pytest.approx(14.054, abs=5e-3)
    # Of the same noise: the multiplier of replacing is half of that of adding.
    assert privacy_spent(1.0, 0.1, 10, 100, 100, 1e-5) > 2 * 14.05


@pytest.mark.parametrize(("m", "total"), [(10, 100), (5, 100), (20, 1000), (50, 50)])
@pytest.mark.parametrize(("z", "rounds"), [(1.0, 30), (3.0, 200)])
def test_poisson_by_its_definition(m, total, z, rounds):
    bound, delta = 2.5, 1e-5
    q = m / total
    rdp = poisson_rdp(q, z, rounds) if q < 1 else gaussian_rdp(z, rounds)
    expected = rdp_to_epsilon(rdp, delta)
    spent = privacy_spent_poisson(bound, z * bound / m, m, total, rounds, delta)
    assert 0.93 * expected < spent < 1.001 * expected  # the accountant tries fractional orders, too
    # What is easily mistaken gives other values: N for m, no sampling, 2 S for S.
    for wrong in (
        rdp_to_epsilon(poisson_rdp(q, z * total / m, rounds), delta) if q < 1 else 0,
        rdp_to_epsilon(gaussian_rdp(z, rounds), delta) if q < 1 else 0,
        rdp_to_epsilon(
            gaussian_rdp(z / 2, rounds) if q == 1 else poisson_rdp(q, z / 2, rounds), delta
        ),
    ):
        assert spent != pytest.approx(wrong, rel=0.1)


@pytest.mark.parametrize(("m", "total"), [(10, 100), (5, 100), (20, 1000)])
@pytest.mark.parametrize(("z", "rounds"), [(1.0, 30), (3.0, 200)])
def test_without_replacement_lies_between_poisson_and_its_general_bound(m, total, z, rounds):
    bound, delta = 2.5, 1e-5
    spent = privacy_spent(bound, 2 * z * bound / m, m, total, rounds, delta)
    above = rdp_to_epsilon(without_replacement_rdp(m / total, z, rounds), delta)
    below = rdp_to_epsilon(poisson_rdp(m / total, z, rounds), delta)
    assert below * 0.99 < spent <= above * 1.001
    assert spent < 0.9 * rdp_to_epsilon(gaussian_rdp(z, rounds), delta)  # the sampling counts


def test_everybody_in_every_round_by_hand():
    """Replacing one of m = N clients moves the mean by 2 S / m: alpha / (2 z^2) per round."""
    for m, bound, noise, rounds in [(10, 1.0, 0.5, 1), (100, 15.0, 2.0, 30)]:
        expected = rdp_to_epsilon(gaussian_rdp(noise * m / (2 * bound), rounds), 1e-5)
        spent = privacy_spent(bound, noise, m, m, rounds, 1e-5)
        assert spent == pytest.approx(expected, rel=0.03)


def test_more_noise_fewer_rounds_and_rarer_clients_cost_less():
    spend = functools.partial(privacy_spent, 1.0, num_clients=1000, delta=1e-5)
    base = spend(0.2, 20, rounds=50)
    assert spend(0.3, 20, rounds=50) < base
    assert spend(0.2, 20, rounds=20) < base
    assert spend(0.2, 40, rounds=50) < base  # twice the clients: half as far, though twice as often
    assert privacy_spent(1.0, 0.2, 20, 2000, 50, 1e-5) < base


@pytest.mark.parametrize("function", [privacy_spent, privacy_spent_poisson])
def test_arguments_of_the_accountants(function):
    name = function.__name__
    good = [1.0, 0.5, 5, 10, 3, 1e-5]
    assert function(1.0, 0.0, 5, 10, 3, 1e-5) == np.inf
    for i, bad, message in [
        (0, 0, "bound > 0"),
        (0, np.inf, "bound > 0"),
        (1, -1, "noise >= 0"),
        (1, np.nan, "noise >= 0"),
        (1, np.inf, "noise >= 0"),
        (2, 11, "<= num_clients, got 11 of 10"),
        (2, 0, "> 0"),
        (3, 9.5, "num_clients to be a whole number"),
        (4, 0, "rounds >= 1"),
        (4, 1.5, "rounds to be a whole number"),
        (5, 0, r"delta in \(0, 1\)"),
        (5, 1.0, r"delta in \(0, 1\)"),
        (5, np.nan, r"delta in \(0, 1\)"),
    ]:
        arguments = [*good[:i], bad, *good[i + 1 :]]
        with pytest.raises(ValueError, match=f"{name} needs .*{message}"):
            function(*arguments)
    array = [np.asarray(value) for value in good]
    assert function(*array) == function(*good)
    assert privacy.privacy_spent_poisson is privacy_spent_poisson


def test_a_fraction_of_clients_is_for_poisson_only():
    assert privacy_spent_poisson(1.0, 0.5, 2.5, 10, 3, 1e-5) > 0
    with pytest.raises(
        ValueError, match="privacy_spent needs clients_per_round to be a whole number"
    ):
        privacy_spent(1.0, 0.5, 2.5, 10, 3, 1e-5)
