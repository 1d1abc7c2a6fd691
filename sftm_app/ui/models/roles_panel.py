"""What each tensor is: the roles by groups of names, and the person's word over a guess or the architecture."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import gradio as gr

from sftm_app.architecture.role_rules import SET_BY_RECIPE, matching
from sftm_app.errors import InputError
from sftm_app.inspection.roles_table import TensorGroup, patterns_for, tensor_groups
from sftm_app.ui.handlers import sentences
from sftm_app.ui.studio import Studio
from sftm_app.ui.widgets.html import Safe, chip, code, hint, join, stack, table
from sftm_app.ui.workspace import Workspace

LayerCache = Callable[[Studio, Workspace], Workspace]
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
    "The role decides how a tensor is merged: matrices are superposed, embeddings and biases are summed, normalisation "
    "is averaged. In a pattern * stands for any text, such as a layer's number."
)


def build(studio: Studio, workspace: gr.State, keep: LayerCache) -> None:
    """Lay out the panel and wire it. `keep` remembers a workspace; what it returns goes into `workspace`."""
    last_base = gr.State("")
    with gr.Accordion("What each tensor is", open=False, visible=False, elem_id="roles") as panel:
        shown = gr.HTML(apply_default_css=False, elem_id="roles-table")
        with gr.Row(equal_height=True):
            pattern = gr.Dropdown(
                label="Tensors",
                info="A row of the table, or a pattern of your own.",
                choices=[],
                value=None,
                allow_custom_value=True,
                scale=3,
                min_width=300,
                elem_id="role-pattern",
            )
            role = gr.Dropdown(
                [(title, word) for word, title in ROLE_TITLES.items()],
                label="Are",
                info="What they are for.",
                value="matrix",
                scale=2,
                min_width=220,
                elem_id="role-word",
            )
        with gr.Row():
            put = gr.Button("Set", variant="primary", elem_id="role-set")
            back = gr.Button("Reset these", elem_id="role-reset")
            clear = gr.Button("Reset all", elem_id="role-reset-all")

    def follow(ws: Workspace, last: str) -> tuple[Any, ...]:
        if not studio.usable(ws):
            return gr.update(visible=False), "", gr.update(choices=[], value=None), ""
        groups = groups_of(studio, ws)
        choices = list(dict.fromkeys(group.pattern for group in groups))
        html = roles_html(groups)
        if ws.base == last:  # the panel stays as the person left it
            return gr.update(visible=True), html, gr.update(choices=choices), last
        # A guess is to be looked through.
        opened = studio.preflight(ws).base.bare
        return gr.update(visible=True, open=opened), html, gr.update(choices=choices, value=None), ws.base

    quick: dict[str, Any] = {"show_progress": "hidden"}
    workspace.change(sentences(follow), [workspace, last_base], [panel, shown, pattern, last_base], **quick)
    pattern.input(sentences(lambda ws, text: current_role(studio, ws, text)), [workspace, pattern], role, **quick)
    put.click(
        sentences(lambda ws, text, word: keep(studio, set_role(studio, ws, text, word))),
        [workspace, pattern, role],
        workspace,
        **quick,
    )
    back.click(
        sentences(lambda ws, text: keep(studio, reset_role(studio, ws, text))), [workspace, pattern], workspace, **quick
    )
    clear.click(sentences(lambda ws: keep(studio, replace(ws, roles=()))), workspace, workspace, **quick)


def groups_of(studio: Studio, ws: Workspace) -> tuple[TensorGroup, ...]:
    """The groups of a workspace's base, under the roles that are set."""
    return tensor_groups(studio.preflight(ws))


def roles_html(groups: tuple[TensorGroup, ...]) -> Safe:
    """The table of groups; what a person set is marked."""
    # What was set comes first, so that a click shows what it did.
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
    made = table(["tensors", "count", "shape", "are", "why"], rows, numeric=[1])
    return stack(hint(_HELP), Safe(f'<div class="sf-details">{made}</div>'))


def _is_set(group: TensorGroup) -> bool:
    return group.why.startswith(SET_BY_RECIPE)


def _shapes(group: TensorGroup) -> Safe:
    shown = [" × ".join(map(str, shape)) or "a number" for shape in group.shapes[:MAX_SHAPES_SHOWN]]
    more = [f"{len(group.shapes) - MAX_SHAPES_SHOWN} more"] if len(group.shapes) > MAX_SHAPES_SHOWN else []
    return join(shown + more, ", ")


def current_role(studio: Studio, ws: Workspace, text: str | None) -> Any:
    """The role of a row that was chosen; a pattern that is no row leaves the choice as it is."""
    if not studio.usable(ws):
        return gr.skip()
    return next((group.role for group in groups_of(studio, ws) if group.pattern == text), gr.skip())


def set_role(studio: Studio, ws: Workspace, text: str | None, word: str) -> Workspace:
    """The workspace in which the tensors that `text` means, a row's or a pattern, are a `word` of ROLE_TITLES.

    Raises
        InputError: nothing is chosen, or the role does not fit; the roles stay as they were.
    """
    if word not in ROLE_TITLES:
        raise InputError(f"{word!r} is no role. Choose one under Are.")
    before = studio.preflight(ws).problems
    patterns = _patterns(studio, ws, text)
    roles = tuple(rule for rule in ws.roles if rule[0] not in patterns)
    made = replace(ws, roles=roles + tuple((pattern, word) for pattern in patterns))
    found = studio.preflight(made)
    if found.problems != before:
        found.require()
    return made


def reset_role(studio: Studio, ws: Workspace, text: str | None) -> Workspace:
    """The workspace in which nothing is set for the tensors that `text` means.

    Raises
        InputError: nothing is chosen, or nothing was set for it by itself.
    """
    patterns = {*_patterns(studio, ws, text), (text or "").strip()}
    meant = {name for pattern in patterns for name in _meant(studio, ws, pattern)}
    roles = tuple(rule for rule in ws.roles if not set(_meant(studio, ws, rule[0])) <= meant)
    if roles == ws.roles:
        raise InputError(f"No role was set for {text!r} by itself. Choose a row that was set, or press Reset all.")
    return replace(ws, roles=roles)


def _patterns(studio: Studio, ws: Workspace, text: str | None) -> list[str]:
    """What a row or a typed pattern means as rules."""
    wanted = (text or "").strip()
    if not wanted:
        raise InputError("No tensors are chosen. Choose a row under Tensors, or type a pattern such as *.norm.weight.")
    return patterns_for(wanted, groups_of(studio, ws)) or [wanted]


def _meant(studio: Studio, ws: Workspace, pattern: str) -> list[str]:
    return matching(pattern, studio.preflight(ws).base.tensors)
