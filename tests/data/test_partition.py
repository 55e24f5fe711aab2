import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fedjax_robust.data import partition as pt
from fedjax_robust.types import FederatedData

POOL_AXES = FederatedData(None, 0, 0)
KEY = jax.random.key(7)


def make_pool(size, num_classes, seed=0):
    """Labels with unequal numbers of examples, each class present; x holds the row number."""
    generator = np.random.default_rng(seed)
    weights = np.linspace(1, 2, num_classes)
    y = generator.choice(num_classes, size, p=weights / weights.sum()).astype(np.int32)
    y[:num_classes] = np.arange(num_classes)
    return {"x": np.arange(size, dtype=np.float32)[:, None], "y": y}


def rows(data, client):
    return np.asarray(data.index)[client, : int(np.asarray(data.count)[client])]


def assert_partition(data, size):
    """Each row of the pool is owned exactly once, and padding entries are rows of the pool."""
    assert data.index.dtype == jnp.int32
    assert data.count.dtype == jnp.int32
    owned = np.concatenate([rows(data, i) for i in range(len(data.count))])
    np.testing.assert_array_equal(np.sort(owned), np.arange(size))
    assert int(data.index.min()) >= 0
    assert int(data.index.max()) < size


def histogram(data, num_classes):
    y = np.asarray(data.examples["y"])
    return np.stack(
        [np.bincount(y[rows(data, i)], minlength=num_classes) for i in range(len(data.count))]
    )


def same(a, b):
    return np.array_equal(a.index, b.index) and np.array_equal(a.count, b.count)


MAKERS = {
    "by_group": lambda key, pool: pt.by_group(key, pool, 12, 0.6, capacity=501),
    "iid": lambda key, pool: pt.iid(key, pool, 12),
    "dirichlet_over_clients": lambda key, pool: pt.dirichlet_over_clients(
        key, pool, 12, 0.5, capacity=501
    ),
    "dirichlet_over_classes": lambda key, pool: pt.dirichlet_over_classes(
        key, pool, 12, 0.5, capacity=501
    ),
    "k_labels": lambda key, pool: pt.k_labels(key, pool, 12, 2, capacity=501),
    "by_user": lambda key, pool: pt.by_user(pool["y"] * 3 % 5, pool, key),
}


@pytest.mark.parametrize("make", MAKERS.values(), ids=MAKERS.keys())
def test_every_example_has_one_owner_and_the_key_decides(make):
    pool = make_pool(501, 5)
    data = make(KEY, pool)
    assert_partition(data, 501)
    np.testing.assert_array_equal(data.examples["y"], pool["y"])
    assert isinstance(data.examples["x"], jax.Array)
    assert same(data, make(KEY, pool))
    assert not same(data, make(jax.random.key(8), pool))


# from_owner


def test_from_owner_by_hand():
    pool = {"y": np.zeros(7, np.int32)}
    data = pt.from_owner(pool, np.array([2, 0, 2, -1, 0, 4, 2]), 4)  # -1 and 4: nobody's
    np.testing.assert_array_equal(data.count, [2, 0, 3, 0])
    np.testing.assert_array_equal(data.index, [[1, 4, 0], [0, 0, 0], [0, 2, 6], [0, 0, 0]])
    wider = pt.from_owner(pool, np.array([2, 0, 2, -1, 0, 4, 2]), 4, capacity=5)
    np.testing.assert_array_equal(wider.index[2], [0, 2, 6, 0, 0])
    lists = pt.from_owner({"y": [0] * 7}, [2, 0, 2, -1, 0, 4, 2], np.array(4), jnp.array(3))
    assert same(lists, data)
    assert same(pt.from_owner(pool, jnp.array([2, 0, 2, -1, 0, 4, 2], jnp.int8), 4), data)


def test_from_owner_under_tracing():
    pool = {"y": np.zeros(4, np.int32)}
    owner = jnp.array([0, 0, 0, 1])
    with pytest.raises(ValueError, match="pass capacity"):
        jax.jit(lambda o: pt.from_owner(pool, o, 2).index)(owner)
    data = jax.jit(lambda o: pt.from_owner(pool, o, 2, capacity=2))(owner)
    np.testing.assert_array_equal(data.count, [2, 1])  # the third of client 0 does not fit
    np.testing.assert_array_equal(data.index, [[0, 1], [3, 0]])


@pytest.mark.parametrize(
    ("owner", "clients", "capacity", "message"),
    [
        ([0, 1, 5], 2, None, "from 0 to 5"),
        ([0, 1, -2], 2, None, "from -2 to 1"),
        ([0, 1], 2, None, "one entry per example"),
        ([0.0, 1.0, 1.0], 2, None, "integers"),
        ([0, 1, 1], 2, 1, "capacity=1, largest=2"),
        ([-1, 0, -1], 2, 0, "capacity=0"),
        ([0, 0, 0], 0, None, "num_clients >= 1, got num_clients=0"),
        ([0, 0, 0], 1.5, None, "num_clients to be a whole number >= 1, got num_clients=1.5"),
        ([0, 0, 0], np.array(np.nan), None, "num_clients to be a whole number"),
        ([0, 1, 1], 2, 2.0, "capacity to be a whole number >= 1, got capacity=2.0"),
        ([[0], [1], [1]], 2, None, r"one entry per example, \(3,\), got shape \(3, 1\)"),
        ([0, 1, 2**32], 2, None, "from 0 to 4294967296"),
        ([-1, 2, -1], 2, None, "nobody owns anything, all 3 examples are left out"),
    ],
)
def test_from_owner_rejects(owner, clients, capacity, message):
    with pytest.raises(ValueError, match=message):
        pt.from_owner({"y": np.zeros(3, np.int32)}, np.array(owner), clients, capacity)


