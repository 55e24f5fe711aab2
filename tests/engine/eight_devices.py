"""One simulation over eight (virtual) devices, and over two processes, equals that of one device.

``test_sharding.py`` runs this file in a process of its own, in which the CPU pretends to be eight
devices: they would slow down all other tests.
"""

import re
import socket
import subprocess
import sys
from pathlib import Path

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import fedjax_robust as fr
from fedjax_robust import aggregators, attacks
from fedjax_robust.engine import driver, sharding
from fedjax_robust.kernels.distances import pairwise_distances, pairwise_squared_distances
from fedjax_robust.kernels.sorting import sort_clients
from fedjax_robust.types import FederatedData, Knowledge

assert len(jax.devices()) == 8, "run test_sharding.py, which sets XLA_FLAGS"

TOLERANCE = 2e-6  # sums over devices have another order


def problem(num_clients=19, features=11):
    """A linear task whose d = 11 * 3 + 3 = 36 and N = 19 no mesh divides."""
    rng = np.random.default_rng(0)
    examples = {
        "x": jnp.asarray(rng.normal(size=(8 * num_clients, features)), jnp.float32),
        "y": jnp.asarray(rng.integers(0, 3, 8 * num_clients), jnp.int32),
    }
    index = jnp.asarray(rng.permutation(8 * num_clients).reshape(num_clients, 8), jnp.int32)
    count = jnp.asarray(rng.integers(0, 9, num_clients), jnp.int32).at[:4].set(8)
    task = fr.classification(nn.Dense(3), examples["x"][:1])
    return task, FederatedData(examples, index, count)


def mesh(*shape):
    names = ("clients", "more")[: len(shape)]
    return jax.make_mesh(shape, names)


def both(sim, data, devices, rounds=4, **kwargs):
    key = kwargs.pop("key", jax.random.key(1))
    one = fr.run(sim, key, data, rounds, **kwargs)
    many = fr.run(sim, key, data, rounds, mesh=devices, **kwargs)
    for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(many), strict=True):
        if jnp.issubdtype(a.dtype, jax.dtypes.prng_key):
            a, b = jax.random.key_data(a), jax.random.key_data(b)
        np.testing.assert_allclose(a, b, rtol=TOLERANCE, atol=TOLERANCE)
    assert not np.allclose(many[0].params, 0)
    return one, many


FULL = Knowledge(others=True, rule=True)
CASES = {
    "trimmed mean": (aggregators.trimmed_mean(4), attacks.fang_trim_full(), FULL),
    "krum": (aggregators.krum(4), attacks.fang_krum_full(), FULL),
    "eigenvectors of products": (aggregators.dnc(4), attacks.fang_trim_full(), FULL),
    "gradients through the rule": (
        aggregators.trimmed_mean(4),
        attacks.first_order(steps=3),
        FULL,
    ),
    "a search through the rule": (
        aggregators.trimmed_mean(4),
        attacks.line_search(attacks.alie, attacks.searches.byzfl(evals=3)),
        FULL,
    ),
    "a memory of models": (
        aggregators.trimmed_mean(4),
        attacks.poisoned_fl(2.0, period=1),
        Knowledge(),
    ),
}


def averaged(*rules):
    """The mean of several rules' aggregates: one program for all."""

    def aggregate(received, state):
        results = [rule.aggregate(received, s) for rule, s in zip(rules, state, strict=True)]
        mean = jnp.mean(jnp.stack([result for result, _, _ in results]), axis=0)
        return mean, tuple(state for _, state, _ in results), {}

    return fr.Aggregator(lambda n, params: tuple(rule.init(n, params) for rule in rules), aggregate)


def test_wrappers_on_eight_devices_equal_one():
    task, data = problem()
    median = aggregators.median()
    mixed = aggregators.nnm(4, base=aggregators.bucketing(2, base=median))
    rule = averaged(
        aggregators.arc(4, base=aggregators.rlr(3, base=mixed)),
        aggregators.sequential_clipping(0.1, 3),
        aggregators.clipped_clustering(60),
        aggregators.crfl(lambda t: 0.1 * t, 0.01, base=aggregators.centered_clipping(0.1, 2)),
    )
    both(
        fr.Simulation(task, fr.local_sgd(task, 0.1, 4), rule, attacks.sign_flip(), num_malicious=4),
        data,
        mesh(8),
    )


