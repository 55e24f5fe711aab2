"""FLDetector removes clients whose updates are not what their last one and the model's change predict.

Zhang, Cao, Jia, Gong, "FLDetector: Defending Federated Learning Against Model Poisoning Attacks via
Detecting Malicious Clients", KDD 2022 (https://arxiv.org/abs/2207.09209), Algorithms 1 to 3. On updates,
u = -eta g, both sides of the prediction have the factor -eta, and so has B: it is negative.

    u_i^t is predicted as u_i^(t-1) + B_t (w_t - w_(t-1)),

with B_t the L-BFGS approximation of the (integrated) Hessian, from the last W differences of global
models and of aggregates before this round. The paper restarts the training without the clients that it
found; here they are removed for good, the scores begin anew, and training goes on from the model that
there is. To start again, run again without them.
"""

from __future__ import annotations

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp

from fedjax_robust import checks
from fedjax_robust.aggregators.base import MEAN, cleaned
from fedjax_robust.kernels.norms import accumulator, power_of_two, safe_norm
from fedjax_robust.memo import same_for_equal_arguments
from fedjax_robust.types import Aggregator, Array, Info, Key, Received, State


class _Memory(NamedTuple):
    steps: Array  # (W, d) differences of models, oldest first
    changes: Array  # (W, d) differences of aggregates
    pairs: Array  # () how many of them there are
    params: Array  # (d,) the last model
    aggregate: Array  # (d,) the last aggregate
    rows: Array  # (N, d) each client's last row
    seen: Array  # (N,) bool, whether it has one
    scores: Array  # (N, W) its last distances, oldest first
    scored: Array  # (N,) how many there are
    removed: Array  # (N,) bool
    round: Array  # () rounds done
    quiet: Array  # () of them since the last removal
    base: State