@pytest.mark.parametrize(
    "owner", [{0: [1, 2]}, "012", ["a", "b", "c"], [True, False, True], [None, 0, 1]]
)
def test_from_owner_of_another_type(owner):
    with pytest.raises(TypeError, match="from_owner needs owner"):
        pt.from_owner({"y": np.zeros(3, np.int32)}, owner, 2)


@pytest.mark.parametrize("clients", [True, "2", None, [2], 2j])
def test_numbers_of_another_type(clients):
    for make in (
        lambda n: pt.from_owner({"y": [0, 1]}, [0, 1], n),
        lambda n: pt.iid(KEY, {"y": [0, 1]}, n),
        lambda n: pt.by_group(KEY, {"y": [0, 1]}, n, 0.5),
        lambda n: pt.k_labels(KEY, {"y": [0, 1]}, 2, n),
        lambda n: pt.root_set(KEY, {"y": [0, 1]}, 1, num_classes=n) if n is not None else int(n),
    ):
        with pytest.raises((TypeError, ValueError)) as error:
            make(clients)
        assert "needs" in str(error.value) or clients is None


@pytest.mark.parametrize(
    "examples",
    [{}, {"x": np.zeros((3, 2)), "y": np.zeros(2, int)}, {"y": np.zeros(0, int)}, {"y": 1}],
    ids=["none", "unequal", "empty", "scalar"],
)
def test_pool_is_checked(examples):
    with pytest.raises(ValueError, match="one common number of examples"):
        pt.iid(KEY, examples, 2)


@pytest.mark.parametrize(
    ("examples", "error", "message"),
    [
        ([1, 2, 3], TypeError, "examples by name, .*got list"),
        ({"x": ["a", "b"]}, TypeError, "encode it as integers"),
        ({"x": [[1], [2, 3]]}, TypeError, "'x' to be an array of numbers"),
        ({"x": [1, None]}, TypeError, "column 'x' of object"),
        (
            {"x": [1, 2**40]},
            ValueError,
            "'x' has integers from 1 to 1099511627776, beyond the int32",
        ),
    ],
)
def test_columns_are_checked(examples, error, message):
    for make in (
        lambda: pt.iid(KEY, examples, 2),
        lambda: pt.from_owner(examples, [0, 1], 2),
        lambda: pt.by_user([0, 1], examples),
    ):
        with pytest.raises(error, match=message):
            make()


class Column:
    """As pandas has them: no array, but NumPy makes one of it."""

    def __init__(self, values):
        self.values = np.asarray(values)

    def __array__(self, dtype=None, copy=None):
        return self.values.astype(dtype or self.values.dtype)


def test_columns_of_any_kind_are_one_pool():
    pool = make_pool(60, 3)
    expected = pt.by_group(KEY, pool, 6, 0.5)
    for kind in (lambda a: a.tolist(), jnp.asarray, Column, lambda a: a.astype(a.dtype.kind + "8")):
        data = pt.by_group(KEY, {name: kind(a) for name, a in pool.items()}, 6, 0.5)
        assert same(data, expected)
        np.testing.assert_array_equal(data.examples["x"], pool["x"])
    users = pool["y"].tolist()
    by_user = pt.by_user(users, pool)
    for kind in (np.array, jnp.array, Column, lambda a: np.array(a, object)):
        assert same(pt.by_user(kind(users), pool), by_user)
        assert same(pt.from_owner(pool, pool["y"], 3), by_user)
    shared = jnp.asarray(pool["x"])
    assert pt.iid(KEY, {"x": shared}, 3).examples["x"] is shared


KEYED = MAKERS | {
    "dirichlet_truncated": lambda key, pool: pt.dirichlet_truncated(key, pool, 12, 0.5),
    "root_set": lambda key, pool: pt.root_set(key, pool, 20),
}
LABELLED = {name: make for name, make in KEYED.items() if name not in ("iid", "by_user")}


@pytest.mark.parametrize("name", KEYED)
def test_a_key_is_no_integer(name):
    pool = make_pool(501, 5)
    with pytest.raises(TypeError, match=rf"{name} needs a key .*write jax.random.key\(7\)"):
        KEYED[name](7, pool)
    with pytest.raises(ValueError, match=f"{name} needs one key"):
        KEYED[name](jax.random.split(KEY, 2), pool)
    new, old = KEYED[name](KEY, pool), KEYED[name](jax.random.PRNGKey(7), pool)
    for a, b in zip(jax.tree.leaves(new), jax.tree.leaves(old), strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("name", LABELLED)
@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda y: np.eye(5)[y], "argmax"),
        (lambda y: np.eye(5, dtype=int)[y], "argmax"),
        (lambda y: y[:, None], "squeeze"),
        (lambda y: y.astype(np.float32), "integers"),
        (lambda y: y == 1, "integers"),
        (lambda y: y.astype(str), "encode it as integers"),
        (lambda y: y - 1, "from -1 to 3"),
        (lambda y: y * 10**6, "number the classes from 0"),
        (lambda y: y.astype(np.int64) << 32, "beyond the int32"),
        (lambda y: y[:-1], "common number of examples"),
    ],
    ids=["one-hot", "one-hot integers", "(E, 1)", "float", "bool", "str", "-1", "1e6", "2^32", "short"],
)  # fmt: skip
def test_labels_that_do_not_fit_are_refused(name, change, message):
    pool = make_pool(120, 5)
    bad = pool | {"y": change(pool["y"])}
    with pytest.raises((ValueError, TypeError), match=message) as error:
        LABELLED[name](KEY, bad)
    assert str(error.value).startswith(name)
    with pytest.raises(ValueError, match=f"{name} needs examples with 'y', got 'image', 'label'"):
        LABELLED[name](KEY, {"image": pool["x"], "label": pool["y"]})


