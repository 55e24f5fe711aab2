"""ResNet20 and its normalisations: sizes, initial weights, values against NumPy, training."""

import functools
import math

import flax.linen as flax_nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fedjax_robust.clients.local import local_sgd
from fedjax_robust.models.residual import ResNet18, ResNet20
from fedjax_robust.models.small import ConvNet, MnistNet
from fedjax_robust.nn import BatchNorm, GroupNorm
from fedjax_robust.tasks import classification
from fedjax_robust.types import ClientData

# --- Normalisation -----------------------------------------------------------------------------------


def apply(module, x, scale=None, bias=None):
    channels = x.shape[-1:]
    scale = jnp.ones(channels) if scale is None else jnp.asarray(scale)
    bias = jnp.zeros(channels) if bias is None else jnp.asarray(bias)
    return module.apply({"params": {"scale": scale, "bias": bias}}, x)


def test_batch_norm_by_hand():
    """Two examples of one pixel: channel 0 has mean 2 and variance 1, channel 1 has 10 and 16."""
    x = jnp.array([[1.0, 6.0], [3.0, 14.0]]).reshape(2, 1, 1, 2)
    y = apply(BatchNorm(), x, [1.0, 2.0], [0.0, 5.0]).reshape(2, 2)
    one, two = 1 / math.sqrt(1 + 1e-5), 8 / math.sqrt(16 + 1e-5)
    np.testing.assert_allclose(y, [[-one, 5 - two], [one, 5 + two]], rtol=1e-6)
    np.testing.assert_array_equal(apply(BatchNorm(), x[:1]), 0)  # one pixel has no spread


def test_group_norm_by_hand():
    """One pixel of four channels in two groups: (1, 3) and (6, 14). The other example is apart."""
    x = jnp.array([[1.0, 3.0, 6.0, 14.0], [0.0, 0.0, 0.0, 0.0]]).reshape(2, 1, 1, 4)
    y = apply(GroupNorm(2), x, [1.0, 1.0, 1.0, 2.0], [0.0, 0.0, 0.0, 5.0]).reshape(2, 4)
    one, two = 1 / math.sqrt(1 + 1e-5), 4 / math.sqrt(16 + 1e-5)
    np.testing.assert_allclose(y[0], [-one, one, -two, 5 + 2 * two], rtol=1e-6)
    np.testing.assert_array_equal(y[1], [0, 0, 0, 5])


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        (BatchNorm(), flax_nn.BatchNorm(use_running_average=False, epsilon=1e-5)),
        (GroupNorm(4), flax_nn.GroupNorm(4, epsilon=1e-5)),
        (GroupNorm(1, epsilon=0.1), flax_nn.GroupNorm(1, epsilon=0.1)),
    ],
    ids=["batch", "group 4", "group 1"],
)
def test_norms_equal_flax(ours, theirs):
    """Values and gradients by parameters and input, vmapped over two clients."""
    x = 3 + 2 * jax.random.normal(jax.random.key(0), (2, 3, 4, 5, 8))
    names = jax.eval_shape(ours.init, jax.random.key(0), x[0])["params"]
    assert {name: leaf.shape for name, leaf in names.items()} == {"scale": (8,), "bias": (8,)}
    params = {"scale": jnp.linspace(0.5, 2, 16).reshape(2, 8), "bias": jnp.ones((2, 8))}

    def results(module):
        def loss(params, x):
            y = module.apply({"params": params}, x, mutable=["batch_stats"])[0]
            return jnp.sum(jnp.sin(y)), y

        return jax.jit(jax.vmap(jax.grad(loss, (0, 1), has_aux=True)))(params, x)

    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4),
        results(ours),
        results(theirs),
    )


def test_group_norm_refuses():
    for groups in (0, 3):
        with pytest.raises(ValueError, match=f"groups={groups}, channels=8"):
            apply(GroupNorm(groups), jnp.zeros((1, 2, 2, 8)))


# --- ResNet20 ----------------------------------------------------------------------------------------


def shapes(model, shape):
    return jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, *shape)))["params"]


@pytest.mark.parametrize(
    ("model", "shape", "size"),
    [
        # Convolutions 3*9*16 + 6*16*16*9 + (16*32 + 5*32*32)*9 + 16*32 + (32*64 + 5*64*64)*9 + 32*64
        # = 270,256; scales and biases 2 (6*16 + 7*32 + 7*64) = 1,536; dense 64*10 + 10 = 650.
        (ResNet20(10), (32, 32, 3), 272_442),
        (ResNet20(10, stem_norm=BatchNorm), (32, 32, 3), 272_474),
        (ResNet20(8), (64, 64, 1), 272_024),
        (ResNet20(8, norm=functools.partial(GroupNorm, groups=4)), (64, 64, 1), 272_024),
    ],
)
def test_number_of_parameters(model, shape, size):
    params = shapes(model, shape)
    assert sum(leaf.size for leaf in jax.tree.leaves(params)) == size
    assert params["Conv_0"].keys() == {"kernel"}  # no bias


