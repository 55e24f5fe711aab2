"""Data sets, and their partition among clients."""

from fedjax_robust.data.images import (
    changed,
    random_crop,
    random_flip,
    random_rotation,
    rotate,
    shift,
    variations,
)
from fedjax_robust.data.partition import (
    by_group,
    by_user,
    dirichlet_over_classes,
    dirichlet_over_clients,
    dirichlet_truncated,
    from_owner,
    iid,
    k_labels,
    label_histogram,
    root_set,
    stack,
)
from fedjax_robust.data.sources import NAMES, Dataset, cifar10_rows, load, prepare, synthetic

__all__ = [
    "NAMES",
    "Dataset",
    "by_group",
    "by_user",
    "changed",
    "cifar10_rows",
    "dirichlet_over_classes",
    "dirichlet_over_clients",
    "dirichlet_truncated",
    "from_owner",
    "iid",
    "k_labels",
    "label_histogram",
    "load",
    "prepare",
    "random_crop",
    "random_flip",
    "random_rotation",
    "root_set",
    "rotate",
    "shift",
    "stack",
    "synthetic",
    "variations",
]
