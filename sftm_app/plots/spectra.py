"""Singular spectra of the tasks and of the merge in one layer, and the energy that the first features hold."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import plotly.graph_objects as go
import torch
from numpy.typing import NDArray

from sftm_app.linalg.overlap import effective_rank, stable_rank
from sftm_app.plots.reduce import points_to_draw
from sftm_app.plots.style import DASHES, INK, SURFACE, TICK_SIZE, make_figure, make_message, plot_text, rgba

MOST_CLUSTERS = 8
_SHAPES = ("circle", "square", "diamond", "cross", "triangle-up")
# The axes of the two panels; every spectrum is drawn in both.
_LEFT: dict[str, Any] = {"xaxis": "x", "yaxis": "y"}
_RIGHT: dict[str, Any] = {"xaxis": "x2", "yaxis": "y2"}


@dataclass(frozen=True)
class SpectrumTrace:
    """One spectrum.

    Attributes:
        name: of the task or the merge.
        colour: of its line.
        gains: (r,), the largest first.
        effective_rank, stable_rank: given in the legend.
        ranks_for_energy: how many features hold a share of the energy, such as {0.9: 12}; marked on the line.
        clusters: [start, stop) of features with nearly equal gains, from 0; the strongest eight are marked.
    """

    name: str
    colour: str
    gains: Sequence[float]
    effective_rank: float
    ranks_for_energy: Mapping[float, int] = field(default_factory=dict)
    stable_rank: float | None = None
    clusters: Sequence[tuple[int, int]] = ()


@dataclass(frozen=True, eq=False)
class Points:
    """The points of a spectrum that are drawn, at most 2048.

    Attributes:
        features: (k,), from 0, ascending.
        gains: float32 (k,), NaN where the gain is exactly zero.
        energy: float32 (k,), the share of the energy in the features up to this one.
    """

    features: NDArray[np.int64]
    gains: NDArray[np.float32]
    energy: NDArray[np.float32]


def merged_trace(method: str, gains: Sequence[float]) -> SpectrumTrace:
    """The spectrum of the merged matrix, whatever method made it.

    Args:
        method: its name on screen.
        gains: (r,), its singular values, the largest first; at least one.
    """
    values = torch.tensor(list(gains), dtype=torch.float64)
    return SpectrumTrace(
        f"merged ({method})", INK, gains, effective_rank(values), stable_rank=float(stable_rank(values))
    )


def spectrum_points(trace: SpectrumTrace, chosen: int | None = None) -> Points:
    """The points of one spectrum that are drawn.

    They include the first and the last feature, the marks, the ends of clusters, and `chosen` (from 0).
    """
    gains = np.asarray(trace.gains, dtype=np.float64)
    squares = gains**2
    energy = np.cumsum(squares) / max(float(squares.sum()), np.finfo(np.float64).tiny)
    ends = [place for start, stop in _clusters(trace) for place in (start, stop - 1)]
    keep = [*ends, *(rank - 1 for _, rank in _marks(trace)), *([] if chosen is None else [chosen])]
    features = points_to_draw(len(gains), keep)
    shown = gains[features]
    visible = np.where(shown > 0, shown, np.nan).astype(np.float32)
    return Points(features, visible, energy[features].astype(np.float32))


def spectra(
    tasks: Sequence[SpectrumTrace],
    merged: SpectrumTrace | None = None,
    selected: tuple[int, int] | None = None,
    stacked: bool = False,
) -> go.Figure:
    """Two panels: gains on a log axis, and cumulative energy, by feature from 1.

    Bands mark clusters of nearly equal gains. A gain of exactly zero has no place on a log axis and is not drawn. A
    click on a task's line reports (position in `tasks`, feature), both from 0, as customdata; a click on the merged
    line reports none.

    Args:
        tasks: their spectra.
        merged: the spectrum of the merged matrix, see `merged_trace`.
        selected: (position in `tasks`, feature) that gets a ring.
        stacked: whether one panel is below the other, for narrow columns.
    """
    drawn = [(index, task) for index, task in enumerate(tasks) if len(task.gains)]
    has_merged = merged is not None and len(merged.gains) > 0
    # plotly takes the legend's lines from the plot's height.
    total = (560 if stacked else 350) + 12 * (len(drawn) + has_merged)
    if not drawn:
        return make_message("spectra", "The tasks did not change this layer.", height=total)
    if not any(np.max(task.gains) > 0 for _, task in drawn):
        return make_message("spectra", "All gains of this layer are 0.", height=total)
    data: list[dict[str, Any]] = []
    ring: list[dict[str, Any]] = [_ring(_LEFT), _ring(_RIGHT)]
    for index, task in drawn:
        chosen = selected[1] if selected is not None and selected[0] == index else None
        points = spectrum_points(task, chosen)
        data += _task_traces(task, points, index)
        if chosen is not None and chosen in points.features:
            place = int(np.flatnonzero(points.features == chosen)[0])
            ring = [_ring(_LEFT, chosen + 1, points.gains[place]), _ring(_RIGHT, chosen + 1, points.energy[place])]
    if merged is not None and has_merged:
        line = {"line": {"color": INK, "width": 3.5}, "legendgroup": "merged"}
        data += _lines(merged, spectrum_points(merged), line)
    meta = {"tasks": [task.name for task in tasks], "selected": list(selected) if selected else None}
    return make_figure("spectra", [*data, *ring], _layout(stacked, _decades(drawn)), height=total, meta=meta)


def _decades(drawn: Sequence[tuple[int, SpectrumTrace]]) -> float:
    """The span of all positive gains in powers of ten."""
    gains = np.concatenate([np.asarray(task.gains, np.float64) for _, task in drawn])
    positive = gains[gains > 0]
    return float(np.log10(positive.max() / positive.min())) if positive.size else 0.0


def _layout(stacked: bool, decades: float) -> dict[str, Any]:
    x_domains = ([0, 1], [0, 1]) if stacked else ([0, 0.45], [0.56, 1])
    y_domains = ([0.58, 1], [0, 0.42]) if stacked else ([0, 1], [0, 1])
    features: dict[str, Any] = {"title": {"text": "feature (by gain)"}, "rangemode": "tozero"}
    return {
        "xaxis": {"domain": x_domains[0], "anchor": "y", **features},
        "xaxis2": {"domain": x_domains[1], "anchor": "y2", **features},
        "yaxis": {
            "domain": y_domains[0],
            "anchor": "x",
            "title": {"text": "gain"},
            "type": "log",
            "exponentformat": "power",
            # Over a short range there may be only one power of ten, so ticks are at doublings.
            **({"dtick": 1} if decades > 1.5 else {"dtick": math.log10(2), "tickformat": ".2g"}),
            # plotly.js writes powers of ten on a log axis 1.25 times as large as the size it is given.
            "tickfont": {"size": TICK_SIZE / 1.25},
        },
        "yaxis2": {
            "domain": y_domains[1],
            "anchor": "x2",
            "title": {"text": "cumulative energy"},
            "tickformat": ".0%",
            "range": [0, 1.04],
        },
        "legend": {"orientation": "h", "x": 0, "xanchor": "left", "y": 1.02, "yanchor": "bottom"},
        "hovermode": "closest",
    }


def _clusters(trace: SpectrumTrace) -> list[tuple[int, int]]:
    found = [(start, stop) for start, stop in trace.clusters if 0 <= start < stop <= len(trace.gains)]
    return sorted(found)[:MOST_CLUSTERS]


def _marks(trace: SpectrumTrace) -> list[tuple[float, int]]:
    return [(share, rank) for share, rank in sorted(trace.ranks_for_energy.items()) if 1 <= rank <= len(trace.gains)]


def _task_traces(task: SpectrumTrace, points: Points, index: int) -> list[dict[str, Any]]:
    # Grouped by position, because two tasks may have the same name.
    group = {"legendgroup": f"task-{index}"}
    line = {
        **group,
        "customdata": _counts(np.stack([np.full_like(points.features, index), points.features], axis=1)),
        "line": {"color": task.colour, "width": 2, "dash": DASHES[index % len(DASHES)]},
    }
    traces = _lines(task, points, line)
    clusters = _clusters(task)
    if clusters:
        traces.insert(0, {**_LEFT, **group, **_bands(clusters, points, task.colour)})
    marks = _marks(task)
    if marks:
        at = np.searchsorted(points.features, [rank - 1 for _, rank in marks])
        for values, axes in ((points.gains, _LEFT), (points.energy, _RIGHT)):
            traces.append({**axes, **group, **_mark_trace(task, index, marks, values[at])})
    return traces


def _lines(trace: SpectrumTrace, points: Points, line: Mapping[str, Any]) -> list[dict[str, Any]]:
    """One spectrum in both panels."""
    name = plot_text(trace.name)
    # Zeros have no place on a log axis, so the legend says it.
    is_zero = not np.max(trace.gains) > 0
    ranks = "all gains 0" if is_zero else f"effective rank {trace.effective_rank:.1f}"
    if trace.stable_rank is not None and not is_zero:
        ranks += f", stable {trace.stable_rank:.1f}"
    # Texts for ranges of x, read by the keyboard and the CSV export. A text at every point would slow redraws down.
    clusters = [
        [start + 1, stop, f"nearly equal gains: features {start + 1} to {stop}"] for start, stop in _clusters(trace)
    ]
    shares = [[rank, rank, f"{rank} features hold {share:.0%}"] for share, rank in _marks(trace)]
    common = {"type": "scatter", "mode": "lines", "x": _counts(points.features + 1), **line}
    return [
        {
            **common,
            **_LEFT,
            "y": points.gains,
            "name": f"{plot_text(trace.name, 32)} · {ranks}",
            "meta": {"series": name, "spans": clusters},
            "hovertemplate": f"<b>{name}</b><br>feature %{{x}}<br>gain %{{y:.4g}}<extra></extra>",
        },
        {
            **common,
            **_RIGHT,
            "y": points.energy,
            "name": name,
            "meta": {"spans": shares},
            "showlegend": False,
            "hovertemplate": f"<b>{name}</b><br>first %{{x}} features<br>%{{y:.1%}} of the energy<extra></extra>",
        },
    ]


# The keyboard and the CSV export skip these traces, because the line has points at the same places.
_AID: dict[str, Any] = {"type": "scatter", "showlegend": False, "meta": {"aid": True}}


def _bands(clusters: Sequence[tuple[int, int]], points: Points, colour: str) -> dict[str, Any]:
    """A broad pale line under each cluster, with a gap after it."""
    x: list[int | None] = []
    y: list[float | None] = []
    for start, stop in clusters:
        inside = (points.features >= start) & (points.features < stop) & ~np.isnan(points.gains)
        x += [*(points.features[inside] + 1).tolist(), None]
        y += [*points.gains[inside].tolist(), None]
    line = {"color": rgba(colour, 0.3), "width": 10}
    return {**_AID, "mode": "lines", "x": x, "y": y, "line": line, "hoverinfo": "skip"}


def _mark_trace(
    task: SpectrumTrace, index: int, marks: Sequence[tuple[float, int]], y: NDArray[np.float32]
) -> dict[str, Any]:
    return {
        **_AID,
        "mode": "markers",
        "x": [rank for _, rank in marks],
        "y": [None if np.isnan(value) else value for value in y.tolist()],
        "customdata": [[index, rank - 1] for _, rank in marks],
        "text": [f"{share:.0%} of the energy" for share, _ in marks],
        "hovertemplate": f"<b>{plot_text(task.name)}</b><br>%{{x}} features hold %{{text}}<extra></extra>",
        "marker": {
            "color": SURFACE,
            "size": 8,
            "symbol": [_SHAPES[place % len(_SHAPES)] for place in range(len(marks))],
            "line": {"color": task.colour, "width": 2},
        },
    }


def _ring(axes: Mapping[str, Any], x: int | None = None, y: float | None = None) -> dict[str, Any]:
    """The ring around the selected point. Without one it is hidden until the browser moves it to a clicked point."""
    return {
        **_AID,
        **axes,
        "mode": "markers",
        "cliponaxis": False,
        "x": [x],
        "y": [None if y is None or np.isnan(y) else float(y)],
        "meta": {"aid": True, "ring": True},
        "hoverinfo": "skip",
        "marker": {"color": INK, "size": 15, "symbol": "circle-open", "line": {"width": 2.5}},
    }


def _counts(values: NDArray[np.int64]) -> NDArray[Any]:
    """Integers in as few bytes as they need, because many of them are sent at every redraw."""
    return values.astype(np.uint16 if values.size and values.max() < 2**16 else np.int32)
