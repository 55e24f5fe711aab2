"""The engine: rounds against NumPy, participation, knowledge, and the same result however it is run.

Most tests use clients that do not train but send a vector of their own, so that every row that the
attacker or the server sees can be told apart: ``telling()``.
"""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import reference
from telling import KEY, SQUARES, play, showing, simulation, squares, telling, telling_data, to_data

from fedjax_robust import aggregators, attacks, engine, models, tasks
from fedjax_robust.clients.local import local_sgd
from fedjax_robust.data import partition
from fedjax_robust.engine import driver
from fedjax_robust.types import (
    Aggregator,
    Attack,
    Client,
    Knowledge,
    Simulation,
    equal_weights,
    example_weights,
)

CLOSE = {"rtol": 1e-5, "atol": 1e-6}  # "the same result" for two programs with the same seed


# --- One round against NumPy ---------------------------------------------------------------------

RNG = np.random.default_rng(1)
COUNTS = [4, 7, 0, 2]
FEATURES = RNG.normal(size=(sum(COUNTS), 4)).astype(np.float32)
LABELS = RNG.integers(0, 3, sum(COUNTS)).astype(np.int32)
SPLIT = to_data({"x": FEATURES, "y": LABELS}, COUNTS)


@pytest.fixture(scope="module")
def softmax():
    return tasks.classification(models.SoftmaxRegression(3), jnp.zeros((1, 4)))


@pytest.fixture(scope="module")
def start(softmax):
    return softmax.init(jax.random.key(9))


def rows_of(client):
    first = sum(COUNTS[:client])
    return slice(first, first + COUNTS[client])