def test_initial_weights():
    """Uniform within the limits of Xavier with magnitude pi, by hand; norms start as identities."""
    model = ResNet20(10)
    params = jax.jit(model.init)(jax.random.key(3), jnp.zeros((1, 8, 8, 3)))["params"]
    fans = [
        (params["Conv_0"], 27, 144),
        (params["ResidualBlock_3"]["Conv_0"], 144, 288),
        (params["ResidualBlock_8"]["Conv_1"], 576, 576),
        (params["ResidualBlock_6"]["Conv_2"], 32, 64),  # the projection
        (params["Dense_0"], 64, 10),
    ]
    for layer, fan_in, fan_out in fans:
        limit = math.sqrt(3.1415926 / ((fan_in + fan_out) / 2))
        assert 0.95 * limit < float(jnp.abs(layer["kernel"]).max()) <= limit
        assert float(layer["kernel"].std()) == pytest.approx(limit / math.sqrt(3), rel=0.1)
    np.testing.assert_array_equal(params["Dense_0"]["bias"], 0)
    norm = params["ResidualBlock_0"]["BatchNorm_0"]
    assert np.all(norm["scale"] == 1) and np.all(norm["bias"] == 0)


def convolution(x, kernel, stride, padding):
    """x (b, H, W, C), kernel (h, w, C, F): one output pixel after the other."""
    h, w = kernel.shape[:2]
    x = np.pad(x, ((0, 0), (padding, padding), (padding, padding), (0, 0)))
    rows = range(0, x.shape[1] - h + 1, stride)
    columns = range(0, x.shape[2] - w + 1, stride)
    pixels = [
        [np.einsum("bhwc,hwcf->bf", x[:, i : i + h, j : j + w], kernel) for j in columns]
        for i in rows
    ]
    return np.array(pixels).transpose(2, 0, 1, 3)


def batch_norm(x, params):
    y = np.empty_like(x)
    for c in range(x.shape[3]):
        values = x[..., c]
        y[..., c] = (values - values.mean()) / np.sqrt(values.var() + 1e-5)
    return y * params["scale"] + params["bias"]


def group_norm(x, params):
    y = np.empty_like(x)
    size = x.shape[3] // 8
    for i in range(len(x)):
        for first in range(0, x.shape[3], size):
            values = x[i, :, :, first : first + size]
            y[i, :, :, first : first + size] = (values - values.mean()) / np.sqrt(
                values.var() + 1e-5
            )
    return y * params["scale"] + params["bias"]


def resnet20(params, x, norm, name):
    """In float64: stem, nine blocks, mean over pixels, dense layer."""
    x = convolution(x, params["Conv_0"]["kernel"], 1, 1)
    for i, stride in enumerate([1, 1, 1, 2, 1, 1, 2, 1, 1]):
        block = params[f"ResidualBlock_{i}"]
        y = convolution(x, block["Conv_0"]["kernel"], stride, 1)
        y = np.maximum(norm(y, block[f"{name}_0"]), 0)
        y = norm(convolution(y, block["Conv_1"]["kernel"], 1, 1), block[f"{name}_1"])
        if i in (3, 6):
            x = convolution(x, block["Conv_2"]["kernel"], stride, 0)
            x = norm(x, block[f"{name}_2"])
        x = np.maximum(x + y, 0)
    return x.mean(axis=(1, 2)) @ params["Dense_0"]["kernel"] + params["Dense_0"]["bias"]


