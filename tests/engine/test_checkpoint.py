"""Checkpoints: nothing is lost, nothing foreign is accepted, and a killed run ends bit-identical."""

import io
import os
import signal
import subprocess
import sys
import time
import tracemalloc
import zipfile

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import fedjax_robust
from fedjax_robust import aggregators, attacks, engine, tasks
from fedjax_robust.clients.local import local_sgd
from fedjax_robust.data import partition
from fedjax_robust.engine import checkpoint
from fedjax_robust.files import locked, named, written_atomically
from fedjax_robust.types import SimState, Simulation, Task

REMEDY = "delete it to start anew, or use another file"


def leaves(tree):
    """Every leaf as an array; typed keys as integers."""
    return [np.asarray(checkpoint._plain(leaf)) for leaf in jax.tree.leaves(tree)]


def assert_identical(actual, expected):
    assert jax.tree.structure(actual) == jax.tree.structure(expected)
    for a, e in zip(leaves(actual), leaves(expected), strict=True):
        assert a.dtype == e.dtype
        np.testing.assert_array_equal(a, e)


# --- Files ---------------------------------------------------------------------------------------


def test_written_atomically(tmp_path):
    path = tmp_path / "new" / "folder" / "file"
    with written_atomically(path) as file:
        file.write(b"first")
        assert not path.exists()
    assert path.read_bytes() == b"first"
    with written_atomically(str(path)) as file:
        file.write(b"second")
        file.flush()
        assert path.read_bytes() == b"first"
    assert path.read_bytes() == b"second"
    assert os.listdir(path.parent) == ["file"]
    assert path.stat().st_mode & 0o777 == 0o644


@pytest.mark.parametrize(("mask", "mode"), [(0o077, 0o600), (0o027, 0o640), (0o002, 0o664)])
def test_who_may_read_a_new_file_is_as_for_any_other(tmp_path, mask, mode):
    before = os.umask(mask)
    try:
        with written_atomically(tmp_path / "file") as file:
            file.write(b"x")
    finally:
        os.umask(before)
    assert (tmp_path / "file").stat().st_mode & 0o777 == mode
    with written_atomically(tmp_path / "file") as file:  # under the usual mask: stays private
        file.write(b"y")
    assert (tmp_path / "file").stat().st_mode & 0o777 == mode


def test_one_run_at_a_time(tmp_path):
    path = tmp_path / "new" / "file"
    with locked(path):
        with pytest.raises(ValueError, match="being written by another run"), locked(path):
            raise AssertionError("two are inside")
        with locked(tmp_path / "new" / "other"):
            pass
    with locked(path):
        pass
    assert os.listdir(path.parent) == []


@pytest.mark.parametrize(
    ("path", "error"), [("", ValueError), (3, TypeError), (b"x", TypeError), (".", ValueError)]
)
def test_names_of_files(path, error):
    with pytest.raises(error, match="run needs checkpoint to be"):
        named("run", "checkpoint", path)


def test_an_error_while_writing_changes_nothing(tmp_path):
    path = tmp_path / "file"
    path.write_bytes(b"old")

    def write_half():
        with written_atomically(path) as file:
            file.write(b"new")
            raise RuntimeError("half way")

    with pytest.raises(RuntimeError, match="half way"):
        write_half()
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["file"]


def test_the_new_file_is_synced_and_whole_before_it_replaces_the_old(tmp_path, monkeypatch):
    path = tmp_path / "file"
    events = []
    real_sync, real_replace = os.fsync, os.replace

    def replace(source, target):
        with open(source, "rb") as file:
            events.append(("replace", file.read(), os.path.dirname(source) == str(tmp_path)))
        real_replace(source, target)

    monkeypatch.setattr(os, "fsync", lambda fd: (events.append("sync"), real_sync(fd)))
    monkeypatch.setattr(os, "replace", replace)
    with written_atomically(path) as file:
        file.write(b"x" * 100_000)
    assert events == ["sync", ("replace", b"x" * 100_000, True)]


