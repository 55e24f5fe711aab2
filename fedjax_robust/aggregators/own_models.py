"""What the server's loss is of each client's own model, for rules that try every row."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from fedjax_robust import checks
from fedjax_robust.types import Array, Received, Score


def checked_loss(what: str, loss: Score, chunk: int | None) -> int | None:
    """``loss`` is a function and ``chunk`` a number of models, or None: it is returned."""
    checks.function(what, loss=loss)
    return checked_chunk(what, chunk)


def checked_chunk(what: str, chunk: int | None) -> int | None:
    """A plain integer >= 1, or None."""
    if chunk is None:
        return None
    checks.static_count(what, 1, chunk=chunk, remedy="None is all at once")
    return int(chunk)


def losses_of_rows(what: str, loss: Score, received: Received, chunk: int | None) -> Array:
    """The loss of the received model plus each row.

    Args:
      what: the rule that asks.
      loss: params (d,) -> ().
      received: n rows, finite.
      chunk: models made and tried at a time, each a copy of the parameters; None = all n.

    Returns:
      (n,), +inf instead of NaN.
    """
    params = received.params

    def of_row(update: Array) -> Array:
        return at(what, loss, params + update.astype(params.dtype))

    if chunk is None:
        values = jax.vmap(of_row)(received.updates)
    else:
        values = jax.lax.map(of_row, received.updates, batch_size=chunk)
    return jnp.where(jnp.isnan(values), jnp.inf, values)


def at(what: str, loss: Score, params: Array) -> Array:
    """``loss(params)``, which must be one number."""
    value = loss(params)
    checks.returned(f"the loss of {what}", value, ())
    return jnp.asarray(value)


def without_infinite_losses(
    what: str, loss: Score, received: Received, chunk: int | None
) -> Received:
    """Rows whose own model's loss is NaN or infinite become absent: (n, d) zero and (n,) weight 0.

    One of them in an average would leave its loss, and every gradient of it, without a value.
    """
    fixed = received._replace(updates=jax.lax.stop_gradient(received.updates))
    usable = jnp.isfinite(losses_of_rows(what, loss, fixed, chunk))
    return received._replace(
        updates=jnp.where(usable[:, None], received.updates, 0),
        weights=jnp.where(usable, received.weights, 0),
    )
