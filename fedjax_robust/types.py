"""Core types: every moving part is a NamedTuple of pure functions.

Symbols used throughout: ``n`` clients in the round, ``N`` all clients, ``d`` model parameters, ``m``
rows of a client's (padded) data, ``b`` a batch. All arrays are JAX arrays; "update" always means
``local model - received global model``, never weights and never gradients.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax

Array = jax.Array
Key = jax.Array
State = Any
"""A pytree of arrays; the same structure, shapes and dtypes go in and come out. ``()`` is no state."""
Info = dict[str, Array]
"""What a part reports of one round, by name. Rules that select rows report ``selected``, (n,) bool."""
Batch = dict[str, Array]
"""``x`` (b, ...), ``y`` (b,) int32 and optionally ``mask`` (b,), the examples' weights (default ones).
Sequences: ``x`` and ``y`` (b, T) int32 and optionally ``token_mask`` (b, T); see ``tasks.next_word``."""


class Task(NamedTuple):
    """A learning problem over flat parameters."""

    init: Callable[[Key], Array]
    """key -> (d,) float32 initial parameters."""
    loss: Callable[[Array, Batch], Array]
    """(d,), batch -> scalar: the mean loss over the batch's unmasked examples (0 if there are none)."""
    logits: Callable[[Array, Array], Array]
    """(d,), x (b, ...) -> (b, classes); of sequences x (b, T) -> (b, T, words)."""
    unravel: Callable[[Array], Any]
    """(d,) -> the named leaves of the model: the only pytree view."""
    training_loss: Callable[[Array, Batch, Key], Array] | None = None
    """What clients minimise if it is random, as with dropout: (d,), batch, key -> scalar. None = ``loss``,
    which never is."""
    ravel: Callable[[Any], Array] | None = None
    """The inverse of ``unravel``: named leaves -> (d,)."""


class FederatedData(NamedTuple):
    """A pool of examples, stored once, and which of its rows each client owns."""

    examples: Batch
    """The pool; every array has the examples along its leading axis."""
    index: Array  # type: ignore[assignment]
    """(N, m) int32 rows of the pool. Entries at and beyond a client's count are padding."""
    count: Array  # type: ignore[assignment]
    """(N,) int32, the number of valid entries in each row of ``index``."""


class ClientData(NamedTuple):
    """What one client trains on: the shared pool and its own rows of it; and who and when it is."""

    examples: Batch
    index: Array  # type: ignore[assignment]
    """(m,) int32 rows of the pool, padded."""
    count: Array  # type: ignore[assignment]
    """() int32 valid entries."""
    id: Array | int = 0
    """() int32 in [0, N), the client's own."""
    round: Array | int = 0
    """() int32, rounds done before this one."""


class Client(NamedTuple):
    """Local training."""

    init: Callable[[Array], State]
    """params (d,) -> one client's initial state."""
    update: Callable[[Key, Array, State, ClientData], tuple[Array, State, Info]]
    """key, params (d,), state, data -> update (d,) = local - global, state, info."""


class Received(NamedTuple):
    """All that the server holds in one round."""

    updates: Array
    """(n, d), local - global; the content of absent rows must not matter."""
    weights: Array
    """(n,) >= 0, the rows' weights in averages; 0 = the row is absent, as if it had been deleted."""
    ids: Array
    """(n,) int32 in [0, N): which client sent the row. Histories are indexed by it."""
    params: Array
    """(d,), the model that was sent out."""
    key: Key


class Aggregator(NamedTuple):
    """A server rule. Call it on a plain matrix, ``krum(f=2)(updates)``, or let ``simulate`` drive it."""

    init: Callable[[int, Array], State]
    """N, params (d,) -> state."""
    aggregate: Callable[[Received, State], tuple[Array, State, Info]]
    """received, state -> aggregated update (d,), state, info."""
    leave_one_out: Callable[[Received, State], Array] | None = None
    """received, state -> (n, d), row i what ``aggregate`` gives without row i (any finite values where
    row i is absent); only for rules that have it cheaper than n calls of ``aggregate``."""

    def __call__(
        self,
        updates: Array,
        weights: Array | None = None,
        *,
        params: Array | None = None,
        key: Key | None = None,
    ) -> Array:
        """Aggregate one matrix of updates (n, d) with fresh state; returns (d,).

        ``weights`` (n,) default to ones; a weight of 0 gives the same result as deleting the row.
        ``params`` (d,) default to zeros and ``key`` to ``jax.random.key(0)``; few rules use them.
        """
        updates = jnp.asarray(updates)
        chex.assert_rank(updates, 2)
        n, d = updates.shape
        received = Received(
            updates=updates,
            weights=jnp.ones(n, updates.dtype) if weights is None else jnp.asarray(weights),
            ids=jnp.arange(n, dtype=jnp.int32),
            params=jnp.zeros(d, updates.dtype) if params is None else params,
            key=jax.random.key(0) if key is None else key,
        )
        return self.aggregate(received, self.init(n, received.params))[0]


