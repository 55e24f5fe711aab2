"""Result files, tables and plots. Expected values are worked out by hand."""

from __future__ import annotations

import csv
import json
import math
import os
import subprocess
import sys
import xml.etree.ElementTree as ET
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fedjax_robust import report
from fedjax_robust.report import plots

PAPER = {
    ("none", "krum"): 0.10,
    ("none", "median"): 0.20,
    ("full", "krum"): 0.50,
    ("full", "median"): 0.60,
}
# Means 0.13 (0.03 off, and a little more in floats), 0.20 and 0.40; one cell is missing.
ROWS = [
    {"attack": "none", "rule": "krum", "seed": 0, "error": 0.12},
    {"attack": "none", "rule": "krum", "seed": 1, "error": 0.14},
    {"attack": "none", "rule": "median", "seed": 0, "error": 0.20},
    {"attack": "none", "rule": "median", "seed": 1, "error": 0.20},
    {"attack": "full", "rule": "krum", "seed": 0, "error": 0.30},
    {"attack": "full", "rule": "krum", "seed": 1, "error": 0.50},
]


def cells_of(table: str) -> list[list[str]]:
    """The texts of a Markdown table, without padding and without the line under the head."""
    lines = [line for line in table.splitlines() if line.startswith("|")]
    assert len({len(line) for line in lines}) == 1, "padded to one width"
    texts = [[text.strip() for text in line.strip("|").split(" | ")] for line in lines]
    assert all(set(text) == {"-"} for text in texts[1])
    return [texts[0], *texts[2:]]


def texts_of(svg: Path) -> set[str]:
    return {"".join(node.itertext()).strip() for node in ET.parse(svg).iter() if "text" in node.tag}


# Files


def test_rows_round_trip(tmp_path):
    rows = [
        {
            "rule": "krum",
            "seed": np.int64(3),
            "error": np.float32(0.5),
            "selected": True,
            "f": None,
        },
        {"rule": 'a "quoted", name', "curve": jnp.array([1.0, 0.25]), "options": {"c": (1, 2)}},
        {"loss": math.nan, "low": -math.inf, "high": jnp.inf, "folder": Path("a/b")},
    ]
    report.write_rows(tmp_path / "new" / "runs.2e", rows)
    back = report.read_rows(tmp_path / "new" / "runs.2e")
    assert back[:2] == [
        {"rule": "krum", "seed": 3, "error": 0.5, "selected": True, "f": None},
        {"rule": 'a "quoted", name', "curve": [1.0, 0.25], "options": {"c": [1, 2]}},
    ]
    assert math.isnan(back[2]["loss"])
    assert back[2]["low"] == -math.inf
    assert back[2]["high"] == math.inf
    assert back[2]["folder"] == "a/b"


def test_json_is_standard_json(tmp_path):
    def refuse(constant):
        raise AssertionError(f"{constant} is not JSON")

    report.write_rows(tmp_path / "runs", [{"x": math.nan, "y": np.array([math.inf, 1.0])}])
    text = (tmp_path / "runs.json").read_text()
    assert json.loads(text, parse_constant=refuse) == [{"x": "NaN", "y": ["Infinity", 1.0]}]


def test_csv_has_all_columns(tmp_path):
    rows = [{"rule": "krum", "error": 0.5}, {"rule": "median", "seed": 1, "error": math.nan}]
    report.write_rows(tmp_path / "runs", rows)
    with open(tmp_path / "runs.csv", newline="") as file:
        table = list(csv.reader(file))
    assert table == [["rule", "error", "seed"], ["krum", "0.5", ""], ["median", "NaN", "1"]]


def test_no_rows(tmp_path):
    report.write_rows(tmp_path / "runs", [])
    assert report.read_rows(tmp_path / "runs") == []


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (object(), "object"),
        (lambda: 0, "function"),
        ({1: 2}, "not text"),
        ("NaN", "stands for a number"),
        (jax.random.key(0), "cannot be written"),
    ],
)
def test_rows_refuse_what_cannot_be_read_back(tmp_path, value, message):
    with pytest.raises(ValueError, match=rf"row 1\['x'\].*{message}"):
        report.write_rows(tmp_path / "runs", [{}, {"x": value}])
    assert list(tmp_path.iterdir()) == []


