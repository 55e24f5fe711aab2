"""Local training: what one client does with the received model in one round."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax

from fedjax_robust import checks
from fedjax_robust.clients.batches import random_batch, shuffled_positions, take
from fedjax_robust.kernels.norms import safe_norm
from fedjax_robust.memo import same_for_equal_arguments
from fedjax_robust.types import Array, Batch, Client, ClientData, Info, Key, State, Task

Poison = Callable[[Key, Batch], Batch]
"""key, batch -> batch of the same names and shapes, but perhaps another number of examples.
``batch["client"]`` () int32 is the client's id."""
Loss = Callable[[Array, Batch], Array]
Carry = tuple[Array, State]
Objective = Callable[[Loss, Array], Loss]
"""loss, received params (d,) -> the loss that is minimised instead."""
Schedule = Callable[[Array], Array]
"""epochs, steps or rounds done () -> learning rate or factor (), as optax's schedules."""

_OF_LOSS = 0x6C6F7373  # folded into a step's key, which a poison may split, for a random loss


def _check_known_labels(task: Task, data: ClientData) -> None:
    """Labels that are known when the program is compiled, as a server's own are, are classes of the
    task. (A simulation's are traced; ``run`` compares them.)"""
    if not {"x", "y"} <= {*data.examples} or not checks.is_known(data.examples["y"]):
        return
    x, y = (jnp.asarray(data.examples[name]) for name in ("x", "y"))
    if jnp.issubdtype(y.dtype, jnp.integer):
        checks.labels("local_sgd", y, x=x, num_classes=checks.classes("local_sgd", task, x))


