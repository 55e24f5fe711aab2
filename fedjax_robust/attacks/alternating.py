"""Boosted training on a few examples with wrong labels, with and without stealth.

Bhagoji, Chakraborty, Mittal, Calo, "Analyzing Federated Learning through an Adversarial Lens", ICML 2019
(https://arxiv.org/abs/1811.12470), and the authors' code. Malicious clients want a few chosen examples to
be classified as they say. L_mal is the loss on these, L_train that on the client's own data, w_t the
received model, and lambda, the boost, makes up for the averaging: 1 / the client's share of it.

How close a client stays to what honest clients send is measured from w_t + delta_ref. delta_ref is the
update of honest training in this round, ``reference=local_sgd(...)`` ("dist_self"), or, without a
reference, what the others sent when the client took part last ("dist_oth"), read off the two models that
it received:

    delta_ref = (w_t - w_s - share * own row of round s) / (t - s)

The first time there is no such thing, and no distance. (The authors' simulation hands the attacker the
honest average itself; the line above is in their code, too, as a comment.)
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from fedjax_robust import checks
from fedjax_robust.clients.batches import random_batch
from fedjax_robust.clients.local import Loss
from fedjax_robust.memo import same_for_equal_arguments
from fedjax_robust.types import Array, Attack, Batch, Client, ClientData, Info, Key, State, Task

_BATCH, _RANDOM, _REFERENCE = 0x62617463, 0x72616E64, 0x72656665  # folded into the client's key


@same_for_equal_arguments
def explicit_boosting(
    task: Task,
    examples: Batch,
    learning_rate: float | Array,
    boost: float | Array,
    *,
    steps: int = 5,
) -> Attack:
    """Trains on the chosen examples alone, and sends lambda times what comes out (section 3.2).

    ``scaling(boost, local_sgd(...))`` is the same for clients whose own data are the chosen examples.

    Args:
      task: the learning problem.
      examples: D_mal, ``x`` (r, ...) and ``y`` (r,), the labels that the attacker wants.
      learning_rate: > 0, of full-batch steps on D_mal.
      boost: lambda > 0.
      steps: >= 1.

    Raises:
      ValueError: for numbers out of range, or examples without labels.
      TypeError: for arguments of another kind.
    """
    what = "explicit_boosting"
    examples = _checked(what, task, examples, learning_rate, boost)
    checks.static_count(what, 1, steps=steps)

    def update(
        key: Key, received: Array, state: State, data: ClientData
    ) -> tuple[Array, State, Info]:
        def step(w: Array, _: None) -> tuple[Array, Array]:
            loss, slope = jax.value_and_grad(task.loss)(w, examples)
            return w - learning_rate * slope, loss

        w, losses = jax.lax.scan(step, received, None, length=int(steps))
        return boost * (w - received), state, {"train_loss": losses[0]}

    return Attack(client=Client(lambda params: (), update))


@same_for_equal_arguments
def stealthy_boosting(
    task: Task,
    examples: Batch,
    learning_rate: float | Array,
    boost: float | Array,
    *,
    steps: int = 50,
    batch_size: int | None = None,
    rho: float | Array = 1e-4,
    reference: Client | None = None,
    share: float | Array | None = None,
    only: Array | None = None,
) -> Attack:
    """Descends lambda L_mal + L_train + rho / 2 |w - w_t - delta_ref|^2, and sends w - w_t (section 3.3).

    The boost is inside: nothing is scaled afterwards ("concatenated training" in the authors' code).

    Args:
      task: the learning problem.
      examples: D_mal, ``x`` (r, ...) and ``y`` (r,), the labels that the attacker wants.
      learning_rate: > 0, of all steps.
      boost: lambda > 0.
      steps: >= 1, each on a fresh batch of the client's own data and all of D_mal.
      batch_size: of the client's own data; None = all of them.
      rho: weight of the distance, >= 0; the code's 1e-4.
      reference: how honest clients train, for delta_ref; None = from the models received.
      share: the client's share of the average, in [0, 1]; None = 1 / lambda. Not used with a reference.
      only: (d,) bool, the parameters that are boosted and held near delta_ref ("wt_o": the weights, not
        the biases); None = all.

    Raises:
      ValueError: for numbers out of range, or examples without labels; on use, if ``only`` is not (d,).
      TypeError: for arguments of another kind.
    """
    what = "stealthy_boosting"
    examples = _checked(what, task, examples, learning_rate, boost)
    checks.static_count(what, 1, steps=steps)
    share = 1 / boost if share is None else share
    own = _own(what, task, batch_size, rho, reference, share, only)

    def update(
        key: Key, received: Array, state: State, data: ClientData
    ) -> tuple[Array, State, Info]:
        factors, benign, keep = own.start(key, received, state, data, boost)

        def step(w: Array, i: Array) -> tuple[Array, Array]:
            loss, slope = jax.value_and_grad(benign)(w, i)
            malicious = jax.grad(task.loss)(w, examples)
            return w - learning_rate * (slope + factors * malicious), loss

        w, losses = jax.lax.scan(step, received, jnp.arange(int(steps)))
        return w - received, keep(w - received), {"train_loss": losses[0]}

    return Attack(client=Client(own.init, update))


@same_for_equal_arguments
def alternating_minimisation(
    task: Task,
    examples: Batch,
    learning_rate: float | Array,
    boost: float | Array,
    *,
    steps: int = 5,
    benign_steps: int = 10,
    batch_size: int | None = None,
    rho: float | Array = 1e-4,
    reference: Client | None = None,
    share: float | Array | None = None,
    only: Array | None = None,
) -> Attack:
    """Alternates honest steps that stay near delta_ref with boosted steps on D_mal (section 3.4).

    ``steps`` times: ``benign_steps`` steps on L_train + rho / 2 |w - w_t - delta_ref|^2, then, if L_mal
    is > 0, one step to w' on L_mal from there, and w <- w + lambda (w' - w). What is sent is w - w_t, not
    boosted again.

    Args:
      task: the learning problem.
      examples: D_mal, ``x`` (r, ...) and ``y`` (r,), the labels that the attacker wants.
      learning_rate: > 0, of all steps.
      boost: lambda > 0.
      steps: alternations, >= 1.
      benign_steps: honest steps before each boosted one, >= 1; the paper's 10.
      batch_size: of the client's own data; None = all of them.
      rho: weight of the distance, >= 0; the code's 1e-4.
      reference: how honest clients train, for delta_ref; None = from the models received.
      share: the client's share of the average, in [0, 1]; None = 1 / lambda. Not used with a reference.
      only: (d,) bool, the parameters that are boosted and held near delta_ref ("wt_o": the weights, not
        the biases); None = all.

    Raises:
      ValueError: for numbers out of range, or examples without labels; on use, if ``only`` is not (d,).
      TypeError: for arguments of another kind.
    """
    what = "alternating_minimisation"
    examples = _checked(what, task, examples, learning_rate, boost)
    checks.static_count(what, 1, steps=steps, benign_steps=benign_steps)
    share = 1 / boost if share is None else share
    own = _own(what, task, batch_size, rho, reference, share, only)
    inner = int(benign_steps)

    def update(
        key: Key, received: Array, state: State, data: ClientData
    ) -> tuple[Array, State, Info]:
        factors, benign, keep = own.start(key, received, state, data, boost)

        def honest(w: Array, i: Array) -> tuple[Array, Array]:
            loss, slope = jax.value_and_grad(benign)(w, i)
            return w - learning_rate * slope, loss

        def alternate(w: Array, i: Array) -> tuple[Array, Array]:
            w, losses = jax.lax.scan(honest, w, inner * i + jnp.arange(inner))
            loss, slope = jax.value_and_grad(task.loss)(w, examples)
            return w - jnp.where(loss > 0, factors * learning_rate * slope, 0), losses[0]

        w, losses = jax.lax.scan(alternate, received, jnp.arange(int(steps)))
        return w - received, keep(w - received), {"train_loss": losses[0]}

    return Attack(client=Client(own.init, update))


def _checked(
    what: str, task: Task, examples: Batch, learning_rate: float | Array, boost: float | Array
) -> Batch:
    checks.part(what, Task, task=task)
    examples = checks.examples(what, examples)
    checks.positive(what, learning_rate=learning_rate, boost=boost)
    return examples


class _Own(NamedTuple):
    """What both stealthy attacks do with the client's own data, and what they remember."""

    init: Callable[[Array], State]
    start: Callable[
        ..., tuple[Array | float, Callable[[Array, Array], Array], Callable[[Array], State]]
    ]
    """key, w_t, state, data, lambda -> factors on the slope of L_mal; w, step -> L_train plus the
    distance; what is sent -> the next state"""


