"""Every argument of every public function, with bad values one by one.

A line of the table gives a function's valid arguments and what kind each of them is; a kind knows the
values that must be refused. All names come from the package, so that a new function or argument without
a line fails. Refused means: a ValueError or TypeError raised by the package itself, whose text names the
argument or the function; not an AssertionError, KeyError or ZeroDivisionError, nor a text of JAX or Flax.
"""

from __future__ import annotations

import functools
import inspect
import re
import traceback
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from bad_values import TABLE
from bad_values.first_papers import (
    objective,
    training_loss,
)
from bad_values.kinds import (
    CLIENT,
    COUNT,
    IMAGES,
    INDEX,
    KEY,
    MATRIX,
    OWNED,
    PARAMS,
    POOL,
    TASK,
    WORDS,
    Line,
    X,
    examples,
    layer,
    same,
    seeing_params,
)

import fedjax_robust as fr
from fedjax_robust import aggregators, attacks, data, metrics, privacy, repairs, tasks
from fedjax_robust.types import AttackerView, ClientData

MODULES = {
    "": fr,
    "aggregators": aggregators,
    "attacks": attacks,
    "attacks.backdoors": attacks.backdoors,
    "attacks.directions": attacks.directions,
    "attacks.divisions": attacks.divisions,
    "attacks.objectives": attacks.objectives,
    "attacks.optimised": attacks.optimised,
    "attacks.poisons": attacks.poisons,
    "attacks.repair_aware": attacks.repair_aware,
    "attacks.searches": attacks.searches,
    "data": data,
    "metrics": metrics,
    "privacy": privacy,
    "repairs": repairs,
    "tasks": tasks,
}

WITHOUT_A_LINE = dict.fromkeys(
    [
        "Aggregator",
        "Attack",
        "AttackerView",
        "Client",
        "ClientData",
        "FederatedData",
        "Knowledge",
        "Received",
        "SimState",
        "State",
        "Simulation",
        "Task",
        "attacks.backdoors.SemanticBackdoor",
        "attacks.optimised.Found",
        "data.Dataset",
        "repairs.ConvolutionLayer",
    ],
    "a container of parts or arrays: what receives it checks them",
)
"""Public names without a line, and why."""

# --- The tests ---------------------------------------------------------------------------------------


def public(module) -> list[str]:
    """Names of what a module offers to call."""
    names = getattr(module, "__all__", None) or [
        name
        for name, value in vars(module).items()
        if not name.startswith("_") and getattr(value, "__module__", "") == module.__name__
    ]
    made = (getattr(module, name) for name in names)
    return [
        name
        for name, value in zip(names, made, strict=True)
        if inspect.isfunction(value) or inspect.isclass(value)
    ]


NAMES = {
    f"{prefix}.{name}".lstrip("."): getattr(module, name)
    for prefix, module in MODULES.items()
    for name in public(module)
    if not (prefix == "attacks.optimised" and hasattr(attacks, name))  # once is enough
}


def lines(name: str) -> list[Line]:
    found = TABLE[name]
    return found if isinstance(found, list) else [found]


def arguments(line: Line) -> dict[str, Any]:
    return dict(line.valid() if callable(line.valid) else line.valid)


def call(name: str, line: Line, given: dict[str, Any]) -> Any:
    if line.several is None:
        return NAMES[name](**given)
    given = dict(given)
    rest = given.pop(line.several)
    return NAMES[name](*given.values(), *rest)


def test_every_public_function_has_a_line():
    names = set(NAMES)
    assert set(TABLE) | set(WITHOUT_A_LINE) == names, (
        names - set(TABLE) - set(WITHOUT_A_LINE),
        (set(TABLE) | set(WITHOUT_A_LINE)) - names,
    )
    assert not set(TABLE) & set(WITHOUT_A_LINE)


@pytest.mark.parametrize("name", sorted(TABLE))
def test_every_argument_has_a_kind(name):
    wanted = set(inspect.signature(NAMES[name]).parameters)
    assert wanted == set().union(*(line.kinds for line in lines(name)))


