"""Changes of images that follow each other draw independently."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fedjax_robust.data import images

KEY = jax.random.key(4)
X = jnp.zeros((6, 2, 2, 1))


def add_draw(place):
    """Writes one draw per image into a pixel."""

    def change(key, x):
        return x.at[:, place // 2, place % 2, 0].set(jax.random.normal(key, x.shape[:1]))

    return change


@pytest.mark.parametrize("of", ["changed", "variations"])
def test_each_change_has_a_key_of_its_own(of):
    several = [add_draw(place) for place in range(4)]
    if of == "changed":
        x = images.changed(*several)(KEY, {"x": X})["x"]
    else:
        x = images.variations(KEY, X[:1], 6, *several)
    assert len(np.unique(x)) == 24  # six images times four changes
    assert len(np.unique(np.append(x, jax.random.normal(KEY, (6,))))) == 30
