"""Learning problems over flat parameters: the pytree of a flax model exists only in here."""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from jax.flatten_util import ravel_pytree

from fedjax_robust.types import Array, Batch, Key, Task


def masked_mean(values: Array, mask: Array | None) -> Array:
    """Mean of (b,) values with weights (b,), 0 if all weights are 0; a plain mean without mask."""
    if mask is None:
        return jnp.mean(values)
    mask = mask.astype(values.dtype)
    total = jnp.sum(mask)
    return jnp.sum(values * mask) / jnp.where(total > 0, total, 1)


def classification(module: nn.Module, sample: Array) -> Task:
    """Softmax cross-entropy classification.

    Args:
      module: maps x (b, ...) to logits (b, classes). All its variables must be parameters: batch
        statistics have no place in the flat vector.
      sample: one example or batch of inputs, (1, ...), from which the shapes are taken.

    Raises:
      ValueError: if the module keeps variables other than ``params``.
    """
    variables = jax.eval_shape(module.init, jax.random.key(0), sample)
    others = sorted(set(variables) - {"params"})
    if others:
        raise ValueError(
            f"classification needs a module whose variables are all parameters, got also {others}; "
            "replace batch normalisation by fedjax_robust.nn.BatchNorm, which keeps no statistics, or "
            "by GroupNorm"
        )
    _, unravel = ravel_pytree(
        jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), variables["params"])
    )

    def init(key: Key) -> Array:
        return ravel_pytree(module.init(key, sample)["params"])[0]

    def logits(params: Array, x: Array) -> Array:
        outputs: Array = module.apply({"params": unravel(params)}, x)  # type: ignore[assignment]
        return outputs

    def loss(params: Array, batch: Batch) -> Array:
        losses = optax.softmax_cross_entropy_with_integer_labels(
            logits(params, batch["x"]), batch["y"]
        )
        return masked_mean(losses, batch.get("mask"))

    return Task(init, loss, logits, unravel)
