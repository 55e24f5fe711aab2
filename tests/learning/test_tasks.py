"""The flat view of a flax model: loss and logits against NumPy, masks, names."""

import flax
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference
from flax import nnx

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


# --- Dropout -------------------------------------------------------------------------------------


class Dropping(nn.Module):
    """Either convention, or none."""

    argument: str | None

    @nn.compact
    def __call__(self, x, flag):
        off = flag if self.argument == "deterministic" else not flag
        return nn.Dense(3)(nn.Dropout(0.5, deterministic=off)(nn.Dense(16)(x)))


class Train(Dropping):
    @nn.compact
    def __call__(self, x, train=True):
        return Dropping.__call__(self, x, train)


class Deterministic(Dropping):
    @nn.compact
    def __call__(self, x, *, deterministic):
        return Dropping.__call__(self, x, deterministic)


@pytest.mark.parametrize(
    ("module", "training"),
    [(Train("train"), {"train": True}), (Deterministic("deterministic"), {"deterministic": False})],
)
def test_dropout_acts_in_training_alone(module, training):
    task = tasks.classification(module, X[:1])
    flat, batch = task.init(jax.random.key(0)), {"x": X, "y": Y}
    variables = {"params": task.unravel(flat)}
    key = jax.random.key(5)

    def loss(logits):
        losses = [-np.log(reference.softmax(row)[y]) for row, y in zip(logits, Y, strict=True)]
        return np.mean(losses)

    random = module.apply(variables, X, rngs={"dropout": key}, **training)
    evaluation = {name: not value for name, value in training.items()}
    still = module.apply(variables, X, **evaluation)
    np.testing.assert_allclose(task.training_loss(flat, batch, key), loss(random), rtol=1e-5)
    np.testing.assert_allclose(task.loss(flat, batch), loss(still), rtol=1e-5)
    np.testing.assert_allclose(task.logits(flat, X), still, rtol=1e-6)
    assert loss(random) != pytest.approx(loss(still), rel=1e-3)


def test_a_module_without_an_argument_for_training_has_one_loss(task):
    assert task.training_loss is None


class Undecided(nn.Module):
    @nn.compact
    def __call__(self, x):
        return nn.Dense(3)(nn.Dropout(0.5)(x))


class Always(nn.Module):
    @nn.compact
    def __call__(self, x):
        return nn.Dense(3)(nn.Dropout(0.5, deterministic=False)(x))


class Spectral(nn.Module):
    @nn.compact
    def __call__(self, x):
        return nn.SpectralNorm(nn.Dense(3))(x, update_stats=False)


class Flat(nn.Module):
    @nn.compact
    def __call__(self, x):
        return nn.Dense(1)(x)[:, 0]


class Net(nnx.Module):
    def __init__(self, rngs):
        self.first, self.last = nnx.Linear(4, 5, rngs=rngs), nnx.Linear(5, 3, rngs=rngs)

    def __call__(self, x):
        return self.last(jnp.tanh(self.first(x)))


@pytest.mark.parametrize("make", [tasks.classification, tasks.next_word])
@pytest.mark.parametrize(
    ("module", "error", "message"),
    [
        (Undecided(), ValueError, "argument train"),
        (Always(), ValueError, "argument train"),
        (Spectral(), ValueError, r"SpectralNorm_0.*leave out the layers"),
        (Flat(), ValueError, r"logits \(b, .*got \(1,\)"),
        (Flat, TypeError, r"call it: Flat\(...\)"),
        (Net(nnx.Rngs(0)), TypeError, r"flax\.nnx.*from_functions.*nnx\.split"),
        (Net, TypeError, r"flax\.nnx.*from_functions"),
        (lambda x: x, TypeError, "from_functions"),
    ],
)
def test_modules_that_do_not_fit(make, module, error, message):
    with pytest.raises(error, match=message) as caught:
        make(module, jnp.zeros((1, 4)))
    if module == Spectral():
        assert "atch norm" not in str(caught.value)


def test_bad_samples():
    for sample in (jnp.float32(3), jnp.zeros((0, 4))):
        with pytest.raises(ValueError, match="sample of at least one example"):
            tasks.classification(models.SoftmaxRegression(3), sample)


# --- Inputs and labels that do not fit -----------------------------------------------------------


@pytest.mark.parametrize("wrap", [lambda f: f, jax.jit], ids=["plain", "jit"])
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"y": Y[:, None]}, r"squeeze the last axis"),
        ({"y": Y[:1]}, r"one label for each example.*\(6, 4\).*\(1,\)"),
        ({"y": Y.astype(np.float32)}, "integers"),
        ({"y": np.eye(3, dtype=np.int32)[Y]}, "argmax"),
        ({"x": X[:, :3]}, r"inputs of shape \(6, 3\).*sample.*\(1, 4\)"),
        ({"mask": np.ones((6, 1), np.float32)}, r"\(6,\), got \(6, 1\)"),
        ({"mask": np.ones(1, np.float32)}, r"\(6,\), got \(1,\)"),
    ],
)
def test_batches_that_do_not_fit(task, params, wrap, change, message):
    with pytest.raises(ValueError, match=message):
        wrap(task.loss)(params, {"x": X, "y": Y} | change)


@pytest.mark.parametrize("y", [Y + 1, Y - 1])
def test_labels_out_of_range(task, params, y):
    with pytest.raises(ValueError, match=r"labels in 0 \.\. 2"):
        task.loss(params, {"x": X, "y": y})


