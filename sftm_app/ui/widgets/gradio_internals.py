"""Interfaces of Gradio that it does not document; the rest of the app uses documented ones only.

tests/ui/test_gradio_internals.py runs each of them.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar
from urllib.parse import quote

import gradio as gr
from gradio.context import LocalContext

from sftm_app.ui.guard import VISITOR

# The version with which the interfaces below were checked.
CHECKED_WITH = "6.31.0"


# Options of `gr.Blocks.launch`: without them Gradio asks for its own page, and gives up if that takes 3 s, as it may on
# a busy machine.
NO_TRIAL = {"_frontend": False}


def event_data(event: gr.EventData) -> object:
    """What the browser sent with an event; unchecked."""
    return event._data


def visitor_of_event() -> str:
    """The visitor whose event is handled now; "" outside of events, and where visitors are not told apart."""
    request = getattr(LocalContext.request.get(None), "request", None)
    return str((getattr(request, "scope", None) or {}).get(VISITOR, ""))


def file_url(path: Path) -> str:
    """Address of a file given to gr.set_static_paths, relative to the page (so it also works behind a proxy)."""
    return f"gradio_api/file={quote(path.as_posix(), safe='/:')}"


def report_progress_on(component: gr.components.Component, page: gr.Blocks) -> None:
    """Let all events of a page that hide their progress report it on one small component.

    By default an event reports on all of its outputs, even if it hides its progress. Whenever any event starts or ends,
    the page then copies all of these components with everything inside them. A step of a slider takes four times as
    long.
    """
    for event in page.fns.values():
        if event.show_progress == "hidden":
            event.show_progress_on = [component]


class Widget(gr.HTML):  # type: ignore[misc]
    """An HTML component with a script of its own.

    template: static HTML. Gradio renders a template again whenever a prop that it names changes, which would throw away
    what the script drew. scripts: files next to this one; together they are the body of one function(element, trigger,
    props, watch), which runs once for each component.
    """

    template: ClassVar[str] = "${value}"
    scripts: ClassVar[tuple[str, ...]] = ()

    def __init__(self, value: Any = None, **kwargs: Any) -> None:
        folder = Path(__file__).parent
        super().__init__(
            value=value,
            html_template=self.template,
            js_on_load="\n".join((folder / name).read_text(encoding="utf-8") for name in self.scripts),
            apply_default_css=False,
            **{"padding": False, **kwargs},
        )

    def get_block_name(self) -> str:
        """The front end knows the widgets as its own HTML component."""
        return "html"
