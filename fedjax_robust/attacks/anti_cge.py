"""Anti-CGE: as long as comparative gradient elimination lets pass, against the rows that it keeps.

From the code of "Distributed Momentum for Byzantine-resilient Stochastic Gradient Descent" (El Mhamdi,
Guerraoui, Rouault, ICLR 2021, https://openreview.net/forum?id=H8UHdhWG6A3).
"""

from __future__ import annotations

import jax.numpy as jnp

from fedjax_robust import checks
from fedjax_robust.attacks.honest import finite, honest_rows, identical, needed
from fedjax_robust.kernels.norms import accumulator, direction_and_length, power_of_two
from fedjax_robust.memo import same_for_equal_arguments
from fedjax_robust.types import Array, Attack, AttackerView, State


@same_for_equal_arguments
def anti_cge(f: int | Array | None = None, *, partial: bool = False) -> Attack:
    """All malicious rows are -(m / |s|) s, s the sum of the h - f shortest of the h honest rows, and m
    just below the length of the next one: CGE, which keeps the n - f shortest rows, keeps them all.

    The authors' code adds the shortest row twice, and sends NaN if more clients are malicious than f:
    such a row counts as absent here. Then, too, all rows of this length are kept.

    Needs ``Knowledge(others=True)``, unless ``partial``.

    Args:
      f: the f of the attacked CGE, >= 0 (with 0, a mean, m is the longest length); default the number
        of malicious clients in the round. It may be traced.
      partial: honest rows are the attackers' own before-attack rows, so that h = c, and f is best
        chosen in proportion.

    Raises:
      ValueError: if f < 0 or no whole number.
      TypeError: if f is no number, or ``partial`` not True or False.
    """
    if f is not None:
        checks.count("anti_cge", f=f)
    checks.boolean("anti_cge", partial=partial)

    def craft(view: AttackerView, state: State) -> tuple[Array, State]:
        rows = honest_rows(view, partial)
        x = jnp.where(rows[:, None], view.updates.astype(accumulator(view.updates.dtype)), 0)
        lengths = direction_and_length(x)[1]
        number = jnp.sum(rows)
        assumed = jnp.sum(view.malicious) if f is None else f
        kept = jnp.maximum(number - assumed, 0)
        order = jnp.argsort(jnp.where(rows, lengths, jnp.inf), stable=True)
        next_one = order[jnp.clip(kept, 0, jnp.maximum(number - 1, 0))]
        longest = jnp.where(rows[next_one], lengths[next_one], 0)
        longest *= 1 - 8 * jnp.finfo(x.dtype).eps  # the rule's norms are rounded, too
        shortest = jnp.argsort(order) < kept
        # Divided by a power of two, which the direction does not see: no sum leaves the range of floats.
        inverse = power_of_two(jnp.max(jnp.abs(jnp.where(shortest[:, None], x, 0)), initial=0))[1]
        total = jnp.sum(jnp.where(shortest[:, None], x * inverse, 0), axis=0)
        return identical(view, finite(view, -longest * direction_and_length(total)[0])), state

    return Attack(craft=craft, needs=needed(partial))
