"""The fast way in for our agents' two frequent requests, on the hub's one port.

A whole web server and framework for each heartbeat and held request is most of what ten thousand nodes would
cost. A Lane answers those two itself if they are plain (`plain_http.py`) and allowed, and hands every other
request over. So there is one place for everything difficult, and it is not here. A request that is held is no
task, but this object and a timer.
"""

from __future__ import annotations

import json
import re
from collections.abc import Coroutine
from time import perf_counter
from typing import Any
from urllib.parse import unquote

import structlog
from pydantic import ValidationError

from gridcore.platforms import DEFAULT_PLATFORM, canonical_platform
from gridcore.protocol import HeartbeatRequest
from hub import tallies
from hub.connection import HOLDING, WORKING, Connection, HandOver
from hub.events import Actor
from hub.held import Held
from hub.lanes import Lanes
from hub.longpoll import Known, parse_wait
from hub.node_calls import NODE_ID, NUDGE, Found, Question, spread
from hub.plain_http import (
    HEARTBEAT,
    INCOMPLETE,
    TASK,
    PlainRequest,
    Unfit,
    plain_answer,
    read_request,
)
from hub.roles import may_act_for

_METHODS = {HEARTBEAT: "POST", TASK: "GET"}
# Pydantic takes them for numbers, and JSON has none of them.
_NO_JSON = re.compile(rb"NaN|Infinity")
_NUDGE = b"%s: %s\r\n" % (NUDGE[0].lower().encode(), NUDGE[1].encode())

log = structlog.get_logger()


class Lane(Connection):
    """One connection, and the plain request that is being answered on it."""

    __slots__ = ("_held",)

    def __init__(self, lanes: Lanes, hand_to: HandOver) -> None:
        super().__init__(lanes, hand_to)
        self._held: Held | None = None

    # --- Requests ------------------------------------------------------------------------------------------

    def read(self) -> None:
        request = read_request(self.buffer)
        if request is INCOMPLETE:
            return None
        by = self._admit(request) if isinstance(request, PlainRequest) else None
        if by is None or isinstance(request, Unfit):
            return self.hand_over()
        if request.path == HEARTBEAT:
            return self._take_heartbeat(request, by)
        return self._take_question(request, by)

    def _admit(self, request: PlainRequest) -> Actor | None:
        """Who it is, or None where the door has to judge."""
        bearers = self.lanes.bearers
        source = bearers.source({"client": (self.peer, 0), "headers": request.headers})
        by = bearers.identify(request.headers, source)
        if by is None or by.grant is None:
            return by
        method, path = _METHODS[request.path], request.path.decode()
        return by if self.lanes.rights.allow(by.grant.role, method, path) else None

    def _take_heartbeat(self, request: PlainRequest, by: Actor) -> None:
        if _NO_JSON.search(request.body):
            return self.hand_over()
        try:
            report = HeartbeatRequest.model_validate_json(request.body)
        except ValidationError:
            return self.hand_over()
        if not may_act_for(by, report.node_id):
            return self.hand_over()

        async def answer() -> None:
            wire = await self.lanes.calls.heartbeat(report, by)
            body = json.dumps(wire).encode()
            self._say(request.size, 200, b"", body, tallies.HEARTBEAT, perf_counter() - began)

        began = perf_counter()
        return self._work(answer())

    def _take_question(self, request: PlainRequest, by: Actor) -> None:
        parts = request.query.decode().split("&")
        asked = dict(part.partition("=")[::2] for part in parts)
        asker = asked.get("node_id", "")
        # Who does not say which node it is, or says something twice, is none of our agents.
        if not NODE_ID.fullmatch(asker) or len(asked) != len(parts):
            return self.hand_over()
        if not may_act_for(by, asker):
            return self.hand_over()
        calls = self.lanes.calls
        arrival = calls.given(calls.store.latest_tasks, asker).revision
        known = Known(request.header(b"if-none-match").decode(), arrival)
        platform = canonical_platform(unquote(asked.get("platform", "")) or DEFAULT_PLATFORM)
        wait = spread(parse_wait(request.header(b"prefer").decode()))
        self._held = Held(self, Question(asker, platform, known), request.size)
        # Among the waiters before anything is looked at, so that nothing is missed.
        calls.waiters.add(asker, self._held)
        return self._work(self._arrive(self._held, wait))

    async def _arrive(self, held: Held, wait: float) -> None:
        found = await self.lanes.calls.arrive(held.question, may_hold=wait > 0)
        if found is not None:
            self._tell(held, found)
        elif self._held is held:
            held.hold(wait)

    async def _look(self, held: Held) -> None:
        found = await self.lanes.calls.look(held.question)
        if found is not None:
            self._tell(held, found)

    def look(self) -> None:
        """Something may have happened that concerns the question that is held."""
        held = self._held
        if held is None:
            return
        if self.state is WORKING:
            held.is_stale = True
            return
        found = self.lanes.calls.glance(held.question)
        if found is not None:
            self._tell(held, found)
        else:
            self._work(self._look(held))

    def over(self, held: Held) -> None:
        """Its time is up."""
        if self.state is WORKING:
            held.is_over = True
        elif self._held is held:
            self._tell(held, self.lanes.calls.over(held.question))

    def hurry(self) -> None:
        if self._held is not None:
            self.over(self._held)

    def wake(self, _held: Held) -> None:
        self.lanes.wake(self)

    def _tell(self, held: Held, found: Found) -> None:
        if self._held is not held:
            return
        self.let_go()
        seconds = perf_counter() - held.began - held.seconds
        headers = b'etag: "%s"\r\n' % found.given.revision.encode()
        if found.is_new:
            body = self.lanes.calls.body(found, held.question.platform)
            self._say(held.size, 200, headers, body, tallies.TASK, seconds)
        else:
            headers += _NUDGE if found.is_nudge else b""
            self._say(held.size, 304, headers, b"", tallies.TASK, seconds)

    def let_go(self) -> None:
        held, self._held = self._held, None
        if held is not None:
            held.let_go()
            self.lanes.calls.waiters.discard(held.question.asker, held)

    # --- Work and answers ----------------------------------------------------------------------------------

    def _work(self, answering: Coroutine[Any, Any, None]) -> None:
        self.state = WORKING
        task = self.lanes.loop.create_task(self._finish(answering))
        self.lanes.tasks.add(task)
        task.add_done_callback(self.lanes.tasks.discard)

    async def _finish(self, answering: Coroutine[Any, Any, None]) -> None:
        try:
            await answering
        except Exception as error:  # whatever it is: the real server does it again, and says what is wrong
            log.debug("a plain request is handed over", error=repr(error))
            self.let_go()
            if self.state is WORKING:
                self.hand_over()
            return
        held = self._held
        if held is None or self.state is not WORKING:
            return
        self.state = HOLDING
        if held.is_over or not self.may_hold:
            self.over(held)
        elif held.is_stale:
            held.is_stale = False
            self.look()

    def _say(self, size: int, status: int, headers: bytes, body: bytes, route: str, seconds: float) -> None:
        """Answer a request of so many bytes, which took so many seconds."""
        lanes = self.lanes
        lanes.requests.add_fast(route, status, seconds)
        text = plain_answer(status, lanes.date + headers, body, is_last=lanes.is_closing)
        self.answer(size, text)
