"""Who was refused, gathered for the audit trail: a flood of attempts is a few events, and no flood."""

from __future__ import annotations

import time
from dataclasses import dataclass

import structlog

from hub import operations
from hub.events import Actor, Event
from hub.store import Store

INTERVAL = 60.0
"""Seconds between two events about the same actor and address."""

MOST_GATHERED = 1_000
"""Actors and addresses that are told apart in a minute; the rest is counted together."""

MOST_TOLD = 20
"""Events at a time; the rest is one more."""

NOBODY = "nobody"
"""Who asks without a valid token."""

log = structlog.get_logger()

_Key = tuple[str, str | None, int]


@dataclass(slots=True)
class _Count:
    untold: int = 0
    told: float | None = None


class Refusals:
    """Counts by who asked, from where, and the status of the answer: 401 or 403."""

    def __init__(self) -> None:
        self._counts: dict[_Key, _Count] = {}
        self._others = 0

    def note(self, by: Actor, status: int) -> None:
        """One request was refused."""
        key = (by.who, by.source, status)
        count = self._counts.get(key)
        if count is None:
            if len(self._counts) >= MOST_GATHERED:
                self._others += 1
                return
            count = self._counts[key] = _Count()
        count.untold += 1

    def take(self, now: float) -> list[Event]:
        """What there is to tell at this time (seconds since the epoch)."""
        due: list[tuple[int, _Key]] = []
        for key, count in list(self._counts.items()):
            if count.told is not None and now - count.told < INTERVAL:
                continue
            if count.untold:
                due.append((count.untold, key))
                count.untold, count.told = 0, now
            else:
                del self._counts[key]
        due.sort(key=lambda found: found[0], reverse=True)
        events = [_event(now, key, count) for count, key in due[:MOST_TOLD]]
        rest = sum(count for count, _ in due[MOST_TOLD:]) + self._others
        self._others = 0
        if rest:
            events.append(Event(now, "access-refused", NOBODY, result="refused", detail={"count": rest}))
        return events


async def tell_refusals(store: Store, refusals: Refusals) -> None:
    """Put what was refused into the audit trail and the log. Raises StoreUnavailable; it is lost then."""
    events = refusals.take(time.time())
    for event in events:
        log.warning("access refused", who=event.who, source=event.source, **event.detail)
    if events:
        await store.run(operations.note(*events))


def _event(now: float, key: _Key, count: int) -> Event:
    who, source, status = key
    return Event(
        now, "access-refused", who, source, result="refused", detail={"status": status, "count": count}
    )
