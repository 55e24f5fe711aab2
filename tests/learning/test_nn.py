"""Layers against Flax's own, and the models' sizes and initial weights."""

import flax.linen as flax_nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fedjax_robust import models
from fedjax_robust.nn import Conv, max_pool2x2

SETTINGS = [
    # kernel, stride, padding, input (H, W, C)
    ((3, 3), 1, "VALID", (8, 9, 2)),
    ((3, 3), 1, "SAME", (8, 9, 2)),
    ((3, 2), 2, "VALID", (8, 9, 1)),
    ((2, 5), 2, "SAME", (9, 8, 3)),
    ((3, 3), 3, "SAME", (10, 7, 2)),
    ((1, 1), 2, "SAME", (5, 5, 4)),
    ((4, 4), 1, "VALID", (4, 4, 1)),
    # As in ResNet20: at an even size and stride 2, not what SAME gives.
    ((3, 3), 1, 1, (8, 8, 3)),
    ((3, 3), 2, 1, (8, 8, 3)),
    ((1, 1), 2, 0, (8, 8, 3)),
    ((3, 2), 2, 2, (5, 6, 2)),
    ((3, 2), (2, 1), ((0, 1), (3, 2)), (6, 5, 2)),
    ((2, 3), (1, 3), (2, 0), (6, 7, 2)),
]


def normal(seed, shape):
    return jax.random.normal(jax.random.key(seed), shape)


def pair(kernel, stride, padding, use_bias=True):
    arguments = {"strides": stride, "padding": padding, "use_bias": use_bias}
    return Conv(6, kernel, **arguments), flax_nn.Conv(6, kernel, **arguments, precision="highest")


def close(a, b):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4), a, b)


@pytest.mark.parametrize(("kernel", "stride", "padding", "shape"), SETTINGS)
@pytest.mark.parametrize("weights", ["shared", "per client"])
def test_conv_equals_flax(kernel, stride, padding, shape, weights):
    """Values, and the gradients with respect to weights and input, of a vmap over three clients."""
    ours, theirs = pair(kernel, stride, padding)
    x = normal(0, (3, 2, *shape))
    params = theirs.init(jax.random.key(1), x[0])
    assert jax.tree.map(jnp.shape, params) == jax.tree.map(
        jnp.shape, jax.eval_shape(ours.init, jax.random.key(1), x[0])
    )
    if weights == "per client":
        params = jax.tree.map(lambda p: jnp.stack([p, 2 * p, -p]), params)

    def results(module):
        def loss(params, x):
            y = module.apply(params, x)
            return jnp.sum(jnp.sin(y)), y

        axes = (0 if weights == "per client" else None, 0)
        return jax.jit(jax.vmap(jax.grad(loss, (0, 1), has_aux=True), axes))(params, x)

    close(results(ours), results(theirs))


@pytest.mark.parametrize("padding", ["SAME", "VALID", 2])
def test_conv_dilation(padding):
    """The kernel's pixels 2 rows and 3 columns apart; the weights are one client's."""
    ours, theirs = (
        conv(4, (3, 2), (2, 1), padding, kernel_dilation=(2, 3)) for conv in (Conv, flax_nn.Conv)
    )
    x = normal(0, (2, 9, 8, 3))
    params = theirs.init(jax.random.key(1), x)
    jax.tree.map(np.testing.assert_array_equal, params, ours.init(jax.random.key(1), x))

    def gradient(module):
        return jax.jit(jax.grad(lambda p: jnp.sum(jnp.sin(module.apply(p, x)))))(params)

    close((ours.apply(params, x), gradient(ours)), (theirs.apply(params, x), gradient(theirs)))


def test_defaults_are_those_of_flax():
    x = normal(0, (2, 7, 6, 3))
    params = Conv(4, (3, 3)).init(jax.random.key(1), x)
    expected = flax_nn.Conv(4, (3, 3)).init(jax.random.key(1), x)
    jax.tree.map(np.testing.assert_array_equal, params, expected)
    close(Conv(4, (3, 3)).apply(params, x), flax_nn.Conv(4, (3, 3)).apply(params, x))


def test_conv_forward_mode():
    ours, theirs = pair((3, 3), 2, "SAME")
    x, t = normal(0, (2, 2, 7, 6, 3))
    params = theirs.init(jax.random.key(1), x)

    def tangent(module):
        return jax.jvp(jax.jit(module.apply), (params, x), (jax.tree.map(jnp.cos, params), t))

    close(tangent(ours), tangent(theirs))


