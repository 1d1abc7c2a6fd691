"""Every route of the app against every foreign sender, and what a route may be given. (FAULTS D1, D3, D4, D5)"""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
from fastapi.testclient import TestClient
from starlette.websockets import WebSocketDisconnect

from bench.faults.routes import HOST, attack_routes, foreign_headers, make_app, routes_of, scope
from sftm_app.ui.guard import is_address, names_address, refusal
from sftm_app.ui.launching import launch_options
from sftm_app.ui.settings import Settings


@pytest.fixture(scope="module")
def app() -> Any:
    """The routes of a page of Gradio's, with our options: the same whatever the page holds."""
    return make_app()


@pytest.fixture(scope="module")
def client(app: Any) -> Iterator[TestClient]:
    with TestClient(app, base_url=f"http://{HOST}", follow_redirects=False, raise_server_exceptions=False) as client:
        yield client


def test_every_route_refuses_every_foreign_sender(app: Any, client: TestClient) -> None:
    routes = routes_of(app)
    assert len(routes) > 50, "the walk finds Gradio's routes"
    assert {("GET", "/"), ("POST", "/gradio_api/queue/join"), ("POST", "/gradio_api/upload")} <= set(routes)
    found = attack_routes(False)
    assert found.count > 2000 and not found.wrong
    for method, path in routes[:: max(1, len(routes) // 12)]:
        for headers in foreign_headers()[::5]:
            if path != "/":
                assert client.request(method, path, headers=headers).status_code == 403


@pytest.mark.parametrize("host", ["127.0.0.1:7860", "localhost:7860", "[::1]:7860", "LOCALHOST", "127.0.0.1"])
def test_own_pages_are_served(host: str) -> None:
    for method in ("GET", "POST"):
        for extra in (
            {},
            {"origin": f"http://{host}"},
            {"sec-fetch-site": "same-origin"},
            {"referer": f"http://{host}/?x"},
        ):
            assert refusal(scope(method, "/gradio_api/queue/join", {"host": host, **extra})) is None


def test_a_link_from_another_site_opens_the_page_and_nothing_else() -> None:
    headers = {"sec-fetch-site": "cross-site", "sec-fetch-dest": "document"}
    assert refusal(scope("GET", "/", headers)) is None
    assert refusal(scope("GET", "/config", headers)) == "cross-site request"
    assert refusal(scope("POST", "/", headers)) == "cross-site request"
    for destination in ("iframe", "image", "script", "empty", "embed"):
        assert refusal(scope("GET", "/", headers | {"sec-fetch-dest": destination})) == "cross-site request"


def test_headers_given_twice_are_refused() -> None:
    for name, value in (("host", HOST), ("origin", f"http://{HOST}"), ("sec-fetch-site", "same-origin")):
        twice = scope(headers={name: value})
        twice["headers"].append((name.upper().encode(), value.encode()))
        assert refusal(twice) == f"more than one {name}"


def test_a_foreign_websocket_is_closed(client: TestClient) -> None:
    assert refusal(scope(headers={"origin": "http://evil.example"}, kind="websocket")) == "foreign origin"
    with (
        pytest.raises(WebSocketDisconnect),
        client.websocket_connect("/gradio_api/x", headers={"origin": "http://evil.example"}),
    ):
        raise AssertionError("connected")


ADDRESSES = (
    "http://evil.example/x",
    "https://10.0.0.1",
    "HTTP://X",
    "//evil/x",
    " http://x",
    "ftp://x",
    "file:///etc/passwd",
)


@pytest.mark.parametrize("address", ADDRESSES)
def test_no_route_takes_an_address(client: TestClient, address: str, no_connections: list[str]) -> None:
    """Gradio fetches an address that is given in place of a file: from its file route, and from posted values."""
    for path in (f"/gradio_api/file={address}", f"/gradio_api/file/{address}", f"/gradio_api/proxy={address}"):
        for method in ("GET", "HEAD"):
            assert client.request(method, path).status_code == 403, path
    assert client.get(f"/gradio_api/file={quote(address, safe='')}").status_code == 403
    posted = {"data": [{"path": address, "meta": {"_type": "gradio.FileData"}}], "fn_index": 0, "session_hash": "x"}
    for route in ("queue/join", "run/go", "api/go", "call/go", "queue/join?__theme=light"):
        assert client.post(f"/gradio_api/{route}", json=posted).status_code == 403, route
    hidden = json.dumps(posted).encode().replace(b"path", b"p\\u0061th")
    assert client.post("/gradio_api/queue/join", content=hidden).status_code == 403
    assert no_connections == []


@pytest.fixture
def no_connections(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names that are looked up, and addresses connected to, while a test runs."""
    found: list[str] = []

    def refuse(*arguments: Any, **options: Any) -> Any:
        found.append(str(arguments[:2]))
        raise OSError("no network")

    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.setattr(socket.socket, "connect", refuse)
    return found


def test_paths_of_files_are_no_addresses() -> None:
    assert not any(map(is_address, ("/tmp/a.png", "C:\\x\\y.png", "c:/x", "a b/c", "", "x/http://y")))
    own = {
        "path": "/tmp/up/x.png",
        "url": f"http://{HOST}/gradio_api/file=/tmp/up/x.png",
        "meta": {"_type": "gradio.FileData"},
    }
    assert not names_address(json.dumps({"data": [own]}).encode())
    assert not names_address(b"not json") and not names_address(b"[" * 100_000)


FILES = (
    "/etc/passwd",
    "../../etc/passwd",
    "..%2f..%2fetc%2fpasswd",
    "%2e%2e/%2e%2e/etc/passwd",
    "%252fetc%252fpasswd",
    "/proc/self/environ",
)


@pytest.mark.parametrize("path", FILES)
def test_no_route_gives_a_file_of_the_machine(client: TestClient, path: str, tmp_path: Path) -> None:
    for route in ("file=", "file/", "static/", "assets/", "custom_component/x/y/z/", "file=/tmp/../"):
        for before in ("/gradio_api/", "/"):
            answer = client.get(before + route + path)
            assert answer.status_code in (403, 404, 405, 422, 307), (before + route + path, answer.status_code)
            assert "root:" not in answer.text


def test_a_body_without_end_is_refused(client: TestClient, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sftm_app.ui.guard.MAX_JSON_BYTES", 1000)
    assert client.post("/gradio_api/queue/join", content=b" " * 1001).status_code == 413


def test_gradio_is_started_with_everything_off_that_talks_or_shares() -> None:
    options = launch_options(Settings(Path("/m"), Path("/o"), Path("/p")))
    assert options["server_name"] == "127.0.0.1"
    off = ("share", "enable_monitoring", "run_history", "show_error", "ssr_mode", "inbrowser", "mcp_server")
    assert [options[name] for name in off] == [False] * len(off)
    assert options["strict_cors"] is True and options["footer_links"] == [] and options["max_file_size"] == "20mb"
    assert "allowed_paths" not in options
