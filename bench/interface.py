"""How quick the app is, in a real Chromium: `python -m bench.interface`.

Prints a Markdown table: start to ready, click on a heatmap cell to redrawn detail (median of 20), demo merge from click to
done. The app runs in a process of its own with an empty output folder.
"""

from __future__ import annotations

import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request

from playwright.sync_api import Page, expect, sync_playwright

from bench.machine import machine_line

N_CLICKS = 20
FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-background-networking"]

CLICK_AND_WAIT = """async ([row, column]) => {
    const plot = document.querySelector('#layer-map .js-plotly-plot');
    const stages = ['#spectra', '#pair-read', '#pair-write'].map((id) => document.querySelector(id + ' .sf-plot-stage'));
    const before = stages.map((stage) => stage.dataset.draws);
    const x = plot._fullLayout.xaxis, y = plot._fullLayout.yaxis, box = plot.getBoundingClientRect();
    const at = {clientX: box.left + x._offset + x.c2p(column), clientY: box.top + y._offset + y.c2p(row), bubbles: true};
    const drag = plot.querySelector('.nsewdrag');
    for (const kind of ['mousemove', 'mousedown', 'mouseup', 'click']) drag.dispatchEvent(new MouseEvent(kind, at));
    const started = performance.now();
    while (stages.some((stage, i) => stage.dataset.draws === before[i])) {
        if (performance.now() - started > 10000) throw new Error('no redraw after a click');
        await new Promise((resolve) => requestAnimationFrame(resolve));
    }
    return performance.now() - started;
}"""


def start_app(folder: str) -> tuple[subprocess.Popen[bytes], str, float]:
    """The process, its address, and the seconds until it answered."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    started = time.perf_counter()
    command = [sys.executable, "-m", "sftm_app", "ui", "--no-browser", "--port", str(port), "--output-dir", folder]
    process = subprocess.Popen([*command, "--models-dir", folder], stdout=subprocess.DEVNULL)
    url = f"http://127.0.0.1:{port}/"
    while True:
        try:
            urllib.request.urlopen(url, timeout=5).read()
            return process, url, time.perf_counter() - started
        except OSError:
            if process.poll() is not None:
                raise SystemExit("the app ended by itself; start it with `python launch.py` to see why") from None
            time.sleep(0.05)


def open_tab(page: Page, name: str) -> None:
    page.get_by_role("tab", name=name, exact=True).click()


def clicks_ms(page: Page) -> list[float]:
    """Milliseconds from each click to the redrawn spectra and overlaps, over cells of several layers."""
    found = []
    for index in range(N_CLICKS + 2):
        found.append(page.evaluate(CLICK_AND_WAIT, [1 + index % 6, 1 + index * 5 % 6]))
        page.wait_for_timeout(300)
    return found[2:]


def main() -> None:
    chromium = shutil.which("chromium") or shutil.which("google-chrome")
    if chromium is None:
        raise SystemExit("No Chromium was found. Install the package `chromium`.")
    folder = tempfile.mkdtemp(prefix="sftm-bench-")
    process, url, ready_s = start_app(folder)
    try:
        with sync_playwright() as playwright:
            page = playwright.chromium.launch(executable_path=chromium, args=FLAGS).new_page()
            page.set_default_timeout(120_000)
            expect.set_options(timeout=120_000)
            page.goto(url)
            # As a person who looks around first: the app warms its worker up meanwhile.
            page.wait_for_timeout(15_000)
            started = time.perf_counter()
            page.locator("#try-glyphs").click()
            expect(page.locator("#preflight")).to_contain_text("fit the base")
            demo_s = time.perf_counter() - started
            open_tab(page, "Inspect")
            page.locator("#spectra .js-plotly-plot").wait_for()
            insight_s = time.perf_counter() - started
            page.wait_for_timeout(8_000)
            clicks = clicks_ms(page)
            open_tab(page, "Merge")
            page.wait_for_timeout(1_000)
            started = time.perf_counter()
            page.locator("#start").click()
            expect(page.locator("#result")).to_contain_text("Readout error")
            merge_s = time.perf_counter() - started
    finally:
        process.terminate()
        process.wait(20)
        shutil.rmtree(folder, ignore_errors=True)
    print(f"{machine_line()}\n")
    print("| step | time |\n|---|---:|")
    print(f"| start of the app to its page | {ready_s:.1f} s |")
    print(f"| Try the demo to models checked | {demo_s:.1f} s |")
    print(f"| Try the demo to the first spectra | {insight_s:.1f} s |")
    print(
        f"| click on a map cell to spectra and overlaps redrawn, median of {N_CLICKS} | {statistics.median(clicks):.0f} ms "
        f"({min(clicks):.0f} to {max(clicks):.0f}) |"
    )
    print(f"| demo merge (8 tasks), click to done | {merge_s:.1f} s |")


if __name__ == "__main__":
    main()
