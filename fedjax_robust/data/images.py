"""Random changes of images (b, H, W, C), for training and for variations of held-out images.

All draw a change for each image on its own, are pure functions of their key, and can be traced. What
comes from outside of an image is 0.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.ndimage import map_coordinates

from fedjax_robust import checks
from fedjax_robust.memo import same_for_equal_arguments
from fedjax_robust.types import Array, Batch, Key

Change = Callable[[Key, Array], Array]
"""key, x (b, H, W, C) -> changed images of the same shape."""


def shift(x: Array, offsets: Array) -> Array:
    """Image i moved by offsets[i]: y[i, r, c] = x[i, r + offsets[i, 0], c + offsets[i, 1]].

    Args:
      x: (b, H, W, C).
      offsets: (b, 2) int32, in [-H, H] and [-W, W].

    Raises:
      ValueError: other shapes, or offsets out of range (traced ones are taken as the nearest in range).
      TypeError: offsets that are no integers.
    """
    x = _images("shift", x)
    offsets = checks.shaped("shift", "offsets", offsets, (x.shape[0], 2), "integer", "(b, 2)")
    if checks.is_known(offsets) and np.any(np.abs(np.asarray(offsets)) > x.shape[1:3]):
        raise ValueError(
            f"shift needs offsets in [-H, H] and [-W, W], got some up to "
            f"{np.abs(np.asarray(offsets)).max(axis=0).tolist()} for images of {x.shape[1:3]}"
        )

    def one(image: Array, offset: Array) -> Array:
        height, width, _ = image.shape
        padded = jnp.pad(image, ((height, height), (width, width), (0, 0)))
        start = (height + offset[0], width + offset[1], jnp.zeros_like(offset[0]))
        return jax.lax.dynamic_slice(padded, start, image.shape)

    return jax.vmap(one)(x, offsets)


def rotate(x: Array, degrees: Array) -> Array:
    """Image i turned by degrees[i] counter-clockwise about its centre, interpolated bilinearly.

    Args:
      x: (b, H, W, C).
      degrees: (b,) finite.

    Raises:
      ValueError: other shapes, or angles that are not finite (a traced one makes its image NaN).
    """
    x = _images("rotate", x)
    degrees = checks.shaped("rotate", "degrees", degrees, x.shape[:1], meaning="(b,)")
    if checks.is_known(degrees) and not np.isfinite(np.asarray(degrees)).all():
        raise ValueError("rotate needs degrees that are finite, got NaN or infinite ones")

    def one(image: Array, angle: Array) -> Array:
        height, width, _ = image.shape
        centre = (height - 1) / 2, (width - 1) / 2
        row, column = jnp.meshgrid(
            jnp.arange(height) - centre[0], jnp.arange(width) - centre[1], indexing="ij"
        )
        cos, sin = jnp.cos(angle), jnp.sin(angle)
        # Rows run downwards. Where each pixel of the result comes from:
        source = [cos * row + sin * column + centre[0], cos * column - sin * row + centre[1]]
        return jax.vmap(lambda c: map_coordinates(c, source, order=1), -1, -1)(image)

    return jax.vmap(one)(x, jnp.deg2rad(degrees))


@same_for_equal_arguments
def random_crop(padding: int) -> Change:
    """Random crops of the images' own size after padding each side with zeros: shifts by up to
    ``padding`` pixels in both directions. CIFAR-10's usual padding is 4.

    Args:
      padding: pixels, >= 0, and at most the images' height and width.

    Raises:
      ValueError: padding out of range; of the images' size, when it is called.
    """
    checks.count("random_crop", padding=padding)

    def change(key: Key, x: Array) -> Array:
        x = _images("random_crop", x)
        if checks.is_known(padding) and padding > min(x.shape[1:3]):
            raise ValueError(
                f"random_crop needs padding of at most the images' size, got padding={padding} for "
                f"images of {x.shape[1:3]}"
            )
        return shift(x, jax.random.randint(key, (x.shape[0], 2), -padding, padding + 1))

    return change


@same_for_equal_arguments
def random_rotation(degrees: float | Array) -> Change:
    """Rotations by an angle that is uniform in +-``degrees``.

    Args:
      degrees: the largest angle, >= 0 and finite.

    Raises:
      ValueError: degrees out of range.
    """
    checks.not_negative("random_rotation", degrees=degrees)

    def change(key: Key, x: Array) -> Array:
        x = _images("random_rotation", x)
        return rotate(x, degrees * jax.random.uniform(key, x.shape[:1], minval=-1.0))

    return change


@same_for_equal_arguments
def random_flip() -> Change:
    """Every image is mirrored left to right with probability 1/2."""

    def change(key: Key, x: Array) -> Array:
        x = _images("random_flip", x)
        flip = jax.random.bernoulli(key, 0.5, (x.shape[0], 1, 1, 1))
        return jnp.where(flip, x[:, :, ::-1], x)

    return change


@same_for_equal_arguments
def changed(*changes: Change) -> Callable[[Key, Batch], Batch]:
    """Augmentation of batches, for ``local_sgd(poison=...)``: key, batch -> batch with changed images.

    Args:
      changes: at least one, done in this order.

    Raises:
      ValueError: no changes, a batch without ``x``, or changes that give images of another shape.
      TypeError: something that is no change, such as ``random_flip`` without ``()``.
    """
    _check_changes("changed", changes)
    if not changes:
        raise ValueError("changed needs at least one change, such as random_flip(), got none")

    def augment(key: Key, batch: Batch) -> Batch:
        if "x" not in batch:
            raise ValueError(f"changed needs batches with images 'x', got {sorted(batch)}")
        return {**batch, "x": _in_turn(changes, key, batch["x"])}

    return augment


def variations(key: Key, x: Array, number: int, *changes: Change) -> Array:
    """Random variations of a few images, each image in turn.

    Bagdasaryan et al. (2020, section V-C) measure backdoor accuracy on "1,000 randomly rotated and
    cropped versions" of 3 held-out images. By how much is not printed; the authors' code crops after a
    padding of 4, and flips::

        variations(key, held_out["x"], 1000, random_rotation(10), random_crop(4))

    Args:
      key: JAX key.
      x: (E, H, W, C), at least one image.
      number: of variations, >= 1.
      changes: what is done to each, in this order.

    Returns:
      (number, H, W, C).

    Raises:
      ValueError: for no images or no variations, or changes that give images of another shape.
      TypeError: something that is no change, such as ``random_flip`` without ``()``.
    """
    key = checks.key("variations", key)
    checks.static_count("variations", 1, number=number)
    _check_changes("variations", changes)
    x = _images("variations", x)
    return _in_turn(changes, key, x[jnp.arange(int(number)) % x.shape[0]])


def _images(what: str, x: Array) -> Array:
    return checks.shaped(what, "x", x, (None, None, None, None), meaning="(b, H, W, C)")


def _check_changes(what: str, changes: tuple[Change, ...]) -> None:
    for i, change in enumerate(changes):
        named: dict[str, Any] = {f"changes[{i}]": change}
        checks.function(what, **named)
        if change in (random_crop, random_rotation, random_flip):
            raise TypeError(
                f"{what} needs changes[{i}] to be a change, got the function {change.__name__}; call it, "
                f"{change.__name__}(...)"
            )


def _in_turn(changes: tuple[Change, ...], key: Key, x: Array) -> Array:
    for i, change in enumerate(changes):
        shape = x.shape
        x = change(jax.random.fold_in(key, i), x)
        checks.returned(f"change {i}", x, shape, floating=False)
    return x