# --- Save and restore ----------------------------------------------------------------------------


def make_state(keys=None, params=(3,)):
    params = jnp.arange(np.prod(params), dtype=jnp.float32).reshape(params) / 3
    optimizer = optax.adam(0.1)
    _, opt = optimizer.update(params, optimizer.init(params), params)
    return SimState(
        params=params,
        opt=opt,
        aggregator={"seen": jnp.array([True, False]), "keys": jax.random.split(jax.random.key(1))},
        attack=(),
        clients=(jnp.zeros((2, 0)), (jnp.int32(7), jnp.array([jnp.nan, jnp.inf, -0.0]))),
        key=jax.random.key(3) if keys is None else keys,
        round=jnp.int32(11),
    )


HISTORY = {"round": jnp.array([5, 11]), "train_loss": jnp.linspace(0, 1, 11)}


@pytest.mark.parametrize(
    "keys",
    [
        jax.random.key(3),
        jax.random.split(jax.random.key(3), 4),
        jax.random.key(3, impl="rbg"),
    ],
    ids=["key", "keys", "rbg"],
)
def test_round_trip(tmp_path, keys):
    path = tmp_path / "made" / "run.npz"
    state = make_state(keys)
    checkpoint.save(path, state, HISTORY, 11, "program")
    like = jax.tree.map(lambda leaf: leaf, state)._replace(params=jnp.zeros(3))
    restored, history, rounds = checkpoint.restore(path, like, "program")
    assert rounds == 11
    assert_identical(restored, state)
    assert restored.key.dtype == keys.dtype
    assert list(history) == list(HISTORY)
    assert_identical(history, HISTORY)
    with np.load(path, allow_pickle=False) as file:  # no entry needs pickle
        assert all(file[name].dtype != object for name in file.files)


@pytest.fixture
def saved(tmp_path):
    path = tmp_path / "run.npz"
    checkpoint.save(path, make_state(), HISTORY, 11, "program")
    return path


def assert_refused(path, message, state=None, program="program"):
    with pytest.raises(ValueError, match=message) as caught:
        checkpoint.restore(path, state or make_state(), program)
    assert str(path) in str(caught.value) and REMEDY in str(caught.value)


def npy():
    file = io.BytesIO()
    np.save(file, np.ones(3))
    return file.getvalue()


@pytest.mark.parametrize(
    "content",
    [b"", b"not a zip file", b"PK\x03\x04", npy(), b"\x80\x04\x95"],
    ids=["empty", "text", "zip start", "npy", "pickle"],
)
def test_what_is_no_checkpoint_is_refused(saved, content):
    saved.write_bytes(content)
    assert_refused(saved, "is damaged")


def test_an_archive_of_something_else_is_refused(saved):
    np.savez(saved, x=np.ones(3))
    assert_refused(saved, "is damaged")
    saved.unlink()
    saved.mkdir()
    assert_refused(saved, "is damaged")


