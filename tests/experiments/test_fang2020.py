"""The scripts of Fang et al.'s tables and figures: smoke modes, printed numbers, and what is swept."""

import json
import os
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

import fedjax_robust as fr
from fedjax_robust import attacks, report, study
from fedjax_robust.data import Dataset

PAPER = Path(__file__).parents[2] / "experiments" / "fang2020"
sys.path.insert(0, str(PAPER))
import fang_setting
import figures
import table2
import table5
import tables
import variants

needs_mnist = pytest.mark.skipif(
    not list(Path(os.environ.get("FEDJAX_ROBUST_DATA", "/none")).glob("tfds/mnist/*")),
    reason="MNIST is not there; set FEDJAX_ROBUST_DATA to the folder that holds it",
)


@pytest.mark.parametrize("script", [table2, tables, table5, figures, variants])
def test_help(script, capsys, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["script", "--help"])
    with pytest.raises(SystemExit):
        study.main(script.Args, script.main)
    assert "--smoke" in capsys.readouterr().out


@pytest.mark.parametrize("script", [table2, table5, figures])
def test_no_choice_is_called_none(script, capsys, monkeypatch):
    """``--attacks None`` would run all of them if it meant "the default"."""
    monkeypatch.setattr(sys, "argv", ["script", "--attacks", "None"])
    with pytest.raises(SystemExit):
        study.main(script.Args, lambda args: pytest.fail(f"ran {args.attacks}"))
    assert "None" in capsys.readouterr().err


# --- Table 2 -------------------------------------------------------------------------------------


def smoke_2(out: Path, **options) -> Path:
    table2.main(table2.Args(smoke=True, out=out, **options))
    return out / "table2" / f"{options['table']}-smoke"


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """Two attacks on the median, on the bundled data."""
    out = tmp_path_factory.mktemp("2e")
    return smoke_2(out, table="2e", rules=("Median",), attacks=("NoAttack", "Full"))


def test_table_2e(finished):
    about, rows = report.read_table(finished)
    assert [row["attack"] for row in rows] == ["NoAttack", "Full"]
    for row in rows:
        assert 0 <= float(row["error"]) <= 1
        assert (row["clients"], row["malicious"]) == ("20", "4")
        assert row["jax_version"]
        assert "curve" not in row
    assert about.paper == {("NoAttack", "Median"): 0.03, ("Full", "Median"): 0.18}
    assert about.settings["learning_rate"] == 0.1
    assert about.settings["client_chunk"] is None, "also what the command does not say"
    assert about.command == (
        "python experiments/fang2020/table2.py --smoke --rules Median --attacks NoAttack Full"
    )
    for figure in ("curves.png", "comparison.png"):
        assert (finished / figure).read_bytes()[:4] == b"\x89PNG"


def test_it_goes_on_after_the_last_finished_run(finished, monkeypatch):
    rows = report.read_rows(finished / "rows")
    monkeypatch.setattr(study, "together", lambda *a, **k: None)  # everything is on disk
    out = finished.parents[1]
    smoke_2(out, table="2e", rules=("Median",), attacks=("NoAttack", "Full"))
    assert report.read_rows(finished / "rows") == rows
    with pytest.raises(ValueError, match=r"other settings.*rounds"):
        smoke_2(out, table="2e", rules=("Median",), attacks=("Full",), rounds=5)


@needs_mnist
def test_table_2b_with_checkpoints_and_table_3(tmp_path):
    cells = {"rules": ("Trimmed mean",), "attacks": ("Full",), "rounds": 2}
    folder = smoke_2(tmp_path, table="2b", **cells)
    (row,) = report.read_rows(folder / "rows")
    assert row["model"] == "dnn"
    about, rows = report.read_table(folder.with_name("3-smoke"))  # the best iterates of its runs
    assert (about.value, about.paper) == ("best_error", {("Full", "Trimmed mean"): 0.18})
    assert float(rows[0]["best_error"]) <= float(rows[0]["error"])
    assert not list((folder / "checkpoints").glob("*"))  # removed with the finished run


def test_table_2d_waits_for_its_data(tmp_path, capsys):
    table2.main(table2.Args(table="2d", data_dir=tmp_path))
    printed = capsys.readouterr().out
    assert "0.290" in printed
    assert "waiting for the data" in printed
    assert "hmnist_64_64_L.csv" in printed


