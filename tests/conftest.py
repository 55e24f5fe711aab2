"""The tests run on the CPU, even beside an accelerator, unless JAX_PLATFORMS says otherwise.

Their tolerances are stated for it, and parallel test processes would compete for a GPU's memory. On
a GPU: ``JAX_PLATFORMS=cuda make test PYTEST_ARGS=``. Most of the tests' time goes into compiling small
programs, which takes a third less with level 1 of optimization and a fifth less again with level 0;
``XLA_FLAGS=`` restores it.
"""

import os

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("XLA_FLAGS", "--xla_backend_optimization_level=0")

import gc
from collections.abc import Iterator
from pathlib import Path

import jax
import pytest

REAL = Path(os.environ.get("FEDJAX_ROBUST_DATA", "/nonexistent"))
"""The folder of prepared real data sets."""


def needs(what: str, file: str) -> pytest.MarkDecorator:
    """Skips a test where no path in ``REAL`` matches ``file``; ``from conftest import needs_mnist``."""
    return pytest.mark.skipif(
        not any(REAL.glob(file)),
        reason=f"{what} is not there; set FEDJAX_ROBUST_DATA to the folder that holds {file}",
    )


needs_mnist = needs("MNIST", "tfds/mnist/*")
needs_har = needs("HAR", "uci_har.npz")
needs_roles = needs("Shakespeare by role", "shakespeare_roles.npz")
needs_tiny = needs("tiny_shakespeare", "tfds/tiny_shakespeare")


@pytest.fixture(autouse=True, scope="module")
def forget_compiled_programs() -> Iterator[None]:
    """Each compiled program holds about ten memory mappings, and Linux allows a process 65,530
    (vm.max_map_count): without this, the whole suite in one or two processes ends in a segmentation
    fault."""
    yield
    jax.clear_caches()
    gc.collect()
