"""The lines of Zeno, FAIR, the learned credits, SignGuard and Romoa."""

from __future__ import annotations

import functools
from collections.abc import Callable

import jax.numpy as jnp
import numpy as np
import reference as ref
from rule import (
    SCALES,
    TIES,
    VALIDATION,
    Rule,
    checking,
    score,
    score_of,
    scoring,
    server_vector,
)

from fedjax_robust.aggregators import (
    fair,
    fair_by_quality,
    learned_credits,
    learned_credits_reinforce,
    romoa,
    signguard,
    signguard_dist,
    signguard_sim,
    zeno,
)
from fedjax_robust.types import Aggregator, Received

RHO = 0.125  # a power of two: rows of small integers have exact scores, and tie exactly


def zeno_of_any_size(f: int) -> Aggregator:
    def aggregate(received: Received, state: tuple) -> tuple:
        return zeno(scoring(received.params.shape[0]), VALIDATION, f, RHO).aggregate(
            received, state
        )

    return Aggregator(lambda n, params: (), aggregate)


def zeno_rows(x: np.ndarray, f: int, w: np.ndarray | None) -> list[int]:
    return ref.zeno_selection(x, score_of, f, RHO, np.zeros(x.shape[1]), w)


def fair_shares(x: np.ndarray, w: np.ndarray | None) -> np.ndarray:
    v = server_vector(x.shape[1])
    return ref.fair_weights(x, lambda params: v, 0.1, 3, np.zeros(len(v)), w)


def qualities(x: np.ndarray) -> np.ndarray:
    return np.array([-score_of(row) for row in np.nan_to_num(np.float64(x), posinf=0, neginf=0)])


def equal_mean(x: np.ndarray, f: int, w: np.ndarray | None) -> np.ndarray:
    return ref.mean(x, None if w is None else (np.nan_to_num(w) > 0).astype(float))


def signguard_rule(
    make: Callable[..., Aggregator], fourth: Callable[..., np.ndarray] | None, **options: object
) -> Rule:
    """On all coordinates; a first round."""

    def rows(x: np.ndarray, f: int, w: np.ndarray | None) -> list[int]:
        return ref.signguard_selection(x, None, fourth, w)

    return Rule(
        lambda f: make(share=1.0),
        lambda x, f, w: ref.signguard(x, rows(x, f, w), w),
        lambda f: 1,
        rows,
        robust=False,
        weighted=True,
        equivariant=False,
        **options,
    )


def romoa_later(f: int) -> Aggregator:
    """As if the last aggregate were ``server_vector``: beside 0, all cosines are 1 or -1, and tie.

    With a small sharpness: e to the power of n e^n is nothing that float32 could reproduce.
    """
    rule = romoa(sharpness=1.0)

    def init(n: int, params: jnp.ndarray) -> tuple:
        last = jnp.asarray(server_vector(len(params)), params.dtype)
        return rule.init(n, params)._replace(last=last)

    return Aggregator(init, rule.aggregate)


def romoa_reference(x: np.ndarray, f: int, w: np.ndarray | None) -> np.ndarray:
    n, d = x.shape
    return ref.romoa(
        x, np.ones((n, d)), server_vector(d), [list(range(d))], sharpness=1.0, weights=w
    )[0]


RULES = {
    "zeno": checking(zeno_of_any_size, zeno_rows, lambda f: f + 1),
    "fair": Rule(
        lambda f: fair(score, 0.1, steps=3),
        lambda x, f, w: (
            np.nan_to_num(fair_shares(x, w)) @ np.nan_to_num(np.float64(x), posinf=0, neginf=0)
        ),
        lambda f: 1,
        lambda x, f, w: list(np.flatnonzero(fair_shares(x, w))),
        robust=False,
        equivariant=False,
    ),
    "fair_by_quality": Rule(
        lambda f: fair_by_quality(score),
        lambda x, f, w: ref.fair_by_quality(x, qualities(x), w),
        lambda f: 1,
        lambda x, f, w: [int(i) for i in ref.present(x, w)[2] if qualities(x)[i] > 0],
        robust=False,
        weighted=True,
        equivariant=False,
    ),
    # Of one round: credits are equal in the first, and the noise is below all digits.
    "learned_credits": Rule(
        lambda f: learned_credits(score, 1.0),
        equal_mean,
        lambda f: 1,
        lambda x, f, w: list(ref.present(x, w)[2]),
        robust=False,
    ),
    "learned_credits_reinforce": Rule(
        lambda f: learned_credits_reinforce(score, 1.0, 1e-14),
        equal_mean,
        lambda f: 1,
        lambda x, f, w: list(ref.present(x, w)[2]),
        robust=False,
    ),
    "signguard": signguard_rule(signguard, None),
    "signguard_sim": signguard_rule(
        signguard_sim, functools.partial(ref.signguard_similarity, last=None)
    ),
    "signguard_dist": signguard_rule(
        signguard_dist, functools.partial(ref.signguard_distance, last=None)
    ),
    "romoa": Rule(
        romoa_later,
        romoa_reference,
        lambda f: 1,
        robust=False,
        equivariant=False,
        excluded=TIES | SCALES,
        excluded_float64=TIES,
    ),
}
