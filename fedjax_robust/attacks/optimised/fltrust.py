"""The adaptive attack on FLTrust, an instance of Fang et al.'s framework: zeroth-order ascent.

Cao, Fang, Liu, Gong: "FLTrust: Byzantine-robust Federated Learning via Trust Bootstrapping", NDSS 2021
(https://arxiv.org/abs/2012.13995), Algorithm 3.

All updates are unit vectors e_i, e_0 the server's. The attacker seeks e'_i, i <= c, that drive the
aggregate furthest against the direction s = sign(g) of the one without attack:

    h = s . (g - g'),  g' = |g_0| [sum_{i<=c} ReLU(t_i) e'_i + A] / [sum_{i<=c} ReLU(t_i) + B]

with t_i = e'_i . e_0, and A, B the honest rows' part. It climbs h one client after the other by
differences along random directions (zeroth order): V times over all clients, Q steps each,

    u ~ N(0, sigma^2 I),  e'_i <- unit(e'_i + eta (h(e'_i + gamma u) - h(e'_i)) / gamma u)

h depends on e'_i by two numbers only, t_i and a_i = s . e'_i. Directions are drawn from a spherical
distribution, so what matters of u are its parts along e_0, s, e'_i's start and e'_i's drift so far,
each a normal number, and the length of the rest, a chi: the V Q c steps are arithmetic on numbers, and
one vector per client is drawn at the end. That is Algorithm 3 in law, exactly, at a cost of O(c d) per
round in place of O(V Q c d).
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

from fedjax_robust import checks
from fedjax_robust.aggregators.trust import server_update, trusted_mean
from fedjax_robust.attacks.fang_trim import fang_trim_full
from fedjax_robust.attacks.optimised.first_order import check_start, start_rows
from fedjax_robust.kernels.norms import changing_direction, direction_and_length, safe_norm
from fedjax_robust.memo import same_for_equal_arguments
from fedjax_robust.types import (
    Array,
    Attack,
    AttackerView,
    Batch,
    Client,
    Key,
    Knowledge,
    State,
)


class Objective(NamedTuple):
    """h of one round as a function of the malicious rows' t and a."""

    pull: Array
    """() s . A, the honest part of the numerator along s"""
    trust: Array
    """() B, the honest rows' trust"""
    length: Array
    """() |g_0|"""
    before: Array
    """() s . g, the aggregate without attack along s"""

    def __call__(self, t: Array, a: Array) -> Array:
        """t, a (c,) -> h ()."""
        scores = jax.nn.relu(t)
        trust = self.trust + jnp.sum(scores)
        pull = self.pull + jnp.sum(jnp.where(scores > 0, scores * a, 0))
        moved = jnp.where(trust > 0, pull / jnp.where(trust > 0, trust, 1), 0)
        return self.before - self.length * moved


class Draws(NamedTuple):
    """The random numbers of V sweeps over c clients of Q steps, standard normal or chi-square."""

    along: Array
    """(V, c, Q, 4) u / sigma along e_0, s, the start and the drift"""
    rest: Array
    """(V, c, Q) squared length of the rest of u / sigma: chi-square, d - 4 degrees of freedom"""


def climb(
    h: Objective,
    x: Array,
    s: Array,
    active: Array,
    draws: Draws,
    sigma: float | Array,
    gamma: float | Array,
    eta: float | Array,
) -> Array:
    """Algorithm 3's ascent in coordinates.

    Args:
      h: the objective.
      x: (c, 4) the unit rows' coordinates along e_0, the rest of s, the rest of the start, the drift.
      s: (2,) s's coordinates along e_0 and its rest.
      active: (c,) bool, rows that are sent; the others stay, and must be zero.
      draws: the random numbers.
      sigma: standard deviation of a coordinate of u.
      gamma: length of a difference.
      eta: step size.

    Returns:
      (c, 4) where the rows end; the last coordinate, >= 0, lies in a direction of its own for each row.
    """

    def one_client(x: Array, now: tuple[Array, Array, Array]) -> tuple[Array, None]:
        i, along, rest = now
        others = jnp.arange(x.shape[0]) != i
        t, a = jnp.where(others, x[:, 0], 0), x[:, :2] @ s
        h_of = Objective(
            h.pull + jnp.sum(jnp.where(others, jax.nn.relu(t) * a, 0)),
            h.trust + jnp.sum(jax.nn.relu(t)),
            h.length,
            h.before,
        )

        def value(row: Array) -> Array:
            return h_of(row[:1], row[:2] @ s)

        row = x[i]
        for q in range(along.shape[0]):  # unrolled: each step is a few operations on numbers
            u = sigma * along[q]
            slope = (value(row + gamma * u) - value(row)) / gamma
            new = row + eta * slope * u
            # Neither squares nor steps leave the range of floats, whatever |g_0| is.
            new = new.at[3].set(jnp.hypot(new[3], eta * slope * sigma * jnp.sqrt(rest[q])))
            unit, length = direction_and_length(new)
            row = jnp.where(length > 0, unit, row)
        return x.at[i].set(jnp.where(active[i], row, x[i])), None

    def sweep(x: Array, draws: Draws) -> tuple[Array, None]:
        x, _ = jax.lax.scan(one_client, x, (jnp.arange(x.shape[0]), *draws))
        return x, None

    return jax.lax.scan(sweep, x, draws)[0]


