"""FLTrust: the server trains on a small clean root data set and trusts updates that point its way.

Cao, Fang, Liu, Gong: "FLTrust: Byzantine-robust Federated Learning via Trust Bootstrapping", NDSS 2021
(https://arxiv.org/abs/2012.13995), Algorithm 2. In each round the server trains as a client does, on its
root data D_0, which gives its own update g_0. Then, with g_i the clients' updates,

    trust      TS_i = ReLU(cos(g_i, g_0)),
    rescaling  gbar_i = g_i |g_0| / |g_i|,
    aggregate  g = sum_i TS_i gbar_i / sum_i TS_i.

Updates are local - global model, so the model moves by + g (forms with a minus belong to gradients).

What the paper leaves open, and our choices:

- If no row has a positive score, the aggregate is zero and the model stays: a mean of rows that nobody
  trusts would hand the model to an attacker.
- Only trust weighs rows; ``weights`` only say who is present.
- A zero update, a client's or the server's, has cosine 0 to everything. Rows whose largest entry is
  below 1e-31 (1e-292 in float64) count as zero, so that gradients stay finite.
- A server update with a NaN or Inf, or longer than the largest float, counts as zero; the server's
  state advances as its client says.

The learning rate is part of the rule, because |g_0| is the length of every rescaled row. The authors'
code descends on *sums* of gradients over a batch, and the paper's combined learning rates mean that:
3e-4, 6e-3 and 2e-4 with b = 32, 32 and 64 are 0.0096, 0.192 and 0.0128 on the mean gradient. There the
server makes one step on the sum over all 100 root examples, which is 100 / 32 = 3.125 times as long as a
client's. Which client trains on the root is therefore an explicit argument:

    local_sgd(task, 0.0096 * 100 / 32, batch_size=None)   # as the authors' code
    local_sgd(task, 0.0096, batch_size=32)                # as the paper's text; trains more slowly

The variants leave out one ingredient each. All report ``trust`` (n,), 0 for absent rows, and
``selected`` (n,) bool, the rows with a trust other than 0.
"""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp

from fedjax_robust import checks
from fedjax_robust.aggregators.base import cleaned
from fedjax_robust.kernels.norms import direction_and_length, power_of_two, smallest_divisor
from fedjax_robust.memo import same_for_equal_arguments
from fedjax_robust.types import (
    Aggregator,
    Array,
    Batch,
    Client,
    ClientData,
    Info,
    Key,
    Received,
    State,
)

Combine = Callable[[Array, Array, Array], tuple[Array, Array]]
"""updates (n, d) finite, present (n,) bool, g_0 (d,) finite -> aggregate (d,), trust (n,)."""


@same_for_equal_arguments
def fltrust(client: Client, root: Batch) -> Aggregator:
    """FLTrust; see the module's head for the algorithm, its learning rate and its limits.

    Args:
      client: how the server trains on the root data, in each round from the model that was sent out; its
        state is the rule's state. It need not be the clients' own: see the learning rates above.
      root: the server's examples, ``x`` (m, ...) and ``y`` (m,), m >= 1; see ``data.root_set``.

    Raises:
      ValueError: if the root is empty, its arrays differ in length, its labels are not integers >= 0,
        one for each example, or it has a mask; when called, if the client cannot train on it.
      TypeError: if client is no client, or the root no dict of numbers.
    """
    return _rule("fltrust", client, root, trusted_mean)


@same_for_equal_arguments
def fltrust_server(client: Client, root: Batch) -> Aggregator:
    """FLTrust-Server: the server's update alone. No client has any trust.

    Args:
      client: how the server trains on the root data in each round; its state is the rule's state.
      root: the server's examples, ``x`` (m, ...) and ``y`` (m,), m >= 1; see ``data.root_set``.

    Raises:
      ValueError: if the root is empty, its arrays differ in length, its labels are not integers >= 0,
        one for each example, or it has a mask; when called, if the client cannot train on it.
      TypeError: if client is no client, or the root no dict of numbers.
    """

    def combine(updates: Array, present: Array, g_0: Array) -> tuple[Array, Array]:
        return g_0, jnp.zeros(updates.shape[0], updates.dtype)

    return _rule("fltrust_server", client, root, combine)


