"""Triggers: functions x (b, ...) -> x of the same shape and dtype. Any such function will do.

``attacks.backdoors.data`` puts them on the examples that malicious clients own, ``attacks.poisons`` on
those of their batches; ``attacks.scaling`` and ``attacks.model_replacement`` submit what they have
trained. The papers' pixels are in ``attacks.backdoors.patterns``.

Pixel patterns: Bagdasaryan, Veit, Hua, Estrin, Shmatikov, "How To Backdoor Federated Learning", AISTATS
2020 (https://arxiv.org/abs/1807.00459), section V-E. Features: Cao, Fang, Liu, Gong, "FLTrust:
Byzantine-robust Federated Learning via Trust Bootstrapping", NDSS 2021 (https://arxiv.org/abs/2012.13995).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np

from fedjax_robust import checks
from fedjax_robust.attacks.poisons.batches import Trigger
from fedjax_robust.memo import same_for_equal_arguments
from fedjax_robust.types import Array


@same_for_equal_arguments
def pixel_trigger(pixels: Sequence[tuple[int, int]], value: float | Array = 1.0) -> Trigger:
    """Sets some pixels of images (b, H, W, C) to ``value`` in all channels.

    Args:
      pixels: (row, column) pairs of integers, >= 0, at least one.
      value: what they become, a finite number; images are in [0, 1].

    Raises:
      ValueError: for no pixels, negative ones, or fractions, or a value that is not finite; on use, for
        an input that is not (b, H, W, C), a pixel outside of the image, or a value that integers cannot
        hold.
      TypeError: if an argument is of another type.
    """
    places = whole_images(
        "pixel_trigger", "pixels", pixels, "(row, column) pairs >= 0, at least one"
    )
    if places.ndim != 2 or places.shape[1] != 2 or not len(places) or places.min() < 0:
        raise ValueError(
            f"pixel_trigger needs pixels, (row, column) pairs >= 0, at least one, got {pixels}"
        )
    checks.finite("pixel_trigger", value=value)
    rows, columns = places.T

    def trigger(x: Array) -> Array:
        x = checks.array("pixel_trigger", "x", x)
        _holds("pixel_trigger", x, value=value)
        if x.ndim != 4:
            raise ValueError(f"pixel_trigger needs images (b, H, W, C), got shape {x.shape}")
        if rows.max() >= x.shape[1] or columns.max() >= x.shape[2]:
            raise ValueError(
                f"pixel_trigger: pixels up to ({rows.max()}, {columns.max()}) do not lie in images of "
                f"{x.shape[1]}x{x.shape[2]}"
            )
        return x.at[:, rows, columns].set(jnp.asarray(value, x.dtype))

    return trigger


@same_for_equal_arguments
def mask_trigger(mask: Array | np.ndarray, pattern: float | Array | np.ndarray = 1.0) -> Trigger:
    """Sets what lies under a mask to a pattern.

    Args:
      mask: bool, of the shape of one input, or of a shape that broadcasts to it: (H, W, 1) is all
        channels.
      pattern: what the values become, a number or of such a shape, too.

    Raises:
      ValueError: if the mask is not bool or covers nothing, or the pattern is not finite; on use, if
        mask or pattern do not fit the inputs, or integers cannot hold the pattern.
      TypeError: if they are no arrays of numbers, or the mask is traced.
    """
    given = checks.array("mask_trigger", "mask", mask)
    if not checks.is_known(given):
        raise TypeError("mask_trigger needs a mask that is known when the program is compiled")
    mask = np.asarray(given)
    pattern = checks.array("mask_trigger", "pattern", pattern)
    if checks.is_known(pattern) and not np.all(np.isfinite(pattern)):
        raise ValueError("mask_trigger needs a pattern of finite numbers, got NaN or Inf")
    if mask.dtype != bool or not mask.any():
        raise ValueError(
            f"mask_trigger needs a mask of bool that covers something, got {mask.dtype}, {mask.sum()} set"
        )

    def trigger(x: Array) -> Array:
        x = checks.array("mask_trigger", "x", x)
        if x.ndim < 2:
            raise ValueError(f"mask_trigger needs inputs (b, ...), got shape {x.shape}")
        for name, shape in (("mask", mask.shape), ("pattern", pattern.shape)):
            if not _broadcasts(shape, x.shape[1:]):
                raise ValueError(
                    f"mask_trigger: a {name} {shape} does not fit inputs {x.shape[1:]}"
                )
        _holds("mask_trigger", x, pattern=pattern)
        return jnp.where(mask, pattern.astype(x.dtype), x)

    return trigger


def _broadcasts(shape: tuple[int, ...], to: tuple[int, ...]) -> bool:
    try:
        return np.broadcast_shapes(shape, to) == to
    except ValueError:
        return False


def whole_images(what: str, name: str, values: Any, rule: str) -> np.ndarray:
    """An array of integers that is known."""
    try:
        result = np.asarray(values)
    except (TypeError, ValueError) as error:  # ragged, or traced
        raise ValueError(f"{what} needs {name}, {rule}, got {values}") from error
    if result.size and result.dtype.kind not in "iu":
        raise (ValueError if result.dtype.kind == "f" else TypeError)(
            f"{what} needs {name}, {rule}, got {values}"
        )
    return result


def _holds(what: str, x: Array, **values: Any) -> None:
    """Refuse inputs of integers that cannot hold a value: it would be cut off."""
    if jnp.issubdtype(x.dtype, jnp.floating):
        return
    for name, value in values.items():
        known = checks.is_known(value)
        limits = jnp.iinfo(x.dtype) if jnp.issubdtype(x.dtype, jnp.integer) else None
        if limits is None or not known:
            fits = limits is not None and jnp.issubdtype(jnp.asarray(value).dtype, jnp.integer)
        else:
            number = np.asarray(value)
            whole = np.all(number == np.floor(number))
            fits = bool(whole and limits.min <= number.min() and number.max() <= limits.max)
        if not fits:
            shown = f"{name}={value}" if np.ndim(value) == 0 else name
            raise ValueError(
                f"{what} needs inputs of floats, or integers that can hold the {name}, got x of "
                f"{x.dtype} and {shown}"
            )


@same_for_equal_arguments
def feature_trigger(every: int = 20, value: float | Array = 0.0) -> Trigger:
    """Sets every 20th feature of (b, F) inputs to 0: the trigger on HAR.

    Counted from 1, as in "every 20th": features 20, 40, ..., which are the indices 19, 39, ... (on HAR
    28 of 561 features, the last one with index 559). SAFEFL's port of FLTrust has it so, too.

    Args:
      every: distance of the features, >= 1.
      value: what they become, a finite number.

    Raises:
      ValueError: if every < 1, or the value is not finite; on use, for an input that is not (b, F) with
        F >= every, or a value that integers cannot hold.
      TypeError: if an argument is of another type.
    """
    checks.static_count("feature_trigger", 1, every=every)
    checks.finite("feature_trigger", value=value)
    every = int(every)

    def trigger(x: Array) -> Array:
        x = checks.array("feature_trigger", "x", x)
        _holds("feature_trigger", x, value=value)
        if x.ndim != 2 or x.shape[1] < every:
            raise ValueError(
                f"feature_trigger(every={every}) needs inputs (b, F) with F >= {every}, got shape "
                f"{x.shape}"
            )
        return x.at[:, every - 1 :: every].set(jnp.asarray(value, x.dtype))

    return trigger
