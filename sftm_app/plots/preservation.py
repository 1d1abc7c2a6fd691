"""How much of each task a merge preserves: its readout and mapping errors."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import plotly.graph_objects as go

from sftm_app.plots.bars import GROUPED, LEGEND_ABOVE, bar, group_axis
from sftm_app.plots.style import Series, make_figure, make_message

Errors = Sequence[float | None]


@dataclass(frozen=True)
class ErrorSeries:
    """The errors of one merge: one value for each task, None where there is none.

    Attributes:
        name: of the merge, on screen.
        colour: of its bars.
        readout, mapping: the errors; 0 keeps everything, 1 is as far off as adding nothing. Empty if not measured.
    """

    name: str
    colour: str
    readout: Errors = ()
    mapping: Errors = ()


def preservation(tasks: Sequence[str], merges: Sequence[ErrorSeries]) -> go.Figure:
    """Two panels, readout error and mapping error: one group of bars for each task, one bar in it for each merge."""
    return _panels("preservation", tasks, merges, 340, *_axes(merges))


def prediction_bars(
    tasks: Sequence[str], merges: Sequence[ErrorSeries], height: int = 280, compared: Sequence[ErrorSeries] = ()
) -> go.Figure:
    """The panels of `preservation`, to be redrawn while a slider moves: bars move, axes stay.

    Args:
        tasks: the tasks.
        merges: the errors.
        height: in pixels.
        compared: the errors in the figure next to this one; both figures get the same axes.
    """
    axes = _axes([*merges, *compared])
    return _panels("prediction", tasks, merges, height, *axes, dragmode=False, hovermode="x")


def error_ceiling(errors: Errors) -> float:
    """The upper end of an axis for errors: the first of 1, 1.5, 2, 3, 5, 7.5, 10, 15 and so on that holds them all."""
    highest = max((value for value in errors if value is not None and math.isfinite(value)), default=0.0)
    if highest <= 1:
        return 1.0
    power = 10.0 ** math.floor(math.log10(highest))
    return next(step * power for step in (1, 1.5, 2, 3, 5, 7.5, 10) if step * power >= highest)


def _axes(merges: Sequence[ErrorSeries]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Axes that reach 1 at least, so that errors of 1e-7 do not look large."""
    readout = [value for merge in merges for value in merge.readout]
    mapping = [value for merge in merges for value in merge.mapping]
    return _fixed(readout), _fixed(mapping)


def _fixed(errors: Errors) -> dict[str, Any]:
    return {"range": [0, 1.02 * error_ceiling(errors)], "autorange": False}


def _panels(
    name: str,
    tasks: Sequence[str],
    merges: Sequence[ErrorSeries],
    height: int,
    left: Mapping[str, Any],
    right: Mapping[str, Any],
    **layout: Any,
) -> go.Figure:
    if not tasks or not merges:
        return make_message(name, "No preservation has been predicted yet.", height=height)
    data, ends = [], {"": left["range"][1], "2": right["range"][1]}
    for index, merge in enumerate(merges):
        panels = [(errors, axis) for errors, axis in ((merge.readout, ""), (merge.mapping, "2")) if errors]
        for place, (errors, axis) in enumerate(panels):
            trace = bar(name, tasks, Series(merge.name, errors, merge.colour), end=ends[axis])
            # Grouped by position, because two merges may have the same name.
            legend = {"legendgroup": f"merge-{index}", "showlegend": place == 0}
            data.append({**trace, "xaxis": f"x{axis}", "yaxis": f"y{axis}", **legend})
    labels = group_axis(tasks, 18 if height > 300 else 12)
    # Powers of ten, because errors may be large: 2×10⁶, not 2M.
    common = {"domain": [0, 1], "exponentformat": "power"}
    return make_figure(
        name,
        data,
        {
            **GROUPED,
            # The gap between the panels has room for the second y axis on a screen 800 pixels wide.
            "xaxis": {"domain": [0, 0.415], "anchor": "y", **labels},
            "yaxis": {**common, "anchor": "x", "title": {"text": "readout error"}, **left},
            "xaxis2": {"domain": [0.585, 1], "anchor": "y2", **labels},
            "yaxis2": {**common, "anchor": "x2", "title": {"text": "mapping error"}, **right},
            "legend": LEGEND_ABOVE,
            **layout,
        },
        height=height,
        meta={"tasks": list(tasks), "merges": [merge.name for merge in merges]},
    )
