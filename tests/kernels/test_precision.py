"""Numbers that attackers choose: rules that compare rows must choose as exact arithmetic does.

Expected values are computed by subtraction in ``numpy.longdouble``, whose range and digits no matrix
here exhausts. Scores and distances may differ from them by what the docstrings promise.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference as ref

from fedjax_robust.aggregators import bulyan, krum, multi_krum, sybil_check
from fedjax_robust.aggregators.bulyan import bulyan_selection
from fedjax_robust.aggregators.krum import root_krum_scores, root_krum_scores_without_each
from fedjax_robust.attacks.fang_krum import _Search
from fedjax_robust.kernels import distances as kernel
from fedjax_robust.kernels.distances import pairwise_distances, pairwise_squared_distances
from fedjax_robust.kernels.norms import direction_and_length, power_of_two, safe_norm, weighted_mean
from fedjax_robust.kernels.ranks import trimmed_mean_of_present
from fedjax_robust.types import Received

N, D, F = 20, 200, 6
PROMISED = 1e-3  # relative error of a distance
SCORE = 1.004  # a chosen row's score, in units of the lowest one: the square of two such errors

EVERYBODY = np.ones(N, bool)
many_distances = jax.jit(jax.vmap(lambda x: pairwise_distances(x, jnp.ones(x.shape[0], bool))))


def exact_squares(x: np.ndarray) -> np.ndarray:
    x = x.astype(np.longdouble)
    return np.array([np.sum((x - row) ** 2, axis=1) for row in x])


def exact_scores(squares: np.ndarray, f: int) -> np.ndarray:
    n = len(squares)
    others = np.sort(np.where(np.eye(n, dtype=bool), np.inf, squares), axis=1)
    return np.sum(others[:, : max(n - f - 2, 1)], axis=1)


def relative_errors(distances: np.ndarray, x: np.ndarray) -> np.ndarray:
    """Of all pairs; where the exact distance is 0, the distance itself."""
    exact = np.sqrt(exact_squares(x))
    assert np.all(np.isfinite(distances))
    error = np.abs(distances.astype(np.longdouble) - exact)
    return np.where(exact > 0, error / np.where(exact > 0, exact, 1), distances)


def attacked(
    rng: np.random.Generator, scale: float, spread: float, size: float, side: str
) -> np.ndarray:
    """Rows 0 .. F - 2 drown the others' distances, row F - 1 is a bit off, the rest is honest."""
    base = rng.normal(size=D)
    x = base + spread * rng.normal(size=(N, D))
    x[F - 1] = x[F] + 5 * spread * rng.normal(size=D)
    if side == "one":
        x[: F - 1] = -size * base
    elif side == "two":
        x[: F - 1] = size * np.outer([-1, -1, -1, 2, 2], base)
    else:
        x[: F - 1] = -size * (base + 1e-5 * rng.normal(size=(F - 1, D)))
    return (scale * x).astype(np.float32)


GRID = list(
    itertools.product(
        [1e-30, 1e-20, 1.0, 1e19, 1e30],
        [1e-1, 1e-2, 1e-3, 1e-4, 1e-5, 1e-6],
        [1, 3, 9, 1e3, 1e6],
        ["one", "two", "cloud"],
    )
)


@pytest.fixture(scope="module")
def attacks() -> tuple[np.ndarray, np.ndarray]:
    """Matrices of the whole grid, and the exact squares of their distances."""
    rng = np.random.default_rng(0)
    x = np.array([attacked(rng, *case) for case in GRID for _ in range(2)])
    return x, np.array([exact_squares(matrix) for matrix in x])


# --- Distances -----------------------------------------------------------------------------------


def test_distances_beside_attackers(attacks: tuple) -> None:
    x, squares = attacks
    exact = np.sqrt(squares)
    error = np.abs(np.asarray(many_distances(x)) - exact)
    assert np.all(error <= PROMISED * exact)


