"""The scripts of Tables 4, 6, 7b and 8 run in smoke mode, resume and explain themselves."""

import os
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

import fedjax_robust as fr
from fedjax_robust import report

EXPERIMENTS = Path(__file__).parents[1] / "experiments"
sys.path.insert(0, str(EXPERIMENTS))
import fang_tables  # noqa: E402
import fang_tables_variants  # noqa: E402

needs_mnist = pytest.mark.skipif(
    not (Path(os.environ.get("FEDJAX_ROBUST_DATA", "/nonexistent")) / "tfds" / "mnist").is_dir(),
    reason="MNIST is not there; set FEDJAX_ROBUST_DATA to the folder that holds tfds/mnist",
)


@pytest.mark.parametrize("script", ["fang_tables.py", "fang_tables_variants.py"])
def test_help(script):
    done = subprocess.run(
        [sys.executable, EXPERIMENTS / script, "--help"], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert "usage" in done.stdout.lower()


def test_every_printed_cell_is_run():
    """The numbers of cells are the paper's; a few are checked by eye."""
    sizes = {"4": 9, "6": 36, "7b": 3, "8": 6}
    for name, table in fang_tables.TABLES.items():
        assert set(table.cells) == set(table.paper)
        assert len(table.cells) == sizes[name]
    assert fang_tables.TABLES["6"].paper["Krum + Union", "Krum attack"] == 0.48
    assert fang_tables.TABLES["6"].paper["Median + ERR", "Trimmed mean attack"] == 0.25
    assert fang_tables.TABLES["4"].paper["Trimmed mean attack", "Trimmed mean"] == 0.25
    assert fang_tables.TABLES["8"].paper["Deviation goal", "Trimmed mean"] == 0.10


@needs_mnist
def test_defences_smoke_and_resume(tmp_path, monkeypatch):
    args = fang_tables.Args(table="6", only=("Median + Union",), out=tmp_path, smoke=True)
    fang_tables.main(args)
    about, rows = report.read_table(tmp_path / "6-smoke")
    assert (about.index, about.columns) == ("rule", "attack")
    assert [row["attack"] for row in rows] == ["No attack", "Krum attack", "Trimmed mean attack"]
    for row in rows:
        assert 0 <= float(row["error"]) <= 1
        assert 0 <= float(row["recall"]) <= 1
    assert (tmp_path / "6-smoke" / "comparison.png").read_bytes()[:4] == b"\x89PNG"
    monkeypatch.setattr(fang_tables, "run_seeds", None)  # everything is on disk
    fang_tables.main(args)
    assert report.read_table(tmp_path / "6-smoke")[1] == rows


@needs_mnist
def test_variants_smoke(tmp_path):
    names = ("s of the mean of all updates",)
    fang_tables_variants.main(
        fang_tables_variants.Args(table="7b", only=names, out=tmp_path, smoke=True)
    )
    printed, ours = report.read_rows(tmp_path / "7b-smoke" / "rows")
    assert printed["Full knowledge"] == "0.38"
    assert 0 <= float(ours["Full knowledge"].split()[0]) <= 1


def test_validation_is_redrawn_by_the_rounds_key():
    """Other examples, other removals; the same key, the same."""
    rng = np.random.default_rng(0)
    task = fr.classification(fr.models.SoftmaxRegression(2), np.zeros((1, 3), np.float32))
    pool = {"x": rng.normal(size=(200, 3)).astype(np.float32), "y": rng.integers(2, size=200)}
    rule = fang_tables_variants.redrawn(fang_tables.median)["LFR"](2, task, pool)
    updates = (0.01 * rng.normal(size=(8, 8))).astype(np.float32)
    zeros = np.zeros(8, np.float32)

    def removed(key):
        received = fr.Received(updates, zeros + 1, np.arange(8), zeros, key)
        return rule.aggregate(received, ())[2]["removed"]

    keys = jax.random.split(jax.random.key(0), 20)
    several = np.asarray(jax.jit(jax.vmap(removed))(keys))
    assert np.all(several.sum(axis=1) == 2)
    assert len(np.unique(several, axis=0)) > 1
    np.testing.assert_array_equal(jax.jit(removed)(keys[3]), several[3])


def test_the_attack_that_searches_against_bulyan():
    """Bulyan selects its crafted rows, and does not at twice lambda."""
    rng = np.random.default_rng(0)
    n, c, d = 15, 3, 40
    updates = (0.3 + rng.normal(size=(n, d))).astype(np.float32)
    view = fr.AttackerView(
        updates=jax.numpy.asarray(updates),
        visible=np.ones(n, bool),
        reference=np.arange(n) >= c,
        malicious=np.arange(n) < c,
        num_malicious=c,
        params=np.zeros(d, np.float32),
        key=jax.random.key(0),
        aggregate=None,
    )
    attack = fang_tables_variants.against_bulyan(epsilon=1e-6)
    crafted, _ = attack.craft(view, ())
    assert crafted.shape == (c, d)
    lam = float(np.abs(crafted[0]).max())
    np.testing.assert_allclose(np.abs(crafted[0]), lam, rtol=1e-6)

    def selected(scale):
        rows = np.concatenate([scale * np.broadcast_to(crafted[0], (c, d)), updates[c:]])
        rule = fr.aggregators.bulyan(c)
        received = fr.Received(rows, np.ones(n, np.float32), np.arange(n), view.params, view.key)
        return np.any(rule.aggregate(received, ())[2]["selected"][:c])

    assert selected(1.0)
    assert lam == 1.0 or not selected(2.0)


def test_unknown_lines_are_an_error(tmp_path):
    with pytest.raises(ValueError, match="no line"):
        fang_tables.main(fang_tables.Args(only=("Krum + FLTrust",), out=tmp_path))
    with pytest.raises(ValueError, match="no variant"):
        fang_tables_variants.main(fang_tables_variants.Args(only=("else",), out=tmp_path))
