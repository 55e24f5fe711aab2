"""The flat view of a flax model: loss and logits against NumPy, masks, names."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference

from fedjax_robust import models, tasks

RNG = np.random.default_rng(0)
X = RNG.normal(size=(6, 4)).astype(np.float32)
Y = RNG.integers(0, 3, 6).astype(np.int32)


@pytest.fixture(scope="module")
def task():
    return tasks.classification(models.SoftmaxRegression(3), jnp.zeros((1, 4)))


@pytest.fixture(scope="module")
def params(task):
    return jnp.asarray(RNG.normal(size=task.init(jax.random.key(0)).shape), jnp.float32)


def test_unravel_names_every_parameter_once(task, params):
    tree = task.unravel(params)
    assert tree.keys() == {"Dense_0"}
    assert tree["Dense_0"]["kernel"].shape == (4, 3)
    assert tree["Dense_0"]["bias"].shape == (3,)
    values = np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(tree)])
    np.testing.assert_array_equal(np.sort(values), np.sort(params))


def test_init_is_the_modules_own_and_depends_on_the_key(task):
    module = models.SoftmaxRegression(3)
    for seed in (0, 1):
        key = jax.random.key(seed)
        flat = task.init(key)
        assert flat.ndim == 1 and flat.dtype == jnp.float32
        expected = module.init(key, jnp.zeros((1, 4)))["params"]
        jax.tree.map(np.testing.assert_array_equal, task.unravel(flat), expected)
    assert not np.array_equal(task.init(jax.random.key(0)), task.init(jax.random.key(1)))


def test_logits_and_loss_are_those_of_numpy(task, params):
    dense = task.unravel(params)["Dense_0"]
    expected = X.astype(np.float64) @ np.asarray(dense["kernel"], np.float64) + dense["bias"]
    np.testing.assert_allclose(task.logits(params, X), expected, rtol=1e-5, atol=1e-5)
    losses = [-np.log(reference.softmax(row)[y]) for row, y in zip(expected, Y, strict=True)]
    batch = {"x": X, "y": Y}
    np.testing.assert_allclose(task.loss(params, batch), np.mean(losses), rtol=1e-5)
    weighted = np.array([1, 0, 0.5, 0, 1, 0])
    masked = task.loss(params, batch | {"mask": jnp.asarray(weighted)})
    np.testing.assert_allclose(masked, weighted @ np.array(losses) / 2.5, rtol=1e-5)


def test_masked_examples_do_not_matter(task, params):
    mask = jnp.array([1, 0, 1, 1, 0, 0])
    kept = np.asarray(mask) == 1
    other = np.where(kept[:, None], X, 1e3).astype(np.float32)
    gradient = jax.grad(task.loss)
    expected = gradient(params, {"x": X[kept], "y": Y[kept]})
    for each in (mask, mask.astype(bool), mask.astype(jnp.float32)):
        batch = {"x": other, "y": np.where(kept, Y, 0), "mask": each}
        np.testing.assert_allclose(gradient(params, batch), expected, rtol=1e-5, atol=1e-6)


def test_without_unmasked_examples_loss_and_gradient_are_zero(task, params):
    batch = {"x": X, "y": Y, "mask": jnp.zeros(6)}
    value, gradient = jax.value_and_grad(task.loss)(params, batch)
    assert float(value) == 0
    np.testing.assert_array_equal(gradient, 0)


def test_masked_mean():
    values = jnp.array([1.0, 2.0, 6.0])
    assert float(tasks.masked_mean(values, None)) == 3
    assert float(tasks.masked_mean(values, jnp.array([1, 0, 1]))) == 3.5
    assert float(tasks.masked_mean(values, jnp.array([False, True, False]))) == 2
    assert float(tasks.masked_mean(values, jnp.array([0, 0.25, 0.25]))) == 4
    assert float(tasks.masked_mean(values, jnp.zeros(3))) == 0


def test_batch_statistics_have_no_place():
    class Normalised(nn.Module):
        @nn.compact
        def __call__(self, x):
            return nn.Dense(3)(nn.BatchNorm(use_running_average=True)(x))

    with pytest.raises(ValueError, match=r"batch_stats.*GroupNorm"):
        tasks.classification(Normalised(), jnp.zeros((1, 4)))
