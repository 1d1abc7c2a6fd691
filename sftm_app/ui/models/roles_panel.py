"""What each tensor is: the roles by groups of names, where a person can correct a guess or the architecture."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import gradio as gr

from sftm_app.architecture.role_rules import SET_BY_RECIPE, match_names
from sftm_app.errors import InputError
from sftm_app.inspection.roles_table import TensorGroup, patterns_for, tensor_groups
from sftm_app.ui.handlers import QUIET, Updates, Values, handle
from sftm_app.ui.loading import remember
from sftm_app.ui.studio import Studio
from sftm_app.ui.widgets import UncheckedDropdown
from sftm_app.ui.widgets.blocks import block
from sftm_app.ui.widgets.html import Html, chip, code, hint, join, stack, table
from sftm_app.ui.workspace import Workspace

ROLE_TITLES = {
    "matrix": "matrix",
    "matrix_transposed": "matrix, stored in × out",
    "embedding": "embedding or other table",
    "bias": "bias",
    "norm": "normalisation",
    "copy": "copied from the base",
}
MAX_SHAPES_SHOWN = 3
_HELP = (
    "The role of a tensor decides how it is merged: the chosen method merges matrices, and the plan on the Merge tab "
    "shows what happens to embeddings, biases and normalisation. In a pattern, * stands for any text, such as the "
    "number of a layer."
)


class RolesPanel:
    """The panel. Setting a role changes `workspace`."""

    def __init__(self, studio: Studio, workspace: gr.State) -> None:
        self.studio, self.workspace = studio, workspace
        self.last_base = gr.State("")
        self._lay_out()
        chosen = {workspace, self.pattern, self.role}
        outputs = {self.panel, self.shown, self.pattern, self.last_base}
        workspace.change(handle(self.show), {workspace, self.last_base}, outputs, **QUIET)
        self.pattern.input(handle(self.show_role), chosen, self.role, **QUIET)
        self.put.click(handle(self.set), chosen, workspace, **QUIET)
        self.reset.click(handle(self.reset_these), chosen, workspace, **QUIET)
        self.reset_all.click(handle(self.reset_everything), chosen, workspace, **QUIET)

    def _lay_out(self) -> None:
        with gr.Accordion("What each tensor is", open=False, visible=False, elem_id="roles") as self.panel:
            self.shown = block(elem_id="roles-table")
            with gr.Row(equal_height=True):
                self.pattern = UncheckedDropdown(
                    label="Tensors",
                    info="A row of the table, or a pattern of your own.",
                    choices=[],
                    value=None,
                    allow_custom_value=True,
                    scale=3,
                    min_width=300,
                    elem_id="role-pattern",
                )
                self.role = UncheckedDropdown(
                    [(title, word) for word, title in ROLE_TITLES.items()],
                    label="Role",
                    info="What these tensors are.",
                    value="matrix",
                    scale=2,
                    min_width=220,
                    elem_id="role-word",
                )
            with gr.Row():
                self.put = gr.Button("Set", variant="primary", elem_id="role-set")
                self.reset = gr.Button("Reset these", elem_id="role-reset")
                self.reset_all = gr.Button("Reset all", elem_id="role-reset-all")

    def show(self, values: Values) -> Updates:
        """The groups of the workspace's base."""
        ws = values[self.workspace]
        if not self.studio.usable(ws):
            return {
                self.panel: gr.update(visible=False),
                self.shown: "",
                self.pattern: gr.update(choices=[], value=None),
                self.last_base: "",
            }
        groups = groups_of(self.studio, ws)
        choices = list(dict.fromkeys(group.pattern for group in groups))
        shown: dict[str, Any] = {"visible": True}
        pattern: dict[str, Any] = {"choices": choices}
        # While the base stays, the panel stays as the person left it.
        if ws.base != values[self.last_base]:
            # Guessed roles should be read through.
            known = self.studio.preflight(ws).architecture
            shown["open"] = bool(known.guessed or known.unknown)
            pattern["value"] = None
        return {
            self.panel: gr.update(**shown),
            self.shown: roles_html(groups),
            self.pattern: gr.update(**pattern),
            self.last_base: ws.base,
        }

    def show_role(self, values: Values) -> Updates:
        """The role of the row that was chosen; a pattern that is not a row leaves the role as it is."""
        role = current_role(self.studio, values[self.workspace], values[self.pattern])
        return {self.role: role} if role else {}

    def set(self, values: Values) -> Updates:
        """Set a role."""
        made = set_role(self.studio, values[self.workspace], values[self.pattern], values[self.role])
        return {self.workspace: remember(self.studio, made)}

    def reset_these(self, values: Values) -> Updates:
        """Take back what was set for the chosen tensors."""
        made = reset_role(self.studio, values[self.workspace], values[self.pattern])
        return {self.workspace: remember(self.studio, made)}

    def reset_everything(self, values: Values) -> Updates:
        """Take back every role that was set."""
        return {self.workspace: remember(self.studio, replace(values[self.workspace], roles=()))}


