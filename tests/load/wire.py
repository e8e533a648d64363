"""HTTP/1.1 as the fleet simulator speaks it: whole requests and whole answers as bytes. Pure.

A client library costs more than the hub that is measured, so nodes send what our agent's aiohttp sends, made
by hand, and read only what a node has to look at.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

PLATFORM = "linux/amd64"
CONTAINERS = 4
"""That a simulated node runs, and its heartbeats report."""


class Answer(NamedTuple):
    """One answer; `head` is its status line and headers in lower case."""

    status: int
    head: bytes
    body: bytes

    def header(self, name: bytes) -> bytes | None:
        """A header's value by its lower-case name."""
        start = self.head.find(b"\r\n" + name + b":")
        if start < 0:
            return None
        end = self.head.find(b"\r\n", start + 2)
        return self.head[start + len(name) + 3 : end if end >= 0 else None].strip()


class NotOurs(Exception):
    """An answer that this client cannot read: chunked, or no HTTP at all."""


def split_answer(data: bytes) -> tuple[Answer, bytes] | None:
    """The first whole answer of what has arrived and what is left of it; None: there is more to come."""
    end = data.find(b"\r\n\r\n")
    if end < 0:
        return None
    head = data[:end].lower()
    if not head.startswith(b"http/1.1 "):
        raise NotOurs(data[:80])
    answer = Answer(int(head[9:12]), head, b"")
    if answer.status in (204, 304):
        return answer, data[end + 4 :]
    length = answer.header(b"content-length")
    if length is None:
        raise NotOurs(f"an answer without a length: {head.decode(errors='replace')}")
    whole = end + 4 + int(length)
    if len(data) < whole:
        return None
    return answer._replace(body=data[end + 4 : whole]), data[whole:]


@dataclass(frozen=True)
class Requests:
    """What nodes send to one hub, headers as aiohttp writes them."""

    port: int
    token: str

    def register(self, node_id: str) -> bytes:
        """Of a node as our agent describes itself."""
        return self._post(
            b"/gridnode/register",
            b'{"hostname": "%(id)s", "architecture": "x86_64", "cpu_count": 4, "platform": "linux/amd64", '
            b'"agent_version": "0.6.0", "labels": {"room": "cellar"}, "gpu_count": 0, '
            b'"machine": "machine-of-%(id)s", "node_id": "%(id)s"}' % {b"id": node_id.encode()},
        )

    def ask(self, node_id: str, etag: bytes | None, wait: int) -> bytes:
        """For the current task; with an ETag the request is held for `wait` seconds at most."""
        known = b"" if etag is None else b"If-None-Match: %s\r\nPrefer: wait=%d\r\n" % (etag, wait)
        target = b"/gridnode/task?platform=%s&node_id=%s" % (PLATFORM.encode(), node_id.encode())
        return b"GET %s HTTP/1.1\r\n%s%s\r\n" % (target, self._headers(), known)

    def beat(self, node_id: str, generation: bytes, age: float) -> bytes:
        """A heartbeat with CONTAINERS running for `age` seconds."""
        slots = b", ".join(
            b'{"instance": %d, "cpu": %d, "state": "running", "restarts": 0, "age": %.6f}'
            % (slot, slot, age + slot / 8)
            for slot in range(CONTAINERS)
        )
        return self._post(
            b"/gridnode/heartbeat",
            b'{"node_id": "%s", "status": "Running", "active_containers": %d, "task": "bench", '
            b'"generation": "%s", "containers": [%s], "errors": [], "warnings": [], "paused": false}'
            % (node_id.encode(), CONTAINERS, generation.strip(b'"'), slots),
        )

    def _post(self, path: bytes, body: bytes) -> bytes:
        length = b"Content-Length: %d\r\nContent-Type: application/json\r\n" % len(body)
        return b"POST %s HTTP/1.1\r\n%s%s\r\n%s" % (path, self._headers(), length, body)

    def _headers(self) -> bytes:
        return (
            b"Host: 127.0.0.1:%d\r\nAuthorization: Bearer %s\r\nAccept: */*\r\n"
            b"Accept-Encoding: gzip, deflate\r\nUser-Agent: Python/3.11 aiohttp/3.14.5\r\n"
            % (self.port, self.token.encode())
        )
