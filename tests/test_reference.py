"""Checks of the reference itself, by hand, so that both it and the JAX code can be trusted.

The arithmetic is in the comments. Section and equation numbers are those of Fang et al. 2020.
"""

from __future__ import annotations

import ast
import itertools
import math
from pathlib import Path

import numpy as np
import pytest
import reference as ref


def column(*values: float) -> np.ndarray:
    """Clients with a single parameter."""
    return np.array(values, dtype=np.float64)[:, None]


def test_the_reference_stands_alone() -> None:
    """Neither JAX nor the package is imported; what is exported is defined, and once. (Some families are
    used by the name of their file instead.)"""
    allowed = {
        "__future__",
        "collections",
        "decimal",
        "fractions",
        "itertools",
        "math",
        "numpy",
        "reference",
    }
    allowed |= {"scipy", "statistics", "typing"}
    defined: list[str] = []
    for file in Path(ref.__file__).parent.glob("*.py"):
        tree = ast.parse(file.read_text("utf-8"))
        for node in ast.walk(tree):
            names = [name.name for name in node.names] if isinstance(node, ast.Import) else []
            names += [node.module] if isinstance(node, ast.ImportFrom) else []
            assert {name.split(".")[0] for name in names} <= allowed, file.name
        found = [n for n in tree.body if isinstance(n, ast.FunctionDef | ast.ClassDef)]
        if file.name != "rows.py":
            defined += [node.name for node in found if not node.name.startswith("_")]
    rows = {"present", "nasty_matrices", "Array", "Aggregate", "Trigger"}
    exported = set(ref.__all__) - rows
    assert sorted(name for name in defined if name in exported) == sorted(exported)


# --- Aggregation rules ---------------------------------------------------------------------------


def test_present_deletes_weightless_and_non_finite_rows() -> None:
    updates = np.array([[1, 2], [3, np.nan], [5, 6], [np.inf, 0], [7, 8], [0, -np.inf]])
    rows, weights, index = ref.present(updates, np.array([1.0, 1.0, 0.0, 1.0, 2.5, 1.0]))
    np.testing.assert_array_equal(rows, [[1, 2], [7, 8]])
    np.testing.assert_array_equal(weights, [1, 2.5])
    np.testing.assert_array_equal(index, [0, 4])
    assert rows.dtype == np.float64


def test_mean() -> None:
    updates = np.array([[1.0, 10.0], [2.0, 20.0], [6.0, 0.0]])
    np.testing.assert_allclose(ref.mean(updates), [3, 10])
    # (1 * 1 + 3 * 6) / 4, (1 * 10 + 3 * 0) / 4
    np.testing.assert_allclose(ref.mean(updates, np.array([1, 0, 3])), [19 / 4, 10 / 4])


def test_median_of_odd_and_even_numbers() -> None:
    np.testing.assert_array_equal(ref.median(column(5, 1, 3)), [3])
    # The mean of the middle two, not the lower of them.
    np.testing.assert_array_equal(ref.median(column(5, 1, 4, 100)), [4.5])
    # Weights are not multiplicities.
    np.testing.assert_array_equal(ref.median(column(5, 1, 3), np.array([9, 1, 1])), [3])
    np.testing.assert_array_equal(ref.median(column(5, 1, 3), np.array([9, 0, 1])), [4])


def test_trimmed_mean() -> None:
    x = np.array([[9.0, 1.0], [1.0, 1.0], [2.0, -50.0], [4.0, 2.0], [3.0, 3.0]])
    # f = 0 removes nothing ([-0:] would be everything).
    np.testing.assert_allclose(ref.trimmed_mean(x, 0), ref.mean(x))
    # f = 1: (2 + 3 + 4) / 3 and (1 + 1 + 2) / 3; columns lose different rows.
    np.testing.assert_allclose(ref.trimmed_mean(x, 1), [3, 4 / 3])
    # f = 2 of 5: the median.
    np.testing.assert_allclose(ref.trimmed_mean(x, 2), ref.median(x))
    # Four rows left, f = 2 becomes 1: the median of 9, 1, 2, 4.
    weights = np.array([1, 1, 1, 1, 0])
    np.testing.assert_allclose(ref.trimmed_mean(x, 2, weights), [3, 1])
    np.testing.assert_allclose(ref.trimmed_mean(x[:4], 2), [3, 1])


def test_trimmed_mean_is_exact_beside_huge_rows() -> None:
    # The sum of all minus the extremes would lose 1, 2 and 3 beside 1e30.
    np.testing.assert_array_equal(ref.trimmed_mean(column(1e30, 1, 2, 3, -1e30), 1), [2])


