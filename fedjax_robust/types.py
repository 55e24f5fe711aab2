"""Core types: every moving part is a NamedTuple of pure functions.

Symbols used throughout: ``n`` clients in the round, ``N`` all clients, ``d`` model parameters, ``m``
rows of a client's (padded) data, ``b`` a batch. All arrays are JAX arrays; "update" always means
``local model - received global model``, never weights and never gradients.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from fedjax_robust import checks

Array = jax.Array
Key = jax.Array
State = Any
"""A pytree of arrays; the same structure, shapes and dtypes go in and come out. ``()`` is no state."""
Info = dict[str, Array]
"""What a part reports of one round, by name. Rules that select rows report ``selected``, (n,) bool;
further names that several use are ``clipped`` (n,) bool, rows that were shortened, ``trust`` (n,) >= 0,
their weights, ``removed`` (n,) bool, rows that were thrown out, and ``score`` or ``scores`` (n,), by
which rows were judged. Others are in the docstrings: ``ended`` () bool of ``caf``, ``leaves`` (n,) of
``lasa``, ``reputation`` of ``contra``, ``quality`` of ``fair_by_quality``, ``flipped`` () of ``rlr``."""
Batch = dict[str, Array]
"""``x`` (b, ...), ``y`` (b,) int32 and optionally ``mask`` (b,), the examples' weights (default ones); a
``mask`` in the pool weighs its examples in every batch that clients draw from it. A task of one's own
may use other names.
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
    """What clients minimise if it is random, as with dropout: (d,), batch, key -> scalar. None is
    ``loss`` itself, which never is."""
    ravel: Callable[[Any], Array] | None = None
    """The inverse of ``unravel``: named leaves -> (d,)."""


class FederatedData(NamedTuple):
    """A pool of examples, stored once, and which of its rows each client owns."""

    examples: Batch
    """The pool; every array has the examples along its leading axis."""
    index: Array  # type: ignore[assignment]
    """(N, m) int32 rows of the pool. Entries at and beyond a client's count are padding, of any value."""
    count: Array  # type: ignore[assignment]
    """(N,) int32, the number of valid entries in each row of ``index``."""


class ClientData(NamedTuple):
    """What one client trains on: the shared pool and its own rows of it; and who and when it is."""

    examples: Batch
    """The whole pool: local training, a malicious client's too, could read all of it (see
    ``Knowledge``)."""
    index: Array  # type: ignore[assignment]
    """(m,) int32 rows of the pool, padded."""
    count: Array  # type: ignore[assignment]
    """() int32 valid entries."""
    id: Array | int = 0
    """() int32 in [0, N), the client's own; N and beyond on a place that nobody takes, whose training has
    no effect."""
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
    """(n,) int32 in [0, N): which client sent the row. Histories are indexed by it. N and beyond: nobody
    did, and the row's weight is 0."""
    params: Array
    """(d,), the model that was sent out."""
    key: Key
    """The server's random numbers of this round."""


class Aggregator(NamedTuple):
    """A server rule. Call it on a plain matrix, ``krum(f=2)(updates)``, or let ``run`` drive it."""

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

        Args:
          updates: (n, d) numbers, n >= 1; integers become float32.
          weights: (n,), default ones. A weight of 0 gives the same result as deleting the row, and so do
            negative weights and NaN.
          params: (d,), default zeros; few rules use it.
          key: default ``jax.random.key(0)``; only rules that draw use it.

        Raises:
          ValueError: for other shapes.
          TypeError: for what is no array of real numbers, or no key.
        """
        what = "calling a rule"
        updates, weights = checks.matrix(what, updates, weights)
        n, d = updates.shape
        if params is None:
            params = jnp.zeros(d, updates.dtype)
        else:
            params = checks.shaped(what, "params", params, (d,), meaning="(d,)")
            if not jnp.issubdtype(params.dtype, jnp.floating):
                params = params.astype(updates.dtype)
        received = Received(
            updates=updates,
            weights=weights,
            ids=jnp.arange(n, dtype=jnp.int32),
            params=params,
            key=jax.random.key(0) if key is None else checks.key(what, key),
        )
        aggregate = _first_aggregate(self, received)
        checks.returned("the rule's aggregate", aggregate, (d,))
        return aggregate


@functools.partial(jax.jit, static_argnums=0)
def _first_aggregate(rule: Aggregator, received: Received) -> Array:
    """One program for all calls of a rule on matrices of a shape, instead of one for each operation."""
    state = rule.init(received.updates.shape[0], received.params)
    return rule.aggregate(received, state)[0]


class Knowledge(NamedTuple):
    """What the attacker knows beyond its own clients. The engine enforces it for ``Attack.craft``: update
    rows that it may not see are zeroed before. It does not for ``Attack.client``: local training of
    malicious clients gets the shared pool of examples, as that of honest ones does, and it is up to the
    attack to use its clients' own rows only."""

    others: bool = False
    """It sees the honest clients' updates ("full knowledge" of Fang et al.)."""
    rule: bool = False
    """It can evaluate the server's own rule, on the server's own state."""
    coins: bool = False
    """It knows the random numbers that the rule will draw in this round (a noise, an order of ties), so
    that evaluating the rule tells what the server will get, to the digit. Without it the evaluations
    draw numbers of their own. Needs ``rule``."""


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
    """Static, at least the number of malicious rows. They come first: rows at and beyond it are honest,
    and which of those before it are malicious, ``malicious`` says."""
    params: Array
    """(d,), the model received from the server."""
    key: Key
    """The attacker's random numbers of this round."""
    aggregate: Callable[[Array], Array] | None
    """updates (n, d) -> (d,): the very rule that the server runs this round, with its random numbers if
    ``Knowledge.coins``, else with others; None if unknown."""
    ids: Array | None = None
    """(n,) int32 ascending, the clients of the rows; see ``Received.ids``."""


