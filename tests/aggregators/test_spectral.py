"""MDA, SMEA, DnC, CAF, mean of medians, FLAME and LASA by hand, at all scales, and where they differ from
other people's code."""

import functools
import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference as ref
from rules_spectral import TASK, flattened, leaves_of
from sklearn.cluster import HDBSCAN

import fedjax_robust as fr
from fedjax_robust.aggregators import (
    caf,
    dnc,
    flame,
    lasa,
    mda,
    mean,
    mean_of_medians,
    median,
    smea,
)
from fedjax_robust.aggregators.lasa import _sparsified, _usual
from fedjax_robust.kernels import spectra, subsets

# The first row is malicious.
TOY = np.array([(10, -8), (1, 0), (0, 2), (1, 1), (3, 1)], np.float32)
WITHOUT_FIRST = [1.25, 1.0]
N, D = 12, 5
SOME_ABSENT = np.array([1, 0, 2, 0.5, 1, 1, 1, 3, 1, 0, 0.25, 1], np.float32)


@functools.cache
def compiled(rule):
    def call(updates, weights, params, key):
        received = fr.Received(updates, weights, jnp.arange(len(updates)), params, key)
        result, _, info = rule.aggregate(received, rule.init(len(updates), params))
        return result, info

    return jax.jit(call)


def aggregate(rule, x, weights=None, params=None, key=0):
    weights = np.ones(len(x), np.float32) if weights is None else weights
    params = np.zeros(x.shape[1], np.float32) if params is None else np.asarray(params, np.float32)
    result, info = compiled(rule)(x, weights, params, jax.random.key(key))
    return np.asarray(result), {name: np.asarray(values) for name, values in info.items()}


def rows_of(info):
    return list(np.flatnonzero(info["selected"]))


def random_matrix(seed, n=N, d=D):
    return (0.5 + np.random.default_rng(seed).normal(size=(n, d))).astype(np.float32)


# --- By hand -------------------------------------------------------------------------------------

RADIUS_3 = 3 / (2 * math.sqrt(2 * math.log(2 * 5 / 0.6) / 7))  # sigma for T = 3 with n = 5, B = 7
BY_HAND = {
    "mda": mda(1),
    "smea": smea(1),
    "dnc": dnc(1),
    "mean_of_medians": mean_of_medians(1, RADIUS_3, 7, delta=0.6),
}


@pytest.mark.parametrize("name", BY_HAND)
def test_selections_by_hand(name):
    result, info = aggregate(BY_HAND[name], TOY)
    assert rows_of(info) == [1, 2, 3, 4]
    np.testing.assert_allclose(result, WITHOUT_FIRST, rtol=1e-6)


def test_of_equal_diameters_the_first_subset_wins():
    """What ByzFL prints for its three rows: the pairs (0, 1) and (1, 2) are equally close."""
    rows = np.arange(1.0, 10, dtype=np.float32).reshape(3, 3)
    np.testing.assert_allclose(mda(1)(rows), [2.5, 3.5, 4.5])
    np.testing.assert_allclose(mda(1)(rows, [1, 0, 1]), [1.0, 2.0, 3.0])  # of one row each
    # In a line of 5, without two: 0 1 2 before 1 2 3 before 2 3 4.
    line = np.arange(5, dtype=np.float32)[:, None]
    np.testing.assert_allclose(mda(2)(line), [1.0])
    np.testing.assert_allclose(mda(2)(line[::-1]), [3.0])


def products(x):
    return spectra.products_from_median(jnp.asarray(x), jnp.ones(len(x), bool))


