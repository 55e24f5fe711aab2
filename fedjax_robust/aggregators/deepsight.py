"""DeepSight: clusters of the clients by their output layers and outputs, dropped if many look
homogeneous.

Rieger, Nguyen, Miettinen, Sadeghi, "DeepSight: Mitigating Backdoor Attacks in Federated Learning Through
Deep Model Inspection", NDSS 2022 (https://arxiv.org/abs/2201.00763), as FLPoison
(https://github.com/vio1etus/FLPoison) has it; numbers are that code's. For each row, with dW (h, P) and
db (P,) its update of the output layer of P neurons:

1. Energies E_p = |db_p| + sum_h |dW_hp|, normalised NEUP_p = E_p^2 / sum E^2. TE, the threshold
   exceedings, is the number of p with NEUP_p > max(0.01, 1 / P) times the largest.
2. Division differences: DDif_p is the mean over random inputs of p_i(x)_p / (p(x)_p + 1e-6), the
   probabilities of the row's own model and of the received one. Three times, on 20,000 uniform inputs
   each.
3. HDBSCAN (``kernels.hdbscan``) by the cosine distances of db, by the NEUPs, and by each of the DDifs. Of
   each clustering comes a distance, 0 for rows of one cluster (those of none, noise, count as one), else
   1. The DDifs' are averaged, then the three kinds.
4. HDBSCAN by the average, in which all may be one cluster. A row is suspicious if TE <= median(TE) / 2:
   its client trained on few labels. Clusters are kept if less than a third of them is suspicious; rows of
   none are dropped.
5. The kept rows, shortened to the median length of all where they are longer, are averaged.

Differences: the inputs are drawn anew in each round by the round's key; FLPoison divides logits. HDBSCAN
merges all components of one level at once, where libraries have an order of their own: most distances of
step 4 are equal. A row whose model's outputs have no value is as if it had been deleted. All choices are
without a gradient; rows have one through their mean and the median length.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from fedjax_robust import checks
from fedjax_robust.aggregators.base import MEAN, wrapping
from fedjax_robust.aggregators.clipping import clip_rows
from fedjax_robust.aggregators.own_models import checked_chunk
from fedjax_robust.kernels.distances import pairwise_distances
from fedjax_robust.kernels.hdbscan import hdbscan
from fedjax_robust.kernels.norms import accumulator, direction_and_length
from fedjax_robust.kernels.ranks import coordinate_median
from fedjax_robust.memo import same_for_equal_arguments
from fedjax_robust.types import Aggregator, Array, Info, Received, Task

Layer = Callable[[Any], tuple[Array, Array]]
"""The named leaves of a model (``task.unravel``) -> its output layer's kernel (h, P) and biases (P,)."""

_AT_ONCE = 1000  # inputs evaluated at a time


@same_for_equal_arguments
def deepsight(
    task: Task,
    sample: Array,
    output: Layer,
    *,
    inputs: int = 20_000,
    draws: int = 3,
    min_cluster_size: int = 5,
    chunk: int | None = None,
    base: Aggregator = MEAN,
) -> Aggregator:
    """DeepSight; see the module's head.

    Reports ``exceedings`` (n,) int32, TE; ``suspicious`` (n,) bool; ``cluster`` (n,) int32, the first row
    of each row's cluster, -1 for none; ``clipped`` (n,) bool, the rows that were shortened; and
    ``selected`` (n,) bool, those that stay, or what ``base`` reports by that name.

    Args:
      task: the learning problem, a classification of inputs that are numbers.
      sample: (1, ...) an input, for its shape and dtype; it must be a floating-point one.
      output: the named leaves -> kernel (h, P) and biases (P,) of the output layer, such as ``lambda
        tree: (tree["Dense_1"]["kernel"], tree["Dense_1"]["bias"])``.
      inputs: random inputs, uniform in [0, 1), of each draw.
      draws: how often they are drawn in each round.
      min_cluster_size: of HDBSCAN, >= 2. Its ``min_samples`` is 3, the row itself not counted.
      chunk: own models evaluated at a time, on 1,000 inputs at a time, which bounds memory; None = all n.
      base: the rule for the shortened rows that stay.

    Raises:
      ValueError: if a number is out of range; when called, if the task's model does not take such inputs
        or parameters, or ``output`` returns other shapes.
      TypeError: for parts and arrays of another kind.
    """
    checks.part("deepsight", Task, task=task)
    sample = checks.array("deepsight", "sample", sample)
    if not jnp.issubdtype(sample.dtype, jnp.floating) or sample.ndim < 2:
        raise ValueError(
            "deepsight needs sample to be an input (1, ...) of floats, got shape "
            f"{sample.shape} and dtype {sample.dtype}"
        )
    checks.function("deepsight", output=output)
    num_classes = checks.classes("deepsight's sample", task, sample)
    checks.static_count("deepsight", 1, inputs=inputs, draws=draws)
    checks.static_count("deepsight", 2, min_cluster_size=min_cluster_size)
    chunk = checked_chunk("deepsight", chunk)
    checks.part("deepsight", Aggregator, base=base)
    inputs, draws, min_cluster_size = int(inputs), int(draws), int(min_cluster_size)

    @jax.jit  # outside of a program, too many small ones
    def change(received: Received) -> tuple[Received, Info]:
        draw, rest = jax.random.split(received.key)
        fixed = received._replace(updates=jax.lax.stop_gradient(received.updates))
        differences = jnp.stack(
            [
                _division_differences(task, key, sample, inputs, fixed, chunk)
                for key in jax.random.split(draw, draws)
            ]
        )
        known = jnp.all(jnp.isfinite(differences), axis=(0, 2))
        present = (received.weights > 0) & known
        updates = jnp.where(present[:, None], received.updates, 0)
        rows = jnp.where(present[:, None], fixed.updates, 0).astype(accumulator(updates.dtype))
        kernel, bias = _output_layer(task, output, num_classes, rows)
        energies, exceedings = _energies(kernel, bias)
        differences = jnp.where(present[:, None], differences, 0)
        apart = _apart(energies, bias, differences, present, min_cluster_size)
        cluster = hdbscan(
            apart, present, min_cluster_size=min_cluster_size, allow_single_cluster=True
        )
        number = exceedings.astype(rows.dtype)[:, None]
        suspicious = present & (number[:, 0] <= 0.5 * coordinate_median(number, present)[0])
        together = (cluster[:, None] == cluster[None, :]) & (cluster >= 0)[:, None]
        few = 3 * jnp.sum(together & suspicious, axis=1) < jnp.sum(together, axis=1)
        selected = present & (cluster >= 0) & few
        _, length = direction_and_length(updates.astype(rows.dtype))
        shortened, longer = clip_rows(updates, coordinate_median(length[:, None], present)[0])
        received = received._replace(
            updates=shortened, weights=jnp.where(selected, received.weights, 0), key=rest
        )
        return received, {
            "selected": selected,
            "clipped": longer & present,
            "cluster": cluster,
            "exceedings": exceedings,
            "suspicious": suspicious,
        }

    return wrapping(change, base)


