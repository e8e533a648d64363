"""The audit trail: who did what, from where, with what result, and what became of the nodes.

Events are only ever appended, in the same transaction as the change that they tell of, so that the trail
and the state never disagree. They are bounded by a retention.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from hub.access import Grant

MOST_EVENTS = 1_000
"""Events that one answer carries at most."""

NODES_NAMED = 20
"""Node ids that an event about many nodes names; it always has their number."""


@dataclass(frozen=True, slots=True)
class Actor:
    """Who asks: a token's name, a node or the hub itself, and the address that the request came from."""

    who: str
    source: str | None = None
    token: str | None = None
    """The id of the token that was shown; None for the shared one."""
    grant: Grant | None = None
    """What that token allows; None for the shared one and for the hub itself, which may do all."""


HUB = Actor("hub")
"""The hub itself, where nobody asked."""


@dataclass(frozen=True, slots=True)
class Event:
    """One thing that happened; `time` in seconds since the epoch, by the hub's clock."""

    time: float
    kind: str
    who: str
    source: str | None = None
    task: str | None = None
    node: str | None = None
    result: str = "done"
    detail: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Recorded:
    """An event and its place in the trail: ids are opaque, and a later event has a later place."""

    id: str
    event: Event


@dataclass(frozen=True, slots=True)
class EventQuery:
    """Which events: those after a place, oldest first, or else those before one (or all), newest first."""

    after: str | None = None
    before: str | None = None
    kinds: frozenset[str] = frozenset()
    task: str | None = None
    node: str | None = None
    who: str | None = None
    since: float | None = None
    """Seconds since the epoch; at this time or later."""
    until: float | None = None
    """Before this time."""
    limit: int = 100

    def takes(self, event: Event) -> bool:
        """Whether an event is one of these, wherever it stands."""
        return (
            (not self.kinds or event.kind in self.kinds)
            and self.task in (None, event.task)
            and self.node in (None, event.node)
            and self.who in (None, event.who)
            and (self.since is None or event.time >= self.since)
            and (self.until is None or event.time < self.until)
        )


def name_nodes(ids: list[str]) -> dict[str, Any]:
    """The detail of an event about many nodes."""
    return {"count": len(ids), "nodes": ids[:NODES_NAMED]}
