"""Words and sequences of text."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from fedjax_robust import checks
from fedjax_robust.data.sources.files import (
    Arrays,
    Dataset,
    beginning,
)

Text = Mapping[str, Sequence[Sequence[str]]]
"""user -> sentences, each a list of words."""

PADDING, UNKNOWN, END = "<pad>", "<unk>", "<eos>"
SPECIAL = (PADDING, UNKNOWN, END)
"""The first words of every vocabulary, ids 0, 1, 2: padding, any word that is not in the vocabulary, and
the end of a sentence. Where a user wrote one of them, it is a word that is not in the vocabulary."""
_WORD = re.compile(r"\w+(?:'\w+)*|[^\w\s]")


def tokenize(text: str) -> list[str]:
    """Lower-case words and single punctuation marks: "Who's there?" -> who's, there, ?

    A word is a run of letters, digits and underscores, also with apostrophes inside; white space
    separates and is lost.

    Args:
      text: a string.

    Raises:
      TypeError: no string.
    """
    if not isinstance(text, str):
        raise TypeError(f"tokenize needs a string, got {beginning(text)}")
    return _WORD.findall(text.lower())


def vocabulary(sentences: Iterable[Sequence[str]], size: int) -> tuple[str, ...]:
    """``<pad>``, ``<unk>``, ``<eos>`` and the most frequent words, by falling frequency.

    Equally frequent words are in alphabetical order. A word's place is its id.

    Args:
      sentences: lists of words.
      size: V, words at most, with the three special ones; >= 4.

    Raises:
      ValueError: size < 4.
      TypeError: a sentence that is no list of words.
    """
    checks.static_count("vocabulary", len(SPECIAL) + 1, size=size)
    return _most_frequent((_sentence("vocabulary", s) for s in sentences), int(size))


def _sentence(what: str, sentence: Any) -> Sequence[str]:
    if isinstance(sentence, str) or not (
        isinstance(sentence, Sequence | np.ndarray) and all(isinstance(w, str) for w in sentence)
    ):
        raise TypeError(
            f"{what} needs sentences that are lists of words, got {beginning(sentence)}; split a "
            "string with tokenize"
        )
    return sentence  # type: ignore[return-value]


def _most_frequent(sentences: Iterable[Sequence[str]], size: int) -> tuple[str, ...]:
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
      TypeError: no sentence, or no vocabulary.
    """
    sentence = tokenize(text) if isinstance(text, str) else list(_sentence("word_ids", text))
    if isinstance(words, str) or not isinstance(words, Sequence):
        raise TypeError(f"word_ids needs words, the vocabulary, got {beginning(words)}")
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
      sentences: word ids >= 0; at least one sentence.
      length: T >= 1.

    Returns:
      ``x`` (S, T) int32, ``y`` (S, T) int32, the words that follow, and ``token_mask`` (S, T) float32, 0
      for the padding, with S = ceil(words / T), where the ends of sentences are words.

    Raises:
      ValueError: no sentence, length < 1, or ids that are no integers >= 0.
    """
    checks.static_count("sequences", 1, length=length)
    length = int(length)
    if not len(sentences):
        raise ValueError("sequences needs at least one sentence, got none")
    end, padding = SPECIAL.index(END), SPECIAL.index(PADDING)
    words = [word for sentence in sentences for word in (*sentence, end)]
    number = -(-len(words) // length)
    pads = number * length - len(words)
    ids = np.asarray(words)
    if ids.ndim != 1 or ids.dtype.kind not in "iu" or ids.min() < 0:
        raise ValueError(
            "sequences needs sentences of word ids, integers >= 0, got "
            f"{beginning([list(s) for s in sentences])}"
        )
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
      vocabulary_size: V >= 4, see ``vocabulary``; all other words become ``<unk>``, also the three
        special ones where users write them.
      name: the corpus.
      note: where it comes from and how it was split; the share of unknown words is added.

    Returns:
      ``train`` and ``test`` with ``x``, ``y`` and ``token_mask`` (E, T) as in ``sequences``, and
      ``user`` (E,) int32, the place of the user among all names in alphabetical order; ``num_classes``
      is V, ``class_names`` the vocabulary. Users without words are left out.

    Raises:
      ValueError: an argument out of range, or no words in train or test.
      TypeError: a text of another type.
    """
    what = "text_dataset"
    check_sizes(what, length, vocabulary_size)
    for part in (train, test):
        _check_text(what, part)
    for argument, value in {"name": name, "note": note}.items():
        if not isinstance(value, str):
            raise TypeError(f"{what} needs {argument} to be text, got {beginning(value)}")
    words = vocabulary((s for sentences in train.values() for s in sentences), vocabulary_size)
    places, unknown = _places(words), SPECIAL.index(UNKNOWN)
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


def check_sizes(what: str, length: int, vocabulary_size: int) -> None:
    """ValueError unless T >= 1 and the vocabulary has room for a word besides the special ones."""
    checks.static_count(what, 1, length=length)
    checks.static_count(what, len(SPECIAL) + 1, vocabulary_size=vocabulary_size)


def _check_text(what: str, text: Any) -> None:
    if not isinstance(text, Mapping) or not all(isinstance(user, str) for user in text):
        raise TypeError(
            f"{what} needs texts that map each user's name to sentences, got {beginning(text)}"
        )
    for user, sentences in text.items():
        if isinstance(sentences, str) or not isinstance(sentences, Sequence):
            raise TypeError(
                f"{what} needs a list of sentences of user {user!r}, got {beginning(sentences)}"
            )
        for sentence in sentences:
            _sentence(what, sentence)


def _places(words: Sequence[str]) -> dict[str, int]:
    """The ids of the words that users write: not the special ones, which only the library sets."""
    return {word: i for i, word in enumerate(words) if i >= len(SPECIAL)}