def _unchanged(view: AttackerView, state: State) -> tuple[Array, State]:
    return view.updates, state


class Attack(NamedTuple):
    """How the malicious clients train and what they send."""

    init: Callable[[Array], State] = lambda params: ()
    """params (d,) -> state."""
    craft: Callable[[AttackerView, State], tuple[Array, State]] = _unchanged
    """view, state -> what its rows send, state. The result has rows 0 .. view.num_malicious - 1, or all
    n; only those that ``view.malicious`` names are used."""
    client: Client | None = None
    """How its clients train; None = as honest clients do."""
    needs: Knowledge = Knowledge()
    """What ``craft`` cannot do without; the engine raises ValueError if it is not granted."""


Evaluate = Callable[[Array], dict[str, Array]]
"""params (d,) -> named scalars (or small arrays)."""
Score = Callable[[Array], Array]
"""params (d,) -> scalar: what a server thinks of a model, such as its accuracy or its loss on examples of
its own; see ``metrics.score``."""
Repair = Callable[[Key, Array], Array]
"""key, params (d,) -> params (d,), applied by the server after a round."""


def is_number(value: Any) -> bool:
    """Whether a hyper-parameter is known now, so that its range can be checked; arrays may be traced."""
    return isinstance(value, int | float | np.number)


def equal_weights(count: Array) -> Array:
    """Every client that owns data weighs 1: count (n,) int32 -> (n,) float32."""
    count = checks.array("equal_weights", "count", count)
    return (count > 0).astype(jnp.float32)


def example_weights(count: Array) -> Array:
    """Clients weigh as many examples as they own (FedAvg): count (n,) int32 -> (n,) float32."""
    count = checks.array("example_weights", "count", count)
    return count.astype(jnp.float32)


class Simulation(NamedTuple):
    """A whole federated training run under attack.

    A program is compiled once for all simulations that are equal, and they are equal if their parts are.
    The package's factories give the same part for equal arguments (of numbers and such parts; arguments
    that are arrays make a new one). Optimizers of optax and functions of your own are equal only to
    themselves: make them once, outside of the loop over your runs.
    """

    task: Task
    """The learning problem."""
    client: Client
    """How honest clients train."""
    aggregator: Aggregator
    """The server's rule."""
    attack: Attack = Attack()
    """What the malicious clients do."""
    knowledge: Knowledge = Knowledge()
    """What the attack is told."""
    num_malicious: int | Array = 0
    """Clients 0 .. num_malicious - 1 are malicious; the partition functions order clients at random. With
    ``max_malicious`` it may be traced."""
    server_optimizer: optax.GradientTransformation = optax.sgd(1.0)
    """Fed with minus the aggregate, so that ``sgd(1.0)`` adds the aggregate to the model (FedAvg)."""
    clients_per_round: int | None = None
    """Clients drawn without replacement in each round; None = all N."""
    participants: Callable[[Key, Array], Array] | None = None
    """Another way to draw them: key, rounds done () -> (n,) int32 ascending different ids. Ids of N and
    beyond, at the end, are places that nobody takes in this round: their rows are absent, and their
    number may change from round to round. See ``participation``."""
    weights: Callable[[Array], Array] = equal_weights
    """Example counts (n,) -> weights (n,) of the rows. A client without data must get weight 0."""
    after_round: Repair | None = None
    """Applied to the model after each round; its key is drawn anew in each."""
    client_chunk: int | None = None
    """Train at most so many clients at a time, on each device; it bounds memory. None = all at once."""
    observe: Callable[[Received, Array], Info] | None = None
    """Before-attack updates as the server would have received them, malicious (n,) bool -> what to
    report of the round besides. It sees everything and influences nothing; see ``metrics``."""
    max_malicious: int | None = None
    """Static: an upper bound of ``num_malicious``, which then is an argument of the compiled program
    instead of a part of it: a sweep over it, by ``vmap`` or a loop, compiles once. With everyone taking
    part it costs the honest training of the first ``max_malicious`` clients besides the malicious one,
    if the attack trains in its own way. None = ``num_malicious``."""


class SimState(NamedTuple):
    """All that a run carries from round to round, and all that a checkpoint holds."""

    params: Array
    """(d,), the global model."""
    opt: State
    """The server optimizer's state."""
    aggregator: State
    """The rule's."""
    attack: State
    """The attack's."""
    clients: State
    """(honest, malicious): the states of all N clients as honest ones, stacked along a leading axis, and
    those of the malicious ones if the attack trains them in its own way, else ()."""
    key: Key
    """From which every round's key is derived."""
    round: Array
    """() int32, rounds done."""
