"""Luis Muñoz-González et al., "Towards Poisoning of Deep Learning Algorithms with Back-gradient
Optimization", AISec 2017: gradients through training, and labels of poisoning points."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from reference.engine import softmax
from reference.rows import Array, as_float64


class BackGradient(NamedTuple):
    """What an attacker of softmax regression knows; the points' features are not part of it."""

    clean_x: Array  # (E, features)
    clean_y: Array  # (E,)
    point_y: Array  # (k,)
    target_x: Array  # (V, features), of the objective
    target_y: Array  # (V,)
    learning_rate: float
    steps: int


def back_gradient(
    problem: BackGradient, weights: Array, bias: Array, x: Array, inversions: int | None = None
) -> tuple[float, Array]:
    """The objective after training on clean examples and points x (k, features); its gradient by x.

    Training starts from weights (features, classes), bias (classes,): ``steps`` full-batch steps on
    the mean cross-entropy of all E + k examples. The objective is the mean cross-entropy of the target
    examples. Going back, the iterate before (w, b) is the one remembered, or, with ``inversions``, that
    many fixed-point steps of v = w + learning_rate * gradient(v) from v = w; one is the authors'
    ``reverseLR2.m``, which then takes both second derivatives at v.
    """
    w, b = as_float64(weights), as_float64(bias)
    points = as_float64(x)
    all_x = np.concatenate([as_float64(problem.clean_x), points])
    all_y = np.concatenate([problem.clean_y, problem.point_y])
    rate = problem.learning_rate
    iterates = []
    for _ in range(problem.steps):
        iterates.append((w, b))
        slope_w, slope_b = _cross_entropy_slope(w, b, all_x, all_y)
        w, b = w - rate * slope_w, b - rate * slope_b
    losses = [
        -math.log(softmax(as_float64(x) @ w + b)[y])
        for x, y in zip(problem.target_x, problem.target_y, strict=True)
    ]
    dw, db = _cross_entropy_slope(w, b, as_float64(problem.target_x), problem.target_y)
    dx = np.zeros_like(points)
    for t in reversed(range(problem.steps)):
        if inversions is None:
            w, b = iterates[t]
        else:
            later_w, later_b = w, b
            for _ in range(inversions):
                slope_w, slope_b = _cross_entropy_slope(w, b, all_x, all_y)
                w, b = later_w + rate * slope_w, later_b + rate * slope_b
        number = len(all_x)
        hessian_w, hessian_b, mixed = np.zeros_like(w), np.zeros_like(b), np.zeros_like(all_x)
        for i in range(number):
            p = softmax(all_x[i] @ w + b)
            change = all_x[i] @ dw + db  # of the logits, along (dw, db)
            change_p = p * (change - np.sum(p * change))
            residual = p.copy()
            residual[all_y[i]] -= 1.0
            hessian_w += np.outer(all_x[i], change_p) / number
            hessian_b += change_p / number
            mixed[i] = (dw @ residual + w @ change_p) / number  # of the slope by x, w @ residual
        dx = dx - rate * mixed[len(problem.clean_x) :]
        dw, db = dw - rate * hessian_w, db - rate * hessian_b
    return float(np.mean(losses)), dx


def _cross_entropy_slope(w: Array, b: Array, x: Array, y: Array) -> tuple[Array, Array]:
    """Gradient of the mean cross-entropy by weights and bias."""
    slope_w, slope_b = np.zeros_like(w), np.zeros_like(b)
    for i in range(len(x)):
        residual = softmax(x[i] @ w + b)
        residual[y[i]] -= 1.0
        slope_w += np.outer(x[i], residual) / len(x)
        slope_b += residual / len(x)
    return slope_w, slope_b


def other_label(y: Sequence[int], steps: Sequence[int], num_classes: int) -> list[int]:
    """Each label becomes the one ``steps`` further on in the circle of classes, 1 <= steps < L."""
    return [(int(label) + int(step)) % num_classes for label, step in zip(y, steps, strict=True)]