def test_where_the_windows_start():
    """Rows of the pixels 1, 2, 3, 4; sums of three in a row, with a stride of 2: by hand."""
    x = jnp.tile(jnp.arange(1.0, 5.0), (4, 1)).reshape(1, 4, 4, 1)
    kernel = jnp.zeros((3, 3, 1, 1)).at[1].set(1)
    for padding, expected in (("SAME", [6, 7]), (1, [3, 9]), (0, [6]), ("VALID", [6])):
        conv = Conv(1, (3, 3), strides=2, padding=padding, use_bias=False)
        y = conv.apply({"params": {"kernel": kernel}}, x)
        np.testing.assert_array_equal(y[0, 0, :, 0], expected)


def test_conv_without_bias():
    ours, theirs = pair((3, 3), 1, "SAME", use_bias=False)
    x = normal(0, (2, 6, 6, 3))
    params = ours.init(jax.random.key(0), x)
    assert set(params["params"]) == {"kernel"}
    close(ours.apply(params, x), theirs.apply(params, x))


@pytest.mark.parametrize(
    ("module", "shape", "message"),
    [
        (Conv(0, (3, 3)), (1, 5, 5, 1), "features=0"),
        (Conv(2.5, (3, 3)), (1, 5, 5, 1), "features=2.5"),
        (Conv(2, (0, 3)), (1, 5, 5, 1), "kernel_size=0"),
        (Conv(2, (3, 3, 3)), (1, 5, 5, 1), r"two kernel_size.*\(3, 3, 3\)"),
        (Conv(2, (3, 3), strides=0), (1, 5, 5, 1), "strides=0"),
        (Conv(2, (3, 3), strides=(1, -1)), (1, 5, 5, 1), "strides=-1"),
        (Conv(2, (3, 3), kernel_dilation=0), (1, 5, 5, 1), "dilation=0"),
        (Conv(2, (3, 3), padding="FULL"), (1, 5, 5, 1), "'FULL'"),
        (Conv(2, (3, 3), padding=-1), (1, 5, 5, 1), "padding=-1"),
        (Conv(2, (3, 3), padding=((1, 1), (0, -1))), (1, 5, 5, 1), r"\(0, -1\)"),
        (Conv(2, (3, 3), padding=((1, 1),)), (1, 5, 5, 1), r"\(\(1, 1\),\)"),
        (Conv(2, (5, 5), padding=1), (1, 2, 4, 1), "at least 5x5 pixels .* got 4x6"),
        (Conv(2, (3, 3)), (5, 5, 1), "reshape"),
        (Conv(2, (3, 3), padding="VALID"), (1, 2, 5, 1), "at least 3x3 pixels .* got 2x5"),
        (
            Conv(2, (3, 3), padding="VALID", kernel_dilation=2),
            (1, 5, 4, 1),
            "at least 5x5 pixels .* got 5x4",
        ),
    ],
)
def test_conv_bad_input(module, shape, message):
    with pytest.raises(ValueError, match=message):
        module.init(jax.random.key(0), jnp.zeros(shape))


def test_a_kernel_of_one_number_is_one_dimensional_in_flax():
    with pytest.raises(TypeError, match=r"write \(3, 3\)"):
        Conv(2, 3).init(jax.random.key(0), jnp.zeros((1, 5, 5, 1)))


