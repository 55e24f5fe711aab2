"""Slow, obvious NumPy float64 definitions, written from the papers, to check the JAX code against.

Minghong Fang, Xiaoyu Cao, Jinyuan Jia, Neil Zhenqiang Gong, "Local Model Poisoning Attacks to
Byzantine-Robust Federated Learning", USENIX Security 2020 ("the paper"; sections, equations and
appendices below are its own). Its m workers are our ``n`` clients; its c compromised workers are
the malicious rows, and the rules' assumed number of them is ``f``.

Conventions, where the paper leaves room:

* Rows are *updates*, local model - received global model, so w_Re is the zero vector. Every rule
  here commutes with translations, hence updates and models give the same result. (The trim attack's
  factor b does not: see ``fang_trim_full_interval``.)
* A row of weight 0, or with a NaN or an infinity in it, is deleted before anything is computed.
  ``f`` stays what the caller said, counts are those of the rows left. If no row is left, the
  aggregate is zero: the model does not move.
* Ties between rows go to the lowest index.
* A count of neighbours or of kept values that comes out below 1 is raised to 1.

No JAX, no float32 and no import of the package in this file.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from fractions import Fraction
from typing import NamedTuple

import numpy as np

Array = np.ndarray
Aggregate = Callable[[Array], Array]


def _float64(x: Array) -> Array:
    return np.array(x, dtype=np.float64)


def present(updates: Array, weights: Array | None = None) -> tuple[Array, Array, Array]:
    """The rows that take part, their weights and their indices in ``updates`` (n, d).

    A row takes part if its weight (default 1) is > 0 and all its entries are finite.
    """
    updates = _float64(updates)
    weights = np.ones(len(updates)) if weights is None else _float64(weights)
    kept = [i for i in range(len(updates)) if weights[i] > 0 and np.all(np.isfinite(updates[i]))]
    index = np.array(kept, dtype=np.int64)
    return updates[index], weights[index], index


# --- Aggregation rules (section 2.2) -------------------------------------------------------------


def mean(updates: Array, weights: Array | None = None) -> Array:
    """Section 2.2, mean: the weighted average of the rows (FedAvg)."""
    rows, weights, _ = present(updates, weights)
    total = np.zeros(rows.shape[1])
    for row, weight in zip(rows, weights, strict=True):
        total = total + weight * row
    return total / np.sum(weights) if len(rows) else total


def median(updates: Array, weights: Array | None = None) -> Array:
    """Section 2.2, median: per coordinate; of an even number, the mean of the two middle values.

    Weights only decide which rows are present.
    """
    rows, _, _ = present(updates, weights)
    result = np.zeros(rows.shape[1])
    for j in range(rows.shape[1]) if len(rows) else ():
        result[j] = _middle(rows[:, j])
    return result


def _middle(values: Sequence[float | Fraction] | Array) -> float | Fraction:
    ordered = sorted(values)
    half = len(ordered) // 2
    if len(ordered) % 2:
        return ordered[half]
    return (ordered[half - 1] + ordered[half]) / 2


def trimmed_mean(updates: Array, f: int, weights: Array | None = None) -> Array:
    """Section 2.2, trimmed mean with beta = f: drop the f lowest and the f highest per coordinate.

    Weights only decide which rows are present. With r < 2f + 1 rows, f becomes (r - 1) // 2: the
    largest that leaves something, which makes it the median.
    """
    rows, _, _ = present(updates, weights)
    result = np.zeros(rows.shape[1])
    if len(rows) == 0:
        return result
    f = min(f, (len(rows) - 1) // 2)
    for j in range(rows.shape[1]):
        ordered = sorted(rows[:, j])
        kept = ordered[f : len(ordered) - f]
        result[j] = sum(kept) / len(kept)
    return result


def pairwise_squared_distances(x: Array) -> Array:
    """(n, d) -> (n, n), the squared Euclidean distance of every two rows, by subtraction."""
    x = _float64(x)
    distances = np.zeros((len(x), len(x)))
    for i in range(len(x)):
        for j in range(len(x)):
            distances[i, j] = np.sum((x[i] - x[j]) ** 2)
    return distances


def krum_scores(updates: Array, f: int, neighbours: int | None = None) -> Array:
    """Section 2.2, Krum: each row's sum of squared distances to its n - f - 2 closest others.

    A row is not its own neighbour. ``neighbours`` replaces n - f - 2; at least 1, at most n - 1.
    All rows must be present.
    """
    n = len(updates)
    count = max(n - f - 2 if neighbours is None else neighbours, 1)
    distances = pairwise_squared_distances(updates)
    scores = np.zeros(n)
    for i in range(n):
        others = sorted(distances[i, j] for j in range(n) if j != i)
        scores[i] = sum(others[:count])
    return scores


def krum_index(
    updates: Array, f: int, weights: Array | None = None, neighbours: int | None = None
) -> int:
    """Section 2.2: the row of ``updates`` that Krum selects; -1 if none is present."""
    rows, _, index = present(updates, weights)
    if len(rows) == 0:
        return -1
    return int(index[_lowest(krum_scores(rows, f, neighbours))])


def _lowest(scores: Array) -> int:
    best = 0
    for i in range(1, len(scores)):
        if scores[i] < scores[best]:
            best = i
    return best


def krum(
    updates: Array, f: int, weights: Array | None = None, neighbours: int | None = None
) -> Array:
    """Section 2.2, Krum: the row with the lowest score."""
    i = krum_index(updates, f, weights, neighbours)
    return np.zeros(np.shape(updates)[1]) if i < 0 else _float64(updates[i])


def multi_krum_selection(
    updates: Array, f: int, m: int | None = None, weights: Array | None = None
) -> list[int]:
    """The m rows of lowest Krum score, computed once, best first (Blanchard et al. 2017).

    m is n - f by default, n counting the rows present; at least 1, at most all of them.
    """
    rows, _, index = present(updates, weights)
    if len(rows) == 0:
        return []
    scores = krum_scores(rows, f)
    order = sorted(range(len(rows)), key=lambda i: (scores[i], i))
    count = max(len(rows) - f if m is None else m, 1)
    return [int(index[i]) for i in order[:count]]


def multi_krum(updates: Array, f: int, m: int | None = None, weights: Array | None = None) -> Array:
    """The unweighted mean of the rows that ``multi_krum_selection`` lists."""
    selected = multi_krum_selection(updates, f, m, weights)
    return mean(_float64(updates)[selected])


def bulyan_selection(
    updates: Array, f: int, weights: Array | None = None, one_shot: bool = False
) -> list[int]:
    """Section 2.2 and Appendix A: the theta = n - 2f rows that Bulyan selects, in that order.

    Krum is run on the rows that remain and its choice is moved to the selected ones, theta times;
    with r rows remaining it counts r - f - 2 neighbours (at least 1). ``one_shot`` is a variant in
    use elsewhere: the theta rows of lowest score among all.
    """
    rows, _, index = present(updates, weights)
    if len(rows) == 0:
        return []
    theta = max(len(rows) - 2 * f, 1)
    if one_shot:
        return multi_krum_selection(updates, f, theta, weights)
    remaining = list(range(len(rows)))
    selected: list[int] = []
    while len(selected) < theta:
        best = _lowest(krum_scores(rows[remaining], f))
        selected.append(remaining.pop(best))
    return [int(index[i]) for i in selected]


def bulyan(updates: Array, f: int, weights: Array | None = None, one_shot: bool = False) -> Array:
    """Section 2.2 and Appendix A: Krum's theta rows, then the mean of the values near the median.

    Per coordinate, the mean of the gamma = theta - 2f (at least 1) selected values that are closest
    to the median of the selected values; of two equally close ones, the lower value comes first.
    """
    selected = _float64(updates)[bulyan_selection(updates, f, weights, one_shot)]
    return mean_near_median(selected, len(selected) - 2 * f)


def mean_near_median(rows: Array, gamma: int) -> Array:
    """Bulyan's second step; at least one value is kept, and no rows give zeros.

    In fractions: the two middle ones of an even number are equally close to their median.
    """
    rows = _float64(rows)
    result = np.zeros(rows.shape[1])
    if len(rows) == 0:
        return result
    gamma = max(gamma, 1)
    for j in range(rows.shape[1]):
        values = [Fraction(value) for value in rows[:, j]]
        middle = _middle(values)
        closest = sorted(values, key=lambda value: (abs(value - middle), value))
        result[j] = sum(closest[:gamma]) / gamma
    return result


# --- FLTrust and its variants (Cao et al., NDSS 2021), given the server's update g_0 ---------------


def _length(x: Array) -> float:
    return math.sqrt(sum(float(value) ** 2 for value in _float64(x)))


def norm_clipping(updates: Array, bound: float, weights: Array | None = None) -> Array:
    """Bagdasaryan et al. 2020, section VI-C: the weighted mean of u_i min(1, S / |u_i|)."""
    rows, weights, _ = present(updates, weights)
    clipped = [row * min(1.0, bound / length) if (length := _length(row)) else row for row in rows]
    return mean(np.array(clipped).reshape(rows.shape), weights)


def sybil_selection(updates: Array, largest: float, weights: Array | None = None) -> list[int]:
    """Rows without another present row at a cosine above ``largest``; a zero row has cosine 0."""
    rows, _, which = present(updates, weights)
    keep = []
    for i, row in enumerate(rows):
        cosines = [
            np.dot(_unit(row), _unit(other)) if _length(row) and _length(other) else 0.0
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


def fltrust_cosines(updates: Array, g_0: Array, weights: Array | None = None) -> Array:
    """The cosine of each row's angle with g_0; 0 for absent and for zero rows, or if g_0 is zero.

    Weights only decide which rows are present. Below, scores that sum to 0 give the zero vector.
    """
    rows, _, index = present(updates, weights)
    result = np.zeros(len(updates))
    for i, row in zip(index, rows, strict=True):
        if _length(row) > 0 and _length(g_0) > 0:
            inner = sum(float(a) * float(b) for a, b in zip(row, _float64(g_0), strict=True))
            result[i] = inner / (_length(row) * _length(g_0))
    return result


def fltrust_scores(updates: Array, g_0: Array, weights: Array | None = None) -> Array:
    """TS_i = ReLU(c_i)."""
    return np.array([max(c, 0.0) for c in fltrust_cosines(updates, g_0, weights)])


def _rescaled(row: Array, g_0: Array) -> Array:
    """gbar_i = |g_0| / |g_i| * g_i."""
    return _length(g_0) / _length(row) * _float64(row)


def _score_average(scores: Sequence[float], rows: Sequence[Array], d: int) -> Array:
    total = np.zeros(d)
    for score, row in zip(scores, rows, strict=True):
        if score != 0:  # a row without a score may hold anything
            total = total + score * row
    return total / sum(scores) if sum(scores) != 0 else np.zeros(d)


def fltrust(updates: Array, g_0: Array, weights: Array | None = None) -> Array:
    """g = sum of TS_i gbar_i / sum of TS_i."""
    scores = fltrust_scores(updates, g_0, weights)
    rows = [_rescaled(x, g_0) if s != 0 else x for x, s in zip(updates, scores, strict=True)]
    return _score_average(scores, rows, len(g_0))


def fltrust_server(updates: Array, g_0: Array, weights: Array | None = None) -> Array:
    """FLTrust-Server: g_0."""
    return _float64(g_0)


def fltrust_with_server(updates: Array, g_0: Array, weights: Array | None = None) -> Array:
    """FLTrust-withServer: g_0 is one more update; its cosine with itself is 1."""
    scores = [*fltrust_scores(updates, g_0, weights), 1.0]
    rows = [_rescaled(x, g_0) if s != 0 else x for x, s in zip(updates, scores[:-1], strict=True)]
    return _score_average(scores, [*rows, _float64(g_0)], len(g_0))


def fltrust_no_relu(updates: Array, g_0: Array, weights: Array | None = None) -> Array:
    """FLTrust-NoReLU: the cosines are the scores; the formula is otherwise as it stands."""
    scores = fltrust_cosines(updates, g_0, weights)
    rows = [_rescaled(x, g_0) if s != 0 else x for x, s in zip(updates, scores, strict=True)]
    return _score_average(scores, rows, len(g_0))


def fltrust_no_norm(updates: Array, g_0: Array, weights: Array | None = None) -> Array:
    """FLTrust-NoNorm: g_i in the place of gbar_i."""
    scores = fltrust_scores(updates, g_0, weights)
    return _score_average(scores, list(_float64(updates)), len(g_0))


def fltrust_par_norm(updates: Array, g_0: Array, weights: Array | None = None) -> Array:
    """FLTrust-ParNorm: gbar_i only for the rows that are longer than g_0."""
    scores = fltrust_scores(updates, g_0, weights)
    rows = []
    for row, score in zip(_float64(updates), scores, strict=True):
        longer = score != 0 and _length(row) > _length(g_0)
        rows.append(_rescaled(row, g_0) if longer else row)
    return _score_average(scores, rows, len(g_0))


# --- Defences by a validation batch (section 5) ----------------------------------------------------


def softmax_regression_metrics(params: Array, x: Array, y: Array) -> tuple[float, float]:
    """Error rate and mean cross-entropy on x (V, k), y (V,) of the model whose flat parameters are
    the biases (L,), then the weights (k, L): the order in which flax ravels them."""
    labels = len(params) // (x.shape[1] + 1)
    bias, weights = params[:labels], params[labels:].reshape(x.shape[1], labels)
    wrong, loss = 0, 0.0
    for example, label in zip(_float64(x), y, strict=True):
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


# --- Attacks (sections 3 and 4.1, Appendix B and C) ----------------------------------------------


def replace_rows(updates: Array, malicious: Array, row: Array) -> Array:
    """The matrix after the attack: every malicious row of ``updates`` replaced by ``row``."""
    attacked = _float64(updates)
    for i in range(len(attacked)):
        if malicious[i]:
            attacked[i] = row
    return attacked


def gaussian_moments(updates: Array) -> tuple[Array, Array]:
    """Section 4.1, Gaussian attack: mean and standard deviation of each column over all n rows.

    The standard deviation divides by n (the maximum likelihood estimate of the fitted Gaussian).
    """
    updates = _float64(updates)
    centre = np.sum(updates, axis=0) / len(updates)
    return centre, np.sqrt(np.sum((updates - centre) ** 2, axis=0) / len(updates))


def changing_direction(vector: Array) -> Array:
    """Sections 3.1 and 3.2: s_j = 1 where the update is larger than 0, otherwise (also at 0) -1."""
    return np.array([1.0 if value > 0 else -1.0 for value in _float64(vector)])


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
    rows = _float64(rows)
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
    updates = _float64(updates)
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
    own = _float64(own)
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
    updates, params = _float64(updates), _float64(params)
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
    updates = _float64(updates)
    benign = updates[~np.asarray(malicious, dtype=bool)]
    before = aggregate(updates)
    upper = aggregate(replace_rows(updates, malicious, np.max(benign, axis=0)))
    lower = aggregate(replace_rows(updates, malicious, np.min(benign, axis=0)))
    direction = np.where(np.abs(upper - before) >= np.abs(lower - before), -1.0, 1.0)
    return fang_trim_full_interval(updates, params, malicious, direction, b, in_model_space)


def _unit(x: Array) -> Array:
    return x / _length(x) if _length(x) > 0 else x


def fltrust_adaptive(
    units: Array,
    e_0: Array,
    length: float,
    malicious: Array,
    start: Array,
    directions: Array,
    gamma: float,
    eta: float,
) -> tuple[Array, list[Array]]:
    """FLTrust's Algorithm 3, step by step.

    ``units`` (n, d) are the before-attack updates and ``e_0`` (d,) the server's, all of length 1;
    ``length`` is |g_0|; ``start`` (c, d) the unit vectors e'_i to start from; ``directions``
    (V, c, Q, d) the u. Returns the final e'_i (c, d), and each row's value before each of its steps,
    in order.
    """
    c = len(start)
    crafted = _float64(start).copy()

    def aggregate(rows: Array) -> Array:
        scores = [max(float(np.dot(row, e_0)), 0.0) for row in rows]
        return length * _score_average(scores, list(rows), len(e_0))

    g = aggregate(units)
    s = np.array([1.0 if value > 0 else -1.0 for value in g])

    def h(rows: Array) -> float:
        return float(np.dot(s, g - aggregate(np.concatenate([rows, units[~malicious]]))))

    seen = []
    for sweep in directions:
        for i in range(c):
            for u in sweep[i]:
                seen.append(crafted[i].copy())
                moved = crafted.copy()
                moved[i] = crafted[i] + gamma * u
                slope = (h(moved) - h(crafted)) / gamma
                crafted[i] = _unit(crafted[i] + eta * slope * u)
    return crafted, seen


def fltrust_best_response(
    units: Array, e_0: Array, length: float, malicious: Array
) -> tuple[float, float]:
    """The largest h of Algorithm 3 that equal malicious rows reach, and their trust there.

    Of all unit rows with trust t the one with the lowest s . e' serves best: t e_0 - sqrt(1 - t^2) r,
    r the direction of s's part across e_0. What is left is a search over t in (0, 1].
    """
    c = int(np.sum(malicious))
    scores = [max(float(np.dot(row, e_0)), 0.0) for row in units]
    g = length * _score_average(scores, list(units), len(e_0))
    s = np.array([1.0 if value > 0 else -1.0 for value in g])
    r = _unit(s - np.dot(s, e_0) * e_0)
    honest = [
        (score, row) for score, row, bad in zip(scores, units, malicious, strict=True) if not bad
    ]
    best = (-np.inf, 0.0)
    for t in np.linspace(1e-4, 1, 10_001):
        row = t * e_0 - math.sqrt(1 - t * t) * r
        total = sum(score * np.dot(s, x) for score, x in honest) + c * t * np.dot(s, row)
        after = length * total / (sum(score for score, _ in honest) + c * t)
        best = max(best, (float(np.dot(s, g) - after), float(t)))
    return best


def label_flip(y: Array, num_classes: int) -> Array:
    """Section 4.1, label flipping attack: l -> L - l - 1."""
    return np.array([num_classes - int(label) - 1 for label in y])


# --- The Scaling attack of FLTrust (Cao, Fang, Liu, Gong, NDSS 2021) ------------------------------


def scaling(updates: Array, malicious: Array, scale: float) -> Array:
    """What the server receives: malicious rows of (n, d) times ``scale`` (there: n)."""
    received = _float64(updates)
    for i in range(len(received)):
        if malicious[i]:
            received[i] = scale * received[i]
    return received


def pixel_trigger(x: Array, pixels: Sequence[tuple[int, int]], value: float) -> Array:
    """Images (b, H, W, C); every (row, column) is set in all channels."""
    x = np.array(x)
    for image in x:
        for row, column in pixels:
            for channel in range(x.shape[3]):
                image[row, column, channel] = value
    return x


def feature_trigger(x: Array, every: int, value: float) -> Array:
    """Inputs (b, F); the features whose number, counted from 1, is a multiple of ``every``."""
    x = np.array(x)
    for example in x:
        for number in range(1, x.shape[1] + 1):
            if number % every == 0:
                example[number - 1] = value
    return x


def backdoored_copies(
    x: Array, y: Array, trigger: Callable[[Array], Array], target: int
) -> tuple[Array, Array]:
    """A malicious client's data: its examples, then each once more, triggered, labelled ``target``."""
    return np.concatenate([x, trigger(x)]), np.concatenate([y, [target] * len(y)])


