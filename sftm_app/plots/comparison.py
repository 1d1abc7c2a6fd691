"""Mean accuracy of several merges with 95 % intervals, between the base and the tasks' own models."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import plotly.graph_objects as go

from sftm_app.plots.bars import zero_labels
from sftm_app.plots.style import ACCENT, INK, MUTED, make_figure, make_message, plot_text, ticks

# The axis goes at least so far, also if no model is ever right.
LEAST_TOP = 0.05


@dataclass(frozen=True)
class AccuracyBar:
    """One merge. accuracy, low, high: the mean accuracy and its interval, 0..1."""

    name: str
    accuracy: float
    low: float
    high: float


def comparison_bars(
    merges: Sequence[AccuracyBar], base: float | None = None, individual: float | None = None
) -> go.Figure:
    """Horizontal bars with intervals, best first.

    Args:
        merges: the merges, in any order.
        base, individual: the accuracies, 0..1, of the base and of the tasks' own models, drawn as vertical lines.
    """
    if not merges:
        return make_message("comparison", "No merge has been measured yet.")
    best_first = sorted(merges, key=lambda merge: -merge.accuracy)
    ends = [("base", base), ("individual", individual)]
    marks = [(name, value) for name, value in ends if value is not None]
    top = max([LEAST_TOP] + [merge.high for merge in merges] + [value for _, value in marks])
    layout = {
        "xaxis": {"title": {"text": "mean accuracy, 95 % interval"}, "range": [0, min(1.02, 1.08 * top)]}
        | {"tickformat": ".0%"},
        "yaxis": {"autorange": "reversed", "showgrid": False, **ticks([m.name for m in best_first], limit=36)},
        "bargap": 0.35,
        "showlegend": False,
        # Room for the names of the lines, the last of which begins at the end of the axis.
        "margin": {"l": 8, "r": 100, "t": 30, "b": 8},
    }
    if marks:
        layout["shapes"] = [_line(value) for _, value in marks]
        layout["annotations"] = [_label(name, value, "right" if name == "base" else "left") for name, value in marks]
    height = 96 + 30 * len(best_first)
    return make_figure("comparison", [_bars(best_first, top)], layout, height=height)


def _bars(merges: Sequence[AccuracyBar], top: float) -> dict[str, Any]:
    return {
        "type": "bar",
        "orientation": "h",
        "y": list(range(len(merges))),
        "x": [merge.accuracy for merge in merges],
        "error_x": {
            "type": "data",
            "symmetric": False,
            "array": [merge.high - merge.accuracy for merge in merges],
            "arrayminus": [merge.accuracy - merge.low for merge in merges],
            "color": INK,
            "thickness": 1.5,
            "width": 4,
        },
        "text": [f"{plot_text(m.name)} ({m.low:.1%} to {m.high:.1%})" for m in merges],
        **zero_labels([merge.accuracy for merge in merges], top),
        "name": "mean accuracy",
        # One colour: there are more methods than colours, and the axis names them.
        "marker": {"color": ACCENT, "line": {"width": 0}},
        "hovertemplate": "<b>%{x:.1%}</b> %{text}<extra></extra>",
    }


def _line(value: float) -> dict[str, Any]:
    ends = {"x0": value, "x1": value, "y0": 0, "y1": 1, "yref": "paper"}
    return {"type": "line", **ends, "line": {"color": MUTED, "width": 1.5, "dash": "dash"}}


def _label(name: str, value: float, side: str) -> dict[str, Any]:
    """The name of a line. side: which end of the text is at the line, so that two near lines have room for theirs."""
    place = {"x": value, "y": 1, "yref": "paper", "xanchor": side, "yanchor": "bottom", "showarrow": False}
    return {**place, "text": f"{name} {value:.1%}", "font": {"color": MUTED, "size": 11}}
