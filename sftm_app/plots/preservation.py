"""How much of each task a merge keeps, predicted from the weights alone."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

import plotly.graph_objects as go

from sftm_app.plots.bars import bar, bar_layout, group_axis
from sftm_app.plots.style import INK, make_figure, make_message, method_colour


def preservation(
    tasks: Sequence[str],
    readout_errors: Mapping[str, Sequence[float | None]],
    mapping_errors: Mapping[str, Sequence[float | None]],
    titles: Mapping[str, str] | None = None,
    height: int = 340,
) -> go.Figure:
    """Two panels of bars, readout error and mapping error, one group a task, one bar a method; lower is better.

    Both mappings go from a method's key to one error for each task (0 keeps all, 1 is as far off as adding nothing).
    `titles`: shown names of the methods.
    """
    methods = list(dict.fromkeys([*readout_errors, *mapping_errors]))
    if not tasks or not methods:
        return make_message("preservation", "No preservation has been predicted yet.", height=height)
    data = [
        *_panel(tasks, methods, readout_errors, titles or {}, "", set()),
        *_panel(tasks, methods, mapping_errors, titles or {}, "2", set(readout_errors)),
    ]
    labels = group_axis(tasks)
    # Errors may be tiny: 8×10⁻⁸ rather than 80n.
    errors = {"rangemode": "tozero", "exponentformat": "power"}
    layout = {
        **bar_layout(),
        "xaxis": {"domain": [0, 0.45], "anchor": "y", **labels},
        "yaxis": {"domain": [0, 1], "anchor": "x", "title": {"text": "error (0 keeps everything)"}, **errors},
        "xaxis2": {"domain": [0.55, 1], "anchor": "y2", **labels},
        "yaxis2": {"domain": [0, 1], "anchor": "x2", **errors},
        "annotations": [_panel_title("Readout error", 0.225), _panel_title("Mapping error", 0.775)],
        "legend": {"orientation": "h", "x": 0, "y": 1.1, "yanchor": "bottom"},
    }
    return make_figure("preservation", data, layout, height=height, meta={"tasks": list(tasks), "methods": methods})


def _panel(
    tasks: Sequence[str],
    methods: Sequence[str],
    errors: Mapping[str, Sequence[float | None]],
    titles: Mapping[str, str],
    axis: str,
    in_legend: Collection[str],
) -> list[dict[str, Any]]:
    """The bars of one panel, on the axes x`axis` and y`axis`. in_legend: methods that another panel's legend names."""
    traces = []
    for index, method in enumerate(methods):
        if method not in errors:
            continue
        values = errors[method]
        if len(values) != len(tasks):
            raise ValueError(f"preservation: {method} has {len(values)} errors for {len(tasks)} tasks.")
        place = {"xaxis": f"x{axis}", "yaxis": f"y{axis}", "legendgroup": method, "showlegend": method not in in_legend}
        traces.append({**bar(tasks, values, titles.get(method, method), method_colour(method, index)), **place})
    return traces


def _panel_title(text: str, centre: float) -> dict[str, Any]:
    return {
        "text": text,
        "x": centre,
        "xref": "paper",
        "xanchor": "center",
        "y": 1,
        "yref": "paper",
        "yanchor": "bottom",
        "showarrow": False,
        "font": {"size": 13, "color": INK, "weight": 600},
    }
