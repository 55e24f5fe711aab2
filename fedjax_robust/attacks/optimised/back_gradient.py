"""Poisoning examples crafted by differentiating through training: back-gradient optimization.

Muñoz-González, Biggio, Demontis, Paudice, Wongrassamee, Lupu, Roli: "Towards Poisoning of Deep
Learning Algorithms with Back-gradient Optimization", AISec 2017 (https://arxiv.org/abs/1708.08689; "the
original"; its code is the authors' MATLAB for binary logistic regression, ``reverseLR2.m`` and
``testAttackLRmnist.m``). Fang, Cao, Jia, Gong, "Local Model Poisoning Attacks to Byzantine-Robust
Federated Learning", USENIX Security 2020 (https://arxiv.org/abs/1911.11815), section 4.4, compare their
attacks with it (Table 5).

The attacker looks for examples x_c, with wrong labels, that maximise an objective of the model which
training on the clean and its own examples ends in::

    max_x A(w_T(x))   where   w_{t+1} = w_t - eta grad_w L(w_t, x),   t = 0, .., T - 1.

Its gradient is ``unrolled_gradient`` or the original's, ``reversed_gradient``, of ``through_training``.

Where this differs from the original: its points are crafted one after the other, each staying in the
training set for the next; ours are one batch that moves together, which costs as much as one point and
lets them cooperate. The original stops when a step raises the objective by less than 1e-6; so do we if
asked (``smallest_rise``), and in any case the best iterate is returned, not the last. It passes through
T - 1 of the T steps; we through all.
"""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
from tqdm import tqdm

from fedjax_robust import checks
from fedjax_robust.attacks.optimised.through_training import TrainingGradient, unrolled_gradient
from fedjax_robust.attacks.poisons.labels import other_label
from fedjax_robust.clients.local import Poison
from fedjax_robust.types import Array, Batch, Key, Task


def back_gradient_points(
    key: Key,
    task: Task,
    train: Batch,
    validation: Batch,
    points: int,
    *,
    iterations: int = 100,
    step: float | Array = 1.0,
    learning_rate: float | Array = 0.1,
    training_steps: int = 100,
    gradient: TrainingGradient = unrolled_gradient,
    flip: Poison | None = None,
    start: Array | None = None,
    bounds: tuple[float, float] = (0.0, 1.0),
    smallest_rise: float | None = None,
    progress: bool = False,
) -> tuple[Batch, np.ndarray]:
    """Craft poisoning examples for a model that is trained on ``train`` and on them.

    They start as random validation examples with flipped labels, and all move at once, each by a step
    of fixed length along its own gradient: x <- clip(x + step dx / |dx|). Labels stay as they are.
    The objective A is the mean cross-entropy on ``validation`` after training. The original holds a
    validation set out; Fang et al. word the objective as the *training* loss, which is
    ``validation=train``.

    Args:
      key: draws the model that training starts from, the starting points, and their labels.
      task: the learning problem. Its loss must be twice differentiable (ReLU's second derivative is
        taken as 0).
      train: ``x`` (E, ...), ``y`` (E,) the clean training set; a ``mask`` is not looked at.
      validation: ``x``, ``y`` likewise; at least ``points`` examples.
      points: k >= 1.
      iterations: gradients computed, >= 1. The first is at the starting points.
      step: Euclidean length of a point's step, in units of x, > 0. The original's is 1 for logistic
        regression and 0.2 for networks.
      learning_rate: eta > 0 of the simulated training, on the mean loss over E + k examples.
      training_steps: T >= 1 full-batch steps of the simulated training.
      gradient: ``unrolled_gradient``, ``reversed_gradient`` or another of their signature.
      flip: poison that makes the labels wrong; default ``other_label``, uniform over the other
        classes. For two classes that is the original's.
      start: (d,) where training starts; default ``task.init`` of the key. The original's is zero.
      bounds: smallest and largest value of a feature, finite.
      smallest_rise: stop after an iteration that raises A by less than this (the original: 1e-6);
        None never stops early.
      progress: show a progress bar.

    Returns:
      {"x": (k, ...), "y": (k,)}, the points of the iteration with the largest A; and A of every
      iteration computed, (iterations,) or fewer.

    Raises:
      ValueError: for arguments out of range, examples that do not fit the task or each other, or if A
        is not finite at the starting points.
      TypeError: if an argument is of another type.
    """
    what = "back_gradient_points"
    key = checks.key(what, key)
    checks.part(what, Task, task=task)
    clean, target = _labelled(what, "train", train), _labelled(what, "validation", validation)
    if clean["x"].shape[1:] != target["x"].shape[1:]:
        raise ValueError(
            f"{what} needs train and validation of one shape (..., features), got x of shapes "
            f"{clean['x'].shape} and {target['x'].shape}"
        )
    num_classes = checks.classes(what, task, target["x"])
    for name, examples in (("train", clean), ("validation", target)):
        checks.labels(f"{what} ({name})", examples["y"], num_classes=num_classes)
    checks.static_count(what, 1, points=points, iterations=iterations)
    checks.positive(what, step=step, learning_rate=learning_rate)
    checks.static_count(what, 1, training_steps=training_steps)
    checks.function(what, gradient=gradient)
    checks.function(what, optional=True, flip=flip)
    checks.boolean(what, progress=progress)
    if smallest_rise is not None:
        checks.finite(what, smallest_rise=smallest_rise, remedy="None never stops early")
    if not isinstance(bounds, tuple | list) or len(bounds) != 2:
        raise TypeError(f"{what} needs bounds (low, high), got {bounds}")
    low, high = bounds
    checks.finite(f"{what} (bounds)", low=low, high=high)
    if checks.is_known(low) and checks.is_known(high) and not low < high:
        raise ValueError(f"{what} needs bounds (low, high) with low < high, got {bounds}")
    available = target["x"].shape[0]
    if points > available:
        raise ValueError(
            f"{what} needs 1 <= points <= validation examples, as points start there, "
            f"got points={points}, validation examples={available}"
        )
    start_key, row_key, label_key = jax.random.split(key, 3)
    rows = jax.random.choice(row_key, available, (points,), replace=False)
    batch = {name: values[rows] for name, values in target.items()}
    if flip is None:
        flip = other_label(num_classes)
    batch = flip(label_key, batch)
    batch = _labelled(what, "flip", batch)
    if batch["y"].shape != (points,) or batch["x"].shape != (points, *target["x"].shape[1:]):
        raise ValueError(
            f"{what} needs a flip that keeps the shapes, got x {batch['x'].shape} and y "
            f"{batch['y'].shape} of {points} points"
        )
    checks.labels(f"{what} (flip)", batch["y"], num_classes=num_classes)
    w = task.init(start_key)
    if start is not None:
        w = checks.shaped(what, "start", start, w.shape, "float", "(d,)")
    x = jnp.clip(batch["x"], low, high)

    best, best_x = -np.inf, x
    history: list[float] = []
    for _ in tqdm(range(iterations), unit="step", disable=not progress):
        value, moved = _move(
            x, batch["y"], w, clean, target, learning_rate, step, bounds,
            task=task, gradient=gradient, training_steps=training_steps,
        )  # fmt: skip
        history.append(float(value))
        if history[-1] > best:
            best, best_x = history[-1], x
        if not np.isfinite(best):
            raise ValueError(
                f"back_gradient_points: the objective at the starting points is {history[-1]}; "
                f"take a smaller learning_rate than {learning_rate}, or mend the data or the start"
            )
        rise = history[-1] - history[-2] if len(history) > 1 else np.inf
        if smallest_rise is not None and rise < smallest_rise:
            break
        x = moved
    return {"x": best_x, "y": batch["y"]}, np.asarray(history)


