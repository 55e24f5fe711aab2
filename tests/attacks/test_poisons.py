"""Poisoned batches, triggers by client, semantic backdoors, changes of images, schedules, splits."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference as ref

import fedjax_robust as fr
from fedjax_robust import attacks, data, metrics, models
from fedjax_robust.clients.local import local_sgd
from fedjax_robust.data import partition
from fedjax_robust.data.partition import dirichlet
from fedjax_robust.types import ClientData

RNG = np.random.default_rng(0)
B = 9
BATCH = {
    "x": jnp.arange(1.0, 1 + B * 2).reshape(B, 2),
    "y": jnp.arange(B, dtype=jnp.int32),
    "mask": jnp.array([0.0, 1, 1, 1, 0, 1, 1, 1, 1]),
    "user": jnp.arange(B) + 50,
    "client": jnp.int32(0),
}
SET = {"x": -jnp.arange(1.0, 7).reshape(3, 2), "y": jnp.array([7, 8, 9], jnp.int32)}

# --- Poisons -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("c", "skip", "replaced"),
    [(3, 0, [1, 2, 3]), (2, 3, [5, 6]), (20, 0, [1, 2, 3, 5, 6, 7, 8]), (1, 7, [])],
)
def test_replace_by_takes_the_first_present_examples(c, skip, replaced):
    """Each becomes an example of the set, drawn anew; nothing else changes."""
    poison = jax.jit(jax.vmap(attacks.poisons.replace_by(SET, c, skip=skip), (0, None)))
    changed = poison(jax.random.split(jax.random.key(0), 3000), BATCH)
    is_new = np.isin(np.arange(B), replaced)
    np.testing.assert_array_equal(changed["y"][:, ~is_new], np.tile(BATCH["y"][~is_new], (3000, 1)))
    np.testing.assert_array_equal(changed["x"][7][~is_new], BATCH["x"][~is_new])
    for name in ("mask", "user"):
        np.testing.assert_array_equal(changed[name][3], BATCH[name])
    assert changed["x"].dtype == jnp.float32 and changed["y"].dtype == jnp.int32
    new = np.asarray(changed["y"])[:, is_new]
    np.testing.assert_array_equal(changed["x"][:, is_new], np.asarray(SET["x"])[new - 7])
    if replaced:
        assert np.max(np.abs([np.mean(new == label, axis=0) - 1 / 3 for label in (7, 8, 9)])) < 0.05
    if len(replaced) > 1:  # independent draws
        assert abs(np.corrcoef(new[:, 0], new[:, 1])[0, 1]) < 0.1


def test_replace_by_without_a_mask():
    batch = {"x": BATCH["x"], "y": BATCH["y"]}
    changed = attacks.poisons.replace_by(SET, 2)(jax.random.key(0), batch)
    np.testing.assert_array_equal(changed["y"][2:], BATCH["y"][2:])
    assert set(changed["y"][:2].tolist()) <= {7, 8, 9} and set(changed) == {"x", "y"}


def test_noise_is_gaussian_and_only_on_backdoor_examples():
    one = {"x": jnp.full((1, 50, 40), 0.5), "y": jnp.array([1])}
    batch = {"x": jnp.zeros((4, 50, 40)), "y": jnp.zeros(4, int)}
    x = attacks.poisons.replace_by(one, 2, noise=0.05)(jax.random.key(1), batch)["x"]
    z = (np.asarray(x[:2], float) - 0.5) / 0.05
    assert abs(z.mean()) < 5 / 63 and abs((z**2).mean() - 1) < 5 * np.sqrt(2) / 63
    assert abs((z**4).mean() - 3) < 5 * np.sqrt(96) / 63
    assert abs(np.mean(z[0] * z[1])) < 5 / np.sqrt(2000)
    assert not x[2:].any()


def add_ten(x):
    return x + 10


def test_replace_by_triggered_and_several_in_turn():
    poison = attacks.poisons.in_turn(
        attacks.poisons.replace_by_triggered(add_ten, 4, c=2),
        attacks.poisons.replace_by(SET, 1, skip=2),
    )
    changed = poison(jax.random.key(0), BATCH)
    np.testing.assert_array_equal(changed["x"][1:3], BATCH["x"][1:3] + 10)
    np.testing.assert_array_equal(changed["y"][:3], [0, 4, 4])
    assert int(changed["y"][3]) in {7, 8, 9}
    np.testing.assert_array_equal(changed["y"][4:], BATCH["y"][4:])


def test_in_turn_gives_each_poison_its_own_key():
    def shuffle(key, batch):
        return {**batch, "x": batch["x"] + jax.random.normal(key)}

    one = shuffle(jax.random.key(0), BATCH)["x"] - BATCH["x"]
    both = attacks.poisons.in_turn(shuffle, shuffle)(jax.random.key(0), BATCH)["x"] - BATCH["x"]
    assert abs(float(both[0, 0] - 2 * one[0, 0])) > 1e-3


def test_distributed_triggers_go_by_client():
    triggers = [lambda x, i=i: x.at[:, 0].set(-1.0 - i) for i in range(3)]
    poison = attacks.poisons.distributed(triggers, 5, c=2)
    for client in range(5):
        changed = jax.jit(poison)(jax.random.key(0), BATCH | {"client": jnp.int32(client)})
        np.testing.assert_array_equal(changed["x"][1:3, 0], -1.0 - client % 3)
        np.testing.assert_array_equal(changed["x"][3:], BATCH["x"][3:])
        np.testing.assert_array_equal(changed["y"][1:3], 5)


def test_victims_are_there_with_and_without_the_trigger():
    """Present examples of the victim label come twice; everything else counts once, as it is."""
    batch = BATCH | {"y": jnp.array([3, 3, 1, 0, 3, 1, 3, 2, 3], jnp.int32)}
    for labels in ((3, 1), (jnp.int32(3), jnp.int32(1))):
        poison = jax.jit(attacks.poisons.add_triggered_victims(add_ten, *labels))
        both = poison(jax.random.key(0), batch)
        for name in ("x", "y", "mask", "user"):
            np.testing.assert_array_equal(both[name][:B], batch[name])
        np.testing.assert_array_equal(both["x"][B:], batch["x"] + 10)
        np.testing.assert_array_equal(both["y"][B:], 1)
        np.testing.assert_array_equal(both["mask"][B:], [0, 1, 0, 0, 0, 0, 1, 0, 1])
        np.testing.assert_array_equal(both["user"][B:], batch["user"])
        assert both["client"] == batch["client"]
    no_mask = {name: batch[name] for name in ("x", "y")}
    both = attacks.poisons.add_triggered_victims(add_ten, 3, 1)(jax.random.key(0), no_mask)
    np.testing.assert_array_equal(both["mask"], [1] * B + [1, 1, 0, 0, 1, 0, 1, 0, 1])
    for victim, target, named in (
        (3, 3, "victim=3, target=3"),
        (np.int64(3), jnp.int32(3), "victim=3, target=3"),
        (-1, 0, "victim=-1"),
        (0, -1, "target=-1"),
    ):
        with pytest.raises(ValueError, match=named):
            attacks.poisons.add_triggered_victims(add_ten, victim, target)


def test_poisons_refuse():
    for make in (
        lambda **k: attacks.poisons.replace_by(SET, **k),
        lambda **k: attacks.poisons.replace_by_triggered(add_ten, 0, **k),
        lambda **k: attacks.poisons.distributed([add_ten], 0, **k),
    ):
        for bad, text in (({"c": 0}, "c >= 1, got c=0"), ({"c": 1, "skip": -1}, "skip >= 0")):
            with pytest.raises(ValueError, match=text):
                make(**bad)
    with pytest.raises(ValueError, match="noise >= 0"):
        attacks.poisons.replace_by(SET, 1, noise=-1.0)
    for bad in ({"x": SET["x"][:0], "y": SET["y"][:0]}, {"x": SET["x"], "y": SET["y"][:2]}):
        with pytest.raises(ValueError, match="common number of examples, at least 1"):
            attacks.poisons.replace_by(bad, 1)
    for triggers, target, text in (
        ([], 0, "at least one of triggers"),
        ([add_ten], -1, "target >= 0"),
    ):
        with pytest.raises(ValueError, match=text):
            attacks.poisons.distributed(triggers, target, 1)


# --- Triggers ----------------------------------------------------------------------------------------


def picture(pixels, height, width):
    """Drawn as lines of text."""
    x = np.asarray(attacks.backdoors.pixel_trigger(pixels)(jnp.zeros((1, 28, 28, 3))))
    assert np.all(x[..., 0] == x[..., 2])
    lines = ["".join("#" if value else "." for value in row) for row in x[0, :, :, 1]]
    assert not x[0, height:].any() and not x[0, :, width:].any()
    return [line[:width] for line in lines[:height]]


def test_triggers_of_dba():
    """Four bars each; together they are the global trigger. Drawn by hand from the table of settings."""
    assert picture(sum(attacks.backdoors.DBA_MNIST_PIXELS, ()), 4, 10) == [
        "####..####",
        "..........",
        "..........",
        "####..####",
    ]
    assert picture(sum(attacks.backdoors.DBA_CIFAR_PIXELS, ()), 5, 15) == [
        "######...######",
        "...............",
        "...............",
        "...............",
        "######...######",
    ]
    for parts, size in (
        (attacks.backdoors.DBA_MNIST_PIXELS, 4),
        (attacks.backdoors.DBA_CIFAR_PIXELS, 6),
    ):
        assert [len(part) for part in parts] == [size] * 4
        assert len(set(sum(parts, ()))) == 4 * size
    assert picture(attacks.backdoors.DBA_MNIST_PIXELS[1], 1, 10) == ["......####"]
    assert picture(attacks.backdoors.DBA_MNIST_PIXELS[2], 4, 4)[3] == "####"


@pytest.mark.parametrize(
    ("number", "lines"),
    [
        (1, ["...", "...", "..#"]),
        (3, ["#..", ".#.", "..#"]),
        (5, ["#.#", ".#.", "#.#"]),
        (7, ["###", ".#.", "###"]),
        (9, ["###", "###", "###"]),
    ],
)
def test_patterns_of_one_to_nine_pixels(number, lines):
    drawn = picture(attacks.backdoors.NINE_PIXELS[:number], 27, 27)
    assert [line[24:] for line in drawn[24:]] == lines


def test_mask_trigger():
    x = jnp.ones((2, 2, 2, 3))
    mask = np.array([[True, False], [False, False]])[:, :, None]
    y = attacks.backdoors.mask_trigger(mask, np.array([0.1, 0.2, 0.3]))(x)
    np.testing.assert_allclose(y[1, 0, 0], [0.1, 0.2, 0.3], rtol=1e-6)
    assert float(y.sum()) == pytest.approx(2 * (9 + 0.6))
    np.testing.assert_array_equal(
        attacks.backdoors.mask_trigger(np.array([True, False]))(jnp.zeros((1, 2))), [[1, 0]]
    )
    for bad in (np.ones(2), np.zeros(2, bool)):
        with pytest.raises(ValueError, match="mask of bool that covers something"):
            attacks.backdoors.mask_trigger(bad)
    for shape in ((1, 3), (1, 2, 3)):
        with pytest.raises(ValueError, match="does not fit"):
            attacks.backdoors.mask_trigger(np.array([True, False]))(jnp.zeros(shape))


# --- Semantic backdoors ------------------------------------------------------------------------------

POOL = {
    "x": np.arange(12, dtype=np.float32).reshape(6, 2),
    "y": np.array([0, 1, 2, 0, 1, 2], np.int32),
}


def test_semantic_backdoor_by_hand():
    split = attacks.backdoors.semantic_backdoor(POOL, [4, 1, 5], held_out=1, target=0)
    np.testing.assert_array_equal(split.train["x"], POOL["x"][[1, 5]])
    np.testing.assert_array_equal(split.train["y"], [0, 0])
    np.testing.assert_array_equal(split.held_out["x"], POOL["x"][[4]])
    np.testing.assert_array_equal(split.held_out["y"], [1])
    np.testing.assert_array_equal(split.rest["x"], POOL["x"][[0, 2, 3]])
    np.testing.assert_array_equal(split.rest["y"], [0, 2, 0])
    assert split.train["y"].dtype == jnp.int32


def test_semantic_backdoor_refuses():
    for rows in ([], [6, 0], [-1, 0], [1, 1]):
        with pytest.raises(ValueError, match=r"different rows in \[0, 6\)"):
            attacks.backdoors.semantic_backdoor(POOL, rows, 0, 0)
    for held_out, target, named in (
        (2, 0, "held_out=2, target=0"),
        (-1, 0, "held_out=-1"),
        (0, 3, "held_out=0, target=3"),
        (0, -1, "target=-1"),
    ):
        with pytest.raises(ValueError, match=named):
            attacks.backdoors.semantic_backdoor(POOL, [1, 2], held_out, target)


def test_numbers_of_cifar_images():
    groups = (
        attacks.backdoors.CIFAR_RACING_STRIPES,
        attacks.backdoors.CIFAR_GREEN_CARS,
        attacks.backdoors.CIFAR_STRIPED_WALLS,
    )
    assert [len(group) for group in groups] == [22, 30, 12]
    numbers = sum(groups, ())
    assert len(set(numbers)) == 64 and max(numbers) < 50_000


def test_missing_cifar_says_how_to_get_it(tmp_path):
    with pytest.raises(FileNotFoundError, match="prepare"):
        data.cifar10_rows([0], tmp_path)


# --- Images ------------------------------------------------------------------------------------------

IMAGES = RNG.uniform(size=(5, 6, 7, 2)).astype(np.float32)


def test_shift_equals_the_reference():
    offsets = np.array([[0, 0], [2, -1], [-6, 7], [5, 6], [-1, 0]])
    np.testing.assert_array_equal(
        data.shift(IMAGES, jnp.asarray(offsets)), ref.shift(IMAGES, offsets)
    )


def test_rotate_equals_the_reference():
    degrees = np.array([0.0, 13.0, -30.0, 90.0, 200.0])
    turned = jax.jit(data.rotate)(IMAGES, jnp.asarray(degrees))
    np.testing.assert_allclose(turned, ref.rotate(IMAGES, degrees), atol=1e-4)
    square = IMAGES[:1, :, :6]
    np.testing.assert_allclose(
        data.rotate(square, jnp.array([90.0]))[0], np.rot90(square[0]), atol=1e-5
    )


def test_random_changes():
    key, x = jax.random.key(0), jnp.asarray(np.tile(IMAGES[:1], (4000, 1, 1, 1)))
    flipped = np.asarray(jax.jit(data.random_flip())(key, x))
    is_flipped = np.all(flipped == np.asarray(x)[:, :, ::-1], axis=(1, 2, 3))
    assert np.all(is_flipped | np.all(flipped == np.asarray(x), axis=(1, 2, 3)))
    assert abs(is_flipped.mean() - 0.5) < 5 / 2 / np.sqrt(4000)

    cropped = np.asarray(jax.jit(data.random_crop(1))(key, x))
    places = [(r, c) for r in (-1, 0, 1) for c in (-1, 0, 1)]
    shares = [
        np.mean(np.all(cropped == ref.shift(IMAGES[:1], [place]), axis=(1, 2, 3)))
        for place in places
    ]
    assert sum(shares) == pytest.approx(1) and np.max(np.abs(np.array(shares) - 1 / 9)) < 0.03

    turned = np.asarray(jax.jit(data.random_rotation(20.0))(key, x[:200]))
    assert len({image.tobytes() for image in turned}) == 200
    np.testing.assert_allclose(data.random_rotation(0.0)(key, x[:3]), x[:3], atol=1e-6)
    with pytest.raises(ValueError, match="padding >= 0, got padding=-1"):
        data.random_crop(-1)


def test_variations_take_each_image_in_turn():
    out = data.variations(jax.random.key(0), IMAGES[:3], 10)
    np.testing.assert_array_equal(out, IMAGES[np.arange(10) % 3])
    moved = data.variations(
        jax.random.key(0), IMAGES[:3], 10, data.random_rotation(10), data.random_crop(1)
    )
    assert moved.shape == (10, 6, 7, 2)
    assert len({image.tobytes() for image in np.asarray(moved)}) == 10
    for x, number in ((IMAGES[:0], 3), (IMAGES, 0)):
        with pytest.raises(ValueError, match=r"variations needs (x of shape|number >= 1)"):
            data.variations(jax.random.key(0), x, number)


def test_augmented_batches():
    batch = {"x": jnp.asarray(IMAGES), "y": jnp.arange(5), "mask": jnp.ones(5)}
    changed = data.changed(data.random_flip(), data.random_crop(1))(jax.random.key(3), batch)
    assert changed["x"].shape == IMAGES.shape and not np.array_equal(changed["x"], IMAGES)
    np.testing.assert_array_equal(changed["y"], batch["y"])


def test_backdoor_accuracy_counts_all():
    task = fr.classification(models.SoftmaxRegression(3), jnp.zeros((1, 3)))
    identity = jnp.concatenate([jnp.zeros(3), jnp.eye(3).ravel()])
    x = jnp.eye(3)[jnp.array([0, 1, 1, 2, 1])]
    for chunk in (1000, 2):
        result = metrics.backdoor_accuracy(task, x, 1, chunk=chunk)(identity)
        assert float(result["backdoor_accuracy"]) == pytest.approx(3 / 5)


# --- Local training: schedules and stopping ----------------------------------------------------------


def distances(params, batch):
    """Gradient -1 in every step."""
    return -params[0] * jnp.mean(batch["mask"])


ONE = fr.Task(lambda key: jnp.zeros(1), distances, None, lambda p: p)
FOUR = ClientData({"x": jnp.zeros(4)}, jnp.arange(4), jnp.int32(4))


def moved(**options):
    return float(
        local_sgd(ONE, batch_size=2, **options).update(jax.random.key(0), jnp.zeros(1), (), FOUR)[
            0
        ][0]
    )


def test_schedules_by_hand():
    # Two steps per epoch at 1, 2, 3; four steps at 1, 2, 3, 4.
    assert moved(learning_rate=lambda done: done + 1.0, epochs=3) == 2 * (1 + 2 + 3)
    assert moved(learning_rate=lambda done: done + 1.0, steps=4) == 1 + 2 + 3 + 4


def test_stop_by_hand():
    """Asked before each epoch of two steps of 1: at 0, 2, 4, 6."""
    assert moved(learning_rate=1.0, epochs=5, stop=lambda p: p[0] >= 3) == 4
    assert moved(learning_rate=1.0, epochs=5, stop=lambda p: p[0] >= 0) == 0
    assert moved(learning_rate=1.0, epochs=5, stop=lambda p: p[0] >= 99) == 10
    with pytest.raises(ValueError, match="give epochs, not steps"):
        local_sgd(ONE, 1.0, 2, stop=lambda p: p[0] >= 3)


# --- The split of Bagdasaryan et al. -----------------------------------------------------------------


def test_dirichlet_truncated_equals_the_reference(monkeypatch):
    """Given the shares and the order of each label's examples; later labels have fewer and more."""
    y = np.repeat(np.arange(4), [30, 30, 17, 60]).astype(np.int32)
    shares = np.random.default_rng(1).dirichlet(np.full(7, 0.9), 4).astype(np.float32)
    monkeypatch.setattr(jax.random, "dirichlet", lambda *_: jnp.asarray(shares))
    monkeypatch.setattr(jax.random, "permutation", lambda key, n: jnp.arange(n))
    rank = np.concatenate([np.random.default_rng(2).permutation(n) for n in (30, 30, 17, 60)])
    monkeypatch.setattr(
        dirichlet,
        "rank_in_class",
        lambda *_: (jnp.asarray(rank), jnp.array([30, 30, 17, 60])),
    )
    owner = dirichlet._truncated_owner.__wrapped__(jax.random.key(0), jnp.asarray(y), 0.9, 7, 4)
    by_label = []
    for label in range(4):
        rows = np.flatnonzero(y == label)
        by_label.append(rows[np.argsort(rank[rows])].tolist())
    expected = np.full(len(y), -1)
    for participant, own in enumerate(ref.dirichlet_truncated(by_label, shares)):
        expected[own] = participant
    np.testing.assert_array_equal(owner, expected)
    assert np.sum(expected[y == 3] < 0) > 25 and np.all(expected[y == 2] >= 0)