class Knowledge(NamedTuple):
    """What the attacker knows beyond its own clients. The engine enforces it."""

    others: bool = False
    """It sees the honest clients' updates ("full knowledge" of Fang et al.)."""
    rule: bool = False
    """It can evaluate the server's own rule."""


class AttackerView(NamedTuple):
    """All that the attacker sees in one round."""

    updates: Array
    """(n, d) before-attack updates; rows that the attacker may not see are zero."""
    visible: Array
    """(n,) bool, rows it sees. Absent rows and rows with a NaN or Inf are never visible."""
    reference: Array
    """(n,) bool, rows from which honest statistics are estimated: the honest clients' if it sees them,
    else its own clients'."""
    malicious: Array
    """(n,) bool, rows it controls (and that are present)."""
    num_malicious: int
    """Static. Malicious rows come first: rows at and beyond this number are honest."""
    params: Array
    """(d,), the model received from the server."""
    key: Key
    aggregate: Callable[[Array], Array] | None
    """updates (n, d) -> (d,): the very rule that the server runs this round; None if unknown."""
    ids: Array | None = None
    """(n,) int32 in [0, N), the clients of the rows."""


def _unchanged(view: AttackerView, state: State) -> tuple[Array, State]:
    return view.updates, state


class Attack(NamedTuple):
    """How the malicious clients train and what they send."""

    init: Callable[[Array], State] = lambda params: ()
    """params (d,) -> state."""
    craft: Callable[[AttackerView, State], tuple[Array, State]] = _unchanged
    """view, state -> what its rows send, state. The result has rows 0 .. view.num_malicious - 1, or all
    n; only the malicious ones are used."""
    client: Client | None = None
    """How its clients train; None = as honest clients do."""
    needs: Knowledge = Knowledge()
    """What ``craft`` cannot do without; ``simulate`` raises ValueError if it is not granted."""


Evaluate = Callable[[Array], dict[str, Array]]
"""params (d,) -> named scalars (or small arrays)."""
Repair = Callable[[Key, Array], Array]
"""key, params (d,) -> params (d,), applied by the server after a round."""


def is_number(value: Any) -> bool:
    """Whether a hyper-parameter is known now, so that its range can be checked; arrays may be traced."""
    return isinstance(value, int | float | np.number)


def equal_weights(count: Array) -> Array:
    """Every client that owns data weighs 1: count (n,) int32 -> (n,) float32."""
    return (count > 0).astype(jnp.float32)


def example_weights(count: Array) -> Array:
    """Clients weigh as many examples as they own (FedAvg): count (n,) int32 -> (n,) float32."""
    return count.astype(jnp.float32)


class Simulation(NamedTuple):
    """A whole federated training run under attack."""

    task: Task
    client: Client
    aggregator: Aggregator
    attack: Attack = Attack()
    knowledge: Knowledge = Knowledge()
    num_malicious: int = 0
    """Clients 0 .. num_malicious - 1 are malicious; the partition functions order clients at random."""
    server_optimizer: optax.GradientTransformation = optax.sgd(1.0)
    """Fed with minus the aggregate, so that ``sgd(1.0)`` adds the aggregate to the model (FedAvg)."""
    clients_per_round: int | None = None
    """Clients drawn without replacement in each round; None = all N."""
    participants: Callable[[Key, Array], Array] | None = None
    """Another way to draw them: key, rounds done () -> (n,) int32 ascending different ids; see
    ``attackers_selected``."""
    weights: Callable[[Array], Array] = equal_weights
    """Example counts (n,) -> weights (n,) of the rows. A client without data must get weight 0."""
    after_round: Repair | None = None
    client_chunk: int | None = None
    """Train at most so many clients at a time, on each device; it bounds memory. None = all at once."""
    observe: Callable[[Received, Array], Info] | None = None
    """Before-attack updates as the server would have received them, malicious (n,) bool -> what to
    report of the round besides. It sees everything and influences nothing; see ``metrics``."""


class SimState(NamedTuple):
    """All that a run carries from round to round, and all that a checkpoint holds."""

    params: Array
    opt: State
    aggregator: State
    attack: State
    clients: State
    """Stacked over all N clients."""
    key: Key
    round: Array
    """() int32, rounds done."""
