"""A linear combination of honest and malicious rows that makes the average what the attacker wants.

Blanchard, El Mhamdi, Guerraoui, Stainer, "Machine Learning with Adversaries: Byzantine Tolerant Gradient
Descent", NeurIPS 2017 (https://arxiv.org/abs/1703.02757): no linear rule withstands one malicious row
(Lemma 1, numbered from memory). Sent so, the rows are easily filtered, because they are long.
"""

from __future__ import annotations

from collections.abc import Callable

import jax.numpy as jnp

from fedjax_robust import checks
from fedjax_robust.attacks.honest import (
    honest_mean,
    honest_rows,
    identical,
    needed,
    number_of_honest,
)
from fedjax_robust.kernels.norms import accumulator, weighted_mean
from fedjax_robust.memo import same_for_equal_arguments
from fedjax_robust.types import Array, Attack, AttackerView, State


def opposite(mean: Array, params: Array) -> Array:
    """The target -mean(honest rows): the server goes back where clients went forward."""
    return -mean


@same_for_equal_arguments
def linear_combination(
    target: Callable[[Array, Array], Array] = opposite,
    *,
    weights: Array | None = None,
    partial: bool = False,
) -> Attack:
    """All malicious rows are (W t - sum of w_i u_i over honest rows) / (sum of the malicious weights),
    W = sum of all weights: the weighted mean of all rows is exactly the target t.

    Needs ``Knowledge(others=True)``, unless ``partial``.

    Args:
      target: mean of the honest rows (d,), received model (d,) -> t (d,), an update. Default -mean;
        ``lambda mean, params: start - params`` leads back to the model ``start``.
      weights: (N,) > 0, what the server's mean weighs each client with, by id; None = all the same.
      partial: honest rows are taken to have the mean of the attackers' own before-attack rows, and all
        of them to be there.

    Raises:
      ValueError: if weights are not (N,), positive and finite; when called, if ``target`` returns
        another shape, or if there are weights and the view has no ids.
      TypeError: for arguments of another kind.
    """
    what = "linear_combination"
    checks.function(what, target=target)
    checks.boolean(what, partial=partial)
    if weights is not None:
        weights = checks.shaped(what, "weights", weights, (None,), meaning="(N,)")
        known = checks.is_known(weights)
        if known and not bool(jnp.all((weights > 0) & jnp.isfinite(weights))):
            raise ValueError(
                f"{what} needs weights > 0 and finite; clients without weight are absent"
            )
        weights = weights.astype(accumulator(weights.dtype))

    def craft(view: AttackerView, state: State) -> tuple[Array, State]:
        if weights is None:
            own, others = jnp.sum(view.malicious), number_of_honest(view, partial)
            mean = honest_mean(view, partial)
        else:
            if view.ids is None:
                raise ValueError(f"{what} with weights needs a view with ids, got None")
            here = weights.at[view.ids].get(mode="fill", fill_value=0)
            own = jnp.sum(jnp.where(view.malicious, here, 0))
            rows = ~view.malicious if partial else view.reference
            others = jnp.sum(jnp.where(rows, here, 0))
            mean = honest_mean(view, partial)
            if not partial:
                shares = jnp.where(honest_rows(view, partial), here, 0)
                mean = weighted_mean(jnp.where(rows[:, None], view.updates, 0), shares)
        t = target(mean, view.params)
        checks.returned(f"the target of {what}", t, mean.shape)
        total = jnp.maximum(own + others, jnp.finfo(mean.dtype).tiny)
        times = total / jnp.where(own > 0, own, total)
        return identical(view, (t - others / total * mean) * times), state

    return Attack(craft=craft, needs=needed(partial))
