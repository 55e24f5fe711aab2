"""The lines of the attacks by formula, each with a check of what it sends."""

from __future__ import annotations

import functools
import math

import jax.numpy as jnp
import numpy as np
import reference as ref
from case import MAIN, MANY_OWN, TWO_OWN, Case, Round
from reference import formulas

from fedjax_robust.aggregators import multi_krum
from fedjax_robust.attacks import (
    alie,
    anti_cge,
    byz_mean,
    constant,
    directions,
    ipm,
    line_search,
    linear_combination,
    min_max,
    min_sum,
    noise,
    sign_flip,
    sign_flip_first,
    sign_flip_mean,
    tailored_displacement,
    tailored_selection,
)
from fedjax_robust.types import Knowledge

# --- What the attacks must send ----------------------------------------------------------------------


def taken(r: Round, partial: bool) -> np.ndarray:
    return np.float64(r.own if partial else r.honest)


def all_equal(rows: np.ndarray, row: np.ndarray, tolerance: float = 2e-5) -> None:
    atol = tolerance * np.max(np.abs(row))
    np.testing.assert_allclose(rows, np.broadcast_to(row, rows.shape), rtol=tolerance, atol=atol)


def others(r: Round, partial: bool) -> int:
    """How many honest rows the attacker assumes."""
    return len(r.updates) - len(r.own) if partial else len(r.honest)


def as_many(r: Round, partial: bool) -> np.ndarray:
    """Honest rows with the attacker's mean, and as many as it assumes."""
    if not partial:
        return r.honest
    return np.tile(np.mean(taken(r, True), axis=0), (others(r, True), 1))


def towards_start(mean: jnp.ndarray, params: jnp.ndarray) -> jnp.ndarray:
    return 1.5 - params


def check_linear_combination(
    rows: np.ndarray, r: Round, partial: bool = False, back: bool = False
) -> None:
    honest = as_many(r, partial)
    target = 1.5 - r.params if back else -np.mean(taken(r, partial), axis=0)
    all_equal(rows, formulas.linear_combination(honest, target, len(r.own)))


def check_sign_flip(rows: np.ndarray, r: Round, scale: float = 1.0) -> None:
    all_equal(rows, -scale * r.own, 1e-6)


def check_sign_flip_first(rows: np.ndarray, r: Round) -> None:
    all_equal(rows, -2.0 * r.own[0], 1e-6)


def check_ipm(rows: np.ndarray, r: Round, epsilon: float, partial: bool = False) -> None:
    all_equal(rows, -epsilon * np.mean(taken(r, partial), axis=0))


def check_alie(
    rows: np.ndarray,
    r: Round,
    z: float | None = None,
    sign: float = 1.0,
    ddof: int = 0,
    partial: bool = False,
) -> None:
    if z is None:
        z = formulas.alie_z(others(r, partial) + len(r.own), len(r.own))
    all_equal(rows, formulas.alie(taken(r, partial), z, sign, ddof))


DIRECTIONS = {
    directions.unit: formulas.towards_unit,
    directions.signs: formulas.towards_signs,
    directions.deviations: formulas.towards_deviations,
}


def moved(r: Round, partial: bool, direction, gamma: float) -> np.ndarray:
    honest = taken(r, partial)
    return np.mean(honest, axis=0) + gamma * DIRECTIONS[direction](honest)


def check_min_max(
    rows: np.ndarray, r: Round, direction=directions.unit, partial: bool = False
) -> None:
    honest = taken(r, partial)
    gamma = formulas.min_max_gamma(honest, DIRECTIONS[direction](honest))
    all_equal(rows, moved(r, partial, direction, gamma))


def check_min_sum(
    rows: np.ndarray,
    r: Round,
    direction=directions.unit,
    smallest: bool = False,
    partial: bool = False,
) -> None:
    honest = taken(r, partial)
    gamma = formulas.min_sum_gamma(honest, DIRECTIONS[direction](honest), smallest)
    all_equal(rows, moved(r, partial, direction, gamma))


def selects_malicious(r: Round, gamma: float, partial: bool, f: int, m: int) -> bool:
    row = moved(r, partial, directions.unit, gamma)
    here, bad = formulas.received_rows(r.updates, r.present, r.malicious, row, partial)
    return formulas.malicious_selected(ref.multi_krum_selection(here, f, m), bad)


