"""What may be published, and that everything published says where it comes from."""

import subprocess
import sys
from pathlib import Path

import pytest

from fedjax_robust import report

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "experiments"))
import make_report  # noqa: E402
import publish  # noqa: E402


@pytest.fixture
def git(tmp_path):
    def run(*arguments):
        who = ["-c", "user.name=A", "-c", "user.email=a@example.org"]
        command = ["git", "-C", str(tmp_path), *who, *arguments]
        done = subprocess.run(command, check=True, capture_output=True, text=True)
        return done.stdout.strip()

    run("init", "-b", "main")
    run("commit", "--allow-empty", "-m", "first")
    return run


def write(folder, provenance, **options):
    rows = [{"attack": "none", "rule": "krum", "seed": 0, "error": 0.25} | provenance]
    say = {"title": "T", "command": "python a.py"} | options
    report.write_table(folder, rows, {("none", "krum"): 0.1}, **say)
    return folder


def test_what_is_copied(tmp_path, git, monkeypatch):
    folder = write(tmp_path / "results" / "paper" / "table2" / "2a", report.provenance(tmp_path))
    (folder / "curves.png").write_bytes(b"png")
    (folder / "runs.csv").write_text("a,b\n1,2\n")
    (folder / "cells").mkdir()
    assert publish.faults(folder, tmp_path) == []
    to = tmp_path / "experiments"
    target = to / "paper" / "results" / "table2" / "2a"
    target.mkdir(parents=True)
    (target / "old.png").write_bytes(b"png")
    (to / "paper" / "README.md").write_text("![curves](results/table2/2a/curves.png)")
    assert publish.publish(folder, to) == target
    assert {path.name for path in target.iterdir()} == {
        "rows.csv", "runs.csv", "about.json", "table.md", "curves.png",
    }  # fmt: skip
    assert report.read_table(target) == report.read_table(folder)
    assert (target / "table.md").read_text() == (folder / "table.md").read_text()
    assert [*make_report.find((to,))] == ["paper/table2/2a"]


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        ({"git_commit": None}, "1 of 1 rows name no commit"),
        ({"git_commit": "eb91d250827d"}, "commit eb91d250827d, which is not in the history"),
        ({"git_dirty": True}, "1 of 1 rows come from a changed tree"),
        ({"git_dirty": None}, "1 of 1 rows do not say whether the tree was changed"),
        ({"jax_version": None}, "1 of 1 rows have no jax_version"),
    ],
)
def test_rows_that_cannot_be_traced_are_refused(tmp_path, git, change, fault):
    folder = write(tmp_path / "results" / "paper" / "2a", report.provenance(tmp_path) | change)
    (found,) = publish.faults(folder, tmp_path)
    assert fault in found
    assert "run its experiment again" in found


def test_what_else_is_refused(tmp_path, git):
    good = report.provenance(tmp_path)
    results = tmp_path / "results" / "paper"

    def refuse(folder, message):
        (fault,) = publish.faults(folder, tmp_path)
        assert message in fault

    refuse(write(results / "2a-smoke", good), "smoke")
    refuse(write(tmp_path / "elsewhere" / "2a", good), "results/<paper>/<table>")
    refuse(write(tmp_path / "results" / "2a", good), "results/<paper>/<table>")
    refuse(write(results / "doubted", good, doubts=["all is invented"]), "all is invented")
    folder = write(results / "2b", good)
    (folder / "rows.csv").write_text((folder / "rows.csv").read_text().replace("0.25", "high"))
    refuse(folder, "rows.csv")
    (folder / "about.json").unlink()
    refuse(folder, "about.json")
    folder = write(results / "2c", good)
    (folder / "rows.csv").write_text((folder / "rows.csv").read_text().splitlines()[0])
    refuse(folder, "no rows")


def test_nothing_is_copied_if_one_is_refused(tmp_path, monkeypatch, capsys):
    good = write(tmp_path / "results" / "paper" / "a", {})
    monkeypatch.setattr(
        publish, "faults", lambda folder: [] if folder == good else ["it is not good"]
    )
    args = publish.Args((good, tmp_path / "results" / "paper" / "b"), tmp_path / "to")
    assert publish.main(args) == 1
    assert "results/paper/b is not published: it is not good" in capsys.readouterr().err
    assert not (tmp_path / "to").exists()
    assert publish.main(publish.Args((good,), tmp_path / "to")) == 0


def whole_history():
    def git(*arguments):
        return subprocess.run(["git", "-C", str(ROOT), *arguments], capture_output=True, text=True)

    return (ROOT / ".git").exists() and git(
        "rev-parse", "--is-shallow-repository"
    ).stdout == "false\n"


@pytest.mark.skipif(not whole_history(), reason="needs the history of a git checkout")
@pytest.mark.parametrize("name", make_report.find((make_report.EXPERIMENTS,)))
def test_published_rows_name_their_commit_or_say_that_they_do_not(name):
    folder = make_report.find((make_report.EXPERIMENTS,))[name]
    about = report.read_about(folder)
    read = report.read_table if isinstance(about, report.Table) else report.read_sweep
    rows = read(folder)[1]
    assert rows
    assert list(about.doubts) == report.untraceable(rows, ROOT)


def test_published_folders_hold_no_cells_and_only_figures_that_are_shown():
    readmes = [
        path.read_text() for path in (ROOT / "README.md", *ROOT.glob("experiments/*/README.md"))
    ]
    for folder in make_report.find((make_report.EXPERIMENTS,)).values():
        assert not (folder / "cells").exists()
        for figure in folder.glob("*.png"):
            shown = f"{folder.name}/{figure.name}"
            assert any(shown in text for text in readmes), f"no README shows {figure}"
