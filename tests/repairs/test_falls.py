"""Where pruning and the search of Delta stop: before a step that costs *more* than ``drop``."""

import jax.numpy as jnp
import numpy as np
import pytest

from fedjax_robust import repairs

# Four neurons of one weight each: 1, 2, 4, 8, and no other parameters.
WEIGHTS = jnp.array([1.0, 2.0, 4.0, 8.0])
LAYER = repairs.ConvolutionLayer(None, jnp.arange(4, dtype=jnp.int32), jnp.ones(4, bool), 4)
# The accuracy with 0, 1, 2, 3 of them at zero; differences are exact in floats.
ACCURACIES = jnp.array([1.0, 0.75, 0.5, 0.125])


def accuracy(params):
    return ACCURACIES[jnp.sum(params == 0)]


@pytest.mark.parametrize(
    ("drop", "floor", "pruned"),
    [
        (0.25, -np.inf, 2),  # steps of exactly 0.25 are not too much, that of 0.375 is
        (0.375, -np.inf, 3),
        (0.2499, -np.inf, 0),
        (1.0, 0.5, 2),  # exactly the floor will do
        (1.0, 0.501, 1),
    ],
)
def test_pruning(drop, floor, pruned):
    order = jnp.array([2, 0, 3, 1])
    params, keep, report = repairs.prune(LAYER, WEIGHTS, order, accuracy, drop=drop, floor=floor)
    assert report["pruned"] == pruned
    np.testing.assert_array_equal(report["accuracies"], ACCURACIES)
    gone = order[:pruned]
    np.testing.assert_array_equal(np.flatnonzero(~keep), np.sort(gone))
    np.testing.assert_array_equal(params, WEIGHTS.at[gone].set(0))


def test_deltas():
    """Mean 3.75, deviation sqrt(115 / 16) = 2.68: 8 goes below 1.585, 1 below 1.026, 2 below 0.653."""
    deltas = (2.0, 1.5, 1.0, 0.5)
    for drop, delta, zeroed in ((0.25, 1.0, 2), (0.375, 0.5, 3), (0.2, 2.0, 0)):
        params, report = repairs.adjust_extreme_weights(
            LAYER, WEIGHTS, accuracy, deltas=deltas, drop=drop
        )
        assert (report["delta"], report["zeroed"]) == (delta, zeroed)
        np.testing.assert_array_equal(report["accuracies"], ACCURACIES)
        assert jnp.sum(params == 0) == zeroed
    # Without the neuron of 8, the others have mean 7/3 and deviation sqrt(14 / 9) = 1.25: 4 goes below
    # 1.336, 1 below 1.069, 2 below 0.267; the 8 is not touched.
    keep = jnp.array([True, True, True, False])
    params, report = repairs.adjust_extreme_weights(
        LAYER, WEIGHTS, accuracy, deltas=(2.0, 1.2, 1.0, 0.5), drop=0.25, keep=keep
    )
    assert (report["delta"], report["zeroed"]) == (0.5, 2)
    np.testing.assert_array_equal(params, [0, 2, 0, 8])
