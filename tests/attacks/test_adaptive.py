"""The adaptive attack on FLTrust, and the attack by gradients, against their definitions."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference as ref

import fedjax_robust as fr
from fedjax_robust import aggregators, attacks
from fedjax_robust.attacks.optimised.fltrust import Draws, Objective, _draw, climb

N, C, D = 9, 3, 14
ROOT = {"x": np.zeros((1, 1), np.float32), "y": np.zeros(1, np.int32)}


def server(g_0: np.ndarray) -> fr.Client:
    """Its update is always g_0."""
    return fr.Client(lambda p: (), lambda k, p, s, data: (jnp.asarray(g_0), s, {}))


def make_round(seed: int, n: int = N, d: int = D) -> tuple[np.ndarray, np.ndarray]:
    """Updates (n, d) that the server trusts, more or less, and g_0 (d,)."""
    rng = np.random.default_rng(seed)
    g_0 = rng.normal(size=d)
    return (
        (0.6 * g_0 + rng.normal(size=(n, d))).astype(np.float32),
        (0.7 * g_0).astype(np.float32),
    )


def make_view(updates, rule, key=0, present=None, c=C) -> fr.AttackerView:
    n, d = updates.shape
    malicious = jnp.arange(n) < c
    present = jnp.ones(n, bool) if present is None else jnp.asarray(present)
    return fr.AttackerView(
        updates=jnp.where(present[:, None], updates, 0),
        visible=present,
        reference=present & ~malicious,
        malicious=malicious & present,
        num_malicious=c,
        params=jnp.zeros(d),
        key=jax.random.key(key) if isinstance(key, int) else key,
        aggregate=lambda u: rule(u, present.astype(u.dtype)),
    )


def units(x: np.ndarray) -> np.ndarray:
    x = np.asarray(x, np.float64)
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


def gain(rows: np.ndarray, updates: np.ndarray, g_0: np.ndarray) -> float:
    """h of rows (c, d), by the definition of FLTrust."""
    before = ref.fltrust(updates, g_0)
    after = ref.fltrust(np.concatenate([rows, updates[len(rows) :]]), g_0)
    return float(np.dot(ref.changing_direction(before), before - after))


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("gamma", [0.005, 0.4])
def test_climb_is_algorithm_3(seed, gamma):
    """Fed with the numbers that belong to explicit directions u, it ends where Algorithm 3 does."""
    sweeps, queries, sigma, eta = 3, 4, 0.7, 0.15
    updates, g_0 = make_round(seed)
    rng = np.random.default_rng(100 + seed)
    u = sigma * rng.normal(size=(sweeps, C, queries, D))
    rows, e_0, malicious = units(updates), units(g_0), np.arange(N) < C
    length = float(np.linalg.norm(g_0))
    start = units(0.3 * e_0 + 0.4 * rng.normal(size=(C, D)))
    expected, seen = ref.fltrust_adaptive(rows, e_0, length, malicious, start, u, gamma, eta)
    assert np.linalg.norm(expected - start) > 0.1  # it went somewhere

    g = ref.fltrust(updates, g_0)
    s = ref.changing_direction(g)
    across = units(s - s @ e_0 * e_0)
    frames = [
        np.stack([e_0, across, units(x - x @ e_0 * e_0 - x @ across * across)]) for x in start
    ]
    along, rest = np.zeros((sweeps, C, queries, 4)), np.zeros((sweeps, C, queries))
    before = iter(seen)
    for v in range(sweeps):
        for i in range(C):
            for q in range(queries):
                e, z = next(before), u[v, i, q] / sigma
                drift = e - frames[i].T @ (frames[i] @ e)
                norm = np.linalg.norm(drift)
                drift = drift / norm if norm > 1e-9 else np.zeros(D)
                along[v, i, q] = [*(frames[i] @ z), drift @ z]
                rest[v, i, q] = z @ z - np.sum(along[v, i, q] ** 2)

    trust = np.maximum(rows[C:] @ e_0, 0)
    h = Objective(
        pull=trust @ (rows[C:] @ s), trust=np.sum(trust), length=length, before=float(s @ g)
    )
    x = np.stack([[*(f @ row), 0] for f, row in zip(frames, start, strict=True)])
    with jax.enable_x64():
        active = jnp.ones(C, bool)
        s_in_frame = np.array([s @ e_0, s @ across])
        ours = climb(
            jax.tree.map(jnp.asarray, h),
            x,
            s_in_frame,
            active,
            Draws(along, rest),
            sigma,
            gamma,
            eta,
        )
        assert ours.dtype == jnp.float64
    in_frame = np.stack([f @ row for f, row in zip(frames, expected, strict=True)])
    np.testing.assert_allclose(ours[:, :3], in_frame, atol=1e-9)
    drifts = np.linalg.norm(
        [row - f.T @ (f @ row) for f, row in zip(frames, expected, strict=True)], axis=1
    )
    np.testing.assert_allclose(ours[:, 3], drifts, atol=1e-7)


def test_same_law_as_with_explicit_directions():
    """Means of h, of the trust and of each coordinate over many draws, to 5 standard errors."""
    updates, g_0 = make_round(7)
    client = server(g_0)
    numbers = {"variance": 0.6, "gamma": 0.1, "eta": 0.3}
    attack = attacks.fltrust_adaptive(
        client, ROOT, sweeps=2, queries=3, **numbers, start=attacks.no_attack()
    )
    rule = aggregators.fltrust(client, ROOT)
    draws = 2000
    craft = jax.jit(jax.vmap(lambda k: attack.craft(make_view(updates, rule, k), ())[0]))
    ours = np.asarray(craft(jax.random.split(jax.random.key(0), draws)))
    rng = np.random.default_rng(0)
    length, malicious = float(np.linalg.norm(g_0)), np.arange(N) < C
    theirs = np.stack(
        [
            length
            * ref.fltrust_adaptive(
                units(updates),
                units(g_0),
                length,
                malicious,
                units(updates[:C]),
                np.sqrt(0.6) * rng.normal(size=(2, C, 3, D)),
                0.1,
                0.3,
            )[0]
            for _ in range(draws)
        ]
    )

    def features(rows):
        flat = rows.reshape(draws, -1)
        trust = units(rows) @ units(g_0)
        h = np.array([[gain(r, updates, g_0)] for r in rows])
        return np.concatenate([flat, flat**2, trust, trust**2, h, h**2], axis=1)

    a, b = features(ours), features(theirs)
    error = np.sqrt((a.var(axis=0) + b.var(axis=0)) / draws)
    assert np.max(np.abs(a.mean(axis=0) - b.mean(axis=0)) / error) < 5
    assert np.all(b.std(axis=0) > 0)


def test_rows_have_the_servers_length_and_trusted_starts_gain():
    updates, g_0 = make_round(1)
    rule = aggregators.fltrust(server(g_0), ROOT)
    attack = attacks.fltrust_adaptive(server(g_0), ROOT, start=attacks.no_attack())
    rows = np.asarray(attack.craft(make_view(updates, rule), ())[0])
    np.testing.assert_allclose(np.linalg.norm(rows, axis=1), np.linalg.norm(g_0), rtol=1e-5)
    assert gain(rows, updates, g_0) > gain(updates[:C], updates, g_0)


def test_untrusted_starts_stay():
    """From the far side of the server's update every difference is 0: the Trim start keeps trust 0."""
    updates, g_0 = make_round(2, d=400)
    rule = aggregators.fltrust(server(g_0), ROOT)
    view = make_view(updates, rule)
    start = units(np.asarray(attacks.fang_trim_full().craft(view, ())[0]))
    assert np.all(start @ units(g_0) < -0.1)
    attack = attacks.fltrust_adaptive(server(g_0), ROOT)
    rows = np.asarray(attack.craft(view, ())[0])
    assert np.all(rows @ g_0 < 0)
    without = ref.fltrust(updates[C:], g_0)
    np.testing.assert_allclose(rule(jnp.concatenate([rows, updates[C:]])), without, atol=1e-5)