def test_top_eigenvalues_by_hand():
    units, size = products(TOY)
    unit = jnp.max(size)
    together = spectra.in_one_unit(units, size, unit)
    unit = float(unit)
    values = []
    for left_out in range(5):
        shares = (np.arange(5) != left_out) / 4
        matrix = spectra.covariance(together, shares)
        values.append(float(jnp.linalg.eigvalsh(matrix)[-1]) * unit**2)
    without_others = [32.0989066397, 30.3453583689, 27.3467067409, 31.3875956887]
    np.testing.assert_allclose(sorted(values), sorted([1.2687959534, *without_others]), rtol=1e-6)
    assert np.argmin(values) == 0
    variance, place = spectra.along_top(together, jnp.full(5, 0.2))
    assert float(variance) * unit**2 == pytest.approx(26.0802499976, rel=1e-6)
    place = np.asarray(place, np.float64) * unit
    scores = [100.8278904805, 3.909468956, 16.8162110131, 7.2175547359, 1.6301248023]
    np.testing.assert_allclose((place - place.mean()) ** 2, scores, rtol=2e-6)
    np.testing.assert_allclose(
        np.array(ref.dnc_scores(TOY.astype(np.float64)), float), scores, rtol=1e-9
    )


def test_caf_by_hand():
    """24 steps: the row that is out since the first one is what slows the others' fall down."""
    result, info = aggregate(caf(1), TOY)
    np.testing.assert_allclose(result, [1.2123208507, 0.8605687109], rtol=2e-6)
    weights, values = ref.caf_weights(TOY, 1)
    np.testing.assert_allclose([values[0], values[-1]], [26.0802499976, 0.9662729987], rtol=1e-9)
    assert len(values) == 24 and info["ended"]
    np.testing.assert_allclose(info["trust"], weights, rtol=1e-5)
    assert rows_of(info) == [1, 2, 3, 4]
    assert not aggregate(caf(1, steps=23), TOY)[1]["ended"]
    np.testing.assert_allclose(caf(1)(np.arange(1.0, 10).reshape(3, 3)), [4, 5, 6])  # ByzFL's


def test_flame_by_hand():
    rows = np.array([(-1, 0), (1, 0), (1, 0.2), (2, -0.1), (1, 0.5), (0, 1)], np.float32)
    result, info = aggregate(flame(noise=0.0), rows)
    np.testing.assert_allclose(result, [0.9755540098, 0.1498169634], rtol=1e-6)
    assert rows_of(info) == [1, 2, 3, 4]
    assert list(np.flatnonzero(info["clipped"])) == [2, 3, 4]
    s = 1.0099019514  # the median length; 1.0198 and 1 are the middle ones
    noise = math.sqrt(2 * math.log(1.25 / 0.01)) / 3000
    assert noise * s == pytest.approx(0.0010460940, rel=1e-6)
    own, _ = jax.random.split(jax.random.key(3))
    noisy, _ = aggregate(flame(noise=10.0), rows, key=3)
    drawn = np.asarray(jax.random.normal(own, (2,)))
    np.testing.assert_allclose(noisy - result, 10 * s * drawn, rtol=1e-5)
    assert not np.any(aggregate(flame(noise=10.0), rows, np.zeros(6, np.float32))[0])


LASA_ROWS = np.array(
    [
        (1, 2, -1, 3, 0.1, 0.2),
        (1, 1.5, -1, 2.5, 0.1, 0.1),
        (1.2, 2, -1, 3, 0.2, 0.2),
        (-6, -6, 6, -8, 0.1, 0.2),
    ],
    np.float32,
)


def test_lasa_by_hand():
    leaves = [LASA_ROWS[:, :4].reshape(4, 2, 2), LASA_ROWS[:, 4:]]
    sparse = [np.asarray(leaf) for leaf in _sparsified([jnp.asarray(leaf) for leaf in leaves], 0.3)]
    kept = np.zeros((4, 4))
    kept[:, 3] = [3, 2.5, 3, -8]  # one entry of four: the k-th largest itself is dropped
    np.testing.assert_array_equal(sparse[0].reshape(4, 4), kept)
    np.testing.assert_array_equal(sparse[1], leaves[1])
    lengths = [0, 0.2225659536, 0, 2.2256595363], [0, 1.6329931619, 1.1769948777, 0]
    signs = [0, 0, 0, 2.3094010768], None
    scores = ref.lasa_scores(leaves, 0.3)
    for (mz_l, mz_p, x, p), by_length, by_sign in zip(scores, lengths, signs, strict=True):
        np.testing.assert_allclose(mz_l, by_length, atol=1e-6)
        values = [(jnp.asarray(x, jnp.float32), by_length)]
        if by_sign is None:
            assert np.all(np.isnan(mz_p))
            assert _usual(jnp.asarray(p), jnp.ones(4, bool), 1.0)[1]  # all equal: everybody passes
        else:
            np.testing.assert_allclose(mz_p, by_sign, atol=1e-6)
            values.append((jnp.asarray(p, jnp.float32), by_sign))
        for x, expected in values:
            limits = {s * (1 + e) for s in expected if s for e in (-1e-5, 1e-5)}
            for limit in limits:
                usual, equal = _usual(x, jnp.ones(4, bool), limit)
                np.testing.assert_array_equal(usual, np.array(expected) < limit)
                assert not equal
    result, info = aggregate(lasa(TASK), LASA_ROWS)
    expected, counts = ref.lasa(LASA_ROWS, leaves_of)
    np.testing.assert_allclose(result, flattened(expected), rtol=1e-5)
    np.testing.assert_array_equal(info["leaves"], counts)
    np.testing.assert_array_equal(counts, [2, 2, 2, 1])
    np.testing.assert_allclose(
        result[:2], np.mean(aggregate_clipped(LASA_ROWS)[:3, :2], 0), rtol=1e-5
    )


