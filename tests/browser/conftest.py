"""A real Chromium and a running app, once for all browser tests.

Without Chromium the tests are skipped; with SFTM_REQUIRE_BROWSER=1 they fail.
"""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
from browser_page import App, Watched
from filelock import FileLock
from playwright.sync_api import Browser, expect, sync_playwright

START_LIMIT_S = 120
# Long enough for slow, busy machines. A wait ends as soon as its condition holds.
PATIENCE_MS = 90_000
CHROMIUM_FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--no-first-run",
]


@pytest.fixture(scope="session")
def chromium() -> Iterator[Browser]:
    found = next(
        (path for name in ("chromium", "chromium-browser", "google-chrome") if (path := shutil.which(name))), None
    )
    if found is None:
        if os.environ.get("SFTM_REQUIRE_BROWSER"):
            pytest.fail("There is no Chromium, but SFTM_REQUIRE_BROWSER is set. Install the package `chromium`.")
        pytest.skip("no Chromium on this machine; install the package `chromium` to run the browser tests")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=found, args=CHROMIUM_FLAGS)
        yield browser
        browser.close()


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


# For each file, because the app keeps what its tabs show: what one file leaves in a form would meet the next.
@pytest.fixture(scope="module")
def running_app(tmp_path_factory: pytest.TempPathFactory, tiny_models: Path) -> Iterator[App]:
    """The app as a user starts it, with the tiny models as its models folder. Starting it takes seconds."""
    root, port = tmp_path_factory.mktemp("app"), free_port()
    app = App(f"http://127.0.0.1:{port}/", root / "output", root / "cache")
    command = [sys.executable, "-m", "sftm_app", "ui", "--no-browser", "--device", "cpu", "--port", str(port)]
    command += ["--output-dir", str(app.output_dir), "--models-dir", str(tiny_models)]
    environment = {**os.environ, "SFTM_CACHE_DIR": str(app.cache_dir)}
    with open(root / "app.log", "wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, env=environment)
    # One browser at a time: two of them, each with an app, are too slow for two processors.
    turn = FileLock(tmp_path_factory.getbasetemp().parent / "browser.lock")
    turn.acquire()
    try:
        deadline = time.monotonic() + START_LIMIT_S
        while True:
            try:
                urllib.request.urlopen(app.url, timeout=5).read()
                break
            except OSError:
                log_text = (root / "app.log").read_text()
                assert process.poll() is None and time.monotonic() < deadline, log_text
                time.sleep(0.1)
        yield app
    finally:
        turn.release()
        process.terminate()
        process.wait(20)


@pytest.fixture
def app(running_app: App) -> App:
    """The running app without the output of other tests.

    It is also without their cache, which would make a merge too short to be watched or cancelled.
    """
    for folder in (running_app.output_dir, running_app.cache_dir):
        for path in folder.iterdir() if folder.is_dir() else ():
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    return running_app


@pytest.fixture
def watched(chromium: Browser, app: App) -> Iterator[Watched]:
    context = chromium.new_context(viewport={"width": 1440, "height": 900})
    page = context.new_page()
    page.set_default_timeout(PATIENCE_MS)
    expect.set_options(timeout=PATIENCE_MS)
    result = Watched(page, [], [])
    page.on("request", lambda request: _note_outside(result, request.url, app.url))
    page.on("pageerror", lambda error: result.errors.append(str(error)))
    yield result
    context.close()


def _note_outside(result: Watched, url: str, home: str) -> None:
    if not url.startswith((home, home.replace("http", "ws"), "data:", "blob:")):
        result.outside.append(url)
