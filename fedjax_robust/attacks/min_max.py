"""Min-Max and Min-Sum: as far from the honest mean as the honest rows are from each other.

Shejwalkar, Houmansadr, "Manipulating the Byzantine: Optimizing Model Poisoning Attacks and Defenses for
Federated Learning", NDSS 2021 (https://doi.org/10.14722/ndss.2021.24498), the two attacks that do not
know the rule. All malicious rows are mean + gamma p, p one of ``attacks.directions``.

The authors halve steps to find the largest gamma: their search never exceeds twice its start, and ends at
an absolute 1e-5, so that long and short updates get another attack. Here gamma is the root of a quadratic
(ours), exact, differentiable and in no unit; their search is ``search=attacks.searches.halving(10.0)``.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from fedjax_robust import checks
from fedjax_robust.attacks.directions import Direction, unit
from fedjax_robust.attacks.honest import Line, identical, line, needed
from fedjax_robust.attacks.searches import FeasibleSearch
from fedjax_robust.kernels.distances import pairwise_distances
from fedjax_robust.kernels.norms import safe_norm
from fedjax_robust.memo import same_for_equal_arguments
from fedjax_robust.types import Array, Attack, AttackerView, State


@same_for_equal_arguments
def min_max(
    direction: Direction = unit, *, search: FeasibleSearch | None = None, partial: bool = False
) -> Attack:
    """The row's largest distance to an honest row is at most the largest among honest rows.

    With D the largest distance, b_i = p . (mean - h_i) and c_i = |mean - h_i|^2, gamma is the smallest
    over i of (-b_i + sqrt(b_i^2 - |p|^2 (c_i - D^2))) / |p|^2. c_i <= D^2, as a mean lies inside.

    Needs ``Knowledge(others=True)``, unless ``partial``.

    Args:
      direction: mean (d,), standard deviation (d,) of the honest rows -> p (d,), of any length; one of
        ``attacks.directions`` or one's own.
      search: another way to gamma, one of ``attacks.searches`` for feasible numbers; None is exact.
      partial: honest rows are the attackers' own before-attack rows.

    Raises:
      ValueError: when called, if ``direction`` returns another shape.
      TypeError: for arguments of another kind.
    """
    _check("min_max", direction, search, partial)

    def craft(view: AttackerView, state: State) -> tuple[Array, State]:
        here = line("min_max", view, direction, partial)
        rows, deviations = here.honest.rows, here.honest.deviations
        along = jnp.dot(deviations, here.towards, precision="highest")
        radii = here.honest.radii
        widest = _diameter(deviations, rows)
        if search is None:
            farthest = _roots(along, (widest - radii) * (widest + radii))
            distance = jnp.min(jnp.where(rows, farthest, jnp.inf))
            distance = jnp.where(jnp.any(rows), distance, 0)
        else:

            def feasible(gamma: Array) -> Array:
                gap = safe_norm(here.distance(gamma) * here.towards - deviations)
                return jnp.max(jnp.where(rows, gap, 0)) <= widest

            distance = here.distance(search(feasible, here.scale))
        return identical(view, here.row(distance)), state

    return Attack(craft=craft, needs=needed(partial))


@same_for_equal_arguments
def min_sum(
    direction: Direction = unit,
    *,
    smallest: bool = False,
    search: FeasibleSearch | None = None,
    partial: bool = False,
) -> Attack:
    """The row's sum of squared distances to honest rows is at most that of an honest row.

    As deviations from a mean sum to 0, gamma |p| is the distance of that honest row to the mean.
    Neither of Min-Max and Min-Sum is always the closer one.

    Needs ``Knowledge(others=True)``, unless ``partial``.

    Args:
      direction: mean (d,), standard deviation (d,) of the honest rows -> p (d,), of any length; one of
        ``attacks.directions`` or one's own.
      smallest: the bound is the smallest sum of an honest row, as in the authors' code, FL-Byzantine-
        Library and SAFEFL. Default is the largest, "any benign gradient" in the paper's words.
      search: another way to gamma, one of ``attacks.searches`` for feasible numbers; None is exact.
      partial: honest rows are the attackers' own before-attack rows.

    Raises:
      ValueError: when called, if ``direction`` returns another shape.
      TypeError: for arguments of another kind.
    """
    _check("min_sum", direction, search, partial)
    checks.boolean("min_sum", smallest=smallest)

    def craft(view: AttackerView, state: State) -> tuple[Array, State]:
        here = line("min_sum", view, direction, partial)
        rows, radii = here.honest.rows, here.honest.radii
        nearest = jnp.min(jnp.where(rows, radii, jnp.inf))
        bound = jnp.where(jnp.any(rows), nearest, 0) if smallest else jnp.max(radii)
        distance = bound
        if search is not None:
            distance = _searched(search, here, bound)
        return identical(view, here.row(distance)), state

    return Attack(craft=craft, needs=needed(partial))


def _check(what: str, direction: Direction, search: FeasibleSearch | None, partial: bool) -> None:
    checks.function(what, direction=direction)
    checks.function(what, optional=True, search=search)
    checks.boolean(what, partial=partial)


def _searched(search: FeasibleSearch, here: Line, bound: Array) -> Array:
    length = safe_norm(here.towards)  # 1, or 0 if p is zero
    return here.distance(search(lambda gamma: here.distance(gamma) * length <= bound, here.scale))


def _diameter(x: Array, rows: Array) -> Array:
    """The largest distance between two of some rows: (n, d), (n,) -> ().

    Which pair it is, distances from a product of matrices tell, to 1e-3 at worst; how far it is, the
    difference does, so that the result always is a distance of two rows.
    """
    distances = pairwise_distances(jax.lax.stop_gradient(x), rows)
    pair = jnp.argmax(jnp.where(jnp.isfinite(distances), distances, -1))
    i, j = pair // len(x), pair % len(x)
    return safe_norm(x[i] - x[j])


def _roots(along: Array, room: Array) -> Array:
    """The larger roots t of t^2 - 2 along t - room = 0, room >= 0 up to rounding."""
    room = jnp.maximum(room, 0)
    square = jnp.square(along) + room
    root = jnp.where(square > 0, jnp.sqrt(jnp.where(square > 0, square, 1)), 0)
    behind = along < 0
    divisor = jnp.where(behind, root - along, 1)
    return jnp.where(behind, room / divisor, along + root)
