"""How fast the app responds, in a real Chromium: `python -m bench.interface`.

Prints a Markdown table: from start to ready, from a click on a heatmap cell to the redrawn detail (median of 20), and
from the click that starts the demo merge to its end.
"""

from __future__ import annotations

import statistics
import time

from playwright.sync_api import Page, expect

from bench.browser import load_demo, open_page, open_tab, running_app
from bench.machine import machine_line

N_CLICKS = 20

CLICK_AND_WAIT = """async ([row, column]) => {
    const plot = document.querySelector('#layer-map .js-plotly-plot');
    const stages = ['spectra', 'pair-read', 'pair-write'].map((id) => document.querySelector(`#${id} .sf-plot-stage`));
    const before = stages.map((stage) => stage.dataset.draws);
    const x = plot._fullLayout.xaxis, y = plot._fullLayout.yaxis, box = plot.getBoundingClientRect();
    const at = {clientX: box.left + x._offset + x.c2p(column), clientY: box.top + y._offset + y.c2p(row)};
    const drag = plot.querySelector('.nsewdrag');
    for (const kind of ['mousemove', 'mousedown', 'mouseup', 'click']) {
        drag.dispatchEvent(new MouseEvent(kind, {...at, bubbles: true}));
    }
    const started = performance.now();
    let first = null;
    while (stages.some((stage, i) => stage.dataset.draws === before[i])) {
        if (performance.now() - started > 10000) throw new Error('no redraw after a click');
        await new Promise((resolve) => requestAnimationFrame(resolve));
        if (first === null && stages[0].dataset.draws !== before[0]) first = performance.now() - started;
    }
    return [first, performance.now() - started];
}"""


def clicks_ms(page: Page) -> tuple[list[float], list[float]]:
    """Milliseconds from each click until the spectra are redrawn, and until everything is, for several layers."""
    found: list[tuple[float, float]] = []
    for index in range(N_CLICKS + 2):
        found.append(page.evaluate(CLICK_AND_WAIT, [1 + index % 5, 1 + index * 5 % 6]))
        page.wait_for_timeout(300)
    return [first for first, _ in found[2:]], [last for _, last in found[2:]]


def main() -> None:
    with running_app() as (url, ready_s), open_page() as page:
        page.goto(url)
        # A person looks around first; the app warms up meanwhile.
        page.wait_for_timeout(15_000)
        started = time.perf_counter()
        load_demo(page)
        demo_s = time.perf_counter() - started
        open_tab(page, "Inspect")
        page.locator("#spectra .js-plotly-plot").wait_for()
        insight_s = time.perf_counter() - started
        page.wait_for_timeout(8_000)
        spectra, everything = clicks_ms(page)
        open_tab(page, "Merge")
        page.wait_for_timeout(1_000)
        started = time.perf_counter()
        page.locator("#start").click()
        expect(page.locator("#result")).to_contain_text("Memory")
        merge_s = time.perf_counter() - started
        expect(page.locator("#run-bars .js-plotly-plot")).to_be_visible()
        scored_s = time.perf_counter() - started
    print(f"{machine_line()}\n")
    print("| step | time |\n|---|---:|")
    print(f"| start the app, until its page | {ready_s:.1f} s |")
    print(f"| Try the glyphs demo, until the models are checked | {demo_s:.1f} s |")
    print(f"| Try the glyphs demo, until the first spectra | {insight_s:.1f} s |")
    for what, clicks in (("its spectra", spectra), ("its spectra and overlaps", everything)):
        spread = f"{min(clicks):.0f} to {max(clicks):.0f}"
        print(f"| click on a map cell, until {what} are redrawn | {statistics.median(clicks):.0f} ms ({spread}) |")
    print(f"| demo merge of 8 tasks, from click to end | {merge_s:.1f} s |")
    print(f"| the same, until its scores on 200 samples of each task are shown | {scored_s:.1f} s |")


if __name__ == "__main__":
    main()