def other_scores(x: list[int], neighbours: int, power: int, count_self: bool = False) -> list[int]:
    """Scores of rules that are not Krum."""
    scores = []
    for i, a in enumerate(x):
        distances = sorted(abs(a - b) ** power for j, b in enumerate(x) if count_self or j != i)
        scores.append(sum(distances[:neighbours]))
    return scores


def test_krum_counts_n_minus_f_minus_2_squared_distances() -> None:
    # n = 7, f = 1: 4 neighbours. Squared distances to the 4 closest others:
    #   0: 1 +  4 + 49 + 81 = 135      9: 4 +  9 + 16 + 49 =  78  <- lowest
    #   1: 1 +  1 + 36 + 64 = 102     12: 1 +  9 + 25 + 100 = 135
    #   2: 1 +  4 + 25 + 49 =  79     13: 1 + 16 + 36 + 121 = 174
    #   7: 4 + 25 + 25 + 36 =  90
    x = [0, 1, 2, 7, 9, 12, 13]
    np.testing.assert_array_equal(ref.krum_scores(column(*x), 1), [135, 102, 79, 90, 78, 135, 174])
    assert ref.krum_index(column(*x), 1) == 4
    np.testing.assert_array_equal(ref.krum(column(*x), 1), [9])
    # n - f - 1 neighbours: 7 has 90 + 36 = 126, 9 has 78 + 64 = 142.
    assert np.argmin(other_scores(x, 5, 2)) == 3
    assert ref.krum_index(column(*x), 1, neighbours=5) == 3
    # Plain distances: 2 has 1 + 2 + 5 + 7 = 15, 9 has 2 + 3 + 4 + 7 = 16.
    assert np.argmin(other_scores(x, 4, 1)) == 2
    # Fourth powers: 7 has 16 + 625 + 625 + 1296 = 2562, 9 has 16 + 81 + 256 + 2401 = 2754.
    assert np.argmin(other_scores(x, 4, 4)) == 3
    # Itself as a neighbour: that is n - f - 3 others; here the choice is another one too.
    y = [0, 3, 5, 6, 10, 12, 13]
    # 5: 1 + 4 + 25 + 25 = 55, 6: 1 + 9 + 16 + 36 = 62, 10: 4 + 9 + 16 + 25 = 54  <- lowest
    assert ref.krum_index(column(*y), 1) == 4
    # 3: 4 + 9 + 9 = 22, 5: 1 + 4 + 25 = 30, 6: 1 + 9 + 16 = 26, 10: 4 + 9 + 16 = 29
    assert np.argmin(other_scores(y, 4, 2, count_self=True)) == 1


def test_krum_ties_and_small_numbers() -> None:
    # Both of 3 and 4 are 1 away from their neighbour: the lowest index wins.
    assert ref.krum_index(column(10, 4, 3, 20), 1) == 1
    assert ref.krum_index(column(10, 3, 4, 20), 1) == 1
    # n - f - 2 = 0 counts one neighbour: scores 9, 1, 1.
    np.testing.assert_array_equal(ref.krum_scores(column(0, 3, 4), 1), [9, 1, 1])
    # A single row has no neighbours.
    np.testing.assert_array_equal(ref.krum(column(5), 1), [5])
    assert ref.krum_index(column(5, np.nan), 1, np.zeros(2)) == -1
    np.testing.assert_array_equal(ref.krum(column(5, np.nan), 1, np.zeros(2)), [0])


def test_krum_scores_are_the_cheapest_subsets() -> None:
    """An independent definition: the least sum over all sets of n - f - 2 others."""
    rng = np.random.default_rng(0)
    for n, f in [(5, 1), (6, 1), (7, 2), (8, 2)]:
        x = rng.normal(size=(n, 3))
        for i, score in enumerate(ref.krum_scores(x, f)):
            others = [float(np.dot(x[i] - x[j], x[i] - x[j])) for j in range(n) if j != i]
            least = min(sum(chosen) for chosen in itertools.combinations(others, n - f - 2))
            assert score == pytest.approx(least, rel=1e-12)


def test_krum_index_is_the_original_row() -> None:
    x = np.array([[np.nan, 0], [0, 0], [5, 5], [0.1, 0], [0.3, 0], [0.35, 0], [np.inf, 1]])
    weights = np.array([1, 0, 1, 1, 1, 1, 1])
    # Present: rows 2 to 5; f = 1: one neighbour; rows 4 and 5 are the closest pair.
    assert ref.krum_index(x, 1, weights) == 4
    np.testing.assert_array_equal(ref.krum(x, 1, weights), ref.krum(x[[2, 3, 4, 5]], 1))


