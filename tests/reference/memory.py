"""Attacks with a memory, round by round: mimic."""

from __future__ import annotations

import numpy as np

from reference.rows import Array, as_float64, unit_vector


class Mimic:
    """The bucketing paper's code: Oja's rule for the direction, the client at its end is copied."""

    def __init__(self, z_0: Array, warmup: int = 1, smallest: bool = False) -> None:
        self.z, self.mu = as_float64(z_0), np.zeros(len(z_0))
        self.t, self.warmup, self.smallest, self.target = 0, warmup, smallest, -1

    def craft(self, honest: Array, ids: list[int]) -> Array | None:
        """Honest rows that are there, and whose they are -> the row to send, None if there are none."""
        honest = as_float64(honest)
        if not len(honest):
            return None
        if self.t < self.warmup:
            self.mu = (self.t * self.mu + honest.mean(axis=0)) / (1 + self.t)
            y = sum(((h - self.mu) @ self.z) * (h - self.mu) for h in honest)
            old = self.t / (1 + self.t) * self.z if self.t else 0.0
            self.z = unit_vector(old + unit_vector(y) / (1 + self.t))
        places = honest @ self.z
        best = int(np.argmin(places) if self.smallest else np.argmax(places))
        if self.t < self.warmup:
            self.target = ids[best]
        self.t += 1
        return honest[ids.index(self.target) if self.target in ids else best]
