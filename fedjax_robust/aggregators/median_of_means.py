"""Median of means, and its variance-reduced form.

Chen, Su, Xu, "Distributed Statistical Machine Learning in Adversarial Settings: Byzantine Gradient
Descent", POMACS 2017 (https://arxiv.org/abs/1705.05491), section 2: workers in groups, a mean in each,
the geometric median of the means. Tu, Liu, Mao, Chen, "Variance Reduced Median-of-Means Estimator for
Byzantine-Robust Distributed Inference", JMLR 2021 (https://jmlr.org/papers/v22/20-950.html).
"""

from __future__ import annotations

from statistics import NormalDist

import jax
import jax.numpy as jnp
import numpy as np

from fedjax_robust import checks
from fedjax_robust.aggregators.base import cleaned, stateless
from fedjax_robust.aggregators.coordinate import median
from fedjax_robust.kernels.norms import weighted_mean
from fedjax_robust.kernels.ranks import coordinate_median
from fedjax_robust.memo import same_for_equal_arguments
from fedjax_robust.types import Aggregator, Array, Info, Received, State

MEDIAN = median()


@same_for_equal_arguments
def median_of_means(groups: Array, *, base: Aggregator = MEDIAN) -> Aggregator:
    """A rule on the groups' weighted means; the median of each coordinate, or ``geometric_median()``.

    A malicious client spoils its group, so there must be more than 2f groups. Groups are fixed; new ones
    in every round are ``bucketing``. A group without a present row is absent. To the inner rule a group
    is a client: its id is its number, and all groups weigh 1.

    Args:
      groups: (N,) integers >= 0, the group of each client, by id.
      base: the rule on the means.

    Raises:
      ValueError: if groups is not (N,) of integers >= 0 with N >= 1.
      TypeError: if it is no array of numbers, or base no rule.

    >>> median_of_means([0, 0, 1, 2])(jnp.array([[1.0], [3.0], [5.0], [90.0]])).tolist()
    [5.0]
    """
    checks.part("median_of_means", Aggregator, base=base)
    numbers = np.asarray(checks.array("median_of_means", "groups", groups))
    if numbers.ndim != 1 or not numbers.size or numbers.dtype.kind not in "iu" or numbers.min() < 0:
        raise ValueError(
            "median_of_means needs groups (N,) of integers >= 0, one for each client, got shape "
            f"{numbers.shape} of {numbers.dtype}"
            + (f", from {numbers.min()}" if numbers.size and numbers.dtype.kind in "iu" else "")
        )
    number = int(numbers.max()) + 1

    def init(num_clients: int, params: Array) -> State:
        if num_clients > numbers.size:
            raise ValueError(
                f"median_of_means needs a group for each of the N={num_clients} clients, got groups of "
                f"{numbers.size}"
            )
        return base.init(number, params)

    def aggregate(received: Received, state: State) -> tuple[Array, State, Info]:
        received = cleaned(received)
        updates, weights = received.updates, received.weights
        own = jnp.asarray(numbers).at[received.ids].get(mode="fill", fill_value=number)
        members = weights * (own == jnp.arange(number)[:, None])
        means = jax.vmap(weighted_mean, (None, 0))(updates, members)
        ids = jnp.arange(number, dtype=jnp.int32)
        there = jnp.any(members > 0, axis=1).astype(weights.dtype)
        inner = received._replace(updates=means, weights=there, ids=ids)
        result, state, info = base.aggregate(inner, state)
        return result, state, {k: v for k, v in info.items() if k not in _OF_CLIENTS}

    return Aggregator(init, aggregate)


_OF_CLIENTS = ("selected", "clipped", "removed", "trust")
"""Reports (n,) of rows; a group is no client."""


@same_for_equal_arguments
def vrmom(levels: int = 10) -> Aggregator:
    """The variance-reduced median of each coordinate: the median, corrected by how many values lie below
    some quantiles of a normal distribution around it.

    With D_k the standard normal quantile of k / (K + 1), phi its density and sd a robust scale::

        median - sd / (n sum_k phi(D_k)) sum_k (#{x_j <= median + sd D_k} - n k / (K + 1))

    sd is 1.4826 times the median absolute deviation (our choice; the paper takes a standard deviation
    from one machine's examples). On group means it is ``median_of_means(groups, base=vrmom())``. The
    counts have no gradient. From memory of the paper.

    Args:
      levels: K >= 1.

    Raises:
      ValueError: if levels < 1.
      TypeError: if it is no whole number.

    >>> round(float(vrmom(3)(jnp.array([[1.0], [2.0], [3.0], [4.0], [100.0]]))[0]), 4)
    2.8567
    """
    checks.static_count("vrmom", 1, levels=levels)
    normal = NormalDist()
    quantiles = [normal.inv_cdf(k / (levels + 1)) for k in range(1, int(levels) + 1)]
    density = sum(map(normal.pdf, quantiles))

    def rule(received: Received) -> tuple[Array, Info]:
        updates, present = received.updates, received.weights > 0
        middle = coordinate_median(updates, present)
        scale = _SCALE * coordinate_median(jnp.abs(updates - middle), present)
        number = jnp.sum(present).astype(middle.dtype)
        surplus = jnp.zeros_like(middle)
        for k, quantile in enumerate(quantiles, start=1):
            below = present[:, None] & (updates <= middle + scale * quantile)
            surplus += jnp.sum(below, axis=0) - number * k / (levels + 1)
        return middle - scale * surplus / (jnp.maximum(number, 1) * density), {}

    return stateless(rule)


_SCALE = 1.4826
