"""Words, vocabularies, sequences, and the loaders of text, on small files and on the real ones."""

import json
import os
from pathlib import Path

import numpy as np
import pytest

from fedjax_robust.data import (
    by_user,
    leaf_characters,
    leaf_words,
    load_text,
    text_dataset,
    tokenize,
    word_ids,
)
from fedjax_robust.data.text import SPECIAL, by_speaker, sequences, vocabulary

REAL = Path(os.environ.get("FEDJAX_ROBUST_DATA", "/nonexistent"))
needs_roles = pytest.mark.skipif(
    not (REAL / "shakespeare_roles.npz").is_file(),
    reason="shakespeare_roles.npz is not there; set FEDJAX_ROBUST_DATA to the folder that holds it",
)
needs_tiny = pytest.mark.skipif(
    not (REAL / "tfds" / "tiny_shakespeare").is_dir(),
    reason="tiny_shakespeare is not prepared in FEDJAX_ROBUST_DATA/tfds",
)

# --- Words -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("Who's there?", "who's there ?"),
        ("  Nay, answer me:\n'tis I!--\tÉtienne 2", "nay , answer me : ' tis i ! - - étienne 2"),
        ("", ""),
    ],
)
def test_tokenize(text, words):
    assert " ".join(tokenize(text)) == words


def test_vocabulary_by_hand():
    sentences = [["b", "a", "c", "<unk>"], ["c", "b", "d"], ["c"]]
    assert vocabulary(sentences, 100) == ("<pad>", "<unk>", "<eos>", "c", "b", "a", "d")
    assert vocabulary(sentences, 5) == ("<pad>", "<unk>", "<eos>", "c", "b")
    with pytest.raises(ValueError, match="size >= 4, got 3"):
        vocabulary(sentences, 3)


def test_word_ids():
    words = (*SPECIAL, "the", "wine", "is", "sweet")
    ids = word_ids("The wine IS sweet", words)
    assert ids.tolist() == [3, 4, 5, 6] and ids.dtype == np.int32
    assert word_ids(["wine", "<eos>"], words).tolist() == [4, 2]
    with pytest.raises(ValueError, match=r"bitter, venice not among the 7 words .* larger"):
        word_ids("the bitter wine is venice", words)
    with pytest.raises(ValueError, match="at least one word"):
        word_ids("", words)


def test_sequences_by_hand():
    out = sequences([[5, 6, 7], [8]], 4)  # six words with the two ends
    assert out["x"].tolist() == [[0, 0, 2, 5], [6, 7, 2, 8]]
    assert out["y"].tolist() == [[0, 2, 5, 6], [7, 2, 8, 2]]
    assert out["token_mask"].tolist() == [[0, 0, 1, 1], [1, 1, 1, 1]]
    out = sequences([[5, 6, 7]], 4)  # without padding
    assert out["x"].tolist() == [[2, 5, 6, 7]] and out["y"].tolist() == [[5, 6, 7, 2]]
    assert out["token_mask"].tolist() == [[1, 1, 1, 1]]


