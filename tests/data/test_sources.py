import importlib.util
import inspect
import io
import json
import os
import shutil
import stat
import subprocess
import sys
import textwrap
import zipfile

import jax
import numpy as np
import pytest
from conftest import REAL, needs_tiny

from fedjax_robust import npz
from fedjax_robust.attacks.backdoors import (
    CIFAR_GREEN_CARS,
    CIFAR_RACING_STRIPES,
    CIFAR_STRIPED_WALLS,
)
from fedjax_robust.data import by_user, load_text, sources
from fedjax_robust.data.sources.cache import cached
from fedjax_robust.data.sources.load import load
from fedjax_robust.data.sources.tfds import cifar10_rows, prepare

CIFAR_LABELS = ["airplane", "automobile", "bird", "cat", "deer"]
CIFAR_LABELS += ["dog", "frog", "horse", "ship", "truck"]


@pytest.fixture
def cache(tmp_path, monkeypatch):
    folder = tmp_path / "cache"
    monkeypatch.setenv("FEDJAX_ROBUST_CACHE", str(folder))
    return folder


def raw_rows(dataset):
    return np.concatenate([dataset.train["x"], dataset.test["x"]])


def assert_arrays(dataset, shape):
    for part in (dataset.train, dataset.test):
        assert part["x"].dtype == np.float32
        assert part["y"].dtype == np.int32
        assert part["x"].shape == (len(part["y"]), *shape)
        assert part["y"].min() >= 0
        assert part["y"].max() < dataset.num_classes


# Bundled data


def test_breast_cancer():
    from sklearn.datasets import load_breast_cancer

    data = load("breast_cancer")
    assert_arrays(data, (30,))
    assert (len(data.train["y"]), len(data.test["y"])) == (455, 114)
    assert data.class_names == ("malignant", "benign")
    assert "455/114" in data.note
    assert "standardised" in data.note
    np.testing.assert_allclose(data.train["x"].mean(axis=0), 0, atol=1e-5)
    np.testing.assert_allclose(data.train["x"].std(axis=0), 1, atol=1e-5)
    # Undo the affine map: train and test together are the 569 published rows, each once.
    labels = np.concatenate([data.train["y"], data.test["y"]])
    np.testing.assert_array_equal(np.bincount(labels), [212, 357])
    published = load_breast_cancer().data
    x = raw_rows(data).astype(np.float64)
    x = (x - x.mean(axis=0)) / x.std(axis=0) * published.std(axis=0) + published.mean(axis=0)
    np.testing.assert_allclose(
        x[np.lexsort(x[:, :3].round(3).T)],
        published[np.lexsort(published[:, :3].round(3).T)],
        rtol=1e-3,
        atol=1e-4,
    )


def test_digits():
    data = load("digits")
    assert_arrays(data, (8, 8, 1))
    assert (len(data.train["y"]), len(data.test["y"])) == (1437, 360)
    assert data.train["x"].min() == 0
    assert data.train["x"].max() == 1
    labels = np.concatenate([data.train["y"], data.test["y"]])
    published = [178, 182, 177, 183, 181, 182, 181, 179, 174, 180]
    np.testing.assert_array_equal(np.bincount(labels), published)
    # No two of the published digits are equal, so disjoint parts have 1797 distinct images.
    assert len(np.unique(raw_rows(data).reshape(1797, -1), axis=0)) == 1797


@pytest.mark.parametrize("name", ["breast_cancer", "digits", "synthetic"])
def test_the_key_decides(name):
    first, again, other = (load(name, key=jax.random.key(k)) for k in (1, 1, 2))
    np.testing.assert_array_equal(first.train["x"], again.train["x"])
    np.testing.assert_array_equal(first.test["y"], again.test["y"])
    assert not np.array_equal(first.train["y"], other.train["y"])
    default = load(name)
    np.testing.assert_array_equal(default.train["x"], load(name, key=jax.random.key(0)).train["x"])


def test_synthetic_is_the_stated_mixture():
    data = sources.synthetic(
        jax.random.key(3), num_classes=4, num_features=6, num_train=8_000, num_test=10, separation=5
    )
    assert_arrays(data, (6,))
    assert (len(data.train["y"]), len(data.test["y"])) == (8_000, 10)
    x, y = data.train["x"], data.train["y"]
    np.testing.assert_allclose(np.bincount(y), 2_000, atol=5 * np.sqrt(8_000 * 0.25 * 0.75))
    means = np.stack([x[y == label].mean(axis=0) for label in range(4)])
    np.testing.assert_allclose(np.linalg.norm(means, axis=1), 5, atol=0.15)
    np.testing.assert_allclose((x - means[y]).std(axis=0), 1, atol=0.05)


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"num_classes": 1}, ValueError),
        ({"num_classes": 2.0}, ValueError),
        ({"num_features": 0}, ValueError),
        ({"num_train": np.array(0)}, ValueError),
        ({"num_test": np.nan}, ValueError),
        ({"separation": -1}, ValueError),
        ({"separation": np.inf}, ValueError),
        ({"separation": np.array(np.nan)}, ValueError),
        ({"num_train": "3"}, TypeError),
        ({"key": 3}, TypeError),
    ],
)
def test_bad_arguments_of_synthetic(options, error):
    with pytest.raises(error, match=f"synthetic needs (a )?{next(iter(options))}"):
        sources.synthetic(**{"key": jax.random.key(0)} | options)


def test_synthetic_defaults_can_be_learned():
    data = load("synthetic")
    assert_arrays(data, (32,))
    x, y = data.train["x"], data.train["y"]
    means = np.stack([x[y == label].mean(axis=0) for label in range(10)])
    distance = np.linalg.norm(data.test["x"][:, None] - means, axis=2)
    assert np.mean(distance.argmin(axis=1) != data.test["y"]) < 0.06


# Where data are looked for, and what is said when they are not there


