"""The trials of a search: what they cost one task and give another, and which settings mattered."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import plotly.graph_objects as go

from sftm_app.methods import METHODS
from sftm_app.plots.bars import bar
from sftm_app.plots.style import (
    ACCENT,
    INK,
    MUTED,
    PATTERNS,
    Series,
    make_figure,
    make_message,
    method_colour,
    method_pattern,
    plot_text,
    ticks,
)

# What hatching is for bars: methods of one colour have different shapes.
SYMBOLS = ("circle", "square", "diamond", "triangle-up")


@dataclass(frozen=True)
class TrialPoint:
    """One trial.

    Attributes:
        number: of the trial, from 0; a click reports it.
        name: its settings in words.
        x, y: the shares of two tasks' own accuracies, from 0.
        method: the name of its method, which gives colour and shape.
    """

    number: int
    name: str
    x: float
    y: float
    method: str


def pareto_front(points: Sequence[TrialPoint]) -> tuple[TrialPoint, ...]:
    """The trials that no other one beats on one task without losing on the other, by x. Of equal ones, the first."""
    front: list[TrialPoint] = []
    for point in sorted(points, key=lambda one: (-one.x, -one.y, one.number)):
        if not front or point.y > front[-1].y:
            front.append(point)
    return tuple(reversed(front))


def trials_figure(points: Sequence[TrialPoint], x: str, y: str, best: int | None = None) -> go.Figure:
    """Trials by what they keep of two tasks, with the Pareto front.

    Args:
        points: the trials.
        x, y: the names of the tasks.
        best: the number of the trial that is best over all tasks, marked by a ring.
    """
    if not points:
        return make_message("trials", "No trial has been measured yet.")
    methods = [name for name in METHODS if any(point.method == name for point in points)]
    data = [_dots([one for one in points if one.method == method], method) for method in methods]
    front = pareto_front(points)
    # Between two trials, what the one further right keeps of the other task can be had.
    line = {"color": MUTED, "width": 1.5, "shape": "vh", "dash": "dot"}
    data.insert(
        0,
        {
            "type": "scatter",
            "mode": "lines",
            "x": [one.x for one in front],
            "y": [one.y for one in front],
            "name": "best trade-offs",
            "line": line,
            "hoverinfo": "skip",
        },
    )
    ring = next((one for one in points if one.number == best), None)
    if ring is not None:
        data.append(_ring(ring))
    layout = {
        "xaxis": _axis(x),
        "yaxis": _axis(y),
        "legend": {"orientation": "h", "x": 0, "y": 1.02, "yanchor": "bottom"},
        "hovermode": "closest",
    }
    return make_figure("trials", data, layout, height=420)


def _axis(task: str) -> dict[str, Any]:
    return {"title": {"text": f"{plot_text(task, 40)}: share of its own model's accuracy"}, "tickformat": ".0%"}


def _dots(points: Sequence[TrialPoint], method: str) -> dict[str, Any]:
    symbol = SYMBOLS[PATTERNS.index(method_pattern(method))]
    return {
        "type": "scatter",
        "mode": "markers",
        "x": [one.x for one in points],
        "y": [one.y for one in points],
        "text": [plot_text(one.name, 120) for one in points],
        "customdata": [["trial", one.number] for one in points],
        "name": plot_text(METHODS[method].title),
        "marker": {"color": method_colour(method), "symbol": symbol, "size": 9, "opacity": 0.85, "line": {"width": 0}},
        "hovertemplate": "%{text}<br><b>%{x:.1%}</b>, <b>%{y:.1%}</b><extra></extra>",
    }


def _ring(point: TrialPoint) -> dict[str, Any]:
    return {
        "type": "scatter",
        "mode": "markers",
        "x": [point.x],
        "y": [point.y],
        "customdata": [["trial", point.number]],
        "name": "best over all tasks",
        "marker": {"symbol": "circle-open", "size": 17, "color": INK, "line": {"width": 2}},
        "hoverinfo": "skip",
    }


def importance_figure(importances: Mapping[str, float]) -> go.Figure:
    """Horizontal bars of how much each setting mattered. importances: shares by the setting's name in words."""
    if not importances:
        return make_message("importances", "Too few trials of the best method to tell which settings mattered.")
    names = list(importances)
    series = Series("importance", list(importances.values()), ACCENT)
    layout = {
        "xaxis": {"tickformat": ".0%", "rangemode": "tozero", "title": {"text": "share of what mattered"}},
        "yaxis": {"autorange": "reversed", "showgrid": False, **ticks(names, limit=30)},
        "bargap": 0.35,
        "showlegend": False,
    }
    shown = bar("importances", names, series, value_format=".0%", horizontal=True)
    return make_figure("importances", [shown], layout, height=90 + 26 * len(names))