def test_absent_rows_do_not_matter_and_a_zero_server_update_sends_zeros():
    updates, g_0 = make_round(3)
    rule = aggregators.fltrust(server(g_0), ROOT)
    attack = attacks.fltrust_adaptive(server(g_0), ROOT, start=attacks.no_attack())
    present = np.arange(N) % 4 != 1
    rows = attack.craft(make_view(updates, rule, present=present), ())[0]
    other = np.where(present[:, None], updates, 77).astype(np.float32)
    again = attack.craft(make_view(other, rule, present=present), ())[0]
    np.testing.assert_array_equal(rows, again)
    assert np.all(np.isfinite(rows))
    zero = attacks.fltrust_adaptive(server(0 * g_0), ROOT)
    assert np.all(np.asarray(zero.craft(make_view(updates, rule), ())[0]) == 0)


@pytest.mark.parametrize("zeros", ["server along s", "start in the plane"])
def test_degenerate_frames(zeros):
    """s may be parallel to g_0, and a start may lie in the plane of both."""
    updates, g_0 = make_round(4)
    if zeros == "server along s":
        g_0 = np.sign(g_0).astype(np.float32)
        updates = (1 + 0.1 * np.arange(N)[:, None]) * g_0
    else:
        updates[:C] = g_0
    updates = updates.astype(np.float32)
    rule = aggregators.fltrust(server(g_0), ROOT)
    attack = attacks.fltrust_adaptive(server(g_0), ROOT, eta=0.5, start=attacks.no_attack())
    rows = np.asarray(attack.craft(make_view(updates, rule), ())[0])
    np.testing.assert_allclose(np.linalg.norm(rows, axis=1), np.linalg.norm(g_0), rtol=1e-4)