def test_unknown_name():
    with pytest.raises(ValueError, match=r"no data set 'minst'.*mnist.*ch_mnist"):
        load("minst")
    with pytest.raises(
        ValueError, match=r"no data set 'xxx.*known names are breast_cancer"
    ) as error:
        load("x" * 300)
    assert len(str(error.value)) < 300


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: load(3), "load needs name to be one of breast_cancer, digits"),
        (lambda: load(["mnist"]), "load needs name"),
        (lambda: load(None), "load needs name"),
        (lambda: load("digits", key=3), "load needs a key"),
        (lambda: load("digits", 3), "data_dir needs a path"),
        (lambda: load("mnist", b"data"), "data_dir needs a path"),
        (lambda: load("mnist", ["data"]), "data_dir needs a path"),
        (lambda: prepare(3), "prepare needs the name"),
        (lambda: cifar10_rows([0.5]), "cifar10_rows needs integers"),
        (lambda: cifar10_rows(["0"]), "cifar10_rows needs integers"),
        (lambda: cifar10_rows([True]), "cifar10_rows needs integers"),
    ],
)
def test_arguments_of_another_type(call, message):
    with pytest.raises(TypeError, match=message):
        call()


@pytest.mark.parametrize(
    "path", ["", "x" * 256, "a/" + "é" * 128, "a\0b", "~nobody_of_this_name/x"]
)
def test_paths_that_cannot_be(path, cache):
    for call in (
        lambda: load("mnist", path),
        lambda: load("digits", path),
        lambda: load_text("shakespeare", data_dir=path),
        lambda: cifar10_rows([0], path),
        lambda: prepare("mnist", path),
    ):
        with pytest.raises(ValueError, match="data_dir"):
            call()


@pytest.mark.parametrize("name", ["mnist", "fashion_mnist", "cifar10"])
def test_missing_data_says_how_to_get_them(name, tmp_path, cache):
    with pytest.raises(FileNotFoundError) as error:
        load(name, tmp_path)
    message = str(error.value)
    assert str(tmp_path / "tfds" / name) in message
    assert 'pip install "fedjax_robust[tfds-prepare]"' in message
    assert f"prepare('{name}', '{tmp_path}')" in message
    assert "{'file_format': 'array_record'}" in message


def test_where_data_are_looked_for(tmp_path, monkeypatch, cache):
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("FEDJAX_ROBUST_DATA", str(tmp_path / "ours"))
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path / "tfds_own"))
    for data_dir, variable, expected in [
        (tmp_path / "argument", None, tmp_path / "argument"),
        ("~/data", None, tmp_path / "home" / "data"),
        (None, "FEDJAX_ROBUST_DATA", tmp_path / "ours"),
        (None, "TFDS_DATA_DIR", tmp_path / "tfds_own"),
        (None, None, tmp_path / "home" / "tensorflow_datasets"),
    ]:
        with pytest.raises(FileNotFoundError) as error:
            load("mnist", data_dir)
        assert str(expected / "mnist") in str(error.value)
        if variable:
            monkeypatch.delenv(variable)


def make_folder(root, name, version="1.0.0", suffix="array_record"):
    """What TFDS leaves behind, as far as we look before decoding."""
    folder = root / name / version
    folder.mkdir(parents=True)
    (folder / "dataset_info.json").write_text(json.dumps({"name": name, "version": version}))
    (folder / f"{name}-train.{suffix}-00000-of-00001").write_bytes(b"records")
    return folder


def small_mnist(seed=0):
    generator = np.random.default_rng(seed)
    arrays = {"class_names": np.array([str(digit) for digit in range(10)])}
    for part, size in (("train", 60), ("test", 10)):
        arrays[f"x_{part}"] = generator.integers(0, 256, (size, 28, 28, 1), dtype=np.uint8)
        arrays[f"y_{part}"] = generator.integers(0, 10, size, dtype=np.uint8)
    return arrays


@pytest.fixture
def decoded(monkeypatch):
    """Decoding returns made arrays and notes each folder that it was called for."""
    calls = []

    def decode(name, folder):
        calls.append(folder)
        return small_mnist()

    monkeypatch.setattr("fedjax_robust.data.sources.tfds._decode_tfds", decode)
    return calls


@pytest.mark.parametrize("layout", [".", "tfds"])
def test_both_layouts_and_the_newest_version(layout, tmp_path, cache, decoded):
    make_folder(tmp_path / layout, "mnist", "9.0.1")
    newest = make_folder(tmp_path / layout, "mnist", "10.0.0")
    make_folder(tmp_path / layout, "mnist", "11.0.0.incompleteABC")
    data = load("mnist", tmp_path)
    assert decoded == [newest]
    assert_arrays(data, (28, 28, 1))
    expected = small_mnist()
    np.testing.assert_allclose(data.train["x"], expected["x_train"] / 255, rtol=1e-6)
    np.testing.assert_array_equal(data.test["y"], expected["y_test"])
    assert data.class_names == tuple("0123456789")


def test_a_part_of_a_published_set_is_noted(tmp_path, cache, decoded):
    make_folder(tmp_path, "mnist")
    note = load("mnist", tmp_path).note
    assert note == "first 60 training images (of 60,000); first 10 test images (of 10,000)"


def test_tfrecord_files_are_refused(tmp_path, cache):
    folder = make_folder(tmp_path, "mnist", suffix="tfrecord")
    for action in (load, prepare):
        with pytest.raises(ValueError, match="tfrecord") as error:
            action("mnist", tmp_path)
        assert str(folder) in str(error.value)
        assert "prepare('mnist'" in str(error.value)


# Folders of TFDS that are damaged, or made to do harm


TINY_RECORDS = "tiny_shakespeare-train.array_record-00000-of-00001"
FEATURES = "tensorflow_datasets.core.features."


@pytest.fixture
def tiny(tmp_path):
    """A copy of the real files that can be changed."""
    folder = tmp_path / "tfds" / "tiny_shakespeare" / "1.0.0"
    folder.mkdir(parents=True)
    for file in (REAL / "tfds" / "tiny_shakespeare" / "1.0.0").iterdir():
        shutil.copyfile(file, folder / file.name)
    return folder


def text_feature(name):
    return {"pythonClassName": name, "text": {}}


def features(inner, name=f"{FEATURES}features_dict.FeaturesDict"):
    return {"pythonClassName": name, "featuresDict": {"features": {"text": inner}}}