def test_multi_krum() -> None:
    x = column(0, 1, 2, 7, 9, 12, 13)
    # Scores 135, 102, 79, 90, 78, 135, 174 (above): order 9, 2, 7, 1, then 0 before 12 (a tie).
    assert ref.multi_krum_selection(x, 1, 5) == [4, 2, 3, 1, 0]
    np.testing.assert_array_equal(ref.multi_krum(x, 1, 1), ref.krum(x, 1))
    np.testing.assert_allclose(ref.multi_krum(x, 1, 3), [(9 + 2 + 7) / 3])
    # m = n - f = 6: all but 13.
    np.testing.assert_allclose(ref.multi_krum(x, 1), [31 / 6])
    # The mean is unweighted.
    weights = np.array([1, 1, 5, 1, 1, 1, 1])
    np.testing.assert_allclose(ref.multi_krum(x, 1, 3, weights), [6])


def test_bulyan_by_hand() -> None:
    # n = 7, f = 1: theta = 5, gamma = 3.
    x = column(0, 1, 2, 3, 5, 6, 7)
    # 4 neighbours:          0: 39, 1: 22, 2: 1+1+4+9 = 15, 3: 18, 5: 18, 6: 27, 7: 46 -> 2
    # 0 1 3 5 6 7, 3 each:   0: 35, 1: 21, 3: 17, 5: 1+4+4 = 9, 6: 1+1+9 = 11, 7: 21   -> 5
    # 0 1 3 6 7, 2 each:     0: 10, 1: 1+4 = 5, 3: 13, 6: 10, 7: 17                    -> 1
    # 0 3 6 7, 1 each:       0: 9, 3: 9, 6: 1, 7: 1                                    -> 6
    # 0 3 7, 1 each (not 0): 0: 9, 3: 9, 7: 16                                         -> 0
    assert ref.bulyan_selection(x, 1) == [2, 4, 1, 5, 0]
    # Median of 0 1 2 5 6 is 2; the three closest are 2, 1, 0.
    np.testing.assert_array_equal(ref.bulyan(x, 1), [1])
    # In one shot: 15, 18, 18, 22, 27 are the rows 2, 3, 5, 1, 6.
    assert ref.bulyan_selection(x, 1, one_shot=True) == [2, 3, 4, 1, 5]
    # Median of 1 2 3 5 6 is 3; closest are 3, 2, then 1 and 5 are equally close: 1.
    np.testing.assert_array_equal(ref.bulyan(x, 1, one_shot=True), [2])


def test_bulyan_averages_each_coordinate_of_its_own_rows() -> None:
    rng = np.random.default_rng(1)
    for n, f in [(7, 1), (11, 2), (15, 3)]:
        x = rng.normal(size=(n, 4))
        remaining, chosen = set(range(n)), []
        while len(chosen) < n - 2 * f:
            # The rows still there, re-scored by the cheapest subsets.
            count = max(len(remaining) - f - 2, 1)
            scores = {}
            for i in remaining:
                squared = [float(np.sum((x[i] - x[j]) ** 2)) for j in remaining - {i}]
                scores[i] = sum(np.partition(squared, count - 1)[:count])
            least = min(scores.values())
            chosen.append(min(i for i in remaining if scores[i] <= least * (1 + 1e-12)))
            remaining.remove(chosen[-1])
        assert ref.bulyan_selection(x, f) == chosen
        assert len(set(chosen)) == n - 2 * f
        for j, value in enumerate(ref.bulyan(x, f)):
            # The gamma values closest to the median are the run of sorted ones that holds it
            # and whose farthest end is nearest.
            ordered, gamma = np.sort(x[chosen, j]), n - 4 * f
            runs = [ordered[k : k + gamma] for k in range(len(ordered) - gamma + 1)]
            best = min(runs, key=lambda run: np.max(np.abs(run - np.median(ordered))))
            assert value == pytest.approx(np.mean(best), rel=1e-12)


def test_bulyan_with_few_rows_left() -> None:
    # Three rows, f = 1: theta = 1, gamma at least 1. One neighbour: 3 and 4 tie.
    np.testing.assert_array_equal(ref.bulyan(column(0, 3, 4), 1), [3])
    np.testing.assert_array_equal(ref.bulyan(column(0, np.nan, 3, 4), 1), [3])
    np.testing.assert_array_equal(ref.bulyan(column(0, 1), 1, np.zeros(2)), [0])
    # f = 0: all rows, all values.
    np.testing.assert_allclose(ref.bulyan(column(0, 1, 5), 0), [2])


RULES = {
    "mean": ref.mean,
    "median": ref.median,
    "trimmed_mean": lambda x, weights=None: ref.trimmed_mean(x, 2, weights),
    "krum": lambda x, weights=None: ref.krum(x, 2, weights),
    "multi_krum": lambda x, weights=None: ref.multi_krum(x, 2, None, weights),
    "bulyan": lambda x, weights=None: ref.bulyan(x, 2, weights),
}


