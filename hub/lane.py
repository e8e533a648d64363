"""The fast way in for our agents' two frequent requests, on the hub's one port.

A whole web server and framework for each heartbeat and held request is most of what ten thousand nodes would
cost. A Lane is a connection that answers those two itself if they are plain (`plain_http.py`) and allowed;
at the first other one it hands the connection to the real server, with all bytes that it has not answered,
and is gone. So there is one place for everything difficult, and it is not here. A request that is held is no
task, but this object and a timer.
"""

from __future__ import annotations

import asyncio
import json
import re
from collections import deque
from collections.abc import Awaitable, Callable, Coroutine
from email.utils import formatdate
from time import perf_counter, time
from typing import Any
from urllib.parse import unquote

import structlog
from pydantic import ValidationError

from gridcore.platforms import DEFAULT_PLATFORM, canonical_platform
from gridcore.protocol import HeartbeatRequest
from hub.bearer import Bearers
from hub.events import Actor
from hub.held import Held
from hub.longpoll import Known, parse_wait
from hub.node_calls import NODE_ID, NUDGE, Found, NodeCalls, Question, spread
from hub.plain_http import (
    HEARTBEAT,
    INCOMPLETE,
    MOST_BODY,
    MOST_HEAD,
    TASK,
    PlainRequest,
    Unfit,
    read_request,
)
from hub.roles import Rights, may_act_for
from hub.tallies import Requests

SLOW = 5.0
"""Seconds that a plain request may take to arrive; then the real server waits for the rest of it."""

TOLD_AT_ONCE = 16_384
"""Held requests that are answered before others have their turn. To tell a node takes about 30 µs, to take in
what it asks then three times that: in turns, the last ones would wait for what the first ones ask."""

Takeover = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]

_HEARTBEAT, _TASK = HEARTBEAT.decode(), TASK.decode()
_METHODS = {_HEARTBEAT: "POST", _TASK: "GET"}
# Pydantic takes them for numbers, and JSON has none of them.
_NO_JSON = re.compile(rb"NaN|Infinity")
_NUDGE = b"%s: %s\r\n" % (NUDGE[0].lower().encode(), NUDGE[1].encode())

log = structlog.get_logger()


class Lanes:
    """All lanes of this hub, and what they share."""

    def __init__(self, calls: NodeCalls, bearers: Bearers, rights: Rights, requests: Requests) -> None:
        self.calls = calls
        self.bearers = bearers
        self.rights = rights
        self.requests = requests
        self.loop = asyncio.get_running_loop()
        self.all: set[Lane] = set()
        self.tasks: set[asyncio.Task[None]] = set()
        self._woken: deque[Lane] = deque()
        self._date = -1.0, b""

    @property
    def date(self) -> bytes:
        """The header, made once a second."""
        second = time() // 1
        if second != self._date[0]:
            self._date = second, b"date: %s\r\n" % formatdate(second, usegmt=True).encode()
        return self._date[1]

    def wake(self, lane: Lane) -> None:
        """Have a lane look whether there is news, soon: those of a whole fleet are woken at once."""
        if not self._woken:
            self.loop.call_soon(self._look)
        self._woken.append(lane)

    def _look(self) -> None:
        for _ in range(min(len(self._woken), TOLD_AT_ONCE)):
            self._woken.popleft().look()
        if self._woken:
            self.loop.call_soon(self._look)

    def tidy(self, keep_alive: float) -> None:
        """Close what has been idle for `keep_alive` seconds, hand over what arrives too slowly."""
        now = self.loop.time()
        for lane in list(self.all):
            lane.tidy(now, keep_alive)

    def close_idle(self) -> None:
        """The hub stops: who is not being answered is let go."""
        for lane in list(self.all):
            lane.tidy(float("inf"), 0)


