"""Who owns which training example: functions from a pool of examples to ``FederatedData``.

Each function is pure in its key. Clients come in random order, because the simulation takes clients
0 .. num_malicious - 1 as the malicious ones. Every example is owned by exactly one client; examples
that the server keeps for itself are set apart before, by ``root_set``.

``examples`` is a dict of arrays with the examples along the leading axis, as in ``Dataset.train``;
the functions that look at labels need ``y`` (E,), integers in [0, num_classes). The pool becomes
JAX arrays once: pass JAX arrays to share one copy between several partitions. A partition in which
nobody owns anything is refused.

All but ``by_user`` can be traced (``jit``, or ``vmap`` over the key, ``p`` or ``alpha``). The width
of ``index`` must then be known: pass ``capacity``, an upper bound on the examples that one client
owns, and keep the pool out of the batch::

    part = lambda p: by_group(key, pool, 100, p, num_classes=10, capacity=2000)
    data = jax.vmap(part, out_axes=FederatedData(None, 0, 0))(jnp.array([0.1, 0.5, 0.9]))

Outside of tracing a capacity that is too small is a ValueError; inside it cannot be, and a client
keeps only ``capacity`` of its examples: check ``count.max() < capacity`` on the result.
"""

from fedjax_robust.data.partition.dirichlet import (
    dirichlet_over_classes,
    dirichlet_over_clients,
    dirichlet_truncated,
)
from fedjax_robust.data.partition.labels import by_group, k_labels, root_set
from fedjax_robust.data.partition.owner import by_user, from_owner, iid, label_histogram, stack

__all__ = [
    "by_group",
    "by_user",
    "dirichlet_over_classes",
    "dirichlet_over_clients",
    "dirichlet_truncated",
    "from_owner",
    "iid",
    "k_labels",
    "label_histogram",
    "root_set",
    "stack",
]