@pytest.mark.parametrize("seed", range(3))
def test_first_order_finds_the_best_response_to_fltrust(seed):
    updates, g_0 = make_round(seed, n=12, d=60)
    rule = aggregators.fltrust(server(g_0), ROOT)
    best, trust = ref.fltrust_best_response(
        units(updates), units(g_0), float(np.linalg.norm(g_0)), np.arange(12) < C
    )
    attack = attacks.first_order()
    rows = np.asarray(attack.craft(make_view(updates, rule), ())[0])
    ours = gain(rows, updates, g_0)
    assert ours <= best * (1 + 1e-4)
    assert ours >= best * 0.99
    np.testing.assert_allclose(units(rows) @ units(g_0), trust, atol=0.05)
    np.testing.assert_allclose(
        np.linalg.norm(rows, axis=1), np.linalg.norm(updates[:C], axis=1), rtol=1e-5
    )


def test_first_order_against_the_mean():
    """The mean moves furthest when every row is -length s / |s|."""
    updates, _ = make_round(5)
    rows = attacks.first_order(80, 0.3).craft(make_view(updates, aggregators.mean()), ())[0]
    s = np.where(updates.mean(axis=0) > 0, 1, -1)
    expected = -np.linalg.norm(updates[:C], axis=1)[:, None] * s / np.sqrt(D)
    np.testing.assert_allclose(rows, expected, atol=0.05)


def test_first_order_is_never_worse_than_its_start():
    """Also where the rule has no slope in the rows: they are sent as they are."""
    updates, _ = make_round(6)
    updates[:C] += 50
    view = make_view(updates, aggregators.krum(C))
    rows = attacks.first_order(5).craft(view, ())[0]
    np.testing.assert_allclose(rows, updates[:C], rtol=1e-6)


