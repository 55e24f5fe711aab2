"""PoisonedFL: fake clients push the model in one random direction, round after round.

Xie, Fang, Gong, "Model Poisoning Attacks to Federated Learning via Multi-Round Consistency", CVPR 2025
(https://arxiv.org/abs/2404.15611); formulas as in the authors' code. The attacker knows nothing but the
models it receives. Single rows look harmless and cancel in other attacks; these add up.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np

from fedjax_robust import checks
from fedjax_robust.attacks.honest import identical
from fedjax_robust.kernels.norms import accumulator, direction_and_length
from fedjax_robust.memo import same_for_equal_arguments
from fedjax_robust.types import Array, Attack, AttackerView, State

_SIGNS = 0x5349474E  # folded into the key of the first round


@same_for_equal_arguments
def poisoned_fl(
    scale: float | Array = 8.0,
    *,
    period: int | Array = 50,
    shrink: float | Array = 0.7,
    smallest: float | Array = 0.5,
    quantile: float = 0.99,
    signs: Array | None = None,
) -> Attack:
    """Sends c |D| k from all clients, D the model's last change and k a unit vector with fixed signs s.

    k = v * s / |v|, where v = |D - a |D| / |a|| is, coordinate by coordinate, what the others did beyond
    the attackers' own last row a. Every ``period`` rounds it asks whether the model follows s: if fewer
    coordinates moved to the side of s since it last asked than the quantile of Binomial(d, 1/2), c
    shrinks. In the first round there is no change, and rows are zero.

    The state is s, a, two models, c and the rounds seen; s is drawn from the attacker's key in the first
    round. A round in which no attacker takes part leaves it as it is. In the paper the attackers are 20 %
    fakes, clients that were added, over 6,000 rounds.

    Args:
      scale: c to start from, > 0; the README's 8, 10 in the parser.
      period: rounds from one question to the next, >= 1.
      shrink: the factor on c, in (0, 1].
      smallest: c does not go below this, >= 0.
      quantile: in (0, 1), known when the program is compiled.
      signs: s (d,), for a direction of one's own; positive entries count as 1, others as -1.

    Raises:
      ValueError: for numbers out of range; when run, if signs are not (d,).
      TypeError: for arguments of another kind.
    """
    what = "poisoned_fl"
    checks.positive(what, scale=scale)
    checks.count(what, 1, period=period)
    checks.between(what, 0, 1, open_low=True, shrink=shrink)
    checks.not_negative(what, smallest=smallest)
    checks.between(what, 0, 1, open_low=True, open_high=True, quantile=quantile)
    if not checks.is_known(quantile):
        raise TypeError(f"{what} needs quantile to be known when the program is compiled")
    if signs is not None:
        signs = checks.shaped(what, "signs", signs, (None,), "number", "(d,)")

    def init(params: Array) -> State:
        dtype = accumulator(params.dtype)
        s = jnp.zeros(params.shape, jnp.int8)
        if signs is not None:
            s = _signs(checks.shaped(what, "signs", signs, params.shape, meaning="(d,)") > 0)
        own = jnp.zeros(params.shape, dtype)
        return s, own, params, params, jnp.asarray(scale, dtype), jnp.int32(0)

    def craft(view: AttackerView, state: State) -> tuple[Array, State]:
        s, own, before, asked, c, t = state
        first = t == 0
        if signs is None:
            drawn = jax.random.bernoulli(jax.random.fold_in(view.key, _SIGNS), 0.5, s.shape)
            s = jnp.where(first, _signs(drawn), s)
        before, asked = (jnp.where(first, view.params, old) for old in (before, asked))

        now = view.params.astype(own.dtype)
        moved = jnp.sign(now - asked.astype(own.dtype))
        followed = jnp.sum(jnp.where(moved == 0, jnp.sign(now), moved) == s)
        asks = ~first & (t % period == 0)
        fails = followed < binomial_quantile(s.shape[0], float(quantile))
        c = jnp.where(asks & fails & (shrink * c >= smallest), shrink * c, c)
        asked = jnp.where(asks, view.params, asked)

        towards, length = direction_and_length(now - before.astype(own.dtype))
        others = jnp.abs(towards - direction_and_length(own)[0])
        others = jnp.where(others > 4 * jnp.finfo(own.dtype).eps, others, 0)  # rounding
        row = c * length * direction_and_length(others)[0] * s
        row = jnp.where(first, 0, row)
        new = (s, row, view.params, asked, c, t + 1)
        there = jnp.any(view.malicious)
        new = jax.tree.map(lambda a, b: jnp.where(there, a, b).astype(b.dtype), new, state)
        return identical(view, row), new

    return Attack(init=init, craft=craft)


def _signs(positive: Array) -> Array:
    return jnp.where(positive, 1, -1).astype(jnp.int8)


@functools.lru_cache(64)
def binomial_quantile(d: int, probability: float) -> int:
    """The smallest q with P(Binomial(d, 1/2) <= q) >= probability.

    By summing the probabilities within ten standard deviations of d / 2, relative to one another.
    """
    reach = int(5 * d**0.5) + 1
    low, high = max(0, d // 2 - reach), min(d, d // 2 + reach)
    k = np.arange(low, high, dtype=np.float64)
    logs = np.concatenate([[0.0], np.cumsum(np.log((d - k) / (k + 1)))])
    shares = np.cumsum(np.exp(logs - logs.max()))
    return low + int(np.searchsorted(shares / shares[-1], probability - 1e-13))
