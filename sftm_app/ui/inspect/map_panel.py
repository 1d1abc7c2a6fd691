"""The map of the model: layers down, modules across, coloured by a measure."""

from __future__ import annotations

import math
import re
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import gradio as gr

from sftm_app.errors import NumericalError, SFTMError
from sftm_app.inspection.layers import MapLayer, kind_labels, map_layers, short_rows
from sftm_app.inspection.measures import MEASURES
from sftm_app.methods.settings import MergeSettings
from sftm_app.plots.layer_map import layer_map
from sftm_app.preflight.preflight import Preflight
from sftm_app.ui.handlers import Updates
from sftm_app.ui.inspect.glossary import glossary_html
from sftm_app.ui.inspect.state import InspectState
from sftm_app.ui.studio import Studio
from sftm_app.ui.view import FIRST_MEASURE, View
from sftm_app.ui.widgets import PlotlyView, UncheckedDropdown
from sftm_app.ui.widgets.blocks import block
from sftm_app.ui.widgets.html import Html, code, hint, join, notice, stack
from sftm_app.ui.wording import settings_title
from sftm_app.ui.workspace import Workspace

ALL_TASKS = "all tasks"
# How often the map is redrawn while it fills.
SECONDS_PER_STEP = 0.3
FILLING, NO_VALUE = "The first layers are being measured.", "No layer has a value for this measure."
LEAST_ERROR = 0.01
# With more columns than this, the experts of a layer share one.
MOST_COLUMNS = 64
_EXPERT = re.compile(r"\bexperts?[. ]\d+\b")


class MapPanel:
    """The map, its measure, and the layer that is looked at."""

    def __init__(self, studio: Studio) -> None:
        self.studio = studio
        with gr.Row(equal_height=False):
            self.measure = UncheckedDropdown(
                [(measure.title, measure.name) for measure in MEASURES.values()],
                value=FIRST_MEASURE,
                label="Measure",
                info="What the colours of the map show.",
                scale=2,
                min_width=200,
                elem_id="measure",
            )
            self.about = UncheckedDropdown(
                [(ALL_TASKS, "")],
                value="",
                label="Tasks",
                info="All tasks together, or one.",
                min_width=160,
                elem_id="about",
            )
            self.layer = UncheckedDropdown(
                label="Layer",
                info="Click a cell of the map, or choose a layer here.",
                choices=[],
                value=None,
                scale=3,
                # Wide enough for the whole name of a layer; in a narrow window it moves below the measures.
                min_width=400,
                elem_id="layer",
            )
            with gr.Column(scale=1, min_width=120, elem_classes="sf-buttons"):
                self.pin = gr.Button("Pin this view", size="sm", elem_id="pin")
                self.unpin = gr.Button("Unpin", size="sm", visible=False, elem_id="unpin")
        self.help = block()
        block(glossary_html())
        self.map = PlotlyView(label="Map of the model", filename="map", elem_id="layer-map", min_plot_height=300)
        self.views: set[Any] = {self.map, self.help}
        self.choices: set[Any] = {self.measure, self.about, self.layer}

    def open(self, ws: Workspace, view: View) -> Updates:
        """The choices for a workspace that was just loaded, set to this view."""
        layers = map_layers(self.studio.preflight(ws))
        tasks = ws.task_names
        return {
            self.measure: known_measure(view.measure),
            self.about: gr.update(choices=[(ALL_TASKS, ""), *((name, name) for name in tasks)], value=view.about),
            self.layer: gr.update(
                choices=[(layer.name.removesuffix(".weight"), layer.name) for layer in layers], value=view.layer or None
            ),
        }

    def draw(self, state: InspectState) -> Iterator[Updates]:
        """The map while it fills, and what its colours mean."""
        found, measure = self.studio.preflight(state.ws).require(), known_measure(state.measure)
        try:
            for figure, problems in map_steps(self.studio, found, measure, state.about, state.settings, state.layer):
                yield {self.map: figure, self.help: measure_help(measure, state.settings, problems)}
        except SFTMError as error:
            yield {self.map: None, self.help: measure_help(measure, state.settings, [str(error)])}


@dataclass(frozen=True)
class Grid:
    """Where each layer is on the map."""

    layers: tuple[MapLayer, ...]
    rows: tuple[str, ...]
    columns: tuple[str, ...]

    def position(self, layer: MapLayer) -> tuple[int, int]:
        """Row and column of a layer."""
        column = layer.column if layer.column in self.columns else _folded(layer.column)
        return self.rows.index(layer.row), self.columns.index(column)


def make_grid(found: Preflight) -> Grid:
    """Rows are blocks, columns modules, both in the model's order; many experts are folded into one column."""
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
            title = MEASURES[measure].title + (f", {about}" if task is not None else "")
            yield _figure(grid, cells, measure, title, chosen, NO_VALUE if last else FILLING), problems
            drawn_at = time.monotonic()


def _figure(
    grid: Grid, cells: dict[tuple[int, int], list[float]], measure: str, title: str, chosen: str | None, empty: str
) -> Any:
    rows = [f"layer {row}" if row.isdigit() else row for row in short_rows(grid.rows)]
    columns = kind_labels(grid.columns)
    names: list[list[str | None]] = [[None] * len(columns) for _ in rows]
    for layer in reversed(grid.layers):
        row, column = grid.position(layer)
        names[row][column] = layer.name
    selected = next((grid.position(layer) for layer in grid.layers if layer.name == chosen), None)
    values = [[_mean(cells.get((i, j))) for j in range(len(columns))] for i in range(len(rows))]
    # An error that is next to nothing everywhere should not look like a pattern.
    largest = max((max(found) for found in cells.values()), default=0.0)
    top = LEAST_ERROR if measure.endswith("_error") and largest < LEAST_ERROR else None
    shown = MEASURES[measure]
    return layer_map(values, rows, columns, title, selected, names, top, shown.log, shown.number, empty)


def _mean(values: list[float] | None) -> float | None:
    """Of the layers in one cell: a single one, or a block's experts."""
    return sum(values) / len(values) if values else None


def _of_task(layer: MapLayer, values: tuple[float, ...], task: int) -> float | None:
    return values[layer.members.index(task)] if task in layer.members else None


def measure_help(measure: str, settings: MergeSettings, problems: list[str] | None = None) -> Html:
    """What the colours mean, and why layers stay blank."""
    shown = MEASURES[measure]
    under = join([" Settings: ", code(settings_title(settings)), "."]) if shown.of_method else ""
    help_line = hint(join([code(shown.title), " ", shown.help, under]))
    if not problems:
        return help_line
    return stack(help_line, notice("error", "Some layers cannot be measured", items=problems))


def known_measure(measure: str | None) -> str:
    """The measure of this name, or the first one."""
    return measure if measure in MEASURES else FIRST_MEASURE
