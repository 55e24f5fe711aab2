"""Data sets prepared by tensorflow_datasets."""

from __future__ import annotations

import importlib.util
import json
import os
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from fedjax_robust.data.sources.cache import cached
from fedjax_robust.data.sources.files import Arrays, Dataset, beginning, data_folder, unit_range

_PUBLISHED = {  # training and test examples
    "mnist": (60_000, 10_000),
    "fashion_mnist": (60_000, 10_000),
    "cifar10": (50_000, 10_000),
}
_IMAGES = {"mnist": (28, 28, 1), "fashion_mnist": (28, 28, 1), "cifar10": (32, 32, 3)}


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
        raise TypeError(f"prepare needs the name of a data set, got {beginning(name)}")
    if name not in (*_PUBLISHED, "tiny_shakespeare"):
        raise ValueError(
            f"prepare: name must be one of {', '.join(_PUBLISHED)}, tiny_shakespeare, got "
            f"{beginning(name)}; the other data sets need no preparation or are fetched by hand (see "
            "load)"
        )
    root = data_folder(data_dir)
    if tfds_folder(name, root) is None:
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
    folder = tfds_folder(name, root)
    if folder is None:
        raise FileNotFoundError(f"prepare({name!r}): TFDS left no prepared data in {root}")
    return folder


# TFDS


def tfds_dataset(name: str, data_dir: str | os.PathLike[str] | None) -> Dataset:
    """A data set that TFDS has prepared, of the given folder or of the default one.

    FileNotFoundError, with what to do, if it is not there.
    """
    root = data_folder(data_dir)
    folder = tfds_folder(name, root)
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
        train={"x": unit_range(arrays["x_train"]), "y": arrays["y_train"].astype(np.int32)},
        test={"x": unit_range(arrays["x_test"]), "y": arrays["y_test"].astype(np.int32)},
        num_classes=len(arrays["class_names"]),
        name=name,
        note=note,
        class_names=tuple(str(c) for c in arrays["class_names"]),
    )


def _prepare_command(name: str, root: Path) -> str:
    return f"  python -c \"from fedjax_robust.data import prepare; prepare('{name}', '{root}')\""


def tfds_folder(name: str, root: Path) -> Path | None:
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
                        f"{name} names the class {beginning(class_name)}, and TFDS would import its "
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
      data_dir: the folder of the data sets; default FEDJAX_ROBUST_DATA, else where TFDS keeps its own.

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
    root = data_folder(data_dir)
    folder = tfds_folder("cifar10", root)
    if folder is None:
        tfds_dataset("cifar10", data_dir)  # says what to do
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
