"""An attack by gradients through the server's own rule: projected ascent on Fang et al.'s objective.

Fang et al. (USENIX Security 2020, https://arxiv.org/abs/1911.11815, eq. 1) maximise s . (g - g'), how far
the aggregate g' under attack lies from the one without, g, against its direction s = sign(g). Where the
rule is differentiable, reverse mode gives the slope in all malicious updates at once, for about three
times the cost of one aggregation. FLTrust's adaptive attack (``fltrust_adaptive``) estimates it from
differences instead. The ascent is not from a paper.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import optax

from fedjax_robust import checks
from fedjax_robust.attacks.optimised.ascent import maximise
from fedjax_robust.kernels.norms import changing_direction, direction_and_length
from fedjax_robust.memo import same_for_equal_arguments
from fedjax_robust.types import Array, Attack, AttackerView, Knowledge, State


@same_for_equal_arguments
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
      step_size: of the first step, in units of the row's length, > 0, finite. It may be traced.
      start: an attack without state whose rows are climbed from and give the lengths; default the
        malicious clients' own updates, which a rule trusts.

    Raises:
      ValueError: for numbers out of range, or a start with a client of its own; when called, if the
        start keeps a state, or the rule is not granted.
      TypeError: for parts and numbers of another kind.
    """
    checks.static_count("first_order", 1, steps=steps)
    checks.positive("first_order", step_size=step_size)
    steps = int(steps)
    if start is not None:
        check_start("first_order", start)

    def craft(view: AttackerView, state: State) -> tuple[Array, State]:
        c = view.num_malicious
        rule = view.aggregate
        if rule is None:
            raise ValueError(
                "first_order climbs through the server's rule, but the view has none (aggregate is "
                "None); grant Knowledge(others=True, rule=True)"
            )
        before = rule(view.updates)
        # Divided by more than d, so that the sum over the parameters does not leave the range of floats.
        direction = changing_direction(before) * 0.5 ** before.shape[0].bit_length()
        rows = view.updates[:c]
        if start is not None:
            rows = start_rows("first_order", start, view)
        lengths = direction_and_length(rows)[1][:, None]

        def gain(rows: Array) -> Array:
            own = jnp.where(view.malicious[:c, None], rows, view.updates[:c])  # the rest is honest
            after = rule(jnp.concatenate([own, view.updates[c:]]))
            return jnp.dot(direction, before - after, precision="highest")

        def sphere(rows: Array) -> Array:
            return lengths * direction_and_length(rows)[0]

        return maximise(gain, rows, steps, turning(lengths), project=sphere).best, state

    def turning(lengths: Array) -> optax.GradientTransformation:
        """Each row moves by its length times the step size, less from step to step."""

        def update(down: Array, i: Array, rows: Array | None = None) -> tuple[Array, Array]:
            size = lengths * step_size * (1 - i / steps)
            return size * direction_and_length(-down)[0], i + 1

        return optax.GradientTransformation(lambda rows: jnp.int32(0), update)

    return Attack(craft=craft, needs=Knowledge(others=True, rule=True))


def check_start(what: str, start: Attack) -> None:
    """An attack whose rows another one starts from trains no clients of its own."""
    checks.part(what, Attack, start=start)
    if start.client is not None:
        raise ValueError(
            f"{what} needs a start that only crafts, got one whose clients train in their own way; pass "
            "Attack(client=...) to the simulation by itself, or a start without client"
        )


def start_rows(what: str, start: Attack, view: AttackerView) -> Array:
    """What a start sends: (num_malicious, d). ValueError if it keeps a state."""
    state = start.init(view.params)
    if jax.tree.leaves(state):
        raise ValueError(
            f"{what} needs a start without a state of its own, as it calls it anew in every round; got "
            f"the state {jax.tree.map(jnp.shape, state)} (shapes)"
        )
    rows, _ = start.craft(view, state)
    c = view.num_malicious
    if jnp.ndim(rows) != 2 or rows.shape[0] < c or rows.shape[1:] != view.updates.shape[1:]:
        raise ValueError(
            f"{what} needs a start whose craft returns {c} or n rows, shape "
            f"({c}, {view.updates.shape[1]}), got shape {jnp.shape(rows)}"
        )
    return rows[:c].astype(view.updates.dtype)
