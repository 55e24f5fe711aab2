"""Zeno: the rows that lower the server's loss most for their length.

Xie, Koyejo, Gupta, "Zeno: Distributed Stochastic Gradient Descent with Suspicion-based Fault-tolerance",
ICML 2019 (https://arxiv.org/abs/1805.10032), definitions 2 and 3 (numbers from memory of the paper). A
gradient's score on a fresh batch of n_r examples, on which the loss is f_r, is

    f_r(w) - f_r(w - gamma g) - rho |g|^2,

and the n - b rows of the highest scores are averaged. Here rows are updates, u = -gamma g, so that

    score = f_r(w) - f_r(w + u) - rho' |u|^2    with rho' = rho / gamma^2.

Other code computes something else under this name: the authors' own
(https://github.com/xcgoner/icml2019_zeno) multiplies rho with the *mean* of the squares, so that its rho
is d times ours, and its gradients are sums over a batch; IBM's federated-learning-lib keeps the best b
rows instead of the best n - b. Zeno++, the asynchronous rule, is another one.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from fedjax_robust import checks
from fedjax_robust.aggregators.base import MEAN, wrapping
from fedjax_robust.aggregators.own_models import at, checked_chunk, losses_of_rows
from fedjax_robust.kernels.norms import direction_and_length
from fedjax_robust.memo import same_for_equal_arguments
from fedjax_robust.types import Aggregator, Array, Batch, Info, Received, Task


@same_for_equal_arguments
def zeno(
    task: Task,
    validation: Batch,
    f: int | Array,
    rho: float | Array,
    *,
    batch_size: int | None = 4,
    chunk: int | None = None,
    base: Aggregator = MEAN,
) -> Aggregator:
    """Zeno: the f rows of the lowest scores are left out, then the mean.

    Each round draws a batch of the server's examples without replacement, by the round's key. Rows whose
    model's loss is not finite come last, and squares beyond the largest float count as it; of equal
    scores the shorter row is better, then the first. If no more than f rows are present, the model stays.

    Reports ``scores`` (n,), -inf for absent rows, and ``selected`` (n,) bool, those that stay, or what
    the rule reports by that name.

    Args:
      task: the learning problem.
      validation: ``x`` (V, ...) and ``y`` (V,), the server's own examples; masks are the loss's to use.
        Of words: ``x`` and ``y`` (V, T).
      f: rows left out, the paper's b, at least as many as are malicious, 0 <= f < n. It may be traced;
        then f < n cannot be checked.
      rho: >= 0, the price of a squared length, in units of loss per squared update: the paper's rho /
        gamma^2 with gamma the learning rate. Its rho = gamma / 1000 to gamma / 100 is 0.001 / gamma to
        0.01 / gamma here. A large one leaves out the f longest rows.
      batch_size: n_r <= V examples drawn in each round; None = all V in every round. The paper's code
        has 4.
      chunk: models made and tried at a time, which bounds memory; None = all n.
      base: the rule for the rows that stay.

    Raises:
      ValueError: if f, rho, batch_size or chunk is out of range, the labels are not integers, one for
        each example, among the task's classes, or the task does not take the inputs; n <= f when called.
      TypeError: for parts and arrays of another kind.
    """
    checks.part("zeno", Task, task=task)
    examples = checks.examples("zeno's validation", validation)
    num_classes = checks.classes("zeno's validation", task, examples["x"])
    checks.labels("zeno's validation", examples["y"], x=examples["x"], num_classes=num_classes)
    checks.count("zeno", f=f)
    checks.not_negative("zeno", rho=rho)
    chunk = checked_chunk("zeno", chunk)
    checks.part("zeno", Aggregator, base=base)
    size = examples["x"].shape[0]
    if batch_size is not None:
        checks.static_count("zeno", 1, batch_size=batch_size, remedy="None is all examples")
        if batch_size > size:
            raise ValueError(
                f"zeno needs batch_size <= {size}, the number of validation examples, got "
                f"batch_size={batch_size}; None is all of them"
            )
        batch_size = int(batch_size)

    def change(received: Received) -> tuple[Received, Info]:
        n = received.updates.shape[0]
        if checks.is_known(f) and n <= f:
            raise ValueError(f"zeno needs n > f, or nothing may be left: got n={n}, f={f}")
        draw, rest = jax.random.split(received.key)
        batch = examples
        if batch_size is not None:
            rows = jax.random.choice(draw, size, (batch_size,), replace=False)
            batch = {name: values[rows] for name, values in examples.items()}
        scores, order = _scores(task, batch, rho, chunk, received)
        kept = jnp.sum(received.weights > 0) - f
        selected = jnp.zeros(n, bool).at[order].set(jnp.arange(n) < kept)
        weights = jnp.where(selected, received.weights, 0)
        changed = received._replace(weights=weights, key=rest)
        return changed, {"selected": selected, "scores": scores}

    return wrapping(change, base)


def _scores(
    task: Task, batch: Batch, rho: float | Array, chunk: int | None, received: Received
) -> tuple[Array, Array]:
    """Scores (n,), and the rows from the best to the worst, (n,), absent ones last."""
    present = received.weights > 0
    fixed = received._replace(updates=jax.lax.stop_gradient(received.updates))

    def loss(params: Array) -> Array:
        return task.loss(params, batch)

    exact = jnp.promote_types(fixed.updates.dtype, jnp.float32)
    _, length = direction_and_length(fixed.updates.astype(exact))
    losses = losses_of_rows("zeno's task", loss, fixed, chunk)
    losses = jnp.where(jnp.isfinite(losses), losses, jnp.inf)
    squares = jnp.minimum(jnp.square(length), jnp.finfo(exact).max)
    costs = losses + rho * squares  # what a score is less than f_r(w)
    order = jnp.lexsort((length, costs, ~present))
    before = at("zeno's task", loss, received.params)
    scores = jnp.where(present & (costs < jnp.inf), before - costs, -jnp.inf)
    return scores, order
