"""Defences that try every client's update on a validation batch: ERR, LFR and their union.

Fang, Cao, Jia, Gong: "Local Model Poisoning Attacks to Byzantine-Robust Federated Learning", USENIX
Security 2020 (https://arxiv.org/abs/1911.11815), section 5 (generalised from RONI and TRIM). Each wraps a
rule: A is the global model that the rule makes of all rows, B that of all rows but one. A row's impact is
the metric of A minus that of B; the f rows of largest impact (the paper's c) are removed, and the rule
aggregates the rest.

Choices that the paper leaves open, and our defaults:

- Rows of equal impact are in random order. With 100 examples the error rate has few values, and Krum's
  B is the same model for almost every row, so this matters; an order by row number would favour
  whoever comes first. The order depends on the rows present and the round's key alone: an absent row
  changes nothing.
- The wrapped rule keeps its parameters after the removal (f, beta stay as they are); ``rest`` is
  another one.
- The global model is the received model + the aggregate, so the server's step must be 1 (FedAvg).

Memory: all B at once are one (n, d) matrix where the rule has a ``leave_one_out`` (mean, median, trimmed
mean: one sort; Krum, Multi-Krum: one distance matrix). For other rules they are made ``chunk`` at a time,
each at the cost of an aggregation.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from fedjax_robust import checks
from fedjax_robust.aggregators.base import MEAN, cleaned
from fedjax_robust.memo import same_for_equal_arguments
from fedjax_robust.metrics import predict
from fedjax_robust.types import Aggregator, Array, Batch, Info, Key, Received, Score, State, Task

Order = Callable[[Key, Array], Array]
"""key, places (n,) int32 -> (n,) numbers: of rows with equal impact, those with lower ones are removed
first. The places count the present rows, 0, 1, 2, ...; what is returned for absent ones does not matter,
and a row's number must depend on its own place alone."""


def by_chance(key: Key, places: Array) -> Array:
    """Ties in random order: key, places (n,) int32 -> (n,) uint32."""
    return jax.vmap(lambda place: jax.random.bits(jax.random.fold_in(key, place)))(places)


@same_for_equal_arguments
def err(
    task: Task,
    validation: Batch,
    f: int | Array,
    *,
    rest: Aggregator | None = None,
    chunk: int | None = None,
    ties: Order = by_chance,
    base: Aggregator = MEAN,
) -> Aggregator:
    """Error Rate based Rejection: the impact is on the share of validation examples classified wrongly.

    Reports ``removed`` and ``selected`` (n,) bool, those that stay, or what the rule reports by that
    name. If no more than f rows are present, all are removed and the model stays.

    Args:
      task: the learning problem.
      validation: ``x`` (V, ...) and ``y`` (V,), the server's own examples, without masks. Of words:
        ``x`` and ``y`` (V, T).
      f: rows removed, 0 <= f < n; the paper's c, its bound on the number of malicious ones. It may be a
        traced integer; then f < n cannot be checked.
      rest: the rule that aggregates the rows that stay, with the same state; default ``base``.
      chunk: models made and tried at a time, which bounds memory; default all n where the rule has a
        ``leave_one_out``, else 1.
      ties: the order in which rows of equal impact are removed.
      base: the wrapped rule. Its state advances once per round, by the last aggregation.

    Raises:
      ValueError: if f < 0 or chunk < 1, the labels are not integers, one for each example, among the
        task's classes, the task does not take the inputs, or there is a mask; n <= f when called.
      TypeError: for parts and arrays of another kind.
    """
    examples = _examples("err", task, validation)
    return _reject("err", base, [_error_rate("err", task, examples)], f, rest, chunk, ties)


@same_for_equal_arguments
def lfr(
    task: Task,
    validation: Batch,
    f: int | Array,
    *,
    rest: Aggregator | None = None,
    chunk: int | None = None,
    ties: Order = by_chance,
    base: Aggregator = MEAN,
) -> Aggregator:
    """Loss Function based Rejection: the impact is on the validation examples' mean loss.

    Reports ``removed`` and ``selected`` (n,) bool, those that stay, or what the rule reports by that
    name. If no more than f rows are present, all are removed and the model stays.

    Args:
      task: the learning problem.
      validation: ``x`` (V, ...) and ``y`` (V,), the server's own examples; masks are the loss's to use.
        Of words: ``x`` and ``y`` (V, T).
      f: rows removed, 0 <= f < n; the paper's c. It may be a traced integer; then f < n cannot be
        checked.
      rest: the rule that aggregates the rows that stay, with the same state; default ``base``.
      chunk: models made and tried at a time, which bounds memory; default all n where the rule has a
        ``leave_one_out``, else 1.
      ties: the order in which rows of equal impact are removed.
      base: the wrapped rule. Its state advances once per round, by the last aggregation.

    Raises:
      ValueError: if f < 0 or chunk < 1, the labels are not integers, one for each example, among the
        task's classes, or the task does not take the inputs; n <= f when called.
      TypeError: for parts and arrays of another kind.
    """
    examples = _examples("lfr", task, validation)
    return _reject("lfr", base, [_loss(task, examples)], f, rest, chunk, ties)


