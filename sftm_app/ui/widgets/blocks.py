"""Components that show blocks of HTML without Gradio's own text styles, which would spoil the spacing."""

from __future__ import annotations

import gradio as gr

from sftm_app.ui.widgets.html import Html, empty_state, heading


def block(value: Html | str = "", elem_id: str | None = None) -> gr.HTML:
    """A block of HTML."""
    return gr.HTML(value, apply_default_css=False, elem_id=elem_id)


def section(title: str, body: str = "", elem_id: str | None = None) -> gr.HTML:
    """The heading of a section."""
    return block(heading(title, body), elem_id)


def no_models(title: str) -> gr.HTML:
    """Shown in place of a tab while no models are loaded."""
    return block(empty_state(title, "Load models on the Models tab; one click loads a demo."))
