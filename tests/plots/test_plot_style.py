"""Names become plain text, and the colours of tasks can be seen on both pages."""

from __future__ import annotations

import itertools
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sftm_app import plots
from sftm_app.methods import METHODS
from sftm_app.plots.style import (
    METHOD_COLOURS,
    MODEL_COLOURS,
    PATTERNS,
    TASK_COLOURS,
    make_figure,
    make_message,
    method_colour,
    method_pattern,
    plot_text,
    rgba,
    task_colour,
    ticks,
)
from sftm_app.resources import asset_path

HOSTILE = '<b>x</b><a href="javascript:alert(1)">$\\alpha$</a>%{x}\u202e\x00'


def test_plot_text_leaves_no_markup_maths_template_or_hidden_mark() -> None:
    text = plot_text(HOSTILE)
    assert not re.search(r"[<>$\x00\u202e]|%\{", text)
    assert text.startswith("&lt;b&gt;x&lt;/b&gt;")


def test_plot_text_keeps_ordinary_names_and_cuts_long_ones_in_the_middle() -> None:
    assert plot_text("vit.encoder.layer.3, café") == "vit.encoder.layer.3, café"
    cut = plot_text("a" * 50 + "b" * 50, limit=21)
    assert len(cut) == 21 and cut == "a" * 10 + "…" + "b" * 10


def luminance(colour: str) -> float:
    parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(one: str, other: str) -> float:
    high, low = sorted((luminance(one), luminance(other)), reverse=True)
    return (high + 0.05) / (low + 0.05)


@pytest.mark.parametrize("colour", TASK_COLOURS)
def test_task_colours_stand_out_on_light_and_dark_cards(colour: str) -> None:
    assert contrast(colour, "#ffffff") >= 3 and contrast(colour, "#171c24") >= 3


# Machado, Oliveira and Fernandes (2009), severity 1: what red-blind and green-blind eyes see, in linear RGB.
EYES = {
    "normal": [[1, 0, 0], [0, 1, 0], [0, 0, 1]],
    "red-blind": [[0.152, 1.053, -0.205], [0.115, 0.786, 0.099], [-0.004, -0.048, 1.052]],
    "green-blind": [[0.367, 0.861, -0.228], [0.280, 0.673, 0.047], [-0.012, 0.043, 0.969]],
}


def lab(colour: str, eye: str) -> np.ndarray[Any, Any]:
    srgb = np.array([int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)])
    linear = np.where(srgb <= 0.04045, srgb / 12.92, ((srgb + 0.055) / 1.055) ** 2.4)
    seen = np.clip(np.array(EYES[eye]) @ linear, 0, 1)
    xyz = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]]) @ seen
    f = np.cbrt(xyz / np.array([0.9505, 1.0, 1.089]))
    return np.array([116 * f[1] - 16, 500 * (f[0] - f[1]), 200 * (f[1] - f[2])])


@pytest.mark.parametrize(("eye", "apart"), [("normal", 20), ("red-blind", 13), ("green-blind", 13)])
def test_any_two_task_colours_can_be_told_apart(eye: str, apart: float) -> None:
    seen = [lab(colour, eye) for colour in TASK_COLOURS]
    nearest = min(float(np.linalg.norm(a - b)) for a, b in itertools.combinations(seen, 2))
    assert nearest >= apart


def test_twelve_different_task_colours_then_again_from_the_first() -> None:
    assert len(set(TASK_COLOURS)) == 12
    assert task_colour(12) == TASK_COLOURS[0]


