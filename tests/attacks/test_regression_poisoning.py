"""Gradients through linear regressions, alone and coupled: hand values, definitions, differences."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from reference import regression as ref

from fedjax_robust.attacks.optimised import (
    at2fl_points,
    coupled_ridge,
    inverse_flip_points,
    kkt_gradient,
    mean_squared_error,
    official_kkt_gradient,
    official_regression_points,
    regression_points,
)
from fedjax_robust.data import trim_regression
from fedjax_robust.kernels.regression import ridge_model

CLEAN = np.array([[0.0], [1.0], [2.0]]), np.array([0.0, 1.0, 2.0])
POISON = np.array([[1.5]]), np.array([0.0])
GRADIENTS = {False: kkt_gradient, True: official_kkt_gradient}


def clean(seed=0, n=24, k=3):
    rng = np.random.default_rng(seed)
    x = rng.random((n, k))
    y = np.clip(x @ np.array([0.5, -0.3, 0.4])[:k] + 0.3 + 0.05 * rng.normal(size=n), 0, 1)
    return x, y


# --- Gradients of one regression ---------------------------------------------------------------------


def test_gradients_by_hand():
    """(w, b) itself as the objective: its derivatives as the sheet has them."""
    with jax.enable_x64(True):
        model = [kkt_gradient(lambda theta, i=i: theta[i], *CLEAN, *POISON) for i in range(2)]
        np.testing.assert_allclose([m[0] for m in model], [0.7428571429, -0.0857142857], rtol=1e-8)
        by_x = [m[1][0, 0] for m in model]
        np.testing.assert_allclose(by_x, [-0.5975510204, 0.4865306122], rtol=1e-8)
        by_y = [m[2][0] for m in model]
        np.testing.assert_allclose(by_y, [0.1714285714, 0.0571428571], rtol=1e-8)
        model = [official_kkt_gradient(lambda t, i=i: t[i], *CLEAN, *POISON) for i in range(2)]
        np.testing.assert_allclose([m[1][0, 0] for m in model], [-0.7, 0.4523809524], rtol=1e-8)
        np.testing.assert_allclose([m[2][0] for m in model], [0.25, 0.0833333333], rtol=1e-8)
        value, by_x, by_y = kkt_gradient(mean_squared_error(*CLEAN), *CLEAN, *POISON)
        np.testing.assert_allclose(value, 0.1616326531, rtol=1e-8)
        np.testing.assert_allclose([by_x[0, 0], by_y[0]], [0.2810029154, -0.2155102041], rtol=1e-8)


@pytest.mark.parametrize("official", [False, True], ids=["exact", "official"])
@pytest.mark.parametrize("ridge", [0.0, 0.1])
def test_gradients_of_several_points(official, ridge):
    x, y = clean()
    px, py = clean(1, 5)
    arrays = [np.float32(a) for a in (x, y, px, 1 - py)]
    objective = mean_squared_error(*arrays[:2])
    value, by_x, by_y = GRADIENTS[official](objective, *arrays, ridge)
    slow = ref.squared_error(x, y)
    expected = ref.gradient(slow, x, y, px, 1 - py, ridge, official)
    tolerance = {"rtol": 1e-3, "atol": 1e-4 * np.max(np.abs(expected))}
    np.testing.assert_allclose(np.column_stack([by_x, by_y]), expected, **tolerance)
    theta = ref.fit(np.concatenate([x, px]), np.concatenate([y, 1 - py]), ridge)
    np.testing.assert_allclose(value, slow(theta)[0], rtol=1e-4)


@pytest.mark.parametrize("ridge", [0.0, 0.1])
def test_the_exact_gradient_is_that_of_finite_differences(ridge):
    """Of the definition's fit, point by point; the official one is not."""
    x, y = clean()
    px, py = clean(1, 5)
    slow = ref.squared_error(x, y)

    def value(z):
        joined = np.concatenate([x, z[:, :-1]]), np.concatenate([y, z[:, -1]])
        return slow(ref.fit(*joined, ridge))[0]

    z, step = np.column_stack([px, 1 - py]), 1e-5
    differences = np.zeros_like(z)
    for i in np.ndindex(*z.shape):
        shift = np.zeros_like(z)
        shift[i] = step
        differences[i] = (value(z + shift) - value(z - shift)) / (2 * step)
    exact, official = (ref.gradient(slow, x, y, px, 1 - py, ridge, o) for o in (False, True))
    np.testing.assert_allclose(exact, differences, rtol=1e-5, atol=1e-9)
    assert np.max(np.abs(official - differences)) > 0.1 * np.max(np.abs(differences))


