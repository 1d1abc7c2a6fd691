"""Serving others, in a classroom or a lab: a token opens the app, and everybody is told apart by a cookie.

The token is made anew at every start, and printed with the address. A browser that brings it gets a cookie, and is sent
on to the same page without the token, so that it is in no history and no link. What follows carries the cookie only.
"""

from __future__ import annotations

import hashlib
import hmac
import ipaddress
import json
import secrets
import socket
import time
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, field
from http.cookies import CookieError, SimpleCookie
from pathlib import Path
from urllib.parse import parse_qsl, urlencode

import psutil
from cachetools import LRUCache

from sftm_app.errors import InputError
from sftm_app.ui.guard import (
    VISITOR,
    App,
    Message,
    Receive,
    Scope,
    Send,
    headers_of,
    paths_in,
    read_body,
    refuse,
    replay,
)

COOKIE = "sftm_visitor"
FREE_TRIES = 5
LONGEST_WAIT_S = 300.0
MOST_KNOWN = 10_000
_UPLOAD_ROUTE = "/gradio_api/upload"
# Gradio asks itself for this once, to see that it is up.
_STARTUP_ROUTE = "/gradio_api/startup-events"


@dataclass(frozen=True)
class Door:
    """How others get in.

    Attributes:
        address: the address to listen at, such as "0.0.0.0".
        hosts: names and addresses by which the app may be called, without port.
        token: opens the app.
    """

    address: str
    hosts: frozenset[str]
    token: str = field(default_factory=lambda: secrets.token_urlsafe(24), repr=False)

    def urls(self, port: int) -> list[str]:
        """The addresses that open the app, without those of this machine alone."""
        outside = [host for host in sorted(self.hosts) if host not in ("localhost", "127.0.0.1", "[::1]")]
        return [f"http://{host}:{port}/?token={self.token}" for host in outside or sorted(self.hosts)]


def open_door(address: str, names: Collection[str] = ()) -> Door:
    """A door at an address, for the names of this machine and those that are given.

    Raises:
        InputError: the address is none of this machine's.
    """
    try:
        wanted = ipaddress.ip_address(address.strip("[]"))
    except ValueError:
        raise InputError(
            f"--listen {address[:80]}: is not an address. Leave it out, or give one such as 0.0.0.0."
        ) from None
    own = {wanted} if not wanted.is_unspecified else set(_addresses(4 if wanted.version == 4 else None))
    hosts = {f"[{one}]" if one.version == 6 else str(one) for one in own}
    hosts |= {"localhost", "127.0.0.1", "[::1]", socket.gethostname().lower()} | {name.lower() for name in names}
    return Door(str(wanted), frozenset(hosts))


def _addresses(version: int | None) -> Iterator[ipaddress.IPv4Address | ipaddress.IPv6Address]:
    """The addresses of this machine, of one version of IP or of both; not those of one network card alone."""
    for cards in psutil.net_if_addrs().values():
        for card in cards:
            if card.family in (socket.AF_INET, socket.AF_INET6) and "%" not in card.address:
                found = ipaddress.ip_address(card.address)
                if version in (None, found.version):
                    yield found


