"""Chulin Xie, Keli Huang, Pin-Yu Chen, Bo Li, "DBA: Distributed Backdoor Attacks against Federated
Learning", ICLR 2020."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from reference.bagdasaryan2020 import turn
from reference.rows import Array, Trigger


def distributed(
    x: Array,
    y: Array,
    mask: Sequence[float],
    triggers: Sequence[Trigger],
    client: int,
    target: int,
    c: int,
    skip: int,
) -> tuple[Array, Array]:
    """DBA (Xie et al.): client i puts trigger i, counted round and round, on c examples."""
    x, y = np.array(x, np.float64), np.array(y)
    own = triggers[client % len(triggers)]
    for i in turn(mask, c, skip):
        x[i], y[i] = own(x[i]), target
    return x, y