@pytest.mark.parametrize("rule", RULES.values(), ids=RULES.keys())
def test_rules_on_nasty_matrices(rule) -> None:
    rng = np.random.default_rng(2)
    for name, x in ref.nasty_matrices(12, 5, rng).items():
        assert x.dtype == np.float32 and x.shape == (12, 5)
        result = rule(x)
        assert np.all(np.isfinite(result)), name
        rows = x.astype(np.float64)[np.all(np.isfinite(x), axis=1)]
        assert np.all(result >= rows.min(0) - 1e-12 * np.abs(rows.min(0))), name
        assert np.all(result <= rows.max(0) + 1e-12 * np.abs(rows.max(0))), name
        np.testing.assert_array_equal(result, rule(rows))
        # Weight 0 is deletion.
        weights = np.ones(12)
        weights[[1, 7]] = 0
        np.testing.assert_array_equal(rule(x, weights), rule(x[weights > 0]))
    # Updates or models: the same.
    x = rng.normal(size=(12, 5))
    shift = rng.normal(size=5)
    np.testing.assert_allclose(rule(x + shift), rule(x) + shift, rtol=0, atol=1e-12)


def test_accuracy_auditing() -> None:
    """Accuracies 0.9, 0.5, 0.8 and, absent, 0.1: the median of those present is 0.8."""
    rows = np.array([[0.4], [0.0], [0.3], [-0.4]])
    weights = np.array([1.0, 1.0, 2.0, 0.0])

    def select(drop: float) -> list[int]:
        accuracy = ref.accuracy_auditing_selection
        return accuracy(rows, lambda model: model[0], drop, np.array([0.5]), weights)

    assert select(0.0) == [0, 2]
    assert select(0.25) == [0, 2]
    assert select(0.35) == [0, 1, 2]


def test_cosine_to_model() -> None:
    """Received (1, 0). Of the models (1, 0), (2, 0), (3, 4), (0, 1), (-1, 0), 1 - cos is 0, 0, 0.4, 1, 2:
    median 0.4, deviations 0.4, 0.4, 0, 0.6, 1.6, and their median 0.4."""
    rows = np.array([[0, 0], [1, 0], [2, 4], [-1, 1], [-2, 0]], float)
    received = np.array([1.0, 0.0])
    assert ref.cosine_to_model_selection(rows, received, 0.6) == [2]  # limit 0.356
    assert ref.cosine_to_model_selection(rows, received, 1.0) == [0, 1, 2]  # 0.593, not 0.6
    assert ref.cosine_to_model_selection(rows, received, 1.1) == [0, 1, 2, 3]
    assert ref.cosine_to_model_selection(rows, received, 2.7) == [0, 1, 2, 3, 4]  # 1.601


# --- Attacks -------------------------------------------------------------------------------------


def test_simple_attack_parts() -> None:
    centre, deviation = ref.gaussian_moments(np.array([[0.0, 1.0], [2.0, 1.0], [4.0, 1.0]]))
    np.testing.assert_allclose(centre, [2, 1])
    np.testing.assert_allclose(deviation, [math.sqrt(8 / 3), 0])  # (4 + 0 + 4) / 3, not / 2
    np.testing.assert_array_equal(ref.changing_direction(np.array([0.5, 0, -2])), [1, -1, -1])
    np.testing.assert_array_equal(ref.label_flip(np.array([0, 3, 9, 4]), 10), [9, 6, 0, 5])
    x = np.arange(6.0).reshape(3, 2)
    attacked = ref.replace_rows(x, np.array([True, False, True]), np.array([-1.0, -2.0]))
    np.testing.assert_array_equal(attacked, [[-1, -2], [2, 3], [-1, -2]])
    np.testing.assert_array_equal(x, np.arange(6.0).reshape(3, 2))


def test_theorem_1_by_hand() -> None:
    # n = 6, c = 1, d = 4: the 3 closest of the 4 other benign rows; divisor 3 * 4 = 12.
    benign = np.array([[1, 0, 0, 0], [3, 0, 0, 0], [5, 0, 0, 0], [3, 2, 0, 0], [3, 0, 6, 2.0]])
    # Squared distances from (3, 0, 0, 0): 4, 4, 4, 40. Sum of 3: 12.
    # (1, 0, 0, 0): 4 + 8 + 16 = 28; (5, 0, 0, 0): the same; (3, 2, 0, 0): 4 + 8 + 8 = 20;
    # (3, 0, 6, 2): 40 + 40 + 44 = 124. The least is 12. The longest row: sqrt(9 + 36 + 4) = 7.
    assert ref.fang_krum_bound(benign, 6, 1) == pytest.approx(math.sqrt(12 / 12) + 7 / 2)
    # n = 7, c = 2, d = 1: 3 of 4, divisor 2.
    # -4: 4 + 25 + 81 = 110, -2: 4 + 9 + 49 = 62, 1: 9 + 16 + 25 = 50, 5: 69, 7: 121; farthest 7.
    assert ref.fang_krum_bound(column(-4, -2, 1, 5, 7), 7, 2) == pytest.approx(5 + 7)
    with pytest.raises(ValueError, match="n - c benign"):
        ref.fang_krum_bound(benign, 7, 1)


