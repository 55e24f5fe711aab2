"""Attacks on and defences of federated learning, vectorized in JAX.

Submodules: ``aggregators`` (server rules), ``attacks``, ``data``, ``metrics``, ``models``, ``report``.
"""

from fedjax_robust import aggregators, attacks, data, metrics, models
from fedjax_robust.clients import local_sgd
from fedjax_robust.participation import (
    attackers_selected,
    each_with_probability,
    varying_number,
)
from fedjax_robust.simulate import run, step
from fedjax_robust.tasks import classification, from_functions, next_word
from fedjax_robust.types import (
    Aggregator,
    Attack,
    AttackerView,
    Client,
    FederatedData,
    Knowledge,
    Received,
    SimState,
    Simulation,
    Task,
    equal_weights,
    example_weights,
)

__version__ = "0.1.0"

__all__ = [
    "Aggregator",
    "Attack",
    "AttackerView",
    "Client",
    "FederatedData",
    "Knowledge",
    "Received",
    "SimState",
    "Simulation",
    "Task",
    "aggregators",
    "attackers_selected",
    "attacks",
    "classification",
    "data",
    "each_with_probability",
    "equal_weights",
    "example_weights",
    "from_functions",
    "local_sgd",
    "metrics",
    "models",
    "next_word",
    "run",
    "step",
    "varying_number",
]
