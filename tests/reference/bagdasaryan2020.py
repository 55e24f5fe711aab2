"""Eugene Bagdasaryan, Andreas Veit, Yiqing Hua, Deborah Estrin, Vitaly Shmatikov, "How To Backdoor
Federated Learning", AISTATS 2020: model replacement, the backdoors, the data of their experiments, and
the defences that they discuss. Equations and sections are theirs. What is random is an argument."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np

from reference.engine import softmax, softmax_regression_sgd
from reference.rows import Array, as_float64, length_of, present, unit_vector
from reference.rules import mean


def fedavg_eta(updates: Array, eta: float, num_clients: int, weights: Array | None = None) -> Array:
    """Eq. 1: eta / n times the sum of the updates of the participants, n all clients."""
    rows, _, _ = present(updates, weights)
    total = np.zeros(rows.shape[1])
    for row in rows:
        total = total + row
    return eta / num_clients * total


def norm_clipping(updates: Array, bound: float, weights: Array | None = None) -> Array:
    """Bagdasaryan et al. 2020, section VI-C: the weighted mean of u_i min(1, S / |u_i|)."""
    rows, weights, _ = present(updates, weights)
    clipped = [
        row * min(1.0, bound / length) if (length := length_of(row)) else row for row in rows
    ]
    return mean(np.array(clipped).reshape(rows.shape), weights)


def sybil_selection(updates: Array, largest: float, weights: Array | None = None) -> list[int]:
    """Rows without another present row at a cosine above ``largest``; a zero row has cosine 0."""
    rows, _, which = present(updates, weights)
    keep = []
    for i, row in enumerate(rows):
        cosines = [
            np.dot(unit_vector(row), unit_vector(other))
            if length_of(row) and length_of(other)
            else 0.0
            for j, other in enumerate(rows)
            if j != i
        ]
        if not cosines or max(cosines) <= largest:
            keep.append(int(which[i]))
    return keep


def auror_selection(
    updates: Array, threshold: float, weights: Array | None = None
) -> tuple[list[int], int]:
    """Rows kept, and the number of indicative coordinates; see ``aggregators.auror``."""
    rows, _, which = present(updates, weights)
    n = len(rows)
    indicative = []
    for j in range(rows.shape[1]):
        values = np.sort(rows[:, j])
        spreads = {}
        for split in range(1, n):  # the best split by k-means' own objective
            low, high = values[:split], values[split:]
            cost = ((low - low.mean()) ** 2).sum() + ((high - high.mean()) ** 2).sum()
            spreads[cost] = high.mean() - low.mean()
        if spreads and spreads[min(spreads)] > threshold:
            indicative.append(j)
    if not indicative:
        return [int(i) for i in which], 0
    x = rows[:, indicative]
    pairs = [(i, j) for i in range(n) for j in range(i + 1, n)]
    i, j = max(pairs, key=lambda pair: ((x[pair[0]] - x[pair[1]]) ** 2).sum())
    centres = [x[i], x[j]]
    for _ in range(11):
        second = np.array(
            [((r - centres[1]) ** 2).sum() < ((r - centres[0]) ** 2).sum() for r in x]
        )
        centres = [x[~second].mean(0), x[second].mean(0)]
    if 2 * second.sum() == n:
        return [int(i) for i in which], len(indicative)
    smaller = second if 2 * second.sum() < n else ~second
    return [int(i) for i in which[~smaller]], len(indicative)


def accuracy_auditing_selection(
    updates: Array,
    accuracy: Callable[[Array], float],
    drop: float,
    received: Array,
    weights: Array | None = None,
) -> list[int]:
    """Section VI-A: rows whose model, received + row, is no worse than the median row's by ``drop``."""
    rows, _, which = present(updates, weights)
    accuracies = [float(accuracy(as_float64(received) + row)) for row in rows]
    if not accuracies:
        return []
    typical = float(np.median(accuracies))
    return [int(i) for i, value in zip(which, accuracies, strict=True) if value >= typical - drop]


def cosine_to_model_selection(
    updates: Array, received: Array, deviations: float, weights: Array | None = None
) -> list[int]:
    """Section VI-B: rows whose cosine of received + row and received lies within so many robust standard
    deviations (1.4826 median absolute deviations) of the median row's.

    With parts a along the received model and b across it, 1 - cos = b^2 / (h (h + a)), h = |(a, b)|: for
    short rows the plain formula has no digits.
    """
    rows, _, which = present(updates, weights)
    wide, model = rows.astype(np.longdouble), np.asarray(received).astype(np.longdouble)
    length = np.sqrt(np.sum(model * model))
    distances = []
    for row in wide:
        along = np.sum(row * model) / length
        a, b = length + along, np.sqrt(np.sum((row - along / length * model) ** 2))
        h = np.sqrt(a * a + b * b)
        if h == 0:
            distances.append(np.longdouble(1))
        else:
            distances.append(b * b / (h * (h + a)) if a > 0 else 1 - a / h)
    if not distances:
        return []
    away = np.abs(np.array(distances) - np.median(distances))
    limit = deviations * np.longdouble(1.4826) * np.median(away)
    return [int(i) for i, value in zip(which, away, strict=True) if value <= limit]


