"""Every rule against its definition in ``reference``, and what all rules promise; the table of rules is
in ``contract.py``."""

from __future__ import annotations

import re
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference as ref
import rules_first_papers
from contract import (
    EXCEPTIONS,
    KRUM,
    RULES,
    SELECTING,
    SOME_ABSENT,
    TRACES,
    D,
    F,
    N,
    apply,
    assert_close,
    compiled,
    every_equivariant_rule,
    every_main_rule,
    every_rule,
    nasty,
    random_matrix,
    selected,
)

from fedjax_robust import aggregators, privacy
from fedjax_robust.aggregators import (
    bulyan,
    krum,
    mean,
    multi_krum,
    trimmed_mean,
)
from fedjax_robust.types import Aggregator


def test_every_public_rule_is_in_the_table() -> None:
    """So that none is published without what follows."""
    public = {*aggregators.__all__, *privacy.__all__}
    assert set(EXCEPTIONS) <= public
    assert public - set(RULES) == set(EXCEPTIONS)
    for name in public & set(RULES):
        assert isinstance(RULES[name].make(0), Aggregator)


# --- Equal to the reference ----------------------------------------------------------------------


@pytest.mark.parametrize(("f", "more", "d"), [(0, 0, 3), (1, 3, 40), (3, 0, 2)])
@every_rule
def test_equals_the_reference(name: str, f: int, more: int, d: int) -> None:
    rule = RULES[name]
    n = rule.least(f) + more
    for seed in range(4):
        x = random_matrix(seed, n, d)
        rng = np.random.default_rng(100 + seed)
        weights = rng.uniform(0.1, 3, size=n).astype(np.float32)
        if seed > 1:
            weights[rng.permutation(n)[: rng.integers(more + 1)]] = 0
        for w in (None, weights):
            result = apply(name, x, w, f)
            assert result.shape == (d,) and result.dtype == np.float32
            assert_close(result, rule.reference(x, f, w), 1e-5)
            if rule.selection:
                rows = selected(name, x, w, f)
                assert rows.shape == (n,) and rows.dtype == bool
                assert set(np.flatnonzero(rows)) == set(rule.selection(x, f, w))


@every_rule
def test_equals_the_reference_on_nasty_matrices(name: str) -> None:
    rule = RULES[name]
    for seed in range(3):
        matrices = nasty(seed)
        assert rule.excluded <= set(matrices)
        for what, x in matrices.items():
            for w in (np.ones(N, np.float32), SOME_ABSENT):
                result = apply(name, x, w)
                assert np.all(np.isfinite(result)), what
                if what not in rule.excluded:
                    assert_close(result, rule.reference(x, F, w), 1e-5, what)


@pytest.mark.parametrize("name", KRUM)
def test_selected_rows_are_a_right_choice(name: str) -> None:
    """Also where rows tie: the selected ones have the m lowest scores, and their mean is the result."""
    for seed in range(3):
        for what, x in nasty(seed).items():
            for w in (np.ones(N, np.float32), SOME_ABSENT):
                rows, _, index = ref.present(x, w)
                chosen = selected(name, x, w)
                assert set(np.flatnonzero(chosen)) <= set(index), what
                expected = len(rows) - F if KRUM[name] is None else KRUM[name]
                assert np.sum(chosen) == expected, what
                assert_close(apply(name, x, w), np.mean(x[chosen].astype(np.float64), 0), 1e-5)
                scores = ref.krum_scores(rows, F)
                lowest = np.sort(scores)[:expected]
                np.testing.assert_allclose(
                    np.sort(scores[chosen[index]]), lowest, rtol=1e-4, err_msg=what
                )


def test_bulyan_averages_what_it_selected() -> None:
    """Also where the first step's choice is not the reference's."""
    for seed in range(3):
        for what, x in nasty(seed).items():
            for w in (np.ones(N, np.float32), SOME_ABSENT):
                count = len(ref.present(x, w)[0])
                chosen = selected("bulyan", x, w)
                assert np.sum(chosen) == count - 2 * F, what
                assert set(np.flatnonzero(chosen)) <= set(ref.present(x, w)[2]), what
                expected = ref.mean_near_median(x[chosen], count - 4 * F)
                assert_close(apply("bulyan", x, w), expected, 1e-5, what)