def test_table_2d_runs_where_its_data_are(tmp_path, monkeypatch):
    """On noise in CH-MNIST's shape; the network, which compiles for minutes, only by its size."""
    network = fang_setting.MODELS["ResNet20"](8)
    variables = jax.eval_shape(
        network.init, jax.random.key(0), np.zeros((1, 64, 64, 1), np.float32)
    )
    assert sum(leaf.size for leaf in jax.tree.leaves(variables)) == 272_024
    monkeypatch.setitem(fang_setting.MODELS, "ResNet20", fr.models.SoftmaxRegression)
    rng = np.random.default_rng(0)

    def batch(number):
        x = rng.normal(size=(number, 64, 64, 1)).astype(np.float32)
        return {"x": x, "y": rng.integers(0, 8, number)}

    noise = Dataset(train=batch(64), test=batch(8), num_classes=8, name="ch_mnist", note="noise")
    monkeypatch.setattr(fang_setting, "load", lambda name, *a: {"ch_mnist": noise}[name])
    monkeypatch.setattr(fang_setting, "SMOKE_CLIENTS", 8)  # one for each label
    at = fang_setting.SETTINGS["2d"]._replace(batch_size=2)
    monkeypatch.setitem(fang_setting.SETTINGS, "2d", at)
    folder = smoke_2(tmp_path, table="2d", rules=("Median",), attacks=("NoAttack",), rounds=1)
    about, (row,) = report.read_table(folder)
    assert (row["model"], row["data"]) == ("ResNet20", "ch_mnist")
    assert about.paper == {("NoAttack", "Median"): 0.17}


def test_folders_say_what_differs_from_the_paper():
    assert table2.suffix(table2.Args()) == ""
    assert table2.suffix(table2.Args(clients=20, rounds=100)) == "-20-clients-100-rounds"
    assert table2.suffix(table2.Args(clients=20, smoke=True)) == "-smoke"


def test_models_of_2a_and_2e_run_together_and_networks_with_checkpoints():
    assert [name for name, at in fang_setting.SETTINGS.items() if at.small] == ["2a", "2e"]
    at = fang_setting.SETTINGS["2b"]
    assert table2.rounds(at).tolist() == [200 * i for i in range(1, 11)]


# --- Tables 4, 6, 7b, 8 --------------------------------------------------------------------------


def test_every_printed_cell_is_run():
    """The numbers of cells are the paper's; a few are checked by eye."""
    sizes = {"4": 9, "6": 36, "7b": 3, "8": 6}
    for name, table in tables.TABLES.items():
        assert [*table.cells] == [*table.paper]
        assert len(table.cells) == sizes[name]
    six = tables.TABLES["6"].paper
    assert six["Krum + Union", "Krum attack"] == 0.48
    assert six["Trimmed mean", "Trimmed mean attack"] == 0.23
    assert six["Median + ERR", "Trimmed mean attack"] == 0.25
    assert tables.TABLES["4"].paper["Trimmed mean attack", "Trimmed mean"] == 0.25
    assert tables.TABLES["7b"].paper["Full knowledge", "Bulyan"] == 0.38
    assert tables.TABLES["8"].paper["Deviation goal", "Trimmed mean"] == 0.10


@needs_mnist
def test_defences_smoke_and_resume(tmp_path, monkeypatch):
    args = tables.Args(table="6", only=("Median + Union",), out=tmp_path, smoke=True)
    tables.main(args)
    about, rows = report.read_table(tmp_path / "table6-smoke")
    assert (about.line, about.columns) == ("rule", "attack")
    assert about.settings["validation_examples"] == 100
    assert [row["attack"] for row in rows] == ["No attack", "Krum attack", "Trimmed mean attack"]
    for row in rows:
        assert 0 <= float(row["error"]) <= 1
        assert 0 <= float(row["recall"]) <= 1
    monkeypatch.setattr(tables, "program", lambda *a: None)  # everything is on disk
    tables.main(args)
    assert report.read_table(tmp_path / "table6-smoke")[1] == rows


def test_what_is_not_there_is_an_error(tmp_path):
    with pytest.raises(ValueError, match="no line"):
        tables.main(tables.Args(only=("Krum + FLTrust",), out=tmp_path))
    with pytest.raises(ValueError, match="no variant"):
        variants.main(variants.Args(only=("else",), out=tmp_path))