def test_labels_of_text_are_refused():
    words = np.arange(12).reshape(3, 4)
    with pytest.raises(ValueError, match=r"sequences of shape \(3, 4\); text is split by_user"):
        pt.by_group(KEY, {"x": words, "y": words + 1}, 3, 0.5)


# The splits by slow definitions, from the same draws


def test_by_group_by_definition():
    pool, clients, labels, p = make_pool(300, 4), 10, 4, 0.4
    own, other, member, order = jax.random.split(KEY, 4)
    stays = np.asarray(jax.random.uniform(own, (300,))) < p
    shift = np.asarray(jax.random.randint(other, (300,), 1, labels))
    groups = [list(range(3)), list(range(3, 6)), list(range(6, 8)), list(range(8, 10))]
    group = [
        int(y) if s else (int(y) + int(d)) % labels
        for y, s, d in zip(pool["y"], stays, shift, strict=True)
    ]
    sizes = jnp.array([len(groups[g]) for g in group])
    place = np.asarray(jax.random.randint(member, (300,), 0, sizes))
    names = np.asarray(jax.random.permutation(order, clients))
    owner = np.array([names[groups[g][i]] for g, i in zip(group, place, strict=True)])
    data = pt.by_group(KEY, pool, clients, p)
    for client in range(clients):
        np.testing.assert_array_equal(rows(data, client), np.flatnonzero(owner == client))


def test_iid_by_definition():
    example, order = jax.random.split(KEY)
    client = np.asarray(jax.random.permutation(order, 7))
    dealt = jnp.array([client[e % 7] for e in range(45)])
    owner = np.asarray(jax.random.permutation(example, dealt))
    data = pt.iid(KEY, {"x": np.zeros(45)}, 7)
    for i in range(7):
        np.testing.assert_array_equal(rows(data, i), np.flatnonzero(owner == i))


def by_label(key, y, labels):
    """Each label's rows in the order in which they are dealt."""
    shuffled = np.asarray(jax.random.permutation(key, len(y)))
    return [[int(e) for e in shuffled if y[e] == label] for label in range(labels)]


def assert_owns(data, own):
    assert len(data.count) == len(own)
    for client, expected in enumerate(own):
        assert rows(data, client).tolist() == sorted(expected)


def test_dirichlet_over_clients_by_definition():
    pool, clients, labels = make_pool(501, 5), 12, 5
    key_share, key_example = jax.random.split(KEY)
    shares = np.asarray(jax.random.dirichlet(key_share, jnp.full(clients, 0.7), (labels,)))
    own = [[] for _ in range(clients)]
    for label, examples in enumerate(by_label(key_example, pool["y"], labels)):
        ends = np.cumsum(shares[label].astype(np.float64))
        for nth, example in enumerate(examples):  # its middle lies in its client's share
            middle = (nth + 0.5) / len(examples)
            own[min(int(np.sum(ends <= middle)), clients - 1)].append(example)
    assert_owns(pt.dirichlet_over_clients(KEY, pool, clients, 0.7, capacity=501), own)


def test_dirichlet_truncated_by_definition():
    y = np.repeat(np.arange(4), [40, 25, 60, 42]).astype(np.int32)
    clients = 6
    key_share, key_example, key_order = jax.random.split(KEY, 3)
    shares = np.asarray(jax.random.dirichlet(key_share, jnp.full(clients, 0.9), (4,)))
    order = np.asarray(jax.random.permutation(key_order, clients))
    own = [[] for _ in range(clients)]
    for label, left in enumerate(by_label(key_example, y, 4)):
        for turn in range(clients):
            number = round(40 * float(shares[label, turn]))
            own[order[turn]] += left[:number]
            left = left[number:]
    with pytest.warns(UserWarning, match="to nobody"):
        data = pt.dirichlet_truncated(KEY, {"y": y}, clients, 0.9)
    assert_owns(data, own)
    assert sum(map(len, own)) < 150  # a third of label 2 is left


def test_dirichlet_over_classes_by_definition():
    pool, clients, labels = make_pool(501, 5), 12, 5
    key_mixture, key_draw, key_example, key_order = jax.random.split(KEY, 4)
    log_q = np.asarray(jax.random.loggamma(key_mixture, 0.5, (clients, labels)))
    noise = np.asarray(jax.random.gumbel(key_draw, (501, labels)))
    order = np.asarray(jax.random.permutation(key_order, clients))
    left = by_label(key_example, pool["y"], labels)
    own = [[] for _ in range(clients)]
    for turn in range(501):
        client = order[turn % clients]
        able = [label for label in range(labels) if left[label]]
        label = max(able, key=lambda label: log_q[client, label] + noise[turn, label])
        own[client].append(left[label].pop(0))
    assert_owns(pt.dirichlet_over_classes(KEY, pool, clients, 0.5, capacity=501), own)


