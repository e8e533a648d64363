"""A journal that keeps nothing but the audit trail, and that in memory: for tests, and to try things out."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from itertools import count, islice

from hub.events import EventQuery, Recorded
from hub.registry import Node
from hub.state import Change

MOST_KEPT = 100_000
"""Events; the oldest are dropped beyond it."""


class MemoryJournal:
    def __init__(self) -> None:
        self._events: deque[Recorded] = deque(maxlen=MOST_KEPT)
        self._numbers = count(1)

    async def commit(self, change: Change) -> None:
        self._events.extend(Recorded(str(next(self._numbers)), event) for event in change.events)

    async def keep_live(self, nodes: Sequence[Node], observed: float) -> None:
        pass

    async def events(self, query: EventQuery) -> Sequence[Recorded]:
        if query.after is not None:
            place = place_of(query.after)
            found = (kept for kept in self._events if int(kept.id) > place)
        else:
            end = float("inf") if query.before is None else place_of(query.before)
            found = (kept for kept in reversed(self._events) if int(kept.id) < end)
        return list(islice((kept for kept in found if query.takes(kept.event)), query.limit))

    async def forget_events(self, before: float) -> int:
        dropped = 0
        while self._events and self._events[0].event.time < before:
            self._events.popleft()
            dropped += 1
        return dropped

    async def close(self) -> None:
        pass


def place_of(event_id: str) -> int:
    """The place of an event in the trail; that of the beginning where the id is none of ours."""
    return int(event_id) if event_id.isascii() and event_id.isdigit() and len(event_id) < 19 else 0
