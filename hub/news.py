"""What nodes did since the last sweep, gathered so that a thousand that come back are one event.

Only what needs no transaction of its own: that a node is back, or fails, stands in the state already.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import structlog

from hub import operations
from hub.events import HUB, NODES_NAMED, Event, name_nodes
from hub.redaction import Hide, hiding
from hub.registry import Node
from hub.store import Store

log = structlog.get_logger()


class News:
    """What is still to be told; a node that did the same twice is told once, and what is over is not told."""

    def __init__(self) -> None:
        self._back: dict[str, None] = {}  # ordered sets
        self._failing: dict[str, str | None] = {}
        self._recovered: dict[str, None] = {}

    def back(self, node_id: str) -> None:
        """A node that was Offline is heard again."""
        self._back[node_id] = None

    def failing(self, node_id: str, reason: str | None) -> None:
        """A node is in Error that was not before; `reason` is what it says itself."""
        if node_id in self._recovered:
            del self._recovered[node_id]  # told as failing already, and it is
        else:
            self._failing[node_id] = reason

    def recovered(self, node_id: str) -> None:
        """A node is not in Error any more that was before."""
        if node_id in self._failing:
            del self._failing[node_id]  # nobody was told yet
        else:
            self._recovered[node_id] = None

    def left(self, node_id: str) -> None:
        """A node said that it goes: what it did before is over."""
        for told_later in (self._back, self._failing, self._recovered):
            told_later.pop(node_id, None)

    def take(self, now: float) -> list[Event]:
        """What there is to tell, as events of this time; each is told once."""
        back, failing, recovered = list(self._back), dict(self._failing), list(self._recovered)
        for told in (self._back, self._failing, self._recovered):
            told.clear()
        events = [_event(now, "nodes-back", back, {})] if back else []
        if recovered:
            events.append(_event(now, "nodes-recovered", recovered, {}))
        if failing:
            reason = next((reason for reason in failing.values() if reason), None)
            events.append(_event(now, "nodes-failing", list(failing), {"example": reason}))
        return events


async def tell(store: Store, news: News) -> None:
    """Put the news into the audit trail and the log. Raises StoreUnavailable; what was to be told is lost."""
    hide = hiding(store.latest_tasks)  # a node's own words
    events = [_masked(event, hide) for event in news.take(time.time())]
    for event in events:
        log.info(event.kind.replace("-", " are "), **event.detail)
    if events:
        await store.run(operations.note(*events))


def _masked(event: Event, hide: Hide) -> Event:
    example = event.detail.get("example")
    return replace(event, detail={**event.detail, "example": hide(example)}) if example else event


def log_nodes(what: str, nodes: Sequence[Node]) -> None:
    """One line for each of a few nodes, one for all of many."""
    write = log.warning if what == "offline" else log.info
    if len(nodes) > NODES_NAMED:
        write(f"nodes are {what}", **name_nodes([node.record.id for node in nodes]))
        return
    for node in nodes:
        write(f"node is {what}", node=node.record.id, hostname=node.record.hostname)


def _event(now: float, kind: str, ids: list[str], more: dict[str, Any]) -> Event:
    node = ids[0] if len(ids) == 1 else None
    return Event(now, kind, HUB.who, node=node, detail={**name_nodes(ids), **more})
