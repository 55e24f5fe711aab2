"""Docstrings: examples are right, parameters are named, layout is one, links to papers are there."""

import doctest
import importlib
import inspect
import pkgutil
import re

import pytest

import fedjax_robust as fr

MODULES = [
    importlib.import_module(module.name)
    for module in pkgutil.walk_packages(fr.__path__, "fedjax_robust.")
]
RULES = [module for module in MODULES if module.__name__.startswith("fedjax_robust.aggregators.")]

# What a user imports: the packages' names, and modules that are used by their own name. The others serve
# the package, and say shapes in one line.
PUBLIC = [fr] + [
    importlib.import_module(f"fedjax_robust.{name}")
    for name in (
        "aggregators",
        "aggregators.base",
        "attacks",
        "attacks.backdoors",
        "attacks.directions",
        "attacks.divisions",
        "attacks.objectives",
        "attacks.optimised",
        "attacks.poisons",
        "attacks.repair_aware",
        "attacks.searches",
        "clients",
        "clients.local",
        "data",
        "engine",
        "engine.participation",
        "kernels",
        "metrics",
        "models",
        "privacy",
        "privacy.accounting",
        "privacy.participants",
        "repairs",
        "report",
        "study",
        "tasks",
    )
]

# Rules that need more than a matrix: a server's examples and a task or client to use them with.
WITHOUT_EXAMPLE = {
    "cao_lai",
    "crfl_radius",
    "crfl_votes",
    "deepsight",
    "err",
    "lfr",
    "union",
    "fltrust",
    "fltrust_no_norm",
    "fltrust_no_relu",
    "fltrust_par_norm",
    "fltrust_server",
    "fltrust_with_server",
    "server_update",
    "zeno",
}


def own_functions(module):
    """Functions without an underscore that are defined in the module."""
    for name, value in vars(module).items():
        function = inspect.unwrap(value) if callable(value) else None
        own = inspect.isfunction(function) and function.__module__ == module.__name__
        if own and not name.startswith("_"):
            yield name, value


def public_functions():
    found = {}
    for module in PUBLIC:
        names = getattr(module, "__all__", None)
        values = (
            own_functions(module) if names is None else ((n, getattr(module, n)) for n in names)
        )
        for name, value in values:
            if inspect.isfunction(value):
                found[f"{value.__module__}.{name}"] = value
    return found


FUNCTIONS = public_functions()


@pytest.mark.parametrize("module", RULES, ids=lambda module: module.__name__.split(".")[-1])
def test_examples_of_rules(module):
    assert doctest.testmod(module).failed == 0


def test_every_rule_of_a_matrix_has_an_example():
    rules = {name for name in fr.aggregators.__all__ if callable(getattr(fr.aggregators, name))}
    assert rules >= WITHOUT_EXAMPLE
    without = {name for name in rules if ">>> " not in getattr(fr.aggregators, name).__doc__}
    assert without == WITHOUT_EXAMPLE


def missing(function):
    named = function.__doc__ or ""
    return [p for p in inspect.signature(function).parameters if not re.search(rf"\b{p}\b", named)]


@pytest.mark.parametrize("name", sorted(FUNCTIONS))
def test_public_docstrings_name_all_parameters(name):
    function = FUNCTIONS[name]
    assert function.__doc__, "no docstring"
    assert missing(function) == []


def test_missing_parameters_are_found():
    def half(first, second):
        """Half of the first."""

    assert missing(half) == ["second"]


def docstrings():
    for module in MODULES:
        yield module.__name__, module.__doc__ or ""
        for name, value in vars(module).items():
            if getattr(value, "__module__", None) == module.__name__ and (
                inspect.isclass(value) or inspect.isfunction(inspect.unwrap(value))
            ):
                yield f"{module.__name__}.{name}", inspect.getdoc(value) or ""


def section_lines(text):
    """The lines of the sections Args, Returns, Raises and Attributes that name something."""
    for section in re.findall(
        r"^(?:Args|Attributes|Raises|Returns|Yields):\n((?:[ ]+.*\n?)+)", text, re.M
    ):
        yield section.splitlines()[0]


def test_sections_are_indented_by_two_spaces():
    wrong = [
        (name, line)
        for name, text in docstrings()
        for line in section_lines(text)
        if not re.match(r"  \S", line)
    ]
    assert wrong == []


def test_nothing_is_said_by_reference_alone():
    phrase = re.compile(
        r"^ *[\w*, ]+: as (there|in ``)|\b[Aa]rguments(, report)? (and errors )?(are )?as (in|there)",
        re.M,
    )
    assert phrase.search("  skip: as there.") and phrase.search(
        "Arguments and errors as in ``err``."
    )
    wrong = [name for name, text in docstrings() if phrase.search(text)]
    assert wrong == []


def exists(name):
    """Whether a dotted name is one of the package's."""
    at, module = fr, "fedjax_robust"
    for part in name.split("."):
        module = f"{module}.{part}"
        if not hasattr(at, part):
            try:
                at = importlib.import_module(module)
            except ModuleNotFoundError:
                return False
        else:
            at = getattr(at, part)
    return True


def test_names_in_docstrings_exist():
    """Dotted names of the package in double backquotes; ``data.index`` is a field of an argument."""
    packages = {module.__name__.split(".")[1] for module in MODULES} - {"data"}
    name = re.compile(rf"``(?:fedjax_robust\.)?((?:{'|'.join(sorted(packages))})(?:\.[a-z_]\w*)+)")
    named = [(place, found) for place, text in docstrings() for found in name.findall(text)]
    assert len(named) > 20 and not exists("attacks.label_flip")
    assert [pair for pair in named if not exists(pair[1])] == []


PAPERS = re.compile(
    r"https://(arxiv\.org/abs/\d{4}\.\d{5}|doi\.org/10\.\S+|openreview\.net/forum\?id=\w+|www\.usenix\.org/\S+)"
)
OWN = {
    "no_attack": "no method",
    "data_poisoning": "no method: any client",
    "other_label": "no method: random labels",
    "constant": "no method",
    "maximise": "plain ascent",
    "best_of": "plain ascent",
    "in_turn": "puts poisons together",
    "mask_trigger": "any pattern",
}


@pytest.mark.parametrize(
    "package",
    [
        fr.aggregators,
        fr.attacks,
        fr.attacks.directions,
        fr.attacks.divisions,
        fr.attacks.objectives,
        fr.attacks.optimised,
        fr.attacks.poisons,
        fr.attacks.backdoors,
        fr.attacks.repair_aware,
        fr.attacks.searches,
        fr.privacy,
        fr.repairs,
    ],
    ids=lambda package: package.__name__.removeprefix("fedjax_robust."),
)
def test_papers_are_linked(package):
    """In the docstring or in the head of the module."""
    names = getattr(package, "__all__", None) or [name for name, _ in own_functions(package)]
    without = []
    for name in names:
        value = getattr(package, name)
        if not inspect.isfunction(value) or name in OWN:
            continue
        head = importlib.import_module(value.__module__).__doc__
        if not PAPERS.search(value.__doc__ + head):
            without.append(name)
    assert without == []
