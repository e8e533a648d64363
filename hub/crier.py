"""Looking at what people are to be told of. Of several hubs one does it: the one that has the lease.

What was told is settled before it is sent: a hub that dies in between tells it never, and not twice. What was
remembered must still be what was read, so that a hub that lost its lease without knowing settles nothing.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING

from hub import operations
from hub.events import EventQuery, Recorded
from hub.notify_rules import Memory, judge
from hub.outlook import Outlook
from hub.state import Change, Mark, Moment, Operation, Outcome, View
from hub.store import Store

if TYPE_CHECKING:  # with it comes an HTTP client, which a hub that tells nobody does without
    from hub.notify import Messenger

STEP_INTERVAL = 2.0
"""Seconds between two looks."""

LEASE_TIME = 20.0
"""Seconds that the lease is taken for; it is renewed when half of them are over."""

PAGE, PAGES = 1000, 20
"""Events that are read at once, and how often in one step."""

LEASE, MEMORY = "notify-lease", "notify"


class Crier:
    """Hands the messengers what there is to tell."""

    def __init__(self, store: Store, outlook: Outlook, messengers: Sequence[Messenger]) -> None:
        self._store = store
        self._outlook = outlook
        self._messengers = messengers
        self._shares = {messenger.target.share for messenger in messengers}
        self._holder = secrets.token_hex(8)
        self._renew_at = float("-inf")

    async def step(self) -> None:
        """Look, and tell. Raises StoreUnavailable; what there was to tell is told next time."""
        if not await self._has_lease():
            return
        for _ in range(PAGES):
            kept = await self._store.run(read_mark(MEMORY))
            memory = Memory(await self._newest()) if kept is None else Memory.load(kept)
            happened = await self._store.events(EventQuery(after=memory.cursor, limit=PAGE))
            after, notes = judge(memory, await self._outlook.look(), happened, self._shares)
            if (kept is None or after != memory) and not await self._store.run(
                settle(kept, after.dump(), self._holder)
            ):
                self._renew_at = float("-inf")
                return
            for note in notes:
                for messenger in self._messengers:
                    messenger.offer(note)
            if len(happened) < PAGE:
                return

    async def _has_lease(self) -> bool:
        now = time.monotonic()
        if now < self._renew_at:
            return True
        has_it = await self._store.run(operations.take_lease(LEASE, self._holder, LEASE_TIME))
        self._renew_at = now + LEASE_TIME / 2 if has_it else float("-inf")
        return has_it

    async def _newest(self) -> str:
        """The end of the trail: a hub that never told anything tells nothing of what was."""
        newest: Sequence[Recorded] = await self._store.events(EventQuery(limit=1))
        return newest[0].id if newest else ""


def read_mark(name: str) -> Operation[Mark | None]:
    """What is kept under a name."""
    return Operation(lambda view, _at: Outcome(view.mark(name)), marks=(name,))


def settle(before: Mark | None, after: Mark, holder: str) -> Operation[bool]:
    """Remember this in place of `before`; False if this hub has no lease, or another one was faster."""

    def decide(view: View, _at: Moment) -> Outcome[bool]:
        lease = view.mark(LEASE)
        if lease is None or lease["holder"] != holder or view.mark(MEMORY) != before:
            return Outcome(False)
        return Outcome(True, Change(marks={MEMORY: after}))

    return Operation(decide, marks=(LEASE, MEMORY))