def test_a_truncated_file_is_refused(saved):
    content = saved.read_bytes()
    for size in [*range(1, len(content), len(content) // 40), len(content) - 1]:
        saved.write_bytes(content[:size])
        assert_refused(saved, "is damaged")


def test_a_flipped_bit_is_refused_or_without_effect(saved):
    """A few bits do not matter, such as those of a file's time within the archive."""
    content = saved.read_bytes()
    expected = checkpoint.restore(saved, make_state(), "program")
    directory = content.index(b"PK\x01\x02")
    positions = [*range(0, directory, 29), *range(directory, directory + 150), len(content) - 1]
    refused = 0
    for i in positions:
        for bit in (0, 5):
            damaged = bytearray(content)
            damaged[i] ^= 1 << bit
            saved.write_bytes(damaged)
            try:
                restored = checkpoint.restore(saved, make_state(), "program")
            except ValueError:
                refused += 1
            else:
                assert_identical(restored, expected)
    assert refused > len(positions)
    middle = content.index(np.asarray(HISTORY["train_loss"]).tobytes()) + 20
    damaged = bytearray(content)
    damaged[middle] ^= 1
    saved.write_bytes(damaged)
    assert_refused(saved, "is damaged")


def test_another_runs_checkpoint_is_refused(saved, monkeypatch):
    assert_refused(saved, "other settings, data, or seeds", program="another")
    state = make_state()
    assert_refused(
        saved, r"holds float32\(3,\) where the run has .params of", make_state(None, (4,))
    )
    assert_refused(saved, "holds int32", state._replace(round=jnp.float32(1)))
    assert_refused(saved, "holds nothing", state._replace(attack=jnp.zeros(2)))
    monkeypatch.setattr(jax, "__version__", "0.0.1")
    assert_refused(saved, r"written with jax .*, this is 0\.0\.1")
    monkeypatch.undo()
    monkeypatch.setattr(checkpoint, "_FORMAT", 3)
    assert_refused(saved, "has format 2, not 3")


# --- Crafted files: the program's digest is right, the rest is not ---------------------------------


def forge(path, digest=True, **changes):
    """A checkpoint with other members; None removes one. Its digest is made anew, as a forger would."""
    with np.load(path, allow_pickle=False) as file:
        arrays = {name: file[name] for name in file.files}
    arrays |= {name: values for name, values in changes.items() if values is not None}
    arrays = {name: v for name, v in arrays.items() if changes.get(name, 0) is not None}
    if digest:
        arrays.pop("digest", None)
        arrays["digest"] = np.array(checkpoint._digest(arrays))
    with open(path, "wb") as file:  # NumPy appends .npz to names
        np.savez(file, **arrays)


@pytest.mark.parametrize(
    "changes",
    [
        {"state/.params": np.full(3, np.nan, np.float32)},
        {"state/.params": np.full(3, 7, np.float32)},
        {"rounds": np.int64(0)},
        {"history/train_loss": np.zeros(11, np.float32)},
        {"history/train_loss": None},
        {"every": np.int64(3)},
    ],
)
def test_changed_content_is_refused(saved, changes):
    forge(saved, digest=False, **changes)
    assert_refused(saved, "content does not fit its digest|it says 0 rounds")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"rounds": np.int64(0)}, "it says 0 rounds, and its state is that after 11"),
        ({"rounds": np.int64(-5)}, "it says -5 rounds"),
        ({"state/.params": None}, "holds nothing where the run has .params"),
        ({"state/.params": np.zeros(4, np.float32)}, r"holds float32\(4,\) where"),
        ({"state/.params": np.zeros(3, np.float64)}, r"holds float64\(3,\) where"),
        ({"state/.params": np.zeros(3, "V4")}, r"holds \|V4\(3,\) where"),
        ({"state/.more": np.zeros(3)}, r"holds \['state/.more'\], which this run does not have"),
        ({"other": np.zeros(3)}, r"holds \['other'\]"),
        ({"program": None}, "is damaged"),
        ({"versions": np.array("[" * 20_000)}, "is damaged"),
        ({"versions": np.array("{}")}, "is damaged"),
        ({"program": np.zeros(1 << 20)}, "program is too long"),
        ({"rounds": np.zeros(2, np.int64)}, "is damaged"),
    ],
)
def test_a_forged_checkpoint_is_refused(saved, changes, message):
    forge(saved, **changes)
    assert_refused(saved, message)


