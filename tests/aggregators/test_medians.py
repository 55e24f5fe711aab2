"""Means and medians: hand values, printed examples of others, what holds of a geometric median."""

from __future__ import annotations

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference as ref
from reference import medians as own
from rule import SERVER, server_vector

from fedjax_robust import aggregators, types
from fedjax_robust.aggregators import (
    aksel,
    cao_lai,
    cge,
    geometric_median,
    mean_around_median,
    median_of_means,
    monna,
    phocas,
    rfa,
    sign_majority,
    vrmom,
)

U = np.array([[10.0, -8.0], [1, 0], [0, 2], [1, 1], [3, 1]], np.float32)
"""One malicious row and four honest ones."""
BYZFL = np.array([[1.0, 2, 3], [4, 5, 6], [7, 8, 9]], np.float32)
ROOT = {"x": np.zeros((1, 1), np.float32), "y": np.zeros(1, np.int32)}


def close(rule: types.Aggregator, rows: np.ndarray, expected: list[float], **call: object) -> None:
    np.testing.assert_allclose(rule(rows, **call), expected, rtol=2e-6, atol=2e-6)


# --- Hand values -------------------------------------------------------------------------------------


def test_geometric_median_by_hand() -> None:
    close(geometric_median(steps=300), U, [1.2578485229, 0.7014219550])
    objective = 5 * own.sum_of_distances(U, geometric_median(steps=300)(U))
    assert objective == pytest.approx(17.0517707347, rel=1e-6)
    np.testing.assert_allclose(
        geometric_median()(U), [1.2578485229, 0.7014219550], atol=1e-4
    )  # the default


@pytest.mark.parametrize(
    ("rule", "expected"),
    [
        (rfa(steps=3, smoothing=0.1, from_zero=True), (1.2927555568, 0.6330343565)),
        (rfa(steps=3, smoothing=1e-6, from_zero=True), (1.2927555568, 0.6330343565)),
        (rfa(steps=8, smoothing=0.1, from_zero=True), (1.2649989258, 0.6903947705)),
        (rfa(), (1.3706156513, 0.6248916783)),
    ],
)
def test_rfa_by_hand(rule: types.Aggregator, expected: tuple[float, float]) -> None:
    close(rule, U, [*expected])


def test_printed_examples_of_byzfl() -> None:
    close(rfa(steps=3, smoothing=0.1, from_zero=True), BYZFL, [3.78788764, 4.78788764, 5.78788764])


def test_masses_decide() -> None:
    """Half of the mass on one row: that row. RFA's four steps are still far away."""
    rows, masses = (
        np.array([[0.0, 0], [4, 0], [0, 3]], np.float32),
        np.array([1.0, 1, 2], np.float32),
    )
    np.testing.assert_allclose(rfa()(rows, masses), [0.3649556787, 2.1860679569], rtol=1e-5)
    np.testing.assert_allclose(geometric_median(steps=3000)(rows, masses), [0, 3], atol=2e-2)


def test_the_others_by_hand() -> None:
    close(mean_around_median(1), U, [1.25, 1])
    close(phocas(1), U, [1.25, 1])
    column = np.array([[-4.0], [0], [0], [0], [3], [5]], np.float32)
    close(mean_around_median(1), column, [-0.2])
    close(phocas(1), column, [1.6])
    close(sign_majority(0.5), U, [0.5, 0.5])
    close(aksel(), U, [0.6666666667, 1])
    close(aksel(1), U, [1.25, 1])
    close(cge(1), U, [1.25, 1])
    close(monna(1, 3), U, [1.25, 1])
    close(monna(1, 0), U, [3.75, -1.5])
    close(vrmom(3), np.array([[1.0], [2], [3], [4], [100]], np.float32), [2.8566837549])
    groups = [0, 0, 1, 1, 2]
    close(median_of_means(groups), U, [3, 1])
    close(median_of_means(groups, base=geometric_median(steps=500)), U, [3, 1])


def test_cao_lai_by_hand() -> None:
    """g_0 = (1, .5): rows 1 and 3 are near; with xi 2 rows 1 to 4."""
    server = types.Client(
        lambda params: (), lambda key, params, state, data: (jnp.array([1.0, 0.5]), state, {})
    )
    for xi in (1.0, 1.5):
        close(cao_lai(server, ROOT, xi), U, [1, 0.5])
    close(cao_lai(server, ROOT, 2.0), U, [1.2, 0.9])
    close(cao_lai(server, ROOT, 2.0, server_weight=0.0), U, [1.25, 1])
    far = U + 100
    close(cao_lai(server, ROOT, 2.0), far, [1, 0.5])  # nobody is near: the server's own
    close(cao_lai(server, ROOT, 2.0, server_weight=0.0), far, [0, 0])
    # Rows by their weights: 3 x row 3, beside the server's 1.
    weights = np.array([1, 0, 0, 3, 0], np.float32)
    close(cao_lai(server, ROOT, 2.0), U, [1, 3.5 / 4], weights=weights)


