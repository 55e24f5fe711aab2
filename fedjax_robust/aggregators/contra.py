"""CONTRA: clients whose past updates are aligned with many others' lose weight and reputation.

Awan, Luo, Li, "CONTRA: Defending against Poisoning Attacks in Federated Learning", ESORICS 2021
(https://doi.org/10.1007/978-3-030-88418-5_22). Our reading, from memory of the paper and one library's
port, whose authors note what they could not find: there the reputation of aligned clients *rises*, and
the re-scaling of cosines comes after everything that uses them, so that it has no effect.
"""

from __future__ import annotations

import jax.numpy as jnp

from fedjax_robust import checks
from fedjax_robust.aggregators.base import cleaned
from fedjax_robust.aggregators.foolsgold import cosines_of_present, remembered
from fedjax_robust.kernels.norms import accumulator, weighted_mean
from fedjax_robust.memo import same_for_equal_arguments
from fedjax_robust.types import Aggregator, Array, Info, Received, State


@same_for_equal_arguments
def contra(
    k: int, *, threshold: float | Array = 0.5, delta: float | Array = 0.1, summed: bool = True
) -> Aggregator:
    """The sum of the rows, each times a weight in [0, 1] that falls as its client's history nears k
    others.

    With H_i the sum of all rows of client i, this round's among them, cs_ij = cos(H_i, H_j)::

        tau_i = mean of the k largest cs_ij over the other clients j of the round
        reputation_i <- reputation_i - delta if tau_i > threshold, else + delta
        cs_ij <- cs_ij tau_i / tau_j  where 0 < tau_i < tau_j,  and tau_i anew of these
        a_i = 1 - tau_i in [0, 1], divided by the largest, .99 for 1
        a_i <- ln(a_i / (1 - a_i)) + .5 in [0, 1]

    Reputations start at 1 and stay in [0, 1]. The port counts a client's own cosine, as 0, among the k.

    The paper draws the clients of a round by reputation; here that is the simulation's
    (``Simulation.participants``), and the reputation is reported. ``weights`` only say who is present.

    Reports ``trust`` (n,), the a_i, ``selected`` (n,) bool, those above 0, and ``reputation`` (n,).

    Memory: one (d,) per client of all N, besides the rows.

    Args:
      k: others that a client is compared with, >= 1; fewer if fewer are there. The port takes n - f - 1.
      threshold: tau above which a client is taken for aligned, in [-1, 1].
      delta: by how much the reputation changes, in [0, 1]. .1 for images, .05 for loans.
      summed: the sum, as printed. False divides by the sum of the a_i.

    Raises:
      ValueError: for numbers out of range.
      TypeError: for arguments of another kind.

    The first two are sybils:

    >>> contra(k=1)(jnp.array([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]])).tolist()
    [0.0, 1.0]
    """
    checks.static_count("contra", 1, k=k)
    checks.between("contra", -1, 1, threshold=threshold)
    checks.between("contra", 0, 1, delta=delta)
    checks.boolean("contra", summed=summed)

    def init(num_clients: int, params: Array) -> State:
        history = jnp.zeros((num_clients, params.shape[0]), accumulator(params.dtype))
        return history, jnp.ones(num_clients, history.dtype)

    def aggregate(received: Received, state: State) -> tuple[Array, State, Info]:
        received = cleaned(received)
        history, reputation = state
        updates, present = received.updates, received.weights > 0
        own, history = remembered(history, received.ids, present, updates)
        cosines = cosines_of_present(own, present)
        others = present[:, None] & present & ~jnp.eye(len(present), dtype=bool)
        tau = _largest(cosines, others, k)
        change = jnp.where(tau > threshold, -delta, delta)
        old = reputation.at[received.ids].get(mode="fill", fill_value=0)
        new = jnp.clip(old + change, 0, 1).astype(reputation.dtype)
        place = jnp.where(present, received.ids, reputation.shape[0])
        reputation = reputation.at[place].set(new, mode="drop")
        pardon = others & (tau[:, None] > 0) & (tau[:, None] < tau)
        cosines = jnp.where(pardon, cosines * tau[:, None] / jnp.where(pardon, tau, 1), cosines)
        trust = _weights(_largest(cosines, others, k), present).astype(updates.dtype)
        total = jnp.sum(trust) if summed else 1.0
        report = {"trust": trust, "selected": trust > 0, "reputation": jnp.where(present, new, 0)}
        return weighted_mean(updates, trust) * total, (history, reputation), report

    return Aggregator(init, aggregate)


def _largest(cosines: Array, others: Array, k: int) -> Array:
    """The mean of the k largest cosines to others, of fewer if there are fewer: (n, n) -> (n,)."""
    ordered = -jnp.sort(-jnp.where(others, cosines, -jnp.inf), axis=1)
    number = jnp.minimum(jnp.sum(others, axis=1), k)
    counted = jnp.arange(cosines.shape[1]) < number[:, None]
    total = jnp.sum(jnp.where(counted, ordered, 0), axis=1)
    return total / jnp.maximum(number, 1).astype(cosines.dtype)


def _weights(tau: Array, present: Array) -> Array:
    a = jnp.where(present, jnp.clip(1 - tau, 0, 1), 0)
    largest = jnp.max(a)
    a = a / jnp.where(largest > 0, largest, 1)
    a = jnp.where(a >= 1, 0.99, a)
    least = jnp.finfo(a.dtype).tiny
    odds = jnp.log(jnp.maximum(a, least)) - jnp.log1p(-a) + 0.5
    return jnp.where(present & (a > 0), jnp.clip(odds, 0, 1), 0)
