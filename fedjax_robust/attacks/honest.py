"""What attackers take for the honest rows: which ones, their mean and spread, a line through the mean.

With full knowledge those are the honest clients' before-attack updates, with partial knowledge the
attackers' own, and nothing else is looked at.
"""

from __future__ import annotations

from typing import NamedTuple

import jax.numpy as jnp

from fedjax_robust import checks
from fedjax_robust.attacks.directions import Direction
from fedjax_robust.kernels.norms import (
    accumulator,
    direction_and_length,
    power_of_two,
    safe_norm,
    weighted_mean,
)
from fedjax_robust.types import Array, AttackerView, Knowledge


def needed(partial: bool, rule: bool = False) -> Knowledge:
    """What an attack from honest rows must know."""
    return Knowledge(others=not partial, rule=rule)


def honest_rows(view: AttackerView, partial: bool) -> Array:
    """(n,) bool, the rows from which honest statistics are estimated."""
    return view.malicious if partial else view.reference


def number_of_honest(view: AttackerView, partial: bool) -> Array:
    """How many honest rows there are; an attacker that sees none of them takes nobody for absent."""
    if partial:
        return view.updates.shape[0] - jnp.sum(view.malicious)
    return jnp.sum(view.reference)


def honest_mean(view: AttackerView, partial: bool) -> Array:
    """(d,) of at least float32; zero if there are no such rows."""
    rows = honest_rows(view, partial)
    exact = view.updates.astype(accumulator(view.updates.dtype))
    return weighted_mean(jnp.where(rows[:, None], exact, 0), rows)


class Honest(NamedTuple):
    """Rows around their mean, in a unit of their own: a common offset, however large, costs no digits of
    what they differ by, and no square leaves the range of floats."""

    rows: Array
    """(n,) bool"""
    centre: Array
    """(d,), their mean up to rounding"""
    rest: Array
    """(d,), the mean minus the centre, in units"""
    deviations: Array
    """(n, d), rows minus their mean, in units; 0 for other rows"""
    unit: Array
    """(), a power of two"""

    @property
    def number(self) -> Array:
        return jnp.sum(self.rows)

    @property
    def radii(self) -> Array:
        """(n,), distances to the mean, in units; 0 for other rows."""
        return safe_norm(self.deviations)

    def spread(self, ddof: int = 0) -> Array:
        """(d,), standard deviations with divisor number - ddof (at least 1), in units."""
        divisor = jnp.maximum(self.number - ddof, 1).astype(self.centre.dtype)
        return safe_norm(self.deviations, axis=0) / jnp.sqrt(divisor)

    def at(self, step: Array | float = 0.0) -> Array:
        """The mean plus a step (d,) in units; beyond the largest float, the largest."""
        largest = jnp.finfo(self.centre.dtype).max
        # A unit is 4 times ``unit``, which alone may be the largest power of two.
        return jnp.clip(self.centre + 4 * (self.unit * (self.rest + step)), -largest, largest)

    def in_full(self, step: Array) -> Array:
        """A step in units -> as it is."""
        largest = jnp.finfo(self.centre.dtype).max
        return jnp.clip(4 * (self.unit * step), -largest, largest)


def honest(view: AttackerView, partial: bool) -> Honest:
    """The rows that the attacker takes for honest, around their mean."""
    rows = honest_rows(view, partial)
    x = jnp.where(rows[:, None], view.updates.astype(accumulator(view.updates.dtype)), 0)
    centre = weighted_mean(x, rows)
    # A quarter: the difference of two of the largest floats is beyond them.
    y = jnp.where(rows[:, None], 0.25 * x - 0.25 * centre, 0)
    unit, inverse = power_of_two(jnp.max(jnp.abs(y), initial=0))
    y = y * inverse
    rest = jnp.sum(y, axis=0) / jnp.maximum(jnp.sum(rows), 1)
    return Honest(rows, centre, rest, jnp.where(rows[:, None], y - rest, 0), unit)


class Line(NamedTuple):
    """Rows mean + gamma p, for gamma >= 0."""

    honest: Honest
    towards: Array
    """(d,), p / |p|; zero if p is"""
    size: Array
    """(), how far the farthest honest row is from the mean, in units"""
    scale: Array
    """(), the gamma at which the row is as far"""

    def distance(self, gamma: Array) -> Array:
        """From the mean, in units."""
        return gamma / self.scale * self.size

    def row(self, distance: Array) -> Array:
        """(d,), at a distance in units."""
        return self.honest.at(distance * self.towards)


def line(what: str, view: AttackerView, direction: Direction, partial: bool) -> Line:
    """The line along a direction p = direction(mean, standard deviation)."""
    here = honest(view, partial)
    mean = here.at()
    p = direction(mean, here.in_full(here.spread()))
    checks.returned(f"the direction of {what}", p, mean.shape)
    towards, length = direction_and_length(p.astype(mean.dtype))
    size = jnp.max(here.radii, initial=0)
    # Honest rows that are all the same have no size: then it is the mean's.
    mean_length = direction_and_length(0.25 * mean)[1] / here.unit
    size = jnp.where(size > 0, size, jnp.where(mean_length > 0, mean_length, 1))
    scale = here.in_full(size) / jnp.where(length > 0, length, 1)
    smallest, largest = jnp.finfo(mean.dtype).tiny * 1e6, jnp.finfo(mean.dtype).max / 1e6
    return Line(here, towards, size, jnp.clip(scale, smallest, largest))


def identical(view: AttackerView, row: Array) -> Array:
    """One row (d,) for all malicious clients: (num_malicious, d), finite."""
    return finite(view, jnp.broadcast_to(row, (view.num_malicious, row.shape[-1])))


def finite(view: AttackerView, rows: Array) -> Array:
    """What would be beyond the largest float is the largest float: the server would drop the row."""
    largest = jnp.finfo(view.updates.dtype).max
    return jnp.clip(rows, -largest, largest).astype(view.updates.dtype)


def as_received(view: AttackerView, crafted: Array, partial: bool) -> Array:
    """What the server would get, as far as the attacker knows: crafted rows (num_malicious, d) -> (n, d).

    With partial knowledge the attacker's own before-attack rows play the rows of all others, in turn.
    With full knowledge rows that it does not see, absent ones and those with a NaN or Inf, are NaN, so
    that a rule leaves them out.
    """
    n, c = view.updates.shape[0], view.num_malicious
    if partial:
        own_first = jnp.argsort(~view.malicious, stable=True)
        turn = (jnp.cumsum(~view.malicious) - 1) % jnp.maximum(jnp.sum(view.malicious), 1)
        others = view.updates[own_first[jnp.clip(turn, 0, n - 1)]]
    else:
        others = jnp.where(view.visible[:, None], view.updates, jnp.nan)
    own = jnp.where(view.malicious[:c, None], crafted[:c].astype(others.dtype), others[:c])
    return jnp.concatenate([own, others[c:]])
