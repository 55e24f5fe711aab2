"""Runs ``eight_devices.py``: one simulation over eight devices, and over two processes."""

import os
import subprocess
import sys
from pathlib import Path


def test_eight_devices():
    file = Path(__file__).with_name("eight_devices.py")
    flags = "--xla_backend_optimization_level=0 --xla_force_host_platform_device_count=8"
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "pytest",
            "-q",
            "-p",
            "no:xdist",
            "-p",
            "no:cacheprovider",
            str(file),
        ],
        env={**os.environ, "JAX_PLATFORMS": "cpu", "XLA_FLAGS": flags},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "passed" in done.stdout
    assert "skipped" not in done.stdout
