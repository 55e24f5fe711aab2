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

from __future__ import annotations

import hashlib
import importlib.util
import json
import os
import re
import stat
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from tqdm import tqdm

from fedjax_robust import checks, npz
from fedjax_robust.files import written_atomically
from fedjax_robust.types import Key

Arrays = dict[str, np.ndarray]

NAMES = (
    "breast_cancer",
    "digits",
    "synthetic",
    "mnist",
    "fashion_mnist",
    "cifar10",
    "ch_mnist",
    "har",
)
"""The names that ``load`` knows."""

_PUBLISHED = {  # training and test examples
    "mnist": (60_000, 10_000),
    "fashion_mnist": (60_000, 10_000),
    "cifar10": (50_000, 10_000),
}
_IMAGES = {"mnist": (28, 28, 1), "fashion_mnist": (28, 28, 1), "cifar10": (32, 32, 3)}
_TISSUES = ("tumor", "stroma", "complex", "lympho", "debris", "mucosa", "adipose", "empty")
_CH_MNIST_CSV = "hmnist_64_64_L.csv"
_CH_MNIST_TILES = "Kather_texture_2016_image_tiles_5000"
_CH_MNIST_IMAGES = 5_000
_KAGGLE = "https://www.kaggle.com/datasets/kmader/colorectal-histology-mnist"
_ZENODO = "https://zenodo.org/records/53169"
_ACTIVITIES = (
    "walking",
    "walking upstairs",
    "walking downstairs",
    "sitting",
    "standing",
    "laying",
)
_HAR_FOLDER = "UCI HAR Dataset"
_HAR_NPZ = "uci_har.npz"
_HAR_USERS, _HAR_EXAMPLES, _HAR_FEATURES = 30, 10_299, 561
_UCI = "https://archive.ics.uci.edu/dataset/240"


class Dataset(NamedTuple):
    """A data set in memory, as NumPy arrays."""

    train: Arrays
    """``x`` (E, ...) float32, ``y`` (E,) int32 in [0, num_classes); images are (E, H, W, C) in
    [0, 1]. Where examples come from users, ``user`` (E,) int32 from 0 on, for ``by_user``. Text is
    different: see ``data.text.text_dataset``."""
    test: Arrays
    """Like ``train``."""
    num_classes: int
    name: str
    note: str
    """What a table made from it must say; empty for the published split in full."""
    class_names: tuple[str, ...] = ()


def load(
    name: str, data_dir: str | os.PathLike[str] | None = None, key: Key | None = None
) -> Dataset:
    """Load one of ``NAMES``.

    Args:
      name: see the table on top of this module.
      data_dir: folder to look in; default ``FEDJAX_ROBUST_DATA``, else TFDS's own folder.
      key: JAX key, default ``jax.random.key(0)``. It draws the split of the data sets that have no
        published one (``breast_cancer``, ``digits``, ``ch_mnist``: 80 % train, rounded down; each
        user of ``har``: 75 % train, rounded up) and the whole of ``synthetic``; the others do not
        depend on it.

    Features of ``breast_cancer`` are standardised with the mean and the standard deviation of its
    training part, those of ``har`` are as published, in [-1, 1]; images are divided by their largest
    value (255, ``digits`` 16) and not normalised.

    Raises:
      ValueError: unknown name, a file that is damaged or not in the published layout, or a cache folder
        that other users own or can write.
      TypeError: an argument of another type.
      FileNotFoundError: the data are not there; the message says where it looked and how to get
        them.
    """
    _known_name("load", name, NAMES, "data set")
    key = jax.random.key(0) if key is None else checks.key("load", key)
    _data_dir(data_dir)
    match name:
        case "breast_cancer":
            return _breast_cancer(key)
        case "digits":
            return _digits(key)
        case "synthetic":
            return synthetic(key)
        case "mnist" | "fashion_mnist" | "cifar10":
            return _tfds(name, data_dir)
        case "ch_mnist":
            return _ch_mnist(key, data_dir)
        case "har":
            return _har(key, data_dir)
    raise AssertionError(name)


def _known_name(what: str, name: Any, known: Sequence[str], kind: str) -> None:
    if not isinstance(name, str):
        raise TypeError(
            f"{what} needs name to be one of {', '.join(known)}, got {_beginning(name)}"
        )
    if name not in known:
        raise ValueError(
            f"{what}: there is no {kind} {_beginning(name)}; known names are {', '.join(known)}"
        )


