"""Cleaning a model after (or during) training: federated pruning, extreme weights, masked fine-tuning.

Wu, Yang, Zhu, Mitra, "Mitigating Backdoor Attacks in Federated Learning", 2020 (arXiv 2011.01767),
section IV. All of it happens in one convolution, the last one, whose C output channels the paper calls
neurons::

    layer = convolution(module, sample, "Conv_1")
    order = ranking_vote(ranks(client_activations(layer, params, data)))
    params, keep, report = prune(layer, params, order, validation)     # until the accuracy falls
    params, report = adjust_extreme_weights(layer, params, validation, keep=keep)
    sim = sim._replace(after_round=masked(layer, keep))                # fine-tuning: more rounds of run
    state, _ = run(sim, key, data, 10, params=params)

``validation`` is a function params (d,) -> accuracy (): the server's own examples (``accuracy``) or,
without any, what clients report (``clients_accuracy``). All pruned prefixes, and all thresholds, are
tried in one program.

The paper leaves open, and here is taken: activations are after the ReLU (``relu=False``: before) and
before pooling; a pruned neuron is a channel whose kernel and bias are zero; ties go to the lower channel;
extreme weights are those of the kernel, their mean and deviation over neurons that are not pruned.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from fractions import Fraction
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree

from fedjax_robust import checks
from fedjax_robust.clients import Loss, Objective
from fedjax_robust.memo import same_for_equal_arguments
from fedjax_robust.metrics import predict
from fedjax_robust.tasks import masked_mean
from fedjax_robust.types import Array, Batch, FederatedData, Info, Repair, Task

Validation = Callable[[Array], Array]
"""params (d,) -> accuracy () in [0, 1]."""

DELTAS = (10.0, 9.0, 8.0, 7.0, *(6 - 0.25 * i for i in range(21)))
"""From 10 down to 1: with steps of 1 below 6 a single step can cost so much that AW stops too early."""


class ConvolutionLayer(NamedTuple):
    """One convolution of a model, seen in the flat parameters."""

    outputs: Callable[[Array, Array], Array]
    """params (d,), x (b, ...) -> the layer's outputs (b, H, W, C), before any activation."""
    channel: Array
    """(d,) int32: which output channel a parameter belongs to, -1 for those of other layers."""
    is_weight: Array
    """(d,) bool: it is of the layer's kernel."""
    channels: int
    """C."""


def convolution(module: nn.Module, sample: Array, name: str) -> ConvolutionLayer:
    """The convolution ``name`` of a model, such as "Conv_1", the second one that Flax names itself.

    Args:
      module: the model, as for ``tasks.classification``.
      sample: one example or batch of inputs, (1, ...).
      name: name in the parameters; "Block_0/Conv_1" inside of a submodule.

    Raises:
      ValueError: if there is no convolution (a kernel of four axes) of that name; it lists those there
        are. If the module does not take the sample.
      TypeError: if ``module`` is no module, or ``name`` no string.
    """
    checks.part("convolution", nn.Module, module=module)
    sample = checks.array("convolution", "sample", sample)
    if not isinstance(name, str):
        raise TypeError(f"convolution needs name to be a string such as 'Conv_1', got {name!r}")
    try:
        shapes = jax.eval_shape(module.init, jax.random.key(0), sample)["params"]
    except Exception as error:
        raise ValueError(
            "convolution needs a sample of inputs (1, ...) that the module takes, got shape "
            f"{sample.shape}: {error}"
        ) from error
    leaves = jax.tree_util.tree_leaves_with_path(shapes)
    paths = ["/".join(str(getattr(k, "key", k)) for k in path) for path, _ in leaves]
    kernels = [
        path.removesuffix("/kernel")
        for path, (_, leaf) in zip(paths, leaves, strict=True)
        if path.endswith("/kernel") and len(leaf.shape) == 4
    ]
    if name not in kernels:
        there = f"its convolutions are {kernels}" if kernels else "it has no convolution"
        raise ValueError(
            f"the model has no convolution {name!r}: {there}; pruning needs a convolution to prune"
        )
    channels = next(
        leaf.shape[3]
        for path, (_, leaf) in zip(paths, leaves, strict=True)
        if path == f"{name}/kernel"
    )
    channel, is_weight = [], []
    for path, (_, leaf) in zip(paths, leaves, strict=True):  # the order of ravel_pytree
        inside = path.rpartition("/")[0] == name
        own = np.broadcast_to(np.arange(channels), leaf.shape) if inside else -np.ones(leaf.shape)
        channel.append(own.ravel().astype(np.int32))
        is_weight.append(np.full(own.size, path == f"{name}/kernel"))
    _, unravel = ravel_pytree(jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes))
    parts = tuple(name.split("/"))

    def outputs(params: Array, x: Array) -> Array:
        try:
            _, state = module.apply(
                {"params": unravel(params)},
                x,
                capture_intermediates=lambda m, method: m.path == parts and method == "__call__",
            )
        except Exception as error:
            raise ValueError(
                f"the model of {name!r} does not take inputs x of shape {x.shape}, only such as "
                f"{sample.shape}: {error}"
            ) from error
        (leaf,) = jax.tree.leaves(state["intermediates"])
        return jnp.asarray(leaf)

    return ConvolutionLayer(
        outputs,
        jnp.asarray(np.concatenate(channel)),
        jnp.asarray(np.concatenate(is_weight)),
        channels,
    )


