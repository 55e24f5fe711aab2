"""What the engine refuses: data that cannot be, parts that break their promise; and participation,
knowledge and numbers of malicious clients that vary."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from telling import SQUARES, play, showing, simulation, telling, telling_data

import fedjax_robust as fr
from fedjax_robust import aggregators, attacks, engine, privacy
from fedjax_robust.clients.local import local_sgd
from fedjax_robust.engine import driver
from fedjax_robust.engine.participation import each_with_probability, varying_number
from fedjax_robust.types import (
    Aggregator,
    Attack,
    Client,
    FederatedData,
    Knowledge,
    Simulation,
    Task,
)

KEY = jax.random.key(0)
RNG = np.random.default_rng(3)

# --- Calling a rule ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"updates": np.ones(3)}, r"updates \(n, d\).*got shape \(3,\)"),
        ({"updates": np.ones((2, 3, 4))}, r"got shape \(2, 3, 4\)"),
        ({"updates": np.ones((0, 3))}, "n >= 1 clients"),
        ({"updates": [["a", "b"]]}, "array of numbers"),
        ({"updates": np.ones((2, 3), complex)}, "real numbers"),
        ({"weights": np.ones(3)}, r"one weight for each row, shape \(4,\)"),
        ({"weights": np.ones((4, 1))}, "one weight for each row"),
        ({"params": np.ones(2)}, r"params of shape \(d,\) = \(3,\), got shape \(2,\)"),
        ({"key": 0}, r"write jax.random.key\(0\)"),
    ],
)
def test_a_plain_matrix_is_checked(arguments, message):
    arguments = {"updates": np.ones((4, 3))} | arguments
    with pytest.raises((ValueError, TypeError), match=message):
        aggregators.mean()(**arguments)


def test_integer_updates_become_floats():
    whole = [[1, 2], [3, 5]]
    for rule in (aggregators.mean(), aggregators.median(), aggregators.trimmed_mean(0)):
        np.testing.assert_allclose(rule(whole), [2, 3.5])
        np.testing.assert_allclose(rule(np.array(whole), np.array([1, 0])), [1, 2])


def test_what_a_rule_returns_to_a_caller_is_checked():
    scalar = Aggregator(lambda n, params: (), lambda r, s: (jnp.sum(r.updates), s, {}))
    with pytest.raises(ValueError, match=r"must return shape \(3,\), got \(\)"):
        scalar(np.ones((2, 3)))


# --- Arguments -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"aggregator": aggregators.median}, r"aggregator to be an Aggregator.*call it"),
        ({"attack": attacks.gaussian}, r"attack to be an Attack.*call it"),
        ({"client": local_sgd}, "client to be a Client"),
        ({"task": None}, "task to be a Task"),
        ({"server_optimizer": 0.1}, "server_optimizer to be a GradientTransformation"),
        ({"knowledge": True}, "knowledge to be a Knowledge"),
        ({"knowledge": Knowledge(others=1)}, "others to be True or False"),
        ({"weights": 1.0}, "weights to be a function"),
        ({"participants": np.arange(3)}, "participants to be a function"),
        ({"num_malicious": 1.5}, "num_malicious to be a whole number"),
        ({"num_malicious": True}, "num_malicious to be a number"),
        ({"clients_per_round": 2.0}, "clients_per_round to be a whole number"),
        ({"client_chunk": np.array([1, 2])}, "client_chunk to be one number"),
        ({"max_malicious": 5}, "max_malicious must lie in 0 .. N, got 5 of N=4"),
        ({"num_malicious": 2, "max_malicious": 1}, "num_malicious must be <= max_malicious"),
        ({"knowledge": Knowledge(coins=True)}, "needs rule=True"),
        ({"aggregator": Aggregator(None, None)}, "init to be a function"),
    ],
)
def test_parts_of_another_kind(changes, message):
    for call in (engine.init, lambda *a: engine.run(*a, 1)):
        with pytest.raises((ValueError, TypeError), match=message):
            call(simulation(**changes), KEY, telling_data(4))


def test_numbers_may_be_arrays_without_axes():
    sim = simulation(num_malicious=np.int64(1), clients_per_round=jnp.int32(3))
    _, history = engine.run(sim, KEY, telling_data(4), np.int32(2), evaluate_every=np.int64(1))
    assert history["ids"].shape == (2, 3)


@pytest.mark.parametrize("key", [0, 1.5, None, np.uint32(7), "seed"])
def test_a_seed_is_no_key(key):
    for call in (engine.init, lambda *a: engine.run(*a, 1)):
        with pytest.raises(TypeError, match=r"needs a key of jax.random.key\(seed\)"):
            call(simulation(), key, telling_data(4))


@pytest.mark.parametrize(
    ("params", "message"),
    [
        (np.ones(4, np.float32), r"params of shape \(d,\).*\(3,\), got shape \(4,\)"),
        (np.ones((3, 1), np.float32), "got shape"),
        (np.ones(3, np.int32), "params of floats"),
        ({"w": 1}, "params"),
    ],
)
def test_a_first_model_of_another_shape(params, message):
    for call in (engine.init, lambda s, k, d, p: engine.run(s, k, d, 1, params=p)):
        with pytest.raises((ValueError, TypeError), match=message):
            call(simulation(), KEY, telling_data(4), params)


# --- Data ----------------------------------------------------------------------------------------


def images(classes=10, **changes):
    examples = {
        "x": RNG.normal(size=(12, 4)).astype(np.float32),
        "y": RNG.integers(0, classes, 12).astype(np.int32),
    }
    data = FederatedData(examples, np.arange(12).reshape(4, 3), np.full(4, 3))
    return data._replace(**changes)


@pytest.fixture(scope="module")
def linear():
    task = fr.classification(nn.Dense(10), jnp.zeros((1, 4)))
    return Simulation(task, local_sgd(task, 0.1, 2), aggregators.mean())


def with_columns(**columns):
    return images(examples=images().examples | columns)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (images(index=np.zeros((0, 3), int), count=np.zeros(0, int)), "N >= 1 clients"),
        (images(index=np.arange(12).reshape(4, 3) + 1), r"rows in \[0, 12\).*from 1 to 12"),
        (images(index=np.arange(12).reshape(4, 3) - 1), "from -1 to 10"),
        (images(count=np.array([3, 3, 3, 4])), r"data.count in \[0, 3\].*from 3 to 4"),
        (images(count=np.array([3, 3, 3, -1])), "from -1 to 3"),
        (images(count=np.zeros(4, int)), "somebody owns an example, got data.count of zeros"),
        (images(count=np.full(3, 3)), r"shapes \(4, 3\) and \(3,\)"),
        (images(count=np.full(4, 3.0)), "data.count of integers"),
        (with_columns(y=np.zeros(11, int)), "one common number of examples"),
        (with_columns(names=np.array(list("abcdefghijkl"))), "a column 'names'"),
        (with_columns(y=np.arange(12) % 10 + 1), r"labels y in 0 .. 9.*from 1 to 10"),
        (with_columns(y=np.full(12, -1)), "labels from -1 to -1"),
        (with_columns(y=np.zeros((12, 1), int)), "squeeze the last axis"),
        (with_columns(y=np.zeros((12, 10), int)), "argmax over the classes"),
        (with_columns(y=np.zeros(12, np.float32)), "labels y that are integers"),
        (with_columns(y=np.zeros(12, bool)), "labels y that are integers"),
        (with_columns(x=np.zeros((12, 5), np.float32)), r"inputs x of shape \(5,\)"),
        (
            images(examples={"image": images().examples["x"], "label": images().examples["y"]}),
            r"needs examples with 'x', got data.examples with \['image', 'label'\]; rename",
        ),
        ({"x": 1}, "data to be a FederatedData"),
    ],
)
def test_data_that_cannot_be(linear, data, message):
    with pytest.raises((ValueError, TypeError), match=message):
        engine.run(linear, KEY, data, 1)


def test_a_partition_of_a_stack_in_which_nobody_owns_anything(linear):
    data = images()
    stack = data._replace(
        index=np.stack([data.index] * 2), count=np.stack([data.count, 0 * data.count])
    )
    with pytest.raises(ValueError, match="zeros in partition 1"):
        engine.run(linear, jax.random.split(KEY), stack, 1)


def test_a_task_of_ones_own_may_name_its_examples_and_targets_as_it_likes():
    def loss(params, batch):
        return jnp.mean(jnp.square(batch["image"] @ params - batch["target"]) * batch["mask"])

    task = Task(lambda key: jnp.zeros(4), loss, lambda p, x: x @ p, lambda p: p)
    examples = {"image": images().examples["x"], "target": np.linspace(-3, 20, 12)}
    data = images(examples=examples)
    state, _ = engine.run(
        Simulation(task, local_sgd(task, 0.1, None), aggregators.mean()), KEY, data, 1
    )
    # every client's gradient of the mean square over its three rows, from the zero model
    x, y = np.float64(examples["image"]), examples["target"]
    np.testing.assert_allclose(state.params, 0.1 * 2 * x.T @ y / 12, rtol=1e-5)
    named = images(examples={"x": examples["image"], "y": np.linspace(-3, 20, 12)})
    own = task._replace(loss=lambda p, b: loss(p, {**b, "image": b["x"], "target": b["y"]}))
    sim = Simulation(own, local_sgd(own, 0.1, None), aggregators.mean())
    again, _ = engine.run(sim, KEY, named, 1)
    np.testing.assert_allclose(again.params, state.params, rtol=1e-6)


# --- What parts return ---------------------------------------------------------------------------


def rule(result, state=lambda s: s, info=None):
    return Aggregator(
        lambda n, params: jnp.zeros(2),
        lambda r, s: (result(r), state(s), {} if info is None else info),
    )


def sending(result, init=lambda params: ()):
    return {"attack": Attack(init, result), "num_malicious": 2}


def training(*result):
    return {"client": Client(lambda params: jnp.zeros(2), lambda k, p, s, d: result)}


ROW, TWO = jnp.ones(3), jnp.zeros(2)
GOOD = (ROW, TWO, {})
BROKEN = {
    "a rule's scalar": ({"aggregator": rule(lambda r: jnp.sum(r.updates))}, "rule's aggregate"),
    "a rule's row": ({"aggregator": rule(lambda r: r.updates[:1])}, "rule's aggregate"),
    "a rule's integers": ({"aggregator": rule(lambda r: jnp.ones(3, int))}, "must return floats"),
    "a rule's pair": (
        {"aggregator": Aggregator(lambda n, p: (), lambda r, s: (r.updates[0], s))},
        r"must return a tuple \(update, state, info\), got 2 values",
    ),
    "a rule's state": (
        {"aggregator": rule(lambda r: r.updates[0], lambda s: s[:1])},
        r"shapes and dtypes.*was float32\(2,\), is float32\(1,\)",
    ),
    "a rule's state's dtype": (
        {"aggregator": rule(lambda r: r.updates[0], lambda s: s.astype(int))},
        r"was float32\(2,\), is int32\(2,\)",
    ),
    "a rule's state's structure": (
        {"aggregator": rule(lambda r: r.updates[0], lambda s: (s, s))},
        "a state of the structure",
    ),
    "a rule's report": (
        {"aggregator": rule(lambda r: r.updates[0], info={"a": None})},
        "report arrays or numbers by name, got a=None",
    ),
    "a rule's list": ({"aggregator": rule(lambda r: r.updates[0], info=[1])}, "arrays by name"),
    "an attack's row": (sending(lambda v, s: (v.updates[0], s)), r"craft must return rows.*\(3,\)"),
    "an attack's one row": (sending(lambda v, s: (v.updates[:1], s)), r"\(2, 3\) or.*\(4, 3\)"),
    "an attack's columns": (sending(lambda v, s: (v.updates[:, :1], s)), r"shape \(4, 1\)"),
    "an attack's integers": (sending(lambda v, s: (jnp.ones((2, 3), int), s)), "floats"),
    "an attack's state": (
        sending(lambda v, s: (v.updates, s + 0.5), lambda p: jnp.int32(0)),
        "was int32",
    ),
    "no state": (sending(lambda v, s: v.updates), r"tuple \(rows, state\)"),
    "a client's scalar": (training(jnp.float32(1), *GOOD[1:]), "client's update must return shape"),
    "a client's column": (training(ROW[:, None], *GOOD[1:]), "client's update must return shape"),
    "a client's state": (training(ROW, TWO[:1], {}), "client's update must return a state"),
    "a client's losses": (training(ROW, TWO, {"train_loss": ROW}), "train_loss, must return shape"),
    "a client's pair": (training(ROW, TWO), r"tuple \(update, state, info\)"),
    "weights": ({"weights": lambda count: jnp.ones(3)}, r"weights must return shape \(4,\)"),
    "one weight": ({"weights": lambda count: 1.0}, "weights must return an array"),
    "participants": (
        {"participants": lambda k, r: jnp.ones(3)},
        "must return ids that are integers",
    ),
    "one participant": ({"participants": lambda k, r: jnp.int32(1)}, r"ids \(n,\)"),
    "observe": ({"observe": lambda r, m: r.updates}, "observe must report arrays by name"),
    "after_round": (
        {"after_round": lambda k, p: jnp.sum(p)},
        r"after_round must return shape \(3,\)",
    ),
    "after_round's dtype": (
        {"after_round": lambda k, p: p.astype(jnp.float16)},
        "after_round must return float32",
    ),
    "an optimizer": (
        {
            "server_optimizer": optax.GradientTransformation(
                lambda p: (), lambda g, s, p=None: (jnp.sum(g), s)
            )
        },
        "server optimizer's update must return shape",
    ),
    "the task's loss": (
        {"task": SQUARES._replace(loss=lambda p, b: b["x"][:, 0])},
        r"task.loss must return shape \(\)",
    ),
    "the task's init": (
        {"task": SQUARES._replace(init=lambda key: {"w": jnp.ones(3)})},
        "task.init must return a flat vector",
    ),
}


@pytest.mark.parametrize("name", BROKEN)
def test_parts_that_break_their_promise(name):
    changes, message = BROKEN[name]
    with pytest.raises((ValueError, TypeError), match=message):
        play(simulation(**changes), telling_data(4))
    with pytest.raises((ValueError, TypeError), match=message):
        engine.run(simulation(**changes), KEY, telling_data(4), 1)


@pytest.mark.parametrize("result", [None, jnp.float32(1), {"a": None}, {1: jnp.ones(1)}, {"a": {}}])
def test_what_evaluate_returns_is_checked(result):
    with pytest.raises(TypeError, match="evaluate must report arrays"):
        engine.run(simulation(), KEY, telling_data(4), 1, evaluate=lambda params: result)


# --- Knowledge of the coins ----------------------------------------------------------------------


def forecasting(key):
    """The noise of a rule of Gaussian noise alone, and what the attacker took for it."""

    def craft(view, state):
        return view.updates[: view.num_malicious], view.aggregate(jnp.zeros_like(view.updates))

    def noise(coins):
        sim = simulation(
            client=telling(0.0),  # every update is zero: the aggregate is the noise
            aggregator=privacy.participant_dp(1.0, 0.5),
            attack=Attack(lambda params: params, craft),
            knowledge=Knowledge(rule=True, coins=coins),
            num_malicious=1,
        )
        state, _ = play(sim, telling_data(4), 1, key, params=jnp.zeros(3))
        return np.asarray(state.params), np.asarray(state.attack)

    return noise


def test_only_who_knows_the_coins_knows_the_noise():
    noise = forecasting(KEY)
    real, forecast = noise(True)
    np.testing.assert_array_equal(forecast, real)
    again, other = noise(False)
    np.testing.assert_array_equal(again, real)  # the server's draw is the same
    assert np.all(np.abs(other) > 0) and not np.any(np.isclose(other, real, rtol=1e-3))


def test_a_forecast_without_coins_says_nothing_about_the_noise():
    """Over 300 rounds the two are uncorrelated; each is N(0, .5^2)."""

    def one(key):
        def craft(view, state):
            return view.updates[:1], view.aggregate(jnp.zeros_like(view.updates))

        sim = simulation(
            client=telling(0.0),
            aggregator=privacy.participant_dp(1.0, 0.5),
            attack=Attack(lambda params: params, craft),
            knowledge=Knowledge(rule=True),
            num_malicious=1,
        )
        state = engine.init(sim, key, telling_data(4), jnp.zeros(3))
        state, _ = engine.step(sim, state, telling_data(4))
        return state.params, state.attack

    real, forecast = jax.jit(jax.vmap(one))(jax.random.split(KEY, 300))
    for values in (real, forecast):
        assert abs(np.std(values) - 0.5) < 5 * 0.5 / np.sqrt(2 * 900)
    assert abs(np.corrcoef(np.ravel(real), np.ravel(forecast))[0, 1]) < 5 / np.sqrt(900)


def test_an_attack_may_need_the_coins():
    sim = simulation(
        attack=Attack(needs=Knowledge(rule=True, coins=True)),
        knowledge=Knowledge(rule=True),
        num_malicious=1,
    )
    with pytest.raises(ValueError, match=r"needs Knowledge\(coins=True\)"):
        engine.init(sim, KEY, telling_data(4))


def test_every_key_of_a_round_is_another():
    """Attacker, rule, clients, selection, repair, over rounds and seeds: no two draws are equal."""
    seen = {}

    def keep(name, key):
        seen.setdefault(name, []).append(tuple(np.ravel(jax.random.key_data(key)).tolist()))

    def update(key, params, state, data):
        return jax.random.normal(key, (3,)), state, {}

    def craft(view, state):
        keep("attack", view.key)
        return view.updates[:2], state

    def aggregate(received, state):
        keep("server", received.key)
        return received.updates[0], state, {"updates": received.updates}

    def select(key, rounds):
        keep("select", key)
        return jnp.arange(4, dtype=jnp.int32)

    def repair(key, params):
        keep("repair", key)
        return params

    sim = simulation(
        client=Client(lambda params: (), update),
        attack=Attack(craft=craft),
        aggregator=Aggregator(lambda n, params: (), aggregate),
        participants=select,
        after_round=repair,
        num_malicious=2,
    )
    drawn = []
    for seed in (0, 1):
        state = engine.init(sim, jax.random.key(seed), telling_data(4))
        keep("start", state.key)
        for _ in range(3):
            state, info = engine.step(sim, state, telling_data(4))
            drawn.append(info["updates"])
    keys = [key for several in seen.values() for key in several]
    assert len(keys) == 2 * (3 * 4 + 1) and len(set(keys)) == len(keys)
    assert len(np.unique(drawn)) == np.size(drawn)


# --- A number of participants that varies --------------------------------------------------------


def attended(ids, data, rounds=2, **changes):
    client = local_sgd(SQUARES, 0.3, None, momentum=0.5, keep_momentum=True)
    sim = simulation(
        client=client,
        participants=lambda key, r: jnp.array(ids, jnp.int32),
        aggregator=showing(aggregators.median()),
        **changes,
    )
    return play(sim, data, rounds, params=jnp.ones(3))


@pytest.mark.parametrize("trained", [False, True])
def test_places_that_nobody_takes_do_not_count(trained):
    data = telling_data(6)
    changes = {"num_malicious": 2}
    if trained:
        changes["attack"] = attacks.data_poisoning(
            local_sgd(SQUARES, 0.9, None, momentum=0.2, keep_momentum=True)
        )
    few, fewer = attended([1, 3, 4], data, **changes)
    for ids in ([1, 3, 4, 6, 6], [1, 3, 4, 7, 900], [1, 3, 4, 6, 7, 8]):
        many, more = attended(ids, data, **changes)
        np.testing.assert_allclose(many.params, few.params, rtol=1e-6)
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), many.clients, few.clients
        )
        np.testing.assert_array_equal(more["malicious"][:, :3], fewer["malicious"])
        assert not more["malicious"][:, 3:].any()
        np.testing.assert_array_equal(more["weights"], [[1] * 3 + [0] * (len(ids) - 3)] * 2)
        np.testing.assert_allclose(more["train_loss"], fewer["train_loss"], rtol=1e-6)
    assert np.any(few.clients[0] != 0)


def test_nobody_at_all_leaves_the_model():
    state, info = attended([6, 6], telling_data(6))
    np.testing.assert_array_equal(state.params, 1)
    np.testing.assert_array_equal(state.clients[0], 0)
    assert not info["weights"].any()


def test_nobody_weighs_nothing_whatever_the_weights_say():
    data = telling_data(6)
    few, _ = attended([1, 3], data, weights=lambda count: count * 0 + 2)
    many, info = attended([1, 3, 6], data, weights=lambda count: count * 0 + 2)
    np.testing.assert_array_equal(info["weights"], [[2, 2, 0]] * 2)
    np.testing.assert_allclose(many.params, few.params, rtol=1e-6)


def test_each_with_probability_is_poisson_sampling():
    n, q, rounds = 9, 0.3, 4000
    draw = jax.jit(jax.vmap(each_with_probability(n, q, n), (0, None)))
    ids = np.asarray(draw(jax.random.split(KEY, rounds), 0))
    assert ids.shape == (rounds, n) and ids.dtype == np.int32
    there = np.stack([np.any(ids == i, axis=1) for i in range(n)], axis=1)
    assert np.all(np.sort(ids, axis=1) == ids) and np.all(
        there.sum(axis=1) == (ids < n).sum(axis=1)
    )
    error = 5 * np.sqrt(q * (1 - q) / rounds)
    assert np.all(np.abs(there.mean(axis=0) - q) < error)
    together = (there[:, :, None] & there[:, None]).mean(axis=0)[~np.eye(n, dtype=bool)]
    assert np.all(np.abs(together - q * q) < 5 * np.sqrt(q * q * (1 - q * q) / rounds))
    numbers = np.bincount(there.sum(axis=1), minlength=n + 1) / rounds  # binomial
    assert abs(numbers[0] - (1 - q) ** n) < 0.015
    few = np.asarray(
        jax.vmap(each_with_probability(n, q, 2), (0, None))(jax.random.split(KEY, 500), 0)
    )
    assert few.shape == (500, 2) and set((few < n).sum(axis=1)) == {0, 1, 2}


@pytest.mark.parametrize(("n", "q"), [(10, 0.5), (100, 0.1), (1000, 0.01), (1000, 1.0), (3, 0.999)])
def test_the_default_places_are_hardly_ever_exceeded(n, q):
    stats = pytest.importorskip("scipy.stats")
    places = each_with_probability(n, q)(KEY, 0).shape[0]
    assert stats.binom.sf(places, n, q) <= 1e-12
    if n >= 100 and q < 1:
        assert places < n and stats.binom.sf(places // 2, n, q) > 1e-12  # and not many more


def test_varying_numbers():
    draw = varying_number(7, 4, np.array([2, 0, 4]))
    sim = simulation(participants=draw, aggregator=showing())
    _, history = play(sim, telling_data(7), 6)
    np.testing.assert_array_equal((history["ids"] < 7).sum(axis=1), [2, 0, 4, 2, 0, 4])
    np.testing.assert_array_equal(history["weights"], history["ids"] < 7)
    assert not np.array_equal(history["ids"][2], history["ids"][5])
    for numbers, message in (
        ([5], "numbers from 5 to 5"),
        ([-1, 2], "from -1 to 2"),
        ([], "shape"),
    ):
        with pytest.raises((ValueError, TypeError), match=message):
            varying_number(7, 4, np.array(numbers, int))
    with pytest.raises(ValueError, match="at_most <= N"):
        varying_number(3, 4, np.array([1]))


# --- A number of malicious clients that is traced ------------------------------------------------

HONEST = local_sgd(SQUARES, 0.3, None, steps=2)
SWEPT = {
    "crafted": (attacks.gaussian(), {}),
    "partial": (attacks.fang_trim_partial(), {"clients_per_round": 4}),
    "trained": (attacks.data_poisoning(local_sgd(SQUARES, 0.9, None, steps=2)), {}),
    "first order": (attacks.first_order(steps=2), {}),
}


@pytest.mark.parametrize("name", SWEPT)
def test_a_sweep_over_the_number_of_malicious_clients(name):
    """One program for all numbers gives what one program for each gives."""
    attack, changes = SWEPT[name]
    data = telling_data(6, seed=4)
    knowledge = Knowledge(others=True, rule=True)

    def final(number, bound):
        sim = Simulation(
            SQUARES,
            HONEST,
            aggregators.mean(),
            attack,
            knowledge,
            num_malicious=number,
            max_malicious=bound,
            **changes,
        )
        state, history = engine.run(sim, KEY, data, 2, params=jnp.ones(3))
        return state.params, jnp.sum(history["malicious"], axis=1)

    numbers = [0, 1, 3]
    together, counted = jax.vmap(lambda m: final(m, 3))(jnp.array(numbers))
    for i, number in enumerate(numbers):
        params, malicious = final(number, None)
        np.testing.assert_allclose(together[i], params, rtol=1e-5, atol=1e-6)
        np.testing.assert_array_equal(counted[i], malicious)
    assert not np.allclose(together[0], together[2])


def test_a_loop_over_the_number_of_malicious_clients_compiles_once():
    sim = simulation(attack=attacks.gaussian(), knowledge=Knowledge(others=True), max_malicious=3)
    data = telling_data(6)
    engine.run(sim, KEY, data, 2)
    programs = driver._block_jit._cache_size(), driver._init._cache_size()
    for number in (1, 2, np.int32(3), jnp.int32(2)):
        _, history = engine.run(sim._replace(num_malicious=number), KEY, data, 2)
        assert np.all(history["malicious"].sum(axis=1) == int(number))
    assert (driver._block_jit._cache_size(), driver._init._cache_size()) == programs


def test_a_traced_number_needs_a_bound():
    def final(number):
        return engine.run(simulation(num_malicious=number), KEY, telling_data(4), 1)[0].params

    with pytest.raises(TypeError, match="needs max_malicious"):
        jax.vmap(final)(jnp.arange(3))


# --- Equal simulations, progress -----------------------------------------------------------------


def test_equal_simulations_are_one_program():
    def sim():
        return Simulation(
            SQUARES,
            HONEST,
            aggregators.krum(f=1),
            attacks.fang_krum_partial(epsilon=0.02),
            num_malicious=1,
            participants=each_with_probability(6, 0.5, 5),
        )

    assert sim() == sim() and hash(sim()) == hash(sim())
    assert sim() != sim()._replace(aggregator=aggregators.krum(f=2))
    data = telling_data(6)
    engine.run(sim(), KEY, data, 2)
    programs = driver._block_jit._cache_size()
    engine.run(sim(), KEY, data, 2)
    assert driver._block_jit._cache_size() == programs


@pytest.mark.parametrize("key", [KEY, jax.random.split(KEY)], ids=["one seed", "seeds"])
def test_the_progress_bar_shows_the_scalars(capsys, key):
    def evaluate(params):
        scalars = {
            "test_error": 0.25,
            "attack_success": jnp.float32(1e-7),
            "steps": jnp.int32(123456),
        }
        return scalars | {"vector": params, "d": 1.0, "e": 2.0, "f": 3.0}

    engine.run(simulation(), key, telling_data(4), 2, evaluate=evaluate, progress=True)
    shown = capsys.readouterr().err
    for text in ("test_error=0.25", "attack_success=1e-07", "steps=1.235e+05", "d=1", "e=2"):
        assert text in shown
    assert "train_loss=" in shown and "vector" not in shown and "f=3" not in shown
