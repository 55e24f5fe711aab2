"""DBA's attack: its settings, smoke mode, resuming."""

import os
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest

import fedjax_robust as fr
from fedjax_robust import models, report, study

PAPER = Path(__file__).parents[2] / "experiments" / "dba2020"
sys.path.insert(0, str(PAPER))
import dba
from dba import Args

needs_mnist = pytest.mark.skipif(
    not list(Path(os.environ.get("FEDJAX_ROBUST_DATA", "/none")).glob("tfds/mnist/*")),
    reason="MNIST is not there; set FEDJAX_ROBUST_DATA to the folder that holds it",
)


def test_help(capsys, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["dba.py", "--help"])
    with pytest.raises(SystemExit):
        study.main(Args, dba.main)
    assert "--rounds" in capsys.readouterr().out


def test_dbas_settings():
    """Rounds, target and steps as in DBA's code; the trigger is four bars of four pixels."""
    distributed, centralised = dba.cells_of(Args())
    assert distributed["attacked_rounds"] == (12, 14, 16, 18)
    assert centralised["attacked_rounds"] == (18,)
    assert {k: v for k, v in distributed.items() if v != centralised[k]}.keys() == {
        "attacked_rounds", "method",
    }  # fmt: skip
    assert (distributed["target"], distributed["scale"], distributed["server_step"]) == (
        2,
        100,
        0.1,
    )
    assert [len(bar) for bar in dba.BARS] == [4, 4, 4, 4] and len({*sum(dba.BARS, ())}) == 16


def test_who_attacks_when():
    """Attacker i is there in the i-th of the attacked rounds alone, and nobody before or after."""
    task = fr.classification(models.SoftmaxRegression(10), jnp.zeros((1, 28, 28, 1)))
    for cell in dba.cells_of(Args()):
        honest, attacked = dba.simulations(cell, task)
        assert honest.num_malicious == 0 and honest.clients_per_round == 10
        rounds = range(cell["attacked_rounds"][0], cell["attacked_rounds"][-1] + 1)
        assert attacked.num_malicious == len(cell["attacked_rounds"])
        for i, at in enumerate(rounds):
            ids = attacked.participants(jax.random.key(i), jnp.int32(i))
            there = {int(k) for k in ids if k < attacked.num_malicious}
            expected = [k for k, when in enumerate(cell["attacked_rounds"]) if when == at]
            assert there == {*expected} and len({*map(int, ids)}) == 10


@needs_mnist
def test_smoke_and_resume(tmp_path, monkeypatch):
    args = Args(out=tmp_path, smoke=True)
    dba.main(args)
    about, rows = report.read_sweep(tmp_path / "mnist-smoke")
    assert {row["measure"] for row in rows} == {"main", "attack success"}
    assert all(0 <= float(row["value"]) <= 1 for row in rows)
    assert about.settings["model"] == "MnistNet" and about.settings["dirichlet"] == 0.5
    monkeypatch.setattr(dba, "program_of", lambda args: None)  # everything is on disk
    dba.main(args)


def test_rows_by_hand():
    rounds = list(range(1, 23))
    run = {"method": "DBA", "seed": 0, "round": rounds}
    run |= {"main": [r / 100 for r in rounds], "attack success": [0.0] * 22}
    rows = dba.rows_of([run])
    shown = [(row["round"], row["value"]) for row in rows if row["measure"] == "main"]
    assert shown == [(r, r / 100) for r in (5, 10, 12, 14, 16, 18, 20, 22)]


def test_mistakes_are_refused(tmp_path):
    with pytest.raises(ValueError, match="until round 18: --rounds must be larger, got 18"):
        dba.main(Args(rounds=18, out=tmp_path))
