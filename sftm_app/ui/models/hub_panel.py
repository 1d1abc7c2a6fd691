"""From the Hugging Face hub: look at a set by its headers, then download and load it. Two clicks for a preset."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import gradio as gr

from sftm_app.errors import InputError, SFTMError
from sftm_app.hub.fetching import Fetched, Fetching, FetchStatus, choose
from sftm_app.hub.hub_look import HubModel, HubSelection, Look
from sftm_app.hub.presets import PRESETS
from sftm_app.ui.handlers import QUIET, Updates, Values, handle, when_set
from sftm_app.ui.loading import load_checked
from sftm_app.ui.settings import allowed
from sftm_app.ui.studio import Studio
from sftm_app.ui.widgets import UncheckedDropdown
from sftm_app.ui.widgets.blocks import block
from sftm_app.ui.widgets.html import Html, code, hint, join, notice, progress, stack, table
from sftm_app.ui.workspace import Workspace
from sftm_app.units import format_bytes
from sftm_app.weights.hub_names import endpoint

OWN = ""


class HubPanel:
    """The panel. A set that was downloaded goes into `workspace`."""

    def __init__(self, studio: Studio, workspace: gr.State, page: gr.Blocks) -> None:
        self.studio, self.workspace = studio, workspace
        self.fetching = Fetching(studio.session.architectures)
        self._lay_out()
        named, view = {self.preset, self.base, self.tasks}, self.view
        once: dict[str, Any] = {"trigger_mode": "once", "concurrency_limit": 1, **QUIET}
        self.preset.input(handle(self.show_preset), {self.preset}, {self.about, self.own}, **QUIET)
        changes = [when_set(control) for control in (self.preset, self.base, self.tasks)]
        gr.on(changes, lambda: gr.update(interactive=False), None, self.fetch, **QUIET)
        self.look.click(handle(self.begin_look), named, view, **once)
        self.fetch.click(handle(self.begin_fetch), named, view, **once)
        self.cancel.click(handle(self.stop), None, view, **QUIET)
        self.timer.tick(handle(self.watch), None, {workspace, *view}, **QUIET)
        page.load(handle(self.show), None, view, **QUIET)

    def _lay_out(self) -> None:
        first = next(iter(PRESETS))
        with gr.Accordion("From the Hugging Face hub", open=False, elem_id="hub") as self.box:
            block(_contact())
            self.preset = UncheckedDropdown(
                [(one.title, one.name) for one in PRESETS.values()] + [("Models of your own choice", OWN)],
                value=first,
                label="Set",
                info="A base and the models that were fine-tuned from it.",
                elem_id="hub-preset",
            )
            self.about = block(about_html(first))
            with gr.Row(visible=False) as self.own:
                self.base = gr.Textbox(
                    label="Base",
                    info="org/name, org/name@revision, or a folder on this machine.",
                    max_lines=1,
                    elem_id="hub-base",
                )
                self.tasks = gr.Textbox(
                    label="Tasks",
                    info="One per line, written like the base.",
                    lines=3,
                    max_lines=12,
                    elem_id="hub-tasks",
                )
            with gr.Row():
                self.look = gr.Button("Look", elem_id="hub-look")
                self.fetch = gr.Button("Download and load", variant="primary", interactive=False, elem_id="hub-fetch")
                self.cancel = gr.Button("Cancel", variant="stop", interactive=False, elem_id="hub-cancel")
            self.shown = block(elem_id="hub-status")
        self.timer = gr.Timer(0.4, active=False)
        self.view: set[Any] = {self.shown, self.look, self.fetch, self.cancel, self.timer}
        self.proposed: set[Any] = {self.box, self.preset, self.about, self.own, self.base, self.tasks}

    def show(self) -> Updates:
        """Where the look or the download stands."""
        now = self.fetching.status
        ready = not now.active and now.look is not None and not now.look.problems
        return {
            self.shown: status_html(now),
            self.look: gr.update(interactive=not now.active),
            self.fetch: gr.update(interactive=ready),
            self.cancel: gr.update(interactive=now.active),
            self.timer: gr.Timer(active=now.active or now.fetched is not None),
        }

    def propose(self, base: str, tasks: Sequence[str]) -> Updates:
        """Fill in models of the person's own choice, to be looked at with a click."""
        return {
            self.box: gr.update(open=True),
            self.preset: OWN,
            self.about: about_html(OWN),
            self.own: gr.update(visible=True),
            self.base: base,
            self.tasks: "\n".join(tasks),
        }

    def show_preset(self, values: Values) -> Updates:
        """Describe the chosen set, or ask for models of the person's own choice."""
        name = values[self.preset]
        return {self.about: about_html(name), self.own: gr.update(visible=name == OWN)}

    def begin_look(self, values: Values) -> Updates:
        """Read the headers of what is chosen."""
        self.fetching.look(self._selection(values))
        return self.show()

    def begin_fetch(self, values: Values) -> Updates:
        """Download what the last look found."""
        seen = self.fetching.status.look
        if seen is None or self._selection(values) != seen.chosen:
            raise InputError("The selection has changed since the last look. Press Look again.")
        self.fetching.fetch()
        return self.show()

    def stop(self) -> Updates:
        """Stop the look or the download."""
        self.fetching.cancel()
        return self.show()

    def watch(self) -> Updates:
        """Show progress; when the download is complete, load it."""
        fetched = self.fetching.take()
        if fetched is None:
            return self.show()
        try:
            return {self.workspace: load_checked(self.studio, workspace_of(fetched)), **self.show()}
        except SFTMError as error:
            problems = notice("error", "The models were downloaded but cannot be merged", items=str(error).split("\n"))
            return {**self.show(), self.shown: problems}

    def _selection(self, values: Values) -> HubSelection:
        return read_selection(self.studio, values[self.preset], values[self.base], values[self.tasks])


