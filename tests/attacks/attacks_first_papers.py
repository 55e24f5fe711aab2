"""The lines of the first papers' attacks, each with a check of what it sends."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable

import jax.numpy as jnp
import numpy as np
import reference as ref
from case import (
    EPSILON,
    MANY_OWN,
    TWO_OWN,
    Case,
    Round,
)

from fedjax_robust import attacks
from fedjax_robust.aggregators import mean
from fedjax_robust.attacks import (
    data_poisoning,
    fang_krum_full,
    fang_krum_partial,
    fang_trim_deviation,
    fang_trim_full,
    fang_trim_partial,
    first_order,
    fltrust_adaptive,
    gaussian,
    in_rounds,
    model_replacement,
    no_attack,
    scaling,
    train_and_scale,
)
from fedjax_robust.attacks.divisions import equal_parts, norm_bounded, orthogonal_parts
from fedjax_robust.types import Attack, Client, ClientData, Knowledge

# --- What the attacks must send --------------------------------------------------------------------


def check_nothing(rows: np.ndarray, r: Round) -> None:
    assert np.array_equal(rows, np.broadcast_to(r.own, rows.shape))


def check_scaling(rows: np.ndarray, r: Round, scale: float) -> None:
    sent = ref.scaling(r.updates, r.malicious, scale)[r.malicious]
    np.testing.assert_allclose(rows, np.broadcast_to(sent, rows.shape), rtol=1e-6)


def check_train_and_scale(rows: np.ndarray, r: Round, bound: float) -> None:
    sent = [ref.norm_bounded(row, 1, bound)[0] for row in r.own]
    expected = np.broadcast_to(np.reshape(sent, r.own.shape), rows.shape)
    np.testing.assert_allclose(rows, expected, rtol=1e-5, atol=1e-6)


def check_first_order(rows: np.ndarray, r: Round) -> None:
    """No worse than what the clients would have sent, and of their lengths; ``test_adaptive.py`` compares
    with the best response."""

    def gain(attacked: np.ndarray) -> float:
        before = ref.trimmed_mean(r.updates, r.f, r.present)
        after = ref.trimmed_mean(attacked, r.f, r.present)
        return float(ref.changing_direction(before) @ (before - after))

    np.testing.assert_allclose(
        np.linalg.norm(rows, axis=2),
        np.broadcast_to(np.linalg.norm(r.own, axis=1), rows.shape[:2]),
        rtol=1e-5,
    )
    attacked = np.array(r.updates)
    attacked[r.malicious] = rows[0]
    assert gain(attacked) >= gain(r.updates) - 1e-5
    assert len(r.own) < 4 or gain(attacked) > 0.5  # so many do harm a trimmed mean of f = 2


def server_vector(d: int) -> np.ndarray:
    return 0.25 * (1 + np.arange(d) % 3)


SERVER = Client(
    lambda params: (),
    lambda key, params, state, data: (
        jnp.asarray(server_vector(len(params)), params.dtype),
        state,
        {},
    ),
)
ROOT = {"x": np.zeros((1, 1), np.float32), "y": np.zeros(1, np.int32)}


def check_fltrust_adaptive(rows: np.ndarray, r: Round) -> None:
    """Rows end on the sphere of radius |g_0|; ``test_adaptive.py`` compares where with Algorithm 3."""
    length = np.linalg.norm(server_vector(len(r.params)))
    np.testing.assert_allclose(np.linalg.norm(rows, axis=2), length, rtol=1e-4)


# X = 2 - G: what model replacement trains, whatever the clients do.
MIRROR = Client(lambda params: (), lambda key, g, state, data: (2 - 2 * g, state, {}))


def replacing(divide: Callable) -> Attack:
    return model_replacement(MIRROR, ClientData({}, jnp.zeros(0), jnp.int32(0)), divide)


def check_replacement(rows: np.ndarray, r: Round, divide: Callable) -> None:
    """``divide`` (X - G (d,), z) -> (z, d)"""
    sent = divide(2 - 2 * r.params, len(r.own))
    np.testing.assert_allclose(rows, np.broadcast_to(sent, rows.shape), rtol=1e-5)


def check_orthogonal(rows: np.ndarray, r: Round, gamma: float) -> None:
    """Rows (draws, z, d): they sum to gamma (X - G), and any two are orthogonal, both exactly."""
    total = np.float32(gamma) * (2 - 2 * r.params)
    np.testing.assert_array_equal(rows.sum(axis=1), np.broadcast_to(total, rows[:, 0].shape))
    products = np.einsum("kid,kjd->kij", rows, rows)
    assert np.all(products[:, ~np.eye(len(r.own), dtype=bool)] == 0)
    # Every attacker has each coordinate in one of z draws, to five standard errors.
    z, draws = len(r.own), len(rows)
    share = np.mean(rows != 0, axis=0)
    assert np.max(np.abs(share - 1 / z)) <= 5 * math.sqrt((1 - 1 / z) / z / draws)


def check_gaussian(rows: np.ndarray, r: Round) -> None:
    """Rows are (draws, c, d); the moments to 5 standard errors."""
    mean, std = ref.gaussian_moments(r.updates[r.present])
    z = (rows - mean) / std
    draws, c, _ = rows.shape
    error = 5 / math.sqrt(draws)
    assert np.max(np.abs(np.mean(z, axis=0))) < error
    assert np.max(np.abs(np.mean(z**2, axis=0) - 1)) < error * math.sqrt(2)
    assert abs(np.mean(z**4) - 3) < error * math.sqrt(96)
    if c > 1:  # clients and coordinates are independent
        flat = z.reshape(draws, -1)
        correlations = np.corrcoef(flat, rowvar=False) - np.eye(flat.shape[1])
        assert np.max(np.abs(correlations)) < error


def check_interval(rows: np.ndarray, low: np.ndarray, high: np.ndarray) -> None:
    """Uniform in [low, high] per coordinate, independent between clients; rows (draws, c, d)."""
    draws, c, d = rows.shape
    assert np.all(rows >= low - 1e-5) and np.all(rows <= high + 1e-5)
    u = (rows - low) / (high - low)
    error = 5 / math.sqrt(draws)
    assert np.max(np.abs(np.mean(u, axis=0) - 1 / 2)) < error * math.sqrt(1 / 12)
    assert np.max(np.abs(np.mean(u**2, axis=0) - 1 / 3)) < error * math.sqrt(4 / 45)
    if c * d > 1:
        correlations = np.corrcoef(u.reshape(draws, -1), rowvar=False) - np.eye(c * d)
        assert np.max(np.abs(correlations)) < error


def directions(r: Round, mean: bool = False) -> np.ndarray:
    rows = r.updates[r.present]
    return ref.changing_direction(ref.mean(rows) if mean else ref.trimmed_mean(rows, r.f))


def check_trim_full(
    rows: np.ndarray, r: Round, b: float = 2.0, in_model_space: bool = True, mean: bool = False
) -> None:
    here = (r.updates[r.present], r.params, r.malicious[r.present], directions(r, mean))
    check_interval(rows, *ref.fang_trim_full_interval(*here, b, in_model_space))


def check_trim_deviation(
    rows: np.ndarray, r: Round, b: float = 2.0, in_model_space: bool = True
) -> None:
    interval = ref.fang_trim_deviation_interval(
        r.updates[r.present],
        r.params,
        r.malicious[r.present],
        lambda u: ref.trimmed_mean(u, r.f),
        b,
        in_model_space,
    )
    check_interval(rows, *interval)


def check_trim_partial(rows: np.ndarray, r: Round, low: float = 3.0, high: float = 4.0) -> None:
    check_interval(rows, *ref.fang_trim_partial_interval(r.own, low, high))


def check_around(rows: np.ndarray, centre: np.ndarray, r: Round, epsilon: float) -> None:
    """Row 0 is the centre, if present; the others are in the ball around it, and not all the same."""
    scale = np.max(np.abs(centre))
    if r.malicious[0]:
        np.testing.assert_allclose(
            rows[:, 0], np.broadcast_to(centre, rows[:, 0].shape), rtol=0, atol=2e-5 * scale
        )
        rows = rows[:, 1:]
    distances = np.linalg.norm(rows - centre, axis=2)
    assert np.all(distances <= epsilon + 1e-4 * scale)
    if rows.shape[1]:
        assert np.max(distances) > epsilon / 2
        assert np.min(np.std(rows, axis=0)) > 1e-3 * epsilon


def check_krum_full(
    rows: np.ndarray,
    r: Round,
    f: int | None = None,
    threshold: float = 1e-5,
    deviation_goal: bool = False,
    epsilon: float = EPSILON,
    before: ref.Aggregate | None = None,
) -> None:
    here = r.updates[r.present], r.malicious[r.present]
    attack = ref.fang_krum_full_lambda(*here, f, threshold, deviation_goal, before)
    check_around(rows, -attack.lam * attack.direction, r, epsilon)


def check_krum_partial(
    rows: np.ndarray,
    r: Round,
    threshold: float = 1e-5,
    simulated_f: Callable[[int], int] = lambda copies: copies,
    deviation_goal: bool = False,
    epsilon: float = EPSILON,
) -> None:
    attack = ref.fang_krum_partial_lambda(r.own, threshold, simulated_f, deviation_goal)
    check_around(rows, -attack.lam * attack.direction, r, epsilon)


# Krum's decisions must not hang on rounding: a search is only compared with the reference if, wherever
# it asked Krum, the best crafted and the best honest score differ by this fraction.
MARGIN = 1e-3


def scores_are_clear(rows: np.ndarray, f: int, crafted: np.ndarray) -> bool:
    scores = ref.krum_scores(rows, f)
    ours, theirs = np.min(scores[crafted]), np.min(scores[~crafted])
    return abs(ours - theirs) > MARGIN * max(ours, theirs)


def full_is_clear(
    r: Round,
    f: int | None = None,
    deviation_goal: bool = False,
    before: ref.Aggregate | None = None,
) -> bool:
    x, malicious = r.updates[r.present], r.malicious[r.present]
    f = int(np.sum(malicious)) if f is None else f
    honest = np.sort(ref.krum_scores(x, f))
    attack = ref.fang_krum_full_lambda(
        x, malicious, f, deviation_goal=deviation_goal, before=before
    )
    tried = attack.lam * 2.0 ** np.arange(attack.halvings + 1)
    return honest[1] - honest[0] > MARGIN * honest[1] and all(
        scores_are_clear(ref.replace_rows(x, malicious, -lam * attack.direction), f, malicious)
        for lam in tried
    )


def partial_is_clear(
    r: Round,
    simulated_f: Callable[[int], int] = lambda copies: copies,
    deviation_goal: bool = False,
) -> bool:
    attack = ref.fang_krum_partial_lambda(
        r.own, simulated_f=simulated_f, deviation_goal=deviation_goal
    )
    if np.min(np.abs(np.mean(r.own, axis=0))) < 1e-4:
        return False
    for copies in range(1, attack.copies + 1):
        lam = ref.fang_krum_partial_bound(r.own, copies, simulated_f(copies))
        last = attack.lam if copies == attack.copies else 1e-5
        crafted = np.arange(copies + len(r.own)) < copies
        while lam >= last:
            rows = np.concatenate([[-lam * attack.direction] * copies, r.own])
            if not scores_are_clear(rows, simulated_f(copies), crafted):
                return False
            lam /= 2
    return True


def trim_is_clear(r: Round) -> bool:
    """No interval is so narrow that rounding matters in it."""
    extremes = np.array([r.honest.min(axis=0), r.honest.max(axis=0)])
    return np.min(np.abs([extremes, extremes + r.params])) > 0.05


def half_plus_one(copies: int) -> int:
    return copies // 2 + 1


with_ = functools.partial
ATTACKS = {
    "no_attack": Case(no_attack(), check_nothing, draws=2),
    "data_poisoning": Case(
        data_poisoning(Client(lambda p: (), lambda *_: None)), check_nothing, draws=2
    ),
    "gaussian": Case(gaussian(), check_gaussian),
    "scaling": Case(scaling(14.0), functools.partial(check_scaling, scale=14.0), draws=2),
    "train_and_scale": Case(train_and_scale(2.5), with_(check_train_and_scale, bound=2.5), draws=2),
    "model_replacement": Case(
        replacing(equal_parts(14.0)),
        with_(check_replacement, divide=lambda u, z: ref.equal_parts(u, z, 14.0)),
        draws=2,
    ),
    "first_order": Case(first_order(6), check_first_order, draws=2),
    "fltrust_adaptive": Case(
        fltrust_adaptive(SERVER, ROOT, sweeps=2, queries=2), check_fltrust_adaptive, draws=20
    ),
    "in_rounds": Case(
        in_rounds(scaling(14.0), np.array([True, False])), with_(check_scaling, scale=14.0), draws=2
    ),
    "fang_trim_full": Case(fang_trim_full(), check_trim_full, trim_is_clear),
    "fang_trim_deviation": Case(fang_trim_deviation(), check_trim_deviation, trim_is_clear),
    "fang_trim_partial": Case(fang_trim_partial(), check_trim_partial, shapes=TWO_OWN),
    "fang_krum_full": Case(fang_krum_full(), check_krum_full, full_is_clear, 20),
    # With fewer than 4 own rows the simulated Krum counts one neighbour, and ties: by hand below.
    "fang_krum_partial": Case(
        fang_krum_partial(), check_krum_partial, partial_is_clear, 20, MANY_OWN
    ),
}
VARIANTS = {
    "model_replacement norm_bounded": Case(
        replacing(norm_bounded(2.5)),
        with_(check_replacement, divide=lambda u, z: ref.norm_bounded(u, z, 2.5)),
        draws=2,
    ),
    "model_replacement copies": Case(
        replacing(attacks.divisions.copies()),
        with_(check_replacement, divide=lambda u, z: np.array([u] * z)),
        draws=2,
    ),
    "model_replacement orthogonal_parts": Case(
        replacing(orthogonal_parts(3.0)), with_(check_orthogonal, gamma=3.0), draws=400
    ),
    "fang_trim_full b": Case(
        fang_trim_full(b=5.0), with_(check_trim_full, b=5.0), trim_is_clear, shapes=MANY_OWN
    ),
    "fang_trim_full on_updates": Case(
        fang_trim_full(on_updates=True),
        with_(check_trim_full, in_model_space=False),
        trim_is_clear,
        shapes=MANY_OWN,
    ),
    "fang_trim_full before": Case(
        fang_trim_full(before=mean()),
        with_(check_trim_full, mean=True),
        lambda r: trim_is_clear(r) and np.any(directions(r, mean=True) != directions(r)),
        shapes=MANY_OWN,
    ),
    "fang_trim_deviation b on_updates": Case(
        fang_trim_deviation(4.0, on_updates=True),
        with_(check_trim_deviation, b=4.0, in_model_space=False),
        trim_is_clear,
        shapes=MANY_OWN,
    ),
    "fang_trim_partial low high": Case(
        fang_trim_partial(0.5, 1.5), with_(check_trim_partial, low=0.5, high=1.5), shapes=MANY_OWN
    ),
    "fang_krum_full f": Case(
        fang_krum_full(5), with_(check_krum_full, f=5), with_(full_is_clear, f=5), 20, MANY_OWN
    ),
    "fang_krum_full small f": Case(
        fang_krum_full(2), with_(check_krum_full, f=2), with_(full_is_clear, f=2), 20, MANY_OWN
    ),
    "fang_krum_full epsilon threshold": Case(
        fang_krum_full(epsilon=3.0, threshold=0.25),
        with_(check_krum_full, epsilon=3.0, threshold=0.25),
        full_is_clear,
        2000,
        MANY_OWN,
    ),
    "fang_krum_full before": Case(
        fang_krum_full(before=mean()),
        with_(check_krum_full, before=ref.mean),
        with_(full_is_clear, before=ref.mean),
        20,
        MANY_OWN,
    ),
    "fang_krum_full deviation": Case(
        fang_krum_full(direction=jnp.ones_like),
        with_(check_krum_full, deviation_goal=True),
        with_(full_is_clear, deviation_goal=True),
        20,
        MANY_OWN,
    ),
    "fang_krum_partial f": Case(
        fang_krum_partial(simulated_f=lambda copies: copies // 2 + 1),
        with_(check_krum_partial, simulated_f=half_plus_one),
        with_(partial_is_clear, simulated_f=half_plus_one),
        20,
        MANY_OWN,
    ),
    "fang_krum_partial epsilon threshold": Case(
        fang_krum_partial(epsilon=0.5, threshold=0.3),
        with_(check_krum_partial, epsilon=0.5, threshold=0.3),
        partial_is_clear,
        20,
        MANY_OWN,
    ),
    "fang_krum_partial deviation": Case(
        fang_krum_partial(direction=jnp.ones_like),
        with_(check_krum_partial, deviation_goal=True),
        with_(partial_is_clear, deviation_goal=True),
        20,
        MANY_OWN,
    ),
}
NOTHING, OTHERS, RULE = Knowledge(), Knowledge(others=True), Knowledge(others=True, rule=True)
NEEDS = {
    "no_attack": NOTHING,
    "data_poisoning": NOTHING,
    "gaussian": OTHERS,
    "first_order": RULE,
    "fltrust_adaptive": OTHERS,
    "in_rounds": NOTHING,
    "fang_trim_full": RULE,
    "fang_trim_deviation": RULE,
    "fang_trim_partial": NOTHING,
    "fang_krum_full": OTHERS,
    "fang_krum_partial": NOTHING,
    "scaling": NOTHING,
    "train_and_scale": NOTHING,
    "model_replacement": NOTHING,
}
"""What each attack must know."""
