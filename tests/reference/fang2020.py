"""Minghong Fang, Xiaoyu Cao, Jinyuan Jia, Neil Zhenqiang Gong, "Local Model Poisoning Attacks to
Byzantine-Robust Federated Learning", USENIX Security 2020: its attacks and its defences.

Sections, equations and appendices are the paper's own. Its m workers are our ``n`` clients; its c
compromised workers are the malicious rows. Rows are updates, w_Re is the zero vector. (The trim attack's
factor b needs the models: see ``fang_trim_full_interval``.)
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from reference.rows import Aggregate, Array, as_float64, present
from reference.rules import krum, krum_index, krum_scores, mean


def softmax_regression_metrics(params: Array, x: Array, y: Array) -> tuple[float, float]:
    """Error rate and mean cross-entropy on x (V, k), y (V,) of the model whose flat parameters are
    the biases (L,), then the weights (k, L): the order in which flax ravels them."""
    labels = len(params) // (x.shape[1] + 1)
    bias, weights = params[:labels], params[labels:].reshape(x.shape[1], labels)
    wrong, loss = 0, 0.0
    for example, label in zip(as_float64(x), y, strict=True):
        scores = [bias[k] + float(np.sum(example * weights[:, k])) for k in range(labels)]
        wrong += scores.index(max(scores)) != label
        top = max(scores)
        loss += top + math.log(sum(math.exp(s - top) for s in scores)) - scores[label]
    return wrong / len(y), loss / len(y)


def impacts(
    rule: Callable[[Array, Array], Array],
    metric: Callable[[Array], float],
    updates: Array,
    weights: Array,
    received: Array,
) -> Array:
    """Section 5: each row's impact, E_A - E_B; -inf for absent rows. ``rule(updates, weights)``."""
    _, _, index = present(updates, weights)
    with_all = metric(received + rule(updates, weights))
    result = np.full(len(updates), -np.inf)
    for i in index:
        without = np.array(weights, dtype=np.float64)
        without[i] = 0
        result[i] = with_all - metric(received + rule(updates, without))
    return result


def largest_impacts(values: Array, c: int) -> set[int]:
    """The c rows of largest impact; absent ones are never among them. Ties: the lowest rows."""
    ranked = sorted(range(len(values)), key=lambda i: (-values[i], i))
    return {i for i in ranked[:c] if values[i] > -np.inf}


def replace_rows(updates: Array, malicious: Array, row: Array) -> Array:
    """The matrix after the attack: every malicious row of ``updates`` replaced by ``row``."""
    attacked = as_float64(updates)
    for i in range(len(attacked)):
        if malicious[i]:
            attacked[i] = row
    return attacked


def gaussian_moments(updates: Array) -> tuple[Array, Array]:
    """Section 4.1, Gaussian attack: mean and standard deviation of each column over all n rows.

    The standard deviation divides by n (the maximum likelihood estimate of the fitted Gaussian).
    """
    updates = as_float64(updates)
    centre = np.sum(updates, axis=0) / len(updates)
    return centre, np.sqrt(np.sum((updates - centre) ** 2, axis=0) / len(updates))


def changing_direction(vector: Array) -> Array:
    """Sections 3.1 and 3.2: s_j = 1 where the update is larger than 0, otherwise (also at 0) -1."""
    return np.array([1.0 if value > 0 else -1.0 for value in as_float64(vector)])


class KrumAttack(NamedTuple):
    """What solving Equation 2 gives: every malicious row sends -lam * direction."""

    lam: float
    direction: Array
    """(d,) of +-1."""
    found: bool
    """Krum selects a crafted row at ``lam``. If not, ``lam`` is the first one below threshold."""
    halvings: int


class PartialKrumAttack(NamedTuple):
    """What solving Equation 4 gives."""

    lam: float
    direction: Array
    found: bool
    copies: int
    """Crafted rows in the simulation when the search ended."""


def _lambda_bound(rows: Array, neighbours: int, benign_neighbours: int) -> float:
    """Equation 8, with its two counts left open. ``rows`` play the benign clients."""
    rows = as_float64(rows)
    d = rows.shape[1]
    least = float(np.min(krum_scores(rows, 0, max(neighbours, 1))))
    farthest = max(math.sqrt(np.sum(row**2)) for row in rows)
    return math.sqrt(least / (max(benign_neighbours, 1) * d)) + farthest / math.sqrt(d)


