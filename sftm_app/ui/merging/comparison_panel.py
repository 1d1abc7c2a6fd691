"""Compare methods: merge with several and measure each on labelled samples, with progress, Cancel and a table."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from typing import Any

import gradio as gr

from sftm_app.errors import InputError, SFTMError
from sftm_app.evaluation.candidates import BASE, INDIVIDUAL, Candidate, method_candidate
from sftm_app.evaluation.measuring import Benchmark
from sftm_app.methods import METHODS
from sftm_app.methods.params import values_of
from sftm_app.methods.settings import MergeSettings
from sftm_app.ui.comparisons import Conditions
from sftm_app.ui.evaluate.labelled import INFO_IMAGES, INFO_TEXTS, all_samples, first_limit, samples_slider
from sftm_app.ui.evaluate.progress_view import progress_html
from sftm_app.ui.evaluate.sample_inputs import family_of
from sftm_app.ui.forms.method_help import fitting_methods, methods_html
from sftm_app.ui.handlers import QUIET, Updates, Values, handle, show_info
from sftm_app.ui.merging.comparison_view import board_plot, board_table, candidate_settings
from sftm_app.ui.merging.kept_table import PART, table_from_text, table_to_text
from sftm_app.ui.studio import Studio, workspace_key
from sftm_app.ui.widgets import LinkedHtml, PlotlyView, Selection, UncheckedCheckboxGroup, parse_selection
from sftm_app.ui.widgets.blocks import block, section
from sftm_app.ui.widgets.html import details, hint, join, notice
from sftm_app.ui.workspace import Workspace

# The table of methods begins with those that everything is compared with.
N_FIRST_TICKED = 3
SECTION = "compare-methods"
# Reads the settings of the form above: (values) -> the settings, and whether fused maps are split.
ReadForm = Callable[[Values], tuple[MergeSettings, bool]]


class ComparisonPanel:
    """The panel.

    Args:
        workspace: what is merged.
        read_form: reads the form; form_inputs: the components that it reads.

    Attributes:
        views: what `show` updates.
    """

    def __init__(self, studio: Studio, workspace: gr.State, read_form: ReadForm, form_inputs: set[Any]) -> None:
        self.studio, self.workspace = studio, workspace
        self.read_form, self.form_inputs = read_form, form_inputs
        # What the table and the plot show, so that they are not replaced under the person's hand.
        self.drawn = gr.State(None)
        self.timer = gr.Timer(0.5, active=False)
        section(
            "Compare methods",
            "Merges with every ticked method, one after the other, and measures each on labelled samples. The method "
            "chosen above is taken with its settings above, the others with their defaults. Task weights hold for all.",
            elem_id=SECTION,
        )
        self.methods = UncheckedCheckboxGroup(
            label="Methods",
            info="Methods already in the table are not measured again.",
            choices=[],
            value=[],
            show_select_all=True,
            elem_id="compared-methods",
        )
        self.about = block(elem_id="compared-about")
        with gr.Row(equal_height=False):
            self.where = gr.Textbox(
                label="Labelled samples",
                info=INFO_IMAGES,
                max_lines=1,
                scale=3,
                min_width=280,
                elem_id="compared-where",
            )
            self.limit = samples_slider("compared-limit")
            with gr.Column(scale=1, min_width=160, elem_classes="sf-buttons"):
                self.start = gr.Button("Compare", variant="primary", elem_id="compare-start")
                self.cancel = gr.Button("Cancel", variant="stop", visible=False, elem_id="compare-cancel")
                self.clear = gr.Button("Clear the table", size="sm", visible=False, elem_id="compare-clear")
        self.progress = block(elem_id="compare-progress")
        self.table = LinkedHtml(elem_id="compare-table")
        self.chart = PlotlyView(
            label="Mean accuracy of the methods", filename="methods", visible=False, elem_id="compare-chart"
        )
        self.views: set[Any] = {self.progress, self.table, self.chart, self.drawn, self.timer}
        self.views |= {self.start, self.cancel, self.clear}
        self.opened: set[Any] = {self.methods, self.about, self.where, self.limit, *self.views}

    def wire(self, write: Callable[[Workspace, MergeSettings], Updates], written: set[Any]) -> Any:
        """Connect the components. write: shows settings in the form, updating `written`; returns the event of it."""
        shown = {self.workspace, self.drawn}
        asked = {self.workspace, self.methods, self.where, self.limit, *self.form_inputs}
        one_at_a_time = {"trigger_mode": "once", "concurrency_limit": 1, **QUIET}
        self.start.click(handle(self.begin), asked, self.views, **one_at_a_time)
        self.cancel.click(handle(self.stop), shown, self.views, **QUIET)
        self.clear.click(handle(self.forget), shown, self.views, **QUIET)
        self.timer.tick(handle(self.watch), shown, self.views, queue=False, **QUIET)

        def use(values: Values, event: gr.EventData) -> Updates:
            settings = self.settings_of(values[self.workspace], parse_selection(event))
            return {} if settings is None else write(values[self.workspace], settings)

        return self.table.select(handle(use), {self.workspace}, written, **QUIET)

    def open(self, ws: Workspace) -> Updates:
        """Offer what fits a workspace that was just loaded, and show its table."""
        if not self.studio.usable(ws):
            return {self.methods: gr.update(choices=[], value=[]), self.drawn: None, self.timer: gr.Timer(active=False)}
        family = family_of(self.studio, ws, ws.task_names[0])
        names = fitting_methods(len(ws.tasks))
        others = [method for name, method in METHODS.items() if name not in names]
        left_out = [hint(f"Not offered: {method.title} merges exactly {method.n_tasks} tasks.") for method in others]
        reads_text = family is not None and family.reads == "text"
        choices = [(METHODS[name].title, name) for name in names]
        return {
            self.methods: gr.update(choices=choices, value=names[:N_FIRST_TICKED]),
            self.about: join([*left_out, details("What each method is for, and its source", methods_html(names))]),
            self.where: gr.update(value="", info=INFO_TEXTS if reads_text else INFO_IMAGES),
            self.limit: first_limit(family),
            **self.show(ws, None),
        }

    def show(self, ws: Workspace, drawn: object) -> Updates:
        """The table of a workspace. drawn: what the page shows of it already."""
        board = self.studio.comparisons.board(workspace_key(ws))
        if board is None:
            nothing: Updates = {self.progress: "", self.table: "", self.chart: gr.update(visible=False)}
            return {**nothing, self.drawn: None, **self._buttons(False, False)}
        running = board.active
        shown: Updates = {self.progress: progress_html(board), **self._buttons(running, not running)}
        if board.drawn != drawn:
            plot = board_plot(ws, board)
            # It was cancelled before anything was measured.
            table = board_table(ws, board) if board.comparison.rows else ""
            shown |= {self.table: table, self.drawn: board.drawn}
            shown[self.chart] = gr.update(value=plot, visible=plot is not None)
        return shown

    def begin(self, values: Values) -> Updates:
        """Start to measure what is ticked and was not measured yet.

        Raises:
            InputError: nothing is ticked, or there are no samples.
        """
        ws, ticked = values[self.workspace], values[self.methods] or ()
        if not ticked:
            raise InputError("No method is ticked. Tick at least one under Methods.")
        settings, split = self.read_form(values)
        try:
            conditions, benchmark = self._benchmark(ws, values[self.where] or "", int(values[self.limit]), split)
        except SFTMError as error:
            said = notice("warning", "These models cannot be measured yet", error)
            return {self.progress: said, **self._buttons(False, False)}
        key, candidates = workspace_key(ws), candidates_of(ws, settings, ticked)
        board = self.studio.comparisons.board(key)
        measured = {row.candidate.key for row in board.comparison.rows if row.state == "done"} if board else set()
        if board and board.conditions == conditions and measured.issuperset(c.key for c in candidates):
            show_info("All of these are in the table already. Change the settings or tick another method.")
            return self.show(ws, None)
        self.studio.comparisons.start(key, conditions, benchmark, candidates)
        started = self.studio.comparisons.board(key)
        rows = started.comparison.rows if started else ()
        self.studio.keeper.put(ws, PART, table_to_text(conditions, [row.candidate for row in rows]))
        return self.show(ws, None)

    def restore(self, values: Values) -> Updates:
        """Fill the table of before a restart again with what is known of its models; nothing is measured anew."""
        ws = values[self.workspace]
        text = self.studio.keeper.get(ws, PART) if self.studio.usable(ws) else ""
        if not text or self.studio.comparisons.board(workspace_key(ws)) is not None:
            return {}
        kept = table_from_text(text, ws)
        if kept is None:
            return {}
        candidates, where, limit, split = kept
        with contextlib.suppress(SFTMError):  # the samples are gone, or the models
            conditions, benchmark = self._benchmark(ws, where, limit, split)
            every = (BASE, INDIVIDUAL, *candidates)
            known = [one for one in every if len(benchmark.known(one)) == len(benchmark.samples)]
            if len(known) > 2 and {BASE, INDIVIDUAL} <= set(known):
                self.studio.comparisons.start(workspace_key(ws), conditions, benchmark, known[2:])
                return {**self.show(ws, None), self.where: where, self.limit: limit}
        return {}

    def _benchmark(self, ws: Workspace, where: str, limit: int, split: bool) -> tuple[Conditions, Benchmark]:
        found = self.studio.preflight(ws).require()
        pool, first = self.studio.model_pool(ws), ws.task_names[0]
        # A demo's samples are whole prompts; a person's message to a chat model needs its template.
        chat = self.studio.pack(ws) is None and family_of(self.studio, ws, first) is not None and pool.chats(first)
        samples, left_out = all_samples(self.studio, ws, where, chat=chat)
        used = {task: one.subset(limit) for task, one in samples.items()}
        conditions = Conditions(where.strip(), limit, split, tuple(left_out))
        return conditions, Benchmark(found, used, self.studio.session, split, self.studio.answers)

    def stop(self, values: Values) -> Updates:
        """Cancel the comparison."""
        ws = values[self.workspace]
        self.studio.comparisons.cancel(workspace_key(ws))
        return self.show(ws, values[self.drawn])

    def forget(self, values: Values) -> Updates:
        """Clear the table."""
        ws = values[self.workspace]
        self.studio.comparisons.clear(workspace_key(ws))
        self.studio.keeper.put(ws, PART, "")
        return self.show(ws, None)

    def watch(self, values: Values) -> Updates:
        """Show how far the comparison is."""
        return self.show(values[self.workspace], values[self.drawn])

    def settings_of(self, ws: Workspace, selection: Selection | None) -> MergeSettings | None:
        """The settings of the row whose link was clicked; None for anything else, for it comes from the browser."""
        data = selection.customdata if selection else None
        board = self.studio.comparisons.board(workspace_key(ws))
        if not isinstance(data, tuple) or len(data) != 2 or data[0] != "use" or board is None:
            return None
        rows = [row for row in board.comparison.rows if row.is_merge and row.candidate.key == data[1]]
        return candidate_settings(ws, rows[0].candidate) if rows else None

    def _buttons(self, running: bool, clearable: bool) -> Updates:
        return {
            self.start: gr.update(interactive=not running),
            self.cancel: gr.update(visible=running),
            self.clear: gr.update(visible=clearable),
            self.timer: gr.Timer(active=running),
        }


def candidates_of(ws: Workspace, settings: MergeSettings, names: Sequence[str]) -> list[Candidate]:
    """The merges to measure: the method of the settings with its parameters, others with their defaults.

    Args:
        ws: the workspace.
        settings: of the form. Its weights hold for all methods.
        names: of the methods; unknown ones are left out, for they come from the browser.
    """
    weights = settings.weights if settings.weights != ws.weights else None
    default = values_of(type(settings.params)())
    changed = {name: value for name, value in values_of(settings.params).items() if value != default[name]}
    return [method_candidate(n, changed if n == settings.method else {}, weights) for n in METHODS if n in names]