@needs_tiny
@pytest.mark.parametrize(
    "content",
    [
        features(text_feature("evil_module.Text")),
        features(text_feature(f"{FEATURES}text_feature.Text"), "evil_module.Features"),
        features({"python_class_name": "evil_module.Text", "text": {}}),
        features({"type": "evil_module.Text", "content": {}}),
        {"type": "evil_module.Text", "content": {}},
        {
            "pythonClassName": f"{FEATURES}features_dict.FeaturesDict",
            "jsonFeature": {"json": json.dumps({"text": {"type": "evil_module.Text", "content": {}}})},
        },
        {
            "python_class_name": f"{FEATURES}features_dict.FeaturesDict",
            "json_feature": {"json": json.dumps({"text": text_feature("evil_module.Text")})},
        },
        features(text_feature(f"evil_module.{FEATURES}Text")),
        features(text_feature("tensorflow_datasets.core.features_evil_module.Text")),
        features(text_feature(3)),
    ],
)  # fmt: skip
def test_a_folder_imports_no_module(content, tiny, tmp_path, monkeypatch):
    """TFDS would import whatever class features.json names, also one of a file in the search path."""
    for name in ("evil_module", "tensorflow_datasets/core/features_evil_module"):
        file = tmp_path / "path" / f"{name}.py"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(f"open({str(tmp_path / 'imported')!r}, 'w').close()\n")
    monkeypatch.syspath_prepend(str(tmp_path / "path"))
    (tiny / "features.json").write_text(json.dumps(content))
    with pytest.raises(
        ValueError, match=r"only classes of tensorflow_datasets\.core\.features are"
    ) as e:
        load_text("tiny_shakespeare", data_dir=tmp_path)
    assert str(tiny) in str(e.value) and "features.json" in str(e.value)
    assert not (tmp_path / "imported").exists() and "evil_module" not in sys.modules


def flip_a_byte(path):
    content = bytearray(path.read_bytes())
    content[1000] ^= 255
    path.write_bytes(content)


@needs_tiny
@pytest.mark.parametrize(
    ("file", "damage"),
    [
        (TINY_RECORDS, lambda path: path.write_bytes(path.read_bytes()[:200_000])),
        (TINY_RECORDS, lambda path: path.write_bytes(b"")),
        (TINY_RECORDS, lambda path: path.write_bytes(b"records")),
        (TINY_RECORDS, flip_a_byte),
        ("features.json", lambda path: path.write_text("{")),
        ("features.json", lambda path: path.unlink()),
        ("features.json", lambda path: path.write_text("[" * 200_000)),
        ("dataset_info.json", lambda path: path.write_text("")),
        ("dataset_info.json", lambda path: path.write_text("[]")),
    ],
    ids=["cut", "empty", "text", "one byte", "json", "gone", "deep", "no info", "list"],
)
def test_a_damaged_folder_is_named_with_the_remedy(file, damage, tiny, tmp_path):
    damage(tiny / file)
    with pytest.raises(ValueError, match="damaged, incomplete") as error:
        load_text("tiny_shakespeare", data_dir=tmp_path)
    for part in (str(tiny), file, "delete that folder", f"('tiny_shakespeare', '{tmp_path}')"):
        assert part in str(error.value)


@pytest.mark.parametrize("name", ["mnist", "cifar10"])
def test_damaged_images_are_named_with_the_remedy(name, tmp_path, cache):
    """A folder as TFDS leaves it, with records that are none."""
    folder = make_folder(tmp_path, name)
    image = {"dtype": "uint8", "shape": {"dimensions": ["28", "28", "1"]}}
    inner = {
        "image": {"pythonClassName": f"{FEATURES}image_feature.Image", "image": image},
        "label": {
            "pythonClassName": f"{FEATURES}class_label_feature.ClassLabel",
            "classLabel": {"numClasses": "10"},
        },
    }
    content = features({}) | {"featuresDict": {"features": inner}}
    (folder / "features.json").write_text(json.dumps(content))
    (folder / "dataset_info.json").write_text(
        json.dumps(
            {
                "name": name,
                "version": "1.0.0",
                "fileFormat": "array_record",
                "splits": [
                    {
                        "name": part,
                        "numBytes": "9",
                        "shardLengths": ["3"],
                        "filepathTemplate": "{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}",
                    }
                    for part in ("train", "test")
                ],
            }
        )
    )
    with pytest.raises(ValueError, match="64KB") as error:
        load(name, tmp_path)
    for part in (str(folder), f"{name}-train.array_record-00000-of-00001", f"prepare('{name}'"):
        assert part in str(error.value)
    if name == "cifar10":
        with pytest.raises(ValueError, match=r"cifar10-train\.array_record.* delete that folder"):
            cifar10_rows([0], tmp_path)


# prepare


@pytest.mark.parametrize("layout", [".", "tfds"])
def test_prepare_calls_tfds(layout, tmp_path, monkeypatch):
    import tensorflow_datasets as tfds

    (tmp_path / layout).mkdir(exist_ok=True)
    signature = inspect.signature(tfds.data_source)
    calls = []

    def data_source(*args, **kwargs):
        calls.append(signature.bind(*args, **kwargs).arguments)
        make_folder(tmp_path / layout, "mnist", "3.0.1")

    monkeypatch.setattr(tfds, "data_source", data_source)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object())
    assert prepare("mnist", tmp_path) == tmp_path / layout / "mnist" / "3.0.1"
    assert prepare("mnist", tmp_path) == tmp_path / layout / "mnist" / "3.0.1"
    assert calls == [
        {
            "name": "mnist",
            "data_dir": tmp_path / layout,
            "download": True,
            "download_and_prepare_kwargs": {"file_format": "array_record"},
        }
    ]
    keywords = inspect.signature(tfds.core.DatasetBuilder.download_and_prepare).parameters
    assert "file_format" in keywords


def test_prepare_rejects(tmp_path, monkeypatch):
    with pytest.raises(ValueError, match="'digits'"):
        prepare("digits", tmp_path)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ImportError, match=r"fedjax_robust\[tfds-prepare\]"):
        prepare("mnist", tmp_path)


# The cache


