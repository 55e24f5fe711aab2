"""ROP, relocated orthogonal perturbation: an attack on centred clipping.

Ozfatura, Ozfatura, Kupcu, Gunduz, "Byzantines Can Also Learn From History: Fall of Centered Clipping in
Federated Learning", IEEE TIFS 2024 (https://arxiv.org/abs/2208.09894); formulas as in the authors' code.
Rows lie around the last aggregate, which is where the rule clips, and step aside at a right angle to it:
they are close enough not to be clipped, and far from what honest clients want.
"""

from __future__ import annotations

import math

import jax.numpy as jnp

from fedjax_robust import checks
from fedjax_robust.attacks.alie import largest_z_now
from fedjax_robust.attacks.honest import honest_mean, identical, needed
from fedjax_robust.kernels.norms import accumulator, direction_and_length, power_of_two
from fedjax_robust.memo import same_for_equal_arguments
from fedjax_robust.types import Array, Attack, AttackerView, State


@same_for_equal_arguments
def rop(
    length: float | Array | None = None,
    *,
    relative: float | Array | None = None,
    angle: float | Array = 270.0,
    location: float | Array = 1.0,
    reference: float | Array = 0.9,
    partial: bool = False,
) -> Attack:
    """All malicious rows are centre + z q, q a unit vector at an angle to the last aggregate m.

    With m = w_t - w_{t-1}, 0 in the first round, and mbar the mean of the honest rows::

        centre = pi m + (1 - pi) mbar
        r = lambda m + (1 - lambda) mbar, or mbar in the first round
        e = 1 - r (1.r) / (r.r), of length 1          the all-ones vector, made orthogonal to r
        q = sin(angle) e + cos(angle) r / |r|

    m is the rule's aggregate if the server adds it to the model as it is, ``sgd(1.0)``. Where r is along
    the all-ones vector, as for d = 1, e is 0. Needs ``Knowledge(others=True)``, unless ``partial``.

    z is a length, in units of the update, and should be below the rule's clipping radius. By default it
    is ``alie()``'s number for the rows that are there, about .25, as in the code; that is 0 or negative,
    no attack, if attackers are few, and far too long for small updates.

    Args:
      length: z > 0, such as the rule's tau.
      relative: z in units of |m| (of |mbar| in the first round), > 0, instead of ``length``.
      angle: in degrees; 270 is -e.
      location: pi, in [0, 1].
      reference: lambda, in [0, 1].
      partial: the honest rows are the attackers' own before-attack rows.

    Raises:
      ValueError: for numbers out of range, or both ``length`` and ``relative``.
      TypeError: if they are no numbers.
    """
    if length is not None and relative is not None:
        raise ValueError(
            f"rop needs length or relative, not both, got length={length}, relative={relative}"
        )
    if length is not None:
        checks.positive("rop", length=length, remedy="None is ALIE's z")
    if relative is not None:
        checks.positive("rop", relative=relative)
    checks.finite("rop", angle=angle)
    checks.between("rop", 0, 1, location=location, reference=reference)
    checks.boolean("rop", partial=partial)
    sine, cosine = _sine_and_cosine(angle)

    def init(params: Array) -> State:
        return params, jnp.int32(0)

    def craft(view: AttackerView, state: State) -> tuple[Array, State]:
        before, t = state
        dtype = accumulator(view.updates.dtype)
        mean = honest_mean(view, partial).astype(dtype)
        m = jnp.nan_to_num(view.params.astype(dtype) - before.astype(dtype))
        m = jnp.where(t == 0, 0, m)
        beside = jnp.where(t == 0, 0, reference)
        inverse = power_of_two(jnp.maximum(jnp.max(jnp.abs(mean)), jnp.max(jnp.abs(m))))[1]
        along = direction_and_length(beside * (m * inverse) + (1 - beside) * (mean * inverse))[0]
        q = direction_and_length(sine * _orthogonal(along) + cosine * along)[0]
        z: float | Array
        if relative is not None:
            z = relative * direction_and_length(jnp.where(t == 0, mean, m))[1]
        else:
            z = largest_z_now(view, partial, dtype) if length is None else length
        row = location * m + (1 - location) * mean + z * q
        there = jnp.any(view.malicious)
        seen = jnp.where(there, view.params, before), t + there
        return identical(view, row), seen

    return Attack(init=init, craft=craft, needs=needed(partial))


def _orthogonal(along: Array) -> Array:
    """The all-ones vector made orthogonal to a unit vector (or zero), of length 1; 0 if along it."""
    ones = jnp.full_like(along, 1 / math.sqrt(along.shape[0]))
    rest = ones - along * jnp.sum(ones * along)
    rest = rest - along * jnp.sum(rest * along)  # what rounding left of it
    direction, length = direction_and_length(rest)
    return jnp.where(length > 16 * jnp.finfo(along.dtype).eps, direction, 0)


def _sine_and_cosine(degrees: float | Array) -> tuple[float | Array, float | Array]:
    """Exact at right angles, as 270 degrees are -e and nothing else."""
    if not checks.is_known(degrees):
        return jnp.sin(jnp.deg2rad(degrees)), jnp.cos(jnp.deg2rad(degrees))
    exact = {0: (0.0, 1.0), 90: (1.0, 0.0), 180: (0.0, -1.0), 270: (-1.0, 0.0)}
    turned = float(degrees) % 360
    angle = math.radians(turned)
    return exact.get(turned, (math.sin(angle), math.cos(angle)))  # type: ignore[call-overload]
