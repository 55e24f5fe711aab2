"""The one ascent loop: steps of an ``optax`` optimizer up a gain, each followed by a projection.

What is optimised (rows, a few numbers, a pattern, examples), where it may lie (``project``) and what it
is after (``gain``) are the attack's. ``maximise`` returns the best point that it saw, never a NaN.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from fedjax_robust import checks
from fedjax_robust.types import Array

Gain = Callable[[Any], Array]
"""point (any pytree of arrays) -> ()"""


class Found(NamedTuple):
    """What an ascent found."""

    best: Any
    """the point of the largest value"""
    value: Array
    """(), its value"""
    values: Array
    """(steps + 1,), of the points in order"""
    last: Any
    """the point after all steps"""


def as_they_are(point: Any) -> Any:
    """No constraint: the point itself."""
    return point


def maximise(
    gain: Gain,
    start: Any,
    steps: int,
    optimizer: optax.GradientTransformation,
    *,
    project: Callable[[Any], Any] = as_they_are,
    choose: Gain | None = None,
) -> Found:
    """Climb a gain and return the best point, by the gain or by what is to be chosen by.

    Differentiable, and of fixed length: ``jax.vmap`` over starts makes restarts, of which ``best_of``
    takes the best. Entries of a gradient that are not finite count as 0, and a point whose value is NaN
    is never the best one, unless all are: then it is the start.

    Args:
      gain: what is climbed; differentiable. It may hold a relaxation of a rule.
      start: a pytree of float arrays.
      steps: gradients, >= 1.
      optimizer: such as ``optax.sgd(0.1)`` or ``optax.adam(0.1)``; it minimises the negative gain.
      project: point -> point that is allowed, after every step. The start is taken as it is.
      choose: what the best is chosen by, such as the gain with the true rule; None is ``gain``.

    Raises:
      ValueError: if steps < 1; when called, if a gain is no scalar.
      TypeError: for parts of another kind.

    >>> import optax
    >>> found = maximise(lambda x: -(x - 3.0) ** 2, jnp.array(0.0), 50, optax.sgd(0.1))
    >>> round(float(found.best), 3)
    3.0
    """
    checks.function("maximise", gain=gain, project=project)
    checks.function("maximise", optional=True, choose=choose)
    checks.static_count("maximise", 1, steps=steps)
    checks.part("maximise", optax.GradientTransformation, optimizer=optimizer)

    def measured(point: Any) -> tuple[Array, Any]:
        value, slope = jax.value_and_grad(_scalar("gain", gain))(point)
        if choose is not None:
            value = _scalar("choose", choose)(point)
        return value, slope

    def step(carry: tuple[Any, ...], _: None) -> tuple[tuple[Any, ...], Array]:
        point, own, best, best_value = carry
        value, slope = measured(point)
        best, best_value = _better(point, value, best, best_value)
        down = jax.tree.map(lambda s: -jnp.nan_to_num(s, posinf=0.0, neginf=0.0), slope)
        change, own = optimizer.update(down, own, point)
        point = project(optax.apply_updates(point, change))
        return (point, own, best, best_value), value

    lowest = jnp.full((), -jnp.inf, jax.eval_shape(_scalar("gain", gain), start).dtype)
    if choose is not None:
        lowest = lowest.astype(jax.eval_shape(_scalar("choose", choose), start).dtype)
    carry = (start, optimizer.init(start), start, lowest)
    (last, _, best, best_value), values = jax.lax.scan(step, carry, None, length=int(steps))
    value = _scalar("choose", choose or gain)(last)
    best, best_value = _better(last, value, best, best_value)
    return Found(best, best_value, jnp.append(values, value), last)


def best_of(found: Found) -> Found:
    """Of several ascents, stacked along the leading axis, the one with the largest value.

    Args:
      found: what ``jax.vmap`` of ``maximise`` over starts returned.

    Raises:
      TypeError: if it is nothing of the kind.
      ValueError: if it holds one ascent alone.
    """
    checks.part("best_of", Found, found=found)
    if jnp.ndim(found.value) != 1:
        raise ValueError(
            "best_of needs several ascents along the leading axis, as jax.vmap stacks them, got value of "
            f"shape {jnp.shape(found.value)}"
        )
    i = jnp.argmax(jnp.where(jnp.isnan(found.value), -jnp.inf, found.value))
    return jax.tree.map(lambda x: x[i], found)


def _better(point: Any, value: Array, best: Any, best_value: Array) -> tuple[Any, Array]:
    better = value > best_value  # never of a NaN
    return (
        jax.tree.map(lambda a, b: jnp.where(better, a, b), point, best),
        jnp.where(better, value, best_value),
    )


def _scalar(name: str, function: Gain) -> Gain:
    def checked(point: Any) -> Array:
        value = function(point)
        checks.returned(f"the {name} of maximise", value, ())
        return value

    return checked