def test_every_word_is_predicted_once():
    rng = np.random.default_rng(0)
    for length in range(1, 9):
        sentences = [rng.integers(3, 50, rng.integers(1, 6)).tolist() for _ in range(4)]
        out = sequences(sentences, length)
        words = [word for sentence in sentences for word in (*sentence, 2)]
        assert out["y"][out["token_mask"] > 0].tolist() == words
        assert out["x"][out["token_mask"] > 0].tolist() == [2, *words[:-1]]
        assert len(out["x"]) == -(-len(words) // length)


@pytest.mark.parametrize(("sentences", "length"), [([], 4), ([[1]], 0)])
def test_bad_sequences(sentences, length):
    with pytest.raises(ValueError, match="sequences needs"):
        sequences(sentences, length)


def test_text_dataset_by_hand():
    train = {"bo": [["x", "y"]], "al": [["y"], ["y", "z"]], "cy": [[]]}
    data = text_dataset(train, {"bo": [["y", "new"]]}, 3, 5, "toy", "made up")
    assert data.class_names == ("<pad>", "<unk>", "<eos>", "y", "x") and data.num_classes == 5
    # al: y <eos> y <unk> <eos>; bo: x y <eos>
    assert data.train["y"].tolist() == [[2, 3, 2], [3, 1, 2], [4, 3, 2]]
    assert data.train["token_mask"].tolist() == [[0, 1, 1], [1, 1, 1], [1, 1, 1]]
    assert data.train["user"].tolist() == [0, 0, 1]
    assert data.test["y"].tolist() == [[3, 1, 2]] and data.test["user"].tolist() == [1]
    assert data.note == "made up; 5 words, 33.3% of the test words unknown"
    with pytest.raises(ValueError, match="words in train and test"):
        text_dataset(train, {}, 3, 5, "toy", "made up")


# --- Shakespeare -------------------------------------------------------------------------------------


def write_roles(folder, speeches, **other):
    """speeches: (role, text) pairs."""
    names = sorted({role for role, _ in speeches})
    text = [text.encode() for _, text in speeches]
    content = {
        "text": np.frombuffer(b"".join(text), np.uint8),
        "offsets": np.cumsum([0, *map(len, text)]),
        "speech_role": np.array([names.index(role) for role, _ in speeches], np.int32),
        "role_names": np.array(names),
    }
    np.savez(folder / "shakespeare_roles.npz", **content | other)


def test_roles_are_split_by_speech(tmp_path):
    speeches = [("A", f"é{i}") for i in range(10)] + [("B", "b c")] * 4
    write_roles(tmp_path, speeches)
    data = load_text("shakespeare", length=4, vocabulary_size=100, data_dir=tmp_path)

    def said(part, user):
        words = part["y"][(part["user"] == user)[:, None] & (part["token_mask"] > 0)]
        return " ".join(data.class_names[word] for word in words)

    assert said(data.train, 0) == " ".join(f"é{i} <eos>" for i in range(8))
    assert said(data.test, 0) == "<unk> <eos> <unk> <eos>"  # only training words are known
    assert said(data.train, 1) == " ".join(["b c <eos>"] * 4) and said(data.test, 1) == ""
    assert data.note.startswith("2 roles, the last fifth")


def test_damaged_or_missing_roles(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"shakespeare_roles\.npz is not in .*offsets"):
        load_text("shakespeare", data_dir=tmp_path)
    write_roles(tmp_path, [("A", "a b")], speech_role=np.array([0, 0]))
    with pytest.raises(ValueError, match="damaged"):
        load_text("shakespeare", data_dir=tmp_path)
    with pytest.raises(FileNotFoundError, match=r"prepare\('tiny_shakespeare'"):
        load_text("tiny_shakespeare", data_dir=tmp_path)
    with pytest.raises(ValueError, match="no text 'hamlet'; known are shakespeare"):
        load_text("hamlet", data_dir=tmp_path)


def test_by_speaker():
    play = "First Citizen:\nBefore we\nproceed, hear.\n\nAll:\nSpeak.\n\ncut off\n\nAll:\nGo"
    assert by_speaker(play) == {
        "First Citizen": [["before", "we", "proceed", ",", "hear", "."]],
        "All": [["speak", "."], ["go"]],
    }


@needs_roles
def test_real_roles():
    data = load_text("shakespeare", length=64, vocabulary_size=5000)
    assert data.num_classes == 5000
    for part in (data.train, data.test):
        assert part["x"].shape[1:] == (64,) and part["x"].max() < 5000
        assert {name: a.dtype.name for name, a in part.items()} == {
            "x": "int32",
            "y": "int32",
            "token_mask": "float32",
            "user": "int32",
        }
        inside = part["token_mask"][:, :-1] > 0
        np.testing.assert_array_equal(part["x"][:, 1:][inside], part["y"][:, :-1][inside])
    federated = by_user(data.train["user"], data.train)
    assert federated.index.shape[0] == 1330  # every role speaks
    # The most frequent words of English, and the sentences that were counted when the file was made.
    assert {"the", "and", "i", "to", ","} <= set(data.class_names[3:12])
    ends = sum(int(np.sum((p["y"] == 2) & (p["token_mask"] > 0))) for p in (data.train, data.test))
    assert ends == 30_955


@needs_tiny
def test_real_tiny_shakespeare():
    data = load_text("tiny_shakespeare", length=32, vocabulary_size=3000)
    assert "published split" in data.note and data.num_classes == 3000
    first = data.train["x"][data.train["token_mask"] > 0]
    assert len(first) > 200_000 and 0 < len(data.test["x"]) < len(data.train["x"]) / 10


# --- LEAF --------------------------------------------------------------------------------------------


def write(path, user_data, **other):
    users = list(user_data)
    content = {"users": users, "num_samples": [len(user_data[u]["x"]) for u in users]}
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(content | {"user_data": user_data} | other))
    return path


def leaf_comment(*words):
    """As LEAF's Reddit writes a comment: sequences (of 4 words here), and targets beside metadata."""
    x = ["<BOS>", *words, "<EOS>"]
    y = [*words, "<EOS>", "<PAD>"]
    x, y = ([*part, *["<PAD>"] * (-len(part) % 4)] for part in (x, y))
    cut = [[part[i : i + 4] for i in range(0, len(part), 4)] for part in (x, y)]
    return cut[0], {"subreddit": "pics", "created_utc": 1, "score": 2, "target_tokens": cut[1]}


