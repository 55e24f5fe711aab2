"""Data sets: one ``load(name)`` that returns training and test arrays.

=================  ===================================================  ============  ==============
name               from                                                 train / test  x
=================  ===================================================  ============  ==============
``breast_cancer``  scikit-learn's bundled file                          455 / 114     (30,)
``digits``         scikit-learn's bundled file                          1437 / 360    (8, 8, 1)
``synthetic``      a Gaussian mixture, drawn from the key               2000 / 500    (32,)
``mnist``          TFDS, prepared as array_record                       60000 / 10000 (28, 28, 1)
``fashion_mnist``  TFDS, prepared as array_record                       60000 / 10000 (28, 28, 1)
``cifar10``        TFDS, prepared as array_record                       50000 / 10000 (32, 32, 3)
``ch_mnist``       Kaggle's ``hmnist_64_64_L.csv`` or the folder of     4000 / 1000   (64, 64, 1)
                   tiles ``Kather_texture_2016_image_tiles_5000``
``har``            the folder ``UCI HAR Dataset`` (30 users), or        7732 / 2567   (561,)
                   ``uci_har.npz`` with some of its users
=================  ===================================================  ============  ==============

Data are looked for in ``data_dir``, else in the folder that the environment variable
``FEDJAX_ROBUST_DATA`` names, else where TFDS keeps its own (``TFDS_DATA_DIR``, else
``~/tensorflow_datasets``); in it both ``<dir>/tfds/<name>`` and ``<dir>/<name>`` are accepted.
Nothing is downloaded except by ``prepare``. Decoded images are cached in ``FEDJAX_ROBUST_CACHE``,
else in ``~/.cache/fedjax_robust``, a folder that can be deleted at any time. What is in it is believed:
a folder that another user owns or can write is refused.

Files are looked at before they are believed: no pickle is loaded, no module is imported because a file
names it, and nothing is unpacked beyond a bound.
"""

from fedjax_robust.data.sources.bundled import synthetic
from fedjax_robust.data.sources.cache import cache_dir
from fedjax_robust.data.sources.files import Dataset
from fedjax_robust.data.sources.load import NAMES, load
from fedjax_robust.data.sources.tfds import cifar10_rows, prepare

__all__ = [
    "NAMES",
    "Dataset",
    "cache_dir",
    "cifar10_rows",
    "load",
    "prepare",
    "synthetic",
]
