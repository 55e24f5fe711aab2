"""The scripts of Wu et al.'s tables: smoke mode, resuming, printed numbers, published rows."""

import csv
import os
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fedjax_robust import attacks, metrics, repairs, report, study
from fedjax_robust.types import FederatedData

PAPER = Path(__file__).parents[2] / "experiments" / "wu2020"
sys.path.insert(0, str(PAPER))
import choices
import pruning
import wu_printed
import wu_repair
import wu_setting
import wu_tables
from pruning import Args

needs_mnist = pytest.mark.skipif(
    not list(Path(os.environ.get("FEDJAX_ROBUST_DATA", "/none")).glob("tfds/mnist/*")),
    reason="MNIST is not there; set FEDJAX_ROBUST_DATA to the folder that holds it",
)


@pytest.mark.parametrize(
    ("script", "option"), [(pruning, "--part"), (choices, "--attackers-steps")]
)
def test_help(script, option, capsys, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["script", "--help"])
    with pytest.raises(SystemExit):
        study.main(script.Args, script.main)
    assert option in capsys.readouterr().out


def test_printed_averages():
    """The averages that the paper's text states of its tables, and its counts of Table II."""
    stages = ("trained", "RV + AW", "FT + AW")
    four = wu_printed.fractions(wu_printed.TABLE_4, stages)
    means = [
        four["average", f"{wu_printed.STAGES[stage]}, {what}"]
        for stage in stages
        for what in ("test", "attack")
    ]
    np.testing.assert_allclose(means, [0.983, 0.997, 0.944, 0.084, 0.969, 0.047], atol=6e-4)
    stages = ("trained", "RV", "RV + AW", "FT + AW")
    five = wu_printed.fractions(wu_printed.TABLE_5, stages)
    assert five["average", "pruned + AW, attack"] == pytest.approx(0.019, abs=6e-4)
    assert five["average", "fine-tuned + AW, test"] == pytest.approx(0.864, abs=6e-4)
    six = wu_printed.fractions(wu_printed.TABLE_6, stages)
    assert six["average", "trained, attack"] == pytest.approx(0.876, abs=6e-4)
    assert six["average", "pruned + AW, attack"] == pytest.approx(0.130, abs=6e-4)
    three = wu_printed.fractions(wu_printed.TABLE_3, ("AW",), (2,))
    assert three["average", "AW alone, attack"] == pytest.approx(0.032, abs=6e-4)
    two = wu_printed.fractions(wu_printed.TABLE_2, ("trained", "RV", "MV"), (4, 7))
    for vote, count in (("ranking vote", 5), ("majority vote", 7)):
        column = [
            value
            for (line, name), value in two.items()
            if name == f"{vote}, attack" and line != "average"
        ]
        assert len(column) == 18 and sum(value < 0.1 for value in column) == count


def test_averages_are_of_each_seed():
    """Over the lines of a seed; shown only if all lines of the paper are there."""
    results = [
        {"victim": v, "target": 9, "seed": seed, "RV": {"test": 0.9, "attack": a, "number": 3}}
        for v, seed, a in ((0, 0, 0.2), (1, 0, 0.6), (0, 1, 1.0), (1, 1, 0.8))
    ]
    rows = wu_tables.table_rows(results, ("RV",), wu_tables.pair_name)
    means = {(row["seed"], row["column"]): row["value"] for row in rows if row["line"] == "average"}
    assert means[0, "ranking vote, attack"] == pytest.approx(0.4)
    assert means[1, "ranking vote, attack"] == pytest.approx(0.9)
    assert means[1, "ranking vote, test"] == pytest.approx(0.9)


