"""Which programs count as the same when a checkpoint is resumed: what a host function holds decides."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fedjax_robust.engine.checkpoint import fingerprint


def scaled(values, factor=1.0, *, shift=0.0):
    return np.asarray(values) * np.sum(factor) + np.sum(shift)


def added(first, values):
    return np.asarray(values) + first.sum()


LARGE = np.arange(30_000.0)
OTHER = np.where(LARGE == 15_000, -1, LARGE)


def of(host, constant=1.0):
    """The digest of a program that calls a host function."""
    x = jnp.ones(3)
    jaxpr = jax.make_jaxpr(lambda x: constant * jax.pure_callback(host, x, x))(x)
    return fingerprint(jaxpr, (x,))


def lambdas(factor, held=None):
    return lambda values: np.asarray(values) * factor + (0 if held is None else held["by"])


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (functools.partial(scaled, factor=2.0), functools.partial(scaled, factor=3.0)),
        (functools.partial(scaled, shift=2.0), functools.partial(scaled, shift=3.0)),
        (functools.partial(scaled, factor=2.0), functools.partial(scaled, shift=2.0)),
        (lambdas(2.0), lambdas(3.0)),
        (lambdas(2), lambdas(2.0)),
        (lambdas(2.0, {"by": 1}), lambdas(2.0, {"by": 2})),
        (lambdas(np.array([1.0, 2, 3])), lambdas(np.array([1.0, 2, 4]))),
        (lambdas(2.0, {"by": 1, "if": 1}), lambdas(2.0, {"by": 1, "if": 2})),
        # Large ones, which a program's text shows in part.
        (lambdas(LARGE), lambdas(OTHER)),
        (functools.partial(scaled, factor=LARGE), functools.partial(scaled, factor=OTHER)),
        (functools.partial(scaled, shift=LARGE), functools.partial(scaled, shift=OTHER)),
        (functools.partial(added, LARGE), functools.partial(added, OTHER)),
        (lambdas(np.zeros((1, 3))), lambdas(np.zeros((3,)))),
    ],
)
def test_what_a_host_function_holds_decides(one, other):
    assert of(one) != of(other)


def test_equal_host_functions_are_the_same():
    assert of(functools.partial(scaled, factor=2.0)) == of(functools.partial(scaled, factor=2.0))
    assert of(lambdas(np.ones(3), {"by": 1})) == of(lambdas(np.ones(3), {"by": 1}))
    assert of(scaled) != of(scaled, constant=2.0)


def test_shapes_and_types_of_inputs_decide_as_their_bytes_do():
    jaxpr = jax.make_jaxpr(lambda: 1)()
    zeros = [np.zeros((2, 3)), np.zeros((3, 2)), np.zeros(6), np.zeros(12, np.float32)]
    assert len({fingerprint(jaxpr, (x,)) for x in zeros}) == len(zeros)
