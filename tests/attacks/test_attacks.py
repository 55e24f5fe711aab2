"""Every attack against its definition in ``reference``, and what all attacks promise.

A new attack needs one line in ``ATTACKS`` of its family's ``attacks_*.py``: how it is made, and a check
of what it sends; and one in ``NEEDS``. The checks see the attacker's view alone, with the rows it cannot
see zeroed, as the engine does it.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable

import attacks_ahead
import attacks_first_papers
import attacks_formulas
import attacks_memory
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference as ref
from attacks_first_papers import (
    check_around,
    check_krum_full,
    directions,
    full_is_clear,
)
from case import (
    EPSILON,
    MAIN,
    MANY_OWN,
    SHAPES,
    TRACES,
    Case,
    Round,
    Shape,
    clear_rounds,
    compiled,
    make_round,
    send,
    view,
)

from fedjax_robust import attacks
from fedjax_robust.aggregators import krum, mean, median, trimmed_mean
from fedjax_robust.attacks import (
    data_poisoning,
    fang_krum_full,
    fang_krum_partial,
    fang_trim_deviation,
    fang_trim_full,
    fang_trim_partial,
    in_rounds,
    no_attack,
    scaling,
)
from fedjax_robust.attacks.poisons import label_flip
from fedjax_robust.types import Attack, AttackerView, Client, Knowledge

FAMILIES = (attacks_ahead, attacks_first_papers, attacks_formulas, attacks_memory)
ATTACKS: dict[str, Case] = {n: case for family in FAMILIES for n, case in family.ATTACKS.items()}
VARIANTS: dict[str, Case] = {n: case for family in FAMILIES for n, case in family.VARIANTS.items()}
# Public names without a line of their own.
FOLDERS = {
    "backdoors",
    "directions",
    "divisions",
    "objectives",
    "optimised",
    "poisons",
    "repair_aware",
    "searches",
}
PARTIAL = [name for name, case in ATTACKS.items() if not case.attack.needs.others]
CRAFTED = [name for name, case in ATTACKS.items() if case.draws > 2]
every_attack = pytest.mark.parametrize("name", ATTACKS)


@pytest.mark.parametrize(
    ("case", "shape"),
    [
        pytest.param(case, shape, id=f"{name} {shape.n} {shape.c} {shape.d} {shape.absent}")
        for name, case in (ATTACKS | VARIANTS).items()
        for shape in case.shapes
    ],
)
def test_equals_the_reference(case: Case, shape: Shape) -> None:
    for r in clear_rounds(case, shape, 3):
        rows = send(case.attack, r, case.draws)
        assert rows.shape == (case.draws, np.sum(r.malicious), shape.d)
        assert rows.dtype == np.float32
        case.check(rows, r)


def test_the_rounds_are_varied() -> None:
    """What is compared above reaches the branches of the definitions."""
    sides = set()
    for r in clear_rounds(ATTACKS["fang_trim_full"], MAIN, 3):
        models = r.honest + r.params
        down = directions(r) < 0
        sides |= {("above", *pair) for pair in zip(down, models.max(axis=0) > 0, strict=True)}
        sides |= {("below", *pair) for pair in zip(~down, models.min(axis=0) > 0, strict=True)}
    assert {("above", True, True), ("above", True, False)} <= sides
    assert {("below", True, True), ("below", True, False)} <= sides

    halvings, bounds_differ, copies = set(), 0, set()
    for shape in SHAPES:
        for r in clear_rounds(ATTACKS["fang_krum_full"], shape, 3):
            halvings.add(
                ref.fang_krum_full_lambda(r.updates[r.present], r.malicious[r.present]).halvings
            )
    for shape in MANY_OWN:
        for r in clear_rounds(ATTACKS["fang_krum_partial"], shape, 3):
            copies.add(ref.fang_krum_partial_lambda(r.own).copies)
    assert len(halvings) > 2 and len(copies) > 1, (halvings, copies)
    r = clear_rounds(VARIANTS["fang_krum_full f"], MAIN, 1)[0]
    x, malicious = r.updates[r.present], r.malicious[r.present]
    for f in (2, 5):  # c = 6
        lam, default = (ref.fang_krum_full_lambda(x, malicious, f=g).lam for g in (f, None))
        bounds_differ += math.log2(lam / default) % 1 > 1e-3
    assert bounds_differ == 2


# --- By hand ---------------------------------------------------------------------------------------


def by_hand(own: list[float], honest: list[float]) -> Round:
    """One parameter, received model 0; all in one shape, the other rows are absent."""
    updates = np.full((14, 1), 99.0, np.float32)
    updates[: len(own), 0], updates[6 : 6 + len(honest), 0] = own, honest
    present = np.isin(np.arange(14), [*range(len(own)), *range(6, 6 + len(honest))])
    return Round(updates, present & (np.arange(14) < 6), present, 6, np.zeros(1, np.float32), 0)


FULL, FULL_DEVIATION = ATTACKS["fang_krum_full"], VARIANTS["fang_krum_full deviation"]
OWN, OWN_DEVIATION = ATTACKS["fang_krum_partial"], VARIANTS["fang_krum_partial deviation"]


def test_krum_attack_by_hand() -> None:
    """Worked out in ``test_reference.py``."""
    r = by_hand([7, 5], [-4, -2, 1, 5, 7])
    # Before the attack Krum chooses 7: s = 1. Bound 12; Krum refuses -12 and -6, and takes -3.
    assert send(FULL.attack, r)[0, 0] == pytest.approx(-3)
    mirrored = r._replace(updates=-r.updates)
    assert send(FULL.attack, mirrored)[0, 0] == pytest.approx(3)
    # Deviation goal: always downwards, here towards the mirrored rows, and -6 is taken.
    assert send(FULL_DEVIATION.attack, mirrored)[0, 0] == pytest.approx(-6)
    # No lambda works: bound 5, halved until it is below the threshold.
    assert send(FULL.attack, by_hand([2.5], [1, 2, 3, 4]))[0, 0] == pytest.approx(-5 / 2**19)


def test_krum_attack_search_ends() -> None:
    """Even where the arguments leave it nothing to end at."""
    r = by_hand([2.5], [1, 2, 3, 4])  # no lambda works
    assert np.all(np.abs(send(fang_krum_full(threshold=0.0), r)) < 1e-30)
    # A direction without length: no bound.
    np.testing.assert_array_equal(send(fang_krum_full(direction=jnp.zeros_like), r), [[[0]]])


@pytest.mark.parametrize(
    ("case", "own", "expected"),
    [
        # s = -1. One copy is never taken; with two the bound is sqrt(2) + 3, and half of it is.
        (OWN, [-3, -2, -1, 1], (math.sqrt(2) + 3) / 2),
        # -2 lies on an own row and ties with it; the crafted one comes first (eq. 4).
        (OWN_DEVIATION, [-3, -2, -1, 1], -2),
        # c = 1: the crafted row and the own one are each other's only neighbour. Bound 3.
        (OWN, [3], -3),
        # c = 2: one copy is never taken, and two have score 0 at the bound 1 + 3.
        (OWN, [2, 3], -4),
    ],
)
def test_partial_krum_attack_by_hand(case: Case, own: list[float], expected: float) -> None:
    """In float64: of the first, 2 + 2 lambda^2 against 2 is a tie in float32 for a small lambda."""
    with jax.enable_x64(True):
        r = by_hand(own, [50, 100, -70])
        rows = send(case.attack, r._replace(updates=r.updates.astype(float)))
    assert rows[0, 0] == pytest.approx(expected, rel=1e-6)


def test_trim_attack_by_hand() -> None:
    """The intervals at a drawn quantile, for each of the four branches."""
    # Models of the honest rows: (2, 3), (-4, -3), (2, 3), (-4, -3). Where the mean of all rows falls:
    #   [3, 6], [-3, -1.5]; where it rises: [1, 2], [-8, -4].
    params = np.array([1, -5, 1, -5], np.float32)
    updates = np.array([[-99, -99, 99, 99], [1, 1, 1, 1], [2, 2, 2, 2]], np.float32)
    r = Round(updates, np.arange(3) < 1, np.ones(3, bool), 1, params, 0)
    models = send(ATTACKS["fang_trim_full"].attack, r, 2000)[:, 0] + params
    np.testing.assert_allclose(models.min(axis=0), [3, -3, 1, -8], atol=0.02)
    np.testing.assert_allclose(models.max(axis=0), [6, -1.5, 2, -4], atol=0.02)
    assert np.all(models >= np.array([3, -3, 1, -8]) - 1e-5)
    assert np.all(models <= np.array([6, -1.5, 2, -4]) + 1e-5)


# --- What the attacks achieve ------------------------------------------------------------------------


def replaced(r: Round, rows: np.ndarray) -> np.ndarray:
    updates = r.updates.copy()
    updates[r.malicious] = rows
    return updates


@pytest.mark.parametrize("case", [FULL, FULL_DEVIATION], ids=["directed", "deviation"])
def test_krum_selects_the_crafted_row(case: Case) -> None:
    """The rows sent, not only the ones assumed in the search, against the rule of the package."""
    rule = jax.jit(krum(f=5).__call__)
    for r in clear_rounds(case, MAIN._replace(absent=(5,)), 8):
        rows = send(case.attack, r, case.draws)[0]
        before, after = (
            np.asarray(rule(updates, r.present.astype(np.float32)))
            for updates in (r.updates, replaced(r, rows))
        )
        assert np.min(np.linalg.norm(rows - after, axis=1)) == 0
        # It goes against what Krum would have done.
        s = np.sign(before) if case is FULL else np.ones_like(before)
        assert np.dot(s, after) < np.dot(s, before)


def test_trim_attack_moves_the_rules_against_their_direction() -> None:
    case = ATTACKS["fang_trim_full"]
    rules = [jax.jit(rule.__call__) for rule in (trimmed_mean(2), median())]
    for r in clear_rounds(case, MAIN, 3):
        received = replaced(r, send(case.attack, r, case.draws)[0])
        for rule in rules:
            change = np.asarray(rule(received)) - np.asarray(rule(r.updates))
            assert np.all(change * directions(r) < 0)


def test_the_ball_is_filled_uniformly() -> None:
    case = VARIANTS["fang_krum_full epsilon threshold"]  # epsilon = 3
    r = clear_rounds(case, MAIN, 1)[0]
    rows = send(case.attack, r, case.draws)
    offsets = ((rows[:, 1:] - rows[:, :1]) / 3.0).reshape(-1, 5)
    lengths = np.linalg.norm(offsets, axis=1)
    assert np.max(lengths) <= 1 + 1e-5
    error = 5 / math.sqrt(len(lengths))
    # |x|^d is uniform in [0, 1], and the direction has no preference.
    np.testing.assert_allclose(np.mean(lengths**5), 1 / 2, atol=error * math.sqrt(1 / 12))
    np.testing.assert_allclose(np.mean(lengths**10), 1 / 3, atol=error * math.sqrt(4 / 45))
    units = offsets / lengths[:, None]
    assert np.max(np.abs(np.mean(units, axis=0))) < error / math.sqrt(5)
    covariance = units.T @ units / len(units) * 5
    assert np.max(np.abs(covariance - np.eye(5))) < error * 2


# --- What all attacks promise ------------------------------------------------------------------------


def test_every_public_attack_is_in_the_table() -> None:
    """So that none is published without what follows. Folders hold what attacks are made of, and no
    factory of one that is not in the table."""
    assert set(ATTACKS) == set(attacks.__all__) - FOLDERS
    for name in FOLDERS:
        folder = getattr(attacks, name)
        assert inspect.ismodule(folder)
        for part in vars(folder):
            returned = getattr(getattr(folder, part), "__annotations__", {}).get("return")
            assert part in ATTACKS or returned not in ("Attack", Attack), f"{name}.{part}"


@every_attack
def test_invisible_rows_do_not_matter(name: str) -> None:
    """Even if they were not zeroed: absent rows for all, honest rows for partial knowledge.

    The attack also is the same under vmap, which ``send`` uses, and without.
    """
    case = ATTACKS[name]
    r = clear_rounds(case, MAIN._replace(absent=(3, 9)), 1)[0]
    own = r.malicious[:6]
    visible = r.present if case.attack.needs.others else r.malicious
    key = jax.random.split(jax.random.key(0), case.draws)[0]

    @jax.jit
    def craft(updates: jax.Array) -> jax.Array:
        unhidden = view(r, key, case.attack.needs)._replace(updates=updates)
        return case.attack.craft(unhidden, case.attack.init(unhidden.params))[0][:6]

    expected = send(case.attack, r, case.draws)[0]
    for value in (0, 50, -1e4):
        other = np.where(visible[:, None], r.updates, np.float32(value))
        np.testing.assert_allclose(np.asarray(craft(other))[own], expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", CRAFTED)
def test_draws_follow_the_key(name: str) -> None:
    case = ATTACKS[name]
    r = clear_rounds(case, MAIN, 1)[0]
    first, again = (send(case.attack, r, case.draws, seed=1) for _ in range(2))
    np.testing.assert_array_equal(first, again)
    assert not np.array_equal(first, send(case.attack, r, case.draws, seed=2))
    # Malicious clients do not send the same.
    assert np.min(np.abs(first[0, 1] - first[0, 2])) > 0


@every_attack
def test_second_call_does_not_recompile(name: str) -> None:
    case = ATTACKS[name]
    send(case.attack, make_round(0, MAIN), case.draws)
    traces = TRACES[case.attack]
    for seed, shape in enumerate(MANY_OWN):
        send(case.attack, make_round(seed, shape), case.draws, seed)
    assert TRACES[case.attack] == traces > 0


@every_attack
def test_finite_in_odd_situations(name: str) -> None:
    """All rounds have one shape, so that each attack is compiled once."""
    case = ATTACKS[name]
    rounds = {
        "one malicious": make_round(0, MAIN._replace(absent=(1, 2, 3, 4, 5))),
        "malicious alone": make_round(1, MAIN._replace(absent=tuple(range(6, 14)))),
        "one client alone": make_round(2, MAIN._replace(absent=tuple(range(1, 14)))),
        "one of each": make_round(3, MAIN._replace(absent=(*range(1, 6), *range(7, 14)))),
        "no malicious": make_round(4, MAIN._replace(absent=tuple(range(6)))),
        "nobody": make_round(5, MAIN._replace(absent=tuple(range(14)))),
    }
    zero = np.zeros(5, np.float32)
    for what, x in ref.nasty_matrices(14, 5, np.random.default_rng(6)).items():
        if np.all(np.isfinite(x)):
            rounds[what] = make_round(6, MAIN)._replace(updates=x, params=zero)
    for what, r in rounds.items():
        for row in (0, -1):  # whichever it is, the huge row may be hidden or not
            r = r._replace(updates=np.roll(r.updates, row, axis=0))
            arrays = (r.updates, r.malicious, r.present, r.params)
            keys = jax.random.split(jax.random.key(0), case.draws)
            rows = np.asarray(compiled(case.attack, 6, 2)(keys, arrays))
            # The variance of a row of 1e30 is beyond float32: the server will drop what is sent.
            if name != "gaussian" or "huge" not in what:
                assert np.all(np.isfinite(rows)), what


def test_krum_attack_beside_a_huge_honest_row() -> None:
    """A diverged honest client puts the bound many halvings away from what Krum accepts."""
    for size in (1e8, 1e12, 1e30):
        for r in clear_rounds(FULL, MAIN, 3):
            r.updates[9] = np.float32(size) * np.sign(r.updates[9])
            rows = send(FULL.attack, r, FULL.draws)
            if size < 1e9:
                assert full_is_clear(r)
                check_krum_full(rows, r)
            lam = np.abs(rows[0, 0])
            np.testing.assert_allclose(lam, lam[0], rtol=1e-6)
            assert lam[0] > 0.05 and ref.krum_index(replaced(r, rows[0]), 6) < 6


def test_krum_attack_on_small_updates() -> None:
    """The bound is tried even if it is below the threshold: no copy is added without need."""
    r = clear_rounds(OWN, MAIN, 1)[0]
    r = r._replace(updates=r.updates * np.float32(2.0**-23))
    # With f = 5 = c - 1 Krum counts one neighbour: one copy does not win, two do at any lambda.
    attack = ref.fang_krum_partial_lambda(r.own, simulated_f=lambda copies: 5)
    assert attack.found and attack.copies == 2 and attack.lam < 1e-5
    rows = send(fang_krum_partial(simulated_f=lambda copies: 5), r)
    check_around(rows[:, :1], -attack.lam * attack.direction, r, EPSILON)


@pytest.mark.parametrize("name", ["fang_krum_full", "fang_krum_partial", "fang_trim_full"])
def test_float64(name: str) -> None:
    case = ATTACKS[name]
    with jax.enable_x64(True):
        r = clear_rounds(case, MAIN, 1)[0]
        r = r._replace(updates=r.updates.astype(float), params=r.params.astype(float))
        rows = send(case.attack, r, case.draws)
        assert rows.dtype == np.float64
        case.check(rows, r)


def test_vmap_over_hyperparameters() -> None:
    """One compilation serves all values of b, epsilon, threshold, low and high."""
    r = clear_rounds(OWN, MAIN, 1)[0]

    def craft(b: jax.Array, epsilon: jax.Array, threshold: jax.Array, high: jax.Array) -> list:
        attacks = [
            fang_trim_full(b),
            fang_trim_partial(3.0, high),
            fang_krum_full(epsilon=epsilon),
            fang_krum_partial(threshold=threshold),
        ]
        return [attack.craft(view(r, 0, attack.needs), ())[0][:6] for attack in attacks]

    values = [[1.5, 4.0], [0.0, 2.0], [1e-5, 0.5], [3.5, 9.0]]
    values = [np.array(pair, np.float32) for pair in values]
    one, many = jax.jit(craft), jax.jit(jax.vmap(craft))(*values)
    for k in range(2):
        for result, expected in zip(many, one(*[pair[k] for pair in values]), strict=True):
            np.testing.assert_allclose(result[k], expected, rtol=1e-5, atol=1e-5)
    for result in many[:3]:
        assert np.max(np.abs(result[0] - result[1])) > 1e-2
    np.testing.assert_array_equal(many[2][0], np.tile(many[2][0][0], (6, 1)))  # epsilon = 0


# --- Preconditions and declarations ------------------------------------------------------------------


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: fang_trim_full(b=1.0), "needs b > 1, got b=1.0"),
        (lambda: fang_trim_deviation(b=0.5), "needs b > 1, got b=0.5"),
        (
            lambda: fang_trim_partial(4, 3),
            "fang_trim_partial needs 0 <= low <= high, got low=4, high=3",
        ),
        (lambda: fang_trim_partial(-1, 3), "0 <= low <= high, got low=-1, high=3"),
        (lambda: fang_trim_partial(jnp.float32(4), np.array(3.0)), "0 <= low <= high, got low=4.0"),
        (lambda: fang_trim_partial(np.nan, 3), "fang_trim_partial needs low a finite number"),
        (lambda: fang_trim_partial(1, np.inf), "fang_trim_partial needs high a finite number"),
        (lambda: fang_trim_full(b=np.nan), "fang_trim_full needs b a finite number, got b=nan"),
        (lambda: fang_trim_full(b=np.array(1)), "fang_trim_full needs b > 1, got b=1"),
        (lambda: fang_trim_deviation(b=np.inf), "fang_trim_deviation needs b a finite number"),
        (lambda: fang_krum_full(-1), "fang_krum_full needs f >= 0, got f=-1"),
        (lambda: fang_krum_full(1.5), "fang_krum_full needs f to be a whole number"),
        (lambda: fang_krum_full(np.array(np.nan)), "fang_krum_full needs f to be a whole number"),
        (lambda: fang_krum_full(epsilon=np.nan), "fang_krum_full needs epsilon >= 0"),
        (
            lambda: fang_krum_full(epsilon=-0.1),
            "fang_krum_full needs epsilon >= 0, got epsilon=-0.1",
        ),
        (lambda: fang_krum_full(epsilon=np.inf), "fang_krum_full needs epsilon >= 0 and finite"),
        (
            lambda: fang_krum_full(threshold=-1),
            "fang_krum_full needs threshold >= 0, got threshold=-1",
        ),
        (lambda: fang_krum_full(threshold=jnp.array(np.nan)), "needs threshold >= 0"),
        (lambda: fang_krum_partial(epsilon=-1), "fang_krum_partial needs epsilon >= 0"),
        (lambda: fang_krum_partial(threshold=np.inf), "fang_krum_partial needs threshold >= 0"),
        (lambda: label_flip(1), "label_flip needs num_classes >= 2, got num_classes=1"),
    ],
)
def test_preconditions(make: Callable[[], object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: fang_krum_full(before=mean), "before to be an Aggregator.*call it: before=mean"),
        (lambda: fang_krum_full(direction=1.0), "direction to be a function"),
        (lambda: fang_krum_full(epsilon="1"), "epsilon to be a number"),
        (lambda: fang_krum_partial(direction=None), "direction to be a function"),
        (lambda: fang_krum_partial(simulated_f=3), "simulated_f to be a function"),
        (lambda: fang_trim_full(before=lambda x: x), "before to be an Aggregator"),
        (lambda: fang_trim_full(b="2"), "b to be a number"),
        (lambda: fang_trim_partial(None, 3), "low to be a number"),
    ],
)
def test_wrong_types(make: Callable[[], object], message: str) -> None:
    with pytest.raises(TypeError, match=message):
        make()


def test_fang_attacks_refuse_when_called() -> None:
    r = make_round(0, MAIN)

    def craft(attack: Attack, **known: object) -> object:
        return attack.craft(view(r)._replace(**known), ())

    for f in (50, 6, np.array(50)):
        with pytest.raises(ValueError, match=r"fang_krum_full needs n > 2f \+ 2, .* got n=14, f="):
            craft(fang_krum_full(f))
    for attack in (fang_trim_full(), fang_trim_deviation()):
        with pytest.raises(ValueError, match=r"the view has none.*grant Knowledge\(.*rule=True\)"):
            craft(attack, aggregate=None)
    craft(fang_trim_full(before=mean()), aggregate=None)
    for attack in (fang_krum_full(direction=jnp.sum), fang_krum_partial(direction=jnp.sum)):
        with pytest.raises(ValueError, match=r"direction must return shape \(5,\), got \(\)"):
            craft(attack)
    for wrong in (-1, 1.5):
        with pytest.raises(ValueError, match="simulated_f, which returns the simulated Krum's f"):
            craft(fang_krum_partial(simulated_f=lambda copies, wrong=wrong: wrong))


def test_equal_fang_attacks_are_one() -> None:
    """So that a second, equal simulation is not compiled again."""
    assert fang_krum_full(2, before=mean()) is fang_krum_full(f=2, before=mean())
    assert fang_trim_full(b=2.0) is fang_trim_full()
    assert fang_krum_full(epsilon=0.5) is not fang_krum_full(epsilon=0.25)


def test_one_krum_attack_for_all_f() -> None:
    r = clear_rounds(VARIANTS["fang_krum_full f"], MAIN, 1)[0]
    many = jax.vmap(lambda f: fang_krum_full(f).craft(view(r), ())[0][0])(jnp.arange(2, 6))
    for f in range(2, 6):
        attack = ref.fang_krum_full_lambda(r.updates, r.malicious, f)
        if full_is_clear(r, f):
            np.testing.assert_allclose(many[f - 2], -attack.lam * attack.direction, rtol=1e-4)


BEFORE = {
    "mean": (fang_krum_full(before=mean()), ref.mean),
    "median": (fang_krum_full(before=median()), ref.median),
}


@pytest.mark.parametrize("name", BEFORE)
def test_krum_attack_along_the_change_of_another_rule_with_absent_rows(name: str) -> None:
    """``before`` is told who is there: absent rows hold large numbers here, and zeros in the engine,
    which would shift a median."""
    attack, rule = BEFORE[name]
    params = jnp.zeros(5)

    @jax.jit
    def craft(updates: jax.Array, present: jax.Array, malicious: jax.Array) -> jax.Array:
        hidden = view(Round(updates, malicious, present, 6, params, 2))
        return attack.craft(hidden._replace(updates=updates), ())[0][:6]

    found = 0
    for absent in [(9,), (1, 7, 12), (0, 3, 6, 13)]:
        for seed in range(12):
            r = make_round(seed, MAIN._replace(absent=absent))
            if not full_is_clear(r, before=rule):
                continue
            here = r.updates[r.present]
            expected = ref.fang_krum_full_lambda(here, r.malicious[r.present], before=rule)
            for value in (0, 1e4):
                other = np.where(r.present[:, None], r.updates, np.float32(value))
                found += np.any(ref.changing_direction(rule(other)) != expected.direction)
                rows = np.asarray(craft(other, r.present, r.malicious))[r.malicious[:6]]
                offsets = np.linalg.norm(rows + expected.lam * expected.direction, axis=1)
                assert np.all(offsets <= EPSILON + 1e-4 * expected.lam)
    assert found > 3  # rounds in which it would make a difference


def test_trim_attack_beside_the_largest_floats() -> None:
    """b times an honest value may be infinite, and a row with an infinity is dropped."""
    r = make_round(0, MAIN)
    r.updates[8] = 3e38 * np.sign(r.updates[8])
    for attack in (fang_trim_full(), fang_trim_deviation()):
        assert np.all(np.isfinite(send(attack, r)))


def test_knowledge_that_attacks_need() -> None:
    """Partial knowledge needs neither the others' updates nor the rule."""
    needs = {name: need for family in FAMILIES for name, need in family.NEEDS.items()}
    assert {name: case.attack.needs for name, case in ATTACKS.items()} == needs
    # The direction of a rule of its own choice, the attacker can work out itself.
    assert VARIANTS["fang_trim_full before"].attack.needs == Knowledge(others=True)


