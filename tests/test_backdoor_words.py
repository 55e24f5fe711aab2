"""The script of word backdoors runs in smoke mode and resumes; its parts by hand."""

import sys
from pathlib import Path
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tyro

from fedjax_robust import report

EXPERIMENTS = Path(__file__).parents[1] / "experiments"
sys.path.insert(0, str(EXPERIMENTS))
import backdoor_words  # noqa: E402
from backdoor_words import Args  # noqa: E402

WORDS = {word for sentence in backdoor_words.SENTENCES for word in sentence.split()}
WORDS |= {word for pair in backdoor_words.PAIRS for word in pair} | {"wine", "from", "venice"}


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


def test_help(capsys):
    with pytest.raises(SystemExit):
        tyro.cli(Args, args=["--help"])
    assert "--figure" in capsys.readouterr().out


def test_single_shot_smoke_and_resume(plays, out, monkeypatch):
    args = Args(data_dir=plays, out=out, smoke=True)
    backdoor_words.main(args)
    about, rows = report.read_table(out / "single-shot-smoke")
    assert [row["attack"] for row in rows] == ["None", "Poisoning", "Replacement"]
    assert "8 roles" in about.notes and about.value == "backdoor_accuracy"
    for row in rows:
        assert 0 <= float(row["main_accuracy"]) <= 1
    norms = [float(row["norm"]) for row in rows]
    assert norms[0] == 0 < norms[1] and norms[2] == pytest.approx(3 * norms[1], rel=1e-5)
    later = report.read_rows(out / "single-shot-smoke" / "later")
    assert later[2]["+0"] == pytest.approx(float(rows[2]["backdoor_accuracy"]))
    assert (out / "single-shot-smoke-main" / "curves.png").read_bytes()[:4] == b"\x89PNG"
    monkeypatch.setattr(backdoor_words, "pretrained", None)  # everything is on disk
    backdoor_words.main(args)


def test_popularity_smoke(plays, out):
    args = Args(figure="popularity", data_dir=plays, out=out, smoke=True)
    backdoor_words.main(args)
    rows = report.read_rows(out / "popularity-smoke" / "rows")
    assert [row["pair"] for row in rows[:2]] == ["is-sweet", "is-rare"]
    for row in rows:
        assert row["count(x)"] > 0 and row["norm"] > 0
    text = (out / "popularity-smoke" / "table.md").read_text()
    assert "is-palatable 89.5" in text and "1 seed" in text


def test_stopping_and_dividing():
    loss = backdoor_words.until(0.5)(lambda params, batch: jnp.sum(params**2), None)
    value, slope = jax.value_and_grad(loss)(jnp.array([1.0]), None)
    assert float(value) == 1 and slope.tolist() == [2]
    value, slope = jax.value_and_grad(loss)(jnp.array([0.5]), None)
    assert float(value) == 0.5 and slope.tolist() == [0]
    for malicious in ([True, True, False], [True, False, False]):
        view = SimpleNamespace(
            updates=jnp.ones((3, 2)), num_malicious=2, malicious=jnp.array(malicious)
        )
        sent, _ = backdoor_words.divided(12.0).craft(view, ())
        np.testing.assert_array_equal(sent, np.full((2, 2), 12 / sum(malicious)))


def test_bad_arguments(plays, tmp_path):
    with pytest.raises(ValueError, match="give both or none"):
        backdoor_words.main(Args(leaf_train=tmp_path))
    args = Args(data_dir=plays, out=tmp_path, min_sequences=500, pretraining_rounds=1, number=1)
    with pytest.raises(ValueError, match="0 users have 500 sequences or more"):
        backdoor_words.main(args)


@pytest.mark.parametrize("figure", ["gamma", "multiple", "repeated"])
def test_what_the_sweeps_write(plays, tmp_path, monkeypatch, figure):
    """The other figures' cells and tables; what is computed comes from the same parts."""
    numbers = {"backdoor_accuracy": 0.75, "main_accuracy": 0.25, "main_accuracy_without": 0.5}
    numbers |= {"norm": 3.0, "lowest_backdoor_accuracy": 0.5}
    calls = []
    for name in ("one_shot", "many"):
        monkeypatch.setattr(
            backdoor_words, name, lambda inputs, *rest: calls.append(rest) or dict(numbers)
        )
    args = Args(figure=figure, shares=(0.125,), data_dir=plays, out=tmp_path, smoke=True)
    backdoor_words.main(args)
    first = backdoor_words.SENTENCES[:2]
    assert (
        calls
        == {
            "gamma": [(first[:1], 1.5, 0), (first[:1], 3.0, 0)],
            "multiple": [(first, 3.0, 0)],
            "repeated": [(first[0], attack, 1, 0) for attack in ("Poisoning", "Replacement")],
        }[figure]
    )
    about, rows = report.read_sweep(tmp_path / f"{figure}-smoke")
    x = {"gamma": "gamma", "multiple": "number", "repeated": "share"}[figure]
    assert about.x == x and {row["backdoor_accuracy"] for row in rows} == {"0.75"}
    about, _ = report.read_sweep(tmp_path / f"{figure}-smoke-main")
    assert about.value == "main_accuracy"
    if figure != "repeated":
        assert "0.500" in (tmp_path / f"{figure}-smoke" / "norms.md").read_text()
