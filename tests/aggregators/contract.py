"""The table of all rules with their definitions, for ``test_rules.py`` and ``test_rules_derivatives.py``.

A new rule needs one line in ``RULES``. ``excluded`` names the nasty matrices on which float32, or any
order of summation, cannot reproduce the reference's choice of rows; what remains true there is tested
by ``test_selected_rows_are_a_right_choice`` and ``test_bulyan_averages_what_it_selected``.
"""

from __future__ import annotations

import collections
import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference as ref
from scipy import special

from fedjax_robust.aggregators import (
    accuracy_auditing,
    auror,
    bulyan,
    cosine_to_model,
    err,
    fedavg_eta,
    fltrust,
    fltrust_no_norm,
    fltrust_no_relu,
    fltrust_par_norm,
    fltrust_server,
    fltrust_with_server,
    krum,
    lfr,
    mean,
    median,
    multi_krum,
    norm_clipping,
    sybil_check,
    trimmed_mean,
    union,
)
from fedjax_robust.privacy import participant_dp
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


def noise(d: int, dtype: type = np.float32) -> np.ndarray:
    """That of ``participant_dp(_, 0.1)`` with the key of ``compiled``."""
    return 0.1 * np.asarray(jax.random.normal(jax.random.key(0), (d,), dtype), np.float64)


def averaged_with_noise(x: np.ndarray, w: np.ndarray | None, m: int | None = None) -> np.ndarray:
    """Clipped at 2, averaged over those present, or their sum by m; what is drawn is added."""
    rows, _, _ = ref.present(x, w)
    average = ref.norm_clipping(rows, 2.0)
    if m is not None:
        return average * (len(rows) / m) + noise(x.shape[1], x.dtype)
    return average + noise(x.shape[1], x.dtype) if len(rows) else average


def private(m: int | None, alone: Callable[[int], np.ndarray]) -> Rule:
    return Rule(
        lambda f: participant_dp(2.0, 0.1, clients_per_round=m),
        lambda x, f, w: averaged_with_noise(x, w, m),
        lambda f: 1,
        robust=False,
        equivariant=False,
        alone=alone,
    )


RULES = {
    "mean": Rule(
        lambda f: mean(), lambda x, f, w: ref.mean(x, w), lambda f: 1, robust=False, weighted=True
    ),
    "fedavg_eta": Rule(
        lambda f: fedavg_eta(0.5, 60),
        lambda x, f, w: ref.fedavg_eta(x, 0.5, 60, w),
        lambda f: 1,
        robust=False,
        equivariant=False,  # a shift of the rows shifts the sum by the share that takes part
    ),
    "median": Rule(lambda f: median(), lambda x, f, w: ref.median(x, w), lambda f: 2 * f + 1),
    "trimmed_mean": Rule(trimmed_mean, ref.trimmed_mean, lambda f: 2 * f + 1),
    "krum": Rule(
        krum,
        ref.krum,
        lambda f: 2 * f + 3,
        lambda x, f, w: [i for i in [ref.krum_index(x, f, w)] if i >= 0],
        TIES,
        TIES,
    ),
    "multi_krum": Rule(
        multi_krum,
        lambda x, f, w: ref.multi_krum(x, f, None, w),
        lambda f: 2 * f + 3,
        lambda x, f, w: ref.multi_krum_selection(x, f, None, w),
        TIES,
        TIES,
    ),
    "multi_krum_3": Rule(
        lambda f: multi_krum(f, m=3),
        lambda x, f, w: ref.multi_krum(x, f, 3, w),
        lambda f: 2 * f + 3,
        lambda x, f, w: ref.multi_krum_selection(x, f, 3, w),
        TIES,
        TIES,
    ),
    "bulyan": Rule(
        bulyan,
        ref.bulyan,
        lambda f: 4 * f + 3,
        ref.bulyan_selection,
        TIES | SCALES,
        TIES,
    ),
    "norm_clipping": Rule(
        lambda f: norm_clipping(0.8),
        lambda x, f, w: ref.norm_clipping(x, 0.8, w),
        lambda f: 1,
        robust=False,
        weighted=True,
        equivariant=False,
    ),
    "fltrust": trusting(fltrust, ref.fltrust, ref.fltrust_scores),
    "fltrust_no_relu": trusting(fltrust_no_relu, ref.fltrust_no_relu, ref.fltrust_cosines),
    "fltrust_no_norm": trusting(fltrust_no_norm, ref.fltrust_no_norm, ref.fltrust_scores),
    "fltrust_par_norm": trusting(fltrust_par_norm, ref.fltrust_par_norm, ref.fltrust_scores),
    "fltrust_with_server": trusting(
        fltrust_with_server, ref.fltrust_with_server, ref.fltrust_scores, server_vector
    ),
    "fltrust_server": trusting(
        fltrust_server, ref.fltrust_server, lambda x, g_0, w: np.zeros(len(x)), server_vector
    ),
    "err": validating(err, error_rate_of),
    "lfr": validating(lfr, score_of),
    "union": validating(union, error_rate_of, score_of),
    "auror": checking(
        lambda f: auror(1.0),
        lambda x, f, w: ref.auror_selection(x, 1.0, w)[0],
        excluded=TIES,
        excluded_float64=TIES,
    ),
    "accuracy_auditing": checking(
        lambda f: accuracy_auditing(lambda params: jax.nn.sigmoid(score(params)), 0.1),
        lambda x, f, w: ref.accuracy_auditing_selection(
            x, lambda p: special.expit(score_of(p)), 0.1, server_vector(x.shape[1]), w
        ),
        params=server_vector,
    ),
    "sybil_check": checking(
        lambda f: sybil_check(0.87), lambda x, f, w: ref.sybil_selection(x, 0.87, w)
    ),
    "cosine_to_model": checking(
        lambda f: cosine_to_model(2.0),
        lambda x, f, w: ref.cosine_to_model_selection(x, server_vector(x.shape[1]), 2.0, w),
        params=server_vector,
    ),
    "participant_dp": private(None, np.zeros),
    "participant_dp of 20": private(20, noise),
}
# Public names without a line of their own.
EXCEPTIONS = {
    "base": "a module: how functions become rules",
    "server_update": "what the server of FLTrust's rules trains, no rule",
    "trusted_mean": "the kernel of FLTrust's rules, no rule",
    "privacy_spent": "an accountant",
    "privacy_spent_poisson": "an accountant",
}
SELECTING = [name for name, rule in RULES.items() if rule.selection]
KRUM = {"krum": 1, "multi_krum": None, "multi_krum_3": 3}  # m
SOME_ABSENT = np.array([1, 0, 2, 0.5, 1, 1, 1, 3, 1, 1, 0.25, 1], np.float32)
assert len(SOME_ABSENT) == N and np.sum(SOME_ABSENT == 0) == 1  # 11 rows left: bulyan's least