def test_rows_refuse_a_suffix_and_a_damaged_file(tmp_path):
    with pytest.raises(ValueError, match="without suffix"):
        report.write_rows(tmp_path / "runs.csv", [])
    (tmp_path / "runs.json").write_text('[{"a": 1}, {"b"')
    with pytest.raises(ValueError, match=r"runs\.json does not hold rows"):
        report.read_rows(tmp_path / "runs")
    (tmp_path / "runs.json").write_text('{"a": 1}')
    with pytest.raises(ValueError, match="list of objects"):
        report.read_rows(tmp_path / "runs")


def test_crash_before_the_rename_leaves_the_old_file(tmp_path, monkeypatch):
    report.save_cell(tmp_path, "krum", {"f": 2}, {"error": 0.25})
    written = []

    def crash(source, target):
        written.append(Path(source).read_text())
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", crash)
        with pytest.raises(KeyboardInterrupt):
            report.save_cell(tmp_path, "krum", {"f": 2}, {"error": 0.75})
    assert "0.75" in written[0], "the new content was complete before the rename"
    assert report.load_cell(tmp_path, "krum", {"f": 2}) == {"error": 0.25}
    assert [path.name for path in (tmp_path / "cells").iterdir()] == ["krum.json"]


def test_cell_round_trip(tmp_path):
    settings = {
        "rule": "krum",
        "batch": 32,
        "sizes": (3, 5),
        "dirichlet": None,
        "epsilon": math.nan,
    }
    assert report.load_cell(tmp_path, "2e_krum-none.v1", settings) is None
    result = {"error": np.array([[0.5, 0.25]], np.float32), "diverged": math.nan}
    report.save_cell(tmp_path, "2e_krum-none.v1", settings, result)
    back = report.load_cell(tmp_path, "2e_krum-none.v1", settings)
    assert back is not None
    assert back["error"] == [[0.5, 0.25]]
    assert math.isnan(back["diverged"])


def test_cell_of_other_settings(tmp_path):
    report.save_cell(tmp_path, "krum", {"batch": 32, "rate": 0.1, "old": 1}, {})
    with pytest.raises(ValueError, match="other settings") as error:
        report.load_cell(tmp_path, "krum", {"batch": 64, "rate": 0.1, "new": "x"})
    message = str(error.value)
    assert "batch: 32 in the file, 64 now" in message
    assert "new: 'absent' in the file, 'x' now" in message
    assert "old: 1 in the file, 'absent' now" in message
    assert "rate" not in message
    assert str(tmp_path / "cells" / "krum.json") in message
    assert "another result folder" in message


SAVED = b'{"settings": {"f": 2}, "result": {"error": 0.25}'


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b'{"settings": {"f": 2},\n"res',
        b"[]",
        b"{}",
        b"null",
        b'{"settings": 1}',
        b"\xff\xfe",
        SAVED + b"}",  # nobody knows whether that is what was saved
        SAVED + b', "sha256": ""}',
        SAVED + b', "sha256": null}',
        SAVED.replace(b"0.25", b'"high"') + b', "sha256": "%s"}',
        SAVED.replace(b'{"error": 0.25}', b"{}") + b', "sha256": "%s"}',
        SAVED.replace(b"0.25", b"NaN") + b', "sha256": "%s"}',
        SAVED.replace(b"0.25", b"1e999") + b', "sha256": "%s"}',
        SAVED.replace(b'"error": 0.25', b'"error": 0.5, "error": 0.25') + b', "sha256": "%s"}',
        SAVED.replace(b'{"error": 0.25}', b'[["error", 0.25]]') + b', "sha256": "%s"}',
        SAVED.replace(b'{"f": 2}', b'{"f": 2, "f": 2}') + b', "sha256": "%s"}',
        SAVED + b', "sha256": "%s", "more": 1}',
        b"[" * 200_000,
        b'{"a":' * 200_000,
    ],
)
def test_damaged_cell_is_computed_again(tmp_path, content):
    report.save_cell(tmp_path, "krum", {"f": 2}, {"error": 0.25})
    path = tmp_path / "cells" / "krum.json"
    digest = json.loads(path.read_text())["sha256"].encode()  # of what was saved
    path.write_bytes(content.replace(b"%s", digest))
    with pytest.warns(RuntimeWarning, match=r"krum\.json is damaged"):
        assert report.load_cell(tmp_path, "krum", {"f": 2}) is None


