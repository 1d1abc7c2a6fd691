"""Evaluate: draw, pick or upload a sample and compare the models; fill the table tasks x models."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gradio as gr
import numpy as np
from numpy.typing import NDArray

from sftm_app.errors import InputError, SampleError
from sftm_app.evaluation.accuracy import AccuracyTable, empty_table, fill_table
from sftm_app.evaluation.contestants import BASE, INDIVIDUAL, Contestant, folder_contestant, method_contestant
from sftm_app.evaluation.packs import PackTask, load_samples
from sftm_app.evaluation.samples import Samples, centre_glyph, load_labelled_folder
from sftm_app.jobs.folder import list_runs, status
from sftm_app.merging.methods import METHODS
from sftm_app.plots.probabilities import probabilities
from sftm_app.plots.style import METHOD_COLOURS, Series
from sftm_app.ui.handlers import sentences
from sftm_app.ui.settings import allowed
from sftm_app.ui.studio import Studio
from sftm_app.ui.widgets import DrawPad, PlotlyView, decode_drawing, encode_drawing
from sftm_app.ui.widgets.html import Kind, Safe, empty_state, heading, join, safe, stat, stats, strong, table
from sftm_app.ui.workspace import Workspace

MAX_RUNS_OFFERED = 5
DEFAULTS = (BASE.key, INDIVIDUAL.key, "method:average")


def contestants(studio: Studio, ws: Workspace, run_id: str) -> list[Contestant]:
    """The models on offer: base, individual, every method with its defaults, and this workspace's finished runs."""
    offered = [BASE, INDIVIDUAL, *(method_contestant(name) for name in METHODS)]
    runs: list[Contestant] = []
    for folder in list_runs(studio.settings.runs_dir):
        if len(runs) < MAX_RUNS_OFFERED and status(folder).state == "done" and _same_inputs(folder.recipe(), ws):
            method = folder.recipe().method
            mark = "your merge" if folder.run_id == run_id else f"run {folder.run_id[9:15]}"
            runs.append(folder_contestant(folder.model, f"{METHODS[method].title}, {mark}", method))
    return offered + runs


def _same_inputs(recipe: Any, ws: Workspace) -> bool:
    return recipe.base == ws.base and tuple(t.path for t in recipe.tasks) == tuple(t.path for t in ws.tasks)


def chosen_contestants(studio: Studio, ws: Workspace, run_id: str, keys: list[str]) -> list[Contestant]:
    """The contestants of these keys. Keys come from the browser: only those on offer count.

    Raises
        InputError: none is chosen.
    """
    found = [contestant for contestant in contestants(studio, ws, run_id) if contestant.key in keys]
    if not found:
        raise InputError("No model is chosen. Tick at least one under Models.")
    return found


def answer(
    studio: Studio, ws: Workspace, task: str, image: NDArray[np.uint8], models: list[Contestant], truth: int | None
) -> tuple[Safe, Any]:
    """Each model's answer for one image: a line of verdicts, and the probabilities as a figure."""
    arena = studio.arena(ws)
    series, verdicts = [], []
    labels: tuple[str, ...] = ()
    for contestant in models:
        classifier = arena.classifier(contestant, task)
        labels = classifier.labels
        found = classifier.probabilities(image[None])[0]
        best = int(found.argmax())
        tone: Kind | None = None if truth is None else "ok" if best == truth else "error"
        series.append(Series(contestant.title, [float(p) for p in found], METHOD_COLOURS.get(contestant.kind)))
        verdicts.append(stat(contestant.title, labels[best], f"{found[best]:.0%} sure", tone))
    said = f"The right answer is {labels[truth]}." if truth is not None else "What each model reads in your drawing:"
    lines = Safe(f'<p class="sf-help">{safe(said)}</p>{stats(verdicts)}')
    return lines, probabilities(labels, series, truth)


def table_html(measured: AccuracyTable) -> Safe:
    """Tasks x models in percent, the best merge of each row in bold; the mean, and the mean relative to individual."""
    merges = [i for i, c in enumerate(measured.contestants) if c.key not in (BASE.key, INDIVIDUAL.key)]

    def cells(values: list[float | None]) -> list[object]:
        known = [values[i] for i in merges if values[i] is not None]
        best = max((value for value in known if value is not None), default=None)
        shown: list[object] = []
        for i, value in enumerate(values):
            text = "·" if value is None else f"{value:.1%}"
            shown.append(strong(text) if i in merges and value is not None and value == best else text)
        return shown

    n = range(len(measured.contestants))
    rows: list[list[object]] = [
        [task, *cells(list(line))] for task, line in zip(measured.tasks, measured.values, strict=True)
    ]
    rows.append([strong("Mean"), *cells([measured.mean(i) for i in n])])
    if any(c.key == INDIVIDUAL.key for c in measured.contestants):
        rows.append([strong("Relative to individual"), *cells([measured.normalised(i) for i in n])])
    names = ["task", *(contestant.title for contestant in measured.contestants)]
    return table(names, rows, numeric=range(1, len(names)))