def test_full_knowledge_by_hand() -> None:
    # Before the attack, Krum (f = 2, 3 neighbours) chooses 7 (0 + 4 + 4, a tie with 5): s = 1.
    # Bound 12 (above). The crafted row has its copy at distance 0 and two more neighbours.
    #   lambda 12: -12: 0 + 64 + 100 = 164;      1: 9 + 16 + 25 = 50 is less
    #   lambda  6:  -6: 0 +  4 +  16 =  20;     -4: 4 + 4 + 4 = 12 is less
    #   lambda  3:  -3: 0 +  1 +   1 =   2;     -4: 1 + 1 + 4 = 6, -2: 6, 1: 41, ...: found
    updates = column(7, 5, -4, -2, 1, 5, 7)
    malicious = np.array([True, True] + [False] * 5)
    attack = ref.fang_krum_full_lambda(updates, malicious)
    assert (attack.lam, attack.found, attack.halvings) == (3.0, True, 2)
    np.testing.assert_array_equal(attack.direction, [1])
    # The same with the malicious rows elsewhere, and mirrored but for the deviation goal.
    order = [2, 0, 3, 4, 1, 5, 6]
    assert ref.fang_krum_full_lambda(updates[order], malicious[order]).lam == 3.0
    mirrored = ref.fang_krum_full_lambda(-updates, malicious)
    np.testing.assert_array_equal(mirrored.direction, [-1])
    assert mirrored.lam == 3.0
    # Deviation goal on the mirrored rows, 4, 2, -1, -5, -7: from 12 down, s = 1 all the same.
    #   12: 0 + 25 + 49 = 74, -1: 50 less; 6: -6: 0 + 1 + 1 = 2, -5: 1 + 1 + 4 = 6: found
    deviation = ref.fang_krum_full_lambda(-updates, malicious, deviation_goal=True)
    np.testing.assert_array_equal(deviation.direction, [1])
    assert (deviation.lam, deviation.halvings) == (6.0, 1)


def test_full_knowledge_without_a_solution() -> None:
    # n = 5, c = 1: 2 neighbours, divisor 2. The least benign sum: 1 + 1, at 2 and 3; farthest 4.
    # Bound 1 + 4 = 5. The crafted -lambda has more than 1 + 4 to 1 and 2: never below 2's 1 + 1.
    # 5 / 2^18 = 1.9e-5, 5 / 2^19 = 9.5e-6 < 1e-5.
    attack = ref.fang_krum_full_lambda(column(2.5, 1, 2, 3, 4), np.arange(5) == 0)
    assert (attack.found, attack.halvings, attack.lam) == (False, 19, 5 / 2**19)


@pytest.mark.parametrize(("n", "c"), [(6, 1), (8, 2), (10, 3), (12, 5)])
def test_full_knowledge_keeps_theorem_1(n: int, c: int) -> None:
    rng = np.random.default_rng(n)
    num_found = 0
    for _ in range(15):
        updates = 0.3 + rng.normal(size=(n, 3))
        malicious = np.arange(n) < c
        bound = ref.fang_krum_bound(updates[c:], n, c)
        attack = ref.fang_krum_full_lambda(updates, malicious)
        assert attack.lam == bound / 2**attack.halvings
        chosen = ref.krum_index(
            ref.replace_rows(updates, malicious, -attack.lam * attack.direction), c
        )
        assert (chosen < c) == attack.found
        if attack.found and attack.halvings:
            # The lambda tried before was refused.
            row = -2 * attack.lam * attack.direction
            assert ref.krum_index(ref.replace_rows(updates, malicious, row), c) >= c
        num_found += attack.found
        # The theorem itself: no lambda beyond the bound is ever chosen.
        for factor in [1.0001, 1.01, 1.1, 1.5, 3.0, 10.0]:
            row = -factor * bound * attack.direction
            assert ref.krum_index(ref.replace_rows(updates, malicious, row), c) >= c
    assert num_found > 0