def fang_krum_bound(benign: Array, n: int, c: int, f: int | None = None) -> float:
    """Theorem 1, Equation 3: the upper bound of lambda, from the n - c benign updates (n - c, d).

    sqrt(min_i sum of the n - c - 2 smallest D^2(w_l, w_i) over benign l != i / ((n - 2c - 1) d))
    + max_i D(w_i, w_Re) / sqrt(d). There are n - c - 1 other benign rows, so all but the farthest
    count.

    The theorem is about Krum with f = c, the default. With another f the proof (Appendix C) goes
    through with Krum's q = n - f - 2 neighbours: in Equation 6 both sums have q terms; from a
    crafted row c - 1 of them are zeros, so Equation 7 keeps q - (c - 1) = n - c - f - 1 benign
    ones, which is the divisor; on the right, an own row's q nearest of all rows are no farther than
    its q nearest benign rows, of which there are enough if q <= n - c - 1, that is f >= c - 1.

    It needs n - c - f - 1 >= 1. Otherwise the crafted rows fill each other's neighbourhoods, their
    score is 0 at any lambda and nothing bounds it; the divisor is then 1, a mere starting point.
    So is the sum over all n - c - 1 other benign rows where f < c - 1.
    """
    if len(benign) != n - c:
        raise ValueError(f"n - c benign rows are needed, got {len(benign)} with n={n}, c={c}")
    f = c if f is None else f
    return _lambda_bound(benign, n - f - 2, n - c - f - 1)


def fang_krum_full_lambda(
    updates: Array,
    malicious: Array,
    f: int | None = None,
    threshold: float = 1e-5,
    deviation_goal: bool = False,
    before: Aggregate | None = None,
) -> KrumAttack:
    """Section 3.2, full knowledge: solve Equation 2 by halving from Theorem 1's bound.

    ``updates`` (n, d) are those before the attack, all present. Krum's f is the number c of
    malicious rows by default; another f changes Krum and, by the same proof, the bound. All
    malicious rows are equal while lambda is sought; lambda is accepted if Krum selects any of them.
    The bound is tried first, however small. Appendix B's deviation goal has direction 1 everywhere.
    ``before``: the rule by which the direction goes, instead of Krum.
    """
    updates = as_float64(updates)
    malicious = np.asarray(malicious, dtype=bool)
    n, d = updates.shape
    c = int(np.sum(malicious))
    f = c if f is None else f
    change = krum(updates, f) if before is None else before(updates)
    direction = np.ones(d) if deviation_goal else changing_direction(change)
    lam = fang_krum_bound(updates[~malicious], n, c, f)
    halvings = 0
    while True:
        if malicious[krum_index(replace_rows(updates, malicious, -lam * direction), f)]:
            return KrumAttack(lam, direction, True, halvings)
        lam = lam / 2
        halvings += 1
        if lam < threshold:
            return KrumAttack(lam, direction, False, halvings)


def fang_krum_partial_bound(own: Array, copies: int, f: int) -> float:
    """Section 3.2, partial knowledge, "similar to Theorem 1": the bound of lambda in Equation 4.

    Appendix C with the c own rows as the benign ones and k crafted copies, so m = c + k. Krum sums
    q = c + k - f - 2 distances. Those from a crafted row to the k - 1 other copies are 0, so at
    least p = q - (k - 1) = c - f - 1 own rows count in its score (Equation 7), each with at least
    (sqrt(d) lambda - max_i D(w_i, w_Re))^2 once lambda is past that maximum / sqrt(d). On the right
    of Equation 6, an own row's q nearest of all rows are no farther than its q nearest own rows.
    Solved for lambda:

        lambda <= sqrt(min_i sum of the q smallest D^2 among other own rows / (p d))
                  + max_i D(w_i, w_Re) / sqrt(d)

    With f = k: q = c - 2, p = c - k - 1, which is Equation 3 with m = c + k and k attackers.
    If p < 1 (f = k: from k = c - 1 on), the copies fill each other's neighbourhoods, score 0 and
    win at any lambda: there is no bound, and p = 1 serves to start somewhere finite. If q < 1 Krum
    counts 1 neighbour, and so does the sum. If q > c - 1 (an f < k - 1), all c - 1 others are
    summed; then this is no proven bound either.
    """
    c = len(own)
    return _lambda_bound(own, c + copies - f - 2, c - f - 1)


