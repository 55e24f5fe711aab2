"""Studies: what is run, resumed, shared and named; runs in one program, and one after the other."""

import dataclasses
import json
import warnings
from pathlib import Path
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import fedjax_robust as fr
from fedjax_robust import report, study
from fedjax_robust.data import partition


def made(folder, calls=None, **options):
    """Two cells times three seeds; a result is 10 * cell + seed, and ``calls`` records the calls."""

    def program(cell):
        def compute(runs):
            if calls is not None:
                calls.append([(run["a"], run["seed"]) for run in runs])
            return [{"error": 10 * run["a"] + run["seed"]} for run in runs]

        return compute

    usual = {"cells": study.grid({"b": 0.5}, a=[1, 2]), "keys": ("a",), "seeds": (0, 1, 2)}
    return study.Study(folder, program=program, **{**usual, **options})


def test_grid():
    assert study.grid({"x": 1}, a=["p", "q"], b=[3, 4]) == [
        {"x": 1, "a": "p", "b": 3},
        {"x": 1, "a": "p", "b": 4},
        {"x": 1, "a": "q", "b": 3},
        {"x": 1, "a": "q", "b": 4},
    ]
    assert study.grid({"x": 1}) == [{"x": 1}]
    assert study.grid(a=[]) == []


def test_shares_are_disjoint_and_together_all():
    cells = list("abcdefg")
    shares = [study.share(cells, f"{i}/3") for i in (1, 2, 3)]
    assert shares == [["a", "d", "g"], ["b", "e"], ["c", "f"]]
    assert study.share(cells, None) == cells
    assert study.share(cells[:1], "2/2") == []


@pytest.mark.parametrize(
    "part", ["0/3", "4/3", "3", "1/0", "a/b", "", "1/3/5", "-1/3", " 1/3", "١/٣"]
)
def test_shares_that_are_none(part):
    with pytest.raises(ValueError, match="--cell needs i/N"):
        study.share([], part)


def test_rows_are_settings_results_and_origin(tmp_path):
    rows = study.run(made(tmp_path))
    assert [(row["a"], row["b"], row["seed"], row["error"]) for row in rows] == [
        (1, 0.5, 0, 10), (1, 0.5, 1, 11), (1, 0.5, 2, 12),
        (2, 0.5, 0, 20), (2, 0.5, 1, 21), (2, 0.5, 2, 22),
    ]  # fmt: skip
    for row in rows:
        assert row["seconds"] >= 0
        assert row["jax_version"] == jax.__version__
        assert row["fedjax_robust_version"] == fr.__version__


def test_progress_has_mean_and_sample_deviation(tmp_path, capsys):
    study.run(made(tmp_path, values=("error", "absent")))
    printed = capsys.readouterr().out
    assert "error 11.000 +- 1.000" in printed
    assert "error 21.000 +- 1.000" in printed
    study.run(made(tmp_path / "one", seeds=(2,)))
    assert "error 12.000\n" in capsys.readouterr().out


def test_it_goes_on_at_the_first_missing_run(tmp_path):
    calls = []

    def killed(cell):
        def compute(runs):
            for run in runs:
                calls.append((run["a"], run["seed"]))
                if len(calls) == 5:
                    raise KeyboardInterrupt
                yield {"error": run["seed"]}

        return compute

    with pytest.raises(KeyboardInterrupt):
        study.run(made(tmp_path)._replace(program=killed))
    assert calls == [(1, 0), (1, 1), (1, 2), (2, 0), (2, 1)]
    study.run(made(tmp_path)._replace(program=killed))
    assert calls[5:] == [(2, 1), (2, 2)], "the killed run and what follows it, nothing else"
    study.run(made(tmp_path)._replace(program=killed))
    assert len(calls) == 7


def test_rows_of_fresh_and_of_stored_runs_are_equal(tmp_path):
    def program(cell):
        return lambda runs: [
            {"error": np.float32(0.1), "curve": np.arange(2), "p": (1, 2)} for _ in runs
        ]

    fresh = study.run(made(tmp_path)._replace(program=program))
    assert fresh == study.run(made(tmp_path)._replace(program=None))
    assert fresh[0]["curve"] == [0, 1]


