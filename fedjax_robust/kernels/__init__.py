"""Array kernels that rules and attacks share.

``presence`` says which rows count, ``norms`` has means, norms and directions, ``distances`` those
between rows, ``ranks`` medians and trimmed means by ``sorting``, ``clusters`` 2-means.
"""

from fedjax_robust.kernels.distances import pairwise_distances, pairwise_squared_distances
from fedjax_robust.kernels.norms import (
    changing_direction,
    direction_and_length,
    power_of_two,
    safe_norm,
    smallest_divisor,
    weighted_mean,
)
from fedjax_robust.kernels.presence import drop_non_finite, is_present
from fedjax_robust.kernels.ranks import (
    coordinate_median,
    mean_around_median,
    middle_of_sorted,
    sort_present,
    trimmed_mean_of_present,
)
from fedjax_robust.kernels.sorting import combine_ranks, sort_clients

__all__ = [
    "changing_direction",
    "combine_ranks",
    "coordinate_median",
    "direction_and_length",
    "drop_non_finite",
    "is_present",
    "mean_around_median",
    "middle_of_sorted",
    "pairwise_distances",
    "pairwise_squared_distances",
    "power_of_two",
    "safe_norm",
    "smallest_divisor",
    "sort_clients",
    "sort_present",
    "trimmed_mean_of_present",
    "weighted_mean",
]
