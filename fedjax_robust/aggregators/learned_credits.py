"""Credits of the clients, learned from how the server's loss falls: a reading of GAAvernor.

Pan, Zhang, Wu, Xiao, Ji, Yang, "Justinian's GAAvernor: Robust Distributed Learning with Gradient
Aggregation Agent", USENIX Security 2020
(https://www.usenix.org/conference/usenixsecurity20/presentation/pan). There an agent learns, by
reinforcement, credits of the workers: the reward is the relative fall of the loss on a quasi-validation
set of fewer than 10 examples, and up to 90 % of the workers may be malicious. The agent's network and its
algorithm were not at hand, so that this is no reproduction but the smallest rule of that
kind:

    credits    a = softmax(theta) over the rows present, theta_i = 0 at first,
    aggregate  sum_i a_i u_i,
    reward     R = (L(w) - L(w + aggregate)) / |L(w)|.

``learned_credits`` climbs the reward by its exact gradient, for the server knows L,

    theta_i <- theta_i + learning_rate * -a_i <gradient of L at w + aggregate, u_i - aggregate> / |L(w)|.

``learned_credits_reinforce`` is nearer to the paper: it only looks at the reward, of credits to which it
adds noise (Williams, "Simple statistical gradient-following algorithms for connectionist reinforcement
learning", Machine Learning 1992, with a Gaussian policy and a running mean of rewards as the baseline).

Both take the server's step to be 1 (FedAvg), keep theta by client, and move the theta of present rows
only. Rows whose own model's loss is not finite count as absent. One row much longer than all others makes
the first exact gradients as long, and with them what is learned: ``norm_clipping(bound, base=...)``
before it bounds that.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

from fedjax_robust import checks
from fedjax_robust.aggregators.base import cleaned
from fedjax_robust.aggregators.own_models import at, checked_loss, without_infinite_losses
from fedjax_robust.kernels.norms import accumulator, smallest_divisor
from fedjax_robust.memo import same_for_equal_arguments
from fedjax_robust.types import Aggregator, Array, Info, Received, Score, State


@same_for_equal_arguments
def learned_credits(
    loss: Score, learning_rate: float | Array, *, chunk: int | None = None
) -> Aggregator:
    """Credits by the exact gradient of the reward; see the module's head.

    A gradient that is not finite, or a loss L(w) of 0, changes no credit. ``weights`` only say who is
    present. Reports ``trust`` (n,), the credits, ``selected`` (n,) bool, where they are positive, and
    ``reward`` ().

    Args:
      loss: params (d,) -> (), on few examples of the server; ``metrics.score`` makes one, as does
        ``lambda params: task.loss(params, batch)``.
      learning_rate: > 0, of theta.
      chunk: own models tried at a time, which bounds memory; None = all n.

    Raises:
      ValueError: if the learning rate or chunk is out of range; when called, if ``loss`` returns another
        shape.
      TypeError: if ``loss`` is no function, or a number is none.

    The first round's credits are equal; only later ones are learned:

    >>> def loss(params):
    ...     return 0.5 * jnp.sum((params - 1) ** 2)
    >>> learned_credits(loss, 1.0)(jnp.array([[1.0, 0.0], [0.0, 1.0]])).tolist()
    [0.5, 0.5]
    """
    chunk = checked_loss("learned_credits", loss, chunk)
    checks.positive("learned_credits", learning_rate=learning_rate)

    def init(num_clients: int, params: Array) -> State:
        return jnp.zeros(num_clients, accumulator(params.dtype))

    def aggregate(received: Received, state: State) -> tuple[Array, State, Info]:
        received = without_infinite_losses("learned_credits", loss, cleaned(received), chunk)
        present = received.weights > 0
        theta = jnp.take(state, received.ids, mode="clip")
        credit = _softmax(theta, present)
        result, rows = _combine(credit, received)
        before = at("learned_credits", loss, received.params)
        model = received.params + result.astype(received.params.dtype)
        after, slope = jax.value_and_grad(lambda p: at("learned_credits", loss, p))(model)
        along = jnp.dot(rows, slope.astype(rows.dtype), precision="highest")
        gained = -credit * (along - jnp.sum(credit * along)) * _reciprocal(before)
        theta = _moved(theta, learning_rate * gained)
        info = {
            "trust": credit,
            "selected": credit > 0,
            "reward": (before - after) * _reciprocal(before),
        }
        return result, _remembered(state, received, theta), info

    return Aggregator(init, aggregate)


class Policy(NamedTuple):
    """What ``learned_credits_reinforce`` remembers."""

    theta: Array
    """(N,), the policy's means."""
    baseline: Array
    """(), the running mean of rewards."""


