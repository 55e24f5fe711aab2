"""Means and medians."""

from __future__ import annotations

import numpy as np

from bad_values.kinds import (
    CLIENT,
    POOL,
    Line,
    array,
    boolean,
    count,
    examples,
    not_negative,
    part,
    positive,
)
from fedjax_robust import aggregators

BASE = {"base": part(optional=True)}

# fmt: off
TABLE = {
    "aggregators.geometric_median": Line(
        {"steps": 3, "smoothing": 1e-6}, {"steps": count(1), "smoothing": not_negative()}
    ),
    "aggregators.rfa": Line(
        {"steps": 3, "smoothing": 0.1, "from_zero": True},
        {"steps": count(1), "smoothing": positive(), "from_zero": boolean()},
    ),
    "aggregators.mean_around_median": Line({"f": 1}, {"f": count()}),
    "aggregators.phocas": Line({"f": 1}, {"f": count()}),
    "aggregators.aksel": Line({"f": 1}, {"f": count(optional=True), **BASE}),
    "aggregators.cge": Line({"f": 1}, {"f": count(), **BASE}),
    "aggregators.monna": Line({"f": 1, "trusted": 0}, {"f": count(), "trusted": count(), **BASE}),
    "aggregators.sign_majority": Line(
        {"step": 0.1, "weighted": True}, {"step": positive(), "weighted": boolean()}
    ),
    "aggregators.median_of_means": Line(
        {"groups": np.arange(9) % 3, "base": aggregators.median()},
        {"groups": array("i", low=0), **BASE},
    ),
    "aggregators.vrmom": Line({"levels": 3}, {"levels": count(1)}),
    "aggregators.cao_lai": Line(
        {"client": CLIENT, "root": POOL, "xi": 1.5, "server_weight": 1.0},
        {"client": part(), "root": examples(), "xi": positive(), "server_weight": not_negative()},
    ),
}