def odd_matrices() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(1)
    noise, base = rng.normal(size=(N, D)), rng.normal(size=D)
    halves = np.where(np.arange(N) % 2, 1000.0, -1000.0)[:, None]
    copies = base + 1e-4 * noise
    copies[::3] = copies[0]
    levels = sum(10.0**-k * rng.choice([-1, 1], (N, 1)) * rng.normal(size=D) for k in range(7))
    constant = 1e-22 * noise
    constant[:, 0] = 1.0
    one_off = np.zeros((N, D))
    one_off[:, 7] = 1 + 1e-6 * np.arange(N)
    matrices = {
        "two clusters": halves + 0.01 * noise,
        "five clusters": 1000.0 * np.eye(5, D)[np.arange(N) % 5] + 0.001 * noise,
        "copies": copies,
        "all the same": np.tile(base, (N, 1)),
        "zero": np.zeros((N, D)),
        "half of them zero": np.where(np.arange(N)[:, None] % 2, 1e-30 * noise, 0),
        "clusters in clusters": levels,
        "halved again and again": 2.0 ** -np.arange(N)[:, None] * base,
        "closer and closer": base + 2.0 ** -np.arange(N)[:, None] * noise[0],
        "any scale": 10.0 ** rng.uniform(-30, 30, size=(N, 1)) * noise,
        "a large coordinate in common": constant,
        "one coordinate": one_off,
    }
    return {what: matrix.astype(np.float32) for what, matrix in matrices.items()}


def test_distances_of_odd_matrices() -> None:
    matrices = odd_matrices()
    results = np.asarray(many_distances(np.array(list(matrices.values()))))
    for (what, x), distances in zip(matrices.items(), results, strict=True):
        assert np.max(relative_errors(distances, x)) <= PROMISED, what
        np.testing.assert_array_equal(distances, distances.T)
        np.testing.assert_array_equal(np.diagonal(distances), 0)


@pytest.mark.parametrize("products", [0, 1])
def test_distances_row_by_row(monkeypatch: pytest.MonkeyPatch, products: int) -> None:
    """What is left after the products of matrices; usually nothing is."""
    monkeypatch.setattr(kernel, "_PRODUCTS", products)
    compiled = jax.jit(jax.vmap(kernel._accurate_distances.__wrapped__, in_axes=(0, None)))
    matrices = odd_matrices()
    results = np.asarray(compiled(np.array(list(matrices.values())), EVERYBODY))
    for (what, x), distances in zip(matrices.items(), results, strict=True):
        assert np.max(relative_errors(distances, x)) <= PROMISED, what


def test_distances_of_ordinary_rows_take_one_product(monkeypatch: pytest.MonkeyPatch) -> None:
    """Else they would cost twice as much: without further passes the result is the same."""
    rng = np.random.default_rng(2)
    x = (0.3 * rng.normal(size=D) + rng.normal(size=(N, D))).astype(np.float32)
    x[:4] *= -3
    monkeypatch.setattr(kernel, "_PRODUCTS", 0)
    monkeypatch.setattr(kernel, "_BELIEVED", 0.2)
    steps = []
    while_loop = jax.lax.while_loop

    def counted(condition: Callable, body: Callable, carry: tuple) -> tuple:
        result = while_loop(condition, body, carry)
        steps.append(result[0] - carry[0])
        return result

    monkeypatch.setattr(jax.lax, "while_loop", counted)
    distances = kernel._accurate_distances.__wrapped__(jnp.asarray(x), jnp.asarray(EVERYBODY))
    assert steps == [0, 0]
    assert np.max(relative_errors(np.asarray(distances), x)) < 1e-6


def test_distances_of_long_rows() -> None:
    """The rounding of long sums."""
    rng = np.random.default_rng(3)
    base = rng.normal(size=200_000)
    x = (base + 1e-3 * rng.normal(size=(6, len(base)))).astype(np.float32)
    x[0] = -9 * base
    distances = jax.jit(pairwise_distances)(x, np.ones(6, bool))
    assert np.max(relative_errors(np.asarray(distances), x)) <= PROMISED