# --- Properties --------------------------------------------------------------------------------------


@pytest.mark.parametrize("scale", [1e-30, 1.0, 1e30])
def test_geometric_median_is_the_smallest_sum_of_distances(scale: float) -> None:
    """No point near by, or found by a long search in float64, is better; also at the ends of floats."""
    rng = np.random.default_rng(0)
    rows = (rng.normal(size=(11, 4)) * scale).astype(np.float32)
    found = np.float64(geometric_median(steps=300)(rows))
    best = own.geometric_median(rows, steps=5000, smoothing=1e-12)
    np.testing.assert_allclose(found / scale, best / scale, atol=1e-4)
    value = own.sum_of_distances(rows, found)
    for direction in rng.normal(size=(20, 4)):
        assert value <= own.sum_of_distances(rows, found + 1e-2 * scale * direction)


@pytest.mark.parametrize("length", [10.0, 1e3, 1e6, 1e20])
def test_far_rows_pull_with_a_unit_each(length: float) -> None:
    """Four of eleven rows move the median by their direction alone, however far they are."""
    rng = np.random.default_rng(1)
    honest = rng.normal(size=(7, 3)).astype(np.float32)
    towards = np.array([1.0, 0, 0], np.float32)
    rows = np.concatenate([np.tile(length * towards, (4, 1)), honest])
    result = np.float64(geometric_median(steps=300)(rows))
    expected = own.geometric_median(rows, steps=3000)
    np.testing.assert_allclose(result, expected, atol=1e-3)
    assert np.linalg.norm(result) < 5


def test_gradients_of_the_geometric_median() -> None:
    """Of many steps: the implicit ones, sum P_i dz = sum P_i du_i, P_i = (I - e e^T) / |u_i - z|."""
    rng = np.random.default_rng(2)
    rows = rng.normal(size=(6, 3))
    with jax.enable_x64(True):
        z = geometric_median(steps=400, smoothing=1e-9)(jnp.asarray(rows))
        jacobian = jax.jacobian(geometric_median(steps=400, smoothing=1e-9))(jnp.asarray(rows))
    z = np.asarray(z)
    parts = []
    for row in rows:
        e = (row - z) / np.linalg.norm(row - z)
        parts.append((np.eye(3) - np.outer(e, e)) / np.linalg.norm(row - z))
    inverse = np.linalg.inv(sum(parts))
    for i, part in enumerate(parts):
        np.testing.assert_allclose(jacobian[:, i], inverse @ part, atol=1e-6)


def test_reverse_mode_holds_one_step() -> None:
    rows = jnp.asarray(np.random.default_rng(3).normal(size=(20, 500)), jnp.float32)

    def temporaries(steps: int) -> int:
        rule = geometric_median(steps=steps)
        slope = jax.jit(jax.grad(lambda x: jnp.sum(rule(x))))
        return slope.lower(rows).compile().memory_analysis().temp_size_in_bytes

    assert temporaries(60) - temporaries(10) < 50 * 500 * 4 * 3


def test_monna_without_its_client() -> None:
    rule = monna(1, 7)
    received = types.Received(
        jnp.asarray(U), jnp.ones(5), jnp.array([2, 4, 7, 8, 9]), jnp.zeros(2), jax.random.key(0)
    )
    result, _, info = rule.aggregate(received, ())
    nearest = own.monna_selection(U, 1, 2)
    assert list(np.flatnonzero(info["selected"])) == nearest
    absent = received._replace(weights=received.weights.at[2].set(0))
    result, _, info = rule.aggregate(absent, ())
    assert not np.any(info["selected"]) and np.all(result == 0)


def test_groups_follow_the_clients() -> None:
    """By id, not by row; a group nobody of which is there is absent."""
    rule = median_of_means([0, 1, 1, 2, 2, 2], base=aggregators.mean())
    received = types.Received(
        jnp.asarray(U[:3]), jnp.ones(3), jnp.array([1, 4, 5]), jnp.zeros(2), jax.random.key(0)
    )
    result, _, _ = rule.aggregate(received, rule.init(6, jnp.zeros(2)))
    np.testing.assert_allclose(result, (U[0] + (U[1] + U[2]) / 2) / 2, rtol=1e-6)  # groups 1 and 2
    with pytest.raises(ValueError, match="a group for each of the N=7 clients"):
        rule.init(7, jnp.zeros(2))
    for wrong in ([[0, 1]], [-1, 0], [0.5, 1.0], []):
        with pytest.raises(ValueError, match="median_of_means needs groups"):
            median_of_means(wrong)


