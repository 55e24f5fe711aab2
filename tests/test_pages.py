"""What the pages show works, and the catalogue has every name."""

import inspect
import re
from pathlib import Path

import pytest

from fedjax_robust import aggregators, attacks, privacy

ROOT = Path(__file__).parents[1]
CATALOGUE = (ROOT / "fedjax_robust" / "CATALOGUE.md").read_text("utf-8")
NO_RULES = {"server_update", "trusted_mean"}  # parts of FLTrust, for those who build on it


@pytest.mark.parametrize("page", ["README.md", "fedjax_robust/README.md"])
def test_code_of_a_page_runs(page):
    """Block by block, as somebody who copies them one after the other."""
    text = (ROOT / page).read_text("utf-8")
    blocks = re.findall(r"^```python\n(.*?)^```", text, re.DOTALL | re.MULTILINE)
    assert len(blocks) >= 2
    names: dict = {}
    for block in blocks:
        if "make_mesh" not in block:  # another test has a mesh
            exec(compile(block, page, "exec"), names)
    if page == "README.md":
        assert len(names["history"]["test_error"]) == 10
        names["fr"].run(names["sim"], names["jax"].random.key(1), names["data"], 2)


def test_the_readme_is_short():
    assert len((ROOT / "README.md").read_text("utf-8").splitlines()) <= 180


@pytest.mark.parametrize(
    "module",
    [
        aggregators,
        attacks,
        attacks.backdoors,
        attacks.directions,
        attacks.divisions,
        attacks.objectives,
        attacks.optimised,
        attacks.poisons,
        attacks.repair_aware,
        attacks.searches,
        privacy,
    ],
)
def test_the_catalogue_has_every_name(module):
    public = getattr(module, "__all__", None) or [
        name
        for name, value in vars(module).items()
        if getattr(value, "__module__", "") == module.__name__
    ]
    names = {n for n in public if inspect.isfunction(getattr(module, n)) and not n.startswith("_")}
    assert names, module
    lines = re.findall(r"^\| (`.*?) \|", CATALOGUE, re.MULTILINE)
    there = {name for line in lines for name in re.findall(r"`(\w+)`", line)}
    assert names - NO_RULES <= there, sorted(names - NO_RULES - there)


def test_the_catalogue_has_no_other_name():
    lines = re.findall(r"^\| (`.*?) \|", CATALOGUE, re.MULTILINE)
    modules = [aggregators, attacks, privacy, *(getattr(attacks, n) for n in attacks.__all__)]
    from fedjax_robust import data, repairs

    for name in {name for line in lines for name in re.findall(r"`(\w+)`", line)}:
        assert any(hasattr(module, name) for module in [*modules, data, repairs]), name
