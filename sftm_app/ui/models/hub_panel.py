"""From the Hugging Face hub: look at a set by its headers, then download and load it. Two clicks for a preset."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import gradio as gr

from sftm_app.errors import InputError, SFTMError
from sftm_app.hub.fetching import Fetched, Fetching, FetchStatus, choose
from sftm_app.hub.hub_look import HubSelection, Look, Seen
from sftm_app.hub.presets import PRESETS
from sftm_app.ui.handlers import sentences
from sftm_app.ui.settings import allowed
from sftm_app.ui.studio import Studio
from sftm_app.ui.widgets.html import Safe, code, hint, join, notice, progress, stack, table
from sftm_app.ui.workspace import Workspace
from sftm_app.units import format_bytes
from sftm_app.weights.hub_names import endpoint

OWN = ""
Load = Callable[[Studio, Workspace], Workspace]


def build(studio: Studio, workspace: gr.State, page: gr.Blocks, load: Load) -> None:
    """Lay out the panel and wire it. `load` checks and remembers a workspace; what it returns goes into `workspace`."""
    fetching = Fetching()
    first = next(iter(PRESETS))
    with gr.Accordion("From the Hugging Face hub", open=False, elem_id="hub"):
        gr.HTML(_contact(), apply_default_css=False)
        preset = gr.Dropdown(
            [(one.title, one.name) for one in PRESETS.values()] + [("Models of your own choice", OWN)],
            value=first,
            label="Set",
            info="A base and the models that were fine-tuned from it.",
            elem_id="hub-preset",
        )
        about = gr.HTML(about_html(first), apply_default_css=False)
        with gr.Row(visible=False) as own:
            base = gr.Textbox(
                label="Base", info="org/name, org/name@revision, or a folder here.", max_lines=1, elem_id="hub-base"
            )
            tasks = gr.Textbox(
                label="Tasks", info="One a line, written like the base.", lines=3, max_lines=12, elem_id="hub-tasks"
            )
        with gr.Row():
            look = gr.Button("Look", elem_id="hub-look")
            fetch = gr.Button("Download and load", variant="primary", interactive=False, elem_id="hub-fetch")
            cancel = gr.Button("Cancel", variant="stop", interactive=False, elem_id="hub-cancel")
        shown = gr.HTML(apply_default_css=False, elem_id="hub-status")
    timer = gr.Timer(0.4, active=False)

    named = [preset, base, tasks]
    view = [shown, look, fetch, cancel, timer]

    def begin_look(*texts: str | None) -> tuple[Any, ...]:
        fetching.look(read_choice(studio, *texts))
        return show(fetching.status)

    def begin_fetch(*texts: str | None) -> tuple[Any, ...]:
        seen = fetching.status.look
        if seen is None or read_choice(studio, *texts) != seen.chosen:
            raise InputError("The choice was changed since the last look. Press Look again.")
        fetching.fetch()
        return show(fetching.status)

    def stop() -> tuple[Any, ...]:
        fetching.cancel()
        return show(fetching.status)

    def watch() -> tuple[Any, ...]:
        fetched = fetching.take()
        if fetched is None:
            return gr.skip(), *show(fetching.status)
        try:
            return load(studio, workspace_of(fetched)), *show(fetching.status)
        except SFTMError as error:
            said = notice("error", "Downloaded, but not loaded", items=str(error).split("\n"))
            return gr.skip(), said, *show(fetching.status)[1:]

    quiet: dict[str, Any] = {"show_progress": "hidden"}
    preset.input(lambda name: (about_html(name), gr.update(visible=name == OWN)), preset, [about, own], **quiet)
    gr.on([preset.input, base.input, tasks.input], lambda: gr.update(interactive=False), None, fetch, **quiet)
    once: dict[str, Any] = {"trigger_mode": "once", "concurrency_limit": 1, **quiet}
    look.click(sentences(begin_look), named, view, **once)
    fetch.click(sentences(begin_fetch), named, view, **once)
    cancel.click(sentences(stop), None, view, **quiet)
    timer.tick(sentences(watch), None, [workspace, *view], **quiet)
    page.load(sentences(lambda: show(fetching.status)), None, view, **quiet)


def read_choice(studio: Studio, preset: str | None, base: str | None, tasks: str | None) -> HubSelection:
    """The set that the controls name.

    Raises
        InputError: nothing is named, or a text names neither a folder nor a model.
    """
    if preset:
        return choose("", [], preset, lambda text: None)
    lines = [line for line in (tasks or "").splitlines() if line.strip()]
    if not (base or "").strip() or not lines:
        raise InputError("Name a base and at least one task, such as org/name, one a line.")

    def local(text: str) -> Path | None:
        path = allowed(studio.settings, text)
        return path if path.is_dir() else None

    return choose(base or "", lines, None, local)


def workspace_of(fetched: Fetched) -> Workspace:
    """The workspace of a set that is on this machine."""
    recipe = fetched.recipe()
    return Workspace(recipe.base, recipe.tasks)


def show(now: FetchStatus) -> tuple[Any, ...]:
    """Text, Look, Download, Cancel and the timer, as they are now."""
    ready = not now.active and now.look is not None and not now.look.problems
    return (
        status_html(now),
        gr.update(interactive=not now.active),
        gr.update(interactive=ready),
        gr.update(interactive=now.active),
        gr.Timer(active=now.active or now.fetched is not None),
    )


def status_html(now: FetchStatus) -> Safe:
    """What is going on, or what came out."""
    if now.state == "looking":
        return progress(None, f"Reading headers at {endpoint()}", "no weights yet")
    if now.state == "fetching":
        fraction = now.done_bytes / now.total_bytes if now.total_bytes else None
        return progress(fraction, "Downloading", f"{format_bytes(now.done_bytes)} of {format_bytes(now.total_bytes)}")
    if now.state == "failed":
        return notice("error", "The hub models cannot be used", items=now.message.split("\n"))
    if now.state == "cancelled":
        return notice("warning", "Cancelled", now.message)
    if now.look is None:
        return Safe("")
    if now.state == "fetched":
        return notice("ok", "Downloaded", "The folders are in the hub's cache; they work offline from now on.")
    return look_html(now.look)


def look_html(seen: Look) -> Safe:
    """What a look found: problems, or what the download takes; then every model."""
    if seen.problems:
        said = notice("error", "These models cannot be merged, so nothing is downloaded", items=seen.problems)
    else:
        kept = "Everything is on this machine already" if not seen.missing_bytes else ""
        takes = f"The download takes {format_bytes(seen.missing_bytes)}; {format_bytes(seen.free_bytes)} are free"
        n_tasks = len(seen.chosen.tasks)
        fit = "The task fits the base" if n_tasks == 1 else f"The {n_tasks} tasks fit the base"
        notes = [note for note in seen.notes if "belong to its own head" not in note]
        said = notice("ok", fit, f"{kept or takes}.", items=notes)
    columns = ("Model", "Class", "Parameters", "To download", "Commit")
    return stack(said, table(columns, [_row(one) for one in seen.seen], numeric=(2, 3)))


def _row(one: Seen) -> tuple[object, ...]:
    size = f"{one.checkpoint.n_parameters / 1e6:.3g} M {', '.join(one.checkpoint.dtypes)}"
    if one.found is None:
        return one.source, one.kind, size, "here", ""
    commit = code(one.found.commit[:10])
    return one.source, one.kind, size, format_bytes(one.found.missing_bytes), commit


def about_html(name: str) -> Safe:
    """What a set is, by the names of its models."""
    if name not in PRESETS:
        return hint("A folder below the models folder wins over a model of the same name; write hub:org/name for that.")
    one = PRESETS[name]
    return hint(join([one.about, " Base ", code(one.base), "; tasks ", ", ".join(task for task, _ in one.tasks), "."]))


def _contact() -> Safe:
    return hint(
        join(
            [
                f"Look and Download contact {endpoint()}; nothing else does, and everything else works offline. What "
                "is sent: the models' names, and your token if you are logged in (",
                code("hf auth login"),
                "). Look reads only the headers: what does not fit shows before anything large is downloaded.",
            ]
        )
    )
