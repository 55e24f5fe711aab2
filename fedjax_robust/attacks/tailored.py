"""AGR-tailored attacks: mean + gamma p with the gamma that the server's rule lets pass, or suffers from.

Shejwalkar, Houmansadr, "Manipulating the Byzantine: Optimizing Model Poisoning Attacks and Defenses for
Federated Learning", NDSS 2021 (https://doi.org/10.14722/ndss.2021.24498). The paper has one attack for
each rule. What it asks of gamma is one of two things: rules that select rows (Krum, Multi-Krum, Bulyan)
must select the malicious ones, and others (trimmed mean, median) must be moved far.

The searches are ours: the authors halve steps (``attacks.searches.halving``), and for trimmed mean
compare with the *previous* trial instead of the best, so that a flat objective sends the start. Their
Bulyan notebooks attack through Multi-Krum; here the rule is what it is.
"""

from __future__ import annotations

import jax.numpy as jnp

from fedjax_robust import checks
from fedjax_robust.attacks.directions import Direction, unit
from fedjax_robust.attacks.honest import as_received, identical, line, needed
from fedjax_robust.attacks.line_search import best_number
from fedjax_robust.attacks.searches import FeasibleSearch, Search, bisection, golden_section
from fedjax_robust.memo import same_for_equal_arguments
from fedjax_robust.types import Aggregator, Array, Attack, AttackerView, Received, State


@same_for_equal_arguments
def tailored_selection(
    rule: Aggregator,
    direction: Direction = unit,
    *,
    search: FeasibleSearch | None = None,
    partial: bool = False,
) -> Attack:
    """The largest gamma at which a rule that selects rows selects the malicious ones: all of them, or as
    many as it selects at all (one for Krum).

    The rule is what the attacker assumes the server to run, as for ``fang_krum_full``; it is called with
    fresh state. If no gamma works, the rows are the mean.

    Needs ``Knowledge(others=True)``, unless ``partial``.

    Args:
      rule: one that reports ``selected``, such as ``krum(f)``, ``multi_krum(f)``, ``bulyan(f)``.
      direction: mean (d,), standard deviation (d,) of the honest rows -> p (d,), of any length; one of
        ``attacks.directions`` or one's own.
      search: a feasible one of ``attacks.searches``, or one's own; None is ``bisection()``, up to 1000
        times the distance of the farthest honest row from the mean.
      partial: honest rows are the attackers' own before-attack rows, which play those of all others in
        turn before the rule.

    Raises:
      ValueError: when called, if the rule reports no ``selected``, or refuses so many rows; or if
        ``direction`` returns another shape.
      TypeError: for arguments of another kind.
    """
    what = "tailored_selection"
    checks.part(what, Aggregator, rule=rule)
    _check(what, direction, search, partial)
    find = bisection() if search is None else search

    def craft(view: AttackerView, state: State) -> tuple[Array, State]:
        n, dtype = view.updates.shape[0], view.updates.dtype
        here = line(what, view, direction, partial)
        weights = jnp.ones(n, dtype) if partial else view.visible.astype(dtype)
        own = rule.init(n, view.params)
        number = jnp.sum(view.malicious)

        def selected(gamma: Array) -> Array:
            rows = as_received(view, identical(view, here.row(here.distance(gamma))), partial)
            ids = jnp.arange(n, dtype=jnp.int32)
            received = Received(rows, weights, ids, view.params, view.key)
            info = rule.aggregate(received, own)[2]
            if "selected" not in info:
                raise ValueError(
                    f"{what} needs a rule that reports which rows it selected, got one that reports "
                    f"{sorted(info)}; tailored_displacement takes any rule"
                )
            chosen = jnp.asarray(info["selected"]) > 0
            enough = jnp.minimum(number, jnp.sum(chosen))
            return (jnp.sum(chosen & view.malicious) >= enough) & (enough > 0)

        gamma = find(selected, here.scale)
        checks.returned(f"the search of {what}", gamma, ())
        return identical(view, here.row(here.distance(gamma))), state

    return Attack(craft=craft, needs=needed(partial))


@same_for_equal_arguments
def tailored_displacement(
    direction: Direction = unit,
    *,
    search: Search | None = None,
    partial: bool = False,
) -> Attack:
    """The gamma at which the server's aggregate is farthest from the mean of the honest rows.

    The paper's for trimmed mean and median, and for any other rule, wrappers included. Needs
    ``Knowledge(others=True, rule=True)``, or only the rule if ``partial``.

    Args:
      direction: mean (d,), standard deviation (d,) of the honest rows -> p (d,), of any length; one of
        ``attacks.directions`` or one's own.
      search: a maximising one of ``attacks.searches``, or one's own; None is ``golden_section()``, from
        .01 to 100 times the distance of the farthest honest row from the mean.
      partial: honest rows are the attackers' own before-attack rows, which play those of all others in
        turn before the rule.

    Raises:
      ValueError: when called, if it is not given the rule, or if ``direction`` returns another shape.
      TypeError: for arguments of another kind.
    """
    what = "tailored_displacement"
    _check(what, direction, search, partial)
    find = golden_section() if search is None else search

    def craft(view: AttackerView, state: State) -> tuple[Array, State]:
        here = line(what, view, direction, partial)

        def rows(gamma: Array) -> Array:
            return identical(view, here.row(here.distance(gamma)))

        gamma = best_number(
            what, view, rows, find, here.honest.at(), partial=partial, scale=here.scale
        )
        return rows(gamma), state

    return Attack(craft=craft, needs=needed(partial, rule=True))


def _check(
    what: str, direction: Direction, search: Search | FeasibleSearch | None, partial: bool
) -> None:
    checks.function(what, direction=direction)
    checks.function(what, optional=True, search=search)
    checks.boolean(what, partial=partial)
