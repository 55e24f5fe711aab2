"""Local model poisoning attacks on Krum, which also work on Multi-Krum and Bulyan.

Fang, Cao, Jia, Gong: "Local Model Poisoning Attacks to Byzantine-Robust Federated Learning", USENIX
Security 2020 (https://arxiv.org/abs/1911.11815), section 3.2 and appendices B and C. The paper's m, c are
the n, f here, and its vectors are models; ours are updates, so that the received model w_Re is 0.

Choices that the paper leaves open, and our defaults:

- epsilon and the threshold of lambda are in units of the model, as printed. Who attacks gradients
  instead (the authors' code does) passes epsilon and threshold times the learning rate.
- "c - 1 vectors, whose distance to w'_1 is at most epsilon": uniform in that ball.
- The add-one-more-crafted-model rule of partial knowledge runs Krum with f = the number of crafted
  copies (``simulated_f``).
- If no lambda above the threshold works, the last one, just below it, is sent.
"""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp

from fedjax_robust import checks
from fedjax_robust.aggregators.krum import root_krum_scores
from fedjax_robust.attacks.crafted import moments
from fedjax_robust.kernels.distances import pairwise_distances
from fedjax_robust.kernels.norms import changing_direction, direction_and_length, power_of_two
from fedjax_robust.kernels.ranks import coordinate_median
from fedjax_robust.kernels.sorting import sort_clients
from fedjax_robust.memo import same_for_equal_arguments
from fedjax_robust.types import Aggregator, Array, Attack, AttackerView, Key, Knowledge, State

Direction = Callable[[Array], Array]


@same_for_equal_arguments
def fang_krum_full(
    f: int | Array | None = None,
    *,
    epsilon: float | Array = 0.01,
    threshold: float | Array = 1e-5,
    direction: Direction = changing_direction,
    before: Aggregator | None = None,
) -> Attack:
    """Krum attack with full knowledge (eq. 2).

    All malicious clients send received model - lambda s, where s is the direction in which Krum's
    choice would change the model without attack; lambda starts at Theorem 1's bound (eq. 3) and is
    halved until Krum chooses it. All but the first are moved by a random vector of length <= epsilon.
    Needs ``Knowledge(others=True)``; the rule is assumed to be Krum, whatever the server runs.

    Args:
      f: the f of the attacked Krum, 0 <= f < (n - 2) / 2; default the number of malicious clients in
        the round. It may be traced, and is not checked then.
      epsilon: radius of the ball around the first crafted model, in units of the model, >= 0.
      threshold: lambda at which the search ends, >= 0 (at 0 it ends at the smallest float).
      direction: before-attack change (d,) -> s (d,) of +-1; ``jnp.ones_like`` is the deviation goal
        (appendix B).
      before: the rule whose aggregate of the before-attack updates is that change; None is Krum, as
        section 3.1 defines s. ``aggregators.mean()`` comes closest to the printed errors of Krum and
        Bulyan (experiments/fang2020/README.md, Tables 2a and 7b).

    Raises:
      ValueError: for numbers out of range; when called, if n <= 2f + 2, or if ``direction`` returns
        another shape.
      TypeError: if ``direction`` is no function, or ``before`` no rule.
    """
    if f is not None:
        checks.count("fang_krum_full", f=f)
    _check_search("fang_krum_full", epsilon, threshold, direction)
    checks.part("fang_krum_full", Aggregator, before=before, optional=True)

    def craft(view: AttackerView, state: State) -> tuple[Array, State]:
        n = view.updates.shape[0]
        if f is not None and checks.is_known(f) and n <= 2 * f + 2:
            raise ValueError(
                f"fang_krum_full needs n > 2f + 2, as Krum does, got n={n}, f={f}; f=None takes the "
                "number of malicious clients"
            )
        copies = jnp.sum(view.malicious)
        assumed = copies if f is None else f
        if before is None:
            distances = pairwise_distances(view.updates, view.visible)
            change = view.updates[jnp.argmin(root_krum_scores(distances, view.visible, assumed))]
        else:
            change = before(view.updates, view.visible)
        s = _directed(direction, change)
        search = _Search(view.updates, view.visible & ~view.malicious, s)
        lam, _ = search.largest(copies, assumed, threshold)
        return _surround(view, -lam * s, epsilon), state

    return Attack(craft=craft, needs=Knowledge(others=True))


