"""SMEA, smallest maximum eigenvalue averaging: the mean of the n - f rows that spread least.

Allouah, Guerraoui, Gupta, Pinot, Stephan, "On the Privacy-Robustness-Utility Trilemma in Distributed
Learning", ICML 2023 (https://arxiv.org/abs/2302.04787).
"""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp

from fedjax_robust import checks
from fedjax_robust.aggregators.base import MEAN, selecting
from fedjax_robust.kernels.spectra import covariance, in_one_unit, products_from_median
from fedjax_robust.kernels.subsets import check_number_of_subsets, lowest_subset
from fedjax_robust.memo import same_for_equal_arguments
from fedjax_robust.types import Aggregator, Array, Info, Received


@same_for_equal_arguments
def smea(f: int, *, base: Aggregator = MEAN) -> Aggregator:
    """Of all subsets of n - f rows the one whose covariance has the smallest largest eigenvalue.

    n is the number of present rows; of equal eigenvalues the subset of the first rows is taken. If only
    f rows or fewer are present, nobody is selected and the aggregate is zero.

    The eigenvalues are exact (from the rows' products), where other libraries take one step of the power
    method from a random start for each subset. It costs a median, a Gram matrix and C(n, f) times the
    eigenvalues of an (n, n) matrix, a few at a time: seconds for 50,000 subsets of 25 rows on a CPU.

    Reports ``selected`` (n,) bool.

    Args:
      f: number of malicious rows assumed, 0 <= f < n / 2; it must be known when the program is compiled.
      base: the rule for the rows that stay.

    Raises:
      ValueError: if f < 0; when called, if n <= 2f or C(n, f) > 200,000.
      TypeError: if f is no integer, or base no rule.

    Without its last row the matrix spreads least:

    >>> smea(f=1)(jnp.array([[1.0, 0.0], [2.0, 1.0], [0.0, 2.0], [-30.0, 40.0]])).tolist()
    [1.0, 1.0]
    """
    checks.static_count("smea", f=f)
    checks.part("smea", Aggregator, base=base)
    f = int(f)

    def select(received: Received) -> tuple[Array, Info]:
        present = received.weights > 0
        check_number_of_subsets("smea", len(present), f)
        products, size = products_from_median(jax.lax.stop_gradient(received.updates), present)
        return _least_spread(products, size, present, f), {}

    return selecting(select, base)


@partial(jax.jit, static_argnums=3)  # or every call outside of jit would compile its loop
def _least_spread(products: Array, size: Array, present: Array, f: int) -> Array:
    # In units of the largest of the n - f rows nearest to the median: neither the best subset's
    # eigenvalue nor those that come close leave the range of floats.
    nearest = jnp.sort(jnp.where(present, size, jnp.inf))
    last = jnp.maximum(jnp.sum(present) - f - 1, 0)
    products = in_one_unit(products, size, jnp.take(nearest, last, mode="clip"))

    def largest_eigenvalue(kept: Array) -> Array:
        shares = kept / jnp.maximum(jnp.sum(kept), 1).astype(products.dtype)
        return jnp.maximum(jnp.linalg.eigvalsh(covariance(products, shares))[-1], 0)

    return lowest_subset(largest_eigenvalue, present, f)
