"""Attacks on and defences of federated learning, vectorized in JAX.

Submodules: ``aggregators`` (server rules), ``attacks``, ``data``, ``engine`` (rounds and runs),
``kernels`` (what rules and attacks share), ``metrics``, ``models``, ``privacy``, ``repairs`` (cleaning a
model) and ``tasks``; and, to import by name, ``report`` (results, tables, plots) and ``study`` (grids of
settings and seeds).
"""

from fedjax_robust import (
    aggregators,
    attacks,
    data,
    engine,
    kernels,
    metrics,
    models,
    privacy,
    repairs,
    tasks,
)
from fedjax_robust.clients.local import Objective, Poison, local_sgd
from fedjax_robust.engine.driver import run
from fedjax_robust.engine.participation import (
    attackers_selected,
    each_with_probability,
    varying_number,
)
from fedjax_robust.engine.round import init, step
from fedjax_robust.tasks import classification, from_functions, next_word
from fedjax_robust.types import (
    Aggregator,
    Attack,
    AttackerView,
    Batch,
    Client,
    ClientData,
    Evaluate,
    FederatedData,
    Info,
    Knowledge,
    Received,
    Repair,
    Score,
    SimState,
    Simulation,
    State,
    Task,
    equal_weights,
    example_weights,
)

__version__ = "0.1.0"

__all__ = [
    "Aggregator",
    "Attack",
    "AttackerView",
    "Batch",
    "Client",
    "ClientData",
    "Evaluate",
    "FederatedData",
    "Info",
    "Knowledge",
    "Objective",
    "Poison",
    "Received",
    "Repair",
    "Score",
    "SimState",
    "Simulation",
    "State",
    "Task",
    "aggregators",
    "attackers_selected",
    "attacks",
    "classification",
    "data",
    "each_with_probability",
    "engine",
    "equal_weights",
    "example_weights",
    "from_functions",
    "init",
    "kernels",
    "local_sgd",
    "metrics",
    "models",
    "next_word",
    "privacy",
    "repairs",
    "run",
    "step",
    "tasks",
    "varying_number",
]
