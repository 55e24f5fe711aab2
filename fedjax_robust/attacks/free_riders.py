"""Free riders: clients that send rows without training, to be given the model for nothing.

They claim a number of examples as any client does, which is their row's weight. Under ``mean`` a share of
free riders slows progress down by that share. All of them know no more than the models they received. In
a round in which none of them takes part they learn nothing; the next change is that of several rounds.

Fraboni, Vidal, Lorenzi, "Free-rider Attacks on Model Aggregation in Federated Learning", AISTATS 2021
(https://arxiv.org/abs/2006.11901); Lin, Du, Liu, "Free-riders in Federated Learning: Attacks and
Defenses", 2019 (https://arxiv.org/abs/1911.12560).
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from fedjax_robust import checks
from fedjax_robust.attacks.honest import finite, identical
from fedjax_robust.kernels.norms import accumulator, direction_and_length
from fedjax_robust.memo import same_for_equal_arguments
from fedjax_robust.types import Array, Attack, AttackerView, State


@same_for_equal_arguments
def free_rider() -> Attack:
    """Sends zero: the received model, unchanged.

    The plain free rider of Fraboni et al. (https://arxiv.org/abs/2006.11901).
    """

    def craft(view: AttackerView, state: State) -> tuple[Array, State]:
        return identical(view, jnp.zeros_like(view.updates[0])), state

    return Attack(craft=craft)


@same_for_equal_arguments
def free_rider_disguised(
    gamma: float | Array = 1.0, k: float | Array = 1.0, *, first: float | Array = 1e-3
) -> Attack:
    """Sends k sigma t^-gamma eps, eps ~ N(0, I) anew for each row, which shrinks as honest updates do.

    The disguised free rider of Fraboni et al. (https://arxiv.org/abs/2006.11901), as their code has it.
    t is max(1, rounds seen before). sigma is ``first`` in the first round, and from the second one on
    what the model changed by in the first, |w_1 - w_0|_1 / d: a mean of absolute values, not a standard
    deviation.

    Args:
      gamma: how fast the rows shrink, >= 0; the code's are .5, 1 and 2.
      k: factor, > 0; the code's are 1 and 3.
      first: sigma of the first round, > 0.

    Raises:
      ValueError: for numbers out of range.
      TypeError: if they are no numbers.
    """
    checks.not_negative("free_rider_disguised", gamma=gamma)
    checks.positive("free_rider_disguised", k=k, first=first)

    def init(params: Array) -> State:
        return params, jnp.zeros((), accumulator(params.dtype)), jnp.int32(0)

    def craft(view: AttackerView, state: State) -> tuple[Array, State]:
        before, sigma, t = state
        changed = jnp.mean(jnp.abs(_change(view, before)))
        sigma = jnp.where(t == 0, first, jnp.where(t == 1, changed, sigma)).astype(sigma.dtype)
        shrunk = jnp.maximum(t, 1).astype(sigma.dtype) ** -gamma
        row = k * sigma * shrunk * _normal(view)
        return finite(view, row), _if_there(view, (view.params, sigma, t + 1), state)

    return Attack(init=init, craft=craft)


@same_for_equal_arguments
def free_rider_delta(std: float | Array = 0.0, *, first: float | Array = 1e-3) -> Attack:
    """Sends what the model changed by in the last round, w_t - w_{t-1}, and noise of N(0, std^2).

    "Delta weights" of Lin et al. (https://arxiv.org/abs/1911.12560); "advanced delta weights" with a
    ``std`` of 1e-3. The paper writes w_{t-1} - w_t, which is a gradient; updates need the other sign.
    FLTrust gives such rows trust.

    Args:
      std: >= 0, of each coordinate's noise, in units of the update.
      first: the noise of the first round, in which there is no change yet, >= 0.

    Raises:
      ValueError: for negative or infinite numbers.
      TypeError: if they are no numbers.
    """
    checks.not_negative("free_rider_delta", std=std, first=first)

    def init(params: Array) -> State:
        return params, jnp.int32(0)

    def craft(view: AttackerView, state: State) -> tuple[Array, State]:
        before, t = state
        change = jnp.where(t == 0, 0, _change(view, before))
        row = change + jnp.where(t == 0, first, std) * _normal(view)
        return finite(view, row), _if_there(view, (view.params, t + 1), state)

    return Attack(init=init, craft=craft)


@same_for_equal_arguments
def free_rider_random(bound: float | Array) -> Attack:
    """Sends a model of uniform draws from (-bound, bound), anew for each row.

    "Random weights" of Lin et al. (https://arxiv.org/abs/1911.12560). The row is that model minus the
    received one. It pulls the model to zero.

    Args:
      bound: > 0, in units of the parameters.

    Raises:
      ValueError: if bound is not positive and finite.
      TypeError: if it is no number.
    """
    checks.positive("free_rider_random", bound=bound)

    def craft(view: AttackerView, state: State) -> tuple[Array, State]:
        shape = (view.num_malicious, view.updates.shape[1])
        drawn = jax.random.uniform(view.key, shape, accumulator(view.updates.dtype), -1.0, 1.0)
        return finite(view, bound * drawn - view.params), state

    return Attack(craft=craft)


@same_for_equal_arguments
def free_rider_advanced(
    cosine: float | Array = 0.5,
    noisy: float | Array = 0.7,
    *,
    n: int | Array | None = None,
    first: float | Array = 1e-3,
) -> Attack:
    """Sends the last change, shrunk as changes shrink, with noise by which rows differ as honest ones do.

    As FL-free-rider-benchmark has it (https://github.com/LukasXperiaZ/FL-free-rider-benchmark); we did
    not identify its paper. With D_t = w_t - w_{t-1} and the rounds t = 1, 2, ..::

        U = (|D_t| / |D_{t-1}|) D_t                    l = ln(|D_t| / |D_1|) / (t - 1)
        E = C^2 / (C^2 + exp(2 l t))                   the expected cosine of two honest rows
        |phi| = sqrt(n^2 / (n + (n^2 - n) E) - 1) |U|

    and the row is U with normal noise of expected length |phi| on a share of its coordinates, drawn anew.
    In the first round it is noise alone, in the second D_t and noise, as ``free_rider_delta``. The code
    divides the noise by the number of noisy coordinates instead of its root, so that hardly any is left;
    here it is as long as the formula says.

    Args:
      cosine: C > 0.
      noisy: share of the coordinates that get noise, in (0, 1].
      n: clients whose rows are averaged, >= 1; None is all rows of the round.
      first: standard deviation of the noise of the first two rounds, >= 0.

    Raises:
      ValueError: for numbers out of range.
      TypeError: if they are no numbers.
    """
    what = "free_rider_advanced"
    checks.positive(what, cosine=cosine)
    checks.between(what, 0, 1, open_low=True, noisy=noisy)
    checks.not_negative(what, first=first)
    if n is not None:
        checks.count(what, 1, n=n)

    def init(params: Array) -> State:
        zero = jnp.zeros((), accumulator(params.dtype))
        return params, zero, zero, jnp.int32(0)

    def craft(view: AttackerView, state: State) -> tuple[Array, State]:
        before, last_length, first_length, seen = state
        towards, length = direction_and_length(_change(view, before))
        t = (seen + 1).astype(length.dtype)
        factor = _ratio(length, last_length)
        own = factor * length
        # exp(2 l t) = (|D_t| / |D_1|)^(2 t / (t - 1)); a model that stood still makes no forecast: 1.
        shrunk = _ratio(length, first_length)
        power = jnp.exp(2 * t / jnp.maximum(t - 1, 1) * jnp.log(shrunk))
        square = jnp.square(jnp.asarray(cosine, length.dtype))
        alike = square / (square + power)
        rows = jnp.asarray(view.updates.shape[0] if n is None else n, length.dtype)
        spread = jnp.sqrt(jnp.maximum(rows / (1 + (rows - 1) * alike) - 1, 0))
        mask_key, noise_key = jax.random.split(view.key)
        shape = (view.num_malicious, view.updates.shape[1])
        here = jax.random.uniform(mask_key, shape, length.dtype) <= noisy
        drawn = jax.random.normal(noise_key, shape, length.dtype)
        std = spread / jnp.sqrt(jnp.asarray(noisy, length.dtype) * shape[1])
        later = own * (towards + jnp.where(here, std * drawn, 0))
        early = jnp.where(seen == 0, 0, length * towards) + first * drawn
        lengths = jnp.where(seen == 0, 0, length), jnp.where(seen == 1, length, first_length)
        row = jnp.where(seen < 2, early, later)
        return finite(view, row), _if_there(view, (view.params, *lengths, seen + 1), state)

    return Attack(init=init, craft=craft)


def _change(view: AttackerView, before: Array) -> Array:
    """w_t - w_{t-1}; what is not finite, or would not be, is cut."""
    exact = accumulator(view.params.dtype)
    change = view.params.astype(exact) - before.astype(exact)
    return jnp.nan_to_num(change)


def _ratio(a: Array, b: Array) -> Array:
    """a / b within [1e-6, 1e6], 1 where one of them is 0."""
    known = (a > 0) & (b > 0)
    return jnp.where(known, jnp.clip(a / jnp.where(known, b, 1), 1e-6, 1e6), 1)


def _normal(view: AttackerView) -> Array:
    shape = (view.num_malicious, view.updates.shape[1])
    return jax.random.normal(view.key, shape, accumulator(view.updates.dtype))


def _if_there(view: AttackerView, new: State, old: State) -> State:
    """The new state if an attacker takes part in the round, and so receives the model."""
    there = jnp.any(view.malicious)
    return jax.tree.map(lambda a, b: jnp.where(there, a, b).astype(b.dtype), new, old)