def test_k_labels_by_definition():
    pool, clients, k, labels = make_pool(97, 5), 7, 2, 5
    key_label, key_example, key_order = jax.random.split(KEY, 3)
    ties = np.asarray(jax.random.uniform(key_label, (clients, labels)))
    owners = [[] for _ in range(labels)]
    for client in range(clients):
        fewest = sorted(range(labels), key=lambda c: (len(owners[c]), ties[client, c]))[:k]
        for label in fewest:
            owners[label].append(client)
    order = np.asarray(jax.random.permutation(key_order, clients))
    own = [[] for _ in range(clients)]
    for label, examples in enumerate(by_label(key_example, pool["y"], labels)):
        for nth, example in enumerate(examples):
            own[order[owners[label][nth % len(owners[label])]]].append(example)
    assert_owns(pt.k_labels(KEY, pool, clients, k), own)


# Clients come in random order


@pytest.mark.parametrize(
    ("make", "size"),
    [
        # Label 1 has a quarter of label 0's examples: who comes first takes them.
        (lambda key: pt.dirichlet_truncated(
            key, {"y": np.repeat([0, 1], [40, 10])}, 4, 50.0, num_classes=2, capacity=50), 4),
        # Who comes first gets the one example too many.
        (lambda key: pt.dirichlet_over_classes(
            key, {"y": np.arange(9) % 2}, 4, 1.0, num_classes=2, capacity=9), 4),
        # Each label has two owners for three examples.
        (lambda key: pt.k_labels(key, {"y": np.arange(6) % 2}, 2, 2, num_classes=2, capacity=6), 2),
    ],
    ids=["dirichlet_truncated", "dirichlet_over_classes", "k_labels"],
)  # fmt: skip
def test_clients_come_in_random_order(make, size):
    """The client that gets the most is each of them, equally often over 200 keys."""
    parts = jax.vmap(make, out_axes=POOL_AXES)(jax.random.split(KEY, 200))
    count = np.asarray(parts.count)
    if size == 4 and count.sum(axis=1)[0] > 9:  # truncated: look at label 1 alone
        valid = np.arange(parts.index.shape[2]) < count[..., None]
        count = np.sum(valid & (np.asarray(parts.index) >= 40), axis=2)
    most = np.bincount(count.argmax(axis=1), minlength=size)
    ties = np.mean(np.sum(count == count.max(axis=1, keepdims=True), axis=1) > 1)
    assert ties < 0.05
    error = 5 * np.sqrt(200 / size * (1 - 1 / size))
    np.testing.assert_allclose(most, 200 / size, atol=error)


# by_group


@pytest.mark.parametrize("p", [0.5, 0.9])
def test_by_group_has_the_stated_probabilities(p):
    size, labels, clients = 40_000, 10, 23
    pool = make_pool(size, labels)
    table = histogram(pt.by_group(KEY, pool, clients, p), labels)
    class_count = table.sum(axis=0)
    # With p this far above 1/L a client's most over-represented label is its group's.
    group = np.argmax(table / class_count, axis=1)
    members = np.bincount(group, minlength=labels)
    np.testing.assert_array_equal(members, [3, 3, 3] + 7 * [2])
    # Numbers of examples of label l in group g are Binomial(E_l, p or (1 - p) / (L - 1)).
    in_group = np.stack([table[group == g].sum(axis=0) for g in range(labels)])
    share = np.where(np.eye(labels, dtype=bool), p, (1 - p) / (labels - 1))
    z = (in_group - class_count * share) / np.sqrt(class_count * share * (1 - share))
    assert np.abs(z).max() < 4.5
    # Inside a group, examples fall on each of its c members with probability 1/c.
    within = in_group[group]
    one = 1 / members[group][:, None]
    z = (table - within * one) / np.sqrt(np.maximum(within * one * (1 - one), 1))
    assert np.abs(z).max() < 4.5


def test_by_group_limits():
    pool = make_pool(600, 4)
    own_only = histogram(pt.by_group(KEY, pool, 8, 1.0, capacity=600), 4)
    assert ((own_only > 0).sum(axis=1) == 1).all()
    assert ((own_only > 0).sum(axis=0) == 2).all()
    never_own = histogram(pt.by_group(KEY, pool, 8, 0.0, capacity=600), 4)
    assert ((never_own == 0).sum(axis=1) == 1).all()
    assert ((never_own == 0).sum(axis=0) == 2).all()


def test_by_group_with_p_one_over_l_is_iid():
    labels, clients = 10, 50
    table = histogram(pt.by_group(KEY, make_pool(30_000, labels), clients, 1 / labels), labels)
    expected = table.sum(axis=0) / clients
    chi_square = ((table - expected) ** 2 / expected).sum()
    freedom = labels * (clients - 1)
    assert abs(chi_square - freedom) < 5 * np.sqrt(2 * freedom)


def test_by_group_permutes_the_clients():
    pool = make_pool(400, 4)
    keys = jax.random.split(KEY, 60)
    parts = jax.vmap(lambda key: pt.by_group(key, pool, 4, 1.0, capacity=400), out_axes=POOL_AXES)(
        keys
    )
    first = pool["y"][np.asarray(parts.index[:, 0, 0])]  # the label that client 0 prefers
    counts = np.bincount(first, minlength=4)
    assert counts.sum() == 60
    assert counts.min() >= 4  # Binomial(60, 1/4): 15 +- 3.4
    assert counts.max() <= 30


