"""How much of each task a merge keeps, predicted from the weights alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import plotly.graph_objects as go
from plotly.subplots import make_subplots

from sftm_app.plots.style import INK, message, method_colour, plain, style, ticks


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
    figure = make_subplots(rows=1, cols=2, horizontal_spacing=0.1, subplot_titles=("Readout error", "Mapping error"))
    methods = list(dict.fromkeys([*readout_errors, *mapping_errors]))
    if not tasks or not methods:
        figure = go.Figure()
        return message(style(figure, "preservation", height=height), "No preservation has been predicted yet.")
    for column, errors in enumerate((readout_errors, mapping_errors), start=1):
        for index, method in enumerate(methods):
            if method not in errors:
                continue
            values = errors[method]
            if len(values) != len(tasks):
                raise ValueError(f"preservation: {method} has {len(values)} errors for {len(tasks)} tasks.")
            shown = plain((titles or {}).get(method, method))
            figure.add_trace(
                go.Bar(
                    x=list(range(len(tasks))),
                    y=[None if v is None else float(v) for v in values],
                    text=[plain(task) for task in tasks],
                    textposition="none",
                    name=shown,
                    legendgroup=method,
                    showlegend=column == 1 or method not in readout_errors,
                    marker={"color": method_colour(method, index), "line": {"width": 0}},
                    hovertemplate=f"<b>{shown}</b><br>%{{text}} %{{y:.3g}}<extra></extra>",
                ),
                row=1,
                col=column,
            )
    style(figure, "preservation", height=height, meta={"tasks": list(tasks), "methods": methods})
    figure.update_annotations(font={"size": 13, "color": INK, "weight": 600})
    figure.update_xaxes(showgrid=False, autotickangles=[0, -35, -90], **ticks(tasks, limit=18))
    figure.update_yaxes(rangemode="tozero")
    figure.update_yaxes(title_text="error (0 keeps everything)", row=1, col=1)
    figure.update_layout(
        barmode="group",
        bargap=0.24,
        bargroupgap=0.06,
        legend={"orientation": "h", "x": 0, "y": 1.1, "yanchor": "bottom"},
    )
    return figure
