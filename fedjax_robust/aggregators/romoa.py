"""Romoa: a factor for every row and coordinate, from similarities to the median and the last aggregate.

Mao, Yuan, Zhao, Zhong, "Romoa: Robust Model Aggregation for the Resistance of Federated Learning to Model
Poisoning Attacks", ESORICS 2021 (https://doi.org/10.1007/978-3-030-88418-5_23). The paper was not at
hand: this is a reading of SAFEFL's code (https://github.com/encryptogroup/SAFEFL), which says it was
adapted from the authors'. With n rows u_i, their median m, and the last aggregate g':

1. E holds, of each row, the gamma d entries of largest size, and E_l likewise within each leaf l of the
   model (a layer's weights, its biases), at least one each.
2. Features of a row: (a) for each coordinate of E, -cos((g', m), (g', u_i)) of these two pairs of
   numbers; (b) for each leaf, -cos(m, u_i) on E_l; (c) for each leaf, Pearson's correlation of m and u_i
   on E_l. Where a vector is zero the cosine is 0, and where one is constant the correlation is -1.
3. For each of the three, 2-means splits the rows in two. c is the mean feature of the larger cluster, of
   all rows if the two are equal, and a row's score is s = 1 - |(x - c) / (c + 1e-5)|, that of (a) being 0
   outside of E, those of (b) and (c) the same for all of a leaf. The least of the three counts.
4. New factors are, in each coordinate, the softmax over the rows of sign(s) exp(n |s|): one row nearly
   takes all where scores are high. F <- (1 - beta) (new factors) + beta F, 1 / N at first.
5. All rows are clipped to [the median over coordinates of the rows' minima, that of their maxima]: two
   numbers. The aggregate is, in each coordinate, the sum of F_i u_i.

Ours are: F itself is remembered (SAFEFL hands on the new factors, so that its memory is one round long);
old factors are divided by their sum over the rows present, so that the new ones sum to 1 whoever takes
part; clusters are by Lloyd's iteration from the two rows furthest apart; equal clusters have no scaled
size (SAFEFL's centre is 0 then); g' = 0 in the first round (there it is the model).

The memory is (N, d), a factor per client and coordinate, besides a few copies of the rows. ``weights``
only say who is present.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from fedjax_robust import checks
from fedjax_robust.aggregators.base import cleaned
from fedjax_robust.kernels.norms import accumulator, direction_and_length
from fedjax_robust.kernels.ranks import coordinate_median
from fedjax_robust.kernels.two_means import larger_cluster, two_means_by_squares
from fedjax_robust.memo import same_for_equal_arguments
from fedjax_robust.types import Aggregator, Array, Info, Received, State, Task

_EXPONENT = 40.0  # beyond it all but the best row have a factor of 0 in any case


class Factors(NamedTuple):
    """What Romoa remembers."""

    factor: Array
    """(N, d), each client's factor in each coordinate."""
    last: Array
    """(d,), the last aggregate."""


@same_for_equal_arguments
def romoa(
    task: Task | None = None,
    *,
    beta: float | Array = 0.5,
    gamma: float | None = None,
    sharpness: float | Array | None = None,
) -> Aggregator:
    """Romoa; see the module's head. Reports ``trust`` (n,), the rows' mean factors.

    Args:
      task: whose ``unravel`` names the leaves; None = all d coordinates are one.
      beta: the memory's share, in [0, 1].
      gamma: the share of coordinates that each row brings to E, in (0, 1]; None = 1 / the number of rows
        present.
      sharpness: > 0, what multiplies scores before the exponential; None = the number of rows present.

    Raises:
      ValueError: if a number is out of range.
      TypeError: if it is none, or ``task`` is no task.

    Two rows agree, and the third points the other way:

    >>> rows = jnp.array([[1.0, 2.0, 3.0], [1.0, 2.0, 3.1], [-1.0, -2.0, -3.0]])
    >>> romoa(beta=0.0)(rows).round(1).tolist()
    [1.0, 2.0, 2.0]
    """
    checks.part("romoa", Task, optional=True, task=task)
    checks.between("romoa", 0, 1, beta=beta)
    if gamma is not None:
        checks.between("romoa", 0, 1, open_low=True, gamma=gamma)
        if not checks.is_known(gamma):
            raise TypeError("romoa needs gamma to be known when the program is compiled")
        gamma = float(gamma)
    if sharpness is not None:
        checks.positive("romoa", sharpness=sharpness)

    def init(num_clients: int, params: Array) -> State:
        exact = accumulator(params.dtype)
        factor = jnp.full((num_clients, params.shape[0]), 1 / num_clients, exact)
        return Factors(factor, jnp.zeros_like(params, exact))

    @jax.jit  # outside of a program, too many small ones
    def aggregate(received: Received, state: State) -> tuple[Array, State, Info]:
        received = cleaned(received)
        present = received.weights > 0
        number = jnp.maximum(jnp.sum(present), 1)
        rows = received.updates.astype(state.factor.dtype)
        score = _scores(rows, present, state.last, task, gamma)
        new = _new_factors(score, present, number if sharpness is None else sharpness)
        old = jnp.where(present[:, None], jnp.take(state.factor, received.ids, 0, mode="clip"), 0)
        total = jnp.sum(old, axis=0)
        old = jnp.where(total > 0, old / jnp.where(total > 0, total, 1), new)
        factor = (1 - beta) * new + beta * old
        result = jnp.sum(factor * _clipped(rows, present), axis=0)
        ids = jnp.where(present, received.ids, state.factor.shape[0])
        factors = state.factor.at[ids].set(factor.astype(state.factor.dtype), mode="drop")
        last = jnp.where(jnp.any(present), result, state.last)
        info = {"trust": jnp.mean(factor, axis=1)}
        return result.astype(received.updates.dtype), Factors(factors, last), info

    return Aggregator(init, aggregate)


