"""Participant-level differential privacy: what is clipped, divided by and added.

``test_rules.py`` holds what it shares with all rules."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference as ref

import fedjax_robust as fr
from fedjax_robust.privacy import participant_dp


@pytest.mark.parametrize("bad", [np.nan, np.inf, 0, -1, np.array(-1.0), jnp.array(np.nan)])
def test_bad_numbers(bad):
    with pytest.raises(ValueError, match="participant_dp needs bound > 0"):
        participant_dp(bad, 0.1)
    with pytest.raises(ValueError, match="participant_dp needs clients_per_round > 0"):
        participant_dp(1.0, 0.1, clients_per_round=bad)
    if bad != 0:
        with pytest.raises(ValueError, match="participant_dp needs noise >= 0"):
            participant_dp(1.0, bad)
    with pytest.raises(ValueError, match=r"noise >= 0.*, got noise=-1"):
        participant_dp(1, -1)


def test_the_noise_of_differential_privacy():
    x = np.tile(np.random.default_rng(0).normal(size=(11, 1)), (1, 20_000)).astype(np.float32)
    quiet = np.asarray(participant_dp(5.0, 0.0)(x))
    np.testing.assert_allclose(quiet, ref.norm_clipping(x, 5.0), atol=1e-6)
    noisy = np.asarray(participant_dp(5.0, 0.3)(x))
    assert np.std(noisy - quiet) == pytest.approx(0.3, rel=0.03)
    assert abs(np.mean(noisy - quiet)) < 0.01
    other = np.asarray(participant_dp(5.0, 0.3)(x, key=jax.random.key(1)))
    assert np.abs(other - noisy).mean() > 0.1
    assert np.all(participant_dp(5.0, 0.3)(x, np.zeros(11)) == 0)
    received = fr.Received(
        jnp.asarray(x), jnp.ones(11), jnp.arange(11), jnp.zeros(20_000), jax.random.key(0)
    )
    _, _, info = participant_dp(5.0, 0.3).aggregate(received, ())
    assert set(info) == {"clipped"}
    np.testing.assert_array_equal(info["clipped"], np.linalg.norm(x, axis=1) > 5)


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
