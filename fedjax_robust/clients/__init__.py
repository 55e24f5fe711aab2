"""Local training, ``local``: what one client does with the received model in one round.

``batches`` says which of its examples it takes in a step.
"""

from fedjax_robust.clients.batches import sample_without_replacement
from fedjax_robust.clients.local import Loss, Objective, Poison, Schedule, local_sgd

__all__ = [
    "Loss",
    "Objective",
    "Poison",
    "Schedule",
    "local_sgd",
    "sample_without_replacement",
]