def read_selection(studio: Studio, preset: str | None, base: str | None, tasks: str | None) -> HubSelection:
    """The set that the controls name.

    Raises:
        InputError: nothing is named, or a text names neither a folder nor a model.
    """
    if preset:
        return choose("", [], preset, lambda text: None)
    lines = [line for line in (tasks or "").splitlines() if line.strip()]
    if not (base or "").strip() or not lines:
        raise InputError("Enter a base and at least one task, such as org/name, one per line.")

    def local(text: str) -> Path | None:
        path = allowed(studio.settings, text)
        return path if path.is_dir() else None

    return choose(base or "", lines, None, local)


def workspace_of(fetched: Fetched) -> Workspace:
    """The workspace of a set that is on this machine."""
    recipe = fetched.recipe()
    return Workspace(recipe.base, recipe.tasks)


def status_html(now: FetchStatus) -> Html:
    """What is going on, or what came of it."""
    if now.state == "looking":
        return progress(None, f"Reading headers at {endpoint()}", "no weights yet")
    if now.state == "fetching":
        fraction = now.done_bytes / now.total_bytes if now.total_bytes else None
        return progress(fraction, "Downloading", f"{format_bytes(now.done_bytes)} of {format_bytes(now.total_bytes)}")
    if now.state == "failed":
        return notice("error", "The models on the hub cannot be used", items=now.message.split("\n"))
    if now.state == "cancelled":
        return notice("warning", "Cancelled", now.message)
    if now.look is None:
        return Html("")
    if now.state == "fetched":
        return notice("ok", "Downloaded", "The models are in the hub's cache and work offline from now on.")
    return look_html(now.look)


def look_html(seen: Look) -> Html:
    """What a look found: problems, or the size of the download; then every model."""
    if seen.problems:
        found = notice("error", "These models cannot be merged, so nothing is downloaded", items=seen.problems)
    else:
        size = f"The download is {format_bytes(seen.missing_bytes)}; {format_bytes(seen.free_bytes)} are free."
        n_tasks = len(seen.chosen.tasks)
        fit = "The task fits the base" if n_tasks == 1 else f"The {n_tasks} tasks fit the base"
        body = size if seen.missing_bytes else "Everything is on this machine already."
        found = notice("ok", fit, body, items=seen.notes)
    columns = ("Model", "Class", "Parameters", "To download", "Commit")
    return stack(found, table(columns, [_row(one) for one in seen.models], numeric=(2, 3)))


def _row(one: HubModel) -> tuple[object, ...]:
    size = f"{one.checkpoint.n_parameters / 1e6:.3g} M {', '.join(one.checkpoint.dtypes)}"
    if one.download is None:
        return one.source, one.kind, size, "here", ""
    commit = code(one.download.commit[:10])
    return one.source, one.kind, size, format_bytes(one.download.missing_bytes), commit


def about_html(name: str) -> Html:
    """What a set is, with the names of its models."""
    if name not in PRESETS:
        return hint(
            "If a folder in the models folder has the same name, the folder is used; for the hub, write hub:org/name."
        )
    one = PRESETS[name]
    return hint(
        join([one.about, " Base: ", code(one.base), ". Tasks: ", ", ".join(task for task, _ in one.tasks), "."])
    )


def _contact() -> Html:
    return hint(
        join(
            [
                f"Only Look and Download contact {endpoint()}; everything else works offline. They send the names of "
                "the models, and your token if you are logged in (",
                code("hf auth login"),
                "). Look reads only headers, so you see what does not fit before anything large is downloaded.",
            ]
        )
    )
