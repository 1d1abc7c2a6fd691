"""Merge: settings, the plan, a run with progress and Cancel, the result, Save, and the runs so far."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import gradio as gr

from sftm_app.errors import SFTMError
from sftm_app.jobs import control
from sftm_app.jobs.folder import open_run
from sftm_app.methods.settings import MergeSettings
from sftm_app.planning.budget import check_budget
from sftm_app.planning.device import available_devices
from sftm_app.planning.planner import plan_for
from sftm_app.planning.recipe import Recipe, recipe_to_dict
from sftm_app.ui.handlers import say_info, sentences
from sftm_app.ui.merging.output_form import OutputForm
from sftm_app.ui.merging.recipe_view import (
    ANY_MEMORY,
    plan_view,
    rank_costs_html,
    read_recipe,
    recipe_views,
    workspace_of,
)
from sftm_app.ui.merging.runs import default_save_name, open_a_run, save_run, saved_html, show_latest, show_run
from sftm_app.ui.params_form import ParamsForm
from sftm_app.ui.studio import Studio
from sftm_app.ui.widgets import PlotlyView
from sftm_app.ui.widgets.html import Safe, empty_state, hint, notice
from sftm_app.ui.workspace import Workspace


@dataclass(frozen=True)
class MergeTab:
    """What other parts of the page need. run_id: the run on show ("" for none); form, weights: the settings."""

    run_id: gr.State
    form: ParamsForm
    weights: gr.Dataframe

    @property
    def settings(self) -> list[Any]:
        """The components that `write` updates."""
        return [self.weights, *self.form.inputs]

    def write(self, ws: Workspace, settings: MergeSettings) -> list[Any]:
        """Updates of `settings` that show these."""
        rows = [[name, weight] for name, weight in zip(ws.task_names, settings.weights, strict=True)]
        return [rows, *self.form.write(settings.method, asdict(settings.params))]


def build(studio: Studio, workspace: gr.State) -> MergeTab:
    """Lay out the tab and wire it."""
    run_id = gr.State("")
    # Start waits until the settings work and no run is going on. A gr.State would not tell of its changes: it does so
    # only where they come through the queue.
    ready, going_on = (gr.Checkbox(visible="hidden", label=label) for label in ("Settings work", "A run is going on"))
    empty = gr.HTML(
        empty_state("Nothing to merge yet", "Load models on the Models tab; one click on a demo is enough."),
        apply_default_css=False,
    )
    with gr.Row(visible=False, equal_height=False) as body:
        with gr.Column(scale=2, min_width=320):
            form = ParamsForm()
            with gr.Accordion("Task weights", open=False):
                weights = gr.Dataframe(
                    headers=["task", "weight"],
                    datatype=["str", "number"],
                    type="array",
                    value=[],
                    interactive=True,
                    label="Weights",
                    show_label=False,
                    elem_id="weights",
                )
                gr.HTML(
                    hint("A task's changes are multiplied by its weight: 1 is neutral, 0.5 asks for half."),
                    apply_default_css=False,
                )
            with gr.Accordion("Device and output", open=False):
                device = gr.Radio(
                    list(available_devices()),
                    value=studio.settings.device,
                    label="Device",
                    info=f"Where to compute. auto is {studio.device} here.",
                    elem_id="device",
                )
                memory = gr.Textbox(
                    value=ANY_MEMORY,
                    label="Memory at most",
                    info="any, or a size such as 4GB. The plan says which ranks fit.",
                    max_lines=1,
                    elem_id="memory",
                )
                output = OutputForm()
                split = gr.Checkbox(
                    label="Merge fused maps apart",
                    info="Query, key and value in one tensor (GPT-2's c_attn, qkv) are superposed one by one.",
                    elem_id="split-fused",
                )
            with gr.Row():
                start = gr.Button("Start the merge", variant="primary", interactive=False, elem_id="start")
                cancel = gr.Button("Cancel", variant="stop", interactive=False, elem_id="cancel")
                resume = gr.Button("Resume", visible=False, elem_id="resume")
            with gr.Accordion("Recipe and command line", open=False):
                recipe_text = gr.Code(label="Recipe (YAML)", language="yaml", interactive=False, elem_id="recipe")
                with gr.Row():
                    download = gr.HTML(apply_default_css=False, elem_id="recipe-download")
                    upload = gr.UploadButton(
                        "Use a recipe file", file_types=[".yaml", ".yml"], size="md", elem_id="recipe-upload"
                    )
                command = gr.HTML(apply_default_css=False)
        with gr.Column(scale=3, min_width=360, elem_classes="sf-stack"):
            plan = gr.HTML(apply_default_css=False, elem_id="plan")
            progress = gr.HTML(apply_default_css=False, elem_id="progress")
            result = gr.HTML(apply_default_css=False, elem_id="result")
            chart = PlotlyView(
                label="Preservation per task", filename="preservation", visible=False, elem_id="preservation"
            )
            with gr.Group(visible=False) as save_box:
                name = gr.Textbox(
                    label="Save as",
                    info=f"A new folder in {studio.settings.output_dir.name}/{studio.settings.saved_dir.name}.",
                    max_lines=1,
                    elem_id="save-name",
                )
                save = gr.Button("Save the merged model", variant="primary", elem_id="save")
            saved = gr.HTML(apply_default_css=False, elem_id="saved")
            runs = gr.Dropdown(
                label="Runs so far",
                info="Every merge is kept in the output folder. Choose one to see it again or to save it.",
                choices=[],
                value=None,
                elem_id="runs",
            )
    timer = gr.Timer(0.5, active=False)

    settings = [workspace, weights, device, memory, split, *output.inputs, *form.inputs]
    view = [progress, result, chart, save_box, going_on, cancel, resume, timer, runs]

    def read(ws: Workspace, *values: Any) -> Recipe:
        weighted, where, at_most, apart, *rest = values
        n = len(output.inputs)
        target, method = output.read(tuple(rest[:n])), form.read(tuple(rest[n:]))
        return read_recipe(ws, weighted, where, at_most, bool(apart), target, method)

    def preview(ws: Workspace, *values: Any) -> tuple[Any, ...]:
        if not studio.usable(ws):
            return "", "", "", "", False
        try:
            recipe = read(ws, *values)
            return (*recipe_views(recipe), *plan_view(studio, ws, recipe))
        except SFTMError as error:
            return gr.skip(), gr.skip(), gr.skip(), notice("warning", "These settings do not work", error), False

    def costs(ws: Workspace, *values: Any) -> Safe:
        return rank_costs_html(studio, ws, read(ws, *values))

    def open_workspace(ws: Workspace) -> tuple[Any, ...]:
        ready = studio.usable(ws)
        rows = [[task.name, task.weight] for task in ws.tasks]
        return gr.update(visible=not ready), gr.update(visible=ready), rows, *show_latest(studio, ws)

    def begin(ws: Workspace, *values: Any) -> tuple[Any, ...]:
        studio.preflight(ws).require()
        recipe = read(ws, *values)
        check_budget(plan_for(recipe, studio.preflight(ws)))
        active = control.active_run(studio.settings.runs_dir)
        if active is not None:
            say_info("A merge is running already: this is it. Wait for it, or cancel it.")
        folder = active or control.start(studio.settings.runs_dir, recipe, studio.workers)
        return open_a_run(studio, folder.run_id)

    def stop(shown: str) -> tuple[Any, ...]:
        if shown:
            control.cancel(open_run(studio.settings.runs_dir, shown))
        return show_run(studio, shown)

    def go_on(shown: str) -> tuple[Any, ...]:
        if shown:
            control.resume(open_run(studio.settings.runs_dir, shown), studio.workers)
        return show_run(studio, shown)

    def keep(shown: str, wanted: str) -> tuple[Any, Any]:
        target = save_run(studio, shown, wanted)
        return saved_html(target), default_save_name(studio, shown)

    def use_recipe(path: str) -> tuple[Any, ...]:
        ws, recipe = workspace_of(studio, Path(path))
        return (
            ws,
            [[task.name, task.weight] for task in ws.tasks],
            recipe.device,
            recipe.memory or ANY_MEMORY,
            recipe.split_fused,
            *output.write(recipe.output),
            *form.write(recipe.method, recipe_to_dict(recipe)["params"]),
        )

    quick: dict[str, Any] = {"show_progress": "hidden"}
    outputs = [recipe_text, command, download, plan, ready]
    opening = [run_id, saved, name, *view]
    opened = workspace.change(sentences(open_workspace), workspace, [empty, body, weights, *opening], **quick)
    opened.then(sentences(preview), settings, outputs, **quick)
    form.on_change(sentences(preview), settings, outputs)
    for component in (weights, device, memory, split, *output.inputs):
        component.change(sentences(preview), settings, outputs, queue=False, **quick)
    gr.on(
        [ready.change, going_on.change],
        lambda works, runs_now: gr.update(interactive=works and not runs_now),
        [ready, going_on],
        start,
        trigger_mode="always_last",
        queue=False,
        **quick,
    )
    output.ask.click(sentences(costs), settings, output.costs, trigger_mode="once", show_progress="minimal")
    # One at a time over all pages, so that two clicks at once start one run.
    start.click(sentences(begin), settings, opening, trigger_mode="once", concurrency_limit=1, **quick)
    cancel.click(sentences(stop), run_id, view, **quick)
    resume.click(sentences(go_on), run_id, view, trigger_mode="once", concurrency_limit=1, **quick)
    timer.tick(sentences(lambda shown: show_run(studio, shown)), run_id, view, queue=False, **quick)
    save.click(sentences(keep), [run_id, name], [saved, name], show_progress="minimal")
    runs.input(sentences(lambda chosen: open_a_run(studio, chosen or "")), runs, opening, **quick)
    upload.upload(sentences(use_recipe), upload, settings, **quick)
    return MergeTab(run_id, form, weights)