@pytest.mark.parametrize(
    ("before", "now"), [(2, 2.0), (0, False), (1, True), (1, "1"), (None, 0), ([1], [1.0])]
)
def test_settings_of_other_types_are_other_settings(tmp_path, before, now):
    report.save_cell(tmp_path, "krum", {"f": before}, {"error": 0.25})
    with pytest.raises(ValueError, match="other settings"):
        report.load_cell(tmp_path, "krum", {"f": now})
    assert report.load_cell(tmp_path, "krum", {"f": before}) == {"error": 0.25}


def test_a_cell_that_is_a_folder(tmp_path):
    (tmp_path / "cells" / "krum.json").mkdir(parents=True)
    with pytest.raises(ValueError, match=r"krum\.json is a folder"):
        report.load_cell(tmp_path, "krum", {})


@pytest.mark.parametrize("name", ["", "../krum", "a/b", ".hidden", "a b", "-f", "a\nb", "x" * 251])
def test_cell_names(tmp_path, name):
    with pytest.raises(ValueError, match="a cell's name"):
        report.save_cell(tmp_path, name, {}, {})


# Where a number comes from


def test_provenance_of_a_checkout(tmp_path):
    def git(*arguments):
        who = ["-c", "user.name=A", "-c", "user.email=a@example.org"]
        command = ["git", "-C", str(tmp_path), *who, *arguments]
        done = subprocess.run(command, check=True, capture_output=True, text=True)
        return done.stdout.strip()

    assert report.provenance(tmp_path)["git_commit"] is None
    git("init")
    assert report.provenance(tmp_path)["git_commit"] is None, "no commit yet"
    (tmp_path / "file").write_text("1")
    git("add", ".")
    git("commit", "-m", "first")
    facts = report.provenance(tmp_path)
    assert (facts["git_commit"], facts["git_dirty"]) == (git("rev-parse", "HEAD")[:12], False)
    (tmp_path / "file").write_text("2")
    assert report.provenance(tmp_path)["git_dirty"] is True
    (tmp_path / "inner").mkdir()
    assert report.provenance(tmp_path / "inner")["git_commit"] is None, "not the top of a checkout"


def test_provenance_of_this_process(tmp_path):
    facts = report.provenance(tmp_path)
    assert facts["jax_version"] == jax.__version__
    assert facts["numpy_version"] == np.__version__
    assert facts["backend"] == jax.default_backend()
    assert facts["device_count"] == jax.device_count()
    assert facts["utc_time"].endswith("+00:00")
    report.write_rows(tmp_path / "runs", [facts])
    assert report.read_rows(tmp_path / "runs") == [facts]


def test_untraceable(tmp_path):
    def git(*arguments):
        who = ["-c", "user.name=A", "-c", "user.email=a@example.org"]
        command = ["git", "-C", str(tmp_path), *who, *arguments]
        done = subprocess.run(command, check=True, capture_output=True, text=True)
        return done.stdout.strip()

    git("init", "-b", "main")
    git("commit", "--allow-empty", "-m", "first")
    git("checkout", "-q", "-b", "side")
    git("commit", "--allow-empty", "-m", "elsewhere")
    side = git("rev-parse", "--short=12", "HEAD")
    git("checkout", "-q", "main")
    good = report.provenance(tmp_path)
    assert report.untraceable([good], tmp_path) == []
    as_text = {key: "" if value is None else str(value) for key, value in good.items()}
    assert report.untraceable([as_text], tmp_path) == []
    dirty = {**as_text, "git_dirty": "True"}
    faulty = [
        as_text,
        {**as_text, "git_commit": ""},
        {"error": "0.1"},
        dirty,
        {**dirty, "git_dirty": ""},
        {**as_text, "git_commit": side},
        {**as_text, "git_commit": "eb91d250827d"},
        {**as_text, "git_commit": "--help"},
        {**as_text, "jax_version": ""},
    ]
    assert report.untraceable(faulty, tmp_path) == [
        "2 of 9 rows name no commit",
        "2 of 9 rows have no jax_version",
        "1 of 9 rows have no numpy_version",
        "1 of 9 rows have no device_kind",
        "1 of 9 rows have no utc_time",
        "1 of 9 rows come from a changed tree",
        "1 of 9 rows do not say whether the tree was changed",
        f"1 of 9 rows name commit {side}, which is not in the history",
        "1 of 9 rows name commit eb91d250827d, which is not in the history",
        "1 of 9 rows name commit --help, which is not in the history",
    ]


