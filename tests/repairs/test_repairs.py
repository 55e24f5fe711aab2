"""Repairs against slow NumPy definitions of section IV of Wu et al., and by hand."""

import flax.linen as linen
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree

import fedjax_robust as fr
from fedjax_robust import aggregators, attacks, metrics, models, nn, repairs
from fedjax_robust.types import FederatedData


class Small(linen.Module):
    """Two convolutions and a dense layer."""

    @linen.compact
    def __call__(self, x):
        x = linen.relu(nn.Conv(3, (3, 3), padding="VALID")(x))
        x = nn.max_pool2x2(linen.relu(nn.Conv(5, (2, 2), padding="VALID")(x)))
        return linen.Dense(4)(x.reshape(x.shape[0], -1))


class Nested(linen.Module):
    @linen.compact
    def __call__(self, x):
        return linen.Dense(2)(
            nn.Conv(2, (2, 2), padding="VALID", use_bias=False, name="inner")(x).mean((1, 2))
        )


class Outer(linen.Module):
    @linen.compact
    def __call__(self, x):
        return Nested(name="block")(x)


@pytest.fixture(scope="module")
def problem():
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.random((40, 9, 9, 1)), jnp.float32)
    y = jnp.asarray(rng.integers(0, 4, 40), jnp.int32)
    index = jnp.asarray(rng.permutation(40).reshape(5, 8), jnp.int32)
    data = FederatedData({"x": x, "y": y}, index, jnp.asarray([8, 3, 8, 0, 5], jnp.int32))
    task = fr.classification(Small(), x[:1])
    params = task.init(jax.random.key(1)) + 0.02 * jax.random.normal(
        jax.random.key(2), task.init(jax.random.key(1)).shape
    )
    return task, repairs.convolution(Small(), x[:1], "Conv_1"), params, data


def convolved(x, kernel, bias):
    """(b, H, W, C) float64, without padding, by loops."""
    h, w, _, features = kernel.shape
    out = np.zeros((len(x), x.shape[1] - h + 1, x.shape[2] - w + 1, features))
    for i in range(out.shape[1]):
        for j in range(out.shape[2]):
            window = x[:, i : i + h, j : j + w]
            out[:, i, j] = np.tensordot(window, kernel, axes=3) + bias
    return out


def leaves(task, params):
    return jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), task.unravel(params))


def test_a_neurons_activation_is_the_sum_over_space_averaged_over_images(problem):
    task, layer, params, data = problem
    tree = leaves(task, params)
    x = np.asarray(data.examples["x"], np.float64)
    first = np.maximum(convolved(x, tree["Conv_0"]["kernel"], tree["Conv_0"]["bias"]), 0)
    second = convolved(first, tree["Conv_1"]["kernel"], tree["Conv_1"]["bias"])
    np.testing.assert_allclose(layer.outputs(params, data.examples["x"]), second, atol=1e-5)
    for relu in (True, False):
        values = (np.maximum(second, 0) if relu else second).sum((1, 2))
        got = repairs.client_activations(layer, params, data, relu=relu, chunk=3 if relu else 100)
        for client in range(5):
            own = np.asarray(data.index[client, : data.count[client]])
            expected = values[own].sum(0) / max(len(own), 1)  # a client without images: zeros
            np.testing.assert_allclose(got[client], expected, rtol=1e-4, atol=1e-5)
    with pytest.raises(ValueError, match="chunk >= 1, got chunk=0"):
        repairs.client_activations(layer, params, data, chunk=0)


def test_the_layer_is_found_by_name_also_inside_of_a_submodule(problem):
    task, layer, _, _ = problem
    numbered = task.unravel(jnp.where(layer.is_weight, layer.channel, -1))
    np.testing.assert_array_equal(numbered["Conv_1"]["kernel"][0, 0, 0], range(5))
    np.testing.assert_array_equal(numbered["Conv_0"]["kernel"], -1)
    bias = task.unravel(layer.channel)["Conv_1"]["bias"]
    np.testing.assert_array_equal(bias, range(5))
    x = jnp.ones((1, 5, 5, 1))
    inner = repairs.convolution(Outer(), x, "block/inner")
    assert inner.channels == 2
    params = fr.classification(Outer(), x).init(jax.random.key(0))
    assert inner.outputs(params, x).shape == (1, 4, 4, 2)


