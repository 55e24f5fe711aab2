"""Attacks by formula: values worked out by hand or printed by others, and what they promise."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference as ref

import fedjax_robust as fr
from fedjax_robust.aggregators import (
    bulyan,
    krum,
    mean,
    median,
    norm_clipping,
    trimmed_mean,
)
from fedjax_robust.aggregators.base import stateless
from fedjax_robust.attacks import (
    alie,
    anti_cge,
    byz_mean,
    constant,
    data_poisoning,
    directions,
    in_rounds,
    ipm,
    line_search,
    linear_combination,
    min_max,
    min_sum,
    noise,
    objectives,
    searches,
    sign_flip,
    sign_flip_first,
    sign_flip_mean,
    tailored_displacement,
    tailored_selection,
)
from fedjax_robust.attacks.alie import largest_z
from fedjax_robust.models import SoftmaxRegression
from fedjax_robust.types import Aggregator, Attack, AttackerView, Knowledge

H = np.array([[1, 0], [0, 2], [1, 1], [3, 1]], np.float32)
BYZFL = np.array([[1, 2, 3], [4, 5, 6], [7, 8, 9]], np.float32)  # of its docstrings
UNIT, SIGNS, DEVIATIONS = directions.unit, directions.signs, directions.deviations


def view(
    honest: np.ndarray, own: np.ndarray, rule: Aggregator | None = None, partial: bool = False
) -> AttackerView:
    updates = jnp.concatenate([jnp.asarray(own), jnp.asarray(honest)])
    n, c = len(updates), len(own)
    malicious = jnp.arange(n) < c
    visible = malicious if partial else jnp.ones(n, bool)
    return AttackerView(
        updates=jnp.where(visible[:, None], updates, 0),
        visible=visible,
        reference=malicious if partial else ~malicious,
        malicious=malicious,
        num_malicious=c,
        params=jnp.zeros(updates.shape[1], updates.dtype),
        key=jax.random.key(0),
        aggregate=None if rule is None else rule,
        ids=jnp.arange(n),
    )


@functools.cache
def crafting(
    attack: Attack, rule: Aggregator | None, c: int, partial: bool, one_by_one: bool
) -> Callable:
    def craft(honest: jax.Array, own: jax.Array) -> jax.Array:
        here = view(honest, own, rule, partial)
        return attack.craft(here, attack.init(here.params))[0][:c]

    return craft if one_by_one else jax.jit(craft)


def sent(
    attack: Attack,
    honest: np.ndarray = H,
    c: int = 1,
    rule: Aggregator | None = None,
    own: np.ndarray | None = None,
    one_by_one: bool = False,
) -> np.ndarray:
    """What c attackers send; nothing may hang on their own rows if they see the others'.

    ``one_by_one`` runs one operation after the other: attacks share these compilations."""
    own = np.full((c, honest.shape[1]), 7, honest.dtype) if own is None else own
    craft = crafting(attack, rule, len(own), not attack.needs.others, one_by_one)
    return np.asarray(craft(honest, own))


# --- By hand -------------------------------------------------------------------------------------------


def to_minus_one(mean: jax.Array, params: jax.Array) -> jax.Array:
    return -jnp.ones_like(mean)


@pytest.mark.parametrize(
    ("attack", "c", "row"),
    [
        (linear_combination(to_minus_one), 1, (-10, -9)),
        (linear_combination(to_minus_one), 2, (-5.5, -5)),
        (sign_flip_mean(), 1, (-1.25, -1)),
        (ipm(0.1), 1, (-0.125, -0.1)),
        (ipm(2.0), 1, (-2.5, -2)),
        (alie(1.0, sign=-1.0), 1, (0.1602752641, 0.2928932188)),
        (alie(1.0, sign=-1.0, ddof=1), 1, (-0.0083057392, 0.1835034191)),
        (alie(0.2533471031, sign=-1.0), 1, (0.9739213949, 0.8208565454)),
        (min_max(UNIT), 1, (0, 0)),
        (min_max(SIGNS), 1, (0.0672402959, -0.1827597041)),
        (min_max(DEVIATIONS), 1, (-0.0480424033, 0.1577188666)),
        (min_sum(UNIT, smallest=True), 1, (1.0547827976, 0.8438262381)),
        (min_sum(UNIT), 1, (-0.1165204165, -0.0932163332)),
        (min_sum(SIGNS, smallest=True), 1, (1.25 - 0.1767766953, 1 - 0.1767766953)),
        (min_sum(SIGNS), 1, (1.25 - 1.2374368671, 1 - 1.2374368671)),
        # gamma .1924500897 and 1.3471506281, std with divisor n
        (
            min_sum(DEVIATIONS, smallest=True),
            1,
            (1.25 - 0.1924500897 * 1.0897247359, 1 - 0.1924500897 * 0.7071067812),
        ),
        (
            min_sum(DEVIATIONS),
            1,
            (1.25 - 1.3471506281 * 1.0897247359, 1 - 1.3471506281 * 0.7071067812),
        ),
        (anti_cge(1), 1, (-1.7541160386, -2.6311740579)),
    ],
)
def test_by_hand(attack: Attack, c: int, row: tuple) -> None:
    np.testing.assert_allclose(sent(attack, c=c, one_by_one=True), [row] * c, atol=4e-6)


def test_gammas_by_hand() -> None:
    """gamma = |row - mean| / |p|, p unit, signs, std with divisors n - 1 and n."""
    centre = H.mean(axis=0)
    for attack, length, gamma in (
        (min_max(UNIT), 1.0, 1.6007810594),
        (min_max(SIGNS), math.sqrt(2), 1.1827597041),
        (min_max(DEVIATIONS), 1.5, 1.0315794984),
        (min_max(DEVIATIONS), math.sqrt(1.0897247359**2 + 0.5), 1.1911654022),
        (min_sum(DEVIATIONS), 1.5, 1.1666666667),
        (min_sum(DEVIATIONS, smallest=True), 1.5, 0.1666666667),
    ):
        found = np.linalg.norm(sent(attack, one_by_one=True)[0] - centre) / length
        assert found == pytest.approx(gamma, abs=4e-6)


def test_neither_min_max_nor_min_sum_is_the_closer() -> None:
    rows = np.eye(4, dtype=np.float32)

    def towards(mean: jax.Array, std: jax.Array) -> jax.Array:
        p = mean - jnp.eye(4)[0]
        return p / jnp.linalg.norm(p)

    for attack, gamma in ((min_max(towards), 0.5481881586), (min_sum(towards), 0.8660254038)):
        found = np.linalg.norm(sent(attack, rows)[0] - rows.mean(axis=0))
        assert found == pytest.approx(gamma, rel=1e-5)


@pytest.mark.parametrize(
    ("n", "c", "z"),
    [
        (10, 2, 0),
        (10, 3, 0.1800123698),
        (20, 4, 0.1573106846),
        (20, 5, 0.2533471031),
        (20, 8, 0.6744897502),
        (25, 5, 0.2533471031),
        (25, 11, 1.0675705238),
        (50, 10, 0.2533471031),
        (50, 12, 0.3360381404),
        (50, 24, 1.4260768727),
        (100, 20, 0.2858408749),
        (100, 28, 0.4692528838),
    ],
)
def test_z_of_alie(n: int, c: int, z: float) -> None:
    assert largest_z(n, c) == pytest.approx(z, abs=1e-9)
    assert ref.alie_z(n, c) == pytest.approx(z, abs=1e-9)


def test_z_of_alie_of_who_is_there() -> None:
    """25 rows of which 11 are malicious: 1.0676. Where the malicious are most of them, s = 1: of 4 honest
    rows (4 - 1) / 4. One honest row has no spread, and there is no z."""
    honest = np.array([[-1.0], [1.0]] * 7, np.float32)  # mean 0, std 1
    here = view(honest, np.full((11, 1), 7, np.float32))

    @jax.jit
    def craft(present: jax.Array) -> jax.Array:
        seen = here._replace(
            updates=jnp.where(present[:, None], here.updates, 0),
            visible=present,
            reference=here.reference & present,
        )
        return alie().craft(seen, ())[0][0, 0]

    for number, z in ((14, 1.0675705238), (4, 0.6744897502), (1, -1.0), (0, 0.0)):
        assert craft(np.arange(25) < 11 + number) == pytest.approx(z, abs=1e-5)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"n": 10, "c": 6}, r"alie needs s = floor\(n / 2 \+ 1\) - c >= 1 .* got n=10, c=6"),
        ({"n": 1, "c": 1}, "got n=1, c=1"),
        ({"n": 2, "c": 1}, "more than s"),
        ({"n": 10}, "alie needs z, or both n and c, or none of them, got z=None, n=10, c=None"),
        ({"z": 1.0, "n": 10, "c": 2}, "alie needs z, or both n and c"),
        ({"z": 1.0, "sign": 2.0}, "alie needs sign 1 or -1, got sign=2.0"),
    ],
)
def test_alie_refuses(arguments: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        alie(**arguments)


@pytest.mark.parametrize(
    ("attack", "row"),
    [
        (sign_flip_mean(), (-4, -5, -6)),
        (ipm(2.0), (-8, -10, -12)),
        (alie(1.5, ddof=1), (8.5, 9.5, 10.5)),
    ],
)
def test_examples_of_byzfl(attack: Attack, row: tuple) -> None:
    """Printed in its docstrings."""
    np.testing.assert_allclose(sent(attack, BYZFL, one_by_one=True), [row], rtol=1e-6)


def test_linear_combination_hits_its_target() -> None:
    """What the mean of the package makes of it, weighted too; and back to a model."""
    honest = np.random.default_rng(0).normal(size=(5, 2)).astype(np.float32)
    rows = np.concatenate([sent(linear_combination(), honest, 2), honest])
    np.testing.assert_allclose(mean()(rows), -honest.mean(axis=0), atol=1e-6)
    weights = np.array([2, 1, 5, 0.5, 3, 1, 4], np.float32)
    attack = linear_combination(to_minus_one, weights=weights)
    rows = np.concatenate([sent(attack, honest, 2), honest])
    np.testing.assert_allclose(mean()(rows, weights), [-1, -1], atol=1e-5)
    expected = ref.linear_combination(honest, -np.ones(2), 2, np.roll(weights, -2))
    np.testing.assert_allclose(rows[0], expected, rtol=1e-5)
    partial = linear_combination(to_minus_one, weights=weights, partial=True)
    rows = np.concatenate([sent(partial, honest, own=honest[:2]), [honest[:2].mean(axis=0)] * 5])
    np.testing.assert_allclose(mean()(rows, weights), [-1, -1], atol=1e-5)
    with pytest.raises(ValueError, match="with weights needs a view with ids"):
        attack.craft(view(honest, honest[:2])._replace(ids=None), ())
    with pytest.raises(ValueError, match=r"the target of .* must return shape \(2,\)"):
        sent(linear_combination(lambda mean, params: mean[:1]))


def test_anti_cge_is_kept() -> None:
    """The n - f shortest rows of the five hold it, and their mean is as printed on the sheet."""
    row = sent(anti_cge(1))
    rows = np.concatenate([row, H])
    kept = np.argsort(np.linalg.norm(rows, axis=1), kind="stable")[:4]
    assert 0 in kept
    np.testing.assert_allclose(rows[kept].mean(axis=0), (0.0614709903, 0.0922064855), atol=1e-6)
    # Of the shortest it is as long as the next one, not one rounding longer, also if it is huge.
    for scale in (1e-25, 1e30):
        length = np.linalg.norm(np.float64(sent(anti_cge(1), H * np.float32(scale))))
        assert (1 - 2e-6) * math.sqrt(10) < length / np.float32(scale) < math.sqrt(10)


@pytest.mark.parametrize("c", [1, 2, 5])
def test_byz_mean_makes_its_row_the_mean(c: int) -> None:
    attack = byz_mean(ipm(3.0))
    rows = sent(attack, c=c)
    r = -3 * H.mean(axis=0)
    np.testing.assert_allclose(np.concatenate([rows, H]).mean(axis=0), r, rtol=1e-5)
    np.testing.assert_allclose(rows[: c // 2], np.tile(r, (c // 2, 1)), rtol=1e-6)
    np.testing.assert_allclose(rows, ref.byz_mean(H, r, c), rtol=1e-5)
    assert attack.needs == Knowledge(others=True)
    assert byz_mean(partial=True).needs == Knowledge()


def test_attacks_inside_others_only_craft() -> None:
    training = data_poisoning(fr.local_sgd(*problem()[:1], 0.1, 2))
    with pytest.raises(ValueError, match="byz_mean needs an attack that only crafts"):
        byz_mean(training)
    with pytest.raises(ValueError, match="line_search needs an attack that only crafts"):
        line_search(lambda x: training)


def test_constant_rows() -> None:
    """Rows of infinity and NaN leave the result of every rule what it is without them."""
    np.testing.assert_array_equal(sent(constant(0.0), c=2), np.zeros((2, 2)))
    for value in (math.inf, -math.inf, math.nan):
        rows = sent(constant(value))
        np.testing.assert_array_equal(rows, [[value] * 2])
        received = np.concatenate([rows, H])
        for rule in (mean(), median()):
            np.testing.assert_array_equal(rule(received), rule(received, np.arange(5) > 0))


# --- Min-Max beside all numbers ------------------------------------------------------------------------


def clouds() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(3)
    x = rng.normal(size=(9, 6))
    apart = 1e-3 * x
    apart[4:] += 1e6
    one = 1e-3 * x
    one[2] *= 1e9
    return {
        "ordinary": x,
        "two clusters, 1e6 apart": apart,
        "a row 1e9 times longer": one,
        "a common offset": 1e6 + x,
        "a large offset in one column": x + 1e7 * np.eye(6)[0],
        "tiny": 1e-30 * x,
        "huge": 1e30 * x,
        "scales": x * np.logspace(-6, 6, 9)[:, None],
        "two rows": np.repeat(x[:2], [4, 5], axis=0),
        "all the same": np.repeat(x[:1], 9, axis=0),
    }


@pytest.mark.parametrize("name", clouds())
@pytest.mark.parametrize("direction", [UNIT, SIGNS, DEVIATIONS], ids=lambda d: d.__name__)
def test_min_max_keeps_its_promise_in_float32(name: str, direction: Callable) -> None:
    """The largest distance is the bound, neither more nor less, up to rounding of distances and of the
    row itself. Distances are those of the float32 rows, in float64."""
    honest = clouds()[name].astype(np.float32)
    row = np.float64(sent(min_max(direction), honest, one_by_one=True)[0])
    exact = np.float64(honest)
    bound = max(ref.largest_distance(h, honest) for h in exact)
    largest = ref.largest_distance(row, honest)
    rounding = math.sqrt(6) * np.finfo(np.float32).eps * np.max(np.abs(exact))
    assert largest <= bound * (1 + 3e-6) + rounding
    if direction is not DEVIATIONS or name != "all the same":
        assert largest >= bound * (1 - 3e-6) - rounding

    row = np.float64(sent(min_sum(direction), honest, one_by_one=True)[0])
    scale = np.max(np.abs(exact))
    bound = max(ref.sum_of_squares(h / scale, exact / scale) for h in exact)
    root = math.sqrt(ref.sum_of_squares(row / scale, exact / scale))
    assert root == pytest.approx(math.sqrt(bound), rel=3e-6, abs=3 * rounding / scale + 1e-38)


def test_min_max_is_differentiable() -> None:
    """In the honest rows, against differences in float64; finite where rows agree."""
    with jax.enable_x64(True):
        honest = np.float64(H) + np.array([[0.1, 0.2], [-0.3, 0.1], [0, 0.4], [0.2, 0]])
        weights = np.array([0.3, -0.7])

        def total(x: jax.Array) -> jax.Array:
            row = min_max(DEVIATIONS).craft(view(x, np.ones((1, 2))), ())[0][0]
            return row @ weights

        function = jax.jit(total)
        gradient = jax.jit(jax.grad(total))
        slope = np.asarray(gradient(honest))
        for index in np.ndindex(honest.shape):
            moved = np.zeros_like(honest)
            moved[index] = 1e-6
            difference = float(function(honest + moved) - function(honest - moved)) / 2e-6
            assert slope[index] == pytest.approx(difference, rel=1e-5, abs=1e-8)
        assert np.all(np.isfinite(gradient(np.ones((4, 2)))))


def test_the_published_search_of_min_max() -> None:
    """1.6007804871 on the toy rows, and no more than twice its start on longer ones, where the closed
    form is 100 times itself. Tiny rows are coarse for its absolute tolerance."""
    published = min_max(search=searches.halving(10.0))
    centre = H.mean(axis=0)

    def gamma(attack: Attack, scale: float) -> float:
        rows = H * np.float64(scale)
        return float(np.linalg.norm(sent(attack, rows)[0] - np.float64(scale) * centre))

    with jax.enable_x64(True):
        assert gamma(published, 1) == pytest.approx(1.6007804871, abs=1e-9)
        assert gamma(published, 100) == pytest.approx(20 - 20 / 2**20, abs=1e-8)  # 19.99998
        assert gamma(min_max(), 100) == pytest.approx(160.07810594, abs=1e-6)
        assert gamma(min_max(), 1e-4) == pytest.approx(1.6007810594e-4, abs=1e-13)
        assert abs(gamma(published, 1e-4) / 1.6007810594e-4 - 1) > 0.01
        # Min-Sum, too: below its exact number by no more than the tolerance.
        assert 0 <= 1.75 - gamma(min_sum(search=searches.halving(10.0)), 1) <= 1e-5


# --- Searches ------------------------------------------------------------------------------------------

MAXIMISING = {
    "byzfl": (searches.byzfl(), ref.byzfl_search),
    "byzantine_momentum": (searches.byzantine_momentum(), ref.byzantine_momentum_search),
}


def parabola(x: jax.Array) -> jax.Array:
    return -((x - 3) ** 2)


def test_searches_on_a_parabola() -> None:
    found = {
        name: float(jax.jit(lambda s=s: s(parabola, jnp.ones(())))())
        for name, s in {
            **{name: pair[0] for name, pair in MAXIMISING.items()},
            "golden_section": searches.golden_section(),
        }.items()
    }
    assert found["byzantine_momentum"] == 3.0
    assert found["byzfl"] == pytest.approx(5.12, rel=1e-6)  # it has stepped over the maximum
    assert found["golden_section"] == pytest.approx(3, abs=5e-3)


@pytest.mark.parametrize("name", MAXIMISING)
def test_published_searches_step_by_step(name: str) -> None:
    """On objectives with several maxima, flat parts and a maximum at 0, where one goes halfway back."""
    search, slow = MAXIMISING[name]
    with jax.enable_x64(True):
        fast = jax.jit(
            lambda a: search(
                lambda x: jnp.sin(a[0] * x + a[1]) + jnp.maximum(-((x - a[2]) ** 2), -a[3]),
                jnp.ones(()),
            )
        )
        found = set()
        for seed in range(40):
            a = np.random.default_rng(seed).uniform(0, 1, 4) * [2, 6, 30, 50]
            a = a * (1 if seed % 2 else [1, 1, 0.02, 1])
            expected = slow(
                lambda x, a=a: math.sin(a[0] * x + a[1]) + max(-((x - a[2]) ** 2), -a[3])
            )
            assert float(fast(a)) == pytest.approx(expected, rel=1e-12, abs=1e-300)
            found.add(round(expected, 3))
        assert len(found) > 15


def test_halving_is_the_published_loop() -> None:
    for start, last in ((10.0, 1.6), (10.0, 0.0), (10.0, 25.0), (3.0, 2.999), (50.0, 0.3)):
        fast = jax.jit(
            lambda s, start=start, last=last: searches.halving(start)(lambda x: x <= last, s)
        )
        with jax.enable_x64(True):
            found = fast(jnp.ones((), jnp.float64))
        expected = ref.halving_search(lambda x, last=last: x <= last, start)
        assert float(found) == pytest.approx(expected, abs=1e-12)


def test_bisection_finds_the_last_of_several_intervals() -> None:
    def find(holds: Callable, scale: float = 1.0) -> float:
        return float(jax.jit(lambda s: searches.bisection()(holds, s))(jnp.float32(scale)))

    assert find(lambda x: (x < 0.3) | ((x > 5) & (x < 80))) == pytest.approx(80, rel=1e-3)
    assert find(lambda x: x < 2e-12, 1e-12) == pytest.approx(2e-12, rel=1e-3)
    assert find(lambda x: x > 0) == pytest.approx(1000, rel=1e-4)
    assert find(lambda x: x < 0.004) == pytest.approx(0.004, rel=2e-2)  # below the grid
    assert find(lambda x: x < 0) == 0
    with pytest.raises(ValueError, match=r"bisection needs low < high, got low=2.0, high=1.0"):
        searches.bisection(2.0, 1.0)
    with pytest.raises(ValueError, match="halving needs tolerance < start"):
        searches.halving(1e-6)
    with pytest.raises(TypeError, match="halving needs start to be known"):
        jax.jit(lambda s: searches.halving(s)(lambda x: x < 1, jnp.ones(())))(1.0)


def test_golden_section_keeps_the_best() -> None:
    """NaN is worst, the smallest of equally good numbers is taken, and 0 is among them."""

    def find(objective: Callable) -> float:
        return float(jax.jit(lambda: searches.golden_section()(objective, jnp.ones(())))())

    assert find(lambda x: 0 * x) == 0
    assert find(lambda x: jnp.where(x > 2, jnp.nan, x)) == pytest.approx(2, rel=5e-3)
    assert find(lambda x: x) == pytest.approx(100, rel=1e-5)
    assert find(lambda x: jnp.minimum(x, 1.6)) >= 1.6  # flat from there on
    assert find(lambda x: -jnp.abs(x - 0.003)) == pytest.approx(0.003, abs=1e-4)


# --- Through the defence -----------------------------------------------------------------------------


def mixed(base: Aggregator) -> Aggregator:
    """Nearest neighbour mixing with f = 1, written out."""

    def aggregate(received: fr.Received) -> tuple[jax.Array, dict]:
        x = received.updates
        squares = jnp.sum(jnp.square(x[:, None] - x[None]), axis=2)
        nearest = jnp.argsort(squares, axis=1)[:, : len(x) - 1]
        return base(jnp.mean(x[nearest], axis=1)), {}

    return stateless(aggregate)


PIPELINE = mixed(norm_clipping(2.0, base=trimmed_mean(1)))


@pytest.mark.parametrize(
    ("attack", "rows"),
    [
        (line_search(ipm, searches.byzfl()), (-2.7487790694, -3.4359738368, -4.1231686042)),
        (
            line_search(lambda z: alie(z, ddof=1), searches.byzfl()),
            (12.9198511627, 13.9198511627, 14.9198511627),
        ),
    ],
)
def test_optimal_attacks_of_byzfl(attack: Attack, rows: tuple) -> None:
    """Its printed rows, and tau = 10 * .8^12 = .6871947674 and 2.9732837209."""
    with jax.enable_x64(True):
        found = sent(attack, np.float64(BYZFL), rule=PIPELINE)
    np.testing.assert_allclose(found, [rows], rtol=1e-10)


def moves(rule: Callable, honest: np.ndarray, rows: np.ndarray) -> float:
    received = np.concatenate([rows, honest])
    return float(np.linalg.norm(np.float64(rule(received)) - np.mean(np.float64(honest), axis=0)))


CLOUD = (0.4 + np.random.default_rng(1).normal(size=(10, 4))).astype(np.float32)


def test_our_search_is_no_worse_than_the_published() -> None:
    rule = trimmed_mean(3)
    ours, theirs, other = (
        moves(rule, CLOUD, sent(line_search(alie, search), CLOUD, 3, rule))
        for search in (None, searches.byzfl(), searches.byzantine_momentum())
    )
    assert ours >= max(theirs, other) * (1 - 1e-4) > 0


def test_line_search_of_another_gain() -> None:
    """The inner product with the mean, as IPM has it, instead of a distance; a stateless part of the
    attacker's needs is kept."""

    def against(aggregate: jax.Array, mean: jax.Array) -> jax.Array:
        return -jnp.dot(aggregate, mean)

    attack = line_search(ipm, gain=against)
    assert attack.needs == Knowledge(others=True, rule=True)
    partial = line_search(lambda x: ipm(x, partial=True))
    assert partial.needs == Knowledge(rule=True)
    rows = sent(attack, CLOUD, 3, mean())
    np.testing.assert_allclose(rows, -100 * np.tile(CLOUD.mean(axis=0), (3, 1)), rtol=1e-4)
    with pytest.raises(ValueError, match=r"the gain of line_search must return shape \(\)"):
        sent(line_search(ipm, gain=lambda aggregate, mean: mean), CLOUD, 3, mean())
    with pytest.raises(TypeError, match="what attack returns to line_search needs"):
        line_search(lambda x: x)