def refusal(error: BaseException, name: str, argument: str) -> str | None:
    """What is wrong with how a bad value was refused."""
    short = f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"[:140]
    if type(error) not in (ValueError, TypeError):
        return f"raised {short}"
    frames = traceback.extract_tb(error.__traceback__)
    if "fedjax_robust" not in frames[-1].filename:
        return f"raised, outside of the package, {short}"
    if argument in ("data", "examples", "validation", "root", "train", "test", "triggered"):
        argument += "|y|x|examples|index|count"  # what it holds
    if not re.search(rf"\b({argument}|{name.rpartition('.')[2]})\b", str(error)):
        return f"raised without naming it {short}"
    return None


def attempt(what: Callable[[], Any], name: str, argument: str) -> str | None:
    try:
        what()
    except Exception as error:
        return refusal(error, name, argument)
    return "accepted"


CASES = sorted({(name, a) for name in TABLE for line in lines(name) for a in line.kinds})


@pytest.mark.parametrize(("name", "argument"), CASES, ids=map("-".join, CASES))
def test_bad_values_are_refused(name, argument):
    wrong = []
    for line in lines(name):
        if argument not in line.kinds:
            continue
        valid = arguments(line)
        for label, value in line.kinds[argument].bad(valid.get(argument)):
            given = valid | {argument: value}
            fault = attempt(functools.partial(call, name, line, given), name, argument)
            if fault is not None:
                wrong.append(f"{label}: {fault}")
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize("name", sorted(TABLE))
def test_good_values_pass(name):
    """The valid arguments, and the same numbers as NumPy and JAX have them."""
    for line in lines(name):
        valid = arguments(line)
        if line.run_valid:
            call(name, line, valid)
        if not (line.run_valid and line.run_good):
            continue
        for argument, kind in line.kinds.items():
            for _, value in kind.good(valid.get(argument)):
                call(name, line, valid | {argument: value})


# --- Rules on bad matrices ---------------------------------------------------------------------------

RULES = {
    name: functools.partial(call, name, line, arguments(line))
    for name in TABLE
    if name.startswith("aggregators.")
    for line in lines(name)
    if "Aggregator" in str(inspect.signature(NAMES[name]).return_annotation)
    and "Callable" not in str(inspect.signature(NAMES[name]).return_annotation)
}
ONES = np.ones(9, np.float32)
BAD_CALLS: dict[str, tuple[tuple, dict]] = {
    "one row": ((MATRIX[0],), {}),
    "three axes": ((MATRIX[None],), {}),
    "no rows": ((MATRIX[:0],), {}),
    "None": ((None,), {}),
    "text": (("updates",), {}),
    "texts": ((np.full((9, 15), "a"),), {}),
    "complex": ((MATRIX.astype(complex),), {}),
    "ragged": (([[1.0, 2.0], [3.0]],), {}),
    "too few weights": ((MATRIX, ONES[1:]), {}),
    "weights with two axes": ((MATRIX, ONES[:, None]), {}),
    "one weight": ((MATRIX, 1.0), {}),
    "weights of text": ((MATRIX, np.full(9, "a")), {}),
    "too few params": ((MATRIX,), {"params": PARAMS[1:]}),
    "params with two axes": ((MATRIX,), {"params": PARAMS[None]}),
    "an integer as key": ((MATRIX,), {"key": 0}),
}


@pytest.mark.parametrize("name", sorted(RULES))
def test_rules_refuse_bad_matrices(name):
    rule, wrong = RULES[name](), []
    for label, (positional, named) in BAD_CALLS.items():
        what = functools.partial(rule, *positional, **named)
        if fault := attempt(what, name, "updates|weights|params|key"):
            wrong.append(f"{label}: {fault}")
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize("name", sorted(RULES))
def test_rules_that_remove_rows_say_how_many_they_need(name):
    """Two rows, of which f = 1 are malicious, are too few for some; the others give a finite result."""
    rule = RULES[name]()
    results: list[Any] = []
    once = jax.jit(lambda rows: rule(rows))  # one program instead of one for each operation
    fault = attempt(lambda: results.append(once(MATRIX[:2])), name, "updates|n")
    assert fault is None or (results and np.all(np.isfinite(results[0]))), fault


