"""Overlap of the singular features of two tasks, feature by feature, and of all tasks, pair by pair."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import plotly.graph_objects as go
from numpy.typing import ArrayLike, NDArray

from sftm_app.plots.layer_map import cell_outline
from sftm_app.plots.reduce import reduce_matrix
from sftm_app.plots.style import (
    DIVERGING,
    INK,
    SEQUENTIAL,
    ZERO_EVERYWHERE,
    make_figure,
    make_message,
    plot_text,
    ticks,
)

_TITLES = {
    "read": ("Read overlap", "|cos|"),
    "write": ("Write overlap", "|cos|"),
    "both": ("Interference A (read × write)", "cos · cos"),
}


def overlap_heatmap(
    matrix: ArrayLike,
    first: str,
    second: str,
    kind: Literal["read", "write", "both"],
    random_level: float,
    selected: tuple[int, int] | None = None,
    height: int = 380,
) -> go.Figure:
    """A heatmap of the features of two tasks, counted from 1.

    A click reports y = feature of `first` and x = feature of `second`; on a reduced matrix those of the entry that the
    cell shows.

    Args:
        matrix: for "read" and "write" the |cos| of directions, 0..1; for "both" the entries of A, -1..1, whose sign
            tells whether the features support or oppose each other.
        first, second: the tasks of the rows and of the columns.
        kind: what the entries are.
        random_level: the mean magnitude of an entry between random directions, given in the subtitle.
        selected: (feature of `first`, feature of `second`) to outline.
        height: in pixels.
    """
    reduced = reduce_matrix(matrix)
    grid, down, across = reduced.cells, reduced.down, reduced.across
    title, measure = _TITLES[kind]
    subtitle = f"random directions: {'±' if kind == 'both' else ''}{random_level:.3g} on average"
    if reduced.is_smaller:
        subtitle += f" · cell: strongest of {down} × {across}"
    name = f"overlap-{kind}"
    meta = {"kind": kind, "random_level": random_level, "block": [down, across], "selected": selected}
    if grid.size == 0 or not np.isfinite(grid).any():
        return make_message(name, "One of the two tasks did not change this layer.", title, subtitle, height, meta)
    pair = f"{plot_text(first)}, {_counted('y', down)}<br>{plot_text(second)}, {_counted('x', across)}"
    trace = {
        "type": "heatmap",
        "z": grid,
        "x0": 1,
        "dx": across,
        "y0": 1,
        "dy": down,
        **_colours(grid, kind == "both", 4 * random_level),
        "colorbar": {"title": {"text": measure}},
        "hovertemplate": f"{pair}<br><b>%{{z:.3g}}</b><extra></extra>",
        "hoverongaps": False,
    }
    if reduced.is_smaller:
        # With these the widget reports the features of the entry that a clicked cell shows.
        trace |= {"customdata": reduced.within, "meta": {"block": [down, across]}}
    layout = {
        "xaxis": {"title": {"text": f"features of {plot_text(second, 40)}"}, **_feature_axis(grid.shape[1])},
        "yaxis": {
            "title": {"text": f"features of {plot_text(first, 40)}"},
            "autorange": "reversed",
            **_feature_axis(grid.shape[0]),
        },
        "dragmode": "zoom",
        "shapes": [_block_outline(selected, down, across, grid.shape)] if selected is not None else [],
        **_zeros(grid),
    }
    return make_figure(name, [trace], layout, title, subtitle, height, meta)


def task_overlap(
    matrix: ArrayLike,
    names: Sequence[str],
    measure: str = "overlap",
    selected: tuple[int, int] | None = None,
    title: str = "",
    signed: bool = False,
) -> go.Figure:
    """A heatmap of tasks against tasks. A click reports x and y as task positions from 0.

    Args:
        matrix: one number for each pair of tasks; NaN leaves a cell blank.
        names: the tasks.
        measure: what the numbers are, such as "read overlap".
        selected: (row, column) of the cell to outline.
        title: plotly text.
        signed: whether the numbers may be negative; the colours then diverge from zero.

    Raises:
        ValueError: `matrix` is not tasks x tasks.
    """
    grid = np.asarray(matrix, dtype=np.float32)
    if grid.shape != (len(names), len(names)):
        raise ValueError(f"task_overlap: the matrix is {grid.shape}, expected ({len(names)}, {len(names)}).")
    height = int(np.clip(150 + 36 * len(names), 260, 620))
    meta = {"selected": list(selected) if selected else None}
    if not np.isfinite(grid).any():
        text = "This plot needs at least two tasks that changed this layer."
        return make_message("task-overlap", text, title, height=height, meta=meta)
    shown, what = [plot_text(name) for name in names], plot_text(measure)
    trace = {
        "type": "heatmap",
        "z": grid,
        **_colours(grid, signed, 1e-6),
        "text": [[f"{a} and {b}<br><b>{what}</b>" for b in shown] for a in shown],
        # Two decimals would show small numbers as 0.00.
        "texttemplate": None if len(names) > 12 else "%{z:.2f}" if np.nanmax(np.abs(grid)) >= 0.1 else "%{z:.2g}",
        "hovertemplate": "%{text} %{z:.3f}<extra></extra>",
        "hoverongaps": False,
        "colorbar": {"title": {"text": what}},
        "xgap": 2,
        "ygap": 2,
    }
    labels = ticks(names, limit=20)
    layout = {
        "xaxis": {"autotickangles": [0, -35, -90], "showgrid": False, **labels},
        "yaxis": {"autorange": "reversed", "showgrid": False, **labels},
        "dragmode": False,
        "shapes": cell_outline(*selected) if selected is not None else [],
        **({} if trace["texttemplate"] else _zeros(grid)),
    }
    return make_figure("task-overlap", [trace], layout, title, height=height, meta=meta)


def _zeros(grid: NDArray[np.float32]) -> dict[str, Any]:
    return {} if np.nanmax(np.abs(grid)) else ZERO_EVERYWHERE


def _colours(grid: NDArray[np.float32], signed: bool, at_least: float) -> dict[str, Any]:
    """The colour scale of a heatmap: from 0, or symmetric about 0, to at least `at_least`."""
    end = max(float(np.nanmax(np.abs(grid))), at_least, 1e-6)
    scale = DIVERGING if signed else SEQUENTIAL
    return {"zmin": -end if signed else 0, "zmax": end, "colorscale": [list(stop) for stop in scale]}


def _counted(letter: str, block: int) -> str:
    return f"feature %{{{letter}}}" if block == 1 else f"{block} features from %{{{letter}}}"


def _feature_axis(size: int) -> dict[str, Any]:
    # Without this, ticks between a few features would be halves.
    return {"showgrid": False, **({"dtick": 1} if size <= 10 else {})}


def _block_outline(selected: tuple[int, int], down: int, across: int, cells: tuple[int, ...]) -> dict[str, Any]:
    row, column = selected
    top, left = 1 + (row - 1) // down * down - down / 2, 1 + (column - 1) // across * across - across / 2
    # A frame on a small cell would hide it, so it is drawn around the cell.
    apart = [0.006 * cells[0] * down, 0.006 * cells[1] * across]
    return {
        "type": "rect",
        "x0": left - apart[1],
        "x1": left + across + apart[1],
        "y0": top - apart[0],
        "y1": top + down + apart[0],
        "line": {"color": INK, "width": 2},
    }