def _check_search(
    what: str, epsilon: float | Array, threshold: float | Array, direction: Direction
) -> None:
    checks.not_negative(what, epsilon=epsilon, threshold=threshold)
    checks.function(what, direction=direction)


def _directed(direction: Direction, change: Array) -> Array:
    s = direction(change)
    checks.returned("direction", s, change.shape)
    return s.astype(change.dtype)


@same_for_equal_arguments
def fang_krum_partial(
    *,
    epsilon: float | Array = 0.01,
    threshold: float | Array = 1e-5,
    simulated_f: Callable[[Array], Array] = lambda copies: copies,
    direction: Direction = changing_direction,
) -> Attack:
    """Krum attack with partial knowledge (eq. 4): from the malicious clients' own before-attack updates.

    s is the direction of their mean. They play the honest clients, and lambda is halved from the
    analogous bound until Krum chooses the crafted model among them; if that fails down to the
    threshold, one more copy of the crafted model is added, and so on.

    The bound for c honest rows and k crafted ones follows from the proof of Theorem 1: among
    q = c + k - f - 2 neighbours of the crafted model k - 1 are copies at distance 0, so q - k + 1
    (at least 1) takes the place of m - 2c - 1.

    Args:
      epsilon: radius of the ball around the first crafted model, in units of the model, >= 0.
      threshold: lambda at which the search ends, >= 0 (at 0 it ends at the smallest float).
      simulated_f: number of crafted copies () -> f of the simulated Krum, a whole number >= 0.
      direction: before-attack change (d,) -> s (d,) of +-1; ``jnp.ones_like`` is the deviation goal
        (appendix B).

    Raises:
      ValueError: for numbers out of range; when called, if ``direction`` returns another shape.
      TypeError: if ``direction`` or ``simulated_f`` is no function.
    """
    _check_search("fang_krum_partial", epsilon, threshold, direction)
    checks.function("fang_krum_partial", simulated_f=simulated_f)

    def craft(view: AttackerView, state: State) -> tuple[Array, State]:
        own = view.updates[: view.num_malicious]
        rows = view.malicious[: view.num_malicious]
        number = jnp.sum(rows)
        s = _directed(direction, moments(own, rows)[0])
        search = _Search(own, rows, s)

        def search_with(copies: Array) -> tuple[Array, Array, Array]:
            f = simulated_f(copies)
            checks.count("simulated_f, which returns the simulated Krum's f,", f=f)
            lam, found = search.largest(copies, f, threshold)
            return copies, lam, found

        _, lam, _ = jax.lax.while_loop(
            lambda carry: ~carry[2] & (carry[0] < number),
            lambda carry: search_with(carry[0] + 1),
            search_with(jnp.ones_like(number)),
        )
        return _surround(view, -lam * s, epsilon), state

    return Attack(craft=craft)


