"""The least that can answer a fleet: bare ASGI on the hub's own server, to compare with.

    python -m tests.load.bare_hub PORT

It reads the same JSON, holds the same requests and answers in the same form, but decides nothing, checks
nothing, keeps nothing. What it costs is what Hypercorn costs.
"""

from __future__ import annotations

import asyncio
import gc
import json
import sys
from collections.abc import Awaitable, Callable
from typing import Any

import hypercorn.asyncio
from hypercorn.config import Config

Scope = dict[str, Any]
Receive = Callable[[], Awaitable[dict[str, Any]]]
Send = Callable[[dict[str, Any]], Awaitable[None]]

KEEP_ALIVE, BACKLOG = 75.0, 4096
"""As in hub/serve.py."""


class BareHub:
    """A revision that `finish` raises, the requests that wait for it, and the last report of each node."""

    def __init__(self) -> None:
        self._revision = 0
        self._news = asyncio.Event()
        self._reports: dict[str, Any] = {}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await _lifespan(receive, send)
        elif scope["path"] == "/gridnode/task":
            await self._show_task(scope, send)
        else:
            body = b""
            while True:
                message = await receive()
                body += message.get("body", b"")
                if not message.get("more_body"):
                    break
            await _answer(send, 200, json.dumps(self._act(scope["path"], body)).encode())

    def _act(self, path: str, body: bytes) -> dict[str, Any]:
        message = json.loads(body) if body else {}
        if path == "/gridnode/heartbeat":
            self._reports[message["node_id"]] = message
            return {"stop_requested": False, "known": True, "drain": False}
        if path == "/gridnode/register":
            self._reports[message["node_id"]] = message
            return {"node_id": message["node_id"], "current_task": None}
        if path == "/api/tasks/finish":
            self._revision += 1
            self._news.set()
            self._news = asyncio.Event()
        return {}

    async def _show_task(self, scope: Scope, send: Send) -> None:
        headers = dict(scope["headers"])
        known = headers.get(b"if-none-match")
        wait = float(headers.get(b"prefer", b"wait=0").partition(b"=")[2])
        if known == self._etag and wait:
            try:
                async with asyncio.timeout(wait):
                    await self._news.wait()
            except TimeoutError:
                pass
        if known == self._etag:
            await _answer(send, 304, b"", self._etag)
        else:
            await _answer(send, 200, json.dumps({"task_name": f"t{self._revision}"}).encode(), self._etag)

    @property
    def _etag(self) -> bytes:
        return b'"%d"' % self._revision


async def _answer(send: Send, status: int, body: bytes, etag: bytes | None = None) -> None:
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    if etag is not None:
        headers.append((b"etag", etag))
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})


async def _lifespan(receive: Receive, send: Send) -> None:
    while True:
        message = await receive()
        await send({"type": f"{message['type']}.complete"})
        if message["type"] == "lifespan.shutdown":
            return


async def main(port: int) -> None:
    """Serve until the process is ended."""
    config = Config()
    config.bind = [f"127.0.0.1:{port}"]
    config.backlog = BACKLOG
    config.keep_alive_timeout = KEEP_ALIVE
    config.keep_alive_max_requests = 1_000_000
    config.include_server_header = False
    gc.set_threshold(50_000, 20, 100)
    await hypercorn.asyncio.serve(BareHub(), config, mode="asgi")  # type: ignore[arg-type] # plain dicts


if __name__ == "__main__":
    asyncio.run(main(int(sys.argv[1])))