def test_in_a_simulation():
    """Both run in training, and the gradient does more harm in the first round."""
    digits = fr.data.load("digits")
    data = fr.data.by_group(jax.random.key(0), digits.train, 10, 0.3)
    task = fr.classification(fr.models.SoftmaxRegression(10), digits.train["x"][:1])
    client = fr.local_sgd(task, 0.1, 16)
    on_root = fr.local_sgd(task, 0.2, None)
    root = {name: values[:50] for name, values in digits.train.items()}
    rule = aggregators.fltrust(on_root, root)
    sim = fr.Simulation(
        task, client, rule, num_malicious=3, knowledge=fr.Knowledge(others=True, rule=True)
    )
    error = {}
    for name, attack in {
        "none": attacks.no_attack(),
        "zeroth order": attacks.fltrust_adaptive(on_root, root, start=attacks.no_attack()),
        "first order": attacks.first_order(20),
    }.items():
        state, history = fr.run(
            sim._replace(attack=attack),
            jax.random.key(1),
            data,
            20,
            evaluate=fr.metrics.test_error(task, digits.test),
        )
        assert np.all(np.isfinite(state.params))
        error[name] = float(history["test_error"][-1])
    assert error["first order"] > error["none"] + 0.02, error


@pytest.mark.parametrize(
    ("make", "text"),
    [
        (lambda: attacks.fltrust_adaptive(server(np.ones(9)), ROOT, sweeps=0), "sweeps"),
        (lambda: attacks.fltrust_adaptive(server(np.ones(9)), ROOT, queries=0), "queries"),
        (lambda: attacks.fltrust_adaptive(server(np.ones(9)), ROOT, variance=0.0), "variance"),
        (lambda: attacks.fltrust_adaptive(server(np.ones(9)), ROOT, gamma=-1.0), "gamma"),
        (lambda: attacks.fltrust_adaptive(server(np.ones(9)), ROOT, eta=float("nan")), "eta"),
        (lambda: attacks.first_order(0), "steps"),
        (lambda: attacks.first_order(3, -0.1), "step_size"),
    ],
)
def test_bad_numbers(make, text):
    with pytest.raises(ValueError, match=text):
        make()


def test_too_few_parameters():
    updates, g_0 = make_round(0, d=4)
    attack = attacks.fltrust_adaptive(server(g_0), ROOT)
    with pytest.raises(ValueError, match="at least 5 parameters, got 4"):
        attack.craft(make_view(updates, aggregators.fltrust(server(g_0), ROOT)), ())


# --- Draws, starts, best rows ----------------------------------------------------------------------


@pytest.mark.parametrize("d", [5, 8, 30])
def test_what_is_drawn(d):
    """Four normal numbers, and the squared length of the other d - 4: chi-square of as many degrees."""
    draws = _draw(jax.random.key(0), 40, 10, 50, d)
    assert draws.along.shape == (40, 10, 50, 4) and draws.rest.shape == (40, 10, 50)
    number = draws.rest.size
    rest, along = np.asarray(draws.rest, np.float64), np.asarray(draws.along, np.float64)
    freedom = d - 4
    assert abs(rest.mean() - freedom) < 5 * np.sqrt(2 * freedom / number)
    assert rest.var() == pytest.approx(2 * freedom, rel=0.15)
    assert abs(along.mean()) < 5 / np.sqrt(4 * number)
    assert along.var() == pytest.approx(1, rel=0.02)
    assert abs(np.corrcoef(along[..., 0].ravel(), rest.ravel())[0, 1]) < 5 / np.sqrt(number)


