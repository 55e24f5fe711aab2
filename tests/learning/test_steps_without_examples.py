"""A step without examples that count moves nothing: neither the model nor a momentum that is kept."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fedjax_robust import tasks
from fedjax_robust.clients.local import local_sgd
from fedjax_robust.types import ClientData, Task

# The gradient is the masked mean of -x: 0 without examples.
TOWARDS = Task(
    lambda key: jnp.zeros(2),
    lambda p, b: -tasks.masked_mean(b["x"] @ p, b["mask"]),
    None,
    lambda p: p,
)
X = jnp.array([[1.0, 0.0], [0.0, 2.0], [4.0, 4.0]])
VELOCITY = jnp.array([3.0, -5.0])


def update(client, count, mask=None, velocity=VELOCITY):
    examples = {"x": X} if mask is None else {"x": X, "mask": jnp.asarray(mask)}
    data = ClientData(examples, jnp.arange(3, dtype=jnp.int32), jnp.int32(count))
    result, velocity, _ = client.update(jax.random.key(0), jnp.ones(2), velocity, data)
    return result, velocity


@pytest.mark.parametrize("how", [{"steps": 1}, {"steps": 3}, {"epochs": 2}])
@pytest.mark.parametrize("size", [1, 2, None])
def test_a_client_without_examples_keeps_its_momentum(how, size):
    client = local_sgd(TOWARDS, 0.5, size, momentum=0.5, keep_momentum=True, **how)
    for count, mask in ((0, None), (3, [0.0, 0.0, 0.0])):
        moved, velocity = update(client, count, mask)
        np.testing.assert_array_equal(moved, [0, 0])
        np.testing.assert_array_equal(velocity, VELOCITY)


@pytest.mark.parametrize("keep", [False, True])
def test_only_steps_with_examples_count(keep):
    """One of three examples has a weight; batches of one. By hand: k steps from velocity v on the
    gradient g = (0, -2), with momentum 1/2 and rate 1/4; k is 1 in each epoch."""
    client = local_sgd(TOWARDS, 0.25, 1, epochs=3, momentum=0.5, keep_momentum=keep)
    moved, velocity = update(client, 3, [0.0, 1.0, 0.0], VELOCITY if keep else ())
    v, p = np.array([3.0, -5.0]) if keep else np.zeros(2), np.zeros(2)
    for _ in range(3):
        v = 0.5 * v + [0, -2]
        p = p - 0.25 * v
    np.testing.assert_allclose(moved, p, rtol=1e-6)
    if keep:
        np.testing.assert_allclose(velocity, v, rtol=1e-6)
