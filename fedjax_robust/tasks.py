"""Learning problems over flat parameters: the pytree of a model exists only in here.

``classification`` and ``next_word`` take a module of ``flax.linen``; ``from_functions`` takes the two
functions that every other library has, such as ``flax.nnx``::

    def init(key):
        return nnx.split(Net(nnx.Rngs(key)), nnx.Param)[1]

    graph, _ = nnx.split(Net(nnx.Rngs(0)), nnx.Param)
    task = from_functions(init, lambda params, x: nnx.merge(graph, params)(x), sample)

Convolutions and poolings are made fast for clients with weights of their own, whatever library they come
from (``convolution``).

A trained model, for elsewhere::

    tree = task.unravel(state.params)  # what Flax calls variables["params"]
    Path("model.msgpack").write_bytes(flax.serialization.to_bytes(tree))
    params = task.ravel(flax.serialization.from_bytes(tree, Path("model.msgpack").read_bytes()))
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any, NamedTuple

import flax
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.flatten_util import ravel_pytree

from fedjax_robust import checks
from fedjax_robust.convolution import fast_on_cpu
from fedjax_robust.memo import same_for_equal_arguments
from fedjax_robust.types import Array, Batch, Key, Task

__all__ = [
    "classification",
    "from_functions",
    "masked_mean",
    "next_word",
]


Tree = Any
"""A pytree of parameters."""


def masked_mean(values: Array, mask: Array | None) -> Array:
    """Mean of values with weights of their shape, 0 if all weights are 0; a plain mean without mask.

    Raises:
      ValueError: if the weights have another shape.
    """
    values = checks.array("masked_mean", "values", values)
    if mask is None:
        return jnp.mean(values)
    mask = checks.array("masked_mean", "mask", mask)
    if jnp.shape(mask) != jnp.shape(values):
        raise ValueError(
            f"a masked mean needs a mask of the shape of the values, {jnp.shape(values)}, got "
            f"{jnp.shape(mask)}"
        )
    mask = mask.astype(values.dtype)
    total = jnp.sum(mask)
    return jnp.sum(values * mask) / jnp.where(total > 0, total, 1)


def classification(module: nn.Module, sample: Array, *, precision: str | None = None) -> Task:
    """Softmax cross-entropy classification.

    Dropout (``flax.linen.Dropout``, or whatever else draws with ``make_rng``) acts in local training
    alone, as ``Task.training_loss``: ``loss`` and ``logits`` are without. A module that has it takes an
    argument ``train``, ``training``, ``is_training`` or ``deterministic`` (its opposite) in
    ``__call__``, which tells the two apart, and passes it on.

    Args:
      module: maps x (b, ...) to logits (b, classes). All its variables must be parameters: batch
        statistics have no place in the flat vector.
      sample: one example or batch of inputs, (1, ...), from which the shapes are taken.
      precision: of the model's products of matrices and convolutions, in training and evaluation, as
        ``jax.default_matmul_precision`` names it. ``"highest"`` is float32 everywhere. None leaves it
        to JAX: float32 on a CPU, factors of bfloat16 on a TPU and of TensorFloat-32 on NVIDIA's cards
        since Ampere, which is faster and has 8 and 11 bits of precision. Rules and attacks are always
        computed in float32.

    Raises:
      ValueError: if the module keeps variables other than ``params``, draws at random in an evaluation,
        or does not give logits (b, classes), or for an unknown precision; on use, if inputs, labels or
        masks do not fit.
      TypeError: if it is no module of ``flax.linen``, or the precision is no text.
    """
    return _flax_task("classification", module, sample, 2, precision)


def next_word(module: nn.Module, sample: Array, *, precision: str | None = None) -> Task:
    """Prediction of the next word at every place of a sequence: softmax cross-entropy over the words.

    A batch has ``x`` (b, T) int32, the words, ``y`` (b, T) int32, the words that follow them, and
    optionally ``token_mask`` (b, T), the weights of the single predictions (default ones): 0 for padding,
    and for all but the last word of a sentence that an attacker trains on. ``mask`` (b,) weighs whole
    sequences, as in every task. The loss is the mean cross-entropy with the weights
    mask_s * token_mask_st, so that a sequence counts by its number of words; 0 if all weights are 0.

    With ``token_mask`` in the pool of ``FederatedData`` clients, rules and attacks work as they do for
    classification. Bagdasaryan et al., AISTATS 2020 (https://arxiv.org/abs/1807.00459), section V-B and
    Fig. 3.

    Args:
      module: maps x (b, T) to logits (b, T, words), such as ``models.WordLSTM``; variables and dropout as
        in ``classification``. For padding on the left, as ``data.text`` has it, to be harmless, the
        logits at a place must depend on nothing behind it.
      sample: word ids (1, T), from which the shapes are taken.
      precision: of the products in training and evaluation, "highest" for float32 on accelerators.

    Raises:
      ValueError: if the module keeps variables other than ``params``, draws at random in an evaluation,
        or does not give logits (b, T, words), or for an unknown precision; on use, if ``y`` or
        ``token_mask`` has another shape than ``x``.
      TypeError: if it is no module of ``flax.linen``, or the precision is no text.
    """
    return _flax_task("next_word", module, sample, 3, precision)


def from_functions(
    init: Callable[[Key], Tree],
    apply: Callable[[Tree, Array], Array],
    sample: Array,
    *,
    train: Callable[[Tree, Array, Key], Array] | None = None,
    precision: str | None = None,
) -> Task:
    """A task of any model that can be written as two functions.

    Args:
      init: key -> parameters, a pytree of float arrays.
      apply: parameters, x (b, ...) -> logits, (b, classes) for a loss as in ``classification``, or (b, T,
        words) for one as in ``next_word``; without randomness.
      sample: one example or batch of inputs, (1, ...), from which the shapes are taken.
      train: parameters, x, key -> logits, if local training draws at random (dropout); None = ``apply``.
      precision: of the products in training and evaluation, "highest" for float32 on accelerators.

    Raises:
      ValueError: if there are no parameters, or logits of another shape, or for an unknown precision; on
        use, if inputs, labels or masks do not fit.
      TypeError: if an argument is no function, the parameters are not arrays of floats, or the precision
        is no text.
    """
    checks.function("from_functions", init=init, apply=apply)
    checks.function("from_functions", optional=True, train=train)
    x = _sample("from_functions", sample)
    _check_precision("from_functions", precision)
    return _from_functions(init, apply, train, x.shape, str(x.dtype), precision)


@same_for_equal_arguments
def _from_functions(
    init: Callable[[Key], Tree],
    apply: Callable[[Tree, Array], Array],
    train: Callable[[Tree, Array, Key], Array] | None,
    shape: tuple[int, ...],
    dtype: str,
    precision: str | None,
) -> Task:
    x = jax.ShapeDtypeStruct(shape, jnp.dtype(dtype))
    return _task("from_functions", _Model(init, apply, train), x, None, precision)


def _check_precision(what: str, precision: Any) -> None:
    if precision is None:
        return
    kind = (
        f"{what} needs precision None or a name of jax.default_matmul_precision, such as 'highest'"
    )
    if not isinstance(precision, str):
        raise TypeError(f"{kind}, got {type(precision).__name__}")
    try:
        jax.default_matmul_precision(precision)
    except ValueError as error:
        raise ValueError(f"{kind}, got precision={precision!r}") from error


class _Model(NamedTuple):
    init: Callable[[Key], Tree]
    apply: Callable[[Tree, Array], Array]
    train: Callable[[Tree, Array, Key], Array] | None


# --- Flat parameters -------------------------------------------------------------------------------


def _task(
    what: str,
    model: _Model,
    sample: jax.ShapeDtypeStruct,
    rank: int | None,
    precision: str | None,
) -> Task:
    """The task of a model whose logits have ``rank`` axes, 2 or 3; None = either."""
    shapes = jax.eval_shape(model.init, jax.random.key(0))
    leaves = jax.tree.leaves(shapes)
    if not leaves or any(not jnp.issubdtype(leaf.dtype, jnp.floating) for leaf in leaves):
        kinds = sorted({str(leaf.dtype) for leaf in leaves}) or "none"
        raise (TypeError if leaves else ValueError)(
            f"{what} needs a model with parameters, all of floats, got {kinds}"
        )
    _, unravel = ravel_pytree(jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes))
    structure: Any = jax.tree.structure(shapes)
    sizes = [leaf.shape for leaf in leaves]

    def init(key: Key) -> Array:
        return ravel_pytree(model.init(key))[0]

    def ravel(tree: Tree) -> Array:
        found = [jnp.shape(leaf) for leaf in jax.tree.leaves(tree)]
        if jax.tree.structure(tree) != structure or found != sizes:
            raise ValueError(
                f"ravel needs the tree that unravel gives, {structure} of shapes {sizes}, got "
                f"{jax.tree.structure(tree)} of shapes {found}"
            )
        return ravel_pytree(jax.tree.map(jnp.asarray, tree))[0]

    def called(function: Callable[..., Array]) -> Callable[..., Array]:
        def of_flat(params: Array, x: Array, *key: Key) -> Array:
            if precision is None:
                return function(unravel(params), x, *key)
            with jax.default_matmul_precision(precision):
                return function(unravel(params), x, *key)

        fast = fast_on_cpu(of_flat)

        def outputs(params: Array, x: Array, *key: Key) -> Array:
            try:
                return fast(params, x, *key)
            except Exception as error:
                if jnp.shape(x)[1:] == sample.shape[1:]:
                    raise
                raise ValueError(
                    f"{what} got inputs of shape {jnp.shape(x)}, which its model does not take: the "
                    f"sample that it was made for has the shape {sample.shape}; reshape the inputs, or "
                    f"make the task for theirs ({type(error).__name__}: {error})"
                ) from error

        return outputs

    logits = called(model.apply)
    flat = jax.eval_shape(init, jax.random.key(0))
    result = jax.eval_shape(logits, flat, sample)
    wanted = {2: "(b, classes)", 3: "(b, T, words)", None: "(b, classes) or (b, T, words)"}[rank]
    if (
        not hasattr(result, "shape")
        or result.ndim not in ((2, 3) if rank is None else (rank,))
        or result.shape[:-1] != sample.shape[: result.ndim - 1]
    ):
        raise ValueError(
            f"{what} needs a model that gives logits {wanted}, got "
            f"{getattr(result, 'shape', type(result).__name__)} for inputs of shape {sample.shape}"
        )
    loss = _classification_loss if result.ndim == 2 else _next_word_loss

    def evaluated(params: Array, batch: Batch) -> Array:
        return loss(what, lambda x: logits(params, x), batch)

    if model.train is None:
        return Task(init, evaluated, logits, unravel, None, ravel)
    random_logits = called(model.train)

    def trained(params: Array, batch: Batch, key: Key) -> Array:
        return loss(what, lambda x: random_logits(params, x, key), batch)

    return Task(init, evaluated, logits, unravel, trained, ravel)


def _classification_loss(what: str, logits: Callable[[Array], Array], batch: Batch) -> Array:
    x, outputs = batch["x"], logits(batch["x"])
    y = checks.labels(what, batch["y"], num_classes=outputs.shape[-1])
    if y.shape != outputs.shape[:1]:
        raise ValueError(
            f"{what} needs one label for each example, got x of shape {jnp.shape(x)} and y of shape "
            f"{y.shape}"
        )
    losses = optax.softmax_cross_entropy_with_integer_labels(outputs, y)
    return masked_mean(losses, batch.get("mask"))


def _next_word_loss(what: str, logits: Callable[[Array], Array], batch: Batch) -> Array:
    x, y = batch["x"], batch["y"]
    weights = batch.get("token_mask", jnp.ones(x.shape, jnp.float32))
    if y.shape != x.shape or weights.shape != x.shape:
        raise ValueError(
            f"{what} needs x, y and token_mask of one shape (b, T), got "
            f"{x.shape}, {y.shape} and {weights.shape}"
        )
    if "mask" in batch:
        if jnp.shape(batch["mask"]) != x.shape[:1]:
            raise ValueError(
                f"{what} needs a mask (b,) = {x.shape[:1]}, got shape {jnp.shape(batch['mask'])}"
            )
        weights = weights * batch["mask"][:, None]
    outputs = logits(x)
    y = checks.labels(what, y, num_classes=outputs.shape[-1], x=x)
    losses = optax.softmax_cross_entropy_with_integer_labels(outputs, y)
    return masked_mean(losses, weights)


def _sample(what: str, sample: Any) -> np.ndarray:
    x = checks.array(what, "sample", sample)
    x = x[:1] if x.ndim else x
    if x.ndim < 1 or x.shape[0] < 1:
        raise ValueError(
            f"{what} needs a sample of at least one example, (1, ...), got shape {np.shape(sample)}"
        )
    return np.asarray(x) if checks.is_known(x) else np.zeros(x.shape, x.dtype)


# --- Modules of flax.linen -------------------------------------------------------------------------

_NNX = (
    "make two functions of it for tasks.from_functions: graph, _ = nnx.split(model, nnx.Param); "
    "init = lambda key: nnx.split(Model(nnx.Rngs(key)), nnx.Param)[1]; "
    "apply = lambda params, x: nnx.merge(graph, params)(x)"
)
_BATCH_NORM = (
    "replace batch normalisation by fedjax_robust.nn.BatchNorm, which keeps no statistics, or "
    "by GroupNorm"
)


def _flax_task(what: str, module: Any, sample: Array, rank: int, precision: str | None) -> Task:
    if not isinstance(module, nn.Module):
        kind = module if isinstance(module, type) else type(module)
        remedy = "of other models make functions for tasks.from_functions"
        if issubclass(kind, nn.Module):
            remedy = f"call it: {kind.__name__}(...)"
        elif any(base.__module__.startswith("flax.nnx") for base in kind.__mro__):
            remedy = f"it is one of flax.nnx: {_NNX}"
        shown = f"the class {kind.__name__}" if isinstance(module, type) else repr(kind.__name__)
        raise TypeError(f"{what} needs a module of flax.linen, got {shown}; {remedy}")
    x = _sample(what, sample)
    _check_precision(what, precision)
    return _flax_task_of(what, module, x.shape, str(x.dtype), x.tobytes(), rank, precision)


@same_for_equal_arguments
def _flax_task_of(
    what: str,
    module: nn.Module,
    shape: tuple[int, ...],
    dtype: str,
    content: bytes,
    rank: int,
    precision: str | None,
) -> Task:
    with jax.ensure_compile_time_eval():  # the task outlives a trace in which it is first made
        sample = jnp.asarray(np.frombuffer(content, jnp.dtype(dtype)).reshape(shape))
    training, evaluation = _modes(module)

    def variables(key: Key) -> Tree:
        return module.init(key, sample, **evaluation)

    try:
        shapes = jax.eval_shape(variables, jax.random.key(0))
    except Exception as error:
        raise _in_words(what, error) from error
    if others := sorted(set(shapes) - {"params"}):
        kept = {name: shapes[name] for name in others}
        paths = [path for path, _ in jax.tree_util.tree_leaves_with_path(kept)]
        names = {jax.tree_util.keystr(path[-1:]) for path in paths}
        batch_norm = "" if names.isdisjoint({"['mean']", "['var']"}) else _BATCH_NORM
        remedy = batch_norm or "leave out the layers that keep them, such as SpectralNorm"
        raise ValueError(
            f"{what} needs a module whose variables are all parameters, got also {others}: "
            f"{', '.join(map(jax.tree_util.keystr, paths))}; {remedy}"
        )

    def init(key: Key) -> Tree:
        return variables(key).get("params", {})

    def apply(params: Tree, x: Array) -> Array:
        outputs: Array = module.apply({"params": params}, x, **evaluation)  # type: ignore[assignment]
        return outputs

    def train(params: Tree, x: Array, key: Key) -> Array:
        # Streams that are not named are drawn from that of the parameters.
        rngs = {"dropout": key, "params": jax.random.fold_in(key, 1)}
        outputs: Array = module.apply({"params": params}, x, rngs=rngs, **training)  # type: ignore[assignment]
        return outputs

    parameters = shapes.get("params", {})
    try:
        jax.eval_shape(apply, parameters, sample)
        if training:
            jax.eval_shape(train, parameters, sample, jax.random.key(0))
    except Exception as error:
        raise _in_words(what, error) from error
    model = _Model(init, apply, train if training else None)
    return _task(what, model, jax.ShapeDtypeStruct(shape, sample.dtype), rank, precision)


def _modes(module: nn.Module) -> tuple[dict[str, Any], dict[str, Any]]:
    """How ``__call__`` is told that it trains, and that it evaluates."""
    arguments = inspect.signature(type(module).__call__).parameters
    training = {name: name != "deterministic" for name in arguments if name in _MODES}
    return training, {name: not value for name, value in training.items()}


_MODES = {"train", "training", "is_training", "deterministic"}


def _in_words(what: str, error: Exception) -> Exception:
    """What went wrong when the module was evaluated on the sample."""
    text = str(error)
    if isinstance(error, flax.errors.InvalidRngError) or '"deterministic"' in text:
        return ValueError(
            f"{what} needs a module that can be evaluated without dropout: give its __call__ an argument "
            "train, and pass it on as nn.Dropout(rate, deterministic=not train), "
            f"({type(error).__name__}: {text})"
        )
    return ValueError(
        f"{what} could not evaluate the module on the sample ({type(error).__name__}: {text})"
    )