def test_a_model_without_that_convolution_is_refused():
    x = jnp.ones((1, 9, 9, 1))
    with pytest.raises(ValueError, match="its convolutions are \\['Conv_0', 'Conv_1'\\]"):
        repairs.convolution(Small(), x, "Conv_2")
    with pytest.raises(ValueError, match="it has no convolution; pruning needs"):
        repairs.convolution(models.SoftmaxRegression(10), x, "Dense_0")


def test_ranking_vote_by_hand():
    # Client 0 ranks the neurons 2, 1, 3; clients 1 and 2 rank them 1, 3, 2: means 4/3, 7/3, 7/3.
    reported = repairs.ranks(jnp.array([[0.5, 0.1, 9.0], [0.0, 2.0, 1.0], [1.0, 7.0, 3.0]]))
    np.testing.assert_array_equal(reported, [[2, 1, 3], [1, 3, 2], [1, 3, 2]])
    np.testing.assert_array_equal(repairs.ranking_vote(reported), [0, 1, 2])
    lied = attacks.repair_aware.reversed_ranks(reported, jnp.array([True, False, False]))
    np.testing.assert_array_equal(lied, [[2, 3, 1], [1, 3, 2], [1, 3, 2]])
    np.testing.assert_array_equal(repairs.ranking_vote(lied), [0, 2, 1])


def test_majority_vote_by_hand():
    values = jnp.array([[0.4, 0.1, 0.3, 0.9], [0.4, 0.3, 0.2, 0.8], [0.1, 0.6, 0.5, 0.7]])
    masks = repairs.votes(values, 0.5)
    np.testing.assert_array_equal(masks, [[1, 0, 0, 1], [1, 0, 0, 1], [0, 1, 0, 1]])
    # kept by 2, 1, 0 and 3 clients
    np.testing.assert_array_equal(repairs.majority_vote(masks), [2, 1, 0, 3])
    np.testing.assert_array_equal(repairs.votes(values, 0.3).sum(1), [3, 3, 3])  # floor(1.2) = 1
    with pytest.raises(ValueError, match="rate in \\(0, 1\\), got rate=1"):
        repairs.votes(values, 1)


def test_pruned_neurons_have_no_kernel_and_no_bias(problem):
    task, layer, params, data = problem
    keep = jnp.array([True, False, True, True, False])
    tree = leaves(task, params)
    tree["Conv_1"]["kernel"][..., [1, 4]] = 0
    tree["Conv_1"]["bias"][[1, 4]] = 0
    expected, _ = ravel_pytree(tree)
    got = repairs.with_neurons(layer, params, keep)
    np.testing.assert_allclose(got, expected, rtol=1e-6)
    np.testing.assert_array_equal(repairs.masked(layer, keep)(jax.random.key(0), params), got)
    outputs = layer.outputs(got, data.examples["x"])
    assert np.all(outputs[..., [1, 4]] == 0)


@pytest.mark.parametrize(("chunk", "sizes"), [(1, set()), (2, {2, 1}), (5, {5})])
def test_models_are_evaluated_in_batches(problem, chunk, sizes):
    task, layer, params, data = problem
    deltas = (3, 2, 1, 0.5, 0.25)
    seen = set()

    def accuracy(candidate):
        right = metrics.predict(task, candidate, data.examples["x"]) == data.examples["y"]
        return jnp.mean(right)

    validation = jax.custom_batching.custom_vmap(accuracy)

    @validation.def_vmap
    def of_a_batch(size, _, candidates):
        seen.add(size)
        return jax.vmap(accuracy)(candidates), True

    def expected(changed):
        logits = [Small().apply({"params": task.unravel(p)}, data.examples["x"]) for p in changed]
        return np.mean(np.argmax(logits, axis=2) == data.examples["y"], axis=1)

    pruned = [repairs.with_neurons(layer, params, jnp.arange(5) >= i) for i in range(5)]
    adjusted = [repairs.without_extreme_weights(layer, params, d)[0] for d in deltas]
    run = jax.jit(lambda p: repairs.prune(layer, p, jnp.arange(5), validation, chunk=chunk))
    np.testing.assert_allclose(run(params)[2]["accuracies"], expected(pruned), rtol=1e-6)
    assert seen == sizes
    seen.clear()
    run = jax.jit(
        lambda p: repairs.adjust_extreme_weights(layer, p, validation, deltas=deltas, chunk=chunk)
    )
    np.testing.assert_allclose(run(params)[1]["accuracies"], expected(adjusted), rtol=1e-6)
    assert seen == sizes


