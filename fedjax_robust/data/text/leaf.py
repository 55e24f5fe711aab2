"""Files in LEAF's layout: Caldas et al., "LEAF: A Benchmark for Federated Settings", 2018
(https://arxiv.org/abs/1812.01097), and FedProx's.
"""

from __future__ import annotations

import json
import math
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from fedjax_robust import checks
from fedjax_robust.data.sources.files import (
    Arrays,
    Dataset,
    beginning,
    checked_path,
)
from fedjax_robust.data.text.words import (
    PADDING,
    SPECIAL,
    UNKNOWN,
    Text,
    _most_frequent,
    _places,
    check_sizes,
    text_dataset,
    tokenize,
)

# LEAF


class _User(NamedTuple):
    """One user of a LEAF file."""

    where: str
    """File and user, for messages."""
    x: list[Any]
    y: list[Any]


def leaf_words(
    train: str | os.PathLike[str],
    test: str | os.PathLike[str],
    *,
    length: int = 64,
    vocabulary_size: int = 10_000,
) -> Dataset:
    """Words by user from files in LEAF's layout, as its Reddit: Caldas et al., "LEAF: A Benchmark for
    Federated Settings", 2018, ``data/reddit``.

    Each ``.json`` file holds ``{"users": [...], "num_samples": [...], "user_data": {user: {"x": [...],
    "y": [...]}}}``. Every x is one comment: its words, or, as LEAF writes them, lists of 10 words each,
    ``<BOS>`` first, then ``<EOS>`` and ``<PAD>``. These three marks are left out, comments become
    sentences, and sentences sequences of ``length`` words; the targets in y would be the same words
    again and are not read.

    Args:
      train: a file, or a folder of ``.json`` files.
      test: the same.
      length: T >= 1, words in a sequence.
      vocabulary_size: V >= 4, see ``vocabulary``; LEAF's own vocabulary file is not read.

    Returns:
      See ``text_dataset``.

    Raises:
      FileNotFoundError: no such file, or no ``.json`` in the folder.
      ValueError: a file in another layout, such as Sent140's, or an argument out of range.
    """
    check_sizes("leaf_words", length, vocabulary_size)
    checked_path("leaf_words", test)

    def sentences(path: str | os.PathLike[str]) -> Text:
        return {
            name: [_comment(x, name, user.where) for x in user.x]
            for name, user in _leaf("leaf_words", path).items()
        }

    parts = sentences(train), sentences(test)
    return text_dataset(*parts, length, vocabulary_size, "leaf_words", _leaf_note(train, test))


def _comment(x: Any, user: str, where: str) -> list[str]:
    if _is_tweet(x, user):
        raise ValueError(
            f"{where}: leaf_words needs words, got a row of Sent140, {beginning(x)}; it is for "
            "leaf_sentiment"
        )
    if isinstance(x, list) and all(isinstance(part, list) for part in x):
        x = [word for part in x for word in part]
    if not isinstance(x, list) or not all(isinstance(word, str) for word in x):
        raise ValueError(
            f"{where}: leaf_words needs every x to be a list of words or a list of such lists, got "
            f"{beginning(x)}; {_right_loader(x)}"
        )
    return [word for word in x if word not in ("<BOS>", "<EOS>", "<PAD>")]


def _is_tweet(x: Any, user: str) -> bool:
    """A row of Sent140: id, date, query, user, text and, in LEAF's, "training" or "test"."""
    return (
        isinstance(x, list)
        and len(x) in (5, 6)
        and all(isinstance(part, str) for part in x)
        and x[3].strip() == user.strip()
    )


def _right_loader(x: Any) -> str:
    """Which loader an x is for."""
    if isinstance(x, str):
        if x.lower().endswith((".jpg", ".jpeg", ".png")):
            return (
                "names of image files, as in LEAF's CelebA, are for none: read the images, and make "
                "clients of them with by_user"
            )
        return "a file of strings is for leaf_characters"
    flat = x
    while isinstance(flat, list) and flat:
        flat = flat[0]
    if isinstance(flat, str):
        return "a file of words is for leaf_words, rows of Sent140 are for leaf_sentiment"
    if isinstance(flat, int | float):
        return "a file of numbers is for leaf_numbers"
    return "fetch or make it again"


