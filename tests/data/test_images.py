"""Changes of images: arguments, and what test_poisons.py does not compare with the reference."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fedjax_robust import data

KEY = jax.random.key(0)
IMAGES = np.random.default_rng(0).uniform(size=(3, 6, 7, 2)).astype(np.float32)


def test_random_rotation_turns_both_ways_up_to_its_angle():
    """A bright spot to the right of the centre goes up where an image turns counter-clockwise."""
    x = np.zeros((400, 41, 41, 1), np.float32)
    x[:, 19:22, 34:37] = 1  # 15 pixels to the right
    turned = np.asarray(data.random_rotation(30.0)(KEY, jnp.asarray(x)))[..., 0]
    mass = turned.sum(axis=(1, 2))
    grid = np.arange(41) - 20
    up = -(turned * grid[:, None]).sum(axis=(1, 2)) / mass
    right = (turned * grid).sum(axis=(1, 2)) / mass
    angle = np.degrees(np.arctan2(up, right))
    assert np.abs(angle).max() < 31 and angle.max() > 28 and angle.min() < -28
    # Uniform in +-30: mean 0, standard deviation 60 / sqrt(12); both up to five standard errors.
    assert abs(angle.mean()) < 5 * 60 / np.sqrt(12 * 400)
    assert angle.std() == pytest.approx(60 / np.sqrt(12), abs=1.5)
    assert abs(np.mean(angle > 0) - 0.5) < 5 / 2 / np.sqrt(400)


def test_random_crop_moves_every_way():
    """By every pair of steps up to the padding, and not beyond."""
    x = jnp.asarray(np.arange(1, 26, dtype=np.float32).reshape(1, 5, 5, 1))
    cropped = np.asarray(data.random_crop(2)(KEY, jnp.tile(x, (600, 1, 1, 1))))[..., 0]
    centres = {int(image[2, 2]) for image in cropped}  # where the centre comes from, never outside
    assert centres == set(range(1, 26))


@pytest.mark.parametrize("padding", [-1, 1.5, np.nan, np.array(-2), jnp.array(2.5)])
def test_bad_padding(padding):
    with pytest.raises(ValueError, match="random_crop needs padding"):
        data.random_crop(padding)


@pytest.mark.parametrize("degrees", [-1.0, np.nan, np.inf, np.array(np.nan), np.array([1.0, 2.0])])
def test_bad_angles(degrees):
    with pytest.raises(ValueError, match="random_rotation needs degrees"):
        data.random_rotation(degrees)


@pytest.mark.parametrize("argument", ["4", None, True, [4]])
def test_arguments_of_another_type(argument):
    for make in (data.random_crop, data.random_rotation):
        with pytest.raises((TypeError, ValueError), match="needs"):
            make(argument)


def test_padding_beyond_the_images():
    data.random_crop(6)(KEY, IMAGES)
    with pytest.raises(ValueError, match=r"padding=7 for images of \(6, 7\)"):
        data.random_crop(7)(KEY, IMAGES)


@pytest.mark.parametrize(
    "change",
    [
        data.random_crop(1),
        data.random_rotation(3),
        data.random_flip(),
        lambda key, x: data.shift(x, jnp.zeros((len(x), 2), int)),
        lambda key, x: data.rotate(x, jnp.zeros(len(x))),
        lambda key, x: data.variations(key, x, 2),
    ],
    ids=["crop", "rotation", "flip", "shift", "rotate", "variations"],
)
@pytest.mark.parametrize("x", [IMAGES[0], IMAGES[..., None], IMAGES.reshape(3, -1), IMAGES[:0]])
def test_images_of_another_shape(change, x):
    with pytest.raises(ValueError, match=r"needs x of shape \(b, H, W, C\)"):
        change(KEY, x)
    with pytest.raises((TypeError, ValueError), match="needs x"):
        change(KEY, np.full((2, 2, 2, 2), "a"))


def test_offsets_and_angles_that_do_not_fit():
    with pytest.raises(ValueError, match=r"offsets of shape \(b, 2\)"):
        data.shift(IMAGES, jnp.zeros((2, 2), int))
    with pytest.raises(TypeError, match="offsets of integers"):
        data.shift(IMAGES, jnp.zeros((3, 2)))
    with pytest.raises(ValueError, match=r"up to \[7, 0\] for images of \(6, 7\)"):
        data.shift(IMAGES, jnp.array([[0, 0], [7, 0], [0, 0]]))
    with pytest.raises(ValueError, match=r"degrees of shape \(b,\)"):
        data.rotate(IMAGES, 3.0)
    with pytest.raises(ValueError, match="finite"):
        data.rotate(IMAGES, [0.0, np.nan, 1.0])


def test_changes_that_are_none():
    with pytest.raises(ValueError, match="at least one change"):
        data.changed()
    for make in (data.changed, lambda c: data.variations(KEY, IMAGES, 3, c)):
        with pytest.raises(TypeError, match=r"call it, random_flip\(\.\.\.\)"):
            make(data.random_flip)
        with pytest.raises(TypeError, match=r"changes\[0\] to be a function"):
            make(4)
    with pytest.raises(ValueError, match=r"change 0 must return shape \(3, 6, 7, 2\)"):
        data.variations(KEY, IMAGES, 3, lambda key, x: x[:, 1:])
    with pytest.raises(ValueError, match="batches with images 'x', got \\['image'\\]"):
        data.changed(data.random_flip())(KEY, {"image": IMAGES})
    for number in (0, -1, 2.5, np.array(0)):
        with pytest.raises(ValueError, match="variations needs number"):
            data.variations(KEY, IMAGES, number)
    with pytest.raises(TypeError, match="variations needs a key"):
        data.variations(0, IMAGES, 3)


def test_equal_changes_are_the_same():
    """So that an equal simulation does not compile again."""
    one, two = (data.changed(data.random_crop(4), data.random_flip()) for _ in range(2))
    assert one is two and data.random_rotation(3.0) is data.random_rotation(3.0)
    assert data.random_crop(4) is not data.random_crop(3)
