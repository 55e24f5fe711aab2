"""Attacks with a memory, round by round, and boosted training."""

from __future__ import annotations

from collections.abc import Callable

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


class Changes:
    """What the model changed by, from round to round, as the attackers see it."""

    def __init__(self) -> None:
        self.models: list[Array] = []

    def see(self, params: Array) -> list[Array]:
        """The received model -> D_t, D_{t-1}, ..., D_1."""
        self.models.append(as_float64(params))
        pairs = zip(self.models[1:], self.models, strict=False)
        return [after - before for after, before in pairs][::-1]


class DisguisedFreeRider:
    """The standard deviation of each coordinate."""

    def __init__(self, gamma: float = 1.0, k: float = 1.0, first: float = 1e-3) -> None:
        self.changes, self.gamma, self.k, self.first = Changes(), gamma, k, first

    def std(self, params: Array) -> float:
        changes = self.changes.see(params)
        sigma = np.mean(np.abs(changes[-1])) if changes else self.first
        return self.k * sigma * max(len(changes), 1) ** -self.gamma


class AdvancedFreeRider:
    """The row without its noise, and how long the noise is."""

    def __init__(self, n: int, cosine: float = 0.5, first: float = 1e-3) -> None:
        self.changes, self.n, self.cosine, self.first = Changes(), n, cosine, first

    def row(self, params: Array) -> tuple[Array, float]:
        changes = self.changes.see(params)
        t = len(changes) + 1
        if t <= 2:
            row = changes[0] if changes else 0 * as_float64(params)
            return row, self.first * np.sqrt(len(row))
        now, last, first = (np.linalg.norm(changes[i]) for i in (0, 1, -1))
        row = now / last * changes[0]
        speed = np.log((now / first) ** (1 / (t - 1)))
        alike = self.cosine**2 / (self.cosine**2 + np.exp(2 * speed * t))
        ratio = np.sqrt(self.n**2 / (self.n + (self.n**2 - self.n) * alike) - 1)
        return row, ratio * np.linalg.norm(row)


class PoisonedFL:
    """The authors' loop, one received model after the other."""

    def __init__(self, signs: Array, c: float = 8.0, period: int = 50, shrink: float = 0.7,
                 smallest: float = 0.5, least: int = 0) -> None:  # fmt: skip
        self.s, self.c, self.period = as_float64(signs), c, period
        self.shrink, self.smallest, self.least = shrink, smallest, least
        self.t = 0

    def row(self, params: Array) -> Array:
        w = as_float64(params)
        if self.t == 0:
            self.last = self.asked = w
            self.own = 0 * w
            self.t = 1
            return self.own
        if self.t % self.period == 0:
            moved = np.sign(w - self.asked)
            moved = np.where(moved == 0, np.sign(w), moved)
            if np.sum(moved == self.s) < self.least and self.shrink * self.c >= self.smallest:
                self.c *= self.shrink
            self.asked = w
        change = w - self.last
        length, own = np.linalg.norm(change), np.linalg.norm(self.own)
        others = np.abs(change - (self.own * length / own if own > 0 else 0))
        if np.linalg.norm(others) > 0:
            others = others / np.linalg.norm(others)
        self.own = self.c * length * others * self.s
        self.last, self.t = w, self.t + 1
        return self.own


def rop(
    m: Array,
    mean: Array,
    z: float,
    first: bool = False,
    angle: float = 270.0,
    location: float = 1.0,
    reference: float = 0.9,
) -> Array:
    """m is the last aggregate, 0 in the first round."""
    m, mean = as_float64(m), as_float64(mean)
    r = mean if first else reference * m + (1 - reference) * mean
    e = np.ones_like(r) - r * np.sum(r) / (r @ r)
    a = np.deg2rad(angle)
    q = np.sin(a) * unit_vector(e) + np.cos(a) * unit_vector(r)
    return location * m + (1 - location) * mean + z * unit_vector(q)


def alternating(
    slope: Callable[[Array], Array],
    malicious: Callable[[Array], tuple[float, Array]],
    received: Array,
    rate: float,
    boost: Array | float,
    steps: int,
    benign_steps: int,
    rho: float = 0.0,
    delta: Array | float = 0.0,
    held: Array | float = 1.0,
) -> Array:
    """What is sent; slope of L_train, value and slope of L_mal."""
    received = as_float64(received)
    w = received.copy()
    for _ in range(steps):
        for _ in range(benign_steps):
            w = w - rate * (slope(w) + rho * held * (w - received - delta))
        loss, down = malicious(w)
        if loss > 0:
            after = w - rate * down
            w = w + boost * (after - w)
    return w - received


def stealthy(
    slope: Callable[[Array], Array],
    malicious: Callable[[Array], tuple[float, Array]],
    received: Array,
    rate: float,
    boost: float,
    steps: int,
    rho: float = 0.0,
    delta: Array | float = 0.0,
) -> Array:
    """What is sent."""
    received = as_float64(received)
    w = received.copy()
    for _ in range(steps):
        w = w - rate * (slope(w) + rho * (w - received - delta) + boost * malicious(w)[1])
    return w - received