# Tables


def test_summarize():
    cells = report.summarize(ROWS)
    assert cells["full", "krum"] == pytest.approx((0.4, math.sqrt(0.02), 2))
    mean, std, seeds = report.summarize(ROWS[:1])["none", "krum"]
    assert (mean, seeds) == (0.12, 1)
    assert math.isnan(std)


def test_summarize_refuses_mixed_rows():
    with pytest.raises(ValueError, match=r"\('none', 'krum'\) have the seed 0"):
        report.summarize([*ROWS, ROWS[0]])
    with pytest.raises(ValueError, match=r"lacks the columns \['loss'\]"):
        report.summarize(ROWS, value="loss")


def test_comparison_table():
    table = report.comparison_table(ROWS, PAPER)
    assert cells_of(table) == [
        ["attack", "krum: paper", "ours", "median: paper", "ours"],
        ["none", "0.10", "0.130 ± 0.014", "0.20", "0.200 ± 0.000"],
        ["full", "0.50", "**0.400 ± 0.141**", "0.60", "–"],
    ]
    head, foot = table.splitlines()[0], table.splitlines()[-1]
    assert head == (
        "Testing error rate, fraction (0 to 1): paper | ours, "
        "mean ± sample standard deviation over 2 seeds."
    )
    assert (
        foot
        == "2 of 3 cells are within 0.03 of the paper (67%); **bold** ones are not; 1 not run yet."
    )


def test_comparison_table_of_unequal_runs():
    rows = [*ROWS[:3], {"attack": "mine", "rule": "krum", "seed": 0, "error": math.nan}]
    rows += [{"attack": "full", "rule": "krum", "seed": 0, "error": math.nan}]
    table = report.comparison_table(rows, PAPER, tolerance=0.5, metric="attack success rate")
    assert table.startswith("Attack success rate, fraction (0 to 1)")
    assert "over 1 to 2 seeds." in table
    assert cells_of(table)[1:] == [
        ["none", "0.10", "0.130 ± 0.014", "0.20", "0.200"],
        ["full", "0.50", "**nan**", "0.60", "–"],
        ["mine", "–", "nan", "–", "–"],
    ]
    assert "2 of 3 cells are within 0.5 of the paper" in table


def test_comparison_table_without_printed_numbers():
    """Columns without one have ours alone, and without any there is nothing to be within."""
    partly = report.comparison_table(ROWS, {("none", "krum"): 0.1})
    assert cells_of(partly)[0] == ["attack", "krum: paper", "ours", "median"]
    assert cells_of(partly)[2] == ["full", "–", "0.400 ± 0.141", "–"]
    table = report.comparison_table(ROWS, {})
    assert cells_of(table) == [
        ["attack", "krum", "median"],
        ["none", "0.130 ± 0.014", "0.200 ± 0.000"],
        ["full", "0.400 ± 0.141", "–"],
    ]
    assert "paper" not in table and "within" not in table


def test_comparison_table_before_the_first_run():
    table = report.comparison_table([], PAPER)
    assert "over 0 seeds" in table
    assert table.endswith("0 of 0 cells are within 0.03 of the paper; 4 not run yet.\n")


def test_markdown_table():
    rows = [{"rule": "a|b", "error": 0.12345, "n": 3}, {"rule": "c", "extra": None}]
    assert report.markdown_table(rows).splitlines() == [
        "| rule | error | n   | extra |",
        "| ---- | ----- | --- | ----- |",
        "| a\\|b | 0.123 | 3   | –     |",
        "| c    | –     | –   | –     |",
    ]
    assert cells_of(report.markdown_table(rows, ["n", "rule"]))[0] == ["n", "rule"]


