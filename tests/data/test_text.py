"""Words, vocabularies, sequences, and the loaders of text, on small files and on the real ones."""

import json

import numpy as np
import pytest
from conftest import needs_roles, needs_tiny

from fedjax_robust.data import (
    by_user,
    leaf_characters,
    leaf_numbers,
    leaf_sentiment,
    leaf_words,
    load_text,
    text_dataset,
    tokenize,
    word_ids,
)
from fedjax_robust.data.text.corpora import by_speaker
from fedjax_robust.data.text.words import SPECIAL, sequences, vocabulary

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
    for size in (3, 4.0, np.nan, np.array(2)):
        with pytest.raises(ValueError, match="vocabulary needs size"):
            vocabulary(sentences, size)
    with pytest.raises(TypeError, match="lists of words, got 'a b'; split a string with tokenize"):
        vocabulary(["a b"], 10)


def test_ties_in_the_vocabulary_are_in_alphabetical_order():
    """However they come; also where the size cuts between them."""
    sentences = [["d", "z", "b", "a", "z", "c"], ["é", "B"]]
    assert vocabulary(sentences, 100)[3:] == ("z", "B", "a", "b", "c", "d", "é")
    assert vocabulary(sentences, 6)[3:] == ("z", "B", "a")
    assert vocabulary(sentences[::-1], 6) == vocabulary(sentences, 6)


@pytest.mark.parametrize("text", [None, 3, ["a"], b"a"])
def test_tokenize_needs_a_string(text):
    with pytest.raises(TypeError, match="tokenize needs a string"):
        tokenize(text)


def test_word_ids():
    words = (*SPECIAL, "the", "wine", "is", "sweet")
    ids = word_ids("The wine IS sweet", words)
    assert ids.tolist() == [3, 4, 5, 6] and ids.dtype == np.int32
    assert word_ids(["wine", "<eos>"], words).tolist() == [4, 2]
    with pytest.raises(ValueError, match=r"bitter, venice not among the 7 words .* larger"):
        word_ids("the bitter wine is venice", words)
    with pytest.raises(ValueError, match="at least one word"):
        word_ids("", words)
    for sentence in (3, [1, 2], None):
        with pytest.raises(TypeError, match="lists of words"):
            word_ids(sentence, words)
    with pytest.raises(TypeError, match="needs words, the vocabulary"):
        word_ids("the", "the wine")


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


@pytest.mark.parametrize(
    ("sentences", "length"),
    [
        ([], 4),
        ([[1]], 0),
        ([[1]], 1.5),
        ([[1]], np.array(0)),
        ([[1.5]], 4),
        ([[-1]], 4),
        ([["a"]], 4),
    ],
)
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
    for length, size in ((0, 5), (1.5, 5), (3, 3), (3, 5.0), (np.nan, 5)):
        with pytest.raises(ValueError, match=r"text_dataset needs (length|vocabulary_size)"):
            text_dataset(train, train, length, size, "toy", "made up")
    for bad in ([["a"]], {1: [["a"]]}, {"u": "a b"}, {"u": ["a b"]}, {"u": [["a", 1]]}, {"u": 3}):
        with pytest.raises(TypeError, match="text_dataset needs"):
            text_dataset(bad, train, 3, 5, "toy", "made up")


