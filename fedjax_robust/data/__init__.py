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
from fedjax_robust.data.text import (
    TEXTS,
    leaf_characters,
    leaf_words,
    load_text,
    text_dataset,
    tokenize,
    word_ids,
)

__all__ = [
    "NAMES",
    "TEXTS",
    "Dataset",
    "by_group",
    "by_user",
    "dirichlet_over_classes",
    "dirichlet_over_clients",
    "from_owner",
    "iid",
    "k_labels",
    "label_histogram",
    "leaf_characters",
    "leaf_words",
    "load",
    "load_text",
    "prepare",
    "root_set",
    "stack",
    "synthetic",
    "text_dataset",
    "tokenize",
    "word_ids",
]