@partial(jax.jit, static_argnames=("task", "gradient", "training_steps"))
def _move(
    x: Array,
    y: Array,
    start: Array,
    train: Batch,
    validation: Batch,
    learning_rate: float | Array,
    step: float | Array,
    bounds: tuple[float, float],
    *,
    task: Task,
    gradient: TrainingGradient,
    training_steps: int,
) -> tuple[Array, Array]:
    """The objective at x (k, ...), and the points one step on."""
    clean, poisoned = train["y"].shape[0], y.shape[0]

    def training_loss(w: Array, x: Array) -> Array:
        # A mean over both, without a copy of the clean data beside the points in every step.
        sums = clean * task.loss(w, train) + poisoned * task.loss(w, {"x": x, "y": y})
        return sums / (clean + poisoned)

    value, dx = gradient(
        training_loss,
        lambda w: task.loss(w, validation),
        start,
        x,
        learning_rate,
        training_steps,
    )
    checks.returned("the gradient of back_gradient_points (objective)", value, ())
    checks.returned("the gradient of back_gradient_points", dx, x.shape)
    flat = dx.reshape(poisoned, -1)
    # Gradients are as small as 1e-8 when training is long; only their direction is used.
    flat = flat / jnp.maximum(jnp.max(jnp.abs(flat), 1, keepdims=True), jnp.finfo(flat.dtype).tiny)
    flat = flat / optax.safe_norm(flat, 1e-6, axis=1, keepdims=True)
    return value, jnp.clip(x + step * flat.reshape(x.shape), *bounds)


def _labelled(what: str, name: str, examples: Batch) -> Batch:
    """x (E, ...) of floats, y (E,)."""
    own = checks.examples(f"{what} ({name})", examples)
    if own["y"].ndim != 1:
        raise ValueError(f"{what} needs {name} with labels y (E,), got shape {own['y'].shape}")
    if not jnp.issubdtype(own["x"].dtype, jnp.floating):
        raise TypeError(
            f"{what} needs {name} with x of floats, which it can move, got {own['x'].dtype}"
        )
    return {"x": own["x"], "y": own["y"]}
