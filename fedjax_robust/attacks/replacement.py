"""Model replacement: one backdoored model, submitted so that it survives the server's averaging.

Bagdasaryan, Veit, Hua, Estrin, Shmatikov, "How To Backdoor Federated Learning", AISTATS 2020
(https://arxiv.org/abs/1807.00459). With the server's G <- G + eta / n sum_i (L_i - G) (eq. 1,
``aggregators.fedavg_eta``) and honest updates that cancel, one attacker who sends gamma (X - G) with
gamma = n / eta replaces G by its X (eq. 3). n is the number of *all* clients. A server that divides by
the round's m participants instead, ``mean()`` with ``sgd(eta)`` as in DBA, has gamma = m / eta.

How X is trained is a ``Client``, Algorithm 2 for example, and how it is shared out is one of
``attacks.divisions``::

    client = local_sgd(
        task, optax.exponential_decay(0.05, 2, 0.1, staircase=True), 64, epochs=6,
        poison=replace_by(backdoor, 20, noise=0.05),
        objective=constrain(0.7, p_distance()),
        stop=converged(task, backdoor, 1e-4),
    )
    attack = model_replacement(client, own, divisions.equal_parts(100))

With ``objective=None`` and ``norm_bounded(S)`` that is train-and-scale, with ``copies()`` the attack on
Krum. ``scaling`` and ``train_and_scale`` are for attackers who train apart from each other.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from fedjax_robust import checks
from fedjax_robust.attacks.divisions import Division
from fedjax_robust.kernels.norms import direction_and_length
from fedjax_robust.memo import same_for_equal_arguments
from fedjax_robust.types import Array, Attack, AttackerView, Client, ClientData, State


@same_for_equal_arguments
def model_replacement(client: Client, data: ClientData, divide: Division) -> Attack:
    """In each round with attackers they train one model X together, and submit it in parts.

    "If multiple attacker-controlled participants are selected in a given round, they divide up their
    updates so that they add up to a single backdoored model" (section V-D). X is trained on the
    attacker's own ``data``, whatever its clients own, and only if one of them is there.

    Args:
      client: how X is trained. Its state, if it has one, is carried from attack to attack.
      data: D_local; in a partition with the attacker's data as client i's,
        ``ClientData(part.examples, part.index[i], part.count[i])``.
      divide: ``equal_parts``, ``norm_bounded``, ``orthogonal_parts``, ``copies``, or one's own.

    Raises:
      ValueError: if ``data`` owns rows that are none of its pool; in a run, if the client or ``divide``
        return another shape.
      TypeError: if an argument is of another type, such as a ``divide`` that was not called.
    """
    what = "model_replacement"
    checks.part(what, Client, client=client)
    checks.part(what, ClientData, data=data)
    _check_own(what, data)
    checks.function(what, divide=divide)

    def craft(view: AttackerView, state: State) -> tuple[Array, State]:
        train_key, divide_key = jax.random.split(view.key)
        attackers = view.malicious[: view.num_malicious]
        honest = view.updates[: view.num_malicious]

        def replace(state: State) -> tuple[Array, State]:
            difference, state, _ = client.update(train_key, view.params, state, data)
            checks.returned("the client of model_replacement", difference, view.params.shape)
            parts = divide(divide_key, difference, attackers)
            checks.returned("divide of model_replacement", parts, honest.shape)
            return parts.astype(honest.dtype), state

        return jax.lax.cond(jnp.any(attackers), replace, lambda state: (honest, state), state)

    return Attack(init=client.init, craft=craft)


def _check_own(what: str, data: ClientData) -> None:
    """The attacker's own data; a pool without arrays is for clients that look at none."""
    shapes = jnp.shape(data.index), jnp.shape(data.count)
    if len(shapes[0]) != 1 or shapes[1] != ():
        raise ValueError(
            f"{what} needs the data of one client, index (m,) and count (), got shapes {shapes[0]} and "
            f"{shapes[1]}"
        )
    if data.examples:
        checks.partition(
            what, data.examples, _one_row(data.index), _one_row(data.count), sorted(data.examples)
        )


def _one_row(values: Array) -> Array:
    return jnp.asarray(values)[None]


@same_for_equal_arguments
def scaling(scale: float | Array, client: Client | None = None) -> Attack:
    """Every malicious client sends lambda times its before-attack update.

    FLTrust takes lambda = n, all clients of the round, so that under plain averaging one of them alone
    replaces the model (eq. 3, where averaging over all n is eta = 1). What makes the update malicious is
    the data that its clients own, ``add_backdoored_copies``, or how they train, ``client``.

    Args:
      scale: lambda > 0; gamma of Bagdasaryan et al.
      client: how malicious clients train; None = as honest ones.

    Raises:
      ValueError: if scale is not positive and finite.
      TypeError: if it is no number, or ``client`` no client.
    """
    checks.positive("scaling", scale=scale)
    checks.part("scaling", Client, optional=True, client=client)

    def craft(view: AttackerView, state: State) -> tuple[Array, State]:
        return scale * view.updates[: view.num_malicious], state

    return Attack(craft=craft, client=client)


@same_for_equal_arguments
def train_and_scale(bound: float | Array, client: Client | None = None) -> Attack:
    """Every malicious client scales its before-attack update to norm S: gamma = S / ||X - G||_2 (eq. 5).

    Args:
      bound: S > 0.
      client: how malicious clients train; None = as honest ones.

    Raises:
      ValueError: if S is not positive and finite.
      TypeError: if it is no number, or ``client`` no client.
    """
    checks.positive("train_and_scale", bound=bound)
    checks.part("train_and_scale", Client, optional=True, client=client)

    def craft(view: AttackerView, state: State) -> tuple[Array, State]:
        return bound * direction_and_length(view.updates[: view.num_malicious])[0], state

    return Attack(craft=craft, client=client)
