"""How things are for those who tell people of them: when it is decided what to tell, and when it is sent."""

from __future__ import annotations

import time
from contextlib import suppress

from hub.errors import StoreUnavailable
from hub.insight import Insight
from hub.notify_rules import NODES_GONE, Notification, Now, Seen, as_it_is
from hub.registry import Presence
from hub.store import Store

FRESH = 60.0
"""Seconds after which a look at a queue says nothing of now."""


class Outlook:
    """Looks, over one store."""

    def __init__(self, store: Store, insight: Insight) -> None:
        self._store = store
        self._insight = insight

    async def look(self) -> Seen:
        """How things are. Raises StoreUnavailable."""
        tasks, fleet = await self._store.tasks(), await self._insight.fleet.count()
        now, current = time.time(), tasks.current
        healthy = tasks.canary.task if tasks.canary is not None and tasks.canary.is_healthy else None
        if current is None or tasks.is_held:
            return Seen(now, healthy=healthy)
        sample = self._insight.watch.latest(current)
        is_fresh = sample is not None and now - sample.wall <= FRESH
        return Seen(
            now,
            current.name,
            tasks.revision,
            current.started_at,
            sample.queues.input.items if sample is not None and is_fresh else None,
            fleet.online,
            fleet.failing,
            healthy,
        )

    async def check(self, note: Notification) -> Notification | None:
        """What is to be told as things are now, in place of what was to be told before; None if it is over.
        Where that cannot be known now, it is told as it was."""
        with suppress(StoreUnavailable):
            lost = frozenset(
                node.record.id
                for node in (await self._store.nodes() if note.event == NODES_GONE else ())
                if node.record.presence is Presence.OFFLINE
            )
            return as_it_is(note, Now(await self.look(), lost))
        return note
