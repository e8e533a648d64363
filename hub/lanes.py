"""All connections of this hub: what they share, and what is done to all of them."""

from __future__ import annotations

import asyncio
from collections import deque
from email.utils import formatdate
from time import time
from typing import TYPE_CHECKING, Protocol

from hub.bearer import Bearers
from hub.node_calls import NodeCalls
from hub.roles import Rights
from hub.tallies import Requests

if TYPE_CHECKING:
    from hub.connection import Connection

TOLD_AT_ONCE = 16_384
"""Held requests that are answered before others have their turn. To tell a node takes about 30 µs, to take in
what it asks then three times that: in turns, the last ones would wait for what the first ones ask."""


class Woken(Protocol):
    """What holds a question."""

    def look(self) -> None:
        """See whether there is news."""


class Lanes:
    """The connections, and the parts of the hub that answer on them."""

    def __init__(self, calls: NodeCalls, bearers: Bearers, rights: Rights, requests: Requests) -> None:
        self.calls = calls
        self.bearers = bearers
        self.rights = rights
        self.requests = requests
        self.loop = asyncio.get_running_loop()
        self.all: set[Connection] = set()
        self.tasks: set[asyncio.Task[None]] = set()
        self._is_closing = False
        self._woken: deque[Woken] = deque()
        self._date = -1.0, b""

    @property
    def is_closing(self) -> bool:
        """The hub stops: nothing more is read, what was read is answered."""
        return self._is_closing or self.calls.waiters.is_closed

    @property
    def date(self) -> bytes:
        """The header, made once a second."""
        second = time() // 1
        if second != self._date[0]:
            self._date = second, b"date: %s\r\n" % formatdate(second, usegmt=True).encode()
        return self._date[1]

    def wake(self, lane: Woken) -> None:
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
        """Close what has been idle for `keep_alive` seconds, hand over what arrives too slowly, end who reads
        nothing."""
        now = self.loop.time()
        for lane in list(self.all):
            lane.tidy(now, keep_alive)

    def close(self) -> None:
        """The hub stops: who is not being answered is let go, the others are once they are answered."""
        self._is_closing = True
        for lane in list(self.all):
            lane.stop()

    def end(self, *, also_owing: bool) -> None:
        """End who does not read what was answered, or everybody."""
        for lane in list(self.all):
            if also_owing or not lane.is_owing:
                lane.end()
