"""What is measured: errors and the detection of malicious rows."""

from __future__ import annotations

import math

import numpy as np

from reference.rows import Array


def precision_recall(removed: Array, malicious: Array) -> tuple[float, float]:
    """Of the removed rows, the share that is malicious; of the malicious rows, the share removed.

    NaN where the denominator is 0.
    """
    both = sum(bool(r) and bool(m) for r, m in zip(removed, malicious, strict=True))
    num_removed, num_malicious = int(np.sum(removed)), int(np.sum(malicious))
    precision = both / num_removed if num_removed else math.nan
    recall = both / num_malicious if num_malicious else math.nan
    return precision, recall


def test_error(logits: Array, y: Array) -> float:
    """Section 4.1, testing error rate: the share of examples whose largest logit is not at y.

    The lowest class wins a tie; a NaN counts as the largest (``np.argmax``).
    """
    wrong = [int(np.argmax(row)) != int(label) for row, label in zip(logits, y, strict=True)]
    return sum(wrong) / len(wrong)


test_error.__test__ = False  # type: ignore[attr-defined]  # not a test, whoever imports it


def per_class_error(logits: Array, y: Array) -> Array:
    """(classes,): ``test_error`` over the examples of each true class; NaN for a class without."""
    logits, y = np.asarray(logits), np.asarray(y)
    errors = np.full(logits.shape[1], math.nan)
    for label in range(logits.shape[1]):
        if np.any(y == label):
            errors[label] = test_error(logits[y == label], y[y == label])
    return errors