def test_rules_with_server_data_or_a_memory_on_eight_devices_equal_one():
    task, data = problem()
    held = {name: values[:9] for name, values in data.examples.items()}

    def loss(params):
        return task.loss(params, held)

    rule = averaged(
        aggregators.fair(loss, 0.1, steps=3),
        aggregators.signguard_sim(0.5),
        aggregators.romoa(task, sharpness=1.0),
        aggregators.afa(),
        aggregators.foolsgold(summed=False, features=lambda row: row[3:30]),
        aggregators.contra(3, summed=False),
        aggregators.fldetector(window=2, start=2),
    )
    sim = fr.Simulation(task, fr.local_sgd(task, 0.1, 4), rule, num_malicious=4)
    both(sim, data, mesh(8))


@pytest.mark.parametrize("name", CASES)
def test_rules_and_attacks_on_eight_devices_equal_one(name):
    task, data = problem()
    rule, attack, knowledge = CASES[name]
    sim = fr.Simulation(
        task=task,
        client=fr.local_sgd(task, 0.1, 4),
        aggregator=rule,
        attack=attack,
        knowledge=knowledge,
        num_malicious=4,
    )
    both(sim, data, mesh(8))


def test_states_seeds_participation_chunks_and_malicious_training_on_two_axes():
    task, data = problem()
    sim = fr.Simulation(
        task=task,
        client=fr.local_sgd(task, 0.1, 4, steps=3, momentum=0.5, keep_momentum=True),
        aggregator=aggregators.mean(),
        attack=attacks.data_poisoning(
            fr.local_sgd(
                task, 0.2, 4, poison=attacks.poisons.label_flip(3), momentum=0.9, keep_momentum=True
            )
        ),
        num_malicious=3,
        clients_per_round=10,
        client_chunk=2,
        server_optimizer=optax.adam(0.1),
    )
    keys = jax.random.split(jax.random.key(2), 2)
    one, many = both(
        sim,
        data,
        mesh(2, 4),
        key=keys,
        evaluate=lambda params: {"norm": jnp.linalg.norm(params)},
        evaluate_every=2,
    )
    assert many[1]["norm"].shape == (2, 2)
    assert np.any(one[0].clients[0] != 0)


def compiled(sim, data, devices):
    devices = sharding.automatic(devices)
    arguments = sharding.to_devices(devices, (jax.random.key(0), data, None))
    state = driver._init(sim, None, devices, *arguments)
    nothing = jax.tree_util.Partial(driver._evaluate_nothing)
    return driver._block_jit.lower(sim, None, devices, 1, 2, nothing, state, arguments[1]).compile()


PAIRS = {
    "trimmed mean, Trim attack": (aggregators.trimmed_mean(4), attacks.fang_trim_full()),
    "trimmed mean, its gradients": (aggregators.trimmed_mean(4), attacks.first_order(3)),
    "median, its gradients": (aggregators.median(), attacks.first_order(3)),
    "clipped median, its gradients": (
        aggregators.norm_clipping(1.0, base=aggregators.median()),
        attacks.first_order(3),
    ),
    "mean, Gaussian": (aggregators.mean(), attacks.gaussian()),
}


@pytest.mark.parametrize("pair", PAIRS)
def test_no_device_ever_holds_the_whole_matrix(pair):
    task, data = problem(num_clients=32, features=4001)  # d = 12006, n x d = 1.5 MB
    rule, attack = PAIRS[pair]
    sim = fr.Simulation(
        task=task,
        client=fr.local_sgd(task, 0.1, 4),
        aggregator=rule,
        attack=attack,
        knowledge=FULL,
        num_malicious=4,
    )
    one, eight = compiled(sim, data, None), compiled(sim, data, mesh(8))
    matrix = 32 * 12006 * 4
    temporary = [c.memory_analysis().temp_size_in_bytes for c in (one, eight)]
    assert temporary[0] > matrix
    # An attack by gradients has several matrices, of which each device has an eighth.
    assert temporary[1] < (1.2 if "gradients" in pair else 1) * matrix
    text = eight.as_text()
    assert "all-to-all" in text
    gathered = re.findall(r"= \w+\[([\d,]+)\]\S* all-gather\(", text)
    assert gathered  # the new model
    assert max(np.prod([int(s) for s in shape.split(",")]) for shape in gathered) < 13_000
    # Nor does anything else have the size of the matrix.
    shapes = {tuple(map(int, s.split(","))) for s in re.findall(r"\w\[([\d,]+)\]\{", text)}
    assert not [s for s in shapes if np.prod(s) >= 24 * 12006 and 4001 not in s]


