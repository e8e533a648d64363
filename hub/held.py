"""A question that waits on a lane: no task, but an object among the hub's waiters, and a timer."""

from __future__ import annotations

import asyncio
from time import perf_counter
from typing import Protocol

from hub.node_calls import Question


class Holder(Protocol):
    """The connection that it waits on."""

    def wake(self, held: Held) -> None:
        """Something may have happened that concerns it."""

    def over(self, held: Held) -> None:
        """Its time is up."""


class Held:
    """The question, and how long it was held."""

    __slots__ = ("_holder", "_since", "_timer", "began", "is_over", "is_stale", "question", "seconds", "size")

    def __init__(self, holder: Holder, question: Question, size: int) -> None:
        self._holder = holder
        self.question = question
        self.size = size
        """Bytes of the request."""
        self.began = perf_counter()
        self.seconds = 0.0
        """That it was held on purpose."""
        self.is_stale = self.is_over = False
        """It was woken, or its time was up, while an answer was worked out."""
        self._since = 0.0
        self._timer: asyncio.TimerHandle | None = None

    def wake(self) -> None:
        """As every waiter of the hub is woken."""
        self._holder.wake(self)

    def hold(self, wait: float) -> None:
        """Wait for so many seconds at most."""
        self._since = perf_counter()
        self._timer = asyncio.get_running_loop().call_later(wait, self._holder.over, self)

    def let_go(self) -> None:
        """Wait no more."""
        if self._timer is not None:
            self._timer.cancel()
            self.seconds = perf_counter() - self._since
