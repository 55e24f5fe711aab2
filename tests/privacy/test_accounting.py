"""What the noise of differential privacy is worth."""

import functools
import math

import numpy as np
import pytest

from fedjax_robust import privacy
from fedjax_robust.privacy import privacy_spent, privacy_spent_poisson


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
