"""The plots of a search: the Pareto front, and the numbers that are drawn."""

from __future__ import annotations

from sftm_app.methods import METHODS
from sftm_app.plots.trials import TrialPoint, importance_figure, pareto_front, trials_figure


def point(number: int, x: float, y: float, method: str = "sftm") -> TrialPoint:
    return TrialPoint(number, f"trial <b>{number}</b>", x, y, method)


POINTS = [point(0, 0.5, 0.9), point(1, 0.9, 0.5), point(2, 0.4, 0.8), point(3, 0.7, 0.7, "ties"), point(4, 0.9, 0.5)]


def test_the_front_holds_what_nothing_beats() -> None:
    assert [one.number for one in pareto_front(POINTS)] == [0, 3, 1]
    for one in POINTS:
        beaten = any(other.x >= one.x and other.y >= one.y and (other.x, other.y) != (one.x, one.y) for other in POINTS)
        assert beaten or (one.x, one.y) in {(kept.x, kept.y) for kept in pareto_front(POINTS)}
    assert pareto_front([]) == ()


def test_trials_are_drawn_by_method_with_the_front_and_the_best() -> None:
    figure = trials_figure(POINTS, "latin", "<i>greek</i>", best=3)
    front, one, two, ring = figure.data
    assert list(front.x) == [0.5, 0.7, 0.9] and list(front.y) == [0.9, 0.7, 0.5]
    assert list(one.x) == [0.5, 0.9, 0.4, 0.9] and list(two.x) == [0.7]
    assert [list(data) for data in two.customdata] == [["trial", 3]] and list(ring.y) == [0.7]
    assert "&lt;b&gt;" in one.text[0] and "&lt;i&gt;" in figure.layout.yaxis.title.text
    assert "No trial" in trials_figure([], "a", "b").layout.annotations[0].text


def test_importances_are_bars() -> None:
    figure = importance_figure({"scaling": 0.7, "weights": 0.3})
    assert list(figure.data[0].x) == [0.7, 0.3] and list(figure.layout.yaxis.ticktext) == ["scaling", "weights"]
    assert "Too few trials" in importance_figure({}).layout.annotations[0].text


def test_methods_of_one_colour_have_different_shapes() -> None:
    points = [point(number, 0.1 * number, 0.5, method) for number, method in enumerate(METHODS)]
    looks = [
        (one.marker.color, one.marker.symbol) for one in trials_figure(points, "a", "b").data if one.mode == "markers"
    ]
    assert len(set(looks)) == len(METHODS)