# --- What clients report --------------------------------------------------------------------------


def activations(
    layer: ConvolutionLayer,
    params: Array,
    x: Array,
    *,
    relu: bool = True,
) -> Array:
    """Each neuron's average activation: the sum over space, the mean over images (section IV-A).

    Args:
      layer: the layer.
      params: (d,).
      x: (b, ...) images.
      relu: after the ReLU.

    Returns:
      (C,).

    Raises:
      ValueError: for parameters or images of another shape.
      TypeError: if an argument is of another type.
    """
    params = _parameters("activations", layer, params)
    x = _images("activations", x)
    checks.boolean("activations", relu=relu)
    values = layer.outputs(params, x)
    return jnp.mean(jnp.sum(jax.nn.relu(values) if relu else values, axis=(1, 2)), axis=0)


def client_activations(
    layer: ConvolutionLayer,
    params: Array,
    data: FederatedData,
    *,
    relu: bool = True,
    chunk: int = 100,
) -> Array:
    """``activations`` of every client over all of its images.

    Args:
      layer: the layer.
      params: (d,).
      data: the images of N clients; one without images gets zeros.
      relu: after the ReLU.
      chunk: images at a time, >= 1; 100 fit a CPU's caches.

    Returns:
      (N, C).

    Raises:
      ValueError: if ``chunk`` is below 1, parameters have another shape, or the data are none.
      TypeError: if an argument is of another type.
    """
    what = "client_activations"
    params = _parameters(what, layer, params)
    _data(what, data, ("x",))
    _images(what, data.examples["x"])
    checks.boolean(what, relu=relu)
    checks.static_count(what, 1, chunk=chunk, remedy="images at a time")

    def one(client: tuple[Array, Array]) -> Array:
        index, count = client
        of_image = jax.lax.map(
            lambda i: activations(layer, params, data.examples["x"][i][None], relu=relu),
            index,
            batch_size=chunk,
        )
        mask = jnp.arange(index.shape[0]) < count
        return jax.vmap(masked_mean, in_axes=(1, None))(of_image, mask)

    return jax.lax.map(one, (data.index, data.count))


def ranks(activations: Array) -> Array:
    """Each client's ranking of the neurons, 1 for the least active: (N, C) -> (N, C) int32.

    Raises:
      ValueError: for another shape, or if a known activation is not finite.
      TypeError: if they are no numbers.
    """
    activations = _reports("ranks", "activations", activations)
    order = jnp.argsort(activations, axis=1, stable=True)
    return jnp.argsort(order, axis=1) + 1


def ranking_vote(ranks: Array) -> Array:
    """The server's pruning sequence by R_k = mean over clients of R_k^i (section IV-A).

    The text ranks in ascending order of activation and prunes "in the decreasing order of the global
    dormant ranking": the most dormant neuron first, which is the one of the smallest R_k.

    Args:
      ranks: (N, C), see ``ranks``; what malicious clients report may differ.

    Returns:
      (C,) int32 channels, the first to be pruned first.

    Raises:
      ValueError: for another shape, or if a known row is not 1, ..., C in some order.
      TypeError: if they are no numbers.
    """
    ranks = _rankings("ranking_vote", ranks)
    return jnp.argsort(jnp.sum(ranks.astype(jnp.int32), axis=0), stable=True)


