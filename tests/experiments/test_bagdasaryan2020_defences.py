"""Bagdasaryan et al.'s Figures 9 and 12: smoke mode, resuming, what is reported."""

import os
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fedjax_robust import aggregators, privacy, report, study
from fedjax_robust.types import Received

PAPER = Path(__file__).parents[2] / "experiments" / "bagdasaryan2020"
sys.path.insert(0, str(PAPER))
import defences
from defences import Args

needs_mnist = pytest.mark.skipif(
    not list(Path(os.environ.get("FEDJAX_ROBUST_DATA", "/none")).glob("tfds/mnist/*")),
    reason="MNIST is not there; set FEDJAX_ROBUST_DATA to the folder that holds it",
)


def test_help(capsys, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["defences.py", "--help"])
    with pytest.raises(SystemExit):
        study.main(Args, defences.main)
    assert "--auror-threshold" in capsys.readouterr().out


def test_every_check_sees_the_same_updates():
    updates = jnp.array([[1.0, 0], [1, 0], [0, 1], [3, 4]])
    rules = {
        "no check": aggregators.mean(),
        "pairwise cosine": aggregators.sybil_check(0.9),
    }
    both = defences.every_check(rules)
    received = Received(
        updates, jnp.ones(4), jnp.arange(4), jnp.array([10.0, 20]), jax.random.key(0)
    )
    result, _, info = both.aggregate(received, both.init(4, received.params))
    np.testing.assert_allclose(result, [1.25, 1.25])
    np.testing.assert_allclose(info["norms"], [1, 1, 1, 5])
    np.testing.assert_allclose(info["no check: model"], [11.25, 21.25])
    np.testing.assert_allclose(info["pairwise cosine: model"], [11.5, 22.5])
    np.testing.assert_array_equal(info["pairwise cosine: selected"], [False, False, True, True])
    assert info["no check: selected"].all()


@needs_mnist
@pytest.mark.parametrize("figure", ["detection", "clipping"])
def test_smoke_and_resume(figure, tmp_path, monkeypatch):
    points = (0.02,) if figure == "detection" else ()
    args = Args(figure=figure, points=points, out=tmp_path, smoke=True)
    monkeypatch.setattr(defences, "ATTACKS", ("train-and-scale",))
    defences.main(args)
    about, rows = report.read_sweep(tmp_path / f"{figure}-smoke")
    panels = ("backdoor", "main", "caught", "honest rejected")
    measures = {
        "detection": [f"{panel}, train-and-scale" for panel in panels],
        "clipping": ["clipping"],
    }
    assert list(dict.fromkeys(row["measure"] for row in rows)) == measures[figure]
    assert all(0 <= float(row["value"]) <= 1 for row in rows)
    assert about.settings["participants"] == 100 and about.settings["data"] == "mnist"
    # A second run computes nothing.
    for name in ("detection_of", "private_of"):
        monkeypatch.setattr(defences, name, lambda *_: None)
    defences.main(args)


def test_what_is_spent():
    """Of the rows' rounds, bound and noise: all 100 clients in each round, each pair said once."""
    pytest.importorskip("dp_accounting")
    runs = [
        {"rounds": 30, "clipping": 5.0, "noise": noise, "seed": seed}
        for noise in (0.0, 0.1)
        for seed in (0, 1)
    ]
    text = defences.describe_privacy(runs)
    epsilon = privacy.privacy_spent(5.0, 0.1, 100, 100, 30, 1e-5)
    assert text.endswith(
        "epsilon for delta = 1e-05, neighbours that differ in one client's data, no sampling: inf at "
        f"S = 5, sigma = 0; {epsilon:.4g} at S = 5, sigma = 0.1."
    )
    assert "30 rounds" in text and "20% of them attack" in text


def test_rows_by_hand():
    values = {"backdoor": 0.5, "main": 0.75, "caught": 1.0, "honest rejected": 0.25}
    run = {"method": "replacement", "share": 0.1, "seed": 0, "bound": 2.0}
    rows = defences.detection_rows([run | {"checks": {"no check": values, "Auror": values}}])
    assert [(r["measure"], r["line"], r["value"]) for r in rows] == [
        (f"{panel}, replacement", check, value)
        for panel, value in values.items()
        for check in ("Auror", "no check")
    ]
    run = {"clipping": 1.0, "seed": 0, "backdoor": 0.25, "main": 0.5, "main before": 0.75}
    rows = defences.private_rows([run | {"backdoor before": 0.0}], "clipping")
    assert [(r["line"], r["value"]) for r in rows] == [
        ("backdoor", 0.25), ("main", 0.5), ("main before", 0.75),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("args", "text"),
    [
        (Args(figure="noise", points=(0.1,)), "--points are the shares"),
        (Args(points=(5.0,)), "shares in"),
        (Args(figure="noise", auror_threshold=1.0), "--auror-threshold is of"),
        (Args(figure="clipping", rounds=1), "at least 2, got 1"),
    ],
)
def test_mistakes_are_refused(args, text):
    with pytest.raises(ValueError, match=text):
        defences.main(args)
