"""Directions in which a malicious row leaves the honest mean: functions of the honest rows' mean (d,) and
standard deviation (d,), divisor n -> p (d,), of any length.

Shejwalkar, Houmansadr, "Manipulating the Byzantine: Optimizing Model Poisoning Attacks and Defenses for
Federated Learning", NDSS 2021 (https://doi.org/10.14722/ndss.2021.24498), "perturbation vectors". They
are taken as printed, while rows here are updates: ``unit`` and ``signs`` point against the clients'
progress all the same; the paper's mean - gamma std of gradients is mean + gamma std of updates, which is
``lambda mean, std: std``. From memory of the paper: ``deviations`` do most harm on CIFAR-10 and Purchase,
the other two elsewhere; the authors' code takes ``unit`` if nothing is said.
"""

from __future__ import annotations

from collections.abc import Callable

import jax.numpy as jnp

from fedjax_robust import checks
from fedjax_robust.kernels.norms import direction_and_length
from fedjax_robust.types import Array

Direction = Callable[[Array, Array], Array]
"""mean (d,), standard deviation (d,) -> p (d,)"""


def unit(mean: Array, std: Array) -> Array:
    """Inverse unit vector, p = -mean / |mean|; zero if the mean is.

    Args:
      mean: (d,), of the honest rows.
      std: (d,), without influence.

    Raises:
      ValueError: for other shapes.
      TypeError: if they are no arrays of numbers.
    """
    mean, std = _pair("unit", mean, std)
    return -direction_and_length(mean)[0]


def signs(mean: Array, std: Array) -> Array:
    """Inverse sign, p = -sign(mean), 0 where the mean is 0.

    Args:
      mean: (d,), of the honest rows.
      std: (d,), without influence.

    Raises:
      ValueError: for other shapes.
      TypeError: if they are no arrays of numbers.
    """
    mean, std = _pair("signs", mean, std)
    return -jnp.sign(mean)


def deviations(mean: Array, std: Array) -> Array:
    """Inverse standard deviation, p = -std; taken as printed, see above.

    Args:
      mean: (d,), of the honest rows, without influence.
      std: (d,).

    Raises:
      ValueError: for other shapes.
      TypeError: if they are no arrays of numbers.
    """
    mean, std = _pair("deviations", mean, std)
    return -std


def _pair(what: str, mean: Array, std: Array) -> tuple[Array, Array]:
    mean = checks.shaped(what, "mean", mean, (None,), meaning="(d,)")
    std = checks.shaped(what, "std", std, mean.shape, meaning="(d,)")
    return _floats(mean), _floats(std)


def _floats(x: Array) -> Array:
    return x if jnp.issubdtype(x.dtype, jnp.floating) else x.astype(jnp.float32)
