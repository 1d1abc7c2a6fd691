"""An event may carry a choice from before the choices changed. It reaches its handler, which checks it anyway."""

from __future__ import annotations

from typing import Any

import gradio as gr

from sftm_app.ui.app import TABS, Page
from sftm_app.ui.studio import Studio

# What an event carries that was sent while other models were loaded, or that another program made up.
ODD: tuple[Any, ...] = ("of the models before", "<b>", "", None)


def test_no_list_of_choices_refuses_a_value_that_is_not_among_them(studio: Studio) -> None:
    """Gradio would answer with a raw "Value is not in the list of choices", and a traceback in the terminal."""
    page = Page(studio, TABS)
    lists = [one for one in page.blocks.blocks.values() if isinstance(one, gr.Dropdown | gr.Radio | gr.CheckboxGroup)]
    assert len(lists) > 10
    for component in lists:
        several = isinstance(component, gr.CheckboxGroup) or getattr(component, "multiselect", False)
        for value in ODD:
            component.preprocess([value] if several else value)


def test_no_slider_whose_ends_move_refuses_a_value_beyond_them(studio: Studio) -> None:
    page = Page(studio, TABS)
    forms = page.inspect.panels.what_if.form, page.merge.form.params
    moved = {one for form in forms for one in form.inputs if isinstance(one, gr.Slider)}
    assert len(moved) > 10
    for slider in moved:
        slider.preprocess(1e6)


def test_no_table_asks_for_dropped_files(studio: Studio) -> None:
    """An empty table that can be edited is a drop zone of Gradio's: "Drop CSV or TSV files here"."""
    page = Page(studio, TABS)
    assert not [one for one in page.blocks.blocks.values() if isinstance(one, gr.Dataframe) and one.interactive]
