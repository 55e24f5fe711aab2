"""Text for next-word prediction: words, vocabularies and sequences; corpora by user.

A text is what its users wrote: each one's sentences, which are lists of words. Every user's sentences
are concatenated, with ``<eos>`` after each, and cut into sequences of ``length`` words, which are the
examples (Bagdasaryan et al., "How To Backdoor Federated Learning", AISTATS 2020, section V-B, where T =
64, and users are clients)::

    plays = load_text("shakespeare", length=64, vocabulary_size=5000)
    data = partition.by_user(plays.train["user"], plays.train, jax.random.key(0))
    task = next_word(models.WordLSTM(plays.num_classes), plays.train["x"][:1])
    sentence = word_ids("the wine from venice is sweet", plays.class_names)

====================  ==============================================================  ================
``load_text``         from                                                            users
====================  ==============================================================  ================
``shakespeare``       ``shakespeare_roles.npz`` in the data folder: 37 plays           1,330 roles
``tiny_shakespeare``  TFDS, prepared as array_record: 40,000 lines                     its speakers
====================  ==============================================================  ================

``leaf_words`` and ``leaf_characters`` read files in the layout of LEAF. Nothing is downloaded.
"""

from __future__ import annotations

import json
import os
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from fedjax_robust.data.sources import Arrays, Dataset, _data_dir, _tfds_folder

Text = Mapping[str, Sequence[Sequence[str]]]
"""user -> sentences, each a list of words."""

PADDING, UNKNOWN, END = "<pad>", "<unk>", "<eos>"
SPECIAL = (PADDING, UNKNOWN, END)
"""The first words of every vocabulary, ids 0, 1, 2: padding, any word that is not in the vocabulary, and
the end of a sentence."""
TEXTS = ("shakespeare", "tiny_shakespeare")
"""The names that ``load_text`` knows."""

_ROLES = "shakespeare_roles.npz"
_WORD = re.compile(r"\w+(?:'\w+)*|[^\w\s]")


def tokenize(text: str) -> list[str]:
    """Lower-case words and single punctuation marks: "Who's there?" -> who's, there, ?

    A word is a run of letters, digits and underscores, also with apostrophes inside; white space
    separates and is lost.
    """
    return _WORD.findall(text.lower())


def vocabulary(sentences: Iterable[Sequence[str]], size: int) -> tuple[str, ...]:
    """``<pad>``, ``<unk>``, ``<eos>`` and the most frequent words, by falling frequency.

    Equally frequent words are in alphabetical order. A word's place is its id.

    Args:
      sentences: lists of words.
      size: V, words at most, with the three special ones; >= 4.

    Raises:
      ValueError: size < 4.
    """
    if size < len(SPECIAL) + 1:
        raise ValueError(f"vocabulary needs size >= {len(SPECIAL) + 1}, got {size}")
    counts = Counter(word for sentence in sentences for word in sentence)
    for word in SPECIAL:
        counts.pop(word, None)
    frequent = sorted(counts, key=lambda word: (-counts[word], word))
    return (*SPECIAL, *frequent[: size - len(SPECIAL)])


def word_ids(text: str | Sequence[str], words: Sequence[str]) -> np.ndarray:
    """The ids of a sentence whose words must all be known, such as an attacker's trigger sentence.

    Args:
      text: a sentence, which ``tokenize`` splits, or its words.
      words: the vocabulary, (V,); ``Dataset.class_names``.

    Returns:
      (L,) int32.

    Raises:
      ValueError: a word is not in the vocabulary, or there is none.
    """
    sentence = tokenize(text) if isinstance(text, str) else list(text)
    places = {word: i for i, word in enumerate(words)}
    if missing := sorted({*sentence} - {*places}):
        raise ValueError(
            f"word_ids: {', '.join(missing)} not among the {len(places):,} words of the vocabulary; "
            "choose other words, or a larger vocabulary"
        )
    if not sentence:
        raise ValueError(f"word_ids needs a sentence of at least one word, got {text!r}")
    return np.array([places[word] for word in sentence], np.int32)