class _Search:
    """The search for lambda among honest rows; needs no pass over the parameters per candidate.

    An honest update is u = a s + v with v orthogonal to s, so that the crafted model -lambda s is at
    squared distance |s|^2 (lambda + a)^2 + |v|^2 from it, and two scalars per row are enough. (With
    2 lambda s.u + |u|^2 instead, small distances would be lost in the rounding of large squares.)
    Everything is in units of the typical honest update, so that squares stay within the range of
    floats; rows that leave it are infinitely far from everything.
    """

    def __init__(self, honest: Array, rows: Array, s: Array):
        """honest (n, d); rows (n,) bool, which of them count; s (d,)."""
        n = honest.shape[0]
        honest = honest.astype(jnp.promote_types(honest.dtype, jnp.float32))
        s = s.astype(honest.dtype)
        self.rows = rows
        self.number = jnp.sum(rows)
        self.length = jnp.sum(jnp.square(s))
        along = jnp.dot(honest, s / jnp.maximum(self.length, 1), precision="highest")
        along = jnp.where(rows, along * jnp.maximum(1 / self.length, 1), 0)
        along = jnp.where(self.length > 0, along, 0)
        across = direction_and_length(jnp.where(rows[:, None], honest - along[:, None] * s, 0))[1]
        sizes = jnp.maximum(across, jnp.abs(along) * jnp.sqrt(self.length))
        self.unit, self.inverse = power_of_two(coordinate_median(sizes[:, None], rows)[0])
        self.along = along * self.inverse
        self.across = jnp.square(across * self.inverse)
        self.squares = self.length * jnp.square(self.along) + self.across
        self.near = rows & jnp.isfinite(self.squares)
        distances = pairwise_distances(honest, rows) * self.inverse
        squares = jnp.where(jnp.eye(n, dtype=bool), jnp.inf, jnp.square(distances))
        ascending = sort_clients(squares).T  # symmetric: a row's distances are a column's
        self.sums = jnp.pad(jnp.cumsum(ascending, axis=1), ((0, 0), (1, 0)))  # of the k closest

    def largest(
        self, copies: Array, f: Array | int, threshold: float | Array
    ) -> tuple[Array, Array]:
        """The first of bound, bound / 2, ... at which Krum picks a crafted row; and whether one does.

        The bound is tried first, however small; what is below the threshold later is not tried.
        """
        neighbours = jnp.maximum(self.number + copies - f - 2, 1)
        # 0 is never passed.
        threshold = jnp.maximum(threshold * self.inverse, jnp.finfo(self.squares.dtype).tiny)

        def halve(carry: tuple[Array, Array]) -> tuple[Array, Array]:
            lam = carry[0] / 2
            return lam, (lam >= threshold) & self.krum_picks_crafted(lam, copies, neighbours)

        lam = self.bound(copies, neighbours)
        start = lam, self.krum_picks_crafted(lam, copies, neighbours)
        lam, found = jax.lax.while_loop(
            lambda carry: ~carry[1] & (carry[0] >= threshold), halve, start
        )
        return lam * self.unit, found

    def bound(self, copies: Array, neighbours: Array) -> Array:
        """Theorem 1 (eq. 3), for any number of copies and neighbours, in the search's unit.

        With f < copies - 1 Krum counts more neighbours than there are other honest rows; then all of
        them are summed, which is a starting point rather than a bound.
        """
        others = jnp.clip(neighbours, 0, self.number - 1)
        closest = jnp.take(self.sums, others, axis=1, mode="clip")
        closest = jnp.min(jnp.where(self.rows, closest, jnp.inf))
        honest_neighbours = jnp.maximum(neighbours - copies + 1, 1)
        spread = jnp.sqrt(closest / (honest_neighbours * self.length))
        reach = jnp.sqrt(jnp.max(jnp.where(self.near, self.squares, 0)) / self.length)
        bound = jnp.where(jnp.isfinite(spread), spread, 0) + reach
        return jnp.where(jnp.isfinite(bound), bound, 0)  # halving infinity would never end

    def krum_picks_crafted(self, lam: Array, copies: Array, neighbours: Array) -> Array:
        n = self.squares.shape[0]
        """lam is in the search's unit."""
        to_crafted = self.length * jnp.square(lam + self.along) + self.across
        to_crafted = jnp.where(self.near, to_crafted, jnp.inf)
        rank = jnp.arange(n)
        honest_neighbours = neighbours - (copies - 1)
        crafted = jnp.sum(jnp.where(rank < honest_neighbours, jnp.sort(to_crafted), 0))
        # An honest row counts t of the crafted copies and its neighbours - t closest honest rows; its
        # score is the smallest such sum.
        t = jnp.arange(n + 1)
        by_t = jnp.take(self.sums, neighbours - t, axis=1, mode="clip") + jnp.where(
            t > 0, t * to_crafted[:, None], 0
        )
        possible = (t <= copies) & (t <= neighbours) & (neighbours - t <= self.number - 1)
        honest = jnp.min(jnp.where(possible & self.rows[:, None], by_t, jnp.inf))
        return crafted <= honest


def _surround(view: AttackerView, centre: Array, epsilon: float | Array) -> Array:
    """The first malicious row at ``centre`` (d,), the others uniform in the epsilon-ball around it."""
    centre = centre.astype(view.updates.dtype)
    shape = (view.num_malicious, centre.shape[0])
    return centre + _in_ball(view.key, shape, centre.dtype, epsilon).at[0].set(0)


def _in_ball(key: Key, shape: tuple[int, int], dtype: jnp.dtype, radius: float | Array) -> Array:
    """Rows uniform in the ball: a normal direction, and a length of radius U^(1/d)."""
    direction_key, length_key = jax.random.split(key)
    directions = jax.random.normal(direction_key, shape, dtype)
    norms = jnp.linalg.norm(directions, axis=1, keepdims=True)
    lengths = radius * jax.random.uniform(length_key, (shape[0], 1), dtype) ** (1 / shape[1])
    lengths = lengths.astype(dtype)
    return directions / jnp.maximum(norms, jnp.finfo(dtype).tiny) * lengths
