"""The lines of the first papers' rules: FedAvg, Krum, Bulyan, the median, FLTrust, checks and noise."""

from __future__ import annotations

from collections.abc import Callable

import jax
import numpy as np
import reference as ref
from rule import (
    SCALES,
    TIES,
    Rule,
    checking,
    error_rate_of,
    score,
    score_of,
    server_vector,
    trusting,
    validating,
)
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
