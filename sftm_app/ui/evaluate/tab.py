"""Evaluate: draw, write, pick or upload a sample and compare the models; fill the table tasks x models."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import gradio as gr

from sftm_app.errors import SampleError
from sftm_app.evaluation.accuracy import empty_table, fill_table
from sftm_app.evaluation.family import Family
from sftm_app.evaluation.samples import ImageSamples, Samples
from sftm_app.methods import METHODS
from sftm_app.plots.accuracy import accuracy_bars
from sftm_app.plots.style import Series, method_colour, method_pattern
from sftm_app.ui.evaluate.answers import Offer, answers, chosen_candidates, first_offer, next_offer, table_html
from sftm_app.ui.evaluate.labelled import INFO_IMAGES, INFO_TEXTS, SOME_SAMPLES, all_samples, first_limit, samples_of
from sftm_app.ui.evaluate.sample_inputs import SampleInputs, family_of, read_names
from sftm_app.ui.forms.method_help import methods_html
from sftm_app.ui.handlers import QUIET, Updates, Values, handle
from sftm_app.ui.studio import Studio
from sftm_app.ui.widgets import PlotlyView, UncheckedCheckboxGroup, UncheckedDropdown
from sftm_app.ui.widgets.blocks import block, no_models, section
from sftm_app.ui.widgets.html import Html, details, empty_state, hint
from sftm_app.ui.workspace import Workspace

NOTHING_TRIED = (
    "Nothing tried yet",
    "Give the models something to read on the left, or pick a sample that none of them has seen.",
)


@dataclass(frozen=True)
class Question:
    """What is asked. run_id: of the merge on show on the Merge tab. where, names, chat: see labelled.samples_of."""

    ws: Workspace
    task: str
    keys: tuple[str, ...]
    run_id: str
    where: str
    names: tuple[str, ...] | None
    chat: bool
    family: Family | None


class EvaluateTab:
    """The tab. It follows `workspace`, and offers the run on show in `run_id` as one of the models."""

    def __init__(self, studio: Studio, workspace: gr.State, run_id: gr.State, tab: gr.Tab) -> None:
        self.studio, self.workspace, self.run_id = studio, workspace, run_id
        self.sample, self.offered = gr.State(None), gr.State([])
        self.empty = no_models("Nothing to try yet")
        with gr.Column(visible=False, elem_classes="sf-stack") as self.body:
            self._lay_out_question()
            self._lay_out_table()
        # What every handler is given.
        self.inputs: set[Any] = {workspace, run_id, self.sample, self.offered, *self.boxes.values}
        self.inputs |= {self.task, self.models, self.where, self.limit}
        self._wire(tab)

    def _lay_out_question(self) -> None:
        with gr.Row(equal_height=False):
            self.task = UncheckedDropdown(
                label="Task",
                info="Its model answers; a merged model answers with the head of this task.",
                choices=[],
                value=None,
                elem_id="task",
            )
            self.models = UncheckedCheckboxGroup(
                label="Models",
                info="Methods are merged in memory with their default settings; your own merges are read from disk.",
                choices=[],
                value=[],
                scale=3,
                elem_id="models",
            )
        block(details("What each method is for, and its source", methods_html(list(METHODS))))
        with gr.Row(equal_height=False):
            with gr.Column(scale=1, min_width=280):
                self.boxes = SampleInputs(self.studio)
            with gr.Column(scale=2, min_width=360, elem_classes="sf-stack"):
                self.verdict = block(elem_id="verdict")
                self.chart = PlotlyView(
                    label="Probabilities",
                    filename="probabilities",
                    empty_title=NOTHING_TRIED[0],
                    empty_body=NOTHING_TRIED[1],
                    elem_id="probabilities",
                )

    def _lay_out_table(self) -> None:
        section("All tasks", "Accuracy on labelled samples that no model was trained on.")
        with gr.Row(equal_height=False):
            self.where = gr.Textbox(
                label="Labelled samples", info=INFO_IMAGES, max_lines=1, scale=3, elem_id="labelled"
            )
            self.limit = gr.Slider(
                10,
                1000,
                value=SOME_SAMPLES,
                step=10,
                label="Samples per task",
                info="Fewer is faster; more is more precise.",
                scale=2,
            )
            self.fill = gr.Button("Fill the table", variant="primary", scale=1, elem_id="fill")
        self.accuracies = block(_no_table(), elem_id="accuracies")
        self.bars = PlotlyView(label="Accuracy per task", filename="accuracy", visible=False, elem_id="accuracy-bars")

    def _wire(self, tab: gr.Tab) -> None:
        boxes, answered, minimal = self.boxes, {self.sample, self.verdict, self.chart}, {"show_progress": "minimal"}
        opened = {self.empty, self.body, self.task, self.models, self.offered, self.where, self.limit}
        opened |= {self.accuracies, self.bars, *answered, *boxes.all}
        self.workspace.change(handle(self.open_workspace), self.inputs, opened, **QUIET)
        # A merge may have finished since the tab was last shown.
        tab.select(handle(self.offer_again), self.inputs, {self.models, self.offered}, **QUIET)
        self.task.input(handle(self.open_task), self.inputs, {*answered, *boxes.all}, **QUIET)
        self.models.input(handle(self.ask_again), self.inputs, {self.verdict, self.chart}, **QUIET)
        options = {"queue": False, "trigger_mode": "always_last", **QUIET}
        boxes.pad.input(handle(self.ask_drawing), self.inputs, answered, **options)
        boxes.picture.input(handle(self.ask_image), self.inputs, answered, **QUIET)
        boxes.ask.click(handle(self.ask_written), self.inputs, answered, **minimal)
        boxes.pick.click(handle(self.ask_picked), self.inputs, {*answered, *boxes.all}, **minimal)
        self.fill.click(handle(self.fill_table), self.inputs, {self.accuracies, self.bars}, **QUIET)

    def read(self, values: Values) -> Question:
        """The question that the controls describe."""
        ws, task = values[self.workspace], values[self.task] or ""
        family = family_of(self.studio, ws, task)
        # Class names count where a model has no classes of its own; a writer's choices are those of the file.
        takes_names = family is not None and family.reads == "images" and bool(family.choices)
        return Question(
            ws,
            task,
            tuple(values[self.models] or ()),
            values[self.run_id],
            values[self.where] or "",
            read_names(values[self.boxes.choices]) if takes_names else None,
            bool(values[self.boxes.chat]),
            family,
        )

    # What the tab offers.

    def open_workspace(self, values: Values) -> Updates:
        """Show a workspace that was just loaded."""
        ws = values[self.workspace]
        names = list(ws.task_names) if self.studio.usable(ws) else []
        first = names[0] if names else None
        family = family_of(self.studio, ws, first) if first else None
        reads_text = family is not None and family.reads == "text"
        return {
            self.empty: gr.update(visible=not names),
            self.body: gr.update(visible=bool(names)),
            self.task: gr.update(choices=names, value=first),
            **self._offer(first_offer(self.studio, ws, values[self.run_id])),
            self.where: gr.update(value="", info=INFO_TEXTS if reads_text else INFO_IMAGES),
            self.limit: first_limit(family),
            self.accuracies: _no_table(),
            self.bars: gr.update(visible=False),
            **self._open_task(ws, first or ""),
        }

    def offer_again(self, values: Values) -> Updates:
        """Offer the models again, with merges that finished meanwhile."""
        ticked, before = values[self.models] or (), values[self.offered]
        return self._offer(next_offer(self.studio, values[self.workspace], values[self.run_id], ticked, before))

    def open_task(self, values: Values) -> Updates:
        """Show the inputs that suit the chosen task."""
        return self._open_task(values[self.workspace], values[self.task] or "")

    def _offer(self, offer: Offer) -> Updates:
        choices = [(candidate.title, candidate.key) for candidate in offer.candidates]
        return {self.models: gr.update(choices=choices, value=list(offer.ticked)), self.offered: offer.keys}

    def _open_task(self, ws: Workspace, task: str) -> Updates:
        family = family_of(self.studio, ws, task)
        # Models that write freely may never fill the chart, so the verdict's place says that nothing was tried.
        writes = family is not None and family.writes
        return {
            self.sample: None,
            self.verdict: empty_state(*NOTHING_TRIED) if writes else "",
            self.chart: gr.update(value=None, visible=not writes),
            **self.boxes.suit(ws, task),
        }

    # Asking the models.

    def ask(self, question: Question, sample: Samples | None) -> Iterator[Updates]:
        """The answers to a sample, updated after each model."""
        ws, task = question.ws, question.task
        if sample is None or not self.studio.usable(ws) or task not in ws.task_names:
            yield {self.sample: sample, self.verdict: "", self.chart: None}
        elif not question.keys:
            yield {self.sample: sample, self.verdict: hint("Tick at least one model."), self.chart: None}
        else:
            models = chosen_candidates(self.studio, ws, question.run_id, question.keys)
            for verdicts, figure in answers(self.studio, ws, task, sample, models):
                chart = gr.update(value=figure, visible=figure is not None)
                yield {self.sample: sample, self.verdict: verdicts, self.chart: chart}

    def ask_again(self, values: Values) -> Iterator[Updates]:
        """Ask about the same sample, after other models were ticked."""
        for updates in self.ask(self.read(values), values[self.sample]):
            yield {component: update for component, update in updates.items() if component is not self.sample}

    def ask_drawing(self, values: Values) -> Updates:
        """Ask about what is drawn; the answers appear all at once."""
        return list(self.ask(self.read(values), self.boxes.drawing(values)))[-1]

    def ask_image(self, values: Values) -> Iterator[Updates]:
        """Ask about an uploaded image."""
        question, sample = self.read(values), self.boxes.image(values)
        if sample is not None and question.family is not None and question.family.picks and not sample.choices:
            said = hint("Write the names to choose from, then press Ask the models.")
            yield {self.sample: sample, self.verdict: said, self.chart: None}
        else:
            yield from self.ask(question, sample)

    def ask_written(self, values: Values) -> Iterator[Updates]:
        """Ask about the written text, or about the image with the written names."""
        question, before = self.read(values), values[self.sample]
        if question.family is not None and question.family.reads == "images":
            if not isinstance(before, ImageSamples):
                raise SampleError("There is no image yet. Upload one, or pick a sample.")
            sample: Samples = replace(before, choices=read_names(values[self.boxes.choices]))
        else:
            sample = self.boxes.written(values, before)
        yield from self.ask(question, sample)

    def ask_picked(self, values: Values) -> Iterator[Updates]:
        """Pick a random labelled sample, show it, and ask about it."""
        question = self.read(values)
        found = samples_of(self.studio, question.ws, question.task, question.where, question.names, question.chat)
        sample = found.take([random.randrange(len(found))])
        yield {self.sample: sample, **self.boxes.show(question.ws, sample)}
        yield from self.ask(question, sample)

    def fill_table(self, values: Values) -> Iterator[Updates]:
        """Measure every chosen model on every task, cell by cell."""
        question, limit = self.read(values), int(values[self.limit])
        self.studio.preflight(question.ws).require()
        models = chosen_candidates(self.studio, question.ws, question.run_id, question.keys)
        samples, left_out = all_samples(self.studio, question.ws, question.where, question.names, question.chat)
        used = min(limit, max(len(found) for found in samples.values()))
        caption = f"Up to {used} samples per task. The best merge in each row is bold. {' '.join(left_out)}"
        measured = empty_table(tuple(samples), tuple(models))
        yield {self.accuracies: table_html(measured, caption), self.bars: gr.update(visible=False)}
        for filled in fill_table(self.studio.model_pool(question.ws), measured, samples.__getitem__, limit):
            measured = filled
            yield {self.accuracies: table_html(measured, caption)}
        columns = zip(models, zip(*measured.values, strict=True), strict=True)
        series = [
            Series(model.title, column, method_colour(model.kind), method_pattern(model.kind))
            for model, column in columns
        ]
        figure = accuracy_bars(measured.tasks, series)
        yield {self.bars: gr.update(value=figure, visible=True)}


def _no_table() -> Html:
    return empty_state("Not measured yet", "Press Fill the table to try every chosen model on every task.")
