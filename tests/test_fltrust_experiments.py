"""The scripts of FLTrust's tables and sweeps run in smoke mode, resume and say what they did."""

import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from fedjax_robust import report

EXPERIMENTS = Path(__file__).parents[1] / "experiments"
sys.path.insert(0, str(EXPERIMENTS))
import fltrust_sweeps  # noqa: E402
import fltrust_table  # noqa: E402
from fltrust_table import SETTINGS, Case, Inputs  # noqa: E402

needs_har = pytest.mark.skipif(
    not (Path(os.environ.get("FEDJAX_ROBUST_DATA", "/nonexistent")) / "uci_har.npz").is_file(),
    reason="HAR is not there; set FEDJAX_ROBUST_DATA to the folder that holds uci_har.npz",
)


@pytest.mark.parametrize("script", ["fltrust_table.py", "fltrust_sweeps.py"])
def test_help(script):
    done = subprocess.run(
        [sys.executable, EXPERIMENTS / script, "--help"], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert "usage" in done.stdout.lower()


def test_printed_numbers():
    """A few by eye; none where there is no source."""
    assert SETTINGS["mnist-0.1"].paper["Krum", "Krum"] == 0.90
    assert SETTINGS["mnist-0.1"].paper["Adaptive", "FLTrust"] == 0.04
    assert SETTINGS["mnist-0.5"].paper["Trim", "Median"] == pytest.approx(1 - 0.6780)
    assert SETTINGS["mnist-0.5"].paper["None", "FLTrust"] == pytest.approx(1 - 0.9522)
    assert [name for name, s in SETTINGS.items() if s.paper] == ["mnist-0.1", "mnist-0.5"]
    # Batch-sum steps of the authors' code, on mean gradients.
    assert SETTINGS["mnist-0.5"].learning_rate == pytest.approx(3e-4 * 32)
    assert SETTINGS["fashion_mnist"].learning_rate == pytest.approx(6e-3 * 32)
    assert SETTINGS["cifar10"].learning_rate == pytest.approx(2e-4 * 64)
    assert SETTINGS["har"].learning_rate == pytest.approx(3e-3 * 32)
    assert fltrust_table.server_step(SETTINGS["mnist-0.5"], None) == pytest.approx(3e-4 * 100)


@needs_har
def test_root_rows_belong_to_nobody_and_copies_to_the_malicious():
    inputs = Inputs(SETTINGS["har"], None)
    case = Case(SETTINGS["har"], "FLTrust", "Scaling", inputs.users, 4, 0.3)
    root, data, test, triggered = inputs.of(case, 0)
    own = np.concatenate(
        [row[:count] for row, count in zip(np.asarray(data.index), data.count, strict=True)]
    )
    assert len(own) == len(set(own.tolist()))
    clean = own[own < len(inputs.dataset(0).train["y"])]
    assert len(clean) == len(inputs.dataset(0).train["y"]) - 100
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
    args = fltrust_table.Args(
        setting="har", rules=("FLTrust",), attacks=("Scaling", "Adaptive"), out=tmp_path, smoke=True
    )
    fltrust_table.main(args)
    about, rows = report.read_table(tmp_path / "har-smoke")
    assert "21 of the 30 users" in about.notes
    assert [row["attack"] for row in rows] == ["Scaling", "Adaptive"]
    for row in rows:
        assert 0 <= float(row["error"]) <= 1
        assert 0 <= float(row["malicious_trust"]) <= 1
    about, (row,) = report.read_table(tmp_path / "har-smoke-attack-success")
    assert about.value == "attack_success"
    assert 0 <= float(row["attack_success"]) <= 1
    monkeypatch.setattr(fltrust_table, "compiled", None)  # everything is on disk
    fltrust_table.main(args)


@needs_har
def test_sweep_smoke(tmp_path):
    args = fltrust_sweeps.Args(
        sweep="root-bias", setting="har", attacks=("None",), out=tmp_path, smoke=True
    )
    fltrust_sweeps.main(args)
    about, rows = report.read_sweep(tmp_path / "har-root-bias-smoke")
    assert about.x == "root_p"
    assert [float(row["root_p"]) for row in rows] == [0.1, 1.0]
    assert (tmp_path / "har-root-bias-smoke" / "sweep.png").read_bytes()[:4] == b"\x89PNG"


@needs_har
def test_simulations_are_what_the_names_say():
    """Every rule and attack of the table can be made; Krum and trimmed mean know the number."""
    inputs = Inputs(SETTINGS["har"], None)
    root = {name: values[:100] for name, values in inputs.pool.items()}
    for rule in (*fltrust_table.RULES, *fltrust_table.VARIANTS):
        for attack in (*fltrust_table.ATTACKS, *fltrust_table.MORE_ATTACKS):
            case = Case(SETTINGS["har"], rule, attack, 21, 4, 0.3)
            sim = fltrust_table.simulation(case, inputs.task, root, 6)
            assert sim.num_malicious == 4
            if attack == "Scaling":
                view = SimpleNamespace(updates=np.ones((21, 3)), num_malicious=4)
                np.testing.assert_array_equal(sim.attack.craft(view, ())[0], np.full((4, 3), 21.0))


@needs_har
@pytest.mark.parametrize(
    ("args", "text"),
    [
        (fltrust_table.Args(setting="har", rules=("Mean",)), "no rule"),
        (fltrust_table.Args(setting="har", attacks=("LFA",)), "no attack"),
        (fltrust_table.Args(setting="har", clients=20), "21 users"),
        (fltrust_sweeps.Args(setting="har", sweep="root-size", points=(50.5,)), "whole numbers"),
    ],
)
def test_bad_arguments(args, text):
    main = fltrust_table.main if isinstance(args, fltrust_table.Args) else fltrust_sweeps.main
    with pytest.raises(ValueError, match=text):
        main(args)


@needs_har
def test_users_cannot_be_swept():
    with pytest.raises(ValueError, match="21 users"):
        fltrust_sweeps.main(fltrust_sweeps.Args(sweep="clients", setting="har"))
