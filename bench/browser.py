"""The app in its own process, and a Chromium that opens it."""

from __future__ import annotations

import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager

from playwright.sync_api import Page, expect, sync_playwright

PATIENCE_MS = 120_000
FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-background-networking"]


@contextmanager
def running_app() -> Iterator[tuple[str, float]]:
    """Start the app with an empty output folder. Yields its address and the seconds until it answered."""
    folder = tempfile.mkdtemp(prefix="sftm-bench-")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    started = time.perf_counter()
    command = [sys.executable, "-m", "sftm_app", "ui", "--no-browser", "--port", str(port), "--output-dir", folder]
    process = subprocess.Popen([*command, "--models-dir", folder], stdout=subprocess.DEVNULL)
    url = f"http://127.0.0.1:{port}/"
    try:
        while True:
            try:
                urllib.request.urlopen(url, timeout=5).read()
                break
            except OSError:
                if process.poll() is not None:
                    raise SystemExit("The app stopped. Start it with `python launch.py` to see why.") from None
                time.sleep(0.05)
        yield url, time.perf_counter() - started
    finally:
        process.terminate()
        process.wait(20)
        shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def open_page(width: int = 1440, height: int = 900, scale: float = 1) -> Iterator[Page]:
    """A page of the system's Chromium."""
    chromium = shutil.which("chromium") or shutil.which("google-chrome")
    if chromium is None:
        raise SystemExit("No Chromium was found. Install the package `chromium`.")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=FLAGS)
        page = browser.new_page(viewport={"width": width, "height": height}, device_scale_factor=scale)
        page.set_default_timeout(PATIENCE_MS)
        expect.set_options(timeout=PATIENCE_MS)
        yield page
        browser.close()


def open_tab(page: Page, name: str) -> None:
    """Click one of the app's tabs."""
    page.get_by_role("tab", name=name, exact=True).click()


def load_demo(page: Page) -> None:
    """Click Try the glyphs demo and wait until the models are checked."""
    page.locator("#try-glyphs").click()
    expect(page.locator("#preflight")).to_contain_text("fit the base")