@pytest.mark.parametrize("dtype", [jnp.float16, jnp.bfloat16])
def test_distances_of_low_precision(dtype: jnp.dtype) -> None:
    """They are exact for the numbers given: float16 ends at 65504, and its squares at 255."""
    rng = np.random.default_rng(4)
    for scale in (1e-3, 1.0, 1e3):
        x = jnp.asarray(scale * (2 + 0.1 * rng.normal(size=(N, D))), dtype)
        x = x.at[:5].set(-9 * x[0])
        distances = pairwise_distances(x, EVERYBODY)
        assert distances.dtype == jnp.float32
        given = np.asarray(x.astype(jnp.float32))
        assert np.max(relative_errors(np.asarray(distances), given)) <= PROMISED


def test_absent_and_infinite_distances() -> None:
    x = odd_matrices()["copies"][:6].copy()
    x[2], x[4] = 3e38, np.nan
    present = np.array([True, False, True, True, False, True])
    distances = np.asarray(jax.jit(pairwise_distances)(x, present))
    near = np.array([0, 3, 5])
    assert np.max(relative_errors(distances[np.ix_(near, near)], x[near])) <= PROMISED
    far = distances[np.ix_(near, [1, 2, 4])]
    assert np.all(np.isinf(far))
    np.testing.assert_array_equal(np.diagonal(distances), np.where(present, 0, np.inf))
    # An absent row's content does not matter, whatever it is.
    for value in (0, np.inf, -1e30):
        x[1], x[4] = value, value
        np.testing.assert_array_equal(jax.jit(pairwise_distances)(x, present), distances)
    squares = np.asarray(pairwise_squared_distances(x, present))
    np.testing.assert_allclose(squares, distances**2, rtol=1e-6)


# --- What the rules choose -------------------------------------------------------------------------


def apply(rule: Callable, x: np.ndarray) -> np.ndarray:
    """The rows that it selects in each matrix, (k, n) bool."""

    def select(updates: jax.Array) -> jax.Array:
        n, d = updates.shape
        params = jnp.zeros(d, updates.dtype)
        received = Received(updates, jnp.ones(n), jnp.arange(n), params, jax.random.key(0))
        return rule.aggregate(received, rule.init(n, params))[2]["selected"]

    return np.asarray(jax.jit(jax.vmap(select))(x))


def test_krum_beside_attackers(attacks: tuple) -> None:
    x, squares = attacks
    chosen = apply(krum(F), x)
    for matrix, row in zip(squares, chosen, strict=True):
        scores = exact_scores(matrix, F)
        (i,) = np.flatnonzero(row)
        assert i >= F
        assert scores[i] <= SCORE * np.min(scores)


@pytest.mark.parametrize("m", [None, 5])
def test_multi_krum_beside_attackers(attacks: tuple, m: int | None) -> None:
    x, squares = attacks
    chosen = apply(multi_krum(F, m), x)
    for matrix, rows in zip(squares, chosen, strict=True):
        scores = exact_scores(matrix, F)
        number = N - F if m is None else m
        assert np.sum(rows) == number
        assert not np.any(rows[:F])
        assert np.max(scores[rows]) <= SCORE * np.sort(scores)[number - 1]


def test_every_choice_of_bulyan_beside_attackers(attacks: tuple) -> None:
    x, squares = attacks
    f = 4
    theta = N - 2 * f

    def select(x: jax.Array) -> jax.Array:
        return bulyan_selection(pairwise_distances(x, EVERYBODY), jnp.asarray(EVERYBODY), f, theta)[
            0
        ]

    orders = np.asarray(jax.jit(jax.vmap(select))(x))
    np.testing.assert_array_equal(
        np.sort(orders, axis=1), [np.flatnonzero(rows) for rows in apply(bulyan(f), x)]
    )
    for matrix, order in zip(squares, orders, strict=True):
        remaining = list(range(N))
        for row in order:
            scores = exact_scores(matrix[np.ix_(remaining, remaining)], f)
            assert scores[remaining.index(row)] <= SCORE * np.min(scores)
            remaining.remove(row)