def selection_gamma(r: Round, partial: bool, f: int, m: int, factor: float = 1.0) -> float:
    """The search's result if every gamma that it tries is off by a factor."""
    honest = taken(r, partial)
    return formulas.last_on_grid(
        lambda gamma: selects_malicious(r, factor * gamma, partial, f, m),
        formulas.farthest_from_mean(honest),
    )


def selection_is_clear(r: Round, partial: bool, f: int, m: int) -> bool:
    found = [selection_gamma(r, partial, f, m, 1 + e) for e in (0, 1e-4, -1e-4)]
    return found[0] > 0 and max(found) <= min(found) * 1.002


def check_selection(rows: np.ndarray, r: Round, partial: bool, f: int, m: int) -> None:
    gamma = selection_gamma(r, partial, f, m)
    expected = moved(r, partial, directions.unit, gamma)
    np.testing.assert_allclose(
        rows, np.broadcast_to(expected, rows.shape), atol=3e-3 * gamma, rtol=0
    )


def displacement(r: Round, partial: bool, row: np.ndarray) -> float:
    here, _ = formulas.received_rows(r.updates, r.present, r.malicious, row, partial)
    return ref.rows.length_of(ref.trimmed_mean(here, r.f) - np.mean(taken(r, partial), axis=0))


def best_of_grid(r: Round, partial: bool, row_at, scale: float) -> float:
    """The definition on the grid alone: golden sections can only add to it."""
    grid = [0.0, *(scale * np.geomspace(0.01, 100, 31))]
    return max(displacement(r, partial, row_at(x)) for x in grid)


def check_displacement(rows: np.ndarray, r: Round, partial: bool = False) -> None:
    honest = taken(r, partial)
    all_equal(rows, rows[0, 0], 0)
    mean, p = np.mean(honest, axis=0), formulas.towards_unit(honest)
    row = np.float64(rows[0, 0])
    gamma = (row - mean) @ p
    np.testing.assert_allclose(row, mean + gamma * p, atol=1e-4 * abs(gamma) + 1e-5)
    best = best_of_grid(r, partial, lambda g: mean + g * p, formulas.farthest_from_mean(honest))
    assert gamma > 0 and displacement(r, partial, row) >= best * (1 - 1e-4)


def check_line_search(rows: np.ndarray, r: Round, partial: bool = False) -> None:
    """Of IPM: the rows are some -epsilon mean, and no epsilon of the grid does more."""
    mean = np.mean(taken(r, partial), axis=0)
    row = np.float64(rows[0, 0])
    epsilon = -(row @ mean) / (mean @ mean)
    all_equal(rows, -epsilon * mean, 1e-4)
    best = best_of_grid(r, partial, lambda x: -x * mean, 1.0)
    assert displacement(r, partial, row) >= best * (1 - 1e-4)


def check_constant(rows: np.ndarray, r: Round) -> None:
    np.testing.assert_array_equal(rows, np.full_like(rows, -1.5))


def check_noise(rows: np.ndarray, r: Round) -> None:
    """To 5 standard errors; rows (draws, c, d)."""
    z, error = rows / 3.0, 5 / math.sqrt(len(rows))
    assert np.max(np.abs(np.mean(z, axis=0))) < error
    assert np.max(np.abs(np.mean(z**2, axis=0) - 1)) < error * math.sqrt(2)
    assert abs(np.mean(z**4) - 3) < error * math.sqrt(96)
    flat = z.reshape(len(z), -1)
    assert np.max(np.abs(np.corrcoef(flat, rowvar=False) - np.eye(flat.shape[1]))) < error


def check_anti_cge(rows: np.ndarray, r: Round, f: int | None = None, partial: bool = False) -> None:
    honest = taken(r, partial)
    all_equal(rows, formulas.anti_cge(honest, len(r.own) if f is None else f))


def check_byz_mean(rows: np.ndarray, r: Round, scale: float, partial: bool = False) -> None:
    """r is -scale times the first own row."""
    expected = formulas.byz_mean(as_many(r, partial), -scale * r.own[0], len(r.own))
    all_equal(rows, expected)


with_ = functools.partial
few = with_(Case, draws=2, shapes=MANY_OWN)  # one compilation
PARTIAL_SELECTION = with_(check_selection, partial=True, f=5, m=8)

