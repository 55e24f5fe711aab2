"""Means of the values nearest to a centre, coordinate by coordinate: MeaMed and Phocas.

Xie, Koyejo, Gupta, "Generalized Byzantine-tolerant SGD", 2018 (https://arxiv.org/abs/1802.10116), and
"Phocas: dimensional Byzantine-resilient stochastic gradient descent", 2018
(https://arxiv.org/abs/1805.09682). Both bear f bad values in every coordinate, each from other rows.
"""

from __future__ import annotations

import jax.numpy as jnp

from fedjax_robust import checks
from fedjax_robust.aggregators.base import stateless
from fedjax_robust.aggregators.krum import plain_integer
from fedjax_robust.kernels import ranks
from fedjax_robust.memo import same_for_equal_arguments
from fedjax_robust.types import Aggregator, Array, Info, Received


@same_for_equal_arguments
def mean_around_median(f: int | Array) -> Aggregator:
    """MeaMed: the mean of the n - f values nearest to the median; of two equally near ones the lower.

    Weights only say who is present, and n counts those.

    Args:
      f: number of malicious values assumed in a coordinate, 0 <= f < n / 2. It may be traced, and is not
        checked then.

    Raises:
      ValueError: if f < 0, or n <= 2f when called.

    The median of all five is 0, and 5 is the farthest from it:

    >>> mean_around_median(f=1)(jnp.array([[-4.0], [0.0], [0.0], [1.0], [5.0]])).tolist()
    [-0.75]
    """
    checks.count("mean_around_median", f=f)
    f = plain_integer(f)

    def rule(received: Received) -> tuple[Array, Info]:
        _enough("mean_around_median", received, f)
        present = received.weights > 0
        return ranks.mean_around_median(received.updates, present, _known_below(received, f)), {}

    return stateless(rule)


@same_for_equal_arguments
def phocas(f: int | Array) -> Aggregator:
    """Phocas: the mean of the n - f values nearest to the f-trimmed mean; of two equally near ones the
    lower.

    Weights only say who is present, and n counts those.

    Args:
      f: number of malicious values assumed in a coordinate, 0 <= f < n / 2. It may be traced, and is not
        checked then.

    Raises:
      ValueError: if f < 0, or n <= 2f when called.

    The trimmed mean is 1, and -4 is the farthest from it:

    >>> phocas(f=1)(jnp.array([[-4.0], [0.0], [1.0], [2.0], [5.0]])).tolist()
    [2.0]
    """
    checks.count("phocas", f=f)
    f = plain_integer(f)

    def rule(received: Received) -> tuple[Array, Info]:
        _enough("phocas", received, f)
        present = received.weights > 0
        exact = received.updates.astype(jnp.promote_types(received.updates.dtype, jnp.float32))
        centre = ranks.trimmed_mean_of_present(exact, present, f)
        nearest = ranks.mean_around(exact, present, centre, _known_below(received, f))
        return nearest.astype(received.updates.dtype), {}

    return stateless(rule)


def _enough(what: str, received: Received, f: int | Array) -> None:
    n = received.updates.shape[0]
    if checks.is_known(f) and n <= 2 * f:
        raise ValueError(f"{what} needs n > 2f, got n={n}, f={f}")


def _known_below(received: Received, f: int | Array) -> int | Array:
    return f if checks.is_known(f) else jnp.minimum(f, received.updates.shape[0] - 1)
