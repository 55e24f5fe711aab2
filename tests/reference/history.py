"""Rules that remember clients, round by round: FoolsGold, AFA, CONTRA, FLDetector."""

from __future__ import annotations

import math

import numpy as np
from scipy import special

from reference.rows import Array, present, unit_vector
from reference.rules import mean

Ids = list[int]


class FoolsGold:
    """Fung et al., Algorithm 1, by the authors' model-independent code."""

    def __init__(self, d: int, columns: list[int] | None = None) -> None:
        self.d, self.history = d, {}
        self.columns = list(range(d)) if columns is None else columns

    def before_the_logit(self, histories: list[Array]) -> tuple[Array, Array, Array]:
        """v, the pardoned cosines and a."""
        n = len(histories)
        unit = [unit_vector(h) for h in histories]
        # 1 - |a - b|^2 / 2: the cosine, with the digits that nearly parallel ones leave.
        cs = np.array([[1 - np.sum((a - b) ** 2) / 2 for b in unit] for a in unit])
        for i in range(n):
            for j in range(n):
                if not np.any(unit[i]) or not np.any(unit[j]):
                    cs[i, j] = 0
        np.fill_diagonal(cs, -1)
        v = [max(cs[i]) + 1e-5 if n > 1 else -1 + 1e-5 for i in range(n)]
        pardoned = cs.copy()
        for i in range(n):
            for j in range(n):
                if i != j and v[i] < v[j]:
                    pardoned[i, j] = cs[i, j] * v[i] / v[j]
        a = np.array([min(max(1 - max(pardoned[i]), 0), 1) for i in range(n)])
        if np.max(a, initial=0) > 0:
            a = a / np.max(a)
        return np.array(v), pardoned, np.where(a >= 1, 0.99, a)

    def weights(self, histories: list[Array], kappa: float = 1.0) -> Array:
        result = []
        for value in self.before_the_logit(histories)[2]:
            odds = kappa * (math.log(value / (1 - value) + 1e-5) + 0.5)
            result.append(min(max(odds, 0), 1))
        return np.array(result)

    def aggregate(
        self, updates: Array, ids: Ids, weights: Array | None = None, summed: bool = True
    ) -> tuple[Array, Array]:
        """The aggregate and the weights (n,) of all rows, 0 for absent ones."""
        rows, _, index = present(updates, weights)
        for row, i in zip(rows, index, strict=True):
            chosen = row[self.columns]
            self.history[ids[i]] = self.history.get(ids[i], np.zeros(len(chosen))) + chosen
        trust = np.zeros(len(updates))
        if len(rows):
            trust[index] = self.weights([self.history[ids[i]] for i in index])
        total = sum((trust[i] * row for i, row in zip(index, rows, strict=True)), np.zeros(self.d))
        if not summed and np.sum(trust) > 0:
            total = total / np.sum(trust)
        return total, trust


class AFA:
    """Munoz-Gonzalez et al., Algorithm 1."""

    def __init__(self, block: float = 0.95) -> None:
        self.counts: dict[int, list[float]] = {}
        self.blocked: set[int] = set()
        self.block = block

    def aggregate(
        self,
        updates: Array,
        ids: Ids,
        weights: Array | None = None,
        params: Array | None = None,
    ) -> tuple[Array, Ids]:
        """The aggregate, and the rows that were good."""
        rows, masses, index = present(updates, weights)
        models = rows if params is None else rows + params
        good = [k for k, i in enumerate(index) if ids[i] not in self.blocked]
        candidates = list(good)
        p = [self._probability(ids[i]) * mass for i, mass in zip(index, masses, strict=True)]
        xi = 2.0
        while good:
            g = unit_vector(mean(models[good], np.array([p[k] for k in good])))
            s = {k: float(unit_vector(models[k]) @ g) for k in good}
            values = np.array(list(s.values()))
            middle, std = np.median(values), np.std(values)
            if np.mean(values) < middle:
                bad = [k for k in good if s[k] < middle - xi * std]
            else:
                bad = [k for k in good if s[k] > middle + xi * std]
            if not bad:
                break
            good = [k for k in good if k not in bad]
            xi += 0.5
        result = (
            mean(rows[good], np.array([p[k] for k in good])) if good else np.zeros(rows.shape[1])
        )
        for k in candidates:
            own = self.counts.setdefault(ids[index[k]], [3.0, 3.0])
            own[k not in good] += 1
            if special.betainc(*own, 0.5) >= self.block:
                self.blocked.add(ids[index[k]])
        return result, [int(index[k]) for k in good]

    def _probability(self, client: int) -> float:
        alpha, beta = self.counts.get(client, [3.0, 3.0])
        return alpha / (alpha + beta)


def cosine(a: Array, b: Array) -> float:
    """With the digits that nearly parallel vectors leave."""
    if not np.any(a) or not np.any(b):
        return 0.0
    return 1 - float(np.sum((unit_vector(a) - unit_vector(b)) ** 2)) / 2


