"""The server that divides by all clients (Bagdasaryan et al.); the usual one is ``aggregators.mean``.

Bagdasaryan, Veit, Hua, Estrin, Shmatikov, "How To Backdoor Federated Learning", AISTATS 2020
(https://arxiv.org/abs/1807.00459), eq. 1.
"""

from __future__ import annotations

import jax.numpy as jnp

from fedjax_robust import checks
from fedjax_robust.kernels.presence import drop_non_finite
from fedjax_robust.memo import same_for_equal_arguments
from fedjax_robust.types import Aggregator, Array, Info, Received, State


@same_for_equal_arguments
def fedavg_eta(eta: float | Array, num_clients: int) -> Aggregator:
    """Federated averaging with a global learning rate: eta / n times the *sum* of the updates received.

    Bagdasaryan et al., eq. 1, where n counts all clients and not the m of the round: with eta = n / m
    the global model becomes the average of the local ones, with eta = 1 it moves by m / n of the way. An
    attacker replaces the model with gamma = n / eta (eq. 3).

    Others divide by the number of participants; then the global learning rate is the server's step.
    DBA (Xie et al., ICLR 2020) has ``mean()`` and ``Simulation(server_optimizer=optax.sgd(0.1))``, and
    gamma = m / eta = 10 / 0.1. The two agree if this eta is n / m times that one.

    Weights only say who is present; rows with a NaN or Inf are left out.

    Args:
      eta: global learning rate > 0, finite.
      num_clients: n, all clients of the simulation, >= 1.

    Raises:
      ValueError: for numbers out of range; when called, for more rows or clients than num_clients.
      TypeError: if they are no numbers.

    >>> fedavg_eta(eta=2.0, num_clients=4)(jnp.array([[1.0], [3.0]])).tolist()
    [2.0]
    """
    checks.positive("fedavg_eta", eta=eta)
    checks.static_count("fedavg_eta", 1, num_clients=num_clients)
    num_clients = int(num_clients)

    def init(clients: int, params: Array) -> State:
        if clients > num_clients:
            raise ValueError(
                f"fedavg_eta divides by all clients: there are {clients}, but num_clients={num_clients}"
            )
        return ()

    def aggregate(received: Received, state: State) -> tuple[Array, State, Info]:
        updates, weights = drop_non_finite(received.updates, received.weights)
        if len(updates) > num_clients:
            init(len(updates), received.params)
        present = (weights > 0).astype(updates.dtype)
        factors = (present * (eta / num_clients)).astype(updates.dtype)
        return jnp.dot(factors, updates, precision="highest"), state, {}

    return Aggregator(init, aggregate)