def test_differences():
    assert report.differences(ROWS, PAPER) == pytest.approx(
        {("none", "krum"): 0.03, ("none", "median"): 0.0, ("full", "krum"): -0.1}
    )


# Folders


def test_write_table(tmp_path):
    folder = tmp_path / "new" / "2a"
    text = report.write_table(
        folder,
        ROWS,
        PAPER,
        title="Table 2a",
        command="python a.py",
        notes="Two seeds.",
        settings={"rounds": 3, "rules": ("krum",), "rate": None},
    )
    assert text == f"Table 2a\n\nTwo seeds.\n\n{report.comparison_table(ROWS, PAPER)}"
    assert (folder / "table.md").read_text() == text
    assert (folder / "comparison.png").read_bytes()[:4] == b"\x89PNG"
    assert report.read_rows(folder / "rows") == ROWS
    about, rows = report.read_table(folder)
    assert about.paper == PAPER
    assert about == report.Table(
        title="Table 2a",
        command="python a.py",
        line="attack",
        columns="rule",
        value="error",
        metric="testing error rate",
        tolerance=0.03,
        notes="Two seeds.",
        settings={"rounds": 3, "rules": ["krum"], "rate": None},
        doubts=[],
        paper=PAPER,
    )
    assert report.comparison_table(rows, about.paper) == report.comparison_table(ROWS, PAPER)


def test_read_table_of_something_else(tmp_path):
    with pytest.raises(FileNotFoundError):
        report.read_table(tmp_path)
    for content in ("{", "[]", '{"title": "a"}'):
        (tmp_path / "about.json").write_text(content)
        with pytest.raises(ValueError, match=r"about\.json does not describe its folder.*again"):
            report.read_table(tmp_path)


def damage(folder, old, new, name="about.json"):
    text = (folder / name).read_text()
    assert old in text
    (folder / name).write_text(text.replace(old, new))


@pytest.mark.parametrize(
    ("name", "old", "new"),
    [
        ("about.json", '"tolerance": 0.03', '"tolerance": "NaN"'),
        ("about.json", '"tolerance": 0.03', '"tolerance": NaN'),
        ("about.json", '"tolerance": 0.03', '"tolerance": -1'),
        ("about.json", '"tolerance": 0.03', '"tolerance": true'),
        ("about.json", '"metric": "testing error rate"', '"metric": ""'),
        ("about.json", '"title": "T"', '"title": 1'),
        ("about.json", '"title": "T"', '"title": "T", "title": "U"'),
        ("about.json", '"kind": "table"', '"kind": "list"'),
        ("about.json", '"kind": "table"', '"kind": "table", "more": 1'),
        ("about.json", '["none", "krum", 0.1]', '["none", 0.1]'),
        ("about.json", '["none", "krum", 0.1]', '["none", "krum", "NaN"]'),
        ("about.json", '["none", "krum", 0.1]', '["none", "krum", null]'),
        ("about.json", '"settings": {}', '"settings": []'),
        ("about.json", '"doubts": []', '"doubts": "none"'),
        ("rows.csv", "0.25", "high"),
        ("rows.csv", "0.25", ""),
        ("rows.csv", "0.25", "0.25,1"),
        ("rows.csv", ",0.25", ""),
        ("rows.csv", "error", "rule"),
        ("rows.csv", "error", "mistakes"),
    ],
)
def test_a_damaged_folder_names_its_file(tmp_path, name, old, new):
    rows = [{"attack": "none", "rule": "krum", "error": 0.25}]
    report.write_table(tmp_path, rows, {("none", "krum"): 0.1}, title="T", command="c")
    damage(tmp_path, old, new, name)
    with pytest.raises(ValueError, match=name.replace(".", r"\.")):
        report.read_table(tmp_path)


def test_older_folders_are_read(tmp_path):
    """``table.json``, with the lines' key as ``index``."""
    report.write_table(tmp_path, ROWS, PAPER, title="T", command="c")
    about, rows = report.read_table(tmp_path)
    fields = {
        key: value for key, value in json.loads((tmp_path / "about.json").read_text()).items()
        if key not in ("kind", "settings", "doubts", "line")
    }  # fmt: skip
    (tmp_path / "table.json").write_text(json.dumps({**fields, "index": "attack"}))
    (tmp_path / "about.json").unlink()
    assert report.read_table(tmp_path) == (about._replace(doubts=()), rows)


