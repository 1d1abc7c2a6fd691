"""The map of the model: layers down, modules across, coloured by a measure."""

from __future__ import annotations

import math
import re
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from sftm_app.errors import NumericalError
from sftm_app.inspection.layers import MapLayer, kind_labels, map_layers, short_rows
from sftm_app.inspection.measures import MEASURES
from sftm_app.methods.settings import MergeSettings
from sftm_app.plots.layer_map import layer_map
from sftm_app.preflight.preflight import Preflight
from sftm_app.ui.studio import Studio
from sftm_app.ui.view import FIRST_MEASURE, settings_title
from sftm_app.ui.widgets.html import Safe, code, hint, join, notice, stack

# The map is redrawn this often while it fills; what is known already is drawn at once.
SECONDS_PER_STEP = 0.3
FILLING, NO_VALUE = "The first layers are being measured.", "No layer has a value for this measure."
LEAST_ERROR = 0.01
# Beyond so many columns the experts of a layer share one.
MOST_COLUMNS = 64
_EXPERT = re.compile(r"\bexperts?[. ]\d+\b")


@dataclass(frozen=True)
class Grid:
    """Where each layer stands on the map."""

    layers: tuple[MapLayer, ...]
    rows: tuple[str, ...]
    columns: tuple[str, ...]

    def position(self, layer: MapLayer) -> tuple[int, int]:
        column = layer.column if layer.column in self.columns else _folded(layer.column)
        return self.rows.index(layer.row), self.columns.index(column)


def make_grid(found: Preflight) -> Grid:
    """Rows are blocks, columns modules, both in the order of the model; many experts are folded into one column."""
    layers = map_layers(found)
    columns = tuple(dict.fromkeys(layer.column for layer in layers))
    if len(columns) > MOST_COLUMNS:
        columns = tuple(dict.fromkeys(map(_folded, columns)))
    return Grid(layers, tuple(dict.fromkeys(layer.row for layer in layers)), columns)


def _folded(column: str) -> str:
    return _EXPERT.sub("experts", column)


def map_steps(
    studio: Studio, found: Preflight, measure: str, about: str, settings: MergeSettings, chosen: str | None
) -> Iterator[tuple[Any, list[str]]]:
    """The map, redrawn while layer after layer is measured; and why layers stay blank.

    about: the name of the task whose values are shown; any other text shows those of all tasks together.
    """
    grid = make_grid(found)
    names = [task.name for task in found.tasks]
    task = names.index(about) if about in names else None
    cells: dict[tuple[int, int], list[float]] = {}
    titles: list[list[str | None]] = [[None] * len(grid.columns) for _ in grid.rows]
    for layer in reversed(grid.layers):
        row, column = grid.position(layer)
        titles[row][column] = layer.name
    selected = next((grid.position(layer) for layer in grid.layers if layer.name == chosen), None)
    shown = MEASURES[measure]
    title = f"{shown.title}, {about}" if task is not None else shown.title
    rows = [f"layer {row}" if row.isdigit() else row for row in short_rows(grid.rows)]
    columns = kind_labels(grid.columns)
    problems: list[str] = []
    drawn_at = time.monotonic()
    for layer in grid.layers:
        try:
            value = studio.inspector.value(found, layer, measure, settings)
            one = value.overall if task is None else _of_task(layer, value.tasks, task)
            if one is not None and math.isfinite(one):
                cells.setdefault(grid.position(layer), []).append(one)
        except NumericalError as error:
            problems.append(str(error))
        last = layer is grid.layers[-1]
        if last or time.monotonic() - drawn_at > SECONDS_PER_STEP:
            values = [[_mean(cells.get((i, j))) for j in range(len(columns))] for i in range(len(rows))]
            empty = NO_VALUE if last else FILLING
            # An error that is nothing anywhere should not look like a pattern.
            largest = max((max(found) for found in cells.values()), default=0.0)
            top = LEAST_ERROR if measure.endswith("_error") and largest < LEAST_ERROR else None
            figure = layer_map(values, rows, columns, title, selected, titles, top, shown.log, shown.number, empty)
            yield figure, problems
            drawn_at = time.monotonic()


def _mean(values: list[float] | None) -> float | None:
    """Of the layers in one cell: one, or a block's experts."""
    return sum(values) / len(values) if values else None


def _of_task(layer: MapLayer, values: tuple[float, ...], task: int) -> float | None:
    return values[layer.members.index(task)] if task in layer.members else None


def measure_help(measure: str, settings: MergeSettings, problems: list[str] | None = None) -> Safe:
    """What the colours mean, and why layers stay blank."""
    shown = MEASURES[measure]
    of = join([" Of: ", code(settings_title(settings)), "."]) if shown.of_method else ""
    said = hint(join([code(shown.title), " ", shown.help, of]))
    return stack(said, notice("error", "Some layers cannot be measured", items=problems)) if problems else said


def known_measure(measure: str | None) -> str:
    """The measure of this name, or the first one for a name from elsewhere."""
    return measure if measure in MEASURES else FIRST_MEASURE
