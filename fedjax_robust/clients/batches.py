"""Which of its examples a client trains on in a step."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from fedjax_robust import checks
from fedjax_robust.types import Array, Batch, ClientData, Key


def sample_without_replacement(key: Key, count: Array, size: int) -> tuple[Array, Array]:
    """A uniformly random subset of {0, .., count - 1} of min(size, count) elements.

    Floyd's algorithm: ``size`` draws, whatever ``count`` is, and no loop over them, which an
    accelerator would spend more time on than on a step of a small model.

    Args:
      key: a key.
      count: >= 0.
      size: >= 1.

    Returns:
      (size,) int32 positions and (size,) float32 mask, 0 for the unused tail when count < size.

    Raises:
      ValueError: for a count or size out of range.
      TypeError: if they are no integers, or the size is traced.
    """
    checks.count("sample_without_replacement", count=count)
    checks.static_count("sample_without_replacement", 1, size=size)
    k = jnp.minimum(size, count)
    i = jnp.arange(size)
    last = jnp.maximum(count - k + i, 0)
    draws = jax.random.randint(key, (size,), 0, last + 1)

    # A draw is taken if an earlier one was equal, or if it is the number last[j] that an earlier draw,
    # itself taken, was replaced by: a chain of pointers to earlier draws. One that ends in a taken draw,
    # marked by ``size``, does so after doubling it a few times.
    j = draws - (count - k)
    ends = jnp.where((j >= 0) & (j < i), j, i)
    ends = jnp.append(jnp.where(_seen_before(draws), size, ends), size)
    for _ in range((size - 1).bit_length()):
        ends = ends[ends]
    chosen = jnp.where(ends[:size] == size, last, draws)
    used = i < k
    return jnp.where(used, chosen, 0), used.astype(jnp.float32)


def _seen_before(draws: Array) -> Array:
    """Whether an equal number stands before it: (b,) -> (b,) bool."""
    b = draws.shape[0]
    if b <= 128:  # all pairs, which are cheaper than sorting
        earlier = jnp.arange(b)[:, None] < jnp.arange(b)
        return jnp.any(earlier & (draws[:, None] == draws), axis=0)
    order = jnp.argsort(draws, stable=True)
    same = jnp.append(False, jnp.diff(draws[order]) == 0)
    return jnp.zeros(b, bool).at[order].set(same, unique_indices=True)


def take(data: ClientData, positions: Array, mask: Array) -> Batch:
    """A batch of some of the client's rows: positions (b,), mask (b,) -> arrays (b, ...) and ``mask``.

    The examples' own weights, ``mask`` (E,) in the pool, are multiplied into it; ValueError for another
    shape of them.
    """
    rows = data.index[positions]
    batch = {name: values[rows] for name, values in data.examples.items()}
    if "mask" in batch:  # the examples' own weights
        if batch["mask"].shape != mask.shape:
            raise ValueError(
                "local_sgd needs a mask in the pool of one weight for each example, (E,), got shape "
                f"{data.examples['mask'].shape}"
            )
        mask = mask * batch["mask"].astype(mask.dtype)
    return batch | {"mask": mask}


def random_batch(key: Key, data: ClientData, size: int) -> Batch:
    """``size`` of the client's examples without replacement; all, padded, if it can own no more."""
    capacity = data.index.shape[0]
    if size >= capacity:  # everything it has, in any order
        positions = jnp.arange(capacity)
        return take(data, positions, (positions < data.count).astype(jnp.float32))
    return take(data, *sample_without_replacement(key, data.count, size))


def shuffled_positions(key: Key, data: ClientData, steps: int, size: int) -> tuple[Array, Array]:
    """One epoch: (steps, size) positions, every valid one once, and their mask."""
    capacity = data.index.shape[0]
    order = jax.random.uniform(key, (capacity,))
    order = jnp.argsort(jnp.where(jnp.arange(capacity) < data.count, order, 2.0))
    positions = jnp.pad(order, (0, steps * size - capacity)).reshape(steps, size)
    mask = jnp.arange(steps * size).reshape(steps, size) < data.count
    return positions, mask.astype(jnp.float32)
