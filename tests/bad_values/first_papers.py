"""The lines of everything in the first version."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np

from bad_values.kinds import (
    CLIENT,
    COUNT,
    IMAGES,
    INDEX,
    INF,
    KEY,
    MATRIX,
    NAN,
    OWNED,
    PARAMS,
    PICTURES,
    POOL,
    READING,
    SEEN,
    SIM,
    TASK,
    WORDS,
    Line,
    Small,
    X,
    Y,
    array,
    boolean,
    count,
    examples,
    fraction,
    function,
    key,
    layer,
    module,
    not_negative,
    number,
    of_numbers,
    other,
    owned,
    part,
    partition,
    path,
    positive,
    rate_or_schedule,
    same,
    seeing_params,
    state,
    text,
)
from fedjax_robust import aggregators, attacks, data, metrics, models
from fedjax_robust.types import ClientData


def triggered_images(trigger):
    return {"x": IMAGES, "y": Y, "trigger": trigger}


def anomaly(params, received):
    return jnp.sum(jnp.square(params - received))


def training_loss(w, x):
    return jnp.sum(jnp.square(x @ w))


def objective(w):
    return jnp.sum(w)


# fmt: off
BY_ROWS = {
    "examples": examples(names=("y",)),
    "num_clients": count(1),
    "key": key(),
    "capacity": count(1, optional=True),
}
SPLIT = {"key": KEY, "examples": POOL, "num_clients": 2}
CLASSES = {"num_classes": count(3, optional=True)}
REJECTING = {
    "base": part(), "task": part(), "validation": examples(3), "f": count(), "rest": part(optional=True),
    "chunk": count(1, optional=True), "ties": function(),
}
TRUSTING = Line({"client": CLIENT, "root": POOL}, {"client": part(), "root": examples()})
MEASURED = {"task": part(), "test": examples(3), "chunk": count(1)}
BASED = {"base": part(optional=True)}
BOOLS = np.array([True, False, True])
SENTENCES = [[1, 2, 3], [2, 4]]
TEXT = "the cat sat on the mat . the dog ran to the cat . a cat is a cat ."

TABLE: dict[str, Line | list[Line]] = {
    # fedjax_robust
    "attackers_selected": Line(
        {"num_clients": 6, "clients_per_round": 3, "rounds": np.array([[True, False]])},
        {"num_clients": count(1), "clients_per_round": count(1, 6), "rounds": array("b", rank=False)},
    ),
    "each_with_probability": Line(
        {"num_clients": 6, "probability": 0.5, "at_most": 3},
        {"num_clients": count(1), "probability": fraction(0.0), "at_most": count(1, 6, optional=True)},
    ),
    "varying_number": Line(
        {"num_clients": 6, "at_most": 3, "numbers": np.array([0, 2, 3])},
        {"num_clients": count(1), "at_most": count(1, 6), "numbers": array("i", rank=False)},
    ),
    "classification": Line(
        {"module": models.SoftmaxRegression(3), "sample": X[:1], "precision": "highest"},
        {"module": module(), "sample": array(rank=False), "precision": text("exact", optional=True)},
    ),
    "next_word": Line(
        {"module": models.WordLSTM(5, 2), "sample": WORDS["x"][:1], "precision": "highest"},
        {"module": module(), "sample": array("i"), "precision": text("exact", optional=True)},
    ),
    "equal_weights": Line({"count": COUNT}, {"count": array(rank=False)}),
    "example_weights": Line({"count": COUNT}, {"count": array(rank=False)}),
    "local_sgd": [
        Line(
            {"task": TASK, "learning_rate": 0.1, "batch_size": 2, "steps": 2, "momentum": 0.5,
             "keep_momentum": False, "clip_norm": 1.0, "poison": None, "objective": None},
            {"task": part(), "learning_rate": rate_or_schedule(), "batch_size": count(1, optional=True),
             "steps": count(1), "momentum": fraction(1.0), "keep_momentum": boolean(),
             "clip_norm": positive(optional=True), "poison": function(optional=True),
             "objective": function(optional=True)},
        ),
        Line(
            {"task": TASK, "learning_rate": 0.1, "batch_size": 2, "epochs": 2},
            {"epochs": count(1, optional=True), "stop": function(optional=True),
             "round_schedule": function(optional=True)},
        ),
    ],
    "run": Line(
        {"sim": SIM, "key": KEY, "data": OWNED, "rounds": 2, "evaluate": None, "evaluate_every": None,
         "params": None, "progress": False, "checkpoint": None, "checkpoint_every": None, "mesh": None},
        {"sim": part(), "key": key(), "data": partition(3), "rounds": count(1),
         "evaluate": function(optional=True), "evaluate_every": count(1, optional=True),
         "params": array(optional=True), "progress": boolean(), "checkpoint": path(optional=True),
         "checkpoint_every": count(1, optional=True), "mesh": part(optional=True)},
        run_good=False,
    ),
    "init": Line(
        {"sim": SIM, "key": KEY, "data": OWNED, "params": None},
        {"sim": part(), "key": key(), "data": partition(None, (), labelled=False),
         "params": array(optional=True)},
        run_good=False,
    ),
    "step": Line(
        lambda: {"sim": SIM, "state": state(), "data": OWNED, "mesh": None},
        {"sim": part(), "state": part(), "data": partition(3), "mesh": part(optional=True)},
    ),
    # aggregators
    "aggregators.accuracy_auditing": Line(
        {"accuracy": jnp.sum, "drop": 0.1},
        {"accuracy": function(), "drop": not_negative(), **BASED},
    ),
    "aggregators.auror": Line({"threshold": 0.1}, {"threshold": positive(), **BASED}),
    "aggregators.bulyan": Line({"f": 1}, {"f": count()}),
    "aggregators.cosine_to_model": Line({"deviations": 3.0}, {"deviations": positive(), **BASED}),
    **{
        f"aggregators.{name}": Line(
            {"base": aggregators.mean(), "task": TASK, "validation": POOL, "f": 1, "chunk": 2},
            REJECTING,
        )
        for name in ("err", "lfr", "union")
    },
    "aggregators.fedavg_eta": Line(
        {"eta": 1.0, "num_clients": 9}, {"eta": positive(), "num_clients": count(1)}
    ),
    **{
        f"aggregators.{name}": TRUSTING
        for name in [
            "fltrust", "fltrust_no_norm", "fltrust_no_relu", "fltrust_par_norm", "fltrust_server",
            "fltrust_with_server", "server_update",
        ]
    },
    "aggregators.krum": Line({"f": 1}, {"f": count()}),
    "aggregators.mean": Line({}, {}),
    "aggregators.median": Line({}, {}),
    "aggregators.multi_krum": Line(
        {"f": 1, "m": 2},
        {"f": count(), "m": count(1, optional=True)},
    ),
    "aggregators.norm_clipping": Line({"bound": 1.0}, {"bound": positive(), **BASED}),
    "privacy.participant_dp": Line(
        {"bound": 1.0, "noise": 0.1, "clients_per_round": 9},
        {"bound": positive(), "noise": not_negative(), "clients_per_round": positive(optional=True)},
    ),
    "aggregators.sybil_check": Line(
        {"largest": 0.5}, {"largest": of_numbers((NAN, INF, -1.5), False, False), **BASED}
    ),
    "aggregators.trimmed_mean": Line({"f": 1}, {"f": count()}),
    "aggregators.trusted_mean": Line(
        {"updates": MATRIX, "present": np.ones(9, bool), "g_0": MATRIX[0]},
        {"updates": array(fixed=(0, 1)), "present": array("b", fixed=(0,)), "g_0": array(fixed=(0,))},
    ),
    # attacks
    "attacks.backdoors.add_backdoored_copies": Line(
        {"data": OWNED, "num_malicious": 1, "trigger": same, "target": 1},
        {"data": partition(), "num_malicious": count(0, 4), "trigger": function(),
         "target": count(0, 2)},
    ),
    "attacks.poisons.add_triggered_victims": Line(
        {"trigger": same, "victim": 1, "target": 2},
        {"trigger": function(), "victim": count(), "target": count()},
    ),
    "attacks.optimised.back_gradient_points": Line(
        {"key": KEY, "task": TASK, "train": POOL, "validation": POOL, "points": 2, "iterations": 1,
         "step": 0.5, "learning_rate": 0.1, "training_steps": 1, "flip": None, "start": PARAMS,
         "bounds": (0.0, 1.0), "smallest_rise": 0.1, "progress": False,
         "gradient": attacks.optimised.unrolled_gradient},
        {"key": key(), "task": part(), "train": examples(3), "validation": examples(3),
         "points": count(1, 12), "iterations": count(1), "step": positive(),
         "learning_rate": positive(), "training_steps": count(1), "flip": function(optional=True),
         "start": array("F", fixed=(0,), optional=True),
         "bounds": other(("one number", 1.0), ("three", (0, 1, 2)), ("in reverse", (1.0, 0.0)),
                         ("equal", (1, 1)), ("NaN", (0.0, NAN)), ("Inf", (0.0, INF)),
                         ("texts", ("0", "1")), ("None", None), ("0-d NaN", (jnp.array(NAN), 1))),
         "smallest_rise": number(optional=True), "progress": boolean(), "gradient": function()},
        run_good=False,
    ),
    "attacks.objectives.constrain": Line(
        {"alpha": 0.5, "anomaly": anomaly}, {"alpha": fraction(), "anomaly": function()}
    ),
    "attacks.objectives.converged": Line(
        {"task": TASK, "backdoor": POOL, "epsilon": 0.1},
        {"task": part(), "backdoor": examples(), "epsilon": positive()},
    ),
    "attacks.objectives.cosine_distance": Line(
        {"params": MATRIX[0], "received": MATRIX[1]},
        {"params": array(fixed=(0,)), "received": array(fixed=(0,))},
    ),
    "attacks.data_poisoning": Line({"client": CLIENT}, {"client": part()}),
    "attacks.poisons.distributed": Line(
        {"triggers": [same, same], "target": 1, "c": 2, "skip": 0},
        {"triggers": other(("none", []), ("one", same), ("numbers", [1]), ("text", "x"), ("None", None)),
         "target": count(), "c": count(1), "skip": count()},
    ),
    **{
        f"attacks.divisions.{name}": Line({argument: 2.0}, {argument: positive()})
        for name, argument in (
            ("copies", "gamma"), ("equal_parts", "gamma"), ("orthogonal_parts", "gamma"),
            ("norm_bounded", "bound"),
        )
    },
    "attacks.fang_krum_full": Line(
        {"f": 1, "epsilon": 0.01, "threshold": 1e-5, "direction": np.sign, "before": None},
        {"f": count(optional=True), "epsilon": not_negative(), "threshold": not_negative(),
         "direction": function(), "before": part(optional=True)},
    ),
    "attacks.fang_krum_partial": Line(
        {"epsilon": 0.01, "threshold": 1e-5, "simulated_f": same, "direction": np.sign},
        {"epsilon": not_negative(), "threshold": not_negative(), "simulated_f": function(),
         "direction": function()},
    ),
    "attacks.fang_trim_deviation": Line(
        {"b": 2.0, "on_updates": False},
        {"b": of_numbers((NAN, INF, -INF, 1.0, 0.5, -1.0), False, False), "on_updates": boolean()},
    ),
    "attacks.fang_trim_full": Line(
        {"b": 2.0, "before": None, "on_updates": False},
        {"b": of_numbers((NAN, INF, -INF, 1.0, 0.5, -1.0), False, False),
         "before": part(optional=True), "on_updates": boolean()},
    ),
    "attacks.fang_trim_partial": Line(
        {"low": 3.0, "high": 4.0}, {"low": number(), "high": number()}
    ),
    "attacks.backdoors.feature_trigger": Line(
        {"every": 2, "value": 0.5}, {"every": count(1), "value": number()}
    ),
    "attacks.first_order": Line(
        {"steps": 3, "step_size": 0.2, "start": None},
        {"steps": count(1), "step_size": positive(), "start": part(optional=True)},
    ),
    "attacks.fltrust_adaptive": Line(
        {"client": CLIENT, "root": POOL, "sweeps": 2, "queries": 2, "variance": 0.5, "gamma": 0.005,
         "eta": 0.01, "start": None},
        {"client": part(), "root": examples(), "sweeps": count(1), "queries": count(1),
         "variance": positive(), "gamma": positive(), "eta": positive(), "start": part(optional=True)},
    ),
    "attacks.gaussian": Line({}, {}),
    "attacks.in_rounds": Line(
        {"attack": attacks.data_poisoning(CLIENT), "poisoned": BOOLS, "client": CLIENT},
        {"attack": part(), "poisoned": array("b", rank=False), "client": part(optional=True)},
    ),
    "attacks.poisons.in_turn": Line(
        {"poisons": [attacks.poisons.label_flip(3)]},
        {"poisons": other(("a number", [3]), ("text", ["x"]), ("None", [None]))},
        several="poisons",
    ),
    "attacks.poisons.label_flip": Line({"num_classes": 3}, {"num_classes": count(2)}),
    "attacks.backdoors.mask_trigger": Line(
        {"mask": np.eye(5, dtype=bool)[..., None], "pattern": 0.5},
        {"mask": other(("None", None), ("text", "x"), ("floats", np.ones(3)), ("integers", [1, 0]),
                       ("empty", np.zeros(3, bool)), ("ragged", [[True], [True, False]])),
         "pattern": array(rank=False, finite=True)},
    ),
    "attacks.model_replacement": Line(
        {"client": CLIENT, "data": ClientData(OWNED.examples, INDEX[0], COUNT[0]),
         "divide": attacks.divisions.copies()},
        {"client": part(), "divide": function(),
         "data": other(("None", None), ("a dict", POOL), ("a partition", OWNED),
                       ("rows beyond", ClientData(OWNED.examples, INDEX[0] + 99, COUNT[0])),
                       ("count beyond", ClientData(OWNED.examples, INDEX[0], COUNT[0] + 9)),
                       ("all rows", ClientData(OWNED.examples, INDEX, COUNT)))},
    ),
    "attacks.no_attack": Line({}, {}),
    "attacks.poisons.other_label": Line({"num_classes": 3}, {"num_classes": count(2)}),
    "attacks.objectives.p_distance": Line(
        {"p": 2.0}, {"p": of_numbers((NAN, -INF, 0.5, 0.0, -1.0), False, False)}
    ),
    "attacks.backdoors.pixel_trigger": Line(
        {"pixels": [(0, 1), (2, 2)], "value": 0.5},
        {"pixels": other(("none", []), ("negative", [(0, -1)]), ("fractions", [(0.5, 1)]),
                         ("triples", [(1, 2, 3)]), ("one pixel", (1, 2)), ("text", "x"),
                         ("None", None), ("ragged", [(1, 2), (3,)]), ("NaN", [(NAN, 1)]),
                         ("bool", [(True, False)]), ("a number", 3)),
         "value": number()},
    ),
    "attacks.poisons.replace_by": Line(
        {"backdoor": POOL, "c": 2, "noise": 0.1, "skip": 1},
        {"backdoor": examples(), "c": count(1), "noise": not_negative(), "skip": count()},
    ),
    "attacks.poisons.replace_by_triggered": Line(
        {"trigger": same, "target": 1, "c": 2, "skip": 0},
        {"trigger": function(), "target": count(), "c": count(1), "skip": count()},
    ),
    "attacks.optimised.reversed_gradient": Line(
        {"training_loss": training_loss, "objective": objective, "start": np.ones(4, np.float32),
         "x": X[:2], "learning_rate": 0.1, "steps": 1, "inversions": 1},
        {"training_loss": function(), "objective": function(), "start": array("F"),
         "x": array("F", rank=False), "learning_rate": positive(), "steps": count(1),
         "inversions": count(1)},
        run_good=False,
    ),
    "attacks.scaling": Line(
        {"scale": 2.0, "client": CLIENT}, {"scale": positive(), "client": part(optional=True)}
    ),
    "attacks.backdoors.semantic_backdoor": Line(
        {"examples": POOL, "rows": [1, 2], "held_out": 1, "target": 1},
        {"examples": examples(), "held_out": count(0, 1), "target": count(0, 2),
         "rows": other(("none", []), ("twice", [1, 1]), ("beyond", [1, 12]), ("negative", [-1]),
                       ("fractions", [0.5]), ("bool", [True, False]), ("text", "x"), ("None", None),
                       ("a number", 1), ("two axes", [[1, 2]]), ("NaN", [NAN]))},
    ),
    "attacks.train_and_scale": Line(
        {"bound": 2.0, "client": CLIENT}, {"bound": positive(), "client": part(optional=True)}
    ),
    "attacks.backdoors.triggered": Line(
        {"test": POOL, "trigger": same}, {"test": examples(), "trigger": function()}
    ),
    "attacks.optimised.unrolled_gradient": Line(
        {"training_loss": training_loss, "objective": objective, "start": np.ones(4, np.float32),
         "x": X[:2], "learning_rate": 0.1, "steps": 1},
        {"training_loss": function(), "objective": function(), "start": array("F"),
         "x": array("F", rank=False), "learning_rate": positive(), "steps": count(1)},
        run_good=False,
    ),
    "attacks.poisons.word_backdoor": Line(
        {"sentences": SENTENCES, "replaced": 2, "weight": 1.0, "num_words": 5},
        {"sentences": other(("none", []), ("one", [1, 2, 3]), ("text", "to be"),
                            ("words", [["to", "be"]]),
                            ("short", [[1]]), ("fractions", [[1.5, 2.5]]), ("bool", [[True, False]]),
                            ("negative", [[1, -1]]), ("beyond the words", [[1, 5]]), ("None", None),
                            ("a number", 3), ("NaN", [[NAN, 1.0]])),
         "replaced": count(1, optional=True), "weight": positive(), "num_words": count(1, optional=True)},
    ),
    # data
    "data.by_group": Line(
        SPLIT | {"num_clients": 6, "p": 0.5}, {**BY_ROWS, "p": fraction(), **CLASSES}
    ),
    "data.by_user": Line(
        {"users": np.arange(12) % 2, "examples": POOL, "key": KEY},
        {"users": other(("None", None), ("3", 3), ("too few", np.arange(5)),
                        ("two axes", np.ones((12, 1))),
                        ("a dict", {1: 2}), ("NaN", np.full(12, NAN))),
         "examples": examples(labelled=False, names=()), "key": key(optional=True),
         "capacity": count(1, optional=True)},
    ),
    "data.changed": Line(
        {"changes": [data.random_flip()]},
        {"changes": other(("a number", [3]), ("None", [None]), ("text", ["x"]))},
        several="changes",
    ),
    "data.cifar10_rows": Line(
        {"numbers": [1, 2], "data_dir": None},
        {"numbers": other(("negative", [-1]), ("beyond", [50_000]), ("fractions", [0.5]), ("NaN", [NAN]),
                          ("text", "x"), ("None", None), ("bool", [True])),
         "data_dir": path(optional=True)},
        run_valid=False,
    ),
    **{
        f"data.{name}": Line(
            SPLIT | {"alpha": 5.0}, {**BY_ROWS, "alpha": positive(), **CLASSES}
        )
        for name in ("dirichlet_over_clients", "dirichlet_truncated")
    },
    "data.dirichlet_over_classes": Line(
        SPLIT | {"alpha": 5.0, "prior": np.full(3, 1 / 3)},
        {**BY_ROWS, "alpha": positive(), **CLASSES,
         "prior": array(fixed=(0,), finite=True, optional=True)},
    ),
    "data.from_owner": Line(
        {"examples": POOL, "owner": np.arange(12) % 3, "num_clients": 3},
        {"examples": examples(labelled=False, names=()), "num_clients": count(1),
         "owner": array("i", fixed=(0,), high=3), "capacity": count(1, optional=True)},
    ),
    "data.iid": Line(
        SPLIT,
        {"examples": examples(labelled=False, names=()), "num_clients": count(1), "key": key(),
         "capacity": count(1, optional=True)},
    ),
    "data.k_labels": Line(
        SPLIT | {"num_clients": 3, "k": 1}, {**BY_ROWS, "k": count(1, 3), **CLASSES}
    ),
    "data.label_histogram": Line(
        {"data": OWNED, "num_classes": 3}, {"data": partition(3, names=("y",)), "num_classes": count(1)}
    ),
    **{
        f"data.{name}": Line(
            {"train": "nowhere", "test": "nowhere"},
            {"train": path(), "test": path()}
            | ({"length": count(1), "vocabulary_size": count(2)} if name == "leaf_words" else {}),
            run_valid=False,
        )
        for name in ("leaf_characters", "leaf_words")
    },
    "data.load": Line(
        {"name": "digits", "data_dir": None, "key": None},
        {"name": text("mnist2", ""), "data_dir": path(optional=True), "key": key(optional=True)},
    ),
    "data.load_text": Line(
        {"name": "shakespeare", "length": 8, "vocabulary_size": 50, "data_dir": None},
        {"name": text("bible"), "length": count(1), "vocabulary_size": count(2),
         "data_dir": path(optional=True)},
        run_valid=False,
    ),
    "data.prepare": Line(
        {"name": "mnist", "data_dir": None},
        {"name": text("mnist2"), "data_dir": path(optional=True)},
        run_valid=False,
    ),
    "data.random_crop": Line({"padding": 1}, {"padding": count()}),
    "data.random_flip": Line({}, {}),
    "data.random_rotation": Line({"degrees": 10.0}, {"degrees": not_negative()}),
    "data.root_set": Line(
        {"key": KEY, "examples": POOL, "size": 3, "p": 0.5, "biased_class": 1},
        {"key": key(), "examples": examples(names=("y",)), "size": count(1, 12),
         "p": fraction(optional=True),
         "biased_class": count(0, 2), **CLASSES},
    ),
    "data.rotate": Line(
        {"x": IMAGES[:2], "degrees": np.ones(2, np.float32)},
        {"x": array(fixed=(0,)), "degrees": array(fixed=(0,))},
    ),
    "data.shift": Line(
        {"x": IMAGES[:2], "offsets": np.ones((2, 2), np.int32)},
        {"x": array(fixed=(0,)), "offsets": array("i", fixed=(0, 1))},
    ),
    "data.stack": Line(
        {"parts": [OWNED, OWNED]},
        {"parts": other(("none", []), ("numbers", [3]), ("one", OWNED), ("None", None), ("dicts", [POOL]),
                        ("other pools", [OWNED, owned(PICTURES)]))},
    ),
    "data.synthetic": Line(
        {"key": KEY, "num_classes": 2, "num_features": 3, "num_train": 4, "num_test": 4,
         "separation": 1.0},
        {"key": key(), "num_classes": count(2), "num_features": count(1), "num_train": count(1),
         "num_test": count(1), "separation": not_negative()},
    ),
    "data.tokenize": Line({"text": TEXT}, {"text": text()}),
    "data.variations": Line(
        {"key": KEY, "x": IMAGES[:2], "number": 3, "changes": [data.random_flip()]},
        {"key": key(), "x": array(), "number": count(1),
         "changes": other(("a number", [3]), ("None", [None]))},
        several="changes",
    ),
    "data.word_ids": Line(
        {"text": "a cat", "words": ["<unknown>", "a", "cat"]},
        {"text": other(("None", None), ("3", 3), ("numbers", [1, 2]), ("bytes", b"a cat")),
         "words": other(("None", None), ("3", 3), ("numbers", [1, 2]), ("none", []), ("text", "a cat"))},
    ),
    # metrics
    "metrics.predict": Line(
        {"task": TASK, "params": PARAMS, "x": X, "chunk": 5},
        # How many parameters, and what the model takes as x, is the task's to say.
        {"task": part(), "params": array(), "x": array(rank=False), "chunk": count(1)},
        run_good=False,
    ),
    "metrics.test_error": Line({"task": TASK, "test": POOL, "chunk": 5}, MEASURED),
    "metrics.per_class_error": Line(
        {"task": TASK, "test": POOL, "num_classes": 3, "chunk": 5},
        MEASURED | {"num_classes": count(1)},
    ),
    "metrics.attack_success": Line(
        {"task": TASK, "triggered": POOL, "target": 1, "chunk": 5},
        {"task": part(), "triggered": examples(3), "target": count(0, 2), "chunk": count(1)},
    ),
    "metrics.backdoor_accuracy": Line(
        {"task": TASK, "x": X, "target": 1, "chunk": 5},
        {"task": part(), "x": array(fixed=(1,), rank=False), "target": count(0, 2), "chunk": count(1)},
    ),
    "metrics.word_accuracy": Line(
        {"task": READING, "test": WORDS, "name": "main_accuracy", "chunk": 5},
        {"task": part(), "test": examples(5), "name": text(), "chunk": count(1)},
    ),
    "metrics.together": Line(
        {"evaluations": [metrics.test_error(TASK, POOL)]},
        {"evaluations": other(("a number", [3]), ("None", [None]), ("text", ["x"]))},
        several="evaluations",
    ),
    "metrics.detection": Line(
        {"selected": BOOLS, "malicious": ~BOOLS},
        {"selected": array("b", rank=False, fixed=(0,)), "malicious": array("b", rank=False, fixed=(0,))},
    ),
    "metrics.direction_agreement": Line({"rule": aggregators.mean()}, {"rule": part()}),
    # repairs
    "repairs.convolution": Line(
        {"module": Small(), "sample": IMAGES[:1], "name": "Conv_0"},
        {"module": module(), "sample": array(rank=False), "name": text("Conv_1", "Dense_0", "")},
    ),
    "repairs.activations": Line(
        lambda: {"layer": layer(), "params": seeing_params(), "x": IMAGES, "relu": True},
        {"layer": part(), "params": array("F", fixed=(0,)), "x": array(fixed=(3,)), "relu": boolean()},
    ),
    "repairs.client_activations": Line(
        lambda: {"layer": layer(), "params": seeing_params(), "data": SEEN, "relu": True, "chunk": 2},
        {"layer": part(), "params": array("F", fixed=(0,)), "chunk": count(1), "relu": boolean(),
         "data": partition(names=("x",), labelled=False)},
        run_good=False,
    ),
    "repairs.ranks": Line(
        {"activations": MATRIX}, {"activations": array(finite=True)}
    ),
    "repairs.ranking_vote": Line(
        {"ranks": [[1, 2, 3], [3, 1, 2]]}, {"ranks": array(low=1, high=3, fixed=(1,), finite=True)}
    ),
    "repairs.votes": Line(
        {"activations": MATRIX, "rate": 0.5},
        {"activations": array(finite=True), "rate": fraction(0.0, 1.0)},
    ),
    "repairs.majority_vote": Line(
        {"votes": [[1, 0, 1], [0, 1, 1]]}, {"votes": array(low=0, high=1, finite=True)}
    ),
    "repairs.accuracy": Line(
        {"task": TASK, "examples": POOL, "chunk": 5},
        {"task": part(), "examples": examples(3), "chunk": count(1)},
    ),
    "repairs.clients_accuracy": Line(
        {"task": TASK, "data": OWNED, "report": same, "chunk": 5},
        {"task": part(), "data": partition(3), "report": function(), "chunk": count(1)},
    ),
    "repairs.with_neurons": Line(
        lambda: {"layer": layer(), "params": seeing_params(), "keep": BOOLS},
        {"layer": part(), "params": array("F", fixed=(0,)), "keep": array("b", fixed=(0,))},
    ),
    "repairs.masked": Line(
        lambda: {"layer": layer(), "keep": BOOLS},
        {"layer": part(), "keep": array("b", fixed=(0,))},
    ),
    "repairs.prune": Line(
        lambda: {"layer": layer(), "params": seeing_params(), "order": [2, 0, 1], "validation": jnp.sum,
                 "drop": 0.1, "floor": 0.0, "chunk": 1},
        {"layer": part(), "params": array("F", fixed=(0,)),
         "order": array("i", fixed=(0,), low=0, high=2),
         "validation": function(), "drop": positive(infinite=True), "floor": number(infinite=True),
         "chunk": count(1)},
        run_good=False,
    ),
    "repairs.without_extreme_weights": Line(
        lambda: {"layer": layer(), "params": seeing_params(), "delta": 2.0, "keep": BOOLS},
        {"layer": part(), "params": array("F", fixed=(0,)), "delta": positive(infinite=True),
         "keep": array("b", fixed=(0,), optional=True)},
    ),
    "repairs.adjust_extreme_weights": Line(
        lambda: {"layer": layer(), "params": seeing_params(), "validation": jnp.sum, "deltas": (2.0, 1.0),
                 "drop": 0.1, "floor": 0.0, "keep": BOOLS, "chunk": 1},
        {"layer": part(), "params": array("F", fixed=(0,)), "validation": function(),
         "deltas": other(("none", ()), ("rising", (1, 2)), ("equal", (2, 2)), ("negative", (1, -1)),
                         ("zero", (1, 0)), ("NaN", (3, NAN)), ("Inf", (INF, 1)), ("a number", 2.0),
                         ("text", "x"), ("None", None), ("two axes", [[2.0, 1.0]])),
         "drop": positive(infinite=True), "floor": number(infinite=True),
         "keep": array("b", fixed=(0,), optional=True), "chunk": count(1)},
        run_good=False,
    ),
    "attacks.repair_aware.l2_penalty": Line(
        lambda: {"layer": layer(), "strength": 0.1}, {"layer": part(), "strength": positive()}
    ),
    "attacks.repair_aware.pruning_aware": Line(
        lambda: {"layer": layer(), "keep": BOOLS},
        {"layer": part(), "keep": array("b", fixed=(0,))},
    ),
    "attacks.repair_aware.self_clipping": Line(
        lambda: {"layer": layer(), "delta": 2.0}, {"layer": part(), "delta": positive()}
    ),
    "attacks.repair_aware.reversed_ranks": Line(
        {"ranks": [[1, 2, 3], [3, 1, 2]], "malicious": [True, False]},
        {"ranks": array(low=1, high=3, fixed=(1,), finite=True), "malicious": array("b", fixed=(0,))},
    ),
}

FUNCTIONS = Line(
    {"init": lambda key: {"w": jnp.zeros((4, 3))}, "apply": lambda p, x: x @ p["w"], "sample": X[:1],
     "train": None, "precision": "highest"},
    {"init": function(), "apply": function(), "sample": array(rank=False),
     "train": function(optional=True), "precision": text("exact", optional=True)},
)
TABLE |= {
    "from_functions": FUNCTIONS,
    "tasks.from_functions": FUNCTIONS,
    "metrics.accuracy": Line({"task": TASK, "test": POOL, "chunk": 5}, MEASURED),
    "metrics.cross_entropy": Line({"task": TASK, "test": POOL, "chunk": 5}, MEASURED),
    "metrics.client_accuracy": Line(
        {"task": TASK, "data": OWNED, "chunk": 5},
        {"task": part(), "data": partition(3), "chunk": count(1)},
    ),
    "metrics.score": Line(
        {"evaluate": metrics.test_error(TASK, POOL), "name": None},
        {"evaluate": function(), "name": text(optional=True)},
    ),
    "data.leaf_sentiment": Line(
        {"train": "nowhere", "test": "nowhere"},
        {"train": path(), "test": path(), "length": count(1), "vocabulary_size": count(2)},
        run_valid=False,
    ),
    "data.leaf_numbers": Line(
        {"train": "nowhere", "test": "nowhere"},
        {"train": path(), "test": path(), "num_classes": count(1, optional=True),
         "shape": other(("text", "x"), ("a fraction", (1.5,)), ("negative", (-1, 2)), ("NaN", (NAN,)))},
        run_valid=False,
    ),
    "privacy.privacy_spent": Line(
        {"bound": 1.0, "noise": 1.0, "clients_per_round": 2, "num_clients": 9, "rounds": 3,
         "delta": 1e-5},
        {"bound": positive(), "noise": not_negative(), "clients_per_round": count(1, 9),
         "num_clients": count(2), "rounds": count(1), "delta": fraction(0.0, 1.0)},
        run_good=False,
    ),
    "privacy.privacy_spent_poisson": Line(
        {"bound": 1.0, "noise": 1.0, "expected_clients": 2.5, "num_clients": 9, "rounds": 3,
         "delta": 1e-5},
        {"bound": positive(), "noise": not_negative(), "expected_clients": positive(),
         "num_clients": count(3), "rounds": count(1), "delta": fraction(0.0, 1.0)},
        run_good=False,
    ),
    "data.text_dataset": Line(
        {"train": {"a": [TEXT.split()]}, "test": {"a": [TEXT.split()]}, "length": 4,
         "vocabulary_size": 9, "name": "cats", "note": ""},
        {"train": other(("None", None), ("3", 3)), "test": other(("None", None), ("3", 3)),
         "length": count(1), "vocabulary_size": count(2), "name": text(), "note": text()},
    ),
    "tasks.masked_mean": Line(
        {"values": X[0], "mask": np.ones(4)},
        {"values": array(rank=False), "mask": array(fixed=(0,), rank=False, optional=True)},
    ),
    "tasks.classification": Line(
        {"module": models.SoftmaxRegression(3), "sample": X[:1], "precision": "highest"},
        {"module": module(), "sample": array(rank=False), "precision": text("exact", optional=True)},
    ),
    "tasks.next_word": Line(
        {"module": models.WordLSTM(5, 2), "sample": WORDS["x"][:1], "precision": "highest"},
        {"module": module(), "sample": array("i"), "precision": text("exact", optional=True)},
    ),
}

# fmt: on
