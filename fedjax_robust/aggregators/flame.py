"""FLAME: a majority cluster by direction, clipping at the median length, and noise.

Nguyen, Rieger, Chen, Yalame, Moellering, Fereidooni, Marchal, Miettinen, Mirhoseini, Zeitouni,
Koushanfar, Sadeghi, Schneider, "FLAME: Taming Backdoors in Federated Learning", USENIX Security 2022
(https://arxiv.org/abs/2101.02281).
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from fedjax_robust import checks
from fedjax_robust.aggregators.base import MEAN, cleaned
from fedjax_robust.aggregators.clipping import clip_rows
from fedjax_robust.kernels.distances import pairwise_distances
from fedjax_robust.kernels.norms import accumulator, direction_and_length, safe_norm
from fedjax_robust.kernels.ranks import coordinate_median
from fedjax_robust.memo import same_for_equal_arguments
from fedjax_robust.types import Aggregator, Array, Info, Received, State


@same_for_equal_arguments
def flame(
    *, noise: float | Array = 0.001, models: bool = True, base: Aggregator = MEAN
) -> Aggregator:
    """FLAME: keep the largest cluster of directions, clip at the median length, add noise.

    1. Clustering by cosine distance. The paper runs HDBSCAN with at least floor(n / 2) + 1 rows in a
       cluster, min_samples 1 and a single cluster allowed. That is single linkage: pairs are joined in
       the order of their distances until one component has so many rows, which is kept; equal distances
       join at once. With two rows or one, all stay.
    2. S = the median length of all present updates; kept rows are multiplied by min(1, S / length).
    3. The base rule, then N(0, (noise S)^2) in every coordinate, drawn with the round's key.

    Where a row (or model) is zero its cosine to others counts as 0, so that its distance is 1.

    Reports ``selected`` (n,) bool, and ``clipped`` (n,) bool, the selected rows that were longer than S.

    Args:
      noise: lambda >= 0, in units of S. The paper has sqrt(2 log(1.25 / delta)) / epsilon; .001 for its
        images, from memory of the paper.
      models: whether directions are those of the submitted models, received model + update, as in the
        paper, or (False) of the updates, as in several codes. Models differ little in direction; their
        distances are computed without rounding the sum.
      base: the rule for the rows that stay, clipped.

    Raises:
      ValueError: if noise is negative or not finite.
      TypeError: if it is no number, models no boolean, or base no rule.

    Three directions are the same; the median length is 3:

    >>> rows = jnp.array([[1.0, 0.0], [2.0, 0.0], [4.0, 0.0], [-3.0, 4.0]])
    >>> flame(noise=0.0)(rows).tolist()
    [2.0, 0.0]
    """
    checks.not_negative("flame", noise=noise)
    checks.boolean("flame", models=models)
    checks.part("flame", Aggregator, base=base)

    def aggregate(received: Received, state: State) -> tuple[Array, State, Info]:
        received = cleaned(received)
        updates, present = received.updates, received.weights > 0
        at = received.params if models else jnp.zeros_like(received.params)
        selected = majority_cluster(_cosine_distances(updates, at, present), present)
        median = coordinate_median(safe_norm(updates)[:, None], present)[0]
        clipped, longer = clip_rows(updates, median)
        own, inner = jax.random.split(received.key)
        rest = received._replace(
            updates=clipped, weights=jnp.where(selected, received.weights, 0), key=inner
        )
        result, state, info = base.aggregate(rest, state)
        random = jax.random.normal(own, result.shape, result.dtype)
        result = (result + noise * median * random).astype(result.dtype)
        return result, state, info | {"selected": selected, "clipped": longer & selected}

    return Aggregator(base.init, aggregate)


@jax.jit  # or every call outside of jit would compile its loop
def majority_cluster(distances: Array, present: Array) -> Array:
    """The first component of more than n / 2 present rows when pairs join by increasing distance.

    Args:
      distances: (n, n), symmetric; only those between present rows matter.
      present: (n,) bool.

    Returns:
      (n,) bool.
    """
    n = present.shape[0]
    pairs = present[:, None] & present[None, :]
    distances = jnp.where(pairs, distances, jnp.inf)

    # The smallest threshold at which two rows are in one component is the largest step of the best
    # path between them.
    def through(k: Array, reach: Array) -> Array:
        return jnp.minimum(reach, jnp.maximum(reach[:, k][:, None], reach[k][None, :]))

    reach = jax.lax.fori_loop(0, n, through, jnp.where(jnp.eye(n, dtype=bool), 0, distances))
    needed = jnp.sum(present) // 2 + 1
    threshold = jnp.take(jnp.sort(reach, axis=1), needed - 1, axis=1, mode="clip")
    threshold = jnp.where(present, threshold, jnp.inf)
    first = jnp.argmin(threshold)
    return present & (reach[first] <= threshold[first])


def _cosine_distances(updates: Array, params: Array, present: Array) -> Array:
    """|a - b| of the directions a, b of params + update: (n, n), sqrt(2 (1 - cosine)).

    With e the direction of params, params + update has the part a = |params| + e . update along e and b
    across it. Its direction is e + b / h + e (a / h - 1) with h = |(a, b)|; all but e differ from row to
    row, and a / h - 1 = -|b|^2 / (h (h + a)) is small where the update is short.
    """
    exact = accumulator(jnp.promote_types(updates.dtype, params.dtype))
    updates, params = jax.lax.stop_gradient((updates.astype(exact), params.astype(exact)))
    e, length = direction_and_length(params)
    directions, lengths = direction_and_length(updates)
    longer = jnp.maximum(lengths, length)  # in its units nothing overflows
    longer = jnp.where(longer > 0, longer, 1)
    own, rest = length / longer, lengths / longer
    along = jnp.dot(directions, e, precision="highest")
    across = rest[:, None] * (directions - along[:, None] * e)
    a, b = own + rest * along, safe_norm(across)
    h = safe_norm(jnp.stack([a, b], axis=1))
    defined = h > 0
    h = jnp.where(defined, h, 1)
    short = jnp.where(a > 0, -(b / h) * (b / (h + jnp.abs(a))), a / h - 1)
    distances = pairwise_distances(across / h[:, None] + short[:, None] * e, present)
    both = defined[:, None] & defined[None, :]
    distances = jnp.where(both, distances, jnp.sqrt(2.0).astype(exact))
    return jnp.where(jnp.eye(len(defined), dtype=bool), 0, distances)