def test_users_cannot_write_the_special_words():
    """They would end sentences and pad; as words of users they are not in the vocabulary."""
    text = {"u": [["a", "<eos>", "<pad>", "<unk>", "a"]]}
    data = text_dataset(text, text, 6, 100, "toy", "made up")
    assert data.class_names == (*SPECIAL, "a")
    for part in (data.train, data.test):
        assert part["x"].tolist() == [[2, 3, 1, 1, 1, 3]]
        assert part["y"].tolist() == [[3, 1, 1, 1, 3, 2]]


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
    np.savez_compressed(folder / "shakespeare_roles.npz", **content | other)


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
    with pytest.raises(FileNotFoundError, match=r"prepare\('tiny_shakespeare'"):
        load_text("tiny_shakespeare", data_dir=tmp_path)
    with pytest.raises(ValueError, match="no text 'hamlet'; known names are shakespeare"):
        load_text("hamlet", data_dir=tmp_path)
    for name in (None, 3, ["shakespeare"]):
        with pytest.raises(TypeError, match="load_text needs name to be one of shakespeare"):
            load_text(name)
    for options in ({"length": 0}, {"length": 2.5}, {"vocabulary_size": 3}):
        with pytest.raises(ValueError, match=r"load_text needs (length|vocabulary_size)"):
            load_text("shakespeare", data_dir=tmp_path, **options)


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"speech_role": np.array([0, 0, 0])}, r"offsets must be \(speeches \+ 1,\)"),
        ({"speech_role": np.array([0, -1])}, r"speech_role must lie in \[0, 2\), it is -1 to 0"),
        ({"speech_role": np.array([0, 2])}, "it is 0 to 2"),
        ({"speech_role": np.array([0.0, 1.5])}, "must be integers"),
        ({"offsets": np.array([0, 5, 3])}, "offsets must rise from 0 to the 6 bytes"),
        ({"offsets": np.array([0, 9, 6])}, "or fall"),
        ({"offsets": np.array([1, 3, 6])}, "begin with 1"),
        ({"offsets": np.array([0, 3, 5])}, "end with 5"),
        ({"offsets": np.array([-3, 3, 6])}, "begin with -3"),
        ({"offsets": np.array([0, 3.5, 6])}, "must be integers"),
        ({"role_names": np.array(["A", "A"])}, "a name twice"),
        ({"role_names": np.array([1, 2])}, "role_names text"),
        ({"role_names": np.array(["A", None])}, "dtype object"),
        ({"text": np.frombuffer(b"\xff\xfe abc"[:6], np.uint8)}, "can't decode"),
        ({"text": np.arange(6)}, "text is int64"),
        ({"text": np.zeros(10**9, np.uint8)}, "would expand to 1,000,0"),
    ],
)  # fmt: skip
def test_damaged_roles_are_refused(tmp_path, changes, text):
    write_roles(tmp_path, [("A", "a b"), ("B", "cde")], **changes)
    with pytest.raises(ValueError, match=rf"shakespeare_roles\.npz is damaged .*{text}"):
        load_text("shakespeare", data_dir=tmp_path)


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


def test_leaf_numbers(tmp_path):
    """As FEMNIST: pixels in a list, several files, users in both parts and in one of them."""
    rng = np.random.default_rng(0)
    images = rng.uniform(size=(6, 4)).round(3)
    x = images.tolist()
    write(
        tmp_path / "train" / "a.json",
        {"f1": {"x": x[:2], "y": [0, 3]}, "f0": {"x": x[2:3], "y": [1]}},
    )
    empty = {"f3": {"x": [], "y": []}, "f2": {"x": x[3:4], "y": [2]}}
    write(tmp_path / "train" / "b.json", empty, hierarchies=["h", "h"])
    test = write(tmp_path / "test.json", {"f0": {"x": x[4:], "y": [1, 4]}})
    data = leaf_numbers(tmp_path / "train", test)
    np.testing.assert_allclose(data.train["x"], images[[0, 1, 2, 3]], rtol=1e-6)
    assert data.train["y"].tolist() == [0, 3, 1, 2] and data.test["y"].tolist() == [1, 4]
    assert data.train["user"].tolist() == [1, 1, 0, 2] and data.test["user"].tolist() == [0, 0]
    assert data.num_classes == 5  # 4 is in the test part alone
    for part in (data.train, data.test):
        assert [part[name].dtype for name in ("x", "y", "user")] == [np.float32, np.int32, np.int32]
    assert by_user(data.train["user"], data.train).count.tolist() == [1, 2, 1]
    shaped = leaf_numbers(tmp_path / "train", test, shape=(2, 2, 1), num_classes=62)
    np.testing.assert_array_equal(shaped.train["x"], data.train["x"].reshape(4, 2, 2, 1))
    assert shaped.num_classes == 62
    for options, text in (
        ({"shape": (3, 1)}, r"shape=\(3, 1\) for x of shape \(4,\)"),
        ({"shape": (4.0,)}, "shape to be a whole number"),
        ({"shape": (0, 4)}, "shape >= 1"),
        ({"num_classes": 4}, r"labels y that are integers in 0 \.\. 3"),
        ({"num_classes": 0}, "num_classes >= 1"),
        ({"num_classes": 5.0}, "num_classes to be a whole number"),
    ):
        with pytest.raises(ValueError, match=text):
            leaf_numbers(tmp_path / "train", test, **options)
    for shape in (4, "4"):
        with pytest.raises(TypeError, match="a shape such as"):
            leaf_numbers(tmp_path / "train", test, shape=shape)


