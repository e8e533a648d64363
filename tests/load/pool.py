"""The kept connections of one simulated node, handled as aiohttp's connector handles an agent's.

What is free is taken before a new one is made, the one that has been free longest first. What has been free
for longer than KEEP seconds is not taken; it is closed at the next look, which comes KEEP seconds after
something was given back. So a node that registered goes on over that connection, and its questions and
heartbeats change connections with each other.
"""

from __future__ import annotations

import math
import time
from collections import deque

from tests.load.links import Link, Loop

CEIL_FROM = 5.0
"""Seconds: longer timers of aiohttp end at whole seconds."""


class Pool:
    """Connections of one node to one port."""

    __slots__ = ("_free", "_is_due", "_keep", "_loop", "_port")

    def __init__(self, loop: Loop, port: int, keep: float) -> None:
        self._loop = loop
        self._port = port
        self._keep = keep
        self._free: deque[tuple[Link, float]] = deque()
        self._is_due = False

    def take(self) -> Link:
        """One to ask over. Raises OSError."""
        now = time.monotonic()
        while self._free:
            link, since = self._free.popleft()
            if link.is_open and now - since <= self._keep:
                return link
            link.close()
        return self._loop.connect(self._port)

    def give_back(self, link: Link, *, is_last: bool) -> None:
        """It was answered; `is_last` where the answer says that the connection ends."""
        if is_last:
            link.close()
            return
        link.rest()
        self._free.append((link, time.monotonic()))
        if not self._is_due:
            self._look_later()

    def close(self) -> None:
        """All that is free."""
        while self._free:
            self._free.popleft()[0].close()

    def _look_later(self) -> None:
        self._is_due = True
        now = time.monotonic()
        due = now + self._keep
        self._loop.later((math.ceil(due) if self._keep >= CEIL_FROM else due) - now, self._look)

    def _look(self) -> None:
        self._is_due = False
        limit = time.monotonic() - self._keep
        kept: deque[tuple[Link, float]] = deque()
        for link, since in self._free:
            if link.is_open and since >= limit:
                kept.append((link, since))
            else:
                link.close()
        self._free = kept
        if kept:
            self._look_later()
