"""Keeps the page's address equal to what is shown, copies it, and follows the browser's Back and Forward."""

from __future__ import annotations

from typing import Any

import gradio as gr

from sftm_app.ui.widgets.gradio_internals import Widget, event_data

# Another value of one of these is another view, to which Back returns; so are other models. A moved slider is not.
VIEWS = ("tab", "layer", "run")
MOST_QUERY = 1 << 16


class AddressBar(Widget):
    """A button "Copy link". The browser's address is put together from all `AddressPart`s of the page.

    `select` fires when the person went back or forward; read it with `parse_address`.
    """

    template = """
<div class="sf-address">
  <button type="button" class="sf-tool sf-copy" title="Copy the address of this view">Copy link</button>
  <span class="sf-copied" role="status"></span>
</div>
"""
    scripts = ("address_bar.js",)

    def __init__(self, **kwargs: Any) -> None:
        super().__init__("", views=list(VIEWS), **kwargs)


class AddressPart(Widget):
    """A part of the address, not visible. Its value is a text that is written as `name=text`; a flat one is a query."""

    scripts = ("address_part.js",)

    def __init__(self, name: str = "", flat: bool = False, **kwargs: Any) -> None:
        # In the template, because props of one's own are not there before the tab is shown.
        self.template = f'<span hidden data-part="{name}" data-flat="{flat}"></span>'  # type: ignore[misc]
        super().__init__("", elem_classes="sf-address-part", **kwargs)


def parse_address(event: gr.EventData) -> tuple[str, bool]:
    """The address to which the person went; an empty one for anything malformed, for it comes from the browser.

    Returns:
        Its query, and whether it differs from the one before in its tab alone.
    """
    data = event_data(event)
    query, only_tab = (data.get("query"), data.get("onlyTab")) if isinstance(data, dict) else ("", False)
    return (query, only_tab is True) if isinstance(query, str) and len(query) <= MOST_QUERY else ("", False)
