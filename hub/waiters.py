"""Requests that wait, and how to wake them: held ones for a change, slow ones for their body."""

from __future__ import annotations

import asyncio
import time
from collections import defaultdict
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from contextvars import ContextVar
from typing import Protocol

from hub.state import BLANK, EVERYONE

HELD: ContextVar[list[float]] = ContextVar("held")
"""Where a request counts the seconds that it was held, if somebody wants to know: the one item of a list."""


class Waiter:
    """One held request. It is woken by whatever may concern it, and looks for itself at what that was."""

    __slots__ = ("_event",)

    def __init__(self) -> None:
        self._event = asyncio.Event()

    def wake(self) -> None:
        self._event.set()

    async def wait(self, deadline: float) -> None:
        """Return once woken, or when the loop's clock reaches `deadline`."""
        began = time.perf_counter()
        with suppress(TimeoutError):
            async with asyncio.timeout_at(deadline):
                await self._event.wait()
        self._event.clear()
        held = HELD.get(None)
        if held is not None:
            held[0] += time.perf_counter() - began


class Wakeable(Protocol):
    """Whatever waits; to be woken must not take long."""

    def wake(self) -> None: ...


class Waiters:
    """All held requests of this hub, by the node that they came from (`EVERYONE` if they do not say)."""

    def __init__(self) -> None:
        self._by_node: defaultdict[str, set[Wakeable]] = defaultdict(set)
        self._limits: set[asyncio.Timeout] = set()
        self.is_closed = False

    def __len__(self) -> int:
        return sum(len(waiters) for waiters in self._by_node.values())

    @contextmanager
    def holding(self, node_id: str | None) -> Iterator[Waiter]:
        """A waiter that can be woken from now on; gone when the request is, however that ends."""
        waiter = Waiter()
        self.add(node_id, waiter)
        try:
            yield waiter
        finally:
            self.discard(node_id, waiter)

    def add(self, node_id: str | None, waiter: Wakeable) -> None:
        """Let this one be woken from now on."""
        self._by_node[node_id or EVERYONE].add(waiter)

    def discard(self, node_id: str | None, waiter: Wakeable) -> None:
        """Let it be woken no more."""
        key = node_id or EVERYONE
        self._by_node[key].discard(waiter)
        if not self._by_node[key]:
            del self._by_node[key]

    def wake(self, whom: str) -> None:
        """Wake the requests of a node, of several (`state.wake_of`), or of EVERYONE."""
        if whom == EVERYONE:
            concerned = list(self._by_node.values())
        else:
            concerned = [self._by_node.get(node_id, set()) for node_id in whom.split(BLANK)]
        for waiters in concerned:
            for waiter in tuple(waiters):
                waiter.wake()

    @asynccontextmanager
    async def limit(self, seconds: float) -> AsyncIterator[None]:
        """TimeoutError in a block that takes longer, or that still waits when the hub stops."""
        async with asyncio.timeout(0 if self.is_closed else seconds) as limit:
            self._limits.add(limit)
            try:
                yield
            finally:
                self._limits.discard(limit)

    async def pause(self, seconds: float) -> None:
        """Return after so many seconds, or when the hub stops."""
        with suppress(TimeoutError):
            async with self.limit(seconds):
                await asyncio.Event().wait()

    def close(self) -> None:
        """The hub stops: wake all, and hold nobody any more."""
        self.is_closed = True
        self.wake(EVERYONE)
        for limit in self._limits:
            limit.reschedule(asyncio.get_running_loop().time())