@same_for_equal_arguments
def local_sgd(
    task: Task,
    learning_rate: float | Array | Schedule,
    batch_size: int | None,
    *,
    steps: int = 1,
    epochs: int | None = None,
    momentum: float | Array = 0.0,
    keep_momentum: bool = False,
    clip_norm: float | Array | None = None,
    poison: Poison | None = None,
    objective: Objective | None = None,
    stop: Callable[[Array], Array] | None = None,
    round_schedule: Schedule | None = None,
) -> Client:
    """Stochastic gradient descent on the client's own data.

    With the default single step this is FedSGD: all clients share the weights, which the compiler can
    use. The step is on the *mean* gradient of the batch; papers whose code sums over the batch state
    a learning rate that is smaller by the batch size. A ``mask`` in the pool, (E,) >= 0, weighs the
    examples in that mean.

    Args:
      task: the learning problem; its ``training_loss``, if it has one, is what is minimised.
      learning_rate: step size on the mean gradient, > 0; or a schedule *within a round*, which starts
        anew in every round: a function of the number of epochs done in it (without ``epochs``: of
        steps), such as ``optax.exponential_decay(0.05, 2, 0.1, staircase=True)``: a tenth after every 2
        epochs. For a decay over rounds, see ``round_schedule``.
      batch_size: b, drawn without replacement and anew in each step; a client with fewer examples uses
        all it has. None = all of the client's data (full-batch gradient).
      steps: local steps, >= 1; leave it at 1 when ``epochs`` is given.
      epochs: passes over the client's data instead of steps, each in a new order; every client makes
        ceil(count / b) steps per epoch, the last one on what is left.
      momentum: v <- momentum v + gradient, in [0, 1).
      keep_momentum: keep v from round to round, one (d,) vector per client of all N (worker
        momentum); else v starts at zero in every round.
      clip_norm: a longer gradient is shortened to this norm, > 0, before it enters v; None = never.
      poison: applied to every batch (data poisoning).
      objective: replaces the loss (training-time attacks).
      stop: params (d,) -> () bool, asked before each epoch; once it is true, nothing changes any more
        (early stopping). Needs ``epochs``.
      round_schedule: the number of rounds done before this one () -> a factor on the learning rate,
        such as ``optax.exponential_decay(1.0, 100, 0.5)``: half of it after every 100 rounds. None = 1.

    Raises:
      ValueError: for sizes or rates out of range, both steps and epochs, or stop without epochs; on
        use, if the pool holds a name that a batch needs, ``client``, or if a schedule, stop or poison
        returns another shape.
      TypeError: if an argument is of another type.
    """
    what = "local_sgd"
    checks.part(what, Task, task=task)
    checks.function(what, optional=False, **{"task.loss": task.loss})
    checks.function(
        what,
        optional=True,
        poison=poison,
        objective=objective,
        stop=stop,
        round_schedule=round_schedule,
    )
    if isinstance(learning_rate, optax.GradientTransformation):
        raise TypeError(
            f"{what} needs learning_rate to be a number or a schedule, got an optimizer of optax; write "
            "local_sgd(task, 0.1, ..., momentum=0.9) for optax.sgd(0.1, momentum=0.9); the server's "
            "optimizer is Simulation(server_optimizer=...)"
        )
    if not callable(learning_rate):
        checks.positive(what, learning_rate=learning_rate)
    checks.between(what, 0, 1, open_high=True, momentum=momentum)
    checks.boolean(what, keep_momentum=keep_momentum)
    if clip_norm is not None:
        checks.positive(what, clip_norm=clip_norm, remedy="None means no clipping")
    if batch_size is not None:
        checks.static_count(
            what, 1, batch_size=batch_size, remedy="None means all of a client's data"
        )
    checks.static_count(what, 1, steps=steps)
    if epochs is not None:
        checks.static_count(what, 1, epochs=epochs)
        if steps != 1:
            raise ValueError(f"{what} takes steps or epochs, got steps={steps} and epochs={epochs}")
    if stop is not None and epochs is None:
        raise ValueError(f"{what} asks stop before each epoch: give epochs, not steps")
    has_momentum = not (checks.is_known(momentum) and float(momentum) == 0)
    if keep_momentum and not has_momentum:
        raise ValueError(f"{what} keeps a momentum only if there is one: set momentum > 0")

    def rate_at(done: Array) -> float | Array:
        if not callable(learning_rate):
            return learning_rate
        return _scalar("the learning_rate of local_sgd", learning_rate(done))

    def init(params: Array) -> State:
        return jnp.zeros_like(params) if keep_momentum else ()

    def update(
        key: Key, received: Array, state: State, data: ClientData
    ) -> tuple[Array, State, Info]:
        if "client" in data.examples:
            raise ValueError(
                "local_sgd puts the client's id into a batch as 'client', got a pool that has a column "
                "of this name; rename it"
            )
        _check_known_labels(task, data)
        factor: float | Array | None = None
        if round_schedule is not None:
            rounds = round_schedule(jnp.asarray(data.round))
            factor = _scalar("the round_schedule of local_sgd", rounds)

        def of_step(key: Key) -> Loss:
            random, loss = task.training_loss, task.loss
            if random is not None:

                def loss(params: Array, batch: Batch) -> Array:
                    return random(params, batch, jax.random.fold_in(key, _OF_LOSS))

            if objective is None:
                return loss
            instead = objective(loss, received)
            checks.function("local_sgd", optional=False, **{"what objective returns": instead})
            return instead

        def step(carry: Carry, key: Key, batch: Batch, rate: float | Array) -> tuple[Carry, Array]:
            params, velocity = carry
            if poison is not None:
                batch = _poisoned(poison, key, batch | {"client": jnp.asarray(data.id)})
            if factor is not None:
                rate = rate * factor
            value, gradient = jax.value_and_grad(of_step(key))(params, batch)
            if clip_norm is not None:
                gradient *= clip_norm / jnp.maximum(safe_norm(gradient), clip_norm)
            new_velocity: State = ()
            direction = gradient
            if has_momentum:
                new_velocity = direction = momentum * velocity + gradient
            new_params = params - rate * direction
            if epochs is not None or has_momentum:  # nothing moves on a step without examples
                empty = jnp.sum(batch["mask"]) == 0
                new_params, new_velocity = jax.tree.map(
                    lambda old, new: jnp.where(empty, old, new),
                    (params, velocity),
                    (new_params, new_velocity),
                )
            return (new_params, new_velocity), value

        velocity = state if keep_momentum else (jnp.zeros_like(received) if has_momentum else ())
        carry = (received, velocity)
        if epochs is None:
            size = data.index.shape[0] if batch_size is None else batch_size

            def random_step(carry: Carry, i: int | Array) -> tuple[Carry, Array]:
                draw, change = jax.random.split(jax.random.fold_in(key, i))
                return step(carry, change, random_batch(draw, data, size), rate_at(jnp.asarray(i)))

            carry, first = random_step(carry, 0)  # outside the loop: its weights are shared
            losses = first[None]
            if steps > 1:
                carry, later = jax.lax.scan(random_step, carry, jnp.arange(1, steps))
                losses = jnp.concatenate([losses, later])
        else:
            capacity = data.index.shape[0]
            size = capacity if batch_size is None else min(batch_size, capacity)
            per_epoch = -(-capacity // size)

            def train(carry: Carry, e: Array) -> tuple[Carry, Array]:
                order, change = jax.random.split(jax.random.fold_in(key, e))
                batches = shuffled_positions(order, data, per_epoch, size)

                def one(carry: Carry, batch: tuple[Array, ...]) -> tuple[Carry, Array]:
                    i, positions, mask = batch
                    here = take(data, positions, mask)
                    return step(carry, jax.random.fold_in(change, i), here, rate_at(e))

                return jax.lax.scan(one, carry, (jnp.arange(per_epoch), *batches))

            def epoch(carry: Carry, e: Array) -> tuple[Carry, Array]:
                if stop is None:
                    return train(carry, e)
                stopped = stop(carry[0])
                checks.returned("the stop of local_sgd", stopped, (), floating=False)
                no_losses = jnp.zeros(per_epoch, received.dtype)
                # What has stopped does not change, so that it is found to have stopped again.
                return jax.lax.cond(stopped, lambda: (carry, no_losses), lambda: train(carry, e))

            carry, losses = jax.lax.scan(epoch, carry, jnp.arange(epochs))
        params, velocity = carry
        info = {"train_loss": jnp.ravel(losses)[0]}
        return params - received, velocity if keep_momentum else (), info

    return Client(init, update)


def _scalar(what: str, value: Any) -> float | Array:
    """A schedule's result, which may be a number."""
    if not isinstance(value, int | float):
        checks.returned(what, value, (), floating=False)
    return value


def _poisoned(poison: Poison, key: Key, batch: Batch) -> Batch:
    """The poisoned batch: of the names and shapes that it had, but for the number of examples."""
    result = poison(key, batch)
    if not isinstance(result, Mapping):
        raise TypeError(
            f"the poison of local_sgd must return a batch, a dict of arrays, got {type(result).__name__}"
        )
    names = [name for name in batch if name != "client"]
    if missing := [name for name in names if name not in result]:
        raise ValueError(
            f"the poison of local_sgd must return all that a batch has, but {missing} are missing; "
            "return {**batch, ...} with what it changes"
        )
    before = {name: jnp.shape(batch[name]) for name in names}
    after = {name: jnp.shape(result[name]) for name in names}
    if any(before[n][1:] != after[n][1:] or not after[n] for n in names) or (
        len({shape[:1] for shape in after.values()}) != 1
    ):
        raise ValueError(
            "the poison of local_sgd must return arrays of the shapes that it got, with one common "
            f"number of examples; got {after} for {before}"
        )
    return dict(result)