def aggregate_clipped(rows):
    """The dense rows, at most as long as the median; not the sparse copies."""
    lengths = np.linalg.norm(rows, axis=1)
    return rows * np.minimum(1, np.median(lengths) / lengths)[:, None]


# --- Variants ------------------------------------------------------------------------------------


@pytest.mark.parametrize("weights", [None, SOME_ABSENT], ids=["all", "some"])
def test_dnc_draws_coordinates(weights):
    rule = dnc(3, iterations=3, coordinates=2, c=0.5)
    for seed in range(4):
        x = random_matrix(seed, d=7)
        x[:2] += 3
        result, info = aggregate(rule, x, weights, key=seed)
        keys = [jax.random.fold_in(jax.random.key(seed), i) for i in range(3)]
        drawn = [np.asarray(jax.random.choice(key, 7, (2,), replace=False)) for key in keys]
        expected = ref.dnc_selection(x, 3, weights, 0.5, drawn)
        assert rows_of(info) == expected
        kept = np.isin(np.arange(N), expected) * (1 if weights is None else weights)
        np.testing.assert_allclose(result, ref.mean(x, kept), atol=1e-6)


def test_dnc_with_an_empty_intersection_sends_nothing():
    """Three rows, of which one stays each time: not the same one in both coordinates."""
    x = np.array([(0, 5), (1, 0), (9, 1)], np.float32)
    rule = dnc(1, iterations=9, coordinates=1, c=2.0)
    result, info = aggregate(rule, x)
    assert rows_of(info) == [] and not np.any(result)


def test_dnc_rounds_down_what_it_drops():
    x = random_matrix(0, 41, 3)

    def dropped(f, c):
        return 41 - jnp.sum(dnc(f, c=c).aggregate(received(x), ())[2]["selected"])

    f, c = np.array([10, 10, 20, 3]), np.array([0.9, 0.29, 0.35, 0.3], np.float32)
    np.testing.assert_array_equal(jax.jit(jax.vmap(dropped))(f, c), [9, 2, 7, 0])
    assert jax.jit(lambda: dropped(20, 0.35))() == 7


def received(x):
    return fr.Received(
        jnp.asarray(x),
        jnp.ones(len(x)),
        jnp.arange(len(x)),
        jnp.zeros(x.shape[1]),
        jax.random.key(0),
    )


def test_one_far_attacker_hides_another_from_one_direction():
    """What breaks DnC and CAF as published, and not the textbook filter, nor the rules of subsets."""
    x = random_matrix(1)
    x[0], x[1] = 1e9, [0, 1e3, -1e3, 0, 1e3]
    chosen = rows_of(aggregate(dnc(2), x)[1])
    assert 0 not in chosen and 1 in chosen  # and an honest row is dropped
    published = aggregate(caf(2), x)[1]
    assert published["trust"][1] > 0.5 and not published["ended"]
    textbook = aggregate(caf(2, over_removed=False), x)[1]
    assert not np.any(textbook["trust"][:2]) and textbook["ended"]
    for rule in (mda(2), smea(2)):
        assert rows_of(aggregate(rule, x)[1]) == list(range(2, N))


