"""Checks that throw updates out: clustering (Auror), accuracy auditing, two cosine checks.

They are the anomaly detectors that Bagdasaryan, Veit, Hua, Estrin, Shmatikov, "How To Backdoor
Federated Learning", AISTATS 2020, discuss and evade (section VI-A and VI-B). Each reports ``selected``
(n,) bool, the rows that another rule then aggregates, for ``metrics.detection``. Rows of weight 0, or
with a NaN or Inf, are as if they had been deleted.
"""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp

from fedjax_robust.aggregators.basic import mean
from fedjax_robust.robust_stats import (
    coordinate_median,
    direction_and_length,
    drop_non_finite,
    pairwise_squared_distances,
)
from fedjax_robust.types import Aggregator, Array, Info, Received, State, is_number

Select = Callable[[Array, Array, Received], tuple[Array, Info]]
"""updates (n, d), present (n,) bool, received -> rows to keep (n,) bool, what to report."""


def _selecting(select: Select, base: Aggregator | None) -> Aggregator:
    """A rule on the rows that ``select`` keeps."""
    rule = mean() if base is None else base

    def aggregate(received: Received, state: State) -> tuple[Array, State, Info]:
        updates, weights = drop_non_finite(received.updates, received.weights)
        present = weights > 0
        keep, report = select(updates, present, received)
        selected = keep & present
        rest = received._replace(updates=updates, weights=jnp.where(selected, weights, 0))
        result, state, info = rule.aggregate(rest, state)
        return result, state, info | report | {"selected": selected}

    return Aggregator(rule.init, aggregate)


def auror(threshold: float | Array, base: Aggregator | None = None) -> Aggregator:
    """Auror: cluster the clients on the indicative coordinates and drop the smaller cluster.

    Shen, Tople, Saxena, "Auror: Defending against Poisoning Attacks in Collaborative Deep Learning
    Systems", ACSAC 2016, in the form that section VI-A of Bagdasaryan et al. names ("k-means to cluster
    participants' updates and discards the outliers"):

    1. In each coordinate the present values are split in two by k-means, exactly (the best of all
       splits of the sorted values). It is indicative if the two means differ by more than the threshold.
    2. The clients are split in two by k-means on the indicative coordinates: Lloyd's iteration from the
       two rows that are furthest apart (the first such pair), 10 times.
    3. The smaller cluster is dropped. With clusters of equal size, or no indicative coordinate, all
       stay.

    The paper clusters "across training rounds"; here each round decides for itself, without memory.
    Reports ``indicative`` (), the number of indicative coordinates, besides ``selected``.

    Args:
      threshold: > 0, in units of the updates.
      base: the rule for the rows that stay; default the mean.

    Raises:
      ValueError: if the threshold is not positive.
    """
    if is_number(threshold) and not threshold > 0:
        raise ValueError(f"auror needs threshold > 0, got {threshold}")

    def select(updates: Array, present: Array, received: Received) -> tuple[Array, Info]:
        indicative = _distance_of_centres(updates, present) > threshold
        second = _two_clusters(jnp.where(indicative, updates, 0), present)
        sizes = jnp.sum(present & ~second), jnp.sum(present & second)
        smaller = jnp.where(sizes[1] < sizes[0], second, ~second)
        drop = jnp.any(indicative) & (sizes[0] != sizes[1]) & smaller
        return ~drop, {"indicative": jnp.sum(indicative)}

    return _selecting(select, base)


def _distance_of_centres(updates: Array, present: Array) -> Array:
    """Exact one-dimensional 2-means of each column: the distance of its two means, (n, d) -> (d,).

    Of all splits of the sorted values, k-means' sum of squares is least where the variance between the
    two parts, i (r - i) (difference of means)^2 / r, is largest.
    """
    # Absent rows go to the end; all is relative to the median, for the sake of the sums.
    centred = updates - coordinate_median(updates, present)
    ascending = jnp.sort(jnp.where(present[:, None], centred, jnp.inf), axis=0)
    number = jnp.sum(present)
    rank = jnp.arange(1, updates.shape[0] + 1)[:, None]
    inside = rank <= number
    sums = jnp.cumsum(jnp.where(inside, ascending, 0), axis=0)
    rest = jnp.maximum(number - rank, 1)
    difference = (sums[-1] - sums) / rest - sums / rank
    between = jnp.where(rank < number, rank * rest * jnp.square(difference), -1)
    best = jnp.argmax(between, axis=0)
    chosen = jnp.take_along_axis(difference, best[None], axis=0)[0]
    return jnp.where(number > 1, chosen, 0)


