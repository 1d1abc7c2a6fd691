"""Evaluate: draw, write, pick or upload a sample and compare the models; measure them; the leaderboard of merges."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import gradio as gr

from sftm_app.errors import SampleError
from sftm_app.evaluation.candidates import Candidate
from sftm_app.evaluation.family import Family
from sftm_app.evaluation.samples import ImageSamples, Samples
from sftm_app.methods import METHODS
from sftm_app.ui.evaluate.answers import (
    Offer,
    answers,
    chosen_candidates,
    first_offer,
    merges_quickly,
    next_offer,
    offer_of,
    ticked_candidates,
)
from sftm_app.ui.evaluate.labelled import samples_of
from sftm_app.ui.evaluate.leaderboard_panel import LeaderboardPanel
from sftm_app.ui.evaluate.sample_inputs import SampleInputs, family_of, read_names
from sftm_app.ui.evaluate.shown import Shown, shown_from_text, shown_to_text
from sftm_app.ui.evaluate.sources import Source, benchmark_of
from sftm_app.ui.evaluate.table_panel import TablePanel
from sftm_app.ui.forms.method_help import methods_html
from sftm_app.ui.handlers import QUIET, Updates, Values, handle, over
from sftm_app.ui.keeping import Parts
from sftm_app.ui.studio import Studio
from sftm_app.ui.widgets import (
    PlotlyView,
    Selection,
    UncheckedCheckboxGroup,
    UncheckedDropdown,
    parse_selection,
)
from sftm_app.ui.widgets.blocks import block, no_models
from sftm_app.ui.widgets.html import details, empty_state, hint
from sftm_app.ui.workspace import Workspace

NOTHING_TRIED = (
    "Nothing tried yet",
    "Give the models something to read on the left, or pick a sample that none of them has seen.",
)


@dataclass(frozen=True)
class Question:
    """What is asked. where, names, chat: see labelled.samples_of."""

    ws: Workspace
    task: str
    keys: tuple[str, ...]
    where: str
    names: tuple[str, ...] | None
    chat: bool
    family: Family | None


class EvaluateTab:
    """The tab. It follows `workspace`."""

    def __init__(self, studio: Studio, workspace: gr.State, tab: gr.Tab, parts: Parts) -> None:
        self.studio, self.workspace, self.part = studio, workspace, parts.add("evaluate")
        self.sample, self.offered = gr.State(None), gr.State([])
        # The same as in `models`, which the browser may not show yet when the tab is selected.
        self.ticked = gr.State(())
        self.empty = no_models("Nothing to try yet")
        with gr.Column(visible=False, elem_classes="sf-stack") as self.body:
            self._lay_out_question()
            self.table = TablePanel(studio, workspace)
            self.board = LeaderboardPanel(studio, workspace, self.table)
        # What every handler is given.
        self.inputs: set[Any] = {workspace, self.sample, self.offered, *self.boxes.values}
        self.inputs |= {self.task, self.models, self.ticked, self.table.where, self.table.limit}
        self.offers: set[Any] = {self.models, self.offered, self.ticked}
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

    def _wire(self, tab: gr.Tab) -> None:
        boxes, answered, minimal = self.boxes, {self.sample, self.verdict, self.chart}, {"show_progress": "minimal"}
        opened = {self.empty, self.body, self.task, self.part.shown, *self.offers, *answered, *boxes.all}
        opened |= self.table.opened | self.board.about_views
        open_event = self.workspace.change(handle(self.open_workspace), {self.workspace}, opened, **QUIET)
        open_event.then(handle(self.ask_kept), self.inputs, {self.verdict, self.chart}, **QUIET)
        # A merge may have finished since the tab was last shown.
        shown = self.inputs | self.table.inputs
        self.show_table_after(tab.select(handle(self.offer_again), self.inputs, self.offers, **QUIET))
        self.note_after(self.task.input(handle(self.open_task), self.inputs, {*answered, *boxes.all}, **QUIET))
        ticked = self.models.input(handle(self.tick), {self.models}, self.ticked, queue=False, **QUIET)
        self.note_after(ticked)
        ticked.then(handle(self.ask_again), self.inputs, {self.verdict, self.chart}, **QUIET)
        self.models.input(handle(self.table.watch), shown, self.table.views, trigger_mode="always_last", **QUIET)
        options = {"queue": False, "trigger_mode": "always_last", **QUIET}
        opening = {self.task, *answered, *boxes.all}
        for event in (
            boxes.pad.input(handle(self.ask_drawing), self.inputs, answered, **options),
            boxes.picture.input(handle(self.ask_image), self.inputs, answered, **QUIET),
            boxes.ask.click(handle(self.ask_written), self.inputs, answered, **minimal),
            boxes.pick.click(handle(self.ask_picked), self.inputs, {*answered, *boxes.all}, **minimal),
            self.table.wrong.select(handle(self.open_sample), shown, opening, **minimal),
        ):
            self.note_after(event)
        self.table.wire(self.read_models, self.inputs)
        self.board.wire(lambda values: self.read_models(values)[1], self.inputs)
        # A merge may have finished, or been named, since the tab was last shown.
        self.board.show_after(tab.select(None, None, None, **QUIET))
        chosen = {*self.inputs, self.board.chosen}
        self.show_table_after(self.board.tick.click(handle(self.tick_chosen), chosen, self.offers, **QUIET))

    def show_table_after(self, event: Any) -> None:
        """Show the table of the ticked models after an event that ticks others, and keep which are ticked."""
        self.note_after(event)
        event.then(handle(self.table.watch), self.inputs | self.table.inputs, self.table.views, **QUIET)

    def note_after(self, event: Any) -> None:
        """Keep what is shown after an event that changes it."""
        event.then(handle(self.note), self.inputs, self.part.shown, **QUIET)

    def tick(self, values: Values) -> Updates:
        """Note which models the person ticked."""
        return {self.ticked: tuple(values[self.models] or ())}

    def note(self, values: Values) -> Updates:
        """Keep the task, the ticked models and the sample."""
        ws, task = values[self.workspace], values[self.task]
        # The browser has no task before the workspace is open.
        if task not in ws.task_names:
            return {}
        return self._note(ws, Shown(task, values[self.ticked], values[self.sample]))

    def _note(self, ws: Workspace, shown: Shown) -> Updates:
        return self.part.note(ws, shown_to_text(shown, self.studio.settings.output_dir))

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
            values[self.table.where] or "",
            read_names(values[self.boxes.choices]) if takes_names else None,
            bool(values[self.boxes.chat]),
            family,
        )

    def read_models(self, values: Values) -> tuple[list[Candidate], Source]:
        """The ticked models, and where the labelled samples are."""
        question = self.read(values)
        source = Source(question.where.strip(), int(values[self.table.limit]), question.names)
        return ticked_candidates(self.studio, question.ws, question.keys), source

    # What the tab offers.

    def open_workspace(self, values: Values) -> Updates:
        """Show a workspace that was just loaded, as its address asks for or as it was shown last."""
        ws = values[self.workspace]
        names = list(ws.task_names) if self.studio.usable(ws) else []
        asked = shown_from_text(self.part.asked(ws)[0], self.studio.settings.output_dir)
        task = asked.task if asked.task in names else names[0] if names else ""
        offer = first_offer(self.studio, ws)
        if asked.ticked is not None:
            offer = replace(offer, ticked=tuple(key for key in asked.ticked if key in offer.keys))
        ticked = [candidate for candidate in offer.candidates if candidate.key in offer.ticked]
        shown: Updates = {
            self.empty: gr.update(visible=not names),
            self.body: gr.update(visible=bool(names)),
            self.task: gr.update(choices=names, value=task or None),
            **self._offer(offer),
            **self.table.open(ws, ticked),
            **self.board.open(ws),
            **self._open_task(ws, task),
        }
        sample = asked.sample if self._reads(ws, task, asked.sample) else None
        shown |= self._note(ws, Shown(task, offer.ticked, sample)) if names else {}
        return over(shown, {self.sample: sample, **self.boxes.show(ws, sample)}) if sample else shown

    def _reads(self, ws: Workspace, task: str, sample: Samples | None) -> bool:
        """Whether the models of a task read a sample of this kind."""
        family = family_of(self.studio, ws, task)
        return family is not None and (family.reads == "images") == isinstance(sample, ImageSamples)

    def offer_again(self, values: Values) -> Updates:
        """Offer the models again, with merges that finished meanwhile."""
        ticked, before = values[self.ticked], values[self.offered]
        # Before the workspace is open there is nothing to add to.
        if not before:
            return {}
        return self._offer(next_offer(self.studio, values[self.workspace], ticked, before))

    def offer_merge(self, ws: Workspace, model: Path) -> Updates:
        """Tick a merge, and what it is compared with."""
        return self._offer(offer_of(self.studio, ws, model))

    def tick_chosen(self, values: Values) -> Updates:
        """Tick the merge that is chosen in the leaderboard, and what it is compared with."""
        return self.offer_merge(values[self.workspace], self.board.merge_of(values).folder)

    def open_task(self, values: Values) -> Updates:
        """Show the inputs that suit the chosen task."""
        return self._open_task(values[self.workspace], values[self.task] or "")

    def _offer(self, offer: Offer) -> Updates:
        choices = [(candidate.title, candidate.key) for candidate in offer.candidates]
        models = gr.update(choices=choices, value=list(offer.ticked))
        return {self.models: models, self.offered: offer.keys, self.ticked: offer.ticked}

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
            models = chosen_candidates(self.studio, ws, question.keys)
            for verdicts, figure in answers(self.studio, ws, task, sample, models):
                chart = gr.update(value=figure, visible=figure is not None)
                yield {self.sample: sample, self.verdict: verdicts, self.chart: chart}

    def ask_again(self, values: Values) -> Iterator[Updates]:
        """Ask about the same sample, after other models were ticked."""
        for updates in self.ask(self.read(values), values[self.sample]):
            yield {component: update for component, update in updates.items() if component is not self.sample}

    def ask_kept(self, values: Values) -> Iterator[Updates]:
        """Ask about the sample that was shown last, where the answers take only a moment."""
        if values[self.sample] is not None and merges_quickly(self.studio, values[self.workspace]):
            yield from self.ask_again(values)

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

    def open_sample(self, values: Values, event: gr.EventData) -> Iterator[Updates]:
        """Show a sample that a model got wrong, and what each ticked model says of it."""
        yield from self.sample_of(values, parse_selection(event))

    def sample_of(self, values: Values, selection: Selection | None) -> Iterator[Updates]:
        """The same for a selection, which comes from the browser: of anything else, nothing."""
        data = selection.customdata if selection else None
        if not isinstance(data, tuple) or len(data) != 3 or data[0] != "sample":
            return
        ws, (_, task, place) = values[self.workspace], data
        _, source = self.read_models(values)
        _, benchmark = benchmark_of(self.studio, ws, source)
        samples = benchmark.samples.get(str(task))
        if samples is None or not isinstance(place, float) or not 0 <= place < len(samples):
            return
        sample = samples.take([int(place)])
        opened = {self.task: task, **self._open_task(ws, str(task))}
        yield over(opened, {self.sample: sample, **self.boxes.show(ws, sample)})
        yield from self.ask(self.read({**values, self.task: task}), sample)
