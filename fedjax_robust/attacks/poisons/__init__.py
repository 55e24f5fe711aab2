"""Data poisoning: functions (key, batch) -> batch for ``local_sgd(poison=...)``.

``labels`` changes labels alone, ``batches`` puts backdoor examples into batches, ``words`` sentences.
"""

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