@same_for_equal_arguments
def fltrust_with_server(client: Client, root: Batch) -> Aggregator:
    """FLTrust-withServer: the server's update joins the average, with trust 1.

    Args:
      client: how the server trains on the root data in each round; its state is the rule's state.
      root: the server's examples, ``x`` (m, ...) and ``y`` (m,), m >= 1; see ``data.root_set``.

    Raises:
      ValueError: if the root is empty, its arrays differ in length, its labels are not integers >= 0,
        one for each example, or it has a mask; when called, if the client cannot train on it.
      TypeError: if client is no client, or the root no dict of numbers.
    """

    def combine(updates: Array, present: Array, g_0: Array) -> tuple[Array, Array]:
        units, cosines, length = _compare(updates, present, g_0)
        trust = jax.nn.relu(cosines)
        rows = jnp.concatenate([length * units, g_0[None]])
        return _average(rows, jnp.concatenate([trust, jnp.ones_like(trust[:1])])), trust

    return _rule("fltrust_with_server", client, root, combine)


@same_for_equal_arguments
def fltrust_no_relu(client: Client, root: Batch) -> Aggregator:
    """FLTrust-NoReLU: trust is the cosine itself, so that rows against g_0 count negatively.

    The normaliser is the sum of the signed scores, as the formula says if only the ReLU is deleted; how
    the paper normalises is not known. The sum may be close to 0, and the aggregate then long; if it is 0
    the model stays.

    Args:
      client: how the server trains on the root data in each round; its state is the rule's state.
      root: the server's examples, ``x`` (m, ...) and ``y`` (m,), m >= 1; see ``data.root_set``.

    Raises:
      ValueError: if the root is empty, its arrays differ in length, its labels are not integers >= 0,
        one for each example, or it has a mask; when called, if the client cannot train on it.
      TypeError: if client is no client, or the root no dict of numbers.
    """

    def combine(updates: Array, present: Array, g_0: Array) -> tuple[Array, Array]:
        units, cosines, length = _compare(updates, present, g_0)
        return _average(length * units, cosines), cosines

    return _rule("fltrust_no_relu", client, root, combine)


@same_for_equal_arguments
def fltrust_no_norm(client: Client, root: Batch) -> Aggregator:
    """FLTrust-NoNorm: rows keep their lengths.

    Args:
      client: how the server trains on the root data in each round; its state is the rule's state.
      root: the server's examples, ``x`` (m, ...) and ``y`` (m,), m >= 1; see ``data.root_set``.

    Raises:
      ValueError: if the root is empty, its arrays differ in length, its labels are not integers >= 0,
        one for each example, or it has a mask; when called, if the client cannot train on it.
      TypeError: if client is no client, or the root no dict of numbers.
    """

    def combine(updates: Array, present: Array, g_0: Array) -> tuple[Array, Array]:
        _, cosines, _ = _compare(updates, present, g_0)
        trust = jax.nn.relu(cosines)
        return _average(updates, trust), trust

    return _rule("fltrust_no_norm", client, root, combine)


@same_for_equal_arguments
def fltrust_par_norm(client: Client, root: Batch) -> Aggregator:
    """FLTrust-ParNorm: only rows longer than g_0 are rescaled, to its length.

    Args:
      client: how the server trains on the root data in each round; its state is the rule's state.
      root: the server's examples, ``x`` (m, ...) and ``y`` (m,), m >= 1; see ``data.root_set``.

    Raises:
      ValueError: if the root is empty, its arrays differ in length, its labels are not integers >= 0,
        one for each example, or it has a mask; when called, if the client cannot train on it.
      TypeError: if client is no client, or the root no dict of numbers.
    """

    def combine(updates: Array, present: Array, g_0: Array) -> tuple[Array, Array]:
        units, cosines, length = _compare(updates, present, g_0)
        trust = jax.nn.relu(cosines)
        longer = direction_and_length(jax.lax.stop_gradient(updates))[1] > length
        return _average(jnp.where(longer[:, None], length * units, updates), trust), trust

    return _rule("fltrust_par_norm", client, root, combine)


