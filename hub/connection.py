"""A client's connection, from accept to end: what is read of it and when, whatever answers.

The fast way (`lane.py`) answers what is plain. Anything else is given to the real server (`full_way.py`),
with all bytes that are not answered yet, and the connection comes back when that is done. Flow control, time
limits and the end are here, once for both ways. What happens, by state (else nothing changes):

    state     bytes arrive       answered                the hub stops       the client is gone
    READING   read a request     -                       CLOSING             gone
    WORKING   kept               READING, or HOLDING     answered, CLOSING   gone; it is done all the same
    HOLDING   kept               READING                 answered, CLOSING   gone, held no more
    HANDED    go to the server   READING                 answered, CLOSING   gone; the server hears of it
    CLOSING   dropped            -                       -                   gone

A client that sends no more may still read (`shutdown`), and cannot be told from one that is gone. So what it
asked is answered, a question held here at once, and what only reads with the real server if that is soon (a
question held there is not). Then the connection ends.
TLS knows no such half.

A client that does not read its answers is not read either, in any state, and ended after STUCK seconds.
"""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from collections.abc import Callable
from enum import Enum
from typing import Any

from hub.full_way import Visit, Visited
from hub.lanes import Lanes
from hub.plain_http import MOST_BODY, MOST_HEAD

SLOW = 5.0
"""Seconds that a plain request may take to arrive; then the real server waits for the rest of it."""

MOST_AHEAD = MOST_HEAD + MOST_BODY
"""Bytes that are read of a connection while something on it is still to be answered."""

MOST_UNREAD = 64 * 1024
"""Bytes of answers that wait for a client to read them; above that nothing more is read of it."""

STUCK = 30.0
"""Seconds without a byte read by a client that has something to read: it is taken for gone."""

HandOver = Callable[[Visited, bytes], Visit]


class State(Enum):
    """Of a connection."""

    READING = "waits for a request, or for the rest of one"
    WORKING = "an answer is worked out by a task"
    HOLDING = "a question is held"
    HANDED = "the real server has it"
    CLOSING = "nothing more is read"


READING, WORKING, HOLDING, HANDED, CLOSING = State


