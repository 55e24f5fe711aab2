"""The engine: one round is ``step``, a whole run is ``run``.

``round`` has what happens in a round, ``driver`` what is around it (blocks of rounds, seeds, progress,
checkpoints, a mesh), so that another kind of round is one more file. ``participation`` says who takes
part, ``contracts`` what every part must be and return; ``sharding`` and ``checkpoint`` serve the driver.
"""

from fedjax_robust.engine.driver import run
from fedjax_robust.engine.participation import (
    attackers_selected,
    each_with_probability,
    varying_number,
)
from fedjax_robust.engine.round import check, init, step

__all__ = [
    "attackers_selected",
    "check",
    "each_with_probability",
    "init",
    "run",
    "step",
    "varying_number",
]