def test_leaf_numbers_as_others_write_them(tmp_path):
    """FedProx's MNIST has labels 1.0; some number the users; x may be nested, or one number."""
    nested = {
        "0": {"x": [[[1, 2], [3, 4]]], "y": [1.0]},
        "1": {"x": [[[5, 6], [7, 8.5]]], "y": [0.0]},
    }
    train = write(tmp_path / "train.json", nested, users=[0, 1])
    data = leaf_numbers(train, train)
    assert data.train["x"].tolist() == [[[1, 2], [3, 4]], [[5, 6], [7, 8.5]]]
    assert data.train["y"].tolist() == [1, 0] and data.num_classes == 2
    plain = write(tmp_path / "plain.json", {"u": {"x": [0.5, 2], "y": [1, 0]}})
    assert leaf_numbers(plain, plain).train["x"].tolist() == [0.5, 2]
    nobody = write(tmp_path / "nobody.json", {"u": {"x": [], "y": []}})
    with pytest.raises(ValueError, match=r"needs examples in train and test, got none in .*nobody"):
        leaf_numbers(plain, nobody)


def tweet(user, text):
    """A row as LEAF's data_to_json.py writes it: the published columns but the first, and the part."""
    return ["1467810369", "Mon Apr 06 22:19:45 PDT 2009", "NO_QUERY", user, text, "training"]


def test_leaf_sentiment(tmp_path):
    said = {"x": [tweet("bo", "so bad, so sad"), tweet("bo", "<eos> Good!")], "y": [0, 1]}
    al = {"x": [tweet("al", "good")[:5]], "y": ["4"]}
    train = write(tmp_path / "train.json", {"bo": said, "al": al})
    test = write(
        tmp_path / "test.json", {"cy": {"x": [tweet("cy", "NO_QUERY bad bad so")], "y": [4]}}
    )
    data, words = leaf_sentiment(train, test, length=3)
    # so and good twice, the others once: punctuation first in alphabetical order, letters last.
    assert words == (*SPECIAL, "good", "so", "!", ",", "<", ">", "bad", "eos", "sad")
    assert data.train["x"].tolist() == [[4, 9, 6], [7, 10, 8], [3, 0, 0]]
    assert data.train["y"].tolist() == [0, 1, 1] and data.train["user"].tolist() == [1, 1, 0]
    assert data.test["x"].tolist() == [[1, 9, 9]] and data.test["user"].tolist() == [2]
    assert data.num_classes == 2 and data.class_names == ("negative", "positive")
    assert {a.dtype.name for a in data.train.values()} == {"int32"}
    _, few = leaf_sentiment(train, test, vocabulary_size=4)
    assert few == (*SPECIAL, "good")
    for options in ({"length": 0}, {"length": 1.5}, {"vocabulary_size": 3}):
        with pytest.raises(ValueError, match=r"leaf_sentiment needs (length|vocabulary_size)"):
            leaf_sentiment(train, test, **options)