def test_decoding_happens_once(tmp_path, cache, decoded):
    folder = make_folder(tmp_path, "mnist")
    first = load("mnist", tmp_path)
    second = load("mnist", tmp_path)
    assert len(decoded) == 1
    np.testing.assert_array_equal(first.train["x"], second.train["x"])
    np.testing.assert_array_equal(first.test["y"], second.test["y"])
    assert second.class_names == first.class_names
    (file,) = cache.iterdir()
    with np.load(file, allow_pickle=False) as content:
        assert content["x_train"].dtype == np.uint8
    record = next(folder.glob("*.array_record*"))
    os.utime(record, ns=(1, 1))
    load("mnist", tmp_path)
    assert len(decoded) == 2
    record.write_bytes(b"other records")
    os.utime(record, ns=(1, 1))
    load("mnist", tmp_path)
    assert len(decoded) == 3
    assert len(list(cache.iterdir())) == 1


def flip_a_pixel(file):
    content = bytearray(file.read_bytes())
    place = content.find(small_mnist()["x_train"].tobytes())
    assert place > 0
    content[place + 100] ^= 1
    file.write_bytes(content)


def swap_arrays(file):
    """A sound zip file whose content is not what the checksum was taken of."""
    with np.load(file) as content:
        arrays = dict(content)
    arrays["y_test"] = arrays["y_test"][::-1]
    np.savez(file, **arrays)


@pytest.mark.parametrize(
    "damage",
    [
        lambda file: file.write_bytes(b""),
        lambda file: file.write_bytes(b"no zip file"),
        lambda file: file.write_bytes(file.read_bytes()[:-5_000]),
        lambda file: np.savez(file, x_train=np.zeros(3)),
        flip_a_pixel,
        swap_arrays,
    ],
    ids=["empty", "text", "truncated", "other content", "one bit", "checksum"],
)
def test_a_damaged_cache_is_made_again(damage, tmp_path, cache, decoded):
    make_folder(tmp_path, "mnist")
    first = load("mnist", tmp_path)
    (file,) = cache.iterdir()
    sound = file.read_bytes()
    damage(file)
    with pytest.warns(UserWarning, match="making it again"):
        again = load("mnist", tmp_path)
    assert len(decoded) == 2
    np.testing.assert_array_equal(first.train["x"], again.train["x"])
    np.testing.assert_array_equal(first.test["y"], again.test["y"])
    assert file.read_bytes() == sound


def written_by_others(folder, monkeypatch):
    folder.chmod(0o777)


def written_by_the_group(folder, monkeypatch):
    folder.chmod(0o770)


def owned_by_another(folder, monkeypatch):
    owner = folder.stat().st_uid
    monkeypatch.setattr(os, "getuid", lambda: owner + 1)


@pytest.mark.skipif(not hasattr(os, "getuid"), reason="owners and modes are POSIX's")
@pytest.mark.parametrize("make", [written_by_others, written_by_the_group, owned_by_another])
def test_a_cache_folder_of_others_is_refused(make, tmp_path, monkeypatch, cache, decoded):
    make_folder(tmp_path, "mnist")
    load("mnist", tmp_path)
    before = [file.read_bytes() for file in cache.iterdir()]
    make(cache, monkeypatch)
    with pytest.raises(ValueError, match=r"cache folder .* user.* FEDJAX_ROBUST_CACHE") as error:
        load("mnist", tmp_path)
    assert str(cache) in str(error.value)
    with pytest.raises(ValueError, match="cache folder"):
        sources.cache_dir()
    assert len(decoded) == 1 and [file.read_bytes() for file in cache.iterdir()] == before


def test_the_cache_folder_is_the_users_own(tmp_path, cache, decoded):
    """Also with a umask that lets the group write."""
    make_folder(tmp_path, "mnist")
    before = os.umask(0o002)
    try:
        load("mnist", tmp_path)
        load("mnist", tmp_path)
    finally:
        os.umask(before)
    assert stat.S_IMODE(cache.stat().st_mode) == 0o700 and len(decoded) == 1
    assert sources.cache_dir() == cache


@pytest.mark.parametrize("name", ["../../x", "a/b", "", ".hidden", "x" * 101, "a\0", None, "a b"])
def test_names_of_cache_files_stay_inside(name, tmp_path, cache):
    file = tmp_path / "source"
    file.write_text("")
    with pytest.raises(ValueError, match="cached needs a name"):
        cached(name, [file], lambda: {"x": np.zeros(1)})
    with pytest.raises(ValueError, match="at least one file"):
        cached("name", [], lambda: {"x": np.zeros(1)})
    assert [p.name for p in tmp_path.rglob("*")] == ["source"]


def npy(array=None, *, shape=None, descr="<f8", size=None):
    """The bytes of an npy file, also with a header that lies."""
    file = io.BytesIO()
    if array is not None:
        np.save(file, array, allow_pickle=True)
    else:
        header = {"descr": descr, "fortran_order": False, "shape": shape}
        np.lib.format.write_array_header_1_0(file, header)
        file.write(bytes(size))
    return file.getvalue()


def write_zip(path, members, compression=zipfile.ZIP_STORED):
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, content in members:
            archive.writestr(name, content)


@pytest.mark.filterwarnings("ignore:Duplicate name")
@pytest.mark.parametrize(
    ("members", "compression", "message"),
    [
        ([("x.npy", npy(np.zeros(10**7)))], zipfile.ZIP_DEFLATED, "compressed in a way"),
        ([("x.npy", npy(np.zeros(9)))], zipfile.ZIP_BZIP2, "compressed in a way"),
        ([("x.npy", npy(shape=(2**40,), size=8))], zipfile.ZIP_STORED, "has 8 bytes"),
        ([("x.npy", npy(shape=(2**70,), size=8))], zipfile.ZIP_STORED, "has 8 bytes"),
        ([("x.npy", npy(shape=(3,), size=32))], zipfile.ZIP_STORED, "has 32 bytes"),
        ([("x.npy", npy(shape=(-1,), size=8))], zipfile.ZIP_STORED, "has 8 bytes"),
        ([("x.npy", npy(np.array([None])))], zipfile.ZIP_STORED, "dtype object"),
        ([("x.npy", npy(np.zeros(1))), ("x.npy", npy(np.ones(1)))], zipfile.ZIP_STORED, "twice"),
        ([("x.txt", b"abc")], zipfile.ZIP_STORED, "no array"),
        ([("x.npy", b"abc")], zipfile.ZIP_STORED, "magic|EOF|expected"),
    ],
    ids=["bomb", "bzip2", "8 TiB", "2^73", "more", "-1", "object", "twice", "text", "no npy"],
)  # fmt: skip
def test_archives_that_do_harm_are_refused(members, compression, message, tmp_path):
    path = tmp_path / "x.npz"
    write_zip(path, members, compression)
    with pytest.raises(ValueError, match=message):
        npz.read(path)