def test_doubts_stand_below_the_table(tmp_path):
    say = {"title": "T", "command": "c", "doubts": ["1 of 4 rows name no commit"]}
    text = report.write_table(tmp_path / "t", ROWS, PAPER, **say)
    assert text.endswith("\nNot traceable: 1 of 4 rows name no commit.\n")
    assert report.table_text(*report.read_table(tmp_path / "t")) in text
    text = report.write_sweep(tmp_path / "s", SWEEP, x="p", **say)
    assert text.endswith("\nNot traceable: 1 of 4 rows name no commit.\n")


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("tolerance", math.nan), ("tolerance", -0.1), ("title", ""), ("title", 3), ("metric", ""),
        ("paper", {("a", "b"): math.nan}), ("paper", {("a", "b"): "0.1"}), ("settings", 1),
        ("doubts", "all"), ("settings", {"x": object()}),
    ],
)  # fmt: skip
def test_write_table_refuses(tmp_path, field, value):
    about = {"title": "T", "command": "c", "paper": {}} | {field: value}
    with pytest.raises(
        (ValueError, TypeError), match=field if field != "paper" else r"paper\[a, b\]"
    ):
        report.write_table(tmp_path / "t", ROWS, about.pop("paper"), **about)


def test_text_that_would_be_html_or_a_link(tmp_path):
    assert report.safe("a < b & c") == "a &lt; b & c"
    assert report.safe("<script>x</script>") == "&lt;script>x&lt;/script>"
    assert report.safe("[a](javascript:b)") == "[a\\](javascript:b)"
    assert report.safe("&lt;") == "&amp;lt;"
    assert report.safe("two\nlines") == "two lines"
    assert report.safe("LR, [0, 1]") == "LR, [0, 1]"
    rows = [{"attack": "<b>", "rule": "a|b", "error": 0.25}]
    text = report.write_table(tmp_path, rows, {}, title="<i>T", command="c", notes="[x](y)")
    assert "<" not in text
    assert "](" not in text.replace("\\](", "")


SWEEP = [
    {"rule": "krum", "attack": attack, "p": p, "seed": seed, "error": error + seed / 10}
    for attack, p, error in [("none", 0.5, 0.2), ("none", 0.1, 0.1), ("full", 0.5, 0.7)]
    for seed in (0, 1)
]


def test_write_sweep(tmp_path):
    text = report.write_sweep(
        tmp_path, SWEEP, x="p", title="Figure 3", command="python b.py", xlabel="degree p"
    )
    assert text.startswith(
        "Figure 3\n\nTesting error rate, fraction (0 to 1), against degree p; "
        "mean ± sample standard deviation over 2 seeds.\n\n|"
    )
    assert cells_of(text) == [
        ["rule", "attack", "0.1", "0.5"],
        ["krum", "none", "0.150 ± 0.071", "0.250 ± 0.071"],
        ["krum", "full", "–", "0.750 ± 0.071"],
    ]
    assert (tmp_path / "table.md").read_text() == text
    assert (tmp_path / "sweep.png").read_bytes()[:4] == b"\x89PNG"
    about, rows = report.read_sweep(tmp_path)
    assert (about.x, about.xlabel, about.panels, about.lines) == ("p", "degree p", "rule", "attack")
    assert about.log_x is False
    assert report.sweep_table(about, rows) == report.sweep_table(about, SWEEP)
    assert report.sweep_table(about, SWEEP) in text


def test_write_sweep_refuses(tmp_path):
    say = {"x": "p", "title": "a", "command": "b"}
    with pytest.raises(ValueError, match="needs rows, got none"):
        report.write_sweep(tmp_path, [], **say)
    with pytest.raises(ValueError, match=r"lacks the columns \['q'\]"):
        report.write_sweep(tmp_path, SWEEP, **say | {"x": "q"})
    with pytest.raises(ValueError, match="have the seed 0"):
        report.write_sweep(tmp_path, [*SWEEP, SWEEP[0]], **say)
    assert list(tmp_path.iterdir()) == []


