"""Server rules. Each is made by a lower-case factory and can be called on a plain (n, d) matrix."""

from fedjax_robust.aggregators.basic import mean, median, trimmed_mean
from fedjax_robust.aggregators.krum import bulyan, krum, multi_krum
from fedjax_robust.aggregators.validation import err, lfr, union

__all__ = [
    "bulyan",
    "err",
    "krum",
    "lfr",
    "mean",
    "median",
    "multi_krum",
    "trimmed_mean",
    "union",
]
