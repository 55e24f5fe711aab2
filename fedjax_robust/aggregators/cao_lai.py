"""Cao and Lai's rule: updates that are close to the server's own noisy one are averaged with it.

Cao, Lai, "Distributed Gradient Descent Algorithm Robust to an Arbitrary Number of Byzantine Attackers",
IEEE Transactions on Signal Processing 67(22), 2019 (https://doi.org/10.1109/TSP.2019.2946020). From
memory of the paper.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from fedjax_robust import checks
from fedjax_robust.aggregators.base import cleaned
from fedjax_robust.aggregators.trust import server_update
from fedjax_robust.kernels.norms import safe_norm, weighted_mean
from fedjax_robust.memo import same_for_equal_arguments
from fedjax_robust.types import Aggregator, Array, Batch, Client, Info, Received, State


@same_for_equal_arguments
def cao_lai(
    client: Client, root: Batch, xi: float | Array = 1.5, *, server_weight: float | Array = 1.0
) -> Aggregator:
    """Row i is accepted if |u_i - g_0| <= xi |g_0|; the accepted ones and g_0 are averaged.

    g_0 is the server's own update, trained on its root data. If nobody is accepted, the aggregate is g_0;
    without it (``server_weight=0``) zero. An accepted row has length <= (1 + xi) |g_0|. Any number of
    malicious clients may take part. Rows count by their weights.

    Reports ``selected`` (n,) bool, those accepted.

    Args:
      client: how the server trains, such as ``local_sgd(task, learning_rate, batch_size=None)``.
      root: the server's examples, ``x`` (m, ...) and ``y`` (m,), m >= 1.
      xi: > 0. The theory wants less than 1, the experiments have 1.5 to 2 (from memory).
      server_weight: of g_0 beside the rows' weights, >= 0: the number of root examples where the rows'
        are their numbers of examples, 1 where clients count equally.

    Raises:
      ValueError: if xi is not positive, or server_weight is negative; for a root that is empty, of
        different lengths, not labelled by integers >= 0 or masked.
      TypeError: for parts and numbers of another kind.
    """
    checks.positive("cao_lai", xi=xi)
    checks.not_negative("cao_lai", server_weight=server_weight)
    train = server_update(client, root)

    def init(num_clients: int, params: Array) -> State:
        return client.init(params)

    def aggregate(received: Received, state: State) -> tuple[Array, State, Info]:
        received = cleaned(received)
        updates, weights = received.updates, received.weights
        g_0, state = train(received.key, received.params, state)
        g_0 = g_0.astype(updates.dtype)
        distance = safe_norm(jax.lax.stop_gradient(updates - g_0))
        accepted = (weights > 0) & (distance <= xi * safe_norm(jax.lax.stop_gradient(g_0)))
        weights = jnp.append(jnp.where(accepted, weights, 0), server_weight)
        result = weighted_mean(jnp.concatenate([updates, g_0[None]]), weights)
        return result, state, {"selected": accepted}

    return Aggregator(init, aggregate)
