"""Merge: settings, the plan, a run with progress and Cancel, the result, Save, and the runs so far."""

from __future__ import annotations

import shlex
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import gradio as gr

from sftm_app.errors import InputError, JobError, OutputError, RecipeError
from sftm_app.jobs import control
from sftm_app.jobs.folder import RunFolder, list_runs, open_run, status
from sftm_app.merging.plan import plan_for
from sftm_app.merging.recipe import DEVICES, DTYPES, Recipe, load_recipe, make_recipe, recipe_to_dict, recipe_to_yaml
from sftm_app.merging.save import publish
from sftm_app.ui.handlers import sentences
from sftm_app.ui.params_form import ParamsForm
from sftm_app.ui.run_view import progress_html, result_html, result_plot, run_label
from sftm_app.ui.settings import allowed
from sftm_app.ui.studio import Studio
from sftm_app.ui.widgets import PlotlyView
from sftm_app.ui.widgets.html import Safe, chip, chips, code, empty_state, heading, join, notice, table
from sftm_app.ui.workspace import Workspace, store

SAME_AS_BASE = "same as the base"
MAX_RUNS_SHOWN = 30


def build(studio: Studio, workspace: gr.State, demo: gr.Blocks) -> gr.State:
    """Lay out the tab and wire it. Returns the state that holds the id of the run on show ("" for none)."""
    run_id = gr.State("")
    empty = gr.HTML(
        empty_state("Nothing to merge yet", "Load models on the Models tab; one click on Try the demo is enough."),
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
                    _help("A task's changes are multiplied by its weight: 1 is neutral, 0.5 asks for half."),
                    apply_default_css=False,
                )
            with gr.Accordion("Device and output", open=False):
                device = gr.Radio(
                    list(DEVICES),
                    value=studio.settings.device,
                    label="Device",
                    info=f"Where to compute. auto is {studio.device} here.",
                    elem_id="device",
                )
                dtype = gr.Dropdown(
                    [SAME_AS_BASE, *DTYPES],
                    value=SAME_AS_BASE,
                    label="Type of the merged weights",
                    info="Everything is computed in float32; this is what is written.",
                )
                shard = gr.Textbox(
                    value="5GB", label="Largest file", info="Larger models are split: 5GB, 500MB.", max_lines=1
                )
            with gr.Row():
                start = gr.Button("Start the merge", variant="primary", elem_id="start")
                cancel = gr.Button("Cancel", variant="stop", interactive=False, elem_id="cancel")
            with gr.Accordion("Recipe and command line", open=False):
                recipe_text = gr.Code(label="Recipe (YAML)", language="yaml", interactive=False, elem_id="recipe")
                with gr.Row():
                    download = gr.DownloadButton("Download the recipe", size="md", elem_id="recipe-download")
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
                    info=f"A new folder in {studio.settings.output_dir.name}/{studio.settings.saved_dir.name}, for `from_pretrained`.",
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

    settings = [workspace, weights, device, dtype, shard, *form.inputs]
    view = [progress, result, chart, save_box, start, cancel, timer, runs]

    def read(ws: Workspace, *values: Any) -> Recipe:
        return read_recipe(ws, form.read(values[4:]), *values[:4])

    def preview(ws: Workspace, *values: Any) -> tuple[Any, ...]:
        if not ws.ready:
            return "", "", "", gr.skip()
        try:
            recipe = read(ws, *values)
            return (*recipe_views(recipe), plan_html(studio, ws, recipe))
        except (RecipeError, InputError) as error:
            return gr.skip(), gr.skip(), gr.skip(), notice("warning", "These settings do not work", error)

    def open_workspace(ws: Workspace) -> tuple[Any, ...]:
        ready = ws.ready and not studio.preflight(ws).problems
        rows = [[task.name, task.weight] for task in ws.tasks]
        return gr.update(visible=not ready), gr.update(visible=ready), rows, f"{default_save_name(studio, ws)}", ""

    def begin(ws: Workspace, *values: Any) -> tuple[Any, ...]:
        if not ws.ready:
            raise InputError("No models are loaded. Open the Models tab and try the demo, or pick checkpoints.")
        studio.preflight(ws).require()
        recipe = read(ws, *values)
        folder = control.active_run(studio.settings.runs_dir) or control.start(
            studio.settings.runs_dir, recipe, studio.workers
        )
        return (folder.run_id, "", *show_run(studio, folder.run_id))

    def stop(shown: str) -> tuple[Any, ...]:
        if shown:
            control.cancel(open_run(studio.settings.runs_dir, shown))
        return show_run(studio, shown)

    def keep(ws: Workspace, shown: str, wanted: str) -> tuple[Any, Any]:
        target = save_run(studio, shown, wanted)
        return saved_html(target), default_save_name(studio, ws)

    def use_recipe(path: str) -> tuple[Any, ...]:
        recipe = load_recipe(path)
        ws = workspace_of(studio, recipe)
        return (
            ws,
            [[task.name, task.weight] for task in ws.tasks],
            recipe.device,
            recipe.output.dtype or SAME_AS_BASE,
            recipe.output.max_shard_size,
            *form.write(recipe.method, recipe_to_dict(recipe)["params"]),
        )

    quick: dict[str, Any] = {"show_progress": "hidden"}
    outputs = [recipe_text, command, download, plan]
    opened = workspace.change(sentences(open_workspace), workspace, [empty, body, weights, name, saved], **quick)
    opened.then(sentences(preview), settings, outputs, **quick)
    form.on_change(sentences(preview), settings, outputs)
    for component in (weights, device, dtype, shard):
        component.change(sentences(preview), settings, outputs, queue=False, **quick)
    start.click(sentences(begin), settings, [run_id, saved, *view], trigger_mode="once", concurrency_limit=1, **quick)
    cancel.click(sentences(stop), run_id, view, **quick)
    timer.tick(sentences(lambda shown: show_run(studio, shown)), run_id, view, queue=False, **quick)
    save.click(sentences(keep), [workspace, run_id, name], [saved, name], show_progress="minimal")
    runs.input(
        sentences(lambda chosen: (chosen or "", "", *show_run(studio, chosen or ""))),
        runs,
        [run_id, saved, *view],
        **quick,
    )
    upload.upload(sentences(use_recipe), upload, settings, **quick)
    demo.load(sentences(lambda: latest_run(studio)), None, [run_id, *view], **quick)
    return run_id


