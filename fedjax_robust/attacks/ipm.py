"""IPM, inner product manipulation.

Xie, Koyejo, Gupta, "Fall of Empires: Breaking Byzantine-tolerant SGD by Inner Product Manipulation", UAI
2019 (https://arxiv.org/abs/1903.03936).
"""

from __future__ import annotations

from fedjax_robust import checks
from fedjax_robust.attacks.honest import honest_mean, identical, needed
from fedjax_robust.memo import same_for_equal_arguments
from fedjax_robust.types import Array, Attack, AttackerView, State


@same_for_equal_arguments
def ipm(epsilon: float | Array, *, partial: bool = False) -> Attack:
    """All malicious rows are -epsilon mean(honest rows), so that the aggregate's inner product with the
    true direction turns negative.

    Two regimes. A small epsilon, .1 to 1, keeps the rows inside the cloud of honest ones, which are far
    from each other late in training or with non-IID data: Krum, Bulyan, clustering. A large one, 2 to
    100, is for rules in which only the side counts. Under the plain mean the sign turns for
    epsilon > (n - c) / c.

    Needs ``Knowledge(others=True)``, unless ``partial``.

    Args:
      epsilon: >= 0. In use: .1 (Karimireddy et al., FLPoison), .5 (from memory of the paper), 2 (ByzFL).
      partial: the mean is that of the attackers' own before-attack rows.

    Raises:
      ValueError: if epsilon is negative or not finite.
      TypeError: if epsilon is no number, or ``partial`` not True or False.
    """
    checks.not_negative("ipm", epsilon=epsilon)
    checks.boolean("ipm", partial=partial)

    def craft(view: AttackerView, state: State) -> tuple[Array, State]:
        return identical(view, -epsilon * honest_mean(view, partial)), state

    return Attack(craft=craft, needs=needed(partial))