@same_for_equal_arguments
def learned_credits_reinforce(
    loss: Score,
    learning_rate: float | Array,
    noise: float | Array,
    *,
    memory: float | Array = 0.9,
    chunk: int | None = None,
) -> Aggregator:
    """Credits by REINFORCE; see the module's head.

    Each round's credits are softmax(theta + noise e) with e standard normal, drawn by client. Then

        theta <- theta + learning_rate (R - b) e / noise,
        b <- memory b + (1 - memory) R,   b = 0 at first.

    Rewards below -1 count as -1: one long row may not move all credits at random. A reward that is no
    number changes nothing. ``weights`` only say who is present. Reports ``trust`` (n,), the credits,
    ``selected`` (n,) bool, where they are positive, and ``reward`` ().

    Args:
      loss: params (d,) -> (), on few examples of the server; ``metrics.score`` makes one, as does
        ``lambda params: task.loss(params, batch)``.
      learning_rate: > 0, of theta.
      noise: > 0, the standard deviation of what is added to theta.
      memory: of the baseline, in [0, 1).
      chunk: own models tried at a time, which bounds memory; None = all n.

    Raises:
      ValueError: if a number is out of range; when called, if ``loss`` returns another shape.
      TypeError: if ``loss`` is no function, or a number is none.

    >>> def loss(params):
    ...     return 0.5 * jnp.sum((params - 1) ** 2)
    >>> rule = learned_credits_reinforce(loss, 1.0, noise=1e-6)
    >>> rule(jnp.array([[1.0, 0.0], [0.0, 1.0]])).round(4).tolist()
    [0.5, 0.5]
    """
    chunk = checked_loss("learned_credits_reinforce", loss, chunk)
    checks.positive("learned_credits_reinforce", learning_rate=learning_rate, noise=noise)
    checks.between("learned_credits_reinforce", 0, 1, open_high=True, memory=memory)

    def init(num_clients: int, params: Array) -> State:
        exact = accumulator(params.dtype)
        return Policy(jnp.zeros(num_clients, exact), jnp.zeros((), exact))

    def aggregate(received: Received, state: State) -> tuple[Array, State, Info]:
        received = cleaned(received)
        received = without_infinite_losses("learned_credits_reinforce", loss, received, chunk)
        present = received.weights > 0
        theta = jnp.take(state.theta, received.ids, mode="clip")
        drawn = _normal_by_client(received).astype(theta.dtype)
        credit = _softmax(theta + noise * drawn, present)
        result, _ = _combine(credit, received)
        before = at("learned_credits_reinforce", loss, received.params)
        model = received.params + result.astype(received.params.dtype)
        after = at("learned_credits_reinforce", loss, model)
        reward = ((before - after) * _reciprocal(before)).astype(theta.dtype)
        known = ~jnp.isnan(reward) & jnp.any(present)
        # Where the reward is no number the advantage is 0, and the baseline stays.
        counted = jnp.where(known, jnp.clip(reward, -1, 1), state.baseline)
        advantage = counted - state.baseline
        theta = _moved(theta, learning_rate * advantage * (drawn / noise))
        state = Policy(
            _remembered(state.theta, received, theta),
            (state.baseline + (1 - memory) * advantage).astype(state.baseline.dtype),
        )
        info = {"trust": credit, "selected": credit > 0, "reward": reward}
        return result, state, info

    return Aggregator(init, aggregate)


def _softmax(theta: Array, present: Array) -> Array:
    """Over the present rows: (n,); zero if there is none."""
    below = jnp.where(present, theta, -jnp.inf)
    top = jnp.max(below)
    parts = jnp.where(present, jnp.exp(theta - jnp.where(jnp.isfinite(top), top, 0)), 0)
    return parts / jnp.maximum(jnp.sum(parts), 1)  # the largest part is 1


def _combine(credit: Array, received: Received) -> tuple[Array, Array]:
    """The aggregate (d,), and the rows in the precision of sums."""
    rows = received.updates.astype(accumulator(received.updates.dtype))
    result = jnp.dot(credit.astype(rows.dtype), rows, precision="highest")
    return result.astype(received.updates.dtype), rows


def _reciprocal(loss: Array) -> Array:
    """1 / |loss|; 0 for a loss of 0 or without a value."""
    size = jnp.abs(loss)
    usable = (size > smallest_divisor(loss.dtype)) & jnp.isfinite(size)
    return jnp.where(usable, 1 / jnp.where(usable, size, 1), 0)


def _moved(theta: Array, step: Array) -> Array:
    """theta + step, within a quarter of the range of floats; where a step is not finite, theta."""
    largest = jnp.finfo(theta.dtype).max / 4
    step = jnp.where(jnp.isfinite(step), step, 0).astype(theta.dtype)
    return jnp.clip(theta + step, -largest, largest)


def _remembered(state: Array, received: Received, theta: Array) -> Array:
    """(N,) with the new theta of the clients whose rows are present."""
    ids = jnp.where(received.weights > 0, received.ids, state.shape[0])
    return state.at[ids].set(theta, mode="drop")


def _normal_by_client(received: Received) -> Array:
    """(n,) float32, by the round's key and the client's id."""

    def draw(client: Array) -> Array:
        return jax.random.normal(jax.random.fold_in(received.key, client), (), jnp.float32)

    return jax.vmap(draw)(received.ids)