def test_inactive_rows_stay_zero():
    updates, g_0 = make_round(8)
    present = np.arange(N) != 1
    rule = aggregators.fltrust(server(g_0), ROOT)
    attack = attacks.fltrust_adaptive(server(g_0), ROOT, start=attacks.no_attack(), eta=0.5)
    rows = np.asarray(attack.craft(make_view(updates, rule, present=present), ())[0])
    np.testing.assert_array_equal(rows[1], np.zeros(D))
    np.testing.assert_allclose(np.linalg.norm(rows[[0, 2]], axis=1), np.linalg.norm(g_0), rtol=1e-5)
    assert np.max(np.abs(rows[[0, 2]] - updates[[0, 2]])) > 0.1
    # The same rows as if it had been deleted, given the same numbers: it counts for nothing in h.
    h = Objective(jnp.float32(1.0), jnp.float32(2.0), jnp.float32(1.5), jnp.float32(0.5))
    rng = np.random.default_rng(0)
    x = rng.normal(size=(3, 4)).astype(np.float32)
    x /= np.linalg.norm(x, axis=1, keepdims=True)
    x[1] = 0
    s = jnp.asarray([1.5, 2.0])
    along = rng.normal(size=(2, 3, 4, 4)).astype(np.float32)
    rest = rng.chisquare(6, size=(2, 3, 4)).astype(np.float32)
    active = jnp.array([True, False, True])
    sizes = (0.7, 0.3, 0.2)
    climbed = climb(h, jnp.asarray(x), s, active, Draws(along, rest), *sizes)
    np.testing.assert_array_equal(climbed[1], np.zeros(4))
    kept = np.array([0, 2])
    alone = climb(
        h, jnp.asarray(x[kept]), s, active[kept], Draws(along[:, kept], rest[:, kept]), *sizes
    )
    np.testing.assert_allclose(climbed[kept], alone, rtol=1e-6, atol=1e-7)
    assert np.max(np.abs(climbed[0] - x[0])) > 0.01


@pytest.mark.parametrize("scale", [1e-30, 1e-20, 1e20, 1e30])
def test_attacks_on_fltrust_at_any_scale(scale):
    updates, g_0 = make_round(9)
    updates, g_0 = (scale * updates).astype(np.float32), (scale * g_0).astype(np.float32)
    rule = aggregators.fltrust(server(g_0), ROOT)
    view = make_view(updates, rule)
    exact, exact_g_0 = updates.astype(np.float64), g_0.astype(np.float64)
    attack = attacks.fltrust_adaptive(server(g_0), ROOT, start=attacks.no_attack())
    rows = np.asarray(attack.craft(view, ())[0], np.float64)
    np.testing.assert_allclose(np.linalg.norm(rows, axis=1), np.linalg.norm(exact_g_0), rtol=1e-4)
    rows = np.asarray(attacks.first_order(5).craft(view, ())[0], np.float64)
    np.testing.assert_allclose(
        np.linalg.norm(rows, axis=1), np.linalg.norm(exact[:C], axis=1), rtol=1e-4
    )
    assert gain(rows, exact, exact_g_0) > 0.01 * scale


def test_first_order_at_a_scale_where_the_objective_overflows():
    """The sum over 14 parameters of changes of 1e38."""
    updates, _ = make_round(5)
    view = make_view((5e37 * updates).astype(np.float32), aggregators.mean())
    rows = np.asarray(attacks.first_order(20).craft(view, ())[0], np.float64) / 5e37
    same = attacks.first_order(20).craft(make_view(updates, aggregators.mean()), ())[0]
    np.testing.assert_allclose(rows, same, rtol=1e-3, atol=1e-4)


def test_first_order_sends_the_best_rows_that_it_saw():
    """One row on the unit circle, of which the rule gives 1 - y + 5 y^4. From y = .1 the attack climbs,
    and a step of 1000 lengths ends at y = 1, which is worse than the start."""
    updates = np.array([[np.sqrt(0.99), 0.1], [0, 0], [0, 0]], np.float32)

    def rule(u, weights=None):
        y = u[0, 1]
        return jnp.stack([1 - y + 5 * y**4, 0 * y])

    view = make_view(updates, rule, c=1)
    rows = attacks.first_order(1, 1e3).craft(view, ())[0]
    np.testing.assert_allclose(rows, updates[:1], rtol=1e-6)
    rows = attacks.first_order(1, 0.1).craft(view, ())[0]
    moved = np.array([np.sqrt(0.99), 0.2]) / np.sqrt(0.99 + 0.04)
    np.testing.assert_allclose(rows, moved[None], rtol=1e-5)
    # The best of a whole climb that jumps to and fro is its highest point: 1 = 20 y^3.
    rows = attacks.first_order(60, 0.3).craft(view, ())[0]
    assert float(rows[0, 1]) == pytest.approx(0.05 ** (1 / 3), abs=0.02)