def header(shape, dtype="<f4"):
    text = f"{{'descr': '{dtype}', 'fortran_order': False, 'shape': {shape}, }}"
    text = text.ljust((len(text) + 75) // 64 * 64 - 11) + "\n"
    return b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text.encode()


def add(path, name, content, compress=zipfile.ZIP_STORED):
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr(f"{name}.npy", content, compress)


def peak(path):
    """The most memory, in bytes, that Python and NumPy take while the file is refused."""
    tracemalloc.start()
    assert_refused(path, "is damaged|which this run does not have|holds float32")
    most = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return most


def test_compressed_members_are_not_unpacked(saved):
    """200 MB of zeros in 200 kB, as an unknown member and as the history."""
    content = saved.read_bytes()
    for name in ("more", "history/more"):
        saved.write_bytes(content)
        bomb = header("(50000000,)") + bytes(200_000_000)
        add(saved, name, bomb, zipfile.ZIP_DEFLATED)
        del bomb
        assert saved.stat().st_size < 1_000_000
        assert peak(saved) < 5_000_000


def test_large_unknown_members_are_not_read(saved):
    add(saved, "more", header("(5000000,)") + bytes(20_000_000))
    assert peak(saved) < 5_000_000
    with np.load(saved) as file:
        arrays = {name: file[name] for name in file.files if name != "more"}
    np.savez(saved, **(arrays | {"state/.params": np.zeros(5_000_000, np.float32)}))
    assert peak(saved) < 5_000_000


@pytest.mark.parametrize("shape", ["(8589934592,)", "(1000000, 1000000)", "(-1, -3)", "(10, 0)"])
def test_headers_that_lie(saved, shape):
    with np.load(saved) as file:
        arrays = {name: file[name] for name in file.files if name != "history/train_loss"}
    np.savez(saved, **arrays)
    add(saved, "history/train_loss", header(shape) + b"x" * 100)
    assert peak(saved) < 5_000_000
    add(saved, "history/other", header("(1,)", "|O") + b"x" * 8)
    assert_refused(saved, "is damaged")


def test_a_member_twice_is_refused(saved):
    with pytest.warns(UserWarning, match="Duplicate"):
        add(saved, "state/.params", header("(3,)") + bytes(12))
    assert_refused(saved, "parts overlap")


def test_memory_that_runs_out_is_no_bare_error(saved, monkeypatch):
    def fail(*args, **kwargs):
        raise MemoryError

    monkeypatch.setattr(checkpoint.np, "frombuffer", fail)
    assert_refused(saved, "is damaged .MemoryError")


def test_versions_that_decide_are_compared(saved, monkeypatch):
    monkeypatch.setattr(checkpoint.jaxlib, "__version__", "0.0.2")
    assert_refused(saved, r"written with jaxlib .*, this is 0\.0\.2")
    monkeypatch.undo()
    monkeypatch.setattr(fedjax_robust, "__version__", "9")
    checkpoint.restore(saved, make_state(), "program")  # the program decides
    assert_refused(saved, r"written with fedjax_robust .*, this is 9", program="another")
    monkeypatch.undo()
    for name in ("platform", "device", "machine", "XLA_FLAGS"):
        other = checkpoint.versions() | {name: "another"}
        monkeypatch.setattr(checkpoint, "versions", lambda other=other: other)
        with pytest.warns(UserWarning, match=f"written elsewhere .{name} was .*, is 'another'"):
            checkpoint.restore(saved, make_state(), "program")
        monkeypatch.undo()


def test_low_precision_is_kept(tmp_path):
    state = make_state()._replace(attack=jnp.arange(3).astype(jnp.bfloat16) / 3)
    checkpoint.save(tmp_path / "x", state, HISTORY, 11, "program")
    restored, _, _ = checkpoint.restore(tmp_path / "x", state, "program")
    assert_identical(restored, state)


def test_a_failing_replacement_leaves_the_old_file(saved, monkeypatch):
    content = saved.read_bytes()

    def fail(source, target):
        raise OSError("the disk is gone")

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(OSError, match="the disk is gone"):
        checkpoint.save(saved, make_state(), {}, 12, "program")
    assert saved.read_bytes() == content
    assert os.listdir(saved.parent) == [saved.name]


# --- Runs ----------------------------------------------------------------------------------------

POINTS = np.random.default_rng(0).normal(size=(20, 3)).astype(np.float32)
KEY = jax.random.key(4)


def make_task(scale=1.0, start=1.0):
    """Squared distance to the examples, moved by an array that is hidden in a function of its own."""
    shift = jnp.array([0.0, 1.0, scale])

    @jax.jit
    def distance(params, x):
        return jnp.sum(jnp.square(params - x - shift), axis=1)

    return Task(
        init=lambda key: start * jax.random.normal(key, (3,)),
        loss=lambda params, batch: tasks.masked_mean(distance(params, batch["x"]), batch["mask"]),
        logits=lambda params, x: x,
        unravel=lambda params: params,
    )


def make_sim(rate=0.1, f=1, low=3.0, server=0.5, scale=1.0, start=1.0, number=2):
    task = make_task(scale, start)
    return Simulation(
        task,
        local_sgd(task, rate, 2, momentum=0.5, keep_momentum=True),
        aggregators.trimmed_mean(f),
        attack=attacks.fang_trim_partial(low, 4.0),
        num_malicious=number,
        server_optimizer=optax.sgd(server, momentum=0.9),
    )


def make_data(points=POINTS, seed=0):
    return partition.iid(jax.random.key(seed), {"x": points}, 5)


def norm(params):
    return {"norm": jnp.linalg.norm(params)}


def start_run(path, sim, key=KEY, data=None, rounds=6, evaluate=norm, evaluate_every=2, **options):
    return engine.run(
        sim,
        key,
        make_data() if data is None else data,
        rounds,
        evaluate=evaluate,
        evaluate_every=evaluate_every,
        checkpoint=path,
        checkpoint_every=2,
        **options,
    )


class Interrupted(Exception):
    pass


def interrupt(monkeypatch, number):
    """Make the ``number``-th checkpoint fail, before it is written."""
    calls = []
    save = checkpoint.save

    def failing(*args):
        calls.append(args)
        if len(calls) == number:
            raise Interrupted
        save(*args)

    monkeypatch.setattr(checkpoint, "save", failing)
    return calls


@pytest.fixture(scope="module")
def sim():
    return make_sim()


@pytest.mark.parametrize("key", [KEY, jax.random.split(KEY, 2)], ids=["one seed", "seeds"])
def test_an_interrupted_run_ends_as_if_it_was_not(tmp_path, monkeypatch, sim, key):
    expected = start_run(tmp_path / "whole", sim, key)
    calls = interrupt(monkeypatch, 2)
    with pytest.raises(Interrupted):
        start_run(tmp_path / "broken", sim, key)
    assert int(calls[-1][1].round) == 4
    monkeypatch.undo()
    calls = interrupt(monkeypatch, 99)
    resumed = start_run(tmp_path / "broken", sim, key)
    assert len(calls) == 2, "it did not resume after round 2"
    assert_identical(resumed, expected)
    assert_identical(start_run(tmp_path / "broken", sim, key), expected)  # is done: nothing to do
    assert len(calls) == 2
    assert resumed[1]["round"].tolist() == [2, 4, 6]
    assert resumed[1]["train_loss"].shape[-1] == 6
    assert all(isinstance(values, jax.Array) for values in resumed[1].values())


@pytest.fixture(scope="module")
def two_rounds(tmp_path_factory, sim):
    path = tmp_path_factory.mktemp("run") / "checkpoint"
    start_run(path, sim, rounds=2)
    return path, path.read_bytes()


OTHER = {
    "seed": lambda: {"key": jax.random.key(5)},
    "learning rate": lambda: {"sim": make_sim(rate=0.1001)},
    "f of the rule": lambda: {"sim": make_sim(f=2)},
    "attack": lambda: {"sim": make_sim(low=3.1)},
    "number of malicious clients": lambda: {"sim": make_sim(number=1)},
    "server": lambda: {"sim": make_sim(server=0.6)},
    "array inside a jitted function": lambda: {"sim": make_sim(scale=1.5)},
    "initialization": lambda: {"sim": make_sim(start=2.0)},
    "first model": lambda: {"params": jnp.ones(3)},
    "examples": lambda: {"data": make_data(POINTS + np.float32(1e-3))},
    "partition": lambda: {"data": make_data(seed=1)},
    "evaluations": lambda: {"evaluate_every": 1},
    "evaluation": lambda: {"evaluate": lambda params: {"norm": jnp.sum(params)}},
    "test data": lambda: {"evaluate": jax.tree_util.Partial(lambda x, p: {"norm": x}, jnp.ones(1))},
}


@pytest.mark.parametrize("what", OTHER)
def test_a_run_with_another_setting_is_refused(two_rounds, sim, what):
    path, content = two_rounds
    with pytest.raises(ValueError, match="other settings, data, or seeds") as caught:
        start_run(path, **({"sim": sim} | OTHER[what]()))
    assert str(path) in str(caught.value) and REMEDY in str(caught.value)
    assert path.read_bytes() == content


def lengthened(file, name, by):
    values = file[f"history/{name}"]
    return np.concatenate([values] * by) if by else values[:-1]


@pytest.mark.parametrize(
    "name_by", [("train_loss", 0), ("train_loss", 9), ("norm", 9), ("round", 0), ("malicious", 2)]
)
def test_a_history_of_another_length_is_refused(tmp_path, two_rounds, sim, name_by):
    path = tmp_path / "copy"
    path.write_bytes(two_rounds[1])
    name, by = name_by
    with np.load(path) as file:
        values = lengthened(file, name, by)
    forge(path, **{f"history/{name}": values})
    with pytest.raises(ValueError, match=f"where the run has {name} of"):
        start_run(path, sim)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"history/train_loss": None}, "holds nothing where the run has train_loss"),
        ({"history/more": np.zeros(2)}, "which this run does not have"),
        ({"history/round": np.array([1], np.int32)}, r"evaluated after \[1\]"),
    ],
)
def test_a_history_of_another_run_is_refused(tmp_path, two_rounds, sim, changes, message):
    path = tmp_path / "copy"
    path.write_bytes(two_rounds[1])
    forge(path, **changes)
    with pytest.raises(ValueError, match=message):
        start_run(path, sim)


