"""Batches drawn without replacement."""

from __future__ import annotations

import itertools
import math
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.stats import chi2

from fedjax_robust.clients.batches import sample_without_replacement


@partial(jax.jit, static_argnames=("size", "draws"))
def subsets(count: jax.Array, size: int, draws: int) -> tuple[jax.Array, jax.Array]:
    """(draws, size) positions and mask."""
    keys = jax.random.split(jax.random.key(0), draws)
    return jax.vmap(lambda key: sample_without_replacement(key, count, size))(keys)


def test_samples_are_distinct_and_in_range() -> None:
    for count in [0, 1, 4, 5, 6, 40, 1_000_000]:
        positions, mask = map(np.asarray, subsets(count, 5, 200))
        used = min(count, 5)
        assert positions.shape == mask.shape == (200, 5) and mask.dtype == np.float32
        np.testing.assert_array_equal(mask, np.tile(np.arange(5) < used, (200, 1)))
        assert np.all((positions >= 0) & (positions < max(count, 1)))
        assert all(len(set(row[:used])) == used for row in positions.tolist())
        if count in (4, 5):  # all there is
            np.testing.assert_array_equal(np.sort(positions[:, :used]), [range(used)] * 200)
        np.testing.assert_array_equal(positions[:, used:], 0)


@pytest.mark.parametrize(("count", "size"), [(6, 3), (5, 1), (7, 6)])
def test_every_subset_is_equally_likely(count: int, size: int) -> None:
    """Chi-square at 1e-4 for a fixed key."""
    draws = 4000
    positions = np.asarray(subsets(count, size, draws)[0])
    kinds = [frozenset(kind) for kind in itertools.combinations(range(count), size)]
    seen = [frozenset(row) for row in positions.tolist()]
    expected = draws / math.comb(count, size)
    statistic = sum((seen.count(kind) - expected) ** 2 / expected for kind in kinds)
    assert statistic < chi2.ppf(1 - 1e-4, len(kinds) - 1)
    assert statistic > chi2.ppf(1e-4, len(kinds) - 1)  # nor suspiciously even


@partial(jax.jit, static_argnames=("size", "draws"))
def one_by_one(count: jax.Array, size: int, draws: int) -> tuple[jax.Array, jax.Array]:
    """Floyd's algorithm as it is written down, one draw after the other."""

    def sample(key: jax.Array) -> tuple[jax.Array, jax.Array]:
        k = jnp.minimum(size, count)
        i = jnp.arange(size)
        last = jnp.maximum(count - k + i, 0)
        numbers = jax.random.randint(key, (size,), 0, last + 1)

        def place(i: jax.Array, chosen: jax.Array) -> jax.Array:
            taken = jnp.any(chosen == numbers[i])
            return chosen.at[i].set(jnp.where(taken, last[i], numbers[i]))

        chosen = jax.lax.fori_loop(0, size, place, jnp.full(size, -1, numbers.dtype))
        used = i < k
        return jnp.where(used, chosen, 0), used.astype(jnp.float32)

    return jax.vmap(sample)(jax.random.split(jax.random.key(0), draws))


@pytest.mark.parametrize("size", [1, 2, 3, 5, 32, 33, 150])
def test_the_same_batches_as_one_draw_after_the_other(size: int) -> None:
    """Bit by bit, with long chains of replaced draws where count is little more than size."""
    for count in [0, 1, 2, size, size + 1, size + 2, 2 * size, 600]:
        old, new = (f(count, size, 500) for f in (one_by_one, subsets))
        np.testing.assert_array_equal(new[0], old[0])
        np.testing.assert_array_equal(new[1], old[1])
