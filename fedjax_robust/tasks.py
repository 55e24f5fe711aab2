"""Learning problems over flat parameters: the pytree of a flax model exists only in here."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from jax.flatten_util import ravel_pytree

from fedjax_robust.types import Array, Batch, Key, Task


def masked_mean(values: Array, mask: Array | None) -> Array:
    """Mean of values with weights of their shape, 0 if all weights are 0; a plain mean without mask."""
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
    init, logits, unravel = _flat(module, sample, "classification")

    def loss(params: Array, batch: Batch) -> Array:
        losses = optax.softmax_cross_entropy_with_integer_labels(
            logits(params, batch["x"]), batch["y"]
        )
        return masked_mean(losses, batch.get("mask"))

    return Task(init, loss, logits, unravel)


def next_word(module: nn.Module, sample: Array) -> Task:
    """Prediction of the next word at every place of a sequence: softmax cross-entropy over the words.

    A batch has ``x`` (b, T) int32, the words, ``y`` (b, T) int32, the words that follow them, and
    optionally ``token_mask`` (b, T), the weights of the single predictions (default ones): 0 for padding,
    and for all but the last word of a sentence that an attacker trains on. ``mask`` (b,) weighs whole
    sequences, as in every task. The loss is the mean cross-entropy with the weights
    mask_s * token_mask_st, so that a sequence counts by its number of words; 0 if all weights are 0.

    With ``token_mask`` in the pool of ``FederatedData`` clients, rules and attacks work as they do for
    classification. Bagdasaryan et al., AISTATS 2020, section V-B and Fig. 3.

    Args:
      module: maps x (b, T) to logits (b, T, words), such as ``models.WordLSTM``; variables as in
        ``classification``. For padding on the left, as ``data.text`` has it, to be harmless, the logits
        at a place must depend on nothing behind it.
      sample: word ids (1, T), from which the shapes are taken.

    Raises:
      ValueError: if the module keeps variables other than ``params``; on use, if ``y`` or
        ``token_mask`` has another shape than ``x``.
    """
    init, logits, unravel = _flat(module, sample, "next_word")

    def loss(params: Array, batch: Batch) -> Array:
        x, y = batch["x"], batch["y"]
        weights = batch.get("token_mask", jnp.ones(x.shape, jnp.float32))
        if y.shape != x.shape or weights.shape != x.shape:
            raise ValueError(
                "next_word needs x, y and token_mask of one shape (b, T), got "
                f"{x.shape}, {y.shape} and {weights.shape}"
            )
        if "mask" in batch:
            weights = weights * batch["mask"][:, None]
        losses = optax.softmax_cross_entropy_with_integer_labels(logits(params, x), y)
        return masked_mean(losses, weights)

    return Task(init, loss, logits, unravel)


def _flat(
    module: nn.Module, sample: Array, name: str
) -> tuple[Callable[[Key], Array], Callable[[Array, Array], Array], Callable[[Array], Any]]:
    """init, logits and unravel of a module."""
    variables = jax.eval_shape(module.init, jax.random.key(0), sample)
    others = sorted(set(variables) - {"params"})
    if others:
        raise ValueError(
            f"{name} needs a module whose variables are all parameters, got also {others}; "
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

    return init, logits, unravel