@every_rule
def test_any_number_of_rows_present(name: str) -> None:
    """Also fewer than the precondition asks of n: the server cannot choose who answers."""
    rng = np.random.default_rng(5)
    for count in range(N + 1):
        for seed in range(2):
            x = random_matrix(10 * count + seed)
            weights = np.zeros(N, np.float32)
            weights[rng.permutation(N)[:count]] = rng.uniform(0.5, 2, size=count)
            expected = RULES[name].reference(x, F, weights)
            assert_close(apply(name, x, weights), expected, 1e-5, f"{count} present")
            if name in SELECTING:
                chosen = set(np.flatnonzero(selected(name, x, weights)))
                assert chosen == set(RULES[name].selection(x, F, weights)), f"{count} present"


@every_rule
def test_nobody_present(name: str) -> None:
    x = random_matrix(0)
    for updates, weights in [
        (x, np.zeros(N, np.float32)),
        (np.full_like(x, np.nan), np.ones(N, np.float32)),
        (x, np.full(N, np.nan, np.float32)),
        (x, np.full(N, -1, np.float32)),
    ]:
        expected = RULES[name].alone(D).astype(np.float32)
        np.testing.assert_allclose(apply(name, updates, weights), expected, rtol=1e-6)
        if name in SELECTING:
            assert not np.any(selected(name, updates, weights))


# --- Weights -------------------------------------------------------------------------------------


