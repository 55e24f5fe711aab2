"""TRIM: a linear regression, and the examples that it fits best, found together.

Jagielski, Oprea, Biggio, Liu, Nita-Rotaru, Li, "Manipulating Machine Learning: Poisoning Attacks and
Countermeasures for Regression Learning", IEEE S&P 2018 (https://arxiv.org/abs/1804.00308), Algorithm 2.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from fedjax_robust import checks
from fedjax_robust.kernels.norms import accumulator
from fedjax_robust.kernels.regression import predictions, ridge_model
from fedjax_robust.types import Array, Info


def trim_regression(
    x: Array,
    y: Array,
    count: int | Array,
    *,
    ridge: float | Array = 0.0,
    steps: int = 50,
    start: Array | None = None,
) -> tuple[Array, Array, Info]:
    """Fits on the examples kept, keeps the ``count`` examples with the smallest residuals, and again.

    A filter for a server's or a client's data: what is kept is a ``mask`` for training. Neither half of a
    step raises the loss of the examples kept, so that it settles, in a local optimum; among the ``count``
    best there is no poison only if poison fits badly. One example whose features lie far beyond all
    others is fitted exactly, and kept: clip features to their range before. The paper starts from
    ``count`` random examples, its code from all of them, as here. Works under ``jit`` and ``vmap``.

    Args:
      x: (E, k) features. Examples with a NaN or Inf are never kept.
      y: (E,) responses.
      count: how many to keep, 1 <= count <= E: the number of clean examples.
      ridge: the weight of |w|^2 beside the mean squared error, >= 0.
      steps: >= 1; the code's limit is 400. It rarely takes 10.
      start: (E,) bool, the examples of the first fit; None = all.

    Returns:
      keep (E,) bool; the model (k + 1,) fitted to them, w and b; and ``losses`` (steps + 1,), the mean
      squared error of what was kept plus the ridge term, after every fit, and ``settled`` (), whether the
      last step kept the same examples as the one before.

    Raises:
      ValueError: for other shapes, or numbers out of range.
      TypeError: if an argument is of another type.

    >>> x, y = jnp.array([[0.0], [1.0], [2.0], [3.0], [1.5]]), jnp.array([0.0, 1.0, 2.0, 3.0, 9.0])
    >>> keep, model, report = trim_regression(x, y, 4)
    >>> keep.tolist(), bool(report["settled"])
    ([True, True, True, True, False], True)
    """
    what = "trim_regression"
    x = checks.shaped(what, "x", x, (None, None), meaning="(E, k)")
    y = checks.shaped(what, "y", y, x.shape[:1], meaning="(E,)")
    checks.count(what, 1, count=count)
    if checks.is_known(count) and int(count) > x.shape[0]:
        raise ValueError(f"{what} needs count <= {x.shape[0]}, the number of examples, got {count}")
    checks.not_negative(what, ridge=ridge)
    checks.static_count(what, 1, steps=steps)
    if start is not None:
        start = checks.shaped(what, "start", start, y.shape, "bool", "(E,)")
    dtype = accumulator(jnp.promote_types(x.dtype, y.dtype))
    x, y = x.astype(dtype), y.astype(dtype)
    good = jnp.all(jnp.isfinite(x), axis=1) & jnp.isfinite(y)
    x, y = jnp.where(good[:, None], x, 0), jnp.where(good, y, 0)

    def fit(keep: Array) -> tuple[Array, Array, Array]:
        """The model, its residuals, and its loss on the examples kept."""
        model = ridge_model(x, y, keep.astype(dtype), ridge)
        gaps = jnp.where(good, jnp.abs(predictions(model, x) - y), jnp.inf)
        total = jnp.sum(jnp.where(keep, jnp.square(gaps), 0))
        penalty = jnp.where(ridge > 0, ridge * jnp.sum(jnp.square(model[:-1])), 0)
        loss = total / jnp.maximum(jnp.sum(keep), 1) + penalty
        return model, gaps, loss

    def step(keep: Array, _: None) -> tuple[Array, tuple[Array, Array]]:
        gaps, loss = fit(keep)[1:]
        place = jnp.argsort(jnp.argsort(gaps, stable=True))
        kept = good & (place < count)
        return kept, (loss, jnp.all(kept == keep))

    first = good if start is None else good & start
    keep, (losses, same) = jax.lax.scan(step, first, None, length=int(steps))
    model, _, loss = fit(keep)
    return keep, model, {"losses": jnp.append(losses, loss), "settled": same[-1]}