def votes(activations: Array, rate: float) -> Array:
    """Each client's mask: 0 for its least active ``rate`` of the neurons, else 1 (section IV-B).

    Args:
      activations: (N, C).
      rate: p in (0, 1); the paper finds 0.3 to 0.7 to work. floor(p C) neurons get a 0.

    Returns:
      (N, C) int32.

    Raises:
      ValueError: if the rate is out of range, or as in ``ranks``.
      TypeError: if they are no numbers.
    """
    activations = _reports("votes", "activations", activations)
    checks.between("votes", 0, 1, open_low=True, open_high=True, rate=rate)
    number: int | Array
    if checks.is_known(rate):  # as it is printed: 0.29 of 100 are 29, though 0.29 * 100 < 29
        number = int(Fraction(str(np.asarray(rate)[()])) * activations.shape[1])
    else:
        number = jnp.floor(rate * activations.shape[1])
    return (ranks(activations) > number).astype(jnp.int32)


def majority_vote(votes: Array) -> Array:
    """The server's pruning sequence: increasing number of clients that keep a neuron (section IV-B).

    Args:
      votes: (N, C) of 0 and 1.

    Returns:
      (C,) int32 channels, the first to be pruned first.

    Raises:
      ValueError: for another shape, or if a known vote is neither 0 nor 1.
      TypeError: if they are no numbers.
    """
    votes = _reports("majority_vote", "votes", votes, boolean=True)
    if checks.is_known(votes) and not np.all(np.isin(votes, (0, 1))):
        raise ValueError(
            "majority_vote needs votes of 0 and 1, as repairs.votes makes them, got values from "
            f"{np.asarray(votes).min():g} to {np.asarray(votes).max():g}"
        )
    return jnp.argsort(jnp.sum(votes.astype(jnp.int32), axis=0), stable=True)


def _reports(what: str, name: str, values: Array, *, boolean: bool = False) -> Array:
    """(N, C) numbers, finite where they are known."""
    values = checks.array(what, name, values)
    if boolean and values.dtype == bool:
        values = values.astype(jnp.int32)
    values = checks.shaped(
        what, name, values, (None, None), meaning="(N, C), a row for each client"
    )
    if checks.is_known(values) and not np.all(np.isfinite(values)):
        raise ValueError(f"{what} needs finite {name}, got NaN or Inf; leave that client out")
    return values


def _rankings(what: str, ranks: Array) -> Array:
    """(N, C), where they are known each row 1, ..., C in some order."""
    ranks = _reports(what, "ranks", ranks)
    wanted = np.arange(1, ranks.shape[1] + 1)
    if checks.is_known(ranks) and not np.all(np.sort(ranks, axis=1) == wanted):
        raise ValueError(
            f"{what} needs ranks that are 1, ..., {ranks.shape[1]} in some order for each client, as "
            f"repairs.ranks makes them, got values from {np.asarray(ranks).min():g} to "
            f"{np.asarray(ranks).max():g}"
        )
    return ranks


# --- Validation -----------------------------------------------------------------------------------


@same_for_equal_arguments
def accuracy(task: Task, examples: Batch, *, chunk: int = 1000) -> Validation:
    """The server's own validation data: share of ``x`` (E, ...) classified as ``y`` (E,).

    Raises:
      ValueError: for examples of other shapes, labels that the task does not have, or chunk < 1.
      TypeError: if an argument is of another type.
    """
    checks.part("accuracy", Task, task=task)
    examples = checks.examples("accuracy", examples)
    checks.static_count("accuracy", 1, chunk=chunk, remedy="examples evaluated at a time")
    x, y = examples["x"], examples["y"]
    checks.labels("accuracy", y, x=x, num_classes=checks.classes("accuracy", task, x))
    return lambda params: jnp.mean(predict(task, params, x, chunk=chunk) == y)


