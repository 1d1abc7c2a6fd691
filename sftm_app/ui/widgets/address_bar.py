"""Keeps the page's address equal to what is shown, and copies it."""

from __future__ import annotations

from sftm_app.ui.widgets.gradio_internals import Widget


class AddressBar(Widget):
    """A button "Copy link". Its value is the query of the address, without "?"; the browser's address follows it."""

    template = """
<div class="sf-address">
  <button type="button" class="sf-tool sf-copy" title="Copy the address of this view">Copy link</button>
  <span class="sf-copied" role="status"></span>
</div>
"""
    scripts = ("address_bar.js",)
