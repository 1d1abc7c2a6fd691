"""Vertical grouped bars: the shape that several plots share."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import plotly.graph_objects as go

from sftm_app.plots.style import Series, make_figure, make_message, method_colour, plain, ticks


def grouped_bars(
    groups: Sequence[str],
    series: Sequence[Series],
    name: str,
    measure: str,
    title: str = "",
    value_format: str = "%{y:.3g}",
    empty: str = "Nothing to show yet.",
    height: int = 320,
    axis: Mapping[str, Any] | None = None,
) -> go.Figure:
    """One group of bars for each of `groups`, one bar of it for each series.

    `measure` is the y axis' title; `axis`: further plotly settings of that axis.
    """
    for one in series:
        if len(one.values) != len(groups):
            raise ValueError(f"{name}: {one.name} has {len(one.values)} values for {len(groups)} groups.")
    if not groups or not series:
        return make_message(name, empty, title, height=height)
    data = [
        bar(groups, one.values, one.name, one.colour or method_colour(one.name, index), value_format)
        for index, one in enumerate(series)
    ]
    layout = {
        **bar_layout(),
        "xaxis": group_axis(groups),
        "yaxis": {"title": {"text": plain(measure)}, "rangemode": "tozero", **(axis or {})},
        "legend": {"orientation": "h", "x": 0, "y": 1.02, "yanchor": "bottom"},
    }
    return make_figure(name, data, layout, title, height=height, meta={"groups": list(groups)})


def bar(
    groups: Sequence[str], values: Sequence[float | None], name: str, colour: str, value_format: str = "%{y:.3g}"
) -> dict[str, Any]:
    """One series' bars at 0, 1, 2 ... as a plotly trace; hovering names the group and the series."""
    shown = plain(name)
    return {
        "type": "bar",
        "x": list(range(len(groups))),
        "y": [None if v is None else float(v) for v in values],
        "text": [plain(group) for group in groups],
        "textposition": "none",
        "name": shown,
        "marker": {"color": colour, "line": {"width": 0}},
        "hovertemplate": f"<b>{shown}</b><br>%{{text}} {value_format}<extra></extra>",
    }


def bar_layout() -> dict[str, Any]:
    """Bars of one group stand beside each other, groups apart."""
    return {"barmode": "group", "bargap": 0.24, "bargroupgap": 0.06}


def group_axis(groups: Sequence[str], limit: int = 18) -> dict[str, Any]:
    """The x axis under groups of bars: their names, cut to `limit` letters and turned where they would not fit."""
    return {"showgrid": False, "autotickangles": [0, -35, -90], **ticks(groups, limit=limit)}