def test_at_least_one_model_is_evaluated_at_once(problem):
    _, layer, params, _ = problem
    with pytest.raises(ValueError, match="prune needs chunk >= 1"):
        repairs.prune(layer, params, jnp.arange(5), jnp.sum, chunk=0)
    with pytest.raises(ValueError, match="adjust_extreme_weights needs chunk >= 1"):
        repairs.adjust_extreme_weights(layer, params, jnp.sum, chunk=0)


@pytest.mark.parametrize(
    ("accuracies", "pruned"),
    [
        ([0.9, 0.9, 0.895, 0.7, 0.99], 2),  # the third neuron costs too much
        ([0.9, 0.95, 0.945, 0.9375, 0.929], 4),  # slowly down: never more than 0.01 at once
        ([0.9, 0.5, 0.9, 0.9, 0.9], 0),
        ([0.9, 0.9, 0.9, 0.9, 0.9], 4),  # one always stays
    ],
)
def test_pruning_stops_before_the_accuracy_falls(problem, accuracies, pruned):
    _, layer, params, _ = problem
    order = jnp.array([3, 0, 4, 2, 1])

    def validation(candidate):  # knows by the biases which neurons are there
        number = sum(jnp.all(jnp.where(layer.channel == c, candidate == 0, True)) for c in range(5))
        return jnp.asarray(accuracies)[number]

    got, keep, report = jax.jit(lambda p: repairs.prune(layer, p, order, validation))(params)
    np.testing.assert_allclose(report["accuracies"], accuracies, rtol=1e-6)
    assert report["pruned"] == pruned
    assert set(np.flatnonzero(~keep)) == {3, 0, 4, 2, 1} - set([3, 0, 4, 2, 1][pruned:])
    np.testing.assert_array_equal(got, repairs.with_neurons(layer, params, keep))
    with pytest.raises(ValueError, match="drop > 0"):
        repairs.prune(layer, params, order, validation, drop=0)
    with pytest.raises(ValueError, match="needs floor a number"):
        repairs.prune(layer, params, order, validation, floor=np.nan)


def test_pruning_stops_at_the_floor(problem):
    _, layer, params, _ = problem
    accuracies = jnp.array([0.9, 0.895, 0.89, 0.8, 0.895])

    def validation(candidate):
        number = sum(jnp.all(jnp.where(layer.channel == c, candidate == 0, True)) for c in range(5))
        return accuracies[number]

    def pruned(**stop):
        return repairs.prune(layer, params, jnp.arange(5), validation, **stop)[2]["pruned"]

    assert pruned(floor=0.893) == 1
    assert pruned(floor=0.5) == 2  # the third neuron's fall is too much all the same
    assert pruned(drop=np.inf, floor=0.85) == 2
    assert pruned(drop=np.inf, floor=0.75) == 4
    assert pruned(drop=np.inf, floor=0.95) == 0


def extreme(weights, delta, kept):
    """(..., C) float64 by the words of section IV-C."""
    chosen = weights[..., kept]
    mu, sigma = chosen.mean(), chosen.std()
    out, number = weights.copy(), 0
    for place in np.ndindex(weights.shape):
        outside = not mu - delta * sigma <= weights[place] <= mu + delta * sigma
        if kept[place[-1]] and outside:
            out[place], number = 0, number + 1
    return out, number


@pytest.mark.parametrize("delta", [0.5, 1.0, 2.0, 10.0])
@pytest.mark.parametrize("kept", [[1, 1, 1, 1, 1], [0, 1, 1, 0, 1]])
def test_extreme_weights_become_zero(problem, delta, kept):
    task, layer, params, _ = problem
    kept = np.array(kept, bool)
    params = repairs.with_neurons(layer, params, jnp.asarray(kept))
    tree = leaves(task, params)
    tree["Conv_1"]["kernel"], number = extreme(tree["Conv_1"]["kernel"], delta, kept)
    expected, _ = ravel_pytree(tree)
    got, zeroed = repairs.without_extreme_weights(layer, params, delta, jnp.asarray(kept))
    np.testing.assert_allclose(got, expected, rtol=1e-6)
    assert zeroed == number
    assert (number == 0) == (delta == 10)