@pytest.mark.parametrize("weights", [None, SOME_ABSENT], ids=["all", "some"])
def test_textbook_filter(weights):
    for seed in range(4):
        x = random_matrix(seed)
        x[3:5] += 30
        result, info = aggregate(caf(2, over_removed=False), x, weights)
        expected, values = ref.caf_weights(x, 2, weights, over_removed=False)
        assert info["ended"] and len(values) <= 4
        np.testing.assert_allclose(info["trust"], expected, atol=1e-5)
        np.testing.assert_allclose(result, ref.mean(x, expected), atol=1e-5)
    assert aggregate(caf(2, steps=4, over_removed=False), x, weights)[1]["ended"]


def test_caf_without_attackers_is_the_mean():
    x = random_matrix(2)
    result, info = aggregate(caf(0), x)
    np.testing.assert_allclose(result, x.mean(axis=0), rtol=1e-5, atol=1e-6)
    assert info["ended"] and np.all(info["trust"] == 1)


@pytest.mark.parametrize("make", [dnc, caf, lambda f: mean_of_medians(f, 1.3, 4)])
def test_f_may_be_traced(make):
    x = random_matrix(3)
    many = jax.jit(jax.vmap(lambda f: make(f)(jnp.asarray(x))))(jnp.arange(4))
    np.testing.assert_allclose(many[3], aggregate(make(3), x)[0], rtol=1e-5, atol=1e-6)
    assert not np.allclose(many[0], many[3])


@pytest.mark.parametrize("make", [mda, smea], ids=["mda", "smea"])
def test_subsets_in_chunks(make, monkeypatch):
    """55 subsets, 7 at a time; ties between chunks go to the first."""
    rules = {"mda": ref.mda_selection, "smea": ref.smea_selection}
    monkeypatch.setattr(subsets, "_NUMBERS_AT_A_TIME", 7 * 11**2)

    def select(x, w):
        return make(2).aggregate(received(x)._replace(weights=w), ())[2]

    call, some_absent = jax.jit(select), SOME_ABSENT[1:]
    for seed in range(3):
        x = random_matrix(seed, 11)
        for w in (np.ones(11, np.float32), some_absent):
            assert rows_of(call(x, w)) == rules[make.__name__](x, 2, w)
    assert "length=8" in str(jax.make_jaxpr(select)(x, w))
    same = np.repeat(x[:1], 11, axis=0)
    assert rows_of(call(same, some_absent)) == [1, 2, 3, 4, 5, 6, 7]


@pytest.mark.parametrize("make", [mda, smea], ids=["mda", "smea"])
def test_no_more_rows_than_attackers_select_nobody(make):
    for count, kept in ((2, []), (3, [5])):
        weights = np.zeros(N, np.float32)
        weights[[5, 7, 9][:count]] = 1
        result, info = aggregate(make(2), random_matrix(0), weights)
        assert rows_of(info) == kept and np.any(result) == bool(kept)


def test_too_many_subsets_are_refused():
    for make in (mda, smea):
        name = make.__name__
        text = (
            f"{name} needs at most 200000 subsets of n - f rows, got C(30, 7) = 2035800; use a rule"
        )
        with pytest.raises(ValueError, match="^" + re.escape(text)):
            make(7)(np.zeros((30, 2)))
        with pytest.raises(ValueError, match=f"{name} needs n > 2f, got n=4, f=2"):
            make(2)(np.zeros((4, 2)))
        with pytest.raises(TypeError, match="known when the program is compiled"):
            jax.jit(lambda f, make=make: make(f)(np.zeros((4, 2))))(1)