def _own(
    what: str,
    task: Task,
    batch_size: int | None,
    rho: float | Array,
    reference: Client | None,
    share: float | Array,
    only: Array | None,
) -> _Own:
    if batch_size is not None:
        checks.static_count(what, 1, batch_size=batch_size, remedy="None means all of its data")
    checks.not_negative(what, rho=rho)
    checks.part(what, Client, optional=True, reference=reference)
    checks.between(what, 0, 1, share=share)
    if only is not None:
        only = checks.shaped(what, "only", only, (None,), "bool", "(d,)")

    def init(params: Array) -> State:
        if only is not None:
            checks.shaped(what, "only", only, params.shape, "bool", "(d,)")
        if reference is not None:
            return reference.init(params)
        return params, jnp.zeros_like(params), jnp.int32(-1)

    def held(
        key: Key, received: Array, state: State, data: ClientData
    ) -> tuple[Array, Array, Callable[[Array], State]]:
        """delta_ref, whether there is one, and what is kept."""
        if reference is not None:
            key = jax.random.fold_in(key, _REFERENCE)
            delta, kept, _ = reference.update(key, received, state, data)
            checks.returned(f"the reference of {what}", delta, received.shape)
            return delta, jnp.bool_(True), lambda sent: kept
        before, own, last = state
        now = jnp.asarray(data.round, jnp.int32)
        passed = jnp.maximum(now - last, 1).astype(received.dtype)
        delta = (received - before - share * own) / passed
        return delta, last >= 0, lambda sent: (received, sent, now)

    def start(
        key: Key, received: Array, state: State, data: ClientData, boost: float | Array
    ) -> tuple[Array | float, Callable[[Array, Array], Array], Callable[[Array], State]]:
        delta, known, keep = held(key, received, state, data)
        centre = jnp.where(known, received + delta, received)
        weight = jnp.where(known, rho, 0)
        size = data.index.shape[0] if batch_size is None else int(batch_size)

        def benign(w: Array, i: Array) -> Array:
            own = jax.random.fold_in(key, i)
            batch = random_batch(jax.random.fold_in(own, _BATCH), data, size)
            gaps = w - centre if only is None else jnp.where(only, w - centre, 0)
            loss = _training_loss(task, jax.random.fold_in(own, _RANDOM))
            return loss(w, batch) + 0.5 * weight * jnp.sum(jnp.square(gaps))

        return boost if only is None else jnp.where(only, boost, 1.0), benign, keep

    return _Own(init, start)


def _training_loss(task: Task, key: Key) -> Loss:
    random = task.training_loss
    if random is None:
        return task.loss
    return lambda params, batch: random(params, batch, key)
