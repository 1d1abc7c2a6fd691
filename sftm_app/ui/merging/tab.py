"""Merge: settings, their plan, the run on show, and the recipe."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gradio as gr

from sftm_app.errors import SFTMError
from sftm_app.methods.settings import MergeSettings
from sftm_app.planning.budget import is_over_budget
from sftm_app.planning.device import available_devices
from sftm_app.planning.recipe import MEASURE, Recipe, recipe_to_yaml
from sftm_app.ui.forms.output_form import OutputForm
from sftm_app.ui.forms.params_form import ParamsForm
from sftm_app.ui.handlers import QUIET, Updates, Values, handle, when_set
from sftm_app.ui.merging.comparison_panel import SECTION, ComparisonPanel
from sftm_app.ui.merging.recipe_view import (
    ANY_MEMORY,
    command_html,
    download_html,
    open_recipe,
    plan_html,
    rank_costs_html,
    read_recipe,
    read_weights,
)
from sftm_app.ui.merging.run_panel import RunPanel
from sftm_app.ui.studio import Studio
from sftm_app.ui.widgets import LinkedHtml, view_link
from sftm_app.ui.widgets.blocks import block, no_models
from sftm_app.ui.widgets.html import hint, join, notice
from sftm_app.ui.workspace import Workspace


class MergeTab:
    """The tab. It follows `workspace`, and changes it when a recipe is uploaded.

    Attributes:
        settings: what `write` updates.
        inputs: what a recipe is read from.
        previewed: what `preview` updates.
    """

    def __init__(self, studio: Studio, workspace: gr.State) -> None:
        self.studio, self.workspace = studio, workspace
        # The recipe whose plan is shown, so that none is planned twice; "" if none is.
        self.planned = gr.State("")
        # Start waits until the settings work and no run is active.
        self.ready = gr.Checkbox(visible="hidden", label="The settings work")
        self.run = RunPanel(studio)
        self.empty = no_models("Nothing to merge yet")
        with gr.Row(visible=False, equal_height=False) as self.body:
            with gr.Column(scale=2, min_width=320):
                self._lay_out_settings()
                with gr.Row():
                    self.start = gr.Button("Start the merge", variant="primary", interactive=False, elem_id="start")
                    self.run.lay_out_buttons()
                self._lay_out_recipe()
            with gr.Column(scale=3, min_width=360, elem_classes="sf-stack"):
                self.plan = block(elem_id="plan")
                self.run.lay_out()
        with gr.Column(visible=False, elem_classes="sf-stack") as self.below:
            form = {self.weights, self.split, *self.form.inputs}
            self.comparison = ComparisonPanel(studio, workspace, self.read_settings, form)
        self.settings: set[Any] = {self.weights, *self.form.outputs}
        self.inputs: set[Any] = {workspace, self.weights, *self.form.inputs, *self.output.inputs}
        self.inputs |= {self.device, self.memory, self.split, self.measure}
        self.previewed: set[Any] = {self.recipe, self.command, self.download, self.plan, self.ready, self.planned}
        self._wire()

    def _lay_out_settings(self) -> None:
        self.form = ParamsForm(self.workspace)
        LinkedHtml(hint(join(["Which method is best depends on the models. ", view_link("Compare methods", SECTION)])))
        with gr.Accordion("Task weights", open=False):
            self.weights = gr.Dataframe(
                headers=["task", "weight"],
                datatype=["str", "number"],
                type="array",
                value=[],
                interactive=True,
                label="Weights",
                show_label=False,
                elem_id="weights",
            )
            block(hint("Each task's change is multiplied by its weight: 1 leaves it as it is, 0.5 halves it."))
        with gr.Accordion("Device and output", open=False):
            self.device = gr.Radio(
                list(available_devices()),
                value=self.studio.settings.device,
                label="Device",
                info=f"Where to compute. On this machine auto is {self.studio.device}.",
                elem_id="device",
            )
            self.memory = gr.Textbox(
                value=ANY_MEMORY,
                label="Memory at most",
                info="any, or a size such as 4GB. The plan says which ranks fit.",
                max_lines=1,
                elem_id="memory",
            )
            self.output = OutputForm()
            self.split = gr.Checkbox(
                label="Split fused maps",
                info="Where one tensor holds query, key and value (GPT-2's c_attn, qkv), merge them one by one.",
                elem_id="split-fused",
            )
            self.measure = gr.Radio(
                list(MEASURE),
                value=Recipe.measure,
                label="Measure what each task keeps",
                info="The layers in which to compute readout and mapping error. auto: where that is quick. The merged "
                "model is the same.",
                elem_id="merge-measure",
            )

    def _lay_out_recipe(self) -> None:
        with gr.Accordion("Recipe and command line", open=False):
            self.recipe = gr.Code(label="Recipe (YAML)", language="yaml", interactive=False, elem_id="recipe")
            with gr.Row():
                self.download = block(elem_id="recipe-download")
                self.upload = gr.UploadButton(
                    "Use a recipe file", file_types=[".yaml", ".yml"], size="md", elem_id="recipe-upload"
                )
            self.command = block()

    def _wire(self) -> None:
        opening = {self.empty, self.body, self.below, self.weights, self.planned, *self.run.outputs}
        opening |= self.comparison.opened
        opened = self.workspace.change(handle(self.open_workspace), {self.workspace}, opening, **QUIET)
        self.preview_after(opened)
        self.preview_after(self.form.followed)
        # One plan for each change that a person makes; changes from elsewhere are followed by preview_after.
        gr.on(
            [when_set(component) for component in self.inputs - {self.workspace, self.form.method}],
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
        self.output.ask.click(
            handle(self.show_rank_costs), self.inputs, self.output.costs, trigger_mode="once", show_progress="minimal"
        )
        # One at a time over all pages, so that two clicks at the same moment start one run.
        self.start.click(
            handle(self.begin), self.inputs, self.run.outputs, trigger_mode="once", concurrency_limit=1, **QUIET
        )
        self.preview_after(
            self.upload.upload(handle(self.use_recipe), {self.upload}, self.inputs | self.settings, **QUIET)
        )
        self.preview_after(self.comparison.wire(self.write, self.settings))
        self.run.wire()

    def preview_after(self, event: Any) -> None:
        """Show the plan after an event that changes settings."""
        event.then(handle(self.preview), self.inputs | {self.planned}, self.previewed, **QUIET)

    def write(self, ws: Workspace, settings: MergeSettings) -> Updates:
        """Show these settings."""
        return {self.weights: _rows(ws, settings.weights), **self.form.write(settings)}

    def read(self, values: Values) -> Recipe:
        """The recipe that the controls describe.

        Raises:
            RecipeError: a control holds something that is not understood.
        """
        settings, split = self.read_settings(values)
        return read_recipe(
            values[self.workspace],
            settings,
            values[self.memory],
            output=self.output.read(values),
            device=values[self.device],
            split_fused=split,
            measure=values[self.measure],
        )

    def read_settings(self, values: Values) -> tuple[MergeSettings, bool]:
        """The settings of the merge, and whether fused maps are split.

        Raises:
            RecipeError: a control holds something that is not understood.
        """
        weights = read_weights(values[self.workspace], values[self.weights])
        return self.form.read(values, weights), bool(values[self.split])

    def open_workspace(self, values: Values) -> Updates:
        """Show a workspace that was just loaded."""
        ws = values[self.workspace]
        usable = self.studio.usable(ws)
        return {
            self.empty: gr.update(visible=not usable),
            self.body: gr.update(visible=usable),
            self.below: gr.update(visible=usable),
            self.weights: _rows(ws, ws.weights),
            self.planned: "",
            **self.run.open_latest(ws),
            **self.comparison.open(ws),
        }

    def preview(self, values: Values) -> Updates:
        """The recipe and its plan; or why there is none, which leaves the recipe as it was."""
        ws = values[self.workspace]
        if not self.studio.usable(ws):
            return {**dict.fromkeys(self.previewed, ""), self.ready: False}
        try:
            recipe = self.read(values)
            text = recipe_to_yaml(recipe)
            if text == values[self.planned]:
                return {}
            plan = self.studio.plan(ws, recipe)
        except SFTMError as error:
            problem = notice("warning", "These settings do not work", error)
            return {self.plan: problem, self.ready: False, self.planned: ""}
        return {
            self.recipe: text,
            self.command: command_html(),
            self.download: download_html(text),
            self.plan: plan_html(plan),
            self.ready: not is_over_budget(plan),
            self.planned: text,
        }

    def allow_start(self, values: Values) -> Updates:
        """Start can be pressed once the settings work and no run is active."""
        return {self.start: gr.update(interactive=values[self.ready] and not values[self.run.active])}

    def show_rank_costs(self, values: Values) -> Updates:
        """What an adapter of each rank would keep."""
        return {self.output.costs: rank_costs_html(self.studio, values[self.workspace], self.read(values))}

    def begin(self, values: Values) -> Updates:
        """Start the merge. Its worker checks and plans it."""
        return self.run.start(self.read(values))

    def use_recipe(self, values: Values) -> Updates:
        """Load the models of an uploaded recipe, and show its settings."""
        ws, recipe = open_recipe(self.studio, Path(values[self.upload]))
        settings = MergeSettings(recipe.method, recipe.params, ws.weights)
        return {
            self.workspace: ws,
            self.device: recipe.device,
            self.memory: recipe.memory or ANY_MEMORY,
            self.split: recipe.split_fused,
            self.measure: recipe.measure,
            **self.output.write(recipe.output),
            **self.write(ws, settings),
        }


def _rows(ws: Workspace, weights: Any) -> list[list[Any]]:
    return [[name, weight] for name, weight in zip(ws.task_names, weights, strict=True)]
