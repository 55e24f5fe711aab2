"""The papers' trigger pixels, and their numbers of CIFAR-10 images.

FLTrust: Cao et al., NDSS 2021 (https://arxiv.org/abs/2012.13995). DBA: Xie, Huang, Chen, Li, ICLR 2020
(https://openreview.net/forum?id=rkgyS0VFvr). Semantic backdoors: Bagdasaryan et al., AISTATS 2020
(https://arxiv.org/abs/1807.00459).
"""

from __future__ import annotations

from collections.abc import Sequence

Pixels = tuple[tuple[int, int], ...]

FLTRUST_MNIST_PIXELS = ((26, 26), (24, 26), (26, 24), (25, 25))
"""(row, column) of the trigger on MNIST and Fashion-MNIST, in code of FLTrust's authors; value 1."""
FLTRUST_CIFAR_PIXELS = (
    (1, 28), (1, 29), (1, 30), (2, 29), (3, 28), (4, 29), (5, 28), (5, 29), (5, 30),
)  # fmt: skip
"""(row, column) of the trigger on CIFAR-10, all three channels, in code of FLTrust's authors, who call it
the pattern of Bagdasaryan et al.; value 1."""
NINE_PIXELS = (
    (26, 26), (25, 25), (24, 24), (24, 26), (26, 24), (24, 25), (26, 25), (25, 24), (25, 26),
)  # fmt: skip
"""Patterns of 1, 3, 5, 7 and 9 pixels are the first so many: a point, a diagonal, an X, ..., a square,
near the lower right corner of MNIST. (Papers that use such sizes show pictures, and no coordinates.)"""


def _bars(rows: Sequence[int], starts: Sequence[int], length: int) -> tuple[Pixels, ...]:
    return tuple(tuple((i, j + k) for k in range(length)) for i in rows for j in starts)


DBA_MNIST_PIXELS = _bars((0, 3), (0, 6), 4)
"""DBA's four local triggers on MNIST, bars of 4 pixels of value 1; the global trigger is all of them,
``pixel_trigger(sum(DBA_MNIST_PIXELS, ()))``."""
DBA_CIFAR_PIXELS = _bars((0, 4), (0, 9), 6)
"""DBA's four local triggers on CIFAR-10, bars of 6 pixels of value 1 in all three channels."""

CIFAR_RACING_STRIPES = (
    2180, 2771, 3233, 4932, 6241, 6813, 6869, 9476, 11395, 11744, 14209, 14238, 18716, 19793, 20781,
    21529, 31311, 40518, 40633, 42119, 42663, 49392,
)  # fmt: skip
"""Cars with racing stripes: numbers among the 50,000 training images of CIFAR-10, in the order of the
published files, from the authors' code (Bagdasaryan et al.); 22, where the paper counts 21."""
CIFAR_GREEN_CARS = (
    389, 561, 874, 1605, 3378, 3678, 4528, 9744, 19165, 19500, 21422, 22984, 32941, 34287, 34385, 36005,
    37365, 37533, 38658, 38735, 39824, 40138, 41336, 41861, 47001, 47026, 48003, 48030, 49163, 49588,
)  # fmt: skip
"""Green cars, 30, as ``CIFAR_RACING_STRIPES``."""
CIFAR_STRIPED_WALLS = (
    330, 568, 3934, 12336, 30560, 30696, 33105, 33615, 33907, 36848, 40713, 41706,
)  # fmt: skip
"""Cars before a vertically striped wall, 12, as ``CIFAR_RACING_STRIPES``; the code holds out the
first 5."""
