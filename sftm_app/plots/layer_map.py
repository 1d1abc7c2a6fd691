"""The map of the model: which layer and module a measure is large in."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import plotly.graph_objects as go

from sftm_app.plots.style import INK, SEQUENTIAL, message, plain, style, ticks


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
    figure = go.Figure()
    if grid.size == 0 or np.isnan(grid).all():
        return message(style(figure, "layer-map", height=height, meta=meta), "No layer has a value for this measure.")

    names = customdata or [[None] * len(columns) for _ in rows]
    # Built as text here because the axes are numeric: a tick label is cut, and only some of them are shown.
    hover = [
        [_hover(rows[r], columns[c], names[r][c], measure, float(grid[r, c])) for c in range(len(columns))]
        for r in range(len(rows))
    ]
    low = float(np.nanmin(grid))
    figure.add_trace(
        go.Heatmap(
            z=grid,
            zmin=min(0.0, low),
            zmax=zmax if zmax is not None else max(float(np.nanmax(grid)), 1e-12),
            customdata=[list(row) for row in names],
            text=hover,
            hovertemplate="%{text}<extra></extra>",
            hoverongaps=False,
            colorscale=[list(stop) for stop in SEQUENTIAL],
            colorbar={"title": {"text": plain(measure)}, "exponentformat": "power"},
            xgap=2,
            ygap=2 if len(rows) <= 48 else 0.5,
        )
    )
    style(figure, "layer-map", height=height, meta=meta)
    figure.update_xaxes(side="top", showgrid=False, tickangle=-35, **ticks(columns, 24))
    figure.update_yaxes(autorange="reversed", showgrid=False, **ticks(rows, 32))
    figure.update_layout(dragmode=False)
    if selected is not None:
        outline_cell(figure, *selected)
    return figure


def outline_cell(figure: go.Figure, row: int, column: int) -> None:
    """Draw a frame around one cell of a heatmap whose axes count from 0."""
    figure.add_shape(
        type="rect",
        x0=column - 0.5,
        x1=column + 0.5,
        y0=row - 0.5,
        y1=row + 0.5,
        line={"color": INK, "width": 2.5},
        fillcolor="rgba(0,0,0,0)",
    )


def _hover(row: str, column: str, name: str | None, measure: str, value: float) -> str:
    place = f"<b>{plain(row)} · {plain(column)}</b><br>{plain(measure)} {value:.4g}"
    return f"{place}<br>{plain(name, 120)}" if name else place
