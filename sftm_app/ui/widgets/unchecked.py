"""Controls whose choices and limits change while the page is open.

Gradio refuses a value that is not among a control's choices or within its limits now. But an event that was sent before
they changed carries a value from before, and Gradio's refusal reaches the terminal as a traceback. The handlers check
what they are given anyway, because it comes from the browser.
"""

from __future__ import annotations

from typing import Any

import gradio as gr


class _Unchecked:
    """Hands on any value. The front end knows the component by the name of Gradio's own."""

    def preprocess(self, payload: Any) -> Any:
        """The value as it comes."""
        return payload

    def get_block_name(self) -> str:
        """The name of Gradio's class in lower case."""
        return type(self).__name__.removeprefix("Unchecked").lower()


class UncheckedCheckboxGroup(_Unchecked, gr.CheckboxGroup):  # type: ignore[misc]
    """A checkbox group that hands on any list."""


class UncheckedDropdown(_Unchecked, gr.Dropdown):  # type: ignore[misc]
    """A dropdown that hands on any value."""


class UncheckedRadio(_Unchecked, gr.Radio):  # type: ignore[misc]
    """A radio group that hands on any value."""


class UncheckedSlider(_Unchecked, gr.Slider):  # type: ignore[misc]
    """A slider that hands on any value."""