def test_delta_is_lowered_until_the_accuracy_falls(problem):
    _, layer, params, _ = problem
    whole = int(jnp.sum(params != 0))

    def lost(p):
        return whole - jnp.sum(p != 0)

    counts = [int(repairs.without_extreme_weights(layer, params, d)[1]) for d in (3, 2, 1.5, 1)]
    assert counts == sorted(counts)
    assert counts[2] > counts[1]
    deltas = (3, 2, 1.5, 1)

    def run(validation, deltas=deltas, **stop):
        return repairs.adjust_extreme_weights(layer, params, validation, deltas=deltas, **stop)

    got, report = run(lambda p: jnp.where(lost(p) > counts[1], 0.5, 0.9))
    assert report["delta"] == 2
    assert report["zeroed"] == counts[1] == lost(got)
    got, report = run(lambda p: jnp.where(lost(p) == 0, 0.9, 0.5), deltas=(1.5, 1))
    assert np.isinf(report["delta"])
    assert report["zeroed"] == 0 == lost(got)
    # it does not come back after a break, and a single Delta is used whatever it costs
    got, report = run(lambda p: jnp.where(lost(p) == counts[2], 0.5, 0.9))
    assert report["delta"] == 2
    # small falls that add up are no break: only the last step costs more than 0.01
    steps = jnp.array([0.9, 0.892, 0.884, 0.87])
    got, report = run(lambda p: steps[jnp.sum(lost(p) >= jnp.array(counts[1:]))])
    assert report["delta"] == 1.5
    assert report["zeroed"] == counts[2] == lost(got)

    # but a floor stops them, and takes the last Delta that is not below it, as it does with a loss
    def slow(p):
        return steps[jnp.sum(lost(p) >= jnp.array(counts[1:]))]

    assert run(slow, floor=0.89)[1]["delta"] == 2
    assert run(slow, drop=np.inf, floor=0.86)[1]["delta"] == 1
    assert run(lambda p: slow(p) - 1, drop=np.inf, floor=-0.11)[1]["delta"] == 2
    got, report = run(lambda p: jnp.where(lost(p) > 0, 0.0, 1.0), deltas=(1.5,))
    assert report["zeroed"] == counts[2] == lost(got)
    for bad in ((), (1, 2), (2, -1), (2, 2), (3, np.nan)):
        with pytest.raises(ValueError, match="positive, descending"):
            run(lambda p: jnp.float32(1), deltas=bad)


def test_validation_by_the_server_and_by_the_clients(problem):
    task, _, params, data = problem
    x, y = data.examples["x"], np.asarray(data.examples["y"])
    right = np.argmax(np.asarray(task.logits(params, x)), axis=1) == y
    assert repairs.accuracy(task, data.examples)(params) == pytest.approx(right.mean())
    shares = [
        right[np.asarray(data.index[i, : data.count[i]])].mean() if data.count[i] else 0
        for i in range(5)
    ]
    expected = (np.sum(shares)) / 4  # the client without images says nothing
    assert repairs.clients_accuracy(task, data)(params) == pytest.approx(expected, abs=1e-6)
    lies = repairs.clients_accuracy(task, data, lambda shares: shares.at[0].set(1.0))
    assert lies(params) == pytest.approx(expected + (1 - shares[0]) / 4, abs=1e-6)
    small = repairs.clients_accuracy(task, data, chunk=3)
    assert small(params) == pytest.approx(expected, abs=1e-6)


def test_objectives_have_the_gradients_they_should(problem):
    task, layer, params, data = problem
    batch = {"x": data.examples["x"][:6], "y": data.examples["y"][:6]}
    plain = jax.grad(task.loss)(params, batch)
    penalised = jax.grad(attacks.repair_aware.l2_penalty(layer, 0.3)(task.loss, params))(
        params, batch
    )
    expected = plain + 0.6 * jnp.where(layer.is_weight, params, 0)
    np.testing.assert_allclose(penalised, expected, rtol=1e-4, atol=1e-6)
    keep = jnp.array([True, False, True, True, False])
    aware = jax.grad(attacks.repair_aware.pruning_aware(layer, keep)(task.loss, params))(
        params, batch
    )
    gone = np.isin(layer.channel, [1, 4])
    assert np.all(aware[gone] == 0)
    pruned = jax.grad(task.loss)(repairs.with_neurons(layer, params, keep), batch)
    np.testing.assert_allclose(aware[~gone], pruned[~gone], rtol=1e-5)


def test_self_clipping(problem):
    _, layer, params, _ = problem
    clipped = attacks.repair_aware.self_clipping(layer, 1.5)(params)
    weights = np.asarray(params, np.float64)[layer.is_weight]
    bounds = weights.mean() - 1.5 * weights.std(), weights.mean() + 1.5 * weights.std()
    np.testing.assert_allclose(clipped[layer.is_weight], np.clip(weights, *bounds), rtol=1e-5)
    np.testing.assert_array_equal(clipped[~layer.is_weight], params[~layer.is_weight])


