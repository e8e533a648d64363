"""How often nodes are to send heartbeats: as often as they like, until they are many or the hub is busy.

A node that says nothing is only called Offline after a minute, and its held requests count as words, so
fewer heartbeats cost nothing but freshness. Each node gets a little less than the others by chance: a fleet
that came back at once must not stay in step.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable

NORMAL = 30.0
"""Seconds that agents wait by default. Where no more is needed, nodes keep to what their owners set."""

LONGEST = 45.0
"""Seconds; the contract allows no more."""

RATE = 250.0
"""Heartbeats a second that a hub takes before it asks for fewer."""

BUSY = 0.6
"""The share of one core from which on a hub is busy."""

JITTER = 0.15
"""Up to this share is taken off by chance."""


def wanted_interval(nodes: int, load: float) -> float | None:
    """Seconds between a node's heartbeats, or None for as often as it likes.

    `nodes` are those that this hub holds requests of, `load` is the share of a core that the hub lately used.
    """
    by_number = nodes / RATE
    wanted = LONGEST if load >= BUSY else min(by_number, LONGEST)
    return wanted if wanted > NORMAL else None


class Pace:
    """The interval that counts now; `take` is to be called every few seconds."""

    def __init__(
        self,
        cpu: Callable[[], float] = time.process_time,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._cpu, self._clock = cpu, clock
        self._before = cpu(), clock()
        self._wanted: float | None = None

    def take(self, nodes: int) -> None:
        """Look at the load since the last call."""
        cpu, now = self._cpu(), self._clock()
        span = now - self._before[1]
        load = (cpu - self._before[0]) / span if span > 0 else 0.0
        self._before = cpu, now
        self._wanted = wanted_interval(nodes, load)

    def interval(self) -> float | None:
        """What one node is told: seconds, or None where it may keep its own."""
        if self._wanted is None:
            return None
        return round(self._wanted * random.uniform(1 - JITTER, 1), 1)  # noqa: S311  no secret
