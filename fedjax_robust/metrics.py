"""What to measure: functions of the parameters for ``run(evaluate=...)``, functions of a round's
before-attack updates for ``Simulation(observe=...)``, and detection figures.

All rates are fractions in [0, 1]. The test data travel as arguments of the compiled program
(``jax.tree_util.Partial``), not as constants in it.

``score`` makes one number of an evaluation a function of the parameters, where a rule asks for one::

    score(accuracy(task, validation))  # params (d,) -> ()
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.tree_util import Partial

from fedjax_robust import checks
from fedjax_robust.kernels.norms import changing_direction, weighted_mean
from fedjax_robust.kernels.presence import drop_non_finite
from fedjax_robust.memo import same_for_equal_arguments
from fedjax_robust.types import (
    Aggregator,
    Array,
    Batch,
    Evaluate,
    FederatedData,
    Info,
    Received,
    Score,
    Task,
)

__all__ = [
    "accuracy",
    "attack_success",
    "backdoor_accuracy",
    "client_accuracy",
    "cross_entropy",
    "detection",
    "direction_agreement",
    "per_class_error",
    "predict",
    "score",
    "test_error",
    "together",
    "word_accuracy",
]


def predict(task: Task, params: Array, x: Array, *, chunk: int = 1000) -> Array:
    """Predicted classes (E,) int32; of sequences the predicted next words (E, T).

    Args:
      task: the learning problem.
      params: (d,).
      x: (E, ...), or words (E, T).
      chunk: examples evaluated at a time, which bounds memory. On a CPU convolutions are up to twice as
        fast in chunks of 100, which fit its caches.

    Raises:
      ValueError: without examples, or for a chunk < 1.
      TypeError: if the chunk is no integer.
    """
    checks.part("predict", Task, task=task)
    params = checks.shaped("predict", "params", params, (None,), meaning="(d,)")
    x = checks.array("predict", "x", x)
    if x.ndim < 1:
        raise ValueError(f"predict needs examples x (E, ...), got shape {x.shape}")
    return _by_chunks(lambda logits: jnp.argmax(logits, axis=-1), task, params, chunk, x).astype(
        jnp.int32
    )


def _by_chunks(
    what: Callable[..., Array], task: Task, params: Array, chunk: int, x: Array, *others: Array
) -> Array:
    """(logits, others) of a chunk -> (chunk, ...), for all of the E examples, (E, ...)."""
    number = x.shape[0]
    checks.static_count("an evaluation", 1, examples=number, chunk=chunk)
    chunks = -(-number // min(chunk, number))
    size = -(-number // chunks)

    def split(values: Array) -> Array:
        padded = jnp.pad(values, ((0, chunks * size - number), *[(0, 0)] * (values.ndim - 1)))
        return padded.reshape(chunks, size, *values.shape[1:])

    def one(part: tuple[Array, ...]) -> Array:
        return what(task.logits(params, part[0]), *part[1:])

    results = jax.lax.map(one, tuple(split(values) for values in (x, *others)))
    return results.reshape(-1, *results.shape[2:])[:number]


# --- Evaluations -----------------------------------------------------------------------------------
#
# What is measured, and of which task, is a value: equal evaluations of another test set are one program.


class _Evaluator(NamedTuple):
    measure: Callable[..., Any]
    """(this, params, arrays) -> named results"""
    task: Task
    chunk: int
    setting: Any = None
    """Of the metric: a target, a number of classes, a name."""

    def __call__(self, *arguments: Any) -> dict[str, Array]:
        *arrays, params = arguments
        results: dict[str, Array] = self.measure(self, params, *arrays)
        return results

    def predict(self, params: Array, x: Array) -> Array:
        return predict(self.task, params, x, chunk=self.chunk)

    def classes(self, params: Array, x: Array) -> int:
        one = jax.ShapeDtypeStruct((1, *x.shape[1:]), x.dtype)
        return int(jax.eval_shape(self.task.logits, params, one).shape[-1])


def _evaluator(
    what: str, measure: Callable[..., Any], task: Task, chunk: int, setting: Any = None
) -> _Evaluator:
    checks.part(what, Task, task=task)
    checks.static_count(what, 1, chunk=chunk)
    return _Evaluator(measure, task, chunk, setting)


def _labelled(what: str, task: Task, batch: Batch, *, sequences: bool = False) -> list[Array]:
    """x and y of test examples, and the labels fit the task."""
    checks.part(what, Task, task=task)
    test = checks.examples(what, batch)
    x, y = test["x"], test["y"]
    if sequences and (y.ndim != 2 or x.shape != y.shape):
        raise ValueError(f"{what} needs x and y (E, T), got shapes {x.shape} and {y.shape}")
    if not sequences and y.ndim != 1:
        raise ValueError(
            f"{what} needs labels y (E,), got shape {y.shape}; of words, see word_accuracy"
        )
    if checks.is_known(y):
        checks.labels(what, y, num_classes=_classes(task, x), x=x)
    return [x, y]


def _classes(task: Task, x: Array) -> int | None:
    """The number of classes of a task, None if it has logits alone and no initial parameters."""
    try:
        jax.eval_shape(task.init, jax.random.key(0))
    except Exception:
        return None
    return checks.classes("an evaluation", task, x)


def _target(what: str, target: int, num_classes: int | None = None) -> None:
    checks.static_count(what, 0, target=target, remedy="labels are 0, 1, 2, ...")
    if num_classes is not None and target >= num_classes:
        raise ValueError(
            f"{what} needs a target among the task's {num_classes} classes, 0 .. {num_classes - 1}, "
            f"got target={target}"
        )


def test_error(task: Task, test: Batch, *, chunk: int = 1000) -> Evaluate:
    """Testing error rate: ``test_error``, the share of examples classified wrongly.

    Args:
      task: the learning problem.
      test: ``x`` (E, ...) and ``y`` (E,).
      chunk: examples evaluated at a time, which bounds memory.

    Raises:
      ValueError: for other shapes, no examples, or labels that are not the task's.
      TypeError: if an argument is of another type.
    """
    return Partial(
        _evaluator("test_error", _test_error, task, chunk), *_labelled("test_error", task, test)
    )


def _test_error(how: _Evaluator, params: Array, x: Array, y: Array) -> Info:
    return {"test_error": jnp.mean(how.predict(params, x) != y)}


def accuracy(task: Task, test: Batch, *, chunk: int = 1000) -> Evaluate:
    """``accuracy``, the share of examples classified rightly.

    Args:
      task: the learning problem.
      test: ``x`` (E, ...) and ``y`` (E,).
      chunk: examples evaluated at a time, which bounds memory.

    Raises:
      ValueError: for other shapes, no examples, or labels that are not the task's.
      TypeError: if an argument is of another type.
    """
    return Partial(
        _evaluator("accuracy", _accuracy, task, chunk), *_labelled("accuracy", task, test)
    )


def _accuracy(how: _Evaluator, params: Array, x: Array, y: Array) -> Info:
    return {"accuracy": jnp.mean(how.predict(params, x) == y)}


def cross_entropy(task: Task, test: Batch, *, chunk: int = 1000) -> Evaluate:
    """``cross_entropy``, the mean of -log(probability of the right class), >= 0.

    Args:
      task: the learning problem.
      test: ``x`` (E, ...) and ``y`` (E,).
      chunk: examples evaluated at a time, which bounds memory.

    Raises:
      ValueError: for other shapes, no examples, or labels that are not the task's.
      TypeError: if an argument is of another type.
    """
    return Partial(
        _evaluator("cross_entropy", _cross_entropy, task, chunk),
        *_labelled("cross_entropy", task, test),
    )


def _cross_entropy(how: _Evaluator, params: Array, x: Array, y: Array) -> Info:
    def losses(logits: Array, y: Array) -> Array:
        return -jnp.take_along_axis(jax.nn.log_softmax(logits), y[:, None], axis=1)[:, 0]

    return {"cross_entropy": jnp.mean(_by_chunks(losses, how.task, params, how.chunk, x, y))}


def client_accuracy(task: Task, data: FederatedData, *, chunk: int = 1000) -> Evaluate:
    """How differently the model serves the clients: its accuracy on each one's examples.

    Results: ``client_accuracy`` (N,), NaN for a client without examples; and of the clients with
    examples, each counting once, ``client_accuracy_mean``, ``client_accuracy_worst``, and
    ``client_accuracy_worst_tenth``, the mean over the worst ceil(N / 10) (Li et al., "Fair Resource
    Allocation in Federated Learning", ICLR 2020, Table 1).

    Args:
      task: the learning problem.
      data: clients' test examples, ``x`` (E, ...) and ``y`` (E,). The first clients are the malicious
        ones: leave them out by ``data._replace(index=data.index[f:], count=data.count[f:])``.
      chunk: examples evaluated at a time; the pool is evaluated once.

    Raises:
      ValueError: for other shapes, or labels that are not the task's.
      TypeError: if an argument is of another type.
    """
    what = "client_accuracy"
    checks.part(what, FederatedData, data=data)
    checks.partition(what, data.examples, data.index, data.count)
    if jnp.ndim(data.index) != 2:
        raise ValueError(
            f"{what} needs data of one partition, index (N, m), got shape {jnp.shape(data.index)}"
        )
    arrays = _labelled(what, task, data.examples)
    return Partial(
        _evaluator(what, _client_accuracy, task, chunk),
        *arrays,
        jnp.asarray(data.index),
        jnp.asarray(data.count),
    )


def _client_accuracy(
    how: _Evaluator, params: Array, x: Array, y: Array, index: Array, count: Array
) -> Info:
    right = (how.predict(params, x) == y).astype(jnp.float32)
    own = jnp.arange(index.shape[1]) < count[:, None]
    each = jnp.sum(jnp.where(own, right[index], 0), axis=1) / count  # 0 / 0 is NaN
    ascending = jnp.sort(each)  # NaN comes last
    clients = jnp.sum(count > 0)
    tenth = jnp.arange(index.shape[0]) < -(-clients // 10)
    return {
        "client_accuracy": each,
        "client_accuracy_mean": jnp.nanmean(each),
        "client_accuracy_worst": ascending[0],
        "client_accuracy_worst_tenth": jnp.sum(jnp.where(tenth, ascending, 0)) / jnp.sum(tenth),
    }


def per_class_error(task: Task, test: Batch, num_classes: int, *, chunk: int = 1000) -> Evaluate:
    """``per_class_error`` (L,): for each true label, the share of its examples classified wrongly.

    NaN for a label without examples.

    Args:
      task: the learning problem.
      test: ``x`` (E, ...) and ``y`` (E,).
      num_classes: L >= 1; labels are below it.
      chunk: examples evaluated at a time, which bounds memory.

    Raises:
      ValueError: for other shapes, no examples, or labels that are not the task's or not below L.
      TypeError: if an argument is of another type.
    """
    what = "per_class_error"
    checks.static_count(what, 1, num_classes=num_classes)
    x, y = _labelled(what, task, test)
    checks.labels(what, y, num_classes=num_classes)
    return Partial(_evaluator(what, _per_class_error, task, chunk, num_classes), x, y)


def _per_class_error(how: _Evaluator, params: Array, x: Array, y: Array) -> Info:
    label = y == jnp.arange(how.setting)[:, None]
    wrong = label & (how.predict(params, x) != y)
    return {"per_class_error": jnp.sum(wrong, axis=1) / jnp.sum(label, axis=1)}


def attack_success(task: Task, triggered: Batch, target: int, *, chunk: int = 1000) -> Evaluate:
    """Attack success rate: ``attack_success``, the share of triggered examples classified as the target.

    Examples whose true label is the target do not count, as in FLTrust and DBA; counting them would
    credit a clean model with up to 1 / classes. NaN if none counts.

    Args:
      task: the learning problem.
      triggered: ``x`` (E, ...) with the trigger, ``y`` (E,) the *true* labels.
      target: the label the attacker wants, one of the task's.
      chunk: examples evaluated at a time.

    Raises:
      ValueError: for other shapes, no examples, or a target or labels that are not the task's.
      TypeError: if an argument is of another type.
    """
    what = "attack_success"
    x, y = _labelled(what, task, triggered)
    _target(what, target, _classes(task, x))
    return Partial(_evaluator(what, _attack_success, task, chunk, int(target)), x, y)


def _attack_success(how: _Evaluator, params: Array, x: Array, y: Array) -> Info:
    _target("attack_success", how.setting, how.classes(params, x))
    counted = y != how.setting
    hit = counted & (how.predict(params, x) == how.setting)
    return {"attack_success": jnp.sum(hit) / jnp.sum(counted)}


def backdoor_accuracy(task: Task, x: Array, target: int, *, chunk: int = 1000) -> Evaluate:
    """Backdoor accuracy: ``backdoor_accuracy``, the share of examples classified as the target.

    All count, so their true label should be another: of a semantic backdoor, variations of the held-out
    images (``data.images.variations``), of which Bagdasaryan et al. (2020, section V-C) take 1,000. For
    triggers, see ``attack_success``.

    Args:
      task: the learning problem.
      x: (E, ...) examples with the backdoor's feature.
      target: the label the attacker wants, one of the task's.
      chunk: examples evaluated at a time.

    Raises:
      ValueError: without examples, or for a target that is not the task's.
      TypeError: if an argument is of another type.
    """
    what = "backdoor_accuracy"
    checks.part(what, Task, task=task)
    own = checks.examples(what, {"x": x}, ("x",))["x"]
    _target(what, target, _classes(task, own))
    return Partial(_evaluator(what, _backdoor_accuracy, task, chunk, int(target)), own)


def _backdoor_accuracy(how: _Evaluator, params: Array, x: Array) -> Info:
    _target("backdoor_accuracy", how.setting, how.classes(params, x))
    return {"backdoor_accuracy": jnp.mean(how.predict(params, x) == how.setting)}


def word_accuracy(
    task: Task, test: Batch, *, name: str = "main_accuracy", chunk: int = 100
) -> Evaluate:
    """Accuracy of next-word prediction: the share of words that come first in the model's prediction.

    On test text that is the main-task accuracy. On ``attacks.poisons.word_backdoor`` of test text, where
    the only word that counts is the attacker's, it is the backdoor accuracy: the share of contexts in
    which the model ends the trigger sentence as the attacker wants (Bagdasaryan et al. 2020, section
    V-B)::

        poisoned = word_backdoor([sentence])(key, test)
        together(word_accuracy(task, test), word_accuracy(task, poisoned, name="backdoor_accuracy"))

    Args:
      task: ``tasks.next_word``.
      test: ``x`` and ``y`` (E, T), and optionally ``token_mask`` (E, T) >= 0, the words' weights.
      name: what the result is called.
      chunk: sequences evaluated at a time, which bounds memory: (chunk, T, words) logits.

    Raises:
      ValueError: for other shapes, or words that the task does not have.
      TypeError: if an argument is of another type.
    """
    what = "word_accuracy"
    x, y = _labelled(what, task, test, sequences=True)
    if not isinstance(name, str):
        raise TypeError(f"{what} needs name to be a text, got {name!r}")
    mask = test.get("token_mask", jnp.ones(y.shape, jnp.float32))
    mask = checks.array(what, "token_mask", mask)
    if mask.shape != y.shape:
        raise ValueError(f"{what} needs token_mask of y's shape {y.shape}, got shape {mask.shape}")
    return Partial(_evaluator(what, _word_accuracy, task, chunk, name), x, y, mask)


def _word_accuracy(how: _Evaluator, params: Array, x: Array, y: Array, mask: Array) -> Info:
    right = how.predict(params, x) == y
    return {how.setting: jnp.sum(right * mask) / jnp.sum(mask)}


def score(evaluate: Evaluate, name: str | None = None) -> Score:
    """One number of an evaluation, as a function of the parameters.

    Args:
      evaluate: such as ``accuracy(task, test)``.
      name: which of its results; None = the only one.

    Raises:
      ValueError: on use, if there is no such result, or it is not a scalar.
      TypeError: if ``evaluate`` is no function.
    """
    checks.function("score", evaluate=evaluate)
    if not (name is None or isinstance(name, str)):
        raise TypeError(
            f"score needs name to be one of the evaluation's names, or None, got {name!r}"
        )
    wrapped = evaluate if isinstance(evaluate, Partial) else Partial(evaluate)
    return Partial(_Score(name), wrapped)


class _Score(NamedTuple):
    name: str | None

    def __call__(self, evaluate: Evaluate, params: Array) -> Array:
        results = evaluate(params)
        name = self.name
        if name is None and len(results) == 1:
            (name,) = results
        if name is None or name not in results or jnp.ndim(results[name]):
            shapes = {key: jnp.shape(value) for key, value in results.items()}
            raise ValueError(
                f"score needs the name of one scalar among {shapes}, got name={self.name!r}"
            )
        return results[name]


def together(*evaluations: Evaluate) -> Evaluate:
    """Several evaluations as one.

    Raises:
      ValueError: on use, if two of them use the same name.
      TypeError: if one is no function.
    """
    for i, evaluate in enumerate(evaluations):
        checks.function("together", optional=False, **{f"evaluation {i}": evaluate})
    wrapped = (e if isinstance(e, Partial) else Partial(e) for e in evaluations)
    return Partial(_together, tuple(wrapped))


def _together(parts: tuple[Evaluate, ...], params: Array) -> dict[str, Array]:
    results: dict[str, Array] = {}
    for part in parts:
        new = part(params)
        if clash := {*results} & {*new}:
            raise ValueError(f"two evaluations are called {sorted(clash)}; rename one")
        results |= new
    return results


def detection(selected: Array, malicious: Array) -> Info:
    """How well a rule that selects rows told malicious from honest ones.

    Args:
      selected: (..., n) bool, or numbers 0 and 1, rows that entered the aggregate
        (``history["selected"]``).
      malicious: the same shape (``history["malicious"]``).

    Returns:
      ``precision``, the malicious share of the removed rows, and ``recall``, the removed share of the
      malicious rows, each (...); NaN where nothing was removed, or nobody was malicious.

    Raises:
      ValueError: for different shapes, or other values.
      TypeError: if numbers are traced, so that it cannot be seen whether they are 0 and 1.
    """
    selected, malicious = _truths("selected", selected), _truths("malicious", malicious)
    if selected.shape != malicious.shape or selected.ndim < 1:
        raise ValueError(
            "detection needs selected and malicious of one shape (..., n), got "
            f"{selected.shape} and {malicious.shape}"
        )
    caught = jnp.sum(~selected & malicious, axis=-1)
    return {
        "precision": caught / jnp.sum(~selected, axis=-1),
        "recall": caught / jnp.sum(malicious, axis=-1),
    }


def _truths(name: str, value: Array) -> Array:
    values = checks.array("detection", name, value)
    if values.dtype == jnp.bool_:
        return values
    if not checks.is_known(values):
        raise TypeError(
            f"detection needs {name} of bool, got {values.dtype}; convert it with .astype(bool)"
        )
    if not bool(jnp.all((values == 0) | (values == 1))):
        raise ValueError(f"detection needs {name} of True and False, or 1 and 0, got other numbers")
    return values == 1


@same_for_equal_arguments
def direction_agreement(rule: Aggregator) -> Callable[[Received, Array], Info]:
    """How well an attacker with partial knowledge estimates the changing directions, for
    ``Simulation(observe=...)``.

    The changing direction s_j of a parameter is 1 if ``rule``, applied to all before-attack updates,
    increases it, else -1; the attacker takes the mean of its own clients' before-attack updates
    instead (Fang et al. 2020, sections 3.1 and 3.3). Section 4.2 prints 72 % with 50 workers and 76 %
    with 100: trimmed mean, DNN on MNIST, over all parameters, averaged.

    A parameter that nothing moves, such as the weight of a pixel that is black in every image, has
    s_j = -1 on both sides and so counts as estimated correctly; the second share leaves out all that
    the rule does not move.

    Args:
      rule: what to compare with, usually the server's own; it starts from fresh state in every round.

    Returns:
      An observe function that reports ``direction_agreement`` (), the share of all d parameters with
      equal directions, and ``direction_agreement_moving`` (), the same among those with a non-zero
      aggregate. Both NaN in rounds without malicious clients, the second also if nothing moves.
    """
    checks.part("direction_agreement", Aggregator, rule=rule)

    def observe(received: Received, malicious: Array) -> Info:
        updates, weights = drop_non_finite(received.updates, received.weights)
        change = rule(updates, weights, params=received.params, key=received.key)
        own = (malicious & (weights > 0)).astype(updates.dtype)
        estimate = weighted_mean(updates, own)
        equal = changing_direction(change) == changing_direction(estimate)
        moving = change != 0
        attacked = jnp.any(own > 0)
        return {
            "direction_agreement": jnp.where(attacked, jnp.mean(equal), jnp.nan),
            "direction_agreement_moving": jnp.where(
                attacked, jnp.sum(equal & moving) / jnp.sum(moving), jnp.nan
            ),
        }

    return observe
