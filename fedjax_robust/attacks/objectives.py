"""What malicious clients minimise: objectives for ``clients.local_sgd(objective=...)``.

Bagdasaryan, Veit, Hua, Estrin, Shmatikov, "How To Backdoor Federated Learning", AISTATS 2020, section
IV-C: *constrain-and-scale* trains on the loss and on how anomalous the model looks at once.
"""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp

from fedjax_robust.clients import Loss, Objective
from fedjax_robust.robust_stats import direction_and_length, smallest_divisor
from fedjax_robust.types import Array, Batch, Task, is_number

Anomaly = Callable[[Array, Array], Array]
"""the client's model X (d,), the received model G (d,) -> L_ano (); differentiated in X."""


def constrain(alpha: float | Array, anomaly: Anomaly) -> Objective:
    """L_model = alpha L_class + (1 - alpha) L_ano (eq. 4), the objective of Algorithm 2.

    L_ano may be any differentiable function, such as ``p_distance()``, ``cosine_distance`` or one's own.
    It sees the model before it is scaled; of what is submitted, G + gamma (X - G), it is::

        lambda x, g: cosine_distance(g + gamma * (x - g), g)

    Args:
      alpha: weight of the classification loss, in [0, 1]; 1 is no constraint.
      anomaly: L_ano.

    Raises:
      ValueError: if alpha is not in [0, 1].
    """
    if is_number(alpha) and not 0 <= alpha <= 1:
        raise ValueError(f"constrain needs 0 <= alpha <= 1, got {alpha}")

    def objective(loss: Loss, received: Array) -> Loss:
        def constrained(params: Array, batch: Batch) -> Array:
            return alpha * loss(params, batch) + (1 - alpha) * anomaly(params, received)

        return constrained

    return objective


def p_distance(p: float = 2.0) -> Anomaly:
    """L_ano = ||X - G||_p, "the p-norm distance between weight matrices", over all parameters at once.

    At X = G, where training starts, the gradient is 0, one of the subgradients.

    Args:
      p: >= 1, may be ``math.inf``.

    Raises:
      ValueError: if p < 1.
    """
    if not p >= 1:
        raise ValueError(f"p_distance needs p >= 1, got {p}")

    def anomaly(params: Array, received: Array) -> Array:
        difference = params - received
        if p == 2:
            return direction_and_length(difference)[1]
        size = difference * jax.lax.stop_gradient(jnp.sign(difference))  # with derivative 0 at 0
        largest = jax.lax.stop_gradient(jnp.max(size))
        if p == jnp.inf:
            return jnp.max(size)
        # The divisor cancels: powers neither overflow nor underflow, and it needs no gradient.
        zero = largest < smallest_divisor(size.dtype)
        largest = jnp.where(zero, 1, largest)
        total = jnp.sum((size / largest) ** p)
        return jnp.where(zero, 0, largest * jnp.where(zero, 1, total) ** (1 / p))

    return anomaly


def cosine_distance(params: Array, received: Array) -> Array:
    """L_ano = 1 - cos(X, G), section VI-A: (d,), (d,) -> (). 1, with gradient 0, if one of them is 0."""
    x, g = direction_and_length(params)[0], direction_and_length(received)[0]
    return 1 - jnp.dot(x, g, precision="highest")


def converged(task: Task, backdoor: Batch, epsilon: float | Array) -> Callable[[Array], Array]:
    """L_class(X, D_backdoor) < epsilon, the early stop of Algorithm 2, for ``local_sgd(stop=...)``.

    Args:
      task: the learning problem.
      backdoor: D_backdoor, ``x`` (D, ...) and ``y`` (D,), the labels that the attacker wants.
      epsilon: the largest loss on the backdoor task that will do, > 0; the authors' code has 1e-4.

    Raises:
      ValueError: if epsilon <= 0.
    """
    if is_number(epsilon) and not epsilon > 0:
        raise ValueError(f"converged needs epsilon > 0, got {epsilon}")

    def stop(params: Array) -> Array:
        return task.loss(params, backdoor) < epsilon

    return stop