def test_scores_at_any_scale() -> None:
    """Also those of each row left out, where rows differ by 60 orders of magnitude."""
    rng = np.random.default_rng(5)
    for f in (0, 3, 6):
        x = 10.0 ** rng.uniform(-30, 30, size=(N, 1)) * rng.normal(size=(N, 30))
        x = x.astype(np.float32)
        distances = pairwise_distances(x, EVERYBODY)
        squares = exact_squares(x)
        scores = np.sqrt(exact_scores(squares, f)).astype(float)
        np.testing.assert_allclose(root_krum_scores(distances, EVERYBODY, f), scores, rtol=1e-3)
        without = np.asarray(root_krum_scores_without_each(distances, EVERYBODY, f))
        for i in range(N):
            kept = np.arange(N) != i
            scores = np.sqrt(exact_scores(squares[np.ix_(kept, kept)], f)).astype(float)
            np.testing.assert_allclose(without[i, kept], scores, rtol=1e-3)
            assert np.isinf(without[i, i])


def test_choices_at_the_ends_of_float32() -> None:
    """Squares would be 0 or infinite, and the first row, which is malicious by convention, chosen."""
    rng = np.random.default_rng(6)
    x = rng.normal(size=(N, 30))
    x[:F] *= 4
    expected = ref.krum_index(x, F)
    several = ref.multi_krum_selection(x, F)
    assert expected >= F
    scaled = np.array([scale * x for scale in (1e-33, 1e-25, 1e-20, 3e18, 1e25, 1e34)], np.float32)
    np.testing.assert_array_equal(apply(krum(F), scaled), [np.arange(N) == expected] * 6)
    np.testing.assert_array_equal(apply(multi_krum(F), scaled), [np.isin(range(N), several)] * 6)
    half = jnp.asarray(30 * x, jnp.float16)
    result = krum(F)(half)
    assert result.dtype == jnp.float16
    np.testing.assert_array_equal(result, half[expected])


def test_sybils_of_close_directions() -> None:
    """Cosines of 1 - 1e-8 and more are told apart, at any length."""
    rng = np.random.default_rng(7)
    base = rng.normal(size=D)
    x = rng.normal(size=(8, D))
    for row, angle in [(0, 0.0), (1, 1e-4), (2, 0.01), (3, -0.01)]:
        x[row] = base + angle * rng.normal(size=D)
    x *= 10.0 ** np.array([-30, 30, 0, 3, 1, -5, 20, 7.0])[:, None]
    x = x.astype(np.float32)
    wide = x.astype(np.longdouble)
    unit = wide / np.sqrt(np.sum(wide**2, axis=1, keepdims=True))
    apart = 0.5 * exact_squares(unit) + 4 * np.eye(8)
    for limit in (2.0**-24, 2.0**-13, 2.0**-6):
        expected = np.min(apart, axis=1) >= limit
        assert 0 < np.sum(~expected) < 8
        got = apply(sybil_check(1 - limit), x[None])[0]
        np.testing.assert_array_equal(got, expected)
    # No cosine is greater than 1, not even that of a copy.
    assert np.all(apply(sybil_check(1.0), x[[0, 0, 0, 1, 2]][None]))


# --- Fang's searches -------------------------------------------------------------------------------


@jax.jit
def lambda_of(
    honest: jax.Array, s: jax.Array, copies: jax.Array, f: jax.Array, threshold: jax.Array
) -> tuple[jax.Array, jax.Array]:
    search = _Search(honest, jnp.ones(honest.shape[0], bool), s)
    return search.largest(copies, f, threshold)


