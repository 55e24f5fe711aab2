"""The lines of means and medians, and of rules by distance to one point."""

from __future__ import annotations

import numpy as np
from reference import medians as own
from rule import SERVER, TIES, Rule, checking, server_vector

from fedjax_robust.aggregators import (
    aksel,
    cao_lai,
    cge,
    geometric_median,
    mean_around_median,
    monna,
    phocas,
    rfa,
    sign_majority,
    vrmom,
)

ROOT = {"x": np.zeros((1, 1), np.float32), "y": np.zeros(1, np.int32)}


def half(f: int) -> int:
    return 2 * f + 1


RULES = {
    "geometric_median": Rule(
        lambda f: geometric_median(steps=40),
        lambda x, f, w: own.geometric_median(x, w, steps=40),
        half,
        robust=False,  # by a bound on the influence, in ``test_medians.py``
        weighted=True,
    ),
    "rfa": Rule(
        lambda f: rfa(steps=3, smoothing=0.1, from_zero=True),
        lambda x, f, w: own.rfa(x, 3, 0.1, w, from_zero=True),
        half,
        robust=False,
        weighted=True,
        equivariant=False,
    ),
    "rfa from the mean": Rule(
        lambda f: rfa(),
        lambda x, f, w: own.rfa(x, 4, 1e-5, w),
        half,
        robust=False,
        weighted=True,
        equivariant=False,
    ),
    "mean_around_median": Rule(mean_around_median, own.mean_around_median, half, robust=False),
    "phocas": Rule(phocas, own.phocas, half, robust=False),
    "aksel": checking(
        lambda f: aksel(),
        lambda x, f, w: own.aksel_selection(x, None, w),
        excluded=TIES,
        excluded_float64=TIES,
    )._replace(equivariant=True),
    "aksel of n - f": checking(
        aksel, own.aksel_selection, half, excluded=TIES, excluded_float64=TIES
    )._replace(equivariant=True),
    "cge": checking(cge, own.cge_selection, half, excluded=TIES, excluded_float64=TIES),
    "monna": checking(
        lambda f: monna(f, 0),
        lambda x, f, w: own.monna_selection(x, f, 0, w),
        half,
        excluded=TIES,
        excluded_float64=TIES,
        ordered=True,
    )._replace(equivariant=True),
    "sign_majority": Rule(
        lambda f: sign_majority(0.5),
        lambda x, f, w: own.sign_majority(x, 0.5, w),
        half,
        robust=False,
        equivariant=False,
    ),
    "sign_majority weighted": Rule(
        lambda f: sign_majority(0.5, weighted=True),
        lambda x, f, w: own.sign_majority(x, 0.5, w, weighted=True),
        half,
        robust=False,
        weighted=True,
        equivariant=False,
    ),
    "vrmom": Rule(lambda f: vrmom(4), lambda x, f, w: own.vrmom(x, 4, w), half, robust=False),
    "cao_lai": Rule(
        # The server's own update has a weight of its own: in ``test_medians.py``.
        lambda f: cao_lai(SERVER, ROOT, 2.0, server_weight=0.0),
        lambda x, f, w: own.cao_lai(x, server_vector(x.shape[1]), 2.0, w, 0.0),
        half,
        lambda x, f, w: own.cao_lai_selection(x, server_vector(x.shape[1]), 2.0, w),
        robust=False,
        weighted=True,
        equivariant=False,
    ),
}