@same_for_equal_arguments
def fldetector(
    *, window: int = 10, start: int = 50, references: int = 10, base: Aggregator = MEAN
) -> Aggregator:
    """A rule on the rows of the clients that have not been found inconsistent.

    In each round a client's distance to its prediction, divided by the sum of all clients', joins its
    last W; its score is their mean. From round ``start`` on the gap statistic asks whether the scores
    of the round's clients, scaled to [0, 1], are more than one cluster; if so, those in the upper one
    of two (exact 2-means of numbers) are removed for good. A client that was absent is predicted from
    its last row, and without one has no score. What the rule remembers has no gradient.

    When somebody is removed, all scores are forgotten, and the next removal is ``start`` rounds away at
    least, as after the paper's restart: shares of a sum that a malicious client dominated and shares
    without it do not compare, and means of both tell honest clients apart by the rounds they were in.

    Scores are scaled to [0, 1] however close they are, and the test is made in every round, so that in
    long runs, and if clients take part by turns, which the paper does not have, honest clients are
    removed, too.

    Reports ``selected`` and ``removed`` (n,) bool, ``score`` (n,), 0 for clients without one, and
    ``finite`` () bool, False if B_t (w_t - w_(t-1)) was not and counts as zero.

    Memory: one row and W numbers per client of all N, and 2 W vectors.

    Args:
      window: W >= 1.
      start: rounds before clients may be removed, from the first or from the last removal on, >= 0.
      references: uniform samples of the gap statistic, >= 2.
      base: the rule for the rows that stay.

    Raises:
      ValueError: for numbers out of range.
      TypeError: if they are no whole numbers, or base no rule.

    >>> fldetector()(jnp.array([[1.0], [3.0]])).tolist()
    [2.0]
    """
    checks.static_count("fldetector", 1, window=window)
    checks.static_count("fldetector", start=start)
    checks.static_count("fldetector", 2, references=references)
    checks.part("fldetector", Aggregator, base=base)
    window, references = int(window), int(references)

    def init(num_clients: int, params: Array) -> State:
        dtype, d = accumulator(params.dtype), params.shape[0]
        none = jnp.zeros(d, dtype)
        return _Memory(
            steps=jnp.zeros((window, d), dtype),
            changes=jnp.zeros((window, d), dtype),
            pairs=jnp.int32(0),
            params=none,
            aggregate=none,
            rows=jnp.zeros((num_clients, d), dtype),
            seen=jnp.zeros(num_clients, bool),
            scores=jnp.zeros((num_clients, window), dtype),
            scored=jnp.zeros(num_clients, jnp.int32),
            removed=jnp.zeros(num_clients, bool),
            round=jnp.int32(0),
            quiet=jnp.int32(0),
            base=base.init(num_clients, params),
        )

    def aggregate(received: Received, memory: State) -> tuple[Array, State, Info]:
        received = cleaned(received)
        ids, number = received.ids, memory.seen.shape[0]
        present = received.weights > 0
        updates = jax.lax.stop_gradient(received.updates).astype(memory.rows.dtype)
        params = jax.lax.stop_gradient(received.params).astype(memory.rows.dtype)
        step = jnp.where(memory.round > 0, params - memory.params, 0)
        moved, finite = hessian_times(memory.steps, memory.changes, memory.pairs, step)
        known = present & memory.seen.at[ids].get(mode="fill", fill_value=False)
        known &= ~memory.removed.at[ids].get(mode="fill", fill_value=False) & (memory.pairs > 0)
        last = memory.rows.at[ids].get(mode="fill", fill_value=0)
        distance = jnp.where(known, _distances(updates, last, moved, known), 0)
        distance = distance * power_of_two(jnp.max(distance))[1]
        total = jnp.sum(distance)
        distance = distance / jnp.where(total > 0, total, 1)

        at_known = jnp.where(known, ids, number)
        old = memory.scores.at[ids].get(mode="fill", fill_value=0)
        new = jnp.concatenate([old[:, 1:], distance[:, None]], axis=1)
        scores = memory.scores.at[at_known].set(new, mode="drop")
        scored = memory.scored.at[at_known].add(1, mode="drop")
        count = jnp.clip(scored.at[ids].get(mode="fill", fill_value=0), 1, window)
        own = scores.at[ids].get(mode="fill", fill_value=0)
        score = jnp.where(known, jnp.sum(own, axis=1) / count.astype(own.dtype), 0)
        found = upper_cluster(received.key, score, known, references)
        found &= memory.quiet >= start
        anew = jnp.any(found)

        removed = memory.removed.at[jnp.where(found, ids, number)].set(True, mode="drop")
        gone = removed.at[ids].get(mode="fill", fill_value=False)
        rest = received._replace(weights=jnp.where(gone, 0, received.weights))
        result, inner, info = base.aggregate(rest, memory.base)

        # The pair of this round is known only now: it serves from the next one on.
        exact = jax.lax.stop_gradient(result).astype(memory.rows.dtype)
        is_pair = (memory.round > 0) & jnp.any(step != 0)

        def pushed(old: Array, new: Array) -> Array:
            return jnp.where(is_pair, jnp.concatenate([old[1:], new[None]]), old)

        at_present = jnp.where(present, ids, number)
        memory = _Memory(
            steps=pushed(memory.steps, step),
            changes=pushed(memory.changes, exact - memory.aggregate),
            pairs=jnp.minimum(memory.pairs + is_pair, window),
            params=params,
            aggregate=exact,
            rows=memory.rows.at[at_present].set(updates, mode="drop"),
            seen=memory.seen.at[at_present].set(True, mode="drop"),
            scores=jnp.where(anew, 0, scores),
            scored=jnp.where(anew, 0, scored),
            removed=removed,
            round=memory.round + 1,
            quiet=jnp.where(anew, 0, memory.quiet + 1),
            base=inner,
        )
        report = {
            "selected": present & ~gone,
            "removed": present & gone,
            "score": score,
            "finite": finite,
        }
        return result, memory, report | info

    return Aggregator(init, aggregate)


def _distances(rows: Array, last: Array, moved: Array, known: Array) -> Array:
    """|row - (last row + moved)| in a common unit, so that no difference of finite rows is infinite."""
    rows, last = (jnp.where(known[:, None], x, 0) for x in (rows, last))
    largest = (jnp.max(jnp.abs(x), initial=0) for x in (rows, last, moved))
    unit = power_of_two(functools.reduce(jnp.maximum, largest))[1]
    difference = rows * unit - (last * unit + moved * unit)
    return safe_norm(jnp.where(known[:, None], difference, 0))


