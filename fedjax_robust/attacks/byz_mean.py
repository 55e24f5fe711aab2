"""ByzMean: some malicious rows are another attack's, the rest make that row the mean of all.

Xu, Huang, Song, Lan, "Byzantine-robust Federated Learning through Collaborative Malicious Gradient
Filtering" (SignGuard), ICDCS 2022 (https://arxiv.org/abs/2109.05872). The formula is from the sentence
above: the authors' code counts honest rows where all should be, and malicious ones among the honest.
"""

from __future__ import annotations

import jax.numpy as jnp

from fedjax_robust import checks
from fedjax_robust.attacks.alie import alie
from fedjax_robust.attacks.honest import (
    finite,
    honest_mean,
    needed,
    number_of_honest,
)
from fedjax_robust.memo import same_for_equal_arguments
from fedjax_robust.types import Array, Attack, AttackerView, State


@same_for_equal_arguments
def byz_mean(attack: Attack | None = None, *, partial: bool = False) -> Attack:
    """The first m1 = floor(c / 2) of c malicious rows are r, a row of another attack; the m2 = c - m1
    others are (n r - m1 r - sum of honest rows) / m2, so that the mean of all n rows is r.

    Needs ``Knowledge(others=True)``, unless ``partial``, and what the other attack needs.

    Args:
      attack: whose first row r is, one that only crafts; None is ``alie()``, as in the paper, partial
        if this is.
      partial: honest rows are taken to have the mean of the attackers' own before-attack rows, and all
        of them to be there. The other attack then is best a partial one, too.

    Raises:
      ValueError: if the other attack's clients train in their own way.
      TypeError: for arguments of another kind.
    """
    checks.part("byz_mean", Attack, optional=True, attack=attack)
    checks.boolean("byz_mean", partial=partial)
    inner = alie(partial=partial) if attack is None else attack
    if inner.client is not None:
        raise ValueError(
            "byz_mean needs an attack that only crafts, got one whose clients train in their own way"
        )

    def craft(view: AttackerView, state: State) -> tuple[Array, State]:
        c = view.num_malicious
        crafted, state = inner.craft(view, state)
        crafted, own = crafted[:c], view.malicious[:c]
        r = jnp.where(jnp.any(own), crafted[jnp.argmax(own)], 0)
        number = jnp.sum(own)
        first = number // 2
        others = number_of_honest(view, partial)
        total = jnp.maximum(number + others, 1)
        rest = r * ((total - first) / total) - honest_mean(view, partial) * (others / total)
        rest = rest * (total / jnp.maximum(number - first, 1))
        is_first = jnp.cumsum(own) <= first
        return finite(view, jnp.where(is_first[:, None], r, rest)), state

    needs = inner.needs._replace(others=inner.needs.others or needed(partial).others)
    return Attack(init=inner.init, craft=craft, needs=needs)
