"""Pruning neurons until the accuracy falls.

Wu et al., 2020 (https://arxiv.org/abs/2011.01767), sections IV-A and V-B.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from fedjax_robust import checks
from fedjax_robust.repairs.layers import ConvolutionLayer, checked_parameters, with_neurons
from fedjax_robust.repairs.validation import checked_score, refuse_nan
from fedjax_robust.types import Array, Info, Score


def prune(
    layer: ConvolutionLayer,
    params: Array,
    order: Array,
    validation: Score,
    *,
    drop: float = 0.01,
    floor: float | Array = -jnp.inf,
    chunk: int = 1,
) -> tuple[Array, Array, Info]:
    """Prune neurons one after the other until the accuracy falls (sections IV-A and V-B).

    Pruning stops before the first neuron that costs more than ``drop`` of accuracy "between two testing
    points" (V-B), here between one neuron and the next, or after which the accuracy is "below a certain
    threshold" (IV-A), ``floor``. One neuron always stays.

    Args:
      layer: the layer.
      params: (d,).
      order: (C,) channels, each once, the first to be pruned first.
      validation: params -> accuracy. NaN counts as a fall.
      drop: the fall that is too much, > 0; 0.01 in the paper; inf: any fall will do.
      floor: the lowest accuracy that will do; -inf: any.
      chunk: models evaluated in one vmapped batch, which needs that many times the memory. C, all of
        them, is meant for accelerators; on a CPU 1 was fastest (C took 1.1 to 2 times as long).

    Returns:
      The pruned parameters (d,), the neurons kept (C,) bool, and a report: ``accuracies`` (C,) after
      0, 1, ..., C - 1 neurons, and the number ``pruned`` ().

    Raises:
      ValueError: if ``drop`` is not positive, ``floor`` is not a number, ``chunk`` is below 1, the order
        is no permutation, a shape is another one, or the accuracy of the whole model is NaN (unless it
        is traced: then nothing is pruned).
      TypeError: if an argument is of another type.
    """
    params = checked_parameters("prune", layer, params)
    order = checks.shaped("prune", "order", order, (layer.channels,), "integer", "(C,)")
    if checks.is_known(order) and not np.array_equal(np.sort(order), np.arange(layer.channels)):
        raise ValueError(
            f"prune needs an order of the channels 0, ..., {layer.channels - 1} with each of them once, "
            f"got {np.asarray(order).tolist()}"
        )
    validation = checked_score("prune", validation)
    check_limits("prune", drop, floor, chunk)
    position = jnp.argsort(order)  # when each channel goes

    def after(number: Array) -> Array:
        return validation(with_neurons(layer, params, position >= number))

    accuracies = in_chunks(after, jnp.arange(layer.channels), chunk)
    refuse_nan("prune", accuracies[0])
    number = before_the_first_fall(accuracies, drop, floor)
    keep = position >= number
    return with_neurons(layer, params, keep), keep, {"accuracies": accuracies, "pruned": number}


def check_limits(what: str, drop: float, floor: float | Array, chunk: int) -> None:
    """ValueError unless drop > 0 and chunk >= 1, floor being any number; TypeError for no numbers."""
    checks.positive(what, infinite=True, drop=drop)
    checks.finite(what, infinite=True, floor=floor, remedy="-inf: none")
    checks.static_count(what, 1, chunk=chunk, remedy="the models evaluated at once")


def in_chunks(function: Callable[[Array], Any], values: Array, chunk: int) -> Any:
    """A function of each of some values (k, ...), ``chunk`` of them at a time -> a tree of (k, ...)."""
    # A vmap over one model would still make its convolutions grouped ones.
    return jax.lax.map(function, values, batch_size=None if chunk == 1 else chunk)


def before_the_first_fall(accuracies: Array, drop: float, floor: float | Array) -> Array:
    """The last index before a step down of more than ``drop``, to below ``floor``, or from or to NaN."""
    steady = (accuracies[:-1] - accuracies[1:] <= drop) & (accuracies[1:] >= floor)
    falls = ~steady
    return jnp.where(jnp.any(falls), jnp.argmax(falls), len(accuracies) - 1)