@same_for_equal_arguments
def clients_accuracy(
    task: Task,
    data: FederatedData,
    report: Callable[[Array], Array] = lambda shares: shares,
    *,
    chunk: int = 1000,
) -> Validation:
    """The mean of what clients say about their own images, for a server without validation data.

    How the server combines the answers the paper leaves open. A mean believes a liar: one client of ten
    that says 1 of the trained model and 0 of all others stops ``prune`` at once, its drop is 0.1.

    Args:
      task: the learning problem.
      data: the clients' data; one without examples says nothing.
      report: (N,) true accuracies -> what they say; malicious clients may lie.
      chunk: examples evaluated at a time.

    Raises:
      ValueError: for data of other shapes, labels that the task does not have, chunk < 1, or, on use, a
        report of another shape.
      TypeError: if an argument is of another type.
    """
    what = "clients_accuracy"
    checks.part(what, Task, task=task)
    _data(what, data, ("x", "y"))
    checks.function(what, report=report)
    checks.static_count(what, 1, chunk=chunk, remedy="examples evaluated at a time")
    x = jnp.asarray(data.examples["x"])
    checks.labels(what, data.examples["y"], num_classes=checks.classes(what, task, x))

    def validation(params: Array) -> Array:
        def one(client: tuple[Array, Array]) -> Array:
            index, count = client
            predicted = predict(task, params, data.examples["x"][index], chunk=chunk)
            right = predicted == data.examples["y"][index]
            return masked_mean(right.astype(jnp.float32), jnp.arange(index.shape[0]) < count)

        said = report(jax.lax.map(one, (data.index, data.count)))
        checks.returned("clients_accuracy's report", said, data.count.shape)
        return masked_mean(said, data.count > 0)

    return validation


# --- Repairs --------------------------------------------------------------------------------------


def with_neurons(layer: ConvolutionLayer, params: Array, keep: Array) -> Array:
    """Only some neurons: kernel and bias of all others are zero. (d,), keep (C,) bool -> (d,).

    Raises:
      ValueError: for parameters or a mask of another shape.
      TypeError: if the mask is not bool.
    """
    params = _parameters("with_neurons", layer, params)
    keep = _mask("with_neurons", layer, keep)
    return jnp.where((layer.channel < 0) | keep[layer.channel], params, 0)


def masked(layer: ConvolutionLayer, keep: Array) -> Repair:
    """For ``Simulation(after_round=...)``: pruned neurons stay pruned while the model is fine-tuned.

    Raises:
      ValueError, TypeError: as ``with_neurons``.
    """
    _layer("masked", layer)
    keep = _mask("masked", layer, keep)
    return lambda key, params: with_neurons(layer, params, keep)


def prune(
    layer: ConvolutionLayer,
    params: Array,
    order: Array,
    validation: Validation,
    *,
    drop: float = 0.01,
    floor: float | Array = -jnp.inf,
    chunk: int = 1,
) -> tuple[Array, Array, Info]:
    """Prune neurons one after the other until the accuracy falls (sections IV-A and V-B).

    Pruning stops before the first neuron that costs more than ``drop`` of accuracy "between two testing
    points" (V-B), here between one neuron and the next, or after which the accuracy is "below a certain
    threshold" (IV-A), ``floor``. One neuron always stays.

    Args:
      layer: the layer.
      params: (d,).
      order: (C,) channels, each once, the first to be pruned first.
      validation: params -> accuracy. NaN counts as a fall.
      drop: the fall that is too much, > 0; 0.01 in the paper; inf: any fall will do.
      floor: the lowest accuracy that will do; -inf: any.
      chunk: models evaluated in one vmapped batch, which needs that many times the memory. C, all of
        them, is meant for accelerators; on a CPU 1 was fastest (C took 1.1 to 2 times as long).

    Returns:
      The pruned parameters (d,), the neurons kept (C,) bool, and a report: ``accuracies`` (C,) after
      0, 1, ..., C - 1 neurons, and the number ``pruned`` ().

    Raises:
      ValueError: if ``drop`` is not positive, ``floor`` is not a number, ``chunk`` is below 1, the order
        is no permutation, a shape is another one, or the accuracy of the whole model is NaN (unless it
        is traced: then nothing is pruned).
      TypeError: if an argument is of another type.
    """
    params = _parameters("prune", layer, params)
    order = checks.shaped("prune", "order", order, (layer.channels,), "integer", "(C,)")
    if checks.is_known(order) and not np.array_equal(np.sort(order), np.arange(layer.channels)):
        raise ValueError(
            f"prune needs an order of the channels 0, ..., {layer.channels - 1} with each of them once, "
            f"got {np.asarray(order).tolist()}"
        )
    validation = _checked_validation("prune", validation)
    _check_limits("prune", drop, floor, chunk)
    position = jnp.argsort(order)  # when each channel goes

    def after(number: Array) -> Array:
        return validation(with_neurons(layer, params, position >= number))

    accuracies = _map(after, jnp.arange(layer.channels), chunk)
    _refuse_nan("prune", accuracies[0])
    number = _before_the_first_fall(accuracies, drop, floor)
    keep = position >= number
    return with_neurons(layer, params, keep), keep, {"accuracies": accuracies, "pruned": number}


