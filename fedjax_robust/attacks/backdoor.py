"""Backdoors: triggers, semantic backdoors, and data of malicious clients with triggered copies.

Bagdasaryan, Veit, Hua, Estrin, Shmatikov, "How To Backdoor Federated Learning", AISTATS 2020 ("model
replacement"), in the form in which Cao, Fang, Liu, Gong, "FLTrust: Byzantine-robust Federated Learning
via Trust Bootstrapping", NDSS 2021, run it as the *Scaling attack*. Each malicious client owns its
examples twice, once as they are and once with a trigger and the label that the attacker wants; it trains
on them like everybody else and sends its update multiplied by lambda, the number of clients::

    data = add_backdoored_copies(data, 20, pixel_trigger(FLTRUST_MNIST_PIXELS), target=0)
    sim = Simulation(..., attack=scaling(100), num_malicious=20)
    evaluate = attack_success(task, triggered(test, pixel_trigger(FLTRUST_MNIST_PIXELS)), 0)

A trigger is a function x (b, ...) -> x of the same shape. Any such function will do. ``poison.py`` puts
triggers and other backdoor examples into the batches of malicious clients instead, ``replacement.py``
scales and submits what they have trained.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from fedjax_robust import checks
from fedjax_robust.attacks.poison import Trigger, with_trigger
from fedjax_robust.memo import same_for_equal_arguments
from fedjax_robust.types import Array, Batch, FederatedData

Pixels = tuple[tuple[int, int], ...]

FLTRUST_MNIST_PIXELS = ((26, 26), (24, 26), (26, 24), (25, 25))
"""(row, column) of the trigger on MNIST and Fashion-MNIST, in code of FLTrust's authors; value 1."""
FLTRUST_CIFAR_PIXELS = (
    (1, 28), (1, 29), (1, 30), (2, 29), (3, 28), (4, 29), (5, 28), (5, 29), (5, 30),
)  # fmt: skip
"""(row, column) of the trigger on CIFAR-10, all three channels, in code of FLTrust's authors, who call it
the pattern of Bagdasaryan et al.; value 1."""
NINE_PIXELS = (
    (26, 26), (25, 25), (24, 24), (24, 26), (26, 24), (24, 25), (26, 25), (25, 24), (25, 26),
)  # fmt: skip
"""Patterns of 1, 3, 5, 7 and 9 pixels are the first so many: a point, a diagonal, an X, ..., a square,
near the lower right corner of MNIST. (Papers that use such sizes show pictures, and no coordinates.)"""


def _bars(rows: Sequence[int], starts: Sequence[int], length: int) -> tuple[Pixels, ...]:
    return tuple(tuple((i, j + k) for k in range(length)) for i in rows for j in starts)


DBA_MNIST_PIXELS = _bars((0, 3), (0, 6), 4)
"""DBA's four local triggers on MNIST, bars of 4 pixels of value 1; the global trigger is all of them,
``pixel_trigger(sum(DBA_MNIST_PIXELS, ()))``."""
DBA_CIFAR_PIXELS = _bars((0, 4), (0, 9), 6)
"""DBA's four local triggers on CIFAR-10, bars of 6 pixels of value 1 in all three channels."""

CIFAR_RACING_STRIPES = (
    2180, 2771, 3233, 4932, 6241, 6813, 6869, 9476, 11395, 11744, 14209, 14238, 18716, 19793, 20781,
    21529, 31311, 40518, 40633, 42119, 42663, 49392,
)  # fmt: skip
"""Cars with racing stripes: numbers among the 50,000 training images of CIFAR-10, in the order of the
published files, from the authors' code (Bagdasaryan et al.); 22, where the paper counts 21."""
CIFAR_GREEN_CARS = (
    389, 561, 874, 1605, 3378, 3678, 4528, 9744, 19165, 19500, 21422, 22984, 32941, 34287, 34385, 36005,
    37365, 37533, 38658, 38735, 39824, 40138, 41336, 41861, 47001, 47026, 48003, 48030, 49163, 49588,
)  # fmt: skip
"""Green cars, 30, as ``CIFAR_RACING_STRIPES``."""
CIFAR_STRIPED_WALLS = (
    330, 568, 3934, 12336, 30560, 30696, 33105, 33615, 33907, 36848, 40713, 41706,
)  # fmt: skip
"""Cars before a vertically striped wall, 12, as ``CIFAR_RACING_STRIPES``; the code holds out the
first 5."""


