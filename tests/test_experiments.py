"""Every experiment script runs in its smoke mode, resumes, and explains itself."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from fedjax_robust import report

EXPERIMENTS = Path(__file__).parents[1] / "experiments"
sys.path.insert(0, str(EXPERIMENTS))
import common  # noqa: E402
import fang_table2  # noqa: E402
import fang_table2_variants  # noqa: E402

needs_mnist = pytest.mark.skipif(
    not (Path(os.environ.get("FEDJAX_ROBUST_DATA", "/nonexistent")) / "tfds" / "mnist").is_dir(),
    reason="MNIST is not there; set FEDJAX_ROBUST_DATA to the folder that holds tfds/mnist",
)


def smoke(out: Path, **options) -> Path:
    fang_table2.main(fang_table2.Args(smoke=True, out=out, **options))
    return out / f"{options['table']}-smoke"


@pytest.mark.parametrize("script", ["fang_table2.py", "fang_table2_variants.py"])
def test_help(script):
    done = subprocess.run(
        [sys.executable, EXPERIMENTS / script, "--help"], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert "usage" in done.stdout.lower()


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """All attacks on the median, on the bundled data."""
    return smoke(tmp_path_factory.mktemp("2e"), table="2e", rules=("Median",))


def test_table_2e_writes_rows_table_and_figures(finished):
    rows = report.read_rows(finished / "rows")
    assert [row["attack"] for row in rows] == list(fang_table2.ATTACKS)
    for row in rows:
        assert 0 <= row["error"] <= 1
        assert row["clients"] == 20
        assert row["malicious"] == 4
        assert row["jax_version"]
    table = (finished / "table.md").read_text()
    assert "fraction" in table
    for printed in ("0.03", "0.04", "0.17", "0.18"):  # the paper's row for the median
        assert printed in table
    for figure in ("curves.png", "comparison.png"):
        assert (finished / figure).read_bytes()[:4] == b"\x89PNG"


def test_it_goes_on_after_the_last_finished_cell(finished, monkeypatch):
    missing = finished / "cells" / "Median-Full-0.json"
    before = {p.name: p.stat().st_mtime_ns for p in missing.parent.iterdir()}
    error = [r["error"] for r in report.read_rows(finished / "rows") if r["attack"] == "Full"]
    missing.unlink()
    ran = []
    together = fang_table2.run_together
    monkeypatch.setattr(fang_table2, "run_together", lambda *a: (ran.append(a[3]), together(*a))[1])
    smoke(finished.parent, table="2e", rules=("Median",))
    assert ran == [[0]]
    after = {p.name: p.stat().st_mtime_ns for p in missing.parent.iterdir()}
    assert {k for k in after if after[k] != before[k]} == {missing.name}
    again = [r["error"] for r in report.read_rows(finished / "rows") if r["attack"] == "Full"]
    assert again == error


def test_other_settings_are_refused(finished):
    with pytest.raises(ValueError, match=r"other settings.*rounds"):
        smoke(finished.parent, table="2e", rules=("Median",), rounds=5)


@needs_mnist
def test_table_2a_smoke(tmp_path):
    folder = smoke(tmp_path, table="2a", rules=("Krum",), attacks=("Partial", "Full"), seeds=2)
    rows = report.read_rows(folder / "rows")
    assert [(row["attack"], row["seed"]) for row in rows] == [
        ("Partial", 0), ("Partial", 1), ("Full", 0), ("Full", 1),
    ]  # fmt: skip
    assert all(0 <= row["malicious_selected"] <= 1 for row in rows)


@needs_mnist
def test_table_2b_smoke_with_checkpoints(tmp_path):
    folder = smoke(tmp_path, table="2b", rules=("Trimmed mean",), attacks=("Full",), rounds=2)
    (row,) = report.read_rows(folder / "rows")
    assert row["model"] == "dnn"
    about, rows = report.read_table(tmp_path / "3-smoke")  # Table 3: the best iterates of the runs
    assert (about.value, about.paper) == ("best_error", {("Full", "Trimmed mean"): 0.18})
    assert float(rows[0]["best_error"]) <= float(rows[0]["error"])
    assert not list((folder / "checkpoints").glob("*"))  # removed with the finished cell


def test_table_2d_waits_for_its_data(tmp_path, capsys):
    fang_table2.main(fang_table2.Args(table="2d", data_dir=tmp_path))
    printed = capsys.readouterr().out
    assert "0.290" in printed
    assert "waiting for the data" in printed
    assert "hmnist_64_64_L.csv" in printed


def test_variants_smoke(tmp_path):
    args = fang_table2_variants.Args(table="2e", smoke=True, only=("LR, [0, 1]",), out=tmp_path)
    fang_table2_variants.main(args)
    printed, ours = report.read_rows(tmp_path / "2e")
    assert printed["Krum Partial"] == "0.17"
    assert printed["Median Full"] == "0.18"
    assert 0 <= float(ours["Krum Full"].split()[0]) <= 1


def test_unknown_variant_is_an_error(tmp_path):
    with pytest.raises(ValueError, match="no variant"):
        fang_table2_variants.main(fang_table2_variants.Args(only=("LR",), out=tmp_path))


def test_two_machines_share_a_table(tmp_path, capsys, monkeypatch):
    """Shares are disjoint and together all; only the last command, which computes nothing, draws."""
    cells = list("abcdefg")
    shares = [common.my_share(cells, f"{i}/3") for i in (1, 2, 3)]
    assert sorted(cell for share in shares for cell in share) == cells
    assert shares[0] == ["a", "d", "g"]
    assert common.my_share(cells, None) == cells
    for part in ("0/3", "4/3", "3", "1/0", "a/b"):
        with pytest.raises(ValueError, match="--cell needs i/N"):
            common.my_share(cells, part)
    options = {"table": "2e", "rules": ("Median",), "attacks": ("NoAttack", "LabelFlip")}
    for part in ("1/2", "2/2"):
        folder = smoke(tmp_path, cell=part, **options)
        assert f"share {part} is in" in capsys.readouterr().out
        assert not (folder / "table.md").exists()
    monkeypatch.setattr(fang_table2, "run_together", None)  # everything is on disk
    smoke(tmp_path, **options)
    assert {row["attack"] for row in report.read_rows(folder / "rows")} == {"NoAttack", "LabelFlip"}
