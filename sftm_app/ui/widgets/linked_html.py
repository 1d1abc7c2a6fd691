"""HTML whose links lead to another view of the same page instead of to another page."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import gradio as gr

from sftm_app.ui.widgets.html import Safe, safe

_SCRIPT = Path(__file__).with_suffix(".js")


class LinkedHtml(gr.HTML):  # type: ignore[misc]
    """Shows HTML made by `widgets.html`; a click on a `view_link` in it scrolls there and fires `select`.

    Read the event with `parse_selection`: its customdata are the link's `target`.
    """

    def __init__(self, value: Any = None, **kwargs: Any) -> None:
        super().__init__(
            value=value,
            js_on_load=_SCRIPT.read_text(encoding="utf-8"),
            apply_default_css=False,
            **{"padding": False, **kwargs},
        )

    def get_block_name(self) -> str:
        """The front end knows this widget as its parent."""
        return "html"


def view_link(text: object, shows: str, target: tuple[str | int, ...] = ()) -> Safe:
    """A button that looks like a link. shows: the element's id to scroll to. target: what the click reports."""
    data = safe(json.dumps(list(target)))
    return Safe(
        f'<button type="button" class="sf-link" data-sf-show="{safe(shows)}" data-sf-go="{data}">{safe(text)}</button>'
    )
