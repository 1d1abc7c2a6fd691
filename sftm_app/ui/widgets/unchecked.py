"""Controls whose choices and limits change while the page is open.

Gradio refuses a value that is not among a control's choices or within its limits now. But an event that was sent before
they changed carries a value from before, and Gradio's refusal reaches the terminal as a traceback. The handlers check
what they are given anyway, because it comes from the browser.
"""

from __future__ import annotations

from typing import Any

import gradio as gr

# No common base: the .pyi that Gradio writes next to this file would lack it.


class UncheckedCheckboxGroup(gr.CheckboxGroup):  # type: ignore[misc]
    """A checkbox group that hands on any value."""

    def preprocess(self, payload: Any) -> Any:
        """The value as it comes."""
        return payload

    def get_block_name(self) -> str:
        """The front end knows it as Gradio's own."""
        return "checkboxgroup"


class UncheckedDropdown(gr.Dropdown):  # type: ignore[misc]
    """A dropdown that hands on any value."""

    def preprocess(self, payload: Any) -> Any:
        """The value as it comes."""
        return payload

    def get_block_name(self) -> str:
        """The front end knows it as Gradio's own."""
        return "dropdown"


class UncheckedRadio(gr.Radio):  # type: ignore[misc]
    """A radio group that hands on any value."""

    def preprocess(self, payload: Any) -> Any:
        """The value as it comes."""
        return payload

    def get_block_name(self) -> str:
        """The front end knows it as Gradio's own."""
        return "radio"


class UncheckedSlider(gr.Slider):  # type: ignore[misc]
    """A slider that hands on any value."""

    def preprocess(self, payload: Any) -> Any:
        """The value as it comes."""
        return payload

    def get_block_name(self) -> str:
        """The front end knows it as Gradio's own."""
        return "slider"
