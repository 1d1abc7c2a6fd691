"""Overlap of two tasks' singular features, feature by feature, and of all tasks, pair by pair."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import plotly.graph_objects as go
from numpy.typing import ArrayLike, NDArray

from sftm_app.plots.layer_map import cell_outline
from sftm_app.plots.style import INK, SEQUENTIAL, make_figure, make_message, plain, ticks

MOST_CELLS = 512
_TITLES = {
    "read": "Read overlap",
    "write": "Write overlap",
    "both": "Interference (read × write)",
}


def reduce_matrix(matrix: ArrayLike, most: int = MOST_CELLS) -> tuple[NDArray[np.float32], int, int]:
    """Max-pool a matrix (rows x columns) to at most `most` cells a side, as float32 with four significant digits.

    Returns the matrix and how many rows and columns each cell stands for. The largest entry survives; NaN is ignored
    where a block holds a number.
    """
    full = np.asarray(matrix, dtype=np.float32)
    if full.ndim != 2:
        raise ValueError(f"reduce_matrix: expected a matrix, found {full.ndim} dimensions.")
    if full.size == 0:
        return full, 1, 1
    down, across = (-(-size // most) for size in full.shape)
    if down > 1 or across > 1:
        padding = [(0, -full.shape[0] % down), (0, -full.shape[1] % across)]
        padded = np.pad(full, padding, constant_values=np.nan)
        blocks = padded.reshape(padded.shape[0] // down, down, padded.shape[1] // across, across)
        full = np.fmax.reduce(np.fmax.reduce(blocks, axis=3), axis=1)
    return np.round(full, 4), down, across


def overlap_heatmap(
    matrix: ArrayLike,
    first: str,
    second: str,
    kind: Literal["read", "write", "both"],
    random_level: float,
    selected: tuple[int, int] | None = None,
    height: int = 380,
) -> go.Figure:
    """Features of `first` (rows) against features of `second` (columns), values 0..1, both counted from 1.

    random_level: mean |cos| (for "both", of the product) between random directions of this size, named in the title.
    selected: features (row, column), counted from 1. A click reports y = feature of `first`, x = feature of `second`;
    on a reduced matrix that is the first feature of the cell's block.
    """
    grid, down, across = reduce_matrix(matrix)
    subtitle = f"random directions: {random_level:.3g}"
    if down > 1 or across > 1:
        subtitle += f" · cell: largest of {down} × {across}"
    name, title = f"overlap-{kind}", _TITLES[kind]
    meta = {"kind": kind, "random_level": random_level, "block": [down, across], "selected": selected}
    if grid.size == 0 or not np.isfinite(grid).any():
        return make_message(name, "One of the two tasks did not change this layer.", title, subtitle, height, meta)
    a, b = plain(first), plain(second)
    trace = {
        "type": "heatmap",
        "z": grid,
        "x0": 1,
        "dx": across,
        "y0": 1,
        "dy": down,
        "zmin": 0,
        "zmax": max(float(np.nanmax(grid)), 4 * random_level, 1e-6),
        "colorscale": [list(stop) for stop in SEQUENTIAL],
        "colorbar": {"title": {"text": "|cos|" if kind != "both" else "|cos · cos|"}},
        "hovertemplate": f"{a}, feature %{{y}}<br>{b}, feature %{{x}}<br><b>%{{z:.3f}}</b><extra></extra>",
        "hoverongaps": False,
    }
    layout = {
        "xaxis": {"title": {"text": f"features of {b}"}, "showgrid": False},
        "yaxis": {"title": {"text": f"features of {a}"}, "showgrid": False, "autorange": "reversed"},
        "dragmode": "zoom",
        "shapes": [_block_outline(selected, down, across, grid.shape)] if selected is not None else [],
    }
    return make_figure(name, [trace], layout, title, subtitle, height, meta)


def task_overlap(
    matrix: ArrayLike,
    names: Sequence[str],
    measure: str = "overlap",
    selected: tuple[int, int] | None = None,
    title: str = "",
) -> go.Figure:
    """Tasks against tasks, one number a cell (NaN leaves it blank). A click reports x and y as task indices from 0."""
    grid = np.asarray(matrix, dtype=np.float32)
    if grid.shape != (len(names), len(names)):
        raise ValueError(f"task_overlap: the matrix is {grid.shape}, expected ({len(names)}, {len(names)}).")
    height = int(np.clip(150 + 36 * len(names), 260, 620))
    meta = {"selected": list(selected) if selected else None}
    if not np.isfinite(grid).any():
        text = "At least two tasks that changed this layer are needed."
        return make_message("task-overlap", text, title, height=height, meta=meta)
    shown, what = [plain(name) for name in names], plain(measure)
    trace = {
        "type": "heatmap",
        "z": np.round(grid, 4),
        "zmin": 0,
        "zmax": max(float(np.nanmax(grid)), 1e-6),
        "text": [[f"{a} and {b}<br><b>{what}</b>" for b in shown] for a in shown],
        "texttemplate": "%{z:.2f}" if len(names) <= 12 else None,
        "hovertemplate": "%{text} %{z:.3f}<extra></extra>",
        "hoverongaps": False,
        "colorscale": [list(stop) for stop in SEQUENTIAL],
        "colorbar": {"title": {"text": what}},
        "xgap": 2,
        "ygap": 2,
    }
    labels = ticks(names, limit=20)
    layout = {
        "xaxis": {"autotickangles": [0, -35, -90], "showgrid": False, **labels},
        "yaxis": {"autorange": "reversed", "showgrid": False, **labels},
        "dragmode": False,
        "shapes": [cell_outline(*selected)] if selected is not None else [],
    }
    return make_figure("task-overlap", [trace], layout, title, height=height, meta=meta)


def _block_outline(selected: tuple[int, int], down: int, across: int, cells: tuple[int, ...]) -> dict[str, Any]:
    row, column = selected
    top, left = 1 + (row - 1) // down * down - down / 2, 1 + (column - 1) // across * across - across / 2
    # Small cells get a frame around them, not upon them.
    apart = [0.006 * cells[0] * down, 0.006 * cells[1] * across]
    return {
        "type": "rect",
        "x0": left - apart[1],
        "x1": left + across + apart[1],
        "y0": top - apart[0],
        "y1": top + down + apart[0],
        "line": {"color": INK, "width": 2},
    }
