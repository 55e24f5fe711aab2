"""Random changes of images (b, H, W, C), for training and for variations of held-out images.

All draw a change for each image on its own, are pure functions of their key, and can be traced. What
comes from outside of an image is 0.
"""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.scipy.ndimage import map_coordinates

from fedjax_robust.types import Array, Batch, Key

Change = Callable[[Key, Array], Array]
"""key, x (b, H, W, C) -> changed images of the same shape."""


def shift(x: Array, offsets: Array) -> Array:
    """Image i moved by offsets[i]: y[i, r, c] = x[i, r + offsets[i, 0], c + offsets[i, 1]].

    Args:
      x: (b, H, W, C).
      offsets: (b, 2) int32, in [-H, H] and [-W, W].
    """

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
      degrees: (b,).
    """

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


def random_crop(padding: int) -> Change:
    """Random crops of the images' own size after padding each side with zeros: shifts by up to
    ``padding`` >= 0 pixels in both directions. CIFAR-10's usual padding is 4."""
    if padding < 0:
        raise ValueError(f"random_crop needs padding >= 0, got {padding}")

    def change(key: Key, x: Array) -> Array:
        return shift(x, jax.random.randint(key, (x.shape[0], 2), -padding, padding + 1))

    return change


def random_rotation(degrees: float | Array) -> Change:
    """Rotations by an angle that is uniform in +-``degrees``."""

    def change(key: Key, x: Array) -> Array:
        return rotate(x, degrees * jax.random.uniform(key, x.shape[:1], minval=-1.0))

    return change


def random_flip() -> Change:
    """Every image is mirrored left to right with probability 1/2."""

    def change(key: Key, x: Array) -> Array:
        flip = jax.random.bernoulli(key, 0.5, (x.shape[0], 1, 1, 1))
        return jnp.where(flip, x[:, :, ::-1], x)

    return change


def changed(*changes: Change) -> Callable[[Key, Batch], Batch]:
    """Augmentation of batches, for ``local_sgd(poison=...)``: key, batch -> batch with changed images."""

    def augment(key: Key, batch: Batch) -> Batch:
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
      ValueError: for no images or no variations.
    """
    if x.shape[0] < 1 or number < 1:
        raise ValueError(
            f"variations needs images and number >= 1, got {x.shape[0]} images, number={number}"
        )
    return _in_turn(changes, key, jnp.asarray(x)[jnp.arange(number) % x.shape[0]])


def _in_turn(changes: tuple[Change, ...], key: Key, x: Array) -> Array:
    for i, change in enumerate(changes):
        x = change(jax.random.fold_in(key, i), x)
    return x
