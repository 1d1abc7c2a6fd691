"""Whose tokenizer the merged model has: shown where those of base and tasks differ."""

from __future__ import annotations

from dataclasses import replace

import gradio as gr

from sftm_app.errors import SFTMError
from sftm_app.planning.recipe import tokenizer_choices
from sftm_app.ui.handlers import QUIET, Updates, Values, handle
from sftm_app.ui.loading import load_checked
from sftm_app.ui.studio import Studio
from sftm_app.ui.widgets import UncheckedRadio
from sftm_app.ui.workspace import Workspace

AUTOMATIC = "automatic"


class TokenizerPanel:
    """The control. Setting it changes `workspace`."""

    def __init__(self, studio: Studio, workspace: gr.State) -> None:
        self.studio, self.workspace = studio, workspace
        self.choice = UncheckedRadio(
            [AUTOMATIC],
            value=AUTOMATIC,
            label="Tokenizer of the merged model",
            info="Rows are matched by token. automatic: all tokens, if no row means different ones.",
            visible=False,
            elem_id="tokenizer",
        )
        workspace.change(handle(self.show), {workspace}, self.choice, **QUIET)
        self.choice.input(handle(self.set), {workspace, self.choice}, workspace, **QUIET)

    def show(self, values: Values) -> Updates:
        """What a workspace lets one choose; hidden where all models have one tokenizer."""
        ws = values[self.workspace]
        words = {"base": "the base's", "union": "union (all tokens)"} | {
            f"task {name}": f"that of {name}" for name in ws.task_names
        }
        choices = [(words[choice], choice) for choice in tokenizer_choices(ws.task_names)]
        return {
            self.choice: gr.update(
                choices=[(AUTOMATIC, AUTOMATIC), *choices],
                value=ws.tokenizer or AUTOMATIC,
                visible=is_choosable(self.studio, ws),
            )
        }

    def set(self, values: Values) -> Updates:
        """Choose a tokenizer."""
        choice = values[self.choice]
        made = replace(values[self.workspace], tokenizer=None if choice == AUTOMATIC else choice)
        return {self.workspace: load_checked(self.studio, made)}


def is_choosable(studio: Studio, workspace: Workspace) -> bool:
    """Whether it makes a difference for a workspace whose tokenizer is chosen."""
    try:
        return workspace.ready and studio.preflight(workspace).tokenizers.choosable
    except SFTMError:
        return False