def test_by_group_vmaps_over_p_and_keys():
    pool = {name: jnp.asarray(array) for name, array in make_pool(300, 3).items()}
    p = jnp.array([0.2, 0.5, 1.0])
    keys = jax.random.split(KEY, 3)

    def make(key, p):
        return pt.by_group(key, pool, 6, p, num_classes=3, capacity=200)

    data = jax.jit(jax.vmap(make, out_axes=POOL_AXES))(keys, p)
    assert data.index.shape == (3, 6, 200)
    for i in range(3):
        assert same(make(keys[i], float(p[i])), FederatedData({}, data.index[i], data.count[i]))


@pytest.mark.parametrize(
    ("clients", "p", "classes", "message"),
    [
        (3, 0.5, None, "num_clients=3, num_classes=4"),
        (8, 1.1, None, "p=1.1"),
        (8, -0.1, None, "p=-0.1"),
        (8, float("nan"), None, "p=nan"),
        (8, np.array(1.5), None, "p=1.5"),
        (8, jnp.array(-0.5), None, "p=-0.5"),
        (8, float("inf"), None, "p=inf"),
        (8, np.array([0.5, 0.6]), None, "p to be one number"),
        (8, 0.5, 3, "labels in 0 .. 2, got labels from 0 to 3"),
        (8, 0.5, 4.0, "num_classes to be a whole number"),
        (8, 0.5, 0, "num_classes >= 1, got num_classes=0"),
    ],
)
def test_by_group_rejects(clients, p, classes, message):
    with pytest.raises(ValueError, match=message):
        pt.by_group(KEY, make_pool(100, 4), clients, p, classes)


def test_labels_are_checked():
    with pytest.raises(ValueError, match="by_group needs examples with 'y', got 'x'"):
        pt.by_group(KEY, {"x": np.zeros(3)}, 3, 0.5)
    with pytest.raises(ValueError, match="from -1 to 1"):
        pt.k_labels(KEY, {"y": np.array([-1, 0, 1])}, 3, 1)
    with pytest.raises(ValueError, match="num_classes >= 2, got num_classes=1; use iid"):
        pt.by_group(KEY, {"y": np.zeros(3, int)}, 3, 0.5)
    with pytest.raises(ValueError, match="pass num_classes"):
        jax.jit(lambda y: pt.by_group(KEY, {"y": y}, 3, 0.5, capacity=9).count)(jnp.arange(3))


# iid


def test_iid_sizes_and_mixture():
    labels, clients = 5, 40
    data = pt.iid(KEY, make_pool(20_010, labels), clients)
    assert sorted(np.asarray(data.count)) == 30 * [500] + 10 * [501]
    table = histogram(data, labels)
    expected = table.sum(axis=0) / clients
    chi_square = ((table - expected) ** 2 / expected).sum()
    freedom = (labels - 1) * (clients - 1)
    assert abs(chi_square - freedom) < 5 * np.sqrt(2 * freedom)


def test_iid_gives_the_larger_parts_to_random_clients():
    pool = make_pool(5, 2)
    parts = jax.vmap(lambda key: pt.iid(key, pool, 3), out_axes=POOL_AXES)(
        jax.random.split(KEY, 90)
    )
    small = np.asarray(parts.count) == 1  # sizes are 2, 2, 1
    assert (small.sum(axis=1) == 1).all()
    assert small.sum(axis=0).min() >= 12  # Binomial(90, 1/3): 30 +- 4.5


def test_more_clients_than_examples_leaves_some_empty():
    data = pt.iid(KEY, make_pool(3, 2), 5)
    assert sorted(np.asarray(data.count)) == [0, 0, 1, 1, 1]
    assert_partition(data, 3)


# Dirichlet


def test_dirichlet_over_clients_has_dirichlet_shares():
    labels, per_label, clients, alpha = 60, 300, 10, 0.5
    pool = {"y": np.repeat(np.arange(labels, dtype=np.int32), per_label)}
    parts = [
        pt.dirichlet_over_clients(key, pool, clients, alpha, capacity=18_000)
        for key in jax.random.split(KEY, 4)
    ]
    share = np.concatenate([histogram(d, labels).T for d in parts]) / per_label  # (240, clients)
    variance = (clients - 1) / (clients**2 * (clients * alpha + 1))  # 0.015
    assert np.mean((share - 1 / clients) ** 2) == pytest.approx(variance, rel=0.12)
    # Each client's mean share over 240 draws is 1/N up to its standard error.
    error = np.sqrt(variance / len(share))
    assert np.abs(share.mean(axis=0) - 1 / clients).max() < 4.5 * error


def test_dirichlet_over_clients_extremes():
    pool = make_pool(501, 5)
    even = histogram(pt.dirichlet_over_clients(KEY, pool, 12, 1e6, capacity=501), 5)
    expected = np.bincount(pool["y"]) / 12
    assert np.abs(even - expected).max() <= 1.5
    data = pt.dirichlet_over_clients(KEY, pool, 12, 1e-5, capacity=501)
    assert_partition(data, 501)
    table = histogram(data, 5)
    assert (table.max(axis=0) > 0.95 * table.sum(axis=0)).all()
    assert (np.asarray(data.count) == 0).sum() >= 7  # each of 5 labels to one client


def test_dirichlet_over_classes_has_dirichlet_mixtures():
    labels, clients, each, alpha = 10, 500, 40, 0.5
    pool = {"y": np.arange(clients * each, dtype=np.int32) % labels}
    data = pt.dirichlet_over_classes(KEY, pool, clients, alpha)
    assert_partition(data, clients * each)
    assert (np.asarray(data.count) == each).all()
    share = histogram(data, labels) / each
    # Dirichlet-multinomial with s draws: mu (1 - mu) / s * (s + L alpha) / (1 + L alpha).
    total = labels * alpha
    variance = 0.1 * 0.9 / each * (each + total) / (1 + total)
    assert np.mean((share - 0.1) ** 2) == pytest.approx(variance, rel=0.1)