def test_partial_knowledge_by_hand() -> None:
    own = column(-3, -2, -1, 1)
    # The mean is -1.25: s = -1, the crafted rows are at +lambda. Krum's 2 neighbours for any k.
    # k = 1: least own sum 1 + 1 at -2; 4 - 1 - 1 = 2 benign neighbours: sqrt(2 / 2) + 3 = 4.
    assert ref.fang_krum_partial_bound(own, 1, 1) == pytest.approx(4)
    # The crafted row's best is next to 1 and -1: (1 - lambda)^2 + (1 + lambda)^2 > 2. Never found.
    # k = 2: 1 benign neighbour: sqrt(2 / 1) + 3 = 4.41.
    assert ref.fang_krum_partial_bound(own, 2, 2) == pytest.approx(math.sqrt(2) + 3)
    #   4.41: 0 + 3.41^2 > 2; 2.21: 0 + 1.21^2 = 1.46 < 2 at -2, found
    attack = ref.fang_krum_partial_lambda(own)
    assert (attack.found, attack.copies) == (True, 2)
    assert attack.lam == pytest.approx((math.sqrt(2) + 3) / 2)
    np.testing.assert_array_equal(attack.direction, [-1])
    # The direction is the mean's, whoever comes first.
    assert ref.fang_krum_partial_lambda(own[::-1]) == attack
    # Deviation goal: the crafted row at -lambda. -4: 1 to -3 and 4 to -2, 1 + 4 > 2 at -2.
    # -2: 0 to -2, 1 to -1: 1; the own -2 has 0 + 1, a tie, and the crafted row comes first (eq. 4).
    deviation = ref.fang_krum_partial_lambda(own, deviation_goal=True)
    np.testing.assert_array_equal(deviation.direction, [1])
    assert (deviation.found, deviation.copies, deviation.lam) == (True, 1, 2.0)


def test_partial_knowledge_with_few_own_rows() -> None:
    # c = 1: the crafted row and the own one are each other's only neighbour, a tie at any lambda.
    # The bound's distances are none, its longest row 5: found at the start, 5 / sqrt(2).
    assert ref.fang_krum_partial_bound(np.array([[3.0, 4.0]]), 1, 1) == pytest.approx(5 / 2**0.5)
    attack = ref.fang_krum_partial_lambda(np.array([[3.0, 4.0]]))
    assert (attack.found, attack.copies) == (True, 1)
    assert attack.lam == pytest.approx(5 / 2**0.5)
    # c = 2: one copy on the far side of 0 is farther from 2 than 3 is. Two copies have score 0 at
    # any lambda: found at the start, sqrt(1^2 / 1) + 3 with one own neighbour and divisor 1.
    attack = ref.fang_krum_partial_lambda(column(2, 3))
    assert (attack.found, attack.copies, attack.lam) == (True, 2, 4.0)


@pytest.mark.parametrize("c", [6, 9, 12])
def test_partial_knowledge_keeps_its_bound(c: int) -> None:
    rng = np.random.default_rng(c)
    for _ in range(10):
        own = 0.2 + rng.normal(size=(c, 3))
        attack = ref.fang_krum_partial_lambda(own)
        assert attack.found
        halvings = math.log2(
            ref.fang_krum_partial_bound(own, attack.copies, attack.copies) / attack.lam
        )
        assert halvings == round(halvings) >= 0
        for copies in range(1, c + 1):
            bound = ref.fang_krum_partial_bound(own, copies, copies)
            for factor in [1.001, 1.1, 2.0, 10.0]:
                crafted = np.tile(-factor * bound * attack.direction, (copies, 1))
                chosen = ref.krum_index(np.concatenate([own, crafted]), copies)
                # p = c - k - 1 own neighbours: the bound holds; none: the copies always win.
                assert (chosen < c) == (c - copies - 1 >= 1)
    # Theorem 1 is the case of c + k workers of which k are compromised.
    for copies in range(1, c - 1):
        partial = ref.fang_krum_partial_bound(own, copies, copies)
        assert partial == pytest.approx(ref.fang_krum_bound(own, c + copies, copies))


def test_partial_knowledge_with_another_f() -> None:
    own = 0.2 + np.random.default_rng(5).normal(size=(8, 3))
    attack = ref.fang_krum_partial_lambda(own, simulated_f=lambda copies: 3)
    rows = np.concatenate([np.tile(-attack.lam * attack.direction, (attack.copies, 1)), own])
    assert attack.found
    assert ref.krum_index(rows, 3) < attack.copies


@pytest.mark.parametrize(("n", "c", "f"), [(10, 3, 2), (10, 3, 4), (12, 2, 4), (12, 1, 0)])
def test_full_knowledge_with_another_f_keeps_its_bound(n: int, c: int, f: int) -> None:
    rng = np.random.default_rng(f)
    for _ in range(15):
        updates = 0.3 + rng.normal(size=(n, 3))
        malicious = np.arange(n) < c
        bound = ref.fang_krum_bound(updates[c:], n, c, f)
        attack = ref.fang_krum_full_lambda(updates, malicious, f=f)
        assert attack.lam == bound / 2**attack.halvings
        for factor in [1.0001, 1.1, 1.5, 3.0, 10.0]:
            row = -factor * bound * attack.direction
            assert ref.krum_index(ref.replace_rows(updates, malicious, row), f) >= c