def test_line_search_leaves_out_what_the_server_will_drop() -> None:
    """A row with an infinity is invisible, and zeros in its place would count as a row."""
    rule = trimmed_mean(3)
    here = view(CLOUD, CLOUD[:3], rule)
    seen = here.visible.at[5].set(False)
    broken = here._replace(
        updates=jnp.where(seen[:, None], here.updates, 0),
        visible=seen,
        reference=here.reference & seen,
    )
    attack = tailored_displacement()
    rows = np.asarray(jax.jit(lambda: attack.craft(broken, ())[0])())
    without = np.delete(CLOUD, 2, axis=0)
    np.testing.assert_allclose(rows, sent(attack, without, 3, rule), rtol=1e-4, atol=1e-5)


def test_tailored_to_a_trimmed_mean_saturates() -> None:
    """|F - mean| is flat at .6718548124 from gamma 1.61 on: the best is kept, and it is the first."""
    rows = sent(tailored_displacement(), rule=trimmed_mean(1))
    assert moves(trimmed_mean(1), H, rows) == pytest.approx(0.6718548124, abs=1e-6)
    gamma = np.linalg.norm(rows[0] - H.mean(axis=0))
    assert 1.6 < gamma < 1.6 * 1.4


@pytest.mark.parametrize(
    ("rule", "selection"),
    [
        (krum(3), lambda x: [ref.krum_index(x, 3)]),
        (bulyan(2), lambda x: ref.bulyan_selection(x, 2)),
    ],
    ids=["krum", "bulyan"],
)
def test_tailored_to_selection_goes_as_far_as_it_can(rule: Aggregator, selection: Callable) -> None:
    """What the reference rule selects on the same grid, and nothing beyond a fine one."""
    c, honest = 2, np.float64(CLOUD)
    rows = sent(tailored_selection(rule), CLOUD, c)
    centre, p = honest.mean(axis=0), ref.towards_unit(honest)

    def selected(gamma: float) -> bool:
        received = np.concatenate([np.tile(centre + gamma * p, (c, 1)), honest])
        return ref.malicious_selected(selection(received), np.arange(len(received)) < c)

    gamma = (rows[0] - centre) @ p
    expected = ref.last_on_grid(selected, ref.farthest_from_mean(honest))
    assert gamma == pytest.approx(expected, rel=2e-3) and gamma > 0.1
    np.testing.assert_allclose(rows, np.tile(centre + gamma * p, (c, 1)), atol=1e-5)
    fine = np.geomspace(gamma * 0.97, 1e3, 200)
    assert max(g for g in fine if selected(g)) > gamma * 0.96


