"""The ascent loop, forecasts and their gradients, and the attack that follows one."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import fedjax_robust as fr
from fedjax_robust import aggregators, attacks, models
from fedjax_robust.attacks.optimised import (
    adjoint,
    aimed,
    as_one,
    best_of,
    by_rule,
    loss_after,
    maximise,
    steepest,
)
from fedjax_robust.types import AttackerView, Client, ClientData

# --- The loop ----------------------------------------------------------------------------------------


def test_the_loop_is_plain_ascent():
    """Against the same steps in NumPy, with momentum and a projection."""
    target = np.array([1.0, -2.0, 0.5])

    def gain(x):
        return -jnp.sum(jnp.square(x - jnp.asarray(target, x.dtype))) / 2

    found = maximise(
        gain, jnp.zeros(3), 7, optax.sgd(0.3, momentum=0.5), project=lambda x: jnp.clip(x, -1, 1)
    )
    x, v, values = np.zeros(3), np.zeros(3), []
    for _ in range(7):
        values.append(-np.sum((x - target) ** 2) / 2)
        v = 0.5 * v + (x - target)
        x = np.clip(x - 0.3 * v, -1, 1)
    values.append(-np.sum((x - target) ** 2) / 2)
    np.testing.assert_allclose(found.values, values, rtol=1e-5)
    np.testing.assert_allclose(found.last, x, rtol=1e-5)
    assert found.value == np.max(found.values)


def test_the_best_is_kept_and_what_is_not_finite_never_is():
    """A step too long overshoots; from 2 on the gain is NaN."""

    def gain(x):
        return jnp.where(x > 2, jnp.nan, -jnp.square(x - 1))

    found = maximise(gain, jnp.array(0.9), 5, optax.sgd(30.0))
    assert found.best == jnp.float32(0.9) and found.value == pytest.approx(-0.01, rel=1e-4)
    hopeless = maximise(lambda x: x * jnp.nan, jnp.array(0.25), 3, optax.sgd(1.0))
    assert hopeless.best == 0.25 and hopeless.last == 0.25
    # One entry without a finite slope does not stop the others.
    part = maximise(
        lambda x: jnp.sum(x) + 0 * jnp.log(x[0]), jnp.array([0.0, 1.0]), 2, optax.sgd(1.0)
    )
    assert part.last[1] == 3


def test_the_best_by_what_is_to_be_chosen_by():
    """The surrogate climbs without end; the true gain is largest at 3."""
    found = maximise(
        lambda x: x, jnp.array(0.0), 10, optax.sgd(1.0), choose=lambda x: -jnp.square(x - 3)
    )
    assert found.best == 3 and found.value == 0 and found.last == 10


def test_restarts_are_an_axis_and_the_loop_has_a_gradient():
    def gain(x):
        return jnp.sin(3 * x) - 0.1 * jnp.square(x)

    starts = jnp.linspace(-3, 3, 7)
    found = jax.vmap(lambda x: maximise(gain, x, 60, optax.sgd(0.02)))(starts)
    best = best_of(found)
    grid = np.linspace(-3, 3, 10_001)
    assert best.value == pytest.approx(np.max(np.sin(3 * grid) - 0.1 * grid**2), abs=1e-4)
    assert best.values.shape == (61,)
    # x - target shrinks by .9 in every step, so the end moves with the start by .9^4.
    end = jax.grad(lambda x: maximise(lambda y: -jnp.square(y), x, 4, optax.sgd(0.05)).last)
    assert end(jnp.array(2.0)) == pytest.approx(0.9**4, rel=1e-5)
    with pytest.raises(ValueError, match="several ascents"):
        best_of(jax.tree.map(lambda x: x[0], found))


def test_a_gain_must_be_a_number():
    with pytest.raises(ValueError, match="the gain of maximise must return"):
        maximise(lambda x: x, jnp.zeros(3), 2, optax.sgd(1.0))
    with pytest.raises(ValueError, match="the choose of maximise must return"):
        maximise(jnp.sum, jnp.zeros(3), 2, optax.sgd(1.0), choose=lambda x: x)


# --- Forecasts ---------------------------------------------------------------------------------------

RNG = np.random.default_rng(0)
HESSIAN = np.cov(RNG.normal(size=(3, 9)))
CENTRE, ETA = np.array([1.0, -1.0, 0.5]), 0.3
NOBODY = ClientData({}, jnp.zeros(1, jnp.int32), jnp.int32(1))


def quadratic(key, params, state, data):
    """One step on (w - centre)^T H (w - centre) / 2."""
    hessian, centre = jnp.asarray(HESSIAN, params.dtype), jnp.asarray(CENTRE, params.dtype)
    return -ETA * jnp.dot(hessian, params - centre, precision="highest"), state, {}


QUADRATIC = as_one(Client(lambda params: (), quadratic), NOBODY)


def loss(params):
    return jnp.sum(jnp.square(params)) / 2


@pytest.mark.parametrize("rounds", [0, 1, 6])
def test_rounds_ahead_in_closed_form(rounds):
    """w_k = centre + (I - eta H)^k (w - centre), and the gradient is (I - eta H)^k w_k."""
    with jax.enable_x64(True):
        w = jnp.asarray([0.3, 0.1, -2.0], jnp.float64)
        ahead = loss_after(QUADRATIC, loss, rounds)
        value, slope = jax.value_and_grad(ahead, argnums=1)(jax.random.key(0), w)
    power = np.linalg.matrix_power(np.eye(3) - ETA * HESSIAN, rounds)
    end = CENTRE + power @ (np.asarray(w) - CENTRE)
    np.testing.assert_allclose(value, end @ end / 2, rtol=1e-12)
    np.testing.assert_allclose(slope, power @ end, rtol=1e-12)


def view_of(updates, malicious=2, params=None):
    n, d = updates.shape
    bad = jnp.arange(n) < malicious
    params = jnp.zeros(d, updates.dtype) if params is None else params
    return AttackerView(
        updates, jnp.ones(n, bool), ~bad, bad, malicious, params, jax.random.key(3), None
    )


@pytest.mark.parametrize("partial", [False, True])
def test_steepest_is_the_adjoint_at_the_honest_mean(partial):
    updates = jnp.asarray(RNG.normal(size=(7, 3)), jnp.float32)
    view = view_of(updates, params=jnp.asarray([0.5, 0.25, -1.0]))
    slope = steepest(QUADRATIC, loss, 4, partial=partial)(view)
    rows = np.float64(updates[:2] if partial else updates[2:])
    power = np.linalg.matrix_power(np.eye(3) - ETA * HESSIAN, 3)
    end = CENTRE + power @ (np.asarray(view.params) + rows.mean(axis=0) - CENTRE)
    np.testing.assert_allclose(slope, power @ end, rtol=1e-5)


def problem(clients=5, own=8):
    """Softmax regression on few features, equal shares."""
    x = RNG.normal(size=(clients * own, 4)).astype(np.float32)
    y = (np.arange(clients * own) % 3).astype(np.int32)
    task = fr.classification(models.SoftmaxRegression(3), x[:1])
    index = jnp.arange(clients * own, dtype=jnp.int32).reshape(clients, own)
    pool = {"x": jnp.asarray(x), "y": jnp.asarray(y)}
    return task, fr.FederatedData(pool, index, jnp.full(clients, own, jnp.int32))


def test_one_client_for_all_is_the_mean_of_all():
    """Full batches of equal sizes: the mean of the gradients is the gradient of the mean."""
    task, data = problem()
    client = fr.local_sgd(task, 0.5, None)
    everything = ClientData(data.examples, data.index.ravel(), jnp.sum(data.count))
    params, key = task.init(jax.random.key(0)), jax.random.key(1)
    np.testing.assert_allclose(
        as_one(client, everything)(key, params),
        by_rule(client, data)(key, params),
        rtol=2e-5,
        atol=1e-7,
    )
    robust = by_rule(client, data, base=aggregators.median())(key, params)
    assert np.max(np.abs(robust - by_rule(client, data)(key, params))) > 1e-4


def test_clients_without_examples_are_absent_from_a_forecast():
    task, data = problem()
    client = fr.local_sgd(task, 0.5, None)
    some = data._replace(count=data.count.at[2].set(0))
    fewer = data._replace(index=jnp.delete(data.index, 2, 0), count=jnp.delete(data.count, 2))
    params, key = task.init(jax.random.key(0)), jax.random.key(1)
    np.testing.assert_allclose(
        by_rule(client, some)(key, params),
        by_rule(client, fewer)(key, params),
        rtol=1e-5,
        atol=1e-7,
    )


@pytest.mark.parametrize("base", [aggregators.mean(), aggregators.trimmed_mean(1)])
def test_gradients_through_three_rounds_of_training(base):
    """Against central differences in float64, through mini-batches and a rule."""
    with jax.enable_x64(True):
        task, data = problem()
        data = data._replace(
            examples={"x": jnp.asarray(data.examples["x"], jnp.float64), "y": data.examples["y"]}
        )
        client = fr.local_sgd(task, 0.5, 4)
        ahead = jax.jit(
            loss_after(by_rule(client, data, base=base), lambda p: task.loss(p, data.examples), 3)
        )
        key = jax.random.key(5)
        w = jnp.asarray(RNG.normal(size=task.init(key).shape), jnp.float64)
        slope = jax.grad(ahead, argnums=1)(key, w)
        for i in (0, 4, 11):
            step = jnp.zeros_like(w).at[i].set(1e-6)
            difference = (ahead(key, w + step) - ahead(key, w - step)) / 2e-6
            assert slope[i] == pytest.approx(float(difference), rel=1e-6, abs=1e-9)


def test_memory_grows_by_a_model_per_round():
    """Not by what a round's training holds: rounds are computed again on the way back."""
    task, data = problem(clients=20, own=64)
    client = fr.local_sgd(task, 0.1, 64, steps=4)
    forecast = by_rule(client, data)

    def temporaries(rounds):
        ahead = loss_after(forecast, lambda p: task.loss(p, data.examples), rounds)
        key, params = jax.random.key(0), task.init(jax.random.key(0))
        compiled = jax.jit(jax.grad(ahead, argnums=1)).lower(key, params).compile()
        return compiled.memory_analysis().temp_size_in_bytes

    few, many = temporaries(5), temporaries(45)
    d = task.init(jax.random.key(0)).shape[0]
    assert many - few < 40 * 16 * d * 4