# --- Attacks on bad views ----------------------------------------------------------------------------

ATTACKS = {
    name: functools.partial(call, name, line, arguments(line))
    for name in TABLE
    if name.startswith("attacks.")
    for line in lines(name)
    if str(inspect.signature(NAMES[name]).return_annotation) == "Attack"
}


@pytest.mark.parametrize("name", sorted(ATTACKS))
def test_attacks_that_need_the_rule_say_so(name):
    """A view in which it is not known."""
    attack = ATTACKS[name]()
    if not attack.needs.rule:
        pytest.skip("it does not need the rule")
    malicious = jnp.arange(9) < 2
    view = AttackerView(
        updates=jnp.asarray(MATRIX),
        visible=jnp.ones(9, bool),
        reference=jnp.ones(9, bool),
        malicious=malicious,
        num_malicious=2,
        params=PARAMS,
        key=KEY,
        aggregate=None,
        ids=jnp.arange(9),
    )
    fault = attempt(lambda: attack.craft(view, attack.init(PARAMS)), name, "rule")
    assert fault is None


# --- Poisons and triggers on bad batches -------------------------------------------------------------

POISONS = {
    "label_flip": attacks.poisons.label_flip(3),
    "other_label": attacks.poisons.other_label(3),
    "replace_by": attacks.poisons.replace_by(POOL, 2),
    "replace_by_triggered": attacks.poisons.replace_by_triggered(same, 1, 2),
    "distributed": attacks.poisons.distributed([same, same], 1, 2),
    "add_triggered_victims": attacks.poisons.add_triggered_victims(same, 1, 2),
}


@pytest.mark.parametrize("name", POISONS)
def test_poisons_refuse_bad_batches(name):
    poison, wrong = POISONS[name], []
    poison(KEY, POOL | {"client": jnp.int32(0)})
    classes = 3 if name in ("label_flip", "other_label") else None
    for label, batch in examples(classes, names=("y",)).bad(POOL):
        if label in ("a column of text", "empty"):
            continue  # no batch of a run has or is one
        if isinstance(batch, dict):
            batch = batch | {"client": jnp.int32(0)}
        if fault := attempt(functools.partial(poison, KEY, batch), f"attacks.{name}", "y|x"):
            wrong.append(f"{label}: {fault}")
    assert not wrong, "\n".join(wrong)


def narrower(x):
    return x[:, :-1]


def as_integers(x):
    return x.astype(jnp.int32)


def nothing(x):
    return None


@pytest.mark.parametrize("trigger", [narrower, as_integers, nothing, lambda x: x[0]])
@pytest.mark.parametrize(
    "use",
    [
        lambda t: attacks.poisons.replace_by_triggered(t, 1, 2)(KEY, POOL),
        lambda t: attacks.poisons.distributed([same, t], 1, 2)(KEY, POOL | {"client": 0}),
        lambda t: attacks.poisons.add_triggered_victims(t, 1, 2)(KEY, POOL),
        lambda t: attacks.backdoors.triggered(POOL, t),
        lambda t: attacks.backdoors.add_backdoored_copies(OWNED, 1, t, 1),
    ],
)
def test_what_triggers_return_is_checked(trigger, use):
    with pytest.raises((ValueError, TypeError), match="the trigger of"):
        use(trigger)