def test_dirichlet_truncated():
    """About 100 examples each; shares have the mean and variance of Dir(0.9), whoever comes first."""
    y = np.repeat(np.arange(10), 1000).astype(np.int32)
    pool = {"x": np.zeros((10_000, 1), np.float32), "y": y}
    part = data.dirichlet_truncated(jax.random.key(0), pool, 100, 0.9)
    histogram = np.asarray(partition.label_histogram(part, 10))
    np.testing.assert_array_equal(histogram.sum(axis=1), part.count)
    assert abs(histogram.sum() - 10_000) < 200  # rounding leaves a few
    assert np.var(histogram / 1000) == pytest.approx(0.01 * 0.99 / 91, rel=0.2)
    assert abs(np.corrcoef(np.arange(100), histogram.sum(axis=1))[0, 1]) < 0.4
    index, count = np.asarray(part.index), np.asarray(part.count)
    rows = np.concatenate([index[u, : count[u]] for u in range(100)])
    assert len(rows) == len(np.unique(rows))
    with pytest.raises(ValueError, match="alpha > 0"):
        data.dirichlet_truncated(jax.random.key(0), pool, 100, 0.0)


# --- Models ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("model", "shape", "size"),
    [
        # 5*5*20 + 20 + 5*5*20*50 + 50 + 800*500 + 500 + 500*10 + 10
        (models.MnistNet(10), (28, 28, 1), 431_080),
        # 3x3 convolutions of 1, 16, 32, 64 channels: 160 + 4640 + 18496; 4 * 4 * 64 pixels remain.
        (models.ConvNet(10, ((16,), (32, 64)), (128,)), (28, 28, 1), 23_296 + 1025 * 128 + 1290),
        # 896 + 9248 + 18496 + 36928; 5 * 5 * 64 pixels remain.
        (models.ConvNet(10), (32, 32, 3), 65_568 + 1601 * 256 + 257 * 128 + 1290),
        (models.MnistNet(10, (8, 16), 100), (28, 28, 1), 208 + 3216 + 25_700 + 1010),
        (models.ResNet18(10), (32, 32, 3), 2_797_610),
        # Widths 4, 8, 16, 32: convolutions 108 + 4*144 + (288 + 3*576 + 32) + (1152 + 3*2304 + 128)
        # + (4608 + 3*9216 + 512) = 43,692; scales and biases 2 (5*4 + 5*8 + 5*16 + 5*32) = 600;
        # dense 32*10 + 10.
        (models.ResNet18(10, width=4), (32, 32, 3), 43_692 + 600 + 330),
    ],
)
def test_number_of_parameters(model, shape, size):
    params = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, *shape)))["params"]
    assert sum(leaf.size for leaf in jax.tree.leaves(params)) == size


