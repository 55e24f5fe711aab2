"""ALIE, "A little is enough".

Baruch, Baruch, Goldberg, "A Little Is Enough: Circumventing Defenses For Distributed Learning", NeurIPS
2019 (https://arxiv.org/abs/1902.06156), Algorithm 3. Peers differ in all of it: the sign, the divisor of
the standard deviation, whose rows it is of (the authors take the corrupted workers', ``partial=True``
here), and z, for which some put in the cumulative distribution instead of its inverse (.7258 for .2533).
"""

from __future__ import annotations

from statistics import NormalDist

import jax
import jax.numpy as jnp

from fedjax_robust import checks
from fedjax_robust.attacks.honest import honest, identical, needed, number_of_honest
from fedjax_robust.memo import same_for_equal_arguments
from fedjax_robust.types import Array, Attack, AttackerView, State


@same_for_equal_arguments
def alie(
    z: float | Array | None = None,
    *,
    n: int | None = None,
    c: int | None = None,
    sign: float | Array = 1.0,
    ddof: int = 0,
    partial: bool = False,
) -> Attack:
    """All malicious rows are mean + z std of the honest rows, coordinate by coordinate.

    The paper's is mean - z std of *gradients*, which on updates is a plus: ``sign=-1.0`` subtracts on
    updates, as code does that writes the formula for whatever it is given.

    z is given, or it is the paper's largest: s = floor(n / 2 + 1) - c honest rows are still needed for a
    majority, z = Phi^-1((n - c - s) / (n - c)), from ``n`` and ``c``, or without them from who is there
    in the round (where attackers happen to be half of them or more, s is 1). It is 0 or negative, no
    attack, if c is small: z is .25 for 50 rows of which 10 are malicious, 1.43 for 24 of 50.

    Needs ``Knowledge(others=True)``, unless ``partial``.

    Args:
      z: standard deviations from the mean.
      n: all rows, if z is to be computed from n and c.
      c: malicious rows, 1 <= c <= n / 2 (s >= 1).
      sign: 1 or -1.
      ddof: 0 for divisor m in the standard deviation of m rows, 1 for m - 1.
      partial: mean and standard deviation are those of the attackers' own before-attack rows, and
        n is all rows of the round, absent ones too.

    Raises:
      ValueError: for numbers out of range; if both z and n, c are given, or only one of n and c.
      TypeError: if they are no numbers, or n, c, ddof not known when the program is compiled.
    """
    checks.boolean("alie", partial=partial)
    checks.static_count("alie", ddof=ddof)
    checks.finite("alie", sign=sign)
    if checks.is_known(sign) and abs(float(sign)) != 1:
        raise ValueError(f"alie needs sign 1 or -1, got sign={sign}; other numbers are for z")
    if (n is None) != (c is None) or (z is not None and n is not None):
        raise ValueError(f"alie needs z, or both n and c, or none of them, got z={z}, n={n}, c={c}")
    if n is not None and c is not None:
        z = largest_z(n, c)
    if z is not None:
        checks.finite("alie", z=z)
    ddof = int(ddof)

    def craft(view: AttackerView, state: State) -> tuple[Array, State]:
        here = honest(view, partial)
        distance = z
        if distance is None:
            distance = largest_z_now(view, partial, here.centre.dtype)
        return identical(view, here.at(sign * distance * here.spread(ddof))), state

    return Attack(craft=craft, needs=needed(partial))


def largest_z(n: int, c: int) -> float:
    """z of n rows of which c are malicious.

    Raises:
      ValueError: if they leave no s >= 1.
      TypeError: if they are not known when the program is compiled.
    """
    checks.static_count("alie", 1, n=n, c=c)
    n, c = int(n), int(c)
    s = n // 2 + 1 - c
    if s < 1:
        raise ValueError(
            f"alie needs s = floor(n / 2 + 1) - c >= 1 honest rows for a majority, got n={n}, c={c}: "
            "attackers who are a majority need no z; give one"
        )
    if s == n - c:
        raise ValueError(
            f"alie needs more than s = floor(n / 2 + 1) - c honest rows, got n={n}, c={c}; give z"
        )
    return NormalDist().inv_cdf((n - c - s) / (n - c))


def largest_z_now(view: AttackerView, partial: bool, dtype: jnp.dtype) -> Array:
    """z from who is there; 0 if there are not two honest rows."""
    honest_number = number_of_honest(view, partial)
    c = jnp.sum(view.malicious)
    s = jnp.maximum((honest_number + c) // 2 + 1 - c, 1)
    beyond = honest_number - s
    share = (beyond / jnp.maximum(honest_number, 1)).astype(dtype)
    return jnp.where(beyond > 0, jax.scipy.special.ndtri(jnp.where(beyond > 0, share, 0.5)), 0)
