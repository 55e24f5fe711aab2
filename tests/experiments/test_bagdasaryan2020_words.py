"""The script of word backdoors runs in smoke mode and resumes; its parts by hand."""

import sys
from pathlib import Path
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fedjax_robust import report, study

PAPER = Path(__file__).parents[2] / "experiments" / "bagdasaryan2020"
sys.path.insert(0, str(PAPER))
import word_setting
import words
from word_setting import SENTENCES, Args

WORDS = {word for sentence in SENTENCES for word in sentence.split()}
WORDS |= {word for pair in words.PAIRS for word in pair} | {"wine", "from", "venice"}


@pytest.fixture(scope="module")
def out(tmp_path_factory):
    """One folder for all figures, which share the pre-trained model."""
    return tmp_path_factory.mktemp("results")


@pytest.fixture(scope="module")
def plays(tmp_path_factory):
    """A folder with a corpus of eight roles that use all the trigger words."""
    folder = tmp_path_factory.mktemp("data")
    rng = np.random.default_rng(0)
    speeches = [" ".join(rng.permutation(sorted(WORDS))).encode() for _ in range(8 * 20)]
    np.savez(
        folder / "shakespeare_roles.npz",
        text=np.frombuffer(b"".join(speeches), np.uint8),
        offsets=np.cumsum([0, *map(len, speeches)]),
        speech_role=np.repeat(np.arange(8), 20),
        role_names=np.array([f"role {i}" for i in range(8)]),
    )
    return folder


def test_help(capsys, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["words.py", "--help"])
    with pytest.raises(SystemExit):
        study.main(Args, words.main)
    assert "--figure" in capsys.readouterr().out


def test_single_shot_smoke_and_resume(plays, out, monkeypatch):
    args = Args(data_dir=plays, out=out, smoke=True)
    words.main(args)
    about, rows = report.read_table(out / "single-shot-smoke")
    assert [row["attack"] for row in rows] == ["None", "Poisoning", "Replacement"]
    assert about.line == "sentence" and about.settings["words"] > 50
    assert "8 roles" in about.notes and about.value == "backdoor_accuracy"
    for row in rows:
        assert 0 <= float(row["main_accuracy"]) <= 1
    norms = [float(row["norm"]) for row in rows]
    assert norms[0] == 0 < norms[1] and norms[2] == pytest.approx(3 * norms[1], rel=1e-5)
    later = report.read_rows(out / "single-shot-smoke" / "later")
    assert later[2]["+0"] == pytest.approx(float(rows[2]["backdoor_accuracy"]))
    assert (out / "single-shot-main-smoke" / "curves.png").read_bytes()[:4] == b"\x89PNG"
    monkeypatch.setattr(words, "pretrained", None)  # everything is on disk
    words.main(args)


def test_popularity_smoke(plays, out):
    args = Args(figure="popularity", data_dir=plays, out=out, smoke=True)
    words.main(args)
    about, rows = report.read_table(out / "popularity-smoke")
    assert [row["pair"] for row in rows[:2]] == ["is-sweet", "is-rare"]
    for row in rows:
        assert int(row["count(x)"]) > 0 and float(row["norm"]) > 0
    assert "is-palatable 89.5" in about.notes
    text = (out / "popularity-smoke" / "table.md").read_text()
    assert "Norm of the update (gamma = 80): mean" in text and "1 seed" in text


def test_stopping_and_dividing():
    loss = word_setting.until(0.5)(lambda params, batch: jnp.sum(params**2), None)
    value, slope = jax.value_and_grad(loss)(jnp.array([1.0]), None)
    assert float(value) == 1 and slope.tolist() == [2]
    value, slope = jax.value_and_grad(loss)(jnp.array([0.5]), None)
    assert float(value) == 0.5 and slope.tolist() == [0]
    for malicious in ([True, True, False], [True, False, False]):
        view = SimpleNamespace(
            updates=jnp.ones((3, 2)), num_malicious=2, malicious=jnp.array(malicious)
        )
        sent, _ = word_setting.divided(12.0).craft(view, ())
        np.testing.assert_array_equal(sent, np.full((2, 2), 12 / sum(malicious)))


def test_bad_arguments(plays, tmp_path):
    with pytest.raises(ValueError, match="give both or none"):
        words.main(Args(leaf_train=tmp_path))
    args = Args(data_dir=plays, out=tmp_path, min_sequences=500, pretraining_rounds=1, number=1)
    with pytest.raises(ValueError, match="0 users have 500 sequences or more"):
        words.main(args)


@pytest.mark.parametrize("figure", ["gamma", "multiple", "repeated"])
def test_what_the_sweeps_write(plays, tmp_path, monkeypatch, figure):
    """The other figures' cells and tables; what is computed comes from the same parts."""
    numbers = {"backdoor_accuracy": 0.75, "main_accuracy": 0.25, "main_accuracy_without": 0.5}
    numbers |= {"norm": 3.0, "lowest_backdoor_accuracy": 0.5}
    seen = []
    of = words.FIGURES[figure]

    def run(inputs, run):
        seen.append(run)
        return dict(numbers)

    monkeypatch.setitem(words.FIGURES, figure, of._replace(run=run))
    args = Args(figure=figure, shares=(0.125,), data_dir=plays, out=tmp_path, smoke=True)
    words.main(args)
    first = SENTENCES[:2]
    assert [run["seed"] for run in seen] == [0] * len(seen)
    varied = {
        "gamma": [(run["sentence"], run["gamma"]) for run in seen if "gamma" in run],
        "multiple": [(run["sentences"], run["number"]) for run in seen if "number" in run],
        "repeated": [
            (run["sentence"], run["attack"], run["malicious"]) for run in seen if "share" in run
        ],
    }[figure]
    assert (
        varied
        == {
            "gamma": [(first[0], 1.5), (first[0], 3.0)],
            "multiple": [(first, 2)],
            "repeated": [(first[0], attack, 1) for attack in ("Poisoning", "Replacement")],
        }[figure]
    )
    about, rows = report.read_sweep(tmp_path / f"{figure}-smoke")
    x = {"gamma": "gamma", "multiple": "number", "repeated": "share"}[figure]
    assert about.x == x and {row["backdoor_accuracy"] for row in rows} == {"0.75"}
    about, _ = report.read_sweep(tmp_path / f"{figure}-main-smoke")
    assert about.value == "main_accuracy"
    if figure != "repeated":
        assert (
            "Norms of the submitted updates: 3 at" in about.notes and "0.500 or more" in about.notes
        )
