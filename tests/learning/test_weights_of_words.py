"""``token_mask`` holds weights, not only who counts."""

import jax
import jax.numpy as jnp
import numpy as np

from fedjax_robust import metrics, tasks

# The model predicts the word after the one it reads: logits are rows of a parameter.
X = np.array([[0, 1, 2], [2, 1, 0]], np.int32)
Y = np.array([[1, 2, 2], [0, 2, 0]], np.int32)  # right where y = x + 1 mod 3: 1, 1, 0 and 1, 1, 0
WEIGHTS = np.array([[2.0, 0.5, 3.0], [0.0, 0.25, 4.0]], np.float32)
TASK = tasks.from_functions(
    lambda key: {"table": 5 * jnp.roll(jnp.eye(3), 1, axis=1)},
    lambda tree, x: tree["table"][x],
    X[:1],
)
PARAMS = TASK.init(jax.random.key(0))


def test_accuracy():
    test = {"x": X, "y": Y}
    right = (Y == (X + 1) % 3).astype(float)
    assert right.tolist() == [[1, 1, 0], [1, 1, 0]]
    for weights, expected in ((None, 4 / 6), (WEIGHTS, 2.75 / 9.75), (8 * WEIGHTS, 2.75 / 9.75)):
        batch = test if weights is None else test | {"token_mask": weights}
        result = metrics.word_accuracy(TASK, batch)(PARAMS)
        np.testing.assert_allclose(result["main_accuracy"], expected, rtol=1e-6)


def test_loss():
    logits = 5 * np.roll(np.eye(3), 1, axis=1)[X]
    losses = np.log(np.exp(logits).sum(-1)) - np.take_along_axis(logits, Y[..., None], -1)[..., 0]
    mask = np.array([0.5, 2.0], np.float32)
    weights = WEIGHTS * mask[:, None]
    batch = {"x": X, "y": Y, "token_mask": WEIGHTS, "mask": mask}
    batch = {name: jnp.asarray(values) for name, values in batch.items()}
    expected = (losses * weights).sum() / weights.sum()
    np.testing.assert_allclose(TASK.loss(PARAMS, batch), expected, rtol=1e-5)
