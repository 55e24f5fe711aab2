"""The page of all results: what it finds, and what it says about it."""

import sys
from pathlib import Path

import pytest

from fedjax_robust import report

sys.path.insert(0, str(Path(__file__).parents[1] / "experiments"))
import make_report

PAPER = {("none", "krum"): 0.10, ("full", "krum"): 0.50}


def table_rows(errors, **more):
    cells = zip(PAPER, errors, strict=True)
    return [
        {"attack": a, "rule": r, "seed": seed, "error": error, **more}
        for (a, r), error in cells
        for seed in (0, 1)
    ]


def write_table(folder, errors=(0.11, 0.40), **more):
    report.write_table(
        folder,
        table_rows(errors, **more),
        PAPER,
        title=f"Table {folder.name}",
        command="python a.py --table 2a",
        notes="Twenty workers.",
    )


def write(tmp_path, **options):
    places = (tmp_path / "results", tmp_path / "shipped")
    out = tmp_path / "results" / "REPORT.md"
    code = make_report.main(make_report.Args(places, out, **options))
    return code, out.read_text() if out.exists() else None


def cells(text, first):
    """The cells of the Markdown line that begins with the cell ``first``."""
    (line,) = [line for line in text.splitlines() if line.startswith(f"| {first} ")]
    return [cell.strip() for cell in line.strip("|").split("|")]


def test_nothing_there(tmp_path, capsys):
    assert write(tmp_path) == (1, None)
    assert "no results in" in capsys.readouterr().out


@pytest.fixture
def page(tmp_path):
    versions = {"jax_version": "0.10.2", "device_kind": "cpu", "utc_time": "2026-11-20T10:00:00"}
    write_table(tmp_path / "shipped" / "fang" / "2a", (0.9, 0.9))  # hidden by the fresh one
    write_table(tmp_path / "results" / "fang" / "2a", **versions)
    write_table(tmp_path / "shipped" / "fang" / "2e", (0.10, 0.51))
    write_table(tmp_path / "results" / "fang" / "2b-smoke")
    rows = [{"rule": "krum", "attack": "none", "p": p, "error": p / 2} for p in (0.1, 0.5)]
    report.write_sweep(
        tmp_path / "results" / "figures" / "3", rows, x="p", title="Figure 3", command="python b.py"
    )
    code, text = write(tmp_path)
    assert code == 0
    return text


def test_summary(page):
    assert "2 tables and 1 sweeps" in page
    assert cells(page, "fang/2a") == ["fang/2a", "2", "1 (± 0.03)", "50%", "2", "0.055"]
    assert cells(page, "fang/2e") == ["fang/2e", "2", "2 (± 0.03)", "100%", "2", "0.005"]
    assert "smoke" not in page
    assert "0.900" not in page


def test_sections(page):
    _, first, second, sweep = page.split("\n## ")
    assert first.startswith("Table 2a\n") and second.startswith("Table 2e\n")
    assert cells(first, "none") == ["none", "krum", "0.10", "0.110 ± 0.000", "+0.010"]
    assert cells(first, "full") == ["full", "krum", "0.50", "0.400 ± 0.000", "**-0.100**"]
    assert "1 of 2 cells are within 0.03 of the paper (50%)." in first
    assert "`python a.py --table 2a`" in first and "Twenty workers." in first
    assert "Hardware cpu; JAX 0.10.2; finished 2026-11-20." in first
    assert "Hardware" not in second  # its rows have no provenance
    assert "](fang/2a/comparison.png)" in first
    assert "](../shipped/fang/2e/comparison.png)" in second
    assert "](figures/3/sweep.png)" in sweep
    assert cells(sweep, "krum") == ["krum", "none", "0.050", "0.250"]


def test_the_results_that_come_with_the_project(tmp_path):
    places = (tmp_path, Path(__file__).parents[1] / "experiments" / "results")
    assert make_report.main(make_report.Args(places, tmp_path / "REPORT.md")) == 0
    text = (tmp_path / "REPORT.md").read_text()
    assert cells(text, "fang_table2/2a")[1:4] == ["15", "13 (± 0.03)", "87%"]
