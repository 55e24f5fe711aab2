"""One round as an attacker sees it, and what a line of the table of attacks holds.

Each ``attacks_*.py`` beside this file holds the lines of one family, ``test_attacks.py`` joins them.
"""

from __future__ import annotations

import collections
import functools
import itertools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from fedjax_robust.aggregators import trimmed_mean
from fedjax_robust.types import Attack, AttackerView, Knowledge

TRACES: collections.Counter[Attack] = collections.Counter()
EPSILON = 0.01  # the default radius of the ball
ALL = Knowledge(others=True, rule=True)


class Round(NamedTuple):
    """One round before the attack, from which the attacker's view is made."""

    updates: np.ndarray
    """(n, d) float32"""
    malicious: np.ndarray
    """(n,) bool, the malicious rows that are present"""
    present: np.ndarray
    """(n,) bool"""
    num_malicious: int
    params: np.ndarray
    f: int = 2
    """of the server's trimmed mean"""

    @property
    def honest(self) -> np.ndarray:
        return self.updates[self.present & ~self.malicious]

    @property
    def own(self) -> np.ndarray:
        return self.updates[self.malicious]


class Shape(NamedTuple):
    n: int
    c: int
    d: int
    absent: tuple[int, ...] = ()


# Malicious and honest rows are absent, the first one too. One (n, c, d) is compiled only once.
MAIN = Shape(14, 6, 5)
MANY_OWN = (MAIN, MAIN._replace(absent=(3, 9)), MAIN._replace(absent=(0, 2, 13)))
TWO_OWN = (*MANY_OWN, Shape(10, 2, 20, (5,)))
SHAPES = (*TWO_OWN, MAIN._replace(absent=(0, 1, 2, 3, 5)))


def make_round(seed: int, shape: Shape, f: int = 2) -> Round:
    """Honest-looking rows with a common shift; rows 0 .. c - 1 are malicious, ``absent`` ones missing."""
    n, c, d, absent = shape
    rng = np.random.default_rng(seed)
    updates = (0.3 * rng.choice([-1, 1], size=d) + rng.normal(size=(n, d))).astype(np.float32)
    present = ~np.isin(np.arange(n), absent)
    params = (3 * rng.normal(size=d)).astype(np.float32)
    return Round(updates, present & (np.arange(n) < c), present, c, params, f)


def view(r: Round, key: jax.Array | int = 0, knowledge: Knowledge = ALL) -> AttackerView:
    """What the engine would show the attacker; all but the static parts may be traced."""
    updates, malicious, present = map(jnp.asarray, (r.updates, r.malicious, r.present))
    visible = present if knowledge.others else malicious
    rule = trimmed_mean(r.f)
    return AttackerView(
        updates=jnp.where(visible[:, None], updates, 0),
        visible=visible,
        reference=visible & ~malicious if knowledge.others else malicious,
        malicious=malicious,
        num_malicious=r.num_malicious,
        params=jnp.asarray(r.params),
        key=jax.random.key(key) if isinstance(key, int) else key,
        aggregate=(lambda u: rule(u, present.astype(u.dtype))) if knowledge.rule else None,
    )


@functools.cache
def compiled(attack: Attack, num_malicious: int, f: int) -> Callable[..., jax.Array]:
    """round's arrays, keys (k,) -> rows (k, num_malicious, d) that the attack sends."""

    def craft(key: jax.Array, arrays: tuple) -> jax.Array:
        TRACES[attack] += 1
        updates, malicious, present, params = arrays
        r = Round(updates, malicious, present, num_malicious, params, f)
        before = attack.init(params)
        crafted, state = attack.craft(view(r, key, attack.needs), before)
        assert jax.tree.structure(state) == jax.tree.structure(before)
        return crafted[:num_malicious]

    return jax.jit(jax.vmap(craft, in_axes=(0, None)))


def send(attack: Attack, r: Round, draws: int = 1, seed: int = 0) -> np.ndarray:
    """What the malicious rows that are present send, (draws, c, d)."""
    keys = jax.random.split(jax.random.key(seed), draws)
    arrays = (r.updates, r.malicious, r.present, r.params)
    rows = np.asarray(compiled(attack, r.num_malicious, r.f)(keys, arrays))
    return rows[:, r.malicious[: r.num_malicious]]


def always_clear(r: Round) -> bool:
    return True


class Case(NamedTuple):
    attack: Attack
    check: Callable[[np.ndarray, Round], None]
    """rows (draws, present malicious clients, d), round: compares with the reference"""
    clear: Callable[[Round], bool] = always_clear
    """whether rounding cannot decide on what the attack sends"""
    draws: int = 2000
    shapes: tuple[Shape, ...] = SHAPES


def clear_rounds(case: Case, shape: Shape, number: int) -> list[Round]:
    rounds = (make_round(seed, shape) for seed in itertools.count())
    return list(itertools.islice(filter(case.clear, rounds), number))