@pytest.mark.parametrize(
    ("make", "text"),
    [
        (lambda: dnc(1, iterations=2), "dnc needs coordinates, the number to draw"),
        (lambda: dnc(1, coordinates=3)(TOY), "coordinates <= d, got coordinates=3, d=2"),
        (lambda: dnc(2, c=2.5)(TOY), "dnc needs c f < n, got c=2.5, f=2, n=5"),
        (lambda: dnc(3)(TOY), "dnc needs n > 2f, got n=5, f=3"),
        (lambda: caf(3)(TOY), "caf needs n > 2f, got n=5, f=3"),
        (lambda: mean_of_medians(3, 1.0, 1)(TOY), "mean_of_medians needs n > 2f, got n=5, f=3"),
        (lambda: lasa(reading(1))(TOY), "size of the task's model, got rows of shape \\(2,\\)"),
        (lambda: lasa(reading(7))(TOY), "size of the task's model, got rows of shape \\(2,\\)"),
    ],
)
def test_what_does_not_fit(make, text):
    with pytest.raises(ValueError, match=text):
        make()


def reading(size):
    """A task of so many parameters."""
    return TASK._replace(unravel=lambda p: [p[:size].reshape(size)])


@pytest.mark.parametrize("rule", [mda, smea, dnc, lambda f, base: flame(noise=0.0, base=base)])
def test_the_base_gets_the_selected_rows(rule):
    x = np.concatenate([TOY, TOY[1:] + 0.25])
    result, info = aggregate(rule(1, base=median()), x)
    rows = aggregate_clipped(x) if "clipped" in info else x
    np.testing.assert_allclose(result, np.median(rows[info["selected"]], axis=0), rtol=1e-5)
    assert 5 <= np.sum(info["selected"]) < 9


def test_mean_of_medians_takes_the_smaller_radius_if_too_few_are_left():
    """In a line 0 1 2 3 9: with T = 1.5, 1 and 2 have a majority around them, and 1 keeps three rows.
    Four are wanted: again with 2 sigma = 4, where all but 9 have one; closest to 1.5 is 1, which keeps 4.
    """
    x = np.array([0, 1, 2, 3, 9], np.float32)[:, None]
    sigma, batch = 2.0, 4**2 / 1.5**2 * 2 * math.log(10 / 0.6)
    assert rows_of(aggregate(mean_of_medians(1, sigma, batch), x)[1]) == [0, 1, 2, 3]
    assert rows_of(aggregate(mean_of_medians(2, sigma, batch), x)[1]) == [0, 1, 2]
    # Nobody has a majority near: nobody is selected.
    result, info = aggregate(mean_of_medians(2, 0.1, 4), x)
    assert rows_of(info) == [] and not np.any(result)


# --- FLAME's clusters ----------------------------------------------------------------------------


