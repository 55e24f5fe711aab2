"""Attacks with a memory."""

from __future__ import annotations

import numpy as np

from bad_values.kinds import Line, array, boolean, count

# fmt: off
TABLE = {
    "attacks.mimic": Line(
        {"warmup": 2, "smallest": False, "start": np.ones(15, np.float32)},
        {"warmup": count(1), "smallest": boolean(), "start": array(optional=True)},
    ),
    "attacks.mimic_one": Line({"client": 2}, {"client": count()}),
}