def groups_of(studio: Studio, ws: Workspace) -> tuple[TensorGroup, ...]:
    """The groups of a workspace's base, under the roles that are set."""
    return tensor_groups(studio.preflight(ws))


def roles_html(groups: tuple[TensorGroup, ...]) -> Html:
    """The table of groups; roles that a person set are marked."""
    # What was set comes first, so that a click shows its effect.
    rows = [
        (
            code(group.pattern),
            len(group.names),
            _shapes(group),
            ROLE_TITLES[group.role],
            chip("set by you", tone="info") if _is_set(group) else group.why,
        )
        for group in sorted(groups, key=lambda group: not _is_set(group))
    ]
    made = table(["tensors", "count", "shape", "role", "why"], rows, numeric=[1])
    return stack(hint(_HELP), Html('<div class="sf-details">{}</div>').format(made))


def _is_set(group: TensorGroup) -> bool:
    return group.why.startswith(SET_BY_RECIPE)


def _shapes(group: TensorGroup) -> Html:
    shown = [" × ".join(map(str, shape)) or "a number" for shape in group.shapes[:MAX_SHAPES_SHOWN]]
    more = [f"{len(group.shapes) - MAX_SHAPES_SHOWN} more"] if len(group.shapes) > MAX_SHAPES_SHOWN else []
    return join(shown + more, ", ")


def current_role(studio: Studio, ws: Workspace, text: str | None) -> str | None:
    """The role of a row; None for a pattern that is not a row."""
    if not studio.usable(ws):
        return None
    return next((group.role for group in groups_of(studio, ws) if group.pattern == text), None)


def set_role(studio: Studio, ws: Workspace, text: str | None, word: str) -> Workspace:
    """The workspace in which the tensors of `text`, a row or a pattern, have the role `word` of ROLE_TITLES.

    Raises:
        InputError: nothing is chosen, or the role does not fit.
    """
    if word not in ROLE_TITLES:
        raise InputError(f"{word!r} is not a role. Choose one under Role.")
    before = studio.preflight(ws).problems
    patterns = _patterns(studio, ws, text)
    roles = tuple(rule for rule in ws.roles if rule[0] not in patterns)
    made = replace(ws, roles=roles + tuple((pattern, word) for pattern in patterns))
    found = studio.preflight(made)
    if found.problems != before:
        found.require()
    return made


def reset_role(studio: Studio, ws: Workspace, text: str | None) -> Workspace:
    """The workspace in which nothing is set for the tensors of `text`, a row or a pattern.

    Raises:
        InputError: nothing is chosen, or no rule was set for these tensors alone.
    """
    patterns = {*_patterns(studio, ws, text), (text or "").strip()}
    meant = {name for pattern in patterns for name in _names(studio, ws, pattern)}
    roles = tuple(rule for rule in ws.roles if not set(_names(studio, ws, rule[0])) <= meant)
    if roles == ws.roles:
        raise InputError(f"No role was set for {text!r} alone. Choose a row that was set, or press Reset all.")
    return replace(ws, roles=roles)


def _patterns(studio: Studio, ws: Workspace, text: str | None) -> list[str]:
    """A row or a typed pattern as rules."""
    wanted = (text or "").strip()
    if not wanted:
        raise InputError("No tensors are chosen. Choose a row under Tensors, or type a pattern such as *.norm.weight.")
    return patterns_for(wanted, groups_of(studio, ws)) or [wanted]


def _names(studio: Studio, ws: Workspace, pattern: str) -> list[str]:
    return match_names(pattern, studio.preflight(ws).base.tensors)