def test_what_stops_aw():
    """By hand: the trained model has .97; the steps of two pairs cost 0, 1.5, 1.5 and 0, .8, 4 points."""
    curves = {
        0: {"validation": [0.97, 0.955, 0.94], "attack": [1.0, 0.4, 0.0]},
        1: {"validation": [0.97, 0.962, 0.922], "attack": [0.8, 0.6, 0.2]},
    }
    results = [
        {"victim": 9, "target": target, "seed": 0, "RV prefixes": {"validation": [0.97, 0.1]}}
        | {"deltas": [4.0, 3.0, 2.5]}
        | {f"{stage} deltas": curve for stage in ("AW", "RV + AW", "FT + AW")}
        | {stage: {"delta": (4.0, 3.0)[target]} for stage in ("AW", "RV + AW", "FT + AW")}
        for target, curve in curves.items()
    ]
    results[1]["FT + AW"] = {"delta": float("inf")}  # none would do: the first one here
    rows = wu_tables.stopping_rows(results)
    got = {(row["AW stops"], row["column"]): row["value"] for row in rows}
    expected = {
        ("a step costs > 0.01", "AW alone, attack"): (1.0 + 0.6) / 2,
        ("a step costs > 0.01", "fine-tuned + AW, attack"): (1.0 + 0.8) / 2,
        ("Delta = 3", "pruned + AW, validation"): (0.955 + 0.962) / 2,
        ("Delta = 2.5", "AW alone, attack"): (0.0 + 0.2) / 2,
        ("accuracy < trained - 0.01", "AW alone, attack"): (1.0 + 0.6) / 2,
        ("accuracy < trained - 0.02", "AW alone, attack"): (0.4 + 0.6) / 2,
        ("accuracy < trained - 0.04", "AW alone, attack"): (0.0 + 0.6) / 2,
        ("accuracy < trained - 0.05", "AW alone, validation"): (0.94 + 0.922) / 2,
    }
    for key, value in expected.items():
        assert got[key] == pytest.approx(value), key


@pytest.fixture(scope="module")
def pairs(tmp_path_factory):
    """Two pairs in one call, with their models, and how often the run was traced."""
    out, traced = tmp_path_factory.mktemp("wu2020"), []
    args = Args(pairs=("9-0", "0-9"), together=2, out=out, smoke=True, keep_models=True)
    with pytest.MonkeyPatch.context() as patch:
        one = wu_repair.attacked_and_repaired
        patch.setattr(wu_repair, "attacked_and_repaired", lambda *a: (traced.append(1), one(*a))[1])
        pruning.main(args)
    return out, args, traced


def stored(args, victim, target):
    """A run's settings and what is on disk of it."""
    inputs, keys = pruning.load(args), pruning.keys_of(args.part)
    (cell,) = pruning.cells_of(args, inputs, victim, target)
    run = {**cell, "seed": 0}
    folder = pruning.folder_of(args)
    result = report.load_cell(folder, study.run_name(run, keys), run)
    return inputs, run, result, wu_setting.model_file(folder, run, keys)


@needs_mnist
def test_pairs_share_a_program_and_every_part_writes_its_tables(pairs, monkeypatch, tmp_path):
    """Two pairs in one call; the other parts show the same results under their own names."""
    out, args, traced = pairs
    assert len(traced) == 1
    folder = out / "pairs-smoke"
    about, rows = report.read_table(folder / "table2")
    assert about.paper["9-1", "ranking vote, attack"] == pytest.approx(0.004)
    assert about.settings["attackers_steps"] == 1 and about.settings["alpha"] == 3.0
    assert {row["pair"] for row in rows} == {"9-0", "0-9"}
    assert all(0 <= float(row["value"]) <= 1 for row in rows)
    assert "neurons pruned" in about.notes.lower()
    for name in ("table4", "aw-alone", "stopping"):
        _, rows = report.read_table(folder / name)
        assert all(row["jax_version"] == jax.__version__ for row in rows)
    for name in ("figure4", "figure5"):
        about, rows = report.read_sweep(folder / name)
        assert {row["measure"] for row in rows} == {"validation", "attack"}
        assert all(row["jax_version"] == jax.__version__ for row in rows)
    runs = report.read_rows(folder / "table2" / "runs")
    assert [(row["victim"], row["target"]) for row in runs] == [(9, 0), (0, 9)]
    assert all(row["learning_rate"] == 0.1 and 0 <= row["FT, test"] <= 1 for row in runs)

    result = stored(args, 9, 0)[2]

    def as_if(the_study, part):
        return [{**cell, **result, "seed": 0} for cell in the_study.cells]

    monkeypatch.setattr(study, "run", as_if)
    tables = {
        "patterns": ("table1", {"1", "3"}),
        "concise": ("table3", {"9-0"}),
        "adaptive": (
            "adaptive",
            {
                "no counter-attack, 9-0",
                "reversed rankings, 9-0",
                "pruning-aware, 9-0",
                "self-clipping, 9-0",
            },
        ),
    }
    for part, (name, lines) in tables.items():
        pruning.main(Args(part=part, out=tmp_path, smoke=True))
        about, rows = report.read_table(tmp_path / f"{part}-smoke" / name)
        assert {row[about.line] for row in rows} == lines
    figures = {
        "labels": ("figure3", {"3 labels", "5 labels"}),
        "selected": ("figure7", {"5 of 50", "10 of 50"}),
        "l2": ("figure8", {"lambda 0", "lambda 0.01"}),
    }
    for part, (name, lines) in figures.items():
        pruning.main(Args(part=part, out=tmp_path, smoke=True))
        _, rows = report.read_sweep(tmp_path / f"{part}-smoke" / name)
        assert {row["line"] for row in rows} == lines


