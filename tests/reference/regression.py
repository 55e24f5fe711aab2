"""Poisoned linear regression, TRIM, and coupled regressions: the definitions, in float64."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from reference.rows import Array, as_float64, length_of


def fit(x: Array, y: Array, ridge: float = 0.0) -> Array:
    """(w, b) of the least mean (w.x + b - y)^2 + ridge |w|^2: least squares with k more rows."""
    x, y = as_float64(x), as_float64(y)
    n, k = x.shape
    left = np.block([[x, np.ones((n, 1))], [np.sqrt(n * ridge) * np.eye(k), np.zeros((k, 1))]])
    return np.linalg.lstsq(left, np.concatenate([y, np.zeros(k)]), rcond=None)[0]


def squared_error(x: Array, y: Array) -> Callable[[Array], tuple[float, Array]]:
    """theta -> mean squared error and its slope."""
    x, y = as_float64(x), as_float64(y)

    def error(theta: Array) -> tuple[float, Array]:
        gaps = x @ theta[:-1] + theta[-1] - y
        slope = 2 / len(y) * np.append(gaps @ x, np.sum(gaps))
        return float(np.mean(gaps**2)), slope

    return error


def model_slopes(
    x: Array, y: Array, poison_x: Array, poison_y: Array, c: int, ridge: float, official: bool
) -> Array:
    """d(w, b) / d(x_c, y_c), (k + 1, k + 1), from the KKT system as the sheet writes it."""
    x, poison_x = as_float64(x), as_float64(poison_x)
    theta = fit(np.concatenate([x, poison_x]), np.concatenate([y, poison_y]), ridge)
    w, b = theta[:-1], theta[-1]
    rows = x if official else np.concatenate([x, poison_x])
    n, k = rows.shape
    mean = rows.mean(axis=0)
    left = np.block([[rows.T @ rows / n + ridge * np.eye(k), mean[:, None]], [mean[None], 1.0]])
    x_c = poison_x[c]
    gap = w @ x_c + b - poison_y[c]
    right = np.block([[np.outer(x_c, w) + gap * np.eye(k), -x_c[:, None]], [w[None], -1.0]])
    return np.linalg.solve(left, -right / n)


def gradient(
    objective: Callable[[Array], tuple[float, Array]],
    x: Array,
    y: Array,
    poison_x: Array,
    poison_y: Array,
    ridge: float,
    official: bool,
) -> Array:
    """(p, k + 1), one row for each point."""
    theta = fit(np.concatenate([x, poison_x]), np.concatenate([y, poison_y]), ridge)
    slope = objective(theta)[1]
    every = range(len(poison_y))
    of = (x, y, poison_x, poison_y)
    return np.array([slope @ model_slopes(*of, c, ridge, official) for c in every])


def official_points(
    x: Array, y: Array, poison_x: Array, poison_y: Array, ridge: float, sweeps: int, step: float,
    shrink: float = 0.05, move_responses: bool = True, tries: int = 100,
) -> tuple[Array, Array, list[float]]:  # fmt: skip
    """The official loop, with W of all points after every sweep."""
    x, y = as_float64(x), as_float64(y)
    objective = squared_error(x, y)

    def value(poison_x: Array, poison_y: Array) -> float:
        joined = np.concatenate([x, poison_x]), np.concatenate([y, poison_y])
        return objective(fit(*joined, ridge))[0]

    at_x, at_y = as_float64(poison_x), as_float64(poison_y)
    values = [value(at_x, at_y)]
    for _ in range(sweeps):
        up = gradient(objective, x, y, at_x, at_y, ridge, official=True)
        if not move_responses:
            up[:, -1] = 0
        new_x, new_y = at_x.copy(), at_y.copy()
        for c in range(len(at_y)):
            towards = up[c] / length_of(up[c]) if np.any(up[c]) else up[c]
            here = np.append(at_x[c], at_y[c])
            before = value(here[None, :-1], here[-1:])
            for i in range(tries):
                there = np.clip(here + step * shrink**i * towards, 0, 1)
                after = value(there[None, :-1], there[-1:])
                if after < before and abs(after - before) >= 1e-8:
                    break
                here, change, before = there, abs(after - before), after
                if change < 1e-8:
                    break
            new_x[c], new_y[c] = here[:-1], here[-1]
        after = value(new_x, new_y)
        if after < values[-1]:
            step *= 0.75
            values.append(values[-1])
        else:
            at_x, at_y = new_x, new_y
            values.append(after)
    return at_x, at_y, values


class Trimmed(NamedTuple):
    keep: set[int]
    theta: Array
    losses: list[float]


def trim(x: Array, y: Array, count: int, ridge: float = 0.0, steps: int = 400) -> Trimmed:
    """From all examples, until the ones kept repeat."""
    x, y = as_float64(x), as_float64(y)
    keep = list(range(len(y)))
    losses = []
    for _ in range(steps):
        theta = fit(x[keep], y[keep], ridge)
        gaps = (x @ theta[:-1] + theta[-1] - y) ** 2
        losses.append(float(np.mean(gaps[keep]) + ridge * theta[:-1] @ theta[:-1]))
        new = sorted(range(len(y)), key=lambda i: (gaps[i], i))[:count]
        if set(new) == set(keep):
            break
        keep = sorted(new)
    return Trimmed(set(keep), theta, losses)


def coupled_loss(
    models: Array, x: Array, y: Array, coupling: Array, strength: float, ridge: float
) -> float:
    """The lower level of AT2FL with squared losses, W as rows."""
    fits = sum(np.sum((x[i] @ models[i] - y[i]) ** 2) for i in range(len(x)))
    return fits + strength * np.trace(models.T @ coupling @ models) + ridge * np.sum(models**2)


def coupled_models(
    x: Array, y: Array, coupling: Array, strength: float, ridge: float, sweeps: int = 3000
) -> Array:
    """Node after node, each given the others."""
    x, y = as_float64(x), as_float64(y)
    models = np.zeros((len(x), x.shape[2]))
    for _ in range(sweeps):
        for i in range(len(x)):
            others = coupling[i] @ models - coupling[i, i] * models[i]
            own = x[i].T @ x[i] + (ridge + strength * coupling[i, i]) * np.eye(x.shape[2])
            models[i] = np.linalg.solve(own, x[i].T @ y[i] - strength * others)
    return models