class Connection(asyncio.Protocol, ABC):
    """One connection; `read`, of a subclass, takes the request that the buffer begins with."""

    __slots__ = (
        "_hand_to",
        "_has_sent_all",
        "_is_clogged",
        "_readable",
        "_since",
        "_unread",
        "_visit",
        "buffer",
        "lanes",
        "peer",
        "state",
        "transport",
    )

    def __init__(self, lanes: Lanes, hand_to: HandOver) -> None:
        self.lanes = lanes
        self._hand_to = hand_to
        self.transport: asyncio.Transport | None = None
        self.state = READING
        self.buffer = b""
        """What has arrived and was neither answered nor handed over."""
        self._visit: Visit | None = None
        self._since = lanes.loop.time()
        """When it became idle, its request began to arrive, or it was handed over."""
        self._is_clogged = False
        """The client does not read what it is answered."""
        self._has_sent_all = False
        self._readable: asyncio.Future[None] | None = None
        """Done when it does again."""
        self._unread = 0, self._since
        """Bytes that it had not read at the last look, and since when it is as many."""
        self.peer: str | None = None

    @abstractmethod
    def read(self) -> None:
        """Take the request that the buffer begins with, if it is whole."""

    @abstractmethod
    def let_go(self) -> None:
        """Hold nothing any more."""

    @abstractmethod
    def hurry(self) -> None:
        """Answer at once what is held."""

    @property
    def may_hold(self) -> bool:
        """Whether a question may wait for its answer: whoever sends no more may be gone."""
        return not self._has_sent_all

    def answer(self, size: int, text: bytes) -> None:
        """Answer the request that the buffer begins with, which has so many bytes."""
        transport = self.transport
        if transport is None or self.state is CLOSING:
            return
        self.state, self.buffer, self._since = READING, self.buffer[size:], self.lanes.loop.time()
        transport.write(text)
        if self._is_over:
            self.close()
        elif self.buffer:
            self.lanes.loop.call_soon(self._go_on)
            self._steer()

    # --- The connection ------------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)  # noqa: S101  what create_server gives
        self.transport = transport
        transport.set_write_buffer_limits(MOST_UNREAD)
        peer = transport.get_extra_info("peername")
        self.peer = peer[0] if isinstance(peer, tuple) else None
        self.lanes.all.add(self)
        if self.lanes.is_closing:
            self.close()

    def connection_lost(self, _error: Exception | None) -> None:
        self.transport, self.state, self.buffer = None, CLOSING, b""
        self.lanes.all.discard(self)
        self.resume_writing()
        self.let_go()
        self._leave()

    def data_received(self, data: bytes) -> None:
        if self.state is CLOSING:  # TLS tells what had arrived before it closes
            return
        if self._visit is not None:
            self._visit.feed(data)
        else:
            if not self.buffer:
                self._since = self.lanes.loop.time()
            self.buffer = self.buffer + data if self.buffer else data
            self._go_on()
        self._steer()

    def eof_received(self) -> bool:
        """The client sends no more; true keeps the connection for what is still to be answered."""
        self._has_sent_all = True
        if self.info("ssl_object") is not None:
            return False
        if self.state is HOLDING:
            self.hurry()
        elif self._visit is not None:
            self._visit.finish()
        else:
            self._go_on()
        return self.state is not CLOSING

    def pause_writing(self) -> None:
        self._is_clogged = True
        self._steer()

    def resume_writing(self) -> None:
        self._is_clogged = False
        readable, self._readable = self._readable, None
        if readable is not None and not readable.done():
            readable.set_result(None)
        self._go_on()
        self._steer()

    def _steer(self) -> None:
        """Read as much as there is room for, and nothing of a client that does not read."""
        if self.transport is None or self.state is CLOSING:
            return
        ahead = len(self.buffer) if self._visit is None else self._visit.waiting
        if self._is_clogged or ahead > MOST_AHEAD:
            self.transport.pause_reading()
        else:
            self.transport.resume_reading()

    def tidy(self, now: float, keep_alive: float) -> None:
        """Do what is due on a connection on which nothing happens."""
        transport = self.transport
        if transport is None:
            return
        unread = transport.get_write_buffer_size()
        if unread == 0 or unread != self._unread[0]:
            self._unread = unread, now
        elif now - self._unread[1] >= STUCK:
            transport.abort()
            return
        if self.state is READING and self.buffer and not self._is_clogged and now - self._since >= SLOW:
            self.hand_over()
        elif self._is_idle and now - self._since >= keep_alive:
            self.close()

    @property
    def _is_over(self) -> bool:
        """Whether the connection ends with the answer that was just given."""
        return self.lanes.is_closing or (self._has_sent_all and not self.buffer)

    @property
    def _is_idle(self) -> bool:
        """Nothing has been asked that is to be answered."""
        if self.state is HANDED:
            return self._visit is not None and not self._visit.is_asked
        return self.state is READING and not self.buffer

    @property
    def is_owing(self) -> bool:
        """An answer is worked out, and its client would read it."""
        return self.state in (WORKING, HOLDING, HANDED) and not self._is_clogged

    def stop(self) -> None:
        """The hub stops: go, unless something is being answered."""
        if self.state is READING or self._is_idle:
            self.close()

    def close(self) -> None:
        if self.state is not CLOSING:
            self.state, self.buffer = CLOSING, b""
            self._leave()
        if self.transport is not None:
            self.transport.close()

    def end(self) -> None:
        """Close at once, whatever was not sent."""
        if self.transport is not None:
            self.transport.abort()

    def _leave(self) -> None:
        visit, self._visit = self._visit, None
        if visit is not None:
            visit.end()

    # --- The real server's turn ----------------------------------------------------------------------------

    def hand_over(self) -> None:
        """Let the real server answer what comes next."""
        if self.transport is None:
            return
        data, self.buffer = self.buffer, b""
        self.state, self._since = HANDED, self.lanes.loop.time()
        self._visit = self._hand_to(self, data)
        if self._has_sent_all:
            self._visit.finish()

    def info(self, name: str) -> Any:
        return None if self.transport is None else self.transport.get_extra_info(name)

    async def send(self, data: bytes) -> None:
        # In pieces: however large an answer is, its copy here is not.
        for start in range(0, len(data), MOST_UNREAD):
            if self.transport is None:
                return
            self.transport.write(data[start : start + MOST_UNREAD])
            if self._is_clogged:
                self._readable = self._readable or self.lanes.loop.create_future()
                await asyncio.shield(self._readable)

    def read_on(self) -> None:
        self._steer()

    def take_back(self, rest: bytes) -> None:
        if self.state is not HANDED:
            return
        self._visit = None
        self.state, self.buffer, self._since = READING, rest, self.lanes.loop.time()
        if self._is_over:
            self.close()
        elif rest:
            self.lanes.loop.call_soon(self._go_on)
        self._steer()

    def _go_on(self) -> None:
        """Read the next request, if it is time for that."""
        if self.state is not READING or self._is_clogged or not (self.buffer or self._has_sent_all):
            return
        if self._is_over:
            self.close()
            return
        before = self.buffer
        self.read()
        if self._has_sent_all and self.state is READING and self.buffer is before:  # it never gets whole
            self.close()