@needs_mnist
def test_a_finished_part_is_read(pairs, monkeypatch, tmp_path):
    _, args, _ = pairs
    monkeypatch.setattr(wu_repair, "attacked_and_repaired", None)  # everything is on disk
    pruning.main(args)
    *_, file = stored(args, 9, 0)
    file.rename(tmp_path / file.name)
    with pytest.raises(TypeError):  # a model that is to be kept is not: its run is due again
        pruning.main(args)


@needs_mnist
def test_kept_models_and_the_choices_made_on_them(pairs, tmp_path, monkeypatch):
    out, args, _ = pairs
    inputs, run, result, file = stored(args, 0, 9)
    assert len(result["keep"]) == len(result["RV prefixes"]["attack"]) == 50
    models = np.load(file)
    test = inputs.test
    for name, stage in (("trained", "trained"), ("pruned", "RV"), ("fine_tuned", "FT")):
        right = metrics.predict(inputs.task, jnp.asarray(models[name]), test["x"]) == test["y"]
        assert float(jnp.mean(right)) == pytest.approx(result[stage]["test"])

    # The choices that were made in the run itself give its numbers.
    monkeypatch.setattr(choices, "DELTA", 1.5)  # two rounds leave no weight beyond 3 sigma
    monkeypatch.setattr(choices, "OWN", 31)  # 3.1 of 310 is a fall of 0.01
    choices.main(choices.Args(pairs=("0-9",), out=out, smoke=True))
    folder = out / "choices-pairs-smoke" / "pruning"
    tried = {row["choice"]: row for row in report.read_rows(folder / "runs")}
    assert len(tried) == 17
    for choice, stage in (
        ("ranking vote, after the ReLU", "RV"),
        ("majority vote, 50%, after the ReLU", "MV"),
        ("the server's, pruned", "RV"),
        ("the server's, pruned + AW", "RV + AW"),
    ):
        for name in ("test", "attack", "number"):
            assert float(tried[choice][name]) == pytest.approx(result[stage][name]), (choice, name)
    # The others by their words: the layer's float64 weights beyond 1.5 deviations of which weights.
    kernel = np.asarray(inputs.layer.is_weight)
    whole, left = (np.float64(models[name])[kernel] for name in ("trained", "pruned"))
    numbers = set()
    for choice, weights in (
        ("neurons left", left[left != 0]),
        ("layer with its zeros", left),
        ("layer before pruning", whole),
    ):
        extreme = np.abs(left - weights.mean()) > 1.5 * weights.std()
        expected = np.sum(extreme & (left != 0))
        # a weight at the very edge may round to the other side in float32
        assert float(tried[f"of the {choice}"]["number"]) == pytest.approx(expected, abs=2)
        numbers.add(int(expected))
    assert min(numbers) > 10 and len(numbers) == 3
    # Clients' accuracies on their first 31 images, neuron by neuron; client 0 says 1, then 0.
    trained = jnp.asarray(models["trained"])
    now = wu_setting.numbers(inputs, run)
    data = FederatedData(inputs.pool, now.rows, now.sizes)
    order = repairs.ranking_vote(
        repairs.ranks(repairs.client_activations(inputs.layer, trained, data))
    )
    rows = [np.asarray(now.rows[i, : min(int(now.sizes[i]), 31)]) for i in range(10)]
    x, y = (inputs.pool[name][np.concatenate(rows)] for name in ("x", "y"))

    @jax.jit
    def right_without(number):
        keep = jnp.ones(50, bool).at[order].set(jnp.arange(50) >= number)
        params = repairs.with_neurons(inputs.layer, trained, keep)
        return metrics.predict(inputs.task, params, x) == y

    ends = np.cumsum([len(own) for own in rows])[:-1]
    shares = [
        [part.mean() for part in np.split(np.asarray(right_without(number)), ends)]
        for number in range(50)
    ]
    said = np.array(shares)
    lied = said.copy()
    lied[:, 0] = np.where(said[:, 0] < said[0, 0], 0, 1)
    for whose, values in (("the clients'", said), ("the clients', one lies", lied)):
        falls = values.mean(1)[:-1] - values.mean(1)[1:]
        assert np.min(np.abs(falls - 0.01)) > 1e-6
        expected = np.argmax(falls > 0.01)
        assert float(tried[f"{whose}, pruned"]["number"]) == expected, whose
    with pytest.raises(ValueError, match="no model of pair 9-1, seed 0"):
        choices.main(choices.Args(pairs=("9-1",), out=out, smoke=True))
    with pytest.raises(ValueError, match=r"alpha: 3\.0 in the file, 6\.0 now"):
        choices.main(choices.Args(pairs=("0-9",), alpha=6.0, out=out, smoke=True))
    with pytest.raises(ValueError, match=r"attackers_steps: 1 in the file, 2 now"):
        choices.main(choices.Args(pairs=("0-9",), attackers_steps=2, out=out, smoke=True))