def test_archives_are_read_as_they_were_written(tmp_path):
    arrays = {
        "a": np.arange(12.0).reshape(3, 4).T,  # in Fortran's order
        "b": np.array(["é", "abc"]),
        "c": np.zeros((0, 3), np.uint8),
        "d": np.array(7),
        "e": np.zeros(10**6),
    }
    np.savez(tmp_path / "plain.npz", **arrays)
    np.savez_compressed(tmp_path / "small.npz", **arrays)
    for name, compressed in (("plain", False), ("plain", True), ("small", True)):
        out = npz.read(tmp_path / f"{name}.npz", compressed=compressed)
        assert out.keys() == arrays.keys()
        for key, array in arrays.items():
            assert out[key].dtype == array.dtype and out[key].shape == array.shape
            np.testing.assert_array_equal(out[key], array)
    assert npz.read(tmp_path / "small.npz", ["b"], compressed=True).keys() == {"b"}
    with pytest.raises(ValueError, match="lacks z, y"):
        npz.read(tmp_path / "plain.npz", ["a", "z", "y"])
    with pytest.raises(FileNotFoundError):
        npz.read(tmp_path / "nothing.npz")


def test_what_is_not_asked_for_is_not_unpacked(tmp_path):
    """A gigabyte of zeros in a megabyte, beside a small array; and the same one asked for."""
    path = tmp_path / "bomb.npz"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("x.npy", npy(np.arange(3)))
        with archive.open("bomb.npy", "w", force_zip64=True) as member:
            member.write(npy(shape=(2**27,), size=0))
            for _ in range(128):
                member.write(bytes(2**23))
    assert path.stat().st_size < 2**21
    assert npz.read(path, ["x"], compressed=True)["x"].tolist() == [0, 1, 2]
    for options in ({"compressed": True}, {"names": ["x", "bomb"], "compressed": True}):
        with pytest.raises(ValueError, match="would expand to 1,073,"):
            npz.read(path, **options)


def test_a_bomb_in_the_cache_is_made_again(tmp_path, cache, decoded):
    make_folder(tmp_path, "mnist")
    first = load("mnist", tmp_path)
    (file,) = cache.iterdir()
    with zipfile.ZipFile(file, "a", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("other.npy", npy(np.zeros(10**6)))
    with pytest.warns(UserWarning, match=r"other compressed in a way .* making it again"):
        again = load("mnist", tmp_path)
    assert len(decoded) == 2
    np.testing.assert_array_equal(first.train["x"], again.train["x"])


def test_a_cache_that_cannot_be_written_is_no_failure(tmp_path, monkeypatch, decoded):
    make_folder(tmp_path, "mnist")
    (tmp_path / "file").write_text("not a folder")
    monkeypatch.setenv("FEDJAX_ROBUST_CACHE", str(tmp_path / "file" / "cache"))
    with pytest.warns(UserWarning, match="FEDJAX_ROBUST_CACHE"):
        assert len(load("mnist", tmp_path).train["y"]) == 60


def test_two_processes_build_the_cache_at_once(tmp_path):
    """Both are inside decode at the same time: each waits until the other one has started."""
    source, cache = tmp_path / "source", tmp_path / "cache"
    source.write_text("records")
    script = textwrap.dedent(
        """
        import sys, time
        from pathlib import Path
        import numpy as np
        from fedjax_robust.data.sources.cache import cached
        folder, me, other = Path(sys.argv[1]), sys.argv[2], sys.argv[3]
        def decode():
            (folder / me).touch()
            while not (folder / other).exists():
                time.sleep(0.005)
            return {"x": np.arange(2_000_000, dtype=np.int32)}
        for repeat in range(2):
            arrays = cached("made", [folder / "source"], decode)
            assert arrays["x"].sum(dtype=np.int64) == 1_999_999_000_000
            decode = None  # the second time it must come from the cache
        """
    )
    processes = [
        subprocess.Popen(
            [sys.executable, "-W", "error::UserWarning", "-c", script, str(tmp_path), *names],
            env={**os.environ, "FEDJAX_ROBUST_CACHE": str(cache)},
            stderr=subprocess.PIPE,
            text=True,
        )
        for names in (("a", "b"), ("b", "a"))
    ]
    for process in processes:
        _, error = process.communicate(timeout=120)
        assert process.returncode == 0, error
    assert [file.suffix for file in cache.iterdir()] == [".npz"]


def test_import_is_light():
    script = (
        "import sys, fedjax_robust.data; "
        "print([m for m in ('tensorflow', 'tensorflow_datasets', 'sklearn', 'PIL', 'array_record')"
        " if m in sys.modules and not m.startswith('_')])"
    )
    out = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "[]"


# CH-MNIST, in the two published layouts


def write_csv(path, x, y):
    path.parent.mkdir(parents=True, exist_ok=True)
    header = [f"pixel{i:04d}" for i in range(x.shape[1])]
    lines = [",".join([*header, "label"])]
    lines += [",".join(map(str, [*row, label])) for row, label in zip(x, y, strict=True)]
    path.write_text("\n".join(lines) + "\n")


@pytest.fixture
def histology():
    """16 gray images, two of each tissue; the first pixel numbers them."""
    generator = np.random.default_rng(0)
    x = generator.integers(0, 256, (16, 4096))
    x[:, 0] = np.arange(16)
    return x, np.repeat(np.arange(1, 9), 2)


@pytest.mark.parametrize("folder", [".", "ch_mnist"])
def test_ch_mnist_csv(folder, tmp_path, cache, histology):
    x, y = histology
    write_csv(tmp_path / folder / "hmnist_64_64_L.csv", x, y)
    data = load("ch_mnist", tmp_path)
    assert_arrays(data, (64, 64, 1))
    assert (len(data.train["y"]), len(data.test["y"])) == (12, 4)
    assert data.num_classes == 8
    assert data.class_names[0] == "tumor"
    assert data.class_names[7] == "empty"
    assert data.note == "random split 12/4 of 16 images (the published set has 5,000)"
    images = np.rint(raw_rows(data) * 255).astype(int)
    number = images[:, 0, 0, 0]
    assert sorted(number) == list(range(16))
    np.testing.assert_array_equal(images.reshape(16, -1), x[number])
    labels = np.concatenate([data.train["y"], data.test["y"]])
    np.testing.assert_array_equal(labels, number // 2)  # labels 1..8 become 0..7
    other = load("ch_mnist", tmp_path, jax.random.key(5))
    assert not np.array_equal(other.train["y"], data.train["y"])
    assert len(list(cache.iterdir())) == 1


def test_ch_mnist_csv_of_another_form(tmp_path, cache, histology):
    x, y = histology
    path = tmp_path / "hmnist_64_64_L.csv"
    write_csv(path, x[:, :784], y)
    with pytest.raises(ValueError, match="got 785"):
        load("ch_mnist", tmp_path)
    for bad_x, bad_y in ((x, y - 1), (x + 1, y)):
        write_csv(path, bad_x, bad_y)
        with pytest.raises(ValueError, match=r"pixels in 0\.\.255 and labels in 1\.\.8"):
            load("ch_mnist", tmp_path)


def drop_a_number(text):
    lines = text.splitlines()
    lines[3] = lines[3].rsplit(",", 1)[0]
    return "\n".join(lines)


@pytest.mark.parametrize(
    "damage",
    [
        drop_a_number,
        lambda text: text.replace(",7,", ",7.5,", 1),
        lambda text: text.replace(",7,", ",=7,", 1),
        lambda text: text.replace(",7,", ",7#,", 1),
        lambda text: text.replace(",7,", ",nan,", 1),
        lambda text: text.replace(",7,", ",99999999999999999999,", 1),
        lambda text: text.replace("pixel0001", "pixelé001", 1),
        lambda text: text + "é",
        lambda text: text.splitlines()[0] + "\n",
        lambda text: "",
    ],
    ids=["short", "7.5", "formula", "comment", "nan", "big", "latin-1", "é", "header", "empty"],
)
def test_a_damaged_csv_is_named(damage, tmp_path, cache, histology):
    path = tmp_path / "hmnist_64_64_L.csv"
    write_csv(path, *histology)
    path.write_text(damage(path.read_text()), encoding="latin-1")
    with pytest.raises(ValueError, match=r"again|take hmnist") as error:
        load("ch_mnist", tmp_path)
    assert str(path) in str(error.value)


def big_tile(path):
    """13,000 x 13,000 pixels in a few kilobytes."""
    from PIL import Image

    Image.new("1", (13_000, 13_000)).save(path, compression="group4")
    assert path.stat().st_size < 20_000


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (big_tile, "13000x13000|decompression bomb"),
        (lambda path: path.write_bytes(path.read_bytes()[:300]), "again"),
        (lambda path: path.write_bytes(b"text"), "cannot identify"),
        (lambda path: path.write_bytes(b""), "cannot identify"),
    ],
    ids=["big", "cut", "text", "empty"],
)
def test_a_damaged_tile_is_named(damage, message, tmp_path, cache):
    from PIL import Image

    folder = tmp_path / "Kather_texture_2016_image_tiles_5000" / "01_TUMOR"
    folder.mkdir(parents=True)
    Image.new("RGB", (150, 150)).save(folder / "1.tif")
    damage(folder / "1.tif")
    with pytest.raises(ValueError, match=rf"{folder / '1.tif'} is no tile .*({message})"):
        load("ch_mnist", tmp_path)


