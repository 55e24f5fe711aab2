"""Sign flip: three of the four attacks of this name. The fourth negates gradients inside local training,
``data_poisoning(local_sgd(..., objective=attacks.objectives.ascent))``; with several local steps that is
gradient ascent and no flipped update.

Flipping is older than the papers that are cited for it: Allen-Zhu, Ebrahimianghazani, Li, Alistarh,
"Byzantine-Resilient Non-Convex Stochastic Gradient Descent", ICLR 2021
(https://arxiv.org/abs/2012.14368) as ByzFL has it; "bit flipping" in Karimireddy, He, Jaggi, "Byzantine-
Robust Learning on Heterogeneous Datasets via Bucketing", ICLR 2022 (https://arxiv.org/abs/2006.09365).
"""

from __future__ import annotations

import jax.numpy as jnp

from fedjax_robust import checks
from fedjax_robust.attacks.honest import finite, honest_mean, identical, needed
from fedjax_robust.memo import same_for_equal_arguments
from fedjax_robust.types import Array, Attack, AttackerView, State


@same_for_equal_arguments
def sign_flip(scale: float | Array = 1.0) -> Attack:
    """Each malicious row is -a times its own before-attack update; "BF" of Karimireddy et al.

    Args:
      scale: a > 0.

    Raises:
      ValueError: if scale is not positive and finite.
      TypeError: if it is no number.
    """
    checks.positive("sign_flip", scale=scale)

    def craft(view: AttackerView, state: State) -> tuple[Array, State]:
        return finite(view, -scale * view.updates[: view.num_malicious]), state

    return Attack(craft=craft)


@same_for_equal_arguments
def sign_flip_first(scale: float | Array = 1.0) -> Attack:
    """All malicious rows are -a times the before-attack update of the first malicious client that is
    there, as in Zeno's code (Xie, Koyejo, Gupta, ICML 2019, https://arxiv.org/abs/1805.10032).

    Args:
      scale: a > 0.

    Raises:
      ValueError: if scale is not positive and finite.
      TypeError: if it is no number.
    """
    checks.positive("sign_flip_first", scale=scale)

    def craft(view: AttackerView, state: State) -> tuple[Array, State]:
        return identical(view, -scale * view.updates[jnp.argmax(view.malicious)]), state

    return Attack(craft=craft)


@same_for_equal_arguments
def sign_flip_mean(*, partial: bool = False) -> Attack:
    """All malicious rows are -mean(honest rows), ByzFL's SignFlipping; the same as ``ipm(1.0)``.

    Needs ``Knowledge(others=True)``, unless ``partial``.

    Args:
      partial: the mean is that of the attackers' own before-attack rows.

    Raises:
      TypeError: if ``partial`` is not True or False.
    """
    checks.boolean("sign_flip_mean", partial=partial)

    def craft(view: AttackerView, state: State) -> tuple[Array, State]:
        return identical(view, -honest_mean(view, partial)), state

    return Attack(craft=craft, needs=needed(partial))