def leaf_characters(train: str | os.PathLike[str], test: str | os.PathLike[str]) -> Dataset:
    """Next-character prediction from files in LEAF's layout, as its Shakespeare.

    The layout is that of ``leaf_words``, but every x is a string of T characters (80 in LEAF's) and y the
    character that follows. Only that one is predicted: ``token_mask`` is 1 at the last place alone, since
    the windows of a user overlap.

    Args:
      train: a file, or a folder of ``.json`` files; its characters make the vocabulary.
      test: the same.

    Returns:
      ``train`` and ``test`` with ``x``, ``y`` and ``token_mask`` (E, T) and ``user`` (E,), as in
      ``text_dataset``; the vocabulary's special words are there, too.

    Raises:
      FileNotFoundError: no such file, or no ``.json`` in the folder.
      ValueError: a file in another layout, or strings of unequal lengths.
    """
    what = "leaf_characters"
    checked_path(what, test)
    parts = _leaf(what, train), _leaf(what, test)
    users = _numbered(*parts)
    windows: list[list[tuple[int, str]]] = []
    for part in parts:
        windows.append([])
        for name, user in part.items():
            for x, y in zip(user.x, user.y, strict=True):
                if not (isinstance(x, str) and isinstance(y, str) and x and len(y) == 1):
                    hint = "fetch or make it again"
                    if not isinstance(x, str) or x.lower().endswith((".jpg", ".jpeg", ".png")):
                        hint = _right_loader(x)
                    raise ValueError(
                        f"{user.where}: leaf_characters needs strings x and single characters y, got "
                        f"{beginning(x)} and {beginning(y)}; {hint}"
                    )
                windows[-1].append((users[name], x + y))
    lengths = {len(window) - 1 for part in windows for _, window in part}
    if len(lengths) != 1 or not all(windows):
        raise ValueError(
            "leaf_characters needs examples in train and test, all x of one length, got lengths "
            f"{sorted(lengths)} and {[len(part) for part in windows]} examples"
        )
    words = _most_frequent((window for _, window in windows[0]), 2**31)
    places, unknown = _places(words), SPECIAL.index(UNKNOWN)

    def encoded(part: list[tuple[int, str]]) -> Arrays:
        text = np.array([[places.get(c, unknown) for c in window] for _, window in part], np.int32)
        mask = np.zeros(text[:, 1:].shape, np.float32)
        mask[:, -1] = 1
        user = np.array([user for user, _ in part], np.int32)
        return {"x": text[:, :-1], "y": text[:, 1:], "token_mask": mask, "user": user}

    train_part, test_part = map(encoded, windows)
    return Dataset(train_part, test_part, len(words), what, _leaf_note(train, test), words)


