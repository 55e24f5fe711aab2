"""The arena: smoke mode, order, what is possible, rules of one's own."""

import dataclasses
import os
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import fedjax_robust as fr
from fedjax_robust import aggregators, models, report, study

PAPER = Path(__file__).parents[2] / "experiments" / "arena"
sys.path.insert(0, str(PAPER))
import arena
import arena_report
from arena import ATTACKS, RULES, SETTINGS, Args

needs_mnist = pytest.mark.skipif(
    not list(Path(os.environ.get("FEDJAX_ROBUST_DATA", "/none")).glob("tfds/mnist/*")),
    reason="MNIST is not there; set FEDJAX_ROBUST_DATA to the folder that holds it",
)


def test_help(capsys, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["arena.py", "--help"])
    with pytest.raises(SystemExit):
        study.main(Args, arena.main)
    assert "--malicious" in capsys.readouterr().out


def test_cells_are_all_pairs_that_are_possible():
    cells = arena.cells_of(Args())
    rules, attacks = len(RULES) - len(arena.SLOW), len(ATTACKS) - len(arena.ASKING)
    assert len(cells) == rules * attacks + len(arena.QUICK) * len(arena.ASKING)
    assert {*arena.SLOW, *arena.QUICK} <= {*RULES} and {*arena.ASKING} <= {*ATTACKS}
    assert {(cell["clients"], cell["malicious"], cell["rounds"]) for cell in cells} == {
        (100, 20, 500)
    }
    many = arena.cells_of(Args(malicious=30))
    assert {"Bulyan"} <= {*RULES} - {cell["rule"] for cell in many}  # 100 < 4 * 30 + 3
    for wrong in (
        Args(malicious=50),
        Args(malicious=-1),
        Args(rules=("Krumm",)),
        Args(attacks=("x",)),
    ):
        with pytest.raises(ValueError, match=r"--malicious must|there is no"):
            arena.cells_of(wrong)


def small() -> tuple[arena.At, jax.Array]:
    """What rules and attacks are made of, for 30 clients of which 6 are malicious, and a model."""
    rng = np.random.default_rng(0)
    root = {
        "x": jnp.asarray(rng.random((20, 6, 6, 1)), jnp.float32),
        "y": jnp.arange(20, dtype=jnp.int32) % 10,
    }
    task = fr.classification(models.SoftmaxRegression(10), root["x"][:1])
    cell = {"learning_rate": 0.1, "batch_size": 4, "clients": 30, "malicious": 6}
    return arena.at_of(cell, task, 10, root), task.init(jax.random.key(0))


@pytest.mark.parametrize("name", RULES)
def test_every_rule_can_be_made(name):
    """And traced on 30 clients' updates of the model's size."""
    at, params = small()
    rule = RULES[name](at)
    assert isinstance(rule, fr.Aggregator)
    received = fr.Received(
        jnp.zeros((30, len(params))), jnp.ones(30), jnp.arange(30), params, jax.random.key(0)
    )
    shapes = jax.eval_shape(lambda r: rule.aggregate(r, rule.init(30, params))[0], received)
    assert shapes.shape == params.shape


@pytest.mark.parametrize("name", ATTACKS)
def test_every_attack_can_be_made(name):
    assert isinstance(ATTACKS[name](small()[0]), fr.Attack)


def test_the_worst_case_decides_the_order():
    means = {("a", "none"): 0.1, ("a", "x"): 0.9, ("b", "none"): 0.3, ("b", "x"): 0.5}
    assert arena_report.worst_first(means) == ["b", "a"]
    knows = {"none": "partial", "x": "full", "y": "partial"}
    rows = [
        {"rule": rule, "attack": attack, "error": error}
        for (rule, attack), error in {**means, ("a", "y"): 0.25, ("a", "z"): 0.2}.items()
    ]
    means = {(row["rule"], row["attack"]): row["error"] for row in rows}
    worst = arena_report.worst_rows(rows, means, {**knows, "z": "partial"})
    assert {(r["rule"], r["case"]): r["attack"] for r in worst} == {
        ("a", "no attack"): "none",
        ("b", "no attack"): "none",
        ("a", "worst, partial knowledge"): "y",
        ("a", "worst, full knowledge"): "x",
        ("b", "worst, full knowledge"): "x",
    }


@needs_mnist
def test_smoke_with_a_rule_of_ones_own(tmp_path, monkeypatch):
    monkeypatch.setitem(RULES, "mine", lambda at: aggregators.trimmed_mean(at.f))
    args = Args(smoke=True, out=tmp_path, rules=("mean", "mine"), attacks=("none", "label flip"))
    arena.main(dataclasses.replace(args, costs=True))
    arena.main(args)
    folder = tmp_path / "mnist-lr-6-smoke"
    about, rows = report.read_table(folder)
    assert {(row["rule"], row["attack"]) for row in rows} == {
        (rule, attack) for rule in ("mean", "mine") for attack in ("none", "label flip")
    }
    assert {row["knowledge"] for row in rows} == {"partial"}
    assert about.settings["malicious"] == 6
    for name in ("table.md", "heat_map.png", "costs.csv"):
        assert (folder / name).stat().st_size > 0
    assert "| mine" in (tmp_path / "mnist-lr-6-smoke-worst" / "table.md").read_text()


def test_settings_have_models():
    assert {setting.model for setting in SETTINGS.values()} <= {*arena.MODELS}
