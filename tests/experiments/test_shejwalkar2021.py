"""NDSS 2021's tables, reduced: cells, attacks, smoke mode."""

import os
import sys
from pathlib import Path

import pytest

import fedjax_robust as fr
from fedjax_robust import report, study

PAPER = Path(__file__).parents[2] / "experiments" / "shejwalkar2021"
sys.path.insert(0, str(PAPER))
import agr_tables
from agr_tables import Args

needs_cifar10 = pytest.mark.skipif(
    not list(Path(os.environ.get("FEDJAX_ROBUST_DATA", "/none")).glob("tfds/cifar10/*")),
    reason="CIFAR-10 is not there; set FEDJAX_ROBUST_DATA to the folder that holds it",
)


def test_help(capsys, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["agr_tables.py", "--help"])
    with pytest.raises(SystemExit):
        study.main(Args, agr_tables.main)
    assert "--partial" in capsys.readouterr().out


def test_cells():
    cells = agr_tables.cells_of(Args())
    assert len(cells) == 4 * 6
    assert {(cell["clients"], cell["malicious"]) for cell in cells} == {(50, 10)}
    for wrong in (Args(rules=("Krum",)), Args(attacks=("Lie",))):
        with pytest.raises(ValueError, match="there is no"):
            agr_tables.cells_of(wrong)
    numbers = [*agr_tables.FULL.values(), *agr_tables.PARTIAL.values()]
    assert all(len(row) == len(agr_tables.ATTACKS) - 1 for row in numbers)


@pytest.mark.parametrize("partial", [False, True])
@pytest.mark.parametrize("rule", agr_tables.RULES)
@pytest.mark.parametrize("attack", agr_tables.ATTACKS)
def test_attacks_know_what_they_may(attack, rule, partial):
    """And partial knowledge is none of the others' updates."""
    made = agr_tables.attack_of(attack, rule, 10, partial)
    assert isinstance(made, fr.Attack)
    assert made.needs.others == (attack != "none" and not partial)


@needs_cifar10
def test_smoke(tmp_path):
    args = Args(smoke=True, out=tmp_path, rules=("Multi-Krum",), attacks=("AGR", "Min-Max"))
    agr_tables.main(args)
    about, rows = report.read_table(tmp_path / "full-smoke")
    assert [row["attack"] for row in rows] == ["AGR", "Min-Max"]
    assert about.paper[("AGR", "Multi-Krum")] == pytest.approx(0.292)