@pytest.mark.parametrize(
    ("trigger", "x"),
    [
        (attacks.backdoors.pixel_trigger([(4, 4)]), IMAGES[:, :4]),
        (attacks.backdoors.pixel_trigger([(4, 4)]), IMAGES[:, :, :4]),
        (attacks.backdoors.pixel_trigger([(4, 4)]), IMAGES[0]),
        (attacks.backdoors.pixel_trigger([(4, 4)], 0.5), (IMAGES * 255).astype(np.uint8)),
        (attacks.backdoors.pixel_trigger([(4, 4)], 300), (IMAGES * 255).astype(np.uint8)),
        (attacks.backdoors.feature_trigger(5), X),
        (attacks.backdoors.feature_trigger(2), IMAGES),
        (attacks.backdoors.feature_trigger(2, 0.5), X.astype(np.int32)),
        (attacks.backdoors.mask_trigger(np.ones(3, bool)), X),
        (attacks.backdoors.mask_trigger(np.ones(4, bool), np.ones(3)), X),
        (attacks.backdoors.mask_trigger(np.ones(4, bool), np.ones((12, 4))), X),
        (attacks.backdoors.mask_trigger(np.ones(4, bool), 0.5), X.astype(np.int32)),
    ],
)
def test_triggers_that_do_not_fit(trigger, x):
    with pytest.raises(ValueError, match="_trigger"):
        trigger(x)
    with pytest.raises(ValueError, match="_trigger"):
        jax.eval_shape(trigger, x)


@pytest.mark.parametrize(
    ("batch", "text"),
    [
        (POOL | {"x": IMAGES}, "batch's shape"),
        (POOL | {"x": X[:, :1]}, "batch's shape"),
        (POOL | {"x": X.astype(np.int32)}, "fractions would be cut off"),
        (WORDS, "word_backdoor"),
    ],
)
def test_backdoor_examples_that_do_not_fit_the_batch(batch, text):
    """A feature of width 1 would be broadcast, fractions cut off."""
    with pytest.raises((ValueError, TypeError), match=text):
        attacks.poisons.replace_by(POOL, 2)(KEY, batch)


@pytest.mark.parametrize(
    ("make", "text"),
    [
        (
            lambda: attacks.objectives.constrain(0.5, lambda x, g: x - g)(TASK.loss, PARAMS)(
                PARAMS, POOL
            ),
            "anomaly",
        ),
        (
            lambda: attacks.objectives.converged(TASK._replace(loss=lambda p, b: p), POOL, 0.1)(
                PARAMS
            ),
            "loss",
        ),
        (lambda: repairs.clients_accuracy(TASK, OWNED, jnp.sum)(PARAMS), "report"),
        (lambda: repairs.prune(layer(), seeing_params(), [0, 1, 2], same), "validation"),
        (lambda: repairs.adjust_extreme_weights(layer(), seeing_params(), same), "validation"),
        (
            lambda: attacks.optimised.unrolled_gradient(
                training_loss, same, np.ones(4, np.float32), X[:2], 0.1, 1
            ),
            "objective",
        ),
        (
            lambda: attacks.optimised.reversed_gradient(
                lambda w, x: x @ w, objective, np.ones(4, np.float32), X[:2], 0.1, 1
            ),
            "training_loss",
        ),
    ],
)
def test_what_functions_return_is_checked(make, text):
    with pytest.raises((ValueError, TypeError), match=f"{text}.* must return"):
        make()


def test_divisions_and_clients_that_return_other_shapes():
    def send(client, divide):
        own = ClientData(OWNED.examples, INDEX[0], COUNT[0])
        attack = attacks.model_replacement(client, own, divide)
        rounds = fr.Simulation(TASK, CLIENT, aggregators.mean(), attack, num_malicious=2)
        fr.step(rounds, fr.init(rounds, KEY, OWNED), OWNED)

    with pytest.raises(ValueError, match="divide of model_replacement must return shape"):
        send(CLIENT, lambda key, difference, attackers: difference)
    with pytest.raises(ValueError, match="client of model_replacement must return shape"):
        send(CLIENT._replace(update=lambda *_: (jnp.ones(3), (), {})), attacks.divisions.copies())
