"""Mean of medians: rows within a radius of a row that most rows are near to; the filter of FedPG-BR.

Fan, Ma, Dai, Jing, Tan, Low, "Fault-Tolerant Federated Reinforcement Learning with Theoretical
Guarantee", NeurIPS 2021 (https://arxiv.org/abs/2110.14074), Algorithm 1.1 as its code has it, after
Alistarh, Allen-Zhu, Li, "Byzantine Stochastic Gradient Descent", NeurIPS 2018
(https://arxiv.org/abs/1803.08917).
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from fedjax_robust import checks
from fedjax_robust.aggregators.base import MEAN, selecting
from fedjax_robust.aggregators.krum import plain_integer
from fedjax_robust.kernels.distances import pairwise_distances
from fedjax_robust.kernels.norms import power_of_two
from fedjax_robust.memo import same_for_equal_arguments
from fedjax_robust.types import Aggregator, Array, Info, Received


@same_for_equal_arguments
def mean_of_medians(
    f: int | Array,
    sigma: float | Array,
    batch_size: float | Array,
    *,
    delta: float | Array = 0.6,
    base: Aggregator = MEAN,
) -> Aggregator:
    """Rows near the row that is most central among those with a majority around them.

    With the radius T = 2 sigma sqrt(V / B), V = 2 log(2 n / delta), B the batch size:

    1. S = the rows that have more than n / 2 rows, themselves included, within T.
    2. m = the row of S that is closest to the mean of S (of equally close ones the first).
    3. Selected are the rows within T of m; if S is empty, nobody.
    4. If these are fewer than n - f, or nobody, steps 1 to 3 are done again with the radius 2 sigma.

    n is the number of present rows. If nobody is selected in the end, the aggregate is zero. The paper
    asks for (1 - alpha) n rows in step 4; here alpha n is f.

    Reports ``selected`` (n,) bool.

    Args:
      f: number of malicious rows assumed, 0 <= f < n / 2. It may be traced, and is not checked then.
      sigma: > 0, how far an honest client's update on one example may lie from the true one, in units of
        the updates. The code has .06, .07 and .9 for its gradients (times the learning rate here).
      batch_size: B > 0, examples behind each row.
      delta: in (0, 1), the probability with which the bound may fail; .6 in the code.
      base: the rule for the rows that stay.

    Raises:
      ValueError: if an argument is out of range; when called, if n <= 2f.
      TypeError: if one is no number, or base no rule.

    With T = 2.9 the rows 0, 1 and 3 have a majority around them; 1 is the closest to their mean:

    >>> rule = mean_of_medians(f=1, sigma=1.0, batch_size=2, delta=0.99)
    >>> rule(jnp.array([[0.0], [1.0], [3.0], [40.0]])).tolist()
    [1.3333333730697632]
    """
    checks.count("mean_of_medians", f=f)
    checks.positive("mean_of_medians", sigma=sigma, batch_size=batch_size)
    checks.between("mean_of_medians", 0, 1, open_low=True, open_high=True, delta=delta)
    checks.part("mean_of_medians", Aggregator, base=base)
    f = plain_integer(f)

    def select(received: Received) -> tuple[Array, Info]:
        present = received.weights > 0
        if checks.is_known(f) and len(present) <= 2 * f:
            raise ValueError(f"mean_of_medians needs n > 2f, got n={len(present)}, f={f}")
        distances = pairwise_distances(jax.lax.stop_gradient(received.updates), present)
        count = jnp.sum(present)
        v = 2 * jnp.log(2 * jnp.maximum(count, 1) / delta)
        first = _near_centre(distances, present, 2 * sigma * jnp.sqrt(v / batch_size))
        number = jnp.sum(first)
        few = (number < count - f) | (number == 0)
        return jnp.where(few, _near_centre(distances, present, 2 * sigma), first), {}

    return selecting(select, base)


def _near_centre(distances: Array, present: Array, radius: float | Array) -> Array:
    """Steps 1 to 3: distances (n, n), present (n,), radius () -> (n,) bool."""
    near = distances <= radius
    crowded = present & (2 * jnp.sum(near, axis=1) > jnp.sum(present))
    pairs = crowded[:, None] & crowded[None, :]
    # Two rows of S share a neighbour: they are at most 2 T apart. |x_i - mean|^2 is the mean of the
    # squared distances to the rows of S, minus what is the same for all i.
    among = jnp.where(pairs, distances, 0)
    _, inverse = power_of_two(jnp.max(among))
    from_mean = jnp.sum(jnp.square(among * inverse), axis=1)
    centre = jnp.argmin(jnp.where(crowded, from_mean, jnp.inf))
    return near[centre] & jnp.any(crowded)
