"""How much of each task a merge keeps, predicted from the weights alone."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import plotly.graph_objects as go

from sftm_app.plots.bars import bar, bar_layout, group_axis
from sftm_app.plots.style import make_figure, make_message, method_colour

Errors = Sequence[float | None]
_EMPTY = "No preservation has been predicted yet."


def preservation(
    tasks: Sequence[str],
    readout_errors: Mapping[str, Errors],
    mapping_errors: Mapping[str, Errors],
    titles: Mapping[str, str] | None = None,
    height: int = 340,
) -> go.Figure:
    """Two panels of bars, readout error and mapping error, one group a task, one bar a method; lower is better.

    Both mappings go from a method's key to one error for each task (0 keeps all, 1 is as far off as adding nothing).
    `titles`: shown names of the methods.
    """
    methods = list(dict.fromkeys([*readout_errors, *mapping_errors]))
    series = [
        ((titles or {}).get(key, key), method_colour(key, i), readout_errors.get(key), mapping_errors.get(key))
        for i, key in enumerate(methods)
    ]
    return _panels("preservation", tasks, series, height, {"rangemode": "tozero"}, {"rangemode": "tozero"})


def prediction_bars(
    tasks: Sequence[str],
    series: Sequence[tuple[str, str, Errors, Errors]],
    height: int = 280,
    beside: Sequence[tuple[Errors, Errors]] = (),
) -> go.Figure:
    """The same two panels for any named settings, to be redrawn while a slider moves.

    series: (name, colour, readout errors, mapping errors), the errors one for each task, None where there is none. Both
    axes run from 0 to 1, or to the next round number, so that bars move and not the axis. beside: readout and mapping
    errors of a figure that this one stands next to: both get the same axes.
    """
    readout = _fixed([value for errors in (*(s[2] for s in series), *(b[0] for b in beside)) for value in errors])
    mapping = _fixed([value for errors in (*(s[3] for s in series), *(b[1] for b in beside)) for value in errors])
    return _panels("prediction", tasks, series, height, readout, mapping, dragmode=False, hovermode="x")


def error_ceiling(errors: Errors) -> float:
    """Upper end of an axis for errors: 1, or the next of 1.5, 2, 3, 5, 7.5, 10, 15 ... above them all."""
    highest = max((value for value in errors if value is not None and math.isfinite(value)), default=0.0)
    if highest <= 1:
        return 1.0
    power = 10.0 ** math.floor(math.log10(highest))
    return next(step * power for step in (1, 1.5, 2, 3, 5, 7.5, 10) if step * power >= highest)


def _fixed(errors: Errors) -> dict[str, Any]:
    return {"range": [0, 1.02 * error_ceiling(errors)], "autorange": False}


def _panels(
    name: str,
    tasks: Sequence[str],
    series: Sequence[tuple[str, str, Errors | None, Errors | None]],
    height: int,
    left: Mapping[str, Any],
    right: Mapping[str, Any],
    **layout: Any,
) -> go.Figure:
    if not tasks or not series:
        return make_message(name, _EMPTY, height=height)
    data = []
    for index, (title, colour, *both) in enumerate(series):
        named = False
        for errors, axis in zip(both, ("", "2"), strict=True):
            if errors is None:
                continue
            if len(errors) != len(tasks):
                raise ValueError(f"{name}: {title} has {len(errors)} errors for {len(tasks)} tasks.")
            # The place, not the name: two settings may bear the same.
            place = {
                "xaxis": f"x{axis}",
                "yaxis": f"y{axis}",
                "legendgroup": f"series-{index}",
                "showlegend": not named,
            }
            data.append({**bar(tasks, errors, title, colour), **place})
            named = True
    labels = group_axis(tasks, 18 if height > 300 else 12)
    # Errors may be tiny: 8×10⁻⁸ rather than 80n.
    common = {"domain": [0, 1], "exponentformat": "power"}
    # The gap holds the second axis's labels and title on a screen 800 wide.
    return make_figure(
        name,
        data,
        {
            **bar_layout(),
            "xaxis": {"domain": [0, 0.415], "anchor": "y", **labels},
            "yaxis": {**common, "anchor": "x", "title": {"text": "readout error"}, **left},
            "xaxis2": {"domain": [0.585, 1], "anchor": "y2", **labels},
            "yaxis2": {**common, "anchor": "x2", "title": {"text": "mapping error"}, **right},
            "legend": {"orientation": "h", "x": 0, "y": 1.02, "yanchor": "bottom"},
            **layout,
        },
        height=height,
        meta={"tasks": list(tasks), "series": [title for title, *_ in series]},
    )