def _beginning(value: Any) -> str:
    """The beginning of a value, for messages."""
    try:
        text = repr(value)
    except RecursionError:  # lists in lists in lists
        text = f"a {type(value).__name__}"
    return text if len(text) <= 60 else f"{text[:57]}..."


def prepare(name: str, data_dir: str | os.PathLike[str] | None = None) -> Path:
    """Download ``mnist``, ``fashion_mnist``, ``cifar10`` or ``tiny_shakespeare`` with TFDS, as
    array_record files.

    Needs a network and what TFDS prepares data with: ``pip install "fedjax_robust[tfds-prepare]"``.
    Data that are already there are left alone.

    Args:
      name: which data set.
      data_dir: the folder, as in ``load``; the data go to ``<data_dir>/tfds`` if that exists.

    Returns:
      The folder that holds the prepared files.

    Raises:
      ValueError: TFDS has no such data set, or it is there in another file format.
      ImportError: tensorflow or importlib_resources is missing.
    """
    if not isinstance(name, str):
        raise TypeError(f"prepare needs the name of a data set, got {_beginning(name)}")
    if name not in (*_PUBLISHED, "tiny_shakespeare"):
        raise ValueError(
            f"prepare: name must be one of {', '.join(_PUBLISHED)}, tiny_shakespeare, got "
            f"{_beginning(name)}; the other data sets need no preparation or are fetched by hand (see "
            "load)"
        )
    root = _data_dir(data_dir)
    if _tfds_folder(name, root) is None:
        needed = ("tensorflow", "importlib_resources")
        missing = [module for module in needed if importlib.util.find_spec(module) is None]
        if missing:
            raise ImportError(
                f"prepare({name!r}): TFDS needs {' and '.join(missing)} to prepare data "
                '(not to read them); pip install "fedjax_robust[tfds-prepare]"'
            )
        import tensorflow_datasets as tfds

        tfds.data_source(
            name,
            data_dir=root / "tfds" if (root / "tfds").is_dir() else root,
            download=True,
            download_and_prepare_kwargs={"file_format": "array_record"},
        )
    folder = _tfds_folder(name, root)
    if folder is None:
        raise FileNotFoundError(f"prepare({name!r}): TFDS left no prepared data in {root}")
    return folder


def synthetic(
    key: Key,
    num_classes: int = 10,
    num_features: int = 32,
    num_train: int = 2_000,
    num_test: int = 500,
    separation: float = 4.0,
) -> Dataset:
    """A Gaussian mixture: x = separation * direction of its class + N(0, I).

    The directions are independent and uniform on the unit sphere, classes are equally likely. With
    the defaults the best possible classifier errs on about 2 % of the examples.

    Args:
      key: JAX key; the result is a pure function of it.
      num_classes: at least 2.
      num_features: at least 1.
      num_train: training examples, at least 1.
      num_test: test examples, at least 1.
      separation: distance of the class means from the origin, in standard deviations, >= 0.

    Raises:
      ValueError: an argument out of range.
    """
    key = checks.key("synthetic", key)
    checks.static_count("synthetic", 2, num_classes=num_classes)
    checks.static_count(
        "synthetic", 1, num_features=num_features, num_train=num_train, num_test=num_test
    )
    checks.not_negative("synthetic", separation=separation)
    num_classes, num_features = int(num_classes), int(num_features)
    num_train, num_test = int(num_train), int(num_test)
    key_mean, key_label, key_noise = jax.random.split(key, 3)
    size = num_train + num_test
    mean = jax.random.normal(key_mean, (num_classes, num_features))
    mean = separation * mean / jnp.linalg.norm(mean, axis=1, keepdims=True)
    label = jax.random.randint(key_label, (size,), 0, num_classes)
    x = np.asarray(mean[label] + jax.random.normal(key_noise, (size, num_features)), np.float32)
    y = np.asarray(label, np.int32)
    return Dataset(
        train={"x": x[:num_train], "y": y[:num_train]},
        test={"x": x[num_train:], "y": y[num_train:]},
        num_classes=num_classes,
        name="synthetic",
        note="synthetic Gaussian mixture",
    )