# --- The attack --------------------------------------------------------------------------------------


def test_looking_ahead_does_more_harm_than_looking_at_this_round():
    """Trimmed mean, 40 rounds on digits: the loss ten rounds from now against Fang et al.'s side."""
    from fedjax_robust.data import load, partition

    digits = load("digits", key=jax.random.key(0))
    pool = {name: jnp.asarray(digits.train[name]) for name in ("x", "y")}
    task = fr.classification(models.SoftmaxRegression(10), pool["x"][:1])
    data = partition.by_group(jax.random.key(1), pool, 20, 0.5, 10)
    client = fr.local_sgd(task, 0.1, 16)
    everybody = np.arange(len(pool["y"]), dtype=np.int32)
    own = ClientData(pool, jnp.asarray(everybody), jnp.int32(len(everybody)))

    def looking(rounds):
        forecast = as_one(fr.local_sgd(task, 0.1, 256), own)
        return adjoint(steepest(forecast, lambda p: task.loss(p, pool), rounds))

    def error(attack):
        sim = fr.Simulation(
            task, client, aggregators.trimmed_mean(4), attack, attack.needs, num_malicious=4
        )
        state, _ = fr.run(sim, jax.random.key(2), data, 40)
        return float(fr.metrics.test_error(task, digits.test)(state.params)["test_error"])

    fang = error(attacks.fang_trim_full(before=aggregators.mean()))
    assert error(looking(10)) > fang + 0.05


def test_aimed_refuses_attacks_with_a_state():
    def slope(view):
        return view.params + 1

    stateful = attacks.in_rounds(attacks.constant(0.0), np.array([True]))
    attack = aimed(lambda p: stateful, slope)
    with pytest.raises(ValueError, match="aimed needs an attack without a state"):
        attack.craft(view_of(jnp.ones((4, 3))), ())
    with pytest.raises(TypeError, match="make to return an Attack"):
        aimed(lambda p: p, slope)
    with pytest.raises(ValueError, match="the slope must return"):
        adjoint(lambda view: view.params[1:]).craft(view_of(jnp.ones((4, 3))), ())
