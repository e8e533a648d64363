"""What a hub knows of how things go: queues, fleet, figures. Made once, used by routes and loops."""

from __future__ import annotations

import time
from collections.abc import Callable

from hub.fleet import FleetCounter
from hub.metrics import Metrics
from hub.queues import QueueEyes
from hub.state import EVERYONE
from hub.store import Store
from hub.waiters import Waiters
from hub.watch import Watch


class Insight:
    """All of it, over one store."""

    def __init__(
        self, store: Store, waiters: Waiters, *, certificate_ends: Callable[[], float] | None = None
    ) -> None:
        self.eyes = QueueEyes()
        self.watch = Watch(store, self.eyes)
        self.fleet = FleetCounter(store)
        self.metrics = Metrics(store, self.fleet, self.watch, waiters, certificate_ends=certificate_ends)
        self._store = store
        self._waiters = waiters

    def wake(self, whom: str) -> None:
        """Wake held requests, and note when a switch began."""
        self._waiters.wake(whom)
        if whom == EVERYONE:
            self.metrics.switches.see(self._store.latest_tasks, time.monotonic())

    async def step(self) -> None:
        """Look at the current task if it is time to. Raises StoreUnavailable."""
        self.metrics.canaries.see(self._store.latest_tasks)
        await self.watch.step()

    def took_up(self, generation: str) -> None:
        """A node reports a generation for the first time."""
        self.metrics.switches.took_up(generation, time.monotonic())
