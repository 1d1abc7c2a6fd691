"""A measure against the scaling (or any other number that is swept)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import plotly.graph_objects as go

from sftm_app.plots.style import DASHES, INK, SYMBOLS, Series, make_figure, make_message, method_colour, plain


def scaling_curve(
    x: Sequence[float],
    series: Sequence[Series],
    x_title: str = "scaling",
    y_title: str = "accuracy",
    title: str = "",
    percent: bool = True,
    marked: float | None = None,
    height: int = 320,
) -> go.Figure:
    """One line a series, the values of `x` in common. `marked`: the x in use now, as an upright line."""
    for one in series:
        if len(one.values) != len(x):
            raise ValueError(f"scaling_curve: {one.name} has {len(one.values)} values for {len(x)} points.")
    if not series or not len(x):
        return make_message("scaling", "Nothing has been measured yet.", title, height=height)
    across, up, shape = plain(x_title), plain(y_title), ".1%" if percent else ".4g"
    points = [float(value) for value in x]
    data: list[dict[str, Any]] = []
    for index, one in enumerate(series):
        name = plain(one.name)
        colour = one.colour or method_colour(one.name, index)
        data.append(
            {
                "type": "scatter",
                "x": points,
                "y": [None if v is None else float(v) for v in one.values],
                "name": name,
                "mode": "lines+markers",
                "line": {"color": colour, "width": 2, "dash": DASHES[index % len(DASHES)]},
                "marker": {"color": colour, "size": 7, "symbol": SYMBOLS[index % len(SYMBOLS)]},
                "hovertemplate": f"<b>{name}</b><br>{across} %{{x:.3g}}<br>{up} %{{y:{shape}}}<extra></extra>",
            }
        )
    layout = {
        "xaxis": {"title": {"text": across}},
        "yaxis": {"title": {"text": up}, "rangemode": "tozero", **({"tickformat": ".0%"} if percent else {})},
        "legend": {"orientation": "h", "x": 0, "y": 1.02, "yanchor": "bottom"},
        "shapes": [_upright(marked)] if marked is not None else [],
    }
    return make_figure("scaling", data, layout, title, height=height)


def _upright(x: float) -> dict[str, Any]:
    return {
        "type": "line",
        "x0": x,
        "x1": x,
        "xref": "x",
        "y0": 0,
        "y1": 1,
        "yref": "y domain",
        "line": {"color": INK, "width": 1, "dash": "dot"},
    }
