"""What comes from the browser is checked; what goes there is text, never markup."""

from __future__ import annotations

import base64
import math
from typing import Any

import gradio as gr
import numpy as np
import plotly.graph_objects as go
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sftm_app.errors import SFTMError
from sftm_app.resources import asset_path
from sftm_app.ui import theme
from sftm_app.ui.widgets import DrawPad, PlotlyView, decode_drawing, encode_drawing, html, parse_selection
from sftm_app.ui.widgets.header import header_bar

ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=8,
)
HOSTILE = '<img src=x onerror="alert(1)">\u202e\x07'


# ---- drawings


@given(st.integers(1, 40), st.integers(1, 40))
def test_a_drawing_comes_back_as_it_was_sent(height: int, width: int) -> None:
    image = np.random.default_rng(height * 41 + width).integers(0, 256, (height, width), dtype=np.uint8)
    back = decode_drawing(encode_drawing(image))
    assert back is not None and back.dtype == np.uint8 and np.array_equal(back, image)
    back[0, 0] = 0  # writable


def test_the_largest_drawing_is_accepted() -> None:
    image = np.full((256, 256), 7, dtype=np.uint8)
    back = decode_drawing(encode_drawing(image))
    assert back is not None and np.array_equal(back, image)


@pytest.mark.parametrize(
    "value",
    [
        None,
        "",
        3,
        b"gray8:1x1:AA==",
        ["gray8:1x1:AA=="],
        "gray8:1x1:AAA=",
        "gray8:2x2:AA==",
        "gray8:0x1:",
        "gray8:1x1:",
        "gray8:1x1:AA==\n",
        "gray8:1x1:A A==",
        "gray8:١x1:AA==",
        "gray8:-1x1:AA==",
        "gray8:257x1:" + base64.b64encode(bytes(257)).decode(),
        "gray8:9999x9999:AA==",
        "gray8:99999999x1:AA==",
        "data:image/png;base64,iVBORw0KGgo=",
        "gray8:1x1:" + "A" * 10_000_000,
    ],
)
def test_malformed_drawings_are_no_drawing(value: Any) -> None:
    assert decode_drawing(value) is None


@given(ANYTHING)
def test_decode_drawing_never_raises(value: Any) -> None:
    decode_drawing(value)


@pytest.mark.parametrize("shape", [(0, 3), (3,), (257, 3), (2, 2, 3)])
def test_encode_drawing_refuses_other_shapes(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="expected uint8"):
        encode_drawing(np.zeros(shape, dtype=np.uint8))


def test_the_pad_passes_on_only_what_is_a_drawing() -> None:
    pad = DrawPad()
    text = encode_drawing(np.ones((2, 3), dtype=np.uint8))
    assert pad.preprocess(text) == text
    assert pad.preprocess("<script>") is None and pad.preprocess("") is None
    assert pad.postprocess(np.ones((2, 3), dtype=np.uint8)) == text and pad.postprocess(None) is None


# ---- selections


def test_a_click_on_a_cell() -> None:
    selection = parse_selection(gr.EventData(None, {"x": 3, "y": 2.0, "customdata": "layer.weight", "curve": 0}))
    assert selection is not None
    assert (selection.x, selection.y, selection.customdata) == (3.0, 2.0, "layer.weight")
    assert selection.cell == (2, 3)


def test_a_click_on_a_bar_has_no_cell() -> None:
    selection = parse_selection({"x": "digits", "y": 0.5, "customdata": ["a", 1, None], "curve": 2})
    assert selection is not None and selection.cell is None and selection.customdata == ("a", 1.0, None)


def test_a_click_on_a_spectrum_names_task_and_feature() -> None:
    selection = parse_selection({"x": 9, "y": 1.5, "customdata": [2, 8], "curve": 4})
    assert selection is not None and selection.customdata == (2.0, 8.0)


@pytest.mark.parametrize(
    "data",
    [
        None,
        [],
        "x",
        {},
        {"x": None, "y": None},
        {"x": math.nan, "y": 1},
        {"x": math.inf, "y": 1},
        {"x": True, "y": 1},
        {"x": 10**400, "y": 1},
        {"x": {"a": 1}, "y": 1},
        {"x": "a" * 2000, "y": 1},
        {"x": 1, "y": 1, "customdata": list(range(17))},
        {"x": 1, "y": 1, "customdata": [[1]]},
        {"x": 1, "y": 1, "customdata": {"a": 1}},
        {"x": 1, "y": 1, "curve": -1},
        {"x": 1, "y": 1, "curve": 1.5},
        {"x": 1, "y": 1, "curve": True},
    ],
)
def test_malformed_clicks_are_no_selection(data: Any) -> None:
    assert parse_selection(data) is None
    assert parse_selection(gr.EventData(None, data)) is None


@given(ANYTHING, ANYTHING, ANYTHING, ANYTHING)
def test_parse_selection_never_raises(x: Any, y: Any, custom: Any, curve: Any) -> None:
    selection = parse_selection({"x": x, "y": y, "customdata": custom, "curve": curve})
    if selection is not None:
        _ = selection.cell