def trusted_mean(updates: Array, present: Array, g_0: Array) -> tuple[Array, Array]:
    """FLTrust's aggregation, given the server's update. Differentiable in ``updates`` and ``g_0``.

    Lengths do not leave the range of floats, also where |g_0| is beyond the largest one. Entries of the
    aggregate that are beyond it become the largest float.

    Args:
      updates: (n, d), finite in present rows.
      present: (n,) bool.
      g_0: (d,), finite.

    Returns:
      The aggregate (d,), at most as long as g_0, and the trust scores (n,), 0 for absent rows.

    Raises:
      ValueError: for other shapes.
      TypeError: for arrays of another kind.

    >>> updates = jnp.array([[3.0, 0.0], [0.0, 5.0], [-1.0, 0.0]])
    >>> aggregate, trust = trusted_mean(updates, jnp.ones(3, bool), g_0=jnp.array([2.0, 0.0]))
    >>> aggregate.tolist(), trust.tolist()
    ([2.0, 0.0], [1.0, 0.0, 0.0])
    """
    updates, _ = checks.matrix("trusted_mean", updates)
    present = checks.shaped("trusted_mean", "present", present, updates.shape[:1], "bool", "(n,)")
    g_0 = checks.shaped("trusted_mean", "g_0", g_0, updates.shape[1:], meaning="(d,)")
    g_0 = g_0.astype(jnp.promote_types(updates.dtype, jnp.float32))
    unit, inverse = power_of_two(jnp.max(jnp.abs(g_0), initial=0))
    units, cosines, length = _compare(updates, present, g_0 * inverse)
    trust = jax.nn.relu(cosines)
    largest = jnp.finfo(updates.dtype).max
    result = jnp.clip(_average(length * units, trust) * unit, -largest, largest)
    return result.astype(updates.dtype), trust.astype(updates.dtype)


def server_update(
    client: Client, root: Batch
) -> Callable[[Key, Array, State], tuple[Array, State]]:
    """The server's own training.

    Args:
      client: how it trains.
      root: what it trains on, m >= 1 examples.

    Returns:
      key, params (d,), the client's state -> g_0 (d,), state. An update that is not finite, or whose
      length is not, is replaced by zero.

    Raises:
      ValueError: if the root is empty, its arrays differ in length, its labels are not integers >= 0,
        one for each example, or it has a mask; when called, if the client cannot train on it.
      TypeError: if client is no client, or the root no dict of numbers.
    """
    return _server_update("server_update", client, root)


def _server_update(
    what: str, client: Client, root: Batch
) -> Callable[[Key, Array, State], tuple[Array, State]]:
    checks.part(what, Client, client=client)
    try:
        examples = checks.examples(what, root)
    except (TypeError, ValueError) as error:
        raise type(error)(f"root: {error}; data.root_set draws a root set from a pool") from None
    if masks := sorted({"mask", "token_mask"} & set(examples)):
        raise ValueError(
            f"{what}: the root data may not have a {masks[0]}, which local training does not look at; "
            "leave out the masked examples"
        )
    size = examples["x"].shape[0]

    def update(key: Key, params: Array, state: State) -> tuple[Array, State]:
        data = ClientData(examples, jnp.arange(size, dtype=jnp.int32), jnp.int32(size))
        try:
            g_0, state, _ = client.update(key, params, state, data)
        except Exception as error:
            shapes = {name: values.shape for name, values in examples.items()}
            raise ValueError(
                f"{what} needs root data that its client can train on; with a model of d = "
                f"{params.shape[0]} parameters and a root of shapes {shapes} it raised "
                f"{type(error).__name__}: {error}"
            ) from error
        checks.returned(f"the client of {what}", g_0, params.shape)
        return jnp.where(jnp.isfinite(direction_and_length(g_0)[1]), g_0, 0), state

    return update


def _compare(updates: Array, present: Array, g_0: Array) -> tuple[Array, Array, Array]:
    """Unit rows (n, d), their cosines to g_0 (n,), and |g_0|. Absent rows are zero."""
    units, _ = direction_and_length(jnp.where(present[:, None], updates, 0))
    direction, length = direction_and_length(g_0)
    return units, jnp.dot(units, direction, precision="highest"), length


def _average(rows: Array, scores: Array) -> Array:
    """Sum of scores * rows / sum of scores: (n, d), (n,) -> (d,); zero if the scores sum to 0."""
    total = jnp.sum(scores)
    zero = jnp.abs(total) < smallest_divisor(total.dtype)
    shares = jnp.where(zero, 0, scores / jnp.where(zero, 1, total))
    return jnp.dot(shares, rows, precision="highest")


def _rule(what: str, client: Client, root: Batch, combine: Combine) -> Aggregator:
    train = _server_update(what, client, root)

    def init(num_clients: int, params: Array) -> State:
        return client.init(params)

    def aggregate(received: Received, state: State) -> tuple[Array, State, Info]:
        received = cleaned(received)
        g_0, state = train(received.key, received.params, state)
        result, trust = combine(received.updates, received.weights > 0, g_0)
        return result, state, {"trust": trust, "selected": trust != 0}

    return Aggregator(init, aggregate)
