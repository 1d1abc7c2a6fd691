"""Evaluate: draw, pick or upload a sample and compare the models; fill the table tasks x models."""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import Any

import gradio as gr

from sftm_app.evaluation.accuracy import empty_table, fill_table
from sftm_app.evaluation.samples import centre_glyph
from sftm_app.plots.accuracy import accuracy_bars
from sftm_app.plots.style import METHOD_COLOURS
from sftm_app.ui.handlers import sentences
from sftm_app.ui.studio import Studio
from sftm_app.ui.trying import Sample, all_samples, answer, chosen_contestants, offer, samples_of, table_html
from sftm_app.ui.widgets import DrawPad, PlotlyView, decode_drawing, encode_drawing
from sftm_app.ui.widgets.html import Safe, empty_state, heading, hint
from sftm_app.ui.workspace import Workspace

MAX_LABELS_SHOWN = 60


def build(studio: Studio, workspace: gr.State, run_id: gr.State, tab: gr.Tab) -> None:
    """Lay out the tab and wire it."""
    current = gr.State(None)
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
                pick = gr.Button("Pick a sample", elem_id="sample")
                known = gr.HTML(apply_default_css=False, elem_id="known-classes")
            with gr.Column(scale=2, min_width=360, elem_classes="sf-stack"):
                verdict = gr.HTML(apply_default_css=False, elem_id="verdict")
                chart = PlotlyView(
                    label="Probabilities",
                    filename="probabilities",
                    empty_title="Nothing tried yet",
                    empty_body="Give the models something to read on the left, or pick a sample that none has seen.",
                    elem_id="probabilities",
                )
        gr.HTML(
            heading("All tasks", "Accuracy on labelled samples that no model was trained on."), apply_default_css=False
        )
        with gr.Row(equal_height=False):
            folder = gr.Textbox(
                label="Labelled images",
                info="Inside the models folder: per task a folder, in it one per class. Empty: the demo's own.",
                max_lines=1,
                scale=3,
                elem_id="labelled",
            )
            limit = gr.Slider(
                50, 1000, value=200, step=50, label="Samples per task", info="Fewer is faster, more is surer.", scale=2
            )
            fill = gr.Button("Fill the table", variant="primary", scale=1, elem_id="fill")
        accuracies = gr.HTML(_no_table(), apply_default_css=False, elem_id="accuracies")
        bars = PlotlyView(label="Accuracy per task", filename="accuracy", visible=False, elem_id="accuracy-bars")

    def open_workspace(ws: Workspace, shown: str) -> tuple[Any, ...]:
        usable = studio.usable(ws)
        names = list(ws.task_names) if usable else []
        pack = studio.pack(ws)
        drawn = bool(pack and pack.drawn)
        return (
            gr.update(visible=not usable),
            gr.update(visible=usable),
            gr.update(choices=names, value=names[0] if names else None),
            *offer(studio, ws, shown, [], []),
            gr.update(visible=drawn, value=None),
            gr.update(visible=not drawn, value=None),
            _known_classes(studio, ws, names[0] if names else ""),
            None,
            "",
            None,
            _no_table(),
            gr.update(visible=False),
        )

    def try_it(ws: Workspace, name: str, keys: list[str], shown: str, sample: Sample | None) -> tuple[Any, ...]:
        if sample is None or not studio.usable(ws) or name not in ws.task_names:
            return "", None
        if not keys:
            return hint("Tick at least one model."), None
        return answer(studio, ws, name, sample, chosen_contestants(studio, ws, shown, keys))

    def drawn(ws: Workspace, name: str, keys: list[str], shown: str, drawing: Any) -> tuple[Any, ...]:
        pixels = decode_drawing(drawing)
        glyph = None if pixels is None else centre_glyph(pixels)
        sample = None if glyph is None else Sample(glyph)
        return sample, *try_it(ws, name, keys, shown, sample)

    def uploaded(ws: Workspace, name: str, keys: list[str], shown: str, image: Any) -> tuple[Any, ...]:
        sample = None if image is None else Sample(image)
        return sample, *try_it(ws, name, keys, shown, sample)

    def picked(ws: Workspace, name: str, keys: list[str], shown: str, where: str) -> tuple[Any, ...]:
        labelled = samples_of(studio, ws, name, where or "")
        index = random.randrange(len(labelled))
        sample = Sample(labelled.images[index], int(labelled.labels[index]))
        pack = studio.pack(ws)
        on_pad = encode_drawing(sample.image) if pack and pack.drawn else None
        return sample, on_pad, None if on_pad else sample.image, *try_it(ws, name, keys, shown, sample)

    def measure(ws: Workspace, keys: list[str], shown: str, where: str, most: float) -> Iterator[Any]:
        studio.preflight(ws).require()
        contestants = chosen_contestants(studio, ws, shown, keys)
        samples, left_out = all_samples(studio, ws, where or "")
        used = min(int(most), max(len(found) for found in samples.values()))
        caption = f"Up to {used} samples per task. The best merge of each row is bold. {' '.join(left_out)}"
        measured = empty_table(tuple(samples), tuple(contestants))
        yield table_html(measured, caption), gr.update(visible=False)
        for filled in fill_table(studio.arena(ws), measured, samples.__getitem__, int(most)):
            measured = filled
            yield table_html(measured, caption), gr.skip()
        columns = zip(*measured.values, strict=True)
        figure = accuracy_bars(
            measured.tasks,
            [contestant.title for contestant in measured.contestants],
            [list(column) for column in columns],
            [METHOD_COLOURS[contestant.kind] for contestant in measured.contestants],
        )
        yield table_html(measured, caption), gr.update(value=figure, visible=True)

    quick: dict[str, Any] = {"show_progress": "hidden"}
    asked = [workspace, task, models, run_id]
    answered = [current, verdict, chart]
    workspace.change(
        sentences(open_workspace),
        [workspace, run_id],
        [empty, body, task, models, offered, pad, picture, known, *answered, accuracies, bars],
        **quick,
    )
    # A merge may have finished since the tab was last looked at.
    tab.select(
        sentences(lambda *values: offer(studio, *values)),
        [workspace, run_id, models, offered],
        [models, offered],
        **quick,
    )
    pad.input(sentences(drawn), [*asked, pad], answered, queue=False, trigger_mode="always_last", **quick)
    picture.input(sentences(uploaded), [*asked, picture], answered, **quick)
    pick.click(sentences(picked), [*asked, folder], [current, pad, picture, verdict, chart], show_progress="minimal")
    task.input(
        sentences(lambda ws, name: (_known_classes(studio, ws, name), None, None, None, "", None)),
        [workspace, task],
        [known, pad, picture, *answered],
        **quick,
    )
    models.input(sentences(try_it), [*asked, current], [verdict, chart], **quick)
    fill.click(
        sentences(measure), [workspace, models, run_id, folder, limit], [accuracies, bars], show_progress="hidden"
    )


def _known_classes(studio: Studio, ws: Workspace, name: str) -> Safe:
    if not studio.usable(ws) or name not in ws.task_names:
        return Safe("")
    labels = list(studio.preflight(ws).tasks[ws.task_names.index(name)].checkpoint.id2label.values())
    more = f" and {len(labels) - MAX_LABELS_SHOWN} more" if len(labels) > MAX_LABELS_SHOWN else ""
    return hint("Classes: " + " · ".join(labels[:MAX_LABELS_SHOWN]) + more)


def _no_table() -> Safe:
    return empty_state("Not measured yet", "Press Fill the table: every chosen model is tried on every task.")
