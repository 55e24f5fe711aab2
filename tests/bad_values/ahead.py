"""Attacks that look ahead, and the ascent loop."""

from __future__ import annotations

import jax.numpy as jnp
import optax

from bad_values.kinds import (
    CLIENT,
    COUNT,
    INDEX,
    OWNED,
    POOL,
    TASK,
    Line,
    boolean,
    count,
    function,
    not_negative,
    other,
    part,
)
from fedjax_robust import aggregators, attacks
from fedjax_robust.attacks import optimised
from fedjax_robust.types import ClientData

OWN = ClientData({name: jnp.asarray(v) for name, v in POOL.items()}, INDEX[0], COUNT[0])
FORECAST = optimised.as_one(CLIENT, OWN)


def loss(params):
    return TASK.loss(params, POOL)


def slope(view):
    return view.params + 1


def gain(x):
    return -jnp.sum(jnp.square(x))


# fmt: off
TABLE = {
    "attacks.adjoint": Line(
        {"slope": slope, "beyond": 0.5, "partial": False},
        {"slope": function(), "beyond": not_negative(), "partial": boolean()},
    ),
    "attacks.aimed": Line(
        {"make": lambda p: attacks.min_max(lambda mean, std: p), "slope": slope},
        {"make": function(), "slope": function()},
    ),
    "attacks.optimised.steepest": Line(
        {"forecast": FORECAST, "loss": loss, "rounds": 3, "partial": False},
        {"forecast": function(), "loss": function(), "rounds": count(1), "partial": boolean()},
    ),
    "attacks.optimised.as_one": Line(
        {"client": CLIENT, "own": OWN}, {"client": part(), "own": part()}
    ),
    "attacks.optimised.by_rule": Line(
        {"client": CLIENT, "data": OWNED, "base": aggregators.mean()},
        {"client": part(), "data": part(), "base": part(optional=True)},
    ),
    "attacks.optimised.loss_after": Line(
        {"forecast": FORECAST, "loss": loss, "rounds": 2},
        {"forecast": function(), "loss": function(), "rounds": count()},
    ),
    "attacks.optimised.maximise": Line(
        {"gain": gain, "start": jnp.ones(3), "steps": 2, "optimizer": optax.sgd(0.1),
         "project": lambda x: x, "choose": None},
        {"gain": function(), "start": other(), "steps": count(1), "optimizer": part(),
         "project": function(), "choose": function(optional=True)},
    ),
    "attacks.optimised.best_of": Line(
        {"found": optimised.Found(jnp.ones((2, 3)), jnp.ones(2), jnp.ones((2, 4)), jnp.ones((2, 3)))},
        {"found": part()},
    ),
}