@pytest.mark.parametrize(
    ("model", "shape", "fans"),
    [
        # Inputs of each unit: 5x5 pixels of 1 and of 20 channels; 4x4 of 50 channels; 500 units.
        (models.MnistNet(10), (28, 28, 1), [25, 500, 800, 500]),
        # 3x3 pixels of 1, 16 and 32 channels; 4x4 of 64 channels; 128 units.
        (models.ConvNet(10, ((16,), (32, 64)), (128,)), (28, 28, 1), [9, 144, 288, 1024, 128]),
    ],
)
def test_networks_of_pytorch_code_start_as_in_pytorch(model, shape, fans):
    """torch.nn.Linear and Conv2d: weights and biases uniform in +-1 / sqrt(fan_in)."""
    params = model.init(jax.random.key(0), jnp.zeros((1, *shape)))["params"]
    names = sorted(name for name in params if name.startswith("Conv")) + sorted(
        name for name in params if name.startswith("Dense")
    )
    assert len(names) == len(fans)
    for name, fan in zip(names, fans, strict=True):
        bound = fan**-0.5
        kernel, bias = np.asarray(params[name]["kernel"]), np.asarray(params[name]["bias"])
        assert np.abs(kernel).max() <= bound and np.abs(bias).max() <= bound
        # Uniform: deviation bound / sqrt(3), whose estimate from m values is off by 0.45 / sqrt(m).
        assert kernel.std() * 3**0.5 / bound == pytest.approx(1, abs=2.5 / kernel.size**0.5)
        assert bias.std() * 3**0.5 / bound == pytest.approx(1, abs=0.45 * 4 / bias.size**0.5)
        assert not np.array_equal(bias, kernel.ravel()[: bias.size])  # each has its own key
