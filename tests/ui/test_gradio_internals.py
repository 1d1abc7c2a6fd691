"""The interfaces of Gradio that it does not document. If one fails, check `gradio_internals` with that version."""

from __future__ import annotations

from pathlib import Path

import gradio as gr
import pytest
from fastapi.testclient import TestClient
from gradio.routes import App

from sftm_app.ui.widgets import AddressBar, AddressPart, DrawPad, LinkedHtml, PlotlyView, Sliders
from sftm_app.ui.widgets.gradio_internals import CHECKED_WITH, NO_TRIAL, event_data, file_url, report_progress_on

SAID = f"checked with Gradio {CHECKED_WITH}, this is {gr.__version__}"


def test_the_version_is_the_major_one_that_was_checked() -> None:
    assert gr.__version__.split(".")[0] == CHECKED_WITH.split(".")[0], SAID


def test_the_payload_of_an_event() -> None:
    assert event_data(gr.EventData(None, {"x": 3})) == {"x": 3}, SAID


def test_a_static_file_is_served_under_its_address(tmp_path: Path) -> None:
    script = tmp_path / "a b.js"
    script.write_text("1")
    gr.set_static_paths(script)
    with gr.Blocks() as page:
        gr.HTML()
    client = TestClient(App.create_app(page))
    assert client.get(f"/{file_url(script)}").text == "1", SAID


@pytest.mark.parametrize("widget", [AddressBar, AddressPart, DrawPad, LinkedHtml, PlotlyView, Sliders])
def test_the_front_end_shows_a_widget_as_html_and_an_update_makes_it_again(widget: type[gr.HTML]) -> None:
    made = widget(elem_id="x")
    assert made.get_block_name() == "html", SAID
    # Gradio makes a component again from its arguments when a handler updates it.
    again = widget(**made.constructor_args)
    assert again.js_on_load == made.js_on_load and again.html_template == made.html_template, SAID


def test_hidden_progress_is_reported_on_one_component() -> None:
    with gr.Blocks() as page:
        small = gr.HTML()
        with gr.Column() as large:
            box = gr.Textbox()
        box.change(lambda: None, None, [large], show_progress="hidden")
        box.submit(lambda: None, None, [large])
    report_progress_on(small, page)
    hidden, shown = page.get_config_file()["dependencies"]
    assert hidden["show_progress_on"] == [small._id] and not shown["show_progress_on"], SAID


def test_a_page_that_takes_long_is_launched_all_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gr.networking, "url_ok", lambda url: False)
    with gr.Blocks() as page:
        gr.HTML()
    try:
        with pytest.raises(ValueError, match="localhost is not accessible"):
            page.launch(prevent_thread_lock=True, quiet=True, share=False, ssr_mode=False)
        page.close()
        page.launch(prevent_thread_lock=True, quiet=True, share=False, ssr_mode=False, **NO_TRIAL)
    finally:
        page.close()