def test_the_network_sorts_its_own_columns_without_communication():
    x = np.random.default_rng(1).normal(size=(20, 8 * 40)).astype(np.float32)
    columns = jax.sharding.NamedSharding(
        sharding.automatic(mesh(8)), jax.sharding.PartitionSpec(None, "clients")
    )
    sort = jax.jit(lambda x: sort_clients(x, 3, 17), in_shardings=columns)
    text = sort.lower(x).compile().as_text()
    assert not re.search(r"all-|collective", text)
    np.testing.assert_array_equal(sort(x), np.sort(x, axis=0)[3:17])
    # split by clients, which the caller should not do, is right all the same
    rows = jax.sharding.NamedSharding(columns.mesh, jax.sharding.PartitionSpec("clients"))
    tall = np.random.default_rng(2).normal(size=(16, 30)).astype(np.float32)
    sort = jax.jit(lambda x: sort_clients(x, 3, 7), in_shardings=rows)
    np.testing.assert_array_equal(sort(tall), np.sort(tall, axis=0)[3:7])


def test_distances_are_summed_over_devices():
    """Also in the further passes that rows take which an attacker drowns; in both rules and slopes."""
    rng = np.random.default_rng(3)
    x = rng.normal(size=800) + 1e-4 * rng.normal(size=(12, 800))
    x[:3] *= -9
    x = x.astype(np.float32)
    columns = jax.sharding.NamedSharding(
        sharding.automatic(mesh(8)), jax.sharding.PartitionSpec(None, "clients")
    )
    present = jnp.ones(12, bool)
    exact = np.linalg.norm(x[:, None].astype(float) - x, axis=2)

    def slopes(x):
        return jax.grad(lambda x: jnp.sum(pairwise_squared_distances(x, present)[:4]))(x)

    for function in (
        lambda x: pairwise_distances(x, present),
        aggregators.bulyan(2).__call__,
        slopes,
    ):
        call = jax.jit(function, in_shardings=columns)
        text = call.lower(x).compile().as_text()
        assert not re.search(r"all-gather|all-to-all|collective-permute", text)
        np.testing.assert_allclose(call(x), jax.jit(function)(x), rtol=1e-4, atol=1e-4)
    distances = jax.jit(lambda x: pairwise_distances(x, present), in_shardings=columns)(x)
    np.testing.assert_allclose(distances, exact, rtol=1e-3)


def test_a_checkpoint_of_eight_devices_resumes_on_one_and_on_four(tmp_path):
    task, data = problem(num_clients=16)
    client = fr.local_sgd(task, 0.1, 4, momentum=0.5, keep_momentum=True)
    sim = fr.Simulation(task, client, aggregators.trimmed_mean(4))
    key = jax.random.key(3)
    whole, _ = fr.run(sim, key, data, 6)
    path = tmp_path / "run.npz"
    arguments = {"evaluate_every": 2, "checkpoint": path, "checkpoint_every": 2}
    state, _ = fr.run(sim, key, data, 2, mesh=mesh(8), **arguments)
    assert state.params.is_fully_replicated
    assert state.clients[0].addressable_shards[0].data.shape == (2, 36)  # 16 clients on 8 devices
    fr.run(sim, key, data, 4, **arguments)
    state, history = fr.run(sim, key, data, 6, mesh=mesh(4), progress=True, **arguments)
    np.testing.assert_allclose(state.params, whole.params, rtol=TOLERANCE, atol=TOLERANCE)
    np.testing.assert_array_equal(history["round"], [2, 4, 6])


def test_a_mesh_inside_of_jit_is_refused():
    task, data = problem()
    sim = fr.Simulation(task, fr.local_sgd(task, 0.1, 4), aggregators.mean())
    with pytest.raises(ValueError, match="use a mesh inside vmap or jit"):
        jax.jit(lambda key: fr.run(sim, key, data, 1, mesh=mesh(8))[0].params)(jax.random.key(0))


def test_map_clients_trains_each_client_once_and_alone():
    devices = sharding.automatic(mesh(8))
    rows = jnp.arange(11.0)[:, None] * jnp.ones(3)
    result = sharding.map_clients(devices, lambda shared, x: x * shared, jnp.float32(2), rows)
    np.testing.assert_array_equal(result, 2 * rows)


