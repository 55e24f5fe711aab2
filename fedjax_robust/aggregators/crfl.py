"""CRFL: the global model is clipped and noise is added in every round; what a smoothed model certifies.

Xie, Chen, Chen, Li, "CRFL: Certifiably Robust Federated Learning against Backdoor Attacks", ICML 2021
(https://arxiv.org/abs/2106.08283), Algorithms 1 and 2; formulas as in the authors' code.

It is the *model* that is clipped. Clipping updates is ``norm_clipping``, with noise ``participant_dp``;
neither has this certificate.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from fedjax_robust import checks
from fedjax_robust.aggregators.base import MEAN, cleaned
from fedjax_robust.kernels.norms import direction_and_length, safe_norm
from fedjax_robust.memo import same_for_equal_arguments
from fedjax_robust.metrics import predict
from fedjax_robust.types import Aggregator, Array, Info, Key, Received, State, Task


@same_for_equal_arguments
def crfl(
    bound: float | Array | Callable[[Array], Array],
    noise: float | Array,
    *,
    rounds: int | Array | None = None,
    base: Aggregator = MEAN,
) -> Aggregator:
    """The model that another rule gives is shortened to length rho_t, and N(0, sigma^2) is added.

    Also in a round without rows: the certificate counts the noise of every round. It must be the server
    that adds the aggregate to the model, ``server_optimizer=optax.sgd(1.0)``, the default. Its state is
    that of base, and the number of rounds. The paper evaluates the clipped model before its noise.

    Reports ``model_length`` (), before the clipping, besides what the rule reports.

    Args:
      bound: rho > 0, finite, or a function of the round t = 1, 2, ... (traced); the code takes
        ``lambda t: jnp.minimum(15, 2 + 0.1 * t)`` for MNIST. It may be traced.
      noise: sigma >= 0, in each parameter; the code takes 0.01.
      rounds: T >= 1, the last round, which adds no noise: noise of its own smooths the last model
        (``crfl_votes``). None = no round is the last one.
      base: the rule; the paper takes the mean and RFA.

    Raises:
      ValueError: if rho is not positive, or sigma negative, or one of them not finite, or T < 1.
      TypeError: if one is no number, or base no rule.

    A model (3, 4) at rho = 2.1:

    >>> update = crfl(2.1, 0.0)(jnp.array([[3.0, 4.0]]), params=jnp.zeros(2))
    >>> [round(x, 4) for x in update.tolist()]
    [1.26, 1.68]
    """
    if not callable(bound):
        checks.positive("crfl", bound=bound)
    checks.not_negative("crfl", noise=noise)
    if rounds is not None:
        checks.count("crfl", 1, rounds=rounds)
    checks.part("crfl", Aggregator, base=base)

    def init(num_clients: int, params: Array) -> State:
        return base.init(num_clients, params), jnp.int32(0)

    def aggregate(received: Received, state: State) -> tuple[Array, State, Info]:
        inner, done = state
        t = done + 1
        draw, rest = jax.random.split(received.key)
        result, inner, info = base.aggregate(cleaned(received)._replace(key=rest), inner)
        params = received.params.astype(result.dtype)
        unit, length = direction_and_length(params + result)
        most = bound(t) if callable(bound) else bound
        # A model that is short enough is not taken apart and put together again.
        result = jnp.where(length > most, (most * unit).astype(result.dtype) - params, result)
        drawn = noise * jax.random.normal(draw, result.shape, result.dtype)
        if rounds is not None:
            drawn = jnp.where(t == rounds, 0, drawn)
        result = (result + drawn).astype(result.dtype)
        return result, (inner, t), {"model_length": length} | info

    return Aggregator(init, aggregate)


def crfl_votes(
    task: Task, params: Array, x: Array, key: Key, noise: float | Array, copies: int = 1000
) -> Array:
    """How many of M noisy copies of a model vote for each class.

    Args:
      task: with logits.
      params: (d,), the last round's clipped model, without noise.
      x: (E, ...) inputs.
      key: of the noise.
      noise: sigma_T >= 0, in each parameter.
      copies: M >= 1.

    Returns:
      (E, L) int32; rows sum to M.

    Raises:
      ValueError: for other shapes, sigma_T negative or not finite, or M < 1.
      TypeError: if task is no Task, an argument no array, or key no key.
    """
    what = "crfl_votes"
    checks.part(what, Task, task=task)
    params = checks.shaped(what, "params", params, (None,), "float", "(d,)")
    x = checks.array(what, "x", x)
    if x.ndim < 1 or x.shape[0] < 1:
        raise ValueError(f"{what} needs x (E, ...) of E >= 1 inputs, got shape {x.shape}")
    key = checks.key(what, key)
    checks.not_negative(what, noise=noise)
    checks.static_count(what, 1, copies=copies)
    labels = checks.classes(what, task, x)

    def vote(votes: Array, i: Array) -> tuple[Array, None]:
        drawn = noise * jax.random.normal(jax.random.fold_in(key, i), params.shape, params.dtype)
        y = predict(task, params + drawn.astype(params.dtype), x)
        return votes + jax.nn.one_hot(y, labels, dtype=jnp.int32), None

    shape = jax.eval_shape(lambda: predict(task, params, x)).shape
    start = jnp.zeros((*shape, labels), jnp.int32)
    return jax.lax.scan(vote, start, jnp.arange(copies))[0]


def crfl_shares(votes: Array, alpha: float | Array = 0.001) -> tuple[Array, Array, Array]:
    """The smoothed prediction, and bounds of the probabilities that ``crfl_radius`` needs.

    The shares of the winner and of the next class, less and plus Hoeffding's sqrt(ln(1 / alpha) / 2M).
    Each bound fails with probability at most alpha, both together with 2 alpha.

    Args:
      votes: (..., L >= 2) of ``crfl_votes``.
      alpha: in (0, 1).

    Returns:
      The winner (...) int32, the first of equal ones, and p_A, p_B (...) in [0, 1].

    Raises:
      ValueError: for less than two classes, or alpha out of range.
      TypeError: if one is no number.

    >>> winner, p_a, p_b = crfl_shares(jnp.array([900, 40, 60]))
    >>> int(winner), round(float(p_a), 4), round(float(p_b), 4)
    (0, 0.8412, 0.1188)
    """
    votes = checks.array("crfl_shares", "votes", votes)
    checks.between("crfl_shares", 0, 1, open_low=True, open_high=True, alpha=alpha)
    if votes.ndim < 1 or votes.shape[-1] < 2:
        raise ValueError(f"crfl_shares needs votes (..., L) of L >= 2 classes, got {votes.shape}")
    number = jnp.sum(votes, axis=-1)
    winner = jnp.argmax(votes, axis=-1).astype(jnp.int32)
    others = jnp.where(jnp.arange(votes.shape[-1]) == winner[..., None], -1, votes)
    margin = jnp.sqrt(-jnp.log(alpha) / (2 * number))
    p_a = jnp.max(votes, axis=-1) / number - margin
    p_b = jnp.max(others, axis=-1) / number + margin
    return winner, jnp.maximum(p_a, 0), jnp.minimum(p_b, 1)


def crfl_radius(
    p_a: float | Array,
    p_b: float | Array,
    *,
    noise: float | Array,
    smoothing: float | Array,
    bounds: Array,
    lipschitz: float | Array,
    attackers: Array,
) -> Array:
    """The length of a backdoor's trigger below which the smoothed prediction cannot change.

    With S = sum_i a_i^2 over the R attackers' strengths a_i, and Phi the normal distribution::

        sqrt(-ln(1 - (sqrt(p_A) - sqrt(p_B))^2) sigma^2 / (2 R L^2 S prod_t (2 Phi(rho_t / sigma_t) - 1)))

    All attack once, in the same round. 0 where p_A <= p_B: there is no certificate (the authors' code
    squares the negative difference, too). It holds for models with that L only; for softmax regression
    of length rho the code takes L = sqrt(2 + 2 rho + rho^2), rho being the attack's round's, which we
    have not derived.

    Args:
      p_a: lower bounds of the winner's probability, in [0, 1], of any shape.
      p_b: upper bounds of the next one's, in [0, 1], of the same shape.
      noise: sigma > 0, of ``crfl``.
      smoothing: sigma_T > 0, of ``crfl_votes``.
      bounds: (k >= 1,) rho_t of the rounds after the attack, t_adv + 1 .. T; sigma_t is noise, in the
        last one smoothing.
      lipschitz: L > 0, of the loss's gradient in the inputs.
      attackers: (R >= 1,) strengths p_i gamma_i tau_i eta_i q_i / n_i >= 0: the weight in the average
        times the scaling, the local steps, the learning rate and the poisoned share of a batch.

    Returns:
      Radii of the shape of p_a.

    Raises:
      ValueError: for numbers out of range, or other shapes.
      TypeError: if one is no number.
    """
    what = "crfl_radius"
    p_a, p_b = checks.array(what, "p_a", p_a), checks.array(what, "p_b", p_b)
    for name, value in (("p_a", p_a), ("p_b", p_b)):
        _within(what, name, value, lambda v: (v >= 0) & (v <= 1), "in [0, 1]")
    if p_a.shape != p_b.shape:
        raise ValueError(f"{what} needs p_a and p_b of one shape, got {p_a.shape}, {p_b.shape}")
    checks.positive(what, noise=noise, smoothing=smoothing, lipschitz=lipschitz)
    bounds = checks.shaped(what, "bounds", bounds, (None,), meaning="(k,)")
    attackers = checks.shaped(what, "attackers", attackers, (None,), meaning="(R,)")
    _within(what, "bounds", bounds, lambda v: (v > 0) & jnp.isfinite(v), "> 0 and finite")
    _within(what, "attackers", attackers, lambda v: (v >= 0) & jnp.isfinite(v), ">= 0 and finite")
    last = jnp.arange(bounds.shape[0]) == bounds.shape[0] - 1
    kept = jnp.prod(jax.lax.erf(bounds / jnp.where(last, smoothing, noise) / jnp.sqrt(2.0)))
    apart = jnp.square(jnp.sqrt(p_a) - jnp.sqrt(p_b))
    certain = jnp.sqrt(-jnp.log1p(-apart) / (2 * attackers.shape[0] * kept))
    radius = certain * (noise / lipschitz / safe_norm(attackers / 1.0))
    return jnp.where(p_a > p_b, radius, 0)


def _within(what: str, name: str, values: Array, holds: Callable[[Array], Any], rule: str) -> None:
    if checks.is_known(values) and not bool(jnp.all(holds(values))):
        raise ValueError(
            f"{what} needs {name} {rule}, got {name} from {values.min()} to {values.max()}"
        )
