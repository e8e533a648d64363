"""The clock that counts how long a node was silent: it goes only while a hub is there to hear.

A hub that is off, suspended or held up hears nobody, and a clock that is set says nothing of nodes. Time in
which nobody could hear is no node's silence: neither a minute of it nor the days after which a node is
forgotten. So this clock goes on by what has passed between two looks at it, but never by more than
MOST_PASSED. More than that is a *gap*, and so is a step of the wall clock: whoever speaks to a hub then has
a whole span before anything is concluded from silence, counted from `since`.

`redis_script.py` has the same rule in Redis' own language, for hubs that share a state.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

MOST_PASSED = 10
"""Seconds that the clock goes on between two looks at most. Hubs look every few seconds."""


class Instant(NamedTuple):
    """One moment in seconds: by a clock that nobody sets, for spans; by the wall clock, for people (since the
    epoch); and since when, by the first of them, a hub has been there to hear without a gap."""

    monotonic: float
    wall: float
    since: float = float("-inf")

    def unbroken(self, began: float) -> float:
        """Since when, by the wall clock, something lasts that began then and that a hub has to see: no longer
        than one was there to see it. What lies ahead was noted by a clock that was set back since."""
        since = self.wall - (self.monotonic - self.since)
        return max(began, since) if began <= self.wall else min(since, self.wall)


@dataclass(frozen=True, slots=True)
class Observed:
    """How far the clock has come, since when there was no gap, and the machine's clocks at the last look."""

    clock: float
    since: float
    looked: Instant

    def at(self, now: Instant) -> Observed:
        """The same after one more look, at this moment of the machine's clocks."""
        passed = now.monotonic - self.looked.monotonic
        stepped = abs((now.wall - self.looked.wall) - passed)
        clock = self.clock + min(max(passed, 0.0), MOST_PASSED)
        is_gap = passed > MOST_PASSED or stepped > MOST_PASSED
        return Observed(clock, clock if is_gap else self.since, now)


class ObservedClock:
    """The clock of one hub, from where an earlier run of it has left off; each look at it counts."""

    def __init__(self, read: Callable[[], Instant], begun: float) -> None:
        """`read` has the machine's clocks."""
        self._read = read
        self._observed = Observed(begun, begun, read())

    def look(self) -> Instant:
        """This moment by this clock."""
        self._observed = self._observed.at(self._read())
        return Instant(self._observed.clock, self._observed.looked.wall, self._observed.since)
