"""Participant-level differential privacy of the average.

McMahan, Ramage, Talwar, Zhang, "Learning Differentially Private Recurrent Language Models", ICLR 2018
(https://arxiv.org/abs/1710.06963), as Bagdasaryan et al., AISTATS 2020
(https://arxiv.org/abs/1807.00459), section VI-C, use it.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from fedjax_robust import checks
from fedjax_robust.aggregators.base import cleaned, no_state
from fedjax_robust.aggregators.clipping import clip_rows
from fedjax_robust.kernels.norms import weighted_mean
from fedjax_robust.memo import same_for_equal_arguments
from fedjax_robust.types import Aggregator, Array, Info, Received, State


@same_for_equal_arguments
def participant_dp(
    bound: float | Array, noise: float | Array, *, clients_per_round: float | Array | None = None
) -> Aggregator:
    """The average of clipped updates, plus N(0, sigma^2) in every coordinate.

    Weights only say who is present: with unequal ones a client would move the average by more than it
    is charged for.

    ``privacy_spent`` says what (epsilon, delta) that is worth. Without ``clients_per_round`` the sum is
    divided by the number k of present rows, and the model stays if there is none; the claim is that of
    rounds in which all m rows are present. Where clients may be absent (without data, with a NaN, drawn
    by chance), one client moves an average over k < m rows by more: then pass m. The sum is divided by
    m in every round, the noise never left out, and the claims hold whoever is there.

    Reports ``clipped``, as ``norm_clipping`` does.

    Args:
      bound: S > 0, the clipping bound, which all clients know.
      noise: sigma >= 0, the noise's standard deviation on the *average*, finite.
      clients_per_round: m > 0, the (expected) number of clients, by which the sum is divided; None =
        the number present.

    Raises:
      ValueError: if S or m is not positive, sigma negative, or one of them not finite.
      TypeError: if they are no numbers.
    """
    checks.positive("participant_dp", bound=bound)
    checks.not_negative("participant_dp", noise=noise)
    if clients_per_round is not None:
        checks.positive("participant_dp", clients_per_round=clients_per_round)

    def aggregate(received: Received, state: State) -> tuple[Array, State, Info]:
        received = cleaned(received)
        present = received.weights > 0
        clipped, longer = clip_rows(received.updates, bound)
        average = weighted_mean(clipped, present)
        random = noise * jax.random.normal(received.key, average.shape, average.dtype)
        if clients_per_round is None:
            drawn = jnp.where(jnp.any(present), random, 0)
        else:
            average, drawn = average * (jnp.sum(present) / clients_per_round), random
        result = (average + drawn).astype(received.updates.dtype)
        return result, state, {"clipped": longer & present}

    return Aggregator(no_state, aggregate)
