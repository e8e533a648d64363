"""What has been kept long enough, where clocks may be set and hubs may be off.

What is dropped never comes back, so no single look at the wall clock decides it. Now and then the hub notes
how late it is, by the wall clock and by the clock of `observed.py`. What lies before the earliest time noted
within a span has been there for that span.
"""

from __future__ import annotations

from typing import Any

from hub.observed import Instant
from hub.state import Change, Mark, Moment, Operation, Outcome, View

LOOKS = 50
"""Times that are noted within a span: what is dropped may be this much of the span late."""

EVENTS, TOKENS = "kept-events", "kept-tokens"
"""The marks of what is dropped at the end of its time."""


def look_back(name: str, span: float) -> Operation[float | None]:
    """The time (seconds since the epoch) before which everything has been there for `span` seconds in which a
    hub ran; None while none has run for so long. Notes how late it is, under this name."""

    def decide(view: View, at: Moment) -> Outcome[float | None]:
        before = view.mark(name)
        after = note_time(before, span, at.now)
        changed = {} if after == before else {name: after}
        return Outcome(time_before(after, span, at.now), Change(marks=changed))

    return Operation(decide, marks=(name,))


def note_time(kept: Mark | None, span: float, now: Instant) -> Mark:
    """What is kept of the times that were noted, with this one if it is due."""
    looks: list[Any] = list(kept["looks"]) if kept is not None else []
    if looks and now.monotonic - looks[-1][0] < span / LOOKS:
        return {"looks": looks}
    # The last one before the span stays: it says how late it was when the span began.
    while len(looks) > 1 and looks[1][0] <= now.monotonic - span:
        del looks[0]
    return {"looks": [*looks, [now.monotonic, now.wall]]}


def time_before(kept: Mark, span: float, now: Instant) -> float | None:
    """The earliest time that it was within the span; None where nobody knows how late it was at its begin."""
    looks: list[tuple[float, float]] = kept["looks"]
    began = [clock for clock, _ in looks if clock <= now.monotonic - span]
    return min(now.wall, *(wall for clock, wall in looks if clock >= began[-1])) if began else None
