"""Principal angles between what two tasks read, and between what two tasks write."""

from __future__ import annotations

from typing import Any

import numpy as np
import plotly.graph_objects as go
from numpy.typing import ArrayLike, NDArray

from sftm_app.plots.reduce import points_to_draw
from sftm_app.plots.style import ACCENT, SECOND, make_figure, make_message, plot_text


def angle_points(angles: ArrayLike) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """The points that are drawn, at most 2048.

    Args:
        angles: (k,), ascending.

    Returns:
        The number of each angle, from 1, and its value in float32.
    """
    values = np.asarray(angles, dtype=np.float32).reshape(-1)
    shown = points_to_draw(len(values))
    return shown + 1, values[shown]


def principal_angles(
    read: ArrayLike,
    write: ArrayLike,
    random_read: ArrayLike,
    random_write: ArrayLike,
    first: str,
    second: str,
    height: int = 320,
) -> go.Figure:
    """Angles between the spans of two tasks' leading features.

    Args:
        read, write: (k,), ascending, in degrees 0..90. At 0 both tasks share a direction, at 90 nothing.
        random_read, random_write: the angles between random subspaces of the same size, drawn as dashed lines.
        first, second: the tasks' names.
        height: in pixels.
    """
    title = "Principal angles"
    subtitle = f"{plot_text(first, 28)} and {plot_text(second, 28)} · 0° in common, 90° apart"
    k = max(np.size(read), np.size(write))
    if not k:
        text = "One of the two tasks did not change this layer."
        return make_message("principal-angles", text, title, subtitle, height, {"k": k})
    data = [
        _line("read", read, ACCENT),
        _line("write", write, SECOND),
        _line("random, read", random_read, ACCENT, dashed=True),
        _line("random, write", random_write, SECOND, dashed=True),
    ]
    layout = {
        "xaxis": {
            "title": {"text": "angle (smallest first)"},
            "range": [0.5, k + 0.5],
            **({"dtick": 1} if k < 12 else {}),
        },
        "yaxis": {"title": {"text": "degrees"}, "range": [0, 93], "tickvals": [0, 15, 30, 45, 60, 75, 90]},
        # Below the plot, because the subtitle is above it.
        "legend": {"orientation": "h", "x": 0, "y": -0.25, "yanchor": "top"},
        "hovermode": "closest",
    }
    return make_figure("principal-angles", data, layout, title, subtitle, height, {"k": k})


def _line(name: str, angles: ArrayLike, colour: str, dashed: bool = False) -> dict[str, Any]:
    x, y = angle_points(angles)
    return {
        "type": "scatter",
        "mode": "lines" if dashed or len(x) > 64 else "lines+markers",
        "x": x.astype(np.int32),
        "y": y,
        "name": name,
        "line": {"color": colour, "width": 1.5 if dashed else 2, "dash": "dash" if dashed else "solid"},
        "marker": {"size": 6, "symbol": "circle" if name == "read" else "square"},
        "hovertemplate": f"<b>{name}</b><br>angle %{{x}}: %{{y:.1f}}°<extra></extra>",
    }