def samples_of(studio: Studio, ws: Workspace, task: str, folder: str) -> Samples:
    """The labelled samples of a task: the demo pack's, or those of a folder that the person names.

    Raises
        SampleError, InputError: there are none.
    """
    pack = studio.pack(ws)
    if pack and not folder.strip():
        return load_samples(_pack_task(pack.tasks, ws, task))
    if not folder.strip():
        raise SampleError(
            "There are no labelled samples for these models. Name a folder under Labelled images: one subfolder per "
            "task, in it one subfolder of images per class."
        )
    root = allowed(studio.settings, folder)
    source = studio.preflight(ws).tasks[ws.task_names.index(task)]
    inner = root / task if (root / task).is_dir() else root
    channels = int(source.checkpoint.config.get("num_channels", 3))
    return load_labelled_folder(inner, source.checkpoint.id2label, channels)


def _pack_task(tasks: tuple[PackTask, ...], ws: Workspace, name: str) -> PackTask:
    path = Path(next(task.path for task in ws.tasks if task.name == name))
    for task in tasks:
        if task.path.resolve() == path.resolve():
            return task
    raise SampleError(f"{name}: the demo has no samples for this task. Choose another task.")


def build(studio: Studio, workspace: gr.State, run_id: gr.State, tab: gr.Tab) -> None:
    """Lay out the tab and wire it."""
    truth = gr.State(None)
    upload_image = gr.State(None)
    offered = gr.State([])
    empty = gr.HTML(
        empty_state("Nothing to try yet", "Load models on the Models tab; one click on Try the demo is enough."),
        apply_default_css=False,
    )
    with gr.Column(visible=False, elem_classes="sf-stack") as body:
        with gr.Row(equal_height=False):
            task = gr.Dropdown(
                label="Task",
                info="Whose head answers: its classes are what can be told apart.",
                choices=[],
                value=None,
                elem_id="task",
            )
            models = gr.CheckboxGroup(
                label="Models",
                info="Methods are merged in memory with their defaults; your merges are read from the disk.",
                choices=[],
                value=[],
                scale=3,
                elem_id="models",
            )
        with gr.Row(equal_height=False):
            with gr.Column(scale=1, min_width=280):
                pad = DrawPad(label="Draw a glyph of the chosen task", elem_id="pad")
                picture = gr.Image(
                    label="Image", type="numpy", visible=False, sources=["upload", "clipboard"], elem_id="picture"
                )
                sample = gr.Button("Pick a sample", elem_id="sample")
                known = gr.HTML(apply_default_css=False, elem_id="known-classes")
            with gr.Column(scale=2, min_width=360, elem_classes="sf-stack"):
                verdict = gr.HTML(apply_default_css=False, elem_id="verdict")
                chart = PlotlyView(
                    label="Probabilities",
                    filename="probabilities",
                    empty_title="Draw something",
                    empty_body="Draw a glyph of the chosen task on the pad, or pick a sample that no model has seen.",
                    elem_id="probabilities",
                )
        gr.HTML(
            heading("All tasks", "Accuracy on labelled samples that no model was trained on."), apply_default_css=False
        )
        with gr.Row(equal_height=False):
            folder = gr.Textbox(
                label="Labelled images",
                info="A folder per task, in it a folder of images per class. Left empty: the demo's own samples.",
                max_lines=1,
                scale=3,
                elem_id="labelled",
            )
            limit = gr.Slider(
                50, 1000, value=200, step=50, label="Samples per task", info="Fewer is faster, more is surer.", scale=2
            )
            fill = gr.Button("Fill the table", variant="primary", scale=1, elem_id="fill")
        accuracies = gr.HTML(_no_table(), apply_default_css=False, elem_id="accuracies")

    def open_workspace(ws: Workspace, shown: str) -> tuple[Any, ...]:
        if not ws.ready or studio.preflight(ws).problems:
            return (gr.update(visible=True), gr.update(visible=False), *(gr.skip() for _ in range(6)), _no_table())
        pack = studio.pack(ws)
        drawn = bool(pack and pack.drawn)
        return (
            gr.update(visible=False),
            gr.update(visible=True),
            gr.update(choices=list(ws.task_names), value=ws.task_names[0]),
            *offer(studio, ws, shown, [], []),
            gr.update(visible=drawn, value=None),
            gr.update(visible=not drawn, value=None),
            _known_classes(studio, ws, ws.task_names[0]),
            _no_table(),
        )

    def try_it(
        ws: Workspace, name: str, keys: list[str], shown: str, drawing: Any, image: Any, right: Any
    ) -> tuple[Any, ...]:
        given = image if image is not None else _glyph(drawing)
        if given is None or not ws.ready or name not in ws.task_names:
            return "", None
        return answer(studio, ws, name, given, chosen_contestants(studio, ws, shown, keys), right)

    def draw(ws: Workspace, name: str, keys: list[str], shown: str, drawing: Any) -> tuple[Any, ...]:
        return None, *try_it(ws, name, keys, shown, drawing, None, None)

    def pick(ws: Workspace, name: str, keys: list[str], shown: str, where: str) -> tuple[Any, ...]:
        labelled = samples_of(studio, ws, name, where or "")
        index = random.randrange(len(labelled))
        image, right = labelled.images[index], int(labelled.labels[index])
        drawn = encode_drawing(image) if image.ndim == 2 else None
        lines, figure = answer(studio, ws, name, image, chosen_contestants(studio, ws, shown, keys), right)
        return right, drawn, image, lines, figure

    def measure(ws: Workspace, keys: list[str], shown: str, where: str, most: float) -> Iterator[Any]:
        if not ws.ready:
            raise InputError("No models are loaded. Open the Models tab and try the demo, or pick checkpoints.")
        start = empty_table(ws.task_names, tuple(chosen_contestants(studio, ws, shown, keys)))
        yield table_html(start)
        for measured in fill_table(
            studio.arena(ws), start, lambda name: samples_of(studio, ws, name, where or ""), int(most)
        ):
            yield table_html(measured)

    quick: dict[str, Any] = {"show_progress": "hidden"}
    shown_in = [workspace, task, models, run_id]
    workspace.change(
        sentences(open_workspace),
        [workspace, run_id],
        [empty, body, task, models, offered, pad, picture, known, accuracies],
        **quick,
    )
    # A merge may have finished since the tab was last looked at.
    tab.select(
        sentences(lambda *values: offer(studio, *values)),
        [workspace, run_id, models, offered],
        [models, offered],
        **quick,
    )
    pad.input(
        sentences(lambda *values: (None, *draw(*values))),
        [*shown_in, pad],
        [upload_image, truth, verdict, chart],
        queue=False,
        trigger_mode="always_last",
        **quick,
    )
    picture.input(
        sentences(
            lambda ws, name, keys, shown, image: (image, None, *try_it(ws, name, keys, shown, None, image, None))
        ),
        [*shown_in, picture],
        [upload_image, truth, verdict, chart],
        **quick,
    )
    sample.click(
        sentences(pick), [*shown_in, folder], [truth, pad, upload_image, verdict, chart], show_progress="minimal"
    )
    task.change(
        sentences(lambda ws, name: (_known_classes(studio, ws, name), None, None, None, "", None)),
        [workspace, task],
        [known, pad, upload_image, truth, verdict, chart],
        **quick,
    )
    models.input(sentences(try_it), [*shown_in, pad, upload_image, truth], [verdict, chart], **quick)
    fill.click(sentences(measure), [workspace, models, run_id, folder, limit], accuracies, show_progress="hidden")


