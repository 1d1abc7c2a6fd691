"""How events reach handlers. Values come and go by component, and an error reaches the person as a sentence."""

from __future__ import annotations

import functools
import inspect
import logging
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NoReturn

import gradio as gr

from sftm_app.errors import Cancelled, SFTMError
from sftm_app.ui.widgets import Sliders
from sftm_app.ui.widgets.html import Html, join, sentence

# A handler is given the values of its inputs by component, and returns the changes of its outputs by component: new
# values, or gr.update(...). What it leaves out stays as it is.
Values = Mapping[Any, Any]
Updates = dict[Any, Any]

# Options of events whose outputs show no progress bar of Gradio's.
QUIET: dict[str, Any] = {"show_progress": "hidden"}
# How long a message stays.
SHOWN_S = 10.0

_log = logging.getLogger(__name__)


def handle(handler: Callable[..., Any]) -> Callable[..., Any]:
    """Turn an SFTMError of a handler (a function or a generator) into a message on the page; log anything else."""
    if inspect.isgeneratorfunction(handler):

        @functools.wraps(handler)
        def stream(*arguments: Any) -> Iterator[Any]:
            updates: Any = None
            try:
                for updates in handler(*arguments):
                    yield _some(updates)
                if updates is None:  # for Gradio empties the outputs of a generator that yields nothing
                    yield gr.skip()
            except Exception as error:
                _report(error)

        return stream

    @functools.wraps(handler)
    def call(*arguments: Any) -> Any:
        try:
            return _some(handler(*arguments))
        except Exception as error:
            _report(error)

    return call


def when_set(component: Any) -> Any:
    """The event that fires once when a person has set a control.

    That of a text box also fires for changes by the server, because its `input` event does not fire for pasted text.
    """
    if isinstance(component, gr.Slider | Sliders):
        return component.release
    return component.change if isinstance(component, gr.Textbox) else component.input


def over(updates: Updates, values: Updates) -> Updates:
    """Updates with other values of some components, which stay as visible and as labelled as the updates say."""
    shown = {
        component: {**updates[component], "value": value}
        if isinstance(updates.get(component), dict) and not isinstance(value, dict)
        else value
        for component, value in values.items()
    }
    return updates | shown


def show_info(text: str) -> None:
    """A message on the page. Names in it are escaped, because Gradio would render them as HTML."""
    gr.Info(_lines(text), duration=SHOWN_S)


def show_warning(text: str, title: str = "Warning") -> None:
    """The same as a warning."""
    gr.Warning(_lines(text), duration=SHOWN_S, title=title)


def _some(updates: Any) -> Any:
    """Gradio does not take an empty dict for "no changes"."""
    return gr.skip() if isinstance(updates, dict) and not updates else updates


def _lines(text: str) -> Html:
    return join(map(sentence, text.split("\n")), "<br>")


def _report(error: Exception) -> NoReturn:
    if isinstance(error, gr.Error):
        raise error
    if isinstance(error, SFTMError):
        title = "Stopped" if isinstance(error, Cancelled) else "That did not work"
        raise gr.Error(_lines(str(error)), duration=SHOWN_S, title=title, print_exception=False) from None
    _log.exception("unexpected error in a handler")
    raise gr.Error(
        "An unexpected error occurred. Nothing was written. See the terminal that runs the app for details.",
        duration=SHOWN_S,
        title="Unexpected error",
        print_exception=False,
    ) from None