def leaf_sentiment(
    train: str | os.PathLike[str],
    test: str | os.PathLike[str],
    *,
    length: int = 25,
    vocabulary_size: int = 10_000,
) -> tuple[Dataset, tuple[str, ...]]:
    """Is a tweet negative or positive: files in LEAF's layout, as its Sent140.

    The layout is that of ``leaf_words``, but every x is a row of the published table (id, date, query,
    user, text and, in LEAF's, which part of the table it was in), of which the text is taken, and y is 0
    for negative, 1 (or 4, as published) for positive.

    Args:
      train: a file, or a folder of ``.json`` files; its words make the vocabulary.
      test: the same.
      length: T >= 1, words of a tweet; longer ones lose their end, shorter ones are padded with 0 after
        it. LEAF's models take 25.
      vocabulary_size: V >= 4, see ``vocabulary``.

    Returns:
      The data set, ``train`` and ``test`` with ``x`` (E, T) int32 word ids, ``y`` (E,) int32 and ``user``
      (E,) int32 as in ``leaf_numbers``; and the vocabulary, at most V words.

    Raises:
      FileNotFoundError: no such file, or no ``.json`` in the folder.
      ValueError: a file in another layout, or an argument out of range.
    """
    what = "leaf_sentiment"
    check_sizes(what, length, vocabulary_size)
    length = int(length)
    checked_path(what, test)
    parts = _leaf(what, train), _leaf(what, test)
    users = _numbered(*parts)
    tweets: list[list[tuple[list[str], int, int]]] = []  # words, label, user
    for part in parts:
        tweets.append([])
        for name, user in part.items():
            for x, y in zip(user.x, user.y, strict=True):
                if not (isinstance(x, list) and len(x) in (5, 6) and isinstance(x[4], str)):
                    raise ValueError(
                        f"{user.where}: leaf_sentiment needs every x to be a row id, date, query, user, "
                        f"text, got {beginning(x)}; {_right_loader(x)}"
                    )
                if isinstance(y, bool) or y not in (0, 1, 4, "0", "1", "4"):
                    raise ValueError(
                        f"{user.where}: leaf_sentiment needs labels y of 0 for negative and 1 or 4 for "
                        f"positive, got {beginning(y)}"
                    )
                tweets[-1].append((tokenize(x[4]), int(int(y) > 0), users[name]))
    if not all(tweets):
        raise ValueError(f"{what} needs examples in train and test, got none in one of them")
    words = _most_frequent((tweet for tweet, _, _ in tweets[0]), int(vocabulary_size))
    places, unknown = _places(words), SPECIAL.index(UNKNOWN)

    def encoded(part: list[tuple[list[str], int, int]]) -> Arrays:
        x = np.full((len(part), length), SPECIAL.index(PADDING), np.int32)
        for row, (tweet, _, _) in zip(x, part, strict=True):
            ids = [places.get(word, unknown) for word in tweet[:length]]
            row[: len(ids)] = ids
        y, user = np.array([(y, user) for _, y, user in part], np.int32).T.copy()
        return {"x": x, "y": y, "user": user}

    note = f"{_leaf_note(train, test)}; {len(words):,} words"
    classes = ("negative", "positive")
    return Dataset(encoded(tweets[0]), encoded(tweets[1]), 2, what, note, classes), words


