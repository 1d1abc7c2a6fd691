"""HTML whose links lead to another view of the same page instead of to another page."""

from __future__ import annotations

import json

from sftm_app.ui.widgets.gradio_internals import Widget
from sftm_app.ui.widgets.html import Html


class LinkedHtml(Widget):
    """Shows HTML made by `widgets.html`; a click on a `view_link` in it scrolls there and fires `select`.

    Read the event with `parse_selection`: its customdata is the link's `target`.
    """

    scripts = ("linked_html.js",)


def view_link(text: object, shows: str, target: tuple[str | int | float, ...] = ()) -> Html:
    """A button that looks like a link. shows: id of the element to scroll to. target: what the click reports."""
    return Html('<button type="button" class="sf-link" data-sf-show="{}" data-sf-go="{}">{}</button>').format(
        shows, json.dumps(list(target)), text
    )
