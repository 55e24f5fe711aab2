"""Networks written in plain Flax: the same numbers by the rewritten program, and what is rewritten."""

import re

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from fedjax_robust import tasks
from fedjax_robust.convolution import fast_on_cpu
from fedjax_robust.types import Task


class Plain(nn.Module):
    @nn.compact
    def __call__(self, x):
        for features in (5, 6):
            x = nn.max_pool(nn.relu(nn.Conv(features, (3, 3))(x)), (2, 2), (2, 2))
        return nn.Dense(4)(x.reshape(x.shape[0], -1))


class ResNet(nn.Module):
    """With GroupNorm, a projection and a block that is computed again for the gradient."""

    @nn.compact
    def __call__(self, x):
        x = nn.Conv(8, (3, 3), use_bias=False)(x)
        for features, stride in ((8, 1), (16, 2)):
            y = nn.relu(nn.GroupNorm(4)(nn.Conv(features, (3, 3), stride, use_bias=False)(x)))
            y = nn.GroupNorm(4)(nn.remat(nn.Conv)(features, (3, 3))(y))
            if stride > 1:
                x = nn.GroupNorm(4)(nn.Conv(features, (1, 1), stride)(x))
            x = nn.relu(x + y)
        return nn.Dense(4)(nn.avg_pool(x, (2, 2), (2, 2)).mean((1, 2)))


class Unusual(nn.Module):
    """Strides, dilation, padding in pairs, overlapping windows; and three layers left to XLA."""

    @nn.compact
    def __call__(self, x):
        x = nn.Conv(6, (3, 2), (2, 1), ((2, 0), (1, 3)))(x)
        x = nn.max_pool(nn.Conv(6, (2, 3), kernel_dilation=(3, 2))(x), (3, 2), (2, 1), "SAME")
        x = nn.avg_pool(nn.tanh(x), (3, 3), (1, 2), ((1, 0), (0, 2)))
        x = nn.Conv(6, (3, 3), feature_group_count=3)(x)
        x = nn.ConvTranspose(4, (2, 2), (2, 2))(x)
        x = nn.Conv(4, (3,))(x.reshape(x.shape[0], -1, 4))  # one-dimensional
        return nn.Dense(4)(x.mean(1))


NETWORKS = [(Plain(), (9, 8, 3)), (ResNet(), (8, 10, 2)), (Unusual(), (11, 10, 2))]
IDS = ["plain", "resnet", "unusual"]
CLIENTS, BATCH = 3, 2


def problem(module, shape):
    """A task, each client's parameters and batch."""
    task = tasks.classification(module, jnp.zeros((1, *shape)))
    params = jax.vmap(task.init)(jax.random.split(jax.random.key(0), CLIENTS))
    x = jax.random.normal(jax.random.key(1), (CLIENTS, BATCH, *shape))
    return task, params, {"x": x, "y": jnp.arange(CLIENTS * BATCH).reshape(CLIENTS, BATCH) % 4}


def plain(module, task) -> Task:
    """The task without any rewriting."""

    def logits(params, x):
        return module.apply({"params": task.unravel(params)}, x)

    def loss(params, batch):
        losses = -jax.nn.log_softmax(logits(params, batch["x"]))
        return jnp.mean(losses[jnp.arange(BATCH), batch["y"]])

    return task._replace(logits=logits, loss=loss)


def operations(function, *args, platform="cpu"):
    """The names in a program for a platform, which need not be there."""
    lowered = jax.jit(function).trace(*args).lower(lowering_platforms=(platform,))
    return re.findall(r"stablehlo\.(\w+)", lowered.as_text())


@pytest.mark.parametrize(("module", "shape"), NETWORKS, ids=IDS)
def test_logits_and_gradients_are_those_of_plain_flax(module, shape):
    task, params, batch = problem(module, shape)

    def results(task):
        gradients = jax.jit(jax.vmap(jax.grad(task.loss)))(params, batch)
        shared = jax.jit(jax.vmap(jax.grad(task.loss), (None, 0)))(params[0], batch)
        each = jax.jit(jax.vmap(task.logits))(params, batch["x"])
        one = jax.jit(jax.vmap(task.logits, (None, 0)))(params[0], batch["x"])
        return gradients, shared, each, one

    for ours, theirs in zip(results(task), results(plain(module, task)), strict=True):
        scale = float(jnp.abs(theirs).max())
        np.testing.assert_allclose(ours, theirs, rtol=2e-5, atol=2e-6 * scale)
        assert scale > 0.01


