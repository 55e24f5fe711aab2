"""Backdoors: triggers, data of malicious clients with triggered copies, and scaled updates.

Bagdasaryan, Veit, Hua, Estrin, Shmatikov, "How To Backdoor Federated Learning", AISTATS 2020 ("model
replacement"), in the form in which Cao, Fang, Liu, Gong, "FLTrust: Byzantine-robust Federated Learning
via Trust Bootstrapping", NDSS 2021, run it as the *Scaling attack*. Each malicious client owns its
examples twice, once as they are and once with a trigger and the label that the attacker wants; it trains
on them like everybody else and sends its update multiplied by lambda, the number of clients::

    data = add_backdoored_copies(data, 20, pixel_trigger(FLTRUST_MNIST_PIXELS), target=0)
    sim = Simulation(..., attack=scaling(100), num_malicious=20)
    evaluate = attack_success(task, triggered(test, pixel_trigger(FLTRUST_MNIST_PIXELS)), 0)

A trigger is a function x (b, ...) -> x of the same shape. Any such function will do.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import jax.numpy as jnp
import numpy as np

from fedjax_robust.types import (
    Array,
    Attack,
    AttackerView,
    Batch,
    FederatedData,
    State,
    is_number,
)

Trigger = Callable[[Array], Array]
"""x (b, ...) -> x with the trigger, of the same shape and dtype."""

FLTRUST_MNIST_PIXELS = ((26, 26), (24, 26), (26, 24), (25, 25))
"""(row, column) of the trigger on MNIST and Fashion-MNIST, in code of FLTrust's authors; value 1."""
FLTRUST_CIFAR_PIXELS = (
    (1, 28), (1, 29), (1, 30), (2, 29), (3, 28), (4, 29), (5, 28), (5, 29), (5, 30),
)  # fmt: skip
"""(row, column) of the trigger on CIFAR-10, all three channels, in code of FLTrust's authors, who call it
the pattern of Bagdasaryan et al.; value 1."""


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


def scaling(scale: float | Array) -> Attack:
    """Every malicious client sends lambda times its before-attack update.

    FLTrust takes lambda = n, all clients of the round, so that under plain averaging one of them alone
    replaces the model (eq. 3 of Bagdasaryan et al., gamma = n / eta; averaging over all n is eta = 1).
    What makes the update malicious is the data that its clients train on: ``add_backdoored_copies``.

    Args:
      scale: lambda > 0.

    Raises:
      ValueError: if it is not.
    """
    if is_number(scale) and not scale > 0:
        raise ValueError(f"scaling needs scale > 0, got {scale}")

    def craft(view: AttackerView, state: State) -> tuple[Array, State]:
        return scale * view.updates[: view.num_malicious], state

    return Attack(craft=craft)


def triggered(test: Batch, trigger: Trigger) -> Batch:
    """The examples with the trigger and their *true* labels, for ``metrics.attack_success``.

    Args:
      test: ``x`` (E, ...), ``y`` (E,) and what else there is, which stays as it is.
      trigger: x (b, ...) -> x of the same shape.
    """
    return {**test, "x": trigger(test["x"])}
