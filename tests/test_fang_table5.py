"""Table 5's script runs in its smoke mode, resumes, and places the points as the paper says."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from fedjax_robust import attacks, report

EXPERIMENTS = Path(__file__).parents[1] / "experiments"
sys.path.insert(0, str(EXPERIMENTS))
import fang_table5  # noqa: E402

needs_mnist = pytest.mark.skipif(
    not (Path(os.environ.get("FEDJAX_ROBUST_DATA", "/nonexistent")) / "tfds" / "mnist").is_dir(),
    reason="MNIST is not there; set FEDJAX_ROBUST_DATA to the folder that holds tfds/mnist",
)


# Fang et al.'s own attacks on models are fang_table2's.
ATTACKS = ("NoAttack", "SingleWorker", "Uniform", "FullOnUpdates")


def smoke(out: Path, **options) -> Path:
    fang_table5.main(fang_table5.Args(smoke=True, out=out, attacks=ATTACKS, **options))
    return out.with_name(out.name + "-smoke")


def test_help():
    done = subprocess.run(
        [sys.executable, EXPERIMENTS / "fang_table5.py", "--help"], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert "usage" in done.stdout.lower()


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    return smoke(tmp_path_factory.mktemp("results") / "t5")


@needs_mnist
def test_it_writes_rows_table_and_figures(finished):
    rows = report.read_rows(finished / "rows")
    assert [row["attack"] for row in rows] == list(ATTACKS)
    for row in rows:
        assert 0 <= row["error"] <= 1
        assert (row["rule"], row["clients"], row["malicious"]) == ("Mean", 20, 4)
        assert ("crafting" in row) == (row["attack"] in ("SingleWorker", "Uniform"))
        assert row["jax_version"]
    table = (finished / "table.md").read_text()
    for printed in ("0.10", "0.11", "0.15", "0.16"):
        assert printed in table
    for figure in ("comparison.png", "points.png"):
        assert (finished / figure).read_bytes()[:4] == b"\x89PNG"
    (central,) = report.read_rows(finished / "central")
    assert 0 <= central["clean_error"] <= 1
    assert central["poisoned_clean_loss"] > central["clean_clean_loss"]
    assert central["objective_best"] >= central["objective_start"]


@needs_mnist
def test_it_goes_on_with_its_points_and_cells(finished, monkeypatch):
    missing = finished / "cells" / "Mean-Uniform-0.json"
    before = {
        p: p.stat().st_mtime_ns for d in ("cells", "points") for p in (finished / d).iterdir()
    }
    errors = [row["error"] for row in report.read_rows(finished / "rows")]
    missing.unlink()
    monkeypatch.setattr(attacks, "back_gradient_points", lambda *a, **k: pytest.fail("crafted"))
    smoke(finished.with_name("t5"))
    after = {p: p.stat().st_mtime_ns for p in before}
    assert [p for p in before if after[p] != before[p]] == [missing]
    assert [row["error"] for row in report.read_rows(finished / "rows")] == errors


@needs_mnist
def test_other_settings_are_refused(finished):
    with pytest.raises(
        ValueError, match=r"crafted with other settings.*iterations.*Choose another"
    ):
        smoke(finished.with_name("t5"), iterations=4)
    with pytest.raises(ValueError, match=r"other settings.*rounds"):
        smoke(finished.with_name("t5"), rounds=5)


def inputs(placement, seeds=2, points=30):
    """100 examples and 30 points a seed, 20 clients."""
    data = fang_table5.Dataset(train={}, test={}, num_classes=10, name="", note="")
    pool = {"y": np.arange(seeds * 130) % 10}
    crafting = fang_table5.Crafting(100, points, 1, 1.0, 1, 0.1, "training")
    return fang_table5.Inputs(data, pool, [{}] * seeds, None, crafting, 20, placement)


@pytest.mark.parametrize("seed", [0, 1])
def test_points_join_the_data_of_compromised_clients(seed):
    def owned(placement):
        data = inputs(placement).federated(seed)
        rows = [
            set(np.asarray(i[:c]).tolist()) for i, c in zip(data.index, data.count, strict=True)
        ]
        return rows

    honest = owned("NoAttack")
    first = 130 * seed
    assert {len(rows) for rows in honest} == {5}
    assert set().union(*honest) == set(range(first, first + 100))
    own_points = set(range(first + 100, first + 130))
    single = owned("SingleWorker")
    assert single[0] == honest[0] | own_points
    assert single[1:] == honest[1:]
    uniform = owned("Uniform")
    added = [u - h for u, h in zip(uniform, honest, strict=True)]
    assert all(h <= u for u, h in zip(uniform, honest, strict=True))
    assert set().union(*added) == own_points
    assert sum(map(len, added)) == 30
    assert min(map(len, added[:4])) > 0  # 7.5 expected
    assert not any(added[4:])
