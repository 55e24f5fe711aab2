"""Data poisoning: functions (key, batch) -> batch for ``clients.local_sgd(poison=...)``."""

from __future__ import annotations

from fedjax_robust.clients import Poison
from fedjax_robust.types import Batch, Key


def label_flip(num_classes: int) -> Poison:
    """Label flipping, l -> L - 1 - l (Fang et al. 2020, section 4.1).

    Args:
      num_classes: L >= 2.

    Raises:
      ValueError: if L < 2.
    """
    if num_classes < 2:
        raise ValueError(f"label_flip needs num_classes >= 2, got {num_classes}")

    def poison(key: Key, batch: Batch) -> Batch:
        return {**batch, "y": num_classes - 1 - batch["y"]}

    return poison