@pytest.mark.parametrize("n", [5, N])
def test_the_cluster_is_that_of_hdbscan(n):
    """As the paper calls it: with so many rows in a cluster, min_samples 1, a single one allowed."""
    rule = flame(noise=0.0)
    for seed in range(8):
        x = random_matrix(seed, n)
        x[: n // 3] *= -1
        unit = x / np.linalg.norm(x, axis=1, keepdims=True)
        distances = np.maximum(1 - unit.astype(np.float64) @ unit.T, 0)
        np.fill_diagonal(distances, 0)
        labels = HDBSCAN(
            min_cluster_size=n // 2 + 1,
            min_samples=1,
            metric="precomputed",
            allow_single_cluster=True,
            copy=True,
        ).fit_predict(distances)
        assert rows_of(aggregate(rule, x)[1]) == list(np.flatnonzero(labels == 0)), seed


def test_one_or_two_rows_stay():
    x = np.array([[1, 0], [-1, 0], [5, 5]], np.float32)
    for weights, kept in (([1, 1, 0], [0, 1]), ([0, 1, 0], [1]), ([0, 0, 0], [])):
        assert rows_of(aggregate(flame(noise=0.0), x, np.array(weights, np.float32))[1]) == kept


@pytest.mark.parametrize("weights", [None, SOME_ABSENT], ids=["all", "some"])
def test_directions_of_updates_or_of_models(weights):
    params = 0.3 * np.arange(1, D + 1)
    for seed in range(4):
        x = random_matrix(seed)
        x[4] = 0  # its cosine is 0
        x[5] = -params.astype(np.float32)  # the model is 0
        for models, at in ((True, params.astype(np.float32)), (False, np.zeros(D))):
            result, info = aggregate(flame(noise=0.0, models=models), x, weights, params)
            expected, kept, clipped, _ = ref.flame(x, weights, at)
            assert rows_of(info) == kept
            assert list(np.flatnonzero(info["clipped"])) == clipped
            np.testing.assert_allclose(result, expected, atol=1e-5)


@pytest.mark.parametrize("size", [1e-25, 1e-12, 1e-6, 1e-3])
def test_directions_of_models_that_differ_little(size):
    """Only what is across the received model turns it: |u - (u . e) e| / |model|. The sum of model and
    update would lose it in float32."""
    rng = np.random.default_rng(5)
    params = rng.normal(size=40).astype(np.float32)
    e = params.astype(np.float64) / np.linalg.norm(params.astype(np.float64))
    for _ in range(3):
        x = (size * rng.normal(size=(9, 40))).astype(np.float32)
        x[0] += 30 * size * e  # along it: no turn
        across = x - np.outer(x @ e, e)
        _, info = aggregate(flame(noise=0.0), x, None, params)
        squares = ref.pairwise_squared_distances(across / size)
        assert rows_of(info) == majority(squares)


def majority(distances):
    """Single linkage: thresholds one by one, components by search."""
    n = len(distances)
    for level in np.unique(distances):
        for start in range(n):
            found, todo = {start}, [start]
            while todo:
                near = set(np.flatnonzero(distances[todo.pop()] <= level)) - found
                found |= near
                todo += list(near)
            if len(found) > n / 2:
                return sorted(int(i) for i in found)
    raise AssertionError


# --- LASA ----------------------------------------------------------------------------------------


def test_lasa_on_a_model_with_axes():
    """Its sparse copies are of all matrices and kernels of convolutions together, not leaf by leaf."""
    shapes = {"bias": (3,), "conv": (2, 2, 1, 3), "dense": (3, 2), "odd": (2, 2, 2)}
    sizes = [int(np.prod(shape)) for shape in shapes.values()]
    ends = np.cumsum(sizes)[:-1]

    def leaves(row):
        parts = zip(np.split(row, ends), shapes.values(), strict=True)
        return [part.reshape(shape) for part, shape in parts]

    def unravel(params):
        parts = jnp.split(params, ends)
        return {
            name: part.reshape(shape)
            for part, (name, shape) in zip(parts, shapes.items(), strict=True)
        }

    task = TASK._replace(unravel=unravel)
    rng = np.random.default_rng(0)
    for sparsity, lambda_n, lambda_s in ((0.3, 1.0, 1.0), (0.5, 2.0, 0.7)):
        rule = lasa(task, sparsity=sparsity, lambda_n=lambda_n, lambda_s=lambda_s)
        for _ in range(2):
            x = rng.normal(size=(9, sum(sizes))).astype(np.float32)
            x[0] = 3 * np.abs(x[0])
            x[1, 3:15] *= 0.2
            w = np.array([1, 1, 1, 0, 1, 1, 5, 1, 1], np.float32)
            result, info = aggregate(rule, x, w)
            expected, counts = ref.lasa(x, leaves, w, sparsity, lambda_n, lambda_s)
            np.testing.assert_allclose(result, flattened(expected), atol=1e-6)
            np.testing.assert_array_equal(info["leaves"], counts)
            assert len(set(counts)) > 2


def test_lasa_of_a_task_in_a_run():
    rng = np.random.default_rng(0)
    examples = {
        "x": jnp.asarray(rng.normal(size=(40, 4)), jnp.float32),
        "y": jnp.asarray(rng.integers(0, 3, 40)),
    }
    task = fr.classification(fr.models.SoftmaxRegression(3), examples["x"][:1])
    index = jnp.arange(40, dtype=jnp.int32).reshape(8, 5)
    data = fr.FederatedData(examples, index, jnp.full(8, 5, jnp.int32).at[7].set(0))
    client = fr.local_sgd(task, 0.1, 5)
    sim = fr.Simulation(
        task,
        client,
        lasa(task),
        fr.attacks.scaling(10.0),
        num_malicious=1,
        clients_per_round=5,
    )
    state, _ = fr.run(sim, jax.random.key(1), data, 3)
    assert np.all(np.isfinite(state.params)) and np.linalg.norm(state.params) > 0.01


# --- Hard numbers --------------------------------------------------------------------------------

RULES = {
    "mda": lambda scale: mda(2),
    "smea": lambda scale: smea(2),
    "dnc": lambda scale: dnc(2),
    "caf": lambda scale: caf(2, steps=8),
    "mean_of_medians": lambda scale: mean_of_medians(2, 1.3 * scale, 4, delta=0.5),
    "flame": lambda scale: flame(noise=0.0),
    "lasa": lambda scale: lasa(TASK),
}


@pytest.mark.parametrize("name", RULES)
def test_scales_and_dtypes(name):
    x = random_matrix(7)
    x[2] *= 4
    expected, info = aggregate(RULES[name](1.0), x, SOME_ABSENT)
    scales = (1e-28, 1e-20, 1e18, 1e30, 2e37)
    for scale in scales[::4] if name == "mean_of_medians" else scales:  # another rule each time
        rows = (x * np.float64(scale)).astype(np.float32)
        result, other = aggregate(RULES[name](scale), rows, SOME_ABSENT)
        np.testing.assert_allclose(result / np.float64(scale), expected, atol=2e-5)
        for key in ("selected", "leaves", "clipped"):
            np.testing.assert_array_equal(info.get(key), other.get(key))
    if name in ("mda", "smea", "dnc", "mean_of_medians"):
        return  # a row is a row
    half, _ = aggregate(RULES[name](1.0), x.astype(np.float16), SOME_ABSENT)
    again, _ = aggregate(RULES[name](1.0), x.astype(np.float16).astype(np.float32), SOME_ABSENT)
    assert half.dtype == np.float16
    np.testing.assert_allclose(half, again, atol=5e-3)


@pytest.mark.parametrize("name", ["mda", "smea", "dnc", "caf"])
def test_far_rows_and_an_offset_do_not_take_the_digits_of_the_others(name):
    """Honest rows 1e-2 apart at 1e3; attackers at 1e9, which is where a mean would lie, too."""
    rule = {
        "mda": lambda x: ref.mean_of_selected(ref.mda_selection)(x, 2),
        "smea": lambda x: ref.mean_of_selected(ref.smea_selection)(x, 2),
        "dnc": lambda x: ref.mean_of_selected(ref.dnc_selection)(x, 2),
        "caf": lambda x: ref.caf(x, 2, steps=8),
    }[name]
    for seed in range(4):
        x = (1e3 + 1e-2 * np.random.default_rng(seed).normal(size=(N, D))).astype(np.float32)
        x[1] = -1e9
        if name != "dnc":
            x[6] = 1e9
        result, _ = aggregate(RULES[name](1.0), x)
        np.testing.assert_allclose(result - 1e3, rule(x) - 1e3, atol=2e-4)


def test_derivative_of_the_top_eigenvector():
    """Against differences; where eigenvalues are equal it is finite."""

    def along(matrix):
        value, vector = spectra.top_eigenpair(0.5 * (matrix + matrix.T))
        return value + jnp.sum(jnp.arange(1.0, 5) * jnp.square(vector))

    with jax.enable_x64(True):
        a = np.random.default_rng(0).normal(size=(4, 4))
        a = jnp.asarray(a @ a.T)
        slope = jax.jit(jax.grad(along))
        call = jax.jit(along)
        for i, j in ((0, 0), (1, 3)):
            step = np.zeros((4, 4))
            step[i, j] = 1e-6
            difference = (call(a + step) - call(a - step)) / 2e-6
            assert float(slope(a)[i, j]) == pytest.approx(float(difference), rel=1e-6)
        for equal in (jnp.eye(4), jnp.zeros((4, 4))):
            assert np.all(np.isfinite(slope(equal)))


def test_nobody_is_needed_for_the_mean_of_one_row():
    """One present row is the result of all of them."""
    x, weights = random_matrix(0), np.zeros(N, np.float32)
    weights[4] = 0.5
    for name in ("dnc", "caf", "mean_of_medians", "flame", "lasa"):
        np.testing.assert_allclose(aggregate(RULES[name](1.0), x, weights)[0], x[4], rtol=1e-6)
    np.testing.assert_allclose(mean()(x, weights), x[4])