def sequences(sentences: Sequence[Sequence[int]], length: int) -> Arrays:
    """One user's sentences as sequences: every word, and the end of every sentence, is predicted once.

    The sentences, each with ``<eos>`` after it, are concatenated behind one ``<eos>`` and cut into
    sequences of ``length`` words. So that nothing comes after the end, and an attacker's words behind a
    context follow it directly, the padding is in front of the first sequence.

    Args:
      sentences: word ids; at least one sentence.
      length: T >= 1.

    Returns:
      ``x`` (S, T) int32, ``y`` (S, T) int32, the words that follow, and ``token_mask`` (S, T) float32, 0
      for the padding, with S = ceil(words / T), where the ends of sentences are words.

    Raises:
      ValueError: no sentence, or length < 1.
    """
    if length < 1 or not sentences:
        raise ValueError(
            f"sequences needs length >= 1 and sentences, got {length=} and {len(sentences)}"
        )
    end, padding = SPECIAL.index(END), SPECIAL.index(PADDING)
    words = [word for sentence in sentences for word in (*sentence, end)]
    number = -(-len(words) // length)
    pads = number * length - len(words)
    text = np.array([*[padding] * pads, end, *words], np.int32)
    mask = (np.arange(number * length) >= pads).astype(np.float32)
    return {
        "x": text[:-1].reshape(number, length),
        "y": text[1:].reshape(number, length),
        "token_mask": mask.reshape(number, length),
    }


def text_dataset(
    train: Text, test: Text, length: int, vocabulary_size: int, name: str, note: str
) -> Dataset:
    """A corpus as sequences of word ids.

    Args:
      train: user -> sentences. Its words make the vocabulary.
      test: the same, of some or all of these users, or others.
      length: T >= 1, words in a sequence.
      vocabulary_size: V >= 4, see ``vocabulary``; all other words become ``<unk>``.
      name: the corpus.
      note: where it comes from and how it was split; the share of unknown words is added.

    Returns:
      ``train`` and ``test`` with ``x``, ``y`` and ``token_mask`` (E, T) as in ``sequences``, and
      ``user`` (E,) int32, the place of the user among all names in alphabetical order; ``num_classes``
      is V, ``class_names`` the vocabulary. Users without words are left out.

    Raises:
      ValueError: an argument out of range, or no words in train or test.
    """
    words = vocabulary((s for sentences in train.values() for s in sentences), vocabulary_size)
    places = {word: i for i, word in enumerate(words)}
    unknown = places[UNKNOWN]
    users = {user: i for i, user in enumerate(sorted({*train, *test}))}

    def encoded(text: Text) -> Arrays:
        parts = []
        for user in sorted(text):
            ids = [[places.get(word, unknown) for word in s] for s in text[user] if s]
            if ids:
                own = sequences(ids, length)
                parts.append(own | {"user": np.full(len(own["x"]), users[user], np.int32)})
        if not parts:
            raise ValueError(
                f"text_dataset needs words in train and test, got none in one of {name}"
            )
        return {key: np.concatenate([part[key] for part in parts]) for key in parts[0]}

    parts = encoded(train), encoded(test)
    predicted = parts[1]["y"][parts[1]["token_mask"] > 0]
    note += f"; {len(words):,} words, {np.mean(predicted == unknown):.1%} of the test words unknown"
    return Dataset(*parts, len(words), name, note, words)


def load_text(
    name: str,
    *,
    length: int = 64,
    vocabulary_size: int = 10_000,
    data_dir: str | os.PathLike[str] | None = None,
) -> Dataset:
    """Load one of ``TEXTS``.

    ``shakespeare`` has a client for each role of each play, as LEAF's Shakespeare in kind, not its split:
    of a role with n speeches the last floor(n / 5) are for testing. A sentence is a speech.
    ``tiny_shakespeare`` has a client for each name in front of a speech, and its published training and
    test parts (the validation part is left out).

    Args:
      name: see the table on top of this module.
      length: T >= 1, words in a sequence.
      vocabulary_size: V >= 4, see ``vocabulary``.
      data_dir: as in ``load``.

    Returns:
      See ``text_dataset``.

    Raises:
      ValueError: unknown name, an argument out of range, or a file that is not in its layout.
      FileNotFoundError: the data are not there; the message says where it looked.
    """
    root = _data_dir(data_dir)
    match name:
        case "shakespeare":
            train, test, note = _roles(root)
        case "tiny_shakespeare":
            train, test, note = _tiny_shakespeare(root)
        case _:
            raise ValueError(f"load_text: there is no text {name!r}; known are {', '.join(TEXTS)}")
    return text_dataset(train, test, length, vocabulary_size, name, note)


def _roles(root: Path) -> tuple[Text, Text, str]:
    path = next((p for d in (root, root / "shakespeare") if (p := d / _ROLES).is_file()), None)
    if path is None:
        raise FileNotFoundError(
            f"load_text('shakespeare'): {_ROLES} is not in {root}. Point data_dir or "
            "FEDJAX_ROBUST_DATA at the folder that holds it; or make it of any text by role, with the "
            "arrays text (bytes of all speeches, UTF-8), offsets (speeches + 1,), speech_role "
            "(speeches,) and role_names; or take tiny_shakespeare, which TFDS has"
        )
    try:
        with np.load(path, allow_pickle=False) as file:
            content, offsets = file["text"].tobytes(), file["offsets"]
            roles, names = file["speech_role"], file["role_names"]
        speeches = [content[start:end].decode() for start, end in pairwise(offsets)]
        said: dict[str, list[list[str]]] = {str(name): [] for name in names}
        for role, speech in zip(roles, speeches, strict=True):
            said[str(names[role])].append(tokenize(speech))
    except Exception as error:
        raise ValueError(f"{path} is damaged ({error}); fetch or make it again") from error
    train = {role: own[: len(own) - len(own) // 5] for role, own in said.items()}
    test = {role: own[len(own) - len(own) // 5 :] for role, own in said.items()}
    note = f"{len(said):,} roles, the last fifth of each one's speeches for testing"
    return train, test, note


def _tiny_shakespeare(root: Path) -> tuple[Text, Text, str]:
    folder = _tfds_folder("tiny_shakespeare", root)
    if folder is None:
        raise FileNotFoundError(
            f"load_text('tiny_shakespeare'): found no prepared data in {root / 'tfds'} or {root}. "
            "Point data_dir or FEDJAX_ROBUST_DATA at the folder that holds them, or fetch them:\n"
            '  pip install "fedjax_robust[tfds-prepare]"\n'
            "  python -c \"from fedjax_robust.data import prepare; prepare('tiny_shakespeare', "
            f"'{root}')\""
        )
    import tensorflow_datasets as tfds

    builder = tfds.builder_from_directory(str(folder))
    train, test = (
        by_speaker(builder.as_data_source(split=part)[0]["text"].decode())
        for part in ("train", "test")
    )
    return train, test, f"{len({*train, *test})} speakers, published split"


def by_speaker(play: str) -> dict[str, list[list[str]]]:
    """Speaker -> speeches as lists of words, of a play in paragraphs "NAME:" newline, lines.

    A paragraph that does not start so, as where a text was cut, belongs to nobody and is left out.
    """
    said: dict[str, list[list[str]]] = {}
    for paragraph in play.split("\n\n"):
        speaker, _, lines = paragraph.strip().partition("\n")
        if speaker.endswith(":") and lines:
            said.setdefault(speaker[:-1], []).append(tokenize(lines))
    return said


# LEAF


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
      ValueError: a file in another layout, or an argument out of range.
    """

    def sentences(path: str | os.PathLike[str]) -> Text:
        return {
            user: [_comment(x, where) for x, _ in examples]
            for user, (where, examples) in _leaf(path).items()
        }

    note = f"LEAF files {Path(train).name} and {Path(test).name}"
    return text_dataset(
        sentences(train), sentences(test), length, vocabulary_size, "leaf_words", note
    )


def _comment(x: Any, where: str) -> list[str]:
    if isinstance(x, list) and all(isinstance(part, list) for part in x):
        x = [word for part in x for word in part]
    if not isinstance(x, list) or not all(isinstance(word, str) for word in x):
        raise ValueError(
            f"{where}: leaf_words needs every x to be a list of words or a list of such lists, got "
            f"{_shown(x)}; a file of strings is for leaf_characters"
        )
    return [word for word in x if word not in ("<BOS>", "<EOS>", "<PAD>")]


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
    parts = _leaf(train), _leaf(test)
    users = {user: i for i, user in enumerate(sorted({*parts[0], *parts[1]}))}
    windows: list[list[tuple[int, str]]] = []
    for part in parts:
        windows.append([])
        for user, (where, examples) in part.items():
            for x, y in examples:
                if not (isinstance(x, str) and isinstance(y, str) and x and len(y) == 1):
                    raise ValueError(
                        f"{where}: leaf_characters needs strings x and single characters y, got "
                        f"{_shown(x)} and {_shown(y)}; a file of words is for leaf_words"
                    )
                windows[-1].append((users[user], x + y))
    lengths = {len(window) - 1 for part in windows for _, window in part}
    if len(lengths) != 1 or not all(windows):
        raise ValueError(
            "leaf_characters needs examples in train and test, all x of one length, got lengths "
            f"{sorted(lengths)} and {[len(part) for part in windows]} examples"
        )
    words = vocabulary((window for _, window in windows[0]), 2**31)
    places = {word: i for i, word in enumerate(words)}
    unknown = places[UNKNOWN]

    def encoded(part: list[tuple[int, str]]) -> Arrays:
        text = np.array([[places.get(c, unknown) for c in window] for _, window in part], np.int32)
        mask = np.zeros(text[:, 1:].shape, np.float32)
        mask[:, -1] = 1
        user = np.array([user for user, _ in part], np.int32)
        return {"x": text[:, :-1], "y": text[:, 1:], "token_mask": mask, "user": user}

    note = f"LEAF files {Path(train).name} and {Path(test).name}"
    train_part, test_part = map(encoded, windows)
    return Dataset(train_part, test_part, len(words), "leaf_characters", note, words)


def _leaf(path: str | os.PathLike[str]) -> dict[str, tuple[str, list[tuple[Any, Any]]]]:
    """user -> (file and user in words, pairs x, y), of a file or all files of a folder."""
    path = Path(path)
    files = sorted(path.glob("*.json")) if path.is_dir() else [path]
    if not files or not files[0].is_file():
        raise FileNotFoundError(
            f"there is no LEAF file {path}, or no .json in it; LEAF's preprocess.sh writes data/train "
            "and data/test"
        )
    found: dict[str, tuple[str, list[tuple[Any, Any]]]] = {}
    for file in files:
        try:
            content = json.loads(file.read_text("utf-8"))
            users = content["users"]
            pairs = {
                user: (content["user_data"][user]["x"], content["user_data"][user]["y"])
                for user in users
            }
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(
                f"{file} is not in LEAF's layout, users and user_data with x and y for each user "
                f"({error!r}); fetch or make it again"
            ) from error
        for user, (x, y) in pairs.items():
            if not (isinstance(x, list) and isinstance(y, list) and len(x) == len(y)):
                raise ValueError(
                    f"{file}: user {user!r} needs lists x and y of one length, got {_shown(x)} and "
                    f"{_shown(y)}"
                )
            if user in found:
                raise ValueError(f"{file}: user {user!r} is in two files of {path}; remove one")
            found[user] = (f"{file}, user {user!r}", list(zip(x, y, strict=True)))
    return found


def _shown(value: Any) -> str:
    """The beginning of a value, for messages."""
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