def test_a_folder_is_no_checkpoint(tmp_path, sim):
    with pytest.raises(ValueError, match="run needs checkpoint to be a file, got the folder"):
        start_run(tmp_path, sim)


def test_more_rounds_without_evaluate_every_say_what_differs(tmp_path, sim):
    path = tmp_path / "x"
    arguments = {"evaluate_every": None}
    start_run(path, sim, rounds=2, **arguments)
    with pytest.raises(ValueError, match="only evaluate_every differs, which was 2 and is 4") as e:
        start_run(path, sim, rounds=4, **arguments)
    assert "call run with evaluate_every=2" in str(e.value)
    resumed = start_run(path, sim, rounds=4, evaluate_every=2)
    assert_identical(resumed, start_run(tmp_path / "y", sim, rounds=4, evaluate_every=2))


def test_another_test_set_is_refused(tmp_path, sim):
    def error(test):
        return jax.tree_util.Partial(lambda test, p: {"norm": jnp.sum(p * test)}, test)

    path = tmp_path / "x"
    start_run(path, sim, rounds=2, evaluate=error(jnp.ones(3)))
    start_run(path, sim, rounds=4, evaluate=error(jnp.ones(3)))
    with pytest.raises(ValueError, match="other settings, data, or seeds"):
        start_run(path, sim, rounds=4, evaluate=error(jnp.array([1.0, 1, 2])))