def test_fine_tuning_keeps_the_mask(problem):
    task, layer, params, data = problem
    keep = jnp.array([True, False, True, True, False])
    sim = fr.Simulation(
        task,
        fr.local_sgd(task, 0.1, 4),
        aggregators.mean(),
        after_round=repairs.masked(layer, keep),
    )
    state, _ = fr.run(sim, jax.random.key(0), data, 3, params=params)
    gone = np.isin(layer.channel, [1, 4])
    assert np.all(state.params[gone] == 0)
    assert np.any(state.params[~gone] != params[~gone])


@pytest.mark.parametrize(
    ("make", "text"),
    [
        (lambda layer, p: repairs.without_extreme_weights(layer, p, 0), "delta > 0, got delta=0"),
        (
            lambda layer, p: attacks.repair_aware.l2_penalty(layer, -1),
            "strength > 0, got strength=-1",
        ),
        (
            lambda layer, p: attacks.repair_aware.self_clipping(layer, 0.0),
            "delta > 0, got delta=0.0",
        ),
    ],
)
def test_bad_arguments(problem, make, text):
    with pytest.raises(ValueError, match=text):
        make(problem[1], problem[2])


# --- What must not pass, and what is easily got wrong ------------------------------------------------


def test_ties_in_the_votes_go_to_the_lower_channel():
    """Channels 1 and 3 are kept by one client each, 0 and 4 by two, 2 by none: in that order by number
    of votes, and by number of the channel among equals."""
    masks = jnp.array([[1, 0, 0, 1, 1], [1, 1, 0, 0, 1]])
    np.testing.assert_array_equal(repairs.majority_vote(masks), [2, 1, 3, 0, 4])
    np.testing.assert_array_equal(repairs.majority_vote(masks.astype(bool)), [2, 1, 3, 0, 4])
    # Every channel has mean rank 2.5.
    ranked = jnp.array([[1, 2, 3, 4], [4, 3, 2, 1]])
    np.testing.assert_array_equal(repairs.ranking_vote(ranked), [0, 1, 2, 3])
    np.testing.assert_array_equal(repairs.ranks(jnp.zeros((1, 4))), [[1, 2, 3, 4]])


@pytest.mark.parametrize(
    ("rate", "channels", "zeros"),
    [(0.29, 100, 29), (0.57, 100, 57), (0.3, 10, 3), (0.7, 10, 7), (1 / 3, 10, 3), (0.999, 10, 9)],
)
def test_the_share_of_votes_is_rounded_down_as_it_is_written(rate, channels, zeros):
    """0.29 * 100 is 28.999999999999996 in float64, and more in float32."""
    values = jnp.arange(channels, dtype=jnp.float32)[None]
    for given in (rate, np.float32(rate), np.asarray(rate), jnp.asarray(rate, jnp.float32)):
        assert int(jnp.sum(repairs.votes(values, given) == 0)) == zeros


@pytest.mark.parametrize("away", [0.0, 5.0, -300.0])
@pytest.mark.parametrize("scale", [1e-30, 1e-20, 1.0, 1e20, 1e30])
def test_extreme_weights_of_a_kernel_away_from_zero(problem, away, scale):
    """sigma is about the kernel's own mean, and squares neither underflow nor overflow."""
    _, layer, params, _ = problem
    params = np.asarray(params).copy()
    params[layer.is_weight] = (params[layer.is_weight] + away) * scale
    weights = params[layer.is_weight].astype(np.float64)
    mu, sigma = weights.mean(), weights.std()
    far = np.sort(np.abs(weights - mu) / sigma)
    for delta in (0.5, 1.0, 2.0):
        if np.min(np.abs(far - delta)) < 1e-3:
            continue
        got, zeroed = repairs.without_extreme_weights(layer, jnp.asarray(params), delta)
        outside = np.abs(weights - mu) > delta * sigma
        assert zeroed == outside.sum() > 0
        np.testing.assert_array_equal(np.asarray(got)[layer.is_weight] == 0, outside)
        np.testing.assert_array_equal(np.asarray(got)[~layer.is_weight], params[~layer.is_weight])
        clipped = np.asarray(attacks.repair_aware.self_clipping(layer, delta)(jnp.asarray(params)))
        expected = np.clip(weights, mu - delta * sigma, mu + delta * sigma)
        largest = np.abs(weights).max()
        np.testing.assert_allclose(
            clipped[layer.is_weight] / largest, expected / largest, rtol=1e-5, atol=1e-6
        )


