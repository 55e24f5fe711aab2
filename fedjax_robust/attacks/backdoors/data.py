"""Data with a backdoor: copies with a trigger, examples with a feature of their own, and test examples.

Bagdasaryan, Veit, Hua, Estrin, Shmatikov, "How To Backdoor Federated Learning", AISTATS 2020
(https://arxiv.org/abs/1807.00459), in the form in which Cao, Fang, Liu, Gong, "FLTrust: Byzantine-robust
Federated Learning via Trust Bootstrapping", NDSS 2021 (https://arxiv.org/abs/2012.13995), run it as the
*Scaling attack*. Each malicious client owns its examples twice, once as they are and once with a trigger
and the label that the attacker wants; it trains on them like everybody else and sends its update
multiplied by lambda, the number of clients::

    data = add_backdoored_copies(data, 20, pixel_trigger(FLTRUST_MNIST_PIXELS), target=0)
    sim = Simulation(..., attack=scaling(100), num_malicious=20)
    evaluate = attack_success(task, triggered(test, pixel_trigger(FLTRUST_MNIST_PIXELS)), 0)
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np

from fedjax_robust import checks
from fedjax_robust.attacks.backdoors.triggers import whole_images
from fedjax_robust.attacks.poisons.batches import Trigger, with_trigger
from fedjax_robust.types import Batch, FederatedData


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
    NeurIPS 2020 (https://arxiv.org/abs/2007.05084).

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
    rows = whole_images(what, "rows", rows, "a list of different rows of the pool").astype(np.int64)
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