def _glyph(drawing: Any) -> NDArray[np.uint8] | None:
    pixels = decode_drawing(drawing)
    return None if pixels is None else centre_glyph(pixels)


def offer(studio: Studio, ws: Workspace, run_id: str, ticked: list[str], before: list[str]) -> tuple[Any, list[str]]:
    """The models to choose from, and their keys. What was ticked stays; a merge that is new among them is ticked."""
    if not ws.ready:
        return gr.update(choices=[], value=[]), []
    found = contestants(studio, ws, run_id)
    keys = [contestant.key for contestant in found]
    merges = [key for key in keys if key.startswith("folder:")]
    if not before:
        value = [*DEFAULTS, *(merges[:1] or ["method:sftm"])]
    else:
        new = [key for key in merges if key not in before][:1]
        # A real merge takes the place of the one in memory that stood in for it.
        stays = [key for key in ticked if key in keys and not (new and key == "method:sftm")]
        value = [*stays, *new]
    return gr.update(choices=[(c.title, c.key) for c in found], value=value), keys


def _known_classes(studio: Studio, ws: Workspace, name: str) -> Safe:
    if not ws.ready or name not in ws.task_names:
        return Safe("")
    labels = list(studio.preflight(ws).tasks[ws.task_names.index(name)].checkpoint.id2label.values())
    return Safe(f'<p class="sf-help">{join(["Classes: ", "  ".join(labels[:60])])}</p>')


def _no_table() -> Safe:
    return empty_state("Not measured yet", "Press Fill the table: every chosen model is tried on every task.")
