"""Model replacement, constrain-and-scale, attacks by round and by client: against the definitions."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import reference as ref

import fedjax_robust as fr
from fedjax_robust import aggregators, attacks, metrics, models
from fedjax_robust.clients.local import local_sgd
from fedjax_robust.data import from_owner, iid
from fedjax_robust.engine.round import init, step
from fedjax_robust.types import AttackerView, Client, ClientData, Simulation, Task

# --- The server of eq. 1 -----------------------------------------------------------------------------


def test_fedavg_eta_by_hand():
    x = np.array([[1.0, 2.0], [3.0, 4.0], [8.0, 8.0]])
    # 0.5 / 10 of the sum; an absent row is not in the sum, and does not change n.
    np.testing.assert_allclose(aggregators.fedavg_eta(0.5, 10)(x), [0.6, 0.7], rtol=1e-6)
    weights = np.array([1.0, 0.0, 5.0])
    np.testing.assert_allclose(aggregators.fedavg_eta(0.5, 10)(x, weights), [0.45, 0.5], rtol=1e-6)
    # eta = n / m: the average of the local models.
    np.testing.assert_allclose(aggregators.fedavg_eta(10 / 3, 10)(x), x.mean(axis=0), rtol=1e-6)


def test_fedavg_eta_refuses():
    for eta, n in ((0, 10), (-1.0, 10), (1.0, 0)):
        with pytest.raises(ValueError, match="fedavg_eta needs"):
            aggregators.fedavg_eta(eta, n)
    with pytest.raises(ValueError, match="there are 3, but num_clients=2"):
        aggregators.fedavg_eta(1.0, 2)(np.ones((3, 2)))


def nothing() -> Client:
    """Honest clients that have converged."""
    return Client(lambda p: (), lambda key, g, state, data: (jnp.zeros_like(g), state, {}))


X = jnp.array([0.5, -2.0, 3.25])  # the attacker's model
OWN = ClientData({}, jnp.zeros(0, jnp.int32), jnp.int32(0))
TO_X = Client(lambda p: (), lambda key, g, state, data: (X - g, state, {}))
POINT = Task(lambda key: jax.random.normal(key, (3,)), None, None, lambda p: p)
TWENTY = from_owner({"x": np.zeros((20, 1)), "y": np.zeros(20, int)}, np.arange(20), 20)


@pytest.mark.parametrize(
    ("rule", "server", "gamma", "attackers", "divide"),
    [
        # Bagdasaryan et al.: n = 20 clients, 5 in a round, gamma = n / eta.
        (aggregators.fedavg_eta(1.0, 20), 1.0, 20.0, 1, attacks.divisions.equal_parts),
        (aggregators.fedavg_eta(0.25, 20), 1.0, 80.0, 3, attacks.divisions.equal_parts),
        (
            aggregators.fedavg_eta(4.0, 20),
            1.0,
            5.0,
            3,
            attacks.divisions.orthogonal_parts,
        ),  # eta = n / m
        # DBA: eta / m; gamma = m / eta.
        (aggregators.mean(), 0.1, 50.0, 1, attacks.divisions.orthogonal_parts),
    ],
)
def test_replacement_gives_the_attackers_model(rule, server, gamma, attackers, divide):
    """Exactly, if the others' updates cancel; and a smaller gamma a part of the way to it (eq. 2, 3)."""

    @jax.jit
    def after(gamma):
        sim = Simulation(
            POINT,
            nothing(),
            rule,
            attacks.model_replacement(TO_X, OWN, divide(gamma)),
            num_malicious=attackers,
            participants=fr.attackers_selected(20, 5, jnp.ones((1, attackers), bool)),
            server_optimizer=optax.sgd(server),
        )
        state = init(sim, jax.random.key(0), TWENTY)
        return state.params, step(sim, state, TWENTY)[0].params

    before, full = after(gamma)
    np.testing.assert_allclose(full, X, rtol=1e-5, atol=1e-6)
    _, part = after(0.3 * gamma)
    np.testing.assert_allclose(part, before + 0.3 * (X - before), rtol=1e-5, atol=1e-5)


def test_scaling_lets_every_attacker_train_by_itself():
    """The client of ``scaling`` and ``train_and_scale`` is the malicious clients'."""
    update = np.asarray(X - 1.0)
    for attack, sent in (
        (attacks.scaling(7.0, TO_X), 7.0 * update),
        (attacks.train_and_scale(2.0, TO_X), 2.0 * update / np.linalg.norm(update)),
    ):
        sim = Simulation(POINT, nothing(), aggregators.mean(), attack, num_malicious=2)
        state = init(sim, jax.random.key(0), TWENTY, params=jnp.ones(3))
        after, _ = step(sim, state, TWENTY)
        np.testing.assert_allclose(after.params - 1, sent * 2 / 20, rtol=1e-5)