# Plots


@pytest.mark.parametrize("suffix", [".png", ".svg", ".pdf"])
def test_plot_formats(tmp_path, suffix):
    path = tmp_path / "new" / f"curves{suffix}"
    report.plot_curves(path, [0, 10], {"krum": {"none": [0.9, 0.1]}})
    magic = {".png": b"\x89PNG\r\n\x1a\n", ".svg": b"<?xml", ".pdf": b"%PDF"}[suffix]
    assert path.read_bytes().startswith(magic)
    assert path.stat().st_size > 4000


def test_plot_curves_labels(tmp_path):
    curves = {
        rule: {"none": np.full((3, 4), 0.1), "full": np.linspace(0.2, 0.9, 12).reshape(3, 4)}
        for rule in ("krum", "median", "mean", "bulyan")
    }
    path = tmp_path / "curves.svg"
    report.plot_curves(path, jnp.arange(4), curves, title="Table 2e")
    texts = texts_of(path)
    assert {"krum", "median", "mean", "bulyan", "none", "full", "round", "Table 2e"} <= texts
    assert "testing error rate (fraction)" in texts
    assert "mean of 3 seeds; band: smallest to largest" in texts
    report.plot_curves(path, jnp.arange(4), curves, band="std", metric="attack success rate")
    texts = texts_of(path)
    assert {"attack success rate (fraction)"} <= texts
    assert "mean of 3 seeds; band: ± sample standard deviation" in texts


def test_plot_comparison_labels(tmp_path):
    path = tmp_path / "comparison.svg"
    report.plot_comparison(path, ROWS, PAPER, title="Table 2e")
    texts = texts_of(path)
    assert {"krum", "median", "none", "full", "paper", "ours", "Table 2e"} <= texts
    assert "testing error rate (fraction)" in texts
    assert "grey: paper ± 0.03; bar: ± sample standard deviation over seeds" in texts


def test_plot_comparison_shows_every_point(tmp_path, monkeypatch):
    """Also what only a later panel reaches: the panels share their x axis."""
    drawn = []
    monkeypatch.setattr(plots, "_save", lambda figure, path: drawn.append(figure))
    rows = [{"rule": "krum", "attack": "full", "error": 0.1}]
    rows += [{"rule": "median", "attack": "full", "error": 0.9}]
    report.plot_comparison(tmp_path / "a.png", rows, {})
    for axes in drawn[0].axes:
        left, right = axes.get_xlim()
        assert left == 0
        assert right > 0.9


def test_plot_heat_map_shows_means(tmp_path):
    """Every cell that has rows, its mean over the seeds, in the order asked for."""
    errors = {
        ("krum", "none"): (0.1, 0.3),
        ("krum", "full"): (0.9,),
        ("median", "none"): (1.0, 1.0),
    }
    rows = [
        {"rule": rule, "attack": attack, "seed": seed, "error": error}
        for (rule, attack), both in errors.items()
        for seed, error in enumerate(both)
    ]
    path = tmp_path / "map.svg"
    groups = [["none"], ["full"]]
    report.plot_heat_map(
        path, rows, ["median", "krum"], groups, beside={"": "cost", "krum": "3.5"}, title="Arena"
    )
    texts = texts_of(path)
    assert {"krum", "median", "none", "full", ".20", ".90", "1", "cost", "3.5", "Arena"} <= texts
    assert "testing error rate (fraction)" in texts
    with pytest.raises(ValueError, match="nothing to draw"):
        report.plot_heat_map(path, rows, ["bulyan"], groups)


def test_plot_sweep_labels(tmp_path):
    curves = {"krum": {"none": [[0.1, 0.2, 0.3]], "full": np.full((3, 3), 0.4)}}
    path = tmp_path / "sweep.svg"
    report.plot_sweep(
        path, [0.1, 0.5, 0.9], curves, xlabel="degree p", title="Figure 3", metric="test loss"
    )
    texts = texts_of(path)
    assert {"krum", "none", "full", "degree p", "Figure 3", "test loss (fraction)"} <= texts
    assert {"0.1", "0.5", "0.9"} <= texts, "the swept values are marked"
    assert "mean of 3 seeds; band: smallest to largest" in texts
    assert "round" not in texts