def test_an_optimizer_that_uses_the_model_resumes(tmp_path, monkeypatch):
    """adamw's weight decay; by hand: params - rate (adam's direction + decay params)."""
    sim = make_sim()._replace(server_optimizer=optax.adamw(0.1, weight_decay=0.5), num_malicious=0)
    expected = start_run(tmp_path / "whole", sim, rounds=4)
    interrupt(monkeypatch, 2)
    with pytest.raises(Interrupted):
        start_run(tmp_path / "x", sim, rounds=4)
    monkeypatch.undo()
    assert_identical(start_run(tmp_path / "x", sim, rounds=4), expected)
    one, _ = engine.run(sim, KEY, make_data(), 1, params=jnp.array([1.0, -2.0, 3.0]))
    plain, _ = engine.run(
        sim._replace(server_optimizer=optax.adam(0.1)),
        KEY,
        make_data(),
        1,
        params=jnp.array([1.0, -2.0, 3.0]),
    )
    decay = 0.1 * 0.5 * np.array([1.0, -2.0, 3.0])
    np.testing.assert_allclose(one.params, plain.params - decay, rtol=1e-5)


def test_checkpoints_are_rounded_up_to_whole_evaluations(tmp_path, monkeypatch, sim):
    calls = interrupt(monkeypatch, 99)
    engine.run(
        sim,
        KEY,
        make_data(),
        9,
        evaluate=norm,
        evaluate_every=2,
        checkpoint=tmp_path / "x",
        checkpoint_every=3,
    )
    assert [call[3] for call in calls] == [4, 8, 9]


