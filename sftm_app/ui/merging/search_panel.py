"""Find the best merge: a search over methods, settings and weights on labelled samples, with its best in one click."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import gradio as gr

from sftm_app.errors import SFTMError
from sftm_app.methods import METHODS
from sftm_app.methods.settings import MergeSettings
from sftm_app.tuning.search import Budget, Search, restore
from sftm_app.tuning.setup import (
    LIMIT,
    SEARCHES_NAME,
    About,
    Setup,
    find_about,
    fitting_methods,
    make_setup,
    write_about,
)
from sftm_app.ui.comparisons import Conditions
from sftm_app.ui.evaluate.labelled import INFO_IMAGES, INFO_TEXTS, all_samples
from sftm_app.ui.evaluate.sample_inputs import family_of
from sftm_app.ui.handlers import QUIET, Updates, Values, handle, when_set
from sftm_app.ui.merging.comparison_panel import ReadForm
from sftm_app.ui.merging.comparison_view import candidate_settings
from sftm_app.ui.merging.search_view import (
    USE,
    importance_plot,
    opposed_pair,
    search_best,
    search_progress,
    search_table,
    trial_line,
    trials_plot,
)
from sftm_app.ui.searches import SearchBoard
from sftm_app.ui.studio import Studio, workspace_key
from sftm_app.ui.widgets import LinkedHtml, PlotlyView, Selection, UncheckedDropdown, parse_selection
from sftm_app.ui.widgets.blocks import block
from sftm_app.ui.widgets.html import hint, notice
from sftm_app.ui.workspace import Workspace
from sftm_app.weights.disk_cache import digest

SECTION = "find-best"
ANOTHER = (
    "The samples, the methods or the settings of the search are not those of before, so this is another search. The "
    "earlier one is kept."
)


class SearchPanel:
    """The panel.

    Args:
        workspace: what is merged.
        read_form: reads the form, whose settings are tried first; form_inputs: the components that it reads.

    Attributes:
        opened: what `open` and `restore` update.
    """

    def __init__(self, studio: Studio, workspace: gr.State, read_form: ReadForm, form_inputs: set[Any]) -> None:
        self.studio, self.workspace = studio, workspace
        self.read_form, self.form_inputs = read_form, form_inputs
        # What the table and the plots show, so that they are not replaced under the person's hand.
        self.drawn = gr.State(None)
        # Whether a person chose the tasks on the axes of the plot.
        self.chosen = gr.State(False)
        self.timer = gr.Timer(0.5, active=False)
        with gr.Accordion("Find the best merge on your own samples", open=False, elem_id=SECTION) as self.fold:
            block(
                hint(
                    "Tries merges with many settings and learns from each: the method, its settings, and one weight "
                    "per task. The settings above and every method's defaults come first. Half of the samples choose, "
                    "the other half say how good the best is."
                )
            )
            self._lay_out_form()
            self.progress, self.best = block(elem_id="search-progress"), LinkedHtml(elem_id="search-best")
            self.table = LinkedHtml(elem_id="search-table")
            self._lay_out_plots()
        self.views: set[Any] = {self.progress, self.best, self.table, self.drawn, self.timer, self.start, self.stop}
        self.views |= {
            self.cancel,
            self.plots,
            self.chart,
            self.x,
            self.y,
            self.chosen,
            self.beside,
            self.mattered,
            self.picked,
            self.fold,
        }
        self.form: set[Any] = {self.methods, self.where, self.limit, self.trials, self.minutes, self.weighted}
        self.opened: set[Any] = self.form | self.views

    def _lay_out_form(self) -> None:
        self.methods = UncheckedDropdown(
            label="Methods to search",
            info="Each is tried at its defaults; the best few go on.",
            choices=[],
            value=[],
            multiselect=True,
            elem_id="search-methods",
        )
        with gr.Row(equal_height=False):
            self.where = gr.Textbox(
                label="Labelled samples", info=INFO_IMAGES, max_lines=1, scale=3, min_width=280, elem_id="search-where"
            )
            self.limit = gr.Slider(
                10,
                500,
                value=LIMIT,
                step=10,
                label="Samples per task to choose on",
                info="As many others test the best.",
                scale=2,
                min_width=220,
                elem_id="search-limit",
            )
            self.trials = gr.Slider(
                10,
                500,
                value=50,
                step=10,
                label="Trials",
                info="An earlier search on the same samples counts.",
                scale=2,
                min_width=220,
                elem_id="search-trials",
            )
        with gr.Row(equal_height=False):
            self.minutes = gr.Number(
                value=0,
                minimum=0,
                label="Minutes at most",
                info="0: no limit.",
                min_width=160,
                elem_id="search-minutes",
            )
            self.weighted = gr.Checkbox(
                value=True,
                label="One weight per task",
                info="Otherwise the weights stay as they are.",
                min_width=200,
                elem_id="search-weighted",
            )
            with gr.Column(scale=1, min_width=160, elem_classes="sf-buttons"):
                self.start = gr.Button("Search", variant="primary", elem_id="search-start")
                self.stop = gr.Button("Stop and test the best", visible=False, elem_id="search-stop")
                self.cancel = gr.Button("Cancel", variant="stop", visible=False, elem_id="search-cancel")

    def _lay_out_plots(self) -> None:
        with gr.Column(visible=False, elem_classes="sf-stack") as self.plots:
            with gr.Row():
                self.x = UncheckedDropdown(
                    [],
                    label="Task across",
                    info="Its scores lie on the horizontal axis.",
                    min_width=140,
                    elem_id="search-x",
                )
                self.y = UncheckedDropdown(
                    [],
                    label="Task upwards",
                    info="Its scores lie on the vertical axis.",
                    min_width=140,
                    elem_id="search-y",
                )
            with gr.Row(equal_height=False):
                with gr.Column(scale=3, min_width=320):
                    self.chart = PlotlyView(
                        label="Trials by what they keep of two tasks", filename="trials", elem_id="search-chart"
                    )
                with gr.Column(scale=2, min_width=280, visible=False) as self.beside:
                    self.mattered = PlotlyView(
                        label="Settings of the best method that mattered",
                        filename="importances",
                        elem_id="search-importances",
                    )
            self.picked = LinkedHtml(elem_id="search-picked")

    def wire(self, write: Callable[[Workspace, MergeSettings], Updates], written: set[Any]) -> list[Any]:
        """Connect the components. write: shows settings in the form, updating `written`; returns the events of it."""
        shown = {self.workspace, self.drawn, self.chosen, self.x, self.y}
        asked = self.form | self.form_inputs | {self.workspace}
        self.start.click(handle(self.begin), asked, self.views, trigger_mode="once", concurrency_limit=1, **QUIET)
        self.stop.click(handle(self.end), shown, self.views, **QUIET)
        self.cancel.click(handle(self.give_up), shown, self.views, **QUIET)
        self.timer.tick(handle(self.watch), shown, self.views, queue=False, **QUIET)
        gr.on(
            [when_set(self.x), when_set(self.y)],
            handle(self.draw),
            {self.workspace, self.x, self.y},
            {self.chart, self.chosen},
            trigger_mode="always_last",
            **QUIET,
        )
        self.chart.select(handle(self.pick), {self.workspace}, self.picked, **QUIET)

        def use(values: Values, event: gr.EventData) -> Updates:
            settings = self.settings_of(values[self.workspace], parse_selection(event))
            return {} if settings is None else write(values[self.workspace], settings)

        linked = (self.best, self.table, self.picked)
        return [one.select(handle(use), {self.workspace}, written, **QUIET) for one in linked]

    def open(self, ws: Workspace) -> Updates:
        """Offer what fits a workspace that was just loaded, and show its search if this server carries it out."""
        if not self.studio.usable(ws):
            return {self.methods: gr.update(choices=[], value=[]), self.drawn: None, self.timer: gr.Timer(active=False)}
        family = family_of(self.studio, ws, ws.task_names[0])
        names = list(fitting_methods(len(ws.tasks)))
        return {
            self.methods: gr.update(choices=[(METHODS[name].title, name) for name in names], value=names),
            self.where: gr.update(value="", info=INFO_TEXTS if family and family.reads == "text" else INFO_IMAGES),
            self.weighted: gr.update(visible=len(ws.tasks) > 1),
            **self.show(ws, None),
        }

    def restore(self, values: Values) -> Updates:
        """Show the search of a workspace with what was asked for: this server's, or the latest one on disk."""
        ws = values[self.workspace]
        if not self.studio.usable(ws):
            return {}
        board = self.studio.searches.board(workspace_key(ws)) or self._from_disk(ws)
        if board is None:
            return {}
        about = board.about
        return {
            self.methods: list(about.methods),
            self.where: about.where,
            self.limit: about.limit,
            self.trials: about.trials,
            self.weighted: about.weighted,
            **self.show(ws, None),
        }

    def _from_disk(self, ws: Workspace) -> SearchBoard | None:
        about = next(iter(find_about(self._folder, _models(ws))), None)
        if about is None:
            return None
        try:
            setup, conditions = self._setup(ws, about, None, about.split_fused)
        except SFTMError:  # the samples are gone, or there are too few now
            return None
        found = restore(setup, about.trials)
        if not found.tried:
            return None
        self.studio.searches.show(workspace_key(ws), SearchBoard(setup, about, conditions, found, "left"))
        return self.studio.searches.board(workspace_key(ws))

    @property
    def _folder(self) -> Any:
        return self.studio.settings.output_dir / SEARCHES_NAME

    def begin(self, values: Values) -> Updates:
        """Start to search, or go on."""
        ws = values[self.workspace]
        settings, split = self.read_form(values)
        about = About(
            _models(ws),
            tuple(values[self.methods] or ()),
            bool(values[self.weighted]),
            int(values[self.limit]),
            (values[self.where] or "").strip(),
            int(values[self.trials]),
            split,
        )
        try:
            setup, conditions = self._setup(ws, about, settings, split)
        except SFTMError as error:
            return {self.progress: notice("warning", "These models cannot be searched yet", error)}
        others = find_about(self._folder, _models(ws))
        known = self.studio.searches.board(workspace_key(ws))
        is_new = not setup.folder.exists()
        note = ANOTHER if is_new and (others or known) else ""
        n_samples = {task: len(samples) for task, samples in setup.validation.items()}
        board = SearchBoard(setup, about, conditions, Search(about.trials, n_samples), note=note)
        minutes = float(values[self.minutes] or 0)
        self.studio.searches.start(workspace_key(ws), board, Budget(about.trials, minutes or None))
        write_about(setup.folder, about)
        return self.show(ws, None)

    def _setup(self, ws: Workspace, about: About, own: MergeSettings | None, split: bool) -> tuple[Setup, Conditions]:
        found = self.studio.preflight(ws).require()
        pool, first = self.studio.model_pool(ws), ws.task_names[0]
        # A demo's samples are whole prompts; a person's message to a chat model needs its template.
        chat = self.studio.pack(ws) is None and family_of(self.studio, ws, first) is not None and pool.chats(first)
        samples, left_out = all_samples(self.studio, ws, about.where, chat=chat)
        setup = make_setup(
            found, samples, self.studio.session, self._folder, about.methods, about.weighted, about.limit, own, split
        )
        return setup, Conditions(about.where, about.limit or 0, split, tuple(left_out))

    def show(self, ws: Workspace, drawn: object, pair: tuple[object, object] = (None, None)) -> Updates:
        """The search of a workspace.

        Args:
            ws: the workspace.
            drawn: what the page shows of the search already.
            pair: the tasks on the axes of the plot, if a person chose them.
        """
        board = self.studio.searches.board(workspace_key(ws))
        if board is None:
            empty: Updates = dict.fromkeys((self.progress, self.best, self.table, self.picked), "")
            return {**empty, self.drawn: None, self.plots: gr.update(visible=False), **self._buttons(False)}
        running = board.state == "running"
        shown: Updates = {self.progress: search_progress(board), **self._buttons(running)}
        if board.drawn != drawn:
            shown |= {self.best: search_best(board), self.table: search_table(ws, board), self.drawn: board.drawn}
            shown |= self._plots(board, (None, None) if drawn is None else pair)
            if drawn is None:
                shown |= {self.fold: gr.update(open=True), self.picked: "", self.chosen: False}
        return shown

    def _plots(self, board: SearchBoard, pair: tuple[object, object]) -> Updates:
        tasks, opposed = list(board.search.n_samples), opposed_pair(board.search)
        if opposed is None:
            return {self.plots: gr.update(visible=False)}
        mattered = importance_plot(board)
        shown: Updates = {self.plots: gr.update(visible=True)}
        shown |= {self.beside: gr.update(visible=mattered is not None), self.mattered: mattered}
        if not all(task in tasks for task in pair):
            pair = opposed
            shown[self.x] = gr.update(choices=tasks, value=pair[0])
            shown[self.y] = gr.update(choices=tasks, value=pair[1])
        return {**shown, self.chart: trials_plot(board, str(pair[0]), str(pair[1]))}

    def draw(self, values: Values) -> Updates:
        """Show the trials on two other tasks."""
        board = self.studio.searches.board(workspace_key(values[self.workspace]))
        x, y = values[self.x], values[self.y]
        return {} if board is None or not x or not y else {self.chart: trials_plot(board, x, y), self.chosen: True}

    def pick(self, values: Values, event: gr.EventData) -> Updates:
        """Say what settings a trial had that was clicked in the plot."""
        board = self.studio.searches.board(workspace_key(values[self.workspace]))
        number = _number_of(parse_selection(event), "trial")
        if board is None or number is None or not number < len(board.search.tried):
            return {}
        return {self.picked: trial_line(f"Trial {number + 1}", board.search.tried[number], number)}

    def end(self, values: Values) -> Updates:
        """Stop: report what was found."""
        self.studio.searches.stop(workspace_key(values[self.workspace]))
        return self.watch(values)

    def give_up(self, values: Values) -> Updates:
        """Cancel."""
        self.studio.searches.cancel(workspace_key(values[self.workspace]))
        return self.watch(values)

    def watch(self, values: Values) -> Updates:
        """Show how far the search is."""
        pair = (values[self.x], values[self.y]) if values[self.chosen] else (None, None)
        return self.show(values[self.workspace], values[self.drawn], pair)

    def settings_of(self, ws: Workspace, selection: Selection | None) -> MergeSettings | None:
        """The settings whose link was clicked; None for anything else, for it comes from the browser."""
        board, number = self.studio.searches.board(workspace_key(ws)), _number_of(selection, USE)
        data = selection.customdata if selection else None
        if board is None:
            return None
        if number is not None:
            return board.search.tried[number].settings if number < len(board.search.tried) else None
        comparison = board.search.comparison
        if comparison is None or not isinstance(data, tuple) or len(data) != 2 or data[0] != USE:
            return None
        rows = [row for row in comparison.rows if row.is_merge and row.candidate.key == data[1]]
        return candidate_settings(ws, rows[0].candidate) if rows else None

    def _buttons(self, running: bool) -> Updates:
        return {
            self.start: gr.update(interactive=not running),
            self.stop: gr.update(visible=running),
            self.cancel: gr.update(visible=running),
            self.timer: gr.Timer(active=running),
        }


def _models(ws: Workspace) -> str:
    return digest("workspace", repr(workspace_key(ws)))


def _number_of(selection: Selection | None, word: str) -> int | None:
    """The number of a trial that a click names."""
    data = selection.customdata if selection else None
    if not isinstance(data, tuple) or len(data) != 2 or data[0] != word:
        return None
    return int(data[1]) if isinstance(data[1], float) and data[1] >= 0 and data[1] == int(data[1]) else None