def p_distance(x: Array, g: Array, p: float) -> float:
    """||X - G||_p."""
    sizes = [abs(float(a) - float(b)) for a, b in zip(x, g, strict=True)]
    if math.isinf(p):
        return max(sizes)
    return sum(size**p for size in sizes) ** (1 / p)


def cosine_distance(x: Array, g: Array) -> float:
    """Section VI-A: 1 - cos(X, G)."""
    x, g = as_float64(x), as_float64(g)
    return 1 - float(np.sum(x * g)) / (math.sqrt(np.sum(x * x)) * math.sqrt(np.sum(g * g)))


def equal_parts(difference: Array, z: int, gamma: float) -> Array:
    """z rows of gamma / z (X - G)."""
    return np.array([gamma / z * as_float64(difference)] * z)


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


def norm_bounded(difference: Array, z: int, bound: float) -> Array:
    """z rows of S (X - G) / ||X - G||_2 (eq. 5; eq. 6 without its misprint); zero if X = G."""
    difference = as_float64(difference)
    length = length_of(difference)
    return np.array([bound / length * difference if length else difference] * z)


def constrain_and_scale(
    weights: Array,
    bias: Array,
    x: Array,
    y: Array,
    backdoor: tuple[Array, Array],
    alpha: float,
    rates: Sequence[float],
    epsilon: float,
    gamma: float,
) -> tuple[Array, Array, int]:
    """Algorithm 2 for softmax regression, one batch per epoch, L_ano = ||X - G||_2.

    ``rates`` are those of the epochs. Returns gamma (X - G) of weights and bias, and the epochs made.
    """
    w_g, b_g = as_float64(weights), as_float64(bias)
    w, b = w_g.copy(), b_g.copy()
    made = 0
    for rate in rates:
        losses = [
            -math.log(softmax(as_float64(image) @ w + b)[label])
            for image, label in zip(*backdoor, strict=True)
        ]
        if sum(losses) / len(losses) < epsilon:
            break
        step_w, step_b = softmax_regression_sgd(w, b, [(x, y)], 1.0)  # minus the gradients
        length = math.sqrt(np.sum((w - w_g) ** 2) + np.sum((b - b_g) ** 2))
        pull_w, pull_b = ((w - w_g) / length, (b - b_g) / length) if length else (0.0, 0.0)
        w = w + rate * (alpha * step_w - (1 - alpha) * pull_w)
        b = b + rate * (alpha * step_b - (1 - alpha) * pull_b)
        made += 1
    return gamma * (w - w_g), gamma * (b - b_g), made


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


def converged(logits: Array, y: Sequence[int], epsilon: float) -> bool:
    """Algorithm 2: L_class(X, D_backdoor) < epsilon, the mean cross-entropy."""
    total = 0.0
    for row, label in zip(np.asarray(logits, np.float64), y, strict=True):
        largest = max(row)
        total += math.log(sum(math.exp(v - largest) for v in row)) + largest - row[label]
    return total / len(y) < epsilon


def semantic_backdoor(
    x: Array, y: Array, rows: Sequence[int], held_out: int, target: int
) -> tuple[list[tuple[Array, int]], list[tuple[Array, int]], list[tuple[Array, int]]]:
    """Training examples of the attacker with its label, held-out ones, and everybody else's."""
    held = [(x[i], int(y[i])) for i in list(rows)[:held_out]]
    train = [(x[i], target) for i in list(rows)[held_out:]]
    rest = [(x[i], int(y[i])) for i in range(len(y)) if i not in set(map(int, rows))]
    return train, held, rest


def dirichlet_truncated(by_label: Sequence[Sequence[int]], shares: Array) -> list[list[int]]:
    """The authors' split: examples of each label in the order in which they are dealt, shares
    (labels, participants) -> each participant's examples."""
    own: list[list[int]] = [[] for _ in range(shares.shape[1])]
    class_size = len(by_label[0])
    for label, examples in enumerate(by_label):
        left = list(examples)
        for participant in range(shares.shape[1]):
            number = min(len(left), round(class_size * float(shares[label, participant])))
            own[participant] += left[:number]
            left = left[number:]
    return own


