"""The number of an attack, such as ALIE's z, chosen by looking for it through the server's own rule.

El Mhamdi, Guerraoui, Rouault, "Distributed Momentum for Byzantine-resilient Stochastic Gradient Descent",
ICLR 2021 (https://openreview.net/forum?id=H8UHdhWG6A3), whose code searches so for the factor of its
attacks; ByzFL's ``Optimal_`` attacks, used in Allouah et al., "Fixing by Mixing", AISTATS 2023
(https://arxiv.org/abs/2302.01772). Their two searches differ, and both are in ``attacks.searches``.
"""

from __future__ import annotations

from collections.abc import Callable

import jax.numpy as jnp

from fedjax_robust import checks
from fedjax_robust.attacks.honest import as_received, honest_mean
from fedjax_robust.attacks.searches import Search, golden_section
from fedjax_robust.kernels.norms import safe_norm
from fedjax_robust.memo import same_for_equal_arguments
from fedjax_robust.types import Array, Attack, AttackerView, State

Gain = Callable[[Array, Array], Array]
"""aggregate under attack (d,), mean of the honest rows (d,) -> what the attacker wants to be large ()"""


def displacement(aggregate: Array, mean: Array) -> Array:
    """How far the aggregate is from the mean of the honest rows."""
    return safe_norm(aggregate - mean)


@same_for_equal_arguments
def line_search(
    attack: Callable[[Array], Attack],
    search: Search | None = None,
    *,
    gain: Gain = displacement,
) -> Attack:
    """The attack whose one number x does most harm to this round's aggregate::

        line_search(ipm)
        line_search(lambda z: alie(z, ddof=1), attacks.searches.byzfl())

    The rule is the server's, wrappers included, on its frozen state of this round. Needs what the attack
    needs, and ``Knowledge(rule=True)``. An attack that does not see the others' rows, such as
    ``lambda x: ipm(x, partial=True)``, evaluates the rule on its own before-attack rows, which play those
    of all others in turn.

    Args:
      attack: x () >= 0, which may be traced -> an attack that only crafts.
      search: a maximising one of ``attacks.searches``, or one's own; None is ``golden_section()``, x in
        [.01, 100] or 0.
      gain: aggregate under attack (d,), mean of the honest rows (d,) -> what is maximised (). Default
        the distance of the two.

    Raises:
      ValueError: if the attack's clients train in their own way; when called, if it is not given the
        rule, or if ``gain`` returns no scalar.
      TypeError: for arguments of another kind.
    """
    checks.function("line_search", attack=attack, gain=gain)
    checks.function("line_search", optional=True, search=search)
    sample = attack(1.0)  # type: ignore[arg-type]
    checks.part("what attack returns to line_search", Attack, it=sample)
    if sample.client is not None:
        raise ValueError(
            "line_search needs an attack that only crafts, got one whose clients train in their own way"
        )
    find = golden_section() if search is None else search
    partial = not sample.needs.others

    def craft(view: AttackerView, state: State) -> tuple[Array, State]:
        best = best_number(
            "line_search",
            view,
            lambda x: attack(x).craft(view, state)[0],
            find,
            honest_mean(view, partial),
            gain,
            partial,
        )
        return attack(best).craft(view, state)

    return Attack(init=sample.init, craft=craft, needs=sample.needs._replace(rule=True))


def best_number(
    what: str,
    view: AttackerView,
    rows: Callable[[Array], Array],
    search: Search,
    mean: Array,
    gain: Gain = displacement,
    partial: bool = False,
    scale: Array | None = None,
) -> Array:
    """The x at which the server's aggregate of rows(x) (num_malicious, d) is worth most."""
    if view.aggregate is None:
        raise ValueError(
            f"{what} evaluates the server's rule, but the view has none (aggregate is None); grant "
            "Knowledge(rule=True)"
        )
    rule = view.aggregate

    def objective(x: Array) -> Array:
        aggregate = rule(as_received(view, rows(x), partial)).astype(mean.dtype)
        value = gain(aggregate, mean)
        checks.returned(f"the gain of {what}", value, ())
        return value

    best = search(objective, jnp.ones((), mean.dtype) if scale is None else scale)
    checks.returned(f"the search of {what}", best, ())
    return best
