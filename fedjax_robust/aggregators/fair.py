"""FAIR: weights that the server learns by its own loss, or that follow the quality of past updates.

Deng, Lyu, Ren, Chen, Yang, Zhou, Zhang, "FAIR: Quality-Aware Federated Learning with Precise User
Incentive and Model Aggregation", INFOCOM 2021 (https://doi.org/10.1109/INFOCOM42981.2021.9488743), and
its journal version, "Improving Federated Learning With Quality-Aware User Incentive and Auto-Weighted
Model Aggregation", IEEE TPDS 33(12), 2022 (https://doi.org/10.1109/TPDS.2022.3195207). Of these the
abstracts were at hand; both formulas are our reading.

``fair`` is the journal's auto-weighted aggregation: weights a on the simplex that minimise the server's
loss of w + sum_i a_i u_i. ``fair_by_quality`` weighs by the learning quality of the conference version,
the fall of the loss by an update, averaged over past rounds with forgetting. There clients report their
loss before and after training, about which they can lie; here the server measures it. The auction that
recruits clients is left out: it needs bids.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

from fedjax_robust import checks
from fedjax_robust.aggregators.base import cleaned, weighing
from fedjax_robust.aggregators.own_models import (
    at,
    checked_loss,
    losses_of_rows,
    without_infinite_losses,
)
from fedjax_robust.kernels.norms import accumulator, power_of_two, weighted_mean
from fedjax_robust.kernels.simplex import project_onto_simplex
from fedjax_robust.memo import same_for_equal_arguments
from fedjax_robust.types import Aggregator, Array, Info, Received, Score, State


@same_for_equal_arguments
def fair(
    loss: Score, step: float | Array, *, steps: int = 20, chunk: int | None = None
) -> Aggregator:
    """FAIR's auto-weighting: projected gradient descent on the weights of the rows.

    From a_i = 1/n, so many times a <- projection onto the simplex of a - step grad, grad_i = <u_i,
    gradient of the loss at w + sum_j a_j u_j>; the aggregate is sum_i a_i u_i. Rows whose own model's
    loss is not finite take no part, and ``weights`` only say who is present. All of it can be
    differentiated, if the loss can be twice.

    The descent is stable for a step below 2 / (largest curvature of the loss along the rows' span): long
    rows make it jump from row to row. ``norm_clipping(bound, base=fair(...))`` bounds them.

    Reports ``trust`` (n,), the weights a, and ``selected`` (n,) bool, where they are positive.

    Args:
      loss: params (d,) -> (), on examples of the server; ``metrics.score`` makes one, as does
        ``lambda params: task.loss(params, batch)``.
      step: > 0, in units of 1 / (loss per unit of weight).
      steps: of descent, >= 1.
      chunk: own models tried at a time, which bounds memory; None = all n.

    Raises:
      ValueError: if step, steps or chunk is out of range; when called, if ``loss`` returns another shape.
      TypeError: if ``loss`` is no function, or a number is none.

    The loss is |w - (1, 1)|^2 / 2. The gradient at the mean of the rows is (-4/3, -2/3):

    >>> def loss(params):
    ...     return 0.5 * jnp.sum((params - 1) ** 2)
    >>> rows = jnp.array([[1.0, 0.0], [0.0, 1.0], [-2.0, 0.0]])
    >>> fair(loss, 0.1, steps=200)(rows).round(4).tolist()
    [0.5, 0.5]
    """
    chunk = checked_loss("fair", loss, chunk)
    checks.positive("fair", step=step)
    checks.static_count("fair", 1, steps=steps)
    steps = int(steps)

    def weigh(received: Received) -> tuple[Array, Info]:
        received = without_infinite_losses("fair", loss, received, chunk)
        present = received.weights > 0
        rows = received.updates.astype(accumulator(received.updates.dtype))
        slope = jax.grad(lambda params: at("fair", loss, params))

        def descend(share: Array, _: None) -> tuple[Array, None]:
            update = jnp.dot(share, rows, precision="highest")
            gradient = slope(received.params + update.astype(received.params.dtype))
            along = jnp.dot(rows, gradient.astype(rows.dtype), precision="highest")
            return project_onto_simplex(share - step * along, present), None

        equal = present.astype(rows.dtype) / jnp.maximum(jnp.sum(present), 1)
        return jax.lax.scan(descend, equal, None, steps)[0], {}

    return weighing(weigh)


class Quality(NamedTuple):
    """What ``fair_by_quality`` remembers."""

    mean: Array
    """(N,), each client's mean quality so far; 0 before its first update."""
    mass: Array
    """(N,), the weight of these rounds beside a new one of weight 1."""


@same_for_equal_arguments
def fair_by_quality(
    loss: Score,
    forget: float | Array = 0.0,
    *,
    threshold: float | Array = 0.0,
    chunk: int | None = None,
) -> Aggregator:
    """FAIR's learning quality: rows weighted by how much their client's updates have lowered the loss.

    A row's quality is q_i = loss(w) - loss(w + u_i). A client's estimate Q_i is the mean of its
    qualities, this round's included, each weighted by exp(-forget * its age in rounds). Rows of Q_i <=
    threshold are left out; the others count Q_i times their weight (the number of examples, if the
    simulation's ``weights`` say so). If nobody is left, the model stays. A loss that is not finite counts
    as a quality of a quarter of the smallest float. Clients that do not take part keep their estimate.

    Reports ``trust`` (n,), Q_i times the weight in units of the largest ones, ``selected`` (n,) bool,
    where it is positive, and ``quality`` (n,), this round's.

    Args:
      loss: params (d,) -> (), on examples of the server; ``metrics.score`` makes one, as does
        ``lambda params: task.loss(params, batch)``.
      forget: >= 0, per round; 0 = all rounds count alike, infinity = only the present one.
      threshold: >= 0, in units of the loss.
      chunk: own models tried at a time, which bounds memory; None = all n.

    Raises:
      ValueError: if forget, threshold or chunk is out of range; when called, if ``loss`` returns another
        shape.
      TypeError: if ``loss`` is no function, or a number is none.

    The loss is |w - (1, 1)|^2 / 2, which the rows lower by 0.5, by 0.5 and by -4:

    >>> def loss(params):
    ...     return 0.5 * jnp.sum((params - 1) ** 2)
    >>> rows = jnp.array([[1.0, 0.0], [0.0, 1.0], [-2.0, 0.0]])
    >>> fair_by_quality(loss)(rows).tolist()
    [0.5, 0.5]
    """
    chunk = checked_loss("fair_by_quality", loss, chunk)
    checks.not_negative("fair_by_quality", infinite=True, forget=forget)
    checks.not_negative("fair_by_quality", threshold=threshold)

    def init(num_clients: int, params: Array) -> State:
        exact = accumulator(params.dtype)
        return Quality(jnp.zeros(num_clients, exact), jnp.zeros(num_clients, exact))

    def aggregate(received: Received, state: State) -> tuple[Array, State, Info]:
        received = cleaned(received)
        present = received.weights > 0
        quality = _qualities(loss, received, chunk).astype(state.mean.dtype)
        # The old mean and the new quality, weighted by the old rounds' mass and 1.
        old = jnp.take(state.mean, received.ids, mode="clip")
        mass = state.mass * jnp.exp(-jnp.asarray(forget, state.mass.dtype))
        own = jnp.take(mass, received.ids, mode="clip") + 1
        estimate = old + (quality - old) / own
        ids = jnp.where(present, received.ids, state.mean.shape[0])
        state = Quality(
            state.mean.at[ids].set(estimate, mode="drop"), mass.at[ids].set(own, mode="drop")
        )
        trust = jnp.where(present & (estimate > threshold), estimate, 0)
        weights = received.weights.astype(trust.dtype)
        trust *= power_of_two(jnp.max(trust))[1]
        trust *= weights * power_of_two(jnp.max(weights))[1]
        info = {"trust": trust, "selected": trust > 0, "quality": quality}
        return weighted_mean(received.updates, trust), state, info

    return Aggregator(init, aggregate)


def _qualities(loss: Score, received: Received, chunk: int | None) -> Array:
    """loss(w) - loss(w + u_i): (n,), within a quarter of the range of floats."""
    before = at("fair_by_quality", loss, received.params)
    quality = before - losses_of_rows("fair_by_quality", loss, received, chunk)
    largest = jnp.finfo(quality.dtype).max / 4
    return jnp.where(jnp.isnan(quality), -largest, jnp.clip(quality, -largest, largest))
