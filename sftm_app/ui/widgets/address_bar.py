"""Keeps the page's address equal to what is shown, and copies it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gradio as gr

_SCRIPT = Path(__file__).with_suffix(".js")

# Static on purpose, as in PlotlyView.
_TEMPLATE = """
<div class="sf-address">
  <button type="button" class="sf-tool sf-copy" title="Copy the address of this view">Copy link</button>
  <span class="sf-copied" role="status"></span>
</div>
"""


class AddressBar(gr.HTML):  # type: ignore[misc]
    """A button Copy link. Its value is the address's query, without the "?"; the browser shows it as it changes."""

    def __init__(self, value: str = "", **kwargs: Any) -> None:
        super().__init__(
            value=value,
            html_template=_TEMPLATE,
            js_on_load=_SCRIPT.read_text(encoding="utf-8"),
            apply_default_css=False,
            **{"padding": False, **kwargs},
        )

    def get_block_name(self) -> str:
        """The front end knows this widget as its parent."""
        return "html"