def _layer(what: str, layer: ConvolutionLayer) -> None:
    checks.part(what, ConvolutionLayer, layer=layer)


def _parameters(what: str, layer: ConvolutionLayer, params: Array) -> Array:
    """params (d,) of the layer's model."""
    _layer(what, layer)
    shape = (layer.channel.shape[0],)
    return checks.shaped(what, "params", params, shape, "float", "(d,), the layer's model")


def _mask(what: str, layer: ConvolutionLayer, keep: Array) -> Array:
    """keep (C,) bool."""
    return checks.shaped(what, "keep", keep, (layer.channels,), "bool", "(C,)")


def _images(what: str, x: Array) -> Array:
    x = checks.array(what, "x", x)
    if x.ndim < 2 or x.shape[0] < 1:
        raise ValueError(f"{what} needs images x (b, ...), b >= 1, got shape {x.shape}")
    return x


def _data(what: str, data: FederatedData, names: Sequence[str]) -> None:
    checks.part(what, FederatedData, data=data)
    checks.partition(what, data.examples, data.index, data.count, names)
    if data.index.ndim != 2:
        raise ValueError(
            f"{what} needs one partition, data.index (N, m), got shape {data.index.shape}; for a stack "
            "of them use jax.vmap"
        )


def _checked_validation(what: str, validation: Validation) -> Validation:
    checks.function(what, validation=validation)

    def checked(params: Array) -> Array:
        value: Any = validation(params)
        if isinstance(value, float):
            value = jnp.float32(value)
        checks.returned(f"{what}'s validation", value, ())
        return jnp.asarray(value)

    return checked


def _refuse_nan(what: str, accuracy: Array) -> None:
    if checks.is_known(accuracy) and np.isnan(accuracy):
        raise ValueError(
            f"{what} needs a validation that returns an accuracy, got nan for the model as it is; mend "
            "the parameters or the validation"
        )


def _check_limits(what: str, drop: float, floor: float | Array, chunk: int) -> None:
    checks.positive(what, infinite=True, drop=drop)
    checks.finite(what, infinite=True, floor=floor, remedy="-inf: none")
    checks.static_count(what, 1, chunk=chunk, remedy="the models evaluated at once")


def _map(function: Callable[[Array], Any], values: Array, chunk: int) -> Any:
    # A vmap over one model would still make its convolutions grouped ones.
    return jax.lax.map(function, values, batch_size=None if chunk == 1 else chunk)


def _before_the_first_fall(accuracies: Array, drop: float, floor: float | Array) -> Array:
    """The last index before a step down of more than ``drop``, to below ``floor``, or from or to NaN."""
    steady = (accuracies[:-1] - accuracies[1:] <= drop) & (accuracies[1:] >= floor)
    falls = ~steady
    return jnp.where(jnp.any(falls), jnp.argmax(falls), len(accuracies) - 1)


def without_extreme_weights(
    layer: ConvolutionLayer, params: Array, delta: float | Array, keep: Array | None = None
) -> tuple[Array, Array]:
    """Zero the layer's weights outside of mu +- Delta sigma (section IV-C).

    Args:
      layer: the layer.
      params: (d,).
      delta: Delta > 0; 3 in Table I.
      keep: (C,) bool; only the weights of these neurons make mu and sigma; default all.

    Returns:
      (d,), and how many weights became zero, ().

    Raises:
      ValueError: if Delta is not positive, a shape is another one, or a known weight is not finite.
      TypeError: if an argument is of another type.
    """
    params = _parameters("without_extreme_weights", layer, params)
    checks.positive("without_extreme_weights", infinite=True, delta=delta)
    _refuse_not_finite("without_extreme_weights", params, layer.is_weight)
    kept = layer.is_weight
    if keep is not None:
        kept &= _mask("without_extreme_weights", layer, keep)[layer.channel]
    scaled, mean, deviation, _ = _moments(params, kept)
    extreme = kept & (jnp.abs(scaled - mean) > delta * deviation)
    return jnp.where(extreme, 0, params), jnp.sum(extreme)


