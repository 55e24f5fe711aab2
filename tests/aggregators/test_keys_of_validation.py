"""The keys of ERR, LFR and Union: none is derived from another one that somebody else draws with."""

import jax
import jax.numpy as jnp
import numpy as np

from fedjax_robust import classification, models
from fedjax_robust.aggregators import median, union
from fedjax_robust.types import Aggregator, Received

X = np.eye(4, dtype=np.float32)
TASK = classification(models.SoftmaxRegression(4), X[:1])


def test_the_rules_own_draws_are_not_those_of_ties():
    """A rule folds numbers into its key, or splits it: that does not lead to the keys of the ties."""
    of_ties, of_rule = [], []

    def ties(key, places):
        of_ties.append(key)
        return places

    def aggregate(received, state):
        of_rule.append(received.key)
        return received.updates[0], state, {}

    rest = Aggregator(lambda n, params: (), aggregate)
    rule = union(TASK, {"x": X, "y": np.arange(4)}, 1, ties=ties, base=median(), rest=rest)
    params = jnp.zeros(20)
    updates = jax.random.normal(jax.random.key(1), (5, 20))
    rule.aggregate(Received(updates, jnp.ones(5), jnp.arange(5), params, jax.random.key(0)), ())
    own = of_rule[0]
    drawn = [own, *jax.random.split(own, 5), *(jax.random.fold_in(own, i) for i in range(5))]
    data = [{tuple(jax.random.key_data(key).tolist()) for key in keys} for keys in (of_ties, drawn)]
    assert len(data[0]) == 2 and not data[0] & data[1]
