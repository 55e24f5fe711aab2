"""Numbers in tables and in the names of files keep the digits that tell them apart."""

import pytest

from fedjax_robust import report, study


def cells(table, name):
    (line,) = [line for line in table.splitlines() if line.startswith(f"| {name} ")]
    return [text.strip() for text in line.strip("|").split("|")]


def test_a_papers_third_decimal_is_shown_and_a_zero_is_not():
    paper = {("a", "krum"): 0.125, ("b", "krum"): 0.1, ("c", "krum"): 0.109, ("d", "krum"): 1.0}
    rows = [{"attack": name, "rule": "krum", "error": 0.1254} for name in "abc"]
    table = report.comparison_table(rows, paper, tolerance=0.02)
    assert cells(table, "a") == ["a", "0.125", "0.125"]
    assert cells(table, "b") == ["b", "0.10", "**0.125**"]
    assert cells(table, "c") == ["c", "0.109", "0.125"]
    assert cells(table, "d") == ["d", "1.00", "–"]


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.125, "0.125"),
        (0.123456, "0.123456"),
        (1e-05, "1e-05"),
        (2.0, "2"),
        (2, "2"),
        (None, "None"),
        ("Trimmed mean, f/n", "Trimmed_mean__f_n"),
    ],
)
def test_names_of_runs(value, text):
    run = {"p": value, "rule": "Krum", "left out": 1, "seed": 3}
    assert study.run_name(run, ("rule", "p")) == f"rule=Krum,p={text},seed=3"


def test_numbers_that_are_close_have_names_of_their_own():
    values = [0.12, 0.121, 0.1212, 0.12121, 0.121212]
    names = {study.run_name({"p": value, "seed": 0}, ("p",)) for value in values}
    assert len(names) == len(values)
