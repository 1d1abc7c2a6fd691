"""All tasks: measure the ticked models on labelled samples, with progress and Cancel; what is known is shown."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import gradio as gr

from sftm_app.errors import InputError, SFTMError
from sftm_app.evaluation.candidates import BASE, INDIVIDUAL, Candidate
from sftm_app.evaluation.measures import MEASURES
from sftm_app.evaluation.scores import score_table
from sftm_app.ui.comparisons import Board
from sftm_app.ui.evaluate.found_sets import sample_choices
from sftm_app.ui.evaluate.labelled import INFO_IMAGES, INFO_TEXTS, first_limit, samples_slider
from sftm_app.ui.evaluate.progress_view import failures_html, progress_html, progress_of
from sftm_app.ui.evaluate.sample_inputs import family_of
from sftm_app.ui.evaluate.score_view import WRONG, known_answers, models_table, score_bars
from sftm_app.ui.evaluate.sources import Source, benchmark_of, known_source, remember, sample_set
from sftm_app.ui.evaluate.uploads import keep_uploads
from sftm_app.ui.evaluate.wrong_view import wrong_html
from sftm_app.ui.handlers import QUIET, Updates, Values, handle
from sftm_app.ui.studio import Studio, workspace_key
from sftm_app.ui.widgets import LinkedHtml, PlotlyView, Selection, UncheckedDropdown, parse_selection
from sftm_app.ui.widgets.blocks import block, section
from sftm_app.ui.widgets.html import Html, empty_state, notice, stack
from sftm_app.ui.workspace import Workspace

AUTO = "auto"
UPLOADED = [".csv", ".tsv", ".json", ".jsonl", ".parquet"]
# Which models the person ticked, and where the samples are: (values) -> both.
ReadModels = Callable[[Values], tuple[list[Candidate], Source]]


def evaluate_key(ws: Workspace) -> object:
    """Of the board that the tab fills."""
    return "evaluate", workspace_key(ws)


class TablePanel:
    """The panel.

    Args:
        workspace: what is tried.

    Attributes:
        inputs: what it is read from; views: what `show` updates; opened: what `open` updates.
    """

    def __init__(self, studio: Studio, workspace: gr.State) -> None:
        self.studio, self.workspace = studio, workspace
        # What the table shows, so that it is not replaced under the person's hand.
        self.drawn = gr.State(None)
        self.timer = gr.Timer(0.5, active=False)
        section(
            "All tasks",
            "Scores of the ticked models on labelled samples that no model was trained on. What was measured once is "
            "kept.",
        )
        with gr.Row(equal_height=False):
            self.where = UncheckedDropdown(
                label="Labelled samples",
                info=INFO_IMAGES,
                choices=[],
                value="",
                allow_custom_value=True,
                scale=3,
                min_width=280,
                elem_id="labelled",
            )
            self.limit = samples_slider()
            self.measure = UncheckedDropdown(
                [("what suits each task", AUTO), *((one.title, one.name) for one in MEASURES)],
                value=AUTO,
                label="Score",
                info="Accuracy or macro-F1 of choices; exact match, ROUGE-L or BLEU of written text.",
                scale=2,
                min_width=200,
                elem_id="measure-by",
            )
            with gr.Column(scale=1, min_width=160, elem_classes="sf-buttons"):
                self.start = gr.Button("Measure", variant="primary", elem_id="fill")
                self.cancel = gr.Button("Cancel", variant="stop", visible=False, elem_id="fill-cancel")
                self.upload = gr.UploadButton(
                    "Upload samples", file_types=UPLOADED, file_count="multiple", size="sm", elem_id="samples-upload"
                )
        self.progress = block(elem_id="fill-progress")
        self.table = LinkedHtml(_nothing(), elem_id="accuracies")
        self.wrong = LinkedHtml(elem_id=WRONG)
        self.bars = PlotlyView(label="Scores per task", filename="scores", visible=False, elem_id="accuracy-bars")
        self.controls: set[Any] = {self.where, self.limit, self.measure}
        self.inputs: set[Any] = {workspace, self.drawn, *self.controls}
        self.views: set[Any] = {self.progress, self.table, self.bars, self.drawn, self.timer, self.start, self.cancel}
        self.opened: set[Any] = {self.where, self.limit, self.wrong, *self.views}

    def wire(self, read: ReadModels, given: set[Any]) -> None:
        """Connect the components. read: the ticked models and the source, from the values of `given`."""
        self.read = read
        inputs = self.inputs | given
        one_at_a_time = {"trigger_mode": "once", "concurrency_limit": 1, **QUIET}
        self.start.click(handle(self.begin), inputs, self.views, **one_at_a_time)
        self.cancel.click(handle(self.stop), inputs, self.views, **QUIET)
        self.timer.tick(handle(self.watch), inputs, self.views, queue=False, **QUIET)
        for event in (self.where.input, self.limit.release, self.measure.input):
            event(handle(self.redraw), inputs, {*self.views, self.wrong}, trigger_mode="always_last", **QUIET)
        uploaded = {self.where, self.wrong, *self.views}
        self.upload.upload(handle(self.take_upload), {*inputs, self.upload}, uploaded, **QUIET)
        self.table.select(handle(self.open_wrong), inputs, self.wrong, **QUIET)

    def open(self, ws: Workspace, models: Sequence[Candidate]) -> Updates:
        """Show a workspace that was just loaded, with what is known of the ticked models."""
        usable = self.studio.usable(ws)
        family = family_of(self.studio, ws, ws.task_names[0]) if usable else None
        source = known_source(self.studio, ws) or Source(limit=first_limit(family))
        info = INFO_TEXTS if family is not None and family.reads == "text" else INFO_IMAGES
        choices = sample_choices(self.studio.settings, ws) if usable else []
        own = [("the demo's own samples", "")] if self.studio.pack(ws) else []
        return {
            self.where: gr.update(value=source.where, info=info, choices=[*own, *choices]),
            self.limit: source.limit,
            self.wrong: "",
            **self.show(ws, models, source, AUTO, None),
        }

    def show(self, ws: Workspace, models: Sequence[Candidate], source: Source, measure: str, drawn: object) -> Updates:
        """The table of the ticked models. drawn: what the page shows already."""
        board = self.studio.comparisons.board(evaluate_key(ws))
        running = board is not None and board.active
        shown: Updates = {
            self.progress: progress_html(board) if board else "",
            self.start: gr.update(interactive=not running),
            self.cancel: gr.update(visible=running),
            self.timer: gr.Timer(active=running),
        }
        state = (
            progress_of(board),
            tuple(model.key for model in models),
            tuple(m.title for m in models),
            source,
            measure,
        )
        if state == drawn:
            return shown
        table, figure = self._draw(ws, models, source, measure, board)
        return {
            **shown,
            self.table: table,
            self.bars: gr.update(value=figure, visible=figure is not None),
            self.drawn: state,
        }

    def _draw(
        self, ws: Workspace, models: Sequence[Candidate], source: Source, measure: str, board: Board | None
    ) -> tuple[Html, Any]:
        try:
            known = sample_set(self.studio, ws, source)
            rows = _with_ends(models)
            sheets = known_answers(self.studio, ws, known, rows)
        except SFTMError as error:
            # Without samples of the person's there is nothing wrong yet: it says how to add some.
            title = "No labelled samples yet" if not source.where else "These samples cannot be used"
            usable = self.studio.usable(ws)
            return (notice("warning" if source.where else "info", title, error) if usable else _nothing()), None
        if not any(sheets.values()):
            return stack(_nothing(), failures_html(board)), None
        scores = score_table(sheets, "" if measure == AUTO else measure)
        where = f"of {source.where}" if source.where else "of the demo, which no model was trained on"
        table = models_table(scores, rows, known.n_samples, where)
        left_out = notice("info", "Left out", items=known.left_out) if known.left_out else ""
        return stack(table, left_out, failures_html(board)), score_bars(scores, rows)

    def begin(self, values: Values) -> Updates:
        """Start to measure the ticked models.

        Raises:
            InputError: none is ticked, or there are no samples.
        """
        ws = values[self.workspace]
        models, source = self.read(values)
        if not models:
            raise InputError("No model is ticked. Tick at least one under Models.")
        conditions, benchmark = benchmark_of(self.studio, ws, source)
        remember(self.studio, ws, source)
        self.studio.comparisons.start(evaluate_key(ws), conditions, benchmark, models)
        return self.show(ws, models, source, values[self.measure], None)

    def stop(self, values: Values) -> Updates:
        """Cancel. What was measured stays."""
        self.studio.comparisons.cancel(evaluate_key(values[self.workspace]))
        return self.watch(values)

    def watch(self, values: Values) -> Updates:
        """Show how far it is."""
        models, source = self.read(values)
        return self.show(values[self.workspace], models, source, values[self.measure], values[self.drawn])

    def redraw(self, values: Values) -> Updates:
        """Show the table for other samples, scores or models."""
        return {**self.watch(values), self.wrong: ""}

    def take_upload(self, values: Values) -> Updates:
        """Keep uploaded samples, and use them."""
        ws, files = values[self.workspace], values[self.upload]
        where = str(keep_uploads(self.studio.settings, [files] if isinstance(files, str) else files))
        choices = sample_choices(self.studio.settings, ws)
        return {
            **self.redraw({**values, self.where: where}),
            self.where: gr.update(value=where, choices=choices),
        }

    def open_wrong(self, values: Values, event: gr.EventData) -> Updates:
        """Show the wrong answers behind the score that was clicked."""
        return self.wrong_of(values, parse_selection(event))

    def wrong_of(self, values: Values, selection: Selection | None) -> Updates:
        """The same for a selection, which comes from the browser: of anything else, nothing."""
        data = selection.customdata if selection else None
        if not isinstance(data, tuple) or len(data) != 3 or data[0] != "wrong":
            return {}
        ws = values[self.workspace]
        models, source = self.read(values)
        model = next((one for one in _with_ends(models) if one.key == data[1]), None)
        known = sample_set(self.studio, ws, source)
        task = next((one for one in known.digests if one == data[2]), None)
        if model is None or task is None:
            return {}
        sheet = known_answers(self.studio, ws, known, [model])[model.key].get(task)
        if sheet is None:
            return {}
        _, benchmark = benchmark_of(self.studio, ws, source)
        return {self.wrong: wrong_html(model.title, task, sheet, benchmark.samples[task])}


def _with_ends(models: Sequence[Candidate]) -> list[Candidate]:
    """The ticked models, and base and individual: everything is compared with them."""
    keys = {model.key for model in models}
    return [*(end for end in (BASE, INDIVIDUAL) if end.key not in keys), *models]


def _nothing() -> Html:
    return empty_state("Not measured yet", "Press Measure to try every ticked model on every task.")