def test_a_damaged_run_is_computed_again(tmp_path):
    study.run(made(tmp_path))
    (tmp_path / "cells" / "a=2,seed=1.json").write_text("{")
    calls = []
    with pytest.warns(RuntimeWarning, match="damaged"):
        rows = study.run(made(tmp_path, calls))
    assert calls == [[(2, 1)]]
    assert rows[4]["error"] == 21


def test_other_settings_are_refused(tmp_path):
    study.run(made(tmp_path))
    with pytest.raises(ValueError, match=r"other settings.*b: 0\.5 in the file, 0\.25 now"):
        study.run(made(tmp_path, cells=study.grid({"b": 0.25}, a=[1, 2])))


def test_two_machines_share_a_study(tmp_path, capsys):
    calls = []
    assert study.run(made(tmp_path, calls), "1/2") is None
    assert "share 1/2 is in" in capsys.readouterr().out
    assert study.run(made(tmp_path, calls), "2/2") is None
    assert calls == [[(1, 0), (1, 1), (1, 2)], [(2, 0), (2, 1), (2, 2)]]
    rows = study.run(made(tmp_path)._replace(program=None))  # everything is on disk
    assert [row["error"] for row in rows] == [10, 11, 12, 20, 21, 22]


def test_what_varies_shares_a_program(tmp_path):
    """Runs that differ in ``a`` alone: one program, calls of four runs, the last one filled up."""
    programs, calls = [], []
    usual = made(tmp_path, calls, varies=("a",), at_once=4)

    def program(cell):
        programs.append(cell)
        return usual.program(cell)

    rows = study.run(usual._replace(program=program))
    assert programs == [{"b": 0.5}]
    assert calls == [[(1, 0), (1, 1), (1, 2), (2, 0)], [(2, 1), (2, 2), (2, 2), (2, 2)]]
    assert [row["error"] for row in rows] == [10, 11, 12, 20, 21, 22]


def test_settings_that_are_equal_numbers_of_other_types_are_other_programs(tmp_path):
    programs = []

    def program(cell):
        programs.append(cell)
        return lambda runs: [{"error": 0}] * len(runs)

    cells = [{"a": i, "x": x} for i, x in enumerate((1, 1.0, True))]
    study.run(study.Study(tmp_path, cells, ("a",), program))
    assert len(programs) == 3


def test_threads_give_the_same_rows(tmp_path):
    cells = study.grid({}, a=range(20))
    one, several = (
        study.run(made(tmp_path / str(jobs), cells=cells, jobs=jobs)) for jobs in (1, 4)
    )
    assert [(r["a"], r["seed"], r["error"]) for r in one] == [
        (r["a"], r["seed"], r["error"]) for r in several
    ]


def test_contexts_reach_the_programs(tmp_path):
    def program(cell):
        return lambda runs: [{"error": jnp.zeros(1, float).dtype.itemsize} for _ in runs]

    with jax.enable_x64(True):
        assert study.run(made(tmp_path)._replace(program=program))[0]["error"] == 8


def test_an_error_in_one_thread_ends_the_study(tmp_path):
    def program(cell):
        def compute(runs):
            if cell["a"] == 0:
                raise RuntimeError("no luck")
            return [{"error": 1}] * len(runs)

        return compute

    cells = study.grid({}, a=range(20))
    with pytest.raises(RuntimeError, match="no luck"):
        study.run(made(tmp_path, cells=cells, jobs=2)._replace(program=program))


def test_what_a_study_refuses(tmp_path):
    def refuse(message, **options):
        with pytest.raises((ValueError, TypeError), match=message):
            study.run(made(tmp_path, **options))
        assert not (tmp_path / "cells").exists()

    refuse("at least one cell", cells=[])
    refuse("at least one cell and one seed", seeds=())
    refuse("no seed of their own", cells=[{"a": 1, "seed": 0}])
    refuse(r"lacks the keys \['a'\]", cells=[{"b": 1}])
    refuse("several runs have the name 'b=0.5,seed=0'", keys=("b",))
    refuse("several runs have the name", cells=[{"a": "x y"}, {"a": "x_y"}])
    refuse("several runs have the name", seeds=(0, 0))
    refuse("jobs", jobs=0)
    refuse("at_once", at_once=0)


def test_a_program_that_returns_too_few_results(tmp_path):
    short = made(tmp_path)._replace(program=lambda cell: lambda runs: [{"error": 1}])
    with pytest.raises(ValueError, match="shorter"):
        study.run(short)