@every_main_rule
def test_weight_zero_is_deletion(name: str) -> None:
    n = N + 3
    rng = np.random.default_rng(7)
    matrices = nasty(1, n)
    for what in sorted(set(matrices) - RULES[name].excluded):
        weights = rng.uniform(0.2, 2, size=n).astype(np.float32)
        weights[[1, n // 2, n - 1]] = 0
        kept = weights > 0
        x = matrices[what]
        result = apply(name, x, weights)
        assert_close(result, apply(name, x[kept], weights[kept]), 1e-5, what)
        if name in SELECTING and what == "honest":
            rows = selected(name, x, weights)
            assert not np.any(rows[~kept])
            np.testing.assert_array_equal(rows[kept], selected(name, x[kept], weights[kept]))
        # What an absent row holds does not matter at all.
        for value in [np.nan, np.inf, -1e30, 7.0]:
            other = np.where(kept[:, None], x, np.float32(value))
            np.testing.assert_array_equal(apply(name, other, weights), result)


@every_rule
def test_what_weights_mean(name: str) -> None:
    x = random_matrix(3)
    w = SOME_ABSENT
    # Only their ratios matter.
    assert_close(apply(name, x, 8 * w), apply(name, x, w), 1e-6)
    if RULES[name].weighted:
        assert np.max(np.abs(apply(name, x, w) - apply(name, x, np.sign(w)))) > 1e-2
    else:
        np.testing.assert_array_equal(apply(name, x, w), apply(name, x, np.sign(w)))


def test_mean_of_large_and_of_integer_weights() -> None:
    x = np.array([[1.0, 3e38], [4.0, 3e38]], np.float32)
    np.testing.assert_allclose(mean()(x, np.array([1e30, 2e30], np.float32)), [3, 3e38], rtol=1e-6)
    np.testing.assert_allclose(mean()(x, np.array([1, 2])), [3, 3e38], rtol=1e-6)
    np.testing.assert_allclose(mean()(x, np.array([0, 2])), [4, 3e38], rtol=1e-6)


# --- Invariances ---------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [name for name, rule in RULES.items() if not rule.ordered])
def test_permutation_invariance(name: str) -> None:
    """Bulyan with f = 3: with less its last choice counts one neighbour, and so the two rows that are
    closest to each other tie by definition; their order then decides."""
    n, f = (16, 3) if name == "bulyan" else (N, F)
    rng = np.random.default_rng(11)
    for seed in range(3):
        x, order = random_matrix(seed, n), rng.permutation(n)
        weights = rng.uniform(0.5, 2, size=n).astype(np.float32)
        weights[seed] = 0
        result = apply(name, x, weights, f)
        assert_close(apply(name, x[order], weights[order], f), result, 1e-5)
        if name in SELECTING:
            rows = selected(name, x, weights, f)
            np.testing.assert_array_equal(selected(name, x[order], weights[order], f), rows[order])


@every_equivariant_rule
def test_translation_equivariance(name: str) -> None:
    rng = np.random.default_rng(12)
    for size in (1.0, 100.0):
        x, shift = random_matrix(4), (size * rng.normal(size=D)).astype(np.float32)
        moved = apply(name, x + shift, SOME_ABSENT)
        assert_close(moved, apply(name, x, SOME_ABSENT) + shift, 1e-5)


@every_equivariant_rule
def test_scale_equivariance(name: str) -> None:
    """These rules are odd functions, too."""
    x = random_matrix(6)
    for scale in [-1.0, 3.7, -1e-9, 1e9]:
        scaled = apply(name, np.float32(scale) * x, SOME_ABSENT)
        assert_close(scaled, scale * apply(name, x, SOME_ABSENT), 1e-5, str(scale))


# --- Robustness ----------------------------------------------------------------------------------


def bad_rows() -> dict[str, np.ndarray]:
    signs = np.resize([1.0, -1.0], D)
    one_nan, one_huge = random_matrix(8)[0], random_matrix(9)[0]
    one_nan[2], one_huge[3] = np.nan, -3e38
    rows = {
        "nan": np.full(D, np.nan),
        "inf": np.full(D, np.inf),
        "-inf": np.full(D, -np.inf),
        "1e30": np.full(D, 1e30),
        "3e38": np.full(D, 3e38),
        "+-1e30": 1e30 * signs,
        "+-3e38": -3e38 * signs,
        "1000": np.full(D, 1000.0),
        "one nan": one_nan,
        "one huge": one_huge,
    }
    return {what: row.astype(np.float32) for what, row in rows.items()}


@pytest.mark.parametrize("name", [name for name, rule in RULES.items() if rule.robust])
def test_bad_rows_never_enter(name: str) -> None:
    rows = bad_rows()
    for k, first in enumerate(rows):
        for second in list(rows)[k:]:
            x = random_matrix(k)
            bad = np.random.default_rng(k).permutation(N)[:F]
            x[bad] = rows[first], rows[second]
            good = np.delete(x, bad, axis=0)
            result = apply(name, x)
            what = f"{first} and {second}"
            assert np.all(result >= good.min(axis=0) - 1e-5), what
            assert np.all(result <= good.max(axis=0) + 1e-5), what
            # Bulyan's last choices count a single neighbour: its first step may let bad rows in, such
            # as two that are equal, if float32 can still tell that they are.
            if name != "bulyan" or first != second:
                assert_close(result, RULES[name].reference(x, F, None), 1e-5, what)
            if name in KRUM:
                assert not np.any(selected(name, x)[bad]), what


def test_mean_leaves_out_what_is_not_finite() -> None:
    for what, row in bad_rows().items():
        x = random_matrix(2)
        x[3] = row
        if not np.all(np.isfinite(row)):
            np.testing.assert_allclose(
                apply("mean", x), np.delete(x, 3, axis=0).mean(axis=0), rtol=1e-5, err_msg=what
            )


# --- Compilation ---------------------------------------------------------------------------------


@pytest.mark.parametrize("name", rules_first_papers.RULES)
def test_call_on_a_plain_matrix(name: str) -> None:
    """Without jit, with default weights, with lists; the caller's array is left alone. (Each operation is
    compiled by itself, which takes long; other rules are called so by the examples in their docstrings.)
    """
    x = random_matrix(1)
    rule, before = RULES[name].make(F), x.copy()
    params = RULES[name].params(D).astype(np.float32)
    np.testing.assert_allclose(rule(x, params=params), apply(name, x), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(
        rule(x.tolist(), params=params), apply(name, x), rtol=1e-5, atol=1e-6
    )
    np.testing.assert_allclose(
        rule(jnp.asarray(x), SOME_ABSENT.tolist(), params=params),
        apply(name, x, SOME_ABSENT),
        rtol=1e-5,
        atol=1e-6,
    )
    np.testing.assert_array_equal(x, before)


@every_main_rule
def test_vmap(name: str) -> None:
    x = np.stack([random_matrix(seed) for seed in range(3)] + [nasty()["nan_row"]])
    weights = np.stack([np.ones(N, np.float32), SOME_ABSENT, SOME_ABSENT[::-1], SOME_ABSENT])
    results, info = jax.vmap(compiled(name))(x, weights)
    for k in range(len(x)):
        assert_close(results[k], apply(name, x[k], weights[k]), 1e-5)
        if name in SELECTING:
            np.testing.assert_array_equal(info["selected"][k], selected(name, x[k], weights[k]))


@every_main_rule
def test_second_call_does_not_recompile(name: str) -> None:
    apply(name, random_matrix(0))
    traces = TRACES[name]
    apply(name, random_matrix(1), SOME_ABSENT)
    apply(name, nasty()["nan_row"], np.zeros(N, np.float32))
    assert TRACES[name] == traces > 0


# --- Preconditions -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("make", "n", "message"),
    [
        (lambda: trimmed_mean(-1), 5, "trimmed_mean needs f >= 0, got f=-1"),
        (lambda: trimmed_mean(3), 6, "trimmed_mean needs n > 2f, got n=6, f=3"),
        (lambda: krum(-1), 5, "krum needs f >= 0, got f=-1"),
        (lambda: krum(2), 6, "krum needs n > 2f + 2, got n=6, f=2"),
        (lambda: krum(0), 2, "krum needs n > 2f + 2, got n=2, f=0"),
        (lambda: multi_krum(-2), 5, "multi_krum needs f >= 0, got f=-2"),
        (lambda: multi_krum(2), 6, "multi_krum needs n > 2f + 2, got n=6, f=2"),
        (lambda: multi_krum(2, m=0), 9, "multi_krum needs m >= 1, got m=0"),
        (lambda: multi_krum(2, m=6), 7, "multi_krum needs m <= n - f, got m=6, n=7, f=2"),
        (lambda: bulyan(-1), 9, "bulyan needs f >= 0, got f=-1"),
        (lambda: bulyan(2), 10, "bulyan needs n >= 4f + 3, got n=10, f=2"),
    ],
)
def test_preconditions(make: Callable[[], Aggregator], n: int, message: str) -> None:
    with pytest.raises(ValueError, match="(?m)^" + re.escape(message) + "$"):  # JAX may add a note
        make()(random_matrix(0, n))


def test_m_up_to_n_minus_f_is_allowed() -> None:
    x = random_matrix(0, 7)
    np.testing.assert_allclose(jax.jit(multi_krum(2, m=5).__call__)(x), apply("multi_krum", x))


@every_main_rule
def test_wrong_shapes(name: str) -> None:
    rule = RULES[name].make(0)
    for x, weights, message in [
        (np.ones(N, np.float32), None, r"got shape \(12,\)"),
        (np.ones((2, N, D), np.float32), None, r"got shape \(2, 12, 5\)"),
        (random_matrix(0), np.ones((N, 1), np.float32), r"got weights of shape \(12, 1\)"),
        (random_matrix(0), np.ones(N - 1, np.float32), r"got weights of shape \(11,\)"),
    ]:
        with pytest.raises(ValueError, match=message):
            rule(x, weights)


@pytest.mark.parametrize("name", [*KRUM, "bulyan"])
def test_numbers_of_rows_are_whole(name: str) -> None:
    """NaN, fractions, infinity and booleans are no f, and neither are 0-d arrays of them."""
    for f in (np.nan, 1.5, np.inf, np.array(0.5), jnp.float32(1), -1, np.array(-2)):
        with pytest.raises(ValueError, match="needs f"):
            RULES[name].make(f)
    for f in ("2", None, True, [1]):
        with pytest.raises(TypeError, match="needs f"):
            RULES[name].make(f)
    for m in (np.nan, 1.5, 0, np.array(0)):
        with pytest.raises(ValueError, match="multi_krum needs m"):
            multi_krum(2, m=m)
    x = random_matrix(0)
    np.testing.assert_array_equal(RULES[name].make(np.array(F))(x), RULES[name].make(F)(x))
    assert RULES[name].make(F) is RULES[name].make(F)  # so that nothing is compiled again


def test_integer_updates_are_averaged_as_floats() -> None:
    x = np.array([[1, 2], [4, 2], [2, 3], [1, 1]])
    for rule in (multi_krum(0), bulyan(0)):
        result = rule(x)
        assert result.dtype == jnp.float32
        np.testing.assert_allclose(result, [2, 2], rtol=1e-6)


# --- By hand -------------------------------------------------------------------------------------


def column(*values: float) -> np.ndarray:
    """Clients with a single parameter."""
    return np.array(values, dtype=np.float32)[:, None]


def test_krum_is_the_papers() -> None:
    """Where n - f - 1 neighbours, plain distances, 4th powers, or itself as neighbour choose another.

    The scores of all of them are worked out in ``test_reference.py``.
    """
    x, y = column(0, 1, 2, 7, 9, 12, 13), column(0, 3, 5, 6, 10, 12, 13)
    np.testing.assert_array_equal(apply("krum", x, f=1), [9])  # n - f - 1: 7; plain: 2; 4th: 7
    np.testing.assert_array_equal(apply("krum", y, f=1), [10])  # with itself: 3
    np.testing.assert_array_equal(np.flatnonzero(selected("krum", x, f=1)), [4])
    # Of equal ones the first: 3 and 4 are next to each other.
    np.testing.assert_array_equal(apply("krum", column(4, 10, 3), f=0), [4])
    np.testing.assert_array_equal(apply("krum", column(10, 3, 4), f=0), [3])


def test_multi_krum_is_the_papers() -> None:
    x = column(0, 1, 2, 7, 9, 12, 13)  # scores 135, 102, 79, 90, 78, 135, 174
    np.testing.assert_allclose(apply("multi_krum_3", x, f=1), [(9 + 2 + 7) / 3])  # not a sum
    np.testing.assert_allclose(apply("multi_krum", x, f=1), [31 / 6])  # m = n - f: all but 13
    weights = np.array([1, 1, 5, 1, 1, 1, 1], np.float32)
    np.testing.assert_allclose(apply("multi_krum_3", x, weights, f=1), [6])  # unweighted


def test_bulyan_is_the_papers() -> None:
    # Worked out in test_reference.py: 2, 5, 1, 6, 0 are picked one by one; near their median 2 are
    # 2, 1, 0. In one shot it would be 2, 3, 5, 1, 6, and the mean of 3, 2, 1 is 2. The mean of all
    # five picked is 14 / 5; trimmed by f at each end, 8 / 3.
    x = column(0, 1, 2, 3, 5, 6, 7)
    np.testing.assert_allclose(apply("bulyan", x, f=1), [1])
    np.testing.assert_array_equal(np.flatnonzero(selected("bulyan", x, f=1)), [0, 1, 2, 4, 5])


def test_median_and_trimmed_mean_are_the_papers() -> None:
    # Not the lower middle, 4.
    np.testing.assert_array_equal(apply("median", column(5, 1, 4, 100)), [4.5])
    x = np.array([[9, 1], [1, 1], [2, -50], [4, 2], [3, 3]], np.float32)
    # [-0:] would be everything.
    np.testing.assert_allclose(apply("trimmed_mean", x, f=0), apply("mean", x), rtol=1e-6)
    np.testing.assert_allclose(apply("trimmed_mean", x, f=1), [3, 4 / 3], rtol=1e-6)
    np.testing.assert_allclose(apply("trimmed_mean", x, f=2), apply("median", x))
    # Exact beside huge values, where the sum of all minus the extremes is not.
    huge = column(1e30, 1, 2, 3, -1e30)
    np.testing.assert_array_equal(apply("trimmed_mean", huge, f=1), [2])


def test_distances_beside_a_large_common_offset() -> None:
    """Float32 Gram distances of uncentred rows would be noise here."""
    steps = np.array([0, 1, 2, 7, 9, 12, 13], np.float32)
    x = np.repeat(4096 + steps[:, None] / 1024, 30, axis=1)  # exact in float32
    np.testing.assert_array_equal(np.flatnonzero(selected("krum", x, f=1)), [4])
    # A huge row must not drown the others, nor shift the centre.
    x = np.vstack([x, np.full(30, -1e30, np.float32)])
    weights = np.ones(8, np.float32)
    expected = ref.krum_index(x, 1)
    np.testing.assert_array_equal(np.flatnonzero(selected("krum", x, weights, f=1)), [expected])
