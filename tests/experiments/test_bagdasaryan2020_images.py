"""Bagdasaryan et al.'s figures on images: settings, points, smoke mode, resuming, and what is said."""

import os
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import fedjax_robust as fr
from fedjax_robust import aggregators, report, study
from fedjax_robust.types import Received

PAPER = Path(__file__).parents[2] / "experiments" / "bagdasaryan2020"
sys.path.insert(0, str(PAPER))
import backdoor_setting
import image_program
import images
from backdoor_setting import CIFAR, GAMMA, MNIST
from images import FIGURES, Args

needs_mnist = pytest.mark.skipif(
    not list(Path(os.environ.get("FEDJAX_ROBUST_DATA", "/none")).glob("tfds/mnist/*")),
    reason="MNIST is not there; set FEDJAX_ROBUST_DATA to the folder that holds it",
)


class NoData:
    """Inputs without images, for what needs their settings alone."""

    def __init__(self, at):
        self.setting, self.settings = at, {"data": at.data}


def test_help(capsys, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["images.py", "--help"])
    with pytest.raises(SystemExit):
        study.main(Args, images.main)
    assert "--rounds-before" in capsys.readouterr().out


def test_the_papers_settings():
    """Section V of the paper."""
    assert (CIFAR.clients, CIFAR.participants, CIFAR.dirichlet) == (100, 10, 0.9)
    assert (CIFAR.benign_images, CIFAR.held_out, CIFAR.rounds_before) == (640, 3, 10_000)
    assert (CIFAR.step, CIFAR.epochs, CIFAR.batch_size, CIFAR.target) == (0.1, 2, 64, 2)
    assert (CIFAR.attackers_step, CIFAR.attackers_epochs, CIFAR.poisoned) == (0.05, 6, 20)
    assert CIFAR.pixel_images == 20_000
    assert CIFAR.clients / 1.0 == GAMMA  # n / eta
    model = CIFAR.model(10)
    params = jax.eval_shape(model.init, jax.random.key(0), np.zeros((1, 32, 32, 3)))["params"]
    assert sum(leaf.size for leaf in jax.tree.leaves(params)) == 2_797_610


def test_slant_of_lines():
    """A line that goes k columns to the right on k rows upwards has slant 1."""
    x = np.zeros((3, 28, 28, 1), np.float32)
    for k in range(-6, 7):
        x[0, 14 - k, 14 + k] = 1
        x[1, 14 - k, 14 - k] = 0.5
        x[2, 14 - k, 10] = 0.7
    np.testing.assert_allclose(backdoor_setting.slant(x), [1, -1, 0], atol=1e-12)


def test_what_the_server_sees_by_hand():
    """Norms, and 1 - cos of G = (3, 0) to G + (0, 3), to itself and to its opposite."""
    rule = image_program.measured(aggregators.mean())
    updates = jnp.array([[0.0, 3], [0, 0], [-6, 0]])
    received = Received(updates, jnp.ones(3), jnp.arange(3), jnp.array([3.0, 0]), jax.random.key(0))
    result, _, info = rule.aggregate(received, rule.init(3, received.params))
    np.testing.assert_allclose(result, [-2, 1])
    np.testing.assert_allclose(info["norm"], [3, 0, 6])
    np.testing.assert_allclose(info["anomaly"], [1 - 1 / np.sqrt(2), 0, 2], rtol=1e-6)


@pytest.mark.parametrize("name", FIGURES)
@pytest.mark.parametrize("at", [MNIST, CIFAR], ids=["mnist", "cifar10"])
def test_points_of_every_figure(name, at):
    """No point twice, each has its own file, and what is swept is there."""
    figure = FIGURES[name]
    cells = images.cells_of(name, Args(figure=name), NoData(at), at.backdoors[:2])
    keys = ("backdoor", "method") + ((figure.x,) if figure.x != "round" else ())
    names = [study.run_name({**cell, "seed": 0}, keys) for cell in cells]
    assert len(set(names)) == len(names)
    left_out = ("method", "share", "number")
    runs = [repr(sorted((k, v) for k, v in cell.items() if k not in left_out)) for cell in cells]
    assert len(set(runs)) == len(runs)
    assert all(cell["method"].endswith(f", {cell['backdoor']}") for cell in cells)
    assert {cell["rounds"] for cell in cells} == {
        "single-shot": {100}, "repeated": {100}, "pixel": {100}, "injection": {100},
        "gamma": {6}, "multiple": {6}, "cosine": {6}, "krum": {1},
    }[name]  # fmt: skip


def test_who_attacks():
    args = Args(figure="repeated", points=(0.2,))
    cells = images.cells_of("repeated", args, NoData(MNIST), MNIST.backdoors[:1])
    assert [(c["attack"], c["attackers"], c["single_shot"]) for c in cells] == [
        ("Replacement", 20, False),
        ("Poisoning", 20, False),
    ]
    cells = images.cells_of("krum", Args(figure="krum"), NoData(MNIST), MNIST.backdoors[:1])
    assert {(c["krum"], c["gamma"]) for c in cells} == {(True, 1.0)}
    assert [c["attackers"] for c in cells[:5]] == [1, 2, 5, 10, 20]
    assert {(c["alpha"], c["constraint"]) for c in cells} == {
        (1.0, "none"), (0.9, "distance"), (0.5, "distance"),
    }  # fmt: skip
    cells = images.cells_of("injection", Args(), NoData(CIFAR), CIFAR.backdoors[:1])
    assert [c["rounds_before"] for c in cells] == [100, 1_000, 5_000, 10_000]
    assert image_program.attack_round({"rounds": 100}) == 5
    assert image_program.attack_round({"rounds": 1}) == 0