def test_tailored_selection_needs_a_rule_that_reports() -> None:
    with pytest.raises(ValueError, match="tailored_selection needs a rule that reports which rows"):
        sent(tailored_selection(median()))
    with pytest.raises(ValueError, match="krum needs n > 2f"):
        sent(tailored_selection(krum(3)))
    with pytest.raises(ValueError, match=r"the direction of tailored_selection must return shape"):
        sent(tailored_selection(krum(1), lambda mean, std: mean[:1]))
    with pytest.raises(ValueError, match=r"the direction of min_max must return shape"):
        sent(min_max(lambda mean, std: mean[:1]))
    with pytest.raises(ValueError, match="tailored_displacement evaluates the server's rule"):
        sent(tailored_displacement())


def test_an_impossible_selection_sends_the_mean() -> None:
    """Honest rows that are all the same: whatever else is never among the closest."""
    honest = np.tile(np.float32([1, -2, 3, 0.5]), (10, 1))
    rows = sent(tailored_selection(krum(3)), honest, 2)
    np.testing.assert_allclose(rows, honest[:2], rtol=1e-6)


# --- In runs -----------------------------------------------------------------------------------------


@functools.cache
def problem() -> tuple:
    rng = np.random.default_rng(0)
    x = rng.normal(size=(64, 3)).astype(np.float32)
    pool = {"x": jnp.asarray(x), "y": jnp.asarray(rng.integers(0, 3, 64), jnp.int32)}
    index = jnp.arange(64, dtype=jnp.int32).reshape(8, 8)
    data = fr.FederatedData(pool, index, jnp.full(8, 8, jnp.int32))
    return fr.classification(SoftmaxRegression(3), x[:1]), data