class Visitors:
    """ASGI middleware behind the guard: lets in who brings the token or a cookie of ours, and tells visitors apart.

    Args:
        app: the app behind it.
        token: what opens it.
        uploads: the folder of uploaded files. A visitor's own are given to nobody else.
        clock: the time in seconds, from any start.
    """

    def __init__(self, app: App, token: str, uploads: Path, clock: Callable[[], float] = time.monotonic) -> None:
        self._app, self._token, self._uploads, self._clock = app, token, str(uploads), clock
        self._secret = secrets.token_bytes(32)
        self._tries: LRUCache[str, tuple[int, float]] = LRUCache(MOST_KNOWN)
        self._owners: LRUCache[str, frozenset[str]] = LRUCache(MOST_KNOWN)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] not in ("http", "websocket") or _is_own_startup(scope):
            await self._app(scope, receive, send)
            return
        visitor = self._visitor_of(scope)
        if visitor is None:
            await self._at_the_door(scope, send)
            return
        scope[VISITOR] = visitor
        if scope["type"] == "http" and scope["path"].startswith("/gradio_api/file"):
            if self._is_of_others(scope["path"].partition("file")[2][1:], visitor):
                await refuse(scope, send, 403, "This file was uploaded by somebody else.")
                return
        elif scope["type"] == "http" and scope["method"] == "POST":
            if scope["path"].startswith(_UPLOAD_ROUTE):
                send = self._noting(visitor, send)
            else:
                body = await read_body(receive)
                if body is None or any(self._is_of_others(path, visitor) for path in paths_in(body)):
                    await refuse(scope, send, 403, "This names a file that was uploaded by somebody else.")
                    return
                receive = replay(body, receive)
        await self._app(scope, receive, send)

    def _visitor_of(self, scope: Scope) -> str | None:
        try:
            morsel = SimpleCookie(headers_of(scope).get("cookie", "")).get(COOKIE)
        except (CookieError, ValueError):
            return None
        visitor, _, signature = (morsel.value if morsel else "").partition(".")
        return visitor if visitor and hmac.compare_digest(signature.encode(), self._sign(visitor).encode()) else None

    def _sign(self, visitor: str) -> str:
        return hmac.new(self._secret, visitor.encode(), hashlib.sha256).hexdigest()

    async def _at_the_door(self, scope: Scope, send: Send) -> None:
        query = parse_qsl(scope.get("query_string", b"").decode("latin-1"))
        given = next((value for name, value in query if name == "token"), None)
        where = (scope.get("client") or ("?",))[0]
        n_wrong, until = self._tries.get(where, (0, 0.0))
        if given is not None and self._clock() < until:
            wait = (b"retry-after", str(int(until - self._clock()) + 1).encode())
            await refuse(
                scope, send, 429, "Too many wrong tokens. Wait, then use the address that was printed.", [wait]
            )
        elif given is None or scope["type"] != "http" or scope["method"] not in ("GET", "HEAD") or scope["path"] != "/":
            text = "Open the address that SFTM Studio printed when it was started. It ends with ?token=..."
            await refuse(scope, send, 401, text)
        elif not hmac.compare_digest(given.encode(), self._token.encode()):
            n_wrong += 1
            wait_s = min(LONGEST_WAIT_S, 2.0 ** (n_wrong - FREE_TRIES)) if n_wrong >= FREE_TRIES else 0.0
            self._tries[where] = (n_wrong, self._clock() + wait_s)
            await refuse(scope, send, 403, "This token is wrong. Use the address that was printed at the last start.")
        else:
            self._tries.pop(where, None)
            visitor = secrets.token_hex(16)
            rest = urlencode([(name, value) for name, value in query if name != "token"])
            secure = "; Secure" if scope.get("scheme") == "https" else ""
            cookie = f"{COOKIE}={visitor}.{self._sign(visitor)}; Path=/; HttpOnly; SameSite=Lax{secure}"
            headers = [(b"location", f"/?{rest}".encode()), (b"set-cookie", cookie.encode())]
            headers += [(b"referrer-policy", b"no-referrer"), (b"cache-control", b"no-store")]
            await refuse(scope, send, 303, "", headers)

    def _is_of_others(self, path: str, visitor: str) -> bool:
        owners = self._owners.get(str(Path(path))) if path.startswith(self._uploads) else None
        return owners is not None and visitor not in owners

    def _noting(self, visitor: str, send: Send) -> Send:
        """A `send` that notes whose the uploaded files are, which the answer lists."""
        chunks: list[bytes] = []

        async def noting(message: Message) -> None:
            if message["type"] == "http.response.body":
                chunks.append(message.get("body", b""))
                if not message.get("more_body"):
                    try:
                        paths = json.loads(b"".join(chunks))
                    except ValueError:
                        paths = []
                    for path in paths if isinstance(paths, list) else []:
                        self._owners[str(path)] = self._owners.get(str(path), frozenset()) | {visitor}
            await send(message)

        return noting


def _is_own_startup(scope: Scope) -> bool:
    """Whether this machine asks itself whether it is up."""
    client, server = ((scope.get(name) or ("",))[0] for name in ("client", "server"))
    return scope["type"] == "http" and scope["path"] == _STARTUP_ROUTE and bool(client) and client == server
