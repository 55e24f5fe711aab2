"""Figures 2 to 5 of Fang et al.: the smoke mode of each kind of sweep, and what is swept."""

import os
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

from fedjax_robust import report

EXPERIMENTS = Path(__file__).parents[1] / "experiments"
sys.path.insert(0, str(EXPERIMENTS))
import fang_figures  # noqa: E402
import fang_table2  # noqa: E402

needs_mnist = pytest.mark.skipif(
    not (Path(os.environ.get("FEDJAX_ROBUST_DATA", "/nonexistent")) / "tfds" / "mnist").is_dir(),
    reason="MNIST is not there; set FEDJAX_ROBUST_DATA to the folder that holds tfds/mnist",
)
USUAL = fang_figures.Setting(100, 20)


def smoke(out, figure, **options):
    fang_figures.main(fang_figures.Args(figure=figure, smoke=True, out=out, **options))
    folder = out / f"{fang_figures.SHORT.get(figure, figure)}-smoke"
    return folder, report.read_rows(folder / "rows")


def test_help():
    done = subprocess.run(
        [sys.executable, EXPERIMENTS / "fang_figures.py", "--help"], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert "--points" in done.stdout


@pytest.mark.parametrize("name", fang_figures.FIGURES)
def test_every_point_can_be_simulated(name):
    """Also where nothing is run here: the rules' preconditions hold at every point."""
    figure = fang_figures.FIGURES[name]
    table = fang_table2.TABLES[figure.table]
    inputs = fang_table2.Inputs.__new__(fang_table2.Inputs)
    inputs.task, inputs.num_classes = None, 10
    for usual, values in (
        (USUAL, figure.values),
        (fang_figures.Setting(20, 4), figure.smoke),
    ):
        for value in values:
            setting = figure.at(usual, value)
            assert 0 <= setting.malicious < setting.clients / 2
            assert setting.selected is None or setting.selected <= setting.clients
            for rule in figure.rules:
                for attack in figure.attacks:
                    run = fang_figures.Run(rule, attack, value, setting, 0)
                    mask = fang_figures.mask(run, table._replace(rounds=10))
                    sim = fang_figures.simulation_of(
                        figure, table, inputs, run, None, setting.epsilon, mask
                    )
                    updates = np.zeros((setting.selected or setting.clients, 2), np.float32)
                    jax.eval_shape(lambda u, rule=sim.aggregator: rule(u), updates)
                    assert sim.num_malicious == setting.malicious


def test_what_is_swept():
    def settings(name):
        figure = fang_figures.FIGURES[name]
        return [figure.at(USUAL, value) for value in figure.values]

    assert [s.malicious for s in settings("2a-c")] == [5, 10, 15, 20, 25, 30]
    assert [(s.clients, s.malicious) for s in settings("4b")] == [
        (20, 4), (50, 10), (100, 20), (200, 40),
    ]  # fmt: skip
    assert [s.f for s in settings("5a")] == [20, 25, 30, 35, 40, 45]
    assert [s.steps for s in settings("4a")] == [1, 2, 5, 10]
    with pytest.raises(ValueError, match=r"whole numbers >= 1, got 2\.5"):
        fang_figures.FIGURES["4a"].at(USUAL, 2.5)


def test_runs_that_differ_in_numbers_share_a_program():
    def programs(name):
        figure = fang_figures.FIGURES[name]
        return fang_figures.groups(
            fang_figures.Run("Krum", "Full", value, figure.at(USUAL, value), seed)
            for value in figure.values
            for seed in range(2)
        )

    for name, number in {"2a-c": 6, "3a-c": 1, "4a": 4, "5a": 6, "5b": 1, "5c": 1}.items():
        assert len(programs(name)) == number, name


def test_poisoned_rounds():
    table = fang_table2.TABLES["2a"]

    def mask(share, seed):
        run = fang_figures.Run("Median", "Full", 0, USUAL._replace(poisoned=share), seed)
        return np.asarray(fang_figures.mask(run, table))

    masks = [mask(share, 0) for share in (0.0, 0.2, 1.0)]
    assert [m.sum() for m in masks] == [0, 100, 500]
    assert masks[1].shape == (500,)
    assert not np.array_equal(mask(0.2, 1), masks[1])
    assert fang_figures.mask(fang_figures.Run("Median", "Full", 0, USUAL, 0), table) is None


@needs_mnist
def test_numbers_in_one_program(tmp_path, monkeypatch):
    """Fig. 5c in chunks of two runs; then the same again, from the disk."""
    monkeypatch.setattr(fang_figures, "RUNS_TOGETHER", 2)
    options = {"points": (0.0, 0.5, 1.0), "attacks": ("Full",)}
    folder, rows = smoke(tmp_path, "5c", **options)
    assert [(r["poisoned"], r["rule"], r["attack"]) for r in rows] == [
        (0, "Median", "Full"), (0.5, "Median", "Full"), (1, "Median", "Full"),
    ]  # fmt: skip
    assert rows[0]["error"] != rows[2]["error"]
    for name in ("sweep.png", "sweep.json", "table.md"):
        assert (folder / name).exists()
    about, _ = report.read_sweep(folder)
    assert about.command == (
        "python experiments/fang_figures.py --figure 5c --points 0.0 0.5 1.0 --attacks Full --smoke"
    )
    monkeypatch.setattr(fang_figures, "run_group", None)  # nothing is left to run
    assert smoke(tmp_path, "5c", **options)[1] == rows


@needs_mnist
def test_a_program_per_point_with_directions(tmp_path):
    folder, rows = smoke(tmp_path, "4b", points=(20,))
    (row,) = rows
    assert (row["clients"], row["malicious"]) == (20, 4)
    assert 0 < row["direction_agreement_moving"] < row["direction_agreement"] < 1
    assert "estimated correctly (trimmed mean): 0." in (folder / "table.md").read_text()


@needs_mnist
def test_directions_one_run_after_the_other(tmp_path, monkeypatch):
    """As for the DNN, but with a model that compiles faster."""
    small = fang_table2.TABLES["2a"]._replace(seeds_together=False)
    monkeypatch.setitem(fang_figures.TABLES, "2b", small)
    folder, rows = smoke(tmp_path, "directions", rounds=2)
    assert [(r["workers"], r["parameters"]) for r in rows] == [("20", "all"), ("20", "moving")]
    assert 0 < rows[1]["share"] < rows[0]["share"] < 1
    assert not list((folder / "checkpoints").glob("*"))
    about, _ = report.read_table(folder)
    assert about.value == "share"