def _random_split(key: Key, x: np.ndarray, y: np.ndarray) -> tuple[Arrays, Arrays]:
    order = np.asarray(jax.random.permutation(key, len(y)))
    train, test = np.split(order, [len(y) * 4 // 5])
    return {"x": x[train], "y": y[train]}, {"x": x[test], "y": y[test]}


def _breast_cancer(key: Key) -> Dataset:
    from sklearn.datasets import load_breast_cancer

    bunch = load_breast_cancer()
    train, test = _random_split(key, bunch.data, bunch.target.astype(np.int32))
    mean, std = train["x"].mean(axis=0), train["x"].std(axis=0)
    for part in (train, test):
        part["x"] = ((part["x"] - mean) / std).astype(np.float32)
    return Dataset(
        train=train,
        test=test,
        num_classes=2,
        name="breast_cancer",
        note=f"random split {len(train['y'])}/{len(test['y'])}; features standardised with the "
        "training part's mean and standard deviation",
        class_names=tuple(str(c) for c in bunch.target_names),
    )


def _digits(key: Key) -> Dataset:
    from sklearn.datasets import load_digits

    bunch = load_digits()
    x = (bunch.images / 16).astype(np.float32)[..., None]
    train, test = _random_split(key, x, bunch.target.astype(np.int32))
    return Dataset(
        train=train,
        test=test,
        num_classes=10,
        name="digits",
        note=f"scikit-learn's 8x8 digits, random split {len(train['y'])}/{len(test['y'])}",
        class_names=tuple(str(c) for c in bunch.target_names),
    )


# TFDS


def _tfds(name: str, data_dir: str | os.PathLike[str] | None) -> Dataset:
    root = _data_dir(data_dir)
    folder = _tfds_folder(name, root)
    if folder is None:
        raise FileNotFoundError(
            f"load({name!r}): found no prepared data in {root / 'tfds' / name} or {root / name}. "
            "Point data_dir or FEDJAX_ROBUST_DATA at the folder that holds them, or fetch them:\n"
            '  pip install "fedjax_robust[tfds-prepare]"\n'
            f"{_prepare_command(name, root)}\n"
            "which is TFDS's own\n"
            f"  tfds.data_source('{name}', data_dir='{root}', "
            "download_and_prepare_kwargs={'file_format': 'array_record'})"
        )
    arrays = cached(name, sorted(folder.iterdir()), lambda: _decode_tfds(name, folder))
    note = ""
    for part, size in zip(("train", "test"), _PUBLISHED[name], strict=True):
        have = len(arrays[f"y_{part}"])
        if have != size:
            word = "training" if part == "train" else "test"
            note += f"{'; ' if note else ''}first {have:,} {word} images (of {size:,})"
    return Dataset(
        train={"x": _unit(arrays["x_train"]), "y": arrays["y_train"].astype(np.int32)},
        test={"x": _unit(arrays["x_test"]), "y": arrays["y_test"].astype(np.int32)},
        num_classes=len(arrays["class_names"]),
        name=name,
        note=note,
        class_names=tuple(str(c) for c in arrays["class_names"]),
    )


def _prepare_command(name: str, root: Path) -> str:
    return f"  python -c \"from fedjax_robust.data import prepare; prepare('{name}', '{root}')\""


def _tfds_folder(name: str, root: Path) -> Path | None:
    """The folder of the newest prepared version, or None."""
    for parent in (root / "tfds" / name, root / name):
        found = [
            p for p in parent.glob("*/dataset_info.json") if re.fullmatch(r"[\d.]+", p.parent.name)
        ]
        if not found:
            continue
        folder = max(found, key=lambda p: [int(n) for n in p.parent.name.split(".") if n]).parent
        if not any(".array_record" in p.name for p in folder.iterdir()):
            raise ValueError(
                f"{name} in {folder} was not prepared as array_record (TFDS writes tfrecord files "
                "unless told otherwise), and only array_record files can be read without "
                "tensorflow. Delete that folder or choose another data_dir, and prepare it again:\n"
                f"{_prepare_command(name, root)}"
            )
        return folder
    return None


_FEATURE = re.compile(r"tensorflow_datasets\.core\.features\.[A-Za-z_][A-Za-z0-9_.]*")


def tfds_builder(folder: Path) -> Any:
    """TFDS's reader of a prepared folder whose files name none but TFDS's own feature classes.

    TFDS imports the module of every class that ``features.json`` names, which may be any file on the
    search path, also one in the working folder.

    Raises:
      ValueError: another class is named, or a file is damaged.
    """
    import tensorflow_datasets as tfds

    with readable(folder, "dataset_info.json", "features.json"):
        for name in ("dataset_info.json", "features.json"):
            for class_name in _class_names((folder / name).read_text("utf-8")):
                if not (isinstance(class_name, str) and _FEATURE.fullmatch(class_name)):
                    raise ValueError(
                        f"{name} names the class {_beginning(class_name)}, and TFDS would import its "
                        "module; only classes of tensorflow_datasets.core.features are accepted"
                    )
        return tfds.builder_from_directory(str(folder))


def _class_names(text: str) -> Iterator[Any]:
    """The classes that a JSON text names to TFDS, in its spellings of today and of before."""
    todo = [json.loads(text)]
    while todo:
        value = todo.pop()
        if isinstance(value, dict):
            for key, inner in value.items():
                if key in ("pythonClassName", "python_class_name"):
                    yield inner
                if key in ("jsonFeature", "json_feature") and isinstance(inner, dict):
                    todo.append(json.loads(inner.get("json", "null")))  # JSON inside of a string
                todo.append(inner)
            if "type" in value and "content" in value:
                yield value["type"]
        elif isinstance(value, list):
            todo.extend(value)


@contextmanager
def readable(folder: Path, *names: str) -> Iterator[None]:
    """Whatever goes wrong inside is a ValueError that names files of a TFDS folder, and the remedy."""
    try:
        yield
    except (
        Exception
    ) as error:  # array_record raises RuntimeError, protobuf and PIL errors of their own
        files = sorted(p.name for name in names for p in folder.glob(name)) or list(names)
        name, root = folder.parent.name, folder.parent.parent
        root = root.parent if root.name == "tfds" else root
        raise ValueError(
            f"{folder}: {', '.join(files)} damaged, incomplete or not as TFDS writes it ({error}); "
            f"delete that folder and prepare it again:\n{_prepare_command(name, root)}"
        ) from error


def _decode_tfds(name: str, folder: Path) -> Arrays:
    builder = tfds_builder(folder)
    arrays: Arrays = {}
    with readable(folder, "features.json", "*.labels.txt"):
        names = np.asarray(builder.info.features["label"].names, np.str_)
    for part in ("train", "test"):
        with readable(folder, f"*-{part}.array_record*"):
            source = builder.as_data_source(split=part)
            records: Any = tqdm(
                source, desc=f"decoding {name} {part}", delay=1.0, mininterval=1.0, leave=False
            )
            images, labels = zip(*((r["image"], r["label"]) for r in records), strict=True)
            x, y = np.stack(images), np.asarray(labels)
            if x.shape[1:] != _IMAGES[name] or x.dtype != np.uint8:
                raise ValueError(f"images of shape {x.shape[1:]} and dtype {x.dtype}")
            if y.min() < 0 or y.max() >= len(names):
                raise ValueError(f"labels from {y.min()} to {y.max()} for {len(names)} classes")
            arrays[f"x_{part}"], arrays[f"y_{part}"] = x, y.astype(np.uint8)
    arrays["class_names"] = names
    return arrays


def cifar10_rows(
    numbers: Sequence[int] | np.ndarray, data_dir: str | os.PathLike[str] | None = None
) -> np.ndarray:
    """Where training images of CIFAR-10 are in ``load("cifar10").train``.

    Papers number them in the order of the published files (0 to 49,999, as torchvision has them). TFDS
    shuffles them, and keeps these numbers in the examples' ids.

    Args:
      numbers: (K,) integers in [0, 50,000).
      data_dir: as in ``load``.

    Returns:
      (K,) rows.

    Raises:
      ValueError: numbers out of range, or as ``load``.
      TypeError: numbers that are no integers.
      FileNotFoundError: as ``load``.
    """
    try:
        numbers = np.asarray(numbers)
    except ValueError as error:
        raise TypeError("cifar10_rows needs numbers (K,), got rows of several lengths") from error
    if numbers.size and numbers.dtype.kind not in "iu":
        raise TypeError(f"cifar10_rows needs integers, got {numbers.dtype}")
    if numbers.ndim != 1:
        raise ValueError(f"cifar10_rows needs numbers (K,), got shape {numbers.shape}")
    numbers = numbers.astype(np.int64)
    most = _PUBLISHED["cifar10"][0]
    if numbers.size and not 0 <= numbers.min() <= numbers.max() < most:
        raise ValueError(
            f"cifar10_rows needs numbers in [0, {most}), got {numbers.min()} to {numbers.max()}"
        )
    root = _data_dir(data_dir)
    folder = _tfds_folder("cifar10", root)
    if folder is None:
        load("cifar10", data_dir)  # says what to do
    assert folder is not None
    ids = cached("cifar10-ids", sorted(folder.iterdir()), lambda: _decode_ids(folder))["ids"]
    if numbers.size and not 0 <= numbers.min() <= numbers.max() < len(ids):
        raise ValueError(
            f"cifar10_rows needs numbers in [0, {len(ids)}), got {numbers.min()} to {numbers.max()}"
        )
    return np.argsort(ids)[numbers]


def _decode_ids(folder: Path) -> Arrays:
    """``ids`` (E,) the numbers of the training examples, row by row."""
    import tensorflow_datasets as tfds

    builder = tfds_builder(folder)
    with readable(folder, "*-train.array_record*"):
        source = builder.as_data_source(
            split="train", decoders={"image": tfds.decode.SkipDecoding()}
        )
        names = [r["id"].decode() for r in source]  # "train_16399"
        ids = np.array([int(name.removeprefix("train_")) for name in names])
        if not np.array_equal(np.sort(ids), np.arange(len(ids))):
            raise ValueError(f"the ids are not those of {len(ids)} training images")
    return {"ids": ids}


# CH-MNIST


def _ch_mnist(key: Key, data_dir: str | os.PathLike[str] | None) -> Dataset:
    """Colorectal histology (Kather et al., Scientific Reports 6, 27988, 2016), gray, 64x64.

    Fang et al. (USENIX Security 2020) use the csv and a random 4000/1000 split.
    """
    root = _data_dir(data_dir)
    csv = next((p for d in _ch_mnist_folders(root) if (p := d / _CH_MNIST_CSV).is_file()), None)
    tiles = None if csv else _tile_folder(root)
    if csv:
        arrays = cached("ch_mnist", [csv], lambda: _read_ch_mnist_csv(csv))
        note = ""
    elif tiles:
        files = sorted(tiles.glob("0[1-8]_*/*.tif"))
        if not files:
            raise ValueError(
                f"load('ch_mnist'): no tiles 01_TUMOR/*.tif ... 08_EMPTY/*.tif in {tiles}; "
                "unpack the archive again"
            )
        arrays = cached("ch_mnist", files, lambda: _read_ch_mnist_tiles(files))
        note = "; made from the RGB tiles (bilinear), not from the published 64x64 csv"
    else:
        raise FileNotFoundError(
            f"load('ch_mnist'): neither {_CH_MNIST_CSV} nor {_CH_MNIST_TILES}/ is in "
            f"{' or '.join(str(d) for d in _ch_mnist_folders(root))}. Point data_dir or "
            "FEDJAX_ROBUST_DATA at the folder that holds one of them, or fetch it by hand:\n"
            f"  {_CH_MNIST_CSV} from {_KAGGLE} (a free account is needed), "
            f"to be put in {root / 'ch_mnist'}, or\n"
            f"  {_CH_MNIST_TILES}.zip from {_ZENODO}, to be unpacked there"
        )
    train, test = _random_split(key, _unit(arrays["x"]), arrays["y"].astype(np.int32))
    images = len(arrays["y"])
    split = f"random split {len(train['y'])}/{len(test['y'])}"
    if images != _CH_MNIST_IMAGES:
        split += f" of {images:,} images (the published set has {_CH_MNIST_IMAGES:,})"
    return Dataset(train, test, 8, "ch_mnist", split + note, _TISSUES)


def _ch_mnist_folders(root: Path) -> tuple[Path, Path]:
    return root, root / "ch_mnist"


def _tile_folder(root: Path) -> Path | None:
    # Kaggle's copy nests the folder in itself and spells the outer one in lower case.
    for base in _ch_mnist_folders(root):
        for spelling in (_CH_MNIST_TILES, _CH_MNIST_TILES.lower()):
            for folder in (base / spelling / _CH_MNIST_TILES, base / spelling):
                if folder.is_dir():
                    return folder
    return None


def _read_ch_mnist_csv(path: Path) -> Arrays:
    """Columns pixel0000 .. pixel4095 (row by row, 0 .. 255) and label (1 .. 8)."""
    try:
        with path.open(encoding="utf-8") as file:
            header = file.readline(200_000).strip().replace('"', "").split(",")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is no text in UTF-8 ({error}); fetch it again") from error
    if len(header) != 4097 or header[-1] != "label":
        raise ValueError(
            f"{path} must have the 4,097 columns pixel0000,...,pixel4095,label, got {len(header)} "
            f"with the last one named {_beginning(header[-1])}; take {_CH_MNIST_CSV}, not another size"
        )
    table = _text_table(path, np.int32, delimiter=",", skiprows=1)
    x, y = table[:, :-1], table[:, -1]
    if not len(y) or x.min() < 0 or x.max() > 255 or y.min() < 1 or y.max() > 8:
        raise ValueError(
            f"{path} must hold pixels in 0..255 and labels in 1..8; it is damaged, fetch it again"
        )
    return {"x": x.reshape(-1, 64, 64, 1).astype(np.uint8), "y": (y - 1).astype(np.uint8)}


def _text_table(path: Path, dtype: type, **options: Any) -> np.ndarray:
    """Numbers in a text file, (rows, columns); a ValueError that names the file for anything else."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # numpy's of an empty file
            return np.loadtxt(path, dtype, comments=None, encoding="utf-8", ndmin=2, **options)
    except (ValueError, OverflowError, IndexError) as error:
        raise ValueError(f"{path} is damaged ({error}); fetch or unpack it again") from error


def _read_ch_mnist_tiles(files: list[Path]) -> Arrays:
    from PIL import Image

    images = []
    for path in tqdm(files, desc="decoding ch_mnist", delay=1.0, mininterval=1.0, leave=False):
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("error", Image.DecompressionBombWarning)
                with Image.open(path, formats=["TIFF"]) as tile:  # reads the header alone
                    if tile.size != (150, 150):
                        raise ValueError(
                            f"it has {tile.size[0]}x{tile.size[1]} pixels, not 150x150"
                        )
                    gray = tile.convert("L").resize((64, 64), Image.Resampling.BILINEAR)
        except Exception as error:  # PIL's errors are of many kinds
            raise ValueError(f"{path} is no tile ({error}); unpack the archive again") from error
        images.append(np.asarray(gray, np.uint8)[..., None])
    labels = [int(path.parent.name[:2]) - 1 for path in files]
    return {"x": np.stack(images), "y": np.asarray(labels, np.uint8)}


# HAR


def _har(key: Key, data_dir: str | os.PathLike[str] | None) -> Dataset:
    """Human activity recognition with smartphones (Anguita et al., ESANN 2013), 561 features.

    The published split holds out nine users. FLTrust (Cao et al., NDSS 2021) makes each of the 30 users
    a client instead and takes 75 % of each one's examples for training; the test sets are pooled.
    """
    root = _data_dir(data_dir)
    places = (root, root / "har")
    folder = next((p for d in places if (p := d / _HAR_FOLDER).is_dir()), None)
    npz = next((p for d in places if (p := d / _HAR_NPZ).is_file()), None)
    if folder:
        files = {
            f"{kind}_{part}": folder / part / f"{kind}_{part}.txt"
            for part in ("train", "test")
            for kind in ("X", "y", "subject")
        }
        if missing := [str(p.relative_to(folder)) for p in files.values() if not p.is_file()]:
            raise ValueError(f"{folder} lacks {', '.join(missing)}; unpack the archive again")
        arrays = cached("har", list(files.values()), lambda: _read_har_folder(files))
    elif npz:
        arrays = _read_har_npz(npz)
    else:
        raise FileNotFoundError(
            f"load('har'): neither the folder {_HAR_FOLDER!r} nor {_HAR_NPZ} is in "
            f"{' or '.join(str(d) for d in places)}. Point data_dir or FEDJAX_ROBUST_DATA at the folder "
            f"that holds one of them, or fetch the archive from {_UCI} and unpack it (the zip inside "
            f"it, too) in {root}, so that {root / _HAR_FOLDER / 'train' / 'X_train.txt'} is there"
        )
    names, user = np.unique(arrays["user"], return_inverse=True)
    train = _split_inside_users(key, user)
    examples = {"x": arrays["x"], "y": arrays["y"], "user": user.astype(np.int32)}
    examples_train, examples_test = (
        {name: values[rows] for name, values in examples.items()} for rows in (train, ~train)
    )
    note = f"random split {train.sum()}/{(~train).sum()} inside each user"
    if len(names) != _HAR_USERS or len(user) != _HAR_EXAMPLES:
        note = (
            f"{len(names)} of the {_HAR_USERS} users: {len(user):,} of {_HAR_EXAMPLES:,} examples; "
            + note
        )
    return Dataset(examples_train, examples_test, 6, "har", note, _ACTIVITIES)


def _split_inside_users(key: Key, user: np.ndarray) -> np.ndarray:
    """(E,) bool: a random 75 % of each user's examples, rounded up. Users are 0, 1, ..."""
    order = np.lexsort((np.asarray(jax.random.uniform(key, user.shape)), user))
    count = np.bincount(user)
    rank = np.arange(len(user)) - np.repeat(np.cumsum(count) - count, count)
    train = np.zeros(len(user), bool)
    train[order] = rank < np.repeat(-(-3 * count // 4), count)
    return train


def _read_har_folder(files: dict[str, Path]) -> Arrays:
    """Lines of 561 features, labels 1 .. 6 and users 1 .. 30, in two parts that are joined."""

    def read(name: str) -> np.ndarray:
        features = name.startswith("X")
        table = _text_table(files[name], np.float32 if features else np.int32)
        if table.shape[1] != (_HAR_FEATURES if features else 1):
            raise ValueError(
                f"{files[name]} is damaged (it has {table.shape[1]} columns); unpack it again"
            )
        return table

    x, y, user = (
        np.concatenate([read(f"{kind}_{part}") for part in ("train", "test")])
        for kind in ("X", "y", "subject")
    )
    return _checked_har(files["X_train"].parent.parent, x, y.ravel() - 1, user.ravel())


def _read_har_npz(path: Path) -> Arrays:
    """``x_train``, ``y_train`` (0 .. 5), ``subject_train``, and the same for the test part."""
    columns = []
    names = [f"{kind}_{part}" for kind in ("x", "y", "subject") for part in ("train", "test")]
    try:
        arrays = npz.read(path, names, compressed=True)
        for kind, allowed in (("x", "fiu"), ("y", "iu"), ("subject", "iu")):
            for part in ("train", "test"):
                found = arrays[f"{kind}_{part}"]
                if found.dtype.kind not in allowed:
                    word = "numbers" if "f" in allowed else "integers"
                    raise ValueError(f"{kind}_{part} has {found.dtype} in place of {word}")
            columns.append(np.concatenate([arrays[f"{kind}_train"], arrays[f"{kind}_test"]]))
    except ValueError as error:
        raise ValueError(f"{path} is damaged ({error}); fetch it again") from error
    x, y, user = columns
    return _checked_har(path, x, y, user)


def _checked_har(path: Path, x: np.ndarray, y: np.ndarray, user: np.ndarray) -> Arrays:
    if (
        not (len(x) and x.shape == (len(x), _HAR_FEATURES) and y.shape == user.shape == (len(x),))
        or not (np.abs(x) <= 1).all()  # nor NaN
        or not ((y >= 0) & (y < len(_ACTIVITIES)) & (user >= 1) & (user <= _HAR_USERS)).all()
    ):
        raise ValueError(
            f"{path} must hold {_HAR_FEATURES} features in [-1, 1], an activity and a user (1 .. "
            f"{_HAR_USERS}) for each example, got shapes {x.shape}, {y.shape}, {user.shape}; it is "
            "damaged, fetch it again"
        )
    return {"x": x.astype(np.float32), "y": y.astype(np.int32), "user": user.astype(np.int32)}


# Folders and the cache


def _data_dir(data_dir: str | os.PathLike[str] | None) -> Path:
    if data_dir is None:
        default = os.environ.get("TFDS_DATA_DIR") or "~/tensorflow_datasets"
        data_dir = os.environ.get("FEDJAX_ROBUST_DATA") or default
    return checked_path("data_dir", data_dir)


def checked_path(what: str, path: str | os.PathLike[str]) -> Path:
    """An absolute path, "~" expanded; a ValueError in words for what no path can be.

    Raises:
      ValueError: an empty path, one with a NUL, with a name beyond 255 bytes, or of an unknown user.
      TypeError: no path.
    """
    if not isinstance(path, str | os.PathLike) or isinstance(os.fspath(path), bytes):
        raise TypeError(f"{what} needs a path, str or pathlib.Path, got {_beginning(path)}")
    text = os.fspath(path)
    if not text or "\0" in text:
        raise ValueError(f"{what} needs the path of a folder or file, got {_beginning(text)}")
    if any(len(os.fsencode(part)) > 255 for part in Path(text).parts):
        raise ValueError(
            f"{what} needs a path with names of at most 255 bytes, got {_beginning(text)}"
        )
    try:
        return Path(text).expanduser().absolute()
    except RuntimeError as error:
        raise ValueError(f"{what}: {error}, in {_beginning(text)}") from error


def cache_dir() -> Path:
    """Where decoded data are kept: ``FEDJAX_ROBUST_CACHE``, else ``~/.cache/fedjax_robust``.

    What is read from it is believed, so that whoever can write there decides what an experiment gets.
    It need not exist; ``cached`` makes it for the user alone.

    Raises:
      ValueError: another user owns the folder or can write in it.
    """
    folder = checked_path(
        "FEDJAX_ROBUST_CACHE", os.environ.get("FEDJAX_ROBUST_CACHE") or "~/.cache/fedjax_robust"
    )
    try:
        status = folder.stat()
    except OSError:  # not there; or it cannot be reached, of which writing will complain
        return folder
    owned = not hasattr(os, "getuid") or status.st_uid == os.getuid()
    written_by_others = stat.S_IMODE(status.st_mode) & 0o022 if hasattr(os, "getuid") else 0
    if not owned or written_by_others:
        why = "belongs to another user"
        remedy = "set FEDJAX_ROBUST_CACHE to a folder of your own"
        if owned:
            why = "can be written by other users"
            remedy = f"run chmod go-w '{folder}' and empty it, or {remedy}"
        raise ValueError(
            f"the cache folder {folder} {why}, who could change what is read from it; {remedy}"
        )
    return folder


def _unit(x: np.ndarray) -> np.ndarray:
    return x.astype(np.float32) / np.float32(255)


def cached(name: str, files: list[Path], decode: Callable[[], Arrays]) -> Arrays:
    """``decode()``, or what it returned before for the same files.

    The cache file is ``<cache>/<name>-<hash of the files' folder>.npz``, written to a temporary
    file and renamed, so that readers and other writers never see a part of it. It holds a SHA-256
    of its content and the files' paths, sizes and modification times; it is made again when either
    does not fit. If the folder cannot be written, a warning is given and the arrays are returned
    all the same.

    Args:
      name: first part of the file name: at most 100 letters, digits, "_", "-" and ".".
      files: what the arrays depend on; at least one.
      decode: () -> arrays by name, of any dtype but object.

    Raises:
      ValueError: another name, no files, or a cache folder that others own or can write.
    """
    if not isinstance(name, str) or not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,99}", name):
        raise ValueError(
            "cached needs a name of at most 100 letters, digits, '_', '-' and '.', got "
            f"{_beginning(name)}"
        )
    if not files:
        raise ValueError("cached needs at least one file that the arrays depend on, got none")
    stats = [(str(f), f.stat().st_size, f.stat().st_mtime_ns) for f in files]
    source = json.dumps(["fedjax_robust cache 1", stats])
    folder_hash = hashlib.sha256(str(files[0].parent).encode()).hexdigest()[:12]
    path = cache_dir() / f"{name}-{folder_hash}.npz"
    arrays = _read_cache(path, source)
    if arrays is None:
        arrays = decode()
        _write_cache(path, source, arrays)
    return arrays


def _checksum(source: str, arrays: Arrays) -> str:
    digest = hashlib.sha256(source.encode())
    for name, array in sorted(arrays.items()):
        digest.update(f"{name} {array.dtype.str} {array.shape}".encode())
        digest.update(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)
    return digest.hexdigest()


def _read_cache(path: Path, source: str) -> Arrays | None:
    """The cached arrays; None if there are none, if they are of another source or damaged."""
    try:
        if hasattr(os, "getuid") and path.stat().st_uid != os.getuid():
            raise ValueError("it belongs to another user")
        arrays = npz.read(path)
        same_source = str(arrays.pop("_source")) == source
        checksum = str(arrays.pop("_sha256"))
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, ValueError, KeyError) as error:
        warnings.warn(f"the cache file {path} is damaged ({error}); making it again", stacklevel=2)
        return None
    if not same_source:
        return None
    if _checksum(source, arrays) != checksum:
        warnings.warn(f"the cache file {path} fails its checksum; making it again", stacklevel=2)
        return None
    return arrays


def _write_cache(path: Path, source: str, arrays: Arrays) -> None:
    content: dict[str, Any] = {
        **arrays,
        "_source": np.asarray(source),
        "_sha256": np.asarray(_checksum(source, arrays)),
    }
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)  # whatever the umask
        with written_atomically(path) as file:
            np.savez(file, **content)
    except OSError as error:
        warnings.warn(
            f"cannot write the cache file {path} ({error}), so decoding is repeated next time; "
            "set FEDJAX_ROBUST_CACHE to a folder that can be written",
            stacklevel=2,
        )