# --- Variants ------------------------------------------------------------------------------------


def test_variants_smoke(tmp_path):
    args = variants.Args(table="2e", smoke=True, only=("LR, [0, 1]",), out=tmp_path)
    variants.main(args)
    about, rows = report.read_table(tmp_path / "2e-smoke")
    assert about.paper["LR, [0, 1]", "Krum Partial"] == 0.17
    assert about.paper["LR, [0, 1]", "Median Full"] == 0.18
    assert len(rows) == len(about.paper) == 6
    assert {row["model"] for row in rows} == {"logistic_regression"}


def test_every_variant_stands_beside_a_printed_number():
    for table, lines in variants.VARIANTS.items():
        numbers = variants.printed(table)
        for variant in lines.values():
            assert {*variant.cells} <= {*numbers}
    assert variants.printed("6")["Median + LFR"] == 0.20
    assert variants.printed("7b")["Partial knowledge"] == 0.36


def test_validation_is_redrawn_by_the_rounds_key():
    """Other examples, other removals; the same key, the same."""
    rng = np.random.default_rng(0)
    task = fr.classification(fr.models.SoftmaxRegression(2), np.zeros((1, 3), np.float32))
    pool = {"x": rng.normal(size=(200, 3)).astype(np.float32), "y": rng.integers(2, size=200)}
    rule = variants.redrawn(tables.median)["LFR"](2, task, pool)
    updates = (0.01 * rng.normal(size=(8, 8))).astype(np.float32)
    zeros = np.zeros(8, np.float32)

    def removed(key):
        received = fr.Received(updates, zeros + 1, np.arange(8), zeros, key)
        return rule.aggregate(received, ())[2]["removed"]

    keys = jax.random.split(jax.random.key(0), 20)
    several = np.asarray(jax.jit(jax.vmap(removed))(keys))
    assert np.all(several.sum(axis=1) == 2)
    assert len(np.unique(several, axis=0)) > 1
    np.testing.assert_array_equal(jax.jit(removed)(keys[3]), several[3])


def test_the_attack_that_searches_against_bulyan():
    """Bulyan selects its crafted rows, and does not at twice lambda."""
    rng = np.random.default_rng(0)
    n, c, d = 15, 3, 40
    updates = (0.3 + rng.normal(size=(n, d))).astype(np.float32)
    view = fr.AttackerView(
        updates=jax.numpy.asarray(updates),
        visible=np.ones(n, bool),
        reference=np.arange(n) >= c,
        malicious=np.arange(n) < c,
        num_malicious=c,
        params=np.zeros(d, np.float32),
        key=jax.random.key(0),
        aggregate=None,
    )
    attack = variants.against_bulyan(epsilon=1e-6)
    crafted, _ = attack.craft(view, ())
    assert crafted.shape == (c, d)
    lam = float(np.abs(crafted[0]).max())
    np.testing.assert_allclose(np.abs(crafted[0]), lam, rtol=1e-6)

    def selected(scale):
        rows = np.concatenate([scale * np.broadcast_to(crafted[0], (c, d)), updates[c:]])
        rule = fr.aggregators.bulyan(c)
        received = fr.Received(rows, np.ones(n, np.float32), np.arange(n), view.params, view.key)
        return np.any(rule.aggregate(received, ())[2]["selected"][:c])

    assert selected(1.0)
    assert lam == 1.0 or not selected(2.0)


# --- Table 5 -------------------------------------------------------------------------------------

# Fang et al.'s own attacks on models are table2's.
OF_TABLE_5 = ("NoAttack", "SingleWorker", "Uniform", "FullOnUpdates")


def smoke_5(out: Path, **options) -> Path:
    table5.main(table5.Args(smoke=True, out=out, attacks=OF_TABLE_5, **options))
    return out / "table5-smoke"


@pytest.fixture(scope="module")
def finished_5(tmp_path_factory):
    return smoke_5(tmp_path_factory.mktemp("results"))