def test_data_poisoning_trains_with_its_client() -> None:
    client = Client(lambda p: (), lambda *_: None)
    assert data_poisoning(client).client is client
    assert no_attack().client is None


@pytest.mark.parametrize("num_classes", [2, 10])
def test_label_flip(num_classes: int) -> None:
    y = np.resize(np.arange(num_classes), 25).astype(np.int32)
    batch = {"x": jnp.ones((25, 3)), "y": jnp.asarray(y), "mask": jnp.arange(25.0)}
    flipped = jax.jit(label_flip(num_classes))(jax.random.key(0), batch)
    np.testing.assert_array_equal(flipped["y"], ref.label_flip(y, num_classes))
    assert flipped["y"].dtype == jnp.int32 and set(flipped) == {"x", "y", "mask"}
    np.testing.assert_array_equal(flipped["x"], batch["x"])
    np.testing.assert_array_equal(flipped["mask"], batch["mask"])
    np.testing.assert_array_equal(batch["y"], y)


def counting_attack() -> Attack:
    """Its k-th strike sends k + 1 everywhere."""

    def craft(view: AttackerView, state: jax.Array) -> tuple[jax.Array, jax.Array]:
        return jnp.full_like(view.updates, state + 1), state + 1

    return Attack(lambda params: jnp.int32(0), craft, needs=Knowledge(others=True))


