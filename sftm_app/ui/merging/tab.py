"""Merge: settings, their plan, the run on show, and the recipe."""

from __future__ import annotations

from typing import Any

import gradio as gr

from sftm_app.errors import SFTMError
from sftm_app.jobs import control
from sftm_app.jobs.folder import open_run
from sftm_app.methods.settings import MergeSettings, merge_settings
from sftm_app.planning.budget import is_over_budget
from sftm_app.planning.recipe import Recipe, recipe_from_yaml, recipe_to_yaml
from sftm_app.ui.handlers import QUIET, Updates, Values, handle, show_warning, when_set
from sftm_app.ui.keeping import Parts
from sftm_app.ui.merging.comparison_panel import ComparisonPanel
from sftm_app.ui.merging.differences import differs_html
from sftm_app.ui.merging.form import MergeForm, recipe_from_text, recipe_of, recipe_to_text
from sftm_app.ui.merging.recipe_panel import NO_RUN, RecipePanel
from sftm_app.ui.merging.recipe_view import plan_html, rank_costs_html
from sftm_app.ui.merging.run_panel import RunPanel
from sftm_app.ui.merging.scaling_panel import ScalingPanel
from sftm_app.ui.merging.search_panel import SearchPanel
from sftm_app.ui.studio import Studio
from sftm_app.ui.widgets import LinkedHtml
from sftm_app.ui.widgets.blocks import block, no_models
from sftm_app.ui.widgets.html import notice
from sftm_app.ui.workspace import Workspace