# --- Plain functions, and the model elsewhere ----------------------------------------------------


def test_a_model_of_nnx():
    graph, _ = nnx.split(Net(nnx.Rngs(0)), nnx.Param)

    def init(key):
        return nnx.split(Net(nnx.Rngs(key)), nnx.Param)[1]

    def apply(params, x):
        return nnx.merge(graph, params)(x)

    task = tasks.from_functions(init, apply, X[:1])
    flat = task.init(jax.random.key(3))
    assert flat.shape == (4 * 5 + 5 + 5 * 3 + 3,)
    net = Net(nnx.Rngs(jax.random.key(3)))
    np.testing.assert_allclose(task.logits(flat, X), net(X), rtol=1e-6)
    np.testing.assert_array_equal(task.ravel(task.unravel(flat)), flat)
    losses = [-np.log(reference.softmax(row)[y]) for row, y in zip(net(X), Y, strict=True)]
    np.testing.assert_allclose(task.loss(flat, {"x": X, "y": Y}), np.mean(losses), rtol=1e-5)
    assert tasks.from_functions(init, apply, X[:1]) == task


def test_functions_with_randomness_and_sequences():
    def init(key):
        return {"w": jnp.zeros((7, 7))}

    def apply(params, x):
        return params["w"][x]

    def train(params, x, key):
        return apply(params, x) + jax.random.normal(key, (*x.shape, 7))

    words = jnp.array([[1, 2, 3], [4, 5, 6]])
    task = tasks.from_functions(init, apply, words, train=train)
    flat, batch = jnp.zeros(49), {"x": words, "y": words}
    np.testing.assert_allclose(task.loss(flat, batch), np.log(7), rtol=1e-6)
    first, second = (task.training_loss(flat, batch, jax.random.key(i)) for i in (0, 1))
    assert first != second
    with pytest.raises(ValueError, match="y and token_mask of one shape"):
        task.loss(flat, {"x": words, "y": words[:, :1]})
    with pytest.raises(ValueError, match=r"mask \(b,\)"):
        task.loss(flat, batch | {"mask": jnp.ones((2, 3))})


def test_functions_that_do_not_fit():
    for init, error in ((lambda key: {}, ValueError), (lambda key: jnp.zeros(3, int), TypeError)):
        with pytest.raises(error, match="parameters, all of floats"):
            tasks.from_functions(init, lambda p, x: x, X)
    with pytest.raises(TypeError, match="train to be a function"):
        tasks.from_functions(lambda key: jnp.zeros(3), lambda p, x: x, X, train=3)
    with pytest.raises(ValueError, match=r"\(b, classes\) or \(b, T, words\), got \(\)"):
        tasks.from_functions(lambda key: jnp.zeros(3), lambda p, x: jnp.sum(p), X)


def test_saved_and_loaded_elsewhere(tmp_path, task, params):
    """The three lines of the docstring, and Flax alone on the other side."""
    tree = task.unravel(params)
    (tmp_path / "model.msgpack").write_bytes(flax.serialization.to_bytes(tree))
    content = (tmp_path / "model.msgpack").read_bytes()
    np.testing.assert_array_equal(task.ravel(flax.serialization.from_bytes(tree, content)), params)
    elsewhere = models.SoftmaxRegression(3).apply(
        {"params": flax.serialization.msgpack_restore(content)}, X
    )
    np.testing.assert_allclose(elsewhere, task.logits(params, X), rtol=1e-6)
    for wrong in ({"Dense_0": tree["Dense_0"]["kernel"]}, jax.tree.map(jnp.ravel, tree)):
        with pytest.raises(ValueError, match="ravel needs the tree"):
            task.ravel(wrong)


def test_equal_arguments_give_the_same_task():
    first = tasks.classification(models.SoftmaxRegression(3), jnp.zeros((1, 4)))
    assert tasks.classification(models.SoftmaxRegression(3), np.zeros((1, 4), np.float32)) == first
    assert tasks.classification(models.SoftmaxRegression(4), jnp.zeros((1, 4))) != first
    assert tasks.classification(models.SoftmaxRegression(3), jnp.zeros((1, 5))) != first


def test_batch_statistics_have_no_place():
    class Normalised(nn.Module):
        @nn.compact
        def __call__(self, x):
            return nn.Dense(3)(nn.BatchNorm(use_running_average=True)(x))

    with pytest.raises(ValueError, match=r"batch_stats.*GroupNorm"):
        tasks.classification(Normalised(), jnp.zeros((1, 4)))


def test_a_task_made_while_tracing_is_as_good_as_any():
    """What is remembered for equal arguments must not hold a value of the trace."""

    class Own(nn.Module):
        @nn.compact
        def __call__(self, x):
            return nn.Dense(3)(x)

    def loss(x):
        task = tasks.classification(Own(), x[:1])
        params = task.init(jax.random.key(0))
        return task.loss(params, {"x": x, "y": jnp.zeros(2, jnp.int32)})

    x = jnp.ones((2, 5))
    first = jax.jit(lambda x: jax.lax.map(loss, x[None]))(x)  # a trace in a trace
    np.testing.assert_allclose(first, jax.jit(lambda x: loss(x))(x)[None])
    np.testing.assert_allclose(first[0], loss(x))
