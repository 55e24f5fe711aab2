"""The bucketing paper: its settings, partition, smoke mode."""

import os
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

import fedjax_robust as fr
from fedjax_robust import report, study

PAPER = Path(__file__).parents[2] / "experiments" / "karimireddy2022"
sys.path.insert(0, str(PAPER))
import bucketing
from bucketing import Args

needs_mnist = pytest.mark.skipif(
    not list(Path(os.environ.get("FEDJAX_ROBUST_DATA", "/none")).glob("tfds/mnist/*")),
    reason="MNIST is not there; set FEDJAX_ROBUST_DATA to the folder that holds it",
)


def test_help(capsys, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["bucketing.py", "--help"])
    with pytest.raises(SystemExit):
        study.main(Args, bucketing.main)
    assert "--momentum" in capsys.readouterr().out


def test_the_network_has_the_authors_size():
    task = fr.classification(bucketing.CNN(), np.zeros((1, 28, 28, 1), np.float32))
    assert jax.eval_shape(task.init, jax.random.key(0)).shape == (1_199_882,)
    assert task.training_loss is not None  # dropout


@pytest.mark.parametrize(
    ("args", "number"),
    [
        (Args(table="exp1"), 10),
        (Args(table="exp1", iid=True), 10),
        (Args(table="exp2"), 10),
        (Args(table="exp3", momentum=0.9), 40),
        (Args(table="exp4"), 6),
        (Args(table="exp7"), 3),
    ],
)
def test_cells(args, number):
    cells, printed = bucketing.cells_of(args)
    assert len(cells) == number
    assert len({(cell["line"], cell["column"]) for cell in cells}) == number
    assert {(cell["line"], cell["column"]) for cell in cells} >= {*printed}
    assert all(0 < p < 1 for p in printed.values())
    rounds, every = cells[0]["rounds"], cells[0]["every"]
    assert rounds == (1200 if args.table == "exp7" else 600) and rounds // every == 20


@pytest.mark.parametrize(
    "args",
    [
        Args(momentum=0.5, table="exp3"),
        Args(momentum=0.9),
        Args(iid=True, table="exp3"),
        Args(attacks=("IPM",)),
        Args(rules=("Kram",)),
    ],
)
def test_what_has_no_effect_is_refused(args):
    with pytest.raises(ValueError, match=r"--momentum|--iid|--attacks|there is no"):
        bucketing.check(args)


def test_the_honest_clients_hold_slices_of_the_sorted_labels():
    y = np.random.default_rng(0).integers(0, 10, 2500)
    cell = {"clients": 25, "malicious": 5, "iid": False, "long_tail": False}
    index, count = bucketing.partition(cell, y, seed=3)
    assert index.shape == (25, 125) and np.all(count == 125)
    honest = y[index[5:]]
    assert np.all(np.diff(honest.ravel()) >= 0)
    assert len(np.unique(index[5:])) == 2500
    assert all(len(np.unique(y[own])) >= 8 for own in index[:5])  # the malicious ones' are IID


def test_the_long_tail():
    """Every class keeps half of what the one before it keeps, up to the slices' rounding."""
    y = np.repeat(np.arange(10), 4096)
    cell = {"clients": 24, "malicious": 0, "iid": False, "long_tail": True}
    index, _ = bucketing.partition(cell, y, seed=0)
    kept = np.bincount(y[index.ravel()], minlength=10)
    assert np.all(np.abs(kept - 4096 * 0.5 ** np.arange(10)) <= 24)
    assert kept[1] == 2048


def test_measure():
    errors = np.array([0.9, 0.5, 0.4, 0.3, 0.2, 0.1])
    result = bucketing.measure({"test_error": errors})
    assert result["accuracy"] == pytest.approx(1 - np.mean(errors[1:]))
    assert result["best_accuracy"] == pytest.approx(0.9)


@needs_mnist
def test_smoke(tmp_path):
    args = Args(
        table="exp3", momentum=0.9, smoke=True, out=tmp_path, rules=("RFA",), attacks=("mimic",)
    )
    bucketing.main(args)
    rows = report.read_table(tmp_path / "exp3-momentum-0.9-smoke")[1]
    assert [row["line"] for row in rows] == ["RFA", "RFA, s = 2"]
