"""The lines of attacks with a memory, each with a check of what it sends in its first round."""

from __future__ import annotations

import functools

import jax
import numpy as np
from case import Case, Round
from reference import formulas, memory

import fedjax_robust as fr
from fedjax_robust.attacks import (
    alternating_minimisation,
    explicit_boosting,
    free_rider,
    free_rider_advanced,
    free_rider_delta,
    free_rider_disguised,
    free_rider_random,
    mimic,
    mimic_one,
    poisoned_fl,
    rop,
    stealthy_boosting,
)
from fedjax_robust.types import Knowledge


def z_0(d: int) -> np.ndarray:
    """Where ``mimic()`` starts."""
    return np.asarray(jax.random.normal(jax.random.key(0), (d,)))


def check_mimic(rows: np.ndarray, r: Round, smallest: bool = False) -> None:
    """Some honest row, the one at the end of the direction."""
    ids = list(np.flatnonzero(r.present & ~r.malicious))
    first = memory.Mimic(z_0(len(r.params)), smallest=smallest).craft(r.honest, ids)
    np.testing.assert_array_equal(rows, np.broadcast_to(np.float32(first), rows.shape))


def check_smallest(rows: np.ndarray, r: Round) -> None:
    check_mimic(rows, r, smallest=True)


def check_mimic_one(rows: np.ndarray, r: Round) -> None:
    there = r.present[9] and not r.malicious[9]
    sent = r.updates[9] if there else r.own
    np.testing.assert_array_equal(rows, np.broadcast_to(sent, rows.shape))


def check_zero(rows: np.ndarray, r: Round) -> None:
    """Plain free riders, and PoisonedFL before the model has changed."""
    assert not np.any(rows)


def check_own(rows: np.ndarray, r: Round) -> None:
    """Attacks by training send what it gave."""
    np.testing.assert_array_equal(rows, np.broadcast_to(r.own, rows.shape))


def check_noise(rows: np.ndarray, r: Round, std: float) -> None:
    """Free riders in their first round."""
    few = len(rows) ** -0.5
    np.testing.assert_allclose(np.mean(rows, axis=0), 0, atol=5 * few * std)
    np.testing.assert_allclose(np.std(rows, axis=0), std, rtol=5 * few)


def check_random_models(rows: np.ndarray, r: Round, bound: float) -> None:
    models = rows + r.params
    assert np.max(np.abs(models)) <= bound * (1 + 1e-5)
    few = len(rows) ** -0.5
    np.testing.assert_allclose(np.mean(models, axis=0), 0, atol=5 * few * bound)
    np.testing.assert_allclose(np.std(models, axis=0), bound / 3**0.5, rtol=5 * few)


def check_rop(
    rows: np.ndarray,
    r: Round,
    z: float | None = None,
    relative: float | None = None,
    partial: bool = False,
    **arguments: float,
) -> None:
    """In the first round: m = 0."""
    mean = np.mean(np.float64(r.own if partial else r.honest), axis=0)
    if relative is not None:
        z = relative * np.linalg.norm(mean)
    if z is None:
        z = formulas.alie_z(len(r.honest) + len(r.own), len(r.own))
    row = memory.rop(0 * mean, mean, z, first=True, **arguments)
    np.testing.assert_allclose(rows, np.broadcast_to(row, rows.shape), rtol=2e-5, atol=1e-5)


X = np.zeros((3, 4), np.float32)
TASK = fr.classification(fr.models.SoftmaxRegression(3), X[:1])
WANTED = {"x": X, "y": np.arange(3, dtype=np.int32)}
EVERYTHING = Knowledge(others=True)
ATTACKS = {
    "alternating_minimisation": Case(
        alternating_minimisation(TASK, WANTED, 0.1, 10.0), check_own, draws=2
    ),
    "explicit_boosting": Case(explicit_boosting(TASK, WANTED, 0.1, 10.0), check_own, draws=2),
    "free_rider": Case(free_rider(), check_zero, draws=2),
    "free_rider_advanced": Case(free_rider_advanced(), functools.partial(check_noise, std=1e-3)),
    "free_rider_delta": Case(free_rider_delta(), functools.partial(check_noise, std=1e-3)),
    "free_rider_disguised": Case(
        free_rider_disguised(k=3.0), functools.partial(check_noise, std=3e-3)
    ),
    "free_rider_random": Case(
        free_rider_random(2.0), functools.partial(check_random_models, bound=2.0)
    ),
    "mimic": Case(mimic(), check_mimic, draws=2),
    "mimic_one": Case(mimic_one(9), check_mimic_one, draws=2),
    "poisoned_fl": Case(poisoned_fl(), check_zero, draws=2),
    "rop": Case(rop(), check_rop, draws=2),
    "stealthy_boosting": Case(stealthy_boosting(TASK, WANTED, 0.1, 10.0), check_own, draws=2),
}
VARIANTS = {
    "mimic smallest": Case(mimic(smallest=True), check_smallest, draws=2),
    "rop length partial": Case(
        rop(0.5, angle=45.0, location=0.25, partial=True),
        functools.partial(check_rop, z=0.5, angle=45.0, location=0.25, partial=True),
        draws=2,
    ),
    "rop relative": Case(rop(relative=2.0), functools.partial(check_rop, relative=2.0), draws=2),
}
NEEDS = {
    name: EVERYTHING if name in ("mimic", "mimic_one", "rop") else Knowledge() for name in ATTACKS
}
"""What each attack must know."""
