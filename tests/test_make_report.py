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
    readme = tmp_path / "README.md"
    readme.touch()
    code = make_report.main(
        make_report.Args(places, out, (readme,), tmp_path / "shipped", **options)
    )
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


def damaged(folder, name, old, new):
    text = (folder / name).read_text()
    assert old in text
    (folder / name).write_text(text.replace(old, new))


@pytest.mark.parametrize(
    ("name", "old", "new"),
    [
        ("rows.csv", "0.11", "high"),
        ("rows.csv", ",0.11", ""),
        ("about.json", '"tolerance": 0.03', '"tolerance": "NaN"'),
        ("about.json", '["none", "krum", 0.1]', '["none", 0.1]'),
        ("about.json", '["none", "krum", 0.1]', '["none", "krum", "NaN"]'),
        ("about.json", '"metric": "testing error rate"', '"metric": ""'),
        ("about.json", '"kind": "table"', '"kind": "sweep"'),
        ("about.json", "{", ""),
        ("about.json", "{", "[" * 100_000),
    ],
)
def test_one_bad_folder_does_not_end_the_report(tmp_path, capsys, name, old, new):
    for folder in ("a", "b", "c"):
        write_table(tmp_path / "results" / folder)
    damaged(tmp_path / "results" / "b", name, old, new)
    code, text = write(tmp_path)
    assert code == 0
    assert cells(text, "a")[1:3] == cells(text, "c")[1:3] == ["2", "1 (± 0.03)"]
    assert "2 tables and 0 sweeps" in text
    (line,) = [line for line in text.splitlines() if line.startswith("**Left out**")]
    path = str(tmp_path / "results" / "b" / name)
    assert "folder `b`" in line and path in line
    assert path in capsys.readouterr().err


def test_rows_that_are_not_there(tmp_path, capsys):
    write_table(tmp_path / "results" / "a")
    write_table(tmp_path / "results" / "b")
    (tmp_path / "results" / "b" / "rows.csv").unlink()
    assert write(tmp_path)[0] == 0
    assert "b/rows.csv" in capsys.readouterr().err


def test_nothing_of_a_folder_becomes_html_or_a_link(tmp_path):
    rows = table_rows((0.1, 0.5), device_kind="<u>")
    report.write_table(
        tmp_path / "results" / "a", rows, PAPER, title="<script>alert(1)</script>",
        command="a `b` <c> [x](y)", notes="[click](javascript:alert(1)) <img src=x>",
        metric="<i>error", doubts=["<b>"],
    )  # fmt: skip
    _, text = write(tmp_path)
    outside = text.replace("``a `b` <c> [x](y)``", "")  # a code span shows it as it is
    assert outside != text
    assert "<" not in outside.replace("![", "")
    assert "[click\\](javascript" in outside


README = """# Paper

Words stay.

<!-- rows: paper/2a -->
old
<!-- end -->

| a table by hand |
"""


def test_readmes_are_filled_with_published_rows(tmp_path, capsys):
    (tmp_path / "README.md").write_text(README)
    write_table(tmp_path / "shipped" / "paper" / "results" / "2a")
    write_table(tmp_path / "results" / "paper" / "2a", (0.9, 0.9))  # fresh, so not shown
    assert write(tmp_path, check=True) == (1, None)
    assert "paper/2a: the table is not as its rows" in capsys.readouterr().err
    assert write(tmp_path)[0] == 0
    text = (tmp_path / "README.md").read_text()
    assert cells(text, "none") == ["none", "0.10", "0.110 ± 0.000"]
    assert cells(text, "full") == ["full", "0.50", "**0.400 ± 0.000**"]
    before, after = README.split("old\n")
    assert text.startswith(before) and text.endswith(after)
    assert write(tmp_path, check=True)[0] == 0
    write_table(tmp_path / "shipped" / "paper" / "results" / "2a", (0.11, 0.401))
    assert write(tmp_path, check=True)[0] == 1


def test_readmes_that_cannot_be_filled(tmp_path, capsys):
    write_table(tmp_path / "shipped" / "paper" / "results" / "2a")
    for content, message in {
        README.replace("paper/2a", "paper/2b"): "README.md, paper/2b: there are no published rows",
        README.replace("<!-- end -->", ""): "README.md: a block does not end",
    }.items():
        (tmp_path / "README.md").write_text(content)
        code, text = write(tmp_path)
        assert code == 1
        assert "Table 2a" in text, "the page is written all the same"
        assert message in capsys.readouterr().err
        assert (tmp_path / "README.md").read_text() == content


def test_the_results_that_come_with_the_project(tmp_path):
    out = tmp_path / "REPORT.md"
    folders = make_report.find((make_report.EXPERIMENTS,))
    text, bad = make_report.page(folders, tmp_path)
    assert bad == {}
    assert cells(text, "fang2020/table2/2a")[1:4] == ["15", "13 (± 0.03)", "87%"]
    assert not out.exists()


def test_every_readme_shows_its_rows():
    """``make report`` mends it."""
    assert make_report.main(make_report.Args(check=True)) == 0
