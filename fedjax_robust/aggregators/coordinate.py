"""Rules that work on each coordinate alone: median and trimmed mean.

Yin, Chen, Ramchandran, Bartlett, "Byzantine-Robust Distributed Learning: Towards Optimal Statistical
Rates", ICML 2018 (https://arxiv.org/abs/1803.01498), Options I and II; as restated in Fang et al., USENIX
Security 2020 (https://arxiv.org/abs/1911.11815), section 2.2.
"""

from __future__ import annotations

from collections.abc import Callable

import jax.numpy as jnp

from fedjax_robust import checks
from fedjax_robust.aggregators.base import no_state
from fedjax_robust.kernels.presence import drop_non_finite, is_present
from fedjax_robust.kernels.ranks import (
    coordinate_median,
    row,
    sort_present,
    trimmed_mean_of_present,
)
from fedjax_robust.memo import same_for_equal_arguments
from fedjax_robust.types import Aggregator, Array, Info, Received, State


@same_for_equal_arguments
def median() -> Aggregator:
    """Coordinate-wise median; with an even number of rows the mean of the two middle values.

    Weights only say who is present.

    >>> median()(jnp.array([[1.0, 10.0], [2.0, 30.0], [9.0, 20.0]])).tolist()
    [2.0, 20.0]
    """

    def aggregate(received: Received, state: State) -> tuple[Array, State, Info]:
        present = is_present(received.updates, received.weights)
        return coordinate_median(received.updates, present), state, {}

    # The median is the trimmed mean that removes all but one or two values.
    return Aggregator(no_state, aggregate, _trimmed_leave_one_out(None))


@same_for_equal_arguments
def trimmed_mean(f: int | Array) -> Aggregator:
    """Coordinate-wise trimmed mean: the f largest and f smallest values of each coordinate are removed.

    Weights only say who is present. Should fewer than 2f + 1 rows be present, only as many are removed
    as leave one or two.

    Args:
      f: number removed at each end, 0 <= f < n / 2; the paper's beta, at least the number of
        malicious clients. It may be a traced integer, as in
        ``jax.vmap(lambda f: trimmed_mean(f)(updates))(jnp.arange(4))``; then f < n / 2 cannot be
        checked, and all ranks are sorted.

    Raises:
      ValueError: if f < 0 or no whole number, or n <= 2f when called.
      TypeError: if f is no number.

    >>> trimmed_mean(f=1)(jnp.array([[100.0], [1.0], [3.0], [0.0]])).tolist()
    [2.0]
    """
    checks.count("trimmed_mean", f=f)
    if checks.is_known(f):
        f = int(f)

    def aggregate(received: Received, state: State) -> tuple[Array, State, Info]:
        n = received.updates.shape[0]
        if checks.is_known(f) and n <= 2 * f:
            raise ValueError(f"trimmed_mean needs n > 2f, got n={n}, f={f}")
        present = is_present(received.updates, received.weights)
        return trimmed_mean_of_present(received.updates, present, f), state, {}

    return Aggregator(no_state, aggregate, _trimmed_leave_one_out(f))


def _trimmed_leave_one_out(f: int | Array | None) -> Callable[[Received, State], Array]:
    """All n leave-one-out trimmed means from one sort; f = None removes as many values as it can.

    Of r sorted values S, the one without S_i removes f at each end. So it keeps S_f .. S_{r-1-f}
    without the value itself, or without the nearer end if the value lies beyond it. Memory: one
    (n, d) besides the sorted values.
    """

    def leave_one_out(received: Received, state: State) -> Array:
        updates, weights = drop_non_finite(received.updates, received.weights)
        n = updates.shape[0]
        most = max((n - 3) // 2, 0)
        if f is None:
            low = most
        else:
            low = min(int(f), most) if checks.is_known(f) else 0
        high = max(n - low, 1)
        exact = updates.astype(jnp.promote_types(updates.dtype, jnp.float32))
        values, start, count = sort_present(exact, weights > 0, low, high)
        removed = jnp.maximum(count - 2, 0) // 2
        removed = removed if f is None else jnp.minimum(f, removed)
        first, last = start + removed, start + count - 1 - removed
        # Values are divided before they are summed, so that no sum leaves the range of floats.
        share = 1 / jnp.maximum(count - 1 - 2 * removed, 1).astype(exact.dtype)
        rank = jnp.arange(low, high)[:, None]
        inner = (rank > first) & (rank < last)
        between = jnp.sum(jnp.where(inner, values * share, 0), axis=0)
        lower, upper = row(values, first - low), row(values, last - low)
        # The ends are not summed before it is clear that they stay: they may be huge.
        inside = lower * share + upper * share - exact * share
        outside = jnp.where(exact <= lower, upper, lower) * share
        ends = jnp.where((exact > lower) & (exact < upper), inside, outside)
        return jnp.where(count > 1, between + ends, 0).astype(updates.dtype)

    return leave_one_out
