"""Every route of the app against every foreign sender. The guard stands in front of all routes."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import gradio as gr
from gradio.routes import App

from bench.faults.figures import Figure
from sftm_app.ui.guard import refusal
from sftm_app.ui.launching import launch_options
from sftm_app.ui.settings import Settings

HOST = "127.0.0.1:7860"
FOREIGN_HOSTS = (
    "evil.example", "evil.example:7860", "127.0.0.1.evil.example", "127.0.0.1:7860@evil", "[::1].evil", "[::1]evil:80",
    "localhost.evil", "127.0.0.1:", "127.0.0.1:x", "127.0.0.1:99999", "127.0.0.1:7860:80", "127.0.0.1 ", "127.1",
    "2130706433", "0x7f.1", "0.0.0.0", "[::ffff:127.0.0.1]", "localhost,evil", "evil/127.0.0.1", "127.0.0.1/", "", "*",
    "::1", "localhost.", "user@localhost", "127.0.0.1#.evil", "127.0.0.1\\@evil", "\u0131localhost",
)  # fmt: skip
FOREIGN_ORIGINS = (
    "http://evil.example", "null", "http://127.0.0.1:9999", "http://127.0.0.1", "file://",
    "http://127.0.0.1:7860.evil", "http://evil@127.0.0.1:7860", "http://127.0.0.1:7860/", "chrome-extension://x", "",
    "127.0.0.1:7860", "ftp://127.0.0.1:7860",
)  # fmt: skip
FOREIGN_SITES = ("cross-site", "same-site", "cross-site, same-origin", "x", "")


def make_app() -> Any:
    """The routes of a page of Gradio's, with our options: the same whatever the page holds."""
    with gr.Blocks(analytics_enabled=False) as page:
        gr.Button("Go").click(lambda: None, None, None, api_name="go")
    options = launch_options(Settings(Path("/m"), Path("/o"), Path("/p")))
    return App.create_app(page, app_kwargs=options["app_kwargs"])


def routes_of(app: Any) -> list[tuple[str, str]]:
    """Every method and path of the app, with something in place of the parts that vary."""
    found: set[tuple[str, str]] = set()

    def walk(routes: Any) -> None:
        for route in routes:
            path = re.sub(r"\{[^}]*\}", "x", getattr(route, "path", None) or "")
            found.update((method, path) for method in getattr(route, "methods", None) or ())
            inner = getattr(route, "original_router", None) or route
            walk(getattr(inner, "routes", None) or ())

    walk(app.routes)
    return sorted(found)


def scope(method: str = "GET", path: str = "/x", headers: Any = None, kind: str = "http") -> dict[str, Any]:
    given = {"host": HOST, **(headers or {})}
    raw = [(name.encode(), value if isinstance(value, bytes) else value.encode()) for name, value in given.items()]
    return {"type": kind, "method": method, "path": path, "headers": raw}


def foreign_headers() -> list[dict[str, Any]]:
    """What senders from elsewhere say of themselves, malformed ones among them."""
    found: list[dict[str, Any]] = [{"host": host.encode()} for host in FOREIGN_HOSTS]
    found += [{"origin": origin} for origin in FOREIGN_ORIGINS]
    found += [{"sec-fetch-site": site} for site in FOREIGN_SITES]
    return [*found, {"referer": "http://evil.example/x"}]


def attack_routes(quick: bool) -> Figure:
    """Ask the guard about every route and every sender, own ones too."""
    wrong: list[str] = []
    n = 0
    for method, path in routes_of(make_app()):
        for headers in foreign_headers():
            if path == "/" and not {"host", "origin"} & headers.keys():
                continue  # a link from another site to the page
            n += 1
            if refusal(scope(method, path, headers)) is None:
                wrong.append(f"{method} {path} {headers}: answered")
        for own in ({}, {"origin": f"http://{HOST}"}, {"sec-fetch-site": "same-origin"}):
            n += 1
            if (reason := refusal(scope(method, path, own))) is not None and "proxy" not in path:
                wrong.append(f"{method} {path} {own}: refused ({reason})")
    return Figure("every route x every sender", n, tuple(wrong))
