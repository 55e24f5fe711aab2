"""FoolsGold: clients whose past updates point the same way are taken for sybils and lose weight.

Fung, Yoon, Beschastnikh, "The Limitations of Federated Learning in Sybil Settings", RAID 2020
(https://arxiv.org/abs/1808.04866), Algorithm 1, as in the authors' model-independent code: all
features are indicative unless others are chosen. Honest clients with IID data look alike, too, and lose
weight; a single attacker is not found.
"""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp

from fedjax_robust import checks
from fedjax_robust.aggregators.base import cleaned
from fedjax_robust.kernels.distances import pairwise_squared_distances
from fedjax_robust.kernels.norms import accumulator, direction_and_length, weighted_mean
from fedjax_robust.memo import same_for_equal_arguments
from fedjax_robust.types import Aggregator, Array, Info, Received, State


@same_for_equal_arguments
def foolsgold(
    *,
    summed: bool = True,
    kappa: float | Array = 1.0,
    features: Callable[[Array], Array] | None = None,
) -> Aggregator:
    """The sum of the rows, each times a weight in [0, 1] that falls as its client's history nears
    another's.

    With H_i the sum of all rows of client i, this round's among them, or of their features::

        cs_ij = cos(H_i, H_j),   v_i = max_j cs_ij + 1e-5
        cs_ij <- cs_ij v_i / v_j  where v_i < v_j               ("pardon")
        a_i = 1 - max_j cs_ij in [0, 1], divided by the largest, and .99 for 1
        a_i <- kappa (ln(a_i / (1 - a_i) + 1e-5) + .5) in [0, 1]

    Only the clients of the round are compared. ``weights`` only say who is present. A client that is
    alone in a round keeps its row.

    Reports ``trust`` (n,), the a_i, and ``selected`` (n,) bool, those above 0.

    Memory: one (d,) per client of all N, besides the rows; (m,) with m features.

    Args:
      summed: the sum, as printed: the step grows with the number of honest clients. False divides by the
        sum of the a_i.
      kappa: confidence, > 0, finite.
      features: a row (d,) -> those of its coordinates (m,) that tell clients apart, such as the last
        layer's, ``lambda row: task.unravel(row)["Dense_1"]["kernel"].ravel()``. None = all.

    Raises:
      ValueError: if kappa is not positive and finite, or, when called, features return no vector.
      TypeError: for arguments of another kind.

    The first two are sybils:

    >>> rows = jnp.array([[1.0, 0.0], [1.0, 0.1], [0.0, 1.0], [-1.0, 1.0]])
    >>> foolsgold()(rows).tolist()
    [-1.0, 2.0]
    """
    checks.boolean("foolsgold", summed=summed)
    checks.positive("foolsgold", kappa=kappa)
    checks.function("foolsgold", optional=True, features=features)

    def init(num_clients: int, params: Array) -> State:
        chosen = params if features is None else jax.eval_shape(features, params)
        if getattr(chosen, "ndim", None) != 1:
            got = getattr(chosen, "shape", type(chosen).__name__)
            raise ValueError(f"foolsgold needs features that return a vector (m,), got {got}")
        return jnp.zeros((num_clients, chosen.shape[0]), accumulator(params.dtype))

    def aggregate(received: Received, history: State) -> tuple[Array, State, Info]:
        received = cleaned(received)
        updates, present = received.updates, received.weights > 0
        rows = updates if features is None else jax.vmap(features)(updates)
        own, history = remembered(history, received.ids, present, rows)
        cosines = cosines_of_present(own, present)
        trust = _trust(cosines, present, kappa).astype(updates.dtype)
        total = jnp.sum(trust) if summed else 1.0
        result = weighted_mean(updates, trust) * total
        return result, history, {"trust": trust, "selected": trust > 0}

    return Aggregator(init, aggregate)


def remembered(history: Array, ids: Array, present: Array, rows: Array) -> tuple[Array, Array]:
    """The histories of the clients of a round with this round's rows (n, m), and those of all (N, m).

    Sums stay finite: an infinite one would have no direction, and a cosine of 1 to every other client.
    """
    most = jnp.finfo(history.dtype).max
    own = history.at[ids].get(mode="fill", fill_value=0) + rows.astype(history.dtype)
    own = jnp.clip(own, -most, most)
    place = jnp.where(present, ids, history.shape[0])
    return own, history.at[place].set(own, mode="drop")


def cosines_of_present(rows: Array, present: Array) -> Array:
    """Cosines of the present rows (n, d) to each other, (n, n); -1 on the diagonal and to absent rows.

    By differences of unit vectors, which are exact to the last digits also where rows are nearly
    parallel. A zero row has cosine 0 to all.
    """
    unit, length = direction_and_length(jnp.where(present[:, None], rows, 0))
    apart = pairwise_squared_distances(unit, present)
    both = (length > 0)[:, None] & (length > 0)
    cosines = jnp.where(both, 1 - 0.5 * jnp.where(jnp.isfinite(apart), apart, 0), 0)
    others = present[:, None] & present & ~jnp.eye(len(present), dtype=bool)
    return jnp.where(others, jnp.clip(cosines, -1, 1), -1)


def _trust(cosines: Array, present: Array, kappa: float | Array) -> Array:
    v = jnp.max(cosines, axis=1) + 1e-5
    pardon = (v[:, None] < v) & present[:, None] & present
    ratio = v[:, None] / jnp.where(pardon, v, 1)
    others = ~jnp.eye(len(present), dtype=bool)
    pardoned = jnp.where(pardon & others, cosines * ratio, cosines)
    a = jnp.where(present, jnp.clip(1 - jnp.max(pardoned, axis=1), 0, 1), 0)
    largest = jnp.max(a)
    a = a / jnp.where(largest > 0, largest, 1)
    a = jnp.where(a >= 1, 0.99, a)
    odds = kappa * (jnp.log(a / (1 - a) + 1e-5) + 0.5)
    return jnp.where(present, jnp.clip(odds, 0, 1), 0)
