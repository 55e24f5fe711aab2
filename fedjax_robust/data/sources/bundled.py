"""Data that are drawn, or come with scikit-learn."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from fedjax_robust import checks
from fedjax_robust.data.sources.files import Arrays, Dataset
from fedjax_robust.types import Key


def synthetic(
    key: Key,
    num_classes: int = 10,
    num_features: int = 32,
    num_train: int = 2_000,
    num_test: int = 500,
    separation: float = 4.0,
) -> Dataset:
    """A Gaussian mixture: x = separation * direction of its class + N(0, I).

    The directions are independent and uniform on the unit sphere, classes are equally likely. With
    the defaults the best possible classifier errs on about 2 % of the examples.

    Args:
      key: JAX key; the result is a pure function of it.
      num_classes: at least 2.
      num_features: at least 1.
      num_train: training examples, at least 1.
      num_test: test examples, at least 1.
      separation: distance of the class means from the origin, in standard deviations, >= 0.

    Raises:
      ValueError: an argument out of range.
    """
    key = checks.key("synthetic", key)
    checks.static_count("synthetic", 2, num_classes=num_classes)
    checks.static_count(
        "synthetic", 1, num_features=num_features, num_train=num_train, num_test=num_test
    )
    checks.not_negative("synthetic", separation=separation)
    num_classes, num_features = int(num_classes), int(num_features)
    num_train, num_test = int(num_train), int(num_test)
    key_mean, key_label, key_noise = jax.random.split(key, 3)
    size = num_train + num_test
    mean = jax.random.normal(key_mean, (num_classes, num_features))
    mean = separation * mean / jnp.linalg.norm(mean, axis=1, keepdims=True)
    label = jax.random.randint(key_label, (size,), 0, num_classes)
    x = np.asarray(mean[label] + jax.random.normal(key_noise, (size, num_features)), np.float32)
    y = np.asarray(label, np.int32)
    return Dataset(
        train={"x": x[:num_train], "y": y[:num_train]},
        test={"x": x[num_train:], "y": y[num_train:]},
        num_classes=num_classes,
        name="synthetic",
        note="synthetic Gaussian mixture",
    )


def random_split(key: Key, x: np.ndarray, y: np.ndarray) -> tuple[Arrays, Arrays]:
    """x (E, ...), y (E,) in random order: the first four fifths for training, the rest for tests."""
    order = np.asarray(jax.random.permutation(key, len(y)))
    train, test = np.split(order, [len(y) * 4 // 5])
    return {"x": x[train], "y": y[train]}, {"x": x[test], "y": y[test]}


def breast_cancer(key: Key) -> Dataset:
    """scikit-learn's breast cancer data: 569 examples of 30 standardised features, 2 classes."""
    from sklearn.datasets import load_breast_cancer

    bunch = load_breast_cancer()
    train, test = random_split(key, bunch.data, bunch.target.astype(np.int32))
    mean, std = train["x"].mean(axis=0), train["x"].std(axis=0)
    for part in (train, test):
        part["x"] = ((part["x"] - mean) / std).astype(np.float32)
    return Dataset(
        train=train,
        test=test,
        num_classes=2,
        name="breast_cancer",
        note=f"random split {len(train['y'])}/{len(test['y'])}; features standardised with the "
        "training part's mean and standard deviation",
        class_names=tuple(str(c) for c in bunch.target_names),
    )


def digits(key: Key) -> Dataset:
    """scikit-learn's digits: 1,797 images (8, 8, 1) in [0, 1], 10 classes."""
    from sklearn.datasets import load_digits

    bunch = load_digits()
    x = (bunch.images / 16).astype(np.float32)[..., None]
    train, test = random_split(key, x, bunch.target.astype(np.int32))
    return Dataset(
        train=train,
        test=test,
        num_classes=10,
        name="digits",
        note=f"scikit-learn's 8x8 digits, random split {len(train['y'])}/{len(test['y'])}",
        class_names=tuple(str(c) for c in bunch.target_names),
    )