def test_reddit_writes_the_numbers_of_all_parts(tmp_path):
    """LEAF's preprocess.py copies num_samples of the whole into each part; fewer cannot be."""
    x, y = leaf_comment("a", "b")
    both = {"7": {"x": [x], "y": [y]}, "8": {"x": [], "y": []}}
    path = write(tmp_path / "train.json", both, num_samples=[5, 1])
    assert leaf_words(path, path, length=4).train["user"].tolist() == [0]
    path = write(tmp_path / "train.json", both, num_samples=[0, 1])
    with pytest.raises(ValueError, match="num_samples of user '7' is 0"):
        leaf_words(path, path)


def test_special_words_in_leaf_files(tmp_path):
    path = write(tmp_path / "train.json", {"u": {"x": [["<eos>", "a", "<pad>"]], "y": [0]}})
    data = leaf_words(path, path, length=4)
    assert data.train["y"].tolist() == [[1, 3, 1, 2]] and data.class_names == (*SPECIAL, "a")


WORDS = {"u": {"x": [["a"]], "y": [0]}}
CHARACTERS = {"u": {"x": ["ab"], "y": ["c"]}}
SOUND = {
    leaf_words: WORDS,
    leaf_characters: CHARACTERS,
    leaf_numbers: {"u": {"x": [1], "y": [0]}},
    leaf_sentiment: {"u": {"x": [["1", "date", "NO_QUERY", "u", "so nice"]], "y": [1]}},
}


