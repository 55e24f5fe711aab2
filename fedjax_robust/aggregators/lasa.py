"""LASA: each leaf of the model is averaged over the clients whose length and signs are ordinary there.

Xu, Zhang, Hu, "Achieving Byzantine-Resilient Federated Learning via Layer-Adaptive Sparsified Model
Aggregation", WACV 2025 (https://arxiv.org/abs/2409.01435), as its authors' code has it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from fedjax_robust import checks
from fedjax_robust.aggregators.base import stateless
from fedjax_robust.aggregators.clipping import clip_rows
from fedjax_robust.kernels.norms import accumulator, power_of_two, safe_norm, weighted_mean
from fedjax_robust.kernels.ranks import coordinate_median
from fedjax_robust.memo import same_for_equal_arguments
from fedjax_robust.types import Aggregator, Array, Info, Received, Task


@same_for_equal_arguments
def lasa(
    task: Task,
    *,
    sparsity: float = 0.3,
    lambda_n: float | Array = 1.0,
    lambda_s: float | Array = 1.0,
) -> Aggregator:
    """LASA: clip at the median length, look at sparse copies, and average leaf by leaf.

    1. Rows longer than the median length are shortened to it.
    2. In a copy, of all entries that a client has in leaves with two or four axes (matrices and kernels
       of convolutions) only those stay whose size is greater than the k-th largest, k =
       int((1 - sparsity) m) of m entries, at least 1: so k - 1 stay. The other leaves are left as they
       are, and so is everything with sparsity 0.
    3. For each leaf and client, the copy's length l and its balance of signs p = sum of signs / number of
       non-zero entries (0 if there are none). Both are turned into |x - median| / standard deviation
       (divisor n) over the clients. A client is benign in the leaf if the first is < lambda_n and the
       second < lambda_s. If nobody is, or one of the deviations is 0 (all clients have the same value, as
       leaves of one sign do), everybody counts as benign in that leaf.
    4. The leaf of the aggregate is the mean of the benign clients' clipped rows, not of the copies.

    Step 4 is our reading: in the published code copies and rows are the same tensors in memory. The
    median of an even number is the mean of the middle two here. Weights only say who is present.

    Reports ``leaves`` (n,) int32, in how many leaves a client counts, and ``clipped`` (n,) bool.

    Args:
      task: the learning problem, whose ``unravel`` names the leaves.
      sparsity: in [0, 1), the share of entries that is set to 0 in the copies; it must be known.
      lambda_n: > 0, the limit for lengths; 1 by default, some codes have 2.
      lambda_s: > 0, the limit for signs.

    Raises:
      ValueError: if a number is out of range; when called, if the rows do not have the task's size.
      TypeError: if task is no Task, a number none, or sparsity is traced.

    A model of two leaves, a matrix and a vector. The last client's matrix is too long; for the vector, in
    which all signs are equal, everybody counts:

    >>> task = Task(None, None, None, lambda p: {"bias": p[4:], "kernel": p[:4].reshape(2, 2)})
    >>> rows = jnp.array([[2.0, 1, 0, 0, 2], [2, 0, 1, 0, 2], [2, 0, 0, 1, 2], [-8, 8, 8, 8, 2]])
    >>> [round(x, 2) for x in lasa(task, sparsity=0.0)(rows).tolist()]
    [2.0, 0.33, 0.33, 0.33, 1.59]
    """
    checks.part("lasa", Task, task=task)
    checks.between("lasa", 0, 1, open_high=True, sparsity=sparsity)
    if not checks.is_known(sparsity):
        raise TypeError(
            "lasa needs sparsity to be known when the program is compiled, because it sets how many "
            "entries stay; pass a number, not a traced value"
        )
    checks.positive("lasa", lambda_n=lambda_n, lambda_s=lambda_s)
    sparsity = float(sparsity)

    def rule(received: Received) -> tuple[Array, Info]:
        updates, present = received.updates, received.weights > 0
        median = coordinate_median(safe_norm(updates)[:, None], present)[0]
        clipped, longer = clip_rows(updates, median)
        fixed = jax.lax.stop_gradient(clipped.astype(accumulator(clipped.dtype)))
        leaves, _ = _leaves(task, fixed)
        sparse = _sparsified(leaves, sparsity)

        def benign(leaf: Array) -> Array:
            flat = _flat(leaf)
            if flat.shape[1] == 0:
                return present
            signs = jnp.sum(jnp.sign(flat), axis=1)
            balance = signs / jnp.maximum(jnp.sum(flat != 0, axis=1), 1)
            usual, all_equal = _usual(safe_norm(flat), present, lambda_n)
            balanced, all_alike = _usual(balance, present, lambda_s)
            both = usual & balanced
            return present & (both | all_equal | all_alike | ~jnp.any(both & present))

        counted = [benign(leaf) for leaf in sparse]
        rows, join = _leaves(task, clipped)
        means = [
            weighted_mean(_flat(leaf), who).reshape(leaf.shape[1:])
            for leaf, who in zip(rows, counted, strict=True)
        ]
        number = jnp.sum(jnp.stack(counted), axis=0, dtype=jnp.int32)
        return join(means), {"leaves": number, "clipped": longer & present}

    return stateless(rule)


def _leaves(task: Task, rows: Array) -> tuple[list[Array], Callable[[list[Array]], Array]]:
    """The leaves of each row, (n, ...) each, and the function that joins one row's leaves to (d,)."""
    row = jax.ShapeDtypeStruct(rows.shape[1:], rows.dtype)
    try:
        shapes = jax.eval_shape(task.unravel, row)
    except Exception as error:
        raise ValueError(
            f"lasa needs updates of the size of the task's model, got rows of shape {row.shape}: {error}"
        ) from error
    structure = jax.tree.structure(shapes)
    if sum(int(np.prod(leaf.shape)) for leaf in jax.tree.leaves(shapes)) != rows.shape[1]:
        raise ValueError(
            f"lasa needs updates of the size of the task's model, got rows of shape {row.shape}"
        )
    # Which entry goes where is linear, so that the way back is its transpose.
    back = jax.linear_transpose(task.unravel, row)

    def join(leaves: list[Any]) -> Array:
        return back(jax.tree.unflatten(structure, leaves))[0]

    return jax.tree.leaves(jax.vmap(task.unravel)(rows)), join