@needs_mnist
def test_table_5(finished_5):
    rows = report.read_rows(finished_5 / "rows")
    assert [row["attack"] for row in rows] == list(OF_TABLE_5)
    for row in rows:
        assert 0 <= row["error"] <= 1
        assert (row["rule"], row["clients"], row["malicious"]) == ("Mean", 20, 4)
        assert ("crafting" in row) == (row["attack"] in ("SingleWorker", "Uniform"))
    about = report.read_about(finished_5)
    assert [*about.paper.values()] == [0.10, 0.11, 0.15]
    assert about.settings["crafting"]["points"] == 12
    assert (finished_5 / "points.png").read_bytes()[:4] == b"\x89PNG"
    clean, _, poisoned = report.read_rows(finished_5 / "central" / "rows")
    assert 0 <= clean["error"] <= 1
    assert poisoned["clean_loss"] > clean["clean_loss"]
    assert clean["objective_best"] >= clean["objective_start"]
    assert [*report.read_about(finished_5 / "central").paper.values()] == [0.10, 0.16]


@needs_mnist
def test_table_5_goes_on_with_its_points_and_cells(finished_5, monkeypatch):
    missing = finished_5 / "cells" / "rule=Mean,attack=Uniform,seed=0.json"
    before = {path: path.stat().st_mtime_ns for path in finished_5.rglob("cells/*")}
    errors = [row["error"] for row in report.read_rows(finished_5 / "rows")]
    missing.unlink()
    monkeypatch.setattr(
        attacks.optimised, "back_gradient_points", lambda *a, **k: pytest.fail("crafted")
    )
    smoke_5(finished_5.parent)
    after = {path: path.stat().st_mtime_ns for path in before}
    assert [path for path in before if after[path] != before[path]] == [missing]
    assert [row["error"] for row in report.read_rows(finished_5 / "rows")] == errors
    with pytest.raises(ValueError, match=r"other settings.*iterations.*Choose another"):
        smoke_5(finished_5.parent, iterations=4)
    with pytest.raises(ValueError, match=r"other settings.*rounds"):
        smoke_5(finished_5.parent, rounds=5)


@pytest.mark.parametrize("seed", [0, 1])
def test_points_join_the_data_of_compromised_clients(seed):
    """100 examples and 30 points a seed, 20 clients."""
    data = Dataset(train={}, test={}, num_classes=10, name="", note="")
    crafting = table5.Crafting(100, 30, 1, 1.0, 1, 0.1, "training")
    inputs = table5.Inputs(data, {"y": np.arange(260) % 10}, [{}] * 2, None, crafting, 20)

    def owned(placement):
        _, rows, sizes = inputs.federated(seed, placement)
        return [set(np.asarray(i[:c]).tolist()) for i, c in zip(rows, sizes, strict=True)]

    honest = owned("NoAttack")
    first = 130 * seed
    assert {len(rows) for rows in honest} == {5}
    assert set().union(*honest) == set(range(first, first + 100))
    own_points = set(range(first + 100, first + 130))
    single = owned("SingleWorker")
    assert single[0] == honest[0] | own_points
    assert single[1:] == honest[1:]
    uniform = owned("Uniform")
    added = [u - h for u, h in zip(uniform, honest, strict=True)]
    assert all(h <= u for u, h in zip(uniform, honest, strict=True))
    assert set().union(*added) == own_points
    assert sum(map(len, added)) == 30
    assert min(map(len, added[:4])) > 0  # 7.5 expected
    assert not any(added[4:])


# --- Figures -------------------------------------------------------------------------------------


def smoke_figure(out, figure, **options):
    figures.main(figures.Args(figure=figure, smoke=True, out=out, **options))
    folder = out / f"{figures.SHORT.get(figure, figure)}-smoke"
    return folder, report.read_rows(folder / "rows")


def cells_of(name, clients=100, **changes):
    figure = figures.FIGURES[name]._replace(**changes)
    at = fang_setting.SETTINGS[figure.table]
    return figures.cells_of(name, figure, fang_setting.training_settings(at), clients)


@pytest.mark.parametrize("name", figures.FIGURES)
def test_every_point_can_be_simulated(name):
    """Also where nothing is run here: the rules' preconditions hold at every point."""
    figure = figures.FIGURES[name]
    at = fang_setting.SETTINGS[figure.table]

    class Names:
        task = fr.classification(fr.models.SoftmaxRegression(10), np.zeros((1, 4), np.float32))
        num_classes = 10

    fr_test_error, fang_setting.metrics.test_error = (
        fang_setting.metrics.test_error,
        lambda *a: None,
    )
    try:
        plan = figures.plan_of(figure, at, Names, None)
        for cell in cells_of(name) + cells_of(name, 20, values=figure.smoke):
            assert 0 <= cell["malicious"] < cell["clients"] / 2
            assert cell["selected"] is None or cell["selected"] <= cell["clients"]
            mask = figures.poisoned_rounds({**cell, "seed": 0})
            sim = plan(cell, {"data": None, "test": None, "poisoned": mask}).sim
            updates = np.zeros((cell["selected"] or cell["clients"], 2), np.float32)
            jax.eval_shape(lambda u, rule=sim.aggregator: rule(u), updates)
            assert sim.num_malicious == cell["malicious"]
    finally:
        fang_setting.metrics.test_error = fr_test_error


