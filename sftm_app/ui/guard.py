"""Keeps other web sites away from the app: it is reached only through its own address, from its own pages.

Gradio's CORS only withholds headers: a page of another site could still post to the app, and a foreign host name that
is made to point here (DNS rebinding) could read from it. Gradio also fetches addresses that are given in place of a
file. So every request passes here first, whatever its route.
"""

from __future__ import annotations

import json
import re
from collections.abc import Awaitable, Callable, Collection, Iterator, Mapping, MutableMapping
from typing import Any

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

# Where a visitor's name stands in the scope of a request, if visitors are told apart.
VISITOR = "sftm.visitor"
LOCAL_HOSTS = frozenset({"127.0.0.1", "localhost", "[::1]"})
# What a page posts with an event. Uploads have a limit of their own.
MAX_JSON_BYTES = 64 * 1024 * 1024

_HOST = re.compile(
    r"(?P<name>\[[0-9a-f:.]+\]|[a-z0-9](?:[a-z0-9.-]*[a-z0-9])?)(?::(?P<port>[0-9]{1,5}))?", re.IGNORECASE
)
# Of these, a browser sends more than one only when it is made to.
_ONCE = ("host", "origin", "sec-fetch-site", "sec-fetch-dest", "content-length")
_ADDRESS = re.compile(r"\s*(?:[a-z][a-z0-9+.-]+:|//)", re.IGNORECASE)
_DRIVE = re.compile(r"[a-z]:[\\/]", re.IGNORECASE)
_FILE_ROUTE = re.compile(r"/file[=/](?P<file>.*)", re.DOTALL)


class LocalOnly:
    """ASGI middleware: answers 403 to every request that does not come from the app's own pages.

    Args:
        app: the app behind it.
        hosts: the host names, without port, by which the app may be called.
    """

    def __init__(self, app: App, hosts: Collection[str] = LOCAL_HOSTS) -> None:
        self._app, self._hosts = app, frozenset(hosts)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] not in ("http", "websocket"):
            await self._app(scope, receive, send)
            return
        reason = refusal(scope, self._hosts)
        if reason is not None:
            await refuse(scope, send, 403, f"SFTM Studio answers only its own pages ({reason}).")
            return
        if scope["type"] == "http" and _is_json(scope):
            body = await read_body(receive)
            if body is None:
                await refuse(scope, send, 413, "This request is too large for SFTM Studio.")
                return
            if names_address(body):
                await refuse(
                    scope, send, 403, "SFTM Studio answers only its own pages (an address in place of a file)."
                )
                return
            receive = replay(body, receive)
        await self._app(scope, receive, send)


async def refuse(scope: Scope, send: Send, code: int, text: str, headers: Collection[tuple[bytes, bytes]] = ()) -> None:
    """Answer a request with an error in plain text; a websocket is closed instead."""
    if scope["type"] == "websocket":
        await send({"type": "websocket.close", "code": 1008})
        return
    plain = (b"content-type", b"text/plain; charset=utf-8")
    await send({"type": "http.response.start", "status": code, "headers": [plain, *headers]})
    await send({"type": "http.response.body", "body": text.encode()})


def refusal(scope: Scope, hosts: Collection[str] = LOCAL_HOSTS) -> str | None:
    """Why a request is refused, by its headers and its path; None when it is not."""
    try:
        headers = headers_of(scope)
    except ValueError as error:
        return str(error)
    host = headers.get("host", "")
    called = _HOST.fullmatch(host)
    if called is None or called["name"].lower() not in hosts or int(called["port"] or 0) > 65535:
        return "foreign host"
    own = (f"http://{host}".lower(), f"https://{host}".lower())
    origin = headers.get("origin")
    if origin is not None and origin.lower() not in own:
        return "foreign origin"
    if (reason := _fetch_refusal(scope, headers, own)) is not None:
        return reason
    path = str(scope.get("path", ""))
    if "/proxy=" in path:
        return "an address in place of a file"
    found = _FILE_ROUTE.search(path)
    if found and is_address(found["file"]):
        return "an address in place of a file"
    return None


def headers_of(scope: Scope) -> dict[str, str]:
    """The headers by their names in lower case. Raises ValueError if one is given twice that may be given once."""
    headers: dict[str, str] = {}
    for raw, value in scope["headers"]:
        name = raw.decode("latin-1").lower()
        if name in headers and name in _ONCE:
            raise ValueError(f"more than one {name}")
        headers[name] = value.decode("latin-1")
    return headers


def is_address(text: str) -> bool:
    """Whether a text that should be the path of a file is an address, such as http://host or //host."""
    return _ADDRESS.match(text) is not None and _DRIVE.match(text) is None


def names_address(body: bytes) -> bool:
    """Whether the JSON that a page posts names an address where Gradio expects the path of an uploaded file."""
    return any(map(is_address, paths_in(body)))


def paths_in(body: bytes) -> Iterator[str]:
    """Every path of a file in the JSON that a page posts; none where it is no JSON, which the route itself answers."""
    try:
        waiting = [json.loads(body)]
    except (ValueError, RecursionError):
        return
    while waiting:
        value = waiting.pop()
        if isinstance(value, dict):
            if isinstance(value.get("path"), str):
                yield value["path"]
            waiting.extend(value.values())
        elif isinstance(value, list):
            waiting.extend(value)


def _fetch_refusal(scope: Scope, headers: Mapping[str, str], own: tuple[str, ...]) -> str | None:
    site = headers.get("sec-fetch-site")
    if site is None:
        # Browsers leave it out where the app is called by a plain address of the network.
        referer = headers.get("referer")
        if referer is None or referer.lower().startswith(tuple(f"{origin}/" for origin in own)):
            return None
    elif site in ("same-origin", "none"):
        return None
    if _is_page(scope) and headers.get("sec-fetch-dest", "document") == "document":
        return None  # a link from another site to the app's page
    return "cross-site request"


def _is_page(scope: Scope) -> bool:
    return scope["type"] == "http" and scope.get("method") in ("GET", "HEAD") and scope.get("path") in ("", "/")


def _is_json(scope: Scope) -> bool:
    """Whether the body is read as JSON. An upload says that it is a form, and its files are no JSON."""
    if scope.get("method") in ("GET", "HEAD", "OPTIONS"):
        return False
    kind = headers_of(scope).get("content-type", "")
    return not kind.lower().startswith("multipart/form-data")


async def read_body(receive: Receive) -> bytes | None:
    """The whole body of a request; None when it is too large."""
    chunks: list[bytes] = []
    size = 0
    while True:
        message = await receive()
        if message["type"] != "http.request":
            return b"".join(chunks)
        chunks.append(message.get("body", b""))
        size += len(chunks[-1])
        if size > MAX_JSON_BYTES:
            return None
        if not message.get("more_body"):
            return b"".join(chunks)


def replay(body: bytes, receive: Receive) -> Receive:
    """A `receive` that gives the body once more, and then what follows it."""
    left = [body]

    async def again() -> Message:
        if left:
            return {"type": "http.request", "body": left.pop(), "more_body": False}
        return await receive()

    return again