def test_in_rounds_strikes_in_poisoned_rounds_and_never_after_the_last() -> None:
    r = make_round(0, MAIN)
    schedules = jnp.array([[True, False, True], [False, False, False], [False, True, True]])

    def play(poisoned: jax.Array) -> jax.Array:
        attack = in_rounds(counting_attack(), poisoned)
        state, sent = attack.init(jnp.asarray(r.params)), []
        for _ in range(5):
            rows, state = attack.craft(view(r), state)
            sent.append(rows)
        return jnp.stack(sent)

    sent = np.asarray(jax.jit(jax.vmap(play))(schedules))
    assert sent.shape == (3, 5, r.num_malicious, r.updates.shape[1])
    honest = r.updates[: r.num_malicious]
    for rows, strikes in zip(sent, ([1, 0, 2], [0, 0, 0], [0, 1, 2]), strict=True):
        for k, strike in enumerate([*strikes, 0, 0]):  # rounds 3 and 4 are beyond the schedule
            assert np.array_equal(rows[k], np.full_like(honest, strike) if strike else honest)


def test_in_rounds_refuses_what_it_cannot_switch() -> None:
    assert in_rounds(counting_attack(), jnp.ones(2, bool)).needs == Knowledge(others=True)
    client = Client(lambda p: (), lambda *_: None)
    with pytest.raises(ValueError, match=r"needs client, the honest ones', if and only if"):
        in_rounds(data_poisoning(client), jnp.ones(2, bool))
    with pytest.raises(ValueError, match=r"needs client, the honest ones', if and only if"):
        in_rounds(no_attack(), jnp.ones(2, bool), client)
    for bad in (jnp.ones(2), jnp.ones((2, 2, 2), bool), jnp.ones(0, bool)):
        with pytest.raises(ValueError, match=r"poisoned \(R,\) or \(R, c\) of bool.*got shape"):
            in_rounds(no_attack(), bad)


def test_in_rounds_by_client() -> None:
    """Clients 0, 1 and 2 strike in rounds 0, 1 and both; client 7 is beyond the schedule."""
    r = make_round(0, MAIN)
    schedule = jnp.array([[True, False, True], [False, True, True]])
    attack = in_rounds(scaling(3.0), schedule)
    ids = jnp.array([0, 1, 2, 7, 8, 9, *range(20, 28)], jnp.int32)
    state = attack.init(jnp.asarray(r.params))
    for strikes in ([0, 2], [1, 2], []):
        rows, state = attack.craft(view(r)._replace(ids=ids), state)
        factor = np.where(np.isin(np.arange(6), strikes), 3, 1)[:, None]
        np.testing.assert_allclose(rows, factor * r.updates[:6], rtol=1e-6)

    def only_striking(view: AttackerView, state: tuple) -> tuple[jax.Array, tuple]:
        return jnp.broadcast_to(jnp.sum(view.malicious), view.updates.shape), state

    attack = in_rounds(Attack(craft=only_striking), schedule)
    rows, _ = attack.craft(view(r)._replace(ids=ids), attack.init(jnp.asarray(r.params)))
    np.testing.assert_array_equal(rows[jnp.array([0, 2])], 2)