class Contra:
    """CONTRA, as ``aggregators.contra`` reads it."""

    def __init__(self, d: int, k: int, threshold: float = 0.5, delta: float = 0.1) -> None:
        self.d, self.k, self.threshold, self.delta = d, k, threshold, delta
        self.history: dict[int, Array] = {}
        self.reputation: dict[int, float] = {}

    def _tau(self, cs: Array) -> list[float]:
        n = len(cs)
        result = []
        for i in range(n):
            largest = sorted((cs[i, j] for j in range(n) if j != i), reverse=True)[: self.k]
            result.append(sum(largest) / max(len(largest), 1))
        return result

    def aggregate(
        self, updates: Array, ids: Ids, weights: Array | None = None
    ) -> tuple[Array, Array]:
        rows, _, index = present(updates, weights)
        own = []
        for row, i in zip(rows, index, strict=True):
            self.history[ids[i]] = self.history.get(ids[i], np.zeros(self.d)) + row
            own.append(self.history[ids[i]])
        cs = np.array([[cosine(a, b) for b in own] for a in own]).reshape(len(own), len(own))
        tau = self._tau(cs)
        for t, i in zip(tau, index, strict=True):
            change = -self.delta if t > self.threshold else self.delta
            self.reputation[ids[i]] = min(max(self.reputation.get(ids[i], 1.0) + change, 0), 1)
        pardoned = cs.copy()
        for i, mine in enumerate(tau):
            for j, other in enumerate(tau):
                if i != j and 0 < mine < other:
                    pardoned[i, j] = cs[i, j] * mine / other
        a = np.array([min(max(1 - t, 0), 1) for t in self._tau(pardoned)])
        if np.max(a, initial=0) > 0:
            a = a / np.max(a)
        trust = np.zeros(len(updates))
        for value, i in zip(a, index, strict=True):
            value = 0.99 if value >= 1 else value
            odds = math.log(value / (1 - value)) + 0.5 if value > 0 else 0
            trust[i] = min(max(odds, 0), 1)
        total = sum((trust[i] * row for i, row in zip(index, rows, strict=True)), np.zeros(self.d))
        return total, trust


def bfgs(steps: list[Array], changes: list[Array]) -> Array:
    """The matrix of the BFGS updates from sigma I, sigma of the newest pair."""
    s, y = steps[-1], changes[-1]
    b = np.eye(len(s)) * (y @ s) / (s @ s)
    for s, y in zip(steps, changes, strict=True):
        b = b - np.outer(b @ s, b @ s) / (s @ b @ s) + np.outer(y, y) / (y @ s)
    return b


class FLDetector:
    """The scores of Zhang et al., without removals."""

    def __init__(self, window: int) -> None:
        self.window = window
        self.steps: list[Array] = []
        self.changes: list[Array] = []
        self.rows: dict[int, Array] = {}
        self.distances: dict[int, list[float]] = {}
        self.params: Array | None = None
        self.last: Array | None = None

    def scores(
        self, updates: Array, ids: Ids, params: Array, weights: Array | None = None
    ) -> Array:
        rows, masses, index = present(updates, weights)
        result = np.zeros(len(updates))
        step = None if self.params is None else params - self.params
        if self.steps and step is not None:
            moved = bfgs(self.steps[-self.window :], self.changes[-self.window :]) @ step
            known = [k for k, i in enumerate(index) if ids[i] in self.rows]
            distance = {
                k: float(np.linalg.norm(rows[k] - self.rows[ids[index[k]]] - moved)) for k in known
            }
            for k, value in distance.items():
                client = ids[index[k]]
                self.distances.setdefault(client, []).append(value / sum(distance.values()))
                result[index[k]] = np.mean(self.distances[client][-self.window :])
        aggregate = mean(rows, masses)
        if step is not None and np.any(step):
            self.steps.append(step)
            self.changes.append(aggregate - self.last)
        self.params, self.last = params, aggregate
        for k, i in enumerate(index):
            self.rows[ids[i]] = rows[k]
        return result


def within(x: Array, k: int) -> tuple[float, list[bool]]:
    """The smallest sum of squares within k = 1 or 2 clusters of numbers, and who is in the upper one."""
    order = sorted(range(len(x)), key=lambda i: (x[i], i))

    def squares(rows: list[int]) -> float:
        own = x[rows]
        return float(np.sum((own - np.mean(own)) ** 2)) if len(rows) else 0.0

    if k == 1 or len(x) < 2:
        return squares(order), [False] * len(x)
    split = min(range(1, len(x)), key=lambda m: squares(order[:m]) + squares(order[m:]))
    upper = set(order[split:])
    return squares(order[:split]) + squares(order[split:]), [i in upper for i in range(len(x))]


def upper_cluster(scores: Array, samples: Array) -> list[bool]:
    """The upper of two clusters, if the gap statistic with these samples (B, n) finds more than one."""
    scores = np.asarray(scores, np.float64)
    nobody = [False] * len(scores)
    if len(scores) < 3 or np.ptp(scores) == 0:
        return nobody
    x = (scores - scores.min()) / np.ptp(scores)
    logs = [[math.log(within(row, k)[0] + 1e-12) for row in samples] for k in (1, 2)]
    gaps = [np.mean(logs[k - 1]) - math.log(within(x, k)[0] + 1e-12) for k in (1, 2)]
    s_2 = np.std(logs[1]) * math.sqrt(1 + 1 / len(samples))
    return within(x, 2)[1] if gaps[0] < gaps[1] - s_2 else nobody
