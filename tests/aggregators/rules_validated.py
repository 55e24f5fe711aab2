"""The lines of DeepSight, Zeno, FAIR, the learned credits, SignGuard and Romoa."""

from __future__ import annotations

import functools
from collections.abc import Callable

import jax.numpy as jnp
import numpy as np
import reference as ref
from rule import (
    VALIDATION,
    Rule,
    checking,
    score,
    score_of,
    scoring,
    server_vector,
)

from fedjax_robust.aggregators import (
    deepsight,
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
from fedjax_robust.types import Aggregator, Received, Task

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


def deepsight_of_any_size(f: int) -> Aggregator:
    """The model is its output layer's biases, which are the kernel, too, and its logits for any input."""

    def aggregate(received: Received, state: tuple) -> tuple:
        d = received.params.shape[0]
        task = Task(
            lambda key: jnp.zeros(d),
            lambda params, batch: jnp.sum(params),
            lambda params, x: jnp.broadcast_to(params, (len(x), d)),
            lambda params: params,
        )
        rule = deepsight(task, np.zeros((1, 1), np.float32), one_layer, inputs=1, draws=1)
        return rule.aggregate(received, state)

    return Aggregator(lambda n, params: (), aggregate)


def one_layer(params: jnp.ndarray) -> tuple:
    return params[None], params


def deepsight_rows(x: np.ndarray, f: int, w: np.ndarray | None) -> list[int]:
    rows, _, index = ref.present(x, w)
    if not len(rows):
        return []
    layers = [ref.update_energies(row[None], row) for row in rows]
    d = x.shape[1]
    differences = np.array([ref.softmax(row) / (1 / d + 1e-6) for row in rows])
    labels = ref.deepsight_clusters(np.array([e for e, _ in layers]), rows, [differences])
    exceedings = np.array([number for _, number in layers])
    return [int(i) for i in index[ref.deepsight_accepted(labels, exceedings)]]


def deepsight_reference(x: np.ndarray, f: int, w: np.ndarray | None) -> np.ndarray:
    chosen = deepsight_rows(x, f, w)
    return ref.clipped_at_median(x, chosen, w) if chosen else np.zeros(x.shape[1])


RULES = {
    "deepsight": Rule(
        deepsight_of_any_size,
        deepsight_reference,
        lambda f: 1,
        deepsight_rows,
        robust=False,
        weighted=True,
        equivariant=False,
    ),
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
    ),
}
