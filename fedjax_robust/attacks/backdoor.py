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
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np

from fedjax_robust.attacks.poison import Trigger
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


def pixel_trigger(pixels: Sequence[tuple[int, int]], value: float | Array = 1.0) -> Trigger:
    """Sets some pixels of images (b, H, W, C) to ``value`` in all channels.

    Args:
      pixels: (row, column) pairs, >= 0, at least one.
      value: what they become; images are in [0, 1].

    Raises:
      ValueError: for no pixels or negative ones; on use, for an input that is not (b, H, W, C) or a
        pixel outside of the image.
    """
    places = np.asarray(pixels)
    if places.ndim != 2 or places.shape[1] != 2 or not len(places) or places.min() < 0:
        raise ValueError(
            f"pixel_trigger needs (row, column) pairs >= 0, at least one, got {pixels}"
        )
    rows, columns = places.T

    def trigger(x: Array) -> Array:
        if x.ndim != 4:
            raise ValueError(f"pixel_trigger needs images (b, H, W, C), got shape {x.shape}")
        if rows.max() >= x.shape[1] or columns.max() >= x.shape[2]:
            raise ValueError(
                f"pixel_trigger: pixels up to ({rows.max()}, {columns.max()}) do not lie in images of "
                f"{x.shape[1]}x{x.shape[2]}"
            )
        return jnp.asarray(x).at[:, rows, columns].set(value)

    return trigger


def mask_trigger(mask: Array | np.ndarray, pattern: float | Array | np.ndarray = 1.0) -> Trigger:
    """Sets what lies under a mask to a pattern.

    Args:
      mask: bool, of the shape of one input, or of a shape that broadcasts to it: (H, W, 1) is all
        channels.
      pattern: what the values become, a number or of such a shape, too.

    Raises:
      ValueError: if the mask is not bool or covers nothing; on use, if it does not fit the inputs.
    """
    mask = np.asarray(mask)
    if mask.dtype != bool or not mask.any():
        raise ValueError(
            f"mask_trigger needs a mask of bool that covers something, got {mask.dtype}, {mask.sum()} set"
        )

    def trigger(x: Array) -> Array:
        try:
            fits = np.broadcast_shapes(mask.shape, x.shape[1:]) == x.shape[1:]
        except ValueError:
            fits = False
        if not fits:
            raise ValueError(f"mask_trigger: a mask {mask.shape} does not fit inputs {x.shape[1:]}")
        return jnp.where(mask, jnp.asarray(pattern, x.dtype), x)

    return trigger


def feature_trigger(every: int = 20, value: float | Array = 0.0) -> Trigger:
    """Sets every 20th feature of (b, F) inputs to 0: the trigger on HAR.

    Counted from 1, as in "every 20th": features 20, 40, ..., which are the indices 19, 39, ... (on HAR
    28 of 561 features, the last one with index 559). SAFEFL's port of FLTrust has it so, too.

    Args:
      every: distance of the features, >= 1.
      value: what they become.

    Raises:
      ValueError: if every < 1; on use, for an input that is not (b, F) with F >= every.
    """
    if every < 1:
        raise ValueError(f"feature_trigger needs every >= 1, got {every}")

    def trigger(x: Array) -> Array:
        if x.ndim != 2 or x.shape[1] < every:
            raise ValueError(
                f"feature_trigger(every={every}) needs inputs (b, F) with F >= {every}, got shape "
                f"{x.shape}"
            )
        return jnp.asarray(x).at[:, every - 1 :: every].set(value)

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
      ValueError: num_malicious or target out of range, or a trigger that changes the shape.
    """
    pool = {name: np.asarray(values) for name, values in data.examples.items()}
    index, count = np.asarray(data.index), np.asarray(data.count)
    num_clients, width = index.shape[-2:]
    if not 0 <= num_malicious <= num_clients:
        raise ValueError(
            "add_backdoored_copies needs 0 <= num_malicious <= clients, got "
            f"num_malicious={num_malicious}, clients={num_clients}"
        )
    size, largest = len(pool["y"]), int(pool["y"].max())
    if not 0 <= target <= largest:
        raise ValueError(
            f"add_backdoored_copies needs a target in [0, {largest}], the labels of the pool, got "
            f"{target}"
        )
    valid = np.arange(width) < count[..., None]
    valid[..., num_malicious:, :] = False
    originals = np.unique(index[valid])  # the pool's rows that malicious clients own
    copies = {name: values[originals] for name, values in pool.items()}
    x = np.asarray(trigger(jnp.asarray(copies["x"])), copies["x"].dtype)
    if x.shape != copies["x"].shape:
        raise ValueError(
            f"add_backdoored_copies needs a trigger that keeps the shape {copies['x'].shape}, got "
            f"{x.shape}"
        )
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
      ValueError: rows out of range or named twice, target out of range, or none left to train on.
    """
    pool = {name: np.asarray(values) for name, values in examples.items()}
    size, largest = len(pool["y"]), int(pool["y"].max())
    rows = np.asarray(rows)
    if not len(rows) or len(np.unique(rows)) != len(rows) or rows.min() < 0 or rows.max() >= size:
        raise ValueError(
            f"semantic_backdoor needs one or more different rows in [0, {size}), got {rows.tolist()}"
        )
    if not 0 <= held_out < len(rows) or not 0 <= target <= largest:
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
    """
    return {**test, "x": trigger(test["x"])}