every_rule = pytest.mark.parametrize("name", RULES)
every_equivariant_rule = pytest.mark.parametrize(
    "name", [name for name, rule in RULES.items() if rule.equivariant]
)


TRACES: collections.Counter[str] = collections.Counter()


@functools.cache
def compiled(name: str, f: int = F) -> Callable[[np.ndarray, np.ndarray], tuple]:
    """updates (n, d), weights (n,) -> the rule's result and its info."""
    rule = RULES[name].make(f)

    def call(updates: jax.Array, weights: jax.Array) -> tuple[jax.Array, dict[str, jax.Array]]:
        TRACES[name] += 1
        n, d = updates.shape
        params = jnp.asarray(RULES[name].params(d), updates.dtype)
        received = Received(updates, weights, jnp.arange(n), params, jax.random.key(0))
        result, state, info = rule.aggregate(received, rule.init(n, params))
        assert jax.tree.structure(state) == jax.tree.structure(rule.init(n, params))
        return result, info

    return jax.jit(call)


def apply(name: str, x: np.ndarray, weights: np.ndarray | None = None, f: int = F) -> np.ndarray:
    weights = np.ones(len(x), x.dtype) if weights is None else weights
    return np.asarray(compiled(name, f)(x, weights)[0])


def selected(name: str, x: np.ndarray, weights: np.ndarray | None = None, f: int = F) -> np.ndarray:
    weights = np.ones(len(x), x.dtype) if weights is None else weights
    return np.asarray(compiled(name, f)(x, weights)[1]["selected"])


def assert_close(
    actual: np.ndarray, expected: np.ndarray, tolerance: float, what: str = ""
) -> None:
    """Relative to the largest entry."""
    scale = np.max(np.abs(expected), initial=0.0)
    np.testing.assert_allclose(
        np.asarray(actual, np.float64), expected, rtol=0, atol=tolerance * scale, err_msg=what
    )


def random_matrix(seed: int, n: int = N, d: int = D, dtype: type = np.float32) -> np.ndarray:
    return (0.5 + np.random.default_rng(seed).normal(size=(n, d))).astype(dtype)


def nasty(seed: int = 0, n: int = N) -> dict[str, np.ndarray]:
    return ref.nasty_matrices(n, D, np.random.default_rng(seed))