def _flat(leaf: Array) -> Array:
    """(n, ...) -> (n, k)."""
    return leaf.reshape(leaf.shape[0], int(np.prod(leaf.shape[1:])))


def _sparsified(leaves: list[Array], sparsity: float) -> list[Array]:
    """Step 2: leaves (n, ...) with each row's small entries set to 0."""
    matrices = [leaf.ndim - 1 in (2, 4) for leaf in leaves]
    entries = [
        _flat(jnp.abs(leaf)) for leaf, matrix in zip(leaves, matrices, strict=True) if matrix
    ]
    if sparsity == 0 or not entries:
        return leaves
    sizes = jnp.concatenate(entries, axis=1)
    if sizes.shape[1] == 0:
        return leaves
    number = max(int(sizes.shape[1] * (1 - sparsity)), 1)
    limit = jnp.sort(sizes, axis=1)[:, sizes.shape[1] - number]
    return [
        jnp.where(jnp.abs(leaf) > limit.reshape(-1, *[1] * (leaf.ndim - 1)), leaf, 0)
        if matrix
        else leaf
        for leaf, matrix in zip(leaves, matrices, strict=True)
    ]


def _usual(values: Array, present: Array, limit: float | Array) -> tuple[Array, Array]:
    """|x - median| < limit standard deviations, (n,) bool; and whether all values are equal, ()."""
    # From the median first: equal values have exactly no deviation, close ones keep their digits.
    away = jnp.where(present, values - coordinate_median(values[:, None], present)[0], 0)
    _, inverse = power_of_two(jnp.max(jnp.abs(away)))
    away = away * inverse
    shares = present / jnp.maximum(jnp.sum(present), 1)
    centred = away - jnp.dot(shares, away, precision="highest")
    deviation = jnp.sqrt(jnp.dot(shares, jnp.square(centred), precision="highest"))
    return jnp.abs(away) < limit * deviation, ~jnp.any(away != 0)
