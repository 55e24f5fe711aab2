"""The plain federated round of softmax regression, client by client and example by example (section 2.1
of Fang et al. 2020)."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from reference.rows import Aggregate, Array, as_float64


def softmax(logits: Array) -> Array:
    """(classes,) -> (classes,) probabilities."""
    powers = np.exp(logits - np.max(logits))
    return powers / np.sum(powers)


def softmax_regression_sgd(
    weights: Array,
    bias: Array,
    batches: Sequence[tuple[Array, ...]],
    learning_rate: float,
    momentum: float = 0.0,
) -> tuple[Array, Array]:
    """Section 2.1, step II for multi-class logistic regression: the update (of weights, of bias).

    weights (features, classes), bias (classes,). A batch is (x (b, features), y (b,)) or
    (x, y, mask (b,)); its loss is the mean cross-entropy of the examples, weighted by the mask, and
    0 if the mask is all 0. Heavy-ball momentum from zero: v <- momentum v + gradient, then
    w <- w - learning_rate v.
    """
    w, b = as_float64(weights), as_float64(bias)
    velocity_w, velocity_b = np.zeros_like(w), np.zeros_like(b)
    for x, y, *rest in batches:
        x = as_float64(x)
        mask = as_float64(rest[0]) if rest else np.ones(len(x))
        gradient_w, gradient_b = np.zeros_like(w), np.zeros_like(b)
        for example in range(len(x)):
            residual = softmax(x[example] @ w + b)
            residual[y[example]] -= 1.0
            gradient_w += mask[example] * np.outer(x[example], residual)
            gradient_b += mask[example] * residual
        total = np.sum(mask) if np.sum(mask) > 0 else 1.0
        velocity_w = momentum * velocity_w + gradient_w / total
        velocity_b = momentum * velocity_b + gradient_b / total
        w = w - learning_rate * velocity_w
        b = b - learning_rate * velocity_b
    return w - as_float64(weights), b - as_float64(bias)


def federated_round(
    weights: Array,
    bias: Array,
    client_batches: Sequence[Sequence[tuple[Array, ...]]],
    aggregate: Aggregate,
    learning_rate: float,
    momentum: float = 0.0,
    attack: Callable[[Array], Array] = lambda updates: updates,
) -> tuple[Array, Array, Array]:
    """Section 2.1, steps I to III: the new weights and bias, and the updates the server received.

    A row of the updates (n, features * classes + classes) is the weights' change, row by row, then
    the bias's. ``attack`` maps the updates before the attack to those after it.
    """
    rows = []
    for batches in client_batches:
        change_w, change_b = softmax_regression_sgd(weights, bias, batches, learning_rate, momentum)
        rows.append(np.concatenate([change_w.ravel(), change_b]))
    updates = attack(np.array(rows))
    change = aggregate(updates)
    split = np.size(weights)
    new_weights = as_float64(weights) + change[:split].reshape(np.shape(weights))
    return new_weights, as_float64(bias) + change[split:], updates
