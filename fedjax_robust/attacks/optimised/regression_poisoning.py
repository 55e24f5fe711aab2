"""Poisoning examples for linear regression, by gradients of the fitted model.

Jagielski, Oprea, Biggio, Liu, Nita-Rotaru, Li, "Manipulating Machine Learning: Poisoning Attacks and
Countermeasures for Regression Learning", IEEE S&P 2018 (https://arxiv.org/abs/1804.00308), and the
authors' code ("official" here). The attacker adds p examples z = (x, y) to n clean ones. The server's
model theta = (w, b) minimises the mean of (w.x + b - y)^2, plus lambda |w|^2, over all of them; the
attacker climbs an objective W(theta). With X the rows that are fitted and N their number, the optimality
conditions give::

    [ X^T X / N + lambda I   xbar ]                    [ x_c w^T + (w.x_c + b - y_c) I   -x_c ]
    [ xbar^T                    1 ]  dtheta / dz_c = - [ w^T                               -1 ]  / N

columns x_c, then y_c. All rows are fitted, poison too, so all are in X: that is ``kkt_gradient``, which
is exact. The official code leaves the poison out of X and N, ``official_kkt_gradient``.

The defence of the paper, TRIM, is ``data.trim_regression``.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from fedjax_robust import checks
from fedjax_robust.kernels.norms import direction_and_length
from fedjax_robust.kernels.regression import (
    predictions,
    ridge_model,
    solve_centred,
    solve_symmetric,
)
from fedjax_robust.types import Array, Key

Objective = Callable[[Array], Array]
"""theta (k + 1,), w and then b -> (), what the attacker wants to be large."""
Points = tuple[Array, Array]
"""x (p, k), y (p,)"""


def mean_squared_error(x: Array, y: Array) -> Objective:
    """The objective theta -> mean of (w.x + b - y)^2, on training or on validation examples.

    W_tr and W_val of the paper (https://arxiv.org/abs/1804.00308), W_tr without its regulariser.

    Args:
      x: (E, k).
      y: (E,).

    Raises:
      ValueError: for other shapes.
      TypeError: if they are no numbers.
    """
    x, y = _examples("mean_squared_error", "", x, y)
    return lambda model: jnp.mean(jnp.square(predictions(model, x) - y))


def kkt_gradient(
    objective: Objective,
    x: Array,
    y: Array,
    poison_x: Array,
    poison_y: Array,
    ridge: float | Array = 0.0,
) -> tuple[Array, Array, Array]:
    """The objective of the model fitted to all examples, and its exact gradient by the poisoning ones.

    (https://arxiv.org/abs/1804.00308, section IV-A, with all rows in the matrix.) One fit and one linear
    system of k + 1 unknowns, whatever the number of points.

    Args:
      objective: theta (k + 1,) -> scalar, differentiable.
      x: (n, k) clean features.
      y: (n,) clean responses.
      poison_x: (p, k).
      poison_y: (p,).
      ridge: lambda >= 0. With 0 the columns of x must not depend on each other.

    Returns:
      W (), its gradient by poison_x (p, k) and by poison_y (p,).

    Raises:
      ValueError: for other shapes, a negative ridge, or if the objective returns no scalar.
      TypeError: if an argument is of another type.
    """
    return _gradient("kkt_gradient", objective, x, y, poison_x, poison_y, ridge, everything=True)


def official_kkt_gradient(
    objective: Objective,
    x: Array,
    y: Array,
    poison_x: Array,
    poison_y: Array,
    ridge: float | Array = 0.0,
) -> tuple[Array, Array, Array]:
    """``kkt_gradient`` as the official code has it: X and N are of the clean examples alone.

    (https://arxiv.org/abs/1804.00308.) An approximation, good for few poisoning points.

    Args:
      objective: theta (k + 1,) -> scalar, differentiable.
      x: (n, k) clean features.
      y: (n,) clean responses.
      poison_x: (p, k).
      poison_y: (p,).
      ridge: lambda >= 0. With 0 the columns of x must not depend on each other.

    Returns:
      W (), which is exact, and what stands for its gradients, (p, k) and (p,).

    Raises:
      ValueError: for other shapes, a negative ridge, or if the objective returns no scalar.
      TypeError: if an argument is of another type.
    """
    what = "official_kkt_gradient"
    return _gradient(what, objective, x, y, poison_x, poison_y, ridge, everything=False)


def inverse_flip_points(key: Key, x: Array, y: Array, points: int) -> Points:
    """Where the ascent starts: clean examples with the response at the opposite end, 1 - round(y).

    The official code's ``inflip`` (https://arxiv.org/abs/1804.00308): examples are drawn, with
    replacement (our reading), with a probability proportional to their row sum of the hat matrix
    X (X^T X + .01 I)^-1 X^T times .5 + |y - .5|. Negative sums count as 0.

    Args:
      key: a key.
      x: (n, k) clean features in [0, 1].
      y: (n,) clean responses in [0, 1].
      points: p >= 1.

    Returns:
      x (p, k) and y (p,).

    Raises:
      ValueError: for other shapes, or points < 1.
      TypeError: if an argument is of another type.
    """
    what = "inverse_flip_points"
    key = checks.key(what, key)
    x, y = _examples(what, "", x, y)
    checks.static_count(what, 1, points=points)
    square = jnp.dot(x.T, x, precision="highest") + 0.01 * jnp.eye(x.shape[1], dtype=x.dtype)
    sums = jnp.dot(x, solve_symmetric(square, jnp.sum(x, axis=0)), precision="highest")
    shares = jnp.maximum(sums, 0) * (0.5 + jnp.abs(y - 0.5))
    shares = jnp.where(jnp.sum(shares) > 0, shares, 1)
    rows = jax.random.categorical(key, jnp.log(shares), shape=(int(points),))
    return x[rows], 1 - jnp.round(y[rows])


def regression_points(
    key: Key,
    x: Array,
    y: Array,
    points: int,
    *,
    objective: Objective | None = None,
    ridge: float | Array = 0.01,
    sweeps: int = 50,
    step: float | Array = 0.05,
    bounds: tuple[float, float] = (0.0, 1.0),
    move_responses: bool = True,
    project: Callable[[Array], Array] | None = None,
    start: Points | None = None,
) -> tuple[Points, Array]:
    """Poisoning points that climb W by the exact gradient, all at once (https://arxiv.org/abs/1804.00308).

    In every sweep each point moves by a step of fixed length along its own gradient, within the bounds;
    if W falls, all go back and the step becomes .75 of itself. The paper moves one point after another.

    Args:
      key: draws the start.
      x: (n, k) clean features.
      y: (n,) clean responses.
      points: p >= 1.
      objective: W; None = ``mean_squared_error(x, y)``.
      ridge: lambda of the model that is attacked, >= 0.
      sweeps: >= 1.
      step: length in units of x and y together, > 0.
      bounds: smallest and largest value of features and responses.
      move_responses: move y, too.
      project: x (p, k) -> x that is allowed, after the bounds, such as one-hot columns that are rounded.
      start: x (p, k), y (p,) to start from; None = ``inverse_flip_points``.

    Returns:
      The points, x (p, k) and y (p,), and W at the start and after every sweep, (sweeps + 1,), which
      never falls.

    Raises:
      ValueError: for other shapes, numbers out of range, or if a function returns another shape.
      TypeError: if an argument is of another type.
    """
    problem = _problem(
        "regression_points", key, x, y, points, objective, ridge, sweeps, step, bounds,
        move_responses, project, start,
    )  # fmt: skip

    def moved(at: Points, towards: Points, step: Array) -> Points:
        return problem.allowed(at[0] + step * towards[0], at[1] + step * towards[1])

    return _climb(problem, kkt_gradient, moved)


def official_regression_points(
    key: Key,
    x: Array,
    y: Array,
    points: int,
    *,
    objective: Objective | None = None,
    ridge: float | Array = 0.01,
    sweeps: int = 50,
    step: float | Array = 0.01,
    shrink: float | Array = 0.05,
    tries: int = 6,
    bounds: tuple[float, float] = (0.0, 1.0),
    move_responses: bool = True,
    project: Callable[[Array], Array] | None = None,
    start: Points | None = None,
) -> tuple[Points, Array]:
    """``regression_points`` as the official code has it (https://arxiv.org/abs/1804.00308).

    The gradient is ``official_kkt_gradient``. Each point has a line search of its own: it goes on along
    its direction by step, step * shrink, step * shrink^2, .., until W falls, and then back by one, or
    changes by less than 1e-8. W is that of the model fitted to the clean examples and to *this point
    alone*. A sweep that lowers the W of all points together is taken back, and the step becomes .75 of
    itself.

    Unlike there, sweeps have a fixed number, a ridge of 0 is none (their linear regression has 1e-5), and
    lambda means the same in the fit and in the gradient (their fit has lambda / N).

    Args:
      key: draws the start.
      x: (n, k) clean features.
      y: (n,) clean responses.
      points: p >= 1.
      objective: W; None = ``mean_squared_error(x, y)``.
      ridge: lambda of the model that is attacked, >= 0.
      sweeps: >= 1; the code stops between 15 and 50.
      step: length in units of x and y together, > 0.
      shrink: factor on the step from try to try, in (0, 1].
      tries: of a line search, >= 1. The code allows 100, which by then move nothing.
      bounds: smallest and largest value of features and responses.
      move_responses: move y, too.
      project: x (p, k) -> x that is allowed, after the line search, such as rounded one-hot columns.
      start: x (p, k), y (p,) to start from; None = ``inverse_flip_points``.

    Returns:
      The points, x (p, k) and y (p,), and W at the start and after every sweep, (sweeps + 1,), which
      never falls. Memory is p times that of the clean examples.

    Raises:
      ValueError: for other shapes, numbers out of range, or if a function returns another shape.
      TypeError: if an argument is of another type.
    """
    what = "official_regression_points"
    problem = _problem(
        what, key, x, y, points, objective, ridge, sweeps, step, bounds, move_responses, project,
        start,
    )  # fmt: skip
    checks.between(what, 0, 1, open_low=True, shrink=shrink)
    checks.static_count(what, 1, tries=tries)

    def search(own_x: Array, own_y: Array, up_x: Array, up_y: Array, step: Array) -> Points:
        """One point's, (k,) and ()."""

        def attempt(carry: _Search, i: Array) -> tuple[_Search, None]:
            length = step * jnp.asarray(shrink, step.dtype) ** i
            new_x, new_y = problem.within(carry.x + length * up_x, carry.y + length * up_y)
            new = problem.value(new_x[None], new_y[None])
            settled = jnp.abs(new - carry.value) < 1e-8
            takes = ~carry.over & (settled | (new >= carry.value))
            over = carry.over | settled | (new < carry.value)
            kept = jax.tree.map(
                lambda a, b: jnp.where(takes, a, b), _Search(new_x, new_y, new, over), carry
            )
            return kept._replace(over=over), None

        first = problem.value(own_x[None], own_y[None])
        carry = _Search(own_x, own_y, first, jnp.bool_(False))
        found, _ = jax.lax.scan(attempt, carry, jnp.arange(int(tries)))
        return found.x, found.y

    def moved(at: Points, towards: Points, step: Array) -> Points:
        new_x, new_y = jax.vmap(search, (0, 0, 0, 0, None))(*at, *towards, step)
        return problem.allowed(new_x, new_y)

    return _climb(problem, official_kkt_gradient, moved)


class _Search(NamedTuple):
    x: Array
    """(k,)"""
    y: Array
    """()"""
    value: Array
    """(), W of the clean examples and this one"""
    over: Array
    """() bool"""


class _Problem(NamedTuple):
    start: Points
    x: Array
    y: Array
    objective: Objective
    ridge: float | Array
    sweeps: int
    step: Array
    within: Callable[[Array, Array], Points]
    """points, moved -> points within the bounds"""
    allowed: Callable[[Array, Array], Points]
    """the same, and projected"""
    value: Callable[[Array, Array], Array]
    """W of the model fitted to the clean examples and these"""
    move_responses: bool


def _climb(
    problem: _Problem,
    gradient: Callable[..., tuple[Array, Array, Array]],
    moved: Callable[[Points, Points, Array], Points],
) -> tuple[Points, Array]:
    def sweep(
        carry: tuple[Points, Array, Array], _: None
    ) -> tuple[tuple[Points, Array, Array], Array]:
        at, value, step = carry
        up_x, up_y = gradient(problem.objective, problem.x, problem.y, *at, problem.ridge)[1:]
        up_y = up_y if problem.move_responses else jnp.zeros_like(up_y)
        # Gradients are as small as 1 / n; only their direction is used.
        towards = direction_and_length(jnp.concatenate([up_x, up_y[:, None]], axis=1))[0]
        new = moved(at, (towards[:, :-1], towards[:, -1]), step)
        new_value = problem.value(*new)
        rises = new_value >= value
        at, value = jax.tree.map(lambda a, b: jnp.where(rises, a, b), (new, new_value), (at, value))
        return (at, value, jnp.where(rises, step, 0.75 * step)), value

    first = problem.value(*problem.start)
    carry = (problem.start, first, problem.step)
    (at, _, _), values = jax.lax.scan(sweep, carry, None, length=problem.sweeps)
    return at, jnp.append(first, values)


def _gradient(
    what: str,
    objective: Objective,
    x: Array,
    y: Array,
    poison_x: Array,
    poison_y: Array,
    ridge: float | Array,
    *,
    everything: bool,
) -> tuple[Array, Array, Array]:
    checks.function(what, objective=objective)
    x, y = _examples(what, "", x, y)
    poison_x, poison_y = _examples(what, "poison_", poison_x, poison_y, x.shape[1])
    checks.not_negative(what, ridge=ridge)
    all_x, all_y = jnp.concatenate([x, poison_x]), jnp.concatenate([y, poison_y])
    model = ridge_model(all_x, all_y, jnp.ones_like(all_y), ridge)
    value, slope = jax.value_and_grad(_scalar(what, objective))(model)
    rows = all_x if everything else x
    # slope^T dtheta / dz of all points at once: the system is solved for the slope, b first.
    mean, shares = jnp.mean(rows, axis=0), jnp.full(rows.shape[0], 1 / rows.shape[0], x.dtype)
    by_w = solve_centred(rows - mean, shares, ridge, slope[:-1] - mean * slope[-1])
    by_b = slope[-1] - jnp.dot(mean, by_w, precision="highest")
    along = jnp.dot(poison_x, by_w, precision="highest") + by_b
    gaps = predictions(model, poison_x) - poison_y
    by_x = -(along[:, None] * model[:-1] + gaps[:, None] * by_w) / rows.shape[0]
    return value, by_x, along / rows.shape[0]


def _problem(
    what: str,
    key: Key,
    x: Array,
    y: Array,
    points: int,
    objective: Objective | None,
    ridge: float | Array,
    sweeps: int,
    step: float | Array,
    bounds: tuple[float, float],
    move_responses: bool,
    project: Callable[[Array], Array] | None,
    start: Points | None,
) -> _Problem:
    key = checks.key(what, key)
    x, y = _examples(what, "", x, y)
    checks.static_count(what, 1, points=points, sweeps=sweeps)
    checks.function(what, optional=True, objective=objective, project=project)
    checks.not_negative(what, ridge=ridge)
    checks.positive(what, step=step)
    checks.boolean(what, move_responses=move_responses)
    low, high = checked_bounds(what, bounds)
    if start is None:
        start = inverse_flip_points(key, x, y, points)
    elif not isinstance(start, tuple | list) or len(start) != 2:
        raise TypeError(f"{what} needs start (x, y), got {type(start).__name__}")
    own_x, own_y = _examples(what, "start, ", *start, x.shape[1])
    if own_x.shape[0] != points:
        raise ValueError(
            f"{what} needs a start of as many points, points={points}, got {own_x.shape[0]}"
        )
    aim = mean_squared_error(x, y) if objective is None else objective
    move_y = bool(move_responses)

    def within(new_x: Array, new_y: Array) -> Points:
        return jnp.clip(new_x, low, high), jnp.clip(new_y, low, high) if move_y else new_y

    def allowed(new_x: Array, new_y: Array) -> Points:
        new_x, new_y = within(new_x, new_y)
        if project is not None:
            projected = project(new_x)
            checks.returned(f"the project of {what}", projected, new_x.shape)
            new_x = projected
        return new_x, new_y

    def value(new_x: Array, new_y: Array) -> Array:
        all_x, all_y = jnp.concatenate([x, new_x]), jnp.concatenate([y, new_y])
        return _scalar(what, aim)(ridge_model(all_x, all_y, jnp.ones_like(all_y), ridge))

    return _Problem(
        (own_x.astype(x.dtype), own_y.astype(y.dtype)), x, y, aim, ridge, int(sweeps),
        jnp.asarray(step, x.dtype), within, allowed, value, move_y,
    )  # fmt: skip


def checked_bounds(what: str, bounds: tuple[float, float]) -> tuple[float, float]:
    """low < high."""
    if not isinstance(bounds, tuple | list) or len(bounds) != 2:
        raise TypeError(f"{what} needs bounds (low, high), got {bounds}")
    low, high = bounds
    checks.finite(f"{what} (bounds)", low=low, high=high)
    if checks.is_known(low) and checks.is_known(high) and not low < high:
        raise ValueError(f"{what} needs bounds (low, high) with low < high, got {bounds}")
    return low, high


def _examples(what: str, of: str, x: Array, y: Array, width: int | None = None) -> Points:
    """Floats x (E, k), y (E,)."""
    x = checks.shaped(what, f"{of}x", x, (None, width), meaning="(examples, features)")
    y = checks.shaped(what, f"{of}y", y, x.shape[:1], meaning="(examples,)")
    dtype = jnp.promote_types(jnp.promote_types(x.dtype, y.dtype), jnp.float32)
    return x.astype(dtype), y.astype(dtype)


def _scalar(what: str, objective: Objective) -> Objective:
    def checked(model: Array) -> Array:
        value = objective(model)
        checks.returned(f"the objective of {what}", value, ())
        return value

    return checked
