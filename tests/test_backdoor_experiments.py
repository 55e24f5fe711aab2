"""The script of Bagdasaryan et al.'s figures on images: smoke mode, resuming, and what it says."""

import os
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

from fedjax_robust import report

EXPERIMENTS = Path(__file__).parents[1] / "experiments"
sys.path.insert(0, str(EXPERIMENTS))
import backdoor_images  # noqa: E402
from backdoor_images import CIFAR, FIGURES, GAMMA, MNIST, Args  # noqa: E402

needs_mnist = pytest.mark.skipif(
    not list(Path(os.environ.get("FEDJAX_ROBUST_DATA", "/none")).glob("tfds/mnist/*")),
    reason="MNIST is not there; set FEDJAX_ROBUST_DATA to the folder that holds it",
)


def test_help():
    done = subprocess.run(
        [sys.executable, EXPERIMENTS / "backdoor_images.py", "--help"],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert "usage" in done.stdout.lower()


def test_the_papers_settings():
    """Section V of the paper."""
    assert (CIFAR.clients, CIFAR.participants, CIFAR.alpha) == (100, 10, 0.9)
    assert (CIFAR.benign_images, CIFAR.held_out, CIFAR.rounds_before) == (640, 3, 10_000)
    assert (CIFAR.attackers_rate, CIFAR.batch_size, CIFAR.target) == (0.05, 64, 2)
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
    np.testing.assert_allclose(backdoor_images.slant(x), [1, -1, 0], atol=1e-12)


def test_points_of_every_figure():
    """What is swept, and who attacks."""
    for name, figure in FIGURES.items():
        for setting in (MNIST, CIFAR):
            points = figure.points(setting, setting.backdoors[0], Args())
            keys = [
                (*point.case, point.gamma, point.alpha, point.rounds_before) for point in points
            ]
            assert len(set(keys)) == len(keys), name
            assert all("method" in point.labels for point in points)
            assert figure.over_rounds or all(figure.x in point.labels for point in points)
    repeated = FIGURES["repeated"].points(MNIST, "leaning ones", Args(points=(0.2,)))
    assert [(p.case.method, p.case.attackers) for p in repeated] == [
        ("Replacement", 20),
        ("Poisoning", 20),
    ]


@pytest.fixture(scope="module")
def out(tmp_path_factory):
    """One folder, so that the model before the attack is trained once."""
    return tmp_path_factory.mktemp("backdoor_images")


@needs_mnist
def test_smoke_and_resume(out, monkeypatch):
    args = Args(figure="single-shot", out=out, smoke=True)
    backdoor_images.main(args)
    folder = out / "mnist-smoke-single-shot"
    about, rows = report.read_sweep(folder)
    assert about.lines == "method" and "leaning ones" in about.notes
    assert {row["method"] for row in rows} == {"Replacement", "Poisoning"}
    assert all(0 <= float(row["value"]) <= 1 for row in rows)
    assert (folder / "curves.png").read_bytes()[:4] == b"\x89PNG"
    monkeypatch.setattr(backdoor_images, "compiled", None)  # everything is on disk
    backdoor_images.main(args)

    # The attacker alone has images of the backdoors; three of them are held out.
    inputs = backdoor_images.Inputs(MNIST, args, out / "mnist-smoke-before")
    train = inputs.dataset.train
    assert len(inputs.pool["y"]) == 60_000 - 4 * 30
    rows = inputs.rows["leaning ones"]
    assert np.all(train["y"][rows] == 1)
    slants = backdoor_images.slant(train["x"][train["y"] == 1])
    assert np.sort(slants)[29] == pytest.approx(backdoor_images.slant(train["x"][rows]).max())
    backdoor, held_out = inputs.backdoor("leaning ones", 0)
    assert len(backdoor["y"]) == 27 and held_out.shape == (60, 28, 28, 1)
    assert np.all(np.asarray(backdoor["y"]) == 2)


@needs_mnist
def test_smoke_of_krum(out):
    """Constrained, and with all clients."""
    backdoor_images.main(Args(figure="krum", points=(0.05,), out=out, smoke=True))
    about, rows = report.read_sweep(out / "mnist-smoke-krum")
    assert {row["measure"] for row in rows} == {"selected", "backdoor", "main"}
    assert "Norms of submitted updates" in about.notes


def test_equal_anomaly_by_hand():
    """Between the gammas of train-and-scale by linear interpolation of the means over seeds."""

    def result(method, gamma, anomaly, backdoor):
        curve = [0.0] * 5 + [backdoor]
        return {
            "method": method,
            "gamma": gamma,
            "anomaly": anomaly,
            "backdoor": curve,
            "main": curve,
        }

    free = [
        result("train-and-scale", gamma, anomaly, backdoor)
        for gamma, anomaly, backdoor in [(10, 0.1, 0.0), (10, 0.3, 0.2), (100, 0.6, 0.9)]
    ]
    bound = [result("alpha 0.5", 10, 0.1, 0.3), result("alpha 0.5", 100, 0.4, 0.8)]
    text = backdoor_images.equally_anomalous(free + bound)
    assert "alpha 0.5: 0.800, train-and-scale 0.500" in text


@pytest.mark.parametrize(
    ("args", "text"),
    [
        (Args(width=4), "network of --setting cifar10"),
        (Args(backdoor="green cars"), "there is no backdoor"),
    ],
)
def test_bad_arguments(args, text):
    with pytest.raises(ValueError, match=text):
        backdoor_images.main(args)