@same_for_equal_arguments
def fltrust_adaptive(
    client: Client,
    root: Batch,
    *,
    sweeps: int = 10,
    queries: int = 10,
    variance: float | Array = 0.5,
    gamma: float | Array = 0.005,
    eta: float | Array = 0.01,
    start: Attack | None = None,
) -> Attack:
    """The adaptive attack on FLTrust (Algorithm 3). Needs ``Knowledge(others=True)``.

    The attacker knows the rule, the root data and every update. Its g_0 is the server's own if the
    server's client draws nothing (a full batch), else another draw of it.

    h has no slope in a row of trust 0. The Trim attack starts rows on the far side of the server's
    update, and differences of gamma only reach across the border from within about gamma |u . e_0|;
    rows that start further away keep trust 0, and count for nothing.

    Args:
      client: how the server trains on the root data, that of ``aggregators.fltrust``.
      root: the server's examples, ``x`` (m, ...) and ``y`` (m,), m >= 1.
      sweeps: V >= 1.
      queries: Q >= 1.
      variance: sigma^2 > 0 of a coordinate of u. Ports of the original differ: some take 0.5 as sigma.
      gamma: length of a difference, > 0.
      eta: step size, > 0.
      start: an attack without state whose rows are climbed from; default the Trim attack with full
        knowledge, ``fang_trim_full()``, which here takes s by FLTrust, too.

    Raises:
      ValueError: for numbers out of range, root data that are empty, of different lengths, not labelled
        by integers >= 0 or masked, or a start with a client of its own; when called, for models of
        fewer than 5 parameters, or a start with a state.
      TypeError: for parts and numbers of another kind.
    """
    what = "fltrust_adaptive"
    checks.static_count(what, 1, sweeps=sweeps, queries=queries)
    checks.positive(what, variance=variance, gamma=gamma, eta=eta)
    sweeps, queries = int(sweeps), int(queries)
    checks.part(what, Attack, start=start, optional=True)
    start = fang_trim_full() if start is None else start
    check_start(what, start)
    server = server_update(client, root)

    def craft(view: AttackerView, state: State) -> tuple[Array, State]:
        c, d = view.num_malicious, view.updates.shape[1]
        if d < 5:
            raise ValueError(f"fltrust_adaptive needs at least 5 parameters, got {d}")
        server_key, start_key, b_key, draw_key, drift_key = jax.random.split(view.key, 5)
        g_0, state = server(server_key, view.params, state)

        def fltrust(updates: Array) -> Array:
            return trusted_mean(updates, view.visible, g_0)[0]

        g = fltrust(view.updates)
        direction = changing_direction(g)
        first = start_rows(what, start, view._replace(aggregate=fltrust, key=start_key))
        active = view.malicious[:c]
        rows = jnp.where(active[:, None], _unit(first), 0)

        e_0, length = direction_and_length(g_0)
        honest = (view.visible & ~view.malicious).astype(g.dtype)
        rest = _rest(direction, e_0[None], b_key)
        frame = jnp.stack([e_0, rest])
        s = jnp.dot(frame, direction, precision="highest")
        units = _unit(view.updates)
        trust = honest * jax.nn.relu(jnp.dot(units, e_0, precision="highest"))
        h = Objective(
            pull=jnp.dot(trust, jnp.dot(units, direction, precision="highest")),
            trust=jnp.sum(trust),
            length=length,
            before=jnp.dot(direction, g, precision="highest"),
        )
        start_keys, drift_keys = (jax.random.split(k, c) for k in jax.random.split(drift_key))
        starts = jax.vmap(_rest, (0, None, 0))(rows, frame, start_keys)
        x = jnp.stack(
            [
                *jnp.dot(frame, rows.T, precision="highest"),
                jnp.sum(starts * rows, axis=1),
                jnp.zeros(c, g.dtype),
            ],
            axis=1,
        )
        x = climb(h, x, s, active, _draw(draw_key, sweeps, c, queries, d), *sizes)
        frames = jnp.concatenate([jnp.broadcast_to(frame, (c, 2, d)), starts[:, None]], axis=1)
        drifts = jax.vmap(_rest)(jnp.zeros((c, d), g.dtype), frames, drift_keys)
        frames = jnp.concatenate([frames, drifts[:, None]], axis=1)
        return h.length * jnp.einsum("ck,ckd->cd", x, frames, precision="highest"), state

    sizes = jnp.sqrt(variance), gamma, eta
    return Attack(init=client.init, craft=craft, needs=Knowledge(others=True))


def _draw(key: Key, sweeps: int, c: int, queries: int, d: int) -> Draws:
    along, rest = jax.random.split(key)
    shape = (sweeps, c, queries)
    return Draws(jax.random.normal(along, (*shape, 4)), jax.random.chisquare(rest, d - 4.0, shape))


def _unit(x: Array) -> Array:
    return direction_and_length(x)[0]


def _rest(x: Array, frame: Array, key: Key) -> Array:
    """The direction of x's part across ``frame``, at random if there is none.

    x (d,), frame (k, d) of orthonormal rows -> (d,) unit.
    """

    def across(x: Array) -> Array:
        return x - jnp.dot(jnp.dot(frame, x, precision="highest"), frame, precision="highest")

    part = across(_unit(x))
    part = jnp.where(safe_norm(part) > 1e-4, part, across(jax.random.normal(key, x.shape, x.dtype)))
    return _unit(across(_unit(part)))  # twice, as rounding leaves something along the frame
