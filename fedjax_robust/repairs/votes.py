"""What clients report about neurons, and the pruning sequence that the server makes of it.

Wu et al., 2020 (https://arxiv.org/abs/2011.01767), sections IV-A and IV-B.
"""

from __future__ import annotations

from fractions import Fraction

import jax.numpy as jnp
import numpy as np

from fedjax_robust import checks
from fedjax_robust.types import Array


def ranks(activations: Array) -> Array:
    """Each client's ranking of the neurons, 1 for the least active: (N, C) -> (N, C) int32.

    Args:
      activations: (N, C), see ``client_activations``.

    Raises:
      ValueError: for another shape, or if a known activation is not finite.
      TypeError: if they are no numbers.
    """
    activations = _reports("ranks", "activations", activations)
    order = jnp.argsort(activations, axis=1, stable=True)
    return jnp.argsort(order, axis=1) + 1


def ranking_vote(ranks: Array) -> Array:
    """The server's pruning sequence by R_k = mean over clients of R_k^i (section IV-A).

    The text ranks in ascending order of activation and prunes "in the decreasing order of the global
    dormant ranking": the most dormant neuron first, which is the one of the smallest R_k.

    Args:
      ranks: (N, C), see ``ranks``; what malicious clients report may differ.

    Returns:
      (C,) int32 channels, the first to be pruned first.

    Raises:
      ValueError: for another shape, or if a known row is not 1, ..., C in some order.
      TypeError: if they are no numbers.
    """
    ranks = checked_ranks("ranking_vote", ranks)
    return jnp.argsort(jnp.sum(ranks.astype(jnp.int32), axis=0), stable=True)


def votes(activations: Array, rate: float) -> Array:
    """Each client's mask: 0 for its least active ``rate`` of the neurons, else 1 (section IV-B).

    Args:
      activations: (N, C).
      rate: p in (0, 1); the paper finds 0.3 to 0.7 to work. floor(p C) neurons get a 0.

    Returns:
      (N, C) int32.

    Raises:
      ValueError: if the rate is out of range, for another shape, or if a known activation is not finite.
      TypeError: if they are no numbers.
    """
    activations = _reports("votes", "activations", activations)
    checks.between("votes", 0, 1, open_low=True, open_high=True, rate=rate)
    number: int | Array
    if checks.is_known(rate):  # as it is printed: 0.29 of 100 are 29, though 0.29 * 100 < 29
        number = int(Fraction(str(np.asarray(rate)[()])) * activations.shape[1])
    else:
        number = jnp.floor(rate * activations.shape[1])
    return (ranks(activations) > number).astype(jnp.int32)


def majority_vote(votes: Array) -> Array:
    """The server's pruning sequence: increasing number of clients that keep a neuron (section IV-B).

    Args:
      votes: (N, C) of 0 and 1.

    Returns:
      (C,) int32 channels, the first to be pruned first.

    Raises:
      ValueError: for another shape, or if a known vote is neither 0 nor 1.
      TypeError: if they are no numbers.
    """
    votes = _reports("majority_vote", "votes", votes, boolean=True)
    if checks.is_known(votes) and not np.all(np.isin(votes, (0, 1))):
        raise ValueError(
            "majority_vote needs votes of 0 and 1, as repairs.votes makes them, got values from "
            f"{np.asarray(votes).min():g} to {np.asarray(votes).max():g}"
        )
    return jnp.argsort(jnp.sum(votes.astype(jnp.int32), axis=0), stable=True)


def _reports(what: str, name: str, values: Array, *, boolean: bool = False) -> Array:
    """(N, C) numbers, finite where they are known."""
    values = checks.array(what, name, values)
    if boolean and values.dtype == bool:
        values = values.astype(jnp.int32)
    values = checks.shaped(
        what, name, values, (None, None), meaning="(N, C), a row for each client"
    )
    if checks.is_known(values) and not np.all(np.isfinite(values)):
        raise ValueError(f"{what} needs finite {name}, got NaN or Inf; leave that client out")
    return values


def checked_ranks(what: str, ranks: Array) -> Array:
    """(N, C), where they are known each row 1, ..., C in some order."""
    ranks = _reports(what, "ranks", ranks)
    wanted = np.arange(1, ranks.shape[1] + 1)
    if checks.is_known(ranks) and not np.all(np.sort(ranks, axis=1) == wanted):
        raise ValueError(
            f"{what} needs ranks that are 1, ..., {ranks.shape[1]} in some order for each client, as "
            f"repairs.ranks makes them, got values from {np.asarray(ranks).min():g} to "
            f"{np.asarray(ranks).max():g}"
        )
    return ranks
