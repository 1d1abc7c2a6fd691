"""Inspect: the map of the model; a click opens a layer's spectra and the overlap of two tasks' features."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import gradio as gr

from sftm_app.checkpoints.compatibility import Preflight
from sftm_app.errors import NumericalError
from sftm_app.inspection.layer import LayerDetail, PairDetail, layer_detail, pair_detail
from sftm_app.inspection.layers import MapLayer, map_layers, short_columns, short_rows
from sftm_app.inspection.measures import MEASURES
from sftm_app.inspection.survey import find_layer
from sftm_app.plots.layer_map import layer_map
from sftm_app.plots.overlap import overlap_heatmap, task_overlap
from sftm_app.plots.spectra import SpectrumTrace, spectra
from sftm_app.ui.handlers import sentences
from sftm_app.ui.studio import Studio
from sftm_app.ui.theme import task_colour
from sftm_app.ui.widgets import PlotlyView, parse_selection
from sftm_app.ui.widgets.html import Safe, chip, chips, code, empty_state, heading, hint, join, notice, stack
from sftm_app.ui.workspace import Workspace

FIRST_MEASURE = "change"
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


def map_figure(studio: Studio, found: Preflight, measure: str, chosen: str | None) -> Iterator[tuple[Any, list[str]]]:
    """The map, redrawn while the factors of layer after layer are computed; and why layers stay blank."""
    grid = make_grid(found)
    values: list[list[float | None]] = [[None] * len(grid.columns) for _ in grid.rows]
    names: list[list[str | None]] = [[None] * len(grid.columns) for _ in grid.rows]
    for layer in grid.layers:
        row, column = grid.position(layer)
        names[row][column] = layer.name
    selected = next((grid.position(layer) for layer in grid.layers if layer.name == chosen), None)
    rows = [f"layer {row}" if row.isdigit() else row for row in short_rows(grid.rows)]
    problems: list[str] = []
    for index, layer in enumerate(grid.layers):
        row, column = grid.position(layer)
        try:
            value = MEASURES[measure].compute(studio.factors.get(found, layer))
            values[row][column] = value if math.isfinite(value) else None
        except NumericalError as error:
            problems.append(str(error))
        if (index + 1) % LAYERS_PER_STEP == 0 or index + 1 == len(grid.layers):
            title = MEASURES[measure].title
            yield layer_map(values, rows, short_columns(grid.columns), title, selected, names), problems


def spectra_figure(detail: LayerDetail, names: tuple[str, ...]) -> Any:
    """The tasks' singular spectra in their colours."""
    return spectra(
        [
            SpectrumTrace(s.task, task_colour(names.index(s.task)), s.gains, s.effective_rank, s.ranks_for_energy)
            for s in detail.spectra
        ]
    )


def pair_figures(pair: PairDetail) -> tuple[Any, Any]:
    """Read and write overlap of two tasks' features."""
    read = overlap_heatmap(pair.read.numpy(), pair.first, pair.second, "read", pair.random_read)
    write = overlap_heatmap(pair.write.numpy(), pair.first, pair.second, "write", pair.random_write)
    return read, write


def layer_title(layer: MapLayer, detail: LayerDetail, names: tuple[str, ...]) -> Safe:
    """The layer's name and shape, and each task's relative change."""
    changes = [
        chip(
            f"{s.task} {s.relative_change:.1%}", task_colour(names.index(s.task)), "size of the change beside the base"
        )
        for s in detail.spectra
    ]
    title = heading(layer.name.removesuffix(".weight"), f"{layer.shape[0]} outputs × {layer.shape[1]} inputs")
    return join([title, chips(changes)])


def show_layer(
    studio: Studio, workspace: Workspace, name: str | None, first: str | None, second: str | None
) -> tuple[Any, ...]:
    """Everything below the map for one layer: title, spectra, task overlaps, pair choice and pair overlaps."""
    found = studio.preflight(workspace).require()
    layer = find_layer(map_layers(found), name or "")
    made = studio.factors.get(found, layer)
    names = tuple(task.name for task in found.tasks)
    detail = layer_detail(made, names)
    members = [names[i] for i in layer.members]
    one = first if first in members else members[0]
    other = second if second in members and second != one else next((m for m in members if m != one), one)
    pair = pair_detail(made, names, members.index(one), members.index(other))
    read, write = pair_figures(pair)
    cell = (members.index(one), members.index(other)) if one != other else None
    return (
        layer_title(layer, detail, names),
        spectra_figure(detail, names),
        task_overlap(detail.read.numpy(), members, "read overlap", cell, "Read overlap of the tasks"),
        task_overlap(detail.write.numpy(), members, "write overlap", cell, "Write overlap of the tasks"),
        gr.update(choices=members, value=one),
        gr.update(choices=members, value=other),
        read,
        write,
    )


