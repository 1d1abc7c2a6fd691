"""What a page shows outlives a reload, a link, a second tab and Back; what does not belong together says so."""

from __future__ import annotations

import pytest
from browser_page import App, Watched
from playwright.sync_api import Page, expect
from test_comparing_methods import choose
from test_whole_path import load_demo, open_tab

from sftm_app.jobs.folder import list_runs

pytestmark = pytest.mark.browser

IN_VIEW = """(id) => {
    const box = document.querySelector(`#${id}`).getBoundingClientRect();
    return box.height > 0 && box.top >= 0 && box.bottom <= innerHeight;
}"""


def watch_console(watched: Watched, page: Page) -> None:
    """Note what a page complains of, except that its connection breaks when it is left."""

    def note(text: str) -> None:
        if "Connection errored out" not in text and "aborted" not in text:
            watched.errors.append(text)

    page.on("console", lambda message: note(message.text) if message.type == "error" else None)


def log_of(app: App) -> str:
    return (app.output_dir.parent / "app.log").read_text(encoding="utf-8", errors="replace")


def ticked(page: Page) -> list[str]:
    found: list[str] = page.evaluate(
        """() => [...document.querySelectorAll('#models label')]
            .filter((label) => label.querySelector('input').checked).map((label) => label.innerText.trim())"""
    )
    return found


def test_form_and_run_outlive_reload_second_tab_and_back(app: App, watched: Watched) -> None:
    page, before = watched.page, len(log_of(app))
    watch_console(watched, page)
    load_demo(page, app)
    # What to do next is in sight, and the pickers hold what is loaded.
    assert page.evaluate(IN_VIEW, "next-steps")
    expect(page.locator("#base-path input")).to_have_value("demo/glyphs/base · vit · 2.01 MB")
    page.get_by_role("button", name="Merge the tasks").click()
    expect(page.locator("#start")).to_be_enabled()
    assert page.evaluate(IN_VIEW, "start")
    page.locator("#start").click()
    expect(page.locator("#result")).to_contain_text("Memory")
    expect(page.locator("#made-otherwise")).not_to_contain_text("other settings")
    choose(page, "", "TIES")
    expect(page.locator("#made-otherwise")).to_contain_text("Made with other settings than those of the form")
    page.wait_for_function("() => /[?&]merge=method%3Dties/.test(location.search) && /[?&]run=2/.test(location.search)")
    (run,) = list_runs(app.output_dir / "runs")
    assert run.run_id in page.url

    link = page.url
    page.reload()
    second = page.context.new_page()
    watch_console(watched, second)
    for one, address in ((page, ""), (second, app.url), (second, link)):
        if address:
            one.goto(address)
        if address == app.url:
            open_tab(one, "Merge")
        expect(one.locator("#method input")).to_have_value("TIES")
        expect(one.locator("#result")).to_contain_text("SFTM")
        expect(one.locator("#made-otherwise")).to_contain_text("Made with other settings")
    second.close()
    watched.errors.clear()  # the pages that were left may complain that their connection broke

    # Back is the tab before, and forward this one again. Settings are no page of their own.
    open_tab(page, "Evaluate")
    expect(page.locator("#models")).to_be_visible()
    page.go_back()
    expect(page.get_by_role("tab", name="Merge", exact=True)).to_have_attribute("aria-selected", "true")
    page.go_forward()
    expect(page.get_by_role("tab", name="Evaluate", exact=True)).to_have_attribute("aria-selected", "true")
    page.go_back()
    page.get_by_text("Use these settings", exact=True).first.click()
    expect(page.locator("#method input")).to_have_value("SFTM")
    expect(page.locator("#made-otherwise")).not_to_contain_text("other settings")

    # A list of choices closes when it is left by Tab.
    for name in ("method", "runs"):
        page.locator(f"#{name} input").click()
        expect(page.locator(f"#{name} input")).to_have_attribute("aria-expanded", "true")
        page.keyboard.press("Tab")
        expect(page.locator(f"#{name} input")).to_have_attribute("aria-expanded", "false")
    assert watched.errors == [] and watched.outside == []
    assert "Traceback" not in log_of(app)[before:]


def test_evaluate_outlives_a_reload_and_demos_change_quickly(app: App, watched: Watched) -> None:
    page, before = watched.page, len(log_of(app))
    watch_console(watched, page)
    # The second demo is asked for while the first one opens.
    page.goto(app.url)
    page.locator("#try-wordplay").click()
    page.locator("#try-glyphs").click()
    expect(page.locator("#preflight")).to_contain_text("8 tasks fit the base")
    expect(page.locator(".toast-body")).to_have_count(0)
    open_tab(page, "Evaluate")
    page.locator("#models").get_by_text("TIES", exact=True).click()
    page.locator("#sample").click()
    expect(page.locator("#verdict")).to_contain_text("The right answer is")
    expect(page.locator("#verdict")).not_to_contain_text("…")
    page.wait_for_function("() => /[?&]evaluate=.*sample/.test(location.search)")
    seen, answers = ticked(page), page.locator("#verdict").inner_text()
    assert "TIES" in seen
    page.reload()
    expect(page.locator("#verdict")).to_contain_text(answers.splitlines()[0])
    expect(page.locator("#verdict")).not_to_contain_text("…")
    assert ticked(page) == seen
    assert page.locator("#verdict").inner_text() == answers
    assert watched.errors == [] and watched.outside == []
    assert "Traceback" not in log_of(app)[before:]
