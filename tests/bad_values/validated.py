"""DeepSight, Zeno, FAIR, the learned credits, SignGuard and Romoa."""

from __future__ import annotations

import jax.numpy as jnp

from bad_values.kinds import (
    INF,
    NAN,
    POOL,
    TASK,
    Line,
    X,
    array,
    count,
    examples,
    fraction,
    function,
    not_negative,
    of_numbers,
    part,
    positive,
)

LOSS = {"loss": function(), "chunk": count(1, optional=True)}
GUARDING = Line(
    {"share": 0.5, "lower": 0.1, "upper": 3.0},
    {
        "share": fraction(0.0),
        "lower": not_negative(),
        "upper": positive(infinite=True),
        "base": part(optional=True),
    },
)


def output(tree):
    return tree["Dense_0"]["kernel"], tree["Dense_0"]["bias"]


TABLE: dict[str, Line | list[Line]] = {
    "aggregators.deepsight": Line(
        {
            "task": TASK,
            "sample": X[:1],
            "output": output,
            "inputs": 8,
            "draws": 1,
            "min_cluster_size": 2,
            "chunk": 2,
        },
        {
            "task": part(),
            "sample": array("F", rank=False),
            "output": function(),
            "inputs": count(1),
            "draws": count(1),
            "min_cluster_size": count(2),
            "chunk": count(1, optional=True),
            "base": part(optional=True),
        },
    ),
    "aggregators.fair": Line(
        {"loss": jnp.sum, "step": 0.1, "steps": 2, "chunk": 2},
        LOSS | {"step": positive(), "steps": count(1)},
    ),
    "aggregators.fair_by_quality": Line(
        {"loss": jnp.sum, "forget": 0.1, "threshold": 0.0, "chunk": 2},
        LOSS | {"forget": of_numbers((NAN, -INF, -1.0), False, False), "threshold": not_negative()},
    ),
    "aggregators.learned_credits": Line(
        {"loss": jnp.sum, "learning_rate": 0.1, "chunk": 2}, LOSS | {"learning_rate": positive()}
    ),
    "aggregators.learned_credits_reinforce": Line(
        {"loss": jnp.sum, "learning_rate": 0.1, "noise": 0.1, "memory": 0.9, "chunk": 2},
        LOSS | {"learning_rate": positive(), "noise": positive(), "memory": fraction(1.0)},
    ),
    "aggregators.romoa": Line(
        {"task": TASK, "beta": 0.5, "gamma": 0.1, "sharpness": 2.0},
        {
            "task": part(optional=True),
            "beta": fraction(),
            "gamma": fraction(0.0, optional=True),
            "sharpness": positive(optional=True),
        },
    ),
    **{
        f"aggregators.{name}": GUARDING for name in ("signguard", "signguard_dist", "signguard_sim")
    },
    "aggregators.zeno": Line(
        {"task": TASK, "validation": POOL, "f": 1, "rho": 0.1, "batch_size": 4, "chunk": 2},
        {
            "task": part(),
            "validation": examples(3),
            "f": count(),
            "rho": not_negative(),
            "batch_size": count(1, 12, optional=True),
            "chunk": count(1, optional=True),
            "base": part(optional=True),
        },
    ),
}
