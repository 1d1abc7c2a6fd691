"""A measure against the scaling (or any other number that is swept)."""

from __future__ import annotations

from collections.abc import Sequence

import plotly.graph_objects as go

from sftm_app.plots.style import DASHES, INK, SYMBOLS, Series, message, method_colour, plain, style


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
    figure = go.Figure()
    for one in series:
        if len(one.values) != len(x):
            raise ValueError(f"scaling_curve: {one.name} has {len(one.values)} values for {len(x)} points.")
    if not series or not len(x):
        return message(style(figure, "scaling", title, height=height), "Nothing has been measured yet.")
    shape = ".1%" if percent else ".4g"
    for index, one in enumerate(series):
        name = plain(one.name)
        colour = one.colour or method_colour(one.name, index)
        figure.add_trace(
            go.Scatter(
                x=[float(value) for value in x],
                y=[None if v is None else float(v) for v in one.values],
                name=name,
                mode="lines+markers",
                line={"color": colour, "width": 2, "dash": DASHES[index % len(DASHES)]},
                marker={"color": colour, "size": 7, "symbol": SYMBOLS[index % len(SYMBOLS)]},
                hovertemplate=(
                    f"<b>{name}</b><br>{plain(x_title)} %{{x:.3g}}<br>{plain(y_title)} %{{y:{shape}}}<extra></extra>"
                ),
            )
        )
    style(figure, "scaling", title, height=height)
    figure.update_xaxes(title_text=plain(x_title))
    figure.update_yaxes(title_text=plain(y_title), tickformat=".0%" if percent else None, rangemode="tozero")
    figure.update_layout(legend={"orientation": "h", "x": 0, "y": 1.02, "yanchor": "bottom"})
    if marked is not None:
        figure.add_vline(x=marked, line={"color": INK, "width": 1, "dash": "dot"})
    return figure