def _scores(
    rows: Array, present: Array, last: Array, task: Task | None, gamma: float | None
) -> Array:
    """The least of the three scores, of each row and coordinate: (n, d)."""
    middle = coordinate_median(rows, present)
    large = _large(rows, present, gamma)
    # (a), by coordinate: pairs of numbers, of which one half is the same for all rows.
    units, _ = direction_and_length(jnp.stack([jnp.broadcast_to(last, rows.shape), rows], axis=-1))
    unit, _ = direction_and_length(jnp.stack([last, middle], axis=-1))
    by_coordinate = jnp.where(large, -jnp.sum(units * unit, axis=-1), 0)
    first = jnp.where(large, _score(by_coordinate, present), 0)
    # (b) and (c), by leaf.
    cosines, correlations = [], []
    for part, own in _leaves(task, rows, middle):
        counted = _large(part, present, gamma)
        cosines.append(-_cosine(part, own, counted))
        correlations.append(_correlation(part, own, counted))
    by_leaf = jnp.minimum(
        _score(jnp.stack(cosines, axis=1), present),
        _score(jnp.stack(correlations, axis=1), present),
    )
    return jnp.minimum(first, by_leaf[:, _leaf_of(task, middle)])


def _leaves(task: Task | None, rows: Array, middle: Array) -> list[tuple[Array, Array]]:
    """Rows (n, d_l) and the median (d_l,) of each leaf."""
    if task is None:
        return [(rows, middle)]
    try:
        shapes = jax.eval_shape(task.unravel, middle)
    except Exception as error:
        raise ValueError(
            f"romoa needs updates of the size of the task's model, got shape {rows.shape}: {error}"
        ) from error
    if sum(leaf.size for leaf in jax.tree.leaves(shapes)) != rows.shape[1]:
        raise ValueError(
            f"romoa needs updates of the size of the task's model, got shape {rows.shape}"
        )

    def flat(row: Array) -> Any:
        return [leaf.reshape(-1) for leaf in jax.tree.leaves(task.unravel(row))]

    return list(zip(jax.vmap(flat)(rows), flat(middle), strict=True))


def _leaf_of(task: Task | None, row: Array) -> Array:
    """Which leaf each coordinate belongs to: (d,) int32."""
    if task is None:
        return jnp.zeros(row.shape, jnp.int32)
    leaves, structure = jax.tree.flatten(jax.eval_shape(task.unravel, row))
    numbers = [jnp.full(leaf.shape, i, leaf.dtype) for i, leaf in enumerate(leaves)]
    (back,) = jax.linear_transpose(task.unravel, row)(jax.tree.unflatten(structure, numbers))
    return back.astype(jnp.int32)


def _large(x: Array, present: Array, gamma: float | None) -> Array:
    """Coordinates in which some present row has one of its largest entries: (n, d) -> (d,) bool."""
    d = x.shape[1]
    number = d // jnp.maximum(jnp.sum(present), 1) if gamma is None else jnp.int32(int(gamma * d))
    size = jnp.abs(jax.lax.stop_gradient(x))
    order = jnp.argsort(-size, axis=1)  # stable: of equal sizes the first
    rank = jnp.argsort(order, axis=1)
    return jnp.any((rank < jnp.maximum(number, 1)) & present[:, None], axis=0)