@same_for_equal_arguments
def pixel_trigger(pixels: Sequence[tuple[int, int]], value: float | Array = 1.0) -> Trigger:
    """Sets some pixels of images (b, H, W, C) to ``value`` in all channels.

    Args:
      pixels: (row, column) pairs of integers, >= 0, at least one.
      value: what they become, a finite number; images are in [0, 1].

    Raises:
      ValueError: for no pixels, negative ones, or fractions, or a value that is not finite; on use, for
        an input that is not (b, H, W, C), a pixel outside of the image, or a value that integers cannot
        hold.
      TypeError: if an argument is of another type.
    """
    places = _whole("pixel_trigger", "pixels", pixels, "(row, column) pairs >= 0, at least one")
    if places.ndim != 2 or places.shape[1] != 2 or not len(places) or places.min() < 0:
        raise ValueError(
            f"pixel_trigger needs pixels, (row, column) pairs >= 0, at least one, got {pixels}"
        )
    checks.finite("pixel_trigger", value=value)
    rows, columns = places.T

    def trigger(x: Array) -> Array:
        x = checks.array("pixel_trigger", "x", x)
        _holds("pixel_trigger", x, value=value)
        if x.ndim != 4:
            raise ValueError(f"pixel_trigger needs images (b, H, W, C), got shape {x.shape}")
        if rows.max() >= x.shape[1] or columns.max() >= x.shape[2]:
            raise ValueError(
                f"pixel_trigger: pixels up to ({rows.max()}, {columns.max()}) do not lie in images of "
                f"{x.shape[1]}x{x.shape[2]}"
            )
        return x.at[:, rows, columns].set(jnp.asarray(value, x.dtype))

    return trigger


@same_for_equal_arguments
def mask_trigger(mask: Array | np.ndarray, pattern: float | Array | np.ndarray = 1.0) -> Trigger:
    """Sets what lies under a mask to a pattern.

    Args:
      mask: bool, of the shape of one input, or of a shape that broadcasts to it: (H, W, 1) is all
        channels.
      pattern: what the values become, a number or of such a shape, too.

    Raises:
      ValueError: if the mask is not bool or covers nothing, or the pattern is not finite; on use, if
        mask or pattern do not fit the inputs, or integers cannot hold the pattern.
      TypeError: if they are no arrays of numbers, or the mask is traced.
    """
    given = checks.array("mask_trigger", "mask", mask)
    if not checks.is_known(given):
        raise TypeError("mask_trigger needs a mask that is known when the program is compiled")
    mask = np.asarray(given)
    pattern = checks.array("mask_trigger", "pattern", pattern)
    if checks.is_known(pattern) and not np.all(np.isfinite(pattern)):
        raise ValueError("mask_trigger needs a pattern of finite numbers, got NaN or Inf")
    if mask.dtype != bool or not mask.any():
        raise ValueError(
            f"mask_trigger needs a mask of bool that covers something, got {mask.dtype}, {mask.sum()} set"
        )

    def trigger(x: Array) -> Array:
        x = checks.array("mask_trigger", "x", x)
        if x.ndim < 2:
            raise ValueError(f"mask_trigger needs inputs (b, ...), got shape {x.shape}")
        for name, shape in (("mask", mask.shape), ("pattern", pattern.shape)):
            if not _broadcasts(shape, x.shape[1:]):
                raise ValueError(
                    f"mask_trigger: a {name} {shape} does not fit inputs {x.shape[1:]}"
                )
        _holds("mask_trigger", x, pattern=pattern)
        return jnp.where(mask, pattern.astype(x.dtype), x)

    return trigger


def _broadcasts(shape: tuple[int, ...], to: tuple[int, ...]) -> bool:
    try:
        return np.broadcast_shapes(shape, to) == to
    except ValueError:
        return False


def _whole(what: str, name: str, values: Any, rule: str) -> np.ndarray:
    """An array of integers that is known."""
    try:
        result = np.asarray(values)
    except (TypeError, ValueError) as error:  # ragged, or traced
        raise ValueError(f"{what} needs {name}, {rule}, got {values}") from error
    if result.size and result.dtype.kind not in "iu":
        raise (ValueError if result.dtype.kind == "f" else TypeError)(
            f"{what} needs {name}, {rule}, got {values}"
        )
    return result


