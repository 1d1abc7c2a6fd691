"""The leaderboard on the page: sort, filter, name, note, try, delete and export the merges of the workspace."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import gradio as gr

from sftm_app.errors import InputError
from sftm_app.ui.evaluate.leaderboard import Order, arranged, delete_merge, leaderboard
from sftm_app.ui.evaluate.leaderboard_view import ABOUT, BOARD, board_html, csv_link, deletion_html
from sftm_app.ui.evaluate.sources import Source, benchmark_of, remember
from sftm_app.ui.evaluate.table_panel import AUTO, TablePanel, evaluate_key
from sftm_app.ui.handlers import QUIET, Updates, Values, handle, show_info
from sftm_app.ui.merges import MOST_NAME, MOST_NOTES, Merge
from sftm_app.ui.studio import Studio
from sftm_app.ui.widgets import LinkedHtml, Selection, parse_selection
from sftm_app.ui.widgets.blocks import block, section
from sftm_app.ui.widgets.html import Html
from sftm_app.ui.workspace import Workspace

ReadSource = Callable[[Values], Source]


class LeaderboardPanel:
    """The panel.

    Args:
        workspace: whose merges are listed.
        table: the panel above. Its samples and its score are those of the leaderboard.

    Attributes:
        views: what `show` updates; about_views: what `choose` updates as well.
    """

    def __init__(self, studio: Studio, workspace: gr.State, table: TablePanel) -> None:
        self.studio, self.workspace, self.table = studio, workspace, table
        self.order, self.chosen = gr.State(Order()), gr.State("")
        section("Leaderboard", "Every merge of these models, finished runs and saved models.", elem_id=BOARD)
        with gr.Row(equal_height=False):
            self.wanted = gr.Textbox(
                label="Filter",
                info="Words of the name, the settings or the notes.",
                max_lines=1,
                scale=3,
                min_width=220,
                elem_id="board-filter",
            )
            with gr.Column(scale=1, min_width=200, elem_classes="sf-buttons"):
                self.measure = gr.Button("Measure those without scores", size="sm", elem_id="board-measure")
                self.export = block(elem_id="board-export")
        self.board = LinkedHtml(elem_id="board")
        # A gr.Group would put the id on two elements.
        with gr.Column(visible=False, elem_id=ABOUT, elem_classes="sf-stack") as self.about:
            self.name = gr.Textbox(
                label="Name",
                info="Empty: the settings.",
                max_lines=1,
                max_length=MOST_NAME,
                elem_id="merge-name",
            )
            self.notes = gr.Textbox(
                label="Notes",
                info="Kept with the merge.",
                lines=2,
                max_lines=8,
                max_length=MOST_NOTES,
                elem_id="merge-notes",
            )
            with gr.Row():
                self.keep = gr.Button("Save name and notes", variant="primary", elem_id="merge-keep")
                self.tick = gr.Button("Evaluate this merge", elem_id="merge-tick")
                self.ask = gr.Button("Delete", variant="stop", elem_id="merge-delete")
            self.sure = block(elem_id="merge-sure")
            with gr.Row(visible=False) as self.confirm:
                self.delete = gr.Button("Delete it", variant="stop", elem_id="merge-delete-sure")
                self.spare = gr.Button("Keep it", elem_id="merge-spare")
        self.views: set[Any] = {self.board, self.export, self.measure}
        self.about_views: set[Any] = {self.chosen, self.about, self.name, self.notes, self.sure, self.confirm}

    def wire(self, read_source: ReadSource, given: set[Any]) -> None:
        """Connect the components. read_source: the samples, from the values of `given`."""
        self.read_source = read_source
        inputs = {self.workspace, self.order, self.chosen, self.wanted, self.table.measure, *given}
        every = self.views | self.about_views
        self.shown_with = inputs
        self.table.drawn.change(handle(self.show), inputs, self.views, **QUIET)
        self.wanted.change(handle(self.show), inputs, self.views, trigger_mode="always_last", **QUIET)
        self.board.select(handle(self.clicked), inputs, {*every, self.order}, **QUIET)
        described = {*inputs, self.name, self.notes}
        self.keep.click(handle(self.describe), described, every, **QUIET)
        self.ask.click(handle(self.ask_to_delete), inputs, {self.sure, self.confirm}, **QUIET)
        self.spare.click(handle(self.do_not_delete), inputs, {self.sure, self.confirm}, **QUIET)
        self.delete.click(handle(self.delete_chosen), inputs, every, trigger_mode="once", **QUIET)
        seen = {*inputs, *self.table.inputs}
        self.measure.click(handle(self.measure_missing), seen, self.table.views, trigger_mode="once", **QUIET)

    def show_after(self, event: Any) -> None:
        """Show the leaderboard after an event that may have changed it."""
        event.then(handle(self.show), self.shown_with, self.views, **QUIET)

    def open(self, ws: Workspace) -> Updates:
        """Forget what was chosen of the workspace before. The table above shows the rest."""
        return self._unchosen()

    def show(self, values: Values) -> Updates:
        """The merges that the filter leaves, in their order."""
        measure = values[self.table.measure]
        source = self.read_source(values)
        found = leaderboard(self.studio, values[self.workspace], source, "" if measure == AUTO else measure)
        order = values[self.order]
        merges = arranged(found, order, values[self.wanted] or "")
        return {
            self.board: board_html(found, merges, order, values[self.chosen]),
            self.export: csv_link(found, merges),
            self.measure: gr.update(visible=bool(found.unmeasured and found.tasks)),
        }

    def clicked(self, values: Values, event: gr.EventData) -> Updates:
        """Sort by a column, or show a merge's name and notes."""
        return self.follow(values, parse_selection(event))

    def follow(self, values: Values, selection: Selection | None) -> Updates:
        """The same for a selection, which comes from the browser: of anything else, nothing."""
        data = selection.customdata if selection else None
        if not isinstance(data, tuple) or len(data) != 2:
            return {}
        kind, what = data[0], str(data[1])
        if kind == "sort":
            order = values[self.order].after_click(what)
            return {self.order: order, **self.show({**values, self.order: order})}
        return self.choose(values, what) if kind == "merge" else {}

    def choose(self, values: Values, merge_id: str) -> Updates:
        """Show the name and the notes of a merge."""
        merge = self.studio.merges.find(values[self.workspace], merge_id)
        return {
            self.chosen: merge.id,
            self.about: gr.update(visible=True),
            self.name: gr.update(value=merge.about.name, placeholder=merge.settings_name),
            self.notes: merge.about.notes,
            **self._not_asked(),
            **self.show({**values, self.chosen: merge.id}),
        }

    def merge_of(self, values: Values) -> Merge:
        """The merge that is chosen. Raises InputError: none is, or it is gone."""
        if not values[self.chosen]:
            raise InputError("No merge is chosen. Click one in the leaderboard.")
        return self.studio.merges.find(values[self.workspace], values[self.chosen])

    def describe(self, values: Values) -> Updates:
        """Keep the name and the notes of the merge that is chosen."""
        merge = self.merge_of(values)
        self.studio.merges.describe(merge, values[self.name] or "", values[self.notes] or "")
        return self.choose(values, merge.id)

    def ask_to_delete(self, values: Values) -> Updates:
        """Say what would be deleted, and ask."""
        return {self.sure: deletion_html(self.merge_of(values)), self.confirm: gr.update(visible=True)}

    def do_not_delete(self, values: Values) -> Updates:
        """Delete nothing."""
        return self._not_asked()

    def delete_chosen(self, values: Values) -> Updates:
        """Delete the merge that is chosen."""
        merge = self.merge_of(values)
        delete_merge(self.studio, values[self.workspace], merge)
        show_info(f"Deleted {merge.name}.")
        return {**self._unchosen(), **self.show({**values, self.chosen: ""})}

    def measure_missing(self, values: Values) -> Updates:
        """Measure every merge that lacks a score."""
        ws, source = values[self.workspace], self.read_source(values)
        missing = leaderboard(self.studio, ws, source).unmeasured
        if missing:
            conditions, benchmark = benchmark_of(self.studio, ws, source)
            remember(self.studio, ws, source)
            models = [one.candidate for one in missing]
            self.studio.comparisons.start(evaluate_key(ws), conditions, benchmark, models)
        return self.table.watch(values)

    def _unchosen(self) -> Updates:
        return {
            self.chosen: "",
            self.about: gr.update(visible=False),
            self.name: "",
            self.notes: "",
            **self._not_asked(),
        }

    def _not_asked(self) -> Updates:
        return {self.sure: Html(""), self.confirm: gr.update(visible=False)}
