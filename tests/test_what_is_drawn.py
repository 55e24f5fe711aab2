"""What figures show, not only their texts: lines, bands, bars and marks. Expected values by hand."""

import matplotlib.colors as colors
import numpy as np
import pytest

from fedjax_robust import report
from fedjax_robust.report import plots


@pytest.fixture
def drawn(monkeypatch):
    """The figures that are drawn."""
    figures = []
    monkeypatch.setattr(plots, "_save", lambda figure, path: figures.append(figure))
    return figures


def edges(band):
    """A band's lower and upper edge at each x."""
    points = band.get_paths()[0].vertices
    at = {
        x: sorted({float(round(y, 9)) for y in points[points[:, 0] == x, 1]}) for x in points[:, 0]
    }
    return {x: (ys[0], ys[-1]) for x, ys in at.items()}


# Means 0.3 and 0.5; ranges 0.1 to 0.6 and 0.5 alone; sample deviations sqrt(0.14 / 2) and 0.
SEEDS = [[0.1, 0.5], [0.2, 0.5], [0.6, 0.5]]


@pytest.mark.parametrize(
    ("band", "low", "high"), [("range", 0.1, 0.6), ("std", 0.3 - 0.07**0.5, 0.3 + 0.07**0.5)]
)
@pytest.mark.parametrize("of", ["curves", "sweep"])
def test_lines_are_means_and_bands_what_the_legend_says(drawn, of, band, low, high):
    panels = {"krum": {"none": [0.2, 0.4], "full": SEEDS}, "median": {"full": SEEDS[:2]}}
    if of == "curves":
        report.plot_curves("a.png", [5, 10], panels, band=band)
    else:
        report.plot_sweep("a.png", [5, 10], panels, xlabel="p", band=band)
    first, second = drawn[0].axes
    one_seed, line = first.lines
    np.testing.assert_allclose(one_seed.get_xydata(), [[5, 0.2], [10, 0.4]])
    np.testing.assert_allclose(line.get_xydata(), [[5, 0.3], [10, 0.5]])
    (shown,) = first.collections  # one seed has no band
    assert edges(shown) == {5: pytest.approx((low, high)), 10: pytest.approx((0.5, 0.5))}
    np.testing.assert_allclose(second.lines[0].get_xydata(), [[5, 0.15], [10, 0.5]])
    # A line looks the same in every panel, its band has its colour, and others look otherwise.
    looks = [(axes.get_color(), axes.get_linestyle()) for axes in (line, second.lines[0], one_seed)]
    assert looks[0] == looks[1] != looks[2]
    assert colors.same_color(shown.get_facecolor()[0][:3], line.get_color())
    assert f"mean of 3 seeds; band: {'±' if band == 'std' else 'smallest'}" in (
        drawn[0].legends[0].get_title().get_text()
    )


def test_a_comparison_shows_the_papers_number_its_tolerance_our_mean_and_deviation(drawn):
    paper = {("none", "krum"): 0.1, ("full", "krum"): 0.5}
    errors = {"none": (0.1, 0.2, 0.6), "full": (0.4,), "other": (0.7, 0.9)}
    rows = [
        {"rule": "krum", "attack": attack, "error": error}
        for attack, several in errors.items()
        for error in several
    ]
    report.plot_comparison("a.png", rows, paper, tolerance=0.04)
    (axes,) = drawn[0].axes
    names = [label.get_text() for label in axes.get_yticklabels()]
    assert names == ["none", "full", "other"]
    grey = [
        (bar.get_x(), bar.get_width(), bar.get_y() + bar.get_height() / 2) for bar in axes.patches
    ]
    np.testing.assert_allclose(grey, [(0.06, 0.08, 0), (0.46, 0.08, 1)], atol=1e-9)
    marks = {
        (mark, *map(float, point))
        for line in axes.lines
        if (mark := line.get_marker()) in ("D", "o")
        for point in np.round(line.get_xydata(), 6)
    }
    assert marks == {("D", 0.1, 0), ("D", 0.5, 1), ("o", 0.3, 0), ("o", 0.4, 1), ("o", 0.8, 2)}
    # Sample deviations: sqrt(0.14 / 2), none for one seed, sqrt(0.02).
    ends = [
        np.sort(bar.get_segments()[0][:, 0]) for bar in axes.collections if len(bar.get_segments())
    ]
    np.testing.assert_allclose(
        ends, [(0.3 - 0.07**0.5, 0.3 + 0.07**0.5), (0.8 - 0.02**0.5, 0.8 + 0.02**0.5)]
    )
    assert axes.get_ylim() == (2.5, -0.5)  # the first line of the table is at the top
    assert axes.get_xlim()[0] == 0 and axes.get_xlim()[1] > 0.8 + 0.02**0.5