def _holds(what: str, x: Array, **values: Any) -> None:
    """Refuse inputs of integers that cannot hold a value: it would be cut off."""
    if jnp.issubdtype(x.dtype, jnp.floating):
        return
    for name, value in values.items():
        known = checks.is_known(value)
        limits = jnp.iinfo(x.dtype) if jnp.issubdtype(x.dtype, jnp.integer) else None
        if limits is None or not known:
            fits = limits is not None and jnp.issubdtype(jnp.asarray(value).dtype, jnp.integer)
        else:
            number = np.asarray(value)
            whole = np.all(number == np.floor(number))
            fits = bool(whole and limits.min <= number.min() and number.max() <= limits.max)
        if not fits:
            shown = f"{name}={value}" if np.ndim(value) == 0 else name
            raise ValueError(
                f"{what} needs inputs of floats, or integers that can hold the {name}, got x of "
                f"{x.dtype} and {shown}"
            )


@same_for_equal_arguments
def feature_trigger(every: int = 20, value: float | Array = 0.0) -> Trigger:
    """Sets every 20th feature of (b, F) inputs to 0: the trigger on HAR.

    Counted from 1, as in "every 20th": features 20, 40, ..., which are the indices 19, 39, ... (on HAR
    28 of 561 features, the last one with index 559). SAFEFL's port of FLTrust has it so, too.

    Args:
      every: distance of the features, >= 1.
      value: what they become, a finite number.

    Raises:
      ValueError: if every < 1, or the value is not finite; on use, for an input that is not (b, F) with
        F >= every, or a value that integers cannot hold.
      TypeError: if an argument is of another type.
    """
    checks.static_count("feature_trigger", 1, every=every)
    checks.finite("feature_trigger", value=value)
    every = int(every)

    def trigger(x: Array) -> Array:
        x = checks.array("feature_trigger", "x", x)
        _holds("feature_trigger", x, value=value)
        if x.ndim != 2 or x.shape[1] < every:
            raise ValueError(
                f"feature_trigger(every={every}) needs inputs (b, F) with F >= {every}, got shape "
                f"{x.shape}"
            )
        return x.at[:, every - 1 :: every].set(jnp.asarray(value, x.dtype))

    return trigger


def add_backdoored_copies(
    data: FederatedData, num_malicious: int, trigger: Trigger, target: int
) -> FederatedData:
    """Malicious clients own each of their examples twice: clean, and triggered with label ``target``.

    This is FLTrust's p = 1, "each client duplicates its local data". A batch drawn without replacement
    from the doubled data is then one of the paper's. Honest clients keep their rows and counts. Rules
    or weights that go by example counts see the doubled ones.

    The copies are appended to the pool: one per example that any malicious client owns, in the order of
    the pool. This runs on the host, once; it cannot be traced.

    Args:
      data: a partition with labels ``y`` (E,) in the pool; ``index`` (N, m) or stacked, (S, N, m).
      num_malicious: c in [0, N]; clients 0 .. c - 1, in every partition of a stack.
      trigger: x (b, ...) -> x of the same shape.
      target: the label that the attacker wants, in [0, largest label of the pool].

    Returns:
      FederatedData with a pool of E + (number of copies) examples, and ``index`` as wide as its largest
      count needs, at least m. A malicious client's row holds its examples, then their copies in the
      same order.

    Raises:
      ValueError: num_malicious or target out of range, a trigger that changes the shape, or data that
        are no partition.
      TypeError: if an argument is of another type, or traced; or a trigger that changes the type.
    """
    what = "add_backdoored_copies"
    checks.part(what, FederatedData, data=data)
    checks.partition(what, data.examples, data.index, data.count)
    if not checks.is_known(data.index) or not checks.is_known(data.count):
        raise TypeError(f"{what} runs on the host and needs data that are known, not traced")
    checks.static_count(what, num_malicious=num_malicious, target=target)
    checks.function(what, trigger=trigger)
    if np.ndim(data.examples["y"]) != 1:
        raise ValueError(
            f"{what} needs labels y (E,), got shape {np.shape(data.examples['y'])}; of sequences of "
            "words take word_backdoor"
        )
    pool = {name: np.asarray(values) for name, values in data.examples.items()}
    index, count = np.asarray(data.index), np.asarray(data.count)
    num_clients, width = index.shape[-2:]
    if num_malicious > num_clients:
        raise ValueError(
            "add_backdoored_copies needs 0 <= num_malicious <= clients, got "
            f"num_malicious={num_malicious}, clients={num_clients}"
        )
    size, largest = len(pool["y"]), int(pool["y"].max())
    if target > largest:
        raise ValueError(
            f"add_backdoored_copies needs a target in [0, {largest}], the labels of the pool, got "
            f"{target}"
        )
    valid = np.arange(width) < count[..., None]
    valid[..., num_malicious:, :] = False
    originals = np.unique(index[valid])  # the pool's rows that malicious clients own
    copies = {name: values[originals] for name, values in pool.items()}
    x = np.asarray(with_trigger(what, trigger, jnp.asarray(copies["x"])), copies["x"].dtype)
    copies |= {"x": x, "y": np.full_like(copies["y"], target)}

    doubled = count.copy()
    doubled[..., :num_malicious] *= 2
    new = np.zeros((*index.shape[:-1], max(width, doubled.max())), np.int32)
    new[..., :width] = index
    for client in np.ndindex(count.shape):
        if client[-1] < num_malicious:
            own = index[client][: count[client]]
            new[client][len(own) : 2 * len(own)] = size + np.searchsorted(originals, own)
    return FederatedData(
        {name: jnp.asarray(np.concatenate([pool[name], copies[name]])) for name in pool},
        jnp.asarray(new),
        jnp.asarray(doubled),
    )