def assert_params(task, params, weights, bias):
    dense = task.unravel(params)["Dense_0"]
    np.testing.assert_allclose(dense["kernel"], weights, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(dense["bias"], bias, rtol=1e-4, atol=1e-5)


def test_one_client_with_one_step_is_plain_sgd(softmax, start):
    data = to_data({"x": FEATURES, "y": LABELS}, [len(LABELS)])
    sim = Simulation(softmax, local_sgd(softmax, 0.5, None), aggregators.mean())
    state, _ = engine.run(sim, KEY, data, 6, params=start)
    dense = softmax.unravel(start)["Dense_0"]
    weights, bias = np.float64(dense["kernel"]), np.float64(dense["bias"])
    for _ in range(6):
        change = reference.softmax_regression_sgd(weights, bias, [(FEATURES, LABELS)], 0.5)
        weights, bias = weights + change[0], bias + change[1]
    assert_params(softmax, state.params, weights, bias)
    assert np.max(np.abs(state.params - start)) > 0.1


@pytest.mark.parametrize("chunk", [None, 3])
@pytest.mark.parametrize("weights", [equal_weights, example_weights])
def test_rounds_of_several_clients(softmax, start, weights, chunk):
    client = local_sgd(softmax, 0.3, None, steps=2, momentum=0.6)
    sim = Simulation(softmax, client, aggregators.mean(), weights=weights, client_chunk=chunk)
    state, _ = engine.run(sim, KEY, SPLIT, 3, params=start)
    shares = np.array(COUNTS) if weights is example_weights else np.array(COUNTS) > 0
    assert_params(softmax, state.params, *expected_rounds(softmax, start, 3, LABELS, shares))


def expected_rounds(softmax, start, rounds, labels, shares):
    """``reference.federated_round``s of two full-batch steps 0.3 with momentum 0.6."""
    dense = softmax.unravel(start)["Dense_0"]
    weights, bias = np.float64(dense["kernel"]), np.float64(dense["bias"])
    batches = [[(FEATURES[rows_of(i)], labels[rows_of(i)])] * 2 for i in range(len(COUNTS))]
    for _ in range(rounds):
        weights, bias, _ = reference.federated_round(
            weights, bias, batches, lambda u: reference.mean(u, shares), 0.3, 0.6
        )
    return weights, bias


def test_label_flip_is_applied_to_the_malicious_clients_alone(softmax, start):
    honest = local_sgd(softmax, 0.3, None, steps=2, momentum=0.6)
    flipping = local_sgd(
        softmax, 0.3, None, steps=2, momentum=0.6, poison=attacks.poisons.label_flip(3)
    )
    sim = Simulation(
        softmax,
        honest,
        aggregators.mean(),
        attack=attacks.data_poisoning(flipping),
        num_malicious=1,
        weights=example_weights,
    )
    state, _ = engine.run(sim, KEY, SPLIT, 2, params=start)
    labels = LABELS.copy()
    labels[rows_of(0)] = reference.label_flip(LABELS[rows_of(0)], 3)
    assert not np.array_equal(labels, LABELS)
    assert_params(softmax, state.params, *expected_rounds(softmax, start, 2, labels, COUNTS))


def test_an_empty_client_is_absent():
    examples = {"x": RNG.normal(size=(10, 3))}
    results = [
        engine.run(
            Simulation(SQUARES, local_sgd(SQUARES, 0.4, None), aggregators.median()),
            KEY,
            to_data(examples, counts),
            2,
            params=jnp.ones(3),
        )[0].params
        for counts in ([5, 2, 3], [5, 0, 2, 3], [5, 2, 3, 0, 0])
    ]
    np.testing.assert_allclose(results[1], results[0], **CLOSE)
    np.testing.assert_allclose(results[2], results[0], **CLOSE)


# --- Participation -------------------------------------------------------------------------------


@pytest.fixture(scope="module", params=[None, 2], ids=["at once", "chunks"])
def partial(request):
    """400 rounds of 3 of 8 clients, of which 2 are malicious and send minus their row."""
    sim = simulation(
        attack=attacks.data_poisoning(telling(-1.0)),
        num_malicious=2,
        clients_per_round=3,
        client_chunk=request.param,
    )
    data = telling_data(8)
    state, history = engine.run(sim, KEY, data, 400)
    return data, state, {name: np.asarray(values) for name, values in history.items()}


def test_each_round_draws_distinct_clients_by_chance(partial):
    _, _, history = partial
    ids = history["ids"]
    assert ids.shape == (400, 3)
    assert np.all(np.diff(ids, axis=1) > 0) and ids.min() >= 0 and ids.max() < 8
    assert len({tuple(row) for row in ids}) == 56, "not every subset of 3 of 8 was drawn"
    frequency = np.bincount(ids.ravel(), minlength=8) / 400
    deviation = np.sqrt(3 / 8 * 5 / 8 / 400)
    assert np.all(np.abs(frequency - 3 / 8) < 5 * deviation)
    # Hypergeometric: mean 3 * 2 / 8, variance 3 * 2/8 * 6/8 * 5/7.
    number = history["malicious"].sum(axis=1)
    assert abs(number.mean() - 0.75) < 5 * np.sqrt(3 * 2 / 8 * 6 / 8 * 5 / 7 / 400)
    assert set(number) == {0, 1, 2}


def test_malicious_rows_come_first_and_train_with_the_attacks_client(partial):
    data, _, history = partial
    np.testing.assert_array_equal(history["malicious"], history["ids"] < 2)
    assert np.all(np.diff(history["malicious"].astype(int), axis=1) <= 0)
    sign = np.where(history["ids"] < 2, -1, 1)[..., None]
    sent = sign * np.asarray(data.examples["x"])[history["ids"]]
    np.testing.assert_array_equal(history["updates"], sent)
    np.testing.assert_array_equal(history["weights"], 1)


def test_only_participants_states_are_renewed(partial):
    _, state, history = partial
    honest, malicious = state.clients
    rounds = np.bincount(history["ids"].ravel(), minlength=8)
    np.testing.assert_array_equal(honest[2:], rounds[2:])
    np.testing.assert_array_equal(malicious, rounds[:2])


@pytest.mark.parametrize("chunk", [None, 2])
def test_full_participation_trains_the_malicious_clients_with_the_attacks_client(chunk):
    data = telling_data(5)
    sim = simulation(
        attack=attacks.data_poisoning(telling(-1.0)), num_malicious=2, client_chunk=chunk
    )
    state, history = play(sim, data, 3)
    sign = np.array([-1, -1, 1, 1, 1])[:, None]
    np.testing.assert_array_equal(history["updates"], [sign * data.examples["x"]] * 3)
    np.testing.assert_array_equal(history["malicious"], [[True, True, False, False, False]] * 3)
    honest, malicious = state.clients
    np.testing.assert_array_equal(honest[2:], 3)
    np.testing.assert_array_equal(malicious, 3)


def test_kept_momentum_belongs_to_the_client():
    x = RNG.normal(size=(10, 3))
    counts = [2, 1, 3, 4]
    client = local_sgd(SQUARES, 0.3, None, momentum=0.5, keep_momentum=True)
    sim = Simulation(SQUARES, client, showing(), clients_per_round=2)
    state, history = play(sim, to_data({"x": x}, counts), 8, params=jnp.ones(3))
    params, velocity = np.ones(3), np.zeros((4, 3))
    means = [part.mean(axis=0) for part in np.split(x, np.cumsum(counts)[:-1])]
    for ids in np.asarray(history["ids"]):
        for i in ids:
            velocity[i] = 0.5 * velocity[i] + params - means[i]
        params = params - 0.3 * velocity[ids].mean(axis=0)
    np.testing.assert_allclose(state.params, params, **CLOSE)
    np.testing.assert_allclose(state.clients[0], velocity, **CLOSE)


def test_a_clients_draws_depend_on_its_id_and_the_round_alone():
    """Not on its row, and not on who else takes part."""
    drawing = Client(
        lambda params: (), lambda key, params, state, data: (jax.random.normal(key, (3,)), (), {})
    )
    data = telling_data(7)
    _, full = play(simulation(client=drawing), data, 4)
    assert len(np.unique(full["updates"])) == 4 * 7 * 3
    for changes in ({"clients_per_round": 3}, {"num_malicious": 2}):
        attack = attacks.data_poisoning(drawing)
        _, other = play(simulation(client=drawing, attack=attack, **changes), data, 4)
        expected = np.take_along_axis(full["updates"], other["ids"][..., None], axis=1)
        np.testing.assert_array_equal(other["updates"], expected)


# --- However it is run, the result is the same ---------------------------------------------------

POINTS = RNG.normal(size=(23, 3)).astype(np.float32)
PARTS = [partition.iid(jax.random.key(s), {"x": POINTS}, 6, capacity=5) for s in range(3)]
DATA = PARTS[0]
ROUNDS, EVERY = 6, 3


def busy(learning_rate=0.3, chunk=None):
    """Something random in every place: batches, participants, crafted updates; and state in each."""
    client = local_sgd(SQUARES, learning_rate, 2, epochs=1, momentum=0.5, keep_momentum=True)
    return Simulation(
        SQUARES,
        client,
        aggregators.trimmed_mean(1),
        attack=attacks.gaussian(),
        knowledge=Knowledge(others=True),
        num_malicious=2,
        clients_per_round=5,
        server_optimizer=optax.adam(0.1),
        client_chunk=chunk,
    )


def norm(params):
    return {"norm": jnp.linalg.norm(params)}


def run(sim, key=KEY, data=DATA, **options):
    return engine.run(sim, key, data, ROUNDS, evaluate=norm, evaluate_every=EVERY, **options)


def plain(tree):
    """Typed keys as integers, so that NumPy can compare them."""
    return jax.tree.map(
        lambda x: jax.random.key_data(x) if jnp.issubdtype(x.dtype, jax.dtypes.prng_key) else x,
        tree,
    )


def assert_same(actual, expected, **tolerance):
    jax.tree.map(
        lambda a, e: np.testing.assert_allclose(a, e, **(tolerance or CLOSE)),
        plain(actual),
        plain(expected),
    )


def seed(result, i):
    """Run i of several."""
    state, history = result
    state = state._replace(round=jnp.broadcast_to(state.round, jax.tree.leaves(state)[0].shape[:1]))
    history = {n: v if n == "round" and v.ndim == 1 else v[i] for n, v in history.items()}
    return jax.tree.map(lambda x: x[i], state), history


@pytest.fixture(scope="module")
def sim():
    return busy()


@pytest.fixture(scope="module")
def keys():
    return jax.random.split(jax.random.key(8), 3)


@pytest.fixture(scope="module")
def base(sim):
    return run(sim)


@pytest.fixture(scope="module")
def singles(sim, keys):
    return [run(sim, key) for key in keys]


@pytest.mark.parametrize("chunk", [1, 4])
def test_any_client_chunk(base, chunk):
    assert_same(run(busy(chunk=chunk)), base)


def test_seeds_differ(base, singles):
    finals = {np.asarray(state.params).tobytes() for state, _ in [base, *singles]}
    assert len(finals) == 4


def test_seeds_by_vmap_under_jit(sim, keys, singles):
    together = jax.jit(jax.vmap(lambda key: run(sim, key)))(keys)
    for i, single in enumerate(singles):
        assert_same(seed(together, i), single)


def test_seeds_as_a_vector_of_keys(sim, keys, singles):
    together = run(sim, keys)
    assert together[0].round.shape == ()
    assert together[1]["train_loss"].shape == (3, ROUNDS)
    assert together[1]["malicious"].shape == (3, ROUNDS, 5)
    assert together[1]["norm"].shape == (3, 2)
    np.testing.assert_array_equal(together[1]["round"], [3, 6])
    for i, single in enumerate(singles):
        assert_same(seed(together, i), single)


def test_seeds_with_a_partition_each(sim, keys):
    together = run(sim, keys, partition.stack(PARTS), progress=True)
    for i, (key, part) in enumerate(zip(keys, PARTS, strict=True)):
        assert_same(seed(together, i), run(sim, key, part))
    assert not np.array_equal(together[0].params[0], run(sim, keys[0], PARTS[1])[0].params)


def test_in_blocks(sim, base, tmp_path, capsys):
    assert_same(run(sim, progress=True), base)
    assert f"{ROUNDS}/{ROUNDS}" in capsys.readouterr().err
    for every in (1, 4):
        assert_same(run(sim, checkpoint=tmp_path / f"{every}", checkpoint_every=every), base)
    capsys.readouterr()
    run(sim)
    assert capsys.readouterr() == ("", "")


def test_round_by_round(sim, base):
    state = engine.init(sim, KEY, DATA)
    step = jax.jit(lambda state: engine.step(sim, state, DATA))
    losses = []
    for i in range(ROUNDS):
        assert int(state.round) == i
        state, info = step(state)
        losses.append(info["train_loss"])
    assert_same(state, base[0])
    np.testing.assert_allclose(losses, base[1]["train_loss"], **CLOSE)


def test_old_style_keys(sim, base):
    assert_same(run(sim, jax.random.PRNGKey(2)), base)


@pytest.mark.filterwarnings("ignore:Some donated buffers were not usable")
def test_vmap_over_a_learning_rate(base):
    together = jax.vmap(lambda rate: run(busy(rate)))(jnp.array([0.05, 0.3]))
    assert_same(jax.tree.map(lambda x: x[0], together), run(busy(0.05)))
    assert_same(jax.tree.map(lambda x: x[1], together), base)
    assert not np.allclose(together[0].params[0], together[0].params[1])


def test_vmap_over_an_attacks_epsilon():
    def attacked(epsilon):
        sim = Simulation(
            SQUARES,
            local_sgd(SQUARES, 0.3, None),
            aggregators.mean(),
            attack=attacks.fang_krum_full(epsilon=epsilon),
            knowledge=Knowledge(others=True),
            num_malicious=2,
        )
        return run(sim)

    together = jax.jit(jax.vmap(attacked))(jnp.array([0.01, 0.5]))
    assert_same(jax.tree.map(lambda x: x[1], together), attacked(0.5))
    assert not np.allclose(together[0].params[0], together[0].params[1])


def test_no_recompilation():
    traces = []

    def counted(params, batch):
        traces.append(params)
        return squares(params, batch)

    task = SQUARES._replace(loss=counted)
    sim = Simulation(task, local_sgd(task, 0.1, 2), aggregators.mean())
    run(sim)
    first, programs = len(traces), driver._block_jit._cache_size()
    assert first > 0
    for key, data in ((KEY, DATA), (jax.random.key(5), DATA), (KEY, PARTS[1])):
        run(sim, key, data)
    run(sim._replace(num_malicious=0), KEY)  # equal settings
    assert len(traces) == first
    assert driver._block_jit._cache_size() == programs
    run(sim._replace(num_malicious=1), KEY)  # the counters do count
    assert len(traces) > first
    assert driver._block_jit._cache_size() > programs


# --- What the attacker knows ---------------------------------------------------------------------


def spying(n, num_malicious, **changes):
    """One round: final state, history and what the attacker saw."""
    seen = {}

    def craft(view, state):
        assert (view.aggregate is not None) == changes["knowledge"].rule
        seen.update(number=view.num_malicious)
        return view.updates, {
            "updates": view.updates,
            "visible": view.visible,
            "reference": view.reference,
            "malicious": view.malicious,
            "params": view.params,
        }

    flags = jnp.zeros(n, bool)
    attack = Attack(
        init=lambda params: {
            "updates": jnp.zeros((n, 3)),
            "visible": flags,
            "reference": flags,
            "malicious": flags,
            "params": params,
        },
        craft=craft,
    )
    sim = simulation(attack=attack, num_malicious=num_malicious, **changes)
    data = telling_data(6, [1, 0, 1, 1, 0, 1])
    state, history = play(sim, data, key=jax.random.key(6), params=jnp.arange(3.0))
    return state, {name: np.asarray(v[0]) for name, v in history.items()}, state.attack | seen


@pytest.mark.parametrize("clients_per_round", [None, 4])
@pytest.mark.parametrize("others", [False, True])
def test_the_attacker_sees_what_it_may_see(others, clients_per_round):
    n = clients_per_round or 6
    state, history, view = spying(
        n, 3, knowledge=Knowledge(others=others), clients_per_round=clients_per_round
    )
    present = history["weights"] > 0
    malicious = (history["ids"] < 3) & present
    assert malicious.any() and (~malicious & present).any() and not present.all()
    np.testing.assert_array_equal(history["malicious"], malicious)
    np.testing.assert_array_equal(view["malicious"], malicious)
    visible = present if others else malicious
    np.testing.assert_array_equal(view["visible"], visible)
    np.testing.assert_array_equal(view["reference"], present & ~malicious if others else malicious)
    np.testing.assert_array_equal(
        view["updates"], np.where(visible[:, None], history["updates"], 0)
    )
    assert view["number"] == 3
    np.testing.assert_array_equal(view["params"], [0, 1, 2])  # as received, not as it became
    assert not np.array_equal(state.params, [0, 1, 2])


@pytest.mark.parametrize("clients_per_round", [None, 4])
def test_the_number_of_malicious_rows_is_at_most_the_rows(clients_per_round):
    n = clients_per_round or 6
    _, history, view = spying(
        n, 5, knowledge=Knowledge(rule=True), clients_per_round=clients_per_round
    )
    assert view["number"] == min(5, n)
    np.testing.assert_array_equal(
        view["malicious"], (history["ids"] < 5) & (history["weights"] > 0)
    )


PARTIAL = {"trim": attacks.fang_trim_partial, "krum": attacks.fang_krum_partial}


@pytest.mark.parametrize("name", [*PARTIAL, "gaussian with full knowledge"])
def test_honest_data_do_not_change_what_a_partial_attack_sends(name):
    full = name not in PARTIAL
    sim = simulation(
        client=local_sgd(SQUARES, 0.5, None),
        attack=attacks.gaussian() if full else PARTIAL[name](),
        knowledge=Knowledge(others=full),
        num_malicious=3,
    )
    x = RNG.normal(size=(14, 3))
    other = np.concatenate([x[:6], 3 * x[6:] + 5])
    state = engine.init(sim, KEY, to_data({"x": x}, [2] * 7), jnp.zeros(3))
    step = jax.jit(lambda data: engine.step(sim, state, data)[1]["updates"])
    first, second = (np.asarray(step(to_data({"x": v}, [2] * 7))) for v in (x, other))
    assert not np.any(first[3:] == second[3:])
    assert np.array_equal(first[:3], second[:3]) == (not full)
    before = 0.5 * x[:6].reshape(3, 2, 3).mean(axis=1)
    assert not np.any(np.isclose(first[:3], before)), "nothing was crafted"


def test_the_attackers_rule_is_the_servers():
    """Also for a rule with state and randomness, of which it knows the very draw if it may."""

    def aggregate(received, state):
        noise = jax.random.normal(received.key, received.params.shape)
        result = received.weights @ received.updates + state + 0.1 * received.params + noise
        return result, result, {"aggregate": result}

    def craft(view, state):
        crafted = 7.0 * view.updates[: view.num_malicious]
        return crafted, view.aggregate(view.updates.at[: view.num_malicious].set(crafted))

    attack = Attack(lambda params: params, craft, needs=Knowledge(others=True, rule=True))
    sim = simulation(
        aggregator=Aggregator(lambda number, params: jnp.zeros(3), aggregate),
        attack=attack,
        knowledge=Knowledge(others=True, rule=True, coins=True),
        num_malicious=2,
        clients_per_round=5,
    )
    data = telling_data(6, [1, 1, 0, 1, 1, 1])
    step = jax.jit(lambda state: engine.step(sim, state, data))
    state = engine.init(sim, KEY, data)
    for _ in range(3):
        state, info = step(state)
        np.testing.assert_allclose(state.attack, info["aggregate"], **CLOSE)


@pytest.mark.parametrize(
    ("attack", "granted", "missing"),
    [
        (attacks.gaussian(), Knowledge(), "others"),
        (attacks.gaussian(), Knowledge(rule=True), "others"),
        (attacks.fang_krum_full(), Knowledge(), "others"),
        (attacks.fang_trim_full(), Knowledge(others=True), "rule"),
        (attacks.fang_trim_full(), Knowledge(rule=True), "others"),
        (attacks.fang_trim_deviation(), Knowledge(others=True), "rule"),
        (attacks.fang_trim_full(before=aggregators.mean()), Knowledge(), "others"),
    ],
)
def test_an_attack_that_needs_more_is_refused(attack, granted, missing):
    sim = simulation(attack=attack, knowledge=granted, num_malicious=1)
    message = rf"needs Knowledge\({missing}=True\).*pass Simulation\(knowledge=Knowledge\({missing}"
    with pytest.raises(ValueError, match=message):
        engine.run(sim, KEY, telling_data(4), 1)
    with pytest.raises(ValueError, match=message):
        engine.init(sim, KEY, telling_data(4))


def test_without_malicious_clients_an_attack_does_nothing():
    honest_sim = simulation(client=local_sgd(SQUARES, 0.3, None), knowledge=Knowledge(others=True))
    honest = play(honest_sim, DATA, 2)
    poisoned = local_sgd(SQUARES, 9.0, None, momentum=0.5, keep_momentum=True)
    for attack in (attacks.gaussian(), attacks.data_poisoning(poisoned)):
        state, history = play(honest_sim._replace(attack=attack), DATA, 2)
        state = state._replace(clients=honest[0].clients)  # no clients: () or (0, d)
        assert_same((state, history), honest, rtol=0, atol=0)
    assert not honest[1]["malicious"].any()


@pytest.mark.parametrize("rows", ["all", "malicious"])
def test_only_malicious_rows_can_be_changed(rows):
    """Whatever craft returns; client 1 owns nothing, so it is absent and not malicious."""

    def craft(view, state):
        n = view.num_malicious if rows == "malicious" else view.updates.shape[0]
        return jnp.full((n, 3), 7.0), state

    data = telling_data(6, [1, 0, 1, 1, 1, 1])
    sim = simulation(attack=Attack(craft=craft), num_malicious=3, clients_per_round=4)
    _, history = play(sim, data, 30)
    ids = np.asarray(history["ids"])
    malicious = (ids == 0) | (ids == 2)
    np.testing.assert_array_equal(history["malicious"], malicious)
    assert {0, 1, 2} <= set(malicious.sum(axis=1))
    expected = np.where(malicious[..., None], 7.0, np.asarray(data.examples["x"])[ids])
    np.testing.assert_array_equal(history["updates"], expected)


def test_an_attacks_state_and_key_go_from_round_to_round():
    def craft(view, state):
        return jnp.stack([state, jax.random.normal(view.key, (3,))]), state + 1

    sim = simulation(attack=Attack(lambda params: params, craft), num_malicious=2)
    state, history = play(sim, telling_data(4), 3, params=jnp.zeros(3))
    np.testing.assert_array_equal(state.attack, 3)
    np.testing.assert_array_equal(history["updates"][:, 0], [[0] * 3, [1] * 3, [2] * 3])
    assert len(np.unique(history["updates"][:, 1])) == 9


# --- The server ----------------------------------------------------------------------------------


def test_sgd_with_rate_one_adds_the_aggregate():
    data = telling_data(4, [3, 1, 0, 1])
    sim = simulation(weights=example_weights)
    state, _ = play(sim, data, 3, params=jnp.ones(3))
    mean = reference.mean(data.examples["x"], np.array([3, 1, 0, 1]))
    np.testing.assert_allclose(state.params, 1 + 3 * mean, **CLOSE)


def hand_sgd(params, gradients):
    for gradient in gradients:
        params = params - 0.5 * gradient
    return params


def hand_momentum(params, gradients):
    velocity = 0
    for gradient in gradients:
        velocity = 0.9 * velocity + gradient
        params = params - 0.5 * velocity
    return params


def hand_adam(params, gradients):
    first = second = 0
    for t, gradient in enumerate(gradients, 1):
        first = 0.9 * first + 0.1 * gradient
        second = 0.999 * second + 0.001 * gradient**2
        params = params - 0.5 * (first / (1 - 0.9**t)) / (np.sqrt(second / (1 - 0.999**t)) + 1e-8)
    return params


@pytest.mark.parametrize(
    ("optimizer", "by_hand"),
    [
        (optax.sgd(0.5), hand_sgd),
        (optax.sgd(0.5, momentum=0.9), hand_momentum),
        (optax.adam(0.5), hand_adam),
    ],
    ids=["sgd", "momentum", "adam"],
)
def test_server_optimizers(optimizer, by_hand):
    """Minus the aggregate is the gradient; here it changes from round to round."""

    def aggregate(received, state):
        return (state + 1) * jnp.mean(received.updates, axis=0), state + 1, {}

    rule = Aggregator(lambda number, params: jnp.float32(0), aggregate)
    data = telling_data(4)
    sim = simulation(aggregator=rule, server_optimizer=optimizer)
    state, _ = play(sim, data, 4, params=jnp.ones(3))
    mean = np.asarray(data.examples["x"], np.float64).mean(axis=0)
    expected = by_hand(np.ones(3), [-(t + 1) * mean for t in range(4)])
    np.testing.assert_allclose(state.params, expected, rtol=1e-4, atol=1e-5)


def test_repairs_are_applied_after_every_round():
    data = telling_data(4)
    sim = simulation(after_round=lambda key, params: jnp.clip(params, -0.1, 0.1) + 1)
    _, history = play(sim, data, 3, params=jnp.zeros(3))
    mean = np.asarray(data.examples["x"]).mean(axis=0)
    params, received = np.zeros(3), []
    for _ in range(3):
        received.append(params)
        params = np.clip(params + mean, -0.1, 0.1) + 1
    np.testing.assert_allclose(history["params"], received, **CLOSE)
    noisy = simulation(after_round=lambda key, params: jax.random.normal(key, (3,)))
    _, history = play(noisy, data, 4)
    assert len(np.unique(history["params"][1:])) == 9


def test_rules_index_their_history_by_ids():
    def aggregate(received, state):
        return jnp.zeros(3), state.at[received.ids].add(received.updates), {"ids": received.ids}

    rule = Aggregator(lambda number, params: jnp.zeros((number, *params.shape)), aggregate)
    data = telling_data(7)
    state, history = play(simulation(aggregator=rule, clients_per_round=3), data, 9)
    times = np.bincount(np.asarray(history["ids"]).ravel(), minlength=7)
    assert len(set(times)) > 1
    expected = times[:, None] * np.asarray(data.examples["x"])
    np.testing.assert_allclose(state.aggregator, expected, **CLOSE)


# --- History -------------------------------------------------------------------------------------


ONES = telling_data(4)._replace(examples={"x": jnp.ones((4, 3)), "loss": jnp.zeros(4)})
TELLING = simulation()


def first_and_all(params):
    return {"first": params[0], "vector": params}


@pytest.mark.parametrize(
    ("rounds", "every", "expected", "progress"),
    [
        (7, 3, [3, 6, 7], False),
        (7, 3, [3, 6, 7], True),
        (6, 3, [3, 6], False),
        (3, 1, [1, 2, 3], False),
        (2, 5, [2], False),
        (4, None, [4], False),
    ],
)
def test_evaluations(rounds, every, expected, progress):
    """The mean update is one in every round, so the model tells the round."""
    state, history = engine.run(
        TELLING,
        KEY,
        ONES,
        rounds,
        evaluate=first_and_all,
        evaluate_every=every,
        params=jnp.zeros(3),
        progress=progress,
    )
    assert int(state.round) == rounds
    np.testing.assert_array_equal(history["round"], expected)
    np.testing.assert_allclose(history["first"], expected, rtol=1e-6)
    np.testing.assert_allclose(history["vector"], np.tile(expected, (3, 1)).T, rtol=1e-6)
    np.testing.assert_allclose(history["params"][:, 0], range(rounds), rtol=1e-6)
    assert history["train_loss"].shape == (rounds,)
    assert history["malicious"].shape == (rounds, 4)


def test_train_loss_is_the_mean_over_present_clients():
    data = telling_data(4, [3, 0, 1, 0])
    for weights, shares in ((equal_weights, [1, 0, 1, 0]), (example_weights, [3, 0, 1, 0])):
        _, history = play(simulation(weights=weights), data, 2)
        expected = np.average([0, 0.1, 0.2, 0.3], weights=shares)
        np.testing.assert_allclose(history["train_loss"], expected, rtol=1e-6)
    silent = Client(lambda params: (), lambda key, params, state, data: (params, state, {}))
    _, history = play(simulation(client=silent), data, 2)
    assert np.isnan(history["train_loss"]).all()


def test_what_is_passed_in_stays_usable():
    params, data = jnp.ones(3), telling_data(4)
    rule = Aggregator(lambda number, params: params, lambda r, s: (jnp.mean(r.updates, 0), s, {}))
    engine.run(simulation(aggregator=rule), KEY, data, 2, params=params)
    np.testing.assert_array_equal(params, 1)
    assert not any(leaf.is_deleted() for leaf in jax.tree.leaves((params, data, KEY)))


def test_keys_and_partitions_must_fit(keys):
    sim, stacked = simulation(), partition.stack(PARTS)
    for key, data in (
        (keys[:2, None], DATA),
        (KEY, stacked),
        (keys, DATA._replace(index=DATA.index[0])),
        (keys, DATA._replace(count=stacked.count)),
        (keys, stacked._replace(index=stacked.index[None], count=stacked.count[None])),
    ):
        with pytest.raises(ValueError, match=r"one key or a vector|data.index \(N, m\)"):
            engine.run(sim, key, data, 1)
    with pytest.raises(ValueError, match="got 2 keys and 3 partitions"):
        engine.run(sim, keys[:2], stacked, 1)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_malicious": -1}, r"num_malicious >= 0, got num_malicious=-1"),
        ({"num_malicious": 5}, "got 5 of N=4"),
        ({"clients_per_round": 0}, "clients_per_round must lie in 1 .. N=4, got 0"),
        ({"clients_per_round": 5}, "got 5; None means all"),
        ({"client_chunk": 0}, "client_chunk must be >= 1, got 0"),
    ],
)
def test_simulations_that_contradict_the_data(changes, message):
    for call in (engine.init, lambda *args: engine.run(*args, 1)):
        with pytest.raises(ValueError, match=message):
            call(simulation(**changes), KEY, telling_data(4))
    with pytest.raises(ValueError, match=message):
        engine.check(simulation(**changes), telling_data(4))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rounds": 0}, "rounds >= 1, got rounds=0"),
        ({"evaluate_every": 0}, "evaluate_every >= 1, got evaluate_every=0"),
        ({"checkpoint_every": 2}, "checkpoint_every needs checkpoint="),
        (
            {"checkpoint_every": 0, "checkpoint": "x"},
            "checkpoint_every >= 1, got checkpoint_every=0",
        ),
        ({"evaluate": lambda p: {"train_loss": p[0]}}, r"names \['train_loss'\]; rename"),
        ({"evaluate": lambda p: {"round": p[0]}}, r"names \['round'\]; rename"),
        ({"evaluate": lambda p: {"ids": p[0]}}, r"names \['ids'\]; rename"),
    ],
)
def test_bad_arguments_of_run(options, message):
    with pytest.raises(ValueError, match=message):
        engine.run(simulation(), KEY, telling_data(4), **({"rounds": 2} | options))