def test_orthogonal_parts_evade_similarity_and_equal_parts_do_not():
    key, difference = jax.random.key(1), jax.random.normal(jax.random.key(2), (1000,))
    there = jnp.array([True, False, True, True])
    for divide, most in (
        (attacks.divisions.orthogonal_parts(12.0), 0.0),
        (attacks.divisions.equal_parts(12.0), 1.0),
    ):
        rows = divide(key, difference, there)
        np.testing.assert_allclose(rows.sum(axis=0), 12 * difference, rtol=1e-5)
        assert not rows[1].any()
        units = np.asarray(rows)[np.asarray(there)]
        units /= np.linalg.norm(units, axis=1, keepdims=True)
        assert (units @ units.T)[0, 1] == pytest.approx(most, abs=1e-6)
        if not most:  # about a third of the squared length each
            assert np.all(np.abs(np.sum(np.square(rows), axis=1)[[0, 2, 3]] / 144000 - 1 / 3) < 0.1)


def test_norm_bounded_by_hand():
    rows = attacks.divisions.norm_bounded(10.0)(
        None, jnp.array([3.0, 0.0, 4.0]), jnp.array([True, True])
    )
    np.testing.assert_allclose(rows, [[6, 0, 8]] * 2, rtol=1e-6)
    rows = attacks.divisions.norm_bounded(10.0)(None, jnp.zeros(3), jnp.array([True]))
    np.testing.assert_array_equal(rows, 0)  # X = G


def test_models_are_trained_only_when_an_attacker_is_there():
    """Its state counts; without attackers everybody sends an honest update."""
    counting = Client(lambda p: jnp.int32(0), lambda key, g, state, data: (X - g, state + 1, {}))
    rounds = jnp.array([[False, False], [True, True], [False, True]])
    sim = Simulation(
        POINT,
        nothing(),
        aggregators.mean(),
        attacks.model_replacement(counting, OWN, attacks.divisions.copies()),
        num_malicious=2,
        participants=fr.attackers_selected(20, 4, rounds),
    )
    state = init(sim, jax.random.key(0), TWENTY)
    made = []
    for _ in range(4):
        state, info = step(sim, state, TWENTY)
        made.append((int(state.attack), int(info["malicious"].sum())))
    assert made == [(0, 0), (1, 2), (2, 1), (2, 0)]


@pytest.mark.parametrize(
    "make",
    [
        attacks.divisions.equal_parts,
        attacks.divisions.norm_bounded,
        attacks.divisions.orthogonal_parts,
        attacks.divisions.copies,
        attacks.train_and_scale,
    ],
)
def test_factors_are_positive(make):
    for bad in (0, -1.0, math.nan):
        with pytest.raises(ValueError, match=r"> 0( and finite)?, got"):
            make(bad)


# --- Anomaly terms -----------------------------------------------------------------------------------

RNG = np.random.default_rng(5)
G, FAR = RNG.normal(size=(2, 7))
TERMS = {
    "p = 1": (attacks.objectives.p_distance(1), lambda x, g: ref.p_distance(x, g, 1)),
    "p = 1.5": (attacks.objectives.p_distance(1.5), lambda x, g: ref.p_distance(x, g, 1.5)),
    "p = 2": (attacks.objectives.p_distance(), lambda x, g: ref.p_distance(x, g, 2)),
    "p = 3": (attacks.objectives.p_distance(3), lambda x, g: ref.p_distance(x, g, 3)),
    "p = inf": (
        attacks.objectives.p_distance(math.inf),
        lambda x, g: ref.p_distance(x, g, math.inf),
    ),
    "cosine": (attacks.objectives.cosine_distance, ref.cosine_distance),
    "own": (
        lambda x, g: attacks.objectives.cosine_distance(g + 9 * (x - g), g),
        lambda x, g: ref.cosine_distance(g + 9 * (x - g), g),
    ),
}


