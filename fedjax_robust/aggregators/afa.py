"""AFA, adaptive federated averaging: rows that point elsewhere are left out, their clients remembered.

Muñoz-González, Co, Lupu, "Byzantine-Robust Federated Machine Learning through Adaptive Model Averaging",
2019 (https://arxiv.org/abs/1909.05125), Algorithm 1; constants as in the paper, from memory, and in
IBM's code. Each client has a Beta distribution of being good, from alpha and beta = 3: p = alpha /
(alpha + beta).
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from fedjax_robust import checks
from fedjax_robust.aggregators.base import cleaned
from fedjax_robust.kernels.norms import (
    accumulator,
    direction_and_length,
    power_of_two,
    weighted_mean,
)
from fedjax_robust.kernels.ranks import middle_of_sorted
from fedjax_robust.memo import same_for_equal_arguments
from fedjax_robust.types import Aggregator, Array, Info, Received, State


@same_for_equal_arguments
def afa(
    *,
    xi: float | Array = 2.0,
    more: float | Array = 0.5,
    block: float | Array = 0.95,
    prior: float | Array = 3.0,
    on_models: bool = False,
) -> Aggregator:
    """The average, weighted by p_i w_i, of the rows whose cosine to it is not far on the wrong side.

    1. Good are the present rows of clients that are not blocked. 2. g = sum p_i w_i u_i / sum p_i w_i
    over the good, s_i = cos(u_i, g), with mean, median and standard deviation (divisor n) over them.
    3. If mean < median, those with s_i < median - xi std are bad, else those with s_i > median + xi
    std. 4. They are removed, xi grows, and so on until nobody is. 5. alpha + 1 for the good, beta + 1
    for the bad; who has P(p < .5) >= ``block`` is blocked for ever: with the defaults at the sixth bad
    verdict in a row.

    The rule looks at one side only, and removes the *too similar* if the mean lies above the median. The
    result weighs by the p from before the round; IBM's code by those after it.

    Reports ``selected`` and ``blocked`` (n,) bool, and ``probability`` (n,), p after the round.

    Args:
      xi: standard deviations from the median in the first pass, > 0.
      more: what it grows by in each further pass, >= 0.
      block: probability of being bad at which a client is blocked, in (0, 1].
      prior: alpha and beta at the start, > 0.
      on_models: cosines of the local models, as the paper has it: they are all near 1, and the test is
        blunt. False takes the updates.

    Raises:
      ValueError: for numbers out of range.
      TypeError: for arguments of another kind.

    >>> rows = [[-1.0, 0], [1, 0], [1, 0.25], [1, -0.25], [1, 0.5], [1, 0], [1, 1]]
    >>> afa()(jnp.array(rows)).tolist()
    [1.0, 0.25]
    """
    checks.positive("afa", xi=xi, prior=prior)
    checks.not_negative("afa", more=more)
    checks.between("afa", 0, 1, open_low=True, block=block)
    checks.boolean("afa", on_models=on_models)

    def init(num_clients: int, params: Array) -> State:
        counts = jnp.full((num_clients,), prior, jnp.float32)
        return counts, counts, jnp.zeros(num_clients, bool)

    def aggregate(received: Received, state: State) -> tuple[Array, State, Info]:
        received = cleaned(received)
        alphas, betas, blocked = state
        updates, ids = received.updates, received.ids
        alpha, beta = (x.at[ids].get(mode="clip") for x in (alphas, betas))
        out = blocked.at[ids].get(mode="clip")
        candidates = (received.weights > 0) & ~out
        trust = (alpha / (alpha + beta)).astype(received.weights.dtype) * received.weights
        rows = updates + received.params.astype(updates.dtype) if on_models else updates
        rows = jax.lax.stop_gradient(rows)
        units = direction_and_length(rows)[0]
        size, length = _sizes_and_lengths(rows)

        def again(i: Array, good: Array) -> tuple[Array, Array]:
            masses = _masses(good, trust, size, length)
            g = direction_and_length(weighted_mean(units, masses))[0]
            s = jnp.dot(units, g, precision="highest")
            bad = good & _apart(s, good, xi + i * more)
            # Never all: a lone row is its own mean.
            bad &= jnp.sum(bad) < jnp.sum(good)
            return good & ~bad, ~jnp.any(bad)

        def unless_done(i: Array, carry: tuple[Array, Array]) -> tuple[Array, Array]:
            return jax.lax.cond(carry[1], lambda: carry, lambda: again(i, carry[0]))

        start = (candidates, jnp.bool(False))
        good, _ = jax.lax.fori_loop(0, updates.shape[0], unless_done, start)
        result = weighted_mean(updates, jnp.where(good, trust, 0))
        place = jnp.where(candidates, ids, alphas.shape[0])
        alphas = alphas.at[place].add(jnp.where(good, 1, 0), mode="drop")
        betas = betas.at[place].add(jnp.where(good, 0, 1), mode="drop")
        surely = jax.scipy.special.betainc(alphas, betas, 0.5) >= block
        blocked = blocked | surely
        alpha, beta = (x.at[ids].get(mode="clip") for x in (alphas, betas))
        report = {
            "selected": good,
            "blocked": blocked.at[ids].get(mode="clip") & (received.weights > 0),
            "probability": jnp.where(received.weights > 0, alpha / (alpha + beta), 0),
        }
        return result, (alphas, betas, blocked), report

    return Aggregator(init, aggregate)


def _sizes_and_lengths(rows: Array) -> tuple[Array, Array]:
    """Lengths (n,) of rows (n, d) as products of a power of two, 0 for zero rows, and a moderate number:
    a length itself may overflow."""
    largest = jnp.max(jnp.abs(rows), axis=1, initial=0).astype(accumulator(rows.dtype))
    size, inverse = power_of_two(largest)
    length = direction_and_length(rows.astype(size.dtype) * inverse[:, None])[1]
    return jnp.where(length > 0, size, 0), length


def _masses(good: Array, trust: Array, size: Array, length: Array) -> Array:
    """What unit vectors weigh in g, up to a factor: trust times length, (n,).

    In units of the largest trust and row that are still good: a huge row that has been removed must
    not leave the others without digits.
    """

    def relative(x: Array) -> Array:
        x = jnp.where(good, x.astype(size.dtype), 0)
        return x * power_of_two(jnp.max(x))[1]

    return relative(trust) * relative(size) * length


def _apart(s: Array, good: Array, xi: Array) -> Array:
    """Cosines more than xi standard deviations from the median, on the side of the mean: (n,) bool."""
    count = jnp.sum(good)
    number = jnp.maximum(count, 1).astype(s.dtype)
    # By a sort of its own: JAX cannot batch the network of coordinate_median inside of a cond.
    values = jnp.sort(jnp.where(good, s, jnp.inf))[:, None]
    middle = middle_of_sorted(jnp.where(values < jnp.inf, values, 0), jnp.int32(0), count)[0]
    mean = jnp.sum(jnp.where(good, s - middle, 0)) / number  # relative to the median
    gap = jnp.where(good, s - middle - mean, 0)
    std = jnp.sqrt(jnp.sum(jnp.square(gap)) / number)
    below, above = s - middle < -xi * std, s - middle > xi * std
    return jnp.where(mean < 0, below, above)
