"""An existing hub that speaks the *fixed* rows of the wire protocol and nothing else.

Written from the protocol with the standard library; nothing of the project is imported. The agent must work
against it unchanged: no ETag, no `known`, no generation, no deregister.
"""

from __future__ import annotations

import json
import socket
import threading
import time
import uuid
from contextlib import suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlsplit

TOKEN = "the-token-of-the-fixed-hub"


@dataclass
class Seen:
    """One request as it arrived; `at` on the monotonic clock."""

    method: str
    path: str
    query: dict[str, str]
    body: Any
    token_ok: bool
    at: float = field(default_factory=time.monotonic)


class FixedHub:
    """Start it, set `task` or `stop`, read `seen`. `status` other than 200 makes every call fail with it."""

    def __init__(self, port: int = 0) -> None:
        self.task: dict[str, Any] | None = None
        self.stop = False
        self.status = 200
        self.seen: list[Seen] = []
        self.extra_calls: list[str] = []
        self._connections: list[socket.socket] = []
        hub = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def setup(self) -> None:
                hub._connections.append(self.request)
                super().setup()

            def _serve(self) -> None:
                hub._serve(self)

            do_GET = do_POST = _serve

            def log_message(self, *_args: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", port), Handler)
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        self.port = self._server.server_port
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def close(self) -> None:
        """Stop listening, and cut the connections that are kept alive, as a process that ends does."""
        self._server.shutdown()
        self._server.server_close()
        for connection in self._connections:
            with suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)

    def calls(self, path: str) -> list[Seen]:
        """The requests for one path so far."""
        return [seen for seen in list(self.seen) if seen.path == path]

    def _serve(self, request: BaseHTTPRequestHandler) -> None:
        parts = urlsplit(request.path)
        raw = request.rfile.read(int(request.headers.get("Content-Length") or 0))
        body = json.loads(raw) if raw else None
        ok = request.headers.get("Authorization") == f"Bearer {TOKEN}"
        query = {key: values[0] for key, values in parse_qs(parts.query).items()}
        self.seen.append(Seen(request.command, parts.path, query, body, ok))
        if not ok:
            self._answer(request, 401, {"error": "unauthorized"})
        elif self.status != 200:
            self._answer(request, self.status, {"error": "broken"})
        else:
            self._dispatch(request, f"{request.command} {parts.path}", body)

    def _dispatch(self, request: BaseHTTPRequestHandler, call: str, body: Any) -> None:
        if call == "POST /gridnode/register":
            node_id = body["node_id"] or str(uuid.uuid4())
            self._answer(request, 200, {"node_id": node_id, "current_task": self.task})
        elif call == "POST /gridnode/heartbeat":
            self._answer(request, 200, {"stop_requested": self.stop})
        elif call == "GET /gridnode/task":
            self._answer(request, 200, self.task)
        else:
            self.extra_calls.append(call)
            self._answer(request, 404, {"error": "not found"})

    @staticmethod
    def _answer(request: BaseHTTPRequestHandler, status: int, body: Any) -> None:
        payload = json.dumps(body).encode()
        request.send_response(status)
        request.send_header("Content-Type", "application/json")
        request.send_header("Content-Length", str(len(payload)))
        request.end_headers()
        request.wfile.write(payload)


def task(name: str, image: str, **fields: Any) -> dict[str, Any]:
    """A TaskConfig with exactly the fixed fields."""
    config: dict[str, Any] = {
        "task_name": name,
        "image": image,
        "redis_url": None,
        "input_redis": None,
        "output_redis": None,
        "input_queue": None,
        "output_queue": None,
    }
    return config | fields