def build(studio: Studio, workspace: gr.State) -> None:
    """Lay out the tab and wire it."""
    empty = gr.HTML(
        empty_state("Nothing to inspect yet", "Load models on the Models tab; one click on a demo is enough."),
        apply_default_css=False,
    )
    with gr.Column(visible=False, elem_classes="sf-stack") as body:
        with gr.Row(equal_height=False):
            measure = gr.Radio(
                [(measure.title, measure.name) for measure in MEASURES.values()],
                value=FIRST_MEASURE,
                label="Measure",
                info="What the map's colours mean.",
                scale=3,
                min_width=420,
            )
            layer = gr.Dropdown(
                label="Layer",
                info="Click a cell of the map, or choose a layer here.",
                choices=[],
                value=None,
                scale=2,
                # So wide that a whole layer's name fits; in a narrow window it moves below the measures.
                min_width=400,
                elem_id="layer",
            )
        measure_help = gr.HTML(_help(FIRST_MEASURE), apply_default_css=False)
        layers_map = PlotlyView(label="Map of the model", filename="map", elem_id="layer-map", min_plot_height=300)
        title = gr.HTML(apply_default_css=False, elem_id="layer-title")
        spectrum = PlotlyView(label="Singular spectra of the tasks", filename="spectra", elem_id="spectra")
        gr.HTML(
            heading(
                "Where tasks meet",
                "Tasks that read the same input directions and write the same output directions interfere. Click a "
                "pair of tasks, or choose them below, to see their features one by one.",
            ),
            apply_default_css=False,
        )
        with gr.Row(equal_height=False):
            tasks_read = PlotlyView(label="Read overlap, tasks by tasks", filename="tasks-read", elem_id="tasks-read")
            tasks_write = PlotlyView(
                label="Write overlap, tasks by tasks", filename="tasks-write", elem_id="tasks-write"
            )
        with gr.Row(equal_height=False):
            first = gr.Dropdown(
                label="First task", info="Its features are the rows.", choices=[], value=None, elem_id="first-task"
            )
            second = gr.Dropdown(
                label="Second task", info="Its features are the columns.", choices=[], value=None, elem_id="second-task"
            )
        with gr.Row(equal_height=False):
            pair_read = PlotlyView(label="Read overlap of two tasks", filename="read-overlap", elem_id="pair-read")
            pair_write = PlotlyView(label="Write overlap of two tasks", filename="write-overlap", elem_id="pair-write")

    detail_outputs = [title, spectrum, tasks_read, tasks_write, first, second, pair_read, pair_write]
    inputs = [workspace, layer, first, second]

    def draw_map(ws: Workspace, chosen_measure: str, chosen: str | None, request: gr.Request) -> Iterator[Any]:
        session = str(request.session_hash)
        number = studio.newer_draw(session)
        if studio.usable(ws):
            for figure, problems in map_figure(studio, studio.preflight(ws), _known(chosen_measure), chosen):
                # Another measure, layer or workspace was chosen meanwhile: its drawing is the one to be seen.
                if not studio.is_latest_draw(session, number):
                    return
                yield figure, _help(_known(chosen_measure), problems)

    def show(ws: Workspace, name: str | None, one: str | None, other: str | None) -> tuple[Any, ...]:
        if not studio.usable(ws) or not name:
            return tuple(gr.skip() for _ in detail_outputs)
        return show_layer(studio, ws, name, one, other)

    def open_workspace(ws: Workspace) -> tuple[Any, ...]:
        if not studio.usable(ws):
            return gr.update(visible=True), gr.update(visible=False), gr.update(choices=[], value=None)
        names = [layer.name for layer in map_layers(studio.preflight(ws))]
        middle = names[len(names) // 2] if names else None
        choices = [(name.removesuffix(".weight"), name) for name in names]
        return gr.update(visible=False), gr.update(visible=True), gr.update(choices=choices, value=middle)

    def click_map(ws: Workspace, one: str | None, other: str | None, event: gr.EventData) -> tuple[Any, ...]:
        name = _clicked_name(event)
        if name is None:
            return (gr.skip(), *(gr.skip() for _ in detail_outputs))
        return (name, *show_layer(studio, ws, name, one, other))

    def click_pair(ws: Workspace, name: str | None, event: gr.EventData) -> tuple[Any, ...]:
        selection = parse_selection(event)
        members = _members(studio, ws, name)
        if selection is None or selection.cell is None or not members or max(selection.cell) >= len(members):
            return tuple(gr.skip() for _ in detail_outputs)
        row, column = selection.cell
        if row == column:
            gr.Info("A task overlaps wholly with itself. Click a cell beside the diagonal to see two tasks.")
        return show(ws, name, members[row], members[column])

    quick: dict[str, Any] = {"queue": False, "show_progress": "hidden"}
    shown = workspace.change(sentences(open_workspace), workspace, [empty, body, layer], show_progress="hidden")
    shown.then(sentences(show), inputs, detail_outputs, show_progress="hidden").then(
        sentences(draw_map), [workspace, measure, layer], [layers_map, measure_help], show_progress="hidden"
    )
    measure.input(sentences(draw_map), [workspace, measure, layer], [layers_map, measure_help], show_progress="hidden")
    layer.input(sentences(show), inputs, detail_outputs, **quick).then(
        sentences(draw_map), [workspace, measure, layer], [layers_map, measure_help], show_progress="hidden"
    )
    # The map is no output here: its frame follows the click in the browser already.
    layers_map.select(sentences(click_map), [workspace, first, second], [layer, *detail_outputs], **quick)
    for choice in (first, second):
        choice.input(sentences(show), inputs, detail_outputs, **quick)
    for overview in (tasks_read, tasks_write):
        overview.select(sentences(click_pair), [workspace, layer], detail_outputs, **quick)


def _members(studio: Studio, workspace: Workspace, name: str | None) -> list[str]:
    if not studio.usable(workspace) or not name:
        return []
    found = studio.preflight(workspace)
    return [found.tasks[i].name for i in find_layer(map_layers(found), name).members]


def _clicked_name(event: gr.EventData) -> str | None:
    selection = parse_selection(event)
    return selection.customdata if selection and isinstance(selection.customdata, str) else None


def _known(measure: str) -> str:
    return measure if measure in MEASURES else FIRST_MEASURE


def _help(measure: str, problems: Sequence[str] = ()) -> Safe:
    said = hint(join([code(MEASURES[measure].title), " ", MEASURES[measure].help]))
    return stack(said, notice("error", "Some layers cannot be measured", items=problems)) if problems else said
