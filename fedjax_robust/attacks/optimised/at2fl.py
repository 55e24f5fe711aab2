"""AT2FL: poisoning examples for federated multi-task learning.

Sun, Cong, Dong, Wang, Liu, "Data Poisoning Attacks on Federated Machine Learning"
(https://arxiv.org/abs/2004.10020; IEEE IoT J. 2022). Every node has a model of its own, and the models
are coupled: examples added at one node move the models of others. The attack is *direct* if the nodes
where it adds examples are its targets, *indirect* if they are others.

The formulas are from memory of the paper, and what is built is our reading of it: squared losses and a
fixed coupling, for which the lower level has a closed form and its derivative is exact. (The paper has
MOCHA, which learns the coupling, and differentiates the dual.)
"""

from __future__ import annotations

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
import optax

from fedjax_robust import checks
from fedjax_robust.attacks.optimised.ascent import maximise
from fedjax_robust.attacks.optimised.regression_poisoning import checked_bounds
from fedjax_robust.types import Array, Key


def coupled_ridge(
    x: Array,
    y: Array,
    coupling: Array | None = None,
    *,
    strength: float | Array = 1.0,
    ridge: float | Array = 0.1,
    mask: Array | None = None,
) -> Array:
    """The nodes' models W = (w_1, .., w_N) of the lower level (https://arxiv.org/abs/2004.10020)::

        min_W  sum_l |X_l w_l - y_l|^2 + strength tr(W Omega W^T) + ridge |W|^2

    One linear system of N k unknowns. Differentiable in everything.

    Args:
      x: (N, m, k) the nodes' features; a constant one makes an intercept.
      y: (N, m) their responses, such as labels -1 and 1.
      coupling: Omega (N, N), symmetric and positive semi-definite; None = I - 1 1^T / N, which pulls all
        models to their mean.
      strength: lambda_1 >= 0.
      ridge: lambda_2 > 0.
      mask: (N, m) weights of the examples, >= 0; None = ones.

    Returns:
      (N, k).

    Raises:
      ValueError: for other shapes, or numbers out of range.
      TypeError: if an argument is of another type.
    """
    what = "coupled_ridge"
    x, y, mask, coupling = _nodes(what, x, y, mask, coupling)
    checks.not_negative(what, strength=strength)
    checks.positive(what, ridge=ridge)
    number, _, k = x.shape
    weighed = x * mask[..., None]
    squares = jnp.einsum("nmk,nml->nkl", weighed, x, precision="highest")
    squares += ridge * jnp.eye(k, dtype=x.dtype)
    right = jnp.einsum("nmk,nm->nk", weighed, y, precision="highest")
    apart = jnp.eye(number, dtype=x.dtype)
    matrix = jnp.einsum("nkl,nj->nkjl", squares, apart)
    matrix += strength * jnp.einsum("nj,kl->nkjl", coupling, jnp.eye(k, dtype=x.dtype))
    solved = jnp.linalg.solve(matrix.reshape(number * k, number * k), right.reshape(-1))
    return solved.reshape(number, k)