def test_dirichlet_over_classes_extremes():
    pool = {"y": np.arange(4_000, dtype=np.int32) % 4}
    even = histogram(pt.dirichlet_over_classes(KEY, pool, 400, 1e6), 4)
    assert np.var(even) == pytest.approx(10 * 0.25 * 0.75, rel=0.15)  # multinomial, 10 draws
    single = pt.dirichlet_over_classes(KEY, pool, 400, 1e-4)
    assert_partition(single, 4_000)
    # At first each client takes one label; leftovers of the popular labels are shared out.
    assert np.median(histogram(single, 4).max(axis=1)) == 10


def test_dirichlet_over_classes_prior():
    pool = make_pool(501, 5)
    a = pt.dirichlet_over_classes(KEY, pool, 12, 0.5)
    b = pt.dirichlet_over_classes(KEY, pool, 12, 2.5, prior=np.full(5, 0.2))
    assert same(a, b)  # Dir(alpha p) with p uniform is Dir(alpha / L, ..., alpha / L)
    with pytest.raises(ValueError, match=r"prior of shape \(5\), got shape \(3,\)"):
        pt.dirichlet_over_classes(KEY, pool, 12, 0.5, prior=np.full(3, 1 / 3))
    with pytest.raises(ValueError, match=r"prior > 0 of shape \(5,\)"):
        pt.dirichlet_over_classes(KEY, pool, 12, 0.5, prior=np.array([1.0, 0, 0, 0, 0]))
    for bad in ([0.4, 0.2, 0.2, 0.2, np.nan], np.bincount(pool["y"]), [0.5, 0.2, 0.2, 0.2, -0.1]):
        with pytest.raises(ValueError, match=r"sums to one, .* divide it by its sum"):
            pt.dirichlet_over_classes(KEY, pool, 12, 0.5, prior=bad)
    with pytest.raises(ValueError, match=r"alpha \* prior"):
        pt.dirichlet_over_classes(KEY, pool, 12, 1e-37, prior=[0.001, 0.249, 0.25, 0.25, 0.25])


@pytest.mark.parametrize(
    "numbers",
    [[0, 50, 50, 50], [1, 400, 400, 400]],
    ids=["none of label 0", "one of label 0 for 100 clients"],
)
def test_dirichlet_truncated_without_label_0_is_refused(numbers):
    y = np.repeat(np.arange(4), numbers)
    with pytest.raises(ValueError, match=r"nobody (would own|owns) anything"):
        pt.dirichlet_truncated(KEY, {"y": y}, 100, 1e6)


def test_dirichlet_truncated_says_what_is_left_over():
    with pytest.warns(
        UserWarning, match=r"leaves 5\d\d of 610 examples \(9\d%\) to nobody, .*label 0"
    ):
        pt.dirichlet_truncated(KEY, {"y": np.repeat([0, 1, 2], [10, 300, 300])}, 5, 1.0)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        data = pt.dirichlet_truncated(KEY, {"y": np.arange(600) % 3}, 5, 1.0)
    assert int(data.count.sum()) >= 590


@pytest.mark.parametrize("make", [pt.dirichlet_over_clients, pt.dirichlet_over_classes])
def test_dirichlet_vmaps_and_rejects(make):
    pool = make_pool(501, 5)
    alphas = jnp.array([0.1, 10.0])

    def part(alpha):
        return make(KEY, pool, 12, alpha, capacity=501)

    data = jax.vmap(part, out_axes=POOL_AXES)(alphas)
    for i in range(2):
        one = FederatedData(data.examples, data.index[i], data.count[i])
        assert_partition(one, 501)
        assert same(one, part(float(alphas[i])))
    for alpha in (0, 0.0, -1.0, np.nan, np.inf, np.array(0.0), jnp.array(np.inf), 1e-40, 1e39):
        with pytest.raises(ValueError, match="needs alpha > 0"):
            make(KEY, pool, 12, alpha)
    for alpha in ("0.5", True, None, 1j):
        with pytest.raises(TypeError, match="needs alpha"):
            make(KEY, pool, 12, alpha)
    for alpha in (2e-38, 3e38):  # the ends of what is allowed
        assert_partition(make(KEY, pool, 12, alpha, capacity=501), 501)
    whole = make(KEY, pool, 12, 1, capacity=501)
    assert same(whole, make(KEY, pool, np.array(12), np.array(1.0), capacity=np.array(501)))


# k_labels


@pytest.mark.parametrize(
    ("clients", "k", "labels"), [(10, 3, 10), (7, 2, 5), (3, 4, 4), (4, 3, 10)]
)
def test_k_labels_is_exact(clients, k, labels):
    size = 1_003
    data = pt.k_labels(KEY, make_pool(size, labels), clients, k)
    assert_partition(data, size)
    table = histogram(data, labels)
    owns = table > 0
    assert (owns.sum(axis=1) == k).all()
    owners = owns.sum(axis=0)
    assert owners.min() >= 1
    assert owners.max() - owners.min() <= 1
    for label in range(labels):
        shares = table[owns[:, label], label]
        assert shares.max() - shares.min() <= 1


