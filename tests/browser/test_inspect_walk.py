"""The Inspect tab in a real Chromium: map, layer, feature, slider, and the same view from its address elsewhere."""

from __future__ import annotations

from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest
from browser_page import App, Watched
from playwright.sync_api import Page, expect
from test_whole_path import click_cell, load_demo, open_tab, wait_for_full_map

pytestmark = pytest.mark.browser


def click_point(page: Page, plot: str, curve: int, point: int) -> None:
    """Click one point of a line of a plot's left panel, once the page stands still."""
    place = place_of(page, plot, curve, point)
    while (now := place_of(page, plot, curve, point)) != place:
        place = now
        page.wait_for_timeout(300)
    page.mouse.move(place["x"] + 1, place["y"])
    page.mouse.move(place["x"], place["y"])
    # Plotly reports a click on the points that it has found under the mouse.
    page.wait_for_function("(id) => document.querySelector(`#${id} .js-plotly-plot`)._hoverdata?.length", arg=plot)
    page.mouse.click(place["x"], place["y"])


def place_of(page: Page, plot: str, curve: int, point: int) -> dict[str, Any]:
    """Scroll to a plot and return where one point of one of its curves, bands not counted, is on the screen."""
    place: dict[str, Any] = page.evaluate(
        """([id, curve, point]) => {
            const plot = document.querySelector(`#${id} .js-plotly-plot`);
            plot.scrollIntoView({block: 'center'});
            const x = plot._fullLayout.xaxis, y = plot._fullLayout.yaxis;
            const trace = plot._fullData.filter((trace) => !(trace.meta && trace.meta.aid))[curve];
            const box = plot.getBoundingClientRect();
            return {x: box.left + x._offset + x.c2p(trace.x[point]), y: box.top + y._offset + y.c2p(trace.y[point])};
        }""",
        [plot, curve, point],
    )
    return place


def bars(page: Page) -> list[float]:
    """Readout errors of the first series of the what-if."""
    found: list[float] = page.evaluate(
        "() => Array.from(document.querySelector('#what-if-bars .js-plotly-plot')._fullData[0].y)"
    )
    return found


def shown(page: Page) -> dict[str, Any]:
    """What a person sees of a view, as values."""
    return {
        "layer": page.locator("#layer-title h2").inner_text(),
        "feature": page.locator("#feature-figures h2").inner_text(),
        "bars": [round(value, 6) for value in bars(page)],
        "figures": page.locator("#what-if-figures .sf-stats").inner_text(),
        "pinned": page.locator("#pinned-title .sf-heading").inner_text(),
        "measure": page.locator("#measure input").input_value(),
        "scaling": page.locator("#what-if-scaling input[type=number]").input_value(),
        "pair": [page.locator(f"#{name} input").input_value() for name in ("first-task", "second-task")],
    }


def test_map_layer_feature_slider_and_the_same_from_the_address(app: App, watched: Watched) -> None:
    page = watched.page
    load_demo(page, app)
    open_tab(page, "Inspect")
    wait_for_full_map(page)
    name = click_cell(page, 3, 2).removesuffix(".weight")
    expect(page.locator("#layer-title")).to_contain_text(name)
    expect(page.locator("#feature-figures")).to_contain_text("Feature 1 of")
    # The address follows once the plots are complete.
    page.wait_for_function("(name) => location.search.includes(name)", arg=f"layer={name}")

    click_point(page, "spectra", 0, 12)
    expect(page.locator("#feature-number input")).not_to_have_value("1")
    feature = page.locator("#feature-number input").input_value()
    expect(page.locator("#feature-figures h2")).to_contain_text(f"Feature {feature} of")
    expect(page.locator("#excited img").first).to_be_visible()

    before = bars(page)
    page.locator("#pin").click()
    expect(page.locator("#compare")).to_be_visible()
    slider = page.locator("#what-if-scaling input[type=range]")
    slider.focus()
    for _ in range(6):
        slider.press("ArrowLeft")
    page.wait_for_function(
        """(before) => {
            const bars = document.querySelector('#what-if-bars .js-plotly-plot');
            return Math.abs(bars._fullData[0].y[0] - before) > 0.1;
        }""",
        arg=before[0],
    )
    expect(page.locator("#now-title")).to_contain_text("scaling 0.7")
    expect(page.locator("#pinned-title")).not_to_contain_text("scaling")

    page.wait_for_function("() => location.search.includes('scaling=0.7')")
    asked = parse_qs(urlsplit(page.url).query)
    assert asked["demo"] == ["glyphs"] and asked["tab"] == ["inspect"] and asked["feature"] == [feature]
    assert asked["layer"] == [f"{name}.weight"]

    seen = shown(page)
    second = page.context.new_page()
    second.on("pageerror", lambda error: watched.errors.append(str(error)))
    second.goto(page.url)
    expect(second.locator("#now-title")).to_contain_text("scaling 0.7")
    expect(second.locator("#feature-figures h2")).to_contain_text(f"Feature {feature} of")
    assert shown(second) == seen, "an opened address shows the same view"

    page.locator("#use-for-merge").click()
    expect(page.get_by_role("tab", name="Merge", exact=True)).to_have_attribute("aria-selected", "true")
    expect(page.locator("#scaling input[type=number]")).to_have_value("0.7")
    assert watched.errors == []
    assert watched.outside == []


def test_a_feature_is_switched_off_and_names_in_addresses_are_text(app: App, watched: Watched) -> None:
    page = watched.page
    page.goto(f"{app.url}?demo=glyphs&tab=inspect&layer=%3Cimg%20src=http://outside.invalid/x%3E&task=latin&feature=2")
    expect(page.get_by_text("<img src=http://outside.invalid/x>").first).to_be_visible()
    expect(page.locator("#feature-figures h2")).to_contain_text("Feature 2 of latin")
    # Typed quickly, the last number counts, and what follows is of it.
    page.locator("#feature-number input").press("End")
    page.locator("#feature-number input").press_sequentially("57", delay=20)
    page.locator("#feature-number input").press("Backspace")
    expect(page.locator("#feature-figures h2")).to_contain_text("Feature 25 of latin")
    page.wait_for_function("() => location.search.includes('feature=25')")
    page.locator("#inspect-sample").click()
    expect(page.locator("#steer-verdict")).to_contain_text("× 0")
    expect(page.locator("#own-excited img")).to_be_visible()
    page.goto(f"{app.url}?base=/etc&with=a:passwd&tab=inspect")
    expect(page.get_by_text("outside the models folder").first).to_be_visible()
    assert watched.errors == []
    assert watched.outside == []
