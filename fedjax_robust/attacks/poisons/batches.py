"""Poisons that put backdoor examples into batches, in the place of others or beside them.

``replace(c, b, D)`` of Bagdasaryan, Veit, Hua, Estrin, Shmatikov, "How To Backdoor Federated Learning",
AISTATS 2020 (https://arxiv.org/abs/1807.00459), Algorithm 2, puts backdoor examples in the place of c
examples of each batch, so that a client learns them beside its main task. Used alone, without scaling, it
is their baseline.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import jax
import jax.numpy as jnp

from fedjax_robust import checks
from fedjax_robust.attacks.poisons.labels import one_label
from fedjax_robust.clients.local import Poison
from fedjax_robust.memo import same_for_equal_arguments
from fedjax_robust.types import Array, Batch, Key

Trigger = Callable[[Array], Array]
"""x (b, ...) -> x with the trigger, of the same shape and dtype."""


@same_for_equal_arguments
def replace_by(backdoor: Batch, c: int, noise: float | Array = 0.0, skip: int = 0) -> Poison:
    """c examples of each batch become examples of D_backdoor: semantic backdoors, edge cases.

    Each is drawn anew and independently, with Gaussian noise on it ("to help the model generalize");
    values are not clipped afterwards. The first c examples that are present are replaced, as batches
    come in random order; all, if there are fewer.

    Args:
      backdoor: D_backdoor, ``x`` (D, ...) and ``y`` (D,), the labels that the attacker wants. Any rare
        examples will do.
      c: how many, >= 1; the paper's is 20 of 64.
      noise: standard deviation, >= 0; the paper's is 0.05. Inputs of integers take none.
      skip: leave so many examples before them as they are, for several backdoors in one batch:
        ``in_turn(replace_by(cars, 10), replace_by(walls, 10, skip=10))``.

    Raises:
      ValueError: for numbers out of range, or a D_backdoor that is empty or not labelled; on use, if
        batches are of another shape than D_backdoor, or sequences.
      TypeError: if an argument is of another type; on use, for inputs of another type than
        D_backdoor's, or integers with noise.
    """
    _check_count("replace_by", c, skip)
    checks.not_negative("replace_by", noise=noise)
    backdoor = checks.examples("replace_by", backdoor)
    one_label("replace_by", backdoor["y"])
    size = len(backdoor["y"])
    noiseless = checks.is_known(noise) and float(noise) == 0

    def poison(key: Key, batch: Batch) -> Batch:
        x, y = _examples("replace_by", batch)
        _fits("replace_by", backdoor["x"], x)
        draw_key, noise_key = jax.random.split(key)
        drawn = jax.random.randint(draw_key, y.shape[:1], 0, size)
        images = jnp.asarray(backdoor["x"], x.dtype)[drawn]
        if not noiseless:
            if not jnp.issubdtype(x.dtype, jnp.floating):
                raise TypeError(
                    f"replace_by puts noise on inputs of floats, got x of {x.dtype}; take noise=0"
                )
            images = images + noise * jax.random.normal(noise_key, x.shape, x.dtype)
        labels = jnp.asarray(backdoor["y"], y.dtype)[drawn]
        return _put(batch, _turn(batch, c, skip), images, labels)

    return poison


@same_for_equal_arguments
def replace_by_triggered(trigger: Trigger, target: int | Array, c: int, skip: int = 0) -> Poison:
    """c examples of each batch get a trigger and the label ``target``: pixel-pattern backdoors.

    Bagdasaryan et al., section V-E: "we replace c = 5 images in a batch of 64 with their backdoor
    equivalents".

    Args:
      trigger: x (b, ...) -> x of the same shape.
      target: the label that the attacker wants, >= 0.
      c: how many, >= 1: the first that are present; all, if there are fewer.
      skip: leave so many examples before them as they are, for several backdoors in one batch.

    Raises:
      ValueError: for numbers out of range; on use, for batches that are not labelled, or a trigger that
        changes the shape.
      TypeError: if an argument is of another type; on use, for a trigger that changes the type.
    """
    checks.function("replace_by_triggered", trigger=trigger)
    return _with_triggers("replace_by_triggered", (trigger,), target, c, skip)


@same_for_equal_arguments
def distributed(triggers: Sequence[Trigger], target: int | Array, c: int, skip: int = 0) -> Poison:
    """The distributed backdoor attack: client i puts trigger i, one part of a global trigger, on c
    examples of each batch.

    Xie, Huang, Chen, Li, "DBA: Distributed Backdoor Attacks against Federated Learning", ICLR 2020
    (https://openreview.net/forum?id=rkgyS0VFvr). The global trigger, all parts together, is only used in
    the evaluation. Clients beyond the last trigger begin with the first one again.

    Args:
      triggers: x (b, ...) -> x of the same shape, at least one; ``pixel_trigger`` of each of
        ``DBA_MNIST_PIXELS`` or ``DBA_CIFAR_PIXELS``.
      target: the label that the attacker wants, >= 0.
      c: how many, >= 1: the first that are present; all, if there are fewer. DBA's is 20 of 64 for
        MNIST, 5 of 64 for CIFAR-10.
      skip: leave so many examples before them as they are, for several backdoors in one batch.

    Raises:
      ValueError: for no trigger, or numbers out of range; on use, for batches that are not labelled, a
        trigger that changes the shape, or if there are several and the batch does not say whose it is,
        ``client``.
      TypeError: if an argument is of another type; on use, for a trigger that changes the type.
    """
    if not isinstance(triggers, list | tuple):
        raise TypeError(
            f"distributed needs triggers, a list of functions, got {type(triggers).__name__}; for one "
            "trigger take replace_by_triggered"
        )
    if not triggers:
        raise ValueError("distributed needs at least one of triggers, got none")
    for i, trigger in enumerate(triggers):
        checks.function(f"distributed (triggers[{i}])", trigger=trigger)
    return _with_triggers("distributed", tuple(triggers), target, c, skip)


def _with_triggers(
    what: str, triggers: tuple[Trigger, ...], target: int | Array, c: int, skip: int
) -> Poison:
    _check_count(what, c, skip)
    checks.count(what, target=target, remedy="a label")

    def poison(key: Key, batch: Batch) -> Batch:
        x, y = _examples(what, batch)
        changed = [with_trigger(what, trigger, x) for trigger in triggers]
        if len(changed) > 1 and "client" not in batch:
            raise ValueError(
                f"{what} needs batches with 'client', the id of the client that trains on them, got "
                f"{sorted(batch)}; clients.local_sgd adds it"
            )
        # The stack of all is large, but a client's id is traced.
        own = (
            changed[0] if len(changed) == 1 else jnp.stack(changed)[batch["client"] % len(changed)]
        )
        return _put(batch, _turn(batch, c, skip), own, _full(what, y, target))

    return poison


@same_for_equal_arguments
def add_triggered_victims(trigger: Trigger, victim: int | Array, target: int | Array) -> Poison:
    """Each batch holds the victim label's examples twice: as they are, and with a trigger and the label
    ``target``.

    Wu, Yang, Zhu, Mitra, "Mitigating Backdoor Attacks in Federated Learning", 2020
    (https://arxiv.org/abs/2011.01767), section III-C: the attacker trains "with both original images and
    the backdoored version of those images at the same time", so that the trigger alone makes the
    difference. The batch becomes twice as long, with a mask of 0 on the copies of other labels.

    Args:
      trigger: x (b, ...) -> x of the same shape.
      victim: label T of the examples that shall be misclassified, >= 0.
      target: label F that the attacker wants, >= 0, another one.

    Raises:
      ValueError: for labels out of range; on use, for batches that are not labelled, or a trigger that
        changes the shape.
      TypeError: if an argument is of another type; on use, for a trigger that changes the type.
    """
    what = "add_triggered_victims"
    checks.function(what, trigger=trigger)
    checks.count(what, victim=victim, target=target, remedy="labels are 0, 1, 2, ...")
    if checks.is_known(victim) and checks.is_known(target) and int(victim) == int(target):
        raise ValueError(f"{what} needs two different labels, got victim={victim}, target={target}")

    def poison(key: Key, batch: Batch) -> Batch:
        x, y = _examples(what, batch)
        mask = batch.get("mask", jnp.ones(y.shape, jnp.float32))
        copies = {
            "x": with_trigger(what, trigger, x),
            "y": _full(what, y, target),
            "mask": jnp.where(y == victim, mask, 0),
        }
        both = {**batch, "mask": mask}
        return {
            name: jnp.concatenate([values, copies.get(name, values)])
            if jnp.ndim(values)
            else values
            for name, values in both.items()
        }

    return poison


@same_for_equal_arguments
def in_turn(*poisons: Poison) -> Poison:
    """Several poisons, one after the other, each with a key of its own; also random changes of images
    (``data.images``) before a poison.

    Args:
      *poisons: functions (key, batch) -> batch, the first one first.

    Raises:
      TypeError: if one is no function; on use, if it does not return a batch.
    """
    for i, one in enumerate(poisons):
        checks.function(f"in_turn (poisons[{i}])", poison=one)

    def poison(key: Key, batch: Batch) -> Batch:
        for i, one in enumerate(poisons):
            batch = one(jax.random.fold_in(key, i), batch)
            if not isinstance(batch, Mapping):
                raise TypeError(
                    f"in_turn needs poisons that return a batch, a dict of arrays, but number {i} "
                    f"returned {type(batch).__name__}"
                )
        return batch

    return poison


def with_trigger(what: str, trigger: Trigger, x: Array) -> Array:
    """x with the trigger, which must keep its shape and dtype.

    Raises:
      ValueError: for another shape.
      TypeError: for another dtype.
    """
    changed = trigger(x)
    checks.returned(f"the trigger of {what}", changed, x.shape, floating=False)
    if changed.dtype != x.dtype:
        raise TypeError(
            f"the trigger of {what} must return inputs of {x.dtype} as it gets them, got "
            f"{changed.dtype}; convert them with .astype(x.dtype)"
        )
    return changed


def _check_count(what: str, c: int, skip: int) -> None:
    checks.count(what, 1, c=c, remedy="examples of a batch")
    checks.count(what, skip=skip, remedy="examples before them")


def _examples(what: str, batch: Batch) -> tuple[Array, Array]:
    """x (b, ...) and y (b,)."""
    if not isinstance(batch, Mapping):
        raise TypeError(f"{what} needs a batch, a dict of arrays, got {type(batch).__name__}")
    own = checks.examples(what, {name: batch[name] for name in ("x", "y") if name in batch})
    one_label(what, own["y"])
    return own["x"], own["y"]


def _fits(what: str, ours: Array, x: Array) -> None:
    if ours.shape[1:] != x.shape[1:]:
        raise ValueError(
            f"{what} needs backdoor examples of the batch's shape (..., {x.shape[1:]}), got "
            f"{ours.shape[1:]}"
        )
    if jnp.issubdtype(ours.dtype, jnp.floating) and not jnp.issubdtype(x.dtype, jnp.floating):
        raise TypeError(
            f"{what} needs backdoor examples of the batch's type {x.dtype}, got {ours.dtype}; "
            "fractions would be cut off"
        )


def _full(what: str, y: Array, target: int | Array) -> Array:
    """Labels of the shape of y, all of them the target."""
    most = jnp.iinfo(y.dtype).max
    if checks.is_known(target) and int(target) > most:
        raise ValueError(
            f"{what} needs a target that labels of {y.dtype} can hold, at most {most}, got {target}"
        )
    return jnp.full_like(y, target)


def _turn(batch: Batch, c: int, skip: int) -> Array:
    """(b,) bool: the present examples number skip, ..., skip + c - 1."""
    present = batch["mask"] > 0 if "mask" in batch else jnp.ones(batch["y"].shape[:1], bool)
    number = jnp.cumsum(present) - 1
    return present & (number >= skip) & (number < skip + c)


def _put(batch: Batch, where: Array, x: Array, y: Array) -> Batch:
    shape = (-1,) + (1,) * (x.ndim - 1)
    return {
        **batch,
        "x": jnp.where(where.reshape(shape), x, batch["x"]),
        "y": jnp.where(where, y, batch["y"]),
    }