def test_methods_have_colours_by_their_place_in_the_table(monkeypatch: pytest.MonkeyPatch) -> None:
    kinds = [*MODEL_COLOURS, *METHODS]
    assert len({(method_colour(kind), method_pattern(kind)) for kind in kinds}) == len(kinds)
    monkeypatch.setitem(METHODS, "new", next(iter(METHODS.values())))
    place = len(METHODS) - 1
    assert method_colour("new") == METHOD_COLOURS[place % len(METHOD_COLOURS)]
    assert method_pattern("new") == PATTERNS[place // len(METHOD_COLOURS)]
    (first, *_) = METHODS
    assert method_pattern(first) == method_pattern("base") == ""


def test_every_css_variable_that_a_figure_names_is_defined_in_the_style_sheet() -> None:
    css = asset_path("app.css").read_text(encoding="utf-8")
    source = "".join(path.read_text(encoding="utf-8") for path in Path(plots.__file__).parent.glob("*.py"))
    used = set(re.findall(r"var\((--[a-z-]+)\)", source)) | {
        f"--plot-{scale}-{step}" for scale in ("seq", "div") for step in range(5)
    }
    used |= {colour[4:-1] for colour in METHOD_COLOURS}
    for scope in (r":root \{(.*?)\}", r"\.dark \{(.*?)\}"):
        found = re.search(scope, css, re.DOTALL)
        assert found is not None
        missing = {name for name in used - {"--plot-font"} if f"{name}:" not in found[1]}
        assert not missing, f"{scope}: {missing}"


def theme_colour(theme: str, name: str) -> str:
    css = asset_path("app.css").read_text(encoding="utf-8")
    scope = re.search({"light": r":root \{(.*?)\}", "dark": r"\.dark \{(.*?)\}"}[theme], css, re.DOTALL)
    assert scope is not None
    found = re.search(rf"--plot-{name}: (#[0-9a-f]{{6}})", scope[1])
    assert found is not None, name
    return found[1]


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_diverging_colours_leave_the_page_steadily_and_their_ends_are_told_apart_by_all_eyes(theme: str) -> None:
    page = theme_colour(theme, "surface")
    apart = {
        eye: [float(np.linalg.norm(lab(theme_colour(theme, f"div-{step}"), eye) - lab(page, eye))) for step in range(5)]
        for eye in EYES
    }
    for eye, (far_below, below, zero, above, far_above) in apart.items():
        assert zero < 5 < below < far_below and 5 < above < far_above, eye
        for one, other in ((0, 4), (1, 3)):
            pair = [lab(theme_colour(theme, f"div-{step}"), eye) for step in (one, other)]
            assert float(np.linalg.norm(pair[0] - pair[1])) > 40, (eye, one)


def test_a_figure_is_transparent_keeps_zoom_and_names_the_plot() -> None:
    for figure in (
        make_figure("some-plot", [], {}, "A title", meta={"extra": 3}),
        make_message("some-plot", "Nothing here.", "A title", meta={"extra": 3}),
    ):
        layout = json.loads(figure.to_json())["layout"]
        assert layout["uirevision"] == "some-plot" and layout["meta"] == {"name": "some-plot", "extra": 3}
        assert layout["template"]["layout"]["paper_bgcolor"] == "rgba(0,0,0,0)"
        assert layout["template"]["layout"]["font"]["family"] == "var(--plot-font)"
        assert layout["title"]["text"] == "A title"


def test_the_layout_of_a_plot_wins_over_the_common_look() -> None:
    layout = json.loads(make_figure("p", [], {"margin": {"t": 99}}, height=200).to_json())["layout"]
    assert layout["margin"] == {"t": 99} and layout["height"] == 200


def test_figures_do_not_share_what_they_hold() -> None:
    data, layout = [{"type": "bar", "x": [0], "y": [1.0]}], {"xaxis": {"visible": True}}
    first, second = make_figure("p", data, layout), make_figure("p", data, layout)
    first.update_layout(template_layout_font_size=99, xaxis_visible=False)
    first.data[0].y = [5.0]
    sent = json.loads(second.to_json())
    assert sent["layout"]["template"]["layout"]["font"]["size"] == 12
    assert sent["layout"]["xaxis"] == {"visible": True} and sent["data"][0]["y"] == [1.0]
    assert data == [{"type": "bar", "x": [0], "y": [1.0]}] and layout == {"xaxis": {"visible": True}}


def test_ticks_thin_out_long_axes() -> None:
    axis = ticks([f"row {i}" for i in range(100)], most=25)
    assert axis["tickvals"] == list(range(0, 100, 4)) and axis["ticktext"][1] == "row 4"


def test_rgba_reads_hex_only() -> None:
    assert rgba("#ff8000", 0.5) == "rgba(255,128,0,0.5)"
    assert rgba("var(--plot-ink)", 0.5) == "var(--plot-ink)"