@pytest.mark.parametrize(
    "folder",
    [
        "Kather_texture_2016_image_tiles_5000",
        "ch_mnist/kather_texture_2016_image_tiles_5000/Kather_texture_2016_image_tiles_5000",
    ],
)
def test_ch_mnist_tiles(folder, tmp_path, cache):
    from PIL import Image

    tissues = ["TUMOR", "STROMA", "COMPLEX", "LYMPHO", "DEBRIS", "MUCOSA", "ADIPOSE", "EMPTY"]
    for i, tissue in enumerate(tissues):
        inner = tmp_path / folder / f"{i + 1:02d}_{tissue}"
        inner.mkdir(parents=True)
        color = (20 * i, 10, 30)
        for copy in range(2):
            Image.new("RGB", (150, 150), color).save(inner / f"{copy}.tif")
    data = load("ch_mnist", tmp_path)
    assert_arrays(data, (64, 64, 1))
    assert (len(data.train["y"]), len(data.test["y"])) == (12, 4)
    assert "made from the RGB tiles" in data.note
    labels = np.concatenate([data.train["y"], data.test["y"]])
    np.testing.assert_array_equal(np.bincount(labels), 8 * [2])
    # ITU-R 601 luma of a plain tile; one gray level for rounding.
    luma = (0.299 * 20 * labels + 0.587 * 10 + 0.114 * 30) / 255
    images = raw_rows(data)
    np.testing.assert_allclose(images.max(axis=(1, 2, 3)), luma, atol=1.01 / 255)
    np.testing.assert_array_equal(images.max(axis=(1, 2, 3)), images.min(axis=(1, 2, 3)))


def test_ch_mnist_missing(tmp_path, cache):
    with pytest.raises(FileNotFoundError) as error:
        load("ch_mnist", tmp_path)
    for part in (str(tmp_path / "ch_mnist"), "hmnist_64_64_L.csv", "kaggle.com", "zenodo.org"):
        assert part in str(error.value)
    (tmp_path / "Kather_texture_2016_image_tiles_5000").mkdir()
    with pytest.raises(ValueError, match="no tiles"):
        load("ch_mnist", tmp_path)


# HAR, in the published layout and as npz

HAR_COUNTS = {1: 9, 4: 4, 30: 2}  # examples of a user; 75 %, rounded up: 7, 3, 2


@pytest.fixture
def activities():
    """15 examples of users 1, 4, 30; the first feature numbers them. Users 1 and 30 are published as
    training, user 4 as test users."""
    generator = np.random.default_rng(0)
    x = generator.uniform(-1, 1, (15, 561)).round(3)
    x[:, 0] = np.arange(15) / 100
    user = np.array([30, 1, 1, 1, 1, 30, 1, 1, 1, 1, 1, 4, 4, 4, 4])
    return x, 1 + np.arange(15) % 6, user, user == 4


