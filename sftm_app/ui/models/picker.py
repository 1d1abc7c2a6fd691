"""A person's own checkpoints: pick base and tasks from the list of those that were found, or paste their paths."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import gradio as gr

from sftm_app.errors import CheckpointError, InputError
from sftm_app.ui.handlers import QUIET, Updates, Values, handle, show_warning
from sftm_app.ui.models.checkpoints import Found, checkpoint_choices, look_at, title_of
from sftm_app.ui.models.fitting import fitting
from sftm_app.ui.models.folders import added_folders, set_folders
from sftm_app.ui.settings import allowed
from sftm_app.ui.studio import Studio
from sftm_app.ui.widgets import UncheckedDropdown
from sftm_app.ui.widgets.blocks import section
from sftm_app.ui.workspace import Workspace


class Picker:
    """The controls.

    Attributes:
        load: the button that loads what is picked.
        pickers: base and tasks.
    """

    def __init__(self, studio: Studio, workspace: gr.State, page: gr.Blocks) -> None:
        self.studio, self.workspace = studio, workspace
        section(
            "Your own checkpoints",
            "Folders as save_pretrained writes them, LoRA adapters, or bare .safetensors files, all fine-tuned from "
            "one base.",
        )
        self.base = UncheckedDropdown(
            label="Base",
            info="The checkpoint that the others were fine-tuned from. Pick one, or paste its path.",
            choices=[],
            value=None,
            allow_custom_value=True,
            elem_id="base-path",
        )
        self.tasks = UncheckedDropdown(
            label="Tasks",
            info="Fine-tuned checkpoints. Those are listed that may fit the base; any other path can be pasted, with "
            "Enter after each.",
            choices=[],
            value=[],
            multiselect=True,
            allow_custom_value=True,
            elem_id="task-paths",
        )
        with gr.Row():
            self.load = gr.Button("Check and load", variant="primary", elem_id="load-own")
            self.browse = gr.Button("Search for checkpoints again", elem_id="browse")
        with gr.Accordion("Where checkpoints are searched", open=False, elem_id="folders"):
            self.folders = UncheckedDropdown(
                label="More folders",
                info=_searched(studio),
                choices=[],
                value=[],
                multiselect=True,
                allow_custom_value=True,
                elem_id="more-folders",
            )
        self.pickers: set[Any] = {self.base, self.tasks}
        shown = {*self.pickers, self.folders}
        page.load(handle(self.open), {self.workspace}, shown, **QUIET)
        self.browse.click(handle(self.look_again), self.pickers, self.pickers)
        self.folders.input(handle(self.search_in), shown, shown, **QUIET)
        self.base.input(handle(self.follow_base), self.pickers, self.tasks, trigger_mode="always_last", **QUIET)
        workspace.change(handle(self.show), {workspace}, self.pickers, **QUIET)

    def open(self, values: Values) -> Updates:
        """The checkpoints and the folders that were added, when the page opens."""
        folders = [str(folder) for folder in added_folders(self.studio.settings)]
        return {self.folders: gr.update(value=folders, choices=folders), **self.show(values)}

    def show(self, values: Values) -> Updates:
        """Base and tasks of a workspace that was just loaded."""
        ws: Workspace = values[self.workspace]
        picked: dict[Any, Any] = {self.base: ws.base, self.tasks: [task.path for task in ws.tasks]}
        offered = self._offer(picked[self.base], picked[self.tasks])
        # Reading the folders may take seconds, and a person may have picked some since: nothing is emptied.
        return {one: {**update, **({"value": picked[one]} if picked[one] else {})} for one, update in offered.items()}

    def look_again(self, values: Values) -> Updates:
        """Search again. What is picked stays."""
        found = self._found()
        if not found:
            first, *_ = self.studio.settings.models_dirs
            raise CheckpointError(
                f"{first}: no checkpoints were found. Paste the path of one, or add a folder under Where checkpoints "
                "are searched."
            )
        return self._offer(values[self.base], values[self.tasks], found)

    def search_in(self, values: Values) -> Updates:
        """Search in other folders, or say why one cannot be added."""
        try:
            folders = set_folders(self.studio.settings, values[self.folders] or [])
        except InputError as error:
            show_warning(str(error), "This folder cannot be added")
            folders = added_folders(self.studio.settings)
        texts = [str(folder) for folder in folders]
        offered = self._offer(values[self.base], values[self.tasks])
        return {self.folders: gr.update(value=texts, choices=texts), **offered}

    def follow_base(self, values: Values) -> Updates:
        """Offer the tasks that may fit the base that was picked."""
        return {self.tasks: self._offer(values[self.base], values[self.tasks])[self.tasks]}

    def _found(self) -> list[Found]:
        return checkpoint_choices(self.studio.settings, added_folders(self.studio.settings))

    def _offer(self, base: str | None, tasks: Sequence[str] | None, known: Sequence[Found] | None = None) -> Updates:
        """The lists; what is picked stays. A checkpoint from elsewhere, such as a demo's, is listed too."""
        found = list(self._found() if known is None else known)
        ours, theirs = self._existing([base or ""]), self._existing(tasks or ())
        listed = {one.path for one in found}
        found += [look_at(path) for path in dict.fromkeys(ours + theirs) if path not in listed]
        fit = set(fitting(ours[0], [one.path for one in found])) if ours else {one.path for one in found}
        bases = [one for one in found if not one.is_adapter]
        offered = [one for one in found if one.path in fit or one.path in theirs]
        return {
            self.base: gr.update(choices=self._choices(bases)),
            self.tasks: gr.update(choices=self._choices(offered)),
        }

    def _existing(self, texts: Sequence[str]) -> list[Path]:
        """The paths among the texts that may be looked at and are there."""
        found = []
        for text in texts:
            with contextlib.suppress(InputError):
                found += [path for path in (allowed(self.studio.settings, text),) if path.exists()]
        return found

    def _choices(self, found: Sequence[Found]) -> list[tuple[str, str]]:
        return [(title_of(one, self.studio.settings), str(one.path)) for one in found]


def _searched(studio: Studio) -> str:
    folders = ", ".join(map(str, studio.settings.models_dirs))
    return (
        f"Checkpoints are searched four levels deep in {folders}. Paste the path of a folder in there and press Enter "
        "to search it too. Other folders are opened only if you start the app with --models-dir FOLDER; the option can "
        "be given several times."
    )