def at2fl_points(
    key: Key,
    x: Array,
    y: Array,
    points: int,
    sources: Sequence[int],
    targets: Sequence[int],
    *,
    coupling: Array | None = None,
    strength: float | Array = 1.0,
    ridge: float | Array = 0.1,
    mask: Array | None = None,
    iterations: int = 50,
    step: float | Array = 1.0,
    bounds: tuple[float, float] = (0.0, 1.0),
    start: tuple[Array, Array] | None = None,
) -> tuple[tuple[Array, Array], Array]:
    """Examples at the sources that raise the mean squared error of the targets on their own data.

    Projected gradient ascent (https://arxiv.org/abs/2004.10020), x <- clip(x + step dx); responses stay
    as they are. Direct if ``sources`` are ``targets``, indirect if they share none.

    Args:
      key: draws the start.
      x: (N, m, k) the nodes' clean features.
      y: (N, m) their responses.
      points: p >= 1 examples added at each source.
      sources: different nodes, known when the program is compiled.
      targets: likewise.
      coupling: Omega (N, N), symmetric and positive semi-definite; None = I - 1 1^T / N.
      strength: lambda_1 >= 0; 0 makes an indirect attack impossible.
      ridge: lambda_2 > 0.
      mask: (N, m) weights of the clean examples; None = ones.
      iterations: >= 1.
      step: eta > 0.
      bounds: smallest and largest value of a feature.
      start: x (S, p, k), y (S, p) at the sources; None = own examples drawn with replacement, with the
        responses negated (our choice: flipped labels).

    Returns:
      The best points, x (S, p, k) and y (S, p), and the sum over targets of the mean squared error at the
      start and after every step, (iterations + 1,).

    Raises:
      ValueError: for other shapes, numbers out of range, or nodes that are not there.
      TypeError: if an argument is of another type.
    """
    what = "at2fl_points"
    key = checks.key(what, key)
    x, y, mask, coupling = _nodes(what, x, y, mask, coupling)
    checks.static_count(what, 1, points=points, iterations=iterations)
    number, _, k = x.shape
    at = _which(what, "sources", sources, number)
    hit = _which(what, "targets", targets, number)
    checks.not_negative(what, strength=strength)
    checks.positive(what, ridge=ridge, step=step)
    low, high = checked_bounds(what, bounds)
    shape = (len(at), int(points))
    if start is None:
        logits = jnp.log(jnp.maximum(mask[at], 0))
        drawn = jax.random.categorical(key, logits[:, None], shape=shape)
        own_x = jnp.take_along_axis(x[at], drawn[..., None], axis=1)
        own_y = -jnp.take_along_axis(y[at], drawn, axis=1)
    elif not isinstance(start, tuple | list) or len(start) != 2:
        raise TypeError(f"{what} needs start (x, y), got {type(start).__name__}")
    else:
        own_x = checks.shaped(what, "start, x", start[0], (*shape, k), meaning="(S, p, k)")
        own_y = checks.shaped(what, "start, y", start[1], shape, meaning="(S, p)")
    own_x, own_y = jnp.clip(own_x.astype(x.dtype), low, high), own_y.astype(x.dtype)
    # Other nodes get examples of weight 0.
    all_y = jnp.concatenate([y, jnp.zeros((number, shape[1]), x.dtype).at[at].set(own_y)], axis=1)
    weights = jnp.zeros((number, shape[1]), x.dtype).at[at].set(1)
    all_weights = jnp.concatenate([mask, weights], axis=1)

    def error(own: Array) -> Array:
        added = jnp.zeros((number, shape[1], k), x.dtype).at[at].set(own)
        models = coupled_ridge(
            jnp.concatenate([x, added], axis=1), all_y, coupling,
            strength=strength, ridge=ridge, mask=all_weights,
        )  # fmt: skip
        gaps = jnp.einsum("nmk,nk->nm", x[hit], models[hit], precision="highest") - y[hit]
        total = jnp.sum(mask[hit], axis=1)
        means = jnp.sum(mask[hit] * jnp.square(gaps), axis=1) / jnp.where(total > 0, total, 1)
        return jnp.sum(means)

    found = maximise(
        error, own_x, int(iterations), optax.sgd(step), project=lambda own: jnp.clip(own, low, high)
    )
    return (found.best, own_y), found.values


def _nodes(
    what: str, x: Array, y: Array, mask: Array | None, coupling: Array | None
) -> tuple[Array, Array, Array, Array]:
    x = checks.shaped(what, "x", x, (None, None, None), meaning="(N, m, k)")
    y = checks.shaped(what, "y", y, x.shape[:2], meaning="(N, m)")
    dtype = jnp.promote_types(jnp.promote_types(x.dtype, y.dtype), jnp.float32)
    number = x.shape[0]
    if mask is None:
        mask = jnp.ones(y.shape, dtype)
    else:
        mask = checks.shaped(what, "mask", mask, y.shape, meaning="(N, m)")
    if coupling is None:
        coupling = jnp.eye(number, dtype=dtype) - jnp.full((number, number), 1 / number, dtype)
    else:
        coupling = checks.shaped(what, "coupling", coupling, (number, number), meaning="(N, N)")
    return x.astype(dtype), y.astype(dtype), mask.astype(dtype), coupling.astype(dtype)


def _which(what: str, name: str, nodes: Sequence[int], number: int) -> np.ndarray:
    known = checks.shaped(what, name, nodes, (None,), "integer", "(S,)")
    if not checks.is_known(known):
        raise TypeError(f"{what} needs {name} to be known when the program is compiled")
    which = np.asarray(known)
    if which.min() < 0 or which.max() >= number or len(set(which.tolist())) != len(which):
        raise ValueError(
            f"{what} needs {name} to be different nodes in 0 .. {number - 1}, got {which.tolist()}"
        )
    return which
