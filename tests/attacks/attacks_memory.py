"""The lines of attacks with a memory, each with a check of what it sends in its first round."""

from __future__ import annotations

import jax
import numpy as np
from case import Case, Round
from reference import memory

from fedjax_robust.attacks import mimic, mimic_one
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


ATTACKS = {
    "mimic": Case(mimic(), check_mimic, draws=2),
    "mimic_one": Case(mimic_one(9), check_mimic_one, draws=2),
}
VARIANTS = {"mimic smallest": Case(mimic(smallest=True), check_smallest, draws=2)}
NEEDS = {"mimic": Knowledge(others=True), "mimic_one": Knowledge(others=True)}
"""What each attack must know."""
