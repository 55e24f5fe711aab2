"""One convolution of a model, seen in the flat parameters: its neurons' activations, and its pruning.

Wu et al., 2020 (https://arxiv.org/abs/2011.01767), section IV-A.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree

from fedjax_robust import checks
from fedjax_robust.tasks import masked_mean
from fedjax_robust.types import Array, FederatedData, Repair


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
    params = checked_parameters("activations", layer, params)
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
    params = checked_parameters(what, layer, params)
    checked_data(what, data, ("x",))
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


# --- Pruned models --------------------------------------------------------------------------------


def with_neurons(layer: ConvolutionLayer, params: Array, keep: Array) -> Array:
    """Only some neurons: kernel and bias of all others are zero.

    Args:
      layer: the layer.
      params: (d,).
      keep: (C,) bool, the neurons that stay.

    Returns:
      (d,).

    Raises:
      ValueError: for parameters or a mask of another shape.
      TypeError: if the mask is not bool.
    """
    params = checked_parameters("with_neurons", layer, params)
    keep = checked_mask("with_neurons", layer, keep)
    return jnp.where((layer.channel < 0) | keep[layer.channel], params, 0)


def masked(layer: ConvolutionLayer, keep: Array) -> Repair:
    """For ``Simulation(after_round=...)``: pruned neurons stay pruned while the model is fine-tuned.

    Args:
      layer: the layer.
      keep: (C,) bool, the neurons that are not pruned.

    Raises:
      ValueError: for a mask of another shape; on use, for parameters of another shape.
      TypeError: if ``layer`` is no layer, or the mask not bool.
    """
    check_layer("masked", layer)
    keep = checked_mask("masked", layer, keep)
    return lambda key, params: with_neurons(layer, params, keep)


def check_layer(what: str, layer: ConvolutionLayer) -> None:
    """TypeError if ``layer`` is no ``ConvolutionLayer``."""
    checks.part(what, ConvolutionLayer, layer=layer)


def checked_parameters(what: str, layer: ConvolutionLayer, params: Array) -> Array:
    """params (d,) of the layer's model."""
    check_layer(what, layer)
    shape = (layer.channel.shape[0],)
    return checks.shaped(what, "params", params, shape, "float", "(d,), the layer's model")


def checked_mask(what: str, layer: ConvolutionLayer, keep: Array) -> Array:
    """keep (C,) bool."""
    return checks.shaped(what, "keep", keep, (layer.channels,), "bool", "(C,)")


def _images(what: str, x: Array) -> Array:
    x = checks.array(what, "x", x)
    if x.ndim < 2 or x.shape[0] < 1:
        raise ValueError(f"{what} needs images x (b, ...), b >= 1, got shape {x.shape}")
    return x


def checked_data(what: str, data: FederatedData, names: Sequence[str]) -> None:
    """Clients' data with these arrays, and one partition of them.

    ValueError for other shapes or several partitions, TypeError for what is no ``FederatedData``.
    """
    checks.part(what, FederatedData, data=data)
    checks.partition(what, data.examples, data.index, data.count, names)
    if data.index.ndim != 2:
        raise ValueError(
            f"{what} needs one partition, data.index (N, m), got shape {data.index.shape}; for a stack "
            "of them use jax.vmap"
        )