def shift(x: Array, offsets: Array) -> Array:
    """y[i, r, c] = x[i, r + offsets[i, 0], c + offsets[i, 1]], 0 outside."""
    _, height, width, _ = x.shape
    y = np.zeros_like(x)
    for i in range(len(x)):
        for r in range(height):
            for c in range(width):
                row, column = r + offsets[i][0], c + offsets[i][1]
                if 0 <= row < height and 0 <= column < width:
                    y[i, r, c] = x[i, row, column]
    return y


def rotate(x: Array, degrees: Array) -> Array:
    """Counter-clockwise about the centre, bilinear, 0 outside.

    In coordinates (right, up) from the centre, the value at p comes from p turned back.
    """
    _, height, width, channels = x.shape
    y = np.zeros(x.shape)

    def pixel(image: Array, row: int, column: int) -> Array:
        inside = 0 <= row < height and 0 <= column < width
        return image[row, column] if inside else np.zeros(channels)

    for i in range(len(x)):
        turn = math.radians(float(degrees[i]))
        for r in range(height):
            for c in range(width):
                right, up = c - (width - 1) / 2, (height - 1) / 2 - r
                from_right = math.cos(turn) * right + math.sin(turn) * up
                from_up = -math.sin(turn) * right + math.cos(turn) * up
                row, column = (height - 1) / 2 - from_up, from_right + (width - 1) / 2
                top, left = math.floor(row), math.floor(column)
                for dr in (0, 1):
                    for dc in (0, 1):
                        share = (1 - abs(row - top - dr)) * (1 - abs(column - left - dc))
                        y[i, r, c] += share * pixel(x[i], top + dr, left + dc)
    return y


def lstm(
    x: Array, input_kernel: Array, hidden_kernel: Array, input_bias: Array, hidden_bias: Array
) -> Array:
    """Hidden states (T, h) of one sequence (T, F), as in the documentation of PyTorch's ``nn.LSTM``.

    Kernels (F, 4 h) and (h, 4 h) and biases (4 h,) hold the gates input, forget, cell, output.
    """
    h = len(hidden_kernel)
    hidden, cell, states = np.zeros(h), np.zeros(h), []
    for t in range(len(x)):
        gates = as_float64(x[t]) @ as_float64(input_kernel) + as_float64(input_bias)
        gates = gates + hidden @ as_float64(hidden_kernel) + as_float64(hidden_bias)
        i, f, g, o = (gates[j * h : (j + 1) * h] for j in range(4))
        cell = cell / (1 + np.exp(-f)) + np.tanh(g) / (1 + np.exp(-i))
        hidden = np.tanh(cell) / (1 + np.exp(-o))
        states.append(hidden)
    return np.array(states)


def word_lstm(params: dict, words: Array) -> Array:
    """Logits (T, V) of one sequence of words (T,); layers ``LSTM_0``, ``LSTM_1``, ..., tied weights."""
    embedding = as_float64(params["embedding"])
    states = embedding[np.asarray(words)]
    for layer in range(len(params) - 2):
        states = lstm(states, **params[f"LSTM_{layer}"])
    return states @ embedding.T + as_float64(params["bias"])


def next_word_loss(logits: Array, y: Array, mask: Array, token_mask: Array) -> float:
    """Weighted mean cross-entropy: logits (b, T, V), y (b, T), mask (b,), token_mask (b, T)."""
    loss = total = 0.0
    for s in range(len(y)):
        for t in range(len(y[s])):
            weight = float(mask[s]) * float(token_mask[s][t])
            loss -= weight * math.log(softmax(as_float64(logits[s][t]))[y[s][t]])
            total += weight
    return loss / total if total else 0.0


def word_backdoor(
    x: Array, y: Array, token_mask: Array, sentences: Sequence[Sequence[int]], replaced: int
) -> tuple[Array, Array, Array]:
    """Fig. 3 (b): a sequence's text, x and the last word of y, ends with a trigger sentence, and only its
    last word is in the loss. Sequences 0 .. replaced - 1 get the sentences in turn."""
    x, y, token_mask = np.array(x), np.array(y), np.array(token_mask)
    for s in range(min(replaced, len(x))):
        sentence = sentences[s % len(sentences)]
        text = [*x[s], y[s][-1]]
        text[len(text) - len(sentence) :] = sentence
        x[s], y[s] = text[:-1], text[1:]
        token_mask[s] = 0
        token_mask[s][-1] = 1
    return x, y, token_mask