GROUPS = np.arange(12) % 5
WEIGHTS = np.array([1, 0, 2, 0.5, 1, 1, 1, 3, 1, 1, 0.25, 1], np.float32)


def received(x: np.ndarray, weights: np.ndarray, ids: np.ndarray) -> types.Received:
    params = jnp.zeros(x.shape[1], x.dtype)
    return types.Received(
        jnp.asarray(x), jnp.asarray(weights), jnp.asarray(ids), params, jax.random.key(0)
    )


@pytest.mark.parametrize("x64", [False, True])
def test_median_of_means_on_nasty_matrices(x64: bool) -> None:
    """Against the definition; a deleted row is one of weight 0, the others keeping their ids."""
    rule = median_of_means(GROUPS)
    with jax.enable_x64(x64):
        call = jax.jit(lambda r: rule.aggregate(r, rule.init(12, r.params))[0])
        for what, x in ref.nasty_matrices(12, 5, np.random.default_rng(6)).items():
            x = x.astype(np.float64 if x64 else np.float32)
            for w in (np.ones(12, np.float32), WEIGHTS, np.zeros(12, np.float32)):
                result = call(received(x, w, np.arange(12)))
                expected = own.median_of_means(x, GROUPS, w)
                scale = np.max(np.abs(expected))
                atol = (1e-12 if x64 else 1e-5) * scale
                np.testing.assert_allclose(result, expected, rtol=0, atol=atol, err_msg=what)
                if not np.any(w):
                    continue
                kept = w > 0
                fewer = rule.aggregate(received(x[kept], w[kept], np.arange(12)[kept]), ())[0]
                np.testing.assert_allclose(fewer, expected, rtol=0, atol=atol, err_msg=what)


def test_cao_lai_on_nasty_matrices() -> None:
    """With the server's own update in the average."""
    rule = cao_lai(SERVER, ROOT, 2.0)
    call = jax.jit(lambda x, w: rule(x, w))
    for what, x in ref.nasty_matrices(12, 5, np.random.default_rng(7)).items():
        for w in (np.ones(12, np.float32), WEIGHTS, np.zeros(12, np.float32)):
            expected = own.cao_lai(x, server_vector(5), 2.0, w)
            np.testing.assert_allclose(call(x, w), expected, rtol=0, atol=1e-5, err_msg=what)


def test_a_base_with_clients_of_its_own_reports_none() -> None:
    rule = median_of_means(np.arange(5), base=aggregators.krum(1))
    received = types.Received(
        jnp.asarray(U), jnp.ones(5), jnp.arange(5), jnp.zeros(2), jax.random.key(0)
    )
    assert "selected" not in rule.aggregate(received, ())[2]


# --- (f, kappa)-robustness (Allouah et al., "Fixing by Mixing", AISTATS 2023) ------------------------


@pytest.mark.parametrize(
    ("name", "rule", "kappa"),
    [
        ("trimmed mean", aggregators.trimmed_mean, lambda r: 6 * r * (1 + r)),
        ("krum", aggregators.krum, lambda r: 6 * (1 + r)),
        ("geometric median", lambda f: geometric_median(steps=200), lambda r: 4 * (1 + r) ** 2),
        ("median", lambda f: aggregators.median(), lambda r: 4 * (1 + r) ** 2),
    ],
)
def test_robustness_coefficients(name: str, rule: object, kappa: object) -> None:
    """|F - mean_S|^2 <= kappa / |S| sum_S |u_i - mean_S|^2 for every S of n - f rows (from memory of the
    paper), whatever the other rows are."""
    n, f = 9, 2
    bound = kappa(f / (n - 2 * f))
    call = jax.jit(lambda rows: rule(f)(rows))
    rng = np.random.default_rng(4)
    for far in (1.0, 3.0, 1e3, 1e6):
        honest = rng.normal(size=(n - f, 3))
        bad = far * (rng.normal(size=(f, 3)) if far < 1e3 else np.ones((f, 3)))
        rows = np.concatenate([bad, honest]).astype(np.float32)
        result = np.float64(call(rows))
        for chosen in itertools.combinations(range(n), n - f):
            own_rows = np.float64(rows[list(chosen)])
            middle = own_rows.mean(axis=0)
            spread = np.mean(np.sum((own_rows - middle) ** 2, axis=1))
            assert np.sum((result - middle) ** 2) <= bound * spread * (1 + 1e-4), (
                name,
                far,
                chosen,
            )