@pytest.mark.parametrize("name", TERMS)
def test_anomaly_terms_and_their_slopes(name):
    """Values against the definition, gradients against its differences; in float64."""
    anomaly, definition = TERMS[name]
    with jax.enable_x64(True):
        value, slope = jax.value_and_grad(anomaly)(jnp.asarray(FAR), jnp.asarray(G))
        assert float(value) == pytest.approx(definition(FAR, G), rel=1e-12)
        for j in range(len(G)):
            h = 1e-6 * np.eye(len(G))[j]
            difference = (definition(FAR + h, G) - definition(FAR - h, G)) / 2e-6
            assert float(slope[j]) == pytest.approx(difference, rel=1e-6, abs=1e-8)


@pytest.mark.parametrize("name", TERMS)
def test_anomaly_terms_are_safe(name):
    """At X = G, where training starts, and at sizes whose squares do not fit into float32."""
    anomaly, definition = TERMS[name]
    received = np.zeros(7, np.float32) if name.startswith("p") else G.astype(np.float32)
    sizes = np.array([0.0, 1e-25, 1e-6, 1.0, 1e25], np.float32)
    xs = received + sizes[:, None] * FAR.astype(np.float32)
    at = jax.jit(jax.vmap(jax.value_and_grad(anomaly), (0, None)))
    for size, x, value, slope in zip(sizes, xs, *map(np.asarray, at(xs, received)), strict=True):
        assert np.isfinite(value) and np.all(np.isfinite(slope))
        if size == 0:
            assert value == pytest.approx(0, abs=1e-6)
            if name.startswith("p"):
                np.testing.assert_array_equal(slope, 0)
        elif size < 1e24:
            expected = definition(x.astype(float), received.astype(float))
            assert value == pytest.approx(expected, rel=1e-5, abs=1e-6 if size < 1 else 0)
        if name.startswith("p") and size:  # the dual norm of a norm's gradient is 1
            p = float(name.removeprefix("p = "))
            q = math.inf if p == 1 else 1.0 if math.isinf(p) else p / (p - 1)
            assert np.linalg.norm(slope.astype(float), ord=q) == pytest.approx(1, rel=1e-5)


def test_anomaly_terms_refuse():
    with pytest.raises(ValueError, match=r"p in \[1, inf\], got p=0.5"):
        attacks.objectives.p_distance(0.5)
    for alpha in (-0.1, 1.1, math.nan):
        with pytest.raises(ValueError, match=r"alpha in \[0, 1\]"):
            attacks.objectives.constrain(alpha, attacks.objectives.p_distance())
    with pytest.raises(ValueError, match="epsilon > 0, got epsilon=0"):
        attacks.objectives.converged(POINT, {}, 0)


# --- Algorithm 2 -------------------------------------------------------------------------------------

FEATURES = RNG.normal(size=(12, 4)).astype(np.float32)
LABELS = RNG.integers(0, 3, 12).astype(np.int32)
SOFTMAX = fr.classification(models.SoftmaxRegression(3), jnp.zeros((1, 4)))
START = SOFTMAX.init(jax.random.key(3))
DATA = ClientData(
    {"x": jnp.asarray(FEATURES), "y": jnp.asarray(LABELS)}, jnp.arange(12), jnp.int32(12)
)
BACKDOOR = {"x": DATA.examples["x"][:2], "y": DATA.examples["y"][:2]}


def dense(params):
    layer = SOFTMAX.unravel(params)["Dense_0"]
    return np.asarray(layer["kernel"], float), np.asarray(layer["bias"], float)


def test_constrain_and_scale_is_algorithm_2():
    """Six epochs, a step that falls to a tenth after every two; stopped at once, on the way, or never."""

    def submitted(alpha, epsilon):
        client = local_sgd(
            SOFTMAX,
            optax.exponential_decay(0.8, 2, 0.1, staircase=True),
            None,
            epochs=6,
            objective=attacks.objectives.constrain(alpha, attacks.objectives.p_distance()),
            stop=attacks.objectives.converged(SOFTMAX, BACKDOOR, epsilon),
        )
        attack = attacks.model_replacement(client, DATA, attacks.divisions.equal_parts(20.0))
        malicious = jnp.array([True, False])
        view = AttackerView(
            updates=jnp.zeros((2, len(START))),
            visible=malicious,
            reference=malicious,
            malicious=malicious,
            num_malicious=1,
            params=START,
            key=jax.random.key(0),
            aggregate=None,
        )
        return attack.craft(view, ())[0][0]

    cases = [(alpha, epsilon) for alpha in (1.0, 0.6, 0.0) for epsilon in (100.0, 1.0, 0.95, 1e-9)]
    rows = jax.jit(jax.vmap(submitted))(*jnp.array(cases).T)
    rates = [0.8, 0.8, 0.08, 0.08, 0.008, 0.008]
    backdoor, epochs = (FEATURES[:2], LABELS[:2]), set()
    for (alpha, epsilon), row in zip(cases, rows, strict=True):
        *expected, made = ref.constrain_and_scale(
            *dense(START), FEATURES, LABELS, backdoor, alpha, rates, epsilon, 20.0
        )
        for ours, theirs in zip(dense(row), expected, strict=True):
            np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-4)
        epochs.add(made)
    assert {0, 6} < epochs, epochs