def test_one_step_against_the_mean_by_hand():
    """The gradient is -s / n for every row: it turns by 0.3 of its length towards -s / |s|."""
    updates, _ = make_round(5)
    rows = attacks.first_order(1, 0.3).craft(make_view(updates, aggregators.mean()), ())[0]
    s = np.where(updates.mean(axis=0) > 0, 1, -1) / np.sqrt(D)
    lengths = np.linalg.norm(updates[:C], axis=1)[:, None]
    moved = updates[:C] - 0.3 * lengths * s
    expected = lengths * moved / np.linalg.norm(moved, axis=1)[:, None]
    np.testing.assert_allclose(rows, expected, rtol=1e-4, atol=1e-5)


COUNTING = fr.Attack(
    init=lambda params: jnp.int32(0), craft=lambda view, state: (view.updates, state + 1)
)
TRAINING = fr.Attack(client=server(np.ones(D)))


@pytest.mark.parametrize("make", ["first_order", "fltrust_adaptive"])
def test_starts_that_cannot_be_climbed_from(make):
    updates, g_0 = make_round(0)
    view = make_view(updates, aggregators.mean())

    def attack(start):
        if make == "first_order":
            return attacks.first_order(start=start)
        return attacks.fltrust_adaptive(server(g_0), ROOT, start=start)

    with pytest.raises(ValueError, match=f"{make} needs a start that only crafts"):
        attack(TRAINING)
    with pytest.raises(TypeError, match=f"{make} needs start to be an Attack.*call it"):
        attack(attacks.gaussian)
    with pytest.raises(ValueError, match=f"{make} needs a start without a state of its own"):
        attack(COUNTING).craft(view, ())
    short = fr.Attack(craft=lambda view, state: (view.updates[0], state))
    with pytest.raises(
        ValueError, match=rf"{make} needs a start whose craft returns {C} or n rows"
    ):
        attack(short).craft(view, ())
    assert np.all(np.isfinite(attack(attacks.gaussian()).craft(view, ())[0]))


def test_an_attack_through_the_rule_without_the_rule():
    updates, _ = make_round(0)
    view = make_view(updates, aggregators.mean())._replace(aggregate=None)
    with pytest.raises(
        ValueError, match=r"first_order climbs .* grant Knowledge\(others=True, rule"
    ):
        attacks.first_order().craft(view, ())


def test_the_keys_of_the_start_and_of_the_attackers_server_differ():
    """From each other and from the attack's own, so that no draw is used twice."""
    updates, g_0 = make_round(0)
    seen = []

    def note(key):
        seen.append(tuple(np.asarray(jax.random.key_data(key))))

    training = fr.Client(lambda p: (), lambda k, p, s, data: (note(k) or jnp.asarray(g_0), s, {}))
    start = fr.Attack(craft=lambda view, state: (note(view.key) or view.updates, state))
    attack = attacks.fltrust_adaptive(training, ROOT, start=start)
    view = make_view(updates, aggregators.mean(), key=3)
    attack.craft(view, ())
    note(view.key)
    assert len(seen) == len(set(seen)) == 3


@pytest.mark.parametrize("bad", [np.nan, np.inf, 0, np.array(-1.0), jnp.array(np.inf)])
def test_bad_sizes(bad):
    for name in ("variance", "gamma", "eta"):
        with pytest.raises(ValueError, match=f"fltrust_adaptive needs {name} > 0"):
            attacks.fltrust_adaptive(server(np.ones(9)), ROOT, **{name: bad})
    with pytest.raises(ValueError, match="first_order needs step_size > 0"):
        attacks.first_order(3, bad)
    for name in ("sweeps", "queries"):
        with pytest.raises((ValueError, TypeError), match=f"fltrust_adaptive needs {name}"):
            attacks.fltrust_adaptive(server(np.ones(9)), ROOT, **{name: 1.5})
    with pytest.raises(ValueError, match="first_order needs steps"):
        attacks.first_order(2.5)
