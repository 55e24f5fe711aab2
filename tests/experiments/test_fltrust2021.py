"""The scripts of FLTrust's tables and sweeps: settings, root data, smoke modes, resuming, mistakes."""

import os
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from fedjax_robust import report, study

PAPER = Path(__file__).parents[2] / "experiments" / "fltrust2021"
sys.path.insert(0, str(PAPER))
import fltrust_setting
import sweeps
import table
from fltrust_setting import SETTINGS, Inputs

needs_har = pytest.mark.skipif(
    not (Path(os.environ.get("FEDJAX_ROBUST_DATA", "/nonexistent")) / "uci_har.npz").is_file(),
    reason="HAR is not there; set FEDJAX_ROBUST_DATA to the folder that holds uci_har.npz",
)


def cell_of(**changes) -> dict:
    return fltrust_setting.cell_settings("har", SETTINGS["har"], 21) | changes


@pytest.fixture(scope="module")
def har():
    return Inputs(SETTINGS["har"], None)


@pytest.mark.parametrize("script", [table, sweeps])
def test_help(script, capsys, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["script", "--help"])
    with pytest.raises(SystemExit):
        study.main(script.Args, script.main)
    assert "--smoke" in capsys.readouterr().out


@pytest.mark.parametrize("script", [table, sweeps])
@pytest.mark.parametrize("option", ["--attacks", "--rules", "--points"])
def test_no_choice_is_called_none(script, option, capsys, monkeypatch):
    """``--attacks None`` would run all of them if it meant "the default"."""
    monkeypatch.setattr(sys, "argv", ["script", option, "None"])
    with pytest.raises(SystemExit):
        study.main(script.Args, lambda args: pytest.fail(f"ran {args}"))
    assert "None" in capsys.readouterr().err


def test_no_attack_alone(monkeypatch):
    """The attack that does nothing can be chosen, and is then the only one."""
    monkeypatch.setattr(sys, "argv", ["script", "--attacks", "NoAttack", "--rules", "Krum"])
    chosen = []
    study.main(table.Args, chosen.append)
    cells = table.cells_of(chosen[0], SETTINGS["mnist-0.5-lr"], 100)
    assert [(cell["rule"], cell["attack"]) for cell in cells] == [("Krum", "NoAttack")]


def test_printed_numbers():
    """A few by eye; none where there is no source."""
    text, _ = table.PAPER["mnist-0.1"]
    assert text["Krum", "Krum"] == 0.90
    assert text["Adaptive", "FLTrust"] == 0.04
    third_party, _ = table.PAPER["mnist-0.5"]
    assert third_party["Trim", "Median"] == pytest.approx(1 - 0.6780)
    assert third_party["NoAttack", "FLTrust"] == pytest.approx(1 - 0.9522)
    assert [*table.PAPER] == ["mnist-0.1", "mnist-0.5"]


def test_steps():
    """Batch-sum steps of the authors' code, on mean gradients."""
    assert SETTINGS["mnist-0.5"].learning_rate == pytest.approx(3e-4 * 32)
    assert SETTINGS["fashion_mnist"].learning_rate == pytest.approx(6e-3 * 32)
    assert SETTINGS["cifar10"].learning_rate == pytest.approx(2e-4 * 64)
    assert SETTINGS["har"].learning_rate == pytest.approx(3e-3 * 32)
    assert fltrust_setting.server_step(SETTINGS["mnist-0.5"]) == pytest.approx(3e-4 * 100)


def test_what_the_tables_run():
    """The paper's six attacks on five rules; FirstOrder only where gradients pass, unless asked for."""
    cells = table.cells_of(table.Args(), SETTINGS["mnist-0.5-lr"], 100)
    assert len(cells) == 5 * 6 + 2
    first_order = [cell["rule"] for cell in cells if cell["attack"] == "FirstOrder"]
    assert first_order == ["FedAvg", "FLTrust"]
    assert {(cell["clients"], cell["malicious"], cell["root_size"]) for cell in cells} == {
        (100, 20, 100)
    }
    assert len(table.cells_of(table.Args(table="variants"), SETTINGS["har"], 21)) == 6 * 7
    asked = table.Args(rules=("Median",), attacks=("FirstOrder",), malicious_share=0.1)
    (cell,) = table.cells_of(asked, SETTINGS["mnist-0.5-lr"], 100)
    assert (cell["rule"], cell["attack"], cell["malicious"]) == ("Median", "FirstOrder", 10)


def test_steps_of_the_command_line():
    """The server's step follows the clients' unless it is given."""
    args = table.Args(learning_rate=0.32, attacks=("LF",), rules=("FLTrust",))
    setting = table.with_overrides(SETTINGS["mnist-0.5"], args)
    (cell,) = table.cells_of(args, setting, 100)
    assert (cell["learning_rate"], cell["server_learning_rate"]) == (0.32, pytest.approx(1.0))
    args.server_learning_rate = 0.5
    (cell,) = table.cells_of(args, setting, 100)
    assert cell["server_learning_rate"] == 0.5


def test_what_the_sweeps_change():
    usual = cell_of(clients=100, malicious=20)
    assert sweeps.SWEEPS["malicious"].at(usual, 0.95) == {"malicious": 95}
    assert sweeps.SWEEPS["clients"].at(usual, 50.0) == {"clients": 50, "malicious": 10}
    assert sweeps.SWEEPS["root-size"].at(usual, 50.0) == {"root_size": 50}
    assert sweeps.SWEEPS["root-bias"].at(usual, 1.0) == {"root_p": 1.0}