def test_k_labels_of_a_client_are_random():
    pool = make_pool(200, 5)
    parts = [pt.k_labels(key, pool, 5, 2, capacity=200) for key in jax.random.split(KEY, 40)]
    pairs = {tuple(np.flatnonzero(histogram(part, 5)[0])) for part in parts}
    assert len(pairs) >= 8  # of the 10 there are


def test_k_labels_vmaps():
    pool = make_pool(501, 5)
    keys = jax.random.split(KEY, 2)
    data = jax.vmap(lambda key: pt.k_labels(key, pool, 12, 2, capacity=501), out_axes=POOL_AXES)(
        keys
    )
    for i in range(2):
        one = FederatedData({}, data.index[i], data.count[i])
        assert same(one, pt.k_labels(keys[i], pool, 12, 2, capacity=501))


def test_k_labels_rejects():
    pool = make_pool(60, 6)
    with pytest.raises(ValueError, match="num_clients=2, k=2, num_classes=6"):
        pt.k_labels(KEY, pool, 2, 2)
    with pytest.raises(ValueError, match="k=7, num_classes=6"):
        pt.k_labels(KEY, pool, 10, 7)
    for k in (0, -1, 1.5, 2.0, np.nan, np.array(0)):
        with pytest.raises(ValueError, match=r"k_labels needs k (>= 1|to be a whole number >= 1)"):
            pt.k_labels(KEY, pool, 10, k)
    assert same(pt.k_labels(KEY, pool, 10, np.array(2)), pt.k_labels(KEY, pool, 10, 2))
    with pytest.raises(ValueError, match="as many examples of a label as it has owners"):
        pt.k_labels(KEY, {"y": np.array([0, 1, 1, 1, 1])}, 4, 1)


# by_user


def test_by_user_by_hand():
    users = np.array(["romeo", "juliet", "romeo", "nurse", "juliet", "romeo"])
    pool = {"x": np.zeros((6, 3), np.int32)}  # no labels needed
    data = pt.by_user(users, pool)
    np.testing.assert_array_equal(data.count, [2, 1, 3])  # juliet, nurse, romeo
    np.testing.assert_array_equal(data.index, [[1, 4, 0], [3, 0, 0], [0, 2, 5]])
    orders = set()
    for key in jax.random.split(KEY, 30):
        shuffled = pt.by_user(users, pool, key)
        assert_partition(shuffled, 6)
        for client in range(3):
            assert len(set(users[rows(shuffled, client)])) == 1
        orders.add(tuple(np.asarray(shuffled.count)))
    assert len(orders) == 6
    with pytest.raises(ValueError, match="one entry per example"):
        pt.by_user(users[:5], pool)
    with pytest.raises(ValueError, match=r"got shape \(6, 1\)"):
        pt.by_user(users[:, None], pool)
    with pytest.raises(ValueError, match="integers or strings, got float64"):
        pt.by_user([0.5] * 6, pool)
    for bad in ([True] * 6, [None, *users[1:]], pool, "romeos"):
        with pytest.raises((TypeError, ValueError), match="by_user needs users"):
            pt.by_user(bad, pool)
    with pytest.raises(TypeError, match="got a traced array"):
        jax.jit(lambda users: pt.by_user(users, pool).count)(jnp.arange(6))


# root_set


@pytest.mark.parametrize(
    ("labels", "p", "quota"),
    [
        (10, None, 10 * [10]),
        (10, 0.1, 10 * [10]),
        # 60 / 9 = 6 + 6/9: the carried ninths are 6, 12, 9, 6, 12, 9, 6, 12, 9.
        (10, 0.4, [6, 40, 7, 7, 6, 7, 7, 6, 7, 7]),
        # 20 / 9 = 2 + 2/9: the carried ninths are 2, 4, 6, 8, 10, 3, 5, 7, 9.
        (10, 0.8, [2, 80, 2, 2, 2, 3, 2, 2, 2, 3]),
        (10, 0.0, [11, 0, 11, 11, 11, 11, 11, 11, 11, 12]),
        (10, 1.0, [0, 100, 0, 0, 0, 0, 0, 0, 0, 0]),
        (10, 0.29, [7, 29, 8, 8, 8, 8, 8, 8, 8, 8]),  # the product is 28.999... in floats
        # 84 / 5 = 16 + 4/5: the carried fifths are 4, 8, 7, 6, 5.
        (6, None, [16, 16, 17, 17, 17, 17]),
        # 88 / 7 = 12 + 4/7: the carried sevenths are 4, 8, 5, 9, 6, 10, 7.
        (8, None, [12, 12, 13, 12, 13, 12, 13, 13]),
        (2, 0.7, [30, 70]),
    ],
)
def test_root_set_quotas_by_hand(labels, p, quota):
    pool = make_pool(2_000, labels)
    root, rest = pt.root_set(KEY, pool, p=p)
    assert sum(quota) == 100
    np.testing.assert_array_equal(np.bincount(root["y"], minlength=labels), quota)
    assert root["x"].shape == (100, 1)
    assert rest["x"].shape == (1_900, 1)


