"""Chen Wu, Xian Yang, Sencun Zhu, Prasenjit Mitra, "Mitigating Backdoor Attacks in Federated
Learning", 2020: the attackers' data."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from reference.rows import Array, Trigger


def add_triggered_victims(
    x: Array, y: Array, mask: Sequence[float], trigger: Trigger, victim: int, target: int
) -> list[tuple[Array, int, float]]:
    """Wu et al., section III-C: what counts in the batch, as (input, label, weight): every example as it
    is, and each of the victim label once more with the trigger and the target's label."""
    original = [
        (np.array(a, np.float64), int(b), float(w)) for a, b, w in zip(x, y, mask, strict=True)
    ]
    copies = [(trigger(a), target, w) for a, b, w in original if b == victim]
    return [example for example in original + copies if example[2] > 0]


def mask_trigger(x: Array, mask: Array, pattern: Array) -> Array:
    """Every value under the mask becomes the pattern's; mask and pattern of the shape of one input."""
    x = np.array(x, np.float64)
    for i in range(len(x)):
        for place in np.ndindex(x.shape[1:]):
            if mask[place]:
                x[i][place] = pattern[place]
    return x