def test_a_weight_that_is_not_finite_has_no_mean(problem):
    _, layer, params, _ = problem
    (place, *_) = np.flatnonzero(layer.is_weight)
    for value in (np.nan, np.inf):
        bad = params.at[place].set(value)
        with pytest.raises(ValueError, match="finite, got 1 that are NaN or Inf"):
            repairs.without_extreme_weights(layer, bad, 3.0)
        with pytest.raises(ValueError, match="finite, got 1 that are NaN or Inf"):
            repairs.adjust_extreme_weights(layer, bad, jnp.sum)


@pytest.mark.parametrize(
    "order", [[0, 1, 2, 3], [0, 1, 2, 3, 3], [1, 2, 3, 4, 5], [-1, 0, 1, 2, 3], [0.0, 1, 2, 3, 4]]
)
def test_an_order_names_every_channel_once(problem, order):
    _, layer, params, _ = problem
    with pytest.raises((ValueError, TypeError), match="order"):
        repairs.prune(layer, params, order, jnp.sum)


@pytest.mark.parametrize("where", range(5))
def test_an_accuracy_of_nan_is_a_fall(problem, where):
    """It stops pruning there, whatever the limits; a model that is NaN from the start is refused."""
    _, layer, params, _ = problem
    accuracies = jnp.full(5, 0.9).at[where].set(jnp.nan)

    def validation(candidate):
        number = sum(jnp.all(jnp.where(layer.channel == c, candidate == 0, True)) for c in range(5))
        return accuracies[number]

    def pruned(p, **stop):
        return repairs.prune(layer, p, jnp.arange(5), validation, **stop)[2]["pruned"]

    for stop in ({}, {"drop": np.inf}, {"drop": np.inf, "floor": 0.1}):
        assert jax.jit(lambda p, stop=stop: pruned(p, **stop))(params) == max(where - 1, 0)
        if where:
            assert pruned(params, **stop) == where - 1
        else:
            with pytest.raises(ValueError, match="got nan for the model as it is"):
                pruned(params, **stop)


def test_a_delta_at_which_the_accuracy_is_nan_is_not_taken(problem):
    _, layer, params, _ = problem
    whole = jnp.sum(params != 0)

    def validation(p):
        return jnp.where(jnp.sum(p != 0) == whole, 0.9, jnp.nan)

    got, report = repairs.adjust_extreme_weights(layer, params, validation, deltas=(10.0, 1.0, 0.5))
    assert report["delta"] == 10
    np.testing.assert_array_equal(got, params)


@pytest.mark.parametrize("keep", [[True] * 4, [True] * 6, [[True] * 5], [1, 1, 0, 1, 1], True])
def test_a_mask_names_every_channel(problem, keep):
    _, layer, params, _ = problem
    for use in (
        lambda: repairs.with_neurons(layer, params, keep),
        lambda: repairs.masked(layer, keep),
        lambda: attacks.repair_aware.pruning_aware(layer, keep),
        lambda: repairs.without_extreme_weights(layer, params, 3.0, keep),
        lambda: repairs.adjust_extreme_weights(layer, params, jnp.sum, keep=keep),
    ):
        with pytest.raises((ValueError, TypeError), match="needs keep of"):
            use()


@pytest.mark.parametrize(
    "ranked",
    [[[0, 1, 2]], [[1, 2, 2]], [[1, 2, 4]], [1, 2, 3], [[1.0, 2.0, np.nan]], [[1.5, 2, 3]]],
)
def test_ranks_are_1_to_c(ranked):
    with pytest.raises(ValueError, match="ranks"):
        repairs.ranking_vote(ranked)
    with pytest.raises(ValueError, match="ranks"):
        attacks.repair_aware.reversed_ranks(ranked, [True] * len(ranked))


def test_validation_examples_must_fit(problem):
    """Labels (E, 1) would compare E x E."""
    task, _, _, data = problem
    x, y = data.examples["x"], data.examples["y"]
    for bad in (y[:, None], jax.nn.one_hot(y, 4), y.astype(float), y + 1, y - 1, y[1:]):
        with pytest.raises(ValueError, match="accuracy"):
            repairs.accuracy(task, {"x": x, "y": bad})
        with pytest.raises(ValueError, match="clients_accuracy"):
            repairs.clients_accuracy(task, data._replace(examples={"x": x, "y": bad}))