def test_full_knowledge_with_another_f_by_hand() -> None:
    # n = 7, c = 2, f = 1: 4 neighbours, 3 benign ones in the divisor; the 4 other benign rows.
    # -4: 4 + 25 + 81 + 121 = 231, -2: 143, 1: 9 + 16 + 25 + 36 = 86, 5: 150, 7: 246; farthest 7.
    benign = column(-4, -2, 1, 5, 7)
    assert ref.fang_krum_bound(benign, 7, 2, 1) == pytest.approx(math.sqrt(86 / 3) + 7)
    # f = 0 counts 5 neighbours, but there are only 4 other benign rows; divisor 4.
    assert ref.fang_krum_bound(benign, 7, 2, 0) == pytest.approx(math.sqrt(86 / 4) + 7)


def test_full_trim_interval_by_hand() -> None:
    # Benign models: params + updates of the last two rows; the first row is malicious.
    params = np.array([1.0, -5.0, 1.0, -5.0, 0.0])
    updates = np.array([[99.0] * 5, [1.0, 1.0, 1.0, 1.0, 0.0], [2.0, 2.0, 2.0, 2.0, 0.0]])
    direction = np.array([-1.0, -1.0, 1.0, 1.0, -1.0])
    malicious = np.array([True, False, False])
    # Models (2, 3), (-4, -3), (2, 3), (-4, -3), (0, 0):
    #   s = -1, max  3 > 0:  [3, 6]      s = -1, max -3: [-3, -1.5]
    #   s =  1, min  2 > 0:  [1, 2]      s =  1, min -4: [-8, -4]      max 0: [0, 0]
    low, high = ref.fang_trim_full_interval(updates, params, malicious, direction)
    np.testing.assert_allclose(low + params, [3, -3, 1, -8, 0])
    np.testing.assert_allclose(high + params, [6, -1.5, 2, -4, 0])
    # On updates: max 2: [2, 4]; min 1: [0.5, 1]; b = 4: [2, 8], [0.25, 1].
    low, high = ref.fang_trim_full_interval(
        updates, params, malicious, direction, in_model_space=False
    )
    np.testing.assert_allclose(low, [2, 2, 0.5, 0.5, 0])
    np.testing.assert_allclose(high, [4, 4, 1, 1, 0])
    low, high = ref.fang_trim_full_interval(
        updates, params, malicious, direction, b=4.0, in_model_space=False
    )
    np.testing.assert_allclose(low, [2, 2, 0.25, 0.25, 0])
    np.testing.assert_allclose(high, [8, 8, 1, 1, 0])


def test_full_trim_interval_is_beyond_the_benign_rows() -> None:
    rng = np.random.default_rng(3)
    updates, params = rng.normal(size=(10, 50)), rng.normal(size=50)
    malicious = np.arange(10) < 3
    direction = ref.changing_direction(ref.trimmed_mean(updates, 3))
    low, high = ref.fang_trim_full_interval(updates, params, malicious, direction)
    benign = updates[3:]
    assert np.all(low <= high)
    assert np.all(np.where(direction < 0, low - benign.max(0), benign.min(0) - high) >= -1e-12)
    # It moves the rule against the direction in every coordinate; Equation 1's objective is > 0.
    attacked = ref.replace_rows(updates, malicious, (low + high) / 2)
    change = ref.trimmed_mean(attacked, 3) - ref.trimmed_mean(updates, 3)
    assert np.all(direction * change <= 1e-12)


def test_partial_trim_interval_by_hand() -> None:
    # Means 2 and -2, deviations 1 (ddof 0). s = 1: [2 - 4, 2 - 3]; s = -1: [-2 + 3, -2 + 4].
    own = np.array([[1.0, -1.0], [3.0, -3.0]])
    low, high = ref.fang_trim_partial_interval(own)
    np.testing.assert_allclose(low, [-2, 1])
    np.testing.assert_allclose(high, [-1, 2])
    low, high = ref.fang_trim_partial_interval(own, 3.5, 3.5)
    np.testing.assert_allclose(low, high)
    np.testing.assert_allclose(low, [-1.5, 1.5])


def test_deviation_trim_interval_by_hand() -> None:
    # One malicious row of four, trimmed mean f = 1 (the mean of the middle two).
    # Before: 0 0 1 4 -> 0.5. At max 4: 0 1 4 4 -> 2.5; at min 0: 0 0 1 4 -> 0.5. The upper side.
    # Mirrored in the second coordinate: the lower side. Updates: [4, 8] and [-8, -4].
    updates = np.array([[0.0, 0.0], [0.0, 0.0], [1.0, -1.0], [4.0, -4.0]])
    low, high = ref.fang_trim_deviation_interval(
        updates, np.zeros(2), np.arange(4) == 0, lambda u: ref.trimmed_mean(u, 1)
    )
    np.testing.assert_allclose(low, [4, -8])
    np.testing.assert_allclose(high, [8, -4])


