"""The table of all rules with their definitions, for ``test_rules.py`` and ``test_rules_derivatives.py``.

A new rule needs one line in its family's ``rules_*.py``. ``excluded`` names the nasty matrices on which
float32, or any order of summation, cannot reproduce the reference's choice of rows; what remains true
there is tested by ``test_selected_rows_are_a_right_choice`` and
``test_bulyan_averages_what_it_selected``.
"""

from __future__ import annotations

import collections
import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference as ref
import rules_first_papers
import rules_history
import rules_medians
import rules_spectral
import rules_validated
import rules_wrappers
from rule import D, F, N, Rule

from fedjax_robust.types import Received

FAMILIES = (
    rules_first_papers,
    rules_history,
    rules_medians,
    rules_spectral,
    rules_validated,
    rules_wrappers,
)
RULES: dict[str, Rule] = {name: rule for family in FAMILIES for name, rule in family.RULES.items()}
assert len(RULES) == sum(len(family.RULES) for family in FAMILIES)
# Public names without a line of their own.
EXCEPTIONS = {
    "base": "a module: how functions become rules",
    "median_of_means": "groups are of client ids, which deletion would renumber: test_medians.py",
    "crfl_votes": "the certificate of crfl: test_wrappers.py",
    "crfl_shares": "the certificate of crfl: test_wrappers.py",
    "crfl_radius": "the certificate of crfl: test_wrappers.py",
    "server_update": "what the server of FLTrust's rules trains, no rule",
    "trusted_mean": "the kernel of FLTrust's rules, no rule",
    "privacy_spent": "an accountant",
    "privacy_spent_poisson": "an accountant",
}
SELECTING = [name for name, rule in RULES.items() if rule.selection]
KRUM = {"krum": 1, "multi_krum": None, "multi_krum_3": 3}  # m
SOME_ABSENT = np.array([1, 0, 2, 0.5, 1, 1, 1, 3, 1, 1, 0.25, 1], np.float32)
assert len(SOME_ABSENT) == N and np.sum(SOME_ABSENT == 0) == 1  # 11 rows left: bulyan's least

every_rule = pytest.mark.parametrize("name", RULES)
every_main_rule = pytest.mark.parametrize("name", [name for name in RULES if " " not in name])
"""Without variants, such as "aksel of n - f", where what is tested does not depend on them."""
every_equivariant_rule = pytest.mark.parametrize(
    "name", [name for name, rule in RULES.items() if rule.equivariant]
)


TRACES: collections.Counter[str] = collections.Counter()


@functools.cache
def compiled(name: str, f: int = F) -> Callable[[np.ndarray, np.ndarray], tuple]:
    """updates (n, d), weights (n,) -> the rule's result and its info."""
    rule = RULES[name].make(f)

    def call(updates: jax.Array, weights: jax.Array) -> tuple[jax.Array, dict[str, jax.Array]]:
        TRACES[name] += 1
        n, d = updates.shape
        params = jnp.asarray(RULES[name].params(d), updates.dtype)
        received = Received(updates, weights, jnp.arange(n), params, jax.random.key(0))
        result, state, info = rule.aggregate(received, rule.init(n, params))
        assert jax.tree.structure(state) == jax.tree.structure(rule.init(n, params))
        return result, info

    return jax.jit(call)


def apply(name: str, x: np.ndarray, weights: np.ndarray | None = None, f: int = F) -> np.ndarray:
    weights = np.ones(len(x), x.dtype) if weights is None else weights
    return np.asarray(compiled(name, f)(x, weights)[0])


def selected(name: str, x: np.ndarray, weights: np.ndarray | None = None, f: int = F) -> np.ndarray:
    weights = np.ones(len(x), x.dtype) if weights is None else weights
    return np.asarray(compiled(name, f)(x, weights)[1]["selected"])


def assert_close(
    actual: np.ndarray, expected: np.ndarray, tolerance: float, what: str = ""
) -> None:
    """Relative to the largest entry."""
    scale = np.max(np.abs(expected), initial=0.0)
    np.testing.assert_allclose(
        np.asarray(actual, np.float64), expected, rtol=0, atol=tolerance * scale, err_msg=what
    )


def random_matrix(seed: int, n: int = N, d: int = D, dtype: type = np.float32) -> np.ndarray:
    return (0.5 + np.random.default_rng(seed).normal(size=(n, d))).astype(dtype)


def nasty(seed: int = 0, n: int = N) -> dict[str, np.ndarray]:
    return ref.nasty_matrices(n, D, np.random.default_rng(seed))