def leaf_numbers(
    train: str | os.PathLike[str],
    test: str | os.PathLike[str],
    *,
    shape: Sequence[int] | None = None,
    num_classes: int | None = None,
) -> Dataset:
    """Examples that are numbers, from files in LEAF's layout: its FEMNIST and Synthetic, FedProx's
    Synthetic, MNIST and FEMNIST (Li et al., "Federated Optimization in Heterogeneous Networks", 2020).

    The layout is that of ``leaf_words``, but every x is a number or a list of numbers, also nested, all
    of one shape, and y is a label, 0, 1, 2, ... Pixels come as they are written, in LEAF's FEMNIST in
    [0, 1]: 784 in a list, which ``shape=(28, 28, 1)`` makes images::

        femnist = leaf_numbers("data/train", "data/test", shape=(28, 28, 1), num_classes=62)
        data = by_user(femnist.train["user"], femnist.train, jax.random.key(0))

    Args:
      train: a file, or a folder of ``.json`` files.
      test: the same.
      shape: what each x becomes, of as many numbers; None = as it is written.
      num_classes: L; None = the largest label in train and test plus one.

    Returns:
      ``train`` and ``test`` with ``x`` (E, *shape) float32, ``y`` (E,) int32 and ``user`` (E,) int32, the
      place of the user among all names in alphabetical order. Users without examples are left out.

    Raises:
      FileNotFoundError: no such file, or no ``.json`` in the folder.
      ValueError: a file in another layout, shapes that differ, numbers that are not finite, labels that
        are no integers in [0, L), no examples in train or test, or an argument out of range.
    """
    what = "leaf_numbers"
    if num_classes is not None:
        checks.static_count(what, 1, num_classes=num_classes)
    wanted = None if shape is None else _shape(what, shape)
    checked_path(what, test)
    parts = _leaf(what, train), _leaf(what, test)
    users = _numbered(*parts)
    written: dict[tuple[int, ...], str] = {}  # the shapes that were met, and where

    def arrays(part: dict[str, _User], path: str | os.PathLike[str]) -> Arrays:
        own: list[tuple[np.ndarray, np.ndarray, int]] = []
        for name, user in part.items():
            if user.x:
                x = _numbers(what, user)
                written.setdefault(x.shape[1:], user.where)
                if len(written) > 1:
                    (first, where), (other, _) = written.items()
                    raise ValueError(
                        f"{user.where}: leaf_numbers needs all x of one shape, got {other}, and {first} "
                        f"in {where}"
                    )
                own.append((x, _class_labels(what, user, num_classes), users[name]))
        if not own:
            raise ValueError(f"{what} needs examples in train and test, got none in {path}")
        x = np.concatenate([x for x, _, _ in own])
        if wanted is not None:
            if math.prod(wanted) != math.prod(x.shape[1:]):
                raise ValueError(
                    f"{what} needs a shape of as many numbers as an x has, got shape={wanted} for x of "
                    f"shape {x.shape[1:]}"
                )
            x = x.reshape(-1, *wanted)
        return {
            "x": x,
            "y": np.concatenate([y for _, y, _ in own]),
            "user": np.repeat(
                np.array([u for _, _, u in own], np.int32), [len(y) for _, y, _ in own]
            ),
        }

    train_part, test_part = arrays(parts[0], train), arrays(parts[1], test)
    if num_classes is None:
        num_classes = 1 + int(max(train_part["y"].max(), test_part["y"].max()))
    return Dataset(train_part, test_part, int(num_classes), what, _leaf_note(train, test))


def _shape(what: str, shape: Any) -> tuple[int, ...]:
    if isinstance(shape, str) or not isinstance(shape, Sequence | np.ndarray):
        raise TypeError(f"{what} needs a shape such as (28, 28, 1), got {beginning(shape)}")
    for size in shape:
        checks.static_count(what, 1, shape=size)
    return tuple(map(int, shape))


def _numbers(what: str, user: _User) -> np.ndarray:
    """The x of a user, (e, ...) float32."""
    try:
        values = np.asarray(user.x)
    except ValueError as error:
        raise ValueError(
            f"{user.where}: {what} needs all x of one shape, got lists of unequal lengths ({error})"
        ) from error
    if values.dtype.kind not in "iuf":
        wrong = next((x for x in user.x if np.asarray(x).dtype.kind not in "iuf"), user.x[0])
        raise ValueError(
            f"{user.where}: {what} needs every x to be numbers, got {beginning(wrong)}; "
            f"{_right_loader(wrong)}"
        )
    with np.errstate(over="ignore"):
        result = values.astype(np.float32)
    if not np.isfinite(result).all():
        raise ValueError(
            f"{user.where}: {what} needs finite numbers x in the range of float32, got NaN or infinite "
            "ones"
        )
    if not result[0].size:
        raise ValueError(f"{user.where}: {what} needs numbers in every x, got an empty list")
    return result


def _class_labels(what: str, user: _User, num_classes: int | None) -> np.ndarray:
    """The y of a user, (e,) int32; 1.0 is written for 1 by some."""
    try:
        values = np.asarray(user.y)
    except ValueError:
        values = np.asarray(None)
    most = np.iinfo(np.int32).max if num_classes is None else int(num_classes) - 1
    if (
        values.ndim != 1
        or values.dtype.kind not in "iuf"
        or not np.all((values == np.floor(values)) & (values >= 0) & (values <= most))
    ):
        wanted = "0, 1, 2, ..." if num_classes is None else f"in 0 .. {most}"
        raise ValueError(
            f"{user.where}: {what} needs labels y that are integers {wanted}, got {beginning(user.y)}"
        )
    return values.astype(np.int32)


