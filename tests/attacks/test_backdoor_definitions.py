"""Poisons and backdoors against slow float64 definitions, over random batches."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference as ref

import fedjax_robust as fr
from fedjax_robust import attacks, models

B = 11


def problem(seed):
    rng = np.random.default_rng(seed)
    batch = {
        "x": jnp.asarray(rng.normal(size=(B, 3, 2)), jnp.float32),
        "y": jnp.asarray(rng.integers(0, 4, B), jnp.int32),
        "mask": jnp.asarray(rng.random(B) > 0.3, jnp.float32),
    }
    return rng, batch


def arrays(batch):
    return tuple(np.asarray(batch[name]) for name in ("x", "y", "mask"))


@pytest.mark.parametrize("seed", range(6))
def test_orthogonal_parts(seed):
    rng = np.random.default_rng(seed)
    difference = rng.normal(size=40).astype(np.float32)
    attackers = rng.random(5) > (0.3 if seed else 1.0)  # also: none is there
    key = jax.random.key(seed)
    owner = jax.random.randint(key, (40,), 0, max(attackers.sum(), 1))
    got = attacks.divisions.orthogonal_parts(3.0)(
        key, jnp.asarray(difference), jnp.asarray(attackers)
    )
    expected = ref.orthogonal_parts(difference, np.asarray(owner), attackers, 3.0)
    np.testing.assert_allclose(got, expected, rtol=1e-6)


@pytest.mark.parametrize(("c", "skip"), [(1, 0), (4, 2), (50, 0), (3, 9)])
@pytest.mark.parametrize("noise", [0.0, 0.5])
def test_replace_by(c, skip, noise):
    rng, batch = problem(c + skip)
    rare = rng.normal(size=(5, 3, 2)).astype(np.float32), rng.integers(0, 4, 5).astype(np.int32)
    key = jax.random.key(c)
    draw_key, noise_key = jax.random.split(key)
    drawn = np.asarray(jax.random.randint(draw_key, (B,), 0, 5))
    added = noise * np.asarray(jax.random.normal(noise_key, (B, 3, 2)), np.float64)
    poison = attacks.poisons.replace_by({"x": rare[0], "y": rare[1]}, c, noise, skip)
    got = poison(key, batch)
    x, y = ref.replace_by(*arrays(batch), rare, drawn, added, c, skip)
    np.testing.assert_allclose(got["x"], x, rtol=1e-6, atol=1e-7)
    np.testing.assert_array_equal(got["y"], y)


def numbered(i):
    """The same trigger for a batch in JAX and one input in NumPy."""

    def of_batch(x):
        return x.at[:, i].add(1.0 + i)

    def of_one(x):
        x = np.array(x)
        x[i] += 1.0 + i
        return x

    return of_batch, of_one


@pytest.mark.parametrize("client", range(5))
@pytest.mark.parametrize("number", [1, 3])
def test_distributed(client, number):
    _, batch = problem(client)
    ours, theirs = zip(*(numbered(i) for i in range(number)), strict=True)
    poison = attacks.poisons.distributed(list(ours), 2, c=3, skip=1)
    got = poison(jax.random.key(0), batch | {"client": jnp.int32(client)})
    x, y = ref.distributed(*arrays(batch), theirs, client, 2, 3, 1)
    np.testing.assert_allclose(got["x"], x, rtol=1e-6)
    np.testing.assert_array_equal(got["y"], y)
    if number == 1:
        same = attacks.poisons.replace_by_triggered(ours[0], 2, c=3, skip=1)(
            jax.random.key(0), batch
        )
        np.testing.assert_allclose(same["x"], x, rtol=1e-6)
        np.testing.assert_array_equal(same["y"], y)


@pytest.mark.parametrize("seed", range(4))
def test_add_triggered_victims(seed):
    _, batch = problem(seed)
    ours, theirs = numbered(1)
    got = attacks.poisons.add_triggered_victims(ours, 2, 3)(jax.random.key(0), batch)
    counted = [
        (np.asarray(x, np.float64), int(y), float(w))
        for x, y, w in zip(got["x"], got["y"], got["mask"], strict=True)
        if w > 0
    ]
    expected = ref.add_triggered_victims(*arrays(batch), theirs, 2, 3)
    assert len(counted) == len(expected)
    for (x, y, w), (x_, y_, w_) in zip(counted, expected, strict=True):
        np.testing.assert_allclose(x, x_, rtol=1e-6)
        assert (y, w) == (y_, w_)


def test_in_turn_is_one_after_the_other():
    """Poison i has key fold_in(key, i) and gets what the one before it made."""
    _, batch = problem(0)
    key = jax.random.key(7)
    poisons = [attacks.poisons.replace_by({"x": -batch["x"][:4], "y": batch["y"][:4]}, 4, 0.3)]
    poisons += [attacks.poisons.other_label(4), attacks.poisons.label_flip(4)]
    expected = batch
    for i, poison in enumerate(poisons):
        expected = poison(jax.random.fold_in(key, i), expected)
    got = attacks.poisons.in_turn(*poisons)(key, batch)
    for name, values in expected.items():
        np.testing.assert_array_equal(got[name], values)


@pytest.mark.parametrize("shape", [(3, 2), (3, 1), (2,), (1, 1)])
@pytest.mark.parametrize("pattern_shape", [(), (3, 2), (2,)])
def test_mask_trigger(shape, pattern_shape):
    rng, batch = problem(1)
    mask = rng.random(shape) > 0.4
    mask.flat[0] = True
    pattern = rng.normal(size=pattern_shape).astype(np.float32)
    got = attacks.backdoors.mask_trigger(mask, pattern)(batch["x"])
    whole = [np.broadcast_to(values, (3, 2)) for values in (mask, pattern)]
    np.testing.assert_allclose(got, ref.mask_trigger(batch["x"], *whole), rtol=1e-6)


@pytest.mark.parametrize("held_out", [0, 1, 3])
def test_semantic_backdoor(held_out):
    _, batch = problem(2)
    x, y, _ = arrays(batch)
    rows = [7, 0, 10, 4]
    split = attacks.backdoors.semantic_backdoor({"x": x, "y": y}, rows, held_out, 1)
    for got, expected in zip(split, ref.semantic_backdoor(x, y, rows, held_out, 1), strict=True):
        assert len(got["y"]) == len(expected)
        for a, b, (a_, b_) in zip(got["x"], got["y"], expected, strict=True):
            np.testing.assert_array_equal(a, a_)
            assert b == b_


@pytest.mark.parametrize(
    ("num_classes", "dtype"), [(2, np.int32), (7, np.int32), (120, np.int8), (200, np.uint8)]
)
def test_other_label(num_classes, dtype):
    """Also in 8 bits, where label + step does not fit."""
    key = jax.random.key(3)
    y = np.random.default_rng(0).integers(0, num_classes, 500).astype(dtype)
    steps = jax.random.randint(key, (500,), 1, num_classes, dtype)
    got = attacks.poisons.other_label(num_classes)(key, {"x": jnp.zeros(500), "y": jnp.asarray(y)})[
        "y"
    ]
    assert got.dtype == dtype
    np.testing.assert_array_equal(got, ref.other_label(y, np.asarray(steps), num_classes))
    assert np.all(np.asarray(got) != y)


@pytest.mark.parametrize(("num_classes", "dtype"), [(2, np.int32), (10, np.int8), (200, np.uint8)])
def test_label_flip_of_every_label(num_classes, dtype):
    y = np.arange(num_classes).astype(dtype)
    flipped = attacks.poisons.label_flip(num_classes)(None, {"y": jnp.asarray(y)})["y"]
    assert flipped.dtype == dtype
    np.testing.assert_array_equal(flipped, np.arange(num_classes)[::-1])


@pytest.mark.parametrize("make", [attacks.poisons.label_flip, attacks.poisons.other_label])
def test_labels_beyond_the_classes_are_not_flipped_into_others(make):
    """``label_flip(5)`` would make -5 of 9, which counts from the end."""
    batch = {"x": jnp.zeros((3, 4)), "y": jnp.array([0, 9, 4], jnp.int32)}
    with pytest.raises(ValueError, match=r"labels in 0 \.\. 4, got labels from 0 to 9"):
        make(5)(jax.random.key(0), batch)
    y = jax.jit(make(5))(jax.random.key(0), batch)["y"]  # traced: the value is not known
    assert np.all((y[jnp.array([0, 2])] >= 0) & (y[jnp.array([0, 2])] < 5))
    task = fr.classification(models.SoftmaxRegression(10), jnp.zeros((1, 4)))
    assert np.isnan(jax.jit(task.loss)(jnp.zeros(50), {"x": batch["x"], "y": y}))


@pytest.mark.parametrize("seed", range(5))
def test_converged(seed):
    rng = np.random.default_rng(seed)
    task = fr.classification(models.SoftmaxRegression(3), jnp.zeros((1, 4)))
    params = jnp.asarray(rng.normal(size=15), jnp.float32)
    backdoor = {"x": rng.normal(size=(6, 4)).astype(np.float32), "y": rng.integers(0, 3, 6)}
    logits = task.logits(params, backdoor["x"])
    losses = [
        float(task.loss(params, {"x": backdoor["x"][i : i + 1], "y": backdoor["y"][i : i + 1]}))
        for i in range(6)
    ]
    for epsilon in (np.mean(losses) * 0.999, np.mean(losses) * 1.001, 1e-4, 1e3):
        got = attacks.objectives.converged(task, backdoor, float(epsilon))(params)
        assert bool(got) == ref.converged(logits, backdoor["y"], epsilon)


@pytest.mark.parametrize("scale", [1e-30, 1e-25, 1e-10, 1.0, 1e10, 1e25, 1e30])
def test_directions_and_norms_at_any_scale(scale):
    """float32 squares underflow below 1e-19 and overflow beyond 1e19."""
    rng = np.random.default_rng(0)
    x, g = (scale * rng.normal(size=(2, 50))).astype(np.float32)
    x64, g64 = x.astype(np.float64), g.astype(np.float64)
    for p in (1.0, 1.5, 2.0, 3.0, 7.0, np.inf):
        value, slope = jax.value_and_grad(attacks.objectives.p_distance(p))(
            jnp.asarray(x), jnp.asarray(g)
        )
        gap = np.abs((x - g).astype(np.float64))  # what float32 sees
        expected = gap.max() * (1.0 if np.isinf(p) else np.sum((gap / gap.max()) ** p) ** (1 / p))
        assert float(value) == pytest.approx(expected, rel=1e-5)
        assert np.all(np.isfinite(slope)) and np.any(slope)
    cosine = x64 @ g64 / np.linalg.norm(x64) / np.linalg.norm(g64)
    assert float(attacks.objectives.cosine_distance(x, g)) == pytest.approx(1 - cosine, rel=1e-5)
    rows = attacks.divisions.norm_bounded(2.0)(None, jnp.asarray(x), jnp.array([True, False]))
    np.testing.assert_allclose(rows[0], 2 * x64 / np.linalg.norm(x64), rtol=1e-5)
    assert not np.any(rows[1])


def test_cosine_distance_of_close_models_keeps_its_digits():
    """1 - cos of an angle of 1e-4 is 5e-9, below the rounding of 1."""
    g = np.random.default_rng(1).normal(size=200)
    x = g + 1e-4 * np.linalg.norm(g) * np.eye(200)[0]
    x, g = x.astype(np.float32), g.astype(np.float32)
    x64, g64 = x.astype(np.float64), g.astype(np.float64)
    u, v = x64 / np.linalg.norm(x64), g64 / np.linalg.norm(g64)
    expected = 0.5 * np.sum((u - v) ** 2)
    assert float(attacks.objectives.cosine_distance(x, g)) == pytest.approx(expected, rel=1e-2)
    for zero in ((x, 0 * g), (0 * x, g), (0 * x, 0 * g)):
        value, slope = jax.value_and_grad(attacks.objectives.cosine_distance)(
            *map(jnp.asarray, zero)
        )
        assert value == 1
        assert not np.any(slope)


def test_equal_arguments_give_the_same_part():
    for make in (
        lambda: attacks.poisons.label_flip(3),
        lambda: attacks.scaling(2.0),
        lambda: attacks.divisions.equal_parts(2.0),
        lambda: attacks.backdoors.pixel_trigger(attacks.backdoors.FLTRUST_MNIST_PIXELS),
        lambda: attacks.poisons.replace_by_triggered(attacks.backdoors.feature_trigger(2), 1, 3),
        lambda: attacks.objectives.constrain(0.5, attacks.objectives.p_distance(3)),
    ):
        assert make() is make()
    assert attacks.poisons.label_flip(3) is not attacks.poisons.label_flip(4)
