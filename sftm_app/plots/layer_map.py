"""The map of the model: a measure by layer and module."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import plotly.graph_objects as go
from numpy.typing import NDArray

from sftm_app.plots.style import INK, SEQUENTIAL, SURFACE, ZERO_EVERYWHERE, make_figure, make_message, plot_text, ticks

_MARGIN = 110
_LABEL_HEIGHT = 14


def layer_map(
    values: Sequence[Sequence[float | None]],
    rows: Sequence[str],
    columns: Sequence[str],
    measure: str,
    selected: tuple[int, int] | None = None,
    customdata: Sequence[Sequence[str | None]] | None = None,
    zmax: float | None = None,
    log: bool = False,
    number: str = ".4g",
    empty: str = "No layer has a value for this measure.",
) -> go.Figure:
    """A heatmap, with rows from top to bottom. A click reports x = column, y = row and the tensor's name.

    Args:
        values: len(rows) x len(columns). None, NaN and infinity leave a cell blank.
        rows, columns: their labels.
        measure: what the values are; also the title of the colour bar.
        selected: (row, column) of the cell to outline.
        customdata: the tensor's name for each cell.
        zmax: the value of the strongest colour; the largest value by default.
        log: whether colours follow powers of ten, for positive values that span decades.
        number: how a value is written, such as ".4g", ".1%" or ".0f".
        empty: the sentence to show if no cell has a value.

    Raises:
        ValueError: `values` has another shape.
    """
    grid = np.array([[np.nan if v is None else v for v in row] for row in values], dtype=np.float64)
    grid[~np.isfinite(grid)] = np.nan
    if grid.shape != (len(rows), len(columns)):
        raise ValueError(f"layer_map: values are {grid.shape}, expected ({len(rows)}, {len(columns)}).")
    height = int(np.clip(_MARGIN + 24 * len(rows), 190, 900))
    meta = {"selected": list(selected) if selected else None, "missing": int(np.isnan(grid).sum())}
    if grid.size == 0 or np.isnan(grid).all():
        return make_message("layer-map", plot_text(empty, 200), height=height, meta=meta)

    # Nothing but zeros has no powers of ten, and colours that say nothing.
    only_zeros = not np.nanmax(np.abs(grid))
    n_named = 6 if len(rows) >= 6 else 3
    names = customdata or [[None] * len(columns) for _ in rows]
    trace = {
        "type": "heatmap",
        **(
            _log_colours(grid, zmax, number, n_named)
            if log and not only_zeros
            else _colours(grid, zmax, number, n_named)
        ),
        "customdata": [list(row) for row in names],
        "text": _hover(grid, rows, columns, names, measure, number),
        "hovertemplate": "%{text}<extra></extra>",
        "hoverongaps": False,
        "colorscale": [list(stop) for stop in SEQUENTIAL],
        "xgap": 2,
        "ygap": 2 if len(rows) <= 48 else 0.5,
    }
    trace["colorbar"]["title"] = {"text": plot_text(measure), "side": "right" if len(rows) >= 6 else "top"}
    labels_that_fit = (height - _MARGIN) // _LABEL_HEIGHT
    layout = {
        "xaxis": {"side": "top", "showgrid": False, "tickangle": -35, **ticks(columns, 24)},
        "yaxis": {"autorange": "reversed", "showgrid": False, **ticks(rows, max(labels_that_fit, 1))},
        "dragmode": False,
        "shapes": cell_outline(*selected) if selected is not None else [],
        **(ZERO_EVERYWHERE if only_zeros else {}),
    }
    return make_figure("layer-map", [trace], layout, height=height, meta=meta)


def log_scale(
    grid: NDArray[np.float64], highest: float | None = None
) -> tuple[NDArray[np.float32], tuple[float, float]]:
    """A grid of values on a logarithmic scale.

    Args:
        grid: the values. Those at or below 0 count as the smallest positive one; NaN stays.
        highest: the value at the upper end; the largest one by default.

    Returns:
        The powers of ten, float32, and the range of powers to colour.
    """
    positive = grid[grid > 0]
    low = float(positive.min()) if positive.size else 1.0
    high = max(highest or (float(positive.max()) if positive.size else low), low * (1 + 1e-6))
    powers = np.log10(np.maximum(grid, low)).astype(np.float32)
    return powers, (math.log10(low), math.log10(high))


def log_ticks(low: float, high: float, most: int = 6) -> tuple[float, ...]:
    """Round values for a logarithmic axis from `low` to `high`, at most `most` of them.

    Returns:
        1, 2 and 5 of each decade, or powers of ten if those are too many; the ends of the range if it holds fewer than
        two round values.
    """
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    fine = [step * 10.0**power for power in decades for step in (1, 2, 5)]
    inside = [value for value in fine if low * (1 - 1e-9) <= value <= high * (1 + 1e-9)]
    if len(inside) < 2:
        return (low, high)
    if len(inside) <= most:
        return tuple(inside)
    whole = [10.0**power for power in decades if low * (1 - 1e-9) <= 10.0**power <= high * (1 + 1e-9)]
    if len(whole) < 2:
        return tuple(inside[:: -(-len(inside) // most)])
    return tuple(whole[:: -(-len(whole) // most)])


def cell_outline(row: int, column: int) -> list[dict[str, Any]]:
    """A frame around one cell of a heatmap whose axes count from 0: dark on light, so that it shows on any colour."""
    place = {"type": "rect", "x0": column - 0.5, "x1": column + 0.5, "y0": row - 0.5, "y1": row + 0.5}
    lines = ({"color": SURFACE, "width": 6}, {"color": INK, "width": 2.5})
    return [{**place, "line": line, "fillcolor": "rgba(0,0,0,0)"} for line in lines]


def _colours(grid: NDArray[np.float64], zmax: float | None, number: str, n_named: int) -> dict[str, Any]:
    # "~" drops trailing zeros. Callers cannot ask for it, because Python's format does not know it.
    shape = {"tickformat": f"{number[:-1]}~%"} if number.endswith("%") else {"exponentformat": "power"}
    return {
        "z": grid.astype(np.float32),
        "zmin": min(0.0, float(np.nanmin(grid))),
        "zmax": zmax if zmax is not None else float(np.nanmax(grid)) or 1.0,
        "colorbar": {"nticks": n_named, **shape},
    }


def _log_colours(grid: NDArray[np.float64], zmax: float | None, number: str, n_named: int) -> dict[str, Any]:
    powers, (lowest, highest) = log_scale(grid, zmax)
    named = log_ticks(10**lowest, 10**highest, n_named)
    texts = [format(value, number) if number.endswith("%") else _short(value) for value in named]
    real = [[None if math.isnan(value) else value for value in row] for row in grid.tolist()]
    return {
        "z": powers,
        "zmin": lowest,
        "zmax": highest,
        # The CSV export holds these in place of the powers.
        "meta": {"values": real},
        "colorbar": {"tickmode": "array", "tickvals": [math.log10(value) for value in named], "ticktext": texts},
    }


def _short(value: float) -> str:
    if 1e-3 <= value < 1e4:
        return f"{float(f'{value:.3g}'):g}"
    mantissa, power = f"{value:.2e}".split("e")
    times = "" if float(mantissa) == 1 else f"{float(mantissa):g}×"
    return f"{times}10<sup>{int(power)}</sup>"


def _hover(
    grid: NDArray[np.float64],
    rows: Sequence[str],
    columns: Sequence[str],
    names: Sequence[Sequence[str | None]],
    measure: str,
    number: str,
) -> list[list[str]]:
    # The axes are numeric, and their labels are cut or left out, so the hover text names row and column itself.
    across, shown = [plot_text(column) for column in columns], plot_text(measure)
    return [
        [
            f"<b>{row} · {column}</b><br>{shown} {'no value' if math.isnan(value) else format(value, number)}"
            + (f"<br>{plot_text(name, 120)}" if name else "")
            for column, name, value in zip(across, tensors, values, strict=True)
        ]
        for row, tensors, values in zip(map(plot_text, rows), names, grid.tolist(), strict=True)
    ]
