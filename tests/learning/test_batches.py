"""Batches drawn without replacement."""

from __future__ import annotations

import itertools
import math
from functools import partial

import jax
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