PROGRAM = """
import sys
import jax
process, port, folder = int(sys.argv[1]), sys.argv[2], sys.argv[3]
jax.distributed.initialize(f"localhost:{port}", 2, process)
import numpy as np
sys.path.insert(0, sys.argv[4])
import eight_devices as t
import fedjax_robust as fr
from fedjax_robust import aggregators
from fedjax_robust.engine import driver, sharding

assert (jax.process_count(), len(jax.devices()), len(jax.local_devices())) == (2, 8, 4)
task, data = t.problem(num_clients=16)
client = fr.local_sgd(task, 0.1, 4, momentum=0.5, keep_momentum=True)
sim = fr.Simulation(task, client, aggregators.trimmed_mean(4))
arguments = dict(
    evaluate=lambda params: {"first": params[0]},
    evaluate_every=2,
    checkpoint=folder + "/run.npz",
    checkpoint_every=2,
    mesh=t.mesh(8),
)
key = jax.random.key(3)
fr.run(sim, key, data, 2, **arguments)           # "killed" after its first checkpoint
state, history = fr.run(sim, key, data, 6, progress=True, **arguments)
assert not state.clients[0].is_fully_addressable  # half of them live in the other process
momentum = sharding.to_hosts(state.clients[0])
np.savez(f"{folder}/{process}.npz", params=state.params, momentum=momentum, **history)
other = f"{folder}/{process}/run.npz"              # a folder that the processes do not share
if process == 0:
    fr.run(sim, key, data, 2, **{**arguments, "checkpoint": other, "mesh": None})
from jax.experimental import multihost_utils
multihost_utils.sync_global_devices("written")
try:
    fr.run(sim, key, data, 4, **{**arguments, "checkpoint": other})
except ValueError as error:
    assert "exists for some processes only (1 of 2)" in str(error), error
else:
    raise AssertionError("not refused")

def refused(text, **changes):
    try:
        fr.run(sim, changes.pop("key", key), data, changes.pop("rounds", 4), **{**arguments, **changes})
    except ValueError as error:
        assert text in str(error), error
    else:
        raise AssertionError("not refused")

# What processes disagree about raises in all of them; none waits for another.
refused("differ in checkpoint", checkpoint=None if process else other, checkpoint_every=None)
refused("differ in rounds", rounds=4 + process)
refused("differ in program", key=jax.random.key(process))
refused("differ in progress", progress=bool(process))
if process:                                        # the same name, another content
    fr.run(sim, key, data, 2, **{**arguments, "checkpoint": other, "mesh": None})
    with open(other, "r+b") as file:
        file.truncate(300)
multihost_utils.sync_global_devices("damaged")
refused("is damaged" if process else "process 1 failed, and its own error says why", checkpoint=other)
if process:
    import os

    os.remove(other)
    fr.run(sim, key, data, 4, **{**arguments, "checkpoint": other, "mesh": None})
multihost_utils.sync_global_devices("other content")
refused("differ in the content", checkpoint=other)
save = driver.checkpoints.save
def fail(*args):
    raise OSError("the disk is full")
driver.checkpoints.save = fail                # only the first process writes
fresh = folder + "/fresh.npz"
try:
    fr.run(sim, key, data, 4, **{**arguments, "checkpoint": fresh})
except (OSError, ValueError) as error:
    assert ("process 0 failed" if process else "the disk is full") in str(error), error
else:
    raise AssertionError("not refused")
"""


def test_two_processes_with_a_checkpoint_equal_one_device(tmp_path):
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    flags = "--xla_backend_optimization_level=0 --xla_force_host_platform_device_count=4"
    here = Path(__file__).parent
    environment = {
        "PATH": "/usr/bin:/bin",
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": flags,
        "PYTHONPATH": f"{here.parents[1]}:{here}",
        "HOME": str(tmp_path),
    }
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", PROGRAM, str(process), str(port), str(tmp_path), str(here)],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for process in (0, 1)
    ]
    try:
        outputs = [process.communicate(timeout=300)[0] for process in processes]
    finally:
        for process in processes:
            process.kill()
    assert [process.returncode for process in processes] == [0, 0], "\n".join(outputs)
    assert "round/s" in outputs[0]
    assert "round/s" not in outputs[1]

    task, data = problem(num_clients=16)
    client = fr.local_sgd(task, 0.1, 4, momentum=0.5, keep_momentum=True)
    sim = fr.Simulation(task, client, aggregators.trimmed_mean(4))
    state, _ = fr.run(sim, jax.random.key(3), data, 6)
    for process in (0, 1):
        with np.load(tmp_path / f"{process}.npz") as got:
            np.testing.assert_allclose(got["params"], state.params, atol=TOLERANCE)
            np.testing.assert_allclose(got["momentum"], state.clients[0], atol=TOLERANCE)
            np.testing.assert_array_equal(got["round"], [2, 4, 6])
