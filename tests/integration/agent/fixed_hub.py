"""An existing hub that speaks the *fixed* rows of the wire protocol and nothing else.

Written from the protocol with the standard library; nothing of the project is imported. The agent must work
against it unchanged: no ETag, no `known`, no generation, no deregister.
"""

from __future__ import annotations

import hashlib
import json
import re
import socket
import ssl
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
    token: str
    at: float = field(default_factory=time.monotonic)


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that goes away, or does not believe the certificate, is no news."""


class FixedHub:
    """Start it, set `task` or `stop`, read `seen`. `status` other than 200 makes every call fail with it.

    `manner` other than "" is how it misbehaves: "nonsense", "slow" or "reset". With `tls` it speaks https.
    """

    def __init__(self, port: int = 0, tls: ssl.SSLContext | None = None) -> None:
        self.tokens = {TOKEN}
        self.task: dict[str, Any] | None = None
        self.stop = False
        self.status = 200
        self.manner = ""
        self.closed = False
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

        self._server = _Server(("127.0.0.1", port), Handler)
        if tls is not None:  # shaking hands is for each connection's own thread
            self._server.socket = tls.wrap_socket(
                self._server.socket, server_side=True, do_handshake_on_connect=False
            )
        self.url = f"{'https' if tls else 'http'}://127.0.0.1:{self._server.server_port}"
        self.port = self._server.server_port
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def close(self) -> None:
        """Stop listening, and cut the connections that are kept alive, as a process that ends does."""
        self.closed = True
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
        token = (request.headers.get("Authorization") or "").removeprefix("Bearer ")
        ok = token in self.tokens
        query = {key: values[0] for key, values in parse_qs(parts.query).items()}
        self.seen.append(Seen(request.command, parts.path, query, body, ok, token))
        if self.manner:
            self._misbehave(request)
        elif not ok:
            self._answer(request, 401, {"error": "unauthorized"})
        elif self.status != 200:
            self._answer(request, self.status, {"error": "broken"})
        else:
            self._dispatch(request, f"{request.command} {parts.path}", body)

    def _misbehave(self, request: BaseHTTPRequestHandler) -> None:
        if self.manner == "slow":
            time.sleep(30)
        elif self.manner == "nonsense":
            self._answer(request, 200, ["<html>", {"node_id": 7, "known": "perhaps"}])
        request.close_connection = True

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
    def _answer(request: BaseHTTPRequestHandler, status: int, body: Any, etag: str | None = None) -> None:
        payload = json.dumps(body).encode()
        request.send_response(status)
        if etag is not None:
            request.send_header("ETag", etag)
        request.send_header("Content-Type", "application/json")
        request.send_header("Content-Length", str(len(payload)))
        request.end_headers()
        request.wfile.write(payload)


class TalkingHub(FixedHub):
    """One that also says what later hubs may, and holds the question for the task until that changes.

    `additions` stand in every heartbeat's answer, `registered` in every registration's.
    """

    def __init__(self, port: int = 0, tls: ssl.SSLContext | None = None) -> None:
        self.additions: dict[str, Any] = {}
        self.registered: dict[str, Any] = {}
        self._log_orders: list[dict[str, Any]] = []
        super().__init__(port, tls)

    def log(self, instance: int = 0, lines: int = 200, previous: int = 0, seconds: float = 15) -> Any:
        """Order the end of a container's log with the next heartbeat; what the node brought."""
        order = {"id": uuid.uuid4().hex, "instance": instance, "lines": lines, "previous": previous}
        self._log_orders.append(order)
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            for brought in self.calls("/gridnode/logs"):
                if brought.body["id"] == order["id"]:
                    return brought.body
            time.sleep(0.05)
        raise AssertionError(f"no log within {seconds:g} s: {order}")

    def beats(self) -> list[Any]:
        """The heartbeats' bodies so far."""
        return [seen.body for seen in self.calls("/gridnode/heartbeat")]

    def errors(self) -> list[Any]:
        """Every error that heartbeats brought."""
        return [error for beat in self.beats() for error in beat.get("errors", [])]

    def last_exit(self, instance: int = 0) -> Any:
        """How the slot's last container ended, by the last heartbeat; None if none did."""
        slots = self.beats()[-1]["containers"] if self.beats() else []
        return next((slot.get("last_exit") for slot in slots if slot["instance"] == instance), None)

    def _dispatch(self, request: BaseHTTPRequestHandler, call: str, body: Any) -> None:
        if call == "POST /gridnode/heartbeat":
            orders, self._log_orders = self._log_orders, []
            more = {"logs": orders} if orders else {}
            self._answer(request, 200, {"stop_requested": self.stop} | self.additions | more)
        elif call == "POST /gridnode/register":
            own = {"node_id": body["node_id"] or str(uuid.uuid4()), "current_task": self.task}
            self._answer(request, 200, own | self.registered)
        elif call == "POST /gridnode/logs":
            self._answer(request, 200, {})
        elif call == "GET /gridnode/task":
            self._hold(request)
        else:
            super()._dispatch(request, call, body)

    def _hold(self, request: BaseHTTPRequestHandler) -> None:
        prefer = re.fullmatch(r"wait=(\d+)", request.headers.get("Prefer") or "")
        asked, deadline = request.headers.get("If-None-Match"), time.monotonic()
        if prefer:  # one that asks for no wait is told at once
            deadline += min(20, int(prefer[1]))
        while asked == self._etag() and time.monotonic() < deadline and self._is_well():
            time.sleep(0.05)
        tag = self._etag()
        if tag == asked:
            request.send_response(304)
            request.send_header("ETag", tag)
            request.end_headers()
        else:
            self._answer(request, 200, self.task, tag)

    def _is_well(self) -> bool:
        return self.status == 200 and not self.manner and not self.closed

    def _etag(self) -> str:
        return f'"{hashlib.sha256(json.dumps(self.task).encode()).hexdigest()[:16]}"'


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