# --- Metrics and training ------------------------------------------------------------------------


def test_metrics() -> None:
    removed = np.array([True, True, False, False, True])
    malicious = np.array([True, False, True, False, False])
    assert ref.precision_recall(removed, malicious) == (1 / 3, 1 / 2)
    nothing = np.zeros(5, bool)
    precision, recall = ref.precision_recall(nothing, malicious)
    assert math.isnan(precision) and recall == 0
    precision, recall = ref.precision_recall(removed, nothing)
    assert precision == 0 and math.isnan(recall)
    logits = np.array([[2, 1, 0], [0, 1, 0], [3, 3, 0], [0, 5, 1.0]])
    # Predictions 0, 1, 0 (a tie), 1.
    assert ref.test_error(logits, np.array([0, 1, 1, 0])) == 0.5
    np.testing.assert_array_equal(
        ref.per_class_error(logits, np.array([0, 1, 1, 0])), [0.5, 0.5, np.nan]
    )


def test_sgd_by_hand() -> None:
    # Two classes from zero weights: probabilities 1/2. Residuals (-1/2, 1/2) and (1/2, -1/2).
    # Gradient of w: mean of [2, 0]^T (-1/2, 1/2) and [0, 4]^T (1/2, -1/2).
    x, y = np.array([[2.0, 0.0], [0.0, 4.0]]), np.array([0, 1])
    w, b = ref.softmax_regression_sgd(np.zeros((2, 2)), np.zeros(2), [(x, y)], 0.1)
    np.testing.assert_allclose(w, [[0.05, -0.05], [-0.1, 0.1]])
    np.testing.assert_allclose(b, [0, 0], atol=1e-15)
    # With the second example masked, the mean is over the first alone.
    w, b = ref.softmax_regression_sgd(
        np.zeros((2, 2)), np.zeros(2), [(x, y, np.array([1, 0]))], 0.1
    )
    np.testing.assert_allclose(w, [[0.1, -0.1], [0, 0]])
    np.testing.assert_allclose(b, [0.05, -0.05])
    # An empty batch has no gradient, but momentum 0.5 goes on: 1 + 0.5 of the first step.
    empty = (x, y, np.zeros(2))
    moved, _ = ref.softmax_regression_sgd(
        np.zeros((2, 2)), np.zeros(2), [(x, y), empty], 0.1, momentum=0.5
    )
    np.testing.assert_allclose(moved, [[0.075, -0.075], [-0.15, 0.15]])


def test_sgd_follows_the_slope_of_the_loss() -> None:
    rng = np.random.default_rng(4)
    weights, bias = rng.normal(size=(4, 3)), rng.normal(size=3)
    x, y = rng.normal(size=(5, 4)), rng.integers(0, 3, size=5)

    def loss(w: np.ndarray, b: np.ndarray) -> float:
        logits = x @ w + b
        return float(np.mean(np.log(np.exp(logits).sum(1)) - logits[np.arange(5), y]))

    change_w, change_b = ref.softmax_regression_sgd(weights, bias, [(x, y)], 1.0)
    for index in np.ndindex(4, 3):
        step = np.zeros((4, 3))
        step[index] = 1e-5
        slope = (loss(weights + step, bias) - loss(weights - step, bias)) / 2e-5
        assert change_w[index] == pytest.approx(-slope, abs=1e-8)
    for k in range(3):
        step = 1e-5 * (np.arange(3) == k)
        slope = (loss(weights, bias + step) - loss(weights, bias - step)) / 2e-5
        assert change_b[k] == pytest.approx(-slope, abs=1e-8)


def test_federated_round() -> None:
    rng = np.random.default_rng(6)
    weights, bias = rng.normal(size=(4, 3)), rng.normal(size=3)
    batches = [[(rng.normal(size=(2, 4)), rng.integers(0, 3, size=2))] for _ in range(3)]
    new_weights, new_bias, updates = ref.federated_round(weights, bias, batches, ref.mean, 0.5)
    # One step of everybody on equal batches is one step on all of the data.
    joined = [tuple(np.concatenate(parts) for parts in zip(*(b[0] for b in batches), strict=True))]
    change_w, change_b = ref.softmax_regression_sgd(weights, bias, joined, 0.5)
    np.testing.assert_allclose(new_weights, weights + change_w)
    np.testing.assert_allclose(new_bias, bias + change_b)
    assert updates.shape == (3, 15)
    # An attack on the rows reaches the model.
    _, attacked_bias, _ = ref.federated_round(
        weights, bias, batches, ref.mean, 0.5, attack=lambda u: u + 1
    )
    np.testing.assert_allclose(attacked_bias, new_bias + 1)
