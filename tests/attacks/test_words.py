"""Next-word prediction against NumPy: LSTM, loss, gradients, accuracy, backdoors, two rounds of a run."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference as ref

import fedjax_robust as fr
from fedjax_robust import metrics, models
from fedjax_robust.aggregators import mean
from fedjax_robust.attacks import scaling
from fedjax_robust.attacks.poisons import word_backdoor
from fedjax_robust.data import from_owner
from fedjax_robust.nn import LSTM

V, H, T, B = 7, 3, 5, 4
RNG = np.random.default_rng(0)
X = RNG.integers(0, V, (B, T)).astype(np.int32)
Y = RNG.integers(0, V, (B, T)).astype(np.int32)
TOKEN_MASK = RNG.integers(0, 2, (B, T)).astype(np.float32)
MASK = np.array([1, 0, 0.5, 1], np.float32)


@pytest.fixture(scope="module")
def task():
    return fr.next_word(models.WordLSTM(V, H), jnp.zeros((1, T), jnp.int32))


@pytest.fixture(scope="module")
def params(task):
    return jnp.asarray(RNG.normal(size=task.init(jax.random.key(0)).shape), jnp.float32)


def tree(task, params):
    return jax.tree.map(np.asarray, task.unravel(params))


@pytest.fixture(scope="module")
def logits(task):
    """Compiled."""
    return jax.jit(task.logits)


@pytest.fixture(scope="module")
def gradient(task):
    """Loss and gradient, compiled."""
    return jax.jit(jax.value_and_grad(task.loss))


def logits_of(task, params, x):
    return np.stack([ref.word_lstm(tree(task, params), words) for words in x])


# --- The model ---------------------------------------------------------------------------------------


def test_lstm_is_numpys():
    x = RNG.normal(size=(2, 6, 4)).astype(np.float32)
    layer = LSTM(5)
    params = jax.jit(layer.init)(jax.random.key(0), x)["params"]
    for leaf in jax.tree.leaves(params):
        assert 0.3 * 5**-0.5 < np.max(np.abs(leaf)) <= 5**-0.5
    assert {name: p.shape for name, p in params.items()} == {
        "input_kernel": (4, 20),
        "hidden_kernel": (5, 20),
        "input_bias": (20,),
        "hidden_bias": (20,),
    }
    expected = np.stack([ref.lstm(row, **params) for row in x])
    np.testing.assert_allclose(layer.apply({"params": params}, x), expected, atol=1e-6)


def test_lstm_by_hand():
    """One unit, gates wide open or closed: the cell adds tanh(g), keeps, or forgets."""
    big = 50.0
    kernel = np.array([[0.0, 0.0, 1.0, 0.0]], np.float32)  # only the cell gate sees the input
    params = {
        "input_kernel": kernel,
        "hidden_kernel": np.zeros((1, 4), np.float32),
        "input_bias": np.array([big, big, 0.0, big], np.float32),
        "hidden_bias": np.zeros(4, np.float32),
    }
    x = np.array([0.5, -0.25, 1.0], np.float32).reshape(1, 3, 1)
    cell = np.cumsum(np.tanh([0.5, -0.25, 1.0]))
    out = LSTM(1).apply({"params": params}, x)
    np.testing.assert_allclose(out.ravel(), np.tanh(cell), rtol=1e-5)
    params["input_bias"] = np.array([big, -big, 0.0, big], np.float32)
    out = LSTM(1).apply({"params": params}, x)
    np.testing.assert_allclose(out.ravel(), np.tanh(np.tanh([0.5, -0.25, 1.0])), rtol=1e-5)


def test_number_of_parameters_is_that_of_the_papers_code():
    """E 50,000 x 200, its bias, and two layers of 4 x 200 x (200 + 200) + 2 x 4 x 200."""
    shapes = jax.eval_shape(
        models.WordLSTM(50_000).init, jax.random.key(0), jnp.zeros((1, 64), jnp.int32)
    )["params"]
    count = sum(leaf.size for leaf in jax.tree.leaves(shapes))
    assert count == 10_000_000 + 50_000 + 2 * (320_000 + 1_600) == 10_693_200


def test_logits_are_numpys(task, logits, params):
    assert params.shape == (V * H + V + 2 * (8 * H * H + 8 * H),)
    np.testing.assert_allclose(logits(params, X), logits_of(task, params, X), atol=2e-5)


def test_later_words_do_not_matter(logits, params):
    other = X.copy()
    other[:, 3:] = (other[:, 3:] + 1) % V
    a, b = logits(params, X), logits(params, other)
    np.testing.assert_array_equal(a[:, :3], b[:, :3])
    assert np.all(np.max(np.abs(a - b)[:, 3:], axis=-1) > 1e-4)


def test_initial_weights():
    params = jax.jit(models.WordLSTM(1000, 8).init)(jax.random.key(0), X)["params"]
    embedding = np.asarray(params["embedding"])
    assert np.max(np.abs(embedding)) <= 0.1 and abs(np.std(embedding) - 0.2 / 12**0.5) < 2e-3
    np.testing.assert_array_equal(params["bias"], 0)


@pytest.mark.parametrize("shape", [(T,), (B, T, 1)])
def test_bad_shapes(shape):
    with pytest.raises(ValueError, match=r"WordLSTM needs word ids \(b, T\)"):
        models.WordLSTM(V, H).init(jax.random.key(0), jnp.zeros(shape, jnp.int32))
    if len(shape) < 3:
        with pytest.raises(ValueError, match="LSTM needs features"):
            LSTM(3).init(jax.random.key(0), jnp.zeros(shape))


# --- The task ----------------------------------------------------------------------------------------


def test_loss_is_numpys(task, params):
    logits = logits_of(task, params, X)
    loss = jax.jit(task.loss)
    ones = np.ones(B), np.ones((B, T))
    batch = {"x": X, "y": Y}
    for more, mask, token_mask in [
        ({}, *ones),
        ({"mask": MASK}, MASK, ones[1]),
        ({"token_mask": TOKEN_MASK}, ones[0], TOKEN_MASK),
        ({"mask": MASK, "token_mask": TOKEN_MASK}, MASK, TOKEN_MASK),
    ]:
        expected = ref.next_word_loss(logits, Y, mask, token_mask)
        np.testing.assert_allclose(loss(params, batch | more), expected, rtol=1e-5)


def test_gradient_is_numpys_difference_quotient(task, gradient):
    params = 0.5 * RNG.normal(size=task.init(jax.random.key(0)).shape)
    batch = {"x": X, "y": Y, "mask": MASK, "token_mask": TOKEN_MASK}

    def loss(params):  # in float64: unravel by hand, in the order of its own leaves
        leaves, structure = jax.tree.flatten(jax.eval_shape(task.unravel, params))
        ends = np.cumsum([leaf.size for leaf in leaves])[:-1]
        parts = zip(np.split(params, ends), leaves, strict=True)
        named = jax.tree.unflatten(structure, [p.reshape(leaf.shape) for p, leaf in parts])
        logits = [ref.word_lstm(named, words) for words in batch["x"]]
        return ref.next_word_loss(logits, batch["y"], batch["mask"], batch["token_mask"])

    _, slopes = gradient(jnp.asarray(params, jnp.float32), batch)
    for i in RNG.choice(len(params), 25, replace=False):
        step = np.zeros(len(params))
        step[i] = 1e-5
        slope = (loss(params + step) - loss(params - step)) / 2e-5
        np.testing.assert_allclose(slopes[i], slope, atol=2e-6)


def test_masked_words_and_sequences_do_not_matter(gradient, params):
    mask, token_mask = np.array([1, 0, 1, 1], np.float32), np.ones((B, T), np.float32)
    token_mask[:, 3:] = 0
    batch = {"x": X, "y": Y, "mask": mask, "token_mask": token_mask}
    other = {**batch, "x": X.copy(), "y": Y.copy()}
    other["x"][1] = other["y"][1] = 0
    other["x"][:, 4] = (other["x"][:, 4] + 1) % V  # behind the last word that counts
    other["y"][:, 3:] = (other["y"][:, 3:] + 1) % V
    a, b = (gradient(params, each)[1] for each in (batch, other))
    np.testing.assert_allclose(a, b, atol=1e-7)
    assert np.max(np.abs(a)) > 1e-3
    empty = gradient(params, batch | {"token_mask": np.zeros((B, T), np.float32)})
    assert float(empty[0]) == 0 and not np.any(empty[1])


def test_loss_refuses_other_shapes(task, params):
    with pytest.raises(ValueError, match=r"one shape \(b, T\).*\(4, 5\), \(4,\)"):
        task.loss(params, {"x": X, "y": Y[:, 0]})
    with pytest.raises(ValueError, match="one shape"):
        task.loss(params, {"x": X, "y": Y, "token_mask": MASK})


# --- Accuracy ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("chunk", [3, 100])
def test_word_accuracy_is_numpys(task, params, chunk):
    y = np.where(RNG.random(Y.shape) < 0.5, np.argmax(logits_of(task, params, X), axis=-1), Y)
    right = np.argmax(logits_of(task, params, X), axis=-1) == y
    test = {"x": X, "y": y}
    both = metrics.together(
        metrics.word_accuracy(task, test, chunk=chunk),
        metrics.word_accuracy(task, test | {"token_mask": TOKEN_MASK}, name="some", chunk=chunk),
    )
    rates = jax.jit(both)(params)
    np.testing.assert_allclose(rates["main_accuracy"], np.mean(right), rtol=1e-6)
    some = np.sum(right * TOKEN_MASK) / np.sum(TOKEN_MASK)
    np.testing.assert_allclose(rates["some"], some, rtol=1e-6)
    assert 0.2 < np.mean(right) < 1


# --- The backdoor ------------------------------------------------------------------------------------


def test_backdoor_by_hand():
    x = jnp.array([[0, 1, 2, 3], [4, 5, 6, 7], [8, 9, 10, 11]])
    y = jnp.array([[1, 2, 3, 20], [5, 6, 7, 21], [9, 10, 11, 22]])
    batch = {"x": x, "y": y, "mask": jnp.ones(3)}
    out = jax.jit(word_backdoor([[30, 31, 32], [40, 41]], replaced=2))(jax.random.key(0), batch)
    # Three words, two of them inputs, the last the target; the third sequence stays.
    np.testing.assert_array_equal(out["x"], [[0, 1, 30, 31], [4, 5, 6, 40], [8, 9, 10, 11]])
    np.testing.assert_array_equal(out["y"], [[1, 30, 31, 32], [5, 6, 40, 41], [9, 10, 11, 22]])
    np.testing.assert_array_equal(out["token_mask"], [[0, 0, 0, 1], [0, 0, 0, 1], [1, 1, 1, 1]])
    np.testing.assert_array_equal(out["mask"], 1)


@pytest.mark.parametrize("replaced", [3, 5, None])
def test_backdoor_is_numpys(replaced):
    text = RNG.integers(0, 50, (7, 9))
    token_mask = RNG.integers(0, 2, (7, 8)).astype(np.float32)
    batch = {"x": text[:, :-1], "y": text[:, 1:], "token_mask": token_mask}
    sentences = [[1, 2, 3, 4, 5, 6, 7, 8], [9, 10], [11, 12, 13]]
    batch = {name: jnp.asarray(value) for name, value in batch.items()}
    out = jax.jit(word_backdoor(sentences, replaced))(jax.random.key(0), batch)
    expected = ref.word_backdoor(*batch.values(), sentences, replaced or 7)
    for name, theirs in zip(("x", "y", "token_mask"), expected, strict=True):
        np.testing.assert_array_equal(out[name], theirs)
    assert {name: v.dtype for name, v in out.items()} == {n: v.dtype for n, v in batch.items()}


def test_weight_of_the_last_word(task, gradient, params):
    poison = word_backdoor([[1, 2]], replaced=2, weight=T)
    out = jax.jit(poison)(jax.random.key(0), {"x": jnp.asarray(X), "y": jnp.asarray(Y)})
    np.testing.assert_array_equal(jnp.sum(out["token_mask"], axis=1), T)
    logits = logits_of(task, params, out["x"])
    expected = ref.next_word_loss(logits, out["y"], np.ones(B), out["token_mask"])
    np.testing.assert_allclose(gradient(params, out | {"mask": np.ones(B)})[0], expected, rtol=1e-5)


def test_ids_may_be_traced():
    batch = {"x": jnp.asarray(X), "y": jnp.asarray(Y)}
    sentences = jnp.array([[1, 2, 3], [4, 5, 6]])
    out = jax.vmap(lambda s: word_backdoor([s])(jax.random.key(0), batch)["y"])(sentences)
    np.testing.assert_array_equal(out[:, :, -1], [[3] * B, [6] * B])


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (([],), "at least one sentence"),
        (([[1]],), "at least two word ids"),
        (([[1.0, 2.0]],), "word ids"),
        (([[1, 2]], 0), "replaced >= 1"),
        (([[1, 2]], None, 0.0), "weight > 0"),
    ],
)
def test_bad_backdoors(arguments, text):
    with pytest.raises(ValueError, match=text):
        word_backdoor(*arguments)


def test_bad_batches_of_backdoors():
    key, batch = jax.random.key(0), {"x": jnp.asarray(X), "y": jnp.asarray(Y)}
    with pytest.raises(ValueError, match="T >= 6"):
        word_backdoor([[1] * 6])(key, batch)
    with pytest.raises(ValueError, match="1 changed sequences of a batch of 4 do not hold 2"):
        word_backdoor([[1, 2], [3, 4]], replaced=1)(key, batch)


# --- A run -------------------------------------------------------------------------------------------


def test_two_rounds_and_model_replacement():
    """Text 1 2 3 1 2 3 ...; the attacker wants "3 2" to end with 4, and replaces the model by its own."""
    text = np.tile([1, 2, 3], 40)[: 12 * (T + 1)].reshape(12, T + 1).astype(np.int32)
    pool = {"x": text[:, :-1], "y": text[:, 1:], "token_mask": np.ones((12, T), np.float32)}
    data = from_owner(pool, np.arange(12) // 4, 3)
    task = fr.next_word(models.WordLSTM(V, 8, layers=1), pool["x"][:1])
    poisoned = jax.jit(word_backdoor([[3, 2, 4]]))(jax.random.key(0), pool)
    evaluate = metrics.together(
        metrics.word_accuracy(task, pool),
        metrics.word_accuracy(task, poisoned, name="backdoor_accuracy"),
    )
    honest = fr.local_sgd(task, 2.0, 4, epochs=60)
    sim = fr.Simulation(task, honest, mean())
    state, history = fr.run(sim, jax.random.key(1), data, 2, evaluate=evaluate, evaluate_every=1)
    assert history["main_accuracy"][-1] > 0.95 and history["backdoor_accuracy"][-1] == 0

    poison = word_backdoor([[3, 2, 4]], replaced=2, weight=T)
    attacker = fr.local_sgd(task, 2.0, 4, epochs=60, poison=poison)

    @jax.jit
    def attacked(gamma):
        attack = scaling(gamma)._replace(client=attacker)
        sim = fr.Simulation(task, honest, mean(), attack, num_malicious=1)
        return fr.run(sim, jax.random.key(2), data, 1, evaluate=evaluate, params=state.params)[1]

    for gamma, success in ((1.0, 0.0), (3.0, 1.0)):
        history = attacked(gamma)
        assert history["backdoor_accuracy"][-1] == success
        assert history["main_accuracy"][-1] > 0.95
