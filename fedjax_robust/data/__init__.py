"""Data sets, and their partition among clients."""

from fedjax_robust.data.partition import (
    by_group,
    by_user,
    dirichlet_over_classes,
    dirichlet_over_clients,
    from_owner,
    iid,
    k_labels,
    label_histogram,
    root_set,
    stack,
)
from fedjax_robust.data.sources import NAMES, Dataset, load, prepare, synthetic

__all__ = [
    "NAMES",
    "Dataset",
    "by_group",
    "by_user",
    "dirichlet_over_classes",
    "dirichlet_over_clients",
    "from_owner",
    "iid",
    "k_labels",
    "label_histogram",
    "load",
    "prepare",
    "root_set",
    "stack",
    "synthetic",
]
