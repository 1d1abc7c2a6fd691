"""Vertical grouped bars: the shape that several plots share."""

from __future__ import annotations

from collections.abc import Sequence

import plotly.graph_objects as go

from sftm_app.plots.style import Series, message, method_colour, plain, style, ticks


def grouped_bars(
    groups: Sequence[str],
    series: Sequence[Series],
    name: str,
    measure: str,
    title: str = "",
    value_format: str = "%{y:.3g}",
    empty: str = "Nothing to show yet.",
    height: int = 320,
) -> go.Figure:
    """One group of bars for each of `groups`, one bar of it for each series. `measure` is the y axis' title."""
    figure = go.Figure()
    for one in series:
        if len(one.values) != len(groups):
            raise ValueError(f"{name}: {one.name} has {len(one.values)} values for {len(groups)} groups.")
    if not groups or not series:
        return message(style(figure, name, title, height=height), empty)
    for index, one in enumerate(series):
        shown = plain(one.name)
        figure.add_trace(
            go.Bar(
                x=list(range(len(groups))),
                y=[None if v is None else float(v) for v in one.values],
                text=[plain(group) for group in groups],
                textposition="none",
                name=shown,
                marker={"color": one.colour or method_colour(one.name, index), "line": {"width": 0}},
                hovertemplate=f"<b>{shown}</b><br>%{{text}} {value_format}<extra></extra>",
            )
        )
    style(figure, name, title, height=height, meta={"groups": list(groups)})
    figure.update_xaxes(showgrid=False, autotickangles=[0, -35, -90], **ticks(groups, limit=18))
    figure.update_yaxes(title_text=plain(measure), rangemode="tozero")
    figure.update_layout(
        barmode="group",
        bargap=0.24,
        bargroupgap=0.06,
        legend={"orientation": "h", "x": 0, "y": 1.02, "yanchor": "bottom"},
    )
    return figure