def hosted(factor):
    """A repair on the host that holds ``factor``."""

    def after_round(key, params):
        return jax.pure_callback(
            lambda p: (np.asarray(p) * factor).astype(np.float32), params, params
        )

    return make_sim()._replace(after_round=after_round)


SCALE = 1.0


def global_repair(key, params):
    return jax.pure_callback(lambda p: np.asarray(p) * np.float32(SCALE), params, params)


def other_code(key, params):
    return jax.pure_callback(lambda p: np.asarray(p) + np.float32(1), params, params)


def test_a_host_function_that_changed_is_refused(tmp_path, monkeypatch):
    path = tmp_path / "x"
    start_run(path, hosted(1.0), rounds=2)
    start_run(path, hosted(1.0), rounds=4)  # an equal one
    for other in (hosted(0.5), hosted(np.ones(3)), make_sim()._replace(after_round=other_code)):
        with pytest.raises(ValueError, match="other settings, data, or seeds"):
            start_run(path, other, rounds=4)
    path, sim = tmp_path / "y", make_sim()._replace(after_round=global_repair)
    start_run(path, sim, rounds=2)
    monkeypatch.setitem(globals(), "SCALE", 0.5)
    with pytest.raises(ValueError, match="other settings, data, or seeds"):
        start_run(path, make_sim()._replace(after_round=global_repair), rounds=4)


def test_a_host_function_that_cannot_be_compared_is_refused(tmp_path):
    sim = make_sim()
    random = np.random.default_rng(0)
    sim = sim._replace(
        after_round=lambda key, params: jax.pure_callback(
            lambda p: np.asarray(p) + random.normal(), params, params
        )
    )
    with pytest.raises(ValueError, match="one holds Generator"):
        start_run(tmp_path / "x", sim, rounds=2)


def test_two_runs_cannot_write_the_same_file(tmp_path, sim):
    with locked(tmp_path / "x"), pytest.raises(ValueError, match="written by another run"):
        start_run(tmp_path / "x", sim, rounds=2)
    start_run(tmp_path / "x", sim, rounds=2)
    assert os.listdir(tmp_path) == ["x"]


def test_an_equal_run_is_accepted_and_more_rounds_too(tmp_path, two_rounds, sim):
    """Equal settings, although every function is a new one."""
    path = tmp_path / "copy"
    path.write_bytes(two_rounds[1])
    extended = start_run(path, make_sim())
    assert_identical(extended, start_run(tmp_path / "whole", sim))


def test_more_blocks_do_not_compile_more(tmp_path, caplog, sim):
    """Ten blocks instead of three: only the history, longer than before, is converted anew."""
    data = make_data()
    start_run(tmp_path / "short", sim, data=data)
    with jax.log_compiles():
        _, history = start_run(tmp_path / "long", sim, data=data, rounds=20)
        assert caplog.text.count("Finished XLA compilation") <= len(history)
        assert "jit(_block)" not in caplog.text
        start_run(tmp_path / "other", sim, data=data, evaluate_every=1)
    assert "Finished XLA compilation of jit(_block)" in caplog.text


