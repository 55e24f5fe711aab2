"""An attack by gradients through the server's own rule: projected ascent on Fang et al.'s objective.

Fang et al. (USENIX Security 2020, Equation 1) maximise s . (g - g'), how far the aggregate g' under
attack lies from the one without, g, against its direction s = sign(g). Where the rule is
differentiable, reverse mode gives the slope in all malicious updates at once, for about three times
the cost of one aggregation. FLTrust's adaptive attack (``fltrust_adaptive``) estimates it from
differences instead.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from fedjax_robust.robust_stats import changing_direction, direction_and_length
from fedjax_robust.types import Array, Attack, AttackerView, Knowledge, State, is_number


def first_order(
    steps: int = 30, step_size: float | Array = 0.2, start: Attack | None = None
) -> Attack:
    """Malicious rows climb s . (g - g') on the spheres on which they start.

    Each row turns by up to ``step_size`` towards its part of the gradient, and less from step to step
    (linearly to 0); the best rows seen are sent. Needs ``Knowledge(others=True, rule=True)``. Rules that
    select whole rows (Krum, Bulyan) have no slope in the rows that they leave out: for those use
    ``fang_krum_full``.

    Args:
      steps: gradients, >= 1.
      step_size: of the first step, in units of the row's length, > 0.
      start: an attack without state whose rows are climbed from and give the lengths; default the
        malicious clients' own updates, which a rule trusts.

    Raises:
      ValueError: for numbers out of range.
    """
    if steps < 1:
        raise ValueError(f"first_order needs steps >= 1, got {steps}")
    if is_number(step_size) and not step_size > 0:
        raise ValueError(f"first_order needs step_size > 0, got {step_size}")

    def craft(view: AttackerView, state: State) -> tuple[Array, State]:
        c = view.num_malicious
        rule = view.aggregate
        assert rule is not None
        before = rule(view.updates)
        direction = changing_direction(before)
        rows = view.updates[:c]
        if start is not None:
            rows = start.craft(view, ())[0][:c].astype(rows.dtype)
        lengths = direction_and_length(rows)[1][:, None]

        def gain(rows: Array) -> Array:
            own = jnp.where(view.malicious[:c, None], rows, view.updates[:c])  # the rest is honest
            after = rule(jnp.concatenate([own, view.updates[c:]]))
            return jnp.dot(direction, before - after, precision="highest")

        def step(carry: tuple[Array, Array, Array], i: Array) -> tuple[tuple, None]:
            rows, best, best_gain = carry
            value, slope = jax.value_and_grad(gain)(rows)
            better = value > best_gain
            best = jnp.where(better, rows, best)
            slope = jnp.nan_to_num(slope, posinf=0.0, neginf=0.0)
            size = lengths * step_size * (1 - i / steps)
            rows = rows + size * direction_and_length(slope)[0]
            rows = lengths * direction_and_length(rows)[0]
            return (rows, best, jnp.where(better, value, best_gain)), None

        carry = (rows, rows, jnp.full((), -jnp.inf, rows.dtype))
        (rows, best, best_gain), _ = jax.lax.scan(step, carry, jnp.arange(steps))
        return jnp.where(gain(rows) > best_gain, rows, best), state

    return Attack(craft=craft, needs=Knowledge(others=True, rule=True))
