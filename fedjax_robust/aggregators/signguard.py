"""SignGuard: rows of usual length whose signs are as most others', shortened to the median length.

Xu, Huang, Song, Lan, "Byzantine-robust Federated Learning through Collaborative Malicious Gradient
Filtering", ICDCS 2022 (https://arxiv.org/abs/2109.05872). With M the median length of the rows:

1. S_1: rows with 0.1 M <= |u| <= 3 M.
2. On a tenth of the coordinates, drawn anew in each round, the shares of positive, zero and negative
   entries of each row, each share divided by the largest one of all rows (+ 1e-8).
3. The rows are clustered by these features; S_2 is the largest cluster.
4. The rows of S_1 and S_2, shortened to M where they are longer, are averaged.

SignGuard-Sim has a fourth feature, the cosine to the last aggregate, SignGuard-Dist whether the distance
to it is large. In the first round, and after a zero aggregate, there is none: then Sim takes the median
cosine to all rows (with itself), Dist the sum of the n // 2 smallest distances (with itself). As in the
authors' code (https://github.com/JianXu95/SignGuard), the cosine is clamped to [0, median] and divided by
5 medians (0 if the median is not positive), and the distance counts as 0.2 where it is at least 1.1
medians, else 0.

What is ours:

- The clusters. The authors' are those of mean shift with an estimated bandwidth; here and in SAFEFL they
  are two, by 2-means (Lloyd's iteration from the two rows furthest apart, ten times). With clusters of
  equal size all rows are in S_2.
- The coordinates are drawn one by one, as in the paper; the authors' code takes a random block of
  neighbours, which often lies within one layer.
- If no row is in both sets, the model stays (the authors' code divides by zero). Their code also takes
  the pairwise features for three epochs.

``weights`` count in the final mean only. All report ``selected`` (n,) bool, or what ``base`` reports by
that name, and ``clipped`` (n,) bool, the rows that were shortened.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from fedjax_robust import checks
from fedjax_robust.aggregators.base import MEAN, cleaned, wrapping
from fedjax_robust.aggregators.clipping import clip_rows
from fedjax_robust.kernels.distances import pairwise_distances
from fedjax_robust.kernels.norms import accumulator, direction_and_length
from fedjax_robust.kernels.ranks import coordinate_median
from fedjax_robust.kernels.two_means import larger_cluster, two_means
from fedjax_robust.memo import same_for_equal_arguments
from fedjax_robust.types import Aggregator, Array, Info, Received, State


@same_for_equal_arguments
def signguard(
    share: float = 0.1,
    *,
    lower: float | Array = 0.1,
    upper: float | Array = 3.0,
    base: Aggregator = MEAN,
) -> Aggregator:
    """SignGuard, without memory; see the module's head.

    Args:
      share: of the d coordinates whose signs are counted, in (0, 1]; at least one is.
      lower: rows shorter than so many median lengths are left out, >= 0.
      upper: rows longer than so many median lengths are left out, > 0.
      base: the rule for the shortened rows that stay.

    Raises:
      ValueError: if share, lower or upper is out of range.
      TypeError: if one is no number, or base no rule.

    The third row is too long, and the last one's signs differ:

    >>> rows = jnp.array([[1.0, 2.0], [2.0, 1.0], [90.0, 90.0], [-2.0, -1.0]])
    >>> signguard(share=1.0)(rows).tolist()
    [1.5, 1.5]
    """
    share, keep = _checked("signguard", share, lower, upper, base)

    def change(received: Received) -> tuple[Received, Info]:
        return keep(received, None)

    return wrapping(change, base)


@same_for_equal_arguments
def signguard_sim(
    share: float = 0.1,
    *,
    lower: float | Array = 0.1,
    upper: float | Array = 3.0,
    base: Aggregator = MEAN,
) -> Aggregator:
    """SignGuard-Sim: the cosine to the last aggregate is a feature, too; see the module's head.

    Its state is that of base, and the last aggregate (d,).

    Args:
      share: of the d coordinates whose signs are counted, in (0, 1]; at least one is.
      lower: rows shorter than so many median lengths are left out, >= 0.
      upper: rows longer than so many median lengths are left out, > 0.
      base: the rule for the shortened rows that stay.

    Raises:
      ValueError: if share, lower or upper is out of range.
      TypeError: if one is no number, or base no rule.

    >>> rows = jnp.array([[1.0, 2.0], [2.0, 1.0], [90.0, 90.0], [-2.0, -1.0]])
    >>> signguard_sim(share=1.0)(rows).tolist()
    [1.5, 1.5]
    """
    share, keep = _checked("signguard_sim", share, lower, upper, base)
    return _with_last_aggregate(keep, _similarity, base)


@same_for_equal_arguments
def signguard_dist(
    share: float = 0.1,
    *,
    lower: float | Array = 0.1,
    upper: float | Array = 3.0,
    base: Aggregator = MEAN,
) -> Aggregator:
    """SignGuard-Dist: a large distance to the last aggregate is a feature, too; see the module's head.

    Its state is that of base, and the last aggregate (d,).

    Args:
      share: of the d coordinates whose signs are counted, in (0, 1]; at least one is.
      lower: rows shorter than so many median lengths are left out, >= 0.
      upper: rows longer than so many median lengths are left out, > 0.
      base: the rule for the shortened rows that stay.

    Raises:
      ValueError: if share, lower or upper is out of range.
      TypeError: if one is no number, or base no rule.

    >>> rows = jnp.array([[1.0, 2.0], [2.0, 1.0], [90.0, 90.0], [-2.0, -1.0]])
    >>> signguard_dist(share=1.0)(rows).tolist()
    [1.5, 1.5]
    """
    share, keep = _checked("signguard_dist", share, lower, upper, base)
    return _with_last_aggregate(keep, _distance, base)


Keep = Callable[[Received, Array | None], tuple[Received, Info]]
"""received, a fourth feature (n,) or None -> the shortened rows that stay, and the report."""


def _checked(
    what: str, share: float, lower: Any, upper: Any, base: Aggregator
) -> tuple[float, Keep]:
    checks.between(what, 0, 1, open_low=True, share=share)
    if not checks.is_known(share):
        raise TypeError(f"{what} needs share to be known when the program is compiled")
    checks.not_negative(what, lower=lower)
    checks.positive(what, infinite=True, upper=upper)
    checks.part(what, Aggregator, base=base)
    share = float(share)

    def keep(received: Received, fourth: Array | None) -> tuple[Received, Info]:
        present = received.weights > 0
        draw, rest = jax.random.split(received.key)
        usual, shortened, clipped = _by_length(received.updates, present, lower, upper)
        features = _shares_of_signs(draw, received.updates, present, share)
        if fourth is not None:
            features = jnp.concatenate([features, fourth[:, None].astype(features.dtype)], axis=1)
        selected = usual & larger_cluster(two_means(features, present), present)
        received = received._replace(
            updates=shortened, weights=jnp.where(selected, received.weights, 0), key=rest
        )
        return received, {"selected": selected, "clipped": clipped}

    return share, keep


def _with_last_aggregate(
    keep: Keep, feature: Callable[[Received, Array], Array], base: Aggregator
) -> Aggregator:
    def init(num_clients: int, params: Array) -> State:
        return base.init(num_clients, params), jnp.zeros_like(params)

    def aggregate(received: Received, state: State) -> tuple[Array, State, Info]:
        inner, last = state
        received = cleaned(received)
        fixed = received._replace(updates=jax.lax.stop_gradient(received.updates))
        rest, report = keep(received, feature(fixed, jax.lax.stop_gradient(last)))
        result, inner, info = base.aggregate(rest, inner)
        return result, (inner, result.astype(last.dtype)), report | info

    return Aggregator(init, aggregate)


def _by_length(
    updates: Array, present: Array, lower: Any, upper: Any
) -> tuple[Array, Array, Array]:
    """Rows of usual length (n,) bool, all rows shortened to the median length M, and which were."""
    _, length = direction_and_length(updates.astype(accumulator(updates.dtype)))
    typical = coordinate_median(length[:, None], present)[0]
    shortened, longer = clip_rows(updates, typical)
    fixed, middle = jax.lax.stop_gradient((length, typical))
    usual = present & (fixed >= lower * middle) & (fixed <= upper * middle)
    return usual, shortened, longer & present


def _shares_of_signs(draw: Array, updates: Array, present: Array, share: float) -> Array:
    """Positive, zero and negative entries of some coordinates, over the largest number: (n, 3)."""
    d = updates.shape[1]
    counted = max(int(share * d), 1)
    exact = accumulator(updates.dtype)
    taken = (jax.random.permutation(draw, d) < counted).astype(exact)
    signs = jnp.stack([updates > 0, updates == 0, updates < 0]).astype(exact)
    shares = jnp.dot(signs, taken, precision="highest").T / counted
    largest = jnp.max(jnp.where(present[:, None], shares, 0), axis=0)
    return shares / (largest + 1e-8)


def _median(values: Array, present: Array) -> Array:
    return coordinate_median(values[:, None], present)[0]


def _similarity(received: Received, last: Array) -> Array:
    """Cosines to the last aggregate or, without one, median cosines to all rows: (n,) in [0, 0.2]."""
    present = received.weights > 0
    units, _ = direction_and_length(received.updates.astype(accumulator(received.updates.dtype)))
    direction, length = direction_and_length(last.astype(units.dtype))
    cosines = jnp.dot(units, units.T, precision="highest")
    pairwise = coordinate_median(cosines, present)  # of each column; the matrix is symmetric
    to_last = jnp.dot(units, direction, precision="highest")
    similarity = jnp.where(length > 0, to_last, pairwise)
    typical = _median(similarity, present)
    positive = typical > 0
    divisor = jnp.where(positive, 5 * typical + 1e-8, 1)
    return jnp.where(positive, jnp.clip(similarity, 0, typical) / divisor, 0)


def _distance(received: Received, last: Array) -> Array:
    """0.2 where the distance to the last aggregate, or without one to the nearest rows, is large."""
    present = received.weights > 0
    rows = received.updates.astype(accumulator(received.updates.dtype))
    n = rows.shape[0]
    # The last aggregate is one more row: of distances, products are not to be trusted.
    together = jnp.concatenate([rows, last.astype(rows.dtype)[None]])
    distances = pairwise_distances(together, jnp.concatenate([present, jnp.ones(1, bool)]))
    ascending = jnp.sort(distances[:n, :n], axis=1)
    counted = jnp.arange(n) < jnp.sum(present) // 2
    nearest = jnp.sum(jnp.where(counted, ascending, 0), axis=1)
    distance = jnp.where(jnp.any(last != 0), distances[:n, n], nearest)
    return jnp.where(distance >= 1.1 * _median(distance, present), 0.2, 0).astype(rows.dtype)
