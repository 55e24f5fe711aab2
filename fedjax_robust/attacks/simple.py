"""Rows that need no knowledge at all: constants and noise."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
import numpy as np

from fedjax_robust import checks
from fedjax_robust.attacks.honest import finite
from fedjax_robust.memo import same_for_equal_arguments
from fedjax_robust.types import Array, Attack, AttackerView, State


@same_for_equal_arguments
def constant(value: float | Array) -> Attack:
    """Every coordinate of every malicious row is one number.

    0 sends the received model back; ``math.inf`` and ``math.nan`` are rows that a server must leave out,
    as all rules here do.

    Args:
      value: any number; it may be infinite or NaN.

    Raises:
      ValueError: if it is no scalar.
      TypeError: if it is no number.
    """
    number = isinstance(value, float | np.number | np.ndarray | jax.Array)
    if not (number and np.ndim(value) == 0 and checks.is_known(value) and _is_nan(value)):
        checks.finite("constant", infinite=True, value=value)

    def craft(view: AttackerView, state: State) -> tuple[Array, State]:
        shape = (view.num_malicious, view.updates.shape[1])
        return jnp.full(shape, value, view.updates.dtype), state

    return Attack(craft=craft)


def _is_nan(value: float | Array) -> bool:
    try:
        return math.isnan(value)
    except TypeError:
        return False


@same_for_equal_arguments
def noise(std: float | Array = 200.0) -> Attack:
    """Each coordinate of each malicious row is drawn from N(0, std^2): the "Gaussian" attack of Blanchard
    et al., NeurIPS 2017 (https://arxiv.org/abs/1703.02757), and of Zeno's code.

    ``gaussian()``, of Fang et al., draws around the mean of all updates instead.

    Args:
      std: > 0, in units of the update; the paper's 200 (from memory) is for gradients.

    Raises:
      ValueError: if std is not positive and finite.
      TypeError: if it is no number.
    """
    checks.positive("noise", std=std)

    def craft(view: AttackerView, state: State) -> tuple[Array, State]:
        shape = (view.num_malicious, view.updates.shape[1])
        return finite(view, std * jax.random.normal(view.key, shape, view.updates.dtype)), state

    return Attack(craft=craft)