def _two_clusters(x: Array, present: Array) -> Array:
    """2-means of the rows by their distances alone: (n, d) -> (n,) bool, who is in the second one."""
    distances = pairwise_squared_distances(x, present)
    finite = jnp.where(jnp.isfinite(distances), distances, 0)
    first, second = jnp.unravel_index(jnp.argmax(finite), finite.shape)

    def from_centre(members: Array) -> Array:
        share = members / jnp.maximum(jnp.sum(members), 1)
        # |x_i - mean|^2 = mean_j D_ij - mean_jk D_jk / 2
        mean_distance = jnp.dot(finite, share, precision="highest")
        return mean_distance - 0.5 * jnp.dot(share, mean_distance, precision="highest")

    def again(_: int, in_second: Array) -> Array:
        one = from_centre((present & ~in_second).astype(x.dtype))
        two = from_centre((present & in_second).astype(x.dtype))
        return present & (two < one)

    start = present & (finite[second] < finite[first])
    return jax.lax.fori_loop(0, 10, again, start)


def accuracy_auditing(
    accuracy: Callable[[Array], Array], drop: float | Array, base: Aggregator | None = None
) -> Aggregator:
    """Accuracy auditing: reject updates whose own model is abnormally bad at the main task.

    Bagdasaryan et al., section VI-A; they print no threshold. A row is rejected if the accuracy of
    the received model plus the row is lower than the median row's by more than ``drop``. Reports
    ``accuracies`` (n,) besides ``selected``.

    Args:
      accuracy: params (d,) -> accuracy () in [0, 1], on examples of the server.
      drop: in [0, 1).
      base: the rule for the rows that stay; default the mean.

    Raises:
      ValueError: if ``drop`` is out of range.
    """
    if is_number(drop) and not 0 <= drop < 1:
        raise ValueError(f"accuracy_auditing needs 0 <= drop < 1, got {drop}")

    def select(updates: Array, present: Array, received: Received) -> tuple[Array, Info]:
        accuracies = jax.lax.map(lambda update: accuracy(received.params + update), updates)
        typical = coordinate_median(accuracies[:, None], present)[0]
        return accuracies >= typical - drop, {"accuracies": accuracies}

    return _selecting(select, base)


def sybil_check(largest: float | Array, base: Aggregator | None = None) -> Aggregator:
    """Updates that are too similar to another one are discarded, all of them.

    The check that Bagdasaryan et al. describe in section VI-B ("measures the cosine similarity across
    the submitted updates and discards those that are very similar to each other"). It is not FoolsGold,
    which weighs by similarities of histories. Reports ``similarity`` (n,), each row's largest cosine to
    another present row (-1 without one), besides ``selected``.

    Args:
      largest: in [-1, 1]; a row stays if no other row's cosine to it is greater.
      base: the rule for the rows that stay; default the mean.

    Raises:
      ValueError: if ``largest`` is out of range.
    """
    if is_number(largest) and not -1 <= largest <= 1:
        raise ValueError(f"sybil_check needs -1 <= largest <= 1, got {largest}")

    def select(updates: Array, present: Array, received: Received) -> tuple[Array, Info]:
        unit, _ = direction_and_length(updates)
        cosines = jnp.dot(unit, unit.T, precision="highest")
        others = present[None, :] & ~jnp.eye(len(unit), dtype=bool)
        similarity = jnp.max(jnp.where(others, cosines, -1), axis=1)
        return similarity <= largest, {"similarity": similarity}

    return _selecting(select, base)


def cosine_to_model(deviations: float | Array = 3.0, base: Aggregator | None = None) -> Aggregator:
    """Submitted models whose direction differs from the others', seen from the previous global model.

    Bagdasaryan et al., section VI-B: cos(L_i, G) of each submitted model L_i = G + update with the
    received one; scaling makes the attacker's stand out. They print no threshold. A row is rejected if
    its cosine lies further from the median than so many standard deviations, estimated by 1.4826 times
    the median absolute deviation. Reports ``cosines`` (n,) besides ``selected``.

    1 - cosine is 1e-6 and less for short updates, where a cosine in float32 has no digits left: it is
    computed as |u - v|^2 / 2 of the two unit vectors.

    Args:
      deviations: > 0.
      base: the rule for the rows that stay; default the mean.

    Raises:
      ValueError: if ``deviations`` is not positive.
    """
    if is_number(deviations) and not deviations > 0:
        raise ValueError(f"cosine_to_model needs deviations > 0, got {deviations}")

    def select(updates: Array, present: Array, received: Received) -> tuple[Array, Info]:
        model, _ = direction_and_length(received.params)
        sent, _ = direction_and_length(received.params + updates)
        distance = 0.5 * jnp.sum(jnp.square(sent - model), axis=1)
        typical = coordinate_median(distance[:, None], present)[0]
        deviation = jnp.abs(distance - typical)
        spread = 1.4826 * coordinate_median(deviation[:, None], present)[0]
        return deviation <= deviations * spread, {"cosines": 1 - distance}

    return _selecting(select, base)