def _output_layer(task: Task, output: Layer, num_classes: int, rows: Array) -> tuple[Array, Array]:
    """Kernels (n, h, P) and biases (n, P) of the rows."""

    def of_row(row: Array) -> tuple[Array, Array]:
        returned = output(task.unravel(row))
        if not (isinstance(returned, tuple) and len(returned) == 2):
            raise ValueError("deepsight's output must return a kernel (h, P) and biases (P,)")
        kernel, bias = returned
        if jnp.ndim(kernel) != 2 or kernel.shape[1] != num_classes or bias.shape != (num_classes,):
            raise ValueError(
                f"deepsight's output must return a kernel (h, {num_classes}) and biases "
                f"({num_classes},), got shapes {jnp.shape(kernel)} and {jnp.shape(bias)}"
            )
        return kernel, bias

    return jax.vmap(of_row)(rows)


def _energies(kernel: Array, bias: Array) -> tuple[Array, Array]:
    """NEUPs (n, P), and TE (n,): (n, h, P), (n, P)."""
    largest = jnp.maximum(
        jnp.max(jnp.abs(kernel), axis=(1, 2), initial=0), jnp.max(jnp.abs(bias), axis=1)
    )
    divisor = jnp.where(largest > 0, largest, 1)[:, None]  # sums do not overflow, and do not vanish
    energy = jnp.abs(bias) / divisor + jnp.sum(jnp.abs(kernel) / divisor[:, None], axis=1)
    energies = jnp.square(direction_and_length(energy)[0])
    limit = max(0.01, 1 / bias.shape[1]) * jnp.max(energies, axis=1, keepdims=True)
    return energies, jnp.sum(energies > limit, axis=1).astype(jnp.int32)


def _division_differences(
    task: Task, key: Array, sample: Array, inputs: int, received: Received, chunk: int | None
) -> Array:
    """Means of the ratios of probabilities: (n, P)."""
    parts = -(-inputs // _AT_ONCE)
    size = min(inputs, _AT_ONCE)

    def of_part(total: Array, part: tuple[Array, Array]) -> tuple[Array, None]:
        draw, number = part
        x = jax.random.uniform(draw, (size, *sample.shape[1:]), sample.dtype)
        counted = (jnp.arange(size) < number)[:, None]

        def probabilities(params: Array) -> Array:
            return jax.nn.softmax(task.logits(params, x), axis=-1)

        before = probabilities(received.params) + 1e-6

        def of_row(update: Array) -> Array:
            own = probabilities(received.params + update.astype(received.params.dtype))
            return jnp.sum(jnp.where(counted, own / before, 0), axis=0)

        if chunk is None:
            ratios = jax.vmap(of_row)(received.updates)
        else:
            ratios = jax.lax.map(of_row, received.updates, batch_size=chunk)
        return total + ratios, None

    numbers = jnp.clip(inputs - size * jnp.arange(parts), 0, size)
    shape = jax.eval_shape(task.logits, received.params, sample)
    zero = jnp.zeros((received.updates.shape[0], shape.shape[-1]), shape.dtype)
    total, _ = jax.lax.scan(of_part, zero, (jax.random.split(key, parts), numbers))
    return total / inputs


def _apart(
    energies: Array, bias: Array, differences: Array, present: Array, min_cluster_size: int
) -> Array:
    """How many of the clusterings separate two rows, (n, n); those of the DDifs together weigh 1."""
    units, length = direction_and_length(bias)
    features = jnp.stack([units, energies, *differences.astype(energies.dtype)])
    distances = jax.vmap(pairwise_distances, (0, None))(features, present)
    # 1 - cosine = |u - v|^2 / 2: of close directions, a product has no digits left.
    defined = (length > 0)[:, None] & (length > 0)[None, :] | jnp.eye(len(bias), dtype=bool)
    cosine = jnp.where(defined, 0.5 * jnp.square(distances[0]), 1)

    def different(distances: Array) -> Array:
        label = hdbscan(distances, present, min_cluster_size=min_cluster_size)
        return (label[:, None] != label[None, :]).astype(energies.dtype)

    separated = jax.vmap(different)(distances.at[0].set(cosine))
    # Whole numbers: distances that should be equal are. HDBSCAN does not ask for their unit.
    return len(differences) * (separated[0] + separated[1]) + jnp.sum(separated[2:], axis=0)
