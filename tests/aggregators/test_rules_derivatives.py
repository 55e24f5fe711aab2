"""Every rule in float64, and its gradients; the table of rules is in ``contract.py``."""

from __future__ import annotations

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import reference as ref
from contract import (
    RULES,
    SOME_ABSENT,
    D,
    F,
    N,
    apply,
    assert_close,
    compiled,
    every_rule,
    nasty,
    random_matrix,
)


@every_rule
def test_float64(name: str) -> None:
    """In float64 only exact ties are left to rounding. The weights are float32, as the engine's are."""
    rule = RULES[name]
    with jax.enable_x64(True):
        for what, x in nasty(3).items():
            x = x.astype(np.float64)
            for w in (np.ones(N, np.float32), SOME_ABSENT):
                result = apply(name, x, w)
                assert result.dtype == np.float64
                assert np.all(np.isfinite(result)), what
                if what not in rule.excluded_float64:
                    assert_close(result, rule.reference(x, F, w), 1e-12, what)


WITHOUT_SLOPE = ("fltrust_server", "sign_majority")
"""Rules that ignore the rows, or only look at their signs."""

# --- Gradients -----------------------------------------------------------------------------------


@functools.cache
def gradient(name: str) -> Callable[..., jax.Array]:
    """updates, weights, direction (d,) -> the gradient of direction . rule(updates)."""
    call = compiled(name)
    return jax.jit(jax.grad(lambda x, w, along: jnp.vdot(call(x, w)[0], along)))


@every_rule
def test_gradients_are_finite(name: str) -> None:
    along = np.arange(1, D + 1, dtype=np.float32)
    for what, x in nasty(4).items():
        for w in (np.ones(N, np.float32), SOME_ABSENT, np.zeros(N, np.float32)):
            slopes = np.asarray(gradient(name)(x, w, along))
            assert np.all(np.isfinite(slopes)), what
            absent = np.setdiff1d(np.arange(N), ref.present(x, w)[2])
            assert np.all(slopes[absent] == 0), what
            if len(absent) < N and RULES[name].equivariant:  # the result follows a common shift
                np.testing.assert_allclose(np.sum(slopes, axis=0), along, rtol=1e-4, err_msg=what)


@every_rule
def test_gradients_equal_finite_differences(name: str) -> None:
    """The program of ``test_float64`` gives the differences."""
    with jax.enable_x64(True):
        rng = np.random.default_rng(13)
        for w in (np.ones(N, np.float32), SOME_ABSENT):
            x, along = random_matrix(5, dtype=np.float64), rng.normal(size=D)
            differences = np.zeros((N, D))
            for place in np.ndindex(N, D):
                step = np.zeros((N, D))
                step[place] = 1e-6
                ends = apply(name, x + step, w), apply(name, x - step, w)
                differences[place] = (ends[0] - ends[1]) @ along / 2e-6
            slopes = np.asarray(gradient(name)(x, w, along))
            np.testing.assert_allclose(slopes, differences, rtol=0, atol=1e-8)
            assert np.max(np.abs(slopes)) > 0.01 or name.startswith(WITHOUT_SLOPE)
