"""The map of the model: layers down, modules across, coloured by a measure."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from sftm_app.checkpoints.compatibility import Preflight
from sftm_app.errors import NumericalError
from sftm_app.inspection.layers import MapLayer, kind_labels, map_layers, short_rows
from sftm_app.inspection.measures import MEASURES
from sftm_app.inspection.what_if import MergeSettings
from sftm_app.plots.layer_map import layer_map
from sftm_app.ui.studio import Studio
from sftm_app.ui.view import FIRST_MEASURE, settings_title
from sftm_app.ui.widgets.html import Safe, code, hint, join, notice, stack

# The map is redrawn after this many layers while it fills: often enough to be seen, rarely enough to be cheap.
LAYERS_PER_STEP = 4


@dataclass(frozen=True)
class Grid:
    """Where each layer stands on the map."""

    layers: tuple[MapLayer, ...]
    rows: tuple[str, ...]
    columns: tuple[str, ...]

    def position(self, layer: MapLayer) -> tuple[int, int]:
        return self.rows.index(layer.row), self.columns.index(layer.column)


def make_grid(found: Preflight) -> Grid:
    """Rows are blocks, columns modules, both in the order of the model."""
    layers = map_layers(found)
    return Grid(
        layers,
        tuple(dict.fromkeys(layer.row for layer in layers)),
        tuple(dict.fromkeys(layer.column for layer in layers)),
    )


def map_steps(
    studio: Studio, found: Preflight, measure: str, about: str, settings: MergeSettings, chosen: str | None
) -> Iterator[tuple[Any, list[str]]]:
    """The map, redrawn while layer after layer is measured; and why layers stay blank.

    about: the name of the task whose values are shown; any other text shows those of all tasks together.
    """
    grid = make_grid(found)
    names = [task.name for task in found.tasks]
    task = names.index(about) if about in names else None
    values: list[list[float | None]] = [[None] * len(grid.columns) for _ in grid.rows]
    titles: list[list[str | None]] = [[None] * len(grid.columns) for _ in grid.rows]
    for layer in grid.layers:
        row, column = grid.position(layer)
        titles[row][column] = layer.name
    selected = next((grid.position(layer) for layer in grid.layers if layer.name == chosen), None)
    rows = [f"layer {row}" if row.isdigit() else row for row in short_rows(grid.rows)]
    columns, shown = kind_labels(grid.columns), MEASURES[measure]
    problems: list[str] = []
    for index, layer in enumerate(grid.layers):
        row, column = grid.position(layer)
        try:
            value = studio.inspector.value(found, layer, measure, settings)
            one = value.overall if task is None else _of_task(layer, value.tasks, task)
            values[row][column] = one if one is not None and math.isfinite(one) else None
        except NumericalError as error:
            problems.append(str(error))
        if (index + 1) % LAYERS_PER_STEP == 0 or index + 1 == len(grid.layers):
            title = f"{shown.title}, {about}" if task is not None else shown.title
            figure = layer_map(
                values, rows, columns, title, selected, titles, log=shown.log, number=shown.number
            )
            yield figure, problems


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
