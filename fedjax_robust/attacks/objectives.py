"""What malicious clients minimise: objectives for ``local_sgd(objective=...)``, and when they stop.

Bagdasaryan, Veit, Hua, Estrin, Shmatikov, "How To Backdoor Federated Learning", AISTATS 2020
(https://arxiv.org/abs/1807.00459), section IV-C: *constrain-and-scale* trains on the loss and on how
anomalous the model looks at once.
"""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp

from fedjax_robust import checks
from fedjax_robust.clients.local import Loss, Objective
from fedjax_robust.kernels.norms import direction_and_length, smallest_divisor
from fedjax_robust.memo import same_for_equal_arguments
from fedjax_robust.types import Array, Batch, Task

Anomaly = Callable[[Array, Array], Array]
"""the client's model X (d,), the received model G (d,) -> L_ano (); differentiated in X."""


@same_for_equal_arguments
def constrain(alpha: float | Array, anomaly: Anomaly) -> Objective:
    """L_model = alpha L_class + (1 - alpha) L_ano (eq. 4), the objective of Algorithm 2.

    L_ano may be any differentiable function, such as ``p_distance()``, ``cosine_distance`` or one's own.
    It sees the model before it is scaled; of what is submitted, G + gamma (X - G), it is::

        lambda x, g: cosine_distance(g + gamma * (x - g), g)

    Args:
      alpha: weight of the classification loss, in [0, 1]; 1 is no constraint.
      anomaly: L_ano.

    Raises:
      ValueError: if alpha is not in [0, 1]; on use, if L_ano is not a scalar.
      TypeError: if alpha is no number, or the anomaly no function.
    """
    checks.between("constrain", 0, 1, alpha=alpha)
    checks.function("constrain", anomaly=anomaly)

    def objective(loss: Loss, received: Array) -> Loss:
        def constrained(params: Array, batch: Batch) -> Array:
            distance = anomaly(params, received)
            checks.returned("the anomaly of constrain", distance, ())
            return alpha * loss(params, batch) + (1 - alpha) * distance

        return constrained

    return objective


@same_for_equal_arguments
def p_distance(p: float = 2.0) -> Anomaly:
    """L_ano = ||X - G||_p, "the p-norm distance between weight matrices", over all parameters at once.

    At X = G, where training starts, the gradient is 0, one of the subgradients.

    Args:
      p: >= 1, may be ``math.inf``.

    Raises:
      ValueError: if p < 1; on use, if X and G are not of one shape (d,).
      TypeError: if p is no number that is known when the program is compiled.
    """
    checks.between("p_distance", 1, jnp.inf, p=p)
    if not checks.is_known(p):
        raise TypeError(
            "p_distance needs p to be known when the program is compiled, got a traced p"
        )
    p = float(p)

    def anomaly(params: Array, received: Array) -> Array:
        _check_pair("p_distance", params, received)
        difference = params - received
        if p == 2:
            return direction_and_length(difference)[1]
        size = difference * jax.lax.stop_gradient(jnp.sign(difference))  # with derivative 0 at 0
        largest = jax.lax.stop_gradient(jnp.max(size))
        if p == jnp.inf:
            return jnp.max(size)
        # The divisor cancels: powers neither overflow nor underflow, and it needs no gradient.
        zero = largest < smallest_divisor(size.dtype)
        largest = jnp.minimum(largest, 1 / jnp.finfo(size.dtype).tiny)  # whose reciprocal is normal
        largest = jnp.where(zero, 1, largest)
        total = jnp.sum((size / largest) ** p)
        return jnp.where(zero, 0, largest * jnp.where(zero, 1, total) ** (1 / p))

    return anomaly


def cosine_distance(params: Array, received: Array) -> Array:
    """L_ano = 1 - cos(X, G), section VI-A: (d,), (d,) -> (). 1, with gradient 0, if one of them is 0.

    Half the squared distance of the unit vectors, which is the same and keeps its digits where X is
    close to G: 1 - cos would be a difference of two numbers near 1.

    Args:
      params: X (d,), the model in training.
      received: G (d,), the model that the server sent out.

    Raises:
      ValueError: if X and G are not of one shape (d,).
    """
    _check_pair("cosine_distance", params, received)
    (x, x_length), (g, g_length) = direction_and_length(params), direction_and_length(received)
    distance = 0.5 * jnp.sum(jnp.square(x - g))
    return jnp.where((x_length == 0) | (g_length == 0), 1.0, distance).astype(x.dtype)


def _check_pair(what: str, params: Array, received: Array) -> None:
    shapes = [
        checks.array(what, name, value).shape
        for name, value in (("params", params), ("received", received))
    ]
    if len(shapes[0]) != 1 or shapes[0] != shapes[1]:
        raise ValueError(
            f"{what} needs params (d,) and received (d,), got shapes {shapes[0]} and {shapes[1]}"
        )


def ascent(loss: Loss, received: Array) -> Loss:
    """Minus the loss, so that clients climb it: "sign flip" of Blades and FL-Byzantine-Library, which
    negate the gradients inside local training. With one step it is ``attacks.sign_flip()``; with several,
    the updates grow without bound.

    Args:
      loss: what honest clients minimise.
      received: the model that the server sent out, without influence.

    Raises:
      TypeError: if the loss is no function.
    """
    checks.function("ascent", loss=loss)
    return lambda params, batch: -loss(params, batch)


@same_for_equal_arguments
def converged(task: Task, backdoor: Batch, epsilon: float | Array) -> Callable[[Array], Array]:
    """L_class(X, D_backdoor) < epsilon, the early stop of Algorithm 2, for ``local_sgd(stop=...)``.

    Args:
      task: the learning problem.
      backdoor: D_backdoor, ``x`` (D, ...) and ``y`` (D,), the labels that the attacker wants.
      epsilon: the largest loss on the backdoor task that will do, > 0; the authors' code has 1e-4.

    Raises:
      ValueError: if epsilon is not positive and finite, or D_backdoor empty or not labelled.
      TypeError: if an argument is of another type.
    """
    checks.part("converged", Task, task=task)
    checks.positive("converged", epsilon=epsilon)
    backdoor = checks.examples("converged", backdoor)

    def stop(params: Array) -> Array:
        loss = task.loss(params, backdoor)
        checks.returned("the task's loss in converged", loss, ())
        return loss < epsilon

    return stop