class Lane(asyncio.Protocol):
    """One connection, until it is handed over."""

    __slots__ = ("_buffer", "_held", "_is_busy", "_lanes", "_peer", "_since", "_takeover", "_transport")

    def __init__(self, lanes: Lanes, takeover: Takeover) -> None:
        self._lanes = lanes
        self._takeover = takeover
        self._transport: asyncio.Transport | None = None
        self._buffer = b""
        self._is_busy = False
        """A task is working out an answer."""
        self._held: Held | None = None
        self._since = lanes.loop.time()
        self._peer: str | None = None

    # --- The connection ------------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)  # noqa: S101  what create_server gives
        self._transport = transport
        peer = transport.get_extra_info("peername")
        self._peer = peer[0] if isinstance(peer, tuple) else None
        self._lanes.all.add(self)

    def connection_lost(self, _error: Exception | None) -> None:
        self._transport = None
        self._lanes.all.discard(self)
        self._let_go()

    def data_received(self, data: bytes) -> None:
        if not self._buffer:
            self._since = self._lanes.loop.time()
        self._buffer = self._buffer + data if self._buffer else data
        if not (self._is_busy or self._held):
            self._read()
        elif len(self._buffer) > MOST_HEAD + MOST_BODY and self._transport is not None:
            self._transport.pause_reading()

    def tidy(self, now: float, keep_alive: float) -> None:
        """Do what is due on a connection on which nothing happens."""
        if self._is_busy or self._held or self._transport is None:
            return
        if self._buffer and now - self._since >= SLOW:
            self._hand_over()
        elif not self._buffer and now - self._since >= keep_alive:
            self._transport.close()

    def _hand_over(self) -> None:
        """Let the real server go on from here, for good."""
        transport, self._transport = self._transport, None
        self._lanes.all.discard(self)
        if transport is None or transport.is_closing():
            return
        loop = self._lanes.loop
        # The limit bounds what is read ahead of a slow application; more than a request has.
        protocol = asyncio.StreamReaderProtocol(asyncio.StreamReader(loop=loop), self._takeover, loop=loop)
        transport.set_protocol(protocol)
        protocol.connection_made(transport)
        transport.resume_reading()
        if self._buffer:
            protocol.data_received(self._buffer)
        self._buffer = b""

    # --- Requests ------------------------------------------------------------------------------------------

    def _read(self) -> None:
        if self._lanes.calls.waiters.is_closed:
            return self._hand_over()
        request = read_request(self._buffer)
        if request is INCOMPLETE:
            return None
        by = self._admit(request) if isinstance(request, PlainRequest) else None
        if by is None or isinstance(request, Unfit):
            return self._hand_over()
        if request.path == HEARTBEAT:
            return self._take_heartbeat(request, by)
        return self._take_question(request, by)

    def _admit(self, request: PlainRequest) -> Actor | None:
        """Who it is, or None where the door has to judge."""
        bearers = self._lanes.bearers
        source = bearers.source({"client": (self._peer, 0), "headers": request.headers})
        by = bearers.identify(request.headers, source)
        if by is None or by.grant is None:
            return by
        path = request.path.decode()
        return by if self._lanes.rights.allow(by.grant.role, _METHODS[path], path) else None

    def _take_heartbeat(self, request: PlainRequest, by: Actor) -> None:
        if _NO_JSON.search(request.body):
            return self._hand_over()
        try:
            report = HeartbeatRequest.model_validate_json(request.body)
        except ValidationError:
            return self._hand_over()
        if not may_act_for(by, report.node_id):
            return self._hand_over()

        async def answer() -> None:
            wire = await self._lanes.calls.heartbeat(report, by)
            body = _with_body(json.dumps(wire).encode(), self._lanes.date)
            self._answer(request.size, body, _HEARTBEAT, 200, perf_counter() - began)

        began = perf_counter()
        return self._work(answer())

    def _take_question(self, request: PlainRequest, by: Actor) -> None:
        parts = request.query.decode().split("&")
        asked = dict(part.partition("=")[::2] for part in parts)
        asker = asked.get("node_id", "")
        # Who does not say which node it is, or says something twice, is none of our agents.
        if not NODE_ID.fullmatch(asker) or len(asked) != len(parts):
            return self._hand_over()
        if not may_act_for(by, asker):
            return self._hand_over()
        calls = self._lanes.calls
        arrival = calls.given(calls.store.latest_tasks, asker).revision
        known = Known(request.header(b"if-none-match").decode(), arrival)
        platform = canonical_platform(unquote(asked.get("platform", "")) or DEFAULT_PLATFORM)
        wait = spread(parse_wait(request.header(b"prefer").decode()))
        self._held = Held(self, Question(asker, platform, known), request.size)
        # Among the waiters before anything is looked at, so that nothing is missed.
        calls.waiters.add(asker, self._held)
        return self._work(self._arrive(self._held, wait))

    async def _arrive(self, held: Held, wait: float) -> None:
        found = await self._lanes.calls.arrive(held.question, may_hold=wait > 0)
        if found is not None:
            self._tell(held, found)
        elif self._held is held:
            held.hold(wait)

    async def _look(self, held: Held) -> None:
        found = await self._lanes.calls.look(held.question)
        if found is not None:
            self._tell(held, found)

    def look(self) -> None:
        """Something may have happened that concerns the question that is held."""
        held = self._held
        if held is None:
            return
        if self._is_busy:
            held.is_stale = True
            return
        found = self._lanes.calls.glance(held.question)
        if found is not None:
            self._tell(held, found)
        else:
            self._work(self._look(held))

    def over(self, held: Held) -> None:
        """Its time is up."""
        if self._is_busy:
            held.is_over = True
        elif self._held is held:
            self._tell(held, self._lanes.calls.over(held.question))

    def wake(self, _held: Held) -> None:
        self._lanes.wake(self)

    def _tell(self, held: Held, found: Found) -> None:
        if self._held is not held:
            return
        self._let_go()
        seconds = perf_counter() - held.began - held.seconds
        headers = b'%setag: "%s"\r\n' % (self._lanes.date, found.given.revision.encode())
        if found.is_new:
            body = self._lanes.calls.body(found, held.question.platform)
            self._answer(held.size, _with_body(body, headers), _TASK, 200, seconds)
            return
        head = b"HTTP/1.1 304 Not Modified\r\n" + headers + (_NUDGE if found.is_nudge else b"") + b"\r\n"
        self._answer(held.size, head, _TASK, 304, seconds)

    def _let_go(self) -> None:
        held, self._held = self._held, None
        if held is not None:
            held.let_go()
            self._lanes.calls.waiters.discard(held.question.asker, held)

    # --- Work and answers ----------------------------------------------------------------------------------

    def _work(self, answering: Coroutine[Any, Any, None]) -> None:
        self._is_busy = True
        task = self._lanes.loop.create_task(self._finish(answering))
        self._lanes.tasks.add(task)
        task.add_done_callback(self._lanes.tasks.discard)

    async def _finish(self, answering: Coroutine[Any, Any, None]) -> None:
        try:
            await answering
        except Exception as error:  # whatever it is: the real server does it again, and says what is wrong
            log.debug("a plain request is handed over", error=repr(error))
            self._is_busy = False
            self._let_go()
            self._hand_over()
            return
        self._is_busy = False
        held = self._held
        if held is not None and held.is_over:
            self.over(held)
        elif held is not None and held.is_stale:
            held.is_stale = False
            self.look()
        elif held is None and self._buffer and self._transport is not None:
            self._transport.resume_reading()
            self._read()

    def _answer(self, size: int, answer: bytes, path: str, status: int, seconds: float) -> None:
        """Answer the request that the buffer begins with, which took so many seconds."""
        self._lanes.requests.add(path, status, seconds)
        transport = self._transport
        if transport is None:
            return
        self._buffer = self._buffer[size:]
        self._since = self._lanes.loop.time()
        transport.write(answer)
        if self._lanes.calls.waiters.is_closed:
            transport.close()
        elif self._buffer and not self._is_busy:
            self._lanes.loop.call_soon(self._go_on)

    def _go_on(self) -> None:
        if self._buffer and not (self._is_busy or self._held) and self._transport is not None:
            self._transport.resume_reading()
            self._read()


def _with_body(body: bytes, headers: bytes) -> bytes:
    head = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n" % len(body)
    return head + headers + b"\r\n" + body
