"""Local model poisoning attacks on trimmed mean and median.

Fang, Cao, Jia, Gong: "Local Model Poisoning Attacks to Byzantine-Robust Federated Learning", USENIX
Security 2020 (https://arxiv.org/abs/1911.11815), sections 3.3, 3.4 and appendix B. The paper's m, c are
the n, f here, and its vectors are models; ours are updates, so that the received model w_Re is 0.
"""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp

from fedjax_robust import checks
from fedjax_robust.attacks.crafted import moments
from fedjax_robust.kernels.norms import changing_direction
from fedjax_robust.memo import same_for_equal_arguments
from fedjax_robust.types import Aggregator, Array, Attack, AttackerView, Knowledge, State


@same_for_equal_arguments
def fang_trim_full(
    b: float | Array = 2.0, *, before: Aggregator | None = None, on_updates: bool = False
) -> Attack:
    """Trimmed-mean attack with full knowledge (section 3.3); also the median's (section 3.4).

    Where the parameter would decrease (s_j = -1), every malicious client draws it from
    [max_j, b max_j], or [max_j, max_j / b] if max_j <= 0, max_j being the largest value among honest
    models; where it would increase, from [min_j / b, min_j] or [b min_j, min_j]. s_j is the
    direction in which the model would change without attack.

    Needs ``Knowledge(others=True)``, and without ``before`` also ``rule=True``.

    Args:
      b: > 1; without influence on trimmed mean and median.
      before: the rule whose aggregate of the before-attack updates gives s. None is the server's own,
        as section 3.1 defines s. The authors' code uses the mean, ``aggregators.mean()``, which also
        reproduces the printed errors and is a far stronger attack (experiments/fang2020/README.md,
        Table 2a): the rule's own change is 0 or noise where few clients have a signal, and pushing
        against it does little.
      on_updates: take the maxima and minima of updates instead of models, as code that attacks
        gradients does. The same for trimmed mean and median, not for the mean or FLTrust.

    Raises:
      ValueError: if b <= 1 or not finite; when called, if it needs the rule and is not given it.
      TypeError: if b is no number, or ``before`` no rule.
    """
    _check_b("fang_trim_full", b)
    checks.boolean("fang_trim_full", on_updates=on_updates)
    checks.part("fang_trim_full", Aggregator, before=before, optional=True)

    def craft(view: AttackerView, state: State) -> tuple[Array, State]:
        if before is None:
            change = _rule_of(view, "fang_trim_full")(view.updates)
        else:
            change = before(view.updates, view.visible)
        decreases = changing_direction(change) < 0
        above, below = _beyond_honest(view, b, on_updates)
        return _draw_between(view, *_choose(decreases, above, below)), state

    return Attack(craft=craft, needs=Knowledge(others=True, rule=before is None))


@same_for_equal_arguments
def fang_trim_partial(low: float | Array = 3.0, high: float | Array = 4.0) -> Attack:
    """Trimmed-mean attack with partial knowledge (section 3.3); also the median's (section 3.4).

    mu_j and sigma_j (divisor c) are estimated from the malicious clients' own before-attack updates.
    Where mu_j > 0 they draw from [mu_j - high sigma_j, mu_j - low sigma_j], else from
    [mu_j + low sigma_j, mu_j + high sigma_j].

    Args:
      low: >= 0, the least distance from the mean, in standard deviations.
      high: >= low, the largest.

    Raises:
      ValueError: if they are out of range.
      TypeError: if they are no numbers.
    """
    checks.finite("fang_trim_partial", low=low, high=high)
    both = checks.is_known(low) and checks.is_known(high)
    if (checks.is_known(low) and low < 0) or (both and low > high):
        raise ValueError(f"fang_trim_partial needs 0 <= low <= high, got low={low}, high={high}")

    def craft(view: AttackerView, state: State) -> tuple[Array, State]:
        own = view.updates[: view.num_malicious]
        mean, std = moments(own, view.malicious[: view.num_malicious])
        above = (mean + low * std, mean + high * std)
        below = (mean - high * std, mean - low * std)
        return _draw_between(view, *_choose(changing_direction(mean) < 0, above, below)), state

    return Attack(craft=craft)