def read_recipe(
    ws: Workspace, method: tuple[str, dict[str, Any]], weights: Any, device: str, dtype: str, shard: str
) -> Recipe:
    """The recipe that the controls describe.

    Raises
        RecipeError: a control holds something that is not understood.
    """
    rows = weights or []
    if len(rows) != len(ws.tasks):
        rows = [[task.name, task.weight] for task in ws.tasks]
    tasks = []
    for task, row in zip(ws.tasks, rows, strict=True):
        try:
            weight = float(row[1])
        except (TypeError, ValueError, IndexError):
            raise RecipeError(f"{task.name}: the weight {row[1:2]} is not a number. Enter one above 0.") from None
        tasks.append({"path": task.path, "name": task.name, "weight": weight})
    output = {"dtype": None if dtype == SAME_AS_BASE else dtype, "max_shard_size": shard}
    return make_recipe(ws.base, tasks, method[0], method[1], output, device)


def recipe_views(recipe: Recipe) -> tuple[str, Safe, str]:
    """The recipe as YAML, as a command line, and as a file to download."""
    import tempfile

    text = recipe_to_yaml(recipe)
    folder = Path(tempfile.mkdtemp(prefix="sftm-recipe-"))
    (folder / "recipe.yaml").write_text(text, encoding="utf-8")
    command = shlex.join(["python", "-m", "sftm_app", "merge", "recipe.yaml", "--output", "merged"])
    return text, Safe(f'<p class="sf-help">The same from a terminal: {code(command)}</p>'), str(folder / "recipe.yaml")


def plan_html(studio: Studio, ws: Workspace, recipe: Recipe) -> Safe:
    """What would happen to which tensors, and what it needs."""
    plan = plan_for(recipe, studio.preflight(ws).require())
    counts = Counter((entry.rule, entry.role.value) for entry in plan.entries)
    words = {"superpose": "superposed", "sum": "summed", "average": "averaged", "copy": "copied from the base"}
    rows = [(role, words[rule], count) for (rule, role), count in counts.items()]
    heads = sum(len(match.heads) for match in plan.preflight.matches)
    if heads:
        rows.append(("task heads", "kept apart, one file per task", heads))
    needs = chips(
        [
            chip(f"writes {plan.output_bytes / 1e6:.1f} MB"),
            chip(f"needs about {plan.peak_bytes / 1e6:.0f} MB for tensors"),
            chip(f"on {plan.device}"),
        ]
    )
    details = table(
        ["tensor", "rule", "why"], [(code(entry.name), words[entry.rule], entry.why) for entry in plan.entries]
    )
    title = heading("Plan", f"{len(plan.entries)} tensors, {len(plan.preflight.tasks)} tasks, {plan.method.title}")
    return join(
        [
            title,
            table(["parameters", "are", "tensors"], rows, numeric=[2]),
            Safe(f'<div class="sf-gap">{needs}</div>'),
            Safe(f'<details class="sf-details"><summary>Every tensor, and why</summary>{details}</details>'),
        ]
    )


