"""Evaluate: draw, write, pick or upload a sample and compare the models; fill the table tasks x models."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import gradio as gr

from sftm_app.errors import SampleError
from sftm_app.evaluation.accuracy import empty_table, fill_table
from sftm_app.evaluation.family import Samples
from sftm_app.evaluation.samples import ImageSamples, centre_glyph
from sftm_app.plots.accuracy import accuracy_bars
from sftm_app.plots.style import METHOD_COLOURS
from sftm_app.ui.handlers import sentences
from sftm_app.ui.studio import Studio
from sftm_app.ui.trying.evaluate_inputs import (
    FEW_SAMPLES,
    SOME_SAMPLES,
    build_inputs,
    family_of,
    for_task,
    image_sample,
    read_names,
    showing,
    text_sample,
)
from sftm_app.ui.trying.labelled import all_samples, samples_of
from sftm_app.ui.trying.trying import answers, chosen_candidates, offer, table_html
from sftm_app.ui.widgets import PlotlyView, decode_drawing
from sftm_app.ui.widgets.html import Safe, empty_state, heading, hint
from sftm_app.ui.workspace import Workspace

INFO_IMAGES = "Inside the models folder: per task a folder, in it one per class. Empty: the demo's own."
INFO_TEXTS = (
    "Inside the models folder: a .csv, .tsv, .jsonl or .json, or a folder of one per task. Empty: the demo's own."
)
NOTHING_TRIED = (
    "Nothing tried yet",
    "Give the models something to read on the left, or pick a sample that none has seen.",
)


def build(studio: Studio, workspace: gr.State, run_id: gr.State, tab: gr.Tab) -> None:
    """Lay out the tab and wire it."""
    current = gr.State(None)
    offered = gr.State([])
    empty = gr.HTML(
        empty_state("Nothing to try yet", "Load models on the Models tab; one click on a demo is enough."),
        apply_default_css=False,
    )
    with gr.Column(visible=False, elem_classes="sf-stack") as body:
        with gr.Row(equal_height=False):
            task = gr.Dropdown(
                label="Task",
                info="Whose model, or whose head on a merge, answers.",
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
                inputs = build_inputs()
            with gr.Column(scale=2, min_width=360, elem_classes="sf-stack"):
                verdict = gr.HTML(apply_default_css=False, elem_id="verdict")
                chart = PlotlyView(
                    label="Probabilities",
                    filename="probabilities",
                    empty_title=NOTHING_TRIED[0],
                    empty_body=NOTHING_TRIED[1],
                    elem_id="probabilities",
                )
        gr.HTML(
            heading("All tasks", "Accuracy on labelled samples that no model was trained on."), apply_default_css=False
        )
        with gr.Row(equal_height=False):
            where = gr.Textbox(
                label="Labelled samples",
                info=INFO_IMAGES,
                max_lines=1,
                scale=3,
                elem_id="labelled",
            )
            limit = gr.Slider(
                10,
                1000,
                value=SOME_SAMPLES,
                step=10,
                label="Samples per task",
                info="Fewer is faster, more is surer.",
                scale=2,
            )
            fill = gr.Button("Fill the table", variant="primary", scale=1, elem_id="fill")
        accuracies = gr.HTML(_no_table(), apply_default_css=False, elem_id="accuracies")
        bars = PlotlyView(label="Accuracy per task", filename="accuracy", visible=False, elem_id="accuracy-bars")

    def open_workspace(ws: Workspace, shown: str) -> tuple[Any, ...]:
        usable = studio.usable(ws)
        names = list(ws.task_names) if usable else []
        family = family_of(studio, ws, names[0]) if names else None
        text = bool(family and family.reads == "text")
        return (
            gr.update(visible=not usable),
            gr.update(visible=usable),
            gr.update(choices=names, value=names[0] if names else None),
            *offer(studio, ws, shown, [], []),
            gr.update(value="", info=INFO_TEXTS if text else INFO_IMAGES),
            FEW_SAMPLES if family and family.writes else SOME_SAMPLES,
            _no_table(),
            gr.update(visible=False),
            *open_task(ws, names[0] if names else ""),
        )

    def open_task(ws: Workspace, name: str) -> tuple[Any, ...]:
        family = family_of(studio, ws, name)
        # A chart that writers may never fill would only repeat that nothing was tried.
        writes = bool(family and family.writes)
        said = empty_state(*NOTHING_TRIED) if writes else ""
        return None, said, gr.update(value=None, visible=not writes), *for_task(studio, ws, name)

    def try_it(ws: Workspace, name: str, keys: list[str], shown: str, sample: Samples | None) -> Iterator[Any]:
        if sample is None or not studio.usable(ws) or name not in ws.task_names:
            yield "", None
        elif not keys:
            yield hint("Tick at least one model."), None
        else:
            for verdicts, figure in answers(studio, ws, name, sample, chosen_candidates(studio, ws, shown, keys)):
                yield verdicts, gr.update(value=figure, visible=figure is not None)

    def drawn(ws: Workspace, name: str, keys: list[str], shown: str, drawing: Any) -> tuple[Any, ...]:
        pixels = decode_drawing(drawing)
        glyph = None if pixels is None else centre_glyph(pixels)
        sample = None if glyph is None else image_sample(glyph, "")
        return sample, *list(try_it(ws, name, keys, shown, sample))[-1]

    def uploaded(
        ws: Workspace, name: str, keys: list[str], shown: str, image: Any, listed: str
    ) -> Iterator[tuple[Any, ...]]:
        sample = None if image is None else image_sample(image, listed)
        # An image without the names that its model needs waits for them.
        family = family_of(studio, ws, name)
        if sample is not None and family is not None and family.picks and not sample.choices:
            yield sample, hint("Write the names to choose from, then press Ask the models."), None
            return
        for found in try_it(ws, name, keys, shown, sample):
            yield sample, *found

    def asked(
        ws: Workspace, name: str, keys: list[str], shown: str, before: Any, text: str, listed: str, chat: bool
    ) -> Iterator[tuple[Any, ...]]:
        family = family_of(studio, ws, name)
        if family is not None and family.reads == "images":
            if not isinstance(before, ImageSamples):
                raise SampleError("There is no image yet. Upload one, or pick a sample.")
            sample: Samples = replace(before, choices=read_names(listed))
        else:
            sample = text_sample(text, listed, chat, before)
        for found in try_it(ws, name, keys, shown, sample):
            yield sample, *found

    def picked(
        ws: Workspace, name: str, keys: list[str], shown: str, where: str, listed: str, chat: bool
    ) -> Iterator[tuple[Any, ...]]:
        labelled = samples_of(studio, ws, name, where or "", _names(ws, name, listed), chat)
        sample = labelled.take([random.randrange(len(labelled))])
        yield sample, gr.skip(), gr.skip(), *showing(studio, ws, sample)
        for found in try_it(ws, name, keys, shown, sample):
            yield sample, *found, *(gr.skip() for _ in inputs.all)

    def _names(ws: Workspace, name: str, listed: str) -> tuple[str, ...] | None:
        """Class names count where a model has no classes of its own; a writer's choices are the file's."""
        family = family_of(studio, ws, name)
        return read_names(listed) if family is not None and family.reads == "images" and family.choices else None

    def measure(
        ws: Workspace, keys: list[str], shown: str, where: str, most: float, name: str, listed: str, chat: bool
    ) -> Iterator[Any]:
        studio.preflight(ws).require()
        candidates = chosen_candidates(studio, ws, shown, keys)
        samples, left_out = all_samples(studio, ws, where or "", _names(ws, name, listed), chat)
        used = min(int(most), max(len(found) for found in samples.values()))
        caption = f"Up to {used} samples per task. The best merge of each row is bold. {' '.join(left_out)}"
        measured = empty_table(tuple(samples), tuple(candidates))
        yield table_html(measured, caption), gr.update(visible=False)
        for filled in fill_table(studio.model_pool(ws), measured, samples.__getitem__, int(most)):
            measured = filled
            yield table_html(measured, caption), gr.skip()
        columns = zip(*measured.values, strict=True)
        figure = accuracy_bars(
            measured.tasks,
            [candidate.title for candidate in measured.candidates],
            [list(column) for column in columns],
            [METHOD_COLOURS[candidate.kind] for candidate in measured.candidates],
        )
        yield table_html(measured, caption), gr.update(value=figure, visible=True)

    quick: dict[str, Any] = {"show_progress": "hidden"}
    asking = [workspace, task, models, run_id]
    answered = [current, verdict, chart]
    workspace.change(
        sentences(open_workspace),
        [workspace, run_id],
        [empty, body, task, models, offered, where, limit, accuracies, bars, *answered, *inputs.all],
        **quick,
    )
    # A merge may have finished since the tab was last looked at.
    tab.select(
        sentences(lambda *values: offer(studio, *values)),
        [workspace, run_id, models, offered],
        [models, offered],
        **quick,
    )
    pad, listed, chat = inputs.pad, inputs.choices, inputs.chat
    pad.input(sentences(drawn), [*asking, pad], answered, queue=False, trigger_mode="always_last", **quick)
    inputs.picture.input(sentences(uploaded), [*asking, inputs.picture, listed], answered, **quick)
    inputs.ask.click(sentences(asked), [*asking, current, inputs.text, listed, chat], answered, show_progress="minimal")
    inputs.pick.click(
        sentences(picked), [*asking, where, listed, chat], [*answered, *inputs.all], show_progress="minimal"
    )
    task.input(sentences(open_task), [workspace, task], [*answered, *inputs.all], **quick)
    models.input(sentences(try_it), [*asking, current], [verdict, chart], **quick)
    fill.click(
        sentences(measure),
        [workspace, models, run_id, where, limit, task, listed, chat],
        [accuracies, bars],
        show_progress="hidden",
    )


def _no_table() -> Safe:
    return empty_state("Not measured yet", "Press Fill the table: every chosen model is tried on every task.")
