"""Human activity recognition from UCI's files."""

from __future__ import annotations

import os
from pathlib import Path

import jax
import numpy as np

from fedjax_robust import npz
from fedjax_robust.data.sources.cache import cached
from fedjax_robust.data.sources.files import Arrays, Dataset, data_folder, text_table
from fedjax_robust.types import Key

_ACTIVITIES = (
    "walking",
    "walking upstairs",
    "walking downstairs",
    "sitting",
    "standing",
    "laying",
)
_HAR_USERS, _HAR_EXAMPLES, _HAR_FEATURES = 30, 10_299, 561
_HAR_FOLDER = "UCI HAR Dataset"
_HAR_NPZ = "uci_har.npz"
_UCI = "https://archive.ics.uci.edu/dataset/240"


# HAR


def har_dataset(key: Key, data_dir: str | os.PathLike[str] | None) -> Dataset:
    """Human activity recognition with smartphones (Anguita et al., ESANN 2013), 561 features.

    The published split holds out nine users. FLTrust (Cao et al., NDSS 2021) makes each of the 30 users
    a client instead and takes 75 % of each one's examples for training; the test sets are pooled.
    """
    root = data_folder(data_dir)
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
        table = text_table(files[name], np.float32 if features else np.int32)
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
