"""Server rules. Each is made by a lower-case factory and can be called on a plain (n, d) matrix."""

from fedjax_robust.aggregators import base
from fedjax_robust.aggregators.base import mean
from fedjax_robust.aggregators.bulyan import bulyan
from fedjax_robust.aggregators.clipping import norm_clipping
from fedjax_robust.aggregators.coordinate import median, trimmed_mean
from fedjax_robust.aggregators.detection import (
    accuracy_auditing,
    auror,
    cosine_to_model,
    sybil_check,
)
from fedjax_robust.aggregators.fedavg import fedavg_eta
from fedjax_robust.aggregators.krum import krum, multi_krum
from fedjax_robust.aggregators.trust import (
    fltrust,
    fltrust_no_norm,
    fltrust_no_relu,
    fltrust_par_norm,
    fltrust_server,
    fltrust_with_server,
    server_update,
    trusted_mean,
)
from fedjax_robust.aggregators.validation import err, lfr, union

__all__ = [
    "accuracy_auditing",
    "auror",
    "base",
    "bulyan",
    "cosine_to_model",
    "err",
    "fedavg_eta",
    "fltrust",
    "fltrust_no_norm",
    "fltrust_no_relu",
    "fltrust_par_norm",
    "fltrust_server",
    "fltrust_with_server",
    "krum",
    "lfr",
    "mean",
    "median",
    "multi_krum",
    "norm_clipping",
    "server_update",
    "sybil_check",
    "trimmed_mean",
    "trusted_mean",
    "union",
]
