"""The plainest form of HTTP/1.1, read strictly: what nodes send thousands of times, and its answers. Pure.

Not a server: whatever is not exactly of this form is OTHER, also when it is valid, and left to a real one.
So nothing has to be guessed here, and nothing can be understood in another way than that server would.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import Enum

HEARTBEAT = b"/gridnode/heartbeat"
TASK = b"/gridnode/task"

MOST_HEAD = 8 * 1024
MOST_BODY = 64 * 1024
"""Bytes."""

_BEGINNINGS = (b"POST /gridnode/heartbeat HTTP/1.1\r\n", b"GET /gridnode/task HTTP/1.1\r\n")
_ASKING = b"GET /gridnode/task?"
_ASKED = re.compile(rb"GET (/gridnode/task)\?([A-Za-z0-9._~/:=&%+-]*) HTTP/1\.1")
_HEADER = re.compile(rb"([!#$%&'*+.^_`|~0-9A-Za-z-]+):[ \t]*([!-~](?:[ \t!-~]*[!-~])?|)[ \t]*")
_LENGTH = re.compile(rb"\d{1,5}")

_MEANINGFUL = frozenset(
    (b"transfer-encoding", b"expect", b"upgrade", b"te", b"trailer", b"http2-settings", b"content-encoding")
)
"""Headers that would change what the rest means."""
_ONCE = frozenset((b"host", b"content-length", b"authorization", b"if-none-match", b"prefer"))


class Unfit(Enum):
    """What bytes are that are no plain request."""

    INCOMPLETE = "incomplete"
    OTHER = "other"


INCOMPLETE, OTHER = Unfit.INCOMPLETE, Unfit.OTHER


@dataclass(frozen=True, slots=True)
class PlainRequest:
    """One request: names of headers in lower case, `size` is what it has of the bytes."""

    path: bytes
    query: bytes
    headers: tuple[tuple[bytes, bytes], ...]
    body: bytes
    size: int

    def header(self, name: bytes) -> bytes:
        """The value of a header that comes once; empty where it does not come."""
        return next((value for known, value in self.headers if known == name), b"")


def read_request(data: bytes) -> PlainRequest | Unfit:
    """The request that these bytes begin with."""
    if not data.startswith((_ASKING, *_BEGINNINGS)):
        may_become = any(form.startswith(data) for form in (_ASKING, *_BEGINNINGS))
        return INCOMPLETE if may_become else OTHER
    end = data.find(b"\r\n\r\n", 0, MOST_HEAD)
    if end < 0:
        return INCOMPLETE if len(data) < MOST_HEAD else OTHER
    first, *lines = data[:end].split(b"\r\n")
    headers = _read_headers(lines)
    if headers is None:
        return OTHER
    begin = end + 4
    if first.startswith(b"POST"):
        length = next((value for name, value in headers if name == b"content-length"), b"")
        if not _LENGTH.fullmatch(length) or int(length) > MOST_BODY:
            return OTHER
        size = begin + int(length)
        if len(data) < size:
            return INCOMPLETE
        return PlainRequest(HEARTBEAT, b"", headers, data[begin:size], size)
    if any(name == b"content-length" and value != b"0" for name, value in headers):
        return OTHER
    asked = _ASKED.fullmatch(first)
    if asked is None and first.startswith(_ASKING):
        return OTHER
    return PlainRequest(TASK, asked[2] if asked else b"", headers, b"", begin)


def _read_headers(lines: list[bytes]) -> tuple[tuple[bytes, bytes], ...] | None:
    """None where one of them makes the request another than a plain one."""
    headers: list[tuple[bytes, bytes]] = []
    once: set[bytes] = set()
    for line in lines:
        match = _HEADER.fullmatch(line)
        if match is None:
            return None
        name, value = match[1].lower(), match[2]
        if name in _MEANINGFUL or name in once:
            return None
        if name == b"connection" and value.lower() != b"keep-alive":
            return None
        if name in _ONCE:
            once.add(name)
        headers.append((name, value))
    return tuple(headers) if b"host" in once else None


def plain_answer(status: int, headers: bytes, body: bytes, *, is_last: bool) -> bytes:
    """The answer to a plain request, 200 with a body or 304; `headers` are lines that each end in CRLF.

    `is_last` tells the client that the connection ends.
    """
    if status == 200:
        head = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n" % len(body)
    else:
        head = b"HTTP/1.1 304 Not Modified\r\n"
    return head + headers + (b"connection: close\r\n\r\n" if is_last else b"\r\n") + body
