"""Poisons: functions (key, batch) -> batch for ``local_sgd(poison=...)``."""

from fedjax_robust.attacks.poisons.batches import (
    add_triggered_victims,
    distributed,
    in_turn,
    replace_by,
    replace_by_triggered,
)
from fedjax_robust.attacks.poisons.labels import label_flip, other_label
from fedjax_robust.attacks.poisons.words import word_backdoor

__all__ = [
    "add_triggered_victims",
    "distributed",
    "in_turn",
    "label_flip",
    "other_label",
    "replace_by",
    "replace_by_triggered",
    "word_backdoor",
]
