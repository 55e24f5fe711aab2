"""The lifts of ``aggregators.base``: what they do for every rule, by hand, and what they refuse."""

import jax.numpy as jnp
import numpy as np
import pytest

from fedjax_robust.aggregators.base import selecting, stateless, weighing, wrapping
from fedjax_robust.aggregators.coordinate import median
from fedjax_robust.types import Received

ROWS = np.array([[1.0, 2.0], [3.0, 6.0], [np.nan, 0.0], [9.0, 9.0]], np.float32)
WEIGHTS = np.array([1, 1, 1, 0], np.float32)  # two rows are there

LIFTS = {
    "stateless": (stateless, lambda r: jnp.sum(r.updates, axis=0), [4.0, 8.0]),
    "selecting": (selecting, lambda r: r.updates[:, 0] != 3, [1.0, 2.0]),
    "weighing": (weighing, lambda r: jnp.array([3.0, 1.0, 5.0, 5.0]), [1.5, 3.0]),
    "wrapping": (wrapping, lambda r: r._replace(updates=10 * r.updates), [20.0, 40.0]),
}


def received():
    params = jnp.zeros(2)
    return Received(jnp.asarray(ROWS), jnp.asarray(WEIGHTS), jnp.arange(4), params, None)


@pytest.mark.parametrize("name", LIFTS)
def test_absent_rows_do_not_count_and_reports_are_handed_on(name):
    lift, function, expected = LIFTS[name]
    seen = []

    def change(r):
        seen.append(r)
        return function(r), {"told": jnp.float32(7)}

    result, state, info = lift(change).aggregate(received(), ())
    np.testing.assert_allclose(result, expected)
    np.testing.assert_array_equal(seen[0].updates[2:], 0)
    np.testing.assert_array_equal(seen[0].weights, [1, 1, 0, 0])
    assert state == () and info["told"] == 7
    if name in ("selecting", "weighing"):  # absent rows are never selected
        np.testing.assert_array_equal(info["selected"][2:], [False, False])


def test_an_inner_rule_keeps_its_state_and_report():
    def count(received, state):
        return received.updates[0], state + 1, {"told": jnp.float32(1), "own": jnp.float32(2)}

    inner = median()._replace(init=lambda n, params: jnp.int32(n), aggregate=count)
    for lift in (selecting, wrapping):
        value = (lambda r: jnp.ones(4, bool)) if lift is selecting else (lambda r: r)
        rule = lift(lambda r, value=value: (value(r), {"more": jnp.float32(3)}), inner)
        _, state, info = rule.aggregate(received(), rule.init(4, jnp.zeros(2)))
        assert state == 5 and info["own"] == 2 and info["more"] == 3


@pytest.mark.parametrize("name", LIFTS)
def test_other_things_are_refused_in_words(name):
    lift, function, _ = LIFTS[name]
    with pytest.raises(TypeError, match=f"{name} needs .* to be a function, got 3"):
        lift(3)
    for wrong in (function, lambda r: (function(r), 1), lambda r: (function(r), {}, {})):
        with pytest.raises(TypeError, match="must return a value and a dict of what to report"):
            lift(wrong)(ROWS)
    if lift in (selecting, wrapping):
        with pytest.raises(TypeError, match="call it: base=median"):
            lift(lambda r: (function(r), {}), median)
    other = (lambda r: r.updates) if name == "wrapping" else (lambda r: jnp.ones(7))
    with pytest.raises((TypeError, ValueError), match=r"must return shape|to be a Received"):
        lift(lambda r: (other(r), {}))(ROWS)