def test_gradient_of_the_objective_is_exact():
    """Against differences of eq. 4 in float64, on a batch with backdoor examples."""
    with jax.enable_x64(True):
        task = fr.classification(models.SoftmaxRegression(3), jnp.zeros((1, 4)))
        for anomaly, definition in (TERMS["p = 2"], TERMS["cosine"]):
            received = jnp.asarray(START, jnp.float64)
            loss = attacks.objectives.constrain(0.3, anomaly)(task.loss, received)
            batch = {"x": jnp.asarray(FEATURES, jnp.float64), "y": jnp.asarray(LABELS)}
            params = received + 0.1 * jax.random.normal(jax.random.key(1), received.shape)
            slope = np.asarray(jax.grad(loss)(params, batch))

            def by_definition(params, definition=definition, received=received):
                kernel, bias = dense(params)
                rows = FEATURES.astype(float) @ kernel + bias
                losses = [
                    -math.log(ref.softmax(row)[y]) for row, y in zip(rows, LABELS, strict=True)
                ]
                distance = definition(np.asarray(params), np.asarray(received))
                return 0.3 * np.mean(losses) + 0.7 * distance

            for j in range(len(slope)):
                h = 1e-6 * np.eye(len(slope))[j]
                difference = (by_definition(params + h) - by_definition(params - h)) / 2e-6
                assert slope[j] == pytest.approx(difference, rel=1e-5, abs=1e-7)


def test_the_constraint_keeps_the_model_close():
    """The smaller alpha, the closer; all of it under vmap over alpha."""

    def train(alpha):
        client = local_sgd(
            SOFTMAX,
            0.1,
            None,
            epochs=20,
            objective=attacks.objectives.constrain(alpha, attacks.objectives.p_distance()),
        )
        return client.update(jax.random.key(0), START, (), DATA)[0]

    lengths = np.linalg.norm(jax.jit(jax.vmap(train))(jnp.array([1.0, 0.9, 0.8, 0.7])), axis=1)
    assert np.all(np.diff(lengths) < -1e-3)


# --- Rounds and clients ------------------------------------------------------------------------------


def test_attackers_selected():
    rounds = jnp.array([[False, False], [True, False], [False, True], [True, True]])
    draw = jax.jit(jax.vmap(fr.attackers_selected(12, 5, rounds), (0, None)))
    keys = jax.random.split(jax.random.key(0), 2000)
    for r in range(6):  # rounds 4 and 5 are beyond the schedule
        ids = np.asarray(draw(keys, jnp.int32(r)))
        assert ids.shape == (2000, 5) and ids.dtype == np.int32
        assert np.all(np.diff(ids, axis=1) > 0)
        there = [set(row) & {0, 1} for row in ids.tolist()]
        expected = {i for i in (0, 1) if r < 4 and bool(rounds[r, i])}
        assert all(t == expected for t in there)
        share = np.bincount(ids.ravel(), minlength=12)[2:] / 2000
        places = 5 - len(expected)
        assert np.max(np.abs(share - places / 10)) < 5 * math.sqrt(0.25 / 2000)
    one = fr.attackers_selected(12, 3, jnp.array([True]))(keys[0], 0)
    assert one[0] == 0 and len(one) == 3


def test_attackers_selected_refuses():
    for bad in (jnp.ones(2), jnp.ones((0, 1), bool), jnp.ones((1, 1, 1), bool)):
        with pytest.raises(ValueError, match=r"rounds \(R, c\) or \(R,\) of bool"):
            fr.attackers_selected(12, 5, bad)
    for n in (0, 12):
        with pytest.raises(ValueError, match=f"clients_per_round={n}, N=12, c=1"):
            fr.attackers_selected(12, n, jnp.ones(1, bool))
    sim = Simulation(
        POINT,
        nothing(),
        aggregators.mean(),
        clients_per_round=3,
        participants=lambda key, r: jnp.arange(3),
    )
    with pytest.raises(ValueError, match="pass one"):
        init(sim, jax.random.key(0), TWENTY)


