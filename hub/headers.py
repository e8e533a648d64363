"""What a browser must know of every answer: set in one place, around everything else.

Nodes' frequent answers (heartbeats and tasks) are left as they are: no browser asks for them, they carry a
token's secrets only to who sent it, and shared caches keep no answer to a request with `Authorization`.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from hub.door import Asgi, Message, Receive, Scope, Send

BARE = frozenset({"/gridnode/heartbeat", "/gridnode/task"})
"""Paths whose answers get nothing."""

Header = tuple[bytes, bytes]

SAFE: tuple[Header, ...] = (
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
    (b"x-frame-options", b"DENY"),
)
POLICY: Header = (b"content-security-policy", b"default-src 'none'; frame-ancestors 'none'")
"""For whatever is no page; a page sets a policy of its own."""
NO_STORE: Header = (b"cache-control", b"no-store")
"""For whatever does not say itself how long it may be kept, whichever way its path was written."""

SHARED = ("/api/", "/openapi.json", "/health")
"""Beginnings of paths that pages of other origins may ask for, where the configuration names those."""
ALLOWED = {
    b"access-control-allow-methods": b"GET, POST, PATCH, DELETE",
    b"access-control-allow-headers": b"Authorization, Content-Type, If-Match, Last-Event-ID",
    b"access-control-max-age": b"600",
}
EXPOSED: Header = (b"access-control-expose-headers", b"ETag, Retry-After, Allow")
VARY: Header = (b"vary", b"Origin")


class Headers:
    """An ASGI application around another one. Which origins may ask is exact; no cookie ever counts."""

    def __init__(self, inner: Asgi, origins: Collection[str] = ()) -> None:
        self._inner = inner
        self._origins = frozenset(origin.encode() for origin in origins)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        path = scope.get("path", "")
        if scope["type"] != "http" or path in BARE:
            await self._inner(scope, receive, send)
            return
        added = [*SAFE, NO_STORE]
        if self._origins and path.startswith(SHARED):
            added.append(VARY)
            origin = _header(scope, b"origin")
            if origin in self._origins:
                added += [(b"access-control-allow-origin", origin), EXPOSED]
                if scope["method"] == "OPTIONS" and _header(scope, b"access-control-request-method"):
                    await _answer_preflight(added, send)
                    return

        async def dressed(message: Message) -> None:
            if message["type"] == "http.response.start":
                message = {**message, "headers": _dress(list(message["headers"]), added)}
            await send(message)

        await self._inner(scope, receive, dressed)


def _dress(given: list[Header], added: list[Header]) -> list[Header]:
    """The headers of an answer and those that it lacks of `added`."""
    has = {name for name, _ in given}
    wanted = added if b"content-security-policy" in has else [*added, POLICY]
    return [*given, *(header for header in wanted if header[0] not in has)]


async def _answer_preflight(headers: list[Header], send: Send) -> None:
    """Say what a page of this origin may send; browsers ask that without a token."""
    start: dict[str, Any] = {"type": "http.response.start", "status": 204}
    await send({**start, "headers": [*headers, *ALLOWED.items()]})
    await send({"type": "http.response.body", "body": b"", "more_body": False})


def _header(scope: Scope, name: bytes) -> bytes:
    """The value of a request's header; empty where it was not sent, or more than once."""
    values = [value for given, value in scope["headers"] if given.lower() == name]
    return values[0] if len(values) == 1 else b""
