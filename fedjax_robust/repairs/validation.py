"""What the server thinks of a model when it repairs it.

Wu et al., 2020 (https://arxiv.org/abs/2011.01767), sections IV-A and V-B.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from fedjax_robust import checks
from fedjax_robust.memo import same_for_equal_arguments
from fedjax_robust.metrics import predict
from fedjax_robust.repairs.layers import checked_data
from fedjax_robust.tasks import masked_mean
from fedjax_robust.types import Array, Batch, FederatedData, Score, Task


@same_for_equal_arguments
def accuracy(task: Task, examples: Batch, *, chunk: int = 1000) -> Score:
    """The server's own validation data: share of ``x`` (E, ...) classified as ``y`` (E,).

    Args:
      task: the learning problem.
      examples: ``x`` and ``y``, E >= 1.
      chunk: examples evaluated at a time, which bounds memory.

    Raises:
      ValueError: for examples of other shapes, labels that the task does not have, or chunk < 1.
      TypeError: if an argument is of another type.
    """
    checks.part("accuracy", Task, task=task)
    examples = checks.examples("accuracy", examples)
    checks.static_count("accuracy", 1, chunk=chunk, remedy="examples evaluated at a time")
    x, y = examples["x"], examples["y"]
    checks.labels("accuracy", y, x=x, num_classes=checks.classes("accuracy", task, x))
    return lambda params: jnp.mean(predict(task, params, x, chunk=chunk) == y)


@same_for_equal_arguments
def clients_accuracy(
    task: Task,
    data: FederatedData,
    report: Callable[[Array], Array] = lambda shares: shares,
    *,
    chunk: int = 1000,
) -> Score:
    """The mean of what clients say about their own images, for a server without validation data.

    How the server combines the answers the paper leaves open. A mean believes a liar: one client of ten
    that says 1 of the trained model and 0 of all others stops ``prune`` at once, its drop is 0.1.

    Args:
      task: the learning problem.
      data: the clients' data; one without examples says nothing.
      report: (N,) true accuracies -> what they say; malicious clients may lie.
      chunk: examples evaluated at a time.

    Raises:
      ValueError: for data of other shapes, labels that the task does not have, chunk < 1, or, on use, a
        report of another shape.
      TypeError: if an argument is of another type.
    """
    what = "clients_accuracy"
    checks.part(what, Task, task=task)
    checked_data(what, data, ("x", "y"))
    checks.function(what, report=report)
    checks.static_count(what, 1, chunk=chunk, remedy="examples evaluated at a time")
    x = jnp.asarray(data.examples["x"])
    checks.labels(what, data.examples["y"], num_classes=checks.classes(what, task, x))

    def validation(params: Array) -> Array:
        def one(client: tuple[Array, Array]) -> Array:
            index, count = client
            predicted = predict(task, params, data.examples["x"][index], chunk=chunk)
            right = predicted == data.examples["y"][index]
            return masked_mean(right.astype(jnp.float32), jnp.arange(index.shape[0]) < count)

        said = report(jax.lax.map(one, (data.index, data.count)))
        checks.returned("clients_accuracy's report", said, data.count.shape)
        return masked_mean(said, data.count > 0)

    return validation


def checked_score(what: str, validation: Score) -> Score:
    """The score as an array (), TypeError if it is no function.

    When called, ValueError for another shape, TypeError for no number.
    """
    checks.function(what, validation=validation)

    def checked(params: Array) -> Array:
        value: Any = validation(params)
        if isinstance(value, float):
            value = jnp.float32(value)
        checks.returned(f"{what}'s validation", value, ())
        return jnp.asarray(value)

    return checked


def refuse_nan(what: str, accuracy: Array) -> None:
    """ValueError if the accuracy () of the model before the repair is known to be NaN."""
    if checks.is_known(accuracy) and np.isnan(accuracy):
        raise ValueError(
            f"{what} needs a validation that returns an accuracy, got nan for the model as it is; mend "
            "the parameters or the validation"
        )
