"""Attacks on ``fedjax_robust.repairs``: what attackers do who know the defence.

Wu, Yang, Zhu, Mitra, "Mitigating Backdoor Attacks in Federated Learning", 2020
(https://arxiv.org/abs/2011.01767), sections VI-A and VI-C.
"""

from __future__ import annotations

from collections.abc import Callable

import jax.numpy as jnp

from fedjax_robust import checks
from fedjax_robust.clients.local import Loss, Objective
from fedjax_robust.memo import same_for_equal_arguments
from fedjax_robust.repairs.extreme_weights import weight_moments
from fedjax_robust.repairs.layers import (
    ConvolutionLayer,
    check_layer,
    checked_mask,
    checked_parameters,
    with_neurons,
)
from fedjax_robust.repairs.votes import checked_ranks
from fedjax_robust.types import Array, Batch


@same_for_equal_arguments
def l2_penalty(layer: ConvolutionLayer, strength: float | Array) -> Objective:
    """Section VI-A, for ``local_sgd(objective=...)``: loss + strength * |weights of the layer|_2^2.

    Args:
      layer: the layer; its bias is not penalised.
      strength: > 0; the paper's values are in a figure only.

    Raises:
      ValueError: if the strength is not positive and finite.
      TypeError: if an argument is of another type.
    """
    check_layer("l2_penalty", layer)
    checks.positive("l2_penalty", strength=strength)

    def objective(loss: Loss, received: Array) -> Loss:
        def penalised(params: Array, batch: Batch) -> Array:
            weights = jnp.where(layer.is_weight, params, 0)
            return loss(params, batch) + strength * jnp.sum(jnp.square(weights))

        return penalised

    return objective


def pruning_aware(layer: ConvolutionLayer, keep: Array) -> Objective:
    """Section VI-C, the attacker knows the final mask and trains a backdoor without pruned neurons.

    Args:
      layer: the layer.
      keep: (C,) bool, the neurons that the server will keep; the others have no gradient.

    Raises:
      ValueError: for a mask of another shape; on use, for parameters of another shape.
      TypeError: if ``layer`` is no layer, or the mask not bool.
    """
    check_layer("pruning_aware", layer)
    keep = checked_mask("pruning_aware", layer, keep)

    def objective(loss: Loss, received: Array) -> Loss:
        return lambda params, batch: loss(with_neurons(layer, params, keep), batch)

    return objective


def self_clipping(layer: ConvolutionLayer, delta: float | Array) -> Callable[[Array], Array]:
    """Section VI-C, the attacker's own weights within mu +- Delta sigma: params (d,) -> (d,).

    Clipped to the bounds, which the server's rule sets to zero, so that the attacker keeps what it can of
    them. mu and sigma are those before clipping; afterwards sigma is smaller.

    Args:
      layer: the layer.
      delta: Delta > 0.

    Raises:
      ValueError: if Delta is not positive and finite; on use, for parameters of another shape.
      TypeError: if an argument is of another type.
    """
    check_layer("self_clipping", layer)
    checks.positive("self_clipping", delta=delta)

    def clip(params: Array) -> Array:
        params = checked_parameters("self_clipping", layer, params)
        scaled, mean, deviation, unit = weight_moments(params, layer.is_weight)
        bound = delta * deviation
        clipped = unit * jnp.clip(scaled, mean - bound, mean + bound)
        return jnp.where(layer.is_weight, clipped, params)

    return clip


def reversed_ranks(ranks: Array, malicious: Array) -> Array:
    """Section VI-C, malicious clients report the dormant neurons as the most active ones.

    Args:
      ranks: (N, C), each row 1, ..., C in some order; see ``repairs.ranks``.
      malicious: (N,) bool.

    Raises:
      ValueError: for other shapes, or if a known row is not 1, ..., C in some order.
      TypeError: if ``malicious`` is not bool.
    """
    ranks = checked_ranks("reversed_ranks", ranks)
    malicious = checks.shaped(
        "reversed_ranks", "malicious", malicious, ranks.shape[:1], "bool", "(N,)"
    )
    return jnp.where(malicious[:, None], ranks.shape[1] + 1 - ranks, ranks)
