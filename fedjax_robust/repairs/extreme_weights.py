"""Zeroing extreme weights until the accuracy falls.

Wu et al., 2020 (https://arxiv.org/abs/2011.01767), sections IV-C and V-C.
"""

from __future__ import annotations

from collections.abc import Sequence

import jax.numpy as jnp
import numpy as np

from fedjax_robust import checks
from fedjax_robust.repairs.layers import ConvolutionLayer, checked_mask, checked_parameters
from fedjax_robust.repairs.pruning import before_the_first_fall, check_limits, in_chunks
from fedjax_robust.repairs.validation import checked_score, refuse_nan
from fedjax_robust.types import Array, Info, Score

DELTAS = (10.0, 9.0, 8.0, 7.0, *(6 - 0.25 * i for i in range(21)))
"""From 10 down to 1: with steps of 1 below 6 a single step can cost so much that AW stops too early."""


def without_extreme_weights(
    layer: ConvolutionLayer, params: Array, delta: float | Array, keep: Array | None = None
) -> tuple[Array, Array]:
    """Zero the layer's weights outside of mu +- Delta sigma (section IV-C).

    Args:
      layer: the layer.
      params: (d,).
      delta: Delta > 0; 3 in Table I.
      keep: (C,) bool; only the weights of these neurons make mu and sigma; default all.

    Returns:
      (d,), and how many weights became zero, ().

    Raises:
      ValueError: if Delta is not positive, a shape is another one, or a known weight is not finite.
      TypeError: if an argument is of another type.
    """
    params = checked_parameters("without_extreme_weights", layer, params)
    checks.positive("without_extreme_weights", infinite=True, delta=delta)
    _refuse_not_finite("without_extreme_weights", params, layer.is_weight)
    kept = layer.is_weight
    if keep is not None:
        kept &= checked_mask("without_extreme_weights", layer, keep)[layer.channel]
    scaled, mean, deviation, _ = weight_moments(params, kept)
    extreme = kept & (jnp.abs(scaled - mean) > delta * deviation)
    return jnp.where(extreme, 0, params), jnp.sum(extreme)


def weight_moments(params: Array, kept: Array) -> tuple[Array, Array, Array, Array]:
    """Kept parameters in units of a power of two near the largest of them, so that squares neither
    overflow nor underflow; their mean and deviation in that unit; the unit.

    Dividing by a power of two is exact, so that the unit does not show in the results.
    """
    limits = jnp.finfo(params.dtype)
    largest = jnp.max(jnp.where(kept, jnp.abs(params), 0))
    # Not so large that its reciprocal is subnormal.
    _, exponent = jnp.frexp(jnp.clip(largest, limits.tiny, 1 / limits.tiny))
    unit = jnp.ldexp(jnp.ones_like(largest), exponent - 1)
    scaled = jnp.where(kept, params / unit, 0)
    number = jnp.maximum(jnp.sum(kept), 1)
    mean = jnp.sum(scaled) / number
    deviation = jnp.sqrt(jnp.sum(jnp.where(kept, jnp.square(scaled - mean), 0)) / number)
    return scaled, mean, deviation, unit


def _refuse_not_finite(what: str, params: Array, kept: Array) -> None:
    if checks.is_known(params) and checks.is_known(kept):
        wrong = np.sum(np.asarray(kept) & ~np.isfinite(params))
        if wrong:
            raise ValueError(
                f"{what} needs params whose weights are finite, got {wrong} that are NaN or Inf; they "
                "have no mean"
            )


def adjust_extreme_weights(
    layer: ConvolutionLayer,
    params: Array,
    validation: Score,
    *,
    deltas: Sequence[float] = DELTAS,
    drop: float = 0.01,
    floor: float | Array = -jnp.inf,
    keep: Array | None = None,
    chunk: int = 1,
) -> tuple[Array, Info]:
    """Lower Delta until the accuracy falls, and take the last one before that (section V-C).

    The paper names two criteria: "the same" as in pruning, here before the first Delta that costs more
    than ``drop`` of accuracy against the one before it, or against no change for the first; and "until
    the test accuracy drops below a certain threshold or the loss rises above" one, which is ``floor``
    (for a loss, let ``validation`` be its negative).

    Args:
      layer: the layer.
      params: (d,).
      validation: params -> accuracy.
      deltas: values to try, descending; one value is used as it is.
      drop: the fall between two values that is too much, > 0; inf: any fall will do.
      floor: the lowest accuracy that will do; -inf: any.
      keep: (C,) bool, neurons that are not pruned, whose weights make mu and sigma; default all.
      chunk: models evaluated in one vmapped batch, which needs that many times the memory.

    Returns:
      The parameters (d,), and a report: ``deltas`` and ``accuracies`` (K,), the ``delta`` () taken (inf:
      none, even the largest costs too much) and the number ``zeroed`` ().

    Raises:
      ValueError: if the deltas are not finite, positive and descending, ``drop`` is not positive,
        ``floor`` is not a number, ``chunk`` is below 1, a shape is another one, the accuracy of the
        model as it is is NaN, or a known weight is not finite.
      TypeError: if an argument is of another type.
    """
    what = "adjust_extreme_weights"
    params = checked_parameters(what, layer, params)
    _refuse_not_finite(what, params, layer.is_weight)
    given = checks.array(what, "deltas", deltas)
    if not checks.is_known(given):
        raise TypeError(f"{what} needs deltas that are known when the program is compiled")
    values = np.asarray(given, np.float32)
    if (
        values.ndim != 1
        or not len(values)
        or not (np.all(values > 0) and np.all(np.diff(values) < 0) and np.isfinite(values[0]))
    ):
        raise ValueError(f"{what} needs finite, positive, descending deltas, got {deltas}")
    validation = checked_score(what, validation)
    check_limits(what, drop, floor, chunk)
    if keep is not None:
        keep = checked_mask(what, layer, keep)
    before = validation(params)
    refuse_nan(what, before)

    def at(delta: Array) -> tuple[Array, Array]:
        adjusted, zeroed = without_extreme_weights(layer, params, delta, keep)
        return validation(adjusted), zeroed

    accuracies, zeroed = in_chunks(at, jnp.asarray(values), chunk)
    number = before_the_first_fall(jnp.concatenate([before[None], accuracies]), drop, floor)
    number = jnp.where(len(values) == 1, 1, number)
    delta = jnp.where(number > 0, jnp.asarray(values)[number - 1], jnp.inf)
    adjusted, _ = without_extreme_weights(layer, params, delta, keep)
    taken = jnp.where(number > 0, zeroed[number - 1], 0)
    report = {"deltas": jnp.asarray(values), "accuracies": accuracies}
    return adjusted, report | {"delta": delta, "zeroed": taken}
