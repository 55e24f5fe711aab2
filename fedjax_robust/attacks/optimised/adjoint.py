"""The adjoint attack: each coordinate of this round's aggregate is pushed to the side that will hurt most
many rounds from now.

Fang et al. (USENIX Security 2020, https://arxiv.org/abs/1911.11815) push the aggregate against the
direction of this round's honest change. Here the side of a coordinate is the sign of the gradient of the
attacker's loss *some rounds ahead* with respect to this round's aggregate: the adjoint state of
training, one reverse pass through a forecast. Rows lie beyond the honest ones on that side, coordinate
by coordinate, where every coordinate-wise rule must yield as far as it ever does. Not from a paper.
"""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp

from fedjax_robust import checks
from fedjax_robust.attacks.fang_trim import extremes
from fedjax_robust.attacks.honest import finite, honest_mean, honest_rows, needed
from fedjax_robust.attacks.optimised.forecast import Forecast, loss_after
from fedjax_robust.kernels.norms import direction_and_length
from fedjax_robust.memo import same_for_equal_arguments
from fedjax_robust.types import Array, Attack, AttackerView, Score, State

Slope = Callable[[AttackerView], Array]
"""view -> (d,), where the attacker wants the aggregate to go; its length does not matter."""


@same_for_equal_arguments
def steepest(forecast: Forecast, loss: Score, rounds: int = 50, *, partial: bool = False) -> Slope:
    """The direction in which this round's aggregate raises the loss most, ``rounds`` rounds from now.

    The gradient is taken where the aggregate is the honest rows' mean, through ``rounds`` - 1 forecast
    rounds after this one.

    Args:
      forecast: one round, ``forecast.as_one`` or ``forecast.by_rule``.
      loss: params (d,) -> (), what the attacker wants to be large.
      rounds: k >= 1; with 1 the loss right after this round.
      partial: the honest rows are the attackers' own before-attack rows.

    Raises:
      ValueError: if rounds < 1.
      TypeError: for parts of another kind.
    """
    checks.function("steepest", forecast=forecast, loss=loss)
    checks.static_count("steepest", 1, rounds=rounds)
    checks.boolean("steepest", partial=partial)
    ahead = loss_after(forecast, loss, int(rounds) - 1)

    def slope(view: AttackerView) -> Array:
        key = jax.random.fold_in(view.key, _FORECAST)
        aggregate = honest_mean(view, partial).astype(view.params.dtype)
        gradient = jax.grad(lambda g: ahead(key, view.params + g))(aggregate)
        return jnp.where(jnp.isfinite(gradient), gradient, 0)

    return slope


_FORECAST = 0x464F5245  # folded into the attack's key: what else the attack draws stays as it is


@same_for_equal_arguments
def adjoint(slope: Slope, *, beyond: float | Array = 0.5, partial: bool = False) -> Attack:
    """Every coordinate just beyond the honest rows' largest or smallest value, by the sign of the slope.

    All malicious rows are the same: max + ``beyond`` (max - min) where the slope is > 0, min - ``beyond``
    (max - min) where it is < 0, and the mean where it is 0 (no example of the forecast reaches the
    parameter). Needs ``Knowledge(others=True)``, unless ``partial``; not the rule.

    Args:
      slope: what to push the aggregate towards, ``steepest(...)`` or one's own.
      beyond: in units of the honest range, >= 0. Without influence on trimmed mean and median.
      partial: the honest rows are the attackers' own before-attack rows.

    Raises:
      ValueError: if beyond is < 0 or not finite; when called, if the slope returns another shape.
      TypeError: for parts of another kind.
    """
    checks.function("adjoint", slope=slope)
    checks.not_negative("adjoint", beyond=beyond)
    checks.boolean("adjoint", partial=partial)

    def craft(view: AttackerView, state: State) -> tuple[Array, State]:
        side = _of(slope, view)
        largest, smallest = extremes(view.updates, honest_rows(view, partial))
        gap = beyond * (0.5 * largest - 0.5 * smallest)
        middle = honest_mean(view, partial).astype(view.updates.dtype)
        row = jnp.where(side > 0, largest + 2 * gap, smallest - 2 * gap)
        row = jnp.where(side == 0, middle, row)
        return finite(view, jnp.broadcast_to(row, (view.num_malicious, row.shape[0]))), state

    return Attack(craft=craft, needs=needed(partial))


@same_for_equal_arguments
def aimed(make: Callable[[Array], Attack], slope: Slope) -> Attack:
    """Any attack with a direction, such as Min-Max or Fang et al.'s, aimed along a slope in every round::

        aimed(lambda p: attacks.min_max(lambda mean, std: p), steepest(...))
        aimed(lambda p: attacks.fang_krum_full(direction=lambda change: -jnp.sign(p)), steepest(...))

    Args:
      make: the slope of this round (d,), of length 1 -> an attack without state or client of its own.
      slope: ``steepest(...)`` or one's own.

    Raises:
      ValueError: when called, if the attack keeps a state or the slope returns another shape.
      TypeError: for parts of another kind, or if ``make`` returns no attack that only crafts.
    """
    checks.function("aimed", make=make, slope=slope)
    needs = _made(make, jnp.zeros(1)).needs

    def craft(view: AttackerView, state: State) -> tuple[Array, State]:
        attack = _made(make, direction_and_length(_of(slope, view))[0])
        own = attack.init(view.params)
        if jax.tree.leaves(own):
            raise ValueError(
                "aimed needs an attack without a state of its own, as it is made anew in every round; "
                f"got the state {jax.tree.map(jnp.shape, own)} (shapes)"
            )
        return attack.craft(view, own)[0], state

    return Attack(craft=craft, needs=needs)


def _of(slope: Slope, view: AttackerView) -> Array:
    value = slope(view)
    checks.returned("the slope", value, view.params.shape)
    return value


def _made(make: Callable[[Array], Attack], direction: Array) -> Attack:
    attack = make(direction)
    if not isinstance(attack, Attack) or attack.client is not None:
        raise TypeError(
            f"aimed needs make to return an Attack that only crafts, got {type(attack).__name__}"
        )
    return attack
