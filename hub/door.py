"""The outermost layer of the application: what must be settled before the framework looks at a request.

Who has no valid token learns nothing, not even which paths exist, and waits for that. Whose token does not
allow what it asks for learns nothing of what there is. What the framework would stumble over (targets that
are no path, WebSockets) ends here, and so do bodies that are too large. Those are read on, up to a limit, and
dropped: a client that is still sending never sees an answer on a connection that is reset.
"""

from __future__ import annotations

import string
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any
from urllib.parse import quote, urlsplit

from quart import Request, Response

from gridcore.protocol import MAX_LOG_BYTES
from hub.bearer import Bearers
from hub.errors import StoreUnavailable
from hub.events import Actor
from hub.failures import Failures
from hub.problems import http_problem, store_problem
from hub.refusals import NOBODY, Refusals
from hub.roles import OPEN_PATHS, Rights
from hub.waiters import Waiters

MAX_BODY = 64 * 1024
"""Bytes that a request body may have."""

LARGE_BODIES = {"/gridnode/logs": MAX_LOG_BYTES}
"""The exceptions to that, for who has a valid token."""

MAX_DRAIN = 8 * 1024 * 1024
"""Bytes of a body that is too large which are read before it is refused."""

BODY_TIME = 20.0
"""Seconds in which a body must arrive."""

QUERY_CHARACTERS = string.punctuation
"""What may stand in a query as it is, besides letters and digits; other bytes are escaped."""

ACTOR = "gridcore.actor"
"""Where in a request's scope stands who it is from."""

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
Asgi = Callable[[Scope, Receive, Send], Awaitable[None]]


class Door:
    """An ASGI application in front of another one."""

    def __init__(
        self,
        inner: Asgi,
        bearers: Bearers,
        rights: Rights,
        failures: Failures,
        refusals: Refusals,
        waiters: Waiters,
    ) -> None:
        self._inner = inner
        self._bearers = bearers
        self._rights = rights
        self._failures = failures
        self._refusals = refusals
        self._waiters = waiters

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self._inner(scope, receive, send)
        elif scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": 1008})
        else:
            path, query = _path(scope["path"]), quote(scope["query_string"], safe=QUERY_CHARACTERS)
            # By what name the hub was called decides nothing, and the framework stumbles over some.
            headers = [*(header for header in scope["headers"] if header[0] != b"host"), (b"host", b"hub")]
            asked = {**scope, "path": path, "query_string": query.encode(), "headers": headers}
            await self._admit(asked, receive, send)

    async def _admit(self, scope: Scope, receive: Receive, send: Send) -> None:
        source = self._bearers.source(scope)
        by, away = None, None
        try:
            by = self._bearers.identify(scope["headers"], source)
        except StoreUnavailable as error:  # nobody can tell yet whether the token is good
            away = error
        limit = LARGE_BODIES.get(scope["path"], MAX_BODY) if by is not None else MAX_BODY
        try:
            async with self._waiters.limit(BODY_TIME):
                body = await _read_body(receive, limit)
        except TimeoutError:
            await _answer(http_problem(408), send)
            return
        except _Gone:
            return
        if away is not None and scope["path"] not in OPEN_PATHS:
            await _answer(store_problem(away), send)
            return
        refused = None if scope["path"] in OPEN_PATHS else await self._refuse(by, scope, source)
        if refused is not None:
            await _answer(http_problem(refused), send)
        elif scope["path"].startswith("//"):  # the framework would take the first slash for none
            await _answer(http_problem(404), send)
        elif body is None:
            await _answer(http_problem(413), send)
        else:
            scope[ACTOR] = by or Actor(NOBODY, source)
            await self._inner(scope, _replay(body, receive), send)

    async def _refuse(self, by: Actor | None, scope: Scope, source: str | None) -> int | None:
        """The status with which this request ends here, if it does."""
        if by is None:
            self._refusals.note(Actor(NOBODY, source), 401)
            return 401 if await self._failures.slow_down(source) else 429
        if by.grant is None or self._rights.allow(by.grant.role, scope["method"], scope["path"]):
            return None
        self._refusals.note(by, 403)
        return 403


def actor(request: Request) -> Actor:
    """Who a request is from."""
    found: Actor = request.scope[ACTOR]  # type: ignore[literal-required]  # ours, beside what ASGI has
    return found


class _Gone(Exception):
    """The client went away."""


async def _read_body(receive: Receive, limit: int) -> bytes | None:
    """The whole body, or None if it has more than `limit` bytes."""
    body, size, more = bytearray(), 0, True
    while more and size <= MAX_DRAIN:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise _Gone
        chunk = message.get("body", b"")
        size += len(chunk)
        if size <= limit:
            body += chunk
        more = message.get("more_body", False)
    return bytes(body) if size <= limit else None


def _replay(body: bytes, receive: Receive) -> Receive:
    """A `receive` that gives the body that was read already, and then what comes after it."""
    first: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

    async def replayed() -> Message:
        return first.pop() if first else await receive()

    return replayed


def _path(target: str) -> str:
    """The path of a request target, also of one in absolute form; `/` where there is none."""
    if not target.startswith("/"):
        try:
            target = urlsplit(target).path
        except ValueError:
            target = "/"
    return target if target.startswith("/") else "/"


async def _answer(response: Response, send: Send) -> None:
    body = await response.get_data(as_text=False)
    headers = [(name.lower().encode(), value.encode()) for name, value in response.headers.items()]
    await send({"type": "http.response.start", "status": response.status_code, "headers": headers})
    await send({"type": "http.response.body", "body": body, "more_body": False})