@needs_mnist
def test_attackers_own_the_victim_label(tmp_path):
    args = Args(out=tmp_path)
    inputs = pruning.load(args)
    assert len(inputs.pool["y"]) == 58_000 and len(inputs.validation["y"]) == 2000
    for victim in (0, 7, 9):
        (cell,) = pruning.cells_of(args, inputs, victim, 1)
        now = wu_setting.numbers(inputs, {**cell, "seed": 0})
        y = np.asarray(inputs.pool["y"])
        own = [y[row[:count]] for row, count in zip(now.rows, now.sizes, strict=True)]
        owners = [victim in labels for labels in own]
        assert owners[:3] == [True] * 3 and sum(owners) == 3
        assert all(len(np.unique(labels)) == 3 for labels in own)
        rows = np.asarray(now.are_victims)
        assert rows.sum() == np.sum(np.asarray(inputs.test["y"]) == victim)
    mask = np.arange(inputs.layer.channels) % 2 == 0
    run = {**cell, "seed": 0}
    aware = wu_setting.numbers(inputs, {**run, "against": "pruning"}, mask)
    np.testing.assert_array_equal(aware.attackers_keep, mask)
    assert np.all(wu_setting.numbers(inputs, {**run, "against": "ranks"}, mask).attackers_keep)


def test_mistakes_are_refused(tmp_path):
    with pytest.raises(ValueError, match="1, 3, 5, 7 or 9, got 2"):
        pruning.main(Args(pixels=2, out=tmp_path))
    for name in ("alpha", "learning_rate", "momentum"):
        with pytest.raises(ValueError, match=f"{name}.*nan"):
            pruning.main(Args(**{name: np.nan}, out=tmp_path))
    for bad in ((0.5, 0.0), (np.nan, 1.0), (0.0, np.inf)):
        with pytest.raises(ValueError, match="--normalization needs two finite numbers"):
            pruning.main(Args(normalization=bad, out=tmp_path))
    with pytest.raises(ValueError, match="--width is of"):
        pruning.main(Args(width=(8, 8), out=tmp_path))
    for part in ("patterns", "cifar10"):
        with pytest.raises(ValueError, match="triggers of its own"):
            pruning.main(Args(part=part, pixels=5, out=tmp_path))
    for name in ("seeds", "rounds", "together", "steps", "attackers_steps", "batch_size"):
        with pytest.raises(ValueError, match=rf"{name} >= 1, got {name}=0"):
            pruning.main(Args(**{name: 0}, out=tmp_path))
    with pytest.raises(ValueError, match="seeds >= 1, got seeds=0"):
        choices.main(choices.Args(seeds=0, out=tmp_path))
    run = {"victim": 9, "target": 0, "against": "pruning", "seed": 0}
    with pytest.raises(ValueError, match="which another --cell computes"):
        pruning.final_mask(tmp_path, run, ("victim", "target", "against"))
    assert pruning.final_mask(tmp_path, {**run, "against": "AW"}, ()) is None
    for bad in ("9", "9-9", "x-1", "9-10"):
        with pytest.raises(ValueError, match="victim-target"):
            wu_setting.chosen_pairs((bad,), ())


def test_folders_say_what_differs():
    def name(**options):
        return pruning.folder_of(Args(**options)).name

    assert name() == "pairs"
    assert name(attackers_steps=200, rounds=100, alpha=3.0) == "pairs"  # as in the setting
    assert name(attackers_steps=20, alpha=6.0) == "pairs-attackers-steps-20-alpha-6"
    assert name(part="cifar10", rounds=150, width=(16, 32)) == "cifar10-rounds-150-width-16-32"
    assert name(normalization=(0.0, 1.0), before_relu=True) == "pairs-normalization-0-1-before-relu"
    assert name(drop=0.02, smoke=True) == "pairs-smoke"