def _cosine(x: Array, other: Array, counted: Array) -> Array:
    """Of each row x (n, d) with other (d,) on the coordinates counted; 0 where one is zero."""
    units, _ = direction_and_length(jnp.where(counted, x, 0))
    unit, _ = direction_and_length(jnp.where(counted, other, 0))
    return jnp.dot(units, unit, precision="highest")


def _correlation(x: Array, other: Array, counted: Array) -> Array:
    """Pearson's; -1 where one is constant but for rounding."""
    units, constant = _deviations(x, counted)
    unit, other_constant = _deviations(other, counted)
    product = jnp.dot(units, unit, precision="highest")
    return jnp.where(constant | other_constant, -1, product)


def _deviations(x: Array, counted: Array) -> tuple[Array, Array]:
    """The directions of the deviations from the mean (..., d), and whether there are none (...)."""
    largest = jnp.max(jnp.where(counted, jnp.abs(x), 0), axis=-1, keepdims=True)
    share = counted / jnp.maximum(jnp.sum(counted), 1).astype(x.dtype)
    mean = jnp.sum(share * x, axis=-1, keepdims=True)
    deviation = jnp.where(counted, x - mean, 0)
    constant = jnp.max(jnp.abs(deviation), axis=-1, keepdims=True) <= 1e-5 * largest
    units, _ = direction_and_length(jnp.where(constant, 0, deviation))
    return units, constant[..., 0]


def _score(features: Array, present: Array) -> Array:
    """1 - |(x - c) / (c + 1e-5)|, c the mean of the larger of two clusters: (n, k) -> (n, k)."""
    larger = larger_cluster(two_means_by_squares(_squares(features, present), present), present)
    share = larger.astype(features.dtype) / jnp.maximum(jnp.sum(larger), 1)
    centre = jnp.dot(share, features, precision="highest")
    divisor = centre + 1e-5
    divisor = jnp.where(jnp.abs(divisor) < 1e-12, 1e-12, divisor)
    return 1 - jnp.abs((features - centre) / divisor)


def _squares(features: Array, present: Array) -> Array:
    """Squared distances, right to some 1e-6 of the largest, which is all that 2-means needs: (n, n).

    Features are between -1 and 1, so that no row can be far from all others."""
    features = jnp.where(present[:, None], jax.lax.stop_gradient(features), 0)
    centre = jnp.sum(features, axis=0) / jnp.maximum(jnp.sum(present), 1)
    centred = jnp.where(present[:, None], features - centre, 0)
    products = jnp.dot(centred, centred.T, precision="highest")
    own = jnp.diagonal(products)
    return jnp.maximum(own[:, None] + own[None, :] - products - products.T, 0)


def _new_factors(score: Array, present: Array, sharpness: Any) -> Array:
    """Softmax over the present rows of v(s) = sign(s) exp(sharpness |s|): (n, d) -> (n, d)."""
    here = present[:, None]
    top = jnp.max(jnp.where(here, jax.lax.stop_gradient(score), -jnp.inf), axis=0)
    top = jnp.where(jnp.isfinite(top), top, 0)

    def power(s: Array) -> Array:
        return jnp.exp(jnp.minimum(sharpness * jnp.abs(s), _EXPONENT))

    # v(top) - v(s), without the difference of two large numbers where both have one sign.
    apart = sharpness * (jnp.abs(score) - jnp.abs(top))
    farther = jnp.expm1(jnp.clip(apart, -_EXPONENT, _EXPONENT))
    below = jnp.where(
        (score > 0) & (top > 0),
        -power(top) * farther,
        jnp.where(
            (score < 0) & (top < 0),
            power(top) * farther,
            jnp.sign(top) * power(top) - jnp.sign(score) * power(score),
        ),
    )
    parts = jnp.where(here, jnp.exp(-below), 0)
    return parts / jnp.maximum(jnp.sum(parts, axis=0), 1)  # the largest part is 1


def _clipped(rows: Array, present: Array) -> Array:
    """Rows within the medians of the coordinates' extremes over the present rows."""
    here = present[:, None]
    lowest = jnp.min(jnp.where(here, rows, jnp.inf), axis=0)
    highest = jnp.max(jnp.where(here, rows, -jnp.inf), axis=0)
    someone = jnp.any(present)
    low = jnp.median(jnp.where(someone, lowest, 0))
    high = jnp.median(jnp.where(someone, highest, 0))
    return jnp.where(here, jnp.clip(rows, low, high), 0)