def test_leaf_words(tmp_path):
    x, y = zip(leaf_comment("a", "b", "c", "a"), leaf_comment("a"), strict=True)
    write(tmp_path / "train" / "reddit_0_train.json", {"7": {"x": list(x), "y": list(y)}})
    plain = {"x": [["b", "a"]], "y": [None]}  # a comment as one list of words
    write(tmp_path / "train" / "reddit_1_train.json", {"3": plain})
    test = write(tmp_path / "test.json", {"3": {"x": [["c", "d"]], "y": [0]}})
    data = leaf_words(tmp_path / "train", test, length=4, vocabulary_size=100)
    assert data.class_names == (*SPECIAL, "a", "b", "c")
    words = [data.class_names[i] for i in data.train["y"][data.train["token_mask"] > 0]]
    assert " ".join(words) == "b a <eos> a b c a <eos> a <eos>"
    assert data.train["user"].tolist() == [0, 1, 1]  # "3", then "7"
    assert data.test["y"].tolist() == [[2, 5, 1, 2]]


def test_leaf_characters(tmp_path):
    train = {"R": {"x": ["abca", "bcab"], "y": ["b", "c"]}, "B": {"x": ["aaaa"], "y": ["a"]}}
    train = write(tmp_path / "train.json", train)
    test = write(tmp_path / "test.json", {"B": {"x": ["abz "], "y": ["a"]}})
    data = leaf_characters(train, test)
    assert data.class_names == (*SPECIAL, "a", "b", "c") and data.num_classes == 6
    assert data.train["x"].tolist() == [[3, 4, 5, 3], [4, 5, 3, 4], [3, 3, 3, 3]]
    assert data.train["y"][:, -1].tolist() == [4, 5, 3]
    assert data.train["y"][0].tolist() == [4, 5, 3, 4]
    assert data.train["token_mask"].tolist() == [[0, 0, 0, 1]] * 3
    assert data.train["user"].tolist() == [1, 1, 0]
    assert data.test["x"].tolist() == [[3, 4, 1, 1]]


WORDS = {"u": {"x": [["a"]], "y": [0]}}
CHARACTERS = {"u": {"x": ["ab"], "y": ["c"]}}


@pytest.mark.parametrize(
    ("load", "train", "other", "text"),
    [
        (leaf_words, WORDS, {"users": ["u", "v"]}, "not in LEAF's layout.*'v'"),
        (leaf_words, WORDS, {"users": None}, "not in LEAF's layout"),
        (leaf_words, {"u": {"x": [["a"]]}}, {}, "not in LEAF's layout.*'y'"),
        (leaf_words, {"u": {"x": [["a"]], "y": []}}, {}, "user 'u' needs lists x and y of one length"),
        (leaf_words, CHARACTERS, {}, "'u'.*for leaf_characters"),
        (leaf_words, {"u": {"x": [["a", 1]], "y": [0]}}, {}, "list of words"),
        (leaf_characters, WORDS, {}, "for leaf_words"),
        (leaf_characters, {"u": {"x": ["ab"], "y": ["cd"]}}, {}, "single characters y"),
        (leaf_characters, {"u": {"x": ["ab", "abc"], "y": ["c", "d"]}}, {}, r"lengths \[2, 3\]"),
    ],
)  # fmt: skip
def test_bad_leaf_files(tmp_path, load, train, other, text):
    test = write(tmp_path / "test.json", WORDS if load is leaf_words else CHARACTERS)
    with pytest.raises(ValueError, match=text):
        load(write(tmp_path / "train.json", train, **other), test)


def test_missing_damaged_and_double_leaf_files(tmp_path):
    test = write(tmp_path / "test.json", WORDS)
    with pytest.raises(FileNotFoundError, match=r"preprocess\.sh"):
        leaf_words(tmp_path / "nothing", test)
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match=r"no \.json"):
        leaf_words(tmp_path / "empty", test)
    (tmp_path / "cut.json").write_text('{"users": ["u"')
    with pytest.raises(ValueError, match=r"cut\.json is not in LEAF's layout"):
        leaf_words(tmp_path / "cut.json", test)
    for name in ("a", "b"):
        write(tmp_path / "twice" / f"{name}.json", WORDS)
    with pytest.raises(ValueError, match="'u' is in two files"):
        leaf_words(tmp_path / "twice", test)
