"""Rules that remember clients, round by round: FoolsGold, AFA."""

from __future__ import annotations

import math

import numpy as np
from scipy import special

from reference.rows import Array, present, unit_vector
from reference.rules import mean

Ids = list[int]


class FoolsGold:
    """Fung et al., Algorithm 1, by the authors' model-independent code."""

    def __init__(self, d: int) -> None:
        self.d, self.history = d, {}

    def weights(self, histories: list[Array], kappa: float = 1.0) -> Array:
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
        result = []
        for value in a:
            value = 0.99 if value >= 1 else value
            odds = kappa * (math.log(value / (1 - value) + 1e-5) + 0.5)
            result.append(min(max(odds, 0), 1))
        return np.array(result)

    def aggregate(
        self, updates: Array, ids: Ids, weights: Array | None = None, summed: bool = True
    ) -> tuple[Array, Array]:
        """The aggregate and the weights (n,) of all rows, 0 for absent ones."""
        rows, _, index = present(updates, weights)
        for row, i in zip(rows, index, strict=True):
            self.history[ids[i]] = self.history.get(ids[i], np.zeros(self.d)) + row
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