def test_measures_by_hand():
    history = {
        "test_error": np.array([0.25, 0.5]),
        "backdoor_0": np.array([0.0, 1.0]),
        "backdoor_1": np.array([0.5, 0.5]),
        "malicious": np.array([[True, False], [False, False]]),
        "selected": np.array([[True, False], [True, False]]),
        "norm": np.array([[8.0, 1], [2, 3]], np.float32),
        "anomaly": np.array([[0.5, 0.25], [0.25, 0.25]], np.float32),
    }
    assert image_program.measure(history) == {
        "curves": {
            "main": [0.75, 0.5],
            "backdoor": [0.25, 0.75],
            "least": [0.0, 0.5],
            "selected": [1.0, 0.0],
        },
        "norm": 8.0,
        "honest_norm": 2.0,
        "anomaly": 0.5,
        "honest_anomaly": 0.25,
    }


def test_rows_by_hand():
    curve = [k / 10 for k in range(8)]
    run = {"method": "R", "rounds": 8, "seed": 0, "anomaly": 0.5}
    run["curves"] = {"main": curve, "backdoor": curve}
    rows = images.rows_of(FIGURES["single-shot"], [run])
    shown = [(row["measure"], row["round"], row["value"]) for row in rows]
    assert shown[:4] == [("backdoor", r, curve[5 + r]) for r in (-1, 0, 1, 2)] and len(shown) == 8
    averages = images.rows_of(FIGURES["repeated"], [run])
    assert [row["value"] for row in averages] == pytest.approx([0.35, 0.35])
    now = images.rows_of(FIGURES["cosine"], [run])
    assert [row["value"] for row in now] == [0.5, 0.5, 0.5]
    assert all("curves" not in row for row in rows + averages + now)


@pytest.fixture(scope="module")
def out(tmp_path_factory):
    """One folder, so that the model before the attack is trained once."""
    return tmp_path_factory.mktemp("images")


@needs_mnist
def test_smoke_and_resume(out, monkeypatch):
    args = Args(out=out, smoke=True)
    images.main(args)
    folder = out / "mnist-single-shot-smoke"
    about, rows = report.read_sweep(folder)
    assert about.lines == "method" and "leaning ones" in about.notes
    assert about.settings["attackers_step"] == 0.1 and about.settings["model"] == "MLP"
    assert {row["method"] for row in rows} == {"Replacement", "Poisoning"}
    assert all(0 <= float(row["value"]) <= 1 for row in rows)
    assert (folder / "curves.png").read_bytes()[:4] == b"\x89PNG"

    inputs = backdoor_setting.Inputs(
        backdoor_setting.smaller(MNIST), out / "before" / "mnist-smoke"
    )
    with monkeypatch.context() as patched:  # everything is on disk
        patched.setattr(images, "program_of", lambda inputs: None)
        patched.setattr(images, "Inputs", lambda *_: inputs)
        images.main(args)

    # The attacker alone has images of the backdoors; three of them are held out.
    train = inputs.dataset.train
    assert len(inputs.pool["y"]) == 60_000 - 4 * 30
    rows = inputs.rows["leaning ones"]
    assert np.all(train["y"][rows] == 1)
    slants = backdoor_setting.slant(train["x"][train["y"] == 1])
    assert np.sort(slants)[29] == pytest.approx(backdoor_setting.slant(train["x"][rows]).max())
    backdoor, held_out = inputs.backdoor("leaning ones", 0)
    assert len(backdoor["y"]) == 27 and held_out.shape == (60, 28, 28, 1)
    assert np.all(np.asarray(backdoor["y"]) == 2)

    # The model before the attack depends on nothing that was run before: it is trained from the start.
    calls = []
    monkeypatch.setattr(fr, "run", lambda *a, **k: calls.append((a, k)) or (_state(), {}))
    inputs.before(7, 0)
    inputs.before(7, 0)
    ((_, key, _, rounds), options) = calls[0]
    assert len(calls) == 1 and rounds == 7 and "params" not in options
    wanted = jax.random.fold_in(jax.random.fold_in(jax.random.key(4), 0), 0)
    assert jax.random.key_data(key).tolist() == jax.random.key_data(wanted).tolist()


def _state():
    return fr.SimState(*[jnp.zeros(2)] * len(fr.SimState._fields))


def test_equal_anomaly_by_hand():
    """Between the gammas of train-and-scale by linear interpolation of the means over seeds."""

    def run(method, gamma, anomaly, backdoor):
        curves = {"backdoor": [0.0] * 5 + [backdoor]}
        return {
            "method": method,
            "gamma": gamma,
            "anomaly": anomaly,
            "curves": curves,
            "rounds": 6,
        }

    free = [
        run("train-and-scale", gamma, anomaly, backdoor)
        for gamma, anomaly, backdoor in [(10, 0.1, 0.0), (10, 0.3, 0.2), (100, 0.6, 0.9)]
    ]
    bound = [run("alpha 0.5", 10, 0.1, 0.3), run("alpha 0.5", 100, 0.4, 0.8)]
    assert "alpha 0.5: 0.800, train-and-scale 0.500" in images.equally_anomalous(free + bound)


@pytest.mark.parametrize(
    ("args", "text"),
    [
        (Args(width=4), "network of --setting cifar10"),
        (Args(backdoor="green cars"), "there is no backdoor"),
        (Args(rounds_before=0), "at least 1 round"),
        (Args(figure="gamma", rounds=50), "ends with the attack"),
        (Args(figure="pixel", points=(1.0,)), "sweeps nothing"),
        (Args(figure="krum", points=(0.001,)), "shares of 100 clients"),
        (Args(figure="repeated", points=(5.0,)), "shares of 100 clients"),
    ],
)
def test_bad_arguments(args, text):
    with pytest.raises(ValueError, match=text):
        images.main(args)
