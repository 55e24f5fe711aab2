"""The lines of the attacks that look ahead, with a slope that a test can know."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
from case import TWO_OWN, Case, Round

from fedjax_robust import attacks
from fedjax_robust.attacks.optimised import adjoint, aimed
from fedjax_robust.types import AttackerView, Knowledge


def slope_of(view: AttackerView) -> jnp.ndarray:
    """Of all signs, zero among them, and of the round's own values."""
    return jnp.where(jnp.arange(view.params.shape[0]) == 1, 0.0, jnp.sin(5 * view.params))


def by_hand(r: Round) -> np.ndarray:
    return np.where(np.arange(len(r.params)) == 1, 0, np.sin(5 * np.float64(r.params)))


def check_adjoint(rows: np.ndarray, r: Round, beyond: float = 0.5, partial: bool = False) -> None:
    honest = np.float64(r.own if partial else r.honest)
    largest, smallest = honest.max(axis=0), honest.min(axis=0)
    gap = beyond * (largest - smallest)
    side = by_hand(r)
    row = np.where(side > 0, largest + gap, smallest - gap)
    row = np.where(side == 0, honest.mean(axis=0), row)
    np.testing.assert_allclose(rows, np.broadcast_to(row, rows.shape), rtol=1e-5, atol=1e-6)


def check_aimed(rows: np.ndarray, r: Round) -> None:
    """Min-Max along the slope: no farther from an honest row than the honest ones are from each other."""
    honest = np.float64(r.honest)
    step = rows[0, 0] - honest.mean(axis=0)
    towards = by_hand(r) / np.linalg.norm(by_hand(r))
    np.testing.assert_allclose(step, np.dot(step, towards) * towards, atol=1e-5)
    widest = np.max(np.linalg.norm(honest[:, None] - honest, axis=-1))
    farthest = np.max(np.linalg.norm(honest - rows[0, 0], axis=-1))
    assert np.dot(step, towards) > 0
    np.testing.assert_allclose(farthest, widest, rtol=1e-5)


def check_partial(rows: np.ndarray, r: Round) -> None:
    check_adjoint(rows, r, beyond=2.0, partial=True)


def along(p: jnp.ndarray) -> attacks.directions.Direction:
    return lambda mean, std: p


ATTACKS = {
    "adjoint": Case(adjoint(slope_of), check_adjoint, draws=2),
    "aimed": Case(
        aimed(lambda p: attacks.min_max(along(p)), slope_of), check_aimed, draws=2, shapes=TWO_OWN
    ),
}
VARIANTS = {
    "adjoint partial": Case(
        adjoint(slope_of, beyond=2.0, partial=True), check_partial, draws=2, shapes=TWO_OWN
    ),
}
NEEDS = {"adjoint": Knowledge(others=True), "aimed": Knowledge(others=True)}
"""What each attack must know."""