def hessian_times(steps: Array, changes: Array, pairs: Array, v: Array) -> tuple[Array, Array]:
    """B v with the L-BFGS matrix of the last ``pairs`` of W (step, change) pairs, in compact form.

    B v = sigma v - [sigma S, Y] M^-1 [sigma S^T v; Y^T v], M = [[sigma S^T S, L], [L^T, -D]],
    sigma = (y . s) / (s . s) of the newest pair, L the strictly lower part of S^T Y, D its diagonal.
    A singular M (equal steps, a linear objective) is inverted on its range.

    Args:
      steps: (W, d), the newest last.
      changes: (W, d).
      pairs: () how many count.
      v: (d,).

    Returns:
      (d,), zero without a pair or if it is not finite; () bool, whether it is finite.
    """
    size, change = (power_of_two(jnp.max(jnp.abs(x), initial=0)) for x in (steps, changes))
    s, y = steps * size[1], changes * change[1]
    scale, inverse = power_of_two(jnp.max(jnp.abs(v), initial=0))
    w = v * inverse
    there = jnp.arange(len(s)) >= len(s) - pairs

    def dot(a: Array, b: Array) -> Array:
        return jnp.dot(a, b, precision="highest")

    newest = dot(s[-1], s[-1])
    sigma = dot(y[-1], s[-1]) / jnp.where(newest > 0, newest, 1)
    sy, ss = dot(s, y.T), dot(s, s.T)
    both = there[:, None] & there
    lower = jnp.where(both, jnp.tril(sy, -1), 0)
    top = jnp.where(both, sigma * ss, jnp.eye(len(s), dtype=s.dtype))
    bottom = jnp.where(both, -jnp.diag(jnp.diag(sy)), jnp.eye(len(s), dtype=s.dtype))
    m = jnp.block([[top, lower], [lower.T, bottom]])
    right = jnp.concatenate([sigma * dot(s, w), dot(y, w)]) * jnp.tile(there, 2)
    unit = jnp.max(jnp.abs(m))
    m = m / jnp.where(unit > 0, unit, 1)
    right = right / jnp.where(unit > 0, unit, 1)
    x = dot(jnp.linalg.pinv(m, rtol=1e-6, hermitian=True), right)
    half = len(s)
    result = sigma * w - sigma * dot(x[:half], s) - dot(x[half:], y)
    result = result * scale * size[1] * change[0]
    finite = (pairs == 0) | jnp.all(jnp.isfinite(result))
    return jnp.where(finite & (pairs > 0), result, 0), finite


def upper_cluster(key: Key, scores: Array, known: Array, references: int) -> Array:
    """Who is in the upper one of two clusters, if the gap statistic finds more than one.

    Tibshirani, Walther, Hastie, "Estimating the number of clusters in a data set via the gap statistic",
    JRSS B 2001: one cluster is enough if Gap(1) >= Gap(2) - s_2, with Gap(k) = mean_b log W_kb - log W_k
    over uniform samples b, W the sum of squares within clusters, s_2 their standard deviation times
    sqrt(1 + 1 / references).

    Args:
      key: draws the samples, by place, so that absent rows change nothing.
      scores: (n,).
      known: (n,) bool, who has a score.
      references: number of samples.

    Returns:
      (n,) bool.
    """
    low = jnp.min(jnp.where(known, scores, jnp.inf))
    high = jnp.max(jnp.where(known, scores, -jnp.inf))
    spread = high - low
    x = jnp.where(known & (spread > 0), (scores - low) / jnp.where(spread > 0, spread, 1), 0)
    one, two, upper = _within(x, known)
    place = jnp.cumsum(known) - 1

    def sample(b: Array) -> tuple[Array, Array]:
        own = jax.random.fold_in(key, b)
        drawn = jax.vmap(lambda i: jax.random.uniform(jax.random.fold_in(own, i), (), x.dtype))(
            place
        )
        first, second, _ = _within(drawn, known)
        return jnp.log(first + _TINY), jnp.log(second + _TINY)

    ones, twos = jax.vmap(sample)(jnp.arange(references))
    gap_1 = jnp.mean(ones) - jnp.log(one + _TINY)
    gap_2 = jnp.mean(twos) - jnp.log(two + _TINY)
    s_2 = jnp.std(twos) * jnp.sqrt(1 + 1 / references)
    return upper & (gap_1 < gap_2 - s_2) & (jnp.sum(known) > 2) & (spread > 0)


_TINY = 1e-12


def _within(x: Array, known: Array) -> tuple[Array, Array, Array]:
    """Sums of squares within one and within the best two clusters of numbers, and who is in the upper."""
    n = x.shape[0]
    number = jnp.sum(known)
    order = jnp.argsort(jnp.where(known, x, jnp.inf), stable=True)
    values = jnp.where(known, x, 0)[order]
    counted = jnp.arange(n) < number
    counts = jnp.arange(1, n + 1)
    mean = jnp.sum(values) / jnp.maximum(number, 1)
    centred = jnp.where(counted, values - mean, 0)
    sums = jnp.cumsum(centred)
    whole = jnp.sum(jnp.square(centred))
    # Split after the k lowest: between = sum^2 / k + sum^2 / (number - k), as all sum to 0.
    rest = number - counts
    valid = rest > 0
    between = jnp.square(sums) * (1 / counts + 1 / jnp.where(valid, rest, 1))
    best = jnp.argmax(jnp.where(valid, between, -1))
    rank = jnp.argsort(order)
    upper = known & (rank > best)
    mine = upper.astype(x.dtype)

    def squares(members: Array) -> Array:
        size = jnp.maximum(jnp.sum(members), 1)
        middle = jnp.sum(members * x) / size
        return jnp.sum(members * jnp.square(x - middle))

    two = squares(mine) + squares(known.astype(x.dtype) - mine)
    return whole, jnp.minimum(two, whole), upper
