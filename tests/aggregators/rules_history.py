"""The lines of rules that remember clients, in their first round; later ones in ``test_history.py``."""

from __future__ import annotations

import numpy as np
import reference as ref
from reference import history
from rule import TIES, Rule, checking, server_vector

from fedjax_robust.aggregators import afa, contra, fldetector, foolsgold


def gold(x: np.ndarray, w: np.ndarray | None, summed: bool = True) -> tuple[np.ndarray, np.ndarray]:
    return history.FoolsGold(x.shape[1]).aggregate(x, list(range(len(x))), w, summed)


def adaptive(
    x: np.ndarray, w: np.ndarray | None, params: np.ndarray | None = None
) -> tuple[np.ndarray, list[int]]:
    return history.AFA().aggregate(x, list(range(len(x))), w, params)


def aligned(x: np.ndarray, w: np.ndarray | None) -> tuple[np.ndarray, np.ndarray]:
    return history.Contra(x.shape[1], 3).aggregate(x, list(range(len(x))), w)


RULES = {
    "foolsgold": Rule(
        lambda f: foolsgold(),
        lambda x, f, w: gold(x, w)[0],
        lambda f: 1,
        lambda x, f, w: list(np.flatnonzero(gold(x, w)[1])),
        TIES | {"common_offset"},
        TIES,
        robust=False,
        equivariant=False,
    ),
    "foolsgold divided": Rule(
        lambda f: foolsgold(summed=False),
        lambda x, f, w: gold(x, w, summed=False)[0],
        lambda f: 1,
        lambda x, f, w: list(np.flatnonzero(gold(x, w)[1])),
        TIES | {"common_offset"},
        TIES,
        robust=False,
        equivariant=False,
    ),
    "contra": Rule(
        lambda f: contra(3),
        lambda x, f, w: aligned(x, w)[0],
        lambda f: 1,
        lambda x, f, w: list(np.flatnonzero(aligned(x, w)[1])),
        TIES | {"common_offset"},
        TIES,
        robust=False,
        equivariant=False,
    ),
    # In its first round it has nothing to compare with.
    "fldetector": checking(
        lambda f: fldetector(), lambda x, f, w: [int(i) for i in ref.present(x, w)[2]]
    )._replace(equivariant=True),
    "afa": Rule(
        lambda f: afa(),
        lambda x, f, w: adaptive(x, w)[0],
        lambda f: 1,
        lambda x, f, w: adaptive(x, w)[1],
        TIES,
        TIES,
        robust=False,
        weighted=True,
        equivariant=False,
    ),
    "afa on_models": Rule(
        lambda f: afa(on_models=True),
        lambda x, f, w: adaptive(x, w, server_vector(x.shape[1]))[0],
        lambda f: 1,
        lambda x, f, w: adaptive(x, w, server_vector(x.shape[1]))[1],
        TIES | {"tiny"},  # the reference adds 1e-20 to the model
        TIES | {"tiny"},
        robust=False,
        weighted=True,
        equivariant=False,
        params=server_vector,
    ),
}
