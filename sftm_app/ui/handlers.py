"""Every handler goes through here, so that an error reaches the person as a sentence and never as a trace."""

from __future__ import annotations

import functools
import inspect
import logging
from collections.abc import Callable, Iterator
from typing import Any, NoReturn

import gradio as gr

from sftm_app.errors import Cancelled, SFTMError
from sftm_app.ui.widgets.html import Safe, join, sentence

# How long a message stays: long enough to be read, not much longer than what it is about.
SHOWN_S = 10.0

_log = logging.getLogger(__name__)


def sentences(handler: Callable[..., Any]) -> Callable[..., Any]:
    """Turn an SFTMError of a handler (plain or generator) into a message on the page; log anything else in full."""
    if inspect.isgeneratorfunction(handler):

        @functools.wraps(handler)
        def stream(*arguments: Any) -> Iterator[Any]:
            try:
                yield from handler(*arguments)
            except Exception as error:
                _say(error)

        return stream

    @functools.wraps(handler)
    def call(*arguments: Any) -> Any:
        try:
            return handler(*arguments)
        except Exception as error:
            _say(error)

    return call


def say_info(text: str) -> None:
    """A message on the page; the names in it are text, for Gradio would take them as HTML."""
    gr.Info(_lines(text), duration=SHOWN_S)


def say_warning(text: str, title: str = "Warning") -> None:
    """The same as a warning."""
    gr.Warning(_lines(text), duration=SHOWN_S, title=title)


def _lines(text: str) -> Safe:
    return join(map(sentence, text.split("\n")), "<br>")


def _say(error: Exception) -> NoReturn:
    if isinstance(error, gr.Error):
        raise error
    if isinstance(error, SFTMError):
        title = "Stopped" if isinstance(error, Cancelled) else "That did not work"
        raise gr.Error(_lines(str(error)), duration=SHOWN_S, title=title, print_exception=False) from None
    _log.exception("unexpected error in a handler")
    raise gr.Error(
        "Something unexpected happened; nothing was written. The terminal that runs the app has the details.",
        duration=SHOWN_S,
        title="Unexpected error",
        print_exception=False,
    ) from None
