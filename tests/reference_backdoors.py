"""Slow NumPy float64 definitions of poisons and backdoors, with loops, written from the papers' words.

What is random, an owner or a draw, is an argument.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np

Array = np.ndarray
Trigger = Callable[[Array], Array]
"""One input -> the input with the trigger."""


def orthogonal_parts(
    difference: Array, owner: Array, attackers: Sequence[bool], gamma: float
) -> Array:
    """Bagdasaryan et al., section VI-A: the attackers who are there share out the parameters; parameter
    j belongs to the one with number owner[j] among them, who sends gamma (X - G)_j."""
    rows = np.zeros((len(attackers), len(difference)))
    there = [i for i, is_there in enumerate(attackers) if is_there]
    for j, value in enumerate(difference):
        if there:
            rows[there[int(owner[j])], j] = gamma * float(value)
    return rows


def turn(mask: Sequence[float], c: int, skip: int) -> list[int]:
    """The first c present examples after the first ``skip`` present ones."""
    present = [i for i, weight in enumerate(mask) if weight > 0]
    return present[skip : skip + c]


def replace_by(
    x: Array,
    y: Array,
    mask: Sequence[float],
    backdoor: tuple[Array, Array],
    drawn: Sequence[int],
    noise: Array,
    c: int,
    skip: int,
) -> tuple[Array, Array]:
    """Algorithm 2, replace(c, b, D): place i gets example drawn[i] of D with noise[i] added."""
    x, y = np.array(x, np.float64), np.array(y)
    for i in turn(mask, c, skip):
        x[i] = np.asarray(backdoor[0][drawn[i]], np.float64) + noise[i]
        y[i] = backdoor[1][drawn[i]]
    return x, y


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


def semantic_backdoor(
    x: Array, y: Array, rows: Sequence[int], held_out: int, target: int
) -> tuple[list[tuple[Array, int]], list[tuple[Array, int]], list[tuple[Array, int]]]:
    """Training examples of the attacker with its label, held-out ones, and everybody else's."""
    held = [(x[i], int(y[i])) for i in list(rows)[:held_out]]
    train = [(x[i], target) for i in list(rows)[held_out:]]
    rest = [(x[i], int(y[i])) for i in range(len(y)) if i not in set(map(int, rows))]
    return train, held, rest


def other_label(y: Sequence[int], steps: Sequence[int], num_classes: int) -> list[int]:
    """Each label becomes the one ``steps`` further on in the circle of classes, 1 <= steps < L."""
    return [(int(label) + int(step)) % num_classes for label, step in zip(y, steps, strict=True)]


def converged(logits: Array, y: Sequence[int], epsilon: float) -> bool:
    """Algorithm 2: L_class(X, D_backdoor) < epsilon, the mean cross-entropy."""
    total = 0.0
    for row, label in zip(np.asarray(logits, np.float64), y, strict=True):
        largest = max(row)
        total += math.log(sum(math.exp(v - largest) for v in row)) + largest - row[label]
    return total / len(y) < epsilon