@same_for_equal_arguments
def union(
    task: Task,
    validation: Batch,
    f: int | Array,
    *,
    rest: Aggregator | None = None,
    chunk: int | None = None,
    ties: Order = by_chance,
    base: Aggregator = MEAN,
) -> Aggregator:
    """Union (ERR + LFR): removes the f rows that ERR removes and the f that LFR removes, f to 2f in all.

    Reports ``removed`` and ``selected`` (n,) bool, those that stay, or what the rule reports by that
    name. If nobody is left, the model stays.

    Args:
      task: the learning problem.
      validation: ``x`` (V, ...) and ``y`` (V,), the server's own examples, without masks. Of words:
        ``x`` and ``y`` (V, T).
      f: rows that each of the two removes, 0 <= f < n / 2; the paper's c. It may be a traced integer;
        then f < n / 2 cannot be checked.
      rest: the rule that aggregates the rows that stay, with the same state; default ``base``.
      chunk: models made and tried at a time, which bounds memory; default all n where the rule has a
        ``leave_one_out``, else 1.
      ties: the order in which rows of equal impact are removed.
      base: the wrapped rule. Its state advances once per round, by the last aggregation.

    Raises:
      ValueError: if f < 0 or chunk < 1, the labels are not integers, one for each example, among the
        task's classes, the task does not take the inputs, or there is a mask; n <= 2f when called.
      TypeError: for parts and arrays of another kind.
    """
    examples = _examples("union", task, validation)
    metrics = [_error_rate("union", task, examples), _loss(task, examples)]
    return _reject("union", base, metrics, f, rest, chunk, ties)


def _examples(what: str, task: Task, validation: Batch) -> Batch:
    checks.part(what, Task, task=task)
    examples = checks.examples(f"{what}'s validation", validation)
    num_classes = checks.classes(f"{what}'s validation", task, examples["x"])
    checks.labels(f"{what}'s validation", examples["y"], x=examples["x"], num_classes=num_classes)
    return examples


def _error_rate(what: str, task: Task, examples: Batch) -> Score:
    if masks := sorted({"mask", "token_mask"} & set(examples)):
        raise ValueError(
            f"{what}'s validation may not have a {masks[0]}, as its error rate counts every example; "
            "leave out the masked ones"
        )
    x, y = examples["x"], examples["y"]
    return lambda params: jnp.mean(predict(task, params, x) != y, dtype=jnp.float32)


def _loss(task: Task, examples: Batch) -> Score:
    return lambda params: task.loss(params, examples)


def _reject(
    name: str,
    base: Aggregator,
    metrics: list[Score],
    f: int | Array,
    rest: Aggregator | None,
    chunk: int | None,
    ties: Order,
) -> Aggregator:
    checks.part(name, Aggregator, base=base)
    checks.part(name, Aggregator, rest=rest, optional=True)
    checks.count(name, f=f)
    checks.function(name, ties=ties)
    if chunk is not None:
        checks.static_count(name, 1, chunk=chunk, remedy="None is the default")
        chunk = int(chunk)

    def aggregate(received: Received, state: State) -> tuple[Array, State, Info]:
        n = received.updates.shape[0]
        if checks.is_known(f) and n <= len(metrics) * f:
            times = "" if len(metrics) == 1 else f"{len(metrics)}"
            raise ValueError(f"{name} needs n > {times}f, or nothing may be left: got n={n}, f={f}")
        received = cleaned(received)
        present = received.weights > 0
        tie_key, rest_key = jax.random.split(received.key)
        received = received._replace(key=rest_key)

        def values_of(update: Array) -> Array:
            values = jnp.stack([_scalar(name, m(received.params + update)) for m in metrics])
            return jnp.where(jnp.isnan(values), jnp.inf, values)

        # E_A is the same for every row, so the largest E_A - E_B is the smallest E_B.
        values = each_left_out(base, received, state, values_of, chunk)
        values = jnp.where(present[:, None], values, jnp.inf)
        places = jnp.cumsum(present, dtype=jnp.int32) - 1
        removed = jnp.zeros(n, bool)
        for i in range(len(metrics)):
            order = ties(jax.random.fold_in(tie_key, i), places)
            checks.returned(f"{name}'s ties", order, (n,), floating=False)
            worst = jnp.lexsort((order, ~present, values[:, i]))
            removed |= jnp.zeros(n, bool).at[worst].set(jnp.arange(n) < f)
        removed &= present
        weights = jnp.where(removed, 0, received.weights)
        final = base if rest is None else rest
        result, state, info = final.aggregate(received._replace(weights=weights), state)
        return result, state, {"selected": present & ~removed} | info | {"removed": removed}

    return Aggregator(base.init, aggregate)


def _scalar(name: str, value: Any) -> Array:
    checks.returned(f"the loss of {name}'s task", value, ())
    return jnp.asarray(value)


def each_left_out(
    base: Aggregator,
    received: Received,
    state: State,
    evaluate: Callable[[Array], Array],
    chunk: int | None = None,
) -> Array:
    """``evaluate`` of the rule's aggregate without each row in turn.

    Args:
      base: the rule.
      received: n rows.
      state: the rule's state.
      evaluate: update (d,) -> (...).
      chunk: aggregates evaluated at a time; default all n if they come from ``leave_one_out``, else 1.

    Returns:
      (n, ...). Where row i is absent, any values.
    """
    if base.leave_one_out is not None:
        updates = base.leave_one_out(received, state)
        if chunk is None:
            return jax.vmap(evaluate)(updates)
        return jax.lax.map(evaluate, updates, batch_size=chunk)

    def without(i: Array) -> Array:
        weights = received.weights.at[i].set(0)
        return evaluate(base.aggregate(received._replace(weights=weights), state)[0])

    rows = jnp.arange(received.updates.shape[0])
    return jax.lax.map(without, rows, batch_size=1 if chunk is None else chunk)