@pytest.mark.parametrize("scale", [1e-12, 1.0, 1e12])
def test_gradients_at_any_scale_of_the_features(scale):
    """By features in units of their own they are the same, by responses too."""
    x, y = clean()
    px, py = clean(1, 5)
    arrays = [np.float32(a) for a in (scale * x, y, scale * px, 1 - py)]
    _, by_x, by_y = kkt_gradient(mean_squared_error(*arrays[:2]), *arrays)
    expected = ref.gradient(ref.squared_error(x, y), x, y, px, 1 - py, 0.0, False)
    tolerance = {"rtol": 1e-3, "atol": 1e-4 * np.max(np.abs(expected))}
    np.testing.assert_allclose(np.column_stack([by_x * scale, by_y]), expected, **tolerance)


def test_derivatives_through_the_fit_where_eigenvalues_are_equal():
    """A cross has two of them, and eigenvectors that have no derivative there."""
    x = np.float32([[1, 0], [-1, 0], [0, 1], [0, -1]])
    y, ones = np.float32([0, 1, 3, 2]), np.ones(4, np.float32)
    twice = [np.concatenate([a, a]) for a in (x, y, ones)]
    towards = np.float32([0.3, -0.7, 0.5])

    def linear(x, y):
        return towards @ ridge_model(x, y, twice[2], 0.1)

    value, slope = jax.value_and_grad(linear, (0, 1))(*twice[:2])
    exact, by_x, by_y = kkt_gradient(lambda theta: towards @ theta, x, y, x, y, 0.1)
    np.testing.assert_allclose(by_x, slope[0][4:], rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(by_y, slope[1][4:], rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose([value, exact], towards @ ref.fit(*twice[:2], 0.1), rtol=1e-5)


# --- Points ------------------------------------------------------------------------------------------


def test_inverse_flips():
    """By influence and by how extreme the response is; drawn at the other end."""
    x = np.float32([[0.1, 0.0], [1.0, 0.5], [0.0, 1.0]])
    y = np.float32([0.0, 0.9, 0.6])
    hat = np.float64(x) @ np.linalg.inv(x.T @ x + 0.01 * np.eye(2)) @ x.T
    shares = hat.sum(axis=1) * (0.5 + np.abs(y - 0.5))
    px, py = inverse_flip_points(jax.random.key(0), x, y, 4000)
    which = np.argmin(np.abs(np.asarray(px)[:, None] - x).sum(axis=2), axis=1)
    np.testing.assert_array_equal(py, np.array([1.0, 0.0, 0.0])[which])
    np.testing.assert_allclose(np.bincount(which) / 4000, shares / shares.sum(), atol=0.03)


START = functools.partial(inverse_flip_points, jax.random.key(1), points=4)


def run(attack, x, y, **arguments):
    return jax.jit(lambda x, y: attack(jax.random.key(1), x, y, 4, **arguments))(x, y)


@pytest.mark.parametrize("attack", [regression_points, official_regression_points])
def test_points_hurt_more_and_more(attack):
    x, y = map(np.float32, clean(2))
    (px, py), values = run(attack, x, y, sweeps=30)
    values = np.asarray(values)
    assert values.shape == (31,) and np.all(np.diff(values) >= 0)
    assert np.all((px >= 0) & (px <= 1)) and np.all((py >= 0) & (py <= 1))
    joined = np.concatenate([x, px]), np.concatenate([y, py])
    slow = ref.squared_error(x, y)
    np.testing.assert_allclose(values[-1], slow(ref.fit(*joined, 0.01))[0], rtol=1e-3)
    assert values[-1] > 1.05 * values[0] > 2 * slow(ref.fit(x, y, 0.01))[0]


def test_responses_and_projections():
    """Responses that may not move do not; a one-hot pair is rounded after every sweep."""
    x, y = map(np.float32, clean(2))
    x[:, 1:] = np.eye(2)[np.arange(24) % 2]

    def winners(points):
        winner = points[:, 1] >= points[:, 2]
        return points.at[:, 1].set(winner).at[:, 2].set(~winner)

    for attack in (regression_points, official_regression_points):
        arguments = {"sweeps": 5, "move_responses": False, "project": winners}
        (px, py), _ = run(attack, x, y, **arguments)
        start_x, start_y = START(x, y)
        np.testing.assert_array_equal(py, start_y)
        assert np.all(np.isin(px[:, 1:], [0, 1])) and np.any(px != start_x)
        np.testing.assert_array_equal(px[:, 1] + px[:, 2], 1)


@pytest.mark.parametrize("move_responses", [True, False])
def test_the_official_points_are_the_definitions(move_responses):
    x, y = clean(2)
    start = clean(3, 4)[0], 1 - clean(3, 4)[1]
    expected = ref.official_points(
        x, y, *start, 0.05, 12, 0.1, shrink=0.5, move_responses=move_responses, tries=8
    )
    with jax.enable_x64(True):
        arguments = {"ridge": 0.05, "sweeps": 12, "step": 0.1, "shrink": 0.5, "tries": 8}
        arguments |= {"move_responses": move_responses, "start": start}
        (px, py), values = run(official_regression_points, x, y, **arguments)
        np.testing.assert_allclose(px, expected[0], rtol=1e-7, atol=1e-9)
        np.testing.assert_allclose(py, expected[1], rtol=1e-7, atol=1e-9)
        np.testing.assert_allclose(values, expected[2], rtol=1e-9)
    assert expected[2][-1] > 1.2 * expected[2][0]


def test_trim_takes_the_points_out():
    """The attack on a plain fit, and the paper's defence."""
    x, y = map(np.float32, clean(2, 60))
    (px, py), _ = run(regression_points, x, y, sweeps=20)
    joined = np.concatenate([x, px]), np.concatenate([y, py])
    _, model, _ = trim_regression(*joined, 60, ridge=0.01)
    slow = ref.squared_error(x, y)
    attacked, best = slow(ref.fit(*joined, 0.01))[0], slow(ref.fit(x, y, 0.01))[0]
    error = slow(np.float64(model))[0]
    assert error < best + 0.2 * (attacked - best)


# --- Coupled regressions -----------------------------------------------------------------------------


def nodes(seed=0, number=3, m=6, k=2):
    rng = np.random.default_rng(seed)
    x = rng.random((number, m, k))
    y = np.sign(x @ np.array([1.0, -1.0]) + 0.2 * rng.normal(size=(number, m)))
    return np.float32(x), np.float32(y)


def coupling_of(rng, number):
    half = rng.normal(size=(number, number))
    return half @ half.T / number


jitted = jax.jit(coupled_ridge)


@pytest.mark.parametrize("own", [False, True], ids=["to the mean", "any"])
def test_coupled_models(own):
    x, y = nodes()
    coupling = coupling_of(np.random.default_rng(1), 3) if own else np.eye(3) - 1 / 3
    given = np.float32(coupling) if own else None
    models = jitted(x, y, given, strength=0.7, ridge=0.2)
    expected = ref.coupled_models(x, y, coupling, 0.7, 0.2)
    np.testing.assert_allclose(models, expected, rtol=1e-3, atol=1e-4)
    least = ref.coupled_loss(expected, x, y, coupling, 0.7, 0.2)
    for shift in np.random.default_rng(2).normal(size=(5, 3, 2)):
        assert ref.coupled_loss(expected + 1e-3 * shift, x, y, coupling, 0.7, 0.2) > least


def test_masked_examples_are_none():
    x, y = nodes()
    mask = np.ones((3, 6), np.float32)
    mask[1, 3:] = 0
    changed = x.copy()
    changed[1, 3:] = 7
    models = jitted(x, y, mask=mask)
    np.testing.assert_allclose(models, jitted(changed, y, mask=mask), rtol=1e-5)
    assert np.max(np.abs(models - jitted(x, y, mask=np.ones_like(mask)))) > 1e-3


def upper_level(points_x, points_y, x, y, sources, targets):
    """The targets' errors on their own data, by the definition's models."""
    number, _, k = x.shape
    rows_x = [np.concatenate([x[i], *(points_x[sources == i])]) for i in range(number)]
    rows_y = [np.concatenate([y[i], *(points_y[sources == i])]) for i in range(number)]
    most = max(map(len, rows_y))
    full_x, full_y = np.zeros((number, most, k)), np.zeros((number, most))
    for i in range(number):
        full_x[i, : len(rows_y[i])], full_y[i, : len(rows_y[i])] = rows_x[i], rows_y[i]
    models = ref.coupled_models(full_x, full_y, np.eye(number) - 1 / number, 1.0, 0.1, sweeps=300)
    return sum(np.mean((x[i] @ models[i] - y[i]) ** 2) for i in targets)


@pytest.mark.parametrize(
    ("sources", "targets"), [([0, 2], [0, 2]), ([2], [0, 1])], ids=["direct", "indirect"]
)
def test_at2fl_climbs_by_the_gradient_of_the_definition(sources, targets):
    """One step from a given start: what it moved by is the difference quotient."""
    x, y = nodes()
    rng, at = np.random.default_rng(4), np.array(sources)
    start_x = np.float32(0.3 + 0.4 * rng.random((len(at), 2, 2)))
    start_y = np.float32(rng.choice([-1, 1], size=(len(at), 2)))
    of = functools.partial(upper_level, points_y=start_y, x=x, y=y, sources=at, targets=targets)
    slope = np.zeros(start_x.shape)
    for i in np.ndindex(*start_x.shape):
        shift = np.zeros(start_x.shape)
        shift[i] = 1e-4
        slope[i] = (of(start_x + shift) - of(start_x - shift)) / 2e-4
    find = functools.partial(at2fl_points, points=2, sources=sources, targets=targets)
    find = jax.jit(functools.partial(find, iterations=1, step=0.01))
    (px, py), values = find(jax.random.key(0), x, y, start=(start_x, start_y))
    np.testing.assert_allclose(values[0], of(start_x), rtol=1e-4)
    np.testing.assert_allclose(
        (px - start_x) / 0.01, slope, rtol=1e-2, atol=1e-2 * np.max(np.abs(slope))
    )
    np.testing.assert_array_equal(py, start_y)
    assert values[1] > values[0]


def test_at2fl_hurts_through_the_coupling_alone():
    x, y = nodes(1)

    @functools.partial(jax.jit, static_argnames="iterations")
    def find(strength, step=1.0, iterations=20):
        return at2fl_points(
            jax.random.key(0),
            x,
            y,
            3,
            [2],
            [0, 1],
            strength=strength,
            step=step,
            iterations=iterations,
        )

    (px, py), values = find(2.0)
    assert px.shape == (1, 3, 2) and py.shape == (1, 3) and np.all((px >= 0) & (px <= 1))
    assert np.max(values) > 1.01 * values[0]
    own = {tuple(np.append(a, -b)) for a, b in zip(x[2], y[2], strict=True)}
    start = find(2.0, 1e-9, 1)[0]
    rows = np.concatenate([start[0][0], start[1][0][:, None]], axis=1)
    for row in rows:  # own examples with the other label
        assert min(np.max(np.abs(row - np.array(example))) for example in own) < 1e-6
    # Without a coupling the others feel nothing.
    still = np.asarray(find(0.0)[1])
    np.testing.assert_allclose(still, still[0], rtol=1e-5)


def test_at2fl_refuses_nodes_that_are_not_there():
    x, y = nodes()
    for wrong in ([3], [-1], [0, 0]):
        with pytest.raises(ValueError, match="sources to be different nodes in 0"):
            at2fl_points(jax.random.key(0), x, y, 2, wrong, [0])
        with pytest.raises(ValueError, match="targets to be different nodes in 0"):
            at2fl_points(jax.random.key(0), x, y, 2, [0], wrong)
    assert jnp.all(jnp.isfinite(coupled_ridge(x, y)))
