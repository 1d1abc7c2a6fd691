"""Singular spectra of the tasks in one layer, and how much of the change the first features hold."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import plotly.graph_objects as go
from numpy.typing import NDArray

from sftm_app.plots.style import DASHES, SURFACE, TICK_SIZE, make_figure, make_message, plain

_SHAPES = ("circle", "square", "diamond", "cross", "triangle-up")


@dataclass(frozen=True)
class SpectrumTrace:
    """One task's spectrum. gains: (r,), largest first. ranks_for_energy: fraction -> features needed, as {0.9: 12}."""

    name: str
    colour: str
    gains: Sequence[float]
    effective_rank: float
    ranks_for_energy: Mapping[float, int] = field(default_factory=dict)


def spectra(tasks: Sequence[SpectrumTrace], stacked: bool = False, height: int | None = None) -> go.Figure:
    """Two panels: gains on a log axis, and cumulative energy. Markers stand at 90, 95 and 99 % of the energy.

    x counts features from 1. Gains of exactly zero cannot be drawn on a log axis and are left out there. `stacked` puts
    the panels below each other, for narrow places.
    """
    total = height or (560 if stacked else 360)
    drawn = [(index, task) for index, task in enumerate(tasks) if len(task.gains)]
    if not drawn:
        return make_message("spectra", "The tasks did not change this layer.", height=total)
    x_domains = ([0, 1], [0, 1]) if stacked else ([0, 0.45], [0.56, 1])
    y_domains = ([0.58, 1], [0, 0.42]) if stacked else ([0, 1], [0, 1])
    layout = {
        "xaxis": {"domain": x_domains[0], "anchor": "y", "title": {"text": "feature, by gain"}, "rangemode": "tozero"},
        "xaxis2": {
            "domain": x_domains[1],
            "anchor": "y2",
            "title": {"text": "feature, by gain"},
            "rangemode": "tozero",
        },
        "yaxis": {
            "domain": y_domains[0],
            "anchor": "x",
            "title": {"text": "gain"},
            "type": "log",
            "exponentformat": "power",
            "dtick": 1,
            # plotly.js writes powers of ten on a log axis 1.25 times as large as asked for.
            "tickfont": {"size": TICK_SIZE / 1.25},
        },
        "yaxis2": {
            "domain": y_domains[1],
            "anchor": "x2",
            "title": {"text": "energy kept"},
            "tickformat": ".0%",
            "range": [0, 1.04],
        },
        "legend": {"orientation": "h", "x": 0, "xanchor": "left", "y": 1.02, "yanchor": "bottom"},
        "hovermode": "closest",
    }
    data = [trace for index, task in drawn for trace in _traces(task, index)]
    return make_figure("spectra", data, layout, height=total, meta={"tasks": [task.name for task in tasks]})


def _traces(task: SpectrumTrace, index: int) -> list[dict[str, Any]]:
    gains = np.asarray(task.gains, dtype=np.float64)
    squares = gains**2
    energy = np.cumsum(squares) / max(float(squares.sum()), np.finfo(np.float64).tiny)
    name = plain(task.name)
    # Not the name: two tasks may bear the same.
    common = {"type": "scatter", "legendgroup": f"task-{index}"}
    line = {
        **common,
        "mode": "lines",
        "x": np.arange(1, len(gains) + 1, dtype=np.int32),
        "line": {"color": task.colour, "width": 2, "dash": DASHES[index % len(DASHES)]},
    }
    traces = [
        {
            **line,
            "y": np.where(gains > 0, gains, np.nan).astype(np.float32),
            "name": f"{name} · effective rank {task.effective_rank:.1f}",
            "hovertemplate": f"<b>{name}</b><br>feature %{{x}}<br>gain %{{y:.4g}}<extra></extra>",
        },
        {
            **line,
            "y": energy.astype(np.float32),
            "name": name,
            "showlegend": False,
            "xaxis": "x2",
            "yaxis": "y2",
            "hovertemplate": f"<b>{name}</b><br>first %{{x}} features<br>%{{y:.1%}} of the energy<extra></extra>",
        },
    ]
    marks = [(share, rank) for share, rank in sorted(task.ranks_for_energy.items()) if 1 <= rank <= len(gains)]
    if marks:
        for values, axis in ((gains, ""), (energy, "2")):
            traces.append({**common, **_marks(task, name, marks, values), "xaxis": f"x{axis}", "yaxis": f"y{axis}"})
    return traces


def _marks(
    task: SpectrumTrace, name: str, marks: Sequence[tuple[float, int]], values: NDArray[np.float64]
) -> dict[str, Any]:
    heights = [float(values[rank - 1]) for _, rank in marks]
    return {
        "x": [rank for _, rank in marks],
        "y": [height if height > 0 else None for height in heights],
        "text": [f"{share:.0%} of the energy" for share, _ in marks],
        "name": name,
        "showlegend": False,
        "mode": "markers",
        "marker": {
            "color": SURFACE,
            "size": 8,
            "symbol": [_SHAPES[place % len(_SHAPES)] for place in range(len(marks))],
            "line": {"color": task.colour, "width": 2},
        },
        "hovertemplate": f"<b>{name}</b><br>%{{x}} features hold %{{text}}<extra></extra>",
    }