@pytest.mark.parametrize(
    ("model", "norm"),
    [
        (ResNet20(4), batch_norm),
        (ResNet20(4, norm=GroupNorm), group_norm),
        (ResNet18(4, width=4), batch_norm),
        (ResNet18(4, width=8, norm=GroupNorm), group_norm),
    ],
    ids=["batch", "group", "18", "18 group"],
)
def test_forward_equals_numpy(model, norm):
    """8x10 pixels, so that the stages have 8x10, 4x5 and 2x3; all parameters are random."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(3, 8, 10, 2)).astype(np.float32)
    params = jax.tree.map(
        lambda leaf: (
            rng.normal(0, math.sqrt(2 / math.prod(leaf.shape[:-1])), leaf.shape)
            if len(leaf.shape) > 1
            else rng.normal(1, 0.3, leaf.shape)
        ),
        shapes(model, (8, 10, 2)),
    )
    by_hand = resnet18 if isinstance(model, ResNet18) else resnet20
    expected = by_hand(params, x.astype(np.float64), norm, model.norm.__name__)
    single = jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float32), params)
    actual = jax.jit(model.apply)({"params": single}, x)
    np.testing.assert_allclose(actual, expected, rtol=2e-3, atol=2e-3)
    assert np.std(expected) > 0.1


def resnet18(params, x, norm, name):
    """In float64: stem with normalisation, eight blocks, mean over pixels, dense layer."""
    x = np.maximum(norm(convolution(x, params["Conv_0"]["kernel"], 1, 1), params[f"{name}_0"]), 0)
    for i, stride in enumerate([1, 1, 2, 1, 2, 1, 2, 1]):
        block = params[f"ResidualBlock_{i}"]
        y = convolution(x, block["Conv_0"]["kernel"], stride, 1)
        y = np.maximum(norm(y, block[f"{name}_0"]), 0)
        y = norm(convolution(y, block["Conv_1"]["kernel"], 1, 1), block[f"{name}_1"])
        if stride == 2:
            x = convolution(x, block["Conv_2"]["kernel"], stride, 0)
            x = norm(x, block[f"{name}_2"])
        x = np.maximum(x + y, 0)
    return x.mean(axis=(1, 2)) @ params["Dense_0"]["kernel"] + params["Dense_0"]["bias"]


def pooled(x):
    """Maxima of 2x2 windows; an odd last row or column is dropped."""
    height, width = x.shape[1] // 2, x.shape[2] // 2
    rows = [
        [x[:, 2 * i : 2 * i + 2, 2 * j : 2 * j + 2].max((1, 2)) for j in range(width)]
        for i in range(height)
    ]
    return np.array(rows).transpose(2, 0, 1, 3)


def dense(x, params, names):
    x = x.reshape(len(x), -1)
    for i, name in enumerate(names):
        x = (np.maximum(x, 0) if i else x) @ params[name]["kernel"] + params[name]["bias"]
    return x


def mnist_net(params, x):
    for name in ("Conv_0", "Conv_1"):
        x = convolution(x, params[name]["kernel"], 1, 0) + params[name]["bias"]
        x = pooled(np.maximum(x, 0))
    return dense(x, params, ["Dense_0", "Dense_1"])


def conv_net(params, x):
    for name, last in (("Conv_0", False), ("Conv_1", True), ("Conv_2", True)):
        x = np.maximum(convolution(x, params[name]["kernel"], 1, 0) + params[name]["bias"], 0)
        x = pooled(x) if last else x
    return dense(x, params, ["Dense_0", "Dense_1", "Dense_2"])


@pytest.mark.parametrize(
    ("model", "by_hand"),
    [
        (MnistNet(4, features=(3, 5), hidden=7), mnist_net),
        (ConvNet(4, blocks=((3, 4), (5,)), hidden=(7, 6)), conv_net),
    ],
    ids=["MnistNet", "ConvNet"],
)
def test_plain_networks_equal_numpy(model, by_hand):
    """In the papers' order, ReLU before pooling; all parameters are random."""
    rng = np.random.default_rng(1)
    x = rng.normal(size=(3, 17, 19, 2)).astype(np.float32)
    params = jax.tree.map(
        lambda leaf: rng.normal(0, math.sqrt(2 / math.prod(leaf.shape[:-1] or (9,))), leaf.shape),
        shapes(model, (17, 19, 2)),
    )
    expected = by_hand(params, x.astype(np.float64))
    single = jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float32), params)
    actual = jax.jit(model.apply)({"params": single}, x)
    np.testing.assert_allclose(actual, expected, rtol=1e-4, atol=1e-4)
    assert np.std(expected) > 0.1


def test_the_dense_layer_of_resnet18_starts_as_xaviers():
    """With GroupNorm, width 8: 64 -> 10, uniform within +-sqrt(pi / ((64 + 10) / 2)); bias 0."""
    model = ResNet18(10, width=8, norm=functools.partial(GroupNorm, groups=4))
    params = jax.jit(model.init)(jax.random.key(3), jnp.zeros((1, 8, 8, 3)))["params"]["Dense_0"]
    limit = math.sqrt(3.1415926 / ((64 + 10) / 2))
    assert 0.95 * limit < float(jnp.abs(params["kernel"]).max()) <= limit
    assert float(params["kernel"].std()) == pytest.approx(limit / math.sqrt(3), rel=0.1)
    np.testing.assert_array_equal(params["bias"], 0)


def test_two_clients_train_by_local_sgd():
    """Under vmap, each with weights of its own after the first step; gradients are finite."""
    rng = np.random.default_rng(0)
    y = np.arange(16).astype(np.int32) % 2
    x = (0.3 * rng.normal(size=(16, 8, 8, 1)) + (2 * y - 1)[:, None, None, None]).astype(np.float32)
    pool = {"x": jnp.asarray(x), "y": jnp.asarray(y)}
    data = ClientData(pool, jnp.arange(16).reshape(2, 8), jnp.array([8, 8]))
    task = classification(ResNet20(2), jnp.zeros((1, 8, 8, 1)))
    client = local_sgd(task, 0.02, 4, epochs=2)
    train = jax.jit(
        jax.vmap(
            lambda key, params, data: client.update(key, params, (), data),
            (0, None, ClientData(None, 0, 0, None, None)),
        )
    )
    params, losses = jax.jit(task.init)(jax.random.key(1)), []
    for i in range(5):
        updates, _, info = train(jax.random.split(jax.random.key(i), 2), params, data)
        assert updates.shape == (2, 271_634) and bool(jnp.isfinite(updates).all())
        assert float(jnp.abs(updates[0] - updates[1]).max()) > 0
        losses.append(float(info["train_loss"].mean()))
        params = params + updates.mean(axis=0)
    assert losses[-1] < 0.5 * losses[0]