def test_a_run_that_does_not_stop_there_is_refused(tmp_path, sim, two_rounds):
    path = tmp_path / "copy"
    path.write_bytes(two_rounds[1])
    with pytest.raises(ValueError, match=r"after 2 rounds.*rounds=1, .*use its own arguments"):
        start_run(path, sim, rounds=1)
    path.write_bytes(two_rounds[1][:-100])
    with pytest.raises(ValueError, match="is damaged"):
        start_run(path, sim)


# --- A real kill ---------------------------------------------------------------------------------

CHILD = """
import os, sys, time
import jax, jax.numpy as jnp, numpy as np, optax
from fedjax_robust import aggregators, attacks, data, local_sgd, run, tasks
from fedjax_robust.engine import checkpoint
from fedjax_robust.types import Knowledge, Simulation, Task

checkpoint_file, result, pause = sys.argv[1], sys.argv[2], float(sys.argv[3])

def loss(params, batch):
    losses = jnp.sum(jnp.square(params - batch["x"]), axis=1)
    return tasks.masked_mean(losses, batch["mask"])

task = Task(lambda key: jax.random.normal(key, (3,)), loss, lambda p, x: x, lambda p: p)
points = np.random.default_rng(0).normal(size=(20, 3)).astype(np.float32)
sim = Simulation(
    task,
    local_sgd(task, 0.1, 2, momentum=0.5, keep_momentum=True),
    aggregators.mean(),
    attack=attacks.gaussian(),
    knowledge=Knowledge(others=True),
    num_malicious=1,
    clients_per_round=4,
    server_optimizer=optax.sgd(0.5, momentum=0.9),
)

def evaluate(params):
    jax.debug.callback(lambda: time.sleep(pause))  # so that there is something to kill
    return {"norm": jnp.linalg.norm(params)}

state, history = run(
    sim,
    jax.random.split(jax.random.key(0), 2),
    data.iid(jax.random.key(1), {"x": points}, 5),
    240,
    evaluate=evaluate,
    evaluate_every=4,
    checkpoint=checkpoint_file,
    checkpoint_every=4,
)
final = {str(i): checkpoint._plain(leaf) for i, leaf in enumerate(jax.tree.leaves(state))}
np.savez(result, **final, **history)
"""


def test_killed_runs_end_bit_identical(tmp_path):
    """Three SIGKILLs at random moments, each after the process has written a checkpoint of its own."""
    script = tmp_path / "child.py"
    script.write_text(CHILD)
    path = tmp_path / "checkpoint"
    root = os.path.dirname(os.path.dirname(aggregators.__path__[0]))
    search = os.pathsep.join([root, *filter(None, [os.environ.get("PYTHONPATH")])])

    def start(checkpoint_file, result, pause):
        command = [sys.executable, script, checkpoint_file, result, str(pause)]
        return subprocess.Popen(command, env=os.environ | {"PYTHONPATH": search})

    def written():
        return path.stat().st_mtime_ns if path.exists() else 0

    random = np.random.default_rng()
    whole = start(tmp_path / "other", tmp_path / "whole.npz", 0)
    for _ in range(3):
        before = written()
        child = start(path, tmp_path / "killed.npz", 0.05)
        while written() == before:
            assert child.poll() is None
            time.sleep(0.005)
        time.sleep(random.uniform(0, 0.4))
        child.send_signal(signal.SIGKILL)
        assert child.wait() == -signal.SIGKILL
        assert not (tmp_path / "killed.npz").exists()
    with np.load(path) as file:
        assert 8 <= file["rounds"] < 240
    assert start(path, tmp_path / "killed.npz", 0).wait() == 0
    assert whole.wait() == 0
    with np.load(tmp_path / "whole.npz") as one, np.load(tmp_path / "killed.npz") as other:
        assert one.files == other.files
        assert one["round"].tolist() == [*range(4, 241, 4)]
        for name in one.files:
            np.testing.assert_array_equal(one[name], other[name])
            assert one[name].tobytes() == other[name].tobytes()