def telling(sign: float) -> Client:
    """Sends its id and round, and counts its rounds."""

    def update(key, params, state, data):
        told = jnp.stack([jnp.asarray(data.id), jnp.asarray(data.round), state]).astype(float)
        return sign * told, state + 1, {"train_loss": sign * 1.0}

    return Client(lambda params: jnp.int32(0), update)


def shown() -> fr.Aggregator:
    def aggregate(received, state):
        return jnp.zeros(3), state, {"updates": received.updates, "ids": received.ids}

    return fr.Aggregator(lambda n, params: (), aggregate)


@pytest.mark.parametrize("chunk", [None, 2])
def test_in_rounds_switches_how_clients_train(chunk):
    """By round and client; each way to train has its own state; clients know their id and the round."""
    schedule = jnp.array([[True, False], [True, True], [False, True]])
    attack = attacks.in_rounds(attacks.scaling(10.0, telling(-1.0)), schedule, telling(1.0))
    sim = Simulation(POINT, telling(1.0), shown(), attack, num_malicious=3, client_chunk=chunk)
    data = from_owner({"y": np.zeros(4, int)}, np.arange(4), 4)
    _, history = fr.run(sim, jax.random.key(0), data, 4)
    updates = np.asarray(history["updates"])
    assert updates.shape == (4, 4, 3)
    count = np.zeros((4, 2), int)
    for r in range(4):
        for i in range(4):
            strikes = r < 3 and i < 2 and bool(schedule[r, i])
            told = [i, r, count[i, int(strikes)]]
            count[i, int(strikes)] += 1
            np.testing.assert_array_equal(updates[r, i], np.multiply(told, -10 if strikes else 1))


def test_in_rounds_with_random_participants():
    """Repeated attack: whoever is drawn strikes in the rounds of the schedule, and is honest else."""
    attack = attacks.in_rounds(
        attacks.data_poisoning(telling(-1.0)), jnp.array([False, True, True]), telling(1.0)
    )
    sim = Simulation(POINT, telling(1.0), shown(), attack, num_malicious=4, clients_per_round=5)
    data = from_owner({"y": np.zeros(10, int)}, np.arange(10), 10)
    _, history = fr.run(sim, jax.random.key(1), data, 5)
    for r in range(5):
        ids = np.asarray(history["ids"][r])
        sign = np.where((ids < 4) & (r in (1, 2)), -1, 1)
        np.testing.assert_array_equal(history["updates"][r, :, 0], sign * ids)
        np.testing.assert_array_equal(history["updates"][r, :, 1], sign * r)


# --- The attacks as a whole --------------------------------------------------------------------------

CLASSES, N, M = 3, 20, 5
CENTRES = 3 * np.eye(CLASSES, 8)


def gaussian_classes(size, seed):
    rng = np.random.default_rng(seed)
    y = rng.integers(0, CLASSES, size).astype(np.int32)
    x = (CENTRES[y] + rng.normal(size=(size, 8))).astype(np.float32)
    return {"x": x, "y": y}


TRAIN, TEST = gaussian_classes(800, 0), gaussian_classes(1000, 1)
CARS = gaussian_classes(200, 2)  # with a feature of their own, and of class 1
CARS["y"][:] = 1
CARS["x"] = CARS["x"] * 0.3 + CENTRES[1].astype(np.float32)
CARS["x"][:, 6] += 4
TASK = fr.classification(models.SoftmaxRegression(CLASSES), jnp.zeros((1, 8)))
EVALUATE = metrics.together(
    metrics.test_error(TASK, TEST), metrics.backdoor_accuracy(TASK, jnp.asarray(CARS["x"][20:]), 2)
)
HONEST = local_sgd(TASK, 0.1, 16, epochs=2)
PARTS = iid(jax.random.key(7), TRAIN, N)
D_BACKDOOR = {"x": jnp.asarray(CARS["x"][:20]), "y": jnp.full(20, 2)}
RULE = aggregators.fedavg_eta(1.0, N)


def own_client(**more) -> Client:
    rate = optax.exponential_decay(0.1, 2, 0.1, staircase=True)
    poison = attacks.poisons.replace_by(D_BACKDOOR, 5, 0.05)
    return local_sgd(TASK, rate, 16, epochs=6, poison=poison, **more)


@pytest.fixture(scope="module")
def trained():
    state, history = fr.run(
        Simulation(TASK, HONEST, RULE, clients_per_round=M),
        jax.random.key(0),
        PARTS,
        40,
        evaluate=EVALUATE,
    )
    assert history["test_error"][-1] < 0.1 and history["backdoor_accuracy"][-1] < 0.05
    return state.params