def write_har(folder, activities):
    x, y, user, test = activities
    for part, rows in (("train", ~test), ("test", test)):
        (folder / part).mkdir(parents=True, exist_ok=True)
        lines = ["".join(f"{v: .7e} " for v in row) for row in x[rows]]  # two blanks in between
        (folder / part / f"X_{part}.txt").write_text("\n".join(lines) + "\n")
        for name, column in (("y", y), ("subject", user)):
            text = "".join(f"{value}\n" for value in column[rows])
            (folder / part / f"{name}_{part}.txt").write_text(text)


def save_har(path, activities, **changes):
    x, y, user, test = activities
    columns = {"x": x, "y": y - 1, "subject": user} | changes
    np.savez(
        path,
        **{f"{name}_train": column[~test] for name, column in columns.items()},
        **{f"{name}_test": column[test] for name, column in columns.items()},
    )


@pytest.mark.parametrize("layout", ["folder", "har/folder", "npz"])
def test_har(layout, tmp_path, cache, activities):
    if layout == "npz":
        save_har(tmp_path / "uci_har.npz", activities)
    else:
        write_har(tmp_path / layout.replace("folder", "UCI HAR Dataset"), activities)
        (tmp_path / "uci_har.npz").write_bytes(b"the archive comes first")
    data = load("har", tmp_path)
    assert_arrays(data, (561,))
    assert data.num_classes == 6
    assert data.class_names[1] == "walking upstairs"
    assert data.class_names[5] == "laying"
    assert data.note == (
        "3 of the 30 users: 15 of 10,299 examples; random split 12/3 inside each user"
    )
    x, y, user, _ = activities
    number = np.rint(raw_rows(data)[:, 0] * 100).astype(int)
    assert sorted(number) == list(range(15))
    np.testing.assert_allclose(raw_rows(data), x[number], rtol=1e-6)
    both = {k: np.concatenate([data.train[k], data.test[k]]) for k in ("y", "user")}
    np.testing.assert_array_equal(both["y"], y[number] - 1)
    np.testing.assert_array_equal(both["user"], np.searchsorted([1, 4, 30], user[number]))
    assert both["user"].dtype == np.int32
    np.testing.assert_array_equal(np.bincount(data.train["user"]), [7, 3, 2])
    np.testing.assert_array_equal(np.bincount(data.test["user"]), [2, 1])
    # One client per user.
    clients = by_user(data.train["user"], data.train)
    np.testing.assert_array_equal(clients.count, [7, 3, 2])
    # The key draws the split, and nothing else.
    again, other = (load("har", tmp_path, jax.random.key(k)) for k in (0, 5))
    np.testing.assert_array_equal(again.train["x"], data.train["x"])
    assert not np.array_equal(other.train["x"], data.train["x"])
    np.testing.assert_array_equal(np.bincount(other.train["user"]), [7, 3, 2])
    assert len(list(cache.glob("*"))) == (0 if layout == "npz" else 1)


def test_har_split_is_uniform(tmp_path, cache, activities):
    """User 4's only test example is each of the four equally often."""
    save_har(tmp_path / "uci_har.npz", activities)
    held_out = np.zeros(15)
    draws = 200
    for seed in range(draws):
        test = load("har", tmp_path, jax.random.key(seed)).test["x"]
        held_out[np.rint(test[:, 0] * 100).astype(int)] += 1
    error = 5 * np.sqrt(draws * 0.25 * 0.75)
    np.testing.assert_allclose(held_out[11:], draws / 4, atol=error)
    np.testing.assert_allclose(held_out[[1, 2, 3, 4, 6, 7, 8, 9, 10]], draws * 2 / 9, atol=error)
    assert held_out[0] == held_out[5] == 0


def test_har_of_all_users_needs_no_note_of_them(tmp_path, cache):
    """30 users with the published number of examples; the examples themselves do not matter."""
    rows = 10_299
    user = 1 + np.arange(rows) % 30  # 9 users own 344 and 21 own 343 examples: 258 each to train
    save_har(
        tmp_path / "uci_har.npz",
        (np.zeros((rows, 561), np.float32), 1 + np.arange(rows) % 6, user, user < 10),
    )
    data = load("har", tmp_path)
    assert data.note == "random split 7740/2559 inside each user"
    np.testing.assert_array_equal(np.bincount(data.train["user"]), 30 * [258])