def test_trust_by_hand():
    """Two rounds, the first of three clients malicious: 1 of 1 + 3 (negative scores are no trust), and
    nobody trusted."""
    history = {
        "trust": np.array([[1.0, 3.0, -5.0], [-1.0, -2.0, -3.0]]),
        "malicious": np.array([[True, False, False]] * 2),
        "test_error": np.array([0.5, 0.2, 0.3]),
    }
    assert fltrust_setting.measure(history) == {
        "error": 0.3,
        "best_error": 0.2,
        "malicious_trust": 0.125,
    }
    del history["trust"]
    history["selected"] = np.array([[True, False, False], [False, True, False]])
    history["attack_success"] = np.array([0.1, 0.9])
    found = fltrust_setting.measure(history)
    assert (found["malicious_selected"], found["attack_success"]) == (0.5, 0.9)
    assert "malicious_trust" not in found


@needs_har
def test_root_rows_belong_to_nobody_and_copies_to_the_malicious(har):
    root, data, test, triggered = har.of(cell_of(attack="Scaling", seed=0))
    own = np.concatenate(
        [row[:count] for row, count in zip(np.asarray(data.index), data.count, strict=True)]
    )
    assert len(own) == len(set(own.tolist()))
    clean = own[own < len(har.dataset(0).train["y"])]
    assert len(clean) == len(har.dataset(0).train["y"]) - 100
    first, copies = np.split(np.asarray(data.index)[0, : int(data.count[0])], 2)
    x, y = data.examples["x"], data.examples["y"]
    changed = np.asarray(x[first]) != np.asarray(x[copies])
    assert np.all(np.asarray(y[copies]) == 1)
    assert set(np.flatnonzero(changed.any(axis=0))) <= set(range(19, 561, 20))
    assert np.bincount(root["y"], minlength=6).tolist() == [16, 16, 17, 17, 17, 17]
    pool = {row.tobytes() for row in np.asarray(x[clean])}
    assert not any(row.tobytes() in pool for row in np.asarray(root["x"]))
    np.testing.assert_array_equal(test["y"], triggered["y"])


@needs_har
def test_table_smoke_and_resume(tmp_path, monkeypatch):
    args = table.Args(
        setting="har", rules=("FLTrust",), attacks=("Scaling", "Adaptive"), out=tmp_path, smoke=True
    )
    table.main(args)
    about, rows = report.read_table(tmp_path / "har-smoke")
    assert "21 of the 30 users" in about.notes
    assert about.command.startswith("python experiments/fltrust2021/table.py --smoke --setting har")
    assert about.settings["trigger"] == "every 20th feature" and about.settings["malicious"] == 4
    assert [row["attack"] for row in rows] == ["Scaling", "Adaptive"]
    for row in rows:
        assert 0 <= float(row["error"]) <= 1
        assert 0 <= float(row["malicious_trust"]) <= 1
    about, (row,) = report.read_table(tmp_path / "har-smoke-attack-success")
    assert about.value == "attack_success"
    assert 0 <= float(row["attack_success"]) <= 1
    monkeypatch.setattr(fltrust_setting, "program_of", lambda *args: None)  # all is on disk
    table.main(args)


@needs_har
def test_sweep_smoke(tmp_path):
    """Two values of the bias in one program."""
    args = sweeps.Args(
        sweep="root-bias", setting="har", attacks=("NoAttack",), out=tmp_path, smoke=True
    )
    sweeps.main(args)
    about, rows = report.read_sweep(tmp_path / "har-root-bias-smoke")
    assert about.x == "root_p"
    assert [float(row["root_p"]) for row in rows] == [0.1, 1.0]
    assert rows[0]["error"] != rows[1]["error"]
    assert (tmp_path / "har-root-bias-smoke" / "sweep.png").read_bytes()[:4] == b"\x89PNG"


@needs_har
def test_simulations_are_what_the_names_say(har):
    """Every rule and attack of the table can be made."""
    root = {name: values[:100] for name, values in har.pool.items()}
    for rule in (*fltrust_setting.RULES, *fltrust_setting.VARIANTS):
        for attack in (*fltrust_setting.ATTACKS, "FirstOrder", "TrimModels"):
            cell = cell_of(rule=rule, attack=attack)
            sim = fltrust_setting.simulation(cell, har, root)
            assert sim.num_malicious == 4
            if attack == "Scaling":
                view = SimpleNamespace(updates=np.ones((21, 3)), num_malicious=4)
                np.testing.assert_array_equal(sim.attack.craft(view, ())[0], np.full((4, 3), 21.0))


@needs_har
@pytest.mark.parametrize(
    ("args", "text"),
    [
        (table.Args(setting="har", rules=("Mean",)), "no rule"),
        (sweeps.Args(setting="har", attacks=("None",)), "no attack"),
        (table.Args(setting="har", clients=20), "21 users"),
        (table.Args(setting="har", learning_rate=0.0), "--learning-rate needs step > 0"),
        (table.Args(setting="har", server_learning_rate=-1.0), "--server-learning-rate needs"),
        (table.Args(setting="har", malicious_share=1.0), "malicious_share in"),
        (sweeps.Args(setting="har", sweep="root-size", points=(50.5,)), "whole numbers"),
        (sweeps.Args(setting="har", sweep="root-bias", points=(1.5,)), r"in \[0, 1\]"),
        (sweeps.Args(setting="har", sweep="malicious", points=(1.0,)), r"in \[0, 1\)"),
        (sweeps.Args(setting="har", learning_rate=-0.1), "learning_rate > 0"),
        (sweeps.Args(setting="har", sweep="clients"), "21 users"),
    ],
)
def test_bad_arguments(args, text, tmp_path):
    main = table.main if isinstance(args, table.Args) else sweeps.main
    args.out = tmp_path
    with pytest.raises(ValueError, match=text):
        main(args)
    assert not list(tmp_path.iterdir())