def test_a_cell_is_never_negative() -> None:
    selection = parse_selection({"x": -3, "y": 1})
    assert selection is not None and selection.cell is None


# ---- figures on their way out


def test_plotly_view_takes_figures_dicts_json_and_nothing() -> None:
    view = PlotlyView(label="x")
    assert view.postprocess(None) is None and view.postprocess("") is None
    assert '"data"' in str(view.postprocess(go.Figure()))
    assert view.postprocess({"data": []}) == '{"data": []}'
    assert "<" not in str(view.postprocess({"data": [{"name": "<script>alert(1)</script>"}]}))
    taken: object = view.preprocess("whatever")
    assert taken is None, "nothing from the browser is taken for a figure"


def test_plotly_view_loads_plotly_from_this_machine_only() -> None:
    head = str(PlotlyView().head)
    assert "plotly.min.js" in head and "http" not in head


def test_every_button_of_a_plot_is_wired() -> None:
    view = PlotlyView()
    for kind in ("png", "svg", "csv"):
        assert f"sf-plot-{kind}" in view.html_template
        assert f"querySelector('.sf-plot-{kind}').addEventListener" in str(view.js_on_load)


def test_widget_templates_name_no_prop() -> None:
    for widget in (PlotlyView(), DrawPad()):
        assert not set("`$") & set(widget.html_template) and "{{" not in widget.html_template


# ---- blocks of HTML


def hostile_blocks() -> dict[str, str]:
    return {
        "escape": html.Html.escape(HOSTILE),
        "chip": html.chip(HOSTILE, '#fff"><script>', title=HOSTILE),
        "card": html.card(HOSTILE, HOSTILE, subtitle=HOSTILE, colour="red;}", badge=HOSTILE),
        "facts": html.facts([(HOSTILE, HOSTILE)]),
        "notice": html.notice("error", HOSTILE, HOSTILE, [HOSTILE]),
        "notice code": html.notice("error", "x", f"`{HOSTILE}`", [f"`{HOSTILE}`"]),
        "notice kind": html.notice(HOSTILE, "x"),  # type: ignore[arg-type]
        "empty_state": html.empty_state(HOSTILE, HOSTILE),
        "stat": html.stat(HOSTILE, HOSTILE, HOSTILE),
        "progress": html.progress(0.5, HOSTILE, HOSTILE),
        "table": html.table([HOSTILE], [[HOSTILE]], caption=HOSTILE),
        "strong": html.strong(HOSTILE),
        "code": html.code(HOSTILE),
        "heading": html.heading(HOSTILE, HOSTILE),
        "stack": html.stack(HOSTILE, html.chips([html.chip(HOSTILE)])),
        "header_bar": header_bar(HOSTILE, [HOSTILE], HOSTILE, HOSTILE),
    }


@pytest.mark.parametrize("name", hostile_blocks())
def test_blocks_show_names_as_text(name: str) -> None:
    block = hostile_blocks()[name]
    assert "<img" not in block and "<script" not in block and 'onerror="' not in block
    assert "\u202e" not in block and "\x07" not in block and "red;}" not in block


def test_blocks_nest_without_escaping_twice() -> None:
    block = html.card("a & b", html.facts([("x", html.chip("1 < 2"))]))
    assert "a &amp; b" in block and "1 &lt; 2" in block and "&amp;lt;" not in block


@pytest.mark.parametrize(("fraction", "width"), [(0.5, "50.0%"), (-1, "0.0%"), (7, "100.0%")])
def test_progress_stays_within_its_track(fraction: float, width: str) -> None:
    assert f"width:{width}" in html.progress(fraction, "x")


def test_progress_of_unknown_length_claims_no_value() -> None:
    assert "aria-valuenow" not in html.progress(None) and "aria-valuenow" not in html.progress(math.nan)


# ---- look


def test_the_look_asks_for_nothing_from_elsewhere() -> None:
    look = theme.launch_look()
    assert not look["theme"]._stylesheets and not look["theme"]._font_css  # type: ignore[attr-defined]
    assert "@import" not in str(look["head"]) and "url(" not in str(look["head"]) and "//" not in str(look["head"])


def test_a_missing_asset_is_a_sentence() -> None:
    assert asset_path("app.css").is_file()
    with pytest.raises(SFTMError, match=r"assets/nope\.css is missing"):
        asset_path("nope.css")


def test_what_stands_between_backticks_in_a_notice_is_code() -> None:
    shown = html.notice("warning", "No", "Set `rank` lower.", ["`a` or b", "it's ` alone"])
    assert 'Set <code class="sf-code">rank</code> lower.' in shown
    assert "<li>" not in html.notice("warning", "No", items=["One alone."])
    assert '<li><code class="sf-code">a</code> or b</li>' in shown and "` alone" in shown
