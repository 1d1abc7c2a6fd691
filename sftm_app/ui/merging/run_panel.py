"""The run on show: progress with Cancel and Resume, what the merge can do, Save, and the list of runs so far."""

from __future__ import annotations

from typing import Any

import gradio as gr

from sftm_app.errors import SFTMError
from sftm_app.jobs import control
from sftm_app.jobs.folder import RunFolder, list_runs, open_run
from sftm_app.jobs.status import status
from sftm_app.planning.recipe import Recipe
from sftm_app.ui.handlers import QUIET, Updates, Values, handle, show_info
from sftm_app.ui.merging.result_scores import Scores, cancel_measuring, measure_run, scores_of
from sftm_app.ui.merging.run_view import errors_html, progress_html, result_html, result_plot, run_labels
from sftm_app.ui.merging.saving import default_save_name, save_run, saved_html
from sftm_app.ui.studio import Studio
from sftm_app.ui.widgets import PlotlyView, UncheckedDropdown
from sftm_app.ui.widgets.blocks import block
from sftm_app.ui.widgets.html import empty_state, notice
from sftm_app.ui.workspace import Workspace

MAX_RUNS_SHOWN = 30


class RunPanel:
    """The panel.

    Attributes:
        run_id: of the run on show, "" for none.
        views: what `show` updates; outputs: what `open` updates.
        active: whether it is running. A hidden checkbox: unlike a gr.State it reports its changes outside the queue.
    """

    def __init__(self, studio: Studio) -> None:
        self.studio = studio
        self.run_id = gr.State("")
        self.active = gr.Checkbox(visible="hidden", label="A run is active")
        self.timer = gr.Timer(0.5, active=False)

    def lay_out_buttons(self) -> None:
        """Cancel and Resume, next to Start."""
        self.cancel = gr.Button("Cancel", variant="stop", interactive=False, elem_id="cancel")
        self.resume = gr.Button("Resume", visible=False, elem_id="resume")

    def lay_out(self) -> None:
        """Progress, result, Save, and the runs so far."""
        settings = self.studio.settings
        self.progress = block(elem_id="progress")
        with gr.Row(visible=False, elem_classes="sf-start") as self.next:
            self.evaluate = gr.Button("Evaluate this merge", variant="primary", elem_id="evaluate-merge")
            self.measure = gr.Button("Measure it now", visible=False, elem_id="measure-run")
            self.stop_measuring = gr.Button("Cancel the measurement", visible=False, elem_id="measure-cancel")
        self.scored = gr.State(None)  # what `scores` shows, so that it is not drawn again while models are measured
        self.measured = block(elem_id="measure-progress")
        self.scores = block(elem_id="run-scores")
        self.bars = PlotlyView(label="Scores per task", filename="scores", visible=False, elem_id="run-bars")
        self.result = block(elem_id="result")
        with gr.Accordion(
            "Details: readout and mapping error per task", open=False, visible=False, elem_id="run-details"
        ) as self.details:
            self.errors = block(elem_id="run-errors")
            self.chart = PlotlyView(
                label="Readout and mapping error per task",
                filename="preservation",
                visible=False,
                elem_id="preservation",
            )
        with gr.Group(visible=False) as self.save_box:
            self.name = gr.Textbox(
                label="Save as",
                info=f"A new folder in {settings.output_dir.name}/{settings.saved_dir.name}.",
                max_lines=1,
                elem_id="save-name",
            )
            self.save = gr.Button("Save the merged model", variant="primary", elem_id="save")
        self.saved = block(elem_id="saved")
        self.runs = UncheckedDropdown(
            label="Runs so far",
            info="Every merge is kept in the output folder. Choose one to see it again or to save it.",
            choices=[],
            value=None,
            elem_id="runs",
        )
        self.views: set[Any] = {self.progress, self.result, self.chart, self.save_box, self.runs}
        self.views |= {self.details, self.errors, self.scores, self.bars, self.next, self.measure, self.stop_measuring}
        self.views |= {self.measured, self.scored}
        self.views |= {self.active, self.cancel, self.resume, self.timer}
        self.outputs: set[Any] = {self.run_id, self.saved, self.name, *self.views}

    def wire(self) -> None:
        """Connect the components, once all are laid out."""
        shown, view = {self.run_id}, self.views
        one_at_a_time = {"trigger_mode": "once", "concurrency_limit": 1, **QUIET}
        self.cancel.click(handle(self.stop), shown, view, **QUIET)
        self.resume.click(handle(self.resume_run), shown, view, **one_at_a_time)
        self.timer.tick(handle(self.watch), {*shown, self.scored}, view, queue=False, **QUIET)
        self.measure.click(handle(self.begin_measuring), shown, view, **one_at_a_time)
        self.stop_measuring.click(handle(self.cancel_measuring), shown, view, **QUIET)
        named = {self.run_id, self.name}
        self.save.click(handle(self.save_model), named, {self.saved, self.name}, show_progress="minimal")
        self.runs.input(handle(self.choose), {self.runs}, self.outputs, **QUIET)

    def show(self, run_id: str) -> Updates:
        """The view of one run."""
        nothing: Updates = {
            self.result: "",
            self.details: gr.update(visible=False),
            self.errors: "",
            self.chart: gr.update(visible=False),
            self.save_box: gr.update(visible=False),
            **self._scored(Scores(), False),
            **self._buttons(),
        }
        if not run_id:
            body = "Press Start the merge. The demo takes seconds, and a merge can be cancelled at any time."
            return {**nothing, self.progress: empty_state("No merge yet", body), self.runs: self._runs("")}
        try:
            folder = open_run(self.studio.settings.runs_dir, run_id)
            now = status(folder)
            shown: Updates = {self.progress: progress_html(now), **self._buttons(now.active, now.resumable)}
            if now.state == "done":
                scores = scores_of(self.studio, folder)
                shown |= {**self._scored(scores, True), self.timer: gr.Timer(active=scores.measuring)}
                report = self.studio.report(folder)
                plot = result_plot(report)
                shown[self.result] = result_html(report)
                shown |= {self.details: gr.update(visible=True), self.errors: errors_html(report)}
                shown[self.chart] = gr.update(value=plot, visible=plot is not None)
                shown[self.save_box] = gr.update(visible=True)
        except (SFTMError, OSError) as error:
            # The folder was removed or damaged. The timer is off, so this is reported once.
            problem = notice("error", "This run cannot be shown", error)
            return {**nothing, self.progress: problem, self.runs: self._runs("")}
        # While it runs the list is left alone: an update would close it under the person's hand.
        return nothing | shown | ({} if now.state == "running" else {self.runs: self._runs(run_id)})

    def open(self, run_id: str) -> Updates:
        """Put another run on show."""
        name = default_save_name(self.studio, run_id)
        return {self.run_id: run_id, self.saved: "", self.name: name, **self.show(run_id)}

    def open_latest(self, ws: Workspace) -> Updates:
        """Put on show what a workspace shows first: the active run, otherwise its newest one."""
        active = control.active_run(self.studio.settings.runs_dir)
        latest = active or next(self.studio.runs_of(ws), None)
        return self.open(latest.run_id if latest else "")

    def start(self, recipe: Recipe) -> Updates:
        """Start a run and put it on show; if one is active, show that."""
        runs_dir = self.studio.settings.runs_dir
        active = control.active_run(runs_dir)
        if active is not None:
            show_info("A merge is running already; it is shown here. Wait for it, or cancel it.")
        run = active or control.start(runs_dir, recipe, self.studio.workers)
        return self.open(run.run_id)

    def stop(self, values: Values) -> Updates:
        """Cancel the run on show."""
        run_id = values[self.run_id]
        if run_id:
            control.cancel(open_run(self.studio.settings.runs_dir, run_id))
        return self.show(run_id)

    def resume_run(self, values: Values) -> Updates:
        """Resume the run on show."""
        run_id = values[self.run_id]
        if run_id:
            control.resume(open_run(self.studio.settings.runs_dir, run_id), self.studio.workers)
        return self.show(run_id)

    def watch(self, values: Values) -> Updates:
        """Show the progress of the run on show."""
        run_id, scored = values[self.run_id], values[self.scored]
        if scored is None:
            return self.show(run_id)
        # It is being measured: the rest is left alone, because a new list of runs would close under the person's hand.
        scores = scores_of(self.studio, RunFolder(self.studio.settings.runs_dir / run_id), scored)
        if scores.html is None:
            return {self.measured: scores.progress}
        return {**self._scored(scores, True), self.timer: gr.Timer(active=scores.measuring)}

    def begin_measuring(self, values: Values) -> Updates:
        """Measure the merge on show."""
        measure_run(self.studio, open_run(self.studio.settings.runs_dir, values[self.run_id]))
        return self.show(values[self.run_id])

    def cancel_measuring(self, values: Values) -> Updates:
        """Stop to measure the merge on show."""
        cancel_measuring(self.studio, open_run(self.studio.settings.runs_dir, values[self.run_id]))
        return self.show(values[self.run_id])

    def choose(self, values: Values) -> Updates:
        """Put the chosen one of the runs so far on show."""
        return self.open(values[self.runs] or "")

    def save_model(self, values: Values) -> Updates:
        """Save the model of the run on show."""
        target = save_run(self.studio, values[self.run_id], values[self.name])
        return {self.saved: saved_html(target), self.name: default_save_name(self.studio, values[self.run_id])}

    def _buttons(self, active: bool = False, resumable: bool = False) -> Updates:
        return {
            self.active: active,
            self.cancel: gr.update(interactive=active),
            self.resume: gr.update(visible=resumable),
            self.timer: gr.Timer(active=active),
        }

    def _scored(self, scores: Scores, done: bool) -> Updates:
        return {
            self.scores: scores.html,
            self.bars: gr.update(value=scores.figure, visible=scores.figure is not None),
            self.scored: scores.drawn,
            self.measured: scores.progress,
            self.next: gr.update(visible=done),
            self.measure: gr.update(visible=scores.askable),
            self.stop_measuring: gr.update(visible=scores.measuring),
        }

    def _runs(self, chosen: str) -> Any:
        labels = run_labels(self.studio, list_runs(self.studio.settings.runs_dir)[:MAX_RUNS_SHOWN])
        return gr.update(choices=[(label, run_id) for run_id, label in labels.items()], value=chosen or None)