def _moments(params: Array, kept: Array) -> tuple[Array, Array, Array, Array]:
    """Kept parameters in units of a power of two near the largest of them, so that squares neither
    overflow nor underflow; their mean and deviation in that unit; the unit.

    Dividing by a power of two is exact, so that the unit does not show in the results.
    """
    limits = jnp.finfo(params.dtype)
    largest = jnp.max(jnp.where(kept, jnp.abs(params), 0))
    # Not so large that its reciprocal is subnormal.
    _, exponent = jnp.frexp(jnp.clip(largest, limits.tiny, 1 / limits.tiny))
    unit = jnp.ldexp(jnp.ones_like(largest), exponent - 1)
    scaled = jnp.where(kept, params / unit, 0)
    number = jnp.maximum(jnp.sum(kept), 1)
    mean = jnp.sum(scaled) / number
    deviation = jnp.sqrt(jnp.sum(jnp.where(kept, jnp.square(scaled - mean), 0)) / number)
    return scaled, mean, deviation, unit


def _refuse_not_finite(what: str, params: Array, kept: Array) -> None:
    if checks.is_known(params) and checks.is_known(kept):
        wrong = np.sum(np.asarray(kept) & ~np.isfinite(params))
        if wrong:
            raise ValueError(
                f"{what} needs params whose weights are finite, got {wrong} that are NaN or Inf; they "
                "have no mean"
            )


def adjust_extreme_weights(
    layer: ConvolutionLayer,
    params: Array,
    validation: Validation,
    *,
    deltas: Sequence[float] = DELTAS,
    drop: float = 0.01,
    floor: float | Array = -jnp.inf,
    keep: Array | None = None,
    chunk: int = 1,
) -> tuple[Array, Info]:
    """Lower Delta until the accuracy falls, and take the last one before that (section V-C).

    The paper names two criteria: "the same" as in pruning, here before the first Delta that costs more
    than ``drop`` of accuracy against the one before it, or against no change for the first; and "until
    the test accuracy drops below a certain threshold or the loss rises above" one, which is ``floor``
    (for a loss, let ``validation`` be its negative).

    Args:
      layer: the layer.
      params: (d,).
      validation: params -> accuracy.
      deltas: values to try, descending; one value is used as it is.
      drop: the fall between two values that is too much, > 0; inf: any fall will do.
      floor: the lowest accuracy that will do; -inf: any.
      keep: (C,) bool, neurons that are not pruned; see ``without_extreme_weights``.
      chunk: models evaluated in one vmapped batch; see ``prune``.

    Returns:
      The parameters (d,), and a report: ``deltas`` and ``accuracies`` (K,), the ``delta`` () taken (inf:
      none, even the largest costs too much) and the number ``zeroed`` ().

    Raises:
      ValueError: if the deltas are not finite, positive and descending, ``drop`` is not positive,
        ``floor`` is not a number, ``chunk`` is below 1, a shape is another one, or as ``prune`` for an
        accuracy of NaN and ``without_extreme_weights`` for a weight that is not finite.
      TypeError: if an argument is of another type.
    """
    what = "adjust_extreme_weights"
    params = _parameters(what, layer, params)
    _refuse_not_finite(what, params, layer.is_weight)
    given = checks.array(what, "deltas", deltas)
    if not checks.is_known(given):
        raise TypeError(f"{what} needs deltas that are known when the program is compiled")
    values = np.asarray(given, np.float32)
    if (
        values.ndim != 1
        or not len(values)
        or not (np.all(values > 0) and np.all(np.diff(values) < 0) and np.isfinite(values[0]))
    ):
        raise ValueError(f"{what} needs finite, positive, descending deltas, got {deltas}")
    validation = _checked_validation(what, validation)
    _check_limits(what, drop, floor, chunk)
    if keep is not None:
        keep = _mask(what, layer, keep)
    before = validation(params)
    _refuse_nan(what, before)

    def at(delta: Array) -> tuple[Array, Array]:
        adjusted, zeroed = without_extreme_weights(layer, params, delta, keep)
        return validation(adjusted), zeroed

    accuracies, zeroed = _map(at, jnp.asarray(values), chunk)
    number = _before_the_first_fall(jnp.concatenate([before[None], accuracies]), drop, floor)
    number = jnp.where(len(values) == 1, 1, number)
    delta = jnp.where(number > 0, jnp.asarray(values)[number - 1], jnp.inf)
    adjusted, _ = without_extreme_weights(layer, params, delta, keep)
    taken = jnp.where(number > 0, zeroed[number - 1], 0)
    report = {"deltas": jnp.asarray(values), "accuracies": accuracies}
    return adjusted, report | {"delta": delta, "zeroed": taken}