def attacked(trained, attack, rule=RULE, honest=HONEST, **more):
    sim = Simulation(TASK, honest, rule, attack, **more)
    _, history = fr.run(
        sim, jax.random.key(1), PARTS, 6, evaluate=EVALUATE, evaluate_every=1, params=trained
    )
    return np.asarray(history["backdoor_accuracy"]), np.asarray(history["test_error"])


AT_2 = jnp.arange(6) == 2
ALONE = {"num_malicious": 1, "participants": fr.attackers_selected(N, M, AT_2)}
OWN_DATA = ClientData(PARTS.examples, jnp.arange(200), jnp.int32(200))


def test_single_shot(trained):
    """One attacker in one round replaces the model; its data without scaling do not."""
    whole = attacks.model_replacement(
        own_client(), OWN_DATA, attacks.divisions.equal_parts(float(N))
    )
    success, error = attacked(trained, whole, **ALONE)
    assert np.all(success[:2] < 0.05) and success[2] > 0.9
    assert error[2] < error[1] + 0.1
    success, _ = attacked(trained, attacks.data_poisoning(own_client()), **ALONE)
    assert np.all(success < 0.2)


def test_krum_takes_the_unscaled_model(trained):
    """Three of ten participants submit the same model close to the global one, and Krum takes it whole;
    honest updates are noisier (section VI-B)."""
    noisy = local_sgd(TASK, 2.0, 4, epochs=2)
    close = own_client(objective=attacks.objectives.constrain(0.7, attacks.objectives.p_distance()))
    attack = attacks.model_replacement(close, OWN_DATA, attacks.divisions.copies())
    krum = aggregators.krum(3)
    more = {
        "num_malicious": 3,
        "participants": fr.attackers_selected(N, 10, jnp.ones((1, 3), bool)),
    }
    success, _ = attacked(trained, attack, krum, noisy, **more)
    assert success[0] > 0.85


def test_two_backdoors_at_once(trained):
    """Two sets of images in each batch, with two labels."""
    other = {"x": D_BACKDOOR["x"].at[:, 6].add(-4).at[:, 7].add(4), "y": jnp.full(20, 0)}
    poison = attacks.poisons.in_turn(
        attacks.poisons.replace_by(D_BACKDOOR, 4, 0.05),
        attacks.poisons.replace_by(other, 4, 0.05, skip=4),
    )
    client = local_sgd(TASK, 0.1, 16, epochs=8, poison=poison)
    x = trained + jax.jit(client.update)(jax.random.key(1), trained, (), OWN_DATA)[0]
    for backdoor in (D_BACKDOOR, other):
        assert float(jnp.mean(metrics.predict(TASK, x, backdoor["x"]) == backdoor["y"])) > 0.9
    assert float(metrics.test_error(TASK, TEST)(x)["test_error"]) < 0.15


def test_distributed_backdoor(trained):
    """DBA: two clients with a part of the trigger each, scaled, in rounds of their own; the whole trigger
    works, which neither of them ever showed."""
    triggers = [lambda x: x.at[:, 6].set(5.0), lambda x: x.at[:, 7].set(5.0)]

    def both(x):
        return triggers[1](triggers[0](x))

    test = attacks.backdoors.triggered(
        {"x": jnp.asarray(TEST["x"]), "y": jnp.asarray(TEST["y"])}, both
    )
    evaluate = metrics.attack_success(TASK, test, 2)
    client = local_sgd(
        TASK, 0.05, 16, epochs=10, poison=attacks.poisons.distributed(triggers, 2, 5)
    )
    rounds = jnp.array([[False, False], [True, False], [False, True]])
    server = optax.sgd(0.1)  # DBA's: eta / m, so that gamma = m / eta
    attack = attacks.in_rounds(attacks.scaling(M / 0.1, client), rounds, HONEST)
    sim = Simulation(
        TASK,
        HONEST,
        aggregators.mean(),
        attack,
        num_malicious=2,
        participants=fr.attackers_selected(N, M, rounds),
        server_optimizer=server,
    )
    _, history = fr.run(
        sim, jax.random.key(1), PARTS, 3, evaluate=evaluate, evaluate_every=1, params=trained
    )
    success = np.asarray(history["attack_success"])
    assert success[0] < 0.1 and success[2] > 0.9
    assert np.asarray(history["malicious"]).sum(axis=1).tolist() == [0, 1, 1]