def test_names_of_runs():
    run = {"rule": "Krum + LFR", "p": 0.1, "n": 10, "seed": 3}
    assert study.run_name(run, ("rule", "p", "n")) == "rule=Krum_+_LFR,p=0.1,n=10,seed=3"
    assert study.run_name({"seed": 0}, ()) == "seed=0"
    assert "/" not in study.run_name({"a": "../../x", "seed": 0}, ("a",))


# --- Programs ------------------------------------------------------------------------------------

POOL = {
    "x": jnp.asarray(np.random.default_rng(0).normal(size=(60, 3)), jnp.float32),
    "y": jnp.asarray(np.random.default_rng(1).integers(0, 2, 60)),
}
TASK = fr.classification(fr.models.SoftmaxRegression(2), POOL["x"][:1])


def inputs(run):
    return {
        "data": partition.by_group(study.key(1, run["seed"]), POOL, 6, run["p"], 2),
        "test": POOL,
        "scale": np.float32(run["seed"]),
    }


def plan(cell, given):
    client = fr.local_sgd(TASK, cell["step"], 4)
    attack = fr.attacks.no_attack()
    sim = fr.Simulation(TASK, client, fr.aggregators.mean(), attack, num_malicious=0)
    evaluate = fr.metrics.test_error(TASK, given["test"])
    return study.Plan(sim, given["data"], 4, evaluate, 2)


def measure(history):
    return {**study.errors(history), "curve": history["test_error"]}


CELLS = study.grid({}, p=[0.5, 0.9], step=[0.1, 1.0])


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """Each run by itself, the plain way."""
    errors = []
    for cell in CELLS:
        for seed in range(2):
            at = plan(cell, inputs({**cell, "seed": seed}))
            _, history = fr.run(
                at.sim, jax.random.key(seed), at.data, at.rounds, evaluate=at.evaluate,
                evaluate_every=at.every,
            )  # fmt: skip
            errors.append(np.asarray(history["test_error"]).tolist())
    return errors


def test_together_is_each_run_alone(tmp_path, alone):
    """All in one program, with traced steps, partitions of several widths, and the pool held once."""
    widths = {inputs({"seed": s, "p": c["p"]})["data"][1].shape for s in range(3) for c in CELLS}
    assert len(widths) > 1
    program = study.together(plan, inputs, measure, numbers=("step",))
    mine = study.Study(tmp_path, CELLS, ("p", "step"), program, range(2), varies=("p", "step"))
    rows = study.run(mine._replace(at_once=3))
    np.testing.assert_allclose([row["curve"] for row in rows], alone, atol=1e-6)
    assert [row["error"] for row in rows] == [row["curve"][-1] for row in rows]
    assert [row["best_error"] for row in rows] == [min(row["curve"]) for row in rows]
    shared, own, _ = study._split([inputs({"seed": s, "p": 0.5}) for s in range(2)])
    assert {leaf.shape for leaf in shared} == {(60, 3), (60,)}
    assert all(len(leaf) == 2 for leaf in own)


def test_one_by_one_is_each_run_alone(tmp_path, alone):
    keys = ("p", "step")
    program = study.one_by_one(plan, inputs, measure, tmp_path, keys)
    rows = study.run(study.Study(tmp_path, CELLS, keys, program, range(2)))
    assert [row["curve"] for row in rows] == alone
    assert not list((tmp_path / "checkpoints").glob("*")), "removed with the finished run"


def test_a_plan_must_not_use_what_varies(tmp_path):
    """Otherwise all runs would silently have the first one's value."""
    program = study.together(plan, inputs, measure)
    mine = study.Study(tmp_path, CELLS, ("p", "step"), program, varies=("p", "step"))
    with pytest.raises(KeyError, match="step"):
        study.run(mine)


def test_inputs_of_one_program_need_equal_shapes(tmp_path):
    def ragged(run):
        return {**inputs(run), "extra": np.zeros(1 + run["seed"])}

    program = study.together(plan, ragged, measure)
    with pytest.raises(ValueError, match=r"equal shapes, got \[\(1,\), \(2,\)\]"):
        study.run(study.Study(tmp_path, CELLS[:1], ("p", "step"), program, range(2)))