@pytest.mark.parametrize(
    ("load", "train", "other", "text"),
    [
        (leaf_words, WORDS, {"users": ["u", "v"]}, "not in LEAF's layout.*'v'"),
        (leaf_words, WORDS, {"users": None}, "not in LEAF's layout"),
        (leaf_words, {"u": {"x": [["a"]]}}, {}, "not in LEAF's layout.*'y'"),
        (leaf_words, {"u": {"x": [["a"]], "y": []}}, {}, "user 'u' needs lists x and y of one length"),
        (leaf_words, WORDS, {"users": "u"}, "users is a str"),
        (leaf_words, WORDS, {"users": {"u": 1}}, "users is a dict"),
        (leaf_words, WORDS, {"users": ["u", None]}, "users holds None"),
        (leaf_words, WORDS, {"users": ["u", "u"]}, "user 'u' is listed twice"),
        (leaf_words, WORDS, {"users": []}, "user 'u' has data, but is not among the users"),
        (leaf_words, WORDS, {"num_samples": [2]}, "num_samples of user 'u' is 2, but there are 1"),
        (leaf_words, WORDS, {"num_samples": [0]}, "num_samples of user 'u' is 0"),
        (leaf_words, WORDS, {"num_samples": [1, 1]}, "num_samples is not a list"),
        (leaf_words, WORDS, {"num_samples": 1}, "num_samples is not a list"),
        (leaf_numbers, {"u": {"x": [], "y": []}, "v": {"x": [1], "y": [0]}}, {"num_samples": [3, 1]},
         "num_samples of user 'u' is 3"),
        (leaf_words, CHARACTERS, {}, "'u'.*for leaf_characters"),
        (leaf_words, {"u": {"x": [[0.5, 1]], "y": [0]}}, {}, "for leaf_numbers"),
        (leaf_words, {"u": {"x": [["1", "Mon", "NO_QUERY", "u", "hi", "training"]], "y": [0]}}, {},
         "a row of Sent140.*for leaf_sentiment"),
        (leaf_words, {"u": {"x": ["000001.jpg"], "y": [0]}}, {}, "CelebA, are for none"),
        (leaf_numbers, {"u": {"x": ["000001.jpg"], "y": [0]}}, {}, "CelebA, are for none"),
        (leaf_numbers, CHARACTERS, {}, "for leaf_characters"),
        (leaf_numbers, WORDS, {}, "for leaf_words"),
        (leaf_numbers, {"u": {"x": [[1, 2], [3]], "y": [0, 1]}}, {}, "'u'.*unequal lengths"),
        (leaf_numbers, {"u": {"x": [[1]], "y": [0]}, "v": {"x": [[1, 2]], "y": [0]}}, {},
         r"all x of one shape, got \(2,\), and \(1,\)"),
        (leaf_numbers, {"u": {"x": [[]], "y": [0]}}, {}, "an empty list"),
        (leaf_numbers, {"u": {"x": [[1, None]], "y": [0]}}, {}, "every x to be numbers"),
        (leaf_numbers, {"u": {"x": [[True]], "y": [0]}}, {}, "every x to be numbers"),
        (leaf_numbers, {"u": {"x": [[float("nan")]], "y": [0]}}, {}, "finite"),
        (leaf_numbers, {"u": {"x": [[1e300]], "y": [0]}}, {}, "finite"),
        (leaf_numbers, {"u": {"x": [1], "y": [0.5]}}, {}, "labels y that are integers"),
        (leaf_numbers, {"u": {"x": [1], "y": [-1]}}, {}, "labels y that are integers"),
        (leaf_numbers, {"u": {"x": [1], "y": [2**31]}}, {}, "labels y that are integers"),
        (leaf_numbers, {"u": {"x": [1], "y": ["a"]}}, {}, "labels y that are integers"),
        (leaf_numbers, {"u": {"x": [1], "y": [[0, 1]]}}, {}, "labels y that are integers"),
        (leaf_numbers, {"u": {"x": [1, 2], "y": [0, [1]]}}, {}, "labels y that are integers"),
        (leaf_sentiment, WORDS, {}, "needs every x to be a row.*for leaf_words"),
        (leaf_sentiment, {"u": {"x": [["1", "d", "q", "u", "hi"]], "y": [2]}}, {}, "labels y of 0"),
        (leaf_characters, {"u": {"x": [[1, 2]], "y": [0]}}, {}, "for leaf_numbers"),
        (leaf_words, {"u": {"x": [["a", 1]], "y": [0]}}, {}, "list of words"),
        (leaf_characters, WORDS, {}, "for leaf_words"),
        (leaf_characters, {"u": {"x": ["ab"], "y": ["cd"]}}, {}, "single characters y"),
        (leaf_characters, {"u": {"x": ["ab", "abc"], "y": ["c", "d"]}}, {}, r"lengths \[2, 3\]"),
    ],
)  # fmt: skip
def test_bad_leaf_files(tmp_path, load, train, other, text):
    test = write(tmp_path / "test.json", SOUND[load])
    with pytest.raises(ValueError, match=text) as error:
        load(write(tmp_path / "train.json", train, **other), test)
    if "lengths [" not in str(error.value):
        assert str(tmp_path / "train.json") in str(error.value)


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
    for text, kind in (
        ("[" * 200_000, "RecursionError"),
        ('{"users": ["u"], "user_data": {"u": {"x": ' + "[" * 10**5 + "]" * 10**5 + "}}}", "Rec"),
        ('{"users": ["u"], "user_data": {"u": {"x": [1], "y": [0]}, "u": {"x": []}}}', "twice"),
        ("\xff", "UnicodeDecodeError"),
        ("[]", "TypeError"),
        ("null", "TypeError"),
        ('{"users": [], "user_data": []}', "user_data a list"),
    ):  # fmt: skip
        (tmp_path / "bad.json").write_bytes(text.encode("latin1"))
        for load in (leaf_words, leaf_numbers, leaf_characters, leaf_sentiment):
            with pytest.raises(ValueError, match=rf"bad\.json is not in LEAF's layout.*{kind}"):
                load(tmp_path / "bad.json", test)
    for path, error in (
        (3, TypeError),
        (None, TypeError),
        ("", ValueError),
        ("x" * 300, ValueError),
    ):
        with pytest.raises(error, match="leaf_words needs"):
            leaf_words(path, test)
    for name in ("a", "b"):
        write(tmp_path / "twice" / f"{name}.json", WORDS)
    with pytest.raises(ValueError, match="'u' is in two files"):
        leaf_words(tmp_path / "twice", test)
