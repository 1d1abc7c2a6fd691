"""Runs as the Merge tab shows and saves them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gradio as gr

from sftm_app.errors import JobError, OutputError, SFTMError
from sftm_app.evaluation.packs import pack_of
from sftm_app.jobs import control
from sftm_app.jobs.folder import RunFolder, list_runs, open_run, status
from sftm_app.output.publish import publish
from sftm_app.planning.recipe import default_name
from sftm_app.ui.merging.run_view import progress_html, recipe_of, result_html, result_plot, run_label, same_inputs
from sftm_app.ui.studio import Studio
from sftm_app.ui.widgets.html import Safe, code, empty_state, join, notice
from sftm_app.ui.workspace import Workspace
from sftm_app.weights.file_names import ADAPTER_CONFIG_NAME, CONFIG_NAME

MAX_RUNS_SHOWN = 30


def show_run(studio: Studio, run_id: str) -> tuple[Any, ...]:
    """The view of one run: progress, result, chart and Save, whether it goes on, Cancel, Resume, timer and list."""
    hidden, idle = gr.update(visible=False), gr.Timer(active=False)
    if not run_id:
        said = empty_state(
            "No merge yet", "Press Start the merge. It takes seconds for the demo, and can be cancelled."
        )
        return said, "", hidden, hidden, *_buttons(False), idle, _runs_update(studio, "")
    try:
        folder = open_run(studio.settings.runs_dir, run_id)
        now = status(folder)
        done = now.state == "done"
        result = result_html(folder) if done else ""
        plot = result_plot(folder) if done else None
    except (SFTMError, OSError) as error:
        # A run whose folder was removed or damaged is said once; the timer must not repeat it.
        said = notice("error", "This run cannot be shown", error)
        return said, "", hidden, hidden, *_buttons(False), idle, _runs_update(studio, "")
    return (
        progress_html(now),
        result,
        hidden if plot is None else gr.update(value=plot, visible=True),
        gr.update(visible=done),
        *_buttons(now.active, now.resumable),
        gr.Timer(active=now.active),
        # While it runs the list is left alone: an update would close it under the person's hand.
        gr.skip() if now.state == "running" else _runs_update(studio, run_id),
    )


def _buttons(active: bool, resumable: bool = False) -> tuple[bool, Any, Any]:
    return active, gr.update(interactive=active), gr.update(visible=resumable)


def open_a_run(studio: Studio, run_id: str) -> tuple[Any, ...]:
    """Everything that changes when another run is put on show: its id, the notice of Save, the name, and the view."""
    return run_id, "", default_save_name(studio, run_id), *show_run(studio, run_id)


def show_latest(studio: Studio, ws: Workspace) -> tuple[Any, ...]:
    """What a workspace shows first: the run that is going on, else the newest one that merged these checkpoints."""
    shown = control.active_run(studio.settings.runs_dir)
    if shown is None:
        shown = next((run for run in list_runs(studio.settings.runs_dir) if same_inputs(run, ws)), None)
    return open_a_run(studio, shown.run_id if shown else "")


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
    if not wanted:
        raise OutputError("The merged model has no name yet. Give it one under Save as.")
    if wanted.startswith(".") or not wanted.isprintable() or any(character in wanted for character in '/\\:*?"<>|'):
        raise OutputError(
            f"{wanted!r} cannot be a folder name. Begin with a letter or digit, without / \\ : * ? < > |."
        )
    target = studio.settings.saved_dir / wanted
    publish(folder.model, target)
    return target


def saved_html(target: Path) -> Safe:
    """Where the model is and how to load it."""
    folder = target.as_posix()
    if (target / ADAPTER_CONFIG_NAME).is_file():
        load = f'PeftModel.from_pretrained(base_model, "{folder}")'
    elif (target / CONFIG_NAME).is_file():
        load = f'AutoModel.from_pretrained("{folder}")'
    else:
        load = f'safetensors.torch.load_file("{next(iter(sorted(target.glob("*.safetensors"))), target).as_posix()}")'
    text = join(["Load it anywhere: ", code(load)])
    return notice("ok", f"Saved {target.name}", text)


def default_save_name(studio: Studio, run_id: str) -> str:
    """A name for a run's model that is still free, from the base that it merged into; "" when there is no run."""
    try:
        base = Path(recipe_of(open_run(studio.settings.runs_dir, run_id)).base)
    except SFTMError:
        return ""
    pack = pack_of(base, list(studio.packs))
    stem = f"{pack.name if pack else default_name(base, set())}-merged"
    taken = {child.name for child in studio.settings.saved_dir.glob("*")}
    return next(name for n in range(1, len(taken) + 2) if (name := stem if n == 1 else f"{stem}-{n}") not in taken)
