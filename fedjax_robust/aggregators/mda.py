"""MDA, minimum-diameter averaging: the mean of the n - f rows that are closest together.

El Mhamdi, Guerraoui, Rouault, "The Hidden Vulnerability of Distributed Learning in Byzantium", ICML 2018
(https://arxiv.org/abs/1802.07927), where it is called Brute; El Mhamdi, Guerraoui, Guirguis, Hoang,
Rouault, "Genuinely Distributed Byzantine Machine Learning", PODC 2020
(https://doi.org/10.1145/3382734.3405695).
"""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp

from fedjax_robust import checks
from fedjax_robust.aggregators.base import MEAN, selecting
from fedjax_robust.kernels.distances import pairwise_distances
from fedjax_robust.kernels.subsets import check_number_of_subsets, lowest_subset
from fedjax_robust.memo import same_for_equal_arguments
from fedjax_robust.types import Aggregator, Array, Info, Received


@same_for_equal_arguments
def mda(f: int, *, base: Aggregator = MEAN) -> Aggregator:
    """Minimum-diameter averaging: of all subsets of n - f rows, that with the smallest largest distance.

    n is the number of present rows. Equal diameters are frequent (two subsets may share the pair that is
    furthest apart); then the subset of the first rows is taken, in lexicographic order. If only f rows
    or fewer are present, nobody is selected and the aggregate is zero.

    Known to work while the honest rows' standard deviation is at most (n - f) / (sqrt(8) f) times the
    length of their mean. It costs the distances and C(n, f) n^2 comparisons, of which a few are in memory
    at a time: C(20, 4) = 4,845, C(25, 5) = 53,130, C(30, 7) = 2 million, which is refused.

    Reports ``selected`` (n,) bool.

    Args:
      f: number of malicious rows assumed, 0 <= f < n / 2; it must be known when the program is compiled.
      base: the rule for the rows that stay.

    Raises:
      ValueError: if f < 0; when called, if n <= 2f or C(n, f) > 200,000.
      TypeError: if f is no integer, or base no rule.

    The three closest rows are 0, 1 and 2, with diameter 2:

    >>> mda(f=2)(jnp.array([[2.0], [0.0], [-9.0], [1.0], [100.0]])).tolist()
    [1.0]
    """
    checks.static_count("mda", f=f)
    checks.part("mda", Aggregator, base=base)
    f = int(f)

    def select(received: Received) -> tuple[Array, Info]:
        present = received.weights > 0
        check_number_of_subsets("mda", len(present), f)
        distances = pairwise_distances(jax.lax.stop_gradient(received.updates), present)
        return _closest(distances, present, f), {}

    return selecting(select, base)


@partial(jax.jit, static_argnums=2)  # or every call outside of jit would compile its loop
def _closest(distances: Array, present: Array, f: int) -> Array:
    def diameter(kept: Array) -> Array:
        return jnp.max(jnp.where(kept[:, None] & kept[None, :], distances, 0))

    return lowest_subset(diameter, present, f)
