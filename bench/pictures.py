"""Take the screenshots for the README from the running app: `python -m bench.pictures`."""

from __future__ import annotations

from playwright.sync_api import Page, expect

from bench.browser import load_demo, open_page, open_tab, running_app
from sftm_app.resources import asset_path

TASK = "cyrillic"
FEATURE_TASK = "past"


def inspect_picture(page: Page, url: str) -> None:
    """The map and the spectra of one layer, in light mode."""
    page.goto(f"{url}?__theme=light")
    load_demo(page)
    open_tab(page, "Inspect")
    page.locator("#spectra .js-plotly-plot").wait_for()
    page.wait_for_timeout(10_000)
    page.screenshot(path=asset_path() / "pictures" / "inspect.png")


def feature_picture(page: Page, url: str) -> None:
    """What one feature of a T5 reads and writes, in dark mode."""
    layer = "decoder.block.0.layer.1.EncDecAttention.k.weight"
    page.goto(f"{url}?demo=wordplay&tab=inspect&layer={layer}&feature=1&task={FEATURE_TASK}&__theme=dark")
    page.locator("#excited .sf-excited").first.wait_for()
    page.wait_for_timeout(3_000)
    page.locator("#reasons").evaluate("(place) => place.scrollIntoView({block: 'start'})")
    page.wait_for_timeout(1_000)
    page.screenshot(path=asset_path() / "pictures" / "feature.png")


def evaluate_picture(page: Page, url: str) -> None:
    """The answers of base, individual and merged models to one sample, in dark mode."""
    page.goto(f"{url}?__theme=dark")
    open_tab(page, "Merge")
    page.locator("#start").click()
    expect(page.locator("#run-bars .js-plotly-plot")).to_be_visible()
    page.locator("#evaluate-merge").click()
    expect(page.locator("#models")).to_contain_text("Your merge")
    page.locator("#task input").click()
    page.get_by_role("option", name=TASK, exact=True).click()
    page.locator("#sample").click()
    expect(page.locator("#verdict")).to_contain_text("The right answer")
    page.wait_for_timeout(2_000)
    page.screenshot(path=asset_path() / "pictures" / "evaluate.png")


def main() -> None:
    (asset_path() / "pictures").mkdir(exist_ok=True)
    with running_app() as (url, _), open_page() as page:
        inspect_picture(page, url)
        feature_picture(page, url)
        evaluate_picture(page, url)


if __name__ == "__main__":
    main()
