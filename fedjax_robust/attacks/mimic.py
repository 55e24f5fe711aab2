"""Mimic: malicious clients copy one honest client, so that it is over-represented.

Karimireddy, He, Jaggi, "Byzantine-Robust Learning on Heterogeneous Datasets via Bucketing", ICLR 2022
(https://arxiv.org/abs/2006.09365), section 3. Whom to copy is learned as in the authors' code: the client
that stands out along the direction in which honest rows differ most, by Oja's rule::

    mu <- t/(1+t) mu + 1/(1+t) mean_i h_i
    y  =  sum_i ((h_i - mu) . z) (h_i - mu)
    z  <- t/(1+t) z + 1/(1+t) y / |y|,  then of length 1

In the first round, t = 0, z is y / |y| of a normal z_0. (The paper's appendix, as we remember it, does
not divide y by its length.) Where clients' data are IID the attack does nothing, by design.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from fedjax_robust import checks
from fedjax_robust.attacks.honest import identical
from fedjax_robust.kernels.norms import (
    accumulator,
    direction_and_length,
    power_of_two,
    weighted_mean,
)
from fedjax_robust.memo import same_for_equal_arguments
from fedjax_robust.types import Array, Attack, AttackerView, Knowledge, State


@same_for_equal_arguments
def mimic(warmup: int = 1, *, smallest: bool = False, start: Array | None = None) -> Attack:
    """Copies the client with the largest h_i . z, chosen anew in ``warmup`` rounds and then kept.

    With a warm-up of one round, as in all of the authors' runs, z is one power step from noise; a long
    one is another attack. A target that is absent is stood in for by who is largest then, and comes back.
    If no honest client is there, the malicious ones send their own updates. Needs
    ``Knowledge(others=True)``.

    Args:
      warmup: rounds in which z and the target are learned, >= 1.
      smallest: copy the client with the smallest h_i . z.
      start: z_0 (d,); None is a normal draw that is the same in every run.

    Raises:
      ValueError: if warmup < 1; when run, if start is not (d,).
      TypeError: for arguments of another kind.
    """
    checks.static_count("mimic", 1, warmup=warmup)
    checks.boolean("mimic", smallest=smallest)
    if start is not None:
        start = checks.shaped("mimic", "start", start, (None,), "float", "(d,)")

    def init(params: Array) -> State:
        dtype = accumulator(params.dtype)
        if start is None:
            z = jax.random.normal(jax.random.key(0), params.shape, dtype)
        else:
            z = checks.shaped("mimic", "start", start, params.shape, "float", "(d,)").astype(dtype)
        return jnp.zeros_like(z), z, jnp.int32(0), jnp.int32(-1)

    def craft(view: AttackerView, state: State) -> tuple[Array, State]:
        mu, z, t, target = state
        honest = view.reference
        rows = jnp.where(honest[:, None], view.updates.astype(mu.dtype), 0)
        share = 1 / (1 + t).astype(mu.dtype)
        new_mu = mu + share * (weighted_mean(rows, honest) - mu)
        gaps = jnp.where(honest[:, None], rows - new_mu, 0)
        gaps = gaps * power_of_two(jnp.max(jnp.abs(gaps), initial=0))[1]
        along = jnp.dot(gaps, direction_and_length(z)[0], precision="highest")
        y = direction_and_length(jnp.dot(along, gaps, precision="highest"))[0]
        new_z = direction_and_length(jnp.where(t == 0, 0, (1 - share) * z) + share * y)[0]
        learning = (t < warmup) & jnp.any(honest)
        mu, z = jnp.where(learning, new_mu, mu), jnp.where(learning, new_z, z)

        unit = power_of_two(jnp.max(jnp.abs(rows), initial=0))[1]
        places = jnp.dot(rows * unit, z, precision="highest")
        chosen = jnp.argmax(jnp.where(honest, -places if smallest else places, -jnp.inf))
        ids = jnp.arange(rows.shape[0], dtype=jnp.int32) if view.ids is None else view.ids
        target = jnp.where(learning, ids[chosen].astype(jnp.int32), target)
        return _copy(view, target, chosen), (mu, z, t + jnp.any(honest), target)

    return Attack(init=init, craft=craft, needs=Knowledge(others=True))


@same_for_equal_arguments
def mimic_one(client: int | Array) -> Attack:
    """Copies one given honest client; while it is absent, malicious clients send their own updates.

    Needs ``Knowledge(others=True)``.

    Args:
      client: its id, >= 0. It may be traced.

    Raises:
      ValueError: if client < 0.
      TypeError: if it is no whole number.
    """
    checks.count("mimic_one", client=client)

    def craft(view: AttackerView, state: State) -> tuple[Array, State]:
        return _copy(view, jnp.asarray(client, jnp.int32), None), state

    return Attack(craft=craft, needs=Knowledge(others=True))


def _copy(view: AttackerView, target: Array, instead: Array | None) -> Array:
    """The target's row for all (num_malicious, d); else that of another row, or their own."""
    ids = jnp.arange(view.updates.shape[0]) if view.ids is None else view.ids
    own = view.reference & (ids == target)
    place = jnp.argmax(own)
    there = jnp.any(own)
    if instead is not None:
        place = jnp.where(there, place, instead)
        there = jnp.any(view.reference)
    row = jnp.where(view.reference[place], view.updates[place], 0)
    return jnp.where(there, identical(view, row), view.updates[: view.num_malicious])