# --- Against the repairs, and prevention ----------------------------------------------------------


@same_for_equal_arguments
def l2_penalty(layer: ConvolutionLayer, strength: float | Array) -> Objective:
    """Section VI-A, for ``local_sgd(objective=...)``: loss + strength * |weights of the layer|_2^2.

    Args:
      layer: the layer; its bias is not penalised.
      strength: > 0; the paper's values are in a figure only.

    Raises:
      ValueError: if the strength is not positive and finite.
      TypeError: if an argument is of another type.
    """
    _layer("l2_penalty", layer)
    checks.positive("l2_penalty", strength=strength)

    def objective(loss: Loss, received: Array) -> Loss:
        def penalised(params: Array, batch: Batch) -> Array:
            weights = jnp.where(layer.is_weight, params, 0)
            return loss(params, batch) + strength * jnp.sum(jnp.square(weights))

        return penalised

    return objective


def pruning_aware(layer: ConvolutionLayer, keep: Array) -> Objective:
    """Section VI-C, the attacker knows the final mask and trains a backdoor without pruned neurons.

    Args:
      layer: the layer.
      keep: (C,) bool, the neurons that the server will keep; the others have no gradient.

    Raises:
      ValueError, TypeError: as ``with_neurons``.
    """
    _layer("pruning_aware", layer)
    keep = _mask("pruning_aware", layer, keep)

    def objective(loss: Loss, received: Array) -> Loss:
        return lambda params, batch: loss(with_neurons(layer, params, keep), batch)

    return objective


def self_clipping(layer: ConvolutionLayer, delta: float | Array) -> Callable[[Array], Array]:
    """Section VI-C, the attacker's own weights within mu +- Delta sigma: params (d,) -> (d,).

    Clipped to the bounds, which the server's rule sets to zero, so that the attacker keeps what it can of
    them. mu and sigma are those before clipping; afterwards sigma is smaller.

    Args:
      layer: the layer.
      delta: Delta > 0.

    Raises:
      ValueError: if Delta is not positive and finite; on use, for parameters of another shape.
      TypeError: if an argument is of another type.
    """
    _layer("self_clipping", layer)
    checks.positive("self_clipping", delta=delta)

    def clip(params: Array) -> Array:
        params = _parameters("self_clipping", layer, params)
        scaled, mean, deviation, unit = _moments(params, layer.is_weight)
        bound = delta * deviation
        clipped = unit * jnp.clip(scaled, mean - bound, mean + bound)
        return jnp.where(layer.is_weight, clipped, params)

    return clip


def reversed_ranks(ranks: Array, malicious: Array) -> Array:
    """Section VI-C, malicious clients report the dormant neurons as the most active ones.

    Args:
      ranks: (N, C), see ``ranks``.
      malicious: (N,) bool.

    Raises:
      ValueError: for other shapes, or ranks as in ``ranking_vote``.
      TypeError: if ``malicious`` is not bool.
    """
    ranks = _rankings("reversed_ranks", ranks)
    malicious = checks.shaped(
        "reversed_ranks", "malicious", malicious, ranks.shape[:1], "bool", "(N,)"
    )
    return jnp.where(malicious[:, None], ranks.shape[1] + 1 - ranks, ranks)