def test_each():
    first, second = study.each(lambda x, y: (x + y["a"], x), (jnp.arange(3), {"a": jnp.ones(3)}))
    assert first.tolist() == [1, 2, 3]
    assert second.tolist() == [0, 1, 2]


def test_rounds_that_are_evaluated():
    assert study.evaluated(10, 4).tolist() == [4, 8, 10]
    assert study.evaluated(8, 4).tolist() == [4, 8]
    assert study.evaluated(3, 4).tolist() == [3]


def test_malicious_selected():
    malicious = np.array([[True, False], [True, False], [False, True], [True, True]])
    selected = np.array([[True, False], [False, True], [True, True], [False, False]])
    found = study.malicious_selected({"malicious": malicious, "selected": selected})
    assert found == {"malicious_selected": 0.5}
    assert study.malicious_selected({"malicious": malicious}) == {}


# --- Command line --------------------------------------------------------------------------------


@dataclasses.dataclass
class Args(study.Args):
    """Options of a script."""

    table: Literal["1", "2"] = "1"
    rules: tuple[Literal["Krum", "Trimmed mean"], ...] = ()
    rate: float = 0.1


def test_command_and_settings(tmp_path):
    (tmp_path / "pyproject.toml").write_text("")
    script = tmp_path / "experiments" / "a.py"
    args = Args(table="2", rules=("Trimmed mean",), smoke=True, data_dir=tmp_path, cell="1/2")
    assert study.command(script, args) == (
        "python experiments/a.py --smoke --table 2 --rules 'Trimmed mean'"
    )
    rows = [
        {"rule": "Krum", "rounds": 4, "seconds": 1.0, "git_commit": "a", "error": i} for i in (1, 2)
    ]
    assert study.settings(args, rows, extra=[1]) == {
        "seeds": None, "rounds": 4, "smoke": True, "table": "2", "rules": ("Trimmed mean",), "rate": 0.1,
        "rule": "Krum", "extra": [1],
    }  # fmt: skip


def run_main(monkeypatch, *words):
    given = []
    monkeypatch.setattr(study, "use_compilation_cache", lambda: None)
    monkeypatch.setattr("sys.argv", ["a.py", *words])
    study.main(Args, given.append)
    return given[0]


def test_main(monkeypatch, capsys):
    args = run_main(monkeypatch, "--seeds", "2", "--rules", "Krum", "--out", "x")
    assert (args.seeds, args.rules, args.out) == (2, ("Krum",), Path("x"))
    for words in (("--rules", "None"), ("--table", "3"), ("--help",)):
        with pytest.raises(SystemExit):
            run_main(monkeypatch, *words)
    assert "--rate" in capsys.readouterr().out
    for words in (("--seeds", "0"), ("--rounds", "-1"), ("--cell", "3/2")):
        with pytest.raises(ValueError, match=words[0].strip("-")):
            run_main(monkeypatch, *words)


def test_a_cache_that_others_can_write_is_not_used(tmp_path, monkeypatch):
    """Compiled programs are run as code."""
    used = []
    monkeypatch.delenv("JAX_COMPILATION_CACHE_DIR", raising=False)
    monkeypatch.setattr(jax.config, "update", lambda name, value: used.append(value))
    monkeypatch.setenv("FEDJAX_ROBUST_CACHE", str(tmp_path / "own"))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        study.use_compilation_cache()
    assert used == [str(tmp_path / "own" / "compiled")]
    for folder in (tmp_path / "own", tmp_path / "own" / "compiled"):
        folder.chmod(0o777)
        with pytest.warns(RuntimeWarning, match="others may write there"):
            study.use_compilation_cache()
        folder.chmod(0o700)
    assert len(used) == 1


def test_a_study_makes_a_table(tmp_path):
    """From rows to ``about.json`` and back."""
    rows = study.run(made(tmp_path))
    report.write_table(
        tmp_path, rows, {("1", "0.5"): 11}, title="T", command="c", line="a", columns="b",
        settings=study.settings(Args(), rows),
    )  # fmt: skip
    about, back = report.read_table(tmp_path)
    assert about.settings["b"] == 0.5
    assert about.settings["rate"] == 0.1
    assert [float(row["error"]) for row in back] == [10, 11, 12, 20, 21, 22]
    assert json.loads((tmp_path / "about.json").read_text())["kind"] == "table"
