"""The plot widget by itself, in a real Chromium: clicks, keyboard, exports, themes."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gradio as gr
import numpy as np
import pytest
from playwright.sync_api import Browser, Page, expect

from sftm_app.plots.layer_map import layer_map
from sftm_app.plots.overlap import overlap_heatmap
from sftm_app.plots.spectra import SpectrumTrace, spectra
from sftm_app.ui.theme import launch_look
from sftm_app.ui.widgets import PlotlyView, parse_selection

pytestmark = pytest.mark.browser

TASKS = [
    SpectrumTrace("=letters", "#0072b2", [4.0, 2.0, 1.9, 0.0], 3.0, {0.9: 2}, 1.7, [(1, 3)]),
    SpectrumTrace("<b>digits</b>", "#d55e00", [3.0, 1.0, 0.5], 2.2, {0.9: 1}, 1.3),
]
LARGE = np.zeros((600, 600))
LARGE[101, 203] = -0.5


def said(event: gr.EventData) -> str:
    selection = parse_selection(event)
    return "nothing" if selection is None else f"x={selection.x} y={selection.y} data={selection.customdata}"


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    with gr.Blocks() as demo:
        answer = gr.Textbox(elem_id="said")
        for view in (
            PlotlyView(spectra(TASKS), label="Spectra", elem_id="spectra", filename="spectra"),
            PlotlyView(overlap_heatmap(LARGE, "a", "b", "both", 0.01, height=1100), label="A", elem_id="large"),
            PlotlyView(
                layer_map([[1.0, 1e6]], ["l0"], ["q", "k"], "condition", None, [["t.q", "t.k"]], log=True),
                label="Map",
                elem_id="map",
            ),
        ):
            view.select(said, None, answer, queue=False, show_progress="hidden")
    _, address, _ = demo.launch(prevent_thread_lock=True, quiet=True, server_name="127.0.0.1", **launch_look())
    yield address
    demo.close()


@pytest.fixture(scope="module")
def page(chromium: Browser, url: str) -> Iterator[Page]:
    """One page for all tests, because opening it takes seconds. The keyboard comes first: it starts from nothing."""
    page = chromium.new_page(viewport={"width": 1000, "height": 900})
    page.set_default_timeout(60_000)
    expect.set_options(timeout=60_000)
    errors: list[str] = []
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.goto(url)
    for name in ("spectra", "large", "map"):
        expect(page.locator(f"#{name} .main-svg").first).to_be_attached()
    yield page
    page.close()
    assert errors == []


def answer(page: Page) -> Any:
    return expect(page.locator("#said textarea"))


def click_point(page: Page, plot: str, curve: int, x: float, y: float) -> None:
    place = page.evaluate(
        """([plot, curve, x, y]) => {
            const drawn = document.querySelector(`#${plot} .js-plotly-plot`);
            drawn.scrollIntoView({block: 'center'});
            const trace = drawn._fullData[curve], box = drawn.getBoundingClientRect();
            const axis = (id, letter) => drawn._fullLayout[letter + 'axis' + (id || letter).slice(1)];
            const across = axis(trace.xaxis, 'x'), down = axis(trace.yaxis, 'y');
            return {x: box.left + across._offset + across.d2p(x), y: box.top + down._offset + down.d2p(y)};
        }""",
        [plot, curve, x, y],
    )
    page.mouse.move(place["x"] + 1, place["y"])
    page.mouse.move(place["x"], place["y"])
    page.mouse.down()
    page.mouse.up()


def curves(page: Page) -> list[int]:
    """The lines of the spectra plot: gains and energy of each task in turn."""
    found: list[int] = page.evaluate(
        """() => document.querySelector('#spectra .js-plotly-plot')._fullData
            .filter((trace) => !(trace.meta && trace.meta.aid)).map((trace) => trace.index)"""
    )
    return found


RINGS = """() => document.querySelector('#spectra .js-plotly-plot')._fullData
    .filter((trace) => trace.meta && trace.meta.ring).map((trace) => [trace.x[0], trace.y[0]])"""


def test_lines_and_cells_are_walked_with_the_keyboard_and_read_out(page: Page) -> None:
    spoken = page.locator("#spectra [aria-live]")
    page.locator("#spectra .sf-plot-stage").focus()
    for key, text in [
        ("ArrowRight", "=letters, feature (by gain) 1, gain 4"),
        ("ArrowRight", "=letters, feature (by gain) 2, gain 2, nearly equal gains: features 2 to 3"),
        ("ArrowDown", "<b>digits</b>, feature (by gain) 2, gain 1"),
        ("ArrowLeft", "<b>digits</b>, feature (by gain) 1, gain 3"),
        ("ArrowLeft", "<b>digits</b>, feature (by gain) 1, gain 3"),
    ]:
        page.keyboard.press(key)
        expect(spoken).to_have_text(text)
    page.keyboard.press("Enter")
    answer(page).to_have_value("x=1.0 y=3.0 data=(1.0, 0.0)")
    page.locator("#map .sf-plot-stage").focus()
    page.keyboard.press("ArrowRight")
    page.keyboard.press("ArrowRight")
    expect(page.locator("#map [aria-live]")).to_have_text("l0 · k condition 1e+06 t.k")
    page.keyboard.press(" ")
    answer(page).to_have_value("x=1.0 y=0.0 data=t.k")


def test_a_click_on_either_panel_names_task_and_feature_and_moves_the_ring(page: Page) -> None:
    click_point(page, "spectra", curves(page)[0], 2, 2.0)
    answer(page).to_have_value("x=2.0 y=2.0 data=(0.0, 1.0)")
    page.wait_for_function(f"() => ({RINGS})()[0][0] === 2")
    click_point(page, "spectra", curves(page)[3], 1, 9 / 10.25)
    answer(page).to_have_value(re.compile(r"^x=1\.0 .* data=\(1\.0, 0\.0\)$"))
    page.wait_for_function(f"() => ({RINGS})()[0][1] === 3")
    page.evaluate("() => document.body.classList.toggle('dark')")
    page.wait_for_timeout(500)
    assert page.evaluate(RINGS)[0] == [1, 3], "the other theme keeps it"


def test_a_cell_of_a_reduced_heatmap_names_the_features_it_shows(page: Page) -> None:
    click_point(page, "large", 0, 203, 101)
    answer(page).to_have_value("x=204.0 y=102.0 data=None")


def saved(page: Page, plot: str, kind: str, folder: Path) -> Path:
    page.locator(f"#{plot} .sf-plot-stage").hover()
    with page.expect_download() as download:
        page.locator(f"#{plot} .sf-plot-{kind}").click()
    path = folder / download.value.suggested_filename
    download.value.save_as(path)
    return path


def test_a_plot_is_saved_as_picture_drawing_and_numbers(page: Page, tmp_path: Path) -> None:
    page.evaluate("() => document.body.classList.add('dark')")
    page.wait_for_timeout(500)
    png, svg, csv = (saved(page, "spectra", kind, tmp_path) for kind in ("png", "svg", "csv"))
    assert png.name == "spectra.png" and png.read_bytes().startswith(b"\x89PNG")
    drawing = svg.read_text(encoding="utf-8")
    assert drawing.startswith("<svg") and "var(--" not in drawing and "<b>digits" not in drawing
    assert "rgb(23, 28, 36)" in drawing, "the dark card lies behind it"
    lines = csv.read_text(encoding="utf-8-sig").splitlines()
    assert lines[:3] == [
        "series,x axis,y axis,x,y,label",
        "'=letters,feature (by gain),gain,1,4,",
        "'=letters,feature (by gain),gain,2,2,nearly equal gains: features 2 to 3",
    ]
    assert len(lines) == 1 + 2 * (4 + 3) and "<b>digits</b>,feature (by gain),cumulative energy,3,1," in lines
    assert "102,204,-0.5," in saved(page, "large", "csv", tmp_path).read_text(encoding="utf-8-sig").splitlines()
    assert saved(page, "map", "csv", tmp_path).read_text(encoding="utf-8-sig").splitlines() == [
        "row,column,condition,name",
        "l0,q,1,t.q",
        "l0,k,1000000,t.k",
    ]