def test_root_set_and_rest_are_the_pool():
    pool = make_pool(700, 5)
    root, rest = pt.root_set(KEY, pool, size=41, p=0.5, biased_class=3)
    assert np.bincount(root["y"]).tolist() == [5, 5, 5, 20, 6]  # 21 / 4 = 5 + 1/4
    for part in (root, rest):  # x is the row of the pool
        np.testing.assert_array_equal(part["y"], pool["y"][np.asarray(part["x"][:, 0], int)])
        assert isinstance(part["x"], jax.Array)
    both = np.concatenate([root["x"], rest["x"]])[:, 0]
    np.testing.assert_array_equal(np.sort(both), np.arange(700))
    for p in (np.float32(0.29), jnp.array(0.29), np.array(0.29)):
        root, _ = pt.root_set(KEY, pool, size=np.array(100), p=p, biased_class=np.array(2))
        assert np.bincount(root["y"])[2] == 29  # although a float32 is a little less than .29
    with pytest.raises(TypeError, match="p to be known"):
        jax.jit(lambda p: pt.root_set(KEY, pool, 10, p))(0.5)
    last, _ = pt.root_set(KEY, pool, size=41, p=0.5, biased_class=4)
    assert np.bincount(last["y"]).tolist() == [5, 5, 5, 6, 20]


def test_root_set_is_random_in_its_key():
    pool = {"y": np.arange(40) % 2, "x": np.arange(40)}
    keys = jax.random.split(KEY, 300)
    draw = jax.jit(jax.vmap(lambda key: pt.root_set(key, pool, size=10, p=0.8, num_classes=2)))
    root, rest = draw(keys)
    assert rest["x"].shape == (300, 30)
    one, _ = pt.root_set(keys[3], pool, size=10, p=0.8)
    np.testing.assert_array_equal(one["x"], root["x"][3])
    # Each odd row is drawn with probability 8/20, each even one with 2/20.
    counts = np.bincount(np.asarray(root["x"]).ravel(), minlength=40)
    assert np.abs(counts[1::2] - 120).max() < 4.5 * np.sqrt(300 * 0.4 * 0.6)
    assert np.abs(counts[::2] - 30).max() < 4.5 * np.sqrt(300 * 0.1 * 0.9)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"size": 0}, "size=0, E=200"),
        ({"size": 200}, "size=200, E=200"),
        ({"p": 1.1}, r"p in \[0, 1\], got p=1.1; None is 1/num_classes"),
        ({"p": np.array(2.0)}, "got p=2.0"),
        ({"size": 10.5}, "size to be a whole number"),
        ({"size": -1}, "size=-1"),
        ({"biased_class": 1.0}, "biased_class to be a whole number"),
        ({"p": -0.1}, "got p=-0.1"),
        ({"p": float("nan")}, "got p=nan"),
        ({"biased_class": 4}, "num_classes=4, biased_class=4"),
        ({"biased_class": -1}, "biased_class=-1"),
        ({"num_classes": 3}, r"labels in 0 \.\. 2, got labels from 0 to 3"),
        ({"p": 0.9}, "90  3  4.* take a smaller size or another p"),
        ({"num_classes": 5}, "20 20 20 20.* take a smaller size or another p"),
    ],
)
def test_root_set_rejects(options, message):
    with pytest.raises(ValueError, match=message):
        pt.root_set(KEY, make_pool(200, 4), **options)


# helpers


def test_label_histogram_by_hand():
    pool = {"y": np.array([0, 2, 2, 1, 0])}
    data = pt.from_owner(pool, np.array([1, 1, 1, 3, 3]), 4)
    expected = [[0, 0, 0], [1, 0, 2], [0, 0, 0], [1, 1, 0]]
    np.testing.assert_array_equal(pt.label_histogram(data, 3), expected)
    with pytest.raises(ValueError, match=r"labels in 0 \.\. 1, got labels from 0 to 2"):
        pt.label_histogram(data, 2)
    with pytest.raises(ValueError, match="num_classes >= 1"):
        pt.label_histogram(data, 0)
    with pytest.raises(ValueError, match="for stacked ones use"):
        pt.label_histogram(pt.stack([data, data]), 3)
    with pytest.raises(ValueError, match=r"rows in \[0, 5\)"):
        pt.label_histogram(data._replace(index=data.index + 9), 3)
    with pytest.raises(TypeError, match="data to be a FederatedData"):
        pt.label_histogram(pool, 3)


def test_stack():
    pool = make_pool(300, 3)
    parts = [pt.by_group(key, pool, 6, 0.7) for key in jax.random.split(KEY, 3)]
    widths = [part.index.shape[1] for part in parts]
    stacked = pt.stack(parts)
    assert stacked.index.shape == (3, 6, max(widths))
    assert stacked.examples["x"].shape == (300, 1)
    tables = jax.vmap(lambda data: pt.label_histogram(data, 3), in_axes=(POOL_AXES,))(stacked)
    for part, table in zip(parts, tables, strict=True):
        np.testing.assert_array_equal(table, histogram(part, 3))

    with pytest.raises(ValueError, match="at least one"):
        pt.stack([])
    with pytest.raises(ValueError, match="pools that differ"):
        pt.stack([parts[0], pt.iid(KEY, make_pool(300, 3, seed=1), 6)])
    with pytest.raises(ValueError, match=r"equal numbers of clients, got \[5, 6\]"):
        pt.stack([parts[0], pt.iid(KEY, pool, 5)])
    with pytest.raises(TypeError, match="a list of partitions, got FederatedData"):
        pt.stack(parts[0])
    with pytest.raises(TypeError, match="partition to be a FederatedData"):
        pt.stack([parts[0], pool])
    with pytest.raises(ValueError, match="stacked already"):
        pt.stack([stacked])
    with pytest.raises(ValueError, match=r"data\.count in"):
        pt.stack([parts[0], parts[1]._replace(count=parts[1].count + 999)])