ATTACKS = {
    "linear_combination": Case(linear_combination(), check_linear_combination, draws=2),
    "sign_flip": Case(sign_flip(), check_sign_flip, draws=2),
    "sign_flip_first": Case(sign_flip_first(2.0), check_sign_flip_first, draws=2),
    "sign_flip_mean": few(sign_flip_mean(), with_(check_ipm, epsilon=1.0)),
    "ipm": few(ipm(0.5), with_(check_ipm, epsilon=0.5)),
    "alie": Case(alie(), check_alie, draws=2, shapes=TWO_OWN),
    "min_max": few(min_max(), check_min_max),
    "min_sum": Case(min_sum(), check_min_sum, draws=2),
    "tailored_selection": few(
        tailored_selection(multi_krum(4, 6)),
        with_(check_selection, partial=False, f=4, m=6),
        with_(selection_is_clear, partial=False, f=4, m=6),
    ),
    "tailored_displacement": few(tailored_displacement(), check_displacement),
    "line_search": few(line_search(ipm), check_line_search),
    "constant": Case(constant(-1.5), check_constant, draws=2, shapes=(MAIN,)),
    "noise": Case(noise(3.0), check_noise, shapes=MANY_OWN),
    "anti_cge": few(anti_cge(3), with_(check_anti_cge, f=3)),
    "byz_mean": Case(byz_mean(sign_flip_first(0.5)), with_(check_byz_mean, scale=0.5), draws=2),
}
VARIANTS = {
    "linear_combination partial target": few(
        linear_combination(towards_start, partial=True),
        with_(check_linear_combination, partial=True, back=True),
    ),
    "ipm partial": few(ipm(0.5, partial=True), with_(check_ipm, epsilon=0.5, partial=True)),
    "sign_flip_mean partial": few(
        sign_flip_mean(partial=True), with_(check_ipm, epsilon=1.0, partial=True)
    ),
    "alie partial": few(alie(partial=True), with_(check_alie, partial=True)),
    "alie z sign ddof": few(
        alie(1.5, sign=-1.0, ddof=1), with_(check_alie, z=1.5, sign=-1.0, ddof=1)
    ),
    "alie n c": few(alie(n=50, c=24), with_(check_alie, z=1.4260768727)),
    "min_max signs partial": few(
        min_max(directions.signs, partial=True),
        with_(check_min_max, direction=directions.signs, partial=True),
    ),
    "min_max deviations": few(
        min_max(directions.deviations), with_(check_min_max, direction=directions.deviations)
    ),
    "min_sum deviations smallest": few(
        min_sum(directions.deviations, smallest=True),
        with_(check_min_sum, direction=directions.deviations, smallest=True),
    ),
    "min_sum partial": few(
        min_sum(directions.signs, partial=True),
        with_(check_min_sum, direction=directions.signs, partial=True),
    ),
    "tailored_selection partial": few(
        tailored_selection(multi_krum(5, 8), partial=True),
        PARTIAL_SELECTION,
        with_(selection_is_clear, partial=True, f=5, m=8),
    ),
    "tailored_displacement partial": few(
        tailored_displacement(partial=True), with_(check_displacement, partial=True)
    ),
    "line_search partial": few(
        line_search(lambda x: ipm(x, partial=True)), with_(check_line_search, partial=True)
    ),
    "anti_cge default": few(anti_cge(), check_anti_cge),
    "anti_cge partial": few(anti_cge(2, partial=True), with_(check_anti_cge, f=2, partial=True)),
    "byz_mean partial": few(
        byz_mean(sign_flip_first(0.5), partial=True),
        with_(check_byz_mean, scale=0.5, partial=True),
    ),
}
NOTHING, OTHERS, RULE = Knowledge(), Knowledge(others=True), Knowledge(others=True, rule=True)
NEEDS = {
    "linear_combination": OTHERS,
    "sign_flip": NOTHING,
    "sign_flip_first": NOTHING,
    "sign_flip_mean": OTHERS,
    "ipm": OTHERS,
    "alie": OTHERS,
    "min_max": OTHERS,
    "min_sum": OTHERS,
    "tailored_selection": OTHERS,
    "tailored_displacement": RULE,
    "line_search": RULE,
    "constant": NOTHING,
    "noise": NOTHING,
    "anti_cge": OTHERS,
    "byz_mean": OTHERS,
}
"""What each attack must know."""
