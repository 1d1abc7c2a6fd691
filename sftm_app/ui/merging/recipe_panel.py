"""The recipe of the form, as a file and as a command; and a recipe from a file, which is opened as an address is."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import gradio as gr

from sftm_app.errors import NotDownloadedError
from sftm_app.ui.handlers import QUIET, Updates, Values, handle, show_warning
from sftm_app.ui.merging.comparison_view import FORM
from sftm_app.ui.merging.form import recipe_to_text
from sftm_app.ui.merging.recipe_view import command_html, download_html, open_recipe
from sftm_app.ui.settings import allowed
from sftm_app.ui.studio import Studio
from sftm_app.ui.widgets.blocks import block

# What is kept where no run is on show.
NO_RUN = "none"
TO_FORM = f"() => {{ document.querySelector('#{FORM}')?.scrollIntoView({{block: 'center'}}); }}"


class RecipePanel:
    """The panel. A recipe that is opened changes `workspace`, and what the tab shows follows from that.

    Attributes:
        views: what `show` updates.
        missing: models of the hub that a recipe names and that are not here: (number, base, tasks).
    """

    def __init__(self, studio: Studio, workspace: gr.State) -> None:
        self.studio, self.workspace, self.missing = studio, workspace, gr.State(None)
        with gr.Accordion("Recipe and command line", open=False):
            self.recipe = gr.Code(label="Recipe (YAML)", language="yaml", interactive=False, elem_id="recipe")
            with gr.Row():
                self.download = block(elem_id="recipe-download")
                self.upload = gr.UploadButton(
                    "Use a recipe file", file_types=[".yaml", ".yml"], size="md", elem_id="recipe-upload"
                )
            self.on_disk = gr.Textbox(
                label="A recipe on this machine",
                info="Its path, and Enter. Relative paths in it start at its own folder, those in an uploaded one at "
                "the models folder. Models of the hub are called org/name, or hub:org/name.",
                max_lines=1,
                elem_id="recipe-path",
            )
            self.command = block()
        self.views: set[Any] = {self.recipe, self.command, self.download}
        loaded = {workspace, self.missing}
        for event in (
            self.upload.upload(handle(self.use), {self.upload}, loaded, **QUIET),
            self.on_disk.submit(handle(self.use_on_disk), {self.on_disk}, loaded, **QUIET),
        ):
            event.success(None, None, None, js=TO_FORM)

    def show(self, text: str) -> Updates:
        """Show a recipe."""
        return {self.recipe: text, self.command: command_html(), self.download: download_html(text)}

    def use(self, values: Values) -> Updates:
        """Load the models of an uploaded recipe, and show its settings."""
        return self._open(Path(values[self.upload]), None)

    def use_on_disk(self, values: Values) -> Updates:
        """The same for a recipe in one of the folders that may be read.

        Raises:
            InputError: it lies elsewhere.
        """
        path = allowed(self.studio.settings, values[self.on_disk] or "")
        return self._open(path, path.parent)

    def _open(self, path: Path, start: Path | None) -> Updates:
        try:
            ws, recipe = open_recipe(self.studio, path, start)
        except NotDownloadedError as error:
            show_warning(str(error), "Not downloaded yet")
            return {self.missing: (time.monotonic_ns(), error.base, error.tasks)}
        asked = ("merge", recipe_to_text(recipe, self.studio.settings.device)), ("run", NO_RUN)
        return {self.workspace: replace(ws, asked=asked, visit=time.monotonic_ns())}