class SemanticBackdoor(NamedTuple):
    """Examples with a feature of their own, split for an attacker."""

    train: Batch
    """D_backdoor: ``x`` (D, ...), and ``y`` (D,) the label that the attacker wants"""
    held_out: Batch
    """kept from its training, with their true labels, for ``metrics.backdoor_accuracy``"""
    rest: Batch
    """all other examples, in their order: what honest clients may own"""


def semantic_backdoor(
    examples: Batch, rows: Sequence[int] | np.ndarray, held_out: int, target: int
) -> SemanticBackdoor:
    """Take the examples that have the backdoor's feature out of a pool and split them.

    Nobody but the attacker has training examples with the feature (section V-A of Bagdasaryan et al.);
    to leave some with the honest clients, do not name them. Any rare examples make a backdoor, such as
    the edge cases of Wang et al., "Attack of the Tails: Yes, You Really Can Backdoor Federated Learning",
    NeurIPS 2020.

    Args:
      examples: the pool, E examples with labels ``y``.
      rows: which have the feature; for CIFAR-10, ``data.cifar10_rows(CIFAR_GREEN_CARS)``.
      held_out: the first so many of ``rows`` are held out, >= 0; the paper holds out 3.
      target: the label that the attacker wants, in [0, largest label of the pool].

    Raises:
      ValueError: rows out of range or named twice, target out of range, none left to train on, or
        examples without labels y (E,).
      TypeError: if an argument is of another type.
    """
    what = "semantic_backdoor"
    checks.examples(what, examples)
    checks.static_count(what, held_out=held_out, target=target)
    pool = {name: np.asarray(values) for name, values in examples.items()}
    if pool["y"].ndim != 1:
        raise ValueError(f"{what} needs labels y (E,), got shape {pool['y'].shape}")
    size, largest = len(pool["y"]), int(pool["y"].max())
    rows = _whole(what, "rows", rows, "a list of different rows of the pool").astype(np.int64)
    if (
        rows.ndim != 1
        or not len(rows)
        or len(np.unique(rows)) != len(rows)
        or rows.min() < 0
        or rows.max() >= size
    ):
        raise ValueError(
            f"semantic_backdoor needs one or more different rows in [0, {size}), got {rows.tolist()}"
        )
    if held_out >= len(rows) or target > largest:
        raise ValueError(
            f"semantic_backdoor needs 0 <= held_out < {len(rows)} rows and a target in [0, {largest}], "
            f"got held_out={held_out}, target={target}"
        )

    def at(rows: np.ndarray) -> Batch:
        return {name: jnp.asarray(values[rows]) for name, values in pool.items()}

    train = at(rows[held_out:])
    train["y"] = jnp.full_like(train["y"], target)
    return SemanticBackdoor(train, at(rows[:held_out]), at(np.delete(np.arange(size), rows)))


def triggered(test: Batch, trigger: Trigger) -> Batch:
    """The examples with the trigger and their *true* labels, for ``metrics.attack_success``.

    Args:
      test: ``x`` (E, ...), ``y`` (E,) and what else there is, which stays as it is.
      trigger: x (b, ...) -> x of the same shape.

    Raises:
      ValueError: for examples without ``x`` and ``y``, or a trigger that changes the shape.
      TypeError: for a trigger that is no function, or changes the type.
    """
    x = checks.examples("triggered", test)["x"]
    checks.function("triggered", trigger=trigger)
    return {**test, "x": with_trigger("triggered", trigger, x)}