def show_run(studio: Studio, run_id: str) -> tuple[Any, ...]:
    """Updates for the view of one run: progress, result, chart, Save, Start, Cancel, timer, list of runs."""
    if not run_id:
        idle = empty_state(
            "No merge yet", "Press Start the merge. It takes seconds for the demo, and can be cancelled."
        )
        hidden = gr.update(visible=False)
        return idle, "", hidden, hidden, *_buttons(False), gr.Timer(active=False), _runs_update(studio, "")
    folder = open_run(studio.settings.runs_dir, run_id)
    now = status(folder)
    done = now.state == "done"
    return (
        progress_html(now),
        result_html(folder) if done else "",
        gr.update(value=result_plot(folder), visible=True) if done else gr.update(visible=False),
        gr.update(visible=done),
        *_buttons(now.active),
        gr.Timer(active=now.active),
        # While it runs the list is left alone: an update would close it under the person's hand.
        gr.skip() if now.state == "running" else _runs_update(studio, run_id),
    )


def _buttons(active: bool) -> tuple[Any, Any]:
    return gr.update(interactive=not active), gr.update(interactive=active)


def latest_run(studio: Studio) -> tuple[Any, ...]:
    """What a freshly opened page shows: the run that is going on, else the newest one."""
    active = control.active_run(studio.settings.runs_dir)
    runs = list_runs(studio.settings.runs_dir)
    shown = active or (runs[0] if runs else None)
    run_id = shown.run_id if shown else ""
    return run_id, *show_run(studio, run_id)


def _runs_update(studio: Studio, chosen: str) -> Any:
    choices = [(run_label(run), run.run_id) for run in list_runs(studio.settings.runs_dir)[:MAX_RUNS_SHOWN]]
    return gr.update(choices=choices, value=chosen or None)


def finished_run(studio: Studio, run_id: str) -> RunFolder:
    """The folder of a run that is done.

    Raises
        JobError: no run is chosen, or it is not done.
    """
    if not run_id:
        raise JobError("No merge is chosen. Start one, or choose one of the runs so far.")
    folder = open_run(studio.settings.runs_dir, run_id)
    if status(folder).state != "done":
        raise JobError("This merge is not done, so there is nothing to save. Wait for it, or choose another run.")
    return folder


def save_run(studio: Studio, run_id: str, name: str) -> Path:
    """Publish a finished run's model under a name in the folder of saved models.

    Raises
        OutputError: the name is no folder name, or it exists.
    """
    folder = finished_run(studio, run_id)
    wanted = (name or "").strip()
    if not wanted or wanted in (".", "..") or wanted.startswith(".") or any(c in wanted for c in '/\\:*?"<>|\0'):
        raise OutputError(f"{wanted!r} cannot be a folder name. Use letters, digits, dashes and dots.")
    target = studio.settings.saved_dir / wanted
    publish(folder.model, target)
    return target


def saved_html(target: Path) -> Safe:
    """Where the model is and how to load it."""
    text = join(["Load it anywhere: ", code(f'AutoModel.from_pretrained("{target}")')])
    return notice("ok", f"Saved {target.name}", text)


def default_save_name(studio: Studio, ws: Workspace) -> str:
    """A name that is still free."""
    pack = studio.pack(ws)
    stem = f"{pack.name if pack else Path(ws.base).name or 'model'}-merged"
    taken = {child.name for child in studio.settings.saved_dir.glob("*")}
    return next(name for n in range(1, len(taken) + 2) if (name := stem if n == 1 else f"{stem}-{n}") not in taken)


def workspace_of(studio: Studio, recipe: Recipe) -> Workspace:
    """The workspace of an uploaded recipe; its paths must be allowed like any path from a browser."""
    tasks = tuple(replace(task, path=str(allowed(studio.settings, task.path))) for task in recipe.tasks)
    made = Workspace(str(allowed(studio.settings, recipe.base)), tasks)
    studio.preflight(made).require()
    store(studio.settings.output_dir, made)
    return made


def _help(text: str) -> Safe:
    return Safe(f'<p class="sf-help">{join([text])}</p>')