@same_for_equal_arguments
def fang_trim_deviation(b: float | Array = 2.0, *, on_updates: bool = False) -> Attack:
    """Trimmed-mean attack for the deviation goal (appendix B): beyond the honest maximum or below the
    minimum, whichever moves the aggregate further from the one without attack, coordinate by
    coordinate. Needs ``Knowledge(others=True, rule=True)``.

    The two sides are compared with all malicious values at the honest maximum or minimum.

    Args:
      b: > 1, how far beyond at most, as a factor; without influence on trimmed mean and median.
      on_updates: take the maxima and minima of updates instead of models, as code that attacks
        gradients does. The same for trimmed mean and median, not for the mean or FLTrust.

    Raises:
      ValueError: if b <= 1 or not finite; when called, if it is not given the rule.
      TypeError: if b is no number.
    """
    _check_b("fang_trim_deviation", b)
    checks.boolean("fang_trim_deviation", on_updates=on_updates)

    def craft(view: AttackerView, state: State) -> tuple[Array, State]:
        rule = _rule_of(view, "fang_trim_deviation")
        honest = view.visible & ~view.malicious
        largest, smallest = extremes(view.updates, honest)
        before = rule(view.updates)

        def deviation(value: Array) -> Array:
            attacked = jnp.where(view.malicious[:, None], value, view.updates)
            return jnp.abs(rule(attacked) - before)

        above, below = _beyond_honest(view, b, on_updates)
        upwards = deviation(largest) >= deviation(smallest)
        return _draw_between(view, *_choose(upwards, above, below)), state

    return Attack(craft=craft, needs=Knowledge(others=True, rule=True))


_Interval = tuple[Array, Array]


def _check_b(what: str, b: float | Array) -> None:
    checks.finite(what, b=b)
    if checks.is_known(b) and not b > 1:
        raise ValueError(f"{what} needs b > 1, got b={b}")


def _rule_of(view: AttackerView, what: str) -> Callable[[Array], Array]:
    if view.aggregate is None:
        raise ValueError(
            f"{what} evaluates the server's rule, but the view has none (aggregate is None); grant "
            "Knowledge(others=True, rule=True)"
        )
    return view.aggregate


def extremes(x: Array, rows: Array) -> tuple[Array, Array]:
    """Column maxima and minima (d,), (d,) of some rows of (n, d); 0 if there are none."""
    some = jnp.any(rows)
    largest = jnp.max(jnp.where(rows[:, None], x, -jnp.inf), axis=0)
    smallest = jnp.min(jnp.where(rows[:, None], x, jnp.inf), axis=0)
    return jnp.where(some, largest, 0), jnp.where(some, smallest, 0)


def _beyond_honest(
    view: AttackerView, b: float | Array, on_updates: bool
) -> tuple[_Interval, _Interval]:
    """Intervals of updates just above the honest maximum and just below the honest minimum."""
    base = jnp.zeros_like(view.params) if on_updates else view.params
    largest, smallest = extremes(view.updates, view.visible & ~view.malicious)
    top, bottom = base + largest, base + smallest
    above = (largest, jnp.where(top > 0, b * top, top / b) - base)
    below = (jnp.where(bottom > 0, bottom / b, b * bottom) - base, smallest)
    return above, below


def _choose(upwards: Array, above: _Interval, below: _Interval) -> _Interval:
    return jnp.where(upwards, above[0], below[0]), jnp.where(upwards, above[1], below[1])


def _draw_between(view: AttackerView, low: Array, high: Array) -> Array:
    # b times an honest value may be beyond the largest float; the server would drop such a row.
    largest = jnp.finfo(low.dtype).max
    low, high = jnp.clip(low, -largest, largest), jnp.clip(high, -largest, largest)
    shape = (view.num_malicious, low.shape[0])
    return low + (high - low) * jax.random.uniform(view.key, shape, low.dtype)