def _leaf_note(train: str | os.PathLike[str], test: str | os.PathLike[str]) -> str:
    return f"LEAF files {Path(train).name} and {Path(test).name}"


def _numbered(train: Mapping[str, Any], test: Mapping[str, Any]) -> dict[str, int]:
    return {user: i for i, user in enumerate(sorted({*train, *test}))}


def _leaf(what: str, path: str | os.PathLike[str]) -> dict[str, _User]:
    """The users of a file or of all files of a folder, by name."""
    path = checked_path(what, path)
    files = sorted(path.glob("*.json")) if path.is_dir() else [path]
    if not files or not all(file.is_file() for file in files):
        raise FileNotFoundError(
            f"there is no LEAF file {path}, or no .json in it; LEAF's preprocess.sh writes data/train "
            "and data/test"
        )
    found: dict[str, _User] = {}
    for file in files:
        for name, user in _leaf_file(file).items():
            if name in found:
                raise ValueError(f"{file}: user {name!r} is in two files of {path}; remove one")
            found[name] = user
    return found


def _leaf_file(file: Path) -> dict[str, _User]:
    try:
        content = json.loads(file.read_text("utf-8"), object_pairs_hook=_each_once)
        users, data = content["users"], content["user_data"]
        if not isinstance(users, list) or not isinstance(data, dict):
            raise TypeError(
                f"users is a {type(users).__name__} and user_data a {type(data).__name__}, not a list "
                "and an object"
            )
        if wrong := [u for u in users if isinstance(u, bool) or not isinstance(u, str | int)]:
            raise TypeError(f"users holds {beginning(wrong[0])}, which is no name")
        names = [str(user) for user in users]  # JSON's objects have no integers as keys
        if twice := [name for name, number in Counter(names).items() if number > 1]:
            raise ValueError(f"user {twice[0]!r} is listed twice")
        found = {
            name: _User(f"{file}, user {name!r}", data[name]["x"], data[name]["y"])
            for name in names
        }
        # LEAF's split lists users of one example in neither part, and leaves them empty lists.
        if lost := [name for name in data if name not in found and any(data[name].values())]:
            raise ValueError(f"user {lost[0]!r} has data, but is not among the users")
        numbers = content.get("num_samples")
        if numbers is not None and (
            not isinstance(numbers, list)
            or len(numbers) != len(names)
            or not all(isinstance(n, int) for n in numbers)
        ):
            raise ValueError(
                f"num_samples is not a list of one number for each of {len(names)} users"
            )
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError, MemoryError) as error:
        raise ValueError(
            f"{file} is not in LEAF's layout, users and user_data with x and y for each user "
            f"({type(error).__name__}: {error}); fetch or make it again"
        ) from error
    for name, user in found.items():
        if not (
            isinstance(user.x, list) and isinstance(user.y, list) and len(user.x) == len(user.y)
        ):
            raise ValueError(
                f"{file}: user {name!r} needs lists x and y of one length, got {beginning(user.x)} and "
                f"{beginning(user.y)}"
            )
    # LEAF's Reddit, whose y are objects, writes the number over all parts into each of them.
    labels = [y for user in found.values() for y in user.y]
    in_parts = bool(labels) and all(isinstance(y, dict) for y in labels)
    for (name, user), number in zip(found.items(), numbers or [], strict=False):
        if number != len(user.x) and not (in_parts and number > len(user.x)):
            raise ValueError(
                f"{file}: num_samples of user {name!r} is {number}, but there are {len(user.x)} "
                "examples; the file is cut or was changed, fetch or make it again"
            )
    return found


def _each_once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object of JSON, in which Python's reader would keep the last of several equal names."""
    result = dict(pairs)
    if len(result) != len(pairs):
        names = Counter(name for name, _ in pairs)
        raise ValueError(f"the name {names.most_common(1)[0][0]!r} is there twice in one object")
    return result