FULL = Knowledge(others=True, rule=True)


def simulation(attack: Attack, knowledge: Knowledge = FULL, **options: object) -> fr.Simulation:
    task, _ = problem()
    options = {"num_malicious": 2, "aggregator": trimmed_mean(2), **options}
    return fr.Simulation(
        task, fr.local_sgd(task, 0.1, None), attack=attack, knowledge=knowledge, **options
    )


def run(sim: fr.Simulation, rounds: int = 3) -> tuple:
    return fr.run(sim, jax.random.key(0), problem()[1], rounds)


def test_in_rounds_and_with_few_participants() -> None:
    """In rounds of five clients, some of them without a malicious one, the second alone poisoned."""
    struck = in_rounds(min_max(), np.array([False, True]))
    options = {"clients_per_round": 5, "aggregator": mean()}
    once, always = (
        np.asarray(run(simulation(attack, **options), 2)[0].params)
        for attack in (struck, min_max())
    )
    assert np.all(np.isfinite(once)) and np.any(once != always)


def test_searches_in_a_run_and_what_they_need() -> None:
    """Through the server's own rule, wrapped; nothing is granted that is not asked for."""
    rule = norm_clipping(0.05, base=median())
    attack = in_rounds(line_search(ipm), np.array([True, True, True]))
    state, _ = run(simulation(attack, aggregator=rule))
    calm, _ = run(simulation(fr.Attack(), aggregator=rule))
    assert np.all(np.isfinite(state.params)) and np.any(state.params != calm.params)
    for attack in (line_search(ipm), min_max(), tailored_displacement(), byz_mean()):
        with pytest.raises(ValueError, match="Knowledge"):
            run(simulation(attack, Knowledge()))


