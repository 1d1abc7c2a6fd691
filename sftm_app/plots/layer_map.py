"""The map of the model: which layer and module a measure is large in."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import plotly.graph_objects as go
from numpy.typing import NDArray

from sftm_app.plots.style import INK, SEQUENTIAL, make_figure, make_message, plain, ticks


def layer_map(
    values: Sequence[Sequence[float | None]],
    rows: Sequence[str],
    columns: Sequence[str],
    measure: str,
    selected: tuple[int, int] | None = None,
    customdata: Sequence[Sequence[str | None]] | None = None,
    zmax: float | None = None,
) -> go.Figure:
    """Heatmap, rows from top to bottom; `None` or NaN leaves a cell blank.

    values: len(rows) x len(columns). measure: what the colour means, also the colour bar's title. selected: (row,
    column) to outline. customdata: the tensor's name for each cell; a click reports x = column, y = row and this name.
    """
    grid = np.array([[np.nan if v is None else v for v in row] for row in values], dtype=np.float32)
    grid[~np.isfinite(grid)] = np.nan
    if grid.shape != (len(rows), len(columns)):
        raise ValueError(f"layer_map: values are {grid.shape}, expected ({len(rows)}, {len(columns)}).")
    height = int(np.clip(110 + 24 * len(rows), 240, 760))
    meta = {"selected": list(selected) if selected else None, "missing": int(np.isnan(grid).sum())}
    if grid.size == 0 or np.isnan(grid).all():
        return make_message("layer-map", "No layer has a value for this measure.", height=height, meta=meta)

    names = customdata or [[None] * len(columns) for _ in rows]
    trace = {
        "type": "heatmap",
        "z": grid,
        "zmin": min(0.0, float(np.nanmin(grid))),
        "zmax": zmax if zmax is not None else max(float(np.nanmax(grid)), 1e-12),
        "customdata": [list(row) for row in names],
        "text": _hover(grid, rows, columns, names, measure),
        "hovertemplate": "%{text}<extra></extra>",
        "hoverongaps": False,
        "colorscale": [list(stop) for stop in SEQUENTIAL],
        "colorbar": {"title": {"text": plain(measure)}, "exponentformat": "power"},
        "xgap": 2,
        "ygap": 2 if len(rows) <= 48 else 0.5,
    }
    layout = {
        "xaxis": {"side": "top", "showgrid": False, "tickangle": -35, **ticks(columns, 24)},
        "yaxis": {"autorange": "reversed", "showgrid": False, **ticks(rows, 32)},
        "dragmode": False,
        "shapes": [cell_outline(*selected)] if selected is not None else [],
    }
    return make_figure("layer-map", [trace], layout, height=height, meta=meta)


def cell_outline(row: int, column: int) -> dict[str, Any]:
    """A plotly shape: the frame around one cell of a heatmap whose axes count from 0."""
    return {
        "type": "rect",
        "x0": column - 0.5,
        "x1": column + 0.5,
        "y0": row - 0.5,
        "y1": row + 0.5,
        "line": {"color": INK, "width": 2.5},
        "fillcolor": "rgba(0,0,0,0)",
    }


def _hover(
    grid: NDArray[np.float32],
    rows: Sequence[str],
    columns: Sequence[str],
    names: Sequence[Sequence[str | None]],
    measure: str,
) -> list[list[str]]:
    # Built as text here because the axes are numeric: a tick label is cut, and only some of them are shown.
    across, shown = [plain(column) for column in columns], plain(measure)
    return [
        [
            f"<b>{row} · {column}</b><br>{shown} {value:.4g}" + (f"<br>{plain(name, 120)}" if name else "")
            for column, name, value in zip(across, tensors, values, strict=True)
        ]
        for row, tensors, values in zip(map(plain, rows), names, grid.tolist(), strict=True)
    ]