@needs_mnist
def test_a_smoke_run_takes_one_step_unless_told(tmp_path):
    at = pruning.load(Args(steps=3, out=tmp_path, smoke=True)).setting
    assert (at.steps, at.attackers_steps, at.rounds) == (3, 1, 2)


@needs_mnist
def test_images_and_triggers_are_normalized_alike(tmp_path):
    for change, low, high in (((0, 1), 0, 1), ((0.5, 0.25), -2, 2)):
        args = Args(normalization=change, out=tmp_path, smoke=True)
        inputs = pruning.load(args)
        for part in (inputs.pool, inputs.validation, inputs.test):
            assert (float(part["x"].min()), float(part["x"].max())) == (low, high)
        trigger, _ = wu_setting.triggers(inputs, wu_setting.cell(inputs))
        x = trigger(jnp.full((1, 28, 28, 1), low, jnp.float32))
        assert float(x.max()) == high and int(jnp.sum(x == high)) == 5
    pool = pruning.load(Args(out=tmp_path)).pool["x"]
    assert float(pool.mean()) == pytest.approx(0, abs=0.01)
    assert float(pool.std()) == pytest.approx(1, abs=0.01)


def test_every_network_sees_its_trigger():
    """Without padding, a pool of an odd height drops pixels near the corner."""
    for at in wu_setting.SETTINGS.values():
        side, channels = (32, 3) if at.distributed else (28, 1)
        pixels = attacks.backdoors.NINE_PIXELS
        if at.distributed:
            pixels = sum(attacks.backdoors.DBA_CIFAR_PIXELS, ())
        x = jax.random.normal(jax.random.key(0), (8, side, side, channels))
        module = at.model(10)
        params = module.init(jax.random.key(1), x)
        slopes = jax.grad(lambda x, m=module, p=params: jnp.sum(m.apply(p, x) ** 2))(x)
        seen = np.abs(np.asarray(slopes)).sum((0, 3)) > 0
        assert all(seen[pixel] for pixel in pixels), at.data


def test_the_papers_setting():
    at = wu_setting.MNIST
    module = at.model(10)
    shapes = jax.eval_shape(module.init, jax.random.key(0), np.zeros((1, 28, 28, 1)))["params"]
    assert shapes[at.layer]["kernel"].shape == (5, 5, 20, 50)
    concise = wu_setting.SETTINGS["concise"].model(10)
    shapes = jax.eval_shape(concise.init, jax.random.key(0), np.zeros((1, 28, 28, 1)))["params"]
    assert shapes[at.layer]["kernel"].shape == (5, 5, 8, 16)
    assert at.alpha == 3  # printed for Figure 8
    assert wu_setting.SETTINGS["cifar10"].malicious == 4


# --- What is published ---------------------------------------------------------------------------


def published(*names):
    with open(PAPER.joinpath("results", *names), newline="") as file:
        return list(csv.DictReader(file))


def test_published_tables_are_of_their_runs():
    """A table's rows, computed again from the rows of the runs beside it."""
    for part, table, stages in (
        ("pairs", "table2", {"ranking vote": "RV", "majority vote": "MV", "trained": "trained"}),
        ("concise", "table3", {"AW alone": "AW"}),
        ("fashion", "table5", {"fine-tuned + AW": "FT + AW"}),
    ):
        runs = {
            (f"{row['victim']}-{row['target']}", row["seed"]): row
            for row in published(part, table, "runs.csv")
        }
        for row in published(part, table, "rows.csv"):
            stage, _, what = row["column"].rpartition(", ")
            if stage in stages and row["pair"] != "average":
                run = runs[row["pair"], row["seed"]]
                assert float(run[f"{stages[stage]}, {what}"]) == float(row["value"])


def test_published_runs_have_their_settings():
    """Each is a run that the script would make now, but for what its folder's name says."""
    for folder in sorted((PAPER / "results").iterdir()):
        for file in folder.glob("*/runs.csv"):
            for row in published(folder.name, file.parent.name, "runs.csv"):
                if folder.name.startswith("choices"):
                    continue
                assert row["data"] and row["rounds"] and row["learning_rate"]
                steps = "20" if "attackers-steps-20" in folder.name else None
                steps = steps or ("20" if folder.name.startswith("cifar10") else "200")
                assert row["attackers_steps"] == steps, file
                assert float(row["alpha"]) == (1 if row["data"] == "cifar10" else 3), file