def exact_search(honest: np.ndarray, s: np.ndarray, c: int, f: int, threshold: float) -> tuple:
    """lambda, found, and by which factor of scores the closest decision was made: eq. 2 and 3."""
    honest, s = honest.astype(np.longdouble), s.astype(np.longdouble)
    n, d = len(honest) + c, honest.shape[1]
    own = exact_squares(honest)
    closest = np.sort(np.where(np.eye(n - c, dtype=bool), np.inf, own), axis=1)[:, : n - f - 2]
    least = np.min(np.sum(closest, axis=1))
    reach = np.max(np.sqrt(np.sum(honest**2, axis=1)))
    lam = np.sqrt(least / ((n - c - f - 1) * d)) + reach / np.sqrt(np.longdouble(d))
    margin = np.inf
    while True:
        rows = np.concatenate([np.tile(-lam * s, (c, 1)), honest])
        scores = exact_scores(exact_squares(rows), f)
        ours, theirs = np.min(scores[:c]), np.min(scores[c:])
        margin = min(margin, max(ours / theirs, theirs / ours))
        if ours <= theirs:
            return float(lam), True, margin
        lam /= 2
        if lam < threshold:
            return float(lam), False, margin


def test_fangs_search_at_any_scale_and_spread() -> None:
    rng = np.random.default_rng(8)
    c, compared = 6, 0
    for scale, spread in itertools.product(
        [1e-30, 1e-20, 1.0, 1e20, 1e30], [1.0, 1e-1, 1e-2, 1e-3, 1e-4]
    ):
        for _ in range(4):
            honest = scale * (0.3 * rng.normal(size=D) + spread * rng.normal(size=(N - c, D)))
            honest = honest.astype(np.float32)
            s = np.where(honest[0] > 0, 1, -1).astype(np.float32)
            threshold = 1e-6 * scale
            expected, found, margin = exact_search(honest, s, c, c, threshold)
            if margin > 1.01:
                compared += 1
                lam, got = lambda_of(honest, s, c, c, np.float32(threshold))
                assert got == found
                np.testing.assert_allclose(lam, expected, rtol=1e-4)
    assert compared > 50


def test_fangs_search_where_updates_lie_along_the_direction() -> None:
    """Updates that are nearly -lambda s: their distances are the small difference of large squares."""
    rng = np.random.default_rng(9)
    s = rng.choice([-1, 1], size=D).astype(np.float32)
    honest = (-s * 0.75 + 1e-4 * rng.normal(size=(N - 6, D))).astype(np.float32)
    search = _Search(jnp.asarray(honest), jnp.ones(N - 6, bool), jnp.asarray(s))
    for lam in (0.75, 0.7501, 0.75 + 1e-6):
        crafted = -np.longdouble(np.float32(lam)) * s
        exact = np.sum((honest.astype(np.longdouble) - crafted) ** 2, axis=1)
        scaled = np.float32(lam) * search.inverse
        squares = search.length * jnp.square(scaled + search.along) + search.across
        np.testing.assert_allclose(squares * search.unit**2, exact.astype(float), rtol=1e-2)


# --- Norms, means ----------------------------------------------------------------------------------


def test_powers_of_two() -> None:
    values = [1.0, 3.0, 0.75, 1e-30, 3e38, 0.0, np.inf, np.nan, -2.0, 1e-45]
    power, inverse = power_of_two(jnp.asarray(values, jnp.float32))
    expected = [1, 2, 0.5, 2.0**-100, 2.0**126, 1, 1, 1, 1, 1]
    np.testing.assert_array_equal(power, np.array(expected, np.float32))
    np.testing.assert_array_equal(inverse, 1 / np.array(expected, np.float32))
    with jax.enable_x64(True):
        power, inverse = power_of_two(jnp.asarray([3e300, 1e-300, 5.0]))
        np.testing.assert_array_equal(np.log2(power) % 1, 0)
        np.testing.assert_array_equal(power * inverse, 1)
        parts = np.array([3e300, 1e-300, 5.0]) / power
        assert np.all((parts >= 1) & (parts < 2))