def fang_krum_partial_lambda(
    own: Array,
    threshold: float = 1e-5,
    simulated_f: Callable[[int], int] = lambda copies: copies,
    deviation_goal: bool = False,
) -> PartialKrumAttack:
    """Section 3.2, partial knowledge: solve Equation 4 with 1, 2, ... crafted copies.

    ``own`` (c, d) are the compromised clients' updates before the attack; the direction is that of
    their mean. For k = 1, 2, ..., c crafted copies, placed before the own rows as in Equation 4 (so
    that ties go to a copy), lambda is halved from the bound for that k until Krum with
    f = simulated_f(k) selects a copy; below the threshold, the next k is tried. If none succeeds,
    the last lambda of k = c is returned.
    """
    own = as_float64(own)
    c, d = own.shape
    direction = np.ones(d) if deviation_goal else changing_direction(np.sum(own, axis=0) / c)
    lam = 0.0
    for copies in range(1, c + 1):
        f = simulated_f(copies)
        lam = fang_krum_partial_bound(own, copies, f)
        while True:
            rows = np.concatenate([[-lam * direction] * copies, own])
            if krum_index(rows, f) < copies:
                return PartialKrumAttack(lam, direction, True, copies)
            lam = lam / 2
            if lam < threshold:
                break
    return PartialKrumAttack(lam, direction, False, c)


def fang_trim_full_interval(
    updates: Array,
    params: Array,
    malicious: Array,
    direction: Array,
    b: float = 2.0,
    in_model_space: bool = True,
) -> tuple[Array, Array]:
    """Section 3.3, full knowledge: per coordinate the interval to sample from, as updates.

    With max and min over the benign rows: for s_j = -1, [max, b max] if max > 0, else [max, max/b];
    for s_j = 1, [min/b, min] if min > 0, else [b min, min]. The paper's numbers are local *model*
    parameters (``in_model_space``: params + updates, and params (d,) is subtracted at the end).
    With False the same is done on the updates, as the authors' code does on gradients.
    """
    updates, params = as_float64(updates), as_float64(params)
    origin = params if in_model_space else np.zeros_like(params)
    benign = [updates[i] + origin for i in range(len(updates)) if not malicious[i]]
    low, high = np.zeros(len(origin)), np.zeros(len(origin))
    for j in range(len(origin)):
        largest = max(row[j] for row in benign)
        smallest = min(row[j] for row in benign)
        if direction[j] == -1:
            low[j] = largest
            high[j] = b * largest if largest > 0 else largest / b
        else:
            low[j] = smallest / b if smallest > 0 else b * smallest
            high[j] = smallest
    return low - origin, high - origin


def fang_trim_partial_interval(
    own: Array, low: float = 3.0, high: float = 4.0, direction: Array | None = None
) -> tuple[Array, Array]:
    """Section 3.3, partial knowledge: the interval from the own rows' mean mu and deviation sigma.

    s_j = -1: [mu + 3 sigma, mu + 4 sigma]; s_j = 1: [mu - 4 sigma, mu - 3 sigma]. The direction is
    that of the own rows' mean unless given; sigma divides by c. Updates and models agree here.
    """
    mu, sigma = gaussian_moments(own)
    s = changing_direction(mu) if direction is None else direction
    near, far = mu - s * low * sigma, mu - s * high * sigma
    return np.minimum(near, far), np.maximum(near, far)


def fang_trim_deviation_interval(
    updates: Array,
    params: Array,
    malicious: Array,
    aggregate: Aggregate,
    b: float = 2.0,
    in_model_space: bool = True,
) -> tuple[Array, Array]:
    """Appendix B, trimmed mean: the interval beyond max or min, whichever deviates the rule more.

    Per coordinate, the malicious values are all put at the benign max, then all at the benign min;
    the side whose aggregate lies farther from the before-attack one wins, the upper side on ties.
    """
    updates = as_float64(updates)
    benign = updates[~np.asarray(malicious, dtype=bool)]
    before = aggregate(updates)
    upper = aggregate(replace_rows(updates, malicious, np.max(benign, axis=0)))
    lower = aggregate(replace_rows(updates, malicious, np.min(benign, axis=0)))
    direction = np.where(np.abs(upper - before) >= np.abs(lower - before), -1.0, 1.0)
    return fang_trim_full_interval(updates, params, malicious, direction, b, in_model_space)


def label_flip(y: Array, num_classes: int) -> Array:
    """Section 4.1, label flipping attack: l -> L - l - 1."""
    return np.array([num_classes - int(label) - 1 for label in y])


def direction_agreement(aggregate: Array, own: Array) -> tuple[float, float]:
    """Fang et al. 2020, section 4.2: the share of parameters whose changing direction an attacker with
    partial knowledge estimates correctly; of all parameters, and of those that the rule moves.

    aggregate (d,) of all before-attack updates; own (c, d), the attacker's before-attack updates.
    """
    equal = changing_direction(aggregate) == changing_direction(mean(own))
    moving = [bool(e) for e, value in zip(equal, aggregate, strict=True) if value != 0]
    return sum(map(bool, equal)) / len(equal), sum(moving) / len(moving) if moving else math.nan