@pytest.mark.parametrize("options", [{"progress": True}, {"checkpoint": "x"}])
def test_no_progress_or_checkpoints_inside_vmap_and_jit(options, keys):
    data, sim = telling_data(4), simulation()

    def start_from(scale):
        return engine.run(sim, KEY, data, 2, params=scale * jnp.ones(3), **options)

    for transform in (jax.vmap, jax.jit):
        for call, argument in (
            (lambda key: engine.run(sim, key, data, 2, **options), keys),
            (start_from, jnp.ones(2)),
        ):
            with pytest.raises(ValueError, match="inside vmap or jit; for several seeds pass"):
                transform(call)(argument if transform is jax.vmap else argument[0])


def test_rows_that_the_server_drops_are_hidden_from_the_attacker():
    data = telling_data(4)
    x = data.examples["x"].at[2, 1].set(jnp.nan)
    data = data._replace(examples={**data.examples, "x": x})

    def craft(view, state):
        honest = jnp.sum(jnp.where(view.reference[:, None], view.updates, 0), axis=0)
        return honest[None], state

    sim = Simulation(
        SQUARES,
        telling(),
        showing(),
        attack=Attack(craft=craft, needs=Knowledge(others=True)),
        knowledge=Knowledge(others=True),
        num_malicious=1,
    )
    _, history = engine.run(sim, KEY, data, 1)
    np.testing.assert_allclose(history["updates"][0, 0], x[1] + x[3], **CLOSE)