def test_norms_at_any_scale() -> None:
    x = np.random.default_rng(10).normal(size=(5, D))
    lengths = np.linalg.norm(x, axis=1)
    for scale in (1e-30, 1e-25, 1e-19, 1.0, 1e19, 1e30, 1e37):
        scaled = (scale * x).astype(np.float32)
        np.testing.assert_allclose(safe_norm(scaled), scale * lengths, rtol=1e-6)
        np.testing.assert_allclose(
            safe_norm(scaled, axis=0), scale * np.linalg.norm(x, axis=0), rtol=1e-6
        )
        slopes = jax.grad(lambda x: jnp.sum(safe_norm(x)))(scaled)
        np.testing.assert_allclose(slopes, x / lengths[:, None], rtol=1e-4, atol=1e-6)
    half = jnp.asarray(300 * x, jnp.float16)  # whose squares are infinite
    unit, length = direction_and_length(half)
    assert unit.dtype == length.dtype == jnp.float16
    np.testing.assert_allclose(length, 300 * lengths, rtol=2e-3)
    np.testing.assert_allclose(unit, x / lengths[:, None], atol=1e-3)
    small = jnp.asarray(1e-3 * x, jnp.float16)
    np.testing.assert_allclose(safe_norm(small), 1e-3 * lengths, rtol=1e-2)


def test_means_with_any_weights_and_few_digits() -> None:
    x = np.random.default_rng(11).normal(size=(4, 3)).astype(np.float32)
    for weights in (
        [1, 2, 3, 4],
        [1e38, 2e38, 3e38, 3.4e38],
        [1e-37, 3e-37, 2e-38, 0],
        [1, 1e-30, 0, 0],
    ):
        expected = np.average(x.astype(float), axis=0, weights=np.array(weights, float))
        got = weighted_mean(x, np.array(weights, np.float32))
        np.testing.assert_allclose(got, expected, rtol=1e-5)
    # 3000 ones sum to 2048 in float16, where 2049 does not exist.
    ones = jnp.ones((3001, 2), jnp.float16)
    np.testing.assert_array_equal(weighted_mean(ones, ones[:, 0]), [1, 1])
    np.testing.assert_array_equal(trimmed_mean_of_present(ones, ones[:, 0] > 0, 10), [1, 1])
    many = jnp.full((5, 2), 60000, jnp.float16)
    np.testing.assert_array_equal(weighted_mean(many, jnp.ones(5)), [60000, 60000])
    np.testing.assert_array_equal(trimmed_mean_of_present(many, jnp.ones(5, bool), 1), [60000] * 2)


# --- Sweeps over f ---------------------------------------------------------------------------------


SWEPT = {
    "krum": (krum, ref.krum),
    "multi_krum": (multi_krum, ref.multi_krum),
    "multi_krum m": (lambda f: multi_krum(f, m=3), lambda x, f: ref.multi_krum(x, f, 3)),
    "bulyan": (bulyan, ref.bulyan),
}


@pytest.mark.parametrize("name", SWEPT)
def test_one_program_for_all_f(name: str) -> None:
    make, reference = SWEPT[name]
    x = np.random.default_rng(1).normal(size=(11, 5)).astype(np.float32)
    results = jax.jit(jax.vmap(lambda f: make(f)(x)))(jnp.arange(3))
    expected = [reference(x, f) for f in range(3)]
    np.testing.assert_allclose(results, expected, rtol=1e-5, atol=1e-6)
    assert np.max(np.abs(expected[0] - expected[2])) > 0.01
    # What is known is checked, also as an array.
    with pytest.raises(ValueError, match=r"needs n (>|>=) .* got n=11, f=5"):
        make(jnp.int32(5))(x)
    with pytest.raises(ValueError, match="needs f >= 0, got f=-1"):
        make(np.array(-1))


def test_one_program_for_all_m() -> None:
    x = np.random.default_rng(13).normal(size=(9, 5)).astype(np.float32)
    results = jax.jit(jax.vmap(lambda m: multi_krum(2, m)(x)))(jnp.arange(1, 8))
    expected = [ref.multi_krum(x, 2, m) for m in range(1, 8)]
    np.testing.assert_allclose(results, expected, rtol=1e-5, atol=1e-6)
