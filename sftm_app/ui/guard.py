"""Keeps other web sites away from the app: it is reached only through its own address, from its own pages.

Gradio's CORS only withholds headers: a page of another site could still post to the app, and a foreign host name that
is made to point here (DNS rebinding) could read from it.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any
from urllib.parse import urlsplit

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Any]]
Send = Callable[[Any], Awaitable[None]]

LOCAL_HOSTS = frozenset({"127.0.0.1", "localhost", "[::1]", "::1"})


class LocalOnly:
    """ASGI middleware: answers 403 to a foreign Host, a foreign or null Origin, and cross-site requests that change."""

    def __init__(self, app: Callable[[Scope, Receive, Send], Awaitable[None]]) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] in ("http", "websocket") and (reason := refusal(scope)) is not None:
            body = f"SFTM Studio answers only its own pages on this machine ({reason}).".encode()
            headers = [(b"content-type", b"text/plain; charset=utf-8")]
            await send({"type": "http.response.start", "status": 403, "headers": headers})
            await send({"type": "http.response.body", "body": body})
            return
        await self._app(scope, receive, send)


def refusal(scope: Scope) -> str | None:
    """Why a request is refused; None when it is not."""
    headers = {name.decode("latin-1").lower(): value.decode("latin-1") for name, value in scope["headers"]}
    if _host_name(headers.get("host", "")) not in LOCAL_HOSTS:
        return "foreign host"
    origin = headers.get("origin")
    if origin is not None and urlsplit(origin).netloc != headers.get("host"):
        return "foreign origin"
    if headers.get("sec-fetch-site") in ("cross-site", "same-site") and scope.get("method") not in ("GET", "HEAD"):
        return "cross-site request"
    return None


def _host_name(host: str) -> str:
    if host.startswith("["):
        return host.partition("]")[0] + "]"
    return host.rpartition(":")[0] if ":" in host else host