def test_plot_sweep_axes(tmp_path, monkeypatch):
    drawn = []
    monkeypatch.setattr(plots, "_save", lambda figure, path: drawn.append(figure))
    curves = {"krum": {"none": [0.1, math.nan, 0.3]}, "median": {"none": [0.3, 0.2, 0.1]}}
    for log_x in (False, True):
        report.plot_sweep("a.png", [0.001, 0.1, 10], curves, xlabel="epsilon", log_x=log_x)
    linear, log = drawn
    assert [axes.get_xscale() for axes in linear.axes] == ["linear", "linear"]
    assert [axes.get_xscale() for axes in log.axes] == ["log", "log"]
    assert len(log.axes[0].lines[0].get_xdata()) == 3
    assert log.axes[0].lines[0].get_marker() == "o"


@pytest.mark.parametrize(
    ("x", "log_x", "message"),
    [
        ([0.5, 0.1], False, "ascending"),
        ([0.1, 0.1], False, "ascending"),
        ([0, 1], True, "values > 0"),
        ([1, 2, 3], False, r"must be \(seeds, 3\).*3 values"),
    ],
)
def test_plot_sweep_refuses(tmp_path, x, log_x, message):
    with pytest.raises(ValueError, match=message):
        report.plot_sweep(
            tmp_path / "a.png", x, {"krum": {"none": [0.1, 0.2]}}, xlabel="x", log_x=log_x
        )
    assert list(tmp_path.iterdir()) == []


def test_plots_leave_pyplot_alone(tmp_path):
    import matplotlib as mpl

    before = dict(mpl.rcParams)
    report.plot_comparison(tmp_path / "comparison.png", ROWS, {})
    assert dict(mpl.rcParams) == before


def test_plots_refuse_bad_input(tmp_path):
    with pytest.raises(ValueError, match=r"must be \(seeds, 3\) or \(3,\).*got \(2, 4\)"):
        report.plot_curves(tmp_path / "a.png", range(3), {"krum": {"none": np.zeros((2, 4))}})
    with pytest.raises(ValueError, match="no curves"):
        report.plot_curves(tmp_path / "a.png", range(3), {})
    with pytest.raises(ValueError, match="band"):
        report.plot_curves(tmp_path / "a.png", range(3), {"a": {"b": [1, 2, 3]}}, band="iqr")
    with pytest.raises(ValueError, match=r"saved as \.png"):
        report.plot_curves(tmp_path / "a.jpg", range(3), {"a": {"b": [1, 2, 3]}})
    with pytest.raises(ValueError, match="neither rows"):
        report.plot_comparison(tmp_path / "a.png", [], {})
    assert list(tmp_path.iterdir()) == []


def test_importing_the_package_does_not_import_matplotlib():
    script = (
        "import sys, fedjax_robust.report;"
        "print([m for m in ('matplotlib', 'tensorflow') if m in sys.modules])"
    )
    command = [sys.executable, "-c", script]
    assert subprocess.run(command, capture_output=True, text=True, check=True).stdout == "[]\n"


def test_later_panels_are_not_cut_off(tmp_path, monkeypatch):
    """Panels share their y axis: it must reach the largest value of any of them."""
    figures = []
    monkeypatch.setattr(plots, "_save", lambda figure, path: figures.append(figure))
    curves = {"first": {"a": [0.0, 0.0]}, "second": {"a": [0.0, 1.0]}}
    plots.plot_curves(tmp_path / "x.png", [1, 2], curves)
    for axes in figures[0].axes[:2]:
        low, high = axes.get_ylim()
        assert low == 0
        assert high >= 1


def test_a_metric_that_ends_with_a_bracket_says_its_unit():
    rows = [{"attack": "a", "rule": "r", "seed": 0, "error": 272.5}]
    text = report.comparison_table(rows, {}, metric="norm (gamma = 80)")
    assert text.startswith("Norm (gamma = 80): mean") and "272.500" in text
    assert "norm, fraction (0 to 1): mean" in report.comparison_table(rows, {}, metric="a norm")
