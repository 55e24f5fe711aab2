"""The lines of what stands before or after other rules.

Buckets are random by client, and a client keeps its number if another is deleted; the table deletes
rows and numbers the rest anew, so here the order is that of the ids. The random one is
tested in ``test_wrappers.py``.
"""

from __future__ import annotations

import jax
import numpy as np
import reference as ref
from rule import TIES, Rule, server_vector

from fedjax_robust.aggregators import (
    arc,
    bucketing,
    centered_clipping,
    clipped_clustering,
    crfl,
    median,
    nnm,
    rlr,
    sequential_clipping,
)

MEDIAN = median()


def by_id(key: object, ids: object) -> object:
    return ids


def noise(d: int, dtype: type = np.float32) -> np.ndarray:
    """That of ``crfl(_, 0.1)`` with the key of ``compiled``."""
    draw = jax.random.split(jax.random.key(0))[0]
    return 0.1 * np.asarray(jax.random.normal(draw, (d,), dtype), np.float64)


def noisy_model(x: np.ndarray, w: np.ndarray | None) -> np.ndarray:
    clipped = ref.crfl(x, server_vector(x.shape[1]), 1.5, ref.mean, w)
    return clipped + noise(x.shape[1], x.dtype)


def sequential(x: np.ndarray, w: np.ndarray | None) -> np.ndarray:
    numbers, start = np.arange(len(x)), np.zeros(x.shape[1])
    return ref.sequential_clipping(x, 0.8, 3, numbers, start, False, w)[0]


RULES = {
    "bucketing": Rule(
        lambda f: bucketing(2, order=by_id, base=MEDIAN),
        lambda x, f, w: ref.bucketing(x, 2, np.arange(len(x)), ref.median, w),
        lambda f: 4 * f + 1,
        weighted=True,
        ordered=True,
    ),
    "centered_clipping": Rule(
        lambda f: centered_clipping(0.8, 3),
        lambda x, f, w: ref.centered_clipping(x, 0.8, 3, np.zeros(x.shape[1]), w)[0],
        lambda f: 1,
        robust=False,
        equivariant=False,
    ),
    "nnm": Rule(
        lambda f: nnm(f, base=MEDIAN),
        lambda x, f, w: ref.nnm(x, f, ref.median, w),
        lambda f: 2 * f + 1,
        excluded=TIES,
        excluded_float64=TIES,
        ordered=True,
    ),
    "arc": Rule(
        arc,
        lambda x, f, w: ref.arc(x, f, ref.mean, w),
        lambda f: 2 * f + 1,
        robust=False,
        weighted=True,
        equivariant=False,
    ),
    "rlr": Rule(
        lambda f: rlr(f + 1),
        lambda x, f, w: ref.rlr(x, f + 1, ref.mean, w),
        lambda f: 2 * f + 1,
        robust=False,
        weighted=True,
        equivariant=False,
    ),
    "crfl": Rule(
        lambda f: crfl(1.5, 0.1),
        lambda x, f, w: noisy_model(x, w),
        lambda f: 1,
        robust=False,
        weighted=True,
        equivariant=False,
        params=server_vector,
        alone=noise,
    ),
    "sequential_clipping": Rule(
        lambda f: sequential_clipping(0.8, 3, order=by_id),
        lambda x, f, w: sequential(x, w),
        lambda f: 1,
        robust=False,
        equivariant=False,
        ordered=True,
    ),
    "clipped_clustering": Rule(
        lambda f: clipped_clustering(64),
        lambda x, f, w: ref.clipped_clustering(x, [], ref.mean, w)[0],
        lambda f: 1,
        lambda x, f, w: ref.clipped_clustering(x, [], ref.mean, w)[1],
        # Angles of 1e-5 between rows that are rounded to 1e-7: their squares have one digit.
        TIES | {"common_offset"},
        TIES,
        robust=False,
        weighted=True,
        equivariant=False,
        ordered=True,
    ),
}