def test_ascent_flips_one_step() -> None:
    """With one local step it is the sign flip of the own update; with several it is not."""
    task, data = problem()
    own = fr.ClientData(data.examples, data.index[0], data.count[0])

    def update(steps: int, objective: Callable | None) -> np.ndarray:
        client = fr.local_sgd(task, 0.1, None, steps=steps, objective=objective)
        start = 0.1 + jnp.zeros_like(task.init(jax.random.key(0)))
        train = jax.jit(lambda: client.update(jax.random.key(0), start, (), own)[0])
        return np.asarray(train())

    np.testing.assert_allclose(update(1, objectives.ascent), -update(1, None), rtol=1e-6)
    up, down = update(3, objectives.ascent), update(3, None)
    assert np.linalg.norm(up) > np.linalg.norm(down) and np.max(np.abs(up + down)) > 1e-3


def test_equal_attacks_are_one() -> None:
    """So that a second, equal simulation is not compiled again."""
    assert min_max(UNIT) is min_max() and min_max(SIGNS) is not min_max()
    assert alie(n=50, c=24) is alie(n=50, c=24)
    assert line_search(ipm, searches.byzfl()) is line_search(ipm, searches.byzfl())
    assert tailored_selection(krum(2)) is tailored_selection(krum(2))


def test_one_compilation_for_all_numbers() -> None:
    """Numbers of attacks may be traced, as line searches do."""

    def craft(x: jax.Array) -> list[jax.Array]:
        many = (
            ipm(x), alie(x), sign_flip(x), sign_flip_first(x), constant(x), noise(x), anti_cge(f=2)
        )  # fmt: skip
        return [attack.craft(view(H, H[:2]), ())[0] for attack in many]

    both = jax.jit(jax.vmap(craft))(np.array([0.5, 2.0], np.float32))
    for k, x in enumerate((0.5, 2.0)):
        single = [
            sent(attack, c=2, own=H[:2])
            for attack in (
                ipm(x), alie(x), sign_flip(x), sign_flip_first(x), constant(x), noise(x), anti_cge(f=2)
            )
        ]  # fmt: skip
        for one, many in zip(single, both, strict=True):
            np.testing.assert_allclose(many[k], one, rtol=1e-5, atol=1e-6)