@pytest.mark.parametrize(("module", "shape"), NETWORKS, ids=IDS)
def test_parameters_start_as_in_flax(module, shape):
    task, _, _ = problem(module, shape)
    key = jax.random.key(7)
    expected = module.init(key, jnp.zeros((1, *shape)))["params"]
    jax.tree.map(np.testing.assert_array_equal, task.unravel(task.init(key)), expected)


@pytest.mark.parametrize(
    ("module", "shape", "left"), [(*NETWORKS[0], 0), (*NETWORKS[1], 0), (*NETWORKS[2], 3)], ids=IDS
)
def test_what_trains_has_no_convolution_that_could_be_patches(module, shape, left):
    """A forward and two backward convolutions for each layer that is left to XLA."""
    task, params, batch = problem(module, shape)
    each = jax.vmap(jax.grad(task.loss))
    names = operations(each, params, batch)
    assert names.count("convolution") == 3 * left
    assert "select_and_scatter" not in names
    theirs = jax.vmap(jax.grad(plain(module, task).loss))
    before = operations(theirs, params, batch)
    assert before.count("convolution") > 3 * left
    # Elsewhere all is left to XLA.
    for platform in ("tpu", "cuda"):
        names, before = (operations(f, params, batch, platform=platform) for f in (each, theirs))
        for kind in ("convolution", "select_and_scatter", "reduce_window"):
            assert names.count(kind) == before.count(kind)


def test_an_evaluation_of_one_model_keeps_the_convolution():
    """Without gradients and clients' own weights it is faster, and has no patches in memory."""
    task, params, batch = problem(*NETWORKS[0])
    assert operations(task.logits, params[0], batch["x"][0]).count("convolution") == 2
    assert "convolution" not in operations(jax.vmap(task.logits), params, batch["x"])


@pytest.mark.parametrize(
    ("window", "strides", "padding"),
    [((2, 2), (2, 2), "VALID"), ((3, 2), (1, 2), "SAME"), ((2, 3), (2, 3), ((1, 0), (1, 1)))],
)
def test_equal_maxima_and_sums(window, strides, padding):
    """Images of few values, so that most windows have ties; gradients, and tangents."""
    x = jnp.round(jax.random.normal(jax.random.key(0), (3, 7, 6, 2)))
    t = jax.random.normal(jax.random.key(1), x.shape)

    def pools(x):
        return nn.max_pool(x, window, strides, padding), nn.avg_pool(x, window, strides, padding)

    def results(f):
        def loss(x):
            return sum(
                jnp.sum(jnp.sin(y + 0.1 * jnp.arange(y.size).reshape(y.shape))) for y in f(x)
            )

        return jax.grad(loss)(x), jax.jvp(f, (x,), (t,)), jax.vmap(f)(x[:, None])

    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6),
        results(fast_on_cpu(pools)),
        results(pools),
    )


@pytest.mark.parametrize("layout", [("NCHW", "OIHW", "NCHW"), ("HWNC", "IOHW", "CNHW")])
def test_layouts_and_loops(layout):
    """As PyTorch has the axes; within a scan, a jit, and a second derivative."""
    shape = {"N": 2, "C": 3, "H": 6, "W": 5}
    x = jax.random.normal(jax.random.key(0), [shape[axis] for axis in layout[0]])
    size = {"O": 3, "I": 3, "H": 3, "W": 2}
    kernels = jax.random.normal(jax.random.key(1), [2, *(size[axis] for axis in layout[1])])
    order = [layout[2].index(axis) for axis in layout[0]]

    def network(kernels, x):
        @jax.jit
        def layer(x, kernel):
            y = lax.conv_general_dilated(x, kernel, (1, 1), "SAME", dimension_numbers=layout)
            return jnp.tanh(y.transpose(order)), jnp.sum(y)

        return lax.scan(layer, x, kernels)

    def results(f):
        def slope(kernels):
            return jnp.sum(jax.grad(lambda k: jnp.sum(f(k, x)[0] ** 2))(kernels) ** 2)

        return f(kernels, x), jax.jit(jax.grad(slope))(kernels)

    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4 * np.abs(b).max()),
        results(fast_on_cpu(network)),
        results(network),
    )


def test_nothing_to_rewrite_and_integers():
    def counts(x):
        ones = jnp.ones((2, 2, 1, 1), x.dtype)
        y = lax.conv_general_dilated(
            x, ones, (1, 1), "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC")
        )
        return {
            "counts": y,
            "max": lax.reduce_window(x, 0, lax.max, (1, 2, 2, 1), (1,) * 4, "VALID"),
        }

    x = jnp.arange(18).reshape(2, 3, 3, 1)
    jax.tree.map(np.testing.assert_array_equal, fast_on_cpu(counts)(x), counts(x))