# --- Model replacement (Bagdasaryan et al., AISTATS 2020; equations and sections are theirs) -------


def fedavg_eta(updates: Array, eta: float, num_clients: int, weights: Array | None = None) -> Array:
    """Eq. 1: eta / n times the sum of the updates of the participants, n all clients."""
    rows, _, _ = present(updates, weights)
    total = np.zeros(rows.shape[1])
    for row in rows:
        total = total + row
    return eta / num_clients * total


def p_distance(x: Array, g: Array, p: float) -> float:
    """||X - G||_p."""
    sizes = [abs(float(a) - float(b)) for a, b in zip(x, g, strict=True)]
    if math.isinf(p):
        return max(sizes)
    return sum(size**p for size in sizes) ** (1 / p)


def cosine_distance(x: Array, g: Array) -> float:
    """Section VI-A: 1 - cos(X, G)."""
    x, g = _float64(x), _float64(g)
    return 1 - float(np.sum(x * g)) / (math.sqrt(np.sum(x * x)) * math.sqrt(np.sum(g * g)))


def equal_parts(difference: Array, z: int, gamma: float) -> Array:
    """z rows of gamma / z (X - G)."""
    return np.array([gamma / z * _float64(difference)] * z)


def norm_bounded(difference: Array, z: int, bound: float) -> Array:
    """z rows of S (X - G) / ||X - G||_2 (eq. 5; eq. 6 without its misprint); zero if X = G."""
    difference = _float64(difference)
    length = _length(difference)
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
    w_g, b_g = _float64(weights), _float64(bias)
    w, b = w_g.copy(), b_g.copy()
    made = 0
    for rate in rates:
        losses = [
            -math.log(softmax(_float64(image) @ w + b)[label])
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


# --- Metrics -------------------------------------------------------------------------------------


def precision_recall(removed: Array, malicious: Array) -> tuple[float, float]:
    """Of the removed rows, the share that is malicious; of the malicious rows, the share removed.

    NaN where the denominator is 0.
    """
    both = sum(bool(r) and bool(m) for r, m in zip(removed, malicious, strict=True))
    num_removed, num_malicious = int(np.sum(removed)), int(np.sum(malicious))
    precision = both / num_removed if num_removed else math.nan
    recall = both / num_malicious if num_malicious else math.nan
    return precision, recall


def test_error(logits: Array, y: Array) -> float:
    """Section 4.1, testing error rate: the share of examples whose largest logit is not at y.

    The lowest class wins a tie; a NaN counts as the largest (``np.argmax``).
    """
    wrong = [int(np.argmax(row)) != int(label) for row, label in zip(logits, y, strict=True)]
    return sum(wrong) / len(wrong)


test_error.__test__ = False  # type: ignore[attr-defined]  # not a test, whoever imports it


def per_class_error(logits: Array, y: Array) -> Array:
    """(classes,): ``test_error`` over the examples of each true class; NaN for a class without."""
    logits, y = np.asarray(logits), np.asarray(y)
    errors = np.full(logits.shape[1], math.nan)
    for label in range(logits.shape[1]):
        if np.any(y == label):
            errors[label] = test_error(logits[y == label], y[y == label])
    return errors


# --- Training (section 2.1) ----------------------------------------------------------------------


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
    w, b = _float64(weights), _float64(bias)
    velocity_w, velocity_b = np.zeros_like(w), np.zeros_like(b)
    for x, y, *rest in batches:
        x = _float64(x)
        mask = _float64(rest[0]) if rest else np.ones(len(x))
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
    return w - _float64(weights), b - _float64(bias)


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
    new_weights = _float64(weights) + change[:split].reshape(np.shape(weights))
    return new_weights, _float64(bias) + change[split:], updates


# --- Difficult inputs ----------------------------------------------------------------------------


def nasty_matrices(n: int, d: int, rng: np.random.Generator) -> dict[str, Array]:
    """Float32 matrices (n, d), by name, on which rules tend to go wrong. n >= 4, d >= 2."""

    def honest() -> Array:
        return (0.5 + rng.normal(size=(n, d))).astype(np.float32)

    def with_row(value: float) -> Array:
        x = honest()
        x[n // 2] = value
        return x

    few_nans, one_infinity = honest(), honest()
    few_nans[n // 3, :: max(d // 2, 1)] = np.nan
    one_infinity[n // 3, d // 2] = np.inf
    zero_rows, duplicates = honest(), honest()
    zero_rows[::3] = 0.0
    duplicates[n - n // 2 :] = duplicates[: n // 2]
    huge = honest()
    huge[n // 2] *= np.float32(1e30)
    scales = np.logspace(-6, 6, n)[rng.permutation(n), None]
    return {
        "honest": honest(),
        "common_offset": (1e3 + 1e-2 * rng.normal(size=(n, d))).astype(np.float32),
        "identical_rows": np.repeat(honest()[:1], n, axis=0),
        "ties": rng.integers(-1, 2, size=(n, d)).astype(np.float32),
        "huge_row": huge,
        "constant_huge_row": with_row(1e30),
        "nan_row": with_row(np.nan),
        "inf_row": with_row(np.inf),
        "minus_inf_row": with_row(-np.inf),
        "few_nans": few_nans,
        "one_infinity": one_infinity,
        "tiny": (1e-20 * honest()).astype(np.float32),
        "zero_rows": zero_rows,
        "all_zero": np.zeros((n, d), np.float32),
        "mixed_scales": (scales * honest()).astype(np.float32),
        "duplicates": duplicates,
    }


def direction_agreement(aggregate: Array, own: Array) -> tuple[float, float]:
    """Fang et al. 2020, section 4.2: the share of parameters whose changing direction an attacker with
    partial knowledge estimates correctly; of all parameters, and of those that the rule moves.

    aggregate (d,) of all before-attack updates; own (c, d), the attacker's before-attack updates.
    """
    equal = changing_direction(aggregate) == changing_direction(mean(own))
    moving = [bool(e) for e, value in zip(equal, aggregate, strict=True) if value != 0]
    return sum(map(bool, equal)) / len(equal), sum(moving) / len(moving) if moving else math.nan


# --- Back-gradient optimization (Muñoz-González et al., AISec 2017) ------------------------------


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
    w, b = _float64(weights), _float64(bias)
    points = _float64(x)
    all_x = np.concatenate([_float64(problem.clean_x), points])
    all_y = np.concatenate([problem.clean_y, problem.point_y])
    rate = problem.learning_rate
    iterates = []
    for _ in range(problem.steps):
        iterates.append((w, b))
        slope_w, slope_b = _cross_entropy_slope(w, b, all_x, all_y)
        w, b = w - rate * slope_w, b - rate * slope_b
    losses = [
        -math.log(softmax(_float64(x) @ w + b)[y])
        for x, y in zip(problem.target_x, problem.target_y, strict=True)
    ]
    dw, db = _cross_entropy_slope(w, b, _float64(problem.target_x), problem.target_y)
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


# --- Next-word prediction (Bagdasaryan et al. 2020, section V-B) -----------------------------------


def lstm(
    x: Array, input_kernel: Array, hidden_kernel: Array, input_bias: Array, hidden_bias: Array
) -> Array:
    """Hidden states (T, h) of one sequence (T, F), as in the documentation of PyTorch's ``nn.LSTM``.

    Kernels (F, 4 h) and (h, 4 h) and biases (4 h,) hold the gates input, forget, cell, output.
    """
    h = len(hidden_kernel)
    hidden, cell, states = np.zeros(h), np.zeros(h), []
    for t in range(len(x)):
        gates = _float64(x[t]) @ _float64(input_kernel) + _float64(input_bias)
        gates = gates + hidden @ _float64(hidden_kernel) + _float64(hidden_bias)
        i, f, g, o = (gates[j * h : (j + 1) * h] for j in range(4))
        cell = cell / (1 + np.exp(-f)) + np.tanh(g) / (1 + np.exp(-i))
        hidden = np.tanh(cell) / (1 + np.exp(-o))
        states.append(hidden)
    return np.array(states)


def word_lstm(params: dict, words: Array) -> Array:
    """Logits (T, V) of one sequence of words (T,); layers ``LSTM_0``, ``LSTM_1``, ..., tied weights."""
    embedding = _float64(params["embedding"])
    states = embedding[np.asarray(words)]
    for layer in range(len(params) - 2):
        states = lstm(states, **params[f"LSTM_{layer}"])
    return states @ embedding.T + _float64(params["bias"])


def next_word_loss(logits: Array, y: Array, mask: Array, token_mask: Array) -> float:
    """Weighted mean cross-entropy: logits (b, T, V), y (b, T), mask (b,), token_mask (b, T)."""
    loss = total = 0.0
    for s in range(len(y)):
        for t in range(len(y[s])):
            weight = float(mask[s]) * float(token_mask[s][t])
            loss -= weight * math.log(softmax(_float64(logits[s][t]))[y[s][t]])
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
