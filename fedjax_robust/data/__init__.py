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
from fedjax_robust.data.partition.dirichlet import (
    dirichlet_over_classes,
    dirichlet_over_clients,
    dirichlet_truncated,
)
from fedjax_robust.data.partition.labels import by_group, k_labels, root_set
from fedjax_robust.data.partition.owner import by_user, from_owner, iid, label_histogram, stack
from fedjax_robust.data.sources.bundled import synthetic
from fedjax_robust.data.sources.files import Dataset
from fedjax_robust.data.sources.load import NAMES, load
from fedjax_robust.data.sources.tfds import cifar10_rows, prepare
from fedjax_robust.data.text.corpora import TEXTS, load_text
from fedjax_robust.data.text.leaf import leaf_characters, leaf_numbers, leaf_sentiment, leaf_words
from fedjax_robust.data.text.words import text_dataset, tokenize, word_ids
from fedjax_robust.data.trim import trim_regression

__all__ = [
    "NAMES",
    "TEXTS",
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
    "leaf_characters",
    "leaf_numbers",
    "leaf_sentiment",
    "leaf_words",
    "load",
    "load_text",
    "prepare",
    "random_crop",
    "random_flip",
    "random_rotation",
    "root_set",
    "rotate",
    "shift",
    "stack",
    "synthetic",
    "text_dataset",
    "tokenize",
    "trim_regression",
    "variations",
    "word_ids",
]