@pytest.mark.parametrize("size", [(2, 2), (3, 4), (11, 11)])
def test_max_pool_equals_flax(size):
    """Values, gradients (under vmap) and tangents, without ties."""
    x, t = normal(0, (2, 3, 2, *size, 5))
    weights = normal(1, (2, size[0] // 2, size[1] // 2, 5))

    def results(pool):
        def loss(x):
            return jnp.sum(weights * pool(x)), pool(x)

        gradient, y = jax.jit(jax.vmap(jax.grad(loss, has_aux=True)))(x)
        return y, gradient

    def theirs(x):
        return flax_nn.max_pool(x, (2, 2), (2, 2))

    expected = results(theirs)
    close(results(max_pool2x2), expected)
    # The pooling is linear near x, so its tangent and its gradient are transposes of each other.
    tangent = jax.jit(lambda x, t: jax.jvp(max_pool2x2, (x,), (t,))[1])(x[0], t[0])
    close(jnp.sum(weights * tangent), jnp.sum(expected[1][0] * t[0]))


def test_max_pool_shares_the_gradient_of_ties():
    x = jnp.array([[1.0, 2.0], [2.0, 0.0]]).reshape(1, 2, 2, 1)
    gradient = jax.grad(lambda x: 3 * max_pool2x2(x).sum())(x)
    np.testing.assert_array_equal(gradient.ravel(), [0, 1.5, 1.5, 0])


def test_max_pool_keeps_nan():
    for position in range(4):
        x = jnp.zeros(4).at[position].set(jnp.nan).reshape(1, 2, 2, 1)
        assert jnp.isnan(max_pool2x2(x)).all()


def test_max_pool_bad_input():
    for shape in ((4, 4, 1), (1, 1, 4, 1)):
        with pytest.raises(ValueError, match="max_pool2x2 needs"):
            max_pool2x2(jnp.zeros(shape))


MODELS = [
    # model, input, parameters, {kernel: limit of the uniform initialization}, by hand
    (models.SoftmaxRegression(10), (28, 28, 1), 7_850, {"Dense_0": (1.0, 784, 10)}),
    (models.SoftmaxRegression(2), (30,), 62, {"Dense_0": (1.0, 30, 2)}),
    (models.MLP(4, hidden=(20, 10)), (6,), 394, {"Dense_1": (2.24, 20, 10)}),
    (
        models.FangDNN(10),
        (28, 28, 1),
        266_060,
        {"Conv_0": (2.24, 9, 270), "Conv_1": (2.24, 270, 450)},
    ),
    (models.FLTrustCNN(10), (28, 28, 1), 139_960, {"Conv_1": (2.24, 270, 450)}),
]


@pytest.mark.parametrize(("model", "shape", "size", "limits"), MODELS)
def test_models(model, shape, size, limits):
    x = normal(0, (3, *shape))
    params = jax.jit(model.init)(jax.random.key(0), x)["params"]
    assert sum(leaf.size for leaf in jax.tree.leaves(params)) == size
    assert model.apply({"params": params}, x).shape == (3, model.num_classes)
    for name, (magnitude, fan_in, fan_out) in limits.items():
        limit = np.sqrt(magnitude / ((fan_in + fan_out) / 2))
        largest = float(jnp.abs(params[name]["kernel"]).max())
        assert 0.9 * limit < largest <= limit
        np.testing.assert_array_equal(params[name]["bias"], 0)


def test_dense_layers_of_the_networks():
    """Table 7a of Fang et al.: 1250 features, 200 hidden units, 10 classes; FLTrust has 100."""
    for model, hidden in ((models.FangDNN(10), 200), (models.FLTrustCNN(10), 100)):
        params = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 28, 28, 1)))["params"]
        dense = params["MLP_0"]
        assert dense["Dense_0"]["kernel"].shape == (1250, hidden)
        assert dense["Dense_1"]["kernel"].shape == (hidden, 10)


def test_network_equals_the_papers_order_of_layers():
    """ReLU before the pooling, as the paper has it, with Flax's own layers."""
    model = models.FangDNN(10)
    x = normal(0, (2, 28, 28, 1))
    params = jax.jit(model.init)(jax.random.key(1), x)["params"]
    labels = jnp.array([3, 7])

    def paper(params, x):
        for name, features in (("Conv_0", 30), ("Conv_1", 50)):
            conv = flax_nn.Conv(features, (3, 3), padding="VALID", precision="highest")
            x = flax_nn.max_pool(
                flax_nn.relu(conv.apply({"params": params[name]}, x)), (2, 2), (2, 2)
            )
        x = x.reshape(2, -1)
        dense = params["MLP_0"]
        x = flax_nn.relu(x @ dense["Dense_0"]["kernel"] + dense["Dense_0"]["bias"])
        return x @ dense["Dense_1"]["kernel"] + dense["Dense_1"]["bias"]

    def ours(params, x):
        return model.apply({"params": params}, x)

    def loss(apply, params):
        return -jnp.mean(jax.nn.log_softmax(apply(params, x))[jnp.arange(2), labels])

    close(*[jax.jit(jax.value_and_grad(lambda p, f=f: loss(f, p)))(params) for f in (ours, paper)])
