"""Choosing a method and comparing several, in a real Chromium."""

from __future__ import annotations

import pytest
from browser_page import App, Watched
from playwright.sync_api import Page, expect
from test_whole_path import load_demo, open_tab

from sftm_app.methods import METHODS

pytestmark = pytest.mark.browser


def choose(page: Page, form: str, title: str) -> None:
    """Choose a method in a form's list."""
    page.locator(f"#{form}method input").click()
    page.get_by_role("option", name=title, exact=True).click()


def test_a_method_says_what_it_is_for_and_shows_its_own_controls(app: App, watched: Watched) -> None:
    page = watched.page
    load_demo(page, app)
    open_tab(page, "Merge")
    choose(page, "", "TIES")
    expect(page.locator("#about-method")).to_contain_text(METHODS["ties"].reference)
    expect(page.locator("#density")).to_be_visible()
    expect(page.locator("#variant")).to_be_hidden()
    expect(page.locator("#calibration")).to_be_hidden()
    expect(page.locator("#plan")).to_contain_text("TIES")
    page.locator("#more-settings").get_by_text("More settings").click()
    expect(page.locator("#calibration")).to_be_visible()
    choose(page, "", "Task arithmetic")
    expect(page.locator("#scaling input[type=number]")).to_have_value("0.3")
    expect(page.locator("#plan")).to_contain_text("Task arithmetic")

    open_tab(page, "Inspect")
    expect(page.locator("#what-if-bars .js-plotly-plot")).to_be_visible()
    choose(page, "what-if-", "SLERP")
    expect(page.locator("#what-if-about-method")).to_contain_text("exactly 2 tasks, not 8")
    expect(page.locator("#what-if-bars .js-plotly-plot")).to_be_visible()
    expect(page.locator("#feature-figures h2")).to_contain_text("Feature 1 of")
    assert watched.errors == []


def test_methods_are_compared_and_the_table_outlives_a_reload(app: App, watched: Watched) -> None:
    page = watched.page
    page.on("console", lambda message: watched.errors.append(message.text) if message.type == "error" else None)
    load_demo(page, app)
    open_tab(page, "Merge")
    methods = page.locator("#compared-methods")
    methods.get_by_text("SFTM", exact=True).click()
    limit = page.locator("#compared-limit input[type=number]")
    limit.fill("10")
    limit.press("Enter")
    page.locator("#compare-start").click()
    expect(page.locator("#compare-cancel")).to_be_visible()
    assert watched.errors == []
    page.reload()
    watched.errors.clear()  # the page that was left may complain that its connection broke
    open_tab(page, "Merge")
    expect(page.locator("#compare-clear")).to_be_visible()
    rows = page.locator("#compare-table tbody tr")
    expect(rows).to_have_count(4)
    expect(page.locator("#compare-table")).to_contain_text("10 samples per task of the demo")
    expect(page.locator("#compare-table")).not_to_contain_text("·")
    expect(page.locator("#compare-chart .js-plotly-plot")).to_be_visible()

    rows.filter(has_text="Plain average").get_by_text("Use these settings").click()
    expect(page.locator("#method input")).to_have_value("Plain average")
    expect(page.locator("#plan")).to_contain_text("Plain average")
    page.locator("#compare-clear").click()
    expect(rows).to_have_count(0)
    assert watched.errors == []
    assert watched.outside == []


def test_a_search_goes_on_while_the_page_is_opened_anew(app: App, watched: Watched) -> None:
    page = watched.page
    load_demo(page, app)
    open_tab(page, "Merge")
    page.locator("#find-best").get_by_text("Find the best merge on your own samples").click()
    limit = page.locator("#search-limit input[type=number]")
    limit.fill("10")
    limit.press("Enter")
    page.locator("#search-start").click()
    expect(page.locator("#search-best")).to_contain_text("best so far")
    expect(page.locator("#search-chart .js-plotly-plot")).to_be_visible()
    assert watched.errors == []
    page.reload()
    watched.errors.clear()  # the page that was left may complain that its connection broke
    open_tab(page, "Merge")
    page.locator("#search-stop").click()
    # It ends with the models on the samples that it has not seen.
    expect(page.locator("#search-table")).to_contain_text("10 samples per task of the demo")
    expect(page.locator("#search-stop")).to_be_hidden()
    said = page.locator("#search-best").inner_text()
    best = max((method.title for method in METHODS.values() if method.title in said), key=len)
    page.locator("#search-best").get_by_text("Use these settings").click()
    expect(page.locator("#method input")).to_have_value(best)
    expect(page.locator("#plan")).to_contain_text(f"8 tasks, {best}")
    assert watched.errors == []
