"""Checks that throw updates out: clustering (Auror), accuracy auditing, two cosine checks.

They are the anomaly detectors that Bagdasaryan, Veit, Hua, Estrin, Shmatikov, "How To Backdoor
Federated Learning", AISTATS 2020 (https://arxiv.org/abs/1807.00459), discuss and evade (sections VI-A and
VI-B). Each reports ``selected`` (n,) bool, the rows that another rule then aggregates, for
``metrics.detection``. Rows of weight 0, or with a NaN or Inf, are as if they had been deleted.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from fedjax_robust import checks
from fedjax_robust.aggregators.base import MEAN, selecting
from fedjax_robust.kernels.clusters import distance_of_centres, two_clusters
from fedjax_robust.kernels.distances import pairwise_distances
from fedjax_robust.kernels.norms import direction_and_length, power_of_two
from fedjax_robust.kernels.ranks import coordinate_median
from fedjax_robust.memo import same_for_equal_arguments
from fedjax_robust.types import Aggregator, Array, Info, Received, Score


@same_for_equal_arguments
def auror(threshold: float | Array, *, base: Aggregator = MEAN) -> Aggregator:
    """Auror: cluster the clients on the indicative coordinates and drop the smaller cluster.

    Shen, Tople, Saxena, "Auror: Defending against Poisoning Attacks in Collaborative Deep Learning
    Systems", ACSAC 2016 (https://doi.org/10.1145/2991079.2991125), in the form that section VI-A of
    Bagdasaryan et al. names ("k-means to cluster participants' updates and discards the outliers"):

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
      base: the rule for the rows that stay.

    Raises:
      ValueError: if the threshold is not positive and finite.
      TypeError: if it is no number, or ``base`` no rule.

    The means of the best split, 1 and 10, differ by more than 5, and the smaller cluster is the 10:

    >>> auror(threshold=5.0)(jnp.array([[0.0], [1.0], [2.0], [10.0]])).tolist()
    [1.0]
    """
    checks.positive("auror", threshold=threshold)
    checks.part("auror", Aggregator, base=base)

    def select(received: Received) -> tuple[Array, Info]:
        updates, present = received.updates, received.weights > 0
        indicative = distance_of_centres(updates, present) > threshold
        second = two_clusters(jnp.where(indicative, updates, 0), present)
        sizes = jnp.sum(present & ~second), jnp.sum(present & second)
        smaller = jnp.where(sizes[1] < sizes[0], second, ~second)
        drop = jnp.any(indicative) & (sizes[0] != sizes[1]) & smaller
        return ~drop, {"indicative": jnp.sum(indicative)}

    return selecting(select, base)


@same_for_equal_arguments
def accuracy_auditing(
    accuracy: Score, drop: float | Array, *, base: Aggregator = MEAN
) -> Aggregator:
    """Accuracy auditing: reject updates whose own model is abnormally bad at the main task.

    Bagdasaryan et al., section VI-A; they print no threshold. A row is rejected if the accuracy of
    the received model plus the row is lower than the median row's by more than ``drop``, or is NaN,
    which does not count in the median. Reports ``accuracies`` (n,) besides ``selected``.

    Args:
      accuracy: params (d,) -> accuracy () in [0, 1], on examples of the server.
      drop: in [0, 1).
      base: the rule for the rows that stay.

    Raises:
      ValueError: if ``drop`` is out of range; when called, if ``accuracy`` returns another shape.
      TypeError: if ``accuracy`` is no function, ``drop`` no number or ``base`` no rule.

    >>> def accuracy(params):
    ...     return jnp.where(params[0] > 5, 0.1, 0.9)
    >>> accuracy_auditing(accuracy, drop=0.5)(jnp.array([[1.0], [3.0], [9.0]])).tolist()
    [2.0]
    """
    checks.function("accuracy_auditing", accuracy=accuracy)
    checks.between("accuracy_auditing", 0, 1, open_high=True, drop=drop)
    checks.part("accuracy_auditing", Aggregator, base=base)

    def accuracy_with(params: Array, update: Array) -> Array:
        result = accuracy(params + update.astype(params.dtype))
        checks.returned("accuracy", result, ())
        return result

    def select(received: Received) -> tuple[Array, Info]:
        accuracies = jax.lax.map(
            lambda update: accuracy_with(received.params, update), received.updates
        )
        known = (received.weights > 0) & ~jnp.isnan(accuracies)
        typical = coordinate_median(jnp.where(known, accuracies, 0)[:, None], known)[0]
        return accuracies >= typical - drop, {"accuracies": accuracies}

    return selecting(select, base)


@same_for_equal_arguments
def sybil_check(largest: float | Array, *, base: Aggregator = MEAN) -> Aggregator:
    """Updates that are too similar to another one are discarded, all of them.

    The check that Bagdasaryan et al. describe in section VI-B ("measures the cosine similarity across
    the submitted updates and discards those that are very similar to each other"). It is not FoolsGold,
    which weighs by similarities of histories. Reports ``similarity`` (n,), each row's largest cosine to
    another present row (-1 without one), besides ``selected``.

    Args:
      largest: in [-1, 1]; a row stays if no other row's cosine to it is greater.
      base: the rule for the rows that stay.

    Raises:
      ValueError: if ``largest`` is out of range.
      TypeError: if it is no number, or ``base`` no rule.

    >>> sybil_check(largest=0.9)(jnp.array([[1.0, 0.0], [0.0, 2.0], [3.0, 0.0]])).tolist()
    [0.0, 2.0]
    """
    checks.between("sybil_check", -1, 1, largest=largest)
    checks.part("sybil_check", Aggregator, base=base)

    def select(received: Received) -> tuple[Array, Info]:
        exact = jnp.promote_types(received.updates.dtype, jnp.float32)
        unit, length = direction_and_length(received.updates.astype(exact))
        # 1 - cosine = |u - v|^2 / 2: of close directions, a product has no digits left.
        distances = pairwise_distances(unit, received.weights > 0)
        different = 0.5 * jnp.square(distances)
        both = (length[:, None] > 0) & (length[None, :] > 0)
        different = jnp.where(both | jnp.isinf(different), different, 1)  # of a zero row: cosine 0
        others = (received.weights > 0)[None, :] & ~jnp.eye(len(unit), dtype=bool)
        least = jnp.min(jnp.where(others, jnp.minimum(different, 2), 2), axis=1)
        return least >= 1 - largest, {"similarity": 1 - least}

    return selecting(select, base)


@same_for_equal_arguments
def cosine_to_model(deviations: float | Array = 3.0, *, base: Aggregator = MEAN) -> Aggregator:
    """Submitted models whose direction differs from the others', seen from the previous global model.

    Bagdasaryan et al., section VI-B: cos(L_i, G) of each submitted model L_i = G + update with the
    received one; scaling makes the attacker's stand out. They print no threshold. A row is rejected if
    its cosine lies further from the median than so many standard deviations, estimated by 1.4826 times
    the median absolute deviation. Reports ``cosines`` (n,) besides ``selected``.

    1 - cosine is 1e-6 and less for short updates, where a cosine in float32 has no digits left, and nor
    has G + update: it is computed from the update's parts along G and across it. Where G or L_i is
    zero, the cosine is 0.

    Args:
      deviations: > 0.
      base: the rule for the rows that stay.

    Raises:
      ValueError: if ``deviations`` is not positive and finite.
      TypeError: if it is no number, or ``base`` no rule.

    The models (1, 1), (1, 2), (1, 3), (1, 100) have the cosines 0.707, 0.447, 0.316, 0.010 with (1, 0).
    Their median is 0.382, from which they lie 0.325, 0.065, 0.065 and 0.372 away; the median of these is
    0.195, one deviation 0.290:

    >>> updates = jnp.array([[0.0, 1.0], [0.0, 2.0], [0.0, 3.0], [0.0, 100.0]])
    >>> cosine_to_model(deviations=1.2)(updates, params=jnp.array([1.0, 0.0])).tolist()
    [0.0, 2.0]
    """
    checks.positive("cosine_to_model", deviations=deviations)
    checks.part("cosine_to_model", Aggregator, base=base)

    def select(received: Received) -> tuple[Array, Info]:
        present = received.weights > 0
        distance, unit = _from_cosine(received.updates, received.params, present)
        typical = coordinate_median(distance[:, None], present)[0]
        deviation = jnp.abs(distance - typical)
        spread = 1.4826 * coordinate_median(deviation[:, None], present)[0]
        return deviation <= deviations * spread, {"cosines": 1 - distance * unit}

    return selecting(select, base)


def _from_cosine(updates: Array, params: Array, present: Array) -> tuple[Array, Array]:
    """1 - cos(params + update, params) of the rows, in a unit in which it is not too small for a float.

    With e the direction of params, the model params + update has the parts a = |params| + e . update
    along e and b across it: 1 - cos = 1 - a / h = b^2 / (h (h + a)), where h = |(a, b)|.

    Args:
      updates: (n, d).
      params: (d,).
      present: (n,) bool.

    Returns:
      (n,) >= 0, and () the unit.
    """
    exact = jnp.promote_types(jnp.promote_types(updates.dtype, params.dtype), jnp.float32)
    e, length = direction_and_length(params.astype(exact))
    directions, lengths = direction_and_length(updates.astype(exact))
    # In units of the longer one of params and update: nothing overflows.
    longer = jnp.maximum(lengths, length)
    longer = jnp.where(longer > 0, longer, 1)
    own, rest = length / longer, lengths / longer
    along = jnp.dot(directions, e, precision="highest")
    across = rest * direction_and_length(directions - along[:, None] * e)[1]
    a = own + rest * along
    h = direction_and_length(jnp.stack([a, across], axis=1))[1]
    defined = (h > 0) & (length > 0)
    h = jnp.where(defined, h, 1)
    typical, inverse = power_of_two(coordinate_median((across / h)[:, None], present)[0])
    scaled = across / h * inverse
    near = scaled * (across / (h + jnp.abs(a)) * inverse)
    distance = jnp.where(a > 0, near, (1 - a / h) * inverse * inverse)
    distance = jnp.where(defined, distance, inverse * inverse)
    return jnp.minimum(distance, jnp.finfo(exact).max), typical * typical
