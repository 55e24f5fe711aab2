"""Defences that try every client's update on a validation batch: ERR, LFR and their union.

Fang, Cao, Jia, Gong: "Local Model Poisoning Attacks to Byzantine-Robust Federated Learning", USENIX
Security 2020, section 5 (generalised from RONI and TRIM). Each wraps a rule: A is the global model that
the rule makes of all rows, B that of all rows but one. A row's impact is the metric of A minus that of
B; the c rows of largest impact are removed, and the rule aggregates the rest.

Choices that the paper leaves open, and our defaults:

- Rows of equal impact are in random order. With 100 examples the error rate has few values, and Krum's
  B is the same model for almost every row, so this matters; an order by row number would favour
  whoever comes first.
- The wrapped rule keeps its parameters after the removal (f, beta stay c); ``rest`` is another one.
- The global model is the received model + the aggregate, so the server's step must be 1 (FedAvg).

Memory: all B at once are one (n, d) matrix where the rule has a ``leave_one_out`` (mean, median, trimmed
mean: one sort; Krum, Multi-Krum: one distance matrix). For other rules they are made ``chunk`` at a time,
each at the cost of an aggregation.
"""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp

from fedjax_robust.metrics import test_error
from fedjax_robust.types import Aggregator, Array, Batch, Info, Key, Received, State, Task

Metric = Callable[[Array], Array]
"""params (d,) -> (), what a removal should lower."""
Order = Callable[[Key, int], Array]
"""key, n -> (n,) distinct numbers: of rows with equal impact, those with lower ones are removed first."""


def err(
    base: Aggregator,
    task: Task,
    validation: Batch,
    c: int,
    *,
    rest: Aggregator | None = None,
    chunk: int | None = None,
    ties: Order = jax.random.permutation,
) -> Aggregator:
    """Error Rate based Rejection: the impact is on the share of validation examples classified wrongly.

    Reports ``removed`` and ``selected`` (n,) bool, those that stay, or what the rule reports by that
    name. If no more than c rows are present, all are removed and the model stays.

    Args:
      base: the wrapped rule. Its state advances once per round, by the last aggregation.
      task: the learning problem.
      validation: ``x`` (V, ...) and ``y`` (V,), the server's own examples.
      c: rows removed, 0 <= c < n; the paper's bound on the number of malicious ones.
      rest: the rule that aggregates the rows that stay, with the same state; default ``base``.
      chunk: models made and tried at a time, which bounds memory; default all n where the rule has a
        ``leave_one_out``, else 1.
      ties: the order in which rows of equal impact are removed.

    Raises:
      ValueError: if c < 0 or chunk < 1, or n <= c when called.
    """
    return _reject("err", base, [_error_rate(task, validation)], c, rest, chunk, ties)


def lfr(
    base: Aggregator,
    task: Task,
    validation: Batch,
    c: int,
    *,
    rest: Aggregator | None = None,
    chunk: int | None = None,
    ties: Order = jax.random.permutation,
) -> Aggregator:
    """Loss Function based Rejection: the impact is on the validation examples' mean cross-entropy.

    Arguments, report and errors as in ``err``.
    """
    return _reject("lfr", base, [_cross_entropy(task, validation)], c, rest, chunk, ties)


def union(
    base: Aggregator,
    task: Task,
    validation: Batch,
    c: int,
    *,
    rest: Aggregator | None = None,
    chunk: int | None = None,
    ties: Order = jax.random.permutation,
) -> Aggregator:
    """Union (ERR + LFR): removes the c rows that ERR removes and the c that LFR removes, c to 2c in all.

    Arguments, report and errors as in ``err``, but n > 2c.
    """
    metrics = [_error_rate(task, validation), _cross_entropy(task, validation)]
    return _reject("union", base, metrics, c, rest, chunk, ties)


def _error_rate(task: Task, validation: Batch) -> Metric:
    evaluate = test_error(task, validation)
    return lambda params: evaluate(params)["test_error"]


def _cross_entropy(task: Task, validation: Batch) -> Metric:
    batch = {name: jnp.asarray(validation[name]) for name in ("x", "y")}
    return lambda params: task.loss(params, batch)


def _reject(
    name: str,
    base: Aggregator,
    metrics: list[Metric],
    c: int,
    rest: Aggregator | None,
    chunk: int | None,
    ties: Order,
) -> Aggregator:
    if c < 0:
        raise ValueError(f"{name} needs c >= 0, got c={c}")
    if chunk is not None and chunk < 1:
        raise ValueError(f"{name} needs chunk >= 1, got {chunk}; None is the default")

    def aggregate(received: Received, state: State) -> tuple[Array, State, Info]:
        n = received.updates.shape[0]
        if n <= len(metrics) * c:
            times = "" if len(metrics) == 1 else f"{len(metrics)}"
            raise ValueError(f"{name} needs n > {times}c, or nothing may be left: got n={n}, c={c}")
        present = (received.weights > 0) & jnp.all(jnp.isfinite(received.updates), axis=1)
        tie_key, rest_key = jax.random.split(received.key)
        received = received._replace(key=rest_key)

        def values_of(update: Array) -> Array:
            values = jnp.stack([metric(received.params + update) for metric in metrics])
            return jnp.where(jnp.isnan(values), jnp.inf, values)

        # E_A is the same for every row, so the largest E_A - E_B is the smallest E_B.
        values = each_left_out(base, received, state, values_of, chunk)
        values = jnp.where(present[:, None], values, jnp.inf)
        removed = jnp.zeros(n, bool)
        for i in range(len(metrics)):
            order = ties(jax.random.fold_in(tie_key, i), n)
            worst = jnp.lexsort((order, ~present, values[:, i]))[:c]
            removed = removed.at[worst].set(True)
        removed &= present
        weights = jnp.where(removed, 0, received.weights)
        final = base if rest is None else rest
        result, state, info = final.aggregate(received._replace(weights=weights), state)
        return result, state, {"selected": present & ~removed} | info | {"removed": removed}

    return Aggregator(base.init, aggregate)


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
      (n, ...).
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