@pytest.mark.parametrize("file", ["X_train", "y_test", "subject_train"])
@pytest.mark.parametrize(
    "damage",
    [
        lambda text: "",
        lambda text: text[: len(text) // 2].rsplit("\n", 1)[0] + "\n",
        lambda text: text[:-1] + " 1\n",
        lambda text: text.replace(text.split()[0], "7.5", 1),
        lambda text: text.replace(text.split()[0], "nan", 1),
        lambda text: text.replace(text.split()[0], "99", 1),
    ],
    ids=["empty", "truncated", "one column more", "7.5", "nan", "99"],
)
def test_damaged_har_is_refused(file, damage, tmp_path, cache, activities):
    folder = tmp_path / "UCI HAR Dataset"
    write_har(folder, activities)
    path = folder / file.split("_")[1] / f"{file}.txt"
    path.write_text(damage(path.read_text()))
    with pytest.raises(ValueError, match=r"again") as error:
        load("har", tmp_path)
    assert str(folder) in str(error.value)


def test_incomplete_har_is_refused(tmp_path, cache, activities):
    folder = tmp_path / "UCI HAR Dataset"
    write_har(folder, activities)
    (folder / "test" / "X_test.txt").unlink()
    with pytest.raises(ValueError, match=r"lacks test.X_test\.txt; unpack"):
        load("har", tmp_path)


def test_damaged_har_npz_is_refused(tmp_path, cache, activities):
    path = tmp_path / "uci_har.npz"
    x, y, user, _ = activities
    for changes in (
        {"x": x[:, :-1]},
        {"x": x + 1},
        {"x": np.where(x == 0, np.nan, x)},
        {"y": y},
        {"y": y - 2},
        {"subject": user - 1},
        {"subject": user + 1},
    ):
        save_har(path, activities, **changes)
        with pytest.raises(ValueError, match="561 features"):
            load("har", tmp_path)
    for changes in (
        {"y": (y - 1) + 0.7},
        {"y": (y - 1).astype(str)},
        {"y": y > 3},
        {"subject": user + 0.5},
        {"subject": user.astype(np.complex64)},
        {"x": x + 1e-3j},
        {"x": x.astype(str)},
        {"x": x > 0},
        {"x": x.astype(object)},
    ):
        save_har(path, activities, **changes)
        with pytest.raises(
            ValueError, match=rf"uci_har\.npz is damaged \(.*({next(iter(changes))}_tr|obj)"
        ):
            load("har", tmp_path)
    np.savez(path, x_train=x)
    with pytest.raises(ValueError, match=r"uci_har\.npz is damaged \(it lacks x_test, y_train"):
        load("har", tmp_path)
    path.write_bytes(b"no zip file")
    with pytest.raises(ValueError, match="is damaged"):
        load("har", tmp_path)


def test_har_missing(tmp_path, cache):
    with pytest.raises(FileNotFoundError) as error:
        load("har", tmp_path)
    for part in (
        "'UCI HAR Dataset'",
        "uci_har.npz",
        str(tmp_path / "har"),
        "https://archive.ics.uci.edu/dataset/240",
        str(tmp_path / "UCI HAR Dataset" / "train" / "X_train.txt"),
    ):
        assert part in str(error.value)


# The real data, where they are to be had


def real(name):
    try:
        return load(name)
    except FileNotFoundError as error:
        pytest.skip(f"{name} is not on this machine: {str(error).splitlines()[0]}")


def test_real_mnist():
    data = real("mnist")
    assert_arrays(data, (28, 28, 1))
    assert (len(data.train["y"]), len(data.test["y"])) == (60_000, 10_000)
    train = [5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949]
    test = [980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009]
    np.testing.assert_array_equal(np.bincount(data.train["y"]), train)
    np.testing.assert_array_equal(np.bincount(data.test["y"]), test)
    assert data.train["x"].mean(dtype=np.float64) == pytest.approx(0.1307, abs=5e-5)
    assert data.train["x"].std(dtype=np.float64) == pytest.approx(0.3081, abs=5e-5)
    assert (data.train["x"].min(), data.train["x"].max()) == (0, 1)
    assert data.note == ""


def test_real_fashion_mnist():
    data = real("fashion_mnist")
    assert_arrays(data, (28, 28, 1))
    np.testing.assert_array_equal(np.bincount(data.train["y"]), 10 * [6_000])
    np.testing.assert_array_equal(np.bincount(data.test["y"]), 10 * [1_000])
    assert data.train["x"].mean(dtype=np.float64) == pytest.approx(0.2860, abs=5e-5)
    assert data.train["x"].std(dtype=np.float64) == pytest.approx(0.3530, abs=5e-5)
    assert data.class_names[9] == "Ankle boot"


def test_real_cifar10():
    data = real("cifar10")
    assert_arrays(data, (32, 32, 3))
    np.testing.assert_array_equal(np.bincount(data.train["y"]), 10 * [5_000])
    mean = data.train["x"].mean(axis=(0, 1, 2), dtype=np.float64)
    np.testing.assert_allclose(mean, [0.4914, 0.4822, 0.4465], atol=1e-4)
    assert data.class_names == tuple(CIFAR_LABELS)
    size = len(data.test["y"])
    assert data.note == ("" if size == 10_000 else f"first {size:,} test images (of 10,000)")
    # Images by their published numbers: green cars, and cars before yellow and blue walls.
    green = data.train["x"][cifar10_rows(CIFAR_GREEN_CARS), 8:24, 8:24].mean(axis=(0, 1, 2))
    assert green[1] > green[0] and green[1] > green[2]
    wall = data.train["x"][cifar10_rows(CIFAR_STRIPED_WALLS), :6].mean(axis=(0, 1, 2))
    assert wall[0] > wall[1] > wall[2] + 0.1
    for numbers in (CIFAR_GREEN_CARS, CIFAR_STRIPED_WALLS, CIFAR_RACING_STRIPES):
        assert np.all(data.train["y"][cifar10_rows(numbers)] == 1)
    with pytest.raises(ValueError, match="got 50000 to 50000"):
        cifar10_rows([50_000])


def test_real_har():
    """Sizes of the users, labels and split by hand, from the published counts of examples."""
    data = real("har")
    assert_arrays(data, (561,))
    sizes = np.array(  # of users 1, 2, ..., 30
        [
            *(347, 302, 341, 317, 302, 325, 308, 281, 288, 294),
            *(316, 320, 327, 323, 328, 366, 368, 364, 360, 354),
            *(408, 321, 372, 381, 409, 392, 376, 382, 344, 383),
        ]
    )
    if "21 of the 30" in data.note:
        sizes = np.delete(sizes, np.array([2, 4, 9, 10, 12, 13, 18, 20, 24]) - 1)
    train = -(-3 * sizes // 4)
    np.testing.assert_array_equal(np.bincount(data.train["user"]), train)
    np.testing.assert_array_equal(np.bincount(data.test["user"]), sizes - train)
    y = np.concatenate([data.train["y"], data.test["y"]])
    if len(sizes) == 21:
        np.testing.assert_array_equal(np.bincount(y), [1226, 1073, 986, 1286, 1374, 1407])
        assert data.note == (
            "21 of the 30 users: 7,352 of 10,299 examples; random split 5519/1833 inside each user"
        )
    else:
        np.testing.assert_array_equal(np.bincount(y), [1722, 1544, 1406, 1777, 1906, 1944])
        assert data.note == "random split 7732/2567 inside each user"
    x = raw_rows(data)
    assert x.min() == -1
    assert x.max() == 1
    # Activities differ: the nearest class mean is right most of the time.
    means = np.stack([data.train["x"][data.train["y"] == label].mean(axis=0) for label in range(6)])
    distance = ((data.test["x"][:, None] - means) ** 2).sum(axis=2)
    assert np.mean(distance.argmin(axis=1) != data.test["y"]) < 0.3
