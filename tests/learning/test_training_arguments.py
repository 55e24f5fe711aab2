"""How a module is told that it trains: each name of the argument that there is."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fedjax_robust import tasks

X = jnp.ones((4, 3))


class Train(nn.Module):
    @nn.compact
    def __call__(self, x, train):
        return nn.Dense(2)(nn.Dropout(0.5, deterministic=not train)(x))


class Training(nn.Module):
    @nn.compact
    def __call__(self, x, *, training=True):
        return nn.Dense(2)(nn.Dropout(0.5, deterministic=not training)(x))


class IsTraining(nn.Module):
    @nn.compact
    def __call__(self, x, is_training=True):
        return nn.Dense(2)(nn.Dropout(0.5, deterministic=not is_training)(x))


class Deterministic(nn.Module):
    @nn.compact
    def __call__(self, x, deterministic=False):
        return nn.Dense(2)(nn.Dropout(0.5, deterministic=deterministic)(x))


@pytest.mark.parametrize("kind", [Train, Training, IsTraining, Deterministic])
def test_dropout_acts_in_training_alone_whatever_the_argument_is_called(kind):
    task = tasks.classification(kind(), X[:1])
    params = task.init(jax.random.key(0))
    batch = {"x": X, "y": jnp.array([0, 1, 0, 1]), "mask": jnp.ones(4)}
    tree = task.unravel(params)["Dense_0"]
    logits = np.asarray(X) @ np.asarray(tree["kernel"]) + np.asarray(tree["bias"])
    np.testing.assert_allclose(task.logits(params, X), logits, rtol=1e-5, atol=1e-6)
    losses = np.log(np.exp(logits).sum(axis=1)) - logits[np.arange(4), [0, 1, 0, 1]]
    np.testing.assert_allclose(task.loss(params, batch), losses.mean(), rtol=1e-5)
    random = [float(task.training_loss(params, batch, jax.random.key(i))) for i in (1, 2, 1)]
    assert random[0] == random[2] != random[1] and losses.mean() not in random