# --- Observing -----------------------------------------------------------------------------------


def observed(**changes):
    settings = {
        "client": local_sgd(SQUARES, 0.3, 1),
        "attack": attacks.gaussian(),
        "knowledge": Knowledge(others=True),
        "num_malicious": 2,
        "clients_per_round": 4,
    }
    return engine.run(simulation(**(settings | changes)), KEY, DATA, 3)


def test_observing_changes_nothing_and_sees_the_updates_before_the_attack():
    def observe(received, malicious):
        return {"before": received.updates, "who": received.ids, "bad": malicious}

    plain_state, plain = observed()
    state, history = observed(observe=observe)
    assert np.array_equal(state.params, plain_state.params)
    for name in plain:
        np.testing.assert_array_equal(history[name], plain[name])
    assert {*history} - {*plain} == {"before", "who", "bad"}
    bad = np.asarray(history["bad"])
    assert 0 < bad.sum() < bad.size
    np.testing.assert_array_equal(bad, history["malicious"])
    np.testing.assert_array_equal(history["who"], history["ids"])
    changed = np.any(history["before"] != history["updates"], axis=-1)
    np.testing.assert_array_equal(
        changed, bad
    )  # what the server received differs in bad rows alone
    _, honest = observed(observe=observe, attack=attacks.no_attack())
    np.testing.assert_array_equal(history["before"][0], honest["updates"][0])


@pytest.mark.parametrize("name", ["train_loss", "malicious", "round", "updates"])
def test_what_is_observed_needs_a_name_of_its_own(name):
    with pytest.raises(ValueError, match=f"observe may not report.*{name}.*rename"):
        observed(observe=lambda received, malicious: {name: malicious})