def test_what_is_swept():
    def swept(name, *keys):
        return list(dict.fromkeys(tuple(cell[key] for key in keys) for cell in cells_of(name)))

    assert swept("2a-c", "malicious") == [(5,), (10,), (15,), (20,), (25,), (30,)]
    assert swept("4b", "clients", "malicious") == [(20, 4), (50, 10), (100, 20), (200, 40)]
    assert swept("5a", "f") == [(20,), (25,), (30,), (35,), (40,), (45,)]
    assert swept("4a", "steps") == [(1,), (2,), (5,), (10,)]
    with pytest.raises(ValueError, match=r"whole numbers >= 1, got 2\.5"):
        cells_of("4a", values=(2.5,))
    for cell in cells_of("4b", values=(20.0,)):
        assert type(cell["clients"]) is int


def test_runs_that_differ_in_numbers_share_a_program():
    def programs(name):
        return {
            study._program_key({**cell, "seed": seed}, figures.VARIES)
            for cell in cells_of(name, rules=("Krum",), attacks=("Full",))
            for seed in range(2)
        }

    for name, number in {"2a-c": 6, "3a-c": 1, "4a": 4, "5a": 6, "5b": 1, "5c": 1}.items():
        assert len(programs(name)) == number, name


def test_poisoned_rounds():
    def mask(share, seed):
        return figures.poisoned_rounds({"poisoned": share, "rounds": 500, "seed": seed})

    masks = [np.asarray(mask(share, 0)) for share in (0.0, 0.2, 1.0)]
    assert [m.sum() for m in masks] == [0, 100, 500]
    assert masks[1].shape == (500,)
    assert not np.array_equal(mask(0.2, 1), masks[1])
    assert mask(None, 0) is None


@needs_mnist
def test_numbers_in_one_program(tmp_path, monkeypatch):
    """Fig. 5c in calls of two runs; then the same again, from the disk."""
    monkeypatch.setattr(figures, "RUNS_TOGETHER", 2)
    options = {"points": (0.0, 0.5, 1.0), "attacks": ("Full",)}
    folder, rows = smoke_figure(tmp_path, "5c", **options)
    assert [(r["poisoned"], r["rule"], r["attack"]) for r in rows] == [
        (0, "Median", "Full"), (0.5, "Median", "Full"), (1, "Median", "Full"),
    ]  # fmt: skip
    assert rows[0]["error"] != rows[2]["error"]
    about, _ = report.read_sweep(folder)
    assert about.x == "poisoned"
    assert about.command == (
        "python experiments/fang2020/figures.py --smoke --figure 5c --points 0.0 0.5 1.0 "
        "--attacks Full"
    )
    monkeypatch.setattr(study, "together", lambda *a, **k: None)  # nothing is left to run
    assert smoke_figure(tmp_path, "5c", **options)[1] == rows


@needs_mnist
def test_directions_one_run_after_the_other(tmp_path, monkeypatch):
    """As for the DNN, but with a model that compiles faster."""
    small = fang_setting.SETTINGS["2a"]._replace(small=False)
    monkeypatch.setitem(fang_setting.SETTINGS, "2b", small)
    folder, rows = smoke_figure(tmp_path, "directions", rounds=2)
    assert [(r["workers"], r["parameters"]) for r in rows] == [("20", "all"), ("20", "moving")]
    assert 0 < rows[1]["share"] < rows[0]["share"] < 1
    assert not list((folder / "checkpoints").glob("*"))
    assert report.read_table(folder)[0].value == "share"


def test_all_published_settings_are_on_record():
    """Also what a command does not say, because it was the default."""
    for path in (PAPER / "results").rglob("about.json"):
        settings = json.loads(path.read_text())["settings"]
        assert {"rounds", "learning_rate"} <= {*settings}, path
