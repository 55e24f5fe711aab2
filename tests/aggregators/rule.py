"""What a line of the table of rules holds, and lines that several rules share.

Each ``rules_*.py`` beside this file holds the lines of one family, ``contract.py`` joins them.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import reference as ref

from fedjax_robust.types import Aggregator, Client, Received, Task

N, D, F = 12, 5, 2  # of most tests, so that each rule is compiled once

# Exact ties: rounding decides which of the tied rows is taken, so that reference and rule may differ.
TIES = {"ties", "duplicates"}
# Rows 12 orders of magnitude apart: sums in which the largest distance is all that float32 keeps, so
# that rows tie which differ in the twentieth digit of their scores.
SCALES = {"mixed_scales"}


class Rule(NamedTuple):
    make: Callable[[int], Aggregator]
    """f -> rule"""
    reference: Callable[..., np.ndarray]
    """updates, f, weights -> (d,)"""
    least: Callable[[int], int]
    """f -> the smallest n that is valid"""
    selection: Callable[..., list[int]] | None = None
    """updates, f, weights -> the rows that are reported as selected"""
    excluded: set[str] = frozenset()
    """nasty matrices excluded in float32"""
    excluded_float64: set[str] = frozenset()
    robust: bool = True
    """f bad rows never enter the result"""
    weighted: bool = False
    """the weights' values matter, not only who is present"""
    equivariant: bool = True
    """shifting or scaling the rows does so to the result; not so if they are compared with a fixed one"""
    params: Callable[[int], np.ndarray] = np.zeros
    """d -> the received model (d,)"""
    alone: Callable[[int], np.ndarray] = np.zeros
    """d -> the result if nobody is present"""
    ordered: bool = False
    """the rows' order decides between equal ones, which are frequent"""


def server_vector(d: int) -> np.ndarray:
    """What the server of the FLTrust rules sends."""
    return 0.25 * (1 + np.arange(d) % 3)


SERVER = Client(
    lambda params: (),
    lambda key, params, state, data: (
        jnp.asarray(server_vector(len(params)), params.dtype),
        state,
        {},
    ),
)


def trusting(
    make: Callable[[Client, dict], Aggregator],
    reference: Callable[..., np.ndarray],
    scores: Callable[..., np.ndarray],
    alone: Callable[[int], np.ndarray] = np.zeros,
) -> Rule:
    """A rule that compares the rows with ``server_vector``; f plays no part."""
    return Rule(
        lambda f: make(SERVER, {"x": np.zeros((1, 1), np.float32), "y": np.zeros(1, np.int32)}),
        lambda x, f, w: reference(x, server_vector(x.shape[1]), w),
        lambda f: 1,
        lambda x, f, w: list(np.flatnonzero(scores(x, server_vector(x.shape[1]), w))),
        robust=False,
        equivariant=False,
        alone=alone,
    )


def checking(
    make: Callable[[int], Aggregator],
    select: Callable[..., list[int]],
    least: Callable[[int], int] = lambda f: 1,
    **options: object,
) -> Rule:
    """A check that throws rows out, then the mean. ``select``: updates, f, weights -> rows that stay."""

    def reference(x: np.ndarray, f: int, w: np.ndarray | None) -> np.ndarray:
        w = np.ones(len(x)) if w is None else w
        return ref.mean(x, np.where(np.isin(np.arange(len(x)), select(x, f, w)), w, 0))

    return Rule(
        make, reference, least, select, robust=False, weighted=True, equivariant=False, **options
    )


# The server's examples of the rules that validate: a model's score is its part along ``server_vector``;
# example v is classified as 1 if the score is above v, and all are of class 0. So the error rate grows
# with the score, in small steps at all scales, and the loss is the score.
EXAMPLES = np.sinh(np.linspace(-12, 12, 999)).astype(np.float32)
VALIDATION = {"x": EXAMPLES[:, None], "y": np.zeros(999, np.int32)}


def score(params: jax.Array) -> jax.Array:
    along = jnp.asarray(server_vector(len(params)), params.dtype)
    return jnp.dot(params, along, precision="highest")


@functools.cache
def scoring(d: int) -> Task:
    return Task(
        lambda key: jnp.zeros(d),
        lambda params, batch: score(params),
        lambda params, x: jnp.stack([x[:, 0], jnp.full(len(x), score(params), x.dtype)], axis=1),
        lambda params: params,
    )


def score_of(params: np.ndarray) -> float:
    return float(np.sum(params * server_vector(len(params))))


def error_rate_of(params: np.ndarray) -> float:
    return int(np.sum(score_of(params) > EXAMPLES)) / len(EXAMPLES)


def validating(make: Callable[..., Aggregator], *metrics: Callable[[np.ndarray], float]) -> Rule:
    """ERR, LFR, Union; of equal rows the first is removed."""

    def select(x: np.ndarray, f: int, w: np.ndarray | None) -> list[int]:
        w = np.ones(len(x)) if w is None else w
        gone = set()
        for metric in metrics:
            values = ref.impacts(ref.mean, metric, x, w, server_vector(x.shape[1]))
            gone |= ref.largest_impacts(values, f)
        return [i for i in ref.present(x, w)[2] if i not in gone]

    def aggregate(f: int, received: Received, state: tuple) -> tuple:
        task = scoring(received.params.shape[0])
        rule = make(task, VALIDATION, f, ties=lambda key, places: places)
        return rule.aggregate(received, state)

    # Beside a huge row, or with tiny ones, scores without other rows are equal but for rounding.
    lost = {"huge_row", "constant_huge_row", "tiny"}
    return checking(
        lambda f: Aggregator(lambda n, params: (), functools.partial(aggregate, f)),
        select,
        lambda f: len(metrics) * f + 1,
        excluded=TIES | SCALES | lost | {"common_offset"},
        excluded_float64=TIES | lost,
        params=server_vector,
        ordered=error_rate_of in metrics,
    )
