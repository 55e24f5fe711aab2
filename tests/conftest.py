"""The tests run on the CPU, even beside an accelerator, unless JAX_PLATFORMS says otherwise.

Their tolerances are stated for it, and parallel test processes would compete for a GPU's memory. On
a GPU: ``JAX_PLATFORMS=cuda make test PYTEST_ARGS=``.
"""

import os

os.environ.setdefault("JAX_PLATFORMS", "cpu")