class MergeTab:
    """The tab. It follows `workspace`, and changes it when a recipe is uploaded.

    Attributes:
        inputs: what a recipe is read from.
        written: what `take` updates.
        previewed: what `preview` updates.
    """

    def __init__(self, studio: Studio, workspace: gr.State, parts: Parts) -> None:
        self.studio, self.workspace = studio, workspace
        # The recipe whose plan is shown, so that none is planned twice; "" if none is.
        self.planned = gr.State("")
        # Start waits until the settings work and no run is active.
        self.ready = gr.Checkbox(visible="hidden", label="The settings work")
        self.run = RunPanel(studio)
        self.empty = no_models("Nothing to merge yet")
        self.kept, self.kept_run = parts.add("merge"), parts.add("run")
        with gr.Row(visible=False, equal_height=False) as self.body:
            with gr.Column(scale=2, min_width=320):
                self.form = MergeForm(studio, workspace)
                self.recipe = RecipePanel(studio, workspace)
            with gr.Column(scale=3, min_width=360, elem_classes="sf-stack"):
                # At the top, where it stays in sight while the form is scrolled.
                with gr.Row(elem_classes="sf-start"):
                    self.start = gr.Button("Start the merge", variant="primary", interactive=False, elem_id="start")
                    self.run.lay_out_buttons()
                self.plan = block(elem_id="plan")
                self.differs = LinkedHtml(elem_id="made-otherwise")
                self.run.lay_out()
        with gr.Column(visible=False, elem_classes="sf-stack") as self.below:
            read, form = self.form.read_settings, self.form.settings_inputs
            self.comparison = ComparisonPanel(studio, workspace, read, form)
            self.search = SearchPanel(studio, workspace, read, form)
            self.scaling = ScalingPanel(studio, workspace, read, form)
        self.inputs: set[Any] = self.form.inputs
        self.written: set[Any] = self.form.settings | self.run.outputs
        self.previewed: set[Any] = {*self.recipe.views, self.plan, self.ready, self.planned}
        self._wire()

    def _wire(self) -> None:
        opening = {self.empty, self.body, self.below, self.planned, *self.form.written, *self.run.outputs}
        opening |= self.comparison.opened | self.search.opened | self.scaling.opened
        opened = self.workspace.change(handle(self.open_workspace), {self.workspace}, opening, **QUIET)
        for event in (opened, self.form.params.followed, self.form.ranked):
            self.preview_after(event)
        # One plan for each change that a person makes; changes from elsewhere are followed by preview_after.
        gr.on(
            [when_set(component) for component in self.inputs - self.form.params.followed_first - {self.workspace}],
            handle(self.preview),
            self.inputs | {self.planned},
            self.previewed,
            trigger_mode="always_last",
            **QUIET,
        )
        gr.on(
            [self.ready.change, self.run.active.change],
            handle(self.allow_start),
            {self.ready, self.run.active},
            self.start,
            trigger_mode="always_last",
            queue=False,
            **QUIET,
        )
        shown = {self.workspace, self.planned, self.run.run_id}
        gr.on(
            [self.planned.change, self.run.run_id.change],
            handle(self.note),
            shown,
            {self.kept.shown, self.kept_run.shown, self.differs},
            **QUIET,
        )
        output = self.form.output
        output.ask.click(
            handle(self.show_rank_costs), self.inputs, output.costs, trigger_mode="once", show_progress="minimal"
        )
        # One at a time over all pages, so that two clicks at the same moment start one run.
        begun = {*self.run.outputs, self.kept_run.shown}
        self.start.click(handle(self.begin), self.inputs, begun, trigger_mode="once", concurrency_limit=1, **QUIET)
        used = [self.comparison.wire(self.take, self.written), self.scaling.wire(self.take, self.written)]
        for event in (*used, *self.search.wire(self.take, self.written)):
            self.preview_after(event)
        opened.then(handle(self.comparison.restore), {self.workspace}, self.comparison.opened, **QUIET)
        opened.then(handle(self.search.restore), {self.workspace}, self.search.opened, **QUIET)
        self.preview_after(self.differs.select(handle(self.use_settings_of_run), shown, self.form.written, **QUIET))
        self.run.wire()

    def preview_after(self, event: Any) -> None:
        """Show the plan after an event that changes settings."""
        event.then(handle(self.preview), self.inputs | {self.planned}, self.previewed, **QUIET)

    def take(self, ws: Workspace, settings: MergeSettings) -> Updates:
        """Show settings that were chosen elsewhere, and put the run on show away, unless one is active."""
        away = {} if self._runs_now() else self.run.open("")
        return {**self.form.write_settings(ws, settings), **away}

    def _runs_now(self) -> bool:
        return control.active_run(self.studio.settings.runs_dir) is not None

    def open_workspace(self, values: Values) -> Updates:
        """Show a workspace that was just loaded, as its address asks for or as it was shown last."""
        ws = values[self.workspace]
        usable = self.studio.usable(ws)
        shown: Updates = {
            self.empty: gr.update(visible=not usable),
            self.body: gr.update(visible=usable),
            self.below: gr.update(visible=usable),
            self.planned: "",
            **self._open_run(ws),
            **self.comparison.open(ws),
            **self.search.open(ws),
            **self.scaling.open(),
        }
        return shown | self.form.write(ws, self._asked(ws)) if usable else shown

    def _asked(self, ws: Workspace) -> Recipe:
        text, is_asked = self.kept.asked(ws)
        problems: list[str] = []
        device = self.studio.settings.device
        found = recipe_from_text(text, ws, device, problems)
        # What was kept from an older version of the app is left out without a word.
        for problem in problems if is_asked else ():
            show_warning(problem)
        return found or recipe_of(ws, merge_settings(Recipe.method, {}, ws.weights), device=device)

    def _open_run(self, ws: Workspace) -> Updates:
        """The run that the address asks for or that was on show; otherwise the active or the newest one."""
        asked, is_asked = self.kept_run.asked(ws)
        if not is_asked and self._runs_now():
            asked = ""
        if asked == NO_RUN:
            return self.run.open("")
        known = any(run.run_id == asked for run in self.studio.runs_of(ws)) if asked else False
        return self.run.open(asked) if known else self.run.open_latest(ws)

    def note(self, values: Values) -> Updates:
        """Keep the form and the run on show, and say whether they belong together."""
        ws, text, run_id = values[self.workspace], values[self.planned], values[self.run.run_id]
        recipe = recipe_from_yaml(text) if text else None
        # While other models are being loaded, the plan may still be that of those before.
        if recipe is not None and (recipe.base, *(task.path for task in recipe.tasks)) != ws.inputs:
            return {}
        noted = self.kept_run.note(ws, run_id or NO_RUN, bool(run_id)) if ws.ready else {}
        if recipe is None:
            return {**noted, self.differs: ""}
        noted |= self.kept.note(ws, recipe_to_text(recipe, self.studio.settings.device))
        return {**noted, self.differs: differs_html(self.studio, run_id, recipe)}

    def use_settings_of_run(self, values: Values) -> Updates:
        """Show the settings that the run on show was made with."""
        run = open_run(self.studio.settings.runs_dir, values[self.run.run_id])
        return self.form.write(values[self.workspace], self.studio.recipe(run))

    def preview(self, values: Values) -> Updates:
        """The recipe and its plan; or why there is none, which leaves the recipe as it was."""
        ws = values[self.workspace]
        if not self.studio.usable(ws):
            return {**dict.fromkeys(self.previewed, ""), self.ready: False}
        try:
            recipe = self.form.read(values)
            text = recipe_to_yaml(recipe)
            if text == values[self.planned]:
                return {}
            plan = self.studio.plan(ws, recipe)
        except SFTMError as error:
            problem = notice("warning", "These settings do not work", error)
            return {self.plan: problem, self.ready: False, self.planned: ""}
        return {
            **self.recipe.show(text),
            self.plan: plan_html(plan),
            self.ready: not is_over_budget(plan),
            self.planned: text,
        }

    def allow_start(self, values: Values) -> Updates:
        """Start can be pressed once the settings work and no run is active."""
        return {self.start: gr.update(interactive=values[self.ready] and not values[self.run.active])}

    def show_rank_costs(self, values: Values) -> Updates:
        """What an adapter of each rank would keep."""
        costs = rank_costs_html(self.studio, values[self.workspace], self.form.read(values))
        return {self.form.output.costs: costs}

    def begin(self, values: Values) -> Updates:
        """Start the merge. Its worker checks and plans it."""
        shown = self.run.start(self.form.read(values))
        # At once: a page that is reloaded before its next event, when the merge is done, shows this run too.
        return {**shown, **self.kept_run.note(values[self.workspace], shown[self.run.run_id])}
